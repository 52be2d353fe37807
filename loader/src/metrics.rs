//! Counters, and the Prometheus endpoint: `/metrics` and `/healthz`. Labels are sources, parts and reasons, never payload.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::decode::Reason;
use crate::{Error, Result};

/// The phases that the time of a batch is split into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Poll,
    Decode,
    Copy,
    Advance,
    Commit,
}

const PHASES: [(Phase, &str); 5] = [
    (Phase::Poll, "poll"),
    (Phase::Decode, "decode"),
    (Phase::Copy, "copy"),
    (Phase::Advance, "advance"),
    (Phase::Commit, "commit"),
];

/// What the loader counts. Cheap to write from any thread.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Label of the source, set once.
    source: Mutex<String>,
    pub rows: AtomicU64,
    pub batches: AtomicU64,
    pub fenced: AtomicU64,
    pub gaps: AtomicU64,
    /// Messages left out because the producer had sent them before.
    pub duplicates: AtomicU64,
    /// Messages forgotten by the window of duplicates before their time.
    pub forgotten: AtomicU64,
    pub replays: AtomicU64,
    pub memory: AtomicU64,
    /// Milliseconds for which the brokers have held back answers.
    pub throttled: AtomicU64,
    /// When messages were first asked for.
    first_poll: Mutex<Option<Instant>>,
    /// Nanoseconds from then to the last commit.
    loading: AtomicU64,
    pub postgres_up: AtomicBool,
    pub kafka_up: AtomicBool,
    dead: [AtomicU64; Reason::ALL.len()],
    nanoseconds: [AtomicU64; PHASES.len()],
    parts: Mutex<BTreeMap<i32, Part>>,
    /// Columns that make COPY fall back to text.
    text_columns: Mutex<Vec<String>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Part {
    lane: usize,
    position: Option<i64>,
    end: Option<i64>,
    stable: Option<i64>,
}

impl Metrics {
    pub fn set_source(&self, name: &str) {
        *self.source.lock().unwrap_or_else(PoisonError::into_inner) = name.to_owned();
    }

    /// The columns for which the whole COPY is text.
    pub fn set_text_columns(&self, names: Vec<String>) {
        *self.text_columns.lock().unwrap_or_else(PoisonError::into_inner) = names;
    }

    pub fn add_dead(&self, reason: Reason, count: u64) {
        self.dead[Reason::ALL.iter().position(|other| *other == reason).unwrap_or_default()].fetch_add(count, Relaxed);
    }

    pub fn dead(&self) -> u64 {
        self.dead.iter().map(|count| count.load(Relaxed)).sum()
    }

    pub fn add_time(&self, phase: Phase, time: Duration) {
        self.nanoseconds[phase as usize].fetch_add(time.as_nanos() as u64, Relaxed);
    }

    /// Messages are asked for; the first time counts.
    pub fn note_poll(&self) {
        self.first_poll().get_or_insert_with(Instant::now);
    }

    pub fn note_commit(&self) {
        if let Some(first) = *self.first_poll() {
            self.loading.store(first.elapsed().as_nanos() as u64, Relaxed);
        }
    }

    /// The time of loading counts anew, for the next file.
    pub fn begin_loading(&self) {
        *self.first_poll() = None;
        self.loading.store(0, Relaxed);
    }

    fn first_poll(&self) -> MutexGuard<'_, Option<Instant>> {
        self.first_poll.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long loading took: from the first time that messages were asked for to the last commit.
    pub fn loading_time(&self) -> Duration {
        Duration::from_nanos(self.loading.load(Relaxed))
    }

    /// One line at the end of loading.
    pub fn summary(&self, rows: u64, dead: u64) -> String {
        let seconds = self.loading_time().as_secs_f64();
        let speed = if rows > 0 { rows as f64 / seconds } else { 0.0 };
        format!("{rows} rows, {dead} dead letters in {seconds:.3} s ({speed:.0} rows/s)")
    }

    /// The parts that a lane owns, with their positions. Others of that lane are forgotten.
    pub fn set_positions(&self, lane: usize, positions: impl Iterator<Item = (i32, i64)>) {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let old = parts.clone();
        parts.retain(|_, part| part.lane != lane);
        for (part, position) in positions {
            let known = old.get(&part).copied().unwrap_or_default();
            parts.insert(part, Part { lane, position: Some(position), ..known });
        }
    }

