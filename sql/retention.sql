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
    state        text NOT NULL CHECK (state OPERATOR(pg_catalog.=) ANY (ARRAY['fenced', 'counted', 'verified', 'detaching', 'trash', 'returning', 'kept', 'mismatch']::pg_catalog.text[])),
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
  'fenced: takes no changes; counted: every rollup keeps its groups apart; verified: they equal its rows; detaching: DETACH CONCURRENTLY has been asked for; trash: detached, waits for the end of its grace; returning: attached, takes no changes yet; kept: attached again, and spared until tally.resume_partitions; mismatch: a rollup differs from its rows';
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
              -- A snapshot from before it was fenced does not see the record.
              HINT = pg_catalog.format('To keep it: SELECT tally.undo_retention(%L, %L);', (
                      SELECT coalesce((SELECT r.parent FROM tally.retirements r WHERE r.partition OPERATOR(pg_catalog.=) TG_RELID),
                                      (SELECT i.inhparent::regclass FROM pg_catalog.pg_inherits i WHERE i.inhrelid OPERATOR(pg_catalog.=) TG_RELID))
                      ), TG_RELID::regclass);
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

-- No security barrier: the function itself leaves out what the caller may not see. So a reader pays only for the columns that he asks for.
CREATE VIEW tally.partition_status AS
SELECT i.parent, i.verdict, i.reason, i.next_sql, i.time_zone, i.width,
       (SELECT p.retention FROM tally.partition_policies p WHERE p.parent OPERATOR(pg_catalog.=) i.parent) AS retention,
       i.partitions, i.accepts_from, i.horizon, i.ahead,
       (SELECT pg_catalog.sum(pg_catalog.pg_total_relation_size(h.inhrelid))::pg_catalog.int8
        FROM pg_catalog.pg_inherits h WHERE h.inhparent OPERATOR(pg_catalog.=) i.parent::pg_catalog.oid) AS total_bytes,
       i.pending_partition, i.pending_since, i.blockers,
       (SELECT pg_catalog.count(*) FROM tally.retirements t
        WHERE t.parent OPERATOR(pg_catalog.=) i.parent AND t.state OPERATOR(pg_catalog.=) 'trash') AS trash_tables,
       (SELECT pg_catalog.sum(pg_catalog.pg_total_relation_size(c.oid::pg_catalog.regclass))::pg_catalog.int8
        FROM tally.retirements t JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) t.partition
        WHERE t.parent OPERATOR(pg_catalog.=) i.parent AND t.state OPERATOR(pg_catalog.=) 'trash') AS trash_bytes,
       (SELECT pg_catalog.min(t.drop_after) FROM tally.retirements t
        WHERE t.parent OPERATOR(pg_catalog.=) i.parent AND t.state OPERATOR(pg_catalog.=) 'trash') AS next_drop_at,
       l.max_lock_ms,
       (SELECT j.last_run_at FROM tally.status j
        WHERE j.object OPERATOR(pg_catalog.=) i.parent::pg_catalog.oid AND j.kind OPERATOR(pg_catalog.=) 'premake') AS last_run,
       (SELECT j.last_sqlstate FROM tally.status j
        WHERE j.object OPERATOR(pg_catalog.=) i.parent::pg_catalog.oid AND j.kind OPERATOR(pg_catalog.=) 'premake') AS last_error_code
