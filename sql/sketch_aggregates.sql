-- Aggregates over values and sketches. Their state has type internal, so no support function can be strict, and a final
-- function must leave the state as it is.
--
-- Stored bytes depend only on the set of values and the parameters: hll_union(hll_agg(A), hll_agg(B)) has the bytes of
-- hll_agg over A and B together. hll_agg gives NULL for no rows and an empty sketch for nothing but NULLs; hll_union is
-- strict, so whoever merges partial results writes coalesce(tally.hll_union(a, b), a, b).

-- Support functions

CREATE FUNCTION tally.hll_add_trans0(internal, tally.hll_hashval) RETURNS internal
AS 'MODULE_PATHNAME', 'tally_hll_add_trans' LANGUAGE C STABLE PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_add_trans0(internal, tally.hll_hashval) IS 'adds a hash to the state of an aggregate';
CREATE FUNCTION tally.hll_add_trans1(internal, tally.hll_hashval, integer) RETURNS internal
AS 'MODULE_PATHNAME', 'tally_hll_add_trans' LANGUAGE C STABLE PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_add_trans1(internal, tally.hll_hashval, integer) IS 'adds a hash to the state of an aggregate';
CREATE FUNCTION tally.hll_add_trans2(internal, tally.hll_hashval, integer, integer) RETURNS internal
AS 'MODULE_PATHNAME', 'tally_hll_add_trans' LANGUAGE C STABLE PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_add_trans2(internal, tally.hll_hashval, integer, integer) IS 'adds a hash to the state of an aggregate';
CREATE FUNCTION tally.hll_add_trans3(internal, tally.hll_hashval, integer, integer, bigint) RETURNS internal
AS 'MODULE_PATHNAME', 'tally_hll_add_trans' LANGUAGE C STABLE PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_add_trans3(internal, tally.hll_hashval, integer, integer, bigint) IS 'adds a hash to the state of an aggregate';
CREATE FUNCTION tally.hll_add_trans4(internal, tally.hll_hashval, integer, integer, bigint, integer) RETURNS internal
AS 'MODULE_PATHNAME', 'tally_hll_add_trans' LANGUAGE C STABLE PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_add_trans4(internal, tally.hll_hashval, integer, integer, bigint, integer) IS 'adds a hash to the state of an aggregate';
CREATE FUNCTION tally.hll_agg_trans(internal, anyelement) RETURNS internal
AS 'MODULE_PATHNAME', 'tally_hll_agg_trans' LANGUAGE C STABLE PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_agg_trans(internal, anyelement) IS 'adds the hash of a value to the state of an aggregate';
CREATE FUNCTION tally.hll_agg_trans(internal, anyelement, integer) RETURNS internal
AS 'MODULE_PATHNAME', 'tally_hll_agg_trans' LANGUAGE C STABLE PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_agg_trans(internal, anyelement, integer) IS 'adds the hash of a value to the state of an aggregate';
CREATE FUNCTION tally.hll_agg_trans(internal, anyelement, integer, integer, bigint, integer) RETURNS internal
AS 'MODULE_PATHNAME', 'tally_hll_agg_trans' LANGUAGE C STABLE PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_agg_trans(internal, anyelement, integer, integer, bigint, integer) IS 'adds the hash of a value to the state of an aggregate';
CREATE FUNCTION tally.hll_union_trans(internal, tally.hll) RETURNS internal
AS 'MODULE_PATHNAME', 'tally_hll_union_trans' LANGUAGE C IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_union_trans(internal, tally.hll) IS 'unites a sketch into the state of an aggregate';
CREATE FUNCTION tally.hll_union_internal(internal, internal) RETURNS internal
AS 'MODULE_PATHNAME', 'tally_hll_union_internal' LANGUAGE C IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_union_internal(internal, internal) IS 'unites two states of an aggregate';
CREATE FUNCTION tally.hll_serialize(internal) RETURNS bytea
AS 'MODULE_PATHNAME', 'tally_hll_serialize' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_serialize(internal) IS 'state of an aggregate as bytes, for another process';
CREATE FUNCTION tally.hll_deserialize(bytea, internal) RETURNS internal
AS 'MODULE_PATHNAME', 'tally_hll_deserialize' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_deserialize(bytea, internal) IS 'state of an aggregate from the bytes of another process';
CREATE FUNCTION tally.hll_pack(internal) RETURNS tally.hll
AS 'MODULE_PATHNAME', 'tally_hll_pack' LANGUAGE C STABLE PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_pack(internal) IS 'sketch from the state of an aggregate';
CREATE FUNCTION tally.hll_card_unpacked(internal) RETURNS double precision
AS 'MODULE_PATHNAME', 'tally_hll_card_unpacked' LANGUAGE C STABLE PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_card_unpacked(internal) IS 'estimate from the state of an aggregate';
CREATE FUNCTION tally.hll_floor_card_unpacked(internal) RETURNS bigint
AS 'MODULE_PATHNAME', 'tally_hll_floor_card_unpacked' LANGUAGE C STABLE PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_floor_card_unpacked(internal) IS 'estimate from the state of an aggregate, rounded down';
CREATE FUNCTION tally.hll_ceil_card_unpacked(internal) RETURNS bigint
AS 'MODULE_PATHNAME', 'tally_hll_ceil_card_unpacked' LANGUAGE C STABLE PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_ceil_card_unpacked(internal) IS 'estimate from the state of an aggregate, rounded up';
CREATE FUNCTION tally.distinct_count_final(internal) RETURNS bigint
AS 'MODULE_PATHNAME', 'tally_distinct_count_final' LANGUAGE C STABLE PARALLEL SAFE;
COMMENT ON FUNCTION tally.distinct_count_final(internal) IS 'rounded estimate from the state of an aggregate, 0 if there is none';

