//! The subcommand `replay-dead-letters`: messages that could not become rows are tried again with today's mapping. A letter is
//! marked in the transaction of its row, so that whatever is killed, each message becomes one row at most.

use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use tokio_postgres::{Client, Row};

use crate::arguments::ReplayArguments;
use crate::chunk::{Budget, Chunk};
use crate::config::Config;
use crate::csv::Csv;
use crate::decode::{Decoder, Rejection};
use crate::message::{Arena, Message};
use crate::offsets::Anchor;
use crate::postgres;
use crate::program::Program;
use crate::sink::dead_letters::{Key, Letter};
use crate::sink::{Checks, Failure, Sink};
use crate::source::{Kind, file};
use crate::stop::{self, Stop};
use crate::{Error, Result, offsets, pipeline, run};

/// Letters of one transaction.
const LETTERS: u64 = 5_000;

/// What a replay did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Letters that are settled now: their messages are rows, or are skipped by today's policy.
    pub replayed: u64,
    pub failed: u64,
    /// Only the beginning of their value was kept.
    pub cut: u64,
    pub purged: u64,
}

/// Tries all pending letters of the pipeline once.
pub fn run(arguments: ReplayArguments) -> Result<()> {
    let config = Config::load(&arguments.config)?;
    run::runtime()?.block_on(async {
        let stop = stop::on_signals().map_err(|error| Error::Bug(format!("cannot listen for signals: {error}")))?;
        let Summary { replayed, failed, cut, purged } = replay(&config, &arguments, stop).await?;
        let tried = if arguments.dry_run { "would become rows (dry run, nothing is changed)" } else { "replayed" };
        tracing::info!("{replayed} dead letters {tried}, {failed} failed again, {cut} cannot be: their value was cut");
        if arguments.purge_older_than.is_some() {
            tracing::info!("{purged} dead letters purged");
        }
        Ok(())
    })
}

/// The same without a command line. A stop ends it after the present transaction.
///
/// # Errors
/// PostgreSQL is not reachable, or table and configuration do not fit. What was committed before stays.
pub async fn replay(config: &Config, arguments: &ReplayArguments, stop: Stop) -> Result<Summary> {
    let client = postgres::connect_within(&config.postgres, &config.pipeline, config.policy.timeouts.start.0).await?;
    offsets::check_format(&client).await?;
    let program = Arc::new(pipeline::compile(&client, config).await?.1);
    let since = arguments.since.map(|time| time.to_string());
    let mut summary = Summary::default();
    let sources = sources(&client, config, since.as_deref()).await?;
    // A wrong name is better told before the first letter is touched.
    sources.iter().try_for_each(|source| source.check_fields(&program))?;
    let bar = ProgressBar::new(sources.iter().map(|source| source.pending as u64).sum());
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {human_pos}/{human_len} letters, {per_sec}, {eta} left")
    {
        bar.set_style(style);
    }
    let mut replay =
        Replay { config, arguments, program, since, left: arguments.limit.unwrap_or(u64::MAX), summary, bar };
    for source in sources {
        replay.source(&source, &stop).await?;
    }
    replay.bar.finish_and_clear();
    summary = replay.summary;
    if let Some(age) = arguments.purge_older_than.filter(|_| !arguments.dry_run && !stop.is_signalled()) {
        summary.purged = purge(&client, &config.pipeline, age).await?;
    }
    Ok(summary)
}

/// A source with pending letters.
struct Source {
    id: i32,
    name: String,
    pending: i64,
    /// How its records are to be read; as JSON without it.
    csv: Option<Arc<Csv>>,
}

impl Source {
    /// Whether each column finds its field.
    fn check_fields(&self, program: &Program) -> Result<()> {
        let names = self.csv.as_ref().map(|csv| &csv.names[..]);
        pipeline::check_fields(program, names).map_err(|error| match error {
            Error::Unfit { message, hint } => Error::Unfit { message: format!("\"{}\": {message}", self.name), hint },
            other => other,
        })
    }
}

async fn sources(client: &Client, config: &Config, since: Option<&str>) -> Result<Vec<Source>> {
    let rows = client
        .query(
            "SELECT s.source_id, s.name, d.pending, s.kind, o.next_offset, o.anchor_offset, o.anchor_time, o.anchor_hash
               FROM tally.loader_sources s
               JOIN (SELECT source_id, pg_catalog.count(*) AS pending FROM tally.dead_letters
                      WHERE replayed_at IS NULL AND ($2::text IS NULL OR noted_at >= $2::text::timestamptz)
                      GROUP BY source_id) AS d USING (source_id)
               LEFT JOIN tally.loader_offsets o ON s.kind = 'file' AND o.source_id = s.source_id
              WHERE s.pipeline = $1 ORDER BY 1",
            &[&config.pipeline, &since],
        )
        .await
        .map_err(failed)?;
    let source = |row: &Row| {
        let name: String = row.get(1);
        let csv = if row.get::<_, &str>(3) == Kind::File.as_str() {
            let anchor = row.get::<_, Option<i64>>(5).zip(row.get::<_, Option<i64>>(7));
            let anchor = anchor.map(|(offset, hash)| Anchor { offset, time: row.get(6), hash });
            let position = (row.get::<_, Option<i64>>(4).unwrap_or(0), anchor);
            file::kept_records(&name, &config.source.file, config.memory.0, position)?
        } else {
            None
        };
        Ok(Source { id: row.get(0), name, pending: row.get(2), csv })
    };
    rows.iter().map(source).collect()
}

