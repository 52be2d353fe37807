//! Arrays: number of dimensions, whether any element is NULL, oid of the element type, for each dimension its length and lower
//! bound, then the elements row by row, each as a field of its own (PostgreSQL, `utils/adt/arrayfuncs.c`).

/// What PostgreSQL takes, from `utils/array.h`.
pub const MAXIMUM_DIMENSIONS: usize = 6;

/// The bytes before the elements, without the length of the whole. No dimension: an empty array.
pub fn array_header(element: u32, dimensions: &[u32], has_null: bool) -> Vec<u8> {
    let mut header = Vec::with_capacity(12 + 8 * dimensions.len());
    header.extend_from_slice(&(dimensions.len() as u32).to_be_bytes());
    header.extend_from_slice(&u32::from(has_null).to_be_bytes());
    header.extend_from_slice(&element.to_be_bytes());
    for length in dimensions {
        header.extend_from_slice(&length.to_be_bytes());
        header.extend_from_slice(&1u32.to_be_bytes());
    }
    header
}
