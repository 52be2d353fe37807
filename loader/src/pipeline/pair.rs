//! Two data connections that alternate: while one commits a batch, the other already takes the next one.
//!
//! ```text
//! A  BEGIN; COPY n ..  | SET CONSTRAINTS; advance; COMMIT |          BEGIN; COPY n+2 ..
//! B                    | BEGIN; COPY n+1 ..               | advance; COMMIT
//! ```
//!
//! Only what the database holds of position and epoch decides. When a batch does not commit, the one behind it is rolled back
//! before anything else happens: then both are copied again from memory, in order, or read again after a claim.

use std::collections::BTreeMap;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::order::{self, BATCHES_IN_TURN, Older, PATIENCE, Younger};
use super::start::new_sink;
use super::{Lane, Lost};
use crate::batch::{Batch, Owned};
use crate::config::Config;
use crate::feed::Feed;
use crate::metrics::Phase;
use crate::program::Program;
use crate::sink::{Checks, Failure, Sink};
use crate::{Error, postgres};

/// When a second connection is tried again after the server refused one.
const NEXT_ATTEMPT: Duration = Duration::from_secs(60);

/// The connection that takes no rows at the moment.
#[derive(Debug)]
pub(super) enum Other {
    /// There is none; not before this time is one opened.
    Missing(Instant),
    Opening(JoinSet<Result<Sink, String>>),
    Idle(Box<Sink>),
    /// It commits the batch before the present one.
    Commits(JoinSet<Box<Finished>>),
}

/// A batch that was committed, or not.
#[derive(Debug)]
pub(super) struct Finished {
    sink: Sink,
    batch: Batch,
    /// Positions before it.
    owned: BTreeMap<i32, Owned>,
    /// How long moving the positions and COMMIT took.
    result: Result<(Duration, Duration), Failure>,
}

impl Other {
    /// Not before there is more to do than one connection does in time.
    pub(super) fn new() -> Self {
        Self::Missing(Instant::now())
    }

    pub(super) fn is_committing(&self) -> bool {
        matches!(self, Self::Commits(_))
    }

    /// A connection that has ended while nothing happened on it.
    pub(super) fn is_closed(&self) -> bool {
        matches!(self, Self::Idle(sink) if sink.is_closed())
    }

    /// What became of the batch, once it is known; never without one.
    pub(super) async fn finished(&mut self) -> Result<Box<Finished>, Error> {
        let Self::Commits(task) = self else { return std::future::pending().await };
        let finished = task.join_next().await;
        *self = Self::new();
        match finished {
            Some(Ok(finished)) => Ok(finished),
            _ => Err(Error::Bug("the task that commits a batch has ended".into())),
        }
    }

    /// Opens a connection in the background, if there is none. It is there when it is there.
    fn open(&mut self, config: &Config, source: i32) {
        if matches!(self, Self::Missing(at) if *at <= Instant::now()) {
            let (config, mut task) = (config.clone(), JoinSet::new());
            task.spawn(async move {
                let client = postgres::connect(&config.postgres, &config.pipeline).await.map_err(|e| e.to_string())?;
                new_sink(client, &config, source).await.map_err(|error| postgres::describe(&error))
            });
            *self = Self::Opening(task);
        }
    }
}

