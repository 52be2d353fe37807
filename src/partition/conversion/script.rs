//! The statements of the swap and of its reverse. All of them are read from the catalogs before the first one runs: what PostgreSQL
//! prints of indexes, triggers and views names the table by the name that the other table has afterwards.

use super::definitions::{
    FreeNames, Index, comments, create_rules, create_triggers, foreign_keys, indexes, labels, move_identity,
    owned_sequences, printed, publish, replace_views, replica_identity, statistics, triggers,
};
use super::table::Table;
use crate::error::Result;
use crate::partition::facts::{self, Facts, rows, text};
use crate::partition::shape;
use crate::pg::Oid;
use tally_core::bucket::Timestamp;
use tally_core::ident::{QualifiedName, fit, literal, quote};
use tally_core::partition::conversion::{CHECK, widened};
use tally_core::partition::sql;

/// A statement with what it is for.
pub(super) struct Line {
    pub action: &'static str,
    pub sql: String,
}

fn lines(action: &'static str, statements: impl IntoIterator<Item = String>) -> impl Iterator<Item = Line> {
    statements.into_iter().map(move |sql| Line { action, sql })
}

/// The name of the partition that the table becomes.
pub(super) fn partition_name(facts: &Facts, boundary: Timestamp) -> QualifiedName {
    let (year, month, day) = boundary.date().civil();
    let mut names = FreeNames { schema: facts.name.schema.clone(), given: vec![] };
    let name = names.give(&facts.name.name, &format!("_before_{year:04}{month:02}{day:02}"));
    QualifiedName::new(&facts.name.schema, name)
}

/// Turns the table into the first partition of a new one of its name. `is_source` says that rollups count it.
pub(super) fn swap(
    table: &Table,
    partition: &QualifiedName,
    boundary: Timestamp,
    is_source: bool,
) -> Result<Vec<Line>> {
    let Table { facts, column, key, .. } = table;
    let (oid, name) = (facts.oid, &facts.name);
    let mut names = FreeNames { schema: name.schema.clone(), given: vec![partition.name.clone()] };
    let mut script = vec![];
    let mut add = |action, sql: String| script.push(Line { action, sql });

    if table.is_nullable {
        add("not null", format!("ALTER TABLE {name} ALTER COLUMN {column} SET NOT NULL"));
    }
    for key in &table.narrow {
        let wide = quote(&key.wide.name);
        match &key.constraint {
            Some((constraint, words)) => add(
                "widen",
                format!(
                    "ALTER TABLE {name} DROP CONSTRAINT {constraint}, ADD CONSTRAINT {constraint} {words} USING INDEX {wide}{}",
                    key.timing
                ),
            ),
            None => {
                add("widen", format!("DROP INDEX {}", key.index));
                add("widen", format!("ALTER INDEX {} RENAME TO {}", key.wide, quote(&key.index.name)));
            }
        }
    }
    let identity = replica_identity(oid, name)?;
    if let Some(identity) = &identity
        && !table.narrow.is_empty()
    {
        add("widen", identity.clone());
    }
    for (trigger, is_kept) in triggers(oid)? {
        if !is_kept {
            add("give way", format!("DROP TRIGGER {trigger} ON {name}"));
        }
    }
    let mut give_way = |statements: Vec<String>| statements.into_iter().for_each(|sql| add("give way", sql));
    give_way(printed(
        "SELECT format('DROP RULE %I ON %s', r.rulename, $2) FROM pg_rewrite r WHERE r.ev_class = $1 ORDER BY r.rulename",
        oid,
        name,
    )?);
    give_way(printed(
        "SELECT format('ALTER PUBLICATION %I DROP TABLE %s', p.pubname, $2) FROM pg_publication_rel r \
           JOIN pg_publication p ON p.oid = r.prpubid WHERE r.prrelid = $1 ORDER BY p.pubname",
        oid,
        name,
    )?);
    let wide: Vec<String> = table.narrow.iter().map(|key| key.wide.name.clone()).collect();
    let indexes: Vec<Index> = indexes(oid)?.into_iter().filter(|index| !wide.contains(&index.name.name)).collect();
    for index in &indexes {
        let free = names.give(&index.name.name, "_before");
        add("give way", format!("ALTER INDEX {} RENAME TO {}", index.name, quote(&free)));
    }
    let statistics = statistics(oid)?;
    for object in &statistics {
        let free = names.give(&object.name.name, "_before");
        add("give way", format!("ALTER STATISTICS {} RENAME TO {}", object.name, quote(&free)));
    }
    add("rename", format!("ALTER TABLE {name} RENAME TO {}", quote(&partition.name)));
    add(
        "create",
        format!(
            "CREATE TABLE {name} (LIKE {partition} INCLUDING DEFAULTS INCLUDING GENERATED INCLUDING CONSTRAINTS INCLUDING STORAGE \
             INCLUDING COMPRESSION INCLUDING COMMENTS) PARTITION BY RANGE ({column})"
        ),
    );
    add("create", format!("ALTER TABLE {name} DROP CONSTRAINT {CHECK}"));
    for sql in move_identity(oid, partition, name, &mut names)? {
        add("identity", sql);
    }
    for sql in owned_sequences(oid, name)? {
        add("sequence", sql);
    }
    for index in &indexes {
        let is_narrow = table.narrow.iter().any(|key| key.index == index.name);
        let definition = match is_narrow {
            true => widened(&index.definition, column).unwrap_or_default(),
            false => index.definition.clone(),
        };
        add("parent index", definition);
        for sql in &index.extras {
            add("parent index", sql.clone());
        }
    }
    for sql in foreign_keys(oid, name)? {
        add("foreign key", sql);
    }
    let shape = shape::read(facts)?;
    script.extend(lines("trigger", create_triggers(oid, name, true)?));
    script.extend(lines("rights", sql::rights(name, &shape)));
    script.extend(lines("columns", sql::columns(name, &shape)));
    script.extend(lines("rule", create_rules(oid, name)?));
    script.extend(lines("statistics", statistics.into_iter().flat_map(|object| object.create)));
    script.extend(lines("comment", comments(oid, name)?));
    script.extend(lines("label", labels(oid, name)?));
    script.extend(lines("replica identity", identity));
    script.extend(lines("publish", publish(oid, name)?));
    if is_source {
        script.extend(lines("rollups", [move_rollups(partition, name)]));
    }
    script.extend(lines(
        "attach",
        [
            format!(
                "ALTER TABLE {name} ATTACH PARTITION {partition} FOR VALUES FROM (MINVALUE) TO ({})",
                sql::bound(*key, boundary)
            ),
            format!("ALTER TABLE {partition} DROP CONSTRAINT {CHECK}"),
        ],
    ));
    script.extend(lines("view", replace_views(oid)?));
    Ok(script)
}