async fn purge(client: &Client, pipeline: &str, age: Duration) -> Result<u64> {
    let purged = client
        .execute(
            "DELETE FROM tally.dead_letters d USING tally.loader_sources s
              WHERE s.source_id = d.source_id AND s.pipeline = $1
                AND d.noted_at < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $2)",
            &[&pipeline, &age.as_secs_f64()],
        )
        .await;
    purged.map_err(|error| {
        Error::unfit_hint(
            format!("cannot purge dead letters: {}", postgres::describe(&error)),
            "Purging needs DELETE on tally.dead_letters, which a loader does not have: run it as the owner of that table.",
        )
    })
}

fn failed(error: tokio_postgres::Error) -> Error {
    postgres::at_start("replay dead letters", &error)
}

struct Replay<'a> {
    config: &'a Config,
    arguments: &'a ReplayArguments,
    program: Arc<Program>,
    since: Option<String>,
    left: u64,
    summary: Summary,
    bar: ProgressBar,
}

impl Replay<'_> {
    async fn source(&mut self, source: &Source, stop: &Stop) -> Result<()> {
        let (config, policy) = (self.config, &self.config.policy);
        let client = postgres::connect_within(&config.postgres, &config.pipeline, policy.timeouts.start.0).await?;
        let (commit, max_value) = (policy.batch.synchronous_commit, policy.dead_letters.max_value.0);
        let sink = Sink::new(client, &config.postgres, &config.pipeline, source.id, commit, max_value).await;
        let mut sink = sink.map_err(failed)?;
        let mut after = (i32::MIN, i64::MIN);
        while self.left > 0 && !stop.is_signalled() {
            let limit = self.left.min(LETTERS) as i64;
            let keys = sink.pending_letters(after, self.since.as_deref(), limit).await.map_err(failed)?;
            let Some(last) = keys.last() else { break };
            after = *last;
            self.letters(&mut sink, source, &keys).await?;
            self.left -= keys.len() as u64;
            self.bar.inc(keys.len() as u64);
        }
        Ok(())
    }

    /// Tries letters until the transaction has committed, or cannot.
    async fn letters(&mut self, sink: &mut Sink, source: &Source, keys: &[Key]) -> Result<()> {
        let (mut checks, mut recompiled) = (Checks::default(), false);
        loop {
            let failure = match self.attempt(sink, source, keys, checks).await {
                Ok(done) => {
                    self.summary.replayed += done.replayed;
                    self.summary.failed += done.failed;
                    self.summary.cut += done.cut;
                    return Ok(());
                }
                Err(failure) => failure,
            };
            sink.rollback().await.map_err(failed)?;
            match failure {
                Failure::NoLeaf if !checks.leaves_are_fresh => checks.leaves_are_fresh = true,
                Failure::Deferred(_) if !checks.immediate => checks.immediate = true,
                Failure::TableChanged if !recompiled => recompiled = true,
                Failure::Postgres(error) => return Err(failed(error)),
                failure => return Err(Error::unfit(format!("cannot replay dead letters: {failure}"))),
            }
            let table = sink.table(&self.config.target.table).await.map_err(|error| Error::unfit(error.to_string()))?;
            self.program = Arc::new(pipeline::compile_table(&table, self.config)?);
            source.check_fields(&self.program)?;
        }
    }

    async fn attempt(
        &self,
        sink: &mut Sink,
        source: &Source,
        keys: &[Key],
        checks: Checks,
    ) -> Result<Summary, Failure> {
        let (letters, cut): (Vec<Letter>, Vec<Letter>) =
            sink.take_letters(keys, checks).await?.into_iter().partition(|letter| !letter.is_cut);
        let mut arena = Arena::default();
        if let Some(csv) = &source.csv {
            arena.set_csv(csv.clone());
        }
        for letter in &letters {
            arena.push(Message {
                part: letter.key.0,
                offset: letter.key.1,
                time: letter.time,
                key: letter.message_key.as_deref(),
                value: letter.value.as_deref(),
                headers: letter.headers.as_deref().map(str::as_bytes),
            });
        }
        let (program, budget) = (&self.program, Budget::default());
        let chunk = Chunk::decode(
            &mut Decoder::default(),
            program.clone(),
            &source.name,
            Arc::new(arena),
            0,
            Instant::now(),
            &budget,
        );
        let chunks = [chunk];
        let refused = sink.copy(program, &Default::default(), &chunks, 0, checks, u64::MAX).await?;
        let again: Vec<(usize, &Rejection)> = chunks[0]
            .dead
            .iter()
            .map(|(message, why)| (*message as usize, why))
            .chain(refused.iter().map(|refused| (refused.message as usize, &refused.rejection)))
            .collect();
        let mut settled = vec![true; letters.len()];
        again.iter().for_each(|(message, _)| settled[*message] = false);
        let keys = letters.iter().map(|letter| letter.key);
        let replayed: Vec<Key> = keys.zip(settled).filter(|(_, settled)| *settled).map(|(key, _)| key).collect();
        let failed: Vec<(Key, &Rejection)> = again.iter().map(|(message, why)| (letters[*message].key, *why)).collect();
        if self.arguments.dry_run {
            sink.check_rows(program).await?;
            sink.rollback().await?;
        } else {
            sink.settle_letters(program, &replayed, &failed).await?;
        }
        let (replayed, failed, cut) = (replayed.len() as u64, failed.len() as u64, cut.len() as u64);
        Ok(Summary { replayed, failed, cut, purged: 0 })
    }
}
