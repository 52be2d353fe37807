//! Kafka's wire format, as far as a broker that only serves needs it: the classic encoding (big-endian integers, strings with a
//! 16-bit length, arrays with a 32-bit length) and record batches of format 2.
//! Source: <https://kafka.apache.org/protocol>, <https://kafka.apache.org/documentation/#recordbatch>.

use std::io;

/// Reads one request. Every method fails, and none panics, when the bytes end too early.
#[derive(Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    fn take(&mut self, length: usize) -> io::Result<&'a [u8]> {
        let (bytes, rest) = self.rest.split_at_checked(length).ok_or_else(|| malformed("it ends too early"))?;
        self.rest = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N)?);
        Ok(bytes)
    }

    pub fn i8(&mut self) -> io::Result<i8> {
        Ok(i8::from_be_bytes(self.array()?))
    }

    pub fn i16(&mut self) -> io::Result<i16> {
        Ok(i16::from_be_bytes(self.array()?))
    }

    pub fn i32(&mut self) -> io::Result<i32> {
        Ok(i32::from_be_bytes(self.array()?))
    }

    pub fn i64(&mut self) -> io::Result<i64> {
        Ok(i64::from_be_bytes(self.array()?))
    }

    /// A string; null reads as empty.
    pub fn string(&mut self) -> io::Result<&'a str> {
        let length = self.i16()?.max(0).unsigned_abs();
        std::str::from_utf8(self.take(length.into())?).map_err(|_| malformed("a string is not UTF-8"))
    }

    /// Bytes; null reads as empty.
    pub fn bytes(&mut self) -> io::Result<&'a [u8]> {
        let length = self.i32()?.max(0).unsigned_abs();
        self.take(length as usize)
    }

    /// The elements of an array, each read by `element`; `None` for the null array.
    pub fn nullable_list<T>(&mut self, element: impl Fn(&mut Self) -> io::Result<T>) -> io::Result<Option<Vec<T>>> {
        let length = self.i32()?;
        // No capacity by a number from outside: the list grows only as far as the bytes reach.
        (length >= 0).then(|| (0..length).map(|_| element(self)).collect()).transpose()
    }

    pub fn list<T>(&mut self, element: impl Fn(&mut Self) -> io::Result<T>) -> io::Result<Vec<T>> {
        Ok(self.nullable_list(element)?.unwrap_or_default())
    }
}

pub fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("malformed request: {what}"))
}

/// Writes one response.
#[derive(Debug, Default)]
pub struct Writer {
    pub out: Vec<u8>,
}

impl Writer {
    pub fn i8(&mut self, value: i8) {
        self.out.extend_from_slice(&value.to_be_bytes());
    }

    pub fn i16(&mut self, value: i16) {
        self.out.extend_from_slice(&value.to_be_bytes());
    }

    pub fn i32(&mut self, value: i32) {
        self.out.extend_from_slice(&value.to_be_bytes());
    }

    pub fn i64(&mut self, value: i64) {
        self.out.extend_from_slice(&value.to_be_bytes());
    }

    /// A string of at most 32,767 bytes: host names, topics.
    pub fn string(&mut self, value: &str) {
        self.i16(i16::try_from(value.len()).unwrap_or(i16::MAX));
        self.out.extend_from_slice(value.as_bytes());
    }

    pub fn list<T>(&mut self, items: &[T], element: impl Fn(&mut Self, &T)) {
        self.i32(i32::try_from(items.len()).unwrap_or(i32::MAX));
        for item in items {
            element(self, item);
        }
    }

    /// Leaves room for a 32-bit length; [`Self::fill_length`] writes it.
    pub fn begin_length(&mut self) -> usize {
        self.i32(0);
        self.out.len()
    }

    /// Writes the number of bytes since `begin_length` returned `start`.
    pub fn fill_length(&mut self, start: usize) {
        let length = i32::try_from(self.out.len() - start).unwrap_or(i32::MAX);
        self.out[start - 4..start].copy_from_slice(&length.to_be_bytes());
    }
}

/// Bytes of a batch before its first record.
const BATCH_HEADER: usize = 61;
/// The checksum covers what follows it.
const CHECKSUM: usize = 17;

/// Builds one batch of records without key and headers, into a buffer it lends.
#[derive(Debug)]
pub struct Batch<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
    base_offset: i64,
    base_time: i64,
    last_time: i64,
    records: i32,
}

impl<'a> Batch<'a> {
    pub fn begin(out: &'a mut Vec<u8>, base_offset: i64, base_time: i64) -> Self {
        let start = out.len();
        out.resize(start + BATCH_HEADER, 0);
        Self { out, start, base_offset, base_time, last_time: base_time, records: 0 }
    }

