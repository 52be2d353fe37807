mod flat;
mod paths;
mod types;

use super::*;
use crate::catalog::{RangeLeaves, TableColumn, TableDefault};
use crate::program::tests::{column, compile, table};

fn message(value: &[u8]) -> Message<'_> {
    Message { part: 3, offset: 42, time: Some(946_684_801_000), key: Some(b"key"), value: Some(value), headers: None }
}

/// The fields of a row, `None` for NULL.
type Fields = Vec<Option<Vec<u8>>>;

/// The row, or the reason and the column of the dead letter.
fn run(program: &Program, value: &[u8]) -> Result<Fields, (Reason, Option<String>)> {
    let mut out = b"before".to_vec();
    match Decoder::default().decode(program, "clickstream", message(value), &mut out) {
        Outcome::Row => Ok(fields(&out[6..])),
        Outcome::Dead(rejection) => {
            assert_eq!(out, b"before", "a dead letter must leave no bytes");
            Err((rejection.reason, rejection.column))
        }
        Outcome::Skip => panic!("not a tombstone"),
    }
}

fn fields(row: &[u8]) -> Fields {
    let count = i16::from_be_bytes(row[..2].try_into().unwrap());
    let mut rest = &row[2..];
    let mut fields = Vec::new();
    for _ in 0..count {
        let length = i32::from_be_bytes(rest[..4].try_into().unwrap());
        rest = &rest[4..];
        if length < 0 {
            fields.push(None);
        } else {
            let (field, tail) = rest.split_at(length as usize);
            fields.push(Some(field.to_vec()));
            rest = tail;
        }
    }
    assert!(rest.is_empty());
    fields
}

fn one(base: &str, typmod: i32, rule: &str, value: &str) -> Result<Option<Vec<u8>>, Reason> {
    let column = TableColumn { typmod, ..column("v", base) };
    let program = compile(&table(vec![column]), rule).unwrap();
    run(&program, format!("{{\"v\": {value}}}").as_bytes()).map(|mut row| row.remove(0)).map_err(|(reason, _)| reason)
}

#[track_caller]
fn accepts(base: &str, value: &str, bytes: &[u8]) {
    assert_eq!(one(base, -1, "", value), Ok(Some(bytes.to_vec())), "{base} {value}");
}

#[track_caller]
fn rejects(base: &str, value: &str, reason: Reason) {
    assert_eq!(one(base, -1, "", value), Err(reason), "{base} {value}");
}

#[test]
fn integers_have_expected_bytes_and_limits() {
    accepts("int2", "-2", &(-2i16).to_be_bytes());
    accepts("int4", "2147483647", &i32::MAX.to_be_bytes());
    accepts("int8", "-9223372036854775808", &i64::MIN.to_be_bytes());
    accepts("int8", "9223372036854775807", &i64::MAX.to_be_bytes());
    accepts("int8", "-0", &0i64.to_be_bytes());
    rejects("int2", "32768", Reason::OutOfRange);
    rejects("int4", "2147483648", Reason::OutOfRange);
    rejects("int8", "9223372036854775808", Reason::OutOfRange);
    rejects("int8", "-99999999999999999999999", Reason::OutOfRange);
    for wrong in ["1.5", "1.0", "1e3", "\"7\"", "true", "[]", "{}", "\"\""] {
        rejects("int8", wrong, Reason::WrongType);
    }
}

#[test]
fn digits_in_a_string_are_a_number_only_where_asked_for() {
    let rule = "columns.v = { digits_in_string = true }";
    let number = |value: i64| Ok(Some(value.to_be_bytes().to_vec()));
    assert_eq!(one("int8", -1, rule, "\"0042\""), number(42));
    assert_eq!(one("int8", -1, rule, "42"), number(42));
    assert_eq!(one("int8", -1, rule, "\"-42\""), number(-42));
    assert_eq!(one("int8", -1, rule, "\"9223372036854775808\""), Err(Reason::OutOfRange));
    for wrong in ["\"\"", "\"-\"", "\" 1\"", "\"1 \"", "\"1.0\"", "\"0x1\"", "\"abc\"", "\"\\u0661\""] {
        assert_eq!(one("int8", -1, rule, wrong), Err(Reason::WrongType), "{wrong}");
    }
    assert_eq!(one("float8", -1, rule, "\"1.5\""), Ok(Some(1.5f64.to_be_bytes().to_vec())));
    assert_eq!(one("float8", -1, rule, "\"nan\""), Err(Reason::WrongType));
    assert_eq!(one("float8", -1, rule, "\"inf\""), Err(Reason::WrongType));
    assert_eq!(one("float8", -1, rule, "\"\""), Err(Reason::WrongType));
    assert_eq!(one("numeric", -1, rule, "\"x\""), Err(Reason::WrongType));
}

