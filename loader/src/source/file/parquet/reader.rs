//! Rows of a Parquet file, one after the other, as JSON objects. A file without lists, maps and groups, as most are, is read column by
//! column: the library's own rows bring a copy of each field's name and text with every row, and take more than twice the time.

use std::fs::File;
use std::path::Path;

use parquet::basic::ConvertedType;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, DataType, FixedLenByteArray};
use parquet::errors::{ParquetError, Result};
use parquet::file::reader::FileReader;
use parquet::file::serialized_reader::{ReadOptionsBuilder, SerializedFileReader};
use parquet::record::Field;
use parquet::record::reader::RowIter;
use parquet::schema::types::ColumnDescPtr;

use super::json::{self, Form};

/// Rows that are read of each column at a time, as the library's own rows are.
const BATCH: usize = 1_024;

/// Stands at a row.
pub(super) enum Reader {
    Columns(Columns),
    Rows(RowIter<'static>, Vec<Form>),
}

impl Reader {
    /// Opens the file at a row; with the number of its rows. `utc`: a time without a zone is one of UTC.
    pub(super) fn open(path: &Path, next: i64, utc: bool) -> Result<(Self, i64)> {
        let file = SerializedFileReader::new(File::open(path)?)?;
        let metadata = file.metadata().clone();
        let (mut first, mut before) = (0, 0);
        for group in metadata.row_groups() {
            if before + group.num_rows() > next {
                break;
            }
            (first, before) = (first + 1, before + group.num_rows());
        }
        let schema = metadata.file_metadata().schema_descr();
        let forms: Vec<Form> = schema.root_schema().get_fields().iter().map(|field| Form::of(field, utc)).collect();
        let columns = schema.columns();
        let is_flat = columns.iter().all(|column| column.max_rep_level() == 0 && column.path().parts().len() == 1);
        let count = metadata.file_metadata().num_rows();
        if is_flat && columns.len() == forms.len() && !columns.is_empty() {
            let columns = columns.iter().zip(forms).enumerate();
            let columns = columns.map(|(number, (column, form))| Column::new(number, column, form)).collect();
            let mut columns = Columns { file, next_group: first, columns, row: 0, rows: 0 };
            columns.skip((next - before) as usize)?;
            return Ok((Self::Columns(columns), count));
        }
        let options = ReadOptionsBuilder::new().with_predicate(Box::new(move |_, group| group >= first)).build();
        let mut rows =
            RowIter::from_file_into(Box::new(SerializedFileReader::new_with_options(File::open(path)?, options)?));
        for _ in before..next {
            rows.next().transpose()?;
        }
        Ok((Self::Rows(rows, forms), count))
    }

    /// Appends the next row as an object; `false`: there is none.
    pub(super) fn append_next(&mut self, out: &mut Vec<u8>) -> Result<bool> {
        match self {
            Self::Columns(columns) => columns.append_next(out),
            Self::Rows(rows, forms) => {
                let row = rows.next().transpose()?;
                if let Some(row) = &row {
                    json::object(out, row, forms);
                }
                Ok(row.is_some())
            }
        }
    }
}

/// The columns of a flat file, all at the same row.
pub(super) struct Columns {
    file: SerializedFileReader<File>,
    next_group: usize,
    columns: Vec<Column>,
    /// The next row of the batch, and how many it has.
    row: usize,
    rows: usize,
}

impl Columns {
    fn append_next(&mut self, out: &mut Vec<u8>) -> Result<bool> {
        if self.row == self.rows && !self.fill()? {
            return Ok(false);
        }
        for column in &mut self.columns {
            column.append(self.row, out)?;
        }
        out.push(b'}');
        self.row += 1;
        Ok(true)
    }

    /// Reads the next batch, of the next row group when this one is over.
    fn fill(&mut self) -> Result<bool> {
        loop {
            let mut rows = None;
            for column in &mut self.columns {
                let read = column.read()?;
                if rows.is_some_and(|rows| rows != read) {
                    return Err(ParquetError::General("its columns are not of the same length".into()));
                }
                rows = Some(read);
            }
            (self.row, self.rows) = (0, rows.unwrap_or(0));
            if self.rows > 0 {
                return Ok(true);
            }
            if !self.open_group()? {
                return Ok(false);
            }
        }
    }

    fn open_group(&mut self) -> Result<bool> {
        if self.next_group >= self.file.num_row_groups() {
            return Ok(false);
        }
        let group = self.file.get_row_group(self.next_group)?;
        for (number, column) in self.columns.iter_mut().enumerate() {
            column.values = Some(Values::new(group.get_column_reader(number)?)?);
        }
        self.next_group += 1;
        Ok(true)
    }

    /// Passes rows of the first row group.
    fn skip(&mut self, mut rows: usize) -> Result<()> {
        while rows > 0 && self.fill()? {
            self.row = rows.min(self.rows);
            rows -= self.row;
            let passed = self.row;
            self.columns.iter_mut().for_each(|column| column.pass(passed));
        }
        Ok(())
    }
}

/// One column of the open row group.
struct Column {
    descriptor: ColumnDescPtr,
    form: Form,
    /// What stands before each value: the name, and the brace or comma before it.
    before: Vec<u8>,
    /// The reader and what it has read; `None` before the first row group.
    values: Option<Values>,
    /// Of each row of the batch; empty when no value may be absent.
    levels: Vec<i16>,
    /// The next value: there is none of a row without one.
    at: usize,
}

impl Column {
    fn new(number: usize, descriptor: &ColumnDescPtr, form: Form) -> Self {
        let mut before = vec![if number == 0 { b'{' } else { b',' }];
        json::text(&mut before, descriptor.name());
        before.push(b':');
        Self { descriptor: descriptor.clone(), form, before, values: None, levels: Vec::new(), at: 0 }
    }

