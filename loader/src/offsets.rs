//! The state of the loader in PostgreSQL: sources, members, leases, positions. The claim of a part raises its epoch, and
//! `tally.advance_offsets` lets only the owner of that epoch commit.

pub mod incarnations;

use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use uuid::Uuid;

use crate::control::Ownership;
use crate::source::Kind;
use crate::{Error, Result};

/// The format of the state tables that this loader knows.
pub const FORMAT: i32 = 1;

/// How long a member lives without renewing itself.
pub const LEASE: Duration = Duration::from_secs(10);

/// A claimed part: the only place a position may be read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    pub part: i32,
    /// Next offset to read.
    pub next: i64,
    pub epoch: i64,
    pub anchor: Option<Anchor>,
}

/// Identity of the last record that was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Anchor {
    pub offset: i64,
    /// Milliseconds since 1970.
    pub time: Option<i64>,
    pub hash: i64,
}

/// Why parts were not claimed.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    #[error(transparent)]
    Postgres(#[from] tokio_postgres::Error),
    /// The source has a newer incarnation, which is the one to load.
    #[error("the topic was created again, and its new incarnation is loaded")]
    Superseded,
}

/// Compares the state tables with what this loader expects.
pub async fn check_format(client: &Client) -> Result<()> {
    match client.query_one("SELECT tally.loader_format()", &[]).await {
        Ok(row) if row.get::<_, i32>(0) == FORMAT => Ok(()),
        Ok(row) => Err(Error::unfit_hint(
            format!("the state tables have format {}, this loader knows {FORMAT}", row.get::<_, i32>(0)),
            "Use a tally-loader of the version of the extension, or ALTER EXTENSION tally UPDATE.",
        )),
        Err(error) => match error.code() {
            Some(&SqlState::UNDEFINED_FUNCTION | &SqlState::INVALID_SCHEMA_NAME) => Err(Error::unfit_hint(
                "this database has no state tables of tally-loader",
                "Run \"tally-loader init\" as the owner of the database, or CREATE EXTENSION tally.",
            )),
            _ => Err(crate::postgres::at_start("read the state tables", &error)),
        },
    }
}

/// Finds the source of a kind and name in a cluster.
pub async fn find_source(
    client: &Client,
    pipeline: &str,
    kind: Kind,
    cluster: &str,
    name: &str,
) -> Result<Option<i32>, tokio_postgres::Error> {
    let row = client
        .query_opt(
            "SELECT source_id FROM tally.loader_sources \
             WHERE pipeline = $1 AND kind = $2 AND cluster = $3 AND name = $4 ORDER BY incarnation DESC LIMIT 1",
            &[&pipeline, &kind.as_str(), &cluster, &name],
        )
        .await?;
    Ok(row.map(|row| row.get(0)))
}

