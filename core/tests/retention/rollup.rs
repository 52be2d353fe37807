//! Rollups: what their views answer, what a refresh does, and what becomes of them when partitions come and go.
//!
//! ```text
//!   view = stored groups                     but for those that have to be made anew
//!        + rows and changes that are new     to the state that the snapshot sees, by their tags
//!        + groups made anew                  from rows, but for those of partitions that are leaving, and from retained groups
//! ```
//!
//! It follows `core/src/rollup/sql`, `src/refresh.rs`, `src/changes.rs` and `src/rollup.rs`, statement by statement.

use tally_core::snapshot::{BEFORE_TRACKING, Counted};

use crate::postgres::{Mode, Outcome, Snapshot, Stop, Target, Who, tag};
use crate::tables::{
    Change, Departure, GROUPS, Group, Groups, Link, Number, Rollup, Row, Source, Table, Tables, Unknown, Value,
};
use crate::world::{Fault, OWNER, World};

/// What a snapshot sees of the source and its rollups.
pub struct Sight<'a> {
    source: &'a Source,
    rows: Vec<&'a Row>,
    changes: Vec<&'a Change>,
    /// Departures that are over, and who has ended them.
    released: Vec<(Number, i64)>,
    stored: Vec<&'a Group>,
    retained: Vec<&'a Group>,
}

/// What comes to the stored groups of a rollup.
pub struct Beside {
    /// Groups that have to be made anew.
    pub dirty: [bool; GROUPS],
    pub anew: Groups,
    /// What is added to the others.
    pub delta: Groups,
}

impl<'a> Sight<'a> {
    /// `now` is for what PostgreSQL looks up as of now.
    pub fn new(tables: &'a Tables, now: &'a Snapshot, snapshot: &'a Snapshot) -> Self {
        let partitions: Vec<Table> = tables.partitions_of(now, snapshot).map(|partition| partition.table).collect();
        let is_in = |row: &&Row| partitions.contains(&row.table);
        let released = |(_, departure): (usize, &Departure)| Some((departure.number, departure.released_by?));
        Self {
            source: tables.source(snapshot).1,
            rows: tables.rows.seen(snapshot).map(|(_, row)| row).filter(is_in).collect(),
            changes: tables.log.seen(snapshot).map(|(_, change)| change).collect(),
            released: tables.departures.seen(snapshot).filter_map(released).collect(),
            stored: tables.stored.seen(snapshot).map(|(_, group)| group).collect(),
            retained: tables.retained.seen(snapshot).map(|(_, group)| group).collect(),
        }
    }

    /// What is new to the state that the snapshot sees, and counted by `until` if that is given.
    pub fn beside(&self, rollup: &Rollup, until: Option<&Counted>, fault: Fault) -> Beside {
        let state = &self.source.counted;
        let is_counted = |tag| until.is_none_or(|until| until.counts(tag));
        let is_new = |tag| !state.counts(tag) && is_counted(tag);
        let mut beside = Beside { dirty: [false; GROUPS], anew: Groups::default(), delta: Groups::default() };
        // A change counts if its writer is new and its row was counted: an uncounted row is read as it is now.
        for change in self.changes.iter().filter(|change| is_new(change.writer) && state.counts(change.tag)) {
            let group = rollup.group(&change.columns);
            match change.sign {
                1 => beside.delta[group].add_row(&change.columns),
                -1 if rollup.subtracts => beside.delta[group].take_row(&change.columns),
                _ => beside.dirty[group] = true,
            }
        }
        for retained in self.retained.iter().filter(|retained| retained.rollup == rollup.id) {
            let released = self.released.iter().find(|(number, _)| *number == retained.departure);
            if released.is_some_and(|(_, by)| is_new(*by)) {
                beside.dirty[retained.group] = true;
            }
        }
        for row in self.rows.iter().filter(|row| is_counted(row.tag)) {
            let group = rollup.group(&row.columns);
            if beside.dirty[group] && self.is_staying(row, fault) {
                beside.anew[group].add_row(&row.columns);
            }
            if is_new(row.tag) {
                beside.delta[group].add_row(&row.columns);
            }
        }
        for retained in self.retained.iter().filter(|retained| retained.rollup == rollup.id) {
            if beside.dirty[retained.group] && self.is_retained(retained) {
                beside.anew[retained.group].add(retained.value);
            }
        }
        beside
    }

    /// Rows of a partition that is about to leave are in the retained groups already.
    fn is_staying(&self, row: &Row, fault: Fault) -> bool {
        fault == Fault::Staying || !self.source.leaving.contains(&row.table)
    }

