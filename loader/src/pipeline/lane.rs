//! One lane: two data connections that alternate (`pair`), with all parts that it owns. From claim to claim it takes what the feed
//! brings, and whatever else has to be done.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::anchors::AnchorCheck;
use super::group::{Changes, next_change, overdue_change};
use super::lanes::Place;
use super::pair::{Finished, Other};
use super::start::new_sink;
use super::{
    Ended, LONG_WAIT, LONGEST_LOOK, LONGEST_PAUSE, check_fields, compile_table, source_error, tell_text_columns, unfit,
};
use crate::batch::{Batch, Limits, Owned};
use crate::catalog::{CatalogError, Table};
use crate::config::Config;
use crate::control::{Control, Ownership};
use crate::feed::{Event, Feed};
use crate::membership::{self, Group};
use crate::metrics::Metrics;
use crate::offsets::Claim;
use crate::postgres::{self, Verdict};
use crate::program::Program;
use crate::sink::{Failure, Sink};
use crate::source::{Finding, Kind, Origin, Rebalance, SourceError};
use crate::stop::Stop;
use crate::{Error, Result, catalog};

/// What ended a stretch of loading.
#[derive(Debug, thiserror::Error)]
pub(super) enum Lost {
    #[error(transparent)]
    Failure(#[from] Failure),
    #[error("{0}")]
    Source(SourceError),
    /// PostgreSQL takes no connections: it is down, starting, or out of reach.
    #[error("{0}")]
    Away(String),
    /// Parts are to be claimed again, with the same connection.
    #[error("{0}")]
    Rejoin(String),
    /// The same with another connection: this one may be in the middle of something.
    #[error("{0}")]
    Abandoned(String),
    /// The loader leaves.
    #[error(transparent)]
    Leave(#[from] Error),
}

impl Lost {
    /// The longest pause before another attempt.
    fn longest_pause(&self) -> Duration {
        if matches!(self, Self::Away(_)) { LONGEST_LOOK } else { LONGEST_PAUSE }
    }
}

/// What there is to do next.
enum Work {
    Change(Rebalance),
    Share(Ownership),
    Event(Event),
    Changed(Vec<(i32, Finding)>),
    Committed(Box<Finished>),
    Close,
}

pub(super) struct Lane<'a> {
    pub(super) config: &'a Config,
    /// With a consumer group, which then shares the parts.
    pub(super) group: Option<Group>,
    pub(super) origin: Origin,
    /// Names of the fields, when all messages have the same.
    pub(super) fields: Option<Vec<String>>,
    pub(super) until_end: bool,
    pub(super) metrics: Arc<Metrics>,
    pub(super) stop: Stop,
    pub(super) control: Control,
    pub(super) member: Uuid,
    pub(super) limits: Limits,
    pub(super) place: Place,
    pub(super) program: Arc<Program>,
    pub(super) leaves_read_at: Instant,
    pub(super) leaves_next_at: Instant,
    pub(super) batch: Batch,
    /// The second connection, perhaps with the batch before this one.
    pub(super) other: Other,
    /// A second connection could not be opened, and that is logged.
    pub(super) is_single: bool,
    /// So many batches commit before the next one is copied.
    pub(super) in_turn: u32,
    /// Positions as they are once the batches before this one have committed.
    pub(super) owned: BTreeMap<i32, Owned>,
    /// Parts that are stopped to protect data, with the reason.
    pub(super) stopped: BTreeMap<i32, String>,
    /// With `until_end`: the end of each part of the topic at the start.
    pub(super) ends: BTreeMap<i32, i64>,
    /// Parts whose end has been seen since they were assigned.
    pub(super) reached: BTreeSet<i32>,
    /// Programs compiled since the last commit.
    pub(super) recompiled: u32,
    /// Batches that are copied in small pieces, because PostgreSQL refused rows lately.
    pub(super) careful: u32,
    pub(super) last_commit: Duration,
    pub(super) new_parts_at: Instant,
    pub(super) pause: Duration,
    /// The last attempt failed, and that is logged.
    pub(super) paused: bool,
    /// The first claim has succeeded.
    pub(super) started: bool,
    /// Until then outages end the start only when it has taken so long.
    pub(super) starts_by: Instant,
    pub(super) anchors: AnchorCheck,
}

impl Lane<'_> {
    /// Loads until there is a reason to leave, through all outages.
    pub(super) async fn keep_loading(
        &mut self,
        feed: &mut Feed,
        sink: Sink,
        source: i32,
        changes: &mut Changes,
    ) -> Result<Ended> {
        let mut sink = Some(sink);
        loop {
            let mut connected = match sink.take() {
                Some(sink) if !sink.is_closed() => sink,
                _ => match self.reconnect(feed, source).await {
                    Ok(sink) => sink,
                    Err(Lost::Leave(error)) => return Err(error),
                    Err(lost) => {
                        self.back_off(&lost, feed, changes).await?;
                        if self.stop.is_signalled() {
                            return Ok(Ended::Done);
                        }
                        continue;
                    }
                },
            };
            let lost = match self.stretch(feed, &mut connected, changes).await {
                Ok(()) => {
                    self.leave(&connected).await;
                    return Ok(Ended::Done);
                }
                Err(lost) => lost,
            };
            self.batch = Batch::default();
            // In this order: the batch before may wait for rows of this one.
            let mut is_rolled_back = !matches!(lost, Lost::Abandoned(_)) && connected.rollback().await.is_ok();
            is_rolled_back = is_rolled_back && self.end_commit().await;
            if !is_rolled_back {
                self.other = Other::new();
            }
            match lost {
                Lost::Leave(error) => {
                    self.leave(&connected).await;
                    return Err(error);
                }
                Lost::Failure(Failure::Superseded) => {
                    tracing::info!("\"{}\" was created again, going over to its new incarnation", self.origin.name);
                    self.leave(&connected).await;
                    return Ok(Ended::Superseded);
                }
                Lost::Rejoin(reason) | Lost::Abandoned(reason) => tracing::info!("claiming the parts again: {reason}"),
                lost => {
                    if let Lost::Failure(Failure::Fenced(_)) = &lost {
                        self.metrics.fenced.fetch_add(1, Relaxed);
                    }
                    self.back_off(&lost, feed, changes).await?;
                }
            }
            if self.stop.is_signalled() {
                self.leave(&connected).await;
                return Ok(Ended::Done);
            }
            if is_rolled_back {
                sink = Some(connected);
            }
        }
    }

