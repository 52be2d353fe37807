//! The way from the source to the batch: one thread polls, one decodes, and both queues between are bounded.
//!
//! ```text
//! source thread --(arena)--> decoder thread --(chunk)--> pipeline
//!       ^                                                    |
//!       +---------------- commands: assign, bounds ----------+
//! ```
//!
//! The source thread never blocks on a full queue: it keeps answering commands, so that the pipeline may ask for something
//! while the queue it reads from is full. Every assignment has a number; what was read under an older one is dropped.

mod decoder;

use std::collections::BTreeMap;
use std::sync::mpsc::{self, RecvTimeoutError, TryRecvError, TrySendError};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc as async_mpsc, oneshot};

use self::decoder::DecoderThread;
use crate::chunk::{Budget, Chunk};
use crate::config;
use crate::dedupe::{Deduplicator, Refill};
use crate::message::Arena;
use crate::metrics::{Metrics, Phase};
use crate::offsets::Anchor;
use crate::program::Program;
use crate::source::{Finding, Polled, Rebalance, Source, SourceError};

/// A chunk is at most this large: with the rows made of it, it is sent by one COPY.
const ARENA_BYTES: usize = 512 << 10;
/// Most chunks that may wait in each queue: together as many rows as the COPY that runs meanwhile.
const QUEUE: usize = 12;
/// How long a poll waits when nothing comes; a command waits as long.
const WAIT: Duration = Duration::from_millis(20);

/// When queues or memory are full for so long, PostgreSQL does not get on. Without polls a source would collect what it has to say.
const STALL: Duration = Duration::from_secs(2);
/// How long a source may take to close.
const PATIENCE: Duration = Duration::from_secs(2);

type Command = Box<dyn FnOnce(&mut dyn Source, &mut Reader) + Send>;

/// Where a part begins, and what was applied last before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    pub part: i32,
    pub next: i64,
    /// To be found at its offset, unless it is gone: then the topic is still the same.
    pub anchor: Option<Anchor>,
}

/// What reaches the pipeline, in the order of the source.
#[derive(Debug)]
pub enum Event {
    Chunk(Chunk),
    EndOfPart {
        assignment: u64,
        part: i32,
        position: i64,
    },
    OutOfRange {
        assignment: u64,
        part: i32,
    },
    /// The part is not the one that was loaded.
    Changed {
        assignment: u64,
        part: i32,
        finding: Finding,
    },
    /// The part is to be left alone, for a reason that concerns its data.
    Stop {
        assignment: u64,
        part: i32,
        reason: String,
    },
}

impl Event {
    pub fn assignment(&self) -> u64 {
        match self {
            Self::Chunk(chunk) => chunk.assignment,
            Self::EndOfPart { assignment, .. }
            | Self::OutOfRange { assignment, .. }
            | Self::Changed { assignment, .. }
            | Self::Stop { assignment, .. } => *assignment,
        }
    }
}

enum Item {
    Assigned(u64, Vec<Start>),
    Polled { assignment: u64, arena: Arena, polled_at: Instant, then: Polled },
}

/// Owns both threads; dropping it ends them.
#[derive(Debug)]
pub struct Feed {
    commands: mpsc::Sender<Command>,
    events: async_mpsc::Receiver<Event>,
    program: Arc<RwLock<Arc<Program>>>,
    assignment: u64,
    refill: Option<Refill>,
    /// Answers when the source is closed.
    closed: oneshot::Receiver<()>,
}

impl Feed {
    /// Starts the threads. `memory` is the limit for messages and rows; what `dedupe` takes comes on top.
    pub fn start(
        source: Box<dyn Source>,
        topic: &str,
        program: Arc<Program>,
        memory: usize,
        budget: Budget,
        metrics: Arc<Metrics>,
        dedupe: Option<&config::Dedupe>,
    ) -> Self {
        let (commands, command_receiver) = mpsc::channel();
        // What waits to be decoded is not counted as memory yet, so it is a small part of it.
        let queue = (memory / (8 * ARENA_BYTES)).clamp(2, QUEUE);
        let (items, item_receiver) = mpsc::sync_channel(queue);
        let (event_sender, events) = async_mpsc::channel(queue);
        let program = Arc::new(RwLock::new(program));
        let reader = Reader {
            assignment: 0,
            positions: BTreeMap::new(),
            next_item: None,
            item_after: None,
            is_member: false,
            is_paused: false,
        };
        let context = ReaderContext {
            commands: command_receiver,
            items,
            memory,
            budget: budget.clone(),
            metrics: metrics.clone(),
        };
        let (closing, closed) = oneshot::channel();
        spawn("source", move || {
            context.run(source, reader);
            let _ = closing.send(());
        });
        let decoder = DecoderThread {
            items: item_receiver,
            events: event_sender,
            program: program.clone(),
            topic: topic.to_owned(),
            budget,
            metrics,
            expected: BTreeMap::new(),
            dedupe: dedupe.map(Deduplicator::new),
            has_forgotten: false,
            assignment: 0,
        };
        spawn("decoder", move || decoder.run());
        Self { commands, events, program, assignment: 0, refill: dedupe.map(Refill::new), closed }
    }

