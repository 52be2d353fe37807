//! Whatever happens around it, the loader makes every message a row once.

use std::sync::atomic::Ordering::Relaxed;

use tally_server_tests::cluster::Cluster;

use tally_loader::source::fake::FakeTopic;

use crate::loading::{Loading, PLAIN, produce, wait_until};

const TABLE: &str = "CREATE TABLE public.t (a bigint);";

#[test]
fn each_run_goes_on_where_the_last_one_ended() {
    let loading = Loading::new(3, TABLE);
    for first in [0, 10_000, 20_000] {
        produce(&loading, 3, first, 10_000);
        loading.load().unwrap();
        loading.assert_exactly_once(first + 10_000);
    }
    assert_eq!(loading.texts("SELECT DISTINCT epoch::text FROM tally.loader_offsets"), ["3"]);
    loading.load().unwrap();
    loading.assert_exactly_once(30_000);
}

#[test]
fn an_empty_topic_has_nothing_to_load() {
    let loading = Loading::new(2, TABLE);
    loading.load().unwrap();
    assert_eq!(loading.number("SELECT count(*) FROM tally.loader_offsets"), 2);
}

#[test]
fn markers_at_the_end_move_the_position_without_rows() {
    let loading = Loading::new(1, TABLE);
    produce(&loading, 1, 0, 1);
    loading.topic.skip(0, 2);
    loading.load().unwrap();
    assert_eq!(loading.number("SELECT next_offset FROM tally.loader_offsets"), 3);
    loading.assert_exactly_once(1);
}

#[test]
fn a_stop_commits_what_was_read_and_leaves_nothing_behind() {
    let loading = Loading::new(2, TABLE);
    produce(&loading, 2, 0, 5_000);
    let running = loading.start();
    running.wait_for_rows(1);
    running.stop().unwrap();
    let loaded = loading.number("SELECT count(*) FROM public.t");
    assert_eq!(loading.number("SELECT sum(next_offset)::bigint FROM tally.loader_offsets"), loaded);
    assert_eq!(
        loading
            .number("SELECT (SELECT count(*) FROM tally.loader_leases) + (SELECT count(*) FROM tally.loader_members)"),
        0
    );
    loading.load().unwrap();
    loading.assert_exactly_once(5_000);
}

#[test]
fn killed_backends_neither_lose_nor_double() {
    let mut loading = Loading::new(4, TABLE);
    loading.policy = "batch = { rows = 200, linger = \"5 ms\" }".into();
    let running = loading.start();
    let mut session = loading.session();
    for round in 0..20 {
        produce(&loading, 4, round * 2_000, 2_000);
        running.wait_for_rows((round * 2_000 + 100) as u64);
        // In the middle of a batch, wherever that is: data, control, or both.
        session
            .execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                 WHERE application_name = 'tally-loader test' AND datname = current_database() AND (pid + $1) % 3 <> 0",
                &[&(round as i32)],
            )
            .unwrap();
    }
    wait_until("all rows are there", || loading.number("SELECT count(*) FROM public.t") >= 40_000);
    running.stop().unwrap();
    loading.assert_exactly_once(40_000);
}

#[test]
fn a_crash_of_the_server_neither_loses_nor_doubles() {
    let server = Cluster::start(&[PLAIN[0], ("wal_writer_delay", "10s"), ("wal_writer_flush_after", "0")]);
    let mut loading = Loading::on(&server, 2, TABLE);
    loading.policy = "batch = { rows = 500, linger = \"5 ms\" }".into();
    let running = loading.start();
    for round in 0..4 {
        produce(&loading, 2, round * 5_000, 5_000);
        running.wait_for_rows((round * 5_000 + 500) as u64);
        // synchronous_commit is off: rows and positions of the last moments are lost together.
        server.crash();
    }
    wait_until("all rows are there", || loading.number("SELECT count(*) FROM public.t") >= 20_000);
    running.stop().unwrap();
    assert_eq!(loading.number("SELECT count(*) FROM public.t"), 20_000);
    assert_eq!(loading.number("SELECT count(DISTINCT a) FROM public.t"), 20_000);
}

