//! How several loaders share the parts of a source: a pure rule. Nothing stops the world; who has too many gives some back
//! after its next commit, who has too few takes free ones. A wrong decision costs time, never rows: the epoch protects those.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use crate::source::Rebalance;

/// What a loader should do about its share.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Parts to claim: nobody alive has them.
    pub claim: Vec<i32>,
    /// Parts to give back.
    pub release: Vec<i32>,
}

/// Plans for `me`. `owners` has all parts, each with its living owner if there is one; `members` are the living loaders.
pub fn plan(owners: &BTreeMap<i32, Option<Uuid>>, members: &[Uuid], me: Uuid) -> Plan {
    let living = members.len().max(1);
    let share = owners.len().div_ceil(living);
    let mine: Vec<i32> = owners.iter().filter(|(_, owner)| **owner == Some(me)).map(|(part, _)| *part).collect();
    if mine.len() > share {
        // The last ones, so that two loaders that start together do not swap parts.
        return Plan { claim: Vec::new(), release: mine[share..].to_vec() };
    }
    let free = owners.iter().filter(|(_, owner)| owner.is_none()).map(|(part, _)| *part);
    Plan { claim: free.take(share - mine.len()).collect(), release: Vec::new() }
}

/// The parts that a consumer group has given to this loader. The group takes the place of [`plan`]; leases are taken all the same,
/// so that a part is never claimed from a loader that has not given it up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    assigned: BTreeSet<i32>,
}

/// What becomes of the open batch when the group changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenBatch {
    /// It is committed if that takes no longer than others can wait, or else dropped and read again, by whoever has the parts then.
    CommitOrDrop,
    /// Others may read it already.
    Drop,
}

impl Group {
    /// Notes a change. Returns what becomes of the batch and which parts are to be given up.
    pub fn rebalance(&mut self, change: Rebalance) -> (OpenBatch, Vec<i32>) {
        let (batch, parts) = match change {
            Rebalance::Assigned(parts) => {
                self.assigned.extend(parts);
                return (OpenBatch::CommitOrDrop, Vec::new());
            }
            Rebalance::Revoked(parts) => (OpenBatch::CommitOrDrop, parts),
            Rebalance::Lost(parts) => (OpenBatch::Drop, parts),
        };
        parts.iter().for_each(|part| _ = self.assigned.remove(part));
        (batch, parts)
    }

    /// Parts that this loader still holds and the group has given to others.
    pub fn given_up(&self, owners: &BTreeMap<i32, Option<Uuid>>, me: Uuid) -> Vec<i32> {
        let mine = owners.iter().filter(|(_, owner)| **owner == Some(me)).map(|(part, _)| *part);
        mine.filter(|part| !self.assigned.contains(part)).collect()
    }

    /// Parts to claim: given to us, and held by nobody else who lives. `owners` may be older than the last change.
    pub fn free(&self, owners: &BTreeMap<i32, Option<Uuid>>, me: Uuid) -> Vec<i32> {
        let is_free = |part: &&i32| owners.get(part).copied().flatten().is_none_or(|owner| owner == me);
        self.assigned.iter().filter(is_free).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u128) -> Uuid {
        Uuid::from_u128(number)
    }

    fn owners(list: &[Option<u128>]) -> BTreeMap<i32, Option<Uuid>> {
        (0..).zip(list.iter().map(|owner| owner.map(id))).collect()
    }

    #[test]
    fn a_single_loader_takes_everything() {
        let plan = plan(&owners(&[None, None, None]), &[id(1)], id(1));
        assert_eq!(plan, Plan { claim: vec![0, 1, 2], release: vec![] });
    }

    #[test]
    fn a_second_loader_gets_its_share_when_the_first_gives_it_back() {
        let all = owners(&[Some(1), Some(1), Some(1)]);
        let members = [id(1), id(2)];
        assert_eq!(plan(&all, &members, id(2)), Plan::default());
        assert_eq!(plan(&all, &members, id(1)).release, [2]);
        let released = owners(&[Some(1), Some(1), None]);
        assert_eq!(plan(&released, &members, id(1)), Plan::default());
        assert_eq!(plan(&released, &members, id(2)).claim, [2]);
    }

    #[test]
    fn parts_of_a_dead_loader_are_taken_over() {
        assert_eq!(plan(&owners(&[Some(1), None, None]), &[id(1)], id(1)).claim, [1, 2]);
    }

    #[test]
    fn a_group_gives_and_takes_parts() {
        let mut group = Group::default();
        assert_eq!(group.rebalance(Rebalance::Assigned(vec![0, 1])), (OpenBatch::CommitOrDrop, vec![]));
        assert_eq!(group.rebalance(Rebalance::Assigned(vec![2])), (OpenBatch::CommitOrDrop, vec![]));
        let nobody = owners(&[None, None, None]);
        assert_eq!(group.free(&nobody, id(1)), [0, 1, 2]);
        assert_eq!(group.rebalance(Rebalance::Revoked(vec![1])), (OpenBatch::CommitOrDrop, vec![1]));
        assert_eq!(group.given_up(&owners(&[Some(1), Some(1), Some(2)]), id(1)), [1]);
        assert_eq!(group.rebalance(Rebalance::Lost(vec![0])), (OpenBatch::Drop, vec![0]));
        assert_eq!(group.free(&nobody, id(1)), [2]);
    }

    #[test]
    fn a_part_of_the_group_waits_for_its_former_owner() {
        let mut group = Group::default();
        group.rebalance(Rebalance::Assigned(vec![0, 1, 2, 3]));
        // Part 3 is new, and not in the state tables yet.
        assert_eq!(group.free(&owners(&[Some(1), Some(2), None]), id(1)), [0, 2, 3]);
    }

    #[test]
    fn every_part_finds_an_owner_whatever_the_numbers() {
        for parts in 1..12usize {
            for living in 1..6u128 {
                let members: Vec<Uuid> = (1..=living).map(id).collect();
                let mut owners = owners(&vec![Some(1); parts]);
                for _ in 0..4 {
                    for &me in &members {
                        let plan = plan(&owners, &members, me);
                        plan.release.iter().for_each(|part| _ = owners.insert(*part, None));
                        plan.claim.iter().for_each(|part| _ = owners.insert(*part, Some(me)));
                    }
                }
                assert!(owners.values().all(Option::is_some), "{parts} parts, {living} loaders");
            }
        }
    }
}
