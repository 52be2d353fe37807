//! What sketches cost, over tables in cache: counting, uniting and reading distinct-count sketches beside plain counts and, where it is
//! installed, postgresql-hll; memory of many groups; top-N lists beside the exact counts of all items.

use postgres::Client;
use tally_server_tests::cluster::Cluster;

use crate::report::{Goal, Report, Samples, time};

/// Distinct values of the columns that are counted.
const DISTINCT: u32 = 100_000;
/// Stored sketches, each of 5,000 values: 2.6 MB, which a processor keeps, and 26 MB, which come from memory.
const SKETCHES: [u32; 2] = [2_000, 20_000];
const GROUPS: u32 = 20_000;
const COUNTERS: u32 = 1_000;

pub fn measure(cluster: &Cluster, rows: u32, report: &mut Report) {
    let database = cluster.database();
    let mut session = database.connect();
    let has_peer = !session.query("SELECT FROM pg_available_extensions WHERE name = 'hll'", &[]).unwrap().is_empty();
    if has_peer {
        session.batch_execute("CREATE EXTENSION hll SCHEMA public").unwrap();
    } else {
        report.skip("sketches of postgresql-hll", "no hll");
    }
    aggregates(&mut session, rows * 5, has_peer, report);
    SKETCHES.into_iter().for_each(|sketches| stored_sketches(&mut session, sketches, has_peer, report));
    groups(&mut session, rows * 2, report);
    memory(&mut session, rows, report);
    top_n(&mut session, rows, report);
}

/// `statements` one by one, since VACUUM wants to be a statement of its own.
fn prepare(session: &mut Client, statements: &str) {
    statements.split_inclusive(';').for_each(|statement| session.batch_execute(statement).unwrap());
}

/// Runs queries in turn.
fn compare(session: &mut Client, report: &Report, queries: &[(&str, String)]) -> Vec<Samples> {
    let samples = report.interleave_all(queries, |query| [time(|| session.batch_execute(query).unwrap())]);
    samples.into_iter().map(|[samples]| samples).collect()
}

fn aggregates(session: &mut Client, rows: u32, has_peer: bool, report: &mut Report) {
    prepare(
        session,
        &format!(
            "CREATE TABLE numbers AS SELECT abs(hashint8extended(i, 0) % {DISTINCT}) AS number,
                    'visitor ' || abs(hashint8extended(i, 0) % {DISTINCT}) AS name FROM generate_series(1, {rows}) AS i;
             VACUUM (FREEZE, ANALYZE) numbers; CHECKPOINT;"
        ),
    );
    let rows = u64::from(rows);
    for (workers, at_most) in [(0, 7.5), (2, 4.5)] {
        session.batch_execute(&format!("SET max_parallel_workers_per_gather = {workers}")).unwrap();
        for (column, kind, hash, at_most) in
            [("number", "bigint", "hll_hash_bigint", at_most), ("name", "text", "hll_hash_text", 12.0)]
        {
            let select = |name, aggregate: &str| (name, format!("SELECT {aggregate} FROM numbers"));
            let mut queries = vec![
                select("count(*)", "count(*)"),
                select("count(column)", &format!("count({column})")),
                select("hll_agg", &format!("tally.hll_agg({column})")),
                select("distinct_count", &format!("tally.distinct_count({column})")),
            ];
            if has_peer {
                queries.push(select("peer", &format!("public.hll_add_agg(public.{hash}({column}))")));
            }
            let found = compare(session, report, &queries);
            let [count, count_column, sketch, distinct, peer @ ..] = found.as_slice() else {
                unreachable!("all of them have run");
            };
            let what = format!("`hll_agg({kind})` against `count(*)`, {rows} rows, {workers} parallel workers");
            report.add(&what, count, sketch, Goal::NanosecondsAbove { at_most, rows });
            report.add("the same against `count(column)`", count_column, sketch, Goal::Above { rows });
            report.add("`distinct_count` against `count(column)`", count_column, distinct, Goal::Above { rows });
            report.add("for comparison: `count(column)` against `count(*)`", count, count_column, Goal::Above { rows });
            if let [peer] = peer {
                let what = "for comparison: `hll_add_agg` of postgresql-hll against `count(column)`";
                report.add(what, count_column, peer, Goal::Above { rows });
            }
        }
    }
    session.batch_execute("SET max_parallel_workers_per_gather = 0; DROP TABLE numbers").unwrap();
}

