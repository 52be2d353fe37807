//! tally: event tables that keep their own exact, incremental rollups. This file is the table of contents;
//! `docs/architecture.md` shows the way of a row, `core/` holds the decisions.
#![deny(unsafe_code)]

use pgrx::prelude::*;

mod aggregate_state;
mod build;
mod catalog;
mod changes;
mod comparison;
mod error;
mod first_last;
mod forget;
mod jobs;
mod partition;
mod pg;
mod refresh;
mod rollup;
mod seal;
mod settings;
mod sketch;
mod tags;
mod topn;
mod version;
mod workers;

pgrx::pg_module_magic!();

// Every SQL object is written by hand in sql/*.sql, with its comment right below it; functions in Rust are
// `#[pg_extern(sql = false)]`. The files run in the order of `requires`.
extension_sql_file!("../sql/bootstrap.sql", bootstrap);
extension_sql_file!("../sql/jobs.sql", name = "jobs", requires = ["bootstrap"]);
extension_sql_file!("../sql/loader.sql", name = "loader", requires = ["bootstrap"]);
extension_sql_file!("../sql/loader_dump.sql", name = "loader_dump", requires = ["loader"]);
extension_sql_file!("../sql/partitions.sql", name = "partitions", requires = ["jobs"]);
extension_sql_file!("../sql/retention.sql", name = "retention", requires = ["conversions"]);
extension_sql_file!("../sql/conversions.sql", name = "conversions", requires = ["partitions"]);
// Its event triggers ask for partition sets.
extension_sql_file!("../sql/rollups.sql", name = "rollups", requires = ["retention"]);
extension_sql_file!("../sql/rollup_aggregates.sql", name = "rollup_aggregates", requires = ["bootstrap"]);
extension_sql_file!("../sql/aggregate_states.sql", name = "aggregate_states", requires = ["bootstrap"]);
extension_sql_file!("../sql/first_last.sql", name = "first_last", requires = ["bootstrap"]);
extension_sql_file!("../sql/status.sql", name = "status", requires = ["rollups", "jobs"]);
extension_sql_file!("../sql/metrics.sql", name = "metrics", requires = ["status", "retention"]);
extension_sql_file!("../sql/sketch_types.sql", name = "sketch_types", requires = ["bootstrap"]);
extension_sql_file!("../sql/sketch_functions.sql", name = "sketch_functions", requires = ["sketch_types"]);
extension_sql_file!("../sql/sketch_aggregates.sql", name = "sketch_aggregates", requires = ["sketch_functions"]);
extension_sql_file!("../sql/topn.sql", name = "topn", requires = ["bootstrap"]);

/// Called by PostgreSQL when the library is loaded.
#[pg_guard]
#[allow(unsafe_code, reason = "PostgreSQL finds this function by its symbol")]
pub extern "C-unwind" fn _PG_init() {
    if pg::is_binary_upgrade() {
        return;
    }
    settings::define();
    workers::register();
}
