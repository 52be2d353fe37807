//! Settings for the length of a piece of work, as the SET clause of a function has them.

use pgrx::pg_sys;
use std::ffi::{CStr, CString};

/// Runs `action` with these settings and puts back the old values. If an ERROR leaves `action`, the abort of the
/// (sub)transaction puts them back.
pub(crate) fn with_settings<T>(settings: &[(&CStr, &str)], action: impl FnOnce() -> T) -> T {
    // SAFETY: only needs a transaction.
    let level = unsafe { pg_sys::NewGUCNestLevel() };
    for (name, value) in settings {
        let value = CString::new(*value).unwrap_or_default();
        // SAFETY: NUL-terminated strings that the function copies; it reports a wrong value as an ERROR.
        unsafe {
            pg_sys::set_config_option(
                name.as_ptr(),
                value.as_ptr(),
                pg_sys::GucContext::PGC_USERSET,
                pg_sys::GucSource::PGC_S_SESSION,
                pg_sys::GucAction::GUC_ACTION_SAVE,
                true,
                0,
                false,
            );
        }
    }
    let result = action();
    // SAFETY: the level of above; nothing in between leaves without an ERROR.
    unsafe { pg_sys::AtEOXact_GUC(true, level) }
    result
}
