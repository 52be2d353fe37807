//! Passes that have nothing to do read nothing of the set: a look at all of its partitions stores until when that holds, and whoever
//! alters one of its tables notes it. What holds is decided in `core/src/partition/idle.rs`.

use super::facts::Facts;
use super::{Plan, limits};
use crate::catalog::{altered_sets, idle_sets, partitions};
use crate::error::Result;
use crate::jobs::Kind;
use crate::pg::{Oid, Snapshot, process};
use tally_core::bucket::{DAY, Timestamp};
use tally_core::partition::Range;
use tally_core::partition::idle::{self, Look, Present, Rest};

/// What a pass has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Pass {
    /// Something, or at least it has tried to.
    #[default]
    Work,
    /// A look at the partitions, and that there is nothing to do before this time. All that it may have written is that it was there.
    Look(Timestamp),
    /// Nothing: what the last look has found still holds, until this time.
    Idle(Timestamp),
}

impl Pass {
    pub(crate) fn is_idle(self) -> bool {
        matches!(self, Pass::Idle(_))
    }
}

/// The last look of this kind, if it still holds.
pub(super) fn last_look(parent: Oid, kind: Kind) -> Result<Option<Look>> {
    let Some(row) = idle_sets::get(parent, kind)? else { return Ok(None) };
    let present = Present { now: process::clock(), limits: limits(), is_altered: row.is_altered, is_used: row.is_used };
    Ok(Some(row.look).filter(|look| look.holds(&present)))
}

/// Has nothing been looked at since then, because the look before still holds?
pub(crate) fn is_idle_since(parent: Oid, kind: Kind, since: Timestamp) -> Result<bool> {
    Ok(last_look(parent, kind)?.is_some_and(|look| look.looked_at < since))
}

/// A look that begins. What is altered from here on may escape it.
pub(super) struct Begun {
    seen: String,
    at: Timestamp,
}

/// To be called before anything of the set is read.
pub(super) fn begin() -> Result<Begun> {
    Ok(Begun { seen: idle_sets::snapshot()?, at: process::clock() })
}

impl Begun {
    /// For how long premake has nothing to do; `None` if it has.
    pub(super) fn premake(&self, facts: &Facts, plan: &Plan) -> Result<Option<Rest>> {
        let now = plan.policy.key.value(&plan.zone, self.at);
        let (existing, premake) = plan.premake_at(facts, now)?;
        Ok(idle::premake_rests(&plan.policy, &existing, &premake, now, &limits()))
    }

    /// Stores that, and answers until which instant.
    pub(super) fn store_premake(&self, facts: &Facts, plan: &Plan, rest: Rest) -> Result<Timestamp> {
        let watched = rest.watched.into_iter().map(|at| facts.bounds[at].partition).collect();
        self.store(facts.oid, Kind::Premake, plan.policy.key.instant(&plan.zone, rest.until), watched)
    }

    /// Stores that no partition is due before this one, the oldest that is not on its way, and answers until which instant.
    pub(super) fn store_retention(&self, facts: &Facts, plan: &Plan, oldest: Option<Range>) -> Result<Timestamp> {
        let until = match (plan.policy.retention, oldest) {
            (Some(retention), Some(oldest)) => {
                let latest = self.at.plus(DAY);
                idle::due_at(plan.policy.key, &plan.zone, retention, oldest.upper, self.at, latest)
            }
            _ => Timestamp::INFINITY,
        };
        self.store(facts.oid, Kind::Retention, until, vec![])
    }

    /// A look that has found what the one before has found need not be written.
    fn store(&self, parent: Oid, kind: Kind, until: Timestamp, watched: Vec<Oid>) -> Result<Timestamp> {
        let look = Look { looked_at: self.at, until, limits: limits() };
        let known = idle_sets::get(parent, kind)?;
        if !known.is_some_and(|row| row.says(&look, &watched)) {
            idle_sets::put(parent, kind, &look, &self.seen, watched)?;
        }
        Ok(until)
    }
}

/// These tables are about to be altered or dropped, or have been: the sets that they belong to are looked at anew.
pub(crate) fn note_altered(tables: &[Oid]) -> Result<()> {
    if tables.is_empty() {
        return Ok(());
    }
    let parents = Snapshot::latest().read(|| altered_sets::of_tables(tables))?;
    altered_sets::insert(&parents)
}

/// The same for the tables of the command that an event trigger on `ddl_command_end` has been called for.
pub(crate) fn note_command() -> Result<()> {
    note_altered(&Snapshot::latest().read(altered_sets::altered_tables)?)
}

/// Tables have been dropped along with something, nobody knows of which sets: all are looked at anew.
pub(super) fn note_all() -> Result<()> {
    altered_sets::insert(&Snapshot::latest().read(partitions::sets)?)
}
