use super::super::definition::{BucketRange, Call, Column, Target, Value};
use super::super::sketch_settings::SketchSettings;
use super::*;
use crate::bucket::Timestamp;
use crate::partition;

fn key(name: &str, never_null: bool, is_time: bool, type_name: &str) -> Key {
    let (name, sql, type_name) = (name.into(), format!("e.{name}"), type_name.into());
    Key { name, sql, never_null, is_time, type_name, bucket: None, groups: None }
}

fn definition() -> Definition {
    Definition {
        keys: vec![
            key("bucket", true, true, "timestamp with time zone"),
            key("customer_id", true, false, "bigint"),
            key("country", false, false, "text"),
        ],
        arguments: vec![Column { name: "argument_1".into(), sql: "e.amount".into() }],
        filters: vec![],
        partials: vec![Partial {
            name: "revenue".into(),
            sql: "pg_catalog.sum(\"argument_1\")".into(),
            call: Call {
                function: "pg_catalog.sum".into(),
                arguments: vec!["argument_1".into()],
                form: "{x}".into(),
                filter: None,
            },
            merge: "COALESCE({a} + {b}, {a}, {b})".into(),
            beside: None,
            unite: None,
            gather: "pg_catalog.sum({x}){filter}".into(),
            from_below: None,
            is_sketch: false,
            is_exact: false,
            subtract: None,
        }],
        finishes: vec!["\"revenue\"".into()],
        targets: vec![Target {
            name: "bucket".into(),
            sql: "merged.bucket".into(),
            value: Value::Keys { never_null: true, bucket: None, is_built_in: true },
        }],
        level: None,
        time_type: Some("timestamp with time zone".into()),
        aggregates: vec![],
        sketches: SketchSettings::default(),
        text: Text::default(),
        is_altered: false,
        is_partitioned: false,
    }
}

fn relations() -> Relations {
    let name = |name: &str| QualifiedName::new("public", name);
    Relations {
        source: name("events"),
        public: name("r"),
        rows: name("r_rows"),
        changes: name("r_changes"),
        stored: name("r_stored"),
        retained: name("r_retained"),
        log: name("events_changes"),
    }
}

fn bucket() -> BucketRange {
    BucketRange { column: "argument_2".into(), widths: vec!["01:00:00".into()], is_partition_key: true }
}

fn recounted(definition: &Definition, state: &Counted, now: &Counted) -> String {
    let member = Member { definition, relations: &relations(), below: None, finer: None, unbuilt_before: None };
    recount(&member, state, now, None)
}

fn merged_alone(state: &Counted, now: &Counted, changes: Changes) -> String {
    let (definition, relations) = (definition(), relations());
    let member =
        Member { definition: &definition, relations: &relations, below: None, finer: None, unbuilt_before: None };
    merge_delta(&[member], state, now, None, changes)
}

#[test]
fn the_rows_view_carries_the_tag() {
    assert_eq!(
        create_rows_view(
            &definition(),
            &relations(),
            &Origin::source(&relations(), "e", Some("at")),
            Some("(e.amount > 0)")
        ),
        "CREATE VIEW \"public\".\"r_rows\" AS\nSELECT e.bucket AS \"bucket\",\n    e.customer_id AS \"customer_id\",\n    \
         e.country AS \"country\",\n    e.amount AS \"argument_1\",\n    \"e\".tableoid AS tally_table,\n    \"e\".\"at\" AS tally_time,\n    \"e\".tally_tag AS tally_tag\n FROM \"public\".\"events\" AS \"e\"\n \
         WHERE (e.amount > 0)"
    );
}

#[test]
fn the_index_puts_the_tenant_before_the_bucket() {
    let indexes = create_stored_indexes(&definition(), &relations());
    assert_eq!(
        indexes[0],
        "CREATE UNIQUE INDEX ON \"public\".\"r_stored\" (\"customer_id\", \"bucket\", \"country\") NULLS NOT DISTINCT"
    );
    assert!(indexes[1].contains("USING brin (\"bucket\")"));
}

#[test]
fn a_tick_merges_what_is_new_to_the_state_and_counted_by_the_snapshot() {
    let state = Counted { next: 100, open: vec![90] };
    let now = Counted { next: 200, open: vec![150] };
    let sql = merged_alone(&state, &now, Changes::default());
    assert!(sql.contains(&state.is_new("r.tally_tag")) && sql.contains(&now.is_counted("r.tally_tag")), "{sql}");
    assert!(sql.contains("FROM delta_0 AS s ORDER BY \"customer_id\", \"bucket\", \"country\""), "{sql}");
    assert!(sql.contains("ON CONFLICT (\"customer_id\", \"bucket\", \"country\") DO UPDATE SET"), "{sql}");
    assert!(
        sql.contains(
            "\"revenue\" = COALESCE(s.\"revenue\" + excluded.\"revenue\", s.\"revenue\", excluded.\"revenue\")"
        ),
        "{sql}"
    );
}

