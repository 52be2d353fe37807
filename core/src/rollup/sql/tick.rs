//! What a tick reads and writes.

use super::*;
use crate::bucket::Timestamp;
use crate::partition;

/// Partitions below a time are settled: no row in them is new by its tag. See [`crate::rollup::seal`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// The column by which the source is partitioned.
    pub column: String,
    pub key: partition::Key,
    pub before: Timestamp,
}

impl Settled {
    /// A further condition that rows lie above, by their column `time`. It is constant, so the planner forgets the partitions below.
    fn is_above(&self, time: &str) -> String {
        format!(" AND {time} OPERATOR(pg_catalog.>=) {}", partition::sql::bound(self.key, self.before))
    }
}

/// Where the new rows of a source are.
fn above(settled: Option<&Settled>) -> String {
    settled.map_or_else(String::new, |settled| settled.is_above(&format!("r.{}", quote(&settled.column))))
}

/// Is there a row that a tick would count?
pub fn has_new_row(source: &QualifiedName, state: &Counted, settled: Option<&Settled>) -> String {
    format!("SELECT EXISTS (SELECT FROM {source} AS r WHERE {}{})", state.is_new(&format!("r.{TAG}")), above(settled))
}

/// Is there a row that no transaction so far can have written? `not_yet_assigned` is the tag of the next transaction id.
pub fn has_row_from_the_future(source: &QualifiedName, not_yet_assigned: i64, settled: Option<&Settled>) -> String {
    format!(
        "SELECT EXISTS (SELECT FROM {source} AS r WHERE r.{TAG} OPERATOR(pg_catalog.>=) {not_yet_assigned}::bigint{})",
        above(settled)
    )
}

/// How many rows of the source no tick has counted.
pub fn count_pending(source: &QualifiedName, state: &Counted, settled: Option<&Settled>) -> String {
    format!(
        "SELECT pg_catalog.count(*) FROM {source} AS r WHERE {}{}",
        state.is_new(&format!("r.{TAG}")),
        above(settled)
    )
}

/// Has a row that `state` counts been changed since, by a transaction that `now` counts?
pub fn has_change(log: &QualifiedName, state: &Counted, now: &Counted) -> String {
    format!("SELECT EXISTS (SELECT FROM {log} AS c WHERE {})", changed(state, now))
}

/// Is there one that takes something away?
pub fn has_removal(log: &QualifiedName, state: &Counted, now: &Counted) -> String {
    format!("SELECT EXISTS (SELECT FROM {log} AS c WHERE {} AND {})", changed(state, now), takes("c"))
}

/// Has anything been taken away from below, as far as the log says?
pub fn has_removal_before(log: &QualifiedName, settled: &Settled) -> String {
    format!(
        "SELECT EXISTS (SELECT FROM {log} AS c WHERE {} AND NOT COALESCE(c.{} OPERATOR(pg_catalog.>=) {}, false))",
        takes("c"),
        quote(&settled.column),
        partition::sql::bound(settled.key, settled.before)
    )
}

/// Has anything happened that only making groups anew can follow, as far as the log says?
pub fn has_upheaval(log: &QualifiedName) -> String {
    format!("SELECT EXISTS (SELECT FROM {log} AS c WHERE {})", is_upheaval("c"))
}

/// How many changes no tick has followed.
pub fn count_changes(log: &QualifiedName, state: &Counted) -> String {
    format!("SELECT pg_catalog.count(*) FROM {log} AS c WHERE {}", changed_since(state, "c"))
}

/// Has the groups of changes made anew that a snapshot sees and `counted` does not count: whatever has been made of rows at that
/// snapshot has them already.
pub fn mark_uncounted(log: &QualifiedName, counted: &Counted) -> String {
    format!(
        "UPDATE {log} AS c SET {SIGN} = 0 WHERE {} AND NOT ({})",
        by_sign("c", "<>", 0),
        counted.is_counted(&format!("c.{WRITER}"))
    )
}

/// Deletes what no later tick needs: changes by transactions that `now` counts.
pub fn forget_changes(log: &QualifiedName, now: &Counted) -> String {
    format!("DELETE FROM {log} AS c WHERE {}", now.is_counted(&format!("c.{WRITER}")))
}

/// A change counts if its writer is new and its row was counted: an uncounted row is read as it is now.
fn changed_since(state: &Counted, alias: &str) -> String {
    format!("{} AND {}", state.is_new(&format!("{alias}.{WRITER}")), state.is_counted(&format!("{alias}.{TAG}")))
}

pub(super) fn changed(state: &Counted, now: &Counted) -> String {
    changed_as(state, now, "c")
}

fn changed_as(state: &Counted, now: &Counted, alias: &str) -> String {
    format!("{} AND {}", changed_since(state, alias), now.is_counted(&format!("{alias}.{WRITER}")))
}

