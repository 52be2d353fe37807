//! The profile `event-hubs` against a stand-in: the real broker behind what Azure does to connections. Ten idle minutes there are
//! seconds here.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use tally_server_tests::cluster::Cluster;

use crate::broker::{self, Broker, CONNECTION_STRING};
use crate::pipeline::{Pipeline, World, wait_until};
use crate::stand_in::{CONSUMER_GROUP_HEARTBEAT, FETCH, JOIN_GROUP, OFFSET_COMMIT, OFFSET_FETCH, StandIn};

const BURSTS: u64 = 3;
/// From the start of the producer to the rows of its last messages.
const LONGEST: Duration = Duration::from_secs(2);

/// The configuration of the documentation, with a private authority.
fn pipeline<'a>(broker: &'a Broker, stand_in: &StandIn, librdkafka: &str) -> Pipeline<'a> {
    let mut pipeline = Pipeline::new(broker, Cluster::shared(), World::Plain);
    pipeline.servers = stand_in.servers();
    pipeline.kafka = ", profile = \"event-hubs\"".into();
    let password = pipeline.secret("connection-string", CONNECTION_STRING);
    pipeline.source = format!(
        "sasl = {{ mechanism = \"PLAIN\", password_file = {password:?} }}\n\
         tls = {{ ca_file = {:?} }}\n\
         librdkafka = {{ {librdkafka} }}\n",
        broker.certificates.path("authority.pem")
    );
    pipeline
}

/// Positions are in PostgreSQL, and parts are shared by leases there.
fn assert_no_group_requests(stand_in: &StandIn) {
    assert!(stand_in.record.requests_of(FETCH) > 0, "the stand-in counts requests");
    for key in [JOIN_GROUP, OFFSET_FETCH, OFFSET_COMMIT, CONSUMER_GROUP_HEARTBEAT] {
        assert_eq!(stand_in.record.requests_of(key), 0, "requests with key {key}");
    }
}

#[test]
fn a_burst_after_idle_time_arrives_once_although_connections_were_cut() {
    let Some(broker) = broker::shared() else { return };
    let stand_in = StandIn::start(broker);
    // A fetch waits for longer than a connection may be idle: so every connection is cut, that of the messages too.
    let pipeline = pipeline(broker, &stand_in, "\"fetch.wait.max.ms\" = \"3000\"");
    pipeline.produce(400, 1);
    let mut loader = pipeline.start(&[]);
    pipeline.wait_for_progress(400);
    stand_in.behaviour.idle_limit.store(500, Relaxed);
    for burst in 1..=BURSTS {
        let before = stand_in.record.idle_cuts.load(Relaxed);
        wait_until("connections were cut", || stand_in.record.idle_cuts.load(Relaxed) >= before + 5);
        assert!(loader.is_running());
        let started = Instant::now();
        pipeline.produce(4_000, 1 + burst);
        pipeline.wait_for_progress(400 + 4_000 * burst.cast_signed());
        let taken = started.elapsed();
        println!("burst {burst}: produced and loaded in {taken:?}");
        assert!(taken < LONGEST, "a burst after idle time took {taken:?}");
    }
    let log = loader.log();
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
    assert!(!log.contains("SharedAccessKey"), "{log}");
    assert_eq!(loader.terminate(), Some(0));
    pipeline.assert_exact(0);
    assert_no_group_requests(&stand_in);
}

/// The loader was told to stop at the end. Empty answers are no end.
#[test]
fn throttled_answers_are_no_end_and_are_counted() {
    let Some(broker) = broker::shared() else { return };
    let stand_in = StandIn::start(broker);
    let pipeline = pipeline(broker, &stand_in, "");
    pipeline.produce(2_000, 1);
    stand_in.behaviour.throttle.store(200, Relaxed);
    let mut loader = pipeline.start(&["--until-end"]);
    wait_until("answers are throttled", || {
        assert!(loader.is_running(), "an empty answer was taken for the end");
        stand_in.record.throttled.load(Relaxed) >= 5
    });
    wait_until("throttling is in the metrics", || loader.metric("throttle_seconds_total") >= 0.4);
    assert!(loader.is_running());
    assert_eq!(pipeline.progress(), 0);
    stand_in.behaviour.throttle.store(0, Relaxed);
    assert_eq!(loader.wait(), Some(0));
    pipeline.assert_exact(0);
    assert_no_group_requests(&stand_in);
}

#[test]
fn answers_that_end_in_their_middle_are_asked_for_again() {
    let Some(broker) = broker::shared() else { return };
    let stand_in = StandIn::start(broker);
    let pipeline = pipeline(broker, &stand_in, "");
    let mut loader = pipeline.start(&[]);
    for round in 1..=5 {
        stand_in.behaviour.cut_next_answer.store(true, Relaxed);
        pipeline.produce(1_000, round);
        pipeline.wait_for_progress(1_000 * round.cast_signed());
        assert_eq!(stand_in.record.cut_answers.load(Relaxed), round);
    }
    assert!(loader.is_running());
    assert_eq!(loader.terminate(), Some(0));
    pipeline.assert_exact(0);
    assert_no_group_requests(&stand_in);
}
