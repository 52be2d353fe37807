//! How a request on a sketch can be wrong. Most texts are those of postgresql-hll, because programs match them.
#![forbid(unsafe_code)]

use crate::error::Explain;
use std::fmt;

/// What a stored value or a parameter is refused for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    UnknownVersion(u8),
    UndefinedType,
    UndefinedValue,
    EmptySize,
    ExplicitSize,
    CompressedSize,
    ExplicitTooLarge,
    SparseTooSmall,
    SparsePadding,
    /// Hashes out of order; the value as `hll_print` shows it.
    ExplicitOrder(String),
    Log2m,
    RegisterWidth,
    /// A width of 0 is a legal type modifier, but no value can have it.
    ZeroRegisterWidth,
    ThresholdRange,
    ThresholdPower,
    SparseFlag,
    ModifierCount,
    ModifierText,
    /// Two sketches that cannot be united; `source` is the right side.
    Mismatch {
        what: Mismatch,
        source: i64,
        dest: i64,
    },
    /// A sketch cannot gain registers.
    Fold {
        from: u8,
        to: u8,
    },
    TooFewRegisters,
    ThresholdTooLarge(i64),
    OutputVersion,
    MaxSparse,
    UnknownEstimator(String),
    /// Bytes that one process of a parallel query sent to another.
    State(&'static str),
}

/// The parameter in which two sketches differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mismatch {
    Width,
    Registers,
    Threshold,
    Sparse,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownVersion(version) => write!(f, "unknown schema version {version}"),
            Self::UndefinedType => f.write_str("undefined multiset type"),
            Self::UndefinedValue => f.write_str("undefined multiset value"),
            Self::EmptySize => f.write_str("inconsistently sized empty multiset"),
            Self::ExplicitSize => f.write_str("inconsistently sized explicit multiset"),
            Self::CompressedSize => f.write_str("inconsistently sized compressed multiset"),
            Self::ExplicitTooLarge => f.write_str("explicit multiset too large"),
            Self::SparseTooSmall => f.write_str("sparse multiset too small"),
            Self::SparsePadding => f.write_str("inconsistent padding in sparse hll argument"),
            Self::ExplicitOrder(print) => write!(f, "duplicate or descending explicit elements: {print}"),
            Self::Log2m => f.write_str("log2m modifier must be between 0 and 17"),
            Self::RegisterWidth => f.write_str("regwidth modifier must be between 0 and 7"),
            Self::ZeroRegisterWidth => f.write_str("a value of type hll needs a regwidth between 1 and 7"),
            Self::ThresholdRange => f.write_str("expthresh modifier must be between -1 and 16383"),
            Self::ThresholdPower => f.write_str("expthresh modifier must be power of 2"),
            Self::SparseFlag => f.write_str("sparseon modifier must be 0 or 1"),
            Self::ModifierCount => f.write_str("invalid number of type modifiers"),
            Self::ModifierText => f.write_str("typmod array must contain integers"),
            Self::Mismatch { what, source, dest } => {
                let what = match what {
                    Mismatch::Width => "register width",
                    Mismatch::Registers => "register count",
                    Mismatch::Threshold => "explicit threshold",
                    Mismatch::Sparse => "sparse enable",
                };
                write!(f, "{what} does not match: source uses {source} and dest uses {dest}")
            }
            Self::Fold { from, to } => write!(f, "cannot fold a sketch of log2m {from} to log2m {to}"),
            Self::TooFewRegisters => f.write_str("number of registers too small"),
            Self::ThresholdTooLarge(threshold) => {
                write!(f, "explicit threshold {threshold} exceeds maximum buffer capacity 16383")
            }
            Self::OutputVersion => f.write_str("output version must be 1"),
            Self::MaxSparse => f.write_str("sparse threshold must be in range [-1,MAXINT]"),
            Self::UnknownEstimator(name) => write!(f, "unknown estimator \"{name}\""),
            Self::State(found) => write!(f, "invalid state of an hll aggregate: {found}"),
        }
    }
}

impl Explain for Error {
    fn sqlstate(&self) -> &'static str {
        match self {
            Self::Log2m
            | Self::RegisterWidth
            | Self::ZeroRegisterWidth
            | Self::ThresholdRange
            | Self::ThresholdPower
            | Self::SparseFlag
            | Self::ModifierCount
            | Self::ModifierText
            | Self::Fold { .. }
            | Self::UnknownEstimator(_) => "22023",
            Self::State(_) => "22P03",
            _ => "22000",
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Mismatch { .. } => {
                "Only sketches with equal parameters can be united. Build both with the same log2m, regwidth, expthresh and sparseon."
            }
            Self::Fold { from, .. } => {
                return Some(format!(
                    "Folding takes registers away: give a log2m up to {from}, or build the sketch again with more registers."
                ));
            }
            Self::TooFewRegisters => {
                "The estimator \"classic\" needs log2m of at least 4: SET tally.hll_estimator = 'ertl'."
            }
            Self::UnknownEstimator(_) => "The estimators are \"ertl\" and \"classic\".",
            _ => return None,
        };
        Some(hint.to_owned())
    }
}