/// No message follows, whose batch would notice it.
#[test]
fn an_idle_loader_reads_again_what_a_crash_has_lost() {
    let server = Cluster::start(&[PLAIN[0], ("wal_writer_delay", "10s"), ("wal_writer_flush_after", "0")]);
    let loading = Loading::on(&server, 1, TABLE);
    let running = loading.start();
    for round in 1..=4 {
        produce(&loading, 1, (round - 1) * 100, 100);
        wait_until("all rows are there", || loading.number("SELECT count(*) FROM public.t") == round * 100);
        server.crash();
        wait_until("all rows are there again", || loading.number("SELECT count(*) FROM public.t") == round * 100);
    }
    running.stop().unwrap();
    loading.assert_exactly_once(400);
}

#[test]
fn an_outage_of_the_brokers_is_waited_out() {
    let loading = Loading::new(1, TABLE);
    produce(&loading, 1, 0, 100);
    let running = loading.start();
    running.wait_for_rows(100);
    loading.topic.set_unreachable(true);
    wait_until("the outage is seen", || !running.metrics.kafka_up.load(Relaxed));
    produce(&loading, 1, 100, 100);
    loading.topic.set_unreachable(false);
    running.wait_for_rows(200);
    running.stop().unwrap();
    loading.assert_exactly_once(200);
}

#[test]
fn brokers_that_never_answer_end_the_start() {
    let mut loading = Loading::new(1, TABLE);
    loading.policy = "timeouts = { start = \"300 ms\" }".into();
    loading.topic.set_unreachable(true);
    let error = loading.load().unwrap_err();
    assert_eq!(error.code(), 4, "{error}");
}

#[test]
fn offset_gap_stops_or_is_recorded() {
    let mut loading = Loading::new(2, TABLE);
    produce(&loading, 2, 0, 100);
    // The first start is at the earliest offset there is, which is no gap.
    loading.topic.delete_before(1, 10);
    loading.load().unwrap();
    assert_eq!(loading.number("SELECT count(*) FROM public.t"), 90);
    // Retention overtakes the loader in part 1.
    produce(&loading, 2, 100, 100);
    loading.topic.delete_before(1, 80);
    let error = loading.load().unwrap_err();
    assert_eq!(error.code(), 5, "{error}");
    assert!(error.to_string().contains("offsets 50 to 79 were deleted"), "{error}");
    let stopped = "SELECT part || ' ' || stopped_reason FROM tally.loader_status WHERE stopped_reason IS NOT NULL";
    assert_eq!(loading.texts(stopped), ["1 offsets 50 to 79 were deleted before they were loaded"]);
    assert_eq!(loading.number("SELECT count(*) FROM public.t"), 140, "part 0 went on");
    loading.policy = "on = { gap = \"record\" }".into();
    loading.load().unwrap();
    assert_eq!(
        loading.texts("SELECT format('%s %s-%s', part, from_offset, to_offset) FROM tally.loader_gaps"),
        ["1 50-80"]
    );
    assert_eq!(loading.number("SELECT count(*) FROM public.t"), 160);
    assert_eq!(loading.number("SELECT next_offset FROM tally.loader_offsets WHERE part = 1"), 100);
    assert_eq!(loading.texts(stopped), [""; 0]);
}

#[test]
fn a_gap_that_opens_while_loading_is_found() {
    let loading = Loading::new(1, TABLE);
    produce(&loading, 1, 0, 10);
    let running = loading.start();
    running.wait_for_rows(10);
    loading.topic.skip(0, 10);
    loading.topic.delete_before(0, 15);
    assert_eq!(running.join().map_err(|error| error.code()), Err(5));
    assert_eq!(loading.number("SELECT next_offset FROM tally.loader_offsets"), 10);
}

#[test]
fn a_topic_that_was_created_again_is_not_taken_for_the_old_one() {
    // Shorter than the position: the end tells.
    let loading = Loading::new(1, TABLE);
    produce(&loading, 1, 0, 100);
    loading.load().unwrap();
    loading.topic.recreate();
    produce(&loading, 1, 100, 50);
    let error = loading.load().unwrap_err();
    assert_eq!(error.code(), 5, "{error}");
    // As long as before or longer: the last record tells.
    produce(&loading, 1, 150, 100);
    let error = loading.load().unwrap_err();
    assert_eq!(error.code(), 5, "{error}");
    assert_eq!(loading.number("SELECT count(*) FROM public.t"), 100);
}

