//! One session of the random test: it takes random steps and says after each whether what it sees is right.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use postgres::{Client, Error, Statement};
use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use std::io::Write as _;

use super::schema::{self, COLUMNS, SOURCES};
use crate::oracle;

/// Why the test is red; what led there is in the trace.
pub type Failure = String;

#[derive(Clone, Debug)]
pub struct Rollup {
    pub name: String,
    pub source: &'static str,
    /// The user's own text.
    pub query: String,
    /// Other sessions never drop it.
    pub permanent: bool,
}

/// What the sessions of one test share.
pub struct World {
    pub rollups: Mutex<Vec<Rollup>>,
    /// Defining queries, by source.
    pub queries: HashMap<&'static str, Vec<String>>,
    pub trace: Mutex<Vec<String>>,
    days: AtomicUsize,
    names: AtomicUsize,
    /// Are steps of several sessions carried out at the same moment? Then refreshes may wait for each other.
    pub parallel: bool,
}

impl World {
    pub fn new(queries: HashMap<&'static str, Vec<String>>, parallel: bool) -> World {
        let counter = AtomicUsize::new(0);
        let days = AtomicUsize::new(schema::FIRST_DAYS);
        World { rollups: Mutex::default(), queries, trace: Mutex::default(), days, names: counter, parallel }
    }

    pub fn new_name(&self, kind: &str) -> String {
        format!("{kind}_{}", self.names.fetch_add(1, Ordering::Relaxed))
    }

    fn note(&self, line: String) {
        self.trace.lock().unwrap().push(line);
    }

    /// The end of the trace, for the message of a red test.
    pub fn story(&self) -> String {
        let trace = self.trace.lock().unwrap();
        trace[trace.len().saturating_sub(60)..].join("\n")
    }
}

pub struct Session {
    name: String,
    pub client: Client,
    world: Arc<World>,
    transaction: Option<Transaction>,
    prepared: Vec<String>,
    checks: HashMap<String, Statement>,
}

struct Transaction {
    read_committed: bool,
    /// Number of rollups that this transaction had created at each savepoint.
    savepoints: Vec<usize>,
    created: Vec<Rollup>,
    failed: bool,
}

/// How a statement may end.
enum Expect {
    Success,
    /// An idea that must fail with this SQLSTATE.
    Refusal(&'static str),
    /// Another session may have changed a row and not ended, or have moved it to another partition.
    Change,
    /// A refresh or DDL: another session may be refreshing, or reading what is to be dropped.
    SuccessOrBusy,
}

impl Session {
    pub fn new(name: String, mut client: Client, world: Arc<World>) -> Session {
        // Nobody else moves while a step is carried out, unless sessions work at the same time: then a refresh may wait for another.
        let patience = if world.parallel { "20s" } else { "1ms" };
        client.batch_execute(&format!("SET lock_timeout = '{patience}'")).unwrap();
        Session { name, client, world, transaction: None, prepared: vec![], checks: HashMap::new() }
    }

    pub fn step(&mut self, rng: &mut StdRng) -> Result<(), Failure> {
        match &self.transaction {
            None => self.step_outside(rng),
            Some(transaction) if transaction.failed => self.recover(rng),
            Some(_) => self.step_inside(rng),
        }
    }

    fn step_outside(&mut self, rng: &mut StdRng) -> Result<(), Failure> {
        match rng.random_range(0..100) {
            0..35 => {
                let level =
                    *["READ COMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"].choose(rng).unwrap();
                self.transaction = Some(Transaction {
                    read_committed: level == "READ COMMITTED",
                    savepoints: vec![],
                    created: vec![],
                    failed: false,
                });
                self.run(&format!("BEGIN ISOLATION LEVEL {level}"), Expect::Success)
            }
            35..52 => self.write(rng),
            52..65 => self.change_any_rows(rng),
            65..80 => self.refresh(rng),
            80..88 => self.end_prepared(rng),
            88..91 => self.create_rollup(rng),
            91..93 => self.drop_rollup(rng),
            93..95 => self.add_partition(),
            95..97 => self.truncate(rng),
            _ => self.try_what_is_refused(rng),
        }
    }

