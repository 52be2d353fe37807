//! The first contents of a rollup.

use super::*;

/// Fills an empty stored table with everything that `counted` counts; or, if `below` is given, with what the stored groups of
/// the rollup below hold by then.
pub fn build(
    definition: &Definition,
    relations: &Relations,
    counted: &Counted,
    below: Option<(&Definition, &Relations)>,
) -> String {
    let groups = match below {
        Some((below, names)) => gathered(definition, below, &names.stored.to_string(), &[], None),
        None => None,
    };
    let groups = groups.unwrap_or_else(|| {
        let staying = is_staying(definition, relations, "r");
        let condition = format!("\n WHERE {}{staying}", counted.is_counted(&format!("r.{TAG}")));
        self::groups(definition, relations, &condition)
    });
    format!(
        "INSERT INTO {} ({})\n{groups}\n ORDER BY {}",
        relations.stored,
        stored_columns(definition).join(", "),
        write_order(definition)
    )
}

/// Fills an empty table of retained groups from that of the rollup below.
pub fn build_retained(
    definition: &Definition,
    relations: &Relations,
    below: (&Definition, &Relations),
) -> Option<String> {
    let groups = gathered(definition, below.0, &below.1.retained.to_string(), &[], Some(DEPARTURE))?;
    let columns = stored_columns(definition).join(", ");
    Some(format!("INSERT INTO {} ({columns}, {DEPARTURE})\n{groups}", relations.retained))
}

/// Adds the rows of a slice of time to the stored groups: those from `first` on, if that is given, and before `before`. Answers one
/// row: groups touched, source rows counted.
pub fn build_slice(
    definition: &Definition,
    relations: &Relations,
    counted: &Counted,
    first: Option<&str>,
    before: &str,
) -> String {
    let kind = definition.time_type.as_deref().unwrap_or("timestamp with time zone");
    let time = |operator: &str, bound: &str| {
        format!(" AND r.{TIME} OPERATOR(pg_catalog.{operator}) {}::{kind}", literal(bound))
    };
    let condition = format!(
        "\n WHERE {}{}{}{}",
        counted.is_counted(&format!("r.{TAG}")),
        first.map_or_else(String::new, |first| time(">=", first)),
        time("<", before),
        is_staying(definition, relations, "r")
    );
    format!(
        "WITH delta AS MATERIALIZED (\n{}\n), merged AS (\n{}\n)\n\
         SELECT pg_catalog.count(*), COALESCE(pg_catalog.sum({ROWS}), 0)::bigint FROM delta",
        groups(definition, relations, &condition),
        merge(definition, relations, "delta", "")
    )
}

/// Makes the groups anew whose bucket lies in a range (from the first text on and before the second), or all of them, from the rows
/// that `counted` counts and from what is retained. The last statement answers the number of groups.
pub fn rebuild(
    definition: &Definition,
    relations: &Relations,
    counted: &Counted,
    range: Option<(&str, &str)>,
) -> [String; 2] {
    let within = |alias: &str| bucket_in(definition, alias, range);
    let delete = format!("DELETE FROM {} AS s WHERE {}", relations.stored, within("s"));
    let is_counted = counted.is_counted(&format!("r.{TAG}"));
    let staying = is_staying(definition, relations, "r");
    let rows =
        groups(definition, relations, &format!("\n WHERE {is_counted} AND {}{staying}", rows_in(definition, range)));
    let retained = format!("SELECT * FROM (\n{}\n) AS t WHERE {}", retained(definition, relations), within("t"));
    let insert = format!(
        "WITH made AS (\nINSERT INTO {} ({})\n{}\n ORDER BY {} RETURNING 1\n) SELECT pg_catalog.count(*) FROM made",
        relations.stored,
        stored_columns(definition).join(", "),
        regrouped(definition, &[rows, retained]),
        write_order(definition)
    );
    [delete, insert]
}
