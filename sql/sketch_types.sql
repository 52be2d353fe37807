-- The types hll and hll_hashval: input and output, casts, comparison. Functions are named as in postgresql-hll.

CREATE TYPE tally.hll;

CREATE FUNCTION tally.hll_in(cstring, oid, integer) RETURNS tally.hll
AS 'MODULE_PATHNAME', 'tally_hll_in' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_in(cstring, oid, integer) IS 'input of type hll: its bytes as text of type bytea';

CREATE FUNCTION tally.hll_out(tally.hll) RETURNS cstring
AS 'MODULE_PATHNAME', 'tally_hll_out' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_out(tally.hll) IS 'output of type hll: its bytes as text of type bytea';

CREATE FUNCTION tally.hll_recv(internal) RETURNS tally.hll
AS 'MODULE_PATHNAME', 'tally_hll_recv' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_recv(internal) IS 'binary input of type hll';

CREATE FUNCTION tally.hll_send(tally.hll) RETURNS bytea
AS 'MODULE_PATHNAME', 'tally_hll_send' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_send(tally.hll) IS 'binary output of type hll';

CREATE FUNCTION tally.hll_typmod_in(cstring[]) RETURNS integer
AS 'MODULE_PATHNAME', 'tally_hll_typmod_in' LANGUAGE C STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_typmod_in(cstring[]) IS 'reads the type modifier of hll(log2m, regwidth, expthresh, sparseon)';

CREATE FUNCTION tally.hll_typmod_out(integer) RETURNS cstring
AS 'MODULE_PATHNAME', 'tally_hll_typmod_out' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_typmod_out(integer) IS 'writes the type modifier of hll(log2m, regwidth, expthresh, sparseon)';

-- Sketches do not compress: stored in line or out of line, but never compressed.
CREATE TYPE tally.hll (
  INPUT = tally.hll_in,
  OUTPUT = tally.hll_out,
  RECEIVE = tally.hll_recv,
  SEND = tally.hll_send,
  TYPMOD_IN = tally.hll_typmod_in,
  TYPMOD_OUT = tally.hll_typmod_out,
  INTERNALLENGTH = VARIABLE,
  ALIGNMENT = int4,
  STORAGE = external
);
COMMENT ON TYPE tally.hll IS 'sketch of a set: estimates how many different values it has seen, and can be united with others';

CREATE TYPE tally.hll_hashval;

CREATE FUNCTION tally.hll_hashval_in(cstring, oid, integer) RETURNS tally.hll_hashval
AS 'int8in' LANGUAGE internal IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_hashval_in(cstring, oid, integer) IS 'input of type hll_hashval: as bigint';

CREATE FUNCTION tally.hll_hashval_out(tally.hll_hashval) RETURNS cstring
AS 'int8out' LANGUAGE internal IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_hashval_out(tally.hll_hashval) IS 'output of type hll_hashval: as bigint';

CREATE FUNCTION tally.hll_hashval_recv(internal) RETURNS tally.hll_hashval
AS 'int8recv' LANGUAGE internal IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_hashval_recv(internal) IS 'binary input of type hll_hashval: as bigint';

CREATE FUNCTION tally.hll_hashval_send(tally.hll_hashval) RETURNS bytea
AS 'int8send' LANGUAGE internal IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_hashval_send(tally.hll_hashval) IS 'binary output of type hll_hashval: as bigint';

CREATE TYPE tally.hll_hashval (
  INPUT = tally.hll_hashval_in,
  OUTPUT = tally.hll_hashval_out,
  RECEIVE = tally.hll_hashval_recv,
  SEND = tally.hll_hashval_send,
  INTERNALLENGTH = 8,
  PASSEDBYVALUE,
  ALIGNMENT = double,
  STORAGE = plain
);
COMMENT ON TYPE tally.hll_hashval IS 'hash of a value, made by tally.hll_hash and its kin, ready to be added to a sketch';

-- Casts

CREATE FUNCTION tally.hll(tally.hll, integer, boolean) RETURNS tally.hll
AS 'MODULE_PATHNAME', 'tally_hll_coerce' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll(tally.hll, integer, boolean) IS 'checks that a sketch has the parameters that its column demands';
CREATE CAST (tally.hll AS tally.hll) WITH FUNCTION tally.hll(tally.hll, integer, boolean) AS IMPLICIT;
COMMENT ON CAST (tally.hll AS tally.hll) IS 'checks that a sketch has the parameters that its column demands';

