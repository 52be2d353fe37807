//! What a rollup can be, what is refused and how, and what happens to it when its tables or the database change.

mod alter;
mod build;
mod changes;
mod definition;
mod departures;
mod guards;
mod levels;
mod lifecycle;
mod overflow;
mod own_aggregates;
pub mod restore;
mod seal;
mod sketches;
mod subtract;
mod values;

use postgres::Client;
use tally_server_tests::cluster::Database;

const QUERY: &str = "SELECT tenant, count(*) AS n, sum(amount) AS total FROM events GROUP BY tenant";

/// A session on a partitioned table with rows and one rollup over it.
fn session(database: &Database) -> Client {
    let mut session = database.connect();
    session
        .batch_execute(
            "CREATE TABLE events (event_time timestamptz NOT NULL, tenant int, amount int, note text) \
               PARTITION BY RANGE (event_time); \
             CREATE TABLE day_1 PARTITION OF events FOR VALUES FROM ('2024-01-01Z') TO ('2024-01-02Z'); \
             CREATE TABLE day_2 PARTITION OF events FOR VALUES FROM ('2024-01-02Z') TO ('2024-01-03Z'); \
             INSERT INTO events SELECT '2024-01-01Z'::timestamptz + make_interval(hours => i), i % 3, i, 'x' \
               FROM generate_series(1, 40) AS i",
        )
        .unwrap();
    create(&mut session, "totals", QUERY);
    session
}

fn create(session: &mut Client, name: &str, query: &str) {
    session.execute("SELECT tally.create_rollup($1, $2)", &[&name, &query]).unwrap();
}

fn insert(session: &mut Client) {
    let rows = "('2024-01-01 01:00Z', 1, 10), ('2024-01-02 01:00Z', NULL, 20)";
    session.batch_execute(&format!("INSERT INTO events (event_time, tenant, amount) VALUES {rows}")).unwrap();
}
