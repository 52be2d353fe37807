//! Kafka through librdkafka. Partitions are assigned, never subscribed: no consumer group is joined and no offset committed,
//! because positions live in PostgreSQL.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Headers, Message as _};
use rdkafka::statistics::Statistics;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::{Bounds, Polled, Source, SourceError};
use crate::config::{self, Mechanism, Profile};
use crate::message::{Arena, Message, headers_as_json};

/// How long one question to the brokers may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A topic of a Kafka cluster.
pub struct KafkaSource {
    consumer: BaseConsumer<Context>,
    topic: String,
    brokers: String,
    starts: BTreeMap<i32, i64>,
}

impl std::fmt::Debug for KafkaSource {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("KafkaSource").field("topic", &self.topic).finish_non_exhaustive()
    }
}

/// What librdkafka tells from its own threads.
#[derive(Default)]
struct Context {
    /// Part -> (high watermark, last stable offset).
    ends: Mutex<BTreeMap<i32, (i64, i64)>>,
    /// Login or TLS failed; the client library would try for ever.
    refused: Mutex<Option<String>>,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        // What matters comes as an error or as the result of a poll; the rest is for debugging.
        tracing::debug!(?level, facility, "librdkafka: {message}");
    }

    fn stats(&self, statistics: Statistics) {
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        for partition in statistics.topics.values().flat_map(|topic| topic.partitions.values()) {
            if partition.partition >= 0 && partition.hi_offset >= 0 {
                ends.insert(partition.partition, (partition.hi_offset, partition.ls_offset));
            }
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let refusal = matches!(
            error.rdkafka_error_code(),
            Some(RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SSL | RDKafkaErrorCode::SaslAuthenticationFailed)
        );
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = refusal.then(|| reason.to_owned());
        tracing::debug!("librdkafka: {error}: {reason}");
    }
}

impl ConsumerContext for Context {}

impl KafkaSource {
    /// Makes a client; nothing is sent yet. `memory` is the limit of the whole loader.
    pub fn new(source: &config::Source, pipeline: &str, memory: usize) -> Result<Self, SourceError> {
        let brokers = source.kafka.brokers.join(",");
        let mut settings = ClientConfig::new();
        let queue = (memory / 4 / 1024).clamp(1024, 32_768);
        for (key, value) in [
            ("bootstrap.servers", brokers.as_str()),
            ("client.id", "tally-loader"),
            // Required by the client library; nothing is ever sent about a group.
            ("group.id", &format!("tally-loader-{pipeline}")),
            ("socket.keepalive.enable", "true"),
            ("reconnect.backoff.max.ms", "1000"),
            ("fetch.wait.max.ms", "100"),
            ("fetch.queue.backoff.ms", "20"),
            ("queued.max.messages.kbytes", &queue.to_string()),
            ("topic.metadata.refresh.interval.ms", "60000"),
        ] {
            settings.set(key, value);
        }
        if source.kafka.profile == Profile::EventHubs {
            for (key, value) in [
                ("metadata.max.age.ms", "180000"),
                ("connections.max.idle.ms", "180000"),
                ("socket.timeout.ms", "60000"),
                ("api.version.request", "true"),
                ("security.protocol", "SASL_SSL"),
            ] {
                settings.set(key, value);
            }
        }
        if let Some(tls) = &source.tls {
            settings.set("security.protocol", "SSL");
            for (key, file) in [
                ("ssl.ca.location", &tls.ca_file),
                ("ssl.certificate.location", &tls.certificate_file),
                ("ssl.key.location", &tls.key_file),
            ] {
                if let Some(file) = file {
                    settings.set(key, file.to_string_lossy());
                }
            }
            if let Some(password) = &tls.key_password {
                settings.set("ssl.key.password", password.reveal());
            }
        }
        if let Some(sasl) = &source.sasl {
            settings.set("security.protocol", "SASL_SSL");
            settings.set(
                "sasl.mechanism",
                match sasl.mechanism {
                    Mechanism::Plain => "PLAIN",
                    Mechanism::ScramSha256 => "SCRAM-SHA-256",
                    Mechanism::ScramSha512 => "SCRAM-SHA-512",
                },
            );
            for (key, secret) in [("sasl.username", &sasl.username), ("sasl.password", &sasl.password)] {
                if let Some(secret) = secret {
                    settings.set(key, secret.reveal());
                }
            }
        }
        for (key, value) in &source.librdkafka {
            settings.set(key, value);
        }
        // Last, because exactly-once rests on them.
        for (key, value) in [
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("auto.offset.reset", "error"),
            ("isolation.level", "read_committed"),
            ("enable.partition.eof", "true"),
            ("check.crcs", "true"),
            ("statistics.interval.ms", "1000"),
        ] {
            settings.set(key, value);
        }
        settings.set_log_level(RDKafkaLogLevel::Warning);
        let consumer = settings
            .create_with_context(Context::default())
            .map_err(|error| SourceError::Refused(format!("the settings of Kafka are not accepted: {error}")))?;
        Ok(Self { consumer, topic: source.kafka.topic.clone(), brokers, starts: BTreeMap::new() })
    }

