//! The byte forms of values of any type, by the rules of `core::sketch::canon`: this file knows how PostgreSQL stores them.

use super::types;
use super::varlena::{self, Bytes};
use crate::error::Error;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary as guarded;
use pgrx::pg_sys::{self, Datum, Oid, TypeCacheEntry};
use std::ffi::{CStr, c_int};
use tally_core::sketch::canon::{self, Form};

// multirangetypes.h, which pgrx does not declare. Called through `guarded`, since it may raise an error.
unsafe extern "C-unwind" {
    fn multirange_get_range(
        range_type: *mut TypeCacheEntry,
        multirange: *const Multirange,
        position: c_int,
    ) -> *mut pg_sys::RangeType;
}

/// The head of a stored multirange.
#[repr(C)]
struct Multirange {
    length: i32,
    multirange_type: Oid,
    ranges: u32,
}

/// How the byte form of a type is made.
#[derive(Clone, Copy)]
pub(crate) struct Canonical {
    kind: Kind,
    /// Of PostgreSQL's cache of types, whose entries stay as long as the process.
    entry: *mut TypeCacheEntry,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Known(Form),
    Enum,
    Array,
    Row,
    Range,
    Multirange,
    /// A string under a collation by which strings of different bytes can be equal: by the hash function of text.
    Sorted(Form),
    /// By the hash function of its default operator class, which holds inside one server only.
    Foreign,
}

impl Canonical {
    /// # Errors
    /// Equal values of the type cannot be told from others by bytes or by a hash.
    pub(crate) fn of(oid: Oid) -> Result<Self, Error> {
        let base = types::base_type(oid);
        if let Some(form) = Form::of_type(base.to_u32()) {
            return Ok(Self { kind: Kind::Known(form), entry: cached(base, 0) });
        }
        if base == types::own_type(c"hll_hashval") {
            return Ok(Self { kind: Kind::Known(Form::Hash), entry: cached(base, 0) });
        }
        if base == types::own_type(c"hll") {
            return Err(Error::new("42804", "a sketch cannot be an element of a sketch").hint(
                "Use tally.hll_union_agg(hll) to unite sketches, and tally.distinct_count(hll) to count what they hold.",
            ));
        }
        let entry = cached(base, 0);
        // SAFETY: an entry of the cache; a catalog look-up.
        let (kind, is_array) = unsafe { ((*entry).typtype as u8, pg_sys::get_element_type(base) != Oid::INVALID) };
        let kind = match kind {
            b'e' => Kind::Enum,
            b'c' => Kind::Row,
            b'r' => Kind::Range,
            b'm' => Kind::Multirange,
            _ if base == pg_sys::RECORDOID => Kind::Row,
            _ if is_array => Kind::Array,
            _ => Kind::Foreign,
        };
        if kind == Kind::Foreign {
            return Self::foreign(base);
        }
        Ok(Self { kind, entry })
    }

    fn foreign(oid: Oid) -> Result<Self, Error> {
        let entry = cached(oid, pg_sys::TYPECACHE_HASH_EXTENDED_PROC_FINFO);
        // SAFETY: an entry of the cache.
        if unsafe { (*entry).hash_extended_proc_finfo.fn_oid } == Oid::INVALID {
            return Err(Error::new(
                "42883",
                format!("values of type {} cannot be counted by a sketch", types::type_name(oid)),
            )
            .detail("The type has no hash function, so that equal values cannot be found.")
            .hint("Cast the value to a type that has one, such as text, if equal values stay equal by that."));
        }
        Ok(Self { kind: Kind::Foreign, entry })
    }

    /// The same under a collation: strings that are equal and have different bytes are hashed as the collation says.
    ///
    /// # Errors
    /// There is none, and the type needs one.
    pub(crate) fn under(self, collation: Oid) -> Result<Self, Error> {
        match self.kind {
            Kind::Known(form) if form.is_collated() => {
                if collation == Oid::INVALID {
                    return Err(Error::new("42P22", "could not determine which collation to use for a distinct count")
                        .hint("Use the COLLATE clause to set the collation explicitly."));
                }
                if types::is_deterministic(collation) {
                    return Ok(self);
                }
                Ok(Self { kind: Kind::Sorted(form), ..Self::foreign(pg_sys::TEXTOID)? })
            }
            _ => Ok(self),
        }
    }

    /// The form, if values are stored as core knows it.
    pub(crate) fn form(self) -> Option<Form> {
        match self.kind {
            Kind::Known(form) => Some(form),
            _ => None,
        }
    }

