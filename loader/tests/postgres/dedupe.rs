//! What a producer has sent twice is one row and one counted skip, also across restarts.

use std::sync::atomic::Ordering::Relaxed;

use crate::loading::{Loading, wait_until};

const TABLE: &str = "CREATE TABLE public.t (a bigint, event_id text);";
const MINUTE: i64 = 60_000;

fn loading(parts: i32) -> Loading<'static> {
    let mut loading = Loading::new(parts, TABLE);
    loading.policy = "dedupe = { field = \"event_id\", window = \"10 min\" }".into();
    loading
}

/// Produces a message that the broker stores at a time, in milliseconds.
fn send(loading: &Loading<'_>, part: i32, a: i64, id: &str, time: i64) {
    let value = format!("{{\"a\": {a}, \"event_id\": \"{id}\"}}");
    loading.topic.produce(part, None, Some(value.as_bytes()), Some(946_684_800_000 + time));
}

fn rows(loading: &Loading<'_>) -> Vec<String> {
    loading.texts("SELECT a::text FROM public.t ORDER BY a")
}

/// Position, rows, dead letters and skips of each part.
fn totals(loading: &Loading<'_>) -> Vec<String> {
    loading.texts(
        "SELECT concat_ws(' ', next_offset, rows_total, dead_total, skipped_total) FROM tally.loader_offsets ORDER BY part",
    )
}

#[test]
fn duplicates_within_the_window_are_counted_skips() {
    let loading = loading(2);
    send(&loading, 0, 1, "x", 0);
    send(&loading, 0, 2, "x", 10 * MINUTE);
    send(&loading, 0, 3, "y", 20 * MINUTE);
    send(&loading, 0, 4, "x", 20 * MINUTE + 1);
    send(&loading, 1, 5, "x", 0);
    // Without the field, and no JSON: never duplicates.
    (0..2).for_each(|_| _ = loading.produce(1, "{\"a\": 6}"));
    (0..2).for_each(|_| _ = loading.produce(1, "x"));
    let running = loading.start();
    running.wait_for_rows(6);
    wait_until("all is counted", || running.metrics.dead() == 2);
    assert_eq!(running.metrics.duplicates.load(Relaxed), 1);
    running.stop().unwrap();
    assert_eq!(rows(&loading), ["1", "3", "4", "5", "6", "6"]);
    assert_eq!(totals(&loading), ["4 3 0 1", "5 3 2 0"]);
}

#[test]
fn without_the_option_all_are_rows() {
    let mut loading = loading(1);
    loading.policy.clear();
    (0..3).for_each(|a| send(&loading, 0, a, "x", 0));
    loading.load().unwrap();
    loading.assert_exactly_once(3);
}

#[test]
fn a_restart_fills_the_window_again() {
    let loading = loading(1);
    send(&loading, 0, 1, "old", 0);
    send(&loading, 0, 2, "x", MINUTE);
    send(&loading, 0, 3, "y", 5 * MINUTE);
    loading.load().unwrap();
    send(&loading, 0, 4, "old", 10 * MINUTE + 1);
    send(&loading, 0, 5, "x", 11 * MINUTE);
    loading.load().unwrap();
    // The window begins with a duplicate that was skipped: it counts like the first one.
    send(&loading, 0, 6, "x", 21 * MINUTE);
    send(&loading, 0, 7, "y", 21 * MINUTE);
    loading.load().unwrap();
    assert_eq!(rows(&loading), ["1", "2", "3", "4", "7"]);
    assert_eq!(totals(&loading), ["7 5 0 2"]);
}

#[test]
fn deleted_messages_leave_a_window_that_is_shorter() {
    let loading = loading(1);
    (0..3).for_each(|a| send(&loading, 0, a, &a.to_string(), 0));
    loading.load().unwrap();
    // Retention has taken the first one, and nothing that was not loaded.
    loading.topic.delete_before(0, 1);
    send(&loading, 0, 3, "0", MINUTE);
    send(&loading, 0, 4, "1", MINUTE);
    loading.load().unwrap();
    assert_eq!(rows(&loading), ["0", "1", "2", "3"]);
}

#[test]
fn lost_connections_neither_lose_nor_double() {
    let mut loading = loading(2);
    loading.policy += "\nbatch = { rows = 200, linger = \"5 ms\" }";
    let running = loading.start();
    let mut session = loading.session();
    for round in 0..10 {
        for number in round * 1_000..(round + 1) * 1_000 {
            let part = (number % 2) as i32;
            send(&loading, part, number, &number.to_string(), number);
            // Again at once, and the one of long ago, which lies in an earlier batch.
            send(&loading, part, number, &number.to_string(), number);
            if number >= 600 {
                send(&loading, part, number - 600, &(number - 600).to_string(), number);
            }
        }
        running.wait_for_rows((round * 1_000 + 100) as u64);
        session
            .execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                 WHERE application_name = 'tally-loader test' AND datname = current_database()",
                &[],
            )
            .unwrap();
    }
    wait_until("all rows are there", || loading.number("SELECT count(*) FROM public.t") >= 10_000);
    running.stop().unwrap();
    loading.load().unwrap();
    loading.assert_exactly_once(10_000);
    assert_eq!(loading.number("SELECT sum(skipped_total)::bigint FROM tally.loader_offsets"), 10_000 + 9_400);
}