/// Does the change `alias` bring a row, and nothing else? It is counted as a new one is.
fn adds(alias: &str) -> String {
    by_sign(alias, "=", 1)
}

/// Does it take anything away?
pub(super) fn takes(alias: &str) -> String {
    by_sign(alias, "<>", 1)
}

/// Does it take a row away, and nothing else?
pub(super) fn subtracts(alias: &str) -> String {
    by_sign(alias, "=", -1)
}

/// Does it say no more than that the group is not what it was?
fn is_upheaval(alias: &str) -> String {
    by_sign(alias, "=", 0)
}

fn by_sign(alias: &str, operator: &str, sign: i16) -> String {
    format!("{alias}.{SIGN} OPERATOR(pg_catalog.{operator}) ({sign})::smallint")
}

/// Has the group of the change `alias` to be made anew?
pub(super) fn unsettles(definition: &Definition, alias: &str) -> String {
    if definition.subtracts() { is_upheaval(alias) } else { takes(alias) }
}

/// Keys, arguments and filters of the rows `r` that meet a condition.
pub(super) fn new_rows(definition: &Definition, relations: &Relations, condition: &str) -> String {
    format!("SELECT {} FROM {} AS r WHERE {condition}", inputs(definition), relations.rows)
}

/// The same of the logged changes `c` that add a row.
pub(super) fn added_rows(definition: &Definition, relations: &Relations, condition: &str) -> String {
    format!("SELECT {} FROM {} AS c WHERE {} AND {condition}", inputs(definition), relations.changes, adds("c"))
}

fn inputs(definition: &Definition) -> String {
    let keys = definition.keys.iter().map(|key| &key.name);
    let inputs = definition.arguments.iter().chain(&definition.filters).map(|column| &column.name);
    keys.chain(inputs).map(|name| quote(name)).collect::<Vec<_>>().join(", ")
}

/// Groups of the rows that changes take away, each partial value with the opposite sign.
fn negated_groups(definition: &Definition, relations: &Relations, condition: &str) -> String {
    let groups =
        groups_of(definition, &relations.changes.to_string(), &format!("\n WHERE {} AND {condition}", subtracts("r")));
    negated(definition, &format!("(\n{groups}\n)"))
}

/// The same of groups that are there.
pub(super) fn negated(definition: &Definition, groups: &str) -> String {
    let keys = definition.keys.iter().map(|key| format!("n.{}", quote(&key.name)));
    let minus = |name: &str| format!("OPERATOR(pg_catalog.-) n.{name} AS {name}");
    let partials = definition.partials.iter().map(|partial| minus(&quote(&partial.name)));
    let columns: Vec<String> = keys.chain(partials).chain([minus(ROWS)]).collect();
    format!("SELECT {} FROM {groups} AS n", columns.join(", "))
}

/// The groups that have to be made anew, as a common table expression `dirty`.
pub(super) fn dirty(definition: &Definition, relations: &Relations, condition: &str) -> String {
    let keys = names(&definition.keys.iter().collect::<Vec<_>>()).join(", ");
    format!(
        "dirty AS MATERIALIZED (\nSELECT DISTINCT {keys}\n FROM {} AS c\n WHERE {condition} AND {}\n)",
        relations.changes,
        unsettles(definition, "c")
    )
}

/// Deletes the stored groups that [`recount`] makes anew. Two statements, because groups without a NULL key are found through the
/// unique index.
pub fn delete_changed(definition: &Definition, relations: &Relations, state: &Counted, now: &Counted) -> Vec<String> {
    let dirty = dirty(definition, relations, &changed(state, now));
    let statement = |condition: &str| {
        format!("WITH {dirty}\nDELETE FROM {} AS s USING dirty AS p WHERE {condition}", relations.stored)
    };
    by_null_keys(definition, |condition, filter| statement(&format!("{condition}{filter}")))
}

/// Deletes the stored groups that have no rows any more. None if the groups have to be made anew anyway.
pub fn delete_emptied(definition: &Definition, relations: &Relations, state: &Counted, now: &Counted) -> Vec<String> {
    if !definition.subtracts() {
        return vec![];
    }
    let keys = names(&definition.keys.iter().collect::<Vec<_>>()).join(", ");
    by_null_keys(definition, |condition, filter| {
        format!(
            "WITH smaller AS MATERIALIZED (\nSELECT DISTINCT {keys}\n FROM {} AS c\n WHERE {} AND {}\n)\n\
             DELETE FROM {} AS s USING smaller AS p WHERE {condition}{filter} AND s.{ROWS} OPERATOR(pg_catalog.=) 0",
            relations.changes,
            changed(state, now),
            subtracts("c"),
            relations.stored
        )
    })
}

