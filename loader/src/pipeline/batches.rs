//! What a lane does with its batch: copies it, begins again when the table turns out to be another one, commits.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::order::{BATCHES_IN_TURN, may_repeat};
use super::{FIRST_PAUSE, Lane, Lost, unfit};
use crate::Error;
use crate::batch::{Batch, Owned};
use crate::catalog::CatalogError;
use crate::chunk::Chunk;
use crate::feed::Feed;
use crate::metrics::Phase;
use crate::sink::{Checks, Failure, Sink};

/// Batches in small pieces after one with several refused rows.
const CAREFUL_BATCHES: u32 = 20;
/// Reading the leaves may take this share of the time.
const LEAVES_SHARE: u32 = 20;

impl Lane<'_> {
    /// A message found no leaf: perhaps one was made since the leaves were read. They are read again, unless that was after
    /// the message was polled, or is so dear that it would take more than its share of the time.
    pub(super) async fn with_fresh_leaves(&mut self, feed: &Feed, sink: &Sink, chunk: Chunk) -> Result<Chunk, Lost> {
        if !chunk.lacks_leaf() || self.leaves_read_at > chunk.polled_at || Instant::now() < self.leaves_next_at {
            return Ok(chunk);
        }
        if self.refresh_leaves(feed, sink).await? {
            return Ok(chunk.decode_again(self.program.clone(), &self.origin.name));
        }
        Ok(chunk)
    }

    /// Reads the leaves; whether they have changed.
    async fn refresh_leaves(&mut self, feed: &Feed, sink: &Sink) -> Result<bool, Lost> {
        let start = Instant::now();
        let leaves = sink.leaves(self.program.table_oid).await.map_err(Failure::from)?;
        self.leaves_read_at = start;
        self.leaves_next_at = Instant::now() + start.elapsed() * LEAVES_SHARE;
        if leaves == self.program.leaves {
            return Ok(false);
        }
        let program = self.program.with_leaves(leaves);
        self.set_program(feed, program, start);
        Ok(true)
    }

    /// Copies what waits. When the table or its leaves turn out to be others, the whole batch starts over with them.
    pub(super) async fn copy(&mut self, feed: &Feed, sink: &mut Sink) -> Result<(), Lost> {
        let mut checks = Checks::default();
        loop {
            match self.try_copy(sink, checks).await {
                Ok(()) => return Ok(()),
                Err(failure) => checks = self.start_over(feed, sink, failure, checks).await?,
            }
        }
    }

    async fn try_copy(&mut self, sink: &mut Sink, checks: Checks) -> Result<(), Failure> {
        let allowance = self.place.gauge().allowance(self.batch.messages(), Instant::now());
        let (chunks, first) = self.batch.chunks();
        let start = Instant::now();
        let refused = sink.copy(&self.program, &self.owned, chunks, first, checks, allowance).await?;
        self.metrics.add_time(Phase::Copy, start.elapsed());
        self.batch.note_copied(refused);
        Ok(())
    }

    /// Prepares another attempt at the whole batch, or passes the failure on.
    pub(super) async fn start_over(
        &mut self,
        feed: &Feed,
        sink: &mut Sink,
        failure: Failure,
        mut checks: Checks,
    ) -> Result<Checks, Lost> {
        if let Failure::TooManyRefused(error) = &failure {
            return Err(Error::TooManyDeadLetters(format!(
                "more rows are refused than policy.dead_letters allows; the last error was: {error}"
            ))
            .into());
        }
        if !may_repeat(&failure, checks) {
            return Err(failure.into());
        }
        sink.rollback().await.map_err(Failure::from)?;
        self.metrics.replays.fetch_add(1, Relaxed);
        match failure {
            Failure::NoLeaf => {
                checks.leaves_are_fresh = true;
                self.refresh_leaves(feed, sink).await?;
            }
            Failure::Deferred(_) => checks.immediate = true,
            Failure::Rows(_) => self.in_turn = BATCHES_IN_TURN,
            failure => {
                self.recompiled += 1;
                if self.recompiled >= 2 {
                    return Err(Error::unfit(format!(
                        "{} keeps changing, or does not fit: {failure}",
                        self.program.table
                    ))
                    .into());
                }
                tracing::info!("{} was changed, reading its columns again", self.program.table);
                let read_at = Instant::now();
                match sink.table(&self.config.target.table).await {
                    Ok(table) => self.set_table(feed, &table, read_at)?,
                    Err(CatalogError::Postgres(error)) => return Err(Failure::from(error).into()),
                    Err(error) => return Err(unfit(error).into()),
                }
            }
        }
        self.copy_again();
        Ok(checks)
    }

    /// The whole batch is to be copied again, as rows of the present program.
    pub(super) fn copy_again(&mut self) {
        let (program, topic) = (self.program.clone(), &self.origin.name);
        self.batch.start_over(|chunk| {
            (!Arc::ptr_eq(&chunk.program, &program)).then(|| chunk.decode_again(program.clone(), topic))
        });
    }

    /// Copies what waits and commits the batch, while nothing else happens.
    pub(super) async fn commit(&mut self, feed: &Feed, sink: &mut Sink, mut checks: Checks) -> Result<(), Lost> {
        if self.batch.is_empty() {
            return Ok(());
        }
        self.prove_batch(feed, sink).await?;
        let times = loop {
            match self.try_commit(sink, checks).await {
                Ok(times) => break times,
                Err(Lost::Failure(failure)) => checks = self.start_over(feed, sink, failure, checks).await?,
                Err(lost) => return Err(lost),
            }
        };
        let (batch, owned) = (std::mem::take(&mut self.batch), self.owned.clone());
        for moved in batch.moves(&owned) {
            self.owned.insert(moved.part, Owned { next: moved.next, epoch: moved.epoch });
        }
        self.note_commit(&batch, &owned, times);
        Ok(())
    }

    async fn try_commit(&mut self, sink: &mut Sink, checks: Checks) -> Result<(Duration, Duration), Lost> {
        if self.batch.has_waiting_chunks() {
            self.try_copy(sink, checks).await?;
        }
        self.check_dead_letters()?;
        let moves = self.batch.moves(&self.owned);
        Ok(sink.commit(&self.program, &self.owned, &moves, self.batch.dead(), checks).await?)
    }

    /// Whether the present batch keeps the limits of dead letters.
    pub(super) fn check_dead_letters(&self) -> Result<(), Lost> {
        let (messages, dead) = (self.batch.messages(), self.batch.dead_count());
        match self.place.gauge().passed_limit(messages, dead, Instant::now()) {
            Some(limit) => Err(Error::TooManyDeadLetters(limit).into()),
            None => Ok(()),
        }
    }

    /// Counts what a batch was that has committed. `owned`: positions before it; `times`: what moving them and COMMIT took.
    pub(super) fn note_commit(&mut self, batch: &Batch, owned: &BTreeMap<i32, Owned>, times: (Duration, Duration)) {
        let (advance, commit) = times;
        let (moves, dead) = (batch.moves(owned), batch.dead_count());
        self.anchors.note_moves(&moves);
        self.place.gauge().note(batch.messages(), dead, Instant::now());
        self.metrics.add_time(Phase::Advance, advance);
        self.metrics.add_time(Phase::Commit, commit);
        self.metrics.note_commit();
        self.last_commit = advance + commit;
        let rows: i64 = moves.iter().map(|moved| moved.rows).sum();
        self.metrics.rows.fetch_add(rows as u64, Relaxed);
        self.metrics.batches.fetch_add(1, Relaxed);
        self.metrics.duplicates.fetch_add(batch.duplicates(), Relaxed);
        for (_, _, rejection) in batch.dead() {
            self.metrics.add_dead(rejection.reason, 1);
        }
        self.metrics.set_positions(self.place.number, self.owned.iter().map(|(part, owned)| (*part, owned.next)));
        self.metrics.postgres_up.store(true, Relaxed);
        if dead > 0 {
            tracing::debug!("{dead} message(s) became dead letters");
        }
        self.in_turn = self.in_turn.saturating_sub(1);
        match batch.refused.len() {
            0 => self.careful = self.careful.saturating_sub(1),
            // Each COPY costs as much as some 1,500 rows: for single rows, small ones do not pay.
            1 => self.in_turn = BATCHES_IN_TURN,
            _ => self.careful = CAREFUL_BATCHES,
        }
        self.recompiled = 0;
        self.pause = FIRST_PAUSE;
        if std::mem::take(&mut self.paused) {
            tracing::info!("loading again");
        }
    }
}
