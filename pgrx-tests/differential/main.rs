//! A sketch of tally has the bytes of one of postgresql-hll, and gives its answers and its errors: random operations are
//! carried out by both, each in a session that finds its functions by the search path. What may differ is in `exceptions.rs`.
//!
//! ```sh
//! make differential                                   # 1,000,000 operations
//! make differential OPERATIONS=10000 SEED=17          # those that seed 17 begins with
//! ```

mod exceptions;
mod operations;
mod stored;
mod values;

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::io::{Read as _, Write as _};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use postgres::{Client, Config, Error, NoTls};
use tally_server_tests::cluster::{self, Database};

use exceptions::Exception;
use operations::{Generator, Gives, Operation, SETTINGS};
use stored::Stored;
use values::hex;

const OPERATIONS: u64 = 1_000_000;
/// Operations that are sent together.
const BATCH: u64 = 500;
/// After so many batches the sketches go through COPY, into the table that operations read.
const BATCHES_BETWEEN_COPIES: u64 = 20;
/// Malformed values that are copied one by one then.
const MALFORMED_COPIES: u64 = 10;
/// As much as anybody reads.
const DIFFERENCES: usize = 5;

/// What operations name beside the extension. The aggregates are a user's, made of support functions.
const SCHEMA: &str = "\
CREATE TEMP TABLE sketches (slot integer PRIMARY KEY, sketch hll);
CREATE AGGREGATE pg_temp.union_cardinality(hll) (SFUNC = hll_union_trans, STYPE = internal, FINALFUNC = hll_card_unpacked);
CREATE AGGREGATE pg_temp.union_floor(hll) (SFUNC = hll_union_trans, STYPE = internal, FINALFUNC = hll_floor_card_unpacked);
CREATE AGGREGATE pg_temp.union_ceiling(hll) (SFUNC = hll_union_trans, STYPE = internal, FINALFUNC = hll_ceil_card_unpacked);";

/// What carries them out.
const HARNESS: &str = "
    SET log_min_messages = fatal;
    CREATE TEMP TABLE received (sketch hll);
    CREATE FUNCTION pg_temp.answers(statements text[]) RETURNS TABLE (state text, message text, answer text)
    LANGUAGE plpgsql AS $$
    DECLARE
      statement text;
    BEGIN
      FOREACH statement IN ARRAY statements LOOP
        state := NULL; message := NULL; answer := NULL;
        BEGIN
          EXECUTE statement INTO STRICT answer;
        EXCEPTION WHEN OTHERS THEN
          GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT;
        END;
        RETURN NEXT;
      END LOOP;
    END
    $$;";

/// What an operation may be refused with. Anything else, such as a syntax error, would be a fault of this test.
const REFUSALS: &[&str] = &["22000", "22003", "22023", "22P02"];

/// One of the two extensions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Side {
    Peer,
    Tally,
}

impl Side {
    /// What leads a session to this one.
    fn path(self) -> &'static str {
        match self {
            Side::Peer => "SET search_path = public;",
            Side::Tally => "SET search_path = tally; SET tally.hll_estimator = classic;",
        }
    }
}

/// What one side says to one operation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    state: Option<String>,
    message: Option<String>,
    value: Option<String>,
}

impl Answer {
    fn error(state: &str, message: &str) -> Answer {
        Answer { state: Some(state.to_owned()), message: Some(message.to_owned()), value: None }
    }

    fn refusal(error: &Error) -> Answer {
        let error = error.as_db_error().unwrap_or_else(|| panic!("not an error of the server: {error}"));
        Answer::error(error.code().code(), error.message())
    }

    fn is_error(&self) -> bool {
        self.state.is_some()
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.state, &self.message, &self.value) {
            (Some(state), Some(message), _) => write!(f, "ERROR: {state}: {message}"),
            (_, _, Some(value)) => f.write_str(value),
            _ => f.write_str("NULL"),
        }
    }
}

