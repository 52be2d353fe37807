//! The only code that reads or writes tally's own tables: one file per table below `catalog/`.

pub(crate) mod adoptions;
pub(crate) mod aggregates;
pub(crate) mod altered_sets;
pub(crate) mod builds;
pub(crate) mod conversions;
pub(crate) mod departures;
pub(crate) mod idle_sets;
pub(crate) mod jobs;
pub(crate) mod lock_waits;
pub(crate) mod partition_upkeep;
pub(crate) mod partitions;
pub(crate) mod retirements;
pub(crate) mod rollups;
pub(crate) mod sources;

use crate::error::{Error, Result, no_row_is_none, spi};
use crate::pg::{Kept, Oid, Snapshot};
use pgrx::datum::DatumWithOid;
use pgrx::{FromDatum, IntoDatum, Spi};
use tally_core::ident::{QualifiedName, quote};

/// The first column of the first row that a query answers. By `select` and not by `Spi::get_..`, which would assign a transaction
/// id: that is too much for a look, and impossible on a standby.
pub(crate) fn look_up<T: FromDatum + IntoDatum>(query: &str, arguments: &[DatumWithOid]) -> Result<Option<T>> {
    no_row_is_none(Spi::connect(|client| client.select(query, Some(1), arguments)?.first().get_one::<T>()))
}

/// The same for a text that comes back.
pub(crate) fn look_up_again<T: FromDatum + IntoDatum>(query: &str, arguments: &[DatumWithOid]) -> Result<Option<T>> {
    no_row_is_none(Spi::connect(|client| client.select(Kept(query), Some(1), arguments)?.first().get_one::<T>()))
}

/// Has the table this trigger, not as part of a partitioned table above it?
pub(crate) fn has_trigger(table: Oid, trigger: &str) -> Result<bool> {
    let query = "SELECT EXISTS (SELECT FROM pg_catalog.pg_trigger AS g WHERE g.tgrelid OPERATOR(pg_catalog.=) $1 \
         AND g.tgname OPERATOR(pg_catalog.=) $2::pg_catalog.name AND g.tgparentid OPERATOR(pg_catalog.=) 0::pg_catalog.oid)";
    look_up_again::<bool>(query, &[table.into(), trigger.into()]).map(|found| found == Some(true))
}

/// Drops a trigger if the table has it.
pub(crate) fn drop_trigger(table: Oid, trigger: &str) -> Result<()> {
    if !Snapshot::latest().read(|| has_trigger(table, trigger))? {
        return Ok(());
    }
    Spi::run(&format!("DROP TRIGGER {} ON {}", quote(trigger), name_of(table)?)).map_err(spi)
}

/// The present name of a relation.
pub(crate) fn name_of(relation: Oid) -> Result<QualifiedName> {
    let name = Spi::connect(|client| {
        client
            .select(
                Kept(
                    "SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_class AS c \
                     JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace \
                     WHERE c.oid OPERATOR(pg_catalog.=) $1",
                ),
                Some(1),
                &[relation.into()],
            )?
            .first()
            .get_two::<String, String>()
    });
    match no_row_is_none(name.map(Some))? {
        Some((Some(schema), Some(name))) => Ok(QualifiedName { schema, name }),
        _ => Err(Error::new("42P01", format!("relation with OID {} does not exist", relation.to_u32()))),
    }
}

/// The relation of this name.
pub(crate) fn oid_of(name: &QualifiedName) -> Result<Oid> {
    Spi::get_one_with_args::<Oid>("SELECT $1::pg_catalog.regclass::pg_catalog.oid", &[name.to_string().into()])
        .map_err(spi)?
        .ok_or_else(|| Error::new("42P01", format!("{name} does not exist")))
}

/// Only the owner of a table may have it counted, or change how.
pub(crate) fn require_owner(relation: Oid) -> Result<()> {
    if crate::pg::owns(relation) {
        return Ok(());
    }
    let name = name_of(relation)?;
    Err(Error::new("42501", format!("must be owner of table {name}"))
        .hint("Ask its owner, or a member of the role that owns it."))
}
