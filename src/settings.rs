//! Every setting: its definition, one sentence that helps a DBA decide, and a typed getter.

/// Called once, when the library is loaded.
pub(crate) fn define() {
    crate::pg::reserve_setting_prefix();
}
