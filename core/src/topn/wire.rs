//! The stored bytes, version 1.
//!
//! | part | content |
//! |---|---|
//! | byte 0 | bits 7..4: version 1; bits 3..0: 0 |
//! | byte 1 | options: 0 |
//! | bytes 2..5 | number of counters `k`, little endian |
//! | header | total `N`, error `T`, number of entries |
//! | per entry | size of the item in bytes, the item, `lower`, `error` |
//!
//! Numbers after byte 5 are LEB128 in its shortest form. Entries are ordered by `lower` descending, then by the bytes
//! of the item ascending, so that equal sketches have equal bytes. There are at most `k` entries in a finished sketch
//! and `2k` in one that is on its way between the processes of a query.
//!
//! Reading checks everything but one thing each time, because a page can be corrupt: in one pass, without memory.
//! Whether an item occurs twice is checked once, on input ([`Packed::validate`]). A stored value with such an item
//! gives wrong answers, but no others than a wrong count would.
#![forbid(unsafe_code)]

use super::{Counters, Error, MAX_ITEM, MAX_TOTAL};

const FIRST: u8 = 0x10;
const OPTIONS: u8 = 0;
/// Bytes before the LEB128 numbers.
const FIXED: usize = 6;

/// What leads the entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The number of counters `k`.
    pub counters: Counters,
    /// How many values have been counted, `N`.
    pub total: u64,
    /// How often an absent item may have occurred at most, `T`.
    pub error: u64,
    /// The number of entries.
    pub entries: usize,
}

impl Header {
    /// Most bytes of a header: so many at the start of a value are enough to read it.
    pub const MOST_BYTES: usize = FIXED + 3 * 10;

    /// Reads the header alone; the entries may follow or not.
    ///
    /// # Errors
    /// Not a header of this format.
    pub fn read(bytes: &[u8]) -> Result<Self, Error> {
        Self::split(bytes).map(|(header, _)| header)
    }

    fn split(bytes: &[u8]) -> Result<(Self, Reader<'_>), Error> {
        let first = *bytes.first().ok_or(Error::Truncated)?;
        if first != FIRST {
            return Err(Error::UnknownVersion(first));
        }
        let Some((&[_, options, a, b, c, d], rest)) = bytes.split_first_chunk::<FIXED>() else {
            return Err(Error::Truncated);
        };
        if options != OPTIONS {
            return Err(Error::UnknownOptions(options));
        }
        let counters = u32::from_le_bytes([a, b, c, d]);
        let counters = Counters::checked(i64::from(counters)).ok_or(Error::StoredCounters(counters))?;
        let mut reader = Reader(rest);
        let (total, error, entries) = (reader.number()?, reader.number()?, reader.number()?);
        if total > MAX_TOTAL {
            return Err(Error::StoredTotal);
        }
        if entries > counters.most_entries() as u64 {
            return Err(Error::TooManyEntries(entries));
        }
        Ok((Self { counters, total, error, entries: entries as usize }, reader))
    }

    /// Bytes that it takes.
    pub(super) fn size(&self) -> usize {
        FIXED + [self.total, self.error, self.entries as u64].map(number_size).iter().sum::<usize>()
    }
}

/// An item that is present in a sketch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Its bytes.
    pub item: &'a [u8],
    /// It occurred at least so often.
    pub lower: u64,
    /// It occurred at most so many times more.
    pub error: u64,
}

impl Entry<'_> {
    /// It occurred at most so often.
    pub fn upper(&self) -> u64 {
        self.lower.saturating_add(self.error)
    }

    /// Bytes that it takes.
    pub(super) fn size(&self) -> usize {
        number_size(self.item.len() as u64) + self.item.len() + number_size(self.lower) + number_size(self.error)
    }
}

/// An item of a list of the most frequent ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds<'a> {
    /// Its bytes.
    pub item: &'a [u8],
    /// It occurred at least so often.
    pub lower: u64,
    /// It occurred at most so often.
    pub upper: u64,
    /// It is surely one of the true first n: nothing outside the list, present or absent, can have occurred more often.
    pub certain: bool,
}

/// A stored value that has been checked.
#[derive(Clone, Copy, Debug)]
pub struct Packed<'a> {
    bytes: &'a [u8],
    header: Header,
    entries: &'a [u8],
    item_bytes: usize,
}

impl<'a> Packed<'a> {
    /// Reads a value that has been validated when it was stored.
    ///
    /// # Errors
    /// What does not follow the format, and numbers that no sketch can have; but an item may occur twice.
    pub fn read(bytes: &'a [u8]) -> Result<Self, Error> {
        let (header, reader) = Header::split(bytes)?;
        let mut entries = Entries { reader, left: header.entries };
        let mut before: Option<Entry<'_>> = None;
        // The sum of `lower`, and what the evictions and the counters take up of the total.
        let (mut sum, mut spent) = (0u64, u128::from(header.error) * (u128::from(header.counters.get()) + 1));
        let mut item_bytes = 0;
        while let Some(entry) = entries.read()? {
            if entry.lower == 0 {
                return Err(Error::NeverSeen);
            }
            if entry.error > header.error {
                return Err(Error::EntryError);
            }
            let Some(counter) = entry.upper().checked_sub(header.error).filter(|counter| *counter > 0) else {
                return Err(Error::BelowError);
            };
            if before.is_some_and(|before| (entry.lower, before.item) >= (before.lower, entry.item)) {
                return Err(Error::Order);
            }
            sum = sum.saturating_add(entry.lower);
            spent = spent.saturating_add(u128::from(counter));
            item_bytes += entry.item.len();
            before = Some(entry);
        }
        if sum > header.total {
            return Err(Error::Sum);
        }
        if spent > u128::from(header.total) {
            return Err(Error::SketchError);
        }
        match entries.reader.0.len() {
            0 => Ok(Self { bytes, header, entries: reader.0, item_bytes }),
            left => Err(Error::TooManyBytes(left)),
        }
    }

