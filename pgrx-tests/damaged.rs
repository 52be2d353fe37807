//! Damaged sketches through SQL: what the fuzzer makes is taken or refused as core says, by every way in, and breaks nothing.

use std::io::Write;

use postgres::Client;
use tally_fuzz::{Corpus, Target};

use crate::sketch::{binary_copy, session};

const INPUTS: usize = 20_000;
/// Inputs in one statement.
const BATCH: usize = 1_000;
/// So many of them also come as binary copies, each by a statement of its own.
const COPIES: usize = 1_000;

/// For each input: the SQLSTATE of taking it, and of what is done with it then.
fn create_attempts(session: &mut Client, kind: &str, uses: &str) {
    let sql = format!(
        "CREATE FUNCTION attempts(inputs text[]) RETURNS SETOF text[] LANGUAGE plpgsql AS $$
         DECLARE
           input text;
           value tally.{kind};
         BEGIN
           FOREACH input IN ARRAY inputs LOOP
             BEGIN
               value := input::tally.{kind};
               BEGIN
                 PERFORM {uses};
                 RETURN NEXT ARRAY['00000', '00000'];
               EXCEPTION WHEN OTHERS THEN
                 RETURN NEXT ARRAY['00000', SQLSTATE];
               END;
             EXCEPTION WHEN OTHERS THEN
               RETURN NEXT ARRAY[SQLSTATE, '00000'];
             END;
           END LOOP;
         END $$"
    );
    session.batch_execute(&sql).unwrap();
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold("\\x".to_string(), |text, byte| text + &format!("{byte:02x}"))
}

/// Data and limits may be wrong; nothing else may.
#[track_caller]
fn assert_about_data(sqlstate: &str, input: &str) {
    assert!(["00", "22", "54"].contains(&&sqlstate[..2]), "{sqlstate} for {input}");
}

/// What the fuzzer draws, learning from each input.
fn inputs(target: Target) -> impl Iterator<Item = Vec<u8>> {
    let seed = rand::random();
    println!("target {target:?}, seed {seed}");
    let mut corpus = Corpus::new(target, seed);
    std::iter::repeat_with(move || {
        let (input, other) = corpus.draw();
        let (outcome, input) = (target.run(input, other), input.to_vec());
        corpus.note(outcome);
        input
    })
}

fn run(target: Target, kind: &str, uses: &str, text: impl Fn(&[u8]) -> Option<String>, takes: impl Fn(&[u8]) -> bool) {
    let (_database, mut session) = session();
    create_attempts(&mut session, kind, uses);
    let mut drawn = inputs(target).filter_map(|input| Some((text(&input)?, takes(&input))));
    let mut taken = 0;
    for _ in 0..INPUTS / BATCH {
        let (inputs, expected): (Vec<String>, Vec<bool>) = drawn.by_ref().take(BATCH).unzip();
        let found = session.query("SELECT a[1], a[2] FROM attempts($1) AS a", &[&inputs]).unwrap();
        assert_eq!(found.len(), inputs.len());
        for ((row, input), expected) in found.iter().zip(&inputs).zip(expected) {
            let (taking, using): (&str, &str) = (row.get(0), row.get(1));
            assert_about_data(taking, input);
            assert_about_data(using, input);
            assert_eq!(taking == "00000", expected, "{input}: {taking}");
            taken += u32::from(expected);
        }
    }
    assert!(taken > INPUTS as u32 / 50, "only {taken} inputs were values");
}

/// The same bytes to the receive function.
fn copy(target: Target, kind: &str, takes: impl Fn(&[u8]) -> bool) {
    let (_database, mut session) = session();
    session.batch_execute(&format!("CREATE TABLE copies (value tally.{kind})")).unwrap();
    for input in inputs(target).take(COPIES) {
        let mut writer = session.copy_in("COPY copies FROM STDIN (FORMAT binary)").unwrap();
        writer.write_all(&binary_copy(&input)).unwrap();
        match writer.finish() {
            Ok(_) => assert!(takes(&input), "{}", hex(&input)),
            Err(error) => {
                let error = error.as_db_error().unwrap_or_else(|| panic!("{}: {error}", hex(&input)));
                assert_about_data(error.code().code(), &hex(&input));
                assert!(!takes(&input), "{}: {error}", hex(&input));
            }
        }
    }
    session.batch_execute("SELECT value FROM copies").unwrap();
}

