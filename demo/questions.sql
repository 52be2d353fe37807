-- The questions of a dashboard, each answered twice: from rollups (q1 to q5), and from the raw events to compare with (q1_from_raw ..).
-- A window starts and ends at the edges of buckets and says so. Distinct counts come from merged sketches: those of single hours
-- cannot be added, because a device is seen in more than one.

CREATE SCHEMA demo;

CREATE FUNCTION demo.bucket_5min(at timestamptz) RETURNS timestamptz LANGUAGE sql IMMUTABLE
  RETURN date_bin('5 minutes', at, '2000-01-01Z');
COMMENT ON FUNCTION demo.bucket_5min(timestamptz) IS 'start of the 5 minutes that a time is in';

CREATE FUNCTION demo.bucket_1h(at timestamptz) RETURNS timestamptz LANGUAGE sql IMMUTABLE
  RETURN date_bin('1 hour', at, '2000-01-01Z');
COMMENT ON FUNCTION demo.bucket_1h(timestamptz) IS 'start of the hour (UTC) that a time is in';

CREATE FUNCTION demo.midnight(at timestamptz, days integer, zone text) RETURNS timestamptz LANGUAGE sql IMMUTABLE
  RETURN demo.bucket_1h((date_trunc('day', at AT TIME ZONE zone) - make_interval(days => days)) AT TIME ZONE zone);
COMMENT ON FUNCTION demo.midnight(timestamptz, integer, text) IS
  'start of the hour that holds the midnight so many days ago; in most zones that is the midnight';

-- From rollups

CREATE FUNCTION demo.q1(as_of timestamptz DEFAULT now())
  RETURNS TABLE (window_start timestamptz, window_end timestamptz, events bigint, devices bigint, sessions bigint) LANGUAGE sql STABLE AS $$
  SELECT demo.bucket_5min(as_of) - interval '15 minutes', demo.bucket_5min(as_of) + interval '5 minutes', coalesce(sum(r.events), 0)::bigint,
         coalesce(tally.hll_count(tally.hll_union_agg(r.devices)), 0), coalesce(tally.hll_count(tally.hll_union_agg(r.sessions)), 0)
    FROM events_5min r
   WHERE r.bucket >= demo.bucket_5min(as_of) - interval '15 minutes' AND r.bucket < demo.bucket_5min(as_of) + interval '5 minutes' $$;
COMMENT ON FUNCTION demo.q1(timestamptz) IS
  'Q1: what happens now, all tenants: the 15 minutes before the current bucket of 5 minutes, and that bucket';

CREATE FUNCTION demo.q2(as_of timestamptz DEFAULT now(), zone text DEFAULT 'UTC')
  RETURNS TABLE (window_start timestamptz, window_end timestamptz, events bigint, devices bigint, sessions bigint) LANGUAGE sql STABLE AS $$
  SELECT demo.midnight(as_of, 7, zone), demo.bucket_1h(as_of) + interval '1 hour', coalesce(sum(r.events), 0)::bigint,
         coalesce(tally.hll_count(tally.hll_union_agg(r.devices)), 0), coalesce(tally.hll_count(tally.hll_union_agg(r.sessions)), 0)
    FROM events_1h_all r
   WHERE r.bucket >= demo.midnight(as_of, 7, zone) AND r.bucket < demo.bucket_1h(as_of) + interval '1 hour' $$;
COMMENT ON FUNCTION demo.q2(timestamptz, text) IS 'Q2: the week, all tenants: from the midnight 7 days ago to the end of the current hour';

