//! The same values through the loader and through text COPY give the same table.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::loading::Loading;

/// A value as JSON and as text for the type's input function; `None` is NULL.
type Value = Option<(String, String)>;

/// A column: its type, the settings of its field, and how to make a value. The first rounds are the extremes.
struct Type {
    sql: &'static str,
    rule: &'static str,
    extremes: &'static [&'static str],
    /// JSON needs quotes around the text.
    quoted: bool,
    random: fn(&mut ChaCha8Rng) -> (String, String),
}

fn plain(text: impl ToString) -> (String, String) {
    (text.to_string(), text.to_string())
}

fn quoted(text: impl ToString) -> (String, String) {
    let text = text.to_string();
    (serde_json::Value::from(text.as_str()).to_string(), text)
}

fn digits(random: &mut ChaCha8Rng, most: usize) -> String {
    let count = random.random_range(1..=most);
    (0..count).map(|at| char::from(b'0' + random.random_range(u8::from(at == 0 && count > 1)..10))).collect()
}

fn number(random: &mut ChaCha8Rng, most: usize) -> String {
    let mut text = format!("{}{}", if random.random() { "-" } else { "" }, digits(random, most));
    if random.random() {
        text.push('.');
        text.push_str(&digits(random, most));
    }
    text
}

fn timestamp(random: &mut ChaCha8Rng) -> (String, String) {
    let at = random.random_range(-62_135_596_800_000_000..253_402_207_200_000_000);
    quoted(jiff::Timestamp::from_microsecond(at).unwrap())
}

fn clock(random: &mut ChaCha8Rng) -> String {
    let mut text = format!("{:02}:{:02}", random.random_range(0..24), random.random_range(0..60));
    if random.random() {
        text.push_str(&format!(":{:02}", random.random_range(0..60)));
        if random.random() {
            text.push_str(&format!(".{}", digits(random, 6)));
        }
    }
    text
}

fn interval(random: &mut ChaCha8Rng) -> (String, String) {
    let mut part = |unit: &str| match random.random_range(0..3) {
        0 => String::new(),
        1 => format!("{}{unit}", random.random_range(-500..500)),
        _ => format!("{}{unit}", random.random_range(0..20)),
    };
    let text = format!("P{}{}{}{}T{}{}", part("Y"), part("M"), part("W"), part("D"), part("H"), part("M"));
    let units = [" years ", " mons ", " days "].map(&mut part).concat();
    if random.random() {
        return quoted(format!(
            "{text}{}{}S",
            if random.random() { "-" } else { "" },
            number(random, 6).trim_start_matches('-')
        ));
    }
    let sign = ["", "-", "+"][random.random_range(0..3)];
    let fraction = digits(random, 6);
    quoted(format!(
        "{units}{sign}{}:{:02}:{:02}.{fraction}",
        random.random_range(0..9_999),
        random.random_range(0..60),
        random.random_range(0..60)
    ))
}

fn text(random: &mut ChaCha8Rng) -> (String, String) {
    let strings = [
        "",
        " ",
        "null",
        "NULL",
        "\\N",
        "\\.",
        "a\tb\nc\rd",
        "\"quoted\" and 'quoted'",
        "back\\slash",
        "{a,b}",
        "\u{1F600} \u{7f}\u{1}\u{b}\u{c}\u{8}",
        "'; DROP TABLE t; --",
    ];
    quoted(strings[random.random_range(0..strings.len())])
}

fn json(random: &mut ChaCha8Rng) -> (String, String) {
    plain(match random.random_range(0..6) {
        0 => "[]".into(),
        1 => "\"\\t\\\\N\"".into(),
        2 => "\"null\"".into(),
        _ => format!(
            "{{\"k{}\": [1.50, {}, \"x\\u00e9\\\\\", null, true, {{\"\": [], \"é\": \n 1}}]}}",
            random.random_range(0..100),
            number(random, 20)
        ),
    })
}

