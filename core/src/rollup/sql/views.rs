//! The relations of a rollup, as they are created.

use super::*;

/// What the views of a rollup read: the source and its change log, or those views of the rollup below.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The view of the rollup below.
    below: Option<QualifiedName>,
    /// The FROM of the rows view.
    rows: String,
    /// The FROM of the changes view.
    changes: String,
    /// A column of the first: see [`TABLE`].
    table: String,
    /// Columns of both, or of the second alone: see [`TIME`].
    time: Option<String>,
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
            below: None,
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
            below: Some(relations.public.clone()),
            rows: below.rows(&relations.rows),
            changes: below.changes(&relations.changes),
            table: below.hidden(TABLE),
            time: below.time_type().map(|_| below.hidden(TIME)),
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
    // For PostgreSQL, the view of the rollup below cannot go first then. It costs nothing: the planner knows that it is true.
    let depends = origin.below.as_ref().map(|below| {
        let is_there = format!("{}::pg_catalog.regclass IS NOT NULL", literal(&below.to_string()));
        condition.map_or(is_there.clone(), |condition| format!("{is_there} AND ({condition})"))
    });
    let select = select_inputs(definition, &origin.rows, &besides, depends.as_deref().or(condition));
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
    let mut besides = vec![
        format!("{} AS {TAG}", origin.tag),
        format!("{} AS {WRITER}", origin.writer),
        format!("{} AS {SIGN}", origin.sign),
    ];
    besides.extend(origin.time.iter().map(|time| format!("{time} AS {TIME}")));
    let select = select_inputs(definition, &origin.changes, &besides, condition);
    // Of the very types of the other half: only then PostgreSQL computes no more columns of the view than are asked for.
    let keys = definition.keys.iter().map(|key| format!("t.{}", quote(&key.name)));
    let inputs = definition.arguments.iter().chain(&definition.filters).map(|_| "NULL".to_string());
    let time = origin.time.as_ref().map(|_| "NULL".to_string());
    let hidden = ["0::bigint", "d.released_by", "0::smallint"].map(String::from).into_iter().chain(time);
    let released: Vec<String> = keys.chain(inputs).chain(hidden).collect();
    format!(
        "CREATE VIEW {} AS\n{select}\nUNION ALL\nSELECT {}\n FROM {} AS t JOIN tally.departures AS d ON {} \
         WHERE d.released_by IS NOT NULL",
        relations.changes,
        released.join(", "),
        relations.retained,
        of_departure("t")
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

/// The same for a view that is there, with the same columns.
pub fn replace_public_view(definition: &Definition, relations: &Relations, build: Build) -> String {
    create_public_view(definition, relations, build).replacen("CREATE VIEW", "CREATE OR REPLACE VIEW", 1)
}

/// Rows before this time are counted. The planner evaluates it, and plans for no partition below it.
fn settled_before(relations: &Relations, kind: &str) -> String {
    format!("tally.settled_before({}::pg_catalog.regclass, NULL::{kind})", literal(&relations.stored.to_string()))
}

/// How far rows of a group lie apart that may have to be made anew (see [`unchanged_before`]). None: so often, and so far, that the
/// planner cannot know.
fn planned_reach(definition: &Definition) -> Option<Option<&[String]>> {
    if definition.subtracts() { Some(None) } else { definition.reach().map(Some) }
}

/// Rows before this time are in no group that has to be made anew, if rows of one group lie no farther apart than `reach`. Without
/// a reach that is all rows, as long as no group has to. The planner evaluates it as well.
fn unchanged_before(relations: &Relations, kind: &str, reach: Option<&[String]>) -> String {
    let reach = match reach {
        None => "NULL::interval".into(),
        Some([]) => "'0'::interval".into(),
        Some(widths) => {
            let widths: Vec<String> = widths.iter().map(|width| format!("{}::interval", literal(width))).collect();
            widths.join(" OPERATOR(pg_catalog.+) ")
        }
    };
    let stored = literal(&relations.stored.to_string());
    format!("tally.unchanged_before({stored}::pg_catalog.regclass, NULL::{kind}, {reach})")
}

/// How a rollup gets its first groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Build {
    /// In the transaction that creates it.
    AtOnce,
    /// In slices, and not all of them are built.
    Running,
    /// In slices, all of which have been built.
    Sliced,
}

