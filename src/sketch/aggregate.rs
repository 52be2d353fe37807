//! The aggregates over sketches. The path of a row touches the state and returns; everything rare is `#[cold]`.

use super::hash::{self, Way};
use super::memory;
use crate::error::Error;
use crate::pg::aggregate::{self, Context, Owner};
use crate::pg::function::{Call, sql_functions};
use crate::pg::{Datum, varlena};
use crate::settings;
use tally_core::sketch::canon::Form;
use tally_core::sketch::{Packed, Packing, Params, Room, State};

/// Leads the bytes that one process of a parallel query sends to another.
const STORED_FORM: u8 = 0;

#[inline(always)]
fn state<'c>(call: Call<'c>, position: usize) -> Option<&'c mut [u64]> {
    aggregate::chunk(call, position, State::chunk_words)
}

/// `(state, value [, log2m [, regwidth [, expthresh [, sparseon]]]])`: adds the hash of a value of any type.
#[inline(always)]
fn add_value(call: Call<'_>) -> Result<Datum, Error> {
    let way = call.remembered(|call| hash::way(call, 1))?;
    add_hashed(call, way, "hll_agg_trans")
}

/// The same for a given hash.
#[inline(always)]
fn add_hash(call: Call<'_>) -> Result<Datum, Error> {
    add_hashed(call, Way::Direct(Form::Hash), "hll_add_trans")
}

#[inline(always)]
fn add_hashed(call: Call<'_>, way: Way, function: &'static str) -> Result<Datum, Error> {
    let chunk = match state(call, 0) {
        Some(chunk) => chunk,
        None => first_row(call, function)?,
    };
    if call.is_null(1) {
        return Ok(aggregate::datum(chunk));
    }
    let hash = hash::value(call, 1, way)?;
    match State::over(chunk).add(hash) {
        Ok(()) => Ok(aggregate::datum(chunk)),
        Err(room) => add_to_larger(call, function, chunk, room, hash),
    }
}

#[cold]
#[inline(never)]
fn first_row<'c>(call: Call<'c>, function: &str) -> Result<&'c mut [u64], Error> {
    let context = Context::of_aggregate(call, function, "transition")?;
    let given = std::array::from_fn(|parameter| {
        let position = parameter + 2;
        // expthresh alone is a bigint; the others fit its datum as integers do.
        (position < call.len() && !call.is_null(position)).then(|| match parameter {
            2 => call.int64(position),
            _ => i64::from(call.int32(position)),
        })
    });
    let params = settings::hll_params(given)?;
    Ok(memory::create(context, params))
}

#[cold]
#[inline(never)]
fn add_to_larger<'c>(
    call: Call<'c>,
    function: &'static str,
    mut chunk: &'c mut [u64],
    mut room: Room,
    hash: u64,
) -> Result<Datum, Error> {
    let context = Context::of_aggregate(call, function, "transition")?;
    loop {
        chunk = memory::enlarge(context, chunk, room);
        match State::over(chunk).add(hash) {
            Ok(()) => return Ok(aggregate::datum(chunk)),
            Err(more) => room = more,
        }
    }
}

/// `(state, hll)`: unites a sketch.
fn unite(call: Call<'_>) -> Result<Datum, Error> {
    let found = state(call, 0);
    if call.is_null(1) {
        return Ok(found.map_or_else(|| call.null(), aggregate::datum));
    }
    let owner = Owner::Aggregate(call, "hll_union_trans", "transition");
    let bytes = call.bytes(1);
    let packed = Packed::read(&bytes)?;
    let chunk = match found {
        Some(chunk) => chunk,
        None => memory::create(owner.context()?, packed.params()),
    };
    memory::unite(owner, chunk, &packed).map(aggregate::datum)
}

/// `(state, state)`: unites the second one into the first.
fn combine(call: Call<'_>) -> Result<Datum, Error> {
    let Some(other) = state(call, 1) else {
        return Ok(state(call, 0).map_or_else(|| call.null(), aggregate::datum));
    };
    let owner = Owner::Aggregate(call, "hll_union_internal", "aggregate");
    let other = State::over(other);
    let chunk = match state(call, 0) {
        Some(chunk) => chunk,
        None => memory::create(owner.context()?, other.params()),
    };
    memory::unite_state(owner, chunk, &other).map(aggregate::datum)
}

