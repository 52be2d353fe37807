//! Reads what pg_partman's table of settings says about a set: with the rights of the caller, and with names that are quoted. Without
//! the extension, or the right to read its table, there is nothing to read.

use super::facts::{Facts, flag, rows, text};
use crate::error::{Error, Result, warn};
use crate::pg::{self, Oid};
use std::collections::HashMap;
use tally_core::ident::QualifiedName;
use tally_core::partition::Interval;
use tally_core::partition::check::Request;
use tally_core::partition::pg_partman::Config;

/// What there is of pg_partman.
pub(super) enum Found {
    /// Not installed, or it does not know the set.
    Nothing,
    /// The table that the caller may not read, as SQL names it.
    Unreadable(String),
    Config(Box<Config>),
}

impl Found {
    pub(super) fn config(&self) -> Option<&Config> {
        match self {
            Self::Config(config) => Some(config),
            _ => None,
        }
    }
}

/// The row of the set, if it has one.
pub(super) fn read(facts: &Facts) -> Result<Found> {
    let Some((table, is_readable)) = table()? else { return Ok(Found::Nothing) };
    if !is_readable {
        return Ok(Found::Unreadable(table.name.to_string()));
    }
    let QualifiedName { schema, name } = &facts.name;
    // It splits its names at dots, so it knows no table with one in its name.
    if schema.contains('.') || name.contains('.') {
        return Ok(Found::Nothing);
    }
    let parent = format!("{schema}.{name}");
    let columns = columns(table.oid)?;
    // Versions differ in their columns. One that is not there, or has another type, is read as null.
    let column = |name: &str, type_name: &str| match columns.get(name) {
        Some(found) if found == type_name => format!("c.{}::pg_catalog.{type_name}", tally_core::ident::quote(name)),
        _ => format!("NULL::pg_catalog.{type_name}"),
    };
    let wanted = [
        ("partition_interval", "text"),
        ("premake", "int4"),
        ("retention", "text"),
        ("retention_schema", "text"),
        ("retention_keep_table", "bool"),
        ("automatic_maintenance", "text"),
        ("infinite_time_partitions", "bool"),
        ("undo_in_progress", "bool"),
        ("constraint_cols", "_text"),
        ("template_table", "text"),
    ];
    let list: Vec<String> = wanted.iter().map(|(name, type_name)| column(name, type_name)).collect();
    let statement = format!(
        "SELECT {} FROM {} c WHERE {} OPERATOR(pg_catalog.=) $1",
        list.join(", "),
        table.name,
        column("parent_table", "text")
    );
    let found = rows(&statement, &[parent.as_str().into()], |row| {
        Ok(Config {
            table: table.name.to_string(),
            parent: parent.clone(),
            partition_interval: row.get(1)?,
            premake: row.get(2)?,
            retention: row.get(3)?,
            retention_schema: row.get(4)?,
            retention_keep_table: row.get(5)?,
            automatic_maintenance: row.get(6)?,
            infinite_time_partitions: row.get(7)?,
            undo_in_progress: row.get(8)?,
            constraint_columns: row.get::<Vec<Option<String>>>(9)?.unwrap_or_default().into_iter().flatten().collect(),
            template_table: row.get(10)?,
            template_indexes: vec![],
        })
    })?;
    let Some(mut config) = found.into_iter().next() else { return Ok(Found::Nothing) };
    if let Some(template) = &config.template_table {
        config.template_indexes = template_indexes(template, facts.oid)?;
    }
    Ok(Found::Config(Box::new(config)))
}

struct Table {
    oid: Oid,
    name: QualifiedName,
}

