//! A [`Definition`] becomes SQL text: views, table, indexes, the build, the merge of a tick.
//!
//! Every name is qualified and every operator named with its schema, because some of these texts run with the search path of
//! whoever calls, and others are read by people who look at a view.

use super::definition::{DEPARTURE, Definition, Key, ROWS, SIGN, TABLE, TAG, TIME, WRITER};
use super::level::Below;
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

/// What the views of a rollup read: the source and its change log, or those views of the rollup below.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The FROM of the rows view.
    rows: String,
    /// The FROM of the changes view.
    changes: String,
    /// Columns of the first: see [`TABLE`] and [`TIME`].
    table: String,
    time: Option<String>,
    /// Columns of both, or of the second alone.
    tag: String,
    writer: String,
    sign: String,
}

impl Origin {
    /// `alias` is what the defining query calls the source; `time` is the column by which it is partitioned, or else the time of
    /// the first bucket.
    pub fn source(relations: &Relations, alias: &str, time: Option<&str>) -> Self {
        let alias = quote(alias);
        let column = |name: &str| format!("{alias}.{name}");
        Self {
            rows: format!("{} AS {alias}", relations.source),
            changes: format!("{} AS {alias}", relations.log),
            table: column("tableoid"),
            time: time.map(|time| column(&quote(time))),
            tag: column(TAG),
            writer: column(WRITER),
            sign: column(SIGN),
        }
    }

    /// Of the rollup below with these relations.
    pub fn below(below: &Below, relations: &Relations) -> Self {
        Self {
            rows: below.rows(&relations.rows),
            changes: below.changes(&relations.changes),
            table: below.hidden(TABLE),
            time: below.has_time().then(|| below.hidden(TIME)),
            tag: below.hidden(TAG),
            writer: below.hidden(WRITER),
            sign: below.hidden(SIGN),
        }
    }
}

/// The view that turns each source row into keys, arguments and filters.
pub fn create_rows_view(
    definition: &Definition,
    relations: &Relations,
    origin: &Origin,
    condition: Option<&str>,
) -> String {
    let mut besides = vec![format!("{} AS {TABLE}", origin.table)];
    besides.extend(origin.time.iter().map(|time| format!("{time} AS {TIME}")));
    besides.push(format!("{} AS {TAG}", origin.tag));
    let select = select_inputs(definition, &origin.rows, &besides, condition);
    format!("CREATE VIEW {} AS\n{select}", relations.rows)
}

/// The same view over logged changes. The log has the columns that the rollups of its source read, under the same names, so the
/// expressions are those of the rows view. Retained groups that are released, because their rows have come back, count as
/// changed.
pub fn create_changes_view(
    definition: &Definition,
    relations: &Relations,
    origin: &Origin,
    condition: Option<&str>,
) -> String {
    let besides = [
        format!("{} AS {TAG}", origin.tag),
        format!("{} AS {WRITER}", origin.writer),
        format!("{} AS {SIGN}", origin.sign),
    ];
    let select = select_inputs(definition, &origin.changes, &besides, condition);
    let keys = definition.keys.iter().map(|key| format!("t.{}", quote(&key.name)));
    let inputs = definition.arguments.iter().chain(&definition.filters).map(|_| "NULL".to_string());
    let released: Vec<String> = keys.chain(inputs).chain(["0", "d.released_by", "0"].map(String::from)).collect();
    format!(
        "CREATE VIEW {} AS\n{select}\nUNION ALL\nSELECT {}\n FROM {} AS t JOIN tally.departures AS d ON {} \
         WHERE d.released_by IS NOT NULL",
        relations.changes,
        released.join(", "),
        relations.retained,
        of_departure("t")
    )
}

/// The departure `d` that the retained groups `alias` come from.
fn of_departure(alias: &str) -> String {
    format!("d.departure OPERATOR(pg_catalog.=) {alias}.{DEPARTURE}")
}

/// Do the retained groups `alias` still stand for rows that are gone?
fn is_retained(alias: &str) -> String {
    format!(
        "NOT EXISTS (SELECT FROM tally.departures AS d WHERE {} AND d.released_by IS NOT NULL)",
        of_departure(alias)
    )
}