/// Makes the first partition a plain table of the name of its parent, whose other partitions are empty.
pub(super) fn swap_back(facts: &Facts, partition: Oid, others: &[Oid], is_source: bool) -> Result<Vec<Line>> {
    let (oid, name) = (facts.oid, &facts.name);
    let partition_name = crate::catalog::name_of(partition)?;
    let mut names = FreeNames { schema: name.schema.clone(), given: vec![] };
    let old = QualifiedName::new(&name.schema, names.give(&name.name, "_undone"));
    let mut script = vec![];
    let mut add = |action, sql: String| script.push(Line { action, sql });
    let shape = shape::read_parent(facts)?;
    if is_source {
        add("rollups", move_rollups(name, &partition_name));
        // They would look as if partitions with counted rows were dropped by the way.
        for relation in others.iter().chain([&oid]) {
            add("rollups", format!("DROP TRIGGER tally_truncate ON {}", crate::catalog::name_of(*relation)?));
        }
    }
    for sql in printed(
        "SELECT format('ALTER PUBLICATION %I DROP TABLE %s', p.pubname, $2) FROM pg_publication_rel r \
           JOIN pg_publication p ON p.oid = r.prpubid WHERE r.prrelid = $1 ORDER BY p.pubname",
        oid,
        name,
    )? {
        add("give way", sql);
    }
    let pairs = rows(
        "SELECT n.nspname::text, i.relname::text, o.relname::text FROM pg_index x JOIN pg_inherits h ON h.inhrelid = x.indexrelid \
           JOIN pg_class i ON i.oid = h.inhrelid JOIN pg_namespace n ON n.oid = i.relnamespace JOIN pg_class o ON o.oid = h.inhparent \
          WHERE x.indrelid = $1 ORDER BY i.relname",
        &[partition.into()],
        |row| Ok((QualifiedName::new(text(row, 1)?, text(row, 2)?), text(row, 3)?)),
    )?;
    add("detach", format!("ALTER TABLE {name} DETACH PARTITION {partition_name}"));
    add("rename", format!("ALTER TABLE {name} RENAME TO {}", quote(&old.name)));
    add("rename", format!("ALTER TABLE {partition_name} RENAME TO {}", quote(&name.name)));
    for sql in move_identity(oid, &old, name, &mut names)? {
        add("identity", sql);
    }
    for sql in owned_sequences(oid, name)? {
        add("sequence", sql);
    }
    for sql in printed(
        "SELECT format('DROP POLICY %I ON %s', p.polname, $2) FROM pg_policy p WHERE p.polrelid = $1",
        partition,
        name,
    )?
    .into_iter()
    .chain([format!("ALTER TABLE {name} DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY")])
    .chain(printed(
        "SELECT DISTINCT format('REVOKE ALL ON TABLE %s FROM %s', $2, \
                CASE WHEN x.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(x.grantee)) END) \
           FROM pg_class c CROSS JOIN LATERAL (SELECT c.relacl UNION ALL SELECT a.attacl FROM pg_attribute a WHERE a.attrelid = c.oid) g (acl) \
          CROSS JOIN LATERAL aclexplode(g.acl) x WHERE c.oid = $1 AND x.grantee <> c.relowner",
        partition,
        name,
    )?) {
        add("rights", sql);
    }
    script.extend(lines("rights", sql::rights(name, &shape)));
    script.extend(lines("trigger", create_triggers(oid, name, false)?));
    script.extend(lines("rule", create_rules(oid, name)?));
    script.extend(lines("comment", comments(oid, name)?));
    script.extend(lines("view", replace_views(oid)?));
    script.extend(lines("publish", publish(oid, name)?));
    script.extend(lines("drop", [format!("DROP TABLE {old}")]));
    script.extend(lines(
        "rename",
        pairs.into_iter().map(|(index, name)| format!("ALTER INDEX {index} RENAME TO {}", quote(&name))),
    ));
    for object in statistics(oid)? {
        let given = QualifiedName::new(&object.name.schema, fit(&object.name.name, "_before"));
        let is_there = rows(
            "SELECT true FROM pg_statistic_ext e JOIN pg_namespace n ON n.oid = e.stxnamespace \
              WHERE e.stxrelid = $1 AND n.nspname = $2::name AND e.stxname = $3::name",
            &[partition.into(), given.schema.as_str().into(), given.name.as_str().into()],
            |row| facts::flag(row, 1),
        )?;
        if !is_there.is_empty() {
            script
                .extend(lines("rename", [format!("ALTER STATISTICS {given} RENAME TO {}", quote(&object.name.name))]));
        }
    }
    Ok(script)
}

