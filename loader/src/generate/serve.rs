//! A Kafka broker inside this process that serves one topic: for demonstrations and tests, so that neither needs Java.
//!
//! It answers what a consumer with assigned parts asks for (`ApiVersions`, `Metadata`, `ListOffsets`, `Fetch`) and refuses to be
//! written to. There are no groups and no transactions. Fetch limits are kept, so the memory of a consumer stays bounded; the
//! topic itself is computed and takes none (see `log`). One thread per connection: a demonstration has two or three.

mod log;
mod stored;
mod wire;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use uuid::Uuid;

pub use log::Log;
use wire::{Reader, Writer, malformed};

use crate::{Error, Result};

/// No request of a consumer is longer; the limit guards against a length that is noise.
const MAX_REQUEST: usize = 1 << 20;
/// One answer is never longer than this, whatever the client allows.
const MAX_ANSWER: usize = 16 << 20;

const PRODUCE: i16 = 0;
const FETCH: i16 = 1;
const LIST_OFFSETS: i16 = 2;
const METADATA: i16 = 3;
const FIND_COORDINATOR: i16 = 10;
const API_VERSIONS: i16 = 18;

/// The calls served: number, lowest and highest version. These versions are older than the compact encoding and are spoken by
/// Kafka 2.1 to 4.x clients. `Produce` is listed because librdkafka takes a broker without it for one of before 2017, and
/// `FindCoordinator` because a consumer of librdkafka that has a group id looks for a coordinator even if it joins no group, and
/// needs 45 seconds to end when it finds none.
const CALLS: [(i16, i16, i16); 6] = [
    (PRODUCE, 3, 7),
    (FETCH, 4, 11),
    (LIST_OFFSETS, 1, 5),
    (METADATA, 1, 8),
    (FIND_COORDINATOR, 0, 2),
    (API_VERSIONS, 0, 3),
];

const NONE: i16 = 0;
const OFFSET_OUT_OF_RANGE: i16 = 1;
const UNKNOWN_TOPIC_OR_PARTITION: i16 = 3;
const UNSUPPORTED_VERSION: i16 = 35;
const POLICY_VIOLATION: i16 = 44;

/// The only node of the cluster.
const NODE: i32 = 1;

#[derive(Debug)]
pub struct Broker {
    topic: String,
    log: Log,
    cluster: String,
}

/// A broker that has an address but does not answer yet.
#[derive(Debug)]
pub struct Listening {
    broker: Arc<Broker>,
    listener: TcpListener,
    address: SocketAddr,
}

impl Broker {
    pub fn new(topic: String, log: Log) -> Self {
        // A new cluster each time: its topic is not the one that a loader may remember from an earlier broker.
        Self { topic, log, cluster: Uuid::new_v4().simple().to_string() }
    }

    pub fn listen(self, address: SocketAddr) -> Result<Listening> {
        let unusable = |error: io::Error| Error::unfit(format!("cannot listen on {address}: {error}"));
        let listener = TcpListener::bind(address).map_err(unusable)?;
        let address = listener.local_addr().map_err(unusable)?;
        Ok(Listening { broker: Arc::new(self), listener, address })
    }
}

impl Listening {
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Writes the address into a file, whole or not at all, so that a script can wait for it.
    pub fn write_address(&self, path: &Path) -> Result<()> {
        let unwritable = |error: io::Error| Error::unfit(format!("cannot write \"{}\": {error}", path.display()));
        let mut name = path.as_os_str().to_owned();
        name.push(".new");
        std::fs::write(&name, format!("{}\n", self.address)).map_err(unwritable)?;
        std::fs::rename(&name, path).map_err(unwritable)
    }

    /// Answers on threads of its own from now on.
    pub fn start(self) {
        thread::spawn(move || {
            for stream in self.listener.incoming() {
                match stream {
                    Ok(stream) => {
                        let broker = Arc::clone(&self.broker);
                        thread::spawn(move || {
                            let peer = stream.peer_addr();
                            if let Err(error) = broker.converse(stream) {
                                tracing::debug!(?peer, "connection ended: {error}");
                            }
                        });
                    }
                    // Out of descriptors, or a client that left at once: the next one may succeed.
                    Err(error) => {
                        tracing::warn!("cannot accept a connection: {error}");
                        thread::sleep(Duration::from_millis(50));
                    }
                }
            }
        });
    }
}

