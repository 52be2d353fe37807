//! Locks that others wait for. A lock above SHARE UPDATE EXCLUSIVE on a table in use is tried and not queued for, so nobody notices.
//! Only where transactions overlap all the time, so that it is never free by chance, it is asked for: then whoever comes later stands
//! behind it. That time is counted, per table and hour, for all jobs together, and when the allowance is used up the work is put off.

use crate::bucket::{HOUR, Timestamp};
use std::time::Duration;

/// So often a lock is tried before it is asked for.
pub const TRIES: u32 = 200;
/// A transaction that has been using a table for so long is no matter of chance, and asking would only make others wait in vain.
pub const OLD: Duration = Duration::from_secs(1);
/// What a statement that may have waited takes at most without a wait.
const WITHOUT_A_WAIT: Duration = Duration::from_millis(10);

/// What has been waited for a table's lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    /// The first wait of the hour that counts.
    pub since: Timestamp,
    /// In this hour.
    pub awaited: Duration,
    /// Somebody wanted to wait in this hour, and there was nothing left.
    pub is_refused: bool,
}

impl Account {
    /// As it is now: after an hour, or when the clock was set back, a new one begins.
    fn at(account: Option<Self>, now: Timestamp) -> Self {
        account.filter(|account| (0..HOUR).contains(&now.since(account.since))).unwrap_or(Self {
            since: now,
            awaited: Duration::ZERO,
            is_refused: false,
        })
    }

    /// With a wait that has just ended.
    pub fn charged(account: Option<Self>, awaited: Duration, now: Timestamp) -> Self {
        let account = Self::at(account, now);
        Self { awaited: account.awaited.saturating_add(awaited), ..account }
    }

    /// With a refusal.
    pub fn refused(account: Option<Self>, now: Timestamp) -> Self {
        Self { is_refused: true, ..Self::at(account, now) }
    }

    /// What may still be waited for.
    pub fn left(account: Option<Self>, allowance: Duration, now: Timestamp) -> Duration {
        allowance.saturating_sub(Self::at(account, now).awaited)
    }

    /// Is work being put off because nothing is left? A larger allowance ends that at once.
    pub fn is_used_up(self, allowance: Duration, now: Timestamp) -> bool {
        let current = Self::at(Some(self), now);
        current.is_refused && wait(Self::left(Some(self), allowance, now), Duration::MAX).is_none()
    }
}

/// What to do after a try that has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Try again, after a [`pause`].
    Try,
    /// Stand in the queue, for so long at most.
    Ask(Duration),
    /// Somebody has been using the table for longer than [`OLD`].
    GiveWay,
    /// The allowance is used up.
    PutOff,
}

/// The next thing to do. `failed` tries have failed; the questions are asked only when their answer matters: whether there is an old
/// holder, and how much is left of the allowance. `timeout` is the longest wait.
pub fn next<E>(
    failed: u32,
    has_old_holder: impl FnOnce() -> Result<bool, E>,
    left: impl FnOnce() -> Result<Duration, E>,
    timeout: Duration,
) -> Result<Next, E> {
    if failed < TRIES {
        return Ok(Next::Try);
    }
    if has_old_holder()? {
        return Ok(Next::GiveWay);
    }
    Ok(wait(left()?, timeout).map_or(Next::PutOff, Next::Ask))
}

/// How long to wait after so many tries, in milliseconds: a spread, so that two who try do not meet again and again.
pub fn pause(failed: u32) -> u64 {
    5 + u64::from(failed) * 7 % 20
}

/// How long may be waited, if at all: PostgreSQL counts in milliseconds.
pub fn wait(left: Duration, timeout: Duration) -> Option<Duration> {
    let millis = u64::try_from(left.min(timeout).as_millis()).unwrap_or(u64::MAX);
    (millis > 0).then(|| Duration::from_millis(millis))
}

