//! What librdkafka tells between the messages: errors, statistics, and that it needs a token.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::statistics::Statistics;
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::types::RDKafkaRespErr;

use super::denial::{Denial, denial};
use super::group::Group;
use super::token;
use crate::config::{Credentials, Sasl, TokenSource};

/// No broker for so many looks, one a second, is an outage: a single connection may come and go.
const LOOKS: u32 = 3;

/// Kept by the client library; its callbacks come while the consumer is polled.
#[derive(Default)]
pub struct Context {
    token: Option<TokenSource>,
    pub group: Group,
    state: Mutex<State>,
    /// Callbacks so far.
    events: AtomicU64,
    /// Milliseconds for which brokers held back answers and nobody asked for yet.
    throttled: AtomicU64,
}

#[derive(Default)]
struct State {
    /// Part -> (high watermark, last stable offset).
    ends: BTreeMap<i32, (i64, i64)>,
    /// Why login or TLS failed last; the client library would try for ever.
    denial: Option<Denial>,
    /// The last error since a broker was connected.
    trouble: Option<String>,
    /// Looks at the brokers, in a row, that found none connected.
    looks_without_broker: u32,
}

impl Context {
    pub fn new(sasl: Option<&Sasl>) -> Self {
        let token = match sasl.and_then(|sasl| sasl.credentials.as_ref()) {
            Some(Credentials::Token(source)) => Some(source.clone()),
            _ => None,
        };
        Self { token, ..Self::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many events were handled, to see whether there were any.
    pub fn events(&self) -> u64 {
        self.events.load(Relaxed)
    }

    /// Why login or TLS failed, unless it has succeeded since.
    pub fn denial(&self) -> Option<Denial> {
        self.state().denial.clone()
    }

    /// The last error since a broker was connected.
    pub fn trouble(&self) -> Option<String> {
        self.state().trouble.clone()
    }

    /// The error of an outage that lasts, not of a connection that is made again at once.
    pub fn outage(&self) -> Option<String> {
        let state = self.state();
        if state.looks_without_broker < LOOKS { None } else { state.trouble.clone() }
    }

    /// A broker has answered.
    pub fn note_answer(&self) {
        let mut state = self.state();
        (state.denial, state.trouble, state.looks_without_broker) = (None, None, 0);
    }

    pub fn ends(&self) -> Vec<(i32, i64, i64)> {
        self.state().ends.iter().map(|(part, (high, stable))| (*part, *high, *stable)).collect()
    }

    /// The time that brokers held back answers since the last call.
    pub fn take_throttled(&self) -> Duration {
        Duration::from_millis(self.throttled.swap(0, Relaxed))
    }
}

impl ClientContext for Context {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.events.fetch_add(1, Relaxed);
        // What matters comes as an error or as the result of a poll; the rest is for debugging.
        tracing::debug!(?level, facility, "librdkafka: {message}");
    }

    fn stats(&self, statistics: Statistics) {
        self.events.fetch_add(1, Relaxed);
        let held_back: i64 =
            statistics.brokers.values().filter_map(|broker| broker.throttle.as_ref()).map(|window| window.sum).sum();
        self.throttled.fetch_add(held_back.max(0) as u64, Relaxed);
        if statistics.brokers.values().any(|broker| broker.state == "UP") {
            self.note_answer();
        }
        let mut state = self.state();
        // Without trouble a connection is missing only because nobody needs it.
        if state.trouble.is_some() {
            state.looks_without_broker = state.looks_without_broker.saturating_add(1);
        }
        for partition in statistics.topics.values().flat_map(|topic| topic.partitions.values()) {
            if partition.partition >= 0 && partition.hi_offset >= 0 {
                state.ends.insert(partition.partition, (partition.hi_offset, partition.ls_offset));
            }
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.events.fetch_add(1, Relaxed);
        tracing::debug!("librdkafka: {error}: {reason}");
        let code = error.rdkafka_error_code();
        let mut state = self.state();
        if let Some(denial) = denial(code, reason) {
            state.denial = Some(denial);
        }
        // "All brokers are down" follows an error that says more.
        if code != Some(RDKafkaErrorCode::AllBrokersDown) || state.trouble.is_none() {
            state.trouble = Some(reason.to_owned());
        }
    }

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        self.events.fetch_add(1, Relaxed);
        let source = self.token.as_ref().ok_or("no token is configured")?;
        Ok(token::token(source)?)
    }
}

impl ConsumerContext for Context {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, code: RDKafkaRespErr, list: &mut TopicPartitionList) {
        self.events.fetch_add(1, Relaxed);
        if let Err(error) = self.group.rebalance(consumer, code, list) {
            tracing::debug!("cannot give up the assignment: {error}");
        }
    }
}
