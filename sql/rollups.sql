-- Rollups: row tags, the state of each source, the catalog of rollups, and the functions a user calls.

-- 1. Row tags

-- No unique index: the first writers after a restore may all write the row of the new cluster, and none may wait for another.
CREATE TABLE tally.incarnations (
  id smallint NOT NULL CHECK (id OPERATOR(pg_catalog.>) 0),
  system_identifier bigint NOT NULL,
  noted_at timestamptz NOT NULL DEFAULT pg_catalog.now()
);
COMMENT ON TABLE tally.incarnations IS
  'clusters this database has lived in; the newest row must name this one. Transaction ids mean nothing elsewhere, so the incarnation is the high part of every row tag';
COMMENT ON COLUMN tally.incarnations.id IS 'number of the incarnation, growing';
COMMENT ON COLUMN tally.incarnations.system_identifier IS 'identifier that initdb gave the cluster';
COMMENT ON COLUMN tally.incarnations.noted_at IS 'when the database first woke up there';
SELECT pg_catalog.pg_extension_config_dump('tally.incarnations', '');
GRANT SELECT ON tally.incarnations TO PUBLIC;

CREATE FUNCTION tally.row_tag() RETURNS bigint
  LANGUAGE C STABLE PARALLEL RESTRICTED STRICT AS 'MODULE_PATHNAME', 'tally_row_tag';
COMMENT ON FUNCTION tally.row_tag() IS
  'tag of the rows that this transaction writes: incarnation and top-level transaction id; the default of column tally_tag';

CREATE FUNCTION tally._renew_incarnation() RETURNS trigger
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM tally._current_incarnation();
  RETURN NULL;
END
$$;
COMMENT ON FUNCTION tally._renew_incarnation() IS 'appends this cluster when restored rows of tally.incarnations name another one';
REVOKE ALL ON FUNCTION tally._renew_incarnation() FROM PUBLIC;

CREATE FUNCTION tally._current_incarnation() RETURNS smallint
  LANGUAGE C VOLATILE AS 'MODULE_PATHNAME', 'tally_current_incarnation_wrapper';
COMMENT ON FUNCTION tally._current_incarnation() IS 'incarnation of this database, appended if the newest row names another cluster';
REVOKE ALL ON FUNCTION tally._current_incarnation() FROM PUBLIC;

CREATE TRIGGER renew_incarnation AFTER INSERT ON tally.incarnations
  FOR EACH STATEMENT EXECUTE FUNCTION tally._renew_incarnation();

-- 2. Sources and rollups

CREATE TABLE tally.sources (
  source pg_catalog.regclass PRIMARY KEY,
  changes pg_catalog.regclass NOT NULL UNIQUE,
  next_tag bigint NOT NULL,
  open_tags bigint[] NOT NULL,
  refreshed_at timestamptz,
  refresh_duration interval,
  refreshed_rows bigint,
  refreshed_groups bigint,
  sealed_before timestamp,
  settled_before timestamp,
  watched_since timestamptz,
  watched_tag bigint,
  leaving pg_catalog.regclass[] NOT NULL DEFAULT '{}'
) WITH (fillfactor = 50);
COMMENT ON TABLE tally.sources IS
  'tables that feed rollups, and the snapshot up to which their rows are counted: a row is counted when its tally_tag is below next_tag and not in open_tags';
COMMENT ON COLUMN tally.sources.source IS 'the table';
COMMENT ON COLUMN tally.sources.changes IS
  'its change log: UPDATE and DELETE of counted rows, and rows with a copied tag, until a refresh has followed them. An entry counts when tally_writer is not counted and tally_tag is';
COMMENT ON COLUMN tally.sources.next_tag IS 'rows with this tag or a later one are not counted';
COMMENT ON COLUMN tally.sources.open_tags IS 'transactions before next_tag that were still running: their rows are not counted';
COMMENT ON COLUMN tally.sources.refreshed_at IS 'when a refresh last counted rows';
COMMENT ON COLUMN tally.sources.refresh_duration IS 'how long that took';
COMMENT ON COLUMN tally.sources.refreshed_rows IS 'source rows that it counted';
COMMENT ON COLUMN tally.sources.refreshed_groups IS 'groups that it touched, over all rollups of the source';
COMMENT ON COLUMN tally.sources.sealed_before IS
  'partitions that begin before this time are sealed: every row that comes to them is logged; in UTC if the time has a zone';
COMMENT ON COLUMN tally.sources.settled_before IS
  'partitions that begin before this time are sealed and have no row that is not counted by its tag: nobody looks into them for new rows';
