//! Whether a part still is the one that was loaded. No client tells that a topic was created again under its name, so a record that
//! was read from it, the anchor, has to be where it was.

use std::fmt;
use std::sync::atomic::AtomicBool;

use super::{Bounds, SourceError};
use crate::offsets::Anchor;

/// What a part has at an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// The first record at the offset or behind it.
    Record(Anchor),
    /// No record is there any more; reading goes on at `position`, behind what is no record.
    End { position: i64 },
    /// The part begins behind the offset, or ends before it.
    OutOfRange(Bounds),
}

/// Looks at single records of a source, beside whatever reads it. Blocking.
pub trait Probe: Send {
    /// What is at these offsets, one of each part.
    ///
    /// # Errors
    /// The source does not answer in time, or the look was cancelled.
    fn look(&mut self, at: &[(i32, i64)], is_cancelled: &AtomicBool) -> Result<Vec<(i32, Sight)>, SourceError>;

    /// Ends what a look has left open to make the next one cheaper.
    fn close(&mut self) {}
}

/// What the look at an anchor says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    Same,
    /// The record is gone, by retention or compaction, which proves nothing.
    Undecided,
    /// Another record is at its offset.
    AnotherRecord,
    /// The part ends before it.
    Shorter {
        end: i64,
    },
}

impl Finding {
    /// Compares the anchor with what is at its offset now.
    pub fn of(anchor: Anchor, sight: Sight) -> Self {
        match sight {
            Sight::Record(record) if record.offset > anchor.offset => Self::Undecided,
            Sight::Record(record) if (record.time, record.hash) == (anchor.time, anchor.hash) => Self::Same,
            Sight::Record(_) => Self::AnotherRecord,
            Sight::End { position } if position > anchor.offset => Self::Undecided,
            Sight::End { position: end } => Self::Shorter { end },
            Sight::OutOfRange(bounds) if anchor.offset < bounds.start => Self::Undecided,
            Sight::OutOfRange(bounds) => Self::Shorter { end: bounds.end },
        }
    }

    /// The part is not what it was.
    pub fn is_change(self) -> bool {
        matches!(self, Self::AnotherRecord | Self::Shorter { .. })
    }
}

/// What a part says about the whole topic, once a change was found in one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// Its anchor is where it was.
    Same,
    /// It is another part, or was cut off, and its first record is younger than the last one that was loaded.
    Younger,
    /// The topic does not have it any more, and parts are never taken from a topic.
    Gone,
    /// It is another part, or was cut off, and has no record.
    Empty,
    /// It is another part, or was cut off, and its first record is not younger: it may be the old one.
    NotYounger,
    /// Nothing was loaded from it, or the record to recognise it by is gone.
    Nothing,
}

impl Evidence {
    /// `first` is what the part has at its beginning.
    pub fn of(anchor: Anchor, finding: Finding, first: Sight) -> Self {
        match (finding, first) {
            (Finding::Same, _) => Self::Same,
            (Finding::Undecided, _) => Self::Nothing,
            (_, Sight::End { .. }) => Self::Empty,
            (_, Sight::Record(first)) if first.time.zip(anchor.time).is_some_and(|(first, last)| first > last) => {
                Self::Younger
            }
            _ => Self::NotYounger,
        }
    }
}

/// Whether the whole topic is another one. A log that was cut off looks alike, but its first records are rows already: they would be
/// loaded a second time. So it takes a proof.
///
/// # Errors
/// Why that is not proven, as the second half of a sentence.
pub fn prove_another_topic(evidence: &[Evidence]) -> Result<(), &'static str> {
    let has = |wanted: Evidence| evidence.contains(&wanted);
    if has(Evidence::Same) {
        return Err("other parts are the same, so it was cut off");
    }
    if has(Evidence::NotYounger) {
        return Err("its first record is not younger than the last loaded one, so it may be the same topic, cut off");
    }
    let is_all_empty = has(Evidence::Empty) && !has(Evidence::Nothing);
    if has(Evidence::Younger) || has(Evidence::Gone) || is_all_empty {
        return Ok(());
    }
    Err("nothing proves that it is another topic")
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Same => formatter.write_str("the topic is the same"),
            Self::Undecided => formatter.write_str("the last loaded record is gone, which proves nothing"),
            Self::AnotherRecord => formatter
                .write_str("another record is where the last loaded one was: the topic was created again or cut off"),
            Self::Shorter { end } => {
                write!(
                    formatter,
                    "the last loaded record lies behind the end {end}: the topic was created again or cut off"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANCHOR: Anchor = Anchor { offset: 9, time: Some(5), hash: 7 };

    #[test]
    fn only_the_same_record_proves_the_topic() {
        let record = |offset, time, hash| Finding::of(ANCHOR, Sight::Record(Anchor { offset, time, hash }));
        assert_eq!(record(9, Some(5), 7), Finding::Same);
        assert_eq!(record(9, Some(5), 8), Finding::AnotherRecord);
        assert_eq!(record(9, Some(6), 7), Finding::AnotherRecord);
        // Compacted away.
        assert_eq!(record(10, Some(5), 7), Finding::Undecided);
    }

    #[test]
    fn a_topic_that_may_be_the_old_one_is_not_another_one() {
        use Evidence::{Empty, Gone, NotYounger, Nothing, Same, Younger};
        for another in [&[Younger][..], &[Younger, Nothing, Empty], &[Empty, Empty], &[Gone, Nothing]] {
            assert_eq!(prove_another_topic(another), Ok(()), "{another:?}");
        }
        for same in [&[Same, Younger][..], &[Same, Gone], &[NotYounger, Gone], &[Empty, Nothing], &[Nothing], &[]] {
            assert!(prove_another_topic(same).is_err(), "{same:?}");
        }
    }

    #[test]
    fn a_part_is_younger_only_when_its_first_record_is() {
        let evidence =
            |finding, time| Evidence::of(ANCHOR, finding, Sight::Record(Anchor { offset: 0, time, hash: 1 }));
        assert_eq!(evidence(Finding::AnotherRecord, Some(6)), Evidence::Younger);
        assert_eq!(evidence(Finding::AnotherRecord, Some(5)), Evidence::NotYounger);
        assert_eq!(evidence(Finding::Shorter { end: 3 }, None), Evidence::NotYounger);
        assert_eq!(evidence(Finding::Same, Some(6)), Evidence::Same);
        assert_eq!(evidence(Finding::Undecided, Some(6)), Evidence::Nothing);
        assert_eq!(Evidence::of(ANCHOR, Finding::Shorter { end: 0 }, Sight::End { position: 0 }), Evidence::Empty);
    }

    #[test]
    fn an_end_before_the_anchor_is_a_change_and_one_behind_it_is_not() {
        assert_eq!(Finding::of(ANCHOR, Sight::End { position: 9 }), Finding::Shorter { end: 9 });
        // Compacted away, with nothing but markers behind it.
        assert_eq!(Finding::of(ANCHOR, Sight::End { position: 10 }), Finding::Undecided);
        let range = |start, end| Finding::of(ANCHOR, Sight::OutOfRange(Bounds { start, end }));
        assert_eq!(range(0, 8), Finding::Shorter { end: 8 });
        assert_eq!(range(10, 20), Finding::Undecided);
    }
}
