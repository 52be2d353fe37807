//! A set with its rollups, some sessions that use it, and what may happen to them.

mod events;

use std::fmt::Write as _;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use postgres::{Client, Error};
use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use tally_server_tests::cluster::{Cluster, Database};

use super::Fault;
use crate::oracle;

/// What went wrong, with the statements that led to it.
pub type Outcome<T> = Result<T, String>;

const SESSIONS: usize = 3;
/// Days of the set, the oldest first; today is 0. The first two are due.
const DAYS: std::ops::RangeInclusive<i64> = -4..=1;
/// Rows of these days are never refused.
const RECENT: std::ops::RangeInclusive<i64> = -1..=1;
/// Rollups that a session looks at after a step; before it ends it looks at all.
const LOOKS: usize = 1;
/// Nobody is waited for; and the job, which tries to get a lock for seconds, is cancelled some time.
const IMPATIENT: &str = "SET lock_timeout = '10ms'; SET statement_timeout = '1s'";
/// Whatever has to succeed is tried for so long; nobody holds a lock for longer who is not told to.
const PATIENCE: Duration = Duration::from_secs(30);
/// Somebody is in the way, or has changed the row first.
const BUSY: [&str; 4] = ["55P03", "57014", "40001", "40P01"];

const ROLLUPS: [(&str, &str); 4] = [
    (
        "by_day",
        "SELECT date_trunc('day', at, 'UTC') AS bucket, k, count(*) AS n, sum(v) AS total, max(v) AS top FROM events GROUP BY 1, 2",
    ),
    ("by_key", "SELECT k, count(*) AS n, sum(v) AS total FROM events GROUP BY k"),
    (
        "by_bin",
        "SELECT date_bin('36 hours', at, '2000-01-01Z') AS bucket, count(*) AS n, min(v) AS least, \
           tally.distinct_count(v) AS different FROM events GROUP BY 1",
    ),
    (
        "by_month",
        "SELECT date_trunc('month', bucket, 'UTC') AS month, sum(n) AS n, max(top) AS top FROM by_day GROUP BY 1",
    ),
];
/// For those that come and go.
const PASSING: [&str; 2] = [
    "SELECT v % 3 AS rest, count(*) AS n, max(at) AS latest FROM events GROUP BY 1",
    "SELECT date_trunc('day', at, 'UTC') AS bucket, count(*) AS n, sum(k) AS keys FROM events GROUP BY 1",
];

#[derive(Debug)]
struct Rollup {
    name: String,
    /// Its query over what it knows.
    truth: String,
    /// The step that made it.
    since: usize,
}

struct Session {
    client: Client,
    open: Option<Open>,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    /// Of one snapshot.
    is_repeatable: bool,
    /// Does not look before it ends: it has a snapshot, and no lock on anything.
    is_asleep: bool,
    since: usize,
}

/// A statement that goes on while others move.
#[derive(Debug)]
struct Running {
    pid: i32,
    thread: JoinHandle<Result<(), Error>>,
}

pub struct World<'a> {
    cluster: &'a Cluster,
    database: &'a Database<'a>,
    schema: String,
    fault: Fault,
    /// Midnight of today, when the schedule began.
    today: String,
    job: i64,
    owner: Client,
    sessions: Vec<Session>,
    rollups: Vec<Rollup>,
    detach: Option<Running>,
    /// Somebody has taken partitions away by hand.
    has_holes: bool,
    /// Tables that rows were put into by force.
    forced: Vec<u32>,
    story: String,
    moment: usize,
    pub checks: usize,
}

/// A table that is, or was, a partition.
#[derive(Clone, Debug)]
struct Part {
    oid: u32,
    name: String,
    is_attached: bool,
    is_pending: bool,
    /// Of its record, if it has one.
    state: Option<String>,
    lower: String,
    upper: String,
}

impl Part {
    /// Does its record say that it takes no changes?
    fn is_fenced(&self) -> bool {
        self.state.as_deref().is_some_and(|state| state != "kept")
    }
}