/// Values that no way in would take, as if the page they are on had been damaged: a column of bytes becomes one of sketches.
fn read_from_pages(target: Target, kind: &str, uses: &str, aggregates: &str) {
    let (_database, mut session) = session();
    session.batch_execute("CREATE TABLE pages (number int, value bytea)").unwrap();
    let inputs: Vec<Vec<u8>> = inputs(target).take(INPUTS / 4).collect();
    session
        .execute("INSERT INTO pages SELECT n, v FROM unnest($1::bytea[]) WITH ORDINALITY AS u (v, n)", &[&inputs])
        .unwrap();
    let sql = format!(
        "SET allow_system_table_mods = on;
         UPDATE pg_attribute SET atttypid = 'tally.{kind}'::regtype WHERE attrelid = 'pages'::regclass AND attname = 'value';
         RESET allow_system_table_mods;
         CREATE FUNCTION readings() RETURNS SETOF text LANGUAGE plpgsql AS $$
         BEGIN
           FOR row IN 1..{} LOOP
             BEGIN
               PERFORM {uses} FROM pages WHERE number = row;
               RETURN NEXT '00000';
             EXCEPTION WHEN OTHERS THEN
               RETURN NEXT SQLSTATE;
             END;
             BEGIN
               PERFORM {aggregates} FROM pages WHERE number = row;
             EXCEPTION WHEN OTHERS THEN
               RETURN NEXT SQLSTATE;
             END;
           END LOOP;
         END $$",
        inputs.len()
    );
    session.batch_execute(&sql).unwrap();
    session.batch_execute("CREATE INDEX ON pages (number)").unwrap();
    let found = session.query("SELECT r FROM readings() AS r", &[]).unwrap();
    found.iter().for_each(|row| assert_about_data(row.get(0), "a value on a damaged page"));
    let is_read = |row: &&postgres::Row| row.get::<_, &str>(0) == "00000";
    let read = found.iter().filter(is_read).count();
    assert!(read > inputs.len() / 50 && read < inputs.len(), "{read} of {} values could be read", inputs.len());
}

const AGGREGATES_OF_HLL: &str = "hll_union_agg(value), distinct_count(value), hll_cardinality(hll_union_agg(value))";
const AGGREGATES_OF_TOPN: &str = "topn_union_agg(value), topn(topn_union_agg(value), 3)";
const USES_OF_HLL: &str =
    "hll_cardinality(value), hll_cardinality(value, 'classic'), hll_print(value), hll_add(value, 1::hll_hashval),
    hll_union(value, value), hll_send(value), hll_error(value), value = value, hll_expthresh(value), value::text::hll";
const USES_OF_TOPN: &str =
    "topn_union(value, value), topn_add(value, 'x'), topn_total(value), topn_error(value), value::jsonb,
    topn_send(value), value::text::topn, (SELECT count(*) FROM topn_bounds(value, 3))";

/// Items are text in the encoding of the database.
fn takes_topn(input: &[u8]) -> bool {
    let packed = tally_core::topn::Packed::validate(input);
    packed.is_ok_and(|packed| {
        packed.entries().all(|entry| std::str::from_utf8(entry.item).is_ok_and(|item| !item.contains('\0')))
    })
}

#[test]
fn damaged_distinct_counts_break_nothing() {
    run(Target::Hll, "hll", USES_OF_HLL, |input| Some(hex(input)), |input| Target::Hll.accepts(input));
    copy(Target::Hll, "hll", |input| Target::Hll.accepts(input));
    read_from_pages(Target::Hll, "hll", USES_OF_HLL, AGGREGATES_OF_HLL);
}

#[test]
fn damaged_top_n_lists_break_nothing() {
    run(Target::Topn, "topn", USES_OF_TOPN, |input| Some(hex(input)), takes_topn);
    copy(Target::Topn, "topn", takes_topn);
    read_from_pages(Target::Topn, "topn", USES_OF_TOPN, AGGREGATES_OF_TOPN);
}

#[test]
fn damaged_json_of_top_n_lists_breaks_nothing() {
    // A text holds no zero byte, and one that does not begin like an object is taken for stored bytes.
    let text = |input: &[u8]| {
        let text = String::from_utf8_lossy(input).into_owned();
        (!text.contains('\0') && text.trim_ascii_start().starts_with('{')).then_some(text)
    };
    run(Target::TopnJson, "topn", USES_OF_TOPN, text, |input| Target::TopnJson.accepts(input));
}
