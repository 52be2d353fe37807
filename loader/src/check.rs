//! The subcommand `check`: the configuration against the live catalog and topic. It prints what a run would do and changes
//! nothing.

use std::fmt::Write as _;

use tokio_postgres::Client;

use crate::arguments::CheckArguments;
use crate::catalog::{Leaves, RangeLeaves};
use crate::config::{Config, Kafka};
use crate::copy::{self, POSTGRES_EPOCH_SECONDS};
use crate::program::Program;
use crate::source::Source;
use crate::{Error, Result, offsets, pipeline, postgres, run};

/// Prints the column program, leaves, parts and missing rights.
pub fn run(arguments: CheckArguments) -> Result<()> {
    let config = Config::load(&arguments.config)?;
    run::runtime()?.block_on(async {
        let client =
            postgres::connect_within(&config.postgres, &config.pipeline, config.policy.timeouts.start.0).await?;
        let (text, missing) = target(&client, &config).await?;
        print!("{text}");
        // A configuration for files alone ends here, behind what concerns them, too.
        let (kafka, mut source) = (config.source.topic()?, run::open_source(&config, config.memory.0)?);
        print!("{}", topic(&client, &config, kafka, source.as_mut()).await?);
        if missing.is_empty() {
            println!("everything fits");
            return Ok(());
        }
        Err(Error::unfit_hint(
            format!("role \"{}\" lacks rights: {}", config.postgres.user, missing.join(", ")),
            format!("Run \"tally-loader init --grant {}\" as the owner.", config.postgres.user),
        ))
    })
}

/// What is to be said of the target, and which rights are missing.
pub async fn target(client: &Client, config: &Config) -> Result<(String, Vec<String>)> {
    offsets::check_format(client).await?;
    let (table, program) = pipeline::compile(client, config).await?;
    let mut text = format!("target {}\n{program}", table.name);
    match &table.leaves {
        Leaves::Range(range) => {
            let _ =
                writeln!(text, "  {} partitions by \"{}\" take {}", range.count, range.column, ranges(range, &table));
        }
        Leaves::Unknown => {}
    }
    for warning in &table.warnings {
        let _ = writeln!(text, "  warning: {warning}");
    }
    let missing = missing_rights(client, &program)
        .await
        .map_err(|error| Error::unfit(format!("cannot read the rights: {}", postgres::describe(&error))))?;
    Ok((text, missing))
}

/// The ranges as text: times for a column of times.
fn ranges(range: &RangeLeaves, table: &crate::catalog::Table) -> String {
    let base = table.columns.iter().find(|column| column.name == range.column).map(|column| column.base.as_str());
    let bound = |value: i64| match value {
        i64::MIN => "the beginning".to_owned(),
        i64::MAX => "the end".to_owned(),
        days if base == Some("date") => {
            let (year, month, day) = copy::civil(days);
            format!("{year:04}-{month:02}-{day:02}")
        }
        time if base.is_some_and(|base| base.starts_with("timestamp")) => {
            match jiff::Timestamp::from_microsecond(time.saturating_add(POSTGRES_EPOCH_SECONDS * 1_000_000)) {
                Ok(time) => time.to_string(),
                Err(_) => "a time far away".to_owned(),
            }
        }
        value => value.to_string(),
    };
    if range.ranges().is_empty() {
        return "nothing: there is no partition".to_owned();
    }
    let parts: Vec<String> =
        range.ranges().iter().map(|(from, to)| format!("{} to {}", bound(*from), bound(*to))).collect();
    parts.join(", ")
}

async fn missing_rights(client: &Client, program: &Program) -> Result<Vec<String>, tokio_postgres::Error> {
    let mut missing = Vec::new();
    let columns: Vec<&str> = program.columns.iter().map(|column| column.name.as_str()).collect();
    let rows = client
        .query(
            "SELECT c FROM unnest($2::text[]) AS c WHERE NOT pg_catalog.has_column_privilege($1::oid, c, 'INSERT')",
            &[&program.table_oid, &columns],
        )
        .await?;
    missing.extend(rows.iter().map(|row| format!("INSERT ({}) on {}", row.get::<_, &str>(0), program.table)));
    for (table, rights) in [
        ("tally.loader_sources", "SELECT, INSERT, UPDATE"),
        ("tally.loader_offsets", "SELECT, INSERT, UPDATE"),
        ("tally.dead_letters", "INSERT"),
        ("tally.loader_members", "SELECT, INSERT, UPDATE, DELETE"),
        ("tally.loader_leases", "SELECT, INSERT, UPDATE, DELETE"),
        ("tally.loader_gaps", "INSERT"),
    ] {
        for right in rights.split(", ") {
            let row = client.query_one("SELECT pg_catalog.has_table_privilege($1, $2)", &[&table, &right]).await?;
            if !row.get::<_, bool>(0) {
                missing.push(format!("{right} on {table}"));
            }
        }
    }
    let row = client
        .query_one(
            "SELECT pg_catalog.bool_and(pg_catalog.has_function_privilege(p.oid, 'EXECUTE')) FROM pg_catalog.pg_proc p \
             WHERE p.pronamespace = 'tally'::pg_catalog.regnamespace AND p.proname = 'advance_offsets'",
            &[],
        )
        .await?;
    if row.get::<_, Option<bool>>(0) != Some(true) {
        missing.push("EXECUTE on function tally.advance_offsets".to_owned());
    }
    Ok(missing)
}

/// What is to be said of the topic: its parts, what they hold, where the loader stands.
async fn topic(client: &Client, config: &Config, kafka: &Kafka, source: &mut dyn Source) -> Result<String> {
    let name = &kafka.topic;
    let cluster = match &kafka.cluster {
        Some(cluster) => cluster.clone(),
        None => source.cluster().map_err(pipeline::source_error)?,
    };
    let mut text = format!("topic \"{name}\" of cluster \"{cluster}\"\n");
    let failed = |error: tokio_postgres::Error| {
        Error::unfit(format!("cannot read the positions: {}", postgres::describe(&error)))
    };
    let positions = client
        .query(
            "SELECT o.part, o.next_offset FROM tally.loader_offsets o JOIN tally.loader_sources s USING (source_id) \
             WHERE s.pipeline = $1 AND s.kind = 'kafka' AND s.cluster = $2 AND s.name = $3 ORDER BY s.incarnation",
            &[&config.pipeline, &cluster, name],
        )
        .await
        .map_err(failed)?;
    for part in source.parts().map_err(pipeline::source_error)? {
        let bounds = source.bounds(part).map_err(pipeline::source_error)?;
        let position = positions.iter().rev().find(|row| row.get::<_, i32>(0) == part).map(|row| row.get::<_, i64>(1));
        let state = match position {
            None => format!("starts at {:?}", config.source.start).to_lowercase(),
            Some(next) if next < bounds.start => format!("position {next}: {} offsets are gone", bounds.start - next),
            Some(next) if next > bounds.end => format!("position {next} lies behind the end: another topic"),
            Some(next) => format!("position {next}, {} to go", bounds.end - next),
        };
        let _ = writeln!(text, "  part {part}: offsets {} to {}, {state}", bounds.start, bounds.end);
    }
    Ok(text)
}
