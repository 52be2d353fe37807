//! The subcommand `check`.

use crate::arguments::CheckArguments;
use crate::{Error, Result};

/// Runs the subcommand to its end.
pub fn run(_arguments: CheckArguments) -> Result<()> {
    Err(Error::unfit("\"tally-loader check\" is not built yet"))
}
