-- The type topn: the most frequent items with bounds. The names are those of the extension topn, so that its queries run unchanged.

CREATE TYPE tally.topn;

CREATE FUNCTION tally.topn_in(cstring) RETURNS tally.topn
AS 'MODULE_PATHNAME', 'tally_topn_in' LANGUAGE C STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.topn_in(cstring) IS 'input of type topn: its bytes as text of type bytea, or a JSON object of items and counts';

CREATE FUNCTION tally.topn_out(tally.topn) RETURNS cstring
AS 'MODULE_PATHNAME', 'tally_topn_out' LANGUAGE C STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.topn_out(tally.topn) IS 'output of type topn: its bytes as text of type bytea';

CREATE FUNCTION tally.topn_recv(internal) RETURNS tally.topn
AS 'MODULE_PATHNAME', 'tally_topn_recv' LANGUAGE C STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.topn_recv(internal) IS 'binary input of type topn';

CREATE FUNCTION tally.topn_send(tally.topn) RETURNS bytea
AS 'MODULE_PATHNAME', 'tally_topn_send' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.topn_send(tally.topn) IS 'binary output of type topn';

CREATE TYPE tally.topn (
  INPUT = tally.topn_in,
  OUTPUT = tally.topn_out,
  RECEIVE = tally.topn_recv,
  SEND = tally.topn_send,
  INTERNALLENGTH = VARIABLE,
  ALIGNMENT = int4,
  STORAGE = extended
);
COMMENT ON TYPE tally.topn IS 'sketch of a stream: its most frequent items, how often each has occurred at least and at most, and can be united with others';

-- Comparison is by bytes: lists of the same items with other counters, bounds or totals differ. GROUP BY, DISTINCT, UNION, EXCEPT and keys
-- need it.

CREATE FUNCTION tally.topn_eq(tally.topn, tally.topn) RETURNS boolean
AS 'MODULE_PATHNAME', 'tally_bytes_eq' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.topn_eq(tally.topn, tally.topn) IS 'implementation of =';
CREATE FUNCTION tally.topn_ne(tally.topn, tally.topn) RETURNS boolean
AS 'MODULE_PATHNAME', 'tally_bytes_ne' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.topn_ne(tally.topn, tally.topn) IS 'implementation of <>';
CREATE FUNCTION tally.topn_lt(tally.topn, tally.topn) RETURNS boolean
AS 'MODULE_PATHNAME', 'tally_bytes_lt' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.topn_lt(tally.topn, tally.topn) IS 'implementation of <';
CREATE FUNCTION tally.topn_le(tally.topn, tally.topn) RETURNS boolean
AS 'MODULE_PATHNAME', 'tally_bytes_le' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.topn_le(tally.topn, tally.topn) IS 'implementation of <=';
CREATE FUNCTION tally.topn_gt(tally.topn, tally.topn) RETURNS boolean
AS 'MODULE_PATHNAME', 'tally_bytes_gt' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.topn_gt(tally.topn, tally.topn) IS 'implementation of >';
CREATE FUNCTION tally.topn_ge(tally.topn, tally.topn) RETURNS boolean
AS 'MODULE_PATHNAME', 'tally_bytes_ge' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.topn_ge(tally.topn, tally.topn) IS 'implementation of >=';
CREATE FUNCTION tally.topn_cmp(tally.topn, tally.topn) RETURNS integer
AS 'MODULE_PATHNAME', 'tally_bytes_cmp' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.topn_cmp(tally.topn, tally.topn) IS 'order of the bytes of two lists: -1, 0 or 1';
CREATE FUNCTION tally.topn_hash_value(tally.topn) RETURNS integer
AS 'MODULE_PATHNAME', 'tally_bytes_hash' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.topn_hash_value(tally.topn) IS 'hash of the bytes of a list, for hash tables';
CREATE FUNCTION tally.topn_hash_value_extended(tally.topn, bigint) RETURNS bigint
AS 'MODULE_PATHNAME', 'tally_bytes_hash_extended' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.topn_hash_value_extended(tally.topn, bigint) IS 'hash of the bytes of a list with a seed, for hash partitions';

