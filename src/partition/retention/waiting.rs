//! What retention is busy with, and who it waits for.

use super::{Progress, foreign_keys, place};
use crate::catalog::retirements::{self, Outlook, Row};
use crate::catalog::{self, rollups};
use crate::error::Result;
use crate::jobs::Kind;
use crate::partition::facts::{Facts, locks_of_detach};
use crate::partition::idle::{self, Pass};
use crate::partition::locks;
use crate::pg::relation::Mode;
use crate::pg::{Oid, process};
use std::time::Duration;
use tally_core::bucket::{SECOND, Timestamp};
use tally_core::ident::quote;
use tally_core::partition::lock::OLD;
use tally_core::partition::retention::{Place, State};
use tally_core::partition::status::is_put_off;

/// What a step answers without a look at the set, if nothing is under way and nothing is due.
pub(super) fn rest(parent: Oid) -> Result<Option<Progress>> {
    let clock = process::clock();
    let wake = match retirements::outlook(parent)? {
        Outlook::Waiting(wake) if wake.is_none_or(|at| at > clock) => wake,
        _ => return Ok(None),
    };
    let look = idle::last_look(parent, Kind::Retention)?;
    Ok(look.map(|look| Progress {
        pause: pause_until(wake, clock),
        pass: Pass::Idle(look.until),
        ..Progress::default()
    }))
}

/// The time until there is something to be done, a second at least.
pub(super) fn pause_until(wake: Option<Timestamp>, clock: Timestamp) -> Option<Duration> {
    wake.map(|at| Duration::from_micros(at.since(clock).max(SECOND).cast_unsigned()))
}

/// The partition that retention is busy with, or has stopped at.
pub(in crate::partition) struct Busy {
    pub record: Row,
    pub place: Place,
    /// As SQL names it.
    pub partition: String,
    /// The rollups that are compared with its rows, as SQL names them.
    pub rollups: Vec<String>,
    /// A rollup that counts its rows, as SQL names it.
    pub counted_by: Option<String>,
    /// The foreign key that is to be dropped next, of a table in the trash.
    pub foreign_key: Option<String>,
    /// Who is waited for.
    pub blockers: Option<String>,
}

impl Busy {
    /// Are rows refused that would lie in its range?
    pub(in crate::partition) fn is_fenced(&self) -> bool {
        matches!(self.place, Place::Attached | Place::Pending)
    }
}

/// What retention is doing with a set, but for what lies in the trash, unless it is put off to empty it, or is spared.
pub(in crate::partition) fn busy(facts: &Facts) -> Result<Option<Busy>> {
    for record in retirements::list(facts.oid)? {
        let is_put_off = is_put_off(record.note.as_deref());
        if record.state == State::Kept || record.state == State::Trash && !is_put_off {
            continue;
        }
        let place = place(facts.oid, &record)?;
        if place == Place::Gone {
            continue;
        }
        let names = |relation| catalog::name_of(relation).map(|name| name.to_string());
        let rollups = rollups::of_source(facts.oid)?;
        let counted_by = rollups.first().map(|rollup| names(rollup.rollup)).transpose()?;
        let compared = rollups.iter().filter(|rollup| rollup.definition.follows_partitions());
        let rollups = compared.map(|rollup| names(rollup.rollup)).collect::<Result<_>>()?;
        let foreign_key = match record.state {
            State::Trash => foreign_keys(record.partition)?.into_iter().next(),
            _ => None,
        };
        let blockers = match (record.state, place) {
            _ if is_put_off => {
                let wanted = match &foreign_key {
                    Some(key) => vec![(key.target, Mode::AccessExclusive)],
                    None => locks_of_detach(facts.oid)?,
                };
                Some(locks::holders(&wanted, false)?).filter(|who| !who.is_empty())
            }
            (_, Place::Pending) => holders(facts.oid)?,
            (State::Verified | State::Detaching | State::Returning, _) => match blocker(&record)? {
                None if record.note.as_deref().is_some_and(|note| note.starts_with(IN_USE)) => holders(facts.oid)?,
                blocker => blocker,
            },
            _ => None,
        };
        let foreign_key = foreign_key.map(|key| quote(&key.name));
        let partition = names(record.partition)?;
        return Ok(Some(Busy { place, partition, rollups, counted_by, foreign_key, blockers, record }));
    }
    Ok(None)
}

