//! Where the records of a file end. Pure: it sees a window of the file's bytes and knows nothing of where they come from.

use std::ops::Range;

use csv_core::ReadRecordResult;
use memchr::{memchr, memchr2, memchr3};

use crate::csv::Dialect;

/// Why no more records were taken from a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The taker has enough.
    Full,
    /// The window ends, perhaps within a record.
    More,
    /// The file ends within quotes, in the record that begins where the consumed bytes end.
    OpenQuote,
}

/// Finds records from window to window.
#[derive(Debug)]
pub enum Splitter {
    Lines,
    Csv(Box<CsvSplitter>),
}

/// Finds records of CSV: a line end within quotes does not count.
#[derive(Debug)]
pub struct CsvSplitter {
    dialect: Dialect,
    /// Within a record with quotes, when `scanned` is not 0.
    reader: csv_core::Reader,
    /// Bytes of the first record of the window that the reader has seen.
    scanned: usize,
    /// It has seen the record's line end as the last of them.
    has_end: bool,
    /// An empty line is a record with one empty field; with more fields it is none.
    keeps_blank_lines: bool,
}

impl Splitter {
    pub fn csv(dialect: Dialect, keeps_blank_lines: bool) -> Self {
        let reader = dialect.reader();
        Self::Csv(Box::new(CsvSplitter { dialect, reader, scanned: 0, has_end: false, keeps_blank_lines }))
    }

    /// Hands over the records of a window, without their line ends, until the taker wants no more. Returns how many bytes are
    /// done with; the next window must begin behind them. `is_end`: no byte follows this window. Then what has no line end is a
    /// record too, unless `is_growing`: the rest of it is still to be written.
    pub fn split(
        &mut self,
        window: &[u8],
        is_end: bool,
        is_growing: bool,
        take: impl FnMut(Range<usize>) -> bool,
    ) -> (usize, Stop) {
        match self {
            Self::Lines => lines(window, is_end && !is_growing, take),
            Self::Csv(csv) => csv.split(window, is_end, is_growing, take),
        }
    }
}

fn lines(window: &[u8], is_end: bool, mut take: impl FnMut(Range<usize>) -> bool) -> (usize, Stop) {
    let mut at = 0;
    while at < window.len() {
        let (end, next) = match memchr(b'\n', &window[at..]) {
            Some(length) => (at + length, at + length + 1),
            None if is_end => (window.len(), window.len()),
            None => break,
        };
        let line = &window[at..end];
        let length = line.len() - usize::from(line.last() == Some(&b'\r'));
        let start = std::mem::replace(&mut at, next);
        if !window[start..start + length].trim_ascii().is_empty() && !take(start..start + length) {
            return (at, Stop::Full);
        }
    }
    (at, Stop::More)
}

impl CsvSplitter {
    fn split(
        &mut self,
        window: &[u8],
        is_end: bool,
        is_growing: bool,
        mut take: impl FnMut(Range<usize>) -> bool,
    ) -> (usize, Stop) {
        let quote_from = |at: usize| memchr(self.dialect.quote, &window[at..]).map_or(usize::MAX, |found| at + found);
        let (mut at, mut quote) = (0, quote_from(0));
        while at < window.len() {
            let found = memchr2(b'\n', b'\r', &window[at..]).map(|length| at + length);
            let mut end = found.unwrap_or(window.len());
            if quote < at {
                quote = memchr(self.dialect.quote, &window[at..]).map_or(usize::MAX, |found| at + found);
            }
            if quote < end {
                match self.end_with_quotes(window, at) {
                    Some(found) => end = found,
                    None if !is_end || is_growing => return (at, Stop::More),
                    None if self.is_within_quotes() => return (at, Stop::OpenQuote),
                    None => end = window.len(),
                }
            }
            let next = match &window[end..] {
                [b'\r', b'\n', ..] => end + 2,
                // Whether the other half of the line end follows is not known yet.
                [b'\r'] if !is_end => return (at, Stop::More),
                [] if !is_end || is_growing => return (at, Stop::More),
                [] => end,
                _ => end + 1,
            };
            (self.scanned, self.has_end) = (0, false);
            let start = std::mem::replace(&mut at, next);
            if (end > start || self.keeps_blank_lines) && !take(start..end) {
                return (at, Stop::Full);
            }
        }
        (at, Stop::More)
    }

