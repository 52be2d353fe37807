-- What the demonstration prints at its end. Variables: messages (how many were in the topic), truth (facts about generated events, or
-- empty), tolerance (of distinct counts, in percent). Leaves its verdicts in the table demo.checks.
\set QUIET on
\pset footer off
\pset linestyle unicode
SET client_min_messages = warning;

SELECT max(event_time) AS as_of FROM events \gset
SELECT customer_id AS tenant FROM events_1h GROUP BY 1 ORDER BY sum(events) DESC, 1 LIMIT 1 \gset

\echo
\echo 'Q1: what happens now, all tenants'
SELECT * FROM demo.q1(:'as_of');
\echo 'Q2: the week, all tenants'
SELECT * FROM demo.q2(:'as_of');
\echo 'Q3: hourly trend, all tenants (its last six hours)'
SELECT * FROM (SELECT * FROM demo.q3(:'as_of') ORDER BY hour DESC LIMIT 6) q3 ORDER BY hour;
\echo 'Q4: what happens now, tenant' :tenant
SELECT * FROM demo.q4(:tenant, :'as_of');
\echo 'Q5: most active devices, tenant' :tenant
SELECT * FROM demo.q5(:tenant, :'as_of');

-- Each question three times from rollups and three times from raw events; the fastest counts.
CREATE TABLE demo.answers (question text, from_raw boolean, milliseconds numeric, hour timestamptz, events bigint, devices bigint, sessions bigint);
CREATE PROCEDURE demo.ask(question text, arguments text) LANGUAGE plpgsql AS $$
DECLARE
  started timestamptz;
  fastest numeric;
  answer text := CASE question WHEN 'q3' THEN 'hour, events, devices, sessions'
                               WHEN 'q5' THEN 'max(window_end), sum(events), NULL, NULL'
                               ELSE 'window_end, events, devices, sessions' END;
BEGIN
  FOR side IN 0..1 LOOP
    fastest := NULL;
    FOR attempt IN 1..3 LOOP
      DELETE FROM demo.answers a WHERE a.question = ask.question AND a.from_raw = (side = 1);
      started := clock_timestamp();
      EXECUTE format('INSERT INTO demo.answers (question, from_raw, hour, events, devices, sessions)
                        SELECT %L, %L, %s FROM demo.%s(%s)',
                     question, side = 1, answer, question || CASE side WHEN 1 THEN '_from_raw' ELSE '' END, arguments);
      fastest := least(fastest, extract(epoch FROM clock_timestamp() - started) * 1000);
    END LOOP;
    UPDATE demo.answers a SET milliseconds = fastest WHERE a.question = ask.question AND a.from_raw = (side = 1);
  END LOOP;
END $$;
CALL demo.ask('q1', format('%L', :'as_of'));
CALL demo.ask('q2', format('%L', :'as_of'));
CALL demo.ask('q3', format('%L', :'as_of'));
CALL demo.ask('q4', format('%s, %L', :tenant, :'as_of'));
CALL demo.ask('q5', format('%s, %L', :tenant, :'as_of'));

CREATE VIEW demo.comparison AS
  SELECT r.question, r.milliseconds AS rollup_ms, w.milliseconds AS raw_ms, r.events AS rollup_events, w.events AS raw_events,
         r.devices AS estimated_devices, w.devices AS exact_devices, r.sessions AS estimated_sessions, w.sessions AS exact_sessions,
         100 * abs(r.devices - w.devices) / nullif(w.devices, 0)::numeric AS device_error,
         100 * abs(r.sessions - w.sessions) / nullif(w.sessions, 0)::numeric AS session_error
    FROM demo.answers r FULL JOIN demo.answers w ON w.question = r.question AND w.hour = r.hour AND w.from_raw
   WHERE NOT r.from_raw;

\echo 'The same from raw events: times, events (q5: of its ten devices), and distinct counts by sketch and exactly'
SELECT question, round(min(rollup_ms), 1) AS "rollup ms", round(min(raw_ms), 1) AS "raw ms",
       round(min(raw_ms) / min(rollup_ms), 1) AS "faster, x",
       sum(rollup_events) AS "events", sum(raw_events) AS "events, raw",
       CASE WHEN count(*) = 1 THEN max(estimated_devices) END AS "devices", CASE WHEN count(*) = 1 THEN max(exact_devices) END AS "exact",
       round(max(device_error), 2) AS "off %",
       CASE WHEN count(*) = 1 THEN max(estimated_sessions) END AS "sessions", CASE WHEN count(*) = 1 THEN max(exact_sessions) END AS "exact",
       round(max(session_error), 2) AS "off %"
  FROM demo.comparison GROUP BY question ORDER BY question;

