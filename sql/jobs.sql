-- Jobs: what runs again and again, for which object, and how it went.
-- `jobs` is configuration: dumped, readable by all (one unreadable table would make a plain role's pg_dump fail), names and
-- intervals only. The other tables are state: not dumped, and readable through the view `status`.

CREATE TABLE tally.jobs (
    job_id      integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind        text NOT NULL CHECK (kind OPERATOR(pg_catalog.=) ANY ('{refresh,premake,retention,conversion}'::pg_catalog.text[])),
    object      regclass NOT NULL,
    object_name text NOT NULL,
    every       interval NOT NULL CHECK (every OPERATOR(pg_catalog.>=) interval '1 second'),
    max_runtime interval NOT NULL CHECK (max_runtime OPERATOR(pg_catalog.>=) interval '1 second'),
    paused      boolean NOT NULL DEFAULT false,
    UNIQUE (object, kind)
);
COMMENT ON TABLE tally.jobs IS 'what background workers or CALL tally.run_due_jobs() do again and again; one row per object and kind';
COMMENT ON COLUMN tally.jobs.job_id IS 'number of the job, for tally.run_job and its sisters';
COMMENT ON COLUMN tally.jobs.kind IS 'refresh: bring the rollups of the table up to date; premake: make partitions ahead of the clock; retention: remove old partitions; conversion: make a plain table a partitioned one';
COMMENT ON COLUMN tally.jobs.object IS 'the table; its owner is the role that the job runs as';
COMMENT ON COLUMN tally.jobs.object_name IS 'the name of the table when the job was made, for messages after it is gone';
COMMENT ON COLUMN tally.jobs.every IS 'how long after one run the next is due';
COMMENT ON COLUMN tally.jobs.max_runtime IS 'how long one run may take: then it is canceled, which counts as a failure (SQLSTATE 53400)';
COMMENT ON COLUMN tally.jobs.paused IS 'true after tally.pause_job: does not run until tally.resume_job';
SELECT pg_catalog.pg_extension_config_dump('tally.jobs', '');
SELECT pg_catalog.pg_extension_config_dump('tally.jobs_job_id_seq', '');
REVOKE ALL ON tally.jobs FROM PUBLIC;
GRANT SELECT ON tally.jobs TO PUBLIC;
REVOKE ALL ON SEQUENCE tally.jobs_job_id_seq FROM PUBLIC;
GRANT SELECT ON SEQUENCE tally.jobs_job_id_seq TO PUBLIC;

CREATE TABLE tally.job_states (
    job_id          integer PRIMARY KEY,
    next_due_at     timestamptz NOT NULL,
    failures        integer NOT NULL,
    waits           integer NOT NULL,
    crashes         integer NOT NULL,
    running_since   timestamptz,
    running_server  timestamptz,
    last_run_at     timestamptz,
    last_success_at timestamptz,
    last_duration   interval,
    last_sqlstate   text,
    last_message    text,
    last_hint       text,
    resumed_at      timestamptz,
    told_verdict    text,
    set_verdict     text
) WITH (fillfactor = 50);
COMMENT ON TABLE tally.job_states IS 'how each job went; written when a run did something or failed, so that idle jobs cost nothing';
COMMENT ON COLUMN tally.job_states.job_id IS 'number of the job in tally.jobs';
COMMENT ON COLUMN tally.job_states.next_due_at IS 'when it is due next; with a preloaded library the shared memory knows better';
COMMENT ON COLUMN tally.job_states.failures IS 'failures in a row';
COMMENT ON COLUMN tally.job_states.waits IS 'runs in a row that gave up because of somebody else''s lock';
COMMENT ON COLUMN tally.job_states.crashes IS 'crashes of the server in a row while the job ran; from 3 on it is held';
COMMENT ON COLUMN tally.job_states.running_since IS 'start of a run by tally.run_due_jobs, until its end has been recorded';
COMMENT ON COLUMN tally.job_states.running_server IS 'when the server of that run had started: another time means that it died during the run';
COMMENT ON COLUMN tally.job_states.last_run_at IS 'start of the last recorded run';
COMMENT ON COLUMN tally.job_states.last_success_at IS 'start of the last recorded run that succeeded';
COMMENT ON COLUMN tally.job_states.last_duration IS 'duration of the last recorded run';
COMMENT ON COLUMN tally.job_states.last_sqlstate IS 'SQLSTATE of the last recorded run; null after a success';
COMMENT ON COLUMN tally.job_states.last_message IS 'error message of the last recorded run, cut at 1 kB';
COMMENT ON COLUMN tally.job_states.last_hint IS 'hint of that error, cut at 1 kB';
COMMENT ON COLUMN tally.job_states.resumed_at IS 'last call of tally.resume_job';
COMMENT ON COLUMN tally.job_states.told_verdict IS 'the verdict on the job that was last sent to the channel tally; null before the first';
COMMENT ON COLUMN tally.job_states.set_verdict IS 'of a premake job: the verdict on its partition set that was last sent to the channel tally';
REVOKE ALL ON tally.job_states FROM PUBLIC;

-- A ring: position = run modulo tally.history_rows, written by upsert, so it never needs a purge. Failures have the negative
-- positions, a ring of their own, so that successes do not push them out.
CREATE TABLE tally.runs (
    position   integer PRIMARY KEY,
    job_id     integer NOT NULL,
    started_at timestamptz NOT NULL,
    duration   interval NOT NULL,
    rows_done  bigint NOT NULL,
    sqlstate   text,
    message    text,
    longest_lock interval
) WITH (fillfactor = 90);
COMMENT ON TABLE tally.runs IS 'the last runs that did something or failed; the oldest are overwritten (tally.history_rows, tally.history_errors)';
COMMENT ON COLUMN tally.runs.position IS 'place in the ring: successes from 0 up, failures from -1 down';
COMMENT ON COLUMN tally.runs.job_id IS 'number of the job';
COMMENT ON COLUMN tally.runs.started_at IS 'start of the run';
COMMENT ON COLUMN tally.runs.duration IS 'how long it took';
COMMENT ON COLUMN tally.runs.rows_done IS 'refresh: source rows counted; premake: partitions made; retention and conversion: steps taken';
COMMENT ON COLUMN tally.runs.sqlstate IS 'SQLSTATE if it failed';
COMMENT ON COLUMN tally.runs.message IS 'error message if it failed, cut at 1 kB';
COMMENT ON COLUMN tally.runs.longest_lock IS 'the longest time for which it stood in the queue for, and held, a lock that stops writers of a table which was there before; null if none';
REVOKE ALL ON tally.runs FROM PUBLIC;

CREATE SEQUENCE tally.runs_succeeded AS bigint MINVALUE 0 CACHE 1;
COMMENT ON SEQUENCE tally.runs_succeeded IS 'numbers the successful runs of tally.runs';
CREATE SEQUENCE tally.runs_failed AS bigint MINVALUE 0 CACHE 1;
COMMENT ON SEQUENCE tally.runs_failed IS 'numbers the failed runs of tally.runs';
REVOKE ALL ON SEQUENCE tally.runs_succeeded, tally.runs_failed FROM PUBLIC;

-- Whoever changes the jobs, tally's functions, pg_restore or a superuser by hand: the launcher takes a look after the commit.
CREATE FUNCTION tally._wake_launcher() RETURNS void
    AS 'MODULE_PATHNAME', 'tally_wake_launcher_wrapper' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION tally._wake_launcher() IS 'has the launcher look into this database after the commit';
REVOKE ALL ON FUNCTION tally._wake_launcher() FROM PUBLIC;

CREATE FUNCTION tally._jobs_changed() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM tally._wake_launcher();
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION tally._jobs_changed() IS 'trigger of tally.jobs';
REVOKE ALL ON FUNCTION tally._jobs_changed() FROM PUBLIC;

CREATE TRIGGER jobs_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON tally.jobs
    FOR EACH STATEMENT EXECUTE FUNCTION tally._jobs_changed();
COMMENT ON TRIGGER jobs_changed ON tally.jobs IS 'tells the launcher';

CREATE FUNCTION tally.pause_job(job_id integer) RETURNS void
    AS 'MODULE_PATHNAME', 'tally_pause_job_wrapper' LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION tally.pause_job(integer) IS 'stops a job from being started until tally.resume_job; a run that is under way goes on';

CREATE FUNCTION tally.resume_job(job_id integer) RETURNS void
    AS 'MODULE_PATHNAME', 'tally_resume_job_wrapper' LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION tally.resume_job(integer) IS 'lets a paused or held job run again, at once, with its failures forgotten';

CREATE FUNCTION tally.set_max_runtime(job_id integer, max_runtime interval) RETURNS void
    AS 'MODULE_PATHNAME', 'tally_set_max_runtime_wrapper' LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION tally.set_max_runtime(integer, interval) IS 'sets how long one run of a job may take, from 1 second to 20 days; a longer one is canceled and tried again';

CREATE FUNCTION tally.run_job(job_id integer) RETURNS bigint
    AS 'MODULE_PATHNAME', 'tally_run_job_wrapper' LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION tally.run_job(integer) IS 'runs a job now, in this transaction and without a record; returns the rows counted or partitions made, null if it is being run already';

-- The steps of run_due_jobs, which commits between them. They check that the caller owns the object, so anybody may call them.
CREATE FUNCTION tally.start_due_job(after_job_id integer, OUT job_id integer, OUT kind text, OUT scheduled_at timestamptz, OUT in_worker boolean)
    RETURNS SETOF record AS 'MODULE_PATHNAME', 'tally_start_due_job_wrapper' LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE ROWS 1;
COMMENT ON FUNCTION tally.start_due_job(integer) IS 'part of tally.run_due_jobs: marks the next due job that the caller may run as started';

CREATE FUNCTION tally.finish_job(job_id integer, scheduled_at timestamptz, started_at timestamptz, rows_done bigint,
                                 sqlstate text, message text, hint text) RETURNS void
    AS 'MODULE_PATHNAME', 'tally_finish_job_wrapper' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION tally.finish_job(integer, timestamptz, timestamptz, bigint, text, text, text) IS 'part of tally.run_due_jobs: records the run of a job and when it is due next';

CREATE FUNCTION tally.run_job_in_worker(job_id integer) RETURNS boolean
    AS 'MODULE_PATHNAME', 'tally_run_job_in_worker_wrapper' LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION tally.run_job_in_worker(integer) IS 'runs a job as the owner of its object, in a background worker, and waits for it; false if no worker can be had';

-- No SET search_path: a procedure with it could not commit. Every name is qualified instead.
CREATE PROCEDURE tally.run_due_jobs() LANGUAGE plpgsql AS $$
DECLARE
    job record;
    started timestamptz;
    done bigint;
    total bigint;
    failed text;
    message text;
    hint text;
BEGIN
    IF pg_catalog.current_setting('transaction_isolation') OPERATOR(pg_catalog.<>) 'read committed' THEN
        RAISE EXCEPTION 'tally.run_due_jobs() needs READ COMMITTED transactions'
            USING ERRCODE = '25001', HINT = 'SET default_transaction_isolation = ''read committed''; and call it again.';
    END IF;
    SELECT * INTO job FROM tally.start_due_job(0);
    WHILE job.job_id IS NOT NULL LOOP
        -- The mark must outlive a crash, and the job needs a transaction that has not written yet.
        COMMIT;
        IF job.in_worker THEN
            IF NOT tally.run_job_in_worker(job.job_id) THEN
                RAISE NOTICE 'job % belongs to another role and no background worker is free', job.job_id
                    USING HINT = 'Call tally.run_due_jobs() as that role, or raise max_worker_processes.';
            END IF;
        ELSE
            started := pg_catalog.clock_timestamp();
            total := 0;
            failed := NULL;
            message := NULL;
            hint := NULL;
            LOOP
                BEGIN
                    done := tally.run_job(job.job_id);
                EXCEPTION WHEN OTHERS THEN
                    GET STACKED DIAGNOSTICS failed = RETURNED_SQLSTATE, message = MESSAGE_TEXT, hint = PG_EXCEPTION_HINT;
                    RAISE WARNING 'job % failed: %', job.job_id, message USING ERRCODE = failed, HINT = hint;
                    EXIT;
                END;
                IF done IS NULL THEN
                    failed := '55P03';
                    message := 'the job is being run by another session';
                    EXIT;
                END IF;
                total := total OPERATOR(pg_catalog.+) done;
                -- Partitions are made a few at a time, so that no transaction holds its locks for long.
                EXIT WHEN job.kind OPERATOR(pg_catalog.=) 'refresh' OR done OPERATOR(pg_catalog.=) 0;
                COMMIT;
            END LOOP;
            PERFORM tally.finish_job(job.job_id, job.scheduled_at, started, total, failed, message, hint);
        END IF;
        COMMIT;
        SELECT * INTO job FROM tally.start_due_job(job.job_id);
    END LOOP;
END
$$;
COMMENT ON PROCEDURE tally.run_due_jobs() IS 'runs every job that is due now, for servers without shared_preload_libraries: call it from cron, pg_cron or pgAgent';

-- What shared memory knows of this database's jobs. Readable by all: numbers and times only.
CREATE FUNCTION tally.job_activity(
        OUT job_id integer, OUT state text, OUT next_due_at timestamptz, OUT failures integer, OUT waits integer,
        OUT crashes integer, OUT pid integer, OUT running_since timestamptz, OUT last_run_at timestamptz,
        OUT last_success_at timestamptz, OUT last_duration interval, OUT last_sqlstate text)
    RETURNS SETOF record AS 'MODULE_PATHNAME', 'tally_job_activity_wrapper' LANGUAGE C STRICT VOLATILE PARALLEL RESTRICTED ROWS 10;
COMMENT ON FUNCTION tally.job_activity() IS 'the live state of this database''s jobs in shared memory; no rows without shared_preload_libraries';

CREATE FUNCTION tally.worker_mode(
        OUT mode text, OUT library_version text, OUT launcher_pid integer, OUT workers_used integer, OUT workers_max integer,
        OUT waiting_since timestamptz, OUT enabled boolean, OUT refresh_enabled boolean, OUT premake_enabled boolean,
        OUT retention_enabled boolean, OUT next_sql text)
    RETURNS SETOF record AS 'MODULE_PATHNAME', 'tally_worker_mode_wrapper' LANGUAGE C STRICT VOLATILE PARALLEL RESTRICTED ROWS 1;
COMMENT ON FUNCTION tally.worker_mode() IS 'how jobs get run on this server: preloaded or on demand; the version of the library, and what to run when that of the SQL objects is another; its workers and switches';

CREATE VIEW tally.status WITH (security_barrier) AS
WITH server AS (
    SELECT m.mode, m.library_version, m.launcher_pid, m.workers_used, m.workers_max, m.waiting_since, e.extversion,
           pg_catalog.current_setting('max_worker_processes') AS slots,
           m.mode OPERATOR(pg_catalog.=) 'preloaded' AS preloaded, m.enabled, m.refresh_enabled, m.premake_enabled, m.retention_enabled,
           m.next_sql
    FROM tally.worker_mode() m, pg_catalog.pg_extension e WHERE e.extname OPERATOR(pg_catalog.=) 'tally'
), durations AS (
    SELECT r.job_id, pg_catalog.percentile_disc(0.99) WITHIN GROUP (ORDER BY r.duration) AS p99
    FROM tally.runs r WHERE r.sqlstate IS NULL GROUP BY r.job_id
), facts AS (
    SELECT j.job_id, j.kind, j.object, j.object_name, j.paused, c.oid IS NULL AS gone, c.relowner, o.rolcanlogin, o.rolname,
           j.max_runtime, s.preloaded, s.enabled, s.launcher_pid, s.waiting_since,
           CASE WHEN j.kind OPERATOR(pg_catalog.=) 'refresh' THEN s.refresh_enabled WHEN j.kind OPERATOR(pg_catalog.=) 'premake' THEN s.premake_enabled
                WHEN j.kind OPERATOR(pg_catalog.=) 'retention' THEN s.retention_enabled ELSE true END AS kind_enabled,
           coalesce(a.failures, d.failures, 0) AS failures,
           coalesce(a.crashes, d.crashes, 0) AS crashes,
           coalesce(a.waits, d.waits, 0) AS waits,
           coalesce(a.next_due_at, d.next_due_at) AS next_due_at,
           coalesce(l.pid, a.pid) AS pid,
           coalesce(a.running_since, CASE WHEN l.pid IS NOT NULL THEN d.running_since END) AS running_since,
           greatest(a.last_run_at, d.last_run_at) AS last_run_at,
           greatest(a.last_success_at, d.last_success_at) AS last_success_at,
           coalesce(a.last_duration, d.last_duration) AS last_duration,
           p.p99,
           coalesce(a.last_sqlstate, CASE WHEN a.job_id IS NULL THEN d.last_sqlstate END) AS last_sqlstate,
           d.last_sqlstate AS recorded_sqlstate, d.last_message, d.last_hint, a.job_id IS NOT NULL AS in_memory
    FROM tally.jobs j
    CROSS JOIN server s
    LEFT JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) j.object
    LEFT JOIN pg_catalog.pg_roles o ON o.oid OPERATOR(pg_catalog.=) c.relowner
    LEFT JOIN tally.job_states d ON d.job_id OPERATOR(pg_catalog.=) j.job_id
    LEFT JOIN tally.job_activity() a ON a.job_id OPERATOR(pg_catalog.=) j.job_id
    LEFT JOIN durations p ON p.job_id OPERATOR(pg_catalog.=) j.job_id
    LEFT JOIN pg_catalog.pg_locks l
        ON l.locktype OPERATOR(pg_catalog.=) 'object' AND l.granted
       AND l.database OPERATOR(pg_catalog.=) (SELECT b.oid FROM pg_catalog.pg_database b WHERE b.datname OPERATOR(pg_catalog.=) pg_catalog.current_database())
       AND l.classid OPERATOR(pg_catalog.=) 'tally.jobs'::pg_catalog.regclass
       AND l.objid OPERATOR(pg_catalog.=) j.job_id::pg_catalog.oid
    WHERE c.oid IS NULL
       OR pg_catalog.pg_has_role(c.relowner, 'MEMBER')
       OR pg_catalog.pg_has_role('pg_monitor', 'MEMBER')
       OR pg_catalog.pg_has_role('pg_read_all_stats', 'MEMBER')
), judged AS (
    SELECT f.*,
        CASE WHEN f.gone THEN 'object_gone'
             WHEN f.paused THEN 'paused'
             WHEN f.crashes OPERATOR(pg_catalog.>=) 3 THEN 'crashed'
             WHEN NOT f.enabled OR NOT f.kind_enabled THEN 'switched_off'
             WHEN f.pid IS NOT NULL THEN 'running'
             WHEN NOT f.rolcanlogin AND f.preloaded AND pg_catalog.current_setting('server_version_num')::integer OPERATOR(pg_catalog.<) 170000 THEN 'owner_cannot_log_in'
             WHEN f.failures OPERATOR(pg_catalog.>) 0 THEN 'failing'
             WHEN f.preloaded AND f.launcher_pid IS NULL THEN 'no_launcher'
             WHEN f.waits OPERATOR(pg_catalog.>) 0 THEN 'locked_out'
             WHEN f.preloaded AND NOT f.in_memory THEN 'not_scheduled'
             WHEN f.preloaded AND f.waiting_since IS NOT NULL AND f.next_due_at OPERATOR(pg_catalog.<=) pg_catalog.clock_timestamp() THEN 'no_worker_slot'
             WHEN f.next_due_at OPERATOR(pg_catalog.<=) pg_catalog.clock_timestamp() OR f.next_due_at IS NULL THEN 'due'
             ELSE 'scheduled'
        END AS reason
    FROM facts f
)
SELECT g.job_id, g.kind, g.object, g.object_name,
       CASE WHEN g.reason OPERATOR(pg_catalog.=) ANY ('{crashed,object_gone,owner_cannot_log_in,no_launcher}'::pg_catalog.text[]) THEN 'critical'
            WHEN g.reason OPERATOR(pg_catalog.=) 'failing' AND g.failures OPERATOR(pg_catalog.>=) 10 THEN 'critical'
            WHEN g.reason OPERATOR(pg_catalog.=) ANY ('{failing,paused,switched_off,locked_out,not_scheduled,no_worker_slot}'::pg_catalog.text[]) THEN 'warning'
            ELSE 'ok'
       END AS verdict,
       g.reason,
       CASE
            WHEN g.reason OPERATOR(pg_catalog.=) 'object_gone' THEN pg_catalog.format('DELETE FROM tally.jobs WHERE job_id = %s;', g.job_id)
            WHEN g.reason OPERATOR(pg_catalog.=) 'paused' THEN pg_catalog.format('SELECT tally.resume_job(%s);', g.job_id)
            WHEN g.reason OPERATOR(pg_catalog.=) 'crashed' THEN pg_catalog.format('SELECT tally.resume_job(%s);', g.job_id)
            WHEN g.reason OPERATOR(pg_catalog.=) 'switched_off' THEN pg_catalog.format('ALTER SYSTEM SET %s = on; SELECT pg_reload_conf();',
                                                       CASE WHEN g.enabled THEN 'tally.' OPERATOR(pg_catalog.||) g.kind OPERATOR(pg_catalog.||) '_enabled' ELSE 'tally.enabled' END)
            WHEN g.reason OPERATOR(pg_catalog.=) 'owner_cannot_log_in' THEN pg_catalog.format('ALTER ROLE %I LOGIN;', g.rolname)
            WHEN g.reason OPERATOR(pg_catalog.=) 'failing' AND g.last_sqlstate OPERATOR(pg_catalog.=) '53400' THEN
                pg_catalog.format('SELECT tally.set_max_runtime(%s, %L);', g.job_id, least(g.max_runtime OPERATOR(pg_catalog.*) 2::pg_catalog.float8, interval '20 days'))
            WHEN g.reason OPERATOR(pg_catalog.=) 'failing' THEN pg_catalog.format('SELECT tally.run_job(%s);', g.job_id)
            WHEN g.reason OPERATOR(pg_catalog.=) 'no_worker_slot' THEN 'ALTER SYSTEM SET max_worker_processes = '
                OPERATOR(pg_catalog.||) (pg_catalog.current_setting('max_worker_processes')::integer OPERATOR(pg_catalog.+) 8)::pg_catalog.text
                OPERATOR(pg_catalog.||) '; -- then restart the server'
            WHEN g.reason OPERATOR(pg_catalog.=) 'due' THEN CASE WHEN NOT g.preloaded THEN 'CALL tally.run_due_jobs();' END
       END AS next_sql,
       CASE WHEN g.pid IS NOT NULL THEN 'running'
            WHEN g.reason OPERATOR(pg_catalog.=) ANY ('{paused,crashed,switched_off,object_gone}'::pg_catalog.text[]) THEN 'paused'
            WHEN g.next_due_at OPERATOR(pg_catalog.>) pg_catalog.clock_timestamp() THEN 'waiting'
            ELSE 'due'
       END AS state,
       g.next_due_at, g.running_since, g.pid,
       CASE WHEN g.pid IS NOT NULL THEN pg_catalog.pg_blocking_pids(g.pid) END AS blocked_by,
       g.failures, g.last_sqlstate,
       -- What shared memory alone knows of has no text of its own.
       CASE WHEN NOT pg_catalog.pg_has_role(g.relowner, 'MEMBER') THEN NULL
            WHEN g.last_sqlstate OPERATOR(pg_catalog.=) g.recorded_sqlstate THEN g.last_message
            WHEN g.last_sqlstate OPERATOR(pg_catalog.=) '55P03' THEN 'somebody else''s lock was in the way'
            WHEN g.last_sqlstate OPERATOR(pg_catalog.=) '53400' THEN 'the run took longer than its max_runtime and was ended'
            WHEN g.last_sqlstate OPERATOR(pg_catalog.=) '28000' THEN 'the worker could not connect as the owner of the table; see the server log'
            WHEN g.last_sqlstate IS NOT NULL THEN 'the worker ended without a result; see the server log'
       END AS last_message,
       CASE WHEN g.last_sqlstate OPERATOR(pg_catalog.=) g.recorded_sqlstate AND pg_catalog.pg_has_role(g.relowner, 'MEMBER') THEN g.last_hint END AS last_hint,
       g.last_run_at, g.last_success_at, g.last_duration, g.p99 AS p99_duration
