//! What the sessions of the random test have done, step by step: to be carried out, to be repeated, and to be read as SQL.

use std::collections::HashMap;
use std::fmt;
use std::io::Write as _;
use std::sync::Arc;

use postgres::{Client, Error, Row, Statement};
use tally_server_tests::cluster::Database;

use crate::oracle;

/// What one session does at a time.
#[derive(Clone, Debug)]
pub struct Step {
    pub session: usize,
    pub action: Action,
    /// What may happen to any statement of a session that is where this one is.
    pub tolerated: &'static [&'static str],
    /// What the server said against it.
    pub error: Option<String>,
}

impl Step {
    pub fn is_check(&self) -> bool {
        matches!(self.action, Action::Check(_))
    }
}

#[derive(Clone, Debug)]
pub enum Action {
    Statement(String, Expect),
    /// COPY, and the lines that it reads.
    Copy(String, String),
    Check(Arc<Check>),
}

/// A query that answers no row as long as all is well.
#[derive(Debug)]
pub struct Check {
    pub title: String,
    /// Its rows have one column of type text.
    pub query: String,
}

/// How a statement may end.
#[derive(Clone, Copy, Debug)]
pub enum Expect {
    Success,
    /// An idea that must fail with this SQLSTATE.
    Refusal(&'static str),
    /// Another session may have changed a row and not ended, or have moved it to another partition.
    Change,
    /// A refresh or DDL: another session may be refreshing, or reading what is to be dropped.
    SuccessOrBusy,
    /// The same where it must fail with this SQLSTATE, if nobody is in the way.
    RefusalOrBusy(&'static str),
}

impl Expect {
    fn allows(self, state: &str) -> bool {
        match self {
            Expect::Refusal(expected) => state == expected,
            // 21000: a key that another session has deleted and this one has inserted again is there twice in an old snapshot.
            Expect::Change => ["55P03", "40P01", "40001", "21000"].contains(&state),
            Expect::RefusalOrBusy(expected) if state == expected => true,
            Expect::SuccessOrBusy | Expect::RefusalOrBusy(_) => ["55P03", "40P01", "25001"].contains(&state),
            Expect::Success => false,
        }
    }
}

/// Why the test is red.
#[derive(Clone, Debug, PartialEq)]
pub enum Failure {
    /// A check has answered rows.
    Rows {
        session: usize,
        title: String,
        rows: Vec<String>,
    },
    Error {
        session: usize,
        action: String,
        state: String,
        error: String,
    },
    NotRefused {
        session: usize,
        action: String,
    },
}

impl Failure {
    /// The same kind of failure, wherever it shows.
    pub fn is_like(&self, other: &Failure) -> bool {
        match (self, other) {
            (Failure::Rows { title, .. }, Failure::Rows { title: other, .. }) => title == other,
            (Failure::Error { action, state, .. }, Failure::Error { action: other_action, state: other_state, .. }) => {
                (action, state) == (other_action, other_state)
            }
            (Failure::NotRefused { action, .. }, Failure::NotRefused { action: other, .. }) => action == other,
            _ => false,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Rows { session, title, rows } => write!(f, "session {session}: {title}:\n{}", rows.join("\n")),
            Failure::Error { session, action, error, .. } => write!(f, "session {session}: {action}: {error}"),
            Failure::NotRefused { session, action } => write!(f, "session {session}: not refused: {action}"),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::Statement(sql, _) => write!(f, "{sql};"),
            Action::Copy(sql, lines) => write!(f, "{sql};\n{lines}\\."),
            Action::Check(check) => write!(f, "-- answers no row unless {}\n{};", check.title, check.query),
        }
    }
}

/// The steps as SQL, with the name of the session wherever another one goes on.
pub fn script(steps: &[Step]) -> String {
    let mut text = String::new();
    let mut last = None;
    for step in steps {
        if last != Some(step.session) {
            text += &format!("\n-- session {}\n", step.session);
            last = Some(step.session);
        }
        text += &format!("{}\n", step.action);
    }
    text
}

/// A connection that carries out steps.
pub struct Actor {
    pub client: Client,
    /// Through prepared statements, by their text: plans that are kept have to stay right as well.
    checks: HashMap<String, Statement>,
}

impl Actor {
    /// `patience` is for how long it waits for the locks of others.
    pub fn new(database: &Database, patience: &str) -> Actor {
        let mut client = database.connect();
        client.batch_execute(&format!("SET lock_timeout = '{patience}'")).unwrap();
        Actor { client, checks: HashMap::new() }
    }

    /// The rows that a check has found. An error is one of the server, or the connection is lost.
    pub fn carry_out(&mut self, action: &Action) -> Result<Vec<String>, Error> {
        match action {
            Action::Statement(sql, _) => self.client.batch_execute(sql).map(|()| vec![]),
            Action::Copy(sql, lines) => {
                let mut writer = self.client.copy_in(sql)?;
                writer.write_all(lines.as_bytes()).expect("the server takes rows");
                writer.finish().map(|_| vec![])
            }
            Action::Check(check) => self.look(check),
        }
    }

    fn look(&mut self, check: &Check) -> Result<Vec<String>, Error> {
        let statement = match self.checks.get(&check.query) {
            Some(statement) => statement.clone(),
            None => {
                let statement = self.client.prepare(&check.query)?;
                self.checks.insert(check.query.clone(), statement.clone());
                statement
            }
        };
        // PostgreSQL may go on with a plan that does not know a partition attached meanwhile, and miss its rows in the plain query; or
        // with one that leaves out what has been changed meanwhile, which the rollup refuses. It notices with the next lock that it
        // takes, and the one that ATTACH takes is free when everybody has been told.
        let is_in_transaction = self.client.batch_execute("SAVEPOINT plan").is_ok();
        let mut answer = self.client.query(&statement, &[]);
        let is_stale = |answer: &Result<Vec<Row>, Error>| match answer {
            Ok(rows) => !rows.is_empty(),
            Err(error) => error.as_db_error().is_some_and(|error| error.message().contains("was being planned")),
        };
        if is_stale(&answer) {
            let (begin, end) =
                if is_in_transaction { ("ROLLBACK TO plan", "ROLLBACK TO plan") } else { ("BEGIN", "ROLLBACK") };
            let wait = "LOCK TABLE ONLY events IN SHARE UPDATE EXCLUSIVE MODE";
            self.client.batch_execute(&format!("{begin}; {wait}; {end}"))?;
            answer = self.client.query(&statement, &[]);
        }
        if is_in_transaction && answer.is_ok() {
            self.client.batch_execute("RELEASE plan")?;
        }
        let rows = answer?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }
}

/// Whether a step has ended as it may.
pub fn judge(step: &Step, answer: &Result<Vec<String>, Error>) -> Result<(), Failure> {
    let session = step.session;
    match (answer, &step.action) {
        (Ok(_), Action::Statement(sql, Expect::Refusal(_) | Expect::RefusalOrBusy(_))) => {
            Err(Failure::NotRefused { session, action: sql.clone() })
        }
        (Ok(rows), Action::Check(check)) if !rows.is_empty() => {
            Err(Failure::Rows { session, title: check.title.clone(), rows: rows.clone() })
        }
        (Ok(_), _) => Ok(()),
        (Err(error), action) => {
            let state = oracle::state(error).code();
            let is_expected = matches!(action, Action::Statement(_, expect) if expect.allows(state));
            if is_expected || step.tolerated.contains(&state) {
                return Ok(());
            }
            let action = match action {
                Action::Statement(sql, _) | Action::Copy(sql, _) => sql.clone(),
                Action::Check(check) => format!("check that {}", check.title),
            };
            Err(Failure::Error { session, action, state: state.into(), error: format!("{error:?}") })
        }
    }
}
