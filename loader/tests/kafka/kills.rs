//! The loader is killed, frozen or asked to stop, at chosen moments; `chaos` has all of them, in any order.

use rustix::process::Signal;
use tally_server_tests::cluster::Cluster;

use crate::broker;
use crate::pipeline::{Pipeline, World, wait_until};

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
    wait_until("the loader waits to move its position", || pipeline.loader_waits_for("Lock"));
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
    wait_until("the loader waits to move its position", || pipeline.loader_waits_for("Lock"));
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
