//! Text between the encoding of the database and UTF-8.

use crate::error::Error;
use pgrx::pg_sys;
use std::borrow::Cow;
use std::ffi::{CStr, c_int};

const UTF8: c_int = pg_sys::pg_enc::PG_UTF8 as c_int;

fn is_utf8() -> bool {
    // SAFETY: a plain look at the state of the session.
    unsafe { pg_sys::GetDatabaseEncoding() == UTF8 }
}

/// Bytes that have come in may be no text of the database.
///
/// # Errors
/// They have a zero byte, or are not valid in its encoding.
pub(crate) fn check_text(bytes: &[u8]) -> Result<(), Error> {
    if bytes.contains(&0) {
        return Err(Error::new("22021", "an item has a zero byte, which no text can have"));
    }
    // SAFETY: so many bytes; the function answers and raises no error.
    if unsafe { pg_sys::pg_verifymbstr(bytes.as_ptr().cast(), bytes.len() as c_int, true) } {
        return Ok(());
    }
    Err(Error::new("22021", "an item is no valid text in the encoding of this database")
        .hint("Take the value from a database with the same encoding, or as JSON."))
}

/// Text of the database in UTF-8.
pub(crate) fn to_utf8(text: &[u8]) -> Cow<'_, str> {
    if is_utf8() {
        return String::from_utf8_lossy(text);
    }
    // SAFETY: so many bytes of text; the answer is the same text or a new one that ends with a zero byte.
    unsafe {
        let found = pg_sys::pg_server_to_any(text.as_ptr().cast(), text.len() as c_int, UTF8);
        if found.cast_const().cast() == text.as_ptr() {
            String::from_utf8_lossy(text)
        } else {
            CStr::from_ptr(found).to_string_lossy()
        }
    }
}

/// Text in UTF-8 as text of the database.
pub(crate) fn from_utf8(text: &str) -> Cow<'_, [u8]> {
    if is_utf8() {
        return Cow::Borrowed(text.as_bytes());
    }
    // SAFETY: as above.
    unsafe {
        let found = pg_sys::pg_any_to_server(text.as_ptr().cast(), text.len() as c_int, UTF8);
        if found.cast_const().cast() == text.as_ptr() {
            Cow::Borrowed(text.as_bytes())
        } else {
            Cow::Borrowed(CStr::from_ptr(found).to_bytes())
        }
    }
}
