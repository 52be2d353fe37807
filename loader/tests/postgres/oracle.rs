//! The same values through the loader and through text COPY give the same table.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::loading::Loading;

/// A value as JSON and as COPY text; `None` is NULL.
type Value = Option<(String, String)>;

fn same(text: impl ToString) -> Value {
    Some((text.to_string(), text.to_string()))
}

fn string(text: &str) -> Value {
    let escaped = text.replace('\\', "\\\\").replace('\t', "\\t").replace('\n', "\\n").replace('\r', "\\r");
    Some((serde_json::Value::from(text).to_string(), escaped))
}

const DDL: &str = "
    CREATE DOMAIN public.positive AS bigint CHECK (VALUE > 0);
    CREATE TABLE public.t (i2 smallint, i4 int, i8 bigint, f4 real, f8 double precision, n numeric, n2 numeric(12, 3),
      b boolean, s text, v varchar(5), c char(4), z timestamptz, z3 timestamptz(3), w timestamp, u uuid, j jsonb, js json, d public.positive);
    CREATE TABLE public.expected (LIKE public.t);";

/// One value for each column, in order. The first rounds take the extremes, the others are random.
fn row(round: usize, random: &mut ChaCha8Rng) -> Vec<Value> {
    let pick = |extremes: &[&str], other: Value| extremes.get(round).map_or(other, same);
    let digits = |random: &mut ChaCha8Rng, most: usize| -> String {
        let count = random.random_range(1..=most);
        (0..count).map(|at| char::from(b'0' + random.random_range(u8::from(at == 0 && count > 1)..10))).collect()
    };
    let sign = |random: &mut ChaCha8Rng| if random.random() { "-" } else { "" };
    let number = |random: &mut ChaCha8Rng, most: usize| {
        let mut text = format!("{}{}", sign(random), digits(random, most));
        if random.random() {
            text.push('.');
            text.push_str(&digits(random, most));
        }
        text
    };
    let f4 = f32::from_bits(random.random());
    let f8 = f64::from_bits(random.random());
    let time = |random: &mut ChaCha8Rng| {
        let at =
            jiff::Timestamp::from_microsecond(random.random_range(-62_135_596_800_000_000..253_402_207_200_000_000))
                .unwrap();
        at.to_string()
    };
    let exponent = format!("{}e{}", number(random, 5), random.random_range(-40..40));
    let strings = [
        "",
        " ",
        "null",
        "\\N",
        "\\.",
        "a\tb\nc\rd",
        "\"quoted\" and 'quoted'",
        "back\\slash",
        "\u{1F600} \u{7f}\u{1}",
        "'; DROP TABLE t; --",
    ];
    let chosen = strings[random.random_range(0..strings.len())];
    let json = format!(
        "{{\"k{}\": [1.50, {}, \"x\\u00e9\\\\\", null, true, {{\"\": []}}]}}",
        random.random_range(0..100),
        number(random, 20)
    );
    let decimal = number(random, 9);
    vec![
        pick(&["-32768", "32767", "0"], same(random.random::<i16>())),
        pick(&["-2147483648", "2147483647", "0"], same(random.random::<i32>())),
        pick(&["-9223372036854775808", "9223372036854775807", "0"], same(random.random::<i64>())),
        pick(&["3.4028235e38", "-1e-45", "-0", "0.1"], same(if f4.is_finite() { f4.to_string() } else { "1".into() })),
        pick(
            &["1.7976931348623157e308", "5e-324", "-0", "0.1", "9007199254740993"],
            same(if f8.is_finite() { format!("{f8:e}") } else { "1".into() }),
        ),
        pick(
            &["0", "-0.00", "1e131071", "1e-16383", "10000", "0.0001", "123456789012345678901234567890.123456789"],
            same(if random.random() { exponent } else { number(random, 30) }),
        ),
        pick(&["999999999.999", "-999999999.9994", "0.0005", "-0.0005"], same(decimal)),
        same(random.random::<bool>()),
        string(strings.get(round).copied().unwrap_or(chosen)),
        string(["", "äöüßé", "abc     ", "a"][random.random_range(0..4)]),
        string(["", "ab", "äöü"][random.random_range(0..3)]),
        {
            let text = pick(
                &["0001-01-01T00:00:00Z", "9999-12-31T22:59:59.999999-01:00", "1969-12-31T23:59:59.999999Z"],
                same(time(random)),
            );
            text.map(|(_, text)| (format!("\"{text}\""), text))
        },
        {
            let text = time(random);
            Some((format!("\"{text}\""), text))
        },
        {
            let text = time(random);
            Some((format!("\"{text}\""), text))
        },
        {
            let text = uuid::Uuid::from_u128(random.random()).to_string();
            Some((format!("\"{text}\""), text))
        },
        Some((json.clone(), json.replace('\\', "\\\\"))),
        Some((json.clone(), json.replace('\\', "\\\\"))),
        pick(&["1", "9223372036854775807"], same(random.random_range(1..i64::MAX))),
    ]
    .into_iter()
    .map(|value| if round > 10 && random.random_ratio(1, 8) { None } else { value })
    .collect()
}

