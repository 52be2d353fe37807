//! How several loaders share the parts of a source: a pure rule. Nothing stops the world; who has too many gives some back
//! after its next commit, who has too few takes free ones. A wrong decision costs time, never rows: the epoch protects those.

use std::collections::BTreeMap;

use uuid::Uuid;

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
