//! Tables with a type that only its input function can read: the whole COPY is text, and the promises stay the same.

use std::sync::atomic::Ordering::Relaxed;

use tally_loader::{check, postgres as connection};

use crate::loading::{Loading, ROWS, block_on, load_one_bad_row};

/// One of 10,000 rows is refused. Every row holds text with line breaks, which must not count as rows.
fn one_bad_row(ddl: &str, bad: &str, sqlstate: &str, reason: &str) {
    let good = |number| format!("{{\"a\": {number}, \"p\": \"({number},2)\", \"s\": \"\\n\\r\\nCOPY t, line 3\\\\\"}}");
    let loading = load_one_bad_row(ddl, good, bad, sqlstate, reason);
    let stored = "SELECT count(*) FROM public.t WHERE p[0] = a AND s = E'\\n\\r\\nCOPY t, line 3\\\\'";
    assert_eq!(loading.number(stored), ROWS - 1, "{ddl}");
}

#[test]
fn a_bad_input_costs_one_row() {
    one_bad_row("CREATE TABLE public.t (a int, p point, s text);", r#"{"a": 1, "p": "(1,"}"#, "22P02", "bad_text");
}

#[test]
fn a_value_that_looks_like_a_context_costs_only_its_own_row() {
    let ddl = "CREATE TABLE public.t (a int, p point, s text);";
    one_bad_row(ddl, r#"{"p": "\nCOPY t, line 1, column p: \"x"}"#, "22P02", "bad_text");
    one_bad_row(
        "CREATE DOMAIN public.short AS text CHECK (length(VALUE) < 40); CREATE TABLE public.t (a int, p point, s public.short);",
        r#"{"s": "x\nCOPY t, line 5\ny..............................."}"#,
        "23514",
        "constraint",
    );
}

#[test]
fn constraints_and_triggers_cost_one_row() {
    one_bad_row(
        "CREATE TABLE public.t (a int PRIMARY KEY, p point, s text);",
        r#"{"a": 5, "p": "(5,2)"}"#,
        "23505",
        "constraint",
    );
    one_bad_row(
        "CREATE TABLE public.t (a int CHECK (a >= 0), p point, s text);",
        r#"{"a": -1, "s": "x\nCOPY t, line 2"}"#,
        "23514",
        "constraint",
    );
    for when in ["BEFORE", "AFTER"] {
        one_bad_row(
            &format!(
                "CREATE TABLE public.t (a int, p point, s text);
                 CREATE FUNCTION public.no() RETURNS trigger LANGUAGE plpgsql AS
                   $$ BEGIN IF NEW.a = -1 THEN EXECUTE format('SELECT 1 / (length(%L) - length(%1$L))', NEW.s); END IF; RETURN NEW; END $$;
                 CREATE TRIGGER no {when} INSERT ON public.t FOR EACH ROW EXECUTE FUNCTION public.no();"
            ),
            r#"{"a": -1, "s": "x\nCOPY t, line 2"}"#,
            "22012",
            "constraint",
        );
    }
}

#[test]
fn every_row_bad_stops_the_loader() {
    let loading = Loading::new(1, "CREATE TABLE public.t (a int, p point);");
    (0..2_000).for_each(|_| _ = loading.produce(0, r#"{"p": "secret"}"#));
    let error = loading.load().unwrap_err();
    assert_eq!(error.code(), 6, "{error}");
    assert!(!error.to_string().contains("secret"), "{error}");
    assert_eq!(loading.number("SELECT count(*) FROM public.t"), 0);
}

#[test]
fn check_and_metrics_name_the_columns() {
    let loading = Loading::new(1, "CREATE TABLE public.t (a int, \"p q\" point, r box[]);");
    let config = loading.config();
    let (text, _) = block_on(async {
        let client = connection::connect(&config.postgres, "test").await.unwrap();
        check::target(&client, &config).await.unwrap()
    });
    for line in [
        "COPY in text format, which is slower, because of \"p q\", \"r\"",
        "\"r\" box[] <- field \"r\", as text for the type's input function",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    let running = loading.start();
    loading.produce(0, "{}");
    running.wait_for_rows(1);
    let metrics = running.metrics.render();
    for column in ["p q", "r"] {
        let line = format!("tally_loader_text_fallback{{source=\"topic\",column=\"{column}\"}} 1");
        assert!(metrics.contains(&line), "{line}\n{metrics}");
    }
    running.stop().unwrap();
}

#[test]
fn a_changed_table_changes_the_format() {
    let loading = Loading::new(1, "CREATE TABLE public.t (a int);");
    let running = loading.start();
    let mut session = loading.session();
    for (change, value) in [
        ("ADD COLUMN p point", r#"{"a": 1, "p": "(1,2)"}"#),
        ("ADD COLUMN b text", r#"{"a": 1, "p": "(1,2)", "b": "\\"}"#),
        ("DROP COLUMN p", r#"{"a": 1, "p": "(1,2)", "b": "\\"}"#),
    ] {
        session.batch_execute(&format!("ALTER TABLE public.t {change}")).unwrap();
        let rows = running.metrics.rows.load(Relaxed);
        loading.produce(0, value);
        running.wait_for_rows(rows + 1);
    }
    assert!(!running.metrics.render().contains("text_fallback{"));
    running.stop().unwrap();
    assert_eq!(loading.texts("SELECT concat_ws('|', a, b) FROM public.t ORDER BY b"), ["1|\\", "1|\\", "1"]);
    assert_eq!(loading.number("SELECT count(*) FROM tally.dead_letters"), 0);
}

#[test]
fn rows_that_a_changed_type_refuses_are_no_bad_rows() {
    // Text that was made for an integer is no time: all rows fail, and the program is at fault, not they.
    let loading = Loading::new(1, "CREATE TABLE public.t (a int, p point);");
    let running = loading.start();
    loading.produce(0, r#"{"a": 0}"#);
    running.wait_for_rows(1);
    let change = "ALTER TABLE public.t ALTER COLUMN a TYPE timestamptz USING to_timestamp(a)";
    loading.session().batch_execute(change).unwrap();
    (1..3_000).for_each(|number| _ = loading.produce(0, &format!("{{\"a\": {number}}}")));
    running.wait_for_rows(3_000);
    running.stop().unwrap();
    assert_eq!(loading.texts("SELECT max(a)::text FROM public.t"), ["1970-01-01 00:00:02.999+00"]);
    assert_eq!(loading.number("SELECT count(*) FROM tally.dead_letters"), 0);
}