#[test]
fn floats_keep_every_bit_or_are_out_of_range() {
    accepts("float8", "0.1", &0.1f64.to_be_bytes());
    accepts("float8", "-0", &(-0.0f64).to_be_bytes());
    accepts("float8", "5e-324", &f64::from_bits(1).to_be_bytes());
    accepts("float8", "1.7976931348623157e308", &f64::MAX.to_be_bytes());
    accepts("float8", "9007199254740993", &9007199254740992f64.to_be_bytes());
    accepts("float4", "0.1", &0.1f32.to_be_bytes());
    accepts("float4", "16777217", &16777216f32.to_be_bytes());
    rejects("float8", "1e309", Reason::OutOfRange);
    rejects("float8", "1e-400", Reason::OutOfRange);
    rejects("float4", "1e39", Reason::OutOfRange);
    accepts("float8", "0e-999", &0f64.to_be_bytes());
    rejects("float8", "\"1\"", Reason::WrongType);
}

#[test]
fn numerics_keep_every_digit() {
    accepts("numeric", "12345.678", b"\0\x03\0\x01\0\0\0\x03\0\x01\x09\x29\x1a\x7c");
    accepts("numeric", "0", b"\0\0\0\0\0\0\0\0");
    rejects("numeric", "true", Reason::WrongType);
    let typmod = 4 + ((5 << 16) | 2);
    assert!(one("numeric", typmod, "", "999.99").is_ok());
    assert_eq!(one("numeric", typmod, "", "999.995"), Err(Reason::OutOfRange));
}

