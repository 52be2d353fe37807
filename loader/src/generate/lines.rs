//! A user's NDJSON file as a sequence of messages: line `i` that is not blank is message `i`, bytes unchanged.
//!
//! Only the place of every 1,024th line is kept in memory, so that a file of any size can be served.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::{Error, Result};

/// Lines between two remembered places.
const STRIDE: u64 = 1_024;

#[derive(Debug)]
pub struct Lines {
    file: File,
    /// Where line 0, `STRIDE`, 2 `STRIDE`, .. begin.
    places: Vec<u64>,
    len: u64,
}

impl Lines {
    /// Reads the file once, to find its lines.
    pub fn open(path: &Path) -> Result<Self> {
        let unreadable = |error: io::Error| Error::unfit(format!("cannot read \"{}\": {error}", path.display()));
        let file = File::open(path).map_err(unreadable)?;
        if !file.metadata().map_err(unreadable)?.is_file() {
            return Err(Error::unfit_hint(
                format!("\"{}\" is not a regular file", path.display()),
                "Lines are read more than once and at any place, so a pipe cannot be served.",
            ));
        }
        let (mut places, mut len, mut place) = (Vec::new(), 0, 0);
        let mut reader = BufReader::with_capacity(1 << 20, At { file: &file, place: 0 });
        let mut line = Vec::new();
        loop {
            line.clear();
            let length = reader.read_until(b'\n', &mut line).map_err(unreadable)? as u64;
            if length == 0 {
                break;
            }
            if !line.trim_ascii().is_empty() {
                if len % STRIDE == 0 {
                    places.push(place);
                }
                len += 1;
            }
            place += length;
        }
        Ok(Self { file, places, len })
    }

    pub fn len(&self) -> u64 {
        self.len
    }

    /// Calls `visit` with the lines `first`, `first + step`, and so on, without their line breaks, until it breaks or they end.
    pub fn visit(&self, first: u64, step: u64, visit: &mut dyn FnMut(&[u8]) -> ControlFlow<()>) -> io::Result<()> {
        let Some(place) = self.places.get((first / STRIDE) as usize) else { return Ok(()) };
        let mut reader = BufReader::with_capacity(1 << 17, At { file: &self.file, place: *place });
        let (mut number, mut wanted) = (first / STRIDE * STRIDE, first);
        let mut line = Vec::new();
        // Lines that were appended since `open` are not messages: the end of the log was announced without them.
        while wanted < self.len {
            line.clear();
            if reader.read_until(b'\n', &mut line)? == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file has become shorter"));
            }
            let text = line.strip_suffix(b"\n").unwrap_or(&line);
            let text = text.strip_suffix(b"\r").unwrap_or(text);
            if text.trim_ascii().is_empty() {
                continue;
            }
            if number == wanted {
                if visit(text).is_break() {
                    break;
                }
                wanted += step;
            }
            number += 1;
        }
        Ok(())
    }
}

/// Reads a shared file from a place of its own.
struct At<'a> {
    file: &'a File,
    place: u64,
}

impl Read for At<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let length = self.file.read_at(into, self.place)?;
        self.place += length as u64;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collect(lines: &Lines, first: u64, step: u64) -> Vec<String> {
        let mut found = Vec::new();
        let mut visit = |line: &[u8]| {
            found.push(String::from_utf8(line.to_vec()).unwrap());
            ControlFlow::Continue(())
        };
        lines.visit(first, step, &mut visit).unwrap();
        found
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn blank_lines_and_line_breaks_are_no_part_of_a_message() {
        let file = file("\n a \r\n\n \t\nb\n\nc");
        let lines = Lines::open(file.path()).unwrap();
        assert_eq!(lines.len(), 3);
        assert_eq!(collect(&lines, 0, 1), [" a ", "b", "c"]);
        assert_eq!(collect(&lines, 1, 2), ["b"]);
        assert_eq!(collect(&lines, 3, 1), Vec::<String>::new());
    }

    #[test]
    fn any_line_of_a_long_file_is_found_again() {
        let text: String = (0..5_000).map(|n| format!("line {n}\n{}", if n % 7 == 0 { "\n" } else { "" })).collect();
        let file = file(&text);
        let lines = Lines::open(file.path()).unwrap();
        assert_eq!(lines.len(), 5_000);
        for first in [0, 1, 1_023, 1_024, 1_025, 4_095, 4_999] {
            assert_eq!(collect(&lines, first, 1_000).first(), Some(&format!("line {first}")));
        }
        for part in 0..3 {
            let wanted: Vec<_> = (part..5_000).step_by(3).map(|n| format!("line {n}")).collect();
            assert_eq!(collect(&lines, part, 3), wanted);
        }
    }

    #[test]
    fn an_empty_file_has_no_lines() {
        let file = file("\n\n");
        let lines = Lines::open(file.path()).unwrap();
        assert_eq!(lines.len(), 0);
        assert_eq!(collect(&lines, 0, 1), Vec::<String>::new());
    }

    #[test]
    fn appended_lines_stay_outside_and_a_shortened_file_is_an_error() {
        let file = file("a\nb\n");
        let lines = Lines::open(file.path()).unwrap();
        std::fs::write(file.path(), "a\nb\nc\n").unwrap();
        assert_eq!(collect(&lines, 0, 1), ["a", "b"]);
        std::fs::write(file.path(), "a\n").unwrap();
        assert!(lines.visit(0, 1, &mut |_| ControlFlow::Continue(())).is_err());
    }

    #[test]
    fn a_folder_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let error = Lines::open(folder.path()).unwrap_err();
        assert!(error.to_string().contains("is not a regular file"), "{error}");
        assert_eq!(error.code(), 3);
    }
}
