//! A PostgreSQL server in a temporary folder, reached by its unix socket only.
//!
//! PostgreSQL refuses to run as root. When the tests do, its programs run as the user `postgres` of a user namespace
//! (to PostgreSQL they are `postgres`, to the file system still root), or else under `setpriv`.
//!
//! No server outlives its test process, however that ends: a watchdog process holds the reading end of a pipe, and
//! when the writing end closes, it stops the server and removes the folder.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use postgres::{Client, NoTls};
use rustix::process::{Pid, Signal, kill_process};

/// A server that has not answered by then never will, even on a busy machine.
const DEADLINE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(20);
const SUPERUSER: &str = "postgres";
/// Names the socket; nobody listens at the port of this number.
const PORT: u16 = 5432;

/// What every server gets. A private one ([`Cluster::start`]) may override each line.
const SETTINGS: &[(&str, &str)] = &[
    ("shared_preload_libraries", "tally"),
    ("listen_addresses", ""),
    ("max_connections", "200"),
    ("max_prepared_transactions", "50"),
    ("max_worker_processes", "16"),
    ("autovacuum", "on"),
    // Killed processes lose nothing that the kernel has; only a dead machine would.
    ("fsync", "off"),
    ("timezone", "UTC"),
    ("log_line_prefix", "%m [%p] %d "),
];

/// Stops the server of the data folder `$1` and removes the folder `$2` when standard input ends;
/// the rest of the arguments is a command that runs pg_ctl as the right user.
const WATCHDOG: &str = r#"
    while read -r _; do :; done
    data=$1; folder=$2; shift 2
    "$@" stop --silent --mode immediate --wait --pgdata "$data" >/dev/null 2>&1
    if [ -z "${TALLY_KEEP_SERVER-}" ]; then rm -rf -- "$folder"; fi
"#;

/// A fresh database of the shared server, with the extension created in it. It is dropped with the value, and its
/// sessions are ended then: keep the value as long as the sessions.
///
/// # Panics
/// When the server does not start or the extension is not installed.
pub fn database() -> Database<'static> {
    Cluster::shared().database()
}

/// The same of a server whose workers rest, for tests that take the steps of jobs by hand: a worker that looks into the database
/// meanwhile has a snapshot and locks, and some steps wait for those.
///
/// # Panics
/// When the server does not start or the extension is not installed.
pub fn database_without_workers() -> Database<'static> {
    Cluster::shared_without_workers().database()
}

/// A database with the extension, dropped when the value is.
#[derive(Debug)]
pub struct Database<'a> {
    cluster: &'a Cluster,
    name: String,
}

impl<'a> Database<'a> {
    pub fn name(&self) -> &str {
        &self.name
    }

    /// For libpq and for every client that reads its format.
    pub fn conninfo(&self) -> String {
        self.cluster.conninfo(&self.name)
    }

    /// A new session as superuser.
    pub fn connect(&self) -> Client {
        self.cluster.connect(&self.name)
    }

    /// A new session as `role`, which must exist and may log in.
    pub fn connect_as(&self, role: &str) -> Client {
        self.cluster.connect_as(&self.name, role)
    }

    /// Another database with everything that is in this one, which nobody may use meanwhile.
    pub fn copy(&self) -> Database<'a> {
        self.cluster.copy_of(&self.name)
    }

    /// A psql with your own options; see [`Cluster::psql_command`].
    pub fn psql_command(&self) -> Command {
        self.cluster.psql_command(&self.name)
    }

    /// What pg_dump writes for the database; see [`Cluster::dump`].
    pub fn dump(&self) -> String {
        self.cluster.dump(&self.name)
    }

    /// A pg_dump of this database with your own options.
    pub fn dump_command(&self) -> Command {
        let mut pg_dump = self.cluster.client_program("pg_dump");
        pg_dump.arg(format!("--dbname={}", self.conninfo()));
        pg_dump
    }

    /// A pg_restore into this database with your own options.
    pub fn restore_command(&self) -> Command {
        let mut pg_restore = self.cluster.client_program("pg_restore");
        pg_restore.arg(format!("--dbname={}", self.conninfo()));
        pg_restore
    }

    /// What the real psql prints for `sql`; see [`Cluster::psql`].
    pub fn psql(&self, sql: &str) -> String {
        self.cluster.psql(&self.name, sql)
    }
}

