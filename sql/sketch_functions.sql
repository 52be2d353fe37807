-- Functions and operators on sketches and hashes. Those that read a setting are stable.

-- Making and reading sketches

CREATE FUNCTION tally.hll_empty() RETURNS tally.hll
AS 'MODULE_PATHNAME', 'tally_hll_empty' LANGUAGE C STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_empty() IS 'empty sketch with the parameters of the settings tally.hll_default_*';
CREATE FUNCTION tally.hll_empty(log2m integer) RETURNS tally.hll
AS 'MODULE_PATHNAME', 'tally_hll_empty' LANGUAGE C STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_empty(integer) IS 'empty sketch with 2^log2m registers';
CREATE FUNCTION tally.hll_empty(log2m integer, regwidth integer) RETURNS tally.hll
AS 'MODULE_PATHNAME', 'tally_hll_empty' LANGUAGE C STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_empty(integer, integer) IS 'empty sketch with 2^log2m registers of regwidth bits';
CREATE FUNCTION tally.hll_empty(log2m integer, regwidth integer, expthresh bigint) RETURNS tally.hll
AS 'MODULE_PATHNAME', 'tally_hll_empty' LANGUAGE C STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_empty(integer, integer, bigint) IS 'empty sketch that counts up to expthresh values exactly';
CREATE FUNCTION tally.hll_empty(log2m integer, regwidth integer, expthresh bigint, sparseon integer) RETURNS tally.hll
AS 'MODULE_PATHNAME', 'tally_hll_empty' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_empty(integer, integer, bigint, integer) IS 'empty sketch with all parameters given';

CREATE FUNCTION tally.hll_add(tally.hll, tally.hll_hashval) RETURNS tally.hll
AS 'MODULE_PATHNAME', 'tally_hll_add' LANGUAGE C STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_add(tally.hll, tally.hll_hashval) IS 'sketch with one more hash';
CREATE FUNCTION tally.hll_add_rev(tally.hll_hashval, tally.hll) RETURNS tally.hll
AS 'MODULE_PATHNAME', 'tally_hll_add_rev' LANGUAGE C STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_add_rev(tally.hll_hashval, tally.hll) IS 'sketch with one more hash';
CREATE FUNCTION tally.hll_union(tally.hll, tally.hll) RETURNS tally.hll
AS 'MODULE_PATHNAME', 'tally_hll_union' LANGUAGE C STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_union(tally.hll, tally.hll) IS
  'sketch of everything that one of two sketches with equal parameters has seen; the same bytes as one sketch of all values';

CREATE FUNCTION tally.hll_fold(tally.hll, log2m integer) RETURNS tally.hll
AS 'MODULE_PATHNAME', 'tally_hll_fold' LANGUAGE C STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_fold(tally.hll, integer) IS
  'the sketch with fewer registers, 2^log2m, as if it had been made with them: so that it can be united with smaller ones';

CREATE FUNCTION tally.hll_cardinality(tally.hll) RETURNS double precision
AS 'MODULE_PATHNAME', 'tally_hll_cardinality' LANGUAGE C STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_cardinality(tally.hll) IS 'estimated number of different values, by the formula of tally.hll_estimator';
CREATE FUNCTION tally.hll_cardinality(tally.hll, estimator text) RETURNS double precision
AS 'MODULE_PATHNAME', 'tally_hll_cardinality_by' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_cardinality(tally.hll, text) IS 'estimated number of different values, by the formula "ertl" or "classic"';
CREATE FUNCTION tally.hll_count(tally.hll) RETURNS bigint
AS 'MODULE_PATHNAME', 'tally_hll_count' LANGUAGE C STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_count(tally.hll) IS 'estimated number of different values, rounded';
CREATE FUNCTION tally.hll_error(tally.hll) RETURNS double precision
AS 'MODULE_PATHNAME', 'tally_hll_error' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_error(tally.hll) IS 'relative standard error of the estimate: 0 while the count is exact';

