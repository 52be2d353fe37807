//! What the rest of the extension may use of PostgreSQL: safe wrappers and re-exports. All unsafe code lives below here.
#![allow(unsafe_code)]

pub(crate) mod aggregate;
mod analyze;
pub(crate) mod array;
pub(crate) mod canonical;
mod change_log;
mod descriptor;
pub(crate) mod encoding;
mod event_trigger;
pub(crate) mod function;
mod interval;
mod kept_plan;
mod lock;
mod owner;
mod planned_bound;
pub(crate) mod portal;
pub(crate) mod process;
pub(crate) mod relation;
mod setting_scope;
pub(crate) mod shared;
mod snapshot;
pub(crate) mod state_exchange;
mod statistics;
mod subtransaction;
mod tag;
pub(crate) mod time_limit;
mod timezone;
pub(crate) mod types;
mod unaltered;
mod utility;
pub(crate) mod value;
pub(crate) mod varlena;
mod view;

pub(crate) use analyze::{AnalysedQuery, analyze};
pub(crate) use descriptor::{Bounds, range_partitions};
pub(crate) use interval::interval;
pub(crate) use kept_plan::Kept;
pub(crate) use lock::{
    lock_access_exclusive, lock_refresh, look_at_sessions_anew, try_access_exclusive, try_lock_job, try_maintenance,
};
pub(crate) use owner::{as_extension_owner, as_user, owns, owns_database, pin_settings, pin_settings_of_tick};
pub(crate) use pgrx::pg_sys::panic::{CaughtError, ErrorReport};
pub(crate) use pgrx::pg_sys::{Datum, FunctionCallInfo, Oid, Pg_finfo_record as FunctionInfoRecord};
pub(crate) use process::{is_member, is_superuser};
pub(crate) use relation::invalidate_plans;
pub(crate) use setting_scope::with_settings;
pub(crate) use snapshot::{
    Snapshot, is_read_committed, next_xid, next_xid_and_writers, own_xid, owner_of, require_primary, system_identifier,
};
pub(crate) use statistics::analyze_whole;
pub(crate) use subtransaction::in_subtransaction;
pub(crate) use tag::{note_incarnation_written, own_tag, wrote_incarnation};
pub(crate) use timezone::TimeZone;
pub(crate) use unaltered::{is_unaltered, note_unaltered};
pub(crate) use utility::before_taking_over;
pub(crate) use view::identities;

use pgrx::pg_sys;

/// The calling convention of functions written in C.
pub(crate) static VERSION_1: FunctionInfoRecord = FunctionInfoRecord { api_version: 1 };

/// Is this server started by pg_upgrade, to restore objects and nothing else?
pub(crate) fn is_binary_upgrade() -> bool {
    // SAFETY: a plain flag, set by the postmaster before any library is loaded.
    unsafe { pg_sys::IsBinaryUpgrade }
}

/// Makes an unknown setting below `tally.` an error. To be called after all settings are defined.
pub(crate) fn reserve_setting_prefix() {
    // SAFETY: a NUL-terminated string that the function copies.
    unsafe { pg_sys::MarkGUCPrefixReserved(c"tally".as_ptr()) }
}
