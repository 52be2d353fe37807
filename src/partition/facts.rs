//! What the catalogs say about a set. One fixed statement per question; names come back written as SQL writes them, because the
//! functions that lead here have an empty search_path.

use super::locks::Wanted;
use crate::error::{Error, Result, spi};
use crate::pg::relation::Mode;
use crate::pg::{self, Bounds, Oid, TimeZone};
use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::spi::{SpiHeapTupleData, SpiResult};
use tally_core::bucket::Timestamp;
use tally_core::ident::QualifiedName;
use tally_core::partition::check::{self, KeyColumn, Member};
use tally_core::partition::{Error as Refusal, Key, Partition};

/// A table that may be a partition set.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub oid: Oid,
    pub name: QualifiedName,
    pub owner: Oid,
    pub owner_name: String,
    /// May the current user do what the owner may?
    pub owned: bool,
    pub set: check::Set,
    /// In order of time.
    pub bounds: Vec<Bounds>,
}

/// All rows of a query.
pub(super) fn rows<T>(
    statement: &str,
    arguments: &[DatumWithOid<'_>],
    mut read: impl FnMut(&SpiHeapTupleData<'_>) -> SpiResult<T>,
) -> Result<Vec<T>> {
    Spi::connect(|client| {
        let mut found = Vec::new();
        for row in client.select(statement, None, arguments)? {
            found.push(read(&row)?);
        }
        Ok(found)
    })
    .map_err(spi)
}

pub(super) fn text(row: &SpiHeapTupleData<'_>, column: usize) -> SpiResult<String> {
    Ok(row.get::<String>(column)?.unwrap_or_default())
}

pub(super) fn flag(row: &SpiHeapTupleData<'_>, column: usize) -> SpiResult<bool> {
    Ok(row.get::<bool>(column)?.unwrap_or(false))
}

fn letter(row: &SpiHeapTupleData<'_>, column: usize) -> SpiResult<Option<char>> {
    Ok(row.get::<String>(column)?.and_then(|text| text.chars().next()))
}

/// Reads everything that the checks need.
pub(super) fn read(parent: Oid) -> Result<Facts> {
    let mut found = rows(
        "SELECT n.nspname::text, c.relname::text, c.relowner, r.rolname::text, pg_catalog.pg_has_role(c.relowner, 'USAGE'), \
                c.oid::pg_catalog.regclass::text, c.relkind::text, c.relpersistence::text, c.relispartition, p.partstrat::text, \
                pg_catalog.quote_ident(n.nspname), pg_catalog.quote_ident(r.rolname), \
                pg_catalog.has_schema_privilege(c.relowner, n.oid, 'CREATE'), \
                r.rolcanlogin OR pg_catalog.current_setting('server_version_num')::pg_catalog.int4 OPERATOR(pg_catalog.>=) 170000, \
                CASE WHEN p.partdefid OPERATOR(pg_catalog.<>) 0::pg_catalog.oid THEN p.partdefid::pg_catalog.regclass::text END \
         FROM pg_catalog.pg_class c \
         JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace \
         JOIN pg_catalog.pg_roles r ON r.oid OPERATOR(pg_catalog.=) c.relowner \
         LEFT JOIN pg_catalog.pg_partitioned_table p ON p.partrelid OPERATOR(pg_catalog.=) c.oid \
         WHERE c.oid OPERATOR(pg_catalog.=) $1",
        &[parent.into()],
        |row| {
            Ok(Facts {
                oid: parent,
                name: QualifiedName::new(text(row, 1)?, text(row, 2)?),
                owner: row.get::<Oid>(3)?.unwrap_or(Oid::INVALID),
                owner_name: text(row, 4)?,
                owned: flag(row, 5)?,
                set: check::Set {
                    table: text(row, 6)?,
                    kind: letter(row, 7)?.unwrap_or('?'),
                    persistence: letter(row, 8)?.unwrap_or('?'),
                    is_partition: flag(row, 9)?,
                    strategy: letter(row, 10)?,
                    key: Vec::new(),
                    default: row.get::<String>(15)?,
                    members: Vec::new(),
                    schema: text(row, 11)?,
                    owner: text(row, 12)?,
                    owner_may_create: flag(row, 13)?,
                    owner_may_log_in: flag(row, 14)?,
                },
                bounds: Vec::new(),
            })
        },
    )?;
    let Some(mut facts) = found.pop() else {
        return Err(Error::new("42P01", format!("relation with OID {} does not exist", parent.to_u32())));
    };
    facts.set.key = key_columns(parent)?;
    if facts.set.strategy == Some('r')
        && let [Some(column)] = facts.set.key.as_slice()
        && let Some(key) = check::key(column)
    {
        facts.bounds = pg::range_partitions(parent, key);
        facts.set.members = members(&facts.bounds)?;
    }
    Ok(facts)
}

fn key_columns(parent: Oid) -> Result<Vec<Option<KeyColumn>>> {
    rows(
        "SELECT pg_catalog.quote_ident(a.attname), a.atttypid, pg_catalog.format_type(a.atttypid, a.atttypmod), a.attnotnull, \
                o.opcdefault \
         FROM pg_catalog.pg_partitioned_table p \
         CROSS JOIN LATERAL ROWS FROM (pg_catalog.unnest(p.partattrs::pg_catalog.int2[]), \
                                       pg_catalog.unnest(p.partclass::pg_catalog.oid[])) \
                            WITH ORDINALITY AS k (attribute, operator_class, place) \
         LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid OPERATOR(pg_catalog.=) p.partrelid \
                                            AND a.attnum OPERATOR(pg_catalog.=) k.attribute \
         LEFT JOIN pg_catalog.pg_opclass o ON o.oid OPERATOR(pg_catalog.=) k.operator_class \
         WHERE p.partrelid OPERATOR(pg_catalog.=) $1 ORDER BY k.place",
        &[parent.into()],
        |row| {
            let Some(name) = row.get::<String>(1)? else { return Ok(None) };
            Ok(Some(KeyColumn {
                name,
                type_oid: row.get::<Oid>(2)?.map_or(0, Oid::to_u32),
                type_name: text(row, 3)?,
                not_null: flag(row, 4)?,
                default_order: flag(row, 5)?,
            }))
        },
    )
}

/// The type of the key of a table that has been checked before.
pub(super) fn key(facts: &Facts) -> Option<Key> {
    match facts.set.key.as_slice() {
        [Some(column)] => check::key(column),
        _ => None,
    }
}

/// May the current user see how the set is doing: as its owner, as one who watches servers, or as one who writes or reads it?
pub(super) fn is_visible(parent: Oid) -> Result<bool> {
    rows(
        "SELECT pg_catalog.pg_has_role(c.relowner, 'MEMBER') OR pg_catalog.pg_has_role('pg_monitor', 'USAGE') \
             OR pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE') \
             OR pg_catalog.has_table_privilege(c.oid, 'SELECT, INSERT') \
         FROM pg_catalog.pg_class c WHERE c.oid OPERATOR(pg_catalog.=) $1",
        &[parent.into()],
        |row| flag(row, 1),
    )
    .map(|found| found.first().copied().unwrap_or(false))
}

/// The partitions that core has to look at: those that are no plain tables, and the last one.
fn members(bounds: &[Bounds]) -> Result<Vec<Member>> {
    let last = bounds.last().map_or(Timestamp::NEG_INFINITY, |last| last.range.upper);
    let count = i64::try_from(bounds.len()).unwrap_or(i64::MAX);
    rows(
        "SELECT c.oid::pg_catalog.regclass::text, c.relkind::text, m.place \
         FROM pg_catalog.unnest($1) WITH ORDINALITY AS m (oid, place) \
         JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) m.oid \
         WHERE c.relkind OPERATOR(pg_catalog.<>) 'r' OR m.place OPERATOR(pg_catalog.=) $2 ORDER BY m.place",
        &[oids(bounds.iter()), count.into()],
        |row| {
            let upper = if row.get::<i64>(3)? == Some(count) { last } else { Timestamp::NEG_INFINITY };
            Ok(Member { name: text(row, 1)?, kind: letter(row, 2)?.unwrap_or('?'), upper })
        },
    )
}

pub(super) fn oids<'a>(bounds: impl Iterator<Item = &'a Bounds>) -> DatumWithOid<'static> {
    bounds.map(|bounds| bounds.partition).collect::<Vec<Oid>>().into()
}