COMMENT ON COLUMN tally.sources.watched_since IS 'since when it is watched which partitions get rows';
COMMENT ON COLUMN tally.sources.watched_tag IS 'rows that have come since then have this tag or a later one';
COMMENT ON COLUMN tally.sources.leaving IS
  'partitions that retention is about to detach, or has moved to the trash: their rows are in the retained groups, and are read no more when groups are made anew';
SELECT pg_catalog.pg_extension_config_dump('tally.sources', '');
GRANT SELECT ON tally.sources TO PUBLIC;

CREATE TABLE tally.rollups (
  rollup pg_catalog.regclass PRIMARY KEY,
  source pg_catalog.regclass NOT NULL,
  below pg_catalog.regclass,
  level smallint NOT NULL,
  rows_view pg_catalog.regclass NOT NULL UNIQUE,
  changes_view pg_catalog.regclass NOT NULL UNIQUE,
  stored pg_catalog.regclass NOT NULL UNIQUE,
  retained pg_catalog.regclass NOT NULL UNIQUE,
  refresh_interval interval NOT NULL,
  definition text NOT NULL,
  columns jsonb NOT NULL,
  created_at timestamptz NOT NULL DEFAULT pg_catalog.now()
);
COMMENT ON TABLE tally.rollups IS 'rollups, with the relations that make them up';
COMMENT ON COLUMN tally.rollups.rollup IS 'the view that users read: stored groups and what no refresh has counted yet';
COMMENT ON COLUMN tally.rollups.source IS 'the table it counts';
COMMENT ON COLUMN tally.rollups.below IS 'the rollup that it is defined on; NULL if that is the table';
COMMENT ON COLUMN tally.rollups.level IS 'how many rollups lie between it and the table';
COMMENT ON COLUMN tally.rollups.rows_view IS 'the view that turns a source row into keys and arguments';
COMMENT ON COLUMN tally.rollups.changes_view IS 'the view that says which groups the logged changes concern';
COMMENT ON COLUMN tally.rollups.stored IS 'the table of the groups, as of the last refresh';
COMMENT ON COLUMN tally.rollups.retained IS 'the table of what stays counted of rows that have left the table with their partition';
COMMENT ON COLUMN tally.rollups.refresh_interval IS 'how often a worker refreshes it';
COMMENT ON COLUMN tally.rollups.definition IS 'the defining query as of its creation, with all names qualified; the rollup equals it in every snapshot';
COMMENT ON COLUMN tally.rollups.columns IS 'keys, arguments and partial columns, as the refresh uses them';
COMMENT ON COLUMN tally.rollups.created_at IS 'when the rollup was created';
SELECT pg_catalog.pg_extension_config_dump('tally.rollups', '');
GRANT SELECT ON tally.rollups TO PUBLIC;

CREATE TABLE tally.builds (
  stored pg_catalog.regclass PRIMARY KEY,
  unbuilt_before text NOT NULL,
  remaining text[] NOT NULL,
  ranges_done integer NOT NULL DEFAULT 0,
  ranges_total integer NOT NULL,
  rows_done bigint NOT NULL DEFAULT 0,
  rows_expected bigint NOT NULL,
  started_at timestamptz NOT NULL DEFAULT pg_catalog.now()
) WITH (fillfactor = 50);
COMMENT ON TABLE tally.builds IS
  'new rollups of large tables, whose stored groups are built in slices of time, the newest rows first; the view reads the rest row by row';
COMMENT ON COLUMN tally.builds.stored IS 'the table of the stored groups';
COMMENT ON COLUMN tally.builds.unbuilt_before IS 'rows of the source before this time are not in the stored groups; -infinity: all are, and the view is about to be simplified';
COMMENT ON COLUMN tally.builds.remaining IS 'first times of the slices to come; the oldest slice has none';
COMMENT ON COLUMN tally.builds.ranges_done IS 'slices that are built';
COMMENT ON COLUMN tally.builds.ranges_total IS 'slices in all';
COMMENT ON COLUMN tally.builds.rows_done IS 'rows that are built';
COMMENT ON COLUMN tally.builds.rows_expected IS 'rows of the table when the build began, as PostgreSQL estimated them';
COMMENT ON COLUMN tally.builds.started_at IS 'when the rollup was created';
SELECT pg_catalog.pg_extension_config_dump('tally.builds', '');
GRANT SELECT ON tally.builds TO PUBLIC;

