//! The rollups of the random test: what they are to answer, and how that changes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;

use super::history::Check;
use super::schema;
use crate::oracle;

#[derive(Debug)]
pub struct Rollup {
    pub name: String,
    pub definition: Definition,
    /// Other sessions never drop it.
    pub permanent: bool,
    /// Built in slices, which takes steps of its own.
    pub sliced: bool,
    /// The first step after it became what it is.
    since: AtomicUsize,
    pub check: Arc<Check>,
}

impl Rollup {
    pub fn new(name: String, definition: Definition, permanent: bool) -> Rollup {
        let title = format!("{name} differs from {}", definition.text());
        let check = Arc::new(Check { title, query: oracle::difference(&name, &definition.answer()) });
        Rollup { name, definition, permanent, sliced: false, since: AtomicUsize::new(0), check }
    }

    pub fn create(&self) -> String {
        let text = self.definition.text();
        self.built_by(format!("SELECT tally.create_rollup('{}', $rollup${text}$rollup$, '1 second')", self.name))
    }

    pub fn alter(&self) -> String {
        let text = self.definition.text();
        self.built_by(format!("SELECT tally.alter_rollup('{}', $rollup${text}$rollup$)", self.name))
    }

    /// The same where this aggregate is what it gets.
    pub fn add(&self, aggregate: &str) -> String {
        let column = added(self.definition.added.len() - 1);
        self.built_by(format!("SELECT tally.add_aggregate('{}', '{column}', $rollup${aggregate}$rollup$)", self.name))
    }

    fn built_by(&self, statement: String) -> String {
        if self.sliced { format!("SET tally.build_rows = 30; {statement}; RESET tally.build_rows") } else { statement }
    }

    pub fn begin(&self, moment: usize) {
        self.since.store(moment, Ordering::Relaxed);
    }

    /// Whoever has a snapshot of before may be told that it is too old.
    pub fn is_younger_than(&self, moment: usize) -> bool {
        moment < self.since.load(Ordering::Relaxed)
    }
}

fn added(number: usize) -> String {
    format!("added_{number}")
}

/// What a rollup is to answer.
#[derive(Clone, Debug)]
pub struct Definition {
    pub source: &'static str,
    query: String,
    /// The number of the last rows that had left the source before.
    after: usize,
    /// Aggregates that it got later, and such a number for each.
    added: Vec<(&'static str, usize)>,
}

/// What becomes of a definition.
pub enum Change {
    Nothing,
    /// One more column, of this aggregate.
    Column(&'static str),
    Query(String),
}

impl Definition {
    pub fn new(source: &'static str, query: String, after: usize) -> Definition {
        Definition { source, query, after, added: vec![] }
    }

    /// The user's own text.
    fn text(&self) -> String {
        self.with_added(&|_| String::new())
    }

    /// The query that answers the same, now that rows have left the source.
    fn answer(&self) -> String {
        let query = self.with_added(&|after| format!(" FILTER (WHERE number > {after})"));
        schema::with_gone(self.source, &query, self.after)
    }

    fn with_added(&self, filter: &dyn Fn(usize) -> String) -> String {
        (0..).zip(&self.added).fold(self.query.clone(), |query, (number, (aggregate, after))| {
            schema::with_column(self.source, &query, &format!("{aggregate}{} AS {}", filter(*after), added(number)))
        })
    }

    pub fn reads(&self, relation: &str) -> bool {
        self.query.contains(&format!(" FROM {relation} "))
    }

    /// Is there an aggregate whose argument PostgreSQL casts? What add_aggregate makes of it may be taken for another column.
    pub fn casts(&self) -> bool {
        self.query.contains("regr_count")
    }

    pub fn random_change(&self, rng: &mut StdRng) -> Change {
        let is_added = |aggregate: &str| self.added.iter().any(|(known, _)| *known == aggregate);
        let additions: Vec<_> = schema::ADDITIONS.into_iter().filter(|aggregate| !is_added(aggregate)).collect();
        let queries = schema::rewritten(self.source, &self.query);
        let change = match rng.random_range(0..3) {
            // What adds up over another rollup is a question of its columns.
            _ if !self.reads(self.source) => None,
            0 => additions.choose(rng).copied().map(Change::Column),
            1 => queries.choose(rng).cloned().map(Change::Query),
            _ => None,
        };
        change.unwrap_or(Change::Nothing)
    }

    /// `departures` is the number of the last rows that have left the source. They stay counted if any are retained, but not in a
    /// new column.
    pub fn change(&mut self, change: &Change, has_retained: bool, departures: usize) {
        if !has_retained {
            self.after = departures;
            self.added.iter_mut().for_each(|(_, after)| *after = departures);
        }
        match change {
            Change::Nothing => {}
            Change::Column(aggregate) => self.added.push((aggregate, departures)),
            Change::Query(query) => self.query.clone_from(query),
        }
    }
}