/// What a client wants from one part of the topic.
struct Wanted {
    part: i32,
    offset: i64,
    limit: usize,
}

impl Broker {
    /// Answers requests in order until the client leaves.
    fn converse(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        // What the client could reach once it can reach again.
        let address = stream.local_addr()?;
        let mut request = Vec::new();
        loop {
            let mut length = [0; 4];
            if let Err(error) = stream.read_exact(&mut length) {
                return if error.kind() == io::ErrorKind::UnexpectedEof { Ok(()) } else { Err(error) };
            }
            let length = u32::from_be_bytes(length) as usize;
            if length > MAX_REQUEST {
                return Err(malformed("it is too long"));
            }
            request.resize(length, 0);
            stream.read_exact(&mut request)?;
            let mut answer = Writer::default();
            let start = answer.begin_length();
            self.answer(&mut Reader::new(&request), address, &mut answer)?;
            answer.fill_length(start);
            stream.write_all(&answer.out)?;
        }
    }

    fn answer(&self, request: &mut Reader<'_>, address: SocketAddr, answer: &mut Writer) -> io::Result<()> {
        let (call, version, correlation) = (request.i16()?, request.i16()?, request.i32()?);
        request.string()?; // client id
        answer.i32(correlation);
        let known = CALLS.iter().any(|(number, low, high)| *number == call && (*low..=*high).contains(&version));
        match call {
            API_VERSIONS => versions(if known { version } else { 0 }, known, answer),
            _ if !known => return Err(malformed(&format!("call {call} version {version} is not served"))),
            METADATA => self.metadata(version, request, address, answer)?,
            FIND_COORDINATOR => find_coordinator(version, address, answer),
            LIST_OFFSETS => self.list_offsets(version, request, answer)?,
            FETCH => self.fetch(version, request, answer)?,
            _ => refuse_produce(version, request, answer)?,
        }
        Ok(())
    }

    fn part(&self, topic: &str, part: i32) -> Option<u32> {
        u32::try_from(part).ok().filter(|part| topic == self.topic && *part < self.log.parts())
    }

    fn metadata(
        &self,
        version: i16,
        request: &mut Reader<'_>,
        address: SocketAddr,
        answer: &mut Writer,
    ) -> io::Result<()> {
        let topics = request.nullable_list(Reader::string)?.unwrap_or_else(|| vec![&self.topic]);
        if version >= 3 {
            answer.i32(0); // throttled for 0 ms
        }
        answer.list(&[address], |answer, address| {
            node(*address, answer);
            answer.i16(-1); // no rack
        });
        if version >= 2 {
            answer.string(&self.cluster);
        }
        answer.i32(NODE); // controller
        answer.list(&topics, |answer, topic| {
            let known = *topic == self.topic;
            answer.i16(if known { NONE } else { UNKNOWN_TOPIC_OR_PARTITION });
            answer.string(topic);
            answer.i8(0); // not internal
            let parts: Vec<u32> = (0..if known { self.log.parts() } else { 0 }).collect();
            answer.list(&parts, |answer, part| {
                answer.i16(NONE);
                answer.i32(part.cast_signed());
                answer.i32(NODE); // leader
                if version >= 7 {
                    answer.i32(0); // leader epoch
                }
                answer.list(&[NODE], |answer, node| answer.i32(*node)); // replicas
                answer.list(&[NODE], |answer, node| answer.i32(*node)); // in sync
                if version >= 5 {
                    answer.i32(0); // none offline
                }
            });
            if version >= 8 {
                answer.i32(i32::MIN); // authorized operations: not asked for
            }
        });
        if version >= 8 {
            answer.i32(i32::MIN);
        }
        Ok(())
    }

    fn list_offsets(&self, version: i16, request: &mut Reader<'_>, answer: &mut Writer) -> io::Result<()> {
        request.i32()?; // replica
        if version >= 2 {
            request.i8()?; // isolation level: there are no transactions
        }
        let topics = request.list(|request| {
            let topic = request.string()?;
            let parts = request.list(|request| {
                let part = request.i32()?;
                if version >= 4 {
                    request.i32()?; // leader epoch
                }
                Ok((part, request.i64()?))
            })?;
            Ok((topic, parts))
        })?;
        if version >= 2 {
            answer.i32(0);
        }
        answer.list(&topics, |answer, (topic, parts)| {
            answer.string(topic);
            answer.list(parts, |answer, (number, time)| {
                let (error, offset, found_at) = match self.part(topic, *number) {
                    None => (UNKNOWN_TOPIC_OR_PARTITION, -1, -1),
                    Some(part) => match *time {
                        -1 => (NONE, self.log.end(part), -1),
                        -2 => (NONE, 0, -1),
                        time => match self.log.offset_at(part, time) {
                            Some(offset) => (NONE, offset, self.log.time(part, offset)),
                            None => (NONE, -1, -1),
                        },
                    },
                };
                answer.i32(*number);
                answer.i16(error);
                answer.i64(found_at);
                answer.i64(offset);
                if version >= 4 {
                    answer.i32(0); // leader epoch
                }
            });
        });
        Ok(())
    }

