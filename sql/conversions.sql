-- Conversion: plain tables that are becoming partitioned ones, without a row copied.

CREATE TABLE tally.conversions (
    table_name      regclass PRIMARY KEY,
    parent          regclass,
    time_column     name NOT NULL,
    boundary        timestamp NOT NULL,
    state           text NOT NULL CHECK (state OPERATOR(pg_catalog.=) ANY (ARRAY['preparing', 'swapped', 'cancelling']::pg_catalog.text[])),
    widen_keys      boolean NOT NULL,
    partition_width interval NOT NULL,
    retention       interval,
    time_zone       text NOT NULL,
    premake         interval,
    lateness        interval NOT NULL,
    far_future      interval NOT NULL,
    grace           interval NOT NULL,
    detach_deadline interval NOT NULL,
    changed_at      timestamptz NOT NULL,
    note            text
);
COMMENT ON TABLE tally.conversions IS 'plain tables that are being converted to partitioned ones: one row from tally.convert_to_partitioned until the set has its policy';
COMMENT ON COLUMN tally.conversions.table_name IS 'the table; once swapped, the partition that it has become';
COMMENT ON COLUMN tally.conversions.parent IS 'the partitioned table that has taken its name, once swapped';
COMMENT ON COLUMN tally.conversions.time_column IS 'the column that it will be partitioned by';
COMMENT ON COLUMN tally.conversions.boundary IS 'where the table ends and new partitions begin: until then later rows are refused; in UTC if the time has a zone';
COMMENT ON COLUMN tally.conversions.state IS 'preparing: constraint and indexes are being made; swapped: the policy is missing; cancelling: they are being dropped';
COMMENT ON COLUMN tally.conversions.widen_keys IS 'are unique keys given the time column?';
COMMENT ON COLUMN tally.conversions.partition_width IS 'of the policy';
COMMENT ON COLUMN tally.conversions.retention IS 'of the policy';
COMMENT ON COLUMN tally.conversions.time_zone IS 'of the policy';
COMMENT ON COLUMN tally.conversions.premake IS 'of the policy';
COMMENT ON COLUMN tally.conversions.lateness IS 'of the policy';
COMMENT ON COLUMN tally.conversions.far_future IS 'of the policy';
COMMENT ON COLUMN tally.conversions.grace IS 'of the policy';
COMMENT ON COLUMN tally.conversions.detach_deadline IS 'of the policy';
COMMENT ON COLUMN tally.conversions.changed_at IS 'since when it is in this state';
COMMENT ON COLUMN tally.conversions.note IS 'what is being done, or who is in the way';
SELECT pg_catalog.pg_extension_config_dump('tally.conversions', '');
-- Names, times and numbers only. Readable by all, because one unreadable table would make a plain role's pg_dump fail.
REVOKE ALL ON tally.conversions FROM PUBLIC;
GRANT SELECT ON tally.conversions TO PUBLIC;

CREATE FUNCTION tally.convert_to_partitioned(
    tbl             regclass,
    time_column     name,
    partition_width interval,
    retention       interval DEFAULT NULL,
    time_zone       text     DEFAULT 'UTC',
    premake         interval DEFAULT NULL,
    lateness        interval DEFAULT '2 days',
    far_future      interval DEFAULT '2 days',
    grace           interval DEFAULT '7 days',
    detach_deadline interval DEFAULT '6 hours',
    widen_keys      boolean  DEFAULT false
) RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tally_convert_to_partitioned_wrapper';
COMMENT ON FUNCTION tally.convert_to_partitioned(regclass, name, interval, interval, text, interval, interval, interval, interval, interval, boolean) IS 'has a job turn a plain table into a partitioned one, online and without copying a row; tally.conversions shows how far it is';

CREATE FUNCTION tally.plan_conversion(
    tbl             regclass,
    time_column     name,
    partition_width interval,
    retention       interval DEFAULT NULL,
    time_zone       text     DEFAULT 'UTC',
    premake         interval DEFAULT NULL,
    lateness        interval DEFAULT '2 days',
    far_future      interval DEFAULT '2 days',
    grace           interval DEFAULT '7 days',
    detach_deadline interval DEFAULT '6 hours',
    widen_keys      boolean  DEFAULT false
) RETURNS TABLE (step bigint, action text, object text, sql text, lock_mode text, locked_tables text[], est_rows bigint,
                 est_bytes bigint, top_level_only boolean, note text)
LANGUAGE C VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tally_plan_conversion_wrapper';
COMMENT ON FUNCTION tally.plan_conversion(regclass, name, interval, interval, text, interval, interval, interval, interval, interval, boolean) IS 'the statements of tally.convert_to_partitioned with these arguments, in order, with the locks they take, or what is in the way; changes nothing';

CREATE FUNCTION tally.cancel_conversion(tbl regclass) RETURNS void
LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tally_cancel_conversion_wrapper';
COMMENT ON FUNCTION tally.cancel_conversion(regclass) IS 'ends a conversion before the swap, and drops the constraint and the indexes that it has made';

CREATE FUNCTION tally.undo_conversion(tbl regclass) RETURNS void
LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tally_undo_conversion_wrapper';
COMMENT ON FUNCTION tally.undo_conversion(regclass) IS 'makes a converted table a plain one again, while all of its rows are in its first partition; widened keys stay wide';

CREATE FUNCTION tally.move_rollups(source regclass, target regclass) RETURNS void
LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tally_move_rollups_wrapper';
COMMENT ON FUNCTION tally.move_rollups(regclass, regclass) IS 'part of a conversion: the rollups of the one table are those of the other from now on, which is about to have its rows and triggers';
