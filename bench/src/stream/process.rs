//! The programs of a measure: the embedded broker and the loader, each a process of its own, and what the kernel tells of them.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use postgres::Client;
use rustix::process::{Pid, Signal, kill_process};
use tally_server_tests::cluster::Database;

use crate::report::time;

/// What has not happened by then never will, even on a busy machine.
const DEADLINE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(20);

/// The release build beside this program; `make bench` makes both.
pub fn loader() -> Command {
    let program = std::env::current_exe().unwrap().with_file_name("tally-loader");
    assert!(program.exists(), "{} is missing: cargo build --release --package tally-loader", program.display());
    Command::new(program)
}

/// Runs a program to its end, and returns what it said.
///
/// # Panics
/// When it fails.
pub fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "{command:?}: {said}");
    said
}

/// Runs the loader to its end. How long it took: from the first poll to the last commit, as it says itself, and the whole program.
pub fn run_loader(mut command: Command) -> [Duration; 2] {
    let mut said = String::new();
    let whole = time(|| said = run(&mut command));
    let seconds = number_behind(&said, " dead letters in ").expect("the loader tells how long it took");
    [Duration::from_secs_f64(seconds), whole]
}

/// The loader of a topic to its end.
pub fn load_topic(config: &Path) -> Command {
    let mut command = loader();
    command.arg("run").arg("--until-end").arg("--config").arg(config);
    command
}

/// The number behind the last place where the text holds these words.
pub fn number_behind(text: &str, words: &str) -> Option<f64> {
    let (_, behind) = text.rsplit_once(words)?;
    behind.split_whitespace().next()?.parse().ok()
}

/// A configuration for this database. `sections` is everything behind the pipeline and the server.
pub fn configure(database: &Database, folder: &Path, pipeline: &str, sections: &str) -> PathBuf {
    let path = folder.join("loader.toml");
    let conninfo = database.conninfo();
    let socket =
        conninfo.split(' ').find_map(|word| word.strip_prefix("host=")).expect("the server listens on a socket");
    let text = format!(
        "pipeline = \"{pipeline}\"\npostgres = {{ host = \"{socket}\", dbname = \"{}\", user = \"postgres\" }}\n{sections}",
        database.name()
    );
    fs::write(&path, text).unwrap();
    path
}

/// Processor time of all children that have ended, in seconds.
pub fn children_seconds() -> f64 {
    ticks("self", 13..15)
}

/// Processor time of a process and of its children that have ended, in seconds.
pub fn processor_seconds(pid: u32) -> f64 {
    ticks(&pid.to_string(), 11..15)
}

/// Some of the times in `/proc/PID/stat`, in seconds. Behind the name, which may hold anything, the 12th to 15th field are user and
/// system time of the process and of its ended children, in ticks of 10 ms.
fn ticks(pid: &str, fields: std::ops::Range<usize>) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let all = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let chosen = all.skip(fields.start).take(fields.len());
    chosen.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}

pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < DEADLINE, "waited in vain until {what}");
        thread::sleep(PAUSE);
    }
}

/// Messages that are committed, of all pipelines of the database; 0 as long as there is none.
pub fn progress(session: &mut Client) -> i64 {
    let sql = "SELECT coalesce(sum(rows_total + dead_total + skipped_total), 0)::bigint FROM tally.loader_offsets";
    session.query_one(sql, &[]).map_or(0, |row| row.get(0))
}

/// `tally-loader generate --serve`, stopped when dropped.
pub struct Broker {
    process: Child,
    pub address: String,
}

impl Broker {
    pub fn serve(folder: &Path, arguments: &[&str]) -> Broker {
        let file: PathBuf = folder.join("broker");
        let _ = fs::remove_file(&file);
        let mut command = loader();
        command.args(["generate", "--serve"]).args(arguments).arg("--address-file").arg(&file);
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let mut address = String::new();
        wait_until("the broker answers", || {
            assert!(process.try_wait().unwrap().is_none(), "the broker ended");
            address = fs::read_to_string(&file).unwrap_or_default().trim().to_owned();
            !address.is_empty()
        });
        Broker { process, address }
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// kill -9.
    pub fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// Starts again on the same address; when it took connections.
    pub fn serve_again(&mut self, arguments: &[&str]) -> Instant {
        let mut command = loader();
        command.args(["generate", "--serve", "--listen", &self.address]).args(arguments);
        self.process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let address: SocketAddr = self.address.parse().unwrap();
        let started = Instant::now();
        while TcpStream::connect(address).is_err() {
            assert!(self.process.try_wait().unwrap().is_none(), "the broker ended");
            assert!(started.elapsed() < DEADLINE, "the broker does not come back");
            thread::sleep(Duration::from_millis(1));
        }
        Instant::now()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
    }
}

/// `tally-loader` beside the measure, killed when dropped.
pub struct Running {
    process: Child,
    log: PathBuf,
}

impl Running {
    pub fn start(mut command: Command, folder: &Path) -> Running {
        let log = folder.join("loader.log");
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log).unwrap()).spawn();
        Running { process: process.unwrap(), log }
    }

    /// `tally-loader run`, until it is told to stop.
    pub fn load(config: &Path, folder: &Path) -> Running {
        let mut command = loader();
        command.arg("run").arg("--config").arg(config);
        Running::start(command, folder)
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The most memory that it has had, in bytes: `VmHWM` of proc(5), 0 when it has ended.
    pub fn peak_memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
        line.trim_end_matches("kB").trim().parse::<u64>().map_or(0, |kilobytes| kilobytes * 1024)
    }

    /// Waits for its end; the most memory that was seen until then, in bytes.
    pub fn watch_memory(mut self) -> u64 {
        let mut peak = 0;
        loop {
            peak = self.peak_memory().max(peak);
            if let Some(status) = self.process.try_wait().unwrap() {
                assert!(status.success(), "{status}: {}", self.log());
                return peak;
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// SIGTERM, and its end.
    pub fn terminate(mut self) {
        let pid = Pid::from_raw(self.process.id().cast_signed()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        let status = self.process.wait().unwrap();
        assert!(status.success(), "{status}: {}", self.log());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