/// The session of one side.
struct Session {
    client: Client,
    /// What it has been warned of.
    notices: Arc<Mutex<Vec<String>>>,
}

impl Session {
    fn new(database: &Database, side: Side) -> Session {
        let notices = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&notices);
        let mut config: Config = database.conninfo().parse().unwrap();
        config.notice_callback(move |notice| {
            let line = format!("{} {}: {}", notice.severity(), notice.code().code(), notice.message());
            heard.lock().unwrap().push(line);
        });
        let mut client = config.connect(NoTls).expect("a connection to the test server");
        client.batch_execute(side.path()).unwrap();
        client.batch_execute(SCHEMA).unwrap();
        client.batch_execute(HARNESS).unwrap();
        Session { client, notices }
    }

    fn answers(&mut self, statements: &[&str]) -> Vec<Answer> {
        let rows = self.client.query("SELECT * FROM pg_temp.answers($1)", &[&statements]).unwrap();
        rows.iter().map(|row| Answer { state: row.get(0), message: row.get(1), value: row.get(2) }).collect()
    }

    fn take_notices(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notices.lock().unwrap())
    }

    fn copy_in(&mut self, target: &str, bytes: &[u8]) -> Result<(), Error> {
        let mut writer = self.client.copy_in(target)?;
        writer.write_all(bytes).unwrap();
        writer.finish().map(drop)
    }

    fn copy_out(&mut self, source: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.client.copy_out(source).unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    }
}

/// Both sides, and what has become of their operations.
struct Comparison {
    seed: u64,
    sessions: [Session; 2],
    generator: Generator,
    done: u64,
    refused: u64,
    sketches: [u64; 5],
    excused: BTreeMap<Exception, u64>,
    /// The statements that have made the settings what they are.
    settings: [Option<Operation>; SETTINGS],
}

impl Comparison {
    fn new(database: &Database, seed: u64) -> Comparison {
        let mut owner = database.connect();
        owner
            .batch_execute("CREATE EXTENSION hll SCHEMA public")
            .expect("postgresql-hll beside tally (make differential)");
        Comparison {
            seed,
            sessions: [Side::Peer, Side::Tally].map(|side| Session::new(database, side)),
            generator: Generator::new(seed),
            done: 0,
            refused: 0,
            sketches: [0; 5],
            excused: BTreeMap::new(),
            settings: Default::default(),
        }
    }

    /// Both sides at the same time.
    fn both<T: Send>(&mut self, of: impl Fn(Side, &mut Session) -> T + Sync) -> [T; 2] {
        let [peer, tally] = &mut self.sessions;
        thread::scope(|scope| {
            let peer = scope.spawn(|| of(Side::Peer, peer));
            let tally = of(Side::Tally, tally);
            [peer.join().expect("postgresql-hll answers"), tally]
        })
    }

    fn batch(&mut self, size: u64) {
        let operations: Vec<Operation> = (0..size).map(|_| self.generator.next()).collect();
        let [peer, tally] = self.both(|side, session| {
            let statements: Vec<&str> = operations.iter().map(|operation| operation.on(side)).collect();
            session.answers(&statements)
        });
        assert_eq!((peer.len(), tally.len()), (operations.len(), operations.len()));
        let mut differences = Vec::new();
        for (number, operation) in operations.into_iter().enumerate() {
            let (peer, tally) = (&peer[number], &tally[number]);
            if let Err(difference) = self.compare(&operation, peer, tally, self.done + number as u64) {
                differences.push(difference);
            }
            if let (Gives::Setting(setting), false) = (operation.gives, tally.is_error()) {
                self.settings[setting] = Some(operation);
            }
        }
        assert!(differences.is_empty(), "{}", differences[..differences.len().min(DIFFERENCES)].join("\n"));
        let [peer, tally] = self.both(|_, session| session.take_notices());
        assert_eq!(peer, tally, "TALLY_DIFFERENTIAL_SEED={}: notices of operations from {} on", self.seed, self.done);
        self.done += size;
    }

