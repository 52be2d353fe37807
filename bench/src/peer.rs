//! The same work by the tools that would otherwise be taken: a sequence pipeline of pg_incremental per rollup, whose command merges
//! sketches of postgresql-hll by ON CONFLICT, against one `CALL tally.refresh`. Both process the same rows, which are loaded already,
//! and must arrive at the same groups, counts and sketches, byte by byte.
//!
//! The peers get what suits them: a BRIN index on the identity column, as their manual advises, a table that has been analysed, and
//! sorted aggregation, because a hash table of their aggregates, of 128 kB each, goes to disk with some thousand groups. Their own
//! setting for that, `hll.force_groupagg`, comes too late where the planner has dropped the sorted plan before. The pipelines are
//! called and not scheduled, so pg_cron, without which pg_incremental cannot be created, does nothing; it must be preloaded, hence a
//! server of its own.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use postgres::Client;
use tally_server_tests::cluster::Cluster;

use crate::SETTINGS;
use crate::reference::{binary_file, copy_from, create_events};
use crate::report::{Goal, Report, time};

/// A name, the bucket and the keys beside it. The costly ones come first, so that sessions that share them end together.
type Rollup = (&'static str, &'static str, &'static [&'static str]);
const HOUR: &str = "date_trunc('hour', event_time, 'UTC')";
const FIVE_MINUTES: &str = "date_bin('5 minutes', event_time, '2000-01-01Z')";
const ROLLUPS: &[Rollup] = &[
    ("tenant_5min", FIVE_MINUTES, &["customer_id"]),
    ("tenant_type", HOUR, &["customer_id", "event_type"]),
    ("tenant", HOUR, &["customer_id"]),
    ("type_country_browser", HOUR, &["event_type", "country", "browser"]),
    ("country_browser", HOUR, &["country", "browser"]),
    ("type_country", HOUR, &["event_type", "country"]),
    ("country", HOUR, &["country"]),
    ("browser", HOUR, &["browser"]),
    ("type", HOUR, &["event_type"]),
    ("total", HOUR, &[]),
];
/// What is measured alone.
const ALONE: &[(&str, usize)] = &[("2,304 groups", 3), ("24,000 groups", 2), ("279,000 groups", 0)];

const EXTENSIONS: [&str; 3] = ["hll", "pg_cron", "pg_incremental"];
/// Where pg_cron wants to be.
const DATABASE: &str = "postgres";

#[derive(Clone, Copy, Debug)]
enum Contender {
    Tally,
    /// As many sessions call the pipelines.
    Pipelines(usize),
}

pub fn measure(cluster: &Cluster, rows: u32, report: &mut Report) {
    let database = cluster.database();
    let missing = missing_extensions(&mut database.connect());
    if !missing.is_empty() {
        report.skip("the same work by pg_incremental and postgresql-hll", &format!("no {}", missing.join(", no ")));
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = binary_file(&database, folder.path(), rows);
    let settings: Vec<_> = SETTINGS.iter().copied().chain([("shared_preload_libraries", "tally, pg_cron")]).collect();
    let cluster = Cluster::start(&settings);
    let mut session = cluster.connect(DATABASE);
    session.batch_execute("CREATE EXTENSION tally").unwrap();
    for extension in EXTENSIONS {
        session.batch_execute(&format!("CREATE EXTENSION {extension}")).unwrap();
    }

    for (groups, position) in ALONE {
        let rollups = &ROLLUPS[*position..=*position];
        let mut check = Check::default();
        let contenders = [("pipeline", Contender::Pipelines(1)), ("tally", Contender::Tally)];
        let [[peer_new, peer_again], [tally_new, tally_again]] = report
            .interleave_parts(contenders, |contender| process(&cluster, &file, rows, rollups, *contender, &mut check));
        let what =
            format!("tick over {rows} new rows into 1 rollup of {groups} with 2 sketches, against pg_incremental");
        report.add(&what, &peer_new, &tally_new, Goal::FasterAtLeast(2.0));
        report.add(
            "the same rows once more, now that all groups exist",
            &peer_again,
            &tally_again,
            Goal::FasterAtLeast(2.0),
        );
    }

    let mut check = Check::default();
    let contenders = [
        ("10 pipelines", Contender::Pipelines(1)),
        ("10 pipelines, two at a time", Contender::Pipelines(2)),
        ("tally", Contender::Tally),
    ];
    let [[peer_new, peer_again], [two_new, two_again], [tally_new, tally_again]] = report
        .interleave_parts(contenders, |contender| process(&cluster, &file, rows, ROLLUPS, *contender, &mut check));
    let what = format!("tick over {rows} new rows into 10 rollups with 2 sketches each, against 10 pipelines");
    report.add(&what, &peer_new, &tally_new, Goal::FasterAtLeast(5.0));
    report.add(
        "the same rows once more, now that all groups exist",
        &peer_again,
        &tally_again,
        Goal::FasterAtLeast(5.0),
    );
    report.add("for comparison: new rows, against 10 pipelines in two sessions", &two_new, &tally_new, Goal::Faster);
    report.add(
        "for comparison: once more, against 10 pipelines in two sessions",
        &two_again,
        &tally_again,
        Goal::Faster,
    );
}

fn missing_extensions(session: &mut Client) -> Vec<&'static str> {
    let is_missing = |name: &&str| {
        let sql = "SELECT FROM pg_available_extensions WHERE name = $1";
        session.query(sql, &[name]).unwrap().is_empty()
    };
    EXTENSIONS.into_iter().filter(is_missing).collect()
}

