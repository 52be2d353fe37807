//! `replay-dead-letters` makes rows of what became possible since, and never two of one message.

use std::thread;
use std::time::Duration;

use tally_loader::arguments::ReplayArguments;
use tally_loader::replay::{Summary, replay};
use tally_loader::{Error, stop};

use crate::files::Files;
use crate::loading::{Loading, block_on, wait_until};

const TABLE: &str = "CREATE TABLE public.t (a int UNIQUE CHECK (a < 100), b text);";

fn arguments() -> ReplayArguments {
    ReplayArguments { config: "".into(), since: None, limit: None, dry_run: false, purge_older_than: None }
}

fn replayed(loading: &Loading<'_>, arguments: &ReplayArguments) -> Result<Summary, Error> {
    let (_stopper, stop) = stop::channel();
    block_on(replay(&loading.config(), arguments, stop))
}

fn letters(loading: &Loading<'_>) -> Vec<String> {
    loading.texts(
        "SELECT concat_ws(' ', message_offset, reason, sqlstate, attempts, CASE WHEN replayed_at IS NOT NULL THEN 'replayed' END)
           FROM tally.dead_letters ORDER BY part, message_offset",
    )
}

fn rows(loading: &Loading<'_>) -> Vec<String> {
    loading.texts("SELECT concat_ws(' ', a, b) FROM public.t ORDER BY a, b NULLS FIRST")
}

/// Four messages of five are dead letters, each for a reason of its own.
fn with_letters() -> Loading<'static> {
    let loading = Loading::new(1, TABLE);
    for value in [r#"{"a": 1}"#, r#"{"a": "7"}"#, r#"{"a": 500}"#, "broken", r#"{"a": 1, "b": "again"}"#] {
        loading.produce(0, value);
    }
    loading.load().unwrap();
    assert_eq!(letters(&loading), ["1 wrong_type 1", "2 constraint 23514 1", "3 not_json 1", "4 constraint 23505 1"]);
    loading
}

#[test]
fn letters_become_rows_by_what_holds_today() {
    let mut loading = with_letters();
    let none = replayed(&loading, &arguments()).unwrap();
    assert_eq!(none, Summary { failed: 4, ..Summary::default() }, "nothing has changed");
    loading.target = "columns.a = { digits_in_string = true }".into();
    loading.session().batch_execute("ALTER TABLE public.t DROP CONSTRAINT t_a_check").unwrap();
    let some = replayed(&loading, &arguments()).unwrap();
    assert_eq!(some, Summary { replayed: 2, failed: 2, ..Summary::default() });
    assert_eq!(rows(&loading), ["1", "7", "500"]);
    assert_eq!(
        letters(&loading),
        ["1 wrong_type 3 replayed", "2 constraint 23514 3 replayed", "3 not_json 3", "4 constraint 23505 3"]
    );
    loading.session().batch_execute("ALTER TABLE public.t DROP CONSTRAINT t_a_key").unwrap();
    assert_eq!(replayed(&loading, &arguments()).unwrap(), Summary { replayed: 1, failed: 1, ..Summary::default() });
    assert_eq!(rows(&loading), ["1", "1 again", "7", "500"]);
    // The positions are none of its business.
    assert_eq!(
        loading.texts("SELECT concat_ws(' ', next_offset, rows_total, dead_total) FROM tally.loader_offsets"),
        ["5 1 4"]
    );
    assert_eq!(loading.number("SELECT dead_pending FROM tally.loader_status"), 1);
}

#[test]
fn a_reason_may_change_from_one_attempt_to_the_next() {
    let mut loading = with_letters();
    loading.target = "columns.a = { digits_in_string = true }".into();
    loading.session().batch_execute("ALTER TABLE public.t ADD CHECK (a <> 7)").unwrap();
    replayed(&loading, &arguments()).unwrap();
    assert_eq!(letters(&loading)[0], "1 constraint 23514 2");
}

#[test]
fn deferred_constraints_cost_only_their_letter() {
    let loading = with_letters();
    loading
        .session()
        .batch_execute(
            "ALTER TABLE public.t DROP CONSTRAINT t_a_key, DROP CONSTRAINT t_a_check, ADD UNIQUE (a) DEFERRABLE INITIALLY DEFERRED",
        )
        .unwrap();
    assert_eq!(replayed(&loading, &arguments()).unwrap(), Summary { replayed: 1, failed: 3, ..Summary::default() });
    assert_eq!(letters(&loading)[3], "4 constraint 23505 2");
    assert_eq!(rows(&loading), ["1", "500"]);
}

