//! Kafka through librdkafka. No offset is ever committed or asked for there, because positions live in PostgreSQL. With leases, the
//! default, parts are assigned and no consumer group is joined; with a group, it decides which parts are ours, and nothing else.

mod context;
mod denial;
mod group;
mod probe;
mod queue;
mod settings;
mod token;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{Headers, Message as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::sync::mpsc;

use self::context::Context;
use self::denial::Denial;
use self::probe::KafkaProbe;
use self::queue::{Failure, Queue};
use self::settings::settings;
use super::{Bounds, Polled, Probe, Rebalance, Source, SourceError};
use crate::config::{self, Ownership, Sasl};
use crate::message::{Arena, Message, headers_as_json};

/// How long one question to the brokers may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A topic of a Kafka cluster.
pub struct KafkaSource {
    /// Where messages come from; not in a group, whose parts the client library assigns. It goes before the consumer.
    queue: Option<Queue>,
    consumer: BaseConsumer<Context>,
    /// What stood between messages that were handed over already.
    failures: VecDeque<Failure>,
    /// Parts whose end was reached, and where that is, to be told when nothing more is there. When messages come as fast as they are
    /// read, an end stands behind every few of them, and to stop at each takes more time than they leave.
    reached: BTreeMap<i32, i64>,
    /// Parts of which nothing has come since they were assigned.
    silent: BTreeSet<i32>,
    topic: String,
    brokers: String,
    /// Where each part was assigned; in a queue of our own, where it is read next.
    starts: BTreeMap<i32, i64>,
    /// The parts are those that a consumer group gives.
    in_group: bool,
    /// In a group: the parts that are read now.
    current: BTreeSet<i32>,
    /// For other clients of the same topic.
    settings: ClientConfig,
    sasl: Option<Sasl>,
    /// In a group: these are paused, and would stay so.
    is_paused: bool,
}

impl std::fmt::Debug for KafkaSource {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("KafkaSource").field("topic", &self.topic).finish_non_exhaustive()
    }
}

impl KafkaSource {
    /// Makes a client; nothing is sent yet. `memory` is the limit of the whole loader.
    pub fn new(
        source: &config::Source,
        kafka: &config::Kafka,
        pipeline: &str,
        memory: usize,
    ) -> Result<Self, SourceError> {
        let settings = settings(source, kafka, pipeline, memory);
        let consumer = settings
            .create_with_context(Context::new(source.sasl.as_ref()))
            .map_err(|error| SourceError::Refused(format!("the settings of Kafka are not accepted: {error}")))?;
        let (topic, brokers) = (kafka.topic.clone(), kafka.brokers.join(","));
        let in_group = source.ownership == Ownership::ConsumerGroup;
        let queue = (!in_group).then(|| Queue::new(&consumer));
        Ok(Self {
            queue,
            consumer,
            failures: VecDeque::new(),
            reached: BTreeMap::new(),
            silent: BTreeSet::new(),
            topic,
            brokers,
            starts: BTreeMap::new(),
            in_group,
            current: BTreeSet::new(),
            settings,
            sasl: source.sasl.clone(),
            is_paused: false,
        })
    }

    /// Asks the brokers until they answer or [`TIMEOUT`] is over. At first in short turns, because librdkafka waits in silence
    /// while login or TLS fails.
    fn ask<T>(&self, question: impl Fn(&BaseConsumer<Context>, Duration) -> KafkaResult<T>) -> Result<T, SourceError> {
        let start = Instant::now();
        let mut turn = TIMEOUT / 10;
        loop {
            self.serve();
            match question(&self.consumer, turn) {
                Ok(answer) => {
                    self.consumer.context().note_answer();
                    return Ok(answer);
                }
                Err(error) => {
                    self.serve();
                    let is_over = start.elapsed() >= TIMEOUT || !is_away(&error);
                    if is_over || self.consumer.context().denial().is_some() {
                        return Err(self.error(&error));
                    }
                }
            }
            turn = (turn * 2).min(TIMEOUT);
        }
    }

    /// Login errors come by another way than the answer that fails because of them.
    fn error(&self, error: &KafkaError) -> SourceError {
        if let Some(denied) = self.denied() {
            return denied;
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
            _ => match self.consumer.context().trouble() {
                Some(trouble) => SourceError::Unreachable(format!("{}: {error}; {trouble}", self.brokers)),
                None => SourceError::Unreachable(format!("{}: {error}", self.brokers)),
            },
        }
    }

    fn denied(&self) -> Option<SourceError> {
        let Denial { message, hint } = self.consumer.context().denial()?;
        Some(SourceError::Denied { message, hint })
    }