CREATE OPERATOR tally.= (
  LEFTARG = tally.topn, RIGHTARG = tally.topn, FUNCTION = tally.topn_eq, COMMUTATOR = OPERATOR(tally.=),
  NEGATOR = OPERATOR(tally.<>), RESTRICT = eqsel, JOIN = eqjoinsel, HASHES, MERGES);
COMMENT ON OPERATOR tally.= (tally.topn, tally.topn) IS 'have two lists the same bytes?';
CREATE OPERATOR tally.<> (
  LEFTARG = tally.topn, RIGHTARG = tally.topn, FUNCTION = tally.topn_ne, COMMUTATOR = OPERATOR(tally.<>),
  NEGATOR = OPERATOR(tally.=), RESTRICT = neqsel, JOIN = neqjoinsel);
COMMENT ON OPERATOR tally.<> (tally.topn, tally.topn) IS 'do two lists differ in their bytes?';
CREATE OPERATOR tally.< (
  LEFTARG = tally.topn, RIGHTARG = tally.topn, FUNCTION = tally.topn_lt, COMMUTATOR = OPERATOR(tally.>),
  NEGATOR = OPERATOR(tally.>=), RESTRICT = scalarltsel, JOIN = scalarltjoinsel);
COMMENT ON OPERATOR tally.< (tally.topn, tally.topn) IS 'order of bytes: less';
CREATE OPERATOR tally.<= (
  LEFTARG = tally.topn, RIGHTARG = tally.topn, FUNCTION = tally.topn_le, COMMUTATOR = OPERATOR(tally.>=),
  NEGATOR = OPERATOR(tally.>), RESTRICT = scalarlesel, JOIN = scalarlejoinsel);
COMMENT ON OPERATOR tally.<= (tally.topn, tally.topn) IS 'order of bytes: less or equal';
CREATE OPERATOR tally.> (
  LEFTARG = tally.topn, RIGHTARG = tally.topn, FUNCTION = tally.topn_gt, COMMUTATOR = OPERATOR(tally.<),
  NEGATOR = OPERATOR(tally.<=), RESTRICT = scalargtsel, JOIN = scalargtjoinsel);
COMMENT ON OPERATOR tally.> (tally.topn, tally.topn) IS 'order of bytes: greater';
CREATE OPERATOR tally.>= (
  LEFTARG = tally.topn, RIGHTARG = tally.topn, FUNCTION = tally.topn_ge, COMMUTATOR = OPERATOR(tally.<=),
  NEGATOR = OPERATOR(tally.<), RESTRICT = scalargesel, JOIN = scalargejoinsel);
COMMENT ON OPERATOR tally.>= (tally.topn, tally.topn) IS 'order of bytes: greater or equal';

CREATE OPERATOR CLASS tally.topn_ops DEFAULT FOR TYPE tally.topn USING btree AS
  OPERATOR 1 tally.<, OPERATOR 2 tally.<=, OPERATOR 3 tally.=, OPERATOR 4 tally.>=, OPERATOR 5 tally.>,
  FUNCTION 1 tally.topn_cmp(tally.topn, tally.topn);
COMMENT ON OPERATOR CLASS tally.topn_ops USING btree IS 'order of the bytes of lists';
COMMENT ON OPERATOR FAMILY tally.topn_ops USING btree IS 'order of the bytes of lists';
CREATE OPERATOR CLASS tally.topn_ops DEFAULT FOR TYPE tally.topn USING hash AS
  OPERATOR 1 tally.=,
  FUNCTION 1 tally.topn_hash_value(tally.topn),
  FUNCTION 2 tally.topn_hash_value_extended(tally.topn, bigint);
COMMENT ON OPERATOR CLASS tally.topn_ops USING hash IS 'equality of the bytes of lists';
COMMENT ON OPERATOR FAMILY tally.topn_ops USING hash IS 'equality of the bytes of lists';

-- JSON: without bounds

