//! The configuration file: TOML, every key known, every secret somewhere else. [`Config::load`] returns settings that are
//! checked as far as that is possible without asking PostgreSQL or Kafka.

mod file;
mod policy;
mod sasl;
mod secret;
mod source;
mod target;
mod units;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

pub use file::{Compression, FileFormat, FileSettings};
pub use policy::{
    Batch, DeadLetters, Dedupe, On, OnGap, OnRecreated, OnTombstone, Policy, SynchronousCommit, Timeouts,
};
use sasl::readable;
pub use sasl::{Credentials, Mechanism, Sasl, Tls, TokenEndpoint, TokenSource};
pub use secret::Secret;
use source::refused_librdkafka_setting;
pub use source::{Kafka, Ownership, Profile, Source, Start};
pub use target::{BytesFormat, ColumnDefault, ColumnRule, Target, TimeFormat, UnknownFields};
pub use units::{Size, Span};

use crate::{Error, Result};

/// The whole configuration file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Names the state: two pipelines may load one topic into two tables.
    pub pipeline: String,
    pub postgres: Postgres,
    /// Address of the Prometheus endpoint; none without it.
    pub metrics: Option<SocketAddr>,
    /// Upper limit of what the loader holds in memory: fetched messages, their copies and their encoded rows.
    #[serde(default = "default_memory")]
    pub memory: Size,
    #[serde(default)]
    pub source: Source,
    pub target: Target,
    #[serde(default)]
    pub policy: Policy,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Postgres {
    /// Host name, address, or the directory of a unix socket (it starts with `/`).
    pub host: String,
    #[serde(default = "default_port")]
    pub port: u16,
    pub dbname: String,
    pub user: String,
    pub sslmode: Option<SslMode>,
    /// Certificates to trust, PEM; without it those of the system.
    pub sslrootcert: Option<PathBuf>,
    /// Certificate and key of this client, PEM.
    pub sslcert: Option<PathBuf>,
    pub sslkey: Option<PathBuf>,
    password_env: Option<String>,
    password_file: Option<PathBuf>,
    #[serde(skip)]
    pub password: Option<Secret>,
}

/// What libpq calls `sslmode`, without the modes that give in silently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SslMode {
    Disable,
    Require,
    VerifyCa,
    VerifyFull,
}

fn default_memory() -> Size {
    Size::mebibytes(128)
}

fn default_port() -> u16 {
    5432
}

