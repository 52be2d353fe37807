//! Polls, decodes, copies, commits; backs off, gives up parts, stops. One lane: two data connections that alternate (`pair`), with
//! all parts that this loader owns.
//!
//! After any failure that leaves the position in doubt the way is the same: claim the parts again and go on from what the
//! claim returns. A commit whose answer got lost has either moved the position or not; the claim knows which.

mod anchors;
mod batches;
mod claims;
mod group;
pub mod lanes;
mod order;
mod pair;
mod start;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use tokio_postgres::Client;
use uuid::Uuid;

use self::anchors::AnchorCheck;
use self::group::{Changes, next_change, overdue_change};
use self::lanes::Place;
use self::pair::{Finished, Other};
use crate::batch::{Batch, Limits, Owned};
use crate::catalog::{CatalogError, Table};
use crate::config::{Config, OnRecreated, Start as StartRule};
use crate::control::{Control, Member, Ownership};
use crate::feed::{Event, Feed};
use crate::membership::{self, Group};
use crate::metrics::Metrics;
use crate::offsets::{self, Claim};
use crate::postgres::{self, Verdict};
use crate::program::Program;
use crate::sink::{Failure, Sink};
use crate::source::{Finding, Kind, Origin, Rebalance, Source, SourceError};
use crate::stop::Stop;
use crate::{Error, Result, catalog, csv};

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

