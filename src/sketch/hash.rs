//! Any SQL value to a hash, by the rules of `core::sketch::canon`. Its type is looked up once per call site.

use crate::error::{self, Error};
use crate::pg::canonical::Canonical;
use crate::pg::function::{Call, sql_functions};
use crate::pg::{Datum, types};
use std::cell::RefCell;
use tally_core::sketch::{canon, canon::Form, hash};

/// How the values of an argument are hashed.
#[derive(Clone, Copy)]
pub(super) enum Way {
    /// At once, from where they lie.
    Direct(Form),
    /// Through their byte form.
    Written(Canonical),
}

/// How the values of an argument are hashed.
///
/// # Errors
/// The type has no byte form and no hash function, or no collation where it needs one.
pub(super) fn way(call: Call<'_>, position: usize) -> Result<Way, Error> {
    let oid =
        call.base_type(position).ok_or_else(|| Error::new("42804", "could not determine the type of an argument"))?;
    let canonical = Canonical::of(oid)?.under(call.collation())?;
    Ok(match canonical.form() {
        Some(form) if is_direct(form) => Way::Direct(form),
        _ => Way::Written(canonical),
    })
}

fn is_direct(form: Form) -> bool {
    !matches!(form, Form::Numeric | Form::Interval | Form::TimeWithZone | Form::Network | Form::Bits | Form::Jsonb)
}

/// The hash of an argument that is not NULL.
#[inline(always)]
pub(super) fn value(call: Call<'_>, position: usize, way: Way) -> Result<u64, Error> {
    let form = match way {
        Way::Direct(form) => form,
        Way::Written(canonical) => return written(call, position, canonical),
    };
    Ok(match form {
        Form::Boolean => canon::boolean(call.boolean(position)),
        Form::Byte => canon::byte(call.int32(position) as u8),
        Form::Integer16 => canon::integer(i64::from(call.int16(position))),
        Form::Integer32 => canon::integer(i64::from(call.int32(position))),
        Form::Unsigned32 => canon::integer(i64::from(call.int32(position) as u32)),
        Form::Word64 => canon::integer(call.int64(position)),
        Form::Real => canon::double(f64::from(f32::from_bits(call.int32(position) as u32))),
        Form::Double => canon::double(f64::from_bits(call.int64(position) as u64)),
        Form::Uuid => canon::payload(call.fixed::<16>(position)),
        Form::MacAddress => canon::payload(call.fixed::<6>(position)),
        Form::MacAddress8 => canon::payload(call.fixed::<8>(position)),
        Form::PaddedText => canon::payload(canon::without_padding(&call.bytes(position))),
        Form::Name => canon::payload(canon::name(call.fixed::<64>(position))),
        Form::Hash => call.int64(position) as u64,
        // Text and bytea; the others are written.
        _ => canon::payload(&call.bytes(position)),
    })
}

thread_local! {
    /// Where byte forms are written: one allocation for all rows.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(vec![]) };
}

/// A buffer that is larger is given back.
const KEPT_BYTES: usize = 65_536;

fn written(call: Call<'_>, position: usize, canonical: Canonical) -> Result<u64, Error> {
    // Taken out: a hash function may be somebody's own, and call this one.
    let mut buffer = BUFFER.take();
    buffer.clear();
    canonical.append(call.datum(position), call.collation(), &mut buffer)?;
    let hash = canon::payload(&buffer);
    if buffer.capacity() <= KEPT_BYTES {
        BUFFER.set(buffer);
    }
    Ok(hash)
}

fn hll_hash(call: Call<'_>) -> Result<Datum, Error> {
    let way = call.remembered(|call| way(call, 0))?;
    Ok(Datum::from(value(call, 0, way)?))
}

fn hash_is_stable(call: Call<'_>) -> Result<Datum, Error> {
    Ok(Datum::from(Canonical::of(call.oid(0)).is_ok_and(Canonical::is_stable)))
}

/// The seed of a `hll_hash_*` function.
fn seed(call: Call<'_>) -> i32 {
    let seed = call.int32(1);
    if seed < 0 {
        error::warn(Error::new("01000", "negative seed values not compatible"));
    }
    seed
}

/// A value by its own bytes, whatever other type may have an equal one: the rule of postgresql-hll.
fn own_bytes(word: u64, length: u64, seed: i32) -> Result<Datum, Error> {
    Ok(Datum::from(hash::short(word, length, seed)))
}

/// Any value by its own bytes, by the rule of postgresql-hll: the length of the type decides.
fn any_bytes(call: Call<'_>) -> Result<Datum, Error> {
    let (oid, length, is_by_value) = call.remembered(|call| {
        let oid =
            call.base_type(0).ok_or_else(|| Error::new("42804", "could not determine the type of an argument"))?;
        let (length, is_by_value) = types::layout(oid);
        Ok((oid, length, is_by_value))
    })?;
    let seed = seed(call);
    let hash = match length {
        1 | 2 | 4 | 8 if is_by_value => {
            // The other bytes of the word belong to nobody.
            let word = call.int64(0) as u64 & (u64::MAX >> (64 - 8 * length));
            hash::short(word, length as u64, seed)
        }
        8 => hash::bytes(call.fixed::<8>(0), seed),
        -1 => hash::bytes(&call.bytes(0), seed),
        -2 => hash::bytes(call.c_string(0), seed),
        _ => hash::bytes(&types::sent(oid, call.datum(0)), seed),
    };
    Ok(Datum::from(hash))
}

sql_functions! {
    tally_hll_hash_any => any_bytes,
    tally_hll_hash => hll_hash,
    tally_hash_is_stable => hash_is_stable,
    tally_hll_hash_boolean => |call: Call<'_>| own_bytes(u64::from(call.boolean(0)), 1, seed(call)),
    tally_hll_hash_smallint => |call: Call<'_>| own_bytes(u64::from(call.int16(0) as u16), 2, seed(call)),
    tally_hll_hash_integer => |call: Call<'_>| own_bytes(u64::from(call.int32(0) as u32), 4, seed(call)),
    tally_hll_hash_bigint => |call: Call<'_>| own_bytes(call.int64(0) as u64, 8, seed(call)),
    tally_hll_hash_bytes => |call: Call<'_>| Ok(Datum::from(hash::bytes(&call.bytes(0), seed(call)))),
    tally_hll_hash_uuid => |call: Call<'_>| Ok(Datum::from(hash::bytes(call.fixed::<16>(0), seed(call)))),
}
