//! The type `tally.hll` and its functions over `core::sketch`. Aggregates and hashing are below.

mod aggregate;
mod hash;
mod memory;

use crate::error::Error;
use crate::pg::aggregate::Owner;
use crate::pg::function::{Call, sql_functions};
use crate::pg::{Datum, types, varlena};
use crate::settings;
use tally_core::sketch::{self, Draft, Estimator, Kind, Modifier, Packed, Params, State, Stop, wire};

/// Bytes of a stored value that hold its kind and parameters.
const HEADER: i32 = wire::HEADER as i32;

/// A new stored value with the contents of a state.
fn store(state: &mut State<'_>) -> Datum {
    let layout = state.layout(settings::hll_packing());
    varlena::build(layout.size(), |out| state.pack(layout, out))
}

/// Half away from zero, as `round()` in SQL.
fn round(estimate: f64) -> f64 {
    estimate.round()
}

fn header(call: Call<'_>) -> Result<(Kind, Params), Error> {
    Ok(Packed::header(&call.prefix(0, HEADER))?)
}

/// Checks a value that has come in against the format and the type modifier of its column.
fn accept(value: Datum, typmod: i32) -> Result<Datum, Error> {
    let bytes = varlena::made(value);
    let packed = Packed::validate(&bytes)?;
    if let Some(declared) = Modifier::from_typmod(typmod) {
        declared.check(packed.params())?;
    }
    Ok(value)
}

fn hll_in(call: Call<'_>) -> Result<Datum, Error> {
    let typmod = if call.len() > 2 { call.int32(2) } else { -1 };
    accept(varlena::from_text(call.datum(0)), typmod)
}

fn hll_recv(call: Call<'_>) -> Result<Datum, Error> {
    accept(varlena::receive(call.datum(0)), -1)
}

fn hll_out(call: Call<'_>) -> Result<Datum, Error> {
    Ok(varlena::to_text(call.datum(0)))
}

fn hll_send(call: Call<'_>) -> Result<Datum, Error> {
    Ok(varlena::copy(&call.bytes(0)))
}

fn hll_typmod_in(call: Call<'_>) -> Result<Datum, Error> {
    let texts = types::c_strings(call.datum(0));
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let [log2m, width, threshold, sparse] = Modifier::parse(&texts)?;
    let defaults = settings::hll_params([None; 4])?;
    let modifier = Modifier::new(
        log2m.unwrap_or_else(|| i64::from(defaults.log2m())),
        width.unwrap_or_else(|| i64::from(defaults.width())),
        threshold.unwrap_or_else(|| defaults.specified_threshold()),
        sparse.unwrap_or_else(|| i64::from(defaults.sparse())),
    )?;
    Ok(Datum::from(modifier.to_typmod()))
}

fn hll_typmod_out(call: Call<'_>) -> Result<Datum, Error> {
    let text = Modifier::from_typmod(call.int32(0)).map_or_else(String::new, |modifier| modifier.to_string());
    Ok(varlena::c_string(&text))
}

/// The cast of `hll` to `hll`: checks the type modifier.
fn hll_coerce(call: Call<'_>) -> Result<Datum, Error> {
    if let Some(declared) = Modifier::from_typmod(call.int32(1)) {
        declared.check(header(call)?.1)?;
    }
    Ok(call.datum(0))
}

fn hll_from_bytea(call: Call<'_>) -> Result<Datum, Error> {
    accept(varlena::copy(&call.bytes(0)), -1)
}

fn hll_empty(call: Call<'_>) -> Result<Datum, Error> {
    Ok(varlena::copy(&wire::empty(aggregate::given_params(call)?)))
}

/// Writes a value that has been decided upon, or takes the long way through a state where `core` says so.
fn write(draft: Result<Draft<'_>, Stop>, long_way: impl FnOnce() -> Result<Datum, Error>) -> Result<Datum, Error> {
    match draft {
        Ok(draft) => Ok(varlena::build(draft.size(), |out| draft.write(out))),
        Err(Stop::Error(error)) => Err(error.into()),
        Err(Stop::Load | Stop::Room(_)) => long_way(),
    }
}

fn add(bytes: &[u8], hash: i64) -> Result<Datum, Error> {
    let packed = Packed::read(bytes)?;
    write(packed.add(hash as u64, settings::hll_packing()), || {
        let mut chunk = memory::load(&packed)?;
        while let Err(room) = State::over(chunk).add(hash as u64) {
            chunk = memory::enlarge(Owner::Call.context()?, chunk, room);
        }
        let stored = store(&mut State::over(chunk));
        crate::pg::aggregate::free(chunk);
        Ok(stored)
    })
}

fn hll_union(call: Call<'_>) -> Result<Datum, Error> {
    let (left, right) = (call.bytes(0), call.bytes(1));
    let (a, b) = (Packed::read(&left)?, Packed::read(&right)?);
    write(a.union(&b, settings::hll_packing()), || {
        let chunk = memory::unite(Owner::Call, memory::load(&a)?, &b)?;
        let stored = store(&mut State::over(chunk));
        crate::pg::aggregate::free(chunk);
        Ok(stored)
    })
}

