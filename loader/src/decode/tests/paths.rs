//! Values inside of values, several columns from one field, and records of texts.

use super::*;

fn number(value: i32) -> Option<Vec<u8>> {
    Some(value.to_be_bytes().to_vec())
}

fn nested() -> Program {
    let rules =
        "columns.b = { from = \"a.b[1]\" }\ncolumns.c = { from = \"a.c.d\" }\ncolumns.e = { from = 'x.\"o.d\"' }";
    compile(&table(vec![column("b", "int4"), column("c", "int4"), column("e", "int4")]), rules).unwrap()
}

#[test]
fn a_path_leads_into_objects_and_arrays() {
    let program = nested();
    let value = br#"{"y": {"b": [9]}, "a": {"c": {"z": [], "d": 3}, "b": [1, 2, {"x": 5}]}, "x": {"o": 8, "o.d": 4}}"#;
    assert_eq!(run(&program, value).unwrap(), [number(2), number(3), number(4)]);
    // What is not there is absent.
    for absent in
        [&br#"{}"#[..], br#"{"a": null, "x": {}}"#, br#"{"a": {"b": [1], "c": null}}"#, br#"{"a": {"b": []}}"#]
    {
        assert_eq!(run(&program, absent).unwrap(), [None, None, None], "{}", String::from_utf8_lossy(absent));
    }
}

#[test]
fn what_has_no_parts_is_of_the_wrong_type() {
    let program = nested();
    for (value, column) in [
        (&br#"{"a": 7}"#[..], "b"),
        (br#"{"a": "text"}"#, "b"),
        (br#"{"a": [1]}"#, "b"),
        (br#"{"a": {"b": {"1": 2}}}"#, "b"),
        (br#"{"a": {"b": [1, "2"]}}"#, "b"),
        (br#"{"a": {"c": true}}"#, "c"),
        (br#"{"a": {"c": {"d": "x"}}}"#, "c"),
        (br#"{"x": 1.5}"#, "e"),
    ] {
        let result = run(&program, value);
        assert_eq!(result, Err((Reason::WrongType, Some(column.into()))), "{}", String::from_utf8_lossy(value));
    }
    assert_eq!(run(&program, br#"{"a": {"b": [1, 2}}"#).unwrap_err().0, Reason::NotJson);
    assert_eq!(run(&program, br#"{"a": {"\ud800": 1}}"#).unwrap_err().0, Reason::BadText);
}

#[test]
fn of_an_object_that_comes_twice_only_the_last_counts() {
    let program = nested();
    let value = br#"{"a": {"b": [1, 2], "c": {"d": 3}}, "a": {"c": {"d": 5, "d": 6}}}"#;
    assert_eq!(run(&program, value).unwrap(), [None, number(6), None]);
    assert_eq!(run(&program, br#"{"a": {"b": [1, 2]}, "a": null}"#).unwrap(), [None, None, None]);
}

#[test]
fn two_columns_take_one_field_each_in_its_type() {
    let rules = "columns.n = { from = \"a\" }\ncolumns.whole = { from = \"a\" }\ncolumns.inner = { from = \"b.c\" }\n\
                 columns.b = { from = \"b\" }";
    let columns = ["n", "whole", "inner", "b"].into_iter().zip(["int4", "jsonb", "int4", "json"]);
    let program = compile(&table(columns.map(|(name, base)| column(name, base)).collect()), rules).unwrap();
    assert_eq!(
        run(&program, br#"{"a": 7, "b": {"c": 8}}"#).unwrap(),
        [number(7), Some(b"\x017".to_vec()), number(8), Some(b"{\"c\": 8}".to_vec())]
    );
    assert_eq!(run(&program, br#"{"a": 7, "a": null, "b": null}"#).unwrap(), [None, None, None, None]);
    assert_eq!(run(&program, br#"{"a": "x"}"#), Err((Reason::WrongType, Some("n".into()))));
    assert_eq!(run(&program, br#"{"b": 1}"#), Err((Reason::WrongType, Some("inner".into()))));
}

#[test]
fn a_default_fills_what_a_path_does_not_reach() {
    let mut with_default = column("a", "int4");
    with_default.default =
        TableDefault::Constant { text: "7".into(), bytes: 7i32.to_be_bytes().to_vec(), input: "7".into() };
    let program = compile(&table(vec![with_default]), "columns.a = { from = \"x.y\" }").unwrap();
    assert_eq!(run(&program, br#"{"x": {}}"#).unwrap(), [number(7)]);
    assert_eq!(run(&program, br#"{"x": {"y": null}}"#).unwrap(), [None]);
}

#[test]
fn a_field_that_is_looked_into_is_known() {
    let rules = "columns.a = { from = \"x.y\" }\nunknown_fields = \"reject\"";
    let program = compile(&table(vec![column("a", "int4")]), rules).unwrap();
    assert_eq!(run(&program, br#"{"x": {"y": 1, "z": 2}}"#).unwrap(), [number(1)]);
    assert_eq!(run(&program, br#"{"y": 1}"#), Err((Reason::UnknownField, Some("y".into()))));
}

fn texts(program: &Program, fields: &[(&str, Option<&str>)]) -> Result<Fields, (Reason, Option<String>)> {
    let mut out = b"before".to_vec();
    match Decoder::default().decode_texts(program, "file", message(b""), fields.iter().copied(), &mut out) {
        Outcome::Row => Ok(super::fields(&out[6..])),
        Outcome::Dead(rejection) => {
            assert_eq!(out, b"before", "a dead letter must leave no bytes");
            Err((rejection.reason, rejection.column))
        }
        Outcome::Skip => panic!("not a tombstone"),
    }
}

#[test]
fn records_of_texts_become_rows() {
    let bases = ["int4", "bool", "float8", "timestamptz", "text", "jsonb", "date", "uuid"];
    let program = compile(&table(bases.into_iter().map(|base| column(base, base)).collect()), "").unwrap();
    let fields = [
        ("int4", Some("-7")),
        ("bool", Some("t")),
        ("float8", Some("1.5")),
        ("timestamptz", Some("946684800001")),
        ("text", Some("7")),
        ("jsonb", Some("[1, \"x\"]")),
        ("date", Some("2000-01-02")),
        ("uuid", None),
    ];
    let expected = [
        number(-7),
        Some(vec![1]),
        Some(1.5f64.to_be_bytes().to_vec()),
        Some(1_000i64.to_be_bytes().to_vec()),
        Some(b"7".to_vec()),
        Some(b"\x01[1, \"x\"]".to_vec()),
        number(1),
        None,
    ];
    assert_eq!(texts(&program, &fields).unwrap(), expected);
    for (name, text, reason) in [
        ("int4", "", Reason::WrongType),
        ("int4", "7x", Reason::WrongType),
        ("int4", "2147483648", Reason::OutOfRange),
        ("bool", "yes", Reason::WrongType),
        ("float8", "inf", Reason::WrongType),
        ("float8", "1e999", Reason::OutOfRange),
        ("timestamptz", "yesterday", Reason::WrongType),
        ("text", "a\0", Reason::BadText),
        ("jsonb", "{", Reason::WrongType),
        ("jsonb", "1 2", Reason::WrongType),
        ("date", "1/2/2000", Reason::WrongType),
    ] {
        assert_eq!(texts(&program, &[(name, Some(text))]), Err((reason, Some(name.into()))), "{name} {text}");
    }
}

#[test]
fn texts_follow_paths_and_policies_too() {
    let rules = "columns.a = { from = \"x.y\" }\nunknown_fields = { column = \"extra\" }";
    let arrays = TableColumn { element: Some(23), ..column("l", "int4") };
    let program = compile(&table(vec![column("a", "int4"), column("extra", "jsonb"), arrays]), rules).unwrap();
    let row =
        texts(&program, &[("x", Some("{\"y\": 5}")), ("z\"", Some("q\"")), ("w", None), ("l", Some("[1]"))]).unwrap();
    assert_eq!(row[..2], [number(5), Some(b"\x01{\"z\\\"\":\"q\\\"\",\"w\":null}".to_vec())]);
    assert_eq!(row[2].as_ref().unwrap()[..12], copy::array_header(23, &[1], false)[..12]);
    assert_eq!(texts(&program, &[("x", Some("{\"y\": 5"))]), Err((Reason::WrongType, Some("a".into()))));
    assert_eq!(texts(&program, &[("l", Some("[[1], 2]"))]), Err((Reason::WrongType, Some("l".into()))));
    assert_eq!(texts(&program, &[("z", Some("\0"))]), Err((Reason::BadText, Some("extra".into()))));
    let strict = compile(&table(vec![column("a", "int4")]), "unknown_fields = \"reject\"").unwrap();
    assert_eq!(texts(&strict, &[("b", Some("1"))]), Err((Reason::UnknownField, Some("b".into()))));
}
