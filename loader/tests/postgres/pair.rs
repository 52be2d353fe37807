//! Two connections of a lane alternate: one commits a batch while the other takes the rows of the next one. Wherever the first is
//! when something goes wrong, all rows are there once, and in order.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use postgres::Client;
use tally_loader::{init, postgres as connection};
use tally_server_tests::cluster::Cluster;

use crate::loading::{Loading, PLAIN, Running, block_on, produce, wait_until};

/// Rows with `hold` wait for the advisory lock of that number when they are copied, rows with `late` when their deferred
/// constraints are checked.
const TABLE: &str = "
    CREATE TABLE public.t (a bigint CHECK (a >= 0), hold int, late int);
    CREATE FUNCTION public.hold() RETURNS trigger LANGUAGE plpgsql AS
      $$ BEGIN PERFORM pg_advisory_xact_lock(NEW.hold); RETURN NEW; END $$;
    CREATE FUNCTION public.late() RETURNS trigger LANGUAGE plpgsql AS
      $$ BEGIN PERFORM pg_advisory_xact_lock(NEW.late); RETURN NULL; END $$;
    CREATE TRIGGER hold BEFORE INSERT ON public.t FOR EACH ROW WHEN (NEW.hold IS NOT NULL) EXECUTE FUNCTION public.hold();
    CREATE CONSTRAINT TRIGGER late AFTER INSERT ON public.t DEFERRABLE INITIALLY DEFERRED
      FOR EACH ROW WHEN (NEW.late IS NOT NULL) EXECUTE FUNCTION public.late();";

/// The same for dead letters and for positions that move.
const STATE: &str = "
    CREATE FUNCTION public.hold_letter() RETURNS trigger LANGUAGE plpgsql AS
      $$ BEGIN PERFORM pg_advisory_xact_lock(3); RETURN NEW; END $$;
    CREATE TRIGGER hold BEFORE INSERT ON tally.dead_letters FOR EACH ROW EXECUTE FUNCTION public.hold_letter();
    CREATE FUNCTION public.hold_move() RETURNS trigger LANGUAGE plpgsql AS
      $$ BEGIN PERFORM pg_advisory_xact_lock(4); RETURN NEW; END $$;
    CREATE TRIGGER hold BEFORE UPDATE ON tally.loader_offsets FOR EACH ROW
      WHEN (NEW.next_offset <> OLD.next_offset) EXECUTE FUNCTION public.hold_move();";

/// The lock that the rows of the next batch wait for.
const NEXT: i32 = 9;
/// Far longer than a batch needs to be copied.
const LONG: Duration = Duration::from_secs(10);

/// Where the first of two batches is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Copy = 1,
    Constraints = 2,
    DeadLetters = 3,
    Advance = 4,
}

const STEPS: [Step; 4] = [Step::Copy, Step::Constraints, Step::DeadLetters, Step::Advance];

impl Step {
    fn message(self, a: i64) -> String {
        match self {
            Self::Copy => format!("{{\"a\": {a}, \"hold\": 1}}"),
            Self::Constraints => format!("{{\"a\": {a}, \"late\": 2}}"),
            _ => format!("{{\"a\": {a}}}"),
        }
    }
}

/// A loader with both connections, which has loaded the first messages.
struct Pair<'a> {
    loading: Loading<'a>,
    running: Running,
    /// Holds the locks.
    holder: Client,
    /// Messages that become rows.
    messages: i64,
    /// Messages that become dead letters.
    letters: i64,
}