    fn step_inside(&mut self, rng: &mut StdRng) -> Result<(), Failure> {
        match rng.random_range(0..100) {
            0..22 => self.write(rng),
            22..38 => self.change_any_rows(rng),
            38..50 => self.change_own_rows(rng),
            50..60 => {
                let transaction = self.transaction.as_mut().expect("inside");
                transaction.savepoints.push(transaction.created.len());
                let name = transaction.savepoints.len();
                self.run(&format!("SAVEPOINT s{name}"), Expect::Success)
            }
            60..68 => self.leave_savepoint(rng),
            68..76 => self.refresh(rng),
            76..80 => self.try_what_is_refused(rng),
            80..82 => self.create_rollup(rng),
            82..92 => self.end("COMMIT"),
            92..96 => self.end("ROLLBACK"),
            _ => self.prepare(),
        }
    }

    /// After an error: back to a savepoint, or out.
    fn recover(&mut self, rng: &mut StdRng) -> Result<(), Failure> {
        let transaction = self.transaction.as_mut().expect("inside");
        if transaction.savepoints.is_empty() || rng.random_bool(0.5) {
            self.end("ROLLBACK")
        } else {
            self.roll_back_to(rng)
        }
    }

    fn leave_savepoint(&mut self, rng: &mut StdRng) -> Result<(), Failure> {
        let transaction = self.transaction.as_mut().expect("inside");
        let depth = transaction.savepoints.len();
        if depth == 0 {
            return Ok(());
        }
        if rng.random_bool(0.7) {
            return self.roll_back_to(rng);
        }
        transaction.savepoints.pop();
        self.run(&format!("RELEASE s{depth}"), Expect::Success)
    }

    fn roll_back_to(&mut self, rng: &mut StdRng) -> Result<(), Failure> {
        let transaction = self.transaction.as_mut().expect("inside");
        let number = rng.random_range(1..=transaction.savepoints.len());
        transaction.savepoints.truncate(number);
        transaction.created.truncate(transaction.savepoints[number - 1]);
        transaction.failed = false;
        self.run(&format!("ROLLBACK TO s{number}"), Expect::Success)
    }

    /// COMMIT or ROLLBACK. PostgreSQL may refuse to commit a SERIALIZABLE transaction.
    pub fn end(&mut self, how: &str) -> Result<(), Failure> {
        self.run(how, Expect::Success)?;
        if let Some(mut transaction) = self.transaction.take()
            && how == "COMMIT"
            && !transaction.failed
        {
            self.world.rollups.lock().unwrap().append(&mut transaction.created);
        }
        Ok(())
    }

    fn prepare(&mut self) -> Result<(), Failure> {
        if self.transaction.as_ref().is_some_and(|transaction| !transaction.created.is_empty()) {
            return self.end("ROLLBACK");
        }
        let name = self.world.new_name(&format!("prepared_{}", self.name));
        self.run(&format!("PREPARE TRANSACTION '{name}'"), Expect::Success)?;
        if let Some(transaction) = self.transaction.take()
            && !transaction.failed
        {
            self.prepared.push(name);
        }
        Ok(())
    }

    fn end_prepared(&mut self, rng: &mut StdRng) -> Result<(), Failure> {
        if self.prepared.is_empty() {
            return Ok(());
        }
        let name = self.prepared.swap_remove(rng.random_range(0..self.prepared.len()));
        let how = if rng.random_bool(0.7) { "COMMIT" } else { "ROLLBACK" };
        self.run(&format!("{how} PREPARED '{name}'"), Expect::Success)
    }

