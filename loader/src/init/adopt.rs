//! `init --adopt`: the state tables that `init` once made without the extension become those of the extension, with all they
//! hold, in one transaction.

use tokio_postgres::{Client, Error as PostgresError, Transaction};

use super::LOCK;
use crate::program::quote;
use crate::{Error, Result, postgres};

/// Where the former schema is meanwhile.
const FORMER: &str = "tally_before_adoption";

/// The tables whose rows are kept; members and leases begin anew.
const KEPT: [&str; 4] = ["loader_sources", "loader_offsets", "dead_letters", "loader_gaps"];

/// All that `sql/loader.sql` makes, as DROP wants it: whoever depends on what.
const OBJECTS: [(&str, &str); 9] = [
    ("VIEW", "loader_status"),
    ("FUNCTION", "advance_offsets"),
    ("FUNCTION", "loader_format"),
    ("TABLE", "loader_gaps"),
    ("TABLE", "dead_letters"),
    ("TABLE", "loader_leases"),
    ("TABLE", "loader_members"),
    ("TABLE", "loader_offsets"),
    ("TABLE", "loader_sources"),
];

/// Makes the extension and moves the state into it. All loaders have to be stopped.
///
/// # Errors
/// A loader is alive, something else is in the schema or depends on it, or the role may not create the extension. Nothing is
/// changed then.
pub async fn adopt(client: &mut Client) -> Result<()> {
    let transaction = client.transaction().await.map_err(failed)?;
    transaction.execute("SELECT pg_catalog.pg_advisory_xact_lock($1)", &[&LOCK]).await.map_err(failed)?;
    check(&transaction).await?;
    let rights = rights(&transaction).await.map_err(failed)?;
    let sequence = "SELECT pg_catalog.pg_get_serial_sequence('tally.loader_sources', 'source_id')";
    let sequence: String = transaction.query_one(sequence, &[]).await.map_err(failed)?.get(0);
    let next: i64 = transaction
        .query_one(&format!("SELECT last_value + is_called::int FROM {sequence}"), &[])
        .await
        .map_err(failed)?
        .get(0);
    let begin = format!("ALTER SCHEMA tally RENAME TO {FORMER}; CREATE EXTENSION tally;");
    transaction.batch_execute(&begin).await.map_err(failed)?;
    for table in KEPT {
        let columns = columns(&transaction, table).await.map_err(failed)?;
        let copy = format!(
            "INSERT INTO tally.{table} ({columns}) OVERRIDING SYSTEM VALUE SELECT {columns} FROM {FORMER}.{table}"
        );
        transaction.batch_execute(&copy).await.map_err(failed)?;
    }
    // An empty table has given no number yet.
    transaction
        .execute("SELECT pg_catalog.setval(pg_catalog.pg_get_serial_sequence('tally.loader_sources', 'source_id'), $1, false)", &[&next])
        .await
        .map_err(failed)?;
    let drops = OBJECTS.map(|(kind, name)| format!("DROP {kind} {FORMER}.{name};")).concat();
    transaction.batch_execute(&format!("{rights} {drops} DROP SCHEMA {FORMER}")).await.map_err(failed)?;
    transaction.commit().await.map_err(failed)
}

fn failed(error: PostgresError) -> Error {
    let detail = error.as_db_error().and_then(|error| error.detail()).map(|detail| format!("; {detail}"));
    let detail = detail.unwrap_or_default();
    Error::unfit_hint(
        format!("cannot adopt the state tables, nothing is changed: {}{detail}", postgres::describe(&error)),
        "CREATE EXTENSION tally needs a superuser, and the packages of tally on the server. Views and functions of your own that \
         use the state tables have to be dropped first and made again afterwards.",
    )
}

