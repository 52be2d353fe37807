//! Arguments of `generate --mode realistic`.

use std::fmt;

use clap::Args;

use crate::decode::Reason;

/// What can be planted in a message: every reason of dead letters but that of a CSV file.
pub const MALFORMED_KINDS: [Reason; 12] = [
    Reason::NotJson,
    Reason::NotObject,
    Reason::MissingRequired,
    Reason::WrongType,
    Reason::OutOfRange,
    Reason::TooLong,
    Reason::BadText,
    Reason::NoPartition,
    Reason::TooLarge,
    Reason::Tombstone,
    Reason::UnknownField,
    Reason::Constraint,
];

/// What the events are like (`--mode realistic`). Shares are between 0 and 1.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Realistic mode")]
pub struct RealisticArguments {
    /// Number of tenants.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub tenants: u32,
    /// Number of devices.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub devices: u32,
    /// How unequal tenants are: tenant k has k^-s of the sessions of tenant 1 (Zipf); 0 makes them equal.
    #[arg(long, default_value_t = 1.1, value_parser = exponent)]
    pub tenant_exponent: f64,
    /// The same of devices.
    #[arg(long, default_value_t = 1.1, value_parser = exponent)]
    pub device_exponent: f64,
    /// Share of events that are up to 10 minutes late; others are up to 2 seconds late.
    #[arg(long, default_value_t = 0.049, value_parser = share)]
    pub late: f64,
    /// Share of events that are up to 48 hours late.
    #[arg(long, default_value_t = 0.001, value_parser = share)]
    pub very_late: f64,
    /// Share of messages that are spoiled, in one of the ways of --malformed-kinds each.
    #[arg(long, default_value_t = 0.001, value_parser = share)]
    pub malformed: f64,
    /// Reasons of dead letters that are planted, comma-separated; all of them by default, but a tombstone only in topics.
    #[arg(long, value_delimiter = ',', value_name = "REASON", value_parser = reason)]
    pub malformed_kinds: Vec<Reason>,
    /// Bytes of a value that is too large.
    #[arg(long, default_value_t = 65_536, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1_024..=16_777_216))]
    pub too_large: u32,
    /// Share of messages that a producer has sent before, with the same event_id; at most 0.5.
    #[arg(long, default_value_t = 0.005, value_parser = half)]
    pub duplicates: f64,
    /// Share of events in which country, browser or device_id is null.
    #[arg(long, default_value_t = 0.01, value_parser = share)]
    pub nulls: f64,
}

fn number(text: &str, limit: f64) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.0..=limit).contains(&number) { Ok(number) } else { Err(format!("not between 0 and {limit}")) }
}

fn share(text: &str) -> Result<f64, String> {
    number(text, 1.0)
}

fn half(text: &str) -> Result<f64, String> {
    number(text, 0.5)
}

fn exponent(text: &str) -> Result<f64, String> {
    number(text, 10.0)
}

fn reason(text: &str) -> Result<Reason, UnknownReason> {
    MALFORMED_KINDS.into_iter().find(|reason| reason.as_str() == text).ok_or(UnknownReason)
}

#[derive(Debug)]
struct UnknownReason;

impl std::error::Error for UnknownReason {}

impl fmt::Display for UnknownReason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("not a kind of malformed message; there are")?;
        MALFORMED_KINDS.iter().try_for_each(|reason| write!(formatter, " {}", reason.as_str()))
    }
}