/// The time to process the rows of the file, and the time to process them once more.
fn process(
    cluster: &Cluster,
    file: &Path,
    rows: u32,
    rollups: &[Rollup],
    contender: Contender,
    check: &mut Check,
) -> [Duration; 2] {
    let mut session = cluster.connect(DATABASE);
    create_events(&mut session, 1);
    rollups.iter().for_each(|rollup| contender.create(&mut session, rollup));
    if let Contender::Pipelines(_) = contender {
        session.batch_execute("CREATE INDEX ON events USING brin (event_id)").unwrap();
    }
    let times = std::array::from_fn(|_| {
        copy_from(&mut session, file);
        session.batch_execute("ANALYZE events; CHECKPOINT").unwrap();
        match contender {
            Contender::Tally => {
                time(|| session.batch_execute(&format!("CALL tally.refresh('{}')", rollups[0].0)).unwrap())
            }
            Contender::Pipelines(sessions) => execute_pipelines(cluster, rollups, sessions),
        }
    });
    check.equal(&mut session, rollups, rows);
    rollups.iter().for_each(|rollup| contender.drop(&mut session, rollup));
    session.batch_execute("DROP TABLE events").unwrap();
    times
}

fn execute_pipelines(cluster: &Cluster, rollups: &[Rollup], sessions: usize) -> Duration {
    let next = AtomicUsize::new(0);
    let mut sessions: Vec<_> = (0..sessions).map(|_| cluster.connect(DATABASE)).collect();
    for session in &mut sessions {
        session.batch_execute("SET enable_hashagg = off; SET client_min_messages = warning").unwrap();
    }
    time(|| {
        thread::scope(|scope| {
            for session in &mut sessions {
                scope.spawn(|| {
                    while let Some((name, ..)) = rollups.get(next.fetch_add(1, Ordering::Relaxed)) {
                        session.batch_execute(&format!("CALL incremental.execute_pipeline('{name}')")).unwrap();
                    }
                });
            }
        });
    })
}

impl Contender {
    fn create(self, session: &mut Client, (name, bucket, keys): &Rollup) {
        let keys: String = keys.iter().map(|key| format!(", {key}")).collect();
        match self {
            Contender::Tally => {
                let definition = format!(
                    "SELECT {bucket} AS bucket{keys}, count(*) AS events,
                            tally.hll_agg(device_id) AS devices, tally.hll_agg(session_id) AS sessions
                     FROM events GROUP BY {bucket}{keys}"
                );
                session.execute("SELECT tally.create_rollup($1, $2)", &[name, &definition]).unwrap();
            }
            Contender::Pipelines(_) => {
                let query = |condition: &str| {
                    format!(
                        "SELECT {bucket} AS bucket{keys}, count(*) AS events,
                                hll_add_agg(hll_hash_bigint(device_id)) AS devices,
                                hll_add_agg(hll_hash_bigint(session_id)) AS sessions
                         FROM events {condition} GROUP BY {bucket}{keys}"
                    )
                };
                let table = format!(
                    "CREATE TABLE {name} AS {} WITH NO DATA; ALTER TABLE {name} ADD PRIMARY KEY (bucket{keys})",
                    query("")
                );
                session.batch_execute(&table).unwrap();
                let command = format!(
                    "INSERT INTO {name} AS t {} ON CONFLICT (bucket{keys}) DO UPDATE SET events = t.events + excluded.events,
                       devices = hll_union(t.devices, excluded.devices), sessions = hll_union(t.sessions, excluded.sessions)",
                    query("WHERE event_id BETWEEN $1 AND $2")
                );
                let create = "SELECT incremental.create_sequence_pipeline($1, 'events', $2, schedule => NULL, execute_immediately => false)";
                session.execute(create, &[name, &command]).unwrap();
            }
        }
    }

    fn drop(self, session: &mut Client, (name, ..): &Rollup) {
        let sql = match self {
            Contender::Tally => format!("SELECT tally.drop_rollup('{name}')"),
            Contender::Pipelines(_) => format!("SELECT incremental.drop_pipeline('{name}'); DROP TABLE {name}"),
        };
        session.batch_execute(&sql).unwrap();
    }
}

/// What the first contender arrived at, for the others to be compared with: groups, and a sum over them of the hash of all columns.
#[derive(Debug, Default)]
struct Check(Option<Vec<(i64, String)>>);

impl Check {
    fn equal(&mut self, session: &mut Client, rollups: &[Rollup], rows: u32) {
        let read = |(name, _, keys): &Rollup| {
            let keys: String = keys.iter().map(|key| format!("{key}, ")).collect();
            let sql = format!(
                "SELECT count(*), sum(hashtextextended(concat_ws('|', bucket, {keys}events, devices, sessions), 0))::text,
                        sum(events)::bigint FROM {name}"
            );
            let row = session.query_one(&sql, &[]).unwrap();
            assert_eq!(row.get::<_, i64>(2), 2 * i64::from(rows), "{name} counts each row of both rounds once");
            (row.get(0), row.get(1))
        };
        let found: Vec<_> = rollups.iter().map(read).collect();
        assert_eq!(
            self.0.get_or_insert_with(|| found.clone()),
            &found,
            "both have the same groups, counts and sketches"
        );
    }
}
