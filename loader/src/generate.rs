//! The subcommand `generate`: a seeded clickstream, written to a topic, a file or standard output, or served by a Kafka broker
//! inside this process.

mod lines;
mod pace;
mod realistic;
mod records;
mod reference;
mod serve;
#[cfg(feature = "kafka")]
mod topic;
mod truth;

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;

use crate::arguments::{GenerateArguments, GenerateMode, GenerateTo};
use crate::{Error, Result};
use lines::Lines;
use pace::Pace;
use realistic::{Places, Realistic};
use records::Records;
use reference::{Clock, Reference};
use truth::Counter;

/// The span of realistic events, which always have a time, when the command line names none.
const REALISTIC_SPAN: Duration = Duration::from_secs(3_600);

/// Runs the subcommand to its end.
pub fn run(arguments: GenerateArguments) -> Result<()> {
    let now = Timestamp::now().as_millisecond();
    let records = records(&arguments, now)?;
    let pace = Pace::new(arguments.rate);
    if let Some(path) = &arguments.truth {
        write_truth(&records, &arguments, path)?;
    }
    if arguments.serve {
        return serve(&arguments, records, pace, now);
    }
    let progress = progress(records.len());
    match arguments.to {
        GenerateTo::Stdout => ignoring_a_closed_pipe(write_lines(&records, pace, &progress, io::stdout().lock())),
        GenerateTo::File => {
            let path = arguments.path.ok_or_else(|| Error::CommandLine("--to file needs --path".to_owned()))?;
            let unwritable = |error| Error::unfit(format!("cannot write \"{}\": {error}", path.display()));
            let file = File::create(&path).map_err(unwritable)?;
            write_lines(&records, pace, &progress, file).map_err(unwritable)
        }
        #[cfg(feature = "kafka")]
        GenerateTo::Topic => {
            if arguments.brokers.is_empty() {
                return Err(Error::CommandLine("--to topic needs --brokers".to_owned()));
            }
            let servers = arguments.brokers.join(",");
            topic::produce(&records, pace, &progress, &servers, &arguments.topic, arguments.partitions)
        }
        #[cfg(not(feature = "kafka"))]
        GenerateTo::Topic => Err(Error::unfit("this tally-loader was built without Kafka")),
    }?;
    progress.finish();
    Ok(())
}

/// The messages that the arguments ask for.
fn records(arguments: &GenerateArguments, now: i64) -> Result<Records> {
    if let Some(path) = &arguments.from {
        if !writes_to_a_topic(arguments) {
            return Err(Error::CommandLine("--from needs --serve or --to topic".to_owned()));
        }
        return Ok(Records::Lines(Lines::open(path)?));
    }
    let clock = |span: Duration| {
        let end = arguments.end_time.map_or(now, |end| end.as_millisecond());
        Clock::ending_at(end, u64::try_from(span.as_millis()).unwrap_or(u64::MAX), arguments.rows)
    };
    let (seed, len) = (arguments.seed, arguments.rows);
    match arguments.mode {
        GenerateMode::Reference if arguments.end_time.is_some() && arguments.span.is_none() => {
            Err(Error::CommandLine("--end-time needs --span, because these events have no time".to_owned()))
        }
        GenerateMode::Reference => {
            Ok(Records::Generated { events: Reference::new(seed, arguments.span.map(clock)), len })
        }
        GenerateMode::Realistic => {
            let clock = clock(arguments.span.unwrap_or(REALISTIC_SPAN));
            let has_tombstones = writes_to_a_topic(arguments);
            let events = Realistic::new(seed, clock, arguments.partitions, has_tombstones, &arguments.realistic)
                .map_err(Error::CommandLine)?;
            Ok(Records::Realistic { events: Box::new(events), len })
        }
    }
}

fn writes_to_a_topic(arguments: &GenerateArguments) -> bool {
    arguments.serve || arguments.to == GenerateTo::Topic
}

fn write_truth(records: &Records, arguments: &GenerateArguments, path: &Path) -> Result<()> {
    match records {
        Records::Lines(_) => Err(Error::CommandLine("--truth is for generated events".to_owned())),
        Records::Generated { events, len } => {
            let mut counter = Counter::default();
            for (event, _) in events.events(0, 1).zip(0..*len) {
                counter.add(&event);
            }
            truth::write(&counter.finish(arguments.seed), path)
        }
        Records::Realistic { events, len } => {
            let places = if writes_to_a_topic(arguments) { Places::Topic } else { Places::Lines };
            truth::write(&realistic::Truth::count(events, *len, places), path)
        }
    }
}