#[test]
fn a_column_name_that_looks_like_a_placeholder_is_a_name() {
    let mut definition = definition();
    definition.partials[0].name = "{b}".into();
    let state = Counted { next: 100, open: vec![] };
    let member =
        Member { definition: &definition, relations: &relations(), below: None, finer: None, unbuilt_before: None };
    let sql = merge_delta(&[member], &state, &state, None, Changes::default());
    assert!(sql.contains("\"{b}\" = COALESCE(s.\"{b}\" + excluded.\"{b}\", s.\"{b}\", excluded.\"{b}\")"), "{sql}");
}

#[test]
fn a_merge_may_look_at_a_column_beside() {
    let mut definition = definition();
    definition.partials[0].merge = "later({a}, {A}.{beside}, {b}, {B}.{beside})".into();
    definition.partials[0].beside = Some("{a} at".into());
    let state = Counted { next: 100, open: vec![] };
    let member =
        Member { definition: &definition, relations: &relations(), below: None, finer: None, unbuilt_before: None };
    let sql = merge_delta(&[member], &state, &state, None, Changes::default());
    let merged = "later(s.\"revenue\", s.\"{a} at\", excluded.\"revenue\", excluded.\"{a} at\")";
    assert!(sql.contains(&format!("\"revenue\" = {merged}")), "{sql}");
    let view = create_public_view(&definition, &relations(), Build::AtOnce);
    assert!(view.contains(&format!("{} AS \"revenue\"", merged.replace("excluded.", "p."))), "{view}");
}

#[test]
fn keys_that_may_be_null_are_compared_by_hashable_conditions() {
    assert_eq!(
        same_group(&definition(), "s", "p"),
        "s.\"bucket\" = p.\"bucket\" AND s.\"customer_id\" = p.\"customer_id\" \
         AND COALESCE(s.\"country\", ''::text) = COALESCE(p.\"country\", ''::text) \
         AND (s.\"country\" IS NOT DISTINCT FROM NULL) = (p.\"country\" IS NOT DISTINCT FROM NULL)"
    );
    let mut unusual = definition();
    unusual.keys[2].type_name = "inet".into();
    // Both tests: an array of a NULL array is empty, and an array of an empty array is.
    assert!(same_group(&unusual, "s", "p").ends_with(
        "ARRAY[s.\"country\"] = ARRAY[p.\"country\"] \
         AND (s.\"country\" IS NOT DISTINCT FROM NULL) = (p.\"country\" IS NOT DISTINCT FROM NULL)"
    ));
}

#[test]
fn groups_with_a_null_key_have_an_arm_of_their_own() {
    let view = create_public_view(&definition(), &relations(), Build::AtOnce);
    assert_eq!(view.matches("UNION ALL").count(), 8);
    let mut without = definition();
    without.keys.pop();
    assert_eq!(create_public_view(&without, &relations(), Build::AtOnce).matches("UNION ALL").count(), 6);
}

#[test]
fn a_constant_key_is_not_taken_for_a_position() {
    let text = Text {
        alias: "e".into(),
        targets: vec![Column { name: "n".into(), sql: "count(*)".into() }],
        condition: None,
        keys: vec!["1".into()],
    };
    let query = definition_query(&relations().source, &text);
    assert!(query.ends_with("GROUP BY (1)"), "{query}");
}

#[test]
fn a_stand_in_keeps_the_type_and_drops_its_modifier() {
    assert_eq!(stand_in("character varying(20)").as_deref(), Some("''::character varying"));
    assert_eq!(stand_in("numeric(10,2)").as_deref(), Some("'0'::numeric"));
    assert_eq!(stand_in("jsonb"), None);
}

#[test]
fn a_recount_looks_where_the_changed_buckets_are() {
    let (state, now) = (Counted { next: 100, open: vec![90] }, Counted { next: 200, open: vec![] });
    let mut definition = definition();
    assert!(!recounted(&definition, &state, &now).contains("min(d.\"bucket\")"));
    definition.keys[0].bucket = Some(bucket());
    let sql = recounted(&definition, &state, &now);
    for bound in [
        "r.\"argument_2\" OPERATOR(pg_catalog.>=) (SELECT pg_catalog.min(d.\"bucket\") FROM dirty AS d)",
        "r.\"argument_2\" OPERATOR(pg_catalog.>=) d.\"bucket\"",
        "d.\"bucket\" OPERATOR(pg_catalog.+) '01:00:00'::interval",
        // Of each change: its writer is new and counted now, its row was counted.
        &state.is_new("c.tally_writer"),
        &now.is_counted("c.tally_writer"),
        &state.is_counted("c.tally_tag"),
    ] {
        assert!(sql.contains(bound), "{bound} is missing in {sql}");
    }
}