    /// Login errors come from another thread than the question that fails because of them.
    fn error(&self, error: &KafkaError) -> SourceError {
        if let Some(reason) = self.consumer.context().refused.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            return SourceError::Refused(reason);
        }
        match error.rdkafka_error_code() {
            Some(
                RDKafkaErrorCode::UnknownTopic
                | RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::UnknownPartition,
            ) => SourceError::NoTopic(format!("the brokers at {} have no topic \"{}\"", self.brokers, self.topic)),
            Some(
                RDKafkaErrorCode::TopicAuthorizationFailed
                | RDKafkaErrorCode::ClusterAuthorizationFailed
                | RDKafkaErrorCode::GroupAuthorizationFailed
                | RDKafkaErrorCode::Fatal,
            ) => SourceError::Refused(error.to_string()),
            _ => SourceError::Unreachable(format!("{}: {error}", self.brokers)),
        }
    }

    /// Serves errors and statistics, which wait in the same queue as messages.
    fn serve(&self) {
        if self.starts.is_empty() {
            let _ = self.consumer.poll(Duration::ZERO);
        }
    }

    /// Where reading goes on after the end of a part was reached: behind transaction markers, which are no messages.
    fn position(&self, part: i32) -> Option<i64> {
        let positions = self.consumer.position().ok()?;
        match positions.find_partition(&self.topic, part)?.offset() {
            Offset::Offset(position) => Some(position),
            _ => None,
        }
    }

    /// The part whose position the brokers do not have. The client library tells that there is one, but not which.
    fn out_of_range(&mut self) -> Result<Option<i32>, SourceError> {
        let parts: Vec<(i32, i64)> = self.starts.iter().map(|(part, start)| (*part, *start)).collect();
        for (part, start) in parts {
            let position = self.position(part).unwrap_or(start);
            let bounds = self.bounds(part)?;
            if position < bounds.start || position > bounds.end {
                return Ok(Some(part));
            }
        }
        Ok(None)
    }
}

impl Source for KafkaSource {
    fn cluster(&mut self) -> Result<String, SourceError> {
        self.parts()?; // an answer of any broker, so that the next question does not wait in vain
        Ok(self.consumer.client().fetch_cluster_id(TIMEOUT).unwrap_or_else(|| self.brokers.clone()))
    }

