//! `generate --to topic` and `generate` to standard output are the same events.

use std::process::Command;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};

use crate::broker;
use crate::pipeline::DEADLINE;

#[test]
fn a_generated_topic_holds_the_generated_lines_in_order() {
    let Some(broker) = broker::shared() else { return };
    let generate = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tally-loader"));
        let output = command.args(["generate", "--rows", "10000", "--seed", "5"]).args(arguments).output();
        let output = output.expect("generate runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("events are text")
    };
    // The topic does not exist: it is created.
    generate(&["--to", "topic", "--brokers", &broker.servers(), "--topic", "generated", "--partitions", "3"]);
    let lines = generate(&[]);
    let lines: Vec<_> = lines.lines().collect();

    // A group id is needed to assign parts; without commits no group comes into being.
    let mut config = broker.client();
    let consumer: BaseConsumer =
        config.set("group.id", "generated").set("enable.auto.commit", "false").create().expect("a consumer");
    for part in 0..3 {
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset("generated", part, Offset::Offset(0)).expect("an offset");
        consumer.assign(&assignment).expect("an assignment");
        for (offset, line) in (0..).zip(lines.iter().skip(part as usize).step_by(3)) {
            let message = consumer.poll(DEADLINE).expect("a message in time").expect("a message");
            assert_eq!((message.partition(), message.offset()), (part, offset));
            assert_eq!(message.payload(), Some(line.as_bytes()));
        }
    }
    let ends: i64 = broker.ends("generated", 3).iter().map(|(_, end)| end).sum();
    assert_eq!(ends, 10_000);
}

#[test]
fn a_realistic_topic_has_its_defects_where_the_truth_says() {
    let Some(broker) = broker::shared() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let truth = folder.path().join("truth.json");
    let generate = |partitions: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tally-loader"));
        command.args(["generate", "--mode", "realistic", "--rows", "5000", "--malformed", "0.05", "--to", "topic"]);
        command.args(["--topic", "realistic", "--brokers", &broker.servers(), "--partitions", partitions, "--truth"]);
        command.arg(&truth).output().expect("generate runs")
    };
    let output = generate("3");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let facts: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&truth).expect("the truth")).expect("the truth is JSON");
    let defects = facts["defects"].as_array().expect("defects");
    let at = |kind: &str| {
        let of_kind = defects.iter().filter(|defect| defect["kind"] == kind);
        let places =
            of_kind.map(|defect| (defect["part"].as_i64().unwrap() as i32, defect["offset"].as_i64().unwrap()));
        let mut places: Vec<_> = places.collect();
        places.sort_unstable();
        places
    };

    let mut config = broker.client();
    let consumer: BaseConsumer =
        config.set("group.id", "realistic").set("enable.auto.commit", "false").create().expect("a consumer");
    let (mut tombstones, mut arrays, mut events) = (Vec::new(), Vec::new(), std::collections::BTreeMap::new());
    for (part, (_, end)) in (0..).zip(broker.ends("realistic", 3)) {
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset("realistic", part, Offset::Offset(0)).expect("an offset");
        consumer.assign(&assignment).expect("an assignment");
        for offset in 0..end {
            let message = consumer.poll(DEADLINE).expect("a message in time").expect("a message");
            assert_eq!((message.partition(), message.offset()), (part, offset));
            match message.payload() {
                None => tombstones.push((part, offset)),
                Some(value) if value.starts_with(b"[") => arrays.push((part, offset)),
                Some(value) => _ = events.insert((part, offset), value.to_vec()),
            }
        }
    }
    assert!(!tombstones.is_empty() && !arrays.is_empty());
    assert_eq!((tombstones, arrays), (at("tombstone"), at("not_object")));
    for defect in defects.iter().filter(|defect| defect["kind"] == "duplicate") {
        let place = |name: &str| (defect["part"].as_i64().unwrap() as i32, defect[name].as_i64().unwrap());
        assert_eq!(events[&place("offset")], events[&place("of")], "{defect}");
    }

    // The topic is there now, and its events are made for three producers.
    let output = generate("2");
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stderr).contains("has 3 partitions"));
}