    fn is_retained(&self, group: &Group) -> bool {
        !self.released.iter().any(|(number, _)| *number == group.departure)
    }

    fn stored(&self, rollup: &Rollup) -> Groups {
        let mut groups = Groups::default();
        for stored in self.stored.iter().filter(|stored| stored.rollup == rollup.id) {
            groups[stored.group].add(stored.value);
        }
        groups
    }

    /// The public view.
    pub fn view(&self, rollup: &Rollup, fault: Fault) -> Groups {
        let mut groups = self.stored(rollup);
        let beside = self.beside(rollup, None, fault);
        for (group, value) in groups.iter_mut().enumerate() {
            match beside.dirty[group] {
                true => *value = beside.anew[group],
                false => value.add(beside.delta[group]),
            }
        }
        groups
    }

    /// All groups from what `counted` counts and what is retained.
    pub fn made_of(&self, rollup: &Rollup, counted: &Counted, fault: Fault) -> Groups {
        let mut groups = Groups::default();
        for row in self.rows.iter().filter(|row| counted.counts(row.tag) && self.is_staying(row, fault)) {
            groups[rollup.group(&row.columns)].add_row(&row.columns);
        }
        for retained in self.retained.iter().filter(|retained| retained.rollup == rollup.id) {
            if self.is_retained(retained) {
                groups[retained.group].add(retained.value);
            }
        }
        groups
    }

    /// Is the stored group of this day another one than its rows make?
    pub fn has_difference(&self, rollup: &Rollup, day: u8, counted: &Counted, fault: Fault) -> bool {
        let day = usize::from(day);
        self.stored(rollup)[day] != self.made_of(rollup, counted, fault)[day]
    }
}

impl World {
    fn counted_by(&self, now: &Snapshot) -> Outcome<Counted> {
        let in_progress = if self.fault == Fault::InProgress { &[][..] } else { &now.in_progress };
        Counted::from_snapshot(1, now.xmax, in_progress, now.own).map_err(|error| Stop::Wrong(error.to_string()))
    }

    /// Merges into every rollup what is new and counted by the snapshot, and stores the new state, which it answers. The caller holds the
    /// lock of refreshes.
    pub fn advance(&mut self, who: Who, now: &mut Snapshot) -> Outcome<Counted> {
        let counted = self.counted_by(now)?;
        let state = self.tables.source(now).1.counted.clone();
        counted.follows(&state).map_err(|error| Stop::Wrong(error.to_string()))?;
        let rollups = self.rollups(now);
        let catalogs = self.server.latest(who);
        let sight = Sight::new(&self.tables, &catalogs, now);
        let is_new = |tag| !state.counts(tag) && counted.counts(tag);
        let has_release = sight.released.iter().any(|(_, by)| counted.counts(*by));
        let is_change = |change: &&Change| is_new(change.writer) && state.counts(change.tag);
        if !has_release && !sight.rows.iter().any(|row| !state.counts(row.tag)) && !sight.changes.iter().any(is_change)
        {
            return Ok(state);
        }
        let deltas: Vec<(Rollup, Beside)> =
            rollups.iter().map(|rollup| (*rollup, sight.beside(rollup, Some(&counted), self.fault))).collect();
        let over: Vec<Number> =
            sight.released.iter().filter(|(_, by)| counted.counts(*by)).map(|(number, _)| *number).collect();
        let xid = self.server.xid(who);
        now.own = Some(xid);
        for (rollup, Beside { dirty, anew, delta }) in &deltas {
            for group in 0..GROUPS {
                match dirty[group] {
                    true => self.set_group(rollup, group, |_| anew[group], now)?,
                    false if delta[group] == Value::default() => {}
                    false => self.set_group(
                        rollup,
                        group,
                        |mut value| {
                            value.add(delta[group]);
                            value
                        },
                        now,
                    )?,
                }
            }
        }
        let tables = &mut self.tables;
        let followed = tables.log.places(now, |change| counted.counts(change.writer));
        followed.into_iter().try_for_each(|at| tables.log.delete(&self.server, at, xid))?;
        let released = tables.retained.places(now, |group| over.contains(&group.departure));
        released.into_iter().try_for_each(|at| tables.retained.delete(&self.server, at, xid))?;
        let ended = tables.departures.places(now, |departure| over.contains(&departure.number));
        ended.into_iter().try_for_each(|at| tables.departures.delete(&self.server, at, xid))?;
        self.update_source(who, |source| source.counted = counted.clone())?;
        Ok(counted)
    }

