//! `tally.advance_offsets` and the claim under two sessions at once: every row of the table "The READ COMMITTED trap".

use std::sync::atomic::Ordering::Relaxed;
use std::thread;

use postgres::Client;
use uuid::Uuid;

use crate::loading::{Loading, block_on, wait_until};
use tally_loader::offsets::{self, Claim};
use tally_loader::postgres as connection;

/// A source with parts at position 0 and epoch 0.
fn source(parts: i32) -> Loading<'static> {
    let loading = Loading::new(1, "CREATE TABLE public.t (a int);");
    loading
        .session()
        .batch_execute(&format!(
            "INSERT INTO tally.loader_sources (pipeline, kind, cluster, name) VALUES ('test', 'kafka', 'c', 't');
             INSERT INTO tally.loader_offsets (source_id, part, next_offset) SELECT 1, p, 0 FROM generate_series(0, {} - 1) p",
            parts
        ))
        .unwrap();
    loading
}

fn advance(session: &mut Client, parts: &[i32], from: i64, to: i64, epoch: i64) -> Result<(), String> {
    let all = |value: i64| vec![value; parts.len()];
    let none: Vec<Option<i64>> = vec![None; parts.len()];
    session
        .execute(
            "SELECT tally.advance_offsets(1, $1, $2, $3, $4, $5, $6, $6, $7, $7, $7)",
            &[&parts, &all(from), &all(to), &all(epoch), &all(to - from), &all(0), &none],
        )
        .map(|_| ())
        .map_err(|error| error.code().map_or_else(|| error.to_string(), |code| code.code().to_owned()))
}

fn begin(session: &mut Client) {
    session.batch_execute("BEGIN ISOLATION LEVEL READ COMMITTED").unwrap();
}

fn pid(session: &mut Client) -> i32 {
    session.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0)
}

fn wait_until_blocked(observer: &mut Client, pid: i32) {
    wait_until("the second session waits for the first", || {
        observer.query_one("SELECT cardinality(pg_blocking_pids($1)) > 0", &[&pid]).unwrap().get(0)
    });
}

fn claim(loading: &Loading<'_>, parts: &[i32], member: Uuid) -> Vec<Claim> {
    let config = loading.config();
    block_on(async {
        let mut client = connection::connect(&config.postgres, "test").await.unwrap();
        let mut claims = offsets::claim(&mut client, 1, parts, member).await.unwrap();
        claims.sort_by_key(|claim| claim.part);
        claims
    })
}

fn state(loading: &Loading<'_>) -> (i64, i64) {
    let row =
        loading.session().query_one("SELECT next_offset, epoch FROM tally.loader_offsets WHERE part = 0", &[]).unwrap();
    (row.get(0), row.get(1))
}

/// A moves the position from 0 to 10 and stays open; `second` runs meanwhile in another session and must wait; then A ends.
fn while_a_is_open<T: Send>(loading: &Loading<'_>, end: &str, second: impl FnOnce(&mut Client) -> T + Send) -> T {
    let (mut a, mut b, mut observer) = (loading.session(), loading.session(), loading.session());
    begin(&mut a);
    advance(&mut a, &[0], 0, 10, 0).unwrap();
    let pid = pid(&mut b);
    thread::scope(|scope| {
        let second = scope.spawn(move || second(&mut b));
        wait_until_blocked(&mut observer, pid);
        a.batch_execute(end).unwrap();
        second.join().unwrap()
    })
}

#[test]
fn a_successor_waits_and_advances_when_its_predecessor_commits() {
    let loading = source(1);
    let second = while_a_is_open(&loading, "COMMIT", |b| advance(b, &[0], 10, 20, 0));
    assert_eq!(second, Ok(()));
    assert_eq!(state(&loading), (20, 0));
}

#[test]
fn a_successor_fails_when_its_predecessor_rolls_back() {
    let loading = source(1);
    let second = while_a_is_open(&loading, "ROLLBACK", |b| advance(b, &[0], 10, 20, 0));
    assert_eq!(second, Err("TL001".into()));
    assert_eq!(state(&loading), (0, 0));
}