    /// Ends of parts as the brokers last told them.
    pub fn set_ends(&self, ends: &[(i32, i64, i64)]) {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        for &(part, end, stable) in ends {
            if let Some(part) = parts.get_mut(&part) {
                (part.end, part.stable) = (Some(end), Some(stable));
            }
        }
    }

    /// Messages that wait in the topic, as far as known.
    pub fn lag(&self) -> Option<i64> {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.values().map(|part| Some((part.end? - part.position?).max(0))).sum()
    }

    /// The text that Prometheus reads.
    pub fn render(&self) -> String {
        let mut out = String::new();
        let source = label(&self.source.lock().unwrap_or_else(PoisonError::into_inner));
        let text_columns = self.text_columns.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut family = |name: &str, kind: &str, help: &str, samples: Vec<(String, f64)>| {
            let _ = writeln!(out, "# HELP tally_loader_{name} {help}\n# TYPE tally_loader_{name} {kind}");
            for (labels, value) in samples {
                let _ = writeln!(out, "tally_loader_{name}{{source=\"{source}\"{labels}}} {value}");
            }
        };
        let plain = |value: &AtomicU64| vec![(String::new(), value.load(Relaxed) as f64)];
        let flag = |value: &AtomicBool| vec![(String::new(), f64::from(u8::from(value.load(Relaxed))))];
        family("rows_total", "counter", "Rows committed.", plain(&self.rows));
        family("batches_total", "counter", "Transactions committed.", plain(&self.batches));
        family(
            "fenced_total",
            "counter",
            "Batches dropped because another loader owned the part.",
            plain(&self.fenced),
        );
        family("gaps_total", "counter", "Offsets found deleted before they were loaded.", plain(&self.gaps));
        family("duplicates_total", "counter", "Messages left out as sent before.", plain(&self.duplicates));
        family(
            "dedupe_forgotten_total",
            "counter",
            "Messages that left the window of duplicates early, for want of memory.",
            plain(&self.forgotten),
        );
        family("replays_total", "counter", "Batches written again after an error.", plain(&self.replays));
        family(
            "throttle_seconds_total",
            "counter",
            "Seconds for which brokers held back answers because a quota was used up.",
            vec![(String::new(), self.throttled.load(Relaxed) as f64 / 1e3)],
        );
        family("memory_bytes", "gauge", "Bytes of messages and rows that are held.", plain(&self.memory));
        family("postgres_up", "gauge", "1 while the data connection works.", flag(&self.postgres_up));
        family("kafka_up", "gauge", "1 while a broker answers.", flag(&self.kafka_up));
        family(
            "dead_letters_total",
            "counter",
            "Messages that became dead letters.",
            Reason::ALL
                .iter()
                .zip(&self.dead)
                .map(|(reason, count)| (format!(",reason=\"{}\"", reason.as_str()), count.load(Relaxed) as f64))
                .collect(),
        );
        family(
            "batch_seconds",
            "counter",
            "Seconds spent in each phase.",
            PHASES
                .iter()
                .map(|(phase, name)| {
                    (format!(",phase=\"{name}\""), self.nanoseconds[*phase as usize].load(Relaxed) as f64 / 1e9)
                })
                .collect(),
        );
        family(
            "text_fallback",
            "gauge",
            "1 for each column whose type makes the whole COPY text instead of binary.",
            text_columns.iter().map(|name| (format!(",column=\"{}\"", label(name)), 1.0)).collect(),
        );
        family("parts_owned", "gauge", "Parts that this loader works on.", vec![(String::new(), parts.len() as f64)]);
        let each = |value: fn(&Part) -> Option<i64>| {
            parts
                .iter()
                .filter_map(|(part, state)| Some((format!(",part=\"{part}\""), value(state)? as f64)))
                .collect::<Vec<_>>()
        };
        family("position", "gauge", "Next offset to read.", each(|part| part.position));
        family(
            "lag",
            "gauge",
            "Offsets between the position and the end.",
            each(|part| Some((part.end? - part.position?).max(0))),
        );
        family(
            "lso_lag",
            "gauge",
            "Offsets that open transactions of producers hold back.",
            each(|part| Some((part.end? - part.stable?).max(0))),
        );
        out
    }
}

