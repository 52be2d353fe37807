//! The first contact with both sides: what an outage breaks there is tried again until the time of the start is over.

use std::time::{Duration, Instant};

use super::FIRST_PAUSE;
use crate::{Error, Result};

const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Tries again for as long as the other side cannot be reached and the time is not over. The attempt is told how much is left of it.
///
/// # Errors
/// What the last attempt said, or the first that no further one can mend.
pub(super) async fn until<T>(deadline: Instant, mut attempt: impl AsyncFnMut(Duration) -> Result<T>) -> Result<T> {
    let mut pause = FIRST_PAUSE;
    loop {
        match attempt(deadline.saturating_duration_since(Instant::now())).await {
            Err(Error::Unreachable(reason)) if Instant::now() + pause < deadline => {
                tracing::debug!("the start is tried again: {reason}");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            result => return result,
        }
    }
}
