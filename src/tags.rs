//! The tag column of a source and its guards; the incarnation of this database.
//!
//! ```text
//!  INSERT, COPY ──> row, tally_tag = row_tag() ──> counted by the first tick whose snapshot sees its transaction committed
//!  UPDATE, DELETE, a copied tag ──> change log ──> the groups concerned are aggregated again by the next tick
//!  INSERT, COPY into a sealed partition (see `seal.rs`) ──> the same
//!  TRUNCATE ──> the same, by a trigger of each table
//! ```

use crate::catalog::sources::State;
use crate::error::{Error, Result, no_row_is_none, spi};
use crate::pg::{self, Kept, Oid};
use crate::seal;
use pgrx::datum::TimestampWithTimeZone;
use pgrx::prelude::*;
use std::time::Duration;
use tally_core::bucket::Timestamp;
use tally_core::ident::{self, QualifiedName};
use tally_core::partition::Key;
use tally_core::rollup::definition::{SIGN, TAG, WRITER};
use tally_core::rollup::sql::PAGES_PER_RANGE;
use tally_core::snapshot::BEFORE_TRACKING;

/// The incarnation of this database.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Incarnation {
    pub number: i16,
    /// False while the row that says so was written by this transaction.
    pub is_committed: bool,
}

/// Finds the incarnation. A database that wakes up in another cluster (restore, pg_upgrade) gets a new one.
pub(crate) fn incarnation() -> Result<Incarnation> {
    let here = pg::system_identifier();
    let newest = Spi::connect(|client| {
        let rows = client.select(
            "SELECT i.id, i.system_identifier FROM tally.incarnations AS i ORDER BY i.id DESC LIMIT 1",
            Some(1),
            &[],
        )?;
        if rows.is_empty() { Ok(None) } else { rows.first().get_two::<i16, i64>().map(Some) }
    })
    .map_err(spi)?;
    let newest_number = match newest {
        Some((Some(number), Some(system))) if system == here => {
            return Ok(Incarnation { number, is_committed: !pg::wrote_incarnation() });
        }
        Some((number, _)) => number.unwrap_or(0),
        None => 0,
    };
    let number = newest_number.checked_add(1).ok_or_else(|| Error::new("54000", "too many incarnations"))?;
    pg::note_incarnation_written();
    // Another session may be about to write the same row, since it is as new here as we are. It is the same incarnation then, and
    // the table takes both: a unique index would have the one wait for the end of the other's transaction.
    pg::as_extension_owner(|| {
        Spi::run_with_args(
            "INSERT INTO tally.incarnations (id, system_identifier) VALUES ($1, $2)",
            &[number.into(), here.into()],
        )
    })
    .map_err(spi)?;
    Ok(Incarnation { number, is_committed: false })
}

#[pg_extern(sql = false)]
fn tally_current_incarnation() -> std::result::Result<i16, pgrx::pg_sys::panic::ErrorReport> {
    Ok(incarnation()?.number)
}

/// How long [`track`] and [`untrack`] go on trying for their locks.
pub(crate) const LOCK_TRIES: u32 = 100;
pub(crate) const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// Locks a table and its partitions against everybody, and returns them. The locks are tried and never queued for: nobody
/// waits behind us.
fn lock_tree(source: Oid, name: &QualifiedName) -> Result<Vec<Oid>> {
    let tree = partition_tree(source)?;
    if pg::try_access_exclusive(&tree, LOCK_TRIES, LOCK_PAUSE) { Ok(tree) } else { Err(busy(name)) }
}

/// A name for the change log of a new source that nothing has yet.
fn free_log_name(source: &QualifiedName) -> Result<QualifiedName> {
    let mut number = 1;
    loop {
        let suffix = if number == 1 { "_changes".into() } else { format!("_changes_{number}") };
        let name = QualifiedName::new(source.schema.clone(), ident::fit(&source.name, &suffix));
        let taken =
            Spi::get_one_with_args::<bool>("SELECT pg_catalog.to_regclass($1) IS NOT NULL", &[name.to_string().into()])
                .map_err(spi)?;
        if taken != Some(true) {
            return Ok(name);
        }
        number += 1;
    }
}

