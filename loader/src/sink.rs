//! The data connection: rows and dead letters by COPY, positions by `tally.advance_offsets`, all in one transaction.
//!
//! ```text
//! BEGIN; SET LOCAL synchronous_commit; SELECT positions ..      a loader that lost a part stops here already
//! SAVEPOINT; COPY target ..                                     a bad row costs some COPYs, not the batch
//! COPY tally.dead_letters ..                                    when there are any
//! SET CONSTRAINTS ALL IMMEDIATE; SELECT fingerprint, tally.advance_offsets(..); COMMIT
//! ```

mod blockers;
pub mod dead_letters;
mod poison;

use std::collections::BTreeMap;
use std::fmt;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::SinkExt;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, CopyInSink, Statement};
use uuid::Uuid;

use crate::batch::{Move, Owned, Refused};
use crate::catalog::{self, CatalogError, FINGERPRINT, Leaves, Table};
use crate::chunk::Chunk;
use crate::config::{Postgres, SynchronousCommit};
use crate::copy;
use crate::decode::Rejection;
use crate::message::Message;
use crate::offsets::{self, Anchor, Claim, ClaimError, LEASE, incarnations};
use crate::postgres::{self, Verdict};
use crate::program::{Format, Program};
use blockers::Blockers;

/// Buffers are handed over whole; this size keeps the socket busy without much memory.
const BUFFER: usize = 256 << 10;
/// A claim that waits longer than this ends the sessions of former loaders that it waits for.
const PATIENCE: Duration = Duration::from_secs(2);
/// The same for rows and dead letters, which may wait for the equal keys of another session: one that does not end its
/// transaction as long as a lease lasts hangs, and nothing else would end it in the middle of a COPY.
const PATIENCE_OF_ROWS: Duration = LEASE;

const DEAD_LETTERS: &str = "COPY tally.dead_letters (source_id, part, message_offset, message_time, key, value, value_length, \
     headers, reason, column_name, sqlstate, error) FROM STDIN (FORMAT binary)";

/// What stopped a batch.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// From PostgreSQL or from the connection; the verdict says what to do.
    #[error("{}", postgres::describe(.0))]
    Postgres(#[from] tokio_postgres::Error),
    #[error("another loader owns the part: {0}")]
    Fenced(String),
    /// The topic was created again, and that is another source.
    #[error("the topic was created again, and its new incarnation is loaded")]
    Superseded,
    /// The server does not take the rows that were sent last; which of them is not looked at.
    #[error("the rows are refused: {}", postgres::describe(.0))]
    Rows(tokio_postgres::Error),
    /// The table changed since the program was compiled.
    #[error("the table was changed")]
    TableChanged,
    /// A row found no leaf; those known here may be old.
    #[error("no partition takes a row")]
    NoLeaf,
    /// A deferred constraint refused the batch; no row is named.
    #[error("a deferred constraint refused the batch: {}", postgres::describe(.0))]
    Deferred(tokio_postgres::Error),
    /// More rows were refused than the policy allows.
    #[error("too many rows are refused; the last error was: {0}")]
    TooManyRefused(String),
}

impl From<ClaimError> for Failure {
    fn from(error: ClaimError) -> Self {
        match error {
            ClaimError::Postgres(error) => Self::Postgres(error),
            ClaimError::Superseded => Self::Superseded,
        }
    }
}

/// How rows are checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checks {
    /// The leaves were read for this batch: a row without a leaf is a dead letter.
    pub leaves_are_fresh: bool,
    /// Deferred constraints are checked with each COPY, so that a row can be found by splitting.
    pub immediate: bool,
}

/// A COPY of which everything is sent but its end.
type SentCopy = Pin<Box<CopyInSink<Bytes>>>;