    fn compare(&mut self, operation: &Operation, peer: &Answer, tally: &Answer, number: u64) -> Result<(), String> {
        for answer in [peer, tally] {
            if answer.state.as_deref().is_some_and(|state| !REFUSALS.contains(&state)) {
                return Err(self.explain(operation, peer, tally, number));
            }
        }
        if peer != tally {
            let exception = operation.exceptions.iter().find(|exception| exception.allows(peer, tally));
            let exception = exception.ok_or_else(|| self.explain(operation, peer, tally, number))?;
            *self.excused.entry(exception.kind()).or_default() += 1;
            return Ok(());
        }
        for exception in operation.exceptions.iter().filter(|exception| exception.is_other_question()) {
            *self.excused.entry(exception.kind()).or_default() += 1;
        }
        self.refused += u64::from(tally.is_error());
        if let (Gives::Sketch, Some(value)) = (operation.gives, &tally.value) {
            let sketch = Stored::new(from_hex(value));
            self.sketches[usize::from(sketch.kind())] += 1;
            self.generator.keep(sketch);
        }
        Ok(())
    }

    /// All that it takes to see the difference in psql.
    fn explain(&self, operation: &Operation, peer: &Answer, tally: &Answer, number: u64) -> String {
        let mut text = format!("\n-- TALLY_DIFFERENTIAL_SEED={}: operation {number}\n", self.seed);
        for (side, answer) in [(Side::Peer, peer), (Side::Tally, tally)] {
            let mut line = |line: &str| writeln!(text, "{line}").expect("a String takes everything");
            line(side.path());
            for setting in self.settings.iter().flatten() {
                line(&format!("{};", setting.on(side)));
            }
            if operation.needs_schema() {
                line("DISCARD TEMP;");
                line(SCHEMA);
            }
            for slot in &operation.slots {
                let bytes = hex(self.generator.row(*slot).bytes());
                line(&format!("INSERT INTO sketches VALUES ({slot}, '{bytes}');"));
            }
            line(&format!("{};", operation.on(side)));
            line(&format!("-- {side:?}: {answer}"));
        }
        text
    }

    /// Every sketch goes into a table and comes out again, as text or in the binary format.
    fn copy(&mut self, is_binary: bool) {
        let sketches = self.generator.fill_table().to_vec();
        let format = if is_binary { "binary" } else { "text" };
        let stream = if is_binary { binary_stream(&sketches) } else { text_stream(&sketches) };
        let answers = self.both(|_, session| {
            session.client.batch_execute("TRUNCATE sketches").unwrap();
            session.copy_in(&format!("COPY sketches FROM STDIN (FORMAT {format})"), &stream).unwrap();
            let stored = session.copy_out("COPY (SELECT * FROM sketches ORDER BY slot) TO STDOUT (FORMAT binary)");
            let shown = session.copy_out("COPY (SELECT * FROM sketches ORDER BY slot) TO STDOUT (FORMAT text)");
            (stored, shown)
        });
        let [peer, tally] = answers;
        let [peer_lines, tally_lines] = [&peer.1, &tally.1].map(|shown| shown.split(|byte| *byte == b'\n'));
        let differs = peer_lines.zip(tally_lines).position(|(peer, tally)| peer != tally);
        assert!(
            peer == tally && tally.0 == binary_stream(&sketches),
            "TALLY_DIFFERENTIAL_SEED={} after {} operations: COPY of {:?} as {format}",
            self.seed,
            self.done,
            differs.and_then(|row| sketches.get(row)).map(|sketch| hex(sketch.bytes()))
        );
        self.done += sketches.len() as u64;
    }

