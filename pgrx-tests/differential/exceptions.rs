//! Where tally's answer may be another one than that of postgresql-hll: on which operations, and what the two answers have to
//! be then. docs/from-postgresql-hll.md lists the differences for users; versions are those of postgresql-hll.

use super::Answer;
use super::stored::{self, Stored};

/// A documented difference that an operation may meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exception {
    // The peer gets a question that it answers rightly, and both answers have to be equal.
    /// `bytea::hll` and binary input are not checked by the peer, its text input is: it gets the same bytes as text.
    UncheckedBytes,
    /// The peer hashes the pointer to a macaddr8: it gets the bytes.
    HashedPointer,
    /// The peer takes zero bits behind the last word, if words have less than 8, for one that sets register 0 to 0. It gets
    /// the same registers FULL.
    PaddingTakenForWord,

    // Both get the same question, and the answers may differ in this way.
    /// Input with parameters that no function takes. 2.17 takes it or finds another fault; later versions say what tally says.
    ParametersOutOfRange(&'static str),
    /// A hash added to registers with a threshold above the peer's buffer. 2.17 adds it; 2.20 says what tally says.
    ThresholdAboveBuffer(i64),
    /// A hash added to a sketch that came in with more hashes than its threshold. 2.17 makes registers of it only if there are
    /// exactly as many, and may write past its buffer; 2.20 does what tally does.
    MoreHashesThanThreshold,
    /// A regwidth of 0: the peer writes a sketch that has 8, which no function takes.
    RegisterWidthZero,
    /// The classic formula with registers of 6 and 7 bits: the peer's limit overflows, and it says NaN.
    NotANumber,
    /// NaN as bigint: not defined in C, and the least number on common processors.
    NotANumberAsInteger,
    /// A type modifier is empty, which the peer takes for 0, or has more than 32 bits, of which it takes the low ones.
    OddModifier,
}

impl Exception {
    /// For bytes that come in as text.
    pub fn of_input(bytes: &[u8]) -> Option<Exception> {
        let [first, parameters, options, ..] = *bytes else { return None };
        let message = if parameters & 0x1f > 17 {
            "log2m modifier must be between 0 and 17"
        } else if parameters >> 5 == 7 {
            "regwidth modifier must be between 0 and 7"
        } else if matches!(first & 0x0f, stored::EMPTY | stored::EXPLICIT)
            && stored::threshold(options) > stored::MOST_HASHES as i64
        {
            "expthresh modifier must be between -1 and 16383"
        } else {
            return None;
        };
        Some(Exception::ParametersOutOfRange(message))
    }

    /// For a hash that is added to this sketch.
    pub fn of_add(sketch: &Stored) -> Option<Exception> {
        if sketch.kind() >= stored::SPARSE && sketch.threshold() > stored::MOST_HASHES as i64 {
            Some(Exception::ThresholdAboveBuffer(sketch.threshold()))
        } else {
            sketch.has_more_hashes_than_its_threshold().then_some(Exception::MoreHashesThanThreshold)
        }
    }

    /// For an estimate from these sketches.
    pub fn of_estimate<'a>(sketches: impl IntoIterator<Item = &'a Stored>) -> Option<Exception> {
        sketches.into_iter().any(|sketch| sketch.width() >= 6).then_some(Exception::NotANumber)
    }

    /// Has the peer been asked another question?
    pub fn is_other_question(&self) -> bool {
        matches!(self, Exception::UncheckedBytes | Exception::HashedPointer | Exception::PaddingTakenForWord)
    }

    /// Without what tells one from another of its kind.
    pub fn kind(&self) -> Exception {
        match self {
            Exception::ParametersOutOfRange(_) => Exception::ParametersOutOfRange(""),
            Exception::ThresholdAboveBuffer(_) => Exception::ThresholdAboveBuffer(0),
            other => *other,
        }
    }

    /// Do two answers that are not equal differ in the way that this is about?
    pub fn allows(&self, peer: &Answer, tally: &Answer) -> bool {
        let refused = |state: &str, message: &str| *tally == Answer::error(state, message);
        match self {
            Exception::UncheckedBytes | Exception::HashedPointer | Exception::PaddingTakenForWord => false,
            Exception::ParametersOutOfRange(message) => refused("22023", message),
            Exception::ThresholdAboveBuffer(threshold) => refused(
                "22000",
                &format!("explicit threshold {threshold} exceeds maximum buffer capacity {}", stored::MOST_HASHES),
            ),
            Exception::MoreHashesThanThreshold => {
                let kind = |answer: &Answer| answer.value.as_ref().and_then(|hex| hex.get(..2)).map(str::to_owned);
                kind(peer).as_deref() == Some("12") && matches!(kind(tally).as_deref(), Some("13" | "14"))
            }
            Exception::RegisterWidthZero => {
                peer.state.is_none() && refused("22023", "a value of type hll needs a regwidth between 1 and 7")
            }
            Exception::NotANumber => {
                let number = |answer: &Answer| answer.value.as_ref().and_then(|value| value.parse::<f64>().ok());
                number(peer).is_some_and(f64::is_nan) && number(tally).is_some_and(f64::is_finite)
            }
            Exception::NotANumberAsInteger => {
                let number = |answer: &Answer| answer.value.as_ref().and_then(|value| value.parse::<i64>().ok());
                number(peer) == Some(i64::MIN) && number(tally).is_some_and(|number| number >= 0)
            }
            Exception::OddModifier => {
                let says = |text| tally.message.as_ref().is_some_and(|message| message.contains(text));
                refused("22023", "typmod array must contain integers") || says(" modifier must be ")
            }
        }
    }
}
