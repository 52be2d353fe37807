//! Parameters, hashes and values for operations, and how they are written in SQL.

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;

use super::stored::Stored;

/// log2m, regwidth, expthresh and sparseon.
#[derive(Clone, Copy, Debug)]
pub struct Parameters {
    pub log2m: i64,
    pub width: i64,
    pub threshold: i64,
    pub sparse: i64,
}

impl Parameters {
    pub fn random(rng: &mut StdRng) -> Parameters {
        const SIZES: &[(u32, (i64, i64))] = &[(15, (0, 3)), (50, (4, 8)), (25, (9, 11)), (8, (12, 14)), (2, (15, 17))];
        if rng.random_ratio(1, 10) {
            return Parameters { log2m: 11, width: 5, threshold: -1, sparse: 1 };
        }
        let (least, most) = SIZES.choose_weighted(rng, |size| size.0).expect("one of them").1;
        let threshold = match rng.random_range(0..10) {
            0..3 => -1,
            3..5 => 0,
            5..8 => 1 << rng.random_range(0..6),
            _ => 1 << rng.random_range(0..14),
        };
        Parameters {
            log2m: rng.random_range(least..=most),
            width: if rng.random_bool(0.3) { 5 } else { rng.random_range(1..=7) },
            threshold,
            sparse: i64::from(rng.random_bool(0.65)),
        }
    }

    pub fn small(rng: &mut StdRng) -> Parameters {
        Parameters { log2m: rng.random_range(0..=8), ..Parameters::random(rng) }
    }

    pub fn of(sketch: &Stored) -> Parameters {
        let (log2m, width) = (i64::from(sketch.log2m()), i64::from(sketch.width()));
        Parameters { log2m, width, threshold: sketch.threshold(), sparse: sketch.sparse() }
    }

    pub fn list(self) -> [i64; 4] {
        [self.log2m, self.width, self.threshold, self.sparse]
    }

    /// How many hashes to collect: where something changes, with more weight than by chance.
    pub fn hashes(self, rng: &mut StdRng) -> u64 {
        const MOST: u64 = 40_000;
        let registers = 1u64 << self.log2m;
        let threshold = match self.threshold {
            -1 => registers * self.width as u64 / 64,
            specified => specified as u64,
        };
        // So many registers take as much space in a list as all of them together.
        let sparse = registers * self.width as u64 / (self.log2m + self.width) as u64;
        match rng.random_range(0..20) {
            0..7 => rng.random_range(0..=8),
            7..11 => (threshold + rng.random_range(0..=3)).saturating_sub(1).min(MOST),
            11..15 => (sparse + rng.random_range(0..=4)).saturating_sub(2).min(MOST),
            15..18 => rng.random_range(0..=registers.min(2_000)),
            18 => rng.random_range(0..=(2 * registers).min(MOST)),
            _ => rng.random_range(0..=(8 * registers).min(2_000)),
        }
    }
}

/// One of the parameters becomes one that is refused, now and then.
pub fn spoil(rng: &mut StdRng, parameters: &mut [i64]) {
    if parameters.is_empty() || !rng.random_ratio(1, 15) {
        return;
    }
    let place = rng.random_range(0..parameters.len());
    let bad: &[i64] = match place {
        0 => &[18, -1, 31, 32, 255, i32::MAX as i64, i32::MIN as i64],
        1 => &[8, -1, 32, i32::MIN as i64],
        2 => &[3, 5, -2, 100, 8191, 8193, 16383, 16384, i32::MIN as i64, i64::MAX, i64::MIN, 1 << 32],
        _ => &[2, -1, i32::MAX as i64],
    };
    parameters[place] = *bad.choose(rng).expect("a bad one");
}

/// An integer of SQL that fits as it stands into a parameter of type integer or bigint.
pub fn integer(number: i64) -> String {
    match i32::try_from(number) {
        Ok(i32::MIN) => format!("'{number}'::integer"),
        Ok(_) => number.to_string(),
        Err(_) => format!("'{number}'::bigint"),
    }
}

pub fn hash_number(rng: &mut StdRng) -> i64 {
    match rng.random_range(0..10) {
        0..5 => rng.random(),
        5 => rng.random_range(-3..64),
        // A register of its own with a large value.
        6..8 => (rng.random::<i64>() | 1) << rng.random_range(0..64),
        8 => i64::from(rng.random::<u8>()) << rng.random_range(0..60),
        _ => *[0, 1, -1, i64::MIN, i64::MAX, i64::MIN + 1].choose(rng).expect("one of them"),
    }
}

pub fn hash_literal(rng: &mut StdRng) -> String {
    let number = hash_number(rng);
    match rng.random_range(0..4) {
        0 => format!("'{number}'::bigint::hll_hashval"),
        1 => format!("'{}'::integer::hll_hashval", number as i32),
        _ => format!("'{number}'::hll_hashval"),
    }
}