CREATE FUNCTION demo.q3(as_of timestamptz DEFAULT now(), zone text DEFAULT 'UTC')
  RETURNS TABLE (hour timestamptz, events bigint, devices bigint, sessions bigint) LANGUAGE sql STABLE AS $$
  SELECT h.hour, coalesce(r.events, 0), coalesce(r.devices, 0), coalesce(r.sessions, 0)
    FROM generate_series(demo.midnight(as_of, 2, zone), demo.bucket_1h(as_of), interval '1 hour') AS h(hour)
    LEFT JOIN (SELECT bucket, sum(events)::bigint AS events, tally.hll_count(tally.hll_union_agg(devices)) AS devices,
                      tally.hll_count(tally.hll_union_agg(sessions)) AS sessions
                 FROM events_1h_all
                WHERE bucket >= demo.midnight(as_of, 2, zone) AND bucket < demo.bucket_1h(as_of) + interval '1 hour'
                GROUP BY 1) r ON r.bucket = h.hour
   ORDER BY 1 $$;
COMMENT ON FUNCTION demo.q3(timestamptz, text) IS
  'Q3: hourly trend, all tenants, from the midnight 2 days ago; an hour without events is a row of zeros';

CREATE FUNCTION demo.q4(tenant bigint, as_of timestamptz DEFAULT now())
  RETURNS TABLE (window_start timestamptz, window_end timestamptz, events bigint, devices bigint, sessions bigint) LANGUAGE sql STABLE AS $$
  SELECT demo.bucket_5min(as_of) - interval '15 minutes', demo.bucket_5min(as_of) + interval '5 minutes', coalesce(sum(r.events), 0)::bigint,
         coalesce(tally.hll_count(tally.hll_union_agg(r.devices)), 0), coalesce(tally.hll_count(tally.hll_union_agg(r.sessions)), 0)
    FROM events_5min r
   WHERE r.customer_id = tenant
     AND r.bucket >= demo.bucket_5min(as_of) - interval '15 minutes' AND r.bucket < demo.bucket_5min(as_of) + interval '5 minutes' $$;
COMMENT ON FUNCTION demo.q4(bigint, timestamptz) IS 'Q4: Q1 for one tenant';

-- The list is cut here, because topn_bounds orders equal counts by text, where device 10 comes before device 9.
CREATE FUNCTION demo.q5(tenant bigint, as_of timestamptz DEFAULT now())
  RETURNS TABLE (window_start timestamptz, window_end timestamptz, device_id bigint, events bigint, lower bigint, upper bigint,
                 certain boolean) LANGUAGE sql STABLE AS $$
  SELECT demo.bucket_5min(as_of) - interval '30 minutes', demo.bucket_5min(as_of) + interval '5 minutes',
         d.device_id, d.lower, d.lower, d.upper, d.lower >= greatest(d.upper_of_absent, max(d.upper) FILTER (WHERE d.place > 10) OVER ())
    FROM (SELECT b.item::bigint AS device_id, b.lower, b.upper, tally.topn_error(u.devices) AS upper_of_absent,
                 row_number() OVER (ORDER BY b.lower DESC, b.item::bigint) AS place
            FROM (SELECT tally.topn_union_agg(r.active_devices) AS devices
                    FROM events_5min r
                   WHERE r.customer_id = tenant AND r.bucket >= demo.bucket_5min(as_of) - interval '30 minutes'
                     AND r.bucket < demo.bucket_5min(as_of) + interval '5 minutes') u,
                 tally.topn_bounds(u.devices, tally.topn_counters(u.devices)) b) d
   ORDER BY d.place LIMIT 10 $$;
COMMENT ON FUNCTION demo.q5(bigint, timestamptz) IS
  'Q5: the 10 most active devices of one tenant, in the 30 minutes before the current bucket and in that; events is the lower bound';

-- From raw events: the same windows, exact distinct counts

CREATE FUNCTION demo.q1_from_raw(as_of timestamptz DEFAULT now())
  RETURNS TABLE (window_start timestamptz, window_end timestamptz, events bigint, devices bigint, sessions bigint) LANGUAGE sql STABLE AS $$
  SELECT demo.bucket_5min(as_of) - interval '15 minutes', demo.bucket_5min(as_of) + interval '5 minutes',
         count(*), count(DISTINCT device_id), count(DISTINCT session_id)
    FROM events
   WHERE event_time >= demo.bucket_5min(as_of) - interval '15 minutes' AND event_time < demo.bucket_5min(as_of) + interval '5 minutes' $$;
