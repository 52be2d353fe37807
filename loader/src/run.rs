//! The subcommand `run`.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::arguments::RunArguments;
use crate::config::Config;
use crate::metrics::{self, Metrics};
use crate::pipeline::{self, Run};
use crate::progress::{Measure, Progress};
use crate::source::{Kind, Origin, Source};
use crate::{Error, Result, stop};

/// Loads the topic until stopped, or until its end.
pub fn run(arguments: RunArguments) -> Result<()> {
    let config = Config::load(&arguments.config)?;
    let origin = topic(&config)?;
    runtime()?.block_on(async {
        let lanes = pipeline::lanes::number(&config).await?;
        let memory = config.memory_of_rows() / lanes;
        let open = || (0..lanes).map(|_| open_source(&config, memory)).collect();
        let stop = stop::on_signals().map_err(|error| Error::Bug(format!("cannot listen for signals: {error}")))?;
        let metrics = Arc::new(Metrics::default());
        if let Some(address) = config.metrics {
            metrics::serve(address, metrics.clone()).await?;
        }
        let progress = Progress::start(metrics.clone(), Measure::Messages);
        let run = Run { config: &config, origin, until_end: arguments.until_end, metrics: metrics.clone(), stop };
        let result = pipeline::run_lanes(run, open).await;
        drop(progress);
        tracing::info!("{}", metrics.summary(metrics.rows.load(Relaxed), metrics.dead()));
        result
    })
}

pub(crate) fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::Bug(format!("cannot start the runtime: {error}")))
}

/// What the topic is in the state tables.
pub fn topic(config: &Config) -> Result<Origin> {
    let kafka = config.source.topic()?;
    Ok(Origin { kind: Kind::Kafka, name: kafka.topic.clone(), cluster: kafka.cluster.clone() })
}

/// The source that the configuration names; `memory` is what this one and its rows may take.
#[cfg(feature = "kafka")]
pub(crate) fn open_source(config: &Config, memory: usize) -> Result<Box<dyn Source>> {
    use crate::source::SourceError;
    use crate::source::kafka::KafkaSource;
    let source = KafkaSource::new(&config.source, config.source.topic()?, &config.pipeline, memory);
    Ok(Box::new(source.map_err(|error| match error {
        SourceError::Refused(message) => Error::unfit(message),
        error => pipeline::source_error(error),
    })?))
}

/// Without Kafka there is no source to open.
#[cfg(not(feature = "kafka"))]
pub(crate) fn open_source(_: &Config, _: usize) -> Result<Box<dyn Source>> {
    Err(Error::unfit("this tally-loader was built without its feature \"kafka\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_for_files_has_no_topic_to_run() {
        let text =
            "pipeline = \"p\"\npostgres = { host = \"/tmp\", dbname = \"d\", user = \"u\" }\n[target]\ntable = \"t\"";
        let config = Config::parse(text).unwrap();
        for error in [topic(&config).unwrap_err(), open_source(&config, config.memory.0).err().unwrap()] {
            assert_eq!(error.code(), 3);
            assert!(error.to_string().contains("source.kafka is missing"), "{error}");
        }
    }
}