    /// Nothing more is there now: the end of a part, or nothing at all; or nobody answers.
    fn idle(&mut self) -> Result<Polled, SourceError> {
        if let Some((part, position)) = self.reached.pop_first() {
            return Ok(Polled::EndOfPart { part, position });
        }
        if let Some(denied) = self.denied() {
            return Err(denied);
        }
        match self.consumer.context().outage() {
            Some(trouble) => Err(SourceError::Unreachable(format!("{}: {trouble}", self.brokers))),
            None => Ok(Polled::Idle),
        }
    }

    /// Serves errors, statistics and requests for a token, which wait in the same queue as messages.
    fn serve(&self) {
        let context = self.consumer.context();
        let mut before = None;
        while self.starts.is_empty() && before != Some(context.events()) {
            before = Some(context.events());
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

    /// What an error says of a part, if it does; `part`: the one that it is of, where that is known.
    fn in_place_of_a_message(&mut self, error: &KafkaError, part: Option<i32>) -> Result<Option<Polled>, SourceError> {
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) => {
                let part = if part.is_some() { part } else { self.out_of_range()? };
                Ok(part.map(|part| Polled::OutOfRange { part }))
            }
            // A connection that ends is made again; if it is not, the next looks tell.
            _ if is_away(error) => Ok(None),
            _ => Err(self.error(error)),
        }
    }

    /// Takes what comes by the consumer itself: in a group that is everything, else errors, statistics, requests for a token, and
    /// messages of parts whose queue is not ours yet. None: nothing more is there.
    fn take_from_consumer(
        &mut self,
        into: &mut Arena,
        limit: usize,
        wait: Duration,
    ) -> Result<Option<Polled>, SourceError> {
        let mut wait = wait;
        while let Some(polled) = self.consumer.poll(wait) {
            wait = Duration::ZERO;
            match polled {
                Ok(message) => {
                    let (part, offset) = (message.partition(), message.offset());
                    let headers = message
                        .headers()
                        .map(|headers| headers_as_json(headers.iter().map(|header| (header.key, header.value))));
                    self.reached.remove(&part);
                    self.starts.insert(part, offset + 1);
                    into.push(Message {
                        part,
                        offset,
                        time: message.timestamp().to_millis(),
                        key: message.key(),
                        value: message.payload(),
                        headers: headers.as_deref(),
                    });
                    if into.size() >= limit {
                        return Ok(Some(Polled::Messages));
                    }
                }
                Err(KafkaError::PartitionEOF(part)) => {
                    // Nothing is known of a part that is not assigned any more.
                    if let Some(position) = self.position(part).max(self.starts.get(&part).copied()) {
                        self.reached.insert(part, position);
                    }
                }
                Err(error) => {
                    if let Some(polled) = self.in_place_of_a_message(&error, None)? {
                        return Ok(Some(polled));
                    }
                }
            }
        }
        Ok(None)
    }

    /// In a group, all comes by the consumer.
    fn poll_consumer(&mut self, into: &mut Arena, limit: usize, wait: Duration) -> Result<Polled, SourceError> {
        let wait = if self.reached.is_empty() { wait } else { Duration::ZERO };
        match self.take_from_consumer(into, limit, wait)? {
            Some(polled) => Ok(polled),
            None => self.idle(),
        }
    }

    fn poll_queue(
        &mut self,
        queue: &mut Queue,
        into: &mut Arena,
        limit: usize,
        wait: Duration,
    ) -> Result<Polled, SourceError> {
        // The end of the former assignment, some time after the new one was made, takes the parts' queues back. What comes meanwhile
        // comes by the consumer, before all that comes by our queue from then on: so that is emptied first, each time.
        self.silent.iter().for_each(|part| queue.take(&self.consumer, &self.topic, *part));
        if let Some(polled) = self.take_from_consumer(into, limit, Duration::ZERO)? {
            return Ok(polled);
        }
        let mut wait = if self.reached.is_empty() && into.is_empty() { wait } else { Duration::ZERO };
        while into.size() < limit {
            while let Some(Failure { part, code, .. }) = self.failures.pop_front() {
                let error = KafkaError::MessageConsumption(code);
                if let Some(polled) = self.in_place_of_a_message(&error, Some(part))? {
                    return Ok(polled);
                }
            }
            // One is waited for. Then as many as still fit if they are as long as those before.
            let average = into.size() / into.len().max(1);
            let room = if into.is_empty() { 1 } else { (limit - into.size()) / average.max(1) };
            let (failures, reached) = (&mut self.failures, &mut self.reached);
            let (silent, starts) = (&mut self.silent, &mut self.starts);
            let mut last = None;
            let count = queue.poll(room, wait, |next| {
                let (part, offset) = match next {
                    Ok(message) => {
                        into.push(message);
                        (message.part, message.offset + 1)
                    }
                    Err(failure) => {
                        let Failure { part, offset, code } = failure;
                        silent.remove(&part);
                        if code != RDKafkaErrorCode::PartitionEOF {
                            failures.push_back(failure);
                            return;
                        }
                        reached.insert(part, offset);
                        last.take_if(|(same, _)| *same == part);
                        starts.insert(part, offset);
                        return;
                    }
                };
                // Most messages are of the part that the one before is of.
                match &mut last {
                    Some((same, next)) if *same == part => *next = offset,
                    _ => {
                        reached.remove(&part);
                        last.replace((part, offset)).map(|(part, next)| starts.insert(part, next));
                        silent.remove(&part);
                    }
                }
            });
            last.map(|(part, next)| starts.insert(part, next));
            if count == 0 {
                return self.idle();
            }
            wait = Duration::ZERO;
        }
        Ok(Polled::Messages)
    }
}