    /// Ends whatever is open.
    pub fn finish(&mut self, rng: &mut StdRng) -> Result<(), Failure> {
        if self.transaction.is_some() {
            self.end(if rng.random_bool(0.7) { "COMMIT" } else { "ROLLBACK" })?;
        }
        while !self.prepared.is_empty() {
            self.end_prepared(rng)?;
        }
        Ok(())
    }

    fn write(&mut self, rng: &mut StdRng) -> Result<(), Failure> {
        let source = *SOURCES.choose(rng).unwrap();
        let days = self.world.days.load(Ordering::Relaxed);
        let rows = schema::rows(rng, days, 6);
        let literals = |rows: &[schema::Row]| rows.iter().map(schema::Row::literals).collect::<Vec<_>>().join(", ");
        let statement = match rng.random_range(0..8) {
            0 | 1 => format!("INSERT INTO {source} ({COLUMNS}) VALUES {}", literals(&rows)),
            2 => return self.copy(source, &rows),
            3 => {
                let (table, row) = match rng.random_range(0..4) {
                    0 => ("day_0", schema::Row::random(rng, 0, None)),
                    1 => ("day_1_odd", schema::Row::random(rng, 1, Some(3))),
                    2 => ("day_1", schema::Row::random(rng, 1, None)),
                    _ => ("day_2", schema::Row::random(rng, 2, None)),
                };
                format!("INSERT INTO {table} ({COLUMNS}) VALUES {}", row.literals())
            }
            4 => format!(
                "INSERT INTO {source} ({COLUMNS}) SELECT {COLUMNS} FROM {} ORDER BY id DESC LIMIT {}",
                SOURCES.choose(rng).unwrap(),
                rng.random_range(0..20)
            ),
            5 => format!(
                "WITH written AS (INSERT INTO events ({COLUMNS}) VALUES {} RETURNING {COLUMNS}) \
                 INSERT INTO clicks ({COLUMNS}) SELECT {COLUMNS} FROM written",
                literals(&rows)
            ),
            // A subtransaction that fails, inside of one that does not.
            6 => format!(
                "DO $do$ BEGIN INSERT INTO {source} ({COLUMNS}) VALUES {}; \
                 BEGIN INSERT INTO {source} ({COLUMNS}) VALUES {}; PERFORM 1 / 0; \
                 EXCEPTION WHEN division_by_zero THEN NULL; END; END $do$",
                rows[0].literals(),
                literals(&rows)
            ),
            _ => "MERGE INTO clicks USING (SELECT nextval('ids') AS id, tenant FROM clicks LIMIT 5) AS s ON clicks.id = s.id \
                  WHEN NOT MATCHED THEN INSERT (id, event_time, tenant) VALUES (s.id, '2024-04-01 12:00Z', s.tenant)"
                .into(),
        };
        self.run(&statement, Expect::Success)
    }

    fn copy(&mut self, source: &str, rows: &[schema::Row]) -> Result<(), Failure> {
        let statement = format!("COPY {source} ({COLUMNS}) FROM STDIN");
        let lines: String = rows.iter().map(schema::Row::copy_line).collect();
        self.world.note(format!("{}: {statement}\n{lines}", self.name));
        let copied = self.client.copy_in(&statement).and_then(|mut writer| {
            writer.write_all(lines.as_bytes()).expect("the server takes rows");
            writer.finish()
        });
        self.judge(&statement, copied.map(drop), &Expect::Success)
    }

    /// Nobody has counted these rows.
    fn change_own_rows(&mut self, rng: &mut StdRng) -> Result<(), Failure> {
        let source = SOURCES.choose(rng).unwrap();
        let own = format!("tally_tag = tally.row_tag() AND id % 3 = {}", rng.random_range(0..3));
        let statement = match rng.random_range(0..4) {
            0 => format!("DELETE FROM {source} WHERE {own}"),
            1 => format!("UPDATE {source} SET quantity = quantity + 1, country = 'ä' WHERE {own}"),
            2 => format!("UPDATE {source} SET event_time = '2024-03-31 01:30Z', tenant = 2 WHERE {own}"),
            _ => format!(
                "MERGE INTO {source} AS t USING (VALUES (1)) AS v (one) ON {own} WHEN MATCHED AND quantity > 1 THEN DELETE \
                 WHEN MATCHED THEN UPDATE SET event_time = '2024-03-30 01:30Z', amount = 7"
            ),
        };
        self.run(&statement, Expect::Success)
    }

