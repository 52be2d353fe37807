//! The subcommand `files`: flat files into the table, one after the other, with the machinery of topics.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::arguments::FilesArguments;
use crate::config::Config;
use crate::feed::{Event, Feed, Start};
use crate::metrics::{self, Metrics};
use crate::pipeline::{self, Run};
use crate::progress::{Measure, Progress};
use crate::source::file::FileSource;
use crate::source::{Kind, Origin, Resume};
use crate::stop::{self, Stop};
use crate::{Error, Result, postgres, run};

/// Loads each file from its position to its end.
pub fn run(arguments: FilesArguments) -> Result<()> {
    let mut config = Config::load(&arguments.config)?;
    config.source.file.format = arguments.format.or(config.source.file.format);
    // A wrong name is better told now than after an hour.
    let sources = arguments.paths.iter().map(|path| FileSource::new(path, &config.source.file, config.memory.0));
    let sources = sources.collect::<Result<Vec<_>>>()?;
    run::runtime()?.block_on(async {
        if arguments.dry_run {
            for source in sources {
                print!("{}", dry_run(&config, source).await?);
            }
            return Ok(());
        }
        let stop = stop::on_signals().map_err(|error| Error::Bug(format!("cannot listen for signals: {error}")))?;
        let metrics = Arc::new(Metrics::default());
        if let Some(address) = config.metrics {
            metrics::serve(address, metrics.clone()).await?;
        }
        for source in sources {
            if stop.is_signalled() {
                break;
            }
            load(&config, source, metrics.clone(), stop.clone()).await?;
        }
        Ok(())
    })
}

/// Loads one file.
pub async fn load(config: &Config, source: FileSource, metrics: Arc<Metrics>, stop: Stop) -> Result<()> {
    let (rows, dead) = (metrics.rows.load(Relaxed), metrics.dead());
    metrics.begin_loading();
    let name = source.name().to_owned();
    let (read, total) = source.progress();
    let progress = Progress::start(metrics.clone(), Measure::Bytes { read, total });
    let origin = Origin { kind: Kind::File, name: name.clone(), cluster: None };
    let run = Run { config, origin, until_end: true, metrics: metrics.clone(), stop };
    let result = pipeline::run(run, Box::new(source)).await;
    drop(progress);
    let (rows, dead) = (metrics.rows.load(Relaxed) - rows, metrics.dead() - dead);
    tracing::info!("\"{name}\": {}", metrics.summary(rows, dead));
    result
}

/// Decodes a file from its start as for the table and writes nothing; returns what is to be said of it. What only PostgreSQL can
/// refuse is not found.
pub async fn dry_run(config: &Config, source: FileSource) -> Result<String> {
    let client = postgres::connect_within(&config.postgres, &config.pipeline, config.policy.timeouts.start.0).await?;
    let (_, program) = pipeline::compile(&client, config).await?;
    let name = source.name().to_owned();
    let mut feed = Feed::start(
        Box::new(source),
        &name,
        Arc::new(program.clone()),
        config.memory.0 / 2,
        Default::default(),
        Arc::default(),
        None,
    );
    let fields = feed.ask(|source| Ok(source.fields())).await.map_err(pipeline::source_error)?;
    pipeline::check_fields(&program, fields.as_deref())?;
    if let Resume::Refused(reason) =
        feed.ask(|source| source.resume(0, 0, None)).await.map_err(pipeline::source_error)?
    {
        return Err(Error::unfit(format!("\"{name}\": {reason}")));
    }
    feed.assign(vec![Start { part: 0, next: 0, anchor: None }]).await.map_err(pipeline::source_error)?;
    let mut rows = 0;
    // By reason and column: how many, where the first one is, and what is wrong with it.
    let mut dead: BTreeMap<(&str, Option<String>), (u64, i64, String)> = BTreeMap::new();
    let broken = loop {
        match feed.next().await {
            Some(Event::Chunk(chunk)) => {
                rows += chunk.starts.len();
                for (message, rejection) in &chunk.dead {
                    let offset = chunk.arena.get(*message as usize).offset;
                    let key = (rejection.reason.as_str(), rejection.column.clone());
                    dead.entry(key).or_insert_with(|| (0, offset, rejection.error.clone())).0 += 1;
                }
            }
            Some(Event::Stop { reason, .. }) => break Some(reason),
            Some(Event::EndOfPart { .. }) => break None,
            Some(Event::OutOfRange { .. } | Event::Changed { .. }) | None => {
                return Err(Error::Bug("the file was not read".into()));
            }
        }
    };
    let mut text = format!("\"{name}\": {rows} rows\n");
    for ((reason, column), (count, offset, error)) in dead {
        let column = column.map_or_else(String::new, |column| format!(" in column \"{column}\""));
        text.push_str(&format!("  {count} dead letters: {reason}{column}, the first at {offset}: {error}\n"));
    }
    if let Some(reason) = broken {
        text.push_str(&format!("  not read to its end: {reason}\n"));
    }
    Ok(text)
}
