//! Writes batches of random rows in every way a transaction can end, changes and deletes them again, and keeps account of what
//! the server has acknowledged.

use std::collections::HashMap;
use std::io::Write as _;
use std::sync::atomic::Ordering;

use postgres::{Client, Error};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt, SeedableRng};

use super::{World, is_crash};

/// One transaction; all its rows carry its number.
#[derive(Debug)]
pub struct Batch {
    /// As many are there if it is committed.
    pub rows: i64,
    pub fate: Fate,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fate {
    /// The server has acknowledged the commit.
    Committed,
    /// Rolled back, deleted, or never sent to commit.
    Absent,
    /// The server crashed between our COMMIT and its answer.
    Unknown,
}

/// How far a two-phase commit has got.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    /// PREPARE is sent and not acknowledged.
    Preparing,
    Prepared,
    /// COMMIT PREPARED is sent and not acknowledged.
    Committing,
    RollingBack,
}

pub struct Loader<'a> {
    number: u64,
    world: &'a World,
    rng: StdRng,
    batches: HashMap<i64, Batch>,
    next: i64,
    prepared: Option<(i64, Phase)>,
}

impl<'a> Loader<'a> {
    pub fn new(number: u64, seed: u64, world: &'a World) -> Loader<'a> {
        let rng = StdRng::seed_from_u64(seed.wrapping_add(1 + number));
        let next = i64::try_from(number).expect("few loaders") * 1_000_000_000;
        Loader { number, world, rng, batches: HashMap::new(), next, prepared: None }
    }

    /// Returns with nothing open and nothing prepared.
    pub fn load_until_stopped(mut self) -> HashMap<i64, Batch> {
        let mut client = self.world.connect();
        while !self.world.is_stopped() {
            self.next += 1;
            match self.write(&mut client) {
                Ok(()) => {}
                Err(error) if is_crash(&error) => client = self.recover(),
                Err(error) => panic!("loader {}: {error:?}", self.number),
            }
        }
        if self.end_prepared(&mut client).is_err() {
            self.recover();
        }
        self.batches
    }

    fn write(&mut self, client: &mut Client) -> Result<(), Error> {
        match self.rng.random_range(0..13) {
            0..3 => {
                let rows = self.rows();
                self.expect(&rows);
                insert(client, &rows)?;
                self.acknowledge(self.next);
                Ok(())
            }
            3..6 => {
                let rows = self.rows();
                self.expect(&rows);
                copy(client, &rows)?;
                // In the extended protocol COPY is reported complete before its own transaction commits, and a session that
                // a crash throws out flushes that report. Only the next answer proves the commit.
                client.batch_execute("")?;
                self.acknowledge(self.next);
                Ok(())
            }
            6..8 => self.write_with_savepoint(client),
            8 => {
                client.batch_execute("BEGIN")?;
                copy(client, &self.rows())?;
                client.batch_execute("ROLLBACK")?;
                self.batches.insert(self.next, Batch { rows: 0, fate: Fate::Absent });
                Ok(())
            }
            9..12 => self.change(client),
            _ if self.prepared.is_some() => self.end_prepared(client),
            _ => self.prepare(client),
        }
    }

    fn write_with_savepoint(&mut self, client: &mut Client) -> Result<(), Error> {
        let (mut rows, inner) = (self.rows(), self.rows());
        client.batch_execute("BEGIN")?;
        copy(client, &rows)?;
        client.batch_execute("SAVEPOINT inner_part")?;
        insert(client, &inner)?;
        if self.rng.random_bool(0.5) {
            client.batch_execute("ROLLBACK TO inner_part")?;
        } else {
            client.batch_execute("RELEASE inner_part")?;
            rows.extend(inner);
        }
        self.expect(&rows);
        client.batch_execute("COMMIT")?;
        self.acknowledge(self.next);
        Ok(())
    }

    /// Rows that are there for sure, and counted by now or not.
    fn change(&mut self, client: &mut Client) -> Result<(), Error> {
        let back = self.rng.random_range(1..200);
        let batch = self.next - back;
        if self.batches.get(&batch).is_none_or(|batch| batch.fate != Fate::Committed) {
            return Ok(());
        }
        if self.rng.random_bool(0.3) {
            // Most of them to another partition.
            let update = format!(
                "UPDATE events SET amount = coalesce(amount, 0) + 1, event_time = '2024-03-31 {:02}:59Z' WHERE batch = {batch}",
                self.rng.random_range(0..24)
            );
            return client.batch_execute(&update);
        }
        let fate = |loader: &mut Self, fate| loader.batches.get_mut(&batch).expect("one of those").fate = fate;
        fate(self, Fate::Unknown);
        client.batch_execute(&format!("DELETE FROM events WHERE batch = {batch}"))?;
        fate(self, Fate::Absent);
        Ok(())
    }

    fn prepare(&mut self, client: &mut Client) -> Result<(), Error> {
        let rows = self.rows();
        client.batch_execute("BEGIN")?;
        insert(client, &rows)?;
        self.expect(&rows);
        self.prepared = Some((self.next, Phase::Preparing));
        client.batch_execute(&format!("PREPARE TRANSACTION '{}'", self.name(self.next)))?;
        self.prepared = Some((self.next, Phase::Prepared));
        Ok(())
    }

    /// Commits it or rolls it back, as decided before or by a coin now.
    fn end_prepared(&mut self, client: &mut Client) -> Result<(), Error> {
        let Some((batch, phase)) = self.prepared else { return Ok(()) };
        let commit = match phase {
            Phase::Committing => true,
            Phase::RollingBack => false,
            Phase::Preparing | Phase::Prepared => self.rng.random_bool(0.7),
        };
        self.prepared = Some((batch, if commit { Phase::Committing } else { Phase::RollingBack }));
        let verb = if commit { "COMMIT" } else { "ROLLBACK" };
        client.batch_execute(&format!("{verb} PREPARED '{}'", self.name(batch)))?;
        self.prepared = None;
        if commit {
            self.acknowledge(batch);
        } else {
            self.refute(batch);
        }
        Ok(())
    }

    /// After a crash: a new session that has ended what was left prepared.
    fn recover(&mut self) -> Client {
        loop {
            let mut client = self.world.connect();
            match self.settle(&mut client) {
                Ok(()) => return client,
                Err(error) => assert!(is_crash(&error), "loader {}: {error:?}", self.number),
            }
        }
    }

    fn settle(&mut self, client: &mut Client) -> Result<(), Error> {
        let Some((batch, phase)) = self.prepared else { return Ok(()) };
        let query = "SELECT FROM pg_prepared_xacts WHERE gid = $1";
        if client.query_opt(query, &[&self.name(batch)])?.is_some() {
            return self.end_prepared(client);
        }
        match phase {
            Phase::Preparing | Phase::RollingBack => self.refute(batch),
            Phase::Prepared => panic!("the crash has lost the prepared transaction {}", self.name(batch)),
            Phase::Committing => self.acknowledge(batch),
        }
        self.prepared = None;
        Ok(())
    }

    fn name(&self, batch: i64) -> String {
        format!("loader_{}_{batch}", self.number)
    }

    /// From now on the batch may be committed at any moment.
    fn expect(&mut self, rows: &[Row]) {
        let rows = i64::try_from(rows.len()).expect("few rows");
        self.batches.insert(self.next, Batch { rows, fate: Fate::Unknown });
    }

    fn acknowledge(&mut self, batch: i64) {
        self.batches.get_mut(&batch).expect("its rows are known").fate = Fate::Committed;
        self.world.committed.fetch_add(1, Ordering::Relaxed);
    }

    fn refute(&mut self, batch: i64) {
        self.batches.get_mut(&batch).expect("its rows are known").fate = Fate::Absent;
    }

    fn rows(&mut self) -> Vec<Row> {
        let number = self.rng.random_range(1..=20);
        (0..number).map(|_| self.row()).collect()
    }

    fn row(&mut self) -> Row {
        let rng = &mut self.rng;
        let day = ["2024-03-30", "2024-03-31", "2024-04-01"].choose(rng).expect("not empty");
        let minute = rng.random_range(0..24 * 60);
        let mut pick = |values: &[&str]| (*values.choose(rng).expect("not empty")).to_owned();
        [
            self.next.to_string(),
            format!("{day} {:02}:{:02}Z", minute / 60, minute % 60),
            pick(&[NULL, "1", "2", "3"]),
            pick(&[NULL, "de", "fr", ""]),
            pick(&[NULL, "0", "1.10", "-3.25", "99999.99"]),
            if rng.random_bool(0.1) { NULL.to_owned() } else { rng.random_range(0..5000).to_string() },
        ]
    }
}

/// The columns as COPY writes them.
type Row = [String; 6];

const COLUMNS: &str = "batch, event_time, tenant, country, amount, device";
const NULL: &str = "\\N";

fn insert(client: &mut Client, rows: &[Row]) -> Result<(), Error> {
    let literal = |value: &String| if value == NULL { "NULL".to_owned() } else { format!("'{value}'") };
    let rows: Vec<String> = rows.iter().map(|row| format!("({})", row.each_ref().map(literal).join(", "))).collect();
    client.batch_execute(&format!("INSERT INTO events ({COLUMNS}) VALUES {}", rows.join(", ")))
}

fn copy(client: &mut Client, rows: &[Row]) -> Result<(), Error> {
    let lines: String = rows.iter().map(|row| row.join("\t") + "\n").collect();
    let mut writer = client.copy_in(&format!("COPY events ({COLUMNS}) FROM STDIN"))?;
    // The lines fit into the buffer of the writer: a broken connection shows up when it finishes.
    writer.write_all(lines.as_bytes()).expect("the writer takes the lines");
    writer.finish().map(drop)
}
