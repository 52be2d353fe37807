//! The loader is killed, frozen or asked to stop, at any moment and at the worst ones.

use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rustix::process::Signal;
use tally_server_tests::cluster::Cluster;

use crate::broker;
use crate::pipeline::{Pipeline, World, wait_until};

#[derive(Clone, Copy, Debug)]
enum Moment {
    /// So long after its start.
    After(Duration),
    /// Rows and dead letters are sent, the position is not yet moved.
    BeforeAdvance,
    /// The server has made the transaction durable, and the loader does not know.
    DuringCommit,
}

/// A new seed each time, unless `TALLY_TEST_SEED` repeats one; printed, so that it can be repeated.
fn random() -> ChaCha8Rng {
    let by_clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_micros() as u64);
    let seed = std::env::var("TALLY_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(by_clock);
    println!("TALLY_TEST_SEED={seed}");
    ChaCha8Rng::seed_from_u64(seed)
}

/// Whether a session of the loader waits for this.
fn loader_waits_for(pipeline: &Pipeline<'_>, event: &str) -> bool {
    let sql = format!(
        "SELECT count(*) FROM pg_stat_activity
          WHERE usename = 'loader' AND datname = current_database() AND '{event}' IN (wait_event, wait_event_type)"
    );
    pipeline.number(&sql) > 0
}

#[test]
fn kill_9_of_the_loader_loses_and_doubles_nothing() {
    let Some(broker) = broker::shared() else { return };
    // Its own server, because one of the moments needs a setting of the whole server.
    let cluster = Cluster::start(&[]);
    let mut random = random();
    let mut moments = vec![Moment::BeforeAdvance; 5];
    moments.extend([Moment::DuringCommit; 5]);
    moments.extend((0..10).map(|_| Moment::After(Duration::from_millis(random.random_range(0..700)))));
    moments.shuffle(&mut random);

    let mut pipeline = Pipeline::new(broker, &cluster, World::Extension);
    let (mut sent, mut malformed) = (0, 0);
    for (round, moment) in (0..).zip(moments) {
        println!("round {round}: {moment:?}");
        // More than a few batches in each round, so that the loader is always at work when it is killed.
        pipeline.produce(4_000, random.random_range(0..1 << 40));
        pipeline.send(&[format!("malformed {round}").as_bytes(), b"{}"]);
        (sent, malformed) = (sent + 4_002, malformed + 2);
        let before = pipeline.progress();
        match moment {
            Moment::After(delay) => {
                let loader = pipeline.start(&[]);
                thread::sleep(delay);
                loader.kill();
            }
            Moment::BeforeAdvance => {
                let loader = pipeline.start(&[]);
                pipeline.wait_for_progress(before + 1);
                let mut holder = pipeline.session();
                holder.batch_execute("BEGIN; SELECT FROM tally.loader_offsets FOR UPDATE").expect("the lock");
                if pipeline.progress() < sent {
                    wait_until("the loader waits to move its position", || loader_waits_for(&pipeline, "Lock"));
                }
                loader.kill();
                holder.batch_execute("ROLLBACK").expect("the lock is given up");
            }
            Moment::DuringCommit => {
                pipeline.policy = "batch = { rows = 100, linger = \"20 ms\", synchronous_commit = \"on\" }\n".into();
                let loader = pipeline.start(&[]);
                pipeline.policy = "batch = { rows = 500, linger = \"20 ms\" }\n".into();
                pipeline.wait_for_progress(before + 1);
                // Nobody answers to this name, so a commit is durable here and then waits.
                set_standby(&pipeline, "nobody");
                if pipeline.progress() < sent {
                    wait_until("a commit of the loader waits", || loader_waits_for(&pipeline, "SyncRep"));
                }
                loader.kill();
                set_standby(&pipeline, "");
            }
        }
    }
    pipeline.load_to_end();
    assert_eq!(pipeline.progress(), sent);
    pipeline.assert_exact(malformed);
}

fn set_standby(pipeline: &Pipeline<'_>, name: &str) {
    let mut session = pipeline.session();
    session.batch_execute(&format!("ALTER SYSTEM SET synchronous_standby_names = '{name}'")).expect("the setting");
    session.batch_execute("SELECT pg_reload_conf()").expect("the setting is read");
}