CREATE FUNCTION tally.refuse_old_snapshot(unbuilt_before text) RETURNS boolean
  LANGUAGE plpgsql STABLE STRICT COST 100000 SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF unbuilt_before = '-infinity' THEN
    RETURN false;
  END IF;
  RAISE EXCEPTION 'the rollup has been built or altered since this transaction took its snapshot'
    USING ERRCODE = '40001', HINT = 'Begin a new transaction and try again.';
END
$$;
COMMENT ON FUNCTION tally.refuse_old_snapshot(text) IS
  'part of the views of rollups: an error in a transaction whose snapshot is older than the end of the build, or than a change of the definition';

CREATE FUNCTION tally.settled_before(stored pg_catalog.regclass, kind anyelement) RETURNS anyelement
  LANGUAGE C IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'tally_settled_before';
COMMENT ON FUNCTION tally.settled_before(pg_catalog.regclass, anyelement) IS
  'part of the views of rollups: rows of the table before this time are all counted; immutable in name only, so that the planner leaves out their partitions';

CREATE FUNCTION tally.unchanged_before(stored pg_catalog.regclass, kind anyelement, reach interval) RETURNS anyelement
  LANGUAGE C IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'tally_unchanged_before';
COMMENT ON FUNCTION tally.unchanged_before(pg_catalog.regclass, anyelement, interval) IS
  'part of the views of rollups: no row before this time is in a group that has to be counted anew; immutable in name only, so that the planner leaves out partitions';

CREATE FUNCTION tally.refuse_stale_plan() RETURNS boolean
  LANGUAGE plpgsql STABLE COST 1 SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RAISE EXCEPTION 'old rows of the rollup''s table were changed while this query was being planned'
    USING ERRCODE = '40001', DETAIL = 'The plan leaves out partitions that have to be read.', HINT = 'Run the query again.';
END
$$;
COMMENT ON FUNCTION tally.refuse_stale_plan() IS
  'part of the views of rollups: an error in the rare query whose plan was made with another snapshot, in which partitions could be left out';

CREATE SEQUENCE tally.departures_departure_seq AS bigint;
COMMENT ON SEQUENCE tally.departures_departure_seq IS 'numbers of departures, never used twice';
CREATE TABLE tally.departures (
  departure bigint PRIMARY KEY DEFAULT pg_catalog.nextval('tally.departures_departure_seq'),
  source pg_catalog.regclass NOT NULL,
  partition pg_catalog.regclass NOT NULL,
  departed_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
  released_by bigint
);
ALTER SEQUENCE tally.departures_departure_seq OWNED BY tally.departures.departure;
COMMENT ON TABLE tally.departures IS
  'partitions that were detached from a table that feeds rollups: their rows stay counted until they come back';
COMMENT ON COLUMN tally.departures.departure IS 'number in the column _departure of retained groups';
COMMENT ON COLUMN tally.departures.source IS 'the table that it was a partition of';
COMMENT ON COLUMN tally.departures.partition IS 'the detached partition';
COMMENT ON COLUMN tally.departures.departed_at IS 'when it was detached';
COMMENT ON COLUMN tally.departures.released_by IS
  'tag of the transaction that has attached it again: the next refresh counts its rows as they are and forgets the departure';
SELECT pg_catalog.pg_extension_config_dump('tally.departures', '');
SELECT pg_catalog.pg_extension_config_dump('tally.departures_departure_seq', '');
REVOKE ALL ON tally.departures FROM PUBLIC;
GRANT SELECT ON tally.departures TO PUBLIC;
REVOKE ALL ON SEQUENCE tally.departures_departure_seq FROM PUBLIC;
GRANT SELECT ON SEQUENCE tally.departures_departure_seq TO PUBLIC;

-- 3. What happens to the rows of a source besides INSERT. The conditions of the triggers let a transaction change its own rows
--    at no price: no refresh has counted them.

CREATE FUNCTION tally._log_change() RETURNS trigger LANGUAGE C AS 'MODULE_PATHNAME', 'tally_log_change';
COMMENT ON FUNCTION tally._log_change() IS
  'row trigger of a source: writes changes of rows of other transactions into the change log';

CREATE FUNCTION tally._before_truncate() RETURNS trigger LANGUAGE C AS 'MODULE_PATHNAME', 'tally_before_truncate';
COMMENT ON FUNCTION tally._before_truncate() IS
  'trigger of a source and of its partitions: empties the rollups of a source that is about to be truncated, logs the rows of a partition';

