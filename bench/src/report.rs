//! Samples, medians, and the table that is printed.

use std::fmt;
use std::process::Command;
use std::time::{Duration, Instant};

/// What a figure must reach, where a goal was set.
#[derive(Clone, Copy, Debug)]
pub enum Goal {
    /// Time of tally divided by time of the baseline, at most.
    TimesAtMost(f64),
    /// Time of the baseline divided by time of tally, at least.
    FasterAtLeast(f64),
    /// Nanoseconds per row above the baseline, at most.
    NanosecondsAbove { at_most: f64, rows: u64 },
    /// Rows per second, at least.
    RowsPerSecond { at_least: f64, rows: u64 },
    /// Time of tally in milliseconds, at most.
    MillisecondsAtMost(f64),
    /// Milliseconds above the baseline, at most.
    MillisecondsAbove(f64),
    /// Reported without a goal: time of tally in milliseconds.
    Milliseconds,
    /// Reported without a goal: time of tally divided by time of the baseline.
    Times,
    /// Reported without a goal: time of the baseline divided by time of tally.
    Faster,
    /// Reported without a goal: nanoseconds per row above the baseline.
    Above { rows: u64 },
}

/// The times of one contender, sorted.
#[derive(Clone, Debug)]
pub struct Samples(Vec<Duration>);

impl Samples {
    /// # Panics
    /// Without samples.
    pub fn new(mut times: Vec<Duration>) -> Self {
        assert!(!times.is_empty(), "a median needs a sample");
        times.sort();
        Samples(times)
    }

    /// Of an even number, the mean of the middle two.
    pub fn median(&self) -> Duration {
        let middle = self.0.len() / 2;
        if self.0.len() % 2 == 1 { self.0[middle] } else { (self.0[middle - 1] + self.0[middle]) / 2 }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The smallest of them that at least this share does not exceed, as a sample of its own: 0.99 of a few is the largest.
    pub fn quantile(&self, share: f64) -> Samples {
        let rank = (share * self.0.len() as f64).ceil() as usize;
        Samples(vec![self.0[rank.clamp(1, self.0.len()) - 1]])
    }
}

impl fmt::Display for Samples {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        let milliseconds = |time: Duration| {
            let time = time.as_secs_f64() * 1e3;
            match time {
                ..1.0 => format!("{time:.3}"),
                ..10.0 => format!("{time:.2}"),
                _ => format!("{time:.0}"),
            }
        };
        let (first, last) = (self.0[0], self.0[self.0.len() - 1]);
        write!(formatter, "{} ({}-{})", milliseconds(self.median()), milliseconds(first), milliseconds(last))
    }
}

#[derive(Debug)]
pub struct Report {
    rounds: u32,
    settings: String,
    lines: Vec<String>,
}

impl Report {
    pub fn new(rounds: u32, settings: &[(&str, &str)]) -> Self {
        let settings: Vec<String> = settings.iter().map(|(name, value)| format!("{name} = {value}")).collect();
        Report { rounds, settings: settings.join(", "), lines: Vec::new() }
    }

    /// Rounds that count.
    pub fn rounds(&self) -> u32 {
        self.rounds
    }

    /// Runs the contenders in turn, one round to warm up and then those that count. A contender is a name for the log and
    /// what `run` needs to know; `run` returns the time of the part that counts.
    pub fn interleave<T, const N: usize>(
        &self,
        contenders: [(&str, T); N],
        mut run: impl FnMut(&T) -> Duration,
    ) -> [Samples; N] {
        self.interleave_parts(contenders, |contender| [run(contender)]).map(|[samples]| samples)
    }

    /// The same where one run gives several figures.
    pub fn interleave_parts<T, const N: usize, const PARTS: usize>(
        &self,
        contenders: [(&str, T); N],
        run: impl FnMut(&T) -> [Duration; PARTS],
    ) -> [[Samples; PARTS]; N] {
        let all = self.interleave_all(&contenders, run);
        all.try_into().expect("there are as many samples as contenders")
    }

    /// The same for any number of contenders.
    pub fn interleave_all<T, const PARTS: usize>(
        &self,
        contenders: &[(&str, T)],
        mut run: impl FnMut(&T) -> [Duration; PARTS],
    ) -> Vec<[Samples; PARTS]> {
        let mut times: Vec<[Vec<Duration>; PARTS]> = vec![[const { Vec::new() }; PARTS]; contenders.len()];
        for round in 0..=self.rounds {
            for ((name, contender), times) in contenders.iter().zip(&mut times) {
                let figures = run(contender);
                eprintln!("bench:   round {round}: {name}: {figures:.3?}");
                if round > 0 {
                    times.iter_mut().zip(figures).for_each(|(times, figure)| times.push(figure));
                }
            }
        }
        times.into_iter().map(|parts| parts.map(Samples::new)).collect()
    }

