//! A record of CSV into a row.

use serde::de::DeserializeSeed;

use super::members::{Part, keep_name};
use super::{Decoder, Outcome, Reason, Rejection, Slot, leaf_takes, scalar, text};
use crate::copy;
use crate::csv::{Csv, Fields, Layout};
use crate::message::Message;
use crate::program::{Absent, Format, Parts, Program, Taken, Unknown};

/// A column program for records of CSV.
#[derive(Debug)]
pub struct CsvProgram<'a> {
    csv: &'a Csv,
    layout: Layout,
    /// The columns are made of whole fields in this order, and of nothing else.
    in_order: bool,
    fields: Fields,
}

impl<'a> CsvProgram<'a> {
    pub fn new(csv: &'a Csv, program: &Program) -> Self {
        let layout = csv.layout(program);
        let taken = layout.taken.iter().map(|(_, taken)| taken);
        let in_order = program.format == Format::Binary
            && !matches!(program.unknown, Unknown::Keep(_))
            && layout.taken.len() == program.columns.len()
            && taken.zip(0..).all(|(taken, column)| *taken == Taken::Whole(column));
        Self { csv, layout, in_order, fields: Fields::new(csv.dialect) }
    }

    /// Appends the row of a record whose fields come in the order of the columns. `None`: something is unusual, or wrong, and what
    /// was appended is of no use; nothing is refused here, so that a reason has one origin.
    fn decode_in_order(&mut self, program: &Program, record: &[u8], out: &mut Vec<u8>) -> Option<()> {
        let record = std::str::from_utf8(record).ok().filter(|record| record.len() <= program.max_value)?;
        let (fields, buffer) = self.fields.split(record.as_bytes());
        if fields.len() != self.csv.names.len() {
            return None;
        }
        copy::row(out, program.columns.len());
        for ((index, column), (field, _)) in program.columns.iter().enumerate().zip(&self.layout.taken) {
            let start = out.len();
            match self.csv.value(&fields[*field], record, buffer).ok()? {
                Some(value) => text::value(out, value, column, self.csv.utc).ok()?,
                None if column.required || column.absent == Absent::BrokerTimestamp => return None,
                None => out.extend_from_slice(copy::NULL),
            }
            if !leaf_takes(program, index, &out[start..]) {
                return None;
            }
        }
        Some(())
    }
}

impl Decoder {
    /// Appends the row of a record to `out`, or says why there is none; then `out` is as before.
    pub fn decode_csv(
        &mut self,
        program: &Program,
        csv: &mut CsvProgram<'_>,
        topic: &str,
        message: Message<'_>,
        out: &mut Vec<u8>,
    ) -> Outcome {
        let record = message.value.unwrap_or_default();
        if csv.in_order {
            let start = out.len();
            if csv.decode_in_order(program, record, out).is_some() {
                return Outcome::Row;
            }
            out.truncate(start);
        }
        self.clear(program);
        match self.parse_csv(program, csv, record) {
            Ok(()) => self.finish(program, topic, message, out),
            Err(rejection) => Outcome::Dead(rejection),
        }
    }

    fn parse_csv(&mut self, program: &Program, csv: &mut CsvProgram<'_>, record: &[u8]) -> Result<(), Rejection> {
        if record.len() > program.max_value {
            let error = format!("the record has {} bytes, more than {}", record.len(), program.max_value);
            return Err(Rejection::new(Reason::TooLarge, None, error));
        }
        let bad_text = || Rejection::new(Reason::BadText, None, "the record is not valid UTF-8");
        let record = std::str::from_utf8(record).map_err(|_| bad_text())?;
        let CsvProgram { csv, layout, fields, .. } = csv;
        let (fields, buffer) = fields.split(record.as_bytes());
        if fields.len() != csv.names.len() {
            let error = format!("the record has {} fields and not {}", fields.len(), csv.names.len());
            return Err(Rejection::new(Reason::NotCsv, None, error));
        }
        let value = |at: usize| csv.value(&fields[at], record, buffer).map_err(|_| bad_text());
        for (field, taken) in &layout.taken {
            let text = value(*field)?;
            match taken {
                // The common case for itself, so that it stays small and fast.
                Taken::Whole(index) => self.take_text(program, *index, text, csv.utc)?,
                Taken::Parts(parts) => {
                    for index in &parts.columns {
                        self.take_text(program, *index, text, csv.utc)?;
                    }
                    if let Some(text) = text.filter(|_| parts.is_looked_into()) {
                        self.look_into(program, parts, text)?;
                    }
                }
            }
        }
        if let Unknown::Keep(column) = program.unknown {
            for &field in &layout.unknown {
                keep_name(&mut self.unknown, &csv.names[field]);
                let json = serde_json::Value::from(value(field)?).to_string();
                scalar::check_jsonb(&json)
                    .map_err(|(reason, error)| Rejection::new(reason, Some(&program.columns[column].name), error))?;
                self.unknown.extend_from_slice(json.as_bytes());
            }
        }
        Ok(())
    }

