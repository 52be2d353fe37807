//! `tally.first(value, at)` and `tally.last(value, at)`. The path of a row compares and returns.

use crate::error::Error;
use crate::pg::aggregate::{self, Context};
use crate::pg::function::{Call, sql_functions};
use crate::pg::value::{self, ValueType};
use crate::pg::{Datum, Oid, varlena};
use tally_core::first_last::{End, Newcomer};

/// The words of a state: value, time, is the value NULL, types of both.
const WORDS: usize = 4;
const VALUE: usize = 0;
const AT: usize = 1;
const IS_NULL: usize = 2;
const TYPES: usize = 3;

/// The types of value and time, which a state carries along: its combine function sees states only.
#[derive(Clone, Copy)]
struct Types {
    value: ValueType,
    at: ValueType,
}

impl Types {
    /// Of two arguments of a call.
    fn of_arguments(call: Call<'_>, value: usize) -> Result<Self, Error> {
        let of = |position| {
            let oid = call.base_type(position);
            ValueType::of(oid.ok_or_else(|| Error::new("42804", "could not determine the type of an argument"))?)
        };
        Ok(Self { value: of(value)?, at: of(value + 1)? })
    }

    fn read(word: u64) -> Result<Self, Error> {
        let of = |oid: u64| ValueType::of(Oid::from_u32(oid as u32));
        Ok(Self { value: of(word >> 32)?, at: of(word)? })
    }

    fn word(self) -> u64 {
        u64::from(self.value.oid().to_u32()) << 32 | u64::from(self.at.oid().to_u32())
    }
}

/// What a group is asked for: a row that has a time.
#[derive(Clone, Copy)]
struct Row {
    value: Option<Datum>,
    at: Datum,
}

impl Row {
    /// The row that two arguments make; None without a time.
    #[inline(always)]
    fn of_arguments(call: Call<'_>, value: usize) -> Option<Self> {
        let argument = |position| (!call.is_null(position)).then(|| call.datum(position));
        Some(Self { at: argument(value + 1)?, value: argument(value) })
    }

    #[inline(always)]
    fn held(chunk: &[u64]) -> Self {
        let datum = |word: u64| Datum::from(word as usize);
        Self { value: (chunk[IS_NULL] == 0).then(|| datum(chunk[VALUE])), at: datum(chunk[AT]) }
    }

    #[inline(always)]
    fn is_closer(self, held: Self, end: End, types: Types, collation: Oid) -> bool {
        let newcomer = Newcomer {
            at: types.at.compare(self.at, held.at, collation),
            is_null: self.value.is_none(),
            holds_null: held.value.is_none(),
        };
        end.is_closer(newcomer, || match (self.value, held.value) {
            (Some(new), Some(held)) => types.value.compare(new, held, collation),
            _ => std::cmp::Ordering::Equal,
        })
    }

    /// Puts a copy of the row into a chunk.
    fn keep(self, chunk: &mut [u64], types: Types, context: Context) {
        chunk[AT] = types.at.copy(self.at, context).value() as u64;
        chunk[VALUE] = self.value.map_or(0, |value| types.value.copy(value, context).value() as u64);
        chunk[IS_NULL] = u64::from(self.value.is_none());
        chunk[TYPES] = types.word();
    }
}

#[inline(always)]
fn state<'c>(call: Call<'c>, position: usize) -> Option<&'c mut [u64]> {
    aggregate::chunk(call, position, |_| WORDS)
}

fn as_it_is(call: Call<'_>, chunk: Option<&mut [u64]>) -> Datum {
    chunk.map_or_else(|| call.null(), aggregate::datum)
}

/// `(state, value, at)`: looks at a row.
#[inline(always)]
fn look(call: Call<'_>, end: End) -> Result<Datum, Error> {
    let chunk = state(call, 0);
    let Some(row) = Row::of_arguments(call, 1) else {
        return Ok(as_it_is(call, chunk));
    };
    let types = call.remembered(|call| Types::of_arguments(call, 1))?;
    offer(call, chunk, row, end, types)
}

/// The state after a row.
#[inline(always)]
fn offer(call: Call<'_>, chunk: Option<&mut [u64]>, row: Row, end: End, types: Types) -> Result<Datum, Error> {
    match chunk {
        Some(chunk) if !row.is_closer(Row::held(chunk), end, types, call.collation()) => Ok(aggregate::datum(chunk)),
        chunk => replace(call, chunk, row, types),
    }
}

