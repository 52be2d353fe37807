//! New arrays.

use pgrx::pg_sys::{self, Datum, Oid};
use std::ffi::{c_char, c_int};

/// Of values of type text.
pub(crate) fn of_texts(elements: Vec<Datum>) -> Datum {
    construct(elements, pg_sys::TEXTOID, -1, false, pg_sys::TYPALIGN_INT)
}

pub(crate) fn of_bigints(elements: Vec<Datum>) -> Datum {
    construct(elements, pg_sys::INT8OID, 8, true, pg_sys::TYPALIGN_DOUBLE)
}

pub(crate) fn of_booleans(elements: Vec<Datum>) -> Datum {
    construct(elements, pg_sys::BOOLOID, 1, true, pg_sys::TYPALIGN_CHAR)
}

fn construct(mut elements: Vec<Datum>, oid: Oid, length: c_int, is_by_value: bool, alignment: u8) -> Datum {
    // SAFETY: so many values of a built-in type with this layout.
    Datum::from(unsafe {
        pg_sys::construct_array(
            elements.as_mut_ptr(),
            elements.len() as c_int,
            oid,
            length,
            is_by_value,
            alignment as c_char,
        )
    })
}
