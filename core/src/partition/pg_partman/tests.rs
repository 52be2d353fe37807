use super::*;
use crate::bucket::HOUR;

fn days(days: i32) -> Interval {
    Interval { days, ..Interval::default() }
}

/// What these tests write, and nothing else.
fn parse(text: &str) -> Option<Interval> {
    Some(match text {
        "1 day" => days(1),
        "24:00:00" => Interval { microseconds: 24 * HOUR, ..Interval::default() },
        "01:00:00" => Interval { microseconds: HOUR, ..Interval::default() },
        "10 days" => days(10),
        "90 days" => days(90),
        "3 mons" => Interval { months: 3, ..Interval::default() },
        _ => return None,
    })
}

fn arguments() -> Arguments {
    Arguments {
        width: None,
        retention: None,
        premake: None,
        lateness: days(2),
        far_future: days(2),
        grace: days(7),
        detach_deadline: days(1),
    }
}

fn config(interval: &str) -> Config {
    Config {
        table: "\"partman\".\"part_config\"".into(),
        parent: "public.events".into(),
        partition_interval: Some(interval.into()),
        premake: Some(4),
        retention_keep_table: Some(true),
        automatic_maintenance: Some("on".into()),
        ..Config::default()
    }
}

fn refused(config: &Config, arguments: &Arguments) -> (&'static str, String) {
    let refusal = config.complete(arguments, &parse).unwrap_err();
    assert!(refusal.hint().is_some());
    (refusal.sqlstate(), refusal.to_string())
}

#[test]
fn what_is_left_out_is_taken_from_the_configuration() {
    let request = config("1 day").complete(&arguments(), &parse).unwrap();
    assert_eq!((request.width, request.premake, request.retention), (days(1), Some(days(4)), None));
    assert_eq!((request.lateness, request.grace), (days(2), days(7)));
    let quarters = config("3 mons").complete(&arguments(), &parse).unwrap();
    assert_eq!(quarters.premake, Some(Interval { months: 12, ..Interval::default() }));
    assert_eq!(config("24:00:00").complete(&arguments(), &parse).unwrap().width, days(1));
}

#[test]
fn what_is_given_wins() {
    let given = Arguments { width: Some(days(7)), premake: Some(days(0)), retention: Some(days(30)), ..arguments() };
    let row = Config { retention: Some("90 days".into()), retention_keep_table: Some(false), ..config("10 days") };
    let request = row.complete(&given, &parse).unwrap();
    assert_eq!((request.width, request.premake, request.retention), (days(7), Some(days(0)), Some(days(30))));
    // How far ahead it is does not depend on the new width; an interval that nobody understands is not needed then.
    let wider = Arguments { width: Some(days(7)), ..arguments() };
    assert_eq!(row.complete(&wider, &parse).unwrap().premake, Some(days(40)));
    assert_eq!(config("gibberish").complete(&wider, &parse).unwrap().premake, None);
}

#[test]
fn retention_is_taken_only_from_who_drops() {
    let row = |keep, schema: Option<&str>| Config {
        retention: Some("90 days".into()),
        retention_keep_table: keep,
        retention_schema: schema.map(str::to_owned),
        ..config("1 day")
    };
    let retention = |row: Config| row.complete(&arguments(), &parse).unwrap().retention;
    assert_eq!(retention(row(Some(false), None)), Some(days(90)));
    assert_eq!(retention(row(Some(true), None)), None);
    assert_eq!(retention(row(None, None)), None, "a version without the column");
    assert_eq!(retention(row(Some(false), Some("archive"))), None, "the schema outranks the flag");
    let told = row(Some(true), None).differences(&Taken::default()).join("\n");
    assert!(told.contains("older than 90 days and keeps them (retention_keep_table): not taken over"), "{told}");
    let told = row(Some(true), None).differences(&Taken { retires: true, ..Taken::default() }).join("\n");
    assert!(told.contains("tally drops them when the grace is over"), "{told}");
}

#[test]
fn each_reason_to_refuse_a_configuration_is_named() {
    assert_eq!(
        refused(&config("10 days"), &arguments()),
        ("22023", "pg_partman's partition_interval \"10 days\" is not allowed as a width".into())
    );
    assert_eq!(
        refused(&config("1 day'; DROP TABLE events; --"), &arguments()),
        (
            "22023",
            "partition_interval \"1 day'; DROP TABLE events; --\" in \"partman\".\"part_config\" is no interval".into()
        )
    );
    let long = refused(&config(&"ä".repeat(300)), &arguments()).1;
    assert!(long.len() < 260 && long.contains(".."), "{long}");
    let drops = |retention: &str| Config {
        retention: Some(retention.into()),
        retention_keep_table: Some(false),
        ..config("1 day")
    };
    assert_eq!(refused(&drops("for ever"), &arguments()).0, "22023");
    assert_eq!(
        refused(&drops("1 day"), &arguments()),
        ("22023", "pg_partman's retention of 1 days is shorter than the lateness of 2 days".into())
    );
    let undone = Config { undo_in_progress: Some(true), ..config("1 day") };
    assert_eq!(refused(&undone, &arguments()).0, "55000");
}

#[test]
fn only_off_ends_its_maintenance() {
    assert!(config("1 day").is_automatic());
    assert!(Config { automatic_maintenance: None, ..config("1 day") }.is_automatic());
    assert!(!Config { automatic_maintenance: Some("off".into()), ..config("1 day") }.is_automatic());
    let quoted = Config { parent: "it's.events".into(), ..config("1 day") };
    assert_eq!(
        quoted.switch_off(),
        "UPDATE \"partman\".\"part_config\" SET automatic_maintenance = 'off' WHERE parent_table = 'it''s.events';"
    );
}

#[test]
fn differences_are_told_where_there_are_any() {
    let plain = Config { infinite_time_partitions: Some(true), ..config("1 day") };
    assert_eq!(plain.differences(&Taken::default()), Vec::<String>::new());
    let rich = Config {
        constraint_columns: vec!["id".into()],
        template_table: Some("partman.template".into()),
        template_indexes: vec!["by_note".into()],
        ..config("1 day")
    };
    let told = rich.differences(&Taken {
        default: Some("public.rest"),
        ends_at: Some("'2026-11-27 23:00:00+00'"),
        zone: "UTC",
        retires: false,
    });
    for (line, part) in told.iter().zip(["public.rest", "infinite_time", "without by_note", "of id", "no bound in UTC"])
    {
        assert!(line.contains(part), "{line}");
    }
    assert_eq!(told.len(), 5);
}