CREATE FUNCTION tally.hll(bytea) RETURNS tally.hll
AS 'MODULE_PATHNAME', 'tally_hll_from_bytea' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll(bytea) IS 'sketch from its bytes, which are checked';
CREATE CAST (bytea AS tally.hll) WITH FUNCTION tally.hll(bytea);
COMMENT ON CAST (bytea AS tally.hll) IS 'sketch from its bytes, which are checked';
CREATE CAST (tally.hll AS bytea) WITHOUT FUNCTION;
COMMENT ON CAST (tally.hll AS bytea) IS 'bytes of a sketch';

CREATE FUNCTION tally.hll_hashval(bigint) RETURNS tally.hll_hashval
AS 'MODULE_PATHNAME', 'tally_hll_hashval' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_hashval(bigint) IS 'takes a number as the hash itself';
CREATE CAST (bigint AS tally.hll_hashval) WITH FUNCTION tally.hll_hashval(bigint);
COMMENT ON CAST (bigint AS tally.hll_hashval) IS 'takes a number as the hash itself';

CREATE FUNCTION tally.hll_hashval_int4(integer) RETURNS tally.hll_hashval
AS 'MODULE_PATHNAME', 'tally_hll_hashval_int4' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_hashval_int4(integer) IS 'takes a number, sign-extended, as the hash itself';
CREATE CAST (integer AS tally.hll_hashval) WITH FUNCTION tally.hll_hashval_int4(integer);
COMMENT ON CAST (integer AS tally.hll_hashval) IS 'takes a number, sign-extended, as the hash itself';

-- Comparison of sketches is by bytes: two forms of one set (hashes or registers) differ. GROUP BY, DISTINCT, UNION, EXCEPT
-- and keys need it.

CREATE FUNCTION tally.hll_eq(tally.hll, tally.hll) RETURNS boolean
AS 'MODULE_PATHNAME', 'tally_bytes_eq' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_eq(tally.hll, tally.hll) IS 'implementation of =';
CREATE FUNCTION tally.hll_ne(tally.hll, tally.hll) RETURNS boolean
AS 'MODULE_PATHNAME', 'tally_bytes_ne' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_ne(tally.hll, tally.hll) IS 'implementation of <>';
CREATE FUNCTION tally.hll_lt(tally.hll, tally.hll) RETURNS boolean
AS 'MODULE_PATHNAME', 'tally_bytes_lt' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_lt(tally.hll, tally.hll) IS 'implementation of <';
CREATE FUNCTION tally.hll_le(tally.hll, tally.hll) RETURNS boolean
AS 'MODULE_PATHNAME', 'tally_bytes_le' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_le(tally.hll, tally.hll) IS 'implementation of <=';
CREATE FUNCTION tally.hll_gt(tally.hll, tally.hll) RETURNS boolean
AS 'MODULE_PATHNAME', 'tally_bytes_gt' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_gt(tally.hll, tally.hll) IS 'implementation of >';
CREATE FUNCTION tally.hll_ge(tally.hll, tally.hll) RETURNS boolean
AS 'MODULE_PATHNAME', 'tally_bytes_ge' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_ge(tally.hll, tally.hll) IS 'implementation of >=';
CREATE FUNCTION tally.hll_cmp(tally.hll, tally.hll) RETURNS integer
AS 'MODULE_PATHNAME', 'tally_bytes_cmp' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_cmp(tally.hll, tally.hll) IS 'order of the bytes of two sketches: -1, 0 or 1';
CREATE FUNCTION tally.hll_hash_value(tally.hll) RETURNS integer
AS 'MODULE_PATHNAME', 'tally_bytes_hash' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_hash_value(tally.hll) IS 'hash of the bytes of a sketch, for hash tables';
CREATE FUNCTION tally.hll_hash_value_extended(tally.hll, bigint) RETURNS bigint
AS 'MODULE_PATHNAME', 'tally_bytes_hash_extended' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_hash_value_extended(tally.hll, bigint) IS 'hash of the bytes of a sketch with a seed, for hash partitions';

CREATE OPERATOR tally.= (
  LEFTARG = tally.hll, RIGHTARG = tally.hll, FUNCTION = tally.hll_eq, COMMUTATOR = OPERATOR(tally.=),
  NEGATOR = OPERATOR(tally.<>), RESTRICT = eqsel, JOIN = eqjoinsel, HASHES, MERGES);
COMMENT ON OPERATOR tally.= (tally.hll, tally.hll) IS 'have two sketches the same bytes?';
CREATE OPERATOR tally.<> (
  LEFTARG = tally.hll, RIGHTARG = tally.hll, FUNCTION = tally.hll_ne, COMMUTATOR = OPERATOR(tally.<>),
  NEGATOR = OPERATOR(tally.=), RESTRICT = neqsel, JOIN = neqjoinsel);
