//! The open batch: what was read since the last commit. It decides when rows are copied and when it closes, and what the
//! positions move to; it does no I/O and knows no clock.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::chunk::Chunk;
use crate::config;
use crate::decode::Rejection;
use crate::offsets::Anchor;

/// Rows of one COPY. Each COPY into a partitioned table makes and drops 1,000 tuple slots, which costs as much as some 1,500
/// rows (PostgreSQL 15), so it should have many times that.
pub const ROWS_PER_COPY: usize = 20_000;
/// Rows of one COPY where a bad row has to be found, or was found lately: few enough to send again.
pub const ROWS_PER_CAREFUL_COPY: usize = 5_000;
/// COPYs of one transaction, each a subtransaction: above 64 of them the caches of other backends overflow.
const COPIES: usize = 60;
/// Shortest linger, and how much longer than a commit it must be.
const SHORTEST_LINGER: Duration = Duration::from_millis(5);
const LINGER_PER_COMMIT: u32 = 10;

/// A part that this loader owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owned {
    /// Position as committed, or as it will be once the batch before has committed.
    pub next: i64,
    pub epoch: i64,
}

/// A row that PostgreSQL refused: its chunk, its message, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub chunk: usize,
    pub message: u32,
    pub rejection: Rejection,
}

/// How the position of a part moves with a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    pub part: i32,
    pub expected: i64,
    pub next: i64,
    pub epoch: i64,
    pub rows: i64,
    pub dead: i64,
    pub skipped: i64,
    pub anchor: Option<Anchor>,
}

/// Limits at which a batch closes.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    rows: usize,
    bytes: usize,
    linger: Duration,
}

impl Limits {
    pub fn new(batch: &config::Batch) -> Self {
        Self { rows: batch.rows, bytes: batch.bytes.0, linger: batch.linger.0 }
    }

    /// How long rows wait when no more come: the dearer a commit, the longer, so that committing takes a tenth of the time at
    /// most.
    pub fn linger(&self, last_commit: Duration) -> Duration {
        (last_commit * LINGER_PER_COMMIT).max(SHORTEST_LINGER).min(self.linger)
    }
}

#[derive(Debug, Default)]
pub struct Batch {
    chunks: Vec<Chunk>,
    /// Chunks that are copied already.
    copied: usize,
    copies: usize,
    rows: usize,
    waiting: usize,
    bytes: usize,
    messages: usize,
    /// Ends of parts that were reached: positions without a message.
    ends: BTreeMap<i32, i64>,
    pub refused: Vec<Refused>,
    since: Option<Instant>,
}

impl Batch {
    pub fn is_empty(&self) -> bool {
        self.since.is_none()
    }

    pub fn push(&mut self, chunk: Chunk, now: Instant) {
        self.since.get_or_insert(now);
        self.rows += chunk.starts.len();
        self.waiting += chunk.starts.len();
        self.bytes += chunk.rows.len().max(chunk.arena.size());
        self.messages += chunk.arena.len();
        self.chunks.push(chunk);
    }

    /// The end of a part was reached at a position. It only counts if the position moves by it.
    pub fn end_of_part(&mut self, part: i32, position: i64, owned: &BTreeMap<i32, Owned>, now: Instant) {
        if position > self.position(part).or(owned.get(&part).map(|owned| owned.next)).unwrap_or(i64::MAX) {
            self.ends.insert(part, position);
            self.since.get_or_insert(now);
        }
    }

    /// Where a part stands with this batch, if the batch moves it.
    pub fn position(&self, part: i32) -> Option<i64> {
        let chunks = self.chunks.iter().rev().find_map(|chunk| chunk.parts.iter().find(|moved| moved.part == part));
        chunks.map(|moved| moved.next).max(self.ends.get(&part).copied())
    }

    /// The first record of a part.
    pub fn first(&self, part: i32) -> Option<Anchor> {
        let mut messages = self.chunks.iter().flat_map(|chunk| chunk.arena.iter());
        let first = messages.find(|message| message.part == part)?;
        Some(Anchor { offset: first.offset, time: first.time, hash: first.hash() })
    }