impl Source for KafkaSource {
    fn cluster(&mut self) -> Result<String, SourceError> {
        self.parts()?; // an answer of any broker, so that the next question does not wait in vain
        Ok(self.consumer.client().fetch_cluster_id(TIMEOUT).unwrap_or_else(|| self.brokers.clone()))
    }

    fn parts(&mut self) -> Result<Vec<i32>, SourceError> {
        let metadata = self.ask(|consumer, turn| consumer.fetch_metadata(Some(&self.topic), turn))?;
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
        let (start, end) = self.ask(|consumer, turn| consumer.fetch_watermarks(&self.topic, part, turn))?;
        Ok(Bounds { start, end })
    }

    fn offset_at(&mut self, part: i32, time: i64) -> Result<i64, SourceError> {
        let mut times = TopicPartitionList::new();
        times.add_partition_offset(&self.topic, part, Offset::Offset(time)).map_err(|error| self.error(&error))?;
        let found = self.ask(|consumer, turn| consumer.offsets_for_times(times.clone(), turn))?;
        match found.find_partition(&self.topic, part).map(|element| element.offset()) {
            Some(Offset::Offset(offset)) => Ok(offset),
            _ => Ok(self.bounds(part)?.end),
        }
    }

    fn probe(&self) -> Option<Box<dyn Probe>> {
        Some(Box::new(KafkaProbe::new(&self.settings, self.sasl.as_ref(), &self.topic)))
    }

    fn join(&mut self) -> Result<Option<mpsc::UnboundedReceiver<Rebalance>>, SourceError> {
        if !self.in_group {
            return Ok(None);
        }
        let changes = self.consumer.context().group.listen();
        self.consumer.subscribe(&[&self.topic]).map_err(|error| self.error(&error))?;
        Ok(Some(changes))
    }

    fn assign(&mut self, starts: &[(i32, i64)]) -> Result<(), SourceError> {
        if self.in_group {
            if self.is_paused {
                self.pause(false);
            }
            let group = &self.consumer.context().group;
            group.assign(&self.consumer, &self.topic, starts, &mut self.current).map_err(|error| self.error(&error))?;
            self.reached.clear();
            self.starts = starts.iter().copied().collect();
            return Ok(());
        }
        let mut list = TopicPartitionList::new();
        for (part, start) in starts {
            // In the assignment itself: a seek after it races with the first fetch.
            list.add_partition_offset(&self.topic, *part, Offset::Offset(*start))
                .map_err(|error| self.error(&error))?;
        }
        self.consumer.assign(&list).map_err(|error| self.error(&error))?;
        self.failures.clear();
        self.reached.clear();
        self.silent = starts.iter().map(|(part, _)| *part).collect();
        self.starts = starts.iter().copied().collect();
        Ok(())
    }

    fn pause(&mut self, paused: bool) -> bool {
        if self.in_group {
            let done = self.consumer.assignment().and_then(|assignment| {
                if paused { self.consumer.pause(&assignment) } else { self.consumer.resume(&assignment) }
            });
            self.is_paused = paused && done.is_ok();
            return done.is_ok();
        }
        if paused {
            // The client library would go on behind what it takes for read, and it takes the end of a part for a message.
            self.consumer.unassign().is_ok()
        } else {
            let positions: Vec<(i32, i64)> = self.starts.iter().map(|(part, next)| (*part, *next)).collect();
            self.assign(&positions).is_ok()
        }
    }

    fn poll(&mut self, into: &mut Arena, limit: usize, wait: Duration) -> Result<Polled, SourceError> {
        match self.queue.take() {
            None => self.poll_consumer(into, limit, wait),
            Some(mut queue) => {
                let polled = self.poll_queue(&mut queue, into, limit, wait);
                self.queue = Some(queue);
                polled
            }
        }
    }

