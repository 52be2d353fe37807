//! The state of an aggregate while it grows: one flat chunk of memory that the caller lends.
//!
//! ```text
//! word 0: form u8 | unused | counters u32 (high half)
//! word 1: words of this chunk u32 | capacity for entries u32, a power of 2
//! word 2: entries u32 | bytes of all items u32
//! word 3, 4: total, error
//! then, in the form LIVE:  capacity * 4 words  entries, in the order in which they came
//!                          capacity words      index: twice as many slots u32, the number of an entry + 1, 0 if free
//!                          the rest            the bytes of the items, in the order of their entries
//!       in the form PACKED (capacity 0): stored bytes as they arrived from another process; only ever read
//! ```
//!
//! A chunk starts with 512 bytes: 8 entries and 152 bytes of items. Chunks and capacity double. When one does not fit,
//! an operation answers with the [`Room`] it needs and has counted nothing: the caller lends a larger chunk,
//! [`State::move_to`] fills it, and the operation is asked again.
//!
//! The index is found anew from the entries at any time, so its memory also serves to choose and to sort entries. That
//! is why writing the stored bytes needs no other memory, and why it takes the state by `&mut` although it changes
//! nothing that can be seen.
#![forbid(unsafe_code)]

use super::wire::{Entry, Header, Packed, Writer};
use super::{Counters, Error, MAX_ITEM, MAX_TOTAL};
use crate::sketch::hash;

/// Words before the data.
const HEAD: usize = 5;
/// Words of the first chunk of a state.
pub const FIRST_WORDS: usize = 64;
const FIRST_CAPACITY: usize = 8;
/// PostgreSQL allocates less than 1 GB at once.
const MOST_WORDS: usize = (1 << 27) - 1;

const LIVE: u8 = 1;
const PACKED: u8 = 2;

/// Places in the head.
const TOTAL: usize = 3;
const ERROR: usize = 4;

/// An entry: the hash of its item; its counter, at least 1; what evictions have cut from that; where its item is.
type Slot = [u64; 4];
const HASH: usize = 0;
const COUNTER: usize = 1;
const CUT: usize = 2;
const PLACE: usize = 3;

/// The memory that an operation needs to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    words: usize,
    capacity: usize,
}

impl Room {
    fn new(entries: usize, item_bytes: usize) -> Result<Self, Error> {
        let capacity = entries.next_power_of_two().max(FIRST_CAPACITY);
        let words = HEAD + capacity * 5 + item_bytes.div_ceil(8);
        if words > MOST_WORDS {
            return Err(Error::StateTooLarge);
        }
        Ok(Self { words: words.next_power_of_two().clamp(FIRST_WORDS, MOST_WORDS), capacity })
    }

    /// Words of 8 bytes.
    pub fn words(&self) -> usize {
        self.words
    }
}

/// Why an operation has stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It has to be asked again after the state has moved to a chunk of this size.
    Room(Room),
    /// It cannot be done.
    Error(Error),
}

impl From<Room> for Stop {
    fn from(room: Room) -> Self {
        Self::Room(room)
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// Which entries are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// At most as many as there are counters: a finished sketch.
    Final,
    /// All of them: a part that is going to be united with others.
    Partial,
}

/// The size of the stored bytes, and what decides which entries are among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    header: Header,
    /// Counters up to this one are evicted.
    cut: u64,
    size: usize,
}

impl Layout {
    /// Size of the stored value in bytes.
    pub fn size(&self) -> usize {
        self.size
    }
}

/// A state in its chunk of memory.
#[derive(Debug)]
pub struct State<'a>(&'a mut [u64]);

/// The parts of a chunk.
struct Parts<'s> {
    entries: &'s mut [Slot],
    index: &'s mut [u64],
    items: &'s mut [u8],
}

/// The same, to be read.
#[derive(Clone, Copy)]
struct View<'s> {
    entries: &'s [Slot],
    index: &'s [u32],
    items: &'s [u8],
}