impl<'a> World<'a> {
    pub fn new(
        cluster: &'a Cluster,
        database: &'a Database<'a>,
        seed: u64,
        fault: Fault,
        rng: &mut StdRng,
    ) -> Outcome<Self> {
        let mut owner = database.connect();
        let schema = format!("schedule_{seed}");
        let says = |error: Error| format!("{error:?}");
        let deadline = if fault == Fault::Wait { "0" } else { "6 hours" };
        let grace = ["0", "1 day"].choose(rng).expect("some");
        owner
            .batch_execute(&format!(
                "CREATE SCHEMA {schema}; SET search_path = {schema};
                 CREATE TABLE events (id bigint NOT NULL, at timestamptz NOT NULL, k int, v int) PARTITION BY RANGE (at);
                 CREATE TABLE shadow (id bigint, at timestamptz, k int, v int, part oid);
                 CREATE TABLE unknown (rollup text, part oid);
                 CREATE TABLE parts (part oid PRIMARY KEY, lower text, upper text);
                 CREATE SEQUENCE ids;
                 SELECT tally.partition_by_time('events', '1 day', lateness => '4 days', grace => '{grace}', detach_deadline => '{deadline}')"
            ))
            .map_err(says)?;
        let today = oracle_text(&mut owner, "SELECT date_trunc('day', now(), 'UTC')::text")?;
        let mut world = World {
            cluster,
            database,
            schema,
            fault,
            today,
            job: 0,
            owner,
            sessions: vec![],
            rollups: vec![],
            detach: None,
            has_holes: false,
            forced: vec![],
            story: String::new(),
            moment: 0,
            checks: 0,
        };
        world.note_parts()?;
        let rows = world.rows(rng, &DAYS.collect::<Vec<_>>(), 12);
        world.must(&mirrored_insert("events", &rows))?;
        for (name, query) in ROLLUPS {
            world.must(&format!("SELECT tally.create_rollup('{name}', $q${query}$q$)"))?;
            world.add_rollup(name, query);
        }
        world.must("SELECT tally.set_partition_policy('events', lateness => '2 days', retention => '2 days')")?;
        world.job = world
            .owner
            .query_one(
                "SELECT job_id::bigint FROM tally.jobs WHERE kind = 'retention' AND object = 'events'::regclass",
                &[],
            )
            .map_err(says)?
            .get(0);
        world.connect_all();
        Ok(world)
    }

    fn connect(&self) -> Client {
        let mut client = self.database.connect();
        client.batch_execute(&format!("SET search_path = {}; {IMPATIENT}", self.schema)).expect("a session");
        client
    }

    fn connect_all(&mut self) {
        self.owner = self.connect();
        self.sessions = (0..SESSIONS).map(|_| Session { client: self.connect(), open: None }).collect();
    }

    fn add_rollup(&mut self, name: &str, query: &str) {
        let known = |name: &str| {
            format!(
                "FROM (SELECT * FROM shadow AS x WHERE NOT EXISTS \
                 (SELECT FROM unknown AS u WHERE u.rollup = '{name}' AND u.part = x.part)) AS events"
            )
        };
        let below = ROLLUPS[0].1.replace("FROM events", &known("by_day"));
        let truth = query.replace("FROM events", &known(name)).replace("FROM by_day", &format!("FROM ({below}) AS b"));
        self.rollups.push(Rollup { name: name.into(), truth, since: self.moment });
    }

    /// Remembers where the partitions are that have come. Whoever has a lock on one of them for a moment is waited for, a DETACH that ends
    /// just now among them.
    fn note_parts(&mut self) -> Outcome<()> {
        let note = "INSERT INTO parts SELECT c.oid, m[1], m[2] FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
             CROSS JOIN LATERAL regexp_match(pg_get_expr(c.relpartbound, c.oid), $$FROM \\('(.*)'\\) TO \\('(.*)'\\)$$) AS m
             WHERE i.inhparent = 'events'::regclass ON CONFLICT DO NOTHING";
        let begin = Instant::now();
        while !self.by_owner(note, &[])? {
            if begin.elapsed() > PATIENCE {
                return Err(self.failure("busy"));
            }
        }
        Ok(())
    }

