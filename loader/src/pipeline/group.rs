//! A consumer group shares the parts: its changes, behind the same fence as everything else.

use std::time::Duration;

use tokio::sync::mpsc;

use super::{Lane, Lost};
use crate::batch::Batch;
use crate::feed::Feed;
use crate::membership::{Group, OpenBatch};
use crate::sink::{Failure, Sink};
use crate::source::Rebalance;

/// How long other members of the group wait for a batch to commit.
const PATIENCE: Duration = Duration::from_secs(2);

/// The membership of this loader.
#[derive(Debug)]
pub(super) struct Membership {
    pub group: Group,
    changes: mpsc::UnboundedReceiver<Rebalance>,
}

impl Membership {
    pub fn new(changes: mpsc::UnboundedReceiver<Rebalance>) -> Self {
        Self { group: Group::default(), changes }
    }
}

/// The next change of the group; never without a group.
pub(super) async fn next_change(membership: &mut Option<Membership>) -> Rebalance {
    if let Some(Membership { changes, .. }) = membership
        && let Some(change) = changes.recv().await
    {
        return change;
    }
    std::future::pending().await
}

impl Lane<'_> {
    /// Gives up and claims what the group says. Whatever it says, the epoch alone decides who may commit.
    pub(super) async fn rebalance(&mut self, feed: &mut Feed, sink: &mut Sink, change: Rebalance) -> Result<(), Lost> {
        if !change.parts().is_empty() {
            tracing::info!("the consumer group {change}");
        }
        let Some(membership) = &mut self.membership else { return Ok(()) };
        let (batch, given_up) = membership.group.rebalance(change);
        let failed = match batch {
            OpenBatch::Commit => {
                self.close(feed, sink).await?;
                None
            }
            OpenBatch::CommitOrDrop => match tokio::time::timeout(PATIENCE, self.close(feed, sink)).await {
                Ok(Ok(())) => None,
                Ok(Err(lost)) => Some(lost),
                Err(_) => Some(Lost::Abandoned("the batch took too long for the group, it will be read again".into())),
            },
            OpenBatch::Drop => Some(Lost::Abandoned("the group has given parts to others".into())),
        };
        if let Some(lost) = failed {
            // The group must not wait until PostgreSQL answers; all parts that are still ours are claimed again.
            self.batch = Batch::default();
            self.owned.clear();
            given_up.iter().for_each(|part| _ = self.stopped.remove(part));
            feed.assign(Vec::new()).await.map_err(Lost::Source)?;
            return Err(lost);
        }
        for part in &given_up {
            self.owned.remove(part);
            self.stopped.remove(part);
        }
        if !given_up.is_empty() {
            sink.release(&given_up, self.member).await.map_err(Failure::from)?;
        }
        let free = self.free_parts();
        self.acquire(feed, sink, free).await
    }

    /// What the group has given to us, nobody else holds, and we do not read yet.
    pub(super) fn free_parts(&self) -> Vec<i32> {
        let Some(membership) = &self.membership else { return Vec::new() };
        let mut free = membership.group.free(&self.control.ownership().owners, self.member);
        free.retain(|part| !self.owned.contains_key(part) && !self.stopped.contains_key(part));
        free
    }
}