COMMENT ON FUNCTION demo.q1_from_raw(timestamptz) IS 'Q1 from raw events';

CREATE FUNCTION demo.q2_from_raw(as_of timestamptz DEFAULT now(), zone text DEFAULT 'UTC')
  RETURNS TABLE (window_start timestamptz, window_end timestamptz, events bigint, devices bigint, sessions bigint) LANGUAGE sql STABLE AS $$
  SELECT demo.midnight(as_of, 7, zone), demo.bucket_1h(as_of) + interval '1 hour',
         count(*), count(DISTINCT device_id), count(DISTINCT session_id)
    FROM events
   WHERE event_time >= demo.midnight(as_of, 7, zone) AND event_time < demo.bucket_1h(as_of) + interval '1 hour' $$;
COMMENT ON FUNCTION demo.q2_from_raw(timestamptz, text) IS 'Q2 from raw events';

CREATE FUNCTION demo.q3_from_raw(as_of timestamptz DEFAULT now(), zone text DEFAULT 'UTC')
  RETURNS TABLE (hour timestamptz, events bigint, devices bigint, sessions bigint) LANGUAGE sql STABLE AS $$
  SELECT h.hour, coalesce(r.events, 0), coalesce(r.devices, 0), coalesce(r.sessions, 0)
    FROM generate_series(demo.midnight(as_of, 2, zone), demo.bucket_1h(as_of), interval '1 hour') AS h(hour)
    LEFT JOIN (SELECT demo.bucket_1h(event_time) AS bucket, count(*) AS events, count(DISTINCT device_id) AS devices,
                      count(DISTINCT session_id) AS sessions
                 FROM events
                WHERE event_time >= demo.midnight(as_of, 2, zone) AND event_time < demo.bucket_1h(as_of) + interval '1 hour'
                GROUP BY 1) r ON r.bucket = h.hour
   ORDER BY 1 $$;
COMMENT ON FUNCTION demo.q3_from_raw(timestamptz, text) IS 'Q3 from raw events';

CREATE FUNCTION demo.q4_from_raw(tenant bigint, as_of timestamptz DEFAULT now())
  RETURNS TABLE (window_start timestamptz, window_end timestamptz, events bigint, devices bigint, sessions bigint) LANGUAGE sql STABLE AS $$
  SELECT demo.bucket_5min(as_of) - interval '15 minutes', demo.bucket_5min(as_of) + interval '5 minutes',
         count(*), count(DISTINCT device_id), count(DISTINCT session_id)
    FROM events
   WHERE customer_id = tenant
     AND event_time >= demo.bucket_5min(as_of) - interval '15 minutes' AND event_time < demo.bucket_5min(as_of) + interval '5 minutes' $$;
COMMENT ON FUNCTION demo.q4_from_raw(bigint, timestamptz) IS 'Q4 from raw events';

CREATE FUNCTION demo.q5_from_raw(tenant bigint, as_of timestamptz DEFAULT now())
  RETURNS TABLE (window_start timestamptz, window_end timestamptz, device_id bigint, events bigint) LANGUAGE sql STABLE AS $$
  SELECT demo.bucket_5min(as_of) - interval '30 minutes', demo.bucket_5min(as_of) + interval '5 minutes', e.device_id, count(*)
    FROM events e
   WHERE e.customer_id = tenant AND e.device_id IS NOT NULL
     AND e.event_time >= demo.bucket_5min(as_of) - interval '30 minutes' AND e.event_time < demo.bucket_5min(as_of) + interval '5 minutes'
   GROUP BY e.device_id ORDER BY count(*) DESC, e.device_id LIMIT 10 $$;
COMMENT ON FUNCTION demo.q5_from_raw(bigint, timestamptz) IS 'Q5 from raw events: exact counts';