    fn ends(&mut self) -> Vec<(i32, i64, i64)> {
        self.consumer.context().ends()
    }

    fn throttled(&mut self) -> Duration {
        self.consumer.context().take_throttled()
    }
}

impl Drop for KafkaSource {
    fn drop(&mut self) {
        // The consumer leaves its group while it is dropped, and then nobody answers what the group asks.
        self.consumer.context().group.close();
    }
}

/// Nobody answers, for the moment.
fn is_away(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::AllBrokersDown
                | RDKafkaErrorCode::OperationTimedOut
                | RDKafkaErrorCode::RequestTimedOut
                | RDKafkaErrorCode::Resolve
        )
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::serve_reference;

    fn source(keys: &str) -> Result<KafkaSource, SourceError> {
        let config: config::Source = toml::from_str(keys).unwrap();
        KafkaSource::new(&config, config.topic().unwrap(), "p", 128 << 20)
    }

    /// Messages come one by one and are fetched at once, so that the end of a part stands behind almost every one of them.
    #[test]
    fn a_poll_does_not_stop_at_ends_that_are_ends_no_more() {
        const PARTS: i32 = 4;
        let address = serve_reference(1_000_000, PARTS.unsigned_abs(), Some(10_000));
        let mut source = source(&format!("kafka = {{ brokers = [\"{address}\"], topic = \"clickstream\" }}")).unwrap();
        source.assign(&(0..PARTS).map(|part| (part, 0)).collect::<Vec<_>>()).unwrap();
        let mut poll = |wait| {
            let mut arena = Arena::default();
            let polled = source.poll(&mut arena, 1 << 20, wait).unwrap();
            if let Polled::EndOfPart { part, position } = polled {
                assert!(arena.iter().all(|message| message.part != part || message.offset < position));
                return (arena.len(), Some(part));
            }
            (arena.len(), None)
        };
        let (started, mut ended) = (Instant::now(), BTreeSet::new());
        while ended.len() < PARTS as usize {
            assert!(started.elapsed() < Duration::from_secs(60), "the ends are not told");
            ended.extend(poll(Duration::from_millis(20)).1);
        }
        // While nobody polls the client library fetches. Of several such pauses, for busy machines.
        let fewest = (0..5).map(|_| {
            std::thread::sleep(Duration::from_millis(200));
            let (mut messages, mut polls) = (0, 0);
            while messages < 1_000 {
                messages += poll(Duration::from_millis(20)).0;
                polls += 1;
            }
            polls
        });
        let fewest = fewest.min().unwrap();
        assert!(fewest <= 20, "{fewest} polls for 1,000 messages");
    }

    /// What is fetched of a part between its first assignment and the first poll comes another way.
    #[test]
    fn messages_that_come_before_their_queue_is_ours_are_not_lost() {
        const PARTS: i32 = 4;
        let address = serve_reference(20_000, PARTS.unsigned_abs(), None);
        for round in 0..4 {
            let mut source =
                source(&format!("kafka = {{ brokers = [\"{address}\"], topic = \"clickstream\" }}")).unwrap();
            source.assign(&(0..PARTS).map(|part| (part, 0)).collect::<Vec<_>>()).unwrap();
            let mut next: BTreeMap<i32, i64> = (0..PARTS).map(|part| (part, 0)).collect();
            let (started, mut ended) = (Instant::now(), 0);
            std::thread::sleep(Duration::from_millis(700 * round));
            while ended < PARTS {
                assert!(started.elapsed() < Duration::from_secs(60), "round {round}: {next:?}");
                let mut arena = Arena::default();
                let polled = source.poll(&mut arena, 1 << 16, Duration::from_millis(20)).unwrap();
                for message in arena.iter() {
                    let next = next.get_mut(&message.part).unwrap();
                    assert_eq!(message.offset, *next, "round {round}, part {}", message.part);
                    *next += 1;
                }
                if let Polled::EndOfPart { part, position } = polled {
                    assert_eq!(position, next[&part], "round {round}, the end of part {part}");
                    ended += 1;
                }
            }
            assert_eq!(next.values().sum::<i64>(), 20_000);
        }
    }

    #[test]
    fn unknown_settings_are_refused_by_name() {
        let keys =
            "kafka = { brokers = [\"127.0.0.1:1\"], topic = \"t\" }\nlibrdkafka = { \"no.such.setting\" = \"1\" }";
        let error = source(keys).unwrap_err().to_string();
        assert!(error.contains("no.such.setting"), "{error}");
    }
}
