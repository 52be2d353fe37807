//! The tables, rollups and rows of the random test. Few distinct values, so that groups meet; every value that groups or
//! compares in a way of its own is among them.

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

/// A partitioned and a plain source with the same columns, filled before the first rollup.
pub const SCHEMA: &str = "
    CREATE TYPE kind AS ENUM ('view', 'buy', 'return');
    CREATE TYPE pair AS (x int, y int);
    CREATE SEQUENCE ids CACHE 20;
    CREATE TABLE events (id bigint NOT NULL DEFAULT nextval('ids'), event_time timestamptz NOT NULL, tenant int NOT NULL,
      country text, kind kind, amount numeric(12,2), quantity int, weight float8, labels text[], place pair, device bigint)
      PARTITION BY RANGE (event_time);
    CREATE TABLE day_0 PARTITION OF events FOR VALUES FROM ('2024-03-30Z') TO ('2024-03-31Z');
    CREATE TABLE day_1 PARTITION OF events FOR VALUES FROM ('2024-03-31Z') TO ('2024-04-01Z') PARTITION BY LIST (tenant);
    CREATE TABLE day_1_odd PARTITION OF day_1 FOR VALUES IN (1, 3);
    CREATE TABLE day_1_even PARTITION OF day_1 FOR VALUES IN (2);
    CREATE TABLE day_2 PARTITION OF events FOR VALUES FROM ('2024-04-01Z') TO ('2024-04-02Z');
    CREATE TABLE later PARTITION OF events FOR VALUES FROM ('2031-01-01Z') TO ('2031-02-01Z');
    CREATE TABLE clicks (LIKE events INCLUDING DEFAULTS, UNIQUE (id));
    INSERT INTO events (event_time, tenant, country, quantity)
      SELECT '2024-03-30 22:00Z'::timestamptz + make_interval(mins => 7 * i), 1 + i % 3, 'de', i FROM generate_series(1, 100) AS i;
    INSERT INTO clicks SELECT * FROM events WHERE tenant = 1;
    CREATE TABLE gone_events AS SELECT event_time, tenant, country, kind, amount, quantity, weight, labels, place, device, 0 AS number
      FROM events WITH NO DATA;
    CREATE TABLE gone_clicks (LIKE gone_events);";

pub const SOURCES: [&str; 2] = ["events", "clicks"];
/// Days for which `events` has a partition from the start; later ones come while the test runs.
pub const FIRST_DAYS: usize = 3;
pub const COLUMNS: &str = "event_time, tenant, country, kind, amount, quantity, weight, labels, place, device";

/// Defining queries over `{source}`, in what they use: time buckets in a zone with a 23-hour day, NULL keys of every type
/// class, FILTER, WHERE, expressions over aggregates and over keys, keys that are not shown.
const QUERIES: [&str; 8] = [
    "SELECT date_trunc('hour', event_time, 'Europe/Berlin') AS bucket, tenant, count(*) AS n, sum(amount) AS revenue, \
       avg(quantity) AS average, min(event_time) AS first, max(event_time) AS last FROM {source} GROUP BY 1, 2",
    "SELECT country, kind, count(*) FILTER (WHERE kind = 'buy') AS buys, count(quantity) AS counted, sum(quantity) AS total, \
       min(country) AS same, max(kind) AS kinds, max(weight) AS heaviest FROM {source} GROUP BY country, kind",
    "SELECT date_bin('1 day', event_time, '2000-01-01Z') AS bucket, round(avg(amount), 3) + 1 AS average, sum(weight) AS weight, \
       avg(weight) / nullif(count(*), 0) AS odd, sum(amount) FILTER (WHERE kind IS NULL) AS unknown \
       FROM {source} WHERE quantity > 0 OR quantity IS NULL GROUP BY 1",
    "SELECT labels, place, count(*) AS n, min(labels) AS smallest, max(device) AS device FROM {source} GROUP BY labels, place",
    "SELECT lower(country) || '!' AS loud, quantity % 3 AS remainder, count(*) AS n, avg(amount) AS average \
       FROM {source} GROUP BY 1, 2",
    "SELECT tenant, count(*) AS n, sum(quantity::bigint) AS total FROM {source} GROUP BY tenant, quantity % 2, weight, amount",
    "SELECT date_bin('6 hours', event_time, '2000-01-01Z') AS bucket, stddev(amount)::text AS deviation, var_pop(quantity)::text AS spread, \
       bool_or(kind = 'buy') AS bought, bool_and(amount > 0) AS paid, bit_xor(quantity) AS parity, bit_or(tenant) AS shops \
       FROM {source} GROUP BY 1",
    "SELECT 'all' AS what, count(*) AS n, count(*) FILTER (WHERE amount > 1) AS large, sum(device) AS devices \
       FROM {source} GROUP BY 1",
];

