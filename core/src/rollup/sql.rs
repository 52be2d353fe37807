//! A [`Definition`] becomes SQL text: views, table, indexes, the build, the merge of a tick.
//!
//! Every name is qualified and every operator named with its schema, because some of these texts run with the search path of
//! whoever calls, and others are read by people who look at a view.

mod build;
mod compare;
mod retained;
mod same;
mod tick;
mod views;

pub use build::*;
pub use compare::*;
pub use retained::*;
use same::*;
pub use tick::*;
pub use views::*;

use super::definition::{DEPARTURE, Definition, Key, Partial, ROWS, SIGN, TABLE, TAG, TIME, Text, WRITER};
use super::derive::Derived;
use super::level::Below;
use super::template::fill;
use crate::ident::{QualifiedName, literal, quote};
use crate::snapshot::Counted;

/// Heap pages that one entry of a BRIN index stands for, on sources and on stored tables.
pub const PAGES_PER_RANGE: i64 = 32;

/// The relations of a rollup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relations {
    pub source: QualifiedName,
    pub public: QualifiedName,
    pub rows: QualifiedName,
    pub changes: QualifiedName,
    pub stored: QualifiedName,
    /// Groups of rows that have left the source and stay counted.
    pub retained: QualifiedName,
    /// The change log of the source.
    pub log: QualifiedName,
}

/// The first key that is no time (usually the tenant), the time, the others.
fn index_order(definition: &Definition) -> Vec<&Key> {
    let time = definition.keys.iter().position(|key| key.is_time);
    let first = definition.keys.iter().position(|key| !key.is_time);
    let leading: Vec<usize> = first.into_iter().chain(time).collect();
    let rest = (0..definition.keys.len()).filter(|position| !leading.contains(position));
    leading.iter().copied().chain(rest).map(|position| &definition.keys[position]).collect()
}

/// The order in which groups are written: by bucket, so that neighbours on the disk belong to the same time.
fn write_order(definition: &Definition) -> String {
    let mut keys = index_order(definition);
    keys.sort_by_key(|key| !key.is_time);
    names(&keys).join(", ")
}

fn names(keys: &[&Key]) -> Vec<String> {
    keys.iter().map(|key| quote(&key.name)).collect()
}

/// `SELECT keys, partial columns, _rows FROM rows view <condition> GROUP BY keys`.
fn groups(definition: &Definition, relations: &Relations, condition: &str) -> String {
    groups_of(definition, &relations.rows.to_string(), condition)
}

/// The same over `rows`, which has the columns of the rows view.
fn groups_of(definition: &Definition, rows: &str, condition: &str) -> String {
    let keys = names(&definition.keys.iter().collect::<Vec<_>>());
    let partials = definition.partials.iter().map(|partial| format!("{} AS {}", partial.sql, quote(&partial.name)));
    let columns: Vec<String> =
        keys.iter().cloned().chain(partials).chain([format!("pg_catalog.count(*) AS {ROWS}")]).collect();
    format!("SELECT {}\n FROM {rows} AS r{condition}\n GROUP BY {}", columns.join(", "), keys.join(", "))
}

/// The groups of all rows of `arms`, which are queries with the inputs of the aggregates.
fn groups_of_all(definition: &Definition, arms: &[String]) -> String {
    groups_of(definition, &format!("(\n{}\n)", arms.join("\nUNION ALL ")), "")
}

/// Every column of the stored table: keys, partial columns, `_rows`.
fn stored_columns(definition: &Definition) -> Vec<String> {
    let keys = definition.keys.iter().map(|key| quote(&key.name));
    keys.chain(definition.partials.iter().map(|partial| quote(&partial.name))).chain([ROWS.into()]).collect()
}

/// The groups of a rollup over a rollup, made of `groups` of the rollup below: its stored table, or a part of what it becomes,
/// apart for each value of `besides`. None if they can only be made of rows.
fn gathered(
    definition: &Definition,
    below: &Definition,
    groups: &str,
    bounds: &[String],
    besides: Option<&str>,
) -> Option<String> {
    let level = definition.level.as_ref()?;
    let below = Below::new(below, &level.alias, level.columns.clone());
    let mut columns: Vec<String> =
        definition.keys.iter().map(|key| format!("{} AS {}", key.sql, quote(&key.name))).collect();
    for partial in &definition.partials {
        columns.push(format!("{} AS {}", partial.from_below.as_ref()?, quote(&partial.name)));
    }
    columns.push(format!("pg_catalog.sum({})::bigint AS {ROWS}", below.hidden(ROWS)));
    let mut positions: Vec<String> = (1..=definition.keys.len()).map(|position| position.to_string()).collect();
    if let Some(besides) = besides {
        columns.push(format!("{} AS {besides}", below.hidden(besides)));
        positions.push(columns.len().to_string());
    }
    let conditions: Vec<&str> = level.condition.iter().chain(bounds).map(String::as_str).collect();
    let condition =
        if conditions.is_empty() { String::new() } else { format!("\n WHERE {}", conditions.join(" AND ")) };
    Some(format!(
        "SELECT {}\n FROM {}{condition}\n GROUP BY {}",
        columns.join(", "),
        below.groups(groups, besides),
        positions.join(", ")
    ))
}