/// The partitions for core. Which of those ahead of the clock are in use is seen from statistics, without a lock: rows that are
/// there since the last crash, or pages found by VACUUM or ANALYZE. Rows that were deleted are none, or nothing but DROP would
/// undo a row of 2097. Too small an answer only means that the target follows the clock alone.
pub(super) fn partitions(bounds: &[Bounds], now: Timestamp) -> Result<Vec<Partition>> {
    let used: std::collections::HashSet<Oid> = rows(
        "SELECT c.oid FROM pg_catalog.pg_class c \
         WHERE c.oid OPERATOR(pg_catalog.=) ANY ($1) \
           AND (c.relpages OPERATOR(pg_catalog.>) 0 OR pg_catalog.pg_stat_get_live_tuples(c.oid) OPERATOR(pg_catalog.>) 0)",
        &[oids(bounds.iter().filter(|bounds| bounds.range.lower > now))],
        |row| Ok(row.get::<Oid>(1)?.unwrap_or(Oid::INVALID)),
    )?
    .into_iter()
    .collect();
    Ok(bounds.iter().map(|bounds| Partition { range: bounds.range, used: used.contains(&bounds.partition) }).collect())
}

/// The partition whose DETACH CONCURRENTLY was interrupted; there is at most one.
pub(super) fn pending(parent: Oid) -> Result<Option<String>> {
    rows(
        "SELECT i.inhrelid::pg_catalog.regclass::text FROM pg_catalog.pg_inherits i \
         WHERE i.inhparent OPERATOR(pg_catalog.=) $1 AND i.inhdetachpending",
        &[parent.into()],
        |row| text(row, 1),
    )
    .map(|mut found| found.pop())
}