impl Parts<'_> {
    fn view(&self) -> View<'_> {
        View { entries: self.entries, index: bytemuck::cast_slice(self.index), items: self.items }
    }
}

impl<'s> View<'s> {
    /// The number of the entry that holds this item.
    #[inline(always)]
    fn find(&self, hash: u64, item: &[u8]) -> Option<usize> {
        let mask = self.index.len().wrapping_sub(1);
        let mut slot = hash as usize & mask;
        loop {
            let at = (*self.index.get(slot)? as usize).checked_sub(1)?;
            let entry = self.entries.get(at)?;
            if entry[HASH] == hash && self.item(entry) == item {
                return Some(at);
            }
            slot = (slot + 1) & mask;
        }
    }

    #[inline(always)]
    fn item(&self, entry: &Slot) -> &'s [u8] {
        let (start, size) = place(entry);
        self.items.get(start..start + size).unwrap_or_default()
    }

    /// What an entry is stored as. Only an item that a damaged value had twice was cut by more than the error.
    fn stored(&self, entry: &Slot, error: u64) -> Entry<'s> {
        Entry { item: self.item(entry), lower: lower(entry), error: error.saturating_sub(entry[CUT]) }
    }
}

#[inline(always)]
fn place(entry: &Slot) -> (usize, usize) {
    (entry[PLACE] as u32 as usize, (entry[PLACE] >> 32) as usize)
}

fn at_place(start: usize, size: usize) -> u64 {
    start as u64 | (size as u64) << 32
}

fn lower(entry: &Slot) -> u64 {
    entry[COUNTER] + entry[CUT]
}

/// Enters an entry in the index, which has a free slot.
fn enter(index: &mut [u32], hash: u64, at: usize) {
    let mask = index.len() - 1;
    let mut slot = hash as usize & mask;
    while index[slot] != 0 {
        slot = (slot + 1) & mask;
    }
    index[slot] = at as u32 + 1;
}

/// An entry of the other side of a union.
struct Incoming<'o> {
    hash: u64,
    item: &'o [u8],
    counter: u64,
    cut: u64,
}

impl<'a> State<'a> {
    /// Makes an empty state in a chunk of at least [`FIRST_WORDS`].
    pub fn create(chunk: &'a mut [u64], counters: Counters) -> Self {
        Self::lay_out(chunk, LIVE, counters, FIRST_CAPACITY)
    }

    /// Makes a state out of the stored bytes, to be united into another one; the chunk has [`Self::packed_words`].
    pub fn create_packed(chunk: &'a mut [u64], packed: &Packed<'_>) -> Self {
        let mut state = Self::lay_out(chunk, PACKED, packed.header().counters, 0);
        let bytes = packed.bytes();
        state.parts().items[..bytes.len()].copy_from_slice(bytes);
        state.set_used(0, bytes.len());
        state
    }

    /// Words of a chunk for [`Self::create_packed`].
    pub fn packed_words(packed: &Packed<'_>) -> usize {
        HEAD + packed.bytes().len().div_ceil(8)
    }

    fn lay_out(chunk: &'a mut [u64], form: u8, counters: Counters, capacity: usize) -> Self {
        let words = chunk.len();
        chunk[..HEAD].copy_from_slice(&[0, words as u64 | (capacity as u64) << 32, 0, 0, 0]);
        let mut state = Self(chunk);
        state.set_counters(form, counters);
        state.parts().index.fill(0);
        state
    }

    /// The whole chunk of a state, whose first two words are given.
    #[inline(always)]
    pub fn chunk_words(head: &[u64; 2]) -> usize {
        head[1] as u32 as usize
    }

    /// A state that is in this chunk already.
    #[inline(always)]
    pub fn over(chunk: &'a mut [u64]) -> Self {
        Self(chunk)
    }

    /// The stored bytes, if it has only just arrived from another process. Such a state can be united into another one,
    /// and nothing else.
    pub fn stored(&self) -> Option<&[u8]> {
        (self.form() == PACKED).then(|| &self.view().items[..self.item_bytes()])
    }

