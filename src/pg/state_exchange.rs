//! How PostgreSQL passes the states of an aggregate from process to process: its serial, deserial and combine function, called as its
//! executor calls them.

use super::function::Call;
use super::varlena::{self, Bytes};
use crate::error::Error;
use pgrx::pg_sys::{self, Datum, FmgrInfo, Oid};
use tally_core::sketch::hash;

// Columns of pg_aggregate.
const COMBINE: i16 = 6;
const SERIALIZE: i16 = 7;
const DESERIALIZE: i16 = 8;

/// The functions of the aggregate that is being computed. They live as long as the call site.
#[derive(Clone, Copy)]
pub(crate) struct Exchange {
    combine: *mut FmgrInfo,
    serialize: *mut FmgrInfo,
    deserialize: *mut FmgrInfo,
    /// Says which code reads the bytes: a hash of the deserial function's symbol and library. Names and OIDs may be others
    /// after a rename or an upgrade; the code is the same.
    pub format: [u8; 8],
}

impl Exchange {
    /// # Errors
    /// The function was not called by an aggregate that has all three.
    pub(crate) fn of_aggregate(call: Call<'_>) -> Result<Self, Error> {
        let outside = || Error::new("22000", "the state of an aggregate outside of an aggregate that can exchange it");
        // SAFETY: a valid call; without an aggregate around it the answer is null.
        let aggregate = unsafe { pg_sys::AggGetAggref(call.info()).as_ref() }.ok_or_else(outside)?.aggfnoid;
        let [combine, serialize, deserialize] = support(aggregate).ok_or_else(outside)?;
        Ok(Self {
            combine: call.look_up(combine),
            serialize: call.look_up(serialize),
            deserialize: call.look_up(deserialize),
            format: format_of(deserialize),
        })
    }

    /// The state in the first argument as bytes.
    pub(crate) fn serialize<'a>(self, call: Call<'_>) -> Result<Bytes<'a>, Error> {
        let bytes = self.run(call, self.serialize, &[Some(call.datum(0))]);
        bytes.map(varlena::made).ok_or_else(|| Error::new("22004", "the serial function of an aggregate gave NULL"))
    }

    /// The state in the first argument, united with one that was made bytes.
    pub(crate) fn unite(self, call: Call<'_>, bytes: &[u8]) -> Option<Datum> {
        // The second argument is there for its type only: see the documentation of CREATE AGGREGATE.
        let other = self.run(call, self.deserialize, &[Some(varlena::copy(bytes)), Some(Datum::from(0))]);
        let state = (!call.is_null(0)).then(|| call.datum(0));
        self.run(call, self.combine, &[state, other])
    }

    /// Calls a function in the place of the present one: it finds the same aggregate around it.
    fn run(self, call: Call<'_>, function: *mut FmgrInfo, arguments: &[Option<Datum>]) -> Option<Datum> {
        // SAFETY: a call structure with room for these arguments, and functions of an aggregate with arguments of the types that they are
        // declared with. A strict one is not called with NULL.
        unsafe {
            if (*function).fn_strict && arguments.contains(&None) {
                return None;
            }
            let size =
                size_of::<pg_sys::FunctionCallInfoBaseData>() + arguments.len() * size_of::<pg_sys::NullableDatum>();
            let info = pg_sys::palloc0(size).cast::<pg_sys::FunctionCallInfoBaseData>();
            (*info).flinfo = function;
            (*info).context = (*call.info()).context;
            (*info).fncollation = call.collation();
            (*info).nargs = arguments.len() as i16;
            for (position, argument) in arguments.iter().enumerate() {
                let place = &mut *(*info).args.as_mut_ptr().add(position);
                place.value = argument.unwrap_or(Datum::from(0));
                place.isnull = argument.is_none();
            }
            let answer = (*function).fn_addr.map(|code| pg_sys::ffi::pg_guard_ffi_boundary(|| code(info)));
            let is_null = (*info).isnull;
            pg_sys::pfree(info.cast());
            answer.filter(|_| !is_null)
        }
    }
}

/// The functions that unite, write and read the states of an aggregate.
fn support(aggregate: Oid) -> Option<[Oid; 3]> {
    let cache = pg_sys::SysCacheIdentifier::AGGFNOID as i32;
    // SAFETY: a look-up in the catalog; the tuple is valid until it is released, and its columns are OIDs that are never NULL.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(cache, aggregate.into());
        if tuple.is_null() {
            return None;
        }
        let functions = [COMBINE, SERIALIZE, DESERIALIZE].map(|column| {
            let mut is_null = false;
            Oid::from_u32(pg_sys::SysCacheGetAttr(cache, tuple, column, &mut is_null).value() as u32)
        });
        pg_sys::ReleaseSysCache(tuple);
        functions.iter().all(|function| *function != Oid::INVALID).then_some(functions)
    }
}

fn format_of(function: Oid) -> [u8; 8] {
    let cache = pg_sys::SysCacheIdentifier::PROCOID as i32;
    let columns = [pg_sys::Anum_pg_proc_prosrc, pg_sys::Anum_pg_proc_probin];
    let mut names = vec![];
    // SAFETY: as above; both columns are text, and the library is NULL for functions of PostgreSQL itself.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(cache, function.into());
        if !tuple.is_null() {
            for column in columns {
                let mut is_null = false;
                let value = pg_sys::SysCacheGetAttr(cache, tuple, column as i16, &mut is_null);
                if !is_null {
                    names.extend_from_slice(&Bytes::detoast(value));
                }
                names.push(0);
            }
            pg_sys::ReleaseSysCache(tuple);
        }
    }
    hash::bytes(&names, 0).to_be_bytes()
}