/// Gives a table the tag column, its triggers, its index and its change log, and returns the log.
pub(crate) fn track(source: Oid, name: &QualifiedName) -> Result<Oid> {
    if has_column(source, TAG)? {
        return Err(Error::new("42701", format!("column \"{TAG}\" of {name} already exists")).hint(format!(
            "Rename or drop it: tally needs a column of that name. ALTER TABLE {name} DROP COLUMN {TAG};"
        )));
    }
    let tree = lock_tree(source, name)?;
    refuse_uncountable_partitions(source)?;
    let run = |sql: &str| Spi::run(sql).map_err(spi);
    // The constant becomes the fast default of the rows that are there: no rewrite, and no tick will take them for new.
    run(&format!("ALTER TABLE {name} ADD COLUMN {TAG} bigint NOT NULL DEFAULT {BEFORE_TRACKING}"))?;
    run(&format!("ALTER TABLE {name} ALTER COLUMN {TAG} SET DEFAULT tally.row_tag()"))?;
    let own = "OPERATOR(pg_catalog.<>) tally.row_tag()";
    let guards = [
        ("tally_insert", format!("AFTER INSERT ON {name} FOR EACH ROW WHEN (NEW.{TAG} {own})")),
        (
            "tally_update",
            format!(
                "AFTER UPDATE ON {name} FOR EACH ROW \
                 WHEN (OLD.{TAG} {own} OR NEW.{TAG} OPERATOR(pg_catalog.<>) OLD.{TAG})"
            ),
        ),
        ("tally_delete", format!("AFTER DELETE ON {name} FOR EACH ROW WHEN (OLD.{TAG} {own})")),
    ];
    for (trigger, event) in guards {
        run(&format!("CREATE TRIGGER {trigger} {event} EXECUTE FUNCTION tally._log_change()"))?;
        // Also when session_replication_role is replica: an apply worker must not slip past.
        run(&format!("ALTER TABLE {name} ENABLE ALWAYS TRIGGER {trigger}"))?;
    }
    for relation in tree {
        Spi::run_with_args("SELECT tally._protect_partition($1)", &[relation.into()]).map_err(spi)?;
    }
    run(&format!("COMMENT ON COLUMN {name}.{TAG} IS 'which transaction wrote the row; kept by the extension tally'"))?;
    run(&format!("CREATE INDEX ON {name} USING brin ({TAG}) WITH (pages_per_range = {PAGES_PER_RANGE})"))?;
    let log = free_log_name(name)?;
    // The triggers write to it directly, which is right for a heap without indexes and triggers.
    run(&format!(
        "CREATE TABLE {log} ({WRITER} bigint NOT NULL, {TAG} bigint NOT NULL, {SIGN} smallint NOT NULL) USING heap"
    ))?;
    run(&format!(
        "COMMENT ON TABLE {log} IS {}",
        ident::literal(&format!(
            "changes of counted rows of {name} that no refresh has followed; kept by the extension tally"
        ))
    ))?;
    crate::catalog::oid_of(&log)
}