impl Drop for Database<'_> {
    /// The server may be down on purpose, so nothing here may fail.
    fn drop(&mut self) {
        let Ok(mut server) = try_connect(&self.cluster.conninfo("postgres")) else { return };
        let prepared = "SELECT format('ROLLBACK PREPARED %L', gid) FROM pg_prepared_xacts WHERE database = $1";
        if let Ok(rows) = server.query(prepared, &[&self.name])
            && !rows.is_empty()
            && let Ok(mut inside) = try_connect(&self.conninfo())
        {
            for row in rows {
                let _ = inside.batch_execute(row.get(0));
            }
        }
        // A test that failed may have left a standby to wait for.
        let _ = server.batch_execute("SET synchronous_commit = local");
        let _ = server.batch_execute(&format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name));
    }
}

/// A throw-away server; it is stopped and removed when the value is dropped or the process ends.
#[derive(Debug)]
pub struct Cluster {
    /// Where its programs are.
    bindir: PathBuf,
    folder: PathBuf,
    port: u16,
    server: Mutex<Option<Child>>,
    watchdog: Child,
    databases: AtomicU32,
}

impl Cluster {
    /// The server that all tests of this process share. Never stop or kill this one.
    pub fn shared() -> &'static Cluster {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        SHARED.get_or_init(|| Cluster::start(&[]))
    }

    /// Another one for all tests, whose workers rest.
    fn shared_without_workers() -> &'static Cluster {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        SHARED.get_or_init(|| Cluster::start(&[("tally.enabled", "off")]))
    }

    /// A private server with these settings on top of the usual ones.
    ///
    /// # Panics
    /// When it does not start; the message has the end of the server's log.
    pub fn start(settings: &[(&str, &str)]) -> Cluster {
        let cluster = Cluster::without_databases(bindir().to_owned(), settings);
        cluster.launch();
        cluster
    }

    /// A private server of a PostgreSQL that has these files of extensions, by their names, besides the installed ones.
    ///
    /// # Panics
    /// As [`Cluster::start`].
    pub fn start_with_extension_files(files: &[(String, String)], settings: &[(&str, &str)]) -> Cluster {
        let mut cluster = Cluster::without_files(bindir().to_owned());
        cluster.bindir = copy_of_postgresql(&cluster.folder, files);
        cluster.initialize(settings);
        cluster.launch();
        cluster
    }

    /// A new cluster with everything that is in this one, which must be stopped, as pg_upgrade carries it over. TALLY_UPGRADE_TO is
    /// the pg_config of its PostgreSQL; without it, it is the same as here.
    ///
    /// # Panics
    /// When pg_upgrade fails, with what it said.
    pub fn upgrade(&self) -> Cluster {
        let newer = std::env::var("TALLY_UPGRADE_TO").ok().map(|pg_config| bindir_of(&pg_config));
        let upgraded = Cluster::without_databases(newer.unwrap_or(self.bindir.clone()), &[]);
        let mut pg_upgrade = upgraded.server_program("pg_upgrade");
        pg_upgrade.args(["--username", SUPERUSER]);
        pg_upgrade.arg("--old-bindir").arg(&self.bindir).arg("--new-bindir").arg(&upgraded.bindir);
        pg_upgrade.arg("--old-datadir").arg(self.data()).arg("--new-datadir").arg(upgraded.data());
        run(pg_upgrade.arg("--socketdir").arg(&upgraded.folder).current_dir(&upgraded.folder));
        upgraded.launch();
        upgraded
    }

    fn without_databases(bindir: PathBuf, settings: &[(&str, &str)]) -> Cluster {
        let mut cluster = Cluster::without_files(bindir);
        cluster.initialize(settings);
        cluster
    }

    fn initialize(&mut self, settings: &[(&str, &str)]) {
        if let Some((_, port)) = settings.iter().find(|(name, _)| *name == "port") {
            self.port = port.parse().expect("a port");
        }
        let mut initdb = self.server_program("initdb");
        initdb.args(["--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync", "--username", SUPERUSER]);
        run(initdb.arg("--pgdata").arg(self.data()));
        self.configure(SETTINGS);
        self.configure(settings);
    }

    fn without_files(bindir: PathBuf) -> Cluster {
        // The socket lies here too, and the path of a socket is limited to 107 bytes: hence not the TMPDIR of the day.
        let folder = tempfile::Builder::new().prefix("tally-").tempdir_in("/tmp").expect("a folder in /tmp").keep();
        give_to_server(&folder);
        let watchdog = watch(&bindir, &folder);
        Cluster { bindir, folder, port: PORT, server: Mutex::new(None), watchdog, databases: AtomicU32::new(0) }
    }

    /// A program of PostgreSQL that refuses root.
    fn server_program(&self, name: &str) -> Command {
        let mut words = as_server_user().iter();
        let mut command = match words.next() {
            Some(first) => Command::new(first),
            None => return self.client_program(name),
        };
        command.args(words).arg(self.bindir.join(name));
        clean(&mut command);
        command
    }

    fn client_program(&self, name: &str) -> Command {
        let mut command = Command::new(self.bindir.join(name));
        clean(&mut command);
        command
    }

    /// The files of this server as pg_basebackup copies them, in a folder of their own. Nothing runs there until
    /// [`Cluster::recover`].
    ///
    /// # Panics
    /// When pg_basebackup fails, with what it said.
    pub fn backup(&self) -> Cluster {
        let copy = Cluster::without_files(self.bindir.clone());
        let mut pg_basebackup = self.server_program("pg_basebackup");
        pg_basebackup.args(["--checkpoint=fast", "--wal-method=stream", "--no-sync", "--dbname"]);
        run(pg_basebackup.arg(self.conninfo("postgres")).arg("--pgdata").arg(copy.data()));
        copy
    }

    /// Starts a [`Cluster::backup`] with archived WAL; `settings` say where that is and where to stop.
    pub fn recover(&self, settings: &[(&str, &str)]) {
        self.start_as("recovery.signal", settings);
    }

    /// A hot standby that streams from this server.
    pub fn standby(&self, settings: &[(&str, &str)]) -> Cluster {
        let standby = self.backup();
        let primary = self.conninfo("postgres");
        let settings: Vec<_> =
            [("primary_conninfo", primary.as_str())].into_iter().chain(settings.iter().copied()).collect();
        standby.start_as("standby.signal", &settings);
        standby
    }

    fn start_as(&self, signal: &str, settings: &[(&str, &str)]) {
        fs::write(self.data().join(signal), "").expect("the data folder takes a file");
        self.configure(settings);
        self.launch();
    }

    /// A fresh database with the extension created in it.
    pub fn database(&self) -> Database<'_> {
        let database = self.empty_database();
        database.connect().batch_execute("CREATE EXTENSION tally").expect("CREATE EXTENSION tally");
        database
    }

    /// A database that came with the files of another server, as [`Cluster::backup`] and [`Cluster::upgrade`] bring them.
    pub fn database_of_backup(&self, name: &str) -> Database<'_> {
        Database { cluster: self, name: name.to_owned() }
    }

    /// A fresh database without the extension.
    pub fn empty_database(&self) -> Database<'_> {
        // Nobody can be connected to template0, so this never waits for another test.
        self.copy_of("template0")
    }

    fn copy_of(&self, template: &str) -> Database<'_> {
        let name = format!("test_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        let mut server = self.connect("postgres");
        server.batch_execute(&format!("CREATE DATABASE {name} TEMPLATE {template}")).expect("CREATE DATABASE");
        Database { cluster: self, name }
    }

    /// For libpq and for every client that reads its format.
    pub fn conninfo(&self, database: &str) -> String {
        format!("host={} port={} user={SUPERUSER} dbname={database}", self.folder.display(), self.port)
    }

    /// A new session as superuser.
    pub fn connect(&self, database: &str) -> Client {
        try_connect(&self.conninfo(database)).expect("a connection to the test server")
    }

    /// A new session as `role`, which must exist and may log in.
    pub fn connect_as(&self, database: &str, role: &str) -> Client {
        let conninfo = format!("host={} port={} user={role} dbname={database}", self.folder.display(), self.port);
        try_connect(&conninfo).expect("a connection to the test server")
    }

    /// What the real psql prints for `sql`, unaligned and without headers; stops at the first error.
    ///
    /// # Panics
    /// When psql fails, with what it said.
    pub fn psql(&self, database: &str, sql: &str) -> String {
        let mut psql = self.psql_command(database);
        psql.args(["--quiet", "--no-align", "--tuples-only", "--set", "ON_ERROR_STOP=1"]);
        let output = feed(&mut psql, sql);
        assert!(output.status.success(), "psql failed: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("psql prints UTF-8")
    }

    /// What pg_dump writes for the database, to be fed to [`Cluster::psql`] of an empty one.
    ///
    /// # Panics
    /// When pg_dump fails, with what it said.
    pub fn dump(&self, database: &str) -> String {
        let output = self.client_program("pg_dump").arg(self.conninfo(database)).output().expect("pg_dump starts");
        assert!(output.status.success(), "pg_dump failed: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("pg_dump writes UTF-8")
    }

    /// A psql that is connected to `database` and reads no start-up file, for a test that wants its own options.
    pub fn psql_command(&self, database: &str) -> Command {
        let mut psql = self.client_program("psql");
        psql.arg("--no-psqlrc").arg(self.conninfo(database));
        psql
    }

    /// Takes effect at the next start; see [`Cluster::restart`].
    pub fn configure(&self, settings: &[(&str, &str)]) {
        let folder = self.folder.display().to_string();
        let ours = ("unix_socket_directories", folder.as_str());
        let mut lines = String::new();
        for (name, value) in [ours].iter().chain(settings) {
            writeln!(lines, "{name} = '{}'", value.replace('\'', "''")).expect("a String takes everything");
        }
        // Included before postgresql.auto.conf is read, so ALTER SYSTEM works on top.
        let file = self.data().join("postgresql.conf");
        fs::OpenOptions::new()
            .append(true)
            .open(file)
            .and_then(|mut file| file.write_all(lines.as_bytes()))
            .expect("postgresql.conf takes the settings");
    }

    /// kill -9 of one process of the server: PostgreSQL then throws out all sessions and recovers by itself.
    /// Returns true when it accepts connections again, and false at once if the process had ended by itself.
    pub fn kill_backend(&self, pid: i32) -> bool {
        self.kill_before(&mut self.connect("postgres"), pid)
    }

    /// The same at once, with a session of yours that will end by it: to connect takes longer than some processes live.
    pub fn kill_before(&self, witness: &mut Client, pid: i32) -> bool {
        // Stopped first: a process that ends by itself in this moment would crash nothing, and we would wait for ever.
        signal(pid, Signal::STOP);
        wait_until("the process has stopped", || state_of(pid).is_none_or(|state| matches!(&*state, "T" | "Z")));
        if state_of(pid).as_deref() != Some("T") {
            return false;
        }
        signal(pid, Signal::KILL);
        // The postmaster ends every session before it recovers; until then a new session would be one of the old.
        wait_until("the other sessions have ended", || witness.batch_execute("SELECT").is_err());
        self.wait_until_ready();
        true
    }

    /// kill -9 of every process of the server at once, as when the machine dies. It stays down.
    pub fn kill_server(&self) {
        let mut server = self.lock();
        let Some(mut postmaster) = server.take() else { return };
        let pid = postmaster.id().cast_signed();
        let children = children_of(pid);
        signal(pid, Signal::KILL);
        children.iter().for_each(|child| signal(*child, Signal::KILL));
        postmaster.wait().expect("the postmaster can be waited for");
        wait_until("every process of the server is gone", || children.iter().all(|child| !is_running(*child)));
    }

    /// An immediate stop, as by `pg_ctl stop --mode immediate`: all processes end at once and nothing is put in order. It stays down.
    pub fn abort(&self) {
        self.end(Signal::QUIT);
    }

    /// [`Cluster::kill_server`], then a start with crash recovery.
    pub fn crash(&self) {
        self.kill_server();
        self.launch();
    }

    /// A clean stop, if it runs, and a start.
    pub fn restart(&self) {
        self.stop();
        self.launch();
    }

    /// A clean stop: open transactions are rolled back, sessions are ended.
    pub fn stop(&self) {
        self.end(Signal::INT);
    }

    fn end(&self, how: Signal) {
        let mut server = self.lock();
        let Some(mut postmaster) = server.take() else { return };
        signal(postmaster.id().cast_signed(), how);
        wait_until("the server has stopped", || postmaster.try_wait().expect("a child can be waited for").is_some());
    }

    /// Where the server's files are; it may write more there.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A file that the server alone may read, such as a key.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn private_file(&self, name: &str, content: &[u8]) -> PathBuf {
        use std::os::unix::fs::OpenOptionsExt;
        let path = self.folder.join(name);
        let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
        file.and_then(|mut file| file.write_all(content)).expect("the server's folder takes a file");
        give_to_server(&path);
        path
    }

    /// The server's log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn log_file(&self) -> PathBuf {
        self.folder.join("log")
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the postmaster and waits until it takes connections.
    fn launch(&self) {
        let started = Instant::now();
        loop {
            self.spawn();
            if self.answers_before_it_exits() {
                return;
            }
            // Processes that survived a kill may still hold the shared memory for a moment; nothing else is worth a retry.
            let log = self.log();
            let in_use = log.lines().rev().take(5).any(|line| line.contains("still in use"));
            assert!(
                in_use && started.elapsed() < DEADLINE,
                "the test server does not start (is the extension installed? `make install`); its log ends:\n{}",
                end_of(&log)
            );
            thread::sleep(PAUSE);
        }
    }

    fn spawn(&self) {
        let mut server = self.lock();
        assert!(server.is_none(), "the test server runs already");
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_file()).expect("a log file");
        let mut postgres = self.server_program("postgres");
        postgres.arg("-D").arg(self.data()).stdin(Stdio::null());
        postgres.stdout(log.try_clone().expect("a second handle of the log file")).stderr(log);
        *server = Some(in_own_group(&mut postgres).spawn().expect("postgres starts"));
    }

    fn answers_before_it_exits(&self) -> bool {
        let started = Instant::now();
        while started.elapsed() < DEADLINE {
            if try_connect(&self.conninfo("postgres")).is_ok() {
                return true;
            }
            let mut server = self.lock();
            if server.as_mut().is_none_or(|child| child.try_wait().is_ok_and(|status| status.is_some())) {
                *server = None;
                return false;
            }
            drop(server);
            thread::sleep(PAUSE);
        }
        panic!("the test server takes no connections; its log ends:\n{}", end_of(&self.log()));
    }

    fn wait_until_ready(&self) {
        wait_until("the server takes connections", || try_connect(&self.conninfo("postgres")).is_ok());
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.watchdog.stdin.take());
        let _ = self.watchdog.wait();
        if let Some(mut postmaster) = self.lock().take() {
            let _ = postmaster.wait();
        }
    }
}