/// The public view: stored groups, merged with those of the rows that the reader can see and no tick has counted.
///
/// Stored groups that nothing is pending for pass through one hash join; the pending ones look their stored part up.
/// Both halves can be pushed down conditions on keys. Keys that may be NULL are compared by what NULL is replaced with *and*
/// by whether they are NULL, since `IS NOT DISTINCT FROM` can neither hash nor use an index.
pub fn create_public_view(definition: &Definition, relations: &Relations, build: Build) -> String {
    // A snapshot older than the rollup sees no state, and neither does a reader of a dump of some tables only: to them every
    // row is pending and no group is stored.
    let stored = literal(&relations.stored.to_string());
    // Whoever has a snapshot of the time of the build has not got the view for it any more.
    let guard = match build {
        Build::Sliced => format!(
            " AND NOT EXISTS (SELECT FROM tally.builds AS b WHERE b.stored OPERATOR(pg_catalog.=) {stored}::pg_catalog.regclass \
             AND tally.refuse_old_snapshot(b.unbuilt_before))"
        ),
        Build::AtOnce | Build::Running => String::new(),
    };
    let source = format!(
        "tally.sources AS s JOIN tally.rollups AS u ON u.source OPERATOR(pg_catalog.=) s.source \
         AND u.stored OPERATOR(pg_catalog.=) {stored}::pg_catalog.regclass"
    );
    let known = if definition.is_partitioned {
        // What the plan leaves out has to be settled in the reader's snapshot as well.
        let planned = settled_before(relations, "timestamp without time zone");
        format!(
            "SELECT s.next_tag, s.open_tags FROM (SELECT {planned} AS settled_before) AS plan LEFT JOIN ({source}) ON true \
             WHERE CASE WHEN plan.settled_before OPERATOR(pg_catalog.=) '-infinity' \
                          OR plan.settled_before OPERATOR(pg_catalog.<=) s.settled_before THEN true \
                        ELSE tally.refuse_stale_plan() END{guard}"
        )
    } else {
        format!("SELECT s.next_tag, s.open_tags FROM {source} WHERE true{guard}")
    };
    let state = |column: &str| format!("(SELECT k.{column} FROM known AS k)");
    let is_known = format!("{} IS NOT NULL", state("next_tag"));
    // The planner cannot know the state. Bounds on both sides let it expect half a percent of the table for each half of the
    // condition, where it would otherwise expect a third of it, or all of it when few transactions wrote it.
    let is_pending = format!(
        "(r.{TAG} OPERATOR(pg_catalog.>=) COALESCE({next}, 0) AND r.{TAG} OPERATOR(pg_catalog.<=) {last}::bigint)\n\
         \x20   OR (r.{TAG} OPERATOR(pg_catalog.=) ANY ({open}::bigint[])\n\
         \x20       AND r.{TAG} OPERATOR(pg_catalog.>=) {first_open} AND r.{TAG} OPERATOR(pg_catalog.<=) {last_open})",
        next = state("next_tag"),
        last = i64::MAX,
        open = state("open_tags"),
        first_open = state("open_tags[1]"),
        last_open = state("open_tags[pg_catalog.array_length(k.open_tags, 1)]"),
    );
    // Changes count only where the state is known: a snapshot that knows none reads every row as it is.
    let is_new = |column: &str| {
        format!(
            "({column} OPERATOR(pg_catalog.>=) {} OR {column} OPERATOR(pg_catalog.=) ANY ({}::bigint[]))",
            state("next_tag"),
            state("open_tags")
        )
    };
    let is_change_of =
        |alias: &str| format!("{} AND NOT {}", is_new(&format!("{alias}.{WRITER}")), is_new(&format!("{alias}.{TAG}")));
    let is_change = is_change_of("c");
    let from_time = |alias: &str, bound: &str| format!(" AND {alias}.{TIME} OPERATOR(pg_catalog.>=) {bound}");
    // What the planner may leave out, as far as it knows.
    let partition_key = definition.time_type.as_deref().filter(|_| definition.is_partitioned);
    let hot = partition_key.map_or_else(String::new, |kind| from_time("r", &settled_before(relations, kind)));
    let keys = names(&definition.keys.iter().collect::<Vec<_>>()).join(", ");
    let dirty = dirty(
        definition,
        relations,
        &match partition_key.zip(planned_reach(definition)) {
            // The rows of these groups have to be in the plan.
            Some((kind, reach)) => format!(
                "CASE WHEN {is_change} AND {} THEN \
                   CASE WHEN {planned} OPERATOR(pg_catalog.=) '-infinity' OR c.{TIME} OPERATOR(pg_catalog.>=) {planned} THEN true \
                        ELSE tally.refuse_stale_plan() END ELSE false END",
                unsettles(definition, "c"),
                planned = unchanged_before(relations, kind, reach.map(|_| [].as_slice()))
            ),
            None => is_change.clone(),
        },
    );
    let is_in = |alias: &str, groups: &str| {
        format!("EXISTS (SELECT FROM {groups} AS d WHERE {})", same_group(definition, alias, "d"))
    };
    // Whatever is in them is read anew; a value that is gone again must not be computed, for it might be one that fails.
    let of_other_groups =
        if definition.subtracts() { String::new() } else { format!(" AND {}", in_none_of(definition, "c", "dirty")) };
    // A snapshot that is older than the rollup knows no build.
    let boundary = format!(
        "COALESCE((SELECT b.unbuilt_before FROM tally.builds AS b \
         WHERE b.stored OPERATOR(pg_catalog.=) {stored}::pg_catalog.regclass), '-infinity')::{}",
        definition.time_type.as_deref().unwrap_or("timestamp with time zone")
    );
    let pending = match build {
        Build::Running => {
            // Apart, so that the partitions of unbuilt rows can be told from the others when a plan is executed.
            let arms = [
                new_rows(definition, relations, &format!("({is_pending}){hot}{}", from_time("r", &boundary))),
                new_rows(
                    definition,
                    relations,
                    &format!("r.{TIME} OPERATOR(pg_catalog.<) {boundary}{}", is_staying(definition, relations, "r")),
                ),
                added_rows(
                    definition,
                    relations,
                    &format!("{is_change}{}{of_other_groups}", from_time("c", &boundary)),
                ),
            ];
            groups_of_all(definition, &arms)
        }
        _ => groups_of_all(
            definition,
            &[
                new_rows(definition, relations, &format!("({is_pending}){hot}")),
                added_rows(definition, relations, &format!("{is_change}{of_other_groups}")),
            ],
        ),
    };
    let columns_of = |alias: &str| -> Vec<String> {
        stored_columns(definition).iter().filter(|c| *c != ROWS).map(|column| format!("{alias}.{column}")).collect()
    };
    let mut both: Vec<String> = definition.keys.iter().map(|key| format!("p.{}", quote(&key.name))).collect();
    both.extend(definition.partials.iter().map(|partial| {
        let name = quote(&partial.name);
        format!("{} AS {name}", merged(partial, "s", "p"))
    }));
    let smaller = definition.subtracts().then(|| {
        let from = match build {
            Build::Running => from_time("r", &boundary),
            Build::AtOnce | Build::Sliced => String::new(),
        };
        let condition = format!("\n WHERE {} AND {}{from}", is_change_of("r"), subtracts("r"));
        groups_of(definition, &relations.changes.to_string(), &condition)
    });
    let stored_arm = |condition: &str| {
        format!("SELECT {} FROM {} AS s WHERE {is_known} AND {condition}", columns_of("s").join(", "), relations.stored)
    };
    // Mostly nothing is pending: then no group has to be compared with what is.
    let mut arms = vec![
        stored_arm("NOT EXISTS (SELECT FROM touched)"),
        stored_arm(&format!(
            "EXISTS (SELECT FROM touched) AND NOT EXISTS (SELECT FROM touched AS p WHERE {})",
            same_group(definition, "s", "p")
        )),
    ];
    // Groups without a NULL key find their stored part through the unique index.
    arms.extend(by_null_keys(definition, |condition, filter| {
        let others = ["dirty", "smaller"].iter().take(if smaller.is_some() { 2 } else { 1 });
        let others: Vec<String> = others.map(|groups| format!("NOT {}", is_in("p", groups))).collect();
        format!(
            "SELECT {} FROM pending AS p LEFT JOIN {} AS s ON {condition} AND {is_known} WHERE {}{filter}",
            both.join(", "),
            relations.stored,
            others.join(" AND ")
        )
    }));
    if smaller.is_some() {
        let mut parts = by_null_keys(definition, |condition, filter| {
            let columns: Vec<String> = stored_columns(definition).iter().map(|column| format!("s.{column}")).collect();
            format!(
                "SELECT {} FROM smaller AS p JOIN {} AS s ON {condition} WHERE {is_known}{filter}",
                columns.join(", "),
                relations.stored
            )
        });
        parts.push(format!("SELECT * FROM pending AS q WHERE {}", is_in("q", "smaller")));
        parts.push(negated(definition, "smaller"));
        arms.push(format!(
            "SELECT {} FROM (\n{}\n) AS b WHERE b.{ROWS} OPERATOR(pg_catalog.<>) 0 AND NOT {}",
            summed_columns(definition, "b").join(", "),
            regrouped(definition, &parts),
            is_in("b", "dirty")
        ));
    }
    // Fenced by OFFSET 0: the planner would think about a join of each partition with `dirty`, in a time that grows with the square
    // of their number.
    let mut bounds: String = bounds_of_rows(definition).iter().map(|bound| format!(" AND {bound}")).collect();
    if let Some((kind, reach)) = partition_key.zip(planned_reach(definition)) {
        bounds += &from_time("r", &unchanged_before(relations, kind, reach));
    }
    bounds += &is_staying(definition, relations, "r");
    let rows = format!("(SELECT * FROM {} AS r WHERE EXISTS (SELECT FROM dirty){bounds} OFFSET 0)", relations.rows);
    let rows = groups_of(definition, &rows, &format!("\n WHERE {}", is_changed(definition)));
    let again = regrouped(definition, &[vec![rows], retained_of_changed(definition, relations)].concat());
    arms.push(format!("SELECT {} FROM (\n{again}\n) AS a", columns_of("a").join(", ")));
    // A snapshot of the time before the rollup got this definition knows no stored groups for it, nor what is retained.
    let is_known_as_it_is = if definition.is_altered {
        format!(
            "\n WHERE NOT EXISTS (SELECT FROM tally.rollups AS o WHERE o.retained OPERATOR(pg_catalog.=) {}::pg_catalog.regclass \
             AND o.stored OPERATOR(pg_catalog.<>) {stored}::pg_catalog.regclass AND tally.refuse_old_snapshot(o.stored::text))",
            literal(&relations.retained.to_string())
        )
    } else {
        String::new()
    };
    let (smaller, and_smaller) = match smaller {
        Some(groups) => {
            (format!("smaller AS MATERIALIZED (\n{groups}\n), "), format!(" UNION ALL SELECT {keys} FROM smaller"))
        }
        None => (String::new(), String::new()),
    };
    format!(
        "CREATE VIEW {} AS\nWITH known AS MATERIALIZED (\n{known}\n), {dirty}, {smaller}pending AS MATERIALIZED (\n{pending}\n), \
         touched AS MATERIALIZED (\nSELECT {keys} FROM pending UNION ALL SELECT {keys} FROM dirty{and_smaller}\n)\n\
         SELECT {}\n FROM (\n{}\n) AS merged{is_known_as_it_is}",
        relations.public,
        targets(definition),
        arms.join("\nUNION ALL\n")
    )
}