FROM judged g
UNION ALL
SELECT NULL, 'server', NULL, NULL,
       CASE WHEN s.next_sql IS NOT NULL OR s.preloaded AND s.launcher_pid IS NULL THEN 'critical'
            WHEN NOT s.enabled OR s.waiting_since IS NOT NULL THEN 'warning'
            ELSE 'ok'
       END,
       pg_catalog.format('%s; library %s, SQL %s; %s of %s workers in use, max_worker_processes %s%s', s.mode, s.library_version, s.extversion,
                         s.workers_used, s.workers_max, s.slots,
                         CASE WHEN s.waiting_since IS NOT NULL THEN ' and none free' ELSE '' END),
       CASE WHEN s.next_sql IS NOT NULL THEN s.next_sql
            WHEN NOT s.enabled THEN 'ALTER SYSTEM SET tally.enabled = on; SELECT pg_reload_conf();'
            WHEN NOT s.preloaded THEN 'ALTER SYSTEM SET shared_preload_libraries = tally; -- adds to what is there; then restart the server'
       END,
       s.mode, NULL, NULL, s.launcher_pid, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
FROM server s;
COMMENT ON VIEW tally.status IS 'one row per job that you may see, and one for the server: is it well, and if not, what to do';
COMMENT ON COLUMN tally.status.job_id IS 'number of the job; null in the row of the server';
COMMENT ON COLUMN tally.status.kind IS 'refresh, premake, retention, conversion, or server';
COMMENT ON COLUMN tally.status.object IS 'the table that the job works for';
COMMENT ON COLUMN tally.status.object_name IS 'the name of the table when the job was made';
COMMENT ON COLUMN tally.status.verdict IS 'ok, warning or critical';
COMMENT ON COLUMN tally.status.reason IS 'why: running, scheduled, due, failing, locked_out, paused, crashed, switched_off, no_worker_slot, no_launcher, not_scheduled, owner_cannot_log_in, object_gone';
COMMENT ON COLUMN tally.status.next_sql IS 'a statement that takes the next step, null if none is needed';
COMMENT ON COLUMN tally.status.state IS 'running, due, waiting or paused; for the server: preloaded or on demand';
COMMENT ON COLUMN tally.status.next_due_at IS 'when the job is due next';
COMMENT ON COLUMN tally.status.running_since IS 'start of the run that is under way';
COMMENT ON COLUMN tally.status.pid IS 'process that runs the job; for the server: the launcher';
COMMENT ON COLUMN tally.status.blocked_by IS 'processes whose locks the run waits for';
COMMENT ON COLUMN tally.status.failures IS 'failures in a row';
COMMENT ON COLUMN tally.status.last_sqlstate IS 'SQLSTATE of the last run, null after a success';
COMMENT ON COLUMN tally.status.last_message IS 'error message of the last run, for members of the owner';
COMMENT ON COLUMN tally.status.last_hint IS 'hint of that error, for members of the owner';
COMMENT ON COLUMN tally.status.last_run_at IS 'start of the last run';
COMMENT ON COLUMN tally.status.last_success_at IS 'start of the last run that succeeded';
COMMENT ON COLUMN tally.status.last_duration IS 'duration of the last run';
COMMENT ON COLUMN tally.status.p99_duration IS '99 % of the recorded runs took no longer';
REVOKE ALL ON tally.status FROM PUBLIC;
GRANT SELECT ON tally.status TO PUBLIC;
