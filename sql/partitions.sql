-- Partition sets: what the owner of a partitioned table asked for, and the functions that make its partitions.

CREATE TABLE tally.partition_policies (
    parent          regclass PRIMARY KEY,
    partition_width interval NOT NULL,
    time_zone       text NOT NULL,
    premake         interval,
    lateness        interval NOT NULL,
    far_future      interval NOT NULL,
    retention       interval,
    grace           interval NOT NULL,
    detach_deadline interval NOT NULL
);
COMMENT ON TABLE tally.partition_policies IS 'the partitioned tables whose partitions tally makes ahead of the clock and removes when they are old; written by tally.partition_by_time and its sisters';
COMMENT ON COLUMN tally.partition_policies.parent IS 'the partitioned table';
COMMENT ON COLUMN tally.partition_policies.partition_width IS 'how long a new partition lasts';
COMMENT ON COLUMN tally.partition_policies.time_zone IS 'name of the time zone whose calendar the bounds follow';
COMMENT ON COLUMN tally.partition_policies.premake IS 'how far ahead of the clock partitions reach at least; null: as far as tally.premake_outage and two widths ask for';
COMMENT ON COLUMN tally.partition_policies.lateness IS 'a row this old always finds a partition';
COMMENT ON COLUMN tally.partition_policies.far_future IS 'rows later than the clock by more than this make no partitions';
COMMENT ON COLUMN tally.partition_policies.retention IS 'partitions older than this are removed; null: none are';
COMMENT ON COLUMN tally.partition_policies.grace IS 'how long a removed partition can be brought back, before its table is dropped';
COMMENT ON COLUMN tally.partition_policies.detach_deadline IS 'how long a partition waits for older snapshots to end before it is detached all the same';
SELECT pg_catalog.pg_extension_config_dump('tally.partition_policies', '');
-- Names and intervals only. Readable by all, because one unreadable table would make a plain role's pg_dump fail.
REVOKE ALL ON tally.partition_policies FROM PUBLIC;
GRANT SELECT ON tally.partition_policies TO PUBLIC;

-- Until when there is nothing to do for a set, so that a pass need not look at its partitions. Whoever alters a table of a set inserts a row below
-- and changes none, so that nobody waits for anybody: a look does not hold any more when somebody has done so whom its snapshot does not see.
CREATE TABLE tally.idle_sets (
    parent         regclass NOT NULL,
    kind           text NOT NULL CHECK (kind OPERATOR(pg_catalog.=) ANY ('{premake,retention}'::pg_catalog.text[])),
    looked_at      timestamptz NOT NULL,
    idle_until     timestamptz NOT NULL,
    seen           pg_snapshot NOT NULL,
    watched        oid[] NOT NULL,
    premake_outage bigint NOT NULL,
    premake_max    bigint NOT NULL,
    PRIMARY KEY (parent, kind)
) WITH (fillfactor = 50);
COMMENT ON TABLE tally.idle_sets IS 'partition sets for which premake or retention has found nothing to do: until then a pass reads nothing of the set';
COMMENT ON COLUMN tally.idle_sets.parent IS 'the partitioned table';
COMMENT ON COLUMN tally.idle_sets.kind IS 'premake or retention';
COMMENT ON COLUMN tally.idle_sets.looked_at IS 'when all of its partitions were looked at';
COMMENT ON COLUMN tally.idle_sets.idle_until IS 'there is nothing to do before; a pass relies on that for half an hour';
COMMENT ON COLUMN tally.idle_sets.seen IS 'snapshot of the look: who has altered the set and is not seen by it ends this';
COMMENT ON COLUMN tally.idle_sets.watched IS 'partitions ahead of the clock, without rows, whose first row ends this';
COMMENT ON COLUMN tally.idle_sets.premake_outage IS 'tally.premake_outage as it was, in microseconds';
COMMENT ON COLUMN tally.idle_sets.premake_max IS 'tally.premake_max as it was';
REVOKE ALL ON tally.idle_sets FROM PUBLIC;

