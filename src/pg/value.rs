//! Values of any type: how they are ordered, copied, and sent to another process of the same query.

use super::aggregate::Context;
use crate::error::Error;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary as guarded;
use pgrx::pg_sys::{self, Datum, Oid};
use std::cmp::Ordering;
use std::ffi::{c_char, c_int};

// datum.h, which pgrx does not declare. Called through `guarded`, since each may raise an error.
unsafe extern "C-unwind" {
    fn datumCopy(value: Datum, is_by_value: bool, length: c_int) -> Datum;
    fn datumEstimateSpace(value: Datum, is_null: bool, is_by_value: bool, length: c_int) -> pg_sys::Size;
    fn datumSerialize(value: Datum, is_null: bool, is_by_value: bool, length: c_int, place: *mut *mut c_char);
    fn datumRestore(place: *mut *mut c_char, is_null: *mut bool) -> Datum;
}

/// A type with a default order.
#[derive(Clone, Copy)]
pub(crate) struct ValueType {
    /// Of PostgreSQL's cache of types, whose entries stay as long as the process.
    entry: *mut pg_sys::TypeCacheEntry,
    order: Order,
}

/// How two values are compared.
#[derive(Clone, Copy)]
enum Order {
    /// As integers of this size: what times are.
    Integer16,
    Integer32,
    Integer64,
    /// By the function of the default btree operator class.
    Function,
}

impl ValueType {
    /// # Errors
    /// The type has no default order.
    pub(crate) fn of(oid: Oid) -> Result<Self, Error> {
        // SAFETY: a catalog look-up; an unknown type gives an error of PostgreSQL.
        let entry = unsafe { pg_sys::lookup_type_cache(oid, pg_sys::TYPECACHE_CMP_PROC_FINFO as i32) };
        // SAFETY: as above; the entry is there to stay.
        if unsafe { (*entry).cmp_proc_finfo.fn_oid } == Oid::INVALID {
            return Err(Error::new("42883", format!("type {} has no order", super::types::type_name(oid)))
                .hint("Cast it to a type with a default btree operator class, such as text or jsonb."));
        }
        let order = match oid {
            pg_sys::INT2OID => Order::Integer16,
            pg_sys::INT4OID | pg_sys::DATEOID => Order::Integer32,
            pg_sys::INT8OID | pg_sys::TIMESTAMPOID | pg_sys::TIMESTAMPTZOID | pg_sys::TIMEOID => Order::Integer64,
            _ => Order::Function,
        };
        Ok(Self { entry, order })
    }

    pub(crate) fn oid(self) -> Oid {
        // SAFETY: an entry of the cache.
        unsafe { (*self.entry).type_id }
    }

    pub(crate) fn is_by_value(self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.entry).typbyval }
    }

    fn length(self) -> c_int {
        // SAFETY: as above.
        c_int::from(unsafe { (*self.entry).typlen })
    }

    /// Compares two values of this type.
    #[inline(always)]
    pub(crate) fn compare(self, a: Datum, b: Datum, collation: Oid) -> Ordering {
        match self.order {
            Order::Integer16 => (a.value() as i16).cmp(&(b.value() as i16)),
            Order::Integer32 => (a.value() as i32).cmp(&(b.value() as i32)),
            Order::Integer64 => (a.value() as i64).cmp(&(b.value() as i64)),
            Order::Function => {
                // SAFETY: the function of the entry compares two values of its type.
                let answer =
                    unsafe { pg_sys::FunctionCall2Coll(&raw mut (*self.entry).cmp_proc_finfo, collation, a, b) };
                (answer.value() as i32).cmp(&0)
            }
        }
    }

    /// A copy that lives in this context.
    pub(crate) fn copy(self, value: Datum, context: Context) -> Datum {
        if self.is_by_value() {
            return value;
        }
        // SAFETY: a value of this type.
        context.run(|| unsafe { guarded(|| datumCopy(value, false, self.length())) })
    }

    /// Gives a copy back.
    pub(crate) fn free(self, copy: Datum) {
        if !self.is_by_value() {
            // SAFETY: it came from `copy`, and its only owner has lent it to us for good.
            unsafe { pg_sys::pfree(copy.cast_mut_ptr()) }
        }
    }

    /// How many bytes [`Self::send`] writes.
    pub(crate) fn sent_size(self, value: Option<Datum>) -> usize {
        // SAFETY: a value of this type or none.
        unsafe { guarded(|| datumEstimateSpace(or_zero(value), value.is_none(), self.is_by_value(), self.length())) }
    }

    /// Writes a value for [`receive`], and returns what is left of the place.
    pub(crate) fn send(self, value: Option<Datum>, place: &mut [u8]) -> &mut [u8] {
        let size = self.sent_size(value);
        let (here, rest) = place.split_at_mut(size);
        let mut here = here.as_mut_ptr().cast::<c_char>();
        // SAFETY: a value of this type or none, and as many bytes as it takes.
        unsafe {
            guarded(|| datumSerialize(or_zero(value), value.is_none(), self.is_by_value(), self.length(), &mut here));
        }
        rest
    }
}

fn or_zero(value: Option<Datum>) -> Datum {
    value.unwrap_or(Datum::from(0))
}

/// Reads so many values that [`ValueType::send`] has written, into the current memory context.
pub(crate) fn receive<const NUMBER: usize>(bytes: &[u8]) -> [Option<Datum>; NUMBER] {
    let mut place = bytes.as_ptr().cast::<c_char>().cast_mut();
    std::array::from_fn(|_| {
        let mut is_null = false;
        // SAFETY: the bytes of so many values, which the function only reads.
        let value = unsafe { guarded(|| datumRestore(&mut place, &mut is_null)) };
        (!is_null).then_some(value)
    })
}
