//! What SQL cannot see of a command: its parse tree.

use super::function::Call;
use crate::error::{Error, Result, spi};
use pgrx::pg_sys::{self, AlterTableType, Datum, Node, NodeTag, Oid};
use pgrx::{PgList, Spi, is_a};
use std::ffi::CStr;
use tally_core::ident::quote;

super::function::sql_functions! {
    tally_before_ddl => before_ddl,
    tally_follow_ddl => follow_ddl,
}

/// Event trigger on `ddl_command_start`: before relations of a rollup are dropped its refreshes are locked out, and before a partition
/// is detached or dropped its rows are counted for good; DETACH CONCURRENTLY, which commits before it ends, is refused unless
/// retention has done that before, and so is DROP NOT NULL of a column that a rollup reads (its keys may rely on that).
fn before_ddl(call: Call<'_>) -> Result<Datum> {
    let tree = parse_tree(call)?;
    // SAFETY: a tree is checked for its tag before it is cast; names are NUL-terminated.
    unsafe {
        if !tree.is_null() && is_a(tree, NodeTag::T_DropStmt) {
            let relations = dropped_relations(tree);
            for relation in &relations {
                crate::refresh::lock_out(*relation)?;
                crate::changes::follow_departure(*relation, true)?;
            }
            // Whose partitions they are is not known any more when they are gone.
            crate::partition::note_altered(&relations)?;
            return Ok(Datum::from(0));
        }
        for command in alters_by(tree, AlterTableType::AT_DetachPartition) {
            let command = (*command).def.cast::<pg_sys::PartitionCmd>();
            if let Some(partition) = find((*command).name) {
                if (*command).concurrent {
                    crate::changes::require_retained(partition)?;
                    // Also if it is interrupted after its first commit.
                    crate::partition::note_altered(&[partition])?;
                } else {
                    crate::changes::follow_departure(partition, false)?;
                }
            }
        }
        let nullable: Vec<String> = alters_by(tree, AlterTableType::AT_DropNotNull)
            .map(|command| CStr::from_ptr((*command).name).to_string_lossy().into_owned())
            .collect();
        if !nullable.is_empty()
            && let Some(table) = find((*tree.cast::<pg_sys::AlterTableStmt>()).relation)
        {
            refuse_nullable(table, nullable)?;
        }
    }
    Ok(Datum::from(0))
}

/// The tables and views that a DROP names and that exist.
unsafe fn dropped_relations(tree: *mut Node) -> Vec<Oid> {
    // SAFETY: the caller has checked the tag; the objects of a DROP TABLE or VIEW are lists of names.
    unsafe {
        let drop = &*tree.cast::<pg_sys::DropStmt>();
        if ![pg_sys::ObjectType::OBJECT_TABLE, pg_sys::ObjectType::OBJECT_VIEW].contains(&drop.removeType) {
            return vec![];
        }
        let names = PgList::<pg_sys::List>::from_pg(drop.objects);
        names.iter_ptr().filter_map(|name| find(pg_sys::makeRangeVarFromNameList(name))).collect()
    }
}

/// The table of this name. Where there is none the command itself will say so.
unsafe fn find(name: *mut pg_sys::RangeVar) -> Option<Oid> {
    // SAFETY: a name from the parser.
    let table = unsafe {
        pg_sys::RangeVarGetRelidExtended(
            name,
            pg_sys::NoLock as i32,
            pg_sys::RVROption::RVR_MISSING_OK,
            None,
            std::ptr::null_mut(),
        )
    };
    (table != Oid::INVALID).then_some(table)
}

/// Event trigger on `ddl_command_end`: looks after what has become of sources, and whether partitions came to them. An ALTER
/// TABLE that attaches none must not look at partitions: while pg_restore alters a source, they have rows and not yet all of
/// their triggers.
fn follow_ddl(call: Call<'_>) -> Result<Datum> {
    let tree = parse_tree(call)?;
    // SAFETY: as above.
    let brings_partitions = unsafe {
        let alters = !tree.is_null() && is_a(tree, NodeTag::T_AlterTableStmt);
        !alters || alters_by(tree, AlterTableType::AT_AttachPartition).next().is_some()
    };
    // SAFETY: as above.
    if let Some((table, old, new)) = unsafe { renamed_column(tree) } {
        crate::tags::follow_rename(table, &old, &new)?;
    }
    // SAFETY: as above.
    for (table, partition) in unsafe { attached(tree) } {
        crate::partition::follow_attach(table, partition)?;
    }
    Spi::run_with_args("SELECT tally._follow_tables($1)", &[brings_partitions.into()]).map_err(spi)?;
    // SAFETY: as above.
    if unsafe { may_alter_sets(tree) } {
        crate::partition::note_command()?;
    }
    Ok(Datum::from(0))
}