    /// Is the byte form the same on every server and in every version of PostgreSQL?
    pub(crate) fn is_stable(self) -> bool {
        self.parts().is_some_and(|parts| {
            parts.iter().all(|(oid, collation)| {
                let is_sorted = *collation != Oid::INVALID && !types::is_deterministic(*collation);
                !is_sorted && Self::of(*oid).is_ok_and(Self::is_stable)
            })
        })
    }

    /// Is it also the same after every ALTER TYPE? A label of an enum may be renamed, and a row may get columns.
    pub(crate) fn is_lasting(self) -> bool {
        let is_altered = matches!(self.kind, Kind::Enum | Kind::Row);
        let parts = self.parts().filter(|_| !is_altered);
        parts.is_some_and(|parts| parts.iter().all(|(oid, _)| Self::of(*oid).is_ok_and(Self::is_lasting)))
    }

    /// The types that values are made of, and collations of their own. None: that is unknown, or not stored as such.
    fn parts(self) -> Option<Vec<(Oid, Oid)>> {
        // SAFETY: entries of the cache, and a catalog look-up.
        unsafe {
            let oid = (*self.entry).type_id;
            match self.kind {
                Kind::Known(_) | Kind::Enum => Some(vec![]),
                Kind::Array => Some(vec![(pg_sys::get_element_type(oid), Oid::INVALID)]),
                Kind::Range => {
                    let entry = self.range();
                    Some(vec![((*(*entry).rngelemtype).type_id, (*entry).rng_collation)])
                }
                Kind::Multirange => Some(vec![((*(*self.multirange()).rngtype).type_id, Oid::INVALID)]),
                // The columns of a record differ from value to value.
                Kind::Row if oid != pg_sys::RECORDOID => Some(columns(oid)),
                Kind::Row | Kind::Sorted(_) | Kind::Foreign => None,
            }
        }
    }

    fn range(self) -> *mut TypeCacheEntry {
        // SAFETY: an entry of the cache.
        cached(unsafe { (*self.entry).type_id }, pg_sys::TYPECACHE_RANGE_INFO)
    }

    fn multirange(self) -> *mut TypeCacheEntry {
        // SAFETY: an entry of the cache.
        cached(unsafe { (*self.entry).type_id }, pg_sys::TYPECACHE_MULTIRANGE_INFO)
    }

    /// Appends the byte form of a value of the type.
    ///
    /// # Errors
    /// A part of it has none, or it is damaged.
    pub(crate) fn append(self, value: Datum, collation: Oid, out: &mut Vec<u8>) -> Result<(), Error> {
        let canonical = self.under(collation)?;
        // SAFETY: `value` is of the type that this was made for. Every function called takes such a value, and reads the catalogs.
        unsafe {
            match canonical.kind {
                Kind::Known(form) => append_known(form, value, out),
                Kind::Enum => append_label(value, out),
                Kind::Array => append_array(value, collation, out),
                Kind::Row => append_row(value, out),
                Kind::Range => {
                    let range = pg_sys::pg_detoast_datum(value.cast_mut_ptr()).cast();
                    append_range(self.range(), range, out)
                }
                Kind::Multirange => append_multirange((*self.multirange()).rngtype, value, out),
                Kind::Sorted(form) => {
                    let mut bytes = vec![];
                    append_known(form, value, &mut bytes)?;
                    canonical.append_hash(varlena::copy(&bytes), collation, out);
                    Ok(())
                }
                Kind::Foreign => {
                    canonical.append_hash(value, collation, out);
                    Ok(())
                }
            }
        }
    }

    /// # Safety
    /// A value that the hash function takes, which has been looked up.
    unsafe fn append_hash(self, value: Datum, collation: Oid, out: &mut Vec<u8>) {
        // SAFETY: see above.
        let hash = unsafe {
            let function = &raw mut (*self.entry).hash_extended_proc_finfo;
            pg_sys::FunctionCall2Coll(function, collation, value, Datum::from(0))
        };
        out.extend_from_slice(&(hash.value() as u64).to_le_bytes());
    }
}

fn cached(oid: Oid, what: u32) -> *mut TypeCacheEntry {
    // SAFETY: a catalog look-up; an unknown type gives an error of PostgreSQL.
    unsafe { pg_sys::lookup_type_cache(oid, what as c_int) }
}