    /// A field, or `None` for NULL, into a column.
    fn take_text(&mut self, program: &Program, index: usize, text: Option<&str>, utc: bool) -> Result<(), Rejection> {
        let column = &program.columns[index];
        self.slots[index] = match text {
            None => Slot::Null,
            Some(text) => {
                let start = self.scratch.len();
                text::value(&mut self.scratch, text, column, utc)
                    .map_err(|(reason, error)| Rejection::new(reason, Some(&column.name), error))?;
                Slot::At(start as u32, self.scratch.len() as u32)
            }
        };
        Ok(())
    }

    /// A field whose text is JSON, along the paths of the columns.
    fn look_into(&mut self, program: &Program, parts: &Parts, text: &str) -> Result<(), Rejection> {
        let mut rejection = None;
        let mut json = serde_json::Deserializer::from_str(text);
        let part = Part { program, decoder: self, rejection: &mut rejection, taken: parts };
        part.deserialize(&mut json).and_then(|()| json.end()).map_err(|_| {
            let column = parts.inner_column().map(|index| program.columns[index].name.as_str());
            rejection.unwrap_or_else(|| Rejection::new(Reason::WrongType, column, "expected JSON"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::csv::Dialect;
    use crate::program::tests::{column, compile, table};

    fn decode(program: &Program, names: &[&str], record: &[u8]) -> (Outcome, Vec<u8>) {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        let csv = Csv { dialect: Dialect::default(), null: String::new(), names, utc: false };
        let mut csv = CsvProgram::new(&csv, program);
        let message = Message { part: 0, offset: 77, time: None, key: None, value: Some(record), headers: None };
        let mut out = Vec::new();
        let outcome = Decoder::default().decode_csv(program, &mut csv, "/a.csv", message, &mut out);
        (outcome, out)
    }

    /// A row of these fields.
    fn row(fields: &[Option<&[u8]>]) -> Vec<u8> {
        let mut out = Vec::new();
        copy::row(&mut out, fields.len());
        fields.iter().for_each(|field| copy::nullable(&mut out, *field));
        out
    }

    #[test]
    fn columns_find_their_fields_by_name() {
        let mut default = column("d", "int4");
        default.default = crate::catalog::TableDefault::Constant {
            text: "5".into(),
            bytes: 5i32.to_be_bytes().to_vec(),
            input: "5".into(),
        };
        let table = table(vec![column("a", "int4"), column("b", "text"), default, column("at", "int8")]);
        let program = compile(&table, "columns.at = { from = \"_offset\" }").unwrap();
        let names = ["b", "x", "d", "a"];
        let (outcome, out) = decode(&program, &names, b"\"say \"\"hi\"\"\",?,6,1");
        assert_eq!(outcome, Outcome::Row);
        let (one, six, offset) = (1i32.to_be_bytes(), 6i32.to_be_bytes(), 77i64.to_be_bytes());
        assert_eq!(out, row(&[Some(&one), Some(b"say \"hi\""), Some(&six), Some(&offset)]));
        // An empty field is NULL and not the default; within quotes it is text.
        assert_eq!(decode(&program, &names, b"\"\",,,1").1, row(&[Some(&one), Some(b""), None, Some(&offset)]));
        assert_eq!(decode(&program, &names, b",,,1").1, row(&[Some(&one), None, None, Some(&offset)]));
    }

    #[test]
    fn fields_in_the_order_of_the_columns_make_the_same_rows() {
        use proptest::prelude::*;
        let mut required = column("n", "int4");
        required.not_null = true;
        let kinds = ["int8", "text", "timestamptz", "float8", "numeric", "bool"];
        let columns = kinds.iter().map(|kind| column(kind, kind)).chain([required]).collect();
        let program = compile(&table(columns), "").unwrap();
        let names: Vec<String> = program.columns.iter().map(|column| column.name.clone()).collect();
        let csv = Csv { dialect: Dialect::default(), null: String::new(), names, utc: true };
        let field = prop::sample::select(vec![
            "",
            "\"\"",
            "7",
            "-12",
            "+5",
            "1.5",
            "1e3",
            "t",
            "off",
            "NaN",
            "-inf",
            "infinity",
            "2026-01-02 03:04:05+00",
            "2026-01-02 03:04:05",
            "\"say \"\"hi\"\"\"",
            "\"a,b\"",
            "x",
            "\u{1}",
            "ü",
            "99999999999",
        ]);
        let fitting = ["7", "text", "2026-01-02 03:04:05.6+00", "1.5", "1.5", "t", "1"];
        let made = std::cell::Cell::new(0);
        let odd = prop::collection::vec((0..7usize, field), 0..4);
        proptest!(|(odd in odd, fewer in 0..20usize)| {
            let mut record = fitting.map(str::to_owned).to_vec();
            for (at, field) in odd {
                record[at] = field.into();
            }
            record.truncate(7 - usize::from(fewer == 0));
            let record = record.join(",");
            let message = Message { part: 0, offset: 0, time: None, key: None, value: Some(record.as_bytes()), headers: None };
            let [one, other] = [true, false].map(|in_order| {
                let mut csv = CsvProgram::new(&csv, &program);
                assert!(csv.in_order);
                csv.in_order = in_order;
                let mut out = b"before".to_vec();
                (Decoder::default().decode_csv(&program, &mut csv, "", message, &mut out), out)
            });
            made.set(made.get() + u32::from(one.0 == Outcome::Row));
            prop_assert_eq!(one, other);
        });
        assert!(made.get() > 50, "{made:?} rows");
    }

    #[test]
    fn records_that_do_not_fit_say_why() {
        let mut required = column("a", "int4");
        required.not_null = true;
        let program = compile(&table(vec![required, column("b", "text")]), "").unwrap();
        for (record, reason, column) in [
            (&b"1"[..], Reason::NotCsv, None),
            (b"1,2,3", Reason::NotCsv, None),
            (b"x,2", Reason::WrongType, Some("a")),
            (b",2", Reason::MissingRequired, Some("a")),
            (b"1,\xff", Reason::BadText, None),
            (b"1,a\0b", Reason::BadText, Some("b")),
        ] {
            let (Outcome::Dead(rejection), out) = decode(&program, &["a", "b"], record) else { panic!("{record:?}") };
            assert_eq!((rejection.reason, rejection.column.as_deref()), (reason, column), "{record:?}");
            assert!(out.is_empty());
        }
        let (outcome, _) = decode(&program, &["a", "b"], &[b'1'; (1 << 20) + 1]);
        assert!(matches!(outcome, Outcome::Dead(Rejection { reason: Reason::TooLarge, .. })), "{outcome:?}");
    }

    #[test]
    fn fields_without_a_column_are_kept_as_json() {
        let program =
            compile(&table(vec![column("a", "int4"), column("j", "jsonb")]), "unknown_fields = { column = \"j\" }");
        let (outcome, out) = decode(&program.unwrap(), &["x", "a", "y"], b"\"q\"\"\",1,");
        assert_eq!(outcome, Outcome::Row);
        assert_eq!(out, row(&[Some(&1i32.to_be_bytes()), Some(b"\x01{\"x\":\"q\\\"\",\"y\":null}")]));
    }

    #[test]
    fn fields_follow_paths_and_feed_several_columns() {
        let rules = "columns.a = { from = \"x.y\" }\ncolumns.b = { from = \"x.z[1]\" }\ncolumns.j = { from = \"x\" }";
        let program =
            compile(&table(vec![column("a", "int4"), column("b", "text"), column("j", "jsonb")]), rules).unwrap();
        let (outcome, out) = decode(&program, &["x"], br#""{""y"": 5, ""z"": [1, ""b""]}""#);
        assert_eq!(outcome, Outcome::Row);
        let json = b"\x01{\"y\": 5, \"z\": [1, \"b\"]}";
        assert_eq!(out, row(&[Some(&5i32.to_be_bytes()), Some(b"b"), Some(json)]));
        assert_eq!(decode(&program, &["x"], b"").1, row(&[None, None, None]));
        for (record, column) in [(&br#""{""y"": 5""#[..], "j"), (br#""{""y"": ""z""}""#, "a"), (b"[1]", "a")] {
            let (Outcome::Dead(rejection), out) = decode(&program, &["x"], record) else { panic!("{record:?}") };
            assert_eq!((rejection.reason, rejection.column.as_deref()), (Reason::WrongType, Some(column)));
            assert!(out.is_empty());
        }
    }

    #[test]
    fn a_type_that_only_postgresql_reads_makes_a_line_of_text() {
        let program = compile(&table(vec![column("p", "point"), column("a", "int4")]), "").unwrap();
        let (outcome, out) = decode(&program, &["p", "a"], b"\"(1,2)\",");
        assert_eq!(outcome, Outcome::Row);
        assert_eq!(out, b"(1,2)\t\\N\n");
        assert!(matches!(decode(&program, &["p", "a"], b"x\0,1").0, Outcome::Dead(_)));
    }
}
