//! A file as a source with one part: the position is the byte at which the next record begins, in decompressed bytes (in a
//! Parquet file the number of the next row).
//!
//! What was loaded is recognised by a hash over all bytes before the position, stored with each advance. So a file may grow, and
//! whatever else happens to it is noticed before another row is loaded.

mod input;
#[cfg(feature = "parquet")]
mod parquet;
mod split;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use input::Input;
use split::{Splitter, Stop};

use super::{Bounds, Polled, Resume, Source, SourceError};
use crate::config::{Compression, FileFormat, FileSettings};
use crate::csv::{Csv, Dialect, Fields};
use crate::message::{Arena, End, Message};
use crate::offsets::Anchor;
use crate::{Error, Result};

/// UTF-8 with a mark that says so.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// The number of the only part.
const PART: i32 = 0;

/// A file and how to read it. Checked as far as that goes without the table.
#[derive(Debug)]
pub struct FileSource {
    file: Reading,
    /// Bytes read from the disk so far.
    read: Arc<AtomicU64>,
    /// Proven to go on at this position, and not yet assigned.
    proven: Option<(i64, State)>,
    state: State,
}

/// What does not change while a file is read.
#[derive(Debug)]
struct Reading {
    path: PathBuf,
    format: FileFormat,
    compression: Compression,
    /// Names of the fields, when all records have the same.
    names: Option<Vec<String>>,
    /// With CSV.
    csv: Option<Arc<Csv>>,
    /// The first record names the fields.
    has_header: bool,
    is_growing: bool,
    /// A time without a zone is one of UTC.
    #[cfg_attr(not(feature = "parquet"), expect(dead_code, reason = "CSV carries it with its records"))]
    is_utc: bool,
    /// No record may be longer.
    record_limit: usize,
}

#[derive(Debug)]
enum State {
    /// Nothing is to be read now.
    Idle,
    Text(Box<Text>),
    #[cfg(feature = "parquet")]
    Parquet(Box<parquet::Rows>),
}

/// An open file of lines or CSV.
#[derive(Debug)]
struct Text {
    input: Input,
    splitter: Splitter,
    /// Behind the last record that was handed over: no position lies further, because the hash goes with the records.
    settled: i64,
}

impl FileSource {
    /// Looks at a file; `memory` is the limit for messages and rows.
    pub fn new(path: &Path, settings: &FileSettings, memory: usize) -> Result<Self> {
        let unfit = |error: io::Error| Error::unfit(format!("cannot read \"{}\": {error}", path.display()));
        let path = path.canonicalize().map_err(unfit)?;
        if !path.metadata().map_err(unfit)?.is_file() {
            return Err(Error::unfit_hint(
                format!("\"{}\" is no regular file", path.display()),
                "A pipe or a device cannot be read again after a crash. Write it to a file first.",
            ));
        }
        if path.to_str().is_none_or(|name| name.contains('\0')) {
            return Err(Error::unfit(format!(
                "\"{}\" has a name that is not valid UTF-8, and cannot be remembered in PostgreSQL",
                path.display()
            )));
        }
        let read = Arc::new(AtomicU64::new(0));
        let mut file = Reading::new(path, settings, memory, &read)?;
        match file.format {
            #[cfg(feature = "parquet")]
            FileFormat::Parquet => file.names = Some(parquet::fields(&file.path, file.compression)?),
            #[cfg(not(feature = "parquet"))]
            FileFormat::Parquet => {
                return Err(Error::unfit("this tally-loader was built without its feature \"parquet\""));
            }
            _ => file.names = file.csv.as_ref().map(|csv| csv.names.clone()),
        }
        Ok(Self { file, read, proven: None, state: State::Idle })
    }

    /// The path as it is stored: absolute, without links and dots.
    pub fn name(&self) -> &str {
        self.file.path.to_str().unwrap_or_default()
    }

    /// Bytes that are read from the disk, and how many there are.
    pub fn progress(&self) -> (Arc<AtomicU64>, u64) {
        (self.read.clone(), self.file.path.metadata().map_or(0, |metadata| metadata.len()))
    }
}

/// How the records are to be read that were kept of a file, loaded up to a position; `None`: as JSON. Names that stand in the header
/// are read from there, if the file is still the one that was loaded.
///
/// # Errors
/// The settings do not fit the file, or the names are nowhere.
pub fn kept_records(
    name: &str,
    settings: &FileSettings,
    memory: usize,
    (next, anchor): (i64, Option<Anchor>),
) -> Result<Option<Arc<Csv>>> {
    let (path, read) = (PathBuf::from(name), Arc::new(AtomicU64::new(0)));
    if settings.form_of(&path)?.0 != FileFormat::Csv {
        return Ok(None);
    }
    let hinted = |error: String| {
        Error::unfit_hint(
            format!("the names of the fields of \"{name}\" are not known: {error}"),
            "Give them in the order of the file: source.file.columns = [\"a\", \"b\"].",
        )
    };
    let file = Reading::new(path, settings, memory, &read).map_err(|error| hinted(error.to_string()))?;
    if settings.columns.is_none() {
        match file.resume(next as u64, anchor, &read) {
            Ok(Proof::Same(_)) => {}
            Ok(Proof::Refused(reason)) => return Err(hinted(reason)),
            Err(error) => return Err(hinted(error.to_string())),
        }
    }
    Ok(file.csv)
}