    /// Reads the next rows; how many.
    fn read(&mut self) -> Result<usize> {
        self.at = 0;
        self.levels.clear();
        let levels = (self.descriptor.max_def_level() > 0).then_some(&mut self.levels);
        self.values.as_mut().map_or(Ok(0), |values| values.read(levels))
    }

    fn has_value(&self, row: usize) -> bool {
        self.levels.get(row).is_none_or(|level| *level == self.descriptor.max_def_level())
    }

    /// Passes the first rows of the batch.
    fn pass(&mut self, rows: usize) {
        self.at = (0..rows).filter(|row| self.has_value(*row)).count();
    }

    /// Appends the field of a row; rows come in order.
    fn append(&mut self, row: usize, out: &mut Vec<u8>) -> Result<()> {
        out.extend_from_slice(&self.before);
        if !self.has_value(row) {
            out.extend_from_slice(b"null");
            return Ok(());
        }
        let (at, descriptor) = (self.at, &self.descriptor);
        self.at += 1;
        let missing = || ParquetError::General("a column has fewer values than rows".into());
        let field = match self.values.as_ref().ok_or_else(missing)? {
            Values::Bool(_, values) => Field::convert_bool(descriptor, *values.get(at).ok_or_else(missing)?),
            Values::Int32(_, values) => Field::convert_int32(descriptor, *values.get(at).ok_or_else(missing)?),
            Values::Int64(_, values) => Field::convert_int64(descriptor, *values.get(at).ok_or_else(missing)?),
            Values::Float(_, values) => Field::convert_float(descriptor, *values.get(at).ok_or_else(missing)?),
            Values::Double(_, values) => Field::convert_double(descriptor, *values.get(at).ok_or_else(missing)?),
            Values::Bytes(_, values) => {
                let value = values.get(at).ok_or_else(missing)?;
                // The most frequent type, without a copy.
                if self.form == Form::Plain && descriptor.converted_type() == ConvertedType::UTF8 {
                    json::text(out, value.as_utf8()?);
                    return Ok(());
                }
                Field::convert_byte_array(descriptor, value.clone())?
            }
            Values::Fixed(_, values) => {
                let value = values.get(at).ok_or_else(missing)?;
                Field::convert_byte_array(descriptor, ByteArray::from(value.data().to_vec()))?
            }
        };
        json::value(out, &field, self.form);
        Ok(())
    }
}

/// A reader of one physical type, and the values of the batch.
enum Values {
    Bool(ColumnReaderImpl<parquet::data_type::BoolType>, Vec<bool>),
    Int32(ColumnReaderImpl<parquet::data_type::Int32Type>, Vec<i32>),
    Int64(ColumnReaderImpl<parquet::data_type::Int64Type>, Vec<i64>),
    Float(ColumnReaderImpl<parquet::data_type::FloatType>, Vec<f32>),
    Double(ColumnReaderImpl<parquet::data_type::DoubleType>, Vec<f64>),
    Bytes(ColumnReaderImpl<parquet::data_type::ByteArrayType>, Vec<ByteArray>),
    Fixed(ColumnReaderImpl<parquet::data_type::FixedLenByteArrayType>, Vec<FixedLenByteArray>),
}

impl Values {
    fn new(reader: ColumnReader) -> Result<Self> {
        Ok(match reader {
            ColumnReader::BoolColumnReader(reader) => Self::Bool(reader, Vec::new()),
            ColumnReader::Int32ColumnReader(reader) => Self::Int32(reader, Vec::new()),
            ColumnReader::Int64ColumnReader(reader) => Self::Int64(reader, Vec::new()),
            ColumnReader::FloatColumnReader(reader) => Self::Float(reader, Vec::new()),
            ColumnReader::DoubleColumnReader(reader) => Self::Double(reader, Vec::new()),
            ColumnReader::ByteArrayColumnReader(reader) => Self::Bytes(reader, Vec::new()),
            ColumnReader::FixedLenByteArrayColumnReader(reader) => Self::Fixed(reader, Vec::new()),
            ColumnReader::Int96ColumnReader(_) => return Err(ParquetError::NYI("INT96".into())),
        })
    }

    fn read(&mut self, levels: Option<&mut Vec<i16>>) -> Result<usize> {
        fn next<T: DataType>(
            reader: &mut ColumnReaderImpl<T>,
            values: &mut Vec<T::T>,
            levels: Option<&mut Vec<i16>>,
        ) -> Result<usize> {
            values.clear();
            Ok(reader.read_records(BATCH, levels, None, values)?.0)
        }
        match self {
            Self::Bool(reader, values) => next(reader, values, levels),
            Self::Int32(reader, values) => next(reader, values, levels),
            Self::Int64(reader, values) => next(reader, values, levels),
            Self::Float(reader, values) => next(reader, values, levels),
            Self::Double(reader, values) => next(reader, values, levels),
            Self::Bytes(reader, values) => next(reader, values, levels),
            Self::Fixed(reader, values) => next(reader, values, levels),
        }
    }
}