/// The batch is sent twice, because the first time the connection is lost between COPY and COMMIT.
#[test]
fn replayed_batch_counts_once() {
    let Some(broker) = broker::shared() else { return };
    let pipeline = Pipeline::new(broker, Cluster::shared(), World::Extension);
    pipeline.produce(100, 1);
    let loader = pipeline.start(&[]);
    pipeline.wait_for_progress(100);
    let mut holder = pipeline.session();
    holder.batch_execute("BEGIN; SELECT FROM tally.loader_offsets FOR UPDATE").expect("the lock");
    pipeline.produce(400, 2);
    wait_until("the loader waits to move its position", || loader_waits_for(&pipeline, "Lock"));
    let ended = holder
        .query_one(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
              WHERE usename = 'loader' AND datname = current_database() AND wait_event_type = 'Lock'",
            &[],
        )
        .expect("the sessions end");
    assert!(ended.get::<_, i64>(0) >= 1);
    holder.batch_execute("ROLLBACK").expect("the lock is given up");
    pipeline.wait_for_progress(500);
    assert_eq!(loader.terminate(), Some(0));
    pipeline.assert_exact(0);
}

/// A loader that was frozen past its lease wakes up in the middle of its transaction, after another has loaded its messages.
#[test]
fn frozen_loader_cannot_commit_what_another_has_loaded() {
    let Some(broker) = broker::shared() else { return };
    let pipeline = Pipeline::new(broker, Cluster::shared(), World::Plain);
    pipeline.produce(100, 1);
    let frozen = pipeline.start(&[]);
    pipeline.wait_for_progress(100);
    let mut holder = pipeline.session();
    holder.batch_execute("BEGIN; SELECT FROM tally.loader_offsets FOR UPDATE").expect("the lock");
    pipeline.produce(2_000, 2);
    wait_until("the loader waits to move its position", || loader_waits_for(&pipeline, "Lock"));
    frozen.signal(Signal::STOP);
    holder.batch_execute("ROLLBACK").expect("the lock is given up");
    let mut second = pipeline.start(&[]);
    pipeline.wait_for_progress(2_100);
    frozen.signal(Signal::CONT);
    // Whoever owns the parts now loads these.
    pipeline.produce(500, 3);
    pipeline.wait_for_progress(2_600);
    assert!(second.is_running());
    assert_eq!(second.terminate(), Some(0));
    assert_eq!(frozen.terminate(), Some(0));
    pipeline.assert_exact(0);
}

#[test]
fn sigterm_commits_what_was_read_and_a_restart_goes_on() {
    let Some(broker) = broker::shared() else { return };
    for world in [World::Plain, World::Extension] {
        let mut pipeline = Pipeline::new(broker, Cluster::shared(), world);
        // A batch that neither time nor size closes before the signal comes.
        pipeline.policy = "batch = { rows = 300, linger = \"60 s\" }\n".into();
        pipeline.produce(4_000, 1);
        let loader = pipeline.start(&[]);
        pipeline.wait_for_progress(300);
        assert_eq!(loader.terminate(), Some(0));
        let loaded = pipeline.progress();
        let rows = pipeline.number("SELECT count(*) FROM public.events");
        assert_eq!(rows, loaded);
        let positions = pipeline.number("SELECT sum(next_offset)::bigint FROM tally.loader_offsets");
        assert_eq!(positions, loaded);
        assert_eq!(
            pipeline.number("SELECT count(*) FROM tally.loader_leases l JOIN tally.loader_members m USING (member_id)"),
            0
        );

        pipeline.produce(1_000, 2);
        pipeline.load_to_end();
        pipeline.assert_exact(0);
        // Nothing is left to do, and that is done at once.
        pipeline.load_to_end();
        pipeline.assert_exact(0);
    }
}

/// Two loaders share the parts, and one may come and go.
#[test]
fn loaders_share_a_topic_without_doubling_a_row() {
    let Some(broker) = broker::shared() else { return };
    let pipeline = Pipeline::new(broker, Cluster::shared(), World::Plain);
    let first = pipeline.start(&[]);
    pipeline.produce(2_000, 1);
    let second = pipeline.start(&[]);
    pipeline.produce(2_000, 2);
    pipeline.wait_for_progress(4_000);
    first.kill();
    pipeline.produce(2_000, 3);
    pipeline.wait_for_progress(6_000);
    assert_eq!(second.terminate(), Some(0));
    pipeline.assert_exact(0);
}
