//! What Azure Event Hubs does to a client and Apache Kafka does not, done to connections on their way to the real broker: old
//! versions of the protocol only, idle connections cut, throttled answers that are late and empty, answers cut in the middle.
//!
//! TLS ends here and begins again towards the broker, so that the frames of the protocol can be read. Only what has to be changed is
//! parsed: a request begins with its key, version and number; an answer begins with that number.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use openssl::ssl::{Ssl, SslAcceptor, SslConnector, SslFiletype, SslMethod};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_openssl::SslStream;

use crate::broker::Broker;

pub const FETCH: i16 = 1;
const METADATA: i16 = 3;
pub const OFFSET_COMMIT: i16 = 8;
pub const OFFSET_FETCH: i16 = 9;
pub const FIND_COORDINATOR: i16 = 10;
pub const JOIN_GROUP: i16 = 11;
const API_VERSIONS: i16 = 18;
/// Group requests of the newer protocol.
pub const CONSUMER_GROUP_HEARTBEAT: i16 = 68;

/// Highest versions that are told, so that no client asks for newer ones. They are those before the compact encoding, which suits the
/// parsing below, and about what a client of Event Hubs meets. A client that asks for the versions by a newer request than this is cut
/// off, as Event Hubs did (franz-go, issue 1022).
const CAPS: &[(i16, i16)] = &[
    (FETCH, 11),
    (2, 5),
    (METADATA, 7),
    (OFFSET_COMMIT, 7),
    (OFFSET_FETCH, 5),
    (FIND_COORDINATOR, 2),
    (JOIN_GROUP, 5),
];
const NEWEST_API_VERSIONS: i16 = 3;

/// How it behaves; may be changed while it runs.
#[derive(Debug, Default)]
pub struct Behaviour {
    /// Milliseconds without a frame after which a connection is cut; 0: never.
    pub idle_limit: AtomicU64,
    /// Answers to fetches are emptied, claim that there is no more, and tell that they are throttled by so many milliseconds; 0: not.
    pub throttle: AtomicU64,
    /// The next answer that holds messages ends in its middle, and so does its connection.
    pub cut_next_answer: AtomicBool,
}

/// What has happened.
#[derive(Debug, Default)]
pub struct Record {
    /// Requests by key.
    pub requests: Mutex<BTreeMap<i16, u64>>,
    pub connections: AtomicU64,
    pub idle_cuts: AtomicU64,
    pub cut_answers: AtomicU64,
    pub throttled: AtomicU64,
}

impl Record {
    pub fn requests_of(&self, key: i16) -> u64 {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).get(&key).copied().unwrap_or_default()
    }
}

/// A running stand-in; it ends with the value.
#[derive(Debug)]
pub struct StandIn {
    port: u16,
    pub behaviour: Arc<Behaviour>,
    pub record: Arc<Record>,
    _runtime: tokio::runtime::Runtime,
}

