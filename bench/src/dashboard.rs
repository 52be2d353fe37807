//! What a rollup saves the reader: the queries of the dashboard from rollups, against the same from raw rows with the
//! indexes that a careful owner of the table would create. Raw counts distinct values exactly, a rollup estimates them.

use tally_server_tests::cluster::Cluster;

use crate::reference::{PER_5_MINUTES, PER_HOUR, create_events, fill_events};
use crate::report::{Goal, Report, time};

/// One question: over which time, from which rollup, of which tenant.
struct Question {
    name: &'static str,
    rollup: &'static str,
    window: &'static str,
    tenant: &'static str,
    per_hour: bool,
}

/// The 15 minutes before the current bucket, and that; the events end with the eighth day.
const LAST_15_MINUTES: &str = "BETWEEN '2025-01-08 23:40:00Z' AND '2025-01-08 23:59:59.999Z'";

const QUESTIONS: &[Question] = &[
    Question {
        name: "Q1: now, all tenants",
        rollup: "per_5_minutes",
        window: LAST_15_MINUTES,
        tenant: "",
        per_hour: false,
    },
    Question {
        name: "Q2: the week, all tenants",
        rollup: "per_hour",
        window: ">= '2025-01-01 00:00:00Z'",
        tenant: "",
        per_hour: false,
    },
    Question {
        name: "Q3: hourly trend, all tenants",
        rollup: "per_hour",
        window: ">= '2025-01-06 00:00:00Z'",
        tenant: "",
        per_hour: true,
    },
    Question {
        name: "Q4: now, one tenant",
        rollup: "per_5_minutes",
        window: LAST_15_MINUTES,
        tenant: "AND customer_id = 500",
        per_hour: false,
    },
];

pub fn measure(cluster: &Cluster, rows: u32, report: &mut Report) {
    let rows = rows * 2;
    let database = cluster.database();
    let mut session = database.connect();
    create_events(&mut session, 8);
    fill_events(&mut session, rows, 8);
    session
        .batch_execute("CREATE INDEX ON events (event_time); CREATE INDEX ON events (customer_id, event_time)")
        .unwrap();
    for (name, definition) in [("per_5_minutes", PER_5_MINUTES), ("per_hour", PER_HOUR)] {
        session.execute("SELECT tally.create_rollup($1, $2)", &[&name, &definition]).unwrap();
    }
    session.batch_execute("CALL tally.refresh('per_hour')").unwrap();
    for statement in ["VACUUM (FREEZE, ANALYZE)", "CHECKPOINT"] {
        session.batch_execute(statement).unwrap();
    }

    for question in QUESTIONS {
        let contenders = [("raw", from_raw(question)), ("rollup", from_rollup(question))];
        let [raw, rollup] = report.interleave(contenders, |query| time(|| session.batch_execute(query).unwrap()));
        report.add(&format!("{}; {rows} rows, raw against rollup", question.name), &raw, &rollup, Goal::Faster);
    }
}

fn from_raw(question: &Question) -> String {
    let Question { window, tenant, .. } = question;
    let (hour, group) = hour(question, "date_trunc('hour', event_time, 'UTC')");
    format!(
        "SELECT {hour} count(*), count(DISTINCT device_id), count(DISTINCT session_id)
         FROM events WHERE event_time {window} {tenant} {group}"
    )
}

fn from_rollup(question: &Question) -> String {
    let Question { rollup, window, tenant, .. } = question;
    let (hour, group) = hour(question, "bucket");
    format!(
        "SELECT {hour} sum(events), tally.hll_cardinality(tally.hll_union_agg(devices)),
                tally.hll_cardinality(tally.hll_union_agg(sessions))
         FROM {rollup} WHERE bucket {window} {tenant} {group}"
    )
}

/// What Q3 adds to the select list, and its grouping.
fn hour(question: &Question, expression: &str) -> (String, &'static str) {
    if question.per_hour { (format!("{expression},"), "GROUP BY 1 ORDER BY 1") } else { (String::new(), "") }
}