/// The reader notices nothing: there is no message at its position, or one like any other.
#[test]
fn a_topic_that_is_created_again_while_it_is_loaded_is_noticed() {
    for messages in [100, 150] {
        let mut loading = Loading::new(2, TABLE);
        loading.policy = "timeouts = { anchor_check = \"100 ms\" }".into();
        produce(&loading, 2, 0, 100);
        let running = loading.start();
        running.wait_for_rows(100);
        let refilled = FakeTopic::new(2);
        for number in 0..messages {
            let value = format!("{{\"a\": {}}}", 1_000 + number);
            refilled.produce(number % 2, None, Some(value.as_bytes()), Some(946_684_800_000));
        }
        loading.topic.replace(&refilled);
        let error = running.join().unwrap_err();
        assert_eq!(error.code(), 5, "{error}");
        assert!(error.to_string().contains("another record is where the last loaded one was"), "{error}");
        assert_eq!(
            loading.number("SELECT count(*) FROM tally.loader_offsets WHERE stopped_reason LIKE 'another record%'"),
            2
        );
        assert_eq!(loading.number("SELECT count(*) FROM public.t WHERE a < 1000"), 100);
    }
}

#[test]
fn a_topic_that_stays_the_same_is_loaded_on_through_many_checks() {
    let mut loading = Loading::new(2, TABLE);
    loading.policy = "timeouts = { anchor_check = \"100 ms\" }".into();
    let running = loading.start();
    for round in 0..20 {
        produce(&loading, 2, round * 100, 100);
        running.wait_for_rows((round as u64 + 1) * 100);
        let looks = loading.topic.looks();
        wait_until("it has been looked at", || loading.topic.looks() > looks + 1);
        // What was looked at before is gone, and proves nothing.
        loading.topic.delete_before((round % 2) as i32, (round + 1) * 50 - 1);
    }
    running.stop().unwrap();
    loading.assert_exactly_once(2_000);
}

#[test]
fn a_changed_table_is_read_again() {
    let loading = Loading::new(1, TABLE);
    produce(&loading, 1, 0, 10);
    let running = loading.start();
    running.wait_for_rows(10);
    let mut session = loading.session();
    for change in
        ["ADD COLUMN b text", "ALTER COLUMN a TYPE numeric", "DROP COLUMN b", "ADD COLUMN c text DEFAULT 'none'"]
    {
        session.batch_execute(&format!("ALTER TABLE public.t {change}")).unwrap();
        let first = running.metrics.rows.load(Relaxed) as i64;
        for number in first..first + 10 {
            loading.produce(0, &format!("{{\"a\": {number}, \"b\": \"x\"}}"));
        }
        running.wait_for_rows(first as u64 + 10);
    }
    running.stop().unwrap();
    loading.assert_exactly_once(50);
    assert_eq!(loading.number("SELECT count(*) FROM public.t WHERE c = 'none'"), 50);
    assert_eq!(loading.number("SELECT count(*) FROM tally.dead_letters"), 0);
}