COMMENT ON OPERATOR tally.<> (tally.hll, tally.hll) IS 'do two sketches differ in their bytes?';
CREATE OPERATOR tally.< (
  LEFTARG = tally.hll, RIGHTARG = tally.hll, FUNCTION = tally.hll_lt, COMMUTATOR = OPERATOR(tally.>),
  NEGATOR = OPERATOR(tally.>=), RESTRICT = scalarltsel, JOIN = scalarltjoinsel);
COMMENT ON OPERATOR tally.< (tally.hll, tally.hll) IS 'order of bytes: less';
CREATE OPERATOR tally.<= (
  LEFTARG = tally.hll, RIGHTARG = tally.hll, FUNCTION = tally.hll_le, COMMUTATOR = OPERATOR(tally.>=),
  NEGATOR = OPERATOR(tally.>), RESTRICT = scalarlesel, JOIN = scalarlejoinsel);
COMMENT ON OPERATOR tally.<= (tally.hll, tally.hll) IS 'order of bytes: less or equal';
CREATE OPERATOR tally.> (
  LEFTARG = tally.hll, RIGHTARG = tally.hll, FUNCTION = tally.hll_gt, COMMUTATOR = OPERATOR(tally.<),
  NEGATOR = OPERATOR(tally.<=), RESTRICT = scalargtsel, JOIN = scalargtjoinsel);
COMMENT ON OPERATOR tally.> (tally.hll, tally.hll) IS 'order of bytes: greater';
CREATE OPERATOR tally.>= (
  LEFTARG = tally.hll, RIGHTARG = tally.hll, FUNCTION = tally.hll_ge, COMMUTATOR = OPERATOR(tally.<=),
  NEGATOR = OPERATOR(tally.<), RESTRICT = scalargesel, JOIN = scalargejoinsel);
COMMENT ON OPERATOR tally.>= (tally.hll, tally.hll) IS 'order of bytes: greater or equal';

CREATE OPERATOR CLASS tally.hll_ops DEFAULT FOR TYPE tally.hll USING btree AS
  OPERATOR 1 tally.<, OPERATOR 2 tally.<=, OPERATOR 3 tally.=, OPERATOR 4 tally.>=, OPERATOR 5 tally.>,
  FUNCTION 1 tally.hll_cmp(tally.hll, tally.hll);
COMMENT ON OPERATOR CLASS tally.hll_ops USING btree IS 'order of the bytes of sketches';
COMMENT ON OPERATOR FAMILY tally.hll_ops USING btree IS 'order of the bytes of sketches';
CREATE OPERATOR CLASS tally.hll_ops DEFAULT FOR TYPE tally.hll USING hash AS
  OPERATOR 1 tally.=,
  FUNCTION 1 tally.hll_hash_value(tally.hll),
  FUNCTION 2 tally.hll_hash_value_extended(tally.hll, bigint);
COMMENT ON OPERATOR CLASS tally.hll_ops USING hash IS 'equality of the bytes of sketches';
COMMENT ON OPERATOR FAMILY tally.hll_ops USING hash IS 'equality of the bytes of sketches';

CREATE FUNCTION tally.hll_hashval_eq(tally.hll_hashval, tally.hll_hashval) RETURNS boolean
AS 'int8eq' LANGUAGE internal IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_hashval_eq(tally.hll_hashval, tally.hll_hashval) IS 'implementation of =';
CREATE FUNCTION tally.hll_hashval_ne(tally.hll_hashval, tally.hll_hashval) RETURNS boolean
AS 'int8ne' LANGUAGE internal IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.hll_hashval_ne(tally.hll_hashval, tally.hll_hashval) IS 'implementation of <>';
CREATE OPERATOR tally.= (
  LEFTARG = tally.hll_hashval, RIGHTARG = tally.hll_hashval, FUNCTION = tally.hll_hashval_eq,
  COMMUTATOR = OPERATOR(tally.=), NEGATOR = OPERATOR(tally.<>), RESTRICT = eqsel, JOIN = eqjoinsel);
COMMENT ON OPERATOR tally.= (tally.hll_hashval, tally.hll_hashval) IS 'are two hashes equal?';
CREATE OPERATOR tally.<> (
  LEFTARG = tally.hll_hashval, RIGHTARG = tally.hll_hashval, FUNCTION = tally.hll_hashval_ne,
  COMMUTATOR = OPERATOR(tally.<>), NEGATOR = OPERATOR(tally.=), RESTRICT = neqsel, JOIN = neqjoinsel);
COMMENT ON OPERATOR tally.<> (tally.hll_hashval, tally.hll_hashval) IS 'do two hashes differ?';
