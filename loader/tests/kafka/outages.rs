//! Kafka or PostgreSQL go away and come back. The loader goes on by itself.

use tally_server_tests::cluster::Cluster;

use crate::broker::{self, Broker};
use crate::pipeline::{Pipeline, World};

#[test]
fn loader_survives_a_kill_and_restart_of_the_broker() {
    let Some(broker) = Broker::start() else { return };
    let pipeline = Pipeline::new(&broker, Cluster::shared(), World::Plain);
    pipeline.produce(2_000, 1);
    let mut loader = pipeline.start(&[]);
    pipeline.wait_for_progress(2_000);
    for (round, end) in [Broker::kill, Broker::stop].into_iter().enumerate() {
        end(&broker);
        assert!(loader.is_running());
        broker.restart();
        pipeline.produce(1_000, 2 + round as u64);
        pipeline.wait_for_progress(3_000 + 1_000 * round as i64);
    }
    assert_eq!(loader.terminate(), Some(0));
    pipeline.assert_exact(0);
}

/// With `synchronous_commit = off`, as is the default: what a crash loses, rows and positions alike, is read again.
#[test]
fn loader_survives_crashes_and_restarts_of_postgresql() {
    let Some(broker) = broker::shared() else { return };
    let cluster = Cluster::start(&[]);
    let pipeline = Pipeline::new(broker, &cluster, World::Extension);
    pipeline.produce(20_000, 1);
    let mut loader = pipeline.start(&[]);
    for (round, end) in [Cluster::crash, Cluster::restart, Cluster::crash].into_iter().enumerate() {
        pipeline.wait_for_progress(1_000 * (round as i64 + 1));
        end(&cluster);
        assert!(loader.is_running());
    }
    pipeline.wait_for_progress(20_000);
    assert_eq!(loader.terminate(), Some(0));
    pipeline.assert_exact(0);
}
