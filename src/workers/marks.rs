//! Which jobs run now, in a file: the only witness after a crash of the server.
//!
//! A worker writes a mark before it starts a job and wipes it afterwards: two small writes into the page cache, no transaction and
//! no WAL, so a job that finds nothing to do leaves no trace. The file survives the death of every process of the server. When
//! the machine itself goes down it may be lost, and then the job was not the cause. It lies in `pg_stat_tmp`, which base backups leave out.

use std::fs::{File, OpenOptions};
use std::io::{Read, Result};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Relative to the data folder, where every process of the server works.
const PATH: &str = "pg_stat_tmp/tally_running";
/// Database, job: 4 bytes each.
const SIZE: usize = 8;

/// The slot that this process has marked.
static OWN: AtomicUsize = AtomicUsize::new(NONE);
const NONE: usize = usize::MAX;

/// A job that is being run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mark {
    pub database: u32,
    pub job: i32,
}

/// Marks the job of the slot as running.
pub(crate) fn set(slot: usize, mark: Mark) -> Result<()> {
    let mut bytes = [0; SIZE];
    bytes[..4].copy_from_slice(&mark.database.to_ne_bytes());
    bytes[4..].copy_from_slice(&mark.job.to_ne_bytes());
    OWN.store(slot, Ordering::Relaxed);
    write(slot, bytes)
}

/// The job of the slot runs no longer.
pub(crate) fn wipe(slot: usize) -> Result<()> {
    OWN.store(NONE, Ordering::Relaxed);
    write(slot, [0; SIZE])
}

/// Has the mark of this process wiped when it ends in order: whoever is told to stop, by a fast stop of the server too, did not crash it.
pub(crate) fn wipe_at_exit() {
    crate::pg::process::before_exit(|| {
        let slot = OWN.load(Ordering::Relaxed);
        if slot != NONE {
            // Nobody is left to be told of an error.
            let _ = wipe(slot);
        }
    });
}

fn write(slot: usize, bytes: [u8; SIZE]) -> Result<()> {
    OpenOptions::new().write(true).create(true).truncate(false).open(PATH)?.write_all_at(&bytes, (slot * SIZE) as u64)
}

/// The jobs that ran when the server went down; they are forgotten with this call.
pub(crate) fn take() -> Result<Vec<Mark>> {
    let mut bytes = Vec::new();
    match File::open(PATH) {
        Ok(mut file) => file.read_to_end(&mut bytes)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    OpenOptions::new().write(true).open(PATH)?.set_len(0)?;
    let marks = bytes.chunks_exact(SIZE).map(|chunk| {
        let (database, job) = chunk.split_at(4);
        let four = |bytes: &[u8]| <[u8; 4]>::try_from(bytes).unwrap_or_default();
        Mark { database: u32::from_ne_bytes(four(database)), job: i32::from_ne_bytes(four(job)) }
    });
    Ok(marks.filter(|mark| mark.database != 0).collect())
}
