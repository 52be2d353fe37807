//! What may happen to a set in a step: its sessions go on, retention takes a step, somebody interferes by hand, something is killed.

use std::thread;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;

use super::{DAYS, Open, Outcome, PASSING, Part, RECENT, ROLLUPS, Running, SESSIONS, World, mirrored_insert};
use crate::oracle;
use crate::retention::model::Fault;

/// What may happen, and how often.
#[derive(Clone, Copy, Debug)]
enum Event {
    Begin,
    Finish,
    Insert,
    InsertDirectly,
    Update,
    Delete,
    Refresh,
    Step,
    StepRolledBack,
    StepKilled,
    KillDetach,
    Undo,
    Resume,
    EndGrace,
    CreateRollup,
    DropRollup,
    Detach,
    Drop,
    Attach,
    Move,
    Fill,
    Truncate,
    TruncateAll,
    Force,
    Crash,
}

const EVENTS: [(u32, Event); 25] = [
    (60, Event::Begin),
    (60, Event::Finish),
    (60, Event::Insert),
    (20, Event::InsertDirectly),
    (40, Event::Update),
    (20, Event::Delete),
    (30, Event::Refresh),
    (120, Event::Step),
    (8, Event::StepRolledBack),
    (6, Event::StepKilled),
    (10, Event::KillDetach),
    (16, Event::Undo),
    (10, Event::Resume),
    (10, Event::EndGrace),
    (8, Event::CreateRollup),
    (6, Event::DropRollup),
    (5, Event::Detach),
    (4, Event::Drop),
    (10, Event::Attach),
    (3, Event::Move),
    (4, Event::Fill),
    (4, Event::Truncate),
    (1, Event::TruncateAll),
    (2, Event::Force),
    (1, Event::Crash),
];