/// A query for the column `hash`.
pub fn hashes(rng: &mut StdRng, count: u64) -> String {
    if count <= 30 && rng.random_bool(0.7) {
        let numbers: Vec<String> = (0..count)
            .map(|_| if rng.random_ratio(1, 20) { "NULL".to_owned() } else { hash_number(rng).to_string() })
            .collect();
        return format!("SELECT v::hll_hashval AS hash FROM unnest('{{{}}}'::bigint[]) AS v", numbers.join(","));
    }
    let start: i64 = rng.random_range(-1_000..100_000);
    let seed = if rng.random_ratio(1, 4) { rng.random_range(0..3) } else { 0 };
    let value = match rng.random_range(0..8) {
        0 => format!("hll_hash_integer(i::integer, {seed})"),
        1 => format!("hll_hash_text(i::text, {seed})"),
        2 => format!("hll_hash_any(i::numeric, {seed})"),
        3 => format!("hll_hash_smallint((i % 1000)::smallint, {seed})"),
        4 => "(i << (abs(i) % 50)::integer)::hll_hashval".to_owned(),
        _ => format!("hll_hash_bigint(i, {seed})"),
    };
    let end = start + count as i64 - 1;
    format!("SELECT {value} AS hash FROM generate_series({start}::bigint, {end}::bigint) AS i")
}

/// The last argument of a hash function, or none. A negative one gives a warning.
pub fn seed(rng: &mut StdRng) -> String {
    match rng.random_range(0..6) {
        0..2 => String::new(),
        2 => format!(", {}", integer(i64::from(rng.random::<i32>()))),
        3 => ", -1".to_owned(),
        _ => format!(", {}", rng.random_range(0..1_000)),
    }
}

/// Around the blocks of the hash function, and longer now and then.
pub fn length(rng: &mut StdRng) -> usize {
    if rng.random_ratio(1, 40) { rng.random_range(100..5_000) } else { rng.random_range(0..50) }
}

pub fn text_literal(rng: &mut StdRng) -> String {
    const LETTERS: &[char] = &['a', 'b', 'Z', '0', ' ', 'é', 'ß', '語', '😀', '\u{301}'];
    let text: String = (0..length(rng)).map(|_| *LETTERS.choose(rng).expect("a letter")).collect();
    format!("'{text}'")
}

pub fn bytes_literal(rng: &mut StdRng) -> String {
    let bytes: Vec<u8> = (0..length(rng)).map(|_| rng.random()).collect();
    format!("'{}'::bytea", hex(&bytes))
}

/// A value of any type: each length, by value and by reference. Without what the peer hashes by its pointer.
pub fn any_value(rng: &mut StdRng) -> String {
    let number: i64 = if rng.random_bool(0.5) { rng.random_range(-5..300) } else { rng.random() };
    let (small, fraction) = (number.rem_euclid(20_000), rng.random_range(-1e9..1e9));
    match rng.random_range(0..34) {
        0 => format!("{}::boolean", number % 2 == 0),
        1 => format!("'{}'::\"char\"", char::from(b'a' + (small % 26) as u8)),
        2 => format!("'{}'::smallint", number as i16),
        3 => format!("'{}'::integer", number as i32),
        4 => format!("'{number}'::bigint"),
        5 => format!("'{}'::oid", number as u32),
        6 => format!("'{fraction}'::real"),
        7 => format!("'{fraction}'::double precision"),
        8 => format!("'{}'::double precision", ["NaN", "-0", "0", "Infinity"][(small % 4) as usize]),
        9 => format!("'{number}.{small}00'::numeric"),
        10 => format!("'2000-01-01'::date + {small}"),
        11 => format!("'2000-01-01'::timestamp + '{small} seconds'"),
        12 => format!("'2000-01-01 00:00Z'::timestamptz + '{small} hours'"),
        13 => format!("'00:00'::time + '{small} seconds'"),
        14 => format!("'00:00+{:02}'::timetz + '{small} seconds'::interval", small % 14),
        15 => format!("'{small} days {small} microseconds'::interval"),
        16 => format!("'{:032x}'::uuid", rng.random::<u128>()),
        17 => format!("'10.{}.0.{}/24'::inet", small % 256, small % 200),
        18 => format!("'10.{}.0.0/16'::cidr", small % 256),
        19 => format!("'{:012x}'::macaddr", number as u64 & 0xffff_ffff_ffff),
        20 => format!("{}::varchar", text_literal(rng)),
        21 => format!("{}::text", text_literal(rng)),
        22 => format!("'{number}'::name"),
        23 => format!("'{number}'::char(20)"),
        24 => format!("'{:b}'::varbit", number as u64),
        25 => format!("'{:08b}'::bit(8)", small % 256),
        26 => format!("'{{\"a\": [{number}, {fraction}, null]}}'::jsonb"),
        27 => format!("'{{\"a\": {number}}}'::json"),
        28 => format!("'{{{small},NULL,{}}}'::integer[]", number as i32),
        29 => format!("'[{},{})'::int8range", small, small + 5),
        30 => format!("'({fraction},{small})'::point"),
        31 => format!("'{small}.25'::money"),
        32 => format!("'{:X}/{small:X}'::pg_lsn", number as u32),
        _ => bytes_literal(rng),
    }
}

pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
    let mut text = String::with_capacity(2 + 2 * bytes.len());
    text.push_str("\\x");
    for byte in bytes {
        text.push(DIGITS[usize::from(byte >> 4)]);
        text.push(DIGITS[usize::from(byte & 15)]);
    }
    text
}

/// The other text form of bytea, for a string of SQL.
pub fn escapes(bytes: &[u8]) -> String {
    bytes
        .iter()
        .map(|byte| match byte {
            b'\\' => "\\\\".to_owned(),
            b'\'' => "''".to_owned(),
            0x20..0x7f => char::from(*byte).to_string(),
            _ => format!("\\{byte:03o}"),
        })
        .collect()
}