/// Keys, arguments and filters.
fn select_inputs(definition: &Definition, from: &str, besides: &[String], condition: Option<&str>) -> String {
    let columns = definition.keys.iter().map(|key| (&key.name, &key.sql));
    let columns = columns.chain(definition.arguments.iter().chain(&definition.filters).map(|c| (&c.name, &c.sql)));
    let mut list: Vec<String> = columns.map(|(name, sql)| format!("{sql} AS {}", quote(name))).collect();
    list.extend_from_slice(besides);
    let condition = condition.map_or_else(String::new, |condition| format!("\n WHERE {condition}"));
    format!("SELECT {}\n FROM {from}{condition}", list.join(",\n    "))
}

/// The table of the groups, empty. Its column types are those that PostgreSQL gives the expressions.
pub fn create_stored_table(definition: &Definition, relations: &Relations) -> String {
    // Groups of the current buckets are updated at every tick: room on the page keeps the updates off the indexes.
    let fillfactor = if definition.partials.iter().any(|partial| partial.is_sketch) { 70 } else { 90 };
    format!(
        "CREATE TABLE {} WITH (fillfactor = {fillfactor}) AS\n{}\n WITH NO DATA",
        relations.stored,
        groups(definition, relations, "")
    )
}

/// The table of the retained groups, empty, and its index.
pub fn create_retained_table(definition: &Definition, relations: &Relations) -> [String; 2] {
    let keys = names(&index_order(definition)).join(", ");
    [
        format!(
            "CREATE TABLE {} AS SELECT s.*, 0::bigint AS {DEPARTURE} FROM {} AS s WITH NO DATA",
            relations.retained, relations.stored
        ),
        format!("CREATE INDEX ON {} ({keys})", relations.retained),
    ]
}

/// What the stored table needs besides its columns and before its first row.
pub fn constrain_stored_table(definition: &Definition, relations: &Relations) -> String {
    let never_null = definition.keys.iter().filter(|key| key.never_null).map(|key| key.name.as_str());
    let actions: Vec<String> =
        never_null.chain([ROWS]).map(|column| format!("ALTER COLUMN {} SET NOT NULL", quote(column))).collect();
    format!("ALTER TABLE {} {}", relations.stored, actions.join(", "))
}

/// The indexes of the stored table: the groups themselves, tenant before bucket, and the buckets for readers who name no
/// tenant. To be made after the first build.
pub fn create_stored_indexes(definition: &Definition, relations: &Relations) -> Vec<String> {
    let mut indexes = vec![format!(
        "CREATE UNIQUE INDEX ON {} ({}) NULLS NOT DISTINCT",
        relations.stored,
        names(&index_order(definition)).join(", ")
    )];
    if let Some(time) = definition.keys.iter().find(|key| key.is_time) {
        indexes.push(format!(
            "CREATE INDEX ON {} USING brin ({}) WITH (pages_per_range = {PAGES_PER_RANGE})",
            relations.stored,
            quote(&time.name)
        ));
    }
    indexes
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
    let keys = names(&definition.keys.iter().collect::<Vec<_>>());
    let partials = definition.partials.iter().map(|partial| format!("{} AS {}", partial.sql, quote(&partial.name)));
    let columns: Vec<String> =
        keys.iter().cloned().chain(partials).chain([format!("pg_catalog.count(*) AS {ROWS}")]).collect();
    format!("SELECT {}\n FROM {} AS r{condition}\n GROUP BY {}", columns.join(", "), relations.rows, keys.join(", "))
}

/// Every column of the stored table: keys, partial columns, `_rows`.
fn stored_columns(definition: &Definition) -> Vec<String> {
    let keys = definition.keys.iter().map(|key| quote(&key.name));
    keys.chain(definition.partials.iter().map(|partial| quote(&partial.name))).chain([ROWS.into()]).collect()
}

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
        let condition = format!("\n WHERE {}", counted.is_counted(&format!("r.{TAG}")));
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

/// Is there a row that a tick would count?
pub fn has_new_row(source: &QualifiedName, state: &Counted) -> String {
    format!("SELECT EXISTS (SELECT FROM {source} AS r WHERE {})", state.is_new(&format!("r.{TAG}")))
}

/// Is there a row that no transaction so far can have written? `not_yet_assigned` is the tag of the next transaction id.
pub fn has_row_from_the_future(source: &QualifiedName, not_yet_assigned: i64) -> String {
    format!(
        "SELECT EXISTS (SELECT FROM {source} AS r WHERE r.{TAG} OPERATOR(pg_catalog.>=) {not_yet_assigned}::bigint)"
    )
}