/// Gives the change log the columns that it lacks. Whoever has changed rows and not ended yet has logged them without these
/// columns, so nobody may have.
pub(crate) fn widen_log(log: Oid, source: &QualifiedName, columns: &[(String, String)]) -> Result<()> {
    let name = crate::catalog::name_of(log)?;
    let mut missing = vec![];
    for (column, declaration) in columns {
        if !has_column(log, column)? {
            missing.push(format!("ADD COLUMN {declaration}"));
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    if !pg::try_access_exclusive(&[log], LOCK_TRIES, LOCK_PAUSE) {
        return Err(busy(source));
    }
    Spi::run(&format!("ALTER TABLE {name} {}", missing.join(", "))).map_err(spi)
}

/// The columns of a change log that hold values of the source.
pub(crate) fn log_columns(log: Oid) -> Result<Vec<String>> {
    Spi::connect(|client| {
        let rows = client.select(
            "SELECT a.attname::text FROM pg_catalog.pg_attribute AS a WHERE a.attrelid OPERATOR(pg_catalog.=) $1 \
             AND a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped \
             AND a.attname OPERATOR(pg_catalog.<>) ALL (ARRAY[$2, $3, $4]::pg_catalog.name[]) ORDER BY a.attnum",
            None,
            &[log.into(), WRITER.into(), TAG.into(), SIGN.into()],
        )?;
        rows.map(|row| row.get::<String>(1).map(Option::unwrap_or_default)).collect::<pgrx::spi::Result<Vec<_>>>()
    })
    .map_err(spi)
}

/// Does a rollup of this table read the column?
pub(crate) fn is_logged(source: Oid, column: &str) -> Result<bool> {
    let log = crate::catalog::sources::log_of(source)?;
    log.map_or(Ok(false), |log| has_column(log, column))
}

/// A column of the source has got another name: its change log follows.
pub(crate) fn follow_rename(source: Oid, old: &str, new: &str) -> Result<()> {
    let Some(log) = crate::catalog::sources::log_of(source)? else { return Ok(()) };
    if !has_column(log, old)? {
        return Ok(());
    }
    let (name, old, new) = (crate::catalog::name_of(log)?, ident::quote(old), ident::quote(new));
    Spi::run(&format!("ALTER TABLE {name} RENAME COLUMN {old} TO {new}")).map_err(spi)
}

/// Takes back what [`track`] has done, as far as it is still there: `pg_restore --clean` drops triggers first.
pub(crate) fn untrack(source: Oid, name: &QualifiedName, log: Oid) -> Result<()> {
    let tree = lock_tree(source, name)?;
    let run = |sql: &str| Spi::run(sql).map_err(spi);
    for trigger in ["tally_insert", "tally_update", "tally_delete"] {
        crate::catalog::drop_trigger(source, trigger)?;
    }
    for relation in tree {
        unprotect(relation)?;
    }
    run(&format!("ALTER TABLE {name} DROP COLUMN IF EXISTS {TAG}"))?;
    match pg::owner_of(log) {
        Some(_) => run(&format!("DROP TABLE {}", crate::catalog::name_of(log)?)),
        None => Ok(()),
    }
}

/// Takes the triggers away that a table has as a partition, and PostgreSQL does not clone.
pub(crate) fn unprotect(partition: Oid) -> Result<()> {
    ["tally_truncate", seal::TRIGGER].iter().try_for_each(|trigger| crate::catalog::drop_trigger(partition, trigger))
}

/// A foreign partition has no tag, and a crash empties an unlogged one.
fn refuse_uncountable_partitions(source: Oid) -> Result<()> {
    let partition = no_row_is_none(Spi::get_one_with_args::<String>(
        "SELECT t.relid::text FROM pg_catalog.pg_partition_tree($1) AS t \
           JOIN pg_catalog.pg_class AS c ON c.oid OPERATOR(pg_catalog.=) t.relid \
          WHERE c.relkind OPERATOR(pg_catalog.=) 'f' OR c.relpersistence OPERATOR(pg_catalog.<>) 'p' LIMIT 1",
        &[source.into()],
    ))?;
    match partition {
        None => Ok(()),
        Some(name) => Err(Error::new("0A000", format!("a rollup cannot read the partition {name}"))
            .detail("It is a foreign or an unlogged table.")
            .hint("Detach it, or replace it by an ordinary, logged table.")),
    }
}

pub(crate) fn busy(name: &QualifiedName) -> Error {
    Error::new("55P03", format!("could not lock {name}"))
        .detail(format!(
            "Transactions that use the table did not end within {:?}. Nothing was changed and nobody had to wait.",
            LOCK_PAUSE * LOCK_TRIES
        ))
        .hint("Find them in pg_stat_activity and pg_prepared_xacts, and try again when they have ended.")
}

/// A column of time.
#[derive(Clone, Debug)]
pub(crate) struct TimeColumn {
    pub name: String,
    pub type_name: String,
    pub is_never_null: bool,
    /// The table is partitioned by it.
    pub is_key: bool,
}

impl TimeColumn {
    /// Do the bounds of its partition say in which range the time of each row lies?
    pub(crate) fn is_bound(&self) -> bool {
        self.is_key && self.is_never_null
    }
}

/// The column of time by which a table is partitioned, or else the one of the given name.
pub(crate) fn time_column(source: Oid, otherwise: Option<&str>) -> Result<Option<TimeColumn>> {
    Spi::connect(|client| {
        let rows = client.select(Kept(
            "SELECT a.attname::text, pg_catalog.format_type(a.atttypid, NULL), a.attnotnull, p.partrelid IS NOT NULL FROM pg_catalog.pg_attribute AS a \
               LEFT JOIN pg_catalog.pg_partitioned_table AS p ON p.partrelid OPERATOR(pg_catalog.=) a.attrelid \
                    AND p.partstrat OPERATOR(pg_catalog.=) 'r' AND p.partnatts OPERATOR(pg_catalog.=) 1 \
                    AND p.partattrs[0] OPERATOR(pg_catalog.=) a.attnum \
              WHERE a.attrelid OPERATOR(pg_catalog.=) $1 AND a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped \
                AND (p.partrelid IS NOT NULL OR a.attname OPERATOR(pg_catalog.=) $2::pg_catalog.name) \
                AND a.atttypid OPERATOR(pg_catalog.=) ANY \
                    (ARRAY['date', 'timestamp', 'timestamptz']::pg_catalog.regtype[]::pg_catalog.oid[]) \
              ORDER BY p.partrelid NULLS LAST LIMIT 1"),
            None,
            &[source.into(), otherwise.into()],
        )?;
        let found = rows.map(|row| {
            Ok(TimeColumn {
                name: row.get(1)?.unwrap_or_default(),
                type_name: row.get(2)?.unwrap_or_default(),
                is_never_null: row.get(3)?.unwrap_or(false),
                is_key: row.get(4)?.unwrap_or(false),
            })
        });
        found.collect::<pgrx::spi::Result<Vec<_>>>()
    })
    .map(|found| found.into_iter().next())
    .map_err(spi)
}

/// An instant as the values of a column by which a table is partitioned: where these have no zone, as the session's clock shows it.
pub(crate) fn key_value(key: Key, at: TimestampWithTimeZone) -> Result<Timestamp> {
    if key == Key::Instant {
        return Ok(Timestamp(at.into_inner()));
    }
    let query = "SELECT pg_catalog.timezone('UTC', $1::timestamp)";
    let shown = Spi::get_one_with_args::<TimestampWithTimeZone>(query, &[at.into()]).map_err(spi)?;
    Ok(shown.map_or(Timestamp::NEG_INFINITY, |shown| Timestamp(shown.into_inner())))
}

/// The table that a partition belongs to.
pub(crate) fn parent(partition: Oid) -> Result<Option<Oid>> {
    no_row_is_none(Spi::connect(|client| {
        let query = "SELECT i.inhparent FROM pg_catalog.pg_inherits AS i \
             JOIN pg_catalog.pg_class AS c ON c.oid OPERATOR(pg_catalog.=) i.inhrelid AND c.relispartition \
            WHERE i.inhrelid OPERATOR(pg_catalog.=) $1";
        client.select(query, Some(1), &[partition.into()])?.first().get_one::<Oid>()
    }))
}

/// The tables below a table that hold rows, or the table itself.
pub(crate) fn leaves(table: Oid) -> Result<Vec<Oid>> {
    Spi::connect(|client| {
        let rows = client.select(
            "SELECT l.relid::pg_catalog.oid FROM pg_catalog.pg_partition_tree($1) AS l WHERE l.isleaf UNION \
             SELECT c.oid FROM pg_catalog.pg_class AS c WHERE c.oid OPERATOR(pg_catalog.=) $1 AND c.relkind OPERATOR(pg_catalog.=) 'r'",
            None,
            &[table.into()],
        )?;
        rows.map(|row| row.get::<Oid>(1).map(|oid| oid.unwrap_or(Oid::INVALID))).collect::<pgrx::spi::Result<Vec<_>>>()
    })
    .map_err(spi)
}

/// Row triggers do not reach the children of a table that has them by INHERITS.
pub(crate) fn has_inheritance_children(source: Oid) -> Result<bool> {
    Spi::get_one_with_args(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_inherits AS i WHERE i.inhparent OPERATOR(pg_catalog.=) $1)",
        &[source.into()],
    )
    .map_err(spi)
    .map(|found| found.unwrap_or(false))
}

pub(crate) fn has_column(table: Oid, column: &str) -> Result<bool> {
    Spi::get_one_with_args(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_attribute AS a WHERE a.attrelid OPERATOR(pg_catalog.=) $1 \
         AND a.attname OPERATOR(pg_catalog.=) $2::pg_catalog.name AND NOT a.attisdropped)",
        &[table.into(), column.into()],
    )
    .map_err(spi)
    .map(|found| found.unwrap_or(false))
}

