//! Writes messages to a topic of a real Kafka. Message `i` goes to part `i mod parts`, so the same seed gives the same topic.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use rdkafka::ClientContext;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};

use super::pace::Pace;
use super::records::Records;
use crate::{Error, Result};

/// How long a broker may take for metadata, and to create a topic.
const PATIENCE: Duration = Duration::from_secs(30);

/// Writes all messages and returns when each is acknowledged. A topic that is not there is created.
pub fn produce(
    records: &Records,
    pace: Pace,
    progress: &ProgressBar,
    servers: &str,
    topic: &str,
    partitions: u16,
) -> Result<()> {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", servers)
        // A retry must not write a message twice: truth and topic would differ.
        .set("enable.idempotence", "true")
        .set("linger.ms", "20")
        .set("batch.size", "500000")
        .set("compression.type", "lz4");
    let deliveries = Deliveries::default();
    let producer: BaseProducer<Deliveries> =
        config.create_with_context(deliveries.clone()).map_err(|error| Error::unfit(error.to_string()))?;
    let parts = parts(&producer, &config, topic, partitions)?;
    if let Some(producers) = records.producers().filter(|producers| *producers != parts) {
        return Err(Error::unfit_hint(
            format!("topic \"{topic}\" has {parts} partitions, and the events are made for {producers}"),
            format!("Each partition is one producer: --partitions {parts}, or another topic."),
        ));
    }

    let started = Instant::now();
    let (mut index, mut outcome) = (0_u64, Ok(()));
    let visited = records.visit(0, 1, &mut |message| {
        if pace.pauses_before(index) {
            producer.poll(Duration::ZERO);
            pace.pause(started, index);
        }
        let part = (index % u64::from(parts)) as i32;
        outcome = send(&producer, topic, part, message).and_then(|()| deliveries.check());
        index += 1;
        if index.is_multiple_of(4_096) {
            producer.poll(Duration::ZERO);
            progress.set_position(index);
        }
        if outcome.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    visited.map_err(|error: io::Error| Error::unfit(format!("cannot read the messages: {error}")))?;
    outcome?;
    producer.flush(Duration::from_secs(300)).map_err(|error| lost(&error))?;
    deliveries.check()?;
    let acknowledged = deliveries.acknowledged.load(Ordering::Relaxed);
    if acknowledged != index {
        return Err(Error::Bug(format!("{index} messages were sent and {acknowledged} acknowledged")));
    }
    progress.set_position(index);
    Ok(())
}

/// Queues one message; waits while the queue is full.
fn send(producer: &BaseProducer<Deliveries>, topic: &str, part: i32, message: Option<&[u8]>) -> Result<()> {
    let mut record = BaseRecord::<(), [u8]>::to(topic).partition(part);
    record.payload = message;
    loop {
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), unsent)) => {
                record = unsent;
                producer.poll(Duration::from_millis(100));
            }
            Err((error, _)) => return Err(lost(&error)),
        }
    }
}

/// The number of parts of the topic, which is created if it is not there.
fn parts(producer: &BaseProducer<Deliveries>, config: &ClientConfig, topic: &str, partitions: u16) -> Result<u32> {
    let unreachable = |error: KafkaError| Error::Unreachable(format!("Kafka does not answer: {error}"));
    // All topics: to ask for one by name would create it on a broker that does so by itself, with its own number of parts.
    let known = || {
        let metadata = producer.client().fetch_metadata(None, PATIENCE).map_err(unreachable)?;
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        Ok(found.map(|found| u32::try_from(found.partitions().len()).unwrap_or(u32::MAX).max(1)))
    };
    if let Some(parts) = known()? {
        return Ok(parts);
    }
    let admin: AdminClient<DefaultClientContext> = config.create().map_err(|error| Error::unfit(error.to_string()))?;
    let wanted = NewTopic::new(topic, partitions.into(), TopicReplication::Fixed(-1));
    let options = AdminOptions::new().operation_timeout(Some(PATIENCE));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Error::Bug(format!("cannot start a runtime: {error}")))?;
    let created = runtime.block_on(admin.create_topics([&wanted], &options)).map_err(unreachable)?;
    match created.into_iter().find_map(std::result::Result::err) {
        None => {}
        Some((_, RDKafkaErrorCode::TopicAlreadyExists)) => {
            // The broker that was asked did not know of it yet.
            let start = Instant::now();
            while start.elapsed() < PATIENCE {
                if let Some(parts) = known()? {
                    return Ok(parts);
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            return Err(Error::Unreachable(format!("the brokers do not tell the parts of topic \"{topic}\"")));
        }
        Some((_, code)) => return Err(Error::unfit(format!("cannot create topic \"{topic}\": {code}"))),
    }
    tracing::info!("created topic \"{topic}\" with {partitions} partitions");
    Ok(partitions.into())
}

fn lost(error: &KafkaError) -> Error {
    Error::Unreachable(format!("cannot write to the topic: {error}"))
}

/// What became of the messages sent.
#[derive(Clone, Debug, Default)]
struct Deliveries {
    acknowledged: Arc<AtomicU64>,
    failed: Arc<std::sync::Mutex<Option<String>>>,
}

impl Deliveries {
    /// The first message that was given up, if any.
    fn check(&self) -> Result<()> {
        let failed = self.failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        failed
            .as_ref()
            .map_or(Ok(()), |error| Err(Error::Unreachable(format!("a message was not acknowledged: {error}"))))
    }
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        match result {
            Ok(_) => {
                self.acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            Err((error, _)) => {
                let mut failed = self.failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                failed.get_or_insert_with(|| error.to_string());
            }
        }
    }
}
