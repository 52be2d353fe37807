//! What PostgreSQL prints of a table: the statements that make its indexes, triggers, rules and all the rest again, for the table that
//! has its name then.

use super::table::views;
use crate::error::Result;
use crate::partition::facts::{self, rows, text};
use crate::pg::Oid;
use crate::pg::types::is_name_taken;
use tally_core::ident::{QualifiedName, fit, literal, quote};

/// The answers of a query that prints statements for the table `$1` under the name `$2`.
pub(super) fn printed(query: &str, table: Oid, name: &QualifiedName) -> Result<Vec<String>> {
    rows(query, &[table.into(), name.to_string().into()], |row| text(row, 1))
}

/// Names for what gives way: none of them in use, and none given twice.
pub(super) struct FreeNames {
    pub schema: String,
    pub given: Vec<String>,
}

impl FreeNames {
    pub fn give(&mut self, name: &str, suffix: &str) -> String {
        let mut number = 1;
        loop {
            let suffix = if number == 1 { suffix.to_owned() } else { format!("{suffix}_{number}") };
            let free = fit(name, &suffix);
            if !self.given.contains(&free) && !is_name_taken(&self.schema, &free) {
                self.given.push(free.clone());
                return free;
            }
            number += 1;
        }
    }
}

/// An index that its table has, with the statement that makes it, and what belongs to it.
pub(super) struct Index {
    pub name: QualifiedName,
    pub definition: String,
    pub extras: Vec<String>,
}

pub(super) fn indexes(table: Oid) -> Result<Vec<Index>> {
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
pub(super) struct Statistics {
    pub name: QualifiedName,
    pub create: Vec<String>,
}

pub(super) fn statistics(table: Oid) -> Result<Vec<Statistics>> {
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
pub(super) fn triggers(table: Oid) -> Result<Vec<(String, bool)>> {
    rows(
        "SELECT quote_ident(t.tgname), t.tgname = 'tally_truncate' FROM pg_trigger t \
          WHERE t.tgrelid = $1 AND NOT t.tgisinternal AND t.tgparentid = 0 ORDER BY t.tgname",
        &[table.into()],
        |row| Ok((text(row, 1)?, facts::flag(row, 2)?)),
    )
}

pub(super) fn create_triggers(table: Oid, name: &QualifiedName, with_truncate: bool) -> Result<Vec<String>> {
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

pub(super) fn create_rules(table: Oid, name: &QualifiedName) -> Result<Vec<String>> {
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
pub(super) fn move_identity(
    table: Oid,
    from: &QualifiedName,
    to: &QualifiedName,
    names: &mut FreeNames,
) -> Result<Vec<String>> {
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
        let old = QualifiedName::new(&sequence.schema, names.give(&sequence.name, "_before"));
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
pub(super) fn owned_sequences(table: Oid, name: &QualifiedName) -> Result<Vec<String>> {
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

pub(super) fn foreign_keys(table: Oid, name: &QualifiedName) -> Result<Vec<String>> {
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
pub(super) fn comments(table: Oid, name: &QualifiedName) -> Result<Vec<String>> {
    printed(
        "SELECT format('COMMENT ON TABLE %s IS %L', $2, obj_description($1, 'pg_class')) WHERE obj_description($1, 'pg_class') <> '' \
         UNION ALL \
         SELECT format('COMMENT ON POLICY %I ON %s IS %L', p.polname, $2, obj_description(p.oid, 'pg_policy')) \
           FROM pg_policy p WHERE p.polrelid = $1 AND obj_description(p.oid, 'pg_policy') <> ''",
        table,
        name,
    )
}

pub(super) fn labels(table: Oid, name: &QualifiedName) -> Result<Vec<String>> {
    printed(
        "SELECT CASE WHEN a.attname IS NULL THEN format('SECURITY LABEL FOR %I ON TABLE %s IS %L', l.provider, $2, l.label) \
                     ELSE format('SECURITY LABEL FOR %I ON COLUMN %s.%I IS %L', l.provider, $2, a.attname, l.label) END \
           FROM pg_seclabel l LEFT JOIN pg_attribute a ON a.attrelid = l.objoid AND a.attnum = l.objsubid AND l.objsubid <> 0 \
          WHERE l.classoid = 'pg_class'::regclass AND l.objoid = $1",
        table,
        name,
    )
}

pub(super) fn replica_identity(table: Oid, name: &QualifiedName) -> Result<Option<String>> {
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

pub(super) fn publish(table: Oid, name: &QualifiedName) -> Result<Vec<String>> {
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
pub(super) fn replace_views(table: Oid) -> Result<Vec<String>> {
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
