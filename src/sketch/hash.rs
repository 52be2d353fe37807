//! Any SQL value to a hash, by the rules of `core::sketch::canon`. Its type is looked up once per call site.

use crate::error::{self, Error};
use crate::pg::function::{Call, sql_functions};
use crate::pg::{Datum, Oid, types};
use tally_core::sketch::{canon, canon::Form, hash};

/// How the values of an argument are hashed.
///
/// # Errors
/// The type, or its collation, has no byte form.
pub(super) fn form(call: Call<'_>, position: usize) -> Result<Form, Error> {
    let oid =
        call.base_type(position).ok_or_else(|| Error::new("42804", "could not determine the type of an argument"))?;
    let Some(form) = Form::of_type(oid.to_u32()) else {
        return own_form(oid);
    };
    if form.is_collated() {
        check_collation(call.collation())?;
    }
    Ok(form)
}

/// Types that the extension has made itself have no fixed oid.
fn own_form(oid: Oid) -> Result<Form, Error> {
    if oid == types::own_type(c"hll_hashval") {
        return Ok(Form::Hash);
    }
    if oid == types::own_type(c"hll") {
        return Err(Error::new("42804", "a sketch cannot be an element of a sketch").hint(
            "Use tally.hll_union_agg(hll) to unite sketches, and tally.distinct_count(hll) to count what they hold.",
        ));
    }
    Err(Error::new("0A000", format!("values of type {} cannot be counted by a sketch yet", types::type_name(oid)))
        .detail("A sketch needs one byte form for all values that are equal, and this type has none yet.")
        .hint(
            "Supported are smallint, integer, bigint, oid, boolean, date, timestamp, timestamptz, uuid, text, varchar, name \
             and domains over them. Cast the value to one of these, if equal values stay equal by that.",
        ))
}

fn check_collation(collation: Oid) -> Result<(), Error> {
    if collation == Oid::INVALID {
        return Err(Error::new("42P22", "could not determine which collation to use for a distinct count")
            .hint("Use the COLLATE clause to set the collation explicitly."));
    }
    if !types::is_deterministic(collation) {
        return Err(Error::new("0A000", "nondeterministic collations are not supported by sketches")
            .detail("Under such a collation, strings of different bytes can be equal, and a sketch compares bytes.")
            .hint("Add COLLATE \"C\" to the argument to count strings of different bytes as different."));
    }
    Ok(())
}

/// The hash of an argument that is not NULL.
#[inline(always)]
pub(super) fn value(call: Call<'_>, position: usize, form: Form) -> u64 {
    match form {
        Form::Boolean => canon::boolean(call.boolean(position)),
        Form::Integer16 => canon::integer(i64::from(call.int16(position))),
        Form::Integer32 => canon::integer(i64::from(call.int32(position))),
        Form::Unsigned32 => canon::integer(i64::from(call.int32(position) as u32)),
        Form::Word64 => canon::integer(call.int64(position)),
        Form::Uuid => canon::payload(call.fixed::<16>(position)),
        Form::Text => canon::payload(&call.bytes(position)),
        Form::Name => canon::name(call.fixed::<64>(position)),
        Form::Hash => call.int64(position) as u64,
    }
}

fn hll_hash(call: Call<'_>) -> Result<Datum, Error> {
    let form = call.remembered(|call| form(call, 0))?;
    Ok(Datum::from(value(call, 0, form)))
}

fn hash_is_stable(call: Call<'_>) -> Result<Datum, Error> {
    let oid = types::base_type(call.oid(0));
    Ok(Datum::from(Form::of_type(oid.to_u32()).is_some() || oid == types::own_type(c"hll_hashval")))
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

sql_functions! {
    tally_hll_hash => hll_hash,
    tally_hash_is_stable => hash_is_stable,
    tally_hll_hash_boolean => |call: Call<'_>| own_bytes(u64::from(call.boolean(0)), 1, seed(call)),
    tally_hll_hash_smallint => |call: Call<'_>| own_bytes(u64::from(call.int16(0) as u16), 2, seed(call)),
    tally_hll_hash_integer => |call: Call<'_>| own_bytes(u64::from(call.int32(0) as u32), 4, seed(call)),
    tally_hll_hash_bigint => |call: Call<'_>| own_bytes(call.int64(0) as u64, 8, seed(call)),
    tally_hll_hash_bytes => |call: Call<'_>| Ok(Datum::from(hash::bytes(&call.bytes(0), seed(call)))),
    tally_hll_hash_uuid => |call: Call<'_>| Ok(Datum::from(hash::bytes(call.fixed::<16>(0), seed(call)))),
}
