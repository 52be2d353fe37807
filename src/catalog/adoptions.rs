//! `tally.adoptions`: is this the database in which partition sets were registered, or a copy of it?

use crate::error::{Result, spi};
use crate::pg::{self, as_extension_owner};
use pgrx::prelude::*;

/// What the rows say about this database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Nothing has been registered.
    Unknown,
    Original,
    /// The same database in a new cluster: pg_upgrade.
    Upgraded,
    Copy,
}

pub(crate) fn origin() -> Result<Origin> {
    Spi::connect(|client| {
        let rows = client.select(
            "SELECT a.database OPERATOR(pg_catalog.=) d.oid \
                    AND a.own_table OPERATOR(pg_catalog.=) 'tally.adoptions'::pg_catalog.regclass::pg_catalog.oid, \
                    a.system_identifier OPERATOR(pg_catalog.=) $1, \
                    a.xmin OPERATOR(pg_catalog.=) a.written_by AND b.xmin OPERATOR(pg_catalog.<>) a.written_by \
             FROM tally.adoptions a JOIN pg_catalog.pg_database d ON d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database() \
             LEFT JOIN tally.adoptions b ON b.position OPERATOR(pg_catalog.=) 2 WHERE a.position OPERATOR(pg_catalog.=) 1",
            Some(1),
            &[pg::system_identifier().into()],
        )?;
        if rows.is_empty() {
            return Ok(Origin::Unknown);
        }
        let (has_oids, is_here, is_old) = rows.first().get_three::<bool, bool, bool>()?;
        Ok(match (has_oids.unwrap_or(false), is_here.unwrap_or(false), is_old.unwrap_or(false)) {
            (true, true, _) => Origin::Original,
            // The same OIDs and the very rows: their files have been carried over.
            (true, false, true) => Origin::Upgraded,
            _ => Origin::Copy,
        })
    })
    .map_err(spi)
}

/// Notes that this database is the original from now on. What is recorded by transaction ids of another cluster is dated anew.
pub(crate) fn adopt() -> Result<()> {
    as_extension_owner(|| {
        Spi::run_with_args("SELECT tally._write_adoption($1)", &[pg::system_identifier().into()])?;
        Spi::run("UPDATE tally.retirements SET changed_by = pg_catalog.pg_current_xact_id()")
    })
    .map_err(spi)
}