impl StandIn {
    /// In front of the broker's port with TLS and login.
    pub fn start(broker: &Broker) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        listener.set_nonblocking(true).expect("a listener for the runtime");
        let port = listener.local_addr().expect("its number").port();
        let (behaviour, record) = (Arc::new(Behaviour::default()), Arc::new(Record::default()));
        let mut acceptor = SslAcceptor::mozilla_intermediate(SslMethod::tls_server()).expect("an acceptor");
        let pem = broker.certificates.path("server.pem");
        acceptor.set_private_key_file(&pem, SslFiletype::PEM).expect("a key");
        acceptor.set_certificate_chain_file(&pem).expect("a certificate");
        let mut connector = SslConnector::builder(SslMethod::tls_client()).expect("a connector");
        connector.set_ca_file(broker.certificates.path("authority.pem")).expect("an authority");
        let context = Arc::new(Context {
            acceptor: acceptor.build(),
            connector: connector.build(),
            port,
            broker: broker.login_port(),
            behaviour: behaviour.clone(),
            record: record.clone(),
        });
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            while let Ok((stream, _)) = listener.accept().await {
                let context = context.clone();
                tokio::spawn(async move {
                    context.record.connections.fetch_add(1, Relaxed);
                    // A connection that ends is what this is about.
                    let _ = context.serve(stream).await;
                });
            }
        });
        Self { port, behaviour, record, _runtime: runtime }
    }

    pub fn servers(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

struct Context {
    acceptor: SslAcceptor,
    connector: SslConnector,
    port: u16,
    broker: u16,
    behaviour: Arc<Behaviour>,
    record: Arc<Record>,
}

/// Requests of one connection that wait for their answer, by their number.
type Waiting = Mutex<BTreeMap<i32, Request>>;

struct Request {
    key: i16,
    version: i16,
    /// Of a fetch: part -> the offset that is asked for. A connection serves one topic.
    offsets: BTreeMap<i32, i64>,
}

impl Context {
    async fn serve(&self, client: TcpStream) -> io::Result<()> {
        let server = TcpStream::connect((Ipv4Addr::LOCALHOST, self.broker)).await?;
        let mut client = SslStream::new(Ssl::new(self.acceptor.context())?, client)?;
        Pin::new(&mut client).accept().await.map_err(io::Error::other)?;
        let ssl = self.connector.configure()?.into_ssl("127.0.0.1")?;
        let mut server = SslStream::new(ssl, server)?;
        Pin::new(&mut server).connect().await.map_err(io::Error::other)?;
        let (from_client, to_client) = tokio::io::split(client);
        let (from_server, to_server) = tokio::io::split(server);
        let waiting = Waiting::default();
        let last_frame = Mutex::new(Instant::now());
        // Whichever ends first ends both.
        tokio::select! {
            result = self.requests(from_client, to_server, &waiting, &last_frame) => result,
            result = self.answers(from_server, to_client, &waiting, &last_frame) => result,
            () = self.idle(&last_frame) => Ok(()),
        }
    }

    /// Returns when no frame has passed for too long.
    async fn idle(&self, last_frame: &Mutex<Instant>) {
        loop {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let idle = last_frame.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
            let limit = self.behaviour.idle_limit.load(Relaxed);
            if limit > 0 && idle > Duration::from_millis(limit) {
                self.record.idle_cuts.fetch_add(1, Relaxed);
                return;
            }
        }
    }

    async fn requests(
        &self,
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
        waiting: &Waiting,
        last_frame: &Mutex<Instant>,
    ) -> io::Result<()> {
        loop {
            let frame = frame(&mut from, last_frame).await?;
            let mut fields = Fields { frame: &frame, at: 4 };
            let (key, version, number) = (fields.int16()?, fields.int16()?, fields.int32()?);
            *self.record.requests.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default() += 1;
            if key == API_VERSIONS && version > NEWEST_API_VERSIONS {
                return Ok(());
            }
            let offsets = if key == FETCH { asked_for(&frame, version)? } else { BTreeMap::new() };
            let request = Request { key, version, offsets };
            waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(number, request);
            to.write_all(&frame).await?;
            to.flush().await?;
        }
    }

    async fn answers(
        &self,
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
        waiting: &Waiting,
        last_frame: &Mutex<Instant>,
    ) -> io::Result<()> {
        loop {
            let mut frame = frame(&mut from, last_frame).await?;
            let number = Fields { frame: &frame, at: 4 }.int32()?;
            let request = waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
            let Some(Request { key, version, offsets }) = request else { continue };
            match key {
                API_VERSIONS => cap_versions(&mut frame, version)?,
                METADATA => point_brokers(&mut frame, version, self.port)?,
                FIND_COORDINATOR => point_coordinator(&mut frame, version, self.port)?,
                FETCH => {
                    let throttle = self.behaviour.throttle.load(Relaxed);
                    if throttle > 0 {
                        frame = emptied(&frame, version, throttle as i32, &offsets)?;
                        self.record.throttled.fetch_add(1, Relaxed);
                        tokio::time::sleep(Duration::from_millis(throttle)).await;
                    }
                    let has_records = records(&frame, version)?.iter().any(|records| records.length > 0);
                    if has_records && self.behaviour.cut_next_answer.swap(false, Relaxed) {
                        to.write_all(&frame[..frame.len() / 2]).await?;
                        to.flush().await?;
                        self.record.cut_answers.fetch_add(1, Relaxed);
                        return Ok(());
                    }
                }
                _ => {}
            }
            to.write_all(&frame).await?;
            to.flush().await?;
        }
    }
}

/// One frame with its length in front.
async fn frame(from: &mut (impl AsyncRead + Unpin), last_frame: &Mutex<Instant>) -> io::Result<Vec<u8>> {
    let length = from.read_u32().await?;
    let mut frame = length.to_be_bytes().to_vec();
    frame.resize(4 + length as usize, 0);
    from.read_exact(&mut frame[4..]).await?;
    *last_frame.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    Ok(frame)
}

/// Reads a frame field by field; numbers are big-endian.
struct Fields<'a> {
    frame: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    fn bytes(&mut self, count: usize) -> io::Result<&'a [u8]> {
        let bytes = self.frame.get(self.at..self.at + count).ok_or(io::ErrorKind::UnexpectedEof)?;
        self.at += count;
        Ok(bytes)
    }

    fn int16(&mut self) -> io::Result<i16> {
        Ok(i16::from_be_bytes(self.bytes(2)?.try_into().expect("two bytes")))
    }

    fn int32(&mut self) -> io::Result<i32> {
        Ok(i32::from_be_bytes(self.bytes(4)?.try_into().expect("four bytes")))
    }

    fn int64(&mut self) -> io::Result<i64> {
        Ok(i64::from_be_bytes(self.bytes(8)?.try_into().expect("eight bytes")))
    }

    /// A string, or NULL, which has the length -1.
    fn string(&mut self) -> io::Result<&'a [u8]> {
        let length = self.int16()?;
        self.bytes(usize::try_from(length).unwrap_or_default())
    }

    /// An array's length; NULL is -1.
    fn count(&mut self) -> io::Result<usize> {
        Ok(usize::try_from(self.int32()?).unwrap_or_default())
    }
}

