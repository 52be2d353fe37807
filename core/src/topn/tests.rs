//! Each rule by a small example; every way of building a sketch against a plain count of its items.

use super::*;
use crate::error::Explain;
use proptest::prelude::*;
use std::cmp::Reverse;
use std::collections::HashMap;

/// How a part becomes known to another one.
#[derive(Clone, Copy, Debug)]
enum Way {
    Final,
    Partial,
    State,
    Received,
}

fn add_all<'i>(state: &mut Owned, items: impl IntoIterator<Item = &'i Vec<u8>>) {
    items.into_iter().for_each(|item| state.add(item).unwrap());
}

/// One item per letter.
fn add_letters(state: &mut Owned, letters: &str) {
    letters.bytes().for_each(|letter| state.add(&[letter]).unwrap());
}

fn unite_in(state: &mut Owned, way: Way, mut other: Owned) {
    match way {
        Way::Final => state.unite(&other.pack(Packing::Final)),
        Way::Partial => state.unite(&other.pack(Packing::Partial)),
        Way::State => state.unite_state(&mut other),
        Way::Received => state.unite_state(&mut received(&other.pack(Packing::Partial))),
    }
    .unwrap();
}

fn received(bytes: &[u8]) -> Owned {
    Owned::received(bytes).unwrap()
}

fn k(counters: u32) -> Counters {
    Counters::new(i64::from(counters)).unwrap()
}

fn letters(counters: u32, letters: &str) -> Owned {
    let mut state = Owned::new(k(counters));
    add_letters(&mut state, letters);
    state
}

/// Total, error and the entries as (item, lower, error).
fn shown(bytes: &[u8]) -> (u64, u64, Vec<(String, u64, u64)>) {
    let packed = Packed::validate(bytes).unwrap();
    let entries = packed.entries().map(|entry| (text(entry.item), entry.lower, entry.error)).collect();
    (packed.header().total, packed.header().error, entries)
}

fn text(item: &[u8]) -> String {
    String::from_utf8(item.to_vec()).unwrap()
}

