//! A loader that has connected and has not claimed its parts yet is at its start: outages are waited out until `timeouts.start` is over.

use std::time::{Duration, Instant};

use postgres::Client;
use tally_server_tests::cluster::Cluster;

use crate::loading::{Loading, PLAIN, Running, produce, wait_until};

const TABLE: &str = "CREATE TABLE public.t (a bigint);";

/// What holds a start: when it looks for its source, becomes a member, claims.
const WINDOWS: [&str; 3] = [
    "LOCK TABLE tally.loader_sources IN ACCESS EXCLUSIVE MODE",
    "LOCK TABLE tally.loader_members IN EXCLUSIVE MODE",
    "SELECT FROM tally.loader_offsets FOR UPDATE",
];

/// Starts a loader and returns when the lock holds it. The lock ends with the session.
fn caught(loading: &Loading<'_>, lock: &str) -> (Running, Client) {
    let mut holder = loading.session();
    holder.batch_execute(&format!("BEGIN; {lock}")).unwrap();
    let running = loading.start();
    let waits = "SELECT count(*) FROM pg_stat_activity
                  WHERE application_name = 'tally-loader test' AND datname = current_database() AND wait_event_type = 'Lock'";
    wait_until("the start waits for the lock", || loading.number(waits) > 0);
    (running, holder)
}

#[test]
fn a_server_that_restarts_before_the_first_claim_is_waited_for() {
    let server = Cluster::start(PLAIN);
    let loading = Loading::on(&server, 2, TABLE);
    let mut rows = 0;
    let mut load = |running: Running| {
        produce(&loading, 2, rows, 100);
        rows += 100;
        wait_until("all is loaded", || loading.number("SELECT count(*) FROM public.t") == rows);
        running.stop().unwrap();
    };
    load(loading.start());
    for lock in WINDOWS {
        for end in [Cluster::restart, Cluster::crash] {
            let (running, _holder) = caught(&loading, lock);
            end(&server);
            load(running);
        }
    }
    loading.assert_exactly_once(rows);
}

#[test]
fn sessions_that_are_ended_before_the_first_claim_are_made_again() {
    let loading = Loading::new(2, TABLE);
    loading.load().unwrap();
    produce(&loading, 2, 0, 100);
    for lock in WINDOWS {
        let (running, mut holder) = caught(&loading, lock);
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                    WHERE application_name = 'tally-loader test' AND datname = current_database()";
        assert!(holder.execute(end, &[]).unwrap() > 0);
        holder.batch_execute("ROLLBACK").unwrap();
        running.wait_for_rows(if lock == WINDOWS[0] { 100 } else { 0 });
        wait_until("it has claimed", || loading.number("SELECT count(*) FROM tally.loader_leases") == 2);
        running.stop().unwrap();
    }
    loading.assert_exactly_once(100);
}

#[test]
fn a_server_that_stays_away_ends_the_start_when_its_time_is_over() {
    const TIME: Duration = Duration::from_secs(2);
    let server = Cluster::start(PLAIN);
    let mut loading = Loading::on(&server, 1, TABLE);
    loading.load().unwrap();
    loading.policy = "timeouts = { start = \"2 s\" }".into();
    for lock in WINDOWS {
        let started = Instant::now();
        let (running, _holder) = caught(&loading, lock);
        server.stop();
        let error = running.join().unwrap_err();
        assert_eq!(error.code(), 4, "{error}");
        // The last pause is left out when the time would be over behind it.
        assert!(started.elapsed() > TIME / 2, "{:?}, {error}", started.elapsed());
        server.restart();
    }
}
