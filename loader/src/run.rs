//! The subcommand `run`.

use crate::arguments::RunArguments;
use crate::{Error, Result};

/// Runs the subcommand to its end.
pub fn run(_arguments: RunArguments) -> Result<()> {
    Err(Error::unfit("\"tally-loader run\" is not built yet"))
}
