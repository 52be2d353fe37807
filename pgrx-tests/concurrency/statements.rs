//! The statements of the random test that write. To add a kind of statement, add a line here with its weight; what is not one
//! statement is a step of its own in session.rs.

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;

use super::history::{Action, Expect};
use super::schema::{self, COLUMNS, Row, SOURCES};

/// What a random choice is made of: how often in relation to the others, and what.
pub type Weighted<T> = (u32, T);

/// One of these, by weight.
pub fn pick<T: Copy>(choices: &[Weighted<T>], rng: &mut StdRng) -> T {
    choices.choose_weighted(rng, |choice| choice.0).expect("there is a choice").1
}

/// Makes a statement for `days` partitions.
pub type Maker = fn(&mut StdRng, usize) -> String;

/// Rows that nobody has seen yet.
pub const WRITES: &[Weighted<Maker>] = &[
    (2, |rng, days| format!("INSERT INTO {} ({COLUMNS}) VALUES {}", source(rng), rows(rng, days))),
    (1, |rng, _| {
        let (table, row) = match rng.random_range(0..4) {
            0 => ("day_0", Row::random(rng, 0, None)),
            1 => ("day_1_odd", Row::random(rng, 1, Some(3))),
            2 => ("day_1", Row::random(rng, 1, None)),
            _ => ("day_2", Row::random(rng, 2, None)),
        };
        format!("INSERT INTO {table} ({COLUMNS}) VALUES {}", row.literals())
    }),
    (1, |rng, _| {
        let (source, other, number) = (source(rng), source(rng), rng.random_range(0..20));
        format!("INSERT INTO {source} ({COLUMNS}) SELECT {COLUMNS} FROM {other} ORDER BY id DESC LIMIT {number}")
    }),
    (1, |rng, days| {
        let rows = rows(rng, days);
        format!(
            "WITH written AS (INSERT INTO events ({COLUMNS}) VALUES {rows} RETURNING {COLUMNS}) \
             INSERT INTO clicks ({COLUMNS}) SELECT {COLUMNS} FROM written"
        )
    }),
    // A subtransaction that fails, inside of one that does not.
    (1, |rng, days| {
        let (source, kept, lost) = (source(rng), rows(rng, days), rows(rng, days));
        format!(
            "DO $do$ BEGIN INSERT INTO {source} ({COLUMNS}) VALUES {kept}; \
             BEGIN INSERT INTO {source} ({COLUMNS}) VALUES {lost}; PERFORM 1 / 0; \
             EXCEPTION WHEN division_by_zero THEN NULL; END; END $do$"
        )
    }),
    (1, |_, _| {
        "MERGE INTO clicks USING (SELECT nextval('ids') AS id, tenant FROM clicks LIMIT 5) AS s ON clicks.id = s.id \
         WHEN NOT MATCHED THEN INSERT (id, event_time, tenant) VALUES (s.id, '2024-04-01 12:00Z', s.tenant)"
            .into()
    }),
];

/// Rows of the transaction itself, which nobody has counted.
pub const CHANGES_OF_OWN_ROWS: &[Weighted<Maker>] = &[
    (1, |rng, _| format!("DELETE FROM {} WHERE {}", source(rng), own(rng))),
    (1, |rng, _| format!("UPDATE {} SET quantity = quantity + 1, country = 'ä' WHERE {}", source(rng), own(rng))),
    (1, |rng, _| format!("UPDATE {} SET event_time = '2024-03-31 01:30Z', tenant = 2 WHERE {}", source(rng), own(rng))),
    (1, |rng, _| merge(source(rng), &own(rng))),
];

