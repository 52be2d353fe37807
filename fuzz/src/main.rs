//! `tally-fuzz`: inputs for as long as asked, and the one that something is wrong with.

use clap::{Parser, ValueEnum};
use std::process::ExitCode;
use std::time::Instant;
use tally_fuzz::{Finding, Target, fuzz};

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
        let (start, inputs) = (Instant::now(), arguments.inputs / targets.len() as u64);
        let done = fuzz(*target, seed, inputs, |so_far| {
            if so_far.inputs.is_multiple_of(PROGRESS) {
                eprintln!("{target:?}: {} of {inputs}, {} outcomes", so_far.inputs, so_far.outcomes);
            }
        });
        match done {
            Ok(summary) => println!(
                "{target:?}: {inputs} inputs in {:.0} s, {} of them values, {} outcomes, the slowest took {:.1} ms; no finding",
                start.elapsed().as_secs_f64(),
                summary.accepted,
                summary.outcomes,
                summary.slowest.as_secs_f64() * 1e3
            ),
            Err(Finding { target, input, other }) => {
                let name = target.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
                println!("an input went wrong; once more:");
                println!("  tally-fuzz --target {name} --input {} --other {}", hex::encode(input), hex::encode(other));
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
