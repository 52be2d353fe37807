//! Several connections of one process share the parts like several processes, and its limits hold for all of them together.

use std::sync::atomic::Ordering::Relaxed;

use crate::loading::{Loading, produce, wait_until};

const TABLE: &str = "CREATE TABLE public.t (a bigint);";

fn lanes(number: usize, parts: i32) -> Loading<'static> {
    let mut loading = Loading::new(parts, TABLE);
    loading.lanes = number;
    loading
}

#[test]
fn lanes_share_the_parts() {
    let loading = lanes(3, 6);
    let running = loading.start();
    let shares = || loading.texts("SELECT count(*)::text FROM tally.loader_leases GROUP BY member_id");
    wait_until("each has two parts", || shares() == ["2", "2", "2"]);
    produce(&loading, 6, 0, 6_000);
    running.wait_for_rows(6_000);
    let positions = running.metrics.render();
    (0..6).for_each(|part| assert!(positions.contains(&format!("part=\"{part}\"")), "no part {part} in {positions}"));
    running.stop().unwrap();
    loading.assert_exactly_once(6_000);
    let left = "SELECT (SELECT count(*) FROM tally.loader_leases) + (SELECT count(*) FROM tally.loader_members)";
    assert_eq!(loading.number(left), 0);
}

#[test]
fn lanes_load_up_to_the_end_and_go_on_next_time() {
    let mut loading = lanes(4, 3);
    for first in [0, 5_000] {
        produce(&loading, 3, first, 5_000);
        loading.load().unwrap();
        loading.assert_exactly_once(first + 5_000);
        loading.lanes = 2;
    }
}

#[test]
fn killed_sessions_of_lanes_neither_lose_nor_double() {
    let mut loading = lanes(2, 4);
    loading.policy = "batch = { rows = 200, linger = \"5 ms\" }".into();
    let running = loading.start();
    let mut session = loading.session();
    // Before its first success a lane would leave.
    let shares = || loading.texts("SELECT count(*)::text FROM tally.loader_leases GROUP BY member_id");
    wait_until("each has two parts", || shares() == ["2", "2"]);
    produce(&loading, 4, 0, 2_000);
    running.wait_for_rows(2_000);
    for round in 1..5 {
        produce(&loading, 4, round * 2_000, 2_000);
        running.wait_for_rows((round * 2_000 + 100) as u64);
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                    WHERE application_name = 'tally-loader test' AND datname = current_database() AND (pid + $1) % 3 <> 0";
        session.execute(end, &[&(round as i32)]).unwrap();
    }
    wait_until("all rows are there", || loading.number("SELECT count(*) FROM public.t") >= 10_000);
    running.stop().unwrap();
    loading.assert_exactly_once(10_000);
}

#[test]
fn the_limit_of_dead_letters_holds_for_all_lanes_together() {
    let mut loading = lanes(2, 2);
    loading.policy =
        "dead_letters = { stop_above_ratio = 1.0, stop_above_per_minute = 100 }\nbatch = { linger = \"5 ms\" }".into();
    let running = loading.start();
    let each = "SELECT count(DISTINCT member_id) FROM tally.loader_leases";
    wait_until("each has a part", || loading.number(each) == 2);
    for number in 0..60 {
        loading.produce(0, &format!("broken {number}"));
    }
    wait_until("these are dead letters", || running.metrics.dead() == 60);
    for number in 0..60 {
        loading.produce(1, &format!("broken {number}"));
    }
    assert_eq!(running.join().map_err(|error| error.code()), Err(6));
}

#[test]
fn a_part_that_is_stopped_leaves_the_other_lanes_alone() {
    let loading = lanes(2, 2);
    produce(&loading, 2, 0, 100);
    loading.load().unwrap();
    produce(&loading, 2, 100, 100);
    loading.topic.delete_before(1, 80);
    let error = loading.load().unwrap_err();
    assert_eq!(error.code(), 5, "{error}");
    assert_eq!(loading.number("SELECT next_offset FROM tally.loader_offsets WHERE part = 0"), 100);
    assert_eq!(loading.number("SELECT next_offset FROM tally.loader_offsets WHERE part = 1"), 50);
}

#[test]
fn memory_is_shared_by_all_lanes() {
    let loading = lanes(4, 4);
    produce(&loading, 4, 0, 200_000);
    let mut session = loading.session();
    session.batch_execute("BEGIN; LOCK public.t IN SHARE MODE").unwrap();
    let running = loading.start();
    let mut before = 0;
    wait_until("what is read stays as it is", || {
        let now = running.metrics.memory.load(Relaxed);
        std::mem::replace(&mut before, now) == now && now > 1 << 20
    });
    assert!(before <= (128 << 20) / 2 + (4 << 20), "{before} bytes");
    session.batch_execute("ROLLBACK").unwrap();
    running.wait_for_rows(200_000);
    running.stop().unwrap();
    loading.assert_exactly_once(200_000);
}
