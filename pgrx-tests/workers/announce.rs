//! What others are told: NOTIFY when a verdict changes, and the text that Prometheus reads.

use super::*;
use postgres::fallible_iterator::FallibleIterator as _;
use std::collections::BTreeMap;

/// The next notice, which must come.
fn next_notice(listener: &mut Client) -> String {
    let mut notifications = listener.notifications();
    let notice = notifications.timeout_iter(DEADLINE).next().unwrap().expect("a notice before the deadline");
    assert_eq!(notice.channel(), "tally");
    notice.payload().to_owned()
}

fn notice(kind: &str, object: &str, old: &str, new: &str, reason: &str) -> String {
    format!(r#"{{"kind" : "{kind}", "object" : "{object}", "old" : "{old}", "new" : "{new}", "reason" : "{reason}"}}"#)
}

#[test]
fn changed_verdict_of_a_job_is_announced_once() {
    let cluster = Cluster::start(&[("tally.retry_min", "100ms"), ("tally.retry_max", "100ms")]);
    let database = cluster.database();
    let mut listener = database.connect();
    listener.batch_execute("LISTEN tally").unwrap();
    let mut session = database.connect();
    session.batch_execute(ROLLUP).unwrap();
    session.batch_execute("ALTER TABLE events DISABLE TRIGGER tally_update; INSERT INTO events VALUES (1, 1)").unwrap();
    assert_eq!(next_notice(&mut listener), notice("refresh", "public.events", "ok", "warning", "failing"));
    // Nine more failures, and the next change is the tenth.
    assert_eq!(next_notice(&mut listener), notice("refresh", "public.events", "warning", "critical", "failing"));
    assert!(number(&mut session, "SELECT failures::bigint FROM tally.job_states") >= 10);
    session.batch_execute("ALTER TABLE events ENABLE ALWAYS TRIGGER tally_update").unwrap();
    assert_eq!(next_notice(&mut listener), notice("refresh", "public.events", "critical", "ok", "scheduled"));
    // Somebody's lock.
    let blocked_worker = |session: &mut Client| {
        let mut holder = database.connect();
        holder.batch_execute("BEGIN; LOCK TABLE totals_stored").unwrap();
        session.batch_execute("INSERT INTO events VALUES (1, 1)").unwrap();
        (holder, job_worker(&cluster, &database))
    };
    let (mut holder, worker) = blocked_worker(&mut session);
    session.batch_execute(&format!("SELECT pg_cancel_backend({worker})")).unwrap();
    assert_eq!(next_notice(&mut listener), notice("refresh", "public.events", "ok", "warning", "failing"));
    holder.batch_execute("COMMIT").unwrap();
    assert_eq!(next_notice(&mut listener), notice("refresh", "public.events", "warning", "ok", "scheduled"));
    // A worker that ends without a word is told of by the next run, which then succeeds.
    let (mut holder, worker) = blocked_worker(&mut session);
    session.batch_execute(&format!("SELECT pg_terminate_backend({worker})")).unwrap();
    holder.batch_execute("COMMIT").unwrap();
    assert_eq!(next_notice(&mut listener), notice("refresh", "public.events", "ok", "warning", "failing"));
    assert_eq!(next_notice(&mut listener), notice("refresh", "public.events", "warning", "ok", "scheduled"));
    // What was told last may be wrong, as after a run that failed while its job was resumed. The next run sets it right.
    session
        .batch_execute("UPDATE tally.job_states SET told_verdict = 'warning'; INSERT INTO events VALUES (1, 1)")
        .unwrap();
    assert_eq!(next_notice(&mut listener), notice("refresh", "public.events", "warning", "ok", "scheduled"));
}

#[test]
fn changed_verdict_of_a_set_is_announced_preloaded_and_on_demand() {
    for preload in ["tally", ""] {
        let cluster = Cluster::start(&[("shared_preload_libraries", preload)]);
        let database = cluster.database();
        let mut listener = database.connect();
        listener.batch_execute("LISTEN tally").unwrap();
        let mut session = database.connect();
        session
            .batch_execute(
                "CREATE TABLE events (at timestamptz NOT NULL) PARTITION BY RANGE (at);
                 SELECT tally.partition_by_time('events', '1 day');
                 CREATE TABLE far PARTITION OF events FOR VALUES FROM ('9000-01-01') TO (MAXVALUE)",
            )
            .unwrap();
        // A new job is due at once.
        if preload.is_empty() {
            session.batch_execute("CALL tally.run_due_jobs()").unwrap();
        }
        eventually_true(&mut session, "SELECT failures > 0 FROM tally.status WHERE kind = 'premake'");
        let judged =
            session.query_one("SELECT verdict, split_part(reason, ':', 1) FROM tally.partition_status", &[]).unwrap();
        let (verdict, code): (&str, &str) = (judged.get(0), judged.get(1));
        assert_ne!(verdict, "ok", "a set that ends with MAXVALUE is not well");
        // The premake job fails at it as well.
        assert_eq!(next_notice(&mut listener), notice("premake", "public.events", "ok", "warning", "failing"));
        assert_eq!(next_notice(&mut listener), notice("partitions", "public.events", "ok", verdict, code));
        session.batch_execute("DROP TABLE far").unwrap();
        session.batch_execute("SELECT tally.resume_partitions('events')").unwrap();
        if preload.is_empty() {
            session.batch_execute("CALL tally.run_due_jobs()").unwrap();
        }
        assert_eq!(next_notice(&mut listener), notice("premake", "public.events", "warning", "ok", "scheduled"));
        assert_eq!(next_notice(&mut listener), notice("partitions", "public.events", verdict, "ok", "healthy"));
    }
}

/// Family and labels of each sample with its value. Panics at a line that Prometheus would not take.
fn samples(session: &mut Client) -> BTreeMap<String, f64> {
    let text = text(session, "SELECT tally.metrics()").unwrap();
    assert!(text.ends_with('\n'));
    let mut samples = BTreeMap::new();
    let mut family = "";
    for line in text.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let words: Vec<&str> = comment.splitn(3, ' ').collect();
            match words[..] {
                ["HELP", name, help] if !help.is_empty() => family = name,
                ["TYPE", name, "gauge"] if name == family => {}
                _ => panic!("{line}"),
            }
            continue;
        }
        let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
        let labels = name.strip_prefix(family).unwrap_or_else(|| panic!("{line} is not of {family}"));
        assert!(labels.is_empty() || labels.starts_with('{') && labels.ends_with("\"}"), "{line}");
        let value = value.parse().unwrap_or_else(|_| panic!("{line}"));
        assert!(samples.insert(name.to_owned(), value).is_none(), "{line} twice");
    }
    samples
}

