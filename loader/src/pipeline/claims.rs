//! Which parts a lane reads: shares them with others, claims them, checks what the source still has of them, stops them.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::start::add_new_parts;
use super::{Lane, Lost, NEW_PARTS};
use crate::batch::{Batch, Owned};
use crate::config::{OnGap, OnRecreated};
use crate::control::Ownership;
use crate::feed::{Feed, Start};
use crate::membership;
use crate::offsets::{Anchor, Claim};
use crate::sink::{Failure, Sink};
use crate::source::{Bounds, Evidence, Finding, Kind, Resume, SourceError, prove_another_topic};
use crate::{Error, Result};

impl Lane<'_> {
    /// Gives back parts beyond our share and takes free ones.
    pub(super) async fn share(
        &mut self,
        feed: &mut Feed,
        sink: &mut Sink,
        mut ownership: Ownership,
    ) -> Result<(), Lost> {
        // A server that has crashed may have lost our last commits, and where nothing comes any more no fence would tell.
        if sink.is_closed() || self.other.is_closed() {
            return Err(Lost::Rejoin("the connection to PostgreSQL has ended".into()));
        }
        if ownership.is_superseded {
            return Err(Failure::Superseded.into());
        }
        if Instant::now() >= self.new_parts_at {
            self.new_parts_at = Instant::now() + NEW_PARTS;
            let known = ownership.owners.keys().copied().collect();
            if let Ok(parts) = feed.ask(|source| source.parts()).await
                && add_new_parts(feed, sink, &known, &parts).await?
            {
                ownership.owners.extend(parts.iter().filter(|part| !known.contains(part)).map(|part| (*part, None)));
            }
        }
        // Somebody else's look may be older than our last claim.
        for part in self.owned.keys().chain(self.stopped.keys()) {
            ownership.owners.entry(*part).or_insert(None).get_or_insert(self.member);
        }
        let plan = match &self.group {
            Some(group) => {
                membership::Plan { claim: self.free_parts(), release: group.given_up(&ownership.owners, self.member) }
            }
            None => membership::plan(&ownership.owners, &ownership.members, self.member),
        };
        if plan == membership::Plan::default() {
            return Ok(());
        }
        self.close(feed, sink).await?;
        if !plan.release.is_empty() {
            tracing::info!("giving back {} part(s) to other loaders", plan.release.len());
            for part in &plan.release {
                self.owned.remove(part);
                self.stopped.remove(part);
            }
            sink.release(&plan.release, self.member).await.map_err(Failure::from)?;
        }
        self.acquire(feed, sink, plan.claim).await
    }

    /// Claims parts, checks that the topic still has what comes next, and reads all own parts from their positions.
    pub(super) async fn acquire(&mut self, feed: &mut Feed, sink: &mut Sink, parts: Vec<i32>) -> Result<(), Lost> {
        let mut starts: Vec<Start> =
            self.owned.iter().map(|(part, owned)| Start { part: *part, next: owned.next, anchor: None }).collect();
        let claims =
            if parts.is_empty() { Vec::new() } else { sink.claim(&parts, self.member).await.map_err(Failure::from)? };
        if !claims.is_empty() {
            tracing::debug!("claimed {} part(s)", claims.len());
        }
        for claim in claims {
            let Claim { part, next, anchor, .. } = claim;
            self.anchors.note_claim(part, anchor);
            match feed.ask(move |source| source.resume(part, next, anchor)).await.map_err(Lost::Source)? {
                Resume::CompareAnchor => {}
                Resume::Proven => {
                    self.owned.insert(part, Owned { next, epoch: claim.epoch });
                    starts.push(Start { part, next, anchor: None });
                    continue;
                }
                Resume::Refused(reason) => {
                    self.stop_part(sink, &claim, reason).await?;
                    continue;
                }
            }
            let Some(bounds) = self.bounds_of(feed, &claim).await? else {
                let why = self.begin_anew(feed, sink).await?;
                let gone = format!("the topic does not have the part any more: it was created again{why}");
                self.stop_part(sink, &claim, gone).await?;
                continue;
            };
            let (next, anchor) = if claim.next < bounds.start {
                let lost =
                    format!("offsets {} to {} were deleted before they were loaded", claim.next, bounds.start - 1);
                self.metrics.gaps.fetch_add((bounds.start - claim.next) as u64, Relaxed);
                if self.config.policy.on.gap == OnGap::Stop {
                    self.stop_part(sink, &claim, lost).await?;
                    continue;
                }
                tracing::warn!("part {}: {lost}; recorded in tally.loader_gaps", claim.part);
                if !sink
                    .record_gap(&claim, bounds.start, "deleted before it was loaded")
                    .await
                    .map_err(Failure::from)?
                {
                    continue;
                }
                (bounds.start, None)
            } else if claim.next > bounds.end {
                let why = self.begin_anew(feed, sink).await?;
                let lost = format!(
                    "position {} lies behind the end {}: the topic was created again or cut off{why}",
                    claim.next, bounds.end
                );
                self.stop_part(sink, &claim, lost).await?;
                continue;
            } else {
                // Gone by retention or compaction it proves nothing.
                (claim.next, claim.anchor.filter(|anchor| anchor.offset >= bounds.start))
            };
            self.owned.insert(claim.part, Owned { next, epoch: claim.epoch });
            starts.push(Start { part: claim.part, next, anchor });
        }
        self.reached.clear();
        self.batch = Batch::default();
        feed.assign(starts).await.map_err(Lost::Source)?;
        self.metrics.set_positions(self.place.number, self.owned.iter().map(|(part, owned)| (*part, owned.next)));
        self.metrics.postgres_up.store(true, Relaxed);
        Ok(())
    }

    /// The offsets a part holds. Right after a change of leader its end may lag for a moment, so a position behind it is
    /// looked at several times. `None`: the topic does not have the part.
    async fn bounds_of(&self, feed: &Feed, claim: &Claim) -> Result<Option<Bounds>, Lost> {
        let part = claim.part;
        let mut looks = 0;
        loop {
            match feed.ask(move |source| source.bounds(part)).await {
                Ok(bounds) if claim.next > bounds.end && looks < 5 => {
                    looks += 1;
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                Ok(bounds) => return Ok(Some(bounds)),
                Err(error @ SourceError::NoTopic(_)) => {
                    let parts = feed.ask(|source| source.parts()).await.map_err(Lost::Source)?;
                    return if parts.contains(&part) { Err(Lost::Source(error)) } else { Ok(None) };
                }
                Err(error) => return Err(Lost::Source(error)),
            }
        }
    }

    /// Parts are not what they were; without any the claim tells. What was read of them and is not committed may come from another topic: it is dropped.
    pub(super) async fn leave_changed(
        &mut self,
        feed: &Feed,
        sink: &mut Sink,
        parts: Vec<(i32, Finding)>,
    ) -> Result<(), Lost> {
        if parts.is_empty() {
            return Err(Lost::Rejoin("the topic does not have all of its parts".into()));
        }
        self.batch = Batch::default();
        sink.rollback().await.map_err(Failure::from)?;
        let why = self.begin_anew(feed, sink).await?;
        for (part, finding) in parts {
            let Some(&Owned { next, epoch }) = self.owned.get(&part) else { continue };
            self.stop_part(sink, &Claim { part, next, epoch, anchor: None }, format!("{finding}{why}")).await?;
        }
        Err(Lost::Rejoin("the topic has changed".into()))
    }

    /// Leaves for the next incarnation of the source, if that is wanted and the topic is proven to be another one. Else what there is to
    /// add to the reason of a part that stops.
    async fn begin_anew(&mut self, feed: &Feed, sink: &mut Sink) -> Result<String, Lost> {
        if self.config.policy.on.recreated == OnRecreated::Stop || self.origin.kind == Kind::File {
            return Ok(String::new());
        }
        let parts = feed.ask(|source| source.parts()).await.map_err(Lost::Source)?;
        let mut starts = Vec::with_capacity(parts.len());
        for &part in &parts {
            starts.push((part, feed.ask(move |source| source.bounds(part)).await.map_err(Lost::Source)?.start));
        }
        let mut known = sink.anchors().await.map_err(Failure::from)?;
        let all = known.len();
        known.retain(|(part, _)| parts.contains(part));
        let gone = vec![Evidence::Gone; all - known.len()];
        let mut evidence = self.anchors.evidence(known).await.map_err(Lost::Source)?;
        evidence.extend(gone);
        match prove_another_topic(&evidence) {
            Err(why) => Ok(format!("; {why}")),
            Ok(()) => {
                if sink.supersede(&starts).await.map_err(Failure::from)? {
                    tracing::warn!("\"{}\" was created again: it is loaded from its beginning", self.origin.name);
                }
                Err(Failure::Superseded.into())
            }
        }
    }

    /// Looks whether the topic is the same before the loader leaves it.
    pub(super) async fn check_anchors(&mut self, feed: &Feed, sink: &mut Sink) -> Result<(), Lost> {
        let anchors = self.anchors.proven(&self.owned);
        self.leave_if_changed(feed, sink, anchors).await
    }

    /// With `new-incarnation`, rows of two topics must never be in one batch, or the new one's would be loaded twice. A record that was
    /// read before the batch has to be where it was after all of the batch was read; then all of it comes from the same topic.
    pub(super) async fn prove_batch(&mut self, feed: &Feed, sink: &mut Sink) -> Result<(), Lost> {
        if self.config.policy.on.recreated == OnRecreated::Stop || self.origin.kind == Kind::File {
            return Ok(());
        }
        let mut anchors: BTreeMap<i32, Anchor> = BTreeMap::new();
        for moved in self.batch.moves(&self.owned) {
            if let Some(anchor) = self.anchors.last(moved.part).or(self.batch.first(moved.part)) {
                anchors.insert(moved.part, anchor);
            }
        }
        self.leave_if_changed(feed, sink, anchors).await
    }

    async fn leave_if_changed(
        &mut self,
        feed: &Feed,
        sink: &mut Sink,
        anchors: BTreeMap<i32, Anchor>,
    ) -> Result<(), Lost> {
        let mut found = self.anchors.look_now(anchors).await.map_err(Lost::Source)?;
        found.retain(|(_, finding)| finding.is_change());
        if found.is_empty() {
            return Ok(());
        }
        self.leave_changed(feed, sink, found).await
    }

    pub(super) async fn stop_part(&mut self, sink: &Sink, claim: &Claim, reason: String) -> Result<(), Lost> {
        tracing::error!("{} is stopped to protect data: {reason}", self.label(claim.part));
        sink.note_stop(claim, &reason).await.map_err(Failure::from)?;
        self.owned.remove(&claim.part);
        self.stopped.insert(claim.part, reason);
        Ok(())
    }

    /// What a part is called in messages: a file has one only.
    pub(super) fn label(&self, part: i32) -> String {
        match self.origin.kind {
            Kind::Kafka => format!("part {part}"),
            Kind::File => format!("\"{}\"", self.origin.name),
        }
    }

    /// Each part has reached the end it had at the start, here or with another loader.
    pub(super) fn is_at_end(&self) -> bool {
        let others = self.control.ownership().positions;
        self.ends.iter().all(|(part, end)| match self.owned.get(part) {
            // What was read is enough: the broker tells the end of a part only after it has waited for more.
            Some(owned) => self.reached.contains(part) || self.batch.position(*part).unwrap_or(owned.next) >= *end,
            None => self.stopped.contains_key(part) || others.get(part).is_some_and(|position| position >= end),
        })
    }

    /// No part is left to load and some are stopped.
    pub(super) fn fail_if_all_stopped(&self, at_end: bool) -> Result<()> {
        if self.stopped.is_empty() || !(self.owned.is_empty() || at_end) {
            return Ok(());
        }
        let parts: Vec<String> =
            self.stopped.iter().map(|(part, reason)| format!("{}: {reason}", self.label(*part))).collect();
        let hint = match self.origin.kind {
            Kind::Kafka => {
                "Look at tally.loader_status. Deleted offsets: policy.on.gap = \"record\" goes on behind them. A topic that was \
                 created again: policy.on.recreated = \"new-incarnation\" loads it from its beginning, and so does another pipeline name."
            }
            Kind::File => {
                "What is before the position is loaded and stays loaded. Repair the file behind it and run again; a file with \
                 other content is another file: give it a name of its own, or load it under another pipeline name."
            }
        };
        Err(Error::Protected {
            message: format!("stopped to protect data: {}", parts.join("; ")),
            hint: Some(hint.into()),
        })
    }
}