/// Rows that somebody else has written, and that a refresh may have counted. Their last change may not have ended.
pub const CHANGES_OF_ANY_ROWS: &[Weighted<Maker>] = &[
    (1, |rng, _| format!("UPDATE {} SET quantity = quantity + 1, country = 'ä' WHERE {}", source(rng), some(rng))),
    (1, |rng, _| {
        format!("UPDATE {} SET kind = NULL, weight = -weight, labels = NULL WHERE {}", source(rng), some(rng))
    }),
    (1, |rng, _| {
        format!("UPDATE {} SET event_time = '2024-03-31 01:30Z', tenant = 2 WHERE {}", source(rng), some(rng))
    }),
    (1, |rng, _| format!("DELETE FROM {} WHERE {}", source(rng), some(rng))),
    (1, |rng, _| format!("UPDATE day_0 SET amount = amount + 1 WHERE {}", some(rng))),
    (1, |rng, _| merge(source(rng), &some(rng))),
    (1, |rng, _| {
        format!(
            "INSERT INTO clicks (id, {COLUMNS}) SELECT id, {COLUMNS} FROM clicks WHERE {} \
             ON CONFLICT (id) DO UPDATE SET tenant = 1 + clicks.tenant % 3",
            some(rng)
        )
    }),
    (1, |rng, _| format!("UPDATE {} SET id = id WHERE {}", source(rng), some(rng))),
    // Copied with their tags.
    (1, |rng, _| {
        let (source, other, some) = (source(rng), source(rng), some(rng));
        format!(
            "INSERT INTO {source} (id, {COLUMNS}, tally_tag) SELECT nextval('ids'), {COLUMNS}, tally_tag FROM {other} \
             WHERE {some} LIMIT 10"
        )
    }),
    (1, |rng, _| {
        let (source, other, some) = (source(rng), source(rng), some(rng));
        format!(
            "WITH gone AS (DELETE FROM {source} WHERE {some} RETURNING {COLUMNS}) \
             INSERT INTO {other} ({COLUMNS}) SELECT {COLUMNS} FROM gone"
        )
    }),
];

pub fn copy(rng: &mut StdRng, days: usize) -> Action {
    let lines = schema::rows(rng, days, 6).iter().map(Row::copy_line).collect();
    Action::Copy(format!("COPY {} ({COLUMNS}) FROM STDIN", source(rng)), lines)
}

pub fn truncate(rng: &mut StdRng) -> Action {
    let table = ["day_0", "day_1", "day_1_even", "day_2", "clicks", "events"].choose(rng).unwrap();
    Action::Statement(format!("TRUNCATE {table}"), Expect::SuccessOrBusy)
}

/// A tag that no transaction can have given.
pub fn lie(rng: &mut StdRng) -> Action {
    let (source, tag) = (source(rng), [i64::MAX, -1].choose(rng).unwrap());
    let insert = format!("INSERT INTO {source} (event_time, tenant, tally_tag) VALUES ('2024-03-30 05:00Z', 1, {tag})");
    Action::Statement(insert, Expect::Refusal("22023"))
}

/// LIKE and ATTACH, the way that waits for no reader: the partition of this day, unless it is beyond the last.
pub fn attach(day: usize) -> Option<Action> {
    let (from, to) = schema::DAYS.get(day)?;
    let attach = format!(
        "CREATE TABLE day_{day} (LIKE events INCLUDING DEFAULTS); \
         INSERT INTO day_{day} (event_time, tenant, country, amount, tally_tag) \
           SELECT '{from}'::timestamptz + '5 hours', tenant, country, amount, tally_tag FROM clicks LIMIT 5; \
         INSERT INTO day_{day} (event_time, tenant, kind) VALUES ('{from}'::timestamptz + '5 hours', 1, 'buy'); \
         ALTER TABLE events ATTACH PARTITION day_{day} FOR VALUES FROM ('{from}') TO ('{to}')"
    );
    Some(Action::Statement(attach, Expect::SuccessOrBusy))
}

/// A partition that can leave by itself.
fn day(rng: &mut StdRng) -> (&'static str, &'static str, &'static str) {
    let (day, number) = *[("day_0", 0), ("day_2", 2)].choose(rng).expect("there are days");
    (day, schema::DAYS[number].0, schema::DAYS[number].1)
}