fn too_new(what: &str, version: i16) -> io::Error {
    io::Error::other(format!("{what} of version {version}, which was not offered"))
}

/// Lowers the highest versions. Version 3 has a compact array, with an empty set of tags behind each entry.
fn cap_versions(frame: &mut [u8], version: i16) -> io::Result<()> {
    let mut fields = Fields { frame, at: 10 };
    let count = if version >= 3 {
        // A varint of at most two bytes: there are not 16,000 requests.
        let first = fields.bytes(1)?[0];
        let high = if first < 0x80 { 0 } else { fields.bytes(1)?[0] };
        (usize::from(first & 0x7f) | usize::from(high) << 7) - 1
    } else {
        fields.count()?
    };
    let (start, size) = (fields.at, if version >= 3 { 7 } else { 6 });
    for entry in frame[start..].chunks_exact_mut(size).take(count) {
        let (key, highest) = (i16::from_be_bytes([entry[0], entry[1]]), i16::from_be_bytes([entry[4], entry[5]]));
        let cap = CAPS.iter().find(|(capped, _)| *capped == key).map_or(highest, |(_, cap)| *cap);
        entry[4..6].copy_from_slice(&highest.min(cap).to_be_bytes());
    }
    Ok(())
}

/// Every broker is here.
fn point_brokers(frame: &mut [u8], version: i16, port: u16) -> io::Result<()> {
    if !(3..=7).contains(&version) {
        return Err(too_new("Metadata", version));
    }
    let mut fields = Fields { frame, at: 12 };
    let mut ports = Vec::new();
    for _ in 0..fields.count()? {
        fields.int32()?; // its number
        fields.string()?; // its host
        ports.push(fields.at);
        fields.int32()?;
        fields.string()?; // its rack
    }
    ports.into_iter().for_each(|at| frame[at..at + 4].copy_from_slice(&i32::from(port).to_be_bytes()));
    Ok(())
}

