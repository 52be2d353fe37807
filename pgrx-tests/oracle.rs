//! The oracle of every rollup test: the defining query over the source, asked in the same snapshot.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use postgres::error::{DbError, SqlState};
use postgres::{Client, Error};

/// Longer than anything that is waited for takes on a slow and busy machine.
pub const DEADLINE: Duration = Duration::from_secs(180);

/// A statement that gives the rows by which a rollup and its defining query differ as multisets (`EXCEPT ALL` both ways in one
/// pass). It is one statement, so it has one snapshot.
pub fn difference(rollup: &str, query: &str) -> String {
    format!(
        "SELECT CASE WHEN sum(side) > 0 THEN 'only in the rollup: ' ELSE 'only in the query: ' END || found::text \
         FROM (SELECT ROW(r.*) AS found, 1 AS side FROM {rollup} AS r UNION ALL SELECT ROW(q.*), -1 FROM ({query}) AS q) AS sides \
         GROUP BY found HAVING sum(side) <> 0"
    )
}

/// The rollup and the user's own query are equal in what this session sees now.
#[track_caller]
pub fn assert_equal(session: &mut Client, rollup: &str, query: &str) {
    let rows = session.query(&difference(rollup, query), &[]).unwrap();
    let rows: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
    assert!(rows.is_empty(), "{rollup} differs from {query}: {rows:#?}");
}

/// A query for the number of rows of the source that are visible and that no refresh has counted.
pub fn pending_query(source: &str) -> String {
    format!(
        "SELECT count(*) FROM {source} AS r, tally.sources AS s \
         WHERE s.source = '{source}'::regclass AND (r.tally_tag >= s.next_tag OR r.tally_tag = ANY (s.open_tags))"
    )
}

pub fn pending(session: &mut Client, source: &str) -> i64 {
    session.query_one(&pending_query(source), &[]).unwrap().get(0)
}

/// The rollup is right, and still is when every row is counted and the answer comes from the stored groups alone.
#[track_caller]
pub fn assert_equal_now_and_refreshed(session: &mut Client, rollup: &str, source: &str, query: &str) {
    assert_equal(session, rollup, query);
    session.batch_execute(&format!("CALL tally.refresh('{rollup}')")).unwrap();
    assert_eq!(pending(session, source), 0, "rows of {source} are still pending after a refresh with nothing open");
    assert_equal(session, rollup, query);
}

/// What PostgreSQL says when it refuses `sql`.
#[track_caller]
pub fn refusal(session: &mut Client, sql: &str) -> DbError {
    match session.batch_execute(sql) {
        Ok(()) => panic!("not refused: {sql}"),
        Err(error) => error.as_db_error().unwrap_or_else(|| panic!("{sql}: {error}")).clone(),
    }
}

/// `sql` is refused with this SQLSTATE, with a message that contains `message`, and with a hint that contains `hint`.
#[track_caller]
pub fn assert_refused(session: &mut Client, sql: &str, state: &str, message: &str, hint: &str) {
    let error = refusal(session, sql);
    assert!(
        error.code().code() == state
            && error.message().contains(message)
            && error.hint().unwrap_or_default().contains(hint),
        "{sql}\nexpected {state}: {message}\nHINT: {hint}\ngot {}: {}\nHINT: {:?}",
        error.code().code(),
        error.message(),
        error.hint()
    );
}

/// Is this PostgreSQL 17 or later, whose workers may run as any role?
pub fn is_17(session: &mut Client) -> bool {
    number(session, "SELECT current_setting('server_version_num')::bigint") >= 170_000
}

/// Tells threads to end, also when the test fails: they would go on for ever.
pub struct StopAtEnd<'a>(pub &'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

pub fn state(error: &Error) -> &SqlState {
    error.code().unwrap_or_else(|| panic!("not an error of the server: {error}"))
}

/// Returns when the session of this process waits for a lock.
#[track_caller]
pub fn wait_until_blocked(observer: &mut Client, pid: i32) {
    wait_until(observer, &format!("SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = {pid}"));
}

/// Returns when the query answers true.
#[track_caller]
pub fn wait_until(observer: &mut Client, query: &str) {
    let started = Instant::now();
    while observer.query_opt(query, &[]).unwrap().and_then(|row| row.get(0)) != Some(true) {
        assert!(started.elapsed() < DEADLINE, "it never becomes true: {query}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// The one number that the query answers.
#[track_caller]
pub fn number(session: &mut Client, query: &str) -> i64 {
    session.query_one(query, &[]).unwrap_or_else(|error| panic!("{query}: {error:?}")).get(0)
}

/// The text that the query answers, if it has a row.
#[track_caller]
pub fn text(session: &mut Client, query: &str) -> Option<String> {
    session.query_opt(query, &[]).unwrap_or_else(|error| panic!("{query}: {error:?}")).and_then(|row| row.get(0))
}

pub fn own_pid(session: &mut Client) -> i32 {
    session.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0)
}
