//! The only code that reads or writes tally's own tables: one file per table below `catalog/`.

pub(crate) mod jobs;