impl<'a> Pair<'a> {
    fn new() -> Pair<'static> {
        Pair::on(Loading::new(1, TABLE), "")
    }

    fn on(mut loading: Loading<'a>, policy: &str) -> Self {
        loading.policy =
            format!("batch = {{ rows = 50, linger = \"5 ms\"{policy} }}\ndead_letters = {{ stop_above_ratio = 1.0 }}");
        loading.session().batch_execute(STATE).unwrap();
        let running = loading.start();
        let mut pair = Pair { holder: loading.session(), loading, running, messages: 0, letters: 0 };
        pair.load(300);
        wait_until("both connections are there, and that of the member", || pair.sessions().len() == 3);
        pair.load(300);
        pair
    }

    fn sessions(&self) -> Vec<String> {
        let sql = "SELECT pid::text FROM pg_stat_activity WHERE application_name = 'tally-loader test'
                      AND datname = current_database() ORDER BY 1";
        self.loading.texts(sql)
    }

    /// More messages, until they are rows.
    fn load(&mut self, count: i64) {
        produce(&self.loading, 1, self.messages, count);
        self.messages += count;
        self.wait_for_rows();
    }

    fn wait_for_rows(&self) {
        self.running.wait_for_rows(self.messages as u64);
    }

    fn lock(&mut self, key: i32) {
        self.holder.execute("SELECT pg_advisory_lock($1)", &[&i64::from(key)]).unwrap();
    }

    fn release(&mut self) {
        self.holder.execute("SELECT pg_advisory_unlock_all()", &[]).unwrap();
    }

    fn send(&mut self, message: &str) {
        self.loading.produce(0, message);
        self.messages += 1;
    }

    fn send_bad(&mut self, message: &str) {
        self.loading.produce(0, message);
        self.letters += 1;
    }

    /// The session that waits for a lock, if there is one.
    fn waiting(&mut self, key: i32) -> Option<i32> {
        let sql = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objid = $1::int::oid
                      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
        self.holder.query_opt(sql, &[&key]).unwrap().map(|row| row.get(0))
    }

    fn wait_for_waiting(&mut self, key: i32) -> i32 {
        let mut found = None;
        wait_until(&format!("a session waits for lock {key}"), || {
            found = self.waiting(key);
            found.is_some()
        });
        found.expect("it was found")
    }

    /// Sends a row that is held while it is copied, in the batch after the one that `first` has.
    fn hold_next(&mut self, first: i32) -> Option<i32> {
        self.send(&format!("{{\"a\": {}, \"hold\": {NEXT}}}", self.messages));
        let next = soon(|| self.waiting(NEXT))?;
        assert_ne!(first, next, "each batch has a session");
        Some(next)
    }

    /// Repeats what needs two batches under way at once. On a slow machine one has waited for too long before, and for some time
    /// they go in turn.
    fn until_both<T>(&mut self, mut attempt: impl FnMut(&mut Self) -> Option<T>) -> T {
        loop {
            if let Some(both) = attempt(self) {
                return both;
            }
            self.release();
            self.load(1500);
        }
    }

    /// Holds the batch with what `send` sends by a lock, and the next one while it is copied. Returns both sessions.
    fn hold_both(&mut self, key: i32, send: impl Fn(&mut Self)) -> (i32, i32) {
        self.until_both(|pair| {
            pair.lock(key);
            pair.lock(NEXT);
            send(pair);
            let first = pair.wait_for_waiting(key);
            pair.hold_next(first).map(|next| (first, next))
        })
    }

    /// Holds the first batch at a step, and the next one while it is copied. Returns both sessions.
    fn hold(&mut self, step: Step) -> (i32, i32) {
        self.hold_both(step as i32, |pair| match step {
            Step::DeadLetters => pair.send_bad("broken"),
            _ => pair.send(&step.message(pair.messages)),
        })
    }

    fn end_session(&mut self, pid: i32) {
        self.holder.execute("SELECT pg_terminate_backend($1)", &[&pid]).unwrap();
    }

    /// More is loaded, and all is there once and in order.
    fn finish(mut self, fenced: u64) {
        self.wait_for_rows();
        self.load(200);
        assert_eq!(self.running.metrics.fenced.load(Relaxed), fenced);
        self.running.stop().unwrap();
        self.loading.assert_exactly_once(self.messages);
        let before = "
            SELECT count(*) FROM (SELECT at >= lag(at, 1, '-infinity') OVER (ORDER BY a) AS is_in_order
              FROM (SELECT a, pg_xact_commit_timestamp(xmin) AS at FROM public.t) AS t) AS t WHERE is_in_order IS NOT TRUE";
        assert_eq!(self.loading.number(before), 0, "the order of commits is that of the topic");
        assert_eq!(self.loading.number("SELECT count(*) FROM tally.dead_letters"), self.letters);
        assert_eq!(self.loading.number("SELECT next_offset FROM tally.loader_offsets"), self.messages + self.letters);
        assert_eq!(self.loading.number("SELECT dead_total FROM tally.loader_offsets"), self.letters);
    }
}