/// The table and its partitions of every level, parents first.
pub(crate) fn partition_tree(source: Oid) -> Result<Vec<Oid>> {
    Spi::connect(|client| {
        let rows = client.select(
            "SELECT $1::pg_catalog.oid UNION ALL SELECT p.relid::pg_catalog.oid \
             FROM pg_catalog.pg_partition_tree($1) AS p WHERE p.relid OPERATOR(pg_catalog.<>) $1",
            None,
            &[source.into()],
        )?;
        rows.map(|row| row.get::<Oid>(1).map(|oid| oid.unwrap_or(Oid::INVALID))).collect::<pgrx::spi::Result<Vec<_>>>()
    })
    .map_err(spi)
}

/// Refuses a source whose triggers are not what [`track`] and [`seal`] made: changes may have slipped past. Partitions and triggers
/// are looked up in the active snapshot alike (pg_partition_tree() would know a partition that was attached since, and not its
/// triggers). A session looks again when a table has been altered.
pub(crate) fn audit(source: Oid, name: &QualifiedName, state: &State) -> Result<()> {
    if pg::is_unaltered(source, state.sealed_before) {
        return Ok(());
    }
    let query = "WITH RECURSIVE tree (relid) AS (SELECT $1::pg_catalog.oid UNION ALL \
              SELECT i.inhrelid FROM tree AS t JOIN pg_catalog.pg_inherits AS i ON i.inhparent OPERATOR(pg_catalog.=) t.relid) \
         SELECT pg_catalog.format('%s on %s', w.tgname, p.relid::pg_catalog.regclass) FROM tree AS p \
          CROSS JOIN (VALUES ('tally_insert'), ('tally_update'), ('tally_delete'), ('tally_truncate'), ('tally_seal')) AS w (tgname) \
           LEFT JOIN pg_catalog.pg_trigger AS g ON g.tgrelid OPERATOR(pg_catalog.=) p.relid \
                 AND g.tgname OPERATOR(pg_catalog.=) w.tgname::pg_catalog.name \
          WHERE (g.tgenabled IS NULL OR g.tgenabled OPERATOR(pg_catalog.<>) 'A'::\"char\") \
            AND (w.tgname OPERATOR(pg_catalog.<>) 'tally_seal' OR p.relid OPERATOR(pg_catalog.=) ANY ($2)) LIMIT 1";
    let sealed = seal::to_be_sealed(source, state)?;
    let tables = partition_tree(source)?;
    let broken = no_row_is_none(Spi::connect(|client| {
        client.select(query, Some(1), &[source.into(), sealed.into()])?.first().get_one::<String>()
    }))?;
    match broken {
        None => {
            pg::note_unaltered(source, state.sealed_before, tables);
            Ok(())
        }
        Some(trigger) => Err(Error::new("55000", format!("the rollups of {name} can no longer be trusted"))
            .detail(format!("Trigger {trigger} is missing or disabled; changes may have slipped past it."))
            .hint(
                "ALTER TABLE .. ENABLE ALWAYS TRIGGER it again and look at tally.verify(rollup); \
                 if that shows a difference, drop the rollups of the table and create them anew.",
            )),
    }
}
