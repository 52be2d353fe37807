//! Plans of queries that a session asks again and again, above all while the view of a rollup is planned: parsing and planning take
//! many times as long as running them.

use pgrx::datum::DatumWithOid;
use pgrx::pg_sys::{Oid, PgOid};
use pgrx::spi::{OwnedPreparedStatement, Query, SpiClient, SpiCursor, SpiResult, SpiTupleTable};
use std::cell::RefCell;
use std::collections::HashMap;

/// A session keeps no more plans than this; other queries are planned whenever they run.
const PLANS: usize = 500;

thread_local! {
    /// By text and types of the arguments. Plans are never freed: one might be running.
    static KEPT: RefCell<HashMap<(String, Vec<Oid>), &'static OwnedPreparedStatement>> = RefCell::default();
}

/// A query that is planned once in a session. PostgreSQL plans it anew when what it reads has been altered. Only for texts that
/// come back as they are.
pub(crate) struct Kept<'a>(pub &'a str);

impl Kept<'_> {
    fn plan(
        &self,
        client: &SpiClient<'_>,
        arguments: &[DatumWithOid],
    ) -> SpiResult<Option<&'static OwnedPreparedStatement>> {
        let types: Vec<Oid> = arguments.iter().map(DatumWithOid::oid).collect();
        let key = (self.0.to_string(), types);
        let (known, is_full) = KEPT.with_borrow(|kept| (kept.get(&key).copied(), kept.len() >= PLANS));
        if known.is_some() || is_full {
            return Ok(known);
        }
        let types: Vec<PgOid> = key.1.iter().map(|kind| PgOid::from(*kind)).collect();
        let plan: &'static OwnedPreparedStatement = Box::leak(Box::new(client.prepare(self.0, &types)?.keep()));
        KEPT.with_borrow_mut(|kept| kept.insert(key, plan));
        Ok(Some(plan))
    }
}

impl<'conn> Query<'conn> for Kept<'_> {
    fn execute<'mcx>(
        self,
        client: &SpiClient<'conn>,
        limit: Option<std::ffi::c_long>,
        arguments: &[DatumWithOid<'mcx>],
    ) -> SpiResult<SpiTupleTable<'conn>> {
        match self.plan(client, arguments)? {
            Some(plan) => plan.execute(client, limit, arguments),
            None => self.0.execute(client, limit, arguments),
        }
    }

    fn try_open_cursor<'mcx>(
        self,
        client: &SpiClient<'conn>,
        arguments: &[DatumWithOid<'mcx>],
    ) -> SpiResult<SpiCursor<'conn>> {
        self.0.try_open_cursor(client, arguments)
    }
}