    /// One value that is hardly a sketch, in the binary format. The peer does not check it: it is asked for the text.
    fn copy_malformed(&mut self) {
        let bytes = self.generator.malformed();
        let [peer, tally] = &mut self.sessions;
        let text = format!("SELECT encode(hll_send('{}'::hll), 'hex')", hex(&bytes));
        let peer = peer.answers(&[&text]).remove(0);
        tally.client.batch_execute("TRUNCATE received").unwrap();
        let tally = match tally.copy_in("COPY received FROM STDIN (FORMAT binary)", &binary_value(&bytes)) {
            Err(error) => Answer::refusal(&error),
            Ok(()) => tally.answers(&["SELECT encode(hll_send(sketch), 'hex') FROM received"]).remove(0),
        };
        let exception = Exception::of_input(&bytes);
        let is_allowed = exception.is_some_and(|exception| exception.allows(&peer, &tally));
        assert!(
            peer == tally || is_allowed,
            "TALLY_DIFFERENTIAL_SEED={} after {} operations: {} as text and by COPY in the binary format\n{peer}\n{tally}",
            self.seed,
            self.done,
            hex(&bytes)
        );
        *self.excused.entry(Exception::UncheckedBytes).or_default() += 1;
        self.done += 1;
    }
}

const BINARY_HEAD: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
const BINARY_END: &[u8] = b"\xff\xff";

fn field(bytes: &[u8]) -> Vec<u8> {
    [&i32::try_from(bytes.len()).expect("a small field").to_be_bytes()[..], bytes].concat()
}

fn binary_value(bytes: &[u8]) -> Vec<u8> {
    [BINARY_HEAD, &1i16.to_be_bytes(), &field(bytes), BINARY_END].concat()
}

fn binary_stream(sketches: &[Stored]) -> Vec<u8> {
    let mut stream = BINARY_HEAD.to_vec();
    for (slot, sketch) in (0i32..).zip(sketches) {
        stream.extend(2i16.to_be_bytes());
        stream.extend(field(&slot.to_be_bytes()));
        stream.extend(field(sketch.bytes()));
    }
    stream.extend(BINARY_END);
    stream
}

fn text_stream(sketches: &[Stored]) -> Vec<u8> {
    let lines = sketches.iter().enumerate().map(|(slot, sketch)| format!("{slot}\t\\{}\n", hex(sketch.bytes())));
    lines.collect::<String>().into_bytes()
}

fn from_hex(digits: &str) -> Vec<u8> {
    let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).expect("two digits");
    (0..digits.len()).step_by(2).map(byte).collect()
}

fn number_from(variable: &str, otherwise: impl FnOnce() -> u64) -> u64 {
    let given = std::env::var(variable).ok().filter(|given| !given.is_empty());
    given.map_or_else(otherwise, |given| given.parse().unwrap_or_else(|_| panic!("{variable} is not a number")))
}

#[test]
fn random_operations_have_the_answers_of_postgresql_hll() {
    let seed = number_from("TALLY_DIFFERENTIAL_SEED", || rand::random_range(0..1 << 32));
    let operations = number_from("TALLY_DIFFERENTIAL_OPERATIONS", || OPERATIONS);
    println!("TALLY_DIFFERENTIAL_SEED={seed} TALLY_DIFFERENTIAL_OPERATIONS={operations}");
    let begin = Instant::now();
    let database = cluster::database();
    let mut comparison = Comparison::new(&database, seed);
    for round in 0.. {
        if comparison.done >= operations {
            break;
        }
        if round % BATCHES_BETWEEN_COPIES == BATCHES_BETWEEN_COPIES - 1 {
            comparison.copy(round % (2 * BATCHES_BETWEEN_COPIES) < BATCHES_BETWEEN_COPIES);
            (0..MALFORMED_COPIES).for_each(|_| comparison.copy_malformed());
        }
        comparison.batch(BATCH.min(operations.saturating_sub(comparison.done)));
    }
    let Comparison { done, refused, sketches, excused, .. } = comparison;
    println!("TALLY_DIFFERENTIAL_SEED={seed}: {done} operations in {:.0?}, {refused} refused by both", begin.elapsed());
    println!("sketches, undefined to full: {sketches:?}; documented differences met: {excused:?}");
}
