//! `tally.partition_upkeep`: what has been done for partition sets besides making and removing partitions.

use crate::error::{Result, spi};
use crate::pg::{Oid, as_extension_owner};
use pgrx::datum::Timestamp as SqlTimestamp;
use pgrx::prelude::*;
use tally_core::bucket::Timestamp;

/// The end of the last partition whose BRIN indexes have been summarised, in values of the key.
pub(crate) fn summarised_before(parent: Oid) -> Result<Option<Timestamp>> {
    as_extension_owner(|| {
        super::look_up::<SqlTimestamp>(
            "SELECT u.summarised_before FROM tally.partition_upkeep u WHERE u.parent OPERATOR(pg_catalog.=) $1",
            &[parent.into()],
        )
    })
    .map(|before| before.map(|before| Timestamp(before.into())))
}

pub(crate) fn set_summarised_before(parent: Oid, before: Timestamp) -> Result<()> {
    as_extension_owner(|| {
        Spi::run_with_args(
            "INSERT INTO tally.partition_upkeep (parent, summarised_before) VALUES ($1::pg_catalog.oid, $2) \
             ON CONFLICT (parent) DO UPDATE SET summarised_before = excluded.summarised_before",
            &[parent.into(), SqlTimestamp::saturating_from_raw(before.0).into()],
        )
    })
    .map_err(spi)
}

/// Forgets a set.
pub(crate) fn delete(parent: Oid) -> Result<()> {
    as_extension_owner(|| {
        Spi::run_with_args(
            "DELETE FROM tally.partition_upkeep u WHERE u.parent OPERATOR(pg_catalog.=) $1",
            &[parent.into()],
        )
    })
    .map_err(spi)
}
