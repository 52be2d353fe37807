//! Kafka or PostgreSQL go away and come back. The loader goes on by itself.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use tally_server_tests::cluster::Cluster;

use crate::broker::{self, Broker, PASSWORD, USER};
use crate::pipeline::{Pipeline, World, wait_until};
use crate::stand_in::StandIn;

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
    // Some lines for each outage, as connections come and go, and not one for each of the many looks.
    let lines = loader.said("the source does not answer");
    assert!((2..=12).contains(&lines), "{lines} lines");
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

/// Memory is full and stays so, because the table is locked. The client library tells its statistics and errors all the same, and they
/// must not pile up.
#[test]
fn a_stalled_loader_still_hears_the_client_library() {
    let Some(broker) = broker::shared() else { return };
    let stand_in = StandIn::start(broker);
    let mut pipeline = Pipeline::new(broker, Cluster::shared(), World::Plain);
    pipeline.servers = stand_in.servers();
    pipeline.source = format!(
        "sasl = {{ mechanism = \"PLAIN\", username_file = {:?}, password_file = {:?} }}\ntls = {{ ca_file = {:?} }}\n",
        pipeline.secret("user", USER),
        pipeline.secret("password", PASSWORD),
        broker.certificates.path("authority.pem")
    );
    pipeline.memory = "17 MiB";
    pipeline.policy = "batch = { rows = 500, bytes = \"64 KiB\", linger = \"20 ms\" }\n".into();
    let mut holder = pipeline.session();
    holder.batch_execute("BEGIN; LOCK TABLE public.events IN SHARE MODE").expect("the lock");
    let loader = pipeline.start(&["-v"]);
    pipeline.produce(60_000, 1);
    wait_until("fetching pauses", || loader.log().contains("fetching pauses"));
    stand_in.behaviour.idle_limit.store(300, Relaxed);
    wait_until("an idle connection was cut", || stand_in.record.idle_cuts.load(Relaxed) > 0);
    wait_until("the loader hears of it", || {
        loader.log().split("fetching pauses").last().is_some_and(|log| log.contains("Global error"))
    });
    assert_eq!(pipeline.progress(), 0);
    stand_in.behaviour.idle_limit.store(0, Relaxed);
    holder.batch_execute("ROLLBACK").expect("the lock is given up");
    pipeline.wait_for_progress(60_000);
    assert_eq!(loader.terminate(), Some(0));
    pipeline.assert_exact(0);
}

/// kafka-connect-jdbc #170: what cannot be written must not be read for ever.
#[test]
fn loader_keeps_to_its_memory_while_the_server_is_stalled() {
    const LIMIT: u64 = 32 << 20;
    /// What the client libraries and the allocator need besides, in a debug build.
    const MARGIN: u64 = 16 << 20;
    let Some(broker) = broker::shared() else { return };
    let mut pipeline = Pipeline::new(broker, Cluster::shared(), World::Plain);
    pipeline.memory = "32 MiB";
    pipeline.policy = "batch = { bytes = \"2 MiB\" }\n".into();
    pipeline.produce(1_000, 1);
    let loader = pipeline.start(&[]);
    pipeline.wait_for_progress(1_000);
    let (before, _) = loader.memory();
    let mut holder = pipeline.session();
    holder.batch_execute("BEGIN; LOCK TABLE public.events IN SHARE MODE").expect("the lock");
    pipeline.produce(250_000, 2);
    wait_until("the loader waits for the table", || pipeline.loader_waits_for("Lock"));
    // It has taken what it takes when it has not grown for 3 seconds, but for a page now and then: statistics of the client library come
    // every second.
    const PAGES: u64 = 512 << 10;
    let (mut most, mut grown, mut since) = (0, 0, Instant::now());
    wait_until("the loader reads no more", || {
        most = loader.memory().1;
        if most > grown + PAGES {
            (grown, since) = (most, Instant::now());
        }
        since.elapsed() > Duration::from_secs(3)
    });
    println!("{before} bytes before, {most} at most");
    assert!(most > before + (4 << 20), "the topic has more than fits: {before}, {most}");
    assert!(most < before + LIMIT + MARGIN, "{before} bytes before, {most} at most");
    holder.batch_execute("ROLLBACK").expect("the lock is given up");
    pipeline.wait_for_progress(251_000);
    let (_, most) = loader.memory();
    assert!(most < before + LIMIT + MARGIN, "{before} bytes before, {most} at most while it caught up");
    assert_eq!(loader.terminate(), Some(0));
    pipeline.assert_exact(0);
}
