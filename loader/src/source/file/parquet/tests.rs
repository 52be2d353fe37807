use std::fs;

use ::parquet::column::writer::ColumnWriter;
use ::parquet::data_type::{ByteArray, FixedLenByteArray};
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::parser::parse_message_type;

use super::*;

const LIST: &str = "optional group list (LIST) { repeated group list { optional int32 element; } }";
const FLAT: &str = "

    required int64 id;
    optional double d;
    required binary s (UTF8);
    optional int32 day (DATE);
    optional int64 at (TIMESTAMP(MICROS,true));
    optional int64 local (TIMESTAMP(NANOS,false));
    optional int64 price (DECIMAL(10,2));
    optional fixed_len_byte_array(16) u (UUID);
    optional binary raw;
    optional binary j (JSON);
";

/// Writes row groups of these sizes; the ids count through.
fn write(path: &Path, groups: &[i64]) {
    write_fields(path, &format!("{FLAT} {LIST}"), groups);
}

fn write_fields(path: &Path, fields: &str, groups: &[i64]) {
    let schema = Arc::new(parse_message_type(&format!("message m {{ {fields} }}")).unwrap());
    let mut writer =
        SerializedFileWriter::new(File::create(path).unwrap(), schema, Arc::new(WriterProperties::default())).unwrap();
    let mut first = 0;
    for &size in groups {
        let ids: Vec<i64> = (first..first + size).collect();
        let count = ids.len();
        let all = vec![1i16; count];
        let mut group = writer.next_row_group().unwrap();
        let mut number = 0;
        while let Some(mut column) = group.next_column().unwrap() {
            match column.untyped() {
                ColumnWriter::Int64ColumnWriter(column) => {
                    let (values, levels) = match number {
                        0 => (ids.clone(), None),
                        4 => (vec![253_402_300_799_999_999; count], Some(&all[..])),
                        5 => (vec![1_500; count], Some(&all[..])),
                        _ => (vec![-5; count], Some(&all[..])),
                    };
                    column.write_batch(&values, levels, None).unwrap();
                }
                // The first row has no number.
                ColumnWriter::DoubleColumnWriter(column) => {
                    let levels: Vec<i16> = ids.iter().map(|id| i16::from(*id > 0)).collect();
                    let values: Vec<f64> =
                        ids.iter().filter(|id| **id > 0).map(|id| if *id == 1 { f64::NAN } else { 0.1 }).collect();
                    column.write_batch(&values, Some(&levels), None).unwrap();
                }
                ColumnWriter::ByteArrayColumnWriter(column) => {
                    let text = match number {
                        2 => "sch\u{f6}n \"\n",
                        8 => "\u{1}\u{2}",
                        _ => "{\"k\": [1]}",
                    };
                    let values = vec![ByteArray::from(text); count];
                    column.write_batch(&values, (number != 2).then_some(&all[..]), None).unwrap();
                }
                ColumnWriter::FixedLenByteArrayColumnWriter(column) => {
                    let value = FixedLenByteArray::from(ByteArray::from((0..16).collect::<Vec<u8>>()));
                    column.write_batch(&vec![value; count], Some(&all), None).unwrap();
                }
                // A list of 7 and null in each row, and a date.
                ColumnWriter::Int32ColumnWriter(column) if number == 10 => {
                    let (levels, repeated) = ([3i16, 2].repeat(count), [0i16, 1].repeat(count));
                    column.write_batch(&vec![7; count], Some(&levels), Some(&repeated)).unwrap();
                }
                ColumnWriter::Int32ColumnWriter(column) => {
                    column.write_batch(&vec![-1; count], Some(&all), None).unwrap();
                }
                _ => panic!("column {number}"),
            };
            column.close().unwrap();
            number += 1;
        }
        group.close().unwrap();
        first += size;
    }
    writer.close().unwrap();
}

fn source(path: &Path, settings: &str) -> super::super::FileSource {
    super::super::FileSource::new(path, &toml::from_str(settings).unwrap(), 4 << 20).unwrap()
}

/// Messages from a row on, up to the end or the limit of one arena.
fn read(path: &Path, next: i64, anchor: Option<Anchor>, limit: usize) -> (Vec<(i64, String)>, Option<End>, Polled) {
    use crate::source::{Resume, Source};
    let mut source = source(path, "");
    assert_eq!(source.resume(0, next, anchor), Ok(Resume::Proven));
    source.assign(&[(0, next)]).unwrap();
    let mut arena = Arena::default();
    let polled = source.poll(&mut arena, limit, std::time::Duration::ZERO).unwrap();
    let text = |value: Option<&[u8]>| String::from_utf8(value.unwrap().to_vec()).unwrap();
    let records = arena.iter().map(|message| (message.offset, text(message.value))).collect();
    (records, arena.end(), polled)
}

