//! A consumer group shares the parts: its changes, behind the same fence as everything else.

use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;

use super::{Lane, Lost};
use crate::batch::Batch;
use crate::feed::Feed;
use crate::membership::OpenBatch;
use crate::sink::{Failure, Sink};
use crate::source::Rebalance;

/// How long other members of the group wait for a batch to commit.
const PATIENCE: Duration = Duration::from_secs(2);

/// Changes of the group, if there is one.
pub(super) type Changes = Option<UnboundedReceiver<Rebalance>>;

/// The next change of the group; never without a group.
pub(super) async fn next_change(changes: &mut Changes) -> Rebalance {
    if let Some(changes) = changes
        && let Some(change) = changes.recv().await
    {
        return change;
    }
    std::future::pending().await
}

/// The next change, once it has waited for as long as others can.
pub(super) async fn overdue_change(changes: &mut Changes) -> Rebalance {
    if let Some(changes) = changes {
        // Nothing is taken before the time is over: whoever loses interest meanwhile loses no change.
        while changes.is_empty() && !changes.is_closed() {
            tokio::time::sleep(PATIENCE / 20).await;
        }
        tokio::time::sleep(PATIENCE).await;
    }
    next_change(changes).await
}

impl Lane<'_> {
    /// Gives up and claims what the group says. Whatever it says, the epoch alone decides who may commit.
    pub(super) async fn rebalance(&mut self, feed: &mut Feed, sink: &mut Sink, change: Rebalance) -> Result<(), Lost> {
        let (batch, given_up) = self.note_change(change);
        let failed = match batch {
            OpenBatch::CommitOrDrop => match tokio::time::timeout(PATIENCE, self.close(feed, sink)).await {
                Ok(Ok(())) => None,
                Ok(Err(lost)) => Some(lost),
                Err(_) => Some(Lost::Abandoned("the batch took too long for the group, it will be read again".into())),
            },
            OpenBatch::Drop => Some(Lost::Abandoned("the group has given parts to others".into())),
        };
        if let Some(lost) = failed {
            self.answer_with_nothing(feed).await?;
            return Err(lost);
        }
        given_up.iter().for_each(|part| _ = self.owned.remove(part));
        if !given_up.is_empty() {
            sink.release(&given_up, self.member).await.map_err(Failure::from)?;
        }
        let free = self.free_parts();
        self.acquire(feed, sink, free).await
    }

    /// A change came while PostgreSQL does not answer: the others must not wait for that. The batch is dropped, and what is still ours
    /// is claimed again.
    pub(super) async fn yield_to_group(&mut self, feed: &mut Feed, change: Rebalance) -> Result<(), Lost> {
        self.note_change(change);
        self.answer_with_nothing(feed).await
    }

    fn note_change(&mut self, change: Rebalance) -> (OpenBatch, Vec<i32>) {
        if !change.parts().is_empty() {
            tracing::info!("the consumer group {change}");
        }
        let (batch, given_up) = self.group.get_or_insert_default().rebalance(change);
        given_up.iter().for_each(|part| _ = self.stopped.remove(part));
        (batch, given_up)
    }

    async fn answer_with_nothing(&mut self, feed: &mut Feed) -> Result<(), Lost> {
        self.batch = Batch::default();
        self.owned.clear();
        feed.assign(Vec::new()).await.map_err(Lost::Source)
    }

    /// What the group has given to us, nobody else holds, and we do not read yet.
    pub(super) fn free_parts(&self) -> Vec<i32> {
        let Some(group) = &self.group else { return Vec::new() };
        let mut free = group.free(&self.control.ownership().owners, self.member);
        free.retain(|part| !self.owned.contains_key(part) && !self.stopped.contains_key(part));
        free
    }
}