CREATE FUNCTION tally._seal_row() RETURNS trigger LANGUAGE C AS 'MODULE_PATHNAME', 'tally_seal_row';
COMMENT ON FUNCTION tally._seal_row() IS
  'trigger of a sealed partition: takes the tag from new rows, so that the triggers of the table log them';

CREATE FUNCTION tally._follow_attach(partition pg_catalog.regclass) RETURNS void
  LANGUAGE C VOLATILE STRICT AS 'MODULE_PATHNAME', 'tally_follow_attach_wrapper';
COMMENT ON FUNCTION tally._follow_attach(pg_catalog.regclass) IS 'logs the rows that a partition brings to a source';

CREATE FUNCTION tally._before_ddl() RETURNS event_trigger
  LANGUAGE C AS 'MODULE_PATHNAME', 'tally_before_ddl';
COMMENT ON FUNCTION tally._before_ddl() IS
  'keeps what the rows of a partition count for before it is detached from a source or dropped, and refuses what rollups cannot follow';

CREATE FUNCTION tally._follow_ddl() RETURNS event_trigger
  LANGUAGE C AS 'MODULE_PATHNAME', 'tally_follow_ddl';
COMMENT ON FUNCTION tally._follow_ddl() IS 'looks after sources and their partitions when a command has changed tables';

CREATE FUNCTION tally._follow_tables(brings_partitions boolean) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  leaf record;
  refused text;
BEGIN
  IF NOT EXISTS (SELECT FROM tally.sources) THEN
    RETURN;
  END IF;
  SELECT CASE WHEN c.relrowsecurity THEN format('row-level security on %s', s.source)
              WHEN c.relpersistence <> 'p' THEN format('SET UNLOGGED on %s', s.source)
              ELSE format('a child of %s by inheritance', s.source) END
    INTO refused
    FROM tally.sources s JOIN pg_class c ON c.oid = s.source
   WHERE c.relrowsecurity OR c.relpersistence <> 'p'
      OR c.relkind = 'r' AND EXISTS (SELECT FROM pg_inherits i WHERE i.inhparent = c.oid);
  IF FOUND THEN
    RAISE EXCEPTION '% is not supported: the table feeds rollups', refused
      USING ERRCODE = '0A000', HINT = 'Drop the rollups of the table with tally.drop_rollup first.';
  END IF;
  IF NOT brings_partitions THEN
    RETURN;
  END IF;
  -- Partitions that have come to a source: they lack the trigger that PostgreSQL does not clone.
  FOR leaf IN
    SELECT p.relid, c.relkind = 'f' OR c.relpersistence <> 'p' AS cannot_be_counted
      FROM tally.sources s CROSS JOIN LATERAL pg_partition_tree(s.source) p JOIN pg_class c ON c.oid = p.relid
     WHERE p.relid <> s.source
       AND EXISTS (SELECT FROM pg_event_trigger_ddl_commands() d
                    WHERE d.objid IN (SELECT t.relid FROM pg_partition_tree(s.source) t))
       AND NOT EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = p.relid AND t.tgname = 'tally_truncate')
  LOOP
    IF leaf.cannot_be_counted THEN
      RAISE EXCEPTION '% cannot be a partition of a table that feeds rollups: it is a foreign or an unlogged table', leaf.relid
        USING ERRCODE = '0A000', HINT = 'Use an ordinary, logged table.';
    END IF;
    PERFORM tally._follow_attach(leaf.relid);
    PERFORM tally._protect_partition(leaf.relid);
  END LOOP;
END
$$;
COMMENT ON FUNCTION tally._follow_tables(boolean) IS
  'refuses what rollups cannot follow, protects partitions that come to a source, and logs the rows that they bring along';

CREATE FUNCTION tally._protect_partition(partition pg_catalog.regclass) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  EXECUTE format('CREATE TRIGGER tally_truncate BEFORE TRUNCATE ON %s FOR EACH STATEMENT EXECUTE FUNCTION tally._before_truncate()',
                 partition);
  EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER tally_truncate', partition);
END
$$;
COMMENT ON FUNCTION tally._protect_partition(pg_catalog.regclass) IS
  'creates the trigger of TRUNCATE, which PostgreSQL does not clone to partitions';