    /// Length of the lent buffer, in bytes.
    pub fn end(&self) -> usize {
        self.out.len()
    }

    /// An upper bound of what [`Self::push`] will add for this value.
    pub fn record_size(value: Option<&[u8]>) -> usize {
        value.map_or(0, <[u8]>::len) + 32
    }

    /// Appends a record; `time` in milliseconds since 1970.
    pub fn push(&mut self, time: i64, value: Option<&[u8]>) {
        // The length of what is not there is -1.
        let value_length = value.map_or(-1, |value| value.len() as i64);
        let value = value.unwrap_or_default();
        let time_delta = time - self.base_time;
        let offset_delta = i64::from(self.records);
        let length = 1
            + varint_size(time_delta)
            + varint_size(offset_delta)
            + varint_size(-1)
            + varint_size(value_length)
            + value.len()
            + varint_size(0);
        put_varint(self.out, length as i64);
        self.out.push(0); // attributes
        put_varint(self.out, time_delta);
        put_varint(self.out, offset_delta);
        put_varint(self.out, -1); // no key
        put_varint(self.out, value_length);
        self.out.extend_from_slice(value);
        put_varint(self.out, 0); // no headers
        self.records += 1;
        self.last_time = self.last_time.max(time);
    }

    /// Fills in the header and gives the buffer back. A batch without records leaves nothing behind.
    pub fn finish(self) -> &'a mut Vec<u8> {
        if self.records == 0 {
            self.out.truncate(self.start);
            return self.out;
        }
        let batch = &mut self.out[self.start..];
        let length = i32::try_from(batch.len() - 12).unwrap_or(i32::MAX);
        batch[0..8].copy_from_slice(&self.base_offset.to_be_bytes());
        batch[8..12].copy_from_slice(&length.to_be_bytes());
        // 12..16 leader epoch 0, 21..23 attributes 0: not compressed, not transactional, time by the producer
        batch[16] = 2; // format of the batch
        batch[23..27].copy_from_slice(&(self.records - 1).to_be_bytes());
        batch[27..35].copy_from_slice(&self.base_time.to_be_bytes());
        batch[35..43].copy_from_slice(&self.last_time.to_be_bytes());
        batch[43..57].fill(0xff); // no producer id, epoch or sequence
        batch[57..61].copy_from_slice(&self.records.to_be_bytes());
        let checksum = crc32c::crc32c(&batch[CHECKSUM + 4..]);
        batch[CHECKSUM..CHECKSUM + 4].copy_from_slice(&checksum.to_be_bytes());
        self.out
    }
}

/// Zigzag, then seven bits a byte.
fn put_varint(out: &mut Vec<u8>, value: i64) {
    let mut bits = zigzag(value);
    while bits >= 0x80 {
        out.push((bits as u8) | 0x80);
        bits >>= 7;
    }
    out.push(bits as u8);
}

fn varint_size(value: i64) -> usize {
    let bits = 64 - (zigzag(value) | 1).leading_zeros();
    bits.div_ceil(7) as usize
}

fn zigzag(value: i64) -> u64 {
    (value.cast_unsigned() << 1) ^ (value >> 63).cast_unsigned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_are_those_of_kafka() {
        for (value, bytes) in [
            (0, &[0x00][..]),
            (-1, &[0x01]),
            (1, &[0x02]),
            (63, &[0x7e]),
            (-64, &[0x7f]),
            (64, &[0x80, 0x01]),
            (300, &[0xd8, 0x04]),
            (i64::MIN, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]),
        ] {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            assert_eq!(out, bytes, "{value}");
            assert_eq!(varint_size(value), bytes.len(), "{value}");
        }
    }

    #[test]
    fn a_request_that_ends_too_early_is_an_error() {
        let mut reader = Reader::new(&[0, 5, b'a', b'b']);
        assert!(reader.string().is_err());
        // An array that claims two thousand million elements allocates nothing.
        assert!(Reader::new(&[0x7f, 0xff, 0xff, 0xff]).list(Reader::i64).is_err());
        assert!(Reader::new(&[0xff, 0xff, 0xff, 0xff]).nullable_list(Reader::i64).unwrap().is_none());
    }

    #[test]
    fn an_empty_batch_leaves_nothing_behind() {
        let mut out = vec![1, 2];
        Batch::begin(&mut out, 7, 0).finish();
        assert_eq!(out, [1, 2]);
    }
}
