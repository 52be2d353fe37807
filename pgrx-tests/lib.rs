//! Throw-away PostgreSQL servers for tests: [`cluster::database`] for a fresh database with the extension in it,
//! [`cluster::Cluster::start`] for a server that a test may configure, kill and restart.
pub mod cluster;