fn stored_sketches(session: &mut Client, sketches: u32, has_peer: bool, report: &mut Report) {
    // A hundred different ones are enough. Each table has one column, so that no value is moved out of its row.
    prepare(
        session,
        &format!(
            "CREATE TABLE originals AS SELECT s, tally.hll_agg(hashint8extended(i, s)) AS sketch
                FROM generate_series(1, 100) AS s, generate_series(1, 5000) AS i GROUP BY 1;
             CREATE TABLE sketches AS SELECT sketch FROM originals, generate_series(1, {sketches} / 100) AS i;
             VACUUM (FREEZE, ANALYZE) sketches;"
        ),
    );
    if has_peer {
        let cast = "CREATE TABLE peers AS SELECT sketch::bytea::public.hll AS sketch FROM sketches; VACUUM (FREEZE, ANALYZE) peers;";
        prepare(session, cast);
    }
    session.batch_execute("CHECKPOINT").unwrap();
    let rows = u64::from(sketches);
    for (what, function, at_most) in [
        ("union of stored FULL values, m = 2048", "hll_union_agg(sketch)", 150.0),
        ("cardinality of a FULL value", "hll_cardinality(sketch)", 300.0),
    ] {
        let select = |name, schema: &str, table: &str| {
            let call = format!("{schema}.{function}");
            (
                name,
                format!(
                    "SELECT {} FROM {table}",
                    if function.contains("_agg") { call } else { format!("sum({call})") }
                ),
            )
        };
        let count = |name, table| (name, format!("SELECT count(sketch) FROM {table}"));
        let mut queries = vec![count("count", "sketches"), select("tally", "tally", "sketches")];
        if has_peer {
            queries.extend([count("count of the peer's", "peers"), select("peer", "public", "peers")]);
        }
        let found = compare(session, report, &queries);
        let [count, ours, peer @ ..] = found.as_slice() else { unreachable!("both have run") };
        report.add(
            &format!("{what}, {rows} of them, against `count(sketch)`"),
            count,
            ours,
            Goal::NanosecondsAbove { at_most, rows },
        );
        if let [count, peer] = peer {
            report.add("for comparison: postgresql-hll", count, peer, Goal::Above { rows });
        }
    }
    session.batch_execute("DROP TABLE originals, sketches; DROP TABLE IF EXISTS peers").unwrap();
}

fn groups(session: &mut Client, rows: u32, report: &mut Report) {
    prepare(
        session,
        &format!(
            "CREATE TABLE visits AS SELECT abs(hashint8extended(i, 1) % {GROUPS}) AS grp, abs(hashint8extended(i, 2) % {DISTINCT}) AS number
                FROM generate_series(1, {rows}) AS i;
             VACUUM (FREEZE, ANALYZE) visits; CHECKPOINT;"
        ),
    );
    let select = |name, aggregate| {
        (name, format!("SELECT count(n) FROM (SELECT {aggregate}(number) AS n FROM visits GROUP BY grp OFFSET 0) AS g"))
    };
    let queries = [
        select("count", "count"),
        select("distinct_count", "tally.distinct_count"),
        select("hll_agg", "tally.hll_agg"),
    ];
    let [count, distinct, sketch] = report.interleave(queries, |query| time(|| session.batch_execute(query).unwrap()));
    let what = format!("`distinct_count` in {GROUPS} groups of {} rows, against `count`", rows / GROUPS);
    report.add(&what, &count, &distinct, Goal::TimesAtMost(1.3));
    report.add("the same with `hll_agg`", &count, &sketch, Goal::Times);
    session.batch_execute("DROP TABLE visits").unwrap();
}

/// What the executor says of a hash aggregation.
#[derive(Clone, Copy, Debug)]
struct HashMemory {
    kilobytes: u64,
    batches: u64,
    disk: u64,
}

fn hash_memory(session: &mut Client, query: &str) -> HashMemory {
    let lines = session.query(&format!("EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) {query}"), &[]).unwrap();
    let plan: String = lines.iter().map(|line| line.get::<_, String>(0) + "\n").collect();
    let number = |label: &str| {
        let digits = plan.split(label).nth(1).map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next());
        digits.flatten().and_then(|digits| digits.parse().ok())
    };
    let kilobytes = number("Memory Usage: ").unwrap_or_else(|| panic!("no hash aggregation: {plan}"));
    HashMemory { kilobytes, batches: number("Batches: ").unwrap_or(1), disk: number("Disk Usage: ").unwrap_or(0) }
}

