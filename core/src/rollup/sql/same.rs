//! When two groups are the same: conditions on their keys, NULLs equal.

use super::*;

/// One text for groups `p` without a NULL key and one for those with, if there can be any. `text` gets the condition that joins
/// the group to its stored part `s`, and one that tells the groups apart. The first condition can use the unique index.
pub(super) fn by_null_keys(definition: &Definition, text: impl Fn(&str, &str) -> String) -> Vec<String> {
    let nullable: Vec<&Key> = definition.keys.iter().filter(|key| !key.never_null).collect();
    if nullable.is_empty() {
        return vec![text(&same_group(definition, "s", "p"), "")];
    }
    let is_null =
        |test: &str| -> Vec<String> { nullable.iter().map(|key| format!("p.{} {test}", quote(&key.name))).collect() };
    vec![
        text(&equal_keys(definition), &format!(" AND {}", is_null(IS_SOMETHING).join(" AND "))),
        text(&same_group(definition, "s", "p"), &format!(" AND ({})", is_null(IS_NOTHING).join(" OR "))),
    ]
}

fn equal_keys(definition: &Definition) -> String {
    let equal: Vec<String> = definition.keys.iter().map(|key| equal_key(key, "s", "p")).collect();
    equal.join(" AND ")
}

fn equal_key(key: &Key, a: &str, b: &str) -> String {
    let name = quote(&key.name);
    format!("{a}.{name} = {b}.{name}")
}

/// Is a key NULL itself? For a composite type, IS NULL would ask about its fields instead.
const IS_NOTHING: &str = "IS NOT DISTINCT FROM NULL";

const IS_SOMETHING: &str = "IS DISTINCT FROM NULL";

/// Are `a` and `b` the same group, NULLs equal? Every part of the condition can be hashed.
pub(super) fn same_group(definition: &Definition, a: &str, b: &str) -> String {
    let pairs = identity(definition, a).into_iter().zip(identity(definition, b));
    pairs.map(|(a, b)| format!("{a} = {b}")).collect::<Vec<_>>().join(" AND ")
}

/// Is `alias` in none of the groups that `groups` names? A filter that stays where it is written, unlike NOT EXISTS, which becomes a
/// join: columns of the view below `alias` may be computed before a join, but not before a filter.
pub(super) fn in_none_of(definition: &Definition, alias: &str, groups: &str) -> String {
    format!(
        "({}) NOT IN (SELECT {} FROM {groups} AS g)",
        identity(definition, alias).join(", "),
        identity(definition, "g").join(", ")
    )
}

/// Expressions that are never NULL, and equal if and only if the keys are the same.
fn identity(definition: &Definition, alias: &str) -> Vec<String> {
    let of_key = |key: &Key| {
        let column = format!("{alias}.{}", quote(&key.name));
        let is_null = format!("({column} {IS_NOTHING})");
        match (key.never_null, stand_in(&key.type_name)) {
            (true, _) => vec![column],
            (false, Some(value)) => vec![format!("COALESCE({column}, {value})"), is_null],
            // An array of a NULL array is empty, as an array of an empty array is.
            (false, None) => vec![format!("ARRAY[{column}]"), is_null],
        }
    };
    definition.keys.iter().flat_map(of_key).collect()
}

/// A constant that may stand for NULL in a comparison; which one does not matter.
pub(super) fn stand_in(type_name: &str) -> Option<String> {
    let base = type_name.split('(').next().unwrap_or(type_name).trim_end();
    let value = match base {
        "smallint" | "integer" | "bigint" | "numeric" | "real" | "double precision" => "0",
        "text" | "character varying" => "",
        "boolean" => "false",
        "date" | "timestamp without time zone" | "timestamp with time zone" => "infinity",
        "uuid" => "00000000-0000-0000-0000-000000000000",
        _ => return None,
    };
    Some(format!("{}::{base}", literal(value)))
}
