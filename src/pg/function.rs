//! Functions that PostgreSQL calls directly (version-1 calling convention), for what `#[pg_extern]` cannot express or makes
//! slow: aggregate support, type input and output, and everything that is called once per row.
//!
//! The SQL declaration of a function is the contract for the types of its arguments: reading an argument as something
//! else than it is declared in `sql/` would be a bug that no check here can find.

use super::varlena::Bytes;
use crate::error::Error;
use pgrx::pg_sys::{self, Datum, Oid};
use std::ffi::CStr;
use std::marker::PhantomData;

/// One call of a function. What it lends lives as long as the call.
#[derive(Clone, Copy)]
pub(crate) struct Call<'c> {
    info: pg_sys::FunctionCallInfo,
    lends: PhantomData<&'c ()>,
}

impl<'c> Call<'c> {
    /// # Safety
    /// `info` is what PostgreSQL has called the function with.
    #[inline(always)]
    pub(crate) unsafe fn new(info: pg_sys::FunctionCallInfo) -> Self {
        Self { info, lends: PhantomData }
    }

    /// Number of arguments.
    pub(crate) fn len(self) -> usize {
        // SAFETY: the structure is valid for the call.
        unsafe { (*self.info).nargs as usize }
    }

    #[inline(always)]
    fn argument(self, position: usize) -> &'c pg_sys::NullableDatum {
        // SAFETY: the array has as many elements as the declaration has arguments.
        unsafe { &*(*self.info).args.as_ptr().add(position) }
    }

    #[inline(always)]
    pub(crate) fn is_null(self, position: usize) -> bool {
        self.argument(position).isnull
    }

    #[inline(always)]
    pub(crate) fn datum(self, position: usize) -> Datum {
        self.argument(position).value
    }

    #[inline(always)]
    pub(crate) fn boolean(self, position: usize) -> bool {
        self.datum(position).value() as u8 != 0
    }

    #[inline(always)]
    pub(crate) fn int16(self, position: usize) -> i16 {
        self.datum(position).value() as i16
    }

    #[inline(always)]
    pub(crate) fn int32(self, position: usize) -> i32 {
        self.datum(position).value() as i32
    }

    #[inline(always)]
    pub(crate) fn int64(self, position: usize) -> i64 {
        self.datum(position).value() as i64
    }

    pub(crate) fn oid(self, position: usize) -> Oid {
        Oid::from_u32(self.datum(position).value() as u32)
    }

    /// An argument of variable length; out-of-line and compressed values are fetched.
    #[inline(always)]
    pub(crate) fn bytes(self, position: usize) -> Bytes<'c> {
        // SAFETY: the declared type is of variable length, so that the datum points to one, valid for the call.
        unsafe { Bytes::detoast(self.datum(position)) }
    }

    /// The first bytes of an argument of variable length, without fetching the rest of it.
    pub(crate) fn prefix(self, position: usize, length: i32) -> Bytes<'c> {
        // SAFETY: as above.
        unsafe { Bytes::detoast_prefix(self.datum(position), length) }
    }

    /// An argument whose type has a fixed length and is passed by reference.
    #[inline(always)]
    pub(crate) fn fixed<const LENGTH: usize>(self, position: usize) -> &'c [u8; LENGTH] {
        // SAFETY: the declared type has this length, so that the datum points to so many bytes, valid for the call.
        unsafe { &*self.datum(position).cast_mut_ptr::<[u8; LENGTH]>() }
    }

    /// An argument of type cstring, without the zero byte at its end.
    pub(crate) fn c_string(self, position: usize) -> &'c [u8] {
        // SAFETY: the declared type is cstring, so that the datum points to bytes up to a zero byte, valid for the call.
        unsafe { CStr::from_ptr(self.datum(position).cast_mut_ptr()) }.to_bytes()
    }

    /// The collation that the call is made with; invalid if the arguments have none or conflicting ones.
    pub(crate) fn collation(self) -> Oid {
        // SAFETY: the structure is valid for the call.
        unsafe { (*self.info).fncollation }
    }

    /// The type of an argument as the parser has resolved it, domains replaced by what they are made of. `None` if the
    /// function was not called by an expression.
    pub(crate) fn base_type(self, position: usize) -> Option<Oid> {
        // SAFETY: flinfo is valid for the call; an unknown type gives an error of PostgreSQL.
        unsafe {
            let declared = pg_sys::get_fn_expr_argtype((*self.info).flinfo, position as i32);
            (declared != Oid::INVALID).then(|| pg_sys::getBaseType(declared))
        }
    }

    /// What this call site has found out the first time and remembers as long as the query runs. One function may
    /// remember one type of value.
    #[inline(always)]
    pub(crate) fn remembered<T: Copy>(self, find: impl FnOnce(Self) -> Result<T, Error>) -> Result<T, Error> {
        // SAFETY: fn_extra belongs to the called function, which puts nothing but a T there.
        unsafe {
            let extra = (*(*self.info).flinfo).fn_extra;
            if !extra.is_null() {
                return Ok(*extra.cast::<T>());
            }
        }
        self.remember(find)
    }

    #[cold]
    #[inline(never)]
    fn remember<T: Copy>(self, find: impl FnOnce(Self) -> Result<T, Error>) -> Result<T, Error> {
        let found = find(self)?;
        // SAFETY: fn_mcxt lives as long as flinfo; palloc aligns for every type.
        unsafe {
            let function = (*self.info).flinfo;
            let place = pg_sys::MemoryContextAlloc((*function).fn_mcxt, size_of::<T>()).cast::<T>();
            place.write(found);
            (*function).fn_extra = place.cast();
        }
        Ok(found)
    }

    /// A function, looked up for as long as this call site lives.
    pub(super) fn look_up(self, function: Oid) -> *mut pg_sys::FmgrInfo {
        // SAFETY: an existing function, or PostgreSQL raises its error; fn_mcxt lives as long as flinfo, and palloc aligns for every type.
        unsafe {
            let memory = (*(*self.info).flinfo).fn_mcxt;
            let found = pg_sys::MemoryContextAllocZero(memory, size_of::<pg_sys::FmgrInfo>()).cast();
            pg_sys::fmgr_info_cxt(function, found, memory);
            found
        }
    }

    /// The result NULL.
    pub(crate) fn null(self) -> Datum {
        // SAFETY: the structure is valid for the call.
        unsafe { (*self.info).isnull = true }
        Datum::from(0)
    }

    pub(super) fn info(self) -> pg_sys::FunctionCallInfo {
        self.info
    }
}

/// Declares functions by the symbols that `CREATE FUNCTION .. LANGUAGE C` names. The bodies are
/// `fn(Call<'_>) -> Result<Datum, Error>`.
macro_rules! sql_functions {
    ($($symbol:ident => $body:expr,)+) => { $(
        const _: () = {
            #[::pgrx::pg_guard]
            #[unsafe(export_name = stringify!($symbol))]
            #[allow(unsafe_code, reason = "PostgreSQL finds this function by its symbol")]
            unsafe extern "C-unwind" fn entry(info: $crate::pg::FunctionCallInfo) -> $crate::pg::Datum {
                // SAFETY: called by PostgreSQL alone.
                let call = unsafe { $crate::pg::function::Call::new(info) };
                match ($body)(call) {
                    Ok(result) => result,
                    Err(error) => $crate::error::raise(error),
                }
            }

            #[unsafe(export_name = concat!("pg_finfo_", stringify!($symbol)))]
            #[allow(unsafe_code, reason = "PostgreSQL asks for the calling convention by this symbol")]
            extern "C-unwind" fn convention() -> &'static $crate::pg::FunctionInfoRecord {
                &$crate::pg::VERSION_1
            }
        };
    )+ };
}
pub(crate) use sql_functions;