impl Config {
    /// Reads, checks and completes the configuration: secrets are in it afterwards.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| Error::unfit(format!("cannot read \"{}\": {error}", path.display())))?;
        Self::parse(&text).map_err(|error| match error {
            Error::Unfit { message, hint } => Error::Unfit { message: format!("{}: {message}", path.display()), hint },
            other => other,
        })
    }

    /// The same from text.
    pub fn parse(text: &str) -> Result<Self> {
        let mut config: Self = toml::from_str(text).map_err(|error| describe(&error, text))?;
        config.check()?;
        config.read_secrets()?;
        Ok(config)
    }

    fn read_secrets(&mut self) -> Result<()> {
        let postgres = &mut self.postgres;
        postgres.password =
            Secret::read("postgres.password", postgres.password_env.as_deref(), postgres.password_file.as_deref())?;
        readable("postgres.sslrootcert", postgres.sslrootcert.as_deref())?;
        readable("postgres.sslcert", postgres.sslcert.as_deref())?;
        readable("postgres.sslkey", postgres.sslkey.as_deref())?;
        if postgres.sslcert.is_some() != postgres.sslkey.is_some() {
            return Err(Error::unfit("postgres.sslcert and postgres.sslkey go together only"));
        }
        if let Some(sasl) = &mut self.source.sasl {
            let profile = self.source.kafka.as_ref().map(|kafka| kafka.profile).unwrap_or_default();
            sasl.complete(profile)?;
        }
        if let Some(tls) = &mut self.source.tls {
            tls.complete()?;
        }
        Ok(())
    }

    /// One batch is kept as messages and as rows, and the next one is already on its way.
    pub fn memory_of_a_connection(&self) -> usize {
        self.policy.batch.bytes.0.saturating_mul(4).saturating_add(Size::mebibytes(16).0)
    }

    /// What is left for messages and rows beside the windows of duplicates, in bytes.
    pub fn memory_of_rows(&self) -> usize {
        self.memory.0.saturating_sub(self.policy.dedupe.as_ref().map_or(0, |dedupe| dedupe.memory.0))
    }

    fn check(&self) -> Result<()> {
        if self.pipeline.is_empty() || self.pipeline.len() > 40 {
            return Err(Error::unfit("pipeline must have 1 to 40 bytes"));
        }
        if self.source.kafka.as_ref().is_some_and(|kafka| kafka.brokers.is_empty()) {
            return Err(Error::unfit("source.kafka.brokers is empty"));
        }
        self.source.file.check()?;
        let profile = self.source.kafka.as_ref().map(|kafka| kafka.profile);
        if profile == Some(Profile::EventHubs) && self.source.sasl.is_none() {
            return Err(Error::unfit_hint(
                "source.kafka.profile = \"event-hubs\" needs source.sasl",
                "With a connection string: sasl = { mechanism = \"PLAIN\", password_env = \"NAME\" }.",
            ));
        }
        if self.policy.on.recreated == OnRecreated::NewIncarnation && self.source.ownership == Ownership::ConsumerGroup
        {
            return Err(Error::unfit_hint(
                "policy.on.recreated = \"new-incarnation\" does not work with source.ownership = \"consumer-group\" yet",
                "Use ownership = \"leases\", or recreated = \"stop\" and load the new topic under another pipeline name.",
            ));
        }
        let connections = self.policy.batch.connections();
        if connections.is_some_and(|number| !(1..=64).contains(&number)) {
            return Err(Error::unfit("policy.batch.connections must be \"auto\" or between 1 and 64"));
        }
        if !(1..=1_000_000).contains(&self.policy.batch.rows) {
            return Err(Error::unfit("policy.batch.rows must be between 1 and 1,000,000"));
        }
        if self.policy.timeouts.anchor_check < Span::milliseconds(100) {
            return Err(Error::unfit("policy.timeouts.anchor_check must be at least \"100 ms\""));
        }
        if let Some(dedupe) = &self.policy.dedupe {
            if dedupe.field.is_empty() {
                return Err(Error::unfit("policy.dedupe.field is empty"));
            }
            if dedupe.memory < Size::mebibytes(1) {
                return Err(Error::unfit("policy.dedupe.memory must be at least \"1 MiB\""));
            }
        }
        if !(0.0..=1.0).contains(&self.policy.dead_letters.stop_above_ratio) {
            return Err(Error::unfit("policy.dead_letters.stop_above_ratio must be between 0 and 1"));
        }
        let connections_memory = self.memory_of_a_connection().saturating_mul(connections.unwrap_or(1));
        let needed = connections_memory.saturating_add(self.policy.dedupe.as_ref().map_or(0, |dedupe| dedupe.memory.0));
        if self.memory.0 < needed {
            return Err(Error::unfit_hint(
                match &self.policy.dedupe {
                    None => format!("memory is too small for batches of {} bytes", self.policy.batch.bytes.0),
                    Some(dedupe) => format!(
                        "memory is too small for batches of {} bytes and policy.dedupe.memory of {} bytes",
                        self.policy.batch.bytes.0, dedupe.memory.0
                    ),
                },
                format!("Set memory to at least \"{} MiB\", or policy.batch.bytes lower.", needed.div_ceil(1 << 20)),
            ));
        }
        for key in self.source.librdkafka.keys() {
            if let Some(why) = refused_librdkafka_setting(key) {
                return Err(Error::unfit(format!("source.librdkafka.\"{key}\" {why}")));
            }
        }
        self.source.check_group_protocol()
    }
}

/// The message of a TOML error with its line, without the line itself and without quoted values: both may hold a secret
/// that somebody wrote in the wrong place.
fn describe(error: &toml::de::Error, text: &str) -> Error {
    let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
    let message = without_values(error.message());
    Error::unfit(match line {
        Some(line) => format!("line {line}: {message}"),
        None => message,
    })
}