/// The groups of `definition`, made of `groups` of a finer rollup.
fn derived(definition: &Definition, way: &Derived, finer: &Definition, groups: &str) -> String {
    let keys: Vec<String> = way.keys.iter().map(|name| format!("s.{}", quote(name))).collect();
    let mut columns: Vec<String> =
        definition.keys.iter().zip(&keys).map(|(key, sql)| format!("{sql} AS {}", quote(&key.name))).collect();
    for (partial, other) in definition.partials.iter().zip(&way.partials) {
        columns.push(format!("{} AS {}", regathered(&finer.partials[*other], "s"), quote(&partial.name)));
    }
    format!(
        "SELECT {}, pg_catalog.sum(s.{ROWS})::bigint AS {ROWS}\n FROM {groups} AS s\n GROUP BY {}",
        columns.join(", "),
        keys.join(", ")
    )
}

/// One of each group that `parts` have, which are queries with the columns of the stored table.
fn regrouped(definition: &Definition, parts: &[String]) -> String {
    let keys = names(&definition.keys.iter().collect::<Vec<_>>()).join(", ");
    let partials: String = definition
        .partials
        .iter()
        .map(|partial| format!("{} AS {}, ", regathered(partial, "s"), quote(&partial.name)))
        .collect();
    format!(
        "SELECT {keys}, {partials}pg_catalog.sum({ROWS})::bigint AS {ROWS}\n FROM (\n{}\n) AS s\n GROUP BY {keys}",
        parts.join("\nUNION ALL\n")
    )
}

/// The visible columns over the alias `merged`.
fn targets(definition: &Definition) -> String {
    let columns: Vec<String> =
        definition.targets.iter().map(|target| format!("{} AS {}", target.sql, quote(&target.name))).collect();
    columns.join(",\n    ")
}

/// A rollup among those that one statement merges into.
#[derive(Clone, Debug)]
pub struct Member<'a> {
    pub definition: &'a Definition,
    pub relations: &'a Relations,
    /// Position of the rollup below, which comes first.
    pub below: Option<usize>,
    /// Position of a finer rollup beside it, which comes first, as [`finer`](super::derive::finer) found it. Without either, its delta is made
    /// of rows.
    pub finer: Option<(usize, Derived)>,
    /// Rows before this time are not in its stored groups yet.
    pub unbuilt_before: Option<&'a str>,
}

/// The value of a partial column that is gathered from rows `alias`.
fn regathered(partial: &Partial, alias: &str) -> String {
    let value = format!("{alias}.{}", quote(&partial.name));
    let beside = partial.beside.as_deref().map(quote).unwrap_or_default();
    let unite = partial.unite.as_deref().unwrap_or_default();
    let places = [("x", value.as_str()), ("X", alias), ("beside", &beside), ("unite", unite), ("filter", "")];
    fill(&partial.gather, &places)
}

/// The value of a partial column that is merged of those in two rows.
fn merged(partial: &Partial, a: &str, b: &str) -> String {
    let name = quote(&partial.name);
    let beside = partial.beside.as_deref().map(quote).unwrap_or_default();
    let (value_a, value_b) = (format!("{a}.{name}"), format!("{b}.{name}"));
    let unite = partial.unite.as_deref().unwrap_or_default();
    let places = [("a", value_a.as_str()), ("b", &value_b), ("A", a), ("B", b), ("beside", &beside), ("unite", unite)];
    let merged = fill(&partial.merge, &places);
    match partial.subtract.as_ref().and_then(|subtract| subtract.values.as_deref()) {
        Some(values) => {
            let of = |alias: &str| format!("COALESCE({alias}.{}, 0)", quote(values));
            format!("CASE WHEN {} OPERATOR(pg_catalog.+) {} OPERATOR(pg_catalog.>) 0 THEN {merged} END", of(a), of(b))
        }
        None => merged,
    }
}

/// Lies the bucket of the group or row `alias` in a range: from the first text on and before the second?
fn bucket_in(definition: &Definition, alias: &str, range: Option<(&str, &str)>) -> String {
    let (Some((first, before)), Some(key)) = (range, definition.time_key()) else { return "true".into() };
    let (name, kind) = (quote(&key.name), &key.type_name);
    // The texts are of type timestamptz; a bucket of another type is compared as the session's time zone has it.
    let bound = |text: &str| format!("{}::timestamptz::{kind}", literal(text));
    format!(
        "{alias}.{name} OPERATOR(pg_catalog.>=) {} AND {alias}.{name} OPERATOR(pg_catalog.<) {}",
        bound(first),
        bound(before)
    )
}

/// The same of the rows `r` of the rows view, with bounds of where they lie.
fn rows_in(definition: &Definition, range: Option<(&str, &str)>) -> String {
    let bucket = bucket_in(definition, "r", range);
    let (Some((first, before)), Some(key)) = (range, definition.time_key()) else { return bucket };
    let Some(rows) = &key.bucket else { return bucket };
    let column = format!("r.{}", quote(&rows.column));
    let bound = |text: &str| format!("{}::timestamptz::{}", literal(text), key.type_name);
    format!(
        "{bucket} AND {column} OPERATOR(pg_catalog.>=) {} AND {column} OPERATOR(pg_catalog.<=) {}",
        bound(first),
        end_of(key, &bound(before), &rows.widths)
    )
}

#[cfg(test)]
mod tests;
