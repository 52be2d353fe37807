//! Locks on tables that others use, as `core/src/partition/lock.rs` decides about them: tried first, asked for within the allowance, and
//! put off when that is used up.

use super::{facts, with_fixed_settings};
use crate::catalog::{self, lock_waits};
use crate::error::Result;
use crate::pg::relation::{self, Mode};
use crate::pg::{self, Oid, process};
use crate::settings;
use std::cell::Cell;
use std::convert::Infallible;
use std::time::{Duration, Instant};
use tally_core::partition::lock::{self, Account, Next};
use tally_core::partition::status::put_off_for;

/// A lock that is wanted. Lists of them are in the order of their OIDs, in which everybody locks.
pub(super) type Wanted = (Oid, Mode);

/// What became of work that needs locks. All but `Done` has been taken back.
#[derive(Debug)]
pub(super) enum Attempt<T> {
    Done(T),
    /// These transactions have been using a table for longer than a second.
    InUse(String),
    /// The queue for a lock did not move in time.
    Missed,
    /// The allowance for this table is used up.
    PutOff(Oid),
}

/// Who stands in the queue, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// A job, within the allowance.
    Job,
    /// Who has called a function and decides for himself.
    Caller,
}

/// How long who has called a function waits: not until the `deadlock_timeout`, when PostgreSQL cancels an autovacuum that is in the way.
const PATIENCE_OF_CALLER: Duration = Duration::from_millis(900);

/// The shortest `lock_timeout`.
const NEXT_TO_NOTHING: Duration = Duration::from_millis(1);

/// Work to be done under locks.
pub(super) struct Work<'a> {
    pub wanted: &'a [Wanted],
    pub patience: Patience,
    /// The work is a statement that may wait for somebody while it holds the locks: that counts, too.
    pub waits: bool,
}

impl Work<'_> {
    /// Does `before`, takes the locks and does `work`: all of it or nothing.
    pub(super) fn run<T>(
        &self,
        before: impl FnOnce() -> Result<()>,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<Attempt<T>> {
        let (mut queue, prepared, begun) = (Vec::new(), Cell::new(false), Cell::new(None));
        let attempt = pg::in_subtransaction(
            || {
                before()?;
                prepared.set(true);
                if let Some(refusal) = self.seize(&mut queue)? {
                    return Ok(refusal);
                }
                begun.set(Some(Instant::now()));
                work().map(Attempt::Done)
            },
            |attempt| matches!(attempt, Ok(Attempt::Done(_))),
        );
        let end = Instant::now();
        let attempt = match attempt {
            Ok(attempt) => attempt?,
            Err(_) if prepared.get() => Attempt::Missed,
            Err(caught) => caught.rethrow(),
        };
        let had = begun.get().unwrap_or(end);
        let is_done = matches!(attempt, Attempt::Done(_));
        if let Some(since) = queue.first().map(|(_, since)| *since).or(begun.get()) {
            if is_done { hold_since(since) } else { note_longest(end.duration_since(since)) }
        }
        if self.patience == Patience::Job {
            let worked = begun.get().filter(|_| self.waits).map_or(Duration::ZERO, |begun| {
                lock::charge(end.duration_since(begun), !is_done, self.wanted.len(), settings::lock_try_timeout())
            });
            for (table, _) in self.wanted {
                let queued = queue.iter().find(|(queued, _)| queued == table);
                charge(*table, worked + queued.map_or(Duration::ZERO, |(_, since)| had.duration_since(*since)))?;
            }
            if let Attempt::PutOff(table) = attempt {
                put_off(table)?;
            }
        }
        Ok(attempt)
    }

    /// Takes all of the locks, or says why not. `queue` has what was asked for, and since when others have stood behind it.
    fn seize<T>(&self, queue: &mut Vec<(Oid, Instant)>) -> Result<Option<Attempt<T>>> {
        let mut failed = 0;
        let timeout = loop {
            if relation::try_lock_all(self.wanted) {
                return Ok(None);
            }
            failed += 1;
            match self.next(failed)? {
                Next::Try => relation::pause(lock::pause(failed)),
                Next::Ask(timeout) => break timeout,
                Next::GiveWay => return Ok(Some(Attempt::InUse(old_holders(self.wanted)?))),
                Next::PutOff => return Ok(Some(Attempt::PutOff(self.poorest()?.0))),
            }
        };
        let begin = Instant::now();
        for (table, mode) in self.wanted {
            queue.push((*table, Instant::now()));
            if relation::try_lock(*table, *mode) {
                continue;
            }
            // What was waited for one of them was waited for all before it.
            let Some(timeout) = lock::wait(timeout.saturating_sub(begin.elapsed()), timeout) else {
                return Ok(Some(Attempt::Missed));
            };
            with_fixed_settings(Some(timeout), || relation::lock(*table, *mode));
        }
        Ok(None)
    }

    fn next(&self, failed: u32) -> Result<Next> {
        let has_old_holder = || -> Result<bool> { Ok(!old_holders(self.wanted)?.is_empty()) };
        match self.patience {
            Patience::Job => lock::next(failed, has_old_holder, || Ok(self.poorest()?.1), settings::lock_try_timeout()),
            Patience::Caller => lock::next(failed, has_old_holder, || Ok(PATIENCE_OF_CALLER), PATIENCE_OF_CALLER),
        }
    }

    /// The table of which the least is left.
    fn poorest(&self) -> Result<(Oid, Duration)> {
        poorest(self.wanted)
    }
}