    /// Lets the source do something and waits for the answer.
    pub async fn ask<T: Send + 'static>(
        &self,
        action: impl FnOnce(&mut dyn Source) -> Result<T, SourceError> + Send + 'static,
    ) -> Result<T, SourceError> {
        self.command(move |source, _| action(source)).await
    }

    /// The same for what concerns its thread, too.
    async fn command<T: Send + 'static>(
        &self,
        action: impl FnOnce(&mut dyn Source, &mut Reader) -> Result<T, SourceError> + Send + 'static,
    ) -> Result<T, SourceError> {
        let (reply, answer) = oneshot::channel();
        let gone = || SourceError::Refused("the thread of the source has ended".into());
        self.commands
            .send(Box::new(move |source, reader| {
                let _ = reply.send(action(source, reader));
            }))
            .map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// Joins the consumer group, if the source has one; see [`Source::join`].
    pub async fn join(&self) -> Result<Option<async_mpsc::UnboundedReceiver<Rebalance>>, SourceError> {
        self.command(|source, reader| {
            let joined = source.join();
            reader.is_member = matches!(joined, Ok(Some(_)));
            joined
        })
        .await
    }

    /// Reads these parts and nothing else. Events of before are recognised by their assignment.
    pub async fn assign(&mut self, starts: Vec<Start>) -> Result<(), SourceError> {
        self.assignment += 1;
        let (assignment, refill) = (self.assignment, self.refill);
        self.command(move |source, reader| {
            let positions: Vec<_> = starts
                .iter()
                .map(|start| {
                    // The anchor's record is read once more and then dropped; so is what fills a window again.
                    let from = start.read_from();
                    let refilled = refill.map(|refill| start.refill_from(source, refill, starts.len()));
                    Ok((start.part, from.min(refilled.transpose()?.unwrap_or(from))))
                })
                .collect::<Result<_, SourceError>>()?;
            source.assign(&positions)?;
            reader.is_paused = false;
            reader.assignment = assignment;
            reader.positions = positions.into_iter().collect();
            // Whatever still waits belongs to the former assignment.
            reader.next_item = Some(Item::Assigned(assignment, starts));
            reader.item_after = None;
            Ok(())
        })
        .await
    }

    /// Ends the threads, and waits until the source is closed: a member of a consumer group has left it then.
    pub async fn close(self) {
        let Self { commands, events, closed, .. } = self;
        drop((commands, events));
        if tokio::time::timeout(PATIENCE, closed).await.is_err() {
            tracing::debug!("the source does not close");
        }
    }

    /// The number of the current assignment.
    pub fn assignment(&self) -> u64 {
        self.assignment
    }

    /// The next event of the current assignment. `None`: the threads have ended.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            let event = self.events.recv().await?;
            if event.assignment() == self.assignment {
                return Some(event);
            }
        }
    }

    /// Messages polled from now on are decoded by this program; chunks on their way carry the former one.
    pub fn set_program(&self, program: Arc<Program>) {
        *self.program.write().unwrap_or_else(PoisonError::into_inner) = program;
    }
}

impl Start {
    fn read_from(&self) -> i64 {
        self.anchor.map_or(self.next, |anchor| anchor.offset)
    }

