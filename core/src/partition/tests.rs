use super::check::{KeyColumn, Member, Request, Set};
use super::sql::{self, Grant, Publication, ReplicaIdentity, RowPolicy, Shape};
use super::status::{self, Facts, Verdict};
use super::*;
use crate::bucket::{Date, HOUR, MINUTE, Rule};
use crate::error::Explain;
use crate::ident::QualifiedName;
use proptest::prelude::*;
use std::collections::HashSet;

pub(super) const LIMITS: Limits = Limits { outage: 7 * DAY, most: 1000 };

pub(super) fn at(year: i64, month: i64, day: i64, hour: i64) -> Timestamp {
    Timestamp(Date::from_civil(year, month, day).0 * DAY + hour * HOUR)
}

pub(super) fn policy(width: Width) -> Policy {
    Policy {
        key: Key::Instant,
        width,
        premake: 0,
        lateness: 2 * DAY,
        far_future: 2 * DAY,
        retention: None,
        grace: 7 * DAY,
        detach_deadline: 6 * HOUR,
    }
}

fn partition(lower: Timestamp, upper: Timestamp) -> Partition {
    Partition { range: Range { lower, upper }, used: false }
}

fn as_existing(ranges: &[Range]) -> Vec<Partition> {
    ranges.iter().map(|range| Partition { range: *range, used: false }).collect()
}

#[test]
fn a_new_set_reaches_from_the_latest_late_row_over_an_outage_of_a_week() {
    let policy = policy(Width::Day);
    let plan = premake(&policy, &Grid::new(policy.width, &Utc), &[], at(2026, 11, 24, 10), &LIMITS);
    assert_eq!(plan.missing.first().unwrap().lower, at(2026, 11, 22, 0));
    assert_eq!(plan.missing.last().unwrap().upper, at(2026, 12, 2, 0));
    assert!(!plan.capped);
}

#[test]
fn a_set_without_new_rows_moves_on_with_the_clock() {
    let policy = policy(Width::Day);
    let grid = Grid::new(policy.width, &Utc);
    let existing = as_existing(&premake(&policy, &grid, &[], at(2026, 11, 24, 10), &LIMITS).missing);
    assert!(premake(&policy, &grid, &existing, at(2026, 11, 24, 23), &LIMITS).missing.is_empty());
    let next_day = premake(&policy, &grid, &existing, at(2026, 11, 25, 1), &LIMITS).missing;
    assert_eq!(next_day, [Range { lower: at(2026, 12, 2, 0), upper: at(2026, 12, 3, 0) }]);
}

#[test]
fn rows_ahead_of_the_clock_move_the_target_but_poison_does_not() {
    let policy = policy(Width::Day);
    let grid = Grid::new(policy.width, &Utc);
    let now = at(2026, 11, 24, 10);
    let mut existing = as_existing(&premake(&policy, &grid, &[], now, &LIMITS).missing);
    existing.iter_mut().find(|partition| partition.range.lower == at(2026, 11, 25, 0)).unwrap().used = true;
    assert_eq!(policy.target(&existing, now, &LIMITS), at(2026, 11, 26, 0).plus(7 * DAY));
    existing.last_mut().unwrap().used = true;
    assert_eq!(
        policy.target(&existing, now, &LIMITS),
        at(2026, 11, 26, 0).plus(7 * DAY),
        "the row in December is poison"
    );
}

#[test]
fn a_partition_made_by_hand_for_2097_neither_stops_premake_nor_is_overlapped() {
    let policy = policy(Width::Months(1));
    let grid = Grid::new(policy.width, &Utc);
    let now = at(2026, 11, 24, 0);
    let far = partition(at(2027, 1, 15, 0), at(2098, 1, 1, 0));
    let existing = [partition(at(2026, 11, 1, 0), at(2026, 12, 1, 0)), far];
    let missing = premake(&policy, &grid, &existing, at(2026, 11, 1, 0), &LIMITS).missing;
    assert_eq!(
        missing,
        [
            Range { lower: at(2026, 12, 1, 0), upper: at(2027, 1, 1, 0) },
            Range { lower: at(2027, 1, 1, 0), upper: at(2027, 1, 15, 0) },
        ]
    );
    let later = [partition(at(2026, 11, 1, 0), at(2027, 1, 1, 0)), far];
    let missing = premake(&policy, &grid, &later, now, &LIMITS).missing;
    assert!(missing.is_empty(), "the gap before a partition within reach is reported, not filled: {missing:?}");
}