fn without_values(message: &str) -> String {
    let message = message.lines().next().unwrap_or_default();
    match message.find("string \"") {
        None => message.to_owned(),
        Some(at) => {
            let tail = message.rfind("\", expected").map_or("", |end| &message[end + 1..]);
            format!("{}a string{tail}", &message[..at])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = r#"
        pipeline = "clickstream"
        postgres = { host = "/tmp", dbname = "shop", user = "loader" }
        [source]
        kafka = { brokers = ["127.0.0.1:9092"], topic = "clickstream" }
        [target]
        table = "public.events"
    "#;

    fn with(extra: &str) -> Result<Config> {
        Config::parse(&format!("{MINIMAL}\n{extra}"))
    }

    fn message(result: Result<Config>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn the_example_of_the_documentation_is_accepted() {
        let config = Config::parse(
            r#"
            pipeline = "clickstream"
            postgres = { host = "db.example.org", dbname = "shop", user = "loader", sslmode = "verify-full" }
            metrics = "127.0.0.1:9464"
            memory = "128 MiB"
            [source]
            kafka = { brokers = ["127.0.0.1:9092"], topic = "clickstream", profile = "kafka" }
            start = "earliest"
            ownership = "leases"
            librdkafka = { "fetch.min.bytes" = "1" }
            [target]
            table = "public.events"
            unknown_fields = { column = "extra" }
            columns.event_time = { from = "event_time", time = "rfc3339-or-epoch-ms", default = "broker-timestamp" }
            columns.customer_id = { required = true }
            columns.device_id = { digits_in_string = true }
            [policy]
            batch = { rows = 20000, bytes = "8 MiB", linger = "100 ms", connections = "auto", synchronous_commit = "off" }
            dead_letters = { stop_above_ratio = 0.05, stop_above_per_minute = 5000, max_value = "1 MiB" }
            on = { gap = "stop", recreated = "stop", tombstone = "skip" }
            "#,
        )
        .unwrap();
        assert_eq!(config.target.unknown_fields, UnknownFields::Column("extra".into()));
        assert_eq!(config.target.columns["event_time"].default, Some(ColumnDefault::BrokerTimestamp));
        assert_eq!(config.policy.batch.bytes, Size::mebibytes(8));
    }

    #[test]
    fn defaults_are_those_of_the_documentation() {
        let config = with("").unwrap();
        assert_eq!(config.policy.batch.rows, 20_000);
        assert_eq!(config.policy.batch.linger, Span::milliseconds(100));
        assert_eq!(config.policy.batch.synchronous_commit, SynchronousCommit::Off);
        assert_eq!(config.source.start, Start::Earliest);
        assert_eq!(config.policy.on.gap, OnGap::Stop);
        assert_eq!(config.policy.timeouts.anchor_check, Span::milliseconds(60_000));
        assert_eq!(config.target.unknown_fields, UnknownFields::Ignore);
    }

    #[test]
    fn unknown_keys_are_refused_with_their_line() {
        assert!(
            message(with("[policy]\nbatchs = {}")).starts_with("line 10: unknown field `batchs`"),
            "{}",
            message(with("[policy]\nbatchs = {}"))
        );
        assert!(message(with("columns.a = { form = \"b\" }")).contains("unknown field `form`"));
    }

    #[test]
    fn secrets_written_into_the_file_are_refused_and_not_repeated() {
        for text in [
            MINIMAL.replace("user = \"loader\"", "user = \"loader\", password = \"hunter2\""),
            MINIMAL.replace(
                "{ host = \"/tmp\", dbname = \"shop\", user = \"loader\" }",
                "\"postgres://loader:hunter2@db/shop\"",
            ),
            format!("{MINIMAL}\nunknown_fields = \"hunter2\""),
            format!("{MINIMAL}\n[policy]\nbatch = {{ rows = \"hunter2\" }}"),
            MINIMAL.replace("[target]", "librdkafka = { \"sasl.password\" = \"hunter2\" }\n[target]"),
            MINIMAL.replace("[target]", "sasl = \"hunter2\"\n[target]"),
            MINIMAL.replace("[target]", "librdkafka = { \"ssl.key.pem\" = \"hunter2\" }\n[target]"),
        ] {
            let message = Config::parse(&text).unwrap_err().to_string();
            assert!(!message.contains("hunter2"), "{message}");
        }
    }

    #[test]
    fn secrets_come_from_files_and_are_never_printed() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "hunter2\n").unwrap();
        let text = MINIMAL
            .replace("user = \"loader\"", &format!("user = \"loader\", password_file = {:?}", file.path()))
            .replace(
                "[target]",
                &format!(
                    "sasl = {{ mechanism = \"PLAIN\", username_file = {0:?}, password_file = {0:?} }}\n[target]",
                    file.path()
                ),
            );
        let config = Config::parse(&text).unwrap();
        assert_eq!(config.postgres.password.as_ref().map(Secret::reveal), Some("hunter2"));
        let Some(Credentials::Password { password, .. }) = &config.source.sasl.as_ref().unwrap().credentials else {
            panic!("PLAIN has a password");
        };
        assert_eq!(password.reveal(), "hunter2");
        let printed = format!("{config:?} {config:#?}");
        assert!(!printed.contains("hunter2"), "{printed}");
        assert!(printed.contains("***"));
    }

    #[test]
    fn a_missing_environment_variable_is_named() {
        let text =
            MINIMAL.replace("user = \"loader\"", "user = \"loader\", password_env = \"TALLY_TEST_UNSET_VARIABLE\"");
        assert!(Config::parse(&text).unwrap_err().to_string().contains("TALLY_TEST_UNSET_VARIABLE"));
    }

    #[test]
    fn settings_that_exactly_once_rests_on_cannot_be_passed_through() {
        for key in ["enable.auto.commit", "auto.offset.reset", "isolation.level", "enable.partition.eof", "check.crcs"]
        {
            let text = MINIMAL.replace("[target]", &format!("librdkafka = {{ \"{key}\" = \"x\" }}\n[target]"));
            assert!(Config::parse(&text).unwrap_err().to_string().contains(key));
        }
    }

    #[test]
    fn the_protocol_of_a_group_needs_a_group() {
        let text = |source: &str| MINIMAL.replace("[target]", &format!("{source}\n[target]"));
        let set = |ownership: &str, protocol: &str| {
            Config::parse(&text(&format!(
                "ownership = \"{ownership}\"\nlibrdkafka = {{ \"group.protocol\" = \"{protocol}\" }}"
            )))
        };
        assert!(message(set("leases", "consumer")).contains("is for consumer groups"));
        assert!(message(set("consumer-group", "newest")).contains("\"classic\" or \"consumer\""));
        let event_hubs: Source = toml::from_str(
            "kafka = { brokers = [], topic = \"t\", profile = \"event-hubs\" }\nownership = \"consumer-group\"\n\
             librdkafka = { \"group.protocol\" = \"consumer\" }",
        )
        .unwrap();
        assert!(event_hubs.check_group_protocol().unwrap_err().to_string().contains("not spoken by Event Hubs"));
        assert!(set("consumer-group", "consumer").unwrap().source.has_new_group_protocol());
        assert!(!set("consumer-group", "classic").unwrap().source.has_new_group_protocol());
    }

    #[test]
    fn what_is_not_built_yet_is_refused() {
        let group = MINIMAL.replace("[target]", "ownership = \"consumer-group\"\n[target]");
        let group = Config::parse(&format!("{group}\n[policy]\non = {{ recreated = \"new-incarnation\" }}"));
        assert!(message(group).contains("consumer-group"));
        assert!(with("[policy]\non = { recreated = \"new-incarnation\" }").is_ok());
        assert!(message(with("[policy]\nbatch = { connections = 0 }")).contains("between 1 and 64"));
        // Each connection has a batch of its own.
        assert!(message(with("[policy]\nbatch = { connections = 4 }")).contains("memory is too small"));
    }

    #[test]
    fn the_anchor_check_takes_its_time() {
        assert!(message(with("[policy]\ntimeouts = { anchor_check = \"0 s\" }")).contains("at least \"100 ms\""));
    }

    #[test]
    fn memory_must_hold_the_batches() {
        assert!(message(with("[policy]\nbatch = { bytes = \"64 MiB\" }")).contains("memory is too small"));
    }

    #[test]
    fn dedupe_is_off_by_default_and_its_settings_are_checked() {
        assert!(with("").unwrap().policy.dedupe.is_none());
        let dedupe = |rest: &str| with(&format!("[policy]\ndedupe = {{ window = \"10 min\", {rest} }}"));
        let config = dedupe("field = \"event_id\"").unwrap();
        assert_eq!(config.memory_of_rows(), (128 - 32) << 20);
        assert!(message(dedupe("field = \"\"")).contains("policy.dedupe.field is empty"));
        assert!(message(dedupe("field = \"x\", memory = \"1 KiB\"")).contains("at least \"1 MiB\""));
        assert!(message(dedupe("field = \"x\", memory = \"100 MiB\"")).contains("policy.dedupe.memory of"));
        assert!(message(dedupe("field = \"x\", memory = \"16000000000 GiB\"")).contains("memory is too small"));
        assert!(message(with("[policy]\ndedupe = { field = \"x\" }")).contains("window"));
    }

    #[test]
    fn a_start_may_be_a_time() {
        let text = MINIMAL.replace("[target]", "start = \"1970-01-01T00:00:01+00:00\"\n[target]");
        assert_eq!(Config::parse(&text).unwrap().source.start, Start::At(1_000));
        let text = MINIMAL.replace("[target]", "start = \"yesterday\"\n[target]");
        assert!(message(Config::parse(&text)).contains("not a start"));
    }
}