    /// Reads a value that comes from outside.
    ///
    /// # Errors
    /// Anything that no sketch would be stored as. Whoever takes items as text checks their encoding.
    pub fn validate(bytes: &'a [u8]) -> Result<Self, Error> {
        let packed = Self::read(bytes)?;
        let mut items: Vec<&[u8]> = packed.entries().map(|entry| entry.item).collect();
        items.sort_unstable();
        if !items.is_sorted_by(|a, b| a < b) {
            return Err(Error::DuplicateItem);
        }
        Ok(packed)
    }

    /// Counters, total, error and number of entries.
    pub fn header(&self) -> Header {
        self.header
    }

    /// The value itself.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Bytes of all items together.
    pub(super) fn item_bytes(&self) -> usize {
        self.item_bytes
    }

    /// All entries, by `lower` descending, then by item.
    pub fn entries(&self) -> Entries<'a> {
        Entries { reader: Reader(self.entries), left: self.header.entries }
    }

    /// The n most frequent items and how often each of them has occurred at least, in this order.
    pub fn top(&self, n: usize) -> impl Iterator<Item = (&'a [u8], u64)> + use<'a> {
        self.entries().take(n).map(|entry| (entry.item, entry.lower))
    }

    /// The same list with both bounds, and which items surely belong to it.
    pub fn bounds(&self, n: usize) -> impl Iterator<Item = Bounds<'a>> + use<'a> {
        let outside = self.entries().skip(n).map(|entry| entry.upper()).fold(self.header.error, u64::max);
        self.entries().take(n).map(move |entry| Bounds {
            item: entry.item,
            lower: entry.lower,
            upper: entry.upper(),
            certain: entry.lower >= outside,
        })
    }
}

/// The entries of a stored value, one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Entries<'a> {
    reader: Reader<'a>,
    left: usize,
}

impl<'a> Entries<'a> {
    fn read(&mut self) -> Result<Option<Entry<'a>>, Error> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let size = self.reader.number()?;
        if size > MAX_ITEM as u64 {
            return Err(Error::StoredItemTooLong(size));
        }
        let item = self.reader.take(size as usize)?;
        Ok(Some(Entry { item, lower: self.reader.number()?, error: self.reader.number()? }))
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Entry<'a>;

    /// They have been read before, without an error.
    fn next(&mut self) -> Option<Entry<'a>> {
        self.read().ok().flatten()
    }
}

/// What is left to be read.
#[derive(Clone, Copy, Debug)]
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, size: usize) -> Result<&'a [u8], Error> {
        let (taken, rest) = self.0.split_at_checked(size).ok_or(Error::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    /// A number in LEB128: 7 bits per byte, low ones first; all bytes but the last one have their high bit set.
    fn number(&mut self) -> Result<u64, Error> {
        let mut number = 0;
        for shift in (0..u64::BITS).step_by(7) {
            let (&byte, rest) = self.0.split_first().ok_or(Error::Truncated)?;
            self.0 = rest;
            let bits = u64::from(byte & 0x7f);
            number |= bits << shift;
            if number >> shift != bits {
                return Err(Error::NumberTooLarge);
            }
            match byte {
                0 if shift > 0 => return Err(Error::NumberNotShortest),
                0..0x80 => return Ok(number),
                _ => {}
            }
        }
        Err(Error::NumberTooLarge)
    }
}

/// Bytes of a number in LEB128.
fn number_size(number: u64) -> usize {
    (u64::BITS - (number | 1).leading_zeros()).div_ceil(7) as usize
}

/// Writes a value into a place of its size; what does not fit is left out.
#[derive(Debug)]
pub(super) struct Writer<'o>(&'o mut [u8]);

impl<'o> Writer<'o> {
    pub(super) fn new(out: &'o mut [u8]) -> Self {
        Self(out)
    }

    pub(super) fn header(&mut self, header: Header) {
        self.bytes(&[FIRST, OPTIONS]);
        self.bytes(&header.counters.get().to_le_bytes());
        self.number(header.total);
        self.number(header.error);
        self.number(header.entries as u64);
    }

    pub(super) fn entry(&mut self, entry: Entry<'_>) {
        self.number(entry.item.len() as u64);
        self.bytes(entry.item);
        self.number(entry.lower);
        self.number(entry.error);
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        if let Some((place, rest)) = std::mem::take(&mut self.0).split_at_mut_checked(bytes.len()) {
            place.copy_from_slice(bytes);
            self.0 = rest;
        }
    }

    fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.bytes(&[number as u8 | 0x80]);
            number >>= 7;
        }
        self.bytes(&[number as u8]);
    }
}

/// Bytes of an empty sketch.
pub const EMPTY_SIZE: usize = FIXED + 3;

/// The stored bytes of an empty sketch.
pub fn empty(counters: Counters) -> [u8; EMPTY_SIZE] {
    let mut bytes = [0; EMPTY_SIZE];
    Writer::new(&mut bytes).header(Header { counters, total: 0, error: 0, entries: 0 });
    bytes
}
