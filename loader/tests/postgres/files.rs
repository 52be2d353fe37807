//! Files: every record once, whatever happens to the loader or to the file.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rustix::process::{Pid, Signal, kill_process};
use tally_loader::metrics::Metrics;
use tally_loader::source::file::FileSource;
use tally_loader::{Error, files, stop};

use crate::loading::{Loading, block_on, wait_until};

const TABLE: &str = "CREATE TABLE public.t (a bigint, s text);";

/// A database and a folder with files.
pub struct Files {
    pub loading: Loading<'static>,
    folder: tempfile::TempDir,
}

impl Files {
    pub fn new(ddl: &str) -> Self {
        Self { loading: Loading::new(1, ddl), folder: tempfile::tempdir().unwrap() }
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    pub fn load(&self, path: &Path) -> Result<(), Error> {
        load(&self.loading, path, Arc::default())
    }

    /// How a run ends that protects data, and why.
    fn protected(&self, path: &Path) -> String {
        let error = self.load(path).unwrap_err();
        assert_eq!(error.code(), 5, "{error}");
        let stopped = self.loading.texts("SELECT stopped_reason FROM tally.loader_status");
        assert!(error.to_string().ends_with(&stopped[0]), "{error} {stopped:?}");
        error.to_string()
    }

    pub fn rows(&self) -> i64 {
        self.loading.number("SELECT count(*) FROM public.t")
    }

    fn position(&self) -> i64 {
        self.loading.number("SELECT next_offset FROM tally.loader_offsets")
    }

    /// The program itself, with a configuration that knows no Kafka.
    fn start(&self, arguments: &[&str], path: &Path) -> Child {
        let config = self.folder.path().join("loader.toml");
        let text = self.loading.config_text();
        fs::write(&config, text.lines().filter(|line| !line.starts_with("kafka")).collect::<Vec<_>>().join("\n"))
            .unwrap();
        Command::new(env!("CARGO_BIN_EXE_tally-loader"))
            .arg("files")
            .arg(path)
            .arg("--config")
            .arg(config)
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }
}

fn load(loading: &Loading<'_>, path: &Path, metrics: Arc<Metrics>) -> Result<(), Error> {
    let config = loading.config();
    let (_stopper, stop) = stop::channel();
    let source = FileSource::new(path, &config.source.file, config.memory.0)?;
    block_on(files::load(&config, source, metrics, stop))
}

fn append(path: &Path, bytes: &[u8]) {
    OpenOptions::new().append(true).open(path).unwrap().write_all(bytes).unwrap();
}

/// JSON lines with the numbers from `first` on.
fn lines(first: i64, count: i64) -> String {
    (first..first + count).fold(String::new(), |mut text, number| {
        let _ = writeln!(text, "{{\"a\": {number}}}");
        text
    })
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A new seed each time, unless `TALLY_TEST_SEED` repeats one; printed, so that it can be repeated.
fn random() -> ChaCha8Rng {
    let by_clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_micros() as u64);
    let seed = std::env::var("TALLY_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(by_clock);
    println!("TALLY_TEST_SEED={seed}");
    ChaCha8Rng::seed_from_u64(seed)
}

#[test]
fn kill_9_at_any_moment_loads_each_line_once() {
    let mut files = Files::new(TABLE);
    files.loading.policy = "batch = { rows = 100 }".into();
    let mut random = random();
    let mut expected_dead = Vec::new();
    let (mut text, mut rows) = (String::new(), 0);
    for number in 0..60_000 {
        if number % 1_000 == 7 {
            expected_dead.push(text.len().to_string());
            text.push_str("broken\n");
        } else {
            text.push_str(&lines(rows, 1));
            rows += 1;
        }
    }
    let path = files.write("a.ndjson.zst", zstd::encode_all(text.as_bytes(), 1).unwrap());
    let mut killed_within = 0;
    for _ in 0..8 {
        let before = files.rows();
        let mut loader = files.start(&[], &path);
        wait_until("it loads", || files.rows() > before || loader.try_wait().unwrap().is_some());
        thread::sleep(Duration::from_millis(random.random_range(0..30)));
        loader.kill().unwrap();
        loader.wait().unwrap();
        killed_within += u32::from(files.rows() < rows);
    }
    assert!(killed_within > 0, "each loader was faster than its killer");
    assert!(files.start(&[], &path).wait().unwrap().success());
    files.loading.assert_exactly_once(rows);
    assert_eq!(files.position(), text.len() as i64);
    let dead = files.loading.texts("SELECT d.message_offset::text FROM tally.dead_letters d ORDER BY d.message_offset");
    assert_eq!(dead, expected_dead);
}

#[test]
fn sigterm_commits_what_was_read_and_the_next_run_goes_on() {
    let mut files = Files::new(TABLE);
    files.loading.policy = "batch = { rows = 500 }".into();
    let path = files.write("a.ndjson", lines(0, 100_000));
    let mut loader = files.start(&[], &path);
    wait_until("it loads", || files.rows() > 0 || loader.try_wait().unwrap().is_some());
    kill_process(Pid::from_child(&loader), Signal::TERM).unwrap();
    assert!(loader.wait().unwrap().success());
    let loaded = files.rows();
    assert!(loaded < 100_000, "it was faster than the signal");
    files.loading.assert_exactly_once(loaded);
    assert!(files.start(&[], &path).wait().unwrap().success());
    files.loading.assert_exactly_once(100_000);
}

#[test]
fn a_lost_connection_goes_on_at_the_position() {
    let mut files = Files::new(TABLE);
    files.loading.policy = "batch = { rows = 200 }".into();
    let path = files.write("a.ndjson", lines(0, 100_000));
    let metrics: Arc<Metrics> = Arc::default();
    thread::scope(|scope| {
        let loader = scope.spawn(|| load(&files.loading, &path, metrics.clone()));
        for round in 1..=5 {
            wait_until("rows come", || loader.is_finished() || metrics.rows.load(Relaxed) >= round * 4_000);
            let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                        WHERE application_name = 'tally-loader test' AND datname = current_database()";
            files.loading.session().execute(end, &[]).unwrap();
        }
        loader.join().unwrap().unwrap();
    });
    files.loading.assert_exactly_once(100_000);
    assert!(files.loading.number("SELECT epoch FROM tally.loader_offsets") > 1, "the connection was lost");
}

#[test]
fn a_growing_file_is_loaded_bit_by_bit_and_a_finished_one_not_again() {
    let files = Files::new(TABLE);
    let path = files.write("a.ndjson", "");
    for round in 0..3 {
        append(&path, lines(round * 1_000, 1_000).as_bytes());
        files.load(&path).unwrap();
        files.loading.assert_exactly_once((round + 1) * 1_000);
        files.load(&path).unwrap();
        files.loading.assert_exactly_once((round + 1) * 1_000);
    }
    assert_eq!(files.position(), fs::metadata(&path).unwrap().len() as i64);
    let name = path.canonicalize().unwrap().to_str().unwrap().to_owned();
    assert_eq!(files.loading.texts("SELECT kind || ' ' || source FROM tally.loader_status"), [format!("file {name}")]);
    // The same content under another name is another file.
    let other = files.write("b.ndjson", lines(3_000, 10));
    files.load(&other).unwrap();
    files.loading.assert_exactly_once(3_010);
}

#[test]
fn a_last_line_without_an_end_is_loaded_and_may_not_go_on() {
    let mut files = Files::new(TABLE);
    let path = files.write("a.ndjson", format!("{}{{\"a\": 2}}", lines(0, 2)));
    files.load(&path).unwrap();
    files.loading.assert_exactly_once(3);
    // Its end comes later, with more lines.
    append(&path, format!("\n{}{{\"a\": 5", lines(3, 2)).as_bytes());
    files.loading.source = "file = { growing = true }".into();
    files.load(&path).unwrap();
    files.loading.assert_exactly_once(5);
    append(&path, b"}\n");
    files.load(&path).unwrap();
    files.loading.assert_exactly_once(6);
    // Half a line that was loaded as it was, because nobody said that the file grows.
    files.loading.source = String::new();
    append(&path, b"{\"a\": 6}{\"a\":");
    files.load(&path).unwrap();
    append(&path, b" 7}\n");
    let message = files.protected(&path);
    assert!(message.contains("the file goes on with it"), "{message}");
    files.loading.assert_exactly_once(6);
    assert_eq!(files.loading.number("SELECT count(*) FROM tally.dead_letters"), 1);
}

#[test]
fn a_changed_or_shorter_file_is_not_loaded() {
    let files = Files::new(TABLE);
    let first = lines(0, 1_000);
    let path = files.write("a.ndjson", &first);
    files.load(&path).unwrap();
    let position = files.position();
    files.write("a.ndjson", format!("{}{}", first.replace("999", "998"), lines(1_000, 10)));
    let message = files.protected(&path);
    assert!(message.contains(&format!("the first {position} bytes are not those that were loaded")), "{message}");
    files.write("a.ndjson", &first[..first.len() - 1]);
    let message = files.protected(&path);
    assert!(message.contains(&format!("the file has {} bytes, and {position} were loaded", position - 1)), "{message}");
    files.loading.assert_exactly_once(1_000);
    assert_eq!(files.position(), position);
    // With its content back it goes on, and the reason is gone.
    files.write("a.ndjson", format!("{first}{}", lines(1_000, 10)));
    files.load(&path).unwrap();
    files.loading.assert_exactly_once(1_010);
    assert_eq!(files.loading.number("SELECT count(stopped_reason) FROM tally.loader_status"), 0);
}

#[test]
fn a_broken_gzip_gives_what_is_before_the_damage_and_goes_on_when_repaired() {
    let files = Files::new(TABLE);
    let whole = gzip(lines(0, 50_000).as_bytes());
    let path = files.write("a.ndjson.gz", &whole[..whole.len() / 2]);
    let message = files.protected(&path);
    assert!(message.contains("the file cannot be read behind byte"), "{message}");
    let loaded = files.rows();
    assert!(loaded > 10_000, "{loaded}");
    files.loading.assert_exactly_once(loaded);
    files.write("a.ndjson.gz", &whole);
    files.load(&path).unwrap();
    files.loading.assert_exactly_once(50_000);
}

#[test]
fn bad_records_become_dead_letters_at_their_line() {
    let files = Files::new("CREATE TABLE public.t (a bigint CHECK (a <> 3), s varchar(3));");
    let path = files.write("a.csv", "a,s\n1,\"x\ny\"\nx,1\n2\n2,abcd\n3,\"q\"\"\"\n\n4,\n");
    files.load(&path).unwrap();
    assert_eq!(files.loading.texts("SELECT concat_ws('|', a, s) FROM public.t ORDER BY a"), ["1|x\ny", "4"]);
    let letters = "SELECT concat_ws('|', message_offset, reason, column_name, convert_from(value, 'UTF8')) FROM tally.dead_letters \
                   ORDER BY message_offset";
    let expected = ["12|wrong_type|a|x,1", "16|not_csv|2", "18|too_long|s|2,abcd", "25|constraint|3,\"q\"\"\""];
    assert_eq!(files.loading.texts(letters), expected);
    assert_eq!(files.position(), 37);
}

#[test]
fn too_many_bad_lines_stop_the_load() {
    let files = Files::new(TABLE);
    let path = files.write("a.ndjson", "broken\n".repeat(2_000));
    assert_eq!(files.load(&path).unwrap_err().code(), 6);
    assert_eq!((files.position(), files.loading.number("SELECT count(*) FROM tally.dead_letters")), (0, 0));
}

#[test]
fn two_runs_at_once_load_a_file_once() {
    let files = Files::new(TABLE);
    let path = files.write("a.ndjson.gz", gzip(lines(0, 20_000).as_bytes()));
    let mut holder = files.loading.session();
    holder.batch_execute("BEGIN; LOCK TABLE public.t IN SHARE MODE").unwrap();
    thread::scope(|scope| {
        let runs = [(); 2].map(|()| scope.spawn(|| files.load(&path)));
        wait_until("both are there", || {
            files.loading.number("SELECT count(*) FROM tally.loader_members") == 2
                && files.loading.number("SELECT count(*) FROM tally.loader_leases") == 1
        });
        holder.batch_execute("COMMIT").unwrap();
        for run in runs {
            run.join().unwrap().unwrap();
        }
    });
    files.loading.assert_exactly_once(20_000);
}

#[test]
fn a_dry_run_says_what_would_become_of_a_file_and_writes_nothing() {
    let files = Files::new(TABLE);
    let path = files.write("a.txt", format!("{}broken\n{{\"a\": \"x\"}}\nbroken\n", lines(0, 10)));
    let run = |arguments: &[&str]| {
        let output = files.start(arguments, &path).wait_with_output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, _, error) = run(&[]);
    assert!(code == Some(3) && error.contains("does not tell its format"), "{error}");
    let (code, text, error) = run(&["--format", "ndjson", "--dry-run"]);
    assert_eq!(code, Some(0), "{error}");
    assert!(text.contains("a.txt\": 10 rows\n  2 dead letters: not_json, the first at 90:"), "{text}");
    assert!(text.contains("1 dead letters: wrong_type in column \"a\", the first at 97"), "{text}");
    assert_eq!(files.rows() + files.loading.number("SELECT count(*) FROM tally.loader_sources"), 0);
}
