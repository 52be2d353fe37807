//! Settings for the length of a piece of work, as the SET clause of a function has them.

use pgrx::pg_sys;
use std::ffi::{CStr, CString};

/// Settings that go back to their old values when this value goes out of scope.
pub(crate) struct SettingScope {
    level: i32,
}

impl SettingScope {
    pub(super) fn open() -> Self {
        // SAFETY: only needs a transaction; the level is closed in `drop`, or by the abort of the (sub)transaction.
        Self { level: unsafe { pg_sys::NewGUCNestLevel() } }
    }

    pub(super) fn set(&self, name: &CStr, value: &CStr) {
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
}

impl Drop for SettingScope {
    fn drop(&mut self) {
        // While an error unwinds, the abort of the (sub)transaction restores the settings.
        if !std::thread::panicking() {
            // SAFETY: the level of `open`; levels close in reverse order because values do.
            unsafe { pg_sys::AtEOXact_GUC(true, self.level) }
        }
    }
}

/// Runs `action` with these settings.
pub(crate) fn with_settings<T>(settings: &[(&CStr, &str)], action: impl FnOnce() -> T) -> T {
    let scope = SettingScope::open();
    for (name, value) in settings {
        scope.set(name, &CString::new(*value).unwrap_or_default());
    }
    action()
}
