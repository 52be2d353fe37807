//! One tick of a source: merge the delta into its rollups and store the new snapshot, in one transaction.
//!
//! ```text
//!  state in tally.sources: snapshot S0          this tick: snapshot S1
//!
//!     counted by S0  │  new to S0, counted by S1   │  not counted by S1
//!     (stored)       │  = the delta: merged now    │  (pending: open transactions, later ones)
//! ```
//!
//! Nothing here waits for a writer: rows of a transaction that is open in S1 stay new, and the tick after its commit finds
//! them by their tag.

use crate::catalog::rollups::{self, Rollup};
use crate::catalog::sources::State;
use crate::catalog::{self, aggregates, departures, sources};
use crate::error::{Error, Result, spi};
use crate::pg::{self, Oid, Snapshot};
use crate::{seal, tags, version};
use pgrx::prelude::*;
use std::time::Instant;
use tally_core::ident::quote;
use tally_core::rollup::derive;
use tally_core::rollup::sql::{self, Member, Relations};
use tally_core::snapshot::{self, Counted};

/// What a tick did.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Report {
    /// Source rows counted.
    pub rows: i64,
    /// Groups touched, over all rollups of the source.
    pub groups: i64,
}

/// Brings every rollup of the source up to a new snapshot, and goes on in the same transaction with what is left to do at the state that
/// is reached: `and_then` gets it and answers how many rows it has counted. A second caller waits for the running tick, then takes its
/// own snapshot. The transaction must be READ COMMITTED and must not have an id yet: rows that it has written would stay pending
/// behind rows of later transactions.
pub(crate) fn tick_and(source: Oid, and_then: &mut dyn FnMut(&Reached) -> Result<i64>) -> Result<Report> {
    require_fresh_transaction()?;
    pg::lock_refresh(sources::table()?, source, true);
    tick_locked(source, and_then)
}

/// The same, but gives up at once when another session refreshes the source; then the answer is None.
pub(crate) fn tick_unless_busy(
    source: Oid,
    and_then: &mut dyn FnMut(&Reached) -> Result<i64>,
) -> Result<Option<Report>> {
    require_fresh_transaction()?;
    if !pg::lock_refresh(sources::table()?, source, false) {
        return Ok(None);
    }
    tick_locked(source, and_then).map(Some)
}

/// Keeps refreshes away until the end of the transaction, which is about to drop this relation of a rollup: one that runs would
/// wait for the relation with locks that the drop waits for in its turn.
pub(crate) fn lock_out(relation: Oid) -> Result<()> {
    if let Some(source) = rollups::source_of_part(relation)? {
        pg::lock_refresh(sources::table()?, source, true);
    }
    Ok(())
}

/// Where a tick has brought a source.
pub(crate) struct Reached<'a> {
    pub source: Oid,
    pub owner: Oid,
    pub now: &'a Snapshot,
    /// What every stored group has counted.
    pub counted: Counted,
}

/// Refuses what has to see all that is committed where it cannot.
pub(crate) fn require_read_committed() -> Result<()> {
    version::require_writable()?;
    if pg::is_read_committed() { Ok(()) } else { Err(snapshot::Error::NotReadCommitted.into()) }
}

pub(crate) fn require_fresh_transaction() -> Result<()> {
    require_read_committed()?;
    if pg::own_xid().is_some() {
        return Err(snapshot::Error::WroteBeforeRefresh.into());
    }
    Ok(())
}

fn tick_locked(source: Oid, and_then: &mut dyn FnMut(&Reached) -> Result<i64>) -> Result<Report> {
    let started = Instant::now();
    // The lock came before the snapshot: S1 sees the state that the last holder of the lock has stored.
    let now = Snapshot::take();
    let Some(state) = now.read(|| sources::state(source))? else {
        return Ok(Report::default());
    };
    let advanced = advance(source, &state, &now)?;
    let owner = pg::owner_of(source).ok_or_else(|| Error::new("42P01", "the source does not exist"))?;
    let counted = advanced.as_ref().map_or(state.counted, |(state, _)| state.counted.clone());
    let more = and_then(&Reached { source, owner, now: &now, counted })?;
    let mut report = Report { rows: more, groups: 0 };
    if let Some((state, delta)) = advanced {
        sources::advance(source, &state, &delta, started.elapsed())?;
        report.rows += delta.rows;
        report.groups += delta.groups;
    }
    if pg::own_xid().is_some() {
        let tables = block_range_indexes(source)?;
        note_new_pages(tables.iter().filter(|entry| entry.is_stored))?;
        make_first_statistics(&tables)?;
    }
    Ok(report)
}