/// A value of a label, escaped.
fn label(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Serves the endpoint until the process ends.
pub async fn serve(address: SocketAddr, metrics: Arc<Metrics>) -> Result<()> {
    let listener = TcpListener::bind(address)
        .await
        .map_err(|error| Error::unfit(format!("metrics: cannot listen on {address}: {error}")))?;
    let address = listener.local_addr().map_err(|error| Error::Bug(error.to_string()))?;
    tracing::info!("metrics on http://{address}/metrics");
    tokio::spawn(async move {
        loop {
            if let Ok((stream, _)) = listener.accept().await {
                let metrics = metrics.clone();
                tokio::spawn(async move {
                    let answer = tokio::time::timeout(Duration::from_secs(5), respond(stream, &metrics));
                    if let Ok(Err(error)) = answer.await {
                        tracing::debug!("metrics: {error}");
                    }
                });
            }
        }
    });
    Ok(())
}

async fn respond(mut stream: TcpStream, metrics: &Metrics) -> std::io::Result<()> {
    let mut request = Vec::new();
    let mut buffer = [0; 1024];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < 8192 {
        match stream.read(&mut buffer).await? {
            0 => break,
            count => request.extend_from_slice(&buffer[..count]),
        }
    }
    let line = request.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (status, body) = match (method, path) {
        (b"GET" | b"HEAD", b"/metrics") => ("200 OK", metrics.render()),
        (b"GET" | b"HEAD", b"/healthz") if metrics.postgres_up.load(Relaxed) => ("200 OK", "ok\n".into()),
        (b"GET" | b"HEAD", b"/healthz") => ("503 Service Unavailable", "PostgreSQL is not reachable\n".into()),
        _ => ("404 Not Found", "/metrics or /healthz\n".into()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    if method != b"HEAD" {
        stream.write_all(body.as_bytes()).await?;
    }
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loading_counts_from_the_first_poll_to_the_last_commit_of_each_file() {
        let metrics = Metrics::default();
        metrics.note_commit();
        assert_eq!(metrics.loading_time(), Duration::ZERO, "nothing was asked for");
        metrics.note_poll();
        metrics.note_commit();
        let first = metrics.loading_time();
        metrics.note_poll();
        metrics.note_commit();
        assert!(metrics.loading_time() > first && first > Duration::ZERO);
        metrics.begin_loading();
        metrics.note_commit();
        assert_eq!(metrics.loading_time(), Duration::ZERO, "the next file has not been asked for");
        assert_eq!(metrics.summary(0, 3), "0 rows, 3 dead letters in 0.000 s (0 rows/s)");
    }

    #[test]
    fn the_text_has_counters_with_labels() {
        let metrics = Metrics::default();
        metrics.set_source("click\"stream");
        metrics.rows.store(7, Relaxed);
        metrics.add_dead(Reason::NotJson, 2);
        metrics.set_positions(0, [(0, 10), (1, 20)].into_iter());
        metrics.set_ends(&[(0, 15, 12), (1, 20, 20), (2, 9, 9)]);
        metrics.set_text_columns(vec!["dev\"ices".into(), "p\n".into()]);
        let text = metrics.render();
        for line in [
            "tally_loader_text_fallback{source=\"click\\\"stream\",column=\"dev\\\"ices\"} 1",
            "tally_loader_text_fallback{source=\"click\\\"stream\",column=\"p\\n\"} 1",
            "tally_loader_rows_total{source=\"click\\\"stream\"} 7",
            "tally_loader_dead_letters_total{source=\"click\\\"stream\",reason=\"not_json\"} 2",
            "tally_loader_lag{source=\"click\\\"stream\",part=\"0\"} 5",
            "tally_loader_lso_lag{source=\"click\\\"stream\",part=\"0\"} 3",
            "tally_loader_parts_owned{source=\"click\\\"stream\"} 2",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}\n{text}");
        }
        assert_eq!(metrics.lag(), Some(5));
        assert_eq!(metrics.dead(), 2);
    }
}
