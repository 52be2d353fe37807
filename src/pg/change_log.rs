//! The triggers of a source. `tally._log_change()` writes changes of counted rows, and rows with a copied tag, into the change log;
//! called once per changed row, it writes the heap directly. `tally._before_truncate()` is called once per table.

use super::function::Call;
use crate::catalog::sources;
use crate::error::{Error, Result};
use pgrx::pg_sys::{self, Datum, NodeTag, Oid};
use pgrx::{PgTupleDesc, is_a};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use tally_core::rollup::definition::{SIGN, WRITER};
use tally_core::snapshot::{self, Copied};

super::function::sql_functions! {
    tally_log_change => log_change,
    tally_before_truncate => before_truncate,
    tally_seal_row => seal_row,
}

/// [`TAG`](tally_core::rollup::definition::TAG) for PostgreSQL.
const TAG_NAME: &std::ffi::CStr = c"tally_tag";

/// Where the rows of a table are logged.
struct Target {
    log: Oid,
    /// The table is a sealed partition.
    is_sealed: bool,
    columns: Vec<Value>,
    /// Position of the tag in the rows of the table.
    tag: usize,
}

/// What a column of the log holds.
#[derive(Clone, Copy)]
enum Value {
    Writer,
    Sign,
    /// The value at this position of the row.
    Of(Column),
    /// A column that was dropped.
    Nothing,
}

#[derive(Clone, Copy)]
struct Column {
    position: usize,
    is_by_value: bool,
    length: i16,
    is_numeric: bool,
}

thread_local! {
    /// Tables that this session has changed rows of.
    static TARGETS: RefCell<HashMap<Oid, Rc<Target>>> = RefCell::default();
    /// Set by PostgreSQL when the definition of any table may have changed.
    static IS_STALE: Cell<bool> = const { Cell::new(false) };
    static IS_LISTENING: Cell<bool> = const { Cell::new(false) };
}

fn trigger_data<'c>(call: Call<'c>) -> Result<&'c pg_sys::TriggerData> {
    // SAFETY: the context is checked to be that of a trigger before it is read as such; it is valid for the call.
    unsafe {
        let context = (*call.info()).context;
        if context.is_null() || !is_a(context, NodeTag::T_TriggerData) {
            return Err(Error::new("39P01", "this function can only be called as a trigger"));
        }
        Ok(&*context.cast::<pg_sys::TriggerData>())
    }
}

fn before_truncate(call: Call<'_>) -> Result<Datum> {
    // SAFETY: the relation is open while its trigger runs.
    let table = unsafe { (*trigger_data(call)?.tg_relation).rd_id };
    crate::changes::follow_truncate(table)?;
    Ok(Datum::from(0))
}

fn log_change(call: Call<'_>) -> Result<Datum> {
    let data = trigger_data(call)?;
    // SAFETY: a row trigger AFTER an event has the slots that the event needs, valid for the call.
    unsafe {
        let target = target((*data.tg_relation).rd_id)?;
        match data.tg_event & pg_sys::TRIGGER_EVENT_OPMASK {
            pg_sys::TRIGGER_EVENT_INSERT => {
                check_copied(tag_of(data.tg_trigslot, &target), (*data.tg_relation).rd_id)?;
                // A frozen row is visible to older snapshots already, so it cannot be added: its group is made anew.
                let sign = if is_frozen(data.tg_trigtuple) { 0 } else { 1 };
                write(&target, &[(data.tg_trigslot, sign)])?;
            }
            pg_sys::TRIGGER_EVENT_DELETE => {
                write(&target, &[(data.tg_trigslot, sign_of_removal(&target, data.tg_trigslot))])?;
            }
            _ => {
                if tag_of(data.tg_trigslot, &target) != tag_of(data.tg_newslot, &target) {
                    let source = crate::catalog::name_of((*data.tg_relation).rd_id)?.to_string();
                    return Err(snapshot::Error::TagChanged { source }.into());
                }
                if has_changed(&target, data.tg_trigslot, data.tg_newslot) {
                    let sign = sign_of_removal(&target, data.tg_trigslot);
                    write(&target, &[(data.tg_trigslot, sign), (data.tg_newslot, 1)])?;
                }
            }
        }
    }
    Ok(Datum::from(0))
}

