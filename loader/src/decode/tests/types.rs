//! Each type beyond numbers and text: its bytes, and what is no value of it.

use super::*;

fn column_of(base: &str, labels: &[&str], element: Option<u32>) -> TableColumn {
    TableColumn { labels: labels.iter().map(|label| (*label).to_owned()).collect(), element, ..column("v", base) }
}

fn one_of(column: TableColumn, rule: &str, value: &str) -> Result<Option<Vec<u8>>, Reason> {
    let program = compile(&table(vec![column]), rule).unwrap();
    run(&program, format!("{{\"v\": {value}}}").as_bytes()).map(|mut row| row.remove(0)).map_err(|(reason, _)| reason)
}

#[test]
fn oids_are_not_negative() {
    accepts("oid", "4294967295", &u32::MAX.to_be_bytes());
    accepts("oid", "-0", &0u32.to_be_bytes());
    rejects("oid", "-1", Reason::OutOfRange);
    rejects("oid", "4294967296", Reason::OutOfRange);
    rejects("oid", "\"1\"", Reason::WrongType);
    rejects("oid", "1.5", Reason::WrongType);
}

#[test]
fn days_times_and_intervals_have_expected_bytes() {
    accepts("date", "\"1999-12-31\"", &(-1i32).to_be_bytes());
    accepts("time", "\"00:00:00.000001\"", &1i64.to_be_bytes());
    accepts("timetz", "\"00:00:01+02:00\"", b"\0\0\0\0\0\x0f\x42\x40\xff\xff\xe3\xe0");
    accepts("interval", "\"P1M-2DT0.000003S\"", b"\0\0\0\0\0\0\0\x03\xff\xff\xff\xfe\0\0\0\x01");
    accepts("interval", "\"1 mon -2 days 00:00:00.000003\"", b"\0\0\0\0\0\0\0\x03\xff\xff\xff\xfe\0\0\0\x01");
    rejects("interval", "\"P2147483648D\"", Reason::OutOfRange);
    for base in ["date", "time", "timetz", "interval"] {
        for wrong in ["7", "1.5", "true", "\"\"", "\"today\"", "[]", "{}"] {
            rejects(base, wrong, Reason::WrongType);
        }
    }
    rejects("date", "\"2000-02-30\"", Reason::WrongType);
    rejects("time", "\"12:00:00Z\"", Reason::WrongType);
    rejects("timetz", "\"12:00:00\"", Reason::WrongType);
}

#[test]
fn an_enum_takes_its_labels_alone() {
    let mood = || column_of("public.mood", &["sad", "it's"], None);
    assert_eq!(one_of(mood(), "", "\"it's\""), Ok(Some(b"it's".to_vec())));
    assert_eq!(one_of(mood(), "", "\"s\\u0061d\""), Ok(Some(b"sad".to_vec())));
    assert_eq!(one_of(mood(), "", "null"), Ok(None));
    for wrong in ["\"happy\"", "\"\"", "\"SAD\"", "\"sad \"", "1", "true", "[]", "{}"] {
        assert_eq!(one_of(mood(), "", wrong), Err(Reason::WrongType), "{wrong}");
    }
}

#[test]
fn bytes_are_hexadecimal_or_base64() {
    accepts("bytea", "\"\\\\x00fF\"", b"\x00\xff");
    accepts("bytea", "\"\\\\x\"", b"");
    for wrong in ["\"\"", "\"00ff\"", "\"\\\\x0\"", "\"\\\\xgg\"", "\"\\\\x00 ff\"", "\"AP8=\"", "\"\\\\x\u{e9}\"", "7"]
    {
        rejects("bytea", wrong, Reason::WrongType);
    }
    let base64 = |value| one("bytea", -1, "columns.v = { bytes = \"base64\" }", value);
    assert_eq!(base64("\"AP8=\""), Ok(Some(b"\x00\xff".to_vec())));
    assert_eq!(base64("\"\""), Ok(Some(vec![])));
    for wrong in ["\"AP8\"", "\"AP_=\"", "\"AP9=\"", "\"\\\\x00\"", "7"] {
        assert_eq!(base64(wrong), Err(Reason::WrongType), "{wrong}");
    }
}

#[test]
fn addresses_are_those_of_their_type() {
    accepts("inet", "\"10.1.2.3/8\"", &[2, 8, 0, 4, 10, 1, 2, 3]);
    accepts("cidr", "\"10.0.0.0/8\"", &[2, 8, 1, 4, 10, 0, 0, 0]);
    rejects("cidr", "\"10.1.2.3/8\"", Reason::WrongType);
    for base in ["inet", "cidr"] {
        for wrong in ["\"\"", "\"10.1\"", "\"localhost\"", "10", "[]"] {
            rejects(base, wrong, Reason::WrongType);
        }
    }
}

fn array(base: &str, value: &str) -> Result<Option<Vec<u8>>, Reason> {
    one_of(column_of(base, &[], Some(77)), "", value)
}

fn boxed(dimensions: &[u32], has_null: bool, elements: &[Option<&[u8]>]) -> Result<Option<Vec<u8>>, Reason> {
    let mut bytes = copy::array_header(77, dimensions, has_null);
    elements.iter().for_each(|element| copy::nullable(&mut bytes, *element));
    Ok(Some(bytes))
}

