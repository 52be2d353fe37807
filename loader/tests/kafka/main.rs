//! The loader as its users run it, a process, against a real Apache Kafka and a real PostgreSQL. What is tested is always the
//! same sentence: every message became one row or one dead letter, whatever was killed.
//!
//! `cargo kafka` runs them. They need Java 17 and Maven, and are skipped, loudly, without; `TALLY_KAFKA_TESTS=required` makes that
//! an error. They need the extension installed (`make kafka` does it). `TALLY_TEST_SEED=n` repeats a run.

/// A real Kafka: start, stop, kill, topics.
mod broker;
/// Certificates for the servers of a test.
#[path = "../shared/certificates.rs"]
mod certificates;
/// Everything is killed again and again, at any moment.
mod chaos;
/// Azure Event Hubs, as far as a stand-in tells.
mod event_hubs;
/// `generate` writes to a topic what it writes to standard output.
mod generated;
/// A consumer group shares the parts, instead of leases.
mod groups;
/// Claims and advances, recorded and checked.
mod history;
/// What a loader leaves behind when it is killed, frozen or asked to stop.
mod kills;
/// TLS, and login with each mechanism; what is refused, and that no secret is printed.
mod login;
/// What becomes of messages that are not plain events: malformed, aborted.
mod messages;
/// Kafka or PostgreSQL go away and come back.
mod outages;
/// A topic, a table and a configuration, and the loader between them.
mod pipeline;
/// A topic is deleted and created again under its name.
mod recreated;
/// What Event Hubs does to connections, done to those of a real broker.
mod stand_in;
