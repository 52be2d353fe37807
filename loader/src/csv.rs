//! CSV: how a file is written, and one record into its fields. The rules are those of `csv-core` (RFC 4180, with quotes in the
//! middle of a field taken as they are); a field that starts without a quote needs no more than a search for its end.

use std::ops::Range;
use std::str::Utf8Error;

use csv_core::{ReadFieldResult, ReaderBuilder};
use memchr::memchr;

use crate::program::{From, Program, Step, Taken, Unknown};
use crate::{Error, Result};

/// The characters with a meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dialect {
    pub delimiter: u8,
    pub quote: u8,
    /// Before a quote within quotes; the quote itself when it is doubled.
    pub escape: u8,
}

impl Default for Dialect {
    fn default() -> Self {
        Self { delimiter: b',', quote: b'"', escape: b'"' }
    }
}

impl Dialect {
    /// A reader of this dialect.
    pub fn reader(self) -> csv_core::Reader {
        ReaderBuilder::new()
            .delimiter(self.delimiter)
            .quote(self.quote)
            .double_quote(self.escape == self.quote)
            .escape((self.escape != self.quote).then_some(self.escape))
            .build()
    }
}

/// How the records of a file are to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Csv {
    pub dialect: Dialect,
    /// An unquoted field of this text is NULL.
    pub null: String,
    /// Names of the fields, in their order.
    pub names: Vec<String>,
    /// A time without a zone is one of UTC.
    pub utc: bool,
}

/// What a program takes of a record: fields by their numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    pub taken: Vec<(usize, Taken)>,
    /// Fields that no column takes.
    pub unknown: Vec<usize>,
}

impl Csv {
    /// Finds the fields of a program's columns.
    pub fn layout(&self, program: &Program) -> Layout {
        let mut layout = Layout { taken: Vec::new(), unknown: Vec::new() };
        for (field, name) in self.names.iter().enumerate() {
            match program.fields.find(name, &mut 0) {
                Some(taken) => layout.taken.push((field, taken.clone())),
                None => layout.unknown.push(field),
            }
        }
        layout
    }

    /// The text of a field, or `None` for NULL.
    pub fn value<'a>(
        &self,
        field: &Field,
        record: &'a str,
        buffer: &'a [u8],
    ) -> std::result::Result<Option<&'a str>, Utf8Error> {
        match field {
            // Fields begin and end beside ASCII characters.
            Field::Plain(range) => Ok(Some(&record[range.clone()]).filter(|text| *text != self.null)),
            Field::Quoted(range) => Ok(Some(&record[range.clone()])),
            Field::Unescaped(range) => std::str::from_utf8(&buffer[range.clone()]).map(Some),
        }
    }
}

/// Compares the columns of a program with the fields that every record of a file has: a column that no record could ever fill
/// is a mistake of the mapping.
pub fn check_names(program: &Program, names: &[String]) -> Result<()> {
    let listed = || names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
    for column in &program.columns {
        let Some(field) = field_of(&column.from) else { continue };
        match names.iter().filter(|name| *name == field).count() {
            1 => {}
            0 => {
                return Err(Error::unfit_hint(
                    format!("column \"{}\" takes the field \"{field}\", which the file does not have", column.name),
                    format!(
                        "The file has {}. Name the field with columns.\"{1}\" = {{ from = \"..\" }}, or leave the column to its \
                         default with columns.\"{1}\" = {{ skip = true }}.",
                        listed(),
                        column.name
                    ),
                ));
            }
            _ => {
                return Err(Error::unfit_hint(
                    format!("the file has two fields \"{field}\", and column \"{}\" takes one of them", column.name),
                    "Give all fields names of their own with source.file.columns.",
                ));
            }
        }
    }
    if program.unknown == Unknown::Reject
        && let Some(name) = names.iter().find(|name| program.fields.find(name, &mut 0).is_none())
    {
        return Err(Error::unfit_hint(
            format!("no column takes the field \"{name}\" of the file, and target.unknown_fields is \"reject\""),
            "Set target.unknown_fields to \"ignore\", or give the field a column.",
        ));
    }
    Ok(())
}

