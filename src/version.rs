//! Everything that writes asks first whether the SQL objects of the database are those of this library.

use crate::catalog;
use crate::error::Result;
use crate::pg;
use tally_core::version::{self, Mismatch};

pub(crate) const LIBRARY: &str = env!("CARGO_PKG_VERSION");

/// How the SQL objects of this database differ from the library.
pub(crate) fn mismatch() -> Result<Option<Mismatch>> {
    let installed = catalog::look_up_again::<String>(
        "SELECT extversion FROM pg_catalog.pg_extension WHERE extname OPERATOR(pg_catalog.=) 'tally'",
        &[],
    )?;
    Ok(installed.and_then(|installed| version::check(LIBRARY, &installed).err()))
}

/// Refuses what writes on a standby, in a read-only transaction, and where the SQL objects are of another version.
pub(crate) fn require_writable() -> Result<()> {
    pg::require_primary()?;
    match mismatch()? {
        Some(mismatch) => Err(mismatch.into()),
        None => Ok(()),
    }
}
