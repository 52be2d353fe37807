//! Sessions of former loaders that hang in a transaction, and whoever waits for them.

use std::pin::pin;
use std::time::Duration;

use super::Sink;
use crate::config::Postgres;
use crate::offsets;
use crate::postgres::{self, ConnectError};

/// Sessions of former loaders that a statement may wait for.
pub(super) struct Blockers {
    settings: Postgres,
    pipeline: String,
    pid: i32,
    patience: Duration,
}

impl Blockers {
    pub(super) fn of(sink: &Sink, patience: Duration) -> Self {
        Self { settings: sink.settings.clone(), pipeline: sink.pipeline.clone(), pid: sink.pid, patience }
    }

    /// Carries out a statement, and ends the sessions that it waits for whenever it has taken that long.
    pub(super) async fn end_while<T>(&self, statement: impl Future<Output = T>) -> T {
        let mut statement = pin!(statement);
        loop {
            tokio::select! {
                done = &mut statement => return done,
                () = tokio::time::sleep(self.patience) => {
                    let ended: Result<u64, ConnectError> = async {
                        let other = postgres::connect(&self.settings, &self.pipeline).await?;
                        Ok(offsets::end_blockers(&other, self.pid).await?)
                    }.await;
                    match ended {
                        Ok(0) => {}
                        Ok(count) => tracing::warn!("ended {count} session(s) of a former loader that stood in the way"),
                        Err(error) => tracing::debug!("cannot look for blockers: {error}"),
                    }
                }
            }
        }
    }
}
