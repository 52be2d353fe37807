//! Messages that are not plain events.

use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};
use tally_server_tests::cluster::Cluster;

use crate::broker;
use crate::pipeline::{DEADLINE, Pipeline, World};

/// Each malformed message is stored with its reason and its bytes, and the messages around it are rows.
#[test]
fn malformed_messages_become_dead_letters() {
    let Some(broker) = broker::shared() else { return };
    let pipeline = Pipeline::new(broker, Cluster::shared(), World::Extension);
    let time = r#""event_time":"2026-02-28T10:00:00Z""#;
    let cases = [
        ("not_json", "hello".to_owned()),
        ("not_json", String::new()),
        ("not_json", r#"{"customer_id":1"#.to_owned()),
        ("not_object", "[1]".to_owned()),
        ("not_object", "null".to_owned()),
        ("missing_required", format!("{{{time}}}")),
        ("missing_required", format!(r#"{{"customer_id":null,{time}}}"#)),
        ("wrong_type", format!(r#"{{"customer_id":"many",{time}}}"#)),
        ("wrong_type", format!(r#"{{"customer_id":1,"device_id":"12x",{time}}}"#)),
        ("out_of_range", format!(r#"{{"customer_id":9223372036854775808,{time}}}"#)),
        ("bad_text", format!(r#"{{"customer_id":1,"browser":"a\u0000b",{time}}}"#)),
        ("no_partition", r#"{"customer_id":1,"event_time":"1999-12-31T23:59:59Z"}"#.to_owned()),
    ];
    let bad_utf8 = [&br#"{"customer_id":1,"browser":""#[..], &[0xff, 0xfe], &br#""}"#[..]].concat();
    let good = format!(r#"{{"customer_id":7,"device_id":"12","session_id":3,"event_type":"click",{time}}}"#);
    for (_, text) in &cases {
        pipeline.send(&[good.as_bytes(), text.as_bytes(), good.as_bytes()]);
    }
    pipeline.send(&[&bad_utf8]);
    let rows = 2 * cases.len() as i64;
    let expected = format!(
        "INSERT INTO expected (event_time, customer_id, event_type, device_id, session_id)
           SELECT '2026-02-28T10:00:00Z', 7, 'click', 12, 3 FROM generate_series(1, {rows})"
    );
    pipeline.session().batch_execute(&expected).expect("expected rows");
    // Every second message is malformed, on purpose.
    let mut pipeline = pipeline;
    pipeline.policy.push_str("dead_letters = { stop_above_ratio = 1.0 }\n");
    pipeline.load_to_end();

    let found = pipeline
        .session()
        .query(
            "SELECT message_offset, reason, value FROM tally.dead_letters WHERE part = 0 ORDER BY message_offset",
            &[],
        )
        .expect("dead letters");
    let found: Vec<(i64, String, Vec<u8>)> = found.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
    assert_eq!(found.len(), cases.len() + 1);
    for (index, ((offset, reason, value), (wanted, text))) in found.iter().zip(&cases).enumerate() {
        assert_eq!(
            (*offset, reason.as_str(), value.as_slice()),
            (3 * index as i64 + 1, *wanted, text.as_bytes()),
            "{text}"
        );
    }
    assert_eq!(found.last().map(|(_, _, value)| value), Some(&bad_utf8));
    pipeline.assert_exact(cases.len() as i64 + 1);
}

/// One message in three is in a transaction that its producer aborted. Nobody may see those, and the position must not stand still
/// before the markers that the transactions leave in the topic.
#[test]
fn aborted_transactions_leave_no_rows() {
    let Some(broker) = broker::shared() else { return };
    let pipeline = Pipeline::new(broker, Cluster::shared(), World::Extension);
    let producer: BaseProducer =
        broker.client().set("transactional.id", &pipeline.topic).create().expect("a transactional producer");
    producer.init_transactions(DEADLINE).expect("a producer id");
    let mut committed = 0;
    for transaction in 0..30_i64 {
        producer.begin_transaction().expect("a transaction");
        for message in 0..20 {
            let device = transaction * 20 + message;
            let text =
                format!(r#"{{"customer_id":{transaction},"device_id":{device},"event_time":"2026-02-28T10:00:00Z"}}"#);
            let part = (device % i64::from(crate::pipeline::PARTITIONS)) as i32;
            producer
                .send(BaseRecord::<(), str>::to(&pipeline.topic).partition(part).payload(&text))
                .map_err(|(error, _)| error)
                .expect("the queue has room");
        }
        producer.flush(DEADLINE).expect("the broker acknowledges");
        // The last one is aborted too: the topic ends with markers that no row stands for.
        if transaction % 3 == 2 {
            producer.abort_transaction(DEADLINE).expect("an abort");
        } else {
            producer.commit_transaction(DEADLINE).expect("a commit");
            committed += 20;
            let insert = format!(
                "INSERT INTO expected (event_time, customer_id, device_id)
                   SELECT '2026-02-28T10:00:00Z', {transaction}, {transaction} * 20 + n FROM generate_series(0, 19) AS n"
            );
            pipeline.session().batch_execute(&insert).expect("expected rows");
        }
    }
    pipeline.load_to_end();
    assert_eq!(pipeline.number("SELECT count(*) FROM public.events"), committed);
    // Position equals the end of each part, behind the last marker: the lag is 0.
    pipeline.assert_exact(0);
}

/// What an open transaction has written is not there yet, and nobody waits for its end.
#[test]
fn an_open_transaction_does_not_hold_up_the_end() {
    let Some(broker) = broker::shared() else { return };
    let pipeline = Pipeline::new(broker, Cluster::shared(), World::Plain);
    pipeline.produce(400, 1);
    let producer: BaseProducer =
        broker.client().set("transactional.id", &pipeline.topic).create().expect("a transactional producer");
    producer.init_transactions(DEADLINE).expect("a producer id");
    producer.begin_transaction().expect("a transaction");
    let message = BaseRecord::<(), str>::to(&pipeline.topic).partition(0).payload("{}");
    producer.send(message).map_err(|(error, _)| error).expect("the queue has room");
    producer.flush(DEADLINE).expect("the broker acknowledges");
    pipeline.load_to_end();
    assert_eq!(pipeline.number("SELECT count(*) FROM public.events"), 400);
    producer.abort_transaction(DEADLINE).expect("an abort");
    pipeline.load_to_end();
    pipeline.assert_exact(0);
}

/// The broker has deleted messages that were never loaded. That is not for the loader to overlook.
#[test]
fn offset_gap_stops_or_is_recorded() {
    let Some(broker) = broker::shared() else { return };
    let mut pipeline = Pipeline::new(broker, Cluster::shared(), World::Plain);
    pipeline.produce(400, 1);
    pipeline.load_to_end();
    pipeline.produce(400, 2);
    let admin: AdminClient<DefaultClientContext> = broker.client().create().expect("an admin client");
    let mut before = TopicPartitionList::new();
    before.add_partition_offset(&pipeline.topic, 0, Offset::Offset(150)).expect("an offset");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(30)));
    runtime.block_on(admin.delete_records(&before, &options)).expect("messages are deleted");

    // Part 0 had 100 messages loaded and has lost the next 50.
    let stopped = pipeline.start(&["--until-end"]).wait();
    assert_eq!(pipeline.number("SELECT next_offset FROM tally.loader_offsets WHERE part = 0"), 100);
    assert_eq!(pipeline.number("SELECT count(*) FROM tally.loader_offsets WHERE stopped_reason IS NOT NULL"), 1);
    assert_eq!(pipeline.number("SELECT count(*) FROM public.events"), 700, "the other parts are loaded");
    assert_eq!(stopped, Some(5), "a part is left behind, and --until-end cannot be kept");

    pipeline.policy.push_str("on = { gap = \"record\" }\n");
    pipeline.load_to_end();
    let gap = pipeline
        .session()
        .query_one("SELECT part, from_offset, to_offset FROM tally.loader_gaps", &[])
        .expect("one gap");
    assert_eq!((gap.get::<_, i32>(0), gap.get::<_, i64>(1), gap.get::<_, i64>(2)), (0, 100, 150));
    assert_eq!(pipeline.number("SELECT count(*) FROM public.events"), 750);
}

/// Leases are rows in PostgreSQL: no group is joined, so none can rebalance.
#[test]
fn no_consumer_group_is_joined() {
    use rdkafka::consumer::{BaseConsumer, Consumer};

    let Some(broker) = broker::shared() else { return };
    let pipeline = Pipeline::new(broker, Cluster::shared(), World::Plain);
    pipeline.produce(100, 1);
    let loader = pipeline.start(&[]);
    pipeline.wait_for_progress(100);
    let consumer: BaseConsumer = broker.client().create().expect("a consumer");
    let groups = consumer.client().fetch_group_list(None, DEADLINE).expect("the groups of the broker");
    let names: Vec<_> = groups.groups().iter().map(|group| group.name().to_owned()).collect();
    // Other tests do join groups.
    assert!(!names.iter().any(|name| name.contains(&pipeline.topic)), "{names:?}");
    assert_eq!(loader.terminate(), Some(0));
}
