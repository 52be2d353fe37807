//! Connections to PostgreSQL: TLS, the settings of a session, and what an error asks for.

mod tls;

use std::time::Duration;

use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::error::{DbError, SqlState};
use tokio_postgres::{Client, NoTls, config};

use crate::config::{Postgres, SslMode};
use crate::decode::{Reason, Rejection};
use crate::{Error, Result};

/// Settings of every session. They travel as start-up options, which a proxy that pools transactions refuses: behind one, the
/// sessions of leases and prepared statements would not be ours.
const OPTIONS: &str = "-c TimeZone=UTC -c DateStyle=ISO -c IntervalStyle=postgres -c client_min_messages=warning \
                       -c idle_in_transaction_session_timeout=30s -c statement_timeout=0";

/// Prefix of the application name; with the pipeline behind it, it tells which sessions a claim may end.
const APPLICATION: &str = "tally-loader ";

/// Connects once. The connection is driven by a task of its own until the client is dropped.
pub async fn connect(settings: &Postgres, pipeline: &str) -> Result<Client, ConnectError> {
    let mut config = tokio_postgres::Config::new();
    config
        .host(&settings.host)
        .port(settings.port)
        .dbname(&settings.dbname)
        .user(&settings.user)
        .application_name(format!("{APPLICATION}{pipeline}"))
        .options(OPTIONS)
        .connect_timeout(Duration::from_secs(5))
        .keepalives(true)
        .keepalives_idle(Duration::from_secs(10))
        .keepalives_interval(Duration::from_secs(5))
        .keepalives_retries(3)
        .tcp_user_timeout(Duration::from_secs(30))
        .target_session_attrs(TargetSessionAttrs::ReadWrite);
    if let Some(password) = &settings.password {
        config.password(password.reveal());
    }
    let mode =
        settings.sslmode.unwrap_or(if is_local(&settings.host) { SslMode::Disable } else { SslMode::VerifyFull });
    config.ssl_mode(if mode == SslMode::Disable { config::SslMode::Disable } else { config::SslMode::Require });
    if mode == SslMode::Disable {
        // Reading the certificates that the system trusts takes longer than all else.
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(keep(connection));
        return Ok(client);
    }
    let connector = tls::connector(settings, mode).map_err(|error| ConnectError::Tls(error.to_string()))?;
    let (client, connection) = config.connect(connector).await?;
    tokio::spawn(keep(connection));
    Ok(client)
}

/// Serves a connection until it ends.
async fn keep(connection: impl Future<Output = Result<(), tokio_postgres::Error>>) {
    if let Err(error) = connection.await {
        tracing::debug!("connection to PostgreSQL ended: {error}");
    }
}

/// A unix socket or a loopback address: nobody listens in between.
fn is_local(host: &str) -> bool {
    host.starts_with('/') || host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("TLS: {0}")]
    Tls(String),
    #[error("{}", describe(.0))]
    Postgres(#[from] tokio_postgres::Error),
}

impl ConnectError {
    /// A sentence with the way out when trying again cannot help: a refused login stays refused. `None`: the server may be
    /// starting, or the network away.
    pub fn refusal(&self) -> Option<&'static str> {
        let error = match self {
            Self::Tls(_) => return Some("Look at postgres.sslrootcert, postgres.sslcert and postgres.sslkey."),
            Self::Postgres(error) => error,
        };
        if let Some(error) = error.as_db_error() {
            return refusal_of(error.code());
        }
        if tls::is_refusal(error) {
            return Some(
                "With sslmode \"verify-ca\" or \"verify-full\" postgres.sslrootcert (without it: the system) must have the authority \
                 that signed the server's certificate, and with \"verify-full\" that must be for the name in postgres.host. The server may want postgres.sslcert from an authority that it knows.",
            );
        }
        // The library has no codes for these two.
        match std::error::Error::source(error).map(ToString::to_string).as_deref() {
            Some("server does not support TLS") => {
                Some("Switch ssl on in the server; postgres.sslmode = \"disable\" does without, where nobody listens.")
            }
            Some("password missing") => {
                Some("The server asks for a password: set postgres.password_env or postgres.password_file.")
            }
            _ => None,
        }
    }
}

fn refusal_of(code: &SqlState) -> Option<&'static str> {
    match &code.code()[..2] {
        "28" if code == &SqlState::INVALID_PASSWORD => Some(
            "Look at postgres.user, and at the password that postgres.password_env or postgres.password_file names.",
        ),
        "28" => {
            Some("Look at postgres.user, at postgres.sslmode and postgres.sslcert, and at pg_hba.conf of the server.")
        }
        "3D" => Some("Look at postgres.dbname."),
        "22" | "42" => Some("Look at the section postgres of the configuration."),
        _ => None,
    }
}