#[test]
fn the_first_new_partition_of_an_adopted_set_ends_on_the_grid() {
    let policy = policy(Width::Day);
    let existing = [partition(at(2026, 11, 20, 0), at(2026, 11, 30, 7))];
    let missing = premake(&policy, &Grid::new(policy.width, &Utc), &existing, at(2026, 11, 24, 0), &LIMITS).missing;
    assert_eq!(missing, [Range { lower: at(2026, 11, 30, 7), upper: at(2026, 12, 1, 0) }]);
}

#[test]
fn the_number_of_partitions_ahead_is_limited() {
    let policy = policy(Width::Exact(MINUTE));
    let now = at(2026, 11, 24, 0);
    let plan = premake(&policy, &Grid::new(policy.width, &Utc), &[], now, &LIMITS);
    assert!(plan.capped);
    assert_eq!(plan.missing.iter().filter(|range| range.lower > now).count(), 1000);
}

#[test]
fn a_backfill_is_served_without_a_gap() {
    let grid = Grid::new(Width::Day, &Utc);
    let existing =
        [partition(at(2026, 11, 20, 6), at(2026, 11, 21, 0)), partition(at(2026, 11, 23, 12), at(2026, 11, 24, 0))];
    let range = Range { lower: at(2026, 11, 18, 5), upper: at(2026, 11, 25, 1) };
    let missing = cover(&grid, &existing, range, 100).unwrap();
    let expected = [
        (at(2026, 11, 18, 0), at(2026, 11, 19, 0)),
        (at(2026, 11, 19, 0), at(2026, 11, 20, 0)),
        (at(2026, 11, 20, 0), at(2026, 11, 20, 6)),
        (at(2026, 11, 21, 0), at(2026, 11, 22, 0)),
        (at(2026, 11, 22, 0), at(2026, 11, 23, 0)),
        (at(2026, 11, 23, 0), at(2026, 11, 23, 12)),
        (at(2026, 11, 24, 0), at(2026, 11, 25, 0)),
        (at(2026, 11, 25, 0), at(2026, 11, 26, 0)),
    ];
    assert_eq!(missing.iter().map(|range| (range.lower, range.upper)).collect::<Vec<_>>(), expected);
}

#[test]
fn a_range_that_no_set_can_serve_is_refused() {
    let grid = Grid::new(Width::Day, &Utc);
    let refused = |lower, upper| cover(&grid, &[], Range { lower, upper }, 10).unwrap_err().sqlstate();
    assert_eq!(refused(at(2026, 1, 2, 0), at(2026, 1, 1, 0)), "22023");
    assert_eq!(refused(Timestamp::NEG_INFINITY, at(2026, 1, 1, 0)), "22023");
    assert_eq!(refused(at(0, 1, 1, 0), at(2026, 1, 1, 0)), "22008");
    assert_eq!(refused(at(2026, 1, 1, 0), at(10_000, 1, 1, 1)), "22008");
    assert_eq!(refused(at(2026, 1, 1, 0), at(2026, 1, 12, 0)), "54000");
}

#[test]
fn names_come_from_the_lower_bound_and_never_collide() {
    let mut taken = HashSet::from(["events_p20261124".to_owned(), "events_p20261124_2".to_owned()]);
    let mut name = |parent: &str, hour, with_time| {
        let name = sql::name(parent, at(2026, 11, 24, hour), with_time, &mut |name| taken.contains(name));
        assert!(name.len() <= 63);
        assert!(taken.insert(name.clone()));
        name
    };
    assert_eq!(name("events", 0, false), "events_p20261124_3");
    assert_eq!(name("events", 22, true), "events_p20261124t2200");
    let long = "ö".repeat(31);
    assert_eq!(name(&long, 0, false), format!("{}_p20261124", "ö".repeat(26)));
    assert_eq!(name(&format!("{long}x"), 0, false), format!("{}_p20261124_2", "ö".repeat(25)));
}

