-- States of aggregates that have none of a type of their own: what rollups keep of them.

CREATE TYPE tally.aggregate_state;

CREATE FUNCTION tally.aggregate_state_in(cstring) RETURNS tally.aggregate_state
AS 'MODULE_PATHNAME', 'tally_aggregate_state_in' LANGUAGE C STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.aggregate_state_in(cstring) IS 'input of type aggregate_state: its bytes as text of type bytea; for superusers only';

CREATE FUNCTION tally.aggregate_state_out(tally.aggregate_state) RETURNS cstring
AS 'MODULE_PATHNAME', 'tally_aggregate_state_out' LANGUAGE C STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.aggregate_state_out(tally.aggregate_state) IS 'output of type aggregate_state: its bytes as text of type bytea';

CREATE FUNCTION tally.aggregate_state_recv(internal) RETURNS tally.aggregate_state
AS 'MODULE_PATHNAME', 'tally_aggregate_state_recv' LANGUAGE C STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.aggregate_state_recv(internal) IS 'binary input of type aggregate_state; for superusers only';

CREATE FUNCTION tally.aggregate_state_send(tally.aggregate_state) RETURNS bytea
AS 'MODULE_PATHNAME', 'tally_aggregate_state_send' LANGUAGE C STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally.aggregate_state_send(tally.aggregate_state) IS 'binary output of type aggregate_state';

CREATE TYPE tally.aggregate_state (
  INPUT = tally.aggregate_state_in,
  OUTPUT = tally.aggregate_state_out,
  RECEIVE = tally.aggregate_state_recv,
  SEND = tally.aggregate_state_send,
  INTERNALLENGTH = VARIABLE,
  ALIGNMENT = int4,
  STORAGE = extended
);
COMMENT ON TYPE tally.aggregate_state IS
  'state of an aggregate that writes it as bytes for parallel processes, kept by rollups; only that aggregate can read it';

-- An aggregate that a rollup has made calls them with the rights of its owner. SQL has no values of type internal to call them with.

CREATE FUNCTION tally._pack_state(internal) RETURNS tally.aggregate_state
AS 'MODULE_PATHNAME', 'tally_pack_state' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION tally._pack_state(internal) IS 'state of the aggregate that it is the final function of, to be kept';

CREATE FUNCTION tally._unite_states(internal, tally.aggregate_state) RETURNS internal
AS 'MODULE_PATHNAME', 'tally_unite_states' LANGUAGE C IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION tally._unite_states(internal, tally.aggregate_state) IS
  'unites a kept state with that of the aggregate that it is the transition function of';