fn try_connect(conninfo: &str) -> Result<Client, postgres::Error> {
    Client::connect(conninfo, NoTls)
}

fn end_of(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < DEADLINE, "gave up waiting until {what}");
        thread::sleep(PAUSE);
    }
}

fn signal(pid: i32, signal: Signal) {
    let pid = Pid::from_raw(pid).expect("a process id is not 0");
    // A process that is gone already needs no signal.
    let _ = kill_process(pid, signal);
}

/// The processes whose parent is `parent`; /proc/PID/stat says `PID (name) state parent ...`.
fn children_of(parent: i32) -> Vec<i32> {
    processes().filter(|(_, _, of)| *of == parent).map(|(pid, _, _)| pid).collect()
}

/// A zombie does not run: it holds nothing but its line in the table of processes.
fn is_running(pid: i32) -> bool {
    state_of(pid).is_some_and(|state| state != "Z")
}

fn state_of(pid: i32) -> Option<String> {
    processes().find(|(other, _, _)| *other == pid).map(|(_, state, _)| state)
}

fn processes() -> impl Iterator<Item = (i32, String, i32)> {
    fs::read_dir("/proc").expect("/proc (the tests run on Linux)").flatten().filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        Some((pid, fields.next()?.to_owned(), fields.next()?.parse().ok()?))
    })
}