/// Aggregates those groups again, from the rows that `now` counts, all in one snapshot; or, if `below` is
/// given, from the stored groups of the rollup below, which have followed already.
pub fn recount(member: &Member, state: &Counted, now: &Counted, below: Option<(&Definition, &Relations)>) -> String {
    let Member { definition, relations, .. } = *member;
    let columns = stored_columns(definition).join(", ");
    let gathered = below.and_then(|(below, names)| {
        gathered(definition, below, &names.stored.to_string(), &bounds_of_groups(definition), None)
    });
    let groups = match gathered {
        Some(gathered) => format!(
            "SELECT {columns} FROM (\n{gathered}\n) AS s WHERE EXISTS (SELECT FROM dirty AS p WHERE {})",
            same_group(definition, "s", "p")
        ),
        None => {
            let condition = format!(
                "{}{}{} AND {}",
                now.is_counted(&format!("r.{TAG}")),
                is_built(member, "r"),
                is_staying(definition, relations, "r"),
                of_changed_group(definition)
            );
            let rows = groups(definition, relations, &format!("\n WHERE {condition}"));
            regrouped(definition, &[vec![rows], retained_of_changed(definition, relations)].concat())
        }
    };
    format!(
        "WITH {}\nINSERT INTO {} ({columns})\n{groups}\n ORDER BY {}",
        dirty(definition, relations, &changed(state, now)),
        relations.stored,
        write_order(definition)
    )
}

/// Where the groups of the rollup below are that make the buckets in `dirty`.
fn bounds_of_groups(definition: &Definition) -> Vec<String> {
    let mut bounds = vec![];
    for key in &definition.keys {
        let Some(range) = &key.groups else { continue };
        let of_all = |function: &str| format!("(SELECT pg_catalog.{function}(d.{}) FROM dirty AS d)", quote(&key.name));
        bounds.push(format!("{} OPERATOR(pg_catalog.>=) {}", range.sql, of_all("min")));
        bounds.push(format!("{} OPERATOR(pg_catalog.<=) {}", range.sql, end_of(key, &of_all("max"), &range.widths)));
    }
    bounds
}

/// The end of a bucket. Near the end of time there is none.
pub(super) fn end_of(key: &Key, bucket: &str, widths: &[String]) -> String {
    let kind = &key.type_name;
    let widths = widths.iter().map(|width| format!(" OPERATOR(pg_catalog.+) {}::interval", literal(width)));
    format!(
        "CASE WHEN {bucket} OPERATOR(pg_catalog.<) '200000-01-01'::{kind} \
         THEN {bucket}{} ELSE 'infinity'::{kind} END",
        widths.collect::<String>()
    )
}

/// Is the row `r` of a group in `dirty`? For buckets of time, that bounds where its rows have to be looked for.
pub(super) fn of_changed_group(definition: &Definition) -> String {
    let mut conditions = bounds_of_rows(definition);
    conditions.push(is_changed(definition));
    conditions.join(" AND ")
}

/// Where the rows `r` are that make the buckets in `dirty`.
pub(super) fn bounds_of_rows(definition: &Definition) -> Vec<String> {
    let mut bounds = vec![];
    for key in &definition.keys {
        let Some(range) = &key.bucket else { continue };
        let (bucket, column) = (quote(&key.name), quote(&range.column));
        let of_all = |function: &str| format!("(SELECT pg_catalog.{function}(d.{bucket}) FROM dirty AS d)");
        bounds.push(format!("r.{column} OPERATOR(pg_catalog.>=) {}", of_all("min")));
        bounds.push(format!("r.{column} OPERATOR(pg_catalog.<=) {}", end_of(key, &of_all("max"), &range.widths)));
    }
    bounds
}

/// Is the group of the row `r` in `dirty`, which says where its buckets lie as well?
pub(super) fn is_changed(definition: &Definition) -> String {
    let mut same = vec![same_group(definition, "r", "d")];
    for key in &definition.keys {
        let Some(range) = &key.bucket else { continue };
        let (bucket, column) = (quote(&key.name), quote(&range.column));
        same.push(format!("r.{column} OPERATOR(pg_catalog.>=) d.{bucket}"));
        same.push(format!("r.{column} OPERATOR(pg_catalog.<=) {}", end_of(key, &format!("d.{bucket}"), &range.widths)));
    }
    format!("EXISTS (SELECT FROM dirty AS d WHERE {})", same.join(" AND "))
}

/// What a tick has found in the change log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Changes of any kind.
    pub are_there: bool,
    /// Some take something away.
    pub take: bool,
}

