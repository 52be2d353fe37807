//! The bytes of a file, decompressed, through a window that moves forward; all that it has passed is in a hash.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use flate2::read::MultiGzDecoder;
use xxhash_rust::xxh3::Xxh3;

use crate::config::Compression;

/// The window at first, and what is read at least while it has room.
const WINDOW: usize = 1 << 20;

/// Counts the bytes that are read from the disk, for the progress bar.
#[derive(Debug)]
struct Counted<R> {
    inner: R,
    bytes: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.bytes.fetch_add(count as u64, Relaxed);
        Ok(count)
    }
}

/// An open file. Positions are in decompressed bytes.
pub struct Input {
    reader: Box<dyn Read + Send>,
    buffer: Vec<u8>,
    /// The window within the buffer.
    start: usize,
    end: usize,
    /// Where the window starts.
    position: u64,
    is_end: bool,
    /// What follows the window cannot be read.
    failure: Option<io::Error>,
    /// Over all bytes before the window.
    hasher: Xxh3,
    /// The last byte before the window.
    last: Option<u8>,
}

impl Input {
    /// Opens a file at its start; `read` is set to 0 and counts the bytes that come from the disk.
    pub fn open(path: &Path, compression: Compression, read: &Arc<AtomicU64>) -> io::Result<Self> {
        read.store(0, Relaxed);
        let file = Counted { inner: File::open(path)?, bytes: read.clone() };
        let reader: Box<dyn Read + Send> = match compression {
            Compression::None => Box::new(file),
            // Several streams one after the other are one file, as for gunzip and zstd.
            Compression::Gzip => Box::new(MultiGzDecoder::new(io::BufReader::with_capacity(WINDOW / 4, file))),
            Compression::Zstd => Box::new(zstd::stream::read::Decoder::new(file)?),
        };
        Ok(Self {
            reader,
            buffer: vec![0; WINDOW],
            start: 0,
            end: 0,
            position: 0,
            is_end: false,
            failure: None,
            hasher: Xxh3::new(),
            last: None,
        })
    }

    /// The bytes that are read and not consumed.
    pub fn window(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// No byte follows the window, as far as the file goes now.
    pub fn is_end(&self) -> bool {
        self.is_end
    }

    pub fn position(&self) -> u64 {
        self.position
    }

    /// The last byte before the window.
    pub fn last(&self) -> Option<u8> {
        self.last
    }

    /// The hash of all bytes before the window.
    pub fn hash(&self) -> i64 {
        self.hasher.digest() as i64
    }

    /// Moves the start of the window forward.
    pub fn consume(&mut self, bytes: usize) {
        let consumed = &self.buffer[self.start..self.start + bytes];
        self.hasher.update(consumed);
        self.last = consumed.last().copied().or(self.last);
        self.start += bytes;
        self.position += bytes as u64;
    }

    /// Makes the window longer, unless the file ends. A window that is full doubles, up to `limit` bytes; `false`: it is full.
    /// What could be read before a failure comes first.
    pub fn fill(&mut self, limit: usize) -> io::Result<bool> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        if self.end == self.buffer.len() {
            if self.end >= limit {
                return Ok(false);
            }
            self.buffer.resize((2 * self.end).min(limit), 0);
        }
        while !self.is_end && self.end < self.buffer.len() {
            match self.reader.read(&mut self.buffer[self.end..]) {
                Ok(0) => self.is_end = true,
                Ok(count) => self.end += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.failure = Some(error);
                    return Ok(true);
                }
            }
        }
        Ok(true)
    }

    /// Passes all bytes up to a position; `false`: the file ends before it.
    pub fn advance_to(&mut self, position: u64) -> io::Result<bool> {
        while self.position < position {
            let missing = usize::try_from(position - self.position).unwrap_or(usize::MAX);
            self.consume(missing.min(self.end - self.start));
            if self.position < position {
                if self.is_end {
                    return Ok(false);
                }
                self.fill(WINDOW)?;
            }
        }
        Ok(true)
    }
}

impl std::fmt::Debug for Input {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Input").field("position", &self.position).finish_non_exhaustive()
    }
}
