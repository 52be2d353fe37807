//! `make accuracy`: how far the estimates of distinct-count sketches are off, over many simulated sets of 1 to 10^9 values.
//!
//! Registers are drawn (see `registers.rs`) and estimated by the code of the extension. What is compared: the root mean square of the
//! relative error with that of theory, sqrt((3 ln 2 - 1) / m), and the mean of the relative error with the same. Sketches with few values
//! are exact in the extension, because they keep the hashes; here all are registers.

mod chart;
mod registers;

use clap::Parser;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use tally_core::sketch::{Estimator, Params, estimate};

const LOG2M: std::ops::RangeInclusive<u32> = 8..=15;
const WORST_RMSE: f64 = 1.02;
const WORST_BIAS: f64 = 0.1;

#[derive(Debug, Parser)]
#[command(about = "Simulates the error of distinct-count sketches and prints a table in Markdown")]
struct Arguments {
    /// Simulated sets per point; of small sketches up to ten times as many
    #[arg(long, default_value_t = 40_000)]
    trials: u32,
    /// Equal seeds give equal figures
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A file for the picture
    #[arg(long)]
    svg: Option<PathBuf>,
}

/// Errors of both estimators for one size of sketch and of set, in units of the error of theory.
#[derive(Clone, Copy, Debug)]
struct Point {
    log2m: u32,
    values: u64,
    trials: u32,
    ertl: Errors,
    classic: Errors,
}

#[derive(Clone, Copy, Debug, Default)]
struct Errors {
    rmse: f64,
    bias: f64,
}

fn main() {
    let arguments = Arguments::parse();
    let points: Vec<(u32, u64)> =
        LOG2M.flat_map(|log2m| sizes(log2m).into_iter().map(move |values| (log2m, values))).collect();
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                // The largest sketches first: they take longest.
                while let Some((log2m, values)) = points.iter().rev().nth(next.fetch_add(1, Ordering::Relaxed)) {
                    let trials = arguments.trials * (1 << (15 - log2m)).min(10);
                    let point = simulate(*log2m, *values, trials, arguments.seed);
                    let mut done = done.lock().expect("no thread panics");
                    done.push(point);
                    eprintln!("accuracy: {} of {} points, log2m {log2m}, {values} values", done.len(), points.len());
                }
            });
        }
    });
    let mut done = done.into_inner().expect("no thread panics");
    done.sort_by_key(|point| (point.log2m, point.values));
    print(&done, arguments.seed);
    if let Some(path) = &arguments.svg {
        chart::write(path, &done).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
    }
}

/// 1, 2, 5, 10, .. 10^9, and closer where estimators change what they look at: around the number of registers.
fn sizes(log2m: u32) -> Vec<u64> {
    let decades = (0..9).flat_map(|power| [1, 2, 5].map(|digit| digit * 10u64.pow(power)));
    let around = [1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48, 64].map(|quarters| (quarters << log2m) / 4);
    let mut sizes: Vec<u64> = decades.chain([1_000_000_000]).chain(around).collect();
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

fn simulate(log2m: u32, values: u64, trials: u32, seed: u64) -> Point {
    let params = Params::new(i64::from(log2m), 5, 0, 0).expect("the parameters are allowed");
    let mut rng = SmallRng::seed_from_u64(seed ^ (u64::from(log2m) << 56) ^ (values << 8));
    let theory = ((3.0 * std::f64::consts::LN_2 - 1.0) / params.registers() as f64).sqrt();
    let mut registers = vec![0; params.registers()];
    let mut sums = [(0.0, 0.0); 2];
    for _ in 0..trials {
        let counts = registers::draw(1 << log2m, values, &mut rng);
        let mut place = registers.iter_mut();
        for (value, count) in counts.into_iter().enumerate() {
            place.by_ref().take(count as usize).for_each(|register| *register = value as u8);
        }
        for ((sum, squares), estimator) in sums.iter_mut().zip([Estimator::Ertl, Estimator::Classic]) {
            let estimate = estimate::of_registers(params, &registers, estimator).expect("there are enough registers");
            let error = (estimate / values as f64 - 1.0) / theory;
            *sum += error;
            *squares += error * error;
        }
    }
    let trials_in_all = f64::from(trials);
    let [ertl, classic] =
        sums.map(|(sum, squares)| Errors { rmse: (squares / trials_in_all).sqrt(), bias: sum / trials_in_all });
    Point { log2m, values, trials, ertl, classic }
}

fn print(points: &[Point], seed: u64) {
    let trials: u64 = points.iter().map(|point| u64::from(point.trials)).sum();
    println!("{} points, {trials} simulated sets, seed {seed}.\n", points.len());
    println!(
        "| log2m | ertl: worst RMSE / theory | at values | worst bias / sigma | at values | classic: worst RMSE / theory | worst bias / sigma |"
    );
    println!("|---|---|---|---|---|---|---|");
    let mut is_met = true;
    for log2m in LOG2M {
        let of_size = || points.iter().filter(|point| point.log2m == log2m);
        let worst = |value: fn(&Point) -> f64| {
            of_size().max_by(|a, b| value(a).abs().total_cmp(&value(b).abs())).expect("there are points")
        };
        let (rmse, bias) = (worst(|point| point.ertl.rmse), worst(|point| point.ertl.bias));
        is_met &= rmse.ertl.rmse <= WORST_RMSE && bias.ertl.bias.abs() <= WORST_BIAS;
        println!(
            "| {log2m} | {:.4} | {} | {:+.4} | {} | {:.3} | {:+.3} |",
            rmse.ertl.rmse,
            rmse.values,
            bias.ertl.bias,
            bias.values,
            worst(|point| point.classic.rmse).classic.rmse,
            worst(|point| point.classic.bias).classic.bias
        );
    }
    let verdict = if is_met { "met" } else { "**missed**" };
    println!("\nGoal for ertl: RMSE <= {WORST_RMSE} x theory, bias within {WORST_BIAS} sigma everywhere: {verdict}.");
}