#[test]
fn a_dry_run_asks_postgres_and_changes_nothing() {
    let mut loading = with_letters();
    loading.target = "columns.a = { digits_in_string = true }".into();
    let dry = replayed(&loading, &ReplayArguments { dry_run: true, ..arguments() }).unwrap();
    assert_eq!(dry, Summary { replayed: 1, failed: 3, ..Summary::default() }, "the CHECK and the key are asked, too");
    assert_eq!(rows(&loading), ["1"]);
    assert_eq!(letters(&loading)[0], "1 wrong_type 1");
}

#[test]
fn a_time_and_a_number_choose_letters() {
    let mut loading = with_letters();
    loading.target = "columns.a = { digits_in_string = true }".into();
    let late = "2099-01-01T00:00:00Z".parse().unwrap();
    let none = replayed(&loading, &ReplayArguments { since: Some(late), ..arguments() }).unwrap();
    assert_eq!(none, Summary::default());
    loading
        .session()
        .execute("UPDATE tally.dead_letters SET noted_at = '2099-01-02Z' WHERE message_offset > 2", &[])
        .unwrap();
    let some = replayed(&loading, &ReplayArguments { since: Some(late), ..arguments() }).unwrap();
    assert_eq!(some, Summary { failed: 2, ..Summary::default() });
    let one = replayed(&loading, &ReplayArguments { limit: Some(1), ..arguments() }).unwrap();
    assert_eq!(one, Summary { replayed: 1, ..Summary::default() });
}

#[test]
fn more_letters_than_one_transaction_takes_are_all_tried() {
    let loading = Loading::new(2, TABLE);
    loading.session().batch_execute("ALTER TABLE public.t ADD CONSTRAINT none CHECK (false)").unwrap();
    let mut loading = loading;
    loading.policy = "dead_letters = { stop_above_ratio = 1.0, stop_above_per_minute = 1000000 }".into();
    for number in 0..12_000 {
        loading.produce(number % 2, &format!("{{\"b\": \"{number}\"}}"));
    }
    // One by one it would take PostgreSQL long to refuse them all.
    loading.target = "columns.b = { max_length = 0 }".into();
    loading.load().unwrap();
    loading.target = String::new();
    loading.session().batch_execute("ALTER TABLE public.t DROP CONSTRAINT none").unwrap();
    let some = replayed(&loading, &ReplayArguments { limit: Some(5_500), ..arguments() }).unwrap();
    assert_eq!(some.replayed, 5_500);
    assert_eq!(replayed(&loading, &arguments()).unwrap().replayed, 6_500);
    assert_eq!(loading.number("SELECT count(DISTINCT b) FROM public.t"), 12_000);
    assert_eq!(loading.number("SELECT count(*) FROM public.t"), 12_000);
}

#[test]
fn letters_that_somebody_else_replays_are_left_to_them() {
    let mut loading = with_letters();
    loading.target = "columns.a = { digits_in_string = true }".into();
    let mut other = loading.session();
    other.batch_execute("BEGIN; SELECT FROM tally.dead_letters WHERE message_offset = 1 FOR UPDATE").unwrap();
    assert_eq!(replayed(&loading, &arguments()).unwrap(), Summary { failed: 3, ..Summary::default() });
    other.batch_execute("ROLLBACK").unwrap();
    assert_eq!(replayed(&loading, &arguments()).unwrap().replayed, 1);
}

#[test]
fn a_killed_replay_leaves_all_or_nothing() {
    let mut loading = with_letters();
    loading.target = "columns.a = { digits_in_string = true }".into();
    let mut holder = loading.session();
    holder.batch_execute("BEGIN; LOCK public.t IN SHARE MODE").unwrap();
    thread::scope(|scope| {
        let replaying = scope.spawn(|| replayed(&loading, &arguments()));
        let ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                      WHERE datname = current_database() AND wait_event_type = 'Lock'";
        wait_until("it waits to copy, and is ended", || loading.number(ended) > 0);
        assert_eq!(replaying.join().unwrap().unwrap_err().code(), 4);
    });
    holder.batch_execute("ROLLBACK").unwrap();
    assert_eq!(letters(&loading)[0], "1 wrong_type 1");
    assert_eq!(replayed(&loading, &arguments()).unwrap().replayed, 1);
    assert_eq!(rows(&loading), ["1", "7"]);
}