CREATE FUNCTION tally.hll_print(tally.hll) RETURNS cstring
AS 'MODULE_PATHNAME', 'tally_hll_print' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_print(tally.hll) IS 'sketch as text for people: parameters, then hashes or registers';
CREATE FUNCTION tally.hll_schema_version(tally.hll) RETURNS integer
AS 'MODULE_PATHNAME', 'tally_hll_schema_version' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_schema_version(tally.hll) IS 'version of the stored format: 1';
CREATE FUNCTION tally.hll_type(tally.hll) RETURNS integer
AS 'MODULE_PATHNAME', 'tally_hll_type' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_type(tally.hll) IS 'form of storage: 0 undefined, 1 empty, 2 hashes, 3 registers that are not 0, 4 all registers';
CREATE FUNCTION tally.hll_log2m(tally.hll) RETURNS integer
AS 'MODULE_PATHNAME', 'tally_hll_log2m' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_log2m(tally.hll) IS 'base-2 logarithm of the number of registers';
CREATE FUNCTION tally.hll_regwidth(tally.hll) RETURNS integer
AS 'MODULE_PATHNAME', 'tally_hll_regwidth' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_regwidth(tally.hll) IS 'bits per register';
CREATE FUNCTION tally.hll_sparseon(tally.hll) RETURNS integer
AS 'MODULE_PATHNAME', 'tally_hll_sparseon' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_sparseon(tally.hll) IS 'may the sketch be stored without its empty registers? 1 or 0';
CREATE FUNCTION tally._hll_threshold(tally.hll, is_effective boolean) RETURNS bigint
AS 'MODULE_PATHNAME', 'tally_hll_threshold' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally._hll_threshold(tally.hll, boolean) IS 'what tally.hll_expthresh is made of';
-- PostgreSQL cannot dump a body that mentions a parameter without a name where others have one.
CREATE FUNCTION tally.hll_expthresh(sketch tally.hll, OUT specified bigint, OUT effective bigint)
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
BEGIN ATOMIC
  SELECT tally._hll_threshold(sketch, false), tally._hll_threshold(sketch, true);
END;
COMMENT ON FUNCTION tally.hll_expthresh(tally.hll) IS
  'up to how many values the sketch counts exactly, as it was asked for (-1: by size) and in fact';


CREATE OPERATOR tally.|| (LEFTARG = tally.hll, RIGHTARG = tally.hll, FUNCTION = tally.hll_union, COMMUTATOR = OPERATOR(tally.||));
COMMENT ON OPERATOR tally.|| (tally.hll, tally.hll) IS 'union of two sketches';
CREATE OPERATOR tally.|| (LEFTARG = tally.hll, RIGHTARG = tally.hll_hashval, FUNCTION = tally.hll_add, COMMUTATOR = OPERATOR(tally.||));
COMMENT ON OPERATOR tally.|| (tally.hll, tally.hll_hashval) IS 'sketch with one more hash';
CREATE OPERATOR tally.|| (LEFTARG = tally.hll_hashval, RIGHTARG = tally.hll, FUNCTION = tally.hll_add_rev, COMMUTATOR = OPERATOR(tally.||));
COMMENT ON OPERATOR tally.|| (tally.hll_hashval, tally.hll) IS 'sketch with one more hash';
CREATE OPERATOR tally.# (RIGHTARG = tally.hll, FUNCTION = tally.hll_cardinality);
COMMENT ON OPERATOR tally.# (NONE, tally.hll) IS 'estimated number of different values';

-- Values to hashes

CREATE FUNCTION tally.hll_hash(anyelement) RETURNS tally.hll_hashval
AS 'MODULE_PATHNAME', 'tally_hll_hash' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_hash(anyelement) IS 'hash as tally.hll_agg makes it: equal for all values that are equal in SQL, whatever their type';
CREATE FUNCTION tally.hash_is_stable(type regtype) RETURNS boolean
AS 'MODULE_PATHNAME', 'tally_hash_is_stable' LANGUAGE C STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hash_is_stable(regtype) IS
  'do values of the type have a hash that no server version, platform or collation can change? Others are hashed by the functions of PostgreSQL';