CREATE FUNCTION tally._topn_from_json(text) RETURNS tally.topn
AS 'MODULE_PATHNAME', 'tally_topn_from_json_text' LANGUAGE C STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally._topn_from_json(text) IS 'what the cast of jsonb to topn is made of';
CREATE FUNCTION tally._topn_to_json(tally.topn) RETURNS text
AS 'MODULE_PATHNAME', 'tally_topn_to_json_text' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally._topn_to_json(tally.topn) IS 'what the cast of topn to jsonb is made of';

CREATE FUNCTION tally.topn(items jsonb) RETURNS tally.topn LANGUAGE sql STABLE STRICT PARALLEL SAFE
BEGIN ATOMIC
  SELECT tally._topn_from_json(items::text);
END;
COMMENT ON FUNCTION tally.topn(jsonb) IS 'sketch from a JSON object of items and counts, with the counters of tally.topn_counters';
CREATE CAST (jsonb AS tally.topn) WITH FUNCTION tally.topn(jsonb) AS IMPLICIT;
COMMENT ON CAST (jsonb AS tally.topn) IS 'sketch from a JSON object of items and counts';

CREATE FUNCTION tally.topn_to_jsonb(sketch tally.topn) RETURNS jsonb LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
BEGIN ATOMIC
  SELECT tally._topn_to_json(sketch)::jsonb;
END;
COMMENT ON FUNCTION tally.topn_to_jsonb(tally.topn) IS 'items with the least that they can have occurred; the bounds are lost';
CREATE CAST (tally.topn AS jsonb) WITH FUNCTION tally.topn_to_jsonb(tally.topn) AS ASSIGNMENT;
COMMENT ON CAST (tally.topn AS jsonb) IS 'items with the least that they can have occurred; the bounds are lost';

-- Aggregates. The state has type internal, so no transition or combine function can be strict.

CREATE FUNCTION tally.topn_add_trans(internal, text) RETURNS internal
AS 'MODULE_PATHNAME', 'tally_topn_add_trans' LANGUAGE C STABLE PARALLEL SAFE;
COMMENT ON FUNCTION tally.topn_add_trans(internal, text) IS 'adds an item to the state of an aggregate';
CREATE FUNCTION tally.topn_add_trans(internal, anyelement) RETURNS internal
AS 'MODULE_PATHNAME', 'tally_topn_add_trans' LANGUAGE C STABLE PARALLEL SAFE;
COMMENT ON FUNCTION tally.topn_add_trans(internal, anyelement) IS 'adds the text of a value to the state of an aggregate';
CREATE FUNCTION tally.topn_add_trans(internal, anyelement, integer) RETURNS internal
AS 'MODULE_PATHNAME', 'tally_topn_add_trans' LANGUAGE C STABLE PARALLEL SAFE;
COMMENT ON FUNCTION tally.topn_add_trans(internal, anyelement, integer) IS 'adds the text of a value to the state of an aggregate with so many counters';
CREATE FUNCTION tally.topn_union_trans(internal, tally.topn) RETURNS internal
AS 'MODULE_PATHNAME', 'tally_topn_union_trans' LANGUAGE C IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION tally.topn_union_trans(internal, tally.topn) IS 'unites a sketch into the state of an aggregate';
CREATE FUNCTION tally.topn_combine(internal, internal) RETURNS internal
AS 'MODULE_PATHNAME', 'tally_topn_combine' LANGUAGE C IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION tally.topn_combine(internal, internal) IS 'unites two states of an aggregate';
CREATE FUNCTION tally.topn_serialize(internal) RETURNS bytea
AS 'MODULE_PATHNAME', 'tally_topn_serialize' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.topn_serialize(internal) IS 'state of an aggregate as bytes, for another process';
CREATE FUNCTION tally.topn_deserialize(bytea, internal) RETURNS internal
AS 'MODULE_PATHNAME', 'tally_topn_deserialize' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.topn_deserialize(bytea, internal) IS 'state of an aggregate from the bytes of another process';
CREATE FUNCTION tally.topn_pack(internal) RETURNS tally.topn
AS 'MODULE_PATHNAME', 'tally_topn_pack' LANGUAGE C IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION tally.topn_pack(internal) IS 'sketch from the state of an aggregate';

