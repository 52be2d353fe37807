//! Groups of rows that have left the source and stay counted.

use super::*;
use crate::snapshot::BEFORE_TRACKING;

/// The departure `d` that the retained groups `alias` come from.
pub(super) fn of_departure(alias: &str) -> String {
    format!("d.departure OPERATOR(pg_catalog.=) {alias}.{DEPARTURE}")
}

/// Do the retained groups `alias` still stand for rows that are gone?
pub(super) fn is_retained(alias: &str) -> String {
    format!(
        "NOT EXISTS (SELECT FROM tally.departures AS d WHERE {} AND d.released_by IS NOT NULL)",
        of_departure(alias)
    )
}

/// A further condition on the rows `alias`: those of a partition that is about to leave are in the retained groups already. Each
/// statement asks at its own snapshot, which sees both or neither.
pub(super) fn is_staying(definition: &Definition, relations: &Relations, alias: &str) -> String {
    if !definition.is_partitioned {
        return String::new();
    }
    format!(
        " AND {alias}.{TABLE} OPERATOR(pg_catalog.<>) ALL (COALESCE((SELECT s.leaving::pg_catalog.oid[] FROM tally.sources AS s \
         WHERE s.source OPERATOR(pg_catalog.=) {}::pg_catalog.regclass), '{{}}'))",
        literal(&relations.source.to_string())
    )
}

/// The retained groups among those in `dirty`, as queries with the columns of the stored table.
pub(super) fn retained_of_changed(definition: &Definition, relations: &Relations) -> Vec<String> {
    let columns: Vec<String> = stored_columns(definition).iter().map(|column| format!("s.{column}")).collect();
    by_null_keys(definition, |condition, filter| {
        format!(
            "SELECT {} FROM dirty AS p JOIN {} AS s ON {condition} WHERE {}{filter}",
            columns.join(", "),
            relations.retained,
            is_retained("s")
        )
    })
}

/// All retained groups, as a query with the columns of the stored table.
pub(super) fn retained(definition: &Definition, relations: &Relations) -> String {
    format!(
        "SELECT {} FROM {} AS t WHERE {}",
        stored_columns(definition).join(", "),
        relations.retained,
        is_retained("t")
    )
}

/// Fills an empty stored table with the retained groups: what is left when all rows are gone at once.
pub fn restore_retained(definition: &Definition, relations: &Relations) -> String {
    let groups = regrouped(definition, &[retained(definition, relations)]);
    format!("INSERT INTO {} ({})\n{groups}", relations.stored, stored_columns(definition).join(", "))
}

/// The defining query over what the reader sees, or over a range of its buckets: the rows of the source, and the retained groups.
pub fn recomputed(definition: &Definition, relations: &Relations, range: Option<(&str, &str)>) -> String {
    let staying = is_staying(definition, relations, "r");
    let rows = groups(definition, relations, &format!("\n WHERE {}{staying}", rows_in(definition, range)));
    let retained = format!(
        "SELECT * FROM (\n{}\n) AS t WHERE {}",
        retained(definition, relations),
        bucket_in(definition, "t", range)
    );
    let groups = regrouped(definition, &[rows, retained]);
    format!("SELECT {}\n FROM (\n{groups}\n) AS merged", targets(definition))
}

/// Keeps the groups of a table that is about to leave the source. `times` are bounds of its rows in [`TIME`], as text.
pub fn retain_table(
    definition: &Definition,
    relations: &Relations,
    table: u32,
    times: Option<&(String, String)>,
    departure: i64,
) -> String {
    let times = times.filter(|_| definition.time_type.is_some()).map_or_else(String::new, |(first, last)| {
        format!(
            " AND r.{TIME} OPERATOR(pg_catalog.>=) {} AND r.{TIME} OPERATOR(pg_catalog.<=) {}",
            literal(first),
            literal(last)
        )
    });
    let condition = format!("\n WHERE r.{TABLE} OPERATOR(pg_catalog.=) {table}::pg_catalog.oid{times}");
    retain(definition, relations, &groups(definition, relations, &condition), departure)
}

/// Keeps the groups of rows that the transaction with this tag has deleted, as the change log has them.
pub fn retain_deleted(definition: &Definition, relations: &Relations, writer: i64, departure: i64) -> String {
    let condition = format!("\n WHERE {}", is_deleted_by(writer, "r"));
    let groups = groups_of(definition, &relations.changes.to_string(), &condition);
    retain(definition, relations, &groups, departure)
}

fn is_deleted_by(writer: i64, alias: &str) -> String {
    format!("{alias}.{WRITER} OPERATOR(pg_catalog.=) {writer}::bigint AND {}", takes(alias))
}

/// What becomes of the log entries of these rows. The stored groups go on counting rows that they have counted, which is all of
/// `counted`; of other rows the entry is left as a mark that their groups have changed.
pub fn settle_deleted(log: &QualifiedName, writer: i64, counted: Option<&Counted>) -> [String; 2] {
    let deleted = is_deleted_by(writer, "c");
    let stay = counted.map_or_else(|| "false".into(), |counted| counted.is_counted(&format!("c.{TAG}")));
    [
        format!("DELETE FROM {log} AS c WHERE {deleted} AND {stay}"),
        format!("UPDATE {log} AS c SET {TAG} = {BEFORE_TRACKING}, {SIGN} = 0 WHERE {deleted}"),
    ]
}

/// Does the same for a rollup over a rollup that has kept its groups already. None if they can only be made of rows.
pub fn retain_from_below(
    definition: &Definition,
    relations: &Relations,
    below: (&Definition, &Relations),
    departure: i64,
) -> Option<String> {
    let groups =
        format!("(SELECT * FROM {} AS t WHERE t.{DEPARTURE} OPERATOR(pg_catalog.=) {departure})", below.1.retained);
    Some(retain(definition, relations, &gathered(definition, below.0, &groups, &[], None)?, departure))
}

fn retain(definition: &Definition, relations: &Relations, groups: &str, departure: i64) -> String {
    let columns = stored_columns(definition).join(", ");
    format!(
        "INSERT INTO {} ({columns}, {DEPARTURE})\nSELECT {columns}, {departure} FROM (\n{groups}\n) AS g",
        relations.retained
    )
}

/// Has a table come back whose groups were retained?
pub fn has_release(source: &QualifiedName, now: &Counted) -> String {
    format!(
        "SELECT EXISTS (SELECT FROM tally.departures AS d WHERE d.source OPERATOR(pg_catalog.=) {}::pg_catalog.regclass AND {})",
        literal(&source.to_string()),
        now.is_counted("d.released_by")
    )
}

/// Deletes the retained groups of a departure that never was: the rows have not left.
pub fn forget_departure(relations: &Relations, departure: i64) -> String {
    format!("DELETE FROM {} AS t WHERE t.{DEPARTURE} OPERATOR(pg_catalog.=) {departure}", relations.retained)
}

/// Deletes retained groups whose rows have come back.
pub fn forget_released(relations: &Relations, now: &Counted) -> String {
    format!(
        "DELETE FROM {} AS t USING tally.departures AS d WHERE {} AND {}",
        relations.retained,
        of_departure("t"),
        now.is_counted("d.released_by")
    )
}