/// Merges into every rollup of the source what is new to `state` and counted by the snapshot. The caller holds the refresh
/// lock and stores the state that comes back. None: there was nothing new, and nothing has been written.
pub(crate) fn advance(source: Oid, state: &State, now: &Snapshot) -> Result<Option<(State, Report)>> {
    let name = now.read(|| catalog::name_of(source))?;
    let counted = counted_by(now)?;
    counted.follows(&state.counted)?;
    let rollups = now.read(|| rollups::of_source(source))?;
    // The statement that waited for the lock has an older snapshot, which may not know a rollup that was made meanwhile.
    let relations = now.read(|| rollups.iter().map(|rollup| rollup.relations()).collect::<Result<Vec<_>>>())?;
    now.read(|| tags::audit(source, &name, state))?;
    let settled = now.read(|| seal::settled(source, state))?;
    // A transaction with an id of its own may see rows that it does not count, also in partitions that have been sealed since.
    let settled_before = if now.own_xid().is_none() { state.sealed_before } else { state.settled_before };
    let is_settling = settled_before != state.settled_before;
    let State { counted: state, sealed_before, .. } = state;
    let owner = pg::owner_of(source).ok_or_else(|| Error::new("42P01", format!("{name} does not exist")))?;
    for (rollup, relations) in rollups.iter().zip(&relations) {
        require_one_owner(owner, rollup, relations)?;
    }
    let _settings = pg::pin_settings_of_tick();
    let is_there = |statement: &str| pg::as_user(owner, || now.is_there(statement));
    let log = relations.first().map(|relations| &relations.log);
    let has_new_row = is_there(&sql::has_new_row(&name, state, settled.as_ref()))?;
    let has_release = is_there(&sql::has_release(&name, &counted))?;
    let has_change = has_release || log.map_or(Ok(false), |log| is_there(&sql::has_change(log, state, &counted)))?;
    if !has_new_row && !has_change && !is_settling {
        return Ok(None);
    }
    let takes =
        has_release || has_change && log.map_or(Ok(false), |log| is_there(&sql::has_removal(log, state, &counted)))?;
    // Now, because each statement below would read every page that is not noted.
    note_new_pages(block_range_indexes(source)?.iter().filter(|entry| !entry.is_stored))?;
    let incarnation = tags::incarnation()?.number as u16;
    let not_yet_assigned = snapshot::tag(incarnation, pg::next_xid())?;
    if is_there(&sql::has_row_from_the_future(&name, not_yet_assigned, settled.as_ref()))? {
        return Err(snapshot::Error::TagFromTheFuture { source: name.to_string() }.into());
    }
    let mut report = Report::default();
    let has_upheaval = has_release || takes && log.map_or(Ok(false), |log| is_there(&sql::has_upheaval(log)))?;
    let changes = sql::Changes { are_there: has_change, take: takes };
    let changes_of = |member: &Member| {
        let is_anew = if member.definition.subtracts() { has_upheaval } else { takes };
        is_anew.then_some((state, &counted))
    };
    for family in families(&rollups, &relations) {
        recount(&family[0], None, owner, changes_of(&family[0]), now)?;
        let statement = sql::merge_delta(&family, state, &counted, settled.as_ref(), changes);
        if let Some([groups, rows]) = pg::as_user(owner, || now.execute::<2>(&statement))? {
            report.groups += groups;
            report.rows = report.rows.max(rows);
        }
        if takes {
            for member in &family {
                for statement in sql::delete_emptied(member.definition, member.relations, state, &counted) {
                    pg::as_user(owner, || now.execute::<0>(&statement))?;
                }
            }
        }
        // A rollup over a rollup is recounted from groups that are up to date by now.
        for member in &family[1..] {
            let below = member.below.and_then(|below| family.get(below));
            recount(member, below, owner, changes_of(member), now)?;
        }
    }
    // Also changes of rows that were not counted yet: they have been read as they are.
    if let Some(log) = log {
        pg::as_user(owner, || now.execute::<0>(&sql::forget_changes(log, &counted)))?;
    }
    if has_release {
        for relations in &relations {
            pg::as_user(owner, || now.execute::<0>(&sql::forget_released(relations, &counted)))?;
        }
        departures::delete_released(source, &counted.is_counted("d.released_by"))?;
    }
    Ok(Some((State { counted, sealed_before: *sealed_before, settled_before }, report)))
}

