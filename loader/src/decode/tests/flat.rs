//! The way of flat messages against the general one: the same rows, reasons and columns for all messages.

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

/// Programs with every kind that a value is decided by on its way.
fn programs() -> Vec<Program> {
    let few = ["int4", "int8", "timestamptz", "text", "float8"];
    let all = [
        "int2", "oid", "float4", "numeric", "bool", "uuid", "date", "json", "jsonb", "bytea", "interval", "text",
        "float8",
    ];
    let columns = |bases: &[&str]| -> Vec<_> { bases.iter().map(|base| column(base, base)).collect() };
    let mut short = TableColumn { typmod: 4 + 25, not_null: true, ..column("varchar", "varchar") };
    short.default = TableDefault::Constant { text: "'x'".into(), bytes: b"x".to_vec(), input: "x".into() };
    let list = TableColumn { element: Some(23), declared: "int4[]".into(), ..column("list", "int4") };
    let mut partitioned = table(columns(&few));
    partitioned.leaves = Leaves::Range(RangeLeaves::new("timestamptz".into(), vec![(0, 1 << 51)]));
    let mut odd = columns(&["int8", "timestamptz", "float8", "text"]);
    odd.extend([short, list]);
    let names = ["a\"b", "é", "c\\n", "a longer name", "a longer name too"].map(|name| column(name, "int4"));
    let mut kept = columns(&["extra", "int8", "text"]);
    kept[0].base = "jsonb".into();
    let odd_rules = "columns.int8 = { digits_in_string = true }\n\
                     columns.float8 = { digits_in_string = true }\n\
                     columns.timestamptz = { time = \"epoch-s\", default = \"broker-timestamp\" }\n\
                     columns.text = { from = \"_key\" }";
    [
        (table(columns(&few)), ""),
        (table(columns(&few)), "unknown_fields = \"reject\"\ncolumns.int8 = { required = true }"),
        (partitioned, "columns.text = { max_length = 25 }"),
        (table(columns(&all)), ""),
        (table(odd), odd_rules),
        (table(names.to_vec()), ""),
        (table(kept), "unknown_fields = { column = \"extra\" }"),
    ]
    .iter()
    .map(|(table, rules)| compile(table, rules).unwrap())
    .collect()
}

const BLANKS: [&str; 8] = ["", "", "", "", "", " ", "\t \r\n", "\u{b}"];

const OTHER_NAMES: [&str; 11] =
    ["x", "", "a\\\"b", "a\"b", "é", "\\u00e9", "c\\n", "c\\\\n", "te\\u0078t", "x\0", "\\ud800"];

const VALUES: &[&str] = &[
    // Of every type, so that most fields are taken.
    "0",
    "7",
    "-7",
    "60026",
    "24097284161",
    "-32768",
    "32768",
    "2147483648",
    "9223372036854775807",
    "-9223372036854775808",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "12345678",
    "1234567890123456789",
    "-0",
    "0.0",
    "-0.0",
    "1.5",
    "2647.08",
    "0.1",
    "9007199254740993",
    "9007199254740993.0",
    "0.30000000000000004",
    "5e-324",
    "1e-400",
    "1e309",
    "1E5",
    "1e+5",
    "16777217",
    "123456789012345678901234567890.5",
    "0.0000000000000000000001",
    "1.7976931348623157e308",
    // No numbers.
    "01",
    "-",
    "+1",
    ".5",
    "5.",
    "1e",
    "-01",
    "NaN",
    "1x",
    "0x1",
    "1_0",
    "true",
    "false",
    "null",
    "nul",
    "nullx",
    "tru",
    r#""""#,
    r#""page 4569""#,
    r#""7""#,
    r#""1.5""#,
    r#""a\"b""#,
    r#""\u0000""#,
    r#""\ud83d\ude00""#,
    r#""\ud800""#,
    "\"ä\u{1f600}öü\"",
    "\"a\nb\"",
    "\"open",
    r#""bad \x""#,
    r#""12345678""#,
    r#""2025-01-01T00:00:00.01+00:00""#,
    r#""2025-02-30T00:00:00Z""#,
    r#""00112233-4455-6677-8899-aabbccddeeff""#,
    r#""2025-01-31""#,
    r#""P1D""#,
    r#""\\x00ff""#,
    "[]",
    "[1, 2, null]",
    "[[1], 2]",
    r#"{"page": "x", "n": [1, {"y": "]"}]}"#,
    r#"{"a": 1"#,
];

/// A message that is mostly an object, mostly with the fields of the program, mostly in their order.
fn random_message(random: &mut ChaCha8Rng, program: &Program) -> Vec<u8> {
    let blanks = |random: &mut ChaCha8Rng| BLANKS[if random.random_bool(0.05) { random.random_range(0..8) } else { 0 }];
    let mut text = blanks(random).to_owned() + "{";
    let mut columns: Vec<_> = program.columns.iter().map(|column| (&*column.name, &*column.declared)).collect();
    if random.random_bool(0.2) {
        let (one, other) = (random.random_range(0..columns.len()), random.random_range(0..columns.len()));
        columns[one] = columns[other];
    }
    let mut separator = "";
    for (name, declared) in columns {
        if random.random_bool(0.1) {
            continue;
        }
        let name = match random.random_bool(0.05) {
            true => format!("\"{}\"", OTHER_NAMES.choose(random).unwrap()),
            false => serde_json::Value::from(name).to_string(),
        };
        text = text + separator + blanks(random) + &name + blanks(random) + ":" + blanks(random);
        text += &random_value(random, declared);
        text += blanks(random);
        separator = if random.random_bool(0.01) { ",," } else { "," };
    }
    text += "}";
    text += blanks(random);
    if random.random_bool(0.02) {
        text += ["}", "x", "{}", "\0", ","].choose(random).unwrap();
    }
    let mut bytes = text.into_bytes();
    if random.random_bool(0.15) {
        let at = random.random_range(0..bytes.len());
        match random.random_range(0..4) {
            0 => bytes.truncate(at),
            1 => bytes[at] = random.random(),
            2 => bytes.insert(at, *b"\"\\{}[],:0-e. \0\x80\xff".choose(random).unwrap()),
            _ => _ = bytes.remove(at),
        }
    }
    bytes
}

