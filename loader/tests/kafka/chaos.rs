//! Loaders, sessions, the server and the broker are killed again and again while messages are loaded. Every strike falls at a moment
//! that is held until it has fallen, such as between the COPY and the COMMIT. At the end table and dead letters equal what Kafka
//! holds, and the recorded claims and advances are in order.
//!
//! ```sh
//! make chaos KILLS=1000
//! make chaos SEED=17        # the same moments, strikes and messages; timing is never the same
//! ```

/// Writes messages and says at the end what the topic holds.
mod messages;

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use postgres::Client;
use rand::seq::SliceRandom as _;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rustix::process::Signal;
use tally_server_tests::cluster::Cluster;

use crate::broker::Broker;
use crate::pipeline::{Loader, Pipeline, World, wait_until};
use messages::Messages;

const KILLS: usize = 50;
const MOST_LOADERS: usize = 3;

/// Where a loader is when the strike falls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Moment {
    /// Wherever it happens to be.
    Anywhere,
    /// It has the lease and waits for the epoch.
    Claim,
    /// Some rows of the batch are sent.
    Copy,
    /// All rows are sent, the dead letters are not.
    DeadLetters,
    /// Rows and dead letters are sent, the position is not yet moved.
    Advance,
    /// The server has made the transaction durable, and the loader does not know.
    Commit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Strike {
    KillLoader,
    /// SIGSTOP until its lease is over and another loader has gone on.
    FreezeLoader,
    /// SIGTERM.
    StopLoader,
    /// `pg_terminate_backend`.
    EndSession,
    /// Signal 9 for a backend, whereupon the server throws out all sessions.
    KillBackend,
    ImmediateStop,
    /// Signal 9 for every process of the server.
    CrashServer,
    KillBroker,
}

const MOMENTS: [Moment; 6] =
    [Moment::Anywhere, Moment::Claim, Moment::Copy, Moment::DeadLetters, Moment::Advance, Moment::Commit];
const STRIKES: [Strike; 8] = [
    Strike::KillLoader,
    Strike::FreezeLoader,
    Strike::StopLoader,
    Strike::EndSession,
    Strike::KillBackend,
    Strike::ImmediateStop,
    Strike::CrashServer,
    Strike::KillBroker,
];

/// What makes the server hold a loader at a moment, until it is dropped.
enum Hold {
    Nothing,
    Lock(Box<Client>),
    /// Nobody answers to the name of the standby, so a commit is durable here and then waits.
    Standby,
}

struct Chaos<'a> {
    pipeline: Pipeline<'a>,
    cluster: &'a Cluster,
    random: ChaCha8Rng,
    messages: Messages,
    loaders: Vec<Loader>,
}

/// A number from the environment; an empty text is none.
fn number_from(variable: &str) -> Option<u64> {
    let given = std::env::var(variable).ok().filter(|given| !given.is_empty())?;
    Some(given.parse().unwrap_or_else(|_| panic!("{variable} is not a number")))
}