    fn set_group(
        &mut self,
        rollup: &Rollup,
        group: usize,
        value: impl FnOnce(Value) -> Value,
        now: &Snapshot,
    ) -> Outcome<()> {
        let xid = now.own.unwrap_or_default();
        let stored = &mut self.tables.stored;
        let found = stored.find(now, |stored| stored.rollup == rollup.id && stored.group == group);
        let new = value(found.map(|(_, stored)| stored.value).unwrap_or_default());
        if let Some((at, _)) = found {
            stored.delete(&self.server, at, xid)?;
        }
        if new != Value::default() {
            stored.insert(xid, Group { rollup: rollup.id, group, value: new, departure: 0 });
        }
        Ok(())
    }

    pub fn update_source(&mut self, who: Who, change: impl FnOnce(&mut Source)) -> Outcome<()> {
        let xid = self.server.xid(who);
        let now = self.server.latest(who);
        let (at, source) = self.tables.source(&now);
        let mut source = source.clone();
        change(&mut source);
        self.tables.sources.update(&self.server, at, xid, source)
    }

    /// A tick in a transaction that has been begun and has not written.
    pub fn tick(&mut self, who: Who) -> Outcome<(Snapshot, Counted)> {
        self.server.lock(who, Target::Refresh, Mode::AccessExclusive)?;
        self.lock_set(who, Mode::AccessShare)?;
        let mut now = self.server.latest(who);
        let counted = self.advance(who, &mut now)?;
        Ok((now, counted))
    }

    /// Keeps the groups of a partition for these rollups.
    pub fn retain(&mut self, who: Who, table: Table, rollups: &[Rollup], departure: Number) {
        let xid = self.server.xid(who);
        let now = self.server.latest(who);
        for rollup in rollups {
            let mut groups = Groups::default();
            for (_, row) in self.tables.rows.seen(&now).filter(|(_, row)| row.table == table) {
                groups[rollup.group(&row.columns)].add_row(&row.columns);
            }
            for (group, value) in groups.into_iter().enumerate().filter(|(_, value)| *value != Value::default()) {
                self.tables.retained.insert(xid, Group { rollup: rollup.id, group, value, departure });
            }
        }
    }

    pub fn insert_departure(&mut self, who: Who, table: Table) -> Number {
        let (xid, number) = (self.server.xid(who), self.next_id());
        self.tables.departures.insert(xid, Departure { number, table, released_by: None });
        number
    }

    pub fn rollups(&self, now: &Snapshot) -> Vec<Rollup> {
        self.tables.rollups.all(now, |_| true).into_iter().map(|(_, rollup)| rollup).collect()
    }

    /// Before a partition is detached or dropped by hand, under locks against everybody: its rows stay counted.
    pub fn follow_departure(&mut self, who: Who, table: Table) -> Outcome<()> {
        let now = self.server.latest(who);
        let source = self.tables.source(&now).1.clone();
        if source.leaving.contains(&table) {
            // Retention has retained its rows already.
            return self.forget_leaving(who, table);
        }
        let departure = self.insert_departure(who, table);
        self.retain(who, table, &self.rollups(&now), departure);
        // The stored groups lack these rows, and the next refresh will not find them any more.
        self.log_rows(who, table, 0, |row| (!source.counted.counts(row.tag)).then_some(BEFORE_TRACKING));
        Ok(())
    }

    /// A partition has come that the source does not know, with rows that no trigger has seen.
    pub fn follow_attach(&mut self, who: Who, table: Table) -> Outcome<()> {
        let (xid, now) = (self.server.xid(who), self.server.latest(who));
        let departures = &mut self.tables.departures;
        for (at, departure) in departures.all(&now, |left| left.table == table && left.released_by.is_none()) {
            departures.update(&self.server, at, xid, Departure { released_by: Some(tag(xid)), ..departure })?;
        }
        if self.tables.source(&now).1.leaving.contains(&table) {
            self.forget_leaving(who, table)?;
        }
        self.log_rows(who, table, 1, |row| Some(row.tag));
        Ok(())
    }

    pub fn forget_leaving(&mut self, who: Who, table: Table) -> Outcome<()> {
        self.update_source(who, |source| source.leaving.retain(|leaving| *leaving != table))
    }

    /// Logs rows of a table, each under this tag.
    pub fn log_rows(&mut self, who: Who, table: Table, sign: i8, tag_of: impl Fn(&Row) -> Option<i64>) {
        let (xid, now) = (self.server.xid(who), self.server.latest(who));
        for (_, row) in self.tables.rows.all(&now, |row| row.table == table) {
            if let Some(row_tag) = tag_of(&row) {
                self.tables.log.insert(xid, Change { writer: tag(xid), tag: row_tag, sign, columns: row.columns });
            }
        }
    }