fn entry(item: &str, lower: u64, error: u64) -> (String, u64, u64) {
    (item.to_owned(), lower, error)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(hex: &str) -> Vec<u8> {
    let hex: String = hex.split_whitespace().collect();
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn read_json(counters: u32, json: &str) -> Result<Vec<u8>, Error> {
    let mut state = Owned::new(k(counters));
    json::read(json, |item, count| state.add_count(item.as_bytes(), count))?;
    Ok(state.pack(Packing::Final))
}

#[test]
fn few_items_are_counted_exactly() {
    let mut state = letters(3, "abacab");
    assert_eq!(shown(&state.pack(Packing::Final)), (6, 0, vec![entry("a", 3, 0), entry("b", 2, 0), entry("c", 1, 0)]));
    assert_eq!([&b"a"[..], b"b", b"x"].map(|item| state.state().bounds(item)), [(3, 3), (2, 2), (0, 0)]);
}

#[test]
fn equal_frequencies_are_ordered_by_bytes() {
    let mut state = Owned::new(k(4));
    add_all(&mut state, &[&b"b"[..], b"ba", b"", b"\xff"].map(<[u8]>::to_vec));
    let stored = state.pack(Packing::Final);
    let items: Vec<_> = Packed::validate(&stored).unwrap().top(9).map(|(item, _)| item.to_vec()).collect();
    assert_eq!(items, [&b""[..], b"b", b"ba", b"\xff"]);
}

#[test]
fn an_eviction_keeps_the_largest_counters() {
    // Two counters, so four entries: a 5, b 4, c 2, d 1. The third largest counter, 2, is cut when e comes.
    let mut state = letters(2, "aaaaabbbbccd");
    assert_eq!(state.state().entries(), 4);
    add_letters(&mut state, "e");
    assert_eq!(
        shown(&state.pack(Packing::Partial)),
        (13, 2, vec![entry("a", 5, 0), entry("b", 4, 0), entry("e", 1, 2)])
    );
    // c and d have been dropped with the promise that an absent item occurred at most twice.
    assert_eq!(state.state().bounds(b"c"), (0, 2));
    assert_eq!(state.state().bounds(b"e"), (1, 3));
    // A finished sketch cuts 1 more: that is what e has left.
    assert_eq!(shown(&state.pack(Packing::Final)), (13, 3, vec![entry("a", 5, 0), entry("b", 4, 0)]));
    // That has not changed the state.
    assert_eq!((state.state().entries(), state.state().error()), (3, 2));
}

#[test]
fn ties_at_the_cut_are_all_dropped() {
    let mut state = letters(2, "aabcd");
    assert_eq!(shown(&state.pack(Packing::Final)), (5, 1, vec![entry("a", 2, 0)]));
    let mut state = letters(2, "abcde");
    assert_eq!(shown(&state.pack(Packing::Partial)), (5, 1, vec![entry("e", 1, 1)]));
    let mut state = letters(1, "abc");
    assert_eq!(shown(&state.pack(Packing::Partial)), (3, 1, vec![entry("c", 1, 1)]));
}

#[test]
fn a_union_adds_counts_and_errors() {
    let (mut a, mut b) = (letters(2, "aaaabbbccde"), letters(2, "aaxxxyzw"));
    assert_eq!(shown(&a.pack(Packing::Partial)), (11, 2, vec![entry("a", 4, 0), entry("b", 3, 0), entry("e", 1, 2)]));
    // w found a 2, x 3, y 1, z 1 and cut 1.
    assert_eq!(shown(&b.pack(Packing::Partial)), (8, 1, vec![entry("x", 3, 0), entry("a", 2, 0), entry("w", 1, 1)]));
    // The counters are a 2 + 1, b 1, e 1, x 2, w 1: five entries, so that 1 is cut. Who only one side knows gets the
    // error of the other one.
    unite_in(&mut a, Way::Partial, b);
    assert_eq!(shown(&a.pack(Packing::Partial)), (19, 4, vec![entry("a", 6, 0), entry("x", 3, 2)]));
}

#[test]
fn a_union_has_the_smaller_number_of_counters() {
    for (a, b) in [(2, 3), (3, 2)] {
        let mut state = letters(a, "aabbccd");
        unite_in(&mut state, Way::State, letters(b, "ab"));
        assert_eq!(state.state().counters().get(), 2);
        assert_eq!(shown(&state.pack(Packing::Final)), (9, 2, vec![entry("a", 3, 0), entry("b", 3, 0)]));
    }
}

#[test]
fn the_empty_sketch_changes_nothing() {
    let mut state = letters(3, "abacab");
    let before = state.pack(Packing::Final);
    state.unite(&wire::empty(k(3))).unwrap();
    assert_eq!(state.pack(Packing::Final), before);
    let mut empty = Owned::new(k(3));
    assert_eq!(empty.pack(Packing::Final), wire::empty(k(3)));
    empty.unite(&before).unwrap();
    assert_eq!(empty.pack(Packing::Final), before);
}

#[test]
fn the_stored_bytes_are_these() {
    let mut state = letters(1000, "aba");
    state.add_count("é".as_bytes(), 300).unwrap();
    let expected = "10 00 e8030000 af02 00 03  02 c3a9 ac02 00  01 61 02 00  01 62 01 00";
    assert_eq!(hex(&state.pack(Packing::Final)), hex(&bytes(expected)));
    assert_eq!(hex(&wire::empty(k(1))), "100001000000000000");
    let mut state = letters(2, "aaaabbbccde");
    let expected = "10 00 02000000 0b 02 03  01 61 04 00  01 62 03 00  01 65 01 02";
    assert_eq!(hex(&state.pack(Packing::Partial)), hex(&bytes(expected)));
}

#[test]
fn a_header_is_read_without_its_entries() {
    let stored = letters(2, "aaaabbbccde").pack(Packing::Partial);
    let header = Header { counters: k(2), total: 11, error: 2, entries: 3 };
    assert_eq!(Header::read(&stored[..9]), Ok(header));
    assert_eq!(Header::read(&stored), Ok(header));
    assert_eq!(Header::read(&stored[..8]), Err(Error::Truncated));
}

#[test]
fn broken_values_are_refused_each_with_its_reason() {
    for (hex, message) in [
        ("", "topn value ends too early"),
        ("20", "unknown topn version 0x20"),
        ("11 00 02000000 00 00 00", "unknown topn version 0x11"),
        ("10 00 020000", "topn value ends too early"),
        ("10 01 02000000 00 00 00", "unknown topn options 1"),
        ("10 00 00000000 00 00 00", "topn value cannot have 0 counters"),
        ("10 00 41420f00 00 00 00", "topn value cannot have 1000001 counters"),
        ("10 00 02000000 00 00", "topn value ends too early"),
        ("10 00 02000000 80", "topn value ends too early"),
        ("10 00 02000000 8000 00 00", "number in topn value is not written in its shortest form"),
        ("10 00 02000000 ffffffffffffffffff02 00 00", "number in topn value has more than 64 bits"),
        ("10 00 02000000 ffffffffffffffffffff01 00 00", "number in topn value has more than 64 bits"),
        ("10 00 02000000 ffffffffffffffffff01 00 00", "total of topn value exceeds 9223372036854775807"),
        ("10 00 02000000 09 00 05", "topn value cannot have 5 items: that is more than two per counter"),
        ("10 00 02000000 03 01 01  818004", "topn value cannot have an item of 65537 bytes"),
        ("10 00 02000000 03 01 01  02 61", "topn value ends too early"),
        ("10 00 02000000 04 00 01  01 61 04", "topn value ends too early"),
        ("10 00 02000000 04 00 01  01 61 04 00 00", "topn value has 1 bytes after its last item"),
        ("10 00 02000000 04 00 01  01 61 00 00", "topn value has an item that never occurred"),
        ("10 00 02000000 04 00 01  01 61 03 01", "error of an item exceeds the error of its topn value"),
        ("10 00 02000000 09 02 01  01 61 02 00", "frequency of an item does not exceed the error of its topn value"),
        (
            "10 00 02000000 04 00 02  01 61 01 00  01 62 02 00",
            "items of topn value are not ordered by descending frequency and ascending bytes",
        ),
        (
            "10 00 02000000 04 00 02  01 62 02 00  01 61 02 00",
            "items of topn value are not ordered by descending frequency and ascending bytes",
        ),
        (
            "10 00 02000000 04 00 02  01 61 02 00  01 61 02 00",
            "items of topn value are not ordered by descending frequency and ascending bytes",
        ),
        ("10 00 02000000 04 00 02  01 61 02 00  01 61 01 00", "topn value has an item twice"),
        ("10 00 02000000 04 00 02  01 61 03 00  01 62 02 00", "frequencies of topn value exceed its total"),
        // Two counters: an error of 2 has taken at least 6 of the total, so that there is none left for counters.
        (
            "10 00 02000000 06 02 01  01 61 03 00",
            "error of topn value is too large for its total and its number of counters",
        ),
        ("10 00 02000000 05 02 00", "error of topn value is too large for its total and its number of counters"),
    ] {
        let error = Packed::validate(&bytes(hex)).unwrap_err();
        assert_eq!((error.to_string().as_str(), error.sqlstate()), (message, "22000"), "{hex}");
    }
    Packed::validate(&bytes("10 00 02000000 07 02 01  01 61 03 00")).unwrap();
    Packed::validate(&bytes("10 00 02000000 ffffffffffffffff7f 00 00")).unwrap();
}

#[test]
fn a_stored_item_that_occurs_twice_breaks_nothing() {
    let twice = bytes("10 00 02000000 04 00 02  01 61 02 00  01 61 01 00");
    let mut state = letters(2, "ab");
    state.unite(&twice).unwrap();
    assert_eq!(state.state().bounds(b"a"), (4, 4));
    // Here each of the two was cut by all of the error; what that gives is seen to be damaged when it is read.
    let twice = bytes("10 00 02000000 06 01 02  01 61 03 00  01 61 02 00");
    let mut state = Owned::new(k(2));
    state.unite(&twice).unwrap();
    assert_eq!(Packed::read(&state.pack(Packing::Final)).unwrap_err(), Error::SketchError);
}

#[test]
fn a_list_says_which_items_surely_belong_to_it() {
    // The error is 2; a occurred 6 to 6 times, b 4 to 5, c 3 to 5, d 1 to 3.
    let stored = bytes("10 00 04000000 18 02 04  01 61 06 00  01 62 04 01  01 63 03 02  01 64 01 02");
    let packed = Packed::validate(&stored).unwrap();
    let list = |n| -> Vec<_> {
        packed.bounds(n).map(|bounds| (text(bounds.item), bounds.lower, bounds.upper, bounds.certain)).collect()
    };
    let row = |item: &str, lower, upper, certain| (item.to_owned(), lower, upper, certain);
    assert_eq!(list(0), []);
    assert_eq!(list(1), [row("a", 6, 6, true)]);
    // c, outside of it, may have occurred more often than b.
    assert_eq!(list(2), [row("a", 6, 6, true), row("b", 4, 5, false)]);
    assert_eq!(list(3), [row("a", 6, 6, true), row("b", 4, 5, true), row("c", 3, 5, true)]);
    // An absent item may have occurred more often than d.
    assert_eq!(list(9)[3], row("d", 1, 3, false));
    assert_eq!(list(usize::MAX).len(), 4);
    assert_eq!(
        packed.top(2).map(|(item, lower)| (text(item), lower)).collect::<Vec<_>>(),
        [("a".to_owned(), 6), ("b".to_owned(), 4)]
    );
}

#[test]
fn limits_are_kept() {
    for given in [i64::MIN, -1, 0, 1_000_001, i64::MAX] {
        let error = Counters::new(given).unwrap_err();
        assert_eq!(error.to_string(), format!("number of topn counters must be between 1 and 1000000, not {given}"));
        assert_eq!((error.sqlstate(), error.hint().is_some()), ("22023", true));
    }
    assert_eq!(Counters::new(1_000_000).map(Counters::get), Ok(1_000_000));

    let mut state = Owned::new(k(2));
    add_all(&mut state, [&vec![b'x'; MAX_ITEM]]);
    let error = state.add_count(&vec![b'x'; MAX_ITEM + 1], 1).unwrap_err();
    assert_eq!(error.to_string(), "item of 65537 bytes is too long for topn");
    assert_eq!((error.sqlstate(), error.hint().is_some()), ("54000", true));
    assert_eq!(state.state().total(), 1);
    let stored = state.pack(Packing::Final);
    assert_eq!(Packed::validate(&stored).unwrap().top(1).next().unwrap().0.len(), MAX_ITEM);
}

#[test]
fn a_total_never_overflows() {
    let mut state = Owned::new(k(2));
    state.add_count(b"a", MAX_TOTAL - 1).unwrap();
    add_letters(&mut state, "a");
    let full = state.pack(Packing::Final);
    for error in [
        state.add_count(b"a", 1).unwrap_err(),
        state.add_count(b"b", u64::MAX).unwrap_err(),
        state.unite(&full).unwrap_err(),
        state.unite_state(&mut letters(2, "b")).unwrap_err(),
    ] {
        assert_eq!(error.to_string(), "total of topn would exceed 9223372036854775807");
        assert_eq!(error.sqlstate(), "22003");
    }
    assert_eq!(state.pack(Packing::Final), full);
    assert_eq!(shown(&full), (MAX_TOTAL, 0, vec![entry("a", MAX_TOTAL, 0)]));
}

#[test]
fn memory_that_postgresql_cannot_allocate_is_refused() {
    let mut state = Owned::new(k(1_000_000));
    // As if the items had taken so many bytes already.
    state.0[2] = ((1 << 29) + 1) << 32;
    let Err(Stop::Room(room)) = state.state().add(b"a") else { panic!("it needs room") };
    assert_eq!(room.words() * 8, (1 << 30) - 8);
    state.0[2] = ((1 << 30) - 64) << 32;
    let error = state.add_count(b"a", 1).unwrap_err();
    assert_eq!(error.to_string(), "items of topn would need more than 1 GB of memory");
    assert_eq!((error.sqlstate(), error.hint().is_some()), ("54000", true));
}

#[test]
fn a_received_state_can_only_be_united() {
    let stored = letters(2, "aab").pack(Packing::Partial);
    let mut received = received(&stored);
    assert_eq!(received.state().stored(), Some(&stored[..]));
    assert_eq!(received.state().counters().get(), 2);
    assert_eq!(received.pack(Packing::Final), stored);
    for error in [
        received.add_count(b"a", 1).unwrap_err(),
        received.unite(&stored).unwrap_err(),
        received.unite_state(&mut letters(2, "a")).unwrap_err(),
    ] {
        assert_eq!(error.to_string(), "invalid state of a topn aggregate: it has not been united yet");
        assert_eq!(error.sqlstate(), "22P03");
    }
}

#[test]
fn small_states_are_small() {
    let mut state = letters(1000, "abcdefgh");
    assert_eq!(state.0.len() * 8, 512);
    add_letters(&mut state, "i");
    assert_eq!(state.0.len() * 8, 1024);
    // At most 2000 entries, however many items come.
    for item in 0..100_000u32 {
        state.add_count(&item.to_le_bytes(), 1).unwrap();
    }
    assert_eq!(state.0.len() * 8, 128 * 1024);
}

#[test]
fn json_is_read_and_written() {
    let stored = read_json(10, r#" {"b": 2, "a": 2, "quote\"\n": 7, "": 1, "none": 0, "b": 1} "#).unwrap();
    let packed = Packed::validate(&stored).unwrap();
    assert_eq!((packed.header().total, packed.header().error), (13, 0));
    assert_eq!(json::write(&packed, String::from_utf8_lossy), r#"{"quote\"\n":7,"b":3,"a":2,"":1}"#);
    assert_eq!(read_json(10, "{}").unwrap(), wire::empty(k(10)));
    assert_eq!(json::write(&Packed::read(&wire::empty(k(10))).unwrap(), String::from_utf8_lossy), "{}");
    // More items than counters: the sketch that keeps its promises, not an error.
    assert_eq!(
        shown(&read_json(2, r#"{"a": 6, "b": 5, "c": 3, "d": 2, "e": 1}"#).unwrap()),
        (17, 4, vec![entry("a", 6, 0), entry("b", 5, 0)])
    );
}

#[test]
fn json_of_another_shape_is_refused() {
    let count = "expected a count, which is an integer from 0 to 9223372036854775807";
    let object = "expected an object of items and counts";
    for (json, found) in [
        ("", "EOF while parsing a value at line 1 column 0".to_owned()),
        ("[]", format!("invalid type: sequence, {object} at line 1 column 0")),
        ("null", format!("invalid type: null, {object} at line 1 column 4")),
        ("\"a\"", format!("invalid type: string \"a\", {object} at line 1 column 3")),
        ("{\"a\": 1", "EOF while parsing an object at line 1 column 7".to_owned()),
        ("{\"a\": 1} x", "trailing characters at line 1 column 10".to_owned()),
        ("{1: 1}", "key must be a string at line 1 column 2".to_owned()),
        ("{\"a\": -1}", format!("invalid type: integer `-1`, {count} at line 1 column 8")),
        ("{\"a\": 1.5}", format!("invalid type: floating point `1.5`, {count} at line 1 column 9")),
        ("{\"a\": \"1\"}", format!("invalid type: string \"1\", {count} at line 1 column 9")),
        ("{\"a\": {\"b\": 1}}", format!("invalid type: map, {count} at line 1 column 6")),
        ("{\"a\": [[[[", format!("invalid type: sequence, {count} at line 1 column 6")),
    ] {
        let error = read_json(10, json).unwrap_err();
        assert_eq!(error.to_string(), format!("invalid JSON for topn: {found}"), "{json}");
        assert_eq!((error.sqlstate(), error.hint().is_some()), ("22P02", true));
    }
    let error = read_json(10, r#"{"\u0000": 1}"#).unwrap_err();
    assert_eq!(error.to_string(), "item of topn cannot contain the character \\u0000");
    assert_eq!(error.sqlstate(), "22P05");
    assert_eq!(read_json(10, &format!("{{\"a\": {MAX_TOTAL}, \"b\": 1}}")), Err(Error::TotalTooLarge));
    assert_eq!(read_json(10, "{\"a\": 9223372036854775808}"), Err(Error::TotalTooLarge));
    // The parser stops at the depth where a count should be.
    read_json(10, &format!("{{\"a\": {}", "[".repeat(1_000_000))).unwrap_err();
}

/// How often each item really occurred.
type Counts = HashMap<Vec<u8>, u64>;

fn count<'i>(items: impl IntoIterator<Item = &'i Vec<u8>>) -> Counts {
    let mut counts = Counts::new();
    for item in items {
        *counts.entry(item.clone()).or_default() += 1;
    }
    counts
}

/// The promises, for a state and for what it is stored as.
fn check(state: &mut Owned, counters: u32, counts: &Counts) -> Result<(), TestCaseError> {
    let total: u64 = counts.values().sum();
    for packing in [Packing::Partial, Packing::Final] {
        let stored = state.pack(packing);
        let packed = Packed::validate(&stored).map_err(|error| TestCaseError::fail(error.to_string()))?;
        let Header { counters: k, total: n, error, entries } = packed.header();
        prop_assert_eq!((k.get(), n), (counters, total));
        prop_assert!(error <= total / (u64::from(counters) + 1), "error {error} of {total}, {counters} counters");
        let most = if packing == Packing::Final { counters } else { 2 * counters };
        prop_assert!(entries <= most as usize, "{entries} entries, {counters} counters");
        let present: HashMap<_, _> = packed.entries().map(|entry| (entry.item.to_vec(), entry)).collect();
        prop_assert_eq!(present.len(), entries);
        for (item, count) in counts {
            match present.get(item) {
                Some(entry) => {
                    prop_assert!(entry.lower <= *count && *count <= entry.upper(), "{entry:?} occurred {count} times");
                }
                None => prop_assert!(*count <= error, "{item:?} is absent and occurred {count} times, not {error}"),
            }
            if *count > total / (u64::from(counters) + 1) {
                prop_assert!(present.contains_key(item), "{item:?} occurred {count} times of {total} and is absent");
            }
        }
        for item in present.keys() {
            prop_assert!(counts.contains_key(item), "{item:?} never occurred");
        }
        // The surely most frequent ones: fewer than n items occurred more often.
        let mut all: Vec<_> = counts.values().copied().collect();
        all.sort_unstable_by_key(|count| Reverse(*count));
        for n in [1, 2, 3, entries / 2, entries] {
            for bounds in packed.bounds(n).filter(|bounds| bounds.certain) {
                let more = all.iter().filter(|count| **count > counts[bounds.item]).count();
                prop_assert!(more < n, "{bounds:?} is not one of the first {n}");
            }
        }
    }
    let error = state.state().error();
    for (item, count) in counts {
        let (lower, upper) = state.state().bounds(item);
        prop_assert!(lower <= *count && *count <= upper);
    }
    prop_assert_eq!(state.state().bounds(b"never"), (0, error));
    Ok(())
}

fn item(number: u32) -> Vec<u8> {
    // Items of many sizes, the empty one among them.
    let digits = number.to_string();
    if number == 0 { Vec::new() } else { digits.repeat(number as usize % 4 + 1).into_bytes() }
}

/// Equal shares, shares of 1/rank, and orders that make evictions as bad as they can be.
fn any_stream() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let numbers = prop_oneof![
        (1u32..60).prop_flat_map(|different| prop::collection::vec(0..different, 0..300)),
        prop::collection::vec((1u32..=1000).prop_map(|share| 1000 / share), 0..400),
        // Rounds over more items than there are counters.
        (1u32..40, 1usize..12)
            .prop_map(|(different, rounds)| (0..different).cycle().take(rounds * different as usize).collect()),
        // Runs of each item, rising or falling, then newcomers.
        (1u32..12, any::<bool>(), 0u32..40).prop_map(|(highest, falls, newcomers)| {
            let run =
                move |number: u32| std::iter::repeat_n(number, if falls { highest - number } else { number } as usize);
            (0..highest).flat_map(run).chain(1000..1000 + newcomers).collect()
        }),
        // A frequent item between others that come once.
        (1u32..9, 0u32..100).prop_map(|(every, others)| {
            (0..others).flat_map(|other| [500 + other].into_iter().chain((other % every == 0).then_some(7))).collect()
        }),
    ];
    numbers.prop_map(|numbers: Vec<u32>| numbers.into_iter().map(item).collect())
}

fn any_counters() -> impl Strategy<Value = u32> {
    prop_oneof![3 => 1u32..8, 1 => 8u32..50]
}

fn any_way() -> impl Strategy<Value = Way> {
    prop_oneof![Just(Way::Final), Just(Way::Partial), Just(Way::State), Just(Way::Received)]
}

/// Unites parts, two at a time, in the given order.
fn unite_all(mut parts: Vec<Owned>, steps: &[(prop::sample::Index, prop::sample::Index, Way)]) -> Owned {
    for (left, right, way) in steps.iter().cycle() {
        if parts.len() == 1 {
            break;
        }
        let other = parts.swap_remove(right.index(parts.len()));
        let at = left.index(parts.len());
        unite_in(&mut parts[at], *way, other);
    }
    parts.swap_remove(0)
}

fn any_steps() -> impl Strategy<Value = Vec<(prop::sample::Index, prop::sample::Index, Way)>> {
    prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any_way()), 1..8)
}

/// The format built without any of the code under test, for counts that are exact.
fn expected(counters: u32, counts: &Counts) -> Vec<u8> {
    fn number(out: &mut Vec<u8>, number: u64) {
        let digits: Vec<u8> = (0..10).map(|digit| (number >> (7 * digit)) as u8 & 0x7f).collect();
        let last = digits.iter().rposition(|digit| *digit != 0).unwrap_or(0);
        out.extend(digits[..=last].iter().enumerate().map(|(at, digit)| if at < last { digit + 0x80 } else { *digit }));
    }
    let mut entries: Vec<_> = counts.iter().collect();
    entries.sort_by_key(|(item, count)| (Reverse(**count), (*item).clone()));
    let mut out = vec![0x10, 0];
    out.extend(counters.to_le_bytes());
    for header in [counts.values().sum(), 0, entries.len() as u64] {
        number(&mut out, header);
    }
    for (item, count) in entries {
        number(&mut out, item.len() as u64);
        out.extend(item);
        number(&mut out, *count);
        number(&mut out, 0);
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn a_stream_in_one_piece_keeps_the_promises(counters in any_counters(), stream in any_stream()) {
        let mut state = Owned::new(k(counters));
        for (done, item) in stream.iter().enumerate() {
            add_all(&mut state, [item]);
            if done % 50 == 49 {
                check(&mut state, counters, &count(&stream[..=done]))?;
            }
        }
        check(&mut state, counters, &count(&stream))?;
    }

    #[test]
    fn every_tree_of_unions_keeps_the_promises(
        parts in prop::collection::vec((any_stream(), any_counters()), 1..7),
        steps in any_steps(),
        rest in any_stream(),
        same in any::<bool>(),
    ) {
        let counters = |given: u32| if same { parts[0].1 } else { given };
        let least = parts.iter().map(|part| counters(part.1)).min().unwrap();
        let sketches = parts.iter().map(|(stream, given)| {
            let mut part = Owned::new(k(counters(*given)));
            add_all(&mut part, stream);
            part
        });
        let mut united = unite_all(sketches.collect(), &steps);
        check(&mut united, least, &count(parts.iter().flat_map(|part| &part.0)))?;
        add_all(&mut united, &rest);
        check(&mut united, least, &count(parts.iter().flat_map(|part| &part.0).chain(&rest)))?;
    }

    #[test]
    fn up_to_k_items_are_exact_for_every_order_and_tree(
        parts in prop::collection::vec(any_stream(), 1..6),
        (steps, other_steps) in (any_steps(), any_steps()),
        turn in any::<usize>(),
    ) {
        let counts = count(parts.iter().flatten());
        let counters = (counts.len() as u32).max(1);
        let expected = expected(counters, &counts);
        let build = |stream: &mut dyn Iterator<Item = &Vec<u8>>| {
            let mut part = Owned::new(k(counters));
            add_all(&mut part, stream);
            part
        };
        let mut serial = build(&mut parts.iter().flatten());
        prop_assert_eq!(hex(&serial.pack(Packing::Final)), hex(&expected));
        let mut tree = unite_all(parts.iter().map(|part| build(&mut part.iter())).collect(), &steps);
        prop_assert_eq!(hex(&tree.pack(Packing::Final)), hex(&expected));
        // Other parts of the same stream, from back to front.
        let mut items: Vec<_> = parts.iter().flatten().cloned().collect();
        let turn = turn % items.len().max(1);
        items.rotate_left(turn);
        let pieces = items.rchunks(items.len() / 3 + 1).map(|piece| build(&mut piece.iter().rev())).collect::<Vec<_>>();
        if !pieces.is_empty() {
            prop_assert_eq!(hex(&unite_all(pieces, &other_steps).pack(Packing::Partial)), hex(&expected));
        }
    }

    #[test]
    fn a_union_does_not_depend_on_the_order_of_its_sides(
        (left, right) in (any_stream(), any_stream()),
        (left_counters, right_counters) in (any_counters(), any_counters()),
        same in any::<bool>(),
    ) {
        let (mut a, mut b) = (Owned::new(k(left_counters)), Owned::new(k(if same { left_counters } else { right_counters })));
        add_all(&mut a, &left);
        add_all(&mut b, &right);
        let both = |way| {
            let (mut ab, mut ba) = (a.clone(), b.clone());
            unite_in(&mut ab, way, b.clone());
            unite_in(&mut ba, way, a.clone());
            [ab.pack(Packing::Partial), ba.pack(Packing::Partial), ab.pack(Packing::Final), ba.pack(Packing::Final)]
        };
        let [partial, other_partial, finished, other_finished] = both(Way::State);
        prop_assert_eq!(hex(&partial), hex(&other_partial));
        prop_assert_eq!(hex(&finished), hex(&other_finished));
        // Nor on whether a side comes from another process.
        prop_assert_eq!(both(Way::Partial).map(|bytes| hex(&bytes)), both(Way::Received).map(|bytes| hex(&bytes)));
        prop_assert_eq!(hex(&both(Way::Partial)[0]), hex(&partial));
        // Stored values are united by an empty state, in either order.
        let (a, b) = (a.pack(Packing::Final), b.pack(Packing::Final));
        let stored = [[&a, &b], [&b, &a]].map(|sides| {
            let mut state = Owned::new(k(MAX_COUNTERS));
            sides.iter().for_each(|side| state.unite(side).unwrap());
            hex(&state.pack(Packing::Final))
        });
        prop_assert_eq!(&stored[0], &stored[1]);
    }

    #[test]
    fn counts_memory_and_storing_make_no_difference(
        counters in any_counters(),
        stream in prop::collection::vec((0u32..40, 0u64..6), 0..300),
    ) {
        let (mut single, mut weighted) = (Owned::new(k(counters)), Owned::in_chunk(k(counters), 1 << 12));
        let mut moved = Owned::new(k(counters));
        for (number, count) in &stream {
            let item = item(*number);
            add_all(&mut single, std::iter::repeat_n(&item, *count as usize));
            weighted.add_count(&item, *count).unwrap();
            moved.add_count(&item, *count).unwrap();
            // Storing changes nothing that can be seen, and a stored state goes on as if nothing had happened.
            moved.pack(Packing::Final);
            let stored = moved.pack(Packing::Partial);
            moved = Owned::new(k(counters));
            moved.unite(&stored).unwrap();
        }
        let stored = single.pack(Packing::Partial);
        prop_assert_eq!(hex(&weighted.pack(Packing::Partial)), hex(&stored));
        prop_assert_eq!(hex(&moved.pack(Packing::Partial)), hex(&stored));
        prop_assert_eq!(hex(&weighted.pack(Packing::Final)), hex(&single.pack(Packing::Final)));
    }

    #[test]
    fn json_carries_exact_counts(counts in prop::collection::hash_map(any::<String>(), 1u64..1000, 0..40)) {
        let counts: HashMap<_, _> = counts.into_iter().filter(|(item, _)| !item.contains('\0')).collect();
        let bytes = counts.iter().map(|(item, count)| (item.clone().into_bytes(), *count)).collect();
        let expected = expected(50, &bytes);
        let json = json::write(&Packed::validate(&expected).unwrap(), String::from_utf8_lossy);
        prop_assert_eq!(serde_json::from_str::<HashMap<String, u64>>(&json).unwrap(), counts);
        prop_assert_eq!(hex(&read_json(50, &json).unwrap()), hex(&expected));
    }

    #[test]
    fn no_text_makes_the_json_reader_panic(text in "[{}\\[\\]\":,0-9a.\\\\u-]{0,20}") {
        let _ = read_json(3, &text);
    }
}

/// Reads bytes in every way; what passes validation is what a state of it is stored as.
fn probe(value: &[u8]) -> Result<bool, TestCaseError> {
    let _ = Header::read(value);
    let Ok(packed) = Packed::read(value) else {
        prop_assert!(Packed::validate(value).is_err());
        return Ok(false);
    };
    prop_assert!(packed.bounds(2).count() <= 2);
    let _ = json::write(&packed, String::from_utf8_lossy);
    let mut state = Owned::new(k(packed.header().counters.get()));
    state.unite(value).unwrap();
    let valid = Packed::validate(value).is_ok();
    prop_assert_eq!(valid, state.pack(Packing::Partial) == value);
    state.unite_state(&mut received(value)).unwrap();
    state.pack(Packing::Final);
    Ok(valid)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2500, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_a_reader_panic(
        data in prop::collection::vec(prop_oneof![3 => 0u8..6, 1 => any::<u8>()], 0..60),
        total in any::<u8>(),
        fit in any::<bool>(),
    ) {
        let start: &[u8] = if fit { &[0x10, 0, 3, 0, 0, 0, total] } else { &[] };
        probe(&[start, &data].concat())?;
    }

    #[test]
    fn no_damage_makes_a_reader_panic(
        counters in 1u32..8,
        stream in any_stream(),
        damages in prop::collection::vec((any::<prop::sample::Index>(), 0u8..6, any::<u8>()), 1..4),
    ) {
        let mut state = Owned::new(k(counters));
        add_all(&mut state, &stream);
        let mut value = state.pack(Packing::Partial);
        prop_assert!(probe(&value)?);
        for (place, kind, byte) in damages {
            if value.is_empty() {
                break;
            }
            let at = place.index(value.len());
            match kind {
                0 => value[at] = byte,
                1 => value[at] ^= 1 << (byte & 7),
                2 => value[at] = value[at].wrapping_add(1),
                3 => value.insert(at, byte),
                4 => drop(value.remove(at)),
                _ => value.truncate(at),
            }
            probe(&value)?;
        }
    }
}