/// Reads every column, so that the change log has them all from the start: whoever creates a rollup later locks nobody out.
pub const ALL_COLUMNS: &str = "SELECT count(event_time) AS times, count(country) AS countries, count(kind) AS kinds, count(amount) AS amounts, \
    count(quantity) AS quantities, count(weight) AS weights, count(labels) AS labels, count(place) AS places, count(device) AS devices, tenant \
    FROM {source} GROUP BY tenant";

/// Queries over a rollup, by the number of the query that it is defined by.
const LEVELS: [(usize, &str); 4] = [
    (
        0,
        "SELECT date_trunc('day', bucket, 'Europe/Berlin') AS bucket, sum(n) AS n, sum(revenue) AS revenue, min(first) AS first, \
           max(last) AS last, max(tenant) AS tenant, sum(n) FILTER (WHERE tenant = 2) AS n_of_two FROM {source} GROUP BY 1",
    ),
    (
        1,
        "SELECT kind, sum(buys) AS buys, sum(total) FILTER (WHERE country = 'de') AS total, max(heaviest) AS heaviest, \
           sum(buys) FILTER (WHERE country IS NULL) AS lost, tally.distinct_count(country) AS countries \
           FROM {source} WHERE kind <> 'return' OR country IS NULL GROUP BY 1",
    ),
    (
        6,
        "SELECT date_trunc('week', bucket, 'UTC') AS week, bool_or(bought) AS bought, bool_and(paid) AS paid, bit_xor(parity) AS parity, \
           bit_or(shops) AS shops FROM {source} GROUP BY 1",
    ),
    (
        8,
        "SELECT country IS NULL AS unknown, tally.distinct_count(sketch) AS devices, tally.hll_union_agg(sketch)::text AS sketch \
           FROM {source} GROUP BY 1",
    ),
];

/// A query over the first of the levels.
pub const UPPER_LEVEL: &str =
    "SELECT 'all' AS what, sum(n) AS n, sum(n_of_two) AS n_of_two, max(last) AS last FROM {source} GROUP BY 1";

const SKETCH_QUERY: &str = "SELECT tenant, country, tally.distinct_count(device) AS devices, tally.hll_agg(device) AS sketch, \
    tally.distinct_count(country) FILTER (WHERE kind = 'view') AS countries FROM {source} GROUP BY 1, 2";

/// Aggregates that are kept by states or by two columns.
const STATE_QUERY: &str = "SELECT country, tally.first(quantity, event_time) AS first, tally.last(kind, event_time) AS last, \
    regr_count(quantity, device) AS pairs FROM {source} GROUP BY 1";

pub fn queries(source: &str) -> Vec<String> {
    QUERIES.into_iter().chain([SKETCH_QUERY, STATE_QUERY]).map(|query| query.replace("{source}", source)).collect()
}

/// A query over a rollup that is defined by the query of this number.
pub fn level(number: usize, rollup: &str) -> Option<String> {
    let found = LEVELS.iter().find(|(base, _)| *base == number)?;
    Some(found.1.replace("{source}", rollup))
}

/// The query as a rollup answers it that goes on counting the rows of `gone_..` with a greater number. `number` is one more column.
pub fn with_gone(source: &str, query: &str, after: usize) -> String {
    let rows = format!(
        "FROM (SELECT {COLUMNS}, {} AS number FROM {source} \
         UNION ALL SELECT {COLUMNS}, number FROM gone_{source} WHERE number > {after}) AS {source} ",
        i32::MAX
    );
    // With the space behind it: the query may be one over a rollup whose name begins like this.
    query.replace(&format!("FROM {source} "), &rows)
}

/// Columns that rollups get later. No query has them, so that they know nothing of rows that have left before.
pub const ADDITIONS: [&str; 5] = [
    "sum(quantity + 1)",
    "count(nullif(kind, 'view'))",
    "avg(amount + 1)",
    "tally.distinct_count(device + 1)",
    "tally.last(tenant, event_time)",
];

