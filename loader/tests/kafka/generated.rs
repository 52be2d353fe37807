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