/// `(hll, log2m)`
fn hll_fold(call: Call<'_>) -> Result<Datum, Error> {
    let bytes = call.bytes(0);
    let packed = Packed::read(&bytes)?;
    let params = packed.params().fold(i64::from(call.int32(1)))?;
    if params == packed.params() {
        return Ok(varlena::copy(&bytes));
    }
    let chunk = match memory::fold(&packed, params)? {
        Some(chunk) => chunk,
        None => {
            // Its registers are not in order: they are in what a state of it is stored as.
            let loaded = memory::load(&packed)?;
            let ordered = varlena::made(store(&mut State::over(loaded)));
            memory::fold(&Packed::read(&ordered)?, params)?.ok_or(sketch::Error::State("it cannot be folded"))?
        }
    };
    let stored = store(&mut State::over(chunk));
    crate::pg::aggregate::free(chunk);
    Ok(stored)
}

fn estimate(call: Call<'_>, estimator: Estimator) -> Result<Option<f64>, Error> {
    let bytes = call.bytes(0);
    let packed = Packed::read(&bytes)?;
    match packed.estimate(estimator) {
        Ok(estimate) => Ok(estimate),
        Err(Stop::Error(error)) => Err(error.into()),
        Err(Stop::Load | Stop::Room(_)) => {
            let chunk = memory::load(&packed)?;
            let estimate = State::over(chunk).estimate(estimator)?;
            crate::pg::aggregate::free(chunk);
            Ok(estimate)
        }
    }
}

fn float_or_null(call: Call<'_>, value: Option<f64>) -> Result<Datum, Error> {
    Ok(value.map_or_else(|| call.null(), |value| Datum::from(value.to_bits())))
}

fn hll_cardinality(call: Call<'_>) -> Result<Datum, Error> {
    float_or_null(call, estimate(call, settings::hll_estimator())?)
}

fn hll_cardinality_by(call: Call<'_>) -> Result<Datum, Error> {
    let name = String::from_utf8_lossy(&call.bytes(1)).into_owned();
    float_or_null(call, estimate(call, name.parse()?)?)
}

fn hll_count(call: Call<'_>) -> Result<Datum, Error> {
    let estimate = estimate(call, settings::hll_estimator())?;
    Ok(estimate.map_or_else(|| call.null(), |estimate| Datum::from(round(estimate) as i64)))
}

fn hll_error(call: Call<'_>) -> Result<Datum, Error> {
    let (kind, params) = header(call)?;
    float_or_null(
        call,
        match kind {
            Kind::Undefined => None,
            Kind::Empty | Kind::Explicit => Some(0.0),
            Kind::Sparse | Kind::Full => Some(params.relative_error()),
        },
    )
}

fn hll_print(call: Call<'_>) -> Result<Datum, Error> {
    Ok(varlena::c_string(&Packed::read(&call.bytes(0))?.print()))
}

fn integer(value: i32) -> Result<Datum, Error> {
    Ok(Datum::from(value))
}

sql_functions! {
    tally_hll_in => hll_in,
    tally_hll_out => hll_out,
    tally_hll_recv => hll_recv,
    tally_hll_send => hll_send,
    tally_hll_typmod_in => hll_typmod_in,
    tally_hll_typmod_out => hll_typmod_out,
    tally_hll_coerce => hll_coerce,
    tally_hll_from_bytea => hll_from_bytea,
    tally_hll_hashval => |call: Call<'_>| Ok(Datum::from(call.int64(0))),
    tally_hll_hashval_int4 => |call: Call<'_>| Ok(Datum::from(i64::from(call.int32(0)))),
    tally_hll_empty => hll_empty,
    tally_hll_add => |call: Call<'_>| add(&call.bytes(0), call.int64(1)),
    tally_hll_add_rev => |call: Call<'_>| add(&call.bytes(1), call.int64(0)),
    tally_hll_union => hll_union,
    tally_hll_fold => hll_fold,
    tally_hll_cardinality => hll_cardinality,
    tally_hll_cardinality_by => hll_cardinality_by,
    tally_hll_count => hll_count,
    tally_hll_error => hll_error,
    tally_hll_print => hll_print,
    tally_hll_schema_version => |call: Call<'_>| header(call).and_then(|_| integer(1)),
    tally_hll_type => |call: Call<'_>| header(call).and_then(|(kind, _)| integer(kind as i32)),
    tally_hll_log2m => |call: Call<'_>| header(call).and_then(|(_, params)| integer(params.log2m() as i32)),
    tally_hll_regwidth => |call: Call<'_>| header(call).and_then(|(_, params)| integer(params.width() as i32)),
    tally_hll_threshold => |call: Call<'_>| {
        let (_, params) = header(call)?;
        let is_effective = call.boolean(1);
        let threshold = if is_effective { params.threshold() as i64 } else { params.specified_threshold() };
        Ok(Datum::from(threshold))
    },
    tally_hll_sparseon => |call: Call<'_>| header(call).and_then(|(_, params)| integer(params.sparse() as i32)),
}
