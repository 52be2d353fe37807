//! Everything that writes asks first whether the SQL objects of the database are those of this library.

use crate::catalog;
use crate::error::Result;
use crate::pg;
use tally_core::version::{self, Mismatch};

pub(crate) const LIBRARY: &str = env!("CARGO_PKG_VERSION");

/// The version of the extension in this database; `None` if it is not there. Objects that only have the right names do not count:
/// anybody could have made them.
pub(crate) fn installed() -> Result<Option<String>> {
    catalog::look_up_again::<String>(
        "SELECT e.extversion
         FROM pg_catalog.pg_extension e
         JOIN pg_catalog.pg_namespace n ON n.nspname OPERATOR(pg_catalog.=) 'tally'
         JOIN pg_catalog.pg_class c ON c.relname OPERATOR(pg_catalog.=) 'jobs' AND c.relnamespace OPERATOR(pg_catalog.=) n.oid
              AND c.relkind OPERATOR(pg_catalog.=) 'r'
         JOIN pg_catalog.pg_depend d ON d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass
              AND d.objid OPERATOR(pg_catalog.=) c.oid AND d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_extension'::pg_catalog.regclass
              AND d.refobjid OPERATOR(pg_catalog.=) e.oid AND d.deptype OPERATOR(pg_catalog.=) 'e'
         WHERE e.extname OPERATOR(pg_catalog.=) 'tally'",
        &[],
    )
}

/// How the SQL objects of this database differ from the library.
pub(crate) fn mismatch() -> Result<Option<Mismatch>> {
    Ok(installed()?.and_then(|installed| version::check(LIBRARY, &installed).err()))
}

/// Refuses what writes on a standby, in a read-only transaction, and where the SQL objects are of another version.
pub(crate) fn require_writable() -> Result<()> {
    pg::require_primary()?;
    match mismatch()? {
        Some(mismatch) => Err(mismatch.into()),
        None => Ok(()),
    }
}