fn address(random: &mut ChaCha8Rng, is_cidr: bool) -> (String, String) {
    use std::net::{Ipv4Addr, Ipv6Addr};
    let v6: bool = random.random();
    let most: u32 = if v6 { 128 } else { 32 };
    let bits = random.random_range(0..=most);
    let address: u128 = if v6 { random.random() } else { random.random::<u32>().into() };
    let host = u128::MAX.checked_shr(128 - (most - bits)).unwrap_or(0);
    let address = if is_cidr { address & !host } else { address };
    let address = match v6 {
        true => Ipv6Addr::from(address).to_string(),
        false => Ipv4Addr::from(address as u32).to_string(),
    };
    quoted(if !is_cidr && random.random() { address } else { format!("{address}/{bits}") })
}

fn bytes(random: &mut ChaCha8Rng) -> Vec<u8> {
    let count = random.random_range(0..20);
    (0..count).map(|_| random.random()).collect()
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold("\\x".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

fn types() -> Vec<Type> {
    let new = |sql, extremes, quoted, random| Type { sql, rule: "", extremes, quoted, random };
    vec![
        new("boolean", &["true", "false"], false, |random| plain(random.random::<bool>())),
        new("smallint", &["-32768", "32767", "0"], false, |random| plain(random.random::<i16>())),
        new("int", &["-2147483648", "2147483647", "0"], false, |random| plain(random.random::<i32>())),
        new("bigint", &["-9223372036854775808", "9223372036854775807", "0"], false, |random| {
            plain(random.random::<i64>())
        }),
        new("oid", &["0", "4294967295", "2147483648"], false, |random| plain(random.random::<u32>())),
        new("real", &["3.4028235e38", "-1e-45", "-0", "0.1"], false, |random| {
            let value = f32::from_bits(random.random());
            plain(if value.is_finite() { value } else { 1.0 })
        }),
        new(
            "double precision",
            &["1.7976931348623157e308", "5e-324", "-0", "0.1", "9007199254740993"],
            false,
            |random| {
                let value = f64::from_bits(random.random());
                plain(format!("{:e}", if value.is_finite() { value } else { 1.0 }))
            },
        ),
        new(
            "numeric",
            &[
                "0",
                "-0.00",
                "1e131071",
                "1e-16383",
                "10000",
                "0.0001",
                "12e4",
                "123456789012345678901234567890.123456789",
            ],
            false,
            |random| {
                let exponent = random.random_range(-40..40);
                plain(if random.random() { format!("{}e{exponent}", number(random, 5)) } else { number(random, 30) })
            },
        ),
        new("numeric(12, 3)", &["999999999.999", "-999999999.9994", "0.0005", "-0.0005"], false, |random| {
            plain(number(random, 9))
        }),
        new("text", &[""], true, text),
        new("varchar(5)", &["", "äöüßé", "abc     "], true, |random| {
            quoted(["", "é\n\t\\", "abc  "][random.random_range(0..3)])
        }),
        new("char(4)", &["", "äöü"], true, |random| quoted(["", "ab", "a\tb", "\"\\"][random.random_range(0..4)])),
        new("public.mood", &["sad", "it's \"fine\"", "two\\words, {x}"], true, |random| {
            quoted(["sad", "it's \"fine\"", "two\\words, {x}"][random.random_range(0..3)])
        }),
        new("public.feeling", &["sad"], true, |_| quoted("sad")),
        new(
            "timestamptz",
            &["0001-01-01T00:00:00Z", "9999-12-31T22:59:59.999999-01:00", "1969-12-31T23:59:59.999999Z"],
            true,
            timestamp,
        ),
        new("timestamptz(3)", &[], true, timestamp),
        new(
            "timestamp",
            &["0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z", "1999-12-31T23:59:59.999999Z"],
            true,
            timestamp,
        ),
        new("date", &["0001-01-01", "9999-12-31", "2000-02-29", "1999-12-31"], true, |random| {
            let day = jiff::Timestamp::from_second(random.random_range(-62_135_596_800..253_402_207_200)).unwrap();
            quoted(&day.to_string()[..10])
        }),
        new("time", &["00:00", "24:00:00", "23:59:60", "23:59:59.999999"], true, |random| quoted(clock(random))),
        new("time(2)", &["23:59:59.999"], true, |random| quoted(clock(random))),
        new("timetz", &["00:00:00Z", "24:00:00-15:59:59", "00:00+15:59", "12:30:00.5+02"], true, |random| {
            let zone = random.random_range(0..15);
            let sign = if random.random() { '-' } else { '+' };
            let rest = ["", ":30", ":45:10"][random.random_range(0..3)];
            quoted(format!("{}{sign}{zone:02}{rest}", clock(random)))
        }),
        new(
            "interval",
            &[
                "PT0S",
                "00:00:00",
                "P178956970Y7M",
                "P-178956970Y-8M",
                "P2147483647D",
                "P-2147483648D",
                "2562047788:00:54.775807",
                "-2562047788:00:54.775807",
                "1 year 2 mons -3 days +04:05:06.789",
                "PT-0.000001S",
            ],
            true,
            interval,
        ),
        new("interval day to minute", &[], true, interval),
        new(
            "uuid",
            &["00000000-0000-0000-0000-000000000000", "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF"],
            true,
            |random| quoted(uuid::Uuid::from_u128(random.random())),
        ),
        new("bytea", &["\\x", "\\x00", "\\xDEADbeef"], true, |random| quoted(hexadecimal(&bytes(random)))),
        Type {
            rule: "bytes = \"base64\"",
            ..new("bytea", &[], true, |random| {
                use base64::Engine;
                let bytes = bytes(random);
                (format!("\"{}\"", base64::engine::general_purpose::STANDARD.encode(&bytes)), hexadecimal(&bytes))
            })
        },
        new("json", &[], false, json),
        new("jsonb", &[], false, json),
        new("inet", &["0.0.0.0", "255.255.255.255/0", "::", "::ffff:1.2.3.4/100"], true, |random| {
            address(random, false)
        }),
        new("cidr", &["0.0.0.0/0", "255.255.255.255", "::/0"], true, |random| address(random, true)),
        new("public.positive", &["1", "9223372036854775807"], false, |random| plain(random.random_range(1..i64::MAX))),
        new("public.price", &["999.99", "-999.994"], false, |random| plain(number(random, 3))),
    ]
}

const DDL: &str = "
    CREATE TYPE public.mood AS ENUM ('sad', 'it''s \"fine\"', 'two\\words, {x}');
    CREATE DOMAIN public.feeling AS public.mood CHECK (VALUE = 'sad');
    CREATE DOMAIN public.positive AS bigint CHECK (VALUE > 0);
    CREATE DOMAIN public.price AS numeric(5, 2);
    CREATE DOMAIN public.row3 AS int[] CHECK (array_length(VALUE, 1) = 3);
    CREATE TYPE public.pair AS (a int, b text);";

impl Type {
    fn value(&self, round: usize, random: &mut ChaCha8Rng) -> (String, String) {
        match self.extremes.get(round) {
            Some(text) if self.quoted => quoted(text),
            Some(text) => plain(text),
            None => (self.random)(random),
        }
    }

    /// An array of such values, with one to three dimensions, and sometimes NULLs in it.
    fn array(&self, round: usize, random: &mut ChaCha8Rng) -> (String, String) {
        let most = if self.sql.starts_with("json") { 1 } else { 3 };
        let lengths: Vec<usize> = (0..random.random_range(0..=most)).map(|_| random.random_range(1..=3)).collect();
        if lengths.is_empty() { ("[]".into(), "{}".into()) } else { self.part(round, &lengths, random) }
    }

    fn part(&self, round: usize, lengths: &[usize], random: &mut ChaCha8Rng) -> (String, String) {
        let (mut json, mut text) = (Vec::new(), Vec::new());
        for _ in 0..lengths[0] {
            let (one, other) = if lengths.len() > 1 {
                self.part(round, &lengths[1..], random)
            } else if random.random_ratio(1, 6) {
                plain_null()
            } else {
                let (json, text) = self.value(round, random);
                (json, format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")))
            };
            json.push(one);
            text.push(other);
        }
        (format!("[{}]", json.join(", ")), format!("{{{}}}", text.join(",")))
    }
}

fn plain_null() -> (String, String) {
    ("null".into(), "NULL".into())
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\t', "\\t").replace('\n', "\\n").replace('\r', "\\r")
}

/// A seed of its own for each run; `TALLY_SEED` repeats one.
fn seeded() -> ChaCha8Rng {
    let seed: u64 = std::env::var("TALLY_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("TALLY_SEED={seed}");
    ChaCha8Rng::seed_from_u64(seed)
}

/// Loads random rows of all types through the loader and by text COPY, and compares the tables. Further columns have types that
/// only their input functions can read: (type, text).
fn compare(rows: usize, others: &[(&str, &str)]) {
    let mut random = seeded();
    let types = types();
    let mut columns = Vec::new();
    let mut rules = String::new();
    for (index, column) in types.iter().enumerate() {
        columns.push(format!("c{index} {}, a{index} {}[]", column.sql, column.sql));
        if !column.rule.is_empty() {
            rules.push_str(&format!("columns.c{index} = {{ {0} }}\ncolumns.a{index} = {{ {0} }}\n", column.rule));
        }
    }
    columns.extend(others.iter().enumerate().map(|(index, (sql, _))| format!("o{index} {sql}")));
    columns.push("r public.row3".into());
    let table =
        format!("CREATE TABLE public.t ({}); CREATE TABLE public.expected (LIKE public.t);", columns.join(", "));
    let mut loading = Loading::new(1, &format!("{DDL}{table}"));
    loading.target = rules;
    let mut copied = String::new();
    for round in 0..rows {
        let mut row: Vec<(String, Value)> = Vec::new();
        for (index, column) in types.iter().enumerate() {
            row.push((format!("c{index}"), Some(column.value(round, &mut random))));
            row.push((format!("a{index}"), Some(column.array(round, &mut random))));
        }
        row.extend(others.iter().enumerate().map(|(index, (_, text))| (format!("o{index}"), Some(quoted(text)))));
        row.push(("r".into(), Some(("[1, null, 3]".into(), "{1,NULL,3}".into()))));
        for (_, value) in &mut row {
            if round > 10 && random.random_ratio(1, 8) {
                *value = None;
            }
        }
        let fields: Vec<String> = row
            .iter()
            .filter_map(|(name, value)| match value {
                Some((json, _)) => Some(format!("\"{name}\": {json}")),
                // NULL is written or left out.
                None if random.random() => Some(format!("\"{name}\": null")),
                None => None,
            })
            .collect();
        loading.produce(0, &format!("{{{}}}", fields.join(", ")));
        let fields: Vec<String> =
            row.iter().map(|(_, value)| value.as_ref().map_or("\\N".into(), |(_, text)| escape(text))).collect();
        copied.push_str(&fields.join("\t"));
        copied.push('\n');
    }
    let mut session = loading.session();
    let mut copy = session.copy_in("COPY public.expected FROM STDIN").unwrap();
    std::io::Write::write_all(&mut copy, copied.as_bytes()).unwrap();
    copy.finish().unwrap();
    loading.load().unwrap();
    assert_eq!(
        loading.texts(
            "SELECT concat_ws(' ', reason, column_name, error, convert_from(value, 'UTF8')) FROM tally.dead_letters"
        ),
        [""; 0]
    );
    assert_eq!(loading.number("SELECT count(*) FROM public.t"), rows as i64);
    // As text: equality would not see a lost zero of a numeric or the sign of a zero.
    for (one, other) in [("t", "expected"), ("expected", "t")] {
        let differences = loading.texts(&format!(
            "SELECT r FROM (SELECT x::text AS r FROM public.{one} x EXCEPT ALL SELECT x::text FROM public.{other} x) d LIMIT 3"
        ));
        assert_eq!(differences, [""; 0], "only in {one}");
    }
}

#[test]
fn binary_copy_stores_what_text_copy_stores() {
    compare(1_000, &[]);
}

#[test]
fn copy_in_text_format_stores_the_same() {
    compare(
        300,
        &[
            ("point", "(1.5,-2)"),
            ("tsvector", "'a\\\\b':1 'it''s'"),
            ("public.pair", "(1,\"x \\\\ \"\"y\"\" \n\")"),
            ("point[]", "{\"(1,2)\",NULL}"),
            ("public.row3[]", "{\"{1,2,3}\"}"),
            ("int4range", "[1,5)"),
            ("xml", "<a>\t\\N</a>"),
            ("\"char\"", "x"),
            ("bit(3)", "101"),
        ],
    );
}

#[test]
fn hostile_values_load_verbatim() {
    let mut loading = Loading::new(
        2,
        "CREATE TABLE public.t (a int, \"odd \"\"name\"\"; DROP TABLE t\" text, extra jsonb, topic text, key text);",
    );
    loading.target = "unknown_fields = { column = \"extra\" }\ncolumns.topic = { from = \"_topic\" }\ncolumns.key = { from = \"_key\" }".into();
    let hostile = [
        "'); DROP TABLE public.t; --",
        "\\",
        "\\N",
        "\\.",
        "$$ $1 %s ${x} {{x}}",
        "\u{feff}\u{202e}\u{200d}\u{10ffff}",
        "line\r\nline\ttab\u{b}\u{1b}[31m",
        "\"\\\"\\\\",
        "null",
        "",
        &"x".repeat(100_000),
    ];
    for (number, text) in hostile.iter().enumerate() {
        let value = serde_json::json!({ "a": number, "odd \"name\"; DROP TABLE t": text, *text: [text] });
        loading.topic.produce(1, Some(text.as_bytes()), Some(value.to_string().as_bytes()), Some(0));
    }
    loading.load().unwrap();
    let rows = loading
        .session()
        .query("SELECT \"odd \"\"name\"\"; DROP TABLE t\", extra::text, topic, key FROM public.t ORDER BY a", &[])
        .unwrap();
    assert_eq!(rows.len(), hostile.len());
    for (row, text) in rows.iter().zip(hostile) {
        assert_eq!(row.get::<_, &str>(0), text);
        let extra: serde_json::Value = serde_json::from_str(row.get(1)).unwrap();
        assert_eq!(extra, serde_json::json!({ text: [text] }));
        assert_eq!((row.get::<_, &str>(2), row.get::<_, &str>(3)), ("topic", text));
    }
}

#[test]
fn defaults_of_the_table_fill_what_messages_leave_out() {
    let loading = Loading::new(
        1,
        "CREATE TABLE public.t (id bigserial, a int DEFAULT 7, b text DEFAULT 'it''s', c timestamptz DEFAULT '2000-01-01 00:00Z',
           n numeric(5, 2) DEFAULT 1.5, created timestamptz DEFAULT now(), i int GENERATED ALWAYS AS IDENTITY,
           g int GENERATED ALWAYS AS (a * 2) STORED);",
    );
    loading.produce(0, "{}");
    loading.produce(0, r#"{"id": 99, "a": null, "b": "x", "i": 5}"#);
    loading.load().unwrap();
    assert_eq!(
        loading.texts(
            "SELECT concat_ws('|', id, coalesce(a, -1), b, c, n, created IS NOT NULL, i, g) FROM public.t ORDER BY id"
        ),
        ["1|7|it's|2000-01-01 00:00:00+00|1.50|t|1|14", "2|-1|x|2000-01-01 00:00:00+00|1.50|t|2"]
    );
}

#[test]
fn constant_defaults_come_in_both_formats() {
    for (other, text) in [("int", "-"), ("point DEFAULT '(1,2)'", "(1,2)")] {
        let loading = Loading::new(
            1,
            &format!(
                "CREATE TYPE public.mood AS ENUM ('sad', 'happy');
                 CREATE DOMAIN public.feeling AS public.mood DEFAULT 'happy';
                 CREATE TABLE public.t (a int, m public.feeling, none public.feeling DEFAULT NULL, l int[] DEFAULT '[0:1]={{1,NULL}}', n numeric DEFAULT 'NaN',
                   z timestamptz DEFAULT 'infinity', f real DEFAULT '-infinity', i interval DEFAULT '-1 day 2 hours',
                   s text DEFAULT E'a\\tb\\nc\\\\', b bytea DEFAULT '\\x00ff', y date DEFAULT '0044-03-15 BC', p {other});"
            ),
        );
        loading.produce(0, "{}");
        loading.load().unwrap();
        let stored = "SELECT concat_ws('|', m, none, l, n, z, f, i, s, b, y, coalesce(p::text, '-')) FROM public.t";
        let expected = "happy|[0:1]={1,NULL}|NaN|infinity|-Infinity|-1 days +02:00:00|a\tb\nc\\|\\x00ff|0044-03-15 BC|";
        assert_eq!(loading.texts(stored), [format!("{expected}{text}")]);
    }
}

#[test]
fn a_table_that_a_crash_empties_is_refused() {
    let loading = Loading::new(1, "CREATE UNLOGGED TABLE public.t (a int);");
    let error = loading.load().unwrap_err();
    assert!(error.to_string().contains("unlogged"), "{error}");
}
