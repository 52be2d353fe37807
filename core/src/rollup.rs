//! What a rollup is: the stored answer to `SELECT keys, aggregates FROM source GROUP BY keys`, and its parts.
//!
//! ```text
//!  source ──> rows view ──tick──> stored table ─┐
//!                 │                              ├──> public view
//!                 └────────── pending ───────────┘
//! ```
//!
//! - the *rows view* turns a source row into keys, arguments and filter conditions, and carries the row's tag. It is a view
//!   and not a text, so that PostgreSQL follows renames of source columns and guards them against being dropped;
//! - the *stored table* has one row per group: keys, partial columns, and `_rows`, the number of source rows;
//! - the *public view* merges the stored groups with those of the rows that no tick has counted yet.

pub mod aggregate;
pub mod analysis;
pub mod build;
pub mod definition;
pub mod derive;
pub mod level;
mod names;
pub mod sketch_settings;
pub mod sql;
pub mod state;
mod template;
pub mod validate;