    pub fn add(&mut self, what: &str, baseline: &Samples, tally: &Samples, goal: Goal) {
        let (base, ours) = (baseline.median().as_secs_f64(), tally.median().as_secs_f64());
        let verdict = |met: bool| if met { "met" } else { "**missed**" };
        let above = |rows: u64| (ours - base) * 1e9 / rows as f64;
        let (figure, goal, verdict) = match goal {
            Goal::TimesAtMost(limit) => {
                (format!("{:.2}x the time", ours / base), format!("<= {limit:.2}x"), verdict(ours / base <= limit))
            }
            Goal::FasterAtLeast(limit) => {
                (format!("{:.2}x as fast", base / ours), format!(">= {limit:.2}x"), verdict(base / ours >= limit))
            }
            Goal::NanosecondsAbove { at_most, rows } => {
                (format!("{:+.1} ns/row", above(rows)), format!("<= +{at_most} ns"), verdict(above(rows) <= at_most))
            }
            Goal::RowsPerSecond { at_least, rows } => {
                let speed = rows as f64 / ours;
                (format!("{speed:.0} rows/s"), format!(">= {at_least}"), verdict(speed >= at_least))
            }
            Goal::MillisecondsAtMost(limit) => {
                (format!("{:.2} ms", ours * 1e3), format!("<= {limit} ms"), verdict(ours * 1e3 <= limit))
            }
            Goal::MillisecondsAbove(limit) => {
                let above = (ours - base) * 1e3;
                (format!("{above:+.2} ms"), format!("<= +{limit} ms"), verdict(above <= limit))
            }
            Goal::Milliseconds => (format!("{:.2} ms", ours * 1e3), String::new(), ""),
            Goal::Times => (format!("{:.2}x the time", ours / base), String::new(), ""),
            Goal::Faster => (format!("{:.1}x as fast", base / ours), String::new(), ""),
            Goal::Above { rows } => (format!("{:+.1} ns/row", above(rows)), String::new(), ""),
        };
        self.add_line(format!("| {what} | {baseline} | {tally} | {figure} | {goal} | {verdict} |"));
    }

    /// Memory in bytes, and how much it may be.
    pub fn add_bytes(&mut self, what: &str, bytes: u64, at_most: u64) {
        let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let (found, limit) = (mebibytes(bytes), mebibytes(at_most));
        let verdict = if bytes <= at_most { "met" } else { "**missed**" };
        self.add_line(format!("| {what} | | | {found:.1} MiB | <= {limit:.0} MiB | {verdict} |"));
    }

    /// A time without anything to compare it with, in milliseconds at most.
    pub fn add_alone(&mut self, what: &str, tally: &Samples, at_most: f64) {
        let taken = tally.median().as_secs_f64() * 1e3;
        let verdict = if taken <= at_most { "met" } else { "**missed**" };
        self.add_line(format!("| {what} | | {tally} | {taken:.2} ms | <= {at_most} ms | {verdict} |"));
    }

    /// Something that is counted and not timed.
    pub fn add_count(&mut self, what: &str, baseline: &str, tally: &str) {
        self.add_line(format!("| {what} | {baseline} | {tally} | | | |"));
    }

    /// The same where a goal was set: of ours at most so many.
    pub fn add_count_at_most(&mut self, what: &str, baseline: &str, tally: &str, count: usize, at_most: usize) {
        let verdict = if count <= at_most { "met" } else { "**missed**" };
        self.add_line(format!("| {what} | {baseline} | {tally} | | <= {at_most} | {verdict} |"));
    }

    /// Something that cannot be measured here.
    pub fn skip(&mut self, what: &str, why: &str) {
        self.add_line(format!("| {what} | | | not measured: {why} | | |"));
    }

    fn add_line(&mut self, line: String) {
        eprintln!("bench: {line}");
        self.lines.push(line);
    }

    pub fn print(&self) {
        let commit = output("git", &["describe", "--always", "--dirty"]);
        let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model =
            cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map_or("", |it| it.1);
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let memory = memory.split_whitespace().nth(1).and_then(|kilobytes| kilobytes.parse::<u64>().ok()).unwrap_or(0);
        let pg_config = std::env::var("PG_CONFIG").unwrap_or("/usr/lib/postgresql/15/bin/pg_config".to_owned());

        println!("- Commit `{commit}`, {}, release build.", output(&pg_config, &["--version"]));
        println!("- {model}, {cores} cores, {} GB.", memory / 1_000_000);
        println!("- Settings: {}.", self.settings);
        println!("- {} rounds, contenders in turn; median (smallest-largest).\n", self.rounds);
        println!("| measure | baseline, ms | tally, ms | result | goal | |\n|---|---|---|---|---|---|");
        self.lines.iter().for_each(|line| println!("{line}"));
    }
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map_or_else(|_| "unknown".to_owned(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// How long `run` takes.
pub fn time(run: impl FnOnce()) -> Duration {
    let started = Instant::now();
    run();
    started.elapsed()
}
