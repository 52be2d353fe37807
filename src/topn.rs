//! The type `tally.topn`: its forms, aggregates and functions over `core::topn`.

mod item;
mod memory;

use crate::error::Error;
use crate::pg::aggregate::{self, Context, Owner};
use crate::pg::function::{Call, sql_functions};
use crate::pg::{Datum, array, encoding, varlena};
use crate::settings;
use tally_core::topn::{self, Header, Packed, Packing, State, json};

/// Leads the bytes that one process of a parallel query sends to another.
const STORED_FORM: u8 = 0;

#[inline(always)]
fn state<'c>(call: Call<'c>, position: usize) -> Option<&'c mut [u64]> {
    aggregate::chunk(call, position, State::chunk_words)
}

/// A new stored value with the contents of a state.
fn store(chunk: &mut [u64], packing: Packing) -> Datum {
    let mut state = State::over(chunk);
    let layout = state.layout(packing);
    varlena::build(layout.size(), |out| state.pack(layout, out))
}

// Input and output

/// Checks a value that has come in: its form, and that its items are text.
fn accept(value: Datum) -> Result<Datum, Error> {
    let bytes = varlena::made(value);
    for entry in Packed::validate(&bytes)?.entries() {
        encoding::check_text(entry.item)?;
    }
    Ok(value)
}

fn from_json(text: &[u8]) -> Result<Datum, Error> {
    let text = encoding::to_utf8(text);
    let mut chunk = memory::create(Owner::Call, settings::topn_counters(None)?)?;
    json::read(&text, |item, count| -> Result<(), Error> {
        if count > 0 {
            let item = encoding::from_utf8(item);
            chunk = memory::grow(Owner::Call, std::mem::take(&mut chunk), |state| state.add_count(&item, count))?;
        }
        Ok(())
    })?;
    Ok(store(chunk, Packing::Final))
}

fn input(call: Call<'_>) -> Result<Datum, Error> {
    let text = call.c_string(0);
    if text.trim_ascii_start().first() == Some(&b'{') {
        from_json(text)
    } else {
        accept(varlena::from_text(call.datum(0)))
    }
}

/// `(text)`: the text of a jsonb.
fn from_json_text(call: Call<'_>) -> Result<Datum, Error> {
    from_json(&call.bytes(0))
}

fn to_json_text(call: Call<'_>) -> Result<Datum, Error> {
    let bytes = call.bytes(0);
    let text = json::write(&Packed::read(&bytes)?, encoding::to_utf8);
    Ok(varlena::copy(&encoding::from_utf8(&text)))
}

// Aggregates

/// `(state, value [, counters])`
#[inline(always)]
fn add(call: Call<'_>) -> Result<Datum, Error> {
    let chunk = match state(call, 0) {
        Some(chunk) => chunk,
        None if call.is_null(1) => return Ok(call.null()),
        None => first_row(call)?,
    };
    if call.is_null(1) {
        return Ok(aggregate::datum(chunk));
    }
    let form = call.remembered(|call| item::form(call, 1))?;
    let item = item::item(call, 1, form);
    memory::grow(Owner::Aggregate(call, "topn_add_trans", "aggregate"), chunk, |state| state.add(&item))
        .map(aggregate::datum)
}

#[cold]
#[inline(never)]
fn first_row<'c>(call: Call<'c>) -> Result<&'c mut [u64], Error> {
    let given = (call.len() > 2 && !call.is_null(2)).then(|| i64::from(call.int32(2)));
    memory::create(Owner::Aggregate(call, "topn_add_trans", "aggregate"), settings::topn_counters(given)?)
}

/// `(state, topn)`
fn unite(call: Call<'_>) -> Result<Datum, Error> {
    let found = state(call, 0);
    if call.is_null(1) {
        return Ok(found.map_or_else(|| call.null(), aggregate::datum));
    }
    let owner = Owner::Aggregate(call, "topn_union_trans", "aggregate");
    let bytes = call.bytes(1);
    let packed = Packed::read(&bytes)?;
    let chunk = match found {
        Some(chunk) => chunk,
        None => memory::create(owner, packed.header().counters)?,
    };
    memory::unite(owner, chunk, &packed).map(aggregate::datum)
}

/// `(state, state)`
fn combine(call: Call<'_>) -> Result<Datum, Error> {
    let Some(other) = state(call, 1) else {
        return Ok(state(call, 0).map_or_else(|| call.null(), aggregate::datum));
    };
    let owner = Owner::Aggregate(call, "topn_combine", "aggregate");
    let other = State::over(other);
    let chunk = match state(call, 0) {
        Some(chunk) => chunk,
        None => memory::create(owner, other.counters())?,
    };
    memory::unite_state(owner, chunk, &other).map(aggregate::datum)
}

/// `(state)` to bytea, for another process.
fn serialize(call: Call<'_>) -> Result<Datum, Error> {
    Context::of_aggregate(call, "topn_serialize", "aggregate")?;
    let Some(chunk) = state(call, 0) else { return Ok(call.null()) };
    let mut state = State::over(chunk);
    let layout = state.layout(Packing::Partial);
    Ok(varlena::build(1 + layout.size(), |out| {
        out[0] = STORED_FORM;
        state.pack(layout, &mut out[1..]);
    }))
}

