//! Rows as the bytes of `COPY .. FROM STDIN (FORMAT binary)`.
//!
//! The stream is a header, then per row an int16 number of columns and per column an int32 length (-1 is NULL) and that many
//! bytes, then int16 -1; everything big-endian (PostgreSQL documentation, "COPY", section "Binary Format"). The format
//! carries **no types**: bytes of a bigint load without complaint into a timestamptz. What is written here must therefore fit
//! the column exactly, and the loader compares the columns again inside the transaction (`catalog::FINGERPRINT`).

mod array;
mod date;
mod interval;
mod network;
mod numeric;
mod text;
mod time;
mod time_of_day;

pub use array::{MAXIMUM_DIMENSIONS, array_header};
pub use date::{civil, date};
pub use interval::interval;
pub use network::address;
pub use numeric::numeric;
pub use text::{line, print};
pub use time::{POSTGRES_EPOCH_SECONDS, from_unix_milliseconds, from_unix_seconds, rfc3339};
pub use time_of_day::{time, timetz};

/// Why a text is no value of its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParseError {
    /// Not written as one.
    Syntax,
    /// One that the type, or this column of it, cannot hold.
    Range,
}

/// Signature, flags and length of the header extension.
pub const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// The end of the stream.
pub const TRAILER: &[u8] = &(-1i16).to_be_bytes();
/// A NULL field.
pub const NULL: &[u8] = &(-1i32).to_be_bytes();

/// Appends the start of a row.
pub fn row(out: &mut Vec<u8>, columns: usize) {
    let columns = i16::try_from(columns).expect("PostgreSQL has at most 1,600 columns");
    out.extend_from_slice(&columns.to_be_bytes());
}

/// Appends a field of known bytes.
pub fn field(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&length(bytes.len()));
    out.extend_from_slice(bytes);
}

/// Appends a field of at most 16 bytes whose number is fixed, at once.
#[inline(always)]
pub fn fixed<const BYTES: usize>(out: &mut Vec<u8>, bytes: [u8; BYTES]) {
    let mut field = [0; 20];
    field[..4].copy_from_slice(&(BYTES as u32).to_be_bytes());
    field[4..4 + BYTES].copy_from_slice(&bytes);
    out.extend_from_slice(&field[..4 + BYTES]);
}

/// Appends a field, or NULL.
pub fn nullable(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes {
        Some(bytes) => field(out, bytes),
        None => out.extend_from_slice(NULL),
    }
}

/// Appends a jsonb field: a version byte and the text, which the server parses.
pub fn jsonb(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(&length(text.len() + 1));
    out.push(1);
    out.extend_from_slice(text);
}

fn length(bytes: usize) -> [u8; 4] {
    // Messages are limited to far less than 1 GB, the limit of a PostgreSQL field.
    i32::try_from(bytes).expect("a field is shorter than 2 GiB").to_be_bytes()
}

/// The number written from `from` up to `to`, all of it decimal digits.
#[inline(always)]
fn digits(bytes: &[u8], from: usize, to: usize) -> Option<i64> {
    bytes
        .get(from..to)?
        .iter()
        .try_fold(0, |value, byte| byte.is_ascii_digit().then(|| value * 10 + i64::from(byte - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_row_fields_and_trailer_have_the_documented_bytes() {
        let mut out = HEADER.to_vec();
        row(&mut out, 3);
        field(&mut out, &7i32.to_be_bytes());
        nullable(&mut out, None);
        jsonb(&mut out, b"{}");
        out.extend_from_slice(TRAILER);
        assert_eq!(
            out,
            b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0\0\x03\0\0\0\x04\0\0\0\x07\xff\xff\xff\xff\0\0\0\x03\x01{}\xff\xff"
        );
    }
}