/// Tries to lock a table against writers until the end of the transaction, and never asks. False: it was never free.
pub(super) fn try_against_writers(table: Oid) -> bool {
    try_for(table, Mode::ShareRowExclusive)
}

/// The same against readers too.
pub(super) fn try_against_all(table: Oid) -> bool {
    try_for(table, Mode::AccessExclusive)
}

fn try_for(table: Oid, mode: Mode) -> bool {
    for failed in 1..=lock::TRIES {
        if relation::try_lock(table, mode) {
            hold_since(Instant::now());
            return true;
        }
        relation::pause(lock::pause(failed));
    }
    false
}

fn poorest(wanted: &[Wanted]) -> Result<(Oid, Duration)> {
    let (allowance, now) = (settings::lock_allowance(), process::clock());
    let mut poorest = (Oid::INVALID, Duration::MAX);
    for (table, _) in wanted {
        let left = Account::left(lock_waits::of(*table)?, allowance, now);
        if left < poorest.1 {
            poorest = (*table, left);
        }
    }
    Ok(poorest)
}

/// Stands in the queue for one lock, within the allowance.
pub(super) fn ask(table: Oid, mode: Mode, longest: Duration) -> Result<Attempt<()>> {
    let (_, left) = poorest(&[(table, mode)])?;
    let Some(timeout) = lock::wait(left, longest) else {
        put_off(table)?;
        return Ok(Attempt::PutOff(table));
    };
    let begin = Instant::now();
    let had = pg::in_subtransaction(|| with_fixed_settings(Some(timeout), || relation::lock(table, mode)), |()| true);
    charge(table, begin.elapsed())?;
    if had.is_err() {
        note_longest(begin.elapsed());
        return Ok(Attempt::Missed);
    }
    hold_since(begin);
    Ok(Attempt::Done(()))
}

/// For a statement at top level that takes the locks by itself and waits for each: how long it may, or why it may not begin. At a moment
/// when they are free it may begin in any case, and then waits for next to nothing.
pub(super) fn timeout_at_top_level(wanted: &[Wanted]) -> Result<std::result::Result<Duration, Attempt<Infallible>>> {
    let timeout = settings::lock_try_timeout();
    let mut failed = 0;
    loop {
        let (table, left) = poorest(wanted)?;
        if relation::are_free(wanted) {
            return Ok(Ok(lock::wait(left, timeout).unwrap_or(NEXT_TO_NOTHING)));
        }
        failed += 1;
        let has_old_holder = || -> Result<bool> { Ok(!old_holders(wanted)?.is_empty()) };
        match lock::next(failed, has_old_holder, || Ok(left), timeout)? {
            Next::Try => relation::pause(lock::pause(failed)),
            Next::Ask(timeout) => return Ok(Ok(timeout)),
            Next::GiveWay => return Ok(Err(Attempt::InUse(old_holders(wanted)?))),
            Next::PutOff => {
                put_off(table)?;
                return Ok(Err(Attempt::PutOff(table)));
            }
        }
    }
}

/// Charges such a statement, which may be over with an error, to the tables.
pub(crate) fn charge_statement(tables: &[Oid], took: Duration, has_failed: bool) -> Result<()> {
    let waited = lock::charge(took, has_failed, tables.len(), settings::lock_try_timeout());
    note_longest(waited);
    tables.iter().try_for_each(|table| charge(*table, waited))
}

fn charge(table: Oid, waited: Duration) -> Result<()> {
    if waited.is_zero() {
        return Ok(());
    }
    lock_waits::change(table, |account| Account::charged(account, waited, process::clock()))
}

fn put_off(table: Oid) -> Result<()> {
    let now = process::clock();
    // Until the next hour it is known.
    if lock_waits::of(table)?.is_some_and(|account| account.is_used_up(settings::lock_allowance(), now)) {
        return Ok(());
    }
    lock_waits::change(table, |account| Account::refused(account, now))
}