/// `(state)` to bytea, for another process. It does not depend on settings, which may differ there.
fn serialize(call: Call<'_>) -> Result<Datum, Error> {
    Context::of_aggregate(call, "hll_serialize", "transition")?;
    let Some(chunk) = state(call, 0) else { return Ok(call.null()) };
    let mut state = State::over(chunk);
    let layout = state.layout(Packing::BySize);
    Ok(varlena::build(1 + layout.size(), |out| {
        out[0] = STORED_FORM;
        state.pack(layout, &mut out[1..]);
    }))
}

/// `(bytea, internal)` to a state that waits to be united: in the memory of the call, not unpacked.
fn deserialize(call: Call<'_>) -> Result<Datum, Error> {
    Context::of_aggregate(call, "hll_deserialize", "aggregate")?;
    let bytes = call.bytes(0);
    let Some((&STORED_FORM, stored)) = bytes.split_first() else {
        return Err(tally_core::sketch::Error::State("unknown form").into());
    };
    let packed = Packed::read(stored)?;
    let chunk = Context::current().allocate(State::packed_words(&packed));
    State::create_packed(chunk, &packed);
    Ok(aggregate::datum(chunk))
}

/// The final functions leave the set as it is, in whatever order: they run again and again in window frames.
fn final_state<'c>(call: Call<'c>, function: &str) -> Result<Option<State<'c>>, Error> {
    Context::of_aggregate(call, function, "aggregate")?;
    Ok(state(call, 0).map(State::over))
}

fn finish_sketch(call: Call<'_>) -> Result<Datum, Error> {
    Ok(match final_state(call, "hll_pack")? {
        Some(mut state) => super::store(&mut state),
        None => call.null(),
    })
}

fn finish_estimate(call: Call<'_>, function: &str) -> Result<Option<f64>, Error> {
    match final_state(call, function)? {
        Some(mut state) => Ok(state.estimate(settings::hll_estimator())?),
        None => Ok(None),
    }
}

fn finish_rounded(call: Call<'_>, function: &str, round: fn(f64) -> f64) -> Result<Datum, Error> {
    Ok(finish_estimate(call, function)?.map_or_else(|| call.null(), |estimate| Datum::from(round(estimate) as i64)))
}

/// As `count(DISTINCT x)`: 0 for no rows. NULL only for a set that is not known.
fn finish_distinct_count(call: Call<'_>) -> Result<Datum, Error> {
    if call.is_null(0) {
        return Ok(Datum::from(0i64));
    }
    finish_rounded(call, "distinct_count", super::round)
}

/// The parameters of a new sketch, for functions that make one outside an aggregate.
pub(super) fn given_params(call: Call<'_>) -> Result<Params, Error> {
    let given = std::array::from_fn(|position| {
        (position < call.len()).then(|| match position {
            2 => call.int64(position),
            _ => i64::from(call.int32(position)),
        })
    });
    Ok(settings::hll_params(given)?)
}

sql_functions! {
    tally_hll_agg_trans => add_value,
    tally_hll_add_trans => add_hash,
    tally_hll_union_trans => unite,
    tally_hll_union_internal => combine,
    tally_hll_serialize => serialize,
    tally_hll_deserialize => deserialize,
    tally_hll_pack => finish_sketch,
    tally_hll_card_unpacked => |call: Call<'_>| {
        Ok(finish_estimate(call, "hll_card_unpacked")?.map_or_else(|| call.null(), |estimate| Datum::from(estimate.to_bits())))
    },
    tally_hll_floor_card_unpacked => |call: Call<'_>| finish_rounded(call, "hll_floor_card_unpacked", f64::floor),
    tally_hll_ceil_card_unpacked => |call: Call<'_>| finish_rounded(call, "hll_ceil_card_unpacked", f64::ceil),
    tally_distinct_count_final => finish_distinct_count,
}
