//! The memory of aggregate states: flat chunks of 8-byte words in a memory context of PostgreSQL, so that `work_mem` sees
//! them and nothing has to be destroyed.

use super::function::Call;
use crate::error::Error;
use pgrx::pg_sys::{self, Datum};

/// Where a chunk lives and when it goes.
#[derive(Clone, Copy)]
pub(crate) struct Context(pg_sys::MemoryContext);

impl Context {
    /// That of the group that is being aggregated.
    ///
    /// # Errors
    /// The function was not called by an aggregate.
    pub(crate) fn of_aggregate(call: Call<'_>, function: &str, role: &str) -> Result<Self, Error> {
        let mut context = std::ptr::null_mut();
        // SAFETY: a valid call and a valid place to write to.
        if unsafe { pg_sys::AggCheckCallContext(call.info(), &mut context) } == 0 {
            return Err(Error::new("22000", format!("{function} outside {role} context")));
        }
        Ok(Self(context))
    }

    /// That of the present call.
    pub(crate) fn current() -> Self {
        // SAFETY: always set.
        Self(unsafe { pg_sys::CurrentMemoryContext })
    }

    /// Does something that allocates in this context.
    pub(super) fn run<T>(self, action: impl FnOnce() -> T) -> T {
        // SAFETY: a valid context; while an error unwinds, PostgreSQL chooses one for itself.
        let before = unsafe { pg_sys::MemoryContextSwitchTo(self.0) };
        let answer = action();
        // SAFETY: as above.
        unsafe { pg_sys::MemoryContextSwitchTo(before) };
        answer
    }

    /// A new chunk of zeros.
    pub(crate) fn allocate<'a>(self, words: usize) -> &'a mut [u64] {
        // SAFETY: the allocator gives so many bytes, aligned for every type, or raises an error.
        unsafe {
            let first = pg_sys::MemoryContextAllocZero(self.0, words * size_of::<u64>());
            std::slice::from_raw_parts_mut(first.cast(), words)
        }
    }
}

/// Whose memory a state lives in. Asking an aggregate costs, so it is asked when memory is needed.
#[derive(Clone, Copy)]
pub(crate) enum Owner<'c> {
    /// The running aggregate: the call, and how an error names the function and its role.
    Aggregate(Call<'c>, &'static str, &'static str),
    /// The present call.
    Call,
}

impl Owner<'_> {
    pub(crate) fn context(self) -> Result<Context, Error> {
        match self {
            Self::Aggregate(call, function, role) => Context::of_aggregate(call, function, role),
            Self::Call => Ok(Context::current()),
        }
    }
}

/// Gives a chunk back.
pub(crate) fn free(chunk: &mut [u64]) {
    // SAFETY: it came from Context::allocate and its only owner has lent it to us for good.
    unsafe { pg_sys::pfree(chunk.as_mut_ptr().cast()) }
}

/// The chunk in an argument of type `internal`, or `None` for NULL. `length` reads its number of words out of the first two.
#[inline(always)]
pub(crate) fn chunk<'c>(
    call: Call<'c>,
    position: usize,
    length: impl FnOnce(&[u64; 2]) -> usize,
) -> Option<&'c mut [u64]> {
    if call.is_null(position) {
        return None;
    }
    let first = call.datum(position).cast_mut_ptr::<u64>();
    // SAFETY: SQL cannot make a value of type internal, so that it is a chunk of ours, and a state belongs to the call that
    // it is handed to.
    unsafe {
        let words = length(&*first.cast::<[u64; 2]>());
        Some(std::slice::from_raw_parts_mut(first, words))
    }
}

/// The chunk as a result of type `internal`.
#[inline(always)]
pub(crate) fn datum(chunk: &mut [u64]) -> Datum {
    Datum::from(chunk.as_mut_ptr())
}