#[test]
fn binary_copy_stores_what_text_copy_stores() {
    let seed: u64 = std::env::var("TALLY_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("TALLY_SEED={seed}");
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let loading = Loading::new(1, DDL);
    let names = ["i2", "i4", "i8", "f4", "f8", "n", "n2", "b", "s", "v", "c", "z", "z3", "w", "u", "j", "js", "d"];
    let mut text = String::new();
    for round in 0..2_000 {
        let row = row(round, &mut random);
        let fields: Vec<String> = names
            .iter()
            .zip(&row)
            .filter_map(|(name, value)| match value {
                Some((json, _)) => Some(format!("\"{name}\": {json}")),
                // NULL is written or left out.
                None if random.random() => Some(format!("\"{name}\": null")),
                None => None,
            })
            .collect();
        loading.produce(0, &format!("{{{}}}", fields.join(", ")));
        let fields: Vec<&str> = row.iter().map(|value| value.as_ref().map_or("\\N", |(_, text)| text)).collect();
        text.push_str(&fields.join("\t"));
        text.push('\n');
    }
    let mut session = loading.session();
    let mut copy = session.copy_in("COPY public.expected FROM STDIN").unwrap();
    std::io::Write::write_all(&mut copy, text.as_bytes()).unwrap();
    copy.finish().unwrap();
    loading.load().unwrap();
    assert_eq!(
        loading
            .texts("SELECT reason || coalesce(column_name, '') || convert_from(value, 'UTF8') FROM tally.dead_letters"),
        [""; 0]
    );
    assert_eq!(loading.number("SELECT count(*) FROM public.t"), 2_000);
    // As text: equality would not see a lost zero of a numeric or the sign of a zero.
    for (one, other) in [("t", "expected"), ("expected", "t")] {
        let differences = loading.texts(&format!(
            "SELECT r FROM (SELECT x::text AS r FROM public.{one} x EXCEPT ALL SELECT x::text FROM public.{other} x) d LIMIT 3"
        ));
        assert_eq!(differences, [""; 0], "only in {one}");
    }
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
fn a_type_that_cannot_be_written_refuses_the_start() {
    let loading = Loading::new(1, "CREATE TABLE public.t (a int, p point);");
    let error = loading.load().unwrap_err();
    assert_eq!(error.to_string(), "column \"p\" has type point, which tally-loader cannot write yet");
    assert_eq!(error.code(), 3);
}

#[test]
fn a_table_that_a_crash_empties_is_refused() {
    let loading = Loading::new(1, "CREATE UNLOGGED TABLE public.t (a int);");
    let error = loading.load().unwrap_err();
    assert!(error.to_string().contains("unlogged"), "{error}");
}