/// The columns of groups `alias` that were summed up, but for `_rows`: a sum of no values is NULL.
fn summed_columns(definition: &Definition, alias: &str) -> Vec<String> {
    let keys = definition.keys.iter().map(|key| format!("{alias}.{}", quote(&key.name)));
    let partials = definition.partials.iter().map(|partial| {
        let name = quote(&partial.name);
        match partial.subtract.as_ref().and_then(|subtract| subtract.values.as_deref()) {
            Some(values) => {
                let values = quote(values);
                format!("CASE WHEN {alias}.{values} OPERATOR(pg_catalog.>) 0 THEN {alias}.{name} END AS {name}")
            }
            None => format!("{alias}.{name}"),
        }
    });
    keys.chain(partials).collect()
}

/// The defining query as it is kept: names qualified, aggregates as written. `from` is the table or rollup that it reads.
pub fn definition_query(from: &QualifiedName, text: &Text) -> String {
    let columns: Vec<String> =
        text.targets.iter().map(|target| format!("{} AS {}", target.sql, quote(&target.name))).collect();
    let condition = text.condition.as_ref().map_or_else(String::new, |condition| format!("\n WHERE {condition}"));
    // A bare integer in GROUP BY would be a position of the select list.
    let keys: Vec<String> = text.keys.iter().map(|key| format!("({key})")).collect();
    format!(
        "SELECT {}\n FROM {from} AS {}{condition}\n GROUP BY {}",
        columns.join(",\n    "),
        quote(&text.alias),
        keys.join(", ")
    )
}
