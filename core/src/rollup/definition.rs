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
    #[serde(default)]
    pub bucket: Option<BucketRange>,
}

/// Where the rows of a bucket are: `column` of the rows view lies between the bucket and `width` later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketRange {
    pub column: String,
    pub width: String,
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
/// The column of a source that holds the row tag; in its change log, the tag of the row that was changed.
pub const TAG: &str = "tally_tag";
/// The column of a change log that holds the tag of the transaction that changed the row.
pub const WRITER: &str = "tally_writer";
/// The column of a change log that says whether the values came (1) or went (-1).
pub const SIGN: &str = "tally_sign";