CREATE AGGREGATE tally.topn_add_agg(item text) (
  SFUNC = tally.topn_add_trans, STYPE = internal, SSPACE = 2048, FINALFUNC = tally.topn_pack, FINALFUNC_MODIFY = READ_ONLY,
  COMBINEFUNC = tally.topn_combine, SERIALFUNC = tally.topn_serialize, DESERIALFUNC = tally.topn_deserialize, PARALLEL = SAFE);
COMMENT ON AGGREGATE tally.topn_add_agg(text) IS 'sketch of the most frequent items, with tally.topn_counters counters';
CREATE AGGREGATE tally.topn_add_agg(value anyelement) (
  SFUNC = tally.topn_add_trans, STYPE = internal, SSPACE = 2048, FINALFUNC = tally.topn_pack, FINALFUNC_MODIFY = READ_ONLY,
  COMBINEFUNC = tally.topn_combine, SERIALFUNC = tally.topn_serialize, DESERIALFUNC = tally.topn_deserialize, PARALLEL = SAFE);
COMMENT ON AGGREGATE tally.topn_add_agg(anyelement) IS 'sketch of the most frequent values as text, with tally.topn_counters counters';
CREATE AGGREGATE tally.topn_add_agg(value anyelement, counters integer) (
  SFUNC = tally.topn_add_trans, STYPE = internal, SSPACE = 2048, FINALFUNC = tally.topn_pack, FINALFUNC_MODIFY = READ_ONLY,
  COMBINEFUNC = tally.topn_combine, SERIALFUNC = tally.topn_serialize, DESERIALFUNC = tally.topn_deserialize, PARALLEL = SAFE);
COMMENT ON AGGREGATE tally.topn_add_agg(anyelement, integer) IS 'sketch of the most frequent values as text, with so many counters';
CREATE AGGREGATE tally.topn_agg(value anyelement) (
  SFUNC = tally.topn_add_trans, STYPE = internal, SSPACE = 2048, FINALFUNC = tally.topn_pack, FINALFUNC_MODIFY = READ_ONLY,
  COMBINEFUNC = tally.topn_combine, SERIALFUNC = tally.topn_serialize, DESERIALFUNC = tally.topn_deserialize, PARALLEL = SAFE);
COMMENT ON AGGREGATE tally.topn_agg(anyelement) IS 'sketch of the most frequent values as text, with tally.topn_counters counters';
CREATE AGGREGATE tally.topn_agg(value anyelement, counters integer) (
  SFUNC = tally.topn_add_trans, STYPE = internal, SSPACE = 2048, FINALFUNC = tally.topn_pack, FINALFUNC_MODIFY = READ_ONLY,
  COMBINEFUNC = tally.topn_combine, SERIALFUNC = tally.topn_serialize, DESERIALFUNC = tally.topn_deserialize, PARALLEL = SAFE);
COMMENT ON AGGREGATE tally.topn_agg(anyelement, integer) IS 'sketch of the most frequent values as text, with so many counters';
CREATE AGGREGATE tally.topn_union_agg(sketch tally.topn) (
  SFUNC = tally.topn_union_trans, STYPE = internal, SSPACE = 2048, FINALFUNC = tally.topn_pack, FINALFUNC_MODIFY = READ_ONLY,
  COMBINEFUNC = tally.topn_combine, SERIALFUNC = tally.topn_serialize, DESERIALFUNC = tally.topn_deserialize, PARALLEL = SAFE);
COMMENT ON AGGREGATE tally.topn_union_agg(tally.topn) IS 'sketch of all items that the sketches have counted';

-- Functions and operators