#[test]
fn bounds_mean_the_same_in_every_session() {
    assert_eq!(sql::bound(Key::Instant, at(2026, 11, 24, 22)), "'2026-11-24 22:00:00+00'");
    assert_eq!(sql::bound(Key::WallClock, at(2026, 11, 24, 22)), "'2026-11-24 22:00:00'");
    assert_eq!(sql::bound(Key::Date, at(2026, 11, 24, 0)), "'2026-11-24'");
}

#[test]
fn a_plain_partition_takes_two_statements() {
    let (parent, new) = (QualifiedName::new("public", "Events"), QualifiedName::new("public", "Events_p20261124"));
    let range = Range { lower: at(2026, 11, 24, 0), upper: at(2026, 11, 25, 0) };
    let statements = sql::make(&parent, &new, Key::Instant, range, &Shape::default());
    assert_eq!(
        statements.iter().map(|statement| statement.sql.as_str()).collect::<Vec<_>>(),
        [
            r#"CREATE TABLE "public"."Events_p20261124" (LIKE "public"."Events" INCLUDING ALL EXCLUDING IDENTITY)"#,
            r#"ALTER TABLE "public"."Events" ATTACH PARTITION "public"."Events_p20261124" FOR VALUES FROM ('2026-11-24 00:00:00+00') TO ('2026-11-25 00:00:00+00')"#,
        ]
    );
}

