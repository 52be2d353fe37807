//! The start of a lane: the first contact with both sides. What an outage breaks there is tried again until the time of the start is
//! over.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use tokio_postgres::Client;
use uuid::Uuid;

use super::anchors::AnchorCheck;
use super::lanes::Place;
use super::pair::Other;
use super::{Ended, FIRST_PAUSE, Lane, Lost, NEW_PARTS, Run, check_fields, compile, source_error, tell_text_columns};
use crate::batch::{Batch, Limits};
use crate::config::{Config, OnRecreated, Start as StartRule};
use crate::control::{Control, Member};
use crate::feed::Feed;
use crate::membership::Group;
use crate::program::Program;
use crate::sink::{Failure, Sink};
use crate::source::{Kind, Origin, Source, SourceError};
use crate::{Error, Result, offsets, postgres};

const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Tries again for as long as the other side cannot be reached and the time is not over. The attempt is told how much is left of it.
///
/// # Errors
/// What the last attempt said, or the first that no further one can mend.
pub(super) async fn until<T>(deadline: Instant, mut attempt: impl AsyncFnMut(Duration) -> Result<T>) -> Result<T> {
    let mut pause = FIRST_PAUSE;
    loop {
        match attempt(deadline.saturating_duration_since(Instant::now())).await {
            Err(Error::Unreachable(reason)) if Instant::now() + pause < deadline => {
                tracing::debug!("the start is tried again: {reason}");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            result => return result,
        }
    }
}

pub(super) async fn load(run: Run<'_>, source: Box<dyn Source>, place: Place) -> Result<Ended> {
    let config = run.config;
    let starts_by = Instant::now() + config.policy.timeouts.start.0;
    let (client, program) = until(starts_by, async |left| {
        let client = postgres::connect_within(&config.postgres, &config.pipeline, left).await?;
        offsets::check_format(&client).await?;
        let (_, program) = compile(&client, config).await?;
        Ok((client, program))
    })
    .await?;
    tell_text_columns(&program, &run.metrics, None);
    let program = Arc::new(program);
    let name = &run.origin.name;
    run.metrics.set_source(name);
    // What the client library holds, and the chunks on their way, are part of the limit too.
    let memory = config.memory_of_rows() / 2;
    // The records of a file have no broker time, and nobody sends them twice.
    let dedupe = config.policy.dedupe.as_ref().filter(|_| run.origin.kind == Kind::Kafka);
    let dedupe = dedupe.map(|dedupe| dedupe.of_one_in(place.lanes));
    let (budget, metrics) = (place.budget.clone(), run.metrics.clone());
    let proves_batches = config.policy.on.recreated == OnRecreated::NewIncarnation;
    let anchors = AnchorCheck::new(source.probe(), config.policy.timeouts.anchor_check.0, proves_batches);
    let mut feed = Feed::start(source, name, program.clone(), memory, budget, metrics, dedupe.as_ref());
    let result = load_from(&mut feed, run, client, program, place, starts_by, anchors).await;
    // In order, because the threads of the client library use OpenSSL, which the end of the process takes away from under them; and
    // because a consumer group would wait for a member that leaves without a word.
    feed.close().await;
    result
}

async fn load_from(
    feed: &mut Feed,
    run: Run<'_>,
    client: Client,
    program: Arc<Program>,
    place: Place,
    starts_by: Instant,
    anchors: AnchorCheck,
) -> Result<Ended> {
    let config = run.config;
    let timeout = config.policy.timeouts.start.0;
    let Origin { kind, name, .. } = &run.origin;
    let at_start = |error: tokio_postgres::Error| postgres::at_start("prepare the start", &error);
    let fields = within(timeout, feed, |source| Ok(source.fields())).await?;
    check_fields(&program, fields.as_deref())?;
    let cluster = match &run.origin.cluster {
        Some(cluster) => cluster.clone(),
        None => within(timeout, feed, |source| source.cluster()).await?,
    };
    let parts = within(timeout, feed, |source| source.parts()).await?;
    let member_id = Uuid::new_v4();
    let mut first = Some(client);
    let (source_id, control, sink) = until(starts_by, async |left| {
        let connect = async || postgres::connect_within(&config.postgres, &config.pipeline, left).await;
        let mut client = match first.take() {
            Some(client) => client,
            None => connect().await?,
        };
        let found = offsets::find_source(&client, &config.pipeline, *kind, &cluster, name).await.map_err(at_start)?;
        let source_id = match found {
            Some(source) => source,
            None => {
                let rule = if *kind == Kind::File { StartRule::Earliest } else { config.source.start };
                let starts = first_positions(feed, &parts, rule, timeout).await?;
                let source = offsets::create_source(&mut client, &config.pipeline, *kind, &cluster, name, &starts);
                source.await.map_err(at_start)?
            }
        };
        let member = Member {
            id: member_id,
            pipeline: config.pipeline.clone(),
            host: host_name(),
            source: source_id,
            settings: config.postgres.clone(),
        };
        let control = Control::start(member, connect().await?).await.map_err(at_start)?;
        let sink = new_sink(client, config, source_id).await.map_err(at_start)?;
        add_new_parts(feed, &sink, &client_parts(&control), &parts).await.map_err(|failure| match failure {
            Lost::Failure(Failure::Postgres(error)) => at_start(error),
            Lost::Source(error) => source_error(error),
            other => Error::Unreachable(other.to_string()),
        })?;
        Ok((source_id, control, sink))
    })
    .await?;
    let mut ends = BTreeMap::new();
    if run.until_end {
        for &part in &parts {
            ends.insert(part, within(timeout, feed, move |source| Ok(source.bounds(part)?.end)).await?);
        }
    }
    let mut changes = feed.join().await.map_err(source_error)?;
    let mut lane = Lane {
        config,
        origin: run.origin,
        fields,
        group: changes.is_some().then(Group::default),
        until_end: run.until_end,
        metrics: run.metrics.clone(),
        stop: run.stop,
        control,
        member: member_id,
        limits: Limits::new(&config.policy.batch),
        place,
        program,
        leaves_read_at: Instant::now(),
        leaves_next_at: Instant::now(),
        batch: Batch::default(),
        other: Other::new(),
        is_single: false,
        in_turn: 0,
        owned: BTreeMap::new(),
        stopped: BTreeMap::new(),
        ends,
        reached: BTreeSet::new(),
        recompiled: 0,
        careful: 0,
        last_commit: Duration::ZERO,
        new_parts_at: Instant::now() + NEW_PARTS,
        pause: FIRST_PAUSE,
        paused: false,
        started: false,
        starts_by,
        anchors,
    };
    let result = lane.keep_loading(feed, sink, source_id, &mut changes).await;
    run.metrics.postgres_up.store(false, Relaxed);
    result
}

fn client_parts(control: &Control) -> BTreeSet<i32> {
    control.ownership().owners.keys().copied().collect()
}

pub(super) async fn new_sink(client: Client, config: &Config, source: i32) -> Result<Sink, tokio_postgres::Error> {
    let (commit, max_value) = (config.policy.batch.synchronous_commit, config.policy.dead_letters.max_value.0);
    Sink::new(client, &config.postgres, &config.pipeline, source, commit, max_value).await
}

/// Asks the source until it answers or the time is over.
async fn within<T: Send + 'static>(
    timeout: Duration,
    feed: &Feed,
    action: impl Fn(&mut dyn Source) -> Result<T, SourceError> + Send + Clone + 'static,
) -> Result<T> {
    let start = Instant::now();
    loop {
        match feed.ask(action.clone()).await {
            Ok(answer) => return Ok(answer),
            Err(SourceError::Unreachable(message)) if start.elapsed() < timeout => {
                tracing::debug!("Kafka is not there yet: {message}");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            Err(error) => return Err(source_error(error)),
        }
    }
}

/// Positions of the very first start.
async fn first_positions(feed: &Feed, parts: &[i32], rule: StartRule, timeout: Duration) -> Result<Vec<(i32, i64)>> {
    let mut starts = Vec::with_capacity(parts.len());
    for &part in parts {
        let position = match rule {
            StartRule::Earliest => within(timeout, feed, move |source| Ok(source.bounds(part)?.start)).await?,
            StartRule::Latest => within(timeout, feed, move |source| Ok(source.bounds(part)?.end)).await?,
            StartRule::At(time) => within(timeout, feed, move |source| source.offset_at(part, time)).await?,
        };
        starts.push((part, position));
    }
    Ok(starts)
}

/// Parts that appeared after the first start begin at their first message: never at the end, that would lose some.
pub(super) async fn add_new_parts(
    feed: &Feed,
    sink: &Sink,
    known: &BTreeSet<i32>,
    parts: &[i32],
) -> Result<bool, Lost> {
    let mut starts = Vec::new();
    for &part in parts.iter().filter(|part| !known.contains(part)) {
        let bounds = feed.ask(move |source| source.bounds(part)).await.map_err(Lost::Source)?;
        starts.push((part, bounds.start));
    }
    if !starts.is_empty() {
        tracing::info!("the topic has {} new part(s)", starts.len());
        sink.insert_parts(&starts).await.map_err(Failure::from)?;
    }
    Ok(!starts.is_empty())
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").map_or_else(|_| String::new(), |name| name.trim().to_owned())
}
