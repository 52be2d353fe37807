//! Jobs: pieces of work that run again and again, for one object each. The objects' own modules ask for them here; the
//! workers carry them out.

use crate::catalog;
use crate::error::{self, Error, Result};
use crate::pg::Oid;
use std::time::Duration;
use tally_core::ident;

/// What a job does to its object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A tick of the source table.
    #[default]
    Refresh,
    /// Making partitions of the parent ahead of the clock.
    Premake,
    /// Removing partitions of the parent that are older than its retention.
    Retention,
    /// Making a plain table a partitioned one; ends.
    Conversion,
}

impl Kind {
    pub(crate) const ALL: [Kind; 4] = [Kind::Refresh, Kind::Premake, Kind::Retention, Kind::Conversion];

    /// As it is written in `tally.jobs`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Refresh => "refresh",
            Kind::Premake => "premake",
            Kind::Retention => "retention",
            Kind::Conversion => "conversion",
        }
    }

    /// May it wait for others for a long time, so that it has workers apart?
    pub(crate) fn is_patient(self) -> bool {
        matches!(self, Kind::Retention | Kind::Conversion)
    }

    /// How long a run may take, unless its owner says otherwise. Retention waits for reports, a refresh may have a long outage to make
    /// good, and premake makes a few tables at a time.
    pub(crate) fn max_runtime(self) -> Duration {
        const HOUR: Duration = Duration::from_secs(3600);
        match self {
            Kind::Premake => HOUR,
            _ if self.is_patient() => 24 * HOUR,
            _ => 6 * HOUR,
        }
    }

    pub(crate) fn named(name: &str) -> Option<Kind> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// Makes sure that a job of this kind exists for the object and runs at least once every `every`, which is a second or more.
/// The launcher learns of it when the transaction commits.
pub(crate) fn schedule(kind: Kind, object: Oid, every: Duration) -> Result<()> {
    catalog::jobs::put(kind, object, every)?;
    if let Some(owner) = catalog::jobs::owner_that_cannot_log_in(object)? {
        error::warn(
            Error::new("01000", format!("background workers cannot run as \"{owner}\", which may not log in"))
                .detail("Before PostgreSQL 17 a worker needs a role with LOGIN; a password is not necessary.")
                .hint(format!(
                    "ALTER ROLE {} LOGIN, or have that role CALL tally.run_due_jobs().",
                    ident::quote(&owner)
                )),
        );
    }
    Ok(())
}

/// Has the job run at once, if there is one.
pub(crate) fn hasten(kind: Kind, object: Oid) -> Result<()> {
    catalog::jobs::hasten(kind, object, crate::pg::process::clock())
}

/// Forgets the job, if there is one.
pub(crate) fn unschedule(kind: Kind, object: Oid) -> Result<()> {
    catalog::jobs::delete(kind, object)
}
