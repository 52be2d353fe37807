//! Vectors of the stored format, the hash and the estimators; every way of building a sketch against a plain set of hashes.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

fn received(bytes: &[u8]) -> Owned {
    Owned::received(bytes).unwrap()
}

fn build(params: Params, hashes: impl IntoIterator<Item = i64>) -> Vec<u8> {
    let mut state = Owned::new(params);
    for hash in hashes {
        state.add(hash as u64);
    }
    state.pack(Packing::BySize)
}

fn bigints(range: std::ops::RangeInclusive<i64>) -> impl Iterator<Item = i64> {
    range.map(|value| canon::integer(value) as i64)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn params(log2m: i64, width: i64, threshold: i64, sparse: i64) -> Params {
    Params::new(log2m, width, threshold, sparse).unwrap()
}

#[test]
fn hashes_equal_those_of_postgresql_hll() {
    let of = |value: u64, length| hash::short(value, length, 0) as i64;
    assert_eq!(
        [canon::boolean(false), canon::boolean(true)].map(|hash| hash as i64),
        [5048724184180415669, 8849112093580131862]
    );
    assert_eq!(hash::bytes(b"\0", 0) as i64, 5048724184180415669);
    assert_eq!([0, 1].map(|value| of(value, 2)), [3478107235931676136, 1967286128051477038]);
    assert_eq!(
        [0u64, 1, 0xffff_ffff].map(|value| of(value, 4)),
        [-3485513579396041028, -8604791237420463362, 4889297221962843713]
    );
    assert_eq!(
        [0, 1, -1].map(|value| canon::integer(value) as i64),
        [2945182322382062539, 19144387141682250, -6853156495446839949]
    );
    let text = |text: &str, seed| hash::bytes(text.as_bytes(), seed) as i64;
    assert_eq!([text("", 0), text("a", 0)], [0, -8839064797231613815]);
    assert_eq!(
        [0, 123, -1].map(|seed| text("hello", seed)),
        [-3758069500696749310, 3016954156110693643, 3781807033743269396]
    );
    assert_eq!([16, 33].map(|count| text(&"x".repeat(count), 0)), [7551617026245346269, -5243862173996223363]);
}

#[test]
fn short_values_hash_like_their_bytes() {
    for length in 1..=8usize {
        for seed in [0, 1, -1, i32::MIN] {
            let value = 0xf1e2_d3c4_b5a6_9788u64;
            let held = if length == 8 { value } else { value & ((1 << (8 * length)) - 1) };
            assert_eq!(hash::short(held, length as u64, seed), hash::bytes(&value.to_le_bytes()[..length], seed));
        }
    }
}

#[test]
fn names_and_texts_of_equal_characters_have_one_hash() {
    let mut buffer = [0u8; 64];
    buffer[..5].copy_from_slice(b"hello");
    assert_eq!(canon::name(&buffer), b"hello");
}

#[test]
fn stored_bytes_equal_the_examples_of_the_format() {
    assert_eq!(hex(&build(Params::default(), [])), "118b7f");
    assert_eq!(hex(&wire::empty(Params::default())), "118b7f");
    let three = || bigints(1..=3);
    assert_eq!(hex(&build(Params::default(), three())), "128b7fde0820a06c76c0a8004403b7fb05c44a5b3d5839b2488b0c");
    assert_eq!(hex(&build(params(4, 5, 0, 1), three())), "1384408150f0a0");
    assert_eq!(hex(&build(params(4, 5, 0, 0), three())), "14840000000000001006028000");
    for (hash, expected) in [(0, "138b40"), (-1, "138b40ffe1"), (2048, "138b400001"), (i64::MIN, "138b40001f")] {
        assert_eq!(hex(&build(params(11, 5, 0, 1), [hash])), expected);
    }
}

#[test]
fn stored_sizes_follow_the_number_of_values() {
    let size = |count| build(Params::default(), bigints(1..=count)).len();
    for (count, expected) in [(1, 11), (5, 43), (10, 83), (20, 163), (50, 403), (100, 803), (160, 1283)] {
        assert_eq!(size(count), expected, "{count} values");
    }
    // These depend on how many of the hashes share a register.
    for (count, expected) in [(161, 313), (200, 385), (300, 549), (400, 715), (600, 1041)] {
        assert!(size(count).abs_diff(expected) <= 30, "{count} values: {}", size(count));
    }
    assert_eq!(size(5000), 1283);
}

#[test]
fn estimates_equal_the_vectors_of_both_estimators() {
    let mut state = Owned::new(Params::default());
    let mut added = 0;
    for (count, classic, ertl) in [
        (161, 161.17930997775483, 161.181266163619),
        (1000, 978.6302601354474, 980.4212958969072),
        (5000, 5156.049404631745, 5018.512466326607),
        (20000, 20170.846268377576, 20182.802978098898),
        (1_000_000, 995263.7148933313, 995853.6792000745),
    ] {
        for hash in bigints(added + 1..=count) {
            state.add(hash as u64);
        }
        added = count;
        let estimate = |state: &mut Owned, estimator| state.state().estimate(estimator).unwrap().unwrap();
        assert_eq!(estimate(&mut state, Estimator::Classic), classic, "classic of {count}");
        let found = estimate(&mut state, Estimator::Ertl);
        assert!((found / ertl - 1.0).abs() < 1e-14, "ertl of {count}: {found} instead of {ertl}");
    }
}

#[test]
fn estimates_are_exact_while_hashes_are_stored() {
    let mut state = Owned::new(Params::default());
    for (count, hash) in bigints(1..=160).enumerate() {
        assert_eq!(state.state().estimate(Estimator::Ertl), Ok(Some(count as f64)));
        state.add(hash as u64);
        state.add(hash as u64);
    }
    assert_eq!(state.state().estimate(Estimator::Classic), Ok(Some(160.0)));
}

#[test]
fn registers_of_zero_and_of_the_largest_value_have_an_estimate() {
    for width in 1..=7 {
        for log2m in 0..=17 {
            let params = params(log2m, width, 0, 1);
            // A rest of zero is invisible, so that this is an empty set of registers.
            let nothing = build(params, [0]);
            assert_eq!(Owned::load(&nothing).unwrap().state().estimate(Estimator::Ertl), Ok(Some(0.0)));
            let mut full = vec![0xff; params.full_size() + 3];
            full[..3].copy_from_slice(&[0x14, ((width as u8 - 1) << 5) | log2m as u8, 0x40]);
            let estimate = Owned::load(&full).unwrap().state().estimate(Estimator::Ertl).unwrap().unwrap();
            assert!(estimate > 0.0, "log2m {log2m}, width {width}: {estimate}");
        }
    }
}

#[test]
fn classic_refuses_fewer_than_16_registers() {
    let mut state = Owned::load(&build(params(3, 5, 0, 1), [77])).unwrap();
    assert_eq!(state.state().estimate(Estimator::Classic), Err(Error::TooFewRegisters));
}

#[test]
fn malformed_bytes_are_refused_by_name() {
    for (hex, message) in [
        ("", "unknown schema version 0"),
        ("218b7f", "unknown schema version 2"),
        ("158b7f", "undefined multiset type"),
        ("108b7f00", "undefined multiset value"),
        ("118b7f00", "inconsistently sized empty multiset"),
        ("11", "inconsistently sized empty multiset"),
        ("128b7f00", "inconsistently sized explicit multiset"),
        ("12", "inconsistently sized explicit multiset"),
        ("148b7f00", "inconsistently sized compressed multiset"),
        ("138b", "sparse multiset too small"),
        ("138b7f00", "inconsistent padding in sparse hll argument"),
        ("11927f", "log2m modifier must be between 0 and 17"),
        ("11eb7f", "regwidth modifier must be between 0 and 7"),
        ("118b50", "expthresh modifier must be between -1 and 16383"),
        (
            "128b7f00000000000000020000000000000001",
            "duplicate or descending explicit elements: EXPLICIT, 2 elements, nregs=2048, nbits=5, \
             expthresh=-1(160), sparseon=1:\n0:                    2 \n1:                    1 ",
        ),
    ] {
        assert_eq!(Packed::validate(&bytes(hex)).unwrap_err().to_string(), message, "{hex}");
    }
    let many = [bytes("128b7f"), vec![0; 8 * 16384]].concat();
    assert_eq!(Packed::validate(&many).unwrap_err(), Error::ExplicitTooLarge);
}

#[test]
fn what_the_format_does_not_forbid_is_read() {
    // Sparse words that are unordered, zero or repeated; any threshold beside registers; an undefined set.
    for hex in ["138b7f00430042", "138b7f00000000", "148b500000".to_owned().leak(), "108b50"] {
        let mut value = bytes(hex);
        if value[0] == 0x14 {
            value.resize(3 + 1280, 0);
        }
        Packed::validate(&value).unwrap();
    }
}

#[test]
fn padding_is_no_word_for_register_0() {
    // Words of 6 bits: three of them leave room for a fourth in three bytes.
    let sparse = build(params(4, 2, 0, 1), [16, 17, 18]);
    assert_eq!(hex(&sparse), "132440045240");
    assert_eq!(Owned::load(&sparse).unwrap().pack(Packing::BySize), sparse);
}

#[test]
fn the_last_word_for_a_register_counts() {
    // Register 2 is given the values 3 and then 2.
    let twice = bytes("138b4000430042");
    let once = bytes("138b400042");
    assert_eq!(Owned::load(&twice).unwrap().pack(Packing::BySize), once);
    let mut state = Owned::new(params(11, 5, 0, 1));
    state.unite(&twice).unwrap();
    assert_eq!(state.pack(Packing::BySize), once);
    let mut state = Owned::new(params(11, 5, 0, 1));
    state.unite_state(received(&twice)).unwrap();
    assert_eq!(state.pack(Packing::BySize), once);
}

#[test]
fn an_undefined_set_stays_undefined() {
    let undefined = bytes("108b7f");
    let mut state = Owned::new(Params::default());
    state.add(1);
    state.unite(&undefined).unwrap();
    state.add(2);
    state.unite(&build(Params::default(), [3])).unwrap();
    assert_eq!(state.state().estimate(Estimator::Ertl), Ok(None));
    assert_eq!(state.pack(Packing::BySize), undefined);
}

#[test]
fn a_bit_without_a_meaning_is_not_stored_again() {
    let (undefined, clean) = (bytes("108bff"), bytes("108b7f"));
    let packed = Packed::read(&undefined).unwrap();
    let other = build(Params::default(), [1]);
    let other = Packed::read(&other).unwrap();
    for draft in [
        packed.add(1, Packing::BySize),
        packed.union(&packed, Packing::BySize),
        packed.union(&other, Packing::BySize),
        other.union(&packed, Packing::BySize),
    ] {
        assert_eq!(written(draft.unwrap()), clean);
    }
}

#[test]
fn a_list_of_no_hashes_stays_one() {
    let none = bytes("128b7f");
    assert_eq!(Owned::load(&none).unwrap().pack(Packing::BySize), none);
    let mut state = Owned::new(Params::default());
    state.unite(&none).unwrap();
    state.unite(&build(Params::default(), [])).unwrap();
    state.unite_state(received(&none)).unwrap();
    state.unite_state(Owned::load(&none).unwrap()).unwrap();
    assert_eq!(state.state().estimate(Estimator::Classic), Ok(Some(0.0)));
    assert_eq!(state.pack(Packing::BySize), none);
    state.add(7);
    assert_eq!(state.pack(Packing::BySize), build(Params::default(), [7]));
}

#[test]
fn sketches_of_different_parameters_are_not_united() {
    let mut state = Owned::new(Params::default());
    for (other, message) in [
        (params(12, 4, 0, 0), "register width does not match: source uses 4 and dest uses 5"),
        (params(12, 5, 0, 0), "register count does not match: source uses 4096 and dest uses 2048"),
        (params(11, 5, 0, 0), "explicit threshold does not match: source uses 0 and dest uses -1"),
        (params(11, 5, -1, 0), "sparse enable does not match: source uses 0 and dest uses 1"),
    ] {
        assert_eq!(state.unite(&build(other, [])).unwrap_err().to_string(), message);
    }
}

#[test]
fn parameters_out_of_range_are_refused() {
    for (given, message) in [
        ((18, 5, -1, 1), "log2m modifier must be between 0 and 17"),
        ((-1, 5, -1, 1), "log2m modifier must be between 0 and 17"),
        ((11, 8, -1, 1), "regwidth modifier must be between 0 and 7"),
        ((11, 5, -2, 1), "expthresh modifier must be between -1 and 16383"),
        ((11, 5, 16384, 1), "expthresh modifier must be between -1 and 16383"),
        ((11, 5, 3, 1), "expthresh modifier must be power of 2"),
        ((11, 5, -1, 2), "sparseon modifier must be 0 or 1"),
        ((11, 0, -1, 1), "a value of type hll needs a regwidth between 1 and 7"),
    ] {
        let (log2m, width, threshold, sparse) = given;
        assert_eq!(Params::new(log2m, width, threshold, sparse).unwrap_err().to_string(), message);
    }
    assert_eq!(Params::new(11, 5, -1, 1), Ok(Params::default()));
    assert_eq!(params(17, 7, -1, 1).threshold(), 14336);
    assert_eq!(Params::default().threshold(), 160);
}

#[test]
fn print_shows_every_kind() {
    let print = |bytes: &[u8]| Packed::read(bytes).unwrap().print();
    let tail = "nregs=2048, nbits=5, expthresh=-1(160), sparseon=1";
    assert_eq!(print(&bytes("118b7f")), format!("EMPTY, {tail}"));
    assert_eq!(print(&bytes("108b7f")), format!("UNDEFINED {tail}"));
    assert_eq!(
        print(&build(Params::default(), [1, -5])),
        format!("EXPLICIT, 2 elements, {tail}:\n0: {:20} \n1: {:20} ", -5, 1)
    );
    let registers = print(&build(params(5, 5, 0, 1), [32 + 1, 64 + 31]));
    let (head, line) = registers.split_once('\n').unwrap();
    assert_eq!(head, "COMPRESSED, 2 filled nregs=32, nbits=5, expthresh=0, sparseon=1:");
    assert_eq!(line, format!("   0:  0  1 {} 2 ", " 0 ".repeat(29)));
}

#[test]
fn twenty_values_take_a_chunk_of_256_bytes() {
    let mut state = Owned::new(Params::default());
    for hash in bigints(1..=20) {
        state.add(hash as u64);
    }
    assert_eq!(state.0.len() * 8, 256);
}

/// The format built without any of the code under test.
fn expected(params: Params, set: &BTreeSet<i64>, packing: Packing) -> Vec<u8> {
    let [byte1, byte2] = params.to_header();
    let head = |kind: u8| vec![0x10 | kind, byte1, byte2];
    if set.is_empty() {
        return head(1);
    }
    if set.len() <= params.threshold() {
        return [head(2), set.iter().flat_map(|hash| hash.to_be_bytes()).collect()].concat();
    }
    let (m, w, log2m) = (params.registers(), params.width() as usize, params.log2m() as usize);
    let mut registers = vec![0u32; m];
    for hash in set {
        let rest = (*hash as u64) >> log2m;
        let value = if rest == 0 { 0 } else { (rest.trailing_zeros() + 1).min((1 << w) - 1) };
        let register = &mut registers[(*hash as u64 % m as u64) as usize];
        *register = value.max(*register);
    }
    let filled = registers.iter().filter(|value| **value > 0).count();
    let fits = match packing {
        Packing::BySize => filled * (log2m + w) < m * w,
        Packing::UpTo(most) => filled <= most,
    };
    let (kind, bits) = if params.sparse() && fits {
        let words = registers.iter().enumerate().filter(|(_, value)| **value > 0);
        (
            3,
            words
                .map(|(index, value)| format!("{:0width$b}", (index << w) | *value as usize, width = log2m + w))
                .collect(),
        )
    } else {
        (4, registers.iter().map(|value| format!("{value:0w$b}")).collect::<String>())
    };
    let data = bits.as_bytes().chunks(8).map(|byte| {
        let byte = std::str::from_utf8(byte).unwrap();
        u8::from_str_radix(&format!("{byte:0<8}"), 2).unwrap()
    });
    [head(kind), data.collect()].concat()
}

fn any_params() -> impl Strategy<Value = Params> {
    let threshold = prop_oneof![Just(-1i64), Just(0), (0u32..10).prop_map(|power| 1 << power)];
    (0i64..=12, 1i64..=7, threshold, 0i64..=1)
        .prop_map(|(log2m, width, threshold, sparse)| params(log2m, width, threshold, sparse))
}

/// Random hashes, and those at the edges: few bits, so that they meet and leave rests of zero.
fn any_hash() -> impl Strategy<Value = i64> {
    prop_oneof![
        4 => any::<i64>(),
        2 => 0i64..64,
        1 => (0u32..64).prop_map(|bit| 1i64 << bit),
        1 => Just(-1),
    ]
}

fn any_hashes() -> impl Strategy<Value = Vec<i64>> {
    prop_oneof![
        prop::collection::vec(any_hash(), 0..12),
        prop::collection::vec(any_hash(), 0..200),
        prop::collection::vec(any_hash(), 0..1500)
    ]
}

fn any_packing() -> impl Strategy<Value = Packing> {
    prop_oneof![3 => Just(Packing::BySize), 1 => (0usize..300).prop_map(Packing::UpTo)]
}

proptest! {
    #[test]
    fn stored_bytes_depend_only_on_the_set_of_hashes(
        params in any_params(),
        packing in any_packing(),
        parts in prop::collection::vec((any_hashes(), 0u8..5), 1..6),
    ) {
        let set: BTreeSet<i64> = parts.iter().flat_map(|(hashes, _)| hashes.iter().copied()).collect();
        let expected = expected(params, &set, packing);
        let mut total = Owned::new(params);
        for (hashes, way) in &parts {
            let mut part = Owned::new(params);
            for hash in hashes {
                part.add(*hash as u64);
            }
            match way {
                0 => hashes.iter().for_each(|hash| total.add(*hash as u64)),
                1 => total.unite(&part.pack(packing)).unwrap(),
                2 => total.unite_state(part).unwrap(),
                3 => total.unite_state(received(&part.pack(Packing::BySize))).unwrap(),
                // The other way round: what was collected so far is united into the part.
                _ => {
                    part.unite(&total.pack(packing)).unwrap();
                    total = part;
                }
            }
        }
        let stored = total.pack(packing);
        prop_assert_eq!(hex(&stored), hex(&expected));
        Packed::validate(&stored).unwrap();
        // The value survives being loaded and stored again, and uniting it with itself changes nothing.
        let mut again = Owned::load(&stored).unwrap();
        prop_assert_eq!(again.pack(packing), stored.clone());
        again.unite(&stored).unwrap();
        prop_assert_eq!(again.pack(packing), stored);
    }

    /// Whenever somebody looks, the hashes that wait in the buffer are part of the set, and looking changes nothing.
    #[test]
    fn states_may_be_looked_at_while_they_grow(
        threshold in prop_oneof![Just(-1), Just(0), (0u32..9).prop_map(|power| 1i64 << power)],
        // Few different ones, so that many come again.
        hashes in prop::collection::vec(prop_oneof![0i64..40, -200i64..200, any::<i64>()], 0..400),
        looks in prop::collection::vec(any::<bool>(), 400),
    ) {
        let params = params(11, 5, threshold, 1);
        let (mut state, mut set) = (Owned::new(params), BTreeSet::new());
        for (hash, look) in hashes.iter().zip(&looks) {
            state.add(*hash as u64);
            set.insert(*hash);
            if *look {
                let expected = expected(params, &set, Packing::BySize);
                prop_assert_eq!(hex(&state.pack(Packing::BySize)), hex(&expected));
                let estimate = state.state().estimate(Estimator::Ertl);
                prop_assert_eq!(estimate, Owned::load(&expected).unwrap().state().estimate(Estimator::Ertl));
            }
        }
        prop_assert_eq!(state.pack(Packing::BySize), expected(params, &set, Packing::BySize));
    }

    #[test]
    fn no_bytes_make_a_reader_panic(
        head in prop::array::uniform3(any::<u8>()),
        data in prop::collection::vec(any::<u8>(), 0..1400),
        fit in any::<bool>(),
    ) {
        let mut value = vec![0x10 | (head[0] % 6), head[1], head[2]];
        if fit {
            // Otherwise hardly any value would have the size of its registers.
            value[0] = 0x10 | (head[0] % 5);
            value[1] = (head[1] & 0xe0) | ((head[1] & 0x0f) % 12);
            let size = Packed::header(&value).unwrap().1.full_size();
            value.extend(data.iter().cycle().take(size));
        } else {
            value.extend(&data);
        }
        for value in [&value[..], &data[..]] {
            let _ = Packed::validate(value);
            let Ok(packed) = Packed::read(value) else { continue };
            packed.print();
            let mut loaded = Owned::load(value).unwrap();
            loaded.state().estimate(Estimator::Ertl).unwrap();
            let stored = loaded.pack(Packing::BySize);
            let mut united = Owned::new(packed.params());
            united.unite(value).unwrap();
            prop_assert_eq!(united.pack(Packing::BySize), stored.clone());
            let mut arrived = Owned::new(packed.params());
            arrived.unite_state(received(value)).unwrap();
            prop_assert_eq!(arrived.pack(Packing::BySize), stored);
        }
    }
}

/// A value of any kind with these parameters: built, or as only a foreign program would write it.
fn any_stored(params: Params) -> impl Strategy<Value = Vec<u8>> {
    let [byte1, byte2] = params.to_header();
    let foreign =
        (0u8..4, prop::collection::vec(any::<u8>(), 1..700), any::<u64>()).prop_map(move |(kind, data, thin)| {
            let mut value = vec![0x10 | [0, 1, 3, 4][usize::from(kind)], byte1, byte2];
            match kind {
                2 => value.extend(&data),
                3 => {
                    // All registers, some of them, or hardly any.
                    let keep = |(at, byte): (usize, &u8)| if thin >> (at % 64) & thin & 1 == 0 { *byte } else { 0 };
                    value.extend(data.iter().cycle().enumerate().map(keep).take(params.full_size()));
                }
                _ => {}
            }
            if thin & 2 != 0 {
                // A bit without a meaning.
                value[2] |= 0x80;
            }
            value
        });
    let over = prop::collection::btree_set(any_hash(), 0..300).prop_map(move |hashes| {
        let head = vec![0x12, byte1, byte2];
        [head, hashes.into_iter().flat_map(i64::to_be_bytes).collect()].concat()
    });
    let built = (any_hashes(), any_packing()).prop_map(move |(hashes, packing)| {
        let mut state = Owned::new(params);
        hashes.into_iter().for_each(|hash| state.add(hash as u64));
        state.pack(packing)
    });
    prop_oneof![4 => built, 2 => foreign, 1 => over].prop_filter("not readable", |value| Packed::read(value).is_ok())
}

/// Adds as `hll_add` did before stored values could do it by themselves.
fn add_through_a_state(bytes: &[u8], hash: i64, packing: Packing) -> Result<Vec<u8>, Error> {
    let packed = Packed::read(bytes)?;
    if packed.kind() != Kind::Undefined {
        packed.params().check_addable()?;
    }
    let mut state = Owned::load(bytes)?;
    state.add(hash as u64);
    Ok(state.pack(packing))
}

/// Unites as `hll_union` did before.
fn union_through_a_state(left: &[u8], right: &[u8], packing: Packing) -> Result<Vec<u8>, Error> {
    let (a, b) = (Packed::read(left)?, Packed::read(right)?);
    a.params().check_equal(b.params())?;
    let mut state = Owned::load(left)?;
    state.unite(right)?;
    Ok(state.pack(packing))
}

fn written(draft: Draft<'_>) -> Vec<u8> {
    let mut out = vec![0xee; draft.size()];
    draft.write(&mut out);
    out
}

/// Folds a stored value as the extension does.
fn fold(bytes: &[u8], log2m: u32) -> Vec<u8> {
    Owned::folded(bytes, i64::from(log2m)).unwrap().pack(Packing::BySize)
}

proptest! {
    #[test]
    fn a_stored_value_by_itself_gives_what_a_state_gives(
        (left, right) in any_params().prop_flat_map(|params| (any_stored(params), any_stored(params))),
        hash in any_hash(),
        packing in any_packing(),
    ) {
        let (a, b) = (Packed::read(&left).unwrap(), Packed::read(&right).unwrap());
        for estimator in [Estimator::Ertl, Estimator::Classic] {
            let expected = Owned::load(&left).unwrap().state().estimate(estimator);
            match a.estimate(estimator) {
                Err(Stop::Load) => prop_assert!(!a.has_ascending_words()),
                // As text, because classic has no number for registers of few bits that are all at their largest value.
                found => prop_assert_eq!(format!("{found:?}"), format!("{:?}", expected.map_err(Stop::Error))),
            }
        }
        match a.add(hash as u64, packing) {
            Err(Stop::Load) => {}
            Err(stop) => prop_assert_eq!(stop, Stop::Error(add_through_a_state(&left, hash, packing).unwrap_err())),
            Ok(draft) => {
                prop_assert_eq!(hex(&written(draft)), hex(&add_through_a_state(&left, hash, packing).unwrap()));
            }
        }
        match a.union(&b, packing) {
            Err(Stop::Load) => {}
            Err(stop) => prop_assert_eq!(stop, Stop::Error(union_through_a_state(&left, &right, packing).unwrap_err())),
            Ok(draft) => {
                prop_assert_eq!(hex(&written(draft)), hex(&union_through_a_state(&left, &right, packing).unwrap()));
            }
        }
    }

    #[test]
    fn folding_in_steps_equals_folding_at_once(
        stored in any_params().prop_flat_map(any_stored),
        steps in prop::collection::vec(0u32..4, 1..5),
    ) {
        let packed = Packed::read(&stored).unwrap();
        let log2m = packed.params().log2m();
        // See the test of a hash without a rest.
        prop_assume!(packed.hashes().all(|hash| hash as u64 >> log2m != 0));
        let (mut folded, mut now) = (stored.clone(), log2m);
        for step in steps {
            now = now.saturating_sub(step);
            folded = fold(&folded, now);
        }
        prop_assert_eq!(hex(&folded), hex(&fold(&stored, now)));
    }
}

/// The short ways are taken where they are meant to be, also at the edge between SPARSE and FULL.
#[test]
fn full_values_need_no_state() {
    for (log2m, width) in [(11, 5), (14, 5), (3, 5), (11, 6), (17, 7)] {
        let params = params(log2m, width, 0, 1);
        let enough = Packing::BySize.full_from(params) as i64;
        let stored = |registers| build(params, (0..registers).map(|index| index | (1 << log2m)));
        let (sparse, edge) = (stored(enough - 1), stored(enough));
        let (sparse, edge) = (Packed::read(&sparse).unwrap(), Packed::read(&edge).unwrap());
        assert_eq!((sparse.kind(), edge.kind()), (Kind::Sparse, Kind::Full));
        assert!(edge.add(1, Packing::BySize).is_ok());
        assert!(edge.union(&sparse, Packing::BySize).is_ok());
        assert!(sparse.union(&edge, Packing::BySize).is_ok());
        assert!(edge.union(&edge, Packing::BySize).is_ok());
        assert_eq!(sparse.add(1, Packing::BySize).unwrap_err(), Stop::Load);
        assert_eq!(sparse.union(&sparse, Packing::BySize).unwrap_err(), Stop::Load);
        let one_more = Packing::UpTo(enough as usize);
        assert_eq!(edge.add(1, one_more).unwrap_err(), Stop::Load);
    }
}

/// For every number of registers and width: the fold of a sketch of some hashes is the sketch of these hashes.
#[test]
fn folding_equals_building_with_fewer_registers() {
    let mut x = 0x2545_f491_4f6c_dd1d_u64;
    for log2m in 0..=17 {
        for width in 1..=7 {
            let seed = x;
            let count = [3, 40, 700, 3000][(log2m + width) as usize % 4];
            let hashes: Vec<i64> = std::iter::repeat_with(|| {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                // Some with many zeros, which small registers cannot hold.
                if x >> 62 == 0 { x & 0xffff_0000_00ff_ffff } else { x }
            })
            .filter(|hash| hash >> log2m != 0)
            .take(count)
            .map(|hash| hash as i64)
            .collect();
            let (threshold, sparse) = ([-1, 0, 64][count % 3], i64::from(seed >> 40 & 1 == 1));
            let stored = build(params(log2m, width, threshold, sparse), hashes.iter().copied());
            for fewer in (0..=log2m).rev().step_by(if log2m > 12 { 3 } else { 1 }) {
                let expected = build(params(fewer, width, threshold, sparse), hashes.iter().copied());
                assert!(
                    fold(&stored, fewer as u32) == expected,
                    "{count} hashes from {seed:#x}, width {width}, log2m {log2m} to {fewer}"
                );
            }
        }
    }
}

#[test]
fn a_hash_without_a_rest_appears_when_its_registers_are_folded_only_if_it_is_stored() {
    // At log2m 11 this hash is the number of a register and nothing else.
    let hidden = 1024;
    let explicit = build(params(11, 5, 1, 1), [hidden]);
    assert_eq!(fold(&explicit, 10), build(params(10, 5, 1, 1), [hidden]));
    let registers = build(params(11, 5, 0, 1), [hidden]);
    assert_eq!(hex(&fold(&registers, 10)), "138a40");
}

#[test]
fn a_sketch_cannot_be_folded_to_more_registers() {
    use crate::error::Explain;
    let error = Params::default().fold(14).unwrap_err();
    assert_eq!(error.to_string(), "cannot fold a sketch of log2m 11 to log2m 14");
    assert_eq!(error.sqlstate(), "22023");
    assert_eq!(
        error.hint().unwrap(),
        "Folding takes registers away: give a log2m up to 11, or build the sketch again with more registers."
    );
    for out_of_range in [-1, 18, 300, i64::MAX] {
        assert_eq!(Params::default().fold(out_of_range), Err(Error::Log2m));
    }
    assert_eq!(Params::default().fold(11), Ok(Params::default()));
    // The state decides how far: one with other parameters takes nothing.
    let mut other = Owned::new(params(10, 4, -1, 1));
    let stored = build(Params::default(), [1]);
    let error = other.state().fold(&Packed::read(&stored).unwrap()).unwrap_err();
    assert!(matches!(error, Stop::Error(Error::Mismatch { .. })), "{error:?}");
}

/// Over many sets: no bias, and the error that the theory promises, also where the classic formula has a bump.
#[test]
fn estimates_have_no_bias_and_the_promised_error() {
    const TRIALS: u64 = 300;
    for count in [500u64, 3000, 5000, 10000] {
        let (mut sum, mut squares) = (0.0, 0.0);
        for trial in 0..TRIALS {
            let mut state = Owned::new(Params::default());
            for value in 0..count {
                state.add(canon::integer(((trial << 32) | value) as i64));
            }
            let estimate = state.state().estimate(Estimator::Ertl).unwrap().unwrap();
            let error = estimate / count as f64 - 1.0;
            sum += error;
            squares += error * error;
        }
        let (bias, rmse) = (sum / TRIALS as f64, (squares / TRIALS as f64).sqrt());
        let promised = Params::default().relative_error();
        // The mean of so many trials strays by its own standard error; four of them never happen.
        assert!(bias.abs() < 4.0 * promised / (TRIALS as f64).sqrt(), "{count} values: bias {bias}");
        assert!(rmse < 1.15 * promised, "{count} values: error {rmse}, promised {promised}");
    }
}