#[test]
fn a_recount_adds_what_is_retained() {
    let state = Counted { next: 100, open: vec![] };
    let sql = recounted(&definition(), &state, &state);
    assert!(sql.contains("FROM dirty AS p JOIN \"public\".\"r_retained\" AS s ON"), "{sql}");
    assert!(sql.contains("pg_catalog.sum(s.\"revenue\") AS \"revenue\""), "{sql}");
    assert!(sql.contains("d.released_by IS NOT NULL"), "{sql}");
}

#[test]
fn what_a_table_counts_for_is_looked_up_by_its_times() {
    let times = ("2024-01-01".to_string(), "2024-01-02".to_string());
    let sql = |definition: &Definition| retain_table(definition, &relations(), 77, Some(&times), 5);
    let with_time = sql(&definition());
    assert!(
        with_time.contains("r.tally_table OPERATOR(pg_catalog.=) 77::pg_catalog.oid AND r.tally_time"),
        "{with_time}"
    );
    assert!(!sql(&Definition { time_type: None, ..definition() }).contains("tally_time"));
}

#[test]
fn rows_that_changes_add_are_merged_and_groups_that_they_take_from_are_not() {
    let (state, now) = (Counted { next: 100, open: vec![] }, Counted { next: 200, open: vec![] });
    let sql = |are_there, take| merged_alone(&state, &now, Changes { are_there, take });
    assert!(!sql(false, false).contains("r_changes"));
    let adds = sql(true, false);
    assert!(
        adds.contains("r_changes\" AS c WHERE c.tally_sign OPERATOR(pg_catalog.=) (1)") && !adds.contains("dirty"),
        "{adds}"
    );
    assert!(sql(true, true).contains("NOT EXISTS (SELECT FROM dirty_0 AS p"));
}

#[test]
fn settled_partitions_are_left_out() {
    let (state, now) = (Counted { next: 100, open: vec![] }, Counted { next: 200, open: vec![] });
    let settled = Settled { column: "event_time".into(), key: partition::Key::Instant, before: Timestamp(0) };
    let (relations, bound) = (relations(), "OPERATOR(pg_catalog.>=) '2000-01-01 00:00:00+00'");
    assert!(has_new_row(&relations.source, &state, Some(&settled)).contains(&format!("r.\"event_time\" {bound}")));
    let merged = |is_partitioned| {
        let definition = Definition { is_partitioned, ..definition() };
        let member =
            Member { definition: &definition, relations: &relations, below: None, finer: None, unbuilt_before: None };
        merge_delta(&[member], &state, &now, Some(&settled), Changes::default())
    };
    assert!(merged(true).contains(&format!("r.tally_time {bound}")));
    assert!(!merged(false).contains(bound));
    let view = |is_partitioned, bucket| {
        let mut definition = Definition { is_partitioned, ..definition() };
        definition.keys[0].bucket = bucket;
        create_public_view(&definition, &relations, Build::AtOnce)
    };
    let again = "r.tally_time OPERATOR(pg_catalog.>=) tally.unchanged_before(";
    assert!(view(true, Some(bucket())).contains("r.tally_time OPERATOR(pg_catalog.>=) tally.settled_before("));
    assert!(view(true, Some(bucket())).contains(again) && view(true, Some(bucket())).contains("'01:00:00'::interval)"));
    // The rows of a group may be anywhere.
    let elsewhere = BucketRange { is_partition_key: false, ..bucket() };
    assert!(!view(true, Some(elsewhere)).contains(again) && !view(true, None).contains(again));
    assert!(!view(false, None).contains("tally.refuse_stale_plan"));
}

#[test]
fn a_rollup_that_is_being_built_takes_rows_of_built_times_only() {
    let (definition, relations) = (definition(), relations());
    let (state, now) = (Counted { next: 100, open: vec![] }, Counted { next: 200, open: vec![] });
    let before = Some("2024-01-01 00:00:00+00");
    let member =
        Member { definition: &definition, relations: &relations, below: None, finer: None, unbuilt_before: before };
    let built = " AND r.tally_time OPERATOR(pg_catalog.>=) '2024-01-01 00:00:00+00'::timestamp with time zone";
    assert!(merge_delta(std::slice::from_ref(&member), &state, &now, None, Changes::default()).contains(built));
    assert!(recount(&member, &state, &now, None).contains(built));
    let slice = build_slice(&definition, &relations, &now, before, "infinity");
    assert!(slice.contains(built) && slice.contains("OPERATOR(pg_catalog.<) 'infinity'"), "{slice}");
    assert!(slice.contains("ON CONFLICT"), "{slice}");
}

#[test]
fn the_view_reads_unbuilt_times_from_the_rows() {
    let view = |build| create_public_view(&definition(), &relations(), build);
    assert!(
        view(Build::Running).contains("WHERE r.tally_time OPERATOR(pg_catalog.<) COALESCE((SELECT b.unbuilt_before")
    );
    assert!(!view(Build::AtOnce).contains("tally.builds"));
    assert!(view(Build::Sliced).contains("tally.refuse_old_snapshot(b.unbuilt_before)"));
}