fn replace(call: Call<'_>, chunk: Option<&mut [u64]>, row: Row, types: Types) -> Result<Datum, Error> {
    let context = Context::of_aggregate(call, "tally.first or tally.last", "aggregate")?;
    let Some(chunk) = chunk else {
        let chunk = context.allocate(WORDS);
        row.keep(chunk, types, context);
        return Ok(aggregate::datum(chunk));
    };
    let before = Row::held(chunk);
    row.keep(chunk, types, context);
    types.at.free(before.at);
    if let Some(value) = before.value {
        types.value.free(value);
    }
    Ok(aggregate::datum(chunk))
}

/// `(state, state)`: looks at what the second one holds.
fn combine(call: Call<'_>, end: End) -> Result<Datum, Error> {
    let chunk = state(call, 0);
    let Some(other) = state(call, 1) else {
        return Ok(as_it_is(call, chunk));
    };
    let types = call.remembered(|_| Types::read(other[TYPES]))?;
    offer(call, chunk, Row::held(other), end, types)
}

/// `(state)` to bytea, for another process of the same query.
fn serialize(call: Call<'_>) -> Result<Datum, Error> {
    Context::of_aggregate(call, "tally._end_serialize", "aggregate")?;
    let Some(chunk) = state(call, 0) else { return Ok(call.null()) };
    let types = call.remembered(|_| Types::read(chunk[TYPES]))?;
    let Row { value, at } = Row::held(chunk);
    let size = size_of::<u64>() + types.value.sent_size(value) + types.at.sent_size(Some(at));
    Ok(varlena::build(size, |out| {
        let (head, rest) = out.split_at_mut(size_of::<u64>());
        head.copy_from_slice(&chunk[TYPES].to_ne_bytes());
        let rest = types.value.send(value, rest);
        types.at.send(Some(at), rest);
    }))
}

/// `(bytea, internal)` to a state in the memory of the call, which waits to be combined.
fn deserialize(call: Call<'_>) -> Result<Datum, Error> {
    Context::of_aggregate(call, "tally._end_deserialize", "aggregate")?;
    let bytes = call.bytes(0);
    let Some((head, rest)) = bytes.split_first_chunk() else {
        return Err(Error::new("22P03", "the state of an aggregate is too short"));
    };
    let [value, at] = value::receive(rest);
    let chunk = Context::current().allocate(WORDS);
    chunk[VALUE] = value.map_or(0, |value| value.value() as u64);
    chunk[AT] = at.map_or(0, |at| at.value() as u64);
    chunk[IS_NULL] = u64::from(value.is_none());
    chunk[TYPES] = u64::from_ne_bytes(*head);
    Ok(aggregate::datum(chunk))
}

fn finish(call: Call<'_>, part: impl FnOnce(Row) -> Option<Datum>) -> Result<Datum, Error> {
    Context::of_aggregate(call, "the final function of tally.first or tally.last", "aggregate")?;
    Ok(state(call, 0).and_then(|chunk| part(Row::held(chunk))).unwrap_or_else(|| call.null()))
}

/// `(value, at, value, at)`: the value of what is closer to the end, for partial results.
fn closer(call: Call<'_>, end: End) -> Result<Datum, Error> {
    let types = call.remembered(|call| Types::of_arguments(call, 0))?;
    let row = match (Row::of_arguments(call, 0), Row::of_arguments(call, 2)) {
        (Some(a), Some(b)) if b.is_closer(a, end, types, call.collation()) => Some(b),
        (a, b) => a.or(b),
    };
    Ok(row.and_then(|row| row.value).unwrap_or_else(|| call.null()))
}

sql_functions! {
    tally_first_transition => |call: Call<'_>| look(call, End::First),
    tally_last_transition => |call: Call<'_>| look(call, End::Last),
    tally_first_combine => |call: Call<'_>| combine(call, End::First),
    tally_last_combine => |call: Call<'_>| combine(call, End::Last),
    tally_end_serialize => serialize,
    tally_end_deserialize => deserialize,
    tally_end_value => |call: Call<'_>| finish(call, |row| row.value),
    tally_end_at => |call: Call<'_>| finish(call, |row| Some(row.at)),
    tally_earlier => |call: Call<'_>| closer(call, End::First),
    tally_later => |call: Call<'_>| closer(call, End::Last),
}
