//! The table that is to be converted, and everything that may be in the way.

use crate::error::{Error, Result};
use crate::partition::facts::{self, Facts, flag, rows, text};
use crate::pg::{self, Oid};
use tally_core::ident::{QualifiedName, fit, quote};
use tally_core::partition::conversion::{CHECK, Made, Refusal, widened};
use tally_core::partition::{Error as SetRefusal, Key, check, sql};

/// A table with what its conversion needs to know.
pub(super) struct Table {
    pub facts: Facts,
    /// Its column of time, as SQL writes it.
    pub column: String,
    pub key: Key,
    pub is_nullable: bool,
    /// The unique keys that lack the column of time.
    pub narrow: Vec<NarrowKey>,
    pub bytes: i64,
    pub rows: i64,
}

/// A unique key that is replaced by a wider one.
pub(super) struct NarrowKey {
    pub index: QualifiedName,
    /// Its constraint as SQL writes it, with the words that make it one: `PRIMARY KEY` or `UNIQUE`.
    pub constraint: Option<(String, &'static str)>,
    /// `DEFERRABLE` and the like.
    pub timing: String,
    /// The index that takes its place.
    pub wide: QualifiedName,
    /// The statement that builds that one, outside of a transaction block.
    pub build: String,
    pub made: Made,
}

/// Reads a table. What is wrong with it is in the list: without a column of time there is no table to speak of.
pub(super) fn read(oid: Oid, column: &str, widen_keys: bool) -> Result<(Option<Table>, Vec<Error>)> {
    let facts = facts::read(oid)?;
    let mut refusals: Vec<Error> = kind(&facts)?.into_iter().map(Error::from).collect();
    if !refusals.is_empty() {
        return Ok((None, refusals));
    }
    if let Err(refusal) = check::owner(&facts.set) {
        refusals.push(refusal.into());
    }
    let (key, is_nullable) = match time_column(&facts, column)? {
        Ok(found) => found,
        Err(refusal) => return Ok((None, vec![refusal.into()])),
    };
    let narrow = narrow_keys(oid, column)?;
    let mut add = |refusal: Refusal| refusals.push(refusal.into());
    if !widen_keys {
        for key in &narrow {
            let key = key.constraint.as_ref().map_or_else(
                || format!("index {}", quote_ident(&key.index.name)),
                |(name, _)| format!("constraint {name}"),
            );
            add(Refusal::UniqueWithoutTime { table: facts.set.table.clone(), key, column: quote_ident(column) });
        }
    }
    constraints(&facts)?.into_iter().for_each(&mut add);
    dependents(&facts)?.into_iter().for_each(&mut add);
    publications(&facts)?.into_iter().for_each(&mut add);
    let size = rows(
        "SELECT pg_table_size(c.oid::regclass), GREATEST(c.reltuples, 0)::int8 FROM pg_class c WHERE c.oid = $1",
        &[oid.into()],
        |row| Ok((row.get::<i64>(1)?.unwrap_or(0), row.get::<i64>(2)?.unwrap_or(0))),
    )?;
    let (bytes, rows) = size.first().copied().unwrap_or_default();
    Ok((Some(Table { facts, column: quote(column), key, is_nullable, narrow, bytes, rows }), refusals))
}

fn quote_ident(name: &str) -> String {
    let is_plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if is_plain { name.into() } else { quote(name) }
}

/// Whether it is a plain table, by the first reason why not.
fn kind(facts: &Facts) -> Result<Option<Refusal>> {
    let table = facts.set.table.clone();
    let found = match (facts.set.kind, facts.set.persistence) {
        ('p', _) => Some(Refusal::AlreadyPartitioned { table }),
        ('f', _) => Some(Refusal::Foreign { table }),
        (kind, _) if kind != 'r' => Some(Refusal::NotATable { name: table }),
        (_, 't') => Some(Refusal::Temporary { table }),
        (_, 'u') => Some(Refusal::Unlogged { table }),
        _ if facts.set.is_partition => Some(Refusal::IsPartition { table }),
        _ => None,
    };
    if found.is_some() {
        return Ok(found);
    }
    let table = || facts.set.table.clone();
    let more = rows(
        "SELECT c.reloftype <> 0, EXISTS (SELECT FROM pg_inherits i WHERE c.oid IN (i.inhrelid, i.inhparent)), \
                (SELECT quote_ident(e.extname) FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid \
                  WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e' LIMIT 1), \
                n.nspname = 'pg_catalog' OR n.nspname = 'information_schema' \
           FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1",
        &[facts.oid.into()],
        |row| {
            Ok(if flag(row, 1)? {
                Some(Refusal::Typed { table: table() })
            } else if flag(row, 2)? {
                Some(Refusal::Inheritance { table: table() })
            } else if let Some(extension) = row.get::<String>(3)? {
                Some(Refusal::OfExtension { table: table(), extension })
            } else {
                flag(row, 4)?.then(|| Refusal::NotATable { name: table() })
            })
        },
    )?;
    Ok(more.into_iter().flatten().next())
}

fn time_column(facts: &Facts, column: &str) -> Result<std::result::Result<(Key, bool), Refusal>> {
    let found = rows(
        "SELECT a.atttypid, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attgenerated::text <> '' FROM pg_attribute a \
          WHERE a.attrelid = $1 AND a.attname = $2::name AND a.attnum > 0 AND NOT a.attisdropped",
        &[facts.oid.into(), column.into()],
        |row| {
            let key = check::KeyColumn {
                name: quote_ident(column),
                type_oid: row.get::<Oid>(1)?.map_or(0, Oid::to_u32),
                type_name: text(row, 2)?,
                not_null: flag(row, 3)?,
                default_order: true,
            };
            Ok((key, flag(row, 4)?))
        },
    )?;
    let Some((found, is_generated)) = found.into_iter().next() else {
        return Ok(Err(Refusal::NoColumn { table: facts.set.table.clone(), column: quote_ident(column) }));
    };
    let Some(key) = check::key(&found) else {
        return Ok(Err(Refusal::ColumnType { column: found.name, type_name: found.type_name }));
    };
    if is_generated {
        return Ok(Err(Refusal::GeneratedColumn { column: found.name }));
    }
    Ok(Ok((key, !found.not_null)))
}

fn narrow_keys(table: Oid, column: &str) -> Result<Vec<NarrowKey>> {
    let found = rows(
        "SELECT n.nspname::text, i.relname::text, quote_ident(k.conname), k.contype = 'p', \
                CASE WHEN k.condeferred THEN ' DEFERRABLE INITIALLY DEFERRED' WHEN k.condeferrable THEN ' DEFERRABLE' ELSE '' END, \
                pg_get_indexdef(i.oid), quote_ident(i.relname) \
           FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_namespace n ON n.oid = i.relnamespace \
           LEFT JOIN pg_constraint k ON k.conindid = i.oid AND k.conrelid = x.indrelid AND k.contype IN ('p', 'u') \
          WHERE x.indrelid = $1 AND x.indisunique AND x.indisvalid \
            AND NOT EXISTS (SELECT FROM pg_attribute a \
                             WHERE a.attrelid = x.indrelid AND a.attname = $2::name \
                               AND a.attnum = ANY ((x.indkey::int2[])[0:x.indnkeyatts - 1])) \
          ORDER BY x.indisprimary DESC, i.relname",
        &[table.into(), column.into()],
        |row| {
            let index = QualifiedName::new(text(row, 1)?, text(row, 2)?);
            let constraint = row.get::<String>(3)?;
            let words = if flag(row, 4)? { "PRIMARY KEY" } else { "UNIQUE" };
            Ok((index, constraint.map(|name| (name, words)), text(row, 5)?, text(row, 6)?, text(row, 7)?))
        },
    )?;
    let mut keys: Vec<NarrowKey> = vec![];
    for (index, constraint, timing, definition, quoted) in found {
        let wide = QualifiedName::new(&index.schema, wide_name(&index.name, &keys));
        let build = definition
            .strip_prefix(&format!("CREATE UNIQUE INDEX {quoted} "))
            .and_then(|rest| widened(rest, &quote(column)))
            .ok_or_else(|| Error::new("XX000", format!("index {index} is printed in an unknown way")))?;
        let build = format!("CREATE UNIQUE INDEX CONCURRENTLY {} {build}", quote(&wide.name));
        let made = made_index(table, &wide)?;
        keys.push(NarrowKey { index, constraint, timing, wide, build, made });
    }
    Ok(keys)
}

/// The name of the index that takes the place of one. Long names may be equal once they are cut.
fn wide_name(index: &str, others: &[NarrowKey]) -> String {
    let mut number = 1;
    loop {
        let suffix = if number == 1 { "_tally_wide".into() } else { format!("_{number}_tally_wide") };
        let name = fit(index, &suffix);
        if others.iter().all(|other| other.wide.name != name) {
            return name;
        }
        number += 1;
    }
}

/// What is there of an index that the conversion makes.
fn made_index(table: Oid, index: &QualifiedName) -> Result<Made> {
    let found = rows(
        "SELECT x.indisvalid FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_namespace n ON n.oid = i.relnamespace \
          WHERE x.indrelid = $1 AND n.nspname = $2::name AND i.relname = $3::name",
        &[table.into(), index.schema.as_str().into(), index.name.as_str().into()],
        |row| flag(row, 1),
    )?;
    Ok(made(found.first().copied()))
}

/// What is there of the constraint that the conversion makes.
pub(super) fn made_check(table: Oid) -> Result<Made> {
    let found = rows(
        "SELECT k.convalidated FROM pg_constraint k WHERE k.conrelid = $1 AND k.conname = $2::name AND k.contype = 'c'",
        &[table.into(), CHECK.into()],
        |row| flag(row, 1),
    )?;
    Ok(made(found.first().copied()))
}

fn made(is_valid: Option<bool>) -> Made {
    match is_valid {
        None => Made::Missing,
        Some(false) => Made::Invalid,
        Some(true) => Made::Valid,
    }
}

fn constraints(facts: &Facts) -> Result<Vec<Refusal>> {
    let found = rows(
        "SELECT quote_ident(k.conname), k.contype::text, k.convalidated, k.connoinherit FROM pg_constraint k \
          WHERE k.conrelid = $1 AND k.conname <> $2::name AND (k.contype = 'x' OR k.contype IN ('c', 'f') AND \
                (NOT k.convalidated OR k.contype = 'c' AND k.connoinherit)) ORDER BY k.conname",
        &[facts.oid.into(), CHECK.into()],
        |row| {
            let (table, constraint) = (facts.set.table.clone(), text(row, 1)?);
            Ok(match (text(row, 2)?.as_str(), flag(row, 3)?) {
                ("x", _) => Refusal::Exclusion { constraint },
                (_, false) => Refusal::NotValidated { table, constraint },
                _ => Refusal::NoInherit { table, constraint },
            })
        },
    )?;
    let incoming = rows(
        "SELECT quote_ident(k.conname), k.conrelid::regclass::text FROM pg_constraint k \
          WHERE k.confrelid = $1 AND k.contype = 'f' AND k.conparentid = 0 ORDER BY 2, 1",
        &[facts.oid.into()],
        |row| Ok(Refusal::IncomingForeignKey { constraint: text(row, 1)?, from: text(row, 2)? }),
    )?;
    let transitions = rows(
        "SELECT quote_ident(t.tgname) FROM pg_trigger t WHERE t.tgrelid = $1 AND NOT t.tgisinternal AND t.tgtype & 1 = 1 \
            AND (t.tgoldtable IS NOT NULL OR t.tgnewtable IS NOT NULL) ORDER BY 1",
        &[facts.oid.into()],
        |row| Ok(Refusal::TransitionTable { trigger: text(row, 1)? }),
    )?;
    Ok([found, incoming, transitions].into_iter().flatten().collect())
}

/// Whatever depends on the table or on its row type, but for what the swap takes along.
pub(super) fn dependents(facts: &Facts) -> Result<Vec<Refusal>> {
    let table = || facts.set.table.clone();
    let mut found = rows(
        "SELECT DISTINCT v.relkind::text, v.oid::regclass::text, v.relowner = $2, quote_ident(pg_get_userbyid(v.relowner)) \
           FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid JOIN pg_class v ON v.oid = r.ev_class \
          WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = $1 AND v.oid <> $1 \
          ORDER BY 2",
        &[facts.oid.into(), facts.owner.into()],
        |row| {
            let view = text(row, 2)?;
            Ok(match (text(row, 1)?.as_str(), flag(row, 3)?) {
                ("v", true) => None,
                ("v", false) => Some(Refusal::ViewOfOther { view, owner: text(row, 4)? }),
                ("m", _) => Some(Refusal::MaterializedView { view }),
                _ => Some(Refusal::Dependent { table: table(), by: format!("a rule of table {view}") }),
            })
        },
    )?;
    found.extend(rows(
        "SELECT DISTINCT pg_describe_object(d.classid, d.objid, d.objsubid) FROM pg_depend d JOIN pg_class c ON c.oid = $1 \
          WHERE d.refclassid = 'pg_type'::regclass \
            AND d.refobjid IN (c.reltype, (SELECT y.typarray FROM pg_type y WHERE y.oid = c.reltype)) \
            AND NOT (d.classid = 'pg_type'::regclass AND d.objid = (SELECT y.typarray FROM pg_type y WHERE y.oid = c.reltype)) \
            AND NOT (d.classid = 'pg_class'::regclass AND d.objid = c.oid) ORDER BY 1",
        &[facts.oid.into()],
        |row| Ok(Some(Refusal::RowTypeUsed { table: table(), by: text(row, 1)? })),
    )?);
    found.extend(rows(
        "SELECT DISTINCT pg_describe_object(d.classid, d.objid, 0) FROM pg_depend d \
           LEFT JOIN pg_policy p ON d.classid = 'pg_policy'::regclass AND p.oid = d.objid \
           LEFT JOIN pg_trigger t ON d.classid = 'pg_trigger'::regclass AND t.oid = d.objid \
          WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = $1 \
            AND (d.classid = 'pg_proc'::regclass OR p.polrelid <> $1 OR t.tgrelid <> $1 AND NOT t.tgisinternal) ORDER BY 1",
        &[facts.oid.into()],
        |row| Ok(Some(Refusal::Dependent { table: table(), by: text(row, 1)? })),
    )?);
    // A view that groups by a key which is replaced.
    found.extend(rows(
        "SELECT DISTINCT pg_describe_object('pg_class'::regclass, r.ev_class, 0) FROM pg_constraint k \
           JOIN pg_depend d ON d.refclassid = 'pg_constraint'::regclass AND d.refobjid = k.oid AND d.classid = 'pg_rewrite'::regclass \
           JOIN pg_rewrite r ON r.oid = d.objid WHERE k.conrelid = $1 ORDER BY 1",
        &[facts.oid.into()],
        |row| Ok(Some(Refusal::Dependent { table: table(), by: format!("{} (on its primary key)", text(row, 1)?) })),
    )?);
    Ok(found.into_iter().flatten().collect())
}

fn publications(facts: &Facts) -> Result<Vec<Refusal>> {
    let mut found =
        rows("SELECT 1 FROM pg_subscription_rel r WHERE r.srrelid = $1 LIMIT 1", &[facts.oid.into()], |_| {
            Ok(Refusal::Subscribed { table: facts.set.table.clone() })
        })?;
    found.extend(rows(
        "SELECT quote_ident(p.pubname), quote_ident(pg_get_userbyid(p.pubowner)), p.pubviaroot \
           FROM pg_publication p LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = $1 \
          WHERE r.oid IS NOT NULL AND NOT (p.pubviaroot AND pg_has_role($2, p.pubowner, 'USAGE')) \
             OR NOT p.pubviaroot AND (p.puballtables OR EXISTS (SELECT FROM pg_publication_namespace n JOIN pg_class c ON c.oid = $1 \
                                                                WHERE n.pnpubid = p.oid AND n.pnnspid = c.relnamespace)) \
          ORDER BY p.pubname",
        &[facts.oid.into(), facts.owner.into()],
        |row| {
            let publication = text(row, 1)?;
            Ok(if flag(row, 3)? {
                Refusal::PublicationOfOther { publication, owner: text(row, 2)? }
            } else {
                Refusal::PublicationOfLeaves { publication }
            })
        },
    )?);
    Ok(found)
}

/// Small tables are looked through before anything is done; in a large one without an index the validation finds out.
const SMALL: i64 = 1 << 28;

impl Table {
    /// Rows that cannot be in the partition.
    pub fn misplaced(&self, boundary: &str) -> Result<Vec<Refusal>> {
        let bare = self.column.trim_matches('"').replace("\"\"", "\"");
        let can_look = rows(
            "SELECT NOT c.relforcerowsecurity AND ($3 OR EXISTS (SELECT FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid \
                      JOIN pg_am m ON m.oid = i.relam AND m.amname = 'btree' \
                      JOIN pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = x.indkey[0] AND a.attname = $2::name \
                     WHERE x.indrelid = c.oid AND x.indisvalid AND x.indpred IS NULL)) FROM pg_class c WHERE c.oid = $1",
            &[self.facts.oid.into(), bare.as_str().into(), (self.bytes <= SMALL).into()],
            |row| flag(row, 1),
        )?;
        if can_look.first() != Some(&true) {
            return Ok(vec![]);
        }
        let (name, column) = (&self.facts.name, &self.column);
        let query = format!(
            "SELECT EXISTS (SELECT FROM ONLY {name} WHERE {column} IS NULL), EXISTS (SELECT FROM ONLY {name} WHERE {column} >= {boundary})"
        );
        let found = pg::as_user(self.facts.owner, || rows(&query, &[], |row| Ok((flag(row, 1)?, flag(row, 2)?))))?;
        let (nulls, late) = found.first().copied().unwrap_or_default();
        let (table, column) = (self.facts.set.table.clone(), quote_ident(&bare));
        let boundary = boundary.trim_matches('\'').to_owned();
        Ok([
            nulls.then(|| Refusal::NullTimes { table: table.clone(), column: column.clone() }),
            late.then_some(Refusal::LateTimes { table, column, boundary }),
        ]
        .into_iter()
        .flatten()
        .collect())
    }