    fn parts(&mut self) -> Result<Vec<i32>, SourceError> {
        self.serve();
        let metadata = self.consumer.fetch_metadata(Some(&self.topic), TIMEOUT).map_err(|error| {
            self.serve();
            self.error(&error)
        })?;
        let Some(topic) = metadata.topics().first() else {
            return Err(SourceError::NoTopic(format!("the brokers know nothing of topic \"{}\"", self.topic)));
        };
        if let Some(code) = topic.error() {
            return Err(self.error(&KafkaError::MetadataFetch(code.into())));
        }
        let mut parts: Vec<i32> = topic.partitions().iter().map(|partition| partition.id()).collect();
        if parts.is_empty() {
            return Err(SourceError::Unreachable(format!("topic \"{}\" has no partitions yet", self.topic)));
        }
        parts.sort_unstable();
        Ok(parts)
    }

    fn bounds(&mut self, part: i32) -> Result<Bounds, SourceError> {
        let (start, end) =
            self.consumer.fetch_watermarks(&self.topic, part, TIMEOUT).map_err(|error| self.error(&error))?;
        Ok(Bounds { start, end })
    }

    fn offset_at(&mut self, part: i32, time: i64) -> Result<i64, SourceError> {
        let mut times = TopicPartitionList::new();
        times.add_partition_offset(&self.topic, part, Offset::Offset(time)).map_err(|error| self.error(&error))?;
        let found = self.consumer.offsets_for_times(times, TIMEOUT).map_err(|error| self.error(&error))?;
        match found.find_partition(&self.topic, part).map(|element| element.offset()) {
            Some(Offset::Offset(offset)) => Ok(offset),
            _ => Ok(self.bounds(part)?.end),
        }
    }

    fn assign(&mut self, starts: &[(i32, i64)]) -> Result<(), SourceError> {
        let mut list = TopicPartitionList::new();
        for (part, start) in starts {
            // In the assignment itself: a seek after it races with the first fetch.
            list.add_partition_offset(&self.topic, *part, Offset::Offset(*start))
                .map_err(|error| self.error(&error))?;
        }
        self.consumer.assign(&list).map_err(|error| self.error(&error))?;
        self.starts = starts.iter().copied().collect();
        Ok(())
    }

    fn poll(&mut self, into: &mut Arena, limit: usize, wait: Duration) -> Result<Polled, SourceError> {
        let mut wait = wait;
        loop {
            let polled = match self.consumer.poll(wait) {
                None => return Ok(Polled::Idle),
                Some(polled) => polled,
            };
            wait = Duration::ZERO;
            match polled {
                Ok(message) => {
                    let headers = message
                        .headers()
                        .map(|headers| headers_as_json(headers.iter().map(|header| (header.key, header.value))));
                    into.push(Message {
                        part: message.partition(),
                        offset: message.offset(),
                        time: message.timestamp().to_millis(),
                        key: message.key(),
                        value: message.payload(),
                        headers: headers.as_deref(),
                    });
                    if into.size() >= limit {
                        return Ok(Polled::Messages);
                    }
                }
                Err(KafkaError::PartitionEOF(part)) => {
                    let position = self.position(part).or(self.starts.get(&part).copied());
                    // Nothing is known of a part that is not assigned any more.
                    let Some(position) = position else { continue };
                    return Ok(Polled::EndOfPart { part, position });
                }
                Err(error) => match error.rdkafka_error_code() {
                    Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) => {
                        if let Some(part) = self.out_of_range()? {
                            return Ok(Polled::OutOfRange { part });
                        }
                    }
                    _ => return Err(self.error(&error)),
                },
            }
        }
    }

    fn ends(&mut self) -> Vec<(i32, i64, i64)> {
        let ends = self.consumer.context().ends.lock().unwrap_or_else(PoisonError::into_inner);
        ends.iter().map(|(part, (high, stable))| (*part, *high, *stable)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_settings_are_refused_by_name() {
        let config: config::Source = toml::from_str(
            "kafka = { brokers = [\"127.0.0.1:1\"], topic = \"t\" }\nlibrdkafka = { \"no.such.setting\" = \"1\" }",
        )
        .unwrap();
        let error = KafkaSource::new(&config, "p", 128 << 20).unwrap_err().to_string();
        assert!(error.contains("no.such.setting"), "{error}");
    }
}