/// The rows of a partition, if it is one.
fn keep(day: &str, number: usize) -> String {
    format!(
        "INSERT INTO gone_events SELECT {COLUMNS}, {number} FROM {day} \
         WHERE EXISTS (SELECT FROM pg_inherits WHERE inhrelid = '{day}'::regclass)"
    )
}

/// A partition is dropped, and an empty one takes its place.
pub fn drop_partition(rng: &mut StdRng, number: usize) -> Action {
    let (day, from, to) = day(rng);
    let statement = format!(
        "{}; DROP TABLE {day}; CREATE TABLE {day} PARTITION OF events FOR VALUES FROM ('{from}') TO ('{to}')",
        keep(day, number)
    );
    Action::Statement(statement, Expect::SuccessOrBusy)
}

/// A partition is detached, and comes back with other rows.
pub fn detach(rng: &mut StdRng, number: usize) -> [Action; 2] {
    let (day, from, to) = day(rng);
    let detach = format!(
        "INSERT INTO gone_events SELECT {COLUMNS}, {number} FROM {day}; ALTER TABLE events DETACH PARTITION {day}"
    );
    let meanwhile = [
        "SELECT".into(),
        format!("UPDATE {day} SET amount = 5, country = NULL WHERE {}", some(rng)),
        format!("DELETE FROM {day} WHERE {}", some(rng)),
        format!("INSERT INTO {day} ({COLUMNS}) SELECT {COLUMNS} FROM {day}"),
    ];
    let attach = format!(
        "{}; DELETE FROM gone_events WHERE number = {number}; \
         ALTER TABLE events ATTACH PARTITION {day} FOR VALUES FROM ('{from}') TO ('{to}')",
        meanwhile.choose(rng).expect("there are ideas")
    );
    [Action::Statement(detach, Expect::SuccessOrBusy), Action::Statement(attach, Expect::Success)]
}

/// Old rows are forgotten: a copy is made, then both change places in one transaction.
pub fn forget(rng: &mut StdRng, number: usize) -> [Action; 2] {
    let (source, part) =
        *[("events", "day_0"), ("events", "day_1_odd"), ("clicks", "clicks")].choose(rng).expect("some");
    let before = ["2024-03-30 22:30Z", "2024-03-31 12:00Z", "2024-04-01 01:00Z"].choose(rng).expect("some");
    let copy = format!(
        "DROP TABLE IF EXISTS forgotten; CREATE TABLE forgotten AS SELECT {COLUMNS} FROM {part} WHERE event_time < '{before}'"
    );
    let forget = format!(
        "SELECT tally.forget_rows('{source}', '{part}', '{before}', 'event_time'); \
         INSERT INTO gone_{source} SELECT {COLUMNS}, {number} FROM forgotten"
    );
    [Action::Statement(copy, Expect::SuccessOrBusy), Action::Statement(forget, Expect::Change)]
}

pub fn source(rng: &mut StdRng) -> &'static str {
    SOURCES.choose(rng).expect("there are sources")
}

fn rows(rng: &mut StdRng, days: usize) -> String {
    schema::rows(rng, days, 6).iter().map(Row::literals).collect::<Vec<_>>().join(", ")
}

fn some(rng: &mut StdRng) -> String {
    format!("id % 7 = {}", rng.random_range(0..7))
}

fn own(rng: &mut StdRng) -> String {
    format!("tally_tag = tally.row_tag() AND id % 3 = {}", rng.random_range(0..3))
}

fn merge(source: &str, condition: &str) -> String {
    format!(
        "MERGE INTO {source} AS t USING (VALUES (1)) AS v (one) ON {condition} WHEN MATCHED AND quantity > 1 THEN DELETE \
         WHEN MATCHED THEN UPDATE SET event_time = '2024-03-30 01:30Z', amount = 7"
    )
}
