//! Several connections in one process. Each lane is a loader of its own to all others: a member with its leases, a client of the
//! source, a control and a data connection. So parts are shared among lanes as they are among processes, behind the same
//! fence; what belongs to the process (memory, limits of dead letters, metrics) is shared here.

use std::num::NonZero;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::start::{self, load};
use super::{Ended, Run};
use crate::chunk::Budget;
use crate::config::Config;
use crate::gauge::Gauge;
use crate::source::Source;
use crate::{Error, Result, postgres, stop};

/// Most lanes that nobody asked for.
const AUTOMATIC: usize = 4;
/// Before PostgreSQL 16, concurrent COPYs into one table waited for each other whenever it grew.
const SCALES_FROM: u32 = 160_000;

/// What the lanes of a process have in common, and which of them this is.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub number: usize,
    /// How many there are.
    pub lanes: usize,
    pub budget: Budget,
    gauge: Arc<Mutex<Gauge>>,
}

impl Place {
    pub(super) fn gauge(&self) -> MutexGuard<'_, Gauge> {
        self.gauge.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many lanes the configuration wants here: with `auto` one for two processors, on servers that gain by it.
///
/// # Errors
/// PostgreSQL has to be asked, and cannot be reached.
pub async fn number(config: &Config) -> Result<usize> {
    if let Some(number) = config.policy.batch.connections() {
        return Ok(number);
    }
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
    let number = (processors / 2).min(config.memory_of_rows() / config.memory_of_a_connection()).clamp(1, AUTOMATIC);
    if number == 1 {
        return Ok(1);
    }
    let version: i32 = start::until(Instant::now() + config.policy.timeouts.start.0, async |left| {
        let client = postgres::connect_within(&config.postgres, &config.pipeline, left).await?;
        let version = client.query_one("SELECT pg_catalog.current_setting('server_version_num')::int", &[]).await;
        Ok(version.map_err(|error| postgres::at_start("read the server's version", &error))?.get(0))
    })
    .await?;
    Ok(if version.unsigned_abs() < SCALES_FROM { 1 } else { number })
}

/// Loads from each source in a lane of its own. When one fails the others stop, too, but for parts that are stopped to protect
/// data: then the others go on.
pub(super) async fn load_all(run: Run<'_>, sources: Vec<Box<dyn Source>>) -> Result<Ended> {
    let (stopper, stop) = stop::channel();
    let mut outer = run.stop.clone();
    let gauge = Arc::new(Mutex::new(Gauge::new(&run.config.policy.dead_letters)));
    let (budget, number_of_lanes) = (Budget::default(), sources.len());
    let mut lanes: FuturesUnordered<_> = (0..)
        .zip(sources)
        .map(|(number, source)| {
            let place = Place { number, lanes: number_of_lanes, budget: budget.clone(), gauge: gauge.clone() };
            load(Run { stop: stop.clone(), ..run.clone() }, source, place)
        })
        .collect();
    let mut failure: Option<Error> = None;
    let mut is_stopping = false;
    let mut ended = Ended::Done;
    loop {
        tokio::select! {
            () = outer.signalled(1), if !is_stopping => {
                is_stopping = true;
                stopper.signal();
            }
            lane = lanes.next() => match lane {
                None if ended == Ended::Superseded => return Ok(ended),
                None => return failure.map_or(Ok(ended), Err),
                Some(Ok(Ended::Done)) => {}
                Some(Ok(Ended::Superseded)) => {
                    ended = Ended::Superseded;
                    stopper.signal();
                }
                Some(Err(error)) => {
                    if !matches!(error, Error::Protected { .. }) {
                        stopper.signal();
                    }
                    // What stopped the others says more than what is protected.
                    if failure.as_ref().is_none_or(|first| matches!(first, Error::Protected { .. })) {
                        failure = Some(error);
                    }
                }
            },
        }
    }
}