#[test]
fn metrics_tell_what_the_views_tell_and_nobody_more() {
    let database = cluster::database();
    let mut session = database.connect();
    let (owner, stranger) = (format!("metered_{}", database.name()), format!("curious_{}", database.name()));
    session
        .batch_execute(&format!(
            "CREATE ROLE {owner} LOGIN; CREATE ROLE {stranger} LOGIN; GRANT CREATE ON SCHEMA public TO {owner}"
        ))
        .unwrap();
    let mut own = database.connect_as(&owner);
    own.batch_execute(&ROLLUP.replace("1 second", "1 hour")).unwrap();
    own.batch_execute(
        "CREATE TABLE \"a \"\"b\\ \nc\" (at timestamptz NOT NULL) PARTITION BY RANGE (at);
         SELECT tally.partition_by_time('\"a \"\"b\\ \nc\"', '1 day', retention => '2 days');",
    )
    .unwrap();
    eventually_true(&mut own, "SELECT count(*) = 3 FROM tally.status WHERE last_success_at IS NOT NULL");
    own.batch_execute("INSERT INTO events VALUES (1, 1), (2, 2)").unwrap();
    let seen = samples(&mut own);
    assert_eq!(seen["tally_launcher_running"], 1.0);
    assert_eq!(seen["tally_workers_max"], 4.0);
    let refresh = number(&mut own, "SELECT job_id::bigint FROM tally.jobs WHERE kind = 'refresh'");
    let job = format!("{{job=\"{refresh}\",kind=\"refresh\",object=\"public.events\"}}");
    assert_eq!(seen[&format!("tally_job_verdict{job}")], 0.0);
    assert!(seen[&format!("tally_job_last_success_timestamp_seconds{job}")] > 1.7e9);
    assert_eq!(seen["tally_rollup_pending_rows{rollup=\"public.totals\"}"], 2.0);
    let set = r#"{set="public.\"a \"\"b\\ \nc\""}"#;
    assert!(seen[&format!("tally_partition_horizon_seconds{set}")] > 6.0 * 86_400.0);
    own.batch_execute("SELECT tally.pause_job(job_id) FROM tally.jobs WHERE kind = 'refresh'").unwrap();
    assert_eq!(samples(&mut own)[&format!("tally_job_verdict{job}")], 1.0);

    let mut other = database.connect_as(&stranger);
    let names: Vec<String> = samples(&mut other).into_keys().collect();
    assert!(!names.iter().any(|name| name.contains('{')), "{names:#?}");
    session.batch_execute(&format!("GRANT pg_monitor TO {stranger}")).unwrap();
    assert_eq!(samples(&mut other).len(), seen.len());
    drop((own, other));
    session
        .batch_execute(&format!("DROP EXTENSION tally CASCADE; DROP OWNED BY {owner}; DROP ROLE {owner}, {stranger}"))
        .unwrap();
}
