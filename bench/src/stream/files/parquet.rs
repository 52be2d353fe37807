//! Writes the table `filled` as a Parquet file, as usual programs write it: Snappy, dictionaries, row groups of 100,000.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use parquet::basic::Compression;
use parquet::column::writer::ColumnWriter;
use parquet::data_type::ByteArray;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use postgres::{Client, Row};

const ROWS_PER_GROUP: usize = 100_000;
const COLUMNS: &str =
    "required int32 a; required int64 b; required int64 t (TIMESTAMP(MICROS,true)); required binary s (UTF8);
     required double f;";

/// The first `limit` rows.
pub fn write(session: &mut Client, path: &Path, limit: u32) {
    let columns =
        session.query("SELECT attname::text FROM pg_attribute WHERE attrelid = 'filled'::regclass AND attnum > 0", &[]);
    let has_object = columns.unwrap().len() > 5;
    let object = if has_object { "required binary j (JSON);" } else { "" };
    let schema = Arc::new(parse_message_type(&format!("message filled {{ {COLUMNS} {object} }}")).unwrap());
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let mut writer = SerializedFileWriter::new(File::create(path).unwrap(), schema, Arc::new(properties)).unwrap();

    let mut transaction = session.transaction().unwrap();
    let object = if has_object { ", j::text" } else { "" };
    let select =
        format!("SELECT a, b, (extract(epoch FROM t) * 1000000)::bigint, s, f{object} FROM filled LIMIT {limit}");
    transaction.batch_execute(&format!("DECLARE c CURSOR FOR {select}")).unwrap();
    loop {
        let rows = transaction.query(&format!("FETCH {ROWS_PER_GROUP} FROM c"), &[]).unwrap();
        if rows.is_empty() {
            break;
        }
        let mut group = writer.next_row_group().unwrap();
        let mut number = 0;
        while let Some(mut column) = group.next_column().unwrap() {
            write_column(column.untyped(), number, &rows);
            column.close().unwrap();
            number += 1;
        }
        group.close().unwrap();
    }
    writer.close().unwrap();
}

fn write_column(column: &mut ColumnWriter, number: usize, rows: &[Row]) {
    let written = match column {
        ColumnWriter::Int32ColumnWriter(column) => column.write_batch(&values::<i32>(rows, number), None, None),
        ColumnWriter::Int64ColumnWriter(column) => column.write_batch(&values::<i64>(rows, number), None, None),
        ColumnWriter::DoubleColumnWriter(column) => column.write_batch(&values::<f64>(rows, number), None, None),
        ColumnWriter::ByteArrayColumnWriter(column) => {
            let texts: Vec<ByteArray> = rows.iter().map(|row| row.get::<_, &str>(number).into()).collect();
            column.write_batch(&texts, None, None)
        }
        _ => unreachable!("the schema has no other type"),
    };
    assert_eq!(written.unwrap(), rows.len());
}

fn values<T: for<'a> postgres::types::FromSql<'a>>(rows: &[Row], number: usize) -> Vec<T> {
    rows.iter().map(|row| row.get(number)).collect()
}