#[test]
fn arrays_are_boxes_with_their_elements_in_order() {
    let number = |value: i32| value.to_be_bytes();
    let (one, two, three) = (number(1), number(2), number(3));
    assert_eq!(array("int4", "[1, null, 3]"), boxed(&[3], true, &[Some(&one), None, Some(&three)]));
    assert_eq!(array("int4", "[]"), boxed(&[], false, &[]));
    assert_eq!(array("int4", "null"), Ok(None));
    let grid = [Some(&one[..]), Some(&two), Some(&three), Some(&one), Some(&two), Some(&three)];
    assert_eq!(array("int4", "[[1, 2, 3], [1, 2, 3]]"), boxed(&[2, 3], false, &grid));
    assert_eq!(array("int4", "[[[1], [2], [3]], [[1], [2], [3]]]"), boxed(&[2, 3, 1], false, &grid));
    assert_eq!(array("int4", "[[[[[[1]]]]]]"), boxed(&[1; 6], false, &[Some(&one)]));
    assert_eq!(array("text", r#"["a", "", "[b]"]"#), boxed(&[3], false, &[Some(b"a"), Some(b""), Some(b"[b]")]));
    assert_eq!(array("float8", "[0.1]"), boxed(&[1], false, &[Some(&0.1f64.to_be_bytes())]));
    assert_eq!(
        array("jsonb", "[[1, [2]], null, {\"a\": null}]"),
        boxed(&[3], true, &[Some(b"\x01[1, [2]]"), None, Some(b"\x01{\"a\": null}")])
    );
    let moods = column_of("public.mood", &["sad"], Some(77));
    assert_eq!(one_of(moods.clone(), "", "[\"sad\"]"), boxed(&[1], false, &[Some(b"sad")]));
    assert_eq!(one_of(moods, "", "[\"happy\"]"), Err(Reason::WrongType));
}

#[test]
fn what_is_no_box_is_no_array() {
    for ragged in [
        "[[1, 2], [3]]",
        "[[1], 2]",
        "[1, [2]]",
        "[[1], null]",
        "[null, [1]]",
        "[[[1]], [2]]",
        "[[]]",
        "[[], []]",
        "[[1], []]",
        "1",
        "\"{1}\"",
        "{\"0\": 1}",
        "[1, \"2\"]",
        "[1.5]",
        "[{}]",
    ] {
        assert_eq!(array("int4", ragged), Err(Reason::WrongType), "{ragged}");
    }
    assert_eq!(array("int4", "[[[[[[[1]]]]]]]"), Err(Reason::OutOfRange));
    assert_eq!(array("int4", &"[".repeat(100_000)), Err(Reason::NotJson));
    assert_eq!(array("int4", "[2147483648]"), Err(Reason::OutOfRange));
    assert_eq!(array("numeric", "[1e131072]"), Err(Reason::OutOfRange));
    assert_eq!(array("text", r#"["a\u0000"]"#), Err(Reason::BadText));
    assert_eq!(array("text", r#"["\ud800"]"#), Err(Reason::BadText));
    assert_eq!(array("jsonb", r#"["\u0000"]"#), Err(Reason::BadText));
    let short = TableColumn { typmod: 4 + 2, ..column_of("varchar", &[], Some(77)) };
    assert_eq!(one_of(short, "", r#"["ab", "abc"]"#), Err(Reason::TooLong));
    let rule = "columns.v = { digits_in_string = true }";
    let digits = one_of(column_of("int4", &[], Some(77)), rule, "[\"7\"]");
    assert_eq!(digits, boxed(&[1], false, &[Some(&7i32.to_be_bytes())]));
}

#[test]
fn a_number_beyond_all_floats_is_out_of_range() {
    for base in ["int8", "bool", "text", "uuid"] {
        rejects(base, "1e999", Reason::OutOfRange);
    }
}

#[test]
fn any_other_type_takes_its_input_text() {
    let points = table(vec![column("p", "point"), column("n", "numeric"), column("s", "text")]);
    let program = compile(&points, "").unwrap();
    let line = |value: &str| {
        let mut out = b"before".to_vec();
        match Decoder::default().decode(&program, "t", message(value.as_bytes()), &mut out) {
            Outcome::Row => Ok(String::from_utf8(out).unwrap().split_off(6)),
            Outcome::Dead(rejection) => {
                assert_eq!(out, b"before", "a dead letter must leave no bytes");
                Err(rejection.reason)
            }
            Outcome::Skip => panic!("not a tombstone"),
        }
    };
    assert_eq!(line(r#"{"p": "(1,\\2)\n", "n": 1.50, "s": "\t"}"#), Ok("(1,\\\\2)\\n\t150e-2\t\\t\n".into()));
    assert_eq!(line(r#"{"s": "\\N"}"#), Ok("\\N\t\\N\t\\\\N\n".into()));
    for (value, reason) in [
        (r#"{"p": 1}"#, Reason::WrongType),
        (r#"{"p": [1, 2]}"#, Reason::WrongType),
        (r#"{"p": {"x": 1}}"#, Reason::WrongType),
        (r#"{"p": "\u0000"}"#, Reason::BadText),
        (r#"{"p": "(1,2)", "n": "x"}"#, Reason::WrongType),
    ] {
        assert_eq!(line(value), Err(reason), "{value}");
    }
}