fn watch(bindir: &Path, folder: &Path) -> Child {
    let mut watchdog = Command::new("sh");
    watchdog.args(["-c", WATCHDOG, "watchdog"]).arg(folder.join("data")).arg(folder);
    watchdog.args(as_server_user()).arg(bindir.join("pg_ctl"));
    watchdog.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/");
    in_own_group(&mut watchdog).spawn().expect("sh starts")
}

/// Control-C in a terminal must end the test process only: the rest follows in order.
fn in_own_group(command: &mut Command) -> &mut Command {
    use std::os::unix::process::CommandExt;
    command.process_group(0)
}

/// The variables of the caller's own PostgreSQL must not lead us there. With RUST_BACKTRACE the server would append
/// a backtrace to the DETAIL of every error.
fn clean(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("PG") || name.starts_with("RUST_")) {
            command.env_remove(name);
        }
    }
    command.current_dir("/");
}

/// Where the programs of the PostgreSQL under test are: that of PG_CONFIG, or Debian's 15.
fn bindir() -> &'static Path {
    static BINDIR: OnceLock<PathBuf> = OnceLock::new();
    BINDIR.get_or_init(|| bindir_of(&pg_config()))
}

fn pg_config() -> String {
    std::env::var("PG_CONFIG").unwrap_or("/usr/lib/postgresql/15/bin/pg_config".to_owned())
}

