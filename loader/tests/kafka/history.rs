//! Every claim and every advance of a test's database, recorded by a trigger, and what they must look like at the end.

use postgres::Client;
use tally_server_tests::cluster::Cluster;

use crate::broker;
use crate::pipeline::{Pipeline, World};

/// A row for each change of a position or an epoch, in the transaction that made it. The lock on the row makes the numbers of one part
/// rise in the order of the commits.
const RECORDER: &str = "
    CREATE TABLE public.history (seq bigserial PRIMARY KEY, source int, part int, was_at bigint, is_at bigint, was_epoch bigint, epoch bigint,
      rows bigint, dead bigint, transaction xid8 DEFAULT pg_current_xact_id());
    CREATE FUNCTION public.record_history() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
      INSERT INTO public.history (source, part, was_at, is_at, was_epoch, epoch, rows, dead)
        VALUES (NEW.source_id, NEW.part, OLD.next_offset, NEW.next_offset, OLD.epoch, NEW.epoch,
                NEW.rows_total - OLD.rows_total, NEW.dead_total - OLD.dead_total);
      RETURN NULL;
    END $$;
    CREATE TRIGGER history AFTER UPDATE ON tally.loader_offsets FOR EACH ROW
      WHEN ((OLD.next_offset, OLD.epoch) IS DISTINCT FROM (NEW.next_offset, NEW.epoch))
      EXECUTE FUNCTION public.record_history()";

/// What each must not find: (meaning, query).
const FAULTS: &[(&str, &str)] = &[
    (
        "ranges that do not adjoin, or epochs that jump",
        "SELECT part, seq, was_at, last_at, was_epoch, last_epoch FROM (
           SELECT *, lag(is_at, 1, 0) OVER before AS last_at, lag(epoch, 1, 0) OVER before AS last_epoch
             FROM public.history WINDOW before AS (PARTITION BY source, part ORDER BY seq)) h
          WHERE (was_at, was_epoch) IS DISTINCT FROM (last_at, last_epoch)",
    ),
    (
        "claims that move a position or raise an epoch by more than 1",
        "SELECT part, seq, was_at, is_at, was_epoch, epoch FROM public.history
          WHERE epoch <> was_epoch AND (epoch <> was_epoch + 1 OR is_at <> was_at)",
    ),
    (
        "advances that go back",
        "SELECT part, seq, was_at, is_at, was_epoch, epoch FROM public.history WHERE epoch = was_epoch AND is_at <= was_at",
    ),
    (
        "rows outside of the range that their transaction advanced over",
        "SELECT e.part, e.message_offset, h.was_at, h.is_at, h.seq, h.epoch FROM public.events e
           LEFT JOIN public.history h ON h.part = e.part AND h.transaction = e.written_by
            AND e.message_offset >= h.was_at AND e.message_offset < h.is_at
          WHERE h.seq IS NULL",
    ),
    (
        "advances that count other rows than they wrote",
        "SELECT h.part, h.seq, h.was_at, h.is_at, h.rows, e.rows FROM public.history h
           LEFT JOIN (SELECT part, written_by, count(*) AS rows FROM public.events GROUP BY 1, 2) e
             ON e.part = h.part AND e.written_by = h.transaction
          WHERE h.rows <> coalesce(e.rows, 0)",
    ),
    (
        "parts that count other dead letters than there are",
        "SELECT h.part, 0::bigint, 0::bigint, 0::bigint, h.dead, d.dead
           FROM (SELECT part, sum(dead)::bigint AS dead FROM public.history GROUP BY 1) h
           LEFT JOIN (SELECT part, count(*) AS dead FROM tally.dead_letters GROUP BY 1) d USING (part)
          WHERE h.dead <> coalesce(d.dead, 0)",
    ),
];

/// Starts to record; the state tables must be there.
pub fn record(session: &mut Client) {
    session.batch_execute(RECORDER).expect("a trigger on the positions");
}

/// Ranges adjoin without overlap, epochs rise, and each row was written by the transaction that moved the position past it.
pub fn assert_sound(session: &mut Client) {
    for (fault, query) in FAULTS {
        let found = found(session, query);
        assert!(found.is_empty(), "{fault}: {found:?}");
    }
}

/// The part, and what the query tells of it.
type Finding = (i32, Vec<Option<i64>>);

fn found(session: &mut Client, query: &str) -> Vec<Finding> {
    let rows = session.query(query, &[]).expect(query);
    rows.iter().take(5).map(|row| (row.get(0), (1..6).map(|column| row.get(column)).collect())).collect()
}

#[test]
fn every_fault_of_a_history_is_found() {
    let Some(broker) = broker::shared() else { return };
    let pipeline = Pipeline::new(broker, Cluster::shared(), World::Plain);
    pipeline.produce(1_000, 1);
    pipeline.send(&[b"malformed"]);
    pipeline.load_to_end();
    pipeline.produce(1_000, 2);
    pipeline.load_to_end();
    pipeline.assert_exact(1);
    let mut session = pipeline.session();
    let tampering = [
        "DELETE FROM public.history WHERE seq = (SELECT min(seq) FROM public.history)",
        "UPDATE public.history SET is_at = is_at + 1 WHERE epoch <> was_epoch",
        "UPDATE public.history SET is_at = was_at WHERE epoch = was_epoch",
        "UPDATE public.events SET written_by = '3'",
        "INSERT INTO public.events SELECT * FROM public.events",
        "DELETE FROM tally.dead_letters",
    ];
    for ((fault, query), tampering) in FAULTS.iter().zip(tampering) {
        session.batch_execute("BEGIN").expect("a transaction");
        assert!(session.execute(tampering, &[]).expect(tampering) > 0, "{tampering}");
        assert!(!found(&mut session, query).is_empty(), "{fault} after {tampering}");
        session.batch_execute("ROLLBACK").expect("the end of the transaction");
    }
}