    fn fetch(&self, version: i16, request: &mut Reader<'_>, answer: &mut Writer) -> io::Result<()> {
        request.i32()?; // replica
        let longest_wait = Duration::from_millis(request.i32()?.max(0).unsigned_abs().into());
        request.i32()?; // smallest answer: any message is enough for us
        let limit = (request.i32()?.max(0).unsigned_abs() as usize).min(MAX_ANSWER);
        request.i8()?; // isolation level
        if version >= 7 {
            request.i64()?; // session id and epoch: we keep no sessions
        }
        let topics = request.list(|request| {
            let topic = request.string()?;
            let parts = request.list(|request| {
                let part = request.i32()?;
                if version >= 9 {
                    request.i32()?; // leader epoch
                }
                let offset = request.i64()?;
                if version >= 5 {
                    request.i64()?; // log start of a follower
                }
                Ok(Wanted { part, offset, limit: request.i32()?.max(0).unsigned_abs() as usize })
            })?;
            Ok((topic, parts))
        })?;
        self.wait_for_messages(&topics, longest_wait);

        answer.i32(0);
        if version >= 7 {
            answer.i16(NONE);
            answer.i32(0); // no session
        }
        let mut sent = 0;
        answer.i32(topics.len() as i32);
        for (topic, parts) in &topics {
            answer.string(topic);
            answer.i32(parts.len() as i32);
            for wanted in parts {
                let part = self.part(topic, wanted.part);
                let end = part.map_or(-1, |part| self.log.end(part));
                let error = match part {
                    None => UNKNOWN_TOPIC_OR_PARTITION,
                    Some(_) if !(0..=end).contains(&wanted.offset) => OFFSET_OUT_OF_RANGE,
                    Some(_) => NONE,
                };
                answer.i32(wanted.part);
                answer.i16(error);
                answer.i64(end);
                answer.i64(end); // last stable offset
                if version >= 5 {
                    answer.i64(0); // log start
                }
                answer.i32(-1); // no aborted transactions
                if version >= 11 {
                    answer.i32(-1); // no preferred replica
                }
                let records = answer.begin_length();
                if let (Some(part), NONE) = (part, error) {
                    let limit = wanted.limit.min(limit.saturating_sub(sent));
                    self.log.read(part, wanted.offset, limit, sent == 0, &mut answer.out)?;
                }
                sent += answer.out.len() - records;
                answer.fill_length(records);
            }
        }
        Ok(())
    }

    /// Holds a request that would be answered without messages, as a broker does.
    fn wait_for_messages(&self, topics: &[(&str, Vec<Wanted>)], longest: Duration) {
        let until = Instant::now() + longest;
        let nothing = || {
            let mut wanted = topics.iter().flat_map(|(topic, parts)| parts.iter().map(move |part| (*topic, part)));
            wanted.all(|(topic, wanted)| {
                self.part(topic, wanted.part).is_some_and(|part| self.log.end(part) == wanted.offset)
            })
        };
        while nothing() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            thread::sleep(self.log.next_arrival().unwrap_or(left).min(left));
        }
    }
}

/// The calls served. An unknown version is answered in version 0, from which the client learns the right one.
fn versions(version: i16, known: bool, answer: &mut Writer) {
    answer.i16(if known { NONE } else { UNSUPPORTED_VERSION });
    let compact = version >= 3;
    if compact {
        answer.i8(CALLS.len() as i8 + 1);
    } else {
        answer.i32(CALLS.len() as i32);
    }
    for (call, low, high) in CALLS {
        answer.i16(call);
        answer.i16(low);
        answer.i16(high);
        if compact {
            answer.i8(0); // no tagged fields
        }
    }
    if version >= 1 {
        answer.i32(0);
    }
    if compact {
        answer.i8(0);
    }
}