impl Reading {
    /// How to read a file. It is not opened unless names are needed from its header.
    fn new(path: PathBuf, settings: &FileSettings, memory: usize, read: &Arc<AtomicU64>) -> Result<Self> {
        let (format, compression) = settings.form_of(&path)?;
        let mut file = Self {
            path,
            format,
            compression,
            names: None,
            csv: None,
            has_header: false,
            is_growing: settings.growing,
            is_utc: settings.is_utc(),
            record_limit: memory / 4,
        };
        if let Some(dialect) = settings.dialect(&file.path, format) {
            file.has_header = settings.header.unwrap_or(true);
            let names = match &settings.columns {
                Some(names) => names.clone(),
                None if file.has_header => file.header(dialect, read)?,
                None => {
                    return Err(Error::unfit_hint(
                        "a CSV file without a header has no names for its fields",
                        "Give them: source.file.columns = [\"a\", \"b\"].",
                    ));
                }
            };
            file.csv = Some(Arc::new(Csv { dialect, null: settings.null.clone(), names, utc: settings.is_utc() }));
        }
        Ok(file)
    }

    /// Opens the file behind its header.
    fn open(&self, read: &Arc<AtomicU64>) -> io::Result<(Input, Splitter)> {
        let mut input = Input::open(&self.path, self.compression, read)?;
        input.fill(self.record_limit)?;
        if input.window().starts_with(BYTE_ORDER_MARK) {
            input.consume(BYTE_ORDER_MARK.len());
        }
        let Some(csv) = &self.csv else { return Ok((input, Splitter::Lines)) };
        if self.has_header {
            self.take_header(&mut input, csv.dialect)?;
        }
        Ok((input, Splitter::csv(csv.dialect, csv.names.len() == 1)))
    }

    /// Passes the first record and returns it; without one there is an empty file.
    fn take_header(&self, input: &mut Input, dialect: Dialect) -> io::Result<Option<Vec<u8>>> {
        let mut splitter = Splitter::csv(dialect, false);
        loop {
            let mut header = None;
            let (consumed, _) = splitter.split(input.window(), input.is_end(), self.is_growing, |range| {
                header = Some(input.window()[range].to_vec());
                false
            });
            input.consume(consumed);
            if header.is_some() || input.is_end() {
                return Ok(header);
            }
            if !input.fill(self.record_limit)? {
                return Err(io::Error::other("its first record has no end"));
            }
        }
    }

    /// The names of the fields in the first record.
    fn header(&self, dialect: Dialect, read: &Arc<AtomicU64>) -> Result<Vec<String>> {
        let unfit =
            |what: String| Error::unfit(format!("cannot read the header of \"{}\": {what}", self.path.display()));
        let first = || {
            let (mut input, _) = self.open(read)?;
            self.take_header(&mut input, dialect)
        };
        let Some(record) = first().map_err(|error| unfit(error.to_string()))? else {
            return Err(unfit("the file is empty".into()));
        };
        let mut fields = Fields::new(dialect);
        let (fields, buffer) = fields.split(&record);
        let names = fields.iter().map(|field| String::from_utf8(field.bytes(&record, buffer).to_vec()));
        names.collect::<Result<_, _>>().map_err(|_| unfit("it is not valid UTF-8".into()))
    }

    /// Opens the file at a position after it has proven that it is the same up to there.
    fn resume(&self, next: u64, anchor: Option<Anchor>, read: &Arc<AtomicU64>) -> io::Result<Proof> {
        let (mut input, splitter) = self.open(read)?;
        let shorter = |input: &Input, next: u64| {
            Proof::Refused(format!(
                "the file has {} bytes, and {next} were loaded: it was cut off or replaced",
                input.position()
            ))
        };
        if let Some(anchor) = anchor {
            let hashed = anchor.offset as u64;
            if input.position() > hashed {
                return Ok(Proof::Refused("the header has changed since the file was loaded".into()));
            }
            if !input.advance_to(hashed)? {
                return Ok(shorter(&input, next));
            }
            if input.hash() != anchor.hash {
                return Ok(Proof::Refused(format!(
                    "the first {hashed} bytes are not those that were loaded: the file was changed or replaced"
                )));
            }
        }
        if !input.advance_to(next)? {
            return Ok(shorter(&input, next));
        }
        if input.window().is_empty() && !input.is_end() {
            input.fill(self.record_limit)?;
        }
        // The record before the position was the last one of the file and had no line end.
        let had_end = match (self.format, input.last()) {
            (_, None | Some(b'\n')) => true,
            (FileFormat::Csv, Some(b'\r')) => input.window().first() != Some(&b'\n'),
            _ => false,
        };
        if next > 0 && !had_end {
            let line_end = match input.window() {
                [] => 0,
                [b'\r', b'\n', ..] => 2,
                [b'\n' | b'\r', ..] => 1,
                _ => {
                    return Ok(Proof::Refused(format!(
                        "the last record had no line end when it was loaded, and at byte {next} the file goes on with it"
                    )));
                }
            };
            input.consume(line_end);
        }
        Ok(Proof::Same(State::Text(Box::new(Text { input, splitter, settled: next as i64 }))))
    }
}