fn point_coordinator(frame: &mut [u8], version: i16, port: u16) -> io::Result<()> {
    if !(1..=2).contains(&version) {
        return Err(too_new("FindCoordinator", version));
    }
    let mut fields = Fields { frame, at: 12 };
    fields.int16()?; // error
    fields.string()?; // its message
    fields.int32()?; // number of the broker
    fields.string()?; // its host
    let at = fields.at;
    frame[at..at + 4].copy_from_slice(&i32::from(port).to_be_bytes());
    Ok(())
}

/// The offset that a fetch asks for, for each part.
fn asked_for(frame: &[u8], version: i16) -> io::Result<BTreeMap<i32, i64>> {
    if version != 11 {
        return Err(too_new("Fetch", version));
    }
    let mut fields = Fields { frame, at: 12 };
    fields.string()?; // client
    fields.bytes(4 + 4 + 4 + 4 + 1 + 4 + 4)?; // replica, wait, least and most bytes, isolation, session and its epoch
    let mut offsets = BTreeMap::new();
    for _ in 0..fields.count()? {
        fields.string()?; // topic
        for _ in 0..fields.count()? {
            let part = fields.int32()?;
            fields.int32()?; // leader epoch
            offsets.insert(part, fields.int64()?);
            fields.bytes(8 + 4)?; // start of the log, most bytes
        }
    }
    Ok(offsets)
}

/// Where an answer to Fetch has what belongs to a part.
struct Records {
    part: i32,
    /// The place of the high watermark and, behind it, the last stable offset.
    ends: usize,
    /// The place of the length of the records, which follow.
    place: usize,
    length: usize,
}

fn records(frame: &[u8], version: i16) -> io::Result<Vec<Records>> {
    if version != 11 {
        return Err(too_new("Fetch", version));
    }
    // Behind throttle, error and session.
    let mut fields = Fields { frame, at: 8 + 4 + 2 + 4 };
    let mut found = Vec::new();
    for _ in 0..fields.count()? {
        fields.string()?; // topic
        for _ in 0..fields.count()? {
            let part = fields.int32()?;
            fields.int16()?; // error
            let ends = fields.at;
            fields.bytes(8 + 8 + 8)?; // high watermark, last stable offset, start of the log
            let aborted = fields.count()?;
            fields.bytes(16 * aborted + 4)?; // aborted transactions, preferred replica
            let place = fields.at;
            let length = fields.count()?;
            fields.bytes(length)?;
            found.push(Records { part, ends, place, length });
        }
    }
    Ok(found)
}

/// The same answer without its records, and throttled: what was asked for is said to be the end.
fn emptied(frame: &[u8], version: i16, throttle: i32, asked_for: &BTreeMap<i32, i64>) -> io::Result<Vec<u8>> {
    let mut out = frame.to_vec();
    // From the last to the first, so that places before stay where they are.
    for records in records(frame, version)?.into_iter().rev() {
        out.splice(records.place..records.place + 4 + records.length, 0_i32.to_be_bytes());
        if let Some(offset) = asked_for.get(&records.part) {
            let end = offset.to_be_bytes();
            out[records.ends..records.ends + 16].copy_from_slice(&[end, end].concat());
        }
    }
    out[8..12].copy_from_slice(&throttle.to_be_bytes());
    let length = (out.len() - 4) as u32;
    out[..4].copy_from_slice(&length.to_be_bytes());
    Ok(out)
}