#[test]
fn each_type_has_a_form_in_json() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    write(&path, &[3]);
    let (rows, _, _) = read(&path, 0, None, 1 << 20);
    let expected = |id: &str, d: &str| {
        format!(
            "{{\"id\":{id},\"d\":{d},\"s\":\"sch\u{f6}n \\\"\\n\",\"day\":\"1969-12-31\",\"at\":\"9999-12-31T23:59:59.999999Z\",\
             \"local\":\"1970-01-01T00:00:00.0000015\",\"price\":-0.05,\"u\":\"00010203-0405-0607-0809-0a0b0c0d0e0f\",\
             \"raw\":\"\\\\x0102\",\"j\":{{\"k\": [1]}},\"list\":[7,null]}}"
        )
    };
    let rows: Vec<&str> = rows.iter().map(|(_, row)| row.as_str()).collect();
    assert_eq!(rows, [expected("0", "null"), expected("1", "\"NaN\""), expected("2", "0.1")]);
}

#[test]
fn any_row_is_one_to_go_on_from() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    write(&path, &[5, 1, 7]);
    let (mut next, mut anchor, mut found) = (0, None, Vec::new());
    loop {
        let (rows, end, polled) = read(&path, next, anchor, 700);
        found.extend(rows.iter().map(|(offset, row)| {
            assert!(row.starts_with(&format!("{{\"id\":{offset},")), "{row}");
            *offset
        }));
        let end = end.unwrap();
        (next, anchor) = (end.next, Some(end.anchor));
        if polled == (Polled::EndOfPart { part: 0, position: 13 }) {
            break;
        }
    }
    assert_eq!(found, (0..13).collect::<Vec<_>>());
}

/// The library's own rows are the oracle; a file with a list is read by them.
#[test]
fn a_flat_file_read_by_columns_has_the_rows_of_the_library() {
    let folder = tempfile::tempdir().unwrap();
    let (flat, nested) = (folder.path().join("flat.parquet"), folder.path().join("nested.parquet"));
    // More than one batch in a group, and a group that ends with one.
    let groups = [3, 2_500, 1_024, 1];
    write_fields(&flat, FLAT, &groups);
    write(&nested, &groups);
    for next in [0, 1, 3, 4, 1_030, 2_503, 3_526, 3_527, 3_528] {
        let (mut columns, count) = Reader::open(&flat, next, false).unwrap();
        let (mut rows, _) = Reader::open(&nested, next, false).unwrap();
        assert!(matches!((&columns, &rows), (Reader::Columns(_), Reader::Rows(..))));
        assert_eq!(count, 3_528);
        for row in next..=count {
            let (mut found, mut expected) = (Vec::new(), Vec::new());
            assert_eq!(columns.append_next(&mut found).unwrap(), row < count);
            assert_eq!(rows.append_next(&mut expected).unwrap(), row < count);
            let expected = String::from_utf8(expected).unwrap().replace(",\"list\":[7,null]", "");
            assert_eq!(String::from_utf8(found).unwrap(), expected, "row {row} from {next}");
        }
    }
}

#[test]
fn another_or_a_damaged_file_is_refused() {
    use crate::source::{Resume, Source};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    write(&path, &[5]);
    let (_, end, _) = read(&path, 0, None, 1 << 20);
    let end = end.unwrap();
    write(&path, &[5, 1]);
    let answer = source(&path, "").resume(0, end.next, Some(end.anchor));
    assert!(matches!(&answer, Ok(Resume::Refused(reason)) if reason.contains("changed or replaced")), "{answer:?}");
    for fields in [FLAT.to_owned(), format!("{FLAT} {LIST}")] {
        write_fields(&path, &fields, &[5, 1]);
        let mut bytes = fs::read(&path).unwrap();
        bytes[100..300].fill(0xff);
        fs::write(&path, &bytes).unwrap();
        let (_, _, polled) = read(&path, 0, None, 1 << 20);
        assert!(matches!(polled, Polled::Broken { .. }), "{polled:?}");
    }
    let bytes = fs::read(&path).unwrap();
    let whole = bytes.len();
    fs::write(&path, &bytes[..whole - 10]).unwrap();
    let error = fields(&path, Compression::None).unwrap_err();
    assert_eq!(error.code(), 3, "{error}");
    assert_eq!(fields(&path, Compression::Gzip).unwrap_err().code(), 3);
}