    /// Gives up the membership and all leases, if PostgreSQL lets us; else they expire.
    async fn leave(&mut self, sink: &Sink) {
        self.control.stop().await;
        let _ = sink.leave(self.member).await;
    }

    /// Waits before the next attempt; an error at the very start leaves instead, unless its time is not over and waiting may help.
    async fn back_off(&mut self, lost: &Lost, feed: &mut Feed, changes: &mut Changes) -> Result<()> {
        let waits = matches!(lost, Lost::Failure(Failure::Postgres(error))
            if !matches!(postgres::verdict(error), Verdict::Retry | Verdict::Fenced));
        if !self.started {
            let error = match lost {
                Lost::Source(error) => source_error(error.clone()),
                lost if waits => Error::unfit(format!("cannot load: {lost}")),
                lost => Error::Unreachable(format!("cannot start loading: {lost}")),
            };
            if !matches!(error, Error::Unreachable(_)) || Instant::now() + self.pause >= self.starts_by {
                return Err(error);
            }
        }
        if matches!(lost, Lost::Failure(Failure::Postgres(_)) | Lost::Away(_)) {
            self.metrics.postgres_up.store(false, Relaxed);
        }
        let pause = if waits { LONG_WAIT } else { self.pause.min(lost.longest_pause()) };
        if !std::mem::replace(&mut self.paused, true) || waits {
            let what = if self.started { "loading pauses, the batch will be read again" } else { "the start pauses" };
            tracing::warn!("{what}: {lost}");
        }
        // Half of the pause is random, so that many loaders do not come back in step.
        let jitter = 0.5 + 0.5 * (Uuid::new_v4().as_u128() as u32 as f64 / f64::from(u32::MAX));
        self.pause = (self.pause * 2).min(lost.longest_pause());
        let over = tokio::time::sleep(pause.mul_f64(jitter));
        tokio::pin!(over);
        loop {
            tokio::select! {
                () = &mut over => return Ok(()),
                () = self.stop.signalled(1) => return Ok(()),
                change = next_change(changes) => {
                    if let Err(lost) = self.yield_to_group(feed, change).await {
                        tracing::debug!("cannot answer the group: {lost}");
                    }
                }
            }
        }
    }

