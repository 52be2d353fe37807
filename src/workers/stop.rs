//! Getting out of the way: before somebody drops, renames, moves or copies a database, or drops or updates the extension, the workers of
//! that database are stopped. Otherwise PostgreSQL would wait five seconds for them and then refuse.

use super::{JOB_WORKER, Moment, SHARED, notify};
use crate::pg::{self, Oid, process};
use std::time::Duration;
use tally_core::bucket::SECOND;

/// Nothing is started in the database for so long. PostgreSQL needs far less; and because it ends by itself, nobody has to lift it when the
/// statement fails.
const STOP: i64 = 10 * SECOND;
/// How long to wait for the workers to end. PostgreSQL itself waits five seconds after that.
const PATIENCE: i64 = 4 * SECOND;
const LOOK: Duration = Duration::from_millis(5);

pub(super) fn install() {
    pg::before_taking_over(stop);
}

fn stop(database: Oid) {
    let oid = database.to_u32();
    let begin = process::clock().0;
    let until: Moment = begin.saturating_add(STOP);
    let launcher = SHARED.write(|header, _| {
        let line = header.databases.iter_mut().find(|line| line.oid == oid)?;
        line.stopped_until = until;
        Some(header.launcher)
    });
    let Some(Some(launcher)) = launcher else { return };
    process::wake(launcher);
    while is_worked_on(oid) && process::clock().0 < begin.saturating_add(PATIENCE) {
        process::nap(LOOK);
    }
    pgrx::debug1!("{JOB_WORKER}s of database {oid} have been stopped");
    // An update is over with its transaction; a database that is not ours ends with its statement, or goes on when the time is over.
    if database == process::own_database() {
        pgrx::register_xact_callback(pgrx::PgXactCallbackEvent::Commit, resume);
    }
}

/// Lets jobs of this database go on, with the SQL objects that there are now.
fn resume() {
    let oid = process::own_database().to_u32();
    SHARED.write(|header, _| {
        if let Some(line) = header.database(oid) {
            line.stopped_until = 0;
        }
    });
    notify();
}

fn is_worked_on(oid: u32) -> bool {
    SHARED
        .read(|header, slots| {
            slots[..header.used].iter().any(|slot| slot.database == oid && slot.is_taken())
                || header.databases.iter().any(|line| line.oid == oid && line.probe != 0)
        })
        .unwrap_or(false)
}