\echo 'All events'
CREATE VIEW demo.totals AS
  SELECT count(*) AS events, count(DISTINCT customer_id) AS tenants, count(DISTINCT device_id) AS devices, count(DISTINCT session_id) AS sessions
    FROM events;
CREATE VIEW demo.tenants AS
  SELECT customer_id, count(*) AS events, count(DISTINCT device_id) AS devices, count(DISTINCT session_id) AS sessions FROM events GROUP BY 1;
CREATE TABLE demo.counted AS
  SELECT t.*, e.estimated_devices, e.estimated_sessions, a.*
    FROM demo.totals t,
         (SELECT tally.hll_count(tally.hll_union_agg(devices)) AS estimated_devices,
                 tally.hll_count(tally.hll_union_agg(sessions)) AS estimated_sessions FROM events_1h_all) e,
         (SELECT avg(events) AS tenant_events, avg(devices) AS tenant_devices, avg(sessions) AS tenant_sessions FROM demo.tenants) a;
SELECT events, tenants, devices AS "devices, exact", estimated_devices AS "sketch",
       round(100 * abs(estimated_devices - devices) / nullif(devices, 0)::numeric, 2) AS "off %",
       sessions AS "sessions, exact", estimated_sessions AS "sketch",
       round(100 * abs(estimated_sessions - sessions) / nullif(sessions, 0)::numeric, 2) AS "off %"
  FROM demo.counted;
SELECT round(tenant_events) AS "events per tenant", round(tenant_devices) AS "devices per tenant", round(tenant_sessions) AS "sessions per tenant"
  FROM demo.counted;

\echo 'Rollups'
ANALYZE events;
SELECT rollup, pg_size_pretty(stored_bytes) AS stored, pending_rows AS "pending rows", refreshed_rows AS "last refresh, rows",
       round(extract(epoch FROM refresh_duration), 2) AS "seconds"
  FROM tally.rollup_status ORDER BY rollup::text;

-- The checks: each an expectation, what was found, and whether they are equal.
CREATE TABLE demo.checks (number int GENERATED ALWAYS AS IDENTITY, "check" text, expected text, found text, ok boolean);
CREATE FUNCTION demo.expect(name text, expected numeric, found numeric) RETURNS void LANGUAGE sql AS $$
  INSERT INTO demo.checks ("check", expected, found, ok)
    VALUES (name, trim_scale(round(expected, 3))::text, trim_scale(round(found, 3))::text, coalesce(abs(expected - found) < 0.000001, false)) $$;

\o /dev/null
SELECT demo.expect('messages in the topic = rows + dead letters', :messages,
                (SELECT sum(rows_total + dead_total)::bigint FROM tally.loader_status));
SELECT demo.expect('rows that the loader counted = rows in the table', (SELECT sum(rows_total)::bigint FROM tally.loader_status),
                (SELECT events FROM demo.counted));
-- A list of devices is the same however its rows came together as long as its counts are exact; beyond that its total still is.
CREATE PROCEDURE demo.check_rollups() LANGUAGE plpgsql AS $$
DECLARE
  entry record;
  compared text;
  total bigint;
  different bigint;
BEGIN
  FOR entry IN SELECT rollup, definition FROM tally.rollups ORDER BY rollup::text LOOP
    EXECUTE format('SELECT sum(events)::bigint FROM %s', entry.rollup) INTO total;
    PERFORM demo.expect(format('events of %s = rows in the table', entry.rollup), (SELECT events FROM demo.counted), total);
    SELECT string_agg(CASE atttypid WHEN 'tally.topn'::regtype
                        THEN format('CASE tally.topn_error(%1$I) WHEN 0 THEN %1$I::text ELSE tally.topn_total(%1$I)::text END', attname)
                        ELSE quote_ident(attname) END, ', ' ORDER BY attnum)
      INTO compared FROM pg_attribute WHERE attrelid = entry.rollup AND attnum > 0;
    EXECUTE format('WITH r AS (SELECT %1$s FROM %2$s), q AS (SELECT %1$s FROM (%3$s) q)
                    SELECT count(*) FROM ((TABLE r EXCEPT ALL TABLE q) UNION ALL (TABLE q EXCEPT ALL TABLE r)) d',
                   compared, entry.rollup, entry.definition) INTO different;
    PERFORM demo.expect(format('groups of %s that differ from its defining query', entry.rollup), 0, different);
  END LOOP;