/// Serves the messages until the process is asked to stop.
fn serve(arguments: &GenerateArguments, records: Records, pace: Pace, now: i64) -> Result<()> {
    let (len, parts) = (records.len(), arguments.partitions);
    let broker = serve::Broker::new(arguments.topic.clone(), serve::Log::new(records, parts.into(), pace, now));
    let listening = broker.listen(arguments.listen)?;
    let address = listening.address();
    // The handlers are there before anybody can know the address, so that no signal is lost.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Error::Bug(format!("cannot start a runtime: {error}")))?;
    runtime.block_on(async {
        use tokio::signal::unix::{SignalKind, signal};
        let unhandled = |error: io::Error| Error::Bug(format!("cannot handle signals: {error}"));
        let mut terminate = signal(SignalKind::terminate()).map_err(unhandled)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(unhandled)?;
        if let Some(path) = &arguments.address_file {
            listening.write_address(path)?;
        }
        listening.start();
        tracing::info!("serving {len} messages of topic \"{}\" in {parts} partitions", arguments.topic);
        // Nobody may be there to read it.
        let _ = writeln!(io::stdout(), "{address}");
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(())
    })
}

/// Serves reference events, for tests.
#[cfg(all(test, feature = "kafka"))]
pub(crate) fn serve_reference(len: u64, parts: u32, rate: Option<u64>) -> std::net::SocketAddr {
    let records = Records::Generated { events: Reference::new(1, None), len };
    let log = serve::Log::new(records, parts, Pace::new(rate), Timestamp::now().as_millisecond());
    let broker = serve::Broker::new("clickstream".into(), log);
    let listening = broker.listen(([127, 0, 0, 1], 0).into()).expect("a free port");
    let address = listening.address();
    listening.start();
    address
}

fn write_lines(records: &Records, pace: Pace, progress: &ProgressBar, to: impl Write) -> io::Result<()> {
    let started = Instant::now();
    let mut to = BufWriter::with_capacity(1 << 16, to);
    let (mut index, mut outcome) = (0, Ok(()));
    records.visit(0, 1, &mut |message| {
        if pace.pauses_before(index) {
            outcome = to.flush();
            pace.pause(started, index);
        }
        outcome = std::mem::replace(&mut outcome, Ok(()))
            // Only topics have messages without a value; see `records`.
            .and_then(|()| to.write_all(message.unwrap_or_default()))
            .and_then(|()| to.write_all(b"\n"));
        index += 1;
        if index.is_multiple_of(4_096) {
            progress.set_position(index);
        }
        if outcome.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    outcome?;
    to.flush()?;
    progress.set_position(index);
    Ok(())
}

/// `tally-loader generate | head` has done its work when `head` has seen enough.
fn ignoring_a_closed_pipe(written: io::Result<()>) -> Result<()> {
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::unfit(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// A progress bar on stderr; nothing at all if that is no terminal.
fn progress(len: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} {human_pos} of {human_len} events, {per_sec}, {eta} left");
    ProgressBar::new(len).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generated(len: u64) -> Records {
        Records::Generated { events: Reference::new(1, None), len }
    }

    #[test]
    fn lines_are_the_messages_in_order() {
        let mut out = Vec::new();
        write_lines(&generated(1_000), Pace::new(None), &ProgressBar::hidden(), &mut out).unwrap();
        let lines: Vec<_> = String::from_utf8(out).unwrap().lines().map(String::from).collect();
        assert_eq!(lines.len(), 1_000);
        let mut messages = Vec::new();
        let mut visit = |message: Option<&[u8]>| {
            messages.push(String::from_utf8(message.unwrap().to_vec()).unwrap());
            ControlFlow::Continue(())
        };
        generated(1_000).visit(0, 1, &mut visit).unwrap();
        assert_eq!(lines, messages);
    }

    #[test]
    fn a_rate_is_kept() {
        let started = Instant::now();
        write_lines(&generated(200), Pace::new(Some(1_000)), &ProgressBar::hidden(), io::sink()).unwrap();
        // The last pause is before event 190.
        assert!(started.elapsed().as_millis() >= 190);
    }

    #[test]
    fn a_full_disk_is_an_error() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        assert!(write_lines(&generated(10_000), Pace::new(None), &ProgressBar::hidden(), full).is_err());
    }
}