#[test]
fn text_is_verbatim_and_checked() {
    accepts("text", r#""""#, b"");
    accepts("text", r#""null""#, b"null");
    accepts("text", r#""it's; DROP TABLE x; -- \\ \t \" \\. \\N""#, b"it's; DROP TABLE x; -- \\ \t \" \\. \\N");
    accepts("text", "\"\u{1F600}\\uD83D\\uDE00\"", "\u{1F600}\u{1F600}".as_bytes());
    rejects("text", r#""a\u0000b""#, Reason::BadText);
    rejects("text", r#""\ud800""#, Reason::BadText);
    rejects("text", "7", Reason::WrongType);
    rejects("text", "{}", Reason::WrongType);
    assert_eq!(one("varchar", 4 + 3, "", "\"äöü\""), Ok(Some("äöü".as_bytes().to_vec())));
    assert_eq!(one("varchar", 4 + 3, "", "\"äöüa\""), Err(Reason::TooLong));
    assert_eq!(one("varchar", 4 + 3, "", "\"abc  \""), Ok(Some(b"abc  ".to_vec())));
    assert_eq!(one("text", -1, "columns.v = { max_length = 3 }", "\"abc  \""), Err(Reason::TooLong));
    let program = compile(&table(vec![column("v", "text")]), "").unwrap();
    assert_eq!(run(&program, b"{\"v\": \"\xff\"}").unwrap_err().0, Reason::BadText);
}

#[test]
fn times_uuids_booleans_and_json_have_expected_bytes() {
    accepts("timestamptz", "\"2000-01-01T01:00:00+01:00\"", &0i64.to_be_bytes());
    accepts("timestamptz", "946684800001", &1000i64.to_be_bytes());
    accepts("timestamp", "\"2000-01-01T00:00:00.000001Z\"", &1i64.to_be_bytes());
    rejects("timestamptz", "\"2000-01-01 00:00:00\"", Reason::WrongType);
    rejects("timestamptz", "9223372036854775807", Reason::OutOfRange);
    rejects("timestamptz", "1.5", Reason::WrongType);
    assert_eq!(one("timestamptz", -1, "columns.v = { time = \"rfc3339\" }", "0"), Err(Reason::WrongType));
    assert_eq!(
        one("timestamptz", -1, "columns.v = { time = \"epoch-s\" }", "946684801"),
        Ok(Some(1_000_000i64.to_be_bytes().to_vec()))
    );
    accepts("bool", "true", &[1]);
    accepts("bool", "false", &[0]);
    rejects("bool", "1", Reason::WrongType);
    accepts(
        "uuid",
        "\"00112233-4455-6677-8899-aabbccddeeff\"",
        &0x00112233_44556677_8899aabb_ccddeeffu128.to_be_bytes(),
    );
    rejects("uuid", "\"00112233\"", Reason::WrongType);
    accepts(
        "jsonb",
        r#"{"a": [1, "x"]}"#,
        br#"{"a": [1, "x"]}"#
            .iter()
            .fold(vec![1], |mut v, b| {
                v.push(*b);
                v
            })
            .as_slice(),
    );
    accepts("jsonb", r#""\\u0000""#, b"\x01\"\\\\u0000\"");
    rejects("jsonb", r#"{"a": "\u0000"}"#, Reason::BadText);
    rejects("jsonb", &format!("{}{}", "[".repeat(2000), "]".repeat(2000)), Reason::OutOfRange);
    accepts("json", r#"{"a": "\u0000"}"#, br#"{"a": "\u0000"}"#);
}

#[test]
fn null_and_absent_are_sql_null_unless_required() {
    let mut required = column("a", "int8");
    required.not_null = true;
    let program = compile(&table(vec![required, column("b", "text")]), "").unwrap();
    assert_eq!(run(&program, br#"{"a": 1}"#).unwrap()[1], None);
    assert_eq!(run(&program, br#"{"a": 1, "b": null}"#).unwrap()[1], None);
    assert_eq!(run(&program, br#"{"b": "x"}"#), Err((Reason::MissingRequired, Some("a".into()))));
    assert_eq!(run(&program, br#"{"a": null}"#), Err((Reason::MissingRequired, Some("a".into()))));
    for base in ["int4", "float8", "numeric", "jsonb", "bool", "timestamptz", "uuid"] {
        assert_eq!(one(base, -1, "", "null"), Ok(None), "{base}");
    }
}

#[test]
fn an_absent_value_takes_the_constant_default_and_null_stays_null() {
    let mut with_default = column("a", "int4");
    with_default.default =
        TableDefault::Constant { text: "7".into(), bytes: 7i32.to_be_bytes().to_vec(), input: "7".into() };
    let program = compile(&table(vec![with_default]), "").unwrap();
    assert_eq!(run(&program, b"{}").unwrap(), [Some(7i32.to_be_bytes().to_vec())]);
    assert_eq!(run(&program, br#"{"a": null}"#).unwrap(), [None]);
}

#[test]
fn event_time_defaults_to_the_brokers_timestamp() {
    let program = compile(
        &table(vec![column("event_time", "timestamptz")]),
        "columns.event_time = { default = \"broker-timestamp\" }",
    )
    .unwrap();
    let second = Some(1_000_000i64.to_be_bytes().to_vec());
    assert_eq!(run(&program, b"{}").unwrap(), std::slice::from_ref(&second));
    assert_eq!(run(&program, br#"{"event_time": null}"#).unwrap(), [second]);
    assert_eq!(
        run(&program, br#"{"event_time": "2000-01-01T00:00:00Z"}"#).unwrap(),
        [Some(0i64.to_be_bytes().to_vec())]
    );
}

#[test]
fn what_is_no_json_object_is_told_apart() {
    let program = compile(&table(vec![column("a", "int4")]), "").unwrap();
    for (value, reason) in [
        (&b""[..], Reason::NotJson),
        (b"{", Reason::NotJson),
        (b"{\"a\": 1}}", Reason::NotJson),
        (b"{\"a\": 1} {\"a\": 2}", Reason::NotJson),
        (b"{\"a\": \"x\"", Reason::NotJson),
        (b"{a: 1}", Reason::NotJson),
        (b"\xef\xbb\xbf{\"a\": 1}", Reason::NotJson),
        (b"\x00\x01\xff", Reason::NotJson),
        (b"[1]", Reason::NotObject),
        (b"7", Reason::NotObject),
        (b"null", Reason::NotObject),
        (b"\"text\"", Reason::NotObject),
    ] {
        assert_eq!(
            run(&program, value).map_err(|(reason, _)| reason),
            Err(reason),
            "{}",
            String::from_utf8_lossy(value)
        );
    }
}

#[test]
fn fields_come_in_any_order_and_the_last_of_two_wins() {
    let program = compile(&table(vec![column("a", "int4"), column("b", "int4")]), "").unwrap();
    let number = |value: i32| Some(value.to_be_bytes().to_vec());
    assert_eq!(run(&program, br#"{"b": 2, "x": {"y": [1]}, "a": 1}"#).unwrap(), [number(1), number(2)]);
    assert_eq!(run(&program, br#"{"a": 1, "b": 2, "a": 3}"#).unwrap(), [number(3), number(2)]);
    assert_eq!(run(&program, br#"{"\u0061": 1}"#).unwrap(), [number(1), None]);
}

#[test]
fn unknown_fields_are_ignored_rejected_or_kept() {
    let table = table(vec![column("a", "int4"), column("extra", "jsonb")]);
    let value = br#"{"x": "1 \" ,", "a": 1, "y": [1, {"z": null}]}"#;
    let program = compile(&table, "columns.extra = { skip = true }").unwrap();
    assert_eq!(run(&program, value).unwrap().len(), 1);
    let program = compile(&table, "unknown_fields = \"reject\"").unwrap();
    assert_eq!(run(&program, value), Err((Reason::UnknownField, Some("x".into()))));
    let program = compile(&table, "unknown_fields = { column = \"extra\" }").unwrap();
    let kept = run(&program, value).unwrap()[1].clone().unwrap();
    assert_eq!(kept, b"\x01{\"x\":\"1 \\\" ,\",\"y\":[1, {\"z\": null}]}");
    assert_eq!(run(&program, br#"{"a": 1}"#).unwrap()[1], None);
    assert_eq!(run(&program, br#"{"x": "\u0000"}"#), Err((Reason::BadText, Some("extra".into()))));
}

#[test]
fn pseudo_fields_tell_where_a_message_came_from() {
    let table = table(vec![
        column("t", "text"),
        column("p", "int4"),
        column("o", "int8"),
        column("w", "timestamptz"),
        column("k", "text"),
        column("bytes", "bytea"),
    ]);
    let rules = "columns.t = { from = \"_topic\" }\ncolumns.p = { from = \"_partition\" }\ncolumns.o = { from = \"_offset\" }\n\
                 columns.w = { from = \"_timestamp\" }\ncolumns.k = { from = \"_key\" }\n\
                 columns.bytes = { from = \"_key\" }";
    let program = compile(&table, rules).unwrap();
    assert_eq!(
        run(&program, b"{}").unwrap(),
        [
            Some(b"clickstream".to_vec()),
            Some(3i32.to_be_bytes().to_vec()),
            Some(42i64.to_be_bytes().to_vec()),
            Some(1_000_000i64.to_be_bytes().to_vec()),
            Some(b"key".to_vec()),
            Some(b"key".to_vec())
        ]
    );
}

#[test]
fn a_key_that_is_no_text_fits_a_bytea_alone() {
    let decode = |base| {
        let program = compile(&table(vec![column("k", base)]), "columns.k = { from = \"_key\" }").unwrap();
        let message = Message { key: Some(b"\xff\0"), ..message(b"{}") };
        let mut out = Vec::new();
        (Decoder::default().decode(&program, "t", message, &mut out), out)
    };
    let (outcome, row) = decode("bytea");
    assert_eq!((outcome, fields(&row)), (Outcome::Row, vec![Some(b"\xff\0".to_vec())]));
    assert!(matches!(decode("text").0, Outcome::Dead(rejection) if rejection.reason == Reason::BadText));
}

#[test]
fn a_time_that_no_leaf_takes_is_a_dead_letter() {
    let mut target = table(vec![column("event_time", "timestamptz")]);
    target.leaves = Leaves::Range(RangeLeaves::new("event_time".into(), vec![(0, 1_000_000)]));
    let program = compile(&target, "").unwrap();
    assert!(run(&program, br#"{"event_time": "2000-01-01T00:00:00.999999Z"}"#).is_ok());
    for outside in [r#""2000-01-01T00:00:01Z""#, r#""1999-12-31T23:59:59Z""#, "null"] {
        let result = run(&program, format!("{{\"event_time\": {outside}}}").as_bytes());
        assert_eq!(result, Err((Reason::NoPartition, Some("event_time".into()))), "{outside}");
    }
}

#[test]
fn tombstones_and_huge_values_follow_the_policy() {
    let target = table(vec![column("a", "int4")]);
    let mut program = compile(&target, "").unwrap();
    program.max_value = 16;
    let tombstone = Message { value: None, ..message(b"") };
    let decode = |program: &Program, message| Decoder::default().decode(program, "t", message, &mut Vec::new());
    assert_eq!(decode(&program, tombstone), Outcome::Skip);
    program.tombstone = OnTombstone::Row;
    assert_eq!(decode(&program, tombstone), Outcome::Row);
    program.tombstone = OnTombstone::DeadLetter;
    assert!(matches!(decode(&program, tombstone), Outcome::Dead(r) if r.reason == Reason::Tombstone));
    assert!(matches!(decode(&program, message(&[b' '; 17])), Outcome::Dead(r) if r.reason == Reason::TooLarge));
}
