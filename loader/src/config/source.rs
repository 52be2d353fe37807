//! Where messages come from: the section `source`.

use std::collections::BTreeMap;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use super::{FileSettings, Sasl, Tls};
use crate::{Error, Result};

/// The key of the client library for the protocol of consumer groups.
const GROUP_PROTOCOL: &str = "group.protocol";

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

    /// The group is one of the protocol in which the brokers share the parts (KIP-848), Kafka 4.0 and later.
    pub fn has_new_group_protocol(&self) -> bool {
        self.librdkafka.get(GROUP_PROTOCOL).is_some_and(|protocol| protocol == "consumer")
    }

    /// # Errors
    /// A protocol without a group, one that does not exist, or that the brokers do not speak.
    pub(super) fn check_group_protocol(&self) -> Result<()> {
        match self.librdkafka.get(GROUP_PROTOCOL).map(String::as_str) {
            None => Ok(()),
            Some(_) if self.ownership != Ownership::ConsumerGroup => Err(Error::unfit_hint(
                "source.librdkafka: \"group.protocol\" is for consumer groups, and source.ownership is \"leases\"",
                "Leave it out, or set source.ownership = \"consumer-group\".",
            )),
            // Its brokers tell no topic ids, without which nobody is given a part, in silence.
            Some("consumer") if self.kafka.as_ref().is_some_and(|kafka| kafka.profile == Profile::EventHubs) => {
                Err(Error::unfit_hint(
                    "source.librdkafka: \"group.protocol\" = \"consumer\" is not spoken by Event Hubs",
                    "Leave it out for the classic protocol, or set source.ownership = \"leases\", which needs no group.",
                ))
            }
            Some("classic" | "consumer") => Ok(()),
            Some(protocol) => Err(Error::unfit(format!(
                "source.librdkafka: \"group.protocol\" is \"classic\" or \"consumer\", not \"{protocol}\""
            ))),
        }
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
        | "partition.assignment.strategy" => Some("is set by the loader, because its promise rests on it"),
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