/// # Safety
/// A value of a type with this form.
unsafe fn append_known(form: Form, value: Datum, out: &mut Vec<u8>) -> Result<(), Error> {
    let word = value.value() as u64;
    // SAFETY: types are stored by value, as so many bytes, or with a header that gives their length, as their form says.
    unsafe {
        match form {
            Form::Boolean => out.push(u8::from(word as u8 != 0)),
            Form::Byte => out.push(word as u8),
            Form::Integer16 => out.extend_from_slice(&i64::from(word as i16).to_le_bytes()),
            Form::Integer32 => out.extend_from_slice(&i64::from(word as i32).to_le_bytes()),
            Form::Unsigned32 => out.extend_from_slice(&u64::from(word as u32).to_le_bytes()),
            Form::Word64 | Form::Hash => out.extend_from_slice(&word.to_le_bytes()),
            Form::Real => {
                out.extend_from_slice(&canon::double_bits(f64::from(f32::from_bits(word as u32))).to_le_bytes());
            }
            Form::Double => out.extend_from_slice(&canon::double_bits(f64::from_bits(word)).to_le_bytes()),
            Form::Uuid => out.extend_from_slice(fixed::<16>(value)),
            Form::MacAddress => out.extend_from_slice(fixed::<6>(value)),
            Form::MacAddress8 => out.extend_from_slice(fixed::<8>(value)),
            Form::Name => out.extend_from_slice(canon::name(fixed::<64>(value))),
            Form::Interval => canon::interval(fixed::<16>(value), out),
            Form::TimeWithZone => canon::time_with_zone(fixed::<12>(value), out),
            Form::Text | Form::Bytes => out.extend_from_slice(&Bytes::detoast(value)),
            Form::PaddedText => out.extend_from_slice(canon::without_padding(&Bytes::detoast(value))),
            Form::Numeric => canon::numeric(&Bytes::detoast(value), out),
            Form::Network => canon::network(&Bytes::detoast(value), out),
            Form::Bits => canon::bits(&Bytes::detoast(value), out),
            Form::Jsonb => canon::jsonb(&Bytes::detoast(value), out)
                .map_err(|_| Error::new("XX001", "the stored form of a jsonb value is damaged"))?,
        }
    }
    Ok(())
}

/// # Safety
/// The value is stored by reference, as so many bytes.
unsafe fn fixed<'a, const LENGTH: usize>(value: Datum) -> &'a [u8; LENGTH] {
    // SAFETY: see above.
    unsafe { &*value.cast_mut_ptr() }
}

/// The label of an enum: its number is another one in another database.
///
/// # Safety
/// A value of an enum.
unsafe fn append_label(value: Datum, out: &mut Vec<u8>) -> Result<(), Error> {
    // SAFETY: a look-up in the catalog; the tuple is valid until it is released.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(pg_sys::SysCacheIdentifier::ENUMOID as c_int, value);
        if tuple.is_null() {
            return Err(Error::new("22P02", format!("{} is no value of an enum", value.value() as u32)));
        }
        let entry = pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_enum>();
        out.extend_from_slice(CStr::from_ptr((*entry).enumlabel.data.as_ptr()).to_bytes());
        pg_sys::ReleaseSysCache(tuple);
    }
    Ok(())
}

/// # Safety
/// The parts of a value of this type.
unsafe fn append_part(
    canonical: Canonical,
    value: Option<Datum>,
    collation: Oid,
    out: &mut Vec<u8>,
) -> Result<(), Error> {
    // SAFETY: raises an error before the stack ends.
    unsafe { pg_sys::check_stack_depth() };
    canon::part(out, value.map(|value| move |out: &mut Vec<u8>| canonical.append(value, collation, out)))
}

/// Dimensions with their lower bounds, elements.
///
/// # Safety
/// A value of an array type.
unsafe fn append_array(value: Datum, collation: Oid, out: &mut Vec<u8>) -> Result<(), Error> {
    // SAFETY: the head of an array is followed by length and lower bound of each dimension; deconstruct_array gives as many elements
    // as it says.
    unsafe {
        let array = pg_sys::pg_detoast_datum(value.cast_mut_ptr()).cast::<pg_sys::ArrayType>();
        let element = Canonical::of((*array).elemtype)?;
        let dimensions = (*array).ndim as usize;
        canon::count(out, dimensions as u32);
        let sizes = array.add(1).cast::<i32>();
        for number in (0..dimensions).flat_map(|dimension| [dimension, dimensions + dimension]) {
            out.extend_from_slice(&(*sizes.add(number)).to_le_bytes());
        }
        let (mut elements, mut nulls, mut count) = (std::ptr::null_mut(), std::ptr::null_mut(), 0);
        let entry = &*element.entry;
        pg_sys::deconstruct_array(
            array,
            (*array).elemtype,
            c_int::from(entry.typlen),
            entry.typbyval,
            entry.typalign,
            &mut elements,
            &mut nulls,
            &mut count,
        );
        for position in 0..count as usize {
            let value = (!*nulls.add(position)).then(|| *elements.add(position));
            append_part(element, value, collation, out)?;
        }
    }
    Ok(())
}