-- Aggregates. SSPACE is the memory of a group of some twenty values: the planner sizes hash tables by it.

CREATE AGGREGATE tally.hll_agg(value anyelement) (
  SFUNC = tally.hll_agg_trans, STYPE = internal, SSPACE = 256, FINALFUNC = tally.hll_pack, FINALFUNC_MODIFY = READ_ONLY,
  COMBINEFUNC = tally.hll_union_internal, SERIALFUNC = tally.hll_serialize, DESERIALFUNC = tally.hll_deserialize, PARALLEL = SAFE);
COMMENT ON AGGREGATE tally.hll_agg(anyelement) IS
  'sketch of the values of a group, with the parameters of the settings tally.hll_default_*';
CREATE AGGREGATE tally.hll_agg(value anyelement, log2m integer) (
  SFUNC = tally.hll_agg_trans, STYPE = internal, SSPACE = 256, FINALFUNC = tally.hll_pack, FINALFUNC_MODIFY = READ_ONLY,
  COMBINEFUNC = tally.hll_union_internal, SERIALFUNC = tally.hll_serialize, DESERIALFUNC = tally.hll_deserialize, PARALLEL = SAFE);
COMMENT ON AGGREGATE tally.hll_agg(anyelement, integer) IS
  'sketch of the values of a group, with 2^log2m registers';
CREATE AGGREGATE tally.hll_agg(value anyelement, log2m integer, regwidth integer, expthresh bigint, sparseon integer) (
  SFUNC = tally.hll_agg_trans, STYPE = internal, SSPACE = 256, FINALFUNC = tally.hll_pack, FINALFUNC_MODIFY = READ_ONLY,
  COMBINEFUNC = tally.hll_union_internal, SERIALFUNC = tally.hll_serialize, DESERIALFUNC = tally.hll_deserialize, PARALLEL = SAFE);
COMMENT ON AGGREGATE tally.hll_agg(anyelement, integer, integer, bigint, integer) IS
  'sketch of the values of a group, with all parameters given: independent of settings';
CREATE AGGREGATE tally.distinct_count(value anyelement) (
  SFUNC = tally.hll_agg_trans, STYPE = internal, SSPACE = 256, FINALFUNC = tally.distinct_count_final, FINALFUNC_MODIFY = READ_ONLY,
  COMBINEFUNC = tally.hll_union_internal, SERIALFUNC = tally.hll_serialize, DESERIALFUNC = tally.hll_deserialize, PARALLEL = SAFE);
COMMENT ON AGGREGATE tally.distinct_count(anyelement) IS
  'estimated number of different values that are not NULL: exact for small sets, else within some 2 %';
CREATE AGGREGATE tally.hll_union_agg(sketch tally.hll) (
  SFUNC = tally.hll_union_trans, STYPE = internal, SSPACE = 256, FINALFUNC = tally.hll_pack, FINALFUNC_MODIFY = READ_ONLY,
  COMBINEFUNC = tally.hll_union_internal, SERIALFUNC = tally.hll_serialize, DESERIALFUNC = tally.hll_deserialize, PARALLEL = SAFE);
COMMENT ON AGGREGATE tally.hll_union_agg(tally.hll) IS
  'union of the sketches of a group';
