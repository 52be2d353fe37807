//! Dead letters that are tried again: taken under lock, and settled in the transaction of the rows they became.

use tokio_postgres::Error;

use super::{Checks, Failure, Sink, deferred};
use crate::decode::Rejection;
use crate::program::Program;

/// Bytes of values that are taken at once, but always one letter.
const BYTES: i64 = 8 << 20;

/// Names a dead letter of a source.
pub type Key = (i32, i64);

/// A dead letter as it was kept.
#[derive(Debug)]
pub struct Letter {
    pub key: Key,
    /// The broker's timestamp in milliseconds since 1970.
    pub time: Option<i64>,
    pub message_key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Option<String>,
    /// Only the beginning of the value was kept.
    pub is_cut: bool,
}

impl Sink {
    /// The keys of the next letters that are pending, in order, behind a key; those noted before `since` do not count.
    pub async fn pending_letters(&self, after: Key, since: Option<&str>, limit: i64) -> Result<Vec<Key>, Error> {
        let rows = self
            .client
            .query(
                "SELECT part, message_offset FROM (
                     SELECT part, message_offset, length, pg_catalog.sum(length) OVER (ORDER BY part, message_offset) AS bytes
                       FROM (SELECT part, message_offset, coalesce(pg_catalog.octet_length(value), 0) AS length
                               FROM tally.dead_letters
                              WHERE source_id = $1 AND replayed_at IS NULL AND (part, message_offset) > ($2, $3)
                                AND ($4::text IS NULL OR noted_at >= $4::text::timestamptz)
                              ORDER BY part, message_offset LIMIT $5) AS letters) AS letters
                  WHERE bytes - length < $6 ORDER BY part, message_offset",
                &[&self.source, &after.0, &after.1, &since, &limit, &BYTES],
            )
            .await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// Opens the transaction and locks these letters; those that somebody else replays meanwhile are left out.
    pub async fn take_letters(&mut self, keys: &[Key], checks: Checks) -> Result<Vec<Letter>, Failure> {
        self.begin(&Default::default(), checks).await?;
        let (parts, offsets): (Vec<i32>, Vec<i64>) = keys.iter().copied().unzip();
        let rows = self
            .client
            .query(
                "SELECT d.part, d.message_offset, (extract(epoch FROM d.message_time) * 1000)::bigint, d.key, d.value,
                        d.headers::text, d.value_length > pg_catalog.octet_length(d.value)
                   FROM tally.dead_letters d
                   JOIN unnest($2::int[], $3::bigint[]) AS k(part, message_offset) USING (part, message_offset)
                  WHERE d.source_id = $1 AND d.replayed_at IS NULL
                  ORDER BY d.part, d.message_offset FOR UPDATE OF d SKIP LOCKED",
                &[&self.source, &parts, &offsets],
            )
            .await?;
        let letters = rows.iter().map(|row| Letter {
            key: (row.get(0), row.get(1)),
            time: row.get(2),
            message_key: row.get(3),
            value: row.get(4),
            headers: row.get(5),
            is_cut: row.get::<_, Option<bool>>(6).unwrap_or(false),
        });
        Ok(letters.collect())
    }

    /// Notes what became of the letters taken, and commits that with the rows copied since.
    pub async fn settle_letters(
        &mut self,
        program: &Program,
        replayed: &[Key],
        failed: &[(Key, &Rejection)],
    ) -> Result<(), Failure> {
        self.check_rows(program).await?;
        let (parts, offsets): (Vec<i32>, Vec<i64>) = replayed.iter().copied().unzip();
        self.client
            .execute(
                "UPDATE tally.dead_letters d SET replayed_at = pg_catalog.now(), attempts = d.attempts + 1
                   FROM unnest($2::int[], $3::bigint[]) AS k(part, message_offset)
                  WHERE d.source_id = $1 AND d.part = k.part AND d.message_offset = k.message_offset",
                &[&self.source, &parts, &offsets],
            )
            .await?;
        let (parts, offsets): (Vec<i32>, Vec<i64>) = failed.iter().map(|(key, _)| *key).unzip();
        let reasons: Vec<&str> = failed.iter().map(|(_, why)| why.reason.as_str()).collect();
        let columns: Vec<Option<&str>> = failed.iter().map(|(_, why)| why.column.as_deref()).collect();
        let states: Vec<Option<&str>> = failed.iter().map(|(_, why)| why.sqlstate.as_deref()).collect();
        let errors: Vec<&str> = failed.iter().map(|(_, why)| why.error.as_str()).collect();
        self.client
            .execute(
                "UPDATE tally.dead_letters d SET attempts = d.attempts + 1, reason = k.reason, column_name = k.column_name,
                        sqlstate = k.sqlstate, error = k.error
                   FROM unnest($2::int[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::text[])
                          AS k(part, message_offset, reason, column_name, sqlstate, error)
                  WHERE d.source_id = $1 AND d.part = k.part AND d.message_offset = k.message_offset",
                &[&self.source, &parts, &offsets, &reasons, &columns, &states, &errors],
            )
            .await?;
        self.client.batch_execute("COMMIT").await?;
        self.open = false;
        Ok(())
    }

    /// Deferred constraints hold for the rows copied, and the table is the one that the program was compiled for.
    pub async fn check_rows(&self, program: &Program) -> Result<(), Failure> {
        self.client.batch_execute("SET CONSTRAINTS ALL IMMEDIATE").await.map_err(deferred)?;
        if self.is_changed(program).await? { Err(Failure::TableChanged) } else { Ok(()) }
    }
}