/// Can the command change which partitions a set has, or whether tally may go on with it? Others, such as the many of a conversion that holds
/// the lock of its swap, need not be looked into.
unsafe fn may_alter_sets(tree: *mut Node) -> bool {
    // SAFETY: the tag says which structure it is.
    unsafe {
        if tree.is_null() || is_a(tree, NodeTag::T_RenameStmt) {
            return tree.is_null();
        }
        if is_a(tree, NodeTag::T_CreateStmt) {
            return !(*tree.cast::<pg_sys::CreateStmt>()).partbound.is_null();
        }
        let kinds = [
            AlterTableType::AT_AttachPartition,
            AlterTableType::AT_DetachPartition,
            AlterTableType::AT_DetachPartitionFinalize,
            AlterTableType::AT_ChangeOwner,
            AlterTableType::AT_DropNotNull,
        ];
        !is_a(tree, NodeTag::T_AlterTableStmt) || kinds.iter().any(|kind| alters_by(tree, *kind).next().is_some())
    }
}

/// Tables that have become partitions by ATTACH, behind what they are partitions of.
unsafe fn attached(tree: *mut Node) -> Vec<(Oid, Oid)> {
    // SAFETY: only an ALTER TABLE has such commands, and their definition is that of a partition.
    unsafe {
        let pair = |command: *mut pg_sys::AlterTableCmd| {
            let definition = (*command).def.cast::<pg_sys::PartitionCmd>();
            Some((find((*tree.cast::<pg_sys::AlterTableStmt>()).relation)?, find((*definition).name)?))
        };
        alters_by(tree, AlterTableType::AT_AttachPartition).filter_map(pair).collect()
    }
}

/// Table, old and new name, if it is the RENAME of a column.
unsafe fn renamed_column(tree: *mut Node) -> Option<(Oid, String, String)> {
    // SAFETY: the tag says which structure it is.
    unsafe {
        if tree.is_null() || !is_a(tree, NodeTag::T_RenameStmt) {
            return None;
        }
        let rename = &*tree.cast::<pg_sys::RenameStmt>();
        if rename.renameType != pg_sys::ObjectType::OBJECT_COLUMN || rename.relation.is_null() {
            return None;
        }
        let table = find(rename.relation)?;
        let name = |name| CStr::from_ptr(name).to_string_lossy().into_owned();
        Some((table, name(rename.subname), name(rename.newname)))
    }
}

/// The command that fired the event trigger.
fn parse_tree(call: Call<'_>) -> Result<*mut Node> {
    // SAFETY: the context is checked to be that of an event trigger before it is read as such.
    unsafe {
        let context = (*call.info()).context;
        if context.is_null() || !is_a(context, NodeTag::T_EventTriggerData) {
            return Err(Error::new("39P03", "this function can only be called by an event trigger"));
        }
        Ok((*context.cast::<pg_sys::EventTriggerData>()).parsetree)
    }
}

/// The actions of this kind, if it is an ALTER TABLE.
unsafe fn alters_by(tree: *mut Node, kind: AlterTableType::Type) -> impl Iterator<Item = *mut pg_sys::AlterTableCmd> {
    // SAFETY: the tag says which structure it is; its list has commands only.
    unsafe {
        let alters = !tree.is_null() && is_a(tree, NodeTag::T_AlterTableStmt);
        let commands = if alters { (*tree.cast::<pg_sys::AlterTableStmt>()).cmds } else { std::ptr::null_mut() };
        let commands: Vec<_> = PgList::<pg_sys::AlterTableCmd>::from_pg(commands).iter_ptr().collect();
        commands.into_iter().filter(move |command| (**command).subtype == kind)
    }
}

fn refuse_nullable(table: Oid, columns: Vec<String>) -> Result<()> {
    for column in columns {
        if crate::tags::is_logged(table, &column)? {
            return Err(Error::new("0A000", format!("column {} feeds rollups and must stay NOT NULL", quote(&column)))
                .hint("Drop the rollups of the table with tally.drop_rollup, change it, and create them again."));
        }
    }
    Ok(())
}