/// How many rows of the source no tick has counted.
pub fn count_pending(source: &QualifiedName, state: &Counted) -> String {
    format!("SELECT pg_catalog.count(*) FROM {source} AS r WHERE {}", state.is_new(&format!("r.{TAG}")))
}

/// Has a row that `state` counts been changed since, by a transaction that `now` counts?
pub fn has_change(log: &QualifiedName, state: &Counted, now: &Counted) -> String {
    format!("SELECT EXISTS (SELECT FROM {log} AS c WHERE {})", changed(state, now))
}

/// How many changes no tick has followed.
pub fn count_changes(log: &QualifiedName, state: &Counted) -> String {
    format!("SELECT pg_catalog.count(*) FROM {log} AS c WHERE {}", changed_since(state))
}

/// Deletes what no later tick needs: changes by transactions that `now` counts.
pub fn forget_changes(log: &QualifiedName, now: &Counted) -> String {
    format!("DELETE FROM {log} AS c WHERE {}", now.is_counted(&format!("c.{WRITER}")))
}

/// A change counts if its writer is new and its row was counted: an uncounted row is read as it is now.
fn changed_since(state: &Counted) -> String {
    format!("{} AND {}", state.is_new(&format!("c.{WRITER}")), state.is_counted(&format!("c.{TAG}")))
}

fn changed(state: &Counted, now: &Counted) -> String {
    format!("{} AND {}", changed_since(state), now.is_counted(&format!("c.{WRITER}")))
}

/// The groups that changes concern, as a common table expression `dirty`.
fn dirty(definition: &Definition, relations: &Relations, condition: &str) -> String {
    let keys = names(&definition.keys.iter().collect::<Vec<_>>()).join(", ");
    format!("dirty AS MATERIALIZED (\nSELECT DISTINCT {keys}\n FROM {} AS c\n WHERE {condition}\n)", relations.changes)
}

/// Deletes the stored groups that changes concern: [`recount`] makes them anew. Two statements, because groups without a NULL
/// key are found through the unique index.
pub fn delete_changed(definition: &Definition, relations: &Relations, state: &Counted, now: &Counted) -> Vec<String> {
    let dirty = dirty(definition, relations, &changed(state, now));
    let statement = |condition: &str| {
        format!("WITH {dirty}\nDELETE FROM {} AS s USING dirty AS p WHERE {condition}", relations.stored)
    };
    by_null_keys(definition, |condition, filter| statement(&format!("{condition}{filter}")))
}