#[test]
fn labels_that_an_enum_gains_or_changes_are_known_at_once() {
    let loading = Loading::new(
        1,
        "CREATE TYPE public.mood AS ENUM ('sad', 'ok'); CREATE DOMAIN public.feeling AS public.mood;
         CREATE TABLE public.t (a int, m public.mood, d public.feeling[]);",
    );
    let running = loading.start();
    let mut session = loading.session();
    let load = |label: &str| {
        let rows = running.metrics.rows.load(Relaxed);
        loading.produce(0, &format!("{{\"a\": {rows}, \"m\": \"{label}\", \"d\": [\"{label}\"]}}"));
        running.wait_for_rows(rows + 1);
    };
    load("sad");
    // Without the labels in the fingerprint this one would be a dead letter of the encoder ..
    session.batch_execute("ALTER TYPE public.mood ADD VALUE 'happy'").unwrap();
    load("happy");
    // .. and after this one, rows with the old label would be refused by the server, all of them.
    session.batch_execute("ALTER TYPE public.mood RENAME VALUE 'ok' TO 'fine'").unwrap();
    load("fine");
    loading.produce(0, r#"{"m": "ok"}"#);
    load("sad");
    running.stop().unwrap();
    loading.assert_exactly_once(4);
    let letters = "SELECT concat_ws(' ', reason, column_name, error) FROM tally.dead_letters";
    assert_eq!(loading.texts(letters), ["wrong_type m expected a string that is a label of the enum"]);
    assert_eq!(loading.number("SELECT count(*) FROM public.t WHERE d = ARRAY[m]::public.feeling[]"), 4);
}

#[test]
fn bigint_bytes_never_become_a_time() {
    // Binary COPY carries no types: without the fingerprint 1,000,000 would become 2000-01-01 00:00:01.
    let loading = Loading::new(1, TABLE);
    produce(&loading, 1, 0, 10);
    let running = loading.start();
    running.wait_for_rows(10);
    let change = "ALTER TABLE public.t ALTER COLUMN a TYPE timestamptz USING to_timestamp(a)";
    loading.session().batch_execute(change).unwrap();
    loading.produce(0, r#"{"a": 1000000}"#);
    running.wait_for_rows(11);
    running.stop().unwrap();
    // Read again, the column takes the number for milliseconds since 1970.
    assert_eq!(loading.texts("SELECT max(a)::text FROM public.t"), ["1970-01-01 00:16:40+00"]);
}

#[test]
fn a_new_leaf_takes_rows_at_once_and_a_dropped_one_costs_only_its_rows() {
    let loading = Loading::new(
        1,
        "CREATE TABLE public.t (a bigint, event_time timestamptz NOT NULL) PARTITION BY RANGE (event_time);
         CREATE TABLE public.d1 PARTITION OF public.t FOR VALUES FROM ('2000-01-01') TO ('2000-01-02');",
    );
    let running = loading.start();
    let day = |number: i64, day: u32| {
        loading.produce(0, &format!("{{\"a\": {number}, \"event_time\": \"2000-01-0{day}T12:00:00Z\"}}"))
    };
    day(0, 1);
    running.wait_for_rows(1);
    let mut session = loading.session();
    session
        .batch_execute("CREATE TABLE public.d2 PARTITION OF public.t FOR VALUES FROM ('2000-01-02') TO ('2000-01-03')")
        .unwrap();
    day(1, 2);
    running.wait_for_rows(2);
    session.batch_execute("DROP TABLE public.d1").unwrap();
    for number in 0..100 {
        day(number, if number % 2 == 0 { 1 } else { 2 });
    }
    running.wait_for_rows(52);
    running.stop().unwrap();
    assert_eq!(loading.number("SELECT count(*) FROM public.t"), 51);
    assert_eq!(loading.texts("SELECT DISTINCT reason FROM tally.dead_letters"), ["no_partition"]);
    assert_eq!(loading.number("SELECT count(*) FROM tally.dead_letters"), 50);
}

#[test]
fn loaders_share_the_parts_and_take_over_from_each_other() {
    let mut loading = Loading::new(4, TABLE);
    loading.policy = "batch = { linger = \"5 ms\" }".into();
    let first = loading.start();
    produce(&loading, 4, 0, 1_000);
    first.wait_for_rows(1_000);
    let second = loading.start();
    let shares = || {
        let mut shares = loading.texts("SELECT count(*)::text FROM tally.loader_leases GROUP BY member_id ORDER BY 1");
        shares.dedup();
        shares
    };
    wait_until("each has two parts", || shares() == ["2"]);
    produce(&loading, 4, 1_000, 1_000);
    wait_until("both have loaded", || loading.number("SELECT count(*) FROM public.t") == 2_000);
    first.stop().unwrap();
    wait_until("the other has all parts", || shares() == ["4"]);
    produce(&loading, 4, 2_000, 1_000);
    wait_until("it has loaded them", || loading.number("SELECT count(*) FROM public.t") == 3_000);
    second.stop().unwrap();
    loading.assert_exactly_once(3_000);
}

#[test]
fn a_revoked_right_pauses_and_loses_nothing() {
    let loading = Loading::new(1, TABLE);
    produce(&loading, 1, 0, 10);
    let running = loading.start();
    running.wait_for_rows(10);
    let mut session = loading.session();
    session.batch_execute("ALTER TABLE tally.loader_offsets RENAME TO away").unwrap();
    produce(&loading, 1, 10, 10);
    wait_until("the failure is seen", || !running.metrics.postgres_up.load(Relaxed));
    session.batch_execute("ALTER TABLE tally.away RENAME TO loader_offsets").unwrap();
    running.stop().unwrap();
    loading.load().unwrap();
    loading.assert_exactly_once(20);
}
