//! Runs that are left out. Where nobody has written anything since a run that found nothing to do, another run would find nothing
//! either, until a time that the run knows. So on a server that is idle nothing is started.

use super::{micros, next_run};
use crate::bucket::{DAY, MINUTE, Timestamp};
use std::time::Duration;

/// A rest is over then in any case.
const LONGEST: i64 = DAY;
/// So much later, at most, the statistics of a session reach those who look at them.
const NEWS: i64 = MINUTE;

/// Since when nobody has written anything on the server, in whatever database.
#[derive(Clone, Copy, Debug)]
pub struct Quiet {
    next_id: u64,
    since: Timestamp,
}

impl Quiet {
    /// Nothing is known of the time before.
    pub fn new(now: Timestamp) -> Self {
        Self { next_id: 0, since: now }
    }

    /// Whoever writes has a transaction id first, so the next one to be given out tells whether somebody has begun to, and
    /// `is_writing` whether somebody has not ended yet.
    pub fn observe(&mut self, next_id: u64, is_writing: bool, now: Timestamp) {
        // The clock may have been set back.
        if is_writing || next_id != self.next_id || now < self.since {
            *self = Self { next_id, since: now };
        }
    }

    /// Something has changed that takes no transaction id, such as a setting.
    pub fn end(&mut self, now: Timestamp) {
        self.since = now;
    }
}

/// What a run has found out that had nothing to do; by default that there is something.
#[derive(Clone, Copy, Debug)]
pub struct Rest {
    /// When the run began.
    pub looked_at: Timestamp,
    /// There is nothing to do before, if nobody writes.
    pub until: Timestamp,
}

impl Default for Rest {
    fn default() -> Self {
        Self { looked_at: Timestamp::NEG_INFINITY, until: Timestamp::NEG_INFINITY }
    }
}

impl Rest {
    /// Would a run that comes `every` so long still find nothing to do?
    pub fn holds(&self, quiet: &Quiet, every: Duration, now: Timestamp) -> bool {
        let has_seen_all = quiet.since.plus(micros(every).min(NEWS)) <= self.looked_at;
        has_seen_all && self.looked_at <= now && now < self.over()
    }

    /// When a run that was due at `scheduled`, and is left out, is due again; `None` if it has to run.
    pub fn due_again(&self, quiet: &Quiet, scheduled: Timestamp, every: Duration, now: Timestamp) -> Option<Timestamp> {
        self.holds(quiet, every, now).then(|| next_run(scheduled, every, now).min(self.over()))
    }

    fn over(&self) -> Timestamp {
        self.until.min(self.looked_at.plus(LONGEST))
    }
}

#[cfg(test)]
mod tests;
