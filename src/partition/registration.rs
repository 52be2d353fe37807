//! How a table becomes a set: the policy that its owner and pg_partman ask for, and the plan of it for somebody who wants to read it
//! first, or to do it by hand.

use super::functions::Step;
use super::pg_partman::{self, Found};
use super::{Plan, default, facts, first_partitions, new_name, owned, shape};
use crate::catalog::partitions::{self as policies, Row};
use crate::error::{Error, Result};
use crate::pg::{Oid, pin_settings, process};
use crate::{settings, version};
use facts::Facts;
use tally_core::bucket::Timestamp;
use tally_core::ident::literal;
use tally_core::partition::check::{self, Arguments, Set};
use tally_core::partition::default as rows_of_default;
use tally_core::partition::pg_partman::{Config, Taken};
use tally_core::partition::{Error as Refusal, Key, Range, gaps, sql};

/// Gives the set its policy and makes its first partitions; how many.
pub(super) fn register(parent: Oid, arguments: &Arguments, time_zone: String) -> Result<i64> {
    version::require_writable()?;
    let facts = owned(parent)?;
    let found = pg_partman_of(&facts)?;
    let row = policy(&facts, &found, arguments, time_zone)?;
    let request = row.request;
    let made = super::register(parent, row)?;
    pg_partman::tell(&facts, &found, &request);
    Ok(made)
}

/// What pg_partman knows about the set. Of sets that are not partitioned by time it means other things.
fn pg_partman_of(facts: &Facts) -> Result<Found> {
    if facts::key(facts).is_none() {
        return Ok(Found::Nothing);
    }
    let _settings = pin_settings();
    pg_partman::read(facts)
}

fn policy(facts: &Facts, found: &Found, arguments: &Arguments, time_zone: String) -> Result<Row> {
    let request = match (found.config(), arguments.width) {
        (Some(config), _) => config.complete(arguments, &pg_partman::parse)?,
        (None, Some(width)) => arguments.with_width(width),
        (None, None) => {
            check::set(&facts.set)?;
            return Err(Error::new("22004", "partition_width must not be null").hint(
                "Say how long a partition lasts, such as '1 day'; only sets that pg_partman knows bring a width along.",
            ));
        }
    };
    Ok(Row { request, time_zone })
}

/// The lines of the plan, numbered as they come.
struct Lines {
    steps: Vec<Step>,
}

/// What a line says besides its number.
#[derive(Default)]
struct Line<'a> {
    action: &'a str,
    object: &'a str,
    sql: String,
    lock_mode: Option<&'a str>,
    locked: Vec<String>,
    rows: i64,
    bytes: i64,
    note: Option<String>,
}

impl Lines {
    fn add(&mut self, line: Line<'_>) {
        self.steps.push((
            self.steps.len() as i64 + 1,
            line.action.to_owned(),
            line.object.to_owned(),
            line.sql,
            line.lock_mode.map(str::to_owned),
            line.locked,
            line.rows,
            line.bytes,
            false,
            line.note,
        ));
    }

    /// A line that is to be read, not run.
    fn tell(&mut self, action: &str, object: &str, rows: u64, note: String) {
        let rows = i64::try_from(rows).unwrap_or(i64::MAX);
        self.add(Line { action, object, rows, note: Some(note), ..Line::default() });
    }

    fn refuse(&mut self, object: &str, refusal: impl Into<Error>) {
        self.tell("refuse", object, 0, refusal.into().in_one_line());
    }
}

