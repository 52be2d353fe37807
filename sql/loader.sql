-- State of tally-loader: what it has loaded, who loads what, and the messages that could not become rows.
-- This file is the only copy. The extension runs it (extension_sql_file!), and so does `tally-loader init` in a database
-- without the extension; so it creates no schema and has no dump marks (sql/loader_dump.sql, the extension's alone).

CREATE FUNCTION tally.loader_format() RETURNS integer
  LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
  AS 'SELECT 1';
COMMENT ON FUNCTION tally.loader_format() IS
  'format of the state tables of tally-loader; a loader that expects another number does not start';

CREATE TABLE tally.loader_sources (
  source_id   integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  pipeline    text NOT NULL,
  kind        text NOT NULL CHECK (kind OPERATOR(pg_catalog.=) ANY (ARRAY['kafka', 'file'])),
  cluster     text NOT NULL,
  name        text NOT NULL,
  incarnation integer NOT NULL DEFAULT 1,
  topic_id    uuid,
  created_at  timestamptz NOT NULL DEFAULT pg_catalog.now(),
  UNIQUE (pipeline, kind, cluster, name, incarnation)
);
COMMENT ON TABLE tally.loader_sources IS 'topics and files that tally-loader has loaded or is loading';
COMMENT ON COLUMN tally.loader_sources.source_id IS 'number of the source in the other tables';
COMMENT ON COLUMN tally.loader_sources.pipeline IS 'name from the configuration; two pipelines may load one topic into two tables';
COMMENT ON COLUMN tally.loader_sources.kind IS 'kafka or file';
COMMENT ON COLUMN tally.loader_sources.cluster IS 'cluster id of the brokers, or the name given in the configuration; empty for a file';
COMMENT ON COLUMN tally.loader_sources.name IS 'the topic, or the path of the file';
COMMENT ON COLUMN tally.loader_sources.incarnation IS 'grows when a topic was created again under the same name';
COMMENT ON COLUMN tally.loader_sources.topic_id IS 'identity of the topic, where the client library tells it';
COMMENT ON COLUMN tally.loader_sources.created_at IS 'when the source was first loaded';

-- No index on columns that change, so every advance of a position is a HOT update.
CREATE TABLE tally.loader_offsets (
  source_id      integer NOT NULL REFERENCES tally.loader_sources,
  part           integer NOT NULL,
  next_offset    bigint NOT NULL,
  epoch          bigint NOT NULL DEFAULT 0,
  leader_epoch   integer,
  anchor_offset  bigint,
  anchor_time    bigint,
  anchor_hash    bigint,
  rows_total     bigint NOT NULL DEFAULT 0,
  dead_total     bigint NOT NULL DEFAULT 0,
  skipped_total  bigint NOT NULL DEFAULT 0,
  advanced_at    timestamptz,
  stopped_reason text,
  PRIMARY KEY (source_id, part)
) WITH (fillfactor = 50);
COMMENT ON TABLE tally.loader_offsets IS 'position of each part of a source, written in the transaction of the rows';
COMMENT ON COLUMN tally.loader_offsets.source_id IS 'source, see tally.loader_sources';
COMMENT ON COLUMN tally.loader_offsets.part IS 'Kafka partition; 0 for a file';
COMMENT ON COLUMN tally.loader_offsets.next_offset IS 'next offset to read; all before it are rows, dead letters or counted skips';
COMMENT ON COLUMN tally.loader_offsets.epoch IS 'grows with every claim; a loader with an older one cannot commit any more';
COMMENT ON COLUMN tally.loader_offsets.leader_epoch IS 'leader epoch of the last record, where the client library tells it';
COMMENT ON COLUMN tally.loader_offsets.anchor_offset IS 'offset of the last record that was applied, to recognise the topic by; of a file, the end of what anchor_hash is over';
COMMENT ON COLUMN tally.loader_offsets.anchor_time IS 'its timestamp, in milliseconds since 1970';
COMMENT ON COLUMN tally.loader_offsets.anchor_hash IS 'hash of its key and value; of a file, of all that is before anchor_offset (of a Parquet file, of all of it)';
COMMENT ON COLUMN tally.loader_offsets.rows_total IS 'rows loaded from this part';
COMMENT ON COLUMN tally.loader_offsets.dead_total IS 'messages of this part that became dead letters';
COMMENT ON COLUMN tally.loader_offsets.skipped_total IS 'messages of this part that were skipped on purpose, such as tombstones';
COMMENT ON COLUMN tally.loader_offsets.advanced_at IS 'when the position last moved';
COMMENT ON COLUMN tally.loader_offsets.stopped_reason IS 'why the loader stopped this part to protect data; NULL while it is loaded';

CREATE TABLE tally.loader_members (
  member_id          uuid PRIMARY KEY,
  pipeline           text NOT NULL,
  backend_pid        integer NOT NULL,
  backend_started_at timestamptz NOT NULL,
  expires_at         timestamptz NOT NULL,
  version            text NOT NULL,
  host               text
) WITH (fillfactor = 50);
COMMENT ON TABLE tally.loader_members IS 'running loaders; each renews its row every 2 seconds';
COMMENT ON COLUMN tally.loader_members.member_id IS 'random identity of one process of tally-loader';
COMMENT ON COLUMN tally.loader_members.pipeline IS 'the pipeline it works for';
COMMENT ON COLUMN tally.loader_members.backend_pid IS 'process id of its control connection''s backend';
COMMENT ON COLUMN tally.loader_members.backend_started_at IS 'when that backend started, so that a reused process id is not taken for it';
COMMENT ON COLUMN tally.loader_members.expires_at IS 'from then on others may take its parts';
COMMENT ON COLUMN tally.loader_members.version IS 'version of tally-loader';
COMMENT ON COLUMN tally.loader_members.host IS 'name of its machine';

CREATE TABLE tally.loader_leases (
  source_id integer NOT NULL,
  part      integer NOT NULL,
  member_id uuid NOT NULL,
  taken_at  timestamptz NOT NULL DEFAULT pg_catalog.now(),
  PRIMARY KEY (source_id, part)
);
COMMENT ON TABLE tally.loader_leases IS 'which loader works on which part; the epoch in tally.loader_offsets is what protects the data';
COMMENT ON COLUMN tally.loader_leases.source_id IS 'source, see tally.loader_sources';
COMMENT ON COLUMN tally.loader_leases.part IS 'Kafka partition; 0 for a file';
COMMENT ON COLUMN tally.loader_leases.member_id IS 'the loader, see tally.loader_members';
COMMENT ON COLUMN tally.loader_leases.taken_at IS 'when it took the part';

CREATE TABLE tally.dead_letters (
  source_id      integer NOT NULL,
  part           integer NOT NULL,
  message_offset bigint NOT NULL,
  message_time   timestamptz,
  key            bytea,
  value          bytea,
  value_length   bigint,
  headers        jsonb,
  reason         text NOT NULL,
  column_name    text,
  sqlstate       text,
  error          text,
  attempts       integer NOT NULL DEFAULT 1,
  noted_at       timestamptz NOT NULL DEFAULT pg_catalog.now(),
  replayed_at    timestamptz,
  PRIMARY KEY (source_id, part, message_offset)
);
COMMENT ON TABLE tally.dead_letters IS 'messages that could not become rows, kept in the transaction that moved on past them; not readable by PUBLIC';
COMMENT ON COLUMN tally.dead_letters.source_id IS 'source, see tally.loader_sources';
COMMENT ON COLUMN tally.dead_letters.part IS 'Kafka partition; 0 for a file';
COMMENT ON COLUMN tally.dead_letters.message_offset IS 'offset of the message; for a file the start of its line in bytes';
COMMENT ON COLUMN tally.dead_letters.message_time IS 'the broker''s timestamp';
COMMENT ON COLUMN tally.dead_letters.key IS 'key of the message';
COMMENT ON COLUMN tally.dead_letters.value IS 'payload, cut at policy.dead_letters.max_value of the configuration';
COMMENT ON COLUMN tally.dead_letters.value_length IS 'length of the whole payload in bytes; NULL for a tombstone';
COMMENT ON COLUMN tally.dead_letters.headers IS 'headers of the message, as an array of [name, value]';
COMMENT ON COLUMN tally.dead_letters.reason IS 'not_json, not_object, not_csv, missing_required, wrong_type, out_of_range, too_long, bad_text, no_partition, too_large, tombstone, unknown_field or constraint';
COMMENT ON COLUMN tally.dead_letters.column_name IS 'the column, or the unknown field, at fault';
COMMENT ON COLUMN tally.dead_letters.sqlstate IS 'error code, when PostgreSQL refused the row';
COMMENT ON COLUMN tally.dead_letters.error IS 'what is wrong, in words';
COMMENT ON COLUMN tally.dead_letters.attempts IS 'how often the message was tried';
COMMENT ON COLUMN tally.dead_letters.noted_at IS 'when it was first refused';
COMMENT ON COLUMN tally.dead_letters.replayed_at IS 'when a later attempt made it a row; NULL while it is pending';

CREATE TABLE tally.loader_gaps (
  source_id   integer NOT NULL,
  part        integer NOT NULL,
  from_offset bigint NOT NULL,
  to_offset   bigint NOT NULL,
  reason      text NOT NULL,
  noted_at    timestamptz NOT NULL DEFAULT pg_catalog.now()
);
COMMENT ON TABLE tally.loader_gaps IS 'every loss that was declared: offsets the broker had deleted before they were loaded';
COMMENT ON COLUMN tally.loader_gaps.source_id IS 'source, see tally.loader_sources';
COMMENT ON COLUMN tally.loader_gaps.part IS 'Kafka partition; 0 for a file';
COMMENT ON COLUMN tally.loader_gaps.from_offset IS 'first offset that is lost';
COMMENT ON COLUMN tally.loader_gaps.to_offset IS 'first offset behind the gap';
COMMENT ON COLUMN tally.loader_gaps.reason IS 'how it was found';
COMMENT ON COLUMN tally.loader_gaps.noted_at IS 'when it was found';

-- The fence. A plain compare-and-set (UPDATE .. WHERE next_offset = expected) does not wait for a predecessor that is about to
-- write the expected value; so lock first, in order, compare then, update last. It raises, so that no client can overlook it.
CREATE FUNCTION tally.advance_offsets(
    source integer, parts integer[], expected bigint[], next bigint[], epochs bigint[],
    new_rows bigint[], new_dead bigint[], new_skipped bigint[],
    anchor_offsets bigint[], anchor_times bigint[], anchor_hashes bigint[])
  RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  stale text;
BEGIN
  IF current_setting('transaction_isolation') <> 'read committed' THEN
    RAISE 'tally.advance_offsets needs an isolation level of READ COMMITTED'
      USING ERRCODE = '25001', HINT = 'Start the transaction with BEGIN ISOLATION LEVEL READ COMMITTED.';
  END IF;
  PERFORM FROM tally.loader_offsets o WHERE o.source_id = source AND o.part = ANY (parts) ORDER BY o.part FOR UPDATE;
  SELECT string_agg(format('part %s: expected %s/%s, found %s/%s', w.part, w.position, w.epoch, o.next_offset, o.epoch), '; ')
    INTO stale
    FROM unnest(parts, expected, epochs) AS w(part, position, epoch)
    LEFT JOIN tally.loader_offsets o ON o.source_id = source AND o.part = w.part
    WHERE (o.next_offset, o.epoch) IS DISTINCT FROM (w.position, w.epoch);
  IF stale IS NOT NULL THEN
    RAISE 'this loader no longer owns the part' USING ERRCODE = 'TL001', DETAIL = stale;
  END IF;
  UPDATE tally.loader_offsets o
    SET next_offset = w.next_offset, advanced_at = now(),
        rows_total = o.rows_total + w.new_rows, dead_total = o.dead_total + w.new_dead,
        skipped_total = o.skipped_total + w.new_skipped,
        anchor_offset = CASE WHEN w.anchor_offset IS NULL THEN o.anchor_offset ELSE w.anchor_offset END,
        anchor_time = CASE WHEN w.anchor_offset IS NULL THEN o.anchor_time ELSE w.anchor_time END,
        anchor_hash = CASE WHEN w.anchor_offset IS NULL THEN o.anchor_hash ELSE w.anchor_hash END
    FROM unnest(parts, next, new_rows, new_dead, new_skipped, anchor_offsets, anchor_times, anchor_hashes)
      AS w(part, next_offset, new_rows, new_dead, new_skipped, anchor_offset, anchor_time, anchor_hash)
    WHERE o.source_id = source AND o.part = w.part;
END
$$;
COMMENT ON FUNCTION tally.advance_offsets(integer, integer[], bigint[], bigint[], bigint[], bigint[], bigint[], bigint[],
                                          bigint[], bigint[], bigint[]) IS
  'moves the positions of parts in the transaction of their rows; raises TL001 when position or epoch is not the expected one';

CREATE VIEW tally.loader_status AS
  SELECT s.pipeline, s.kind, s.cluster, s.name AS source, s.incarnation, o.part, o.next_offset AS position, o.epoch,
         m.member_id AS owner, m.host AS owner_host, (m.expires_at OPERATOR(pg_catalog.>) pg_catalog.clock_timestamp()) AS owner_alive,
         o.rows_total, o.dead_total, o.skipped_total,
         (SELECT pg_catalog.count(*) FROM tally.dead_letters d
           WHERE d.source_id OPERATOR(pg_catalog.=) o.source_id AND d.part OPERATOR(pg_catalog.=) o.part AND d.replayed_at IS NULL) AS dead_pending,
         o.advanced_at, o.stopped_reason
    FROM tally.loader_offsets o
    JOIN tally.loader_sources s USING (source_id)
    LEFT JOIN tally.loader_leases l USING (source_id, part)
    LEFT JOIN tally.loader_members m ON m.member_id OPERATOR(pg_catalog.=) l.member_id;
COMMENT ON VIEW tally.loader_status IS 'what tally-loader has done and who does it now: one row for each part of each source';
COMMENT ON COLUMN tally.loader_status.pipeline IS 'name from the configuration';
COMMENT ON COLUMN tally.loader_status.kind IS 'kafka or file';
COMMENT ON COLUMN tally.loader_status.cluster IS 'cluster of the topic';
COMMENT ON COLUMN tally.loader_status.source IS 'the topic, or the path of the file';
COMMENT ON COLUMN tally.loader_status.incarnation IS 'grows when a topic was created again under the same name';
COMMENT ON COLUMN tally.loader_status.part IS 'Kafka partition; 0 for a file';
COMMENT ON COLUMN tally.loader_status.position IS 'next offset to read';
COMMENT ON COLUMN tally.loader_status.epoch IS 'number of claims so far';
COMMENT ON COLUMN tally.loader_status.owner IS 'the loader that works on the part; NULL when none does';
COMMENT ON COLUMN tally.loader_status.owner_host IS 'machine of that loader';
COMMENT ON COLUMN tally.loader_status.owner_alive IS 'whether that loader renewed its membership in the last 10 seconds';
COMMENT ON COLUMN tally.loader_status.rows_total IS 'rows loaded from this part';
COMMENT ON COLUMN tally.loader_status.dead_total IS 'messages that became dead letters';
COMMENT ON COLUMN tally.loader_status.skipped_total IS 'messages skipped on purpose';
COMMENT ON COLUMN tally.loader_status.dead_pending IS 'dead letters that no later attempt made a row';
COMMENT ON COLUMN tally.loader_status.advanced_at IS 'when the position last moved';
COMMENT ON COLUMN tally.loader_status.stopped_reason IS 'why the loader stopped this part to protect data';

-- Positions are for everybody to see, payloads are not: dead letters belong to the loader and to whom the owner grants them.
-- A view reads with the rights of its owner, so the status shows their number, not their content. A plain role may call
-- advance_offsets, but without rights on the table it achieves nothing.
GRANT SELECT ON tally.loader_sources, tally.loader_offsets, tally.loader_members, tally.loader_leases, tally.loader_gaps,
  tally.loader_status TO PUBLIC;
-- pg_dump reads the sequence with the sources.
GRANT SELECT ON SEQUENCE tally.loader_sources_source_id_seq TO PUBLIC;
REVOKE ALL ON tally.dead_letters FROM PUBLIC;
REVOKE ALL ON FUNCTION tally.advance_offsets(integer, integer[], bigint[], bigint[], bigint[], bigint[], bigint[], bigint[],
                                             bigint[], bigint[], bigint[]) FROM PUBLIC;
