//! Whether the topic is still the one that was loaded, while it is loaded: once in a while a record that was read before has to be where it
//! was. At a claim the feed compares the last one that was applied; between claims the client library would go on in a topic that was
//! created again without a word.
//!
//! What is compared is the last record of the check before, not of the last commit: that one may come from the new topic already. A topic
//! that has gone never comes back, so if the older record is there, all that was read before the look comes from the same topic. An idle
//! part is looked at, too, as nothing tells of a topic that was created again and filled as far.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use crate::batch::{Move, Owned};
use crate::offsets::Anchor;
use crate::source::{Evidence, Finding, Probe, Sight, SourceError};

/// Right after a change of leader the end of a part may lag for a moment.
const LOOKS: u32 = 5;
const BETWEEN_LOOKS: Duration = Duration::from_millis(200);

/// What is known of the parts, and the look at them that runs.
pub(super) struct AnchorCheck {
    /// `None` while a look runs, and where the source needs none.
    probe: Option<Box<dyn Probe>>,
    interval: Duration,
    /// Looks follow each other so fast that connections stay open.
    keeps_open: bool,
    next_at: Instant,
    /// A record of each part that was read from the topic which the state tables stand for.
    proven: BTreeMap<i32, Anchor>,
    /// The last record that was loaded.
    last: BTreeMap<i32, Anchor>,
    running: Option<Running>,
    is_cancelled: Arc<AtomicBool>,
}

/// What each part turned out to be.
type Found = Result<Vec<(i32, Finding)>, SourceError>;

struct Running {
    task: JoinHandle<(Box<dyn Probe>, Found)>,
    /// What is proven if it finds no change.
    last: BTreeMap<i32, Anchor>,
}

impl AnchorCheck {
    pub(super) fn new(probe: Option<Box<dyn Probe>>, interval: Duration, keeps_open: bool) -> Self {
        Self {
            probe,
            interval,
            keeps_open,
            next_at: Instant::now() + interval,
            proven: BTreeMap::new(),
            last: BTreeMap::new(),
            running: None,
            is_cancelled: Arc::default(),
        }
    }

    /// A part was claimed; its anchor is compared by whoever reads the part.
    pub(super) fn note_claim(&mut self, part: i32, anchor: Option<Anchor>) {
        if let Some(anchor) = anchor {
            // An older one says as much, and cannot come from another topic.
            self.proven.entry(part).or_insert(anchor);
            self.last.insert(part, anchor);
        }
    }

    /// A batch was committed.
    pub(super) fn note_moves(&mut self, moves: &[Move]) {
        for (part, anchor) in moves.iter().filter_map(|moved| Some((moved.part, moved.anchor?))) {
            self.proven.entry(part).or_insert(anchor);
            self.last.insert(part, anchor);
        }
    }

    /// Parts that are not what they were, whenever a check finds some; none when the topic does not have them at all. It may be dropped and called again.
    pub(super) async fn next(&mut self, owned: &BTreeMap<i32, Owned>) -> Vec<(i32, Finding)> {
        loop {
            if self.running.is_none() {
                tokio::time::sleep_until(self.next_at.into()).await;
                self.next_at = Instant::now() + self.interval;
                self.running = self.start(owned);
            }
            let Some(running) = &mut self.running else { continue };
            let done = (&mut running.task).await;
            let last = self.running.take().map(|running| running.last).unwrap_or_default();
            self.next_at = Instant::now() + self.interval;
            let Ok((probe, found)) = done else { continue };
            self.put_back(probe);
            match found {
                Ok(found) => {
                    let changed: Vec<_> = found.into_iter().filter(|(_, finding)| finding.is_change()).collect();
                    self.proven
                        .extend(last.into_iter().filter(|(part, _)| changed.iter().all(|(other, _)| other != part)));
                    if !changed.is_empty() {
                        return changed;
                    }
                }
                Err(SourceError::NoTopic(_)) => return Vec::new(),
                Err(error) => tracing::debug!("cannot look whether the topic is the same: {error}"),
            }
        }
    }

    fn put_back(&mut self, mut probe: Box<dyn Probe>) {
        if !self.keeps_open {
            probe.close();
        }
        self.probe = Some(probe);
    }

    /// What the next check compares of these parts.
    pub(super) fn proven(&self, owned: &BTreeMap<i32, Owned>) -> BTreeMap<i32, Anchor> {
        let owned = self.proven.iter().filter(|(part, _)| owned.contains_key(part));
        owned.map(|(part, anchor)| (*part, *anchor)).collect()
    }

