//! Running statements with the rights of somebody else: our own statements on tally's catalog as the extension's owner, the
//! expressions of a rollup as the owner of its source.

use super::setting_scope::SettingScope;
use pgrx::pg_sys::{self, Oid};
use std::ffi::CString;

/// The user identity of before, restored when this value goes out of scope, also while unwinding from an error
/// (PostgreSQL restores it as well when it aborts the subtransaction).
struct SavedIdentity {
    user: Oid,
    context: i32,
}

impl Drop for SavedIdentity {
    fn drop(&mut self) {
        // SAFETY: both values came from GetUserIdAndSecContext.
        unsafe { pg_sys::SetUserIdAndSecContext(self.user, self.context) }
    }
}

fn become_user(user: Oid) -> SavedIdentity {
    let mut saved = SavedIdentity { user: Oid::INVALID, context: 0 };
    // SAFETY: two valid pointers to write to; the new user exists because it owns an object of this database.
    unsafe {
        pg_sys::GetUserIdAndSecContext(&mut saved.user, &mut saved.context);
        let context = pg_sys::SECURITY_LOCAL_USERID_CHANGE | pg_sys::SECURITY_RESTRICTED_OPERATION;
        pg_sys::SetUserIdAndSecContext(user, saved.context | context as i32);
    }
    saved
}

/// Runs `action` as the owner of the extension. Only for constant statements on tally's own tables with bound parameters:
/// never for an expression or a name that a user wrote.
pub(crate) fn as_extension_owner<T>(action: impl FnOnce() -> T) -> T {
    let _restored_afterwards = become_user(extension_owner());
    action()
}

/// Runs `action` as `user`, restricted to what a maintenance command may do.
pub(crate) fn as_user<T>(user: Oid, action: impl FnOnce() -> T) -> T {
    let _restored_afterwards = become_user(user);
    action()
}

/// The owner of tally's schema: bootstrap.sql makes sure that it is whoever installed the extension, or a superuser.
fn extension_owner() -> Oid {
    // SAFETY: catalog look-ups by a NUL-terminated name; an unknown schema gives an error of PostgreSQL.
    unsafe {
        let schema = pg_sys::get_namespace_oid(c"tally".as_ptr(), false);
        let tuple = pg_sys::SearchSysCache1(pg_sys::SysCacheIdentifier::NAMESPACEOID as i32, schema.into());
        if tuple.is_null() {
            return pg_sys::GetUserId();
        }
        let owner = (*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_namespace>()).nspowner;
        pg_sys::ReleaseSysCache(tuple);
        owner
    }
}

/// Settings that are pinned until this value goes out of scope: names are looked up in pg_catalog only, a table under
/// row-level security gives an error and not a part of its rows, and constants are written so that every session reads the
/// same value.
pub(crate) fn pin_settings() -> SettingScope {
    let pinned = SettingScope::open();
    pinned.set(c"search_path", c"pg_catalog, pg_temp");
    pinned.set(c"row_security", c"off");
    pinned.set(c"datestyle", c"ISO");
    pinned.set(c"intervalstyle", c"postgres");
    pinned.set(c"extra_float_digits", c"1");
    pinned.set(c"quote_all_identifiers", c"off");
    pinned
}

/// The same, for the statements of a tick. A tick is maintenance, so it may use the memory of maintenance. It reads few rows
/// of large tables by the index on their tags; for a partition that has just come and has no statistics yet the planner would
/// rather read the whole of it. The planner expects next to nothing behind the newest tag that ANALYZE saw, and so would sort
/// all new rows to group them. What a tick reads is too little to be worth compiling.
pub(crate) fn pin_settings_of_tick() -> SettingScope {
    let pinned = pin_settings();
    // SAFETY: plain variables of this process.
    let memory = unsafe { pg_sys::maintenance_work_mem.max(pg_sys::work_mem) };
    if let Ok(memory) = CString::new(memory.to_string()) {
        pinned.set(c"work_mem", &memory);
    }
    pinned.set(c"enable_seqscan", c"off");
    pinned.set(c"enable_sort", c"off");
    pinned.set(c"jit", c"off");
    pinned
}

/// May the current user do everything to this table that its owner may?
pub(crate) fn owns(relation: Oid) -> bool {
    // SAFETY: catalog look-ups.
    unsafe {
        #[cfg(feature = "pg15")]
        let owns = pg_sys::pg_class_ownercheck(relation, pg_sys::GetUserId());
        #[cfg(not(feature = "pg15"))]
        let owns = pg_sys::object_ownercheck(pg_sys::RelationRelationId, relation, pg_sys::GetUserId());
        owns
    }
}

/// May the current user do everything to this database that its owner may?
pub(crate) fn owns_database() -> bool {
    // SAFETY: catalog look-ups.
    unsafe {
        #[cfg(feature = "pg15")]
        let owns = pg_sys::pg_database_ownercheck(pg_sys::MyDatabaseId, pg_sys::GetUserId());
        #[cfg(not(feature = "pg15"))]
        let owns = pg_sys::object_ownercheck(pg_sys::DatabaseRelationId, pg_sys::MyDatabaseId, pg_sys::GetUserId());
        owns
    }
}