CREATE FUNCTION tally._follow_drop() RETURNS event_trigger
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  dropped record;
BEGIN
  IF NOT EXISTS (SELECT FROM pg_class WHERE oid = to_regclass('tally.sources')) THEN
    RETURN;  -- the extension itself is going
  END IF;
  -- A dropped partition of a source shows by its trigger: the source still has its own. DROP TABLE has retained its groups.
  FOR dropped IN
    SELECT o.address_names AS names
      FROM pg_event_trigger_dropped_objects() o
      LEFT JOIN pg_event_trigger_dropped_objects() p
             ON p.classid = 'pg_class'::regclass AND p.objsubid = 0 AND p.schema_name = o.address_names[1] AND p.object_name = o.address_names[2]
     WHERE o.object_type = 'trigger' AND o.address_names[3] = 'tally_truncate'
       AND NOT o.original
       AND NOT EXISTS (SELECT FROM tally.departures d WHERE d.partition = p.objid)
       AND NOT EXISTS (SELECT FROM tally.sources s
                         JOIN pg_event_trigger_dropped_objects() t ON t.objid = s.source AND t.classid = 'pg_class'::regclass)
  LOOP
    RAISE EXCEPTION 'cannot drop partition %.% along with something else: its table feeds rollups',
                    quote_ident(dropped.names[1]), quote_ident(dropped.names[2])
      USING ERRCODE = '2BP01',
            DETAIL = 'The rollups would lose its rows, or go on counting them without a trace.',
            HINT = format('Drop it by its name first: DROP TABLE %I.%I; the rollups keep its rows.', dropped.names[1], dropped.names[2]);
  END LOOP;
  PERFORM tally._forget_dropped();
END
$$;
COMMENT ON FUNCTION tally._follow_drop() IS 'refuses to drop partitions of a source by the way, and forgets rollups whose relations are gone';

CREATE FUNCTION tally._forget_dropped() RETURNS void
  LANGUAGE C VOLATILE AS 'MODULE_PATHNAME', 'tally_forget_dropped_wrapper';
COMMENT ON FUNCTION tally._forget_dropped() IS 'deletes what tally knows about relations that no longer exist';

CREATE EVENT TRIGGER tally_before_ddl ON ddl_command_start WHEN TAG IN ('ALTER TABLE', 'DROP TABLE', 'DROP VIEW')
  EXECUTE FUNCTION tally._before_ddl();
COMMENT ON EVENT TRIGGER tally_before_ddl IS 'keeps the counts of partitions that leave a table that feeds rollups, and refreshes away from rollups that are being dropped';
CREATE EVENT TRIGGER tally_follow_ddl ON ddl_command_end WHEN TAG IN ('ALTER TABLE', 'CREATE TABLE', 'CREATE FOREIGN TABLE', 'CREATE SCHEMA')
  EXECUTE FUNCTION tally._follow_ddl();
COMMENT ON EVENT TRIGGER tally_follow_ddl IS 'protects partitions that come to a table that feeds rollups';
CREATE EVENT TRIGGER tally_follow_drop ON sql_drop EXECUTE FUNCTION tally._follow_drop();
COMMENT ON EVENT TRIGGER tally_follow_drop IS 'refuses to drop counted rows by the way, and forgets rollups that are gone';
-- Also when session_replication_role is replica, as the guards of the rows.
ALTER EVENT TRIGGER tally_before_ddl ENABLE ALWAYS;
ALTER EVENT TRIGGER tally_follow_ddl ENABLE ALWAYS;
ALTER EVENT TRIGGER tally_follow_drop ENABLE ALWAYS;

-- 4. What a user calls

CREATE FUNCTION tally.create_rollup(name text, definition text, refresh_interval interval DEFAULT '5 seconds')
  RETURNS pg_catalog.regclass
  LANGUAGE C VOLATILE STRICT AS 'MODULE_PATHNAME', 'tally_create_rollup_wrapper';
COMMENT ON FUNCTION tally.create_rollup(text, text, interval) IS
  'creates a view that equals the definition (SELECT keys, aggregates FROM table GROUP BY keys) in every snapshot, and keeps its groups stored';

CREATE FUNCTION tally.alter_rollup(rollup pg_catalog.regclass, definition text DEFAULT NULL, refresh_interval interval DEFAULT NULL)
  RETURNS void LANGUAGE C VOLATILE AS 'MODULE_PATHNAME', 'tally_alter_rollup_wrapper';
COMMENT ON FUNCTION tally.alter_rollup(pg_catalog.regclass, text, interval) IS
  'gives a rollup another definition, which may have new columns behind the present ones, or another interval; its groups are counted anew, in slices if they are many, and the view is exact meanwhile';

