//! A failing history becomes a short one: steps are left out for as long as what is left fails in the same way.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tally_server_tests::cluster::{Cluster, Database};

use super::history::{Action, Actor, Failure, Step, judge};
use super::{patience, schema};

/// A failure, and databases to bring about again what led there.
pub struct Laboratory<'a> {
    /// With the tables of the test and without a rollup.
    blank: Database<'a>,
    failure: &'a Failure,
}

impl<'a> Laboratory<'a> {
    pub fn new(cluster: &'a Cluster, failure: &'a Failure) -> Laboratory<'a> {
        let blank = cluster.database();
        blank.connect().batch_execute(schema::SCHEMA).unwrap();
        Laboratory { blank, failure }
    }

    /// The steps that are left after so long, or None if the history fails only now and then. The last one of `steps` is the one
    /// that failed.
    pub fn minimise(&self, steps: &[Step], at_most: Duration) -> Option<Vec<Step>> {
        let deadline = Instant::now() + at_most;
        let (last, before) = steps.split_last()?;
        let is_same_check = |step: &Step| match (&step.action, &last.action) {
            (Action::Check(check), Action::Check(same)) => check.title == same.title,
            _ => false,
        };
        // Each session looks after each step, which takes most of the time and is rarely what makes the difference.
        let filters: [&dyn Fn(&Step) -> bool; 4] = [
            &|step| !step.is_check() && step.error.is_none(),
            &|step| !step.is_check(),
            &|step| !step.is_check() || is_same_check(step),
            &|_| true,
        ];
        for keeps in filters {
            let kept = before.iter().filter(|step| keeps(step)).chain([last]);
            let candidate: Vec<Step> = kept.cloned().collect();
            if self.fails(&candidate) {
                return Some(leave_out(candidate, deadline, |steps| self.fails(steps)));
            }
        }
        None
    }

    /// Does a fresh database, led through these steps, fail in the same way? Errors on the way are of no interest: a statement
    /// may lack what was left out.
    pub fn fails(&self, steps: &[Step]) -> bool {
        let database = self.blank.copy();
        let mut actors: BTreeMap<usize, Actor> = BTreeMap::new();
        let new_actor = || {
            let mut actor = Actor::new(&database, patience(false));
            // A rollup that cannot have its locks tries for seconds.
            actor.client.batch_execute("SET statement_timeout = '10s'").unwrap();
            actor
        };
        steps.iter().any(|step| {
            let answer = actors.entry(step.session).or_insert_with(new_actor).carry_out(&step.action);
            judge(step, &answer).is_err_and(|found| found.is_like(self.failure))
        })
    }
}

/// Delta debugging: leaves out chunks of half the items, of a quarter and so on, down to single ones until none can go.
fn leave_out<T: Clone>(mut items: Vec<T>, deadline: Instant, fails: impl Fn(&[T]) -> bool) -> Vec<T> {
    let mut size = items.len().div_ceil(2);
    loop {
        let before = items.len();
        let mut start = 0;
        while start < items.len() {
            if Instant::now() > deadline {
                return items;
            }
            let end = items.len().min(start + size);
            let candidate: Vec<T> = items[..start].iter().chain(&items[end..]).cloned().collect();
            if fails(&candidate) {
                items = candidate;
            } else {
                start = end;
            }
        }
        if size == 1 && items.len() == before {
            return items;
        }
        size = size.div_ceil(2);
    }
}

#[test]
fn what_makes_the_difference_is_left() {
    let deadline = Instant::now() + Duration::from_secs(3600);
    for needed in [vec![0], vec![99], vec![3, 50, 51], vec![7, 93]] {
        let fails = |items: &[usize]| needed.iter().all(|item| items.contains(item));
        assert_eq!(leave_out((0..100).collect(), deadline, fails), needed);
    }
}