    fn refresh(&mut self, rng: &mut StdRng) -> Result<(), Failure> {
        let rollup = self.world.rollups.lock().unwrap().choose(rng).expect("some are permanent").clone();
        if self.world.parallel && !rollup.permanent {
            return Ok(());
        }
        let must_be_refused = match self.transaction.as_ref().map(|transaction| transaction.read_committed) {
            None => false,
            Some(read_committed) => !read_committed || self.has_xid()?,
        };
        let expect = if must_be_refused { Expect::Refusal("25001") } else { Expect::SuccessOrBusy };
        self.run(&format!("CALL tally.refresh('{}')", rollup.name), expect)
    }

    fn has_xid(&mut self) -> Result<bool, Failure> {
        let row = self.client.query_one("SELECT pg_current_xact_id_if_assigned() IS NOT NULL", &[]);
        row.map(|row| row.get(0)).map_err(|error| format!("{}: {error:?}", self.name))
    }

    fn create_rollup(&mut self, rng: &mut StdRng) -> Result<(), Failure> {
        if self.world.rollups.lock().unwrap().len() > 24 {
            return Ok(());
        }
        let source = *SOURCES.choose(rng).unwrap();
        let query = self.world.queries[source].choose(rng).unwrap().clone();
        let rollup = Rollup { name: self.world.new_name("extra"), source, query, permanent: false };
        let statement = format!("SELECT tally.create_rollup('{}', $rollup${}$rollup$)", rollup.name, rollup.query);
        let expect = match &self.transaction {
            None => Expect::SuccessOrBusy,
            Some(transaction) if !transaction.read_committed => Expect::Refusal("25001"),
            // Refused with 25001 only if another refresh came between the first write of this transaction and now.
            Some(_) => Expect::SuccessOrBusy,
        };
        self.run(&statement, expect)?;
        if !self.exists(&rollup.name)? {
            return Ok(());
        }
        match &mut self.transaction {
            None => self.world.rollups.lock().unwrap().push(rollup),
            Some(transaction) => transaction.created.push(rollup),
        }
        Ok(())
    }

    fn exists(&mut self, name: &str) -> Result<bool, Failure> {
        if self.transaction.as_ref().is_some_and(|transaction| transaction.failed) {
            return Ok(false);
        }
        let row = self.client.query_one("SELECT to_regclass($1) IS NOT NULL", &[&name]);
        row.map(|row| row.get(0)).map_err(|error| format!("{}: {error:?}", self.name))
    }

    fn drop_rollup(&mut self, rng: &mut StdRng) -> Result<(), Failure> {
        // Taken off the list first, so that no other session drops it too.
        let rollup = {
            let mut rollups = self.world.rollups.lock().unwrap();
            let extras: Vec<usize> = (0..rollups.len()).filter(|number| !rollups[*number].permanent).collect();
            let Some(number) = extras.choose(rng) else { return Ok(()) };
            rollups.swap_remove(*number)
        };
        self.run(&format!("SELECT tally.drop_rollup('{}')", rollup.name), Expect::SuccessOrBusy)?;
        if self.exists(&rollup.name)? {
            self.world.rollups.lock().unwrap().push(rollup);
        }
        Ok(())
    }

