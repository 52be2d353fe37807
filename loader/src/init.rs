//! The subcommand `init`.

use crate::arguments::InitArguments;
use crate::{Error, Result};

/// Runs the subcommand to its end.
pub fn run(_arguments: InitArguments) -> Result<()> {
    Err(Error::unfit("\"tally-loader init\" is not built yet"))
}
