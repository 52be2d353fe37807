//! The select list over the stored table: grouping expressions become its key columns, aggregates their finished form.

use super::AnalysedQuery;
use pgrx::pg_sys::{self, Node};
use std::ffi::c_void;

/// What [`substitute`] puts where.
pub(super) struct Substitution<'a> {
    pub query: &'a AnalysedQuery,
    /// Attribute numbers of the stored table, in the order of the keys.
    pub key_columns: &'a [i16],
    /// Finished forms, in the order of the aggregates.
    pub finished: &'a [*mut Node],
}

/// A callback of `expression_tree_mutator`.
#[pgrx::pg_guard]
pub(super) unsafe extern "C-unwind" fn substitute(node: *mut Node, context: *mut c_void) -> *mut Node {
    // SAFETY: PostgreSQL passes the context on that `finished_targets` gave; nodes come from the analysed query.
    unsafe {
        if node.is_null() {
            return node;
        }
        let substitution = &*context.cast::<Substitution>();
        let query = substitution.query;
        if let Some(position) = query.keys.iter().position(|key| pg_sys::equal((*key).cast(), node.cast())) {
            return pg_sys::makeVar(
                1,
                substitution.key_columns[position],
                pg_sys::exprType(node),
                pg_sys::exprTypmod(node),
                pg_sys::exprCollation(node),
                0,
            )
            .cast();
        }
        if let Some(position) = query.aggregates.iter().position(|call| pg_sys::equal((*call).cast(), node.cast()))
            && let Some(finished) = substitution.finished.get(position)
        {
            return *finished;
        }
        #[cfg(feature = "pg15")]
        {
            type Mutator = unsafe extern "C-unwind" fn(*mut Node, *mut c_void) -> *mut Node;
            // The C declaration of the callback before PostgreSQL 16 has no parameters; the function is called with two.
            let mutator = std::mem::transmute::<Mutator, unsafe extern "C-unwind" fn() -> *mut Node>(substitute);
            pg_sys::expression_tree_mutator(node, Some(mutator), context)
        }
        #[cfg(not(feature = "pg15"))]
        pg_sys::expression_tree_mutator_impl(node, Some(substitute), context)
    }
}
