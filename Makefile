# `make help` lists the targets. Everything real is in cargo and scripts/.
# PG_CONFIG names the PostgreSQL that tally is built for, installed into and tested with.
export PG_CONFIG ?= /usr/lib/postgresql/15/bin/pg_config
DEBIAN = /usr/lib/postgresql
# build.rs keeps the schema section of the library; cargo-pgrx's own way would compile every dependency twice.
export CARGO_PGRX_DISABLE_GC_SECTIONS_WORKAROUND = 1

.DEFAULT_GOAL := all
.NOTPARALLEL:
.PHONY: all install install-debug test unit server oracle crash retention lifecycle zones differential fuzz miri kafka chaos newer bench accuracy lint demo demo-psql demo-stop help

all: ## build extension and loader in release mode
	scripts/setup build
	cargo pgrx package --pg-config "$(PG_CONFIG)"
	cargo build --release --package tally-loader

install: ## build in release mode and install the extension (PG_CONFIG=..; DESTDIR=.. for packagers)
	scripts/setup build
	scripts/install

test: unit server kafka ## run every test; replaces the installed extension by a debug build

unit: ## the tests that need no PostgreSQL
	scripts/setup build
	cargo test --no-fail-fast --package tally-core --package tally-fuzz
	cargo test --no-fail-fast --package tally-bench --bin tally-accuracy
	cargo test --no-fail-fast --package tally-loader --lib --bins

server: install-debug ## the tests over a connection to a throw-away server
	cargo test --no-fail-fast --package tally-server-tests

oracle: install-debug ## random histories against the defining queries (SECONDS=180, SEED=a random one)
	TALLY_ORACLE_SECONDS=$(SECONDS) TALLY_ORACLE_SEED=$(SEED) cargo test --package tally-server-tests --test server -- \
	    --nocapture --test-threads=1 concurrency::random_history concurrency::random_sessions

crash: install-debug ## kill sessions, workers and servers during load and refresh (KILLS=30, SEED=a random one)
	TALLY_CRASH_KILLS=$(KILLS) TALLY_CRASH_SEED=$(SEED) cargo test --package tally-server-tests --test server -- \
	    --nocapture crash::killed_again_and_again

retention: install-debug ## random schedules of retention: its protocol as a model (SCHEDULES=100000), and on servers beside everything else (SECONDS=25; SEED=a random one)
	TALLY_RETENTION_SCHEDULES=$(or $(SCHEDULES),100000) TALLY_RETENTION_SEED=$(SEED) cargo test --package tally-core --test retention -- --nocapture
	TALLY_RETENTION_SECONDS=$(SECONDS) TALLY_RETENTION_SEED=$(SEED) cargo test --package tally-server-tests --test server -- \
	    --nocapture retention::model::random_schedules

lifecycle: install-debug ## stop servers, drop databases, use up places for workers (STOPS=200, DATABASES=500, EXHAUSTED=300 s, DETACHES=1000)
	TALLY_STOPS=$(or $(STOPS),200) TALLY_DATABASES=$(or $(DATABASES),500) TALLY_EXHAUSTED=$(or $(EXHAUSTED),300) \
	    TALLY_PORTAL_RUNS=$(or $(DETACHES),1000) \
	    cargo test --package tally-server-tests --test server -- --nocapture --test-threads=1 workers::lifecycle workers::portal

zones: install ## bounds of partitions in every time zone from 1970 to 2100 against the clock of PostgreSQL (some 40 minutes; ZONES=^Europe for some)
	TALLY_TEST_ZONES='$(or $(ZONES),.)' cargo test --package tally-server-tests --test server -- --nocapture partition::zones

differential: install-debug ## random operations on sketches by tally and by postgresql-hll (OPERATIONS=1000000, SEED=a random one)
	scripts/setup differential
	TALLY_DIFFERENTIAL_OPERATIONS=$(OPERATIONS) TALLY_DIFFERENTIAL_SEED=$(SEED) cargo test --package tally-server-tests --test differential -- --nocapture

fuzz: ## damaged sketches to whatever reads bytes from outside (INPUTS=1000000, SEED=a random one)
	scripts/setup build
	cargo run --profile fuzz --package tally-fuzz -- $(if $(INPUTS),--inputs $(INPUTS)) $(if $(SEED),--seed $(SEED))

miri: ## vector kernels (with AVX2) and damaged sketches under Miri, which sees every wrong access to memory (needs a nightly Rust with miri)
	RUSTFLAGS="-C target-feature=+avx2" MIRIFLAGS=-Zmiri-disable-isolation \
	    cargo +nightly miri test --package tally-core --package tally-fuzz --lib -- simd:: tests::inputs

kafka: install-debug ## the loader against a real Apache Kafka and a throw-away server
	TALLY_KAFKA_TESTS=required cargo test --no-fail-fast --package tally-loader --test '*'

chaos: install-debug ## kill loaders, sessions, servers and the broker while messages are loaded (KILLS=50, SEED=a random one)
	TALLY_KAFKA_TESTS=required TALLY_CHAOS_KILLS=$(KILLS) TALLY_TEST_SEED=$(SEED) cargo test --package tally-loader --test kafka -- \
	    --nocapture chaos::killed_again_and_again

newer: ## the tests of server and loader with PostgreSQL 17, and pg_upgrade from 15 to it, in a tree of Debian 13 (needs root)
	scripts/trixie env PG_CONFIG=$(DEBIAN)/17/bin/pg_config scripts/install --debug
	scripts/trixie env PG_CONFIG=$(DEBIAN)/15/bin/pg_config scripts/install --debug
	scripts/trixie env PG_CONFIG=$(DEBIAN)/15/bin/pg_config TALLY_UPGRADE_TO=$(DEBIAN)/17/bin/pg_config \
	    cargo test --package tally-server-tests upgraded_cluster
	scripts/trixie env PG_CONFIG=$(DEBIAN)/17/bin/pg_config cargo test --no-fail-fast --package tally-server-tests
	scripts/trixie env PG_CONFIG=$(DEBIAN)/17/bin/pg_config cargo test --no-fail-fast --package tally-loader --no-default-features --features parquet \
	    --test postgres

install-debug:
	scripts/setup test
	scripts/install --debug

bench: install ## measure against plain PostgreSQL (BENCH="copy tick --rounds 9" for a part of it)
	scripts/setup bench
	cargo build --release --package tally-loader --package tally-bench
	target/release/tally-bench $(BENCH)

accuracy: ## simulate the error of distinct-count sketches and draw it (ACCURACY="--trials 40000 --seed 1")
	cargo build --release --package tally-bench
	target/release/tally-accuracy --svg docs/accuracy.svg $(ACCURACY)

lint: ## format, clippy, the border around PostgreSQL's C API, shell scripts
	scripts/setup lint
	scripts/lint

demo: install ## stream 2,000,000 events from Kafka into rollups and check them (EVENTS=file.ndjson: your own)
	cargo build --release --package tally-loader
	demo/run $(EVENTS)

demo-psql: ## psql on the server that make demo left running
	demo/run psql

demo-stop: ## end that server and remove what it left
	demo/run stop

help: ## this list
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/make \1 \t\2/p' Makefile | expand -t 20