fn bindir_of(pg_config: &str) -> PathBuf {
    directory(pg_config, "--bindir")
}

fn directory(pg_config: &str, option: &str) -> PathBuf {
    let output = run(Command::new(pg_config).arg(option));
    PathBuf::from(String::from_utf8(output.stdout).expect("a path in UTF-8").trim())
}

/// The PostgreSQL under test with other files of extensions, below `folder`; returns where its programs are. They find the rest by the
/// way from there, so the tree is the same, and what is not theirs to change are links.
fn copy_of_postgresql(folder: &Path, files: &[(String, String)]) -> PathBuf {
    let directories = ["--bindir", "--pkglibdir", "--sharedir"].map(|option| directory(&pg_config(), option));
    let copies = directories.each_ref().map(|path| folder.join(path.strip_prefix("/").expect("an absolute path")));
    let ([programs, libraries, shared], [own_programs, own_libraries, own_shared]) = (directories, copies);
    let link_all = |from: &Path, to: &Path, but: &dyn Fn(&str) -> bool| {
        fs::create_dir_all(to).expect("a new folder");
        for entry in fs::read_dir(from).expect("a folder of PostgreSQL") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().and_then(|name| name.to_str()).expect("a name in UTF-8");
            if !but(name) {
                std::os::unix::fs::symlink(&path, to.join(name)).expect("a link");
            }
        }
    };
    link_all(&libraries, &own_libraries, &|_| false);
    link_all(&shared, &own_shared, &|name| name == "extension");
    let own_extensions = own_shared.join("extension");
    link_all(&shared.join("extension"), &own_extensions, &|name| files.iter().any(|(file, _)| file == name));
    for (name, contents) in files {
        fs::write(own_extensions.join(name), contents).expect("a file of an extension");
    }
    // A program is where its file is, not where a link to it is.
    fs::create_dir_all(&own_programs).expect("a new folder");
    for entry in fs::read_dir(&programs).expect("the programs") {
        let path = entry.expect("an entry").path();
        fs::copy(&path, own_programs.join(path.file_name().expect("a name"))).expect("a copy of a program");
    }
    own_programs
}