/// The parts of a source that have a position.
pub async fn known_parts(client: &Client, source: i32) -> Result<Vec<i32>, tokio_postgres::Error> {
    let rows =
        client.query("SELECT part FROM tally.loader_offsets WHERE source_id = $1 ORDER BY part", &[&source]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Creates the source and the positions of all its parts in one transaction. If another loader was first, its positions stay.
pub async fn create_source(
    client: &mut Client,
    pipeline: &str,
    kind: Kind,
    cluster: &str,
    name: &str,
    starts: &[(i32, i64)],
) -> Result<i32, tokio_postgres::Error> {
    let transaction = client.transaction().await?;
    let inserted = transaction
        .query_opt(
            "INSERT INTO tally.loader_sources (pipeline, kind, cluster, name) VALUES ($1, $2, $3, $4) \
             ON CONFLICT DO NOTHING RETURNING source_id",
            &[&pipeline, &kind.as_str(), &cluster, &name],
        )
        .await?;
    let Some(row) = inserted else {
        transaction.rollback().await?;
        let source = find_source(client, pipeline, kind, cluster, name).await?;
        return Ok(source.expect("a source that conflicts is visible"));
    };
    let source: i32 = row.get(0);
    insert_parts(&transaction, source, starts).await?;
    transaction.commit().await?;
    Ok(source)
}

/// Adds parts that have appeared since; those that another loader added meanwhile keep its position.
pub async fn insert_parts(
    client: &impl tokio_postgres::GenericClient,
    source: i32,
    starts: &[(i32, i64)],
) -> Result<(), tokio_postgres::Error> {
    let (parts, offsets): (Vec<i32>, Vec<i64>) = starts.iter().copied().unzip();
    client
        .execute(
            "INSERT INTO tally.loader_offsets (source_id, part, next_offset) \
             SELECT $1, w.part, w.next_offset FROM unnest($2::int[], $3::bigint[]) AS w(part, next_offset) \
             ON CONFLICT DO NOTHING",
            &[&source, &parts, &offsets],
        )
        .await?;
    Ok(())
}

/// Makes this process a member, or renews it: on the control connection, whose backend is the proof of life.
pub async fn renew_member(
    client: &Client,
    member: Uuid,
    pipeline: &str,
    host: &str,
) -> Result<(), tokio_postgres::Error> {
    client
        .execute(
            "INSERT INTO tally.loader_members AS m (member_id, pipeline, backend_pid, backend_started_at, expires_at, version, host) \
             SELECT $1, $2, a.pid, a.backend_start, clock_timestamp() + $3::float8 * interval '1 second', $4, $5 \
               FROM pg_catalog.pg_stat_activity a WHERE a.pid = pg_catalog.pg_backend_pid() \
             ON CONFLICT (member_id) DO UPDATE SET backend_pid = excluded.backend_pid, \
               backend_started_at = excluded.backend_started_at, expires_at = excluded.expires_at",
            &[&member, &pipeline, &LEASE.as_secs_f64(), &env!("CARGO_PKG_VERSION"), &host],
        )
        .await?;
    Ok(())
}

/// Alive: not expired, and its control connection still there. Other roles see no `backend_start`.
const ALIVE: &str = "m.expires_at > clock_timestamp() AND EXISTS (SELECT FROM pg_catalog.pg_stat_activity a \
     WHERE a.pid = m.backend_pid AND (a.backend_start IS NULL OR a.backend_start = m.backend_started_at))";

/// Living members of the pipeline, and each part of the source with its living owner.
pub async fn ownership(client: &Client, pipeline: &str, source: i32) -> Result<Ownership, tokio_postgres::Error> {
    let members = client
        .query(
            &format!("SELECT m.member_id FROM tally.loader_members m WHERE m.pipeline = $1 AND {ALIVE}"),
            &[&pipeline],
        )
        .await?;
    let owners = client
        .query(
            &format!(
                "SELECT o.part, m.member_id, o.next_offset FROM tally.loader_offsets o \
                 LEFT JOIN tally.loader_leases l ON l.source_id = o.source_id AND l.part = o.part \
                 LEFT JOIN tally.loader_members m ON m.member_id = l.member_id AND {ALIVE} WHERE o.source_id = $1"
            ),
            &[&source],
        )
        .await?;
    Ok(Ownership {
        is_superseded: incarnations::is_superseded(client, source).await?,
        members: members.iter().map(|row| row.get(0)).collect(),
        owners: owners.iter().map(|row| (row.get(0), row.get(1))).collect(),
        positions: owners.iter().map(|row| (row.get(0), row.get(2))).collect(),
    })
}

/// Claims parts in one short transaction: the lease, then the epoch. Returns those that nobody alive holds. It waits for an
/// uncommitted advance of a former owner and then sees the position that one left behind.
pub async fn claim(client: &mut Client, source: i32, parts: &[i32], member: Uuid) -> Result<Vec<Claim>, ClaimError> {
    let mut parts = parts.to_vec();
    parts.sort_unstable();
    let transaction =
        client.build_transaction().isolation_level(tokio_postgres::IsolationLevel::ReadCommitted).start().await?;
    transaction.batch_execute("SET LOCAL synchronous_commit = on; SET LOCAL lock_timeout = '10s'").await?;
    let leased = transaction
        .query(
            &format!(
                "INSERT INTO tally.loader_leases AS l (source_id, part, member_id) \
                 SELECT $1, p, $3 FROM unnest($2::int[]) AS p ORDER BY p \
                 ON CONFLICT (source_id, part) DO UPDATE SET member_id = excluded.member_id, taken_at = now() \
                   WHERE l.member_id = excluded.member_id \
                      OR NOT EXISTS (SELECT FROM tally.loader_members m WHERE m.member_id = l.member_id AND {ALIVE}) \
                 RETURNING part"
            ),
            &[&source, &parts, &member],
        )
        .await?;
    let leased: Vec<i32> = leased.iter().map(|row| row.get(0)).collect();
    // In order, as advance_offsets locks them.
    transaction
        .execute(
            "SELECT FROM tally.loader_offsets WHERE source_id = $1 AND part = ANY ($2) ORDER BY part FOR UPDATE",
            &[&source, &leased],
        )
        .await?;
    if incarnations::is_superseded(&transaction, source).await? {
        transaction.rollback().await?;
        return Err(ClaimError::Superseded);
    }
    let rows = transaction
        .query(
            "UPDATE tally.loader_offsets SET epoch = epoch + 1, stopped_reason = NULL WHERE source_id = $1 AND part = ANY ($2) \
             RETURNING part, next_offset, epoch, anchor_offset, anchor_time, anchor_hash",
            &[&source, &leased],
        )
        .await?;
    transaction.commit().await?;
    Ok(rows
        .iter()
        .map(|row| Claim { part: row.get(0), next: row.get(1), epoch: row.get(2), anchor: anchor(row, 3) })
        .collect())
}

/// The anchor in three columns from this one on.
fn anchor(row: &tokio_postgres::Row, column: usize) -> Option<Anchor> {
    let (offset, hash): (Option<i64>, Option<i64>) = (row.get(column), row.get(column + 2));
    offset.zip(hash).map(|(offset, hash)| Anchor { offset, time: row.get(column + 1), hash })
}

/// Ends former sessions of this role and pipeline that block the session `pid`, such as those of a loader that hangs.
pub async fn end_blockers(client: &Client, pid: i32) -> Result<u64, tokio_postgres::Error> {
    client
        .execute(
            "SELECT pg_catalog.pg_terminate_backend(a.pid) FROM unnest(pg_catalog.pg_blocking_pids($1)) AS b(pid) \
             JOIN pg_catalog.pg_stat_activity a USING (pid) \
             WHERE a.usename = CURRENT_USER AND a.application_name = current_setting('application_name')",
            &[&pid],
        )
        .await
}

/// Gives leases back, so that others need not wait for them to expire.
pub async fn release(client: &Client, source: i32, parts: &[i32], member: Uuid) -> Result<(), tokio_postgres::Error> {
    client
        .execute(
            "DELETE FROM tally.loader_leases WHERE source_id = $1 AND part = ANY ($2) AND member_id = $3",
            &[&source, &parts, &member],
        )
        .await?;
    Ok(())
}

/// Leaves: no leases, no member. Members of the pipeline that died long ago go too.
pub async fn leave(client: &Client, pipeline: &str, member: Uuid) -> Result<(), tokio_postgres::Error> {
    client.execute("DELETE FROM tally.loader_leases WHERE member_id = $1", &[&member]).await?;
    client
        .execute(
            "DELETE FROM tally.loader_members WHERE member_id = $1 \
                OR (pipeline = $2 AND expires_at < clock_timestamp() - interval '1 hour')",
            &[&member, &pipeline],
        )
        .await?;
    Ok(())
}

/// Notes why a part stands still, as long as this loader still owns it.
pub async fn note_stop(client: &Client, source: i32, claim: &Claim, reason: &str) -> Result<(), tokio_postgres::Error> {
    client
        .execute(
            "UPDATE tally.loader_offsets SET stopped_reason = $4 WHERE source_id = $1 AND part = $2 AND epoch = $3",
            &[&source, &claim.part, &claim.epoch, &reason],
        )
        .await?;
    Ok(())
}

/// Declares the offsets before `to` lost and moves the position there, in one transaction. `false`: the part is not ours.
pub async fn record_gap(
    client: &mut Client,
    source: i32,
    claim: &Claim,
    to: i64,
    reason: &str,
) -> Result<bool, tokio_postgres::Error> {
    let transaction = client.transaction().await?;
    transaction.batch_execute("SET LOCAL synchronous_commit = on").await?;
    let moved = transaction
        .execute(
            "UPDATE tally.loader_offsets SET next_offset = $5, advanced_at = now() \
             WHERE source_id = $1 AND part = $2 AND epoch = $3 AND next_offset = $4",
            &[&source, &claim.part, &claim.epoch, &claim.next, &to],
        )
        .await?;
    if moved == 0 {
        transaction.rollback().await?;
        return Ok(false);
    }
    transaction
        .execute(
            "INSERT INTO tally.loader_gaps (source_id, part, from_offset, to_offset, reason) VALUES ($1, $2, $3, $4, $5)",
            &[&source, &claim.part, &claim.next, &to, &reason],
        )
        .await?;
    transaction.commit().await?;
    Ok(true)
}