CREATE FUNCTION tally.add_aggregate(rollup pg_catalog.regclass, column_name text, expression text) RETURNS void
  LANGUAGE C VOLATILE STRICT AS 'MODULE_PATHNAME', 'tally_add_aggregate_wrapper';
COMMENT ON FUNCTION tally.add_aggregate(pg_catalog.regclass, text, text) IS
  'adds a column to a rollup: an aggregate of the columns of its table, or an expression over aggregates; counted as by tally.alter_rollup';

CREATE FUNCTION tally.drop_rollup(rollup pg_catalog.regclass) RETURNS void
  LANGUAGE C VOLATILE STRICT AS 'MODULE_PATHNAME', 'tally_drop_rollup_wrapper';
COMMENT ON FUNCTION tally.drop_rollup(pg_catalog.regclass) IS
  'drops a rollup and its stored groups; with the last rollup of a table, tally''s column and triggers leave the table too';

CREATE PROCEDURE tally.refresh(rollup pg_catalog.regclass)
  LANGUAGE C AS 'MODULE_PATHNAME', 'tally_refresh_wrapper';
COMMENT ON PROCEDURE tally.refresh(pg_catalog.regclass) IS
  'counts the new rows of the rollup''s table now, for all its rollups; waits for nobody but another refresh of the same table';

CREATE FUNCTION tally.recompute_query(rollup pg_catalog.regclass, from_time timestamptz DEFAULT NULL, to_time timestamptz DEFAULT NULL)
  RETURNS text LANGUAGE C STABLE AS 'MODULE_PATHNAME', 'tally_recompute_query_wrapper';
COMMENT ON FUNCTION tally.recompute_query(pg_catalog.regclass, timestamptz, timestamptz) IS
  'the defining query of a rollup over the rows of its table, and over what is retained of rows that have left it; for all buckets or those from from_time on and before to_time';

CREATE FUNCTION tally.verify(rollup pg_catalog.regclass, from_time timestamptz DEFAULT NULL, to_time timestamptz DEFAULT NULL,
                             OUT problem text, OUT group_keys jsonb, OUT in_rollup jsonb, OUT in_source jsonb)
  RETURNS SETOF record
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  keys text;
  bucket text;
  counted text := tally.recompute_query(verify.rollup, verify.from_time, verify.to_time);
BEGIN
  -- Keys that the view shows; rows of equal visible keys are compared as a list.
  SELECT string_agg(format('%L, v.%I', a.attname, a.attname), ', '),
         (array_agg(a.attname ORDER BY t.number) FILTER (WHERE t.target ->> 'sql' = 'merged.' || quote_ident(k.name)))[1]
    INTO keys, bucket
    FROM tally.rollups r
    CROSS JOIN jsonb_array_elements(r.columns -> 'targets') WITH ORDINALITY AS t (target, number)
    JOIN pg_attribute a ON a.attrelid = r.rollup AND a.attnum = t.number AND NOT a.attisdropped
    LEFT JOIN LATERAL (SELECT e.key ->> 'name' AS name
                         FROM jsonb_array_elements(r.columns -> 'keys') WITH ORDINALITY AS e (key, number)
                        WHERE (e.key ->> 'is_time')::boolean ORDER BY e.number LIMIT 1) k ON true
   WHERE r.rollup = verify.rollup AND t.target -> 'value' ? 'keys';
  IF bucket IS NULL AND COALESCE(from_time, to_time) IS NOT NULL THEN
    RAISE EXCEPTION 'rollup % does not show its bucket of time', verify.rollup
      USING ERRCODE = '22023', HINT = 'Leave from_time and to_time out.';
  END IF;
  RETURN QUERY EXECUTE format(
    'WITH stored AS (SELECT jsonb_build_object(%1$s) AS k, jsonb_agg(to_jsonb(v) ORDER BY to_jsonb(v)) AS r FROM %2$s AS v%4$s GROUP BY 1),
          counted AS (SELECT jsonb_build_object(%1$s) AS k, jsonb_agg(to_jsonb(v) ORDER BY to_jsonb(v)) AS r FROM (%3$s) AS v GROUP BY 1)
     SELECT CASE WHEN s.k IS NULL THEN ''missing from the rollup'' WHEN c.k IS NULL THEN ''not in the source'' ELSE ''different'' END,
            COALESCE(s.k, c.k), s.r, c.r
       FROM stored s FULL JOIN counted c ON s.k = c.k
      WHERE s.r IS DISTINCT FROM c.r',
    COALESCE(keys, ''), verify.rollup, counted,
    CASE WHEN COALESCE(from_time, to_time) IS NOT NULL
         THEN format(' WHERE v.%1$I >= %2$L::timestamptz AND v.%1$I < %3$L::timestamptz', bucket,
                     COALESCE(from_time, '-infinity'), COALESCE(to_time, 'infinity')) END);