/// Connects, and tries again until `timeout` is over.
pub async fn connect_within(settings: &Postgres, pipeline: &str, timeout: Duration) -> Result<Client> {
    let start = tokio::time::Instant::now();
    let mut pause = Duration::from_millis(50);
    loop {
        match connect(settings, pipeline).await {
            Ok(client) => return Ok(client),
            Err(error) => {
                if error.refusal().is_none() && start.elapsed() + pause < timeout {
                    tracing::debug!("PostgreSQL is not there yet: {error}");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(2));
                    continue;
                }
                return Err(unreachable(settings, &error));
            }
        }
    }
}

/// A start that ends without a connection.
pub fn unreachable(settings: &Postgres, error: &ConnectError) -> Error {
    let place = format!("{}:{}/{}", settings.host, settings.port, settings.dbname);
    let message = format!("cannot connect to PostgreSQL at {place}: {error}");
    match error.refusal() {
        Some(hint) => Error::Refused { message, hint: Some(hint.to_owned()) },
        None => Error::Unreachable(message),
    }
}

/// One line that says what happened. `Display` of the library names the kind only.
pub fn describe(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(error) => format!("{} (SQLSTATE {})", error.message(), error.code().code()),
        None => match std::error::Error::source(error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        },
    }
}

/// What may be logged of a refused row. Errors of class 22 repeat the value, which belongs into the dead letter alone.
pub fn without_value(error: &DbError) -> String {
    match error.code().code() {
        code if code.starts_with("22") => format!("a value that its column does not take (SQLSTATE {code})"),
        code => format!("{} (SQLSTATE {code})", error.message()),
    }
}

/// The one question that an error of a running loader has to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The server or the connection is away or busy: the same again later, for ever.
    Retry,
    /// Somebody else owns the part now.
    Fenced,
    /// A row is at fault.
    Poison,
    /// No leaf takes a row: the leaves known here may be old.
    NoLeaf,
    /// The table is not what the program was compiled for.
    Recompile,
    /// Something that a person has to repair, such as a revoked privilege; tried again at long intervals.
    Wait,
}

/// Sorts an error of PostgreSQL, or of the connection to it.
pub fn verdict(error: &tokio_postgres::Error) -> Verdict {
    match error.as_db_error() {
        None => Verdict::Retry,
        Some(error) => verdict_of(error.code(), error.constraint().is_some()),
    }
}

fn verdict_of(code: &SqlState, names_constraint: bool) -> Verdict {
    let code = code.code();
    match code {
        "TL001" => Verdict::Fenced,
        "42703" | "42804" | "0A000" | "22P03" => Verdict::Recompile,
        // "no partition of relation found for row" has the code of a CHECK, but no constraint to name.
        "23514" if !names_constraint => Verdict::NoLeaf,
        "40001" | "40P01" | "55P03" | "57P01" | "57P02" | "57P03" | "57014" | "25P03" => Verdict::Retry,
        "P0001" => Verdict::Poison,
        _ => match &code[..2] {
            "08" | "53" => Verdict::Retry,
            // 54: a value too large for an index, a row too large for a page, JSON nested too deeply.
            "22" | "23" | "54" => Verdict::Poison,
            _ => Verdict::Wait,
        },
    }
}

/// Whether a connection failed because nobody takes any there, now.
pub fn is_away(error: &tokio_postgres::Error) -> bool {
    error.code().is_none_or(|code| *code == SqlState::CANNOT_CONNECT_NOW)
}

/// An error before the first rows: exit 4 when the server or the connection has gone, exit 3 when something does not fit.
pub fn at_start(doing: &str, error: &tokio_postgres::Error) -> Error {
    let text = format!("cannot {doing}: {}", describe(error));
    if verdict(error) == Verdict::Retry { Error::Unreachable(text) } else { Error::unfit(text) }
}

/// The row that the server's context names, counted from 1 within one COPY into this table (its name alone).
pub fn line(error: &DbError, relation: &str) -> Option<usize> {
    line_of(error.where_()?, relation)
}

