//! Bounds of time that the planner evaluates while it plans the view of a rollup (see `seal.rs`). They are declared immutable, which
//! has it do so, and prune partitions by them; the view sees to it that they hold in the reader's snapshot.

use super::function::Call;
use crate::error::{Error, Result};
use crate::seal;
use pgrx::pg_sys::{self, Datum, Oid};
use tally_core::bucket::{DAY, Timestamp};
use tally_core::partition::Interval;

super::function::sql_functions! {
    tally_settled_before => |call| bound(call, seal::settled_before, 0),
    tally_unchanged_before => unchanged_before,
}

/// `tally.unchanged_before(stored regclass, kind anyelement, reach interval) RETURNS anyelement`
fn unchanged_before(call: Call<'_>) -> Result<Datum> {
    if call.is_null(2) {
        return bound(call, seal::calm_before, 0);
    }
    // SAFETY: the declared type is interval, which is passed by reference.
    let pg_sys::Interval { month, day, time } = unsafe { *call.datum(2).cast_mut_ptr::<pg_sys::Interval>() };
    bound(call, seal::unchanged_before, longest(Interval { months: month, days: day, microseconds: time }))
}

/// No span of this interval is longer, whatever months and changes of the clock it contains; microseconds.
fn longest(interval: Interval) -> i64 {
    let Interval { months, days, microseconds } = interval;
    let slack = if months == 0 && days == 0 { 0 } else { DAY };
    (i64::from(months) * 31 + i64::from(days)).saturating_mul(DAY).saturating_add(microseconds).saturating_add(slack)
}

/// `f(stored regclass, kind anyelement, ..) RETURNS anyelement`
fn bound(call: Call<'_>, find: fn(Oid) -> Result<Option<Timestamp>>, reach: i64) -> Result<Datum> {
    let kind = call.base_type(1).ok_or_else(|| Error::new("42P13", "the type of the bound is not known"))?;
    // SAFETY: only says whether there is a snapshot.
    let can_look = !call.is_null(0) && unsafe { pg_sys::ActiveSnapshotSet() };
    let found = if can_look { find(call.oid(0))? } else { None };
    let bound = found.map_or(Timestamp::NEG_INFINITY, |found| found.minus(reach));
    Ok(match kind {
        pg_sys::DATEOID if bound.is_finite() => Datum::from(i32::try_from(bound.0.div_euclid(DAY)).unwrap_or(i32::MIN)),
        pg_sys::DATEOID => Datum::from(if bound == Timestamp::INFINITY { i32::MAX } else { i32::MIN }),
        pg_sys::TIMESTAMPOID | pg_sys::TIMESTAMPTZOID => Datum::from(bound.0),
        _ => return Err(Error::new("42804", "the bound must be a date, a timestamp or a timestamptz")),
    })
}
