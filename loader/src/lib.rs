//! `tally-loader` moves messages of a Kafka topic into a PostgreSQL table by binary COPY, exactly once: the position in the
//! topic is committed in the transaction of the rows, behind a fence that a loader which lost its part cannot pass.
//!
//! Words: a *part* is a Kafka partition (never a partition of the table, that is a *leaf*). A *position* is the next offset to
//! read. An *epoch* is a number that grows with every claim of a part.
#![deny(unsafe_code)]

pub mod arguments;
pub mod batch;
pub mod catalog;
pub mod check;
pub mod chunk;
pub mod config;
pub mod control;
pub mod copy;
pub mod csv;
pub mod decode;
pub mod dedupe;
pub mod error;
pub mod feed;
pub mod files;
pub mod gauge;
pub mod generate;
pub mod init;
pub mod kind;
pub mod logging;
pub mod manual;
pub mod membership;
pub mod message;
pub mod metrics;
pub mod offsets;
pub mod pipeline;
pub mod postgres;
pub mod program;
pub mod progress;
pub mod replay;
pub mod run;
pub mod sink;
pub mod source;
pub mod stop;

pub use error::{Error, Result};