CREATE TABLE tally.altered_sets (
    parent     regclass NOT NULL,
    altered_by xid8 NOT NULL,
    PRIMARY KEY (parent, altered_by)
);
COMMENT ON TABLE tally.altered_sets IS 'who has altered a table of a partition set, or its policy, since the looks of tally.idle_sets';
COMMENT ON COLUMN tally.altered_sets.parent IS 'the partitioned table';
COMMENT ON COLUMN tally.altered_sets.altered_by IS 'the transaction that has altered it';
REVOKE ALL ON tally.altered_sets FROM PUBLIC;

-- Is this the database in which the sets were registered, or a copy of it? OIDs alone cannot tell: two clusters that one script has set up have
-- the same. Two rows, written under different transaction ids (the second in a subtransaction), come back from a dump under one.
CREATE TABLE tally.adoptions (
    position          smallint PRIMARY KEY,
    system_identifier bigint NOT NULL,
    database          oid NOT NULL,
    own_table         oid NOT NULL,
    written_by        xid NOT NULL
);
COMMENT ON TABLE tally.adoptions IS 'the database in which partition sets were registered or adopted: in a copy of it retention waits for tally.adopt()';
COMMENT ON COLUMN tally.adoptions.position IS '1, or 2: written in a subtransaction';
COMMENT ON COLUMN tally.adoptions.system_identifier IS 'of the cluster';
COMMENT ON COLUMN tally.adoptions.database IS 'OID of the database';
COMMENT ON COLUMN tally.adoptions.own_table IS 'OID of this table';
COMMENT ON COLUMN tally.adoptions.written_by IS 'transaction that wrote the rows: the xmin of the first';
SELECT pg_catalog.pg_extension_config_dump('tally.adoptions', '');
REVOKE ALL ON tally.adoptions FROM PUBLIC;
GRANT SELECT ON tally.adoptions TO PUBLIC;

CREATE FUNCTION tally._write_adoption(system_identifier bigint) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    own_database oid := (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database());
    own_table    oid := 'tally.adoptions'::pg_catalog.regclass;
BEGIN
    DELETE FROM tally.adoptions;
    INSERT INTO tally.adoptions VALUES (1, _write_adoption.system_identifier, own_database, own_table, '0');
    -- Under the same id once more, which may be that of a savepoint.
    UPDATE tally.adoptions a SET written_by = a.xmin;
    BEGIN
        INSERT INTO tally.adoptions SELECT 2, a.system_identifier, a.database, a.own_table, a.written_by FROM tally.adoptions a;
    EXCEPTION WHEN division_by_zero THEN
        NULL;  -- Only the subtransaction is wanted.
    END;
END
$$;
COMMENT ON FUNCTION tally._write_adoption(bigint) IS 'part of tally.adopt and of the first registration: notes that this database is the original';
REVOKE ALL ON FUNCTION tally._write_adoption(bigint) FROM PUBLIC;

CREATE FUNCTION tally.adopt() RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tally_adopt_wrapper';
COMMENT ON FUNCTION tally.adopt() IS 'says that this database, restored or copied from another one, is to live on by itself: retention may remove partitions here';

CREATE FUNCTION tally.partition_by_time(
    parent          regclass,
    partition_width interval DEFAULT NULL,
    retention       interval DEFAULT NULL,
    time_zone       text     DEFAULT 'UTC',
    premake         interval DEFAULT NULL,
    lateness        interval DEFAULT '2 days',
    far_future      interval DEFAULT '2 days',
    grace           interval DEFAULT '7 days',
    detach_deadline interval DEFAULT '6 hours'
) RETURNS bigint
LANGUAGE C VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tally_partition_by_time_wrapper';
COMMENT ON FUNCTION tally.partition_by_time(regclass, interval, interval, text, interval, interval, interval, interval, interval) IS 'registers a table that is partitioned by range of time, makes its first partitions, keeps making them ahead of the clock, and removes those older than retention; returns how many it made. Of a set of pg_partman, what is left out comes from its configuration';

