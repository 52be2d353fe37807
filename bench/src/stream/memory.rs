//! The memory of the loader with its default settings: while it loads a topic of 64 parts as fast as it can, and while the table is
//! locked by somebody for a minute and the topic has far more than fits.

use std::path::Path;
use std::thread;
use std::time::Duration;

use tally_server_tests::cluster::Cluster;

use super::process::{Broker, Running, configure, loader, progress, wait_until};
use crate::report::Report;

const PARTS: &str = "64";
const LIMIT: u64 = 128 << 20;
const STALL: Duration = Duration::from_secs(60);

pub fn measure(cluster: &Cluster, rows: u32, report: &mut Report) {
    let folder = tempfile::tempdir().unwrap();
    let rows = 4 * u64::from(rows);
    let broker = Broker::serve(folder.path(), &["--partitions", PARTS, "--rows", &rows.to_string()]);
    for (what, is_stalled) in [("as fast as it can", false), ("with the table locked for a minute", true)] {
        let peak = peak(cluster, folder.path(), &broker, rows, is_stalled);
        report.add_bytes(&format!("most memory of the loader, {rows} messages in {PARTS} parts, {what}"), peak, LIMIT);
    }
}

fn peak(cluster: &Cluster, folder: &Path, broker: &Broker, rows: u64, is_stalled: bool) -> u64 {
    let database = cluster.database();
    let mut session = database.connect();
    let table =
        "CREATE TABLE arrivals (customer_id bigint, event_type text, country text, browser text, device_id bigint,
                   session_id bigint); CHECKPOINT";
    session.batch_execute(table).unwrap();
    let sections = format!(
        "[source]\nkafka = {{ brokers = [\"{}\"], topic = \"clickstream\" }}\n[target]\ntable = \"public.arrivals\"\n",
        broker.address
    );
    let config = configure(&database, folder, "memory", &sections);
    let mut command = loader();
    command.arg("run").arg("--until-end").arg("--config").arg(&config);
    let running = Running::start(command, folder);
    if is_stalled {
        wait_until("rows come in", || progress(&mut session) > 0);
        let mut holder = database.connect();
        holder.batch_execute("BEGIN; LOCK TABLE arrivals IN SHARE MODE").unwrap();
        let before = progress(&mut session);
        thread::sleep(STALL);
        assert!(progress(&mut session) == before && before < rows.cast_signed(), "the loader waits for the table");
        holder.batch_execute("ROLLBACK").unwrap();
    }
    let peak = running.watch_memory();
    assert_eq!(progress(&mut session), rows.cast_signed(), "every message is loaded");
    peak
}