END
$$;
COMMENT ON FUNCTION tally.verify(pg_catalog.regclass, timestamptz, timestamptz) IS
  'compares a rollup with its defining query over the source, group by group; no row means that they are equal. Reads the whole source, or the rows of the buckets from from_time on and before to_time';

-- The steps of build and rebuild, which commit between them. They check that the caller owns the table, so anybody may call them.
CREATE FUNCTION tally.build_slice(rollup pg_catalog.regclass) RETURNS boolean
  LANGUAGE C VOLATILE STRICT AS 'MODULE_PATHNAME', 'tally_build_slice_wrapper';
COMMENT ON FUNCTION tally.build_slice(pg_catalog.regclass) IS
  'part of tally.build: refreshes, then builds the next slice of the rollups of the same table; true if there is more to build';

CREATE PROCEDURE tally.build(rollup pg_catalog.regclass) LANGUAGE plpgsql AS $$
DECLARE
  more boolean := true;
BEGIN
  COMMIT;
  WHILE more LOOP
    more := tally.build_slice(rollup);
    COMMIT;
  END LOOP;
END
$$;
COMMENT ON PROCEDURE tally.build(pg_catalog.regclass) IS
  'builds now what background jobs would build of the new rollups of the same table, slice by slice, each in a transaction of its own';

CREATE FUNCTION tally.rebuild_range(rollup pg_catalog.regclass, from_time timestamptz, to_time timestamptz) RETURNS bigint
  LANGUAGE C VOLATILE AS 'MODULE_PATHNAME', 'tally_rebuild_range_wrapper';
COMMENT ON FUNCTION tally.rebuild_range(pg_catalog.regclass, timestamptz, timestamptz) IS
  'part of tally.rebuild: refreshes, then makes the stored groups of a range of buckets anew; returns their number';

CREATE PROCEDURE tally.rebuild(rollup pg_catalog.regclass, from_time timestamptz DEFAULT NULL, to_time timestamptz DEFAULT NULL)
  LANGUAGE plpgsql AS $$
DECLARE
  entry record;
  bounds timestamptz[];
BEGIN
  COMMIT;
  SELECT r.stored, (SELECT e.key OPERATOR(pg_catalog.->>) 'name'
                     FROM pg_catalog.jsonb_array_elements(r.columns OPERATOR(pg_catalog.->) 'keys') WITH ORDINALITY AS e (key, number)
                     WHERE (e.key OPERATOR(pg_catalog.->>) 'is_time')::boolean ORDER BY e.number LIMIT 1) AS bucket
    INTO entry FROM tally.rollups AS r WHERE r.rollup OPERATOR(pg_catalog.=) rebuild.rollup;
  IF entry.bucket IS NOT NULL THEN
    -- About 100,000 stored groups at a time.
    EXECUTE pg_catalog.format(
      'SELECT pg_catalog.array_agg(b.bucket ORDER BY b.bucket) FROM (
         SELECT s.bucket, s.part OPERATOR(pg_catalog.<>) pg_catalog.lag(s.part) OVER (ORDER BY s.bucket) AS is_first
           FROM (SELECT g.%1$I::timestamptz AS bucket,
                        pg_catalog.floor(pg_catalog.sum(pg_catalog.count(*)) OVER (ORDER BY g.%1$I) OPERATOR(pg_catalog./) 100000) AS part
                   FROM %2$s AS g GROUP BY g.%1$I) AS s) AS b WHERE b.is_first', entry.bucket, entry.stored) INTO bounds;
    SELECT pg_catalog.array_agg(b.bound ORDER BY b.bound) INTO bounds
      FROM (SELECT COALESCE(from_time, '-infinity') AS bound UNION SELECT COALESCE(to_time, 'infinity')
            UNION SELECT u.bound FROM pg_catalog.unnest(bounds) AS u (bound)
                   WHERE u.bound OPERATOR(pg_catalog.>) COALESCE(from_time, '-infinity')
                     AND u.bound OPERATOR(pg_catalog.<) COALESCE(to_time, 'infinity')) AS b;
    COMMIT;
    FOR number IN 1 .. pg_catalog.array_length(bounds, 1) OPERATOR(pg_catalog.-) 1 LOOP
      PERFORM tally.rebuild_range(rollup, bounds[number], bounds[number OPERATOR(pg_catalog.+) 1]);
      COMMIT;
    END LOOP;
  ELSE
    PERFORM tally.rebuild_range(rollup, from_time, to_time);
    COMMIT;
  END IF;
