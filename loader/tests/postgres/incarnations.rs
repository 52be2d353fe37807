//! `policy.on.recreated = "new-incarnation"`: a topic that was created again is loaded from its beginning, each message of it once, and all
//! that was loaded before stays.

use std::thread;

use tally_loader::arguments::ReplayArguments;
use tally_loader::offsets::{self, ClaimError, incarnations};
use tally_loader::source::fake::FakeTopic;
use tally_loader::{postgres as connection, replay, stop};
use uuid::Uuid;

use crate::loading::{Loading, block_on, produce, wait_until};

const TABLE: &str = "CREATE TABLE public.t (a bigint);";
const POLICY: &str = "on = { recreated = \"new-incarnation\" }
     timeouts = { anchor_check = \"100 ms\" }
     batch = { rows = 20, linger = \"5 ms\" }";
/// The time of the messages in the first topic.
const BEFORE: i64 = 946_684_800_000;

/// 100 messages in two parts, which a loader finds.
fn loading() -> Loading<'static> {
    let mut loading = Loading::new(2, TABLE);
    loading.policy = POLICY.into();
    produce(&loading, 2, 0, 100);
    loading
}

/// Another topic of this name with so many messages, which are numbered from 1,000 on.
fn recreate(loading: &Loading<'_>, messages: i32, time: i64) {
    let other = FakeTopic::new(2);
    for number in 0..messages {
        let value = format!("{{\"a\": {}}}", 1_000 + number);
        other.produce(number % 2, None, Some(value.as_bytes()), Some(time));
    }
    loading.topic.replace(&other);
}

fn rows(loading: &Loading<'_>) -> i64 {
    loading.number("SELECT count(*) FROM public.t")
}

/// All of both topics is there once, and the state tells them apart.
fn assert_both(loading: &Loading<'_>, messages: i64) {
    let found = "SELECT concat_ws(' ', count(*) FILTER (WHERE a < 1000), count(DISTINCT a) FILTER (WHERE a < 1000),
                                       count(*) FILTER (WHERE a >= 1000), count(DISTINCT a) FILTER (WHERE a >= 1000)) FROM public.t";
    assert_eq!(loading.texts(found), [format!("100 100 {messages} {messages}")]);
    let state =
        "SELECT concat_ws(' ', incarnation, part, position, rows_total, stopped_reason) FROM tally.loader_status
                  ORDER BY incarnation, part";
    let half = messages / 2;
    assert_eq!(
        loading.texts(state),
        [
            "1 0 50 50 superseded by incarnation 2".to_owned(),
            "1 1 50 50 superseded by incarnation 2".to_owned(),
            format!("2 0 {half} {half}"),
            format!("2 1 {half} {half}"),
        ]
    );
}

#[test]
fn a_topic_created_again_while_no_loader_runs_is_loaded_from_its_beginning() {
    for messages in [0, 40, 100, 150] {
        let loading = loading();
        loading.load().unwrap();
        recreate(&loading, messages, BEFORE + 1);
        loading.load().unwrap();
        assert_both(&loading, messages.into());
        loading.load().unwrap();
        assert_both(&loading, messages.into());
    }
}

#[test]
fn a_topic_created_again_while_it_is_loaded_is_loaded_from_its_beginning() {
    for messages in [40, 100, 150, 1_000] {
        for lanes in [1, 2] {
            let mut loading = loading();
            loading.lanes = lanes;
            let running = loading.start();
            running.wait_for_rows(100);
            recreate(&loading, messages, BEFORE + 1);
            wait_until("the new topic is loaded", || rows(&loading) >= 100 + i64::from(messages));
            running.stop().unwrap();
            assert_both(&loading, messages.into());
        }
    }
}

#[test]
fn a_topic_created_again_with_fewer_parts_is_another_one() {
    for policy in [POLICY, "timeouts = { anchor_check = \"100 ms\" }"] {
        let mut loading = loading();
        loading.policy = policy.into();
        let running = loading.start();
        running.wait_for_rows(100);
        let other = FakeTopic::new(1);
        (1_000..1_200).for_each(|number| {
            other.produce(0, None, Some(format!("{{\"a\": {number}}}").as_bytes()), Some(BEFORE + 1));
        });
        loading.topic.replace(&other);
        if policy == POLICY {
            wait_until("the new topic is loaded", || rows(&loading) >= 300);
            running.stop().unwrap();
            assert_eq!(loading.number("SELECT count(DISTINCT a) FROM public.t"), 300);
            assert_eq!(loading.number("SELECT max(incarnation)::bigint FROM tally.loader_status"), 2);
        } else {
            assert_eq!(running.join().map_err(|error| error.code()), Err(5));
        }
    }
}

#[test]
fn loaders_that_notice_at_once_make_one_incarnation() {
    for _ in 0..5 {
        let loading = loading();
        let (first, second) = (loading.start(), loading.start());
        wait_until("each has a part", || {
            loading.number("SELECT count(DISTINCT member_id) FROM tally.loader_leases") == 2
        });
        wait_until("all is loaded", || rows(&loading) == 100);
        recreate(&loading, 300, BEFORE + 1);
        wait_until("the new topic is loaded", || rows(&loading) >= 400);
        first.stop().unwrap();
        second.stop().unwrap();
        assert_both(&loading, 300);
    }
}

