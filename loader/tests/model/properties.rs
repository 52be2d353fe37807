//! What holds in every state. Data first: rows and dead letters are a prefix of the log, each record once.

use stateright::Property;

use crate::protocol::{Protocol, Record};
use crate::state::{Row, State};

pub const EXACTLY_ONCE: &str = "rows and dead letters are a prefix of the log, each record once";
pub const RANGES: &str = "committed ranges adjoin, each under the epoch of the last claim";
pub const OWNER_KNOWS: &str = "the owner of the present epoch knows the position";
pub const FENCED_IN_VAIN: &str = "nobody is fenced under the present epoch";

/// Runs are finite: a step moves a loader forward, and only a fault or a claim, which raises an epoch, takes it back. So what is
/// never stuck gets to the end as soon as the faults end.
pub fn all() -> Vec<Property<Protocol>> {
    vec![
        Property::always(EXACTLY_ONCE, is_exact),
        Property::always(RANGES, |_, state: &State| state.tables().iter().all(|row| row.in_order)),
        Property::always(OWNER_KNOWS, owners_know),
        Property::always(FENCED_IN_VAIN, |_, state: &State| !state.fenced_in_vain),
        Property::always("nothing is stuck before the end", is_never_stuck),
        Property::always("a loader needs none of the others", is_never_stuck_alone),
        Property::sometimes("everything is loaded", is_loaded),
    ]
}

fn rows<'a>(protocol: &'a Protocol, state: &'a State) -> impl Iterator<Item = (&'a [Record], &'a Row)> {
    protocol.logs.iter().copied().zip(state.tables())
}

fn is_exact(protocol: &Protocol, state: &State) -> bool {
    rows(protocol, state).all(|(log, row)| {
        (0..)
            .zip(log.iter().zip(&row.loaded))
            .all(|(offset, (record, &loaded))| loaded == u8::from(offset < row.next && *record != Record::Marker))
    })
}

/// Or has sent what the position moved to.
fn owners_know(_: &Protocol, state: &State) -> bool {
    state.loaders.iter().filter(|loader| loader.joined).all(|loader| {
        loader.owned.iter().all(|(&part, owned)| {
            let row = &state.tables()[part];
            let mut sent = loader.queue.iter().flat_map(|transaction| &transaction.moves);
            row.epoch != owned.epoch
                || row.next == owned.next
                || sent.any(|moved| moved.part == part && moved.next == row.next)
        })
    })
}

fn is_never_stuck(protocol: &Protocol, state: &State) -> bool {
    let mut steps = Vec::new();
    protocol.steps(state, &mut steps);
    !steps.is_empty() || is_loaded(protocol, state)
}

/// Also while the others are down, or frozen for longer than their leases last.
fn is_never_stuck_alone(protocol: &Protocol, state: &State) -> bool {
    let mut living = (0..protocol.loaders).filter(|&loader| state.loaders[loader].is_alive());
    let (Some(me), None) = (living.next(), living.next()) else { return true };
    let mut steps = Vec::new();
    protocol.steps_of(state, me, &mut steps);
    protocol.steps_of_server(state, &mut steps);
    !steps.is_empty() || is_loaded(protocol, state)
}

fn is_loaded(protocol: &Protocol, state: &State) -> bool {
    rows(protocol, state).all(|(log, row)| usize::from(row.next) == log.len())
}