impl Lane<'_> {
    /// Commits the present batch while the next one is taken by the other connection, or at once if there is none.
    /// `is_full`: more rows wait than one batch holds.
    pub(super) async fn pass_on(&mut self, feed: &Feed, sink: &mut Sink, is_full: bool) -> Result<(), Lost> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let may_send = self.careful == 0 && self.in_turn == 0 && !self.program.is_unique;
        if may_send && matches!(self.other, Other::Idle(_) | Other::Commits(_)) {
            self.send(feed, sink).await?;
        } else if self.batch.has_waiting_chunks() {
            self.copy(feed, sink).await?;
        }
        self.settle(feed, sink).await?;
        if self.in_turn > 0 || self.batch.has_waiting_chunks() {
            return self.commit(feed, sink, Checks::default()).await;
        }
        if is_full {
            self.other.open(self.config, sink.source());
        }
        self.take_opened();
        if matches!(self.other, Other::Idle(_)) {
            self.prove_batch(feed, sink).await?;
        }
        match mem::replace(&mut self.other, Other::new()) {
            Other::Idle(idle) => {
                if let Err(lost) = self.check_dead_letters() {
                    self.other = Other::Idle(idle);
                    return Err(lost);
                }
                let sink = mem::replace(sink, *idle);
                let before = self.owned.clone();
                for moved in self.batch.moves(&before) {
                    self.owned.insert(moved.part, Owned { next: moved.next, epoch: moved.epoch });
                }
                let mut task = JoinSet::new();
                task.spawn(finish(sink, mem::take(&mut self.batch), before, self.program.clone()));
                self.other = Other::Commits(task);
                Ok(())
            }
            other => {
                self.other = other;
                self.commit(feed, sink, Checks::default()).await
            }
        }
    }

    /// Sends the rows that wait. Where that fails they wait again.
    async fn send(&mut self, feed: &Feed, sink: &mut Sink) -> Result<(), Lost> {
        let ((chunks, first), start) = (self.batch.chunks(), Instant::now());
        match sink.send(&self.program, &self.owned, chunks, first, Checks::default()).await {
            Ok(()) => {
                self.metrics.add_time(Phase::Copy, start.elapsed());
                self.batch.note_copied(Vec::new());
            }
            Err(failure) => _ = self.start_over(feed, sink, failure, Checks::default()).await?,
        }
        Ok(())
    }

    /// Commits everything that was read.
    pub(super) async fn close(&mut self, feed: &Feed, sink: &mut Sink) -> Result<(), Lost> {
        self.settle(feed, sink).await?;
        self.commit(feed, sink, Checks::default()).await
    }

    /// Waits for the batch before the present one.
    async fn settle(&mut self, feed: &Feed, sink: &mut Sink) -> Result<(), Lost> {
        let start = Instant::now();
        loop {
            let older = if self.other.is_committing() { Older::UnderWay(start.elapsed()) } else { Older::Settled };
            match order::younger(older, sink.is_open()) {
                Younger::Commits => return Ok(()),
                Younger::IsTakenBack => {
                    self.in_turn = BATCHES_IN_TURN;
                    self.take_back(sink).await?;
                }
                Younger::Waits | Younger::IsDropped => tokio::select! {
                    finished = self.other.finished() => self.conclude(feed, sink, finished?).await?,
                    () = tokio::time::sleep_until((start + PATIENCE).into()), if sink.is_open() => {}
                },
            }
        }
    }

    /// Takes note of what became of the older batch.
    pub(super) async fn conclude(&mut self, feed: &Feed, sink: &mut Sink, finished: Box<Finished>) -> Result<(), Lost> {
        let Finished { sink: mut its_sink, batch, owned, result } = *finished;
        let failure = match result {
            Ok(times) => {
                self.note_commit(&batch, &owned, times);
                self.other = Other::Idle(Box::new(its_sink));
                return Ok(());
            }
            Err(failure) => failure,
        };
        self.in_turn = BATCHES_IN_TURN;
        let checks = Checks::default();
        let older = if order::may_repeat(&failure, checks) { Older::Repeats } else { Older::Lost };
        match order::younger(older, sink.is_open()) {
            Younger::IsDropped | Younger::Commits => {
                self.other = Other::Idle(Box::new(its_sink));
                return Err(failure.into());
            }
            Younger::IsTakenBack => self.take_back(sink).await?,
            Younger::Waits => {}
        }
        let next = mem::replace(&mut self.batch, batch);
        self.owned = owned;
        let repeated = match self.start_over(feed, &mut its_sink, failure, checks).await {
            Ok(checks) => self.commit(feed, &mut its_sink, checks).await,
            Err(lost) => Err(lost),
        };
        if repeated.is_err() {
            // Nothing of it may be left open; whether this is a lost connection, is seen from it afterwards.
            let _ = its_sink.rollback().await;
        }
        self.other = Other::Idle(Box::new(its_sink));
        repeated?;
        self.batch = next;
        self.copy_again();
        Ok(())
    }

    /// The rows of the present batch are rolled back, and are to be copied again.
    async fn take_back(&mut self, sink: &mut Sink) -> Result<(), Lost> {
        tracing::debug!("a batch is rolled back for the one before, and copied again");
        sink.rollback().await.map_err(Failure::from)?;
        self.metrics.replays.fetch_add(1, Relaxed);
        self.copy_again();
        Ok(())
    }

    /// After a failure: what is under way may still commit, and the claim will know. `false`: the connection is lost, and the
    /// other one is to be given up as well.
    pub(super) async fn end_commit(&mut self) -> bool {
        if self.other.is_committing() {
            let Ok(Ok(finished)) = tokio::time::timeout(PATIENCE, self.other.finished()).await else {
                return false;
            };
            let Finished { sink, batch, owned, result } = *finished;
            if let Ok(times) = result {
                self.note_commit(&batch, &owned, times);
            }
            self.other = Other::Idle(Box::new(sink));
        }
        !self.other.is_closed()
    }

    /// Takes the connection that was opened meanwhile.
    fn take_opened(&mut self) {
        let Other::Opening(task) = &mut self.other else { return };
        let Some(opened) = task.try_join_next() else { return };
        self.other = match opened {
            Ok(Ok(sink)) => Other::Idle(Box::new(sink)),
            refused => {
                let why = match refused {
                    Ok(Err(error)) => error,
                    _ => "its task has ended".to_owned(),
                };
                if !mem::replace(&mut self.is_single, true) {
                    tracing::warn!("loading over one connection, a second one cannot be opened: {why}");
                }
                Other::Missing(Instant::now() + NEXT_ATTEMPT)
            }
        };
    }
}

/// Commits a batch whose rows are copied. Whatever hinders it, its transaction has ended afterwards, so that it stands in
/// nobody's way.
async fn finish(mut sink: Sink, batch: Batch, owned: BTreeMap<i32, Owned>, program: Arc<Program>) -> Box<Finished> {
    let moves = batch.moves(&owned);
    let mut result = sink.commit(&program, &owned, &moves, batch.dead(), Checks::default()).await;
    if result.is_err()
        && let Err(error) = sink.rollback().await
    {
        result = Err(error.into());
    }
    Box::new(Finished { sink, batch, owned, result })
}