    /// Those that still exist.
    fn parts(&mut self) -> Outcome<Vec<Part>> {
        let rows = self
            .owner
            .query(
                "SELECT p.part, p.part::regclass::text, i.inhrelid IS NOT NULL, coalesce(i.inhdetachpending, false), r.state, p.lower, p.upper
                 FROM parts p JOIN pg_class c ON c.oid = p.part LEFT JOIN pg_inherits i ON i.inhrelid = p.part
                 LEFT JOIN tally.retirements r ON r.partition = p.part ORDER BY p.part",
                &[],
            )
            .map_err(|error| self.failure(&format!("{error:?}")))?;
        Ok(rows
            .iter()
            .map(|row| Part {
                oid: row.get(0),
                name: row.get(1),
                is_attached: row.get(2),
                is_pending: row.get(3),
                state: row.get(4),
                lower: row.get(5),
                upper: row.get(6),
            })
            .collect())
    }

    fn failure(&self, what: &str) -> String {
        format!("{what}\n\n{}", self.story)
    }

    /// Whose statement it was, and what became of it.
    fn tell(&mut self, who: &str, sql: &str, answer: &Result<(), Error>) {
        let error = answer.as_ref().err().map(|error| format!("\n  -> {error:?}")).unwrap_or_default();
        writeln!(self.story, "{} {who}: {sql};{error}", self.moment).expect("a String takes everything");
    }

    fn must(&mut self, sql: &str) -> Outcome<()> {
        match self.by_owner(sql, &[])? {
            true => Ok(()),
            false => Err(self.failure("busy")),
        }
    }

    /// Answers whether it succeeded; it may fail because somebody is in the way, or in these ways.
    fn by_owner(&mut self, sql: &str, tolerated: &[&str]) -> Outcome<bool> {
        let answer = self.owner.batch_execute(sql);
        self.tell("owner", sql, &answer);
        if answer.is_err() {
            let _ = self.owner.batch_execute("ROLLBACK");
        }
        self.judge(answer, tolerated)
    }

    fn by_session(&mut self, number: usize, sql: &str, tolerated: &[&str]) -> Outcome<bool> {
        let session = &mut self.sessions[number];
        let answer = session.client.batch_execute(sql);
        if answer.is_err() && session.open.take().is_some() {
            session.client.batch_execute("ROLLBACK").map_err(|error| format!("{error:?}"))?;
        }
        self.tell(&format!("session {number}"), sql, &answer);
        self.judge(answer, tolerated)
    }

    fn judge(&self, answer: Result<(), Error>, tolerated: &[&str]) -> Outcome<bool> {
        match answer {
            Ok(()) => Ok(true),
            Err(error) => {
                let state = error.code().map_or("", |state| state.code());
                if BUSY.contains(&state) || tolerated.contains(&state) {
                    return Ok(false);
                }
                Err(self.failure(&format!("{state}: {error:?}")))
            }
        }
    }

    /// Literals of rows of these days.
    fn rows(&self, rng: &mut StdRng, days: &[i64], number: usize) -> String {
        let row = |rng: &mut StdRng| {
            let (day, minute) = (days.choose(rng).expect("a day"), rng.random_range(0..24 * 60));
            format!(
                "('{}'::timestamptz + interval '{day} days {minute} minutes', {}, {})",
                self.today,
                rng.random_range(0..4),
                rng.random_range(0..9)
            )
        };
        (0..number).map(|_| row(rng)).collect::<Vec<_>>().join(", ")
    }

    /// After a step, every session with an open transaction looks, and one without.
    pub fn look(&mut self, rng: &mut StdRng) -> Outcome<()> {
        let idle = rng.random_range(0..SESSIONS);
        for number in 0..SESSIONS {
            match self.sessions[number].open {
                Some(open) if open.is_asleep => {}
                None if number != idle => {}
                _ => self.check(number, LOOKS, rng.random_range(0..self.rollups.len()))?,
            }
        }
        Ok(())
    }

