//! What a rollup is once it is known to be valid: the columns of its rows view and of its stored table.

use serde::{Deserialize, Serialize};

/// A valid rollup. Stored as JSON in `tally.rollups.columns`; field names are part of the stored format.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    pub keys: Vec<Key>,
    pub arguments: Vec<Column>,
    pub filters: Vec<Column>,
    pub partials: Vec<Partial>,
    /// Aggregates of the select list, in the order of `Analysis::aggregates`, as expressions over the partial columns.
    pub finishes: Vec<String>,
    /// The visible columns, as expressions over keys and partial columns under the name `merged`.
    #[serde(default)]
    pub targets: Vec<Column>,
}

/// A grouping column of the rows view and the stored table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    pub name: String,
    pub sql: String,
    pub never_null: bool,
    pub is_time: bool,
    pub type_name: String,
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
    /// The aggregate over the rows view that makes it.
    pub sql: String,
    /// How two partial values become one; `{a}` and `{b}` stand for them.
    pub merge: String,
    /// Is it a sketch, which is wide and does not compress?
    pub is_sketch: bool,
}

/// The hidden column of the stored table: how many source rows the group has.
pub const ROWS: &str = "_rows";
/// The column of a source that holds the row tag.
pub const TAG: &str = "tally_tag";