/// Types and collations of the columns of a composite type.
fn columns(row_type: Oid) -> Vec<(Oid, Oid)> {
    // SAFETY: a copy of the description of a row type, which belongs to us; an unknown type gives an error of PostgreSQL.
    let description = unsafe { pgrx::PgTupleDesc::from_pg_is_copy(pg_sys::lookup_rowtype_tupdesc_copy(row_type, -1)) };
    let columns = description.iter().filter(|column| !column.attisdropped);
    columns.map(|column| (column.atttypid, column.attcollation)).collect()
}

/// Number of columns, columns.
///
/// # Safety
/// A value of a composite type.
unsafe fn append_row(value: Datum, out: &mut Vec<u8>) -> Result<(), Error> {
    // SAFETY: the head of a row names its type, whose description says how many columns there are at most.
    unsafe {
        let row = pg_sys::pg_detoast_datum(value.cast_mut_ptr()).cast::<pg_sys::HeapTupleHeaderData>();
        let head = (*row).t_choice.t_datum;
        let description = pgrx::PgTupleDesc::from_pg_is_copy(pg_sys::lookup_rowtype_tupdesc_copy(
            head.datum_typeid,
            head.datum_typmod,
        ));
        let mut values = vec![Datum::from(0); description.len()];
        let mut nulls = vec![true; description.len()];
        let mut tuple = pg_sys::HeapTupleData {
            t_len: pgrx::varlena::varsize_4b(row.cast()) as u32,
            t_data: row,
            ..Default::default()
        };
        pg_sys::heap_deform_tuple(&mut tuple, description.as_ptr(), values.as_mut_ptr(), nulls.as_mut_ptr());
        let columns: Vec<_> = description.iter().enumerate().filter(|(_, column)| !column.attisdropped).collect();
        canon::count(out, columns.len() as u32);
        for (position, column) in columns {
            let value = (!nulls[position]).then(|| values[position]);
            append_part(Canonical::of(column.atttypid)?, value, column.attcollation, out)?;
        }
    }
    Ok(())
}

/// What the bounds are, bounds.
///
/// # Safety
/// A value of the range type of this entry, in memory.
unsafe fn append_range(
    range_type: *mut TypeCacheEntry,
    range: *mut pg_sys::RangeType,
    out: &mut Vec<u8>,
) -> Result<(), Error> {
    const EMPTY: u8 = 1;
    const LOWER_INCLUSIVE: u8 = 2;
    const UPPER_INCLUSIVE: u8 = 4;
    const LOWER_INFINITE: u8 = 8;
    const UPPER_INFINITE: u8 = 16;
    let (mut lower, mut upper, mut is_empty) = (pg_sys::RangeBound::default(), pg_sys::RangeBound::default(), false);
    // SAFETY: see above; an entry of a range type has that of its elements.
    let (element, collation) = unsafe {
        pg_sys::range_deserialize(range_type, range, &mut lower, &mut upper, &mut is_empty);
        (Canonical::of((*(*range_type).rngelemtype).type_id)?, (*range_type).rng_collation)
    };
    if is_empty {
        out.push(EMPTY);
        return Ok(());
    }
    let flags = [
        (lower.inclusive, LOWER_INCLUSIVE),
        (upper.inclusive, UPPER_INCLUSIVE),
        (lower.infinite, LOWER_INFINITE),
        (upper.infinite, UPPER_INFINITE),
    ];
    out.push(flags.iter().filter(|(is_set, _)| *is_set).map(|(_, flag)| flag).sum());
    for bound in [lower, upper] {
        // SAFETY: a bound that is there is a value of the element type.
        unsafe { append_part(element, (!bound.infinite).then_some(bound.val), collation, out)? };
    }
    Ok(())
}

/// Number of ranges, ranges.
///
/// # Safety
/// A value of a multirange type, and the entry of its range type.
unsafe fn append_multirange(range_type: *mut TypeCacheEntry, value: Datum, out: &mut Vec<u8>) -> Result<(), Error> {
    // SAFETY: the head of a multirange says how many ranges there are.
    unsafe {
        let multirange = pg_sys::pg_detoast_datum(value.cast_mut_ptr()).cast::<Multirange>();
        canon::count(out, (*multirange).ranges);
        for position in 0..(*multirange).ranges {
            let range = guarded(|| multirange_get_range(range_type, multirange, position as c_int));
            canon::part(out, Some(|out: &mut Vec<u8>| append_range(range_type, range, out)))?;
        }
    }
    Ok(())
}