    /// Whether enough rows wait for a COPY; `careful` when bad rows are about.
    pub fn should_copy(&self, careful: bool) -> bool {
        self.waiting >= if careful { ROWS_PER_CAREFUL_COPY } else { ROWS_PER_COPY }
    }

    pub fn should_close(&self, limits: &Limits, now: Instant) -> bool {
        let is_old = self.since.is_some_and(|since| now >= since + limits.linger);
        self.messages >= limits.rows || self.bytes >= limits.bytes || self.copies >= COPIES || is_old
    }

    /// When the batch closes even if no more comes.
    pub fn deadline(&self, linger: Duration) -> Option<Instant> {
        self.since.map(|since| since + linger)
    }

    /// All chunks, and the first that is not copied.
    pub fn chunks(&self) -> (&[Chunk], usize) {
        (&self.chunks, self.copied)
    }

    /// Whether something is left to copy.
    pub fn has_waiting_chunks(&self) -> bool {
        self.copied < self.chunks.len()
    }

    pub fn messages(&self) -> u64 {
        self.messages as u64
    }

    /// The rows up to here are copied, but for those in `refused`.
    pub fn note_copied(&mut self, refused: Vec<Refused>) {
        self.refused.extend(refused);
        self.copied = self.chunks.len();
        self.copies += usize::from(self.waiting > 0);
        self.waiting = 0;
    }

    /// Everything is to be copied again, from chunks that `decode` makes of the present ones.
    pub fn start_over(&mut self, mut decode: impl FnMut(&Chunk) -> Option<Chunk>) {
        for chunk in &mut self.chunks {
            if let Some(again) = decode(chunk) {
                *chunk = again;
            }
        }
        self.refused.clear();
        (self.copied, self.copies) = (0, 0);
        self.rows = self.chunks.iter().map(|chunk| chunk.starts.len()).sum();
        self.waiting = self.rows;
    }

    /// Dead letters: of the decoder and of PostgreSQL.
    pub fn dead(&self) -> impl Iterator<Item = (&Chunk, u32, &Rejection)> {
        let decoder = self.chunks.iter().flat_map(|chunk| chunk.dead.iter().map(move |(at, why)| (chunk, *at, why)));
        let server =
            self.refused.iter().map(|refused| (&self.chunks[refused.chunk], refused.message, &refused.rejection));
        decoder.chain(server)
    }

    pub fn dead_count(&self) -> u64 {
        (self.chunks.iter().map(|chunk| chunk.dead.len()).sum::<usize>() + self.refused.len()) as u64
    }

