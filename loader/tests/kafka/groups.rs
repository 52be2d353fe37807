//! `ownership = "consumer-group"`: the group of Kafka shares the parts; positions and the fence are the same as with leases.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rustix::process::Signal;
use tally_server_tests::cluster::Cluster;

use crate::broker::{self, Broker, PASSWORD, USER};
use crate::pipeline::{DEADLINE, PARTITIONS, Pipeline, World, wait_until};
use crate::stand_in::{JOIN_GROUP, OFFSET_COMMIT, OFFSET_FETCH, StandIn};

/// Members that do not show up for the shortest time that brokers allow are replaced.
const CLASSIC: &str = "ownership = \"consumer-group\"\nlibrdkafka = { \"session.timeout.ms\" = \"6000\" }\n";
/// In the newer protocol the broker says for how long. Ours says 6 seconds, too.
const CONSUMER: &str = "ownership = \"consumer-group\"\nlibrdkafka = { \"group.protocol\" = \"consumer\" }\n";

fn pipeline<'a>(broker: &'a Broker, group: &str) -> Pipeline<'a> {
    let mut pipeline = Pipeline::new(broker, Cluster::shared(), World::Plain);
    pipeline.source = group.into();
    pipeline
}

/// Waits until so many living loaders hold all parts between them.
fn wait_for_owners(pipeline: &Pipeline<'_>, owners: i64) {
    let of = |what: &str| {
        pipeline.number(&format!(
            "SELECT count({what}) FROM tally.loader_leases JOIN tally.loader_members USING (member_id)
              WHERE expires_at > clock_timestamp()"
        ))
    };
    wait_until(&format!("{owners} loader(s) have all parts"), || {
        of("DISTINCT member_id") == owners && of("part") == i64::from(PARTITIONS)
    });
}

/// Whether the group is described by the request for groups of the classic protocol, which knows no others.
fn has_classic_members(pipeline: &Pipeline<'_>) -> bool {
    let consumer: BaseConsumer = pipeline.broker.client().create().expect("a consumer");
    let name = format!("tally-loader-{}", pipeline.topic);
    let groups = consumer.client().fetch_group_list(Some(&name), DEADLINE).expect("an answer of the broker");
    groups.groups().iter().any(|group| !group.members().is_empty())
}

#[test]
fn members_of_a_group_come_and_go_without_losing_or_doubling_a_row() {
    members_come_and_go(CLASSIC);
}

#[test]
fn members_of_a_group_of_the_newer_protocol_come_and_go_without_losing_or_doubling_a_row() {
    members_come_and_go(CONSUMER);
}

fn members_come_and_go(group: &str) {
    let Some(broker) = broker::shared() else { return };
    let pipeline = pipeline(broker, group);
    let first = pipeline.start(&[]);
    pipeline.produce(3_000, 1);
    pipeline.wait_for_progress(1);
    wait_for_owners(&pipeline, 1);
    assert_eq!(has_classic_members(&pipeline), group == CLASSIC);
    let second = pipeline.start(&[]);
    wait_for_owners(&pipeline, 2);
    pipeline.produce(3_000, 2);
    pipeline.wait_for_progress(6_000);

    first.kill();
    pipeline.produce(3_000, 3);
    pipeline.wait_for_progress(9_000);
    wait_for_owners(&pipeline, 1);

    let third = pipeline.start(&[]);
    pipeline.produce(3_000, 4);
    wait_for_owners(&pipeline, 2);
    // Who leaves in order says so: the others need not wait until its session ends.
    let started = Instant::now();
    assert_eq!(second.terminate(), Some(0));
    wait_for_owners(&pipeline, 1);
    assert!(started.elapsed() < Duration::from_secs(5), "the group waited for the session to end");
    pipeline.wait_for_progress(12_000);
    assert_eq!(third.terminate(), Some(0));
    pipeline.assert_exact(0);
}

/// The group takes its parts from a member that does not show up. It wakes up in the middle of its transaction.
#[test]
fn a_member_that_was_frozen_commits_nothing_that_another_has_loaded() {
    freeze_a_member(CLASSIC);
}

#[test]
fn a_member_of_the_newer_protocol_that_was_frozen_commits_nothing_that_another_has_loaded() {
    freeze_a_member(CONSUMER);
}

fn freeze_a_member(group: &str) {
    let Some(broker) = broker::shared() else { return };
    let pipeline = pipeline(broker, group);
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
    pipeline.produce(500, 3);
    pipeline.wait_for_progress(2_600);
    assert!(second.is_running());
    // Both are members again, and share the parts.
    wait_for_owners(&pipeline, 2);
    pipeline.produce(500, 4);
    pipeline.wait_for_progress(3_100);
    assert_eq!(second.terminate(), Some(0));
    assert_eq!(frozen.terminate(), Some(0));
    pipeline.assert_exact(0);
}

/// Somebody locks the table. Other members of the group are not held up by that.
#[test]
fn a_member_whose_server_is_stuck_gives_up_its_parts() {
    let Some(broker) = broker::shared() else { return };
    let pipeline = pipeline(broker, CLASSIC);
    pipeline.produce(100, 1);
    let first = pipeline.start(&[]);
    pipeline.wait_for_progress(100);
    let mut holder = pipeline.session();
    holder.batch_execute("BEGIN; LOCK TABLE public.events IN SHARE MODE").expect("the lock");
    pipeline.produce(1_000, 2);
    wait_until("the loader waits for the table", || pipeline.loader_waits_for("Lock"));
    let second = pipeline.start(&[]);
    wait_for_owners(&pipeline, 2);
    assert_eq!(pipeline.progress(), 100);
    holder.batch_execute("ROLLBACK").expect("the lock is given up");
    pipeline.wait_for_progress(1_100);
    assert_eq!(first.terminate(), Some(0));
    assert_eq!(second.terminate(), Some(0));
    pipeline.assert_exact(0);
}

/// The positions in Kafka are neither asked for nor written.
#[test]
fn a_group_is_joined_and_its_offsets_are_left_alone() {
    let Some(broker) = broker::shared() else { return };
    let stand_in = StandIn::start(broker);
    let mut pipeline = pipeline(broker, CLASSIC);
    pipeline.servers = stand_in.servers();
    pipeline.source += &format!(
        "sasl = {{ mechanism = \"PLAIN\", username_file = {:?}, password_file = {:?} }}\ntls = {{ ca_file = {:?} }}\n",
        pipeline.secret("user", USER),
        pipeline.secret("password", PASSWORD),
        broker.certificates.path("authority.pem")
    );
    pipeline.produce(500, 1);
    pipeline.load_to_end();
    pipeline.assert_exact(0);
    assert!(stand_in.record.requests_of(JOIN_GROUP) > 0, "a group was joined");
    assert_eq!(stand_in.record.requests_of(OFFSET_FETCH), 0);
    assert_eq!(stand_in.record.requests_of(OFFSET_COMMIT), 0);
}
