//! docs/reference.md is what the comments in the database say: it is generated, and this test compares it.
//! `TALLY_WRITE_REFERENCE=1 cargo server reference` writes it anew.

use std::collections::BTreeSet;
use std::fmt::Write;

use postgres::Client;
use tally_server_tests::cluster;

const HEAD: &str = "\
# SQL reference

Every function, view and table of the schema `tally`, as its comment describes it; `\\df+ tally.*` and `\\d+ tally.*` in psql show the
same. This page is generated from them, see `pgrx-tests/reference.rs`. Settings are in [settings.md](settings.md). Names that begin
with `_` are internal.
";

/// Functions that only PostgreSQL itself calls take or return these.
const FUNCTIONS: &str = "
    SELECT p.proname::text, format('tally.%s(%s)', p.proname, pg_get_function_arguments(p.oid)),
           coalesce(pg_get_function_result(p.oid), ''), obj_description(p.oid, 'pg_proc')
    FROM pg_proc p
    WHERE p.pronamespace = 'tally'::regnamespace AND p.proname NOT LIKE '\\_%' AND p.prokind = ANY (string_to_array($1, ',')::\"char\"[])
      AND p.prorettype NOT IN ('internal'::regtype, 'trigger'::regtype, 'event_trigger'::regtype)
      AND NOT ARRAY['internal'::regtype::oid, 'cstring'::regtype::oid, 'cstring[]'::regtype::oid] && p.proargtypes::oid[]
      AND (starts_with(p.proname, 'hll') OR p.proname = 'distinct_count') = $2
    ORDER BY 1, p.pronargs, 2";

#[test]
fn reference_says_what_the_comments_say() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference.md");
    let database = cluster::database();
    let page = page(&mut database.connect());
    if std::env::var_os("TALLY_WRITE_REFERENCE").is_some() {
        std::fs::write(file, &page).unwrap();
    }
    let found = std::fs::read_to_string(file).unwrap();
    let differs = found.lines().zip(page.lines()).find(|(found, expected)| found != expected);
    assert!(
        found == page,
        "docs/reference.md is out of date; TALLY_WRITE_REFERENCE=1 cargo server reference writes it. First difference \
         (page, database): {differs:?}"
    );
}

#[test]
fn every_function_that_the_readme_names_exists() {
    let database = cluster::database();
    let functions: BTreeSet<String> = database
        .connect()
        .query("SELECT proname::text FROM pg_proc WHERE pronamespace = 'tally'::regnamespace", &[])
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    let named: BTreeSet<String> = include_str!("../README.md")
        .split("tally.")
        .skip(1)
        .filter_map(|rest| rest.split_once('('))
        .map(|(name, _)| name.to_owned())
        .filter(|name| name.chars().all(|character| character.is_ascii_alphanumeric() || character == '_'))
        .collect();
    assert!(named.len() > 5, "the README names functions: {named:?}");
    assert_eq!(named.difference(&functions).collect::<Vec<_>>(), Vec::<&String>::new());
}

fn page(session: &mut Client) -> String {
    let mut page = HEAD.to_owned();
    for (title, kinds, is_sketch) in [
        ("Procedures and functions", "p,f", false),
        ("Functions of distinct counts", "f", true),
        ("Aggregates of distinct counts", "a", true),
        ("Other aggregates", "a", false),
    ] {
        let functions = session.query(FUNCTIONS, &[&kinds, &is_sketch]).unwrap();
        if functions.is_empty() {
            continue;
        }
        write!(page, "\n## {title}\n\n| call | result | what it does |\n|---|---|---|\n").unwrap();
        for function in &functions {
            let cell = |column: usize| cell(function.get::<_, Option<&str>>(column).unwrap_or_default());
            let result = match cell(2) {
                result if result.is_empty() => result,
                result => format!("`{result}`"),
            };
            writeln!(page, "| `{}` | {result} | {} |", cell(1), cell(3)).unwrap();
        }
    }
    for (title, kinds) in [("Views", "v"), ("Tables", "r,p")] {
        write!(page, "\n## {title}\n").unwrap();
        let relations = session
            .query(
                "SELECT c.oid, c.relname::text, obj_description(c.oid, 'pg_class') FROM pg_class c
                 WHERE c.relnamespace = 'tally'::regnamespace AND c.relname NOT LIKE '\\_%'
                   AND c.relkind = ANY (string_to_array($1, ',')::\"char\"[]) ORDER BY 2",
                &[&kinds],
            )
            .unwrap();
        for relation in &relations {
            let (oid, name, comment): (u32, &str, Option<&str>) = (relation.get(0), relation.get(1), relation.get(2));
            write!(
                page,
                "\n### tally.{name}\n\n{}.\n\n| column | type | what it says |\n|---|---|---|\n",
                sentence(comment)
            )
            .unwrap();
            let columns = session
                .query(
                    "SELECT attname::text, format_type(atttypid, atttypmod), col_description(attrelid, attnum) FROM pg_attribute
                     WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
                    &[&oid],
                )
                .unwrap();
            for column in &columns {
                let cell = |at: usize| cell(column.get::<_, Option<&str>>(at).unwrap_or_default());
                writeln!(page, "| `{}` | `{}` | {} |", cell(0), cell(1), cell(2)).unwrap();
            }
        }
    }
    page
}

/// A bar would end the cell; a line break would end the row.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

/// Comments are lower case and have no full stop.
fn sentence(comment: Option<&str>) -> String {
    let comment = cell(comment.unwrap_or_default());
    let mut characters = comment.chars();
    characters.next().map_or_else(String::new, |first| first.to_uppercase().chain(characters).collect())
}
