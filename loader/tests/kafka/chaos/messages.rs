//! Messages with numbers, plain and in transactions that are committed or aborted, some of them malformed. What the topic holds in the
//! end a consumer says that reads committed messages only.

use std::collections::{BTreeMap, BTreeSet};

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::broker::Broker;
use crate::pipeline::{DEADLINE, PARTITIONS, Pipeline};

pub struct Messages {
    topic: String,
    client: ClientConfig,
    plain: BaseProducer,
    transactional: BaseProducer,
    next: u64,
    malformed: BTreeSet<u64>,
    /// Numbers that the broker has acknowledged, and those of aborted transactions.
    committed: BTreeSet<u64>,
    aborted: BTreeSet<u64>,
    /// Those of the open transaction.
    open: Vec<u64>,
}

impl Messages {
    pub fn new(broker: &Broker, topic: &str) -> Self {
        let client = broker.client();
        let plain = client.clone().set("enable.idempotence", "true").create().expect("a producer");
        let transactional: BaseProducer =
            client.clone().set("transactional.id", topic).create().expect("a transactional producer");
        transactional.init_transactions(DEADLINE).expect("a producer id");
        Self {
            topic: topic.to_owned(),
            client,
            plain,
            transactional,
            next: 0,
            malformed: BTreeSet::new(),
            committed: BTreeSet::new(),
            aborted: BTreeSet::new(),
            open: Vec::new(),
        }
    }