    /// The number of counters: the one it was created with, or a smaller one of a sketch that was united into it.
    pub fn counters(&self) -> Counters {
        Counters((self.0[0] >> 32) as u32)
    }

    /// How many values have been counted, `N`.
    pub fn total(&self) -> u64 {
        self.0[TOTAL]
    }

    /// How often an absent item may have occurred at most, `T`.
    pub fn error(&self) -> u64 {
        self.0[ERROR]
    }

    /// The number of entries: after an operation at most two per counter.
    pub fn entries(&self) -> usize {
        self.0[2] as u32 as usize
    }

    /// How often an item occurred at least and at most.
    pub fn bounds(&self, item: &[u8]) -> (u64, u64) {
        let view = self.view();
        match view.find(hash::bytes(item, 0), item) {
            Some(at) => {
                let entry = view.stored(&view.entries[at], self.error());
                (entry.lower, entry.upper())
            }
            None => (0, self.error()),
        }
    }

    /// Counts one occurrence of an item.
    ///
    /// # Errors
    /// See [`Self::add_count`].
    #[inline(always)]
    pub fn add(&mut self, item: &[u8]) -> Result<(), Stop> {
        self.add_count(item, 1)
    }

    /// Counts so many occurrences of an item.
    ///
    /// # Errors
    /// The room it needs; an item longer than [`MAX_ITEM`]; a total above [`MAX_TOTAL`].
    #[inline(always)]
    pub fn add_count(&mut self, item: &[u8], count: u64) -> Result<(), Stop> {
        let total = self.total_with(count)?;
        let hash = hash::bytes(item, 0);
        let parts = self.parts();
        match parts.view().find(hash, item) {
            Some(at) => parts.entries[at][COUNTER] += count,
            None => self.add_new(hash, item, count)?,
        }
        self.0[TOTAL] = total;
        Ok(())
    }

    #[inline(never)]
    fn add_new(&mut self, hash: u64, item: &[u8], counter: u64) -> Result<(), Stop> {
        self.check_live()?;
        if item.len() > MAX_ITEM {
            return Err(Error::ItemTooLong(item.len()).into());
        }
        if counter == 0 {
            return Ok(());
        }
        if self.entries() >= self.counters().most_entries() {
            self.evict();
        }
        self.check_room(1, item.len())?;
        self.insert(Incoming { hash, item, counter, cut: 0 });
        Ok(())
    }

    /// Unites a stored value into it.
    ///
    /// # Errors
    /// See [`Stop`].
    pub fn unite(&mut self, other: &Packed<'_>) -> Result<(), Stop> {
        let header = other.header();
        let incoming = other.entries().map(|entry| Incoming {
            hash: hash::bytes(entry.item, 0),
            item: entry.item,
            counter: entry.upper() - header.error,
            cut: header.error - entry.error,
        });
        self.unite_entries(header, other.item_bytes(), incoming)
    }

    /// Unites another state into it.
    ///
    /// # Errors
    /// See [`Stop`].
    pub fn unite_state(&mut self, other: &State<'_>) -> Result<(), Stop> {
        if let Some(bytes) = other.stored() {
            return self.unite(&Packed::read(bytes)?);
        }
        let view = other.view();
        let incoming = view.entries[..other.entries()].iter().map(|entry| Incoming {
            hash: entry[HASH],
            item: view.item(entry),
            counter: entry[COUNTER],
            cut: entry[CUT],
        });
        self.unite_entries(other.header(), other.item_bytes(), incoming)
    }