/// What a registration with these arguments would do. Executed in order, each at top level, the statements do the same. If something is
/// in the way, the lines say what, and there are none to execute.
pub(super) fn plan(parent: Oid, arguments: &Arguments, time_zone: String) -> Result<Vec<Step>> {
    let _settings = pin_settings();
    let facts = owned(parent)?;
    let table = facts.set.table.clone();
    let mut lines = Lines { steps: vec![] };
    // The rules for a set once its DEFAULT partition is gone.
    let alone = Set { default: None, ..facts.set.clone() };
    let found = pg_partman_of(&facts)?;
    let checked = check::set(&alone).map_err(Error::from);
    let planned = policy(&Facts { set: alone, ..facts.clone() }, &found, arguments, time_zone).and_then(|mut row| {
        row.time_zone = facts::time_zone(&row.time_zone)?;
        let plan = Plan::new(facts::key(&facts).unwrap_or(Key::Instant), &row)?;
        Ok((row, plan))
    });
    let is_registered = policies::policy(parent)?.is_some();
    if is_registered {
        lines.refuse(&table, Refusal::AlreadyRegistered { table: table.clone() });
    }
    if let Err(refusal) = checked {
        lines.refuse(&table, refusal);
    }
    let (row, plan) = match planned {
        Ok(planned) => planned,
        Err(refusal) => {
            // What is wrong with the table has been said already.
            if lines.steps.is_empty() {
                lines.refuse(&table, refusal);
            }
            return Ok(lines.steps);
        }
    };
    let register = sql::register(&table, &row.request, &row.time_zone, found.config().is_some());
    if let Some(partition) = facts.set.default.clone() {
        let hand_over =
            found.config().filter(|config| config.is_automatic()).map(Config::switch_off).unwrap_or_default();
        let register = (!is_registered).then(|| format!("{hand_over} {register}"));
        count_default(&mut lines, &facts, &plan, &partition, &row.time_zone, register.as_deref())?;
    }
    if !lines.steps.is_empty() {
        return Ok(lines.steps);
    }
    let missing = match first_partitions(&facts, &plan) {
        Ok((missing, _)) => missing,
        Err(refusal) => {
            lines.refuse(&table, refusal);
            return Ok(lines.steps);
        }
    };
    differences(&mut lines, &facts, &plan, &found, &row);
    let connected: Vec<String> = facts::connected_tables(parent)?.into_iter().map(|(_, table)| table).collect();
    if let Some(default) = &facts.set.default {
        let mut locked = vec![table.clone(), default.clone()];
        locked.extend(connected);
        let mut note = "at a quiet moment: it waits for everybody who uses the table, and everybody else waits behind it; the table itself \
                        stays"
            .to_owned();
        if locked.len() > 2 {
            note.push_str("; tables that foreign keys connect are locked too, against writers at least");
        }
        lines.add(Line {
            action: "detach",
            object: default,
            sql: format!("{};", rows_of_default::detach(&table, default)),
            lock_mode: Some("ACCESS EXCLUSIVE"),
            locked,
            note: Some(note),
            ..Line::default()
        });
    }
    for step in partitions(&facts, &plan, missing, lines.steps.len())? {
        lines.steps.push(step);
    }
    lines.add(Line {
        action: "register",
        object: &table,
        sql: format!("{register};"),
        lock_mode: Some("SHARE UPDATE EXCLUSIVE"),
        locked: vec![table.clone()],
        ..Line::default()
    });
    for gap in gaps(&facts::partitions(&facts.bounds, Timestamp::INFINITY)?) {
        lines.tell("gap", &table, 0, gap_note(&plan, &table, gap));
    }
    Ok(lines.steps)
}

/// The statements that make partitions, one line each, after so many others.
pub(super) fn partitions(facts: &Facts, plan: &Plan, missing: Vec<Range>, before: usize) -> Result<Vec<Step>> {
    let mut shape = shape::read(facts)?;
    if process::current_role() != facts.owner {
        shape.owner = Some(facts.owner_name.clone());
    }
    let mut locked = vec![facts.set.table.clone()];
    locked.extend(facts::connected_tables(facts.oid)?.into_iter().map(|(_, table)| table));
    let (mut names, mut steps) = (Vec::new(), Vec::new());
    for range in missing {
        let partition = new_name(facts, plan, range.lower, &names);
        for statement in sql::make(&facts.name, &partition, plan.policy.key, range, &shape) {
            let attaches = statement.action == "attach";
            let locked =
                if attaches { locked.clone() } else { locked[..usize::from(statement.lock_mode.is_some())].to_vec() };
            let note = (attaches && locked.len() > 1)
                .then(|| "takes SHARE ROW EXCLUSIVE on the tables that foreign keys connect".to_owned());
            steps.push((
                (before + steps.len()) as i64 + 1,
                statement.action.to_owned(),
                partition.to_string(),
                format!("{};", statement.sql),
                statement.lock_mode.map(str::to_owned),
                locked,
                0,
                0,
                false,
                note,
            ));
        }
        names.push(partition.name);
    }
    Ok(steps)
}