/// One connection with its prepared statements.
pub struct Sink {
    client: Client,
    pid: i32,
    source: i32,
    synchronous_commit: SynchronousCommit,
    settings: Postgres,
    pipeline: String,
    prepared_rows: Option<(Arc<Program>, Statement)>,
    copy_dead: Statement,
    begin: Statement,
    advance: Statement,
    /// A transaction is open.
    open: bool,
    /// Rows that the server may not have taken yet.
    sent: Option<SentCopy>,
    max_value: usize,
}

impl fmt::Debug for Sink {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Sink").field("pid", &self.pid).field("open", &self.open).finish_non_exhaustive()
    }
}

impl Sink {
    /// Takes over a connection whose state tables are checked.
    pub async fn new(
        client: Client,
        settings: &Postgres,
        pipeline: &str,
        source: i32,
        synchronous_commit: SynchronousCommit,
        max_value: usize,
    ) -> Result<Self, tokio_postgres::Error> {
        let pid = client.query_one("SELECT pg_catalog.pg_backend_pid()", &[]).await?.get(0);
        let copy_dead = client.prepare(DEAD_LETTERS).await?;
        let begin = client
            .prepare(
                "SELECT part, next_offset, epoch FROM tally.loader_offsets WHERE source_id = $1 AND part = ANY ($2)",
            )
            .await?;
        // The table's columns cannot change any more once COPY has locked it, so reading them here proves what COPY wrote to.
        let advance = client
            .prepare(&format!(
                "SELECT ({FINGERPRINT}), tally.advance_offsets($3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)"
            ))
            .await?;
        Ok(Self {
            client,
            pid,
            source,
            synchronous_commit,
            settings: settings.clone(),
            pipeline: pipeline.to_owned(),
            prepared_rows: None,
            copy_dead,
            begin,
            advance,
            open: false,
            sent: None,
            max_value,
        })
    }

    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// A transaction is open.
    pub fn is_open(&self) -> bool {
        self.open
    }

    pub fn source(&self) -> i32 {
        self.source
    }

    pub async fn table(&self, name: &str) -> Result<Table, CatalogError> {
        catalog::table(&self.client, name).await
    }

    pub async fn leaves(&self, table: u32) -> Result<Leaves, tokio_postgres::Error> {
        catalog::leaves(&self.client, table).await
    }

    /// Claims parts. A session that stands in the way for long is that of a loader that hangs, and is ended.
    pub async fn claim(&mut self, parts: &[i32], member: Uuid) -> Result<Vec<Claim>, ClaimError> {
        let blockers = Blockers::of(self, PATIENCE);
        blockers.end_while(offsets::claim(&mut self.client, self.source, parts, member)).await
    }

    /// Makes the next incarnation of the source, see [`incarnations::supersede`]. No transaction may be open.
    pub async fn supersede(&mut self, starts: &[(i32, i64)]) -> Result<bool, tokio_postgres::Error> {
        let blockers = Blockers::of(self, PATIENCE);
        blockers.end_while(incarnations::supersede(&mut self.client, self.source, starts)).await
    }

    /// The anchors of all parts of the source.
    pub async fn anchors(&self) -> Result<Vec<(i32, Option<Anchor>)>, tokio_postgres::Error> {
        incarnations::anchors(&self.client, self.source).await
    }

    pub async fn release(&self, parts: &[i32], member: Uuid) -> Result<(), tokio_postgres::Error> {
        offsets::release(&self.client, self.source, parts, member).await
    }

    pub async fn note_stop(&self, claim: &Claim, reason: &str) -> Result<(), tokio_postgres::Error> {
        offsets::note_stop(&self.client, self.source, claim, reason).await
    }

    pub async fn record_gap(&mut self, claim: &Claim, to: i64, reason: &str) -> Result<bool, tokio_postgres::Error> {
        offsets::record_gap(&mut self.client, self.source, claim, to, reason).await
    }

    pub async fn insert_parts(&self, starts: &[(i32, i64)]) -> Result<(), tokio_postgres::Error> {
        offsets::insert_parts(&self.client, self.source, starts).await
    }

