//! A limit on how long a piece of work may take, by the timer and the signal that `statement_timeout` works with: PostgreSQL arms that one only
//! where a client's statement begins.

use pgrx::pg_sys;
use std::sync::OnceLock;
use std::time::Duration;

type Handler = unsafe extern "C-unwind" fn();

// pgrx does not bind PostgreSQL's timers.
unsafe extern "C-unwind" {
    fn RegisterTimeout(id: u32, handler: Handler) -> u32;
    fn enable_timeout_after(id: u32, milliseconds: i32);
    fn disable_timeout(id: u32, keep_indicator: bool);
    fn get_timeout_indicator(id: u32, reset: bool) -> bool;
}
unsafe extern "C" {
    fn kill(process: i32, signal: i32) -> i32;
}

/// Any number from USER_TIMEOUT on, which is 12 or 13, asks for a timer of one's own.
const OWN_TIMER: u32 = 20;

/// Runs in a signal handler: it may do nothing else.
unsafe extern "C-unwind" fn cancel() {
    // SAFETY: a signal to this process, whose handler sets flags.
    unsafe { kill(pg_sys::MyProcPid, pg_sys::SIGINT as i32) };
}

/// The timer is off when this value goes out of scope, also while unwinding.
struct Armed(u32);

impl Armed {
    /// Switches it off and says whether it went off before.
    fn has_fired(&self) -> bool {
        // SAFETY: a timer of this process.
        unsafe {
            disable_timeout(self.0, true);
            let fired = get_timeout_indicator(self.0, true);
            if fired {
                // It was meant for the work, which is over.
                pg_sys::QueryCancelPending = 0;
            }
            fired
        }
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        self.has_fired();
    }
}

/// Does the work, and cancels it (57014) when it takes longer than the limit, of 20 days at most. Says whether that was the case.
pub(crate) fn within<T>(limit: Duration, work: impl FnOnce() -> T) -> (T, bool) {
    static TIMER: OnceLock<u32> = OnceLock::new();
    let milliseconds = i32::try_from(limit.as_millis().max(1)).unwrap_or(i32::MAX);
    // SAFETY: PostgreSQL has been initialised in a process that has work to do; the handler only sends a signal.
    let timer = *TIMER.get_or_init(|| unsafe { RegisterTimeout(OWN_TIMER, cancel) });
    // SAFETY: the timer registered above.
    unsafe { enable_timeout_after(timer, milliseconds) };
    let armed = Armed(timer);
    let done = work();
    let fired = armed.has_fired();
    (done, fired)
}