impl Chaos<'_> {
    fn start_loader(&mut self) {
        // Half of them lose commits in a crash of the server.
        let commit = if self.random.random() { "off" } else { "on" };
        self.start_committing(commit);
    }

    fn start_committing(&mut self, synchronous_commit: &str) {
        let rows = self.random.random_range(50..800);
        self.pipeline.policy = format!(
            "batch = {{ rows = {rows}, linger = \"20 ms\", synchronous_commit = \"{synchronous_commit}\" }}\n\
             dead_letters = {{ stop_above_ratio = 0.5 }}\n"
        );
        self.loaders.push(self.pipeline.start(&[]));
    }

    /// All leave, one way or the other.
    fn dismiss_loaders(&mut self) {
        for loader in self.loaders.drain(..) {
            if self.random.random() || !loader.loads() {
                loader.kill();
            } else {
                assert_eq!(loader.terminate(), Some(0));
            }
        }
    }

    /// Brings a loader to the moment, with messages to load.
    fn catch(&mut self, moment: Moment) -> Hold {
        match moment {
            Moment::Anywhere => {
                let before = self.pipeline.progress();
                self.messages.send(&mut self.random);
                let some = self.random.random_range(1..self.messages.visible() - before);
                self.wait_for_progress(before + some);
                Hold::Nothing
            }
            Moment::Claim => {
                self.dismiss_loaders();
                let hold = self.lock("SELECT FROM tally.loader_offsets FOR UPDATE");
                self.start_loader();
                self.wait_for_lock();
                hold
            }
            Moment::Copy => self.catch_at_lock("LOCK TABLE public.events_28 IN SHARE MODE"),
            Moment::DeadLetters => {
                let hold = self.lock("LOCK TABLE tally.dead_letters IN SHARE MODE");
                self.messages.send_malformed(&mut self.random);
                self.wait_for_lock();
                hold
            }
            Moment::Advance => self.catch_at_lock("SELECT FROM tally.loader_offsets FOR UPDATE"),
            Moment::Commit => {
                // A claim is made durable, too.
                let in_claim = self.random.random();
                self.dismiss_loaders();
                self.messages.send(&mut self.random);
                let before = self.pipeline.progress();
                if in_claim {
                    self.set_standby("nobody");
                }
                self.start_committing("on");
                if !in_claim {
                    self.wait_for_progress(before + 1);
                    self.set_standby("nobody");
                    self.messages.send(&mut self.random);
                }
                wait_until("a commit of a loader waits", || self.pipeline.loader_waits_for("SyncRep"));
                Hold::Standby
            }
        }
    }

    fn catch_at_lock(&mut self, lock: &str) -> Hold {
        let hold = self.lock(lock);
        self.messages.send(&mut self.random);
        self.wait_for_lock();
        hold
    }

    fn lock(&self, lock: &str) -> Hold {
        let mut session = self.pipeline.session();
        session.batch_execute(&format!("BEGIN; {lock}")).expect("the lock");
        Hold::Lock(Box::new(session))
    }

    fn wait_for_lock(&self) {
        wait_until("a loader waits for the lock", || self.pipeline.loader_waits_for("Lock"));
    }

    fn set_standby(&self, name: &str) {
        let mut session = self.pipeline.session();
        session.batch_execute(&format!("ALTER SYSTEM SET synchronous_standby_names = '{name}'")).expect("the setting");
        session.batch_execute("SELECT pg_reload_conf()").expect("the setting is read");
    }

    fn release(&self, hold: Hold) {
        match hold {
            Hold::Nothing => {}
            // The server may have gone meanwhile, and the lock with it.
            Hold::Lock(session) => drop(session),
            Hold::Standby => self.set_standby(""),
        }
    }

    fn any_loader(&mut self) -> usize {
        self.random.random_range(0..self.loaders.len())
    }

    /// Takes one loader from the others, or all of them.
    fn some_loaders(&mut self) -> Vec<Loader> {
        let one = self.any_loader();
        if self.random.random() { self.loaders.drain(..).collect() } else { vec![self.loaders.swap_remove(one)] }
    }

    /// Strikes, and gives the loader up that is held. Everything runs again at the end, but perhaps no loader.
    fn strike(&mut self, strike: Strike, hold: Hold) {
        match strike {
            Strike::KillLoader => {
                self.some_loaders().into_iter().for_each(Loader::kill);
                self.release(hold);
            }
            Strike::FreezeLoader => self.freeze(hold),
            Strike::StopLoader => {
                let one = self.any_loader();
                let loader = self.loaders.swap_remove(one);
                let loads = loader.loads();
                loader.signal(Signal::TERM);
                self.release(hold);
                let code = loader.wait();
                assert!(code == Some(0) || !loads, "after SIGTERM: {code:?}");
            }
            Strike::EndSession => {
                let pid = self.loader_session();
                self.pipeline.session().execute("SELECT pg_terminate_backend($1)", &[&pid]).expect("the session ends");
                self.release(hold);
            }
            Strike::KillBackend => {
                let mut witness = self.pipeline.session();
                self.cluster.kill_before(&mut witness, self.loader_session());
                self.release(hold);
            }
            Strike::ImmediateStop => {
                self.cluster.abort();
                self.cluster.restart();
                self.release(hold);
            }
            Strike::CrashServer => {
                self.cluster.crash();
                self.release(hold);
            }
            Strike::KillBroker => {
                self.messages.begin(&mut self.random);
                self.pipeline.broker.kill();
                self.release(hold);
                self.pipeline.broker.restart();
                self.messages.end(&mut self.random);
            }
        }
    }

    /// A session of a loader, rather one that waits.
    fn loader_session(&self) -> i32 {
        let sql = "SELECT pid FROM pg_stat_activity WHERE usename = 'loader' AND datname = current_database()
                   ORDER BY state <> 'active', random() LIMIT 1";
        let found = self.pipeline.session().query_opt(sql, &[]).expect("the sessions");
        found.expect("a loader has a session").get(0)
    }

    /// One or all are frozen until they are taken for dead and another has gone on with their parts; then they wake up.
    fn freeze(&mut self, hold: Hold) {
        let mut frozen = self.some_loaders();
        frozen.iter().for_each(|loader| loader.signal(Signal::STOP));
        self.release(hold);
        // As if 10 seconds had passed; those that are awake renew themselves.
        let expire = "UPDATE tally.loader_members SET expires_at = clock_timestamp()";
        self.pipeline.session().execute(expire, &[]).expect("the memberships");
        self.messages.send(&mut self.random);
        self.wait_for_progress(self.messages.visible());
        frozen.iter().for_each(|loader| loader.signal(Signal::CONT));
        self.loaders.append(&mut frozen);
    }

    /// Loaders that are still there go on by themselves. A strike may have hit one at its start, and then it is started again.
    fn recover(&mut self) {
        let before = self.pipeline.progress();
        self.messages.send(&mut self.random);
        // Sometimes everything, so that a strike may also meet loaders that have nothing to do.
        let goal = if self.random.random_bool(0.3) { self.messages.visible() } else { before + 1 };
        self.wait_for_progress(goal);
    }

    fn wait_for_progress(&mut self, goal: i64) {
        wait_until(&format!("{goal} messages are loaded"), || {
            self.loaders.retain_mut(|loader| !loader.could_not_start());
            if self.loaders.is_empty() {
                self.start_loader();
            }
            let progress = self.pipeline.progress();
            assert!(progress <= self.messages.visible(), "{progress} messages are loaded, more than there are");
            progress >= goal
        });
    }

    fn round(&mut self, moment: Moment, strike: Strike) {
        if self.loaders.len() < MOST_LOADERS && self.random.random() {
            self.start_loader();
        }
        let hold = self.catch(moment);
        self.strike(strike, hold);
        self.recover();
    }
}