    /// The first half of the creation of a rollup: its transaction gets an id before it takes its snapshot.
    pub fn begin_rollup(&mut self, rollup: Rollup) -> Outcome<()> {
        self.server.lock(OWNER, Target::Refresh, Mode::AccessExclusive)?;
        self.server.xid(OWNER);
        self.making = Some(rollup);
        Ok(())
    }

    /// The second half.
    pub fn build_rollup(&mut self, who: Who, rollup: Rollup) -> Outcome<()> {
        self.lock_set(who, Mode::AccessShare)?;
        let xid = self.server.xid(who);
        let mut now = self.server.latest(who);
        let counted = self.advance(who, &mut now)?;
        // The snapshot sees transactions that began after this one and have ended; they are not counted, and what is made of the rows
        // has their changes all the same.
        let log = &mut self.tables.log;
        for (at, change) in log.all(&now, |change| change.sign != 0 && !counted.counts(change.writer)) {
            log.update(&self.server, at, xid, Change { sign: 0, ..change })?;
        }
        for (table, departure) in self.leaving_seen(who)? {
            self.retain(who, table, &[rollup], departure);
            let latest = self.server.latest(who);
            let records = &mut self.tables.records;
            if let Some((at, mut record)) = records.find(&latest, |record| record.departure == Some(departure)) {
                record.rollups.push(rollup.id);
                records.update(&self.server, at, xid, record)?;
            }
        }
        let latest = self.server.latest(who);
        let sight = Sight::new(&self.tables, &latest, &now);
        let groups = sight.made_of(&rollup, &counted, self.fault);
        for (group, value) in groups.into_iter().enumerate().filter(|(_, value)| *value != Value::default()) {
            self.tables.stored.insert(xid, Group { rollup: rollup.id, group, value, departure: 0 });
        }
        self.tables.rollups.insert(xid, rollup);
        self.note_unknown(who, rollup);
        Ok(())
    }

    /// The partitions that are about to leave and whose rows can be seen, which stays so until the end of the transaction: a DETACH
    /// CONCURRENTLY that has begun and not committed for the first time is waited for.
    fn leaving_seen(&mut self, who: Who) -> Outcome<Vec<(Table, Number)>> {
        if self.leaving(who).is_empty() || self.fault == Fault::NewRollup {
            return Ok(vec![]);
        }
        self.server.lock(who, Target::Set, Mode::ShareUpdateExclusive)?;
        Ok(self.leaving(who))
    }

    fn leaving(&self, who: Who) -> Vec<(Table, Number)> {
        let now = self.server.latest(who);
        let leaving = &self.tables.source(&now).1.leaving;
        let is_there = |table| self.tables.partition(table, &now).is_some_and(|(_, p)| p.link == Link::Attached);
        let is_it = |d: &Departure| d.released_by.is_none() && leaving.contains(&d.table) && is_there(d.table);
        self.tables.departures.all(&now, is_it).into_iter().map(|(_, d)| (d.table, d.number)).collect()
    }

    /// The new rollup has not seen what is in no partition just now.
    fn note_unknown(&mut self, who: Who, rollup: Rollup) {
        let (xid, now) = (self.server.xid(who), self.server.latest(who));
        let mut tables: Vec<Table> = self.tables.truth.seen(&now).map(|(_, row)| row.table).collect();
        tables.sort_unstable();
        tables.dedup();
        for table in tables {
            if self.tables.partition(table, &now).is_none_or(|(_, partition)| partition.link != Link::Attached) {
                self.tables.unknown.insert(xid, Unknown { rollup: rollup.id, table });
            }
        }
    }

    pub fn drop_rollup(&mut self, who: Who, rollup: Rollup) -> Outcome<()> {
        self.server.lock(who, Target::Refresh, Mode::AccessExclusive)?;
        let xid = self.server.xid(who);
        let (now, tables) = (self.server.latest(who), &mut self.tables);
        for at in tables.rollups.places(&now, |found| found.id == rollup.id) {
            tables.rollups.delete(&self.server, at, xid)?;
        }
        for groups in [&mut tables.stored, &mut tables.retained] {
            for at in groups.places(&now, |group| group.rollup == rollup.id) {
                groups.delete(&self.server, at, xid)?;
            }
        }
        Ok(())
    }
}
