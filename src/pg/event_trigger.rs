//! What SQL cannot see of a command that is about to run: its parse tree.

use crate::error::{self, Error};
use pgrx::pg_sys::{self, AlterTableType, NodeTag};
use pgrx::{PgList, is_a};

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
    // SAFETY: a V1 call; the context is checked to be that of an event trigger before it is read as such, and a tree is
    // checked for its tag before it is cast.
    unsafe {
        let context = (*call).context;
        if context.is_null() || !is_a(context, NodeTag::T_EventTriggerData) {
            error::raise(Error::new("39P03", "this function can only be called by an event trigger"));
        }
        let tree = (*context.cast::<pg_sys::EventTriggerData>()).parsetree;
        if !tree.is_null() && is_a(tree, NodeTag::T_AlterTableStmt) {
            let statement = &*tree.cast::<pg_sys::AlterTableStmt>();
            let detaches = PgList::<pg_sys::AlterTableCmd>::from_pg(statement.cmds)
                .iter_ptr()
                .any(|command| (*command).subtype == AlterTableType::AT_DetachPartition);
            if detaches {
                let parent = pg_sys::RangeVarGetRelidExtended(
                    statement.relation,
                    pg_sys::NoLock as i32,
                    pg_sys::RVROption::RVR_MISSING_OK,
                    None,
                    std::ptr::null_mut(),
                );
                refuse_if_source(parent);
            }
        }
        pg_sys::Datum::from(0)
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