/// What is charged to each of so many tables for a statement that takes their locks by itself: at least what it has waited for them. It
/// does not tell what for it has waited, so all that it took longer than usual counts; with a `timeout` for each lock, not more than that.
pub fn charge(took: Duration, has_failed: bool, tables: usize, timeout: Duration) -> Duration {
    let waited = if has_failed { took } else { took.saturating_sub(WITHOUT_A_WAIT) };
    waited.min(timeout.saturating_mul(u32::try_from(tables).unwrap_or(u32::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::{MINUTE, SECOND};
    use std::convert::Infallible;

    const ALLOWANCE: Duration = Duration::from_secs(1);
    const TIMEOUT: Duration = Duration::from_millis(50);

    fn millis(number: u64) -> Duration {
        Duration::from_millis(number)
    }

    fn after(failed: u32, is_old: bool, left: Duration) -> Next {
        next(failed, || Ok::<_, Infallible>(is_old), || Ok(left), TIMEOUT).unwrap()
    }

    #[test]
    fn it_is_tried_200_times_before_anybody_is_asked() {
        for failed in 0..TRIES {
            let unasked = next(failed, || Err("looked at holders"), || Err("looked at the account"), TIMEOUT);
            assert_eq!(unasked, Ok(Next::Try));
            assert!((5..25).contains(&pause(failed)) && pause(failed) != pause(failed + 1), "a spread");
        }
        assert_eq!(after(TRIES, true, ALLOWANCE), Next::GiveWay);
        assert_eq!(after(TRIES, false, ALLOWANCE), Next::Ask(TIMEOUT));
        assert_eq!(after(TRIES, false, millis(7)), Next::Ask(millis(7)));
        assert_eq!(after(TRIES, false, Duration::from_micros(999)), Next::PutOff);
        // An old holder is the better reason: it says whom to look for.
        assert_eq!(after(TRIES, true, Duration::ZERO), Next::GiveWay);
    }

    #[test]
    fn waits_of_an_hour_never_exceed_the_allowance() {
        let (mut account, mut now, mut total) = (None, Timestamp(0), Duration::ZERO);
        while now < Timestamp(HOUR) {
            match after(TRIES, false, Account::left(account, ALLOWANCE, now)) {
                Next::Ask(timeout) => {
                    account = Some(Account::charged(account, timeout, now));
                    total += timeout;
                }
                Next::PutOff => account = Some(Account::refused(account, now)),
                other => panic!("{other:?}"),
            }
            now = now.plus(8 * SECOND);
        }
        assert_eq!(total, ALLOWANCE);
        assert!(account.unwrap().is_used_up(ALLOWANCE, Timestamp(HOUR - 1)));
        // Whoever raises it goes on at once.
        assert!(!account.unwrap().is_used_up(2 * ALLOWANCE, Timestamp(HOUR - 1)));
        // The hour is over, also for who only looks.
        assert!(!account.unwrap().is_used_up(ALLOWANCE, Timestamp(HOUR)));
        assert_eq!(Account::left(account, ALLOWANCE, Timestamp(HOUR)), ALLOWANCE);
    }

    #[test]
    fn an_hour_begins_with_the_first_wait_and_a_clock_set_back_begins_another() {
        let first = Account::charged(None, millis(30), Timestamp(MINUTE));
        let second = Account::charged(Some(first), millis(40), Timestamp(2 * MINUTE));
        assert_eq!(second, Account { since: Timestamp(MINUTE), awaited: millis(70), is_refused: false });
        let late = Account::charged(Some(second), millis(5), Timestamp(MINUTE + HOUR));
        assert_eq!(late, Account { since: Timestamp(MINUTE + HOUR), awaited: millis(5), is_refused: false });
        assert_eq!(Account::left(Some(late), ALLOWANCE, Timestamp(0)), ALLOWANCE);
        // Refused without a wait: an allowance of zero.
        let never = Account::refused(None, Timestamp(0));
        assert!(never.is_used_up(Duration::ZERO, Timestamp(MINUTE)));
        assert!(!second.is_used_up(millis(70), Timestamp(3 * MINUTE)), "used up, and nobody was refused");
    }

    #[test]
    fn a_statement_that_locks_by_itself_is_charged_with_what_it_may_have_waited() {
        assert_eq!(charge(millis(8), false, 1, TIMEOUT), Duration::ZERO);
        assert_eq!(charge(millis(35), false, 1, TIMEOUT), millis(25));
        assert_eq!(charge(millis(51), true, 1, TIMEOUT), TIMEOUT);
        assert_eq!(charge(millis(400), true, 3, TIMEOUT), millis(150));
    }
}