    /// Leaves the pipeline: leases and membership go.
    pub async fn leave(&self, member: Uuid) -> Result<(), tokio_postgres::Error> {
        offsets::leave(&self.client, &self.pipeline, member).await
    }

    /// Opens the transaction, unless it is open, and compares positions and epochs a first time.
    async fn begin(&mut self, owned: &BTreeMap<i32, Owned>, checks: Checks) -> Result<(), Failure> {
        if std::mem::replace(&mut self.open, true) { Ok(()) } else { self.open(owned, checks).await }
    }

    async fn open(&self, owned: &BTreeMap<i32, Owned>, checks: Checks) -> Result<(), Failure> {
        let parts: Vec<i32> = owned.keys().copied().collect();
        let constraints = if checks.immediate { "; SET CONSTRAINTS ALL IMMEDIATE" } else { "" };
        let begin = format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL synchronous_commit = {}{constraints}",
            self.synchronous_commit.as_str()
        );
        let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [&self.source, &parts];
        let (begun, positions) =
            tokio::join!(self.client.batch_execute(&begin), self.client.query(&self.begin, &parameters));
        begun?;
        let mut missing = owned.len();
        for row in positions? {
            let found = Owned { next: row.get(1), epoch: row.get(2) };
            // The batch before may not have committed yet.
            if owned.get(&row.get(0)).is_none_or(|own| own.epoch != found.epoch || own.next < found.next) {
                return Err(Failure::Fenced(format!(
                    "part {} is at {}/{}",
                    row.get::<_, i32>(0),
                    found.next,
                    found.epoch
                )));
            }
            missing -= 1;
        }
        if missing > 0 {
            return Err(Failure::Fenced("a position has gone".into()));
        }
        Ok(())
    }

    /// Copies the rows of the chunks from number `first` on, all made by `program`. Rows that PostgreSQL refuses are returned;
    /// above `allowance` of them the batch is given up.
    pub async fn copy(
        &mut self,
        program: &Arc<Program>,
        owned: &BTreeMap<i32, Owned>,
        chunks: &[Chunk],
        first: usize,
        checks: Checks,
        allowance: u64,
    ) -> Result<Vec<Refused>, Failure> {
        self.send(program, owned, chunks, first, checks).await?;
        let Some(copy) = self.sent.take() else { return Ok(Vec::new()) };
        let Err(error) = self.end_copy(copy).await else { return Ok(Vec::new()) };
        let rows: Vec<(usize, usize)> = (first..chunks.len())
            .flat_map(|chunk| (0..chunks[chunk].starts.len()).map(move |row| (chunk, row)))
            .collect();
        self.find_poison(program, chunks, rows, error, checks, allowance).await
    }

    /// Sends the same rows and does not wait until the server has them all. Whether it takes them, [`Self::commit`] finds out.
    pub async fn send(
        &mut self,
        program: &Arc<Program>,
        owned: &BTreeMap<i32, Owned>,
        chunks: &[Chunk],
        first: usize,
        checks: Checks,
    ) -> Result<(), Failure> {
        let statement = self.statement(program).await?;
        let rows: Vec<Bytes> =
            chunks[first..].iter().map(|chunk| chunk.rows.clone()).filter(|rows| !rows.is_empty()).collect();
        if rows.is_empty() {
            return self.begin(owned, checks).await;
        }
        let was_open = std::mem::replace(&mut self.open, true);
        let begin = async { if was_open { Ok(()) } else { self.open(owned, checks).await } };
        let copy = async { Ok(self.send_rows(program.format, &statement, rows).await?) };
        // In one round trip: the server does not wait for us between the first statement and the rows.
        self.sent = Some(tokio::try_join!(begin, copy)?.1);
        Ok(())
    }

    /// The COPY of a program, prepared once.
    async fn statement(&mut self, program: &Arc<Program>) -> Result<Statement, tokio_postgres::Error> {
        if let Some((prepared, statement)) = &self.prepared_rows
            && prepared.copy == program.copy
        {
            return Ok(statement.clone());
        }
        let statement = self.client.prepare(&program.copy).await?;
        self.prepared_rows = Some((program.clone(), statement.clone()));
        Ok(statement)
    }

    /// Whether the target is another one than the program was compiled for.
    async fn is_changed(&self, program: &Program) -> Result<bool, tokio_postgres::Error> {
        let row = self.client.query_one(FINGERPRINT, &[&program.table_oid, &program.enums]).await?;
        Ok(row.get::<_, Option<i64>>(0) != Some(program.fingerprint))
    }

    async fn send_rows(
        &self,
        format: Format,
        statement: &Statement,
        rows: Vec<Bytes>,
    ) -> Result<SentCopy, tokio_postgres::Error> {
        let (header, trailer) = match format {
            Format::Binary => (copy::HEADER, copy::TRAILER),
            Format::Text => (&b""[..], &b""[..]),
        };
        let sending = async {
            let (savepoint, sink) = tokio::join!(
                self.client.batch_execute("SAVEPOINT tally_rows"),
                self.client.copy_in::<_, Bytes>(statement)
            );
            savepoint?;
            let mut sink = Box::pin(sink?);
            sink.send(Bytes::from_static(header)).await?;
            for rows in rows {
                let mut rest = rows;
                while !rest.is_empty() {
                    sink.send(rest.split_to(rest.len().min(BUFFER))).await?;
                }
            }
            sink.send(Bytes::from_static(trailer)).await?;
            Ok(sink)
        };
        Blockers::of(self, PATIENCE_OF_ROWS).end_while(sending).await
    }

    async fn end_copy(&self, mut copy: SentCopy) -> Result<(), tokio_postgres::Error> {
        // Behind the rows, in one round trip; after an error of theirs this one fails as well, and the savepoint stays.
        let ending =
            async { tokio::join!(copy.as_mut().finish(), self.client.batch_execute("RELEASE SAVEPOINT tally_rows")) };
        let (copied, released) = Blockers::of(self, PATIENCE_OF_ROWS).end_while(ending).await;
        copied?;
        released
    }

    /// Writes the dead letters, moves the positions and commits. Returns how long the two last took.
    pub async fn commit<'a>(
        &mut self,
        program: &Program,
        owned: &BTreeMap<i32, Owned>,
        moves: &[Move],
        dead: impl Iterator<Item = (&'a Chunk, u32, &'a Rejection)>,
        checks: Checks,
    ) -> Result<(Duration, Duration), Failure> {
        self.begin(owned, checks).await?;
        if let Some(copy) = self.sent.take() {
            self.end_copy(copy).await.map_err(|error| match postgres::verdict(&error) {
                Verdict::Poison | Verdict::NoLeaf | Verdict::Recompile => Failure::Rows(error),
                _ => error.into(),
            })?;
        }
        // Another loader has written them, and the position is behind them: the fence would say the same.
        Blockers::of(self, PATIENCE_OF_ROWS).end_while(self.write_dead_letters(dead)).await.map_err(
            |error| match error.as_db_error() {
                Some(db) if db.code() == &SqlState::UNIQUE_VIOLATION => {
                    Failure::Fenced(db.detail().unwrap_or_default().to_owned())
                }
                _ => error.into(),
            },
        )?;
        let start = Instant::now();
        let column = |field: fn(&Move) -> i64| moves.iter().map(field).collect::<Vec<i64>>();
        let anchors = |field: fn(&offsets::Anchor) -> Option<i64>| {
            moves.iter().map(|moved| moved.anchor.as_ref().and_then(field)).collect::<Vec<Option<i64>>>()
        };
        let parts: Vec<i32> = moves.iter().map(|moved| moved.part).collect();
        let (expected, next, epochs) = (column(|m| m.expected), column(|m| m.next), column(|m| m.epoch));
        let (rows, dead, skipped) = (column(|m| m.rows), column(|m| m.dead), column(|m| m.skipped));
        let (at, times, hashes) = (anchors(|a| Some(a.offset)), anchors(|a| a.time), anchors(|a| Some(a.hash)));
        let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 13] = [
            &program.table_oid,
            &program.enums,
            &self.source,
            &parts,
            &expected,
            &next,
            &epochs,
            &rows,
            &dead,
            &skipped,
            &at,
            &times,
            &hashes,
        ];
        let (constraints, advanced) = tokio::join!(
            self.client.batch_execute("SET CONSTRAINTS ALL IMMEDIATE"),
            self.client.query_one(&self.advance, &parameters)
        );
        constraints.map_err(deferred)?;
        let advanced = advanced.map_err(|error| match postgres::verdict(&error) {
            Verdict::Fenced => {
                Failure::Fenced(error.as_db_error().and_then(|error| error.detail()).unwrap_or_default().to_owned())
            }
            _ => error.into(),
        })?;
        if advanced.get::<_, Option<i64>>(0) != Some(program.fingerprint) {
            return Err(Failure::TableChanged);
        }
        let advance = start.elapsed();
        let start = Instant::now();
        self.client.batch_execute("COMMIT").await?;
        self.open = false;
        Ok((advance, start.elapsed()))
    }

    async fn write_dead_letters<'a>(
        &self,
        dead: impl Iterator<Item = (&'a Chunk, u32, &'a Rejection)>,
    ) -> Result<(), tokio_postgres::Error> {
        let mut dead = dead.peekable();
        if dead.peek().is_none() {
            return Ok(());
        }
        let mut sink = pin!(self.client.copy_in::<_, Bytes>(&self.copy_dead).await?);
        let mut buffer = copy::HEADER.to_vec();
        for (chunk, message, rejection) in dead {
            dead_letter(&mut buffer, self.source, chunk.arena.get(message as usize), rejection, self.max_value);
            if buffer.len() > BUFFER {
                sink.send(Bytes::from(std::mem::take(&mut buffer))).await?;
            }
        }
        buffer.extend_from_slice(copy::TRAILER);
        sink.send(Bytes::from(buffer)).await?;
        sink.finish().await?;
        Ok(())
    }

    /// Ends the transaction without a trace; after an error of the connection there is none to end.
    pub async fn rollback(&mut self) -> Result<(), tokio_postgres::Error> {
        self.sent = None;
        if std::mem::take(&mut self.open) {
            self.client.batch_execute("ROLLBACK").await?;
        }
        Ok(())
    }
}