/// What is said of a partition whose DETACH CONCURRENTLY has not begun, because it would keep a worker waiting for those who use the table.
pub(super) const IN_USE: &str = "waits for transactions that use the table: ";

/// The transactions that hold a lock on the table, which DETACH CONCURRENTLY waits for.
pub(super) fn holders(parent: Oid) -> Result<Option<String>> {
    catalog::look_up::<String>(
        "SELECT pg_catalog.string_agg(DISTINCT CASE WHEN l.pid IS NULL THEN 'a prepared transaction' \
                ELSE pg_catalog.format('pid %s (%s), %s on %s', l.pid, a.usename, l.mode, l.relation::pg_catalog.regclass) END, '; ') \
         FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid OPERATOR(pg_catalog.=) l.pid \
         WHERE l.locktype OPERATOR(pg_catalog.=) 'relation' AND l.relation OPERATOR(pg_catalog.=) $1 AND l.granted \
           AND l.database OPERATOR(pg_catalog.=) (SELECT d.oid FROM pg_catalog.pg_database d \
                                                  WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()) \
           AND (l.pid IS NULL OR l.pid OPERATOR(pg_catalog.<>) pg_catalog.pg_backend_pid())",
        &[parent.into()],
    )
}

/// A transaction of the database that FINALIZE would wait for, and not for a moment.
pub(super) fn old_snapshot() -> Result<Option<String>> {
    catalog::look_up::<String>(
        "SELECT pg_catalog.format('pid %s (%s)', a.pid, a.usename) FROM pg_catalog.pg_stat_activity a \
          WHERE a.datname OPERATOR(pg_catalog.=) pg_catalog.current_database() AND a.pid OPERATOR(pg_catalog.<>) pg_catalog.pg_backend_pid() \
            AND a.usesysid IS NOT NULL AND a.backend_xmin IS NOT NULL \
            AND pg_catalog.age(a.backend_xmin) OPERATOR(pg_catalog.>=) \
                pg_catalog.age(pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())::pg_catalog.xid) \
            AND (a.xact_start IS NULL OR a.xact_start OPERATOR(pg_catalog.<) \
                   (pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) ($1 OPERATOR(pg_catalog.*) interval '1 second'))) \
          ORDER BY pg_catalog.age(a.backend_xmin) DESC LIMIT 1",
        &[OLD.as_secs_f64().into()],
    )
}

/// The oldest transaction of the database, but for this one, that may have a snapshot from before the record was changed last. Who waits
/// for this very worker, in tally.run_due_jobs, reads nothing with the snapshot that it has meanwhile; and autovacuum, which has no user,
/// reads no rollup.
pub(super) fn blocker(record: &Row) -> Result<Option<String>> {
    catalog::look_up::<String>(
        "SELECT o.who FROM ( \
           SELECT pg_catalog.format('pid %s (%s)', a.pid, a.usename) AS who, a.backend_xmin AS xmin FROM pg_catalog.pg_stat_activity a \
            WHERE a.datname OPERATOR(pg_catalog.=) pg_catalog.current_database() AND a.pid OPERATOR(pg_catalog.<>) pg_catalog.pg_backend_pid() \
              AND a.pid OPERATOR(pg_catalog.<>) $2 AND a.usesysid IS NOT NULL \
           UNION ALL SELECT pg_catalog.format('prepared transaction %L', p.gid), p.transaction FROM pg_catalog.pg_prepared_xacts p \
            WHERE p.database OPERATOR(pg_catalog.=) pg_catalog.current_database()) AS o, tally.retirements r \
         WHERE r.retirement OPERATOR(pg_catalog.=) $1 AND o.xmin IS NOT NULL \
           AND pg_catalog.age(o.xmin) OPERATOR(pg_catalog.>=) pg_catalog.age(r.changed_by::pg_catalog.xid) \
         ORDER BY pg_catalog.age(o.xmin) DESC LIMIT 1",
        &[record.id.into(), process::starter().into()],
    )
}
