//! A topic that was created again under its name is another source: the next incarnation of the former one. What belongs to the former
//! one (positions, dead letters, gaps) stays with it, and nobody can move its positions any more.

use tokio_postgres::{Client, Error, GenericClient};

use super::insert_parts;

/// Whether there is a newer incarnation of a source. The answer holds for as long as the caller has a lock on one of its positions.
pub async fn is_superseded(client: &impl GenericClient, source: i32) -> Result<bool, Error> {
    let row = client
        .query_one(
            "SELECT EXISTS (SELECT FROM tally.loader_sources s JOIN tally.loader_sources n USING (pipeline, kind, cluster, name) \
                             WHERE s.source_id = $1 AND n.incarnation > s.incarnation)",
            &[&source],
        )
        .await?;
    Ok(row.get(0))
}

/// Makes the next incarnation of a source, with its parts at `starts`, and fences all who load the former one: in one transaction.
/// `false`: another loader has made it, and its positions stay.
pub async fn supersede(client: &mut Client, source: i32, starts: &[(i32, i64)]) -> Result<bool, Error> {
    let transaction =
        client.build_transaction().isolation_level(tokio_postgres::IsolationLevel::ReadCommitted).start().await?;
    transaction.batch_execute("SET LOCAL synchronous_commit = on; SET LOCAL lock_timeout = '10s'").await?;
    // As claims and advances lock them. Of two loaders that come at once, the second waits here and then sees what the first has made.
    let lock = "SELECT FROM tally.loader_offsets WHERE source_id = $1 ORDER BY part FOR UPDATE";
    transaction.execute(lock, &[&source]).await?;
    if is_superseded(&transaction, source).await? {
        transaction.rollback().await?;
        return Ok(false);
    }
    let row = transaction
        .query_one(
            "INSERT INTO tally.loader_sources (pipeline, kind, cluster, name, incarnation) \
             SELECT pipeline, kind, cluster, name, incarnation + 1 FROM tally.loader_sources WHERE source_id = $1 \
             RETURNING source_id, incarnation",
            &[&source],
        )
        .await?;
    let (next, incarnation): (i32, i32) = (row.get(0), row.get(1));
    insert_parts(&transaction, next, starts).await?;
    transaction
        .execute(
            "UPDATE tally.loader_offsets SET epoch = epoch + 1, stopped_reason = $2 WHERE source_id = $1",
            &[&source, &format!("superseded by incarnation {incarnation}")],
        )
        .await?;
    transaction.commit().await?;
    Ok(true)
}

/// The anchors of all parts of a source, whoever loads them. They say what the topic was, not where to read it.
pub async fn anchors(client: &Client, source: i32) -> Result<Vec<(i32, Option<super::Anchor>)>, Error> {
    let rows = client
        .query(
            "SELECT part, anchor_offset, anchor_time, anchor_hash FROM tally.loader_offsets WHERE source_id = $1 ORDER BY part",
            &[&source],
        )
        .await?;
    Ok(rows.iter().map(|row| (row.get(0), super::anchor(row, 1))).collect())
}