/// The table of settings, wherever the extension is installed, and whether the caller may read it.
fn table() -> Result<Option<(Table, bool)>> {
    rows(
        "SELECT c.oid, n.nspname::text, c.relname::text, \
                pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND pg_catalog.has_table_privilege(c.oid, 'SELECT') \
         FROM pg_catalog.pg_extension e \
         JOIN pg_catalog.pg_depend d ON d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_extension'::pg_catalog.regclass \
          AND d.refobjid OPERATOR(pg_catalog.=) e.oid AND d.deptype OPERATOR(pg_catalog.=) 'e' \
          AND d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass \
         JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) d.objid AND c.relkind OPERATOR(pg_catalog.=) 'r' \
          AND c.relname OPERATOR(pg_catalog.=) 'part_config' \
         JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace \
         WHERE e.extname OPERATOR(pg_catalog.=) 'pg_partman'",
        &[],
        |row| {
            let oid = row.get::<Oid>(1)?.unwrap_or(Oid::INVALID);
            Ok((Table { oid, name: QualifiedName::new(text(row, 2)?, text(row, 3)?) }, flag(row, 4)?))
        },
    )
    .map(|mut found| found.pop())
}

/// The columns by name, each with the name of its type: those of types of PostgreSQL's own, for which no function of a user is called.
fn columns(table: Oid) -> Result<HashMap<String, String>> {
    rows(
        "SELECT a.attname::text, t.typname::text FROM pg_catalog.pg_attribute a \
         JOIN pg_catalog.pg_type t ON t.oid OPERATOR(pg_catalog.=) a.atttypid \
          AND t.typnamespace OPERATOR(pg_catalog.=) 'pg_catalog'::pg_catalog.regnamespace \
         WHERE a.attrelid OPERATOR(pg_catalog.=) $1 AND a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped",
        &[table.into()],
        |row| Ok((text(row, 1)?, text(row, 2)?)),
    )
    .map(|found| found.into_iter().collect())
}

/// Indexes of the template on columns that the set has no index on.
fn template_indexes(template: &str, parent: Oid) -> Result<Vec<String>> {
    rows(
        "WITH indexes AS ( \
           SELECT x.indrelid, pg_catalog.quote_ident(c.relname) AS name, x.indisunique, \
                  ARRAY(SELECT COALESCE(a.attname::text, '') \
                        FROM pg_catalog.unnest(x.indkey::pg_catalog.int2[]) WITH ORDINALITY AS k (attribute, place) \
                        LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid OPERATOR(pg_catalog.=) x.indrelid \
                                                           AND a.attnum OPERATOR(pg_catalog.=) k.attribute ORDER BY k.place) AS columns \
           FROM pg_catalog.pg_index x JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) x.indexrelid) \
         SELECT i.name FROM indexes i \
         JOIN pg_catalog.pg_class t ON t.oid OPERATOR(pg_catalog.=) i.indrelid \
         JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) t.relnamespace \
         WHERE pg_catalog.concat(n.nspname, '.', t.relname) OPERATOR(pg_catalog.=) $1 \
           AND NOT EXISTS (SELECT FROM indexes o WHERE o.indrelid OPERATOR(pg_catalog.=) $2 \
                             AND o.indisunique OPERATOR(pg_catalog.=) i.indisunique AND o.columns OPERATOR(pg_catalog.=) i.columns) \
         ORDER BY i.name",
        &[template.into(), parent.into()],
        |row| text(row, 1),
    )
}

/// Reads an interval that pg_partman has stored.
pub(super) fn parse(text: &str) -> Option<Interval> {
    pg::interval(text).map(crate::catalog::partitions::from_sql)
}

/// What whoever has just registered a set should know.
pub(super) fn tell(facts: &Facts, found: &Found, request: &Request) {
    let table = &facts.set.table;
    match found {
        Found::Config(config) => {
            if config.is_automatic() {
                warn(
                    Error::new(
                        "01000",
                        format!("pg_partman still maintains {table}, so two make and remove its partitions"),
                    )
                    .hint(config.switch_off()),
                );
            }
            if config.leaves_retention(request.retention.is_some()) {
                pgrx::notice!(
                    "the retention of pg_partman keeps tables and was not taken over; tally.plan_partition_by_time says more"
                );
            }
        }
        Found::Unreadable(config) if !facts.bounds.is_empty() => pgrx::notice!("{}", unreadable(config, table)),
        _ => {}
    }
}

/// It may be a set of pg_partman.
pub(super) fn unreadable(config: &str, table: &str) -> String {
    format!("you may not read {config}: if pg_partman maintains {table}, have its automatic_maintenance set to 'off'")
}
