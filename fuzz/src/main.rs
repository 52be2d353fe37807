//! `tally-fuzz`: inputs for as long as asked, and the one that something is wrong with.

use clap::{Parser, ValueEnum};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tally_fuzz::{Corpus, Fenced, Target};

/// A line of progress comes each time.
const PROGRESS: u64 = 1 << 22;

#[derive(Parser)]
#[command(about = "Feeds damaged sketches to everything of tally-core that reads bytes from outside")]
struct Arguments {
    /// Inputs in all, spread over the targets
    #[arg(long, default_value_t = 1_000_000)]
    inputs: u64,
    /// Equal seeds make equal inputs
    #[arg(long)]
    seed: Option<u64>,
    /// One target alone
    #[arg(long)]
    target: Option<Target>,
    /// Only this input, in hex, for the one target
    #[arg(long, requires = "target")]
    input: Option<String>,
    /// What it is united with, in hex
    #[arg(long, default_value = "")]
    other: String,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let (Some(input), Some(target)) = (&arguments.input, arguments.target) {
        let bytes = |text| hex::decode(text).expect("hexadecimal digits");
        target.run(&bytes(input), &bytes(&arguments.other));
        return ExitCode::SUCCESS;
    }
    let seed = arguments.seed.unwrap_or_else(rand::random);
    let targets = arguments.target.as_ref().map_or(Target::value_variants(), std::slice::from_ref);
    println!("seed {seed}");
    for target in targets {
        match fuzz(*target, seed, arguments.inputs / targets.len() as u64) {
            Ok(Finding::Nothing) => {}
            Ok(Finding::Panic) => return ExitCode::FAILURE,
            Err(error) => {
                eprintln!("tally-fuzz: no memory for inputs: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

enum Finding {
    Nothing,
    Panic,
}

fn fuzz(target: Target, seed: u64, inputs: u64) -> io::Result<Finding> {
    let mut corpus = Corpus::new(target, seed);
    let mut pages = Fenced::new(1 << 17)?;
    let (start, mut accepted, mut slowest) = (Instant::now(), 0u64, Duration::ZERO);
    for number in 1..=inputs {
        let (input, other) = corpus.draw();
        let input = pages.put(input);
        let began = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            accepted += u64::from(target.accepts(input));
            target.run(input, other)
        }));
        slowest = slowest.max(began.elapsed());
        let Ok(outcome) = outcome else {
            println!("input {number} of target {target:?} went wrong; once more:");
            let name = target.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
            println!("  tally-fuzz --target {name} --input {} --other {}", hex::encode(input), hex::encode(other));
            return Ok(Finding::Panic);
        };
        corpus.note(outcome);
        if number % PROGRESS == 0 {
            eprintln!("{target:?}: {number} of {inputs}, {} outcomes", corpus.outcomes());
        }
    }
    println!(
        "{target:?}: {inputs} inputs in {:.0} s, {accepted} of them values, {} outcomes, the slowest took {:.1} ms; no finding",
        start.elapsed().as_secs_f64(),
        corpus.outcomes(),
        slowest.as_secs_f64() * 1e3
    );
    Ok(Finding::Nothing)
}