#[test]
fn killed_again_and_again_nothing_is_lost_or_doubled() {
    let Some(broker) = Broker::start() else { return };
    let by_clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_micros() as u64);
    let seed = number_from("TALLY_TEST_SEED").unwrap_or_else(by_clock);
    let kills = number_from("TALLY_CHAOS_KILLS").map_or(KILLS, |kills| kills as usize);
    println!("TALLY_TEST_SEED={seed} TALLY_CHAOS_KILLS={kills}");
    // The WAL writer leaves something to lose.
    let cluster = Cluster::start(&[("wal_writer_delay", "10s"), ("wal_writer_flush_after", "0")]);
    let pipeline = Pipeline::new(&broker, &cluster, World::Extension);
    let messages = Messages::new(&broker, &pipeline.topic);
    let random = ChaCha8Rng::seed_from_u64(seed);
    let mut chaos = Chaos { pipeline, cluster: &cluster, random, messages, loaders: Vec::new() };
    chaos.recover();

    // Each strike at each moment before any comes again.
    let mut deck: Vec<(Moment, Strike)> = Vec::new();
    let mut times: BTreeMap<Strike, Duration> = BTreeMap::new();
    for round in 1..=kills {
        let (moment, strike) = deck.pop().unwrap_or_else(|| {
            deck = MOMENTS.iter().flat_map(|moment| STRIKES.map(|strike| (*moment, strike))).collect();
            deck.shuffle(&mut chaos.random);
            deck.pop().expect("there are moments and strikes")
        });
        let begin = Instant::now();
        println!("{round}: {strike:?} at {moment:?}, {} loaders", chaos.loaders.len());
        chaos.round(moment, strike);
        *times.entry(strike).or_default() += begin.elapsed();
    }
    println!(
        "TALLY_TEST_SEED={seed}: {kills} kills, {} messages; time by strike {times:.1?}",
        chaos.messages.visible()
    );

    let Chaos { pipeline, messages, loaders, .. } = chaos;
    for loader in loaders {
        assert_eq!(loader.terminate(), Some(0));
    }
    pipeline.load_to_end();
    messages.assert_loaded(&pipeline);
}