    /// A new connection; the table may have changed meanwhile.
    async fn reconnect(&mut self, feed: &Feed, source: i32) -> Result<Sink, Lost> {
        let client =
            postgres::connect(&self.config.postgres, &self.config.pipeline).await.map_err(|error| match error {
                error if !self.started && error.refusal().is_some() => {
                    Lost::Leave(postgres::unreachable(&self.config.postgres, &error))
                }
                postgres::ConnectError::Postgres(error) if postgres::is_away(&error) => {
                    Lost::Away(postgres::describe(&error))
                }
                postgres::ConnectError::Postgres(error) => Lost::Failure(error.into()),
                error => Lost::Source(SourceError::Refused(error.to_string())),
            })?;
        let read_at = Instant::now();
        match catalog::table(&client, &self.config.target.table).await {
            Ok(table) => self.set_table(feed, &table, read_at)?,
            Err(CatalogError::Postgres(error)) => return Err(Failure::from(error).into()),
            Err(error) => return Err(Lost::Leave(unfit(error))),
        }
        Ok(new_sink(client, self.config, source).await.map_err(Failure::from)?)
    }

    pub(super) fn set_table(&mut self, feed: &Feed, table: &Table, read_at: Instant) -> Result<()> {
        let program = compile_table(table, self.config)?;
        check_fields(&program, self.fields.as_deref())?;
        self.set_program(feed, program, read_at);
        Ok(())
    }

    /// `read_at`: when its table or leaves began to be read.
    pub(super) fn set_program(&mut self, feed: &Feed, program: Program, read_at: Instant) {
        tell_text_columns(&program, &self.metrics, Some(&self.program));
        self.program = Arc::new(program);
        self.leaves_read_at = read_at;
        feed.set_program(self.program.clone());
    }

    /// From a claim to the first failure. `Ok`: everything is committed and the loader leaves.
    async fn stretch(&mut self, feed: &mut Feed, sink: &mut Sink, changes: &mut Changes) -> Result<(), Lost> {
        let ownership = self.control.ownership();
        let mine: Vec<i32> = self.owned.keys().copied().collect();
        self.owned.clear();
        // A claim that failed half-way may have left us leases.
        let leased = ownership.owners.iter().filter(|(_, owner)| **owner == Some(self.member)).map(|(part, _)| *part);
        let mut wanted: BTreeSet<i32> = mine.into_iter().chain(leased).collect();
        if let Some(group) = &self.group {
            wanted = group.free(&ownership.owners, self.member).into_iter().collect();
        } else {
            wanted.extend(membership::plan(&ownership.owners, &ownership.members, self.member).claim);
        }
        wanted.retain(|part| !self.stopped.contains_key(part));
        self.acquire(feed, sink, wanted.into_iter().collect()).await?;
        if !self.started {
            self.started = true;
            let (parts, name, table) = (self.owned.len(), &self.origin.name, &self.program.table);
            let is_file = self.origin.kind == Kind::File;
            match &self.group {
                Some(_) => tracing::info!("loading what the consumer group gives of \"{name}\" into {table}"),
                None if is_file && parts == 0 && self.stopped.is_empty() => {
                    tracing::info!("another loader has \"{name}\"; waiting until it is done");
                }
                None => tracing::info!("loading {parts} part(s) of \"{name}\" into {table}"),
            }
        }
        loop {
            if self.stop.is_signalled() {
                self.close(feed, sink).await?;
                tracing::info!("stopped; everything that was read is committed");
                return Ok(());
            }
            if self.until_end && self.is_at_end() {
                self.close(feed, sink).await?;
                self.check_anchors(feed, sink).await?;
                self.fail_if_all_stopped(true)?;
                return Ok(());
            }
            self.fail_if_all_stopped(false)?;
            let deadline = self.batch.deadline(self.limits.linger(self.last_commit));
            let work = tokio::select! {
                biased;
                () = self.stop.signalled(1) => continue,
                change = next_change(changes) => Work::Change(change),
                ownership = self.control.changed() => Work::Share(ownership),
                changed = self.anchors.next(&self.owned) => Work::Changed(changed),
                finished = self.other.finished() => Work::Committed(finished?),
                // While more is there, the batch grows: its limits close it.
                event = feed.next() => {
                    Work::Event(event.ok_or_else(|| Error::Bug("the threads of the source have ended".into()))?)
                }
                () = sleep_until(deadline) => Work::Close,
            };
            tokio::select! {
                done = self.work(feed, sink, work) => done?,
                change = overdue_change(changes) => {
                    self.yield_to_group(feed, change).await?;
                    return Err(Lost::Abandoned("PostgreSQL takes too long for the group".into()));
                }
            }
        }
    }

