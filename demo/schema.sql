-- The table of the demonstration, its partitions and its rollups. A web shop is a customer, also called a tenant.

CREATE TABLE events (
  event_id bigserial,                                -- a label only
  event_time timestamptz NOT NULL,                   -- when it happened
  customer_id bigint NOT NULL,                       -- the tenant
  event_type text, country text, browser text,       -- open value sets; NULL is a group of its own
  device_id bigint, session_id bigint                -- NULL: the event counts, no device or session does
) PARTITION BY RANGE (event_time);

-- A set has no gaps, so old events are in fewer, wider partitions: demo/run sets the width.
SELECT tally.partition_by_time('events', :'width');

-- 1000 counters: the most active devices of a tenant are exact up to so many of them, and a group stores only those that it has seen.
SELECT tally.create_rollup('events_5min', $$
  SELECT date_bin('5 minutes', event_time, '2000-01-01Z') AS bucket, customer_id, event_type, country, browser,
         count(*) AS events, tally.hll_agg(device_id) AS devices, tally.hll_agg(session_id) AS sessions,
         tally.topn_agg(device_id, 1000) AS active_devices
  FROM events GROUP BY 1, 2, 3, 4, 5 $$,
  refresh_interval => '1 second');

SELECT tally.create_rollup('events_1h', $$
  SELECT date_bin('1 hour', event_time, '2000-01-01Z') AS bucket, customer_id, event_type, country, browser,
         count(*) AS events, tally.hll_agg(device_id) AS devices, tally.hll_agg(session_id) AS sessions
  FROM events GROUP BY 1, 2, 3, 4, 5 $$,
  refresh_interval => '1 second');

SELECT tally.create_rollup('events_1h_all', $$
  SELECT date_bin('1 hour', event_time, '2000-01-01Z') AS bucket, event_type, country, browser,
         count(*) AS events, tally.hll_agg(device_id) AS devices, tally.hll_agg(session_id) AS sessions
  FROM events GROUP BY 1, 2, 3, 4 $$,
  refresh_interval => '1 second');
