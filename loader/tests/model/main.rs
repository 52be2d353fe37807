//! The protocol of claims, advances and commits under a model checker, which tries every order of steps and faults.
//!
//! That it can fail is shown by planted faults, each a way in which such protocols have gone wrong: the checker finds them all.

/// What every state has to satisfy.
mod properties;
/// Server, loaders, and the steps that they take.
mod protocol;
/// What server and loaders hold and know.
mod state;

use stateright::{Checker as _, HasDiscoveries, Model as _};

use properties::{EXACTLY_ONCE, FENCED_IN_VAIN, OWNER_KNOWS, RANGES};
use protocol::{Order, Planted, Protocol, Record};

/// One part, two loaders, one transaction at a time.
const SMALL: Protocol = Protocol {
    logs: &[&[Record::Row, Record::Marker, Record::DeadLetter]],
    loaders: 2,
    order: Order::OneAtATime,
    faults: 3,
    planted: None,
};

/// No run of the protocol breaks a property, and some get to the end.
fn assert_holds(protocol: Protocol) {
    let checker = protocol.checker().threads(2).spawn_dfs().join();
    println!("{} states", checker.unique_state_count());
    checker.assert_properties();
}

/// The checker finds a run that breaks `property`; printed, for people.
fn assert_finds(property: &'static str, protocol: Protocol) {
    let only_it = HasDiscoveries::AllOf([property].into());
    let checker = protocol.checker().finish_when(only_it).spawn_bfs().join();
    let found = checker.discovery(property).unwrap_or_else(|| panic!("{:?} breaks nothing", checker.model().planted));
    println!("{} states; {property}:", checker.unique_state_count());
    found.into_actions().iter().for_each(|action| println!("  {action:?}"));
}

#[test]
fn two_loaders_load_a_part_exactly_once() {
    assert_holds(SMALL);
}

#[test]
fn two_loaders_share_two_parts() {
    let logs: &[&[Record]] = &[&[Record::Row], &[Record::DeadLetter]];
    assert_holds(Protocol { logs, faults: 2, ..SMALL });
}

#[test]
fn commits_in_flight_keep_their_order() {
    for order in [Order::AfterCommit, Order::AfterAdvance] {
        assert_holds(Protocol { order, ..SMALL });
    }
}

#[test]
fn without_a_fence_a_loader_that_lost_its_lease_doubles_rows() {
    assert_finds(EXACTLY_ONCE, Protocol { planted: Some(Planted::NoFence), ..SMALL });
}

#[test]
fn a_comparison_without_a_lock_doubles_rows() {
    assert_finds(EXACTLY_ONCE, Protocol { planted: Some(Planted::CompareWithoutLock), ..SMALL });
}

/// Harmless as a fence, but it does not wait for a predecessor that is about to commit.
#[test]
fn a_plain_compare_and_set_breaks_commits_in_flight() {
    let planted = Some(Planted::PlainCompareAndSet);
    assert_finds(FENCED_IN_VAIN, Protocol { planted, order: Order::AfterAdvance, ..SMALL });
    // With one transaction at a time nothing shows, which is why the trap is one.
    assert_holds(Protocol { planted, faults: 2, ..SMALL });
}

#[test]
fn a_position_that_is_read_without_a_claim_may_be_old() {
    assert_finds(OWNER_KNOWS, Protocol { planted: Some(Planted::ReadWithoutClaim), ..SMALL });
}

#[test]
fn without_the_epoch_a_former_owner_commits_after_the_claim_of_the_next() {
    assert_finds(RANGES, Protocol { planted: Some(Planted::NoEpoch), ..SMALL });
}

#[test]
fn without_the_position_a_successor_commits_over_the_hole_of_its_predecessor() {
    let planted = Some(Planted::NoPosition);
    assert_finds(EXACTLY_ONCE, Protocol { planted, order: Order::AfterAdvance, ..SMALL });
}

#[test]
fn a_successor_that_advances_too_early_is_fenced_in_vain() {
    assert_finds(FENCED_IN_VAIN, Protocol { order: Order::Unordered, ..SMALL });
}

#[test]
fn a_position_in_a_transaction_of_its_own_loses_or_doubles_rows() {
    assert_finds(EXACTLY_ONCE, Protocol { planted: Some(Planted::PositionApart), ..SMALL });
}
