//! A look at utility statements before PostgreSQL carries them out: those that need a database, or the extension in it, to itself.
//!
//! The hook is a plain trampoline without a guard or a destructor, because all statements of all users pass through it, and a guard
//! would cost their errors the context and the position. What may fail is in a guarded function of its own, called for a few
//! kinds of statement only.

use pgrx::pg_sys::{self, NodeTag, Oid};
use pgrx::prelude::*;
use std::ffi::{CStr, c_char};
use std::sync::OnceLock;

/// Called with the database that nobody else should be connected to.
static BEFORE: OnceLock<fn(Oid)> = OnceLock::new();
static PREVIOUS: OnceLock<pg_sys::ProcessUtility_hook_type> = OnceLock::new();

unsafe extern "C-unwind" {
    // The function of the same name in pg_sys has a guard.
    #[link_name = "standard_ProcessUtility"]
    fn postgres_process_utility(
        statement: *mut pg_sys::PlannedStmt,
        query: *const c_char,
        is_read_only_tree: bool,
        context: pg_sys::ProcessUtilityContext::Type,
        parameters: pg_sys::ParamListInfo,
        environment: *mut pg_sys::QueryEnvironment,
        destination: *mut pg_sys::DestReceiver,
        completion: *mut pg_sys::QueryCompletion,
    );
}

/// Has `before` called with each database that is about to be dropped, renamed, moved or copied, and with this database when the
/// extension is about to be dropped or updated; each time only if the user may do so.
pub(crate) fn before_taking_over(before: fn(Oid)) {
    // SAFETY: the hook is a plain pointer, changed while libraries are preloaded.
    unsafe {
        if BEFORE.set(before).is_ok() && PREVIOUS.set(pg_sys::ProcessUtility_hook).is_ok() {
            pg_sys::ProcessUtility_hook = Some(hook);
        }
    }
}

unsafe extern "C-unwind" fn hook(
    statement: *mut pg_sys::PlannedStmt,
    query: *const c_char,
    is_read_only_tree: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    parameters: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    destination: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    // SAFETY: PostgreSQL's own arguments, handed on as they came; no value with a destructor lives in this frame.
    unsafe {
        let node = (*statement).utilityStmt;
        if matches!(
            (*node).type_,
            NodeTag::T_DropdbStmt
                | NodeTag::T_CreatedbStmt
                | NodeTag::T_RenameStmt
                | NodeTag::T_AlterDatabaseStmt
                | NodeTag::T_DropStmt
                | NodeTag::T_AlterExtensionStmt
        ) {
            look(node);
        }
        let next = match PREVIOUS.get() {
            Some(Some(previous)) => *previous,
            _ => postgres_process_utility,
        };
        next(statement, query, is_read_only_tree, context, parameters, environment, destination, completion);
    }
}

/// The statement is one of the kinds that `hook` lets through.
#[pg_guard]
unsafe extern "C-unwind" fn look(node: *mut pg_sys::Node) {
    // SAFETY: the tag says which structure it is; strings in it are NUL-terminated or null.
    let database = unsafe {
        match (*node).type_ {
            NodeTag::T_DropdbStmt => own_database_named((*node.cast::<pg_sys::DropdbStmt>()).dbname),
            NodeTag::T_RenameStmt => {
                let rename = &*node.cast::<pg_sys::RenameStmt>();
                let is_database = rename.renameType == pg_sys::ObjectType::OBJECT_DATABASE;
                if is_database { own_database_named(rename.subname) } else { None }
            }
            NodeTag::T_AlterDatabaseStmt => {
                let alter = &*node.cast::<pg_sys::AlterDatabaseStmt>();
                if option(alter.options, c"tablespace").is_some() { own_database_named(alter.dbname) } else { None }
            }
            NodeTag::T_CreatedbStmt => {
                let create = &*node.cast::<pg_sys::CreatedbStmt>();
                option(create.options, c"template")
                    .and_then(|template| own_database_named(pg_sys::defGetString(template)))
            }
            NodeTag::T_AlterExtensionStmt => {
                let alter = &*node.cast::<pg_sys::AlterExtensionStmt>();
                this_database_if_ours(alter.extname)
            }
            _ => {
                let drop = &*node.cast::<pg_sys::DropStmt>();
                if drop.removeType != pg_sys::ObjectType::OBJECT_EXTENSION {
                    return;
                }
                let names = pgrx::PgList::<pg_sys::Node>::from_pg(drop.objects);
                names.iter_ptr().find_map(|name| this_database_if_ours(string(name)))
            }
        }
    };
    if let (Some(database), Some(before)) = (database, BEFORE.get()) {
        before(database);
    }
}

/// The database of this name, if the user owns it.
unsafe fn own_database_named(name: *const c_char) -> Option<Oid> {
    if name.is_null() {
        return None;
    }
    // SAFETY: a NUL-terminated name; look-ups in catalogs.
    unsafe {
        let database = pg_sys::get_database_oid(name, true);
        (database != Oid::INVALID && owns(pg_sys::DatabaseRelationId, database)).then_some(database)
    }
}

/// This database, if the name is that of our extension and the user owns it.
unsafe fn this_database_if_ours(name: *const c_char) -> Option<Oid> {
    // SAFETY: a NUL-terminated name or null; look-ups in catalogs.
    unsafe {
        if name.is_null() || CStr::from_ptr(name) != c"tally" {
            return None;
        }
        let extension = pg_sys::get_extension_oid(name, true);
        (extension != Oid::INVALID && owns(pg_sys::ExtensionRelationId, extension)).then_some(pg_sys::MyDatabaseId)
    }
}

unsafe fn owns(class: Oid, object: Oid) -> bool {
    // SAFETY: look-ups in catalogs for an object that exists.
    unsafe {
        let user = pg_sys::GetUserId();
        #[cfg(feature = "pg15")]
        return if class == pg_sys::DatabaseRelationId {
            pg_sys::pg_database_ownercheck(object, user)
        } else {
            pg_sys::pg_extension_ownercheck(object, user)
        };
        #[cfg(not(feature = "pg15"))]
        pg_sys::object_ownercheck(class, object, user)
    }
}

unsafe fn option(options: *mut pg_sys::List, name: &CStr) -> Option<*mut pg_sys::DefElem> {
    // SAFETY: a list of DefElem with NUL-terminated names.
    unsafe {
        let options = pgrx::PgList::<pg_sys::DefElem>::from_pg(options);
        options.iter_ptr().find(|option| CStr::from_ptr((**option).defname) == name)
    }
}

unsafe fn string(node: *mut pg_sys::Node) -> *const c_char {
    // SAFETY: the names of extensions are String nodes.
    unsafe { (*node.cast::<pg_sys::String>()).sval }
}