CREATE FUNCTION tally.topn_union(tally.topn, tally.topn) RETURNS tally.topn
AS 'MODULE_PATHNAME', 'tally_topn_union' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.topn_union(tally.topn, tally.topn) IS 'sketch of all items that two sketches have counted';
CREATE FUNCTION tally.topn_add(tally.topn, item text) RETURNS tally.topn
AS 'MODULE_PATHNAME', 'tally_topn_add' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.topn_add(tally.topn, text) IS 'sketch that has counted one more item';
CREATE FUNCTION tally.topn_error(tally.topn) RETURNS bigint
AS 'MODULE_PATHNAME', 'tally_topn_error' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.topn_error(tally.topn) IS 'how often an item that the sketch does not have can have occurred at most; 0 while all counts are exact';
CREATE FUNCTION tally.topn_total(tally.topn) RETURNS bigint
AS 'MODULE_PATHNAME', 'tally_topn_total' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.topn_total(tally.topn) IS 'how many items the sketch has counted';
CREATE FUNCTION tally.topn_counters(tally.topn) RETURNS integer
AS 'MODULE_PATHNAME', 'tally_topn_counters' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.topn_counters(tally.topn) IS 'how many items the sketch keeps count of';
CREATE FUNCTION tally.topn_frequency(tally.topn, item text) RETURNS bigint
AS 'MODULE_PATHNAME', 'tally_topn_frequency' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.topn_frequency(tally.topn, text) IS 'how often an item has occurred at least; NULL if the sketch does not have it';

CREATE FUNCTION tally._topn_items(tally.topn, integer) RETURNS text[]
AS 'MODULE_PATHNAME', 'tally_topn_items' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally._topn_items(tally.topn, integer) IS 'what tally.topn is made of';
CREATE FUNCTION tally._topn_lower(tally.topn, integer) RETURNS bigint[]
AS 'MODULE_PATHNAME', 'tally_topn_lower' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally._topn_lower(tally.topn, integer) IS 'what tally.topn is made of';
CREATE FUNCTION tally._topn_upper(tally.topn, integer) RETURNS bigint[]
AS 'MODULE_PATHNAME', 'tally_topn_upper' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally._topn_upper(tally.topn, integer) IS 'what tally.topn_bounds is made of';
CREATE FUNCTION tally._topn_certain(tally.topn, integer) RETURNS boolean[]
AS 'MODULE_PATHNAME', 'tally_topn_certain' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally._topn_certain(tally.topn, integer) IS 'what tally.topn_bounds is made of';

CREATE FUNCTION tally.topn(sketch tally.topn, n integer) RETURNS TABLE (item text, frequency bigint)
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE ROWS 10
BEGIN ATOMIC
  SELECT t.item, t.frequency FROM unnest(tally._topn_items(sketch, n), tally._topn_lower(sketch, n)) AS t (item, frequency);
END;
COMMENT ON FUNCTION tally.topn(tally.topn, integer) IS
  'the n most frequent items, each with how often it has occurred at least: never too high, and exact while tally.topn_error is 0';
CREATE FUNCTION tally.topn_bounds(sketch tally.topn, n integer) RETURNS TABLE (item text, lower bigint, upper bigint, certain boolean)
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE ROWS 10
BEGIN ATOMIC
  SELECT t.item, t.lower, t.upper, t.certain
    FROM unnest(tally._topn_items(sketch, n), tally._topn_lower(sketch, n), tally._topn_upper(sketch, n), tally._topn_certain(sketch, n))
      AS t (item, lower, upper, certain);
END;
COMMENT ON FUNCTION tally.topn_bounds(tally.topn, integer) IS
  'the n most frequent items, each with how often it has occurred at least and at most, and whether it is surely one of the n most frequent';

CREATE OPERATOR tally.+ (LEFTARG = tally.topn, RIGHTARG = tally.topn, FUNCTION = tally.topn_union, COMMUTATOR = OPERATOR(tally.+));
COMMENT ON OPERATOR tally.+ (tally.topn, tally.topn) IS 'sketch of all items that two sketches have counted';
CREATE OPERATOR tally.-> (LEFTARG = tally.topn, RIGHTARG = text, FUNCTION = tally.topn_frequency);
COMMENT ON OPERATOR tally.-> (tally.topn, text) IS 'how often an item has occurred at least; NULL if the sketch does not have it';
