-- What a DBA reads about rollups. Counting the pending rows reads them, by the index on their tags.

CREATE FUNCTION tally.pending_rows(source pg_catalog.regclass) RETURNS bigint
  LANGUAGE C VOLATILE STRICT AS 'MODULE_PATHNAME', 'tally_pending_rows_wrapper';
COMMENT ON FUNCTION tally.pending_rows(pg_catalog.regclass) IS
  'committed rows of a source that no refresh has counted yet; null for who is neither a member of its owner nor of pg_read_all_stats';

CREATE VIEW tally.rollup_status WITH (security_barrier) AS
SELECT r.rollup,
       r.source,
       r.refresh_interval,
       tally.pending_rows(r.source) AS pending_rows,
       (SELECT pg_catalog.format('%s, since %s', w.who, w.since)
          FROM (SELECT CASE WHEN a.pid IS NOT NULL THEN pg_catalog.format('pid %s, %s', a.pid, a.usename)
                            WHEN p.gid IS NOT NULL THEN pg_catalog.format('prepared transaction %s', p.gid) END AS who,
                       COALESCE(a.xact_start, p.prepared) AS since
                  FROM pg_catalog.pg_locks l
                  LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid OPERATOR(pg_catalog.=) l.pid
                  LEFT JOIN pg_catalog.pg_prepared_xacts p ON l.virtualtransaction OPERATOR(pg_catalog.=) ('-1/' OPERATOR(pg_catalog.||) p.transaction::pg_catalog.text)
                 WHERE l.locktype OPERATOR(pg_catalog.=) 'relation' AND l.mode OPERATOR(pg_catalog.=) 'RowExclusiveLock' AND l.granted
                   AND l.database OPERATOR(pg_catalog.=) (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database())
                   AND (l.relation OPERATOR(pg_catalog.=) r.source
                        OR l.relation IN (SELECT t.relid FROM pg_catalog.pg_partition_tree(r.source) t))) w
         WHERE w.who IS NOT NULL
         ORDER BY w.since LIMIT 1) AS oldest_open_writer,
       s.refreshed_at,
       s.refresh_duration,
       s.refreshed_rows,
       pg_catalog.pg_table_size(r.stored) AS stored_bytes,
       g.stored_groups,
       CASE WHEN g.stored_groups OPERATOR(pg_catalog.>) 0 AND g.source_rows OPERATOR(pg_catalog.>) 0
            THEN pg_catalog.round((g.source_rows OPERATOR(pg_catalog./) g.stored_groups)::numeric, 1) END AS rows_per_group,
       j.last_message AS last_error,
       j.last_hint,
       CASE WHEN b.unbuilt_before OPERATOR(pg_catalog.<>) '-infinity' THEN b.unbuilt_before END AS unbuilt_before,
       b.rows_done AS build_rows_done,
       b.rows_expected AS build_rows_expected,
       b.ranges_done AS build_ranges_done,
       b.ranges_total AS build_ranges_total
  FROM tally.rollups r
  JOIN tally.sources s ON s.source OPERATOR(pg_catalog.=) r.source
  JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) r.source
  CROSS JOIN LATERAL (
       SELECT (SELECT CASE WHEN t.reltuples OPERATOR(pg_catalog.>=) 0 THEN t.reltuples::bigint END FROM pg_catalog.pg_class t WHERE t.oid OPERATOR(pg_catalog.=) r.stored) AS stored_groups,
              (SELECT pg_catalog.sum(t.reltuples) FROM pg_catalog.pg_class t
                WHERE t.reltuples OPERATOR(pg_catalog.>) 0 AND t.relkind OPERATOR(pg_catalog.=) 'r'
                  AND (t.oid OPERATOR(pg_catalog.=) r.source OR t.oid IN (SELECT p.relid FROM pg_catalog.pg_partition_tree(r.source) p))) AS source_rows) g
  LEFT JOIN tally.builds b ON b.stored OPERATOR(pg_catalog.=) r.stored
  LEFT JOIN tally.jobs o ON o.object OPERATOR(pg_catalog.=) r.source AND o.kind OPERATOR(pg_catalog.=) 'refresh'
  LEFT JOIN tally.job_states j ON j.job_id OPERATOR(pg_catalog.=) o.job_id AND j.last_sqlstate IS NOT NULL
 WHERE pg_catalog.pg_has_role(c.relowner, 'MEMBER') OR pg_catalog.pg_has_role('pg_read_all_stats', 'MEMBER');
COMMENT ON VIEW tally.rollup_status IS 'one row per rollup: how far the stored groups are behind, what the last refresh did, and what went wrong';
COMMENT ON COLUMN tally.rollup_status.rollup IS 'the view that users read';
COMMENT ON COLUMN tally.rollup_status.source IS 'the table it counts';
COMMENT ON COLUMN tally.rollup_status.refresh_interval IS 'how often a worker refreshes it';
COMMENT ON COLUMN tally.rollup_status.pending_rows IS 'committed rows of the source that no refresh has counted; the view adds them up when it is read';
COMMENT ON COLUMN tally.rollup_status.oldest_open_writer IS
  'session or prepared transaction that has been writing to the source for longest; its rows are counted after its commit';
COMMENT ON COLUMN tally.rollup_status.refreshed_at IS 'when a refresh last counted rows';
COMMENT ON COLUMN tally.rollup_status.refresh_duration IS 'how long that took, for all rollups of the source';
COMMENT ON COLUMN tally.rollup_status.refreshed_rows IS 'source rows that it counted';
COMMENT ON COLUMN tally.rollup_status.stored_bytes IS 'size of the stored groups, without indexes';
COMMENT ON COLUMN tally.rollup_status.stored_groups IS 'number of stored groups, as ANALYZE last estimated it';
COMMENT ON COLUMN tally.rollup_status.rows_per_group IS
  'source rows per stored group, as ANALYZE last estimated both; near 1 the rollup brings freshness and distinct counts but no compression';
COMMENT ON COLUMN tally.rollup_status.last_error IS 'error of the last refresh by a job, if it failed';
COMMENT ON COLUMN tally.rollup_status.last_hint IS 'hint of that error';
COMMENT ON COLUMN tally.rollup_status.unbuilt_before IS
  'while the rollup is being built: rows of the source before this time are not in its stored groups yet, and the view reads them one by one';
COMMENT ON COLUMN tally.rollup_status.build_rows_done IS 'rows of the source that are built';
COMMENT ON COLUMN tally.rollup_status.build_rows_expected IS 'rows of the source when the build began, as PostgreSQL estimated them';
COMMENT ON COLUMN tally.rollup_status.build_ranges_done IS 'slices of time that are built';
COMMENT ON COLUMN tally.rollup_status.build_ranges_total IS 'slices of time in all';
GRANT SELECT ON tally.rollup_status TO PUBLIC;
