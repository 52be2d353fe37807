//! One bad message costs one dead letter, whatever is wrong with it and whoever finds out.

use tally_loader::{check, postgres as connection};

use crate::loading::{Loading, ROWS, block_on, load_one_bad_row};

/// One of 10,000 rows is refused; all others are there.
fn one_bad_row(ddl: &str, bad: &str, sqlstate: &str, reason: &str) {
    let good = |number| format!("{{\"a\": {number}, \"b\": 1}}");
    let loading = load_one_bad_row(ddl, good, bad, sqlstate, reason);
    assert_eq!(loading.number("SELECT count(*) FROM public.t"), ROWS - 1, "{ddl}");
}

#[test]
fn a_duplicate_key_costs_one_row() {
    one_bad_row("CREATE TABLE public.t (a int PRIMARY KEY, b int);", r#"{"a": 5}"#, "23505", "constraint");
}

#[test]
fn a_check_costs_one_row() {
    one_bad_row("CREATE TABLE public.t (a int CHECK (a >= 0), b int);", r#"{"a": -1}"#, "23514", "constraint");
}

#[test]
fn a_leaf_that_only_postgres_can_find_missing_costs_one_row() {
    one_bad_row(
        "CREATE TABLE public.t (a int, b int) PARTITION BY LIST (b);
         CREATE TABLE public.t1 PARTITION OF public.t FOR VALUES IN (1);",
        r#"{"a": 1, "b": 2}"#,
        "23514",
        "no_partition",
    );
}

#[test]
fn a_domain_costs_one_row() {
    one_bad_row(
        "CREATE DOMAIN public.small AS int CHECK (VALUE < 100000); CREATE TABLE public.t (a public.small, b int);",
        r#"{"a": 100000}"#,
        "23514",
        "constraint",
    );
}

#[test]
fn a_before_trigger_costs_one_row() {
    one_bad_row(
        "CREATE TABLE public.t (a int, b int);
         CREATE FUNCTION public.no() RETURNS trigger LANGUAGE plpgsql AS
           $$ BEGIN IF NEW.a = -1 THEN RAISE 'never'; END IF; RETURN NEW; END $$;
         CREATE TRIGGER no BEFORE INSERT ON public.t FOR EACH ROW EXECUTE FUNCTION public.no();",
        r#"{"a": -1}"#,
        "P0001",
        "constraint",
    );
}

#[test]
fn an_after_trigger_names_no_row_and_still_costs_one() {
    one_bad_row(
        "CREATE TABLE public.t (a int, b int);
         CREATE FUNCTION public.no() RETURNS trigger LANGUAGE plpgsql AS
           $$ BEGIN IF NEW.a = -1 THEN RAISE 'never'; END IF; RETURN NULL; END $$;
         CREATE TRIGGER no AFTER INSERT ON public.t FOR EACH ROW EXECUTE FUNCTION public.no();",
        r#"{"a": -1}"#,
        "P0001",
        "constraint",
    );
}

#[test]
fn a_foreign_key_names_no_row_and_still_costs_one() {
    one_bad_row(
        "CREATE TABLE public.other (b int PRIMARY KEY); INSERT INTO public.other VALUES (1);
         CREATE TABLE public.t (a int, b int REFERENCES public.other);",
        r#"{"a": 1, "b": 2}"#,
        "23503",
        "constraint",
    );
}

#[test]
fn deferred_constraints_cost_one_row() {
    one_bad_row(
        "CREATE TABLE public.t (a int UNIQUE DEFERRABLE INITIALLY DEFERRED, b int);",
        r#"{"a": 5}"#,
        "23505",
        "constraint",
    );
    one_bad_row(
        "CREATE TABLE public.other (b int PRIMARY KEY); INSERT INTO public.other VALUES (1);
         CREATE TABLE public.t (a int, b int REFERENCES public.other DEFERRABLE INITIALLY DEFERRED);",
        r#"{"a": 1, "b": 2}"#,
        "23503",
        "constraint",
    );
}

#[test]
fn a_value_too_large_for_an_index_costs_one_row() {
    let noise: String =
        (0..9_000u32).map(|n| char::from_u32(0x4e00 + n.wrapping_mul(2_654_435_761) % 20_000).unwrap()).collect();
    one_bad_row(
        "CREATE TABLE public.t (a int, b int, s text); CREATE INDEX ON public.t (s);",
        &format!("{{\"a\": 1, \"s\": \"{noise}\"}}"),
        "54000",
        "out_of_range",
    );
}

/// The reason that is expected, the column, the message.
type Poison<'a> = (&'a str, Option<&'a str>, Option<&'a [u8]>);

#[test]
fn poison_message_becomes_a_dead_letter() {
    let mut loading = Loading::new(
        2,
        "CREATE TABLE public.t (event_time timestamptz NOT NULL, customer_id bigint NOT NULL, v varchar(3), device_id bigint,
           extra jsonb) PARTITION BY RANGE (event_time);
         CREATE TABLE public.t1 PARTITION OF public.t FOR VALUES FROM ('2000-01-01') TO ('2001-01-01');",
    );
    loading.target = "columns.event_time = { default = \"broker-timestamp\" }\ncolumns.extra = { skip = true }\n\
                      columns.device_id = { digits_in_string = true }"
        .into();
    loading.policy = "dead_letters = { max_value = \"1 kB\" }\non = { tombstone = \"dead-letter\" }".into();
    let huge = format!("{{\"customer_id\": 1, \"x\": \"{}\"}}", "x".repeat(2_000));
    let bad: Vec<Poison<'_>> = vec![
        ("not_json", None, Some(b"{\"customer_id\": 1")),
        ("not_json", None, Some(b"\xff\xfe\x00binary")),
        ("not_object", None, Some(b"[1, 2]")),
        ("missing_required", Some("customer_id"), Some(b"{}")),
        ("wrong_type", Some("customer_id"), Some(b"{\"customer_id\": \"seven\"}")),
        ("wrong_type", Some("device_id"), Some(b"{\"customer_id\": 1, \"device_id\": \"7x\"}")),
        ("out_of_range", Some("customer_id"), Some(b"{\"customer_id\": 9223372036854775808}")),
        ("too_long", Some("v"), Some(b"{\"customer_id\": 1, \"v\": \"abcd\"}")),
        ("bad_text", Some("v"), Some(b"{\"customer_id\": 1, \"v\": \"\\u0000\"}")),
        ("no_partition", Some("event_time"), Some(b"{\"customer_id\": 1, \"event_time\": \"1999-12-31T23:59:59Z\"}")),
        ("too_large", None, Some(huge.as_bytes())),
        ("tombstone", None, None),
    ];
    for (_, _, value) in &bad {
        loading.produce(1, r#"{"customer_id": 1, "device_id": "42"}"#);
        loading.topic.produce(1, Some(b"key"), *value, Some(946_684_800_000));
    }
    loading.produce(1, r#"{"customer_id": 2}"#);
    loading.load().unwrap();
    assert_eq!(loading.number("SELECT count(*) FROM public.t"), bad.len() as i64 + 1);
    let letters = loading
        .session()
        .query(
            "SELECT reason, column_name, value, key, part, message_offset, value_length, message_time = '2000-01-01', error
             FROM tally.dead_letters ORDER BY message_offset",
            &[],
        )
        .unwrap();
    assert_eq!(letters.len(), bad.len());
    for (at, (letter, (reason, column, value))) in letters.iter().zip(&bad).enumerate() {
        assert_eq!(letter.get::<_, &str>(0), *reason, "message {at}");
        assert_eq!(letter.get::<_, Option<&str>>(1), *column, "message {at}");
        assert_eq!(letter.get::<_, Option<&[u8]>>(2), value.map(|value| &value[..value.len().min(1_000)]));
        assert_eq!(letter.get::<_, Option<&[u8]>>(3), Some(&b"key"[..]));
        assert_eq!((letter.get::<_, i32>(4), letter.get::<_, i64>(5)), (1, 2 * at as i64 + 1));
        assert_eq!(letter.get::<_, Option<i64>>(6), value.map(|value| value.len() as i64));
        assert!(letter.get::<_, bool>(7) && !letter.get::<_, &str>(8).is_empty());
    }
    // A restart does not meet them again.
    loading.load().unwrap();
    assert_eq!(loading.number("SELECT count(*) FROM public.t"), bad.len() as i64 + 1);
    assert_eq!(loading.number("SELECT count(*) FROM tally.dead_letters"), bad.len() as i64);
    assert_eq!(loading.number("SELECT dead_pending FROM tally.loader_status WHERE part = 1"), bad.len() as i64);
}

#[test]
fn a_day_that_no_leaf_takes_is_a_dead_letter_before_copy() {
    let loading = Loading::new(
        1,
        "CREATE TABLE public.t (day date, a int) PARTITION BY RANGE (day);
         CREATE TABLE public.t1 PARTITION OF public.t FOR VALUES FROM ('2000-01-01') TO ('2000-02-01');
         CREATE TABLE public.t2 PARTITION OF public.t FOR VALUES FROM (MINVALUE) TO ('1999-01-01');",
    );
    for day in ["2000-01-31", "2000-02-01", "1998-12-31", "1999-01-01"] {
        loading.produce(0, &format!("{{\"day\": \"{day}\"}}"));
    }
    loading.load().unwrap();
    assert_eq!(loading.texts("SELECT day::text FROM public.t ORDER BY day"), ["1998-12-31", "2000-01-31"]);
    // Without SQLSTATE: the server was not asked.
    let letters =
        "SELECT concat_ws(' ', message_offset, reason, column_name, sqlstate) FROM tally.dead_letters ORDER BY 1";
    assert_eq!(loading.texts(letters), ["1 no_partition day", "3 no_partition day"]);
    let config = loading.config();
    let (text, _) = block_on(async {
        let client = connection::connect(&config.postgres, "test").await.unwrap();
        check::target(&client, &config).await.unwrap()
    });
    let ranges = "2 partitions by \"day\" take the beginning to 1999-01-01, 2000-01-01 to 2000-02-01";
    assert!(text.contains(ranges), "{text}");
}

#[test]
fn many_bad_rows_are_found_and_the_others_load() {
    let mut loading = Loading::new(1, "CREATE TABLE public.t (a int CHECK (a % 20 <> 3));");
    loading.policy = "dead_letters = { stop_above_ratio = 0.1 }".into();
    (0..6_000).for_each(|number| _ = loading.produce(0, &format!("{{\"a\": {number}}}")));
    loading.load().unwrap();
    assert_eq!(loading.number("SELECT count(*) FROM public.t"), 5_700);
    assert_eq!(loading.number("SELECT count(*) FROM tally.dead_letters"), 300);
}

/// However many rows of a COPY are refused, each of its rows goes to the server a few times at most, and they keep their order. The
/// sequence of an identity column counts them, and forgets nothing when rows are rolled back.
#[test]
fn many_bad_rows_cost_each_row_little() {
    const TABLE: &str = "CREATE TABLE public.t (a int CHECK (a % 50 <> 49), n bigint GENERATED ALWAYS AS IDENTITY);";
    let mut loading = Loading::new(1, TABLE);
    loading.policy = "dead_letters = { stop_above_ratio = 1.0, stop_above_per_minute = 1000000 }".into();
    let messages = 4000;
    (0..messages).for_each(|a| _ = loading.produce(0, &format!("{{\"a\": {a}}}")));
    loading.load().unwrap();
    assert_eq!(loading.number("SELECT count(*) FROM tally.dead_letters WHERE sqlstate = '23514'"), messages / 50);
    assert_eq!(loading.number("SELECT count(*) FROM public.t"), messages - messages / 50);
    let order =
        "SELECT count(*) FROM (SELECT a < lag(a) OVER (ORDER BY n) AS is_behind FROM public.t) s WHERE is_behind";
    assert_eq!(loading.number(order), 0);
    let tried = loading.number("SELECT last_value FROM public.t_n_seq");
    assert!(tried <= 3 * messages, "{tried} rows were sent for {messages}");
}

#[test]
fn too_many_dead_letters_stop_the_loader_and_change_nothing() {
    for value in ["broken", r#"{"a": -1}"#] {
        let loading = Loading::new(1, "CREATE TABLE public.t (a int CHECK (a >= 0));");
        for number in 0..2_000 {
            let good = format!("{{\"a\": {number}}}");
            loading.produce(0, if number % 10 == 0 { value } else { &good });
        }
        let error = loading.load().unwrap_err();
        assert_eq!(error.code(), 6, "{error}");
        assert_eq!(loading.number("SELECT count(*) FROM public.t"), 0);
        assert_eq!(loading.number("SELECT count(*) FROM tally.dead_letters"), 0);
        assert_eq!(loading.number("SELECT next_offset FROM tally.loader_offsets"), 0);
        assert_eq!(loading.number("SELECT count(*) FROM tally.loader_members"), 0, "it left in order");
    }
}