    fn text(&self, number: u64) -> String {
        let (day, hour) = (25 + number % 4, number / 4 % 24);
        match (self.malformed.contains(&number), number % 2) {
            (false, _) => format!(
                r#"{{"event_time":"2026-02-{day}T{hour:02}:00:00Z","customer_id":{},"event_type":"click","device_id":"{number}"}}"#,
                number % 50
            ),
            (true, 0) => format!("malformed {number}"),
            (true, _) => format!(r#"{{"device_id":"{number}","event_time":"2026-02-28T10:00:00Z"}}"#),
        }
    }

    /// Messages that the loaders must load.
    pub fn visible(&self) -> i64 {
        self.committed.len() as i64
    }

    /// Some plain messages, and sometimes a transaction. Malformed ones are rare: their dead letters have a unique key, and hide
    /// what a loader would double.
    pub fn send(&mut self, random: &mut ChaCha8Rng) {
        if random.random_bool(0.1) {
            self.send_malformed(random);
        }
        let numbers = self.produce(&self.plain, random.random_range(300..1_200), random);
        self.next += numbers.len() as u64;
        self.committed.extend(numbers);
        if random.random() {
            self.begin(random);
            self.end(random);
        }
    }

    /// Some plain messages for each part, all of them malformed.
    pub fn send_malformed(&mut self, random: &mut ChaCha8Rng) {
        let count = random.random_range(10..30);
        self.malformed.extend(self.next..self.next + count);
        let numbers = self.produce(&self.plain, count, random);
        self.next += numbers.len() as u64;
        self.committed.extend(numbers);
    }

    /// Opens a transaction and writes into it.
    pub fn begin(&mut self, random: &mut ChaCha8Rng) {
        self.transactional.begin_transaction().expect("a transaction");
        self.open = self.produce(&self.transactional, random.random_range(300..1_200), random);
        self.next += self.open.len() as u64;
    }

    /// Commits or aborts it.
    pub fn end(&mut self, random: &mut ChaCha8Rng) {
        let open = std::mem::take(&mut self.open);
        let until_it_works = |action: fn(&BaseProducer) -> Result<(), KafkaError>| {
            let begin = std::time::Instant::now();
            while let Err(error) = action(&self.transactional) {
                let may_try_again = matches!(&error, KafkaError::Transaction(error) if error.is_retriable());
                assert!(may_try_again && begin.elapsed() < DEADLINE, "the transaction does not end: {error}");
            }
        };
        if random.random_bool(0.6) {
            until_it_works(|producer| producer.commit_transaction(DEADLINE));
            self.committed.extend(open);
        } else {
            until_it_works(|producer| producer.abort_transaction(DEADLINE));
            self.aborted.extend(open);
        }
    }

    /// Numbers of messages that the broker has acknowledged.
    fn produce(&self, producer: &BaseProducer, count: u64, random: &mut ChaCha8Rng) -> Vec<u64> {
        let numbers: Vec<u64> = (self.next..self.next + count).collect();
        for number in &numbers {
            let (part, text) = (random.random_range(0..PARTITIONS), self.text(*number));
            producer
                .send(BaseRecord::<(), str>::to(&self.topic).partition(part).payload(&text))
                .map_err(|(error, _)| error)
                .expect("the queue has room");
        }
        producer.flush(DEADLINE).expect("the broker acknowledges");
        numbers
    }

    /// Everything that the topic holds for a reader of committed messages, by part and offset.
    fn read(&self) -> BTreeMap<(i32, i64), Vec<u8>> {
        let consumer: BaseConsumer = self
            .client
            .clone()
            .set("group.id", "truth")
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .set("enable.partition.eof", "true")
            .create()
            .expect("a consumer");
        let mut assignment = TopicPartitionList::new();
        for part in 0..PARTITIONS {
            assignment.add_partition_offset(&self.topic, part, Offset::Beginning).expect("an offset");
        }
        consumer.assign(&assignment).expect("an assignment");
        let (mut found, mut ended) = (BTreeMap::new(), BTreeSet::new());
        while ended.len() < PARTITIONS as usize {
            match consumer.poll(DEADLINE).expect("messages in time") {
                Ok(message) => {
                    let value = message.payload().expect("a value").to_vec();
                    found.insert((message.partition(), message.offset()), value);
                }
                Err(KafkaError::PartitionEOF(part)) => _ = ended.insert(part),
                Err(error) => panic!("the topic cannot be read: {error}"),
            }
        }
        found
    }

    /// Table and dead letters are what the topic holds, message by message.
    pub fn assert_loaded(&self, pipeline: &Pipeline<'_>) {
        let truth = self.read();
        let texts: BTreeMap<Vec<u8>, u64> =
            (0..self.next).map(|number| (self.text(number).into_bytes(), number)).collect();
        let numbers: BTreeMap<(i32, i64), u64> = truth.iter().map(|(place, value)| (*place, texts[value])).collect();
        let held: BTreeSet<u64> = numbers.values().copied().collect();
        assert_eq!(held.len(), truth.len(), "the producers doubled no message");
        assert!(held == self.committed && held.is_disjoint(&self.aborted), "the broker kept what it acknowledged");

        let mut session = pipeline.session();
        let rows = session.query("SELECT part, message_offset, device_id FROM public.events", &[]).expect("the rows");
        let rows: BTreeMap<(i32, i64), i64> = rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect();
        let good = numbers.iter().filter(|(_, number)| !self.malformed.contains(*number));
        let good: BTreeMap<(i32, i64), i64> = good.map(|(place, number)| (*place, *number as i64)).collect();
        assert!(rows == good, "rows: {} of {}", rows.len(), good.len());
        let dead =
            session.query("SELECT part, message_offset, value FROM tally.dead_letters", &[]).expect("dead letters");
        let dead: BTreeMap<(i32, i64), Vec<u8>> =
            dead.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect();
        let bad = truth.iter().filter(|(place, _)| self.malformed.contains(&numbers[*place]));
        let bad: BTreeMap<(i32, i64), Vec<u8>> = bad.map(|(place, value)| (*place, value.clone())).collect();
        assert!(dead == bad, "dead letters: {} of {}", dead.len(), bad.len());

        // The same by counts and sums, with rollups, positions and recorded ranges.
        let lines: Vec<u8> = good.values().flat_map(|number| (self.text(*number as u64) + "\n").into_bytes()).collect();
        assert_eq!(pipeline.expect(&lines), good.len() as u64);
        pipeline.assert_exact(bad.len() as i64);
    }
}
