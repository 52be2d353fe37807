//! NOTIFY on the channel `tally` when the verdict on a job or on a partition set changes, so that a dashboard need not ask. Nobody knows
//! whether anybody listens; where nothing changes it costs no transaction id.

use crate::catalog::jobs::{self, Job};
use crate::error::Result;
use crate::jobs::Kind;
use crate::partition;
use crate::pg::process;
use tally_core::schedule::Troubles;

/// Could there be anything to announce after this run? A pass that was idle has seen no more of the set than the one before.
pub(super) fn is_due(job: &Job, is_idle: bool, troubles: Troubles) -> bool {
    jobs::is_news(job, troubles) || follows_set(job.kind) && !is_idle
}

/// Announces what the run has changed, in the current transaction.
pub(super) fn changes(job: &mut Job, troubles: Troubles) -> Result<()> {
    jobs::announce_verdict(job, troubles, process::clock())?;
    if follows_set(job.kind) { set(job) } else { Ok(()) }
}

/// Jobs that change partition sets, or have them looked at.
fn follows_set(kind: Kind) -> bool {
    kind != Kind::Refresh
}

/// The verdict on the set that the job works for. What was announced last is remembered with its premake job.
fn set(job: &Job) -> Result<()> {
    let Some(keeper) = jobs::of_object(Kind::Premake, job.object)? else { return Ok(()) };
    let Some(partition::Judged { verdict, code }) = partition::verdict(job.object)? else { return Ok(()) };
    let old = jobs::set_verdict(keeper)?.unwrap_or_else(|| "ok".to_owned());
    if old == verdict {
        return Ok(());
    }
    jobs::announce("partitions", &job.object_name, &old, &verdict, code.as_deref().unwrap_or("healthy"))?;
    jobs::remember_set_verdict(keeper, &verdict, process::clock())
}