/// It owns parts of the former incarnation, nothing comes, and its own next check is far away.
#[test]
fn an_idle_loader_hears_of_the_new_incarnation() {
    let mut loading = loading();
    loading.policy = POLICY.replace("100 ms", "1 h");
    let running = loading.start();
    running.wait_for_rows(100);
    recreate(&loading, 100, BEFORE + 1);
    let config = loading.config();
    let made = block_on(async {
        let mut client = connection::connect(&config.postgres, "test").await.unwrap();
        incarnations::supersede(&mut client, 1, &[(0, 0), (1, 0)]).await.unwrap()
    });
    assert!(made);
    wait_until("the new topic is loaded", || rows(&loading) >= 200);
    running.stop().unwrap();
    assert_both(&loading, 100);
}

/// A log that was cut off looks alike, and its rows must not be loaded a second time.
#[test]
fn what_may_be_the_old_topic_stops_the_loader() {
    let loading = loading();
    loading.load().unwrap();
    for (messages, reason) in [(40, "not younger"), (100, "not younger"), (300, "not younger")] {
        recreate(&loading, messages, BEFORE);
        let error = loading.load().unwrap_err();
        assert_eq!(error.code(), 5, "{error}");
        assert!(error.to_string().contains(reason), "{error}");
    }
    // One part is the same.
    let cut = FakeTopic::new(2);
    for number in 0..100 {
        let value = format!("{{\"a\": {number}}}");
        if number % 2 == 0 {
            cut.produce(0, None, Some(value.as_bytes()), Some(BEFORE));
        } else if number < 30 {
            cut.produce(1, None, Some(value.as_bytes()), Some(BEFORE + 1));
        }
    }
    loading.topic.replace(&cut);
    let error = loading.load().unwrap_err();
    assert!(error.to_string().contains("other parts are the same"), "{error}");
    assert_eq!((rows(&loading), loading.number("SELECT count(*) FROM tally.loader_sources")), (100, 1));
}

#[test]
fn a_superseded_source_is_neither_claimed_nor_superseded_again() {
    let loading = loading();
    loading.load().unwrap();
    let config = loading.config();
    let mut zombie = loading.session();
    zombie.batch_execute("BEGIN ISOLATION LEVEL READ COMMITTED").unwrap();
    let supersede = || {
        block_on(async {
            let mut client = connection::connect(&config.postgres, "test").await.unwrap();
            incarnations::supersede(&mut client, 1, &[(0, 0), (1, 0), (2, 7)]).await.unwrap()
        })
    };
    // Both wait for the same rows.
    let mut holder = loading.session();
    holder.batch_execute("BEGIN; SELECT FROM tally.loader_offsets FOR UPDATE").unwrap();
    let made = thread::scope(|scope| {
        let both = [scope.spawn(supersede), scope.spawn(supersede)];
        let waiting = "SELECT count(*) FROM pg_stat_activity
                        WHERE application_name = 'tally-loader test' AND datname = current_database() AND wait_event_type = 'Lock'";
        wait_until("both wait", || loading.number(waiting) == 2);
        holder.batch_execute("COMMIT").unwrap();
        both.map(|one| one.join().unwrap())
    });
    assert!(made[0] != made[1], "{made:?}");
    let parts =
        "SELECT string_agg(concat_ws('/', s.incarnation, o.part, o.next_offset, o.epoch), ' ' ORDER BY 1, o.part)
                   FROM tally.loader_offsets o JOIN tally.loader_sources s USING (source_id)";
    let before = loading.texts(&parts.replace("ORDER BY 1, ", "ORDER BY s.incarnation, "));
    assert_eq!(before, ["1/0/50/2 1/1/50/2 2/0/0/0 2/1/0/0 2/2/7/0"]);
    let advance = "SELECT tally.advance_offsets(1, '{0}', '{50}', '{60}', '{1}', '{10}', '{0}', '{0}', '{NULL}', '{NULL}', '{NULL}')";
    let fenced = zombie.batch_execute(advance).unwrap_err();
    assert_eq!(fenced.code().map(|code| code.code()), Some("TL001"));
    let claimed = block_on(async {
        let mut client = connection::connect(&config.postgres, "test").await.unwrap();
        offsets::claim(&mut client, 1, &[0, 1], Uuid::new_v4()).await
    });
    assert!(matches!(claimed, Err(ClaimError::Superseded)), "{claimed:?}");
    assert_eq!(loading.texts(&parts.replace("ORDER BY 1, ", "ORDER BY s.incarnation, ")), before);
    assert_eq!(loading.number("SELECT count(*) FROM tally.loader_leases"), 0);
}

#[test]
fn dead_letters_of_all_incarnations_are_replayed() {
    let mut loading = loading();
    loading.policy += "\ndead_letters = { stop_above_ratio = 1.0 }";
    loading.produce(0, r#"{"a": "200"}"#);
    loading.load().unwrap();
    recreate(&loading, 100, BEFORE + 1);
    loading.produce(0, r#"{"a": "1200"}"#);
    loading.load().unwrap();
    let pending = "SELECT string_agg(concat_ws('/', incarnation, part, dead_pending), ' ' ORDER BY incarnation, part) FROM tally.loader_status";
    assert_eq!(loading.texts(pending), ["1/0/1 1/1/0 2/0/1 2/1/0"]);
    loading.target = "columns.a = { digits_in_string = true }".into();
    let (_stopper, stop) = stop::channel();
    let arguments = ReplayArguments {
        config: Default::default(),
        since: None,
        limit: None,
        dry_run: false,
        purge_older_than: None,
    };
    let summary = block_on(replay::replay(&loading.config(), &arguments, stop)).unwrap();
    assert_eq!((summary.replayed, summary.failed), (2, 0));
    assert_eq!(loading.texts("SELECT a::text FROM public.t WHERE a IN (200, 1200) ORDER BY t.a"), ["200", "1200"]);
    assert_eq!(loading.texts(pending), ["1/0/0 1/1/0 2/0/0 2/1/0"]);
}
