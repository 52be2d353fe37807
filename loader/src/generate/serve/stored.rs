//! Batches that were made once and are kept, as a broker has them on its disk: they are served again without work.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// All that is kept of a topic. What does not fit is made again each time.
const LIMIT: usize = 512 << 20;

/// A part, and the number of a batch in it.
pub type Place = (u32, i64);

#[derive(Debug, Default)]
pub struct Stored {
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    batches: HashMap<Place, Arc<[u8]>>,
    bytes: usize,
}

impl Stored {
    /// The batch at a place; one that is not there is made and kept. `None`: nothing more is kept.
    pub fn get<E>(&self, place: Place, make: impl FnOnce() -> Result<Vec<u8>, E>) -> Result<Option<Arc<[u8]>>, E> {
        let lock = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let kept = lock();
            match kept.batches.get(&place) {
                Some(batch) => return Ok(Some(batch.clone())),
                None if kept.bytes >= LIMIT => return Ok(None),
                None => {}
            }
        }
        let batch: Arc<[u8]> = make()?.into();
        let mut kept = lock();
        if kept.batches.insert(place, batch.clone()).is_none() {
            kept.bytes += batch.len();
        }
        Ok(Some(batch))
    }
}
