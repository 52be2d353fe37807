//! Jobs: pieces of work that run again and again, for one object each. The objects' own modules ask for them here; the
//! workers carry them out.

use crate::error::Result;
use crate::pg::Oid;
use std::time::Duration;

/// What a job does to its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A tick of the source table.
    Refresh,
    /// Making partitions of the parent ahead of the clock.
    Premake,
}

/// Makes sure that a job of this kind exists for the object and runs at least once every `every`.
pub(crate) fn schedule(_kind: Kind, _object: Oid, _every: Duration) -> Result<()> {
    Ok(())
}

/// Forgets the job, if there is one.
pub(crate) fn unschedule(_kind: Kind, _object: Oid) -> Result<()> {
    Ok(())
}
