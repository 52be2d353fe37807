//! A topic is deleted and created again under its name while it is loaded. Nobody tells the loader, whose client would read on from where
//! it was.

use rustix::process::Signal;
use tally_server_tests::cluster::Cluster;

use crate::broker;
use crate::pipeline::{Loader, PARTITIONS, Pipeline, World, wait_until};

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

/// A loader with 2,000 messages of the first topic.
fn anew(broker: &'static broker::Broker) -> Pipeline<'static> {
    let mut pipeline = Pipeline::new(broker, Cluster::shared(), World::Plain);
    pipeline.policy += OFTEN;
    pipeline.policy += "on = { recreated = \"new-incarnation\" }\n";
    pipeline.produce(2_000, 1);
    pipeline
}

fn incarnations(pipeline: &Pipeline<'_>) -> i64 {
    pipeline.number("SELECT count(*) FROM tally.loader_sources")
}

#[test]
fn a_topic_that_is_created_again_is_loaded_from_its_beginning() {
    let Some(broker) = broker::shared() else { return };
    let pipeline = anew(broker);
    let loader = pipeline.start(&[]);
    let mut total = 2_000;
    pipeline.wait_for_progress(total);
    // As seen at once, and as seen step by step; fewer than before, as many, and more.
    for (round, (messages, is_frozen)) in
        [(400, true), (400, true), (3_000, true), (3_000, false), (100, false)].into_iter().enumerate()
    {
        recreate(&pipeline, is_frozen.then_some(&loader), messages);
        total += messages as i64;
        pipeline.wait_for_progress(total);
        pipeline.assert_exact(0);
        assert_eq!(incarnations(&pipeline), 2 + round as i64);
    }
    assert_eq!(loader.terminate(), Some(0));
    // Nobody is there to see it.
    for messages in [50, 100, 4_000] {
        recreate(&pipeline, None, messages);
        pipeline.load_to_end();
        pipeline.assert_exact(0);
    }
    let superseded = "SELECT count(*) FROM tally.loader_status WHERE stopped_reason LIKE 'superseded by incarnation %'";
    assert_eq!(pipeline.number(superseded), i64::from(PARTITIONS) * (incarnations(&pipeline) - 1));
}

#[test]
fn a_topic_that_is_created_again_with_fewer_parts_is_loaded_from_its_beginning() {
    let Some(broker) = broker::shared() else { return };
    let pipeline = anew(broker);
    let loader = pipeline.start(&[]);
    pipeline.wait_for_progress(2_000);
    broker.delete_topic(&pipeline.topic);
    broker.create_topic(&pipeline.topic, 1, &[]);
    pipeline.produce(1_000, 2);
    pipeline.wait_for_progress(3_000);
    assert_eq!(loader.terminate(), Some(0));
    pipeline.load_to_end();
    assert_eq!(pipeline.number("SELECT count(*) FROM public.events"), 3_000);
    assert_eq!(incarnations(&pipeline), 2);
}

#[test]
fn loaders_that_share_a_topic_go_over_to_one_new_incarnation() {
    let Some(broker) = broker::shared() else { return };
    let pipeline = anew(broker);
    let loaders = [pipeline.start(&[]), pipeline.start(&[])];
    pipeline.wait_for_progress(2_000);
    let mut total = 2_000;
    for round in 0..3 {
        let owners = "SELECT count(DISTINCT member_id) FROM tally.loader_leases WHERE source_id = (SELECT max(source_id) FROM tally.loader_sources)";
        wait_until("both have parts", || pipeline.number(owners) == 2);
        loaders.iter().for_each(|loader| loader.signal(Signal::STOP));
        let messages = 2_000 + 500 * round;
        recreate(&pipeline, None, messages);
        loaders.iter().for_each(|loader| loader.signal(Signal::CONT));
        total += messages as i64;
        pipeline.wait_for_progress(total);
        pipeline.assert_exact(0);
        assert_eq!(incarnations(&pipeline), 2 + round as i64);
    }
    for loader in loaders {
        assert_eq!(loader.terminate(), Some(0));
    }
    pipeline.assert_exact(0);
}

#[test]
fn a_kill_between_the_steps_of_a_new_incarnation_neither_loses_nor_doubles() {
    let Some(broker) = broker::shared() else { return };
    // Before the new incarnation is made, and after.
    for (lock, incarnations_then) in
        [("SELECT FROM tally.loader_offsets FOR UPDATE", 1), ("LOCK TABLE tally.loader_members IN EXCLUSIVE MODE", 2)]
    {
        let pipeline = anew(broker);
        let loader = pipeline.start(&[]);
        pipeline.wait_for_progress(2_000);
        loader.signal(Signal::STOP);
        recreate(&pipeline, None, 3_000);
        let mut holder = pipeline.session();
        holder.batch_execute(&format!("BEGIN; {lock}")).expect("the lock");
        loader.signal(Signal::CONT);
        let making = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'loader' AND datname = current_database()
                         AND wait_event_type = 'Lock' AND query LIKE '%tally.loader_offsets WHERE source_id = $1 ORDER BY part FOR UPDATE%'";
        wait_until("the loader has noticed", || {
            if incarnations_then == 1 { pipeline.number(making) > 0 } else { incarnations(&pipeline) == 2 }
        });
        loader.kill();
        holder.batch_execute("ROLLBACK").expect("the lock is given up");
        assert_eq!(incarnations(&pipeline), incarnations_then);
        let loader = pipeline.start(&[]);
        pipeline.wait_for_progress(5_000);
        assert_eq!(loader.terminate(), Some(0));
        pipeline.assert_exact(0);
        assert_eq!(incarnations(&pipeline), 2);
    }
}
