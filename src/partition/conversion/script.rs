//! The statements of the swap and of its reverse. All of them are read from the catalogs before the first one runs: what PostgreSQL
//! prints of indexes, triggers and views names the table by the name that the other table has afterwards.

use super::table::{Table, views};
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

/// The answers of a query that prints statements for the table `$1` under the name `$2`.
fn printed(query: &str, table: Oid, name: &QualifiedName) -> Result<Vec<String>> {
    rows(query, &[table.into(), name.to_string().into()], |row| text(row, 1))
}

/// Names for what gives way: none of them in use, and none given twice.
struct FreeNames {
    schema: String,
    given: Vec<String>,
}

impl FreeNames {
    fn give(&mut self, name: &str, suffix: &str) -> Result<String> {
        let mut number = 1;
        loop {
            let suffix = if number == 1 { suffix.to_owned() } else { format!("{suffix}_{number}") };
            let free = fit(name, &suffix);
            if !self.given.contains(&free) && !facts::is_taken(&self.schema, &free)? {
                self.given.push(free.clone());
                return Ok(free);
            }
            number += 1;
        }
    }
}

/// The name of the partition that the table becomes.
pub(super) fn partition_name(facts: &Facts, boundary: Timestamp) -> Result<QualifiedName> {
    let (year, month, day) = boundary.date().civil();
    let mut names = FreeNames { schema: facts.name.schema.clone(), given: vec![] };
    let name = names.give(&facts.name.name, &format!("_before_{year:04}{month:02}{day:02}"))?;
    Ok(QualifiedName::new(&facts.name.schema, name))
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
        let free = names.give(&index.name.name, "_before")?;
        add("give way", format!("ALTER INDEX {} RENAME TO {}", index.name, quote(&free)));
    }
    let statistics = statistics(oid)?;
    for object in &statistics {
        let free = names.give(&object.name.name, "_before")?;
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
    let old = QualifiedName::new(&name.schema, names.give(&name.name, "_undone")?);
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
    let mut next =
        || Ok::<_, crate::error::Error>(QualifiedName::new(&name.schema, names.give(&name.name, "_rehearsal")?));
    let (plain, parent, moved) = (next()?, next()?, next()?);
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

/// An index that its table has, with the statement that makes it, and what belongs to it.
struct Index {
    name: QualifiedName,
    definition: String,
    extras: Vec<String>,
}

fn indexes(table: Oid) -> Result<Vec<Index>> {
    rows(
        "SELECT n.nspname::text, i.relname::text, \
                CASE WHEN k.oid IS NULL THEN pg_get_indexdef(i.oid) \
                     ELSE format('ALTER TABLE %s ADD CONSTRAINT %I %s', x.indrelid::regclass, k.conname, pg_get_constraintdef(k.oid)) END, \
                array_remove(ARRAY[ \
                  'ALTER INDEX ' || i.oid::regclass || ' SET TABLESPACE ' || quote_ident(s.spcname), \
                  CASE WHEN obj_description(i.oid, 'pg_class') <> '' \
                       THEN format('COMMENT ON INDEX %s IS %L', i.oid::regclass, obj_description(i.oid, 'pg_class')) END, \
                  CASE WHEN obj_description(k.oid, 'pg_constraint') <> '' \
                       THEN format('COMMENT ON CONSTRAINT %I ON %s IS %L', k.conname, x.indrelid::regclass, obj_description(k.oid, 'pg_constraint')) END \
                ], NULL) \
           FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_namespace n ON n.oid = i.relnamespace \
           LEFT JOIN pg_tablespace s ON s.oid = i.reltablespace \
           LEFT JOIN pg_constraint k ON k.conindid = i.oid AND k.conrelid = x.indrelid AND k.contype IN ('p', 'u') \
          WHERE x.indrelid = $1 AND x.indisvalid ORDER BY x.indisprimary DESC, i.relname",
        &[table.into()],
        |row| {
            let extras = row.get::<Vec<Option<String>>>(4)?.unwrap_or_default().into_iter().flatten();
            Ok(Index {
                name: QualifiedName::new(text(row, 1)?, text(row, 2)?),
                definition: text(row, 3)?,
                extras: extras.collect(),
            })
        },
    )
}

/// An object of extended statistics, with the statements that make it for a table of this name.
struct Statistics {
    name: QualifiedName,
    create: Vec<String>,
}

fn statistics(table: Oid) -> Result<Vec<Statistics>> {
    rows(
        "SELECT n.nspname::text, e.stxname::text, pg_get_statisticsobjdef(e.oid), \
                CASE WHEN e.stxstattarget >= 0 THEN format('ALTER STATISTICS %I.%I SET STATISTICS %s', n.nspname, e.stxname, e.stxstattarget) END, \
                CASE WHEN obj_description(e.oid, 'pg_statistic_ext') <> '' \
                     THEN format('COMMENT ON STATISTICS %I.%I IS %L', n.nspname, e.stxname, obj_description(e.oid, 'pg_statistic_ext')) END \
           FROM pg_statistic_ext e JOIN pg_namespace n ON n.oid = e.stxnamespace WHERE e.stxrelid = $1 ORDER BY e.stxname",
        &[table.into()],
        |row| {
            let create = [row.get::<String>(3)?, row.get::<String>(4)?, row.get::<String>(5)?];
            Ok(Statistics {
                name: QualifiedName::new(text(row, 1)?, text(row, 2)?),
                create: create.into_iter().flatten().collect(),
            })
        },
    )
}

/// The triggers of users and of rollups. Who empties a partition is seen by a trigger of its own, so that one is kept.
fn triggers(table: Oid) -> Result<Vec<(String, bool)>> {
    rows(
        "SELECT quote_ident(t.tgname), t.tgname = 'tally_truncate' FROM pg_trigger t \
          WHERE t.tgrelid = $1 AND NOT t.tgisinternal AND t.tgparentid = 0 ORDER BY t.tgname",
        &[table.into()],
        |row| Ok((text(row, 1)?, facts::flag(row, 2)?)),
    )
}

fn create_triggers(table: Oid, name: &QualifiedName, with_truncate: bool) -> Result<Vec<String>> {
    let which = "t.tgrelid = $1 AND NOT t.tgisinternal AND t.tgparentid = 0";
    let which = if with_truncate { which.to_owned() } else { format!("{which} AND t.tgname <> 'tally_truncate'") };
    let mut statements = printed(
        &format!("SELECT pg_get_triggerdef(t.oid) FROM pg_trigger t WHERE {which} ORDER BY t.tgname"),
        table,
        name,
    )?;
    statements.extend(printed(
        &format!(
            "SELECT 'ALTER TABLE ' || $2 || ' ' || string_agg(format('%s TRIGGER %I', \
                    CASE t.tgenabled WHEN 'D' THEN 'DISABLE' WHEN 'R' THEN 'ENABLE REPLICA' ELSE 'ENABLE ALWAYS' END, t.tgname), ', ') \
               FROM pg_trigger t WHERE {which} AND t.tgenabled <> 'O' HAVING count(*) > 0"
        ),
        table,
        name,
    )?);
    statements.extend(printed(
        &format!(
            "SELECT format('COMMENT ON TRIGGER %I ON %s IS %L', t.tgname, $2, obj_description(t.oid, 'pg_trigger')) \
               FROM pg_trigger t WHERE {which} AND obj_description(t.oid, 'pg_trigger') <> ''"
        ),
        table,
        name,
    )?);
    Ok(statements)
}

fn create_rules(table: Oid, name: &QualifiedName) -> Result<Vec<String>> {
    let mut statements = printed(
        "SELECT rtrim(pg_get_ruledef(r.oid), ';') FROM pg_rewrite r WHERE r.ev_class = $1 ORDER BY r.rulename",
        table,
        name,
    )?;
    statements.extend(printed(
        "SELECT format('ALTER TABLE %s %s RULE %I', $2, \
                CASE r.ev_enabled WHEN 'D' THEN 'DISABLE' WHEN 'R' THEN 'ENABLE REPLICA' ELSE 'ENABLE ALWAYS' END, r.rulename) \
           FROM pg_rewrite r WHERE r.ev_class = $1 AND r.ev_enabled <> 'O'",
        table,
        name,
    )?);
    statements.extend(printed(
        "SELECT format('COMMENT ON RULE %I ON %s IS %L', r.rulename, $2, obj_description(r.oid, 'pg_rewrite')) \
           FROM pg_rewrite r WHERE r.ev_class = $1 AND obj_description(r.oid, 'pg_rewrite') <> ''",
        table,
        name,
    )?);
    Ok(statements)
}

/// Takes identity away from the table `from`, and gives it to the one of the name `to`, under the name of the sequence and with its
/// value. `table` is who has it.
fn move_identity(table: Oid, from: &QualifiedName, to: &QualifiedName, names: &mut FreeNames) -> Result<Vec<String>> {
    let columns = rows(
        "SELECT quote_ident(a.attname), CASE a.attidentity WHEN 'a' THEN 'ALWAYS' ELSE 'BY DEFAULT' END, n.nspname::text, c.relname::text, \
                format('INCREMENT BY %s MINVALUE %s MAXVALUE %s START WITH %s CACHE %s %s', s.seqincrement, s.seqmin, s.seqmax, s.seqstart, \
                       s.seqcache, CASE WHEN s.seqcycle THEN 'CYCLE' ELSE 'NO CYCLE' END), \
                array_remove(ARRAY( \
                  SELECT format('GRANT %s ON SEQUENCE %I.%I TO %s%s', x.privilege_type, n.nspname, c.relname, \
                                CASE WHEN x.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(x.grantee)) END, \
                                CASE WHEN x.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END) \
                    FROM aclexplode(c.relacl) x WHERE x.grantee <> c.relowner ORDER BY 1) || \
                CASE WHEN obj_description(c.oid, 'pg_class') <> '' \
                     THEN format('COMMENT ON SEQUENCE %I.%I IS %L', n.nspname, c.relname, obj_description(c.oid, 'pg_class')) END, NULL) \
           FROM pg_attribute a \
           JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = a.attrelid \
                           AND d.refobjsubid = a.attnum AND d.deptype = 'i' \
           JOIN pg_sequence s ON s.seqrelid = d.objid JOIN pg_class c ON c.oid = s.seqrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
          WHERE a.attrelid = $1 AND a.attidentity <> '' AND NOT a.attisdropped ORDER BY a.attnum",
        &[table.into()],
        |row| {
            let sequence = QualifiedName::new(text(row, 3)?, text(row, 4)?);
            let extras = row.get::<Vec<Option<String>>>(6)?.unwrap_or_default();
            Ok((text(row, 1)?, text(row, 2)?, sequence, text(row, 5)?, extras))
        },
    )?;
    let mut statements = vec![];
    for (column, kind, sequence, options, extras) in columns {
        let old = QualifiedName::new(&sequence.schema, names.give(&sequence.name, "_before")?);
        statements.push(format!("ALTER SEQUENCE {sequence} RENAME TO {}", quote(&old.name)));
        statements.push(format!(
            "ALTER TABLE {to} ALTER COLUMN {column} ADD GENERATED {kind} AS IDENTITY (SEQUENCE NAME {sequence} {options})"
        ));
        statements.push(format!(
            "SELECT pg_catalog.setval({}, s.last_value, s.is_called) FROM {old} AS s",
            literal(&sequence.to_string())
        ));
        statements.push(format!("ALTER TABLE {from} ALTER COLUMN {column} DROP IDENTITY"));
        statements.extend(extras.into_iter().flatten());
    }
    Ok(statements)
}

/// Sequences of `serial` columns go with the name.
fn owned_sequences(table: Oid, name: &QualifiedName) -> Result<Vec<String>> {
    printed(
        "SELECT format('ALTER SEQUENCE %s OWNED BY %s.%I', d.objid::regclass, $2, a.attname) FROM pg_depend d \
           JOIN pg_class c ON c.oid = d.objid AND c.relkind = 'S' \
           JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid \
          WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = $1 AND d.deptype = 'a' \
          ORDER BY a.attnum",
        table,
        name,
    )
}

fn foreign_keys(table: Oid, name: &QualifiedName) -> Result<Vec<String>> {
    printed(
        "SELECT s.sql FROM pg_constraint k CROSS JOIN LATERAL (VALUES \
                (1, format('ALTER TABLE %s ADD CONSTRAINT %I %s', $2, k.conname, pg_get_constraintdef(k.oid))), \
                (2, CASE WHEN obj_description(k.oid, 'pg_constraint') <> '' THEN \
                      format('COMMENT ON CONSTRAINT %I ON %s IS %L', k.conname, $2, obj_description(k.oid, 'pg_constraint')) END)) s (place, sql) \
          WHERE k.conrelid = $1 AND k.contype = 'f' AND s.sql IS NOT NULL ORDER BY k.conname, s.place",
        table,
        name,
    )
}

/// Of the table and its policies; LIKE takes those of columns and checks along.
fn comments(table: Oid, name: &QualifiedName) -> Result<Vec<String>> {
    printed(
        "SELECT format('COMMENT ON TABLE %s IS %L', $2, obj_description($1, 'pg_class')) WHERE obj_description($1, 'pg_class') <> '' \
         UNION ALL \
         SELECT format('COMMENT ON POLICY %I ON %s IS %L', p.polname, $2, obj_description(p.oid, 'pg_policy')) \
           FROM pg_policy p WHERE p.polrelid = $1 AND obj_description(p.oid, 'pg_policy') <> ''",
        table,
        name,
    )
}

fn labels(table: Oid, name: &QualifiedName) -> Result<Vec<String>> {
    printed(
        "SELECT CASE WHEN a.attname IS NULL THEN format('SECURITY LABEL FOR %I ON TABLE %s IS %L', l.provider, $2, l.label) \
                     ELSE format('SECURITY LABEL FOR %I ON COLUMN %s.%I IS %L', l.provider, $2, a.attname, l.label) END \
           FROM pg_seclabel l LEFT JOIN pg_attribute a ON a.attrelid = l.objoid AND a.attnum = l.objsubid AND l.objsubid <> 0 \
          WHERE l.classoid = 'pg_class'::regclass AND l.objoid = $1",
        table,
        name,
    )
}

fn replica_identity(table: Oid, name: &QualifiedName) -> Result<Option<String>> {
    printed(
        "SELECT 'ALTER TABLE ' || $2 || ' REPLICA IDENTITY ' || CASE c.relreplident WHEN 'f' THEN 'FULL' WHEN 'n' THEN 'NOTHING' \
                ELSE 'USING INDEX ' || quote_ident(i.relname) END \
           FROM pg_class c LEFT JOIN pg_index x ON x.indrelid = c.oid AND x.indisreplident LEFT JOIN pg_class i ON i.oid = x.indexrelid \
          WHERE c.oid = $1 AND (c.relreplident IN ('f', 'n') OR c.relreplident = 'i' AND i.oid IS NOT NULL)",
        table,
        name,
    )
    .map(|mut found| found.pop())
}

fn publish(table: Oid, name: &QualifiedName) -> Result<Vec<String>> {
    printed(
        "SELECT format('ALTER PUBLICATION %I ADD TABLE %s', p.pubname, $2) || COALESCE(' (' || ( \
                  SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum) FROM pg_attribute a \
                   WHERE a.attrelid = r.prrelid AND a.attnum = ANY (r.prattrs::int2[])) || ')', '') \
                || COALESCE(' WHERE (' || pg_get_expr(r.prqual, r.prrelid) || ')', '') \
           FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid WHERE r.prrelid = $1 ORDER BY p.pubname",
        table,
        name,
    )
}

/// Views follow the table. They are replaced in place, so their rights, comments, triggers and whatever is defined on them stay.
fn replace_views(table: Oid) -> Result<Vec<String>> {
    let mut statements = vec![];
    for (view, name) in views(table)? {
        statements.extend(rows(
            "SELECT format('CREATE OR REPLACE VIEW %s%s AS %s', $2, ' WITH (' || array_to_string(c.reloptions, ', ') || ')', \
                           rtrim(pg_get_viewdef(c.oid), ';')) FROM pg_class c WHERE c.oid = $1",
            &[view.into(), name.into()],
            |row| text(row, 1),
        )?);
    }
    Ok(statements)
}
