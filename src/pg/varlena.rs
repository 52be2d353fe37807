//! Values of variable length: reading them without a copy where PostgreSQL allows it, and making new ones.

use pgrx::pg_sys::{self, Datum};
use pgrx::varlena as header;
use std::ops::Deref;
use std::ptr;

/// The payload of a value, either in place or in a copy that is freed at the end.
pub(crate) struct Bytes<'c> {
    payload: &'c [u8],
    copy: *mut pg_sys::varlena,
}

impl Bytes<'_> {
    /// # Safety
    /// The datum points to a value of variable length that outlives the result.
    #[inline(always)]
    pub(crate) unsafe fn detoast(datum: Datum) -> Self {
        let value = datum.cast_mut_ptr::<pg_sys::varlena>();
        // SAFETY: the header says how long the value is and whether it is all there.
        unsafe {
            if header::varatt_is_4b_u(value) || (header::varatt_is_1b(value) && !header::varatt_is_1b_e(value)) {
                return Self { payload: payload(value), copy: ptr::null_mut() };
            }
            Self::fetch(value)
        }
    }

    #[cold]
    #[inline(never)]
    unsafe fn fetch(value: *mut pg_sys::varlena) -> Self {
        // SAFETY: see detoast; the copy belongs to us.
        unsafe {
            let copy = pg_sys::pg_detoast_datum_packed(value);
            Self { payload: payload(copy), copy: if ptr::eq(copy, value) { ptr::null_mut() } else { copy } }
        }
    }

    /// # Safety
    /// As [`Self::detoast`].
    pub(crate) unsafe fn detoast_prefix(datum: Datum, length: i32) -> Self {
        let value = datum.cast_mut_ptr::<pg_sys::varlena>();
        // SAFETY: see detoast.
        unsafe {
            if header::varatt_is_1b_e(value) || header::varatt_is_4b_c(value) {
                let copy = pg_sys::pg_detoast_datum_slice(value, 0, length);
                return Self { payload: payload(copy), copy };
            }
            let payload = payload(value);
            Self { payload: &payload[..payload.len().min(length as usize)], copy: ptr::null_mut() }
        }
    }
}

impl Deref for Bytes<'_> {
    type Target = [u8];

    #[inline(always)]
    fn deref(&self) -> &[u8] {
        self.payload
    }
}

impl Drop for Bytes<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        if !self.copy.is_null() {
            // SAFETY: a copy that was made for us, and nobody else has it.
            unsafe { pg_sys::pfree(self.copy.cast()) }
        }
    }
}

/// # Safety
/// A value in line and not compressed.
#[inline(always)]
unsafe fn payload<'a>(value: *const pg_sys::varlena) -> &'a [u8] {
    // SAFETY: the header of such a value gives its length.
    unsafe { std::slice::from_raw_parts(header::vardata_any(value).cast(), header::varsize_any_exhdr(value)) }
}

/// A new value of `length` bytes in the current memory context.
pub(crate) fn build(length: usize, fill: impl FnOnce(&mut [u8])) -> Datum {
    let size = length + pg_sys::VARHDRSZ;
    // SAFETY: palloc gives so many bytes or raises an error, also for sizes that do not fit the header.
    unsafe {
        let value = pg_sys::palloc0(size).cast::<pg_sys::varlena>();
        header::set_varsize_4b(value, size as i32);
        fill(std::slice::from_raw_parts_mut(value.cast::<u8>().add(pg_sys::VARHDRSZ), length));
        Datum::from(value)
    }
}

/// A new value with these bytes.
pub(crate) fn copy(bytes: &[u8]) -> Datum {
    build(bytes.len(), |payload| payload.copy_from_slice(bytes))
}

/// A new cstring.
pub(crate) fn c_string(text: &str) -> Datum {
    // SAFETY: the string is as long as it says; pnstrdup adds the zero byte.
    unsafe { Datum::from(pg_sys::pnstrdup(text.as_ptr().cast(), text.len())) }
}

// pgrx declares these with a guard, and then they are no function pointers of C any more; here they are only passed on.
unsafe extern "C-unwind" {
    fn byteain(info: pg_sys::FunctionCallInfo) -> Datum;
    fn byteaout(info: pg_sys::FunctionCallInfo) -> Datum;
    fn bytearecv(info: pg_sys::FunctionCallInfo) -> Datum;
}

/// The text form of bytea, read: hex or escapes.
pub(crate) fn from_text(text: Datum) -> Datum {
    // SAFETY: byteain takes one cstring.
    unsafe { pg_sys::DirectFunctionCall1Coll(Some(byteain), pg_sys::Oid::INVALID, text) }
}

/// The text form of bytea, as `bytea_output` says.
pub(crate) fn to_text(value: Datum) -> Datum {
    // SAFETY: byteaout takes one value of variable length.
    unsafe { pg_sys::DirectFunctionCall1Coll(Some(byteaout), pg_sys::Oid::INVALID, value) }
}

/// The rest of a binary message, as a new value.
pub(crate) fn receive(message: Datum) -> Datum {
    // SAFETY: bytearecv takes the StringInfo of a receive function.
    unsafe { pg_sys::DirectFunctionCall1Coll(Some(bytearecv), pg_sys::Oid::INVALID, message) }
}

/// The bytes of a value that has just been made.
pub(crate) fn made<'a>(value: Datum) -> Bytes<'a> {
    // SAFETY: made by one of the functions above in the current memory context, which outlives the call.
    unsafe { Bytes::detoast(value) }
}