/// Aggregates the groups that changes concern again, from the rows that `now` counts, all in one snapshot; or, if `below` is
/// given, from the stored groups of the rollup below, which have followed already.
pub fn recount(
    definition: &Definition,
    relations: &Relations,
    state: &Counted,
    now: &Counted,
    below: Option<(&Definition, &Relations)>,
) -> String {
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
            let condition = format!("{} AND {}", now.is_counted(&format!("r.{TAG}")), of_changed_group(definition));
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

/// One of each group that `parts` have, which are queries with the columns of the stored table.
fn regrouped(definition: &Definition, parts: &[String]) -> String {
    let keys = names(&definition.keys.iter().collect::<Vec<_>>()).join(", ");
    let partials: String = definition
        .partials
        .iter()
        .map(|partial| {
            let name = quote(&partial.name);
            let gather = partial.gather.replace("{x}", &format!("s.{name}")).replace("{filter}", "");
            format!("{gather} AS {name}, ")
        })
        .collect();
    format!(
        "SELECT {keys}, {partials}pg_catalog.sum({ROWS})::bigint AS {ROWS}\n FROM (\n{}\n) AS s\n GROUP BY {keys}",
        parts.join("\nUNION ALL\n")
    )
}

/// The retained groups among those in `dirty`, as queries with the columns of the stored table.
fn retained_of_changed(definition: &Definition, relations: &Relations) -> Vec<String> {
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
fn retained(definition: &Definition, relations: &Relations) -> String {
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

/// The defining query over what the reader sees: the rows of the source, and the retained groups.
pub fn recomputed(definition: &Definition, relations: &Relations) -> String {
    let groups = regrouped(definition, &[groups(definition, relations, ""), retained(definition, relations)]);
    format!("SELECT {}\n FROM (\n{groups}\n) AS merged", targets(definition))
}

/// The visible columns over the alias `merged`.
fn targets(definition: &Definition) -> String {
    let columns: Vec<String> =
        definition.targets.iter().map(|target| format!("{} AS {}", target.sql, quote(&target.name))).collect();
    columns.join(",\n    ")
}

/// Keeps the groups of a table that is about to leave the source. `times` are bounds of its rows in [`TIME`], as text.
pub fn retain_table(
    definition: &Definition,
    relations: &Relations,
    table: u32,
    times: Option<&(String, String)>,
    departure: i64,
) -> String {
    let times = times.filter(|_| definition.has_time).map_or_else(String::new, |(first, last)| {
        format!(
            " AND r.{TIME} OPERATOR(pg_catalog.>=) {} AND r.{TIME} OPERATOR(pg_catalog.<=) {}",
            literal(first),
            literal(last)
        )
    });
    let condition = format!("\n WHERE r.{TABLE} OPERATOR(pg_catalog.=) {table}::pg_catalog.oid{times}");
    retain(definition, relations, &groups(definition, relations, &condition), departure)
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

/// Deletes retained groups whose rows have come back.
pub fn forget_released(relations: &Relations, now: &Counted) -> String {
    format!(
        "DELETE FROM {} AS t USING tally.departures AS d WHERE {} AND {}",
        relations.retained,
        of_departure("t"),
        now.is_counted("d.released_by")
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
fn end_of(key: &Key, bucket: &str, widths: &[String]) -> String {
    let kind = &key.type_name;
    let widths = widths.iter().map(|width| format!(" OPERATOR(pg_catalog.+) {}::interval", literal(width)));
    format!(
        "CASE WHEN {bucket} OPERATOR(pg_catalog.<) '200000-01-01'::{kind} \
         THEN {bucket}{} ELSE 'infinity'::{kind} END",
        widths.collect::<String>()
    )
}

/// Is the row `r` of a group in `dirty`? For buckets of time, that bounds where its rows have to be looked for.
fn of_changed_group(definition: &Definition) -> String {
    let mut same = vec![same_group(definition, "r", "d")];
    let mut bounds = vec![];
    for key in &definition.keys {
        let Some(range) = &key.bucket else { continue };
        let (bucket, column) = (quote(&key.name), quote(&range.column));
        same.push(format!("r.{column} OPERATOR(pg_catalog.>=) d.{bucket}"));
        same.push(format!("r.{column} OPERATOR(pg_catalog.<=) {}", end_of(key, &format!("d.{bucket}"), &range.widths)));
        let of_all = |function: &str| format!("(SELECT pg_catalog.{function}(d.{bucket}) FROM dirty AS d)");
        bounds.push(format!("r.{column} OPERATOR(pg_catalog.>=) {}", of_all("min")));
        bounds.push(format!("r.{column} OPERATOR(pg_catalog.<=) {}", end_of(key, &of_all("max"), &range.widths)));
    }
    bounds.push(format!("EXISTS (SELECT FROM dirty AS d WHERE {})", same.join(" AND ")));
    bounds.join(" AND ")
}

/// A rollup among those that one statement merges into.
#[derive(Clone, Copy, Debug)]
pub struct Member<'a> {
    pub definition: &'a Definition,
    pub relations: &'a Relations,
    /// Position of the rollup below, which comes first. Without one, its delta is made of rows.
    pub below: Option<usize>,
}

/// Merges the rows that are new to `state` and counted by `now` into the stored tables of a rollup and of those that gather its
/// groups, all in one snapshot and one scan. With `changes`, groups that changes concern are left to [`recount`]. Answers one
/// row: groups touched, source rows counted.
pub fn merge_delta(family: &[Member], state: &Counted, now: &Counted, changes: bool) -> String {
    let tag = format!("r.{TAG}");
    let condition = format!("\n WHERE {} AND {}", state.is_new(&tag), now.is_counted(&tag));
    let mut parts = vec![];
    let mut counts = vec![];
    for (position, member) in family.iter().enumerate() {
        let Member { definition, relations, below } = *member;
        let below = below.and_then(|below| Some((family.get(below)?.definition, format!("delta_{below}"))));
        let delta = below.and_then(|(below, delta)| gathered(definition, below, &delta, &[], None));
        let delta = delta.unwrap_or_else(|| groups(definition, relations, &condition));
        parts.push(format!("delta_{position} AS MATERIALIZED (\n{delta}\n)"));
        let mut untouched = String::new();
        if changes {
            let dirty = dirty(definition, relations, &changed(state, now));
            // Named apart, each with its own rollup's keys.
            parts.push(dirty.replacen("dirty AS", &format!("dirty_{position} AS"), 1));
            untouched = format!(
                " WHERE NOT EXISTS (SELECT FROM dirty_{position} AS p WHERE {})",
                same_group(definition, "s", "p")
            );
        }
        parts.push(format!(
            "merged_{position} AS (\n{}\n)",
            merge(definition, relations, &format!("delta_{position}"), &untouched)
        ));
        counts.push(format!("(SELECT pg_catalog.count(*) FROM delta_{position})"));
    }
    format!(
        "WITH {}\nSELECT {}, (SELECT COALESCE(pg_catalog.sum({ROWS}), 0)::bigint FROM delta_0)",
        parts.join(", "),
        counts.join(" OPERATOR(pg_catalog.+) ")
    )
}

/// Merges groups into the stored table.
fn merge(definition: &Definition, relations: &Relations, delta: &str, condition: &str) -> String {
    // `_rows` first: like this each assignment stands beside its rule of merging.
    let mut assignments = vec![format!("{ROWS} = s.{ROWS} OPERATOR(pg_catalog.+) excluded.{ROWS}")];
    for partial in &definition.partials {
        let name = quote(&partial.name);
        assignments
            .push(format!("{name} = {}", merged(&partial.merge, &format!("s.{name}"), &format!("excluded.{name}"))));
    }
    format!(
        "INSERT INTO {} AS s ({columns})\nSELECT {columns} FROM {delta} AS s{condition} ORDER BY {write_order}\n\
         ON CONFLICT ({}) DO UPDATE SET {}",
        relations.stored,
        names(&index_order(definition)).join(", "),
        assignments.join(", "),
        columns = stored_columns(definition).join(", "),
        write_order = write_order(definition),
    )
}

fn merged(rule: &str, a: &str, b: &str) -> String {
    rule.replace("{a}", a).replace("{b}", b)
}

/// The public view: stored groups, merged with those of the rows that the reader can see and no tick has counted.
///
/// Stored groups that nothing is pending for pass through one hash join; the pending ones look their stored part up.
/// Both halves can be pushed down conditions on keys. Keys that may be NULL are compared by what NULL is replaced with *and*
/// by whether they are NULL, since `IS NOT DISTINCT FROM` can neither hash nor use an index.
pub fn create_public_view(definition: &Definition, relations: &Relations) -> String {
    // A snapshot older than the rollup sees no state, and neither does a reader of a dump of some tables only: to them every
    // row is pending and no group is stored.
    let known = format!(
        "SELECT s.next_tag, s.open_tags FROM tally.sources AS s \
         JOIN tally.rollups AS u ON u.source OPERATOR(pg_catalog.=) s.source \
         WHERE u.stored OPERATOR(pg_catalog.=) {}::pg_catalog.regclass",
        literal(&relations.stored.to_string())
    );
    let state = |column: &str| format!("(SELECT k.{column} FROM known AS k)");
    let is_known = format!("{} IS NOT NULL", state("next_tag"));
    // The planner cannot know the state. Bounds on both sides let it expect half a percent of the table for each half of the
    // condition, where it would otherwise expect a third of it, or all of it when few transactions wrote it.
    let pending = groups(
        definition,
        relations,
        &format!(
            "\n WHERE (r.{TAG} OPERATOR(pg_catalog.>=) COALESCE({next}, 0) AND r.{TAG} OPERATOR(pg_catalog.<=) {last}::bigint)\n\
             \x20   OR (r.{TAG} OPERATOR(pg_catalog.=) ANY ({open}::bigint[])\n\
             \x20       AND r.{TAG} OPERATOR(pg_catalog.>=) {first_open} AND r.{TAG} OPERATOR(pg_catalog.<=) {last_open})",
            next = state("next_tag"),
            last = i64::MAX,
            open = state("open_tags"),
            first_open = state("open_tags[1]"),
            last_open = state("open_tags[pg_catalog.array_length(k.open_tags, 1)]"),
        ),
    );
    let keys = names(&definition.keys.iter().collect::<Vec<_>>()).join(", ");
    // Changes count only where the state is known: a snapshot that knows none reads every row as it is.
    let is_new = |column: &str| {
        format!(
            "({column} OPERATOR(pg_catalog.>=) {} OR {column} OPERATOR(pg_catalog.=) ANY ({}::bigint[]))",
            state("next_tag"),
            state("open_tags")
        )
    };
    let dirty = dirty(
        definition,
        relations,
        &format!("{} AND NOT {}", is_new(&format!("c.{WRITER}")), is_new(&format!("c.{TAG}"))),
    );
    let columns_of = |alias: &str| -> Vec<String> {
        stored_columns(definition).iter().filter(|c| *c != ROWS).map(|column| format!("{alias}.{column}")).collect()
    };
    let mut both: Vec<String> = definition.keys.iter().map(|key| format!("p.{}", quote(&key.name))).collect();
    both.extend(definition.partials.iter().map(|partial| {
        let name = quote(&partial.name);
        format!("{} AS {name}", merged(&partial.merge, &format!("s.{name}"), &format!("p.{name}")))
    }));
    let no_dirty =
        |alias: &str| format!("NOT EXISTS (SELECT FROM dirty AS d WHERE {})", same_group(definition, alias, "d"));
    let mut arms = vec![format!(
        "SELECT {} FROM {} AS s WHERE {is_known} AND NOT EXISTS (SELECT FROM touched AS p WHERE {})",
        columns_of("s").join(", "),
        relations.stored,
        same_group(definition, "s", "p")
    )];
    // Groups without a NULL key find their stored part through the unique index.
    arms.extend(by_null_keys(definition, |condition, filter| {
        format!(
            "SELECT {} FROM pending AS p LEFT JOIN {} AS s ON {condition} AND {is_known} WHERE {}{filter}",
            both.join(", "),
            relations.stored,
            no_dirty("p")
        )
    }));
    let changed = format!("\n WHERE EXISTS (SELECT FROM dirty) AND {}", of_changed_group(definition));
    let rows = groups(definition, relations, &changed);
    let again = regrouped(definition, &[vec![rows], retained_of_changed(definition, relations)].concat());
    arms.push(format!("SELECT {} FROM (\n{again}\n) AS a", columns_of("a").join(", ")));
    format!(
        "CREATE VIEW {} AS\nWITH known AS MATERIALIZED (\n{known}\n), pending AS MATERIALIZED (\n{pending}\n), {dirty}, \
         touched AS MATERIALIZED (\nSELECT {keys} FROM pending UNION ALL SELECT {keys} FROM dirty\n)\n\
         SELECT {}\n FROM (\n{}\n) AS merged",
        relations.public,
        targets(definition),
        arms.join("\nUNION ALL\n")
    )
}

/// One text for groups `p` without a NULL key and one for those with, if there can be any. `text` gets the condition that joins
/// the group to its stored part `s`, and one that tells the groups apart. The first condition can use the unique index.
fn by_null_keys(definition: &Definition, text: impl Fn(&str, &str) -> String) -> Vec<String> {
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
fn same_group(definition: &Definition, a: &str, b: &str) -> String {
    let parts: Vec<String> = definition
        .keys
        .iter()
        .map(|key| {
            let name = quote(&key.name);
            let both_null = format!("({a}.{name} {IS_NOTHING}) = ({b}.{name} {IS_NOTHING})");
            match (key.never_null, stand_in(&key.type_name)) {
                (true, _) => equal_key(key, a, b),
                (false, Some(value)) => {
                    format!("COALESCE({a}.{name}, {value}) = COALESCE({b}.{name}, {value}) AND {both_null}")
                }
                // An array of a NULL array is empty, as an array of an empty array is.
                (false, None) => format!("ARRAY[{a}.{name}] = ARRAY[{b}.{name}] AND {both_null}"),
            }
        })
        .collect();
    parts.join(" AND ")
}

/// A constant that may stand for NULL in a comparison; which one does not matter.
fn stand_in(type_name: &str) -> Option<String> {
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

/// The defining query as it is kept: names qualified, aggregates as written. `from` is the table or rollup that it reads.
pub fn definition_query(
    from: &QualifiedName,
    alias: &str,
    targets: &[(String, String)],
    condition: Option<&str>,
    keys: &[String],
) -> String {
    let columns: Vec<String> = targets.iter().map(|(name, sql)| format!("{sql} AS {}", quote(name))).collect();
    let condition = condition.map_or_else(String::new, |condition| format!("\n WHERE {condition}"));
    // A bare integer in GROUP BY would be a position of the select list.
    let keys: Vec<String> = keys.iter().map(|key| format!("({key})")).collect();
    format!(
        "SELECT {}\n FROM {} AS {}{condition}\n GROUP BY {}",
        columns.join(",\n    "),
        from,
        quote(alias),
        keys.join(", ")
    )
}

#[cfg(test)]
mod tests;