#[test]
fn what_like_leaves_out_is_copied_and_attach_comes_after_it() {
    let (parent, new) = (QualifiedName::new("s", "e"), QualifiedName::new("s", "n"));
    let range = Range { lower: at(2026, 11, 24, 0), upper: at(2026, 11, 25, 0) };
    let shape = Shape {
        tablespace: Some("fast disk".into()),
        access_method: Some("heap".into()),
        unlogged: true,
        storage: vec![("fillfactor".into(), "70".into()), ("toast.autovacuum_enabled".into(), "off".into())],
        statistics: vec![("k".into(), 500)],
        column_options: vec![("k".into(), "n_distinct".into(), "-0.5".into())],
        grants: vec![
            Grant { column: None, grantee: Some("app".into()), privilege: "INSERT".into(), grantable: true },
            Grant { column: Some("k".into()), grantee: None, privilege: "SELECT".into(), grantable: false },
        ],
        revoked: vec![None, Some("nosy".into())],
        row_security: true,
        force_row_security: true,
        policies: vec![RowPolicy {
            name: "own".into(),
            permissive: false,
            command: "UPDATE".into(),
            roles: vec![None, Some("app".into())],
            using: Some("(k > 0)".into()),
            check: Some("(k < 9)".into()),
        }],
        replica_identity: ReplicaIdentity::Index(QualifiedName::new("s", "it's")),
        publications: vec![Publication { name: "p".into(), columns: vec!["k".into()], filter: Some("(k > 0)".into()) }],
        owner: Some("boss".into()),
    };
    let statements = sql::make(&parent, &new, Key::Date, range, &shape);
    let text: Vec<_> = statements.iter().map(|statement| statement.sql.as_str()).collect();
    let expected = [
        r#"CREATE UNLOGGED TABLE "s"."n" (LIKE "s"."e" INCLUDING ALL EXCLUDING IDENTITY) USING "heap" WITH ("fillfactor" = '70', "toast"."autovacuum_enabled" = 'off') TABLESPACE "fast disk""#,
        r#"ALTER TABLE "s"."n" OWNER TO "boss""#,
        r#"ALTER TABLE "s"."n" ALTER COLUMN "k" SET STATISTICS 500"#,
        r#"ALTER TABLE "s"."n" ALTER COLUMN "k" SET ("n_distinct" = '-0.5')"#,
        r#"REVOKE ALL ON TABLE "s"."n" FROM PUBLIC"#,
        r#"REVOKE ALL ON TABLE "s"."n" FROM "nosy""#,
        r#"GRANT INSERT ON TABLE "s"."n" TO "app" WITH GRANT OPTION"#,
        r#"GRANT SELECT ("k") ON TABLE "s"."n" TO PUBLIC"#,
        r#"CREATE POLICY "own" ON "s"."n" AS RESTRICTIVE FOR UPDATE TO PUBLIC, "app" USING ((k > 0)) WITH CHECK ((k < 9))"#,
        r#"ALTER TABLE "s"."n" ENABLE ROW LEVEL SECURITY"#,
        r#"ALTER TABLE "s"."n" FORCE ROW LEVEL SECURITY"#,
        r#"ALTER TABLE "s"."e" ATTACH PARTITION "s"."n" FOR VALUES FROM ('2026-11-24') TO ('2026-11-25')"#,
    ];
    assert_eq!(text[..expected.len()], expected);
    assert!(text[expected.len()].starts_with("DO 'BEGIN EXECUTE (SELECT"));
    assert!(text[expected.len()].contains(r#"''"s"."it''''s"''::pg_catalog.regclass"#), "{}", text[expected.len()]);
    assert_eq!(text[expected.len() + 1], r#"ALTER PUBLICATION "p" ADD TABLE "s"."n" ("k") WHERE ((k > 0))"#);
    let strongest = |action| statements.iter().find(|statement| statement.action == action).unwrap().lock_mode;
    assert_eq!((strongest("create"), strongest("attach")), (Some("ACCESS SHARE"), Some("SHARE UPDATE EXCLUSIVE")));
}

fn good() -> Set {
    Set {
        table: "public.events".into(),
        kind: 'p',
        persistence: 'p',
        is_partition: false,
        strategy: Some('r'),
        key: vec![Some(KeyColumn {
            name: "at".into(),
            type_oid: 1184,
            type_name: "timestamp with time zone".into(),
            not_null: true,
            default_order: true,
        })],
        default: None,
        members: vec![],
        schema: "public".into(),
        owner: "boss".into(),
        owner_may_create: true,
        owner_may_log_in: true,
    }
}

/// Each rule has its own SQLSTATE and message, and (but for the plainest) says what to do.
#[test]
fn each_reason_to_refuse_a_table_is_named() {
    let member = |kind, upper| Member { name: "public.p".into(), kind, upper };
    let column = |change: &dyn Fn(&mut KeyColumn)| {
        let mut set = good();
        change(set.key[0].as_mut().unwrap());
        set
    };
    let cases: Vec<(Set, &str, &str)> = vec![
        (Set { kind: 'v', ..good() }, "42809", "public.events is not a table"),
        (Set { kind: 'r', ..good() }, "42809", "table public.events is not partitioned"),
        (Set { persistence: 't', ..good() }, "0A000", "table public.events is temporary"),
        (Set { is_partition: true, ..good() }, "42809", "table public.events is a partition itself"),
        (Set { strategy: Some('l'), ..good() }, "0A000", "table public.events is partitioned by list, not by range"),
        (Set { strategy: Some('h'), ..good() }, "0A000", "table public.events is partitioned by hash, not by range"),
        (Set { key: vec![None, None], ..good() }, "0A000", "table public.events is partitioned by 2 columns"),
        (Set { key: vec![None], ..good() }, "0A000", "table public.events is partitioned by an expression"),
        (column(&|column| column.type_oid = 20), "0A000", "partition key at has type timestamp with time zone"),
        (column(&|column| column.default_order = false), "0A000", "partition key at has an operator class of its own"),
        (column(&|column| column.not_null = false), "55000", "partition key at may be null"),
        (
            Set { default: Some("public.d".into()), ..good() },
            "55000",
            "table public.events has the default partition public.d",
        ),
        (
            Set { members: vec![member('p', at(2026, 1, 1, 0))], ..good() },
            "0A000",
            "partition public.p is partitioned itself",
        ),
        (
            Set { members: vec![member('f', at(2026, 1, 1, 0))], ..good() },
            "0A000",
            "partition public.p is a foreign table",
        ),
        (
            Set { members: vec![member('r', Timestamp::INFINITY)], ..good() },
            "55000",
            "partition public.p of table public.events ends at MAXVALUE",
        ),
        (
            Set { owner_may_create: false, ..good() },
            "42501",
            "owner boss of the table may not create tables in schema public",
        ),
        (Set { owner_may_log_in: false, ..good() }, "55000", "owner boss of the table may not log in"),
    ];
    for (set, sqlstate, message) in cases {
        let error = check::set(&set).unwrap_err();
        assert_eq!((error.sqlstate(), error.to_string().as_str()), (sqlstate, message));
        assert!(error.hint().is_some(), "{message}: no hint");
    }
    assert_eq!(check::set(&good()), Ok(Key::Instant));
}

#[test]
fn each_reason_to_refuse_an_argument_is_named() {
    let days = |days| Interval { days, ..Interval::default() };
    let hour = Interval { microseconds: HOUR, ..Interval::default() };
    let good = Request {
        width: days(1),
        retention: None,
        premake: None,
        lateness: days(2),
        far_future: days(2),
        grace: days(7),
        detach_deadline: days(1),
    };
    let refused = |key, request: Request| {
        let error = check::policy(key, &request).unwrap_err();
        assert!(error.hint().is_some());
        (error.sqlstate(), error.to_string())
    };
    assert_eq!(
        refused(Key::Instant, Request { width: days(2), ..good }),
        ("22023", "partition width 2 days is not allowed".into())
    );
    assert_eq!(
        refused(Key::Date, Request { width: hour, ..good }),
        ("22023", "partition width 3600 seconds is too small for a key of type date".into())
    );
    assert_eq!(
        refused(Key::Instant, Request { retention: Some(days(1)), ..good }),
        ("22023", "retention of 1 days is shorter than the lateness of 2 days".into())
    );
    assert!(check::policy(Key::Instant, &Request { retention: Some(days(2)), ..good }).is_ok());
    assert_eq!(
        refused(Key::Instant, Request { premake: Some(days(-1)), ..good }),
        ("22023", "premake must not be negative, but is -1 days".into())
    );
    assert!(check::policy(Key::Instant, &Request { width: hour, ..good }).is_ok());
}

fn verdict(set: &Set, existing: &[Partition], pending: Option<&str>, now: Timestamp) -> (Verdict, Option<String>) {
    verdict_of(set, existing, pending, None, now)
}

fn verdict_of(
    set: &Set,
    existing: &[Partition],
    pending: Option<&str>,
    leaving: Option<status::Leaving<'_>>,
    now: Timestamp,
) -> (Verdict, Option<String>) {
    let facts = Facts {
        set,
        key_column: "at",
        policy: &policy(Width::Day),
        limits: LIMITS,
        existing,
        pending,
        drain: None,
        used_up: None,
        is_behind: false,
        leaving,
        is_copy: false,
        now,
        zone: &Utc,
    };
    let status = status::judge(&facts);
    assert_eq!(status.reason.is_some(), status.next_sql.is_some());
    (status.verdict, status.reason.map(|reason| reason[..3].to_owned()))
}

#[test]
fn trouble_is_seen_and_the_worst_is_named_first() {
    let now = at(2026, 11, 24, 10);
    let policy = policy(Width::Day);
    let served = as_existing(&premake(&policy, &Grid::new(policy.width, &Utc), &[], now, &LIMITS).missing);
    let reason = |code: &str| Some(code.to_owned());
    assert_eq!(verdict(&good(), &served, None, now), (Verdict::Ok, None));
    assert_eq!(verdict(&good(), &[], None, now), (Verdict::Critical, reason("P01")));
    assert_eq!(verdict(&good(), &served[..3], None, now), (Verdict::Critical, reason("P01")));
    assert_eq!(verdict(&good(), &served[..6], None, now), (Verdict::Warning, reason("P02")));
    assert_eq!(verdict(&good(), &served, Some("p"), now), (Verdict::Critical, reason("P03")));
    let mut holes = served.clone();
    holes.remove(1);
    assert_eq!(verdict(&good(), &holes, None, now), (Verdict::Warning, reason("P07")));
    holes.remove(2);
    assert_eq!(verdict(&good(), &holes, None, now), (Verdict::Critical, reason("P01")), "the gap begins in a day");
    let mut far = served.clone();
    far.push(partition(at(2097, 1, 1, 0), at(2098, 1, 1, 0)));
    assert_eq!(verdict(&good(), &far, None, now), (Verdict::Ok, None), "nobody wants 70 years of partitions");
    let mut poisoned = served.clone();
    poisoned.last_mut().unwrap().used = true;
    assert_eq!(verdict(&good(), &poisoned, None, now), (Verdict::Warning, reason("P08")));
    let default = Set { default: Some("d".into()), ..good() };
    assert_eq!(verdict(&default, &served, None, now), (Verdict::Critical, reason("P06")));
    let locked_out = Set { owner_may_log_in: false, ..good() };
    assert_eq!(verdict(&locked_out, &served, None, now), (Verdict::Critical, reason("P13")));
}

#[test]
fn retention_that_does_not_get_on_is_seen() {
    use crate::partition::retention::{Place, State};
    let now = at(2026, 11, 24, 10);
    let policy = policy(Width::Day);
    let served = as_existing(&premake(&policy, &Grid::new(policy.width, &Utc), &[], now, &LIMITS).missing);
    let verdict = |state, place, since| {
        let leaving = status::Leaving {
            partition: "p",
            state,
            place,
            note: None,
            since,
            rollups: &["r".to_owned()],
            counted_by: Some("r"),
            range: served[0].range,
            foreign_key: None,
        };
        let pending = (place == Place::Pending).then_some("p");
        let (verdict, reason) = verdict_of(&good(), &served, pending, Some(leaving), now);
        (verdict, reason.unwrap_or_default())
    };
    let ok = (Verdict::Ok, String::new());
    assert_eq!(verdict(State::Fenced, Place::Attached, MINUTE), ok);
    assert_eq!(verdict(State::Fenced, Place::Attached, 2 * HOUR), (Verdict::Warning, "P04".into()));
    assert_eq!(verdict(State::Detaching, Place::Attached, MINUTE), ok);
    assert_eq!(verdict(State::Detaching, Place::Attached, HOUR), (Verdict::Warning, "P12".into()));
    assert_eq!(verdict(State::Detaching, Place::Pending, MINUTE / 2), ok);
    assert_eq!(verdict(State::Detaching, Place::Pending, 2 * MINUTE), (Verdict::Critical, "P03".into()));
    assert_eq!(verdict(State::Mismatch, Place::Attached, 0), (Verdict::Critical, "P10".into()));
    assert_eq!(verdict(State::Mismatch, Place::Trash, 0), (Verdict::Critical, "P10".into()));
}

#[test]
fn work_that_is_put_off_for_a_lock_is_seen_with_the_statement_that_waits() {
    use crate::partition::retention::{Place, State};
    let now = at(2026, 11, 24, 10);
    let policy = policy(Width::Day);
    let served = as_existing(&premake(&policy, &Grid::new(policy.width, &Utc), &[], now, &LIMITS).missing);
    let set = good();
    let judge = |existing: &[Partition], is_behind, leaving| {
        let status = status::judge(&Facts {
            set: &set,
            key_column: "at",
            policy: &policy,
            limits: LIMITS,
            existing,
            pending: None,
            drain: None,
            used_up: Some("customers"),
            is_behind,
            leaving,
            is_copy: false,
            now,
            zone: &Utc,
        });
        (status.verdict, status.reason.map(|reason| reason[..3].to_owned()), status.next_sql.unwrap_or_default())
    };
    let told = |found: (Verdict, Option<String>, String), sql: &str| {
        assert_eq!((found.0, found.1.as_deref()), (Verdict::Warning, Some("P11")));
        assert!(found.2.starts_with(sql), "{}", found.2);
    };
    // Nothing is missing, so nothing is put off.
    assert_eq!(judge(&served, false, None).0, Verdict::Ok);
    told(judge(&served[..served.len() - 1], true, None), "SELECT tally.ensure_partitions(");
    told(judge(&served[..6], true, None), "SELECT tally.ensure_partitions(");
    assert_eq!(judge(&served[..3], true, None).1.as_deref(), Some("P01"), "worse comes first");
    let leaving = |state, place, foreign_key| {
        Some(status::Leaving {
            partition: "p",
            state,
            place,
            note: Some("P11: customers is never free"),
            since: 0,
            rollups: &[],
            counted_by: None,
            range: served[0].range,
            foreign_key,
        })
    };
    let table = &set.table;
    told(
        judge(&served, false, leaving(State::Detaching, Place::Attached, None)),
        &format!("ALTER TABLE {table} DETACH PARTITION p CONCURRENTLY;"),
    );
    told(
        judge(&served, false, leaving(State::Detaching, Place::Pending, None)),
        &format!("ALTER TABLE {table} DETACH PARTITION p FINALIZE;"),
    );
    told(judge(&served, false, leaving(State::Trash, Place::Trash, Some("k"))), "ALTER TABLE p DROP CONSTRAINT k;");
    assert_eq!(judge(&served, false, leaving(State::Trash, Place::Trash, None)).0, Verdict::Ok, "done by hand");
}

/// Summer time of a made-up zone, so that buckets of a day have 23, 24 and 25 hours.
struct Seasons;

impl Zone for Seasons {
    fn rule(&self, at: Timestamp) -> Rule {
        let half = at.0.div_euclid(182 * DAY);
        Rule { offset: HOUR * (1 + half.rem_euclid(2)), until: Timestamp((half + 1) * 182 * DAY) }
    }
}

proptest! {
    /// Whatever partitions there are and whatever the clock does, what is made touches, never overlaps, and has names of its own.
    #[test]
    fn premake_leaves_no_gap_no_overlap_and_no_double_name(
        width in prop_oneof![
            Just(Width::Exact(15 * MINUTE)), Just(Width::Exact(6 * HOUR)), Just(Width::Day), Just(Width::Week),
            Just(Width::Months(1)),
        ],
        adopted in proptest::collection::vec((0..40 * 24i64, 1..30 * 24i64, any::<bool>()), 0..6),
        clocks in proptest::collection::vec(-3..60i64, 1..8),
    ) {
        let policy = policy(width);
        let grid = Grid::new(width, &Seasons);
        let mut existing: Vec<Partition> = Vec::new();
        let mut end = 9_000 * DAY;
        for (gap, hours, used) in adopted {
            let lower = end + if gap % 3 == 0 { gap * HOUR } else { 0 };
            end = lower + hours * HOUR;
            existing.push(Partition { range: Range { lower: Timestamp(lower), upper: Timestamp(end) }, used });
        }
        let mut names = HashSet::new();
        let mut now = Timestamp(9_000 * DAY);
        let limits = Limits { most: 200, ..LIMITS };
        for days in clocks {
            now = now.plus(days * DAY + 5 * HOUR);
            let plan = premake(&policy, &grid, &existing, now, &limits);
            for range in plan.missing {
                prop_assert!(range.lower < range.upper);
                let place = existing.partition_point(|partition| partition.range.lower < range.lower);
                prop_assert!(place == 0 || existing[place - 1].range.upper == range.lower, "touches the one before");
                prop_assert!(existing.get(place).is_none_or(|next| next.range.lower >= range.upper), "no overlap");
                let name = sql::name("events", range.lower, true, &mut |name| names.contains(name));
                prop_assert!(names.insert(name));
                existing.insert(place, Partition { range, used: false });
            }
            let again = premake(&policy, &grid, &existing, now, &limits).missing;
            prop_assert!(again.is_empty(), "a second run has nothing to do: {again:?}");
            let covered = cover(&grid, &existing, Range { lower: now.minus(9 * DAY), upper: now.plus(DAY) }, 10_000).unwrap();
            for range in covered {
                let place = existing.partition_point(|partition| partition.range.lower < range.lower);
                existing.insert(place, Partition { range, used: false });
            }
            prop_assert!(existing.windows(2).all(|pair| pair[0].range.upper <= pair[1].range.lower));
            let accepted = status::accepted(&existing, now).unwrap();
            prop_assert!(accepted.lower <= now.minus(9 * DAY) && now.plus(DAY) <= accepted.upper, "{accepted:?}");
        }
    }
}
