//! Where messages come from: the section `source`.

use std::collections::BTreeMap;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use super::{FileSettings, Sasl, Tls};
use crate::{Error, Result};

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Needed to load a topic, not to load files.
    pub kafka: Option<Kafka>,
    #[serde(default)]
    pub file: FileSettings,
    /// Where the very first start begins; later starts go on from the stored position.
    #[serde(default)]
    pub start: Start,
    #[serde(default)]
    pub ownership: Ownership,
    pub sasl: Option<Sasl>,
    pub tls: Option<Tls>,
    /// Settings handed to librdkafka as they are.
    #[serde(default)]
    pub librdkafka: BTreeMap<String, String>,
}

impl Source {
    /// The topic to load.
    ///
    /// # Errors
    /// The configuration is for files alone.
    pub fn topic(&self) -> Result<&Kafka> {
        self.kafka.as_ref().ok_or_else(|| {
            Error::unfit_hint(
                "source.kafka is missing: it names the brokers and the topic",
                "Add source.kafka = { brokers = [\"host:9092\"], topic = \"name\" }, or load files: tally-loader files PATH, with --dry-run to check.",
            )
        })
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kafka {
    pub brokers: Vec<String>,
    pub topic: String,
    #[serde(default)]
    pub profile: Profile,
    /// Name of the cluster in the state tables; without it the cluster id that the brokers tell.
    pub cluster: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    #[default]
    Kafka,
    /// Azure Event Hubs drops idle connections and lacks topic administration.
    EventHubs,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ownership {
    /// Loaders share the parts through PostgreSQL.
    #[default]
    Leases,
    /// A consumer group of Kafka shares them; leases and epochs protect them all the same.
    ConsumerGroup,
}

/// Where the first start of a source begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    #[default]
    Earliest,
    Latest,
    /// The first record at or after this time, in milliseconds since 1970.
    At(i64),
}

/// Keys that the loader sets itself because exactly-once rests on them, and keys that would put a secret into the file.
pub(super) fn refused_librdkafka_setting(key: &str) -> Option<&'static str> {
    match key {
        "enable.auto.commit"
        | "enable.auto.offset.store"
        | "auto.offset.reset"
        | "isolation.level"
        | "enable.partition.eof"
        | "check.crcs"
        | "statistics.interval.ms"
        | "partition.assignment.strategy"
        | "group.protocol" => Some("is set by the loader, because its promise rests on it"),
        "bootstrap.servers" | "metadata.broker.list" => Some("is set by source.kafka.brokers"),
        "sasl.username" | "sasl.password" | "sasl.mechanism" | "sasl.mechanisms" => Some("is set by source.sasl"),
        "ssl.key.password"
        | "ssl.keystore.password"
        | "ssl.key.pem"
        | "sasl.oauthbearer.client.secret"
        | "sasl.oauthbearer.config"
        | "ssl.certificate.pem" => {
            Some("would put a secret into the file; secrets come from environment variables or files")
        }
        _ => None,
    }
}

impl<'de> Deserialize<'de> for Start {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.as_str() {
            "earliest" => Ok(Self::Earliest),
            "latest" => Ok(Self::Latest),
            time => time.parse::<jiff::Timestamp>().map(|time| Self::At(time.as_millisecond())).map_err(|_| {
                D::Error::custom(
                    "not a start: write \"earliest\", \"latest\" or a time such as \"2026-01-31T00:00:00Z\"",
                )
            }),
        }
    }
}
