//! What is in an expression: aggregates, columns, functions that are not immutable or not PostgreSQL's own, system columns.

use super::text;
use pgrx::is_a;
use pgrx::pg_sys::{self, Node, NodeTag, Oid};
use std::ffi::c_void;
use tally_core::rollup::analysis::UnstableFunction;

/// What [`visit_target`] looks for and finds.
pub(super) struct TargetVisitor<'a> {
    pub keys: &'a [*mut Node],
    pub found: Vec<*mut Node>,
    pub ungrouped: Option<i16>,
    pub unstable: Vec<UnstableFunction>,
}

/// A callback of `expression_tree_walker` that stops at grouping expressions and aggregates.
#[pgrx::pg_guard]
pub(super) unsafe extern "C-unwind" fn visit_target(node: *mut Node, context: *mut c_void) -> bool {
    // SAFETY: as in `substitute`.
    unsafe {
        if node.is_null() {
            return false;
        }
        let visitor = &mut *context.cast::<TargetVisitor>();
        if visitor.keys.iter().any(|key| pg_sys::equal((*key).cast(), node.cast())) {
            return false;
        }
        if is_a(node, NodeTag::T_Aggref) {
            visitor.found.push(node);
            return false;
        }
        if is_a(node, NodeTag::T_Var) {
            visitor.ungrouped.get_or_insert((*node.cast::<pg_sys::Var>()).varattno);
            return false;
        }
        note_unstable(node, &mut visitor.unstable);
        pg_sys::expression_tree_walker(node, Some(visit_target), context)
    }
}

/// A callback of `expression_tree_walker` that collects what is not immutable.
#[pgrx::pg_guard]
pub(super) unsafe extern "C-unwind" fn visit_functions(node: *mut Node, context: *mut c_void) -> bool {
    // SAFETY: the context is the list that `Deparser::expression` gave.
    unsafe {
        if node.is_null() {
            return false;
        }
        note_unstable(node, &mut *context.cast::<Vec<UnstableFunction>>());
        pg_sys::expression_tree_walker(node, Some(visit_functions), context)
    }
}

unsafe fn note_unstable(node: *mut Node, unstable: &mut Vec<UnstableFunction>) {
    // SAFETY: the callback only reads catalogs, and gets the list as its context.
    unsafe {
        pg_sys::check_functions_in_node(node, Some(check_function), (&raw mut *unstable).cast());
        if is_a(node, NodeTag::T_SQLValueFunction) {
            unstable.push(UnstableFunction { signature: "CURRENT_TIMESTAMP or CURRENT_USER".into(), volatile: false });
        } else if is_a(node, NodeTag::T_NextValueExpr) {
            unstable.push(UnstableFunction { signature: "nextval".into(), volatile: true });
        }
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn check_function(function: Oid, context: *mut c_void) -> bool {
    // SAFETY: as in `note_unstable`.
    unsafe {
        let volatility = pg_sys::func_volatile(function) as u8;
        if volatility != b'i' {
            let signature = text(pg_sys::format_procedure(function));
            let list = &mut *context.cast::<Vec<UnstableFunction>>();
            list.push(UnstableFunction { signature, volatile: volatility == b'v' });
        }
        false
    }
}

/// Does one of the expressions use ctid, xmin or the like? Their values change without a change of the row.
pub(super) unsafe fn use_system_column(nodes: impl Iterator<Item = *mut Node>) -> bool {
    let mut found = false;
    for node in nodes {
        // SAFETY: the context is the flag above.
        unsafe { visit_system_columns(node, (&raw mut found).cast()) };
    }
    found
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn visit_system_columns(node: *mut Node, context: *mut c_void) -> bool {
    // SAFETY: as in `use_system_column`.
    unsafe {
        if node.is_null() {
            return false;
        }
        if is_a(node, NodeTag::T_Var) && (*node.cast::<pg_sys::Var>()).varattno <= 0 {
            *context.cast::<bool>() = true;
            return true;
        }
        pg_sys::expression_tree_walker(node, Some(visit_system_columns), context)
    }
}

/// Columns of the one relation that an expression reads, by number, each once.
pub(super) unsafe fn columns_of(node: *mut Node) -> Vec<i16> {
    let mut columns: Vec<i16> = vec![];
    // SAFETY: the context is the list above.
    unsafe { visit_columns(node, (&raw mut columns).cast()) };
    columns
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn visit_columns(node: *mut Node, context: *mut c_void) -> bool {
    // SAFETY: as in `columns_of`.
    unsafe {
        if node.is_null() {
            return false;
        }
        if is_a(node, NodeTag::T_Var) {
            let columns = &mut *context.cast::<Vec<i16>>();
            let number = (*node.cast::<pg_sys::Var>()).varattno;
            if !columns.contains(&number) {
                columns.push(number);
            }
            return false;
        }
        pg_sys::expression_tree_walker(node, Some(visit_columns), context)
    }
}

/// Does the expression name nothing but columns and what PostgreSQL itself brings along?
pub(super) unsafe fn is_built_in(node: *mut Node) -> bool {
    // SAFETY: a callback without context.
    unsafe { !visit_foreign(node, std::ptr::null_mut()) }
}

/// A callback of `expression_tree_walker` that stops at what somebody has made in this database.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn visit_foreign(node: *mut Node, context: *mut c_void) -> bool {
    // SAFETY: each cast follows a check of the node's tag.
    unsafe {
        if node.is_null() {
            return false;
        }
        let named = match (*node).type_ {
            NodeTag::T_Const => (*node.cast::<pg_sys::Const>()).consttype,
            NodeTag::T_RelabelType => (*node.cast::<pg_sys::RelabelType>()).resulttype,
            NodeTag::T_CoerceViaIO => (*node.cast::<pg_sys::CoerceViaIO>()).resulttype,
            NodeTag::T_ArrayCoerceExpr => (*node.cast::<pg_sys::ArrayCoerceExpr>()).resulttype,
            NodeTag::T_ArrayExpr => (*node.cast::<pg_sys::ArrayExpr>()).array_typeid,
            NodeTag::T_CollateExpr => (*node.cast::<pg_sys::CollateExpr>()).collOid,
            NodeTag::T_CoerceToDomain | NodeTag::T_FieldSelect | NodeTag::T_RowExpr | NodeTag::T_ConvertRowtypeExpr => {
                return true;
            }
            _ => Oid::INVALID,
        };
        named.to_u32() >= pg_sys::FirstGenbkiObjectId
            || pg_sys::check_functions_in_node(node, Some(is_foreign_function), context)
            || pg_sys::expression_tree_walker(node, Some(visit_foreign), context)
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn is_foreign_function(function: Oid, _context: *mut c_void) -> bool {
    function.to_u32() >= pg_sys::FirstGenbkiObjectId
}
