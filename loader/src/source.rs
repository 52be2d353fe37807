//! Where messages come from. A source is blocking and lives on a thread of its own; Kafka and an in-memory fake implement it.

pub mod fake;
pub mod file;
mod identity;
#[cfg(feature = "kafka")]
pub mod kafka;

use std::fmt;
use std::time::Duration;

use tokio::sync::mpsc;

pub use self::identity::{Evidence, Finding, Probe, Sight, prove_another_topic};
use crate::message::Arena;
use crate::offsets::Anchor;

/// The offsets that a part holds: the first, and the one behind the last that may be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub start: i64,
    pub end: i64,
}

/// What a source is, in the state tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    pub kind: Kind,
    /// The topic, or the path of the file.
    pub name: String,
    /// Instead of what the source itself says.
    pub cluster: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Kafka,
    File,
}

impl Kind {
    /// The name in `tally.loader_sources.kind`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kafka => "kafka",
            Self::File => "file",
        }
    }
}

/// Whether a source still holds what was loaded from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resume {
    /// The record at the anchor tells: it is read once more and compared.
    CompareAnchor,
    /// It does.
    Proven,
    /// It does not, for this reason.
    Refused(String),
}

/// What a poll brought. Messages that are in the arena come before this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Polled {
    /// The arena is full enough; more may be waiting.
    Messages,
    /// Nothing more is waiting right now.
    Idle,
    /// All of a part is read; `position` lies behind what is no message, such as transaction markers.
    EndOfPart { part: i32, position: i64 },
    /// The broker does not have the position of a part any more, or not yet.
    OutOfRange { part: i32 },
    /// What follows in a part cannot be read, now or ever.
    Broken { part: i32, reason: String },
}

/// A change that a consumer group asks for. The next assignment answers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rebalance {
    /// These parts are ours now, besides those that we have.
    Assigned(Vec<i32>),
    /// These parts go to others, who wait until we have answered.
    Revoked(Vec<i32>),
    /// These parts are gone, and others may read them already.
    Lost(Vec<i32>),
}

impl Rebalance {
    /// The parts that change hands.
    pub fn parts(&self) -> &[i32] {
        match self {
            Self::Assigned(parts) | Self::Revoked(parts) | Self::Lost(parts) => parts,
        }
    }
}

impl fmt::Display for Rebalance {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Assigned(_) => "gives part",
            Self::Revoked(_) => "asks for part",
            Self::Lost(_) => "has given to others part",
        })?;
        self.parts().iter().try_for_each(|part| write!(formatter, " {part}"))
    }
}

/// Why a source did not do what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// The brokers are away; the client library keeps trying.
    #[error("{0}")]
    Unreachable(String),
    /// The topic does not exist (any more).
    #[error("{0}")]
    NoTopic(String),
    /// A setting or a right is refused.
    #[error("{0}")]
    Refused(String),
    /// Login or TLS does not succeed; the hint is a whole sentence.
    #[error("{message}. {hint}")]
    Denied { message: String, hint: &'static str },
}

/// A topic or the like, in parts that are each read in order.
pub trait Source: Send {
    /// Identity of the cluster: the same topic name elsewhere is another source.
    fn cluster(&mut self) -> Result<String, SourceError>;
    fn parts(&mut self) -> Result<Vec<i32>, SourceError>;
    fn bounds(&mut self, part: i32) -> Result<Bounds, SourceError>;
    /// The first offset at or after a time in milliseconds since 1970; the end when there is none.
    fn offset_at(&mut self, part: i32, time: i64) -> Result<i64, SourceError>;
    /// Names of the fields, when all messages have the same.
    fn fields(&mut self) -> Option<Vec<String>> {
        None
    }
    /// Looks whether all before a position is what was loaded, as far as the source can tell.
    fn resume(&mut self, _part: i32, _next: i64, _anchor: Option<Anchor>) -> Result<Resume, SourceError> {
        Ok(Resume::CompareAnchor)
    }
    /// Something that looks at single records beside what is read, where a topic may be created again under its name.
    fn probe(&self) -> Option<Box<dyn Probe>> {
        None
    }
    /// Joins the consumer group that shares the parts, if there is one; its changes come from now on, while the source is polled.
    /// Without a group whoever assigns parts chooses them.
    fn join(&mut self) -> Result<Option<mpsc::UnboundedReceiver<Rebalance>>, SourceError> {
        Ok(None)
    }
    /// Reads these parts from these positions, and nothing else. A pause ends.
    fn assign(&mut self, starts: &[(i32, i64)]) -> Result<(), SourceError>;
    /// Fetches nothing more, or goes on from what the last poll brought. `true`: so it is, and while paused polls are about everything
    /// but messages. `false`: this source cannot, and must not be polled.
    fn pause(&mut self, _paused: bool) -> bool {
        false
    }
    /// Fills the arena up to about `limit` bytes; waits at most `wait` for the first message.
    fn poll(&mut self, into: &mut Arena, limit: usize, wait: Duration) -> Result<Polled, SourceError>;
    /// Ends of the parts as last seen: (part, high watermark, last stable offset). For metrics only.
    fn ends(&mut self) -> Vec<(i32, i64, i64)> {
        Vec::new()
    }
    /// How long the brokers have held back answers since this was last asked, because a quota was used up. For metrics only.
    fn throttled(&mut self) -> Duration {
        Duration::ZERO
    }
}