/// What an error of `SET CONSTRAINTS ALL IMMEDIATE` means.
fn deferred(error: tokio_postgres::Error) -> Failure {
    match postgres::verdict(&error) {
        Verdict::Poison => Failure::Deferred(error),
        _ => error.into(),
    }
}

/// Appends one row of `tally.dead_letters`.
fn dead_letter(out: &mut Vec<u8>, source: i32, message: Message<'_>, rejection: &Rejection, max_value: usize) {
    copy::row(out, 12);
    copy::field(out, &source.to_be_bytes());
    copy::field(out, &message.part.to_be_bytes());
    copy::field(out, &message.offset.to_be_bytes());
    let time = message.time.and_then(copy::from_unix_milliseconds).map(i64::to_be_bytes);
    copy::nullable(out, time.as_ref().map(|bytes| &bytes[..]));
    copy::nullable(out, message.key);
    copy::nullable(out, message.value.map(|value| &value[..value.len().min(max_value)]));
    let length = message.value.map(|value| (value.len() as i64).to_be_bytes());
    copy::nullable(out, length.as_ref().map(|bytes| &bytes[..]));
    match message.headers {
        Some(headers) => copy::jsonb(out, headers),
        None => copy::nullable(out, None),
    }
    copy::field(out, rejection.reason.as_str().as_bytes());
    copy::nullable(out, rejection.column.as_deref().map(str::as_bytes));
    copy::nullable(out, rejection.sqlstate.as_deref().map(str::as_bytes));
    copy::field(out, rejection.error.as_bytes());
}