/// Makes groups anew whose changes cannot be added up.
fn recount(
    member: &Member,
    below: Option<&Member>,
    owner: Oid,
    changes: Option<(&Counted, &Counted)>,
    now: &Snapshot,
) -> Result<()> {
    let Some((state, counted)) = changes else { return Ok(()) };
    let below = below.map(|below| (below.definition, below.relations));
    let mut statements = sql::delete_changed(member.definition, member.relations, state, counted);
    statements.push(sql::recount(member, state, counted, below));
    for statement in statements {
        pg::as_user(owner, || now.execute::<0>(&statement))?;
    }
    Ok(())
}

/// The rollups that are fed together: one that reads rows, and behind it those whose groups are sums of its groups: beside it or above.
pub(crate) fn families<'a>(rollups: &'a [Rollup], relations: &'a [Relations]) -> Vec<Vec<Member<'a>>> {
    let mut families: Vec<Vec<Member>> = vec![];
    let mut homes: Vec<(Oid, usize, usize)> = vec![];
    let home_of = |homes: &[(Oid, usize, usize)], rollup: Option<Oid>| {
        homes.iter().find(|(known, ..)| Some(*known) == rollup).copied()
    };
    // Nothing is gathered from one that is being built, and nothing is gathered for it.
    let gathers = |rollup: &Rollup| {
        let is_lasting = rollup.definition.level.as_ref().is_some_and(|level| level.is_lasting);
        rollup.below.filter(|_| is_lasting && rollup.unbuilt_before.is_none())
    };
    let (above, beside): (Vec<usize>, Vec<usize>) =
        (0..rollups.len()).partition(|position| rollups[*position].definition.level.is_some());
    let mut whole: Vec<usize> = beside.iter().copied().filter(|at| rollups[*at].unbuilt_before.is_none()).collect();
    if whole.len() == 1 {
        // One alone has no finer one: what it stands for need not be known.
        whole.clear();
    }
    let identities = pg::identities(&whole.iter().map(|at| rollups[*at].rows).collect::<Vec<_>>());
    let definitions = whole.iter().map(|at| &rollups[*at].definition);
    let finer = derive::finer(&definitions.zip(&identities).collect::<Vec<_>>());
    let finer_of = |at: usize| {
        let position = whole.iter().position(|other| *other == at)?;
        finer[position].as_ref().map(|(finer, way)| (whole[*finer], way))
    };
    // Finer ones first.
    let depth = |at: usize| std::iter::successors(Some(at), |at| finer_of(*at).map(|(finer, _)| finer)).count();
    let mut order = beside;
    order.sort_by_key(|at| depth(*at));
    for at in order.into_iter().chain(above) {
        let rollup = &rollups[at];
        let below = home_of(&homes, gathers(rollup));
        let way = finer_of(at).map(|(_, way)| way.clone());
        let finer = home_of(&homes, finer_of(at).map(|(finer, _)| rollups[finer].rollup));
        let home = below.or(finer);
        let family = home.map_or(families.len(), |(_, family, _)| family);
        if home.is_none() {
            families.push(vec![]);
        }
        if rollup.unbuilt_before.is_none() {
            homes.push((rollup.rollup, family, families[family].len()));
        }
        families[family].push(Member {
            definition: &rollup.definition,
            relations: &relations[at],
            below: below.map(|(.., position)| position),
            finer: finer.map(|(.., position)| position).zip(way),
            unbuilt_before: rollup.unbuilt_before.as_deref(),
        });
    }
    families
}

