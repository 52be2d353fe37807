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
use crate::source::{Finding, Probe, SourceError};

/// Right after a change of leader the end of a part may lag for a moment.
const LOOKS: u32 = 5;
const BETWEEN_LOOKS: Duration = Duration::from_millis(200);

/// What is known of the parts, and the look at them that runs.
pub(super) struct AnchorCheck {
    /// `None` while a look runs, and where the source needs none.
    probe: Option<Box<dyn Probe>>,
    interval: Duration,
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
    pub(super) fn new(probe: Option<Box<dyn Probe>>, interval: Duration) -> Self {
        Self {
            probe,
            interval,
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

    /// Parts that are not what they were, whenever a check finds some. It may be dropped and called again.
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
            let Ok((mut probe, found)) = done else { continue };
            // Connections that are idle for so long are of no use.
            probe.close();
            self.probe = Some(probe);
            match found {
                Ok(found) => {
                    let changed: Vec<_> = found.into_iter().filter(|(_, finding)| finding.is_change()).collect();
                    self.proven
                        .extend(last.into_iter().filter(|(part, _)| changed.iter().all(|(other, _)| other != part)));
                    if !changed.is_empty() {
                        return changed;
                    }
                }
                Err(error) => tracing::debug!("cannot look whether the topic is the same: {error}"),
            }
        }
    }

    fn start(&mut self, owned: &BTreeMap<i32, Owned>) -> Option<Running> {
        let is_owned = |part: &i32| owned.contains_key(part);
        let proven: BTreeMap<i32, Anchor> =
            self.proven.iter().filter(|(part, _)| is_owned(part)).map(|(part, anchor)| (*part, *anchor)).collect();
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
