//! What a user of tally can observe, tested over a connection to a real server that has the extension installed
//! (`make install`, then `cargo server`). One module per concept; the servers come from `cluster.rs`.

/// In every session, at every moment, under random histories.
mod concurrency;
/// Plain tables become partitioned ones.
mod conversion;
/// Equal after every crash of a session or of the server, and what was committed is still there.
mod crash;
/// Damaged sketches are refused or taken, and break nothing.
mod damaged;
/// The questions of the demonstration are right where such queries are often wrong.
mod demo;
/// The documents are true: their SQL runs as written and prints what they say.
mod documentation;
/// The first and the last value of a group, for every type, every plan and in rollups.
mod first_last;
/// Where other systems lose rows, count them twice or stall.
mod lost_rows;
/// What every rollup test asks.
mod oracle;
/// Partition sets: what is made, under which locks, and what is refused.
mod partition;
/// docs/reference.md says what the comments in the database say.
mod reference;
/// Nobody waits for a refresh, and it reads only new rows.
mod refresh;
/// Old partitions leave without anybody waiting, and with no row uncounted.
mod retention;
/// What a rollup can be, and what happens when its tables change.
mod rollup;
/// The extension installs, and the throw-away servers themselves can be trusted.
mod servers;
/// Sketches have the bytes of their format for every plan, and count what they should.
mod sketch;
/// A hot standby is right in every snapshot, and counts on when it is promoted.
mod standby;
/// What a DBA sees is complete: comments, settings, privileges.
mod surface;
/// Top-N lists keep their bounds for every plan, and look like JSON to whoever wants that.
mod topn;
/// The traps of incremental counting, by number.
mod traps;
/// Jobs run by themselves, as the owner, through failures, crashes and changes of everything around them.
mod workers;