/// Locks the tables against loaders that start now, and looks who is there.
async fn check(transaction: &Transaction<'_>) -> Result<()> {
    let objects: Vec<&str> = OBJECTS.map(|(_, name)| name).to_vec();
    let foreign = transaction
        .query_one(
            "SELECT pg_catalog.string_agg(name, ', ' ORDER BY name) FROM (
                 SELECT c.relname::text AS name FROM pg_catalog.pg_class c
                  WHERE c.relnamespace = 'tally'::pg_catalog.regnamespace AND c.relkind NOT IN ('i', 'S')
                 UNION ALL
                 SELECT p.proname::text FROM pg_catalog.pg_proc p WHERE p.pronamespace = 'tally'::pg_catalog.regnamespace) AS objects
              WHERE name <> ALL ($1)",
            &[&objects],
        )
        .await
        .map_err(failed)?;
    if let Some(foreign) = foreign.get::<_, Option<String>>(0) {
        return Err(Error::unfit_hint(
            format!("schema \"tally\" holds more than the state tables of tally-loader: {foreign}"),
            "Move or drop these, and run init --adopt again.",
        ));
    }
    // A loader renews its membership every 2 seconds, so one that lives waits here and shows again.
    let lock = "LOCK tally.loader_members, tally.loader_leases, tally.loader_offsets, tally.dead_letters, tally.loader_sources, \
                tally.loader_gaps IN ACCESS EXCLUSIVE MODE";
    transaction.batch_execute(lock).await.map_err(failed)?;
    let alive = transaction
        .query_one(
            "SELECT pg_catalog.string_agg(pg_catalog.format('\"%s\" on %s', m.pipeline, m.host), ', ')
               FROM tally.loader_members m JOIN pg_catalog.pg_stat_activity a ON a.pid = m.backend_pid
              WHERE a.backend_start IS NULL OR a.backend_start = m.backend_started_at",
            &[],
        )
        .await
        .map_err(failed)?;
    match alive.get::<_, Option<String>>(0) {
        None => Ok(()),
        Some(alive) => {
            Err(Error::unfit_hint(format!("loaders are running: {alive}"), "Stop them, and run init --adopt again."))
        }
    }
}

/// The columns of a table that `init` made, which the one of the extension has, too.
async fn columns(transaction: &Transaction<'_>, table: &str) -> Result<String, PostgresError> {
    let rows = transaction
        .query(
            "SELECT a.attname::text FROM pg_catalog.pg_attribute a
              WHERE a.attrelid = $1::text::pg_catalog.regclass AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum",
            &[&format!("{FORMER}.{table}")],
        )
        .await?;
    Ok(rows.iter().map(|row| quote(row.get(0))).collect::<Vec<_>>().join(", "))
}

/// The rights that were granted to roles, as statements.
async fn rights(transaction: &Transaction<'_>) -> Result<String, PostgresError> {
    let rows = transaction
        .query(
            "SELECT pg_catalog.format('GRANT %s ON %s TO %s;', a.privilege_type, o.object, a.grantee::pg_catalog.regrole)
               FROM (SELECT pg_catalog.format('TABLE tally.%I', c.relname) AS object, c.relacl AS acl, c.relowner AS owner
                       FROM pg_catalog.pg_class c
                      WHERE c.relnamespace = 'tally'::pg_catalog.regnamespace AND c.relkind IN ('r', 'v')
                     UNION ALL
                     SELECT pg_catalog.format('FUNCTION tally.%I', p.proname), p.proacl, p.proowner
                       FROM pg_catalog.pg_proc p WHERE p.pronamespace = 'tally'::pg_catalog.regnamespace
                     UNION ALL
                     SELECT 'SCHEMA tally', n.nspacl, n.nspowner FROM pg_catalog.pg_namespace n WHERE n.nspname = 'tally') AS o,
                    pg_catalog.aclexplode(o.acl) AS a
              WHERE a.grantee NOT IN (0, o.owner)",
            &[],
        )
        .await?;
    Ok(rows.iter().map(|row| row.get::<_, String>(0)).collect())
}
