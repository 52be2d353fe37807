//! Polls, decodes, copies, commits; backs off, gives up parts, stops. One lane: two data connections that alternate (`pair`), with
//! all parts that this loader owns.
//!
//! After any failure that leaves the position in doubt the way is the same: claim the parts again and go on from what the
//! claim returns. A commit whose answer got lost has either moved the position or not; the claim knows which.

mod anchors;
mod batches;
mod claims;
mod group;
mod lane;
pub mod lanes;
mod order;
mod pair;
mod start;

use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Client;

use self::lane::{Lane, Lost};
use crate::catalog::{CatalogError, Table};
use crate::config::Config;
use crate::metrics::Metrics;
use crate::program::Program;
use crate::source::{Origin, Source, SourceError};
use crate::stop::Stop;
use crate::{Error, Result, catalog, csv, postgres};

/// Pauses between attempts after an outage.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// The same while PostgreSQL takes no connections: to look costs next to nothing, and rows wait.
const LONGEST_LOOK: Duration = Duration::from_millis(200);
/// The pause when a person has to repair something.
const LONG_WAIT: Duration = Duration::from_secs(30);
/// How often new parts of the topic are looked for.
const NEW_PARTS: Duration = Duration::from_secs(60);

/// Everything a run needs.
#[derive(Clone, Debug)]
pub struct Run<'a> {
    pub config: &'a Config,
    pub origin: Origin,
    /// Stop at the end that each part had at the start.
    pub until_end: bool,
    pub metrics: Arc<Metrics>,
    pub stop: Stop,
}

/// Reads the target and compiles the program.
pub async fn compile(client: &Client, config: &Config) -> Result<(Table, Program)> {
    let table = catalog::table(client, &config.target.table).await.map_err(unfit)?;
    let program = compile_table(&table, config)?;
    Ok((table, program))
}

/// The program for a table as it was read.
pub fn compile_table(table: &Table, config: &Config) -> Result<Program> {
    let policy = &config.policy;
    Program::compile(table, &config.target, policy.on.tombstone, policy.dead_letters.max_value.0)
}

/// Whether each column finds its field, where all messages have the same fields.
pub(crate) fn check_fields(program: &Program, fields: Option<&[String]>) -> Result<()> {
    fields.map_or(Ok(()), |names| csv::check_names(program, names))
}

/// Says which columns make the whole COPY text, unless the former program had the same.
fn tell_text_columns(program: &Program, metrics: &Metrics, former: Option<&Program>) {
    let names = |program: &Program| program.text_columns().map(|column| column.name.clone()).collect::<Vec<_>>();
    let columns = names(program);
    if former.map(names).unwrap_or_default() != columns {
        match columns.is_empty() {
            true => tracing::info!("{} is loaded by binary COPY again", program.table),
            false => tracing::warn!(
                "{} is loaded by COPY in text format, which is slower, because of the types of: {}",
                program.table,
                columns.join(", ")
            ),
        }
    }
    metrics.set_text_columns(columns);
}

fn unfit(error: CatalogError) -> Error {
    match error {
        CatalogError::Postgres(error) => postgres::at_start("read the target", &error),
        CatalogError::Unfit(message, hint) => Error::Unfit { message, hint: hint.map(str::to_owned) },
    }
}

/// How the source's own errors end a start.
pub fn source_error(error: SourceError) -> Error {
    match error {
        SourceError::Unreachable(message) => Error::Unreachable(format!("cannot reach Kafka: {message}")),
        SourceError::Refused(message) => Error::Refused { message: format!("Kafka refuses: {message}"), hint: None },
        SourceError::Denied { message, hint } => Error::Refused { message, hint: Some(hint.to_owned()) },
        SourceError::NoTopic(message) => Error::unfit(message),
    }
}

/// Loads until stopped. The first contact with both sides must succeed within the start timeout; after that outages are
/// retried for ever.
pub async fn run(run: Run<'_>, source: Box<dyn Source>) -> Result<()> {
    let mut source = Some(source);
    run_lanes(run, || Ok(source.take().into_iter().collect())).await
}

/// How loading ends without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// All that was read is committed.
    Done,
    /// The topic was created again: there is a newer incarnation of the source.
    Superseded,
}

/// The same with a lane for each of these sources, which are the same topic. They are opened anew for each incarnation of it: clients
/// keep much in mind of a topic.
pub async fn run_lanes(run: Run<'_>, mut open: impl FnMut() -> Result<Vec<Box<dyn Source>>>) -> Result<()> {
    let mut stop = run.stop.clone();
    let timeout = run.config.policy.timeouts.stop.0;
    let forced = async {
        stop.signalled(1).await;
        tokio::select! {
            () = stop.signalled(2) => Error::Forced("stopped by a second signal; the open batch will be read again".into()),
            () = tokio::time::sleep(timeout) => {
                Error::Forced("the last batch did not commit within policy.timeouts.stop; it will be read again".into())
            }
        }
    };
    let loading = async {
        let mut is_first = true;
        loop {
            match lanes::load_all(run.clone(), open()?).await {
                Ok(Ended::Superseded) if !run.stop.is_signalled() => {}
                Ok(_) => return Ok(()),
                // It has loaded before: an outage of now is waited out.
                Err(Error::Unreachable(reason)) if !is_first && !run.stop.is_signalled() => {
                    tracing::warn!("trying on: {reason}");
                    tokio::time::sleep(LONGEST_PAUSE).await;
                }
                Err(error) => return Err(error),
            }
            is_first = false;
        }
    };
    tokio::select! {
        result = loading => result,
        error = forced => Err(error),
    }
}
