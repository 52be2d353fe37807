//! What the catalogs say about types, their names and collations.

use super::encoding::from_utf8;
use super::function::Call;
use super::varlena::Bytes;
use pgrx::pg_sys::{self, Oid};
use std::ffi::{CStr, CString};

/// The type of tally with this name.
pub(crate) fn own_type(name: &CStr) -> Oid {
    // SAFETY: a catalog look-up with a NUL-terminated name.
    named(unsafe { pg_sys::get_namespace_oid(c"tally".as_ptr(), true) }, name)
}

/// The type with this name in this schema, or no OID.
fn named(schema: Oid, name: &CStr) -> Oid {
    // SAFETY: a catalog look-up with a NUL-terminated name; a schema that does not exist has no types.
    unsafe {
        pg_sys::GetSysCacheOid(
            pg_sys::SysCacheIdentifier::TYPENAMENSP as i32,
            pg_sys::Anum_pg_type_oid as i16,
            pg_sys::Datum::from(name.as_ptr()),
            pg_sys::Datum::from(schema),
            pg_sys::Datum::from(0),
            pg_sys::Datum::from(0),
        )
    }
}

/// Does the schema have a relation or a type with this name? A table brings both.
pub(crate) fn is_name_taken(schema: &str, name: &str) -> bool {
    let [schema, name] = [schema, name].map(|name| CString::new(from_utf8(name)).expect("no name has a zero byte"));
    // SAFETY: catalog look-ups with NUL-terminated names; a schema that does not exist has no relations.
    let (schema, relation) = unsafe {
        let schema = pg_sys::get_namespace_oid(schema.as_ptr(), true);
        (schema, pg_sys::get_relname_relid(name.as_ptr(), schema))
    };
    relation != Oid::INVALID || named(schema, &name) != Oid::INVALID
}

/// How many bytes the values of a type have, or -1 if that is in their header and -2 for strings that end with a zero byte; and whether
/// they are no references to these bytes.
pub(crate) fn layout(oid: Oid) -> (i16, bool) {
    let (mut length, mut is_by_value) = (0, false);
    // SAFETY: a catalog look-up; an unknown type gives an error of PostgreSQL.
    unsafe { pg_sys::get_typlenbyval(oid, &mut length, &mut is_by_value) };
    (length, is_by_value)
}

/// What the binary protocol sends of a value of this type.
pub(crate) fn sent(oid: Oid, value: pg_sys::Datum) -> Bytes<'static> {
    let (mut function, mut is_of_variable_length) = (Oid::INVALID, false);
    // SAFETY: catalog look-ups; the function takes a value of the type and gives a new bytea.
    unsafe {
        pg_sys::getTypeBinaryOutputInfo(oid, &mut function, &mut is_of_variable_length);
        Bytes::detoast(pg_sys::Datum::from(pg_sys::OidSendFunctionCall(function, value)))
    }
}

/// The output function of a type, looked up for a call site.
#[derive(Clone, Copy)]
pub(crate) struct Output(*mut pg_sys::FmgrInfo);

impl Output {
    pub(crate) fn of(call: Call<'_>, oid: Oid) -> Self {
        let (mut function, mut is_of_variable_length) = (Oid::INVALID, false);
        // SAFETY: a catalog look-up; an unknown type gives an error of PostgreSQL.
        unsafe { pg_sys::getTypeOutputInfo(oid, &mut function, &mut is_of_variable_length) };
        Self(call.look_up(function))
    }

    /// The text of a value of the type, in the memory of the call.
    pub(crate) fn text<'c>(self, value: pg_sys::Datum) -> &'c [u8] {
        // SAFETY: the function takes a value of the type and gives a new string that ends with a zero byte.
        unsafe { CStr::from_ptr(pg_sys::OutputFunctionCall(self.0, value)) }.to_bytes()
    }
}

// pgrx declares this with a guard, and then it is no function pointer of C any more; here it is only passed on.
unsafe extern "C-unwind" {
    fn interval_justify_interval(info: pg_sys::FunctionCallInfo) -> pg_sys::Datum;
}

/// An interval that equals another one only if both have the same months, days and time.
pub(crate) fn justified_interval(interval: pg_sys::Datum) -> pg_sys::Datum {
    // SAFETY: the function takes one interval.
    unsafe { pg_sys::DirectFunctionCall1Coll(Some(interval_justify_interval), Oid::INVALID, interval) }
}

/// The name of a type as SQL writes it.
pub(crate) fn type_name(oid: Oid) -> String {
    // SAFETY: an unknown type gives "???"; the string is NUL-terminated.
    unsafe { CStr::from_ptr(pg_sys::format_type_be(oid)) }.to_string_lossy().into_owned()
}

/// The type that a domain is made of, or the type itself.
pub(crate) fn base_type(oid: Oid) -> Oid {
    // SAFETY: a catalog look-up; an unknown type gives an error of PostgreSQL.
    unsafe { pg_sys::getBaseType(oid) }
}

/// Are strings equal under the collation only if their bytes are?
pub(crate) fn is_deterministic(collation: Oid) -> bool {
    // SAFETY: a catalog look-up; an unknown collation gives an error of PostgreSQL.
    unsafe { pg_sys::get_collation_isdeterministic(collation) }
}

/// The elements of a `cstring[]`, as type modifiers come.
pub(crate) fn c_strings(array: pg_sys::Datum) -> Vec<String> {
    let mut elements = std::ptr::null_mut();
    let mut count = 0;
    // SAFETY: the declared type is cstring[], whose elements are NUL-terminated and have alignment char.
    unsafe {
        let array = pg_sys::pg_detoast_datum(array.cast_mut_ptr()).cast::<pg_sys::ArrayType>();
        pg_sys::deconstruct_array(
            array,
            pg_sys::CSTRINGOID,
            -2,
            false,
            pg_sys::TYPALIGN_CHAR as std::ffi::c_char,
            &mut elements,
            std::ptr::null_mut(),
            &mut count,
        );
        (0..count as usize)
            .map(|position| CStr::from_ptr((*elements.add(position)).cast_mut_ptr()).to_string_lossy().into_owned())
            .collect()
    }
}