/// The COPY's own part of a context is the last and begins a line: `COPY events, line 7778, column a: ".."`. Words are in the
/// language of the server, so only the names of command and table and the place of the number are relied on.
///
/// Values of messages may stand in it, behind the colon, and before it, where a trigger ran a statement; and they may look like
/// a context themselves. So where two rows are named, none is.
fn line_of(context: &str, relation: &str) -> Option<usize> {
    let start = format!("COPY {relation}, ");
    let starts_line = |at: &usize| *at == 0 || context.as_bytes()[at - 1] == b'\n';
    let candidates = context.match_indices(&start).map(|(at, _)| at).filter(starts_line).filter_map(|at| {
        let behind = &context[at + start.len()..];
        let is_last = !behind.contains('\n') || (behind.contains(": \"") && behind.ends_with('"'));
        let part = behind.split([',', ':', '\n']).next()?;
        let (word, number) = part.trim().rsplit_once(' ')?;
        (is_last && !word.is_empty()).then(|| number.parse().ok()).flatten()
    });
    let mut lines: Vec<usize> = candidates.collect();
    lines.dedup();
    if let [line] = lines[..] { Some(line) } else { None }
}

/// The dead letter of a row that the server refused.
pub fn rejection(error: &DbError) -> Rejection {
    let reason = match error.code().code() {
        "22001" => Reason::TooLong,
        "22003" | "22008" | "54000" | "54001" => Reason::OutOfRange,
        "22021" | "22P05" | "22P02" => Reason::BadText,
        "23502" => Reason::MissingRequired,
        "23514" if error.constraint().is_none() => Reason::NoPartition,
        _ => Reason::Constraint,
    };
    Rejection {
        reason,
        column: error.column().map(str::to_owned),
        sqlstate: Some(error.code().code().to_owned()),
        error: error.message().chars().filter(|c| *c != '\0').take(1_000).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_of_error_has_its_verdict() {
        for (code, verdict) in [
            ("TL001", Verdict::Fenced),
            ("42703", Verdict::Recompile),
            ("22P03", Verdict::Recompile),
            ("22003", Verdict::Poison),
            ("23505", Verdict::Poison),
            ("23503", Verdict::Poison),
            ("P0001", Verdict::Poison),
            ("54000", Verdict::Poison),
            ("08006", Verdict::Retry),
            ("57P01", Verdict::Retry),
            ("40P01", Verdict::Retry),
            ("53100", Verdict::Retry),
            ("55P03", Verdict::Retry),
            ("42501", Verdict::Wait),
            ("42P01", Verdict::Wait),
            ("XX001", Verdict::Wait),
        ] {
            assert_eq!(verdict_of(&SqlState::from_code(code), true), verdict, "{code}");
        }
        assert_eq!(verdict_of(&SqlState::from_code("23514"), true), Verdict::Poison);
        assert_eq!(verdict_of(&SqlState::from_code("23514"), false), Verdict::NoLeaf);
    }

    #[test]
    fn the_context_names_the_row_in_any_language() {
        let line_of = |context| super::line_of(context, "events");
        assert_eq!(line_of("COPY events, line 7778"), Some(7778));
        assert_eq!(line_of("COPY events, line 3, column customer_id"), Some(3));
        assert_eq!(line_of("COPY events, line 3, column v: \"a, line 9\""), Some(3));
        assert_eq!(line_of("COPY events, line 3: \"a\tb\""), Some(3));
        assert_eq!(line_of("COPY events, Zeile 12, Spalte a"), Some(12));
        assert_eq!(line_of("PL/pgSQL function f() line 3 at RAISE\nCOPY events, line 12"), Some(12));
        assert_eq!(line_of("JSON data, line 1: x\nCOPY events, line 5, column j"), Some(5));
        assert_eq!(line_of("SQL statement \"SELECT 1\""), None);
        assert_eq!(line_of("COPY events"), None);
        assert_eq!(line_of("COPY other, line 1\nCOPY events, line 2"), Some(2));
        assert_eq!(super::line_of("COPY a, line 7\nb, line 3, column x", "a, line 7\nb"), Some(3));
    }

    #[test]
    fn a_value_in_the_context_cannot_name_another_row() {
        let line_of = |context| super::line_of(context, "events");
        assert_eq!(line_of("COPY events, line 3, column p: \"\nx\n\""), Some(3));
        assert_eq!(line_of("COPY events, line 3, column p: \"\nCOPY events, line 1, column p: \"x\"\""), None);
        assert_eq!(line_of("SQL statement \"SELECT '\nCOPY events, line 1'\"\nCOPY events, line 7"), Some(7));
        assert_eq!(
            line_of("SQL statement \"\nCOPY events, line 1, column p: \"x\"\nPL/pgSQL function f() line 3"),
            None
        );
    }

    #[test]
    fn only_a_socket_or_loopback_goes_without_tls() {
        for local in ["/var/run/postgresql", "localhost", "127.0.0.1", "::1"] {
            assert!(is_local(local), "{local}");
        }
        for remote in ["db.example.org", "10.0.0.1", "localhost.example.org"] {
            assert!(!is_local(remote), "{remote}");
        }
    }
}