/// The first of the tables for whose lock work is being put off.
pub(super) fn used_up(tables: &[(Oid, String)]) -> Result<Option<(Oid, String)>> {
    let (allowance, now) = (settings::lock_allowance(), process::clock());
    for (table, name) in tables {
        if lock_waits::of(*table)?.is_some_and(|account| account.is_used_up(allowance, now)) {
            return Ok(Some((*table, name.clone())));
        }
    }
    Ok(None)
}

/// How long a job whose work was put off leaves it before it looks for a free moment again.
pub(super) fn pause_of_put_off() -> Duration {
    settings::retry().delay(5, crate::workers::random())
}

/// What is said of work that was put off.
pub(super) fn why_put_off(table: Oid) -> Result<String> {
    let name = "SELECT $1::pg_catalog.oid::pg_catalog.regclass::text";
    let name = catalog::look_up::<String>(name, &[table.into()])?.unwrap_or_default();
    Ok(put_off_for(&name))
}

/// Transactions that are older than [`lock::OLD`], or prepared, and have a lock that one of these does not go with.
pub(super) fn old_holders(wanted: &[Wanted]) -> Result<String> {
    holders(wanted, true)
}

/// Whoever has a lock on the tables that one of these does not go with. Not every owner of a table may see how old transactions of others
/// are, so this is asked as the owner of the extension.
pub(super) fn holders(wanted: &[Wanted], only_old: bool) -> Result<String> {
    let tables: Vec<Oid> = wanted.iter().map(|(table, _)| *table).collect();
    // What goes with SHARE ROW EXCLUSIVE.
    let harmless: Vec<Oid> =
        wanted.iter().filter(|(_, mode)| *mode != Mode::AccessExclusive).map(|(table, _)| *table).collect();
    pg::look_at_sessions_anew();
    let found = pg::as_extension_owner(|| {
        facts::rows(
            "SELECT DISTINCT CASE WHEN l.pid IS NULL THEN pg_catalog.format('a prepared transaction, %s on %s', l.mode, l.relation::pg_catalog.regclass) \
                    ELSE pg_catalog.format('pid %s, %s, since %s, %s on %s', l.pid, a.usename, \
                           pg_catalog.date_trunc('second', a.xact_start), l.mode, l.relation::pg_catalog.regclass) END \
             FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid OPERATOR(pg_catalog.=) l.pid \
             WHERE l.locktype OPERATOR(pg_catalog.=) 'relation' AND l.relation OPERATOR(pg_catalog.=) ANY ($1) AND l.granted \
               AND l.database OPERATOR(pg_catalog.=) (SELECT d.oid FROM pg_catalog.pg_database d \
                                                      WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()) \
               AND l.pid IS DISTINCT FROM pg_catalog.pg_backend_pid() \
               AND NOT (l.relation OPERATOR(pg_catalog.=) ANY ($2) \
                        AND l.mode OPERATOR(pg_catalog.=) ANY (ARRAY['AccessShareLock', 'RowShareLock'])) \
               AND (NOT $3 OR l.pid IS NULL OR a.xact_start OPERATOR(pg_catalog.<) \
                      (pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) ($4 OPERATOR(pg_catalog.*) interval '1 second'))) \
             ORDER BY 1",
            &[tables.into(), harmless.into(), only_old.into(), lock::OLD.as_secs_f64().into()],
            |row| facts::text(row, 1),
        )
    })?;
    Ok(found.join("; "))
}

thread_local! {
    /// The locks of the transaction that is under way: since when the first was asked for, and the longest of what is over.
    static LOCKS: Cell<(Option<Instant>, Duration)> = const { Cell::new((None, Duration::ZERO)) };
}

/// A lock that stops writers is held from now on, or has been wanted for some time, until the transaction ends.
pub(super) fn hold_since(since: Instant) {
    let (held, longest) = LOCKS.get();
    LOCKS.set((Some(held.map_or(since, |held| held.min(since))), longest));
}

fn note_longest(lasted: Duration) {
    let (held, longest) = LOCKS.get();
    LOCKS.set((held, longest.max(lasted)));
}

/// The work is done: what comes until the commit does not count.
pub(crate) fn settle_longest() {
    let (held, longest) = LOCKS.get();
    LOCKS.set((None, held.map_or(longest, |held| longest.max(held.elapsed()))));
}

/// The longest lock of a run that is over, or of a part of it, which is forgotten with that.
pub(crate) fn take_longest() -> Option<Duration> {
    let (held, longest) = LOCKS.take();
    let longest = held.map_or(longest, |held| longest.max(held.elapsed()));
    (!longest.is_zero()).then_some(longest)
}
