//! What a rollup is once it is known to be valid: the columns of its rows view and of its stored table.

use super::sketch_settings::SketchSettings;
use super::template::fill;
use crate::ident::{QualifiedName, quote};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A valid rollup. Stored as JSON in `tally.rollups.columns`; field names are part of the stored format.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    pub keys: Vec<Key>,
    pub arguments: Vec<Column>,
    pub filters: Vec<Column>,
    pub partials: Vec<Partial>,
    /// Aggregates of the select list, in the order of `Analysis::aggregates`, as expressions over the partial columns.
    pub finishes: Vec<String>,
    /// The visible columns, in their order.
    pub targets: Vec<Target>,
    /// How the groups come from those of the rollup below, if there is one.
    pub level: Option<Level>,
    /// The type of the column [`TIME`] of the rows view, if it has one.
    pub time_type: Option<String>,
    /// Is that the column by which the source is partitioned, with ranges of it as bounds? Then cold partitions can be
    /// sealed, and need not be looked at.
    pub is_partitioned: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aggregates: Vec<OwnAggregate>,
    /// Which sketches it makes where the query does not say. They stay when the definition is changed.
    #[serde(default)]
    pub sketches: SketchSettings,
    /// The query as it was written, with all names qualified.
    pub text: Text,
    /// Has it had another definition before, and retained groups from then?
    pub is_altered: bool,
}

/// The parts of a defining query.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Text {
    /// What it calls the table.
    pub alias: String,
    pub targets: Vec<Column>,
    pub condition: Option<String>,
    pub keys: Vec<String>,
}

/// An aggregate that was made for a rollup and lies beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnAggregate {
    pub schema: String,
    pub name: String,
    /// Its arguments, as CREATE AGGREGATE takes them.
    pub arguments: String,
    /// What it is made of; known while the rollup is being created.
    #[serde(skip)]
    pub options: String,
    /// Has it states of type `internal`? Then only a superuser may make it.
    #[serde(skip)]
    pub needs_superuser: bool,
    #[serde(skip)]
    pub comment: String,
}

impl OwnAggregate {
    /// Its name in SQL text.
    pub fn qualified(&self) -> String {
        QualifiedName::new(&self.schema, &self.name).to_string()
    }
}

/// With its arguments: `"public"."totals_product_state"(numeric)`.
impl fmt::Display for OwnAggregate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.qualified(), self.arguments)
    }
}

/// What the keys and the partial columns of a rollup over a rollup are written for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Level {
    /// What the defining query calls the rollup below.
    pub alias: String,
    /// What its visible columns were called then.
    pub columns: Vec<String>,
    /// The condition of WHERE.
    pub condition: Option<String>,
    /// Will these texts say the same for ever? Functions and types of users may get other names.
    pub is_lasting: bool,
}

impl Definition {
    /// The first key that is a time.
    pub fn time_key(&self) -> Option<&Key> {
        self.keys.iter().find(|key| key.is_time)
    }

    /// Do its buckets follow the time by which the source is partitioned, so that the groups of a partition are known by it?
    pub fn follows_partitions(&self) -> bool {
        self.time_key().and_then(|key| key.bucket.as_ref()).is_some_and(|bucket| bucket.is_partition_key)
    }

    /// Can rows be taken out of its groups again, so that a change costs what it concerns?
    pub fn subtracts(&self) -> bool {
        self.partials.iter().all(|partial| partial.subtract.is_some())
    }

    /// How far the rows of a group lie apart, in the column by which the source is partitioned: widths to be added up.
    pub fn reach(&self) -> Option<&[String]> {
        let ranges = self.keys.iter().filter_map(|key| key.bucket.as_ref());
        ranges.filter(|range| range.is_partition_key).map(|range| range.widths.as_slice()).next()
    }

    /// What about this definition does not fit groups that an older one has retained. New partial columns do: nothing is known of
    /// them for rows that have left.
    pub fn retained_differently(&self, older: &Self) -> Option<String> {
        let keys = |definition: &Self| -> Vec<(String, String)> {
            definition.keys.iter().map(|key| (key.name.clone(), key.sql.clone())).collect()
        };
        if keys(self) != keys(older) {
            return Some("another key".into());
        }
        if self.text.condition != older.text.condition {
            return Some("another condition".into());
        }
        let inputs = |definition: &Self, call: &Call| -> Vec<Option<String>> {
            let find = |list: &[Column], name: &String| {
                list.iter().find(|column| column.name == *name).map(|column| column.sql.clone())
            };
            let arguments = call.arguments.iter().map(|name| find(&definition.arguments, name));
            arguments.chain(call.filter.iter().map(|name| find(&definition.filters, name))).collect()
        };
        let changed = self.partials.iter().find(|partial| {
            let known = older.partials.iter().find(|known| known.name == partial.name);
            known.is_some_and(|known| {
                (&known.call.function, &known.call.form, inputs(older, &known.call))
                    != (&partial.call.function, &partial.call.form, inputs(self, &partial.call))
            })
        });
        changed.map(|partial| format!("another column {}", quote(&partial.name)))
    }

