//! Do the stored groups of a rollup equal its rows?

use super::*;

/// Counts the groups of the buckets in `range` that are stored differently from what the rows say which `counted` counts, and from what
/// is retained. Compared is what is the same in any order of its rows, such as counts, exact sums, minima and sketches of different
/// values; of the rest how many rows a group has. None for a rollup whose buckets do not follow the time by which the source is
/// partitioned: all of it would have to be read.
pub fn count_differences(
    definition: &Definition,
    relations: &Relations,
    counted: &Counted,
    range: (&str, &str),
) -> Option<String> {
    if !definition.follows_partitions() {
        return None;
    }
    let within = |alias: &str| bucket_in(definition, alias, Some(range));
    let staying = is_staying(definition, relations, "r");
    let is_counted = counted.is_counted(&format!("r.{TAG}"));
    let rows = rows_in(definition, Some(range));
    let rows = groups(definition, relations, &format!("\n WHERE {is_counted} AND {rows}{staying}"));
    let retained = format!("SELECT * FROM (\n{}\n) AS t WHERE {}", retained(definition, relations), within("t"));
    let keys = names(&definition.keys.iter().collect::<Vec<_>>());
    let values = definition.partials.iter().filter(|partial| partial.is_exact).map(compared);
    let columns: Vec<String> = keys.iter().cloned().chain(values).chain([ROWS.into()]).collect();
    let (columns, keys) = (columns.join(", "), keys.join(", "));
    Some(format!(
        "WITH stored AS MATERIALIZED (SELECT {columns} FROM {} AS s WHERE {}), \
         made AS MATERIALIZED (SELECT {columns} FROM (\n{}\n) AS m) \
         SELECT pg_catalog.count(*) FROM (SELECT FROM ((SELECT * FROM stored EXCEPT ALL SELECT * FROM made) UNION ALL \
         (SELECT * FROM made EXCEPT ALL SELECT * FROM stored)) AS d GROUP BY {keys}) AS g",
        relations.stored,
        within("s"),
        regrouped(definition, &[rows, retained])
    ))
}

/// A sketch is written anew: which of its forms is stored depends on a setting.
fn compared(partial: &Partial) -> String {
    let name = quote(&partial.name);
    if partial.is_sketch { format!("tally.hll_union({name}, {name}) AS {name}") } else { name }
}
