//! Rows that come or go without a row trigger: TRUNCATE, and partitions that bring rows along.

use crate::catalog::{self, rollups, sources};
use crate::error::{Error, Result, spi};
use crate::pg::{self, Oid, Snapshot};
use crate::tags;
use pgrx::prelude::*;
use tally_core::ident::quote;
use tally_core::rollup::definition::{SIGN, TAG, WRITER};
use tally_core::rollup::sql;
use tally_core::snapshot;

/// A table is about to be truncated. With a whole source its rollups become empty at once, as the table does; of a partition
/// every row is logged.
pub(crate) fn follow_truncate(table: Oid) -> Result<()> {
    let _settings = pg::pin_settings();
    let now = Snapshot::latest();
    if now.read(|| sources::is_source(table))? {
        let stored = now.read(|| rollups::of_source(table))?.into_iter().map(|rollup| rollup.stored);
        let log = now.read(|| sources::log_of(table))?;
        let emptied: Vec<String> = stored
            .chain(log)
            .map(|relation| catalog::name_of(relation).map(|name| name.to_string()))
            .collect::<Result<_>>()?;
        let owner = pg::owner_of(table).ok_or_else(|| Error::new("42P01", "the table does not exist"))?;
        return pg::as_user(owner, || Spi::run(&format!("TRUNCATE {}", emptied.join(", ")))).map_err(spi);
    }
    if is_any_stored(table, &now)? { log_rows(table, -1, &now) } else { Ok(()) }
}

/// Has any rollup of the source of this partition a group? When a source is truncated, its partitions come after it.
fn is_any_stored(partition: Oid, now: &Snapshot) -> Result<bool> {
    let Some(source) = now.read(|| sources::source_of(partition))? else { return Ok(false) };
    let owner = pg::owner_of(source).ok_or_else(|| Error::new("42P01", "the source does not exist"))?;
    for rollup in now.read(|| rollups::of_source(source))? {
        let statement = format!("SELECT EXISTS (SELECT FROM {})", catalog::name_of(rollup.stored)?);
        if pg::as_user(owner, || now.is_there(&statement))? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A partition has come to a source, with rows that no trigger has seen.
fn follow_attach(partition: Oid) -> Result<()> {
    catalog::require_owner(partition)?;
    let _settings = pg::pin_settings();
    let now = Snapshot::latest();
    let name = catalog::name_of(partition)?;
    let next = snapshot::tag(tags::incarnation()?.number.cast_unsigned(), pg::next_xid())?;
    if now.is_there(&sql::has_row_from_the_future(&name, next))? {
        return Err(snapshot::Error::CopiedFromTheFuture { source: name.to_string() }.into());
    }
    log_rows(partition, 1, &now)
}

/// Logs every row of a partition itself, without its own partitions. The caller's statement holds a lock that keeps writers out.
fn log_rows(partition: Oid, sign: i16, now: &Snapshot) -> Result<()> {
    let Some(log) = now.read(|| sources::log_of(partition))? else { return Ok(()) };
    let (name, log_name) = (catalog::name_of(partition)?, catalog::name_of(log)?);
    let owner = pg::owner_of(log).ok_or_else(|| Error::new("42P01", format!("{log_name} does not exist")))?;
    let columns: Vec<String> = now.read(|| tags::log_columns(log))?.iter().map(|column| quote(column)).collect();
    let list = |alias: &str| columns.iter().map(|column| format!(", {alias}{column}")).collect::<String>();
    let statement = format!(
        "INSERT INTO {log_name} ({WRITER}, {TAG}, {SIGN}{}) \
         SELECT tally.row_tag(), r.{TAG}, {sign}{} FROM ONLY {name} AS r",
        list(""),
        list("r.")
    );
    pg::as_user(owner, || now.execute::<0>(&statement))?;
    Ok(())
}

#[pg_extern(sql = false)]
fn tally_follow_attach(partition: Oid) -> std::result::Result<(), pgrx::pg_sys::panic::ErrorReport> {
    Ok(follow_attach(partition)?)
}
