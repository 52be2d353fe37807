//! What a conversion would do, for somebody who wants to read it first, or to do it by hand.

use super::table::Table;
use super::{examine, script, table};
use crate::catalog::conversions::Row;
use crate::catalog::{self, sources};
use crate::error::Result;
use crate::partition::facts;
use crate::pg::{Oid, pin_settings, process};
use tally_core::ident::quote;
use tally_core::partition::conversion::CHECK;
use tally_core::partition::sql;

/// A line of the plan.
pub(super) struct Planned {
    pub action: String,
    pub object: String,
    pub sql: String,
    pub lock_mode: Option<&'static str>,
    pub locked: Vec<String>,
    pub rows: i64,
    pub bytes: i64,
    pub is_top_level: bool,
    pub note: Option<String>,
}

/// What a conversion with these arguments would do. Executed in order, each at top level, the statements do the same. If something is
/// in the way, the lines say what, and there are no others.
pub(super) fn plan(oid: Oid, mut row: Row) -> Result<Vec<Planned>> {
    let _settings = pin_settings();
    table::require_owned(&facts::read(oid)?)?;
    let (table, refusals) = examine(oid, &mut row)?;
    let (Some(table), true) = (table, refusals.is_empty()) else {
        let name = catalog::name_of(oid)?.to_string();
        return Ok(refusals
            .into_iter()
            .map(|refusal| Planned {
                action: "refuse".into(),
                object: name.clone(),
                sql: String::new(),
                lock_mode: None,
                locked: vec![],
                rows: 0,
                bytes: 0,
                is_top_level: false,
                note: Some(refusal.in_one_line()),
            })
            .collect());
    };
    lines(&table, &row)
}

fn lines(table: &Table, row: &Row) -> Result<Vec<Planned>> {
    let name = table.facts.set.table.clone();
    let swapped: Vec<String> = table
        .locked_by_swap()?
        .into_iter()
        .map(|oid| catalog::name_of(oid).map(|name| name.to_string()))
        .collect::<Result<_>>()?;
    let mut planned = vec![];
    let mut add = |action: &str, sql: String, lock: Option<(&'static str, Vec<String>)>, note: Option<&str>| {
        let reads = matches!(action, "validate" | "index");
        planned.push(Planned {
            action: action.into(),
            object: name.clone(),
            sql: format!("{sql};"),
            lock_mode: lock.as_ref().map(|(mode, _)| *mode),
            locked: lock.map(|(_, tables)| tables).unwrap_or_default(),
            rows: if reads { table.rows } else { 0 },
            bytes: if reads { table.bytes } else { 0 },
            is_top_level: action == "index",
            note: note.map(str::to_owned),
        });
    };
    let own = |mode| Some((mode, vec![name.clone()]));
    add(
        "check",
        table.add_check(row.boundary),
        own("ACCESS EXCLUSIVE"),
        Some("no scan; from here on rows at or after the boundary are refused"),
    );
    add(
        "validate",
        format!("ALTER TABLE {} VALIDATE CONSTRAINT {CHECK}", table.facts.name),
        own("SHARE UPDATE EXCLUSIVE"),
        Some("one scan, and nobody waits for it"),
    );
    for key in &table.narrow {
        add("index", key.build.clone(), own("SHARE UPDATE EXCLUSIVE"), Some("outside of a transaction block"));
    }
    add("swap", "BEGIN".into(), None, Some("if anything in here waits for too long: ROLLBACK, and again from here"));
    if process::current_role() != table.facts.owner {
        add("swap", format!("SET LOCAL ROLE {}", quote(&table.facts.owner_name)), None, None);
    }
    add("swap", "SET LOCAL lock_timeout = '50ms'".into(), None, None);
    add("swap", "SET LOCAL search_path = pg_catalog, pg_temp".into(), None, None);
    let views: Vec<String> = table::views(table.facts.oid)?.into_iter().map(|(_, view)| view).collect();
    let locked: Vec<String> = [table.facts.name.to_string()].into_iter().chain(views).collect();
    add(
        "lock",
        format!("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE NOWAIT", locked.join(", ")),
        Some(("ACCESS EXCLUSIVE", swapped)),
        Some(
            "held until the COMMIT; tables that foreign keys refer to are locked by the lines that make and attach these",
        ),
    );
    let partition = script::partition_name(&table.facts, row.boundary);
    for line in script::swap(table, &partition, row.boundary, sources::is_source(table.facts.oid)?)? {
        add(line.action, line.sql, None, None);
    }
    add("swap", "COMMIT".into(), None, None);
    let register = sql::register(&table.facts.name.to_string(), &row.policy.request, &row.policy.time_zone, false);
    add("register", register, own("SHARE UPDATE EXCLUSIVE"), None);
    Ok(planned)
}
