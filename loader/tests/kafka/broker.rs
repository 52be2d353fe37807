//! A real Apache Kafka for tests: one node, broker and controller in one process, on free ports, in a temporary folder.
//!
//! Its jars come from Maven Central (43 MB, once, below target/). No broker outlives its test process, however that ends: Java is
//! the child of a shell that reads a pipe from us, and when the pipe closes, the shell kills it and removes the folder.

use std::fs;
use std::io::{self, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::certificates::Certificates;

/// The version in pom.xml; it names the folder of the jars.
const VERSION: &str = "4.1.1";
/// A broker that does not answer by then never will, even on a busy machine. Usual: 3 seconds.
const DEADLINE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(50);

/// Runs `$2..` until a line with the name of a signal comes in, or the end: then kills it and removes the folder `$1`.
const KEEPER: &str = r#"
    folder=$1; shift
    "$@" </dev/null & child=$!
    read -r signal || signal=
    kill -"${signal:-KILL}" "$child" 2>/dev/null
    wait "$child" 2>/dev/null
    if [ -z "$signal" ]; then rm -rf -- "$folder"; fi
"#;

/// Who may log in at the listener with SASL, with each mechanism that has passwords.
pub const USER: &str = "loader";
pub const PASSWORD: &str = "correct-horse-battery-staple";
/// What Azure Event Hubs takes as password of the user `$ConnectionString`.
pub const CONNECTION_STRING: &str =
    "Endpoint=sb://stand-in.example.org/;SharedAccessKeyName=listen;SharedAccessKey=bm90LWEta2V5;EntityPath=events";

/// A running (or stopped) broker. Besides its plain port, which tests use for everything around, it has one for TLS and login with
/// every mechanism, and one that wants a certificate of the client.
#[derive(Debug)]
pub struct Broker {
    folder: tempfile::TempDir,
    jars: PathBuf,
    port: u16,
    login_port: u16,
    mutual_port: u16,
    pub certificates: Certificates,
    keeper: Mutex<Option<Child>>,
}

/// The broker that all tests of this process share, each with a topic of its own; `None` where Kafka cannot run.
pub fn shared() -> Option<&'static Broker> {
    static SHARED: OnceLock<Broker> = OnceLock::new();
    let jars = jars_or_skip()?;
    Some(SHARED.get_or_init(|| Broker::start_with(jars)))
}

impl Broker {
    /// A broker of the test's own, to stop and start; `None` where Kafka cannot run.
    pub fn start() -> Option<Broker> {
        jars_or_skip().map(Broker::start_with)
    }

    fn start_with(jars: &Path) -> Broker {
        // A port may be taken between our looking and Kafka's binding.
        let broker = (0..3).find_map(|_| {
            let folder = tempfile::Builder::new().prefix("tally-kafka-").tempdir().expect("a temporary folder");
            let broker = Broker {
                certificates: Certificates::create(folder.path()),
                folder,
                jars: jars.to_owned(),
                port: free_port(),
                login_port: free_port(),
                mutual_port: free_port(),
                keeper: Mutex::new(None),
            };
            broker.format();
            broker.launch().then_some(broker)
        });
        broker.expect("Kafka starts; its log is above")
    }

