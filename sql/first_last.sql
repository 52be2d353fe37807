-- The value of the earliest and of the latest row. The state has type internal, so no support function can be strict, and a
-- final function must leave the state as it is.

-- Support functions

CREATE FUNCTION tally._first_transition(internal, anyelement, anycompatible) RETURNS internal
  LANGUAGE C IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'tally_first_transition';
COMMENT ON FUNCTION tally._first_transition(internal, anyelement, anycompatible) IS
  'keeps a row in the state of tally.first if it is earlier';
REVOKE ALL ON FUNCTION tally._first_transition(internal, anyelement, anycompatible) FROM PUBLIC;
CREATE FUNCTION tally._last_transition(internal, anyelement, anycompatible) RETURNS internal
  LANGUAGE C IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'tally_last_transition';
COMMENT ON FUNCTION tally._last_transition(internal, anyelement, anycompatible) IS
  'keeps a row in the state of tally.last if it is later';
REVOKE ALL ON FUNCTION tally._last_transition(internal, anyelement, anycompatible) FROM PUBLIC;
CREATE FUNCTION tally._first_combine(internal, internal) RETURNS internal
  LANGUAGE C IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'tally_first_combine';
COMMENT ON FUNCTION tally._first_combine(internal, internal) IS 'the earlier one of two states of tally.first';
REVOKE ALL ON FUNCTION tally._first_combine(internal, internal) FROM PUBLIC;
CREATE FUNCTION tally._last_combine(internal, internal) RETURNS internal
  LANGUAGE C IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'tally_last_combine';
COMMENT ON FUNCTION tally._last_combine(internal, internal) IS 'the later one of two states of tally.last';
REVOKE ALL ON FUNCTION tally._last_combine(internal, internal) FROM PUBLIC;
CREATE FUNCTION tally._end_serialize(internal) RETURNS bytea
  LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'tally_end_serialize';
COMMENT ON FUNCTION tally._end_serialize(internal) IS 'state of tally.first or tally.last as bytes, for another process';
REVOKE ALL ON FUNCTION tally._end_serialize(internal) FROM PUBLIC;
CREATE FUNCTION tally._end_deserialize(bytea, internal) RETURNS internal
  LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'tally_end_deserialize';
COMMENT ON FUNCTION tally._end_deserialize(bytea, internal) IS
  'state of tally.first or tally.last from the bytes of another process';
REVOKE ALL ON FUNCTION tally._end_deserialize(bytea, internal) FROM PUBLIC;
CREATE FUNCTION tally._end_value(internal, anyelement, anycompatible) RETURNS anyelement
  LANGUAGE C IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'tally_end_value';
COMMENT ON FUNCTION tally._end_value(internal, anyelement, anycompatible) IS 'value in the state of tally.first or tally.last';
REVOKE ALL ON FUNCTION tally._end_value(internal, anyelement, anycompatible) FROM PUBLIC;
CREATE FUNCTION tally._end_at(internal, anyelement, anycompatible) RETURNS anycompatible
  LANGUAGE C IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'tally_end_at';
COMMENT ON FUNCTION tally._end_at(internal, anyelement, anycompatible) IS 'time in the state of tally.first or tally.last';
REVOKE ALL ON FUNCTION tally._end_at(internal, anyelement, anycompatible) FROM PUBLIC;

-- Aggregates. SSPACE is the state with the head of a value that is passed by reference.

CREATE AGGREGATE tally.first(value anyelement, at anycompatible) (
  SFUNC = tally._first_transition, STYPE = internal, SSPACE = 96, FINALFUNC = tally._end_value, FINALFUNC_EXTRA,
  FINALFUNC_MODIFY = READ_ONLY, COMBINEFUNC = tally._first_combine, SERIALFUNC = tally._end_serialize,
  DESERIALFUNC = tally._end_deserialize, PARALLEL = SAFE);
COMMENT ON AGGREGATE tally.first(anyelement, anycompatible) IS
  'value of the row with the least at; of several such rows the least value that is not NULL. Rows whose at is NULL do not count';
CREATE AGGREGATE tally.last(value anyelement, at anycompatible) (
  SFUNC = tally._last_transition, STYPE = internal, SSPACE = 96, FINALFUNC = tally._end_value, FINALFUNC_EXTRA,
  FINALFUNC_MODIFY = READ_ONLY, COMBINEFUNC = tally._last_combine, SERIALFUNC = tally._end_serialize,
  DESERIALFUNC = tally._end_deserialize, PARALLEL = SAFE);
COMMENT ON AGGREGATE tally.last(anyelement, anycompatible) IS
  'value of the row with the greatest at; of several such rows the greatest value. Rows whose at is NULL do not count';

-- What rollups keep beside such a value: the time it belongs to, by the same collation. One state serves both.

CREATE AGGREGATE tally._first_at(value anyelement, at anycompatible) (
  SFUNC = tally._first_transition, STYPE = internal, SSPACE = 96, FINALFUNC = tally._end_at, FINALFUNC_EXTRA,
  FINALFUNC_MODIFY = READ_ONLY, COMBINEFUNC = tally._first_combine, SERIALFUNC = tally._end_serialize,
  DESERIALFUNC = tally._end_deserialize, PARALLEL = SAFE);
COMMENT ON AGGREGATE tally._first_at(anyelement, anycompatible) IS 'time that the value of tally.first belongs to';
CREATE AGGREGATE tally._last_at(value anyelement, at anycompatible) (
  SFUNC = tally._last_transition, STYPE = internal, SSPACE = 96, FINALFUNC = tally._end_at, FINALFUNC_EXTRA,
  FINALFUNC_MODIFY = READ_ONLY, COMBINEFUNC = tally._last_combine, SERIALFUNC = tally._end_serialize,
  DESERIALFUNC = tally._end_deserialize, PARALLEL = SAFE);
COMMENT ON AGGREGATE tally._last_at(anyelement, anycompatible) IS 'time that the value of tally.last belongs to';

-- How a rollup merges two of its values. Readers call them, so they stay open to PUBLIC.

CREATE FUNCTION tally._earlier(value anyelement, at anycompatible, other_value anyelement, other_at anycompatible)
  RETURNS anyelement LANGUAGE C IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'tally_earlier';
COMMENT ON FUNCTION tally._earlier(anyelement, anycompatible, anyelement, anycompatible) IS
  'value of the earlier one of two partial results of tally.first';
CREATE FUNCTION tally._later(value anyelement, at anycompatible, other_value anyelement, other_at anycompatible)
  RETURNS anyelement LANGUAGE C IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'tally_later';
COMMENT ON FUNCTION tally._later(anyelement, anycompatible, anyelement, anycompatible) IS
  'value of the later one of two partial results of tally.last';
