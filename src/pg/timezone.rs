//! PostgreSQL's own time zones, so that bounds agree with what its SQL computes.

use pgrx::pg_sys;
use std::ffi::CString;
use tally_core::bucket::{Rule, SECOND, Timestamp, Zone};

/// Seconds from PostgreSQL's epoch back to Unix's.
const UNIX_EPOCH: i64 = 946_684_800;

/// A zone that PostgreSQL has loaded; it keeps zones until the process ends.
pub(crate) struct TimeZone(*mut pg_sys::pg_tz);

impl TimeZone {
    /// The zone of this name. PostgreSQL also takes POSIX rules here, so names from users are to be looked up in
    /// pg_timezone_names first.
    pub(crate) fn named(name: &str) -> Option<Self> {
        let name = CString::new(name).ok()?;
        // SAFETY: a NUL-terminated name; the answer is null or lives as long as the process.
        let zone = unsafe { pg_sys::pg_tzset(name.as_ptr()) };
        (!zone.is_null()).then_some(Self(zone))
    }

    /// Does its clock ever change after 1970?
    pub(crate) fn changes(&self) -> bool {
        self.rule(Timestamp(-UNIX_EPOCH * SECOND)).until != Timestamp::INFINITY
    }
}

impl Zone for TimeZone {
    fn rule(&self, at: Timestamp) -> Rule {
        let at = at.0.div_euclid(SECOND).saturating_add(UNIX_EPOCH);
        let (mut offset, mut is_summer, mut boundary, mut offset_after, mut is_summer_after) = (0, 0, 0, 0, 0);
        // SAFETY: all pointers are to variables of this frame, and the zone came from pg_tzset.
        let found = unsafe {
            pg_sys::pg_next_dst_boundary(
                &at,
                &mut offset,
                &mut is_summer,
                &mut boundary,
                &mut offset_after,
                &mut is_summer_after,
                self.0,
            )
        };
        let until = if found == 1 {
            Timestamp(boundary.saturating_sub(UNIX_EPOCH).saturating_mul(SECOND))
        } else {
            Timestamp::INFINITY
        };
        Rule { offset: offset.saturating_mul(SECOND), until }
    }
}