CREATE AGGREGATE tally.sum(sketch tally.hll) (
  SFUNC = tally.hll_union_trans, STYPE = internal, SSPACE = 256, FINALFUNC = tally.hll_pack, FINALFUNC_MODIFY = READ_ONLY,
  COMBINEFUNC = tally.hll_union_internal, SERIALFUNC = tally.hll_serialize, DESERIALFUNC = tally.hll_deserialize, PARALLEL = SAFE);
COMMENT ON AGGREGATE tally.sum(tally.hll) IS
  'union of the sketches of a group, as tally.hll_union_agg';
CREATE AGGREGATE tally.distinct_count(sketch tally.hll) (
  SFUNC = tally.hll_union_trans, STYPE = internal, SSPACE = 256, FINALFUNC = tally.distinct_count_final, FINALFUNC_MODIFY = READ_ONLY,
  COMBINEFUNC = tally.hll_union_internal, SERIALFUNC = tally.hll_serialize, DESERIALFUNC = tally.hll_deserialize, PARALLEL = SAFE);
COMMENT ON AGGREGATE tally.distinct_count(tally.hll) IS
  'estimated number of different values that the sketches of a group have seen together';
CREATE AGGREGATE tally.hll_add_agg(hash tally.hll_hashval) (
  SFUNC = tally.hll_add_trans0, STYPE = internal, SSPACE = 256, FINALFUNC = tally.hll_pack, FINALFUNC_MODIFY = READ_ONLY,
  COMBINEFUNC = tally.hll_union_internal, SERIALFUNC = tally.hll_serialize, DESERIALFUNC = tally.hll_deserialize, PARALLEL = SAFE);
COMMENT ON AGGREGATE tally.hll_add_agg(tally.hll_hashval) IS
  'sketch of the hashes of a group';
CREATE AGGREGATE tally.hll_add_agg(hash tally.hll_hashval, log2m integer) (
  SFUNC = tally.hll_add_trans1, STYPE = internal, SSPACE = 256, FINALFUNC = tally.hll_pack, FINALFUNC_MODIFY = READ_ONLY,
  COMBINEFUNC = tally.hll_union_internal, SERIALFUNC = tally.hll_serialize, DESERIALFUNC = tally.hll_deserialize, PARALLEL = SAFE);
COMMENT ON AGGREGATE tally.hll_add_agg(tally.hll_hashval, integer) IS
  'sketch of the hashes of a group, with the given parameters';
CREATE AGGREGATE tally.hll_add_agg(hash tally.hll_hashval, log2m integer, regwidth integer) (
  SFUNC = tally.hll_add_trans2, STYPE = internal, SSPACE = 256, FINALFUNC = tally.hll_pack, FINALFUNC_MODIFY = READ_ONLY,
  COMBINEFUNC = tally.hll_union_internal, SERIALFUNC = tally.hll_serialize, DESERIALFUNC = tally.hll_deserialize, PARALLEL = SAFE);
COMMENT ON AGGREGATE tally.hll_add_agg(tally.hll_hashval, integer, integer) IS
  'sketch of the hashes of a group, with the given parameters';
CREATE AGGREGATE tally.hll_add_agg(hash tally.hll_hashval, log2m integer, regwidth integer, expthresh bigint) (
  SFUNC = tally.hll_add_trans3, STYPE = internal, SSPACE = 256, FINALFUNC = tally.hll_pack, FINALFUNC_MODIFY = READ_ONLY,
  COMBINEFUNC = tally.hll_union_internal, SERIALFUNC = tally.hll_serialize, DESERIALFUNC = tally.hll_deserialize, PARALLEL = SAFE);
COMMENT ON AGGREGATE tally.hll_add_agg(tally.hll_hashval, integer, integer, bigint) IS
  'sketch of the hashes of a group, with the given parameters';
CREATE AGGREGATE tally.hll_add_agg(hash tally.hll_hashval, log2m integer, regwidth integer, expthresh bigint, sparseon integer) (
  SFUNC = tally.hll_add_trans4, STYPE = internal, SSPACE = 256, FINALFUNC = tally.hll_pack, FINALFUNC_MODIFY = READ_ONLY,
  COMBINEFUNC = tally.hll_union_internal, SERIALFUNC = tally.hll_serialize, DESERIALFUNC = tally.hll_deserialize, PARALLEL = SAFE);
COMMENT ON AGGREGATE tally.hll_add_agg(tally.hll_hashval, integer, integer, bigint, integer) IS
  'sketch of the hashes of a group, with the given parameters';