    /// Where to begin so that the window of the part is full when the position is reached; one of `parts` parts.
    fn refill_from(&self, source: &mut dyn Source, refill: Refill, parts: usize) -> Result<i64, SourceError> {
        let since = match self.anchor.and_then(|anchor| anchor.time) {
            Some(time) => source.offset_at(self.part, refill.since(time))?,
            // Unknown: the window tells by the times of the messages.
            None => source.bounds(self.part)?.start,
        };
        Ok(since.max(refill.floor(self.next, parts)))
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) {
    thread::Builder::new().name(name.to_owned()).spawn(body).expect("a thread can be started");
}

/// What a command may change of the source thread.
struct Reader {
    assignment: u64,
    positions: BTreeMap<i32, i64>,
    next_item: Option<Item>,
    /// What came although fetching was paused.
    item_after: Option<Item>,
    /// Of a consumer group, which speaks while the source is polled.
    is_member: bool,
    /// Nothing is fetched, because the pipeline has not got on for long.
    is_paused: bool,
}

struct ReaderContext {
    commands: mpsc::Receiver<Command>,
    items: mpsc::SyncSender<Item>,
    memory: usize,
    budget: Budget,
    metrics: Arc<Metrics>,
}

impl ReaderContext {
    fn run(self, mut source: Box<dyn Source>, mut reader: Reader) {
        let mut trouble: Option<String> = None;
        let mut ends_at = Instant::now();
        let mut blocked_since = None;
        loop {
            loop {
                match self.commands.try_recv() {
                    Ok(command) => command(source.as_mut(), &mut reader),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            if let Some(item) = reader.next_item.take() {
                match self.items.try_send(item) {
                    Ok(()) => reader.next_item = reader.item_after.take(),
                    Err(TrySendError::Full(item)) => reader.next_item = Some(item),
                    Err(TrySendError::Disconnected(_)) => return,
                }
            }
            self.metrics.memory.store(self.budget.used() as u64, std::sync::atomic::Ordering::Relaxed);
            let is_blocked = reader.next_item.is_some() || self.budget.used() + 2 * ARENA_BYTES > self.memory;
            if !is_blocked {
                blocked_since = None;
            }
            let is_stalled = is_blocked && blocked_since.get_or_insert_with(Instant::now).elapsed() > STALL;
            if is_stalled != reader.is_paused && source.pause(is_stalled) {
                tracing::debug!(
                    "fetching {}",
                    if is_stalled { "pauses: PostgreSQL does not get on" } else { "goes on" }
                );
                reader.is_paused = is_stalled;
            }
            let has_room = !is_blocked || reader.is_paused && reader.item_after.is_none();
            if reader.positions.is_empty() && !reader.is_member || !has_room {
                let wait = if is_blocked { Duration::from_millis(1) } else { WAIT };
                if !self.serve_one_command(&mut source, &mut reader, wait) {
                    return;
                }
                continue;
            }
            let mut arena = Arena::with_capacity(ARENA_BYTES, ARENA_BYTES / 128);
            let start = Instant::now();
            self.metrics.note_poll();
            // Should a message come although nothing is fetched, it is one.
            let limit = if reader.is_paused { 1 } else { ARENA_BYTES };
            let polled = source.poll(&mut arena, limit, WAIT);
            if !arena.is_empty() {
                self.metrics.add_time(Phase::Poll, start.elapsed());
            }
            let then = match polled {
                Ok(then) => {
                    self.metrics.kafka_up.store(true, std::sync::atomic::Ordering::Relaxed);
                    if trouble.take().is_some() {
                        tracing::info!("the source answers again");
                    }
                    then
                }
                Err(error) => {
                    self.metrics.kafka_up.store(false, std::sync::atomic::Ordering::Relaxed);
                    let error = error.to_string();
                    if trouble.as_deref() != Some(&error) {
                        tracing::warn!("the source does not answer, trying on: {error}");
                        trouble = Some(error);
                    }
                    if arena.is_empty() {
                        if !self.serve_one_command(&mut source, &mut reader, WAIT) {
                            return;
                        }
                        continue;
                    }
                    Polled::Idle
                }
            };
            if ends_at.elapsed() > Duration::from_secs(1) {
                ends_at = Instant::now();
                self.metrics.set_ends(&source.ends());
                let throttled = source.throttled().as_millis() as u64;
                self.metrics.throttled.fetch_add(throttled, std::sync::atomic::Ordering::Relaxed);
            }
            if !arena.is_empty() || !matches!(then, Polled::Idle | Polled::Messages) {
                let item = Item::Polled { assignment: reader.assignment, arena, polled_at: start, then };
                if reader.next_item.is_some() {
                    reader.item_after = Some(item);
                } else {
                    reader.next_item = Some(item);
                }
            }
        }
    }

    /// `false`: the pipeline is gone.
    fn serve_one_command(&self, source: &mut Box<dyn Source>, reader: &mut Reader, wait: Duration) -> bool {
        match self.commands.recv_timeout(wait) {
            Ok(command) => command(source.as_mut(), reader),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return false,
        }
        true
    }
}

#[cfg(test)]
mod tests;
