//! Values inside of values, and several columns from one field.

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