/// Trigger before an INSERT into a sealed partition: the row gets the tag of rows that have been counted, so that it is logged. What
/// would be refused elsewhere is refused here.
fn seal_row(call: Call<'_>) -> Result<Datum> {
    let data = trigger_data(call)?;
    // SAFETY: a row trigger BEFORE INSERT has the row, valid for the call; the table has the column, which is NOT NULL.
    unsafe {
        let relation = &*data.tg_relation;
        let tag = call.remembered(|_| Ok(pg_sys::get_attnum(relation.rd_id, TAG_NAME.as_ptr())))?;
        let (mut position, mut value, mut is_null) = (i32::from(tag), Datum::from(snapshot::BEFORE_TRACKING), false);
        let given = pg_sys::heap_getattr(data.tg_trigtuple, position, relation.rd_att, &mut is_null);
        if is_null {
            return Ok(Datum::from(data.tg_trigtuple));
        }
        if given.value() as i64 != super::tag::own_tag()? {
            check_copied(given.value() as i64, relation.rd_id)?;
        }
        let row = pg_sys::heap_modify_tuple_by_cols(
            data.tg_trigtuple,
            relation.rd_att,
            1,
            &mut position,
            &mut value,
            &mut is_null,
        );
        Ok(Datum::from(row))
    }
}

/// COPY FREEZE has written the row.
unsafe fn is_frozen(row: pg_sys::HeapTuple) -> bool {
    let frozen = pg_sys::HEAP_XMIN_FROZEN as u16;
    // SAFETY: a row of a table.
    unsafe { (*(*row).t_data).t_infomask & frozen == frozen }
}

unsafe fn tag_of(slot: *mut pg_sys::TupleTableSlot, target: &Target) -> i64 {
    // SAFETY: a valid slot; its table has the column, which is NOT NULL.
    unsafe {
        deform(slot);
        (*(*slot).tts_values.add(target.tag)).value() as i64
    }
}

/// Do the values differ that any rollup reads? Equal values in other bytes count as different, which costs but harms nothing.
unsafe fn has_changed(target: &Target, old: *mut pg_sys::TupleTableSlot, new: *mut pg_sys::TupleTableSlot) -> bool {
    // SAFETY: slots that hold rows of one table, whose columns have the types that the target says.
    unsafe {
        deform(old);
        deform(new);
        target.columns.iter().any(|column| {
            let Value::Of(Column { position, is_by_value, length, .. }) = *column else { return false };
            let at = |slot: *mut pg_sys::TupleTableSlot| {
                (*(*slot).tts_values.add(position), *(*slot).tts_isnull.add(position))
            };
            match (at(old), at(new)) {
                ((_, true), (_, true)) => false,
                ((old, false), (new, false)) => !is_same(old, new, is_by_value, length),
                _ => true,
            }
        })
    }
}

/// A row that goes is subtracted; but not from a sum that NaN or an infinity has made what it is: its groups are made anew.
unsafe fn sign_of_removal(target: &Target, row: *mut pg_sys::TupleTableSlot) -> i16 {
    // SAFETY: a slot that holds a row whose columns have the types that the target says.
    unsafe {
        deform(row);
        let is_special = target.columns.iter().any(|column| {
            let Value::Of(Column { position, is_numeric: true, .. }) = *column else { return false };
            !*(*row).tts_isnull.add(position) && is_special(*(*row).tts_values.add(position))
        });
        if is_special { 0 } else { -1 }
    }
}

