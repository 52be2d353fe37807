//! What the columns of views are, whatever names tables, columns and functions have by now.

use pgrx::PgList;
use pgrx::pg_sys::{self, Node, Oid};
use std::ffi::CStr;
use tally_core::rollup::derive::Identity;

/// Expressions are the same number if and only if they are the same. The views read the same table, and nothing else.
pub(crate) fn identities(views: &[Oid]) -> Vec<Identity> {
    let mut known: Vec<*mut Node> = vec![];
    views.iter().map(|view| identity(*view, &mut known)).collect()
}

fn identity(view: Oid, known: &mut Vec<*mut Node>) -> Identity {
    let mut number = |expression: *mut Node| {
        // SAFETY: copies of trees of PostgreSQL, in the current memory context; a WHERE may be missing, which is a null pointer.
        let position = known.iter().position(|other| unsafe { pg_sys::equal((*other).cast(), expression.cast()) });
        position.unwrap_or_else(|| {
            // SAFETY: as above.
            known.push(unsafe { pg_sys::copyObjectImpl(expression.cast()) }.cast());
            known.len() - 1
        })
    };
    let mode = pg_sys::AccessShareLock as i32;
    // SAFETY: the view exists, or PostgreSQL raises its error; its query is not used after it is closed.
    unsafe {
        let relation = pg_sys::relation_open(view, mode);
        let query = &*pg_sys::get_view_query(relation);
        let targets = PgList::<pg_sys::TargetEntry>::from_pg(query.targetList);
        let columns = targets.iter_ptr().map(|target| {
            let name = CStr::from_ptr((*target).resname).to_string_lossy().into_owned();
            (name, number((*target).expr.cast()))
        });
        let columns = columns.collect();
        let condition = number((*query.jointree).quals);
        pg_sys::relation_close(relation, mode);
        Identity { columns, condition }
    }
}
