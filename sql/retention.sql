-- Retention: partitions that are on their way out, the trash where they wait for the end of their grace, and how to get one back.

CREATE SCHEMA tally_trash;
COMMENT ON SCHEMA tally_trash IS 'partitions that retention has detached; each is dropped when its grace is over, until then tally.undo_retention brings it back';
GRANT USAGE ON SCHEMA tally_trash TO PUBLIC;

CREATE TABLE tally.retirements (
    retirement   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    parent       regclass NOT NULL,
    partition    regclass NOT NULL UNIQUE,
    schema_name  name NOT NULL,
    table_name   name NOT NULL,
    lower_bound  timestamp NOT NULL,
    upper_bound  timestamp NOT NULL,
    state        text NOT NULL CHECK (state OPERATOR(pg_catalog.=) ANY (ARRAY['fenced', 'counted', 'verified', 'detaching', 'trash', 'returning', 'kept', 'mismatch']::text[])),
    fenced_at    timestamptz NOT NULL,
    changed_at   timestamptz NOT NULL,
    changed_by   xid8 NOT NULL,
    departure    bigint,
    rollups      regclass[],
    counted_rows bigint,
    next_tag     bigint,
    open_tags    bigint[],
    drop_after   timestamptz,
    note         text
);
COMMENT ON TABLE tally.retirements IS 'partitions on their way out: one row from the moment that changes are refused until the table is dropped or has come back';
COMMENT ON COLUMN tally.retirements.retirement IS 'number, in the order in which they were begun';
COMMENT ON COLUMN tally.retirements.parent IS 'the partitioned table';
COMMENT ON COLUMN tally.retirements.partition IS 'the partition, wherever it is by now';
COMMENT ON COLUMN tally.retirements.schema_name IS 'schema that it is taken back to';
COMMENT ON COLUMN tally.retirements.table_name IS 'name that it is given back';
COMMENT ON COLUMN tally.retirements.lower_bound IS 'where it begins: in UTC if the time has a zone, -infinity for MINVALUE';
COMMENT ON COLUMN tally.retirements.upper_bound IS 'where it ends';
COMMENT ON COLUMN tally.retirements.state IS
  'fenced: takes no changes; counted: every rollup keeps its groups apart; verified: they equal its rows; detaching: DETACH CONCURRENTLY has been asked for; trash: detached, waits for the end of its grace; returning: attached again; kept: attached again, and spared until tally.resume_partitions; mismatch: a rollup differs from its rows';
COMMENT ON COLUMN tally.retirements.fenced_at IS 'when it was fenced';
COMMENT ON COLUMN tally.retirements.changed_at IS 'since when it is in this state';
COMMENT ON COLUMN tally.retirements.changed_by IS 'the transaction that has brought it there: older snapshots do not know';
COMMENT ON COLUMN tally.retirements.departure IS 'number of its retained groups in tally.departures; null if the table feeds no rollup';
COMMENT ON COLUMN tally.retirements.rollups IS 'rollups that keep its groups';
COMMENT ON COLUMN tally.retirements.counted_rows IS 'rows that it had when it was counted';
COMMENT ON COLUMN tally.retirements.next_tag IS 'what was counted by then, as in tally.sources';
COMMENT ON COLUMN tally.retirements.open_tags IS 'the same';
COMMENT ON COLUMN tally.retirements.drop_after IS 'when the table in the trash is dropped';
COMMENT ON COLUMN tally.retirements.note IS 'what is in the way';
SELECT pg_catalog.pg_extension_config_dump('tally.retirements', '');
SELECT pg_catalog.pg_extension_config_dump('tally.retirements_retirement_seq', '');
-- Names, times and numbers only. Readable by all, because one unreadable table would make a plain role's pg_dump fail.
REVOKE ALL ON tally.retirements FROM PUBLIC;
GRANT SELECT ON tally.retirements TO PUBLIC;
REVOKE ALL ON SEQUENCE tally.retirements_retirement_seq FROM PUBLIC;
GRANT SELECT ON SEQUENCE tally.retirements_retirement_seq TO PUBLIC;

CREATE FUNCTION tally._refuse_change() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION 'partition %.% is being removed by retention and takes no more changes', pg_catalog.quote_ident(TG_TABLE_SCHEMA), pg_catalog.quote_ident(TG_TABLE_NAME)
        USING ERRCODE = 'TL002',
              DETAIL = 'Its rows are older than the retention of the table.',
              HINT = (SELECT pg_catalog.format('To keep it: SELECT tally.undo_retention(%L, %L);', r.parent, r.partition)
                      FROM tally.retirements r WHERE r.partition OPERATOR(pg_catalog.=) TG_RELID);
END
$$;
COMMENT ON FUNCTION tally._refuse_change() IS 'trigger of a partition that is being removed by retention';

CREATE FUNCTION tally.undo_retention(parent regclass, partition regclass) RETURNS void
LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tally_undo_retention_wrapper';
COMMENT ON FUNCTION tally.undo_retention(regclass, regclass) IS 'brings a partition back that retention is removing or has moved to the trash; it is spared until tally.resume_partitions';

CREATE FUNCTION tally.pause_partitions(parent regclass) RETURNS void
LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tally_pause_partitions_wrapper';
COMMENT ON FUNCTION tally.pause_partitions(regclass) IS 'stops premake and retention of a partition set until tally.resume_partitions';

CREATE FUNCTION tally.resume_partitions(parent regclass) RETURNS void
LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tally_resume_partitions_wrapper';
COMMENT ON FUNCTION tally.resume_partitions(regclass) IS 'lets premake and retention of a partition set go on, also with partitions that were brought back or did not equal a rollup';

CREATE FUNCTION tally.plan_retention(parent regclass)
RETURNS TABLE (step bigint, action text, object text, sql text, lock_mode text, locked_tables text[], est_rows bigint,
               est_bytes bigint, top_level_only boolean, note text)
LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tally_plan_retention_wrapper';
COMMENT ON FUNCTION tally.plan_retention(regclass) IS 'what the retention job would do with the partitions that are due now, in order, with the locks it takes; changes nothing';