    /// The end of a record with quotes: where its line end is. `None`: not in this window.
    fn end_with_quotes(&mut self, window: &[u8], start: usize) -> Option<usize> {
        if self.scanned == 0 {
            if let Some(end) = self.end_with_whole_quotes(window, start) {
                return Some(end);
            }
            self.reader.reset();
        }
        let (mut output, mut ends) = ([0; 4096], [0; 256]);
        while !self.has_end && start + self.scanned < window.len() {
            let (result, read, _, _) = self.reader.read_record(&window[start + self.scanned..], &mut output, &mut ends);
            self.scanned += read;
            // The first byte of the line end is read then, and no more.
            self.has_end = result == ReadRecordResult::Record;
        }
        self.has_end.then(|| start + self.scanned - 1)
    }

    /// The same for a record of which each field is within quotes or has none, and which ends in this window; `None` for any other.
    fn end_with_whole_quotes(&self, window: &[u8], start: usize) -> Option<usize> {
        let Dialect { delimiter, quote, escape } = self.dialect;
        if escape != quote {
            return None;
        }
        let mut at = start;
        loop {
            if *window.get(at)? == quote {
                at += 1;
                loop {
                    at += memchr(quote, &window[at..])?;
                    match *window.get(at + 1)? {
                        next if next == quote => at += 2,
                        b'\n' | b'\r' => return Some(at + 1),
                        next if next == delimiter => break,
                        _ => return None,
                    }
                }
                at += 2;
            } else {
                let end = at + memchr3(delimiter, b'\n', b'\r', &window[at..])?;
                if memchr(quote, &window[at..end]).is_some() {
                    return None;
                }
                if window[end] != delimiter {
                    return Some(end);
                }
                at = end + 1;
            }
        }
    }