/// The field that a column is made from, or from a part of it.
fn field_of(from: &From) -> Option<&str> {
    let From::Field(path) = from else { return None };
    match path.steps().first() {
        Some(Step::Member(name)) => Some(name),
        _ => None,
    }
}

/// A field of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    /// Written without quotes: this part of the record.
    Plain(Range<usize>),
    /// Written within quotes, nothing to replace: this part of the record.
    Quoted(Range<usize>),
    /// Written within quotes, with quotes in it: this part of the buffer.
    Unescaped(Range<usize>),
}

impl Field {
    /// The bytes of the field, from its record or from the buffer that came with it.
    pub fn bytes<'a>(&self, record: &'a [u8], buffer: &'a [u8]) -> &'a [u8] {
        match self {
            Self::Plain(range) | Self::Quoted(range) => &record[range.clone()],
            Self::Unescaped(range) => &buffer[range.clone()],
        }
    }

    pub fn is_quoted(&self) -> bool {
        !matches!(self, Self::Plain(_))
    }
}

/// Splits records; it holds buffers, so that a record costs no allocation.
#[derive(Debug)]
pub struct Fields {
    dialect: Dialect,
    /// Made when a field needs it: its tables take longer than some records.
    reader: Option<Box<csv_core::Reader>>,
    fields: Vec<Field>,
    buffer: Vec<u8>,
}

impl Fields {
    pub fn new(dialect: Dialect) -> Self {
        Self { dialect, reader: None, fields: Vec::new(), buffer: Vec::new() }
    }

    /// The fields of a record without its line end, and the buffer that they may point into.
    pub fn split(&mut self, record: &[u8]) -> (&[Field], &[u8]) {
        self.fields.clear();
        self.buffer.clear();
        let mut at = 0;
        loop {
            let end = if record.get(at) == Some(&self.dialect.quote) {
                self.quoted(record, at)
            } else {
                let end = memchr(self.dialect.delimiter, &record[at..]).map_or(record.len(), |length| at + length);
                self.fields.push(Field::Plain(at..end));
                end
            };
            if end == record.len() {
                return (&self.fields, &self.buffer);
            }
            at = end + 1;
        }
    }