/// Says what rows the DEFAULT partition has, and how they get out; nothing if it is empty.
fn count_default(
    lines: &mut Lines,
    facts: &Facts,
    plan: &Plan,
    default: &str,
    zone: &str,
    register: Option<&str>,
) -> Result<()> {
    let key = plan.policy.key;
    let Some(Some(column)) = facts.set.key.first() else { return Ok(()) };
    let spread = default::spread(default, key, &column.name, key.grid(plan.policy.width, &plan.zone))?;
    if spread.rows() == 0 {
        return Ok(());
    }
    let believable = plan.now().plus(plan.policy.far_future);
    let misplaced = rows_of_default::misplaced(&spread, key, &column.name, believable);
    // A range ends before its upper bound.
    let needed = spread.ends.map(|(first, last)| Range { lower: first, upper: last.plus(1) });
    let fits = needed.is_none_or(|range| plan.cover_values(facts, range).is_ok());
    let advice = if !misplaced.is_empty() || !fits {
        "Delete or correct the rows that are out of place, then call this again.".into()
    } else if let Some(drain) = default::drain(facts, default, zone, register.map(str::trim_start))? {
        format!(
            "Delete those that nobody needs. The others move at a quiet moment, under ACCESS EXCLUSIVE on the table: {drain}"
        )
    } else {
        "Rollups count them and other tables refer to them: move them by hand, with the rows that refer to them.".into()
    };
    let table = facts.set.table.clone();
    lines.refuse(
        default,
        Refusal::DefaultNotEmpty { table, partition: default.to_owned(), rows: spread.rows(), advice },
    );
    for (rows, note) in misplaced {
        lines.tell("misplaced", default, rows, note);
    }
    if !fits {
        let note = format!("they need more than tally.premake_max = {} partitions", settings::premake_max());
        lines.tell("misplaced", default, spread.finite, note);
    }
    for told in spread.report() {
        let note = match told.range {
            Some(range) => {
                format!("from {} to {}", sql::bound(key, range.lower), sql::bound(key, range.upper))
            }
            None => "in other ranges".into(),
        };
        lines.tell("rows", default, told.rows, note);
    }
    Ok(())
}

/// What pg_partman does and tally will not; and that it has to stop.
fn differences(lines: &mut Lines, facts: &Facts, plan: &Plan, found: &Found, row: &Row) {
    let key = plan.policy.key;
    let table = &facts.set.table;
    let grid = key.grid(plan.policy.width, &plan.zone);
    let end = facts.bounds.last().map(|last| last.range.upper).filter(|end| end.is_finite() && !grid.contains(*end));
    let end = end.map(|end| sql::bound(key, end));
    let config = match found {
        Found::Config(config) => config,
        Found::Unreadable(config) => {
            lines.tell("differs", table, 0, pg_partman::unreadable(config, table));
            return;
        }
        Found::Nothing => return,
    };
    let taken = Taken {
        default: facts.set.default.as_deref(),
        retires: row.request.retention.is_some(),
        ends_at: end.as_deref(),
        zone: &row.time_zone,
    };
    for difference in config.differences(&taken) {
        lines.tell("differs", table, 0, difference);
    }
    if config.is_automatic() {
        lines.add(Line {
            action: "handover",
            object: &config.table,
            sql: config.switch_off(),
            lock_mode: Some("ROW EXCLUSIVE"),
            locked: vec![config.table.clone()],
            rows: 1,
            note: Some("otherwise two make and remove partitions of the table".into()),
            ..Line::default()
        });
    }
}

fn gap_note(plan: &Plan, table: &str, gap: Range) -> String {
    let instant = |at| plan.policy.key.instant(&plan.zone, at);
    format!(
        "rows from {} to {} find no partition; once registered: SELECT tally.ensure_partitions({}, '{}+00', '{}+00');",
        sql::bound(plan.policy.key, gap.lower),
        sql::bound(plan.policy.key, gap.upper),
        literal(table),
        instant(gap.lower),
        instant(gap.upper)
    )
}
