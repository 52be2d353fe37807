//! The settings of librdkafka: those of the loader, of the profile, of the user.

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};

use crate::config::{self, Credentials, Ownership, Profile};

/// Defaults; `source.librdkafka` may override each of them.
const DEFAULTS: &[(&str, &str)] = &[
    ("client.id", "tally-loader"),
    ("socket.keepalive.enable", "true"),
    // Doubled up to the longest. Half of it is also what the client library waits before it connects to the second broker.
    ("reconnect.backoff.ms", "20"),
    ("reconnect.backoff.max.ms", "1000"),
    ("fetch.wait.max.ms", "100"),
    ("fetch.queue.backoff.ms", "20"),
    ("topic.metadata.refresh.interval.ms", "60000"),
];

/// Azure drops a connection that is idle for 240 seconds, so the client drops it before. From the vendor's recommendations for
/// librdkafka; what they call `request.timeout.ms` is `socket.timeout.ms` for a consumer.
const EVENT_HUBS: &[(&str, &str)] = &[
    ("metadata.max.age.ms", "180000"),
    ("connections.max.idle.ms", "180000"),
    ("socket.timeout.ms", "60000"),
    ("session.timeout.ms", "30000"),
    ("heartbeat.interval.ms", "3000"),
    ("api.version.request", "true"),
];

/// For a consumer group: nobody stops reading while parts change hands, and a killed loader is replaced as soon as with leases.
const GROUP: &[(&str, &str)] = &[("session.timeout.ms", "10000"), ("heartbeat.interval.ms", "1000")];

/// Exactly-once rests on these.
const OWN: &[(&str, &str)] = &[
    ("enable.auto.commit", "false"),
    ("enable.auto.offset.store", "false"),
    ("auto.offset.reset", "error"),
    ("isolation.level", "read_committed"),
    ("enable.partition.eof", "true"),
    ("check.crcs", "true"),
    ("statistics.interval.ms", "1000"),
];

/// All settings that differ from the defaults of librdkafka. `memory` is the limit of the whole loader, in bytes.
pub fn settings(source: &config::Source, kafka: &config::Kafka, pipeline: &str, memory: usize) -> ClientConfig {
    let mut settings = ClientConfig::new();
    set(&mut settings, DEFAULTS);
    settings.set("bootstrap.servers", kafka.brokers.join(","));
    // Required by the client library; with leases nothing is ever sent about a group.
    settings.set("group.id", format!("tally-loader-{pipeline}"));
    // It counts keys and values only; with what it keeps of each message, small ones take some four times as much.
    settings.set("queued.max.messages.kbytes", (memory / 16 / 1024).clamp(1024, 32_768).to_string());
    // One answer holds up to this much, of all parts together; the client library wants 1 MB at least.
    settings.set("fetch.max.bytes", (memory / 16).clamp(1 << 20, 50 << 20).to_string());
    // The newer protocol (KIP-848) leaves times and shares to the brokers, and the client library refuses them then.
    if source.ownership == Ownership::ConsumerGroup && !source.has_new_group_protocol() {
        set(&mut settings, GROUP);
    }
    if kafka.profile == Profile::EventHubs {
        set(&mut settings, EVENT_HUBS);
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
        settings.set("sasl.mechanism", sasl.mechanism.as_str());
        if let Some(Credentials::Password { username, password }) = &sasl.credentials {
            settings.set("sasl.username", username.reveal());
            settings.set("sasl.password", password.reveal());
        }
    }
    for (key, value) in &source.librdkafka {
        settings.set(key, value);
    }
    set(&mut settings, OWN);
    if !source.has_new_group_protocol() {
        settings.set("partition.assignment.strategy", "cooperative-sticky");
    }
    settings.set_log_level(RDKafkaLogLevel::Warning);
    settings
}

