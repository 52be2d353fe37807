//! Running our own statements with the rights of the extension's owner, because the owners of tables may not write tally's
//! catalog by themselves.

use pgrx::pg_sys::{self, Oid};

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
        pg_sys::SetUserIdAndSecContext(
            user,
            saved.context | pg_sys::SECURITY_LOCAL_USERID_CHANGE as i32 | pg_sys::SECURITY_RESTRICTED_OPERATION as i32,
        );
    }
    saved
}

/// Runs `action` as the owner of the extension. Only for constant statements on tally's own tables with bound parameters:
/// never for an expression or a name that a user wrote.
pub(crate) fn as_extension_owner<T>(action: impl FnOnce() -> T) -> T {
    let _restored_afterwards = become_user(extension_owner());
    action()
}

fn extension_owner() -> Oid {
    // SAFETY: a catalog look-up by a NUL-terminated name; an unknown extension gives an error of PostgreSQL.
    unsafe {
        let schema = pg_sys::get_namespace_oid(c"tally".as_ptr(), false);
        let tuple =
            pg_sys::SearchSysCache1(pg_sys::SysCacheIdentifier::NAMESPACEOID as i32, pg_sys::Datum::from(schema));
        if tuple.is_null() {
            return pg_sys::GetUserId();
        }
        let form = pg_sys::GETSTRUCT(tuple) as *mut pg_sys::FormData_pg_namespace;
        let owner = (*form).nspowner;
        pg_sys::ReleaseSysCache(tuple);
        owner
    }
}
