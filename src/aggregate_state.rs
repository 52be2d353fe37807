//! The type `tally.aggregate_state`: the state of an aggregate whose states have no type of their own, as the aggregate itself writes it for
//! another process. Eight bytes before it say which code can read it.
//!
//! Such code trusts its input, since SQL cannot call it. So nobody but a superuser can make a value of the type out of text or bytes, and no
//! aggregate takes what another one has written.

use crate::error::Error;
use crate::pg::function::{Call, sql_functions};
use crate::pg::state_exchange::Exchange;
use crate::pg::{self, Datum, varlena};

fn require_superuser() -> Result<(), Error> {
    if pg::is_superuser() {
        return Ok(());
    }
    Err(Error::new("42501", "permission denied to make a value of type tally.aggregate_state")
        .detail("The code of an aggregate reads it and relies on what it has written.")
        .hint("Let a superuser restore the dump, or leave this table out and make its groups anew with CALL tally.rebuild(..)."))
}

fn input(call: Call<'_>) -> Result<Datum, Error> {
    require_superuser()?;
    Ok(varlena::from_text(call.datum(0)))
}

fn receive(call: Call<'_>) -> Result<Datum, Error> {
    require_superuser()?;
    Ok(varlena::receive(call.datum(0)))
}

/// `(internal)` to `tally.aggregate_state`: a final function.
fn pack(call: Call<'_>) -> Result<Datum, Error> {
    let exchange = call.remembered(Exchange::of_aggregate)?;
    let bytes = exchange.serialize(call)?;
    Ok(varlena::build(exchange.format.len() + bytes.len(), |out| {
        let (format, rest) = out.split_at_mut(exchange.format.len());
        format.copy_from_slice(&exchange.format);
        rest.copy_from_slice(&bytes);
    }))
}

/// `(internal, tally.aggregate_state)` to internal: a transition function.
fn unite(call: Call<'_>) -> Result<Datum, Error> {
    if call.is_null(1) {
        return Ok(if call.is_null(0) { call.null() } else { call.datum(0) });
    }
    let exchange = call.remembered(Exchange::of_aggregate)?;
    let value = call.bytes(1);
    match value.split_first_chunk() {
        Some((format, bytes)) if *format == exchange.format => {
            Ok(exchange.unite(call, bytes).unwrap_or_else(|| call.null()))
        }
        _ => Err(Error::new("55000", "this state was written by another aggregate, or by another version of this one")
            .hint("If it is that of a rollup: CALL tally.rebuild(..) makes its groups anew.")),
    }
}

sql_functions! {
    tally_aggregate_state_in => input,
    tally_aggregate_state_out => |call: Call<'_>| -> Result<Datum, Error> { Ok(varlena::to_text(call.datum(0))) },
    tally_aggregate_state_recv => receive,
    tally_aggregate_state_send => |call: Call<'_>| -> Result<Datum, Error> { Ok(varlena::copy(&call.bytes(0))) },
    tally_pack_state => pack,
    tally_unite_states => unite,
}
