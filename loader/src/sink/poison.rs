//! Rows that the server refuses: found, set aside, and all others copied.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio_postgres::Statement;

use super::{BUFFER, Blockers, Checks, Failure, PATIENCE_OF_ROWS, Sink};
use crate::batch::{ROWS_PER_CAREFUL_COPY, Refused};
use crate::chunk::Chunk;
use crate::postgres::{self, Verdict};
use crate::program::{Format, Program};

/// So many times a COPY without the rows that were named may fail again before it is split instead.
const PINPOINTS: u32 = 8;

/// Rows that are to be copied together, each by its chunk and its place in there.
struct Part {
    /// Those in front, which the server has taken once already.
    passed: Vec<(usize, usize)>,
    rows: Vec<(usize, usize)>,
    /// How often an error that names a row is still followed.
    pinpoints: u32,
}

impl Part {
    fn new(rows: Vec<(usize, usize)>, pinpoints: u32) -> Self {
        Self { passed: Vec::new(), rows, pinpoints }
    }
}

impl Sink {
    /// Finds the rows at fault after a COPY of `rows` has failed with `error`, and copies all others.
    pub(super) async fn find_poison(
        &mut self,
        program: &Arc<Program>,
        chunks: &[Chunk],
        rows: Vec<(usize, usize)>,
        error: tokio_postgres::Error,
        checks: Checks,
        allowance: u64,
    ) -> Result<Vec<Refused>, Failure> {
        let statement = self.statement(program).await?;
        let mut refused: Vec<Refused> = Vec::new();
        // Parts still to copy, the next one last.
        let mut work = vec![Part::new(rows, PINPOINTS)];
        let mut error = Some(error);
        while let Some(Part { passed, mut rows, pinpoints }) = work.pop() {
            let is_whole = passed.is_empty();
            let error = match error.take() {
                Some(error) => error,
                None => match self.attempt(program.format, &statement, gather(chunks, &rows), is_whole).await {
                    Ok(()) if is_whole => continue,
                    Ok(()) => {
                        // No more are at fault: now all the others, in their order.
                        self.undo_attempt().await?;
                        work.push(Part::new([passed, rows].concat(), pinpoints - 1));
                        continue;
                    }
                    Err(error) => error,
                },
            };
            match postgres::verdict(&error) {
                Verdict::Poison => {}
                Verdict::NoLeaf if checks.leaves_are_fresh => {}
                Verdict::NoLeaf => return Err(Failure::NoLeaf),
                Verdict::Recompile => return Err(Failure::TableChanged),
                _ => return Err(error.into()),
            }
            let Some(db) = error.as_db_error() else { return Err(error.into()) };
            self.undo_attempt().await?;
            // A changed type can make every row fail; those are no bad rows then.
            if refused.is_empty() && self.is_changed(program).await? {
                return Err(Failure::TableChanged);
            }
            let named =
                postgres::line(db, &program.relation).filter(|line| pinpoints > 0 && (1..=rows.len()).contains(line));
            let at = if rows.len() == 1 { Some(0) } else { named.map(|line| line - 1) };
            if let Some(at) = at {
                let (chunk, row) = rows[at];
                let message = chunks[chunk].starts[row].0;
                refused.push(Refused { chunk, message, rejection: postgres::rejection(db) });
                if refused.len() as u64 > allowance {
                    return Err(Failure::TooManyRefused(postgres::without_value(db)));
                }
                if refused.len() == 1 {
                    // Most likely it is the only one.
                    rows.remove(at);
                    if !rows.is_empty() {
                        work.push(Part::new(rows, PINPOINTS));
                    }
                    continue;
                }
                if passed.len() + rows.len() <= ROWS_PER_CAREFUL_COPY && pinpoints > 0 {
                    // The rows behind it are tried without those before it, so that each is sent twice at most, however
                    // many are at fault.
                    let behind = rows.split_off(at + 1);
                    rows.truncate(at);
                    let passed = [passed, rows].concat();
                    match (passed.is_empty(), behind.is_empty()) {
                        (true, true) => {}
                        (_, true) => work.push(Part::new(passed, pinpoints - 1)),
                        _ => work.push(Part { passed, rows: behind, pinpoints }),
                    }
                    continue;
                }
                rows.remove(at);
            }
            let rows = [passed, rows].concat();
            let size = if rows.len() > ROWS_PER_CAREFUL_COPY { ROWS_PER_CAREFUL_COPY } else { rows.len().div_ceil(2) };
            work.extend(rows.chunks(size.max(1)).rev().map(|piece| Part::new(piece.to_vec(), PINPOINTS)));
        }
        Ok(refused)
    }

    /// One COPY under a savepoint, which is released if the rows are to stay; after an error it is still there.
    async fn attempt(
        &self,
        format: Format,
        statement: &Statement,
        rows: Vec<Bytes>,
        stays: bool,
    ) -> Result<(), tokio_postgres::Error> {
        let mut copy = self.send_rows(format, statement, rows).await?;
        if stays {
            return self.end_copy(copy).await;
        }
        Blockers::of(self, PATIENCE_OF_ROWS).end_while(copy.as_mut().finish()).await.map(|_| ())
    }

    /// What was copied since the savepoint never was.
    async fn undo_attempt(&self) -> Result<(), tokio_postgres::Error> {
        self.client.batch_execute("ROLLBACK TO SAVEPOINT tally_rows; RELEASE SAVEPOINT tally_rows").await
    }
}

/// The bytes of chosen rows, in buffers of a good size.
fn gather(chunks: &[Chunk], rows: &[(usize, usize)]) -> Vec<Bytes> {
    let mut buffers = Vec::new();
    let mut buffer = BytesMut::new();
    for &(chunk, row) in rows {
        buffer.extend_from_slice(&chunks[chunk].row(row));
        if buffer.len() > BUFFER {
            buffers.push(buffer.split().freeze());
        }
    }
    buffers.push(buffer.freeze());
    buffers
}