/// Does to empty tables what the swap will do, and takes it back: this session then has read the catalogs and compiled the functions of
/// event triggers before anybody waits for it.
pub(super) fn rehearsal(table: &Table) -> Result<String> {
    let (name, column) = (&table.facts.name, &table.column);
    let mut names = FreeNames { schema: name.schema.clone(), given: vec![] };
    let [plain, parent, moved] =
        [(); 3].map(|()| QualifiedName::new(&name.schema, names.give(&name.name, "_rehearsal")));
    let like = "INCLUDING ALL EXCLUDING IDENTITY EXCLUDING CONSTRAINTS EXCLUDING INDEXES";
    let steps = [
        format!("CREATE TABLE {plain} (LIKE {name} {like})"),
        format!(
            "ALTER TABLE {plain} ALTER COLUMN {column} SET NOT NULL, ADD CONSTRAINT {CHECK} CHECK ({column} IS NOT NULL)"
        ),
        format!("ALTER TABLE {plain} ADD UNIQUE ({column})"),
        format!("ALTER TABLE {plain} RENAME TO {}", quote(&moved.name)),
        format!("CREATE TABLE {parent} (LIKE {moved} {like}) PARTITION BY RANGE ({column})"),
        format!("ALTER TABLE {parent} ADD UNIQUE ({column})"),
        format!("CREATE TRIGGER rehearsal AFTER INSERT ON {parent} FOR EACH ROW EXECUTE FUNCTION tally._log_change()"),
        format!("ALTER TABLE {parent} ENABLE ALWAYS TRIGGER rehearsal"),
        format!("ALTER TABLE {parent} ATTACH PARTITION {moved} FOR VALUES FROM (MINVALUE) TO (MAXVALUE)"),
        format!("ALTER TABLE {moved} DROP CONSTRAINT {CHECK}"),
        format!("DROP TRIGGER rehearsal ON {parent}"),
    ];
    let body =
        format!("BEGIN {}; RAISE division_by_zero; EXCEPTION WHEN division_by_zero THEN NULL; END", steps.join("; "));
    Ok(format!("DO {}", literal(&body)))
}

fn move_rollups(from: &QualifiedName, to: &QualifiedName) -> String {
    format!("SELECT tally.move_rollups({}, {})", literal(&from.to_string()), literal(&to.to_string()))
}
