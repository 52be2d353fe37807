//! The plan is what the job does.

use super::preserved::rich_session;
use super::rollups::COUNTED;
use super::{convert, session_with};
use tally_server_tests::cluster;

/// Names, kinds and definitions of everything in the schema, but for the names of constraints' triggers, which have numbers.
const SHAPES: &str = "
    SELECT concat_ws(' ', c.relname, c.relkind, c.relispartition, pg_get_expr(c.relpartbound, c.oid), c.relacl, c.reloptions, c.relreplident) AS it
      FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace
    UNION ALL SELECT concat_ws(' ', conrelid::regclass, conname, pg_get_constraintdef(oid), convalidated, conislocal, coninhcount)
      FROM pg_constraint WHERE connamespace = 'public'::regnamespace
    UNION ALL SELECT pg_get_indexdef(indexrelid) || indisvalid FROM pg_index JOIN pg_class ON oid = indexrelid WHERE relnamespace = 'public'::regnamespace
    UNION ALL SELECT concat_ws(' ', pg_get_triggerdef(oid), tgenabled) FROM pg_trigger WHERE NOT tgisinternal
    UNION ALL SELECT concat_ws(' ', attrelid::regclass, attname, attnotnull, attidentity, attinhcount, attislocal, attacl) FROM pg_attribute
      JOIN pg_class ON oid = attrelid WHERE relnamespace = 'public'::regnamespace AND attnum > 0
    UNION ALL SELECT concat_ws(' ', kind, object::regclass) FROM tally.jobs
    UNION ALL SELECT concat_ws(' ', p) FROM tally.partition_policies p
    UNION ALL SELECT concat_ws(' ', rollup, source) FROM tally.rollups
    ORDER BY 1";

#[test]
fn the_plan_run_by_hand_ends_where_the_job_ends() {
    let cluster = cluster::Cluster::start(&[]);
    for (schema, arguments) in [
        (None, "'\"Strange Events\"', 'at', '1 day', widen_keys => true, retention => '90 days', premake => '3 days'"),
        (Some(COUNTED), "'events', 'at', '1 hour', time_zone => 'Europe/Berlin'"),
        (Some("CREATE TABLE t (d date, n int)"), "'t', 'd', '1 month'"),
        (Some("CREATE TABLE t (w timestamp, n int UNIQUE)"), "'t', 'w', '1 week', widen_keys => true"),
    ] {
        let mut ends = vec![];
        for by_hand in [false, true] {
            let database = cluster.database();
            let mut session = match schema {
                None => rich_session(&database),
                Some(schema) => session_with(&database, schema),
            };
            if by_hand {
                let plan =
                    session.query(&format!("SELECT sql, top_level_only FROM tally.plan_conversion({arguments})"), &[]);
                let plan = plan.unwrap();
                for line in &plan {
                    let (sql, alone): (&str, bool) = (line.get(0), line.get(1));
                    assert_eq!(alone, sql.contains("CONCURRENTLY"), "{sql}");
                }
                let lines: Vec<String> = plan.iter().map(|row| row.get(0)).collect();
                assert!(lines.iter().all(|line| line.ends_with(';')), "{lines:#?}");
                for line in lines {
                    session.batch_execute(&line).unwrap_or_else(|error| panic!("{line}: {error:?}"));
                }
            } else {
                convert(&mut session, arguments);
            }
            session.batch_execute("RESET search_path").unwrap();
            let rows = session.query(SHAPES, &[]).unwrap();
            ends.push(rows.iter().map(|row| row.get::<_, String>(0)).collect::<Vec<_>>());
            drop(session);
        }
        let (by_job, by_hand) = (&ends[0], &ends[1]);
        let only =
            |a: &Vec<String>, b: &Vec<String>| a.iter().filter(|line| !b.contains(line)).cloned().collect::<Vec<_>>();
        assert_eq!((only(by_job, by_hand), only(by_hand, by_job)), (vec![], vec![]), "{arguments}");
        assert!(by_job.len() > 5);
    }
}