/// The words in front of a command that must not run as root; none where we are not root.
fn as_server_user() -> &'static [String] {
    static WORDS: OnceLock<Vec<String>> = OnceLock::new();
    WORDS.get_or_init(|| {
        let choices: [&[&str]; 2] = [
            &["unshare", "--user", "--map-user=postgres", "--map-group=postgres"],
            &["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"],
        ];
        if !rustix::process::geteuid().is_root() {
            return Vec::new();
        }
        let works = |words: &&[&str]| {
            let trial = Command::new(words[0]).args(&words[1..]).arg("true").output();
            trial.is_ok_and(|output| output.status.success())
        };
        let found = choices.into_iter().find(works);
        found
            .expect("a way to run PostgreSQL, which refuses root: unshare or setpriv, and a user named postgres")
            .iter()
            .map(|word| (*word).to_owned())
            .collect()
    })
}

/// Under setpriv the server is another user to the file system too, and owns its folder.
fn give_to_server(folder: &Path) {
    if as_server_user().first().is_some_and(|word| word == "setpriv") {
        run(Command::new("chown").arg("postgres:").arg(folder));
    }
}

fn run(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Runs a program to its end with `input` on its standard input, which another thread writes: the program may print meanwhile.
///
/// # Panics
/// When the program cannot be started.
pub fn feed(command: &mut Command, input: &str) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdin = child.stdin.take().expect("standard input is a pipe");
    thread::scope(|scope| {
        scope.spawn(move || match stdin.write_all(input.as_bytes()) {
            // The program stopped at an error and reads no further.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => panic!("standard input: {error}"),
            _ => drop(stdin),
        });
        child.wait_with_output().expect("the program can be waited for")
    })
}