/// A tick reads and writes as the owner of the source. Whoever gives the table to another role gives its rollups as well.
fn require_one_owner(owner: Oid, rollup: &Rollup, relations: &Relations) -> Result<()> {
    let own = &rollup.definition.aggregates;
    let relations_are_his = [rollup.rows, rollup.changes, rollup.stored, rollup.retained, rollup.log]
        .iter()
        .all(|relation| pg::owner_of(*relation) == Some(owner));
    let aggregates = own.iter().map(aggregates::find).collect::<Result<Vec<_>>>()?;
    if let Some((missing, _)) = own.iter().zip(&aggregates).find(|(_, found)| found.is_none()) {
        return Err(Error::new("42883", format!("aggregate {missing} of rollup {} does not exist", relations.public))
            .hint(format!("Rename it back: ALTER AGGREGATE .. RENAME TO {};", quote(&missing.name))));
    }
    if relations_are_his && aggregates.iter().flatten().all(|(found, _)| *found == owner) {
        return Ok(());
    }
    let owner = Spi::get_one_with_args::<String>(
        "SELECT pg_catalog.quote_ident(pg_catalog.pg_get_userbyid($1)::text)",
        &[owner.into()],
    )
    .map_err(spi)?
    .unwrap_or_default();
    let aggregates: String = own.iter().map(|own| format!(" ALTER AGGREGATE {own} OWNER TO {owner};")).collect();
    let Relations { source, public, rows, changes, stored, retained, log } = relations;
    Err(Error::new("42501", format!("rollup {public} and table {source} belong to different roles")).hint(format!(
        "ALTER VIEW {public} OWNER TO {owner}; ALTER VIEW {rows} OWNER TO {owner}; ALTER VIEW {changes} OWNER TO {owner}; \
         ALTER TABLE {stored} OWNER TO {owner}; ALTER TABLE {retained} OWNER TO {owner}; ALTER TABLE {log} OWNER TO {owner};{aggregates}"
    )))
}

/// The state that a transaction stores after it has counted everything that the snapshot counts.
pub(crate) fn counted_by(now: &Snapshot) -> Result<Counted> {
    let incarnation = tags::incarnation()?.number as u16;
    Ok(Counted::from_snapshot(incarnation, now.xmax(), &now.in_progress(), now.own_xid())?)
}

/// A BRIN index, the column it is on, and its table.
struct BlockRangeIndex {
    index: Oid,
    table: Oid,
    column: String,
    pages: i64,
    has_statistics: bool,
    /// On the groups of a rollup, not on the source.
    is_stored: bool,
}

/// Below this many pages a table is read as fast whole as by its index.
const PAGES_WORTH_STATISTICS: i64 = 128;

/// Notes the newest pages in BRIN indexes, from the end of each table backwards to the first range that is noted already. A
/// range that is not noted would be read by every later tick and by every reader. Maintenance that runs on a table goes
/// first: it notes the ranges as well.
fn note_new_pages<'a>(indexes: impl Iterator<Item = &'a BlockRangeIndex>) -> Result<()> {
    for entry in indexes.filter(|entry| entry.pages > 0) {
        let noted = pg::try_maintenance(entry.table, || -> Result<()> {
            let mut page = entry.pages - 1;
            while page >= 0 {
                let noted = Spi::get_one_with_args::<i32>(
                    "SELECT pg_catalog.brin_summarize_range($1::pg_catalog.regclass, $2)",
                    &[entry.index.into(), page.into()],
                )
                .map_err(spi)?;
                if noted.unwrap_or(0) == 0 {
                    break;
                }
                page -= sql::PAGES_PER_RANGE;
            }
            Ok(())
        });
        noted.unwrap_or(Ok(()))?;
    }
    Ok(())
}

/// A table that has grown large before anything has analysed it gets statistics of the indexed column, without which the
/// planner of a reader would not use the index.
fn make_first_statistics(indexes: &[BlockRangeIndex]) -> Result<()> {
    for entry in indexes.iter().filter(|entry| !entry.has_statistics && entry.pages >= PAGES_WORTH_STATISTICS) {
        let name = catalog::name_of(entry.table)?;
        let analyze = format!("ANALYZE (SKIP_LOCKED) {name} ({})", quote(&entry.column));
        Spi::run(&analyze).map_err(spi)?;
    }
    Ok(())
}

