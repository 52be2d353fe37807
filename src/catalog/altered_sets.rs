//! `tally.altered_sets`: partition sets whose tables have been altered. Rows are inserted and never changed, so that nobody who alters a
//! table waits for a pass or for somebody else.

use crate::error::{Result, spi};
use crate::pg::{Oid, as_extension_owner};
use pgrx::prelude::*;

/// The sets that one of these tables is the parent of, is a partition of, or was one of.
pub(crate) fn of_tables(tables: &[Oid]) -> Result<Vec<Oid>> {
    super::look_up_again::<Vec<Oid>>(
        "SELECT pg_catalog.array_agg(p.parent::pg_catalog.oid) FROM tally.partition_policies p \
         WHERE p.parent OPERATOR(pg_catalog.=) ANY ($1) \
            OR p.parent IN (SELECT i.inhparent FROM pg_catalog.pg_inherits i WHERE i.inhrelid OPERATOR(pg_catalog.=) ANY ($1)) \
            OR p.parent IN (SELECT r.parent FROM tally.retirements r WHERE r.partition OPERATOR(pg_catalog.=) ANY ($1))",
        &[tables.to_vec().into()],
    )
    .map(Option::unwrap_or_default)
}

/// The tables that the command of an event trigger on `ddl_command_end` has created or altered.
pub(crate) fn altered_tables() -> Result<Vec<Oid>> {
    super::look_up_again::<Vec<Oid>>(
        "SELECT pg_catalog.array_agg(d.objid) FROM pg_catalog.pg_event_trigger_ddl_commands() d \
         WHERE d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass \
           AND EXISTS (SELECT FROM tally.partition_policies)",
        &[],
    )
    .map(Option::unwrap_or_default)
}

/// Notes that this transaction has altered the sets.
pub(crate) fn insert(parents: &[Oid]) -> Result<()> {
    if parents.is_empty() {
        return Ok(());
    }
    as_extension_owner(|| {
        Spi::run_with_args(
            "INSERT INTO tally.altered_sets SELECT s.parent, pg_catalog.pg_current_xact_id() FROM pg_catalog.unnest($1) AS s (parent) \
             ON CONFLICT DO NOTHING",
            &[parents.to_vec().into()],
        )
    })
    .map_err(spi)
}
