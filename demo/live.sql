-- What the demonstration shows while it loads; run again and again by demo/run. The first line is for the script.
\pset tuples_only on
\pset format unaligned
SELECT coalesce(sum(rows_total + dead_total + skipped_total), 0) FROM tally.loader_status;
SELECT format('partitions   %s of table %s, for rows from %s to %s', partitions, parent, accepts_from::date, horizon::date)
  FROM tally.partition_status;
SELECT format('rollup lag   %s rows that no refresh has counted yet; ', max(pending_rows))
       || coalesce('last refresh ' || to_char(max(refreshed_at), 'HH24:MI:SS')
                   || format(': %s rows in %s s', max(refreshed_rows), round(extract(epoch FROM max(refresh_duration)), 2)),
                   'none has ended yet')
  FROM tally.rollup_status;
\echo
\pset tuples_only off
\pset footer off
\pset format aligned
SELECT to_char(r.bucket, 'HH24:MI') AS "newest hour", r.customer_id AS tenant, sum(r.events)::bigint AS events,
       tally.hll_count(tally.hll_union_agg(r.devices)) AS devices, tally.hll_count(tally.hll_union_agg(r.sessions)) AS sessions
  FROM events_1h r
 WHERE r.bucket = (SELECT max(bucket) FROM events_1h_all)
 GROUP BY r.bucket, r.customer_id ORDER BY 3 DESC, 2 LIMIT 5;
