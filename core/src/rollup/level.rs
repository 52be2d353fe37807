//! A rollup over a rollup: its query, read as one over the rows of the source.
//!
//! A group of the rollup below stands for its rows, and each visible column of it for a key or for an aggregate over them. So an
//! aggregate that gathers such a column (`sum` of a `count`, `min` of a `min`, the union of sketches) is the same aggregate over the
//! rows, and everything that keeps a rollup exact applies to a level above without change. A tick need not go back to the rows
//! for it: it gathers the groups of the level below.

use super::aggregate::COUNT_ROWS;
use super::analysis::{AggregateCall, Expression};
use super::definition::{
    BucketRange, DEPARTURE, Definition, Partial, ROWS, SIGN, TABLE, TAG, TIME, Target, Value, WRITER,
};
use super::names::Names;
use crate::ident::{QualifiedName, quote};
use std::collections::HashMap;

/// The rollup below as the FROM of the one above: its visible keys under their names, and what else the levels need under names
/// that no visible column has.
#[derive(Clone, Debug)]
pub struct Below<'a> {
    definition: &'a Definition,
    /// What the query above calls the visible columns.
    names: Vec<String>,
    /// What the query above calls it.
    alias: String,
    hidden: HashMap<&'a str, String>,
}

/// What a query above may do with a visible column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column<'a> {
    Key { bucket: Option<&'a BucketRange> },
    Partial { partial: &'a Partial, present: Option<&'a str> },
    Finished,
}

impl<'a> Below<'a> {
    /// `alias` and `names` are what the query above calls the rollup and its visible columns.
    pub fn new(definition: &'a Definition, alias: &str, names: Vec<String>) -> Self {
        let mut free = Names::new(names.iter().cloned());
        let columns = definition.arguments.iter().chain(&definition.filters).map(|column| column.name.as_str());
        let columns = columns.chain(definition.partials.iter().map(|partial| partial.name.as_str()));
        let mut hidden = HashMap::new();
        for column in columns.chain([TABLE, TIME, TAG, WRITER, SIGN, ROWS, DEPARTURE]) {
            hidden.entry(column).or_insert_with(|| free.claim(column));
        }
        Self { definition, names, alias: quote(alias), hidden }
    }

    /// What the query above calls the visible columns.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    fn target(&self, name: &str) -> Option<&'a Target> {
        self.targets().find(|(known, _)| *known == name).map(|(_, target)| target)
    }

    fn targets(&self) -> impl Iterator<Item = (&str, &'a Target)> {
        self.names.iter().map(String::as_str).zip(&self.definition.targets)
    }

    /// The column of this name.
    pub fn column(&self, name: &str) -> Option<Column<'a>> {
        let target = self.target(name)?;
        Some(match &target.value {
            Value::Keys { bucket, .. } => Column::Key { bucket: bucket.as_ref() },
            Value::Partial { name, present } => {
                let partial = self.definition.partials.iter().find(|partial| partial.name == *name)?;
                Column::Partial { partial, present: present.as_deref() }
            }
            Value::Finished => Column::Finished,
        })
    }

    /// The first column in the expression that is not one of keys.
    pub fn aggregated_column<'e>(&self, expression: &'e Expression) -> Option<&'e str> {
        let is_key = |name: &str| matches!(self.column(name), Some(Column::Key { .. }));
        expression.columns.iter().map(String::as_str).find(|name| !is_key(name))
    }

    /// Will the text of these expressions say the same for ever?
    pub fn is_lasting<'e>(&self, mut expressions: impl Iterator<Item = &'e Expression>) -> bool {
        expressions.all(|expression| {
            expression.is_built_in
                && expression.columns.iter().all(|name| {
                    self.target(name)
                        .is_some_and(|target| !matches!(target.value, Value::Keys { is_built_in: false, .. }))
                })
        })
    }

    /// The partial column that an argument is, and where it is present.
    pub fn partial_of(&self, call: &AggregateCall) -> Option<(&'a Partial, Option<&'a str>)> {
        let [argument] = call.arguments.as_slice() else { return None };
        match self.column(argument.expression.column()?)? {
            Column::Partial { partial, present } => Some((partial, present)),
            _ => None,
        }
    }

    /// See [`Definition::subtracts`].
    pub fn subtracts(&self) -> bool {
        self.definition.subtracts()
    }

    /// A partial column by its name.
    pub fn partial(&self, name: &str) -> Option<&'a Partial> {
        self.definition.partials.iter().find(|partial| partial.name == name)
    }

    /// A column that the level below does not show, as an expression of the query above.
    pub fn hidden(&self, column: &str) -> String {
        let name = self.hidden.get(column).map_or(column, String::as_str);
        format!("{}.{}", self.alias, quote(name))
    }

    /// How many rows of a group meet a filter, as an expression of the query above over groups.
    pub fn presence(&self, filter: &str) -> String {
        let counts = |partial: &&Partial| {
            partial.call.function == COUNT_ROWS.function
                && partial.call.arguments.is_empty()
                && partial.call.filter.as_deref() == Some(filter)
        };
        let partial = self.definition.partials.iter().find(counts);
        self.hidden(partial.map_or(ROWS, |partial| partial.name.as_str()))
    }

    /// The FROM of the rows view above: the rows view below.
    pub fn rows(&self, rows: &QualifiedName) -> String {
        let times = self.definition.time_type.as_ref().map(|_| TIME);
        self.relation(rows, &[TABLE, TAG].into_iter().chain(times).collect::<Vec<_>>(), true)
    }

    /// The FROM of the changes view above: the changes view below.
    pub fn changes(&self, changes: &QualifiedName) -> String {
        let times = self.definition.time_type.as_ref().map(|_| TIME);
        self.relation(changes, &[TAG, WRITER, SIGN].into_iter().chain(times).collect::<Vec<_>>(), true)
    }

    /// The FROM of what is gathered from groups of the rollup below: `groups` has the columns of its stored table, and `besides`.
    pub fn groups(&self, groups: &str, besides: Option<&str>) -> String {
        self.relation(groups, &[ROWS].into_iter().chain(besides).collect::<Vec<_>>(), false)
    }

    /// The type of the column [`TIME`] of the rows and changes below.
    pub fn time_type(&self) -> Option<&str> {
        self.definition.time_type.as_deref()
    }

    fn relation(&self, relation: impl std::fmt::Display, besides: &[&str], of_rows: bool) -> String {
        let keys = self.targets().filter(|(_, target)| matches!(target.value, Value::Keys { .. }));
        let keys = keys.map(|(name, target)| format!("{} AS {}", target.sql, quote(name)));
        let partials: Vec<&str> = self.definition.partials.iter().map(|partial| partial.name.as_str()).collect();
        let inputs = self.definition.arguments.iter().chain(&self.definition.filters);
        let inputs: Vec<&str> = inputs.map(|column| column.name.as_str()).collect();
        let hidden = if of_rows { inputs } else { partials }.into_iter().chain(besides.iter().copied());
        let hidden = hidden.map(|column| format!("merged.{} AS {}", quote(column), quote(&self.hidden[column])));
        let list: Vec<String> = keys.chain(hidden).collect();
        format!("(SELECT {}\n FROM {relation} AS merged) AS {}", list.join(",\n    "), self.alias)
    }
}
