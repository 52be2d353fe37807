//! The subcommand `init`: the state tables. With the extension they are there already and are only checked; without it they
//! are created from the same SQL file that the extension runs.

mod adopt;

use tokio_postgres::Client;

use crate::arguments::InitArguments;
use crate::config::Config;
use crate::program::{Program, quote};
use crate::{Error, Result, catalog, offsets, postgres, run};

pub use adopt::adopt;

const TABLES: &str = include_str!("../../sql/loader.sql");

/// The same order in every loader that starts at the same moment.
const LOCK: i64 = 0x7461_6c6c_7931;

/// Creates or checks the state tables; may be repeated.
pub fn run(arguments: InitArguments) -> Result<()> {
    let config = Config::load(&arguments.config)?;
    run::runtime()?.block_on(async {
        let mut client =
            postgres::connect_within(&config.postgres, &config.pipeline, config.policy.timeouts.start.0).await?;
        if arguments.adopt && create(&mut client).await? != State::Extension {
            adopt(&mut client).await?;
            tracing::info!("created the extension tally, which has the state tables now with all they held");
        }
        match create(&mut client).await? {
            State::Extension => tracing::info!("the extension tally has the state tables"),
            State::Created => tracing::info!("created schema tally with the state tables"),
            State::Present => tracing::info!("the state tables are there already"),
        }
        if let Some(role) = &arguments.grant {
            grant(&client, &config, role).await?;
            tracing::info!("granted to role {}", quote(role));
        }
        Ok(())
    })
}

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The extension owns the tables.
    Extension,
    Created,
    Present,
}

/// Creates the tables unless they are there.
pub async fn create(client: &mut Client) -> Result<State> {
    let failed = |error: tokio_postgres::Error| {
        Error::unfit_hint(
            format!("cannot create the state tables: {}", postgres::describe(&error)),
            "Run init as the owner of the database, or as a role with CREATE on it.",
        )
    };
    let transaction = client.transaction().await.map_err(failed)?;
    transaction.execute("SELECT pg_catalog.pg_advisory_xact_lock($1)", &[&LOCK]).await.map_err(failed)?;
    let row = transaction
        .query_one(
            "SELECT EXISTS (SELECT FROM pg_catalog.pg_extension WHERE extname = 'tally'), \
                    pg_catalog.to_regnamespace('tally') IS NOT NULL, \
                    pg_catalog.to_regprocedure('tally.loader_format()') IS NOT NULL, \
                    EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.relnamespace = pg_catalog.to_regnamespace('tally'))",
            &[],
        )
        .await
        .map_err(failed)?;
    let (extension, schema, ours, occupied): (bool, bool, bool, bool) =
        (row.get(0), row.get(1), row.get(2), row.get(3));
    let state = if extension {
        State::Extension
    } else if ours {
        State::Present
    } else if occupied {
        return Err(Error::unfit_hint(
            "schema \"tally\" is not empty and holds no state tables of tally-loader",
            "Look at what is in it (\\d tally.*), move or drop that, and run init again.",
        ));
    } else {
        if !schema {
            transaction
                .batch_execute("CREATE SCHEMA tally; GRANT USAGE ON SCHEMA tally TO PUBLIC")
                .await
                .map_err(failed)?;
        }
        transaction.batch_execute(TABLES).await.map_err(failed)?;
        State::Created
    };
    transaction.commit().await.map_err(failed)?;
    offsets::check_format(client).await?;
    Ok(state)
}

/// Gives a role what a loader needs, and no more.
pub async fn grant(client: &Client, config: &Config, role: &str) -> Result<()> {
    let table = catalog::table(client, &config.target.table).await.map_err(|error| Error::unfit(error.to_string()))?;
    let program = Program::compile(&table, &config.target, config.policy.on.tombstone, 0)?;
    let columns: Vec<String> = program.columns.iter().map(|column| quote(&column.name)).collect();
    let role = quote(role);
    // A column that is left out, such as a bigserial, takes its default, and nextval() asks for a right of its own.
    let sequences = client
        .query(
            "SELECT DISTINCT s.oid::pg_catalog.regclass::text FROM pg_catalog.pg_attrdef d \
               JOIN pg_catalog.pg_depend p ON p.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass AND p.objid = d.oid \
                AND p.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass \
               JOIN pg_catalog.pg_class s ON s.oid = p.refobjid AND s.relkind = 'S' \
              WHERE d.adrelid = $1::text::pg_catalog.regclass",
            &[&table.name],
        )
        .await
        .map_err(|error| Error::unfit(postgres::describe(&error)))?;
    let sequences: String =
        sequences.iter().map(|row| format!("GRANT USAGE ON SEQUENCE {} TO {role};", row.get::<_, &str>(0))).collect();
    let statements = format!(
        "GRANT USAGE ON SCHEMA tally TO {role};
         GRANT SELECT, INSERT, UPDATE ON tally.loader_sources, tally.loader_offsets, tally.dead_letters TO {role};
         GRANT SELECT, INSERT, UPDATE, DELETE ON tally.loader_members, tally.loader_leases TO {role};
         GRANT INSERT ON tally.loader_gaps TO {role};
         GRANT EXECUTE ON FUNCTION tally.advance_offsets TO {role};
         GRANT INSERT ({}) ON {} TO {role};
         {sequences}",
        columns.join(", "),
        table.name
    );
    client.batch_execute(&format!("BEGIN; {statements} COMMIT")).await.map_err(|error| {
        Error::unfit_hint(
            format!("cannot grant to role {role}: {}", postgres::describe(&error)),
            "Run init as the owner of schema tally and of the target.",
        )
    })
}