    async fn work(&mut self, feed: &mut Feed, sink: &mut Sink, work: Work) -> Result<(), Lost> {
        match work {
            Work::Change(change) => self.rebalance(feed, sink, change).await,
            Work::Share(ownership) => self.share(feed, sink, ownership).await,
            Work::Event(event) => self.handle(feed, sink, event).await,
            Work::Changed(parts) => self.leave_changed(feed, sink, parts).await,
            Work::Committed(finished) => self.conclude(feed, sink, finished).await,
            Work::Close => self.pass_on(feed, sink, false).await,
        }
    }

    async fn handle(&mut self, feed: &mut Feed, sink: &mut Sink, event: Event) -> Result<(), Lost> {
        match event {
            Event::Chunk(chunk) => {
                let chunk = if Arc::ptr_eq(&chunk.program, &self.program) {
                    chunk
                } else {
                    chunk.decode_again(self.program.clone(), &self.origin.name)
                };
                let chunk = self.with_fresh_leaves(feed, sink, chunk).await?;
                self.batch.push(chunk, Instant::now());
                if self.batch.should_close(&self.limits, Instant::now()) {
                    self.pass_on(feed, sink, true).await?;
                } else if self.batch.should_copy(self.careful > 0) {
                    self.copy(feed, sink).await?;
                }
            }
            Event::EndOfPart { part, position, .. } => {
                // A broker that throttles may say "nothing more" too early; it has said where the end is at the start. Of a file
                // nobody knows before.
                let is_file = self.origin.kind == Kind::File;
                if is_file || self.ends.get(&part).is_none_or(|end| position >= *end) {
                    self.reached.insert(part);
                }
                self.batch.end_of_part(part, position, &self.owned, Instant::now());
            }
            Event::OutOfRange { part, .. } => {
                self.close(feed, sink).await?;
                return Err(Lost::Rejoin(format!("part {part} has no record at its position")));
            }
            Event::Changed { part, finding, .. } => self.leave_changed(feed, sink, vec![(part, finding)]).await?,
            Event::Stop { part, reason, .. } => {
                self.close(feed, sink).await?;
                let owned = self.owned[&part];
                let claim = Claim { part, next: owned.next, epoch: owned.epoch, anchor: None };
                self.stop_part(sink, &claim, reason).await?;
            }
        }
        Ok(())
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_server_is_looked_at_more_often_than_one_that_refuses() {
        assert!(Lost::Away("starting".into()).longest_pause() <= Duration::from_millis(200));
        assert_eq!(Lost::Rejoin("a reason".into()).longest_pause(), LONGEST_PAUSE);
        assert_eq!(Lost::Source(SourceError::Unreachable("away".into())).longest_pause(), LONGEST_PAUSE);
    }

    /// A socket that nobody listens at, and nothing that a server said.
    #[tokio::test]
    async fn a_server_that_is_not_there_is_away() {
        let folder = tempfile::tempdir().unwrap();
        let host = folder.path().to_str().unwrap();
        let failed = tokio_postgres::Config::new().host(host).user("u").connect(tokio_postgres::NoTls).await;
        assert!(postgres::is_away(&failed.err().unwrap()));
    }
}
