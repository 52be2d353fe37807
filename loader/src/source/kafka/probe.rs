//! Single records of a topic, read by a client of its own, so that the running assignment is left alone. A new client knows nothing of
//! the past either: what it reads is what the topic is now.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::context::Context;
use super::is_away;
use crate::config::Sasl;
use crate::message::Message;
use crate::offsets::Anchor;
use crate::source::{Bounds, Probe, Sight, SourceError};

/// How long a look may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long a cancelled look goes on.
const TURN: Duration = Duration::from_millis(50);

/// One record is wanted, not what follows it.
const SETTINGS: &[(&str, &str)] = &[
    ("queued.min.messages", "1"),
    ("queued.max.messages.kbytes", "64"),
    ("fetch.message.max.bytes", "4096"),
    ("fetch.max.bytes", "1048576"),
    ("statistics.interval.ms", "0"),
];

pub(super) struct KafkaProbe {
    settings: ClientConfig,
    sasl: Option<Sasl>,
    topic: String,
    consumer: Option<BaseConsumer<Context>>,
}

impl KafkaProbe {
    /// Makes no connection yet. `settings` are those of the client that reads the topic.
    pub(super) fn new(settings: &ClientConfig, sasl: Option<&Sasl>, topic: &str) -> Self {
        let mut settings = settings.clone();
        SETTINGS.iter().for_each(|(key, value)| _ = settings.set(*key, *value));
        Self { settings, sasl: sasl.cloned(), topic: topic.to_owned(), consumer: None }
    }
}

impl Probe for KafkaProbe {
    fn look(&mut self, at: &[(i32, i64)], is_cancelled: &AtomicBool) -> Result<Vec<(i32, Sight)>, SourceError> {
        let consumer = match self.consumer.take() {
            Some(consumer) => consumer,
            None => {
                let created = self.settings.create_with_context(Context::new(self.sasl.as_ref()));
                created.map_err(|error| SourceError::Refused(error.to_string()))?
            }
        };
        let look = Look { consumer: &consumer, topic: &self.topic };
        let seen = look.at(at, is_cancelled)?;
        // After an error the next look begins with another client.
        self.consumer = Some(consumer);
        Ok(seen)
    }

    fn close(&mut self) {
        self.consumer = None;
    }
}

struct Look<'a> {
    consumer: &'a BaseConsumer<Context>,
    topic: &'a str,
}

impl Look<'_> {
    fn at(&self, at: &[(i32, i64)], is_cancelled: &AtomicBool) -> Result<Vec<(i32, Sight)>, SourceError> {
        let mut list = TopicPartitionList::new();
        for (part, offset) in at {
            list.add_partition_offset(self.topic, *part, Offset::Offset(*offset)).map_err(|error| failed(&error))?;
        }
        self.consumer.assign(&list).map_err(|error| failed(&error))?;
        let mut unseen: BTreeMap<i32, i64> = at.iter().copied().collect();
        let mut seen = Vec::with_capacity(unseen.len());
        let started = Instant::now();
        while !unseen.is_empty() {
            if is_cancelled.load(Relaxed) || started.elapsed() > TIMEOUT {
                return Err(SourceError::Unreachable(format!("no answer about {} part(s)", unseen.len())));
            }
            match self.consumer.poll(TURN) {
                None => {}
                Some(Ok(message)) => {
                    let (part, offset, time) = (message.partition(), message.offset(), message.timestamp().to_millis());
                    let (key, value) = (message.key(), message.payload());
                    let hash = Message { part, offset, time, key, value, headers: None }.hash();
                    if unseen.remove(&part).is_some() {
                        seen.push((part, Sight::Record(Anchor { offset, time, hash })));
                    }
                }
                Some(Err(KafkaError::PartitionEOF(part))) if unseen.remove(&part).is_some() => {
                    seen.push((part, Sight::End { position: self.position(part)? }));
                }
                Some(Err(error)) => match error.rdkafka_error_code() {
                    Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) => {
                        self.find_out_of_range(&mut unseen, &mut seen)?;
                    }
                    _ if is_away(&error) || matches!(error, KafkaError::PartitionEOF(_)) => {}
                    _ => return Err(failed(&error)),
                },
            }
        }
        // Nothing more is fetched meanwhile.
        self.consumer.unassign().map_err(|error| failed(&error))?;
        Ok(seen)
    }

    /// The client library tells that there is a part without such an offset, but not which.
    fn find_out_of_range(
        &self,
        unseen: &mut BTreeMap<i32, i64>,
        seen: &mut Vec<(i32, Sight)>,
    ) -> Result<(), SourceError> {
        for (part, offset) in unseen.clone() {
            let bounds = self.bounds(part)?;
            if offset < bounds.start || offset > bounds.end {
                unseen.remove(&part);
                seen.push((part, Sight::OutOfRange(bounds)));
            }
        }
        Ok(())
    }

    /// Where reading goes on at the end of a part.
    fn position(&self, part: i32) -> Result<i64, SourceError> {
        let position = || -> KafkaResult<Option<Offset>> {
            Ok(self.consumer.position()?.find_partition(self.topic, part).map(|element| element.offset()))
        };
        match position() {
            Ok(Some(Offset::Offset(position))) => Ok(position),
            _ => Ok(self.bounds(part)?.end),
        }
    }

    fn bounds(&self, part: i32) -> Result<Bounds, SourceError> {
        let (start, end) = self.consumer.fetch_watermarks(self.topic, part, TIMEOUT).map_err(|error| failed(&error))?;
        Ok(Bounds { start, end })
    }
}

fn failed(error: &KafkaError) -> SourceError {
    if let Some(
        RDKafkaErrorCode::UnknownTopic | RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownPartition,
    ) = error.rdkafka_error_code()
    {
        return SourceError::NoTopic(error.to_string());
    }
    SourceError::Unreachable(error.to_string())
}