    /// Takes the present schemas of its own aggregates, among those that its view uses.
    pub fn follow_aggregates(&mut self, used: &[QualifiedName]) {
        for own in &mut self.aggregates {
            let is_there = used.iter().any(|present| present.schema == own.schema && present.name == own.name);
            let mut moved = used.iter().filter(|present| present.name == own.name);
            let (false, Some(present), None) = (is_there, moved.next(), moved.next()) else { continue };
            let before = own.qualified();
            own.schema.clone_from(&present.schema);
            for partial in &mut self.partials {
                if partial.call.function == before {
                    partial.call.function = own.qualified();
                    partial.sql = partial.call.sql();
                }
                if partial.unite.as_ref() == Some(&before) {
                    partial.unite = Some(own.qualified());
                }
            }
        }
    }
}

/// A visible column.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    pub name: String,
    /// An expression over keys and partial columns under the name `merged`.
    pub sql: String,
    pub value: Value,
}

/// What a visible column is to a rollup over this one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Value {
    /// An expression over keys.
    Keys { never_null: bool, bucket: Option<BucketRange>, is_built_in: bool },
    /// One partial column as it is. It is NULL where no row meets `present`, a column of `filters`, if that is given; the
    /// partial column counts rows then, and is 0.
    Partial { name: String, present: Option<String> },
    /// Anything else: two values of it do not become one.
    Finished,
}

/// A grouping column of the rows view and the stored table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    pub name: String,
    pub sql: String,
    pub never_null: bool,
    pub is_time: bool,
    pub type_name: String,
    pub bucket: Option<BucketRange>,
    /// Where the groups of the rollup below are that make this bucket.
    pub groups: Option<GroupRange>,
}

/// `sql`, a time among the keys of the rollup below, lies between the bucket and the sum of `widths` later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRange {
    pub sql: String,
    pub widths: Vec<String>,
}

/// Where the rows of a bucket are: `column` of the rows view lies between the bucket and the sum of `widths` later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketRange {
    pub column: String,
    pub widths: Vec<String>,
    /// Is `column` the one by which the source is partitioned, with ranges of it as bounds?
    pub is_partition_key: bool,
}

/// A named expression.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    pub name: String,
    pub sql: String,
}

/// A partial column of the stored table: what can be merged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partial {
    pub name: String,
    /// The aggregate over the rows view that makes it: [`Call::sql`] of `call`.
    pub sql: String,
    pub call: Call,
    /// How two partial values become one; `{a}` and `{b}` stand for them, `{A}` and `{B}` for the rows that they are in,
    /// `{beside}` for the name of the column `beside`, and `{unite}` for the aggregate `unite`.
    pub merge: String,
    /// The partial column that the merge looks at as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beside: Option<String>,
    /// The aggregate that makes one state of many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unite: Option<String>,
    /// The aggregate that makes one of many partial values, as `sum` does of counts; `{x}` stands for a value, `{X}` for the row
    /// that it is in, `{filter}` for a FILTER clause or nothing; `{beside}` and `{unite}` as in `merge`.
    pub gather: String,
    /// The same value, made of the groups of the rollup below.
    pub from_below: Option<String>,
    /// Is it a sketch, which is wide and does not compress?
    pub is_sketch: bool,
    /// Is its value the same in whatever order the rows came? Then it can be compared with that of the rows.
    #[serde(default)]
    pub is_exact: bool,
    /// How rows are taken out of it again; None if its groups have to be made anew. All columns of a rollup have it, or none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subtract: Option<Subtract>,
}

/// A partial column that is a number: merging what comes and what goes with the opposite sign is right in any order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subtract {
    /// The partial column that counts the values: without any the sum is NULL, and not 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub values: Option<String>,
}

/// A call of an aggregate over columns of the rows view.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    pub function: String,
    /// Names in `Definition::arguments`; none stands for `f(*)`.
    pub arguments: Vec<String>,
    /// What becomes of the first argument `{x}` before it is aggregated, and what follows it.
    pub form: String,
    /// A name in `Definition::filters`.
    pub filter: Option<String>,
}

impl Call {
    /// ```
    /// use tally_core::rollup::definition::Call;
    /// let call = Call { function: "sum".into(), arguments: vec!["x".into()], form: "{x}::bigint".into(), filter: None };
    /// assert_eq!(call.sql(), "sum(\"x\"::bigint)");
    /// ```
    pub fn sql(&self) -> String {
        let mut arguments: Vec<String> = self.arguments.iter().map(|name| quote(name)).collect();
        match arguments.first_mut() {
            Some(first) => *first = fill(&self.form, &[("x", first)]),
            None => arguments.push("*".into()),
        }
        let filter = self.filter.as_deref().map_or_else(String::new, |filter| filter_clause(&quote(filter)));
        format!("{}({}){filter}", self.function, arguments.join(", "))
    }
}

/// ` FILTER (WHERE condition)`
pub fn filter_clause(condition: &str) -> String {
    format!(" FILTER (WHERE {condition})")
}

/// The hidden column of the stored table: how many source rows the group has.
pub const ROWS: &str = "_rows";
/// The hidden column of the table of retained groups: the number of the departure that they come from.
pub const DEPARTURE: &str = "_departure";
/// The column of a rows view that says which table the row lies in.
pub const TABLE: &str = "tally_table";
/// The column of a rows view, and of a changes view, that holds the time by which the source is partitioned, or else the time of the first bucket.
pub const TIME: &str = "tally_time";
/// The column of a source that holds the row tag; in its change log, the tag of the row that was changed.
pub const TAG: &str = "tally_tag";
/// The column of a change log that holds the tag of the transaction that changed the row.
pub const WRITER: &str = "tally_writer";
/// The column of a change log that says whether the values came (1) or went (-1).
pub const SIGN: &str = "tally_sign";