fn random_value(random: &mut ChaCha8Rng, declared: &str) -> String {
    if random.random_bool(0.05) {
        return (*VALUES.choose(random).unwrap()).to_owned();
    }
    if random.random_bool(0.002) {
        let depth = random.random_range(100..1_100);
        return "[".repeat(depth) + &"]".repeat(depth);
    }
    match declared {
        "int2" | "oid" => random.random_range(0..32_768).to_string(),
        "int4" => random.random::<i32>().to_string(),
        "int8" => (random.random::<i64>() >> random.random_range(0..64)).to_string(),
        "float4" | "float8" | "numeric" => match random.random_range(0..4) {
            0 => random.random::<f64>().to_string(),
            1 => format!("{:e}", f64::from_bits(random.random())),
            2 => format!("{}", f64::from_bits(random.random())),
            _ => format!("{:.*}", random.random_range(0..20), random.random_range(-1e5..1e5)),
        },
        "bool" => random.random_bool(0.5).to_string(),
        "timestamptz" => match random.random_range(0..3) {
            0 => random.random_range(-1_000_000_000_000i64..4_000_000_000_000).to_string(),
            _ => {
                let time = jiff::Timestamp::from_microsecond(random.random_range(0..4_000_000_000_000_000)).unwrap();
                format!("\"{time}\"")
            }
        },
        "text" | "varchar" | "json" | "jsonb" => {
            let characters = ["a", "b", "7", " ", "é", "\u{1f600}", "\\n", "\\\"", "\\u0041", "/", "}", "\u{7f}"];
            let odd = random.random_bool(0.1);
            let mut text = "\"".to_owned();
            for _ in 0..random.random_range(0..30) {
                text += characters[random.random_range(0..if odd { 12 } else { 4 })];
            }
            text + "\""
        }
        "uuid" => format!("\"{}\"", uuid::Uuid::from_u128(random.random())),
        "int4[]" => "[1, null]".to_owned(),
        "date" => format!("\"2025-01-{:02}\"", random.random_range(1..32)),
        "bytea" => format!("\"\\\\x{:04x}\"", random.random::<u16>()),
        "interval" => format!("\"P{}DT{}S\"", random.random::<u8>(), random.random::<u8>()),
        _ => (*VALUES.choose(random).unwrap()).to_owned(),
    }
}

#[test]
fn flat_messages_have_the_outcome_of_the_general_way() {
    let seed: u64 = std::env::var("TALLY_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("TALLY_SEED={seed}");
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let (mut all_flat, mut all_rows) = (0, 0);
    for program in programs() {
        let general_program = Program { is_flat: false, ..program.clone() };
        let (mut decoder, mut general_decoder) = (Decoder::default(), Decoder::default());
        let (mut flat, mut rows) = (0, 0);
        let count = 5_000;
        for _ in 0..count {
            let value = random_message(&mut random, &program);
            let (mut out, mut expected) = (b"before".to_vec(), b"before".to_vec());
            decoder.clear(&program);
            flat += i32::from(decoder.decode_flat(&program, &value, &mut out).is_some());
            out.truncate(6);
            let outcome = decoder.decode(&program, "t", message(&value), &mut out);
            let general = general_decoder.decode(&general_program, "t", message(&value), &mut expected);
            rows += i32::from(general == Outcome::Row);
            assert_eq!((outcome, out), (general, expected), "{}", value.escape_ascii());
        }
        assert!(rows > count / 10 && rows < count, "{rows} rows:\n{program}");
        (all_flat, all_rows) = (all_flat + flat, all_rows + rows);
    }
    // Otherwise the general way would be compared with itself.
    assert!(all_flat > all_rows / 2, "{all_flat} flat of {all_rows} rows");
}

#[test]
fn usual_messages_are_flat() {
    let program = &programs()[0];
    for (value, expected) in [
        (
            r#"{"int4":60026,"int8":24097284161,"timestamptz":"2025-01-01T00:00:00.01+00:00","text":"page 4569","float8":2647.08}"#,
            Flat::Row,
        ),
        (
            r#" {"text": "a \"quote\"", "x": {"y": []}, "float8": 0.30000000000000004, "int4": null, "z": [1]} "#,
            Flat::Slots,
        ),
    ] {
        let mut decoder = Decoder::default();
        decoder.clear(program);
        let outcome = decoder.decode_flat(program, value.as_bytes(), &mut Vec::new());
        assert_eq!(outcome, Some(expected), "{value}");
    }
}
