//! Sketches of both types are compared by their stored bytes, so that GROUP BY, DISTINCT, UNION, EXCEPT and keys work with them.

use crate::error::Error;
use crate::pg::Datum;
use crate::pg::function::{Call, sql_functions};
use std::cmp::Ordering;
use tally_core::sketch::hash;

/// By bytes, the shorter one first.
fn compare(call: Call<'_>) -> Ordering {
    call.bytes(0).cmp(&call.bytes(1))
}

fn equal(call: Call<'_>) -> bool {
    *call.bytes(0) == *call.bytes(1)
}

fn truth(value: bool) -> Result<Datum, Error> {
    Ok(Datum::from(value))
}

/// For hash tables; it has nothing to do with the hashes inside of a sketch.
fn hash_of_bytes(call: Call<'_>) -> Result<Datum, Error> {
    Ok(Datum::from(hash::bytes(&call.bytes(0), 0) as u32 as i32))
}

fn hash_of_bytes_extended(call: Call<'_>) -> Result<Datum, Error> {
    let (seed, plain) = (call.int64(1), hash::bytes(&call.bytes(0), 0));
    // PostgreSQL demands that a seed of 0 leaves the low half as the plain hash has it.
    Ok(Datum::from(if seed == 0 { plain } else { hash::short(plain ^ seed as u64, 8, 0) }))
}

sql_functions! {
    tally_bytes_eq => |call: Call<'_>| truth(equal(call)),
    tally_bytes_ne => |call: Call<'_>| truth(!equal(call)),
    tally_bytes_lt => |call: Call<'_>| truth(compare(call).is_lt()),
    tally_bytes_le => |call: Call<'_>| truth(compare(call).is_le()),
    tally_bytes_gt => |call: Call<'_>| truth(compare(call).is_gt()),
    tally_bytes_ge => |call: Call<'_>| truth(compare(call).is_ge()),
    tally_bytes_cmp => |call: Call<'_>| -> Result<Datum, Error> { Ok(Datum::from(compare(call) as i32)) },
    tally_bytes_hash => hash_of_bytes,
    tally_bytes_hash_extended => hash_of_bytes_extended,
}
