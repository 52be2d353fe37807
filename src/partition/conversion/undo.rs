//! The way back: a converted table becomes a plain one again, while all of its rows are in its first partition.

use super::{script, table};
use crate::catalog::{self, conversions, partitions as policies, retirements, sources};
use crate::error::{Error, Result, spi};
use crate::jobs::{self, Kind};
use crate::partition::{facts, with_fixed_settings};
use crate::pg::{self, Oid, relation};
use crate::refresh;
use pgrx::prelude::*;
use std::time::Duration;
use tally_core::bucket::Timestamp;
use tally_core::partition::Error as SetRefusal;

/// Undoes the swap.
pub(super) fn undo(parent: Oid) -> Result<()> {
    refresh::require_read_committed()?;
    let facts = facts::read(parent)?;
    table::require_owned(&facts)?;
    with_fixed_settings(None, || swap_back(parent))
}

fn swap_back(parent: Oid) -> Result<()> {
    let facts = facts::read(parent)?;
    let Some(first) = facts.bounds.first().filter(|first| first.range.lower == Timestamp::NEG_INFINITY) else {
        return Err(Error::new("55000", format!("table {} was not converted", facts.set.table))
            .detail("It has no partition that begins at MINVALUE."));
    };
    if let Some(under_way) = retirements::list(parent)?.first() {
        return Err(SetRefusal::RetentionUnderWay {
            table: facts.set.table.clone(),
            partition: under_way.name.to_string(),
        }
        .into());
    }
    let others: Vec<Oid> = facts.bounds[1..].iter().map(|bounds| bounds.partition).collect();
    let is_source = sources::is_source(parent)?;
    if is_source {
        pg::lock_refresh(sources::table()?, parent, true);
    }
    let mut tables: Vec<Oid> = others.iter().copied().chain([first.partition]).collect();
    tables.extend(table::views(parent)?.into_iter().map(|(view, _)| view));
    tables.extend(facts::connected_tables(parent)?.into_iter().map(|(table, _)| table));
    tables.sort_by_key(|oid| oid.to_u32());
    tables.insert(0, parent);
    if !pg::try_access_exclusive(&tables, 200, Duration::from_millis(10)) {
        return Err(Error::new("55P03", format!("could not lock {}", facts.set.table))
            .detail("Transactions that use the table did not end. Nothing was changed and nobody had to wait.")
            .hint("Find them in pg_stat_activity and pg_prepared_xacts, and try again when they have ended."));
    }
    relation::begin_writing();
    for other in &others {
        let name = catalog::name_of(*other)?;
        let has_rows = format!("SELECT EXISTS (SELECT FROM {name})");
        if pg::as_user(facts.owner, || pg::Snapshot::latest().is_there(&has_rows))? {
            return Err(Error::new("55000", format!("partition {name} has rows"))
                .hint("Move them to the first partition's range first, or leave the table partitioned."));
        }
    }
    policies::delete(parent)?;
    for kind in [Kind::Premake, Kind::Retention] {
        jobs::unschedule(kind, parent)?;
    }
    // The job may not have registered the set yet.
    conversions::delete(first.partition)?;
    jobs::unschedule(Kind::Conversion, first.partition)?;
    let script = script::swap_back(&facts, first.partition, &others, is_source)?;
    pg::as_user(facts.owner, || script.iter().try_for_each(|line| Spi::run(&line.sql))).map_err(spi)
}
