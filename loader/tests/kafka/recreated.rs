//! A topic is deleted and created again under its name while it is loaded. Nobody tells the loader, whose client would read on from where
//! it was.

use rustix::process::Signal;
use tally_server_tests::cluster::Cluster;

use crate::broker;
use crate::pipeline::{Loader, PARTITIONS, Pipeline, World};

const OFTEN: &str = "timeouts = { anchor_check = \"500 ms\" }\n";

/// Deletes the topic, creates it and writes other messages into it, while the loader sees nothing of it.
fn recreate(pipeline: &Pipeline<'_>, loader: Option<&Loader>, messages: u64) {
    if let Some(loader) = loader {
        loader.signal(Signal::STOP);
    }
    pipeline.broker.delete_topic(&pipeline.topic);
    pipeline.broker.create_topic(&pipeline.topic, PARTITIONS, &[]);
    if messages > 0 {
        pipeline.produce(messages, 1_000 + messages);
    }
    if let Some(loader) = loader {
        loader.signal(Signal::CONT);
    }
}

#[test]
fn a_topic_that_is_created_again_while_it_is_loaded_stops_the_loader() {
    let Some(broker) = broker::shared() else { return };
    for messages in [400, 2_000, 3_000] {
        let mut pipeline = Pipeline::new(broker, Cluster::shared(), World::Plain);
        pipeline.policy += OFTEN;
        pipeline.produce(2_000, 1);
        let loader = pipeline.start(&[]);
        pipeline.wait_for_progress(2_000);
        recreate(&pipeline, Some(&loader), messages);
        let (code, log) = loader.outcome();
        assert_eq!(code, Some(5), "{log}");
        assert!(log.contains("created again"), "{log}");
        let stopped = "SELECT count(*) FROM tally.loader_status WHERE stopped_reason LIKE '%created again%'";
        assert_eq!(pipeline.number(stopped), i64::from(PARTITIONS));
    }
}