/// The coordinator of every group is this node, which then serves no call of a group.
fn find_coordinator(version: i16, address: SocketAddr, answer: &mut Writer) {
    if version >= 1 {
        answer.i32(0);
    }
    answer.i16(NONE);
    if version >= 1 {
        answer.i16(-1); // no message
    }
    node(address, answer);
}

fn node(address: SocketAddr, answer: &mut Writer) {
    answer.i32(NODE);
    answer.string(&address.ip().to_string());
    answer.i32(address.port().into());
}

/// The topic is computed, so nothing can be added to it; the client reports a policy violation.
fn refuse_produce(version: i16, request: &mut Reader<'_>, answer: &mut Writer) -> io::Result<()> {
    request.string()?; // transactional id
    request.i16()?; // acknowledgements
    request.i32()?; // timeout
    let topics = request.list(|request| {
        let topic = request.string()?;
        Ok((topic, request.list(|request| Ok((request.i32()?, request.bytes()?.len())))?))
    })?;
    answer.list(&topics, |answer, (topic, parts)| {
        answer.string(topic);
        answer.list(parts, |answer, (part, _)| {
            answer.i32(*part);
            answer.i16(POLICY_VIOLATION);
            answer.i64(-1); // offset
            answer.i64(-1); // time
            if version >= 5 {
                answer.i64(0); // log start
            }
        });
    });
    answer.i32(0);
    Ok(())
}

