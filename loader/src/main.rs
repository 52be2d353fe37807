//! Arguments and exit code only; everything else is in the library, where tests reach it.

use std::process::ExitCode;

use clap::Parser;
use tally_loader::arguments::{Arguments, Command};
use tally_loader::{check, files, generate, init, logging, manual, replay, run};

fn main() -> ExitCode {
    let arguments = Arguments::parse(); // a wrong command line leaves with 2
    logging::start(arguments.verbose, arguments.log_format);
    let result = match arguments.command {
        Command::Init(arguments) => init::run(arguments),
        Command::Check(arguments) => check::run(arguments),
        Command::Run(arguments) => run::run(arguments),
        Command::Files(arguments) => files::run(arguments),
        Command::ReplayDeadLetters(arguments) => replay::run(arguments),
        Command::Generate(arguments) => generate::run(*arguments),
        Command::Completions(arguments) => manual::completions(arguments),
        Command::Manual(arguments) => manual::run(arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            if let Some(hint) = error.hint() {
                tracing::error!("hint: {hint}");
            }
            error.exit_code()
        }
    }
}