    /// For `bootstrap.servers`.
    pub fn servers(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The port with TLS and SASL; its certificate is for 127.0.0.1.
    pub fn login_port(&self) -> u16 {
        self.login_port
    }

    /// The port with TLS on both sides.
    pub fn mutual_port(&self) -> u16 {
        self.mutual_port
    }

    pub fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.servers()).set("reconnect.backoff.max.ms", "1000");
        config
    }

    /// A new topic with settings of its own.
    pub fn create_topic(&self, name: &str, partitions: i32, settings: &[(&str, &str)]) {
        let admin: AdminClient<DefaultClientContext> = self.client().create().expect("an admin client");
        let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        for (key, value) in settings {
            topic = topic.set(key, value);
        }
        let options = AdminOptions::new().operation_timeout(Some(DEADLINE)).request_timeout(Some(DEADLINE));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let created = runtime.block_on(admin.create_topics([&topic], &options)).expect("an answer of the broker");
        created.into_iter().for_each(|topic| {
            topic.expect("the topic is created");
        });
    }

    /// Deletes a topic, with all that is in it.
    pub fn delete_topic(&self, name: &str) {
        let admin: AdminClient<DefaultClientContext> = self.client().create().expect("an admin client");
        let options = AdminOptions::new().operation_timeout(Some(DEADLINE)).request_timeout(Some(DEADLINE));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let deleted = runtime.block_on(admin.delete_topics(&[name], &options)).expect("an answer of the broker");
        deleted.into_iter().for_each(|topic| {
            topic.expect("the topic is deleted");
        });
    }

    /// First and next offset of each part of a topic.
    pub fn ends(&self, topic: &str, partitions: i32) -> Vec<(i64, i64)> {
        let consumer: BaseConsumer = self.client().create().expect("a consumer");
        let ends = |part| consumer.fetch_watermarks(topic, part, DEADLINE).expect("watermarks");
        (0..partitions).map(ends).collect()
    }

    /// A clean stop; the logs stay.
    pub fn stop(&self) {
        self.end("TERM");
    }

    /// kill -9; the logs stay.
    pub fn kill(&self) {
        self.end("KILL");
    }

    /// Starts again what was stopped or killed, on the same port.
    pub fn restart(&self) {
        assert!(self.launch(), "Kafka starts again; its log is above");
    }

    fn end(&self, signal: &str) {
        let mut keeper = self.lock().take().expect("the broker runs");
        let mut orders = keeper.stdin.take().expect("a pipe to the keeper");
        orders.write_all(format!("{signal}\n").as_bytes()).expect("the keeper listens");
        drop(orders);
        keeper.wait().expect("the keeper can be waited for");
    }

    fn lock(&self) -> MutexGuard<'_, Option<Child>> {
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn java(&self) -> Command {
        let mut java = Command::new("java");
        java.args(["-Xms128m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]);
        // A broker that is killed leaves the libraries that it unpacked.
        java.arg(format!("-Djava.io.tmpdir={}", self.folder.path().display())).arg("-cp");
        java.arg(self.jars.join("*"));
        java
    }

    /// Writes the settings and formats the folder of the logs.
    fn format(&self) {
        let (folder, port, controller) = (self.folder.path().display(), self.port, free_port());
        let (login, mutual) = (self.login_port, self.mutual_port);
        let modules = "org.apache.kafka.common.security";
        // The controller lets a broker that was killed in again when its session is over, which is 9 seconds otherwise.
        let settings = format!(
            "process.roles=broker,controller\n\
             node.id=1\n\
             controller.quorum.voters=1@127.0.0.1:{controller}\n\
             listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller},\
               LOGIN://127.0.0.1:{login},MUTUAL://127.0.0.1:{mutual}\n\
             advertised.listeners=PLAINTEXT://127.0.0.1:{port},LOGIN://127.0.0.1:{login},MUTUAL://127.0.0.1:{mutual}\n\
             controller.listener.names=CONTROLLER\n\
             inter.broker.listener.name=PLAINTEXT\n\
             listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,LOGIN:SASL_SSL,MUTUAL:SSL\n\
             ssl.keystore.type=PEM\n\
             ssl.keystore.location={folder}/server.pem\n\
             ssl.truststore.type=PEM\n\
             ssl.truststore.location={folder}/authority.pem\n\
             listener.name.mutual.ssl.client.auth=required\n\
             listener.name.login.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER\n\
             listener.name.login.plain.sasl.jaas.config={modules}.plain.PlainLoginModule required \
               user_{USER}=\"{PASSWORD}\" user_$ConnectionString=\"{CONNECTION_STRING}\";\n\
             listener.name.login.scram-sha-256.sasl.jaas.config={modules}.scram.ScramLoginModule required;\n\
             listener.name.login.scram-sha-512.sasl.jaas.config={modules}.scram.ScramLoginModule required;\n\
             listener.name.login.oauthbearer.sasl.jaas.config={modules}.oauthbearer.OAuthBearerLoginModule required \
               unsecuredLoginStringClaim_sub=\"broker\";\n\
             log.dirs={folder}/logs\n\
             auto.create.topics.enable=false\n\
             group.initial.rebalance.delay.ms=0\n\
             group.consumer.session.timeout.ms=6000\n\
             group.consumer.min.session.timeout.ms=6000\n\
             group.consumer.heartbeat.interval.ms=500\n\
             group.consumer.min.heartbeat.interval.ms=500\n\
             broker.heartbeat.interval.ms=500\n\
             broker.session.timeout.ms=2000\n\
             offsets.topic.num.partitions=1\n\
             offsets.topic.replication.factor=1\n\
             transaction.state.log.num.partitions=1\n\
             transaction.state.log.replication.factor=1\n\
             transaction.state.log.min.isr=1\n\
             share.coordinator.state.topic.num.partitions=1\n\
             share.coordinator.state.topic.replication.factor=1\n\
             share.coordinator.state.topic.min.isr=1\n"
        );
        let logging = "rootLogger.level=warn\n\
             rootLogger.appenderRef.c.ref=C\n\
             appender.c.type=Console\n\
             appender.c.name=C\n\
             appender.c.layout.type=PatternLayout\n\
             appender.c.layout.pattern=%d %p %c - %m%n\n";
        fs::write(self.settings(), settings).expect("server.properties");
        fs::write(self.folder.path().join("log4j2.properties"), logging).expect("log4j2.properties");
        // Static voters: no --standalone. Any 16 bytes in base64 are a cluster id; a random one is not needed.
        let mut format = self.java();
        format.args(["kafka.tools.StorageTool", "format", "-t", "dGFsbHktdGVzdHMtMDAwMQ", "-c"]).arg(self.settings());
        for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-512"] {
            format.arg("--add-scram").arg(format!("{mechanism}=[name={USER},password={PASSWORD}]"));
        }
        let output = format.output().expect("java runs");
        assert!(output.status.success(), "kafka cannot format its folder: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn settings(&self) -> PathBuf {
        self.folder.path().join("server.properties")
    }

    /// Starts Java and waits until the broker answers; false when it ends instead.
    fn launch(&self) -> bool {
        let mut logging = std::ffi::OsString::from("-Dlog4j2.configurationFile=");
        logging.push(self.folder.path().join("log4j2.properties"));
        let log_file = self.folder.path().join("log");
        let log = fs::OpenOptions::new().create(true).append(true).open(&log_file).expect("a log file");
        let mut java = self.java();
        java.arg(logging).arg("kafka.Kafka").arg(self.settings());
        let mut keeper = Command::new("sh");
        keeper.args(["-c", KEEPER, "sh"]).arg(self.folder.path()).arg(java.get_program()).args(java.get_args());
        keeper.stdin(Stdio::piped()).stdout(log.try_clone().expect("a second handle")).stderr(log);
        *self.lock() = Some(keeper.spawn().expect("sh runs"));

        let client: BaseConsumer = self.client().set("log_level", "0").create().expect("a client");
        let started = Instant::now();
        while started.elapsed() < DEADLINE {
            if client.fetch_metadata(None, Duration::from_secs(1)).is_ok_and(|found| !found.brokers().is_empty()) {
                return true;
            }
            if std::net::TcpStream::connect(self.servers()).is_err() && self.java_has_ended() {
                break;
            }
            thread::sleep(PAUSE);
        }
        let _ = writeln!(io::stderr(), "{}", fs::read_to_string(log_file).unwrap_or_default());
        self.kill();
        false
    }

    /// The keeper goes on waiting for orders when Java has ended, so its children tell.
    fn java_has_ended(&self) -> bool {
        let Some(pid) = self.lock().as_ref().map(Child::id) else { return true };
        let children = format!("/proc/{pid}/task/{pid}/children");
        fs::read_to_string(children).is_ok_and(|children| children.trim().is_empty())
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if self.lock().is_some() {
            self.kill();
        }
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its number").port()
}

/// The folder of the jars; `None`, said loudly, where Kafka cannot run.
///
/// # Panics
/// When it cannot run although `TALLY_KAFKA_TESTS=required` is set.
fn jars_or_skip() -> Option<&'static Path> {
    static JARS: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    match JARS.get_or_init(jars) {
        Ok(jars) => Some(jars),
        Err(reason) => {
            let required = std::env::var_os("TALLY_KAFKA_TESTS").is_some_and(|value| value == "required");
            assert!(!required, "TALLY_KAFKA_TESTS=required, but {reason}");
            // Not eprintln!, which the test harness captures. It names the thread of a test after the test.
            let test = thread::current().name().unwrap_or("a test").to_owned();
            let _ = writeln!(io::stderr(), "SKIPPED {test}: {reason}");
            None
        }
    }
}

/// The folder of the jars, fetched if they are not there; or why there are none.
fn jars() -> Result<PathBuf, String> {
    if !Command::new("java").arg("-version").output().is_ok_and(|output| output.status.success()) {
        return Err("there is no Java".into());
    }
    let tests = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let folder = tests.join(format!("kafka-{VERSION}"));
    if folder.is_dir() {
        return Ok(folder);
    }
    // Into a folder of our own first: what lies under the final name is complete, also when two runs fetch at once.
    let fetched = tempfile::tempdir_in(tests).map_err(|error| format!("there is no room for its jars: {error}"))?;
    let output = Command::new("mvn")
        .args(["--quiet", "--batch-mode", "--file"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kafka/pom.xml"))
        .args(["dependency:copy-dependencies", "-DincludeScope=runtime"])
        .arg(format!("-DoutputDirectory={}", fetched.path().display()))
        .output()
        .map_err(|error| format!("Maven does not run: {error}"))?;
    if !output.status.success() {
        return Err(format!("Maven cannot fetch Kafka: {}", String::from_utf8_lossy(&output.stdout)));
    }
    match fs::rename(fetched.keep(), &folder) {
        Err(error) if !folder.is_dir() => Err(format!("its jars cannot be kept: {error}")),
        _ => Ok(folder),
    }
}