FROM tally.inspect_partitions() i
LEFT JOIN (
    SELECT b.object, pg_catalog.ceil(pg_catalog.extract('epoch', pg_catalog.max(r.longest_lock)) OPERATOR(pg_catalog.*) 1000)::pg_catalog.int8 AS max_lock_ms
    FROM tally.runs r JOIN tally.jobs b ON b.job_id OPERATOR(pg_catalog.=) r.job_id
    WHERE b.kind OPERATOR(pg_catalog.<>) 'refresh' AND r.started_at OPERATOR(pg_catalog.>) (pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) interval '24 hours')
    GROUP BY b.object
) l ON l.object OPERATOR(pg_catalog.=) i.parent::pg_catalog.oid
UNION ALL
-- Tables that are about to become sets.
SELECT COALESCE(c.parent, c.table_name), CASE WHEN pg_catalog.starts_with(c.note, 'P11') THEN 'warning' ELSE COALESCE(j.verdict, 'warning') END,
       pg_catalog.format('conversion, %s: %s', c.state, COALESCE(j.last_message, c.note, j.reason)),
       CASE WHEN j.last_sqlstate OPERATOR(pg_catalog.=) '23514'
            THEN pg_catalog.format('SELECT * FROM %s WHERE %I IS NULL OR %I >= %L; -- rows that are in the way',
                                   c.table_name, c.time_column, c.time_column, c.boundary::pg_catalog.text OPERATOR(pg_catalog.||) '+00')
            WHEN pg_catalog.starts_with(c.note, 'P11') THEN 'ALTER SYSTEM SET tally.lock_allowance = ''10s''; SELECT pg_reload_conf();'
            ELSE j.next_sql END,
       c.time_zone, c.partition_width, c.retention, 0, NULL, NULL, NULL, pg_catalog.pg_total_relation_size(c.table_name), NULL, NULL,
       CASE WHEN pg_catalog.starts_with(c.note, 'waits for ') THEN pg_catalog.substr(c.note, 11) END, 0, NULL, NULL, NULL, j.last_run_at, j.last_sqlstate
FROM tally.conversions c
JOIN pg_catalog.pg_class t ON t.oid OPERATOR(pg_catalog.=) c.table_name
LEFT JOIN tally.status j ON j.object OPERATOR(pg_catalog.=) c.table_name::pg_catalog.oid AND j.kind OPERATOR(pg_catalog.=) 'conversion'
WHERE pg_catalog.pg_has_role(t.relowner, 'MEMBER') OR pg_catalog.pg_has_role('pg_monitor', 'USAGE')
   OR pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE') OR pg_catalog.has_table_privilege(t.oid, 'SELECT, INSERT');
COMMENT ON VIEW tally.partition_status IS 'one row per partition set, and per table that is being converted to one: is it healthy, and if not, what is to be done';
COMMENT ON COLUMN tally.partition_status.parent IS 'the partitioned table';
COMMENT ON COLUMN tally.partition_status.verdict IS 'ok, warning, or critical (rows fail now or soon)';
COMMENT ON COLUMN tally.partition_status.reason IS 'a stable code and a sentence about the worst trouble; null if there is none';
COMMENT ON COLUMN tally.partition_status.next_sql IS 'the statement that helps';
COMMENT ON COLUMN tally.partition_status.time_zone IS 'the zone whose calendar the bounds follow';
COMMENT ON COLUMN tally.partition_status.width IS 'how long a new partition lasts';
COMMENT ON COLUMN tally.partition_status.retention IS 'partitions older than this are removed; null: none are';
COMMENT ON COLUMN tally.partition_status.pending_since IS 'since when retention has been waiting in that DETACH CONCURRENTLY';
COMMENT ON COLUMN tally.partition_status.blockers IS 'who retention or a conversion waits for';
COMMENT ON COLUMN tally.partition_status.trash_tables IS 'removed partitions that can still be brought back';
COMMENT ON COLUMN tally.partition_status.trash_bytes IS 'size of them with indexes and TOAST';
COMMENT ON COLUMN tally.partition_status.next_drop_at IS 'when the next of them is dropped';
COMMENT ON COLUMN tally.partition_status.partitions IS 'how many partitions there are';
COMMENT ON COLUMN tally.partition_status.accepts_from IS 'rows from here to the horizon find a partition';
COMMENT ON COLUMN tally.partition_status.horizon IS 'end of the last partition that is reached without a gap';
COMMENT ON COLUMN tally.partition_status.ahead IS 'from now to the horizon';
COMMENT ON COLUMN tally.partition_status.total_bytes IS 'size of all partitions with indexes and TOAST';
COMMENT ON COLUMN tally.partition_status.pending_partition IS 'a partition whose DETACH CONCURRENTLY was interrupted';
COMMENT ON COLUMN tally.partition_status.max_lock_ms IS 'the longest lock of its jobs in 24 hours that stopped writers of a table which was there before, with the time in its queue; null if there was none';
COMMENT ON COLUMN tally.partition_status.last_run IS 'start of the last recorded run of the premake job; more about it is in tally.status';
COMMENT ON COLUMN tally.partition_status.last_error_code IS 'SQLSTATE of that run if it failed';
REVOKE ALL ON tally.partition_status FROM PUBLIC;
GRANT SELECT ON tally.partition_status TO PUBLIC;