/// The most memory that the process of the session has had, in kB.
fn most_memory(session: &mut Client) -> u64 {
    let process: i32 = session.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

fn memory(session: &mut Client, rows: u32, report: &mut Report) {
    // PostgreSQL counts in whole blocks of 8 MB.
    let groups = rows / 2;
    prepare(session, "SET enable_sort = off; SET jit = off; SET work_mem = '2GB';");
    // Groups that grow one after the other use what the ones before have left; those that grow together do not.
    let together = format!(
        "generate_series(1, 20) AS value, LATERAL (SELECT generate_series(1, {groups}) + 0 * value AS grp) AS g"
    );
    let in_turn =
        format!("generate_series(1, {groups}) AS grp, LATERAL (SELECT generate_series(1, 20) + 0 * grp AS value) AS v");
    for (numbers, order) in [(together, "that grow together"), (in_turn, "one after the other")] {
        let of = |session: &mut Client, aggregate| {
            hash_memory(session, &format!("SELECT grp, {aggregate}(grp * 20 + value) FROM {numbers} GROUP BY grp"))
        };
        let (count, ours) = (of(session, "count"), of(session, "tally.hll_agg"));
        let bytes = (ours.kilobytes - count.kilobytes) * 1024 / u64::from(groups);
        let goal = if bytes <= 300 { "<= 300 bytes, met" } else { "<= 300 bytes, **missed**" };
        let what = format!(
            "memory of {groups} groups of 20 values {order}, `hll_agg` beside `count`: {bytes} bytes a group ({goal})"
        );
        report.add_count(&what, &format!("{} kB", count.kilobytes), &format!("{} kB", ours.kilobytes));
    }
    prepare(
        session,
        &format!(
            "SET work_mem = '64MB';
             CREATE TABLE visits AS SELECT i % {rows} AS grp, i AS number FROM generate_series(1, {rows} * 5) AS i;
             VACUUM (FREEZE, ANALYZE) visits;"
        ),
    );
    let grouped = |aggregate| {
        format!("SELECT count(n) FROM (SELECT {aggregate}(number) AS n FROM visits GROUP BY grp OFFSET 0) AS g")
    };
    let before = most_memory(session);
    let count = hash_memory(session, &grouped("count"));
    let after_count = most_memory(session);
    let ours = hash_memory(session, &grouped("tally.distinct_count"));
    let after = most_memory(session);
    let shown = |memory: HashMemory, process| {
        format!(
            "{} kB in {} batches, {} kB on disk; process {process} kB",
            memory.kilobytes, memory.batches, memory.disk
        )
    };
    let what = format!(
        "{rows} groups of 5 values with work_mem = 64MB, `distinct_count` beside `count`; process before: {before} kB"
    );
    report.add_count(&what, &shown(count, after_count), &shown(ours, after));
    session.batch_execute("RESET work_mem; RESET jit; RESET enable_sort; DROP TABLE visits").unwrap();
}

fn top_n(session: &mut Client, rows: u32, report: &mut Report) {
    // Item x comes in proportion to 1 / x.
    prepare(
        session,
        &format!(
            "CREATE TABLE stream AS SELECT item, 'page ' || item AS page
                FROM (SELECT floor(power({DISTINCT}, abs(hashint8extended(i, 3) % 1000000007) / 1000000007.0::float8))::bigint AS item
                        FROM generate_series(1, {rows}) AS i) AS items;
             VACUUM (FREEZE, ANALYZE) stream; CHECKPOINT;"
        ),
    );
    for (column, kind) in [("item", "bigint"), ("page", "text")] {
        let queries = [
            ("exact", format!("SELECT {column}, count(*) FROM stream GROUP BY 1 ORDER BY 2 DESC LIMIT 10")),
            ("top-N", format!("SELECT tally.topn(tally.topn_agg({column}, {COUNTERS}), 10) FROM stream")),
        ];
        let [exact, list] = report.interleave(queries, |query| time(|| session.batch_execute(query).unwrap()));
        let what = format!(
            "top 10 of {rows} Zipf items ({kind}) by `topn_agg` of {COUNTERS} counters, against `count(*) .. GROUP BY`"
        );
        report.add(&what, &exact, &list, Goal::TimesAtMost(2.0));
    }
    session.batch_execute("DROP TABLE stream").unwrap();
}
