-- What a Prometheus exporter prints. It reads the views with the rights of its caller, so it names nothing that these would not show.

CREATE FUNCTION tally.metrics() RETURNS text LANGUAGE sql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
WITH verdicts (verdict, value) AS (
    VALUES ('ok', 0), ('warning', 1), ('critical', 2)
), jobs AS (
    SELECT pg_catalog.format('{job="%s",kind="%s",object="%s"}', s.job_id, s.kind,
               pg_catalog.replace(pg_catalog.replace(pg_catalog.replace(s.object_name, '\', '\\'), '"', '\"'), E'\n', '\n')) AS labels, s.*, v.value
    FROM tally.status s JOIN verdicts v ON v.verdict OPERATOR(pg_catalog.=) s.verdict
    WHERE s.kind OPERATOR(pg_catalog.<>) 'server'
), sets AS (
    SELECT pg_catalog.format('{set="%s"}',
               pg_catalog.replace(pg_catalog.replace(pg_catalog.replace(p.parent::text, '\', '\\'), '"', '\"'), E'\n', '\n')) AS labels, p.*, v.value
    FROM tally.partition_status p JOIN verdicts v ON v.verdict OPERATOR(pg_catalog.=) p.verdict
), rollups AS (
    SELECT pg_catalog.format('{rollup="%s"}',
               pg_catalog.replace(pg_catalog.replace(pg_catalog.replace(r.rollup::text, '\', '\\'), '"', '\"'), E'\n', '\n')) AS labels, r.*
    FROM tally.rollup_status r
), samples (family, help, labels, value) AS (
    SELECT 'tally_launcher_running', 'Is the process there that starts jobs by itself.', '', CASE WHEN m.launcher_pid IS NULL THEN '0' ELSE '1' END
    FROM tally.worker_mode() m
    UNION ALL SELECT 'tally_workers', 'Background workers that run jobs of this server.', '', m.workers_used::text FROM tally.worker_mode() m
    UNION ALL SELECT 'tally_workers_max', 'How many may.', '', m.workers_max::text FROM tally.worker_mode() m
    UNION ALL SELECT 'tally_workers_exhausted', 'Do jobs wait because all of max_worker_processes are in use.', '',
                     CASE WHEN m.waiting_since IS NULL THEN '0' ELSE '1' END FROM tally.worker_mode() m
    UNION ALL SELECT 'tally_job_verdict', 'Verdict on a job: 0 ok, 1 warning, 2 critical.', j.labels, j.value::text FROM jobs j
    UNION ALL SELECT 'tally_job_running', 'Is the job being run.', j.labels, CASE WHEN j.state OPERATOR(pg_catalog.=) 'running' THEN '1' ELSE '0' END FROM jobs j
    UNION ALL SELECT 'tally_job_failures', 'Failures in a row.', j.labels, j.failures::text FROM jobs j
    UNION ALL SELECT 'tally_job_overdue_seconds', 'For how long the job has been due without being run.', j.labels,
                     CASE WHEN j.state OPERATOR(pg_catalog.=) 'due'
                          THEN greatest(pg_catalog.extract('epoch', pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) j.next_due_at), 0::numeric) ELSE 0 END::text
              FROM jobs j
    UNION ALL SELECT 'tally_job_last_success_timestamp_seconds', 'Start of the last run that succeeded.', j.labels,
                     pg_catalog.extract('epoch', j.last_success_at)::text FROM jobs j
    UNION ALL SELECT 'tally_job_last_duration_seconds', 'Duration of the last run.', j.labels, pg_catalog.extract('epoch', j.last_duration)::text FROM jobs j
    UNION ALL SELECT 'tally_rollup_pending_rows', 'Committed rows of the source that no refresh has counted.', r.labels, r.pending_rows::text FROM rollups r
    UNION ALL SELECT 'tally_rollup_stored_bytes', 'Size of the stored groups.', r.labels, r.stored_bytes::text FROM rollups r
    UNION ALL SELECT 'tally_partition_verdict', 'Verdict on a partition set: 0 ok, 1 warning, 2 critical.', p.labels, p.value::text FROM sets p
    UNION ALL SELECT 'tally_partition_count', 'Partitions of the set.', p.labels, p.partitions::text FROM sets p
    UNION ALL SELECT 'tally_partition_horizon_seconds', 'For how long rows of the present will find a partition.', p.labels, pg_catalog.extract('epoch', p.ahead)::text FROM sets p
    UNION ALL SELECT 'tally_partition_trash_tables', 'Removed partitions that can still be brought back.', p.labels, p.trash_tables::text FROM sets p
    UNION ALL SELECT 'tally_partition_trash_bytes', 'Size of them.', p.labels, coalesce(p.trash_bytes, 0)::text FROM sets p
), families AS (
    SELECT s.family, pg_catalog.format(E'# HELP %1$s %2$s\n# TYPE %1$s gauge\n', s.family, s.help) OPERATOR(pg_catalog.||)
           pg_catalog.string_agg(pg_catalog.format(E'%s%s %s\n', s.family, s.labels, s.value), '' ORDER BY s.labels) AS lines
    FROM samples s WHERE s.value IS NOT NULL GROUP BY s.family, s.help
)
SELECT pg_catalog.string_agg(f.lines, '' ORDER BY f.family) FROM families f
$$;
COMMENT ON FUNCTION tally.metrics() IS 'jobs, workers, rollups and partition sets that you may see, as text in the format of Prometheus';
