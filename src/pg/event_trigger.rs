//! What SQL cannot see of a command: its parse tree.

use crate::error::{self, Error};
use pgrx::pg_sys::{self, AlterTableType, Node, NodeTag};
use pgrx::{PgList, Spi, is_a};

#[unsafe(no_mangle)]
#[doc(hidden)]
pub extern "C" fn pg_finfo_tally_refuse_detach() -> &'static pg_sys::Pg_finfo_record {
    const RECORD: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &RECORD
}

/// Event trigger on `ddl_command_start`: refuses DETACH PARTITION from a source. Later would be too late, because DETACH
/// CONCURRENTLY commits before it ends.
#[pgrx::pg_guard]
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn tally_refuse_detach(call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: a V1 call; a tree is checked for its tag before it is cast.
    unsafe {
        let tree = parse_tree(call);
        if alters_by(tree, AlterTableType::AT_DetachPartition) {
            let parent = pg_sys::RangeVarGetRelidExtended(
                (*tree.cast::<pg_sys::AlterTableStmt>()).relation,
                pg_sys::NoLock as i32,
                pg_sys::RVROption::RVR_MISSING_OK,
                None,
                std::ptr::null_mut(),
            );
            refuse_if_source(parent);
        }
        pg_sys::Datum::from(0)
    }
}

#[unsafe(no_mangle)]
#[doc(hidden)]
pub extern "C" fn pg_finfo_tally_follow_ddl() -> &'static pg_sys::Pg_finfo_record {
    const RECORD: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &RECORD
}

/// Event trigger on `ddl_command_end`: looks after what has become of sources, and whether partitions came to them. An ALTER
/// TABLE that attaches none must not look at partitions: while pg_restore alters a source, they have rows and not yet all of
/// their triggers.
#[pgrx::pg_guard]
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn tally_follow_ddl(call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: as above.
    let brings_partitions = unsafe {
        let tree = parse_tree(call);
        let alters = !tree.is_null() && is_a(tree, NodeTag::T_AlterTableStmt);
        !alters || alters_by(tree, AlterTableType::AT_AttachPartition)
    };
    if let Err(error) = Spi::run_with_args("SELECT tally._follow_tables($1)", &[brings_partitions.into()]) {
        error::raise(error::spi(error));
    }
    pg_sys::Datum::from(0)
}

/// The command that fired the event trigger.
unsafe fn parse_tree(call: pg_sys::FunctionCallInfo) -> *mut Node {
    // SAFETY: the context is checked to be that of an event trigger before it is read as such.
    unsafe {
        let context = (*call).context;
        if context.is_null() || !is_a(context, NodeTag::T_EventTriggerData) {
            error::raise(Error::new("39P03", "this function can only be called by an event trigger"));
        }
        (*context.cast::<pg_sys::EventTriggerData>()).parsetree
    }
}

/// Is it an ALTER TABLE with an action of this kind?
unsafe fn alters_by(tree: *mut Node, kind: AlterTableType::Type) -> bool {
    // SAFETY: the tag says which structure it is; its list has commands only.
    unsafe {
        !tree.is_null()
            && is_a(tree, NodeTag::T_AlterTableStmt)
            && PgList::<pg_sys::AlterTableCmd>::from_pg((*tree.cast::<pg_sys::AlterTableStmt>()).cmds)
                .iter_ptr()
                .any(|command| (*command).subtype == kind)
    }
}

fn refuse_if_source(parent: pg_sys::Oid) {
    if parent == pg_sys::Oid::INVALID {
        return; // the command itself will say that there is no such table
    }
    match crate::catalog::sources::is_part_of_source(parent) {
        Ok(false) => {}
        Ok(true) => error::raise(
            Error::new("0A000", "detaching a partition of a table that feeds rollups is not supported yet")
                .detail("The rollups would go on counting its rows.")
                .hint("Keep the partition until retention exists, or drop the rollups with tally.drop_rollup first."),
        ),
        Err(error) => error::raise(error),
    }
}