CREATE FUNCTION tally.plan_partition_by_time(
    parent          regclass,
    partition_width interval DEFAULT NULL,
    retention       interval DEFAULT NULL,
    time_zone       text     DEFAULT 'UTC',
    premake         interval DEFAULT NULL,
    lateness        interval DEFAULT '2 days',
    far_future      interval DEFAULT '2 days',
    grace           interval DEFAULT '7 days',
    detach_deadline interval DEFAULT '6 hours'
) RETURNS TABLE (step bigint, action text, object text, sql text, lock_mode text, locked_tables text[], est_rows bigint,
                 est_bytes bigint, top_level_only boolean, note text)
LANGUAGE C VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tally_plan_partition_by_time_wrapper';
COMMENT ON FUNCTION tally.plan_partition_by_time(regclass, interval, interval, text, interval, interval, interval, interval, interval) IS 'the statements of tally.partition_by_time with these arguments, in order, with the locks they take, or what is in the way; reads the rows of a DEFAULT partition, changes nothing';

CREATE FUNCTION tally.ensure_partitions(parent regclass, from_time timestamptz, to_time timestamptz) RETURNS bigint
LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tally_ensure_partitions_wrapper';
COMMENT ON FUNCTION tally.ensure_partitions(regclass, timestamptz, timestamptz) IS 'makes the missing partitions for rows of this time, before a backfill or a replay; returns how many it made';

CREATE FUNCTION tally.plan_ensure_partitions(parent regclass, from_time timestamptz, to_time timestamptz)
RETURNS TABLE (step bigint, action text, object text, sql text, lock_mode text, locked_tables text[], est_rows bigint,
               est_bytes bigint, top_level_only boolean, note text)
LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tally_plan_ensure_partitions_wrapper';
COMMENT ON FUNCTION tally.plan_ensure_partitions(regclass, timestamptz, timestamptz) IS 'the statements of tally.ensure_partitions with these arguments, in order, with the locks they take; changes nothing';

CREATE FUNCTION tally.set_partition_policy(
    parent          regclass,
    premake         interval DEFAULT NULL,
    lateness        interval DEFAULT NULL,
    far_future      interval DEFAULT NULL,
    retention       interval DEFAULT NULL,
    grace           interval DEFAULT NULL,
    detach_deadline interval DEFAULT NULL
) RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tally_set_partition_policy_wrapper';
COMMENT ON FUNCTION tally.set_partition_policy(regclass, interval, interval, interval, interval, interval, interval) IS 'changes the policy of a partition set; what is null stays, premake => ''0'' means automatic, and retention => ''0'' keeps everything';

CREATE FUNCTION tally.set_partition_width(parent regclass, partition_width interval) RETURNS void
LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tally_set_partition_width_wrapper';
COMMENT ON FUNCTION tally.set_partition_width(regclass, interval) IS 'changes how long the partitions that are not made yet will last';

CREATE FUNCTION tally.unregister_partitions(parent regclass) RETURNS void
LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tally_unregister_partitions_wrapper';
COMMENT ON FUNCTION tally.unregister_partitions(regclass) IS 'forgets the policy of a partition set; table, partitions and rows stay';

CREATE FUNCTION tally.plan_premake(parent regclass)
RETURNS TABLE (step bigint, action text, object text, sql text, lock_mode text, locked_tables text[], est_rows bigint,
               est_bytes bigint, top_level_only boolean, note text)
LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tally_plan_premake_wrapper';
COMMENT ON FUNCTION tally.plan_premake(regclass) IS 'the statements that the premake job would run now, in order, with the locks they take; changes nothing';