async fn load(run: Run<'_>, source: Box<dyn Source>, place: Place) -> Result<Ended> {
    let config = run.config;
    let starts_by = Instant::now() + config.policy.timeouts.start.0;
    let (client, program) = start::until(starts_by, async |left| {
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
    let (source_id, control, sink) = start::until(starts_by, async |left| {
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

async fn new_sink(client: Client, config: &Config, source: i32) -> Result<Sink, tokio_postgres::Error> {
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
async fn add_new_parts(feed: &Feed, sink: &Sink, known: &BTreeSet<i32>, parts: &[i32]) -> Result<bool, Lost> {
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

/// What ended a stretch of loading.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error(transparent)]
    Failure(#[from] Failure),
    #[error("{0}")]
    Source(SourceError),
    /// PostgreSQL takes no connections: it is down, starting, or out of reach.
    #[error("{0}")]
    Away(String),
    /// Parts are to be claimed again, with the same connection.
    #[error("{0}")]
    Rejoin(String),
    /// The same with another connection: this one may be in the middle of something.
    #[error("{0}")]
    Abandoned(String),
    /// The loader leaves.
    #[error(transparent)]
    Leave(#[from] Error),
}

impl Lost {
    /// The longest pause before another attempt.
    fn longest_pause(&self) -> Duration {
        if matches!(self, Self::Away(_)) { LONGEST_LOOK } else { LONGEST_PAUSE }
    }
}

/// What there is to do next.
enum Work {
    Change(Rebalance),
    Share(Ownership),
    Event(Event),
    Changed(Vec<(i32, Finding)>),
    Committed(Box<Finished>),
    Close,
}

struct Lane<'a> {
    config: &'a Config,
    /// With a consumer group, which then shares the parts.
    group: Option<Group>,
    origin: Origin,
    /// Names of the fields, when all messages have the same.
    fields: Option<Vec<String>>,
    until_end: bool,
    metrics: Arc<Metrics>,
    stop: Stop,
    control: Control,
    member: Uuid,
    limits: Limits,
    place: Place,
    program: Arc<Program>,
    leaves_read_at: Instant,
    leaves_next_at: Instant,
    batch: Batch,
    /// The second connection, perhaps with the batch before this one.
    other: Other,
    /// A second connection could not be opened, and that is logged.
    is_single: bool,
    /// So many batches commit before the next one is copied.
    in_turn: u32,
    /// Positions as they are once the batches before this one have committed.
    owned: BTreeMap<i32, Owned>,
    /// Parts that are stopped to protect data, with the reason.
    stopped: BTreeMap<i32, String>,
    /// With `until_end`: the end of each part of the topic at the start.
    ends: BTreeMap<i32, i64>,
    /// Parts whose end has been seen since they were assigned.
    reached: BTreeSet<i32>,
    /// Programs compiled since the last commit.
    recompiled: u32,
    /// Batches that are copied in small pieces, because PostgreSQL refused rows lately.
    careful: u32,
    last_commit: Duration,
    new_parts_at: Instant,
    pause: Duration,
    /// The last attempt failed, and that is logged.
    paused: bool,
    /// The first claim has succeeded.
    started: bool,
    /// Until then outages end the start only when it has taken so long.
    starts_by: Instant,
    anchors: AnchorCheck,
}

impl Lane<'_> {
    /// Loads until there is a reason to leave, through all outages.
    async fn keep_loading(&mut self, feed: &mut Feed, sink: Sink, source: i32, changes: &mut Changes) -> Result<Ended> {
        let mut sink = Some(sink);
        loop {
            let mut connected = match sink.take() {
                Some(sink) if !sink.is_closed() => sink,
                _ => match self.reconnect(feed, source).await {
                    Ok(sink) => sink,
                    Err(Lost::Leave(error)) => return Err(error),
                    Err(lost) => {
                        self.back_off(&lost, feed, changes).await?;
                        if self.stop.is_signalled() {
                            return Ok(Ended::Done);
                        }
                        continue;
                    }
                },
            };
            let lost = match self.stretch(feed, &mut connected, changes).await {
                Ok(()) => {
                    self.leave(&connected).await;
                    return Ok(Ended::Done);
                }
                Err(lost) => lost,
            };
            self.batch = Batch::default();
            // In this order: the batch before may wait for rows of this one.
            let mut is_rolled_back = !matches!(lost, Lost::Abandoned(_)) && connected.rollback().await.is_ok();
            is_rolled_back = is_rolled_back && self.end_commit().await;
            if !is_rolled_back {
                self.other = Other::new();
            }
            match lost {
                Lost::Leave(error) => {
                    self.leave(&connected).await;
                    return Err(error);
                }
                Lost::Failure(Failure::Superseded) => {
                    tracing::info!("\"{}\" was created again, going over to its new incarnation", self.origin.name);
                    self.leave(&connected).await;
                    return Ok(Ended::Superseded);
                }
                Lost::Rejoin(reason) | Lost::Abandoned(reason) => tracing::info!("claiming the parts again: {reason}"),
                lost => {
                    if let Lost::Failure(Failure::Fenced(_)) = &lost {
                        self.metrics.fenced.fetch_add(1, Relaxed);
                    }
                    self.back_off(&lost, feed, changes).await?;
                }
            }
            if self.stop.is_signalled() {
                self.leave(&connected).await;
                return Ok(Ended::Done);
            }
            if is_rolled_back {
                sink = Some(connected);
            }
        }
    }

    /// Gives up the membership and all leases, if PostgreSQL lets us; else they expire.
    async fn leave(&mut self, sink: &Sink) {
        self.control.stop().await;
        let _ = sink.leave(self.member).await;
    }

    /// Waits before the next attempt; an error at the very start leaves instead, unless its time is not over and waiting may help.
    async fn back_off(&mut self, lost: &Lost, feed: &mut Feed, changes: &mut Changes) -> Result<()> {
        let waits = matches!(lost, Lost::Failure(Failure::Postgres(error))
            if !matches!(postgres::verdict(error), Verdict::Retry | Verdict::Fenced));
        if !self.started {
            let error = match lost {
                Lost::Source(error) => source_error(error.clone()),
                lost if waits => Error::unfit(format!("cannot load: {lost}")),
                lost => Error::Unreachable(format!("cannot start loading: {lost}")),
            };
            if !matches!(error, Error::Unreachable(_)) || Instant::now() + self.pause >= self.starts_by {
                return Err(error);
            }
        }
        if matches!(lost, Lost::Failure(Failure::Postgres(_)) | Lost::Away(_)) {
            self.metrics.postgres_up.store(false, Relaxed);
        }
        let pause = if waits { LONG_WAIT } else { self.pause.min(lost.longest_pause()) };
        if !std::mem::replace(&mut self.paused, true) || waits {
            let what = if self.started { "loading pauses, the batch will be read again" } else { "the start pauses" };
            tracing::warn!("{what}: {lost}");
        }
        // Half of the pause is random, so that many loaders do not come back in step.
        let jitter = 0.5 + 0.5 * (Uuid::new_v4().as_u128() as u32 as f64 / f64::from(u32::MAX));
        self.pause = (self.pause * 2).min(lost.longest_pause());
        let over = tokio::time::sleep(pause.mul_f64(jitter));
        tokio::pin!(over);
        loop {
            tokio::select! {
                () = &mut over => return Ok(()),
                () = self.stop.signalled(1) => return Ok(()),
                change = next_change(changes) => {
                    if let Err(lost) = self.yield_to_group(feed, change).await {
                        tracing::debug!("cannot answer the group: {lost}");
                    }
                }
            }
        }
    }

    /// A new connection; the table may have changed meanwhile.
    async fn reconnect(&mut self, feed: &Feed, source: i32) -> Result<Sink, Lost> {
        let client =
            postgres::connect(&self.config.postgres, &self.config.pipeline).await.map_err(|error| match error {
                error if !self.started && error.refusal().is_some() => {
                    Lost::Leave(postgres::unreachable(&self.config.postgres, &error))
                }
                postgres::ConnectError::Postgres(error) if postgres::is_away(&error) => {
                    Lost::Away(postgres::describe(&error))
                }
                postgres::ConnectError::Postgres(error) => Lost::Failure(error.into()),
                error => Lost::Source(SourceError::Refused(error.to_string())),
            })?;
        let read_at = Instant::now();
        match catalog::table(&client, &self.config.target.table).await {
            Ok(table) => self.set_table(feed, &table, read_at)?,
            Err(CatalogError::Postgres(error)) => return Err(Failure::from(error).into()),
            Err(error) => return Err(Lost::Leave(unfit(error))),
        }
        Ok(new_sink(client, self.config, source).await.map_err(Failure::from)?)
    }

    fn set_table(&mut self, feed: &Feed, table: &Table, read_at: Instant) -> Result<()> {
        let program = compile_table(table, self.config)?;
        check_fields(&program, self.fields.as_deref())?;
        self.set_program(feed, program, read_at);
        Ok(())
    }

    /// `read_at`: when its table or leaves began to be read.
    fn set_program(&mut self, feed: &Feed, program: Program, read_at: Instant) {
        tell_text_columns(&program, &self.metrics, Some(&self.program));
        self.program = Arc::new(program);
        self.leaves_read_at = read_at;
        feed.set_program(self.program.clone());
    }

    /// From a claim to the first failure. `Ok`: everything is committed and the loader leaves.
    async fn stretch(&mut self, feed: &mut Feed, sink: &mut Sink, changes: &mut Changes) -> Result<(), Lost> {
        let ownership = self.control.ownership();
        let mine: Vec<i32> = self.owned.keys().copied().collect();
        self.owned.clear();
        // A claim that failed half-way may have left us leases.
        let leased = ownership.owners.iter().filter(|(_, owner)| **owner == Some(self.member)).map(|(part, _)| *part);
        let mut wanted: BTreeSet<i32> = mine.into_iter().chain(leased).collect();
        if let Some(group) = &self.group {
            wanted = group.free(&ownership.owners, self.member).into_iter().collect();
        } else {
            wanted.extend(membership::plan(&ownership.owners, &ownership.members, self.member).claim);
        }
        wanted.retain(|part| !self.stopped.contains_key(part));
        self.acquire(feed, sink, wanted.into_iter().collect()).await?;
        if !self.started {
            self.started = true;
            let (parts, name, table) = (self.owned.len(), &self.origin.name, &self.program.table);
            let is_file = self.origin.kind == Kind::File;
            match &self.group {
                Some(_) => tracing::info!("loading what the consumer group gives of \"{name}\" into {table}"),
                None if is_file && parts == 0 && self.stopped.is_empty() => {
                    tracing::info!("another loader has \"{name}\"; waiting until it is done");
                }
                None => tracing::info!("loading {parts} part(s) of \"{name}\" into {table}"),
            }
        }
        loop {
            if self.stop.is_signalled() {
                self.close(feed, sink).await?;
                tracing::info!("stopped; everything that was read is committed");
                return Ok(());
            }
            if self.until_end && self.is_at_end() {
                self.close(feed, sink).await?;
                self.check_anchors(feed, sink).await?;
                self.fail_if_all_stopped(true)?;
                return Ok(());
            }
            self.fail_if_all_stopped(false)?;
            let deadline = self.batch.deadline(self.limits.linger(self.last_commit));
            let work = tokio::select! {
                biased;
                () = self.stop.signalled(1) => continue,
                change = next_change(changes) => Work::Change(change),
                ownership = self.control.changed() => Work::Share(ownership),
                changed = self.anchors.next(&self.owned) => Work::Changed(changed),
                finished = self.other.finished() => Work::Committed(finished?),
                // While more is there, the batch grows: its limits close it.
                event = feed.next() => {
                    Work::Event(event.ok_or_else(|| Error::Bug("the threads of the source have ended".into()))?)
                }
                () = sleep_until(deadline) => Work::Close,
            };
            tokio::select! {
                done = self.work(feed, sink, work) => done?,
                change = overdue_change(changes) => {
                    self.yield_to_group(feed, change).await?;
                    return Err(Lost::Abandoned("PostgreSQL takes too long for the group".into()));
                }
            }
        }
    }

    async fn work(&mut self, feed: &mut Feed, sink: &mut Sink, work: Work) -> Result<(), Lost> {
        match work {
            Work::Change(change) => self.rebalance(feed, sink, change).await,
            Work::Share(ownership) => self.share(feed, sink, ownership).await,
            Work::Event(event) => self.handle(feed, sink, event).await,
            Work::Changed(parts) => self.leave_changed(feed, sink, parts).await,
            Work::Committed(finished) => self.conclude(feed, sink, finished).await,
            Work::Close => self.pass_on(feed, sink, false).await,
        }
    }

    async fn handle(&mut self, feed: &mut Feed, sink: &mut Sink, event: Event) -> Result<(), Lost> {
        match event {
            Event::Chunk(chunk) => {
                let chunk = if Arc::ptr_eq(&chunk.program, &self.program) {
                    chunk
                } else {
                    chunk.decode_again(self.program.clone(), &self.origin.name)
                };
                let chunk = self.with_fresh_leaves(feed, sink, chunk).await?;
                self.batch.push(chunk, Instant::now());
                if self.batch.should_close(&self.limits, Instant::now()) {
                    self.pass_on(feed, sink, true).await?;
                } else if self.batch.should_copy(self.careful > 0) {
                    self.copy(feed, sink).await?;
                }
            }
            Event::EndOfPart { part, position, .. } => {
                // A broker that throttles may say "nothing more" too early; it has said where the end is at the start. Of a file
                // nobody knows before.
                let is_file = self.origin.kind == Kind::File;
                if is_file || self.ends.get(&part).is_none_or(|end| position >= *end) {
                    self.reached.insert(part);
                }
                self.batch.end_of_part(part, position, &self.owned, Instant::now());
            }
            Event::OutOfRange { part, .. } => {
                self.close(feed, sink).await?;
                return Err(Lost::Rejoin(format!("part {part} has no record at its position")));
            }
            Event::Changed { part, finding, .. } => self.leave_changed(feed, sink, vec![(part, finding)]).await?,
            Event::Stop { part, reason, .. } => {
                self.close(feed, sink).await?;
                let owned = self.owned[&part];
                let claim = Claim { part, next: owned.next, epoch: owned.epoch, anchor: None };
                self.stop_part(sink, &claim, reason).await?;
            }
        }
        Ok(())
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_server_is_looked_at_more_often_than_one_that_refuses() {
        assert!(Lost::Away("starting".into()).longest_pause() <= Duration::from_millis(200));
        assert_eq!(Lost::Rejoin("a reason".into()).longest_pause(), LONGEST_PAUSE);
        assert_eq!(Lost::Source(SourceError::Unreachable("away".into())).longest_pause(), LONGEST_PAUSE);
    }

    /// A socket that nobody listens at, and nothing that a server said.
    #[tokio::test]
    async fn a_server_that_is_not_there_is_away() {
        let folder = tempfile::tempdir().unwrap();
        let host = folder.path().to_str().unwrap();
        let failed = tokio_postgres::Config::new().host(host).user("u").connect(tokio_postgres::NoTls).await;
        assert!(postgres::is_away(&failed.err().unwrap()));
    }
}
