//! The loader against a real PostgreSQL, with a topic in memory. Each module is one promise:
//!
//! - `oracle`: binary COPY stores what text COPY stores
//! - `dedupe`: what a producer has sent twice is one row
//! - `fence`: who does not own a part cannot commit, and nobody waits for ever
//! - `faults`: the faults of other loaders, and what a person has to repair
//! - `incarnations`: a topic that was created again is another source
//! - `lanes`: several connections of one process
//! - `pair`: a batch is copied while the one before commits, and whatever happens to either
//! - `files`: files by position and content, through kills, growth and damage
//! - `formats`: what is in a file arrives as it is there
//! - `poison`: a bad message becomes a dead letter, and only that message
//! - `replay`: dead letters that became possible are rows once
//! - `restore`: dumps and base backups, from which the loader goes on
//! - `start`: outages before the first claim
//! - `state`: state tables with and without rights, `init`, `check`
//! - `generated`: a realistic topic becomes what its `truth.json` says
//! - `tls`: encryption, whom the loader trusts, how it logs in
//! - `text_format`: the same for tables with types that only PostgreSQL can read
//! - `pipeline`: outages, gaps, changed tables, several loaders: every message once

#[path = "../shared/certificates.rs"]
mod certificates;
mod dedupe;
mod faults;
mod fence;
mod files;
mod formats;
#[cfg(feature = "kafka")]
mod generated;
mod incarnations;
mod lanes;
mod loading;
mod oracle;
mod pair;
mod pipeline;
mod poison;
mod replay;
mod restore;
mod start;
mod state;
mod text_format;
mod tls;