    /// The statement that adds the constraint.
    pub fn add_check(&self, boundary: tally_core::bucket::Timestamp) -> String {
        format!(
            "ALTER TABLE {} ADD CONSTRAINT {CHECK} CHECK ({column} IS NOT NULL AND {column} < {}) NOT VALID",
            self.facts.name,
            typed_bound(self.key, boundary),
            column = self.column
        )
    }

    /// What the swap has to lock: the table, the views on it, and the other side of its foreign keys.
    pub fn locked_by_swap(&self) -> Result<Vec<Oid>> {
        let mut oids: Vec<Oid> = views(self.facts.oid)?.into_iter().map(|(view, _)| view).collect();
        oids.extend(facts::connected_tables(self.facts.oid)?.into_iter().map(|(table, _)| table));
        oids.sort_by_key(|oid| oid.to_u32());
        oids.insert(0, self.facts.oid);
        Ok(oids)
    }
}

/// A bound with its type, for expressions.
pub(super) fn typed_bound(key: Key, at: tally_core::bucket::Timestamp) -> String {
    let name = match key {
        Key::Instant => "timestamptz",
        Key::WallClock => "timestamp",
        Key::Date => "date",
    };
    format!("{name} {}", sql::bound(key, at))
}

/// The views that read the table itself.
pub(super) fn views(table: Oid) -> Result<Vec<(Oid, String)>> {
    rows(
        "SELECT DISTINCT v.oid, v.oid::regclass::text FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid \
           JOIN pg_class v ON v.oid = r.ev_class AND v.relkind = 'v' \
          WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = $1 ORDER BY v.oid",
        &[table.into()],
        |row| Ok((row.get::<Oid>(1)?.unwrap_or(Oid::INVALID), text(row, 2)?)),
    )
}

pub(super) fn require_owned(facts: &Facts) -> Result<()> {
    if facts.owned { Ok(()) } else { Err(SetRefusal::NotOwner { table: facts.set.table.clone() }.into()) }
}