END $$;
CALL demo.check_rollups();
SELECT demo.expect('Q1 to Q4: rows whose events differ between rollup and raw', 0,
                (SELECT count(*) FROM demo.comparison WHERE question <> 'q5' AND rollup_events IS DISTINCT FROM raw_events));
SELECT demo.expect(format('Q1 to Q4: distinct counts further off than %s %%', :tolerance), 0,
                (SELECT count(*) FROM demo.comparison WHERE device_error > :tolerance OR session_error > :tolerance));
CREATE TABLE demo.listed AS
  SELECT q.device_id, q.lower, q.upper, q.certain, count(e.event_time) AS true_count
    FROM demo.q5(:tenant, :'as_of') q
    LEFT JOIN events e ON e.customer_id = :tenant AND e.device_id = q.device_id
                      AND e.event_time >= q.window_start AND e.event_time < q.window_end
   GROUP BY 1, 2, 3, 4;
SELECT demo.expect('Q5: devices whose true count is outside the bounds', 0,
                (SELECT count(*) FROM demo.listed WHERE true_count NOT BETWEEN lower AND upper));
SELECT demo.expect('Q5: certain devices that are not in the true first ten', 0,
                (SELECT count(*) FROM demo.listed
                  WHERE certain AND true_count < (SELECT min(events) FROM demo.q5_from_raw(:tenant, :'as_of'))));
-- With more devices than counters, devices of equal counts may be missing from the list.
SELECT coalesce(tally.topn_error(tally.topn_union_agg(active_devices)), 0) = 0 AS exact FROM events_5min
 WHERE customer_id = :tenant AND bucket >= demo.bucket_5min(:'as_of') - interval '30 minutes'
   AND bucket < demo.bucket_5min(:'as_of') + interval '5 minutes' \gset
\if :exact
  SELECT demo.expect('Q5: rows that differ between rollup and raw', 0,
                  (SELECT count(*) FROM demo.q5(:tenant, :'as_of') r
                     FULL JOIN demo.q5_from_raw(:tenant, :'as_of') w USING (window_start, window_end, device_id, events)
                    WHERE r.device_id IS NULL OR w.device_id IS NULL));
\endif
SELECT :'truth' <> '' AS generated \gset
\if :generated
  SELECT demo.expect('generated events', (:'truth'::jsonb ->> 'rows')::numeric, (SELECT events FROM demo.counted));
  SELECT demo.expect('generated tenants', (:'truth'::jsonb #>> '{distinct,customers}')::numeric, (SELECT tenants FROM demo.counted));
  SELECT demo.expect('generated devices', (:'truth'::jsonb #>> '{distinct,devices}')::numeric, (SELECT devices FROM demo.counted));
  SELECT demo.expect('generated sessions', (:'truth'::jsonb #>> '{distinct,sessions}')::numeric, (SELECT sessions FROM demo.counted));
  SELECT demo.expect('mean events per tenant', (:'truth'::jsonb #>> '{per_customer,events,mean}')::numeric, (SELECT tenant_events FROM demo.counted));
  SELECT demo.expect('mean devices per tenant', (:'truth'::jsonb #>> '{per_customer,devices,mean}')::numeric, (SELECT tenant_devices FROM demo.counted));
  SELECT demo.expect('mean sessions per tenant', (:'truth'::jsonb #>> '{per_customer,sessions,mean}')::numeric, (SELECT tenant_sessions FROM demo.counted));
\endif
\o
\echo 'Checks'
SELECT "check", expected, found, CASE WHEN ok THEN 'equal' ELSE 'UNEQUAL' END AS verdict FROM demo.checks ORDER BY number;