/// Is a numeric NaN or an infinity? Those have the two highest bits of the header set (`NUMERIC_SPECIAL` in numeric.c) and no digits,
/// so they are never stored out of line or compressed.
unsafe fn is_special(numeric: Datum) -> bool {
    // SAFETY: a numeric, whose header has two bytes.
    unsafe {
        let value = numeric.cast_mut_ptr::<pg_sys::varlena>();
        if pgrx::varlena::varatt_is_1b_e(value) || pgrx::varlena::varatt_is_4b_c(value) {
            return false;
        }
        let header = pgrx::varlena::vardata_any(value).cast::<u16>().read_unaligned();
        header & 0xC000 == 0xC000
    }
}

/// Are two values of a type the same bytes? Values that lie out of line are, when they are one.
unsafe fn is_same(a: Datum, b: Datum, is_by_value: bool, length: i16) -> bool {
    if is_by_value {
        return a.value() == b.value();
    }
    // SAFETY: a type that is passed by reference; its length is fixed, or said by the value (-1), or ended by a zero byte (-2).
    unsafe {
        let size = |value: Datum| match length {
            -1 => pgrx::varlena::varsize_any(value.cast_mut_ptr()),
            -2 => std::ffi::CStr::from_ptr(value.cast_mut_ptr()).count_bytes(),
            fixed => usize::try_from(fixed).unwrap_or(0),
        };
        let bytes = |value: Datum| std::slice::from_raw_parts(value.cast_mut_ptr::<u8>().cast_const(), size(value));
        bytes(a) == bytes(b)
    }
}

/// Has every value of the row at hand.
unsafe fn deform(slot: *mut pg_sys::TupleTableSlot) {
    // SAFETY: a slot that holds a row.
    unsafe {
        let all = (*(*slot).tts_tupleDescriptor).natts;
        if i32::from((*slot).tts_nvalid) < all {
            pg_sys::slot_getsomeattrs_int(slot, all);
        }
    }
}

/// A row of another transaction comes in. Its tag must be one that no tick to come can take for new once more.
fn check_copied(tag: i64, table: Oid) -> Result<()> {
    if tag == snapshot::BEFORE_TRACKING {
        return Ok(());
    }
    let incarnation = crate::tags::incarnation()?.number.cast_unsigned();
    let next = super::next_xid();
    let source = || crate::catalog::name_of(table).map(|name| name.to_string());
    match snapshot::copied(tag, snapshot::tag(incarnation, next)?) {
        Copied::FromTheFuture => Err(snapshot::Error::CopiedFromTheFuture { source: source()? }.into()),
        // Ids further back have ended long ago, and their short form means another transaction by now.
        Copied::Of { xid } if next - xid < 1 << 31 && is_running(xid) => {
            Err(snapshot::Error::CopiedFromOpen { source: source()? }.into())
        }
        Copied::Of { .. } | Copied::Ended => Ok(()),
    }
}

fn is_running(xid: u64) -> bool {
    // SAFETY: a look into shared memory.
    unsafe { pg_sys::TransactionIdIsInProgress(pg_sys::TransactionId::from_inner(xid as u32)) }
}

