//! Rows of a Parquet file, as JSON objects: a row is a message like any other then, and readable as a dead letter. The position
//! is the number of the next row. The file is written once and as a whole, so a hash over all of it recognises it.

mod json;
mod reader;

use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parquet::basic::{ConvertedType, Type};
use parquet::errors::ParquetError;
use parquet::file::reader::FileReader;
use parquet::file::serialized_reader::SerializedFileReader;
use parquet::schema::types::ColumnDescriptor;

use self::reader::Reader;
use super::input::Input;
use super::{PART, Proof, Reading, State};
use crate::config::Compression;
use crate::message::{Arena, End, Message};
use crate::offsets::Anchor;
use crate::source::Polled;
use crate::{Error, Result};

/// An open file.
pub struct Rows {
    reader: Reader,
    /// The next row and how many there are.
    position: i64,
    count: i64,
    hash: i64,
    /// Bytes of the file, and how many of them count as read.
    bytes: u64,
    read: Arc<AtomicU64>,
    buffer: Vec<u8>,
}

/// Names of the outermost fields; an error when the file is none, or holds what cannot be read.
pub fn fields(path: &Path, compression: Compression) -> Result<Vec<String>> {
    let unfit = |what: String| Error::unfit(format!("cannot read \"{}\": {what}", path.display()));
    if compression != Compression::None {
        return Err(unfit("a Parquet file is compressed inside, never as a whole".into()));
    }
    let reader = File::open(path).map_err(|error| unfit(error.to_string()))?;
    let reader = guarded(|| SerializedFileReader::new(reader)).map_err(unfit)?;
    let schema = reader.metadata().file_metadata().schema_descr();
    for column in schema.columns() {
        if !is_readable(column) {
            return Err(unfit(format!(
                "its column \"{}\" is {} with {}, which is not built yet",
                column.path().string(),
                column.physical_type(),
                column.converted_type()
            )));
        }
    }
    Ok(schema.root_schema().get_fields().iter().map(|field| field.name().to_owned()).collect())
}

/// What the library's rows can hold. INT96 is a time that they would cut to milliseconds.
fn is_readable(column: &ColumnDescriptor) -> bool {
    use ConvertedType as C;
    match column.physical_type() {
        Type::BOOLEAN | Type::FLOAT | Type::DOUBLE => true,
        Type::INT96 => false,
        Type::INT32 => !matches!(column.converted_type(), C::TIMESTAMP_MILLIS | C::TIMESTAMP_MICROS | C::TIME_MICROS),
        Type::INT64 => !matches!(column.converted_type(), C::DATE | C::TIME_MILLIS),
        Type::BYTE_ARRAY => {
            matches!(column.converted_type(), C::UTF8 | C::ENUM | C::JSON | C::BSON | C::NONE | C::DECIMAL)
        }
        Type::FIXED_LEN_BYTE_ARRAY => matches!(column.converted_type(), C::NONE | C::DECIMAL),
    }
}

/// Runs the library, which panics on some damaged files.
fn guarded<T>(action: impl FnOnce() -> std::result::Result<T, ParquetError>) -> std::result::Result<T, String> {
    match catch_unwind(AssertUnwindSafe(action)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("it is damaged".into()),
    }
}

/// Opens the file at a row after it has proven that it is the one that was loaded.
pub(super) fn resume(file: &Reading, next: i64, anchor: Option<Anchor>, read: &Arc<AtomicU64>) -> io::Result<Proof> {
    let mut input = Input::open(&file.path, Compression::None, read)?;
    input.advance_to(u64::MAX)?;
    let (hash, bytes) = (input.hash(), input.position());
    read.store(0, Relaxed);
    if anchor.is_some_and(|anchor| anchor.hash != hash) {
        return Ok(Proof::Refused("the file is not the one that was loaded: it was changed or replaced".into()));
    }
    let open = guarded(|| Reader::open(&file.path, next, file.is_utc));
    let (reader, count) = open.map_err(io::Error::other)?;
    let rows = Rows { reader, position: next, count, hash, bytes, read: read.clone(), buffer: Vec::new() };
    Ok(Proof::Same(State::Parquet(Box::new(rows))))
}

impl Rows {
    /// Fills the arena up to about `limit` bytes.
    pub fn poll(&mut self, into: &mut Arena, limit: usize) -> Polled {
        let polled = loop {
            if into.size() >= limit {
                break Polled::Messages;
            }
            self.buffer.clear();
            match guarded(|| self.reader.append_next(&mut self.buffer)) {
                Ok(true) => {
                    let (offset, value) = (self.position, Some(&self.buffer[..]));
                    into.push(Message { part: PART, offset, time: None, key: None, value, headers: None });
                    self.position += 1;
                }
                Ok(false) if self.position >= self.count => {
                    break Polled::EndOfPart { part: PART, position: self.position };
                }
                Ok(false) => break self.broken("it ends"),
                Err(error) => break self.broken(&error),
            }
        };
        let share = self.bytes as f64 * self.position as f64 / self.count.max(1) as f64;
        self.read.store(share as u64, Relaxed);
        let anchor = Anchor { offset: self.position, time: None, hash: self.hash };
        into.set_end(End { part: PART, next: self.position, anchor });
        polled
    }

    fn broken(&self, error: &str) -> Polled {
        Polled::Broken { part: PART, reason: format!("the file cannot be read behind row {}: {error}", self.position) }
    }
}

impl std::fmt::Debug for Rows {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Rows").field("position", &self.position).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
