use super::*;
use crate::config::ColumnRule;

pub(crate) fn column(name: &str, base: &str) -> TableColumn {
    TableColumn { name: name.into(), declared: base.into(), base: base.into(), typmod: -1, ..TableColumn::default() }
}

pub(crate) fn table(columns: Vec<TableColumn>) -> Table {
    Table { name: "public.events".into(), columns, ..Table::default() }
}

pub(crate) fn target(rules: &str) -> Target {
    toml::from_str(&format!("table = \"public.events\"\n{rules}")).unwrap()
}

pub(crate) fn compile(table: &Table, rules: &str) -> Result<Program> {
    Program::compile(table, &target(rules), OnTombstone::Skip, 1 << 20)
}

fn message(table: &Table, rules: &str) -> String {
    compile(table, rules).unwrap_err().to_string()
}

#[test]
fn columns_take_the_field_of_their_name_and_defaults_stay_with_postgres() {
    let mut id = column("event_id", "int8");
    id.default = TableDefault::Computed("nextval('events_event_id_seq'::regclass)".into());
    let mut always = column("n", "int4");
    always.default = TableDefault::Identity;
    let mut generated = column("g", "int4");
    generated.default = TableDefault::Generated;
    let table = table(vec![id, column("customer_id", "int8"), column("tally_tag", "int8"), always, generated]);
    let program = compile(&table, "").unwrap();
    assert_eq!(program.copy, "COPY public.events (\"customer_id\") FROM STDIN (FORMAT binary)");
    assert_eq!(program.left_out.len(), 4);
    let program = compile(&table, "columns.event_id = { from = \"id\" }").unwrap();
    assert_eq!(program.columns[0].from, From::Field(Path::field("id")));
    assert!(message(&table, "columns.tally_tag = {}").contains("row tag"));
    assert!(message(&table, "columns.g = {}").contains("generated"));
}

#[test]
fn a_type_of_its_own_makes_the_whole_copy_text() {
    let mut sketch = column("devices", "tally.hll");
    sketch.default = TableDefault::Constant { text: "'x'::tally.hll".into(), bytes: vec![1], input: "x".into() };
    let table = table(vec![column("a", "int4"), sketch]);
    let program = compile(&table, "").unwrap();
    assert_eq!(program.copy, "COPY public.events (\"a\", \"devices\") FROM STDIN (FORMAT text)");
    assert_eq!(program.text_columns().map(|column| &*column.name).collect::<Vec<_>>(), ["devices"]);
    assert_eq!(program.columns[1].absent, Absent::Constant(b"x".to_vec()));
    let printed = program.to_string();
    assert!(printed.contains("COPY in text format, which is slower, because of \"devices\""), "{printed}");
    let program = compile(&table, "columns.devices = { skip = true }").unwrap();
    assert_eq!((program.format, program.text_columns().count()), (Format::Binary, 0));
}

#[test]
fn paths_and_shared_fields_are_compiled() {
    let table = table(vec![column("a", "int4"), column("b", "text"), column("c.d", "text")]);
    let program = compile(&table, "columns.a = { from = \"x.y[2]\" }\ncolumns.b = { from = \"x\" }").unwrap();
    let printed = program.to_string();
    for line in ["\"a\" int4 <- path x.y[2]", "\"b\" text <- field \"x\"", "\"c.d\" text <- field \"c.d\""] {
        assert!(printed.contains(line), "{line}\n{printed}");
    }
    let Some(Taken::Parts(parts)) = program.fields.find("x", &mut 0) else { panic!("{program:?}") };
    assert_eq!((&parts.columns[..], parts.is_looked_into()), (&[1][..], true));
}

#[test]
fn every_type_has_its_kind() {
    let kind = |base: &str, typmod| {
        let column = TableColumn { typmod, ..column("v", base) };
        Kind::of(&column, &ColumnRule::default())
    };
    assert_eq!(kind("oid", -1), Kind::Oid);
    assert_eq!(kind("timetz", -1), Kind::Timetz);
    assert_eq!(kind("public.hll", -1), Kind::Input);
    let array = TableColumn { element: Some(1043), typmod: 4 + 5, ..column("v", "varchar") };
    let text = Kind::Text { limit: Some(5), blanks_are_cut: true };
    assert_eq!(Kind::of(&array, &ColumnRule::default()), Kind::Array(Box::new(text), 1043));
    let labels = TableColumn { labels: vec!["sad".into()], ..column("v", "public.mood") };
    assert_eq!(Kind::of(&labels, &ColumnRule::default()), Kind::Enum(["sad".to_owned()].into()));
    let points = TableColumn { element: Some(600), ..column("v", "point") };
    assert_eq!(Kind::of(&points, &ColumnRule::default()), Kind::Input);
}

#[test]
fn rules_that_do_not_fit_are_refused() {
    let table = table(vec![column("a", "int4"), column("t", "text"), column("j", "jsonb")]);
    for (rules, expected) in [
        ("columns.b = {}", "no such column"),
        ("columns.a = { time = \"rfc3339\" }", "time is for"),
        ("columns.a = { max_length = 3 }", "max_length is for"),
        ("columns.t = { digits_in_string = true }", "digits_in_string is for"),
        ("columns.t = { default = \"broker-timestamp\" }", "broker-timestamp"),
        ("columns.t = { from = \"_offset\" }", "cannot hold _offset"),
        ("columns.t = { from = \"a..b\" }", "no path"),
        ("columns.t = { bytes = \"base64\" }", "bytes is for"),
        ("columns.a = { skip = true, required = true }", "skip cannot be combined"),
        ("unknown_fields = { column = \"t\" }", "not jsonb"),
        ("unknown_fields = { column = \"x\" }", "no column"),
    ] {
        assert!(message(&table, rules).contains(expected), "{rules}: {}", message(&table, rules));
    }
    assert!(compile(&table, "unknown_fields = { column = \"j\" }").is_ok());
}

#[test]
fn typmods_give_precision_and_length() {
    let mut number = column("n", "numeric");
    number.typmod = 4 + ((10 << 16) | 2);
    let mut negative = column("m", "numeric");
    negative.typmod = 4 + ((3 << 16) | (0x7ff & -2i32));
    let mut text = column("v", "varchar");
    text.typmod = 4 + 20;
    let program = compile(&table(vec![number, negative, text]), "").unwrap();
    assert_eq!(program.columns[0].kind, Kind::Numeric(Some((10, 2))));
    assert_eq!(program.columns[1].kind, Kind::Numeric(Some((3, -2))));
    assert_eq!(program.columns[2].kind, Kind::Text { limit: Some(20), blanks_are_cut: true });
}