/// The query with one more column.
pub fn with_column(source: &str, query: &str, column: &str) -> String {
    query.replacen(&format!(" FROM {source} "), &format!(", {column} FROM {source} "), 1)
}

/// What may change in a definition, from either to the other: a key, the condition, or a column.
const REWRITES: [(&str, &str); 11] = [
    ("'hour', event_time", "'day', event_time"),
    ("'6 hours', event_time", "'1 hour', event_time"),
    ("quantity % 3", "quantity % 2"),
    ("{source} GROUP BY", "{source} WHERE tenant <> 2 GROUP BY"),
    ("quantity > 0 OR", "quantity > 1 OR"),
    ("count(*) AS n", "count(amount) AS n"),
    ("FILTER (WHERE kind = 'buy')", "FILTER (WHERE kind = 'view')"),
    ("max(device)", "min(device)"),
    ("max(weight)", "min(weight)"),
    ("tally.distinct_count(device)", "tally.distinct_count(quantity)"),
    ("tally.first(quantity", "tally.last(quantity"),
];

/// The other queries that a rollup with this one may get.
pub fn rewritten(source: &str, query: &str) -> Vec<String> {
    let pairs = REWRITES.iter().flat_map(|(one, other)| [(one, other), (other, one)]);
    let changed = pairs.map(|(from, to)| {
        let [from, to] = [from, to].map(|text| text.replace("{source}", source));
        query.replace(&from, &to)
    });
    changed.filter(|changed| changed != query).collect()
}

/// Lower and upper bound of a day.
pub const DAYS: [(&str, &str); 6] = [
    ("2024-03-30Z", "2024-03-31Z"),
    ("2024-03-31Z", "2024-04-01Z"),
    ("2024-04-01Z", "2024-04-02Z"),
    ("2024-04-02Z", "2024-04-03Z"),
    ("2024-04-03Z", "2024-04-04Z"),
    ("2024-04-04Z", "2024-04-05Z"),
];

/// One row as SQL literals and as a line of COPY text.
pub struct Row {
    values: Vec<Option<String>>,
}

impl Row {
    /// A row of the given day; `tenant` limits it to a partition.
    pub fn random(rng: &mut StdRng, day: usize, tenant: Option<i32>) -> Row {
        let minute = rng.random_range(0..24 * 60);
        let date = ["2024-03-30", "2024-03-31", "2024-04-01", "2024-04-02", "2024-04-03", "2024-04-04"][day];
        let time = format!("{date} {:02}:{:02}:00Z", minute / 60, minute % 60);
        let tenant = tenant.unwrap_or_else(|| rng.random_range(1..=3));
        let mut pick = |values: &[&str]| {
            let some = !rng.random_bool(0.25);
            some.then(|| (*values.choose(rng).expect("there is a value")).to_owned())
        };
        let values = vec![
            Some(time),
            Some(tenant.to_string()),
            pick(&["de", "DE", "", "ä", "NULL", "it's", "a,b"]),
            pick(&["view", "buy", "return"]),
            pick(&["0", "1", "1.10", "-3.25", "NaN", "99999.99"]),
            pick(&["0", "1", "2", "7", "-5"]),
            pick(&["0", "-0", "1", "2.5", "NaN", "Infinity", "-Infinity"]),
            pick(&["{}", "{a}", "{NULL}", "{a,b}", "{{a},{b}}", "[2:2]={a}"]),
            pick(&["(,)", "(1,)", "(,1)", "(1,1)"]),
            pick(&["1", "2", "3", "4", "5", "6", "7", "8", "9", "123456789012"]),
        ];
        Row { values }
    }

    /// `('..', NULL, ..)`
    pub fn literals(&self) -> String {
        let values: Vec<String> = self
            .values
            .iter()
            .map(|value| {
                value.as_ref().map_or_else(|| "NULL".into(), |value| format!("'{}'", value.replace('\'', "''")))
            })
            .collect();
        format!("({})", values.join(", "))
    }

    pub fn copy_line(&self) -> String {
        let values: Vec<&str> = self.values.iter().map(|value| value.as_deref().unwrap_or("\\N")).collect();
        format!("{}\n", values.join("\t"))
    }
}

pub fn rows(rng: &mut StdRng, days: usize, most: usize) -> Vec<Row> {
    let count = rng.random_range(1..=most);
    (0..count)
        .map(|_| {
            let day = rng.random_range(0..days);
            Row::random(rng, day, None)
        })
        .collect()
}
