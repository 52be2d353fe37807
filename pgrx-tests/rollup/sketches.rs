//! The parameters of a rollup's sketches are those of the settings when it was made, whatever the settings are later.

use postgres::Client;
use tally_server_tests::cluster;

use super::{create, insert, session};
use crate::oracle::{assert_refused, number, text};
use crate::refresh::pause_jobs;

/// Everything whose parameters settings give where the call does not.
const SKETCHES: &str = "SELECT tenant, tally.distinct_count(amount) AS amounts, tally.hll_agg(amount) AS sketch, \
    tally.hll_agg(amount, 12) AS finer, tally.hll_agg(amount, 10, 6, -1, 0) AS own, \
    tally.hll_add_agg(tally.hll_hash_integer(amount)) AS hashes, tally.topn_agg(note) AS notes, tally.topn_agg(note, 50) AS few \
    FROM events GROUP BY tenant";

/// The union of sketches, and sketches of keys.
const ABOVE: &str =
    "SELECT tenant IS NULL AS is_nobody, tally.hll_union_agg(sketch) AS sketch, tally.distinct_count(tenant) AS tenants
    FROM sketches GROUP BY 1";

const OTHER_SETTINGS: &str = "
    SET tally.hll_default_log2m = 14; SET tally.hll_default_regwidth = 6; SET tally.hll_default_expthresh = 0;
    SET tally.hll_default_sparseon = 0; SET tally.topn_counters = 3;";

/// log2m, register width, threshold and counters of all sketches of a rollup.
fn parameters(session: &mut Client, rollup: &str) -> String {
    let of = |column: &str| {
        format!(
            "concat_ws('/', tally.hll_log2m({column}), tally.hll_regwidth({column}), (tally.hll_expthresh({column})).specified, tally.hll_sparseon({column}))"
        )
    };
    let all = ["sketch", "finer", "own", "hashes"].map(of).join(", ");
    let counters = "tally.topn_counters(notes), tally.topn_counters(few)";
    text(
        session,
        &format!(
            "SELECT string_agg(DISTINCT concat_ws(' ', {all}, {counters}), '; ') FROM {rollup} WHERE tenant IS NOT NULL"
        ),
    )
    .unwrap()
}

#[test]
fn settings_that_change_leave_the_sketches_of_a_rollup_alone() {
    let database = cluster::database();
    let mut session = session(&database);
    create(&mut session, "sketches", SKETCHES);
    create(&mut session, "above", ABOVE);
    pause_jobs(&mut session);
    let made = parameters(&mut session, "sketches");
    session.batch_execute(OTHER_SETTINGS).unwrap();
    for round in 0..2 {
        insert(&mut session);
        session
            .batch_execute(
                "UPDATE events SET amount = amount + 100 WHERE amount % 5 = 0; DELETE FROM events WHERE amount = 7",
            )
            .unwrap();
        for _ in 0..2 {
            // First with rows that no refresh has counted.
            assert_eq!(parameters(&mut session, "sketches"), made, "{round}");
            assert_eq!(number(&mut session, "SELECT sum(DISTINCT tally.hll_log2m(sketch)) FROM above"), 11);
            session.batch_execute("CALL tally.refresh('sketches')").unwrap();
        }
        for rollup in ["sketches", "above"] {
            assert_eq!(number(&mut session, &format!("SELECT count(*) FROM tally.verify('{rollup}')")), 0);
        }
        // Whatever is added later is as the rest.
        session.batch_execute("SELECT tally.drop_rollup('above')").unwrap();
        let add = format!("SELECT tally.add_aggregate('sketches', 'added_{round}', 'tally.hll_agg(amount)')");
        session.batch_execute(&add).unwrap();
        let added = format!("SELECT bool_and(added_{round} OPERATOR(tally.=) sketch) FROM sketches");
        assert_eq!(session.query_one(&added, &[]).unwrap().get::<_, Option<bool>>(0), Some(true));
        create(&mut session, "above", ABOVE);
        pause_jobs(&mut session);
    }
    // A new rollup has the new ones.
    create(&mut session, "other", SKETCHES);
    let other = parameters(&mut session, "other");
    assert_eq!(made, "11/5/-1/1 12/5/-1/1 10/6/-1/0 11/5/-1/1 1000 50");
    assert_eq!(other, "14/6/0/0 12/6/0/0 10/6/-1/0 14/6/0/0 3 50");
}

#[test]
fn sketches_of_rows_that_have_left_go_on_after_a_change() {
    let database = cluster::database();
    let mut session = session(&database);
    create(&mut session, "sketches", SKETCHES);
    pause_jobs(&mut session);
    session.batch_execute("CALL tally.refresh('sketches'); ALTER TABLE events DETACH PARTITION day_1").unwrap();
    let made = parameters(&mut session, "sketches");
    session.batch_execute(OTHER_SETTINGS).unwrap();
    session.batch_execute("SELECT tally.add_aggregate('sketches', 'n', 'count(*)')").unwrap();
    session.batch_execute("INSERT INTO events VALUES ('2024-01-02 02:00Z', 1, 77, 'y')").unwrap();
    session.batch_execute("CALL tally.refresh('sketches')").unwrap();
    assert_eq!(parameters(&mut session, "sketches"), made);
}

#[test]
fn parameters_that_no_sketch_can_have_are_refused_at_once() {
    let database = cluster::database();
    let mut session = session(&database);
    let mut refused = |call: &str, sqlstate, message| {
        let statement = format!("SELECT tally.create_rollup('r', 'SELECT tenant, {call} AS x FROM events GROUP BY 1')");
        assert_refused(&mut session, &statement, sqlstate, message, "");
    };
    refused("tally.hll_agg(amount, 18)", "22023", "log2m modifier must be between 0 and 17");
    refused("tally.hll_agg(amount, 11, 9, -1, 1)", "22023", "regwidth modifier must be between 0 and 7");
    refused("tally.hll_agg(amount, 11, 5, 3, 1)", "22023", "expthresh modifier must be power of 2");
    refused("tally.topn_agg(note, 0)", "22023", "counters");
    refused("tally.hll_agg(amount, tenant)", "0A000", "the size of a sketch must be a literal");
    refused("tally.hll_agg(amount, 11, 5, -1, tenant)", "0A000", "the size of a sketch must be a literal");
}