    /// In the snapshot of this session so many rollups, from this one on, equal their queries.
    fn check(&mut self, number: usize, looks: usize, first: usize) -> Outcome<()> {
        let open = self.sessions[number].open;
        let is_known = |rollup: &&Rollup| !open.is_some_and(|open| open.is_repeatable && open.since <= rollup.since);
        let questions: Vec<String> = self.rollups[first..]
            .iter()
            .chain(&self.rollups[..first])
            .take(looks)
            .filter(is_known)
            .map(|Rollup { name, truth, .. }| {
                format!("SELECT '{name}: ' || d FROM ({}) AS d (d)", oracle::difference(name, truth))
            })
            .collect();
        if questions.is_empty() {
            return Ok(());
        }
        self.checks += questions.len();
        let question = questions.join("\nUNION ALL ");
        match self.sessions[number].client.query(&question, &[]) {
            Ok(rows) if rows.is_empty() => Ok(()),
            Ok(rows) => {
                let rows: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
                Err(self.failure(&format!("session {number} sees, open {open:?}: {rows:#?}")))
            }
            Err(error) => {
                if self.sessions[number].open.take().is_some() {
                    let _ = self.sessions[number].client.batch_execute("ROLLBACK");
                }
                let answer = Err(error);
                self.tell(&format!("session {number}"), "check", &answer);
                self.judge(answer, &[]).map(drop)
            }
        }
    }

    /// Everything is ended, and retention goes on until nothing is left to do.
    pub fn end(&mut self, rng: &mut StdRng) -> Outcome<()> {
        self.finish_all(rng)?;
        while self.detach.is_some() {
            self.follow_detach()?;
        }
        self.owner
            .batch_execute("RESET lock_timeout; RESET statement_timeout")
            .map_err(|error| format!("{error:?}"))?;
        if self.forced.is_empty() {
            self.must("SELECT tally.resume_partitions('events')")?;
        }
        let mut idle = 0;
        // After the one in the trash that stays, others go on.
        while idle < 2 {
            self.moment += 1;
            if self.moment > 200 {
                return Err(self.failure("retention does not end"));
            }
            self.must("UPDATE tally.retirements SET drop_after = now() WHERE parent = 'events'::regclass AND drop_after IS NOT NULL")?;
            let step = format!("SELECT tally.run_job({})", self.job);
            let more: Option<i64> =
                self.owner.query_one(&step, &[]).map_err(|error| self.failure(&format!("{error:?}")))?.get(0);
            self.plant()?;
            self.detach_if_asked()?;
            while self.detach.is_some() {
                self.follow_detach()?;
            }
            self.check(0, LOOKS, rng.random_range(0..self.rollups.len()))?;
            idle = if more == Some(0) { idle + 1 } else { 0 };
        }
        self.must("CALL tally.refresh('by_day')")?;
        self.check(0, usize::MAX, 0)?;
        let parts = self.parts()?;
        for part in &parts {
            let is_forced = self.forced.contains(&part.oid);
            if part.state.as_deref().is_some_and(|state| state != "kept") && !is_forced {
                return Err(self.failure(&format!("retention has not come to an end: {part:?}")));
            }
        }
        match self.forced.iter().find(|oid| !parts.iter().any(|part| part.oid == **oid)) {
            Some(oid) => Err(self.failure(&format!("table {oid} had a row that was not counted, and was dropped"))),
            None => Ok(()),
        }
    }
}

/// Inserts rows of time, key and value, and into the shadow what has become of them.
fn mirrored_insert(table: &str, rows: &str) -> String {
    format!(
        "WITH w AS (INSERT INTO {table} SELECT nextval('ids'), * FROM (VALUES {rows}) AS r RETURNING id, at, k, v, tableoid) \
         INSERT INTO shadow SELECT * FROM w"
    )
}

fn oracle_text(session: &mut Client, query: &str) -> Outcome<String> {
    session.query_one(query, &[]).map(|row| row.get(0)).map_err(|error| format!("{error:?}"))
}