    /// Messages skipped because the producer has sent them before.
    pub fn duplicates(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.duplicates).sum()
    }

    /// How the positions move. Every message is a row, a dead letter or a skip.
    pub fn moves(&self, owned: &BTreeMap<i32, Owned>) -> Vec<Move> {
        let mut moves: BTreeMap<i32, Move> = BTreeMap::new();
        let start = |part: i32| {
            let owned = owned.get(&part).copied().unwrap_or(Owned { next: -1, epoch: -1 });
            let Owned { next, epoch } = owned;
            Move { part, expected: next, next, epoch, rows: 0, dead: 0, skipped: 0, anchor: None }
        };
        for moved in self.chunks.iter().flat_map(|chunk| &chunk.parts) {
            let entry = moves.entry(moved.part).or_insert_with(|| start(moved.part));
            entry.next = moved.next;
            entry.rows += moved.messages - moved.skipped;
            entry.skipped += moved.skipped;
            entry.anchor = Some(moved.anchor);
        }
        for (chunk, message, _) in self.dead() {
            let part = chunk.arena.get(message as usize).part;
            let entry = moves.entry(part).or_insert_with(|| start(part));
            entry.rows -= 1;
            entry.dead += 1;
        }
        for (&part, &position) in &self.ends {
            let entry = moves.entry(part).or_insert_with(|| start(part));
            entry.next = entry.next.max(position);
        }
        moves.into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::tests::chunk;
    use crate::decode::Reason;

    fn owned(parts: &[(i32, i64, i64)]) -> BTreeMap<i32, Owned> {
        parts.iter().map(|&(part, next, epoch)| (part, Owned { next, epoch })).collect()
    }

    fn limits() -> Limits {
        Limits::new(&config::Batch::default())
    }

    #[test]
    fn every_message_is_a_row_a_dead_letter_or_a_skip() {
        let mut batch = Batch::default();
        let now = Instant::now();
        batch.push(chunk(&[(0, 5, Some("{\"a\": 1}")), (0, 6, Some("x")), (1, 0, None)]), now);
        batch.push(chunk(&[(0, 9, Some("{\"a\": 2}")), (0, 10, Some("{\"a\": 3}"))]), now);
        let rejection = Rejection::new(Reason::Constraint, None, "no");
        batch.note_copied(vec![Refused { chunk: 1, message: 0, rejection }]);
        let moves = batch.moves(&owned(&[(0, 5, 3), (1, 0, 4)]));
        assert_eq!(
            (moves[0].expected, moves[0].next, moves[0].epoch, moves[0].rows, moves[0].dead, moves[0].skipped),
            (5, 11, 3, 2, 2, 0)
        );
        assert_eq!((moves[1].expected, moves[1].next, moves[1].rows, moves[1].skipped), (0, 1, 0, 1));
        assert_eq!(moves[0].anchor.unwrap().offset, 10);
        assert_eq!(batch.dead_count(), 2);
    }

    #[test]
    fn an_end_behind_markers_moves_a_position_without_rows() {
        let mut batch = Batch::default();
        let (owned, now) = (owned(&[(0, 5, 1)]), Instant::now());
        batch.end_of_part(0, 5, &owned, now);
        assert!(batch.is_empty());
        batch.end_of_part(0, 7, &owned, now);
        assert!(!batch.is_empty());
        let moves = batch.moves(&owned);
        assert_eq!((moves[0].expected, moves[0].next, moves[0].rows, moves[0].anchor), (5, 7, 0, None));
    }

    #[test]
    fn an_end_never_moves_a_position_back_and_other_parts_are_not_touched() {
        let mut batch = Batch::default();
        let (owned, now) = (owned(&[(0, 5, 1)]), Instant::now());
        batch.push(chunk(&[(0, 8, Some("{}"))]), now);
        batch.end_of_part(0, 9, &owned, now);
        batch.end_of_part(3, 100, &owned, now);
        assert_eq!(batch.moves(&owned).len(), 1);
        assert_eq!(batch.moves(&owned)[0].next, 9);
    }

    #[test]
    fn a_batch_closes_at_the_first_limit_it_meets() {
        let mut batch = Batch::default();
        assert_eq!(batch.deadline(Duration::from_millis(5)), None);
        let now = Instant::now();
        batch.push(chunk(&[(0, 0, Some("{\"a\": 1}"))]), now);
        assert!(!batch.should_close(&limits(), now));
        assert_eq!(batch.deadline(Duration::from_millis(5)), Some(now + Duration::from_millis(5)));
        assert!(batch.should_close(&Limits { rows: 1, ..limits() }, now));
        assert!(batch.should_close(&Limits { bytes: 10, ..limits() }, now));
        assert!(batch.should_close(&limits(), now + Duration::from_millis(100)));
        for _ in 0..COPIES {
            batch.push(chunk(&[(0, 0, Some("{\"a\": 1}"))]), now);
            batch.note_copied(vec![]);
        }
        assert!(batch.should_close(&limits(), now));
    }

    #[test]
    fn the_linger_follows_the_price_of_a_commit() {
        let limits = limits();
        assert_eq!(limits.linger(Duration::ZERO), Duration::from_millis(5));
        assert_eq!(limits.linger(Duration::from_millis(2)), Duration::from_millis(20));
        assert_eq!(limits.linger(Duration::from_secs(1)), Duration::from_millis(100));
    }

    #[test]
    fn starting_over_forgets_what_the_server_refused() {
        let mut batch = Batch::default();
        batch.push(chunk(&[(0, 0, Some("{\"a\": 1}"))]), Instant::now());
        let rejection = Rejection::new(Reason::Constraint, None, "no");
        batch.note_copied(vec![Refused { chunk: 0, message: 0, rejection }]);
        batch.start_over(|_| None);
        assert_eq!((batch.dead_count(), batch.chunks().1), (0, 0));
        assert_eq!(batch.moves(&owned(&[(0, 0, 1)]))[0].rows, 1);
    }
}