/// Appends to the log. No index is on it, and no trigger.
unsafe fn write(target: &Target, rows: &[(*mut pg_sys::TupleTableSlot, i16)]) -> Result<()> {
    let writer = super::tag::own_tag()?;
    let mut values = vec![Datum::from(0); target.columns.len()];
    let mut nulls = vec![true; target.columns.len()];
    if rows.iter().any(|(_, sign)| *sign == 0 || *sign < 0 && target.is_sealed) {
        super::invalidate_plans(target.log);
    }
    // SAFETY: the log is an ordinary table, locked while it is written to; the slots hold rows whose columns have the types of
    // the log's. Values that lie out of line are fetched by the insert itself.
    unsafe {
        let log = pg_sys::table_open(target.log, pg_sys::RowExclusiveLock as i32);
        for (slot, sign) in rows {
            deform(*slot);
            for (at, column) in target.columns.iter().enumerate() {
                (values[at], nulls[at]) = match column {
                    Value::Writer => (Datum::from(writer), false),
                    Value::Sign => (Datum::from(*sign), false),
                    Value::Of(Column { position, .. }) => {
                        (*(**slot).tts_values.add(*position), *(**slot).tts_isnull.add(*position))
                    }
                    Value::Nothing => (Datum::from(0), true),
                };
            }
            let tuple = pg_sys::heap_form_tuple((*log).rd_att, values.as_mut_ptr(), nulls.as_mut_ptr());
            pg_sys::simple_heap_insert(log, tuple);
            pg_sys::heap_freetuple(tuple);
        }
        pg_sys::table_close(log, pg_sys::NoLock as i32);
    }
    Ok(())
}

fn target(table: Oid) -> Result<Rc<Target>> {
    if IS_STALE.replace(false) {
        TARGETS.with_borrow_mut(HashMap::clear);
    }
    if let Some(known) = TARGETS.with_borrow(|targets| targets.get(&table).cloned()) {
        return Ok(known);
    }
    let found = Rc::new(find_target(table)?);
    TARGETS.with_borrow_mut(|targets| targets.insert(table, found.clone()));
    Ok(found)
}

#[cold]
fn find_target(table: Oid) -> Result<Target> {
    if !IS_LISTENING.replace(true) {
        // SAFETY: registers a function of this library, which stays loaded.
        unsafe { pg_sys::CacheRegisterRelcacheCallback(Some(note_change), Datum::from(0)) };
    }
    // As of now: a transaction with an old snapshot does not see a source made since, and its changes count all the same.
    let log = super::Snapshot::latest().read(|| sources::log_of(table))?;
    let log = log.ok_or_else(|| {
        Error::new("55000", "a trigger of tally stands on a table that feeds no rollup")
            .hint("Drop the triggers tally_insert, tally_update and tally_delete of the table.")
    })?;
    // SAFETY: both tables exist and are opened with a lock; names are NUL-terminated.
    unsafe {
        let relation = pg_sys::table_open(log, pg_sys::RowExclusiveLock as i32);
        let descriptor = PgTupleDesc::from_pg_copy((*relation).rd_att);
        let position = |name: &std::ffi::CStr| {
            let number = pg_sys::get_attnum(table, name.as_ptr());
            usize::try_from(i32::from(number) - 1).ok()
        };
        let columns = descriptor.iter().map(|attribute| {
            let name = std::ffi::CStr::from_ptr(attribute.attname.data.as_ptr());
            let is_numeric = attribute.atttypid == pg_sys::NUMERICOID;
            let (is_by_value, length) = (attribute.attbyval, attribute.attlen);
            let of = |position| Value::Of(Column { position, is_by_value, length, is_numeric });
            match name.to_bytes() {
                _ if attribute.attisdropped => Ok(Value::Nothing),
                name if name == WRITER.as_bytes() => Ok(Value::Writer),
                name if name == SIGN.as_bytes() => Ok(Value::Sign),
                _ => position(name).map(of).ok_or_else(|| {
                    let name = name.to_string_lossy();
                    Error::new("55000", format!("the change log of a source has a column {name} that the source lacks"))
                        .hint("Drop the rollups of the table with tally.drop_rollup and create them again.")
                }),
            }
        });
        let columns = columns.collect::<Result<Vec<Value>>>();
        pg_sys::table_close(relation, pg_sys::NoLock as i32);
        let tag = position(TAG_NAME).ok_or_else(|| Error::new("55000", "a source has lost its column tally_tag"))?;
        let is_sealed = crate::seal::is_sealed_partition(table)?;
        Ok(Target { log, is_sealed, columns: columns?, tag })
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn note_change(_argument: Datum, _table: Oid) {
    IS_STALE.set(true);
}