/// Merges the rows that are new to `state` and counted by `now`, and those that changes bring or take away, into the stored tables
/// of a rollup and of those that gather its groups, all in one snapshot and one scan. Groups that have to be made anew are left to
/// [`recount`], and those that have become empty to [`delete_emptied`]. Answers one row: groups touched, source rows counted.
pub fn merge_delta(
    family: &[Member],
    state: &Counted,
    now: &Counted,
    settled: Option<&Settled>,
    changes: Changes,
) -> String {
    let tag = format!("r.{TAG}");
    let mut parts = vec![];
    let mut counts = vec![];
    for (position, member) in family.iter().enumerate() {
        let Member { definition, relations, below, .. } = *member;
        let is_unchanged = |alias: &str| {
            format!("NOT EXISTS (SELECT FROM dirty_{position} AS p WHERE {})", same_group(definition, alias, "p"))
        };
        if changes.take {
            let dirty = dirty(definition, relations, &changed(state, now));
            // Named apart, each with its own rollup's keys.
            parts.push(dirty.replacen("dirty AS", &format!("dirty_{position} AS"), 1));
        }
        let below = below.and_then(|below| Some((family.get(below)?.definition, format!("delta_{below}"))));
        let delta = below.and_then(|(below, delta)| gathered(definition, below, &delta, &[], None));
        // What changes take away is in the finer groups as it is needed only if both take it out in the same way.
        let finer = member.finer.as_ref().and_then(|(at, way)| Some((family.get(*at)?.definition, way, at)));
        let finer = finer.filter(|(finer, ..)| !changes.take || finer.subtracts() == definition.subtracts());
        let delta =
            delta.or_else(|| finer.map(|(finer, way, at)| derived(definition, way, finer, &format!("delta_{at}"))));
        let delta = delta.unwrap_or_else(|| {
            let above = settled.filter(|_| definition.is_partitioned);
            let above = above.map_or_else(String::new, |settled| settled.is_above(&format!("r.{TIME}")));
            let condition =
                format!("{} AND {}{}{above}", state.is_new(&tag), now.is_counted(&tag), is_built(member, "r"));
            let mut arms = vec![new_rows(definition, relations, &condition)];
            if changes.are_there {
                let mut condition = format!("{}{}", changed(state, now), is_built(member, "c"));
                if changes.take && !definition.subtracts() {
                    // Now, because a value that is gone again must not be computed: it might be one that fails.
                    condition += &format!(" AND {}", in_none_of(definition, "c", &format!("dirty_{position}")));
                }
                arms.push(added_rows(definition, relations, &condition));
            }
            let added = groups_of_all(definition, &arms);
            if changes.take && definition.subtracts() {
                let condition = format!("{}{}", changed_as(state, now, "r"), is_built(member, "r"));
                regrouped(definition, &[added, negated_groups(definition, relations, &condition)])
            } else {
                added
            }
        });
        parts.push(format!("delta_{position} AS MATERIALIZED (\n{delta}\n)"));
        let untouched = if changes.take { format!(" WHERE {}", is_unchanged("s")) } else { String::new() };
        parts.push(format!(
            "merged_{position} AS (\n{}\n)",
            merge(definition, relations, &format!("delta_{position}"), &untouched)
        ));
        if position > 0 {
            counts.push(format!(" OPERATOR(pg_catalog.+) (SELECT pg_catalog.count(*) FROM delta_{position})"));
        }
    }
    format!(
        "WITH {}\nSELECT pg_catalog.count(*){}, COALESCE(pg_catalog.sum({ROWS}), 0)::bigint FROM delta_0",
        parts.join(", "),
        counts.concat()
    )
}

/// A further condition on rows `alias`: a rollup that is being built has no groups of older ones.
fn is_built(member: &Member, alias: &str) -> String {
    match (member.unbuilt_before, &member.definition.time_type) {
        (Some(before), Some(kind)) => {
            format!(" AND {alias}.{TIME} OPERATOR(pg_catalog.>=) {}::{kind}", literal(before))
        }
        _ => String::new(),
    }
}

/// Merges groups into the stored table.
pub(super) fn merge(definition: &Definition, relations: &Relations, delta: &str, condition: &str) -> String {
    // `_rows` first: like this each assignment stands beside its rule of merging.
    let mut assignments = vec![format!("{ROWS} = s.{ROWS} OPERATOR(pg_catalog.+) excluded.{ROWS}")];
    for partial in &definition.partials {
        let name = quote(&partial.name);
        assignments.push(format!("{name} = {}", merged(partial, "s", "excluded")));
    }
    format!(
        "INSERT INTO {} AS s ({columns})\nSELECT {columns} FROM {delta} AS s{condition} ORDER BY {index_order}\n\
         ON CONFLICT ({index_order}) DO UPDATE SET {}",
        relations.stored,
        assignments.join(", "),
        columns = stored_columns(definition).join(", "),
        // In the order of the index that each group is looked up in; the groups of a tick are of one time anyway.
        index_order = names(&index_order(definition)).join(", "),
    )
}