fn set(settings: &mut ClientConfig, pairs: &[(&str, &str)]) {
    for (key, value) in pairs {
        settings.set(*key, *value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    /// What librdkafka works with: our settings, and its own defaults for the rest.
    fn effective(source: &str, keys: &[&str]) -> Vec<String> {
        let password = tempfile::NamedTempFile::new().unwrap();
        let source = source.replace("PASSWORD", password.path().to_str().unwrap());
        let config = Config::parse(&format!(
            "pipeline = \"p\"\npostgres = {{ host = \"/tmp\", dbname = \"d\", user = \"u\" }}\n[source]\n{source}\n\
             [target]\ntable = \"t\"\n"
        ))
        .unwrap();
        let native =
            settings(&config.source, config.source.topic().unwrap(), "p", 128 << 20).create_native_config().unwrap();
        keys.iter().map(|key| native.get(key).unwrap()).collect()
    }

    const AZURE: &str =
        "kafka = { brokers = [\"n.servicebus.windows.net:9093\"], topic = \"t\", profile = \"event-hubs\" }
         sasl = { mechanism = \"PLAIN\", password_file = \"PASSWORD\" }\n";

    #[test]
    fn the_profile_for_event_hubs_has_the_settings_of_its_vendor() {
        let (keys, values): (Vec<&str>, Vec<&str>) = [
            ("security.protocol", "sasl_ssl"),
            ("sasl.mechanisms", "PLAIN"),
            ("sasl.username", "$ConnectionString"),
            ("socket.keepalive.enable", "true"),
            ("metadata.max.age.ms", "180000"),
            ("connections.max.idle.ms", "180000"),
            ("socket.timeout.ms", "60000"),
            ("session.timeout.ms", "30000"),
            ("heartbeat.interval.ms", "3000"),
            ("topic.metadata.refresh.interval.ms", "60000"),
            ("reconnect.backoff.max.ms", "1000"),
            ("api.version.request", "true"),
            ("ssl.endpoint.identification.algorithm", "https"),
        ]
        .into_iter()
        .unzip();
        assert_eq!(effective(AZURE, &keys), values);
    }

    #[test]
    fn settings_of_the_user_win_over_those_of_the_profile() {
        let user = "librdkafka = { \"connections.max.idle.ms\" = \"90000\", \"broker.address.family\" = \"v4\" }";
        let keys = ["connections.max.idle.ms", "broker.address.family", "metadata.max.age.ms"];
        assert_eq!(effective(&format!("{AZURE}{user}"), &keys), ["90000", "v4", "180000"]);
    }

    #[test]
    fn a_group_changes_hands_without_a_stop() {
        let group = "kafka = { brokers = [\"127.0.0.1:9092\"], topic = \"t\" }\nownership = \"consumer-group\"\n";
        let keys =
            ["partition.assignment.strategy", "session.timeout.ms", "heartbeat.interval.ms", "enable.auto.commit"];
        assert_eq!(effective(group, &keys), ["cooperative-sticky", "10000", "1000", "false"]);
        // Azure wants longer times.
        let azure = effective(&format!("{AZURE}ownership = \"consumer-group\""), &keys);
        assert_eq!(azure[1..3], ["30000", "3000"]);
    }

    #[test]
    fn the_new_group_protocol_leaves_times_and_shares_to_the_brokers() {
        let source = "kafka = { brokers = [\"127.0.0.1:9092\"], topic = \"t\" }\nownership = \"consumer-group\"\n\
                      librdkafka = { \"group.protocol\" = \"consumer\" }\n";
        // The client library takes them together.
        assert_eq!(effective(source, &["group.protocol", "enable.auto.commit"]), ["consumer", "false"]);
    }

    #[test]
    fn login_implies_tls_and_plain_text_stays_plain() {
        let plain = "kafka = { brokers = [\"127.0.0.1:9092\"], topic = \"t\" }\n";
        assert_eq!(effective(plain, &["security.protocol"]), ["plaintext"]);
        assert_eq!(effective(&format!("{plain}tls = {{}}"), &["security.protocol"]), ["ssl"]);
        let scram =
            "sasl = { mechanism = \"SCRAM-SHA-512\", username_file = \"PASSWORD\", password_file = \"PASSWORD\" }";
        let keys = ["security.protocol", "sasl.mechanisms"];
        assert_eq!(effective(&format!("{plain}{scram}"), &keys), ["sasl_ssl", "SCRAM-SHA-512"]);
    }
}