    /// A field that starts with a quote; where its delimiter is, or the end of the record.
    fn quoted(&mut self, record: &[u8], at: usize) -> usize {
        let Dialect { delimiter, quote, escape } = self.dialect;
        let (inner, start) = (at + 1, self.buffer.len());
        let mut from = inner;
        while let Some(length) = memchr(quote, &record[from..]) {
            let end = from + length;
            if escape != quote && memchr(escape, &record[from..end]).is_some() {
                break;
            }
            match record.get(end + 1) {
                Some(next) if *next == quote && escape == quote => {
                    self.buffer.extend_from_slice(&record[from..=end]);
                    from = end + 2;
                }
                Some(next) if *next != delimiter => break,
                _ if from == inner => {
                    self.fields.push(Field::Quoted(inner..end));
                    return end + 1;
                }
                _ => {
                    self.buffer.extend_from_slice(&record[from..end]);
                    self.fields.push(Field::Unescaped(start..self.buffer.len()));
                    return end + 1;
                }
            }
        }
        // What a field holds is never longer than how it is written.
        self.buffer.resize(start + record.len() - at, 0);
        let reader = self.reader.get_or_insert_with(|| Box::new(self.dialect.reader()));
        reader.reset();
        let (result, read, written) = reader.read_field(&record[at..], &mut self.buffer[start..]);
        self.buffer.truncate(start + written);
        self.fields.push(Field::Unescaped(start..start + written));
        match result {
            ReadFieldResult::Field { record_end: false } => at + read - 1,
            _ => record.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::tests::{column, compile, table};
    use proptest::prelude::*;

    fn texts(dialect: Dialect, record: &str) -> Vec<(String, bool)> {
        let mut fields = Fields::new(dialect);
        let (fields, buffer) = fields.split(record.as_bytes());
        fields
            .iter()
            .map(|field| {
                let bytes = field.bytes(record.as_bytes(), buffer);
                (String::from_utf8(bytes.to_vec()).unwrap(), field.is_quoted())
            })
            .collect()
    }

    fn plain(text: &str) -> (String, bool) {
        (text.to_owned(), false)
    }

    fn quoted(text: &str) -> (String, bool) {
        (text.to_owned(), true)
    }

    #[test]
    fn fields_know_whether_they_were_quoted() {
        let dialect = Dialect::default();
        assert_eq!(texts(dialect, r#"a,"b",,"""#), [plain("a"), quoted("b"), plain(""), quoted("")]);
        assert_eq!(texts(dialect, r#""say ""hi""","a,b""#), [quoted("say \"hi\""), quoted("a,b")]);
        assert_eq!(texts(dialect, "\"two\r\nlines\",x"), [quoted("two\r\nlines"), plain("x")]);
        assert_eq!(texts(dialect, r#"a"b,"c"d"#), [plain("a\"b"), quoted("cd")]);
        assert_eq!(texts(dialect, ""), [plain("")]);
        assert_eq!(texts(dialect, ","), [plain(""), plain("")]);
    }

    #[test]
    fn other_characters_do_as_well() {
        let dialect = Dialect { delimiter: b'\t', quote: b'\'', escape: b'\\' };
        assert_eq!(
            texts(dialect, "a,b\t'it\\'s'\t'c\\\\'\t'd'"),
            [plain("a,b"), quoted("it's"), quoted("c\\"), quoted("d")]
        );
    }

    #[test]
    fn a_column_without_a_field_is_named() {
        let program = compile(&table(vec![column("a", "int4"), column("b", "int4")]), "").unwrap();
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let error = check_names(&program, &names(&["a", "c"])).unwrap_err();
        assert_eq!(error.to_string(), "column \"b\" takes the field \"b\", which the file does not have");
        assert!(error.hint().unwrap().contains("\"a\", \"c\"") && error.code() == 3);
        assert!(check_names(&program, &names(&["a", "b", "a"])).unwrap_err().to_string().contains("two fields \"a\""));
        assert!(check_names(&program, &names(&["b", "x", "a", "x"])).is_ok());
        let program = compile(&table(vec![column("a", "int4")]), "unknown_fields = \"reject\"").unwrap();
        assert!(check_names(&program, &names(&["a", "c"])).unwrap_err().to_string().contains("field \"c\""));
    }

    proptest! {
        /// What csv-core makes of a record, with every kind of misplaced quote.
        #[test]
        fn fields_are_those_of_csv_core(record in r#"[ab,"\\]{0,24}"#, escape in prop::sample::select(vec![b'"', b'\\'])) {
            let dialect = Dialect { escape, ..Dialect::default() };
            let mut reader = dialect.reader();
            let mut expected = Vec::new();
            let (mut output, mut at, mut written) = ([0; 64], 0, 0);
            while !record.is_empty() {
                // After the record the end of the input, by an empty slice.
                let (result, read, more) = reader.read_field(&record.as_bytes()[at..], &mut output[written..]);
                (at, written) = (at + read, written + more);
                if let ReadFieldResult::Field { record_end } = result {
                    expected.push(String::from_utf8(output[..written].to_vec()).unwrap());
                    written = 0;
                    if record_end {
                        break;
                    }
                }
            }
            let found: Vec<String> = texts(dialect, &record).into_iter().map(|(text, _)| text).collect();
            prop_assert_eq!(found, if record.is_empty() { vec![String::new()] } else { expected });
        }
    }
}