-- State: not dumped, and readable through the view `partition_status`.
CREATE TABLE tally.lock_waits (
    table_name regclass PRIMARY KEY,
    since      timestamptz NOT NULL,
    awaited    interval NOT NULL,
    is_refused boolean NOT NULL
) WITH (fillfactor = 50);
COMMENT ON TABLE tally.lock_waits IS 'how long jobs have stood in the queue for locks on tables that others use; tally.lock_allowance limits it';
COMMENT ON COLUMN tally.lock_waits.table_name IS 'the table, such as one that a foreign key of a partition set refers to';
COMMENT ON COLUMN tally.lock_waits.since IS 'beginning of the hour that counts: the first wait';
COMMENT ON COLUMN tally.lock_waits.awaited IS 'how long all jobs together have waited in this hour';
COMMENT ON COLUMN tally.lock_waits.is_refused IS 'work was put off in this hour because the allowance was used up';
REVOKE ALL ON tally.lock_waits FROM PUBLIC;

CREATE TABLE tally.partition_upkeep (
    parent            regclass PRIMARY KEY,
    summarised_before timestamp NOT NULL
);
COMMENT ON TABLE tally.partition_upkeep IS 'what premake jobs have done for partition sets besides making partitions';
COMMENT ON COLUMN tally.partition_upkeep.parent IS 'the partitioned table';
COMMENT ON COLUMN tally.partition_upkeep.summarised_before IS 'end of the last partition whose BRIN indexes have been summarised, in UTC if the time has a zone';
REVOKE ALL ON tally.partition_upkeep FROM PUBLIC;

-- ROWS: with the planner's usual guess of 1000 rows a look at the status would be compiled by JIT for seconds.
CREATE FUNCTION tally.inspect_partitions(only_parent regclass DEFAULT NULL)
RETURNS TABLE (parent regclass, verdict text, reason text, next_sql text, time_zone text, width interval, partitions bigint,
               accepts_from timestamptz, horizon timestamptz, ahead interval, pending_partition text, pending_since timestamptz,
               blockers text)
LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 5 SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tally_inspect_partitions_wrapper';
COMMENT ON FUNCTION tally.inspect_partitions(regclass) IS 'how partition sets are doing, as in tally.partition_status: one of them or all that the caller owns, watches, reads or writes';

-- A dropped table takes its policy along.
CREATE FUNCTION tally._forget_dropped_sets() RETURNS event_trigger
LANGUAGE C VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tally_forget_dropped_sets_wrapper';
COMMENT ON FUNCTION tally._forget_dropped_sets() IS 'deletes the policies of tables that do not exist any more';
REVOKE ALL ON FUNCTION tally._forget_dropped_sets() FROM PUBLIC;
CREATE EVENT TRIGGER tally_partition_set_dropped ON sql_drop WHEN TAG IN ('DROP TABLE', 'DROP SCHEMA', 'DROP OWNED')
EXECUTE FUNCTION tally._forget_dropped_sets();
COMMENT ON EVENT TRIGGER tally_partition_set_dropped IS 'forgets the partition policy of a dropped table';

-- What DROP names is known before it goes (tally_before_ddl); what goes along with a schema or an owner is not.
CREATE FUNCTION tally._note_altered_sets() RETURNS event_trigger
LANGUAGE C VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tally_note_altered_sets_wrapper';
COMMENT ON FUNCTION tally._note_altered_sets() IS 'has all partition sets looked at anew';
REVOKE ALL ON FUNCTION tally._note_altered_sets() FROM PUBLIC;
CREATE EVENT TRIGGER tally_partitions_dropped ON sql_drop WHEN TAG IN ('DROP SCHEMA', 'DROP OWNED')
EXECUTE FUNCTION tally._note_altered_sets();
COMMENT ON EVENT TRIGGER tally_partitions_dropped IS 'has partition sets looked at anew that may have lost partitions';
ALTER EVENT TRIGGER tally_partitions_dropped ENABLE ALWAYS;
