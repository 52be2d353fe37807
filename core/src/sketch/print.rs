//! A sketch as text for people, as `hll_print` of postgresql-hll shows it.
#![forbid(unsafe_code)]

use super::params::Params;
use super::registers::{self, Bits};
use super::wire::{Kind, Packed};
use std::fmt::Write;

/// Registers per line.
const LINE: usize = 32;

/// Parameters, then hashes or registers.
pub(super) fn packed(packed: &Packed<'_>) -> String {
    let params = packed.params();
    let mut out = String::new();
    // Writing into a String cannot fail.
    let _ = match packed.kind() {
        Kind::Undefined => write!(out, "UNDEFINED {}", parameters(params)),
        Kind::Empty => write!(out, "EMPTY, {}", parameters(params)),
        Kind::Explicit => explicit(&mut out, packed),
        Kind::Sparse | Kind::Full => compressed(&mut out, packed),
    };
    out
}

fn parameters(params: Params) -> String {
    let threshold = match params.specified_threshold() {
        -1 => format!("-1({})", params.threshold()),
        specified => specified.to_string(),
    };
    format!(
        "nregs={}, nbits={}, expthresh={threshold}, sparseon={}",
        params.registers(),
        params.width(),
        u8::from(params.sparse())
    )
}

fn explicit(out: &mut String, packed: &Packed<'_>) -> std::fmt::Result {
    write!(out, "EXPLICIT, {} elements, {}:", packed.hashes().len(), parameters(packed.params()))?;
    for (position, hash) in packed.hashes().enumerate() {
        write!(out, "\n{position}: {hash:20} ")?;
    }
    Ok(())
}

fn compressed(out: &mut String, packed: &Packed<'_>) -> std::fmt::Result {
    let params = packed.params();
    let mut values = vec![0u8; params.registers()];
    if packed.kind() == Kind::Full {
        for (register, value) in values.iter_mut().zip(Bits::new(packed.data(), params.width())) {
            *register = value as u8;
        }
    } else {
        for (index, value) in packed.sparse() {
            values[index] = value;
        }
    }
    write!(out, "COMPRESSED, {} filled {}:", registers::filled(&values), parameters(params))?;
    for (line, values) in values.as_chunks::<LINE>().0.iter().enumerate() {
        write!(out, "\n{:4}: ", line * LINE)?;
        for value in values {
            write!(out, "{value:2} ")?;
        }
    }
    Ok(())
}

impl Packed<'_> {
    /// The text of `hll_print`.
    pub fn print(&self) -> String {
        packed(self)
    }
}