#[test]
fn a_plain_compare_and_set_would_not_wait() {
    let loading = source(1);
    let (mut a, mut b) = (loading.session(), loading.session());
    begin(&mut a);
    advance(&mut a, &[0], 0, 10, 0).unwrap();
    let changed =
        b.execute("UPDATE tally.loader_offsets SET next_offset = 20 WHERE part = 0 AND next_offset = 10", &[]);
    assert_eq!(changed.unwrap(), 0, "this is why advance_offsets locks first");
    a.batch_execute("COMMIT").unwrap();
}

#[test]
fn a_zombie_waits_for_the_new_owners_claim_and_is_fenced() {
    let loading = source(1);
    let (mut owner, mut zombie, mut observer) = (loading.session(), loading.session(), loading.session());
    owner.batch_execute("BEGIN; UPDATE tally.loader_offsets SET epoch = epoch + 1 WHERE part = 0").unwrap();
    let pid = pid(&mut zombie);
    let result = thread::scope(|scope| {
        let zombie = scope.spawn(move || advance(&mut zombie, &[0], 0, 10, 0));
        wait_until_blocked(&mut observer, pid);
        owner.batch_execute("COMMIT").unwrap();
        zombie.join().unwrap()
    });
    assert_eq!(result, Err("TL001".into()));
    assert_eq!(state(&loading), (0, 1));
}

#[test]
fn a_claim_waits_for_a_zombies_advance_and_continues_behind_it() {
    let loading = source(1);
    let (mut zombie, mut observer) = (loading.session(), loading.session());
    begin(&mut zombie);
    advance(&mut zombie, &[0], 0, 10, 0).unwrap();
    let claims = thread::scope(|scope| {
        let claims = scope.spawn(|| claim(&loading, &[0], Uuid::new_v4()));
        wait_until("the claim waits", || {
            let waiting = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'tally-loader%' AND wait_event_type = 'Lock'";
            observer.query_one(waiting, &[]).unwrap().get::<_, i64>(0) > 0
        });
        zombie.batch_execute("COMMIT").unwrap();
        claims.join().unwrap()
    });
    assert_eq!(claims, [Claim { part: 0, next: 10, epoch: 1, anchor: None }]);
    assert_eq!(advance(&mut zombie, &[0], 10, 20, 0), Err("TL001".into()));
    assert_eq!(state(&loading), (10, 1));
}

#[test]
fn other_isolation_levels_are_refused() {
    let loading = source(1);
    let mut session = loading.session();
    for level in ["REPEATABLE READ", "SERIALIZABLE"] {
        session.batch_execute(&format!("BEGIN ISOLATION LEVEL {level}")).unwrap();
        assert_eq!(advance(&mut session, &[0], 0, 10, 0), Err("25001".into()));
        session.batch_execute("ROLLBACK").unwrap();
    }
}

#[test]
fn sessions_that_name_the_parts_in_opposite_order_do_not_deadlock() {
    let loading = source(8);
    let orders: [Vec<i32>; 4] =
        [(0..8).collect(), (0..8).rev().collect(), vec![3, 7, 1, 5, 0, 2, 6, 4], vec![4, 6, 2, 0, 5, 1, 7, 3]];
    let wins: i64 = thread::scope(|scope| {
        let sessions: Vec<_> = orders
            .iter()
            .map(|order| {
                let mut session = loading.session();
                scope.spawn(move || {
                    let mut wins = 0;
                    while wins < 25 {
                        let row = session
                            .query_one("SELECT next_offset FROM tally.loader_offsets WHERE part = 0", &[])
                            .unwrap();
                        let at: i64 = row.get(0);
                        match advance(&mut session, order, at, at + 1, 0) {
                            Ok(()) => wins += 1,
                            Err(code) => assert_eq!(code, "TL001", "neither a deadlock nor anything else"),
                        }
                    }
                    wins
                })
            })
            .collect();
        sessions.into_iter().map(|session| session.join().unwrap()).sum()
    });
    assert_eq!(loading.texts("SELECT DISTINCT next_offset::text FROM tally.loader_offsets"), [wins.to_string()]);
}