    fn unite_entries<'o>(
        &mut self,
        other: Header,
        item_bytes: usize,
        incoming: impl Iterator<Item = Incoming<'o>> + Clone,
    ) -> Result<(), Stop> {
        self.check_live()?;
        let total = self.total_with(other.total)?;
        if self.check_room(other.entries, item_bytes).is_err() {
            // Only new items need room.
            let view = self.view();
            let new = incoming.clone().filter(|incoming| view.find(incoming.hash, incoming.item).is_none());
            let (entries, bytes) = new.fold((0, 0), |(n, bytes), incoming| (n + 1, bytes + incoming.item.len()));
            self.check_room(entries, bytes)?;
        }
        for incoming in incoming {
            let parts = self.parts();
            match parts.view().find(incoming.hash, incoming.item) {
                Some(at) => {
                    parts.entries[at][COUNTER] += incoming.counter;
                    parts.entries[at][CUT] += incoming.cut;
                }
                None => self.insert(incoming),
            }
        }
        self.0[TOTAL] = total;
        self.0[ERROR] += other.error;
        self.set_counters(LIVE, self.counters().min(other.counters));
        if self.entries() > self.counters().most_entries() {
            self.evict();
        }
        Ok(())
    }

    /// Moves to a larger chunk, which has at least the words of `room`. The old one is not needed any more.
    pub fn move_to<'b>(&self, chunk: &'b mut [u64], room: Room) -> State<'b> {
        let mut new = State::lay_out(chunk, LIVE, self.counters(), room.capacity);
        let (entries, item_bytes, old) = (self.entries(), self.item_bytes(), self.view());
        let parts = new.parts();
        parts.entries[..entries].copy_from_slice(&old.entries[..entries]);
        parts.items[..item_bytes].copy_from_slice(&old.items[..item_bytes]);
        new.set_used(entries, item_bytes);
        new.0[TOTAL] = self.total();
        new.0[ERROR] = self.error();
        new.index_entries();
        new
    }

    /// What [`Self::pack`] will write.
    pub fn layout(&mut self, packing: Packing) -> Layout {
        let mut header = self.header();
        if let Some(bytes) = self.stored() {
            return Layout { header, cut: 0, size: bytes.len() };
        }
        let cut = match packing {
            Packing::Final => self.counter_to_cut(),
            Packing::Partial => 0,
        };
        self.index_entries();
        let view = self.view();
        let staying = view.entries[..self.entries()].iter().filter(|entry| entry[COUNTER] > cut);
        let (entries, size) =
            staying.fold((0, 0), |(n, size), entry| (n + 1, size + view.stored(entry, header.error).size()));
        header.entries = entries;
        header.error += cut;
        Layout { header, cut, size: header.size() + size }
    }

    /// Writes the stored bytes; `out` has the size of the layout, and the state has not changed since.
    pub fn pack(&mut self, layout: Layout, out: &mut [u8]) {
        let mut out = Writer::new(out);
        if let Some(bytes) = self.stored() {
            return out.bytes(bytes);
        }
        let (entries, error) = (self.entries(), self.error());
        out.header(layout.header);
        let Parts { entries: slots, index, items } = self.parts();
        let mut staying = 0;
        for (at, entry) in slots[..entries].iter().enumerate() {
            if entry[COUNTER] > layout.cut {
                index[staying] = at as u64;
                staying += 1;
            }
        }
        let view = View { entries: slots, index: &[], items };
        let sorted = &mut index[..staying];
        sorted.sort_unstable_by(|a, b| {
            let (a, b) = (&view.entries[*a as usize], &view.entries[*b as usize]);
            lower(b).cmp(&lower(a)).then_with(|| view.item(a).cmp(view.item(b)))
        });
        for at in sorted {
            out.entry(view.stored(&view.entries[*at as usize], error));
        }
        self.index_entries();
    }

    fn form(&self) -> u8 {
        self.0[0] as u8
    }

    fn set_counters(&mut self, form: u8, counters: Counters) {
        self.0[0] = u64::from(form) | u64::from(counters.get()) << 32;
    }

    fn item_bytes(&self) -> usize {
        (self.0[2] >> 32) as usize
    }

    fn set_used(&mut self, entries: usize, item_bytes: usize) {
        self.0[2] = entries as u64 | (item_bytes as u64) << 32;
    }

    fn capacity(&self) -> usize {
        (self.0[1] >> 32) as usize
    }

    fn header(&self) -> Header {
        Header { counters: self.counters(), total: self.total(), error: self.error(), entries: self.entries() }
    }

    #[inline(always)]
    fn parts(&mut self) -> Parts<'_> {
        let capacity = self.capacity();
        let (entries, rest) = self.0[HEAD..].split_at_mut(capacity * 4);
        let (index, items) = rest.split_at_mut(capacity);
        Parts { entries: entries.as_chunks_mut().0, index, items: bytemuck::cast_slice_mut(items) }
    }

    fn view(&self) -> View<'_> {
        let capacity = self.capacity();
        let (entries, rest) = self.0[HEAD..].split_at(capacity * 4);
        let (index, items) = rest.split_at(capacity);
        View { entries: entries.as_chunks().0, index: bytemuck::cast_slice(index), items: bytemuck::cast_slice(items) }
    }

    fn check_live(&self) -> Result<(), Error> {
        if self.form() == LIVE { Ok(()) } else { Err(Error::State("it has not been united yet")) }
    }

    #[inline(always)]
    fn total_with(&self, count: u64) -> Result<u64, Error> {
        self.total().checked_add(count).filter(|total| *total <= MAX_TOTAL).ok_or(Error::TotalTooLarge)
    }

    /// Is there room for so much more?
    fn check_room(&self, entries: usize, item_bytes: usize) -> Result<(), Stop> {
        let (entries, item_bytes) = (self.entries() + entries, self.item_bytes() + item_bytes);
        if entries <= self.capacity() && item_bytes <= self.view().items.len() {
            return Ok(());
        }
        Err(Room::new(entries.max(self.capacity()), item_bytes)?.into())
    }

    /// Adds an entry, for which there is room.
    fn insert(&mut self, new: Incoming<'_>) {
        let (at, start, size) = (self.entries(), self.item_bytes(), new.item.len());
        let parts = self.parts();
        parts.items[start..start + size].copy_from_slice(new.item);
        parts.entries[at] = [new.hash, new.counter, new.cut, at_place(start, size)];
        enter(bytemuck::cast_slice_mut(parts.index), new.hash, at);
        self.set_used(at + 1, start + size);
    }

    /// The largest counter that has to go if only `k` may stay, 0 if there are no more. It leaves an index that has to
    /// be filled anew.
    fn counter_to_cut(&mut self) -> u64 {
        let (entries, counters) = (self.entries(), self.counters().get() as usize);
        if entries <= counters {
            return 0;
        }
        let Parts { entries: slots, index, .. } = self.parts();
        let values = &mut index[..entries];
        for (value, entry) in values.iter_mut().zip(slots.iter()) {
            *value = entry[COUNTER];
        }
        *values.select_nth_unstable_by(counters, |a, b| b.cmp(a)).1
    }

    /// Cuts every counter by the one that comes after the largest `k`, and drops the entries with nothing left.
    fn evict(&mut self) {
        let (entries, cut) = (self.entries(), self.counter_to_cut());
        let Parts { entries: slots, items, .. } = self.parts();
        let (mut staying, mut end) = (0, 0);
        for at in 0..entries {
            let entry = slots[at];
            if entry[COUNTER] <= cut {
                continue;
            }
            let (start, size) = place(&entry);
            items.copy_within(start..start + size, end);
            slots[staying] = [entry[HASH], entry[COUNTER] - cut, entry[CUT] + cut, at_place(end, size)];
            staying += 1;
            end += size;
        }
        self.set_used(staying, end);
        self.0[ERROR] += cut;
        self.index_entries();
    }

    /// Fills the index anew.
    fn index_entries(&mut self) {
        let entries = self.entries();
        let Parts { entries: slots, index, .. } = self.parts();
        index.fill(0);
        let index = bytemuck::cast_slice_mut(index);
        for (at, entry) in slots[..entries].iter().enumerate() {
            enter(index, entry[HASH], at);
        }
    }
}