/// `(bytea, internal)` to a state that waits to be united: in the memory of the call, not unpacked.
fn deserialize(call: Call<'_>) -> Result<Datum, Error> {
    Context::of_aggregate(call, "topn_deserialize", "aggregate")?;
    let bytes = call.bytes(0);
    let Some((&STORED_FORM, stored)) = bytes.split_first() else {
        return Err(topn::Error::State("unknown form").into());
    };
    let packed = Packed::read(stored)?;
    let chunk = Context::current().allocate(State::packed_words(&packed));
    State::create_packed(chunk, &packed);
    Ok(aggregate::datum(chunk))
}

/// It only reads the state: it runs again and again in window frames.
fn finish(call: Call<'_>) -> Result<Datum, Error> {
    Context::of_aggregate(call, "topn_pack", "aggregate")?;
    Ok(state(call, 0).map_or_else(|| call.null(), |chunk| store(chunk, Packing::Final)))
}

// Functions

/// Does something to a copy of a value.
fn changed(
    bytes: &[u8],
    change: impl for<'a> FnOnce(&'a mut [u64]) -> Result<&'a mut [u64], Error>,
) -> Result<Datum, Error> {
    let packed = Packed::read(bytes)?;
    let chunk = memory::create(Owner::Call, packed.header().counters)?;
    let chunk = change(memory::unite(Owner::Call, chunk, &packed)?)?;
    let stored = store(chunk, Packing::Final);
    aggregate::free(chunk);
    Ok(stored)
}

fn topn_union(call: Call<'_>) -> Result<Datum, Error> {
    let other = call.bytes(1);
    let other = Packed::read(&other)?;
    changed(&call.bytes(0), |chunk| memory::unite(Owner::Call, chunk, &other))
}

fn topn_add(call: Call<'_>) -> Result<Datum, Error> {
    let item = call.bytes(1);
    changed(&call.bytes(0), |chunk| memory::grow(Owner::Call, chunk, |state| state.add(&item)))
}

fn header(call: Call<'_>) -> Result<Header, Error> {
    Ok(Header::read(&call.prefix(0, Header::MOST_BYTES as i32))?)
}

fn count(value: u64) -> Datum {
    Datum::from(value as i64)
}

/// How many items the second argument asks for.
fn asked(call: Call<'_>) -> Result<usize, Error> {
    usize::try_from(call.int32(1)).map_err(|_| {
        Error::new("22023", format!("the number of items must not be negative: {}", call.int32(1)))
            .hint("Ask for as many items as you want to see, such as 10.")
    })
}

/// `(topn, text)`: how often an item has occurred, for certain.
fn frequency(call: Call<'_>) -> Result<Datum, Error> {
    let (bytes, item) = (call.bytes(0), call.bytes(1));
    let entry = Packed::read(&bytes)?.entries().find(|entry| *entry.item == *item);
    Ok(entry.map_or_else(|| call.null(), |entry| count(entry.lower)))
}

sql_functions! {
    tally_topn_in => input,
    tally_topn_out => |call: Call<'_>| -> Result<Datum, Error> { Ok(varlena::to_text(call.datum(0))) },
    tally_topn_recv => |call: Call<'_>| accept(varlena::receive(call.datum(0))),
    tally_topn_send => |call: Call<'_>| -> Result<Datum, Error> { Ok(varlena::copy(&call.bytes(0))) },
    tally_topn_from_json_text => from_json_text,
    tally_topn_to_json_text => to_json_text,
    tally_topn_add_trans => add,
    tally_topn_union_trans => unite,
    tally_topn_combine => combine,
    tally_topn_serialize => serialize,
    tally_topn_deserialize => deserialize,
    tally_topn_pack => finish,
    tally_topn_union => topn_union,
    tally_topn_add => topn_add,
    tally_topn_error => |call: Call<'_>| header(call).map(|header| count(header.error)),
    tally_topn_total => |call: Call<'_>| header(call).map(|header| count(header.total)),
    tally_topn_counters => |call: Call<'_>| header(call).map(|header| Datum::from(header.counters.get() as i32)),
    tally_topn_frequency => frequency,
    tally_topn_items => |call: Call<'_>| {
        let bytes = call.bytes(0);
        let items = Packed::read(&bytes)?.top(asked(call)?).map(|(item, _)| varlena::copy(item));
        Ok(array::of_texts(items.collect()))
    },
    tally_topn_lower => |call: Call<'_>| {
        let bytes = call.bytes(0);
        Ok(array::of_bigints(Packed::read(&bytes)?.top(asked(call)?).map(|(_, lower)| count(lower)).collect()))
    },
    tally_topn_upper => |call: Call<'_>| {
        let bytes = call.bytes(0);
        Ok(array::of_bigints(Packed::read(&bytes)?.bounds(asked(call)?).map(|item| count(item.upper)).collect()))
    },
    tally_topn_certain => |call: Call<'_>| {
        let bytes = call.bytes(0);
        Ok(array::of_booleans(Packed::read(&bytes)?.bounds(asked(call)?).map(|item| Datum::from(item.certain)).collect()))
    },
}