#[test]
fn a_living_members_part_is_not_claimed_and_a_dead_ones_is() {
    let loading = source(2);
    let config = loading.config();
    let (owner, other) = (Uuid::new_v4(), Uuid::new_v4());
    block_on(async {
        let control = connection::connect(&config.postgres, "test").await.unwrap();
        offsets::renew_member(&control, owner, "test", "here").await.unwrap();
        let mut data = connection::connect(&config.postgres, "test").await.unwrap();
        assert_eq!(offsets::claim(&mut data, 1, &[0, 1], owner).await.unwrap().len(), 2);
        assert_eq!(offsets::claim(&mut data, 1, &[0, 1], other).await.unwrap(), []);
        // It did not renew itself in time, although its connection is there: it is frozen.
        data.execute("UPDATE tally.loader_members SET expires_at = now()", &[]).await.unwrap();
        assert_eq!(offsets::claim(&mut data, 1, &[0], other).await.unwrap()[0].epoch, 2);
        // Renewed, but its control connection has gone: it was killed.
        offsets::renew_member(&control, owner, "test", "here").await.unwrap();
        assert_eq!(offsets::claim(&mut data, 1, &[1], other).await.unwrap(), []);
        drop(control);
        let backends = "SELECT count(*) FROM pg_stat_activity JOIN tally.loader_members ON pid = backend_pid";
        while data.query_one(backends, &[]).await.unwrap().get::<_, i64>(0) > 0 {}
        assert_eq!(offsets::claim(&mut data, 1, &[1], other).await.unwrap()[0].epoch, 2);
    });
}

#[test]
fn a_claim_ends_a_session_that_hangs_in_its_way() {
    let mut loading = Loading::new(1, "CREATE TABLE public.t (a int);");
    loading.policy = "timeouts = { start = \"60 s\" }".into();
    loading.produce(0, r#"{"a": 0}"#);
    loading.load().unwrap();
    // A frozen loader: its transaction holds the position, its application name is ours.
    let mut zombie = loading.session();
    zombie.batch_execute("SET application_name = 'tally-loader test'").unwrap();
    begin(&mut zombie);
    advance(&mut zombie, &[0], 1, 2, 1).unwrap();
    loading.produce(0, r#"{"a": 1}"#);
    loading.load().unwrap();
    assert!(zombie.batch_execute("COMMIT").is_err(), "its session was ended");
    loading.assert_exactly_once(2);
}

/// Frozen where its dead letters are sent, it finds those of the next owner there.
#[test]
fn a_zombies_dead_letters_are_fenced_too() {
    let mut loading = Loading::new(1, "CREATE TABLE public.t (a int);");
    loading.policy = "dead_letters = { stop_above_ratio = 1.0 }".into();
    loading.produce(0, r#"{"a": 0}"#);
    let running = loading.start();
    running.wait_for_rows(1);
    let mut owner = loading.session();
    owner.batch_execute("BEGIN; LOCK TABLE tally.dead_letters IN SHARE ROW EXCLUSIVE MODE").unwrap();
    loading.produce(0, "broken");
    wait_until("the loader waits to send its dead letter", || {
        let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'tally.dead_letters'::regclass";
        loading.number(waiting) > 0
    });
    owner
        .batch_execute(
            "INSERT INTO tally.dead_letters (source_id, part, message_offset, reason) VALUES (1, 0, 1, 'not_json');
             UPDATE tally.loader_offsets SET epoch = epoch + 1, next_offset = 2, dead_total = 1; COMMIT",
        )
        .unwrap();
    loading.produce(0, r#"{"a": 1}"#);
    running.wait_for_rows(2);
    assert_eq!(running.metrics.fenced.load(Relaxed), 1);
    running.stop().unwrap();
    loading.assert_exactly_once(2);
    assert_eq!(loading.number("SELECT count(*) FROM tally.dead_letters"), 1);
}