    /// LIKE and ATTACH, the way that waits for no reader.
    fn add_partition(&mut self) -> Result<(), Failure> {
        const LAST_DAYS: [(&str, &str); 3] =
            [("2024-04-02", "2024-04-03"), ("2024-04-03", "2024-04-04"), ("2024-04-04", "2024-04-05")];
        let day = self.world.days.load(Ordering::Relaxed);
        let Some((from, to)) = LAST_DAYS.get(day - schema::FIRST_DAYS) else { return Ok(()) };
        if self.world.parallel && self.name != "session 0" {
            return Ok(());
        }
        let attach = format!(
            "CREATE TABLE day_{day} (LIKE events INCLUDING DEFAULTS); \
             INSERT INTO day_{day} (event_time, tenant, country, amount, tally_tag) \
               SELECT '{from} 05:00Z', tenant, country, amount, tally_tag FROM clicks LIMIT 5; \
             INSERT INTO day_{day} (event_time, tenant, kind) VALUES ('{from} 05:00Z', 1, 'buy'); \
             ALTER TABLE events ATTACH PARTITION day_{day} FOR VALUES FROM ('{from}Z') TO ('{to}Z')"
        );
        self.run(&attach, Expect::SuccessOrBusy)?;
        if self.exists(&format!("day_{day}"))? {
            self.world.days.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Rows that somebody else has written, and that a refresh may have counted. Their last change may not have ended.
    fn change_any_rows(&mut self, rng: &mut StdRng) -> Result<(), Failure> {
        let (source, other) = (*SOURCES.choose(rng).unwrap(), *SOURCES.choose(rng).unwrap());
        let some = format!("id % 7 = {}", rng.random_range(0..7));
        let statement = match rng.random_range(0..10) {
            0 => format!("UPDATE {source} SET quantity = quantity + 1, country = 'ä' WHERE {some}"),
            1 => format!("UPDATE {source} SET kind = NULL, weight = -weight, labels = NULL WHERE {some}"),
            2 => format!("UPDATE {source} SET event_time = '2024-03-31 01:30Z', tenant = 2 WHERE {some}"),
            3 => format!("DELETE FROM {source} WHERE {some}"),
            4 => format!("UPDATE day_0 SET amount = amount + 1 WHERE {some}"),
            5 => format!(
                "MERGE INTO {source} AS t USING (VALUES (1)) AS v (one) ON {some} WHEN MATCHED AND quantity > 1 THEN DELETE \
                 WHEN MATCHED THEN UPDATE SET event_time = '2024-03-30 01:30Z', amount = 7"
            ),
            6 => format!(
                "INSERT INTO clicks (id, {COLUMNS}) SELECT id, {COLUMNS} FROM clicks WHERE {some} \
                 ON CONFLICT (id) DO UPDATE SET tenant = 1 + clicks.tenant % 3"
            ),
            7 => format!("UPDATE {source} SET id = id WHERE {some}"),
            // Copied with their tags.
            8 => format!(
                "INSERT INTO {source} (id, {COLUMNS}, tally_tag) SELECT nextval('ids'), {COLUMNS}, tally_tag FROM {other} \
                 WHERE {some} LIMIT 10"
            ),
            _ => format!(
                "WITH gone AS (DELETE FROM {source} WHERE {some} RETURNING {COLUMNS}) \
                 INSERT INTO {other} ({COLUMNS}) SELECT {COLUMNS} FROM gone"
            ),
        };
        self.run(&statement, Expect::Change)
    }

    /// Nobody may have an old snapshot then: TRUNCATE is not MVCC-safe. One step after the other, its lock sees to that.
    fn truncate(&mut self, rng: &mut StdRng) -> Result<(), Failure> {
        if self.world.parallel {
            return Ok(());
        }
        let table = ["day_0", "day_1", "day_1_even", "day_2", "clicks", "events"].choose(rng).unwrap();
        self.run(&format!("TRUNCATE {table}"), Expect::SuccessOrBusy)
    }

    fn try_what_is_refused(&mut self, rng: &mut StdRng) -> Result<(), Failure> {
        let source = *SOURCES.choose(rng).unwrap();
        let tag = [i64::MAX, -1].choose(rng).unwrap();
        let statement =
            format!("INSERT INTO {source} (event_time, tenant, tally_tag) VALUES ('2024-03-30 05:00Z', 1, {tag})");
        if self.transaction.is_none() {
            return self.run(&statement, Expect::Refusal("22023"));
        }
        self.run("SAVEPOINT refused", Expect::Success)?;
        self.run(&statement, Expect::Refusal("22023"))?;
        self.run("ROLLBACK TO refused; RELEASE refused", Expect::Success)?;
        if let Some(transaction) = &mut self.transaction {
            transaction.failed = false;
        }
        Ok(())
    }

    fn run(&mut self, statement: &str, expect: Expect) -> Result<(), Failure> {
        self.world.note(format!("{}: {statement}", self.name));
        let answer = self.client.batch_execute(statement);
        self.judge(statement, answer, &expect)
    }

    fn judge(&mut self, statement: &str, answer: Result<(), Error>, expect: &Expect) -> Result<(), Failure> {
        let error = match (answer, expect) {
            (Ok(()), Expect::Refusal(_)) => return Err(format!("{}: not refused: {statement}", self.name)),
            (Ok(()), _) => return Ok(()),
            (Err(error), _) => error,
        };
        self.world.note(format!("{}: -> {error:?}", self.name));
        if let Some(transaction) = &mut self.transaction {
            transaction.failed = true;
        }
        let state = oracle::state(&error).code();
        let is_serializable = self.transaction.as_ref().is_some_and(|transaction| !transaction.read_committed);
        let is_expected = match expect {
            Expect::Refusal(expected) => state == *expected,
            Expect::Change => ["55P03", "40P01", "40001"].contains(&state),
            Expect::SuccessOrBusy => ["55P03", "40P01", "25001"].contains(&state),
            Expect::Success => false,
        };
        // PostgreSQL may break off any statement of a SERIALIZABLE transaction.
        if is_expected || (is_serializable && state == "40001") {
            return Ok(());
        }
        Err(format!("{}: {statement}: {error:?}", self.name))
    }

    /// Every rollup that this session can see equals its query, in the snapshot of this session. At the same time as others, a
    /// session looks at a few: the more often.
    pub fn check(&mut self, rng: &mut StdRng) -> Result<(), Failure> {
        let mut rollups = self.world.rollups.lock().unwrap().clone();
        if let Some(transaction) = &self.transaction {
            if transaction.failed {
                return Ok(());
            }
            rollups.extend(transaction.created.iter().cloned());
        }
        if self.world.parallel {
            rollups.retain(|rollup| rollup.permanent);
            rollups = rollups.sample(rng, 3).cloned().collect();
        }
        for rollup in &rollups {
            match self.differences(rollup) {
                Ok(rows) if rows.is_empty() => {}
                Ok(rows) => {
                    return Err(format!(
                        "{}: {} differs from {}:\n{}",
                        self.name,
                        rollup.name,
                        rollup.query,
                        rows.join("\n")
                    ));
                }
                Err(error) => return self.judge(&format!("check of {}", rollup.name), Err(error), &Expect::Success),
            }
        }
        Ok(())
    }

    /// Through a prepared statement: plans that are kept have to stay right as well.
    fn differences(&mut self, rollup: &Rollup) -> Result<Vec<String>, Error> {
        let check = match self.checks.get(&rollup.name) {
            Some(check) => check.clone(),
            None => {
                let check = self.client.prepare(&oracle::difference(&rollup.name, &rollup.query))?;
                self.checks.insert(rollup.name.clone(), check.clone());
                check
            }
        };
        let mut rows = self.client.query(&check, &[])?;
        if !rows.is_empty() {
            // An open transaction of PostgreSQL may go on with a plan that does not know a partition attached meanwhile, and miss
            // its rows in the plain query. It notices as soon as it opens a table that it has no lock on.
            self.client.batch_execute("SELECT pg_relation_size('pg_description')")?;
            rows = self.client.query(&check, &[])?;
        }
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    pub fn is_open(&self) -> bool {
        self.transaction.is_some()
    }
}