/// The tables that foreign keys connect to the set, in the order of their OIDs, in which everybody locks them.
pub(super) fn connected_tables(parent: Oid) -> Result<Vec<(Oid, String)>> {
    rows(
        "SELECT o.oid, o.oid::pg_catalog.regclass::text FROM ( \
           SELECT k.confrelid FROM pg_catalog.pg_constraint k \
           WHERE k.conrelid OPERATOR(pg_catalog.=) $1 AND k.contype OPERATOR(pg_catalog.=) 'f' \
           UNION SELECT k.conrelid FROM pg_catalog.pg_constraint k \
           WHERE k.confrelid OPERATOR(pg_catalog.=) $1 AND k.contype OPERATOR(pg_catalog.=) 'f') AS o (oid) \
         WHERE o.oid OPERATOR(pg_catalog.<>) $1 ORDER BY o.oid",
        &[parent.into()],
        |row| Ok((row.get::<Oid>(1)?.unwrap_or(Oid::INVALID), text(row, 2)?)),
    )
}

/// The locks that the second phase of DETACH CONCURRENTLY, or FINALIZE, takes on tables that foreign keys connect to the set: those that
/// refer to it are locked against everybody.
pub(super) fn locks_of_detach(parent: Oid) -> Result<Vec<Wanted>> {
    rows(
        "SELECT o.oid, pg_catalog.bool_or(o.refers) FROM ( \
           SELECT k.confrelid, false FROM pg_catalog.pg_constraint k \
           WHERE k.conrelid OPERATOR(pg_catalog.=) $1 AND k.contype OPERATOR(pg_catalog.=) 'f' \
           UNION ALL SELECT k.conrelid, true FROM pg_catalog.pg_constraint k \
           WHERE k.confrelid OPERATOR(pg_catalog.=) $1 AND k.contype OPERATOR(pg_catalog.=) 'f') AS o (oid, refers) \
         WHERE o.oid OPERATOR(pg_catalog.<>) $1 GROUP BY o.oid ORDER BY o.oid",
        &[parent.into()],
        |row| {
            let mode = if flag(row, 2)? { Mode::AccessExclusive } else { Mode::ShareRowExclusive };
            Ok((row.get::<Oid>(1)?.unwrap_or(Oid::INVALID), mode))
        },
    )
}