#[cfg(all(test, feature = "kafka"))]
mod tests {
    use rdkafka::config::ClientConfig;
    use rdkafka::consumer::{BaseConsumer, Consumer};
    use rdkafka::error::{KafkaError, RDKafkaErrorCode};
    use rdkafka::message::{Message, Timestamp};
    use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};
    use rdkafka::{ClientContext, Offset, TopicPartitionList};

    use super::super::pace::Pace;
    use super::super::records::Records;
    use super::super::reference::{Clock, Reference};
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(30);
    const STARTED_AT: i64 = 1_700_000_000_000;

    fn serve(len: u64, parts: u32, rate: Option<u64>, clock: Option<Clock>) -> SocketAddr {
        let records = Records::Generated { events: Reference::new(1, clock), len };
        let log = Log::new(records, parts, Pace::new(rate), STARTED_AT);
        let listening = Broker::new("clickstream".into(), log).listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listening.address();
        listening.start();
        address
    }

    fn consumer(address: SocketAddr, settings: &[(&str, &str)]) -> BaseConsumer {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", address.to_string()).set("group.id", "test");
        config.set("enable.partition.eof", "true").set("isolation.level", "read_committed").set("check.crcs", "true");
        settings.iter().for_each(|(name, value)| {
            config.set(*name, *value);
        });
        config.create().unwrap()
    }

    /// Reads each part from its offset to its end: (part, offset, time, text).
    fn read(consumer: &BaseConsumer, starts: &[i64]) -> Vec<(i32, i64, i64, String)> {
        let mut assignment = TopicPartitionList::new();
        for (part, start) in (0..).zip(starts) {
            assignment.add_partition_offset("clickstream", part, Offset::Offset(*start)).unwrap();
        }
        consumer.assign(&assignment).unwrap();
        let (mut found, mut ended) = (Vec::new(), 0);
        while ended < starts.len() {
            match consumer.poll(TIMEOUT).expect("the broker answers in time") {
                Ok(message) => {
                    let Timestamp::CreateTime(time) = message.timestamp() else { panic!("no time") };
                    let text = String::from_utf8(message.payload().unwrap().to_vec()).unwrap();
                    found.push((message.partition(), message.offset(), time, text));
                }
                Err(KafkaError::PartitionEOF(_)) => ended += 1,
                Err(error) => panic!("{error}"),
            }
        }
        found
    }

    #[test]
    fn a_consumer_reads_each_event_once_and_in_order() {
        let parts = 3;
        // Limits far below the size of a part, so that many answers are needed; and below that of a message.
        let small =
            [("fetch.message.max.bytes", "10000"), ("fetch.max.bytes", "25000"), ("message.max.bytes", "20000")];
        let smallest = [("fetch.message.max.bytes", "1"), ("fetch.max.bytes", "1000"), ("message.max.bytes", "1000")];
        for (rows, settings) in [(20_000, &small[..]), (50, &smallest), (20_000, &[])] {
            let address = serve(rows, parts, None, None);
            let mut found = read(&consumer(address, settings), &[0, 0, 0]);
            found.sort();
            assert_eq!(found.len() as u64, rows);
            let mut by_part = found.into_iter();
            for part in 0..parts {
                let mut json = Vec::new();
                for (event, offset) in Reference::new(1, None).events(part.into(), parts.into()).zip(0..) {
                    if offset * u64::from(parts) + u64::from(part) >= rows {
                        break;
                    }
                    json.clear();
                    event.write_json(&mut json);
                    let expected = (part as i32, offset as i64, STARTED_AT, String::from_utf8(json.clone()).unwrap());
                    assert_eq!(by_part.next(), Some(expected));
                }
            }
            assert_eq!(by_part.next(), None);
        }
    }

    #[test]
    fn a_consumer_starts_anywhere_and_finds_offsets_by_time() {
        let clock = Clock::ending_at(STARTED_AT, 1_000_000, 1_000);
        let consumer = consumer(serve(1_000, 2, None, Some(clock)), &[]);
        assert_eq!(consumer.fetch_watermarks("clickstream", 1, TIMEOUT).unwrap(), (0, 500));
        let found = read(&consumer, &[499, 498]);
        assert_eq!(found.iter().filter(|message| message.0 == 0).count(), 1);
        assert_eq!(found.iter().filter(|message| message.0 == 1).count(), 2);
        // Event i arrives i seconds after the start, so the message of part 0 at offset 250 arrives after 500 seconds.
        let mut times = TopicPartitionList::new();
        times.add_partition_offset("clickstream", 0, Offset::Offset(STARTED_AT - 500_000)).unwrap();
        times.add_partition_offset("clickstream", 1, Offset::Offset(STARTED_AT + 1)).unwrap();
        let offsets = consumer.offsets_for_times(times, TIMEOUT).unwrap();
        assert_eq!(offsets.find_partition("clickstream", 0).unwrap().offset(), Offset::Offset(250));
        assert_eq!(offsets.find_partition("clickstream", 1).unwrap().offset(), Offset::End);
    }

    #[test]
    fn a_rate_lets_the_topic_grow() {
        let consumer = consumer(serve(300, 1, Some(1_000), None), &[]);
        let (mut found, started) = (0, Instant::now());
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset("clickstream", 0, Offset::Offset(0)).unwrap();
        consumer.assign(&assignment).unwrap();
        while found < 300 {
            match consumer.poll(TIMEOUT).expect("messages keep coming") {
                Ok(message) => {
                    assert_eq!(message.timestamp(), Timestamp::CreateTime(STARTED_AT + found));
                    found += 1;
                }
                Err(KafkaError::PartitionEOF(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
        assert!(started.elapsed() > Duration::from_millis(150), "{:?}", started.elapsed());
    }

    #[test]
    fn writing_is_refused() {
        struct Refused(std::sync::Mutex<Option<RDKafkaErrorCode>>);
        impl ClientContext for Refused {}
        impl ProducerContext for Refused {
            type DeliveryOpaque = ();
            fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
                *self.0.lock().unwrap() = result.as_ref().err().and_then(|(error, _)| error.rdkafka_error_code());
            }
        }
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", serve(1, 1, None, None).to_string());
        let producer: BaseProducer<Refused> = config.create_with_context(Refused(None.into())).unwrap();
        producer.send(BaseRecord::<(), str>::to("clickstream").partition(0).payload("x")).map_err(|_| ()).unwrap();
        producer.flush(TIMEOUT).unwrap();
        assert_eq!(*producer.context().0.lock().unwrap(), Some(RDKafkaErrorCode::PolicyViolation));
    }

    #[test]
    fn noise_ends_only_its_own_connection() {
        let address = serve(10, 1, None, None);
        let answer = |request: &[u8]| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(request).unwrap();
            let mut answer = Vec::new();
            // A reset is as good an end as a close.
            let _ = stream.read_to_end(&mut answer);
            answer
        };
        assert!(answer(b"GET / HTTP/1.1\r\n\r\n").is_empty());
        // A fetch whose array claims more elements than there are bytes.
        assert!(answer(&[0, 0, 0, 14, 0, 1, 0, 11, 0, 0, 0, 1, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff]).is_empty());
        assert_eq!(read(&consumer(address, &[]), &[0]).len(), 10);
    }
}