    /// Whether the reader, which has seen all there is, waits for a quote: a line end would end the record otherwise.
    fn is_within_quotes(&mut self) -> bool {
        let (mut output, mut ends) = ([0; 16], [0; 16]);
        self.reader.read_record(b"\n", &mut output, &mut ends).0 == ReadRecordResult::InputEmpty
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Splits as a file is read: windows that grow by blocks of these sizes, over and over.
    fn records(
        splitter: &mut Splitter,
        text: &[u8],
        blocks: &[usize],
        growing: bool,
    ) -> (Vec<(usize, Vec<u8>)>, usize, Stop) {
        let mut blocks = blocks.iter().copied().cycle();
        let (mut records, mut start, mut end) = (Vec::new(), 0, 0);
        loop {
            end = (end + blocks.next().unwrap()).min(text.len());
            let is_end = end == text.len();
            loop {
                let mut left = blocks.next().unwrap();
                let (consumed, stop) = splitter.split(&text[start..end], is_end, growing, |range| {
                    records.push((start + range.start, text[start..end][range].to_vec()));
                    left -= 1;
                    left > 0
                });
                start += consumed;
                match stop {
                    Stop::Full => {}
                    Stop::More if !is_end => break,
                    stop => return (records, start, stop),
                }
            }
        }
    }

    fn csv() -> Splitter {
        Splitter::csv(Dialect::default(), false)
    }

    fn texts(splitter: &mut Splitter, text: &str) -> Vec<String> {
        let records = records(splitter, text.as_bytes(), &[1], false).0;
        records.into_iter().map(|(_, record)| String::from_utf8(record).unwrap()).collect()
    }

    #[test]
    fn lines_end_with_or_without_a_carriage_return_and_blank_ones_are_none() {
        assert_eq!(texts(&mut Splitter::Lines, "{}\r\n\n  \n[1]\nlast"), ["{}", "[1]", "last"]);
    }

    #[test]
    fn a_line_end_within_quotes_ends_nothing() {
        assert_eq!(
            texts(&mut csv(), "a,b\r\n\"x\ny\",1\r\n\n\"he said \"\"\n\"\"\",2\rlast,3"),
            ["a,b", "\"x\ny\",1", "\"he said \"\"\n\"\"\",2", "last,3"]
        );
    }

    #[test]
    fn a_blank_line_is_the_null_of_a_file_with_one_column() {
        let mut splitter = Splitter::csv(Dialect::default(), true);
        assert_eq!(texts(&mut splitter, "1\r\n\r\n\n2\n"), ["1", "", "", "2"]);
    }

    #[test]
    fn a_growing_file_keeps_its_last_line_until_it_has_an_end() {
        for splitter in [&mut Splitter::Lines, &mut csv()] {
            let (found, position, stop) = records(splitter, b"1,2\n3,\"4", &[3], true);
            assert_eq!((found.len(), position, stop), (1, 4, Stop::More));
        }
    }

    #[test]
    fn a_quote_that_is_never_closed_is_told() {
        let (found, position, stop) = records(&mut csv(), b"1,2\n3,\"4\n5,6\n", &[3], false);
        assert_eq!((found.len(), position, stop), (1, 4, Stop::OpenQuote));
    }

    /// The records that csv-core finds, as their fields.
    fn by_csv_core(text: &[u8]) -> Vec<Vec<Vec<u8>>> {
        let mut reader = Dialect::default().reader();
        let (mut records, mut at) = (Vec::new(), 0);
        let (mut output, mut ends) = ([0; 256], [0; 256]);
        let (mut written, mut count) = (0, 0);
        loop {
            let (result, read, bytes, fields) =
                reader.read_record(&text[at..], &mut output[written..], &mut ends[count..]);
            (at, written, count) = (at + read, written + bytes, count + fields);
            match result {
                ReadRecordResult::Record => {
                    let starts = std::iter::once(0).chain(ends[..count].iter().copied());
                    let fields = starts.zip(&ends[..count]).map(|(from, to)| output[from..*to].to_vec()).collect();
                    records.push(fields);
                    (written, count) = (0, 0);
                }
                ReadRecordResult::End => return records,
                _ => {}
            }
        }
    }

    proptest! {
        #[test]
        fn blocks_of_any_size_give_the_same_lines(text in "[ab \r\n]{0,60}", blocks in prop::collection::vec(1usize..9, 1..6)) {
            let whole = records(&mut Splitter::Lines, text.as_bytes(), &[1000], false);
            let pieces = records(&mut Splitter::Lines, text.as_bytes(), &blocks, false);
            let expected: Vec<&str> = text.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line))
                .filter(|line| !line.trim_ascii().is_empty()).collect();
            let found: Vec<&[u8]> = whole.0.iter().map(|(_, line)| &line[..]).collect();
            prop_assert_eq!(found, expected.iter().map(|line| line.as_bytes()).collect::<Vec<_>>());
            prop_assert_eq!(whole, pieces);
        }

        #[test]
        fn records_are_those_of_csv_core_whatever_the_blocks(
            text in r#"[ab,"\r\n]{0,40}"#, blocks in prop::collection::vec(1usize..9, 1..6)
        ) {
            let (found, end, stop) = records(&mut csv(), text.as_bytes(), &blocks, false);
            let whole = records(&mut csv(), text.as_bytes(), &[1000], false);
            prop_assert_eq!(&whole, &(found.clone(), end, stop));
            let mut expected = by_csv_core(text.as_bytes());
            if stop == Stop::OpenQuote {
                expected.pop();
            } else {
                prop_assert_eq!(end, text.len());
            }
            let mut fields = crate::csv::Fields::new(Dialect::default());
            let found: Vec<Vec<Vec<u8>>> = found.iter().map(|(_, record)| {
                let (fields, buffer) = fields.split(record);
                fields.iter().map(|field| field.bytes(record, buffer).to_vec()).collect()
            }).collect();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn offsets_are_those_of_the_records(text in r#"[ab,"\r\n]{0,40}"#, blocks in prop::collection::vec(1usize..9, 1..6)) {
            for (offset, record) in records(&mut csv(), text.as_bytes(), &blocks, false).0 {
                prop_assert_eq!(&text.as_bytes()[offset..offset + record.len()], &record[..]);
            }
        }
    }
}
