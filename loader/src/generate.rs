//! The subcommand `generate`.

use crate::arguments::GenerateArguments;
use crate::{Error, Result};

/// Runs the subcommand to its end.
pub fn run(_arguments: GenerateArguments) -> Result<()> {
    Err(Error::unfit("\"tally-loader generate\" is not built yet"))
}