    /// The last record that was loaded from a part.
    pub(super) fn last(&self, part: i32) -> Option<Anchor> {
        self.last.get(&part).copied()
    }

    /// Looks now; none where the source needs no look.
    pub(super) async fn look_now(&mut self, anchors: BTreeMap<i32, Anchor>) -> Found {
        if anchors.is_empty() {
            return Ok(Vec::new());
        }
        let found = self.probe_now(move |probe, is_cancelled| look(probe, &anchors, is_cancelled)).await;
        found.unwrap_or(Ok(Vec::new()))
    }

    /// What these parts say of the whole topic; nothing where the source needs no look.
    pub(super) async fn evidence(&mut self, parts: Vec<(i32, Option<Anchor>)>) -> Result<Vec<Evidence>, SourceError> {
        let found = self.probe_now(move |probe, is_cancelled| evidence(probe, &parts, is_cancelled)).await;
        found.unwrap_or(Ok(Vec::new()))
    }

    async fn probe_now<T: Send + 'static>(
        &mut self,
        action: impl FnOnce(&mut dyn Probe, &AtomicBool) -> T + Send + 'static,
    ) -> Option<T> {
        if let Some(running) = &mut self.running {
            // What it says is said again by the next one.
            let done = (&mut running.task).await;
            self.running = None;
            self.probe = done.ok().map(|(probe, _)| probe);
        }
        let mut probe = self.probe.take()?;
        let is_cancelled = self.is_cancelled.clone();
        let task = tokio::task::spawn_blocking(move || {
            let done = action(probe.as_mut(), &is_cancelled);
            (probe, done)
        });
        let (probe, done) = task.await.ok()?;
        self.put_back(probe);
        Some(done)
    }

    fn start(&mut self, owned: &BTreeMap<i32, Owned>) -> Option<Running> {
        let is_owned = |part: &i32| owned.contains_key(part);
        let proven = self.proven(owned);
        if proven.is_empty() {
            return None;
        }
        let last = self.last.iter().filter(|(part, _)| is_owned(part)).map(|(part, anchor)| (*part, *anchor)).collect();
        let mut probe = self.probe.take()?;
        let is_cancelled = self.is_cancelled.clone();
        let task = tokio::task::spawn_blocking(move || {
            let found = look(probe.as_mut(), &proven, &is_cancelled);
            (probe, found)
        });
        Some(Running { task, last })
    }
}

impl Drop for AnchorCheck {
    fn drop(&mut self) {
        self.is_cancelled.store(true, Relaxed);
    }
}

fn evidence(
    probe: &mut dyn Probe,
    parts: &[(i32, Option<Anchor>)],
    is_cancelled: &AtomicBool,
) -> Result<Vec<Evidence>, SourceError> {
    let anchors: BTreeMap<i32, Anchor> = parts.iter().filter_map(|(part, anchor)| Some((*part, (*anchor)?))).collect();
    let mut all = vec![Evidence::Nothing; parts.len() - anchors.len()];
    for (part, finding) in look(probe, &anchors, is_cancelled)? {
        let mut first = probe.look(&[(part, 0)], is_cancelled)?;
        if let Some((_, Sight::OutOfRange(bounds))) = first.first() {
            first = probe.look(&[(part, bounds.start)], is_cancelled)?;
        }
        all.extend(first.first().map(|(_, first)| Evidence::of(anchors[&part], finding, *first)));
    }
    Ok(all)
}

/// Looks at the anchors, again at those that lie behind the end of their part.
fn look(probe: &mut dyn Probe, anchors: &BTreeMap<i32, Anchor>, is_cancelled: &AtomicBool) -> Found {
    let mut found = BTreeMap::new();
    let mut at: Vec<(i32, i64)> = anchors.iter().map(|(part, anchor)| (*part, anchor.offset)).collect();
    for turn in 0..LOOKS {
        if turn > 0 {
            std::thread::sleep(BETWEEN_LOOKS);
        }
        let seen = probe.look(&at, is_cancelled)?;
        found.extend(seen.into_iter().map(|(part, sight)| (part, Finding::of(anchors[&part], sight))));
        at.retain(|(part, _)| matches!(found.get(part), Some(Finding::Shorter { .. })));
        if at.is_empty() {
            break;
        }
    }
    Ok(found.into_iter().collect())
}