END
$$;
COMMENT ON PROCEDURE tally.rebuild(pg_catalog.regclass, timestamptz, timestamptz) IS
  'makes the stored groups of a rollup anew from the rows of its table, range by range, each in a transaction of its own; for a repair after damage, of all buckets or of those from from_time on and before to_time';

-- The step of seal_partitions, which commits between them.
CREATE FUNCTION tally.seal_some_partitions(source pg_catalog.regclass, before timestamptz) RETURNS integer
  LANGUAGE C VOLATILE STRICT AS 'MODULE_PATHNAME', 'tally_seal_some_partitions_wrapper';
COMMENT ON FUNCTION tally.seal_some_partitions(pg_catalog.regclass, timestamptz) IS
  'part of tally.seal_partitions: seals some partitions that end before this time and that nobody writes to just now; returns how many';

CREATE PROCEDURE tally.seal_partitions(source pg_catalog.regclass, before timestamptz) LANGUAGE plpgsql AS $$
BEGIN
  COMMIT;
  WHILE tally.seal_some_partitions(source, before) OPERATOR(pg_catalog.>) 0 LOOP
    COMMIT;
  END LOOP;
END
$$;
COMMENT ON PROCEDURE tally.seal_partitions(pg_catalog.regclass, timestamptz) IS
  'seals now what the refresh job would seal after tally.seal_after: partitions that end before this time; refreshes and readers no longer look into them, and rows that still come are logged';

-- The steps of forget, which commits between them.
CREATE FUNCTION tally.forgettable_partitions(source pg_catalog.regclass, older_than timestamptz) RETURNS oid[]
  LANGUAGE C STABLE STRICT AS 'MODULE_PATHNAME', 'tally_forgettable_partitions_wrapper';
COMMENT ON FUNCTION tally.forgettable_partitions(pg_catalog.regclass, timestamptz) IS
  'part of tally.forget: partitions of which every row is older';

CREATE FUNCTION tally.forget_partition(source pg_catalog.regclass, partition pg_catalog.regclass) RETURNS void
  LANGUAGE C VOLATILE STRICT AS 'MODULE_PATHNAME', 'tally_forget_partition_wrapper';
COMMENT ON FUNCTION tally.forget_partition(pg_catalog.regclass, pg_catalog.regclass) IS
  'part of tally.forget: drops a partition as soon as its locks are free; the rollups go on counting its rows';

CREATE FUNCTION tally.forget_rows(source pg_catalog.regclass, part pg_catalog.regclass, older_than timestamptz, time_column text)
  RETURNS bigint LANGUAGE C VOLATILE AS 'MODULE_PATHNAME', 'tally_forget_rows_wrapper';
COMMENT ON FUNCTION tally.forget_rows(pg_catalog.regclass, pg_catalog.regclass, timestamptz, text) IS
  'part of tally.forget: deletes some of the older rows of the table or of one partition; the rollups go on counting them; returns how many';

CREATE PROCEDURE tally.forget(source pg_catalog.regclass, older_than timestamptz, time_column text DEFAULT NULL)
  LANGUAGE plpgsql AS $$
DECLARE
  part oid;
  deleted bigint;
BEGIN
  COMMIT;
  FOREACH part IN ARRAY tally.forgettable_partitions(source, older_than) LOOP
    PERFORM tally.forget_partition(source, part);
    COMMIT;
  END LOOP;
  FOR part IN SELECT l.relid FROM pg_catalog.pg_partition_tree(source) AS l WHERE l.isleaf
              UNION SELECT c.oid FROM pg_catalog.pg_class AS c
                     WHERE c.oid OPERATOR(pg_catalog.=) source AND c.relkind OPERATOR(pg_catalog.=) 'r' LOOP
    LOOP
      deleted := tally.forget_rows(source, part, older_than, time_column);
      COMMIT;
      EXIT WHEN deleted OPERATOR(pg_catalog.=) 0;
    END LOOP;
  END LOOP;
END
$$;
COMMENT ON PROCEDURE tally.forget(pg_catalog.regclass, timestamptz, text) IS
  'removes rows of a table that are older, whole partitions by DROP and other rows by DELETE, step by step; its rollups go on counting them. time_column is needed if the table is not partitioned by a time';