/// What comes in time, if it comes.
fn soon<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    while start.elapsed() < LONG {
        if let Some(found) = look() {
            return Some(found);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    None
}

#[test]
fn batches_in_flight_commit_in_order() {
    for step in STEPS {
        let mut pair = Pair::new();
        println!("{step:?}");
        pair.hold(step);
        pair.release();
        pair.finish(0);
    }
}

/// The server takes rows of the next batch before it has taken all of the first one, which are sent.
#[test]
fn a_batch_that_overtakes_another_commits_after_it() {
    let mut pair = Pair::new();
    pair.hold_both(Step::Copy as i32, |pair| {
        pair.send(&Step::Copy.message(pair.messages));
        pair.send(&format!("{{\"a\": {}}}", pair.messages));
    });
    pair.release();
    pair.finish(0);
}

#[test]
fn sessions_that_end_at_any_step_lose_and_double_nothing() {
    for step in STEPS {
        for which in 1..=3 {
            println!("{step:?} {which}");
            let mut pair = Pair::new();
            let (first, next) = pair.hold(step);
            if which & 1 > 0 {
                pair.end_session(first);
            }
            if which & 2 > 0 {
                pair.end_session(next);
            }
            pair.release();
            pair.wait_for_rows();
            let epoch = pair.loading.number("SELECT epoch FROM tally.loader_offsets");
            assert!(epoch > 1, "the part was claimed again");
            pair.finish(0);
        }
    }
}

/// Its session ends after the server has committed and before it says so.
#[test]
fn a_commit_in_doubt_is_no_doubt_for_the_next_batch() {
    let server = Cluster::start(PLAIN);
    let mut pair = Pair::on(Loading::on(&server, 1, TABLE), ", synchronous_commit = \"on\"");
    let mut session = pair.loading.session();
    let mut set_standby = |name: &str| {
        session.batch_execute(&format!("ALTER SYSTEM SET synchronous_standby_names = '{name}'")).unwrap();
        session.batch_execute("SELECT pg_reload_conf()").unwrap();
    };
    // That of the batch; the member's may wait as well.
    let waiting = "SELECT coalesce(max(pid), 0)::bigint FROM pg_stat_activity
                    WHERE application_name = 'tally-loader test' AND wait_event = 'SyncRep' AND query = 'COMMIT'";
    let first = pair.until_both(|pair| {
        pair.lock(NEXT);
        set_standby("nobody");
        pair.send(&Step::Advance.message(pair.messages));
        wait_until("a commit waits", || pair.loading.number(waiting) > 0);
        let first = pair.loading.number(waiting) as i32;
        let next = pair.hold_next(first);
        if next.is_none() {
            set_standby("");
        }
        next.map(|_| first)
    });
    pair.end_session(first);
    set_standby("");
    pair.release();
    // What is in doubt is not counted by the loader.
    let rows = pair.messages;
    wait_until("all rows are there", || pair.loading.number("SELECT count(*) FROM public.t") == rows);
    pair.running.stop().unwrap();
    pair.loading.assert_exactly_once(rows);
}

#[test]
fn a_fenced_batch_takes_the_next_one_with_it() {
    let mut pair = Pair::new();
    pair.hold(Step::Constraints);
    // Another loader has claimed the part meanwhile.
    pair.holder.batch_execute("UPDATE tally.loader_offsets SET epoch = epoch + 1").unwrap();
    pair.release();
    pair.finish(1);
}

#[test]
fn a_bad_row_makes_the_next_batch_wait() {
    let mut pair = Pair::new();
    // The trigger holds it before the constraint refuses it.
    pair.hold_both(1, |pair| pair.send_bad(r#"{"a": -1, "hold": 1}"#));
    pair.release();
    pair.finish(0);
}

#[test]
fn a_deferred_constraint_is_found_while_the_next_batch_is_copied() {
    let mut pair = Pair::new();
    let refuses = "
        CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'never'; END $$;
        CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON public.t DEFERRABLE INITIALLY DEFERRED
          FOR EACH ROW WHEN (NEW.late = 2 AND NEW.hold = 5) EXECUTE FUNCTION public.refuse();";
    pair.holder.batch_execute(refuses).unwrap();
    pair.hold_both(2, |pair| pair.send_bad(r#"{"a": 1, "late": 2, "hold": 5}"#));
    pair.release();
    pair.wait_for_rows();
    assert_eq!(
        pair.loading.number("SELECT epoch FROM tally.loader_offsets"),
        1,
        "both were sent again, not read again"
    );
    pair.finish(0);
}

/// No server can see that: one session waits for rows of the other, which waits in the loader.
#[test]
fn a_batch_that_waits_for_the_next_one_goes_first() {
    let mut pair = Pair::new();
    let counts = "
        CREATE TABLE public.counter AS SELECT 0 AS number;
        CREATE FUNCTION public.count() RETURNS trigger LANGUAGE plpgsql AS
          $$ BEGIN UPDATE public.counter SET number = number + 1; RETURN NEW; END $$;
        CREATE TRIGGER before_hold BEFORE INSERT ON public.t FOR EACH ROW WHEN (NEW.hold = 9) EXECUTE FUNCTION public.count();
        CREATE CONSTRAINT TRIGGER later AFTER INSERT ON public.t DEFERRABLE INITIALLY DEFERRED
          FOR EACH ROW WHEN (NEW.late = 2) EXECUTE FUNCTION public.count();";
    pair.holder.batch_execute(counts).unwrap();
    let sessions = pair.sessions();
    // The next one has the counter, and is held behind it.
    let (first, next) = pair.hold(Step::Constraints);
    let replays = pair.running.metrics.replays.load(Relaxed);
    let number = pair.loading.number("SELECT number::bigint FROM public.counter");
    pair.holder.execute("SELECT pg_advisory_unlock(2)", &[]).unwrap();
    let waits = format!("SELECT count(*) FROM unnest(pg_blocking_pids({first})) AS b WHERE b = {next}");
    wait_until("the first batch waits for the next one", || pair.loading.number(&waits) > 0);
    pair.release();
    pair.wait_for_rows();
    assert_eq!(pair.sessions(), sessions, "nobody had to end a session");
    assert_eq!(pair.running.metrics.replays.load(Relaxed), replays + 1);
    assert_eq!(pair.loading.number("SELECT number::bigint FROM public.counter"), number + 2);
    pair.finish(0);
}

#[test]
fn a_table_that_changes_between_two_batches_is_read_again() {
    let mut pair = Pair::new();
    let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'public.t'::regclass";
    let mut columns = ["b", "c", "d", "e", "f"].into_iter();
    let (column, changing) = pair.until_both(|pair| {
        let column = columns.next().expect("a machine that is slow five times");
        pair.lock(Step::Advance as i32);
        pair.send(&Step::Advance.message(pair.messages));
        pair.wait_for_waiting(Step::Advance as i32);
        let mut session = pair.loading.session();
        let change = format!("ALTER TABLE public.t ADD COLUMN {column} text DEFAULT 'new'");
        let changing = std::thread::spawn(move || session.batch_execute(&change));
        wait_until("the change waits for the batch", || pair.loading.number(waits) == 1);
        pair.send(&format!("{{\"a\": {}, \"{column}\": \"x\"}}", pair.messages));
        // The next batch waits for the change.
        soon(|| (pair.loading.number(waits) == 2).then_some(())).map(|()| (column, changing))
    });
    pair.release();
    changing.join().unwrap().unwrap();
    pair.wait_for_rows();
    assert_eq!(pair.loading.texts(&format!("SELECT {column} FROM public.t ORDER BY a DESC LIMIT 1")), ["x"]);
    pair.finish(0);
}

#[test]
fn a_stop_commits_both_batches() {
    let mut pair = Pair::new();
    pair.hold(Step::Advance);
    pair.running.stopper.signal();
    pair.release();
    let Pair { loading, running, messages, .. } = pair;
    running.join().unwrap();
    loading.assert_exactly_once(messages);
    let left = "SELECT (SELECT count(*) FROM tally.loader_leases) + (SELECT count(*) FROM tally.loader_members)";
    assert_eq!(loading.number(left), 0);
}

#[test]
fn without_a_second_connection_one_does_it() {
    let mut loading = Loading::new(1, "CREATE TABLE public.t (a bigint);");
    // A data connection and that of the member.
    let role = "DO $$ BEGIN CREATE ROLE lone_loader LOGIN CONNECTION LIMIT 2;
                EXCEPTION WHEN duplicate_object OR unique_violation THEN END $$";
    loading.session().batch_execute(role).unwrap();
    let config = loading.config();
    block_on(async {
        let client = connection::connect(&config.postgres, "test").await.unwrap();
        init::grant(&client, &config, "lone_loader").await.unwrap();
    });
    loading.user = "lone_loader".into();
    loading.policy = "batch = { rows = 50, linger = \"5 ms\" }".into();
    let running = loading.start();
    for first in [0, 1_000, 2_000] {
        produce(&loading, 1, first, 1_000);
        running.wait_for_rows(first as u64 + 1_000);
    }
    let sessions =
        "SELECT count(*) FROM pg_stat_activity WHERE usename = 'lone_loader' AND datname = current_database()";
    assert_eq!(loading.number(sessions), 2);
    running.stop().unwrap();
    loading.assert_exactly_once(3_000);
    assert_eq!(loading.texts("SELECT epoch::text FROM tally.loader_offsets"), ["1"], "nothing had to be claimed again");
}