#[test]
fn a_value_that_was_cut_cannot_come_back() {
    let mut loading = Loading::new(1, TABLE);
    loading.produce(0, r#"{"a": 2, "b": "a value that is longer than the limit"}"#);
    loading.policy = "dead_letters = { max_value = \"20 B\", stop_above_ratio = 1.0 }".into();
    loading.load().unwrap();
    loading.policy = String::new();
    assert_eq!(replayed(&loading, &arguments()).unwrap(), Summary { cut: 1, ..Summary::default() });
    assert_eq!(letters(&loading), ["0 too_large 1"]);
}

#[test]
fn old_letters_are_purged_by_who_may() {
    let mut loading = with_letters();
    let purge = ReplayArguments { purge_older_than: Some(Duration::from_secs(86_400)), ..arguments() };
    let mut session = loading.session();
    session
        .execute("UPDATE tally.dead_letters SET noted_at = now() - interval '2 days' WHERE message_offset < 3", &[])
        .unwrap();
    session
        .batch_execute(
            "CREATE ROLE replayer LOGIN; GRANT INSERT ON public.t TO replayer;
        GRANT SELECT, UPDATE ON tally.dead_letters TO replayer",
        )
        .unwrap();
    let owner = std::mem::replace(&mut loading.user, "replayer".into());
    let error = replayed(&loading, &purge).unwrap_err();
    assert_eq!((error.code(), error.hint().map(|hint| hint.contains("as the owner"))), (3, Some(true)), "{error}");
    loading.user = owner;
    assert_eq!(replayed(&loading, &purge).unwrap().purged, 2);
    assert_eq!(letters(&loading).len(), 2);
}

#[test]
fn letters_of_files_are_read_as_their_files_are() {
    let mut files = Files::new("CREATE TABLE public.t (a int, b text);");
    files.loading.source = "file = { delimiter = \";\" }".into();
    files.load(&files.write("a.csv", "b;a\nx;1\n\"y;\"\"\";seven\nz;eight;\n;nine\n")).unwrap();
    files.load(&files.write("b.ndjson", "{\"a\": \"ten\", \"b\": \"w\"}\n")).unwrap();
    files.loading.produce(0, r#"{"a": "eleven"}"#);
    files.loading.load().unwrap();
    let expected = ["0 wrong_type 1", "0 wrong_type 1", "8 wrong_type 1", "21 not_csv 1", "30 wrong_type 1"];
    assert_eq!(letters(&files.loading), expected);
    files.loading.session().batch_execute("ALTER TABLE public.t ALTER COLUMN a TYPE text").unwrap();
    let some = replayed(&files.loading, &arguments()).unwrap();
    assert_eq!(some, Summary { replayed: 4, failed: 1, ..Summary::default() });
    assert_eq!(rows(&files.loading), ["1 x", "eleven", "nine", "seven y;\"", "ten w"]);
}

#[test]
fn the_names_of_a_csv_letter_come_from_the_header_or_the_settings() {
    let mut files = Files::new("CREATE TABLE public.t (a int, b text);");
    let path = files.write("a.csv", "b,a\nx,seven\n");
    files.load(&path).unwrap();
    files.loading.session().batch_execute("ALTER TABLE public.t ALTER COLUMN a TYPE text").unwrap();
    let refused = |files: &Files| {
        let error = replayed(&files.loading, &arguments()).unwrap_err();
        assert_eq!((error.code(), files.rows()), (3, 0), "{error}");
        assert!(error.hint().unwrap().contains("source.file.columns"), "{error:?}");
        error.to_string()
    };
    // The header above other records may be one of another order.
    std::fs::write(&path, "a,b\nx,seven\n").unwrap();
    assert!(refused(&files).contains("not those that were loaded"), "{}", refused(&files));
    std::fs::remove_file(&path).unwrap();
    assert!(refused(&files).contains("cannot read the header"), "{}", refused(&files));
    files.loading.source = "file = { columns = [\"c\", \"a\"] }".into();
    let error = replayed(&files.loading, &arguments()).unwrap_err();
    assert!(error.code() == 3 && error.to_string().contains("a.csv\": column \"b\""), "{error}");
    files.loading.source = "file = { columns = [\"b\", \"a\"] }".into();
    assert_eq!(replayed(&files.loading, &arguments()).unwrap(), Summary { replayed: 1, ..Summary::default() });
    assert_eq!(rows(&files.loading), ["seven x"]);
}