/// Those on the tags of a source and on the buckets of its rollups.
fn block_range_indexes(source: Oid) -> Result<Vec<BlockRangeIndex>> {
    // IN looks its operator up by the search path.
    let _settings = pg::pin_settings();
    Spi::connect(|client| {
        let rows = client.select(
            "SELECT x.indexrelid, x.indrelid, pg_catalog.pg_relation_size(x.indrelid::pg_catalog.regclass) \
                    OPERATOR(pg_catalog./) pg_catalog.current_setting('block_size')::bigint, \
                    EXISTS (SELECT FROM pg_catalog.pg_stats AS s \
                             JOIN pg_catalog.pg_namespace AS n ON n.nspname OPERATOR(pg_catalog.=) s.schemaname \
                            WHERE n.oid OPERATOR(pg_catalog.=) t.relnamespace AND s.tablename OPERATOR(pg_catalog.=) t.relname \
                              AND s.attname OPERATOR(pg_catalog.=) a.attname), a.attname::text, \
                    a.attname OPERATOR(pg_catalog.<>) 'tally_tag' \
               FROM pg_catalog.pg_index AS x \
               JOIN pg_catalog.pg_class AS t ON t.oid OPERATOR(pg_catalog.=) x.indrelid \
               JOIN pg_catalog.pg_class AS i ON i.oid OPERATOR(pg_catalog.=) x.indexrelid AND i.relkind OPERATOR(pg_catalog.=) 'i' \
               JOIN pg_catalog.pg_am AS m ON m.oid OPERATOR(pg_catalog.=) i.relam AND m.amname OPERATOR(pg_catalog.=) 'brin' \
               JOIN pg_catalog.pg_attribute AS a ON a.attrelid OPERATOR(pg_catalog.=) x.indrelid AND a.attnum OPERATOR(pg_catalog.=) x.indkey[0] \
              WHERE a.attname OPERATOR(pg_catalog.=) 'tally_tag' AND (x.indrelid OPERATOR(pg_catalog.=) $1 \
                       OR x.indrelid OPERATOR(pg_catalog.=) ANY (SELECT l.relid FROM pg_catalog.pg_partition_tree($1) AS l WHERE l.isleaf)) \
                 OR x.indrelid OPERATOR(pg_catalog.=) ANY (SELECT r.stored FROM tally.rollups AS r WHERE r.source OPERATOR(pg_catalog.=) $1)",
            None,
            &[source.into()],
        )?;
        rows.map(|row| {
            let oid = |column| row.get::<Oid>(column).map(|oid| oid.unwrap_or(Oid::INVALID));
            Ok(BlockRangeIndex {
                index: oid(1)?,
                table: oid(2)?,
                pages: row.get(3)?.unwrap_or(0),
                has_statistics: row.get(4)?.unwrap_or(true),
                column: row.get(5)?.unwrap_or_default(),
                is_stored: row.get(6)?.unwrap_or_default(),
            })
        })
        .collect::<pgrx::spi::Result<Vec<_>>>()
    })
    .map_err(spi)
}

/// `CALL tally.refresh(rollup)`
#[pg_extern(sql = false)]
fn tally_refresh(rollup: Option<Oid>) -> std::result::Result<(), pgrx::pg_sys::panic::ErrorReport> {
    let rollup = rollup.ok_or_else(|| Error::new("22004", "the rollup must not be NULL"))?;
    // First of all: an old snapshot may not know the rollup.
    require_fresh_transaction()?;
    let source = rollups::source_of(rollup)?;
    catalog::require_owner(source)?;
    pg::lock_refresh(sources::table()?, source, true);
    tick_locked(source, &mut |_| Ok(0))?;
    Ok(())
}

/// Committed rows that no tick has counted, and changes that none has followed, for whoever may know.
#[pg_extern(sql = false)]
fn tally_pending_rows(source: Oid) -> std::result::Result<Option<i64>, pgrx::pg_sys::panic::ErrorReport> {
    Ok(pending_rows(source)?)
}

fn pending_rows(source: Oid) -> Result<Option<i64>> {
    let Some(owner) = pg::owner_of(source) else { return Ok(None) };
    let may_know = catalog::look_up::<bool>(
        "SELECT pg_catalog.pg_has_role($1, 'MEMBER') OR pg_catalog.pg_has_role('pg_read_all_stats', 'MEMBER')",
        &[owner.into()],
    )?;
    let Some(state) = sources::state(source)?.filter(|_| may_know == Some(true)) else { return Ok(None) };
    let name = catalog::name_of(source)?;
    let _settings = pg::pin_settings();
    let Some(log) = sources::log_of(source)? else { return Ok(None) };
    let log = catalog::name_of(log)?;
    let settled = seal::settled(source, &state)?;
    let count = |statement: &str| catalog::look_up::<i64>(statement, &[]).map(|count| count.unwrap_or(0));
    pg::as_user(owner, || {
        let pending = count(&sql::count_pending(&name, &state.counted, settled.as_ref()))?;
        Ok(Some(pending + count(&sql::count_changes(&log, &state.counted))?))
    })
}