enum Proof {
    Same(State),
    Refused(String),
}

impl Source for FileSource {
    /// The same path on another machine is taken for the same file; if it is another, the hash tells.
    fn cluster(&mut self) -> Result<String, SourceError> {
        Ok(String::new())
    }

    fn parts(&mut self) -> Result<Vec<i32>, SourceError> {
        Ok(vec![PART])
    }

    /// Where the file ends is known when it is read.
    fn bounds(&mut self, _: i32) -> Result<Bounds, SourceError> {
        Ok(Bounds { start: 0, end: i64::MAX })
    }

    fn offset_at(&mut self, _: i32, _: i64) -> Result<i64, SourceError> {
        Ok(0)
    }

    fn fields(&mut self) -> Option<Vec<String>> {
        self.file.names.clone()
    }

    fn resume(&mut self, _: i32, next: i64, anchor: Option<Anchor>) -> Result<Resume, SourceError> {
        let proof = match self.file.format {
            #[cfg(feature = "parquet")]
            FileFormat::Parquet => parquet::resume(&self.file, next, anchor, &self.read),
            _ => self.file.resume(next as u64, anchor, &self.read),
        };
        Ok(match proof {
            Ok(Proof::Same(state)) => {
                self.proven = Some((next, state));
                Resume::Proven
            }
            Ok(Proof::Refused(reason)) => Resume::Refused(reason),
            Err(error) => Resume::Refused(format!("the file cannot be read: {error}")),
        })
    }

    /// A part is never read without a claim, and after a claim the file has proven itself. It is open then at its position.
    fn assign(&mut self, starts: &[(i32, i64)]) -> Result<(), SourceError> {
        self.state = match (starts, self.proven.take()) {
            ([], _) => State::Idle,
            ([(_, next)], Some((proven, state))) if *next == proven => state,
            _ => return Err(SourceError::Refused(format!("\"{}\" is not open at its position", self.name()))),
        };
        Ok(())
    }

    fn poll(&mut self, into: &mut Arena, limit: usize, wait: Duration) -> Result<Polled, SourceError> {
        let polled = match &mut self.state {
            State::Idle => Polled::Idle,
            State::Text(text) => self.file.poll(text, into, limit),
            #[cfg(feature = "parquet")]
            State::Parquet(rows) => rows.poll(into, limit),
        };
        match polled {
            Polled::Messages => {}
            Polled::Idle => std::thread::sleep(wait),
            _ => self.state = State::Idle,
        }
        Ok(polled)
    }
}

impl Reading {
    fn poll(&self, text: &mut Text, into: &mut Arena, limit: usize) -> Polled {
        let Text { input, splitter, settled } = text;
        if let Some(csv) = &self.csv {
            into.set_csv(csv.clone());
        }
        let polled = loop {
            let position = input.position() as i64;
            let window = input.window();
            let (consumed, stop) = splitter.split(window, input.is_end(), self.is_growing, |range| {
                let offset = position + range.start as i64;
                let value = Some(&window[range]);
                into.push(Message { part: PART, offset, time: None, key: None, value, headers: None });
                into.size() < limit
            });
            input.consume(consumed);
            let at = input.position();
            match stop {
                Stop::Full => break Polled::Messages,
                Stop::OpenQuote => {
                    let reason = format!("the record at byte {at} begins a quoted field that is never closed");
                    break Polled::Broken { part: PART, reason };
                }
                Stop::More if input.is_end() => {
                    let position = if into.is_empty() { *settled } else { at as i64 };
                    break Polled::EndOfPart { part: PART, position };
                }
                Stop::More => {}
            }
            match input.fill(self.record_limit) {
                Ok(true) => {}
                Ok(false) => {
                    let reason = format!(
                        "the record at byte {at} is longer than {} bytes, a quarter of the setting memory{}",
                        self.record_limit,
                        if self.csv.is_some() { "; perhaps a quote is not closed" } else { "" }
                    );
                    break Polled::Broken { part: PART, reason };
                }
                Err(error) => {
                    let reason = format!("the file cannot be read behind byte {at}: {error}");
                    break Polled::Broken { part: PART, reason };
                }
            }
        };
        let next = input.position() as i64;
        if !into.is_empty() {
            *settled = next;
        }
        into.set_end(End { part: PART, next, anchor: Anchor { offset: next, time: None, hash: input.hash() } });
        polled
    }
}

#[cfg(test)]
mod tests;
