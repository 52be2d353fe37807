//! How rows are written and what happens to what is no row: the section `policy`.

use serde::Deserialize;

use super::{Size, Span};

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    pub batch: Batch,
    pub dead_letters: DeadLetters,
    pub on: On,
    pub timeouts: Timeouts,
    /// Off without it.
    pub dedupe: Option<Dedupe>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Batch {
    pub rows: usize,
    pub bytes: Size,
    /// Longest time that a row waits for others.
    pub linger: Span,
    pub(super) connections: Connections,
    pub synchronous_commit: SynchronousCommit,
}

impl Batch {
    /// Data connections that were asked for; `None` leaves it to the loader.
    pub fn connections(&self) -> Option<usize> {
        match self.connections {
            Connections::Number(number) => Some(number as usize),
            Connections::Auto(_) => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(super) enum Connections {
    Number(u32),
    Auto(Auto),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Auto {
    Auto,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SynchronousCommit {
    Off,
    Local,
    RemoteWrite,
    On,
    RemoteApply,
}

impl SynchronousCommit {
    /// The value as PostgreSQL spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Local => "local",
            Self::RemoteWrite => "remote_write",
            Self::On => "on",
            Self::RemoteApply => "remote_apply",
        }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DeadLetters {
    /// Share of the last 10,000 messages, looked at from 1,000 messages on.
    pub stop_above_ratio: f64,
    pub stop_above_per_minute: u64,
    /// Larger values become dead letters, and no dead letter keeps more of its value than this.
    pub max_value: Size,
}

/// Leave out messages that a producer has sent before.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dedupe {
    /// Of the outermost object; its JSON text is compared as it is written.
    pub field: String,
    /// Of broker time.
    pub window: Span,
    /// For what the window remembers; a part of the memory of the whole.
    #[serde(default = "dedupe_memory")]
    pub memory: Size,
}

impl Dedupe {
    /// The settings of one among several that share the memory.
    pub fn of_one_in(&self, number: usize) -> Self {
        Self { memory: Size(self.memory.0 / number.max(1)), ..self.clone() }
    }
}

fn dedupe_memory() -> Size {
    Size::mebibytes(32)
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct On {
    pub gap: OnGap,
    pub recreated: OnRecreated,
    pub tombstone: OnTombstone,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnGap {
    #[default]
    Stop,
    /// Write the lost range into `tally.loader_gaps` and go on behind it.
    Record,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnRecreated {
    #[default]
    Stop,
    /// Load the new topic from its first message on, as another source.
    NewIncarnation,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnTombstone {
    /// Counted, nothing else.
    #[default]
    Skip,
    /// A row of NULLs.
    Row,
    DeadLetter,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// How long the first contact with PostgreSQL and Kafka may take; later outages are retried for ever.
    pub start: Span,
    /// How long the last batch may take after SIGTERM.
    pub stop: Span,
    /// How often a running loader looks whether the topic is still the same one.
    pub anchor_check: Span,
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            rows: 20_000,
            bytes: Size::mebibytes(8),
            linger: Span::milliseconds(100),
            connections: Connections::Auto(Auto::Auto),
            synchronous_commit: SynchronousCommit::Off,
        }
    }
}

impl Default for DeadLetters {
    fn default() -> Self {
        Self { stop_above_ratio: 0.05, stop_above_per_minute: 5_000, max_value: Size::mebibytes(1) }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            start: Span::milliseconds(30_000),
            stop: Span::milliseconds(10_000),
            anchor_check: Span::milliseconds(60_000),
        }
    }
}