CREATE FUNCTION tally.hll_hash_boolean(boolean, seed integer DEFAULT 0) RETURNS tally.hll_hashval
AS 'MODULE_PATHNAME', 'tally_hll_hash_boolean' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_hash_boolean(boolean, integer) IS 'hash of the byte of a boolean, as in postgresql-hll';
CREATE FUNCTION tally.hll_hash_smallint(smallint, seed integer DEFAULT 0) RETURNS tally.hll_hashval
AS 'MODULE_PATHNAME', 'tally_hll_hash_smallint' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_hash_smallint(smallint, integer) IS 'hash of the 2 bytes of a smallint, as in postgresql-hll';
CREATE FUNCTION tally.hll_hash_integer(integer, seed integer DEFAULT 0) RETURNS tally.hll_hashval
AS 'MODULE_PATHNAME', 'tally_hll_hash_integer' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_hash_integer(integer, integer) IS 'hash of the 4 bytes of an integer, as in postgresql-hll';
CREATE FUNCTION tally.hll_hash_bigint(bigint, seed integer DEFAULT 0) RETURNS tally.hll_hashval
AS 'MODULE_PATHNAME', 'tally_hll_hash_bigint' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_hash_bigint(bigint, integer) IS 'hash of the 8 bytes of a bigint, as in postgresql-hll';
CREATE FUNCTION tally.hll_hash_bytea(bytea, seed integer DEFAULT 0) RETURNS tally.hll_hashval
AS 'MODULE_PATHNAME', 'tally_hll_hash_bytes' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_hash_bytea(bytea, integer) IS 'hash of bytes, as in postgresql-hll';
CREATE FUNCTION tally.hll_hash_text(text, seed integer DEFAULT 0) RETURNS tally.hll_hashval
AS 'MODULE_PATHNAME', 'tally_hll_hash_bytes' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_hash_text(text, integer) IS 'hash of the bytes of a text, as in postgresql-hll';
CREATE FUNCTION tally.hll_hash_any(anyelement, seed integer DEFAULT 0) RETURNS tally.hll_hashval
AS 'MODULE_PATHNAME', 'tally_hll_hash_any' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_hash_any(anyelement, integer) IS
  'hash of the bytes of a value of any type, as in postgresql-hll: equal values may have different bytes, see tally.hll_hash';
CREATE FUNCTION tally.hll_hash_uuid(uuid, seed integer DEFAULT 0) RETURNS tally.hll_hashval
AS 'MODULE_PATHNAME', 'tally_hll_hash_uuid' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_hash_uuid(uuid, integer) IS 'hash of the 16 bytes of a uuid';

-- Settings by the functions of postgresql-hll. They last as SET does.

CREATE FUNCTION tally.hll_set_defaults(
  i_log2m integer, i_regwidth integer, i_expthresh bigint, i_sparseon integer,
  OUT o_log2m integer, OUT o_regwidth integer, OUT o_expthresh bigint, OUT o_sparseon integer)
LANGUAGE plpgsql STRICT PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  checked tally.hll := tally.hll_empty(i_log2m, i_regwidth, i_expthresh, i_sparseon);
BEGIN
  o_log2m := current_setting('tally.hll_default_log2m');
  o_regwidth := current_setting('tally.hll_default_regwidth');
  o_expthresh := current_setting('tally.hll_default_expthresh');
  o_sparseon := current_setting('tally.hll_default_sparseon');
  PERFORM set_config('tally.hll_default_log2m', i_log2m::text, false), set_config('tally.hll_default_regwidth', i_regwidth::text, false),
          set_config('tally.hll_default_expthresh', i_expthresh::text, false), set_config('tally.hll_default_sparseon', i_sparseon::text, false);
END
$$;
COMMENT ON FUNCTION tally.hll_set_defaults(integer, integer, bigint, integer) IS
  'sets the four settings tally.hll_default_*, and gives what they were before; as in postgresql-hll';

CREATE FUNCTION tally.hll_set_max_sparse(integer) RETURNS integer
LANGUAGE plpgsql STRICT PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  before integer;
BEGIN
  -- The settings are there once the library is loaded: by this call, if the session has not used it yet.
  PERFORM tally.hll_empty(11, 5, -1, 1);
  before := current_setting('tally.hll_max_sparse');
  IF $1 < -1 THEN
    RAISE EXCEPTION 'sparse threshold must be in range [-1,MAXINT]' USING ERRCODE = '22000', HINT = '-1 leaves it to the size.';
  END IF;
  PERFORM set_config('tally.hll_max_sparse', $1::text, false);
  RETURN before;
END
$$;
COMMENT ON FUNCTION tally.hll_set_max_sparse(integer) IS
  'sets tally.hll_max_sparse, and gives what it was before; as in postgresql-hll';

CREATE FUNCTION tally.hll_set_output_version(integer) RETURNS integer
LANGUAGE plpgsql STRICT PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF $1 <> 1 THEN
    RAISE EXCEPTION 'output version must be 1' USING ERRCODE = '22000', HINT = 'There is no other version of the stored format.';
  END IF;
  RETURN 1;
END
$$;
COMMENT ON FUNCTION tally.hll_set_output_version(integer) IS 'checks that the version of the stored format is 1; as in postgresql-hll';