impl World<'_> {
    pub fn step(&mut self, rng: &mut StdRng) -> Outcome<()> {
        self.moment += 1;
        let number = rng.random_range(0..SESSIONS);
        let event = EVENTS
            .choose_weighted(rng, |(weight, event)| match (event, self.fault) {
                // What makes the difference, more often.
                (Event::Force, Fault::Proof) => 30 * weight,
                (Event::Finish, Fault::Wait) => weight / 8,
                (Event::Step, Fault::Wait) => 2 * weight,
                _ => *weight,
            })
            .expect("there are events")
            .1;
        match event {
            Event::Begin => self.begin(number, rng)?,
            Event::Finish => self.finish(number, rng.random_bool(0.7))?,
            Event::Insert => {
                let days: Vec<i64> = if rng.random_bool(0.3) { RECENT.collect() } else { DAYS.collect() };
                let count = rng.random_range(1..4);
                let rows = self.rows(rng, &days, count);
                let refusals: &[&str] = match days[0] < *RECENT.start() {
                    true => &["TL002", "23514"],
                    false if self.has_holes => &["23514"],
                    false => &[],
                };
                self.by_session(number, &mirrored_insert("events", &rows), refusals)?;
            }
            Event::InsertDirectly => self.insert_directly(number, rng)?,
            Event::Update => {
                let set = ["v = v + 1", "k = (k + 1) % 4", "at = at + interval '1 day'"].choose(rng).expect("some");
                let condition = format!("id % 5 = {}", rng.random_range(0..5));
                let update = format!(
                    "WITH w AS (UPDATE events SET {set} WHERE {condition} RETURNING id, at, k, v, tableoid) \
                     UPDATE shadow AS s SET at = w.at, k = w.k, v = w.v, part = w.tableoid FROM w WHERE s.id = w.id"
                );
                self.by_session(number, &update, &["TL002", "23514"])?;
            }
            Event::Delete => {
                let condition = format!("id % 11 = {}", rng.random_range(0..11));
                let delete = format!(
                    "WITH w AS (DELETE FROM events WHERE {condition} RETURNING id) DELETE FROM shadow AS s USING w WHERE s.id = w.id"
                );
                self.by_session(number, &delete, &["TL002"])?;
            }
            Event::Refresh => drop(self.by_owner("CALL tally.refresh('by_day')", &[])?),
            Event::Step => self.take_step()?,
            Event::StepRolledBack => {
                // Also while somebody detaches by hand what it ends.
                self.by_owner(&format!("BEGIN; SELECT tally.run_job({}); ROLLBACK", self.job), &["42P01", "55000"])?;
            }
            Event::StepKilled => self.take_step_and_kill(rng)?,
            Event::KillDetach => self.kill_detach()?,
            Event::Undo => self.undo(rng)?,
            Event::Resume => {
                // Forced rows would be taken for counted ones.
                if self.forced.is_empty() {
                    self.by_owner("SELECT tally.resume_partitions('events')", &[])?;
                }
            }
            Event::EndGrace => {
                self.by_owner(
                    "UPDATE tally.retirements SET drop_after = now() WHERE parent = 'events'::regclass AND drop_after IS NOT NULL",
                    &[],
                )?;
            }
            Event::CreateRollup => self.create_rollup(rng)?,
            Event::DropRollup => self.drop_rollup(rng)?,
            Event::Detach | Event::Drop | Event::Attach | Event::Move | Event::Fill | Event::Truncate => {
                match rng.random_bool(0.6) {
                    true => self.finish_all(rng)?,
                    false => self.finish_sleepers()?,
                }
                self.by_hand(event, rng)?;
            }
            Event::TruncateAll => {
                self.finish_all(rng)?;
                self.by_owner(
                    "DELETE FROM shadow WHERE part IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = 'events'::regclass AND NOT inhdetachpending); \
                     TRUNCATE events",
                    &["TL002"],
                )?;
            }
            Event::Force => self.force()?,
            Event::Crash => self.crash()?,
        }
        self.plant()?;
        self.follow_detach()
    }

    fn begin(&mut self, number: usize, rng: &mut StdRng) -> Outcome<()> {
        if self.sessions[number].open.is_some() {
            return Ok(());
        }
        let (level, is_repeatable) =
            *[("READ COMMITTED", false), ("REPEATABLE READ", true)].choose(rng).expect("there are levels");
        let is_asleep = is_repeatable && (self.fault == Fault::Wait || rng.random_bool(0.5));
        // A snapshot that knows these rows, and that they are not counted yet, if there are any.
        self.by_session(number, &format!("BEGIN ISOLATION LEVEL {level}; SELECT"), &[])?;
        self.sessions[number].open = Some(Open { is_repeatable, is_asleep, since: self.moment });
        Ok(())
    }

    fn finish(&mut self, number: usize, commits: bool) -> Outcome<()> {
        if self.sessions[number].open.is_none() {
            return Ok(());
        }
        self.check(number, usize::MAX, 0)?;
        if self.sessions[number].open.is_some() {
            self.by_session(number, if commits { "COMMIT" } else { "ROLLBACK" }, &[])?;
            self.sessions[number].open = None;
        }
        Ok(())
    }

    /// What DDL takes away is gone in older snapshots too, of the table as of the rollups, unless they hold a lock that it waits for.
    fn finish_sleepers(&mut self) -> Outcome<()> {
        for number in 0..SESSIONS {
            if self.sessions[number].open.is_some_and(|open| open.is_asleep) {
                self.finish(number, true)?;
            }
        }
        Ok(())
    }

    pub(super) fn finish_all(&mut self, rng: &mut StdRng) -> Outcome<()> {
        (0..SESSIONS).try_for_each(|number| self.finish(number, rng.random_bool(0.8)))
    }

    /// Into a table by its own name, wherever it is.
    fn insert_directly(&mut self, number: usize, rng: &mut StdRng) -> Outcome<()> {
        let parts = self.parts()?;
        let Some(part) = parts.choose(rng) else { return Ok(()) };
        let row =
            format!("('{}'::timestamptz + interval '{} minutes', 1, 1)", part.lower, rng.random_range(0..24 * 60));
        let insert = if part.is_attached {
            mirrored_insert(&part.name, &row)
        } else {
            format!("INSERT INTO {} SELECT nextval('ids'), * FROM (VALUES {row}) AS r", part.name)
        };
        let is_fenced = part.is_fenced() && self.fault != Fault::Fence;
        let went = self.by_session(number, &insert, if is_fenced { &["TL002"] } else { &[] })?;
        if went && is_fenced {
            return Err(self.failure(&format!("{} is fenced and took a row", part.name)));
        }
        Ok(())
    }

    /// A step of the job, and in a session of its own the statement that it asks for.
    fn take_step(&mut self) -> Outcome<()> {
        // DETACH of another session waits, and a job would not go on meanwhile either.
        if self.detach.is_some() {
            return Ok(());
        }
        if !self.by_owner(&format!("SELECT tally.run_job({})", self.job), &[])? {
            return Ok(());
        }
        self.detach_if_asked()
    }

    pub(super) fn detach_if_asked(&mut self) -> Outcome<()> {
        let asked = self.parts()?;
        let asked = asked.iter().find(|part| part.state.as_deref() == Some("detaching") && !part.is_pending);
        let Some(part) = asked.filter(|part| part.is_attached) else { return Ok(()) };
        let sql = format!("ALTER TABLE events DETACH PARTITION {} CONCURRENTLY", part.name);
        let mut client = self.connect();
        client.batch_execute("RESET lock_timeout; RESET statement_timeout").map_err(|error| format!("{error:?}"))?;
        self.tell("detacher", &sql, &Ok(()));
        let pid = oracle::own_pid(&mut client);
        self.detach = Some(Running { pid, thread: thread::spawn(move || client.batch_execute(&sql)) });
        self.follow_detach()
    }

    /// Returns when the DETACH has ended or waits for somebody.
    pub(super) fn follow_detach(&mut self) -> Outcome<()> {
        let Some(running) = &self.detach else { return Ok(()) };
        let waits = format!(
            "SELECT coalesce((SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = {}), true)",
            running.pid
        );
        while !running.thread.is_finished() {
            if self.owner.query_one(&waits, &[]).map_err(|error| format!("{error:?}"))?.get(0) {
                return Ok(());
            }
            thread::sleep(Duration::from_micros(500));
        }
        let running = self.detach.take().expect("it has ended");
        let answer = running.thread.join().expect("a statement does not panic");
        self.tell("detacher", "ended", &answer);
        // Killed; a partition that is gone; or undone.
        self.judge(answer, &["57P01", "42P01", "55000", "42704"]).map(drop)
    }

    fn kill_detach(&mut self) -> Outcome<()> {
        let Some(running) = self.detach.take() else { return Ok(()) };
        self.must(&format!("SELECT pg_terminate_backend({}, 10000)", running.pid))?;
        let answer = running.thread.join().expect("a statement does not panic");
        self.tell("detacher", "ended", &answer);
        Ok(())
    }

    fn take_step_and_kill(&mut self, rng: &mut StdRng) -> Outcome<()> {
        if self.detach.is_some() {
            return Ok(());
        }
        let mut client = self.connect();
        let (pid, sql) = (oracle::own_pid(&mut client), format!("SELECT tally.run_job({})", self.job));
        let thread = thread::spawn({
            let sql = sql.clone();
            move || client.batch_execute(&sql)
        });
        thread::sleep(Duration::from_micros(rng.random_range(0..20_000)));
        self.must(&format!("SELECT pg_terminate_backend({pid}, 10000)"))?;
        let answer = thread.join().expect("a statement does not panic");
        self.tell("killed", &sql, &answer);
        // Killed before it was sent, or at the end of it.
        if answer.as_ref().is_err_and(|error| error.code().is_none()) {
            return Ok(());
        }
        self.judge(answer, &["57P01"]).map(drop)
    }

    fn undo(&mut self, rng: &mut StdRng) -> Outcome<()> {
        let mut parts = self.parts()?;
        parts.retain(|part| part.state.is_some() && !self.forced.contains(&part.oid));
        let Some(part) = parts.choose(rng) else { return Ok(()) };
        // A rollup that did not know it does now.
        self.by_owner(
            &format!(
                "BEGIN; SELECT tally.undo_retention('events', '{}'); DELETE FROM unknown WHERE part = {}; COMMIT",
                part.name, part.oid
            ),
            // It is being detached; another table has its range.
            &["55000", "42P17", "42P07"],
        )?;
        Ok(())
    }

    fn create_rollup(&mut self, rng: &mut StdRng) -> Outcome<()> {
        let name = format!("passing_{}", self.moment);
        let query = PASSING.choose(rng).expect("some");
        let create = format!(
            "BEGIN; SELECT tally.create_rollup('{name}', $q${query}$q$); \
             INSERT INTO unknown SELECT DISTINCT '{name}', part FROM shadow WHERE part NOT IN \
               (SELECT inhrelid FROM pg_inherits WHERE inhparent = 'events'::regclass AND NOT inhdetachpending); COMMIT"
        );
        if self.by_owner(&create, &[])? {
            self.add_rollup(&name, query);
        }
        Ok(())
    }

    fn drop_rollup(&mut self, rng: &mut StdRng) -> Outcome<()> {
        let passing: Vec<usize> = (ROLLUPS.len()..self.rollups.len()).collect();
        let Some(&at) = passing.choose(rng) else { return Ok(()) };
        if self.by_owner(&format!("SELECT tally.drop_rollup('{}')", self.rollups[at].name), &[])? {
            self.rollups.remove(at);
        }
        Ok(())
    }

    /// DDL of somebody who knows nothing of retention.
    fn by_hand(&mut self, event: Event, rng: &mut StdRng) -> Outcome<()> {
        let mut parts = self.parts()?;
        // Another statement goes on with the pending one.
        parts.retain(|part| !part.is_pending && !self.forced.contains(&part.oid));
        match event {
            Event::Attach => parts.retain(|part| !part.is_attached),
            Event::Move => parts.retain(|part| part.name.starts_with("tally_trash.")),
            Event::Drop => {}
            _ => parts.retain(|part| part.is_attached),
        }
        let Some(part) = parts.choose(rng).cloned() else { return Ok(()) };
        let Part { oid, name, lower, upper, .. } = &part;
        let bounds = format!("FOR VALUES FROM ('{lower}') TO ('{upper}')");
        self.has_holes = true;
        match event {
            // Its rows stay counted.
            Event::Detach => self.by_owner(&format!("ALTER TABLE events DETACH PARTITION {name}"), &["55000"])?,
            Event::Drop => self.by_owner(&format!("DROP TABLE {name}"), &[])?,
            // What is in it by now counts, and no longer what was in it.
            Event::Attach => self.by_owner(
                &format!(
                    "BEGIN; DELETE FROM shadow WHERE part = {oid}; INSERT INTO shadow SELECT id, at, k, v, {oid} FROM {name}; \
                     DELETE FROM unknown WHERE part = {oid}; ALTER TABLE events ATTACH PARTITION {name} {bounds}; COMMIT"
                ),
                &["42P17", "55000"],
            )?,
            Event::Move => self.by_owner(&format!("ALTER TABLE {name} SET SCHEMA {}", self.schema), &["42P07"])?,
            // Over again, and with a new table.
            Event::Fill => {
                let create = format!("CREATE TABLE again_{} PARTITION OF events {bounds}", self.moment);
                let drop = if part.state.is_none() { format!("DROP TABLE {name}; ") } else { String::new() };
                let done = self.by_owner(&format!("{drop}{create}"), &["42P17", "55000"])?;
                if done {
                    self.note_parts()?;
                }
                done
            }
            _ => self.by_owner(
                &format!("BEGIN; DELETE FROM shadow WHERE part = {oid}; TRUNCATE {name}; COMMIT"),
                &["TL002"],
            )?,
        };
        Ok(())
    }

    /// Past the triggers into the trash.
    fn force(&mut self) -> Outcome<()> {
        let parts = self.parts()?;
        let trash = parts.iter().find(|part| {
            part.state.as_deref() == Some("trash") && part.name.starts_with("tally_trash.") && !part.is_attached
        });
        let Some(Part { oid, name, lower, .. }) = trash else { return Ok(()) };
        let force = format!(
            "BEGIN; ALTER TABLE {name} DISABLE TRIGGER tally_fence; INSERT INTO {name} VALUES (nextval('ids'), '{lower}', 1, 1); \
             ALTER TABLE {name} ENABLE ALWAYS TRIGGER tally_fence; COMMIT"
        );
        if self.by_owner(&force, &[])? {
            self.forced.push(*oid);
        }
        Ok(())
    }

    fn crash(&mut self) -> Outcome<()> {
        self.tell("everybody", "kill -9", &Ok(()));
        self.cluster.crash();
        if let Some(running) = self.detach.take() {
            let answer = running.thread.join().expect("a statement does not panic");
            self.tell("detacher", "ended", &answer);
        }
        self.connect_all();
        Ok(())
    }

    /// Takes away what the fault is about.
    pub(super) fn plant(&mut self) -> Outcome<()> {
        match self.fault {
            Fault::None | Fault::Wait => Ok(()),
            Fault::Fence => self.must(
                "CREATE OR REPLACE FUNCTION tally._refuse_change() RETURNS trigger LANGUAGE plpgsql AS \
                 $$ BEGIN RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END; END $$",
            ),
            Fault::Staying => {
                self.by_owner("UPDATE tally.sources SET leaving = '{}' WHERE leaving <> '{}'", &[]).map(drop)
            }
            Fault::Proof => {
                for Part { oid, name, .. } in self.parts()?.iter().filter(|part| self.forced.contains(&part.oid)) {
                    let update = format!(
                        "UPDATE tally.retirements SET next_tag = {}, counted_rows = (SELECT count(*) FROM {name}) WHERE partition = {oid}",
                        i64::MAX
                    );
                    self.owner.batch_execute(&update).map_err(|error| format!("{error:?}"))?;
                }
                Ok(())
            }
        }
    }
}