/// The locks that ATTACH of this table takes on tables that foreign keys connect to the set: those that the table has a key to are locked
/// against everybody, because it becomes a part of the key of the set.
pub(super) fn locks_of_attach(parent: Oid, table: Oid) -> Result<Vec<Wanted>> {
    let has_key = "SELECT k.confrelid FROM pg_catalog.pg_constraint k \
                   WHERE k.conrelid OPERATOR(pg_catalog.=) $1 AND k.contype OPERATOR(pg_catalog.=) 'f'";
    let own = rows(has_key, &[table.into()], |row| Ok(row.get::<Oid>(1)?.unwrap_or(Oid::INVALID)))?;
    let mode = |other| if own.contains(&other) { Mode::AccessExclusive } else { Mode::ShareRowExclusive };
    Ok(connected_tables(parent)?.into_iter().map(|(other, _)| (other, mode(other))).collect())
}

/// How many partitions one transaction can make: each table and index stays in the lock table until the commit.
pub(super) fn partitions_per_transaction(parent: Oid) -> Result<usize> {
    let indexes = rows(
        "SELECT pg_catalog.count(*) FROM pg_catalog.pg_index x WHERE x.indrelid OPERATOR(pg_catalog.=) $1",
        &[parent.into()],
        |row| Ok(row.get::<i64>(1)?.unwrap_or(0)),
    )?;
    let each = 3 + indexes.first().map_or(0, |indexes| (*indexes).max(0) as usize);
    Ok((locks_per_transaction()? / each).max(1))
}

/// How many locks one transaction may hold for long: half of the lock table is left to others.
pub(super) fn locks_per_transaction() -> Result<usize> {
    let fit = rows(
        "SELECT pg_catalog.current_setting('max_locks_per_transaction')::pg_catalog.int8 \
                OPERATOR(pg_catalog.*) (pg_catalog.current_setting('max_connections')::pg_catalog.int8 \
                  OPERATOR(pg_catalog.+) pg_catalog.current_setting('max_prepared_transactions')::pg_catalog.int8) OPERATOR(pg_catalog./) 2",
        &[],
        |row| Ok(row.get::<i64>(1)?.unwrap_or(0)),
    )?;
    Ok(fit.first().map_or(0, |fit| (*fit).max(0) as usize))
}

/// The name of a time zone as pg_timezone_names writes it. One that is an abbreviation, too, is refused if its clock ever changes: `CET`
/// has summer time as a zone and none in `AT TIME ZONE`.
pub(super) fn time_zone(name: &str) -> Result<String> {
    let found = rows(
        "SELECT z.name, EXISTS (SELECT FROM pg_catalog.pg_timezone_abbrevs a \
                                WHERE pg_catalog.lower(a.abbrev) OPERATOR(pg_catalog.=) pg_catalog.lower($1)) \
         FROM pg_catalog.pg_timezone_names z \
         WHERE pg_catalog.lower(z.name) OPERATOR(pg_catalog.=) pg_catalog.lower($1) LIMIT 1",
        &[name.into()],
        |row| Ok((text(row, 1)?, flag(row, 2)?)),
    )?;
    match found.into_iter().next() {
        Some((name, true)) if TimeZone::named(&name).is_some_and(|zone| zone.changes()) => {
            Err(Refusal::AmbiguousTimeZone { name }.into())
        }
        Some((name, _)) => Ok(name),
        None => Err(Refusal::TimeZone { name: name.to_owned() }.into()),
    }
}
