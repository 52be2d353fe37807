//! What more data connections bring on this machine, and where the processor time goes, which tells what they would bring on one with
//! more processors.

use std::fs;
use std::time::Duration;

use tally_server_tests::cluster::Cluster;

use super::process::{Broker, children_seconds, configure, load_topic, processor_seconds, run_loader};
use crate::report::{Goal, Report, Samples};

const CONNECTIONS: [u32; 3] = [1, 2, 4];

pub fn measure(cluster: &Cluster, rows: u32, report: &mut Report) {
    let folder = tempfile::tempdir().unwrap();
    let database = cluster.database();
    let (text, messages) = (folder.path().join("text"), folder.path().join("ndjson"));
    let narrow = &super::TABLES[0];
    let fill = format!(
        "SET timezone = 'UTC'; CREATE TABLE narrow ({}); CREATE TABLE filled (LIKE narrow);
         INSERT INTO filled SELECT {} FROM generate_series(1::bigint, {rows}) AS i;
         COPY filled TO '{}'; COPY (SELECT row_to_json(filled) FROM filled) TO '{}'; DROP TABLE filled",
        narrow.columns,
        narrow.rows,
        text.display(),
        messages.display()
    );
    database.connect().batch_execute(&fill).unwrap();
    let broker = Broker::serve(folder.path(), &["--from", messages.to_str().unwrap(), "--topic", "narrow"]);
    let postmaster = fs::read_to_string(cluster.folder().join("data/postmaster.pid")).unwrap();
    let postmaster: u32 = postmaster.lines().next().unwrap().trim().parse().unwrap();

    let mut pipelines = 0;
    let names: Vec<String> = CONNECTIONS.iter().map(|number| format!("{number} connection(s)")).collect();
    let mut contenders = vec![("psql", 0)];
    contenders.extend(names.iter().map(String::as_str).zip(CONNECTIONS));
    // The whole, and processor time of broker, loader (or psql) and server.
    let times = report.interleave_all(&contenders, |connections| {
        database.connect().batch_execute("TRUNCATE narrow; CHECKPOINT").unwrap();
        let seconds = || [processor_seconds(broker.pid()), children_seconds(), processor_seconds(postmaster)];
        let before = seconds();
        let taken = if *connections == 0 {
            super::psql(&database, &["--command", &format!("\\copy narrow FROM '{}'", text.display())])
        } else {
            pipelines += 1;
            let sections = format!(
                "memory = \"1 GiB\"\n[source]\nkafka = {{ brokers = [\"{}\"], topic = \"narrow\" }}\n\
                 [target]\ntable = \"public.narrow\"\n[policy]\nbatch = {{ connections = {connections} }}\n",
                broker.address
            );
            let config = configure(&database, folder.path(), &format!("connections-{pipelines}"), &sections);
            run_loader(load_topic(&config))
        };
        let row = database.connect().query_one("SELECT count(*) FROM narrow", &[]).unwrap();
        assert_eq!(row.get::<_, i64>(0), i64::from(rows), "every row is there");
        let after = seconds();
        let spent = |index: usize| Duration::from_secs_f64((after[index] - before[index]).max(0.0));
        [taken[0], spent(0), spent(1), spent(2)]
    });
    let copy = &times[0][0];
    for (connections, [taken, broker, loader, server]) in CONNECTIONS.iter().zip(&times[1..]) {
        let what = format!("{rows} JSON messages of 4 parts by {connections} connection(s), against `\\copy` of text");
        report.add(&what, copy, taken, if *connections == 4 { Goal::FasterAtLeast(2.5) } else { Goal::Faster });
        for (program, spent) in [("broker", broker), ("loader", loader), ("server", server)] {
            let spent: &Samples = spent;
            report.add(&format!("the same, processor time of the {program}"), spent, spent, Goal::Milliseconds);
        }
    }
}
