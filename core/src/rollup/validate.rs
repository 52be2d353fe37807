//! An analysed query becomes a [`Definition`], or an [`Error`] that names the part in the way and says what to do instead.

use super::aggregate::{self, Algebra, Refusal};
use super::analysis::{Analysis, Expression, Source, SourceKind, UnstableFunction, Unsupported};
use super::definition::{BucketRange, Column, Definition, Key, Partial, ROWS, SIGN, TAG, WRITER};
use crate::error::Explain;
use crate::ident::{self, quote};
use std::collections::HashSet;
use std::fmt;

/// Functions that are marked stable only because a time zone's rules can change: the zone is in the definition.
const ZONE_IS_NAMED: [&str; 1] = ["date_trunc(text,timestamp with time zone,text)"];

/// Checks a defining query and lays out the columns of the rollup.
pub fn validate(analysis: &Analysis) -> Result<Definition, Error> {
    if let Some(part) = analysis.unsupported.first() {
        return Err(Error::Unsupported(*part));
    }
    let source = analysis.source.as_ref().ok_or(Error::Unsupported(Unsupported::NoTable))?;
    check_source(source)?;
    if let Some(condition) = &analysis.condition {
        check_stable("WHERE", condition)?;
    }
    let mut names = Names::new([ROWS, TAG, WRITER, SIGN]);
    let mut definition = Definition {
        keys: vec![],
        arguments: vec![],
        filters: vec![],
        partials: vec![],
        finishes: vec![],
        targets: vec![],
    };
    for (position, key) in analysis.keys.iter().enumerate() {
        check_stable("GROUP BY", &key.expression)?;
        if !key.deterministic {
            return Err(Error::NondeterministicKey { sql: key.expression.sql.clone() });
        }
        if !key.groupable {
            return Err(Error::KeyWithoutOrder { sql: key.expression.sql.clone(), type_name: key.type_name.clone() });
        }
        let wanted = key.name.clone().unwrap_or_else(|| format!("key_{}", position + 1));
        definition.keys.push(Key {
            name: names.claim(&wanted),
            sql: key.expression.sql.clone(),
            never_null: key.never_null,
            is_time: key.is_time,
            type_name: key.type_name.clone(),
            bucket: None,
        });
    }
    check_targets(analysis)?;
    for (position, call) in analysis.aggregates.iter().enumerate() {
        let algebra =
            aggregate::algebra(call).map_err(|refusal| Error::Aggregate { sql: call.sql.clone(), refusal })?;
        for argument in &call.arguments {
            check_stable(&call.sql, &argument.expression)?;
        }
        if let Some(filter) = &call.filter {
            check_stable("FILTER", filter)?;
        }
        let columns: Vec<String> = call
            .arguments
            .iter()
            .map(|argument| column(&mut definition.arguments, &mut names, "argument", &argument.expression.sql))
            .collect();
        let filter =
            call.filter.as_ref().map(|filter| column(&mut definition.filters, &mut names, "filter", &filter.sql));
        let wanted = wanted_name(analysis, position);
        let finish = add_partials(&mut definition.partials, &mut names, &algebra, &columns, filter.as_deref(), &wanted);
        definition.finishes.push(finish);
    }
    for (position, key) in analysis.keys.iter().enumerate() {
        // A NULL has no range.
        let Some(bucket) = key.bucket.as_ref().filter(|_| key.never_null) else { continue };
        let column = column(&mut definition.arguments, &mut names, "argument", &bucket.time);
        definition.keys[position].bucket = Some(BucketRange { column, width: bucket.width.clone() });
    }
    Ok(definition)
}

fn check_source(source: &Source) -> Result<(), Error> {
    let reason = match source.kind {
        SourceKind::Table | SourceKind::PartitionedTable if !source.only => return Ok(()),
        SourceKind::Table | SourceKind::PartitionedTable => SourceRefusal::Only,
        SourceKind::Partition => SourceRefusal::Partition,
        SourceKind::Inherited => SourceRefusal::Inherited,
        SourceKind::Rollup => SourceRefusal::Rollup,
        SourceKind::Other => SourceRefusal::NotATable,
        SourceKind::Temporary => SourceRefusal::Temporary,
        SourceKind::Unlogged => SourceRefusal::Unlogged,
    };
    Err(Error::Source { name: source.name.to_string(), reason })
}

fn check_stable(place: &str, expression: &Expression) -> Result<(), Error> {
    match expression.unstable.iter().find(|function| !ZONE_IS_NAMED.contains(&function.signature.as_str())) {
        None => Ok(()),
        Some(function) => Err(Error::Unstable { function: function.clone(), place: place.into() }),
    }
}

fn check_targets(analysis: &Analysis) -> Result<(), Error> {
    let mut seen = HashSet::new();
    for target in &analysis.targets {
        if !seen.insert(target.name.as_str()) {
            return Err(Error::DuplicateColumn { name: target.name.clone() });
        }
        if let Some(column) = &target.ungrouped_column {
            return Err(Error::UngroupedColumn { column: column.clone() });
        }
        // Around the aggregates a stable function may stand: it is evaluated by the reader, in the view as in the query.
        if let Some(function) = target.unstable.iter().find(|function| function.volatile) {
            return Err(Error::Unstable {
                function: function.clone(),
                place: format!("column {}", quote(&target.name)),
            });
        }
    }
    Ok(())
}

/// A partial column is named after the first select-list entry that uses it.
fn wanted_name(analysis: &Analysis, aggregate: usize) -> String {
    let exact = analysis.targets.iter().find(|target| target.is_aggregate && target.aggregates == [aggregate]);
    let any = analysis.targets.iter().find(|target| target.aggregates.contains(&aggregate));
    exact.or(any).map_or_else(|| format!("aggregate_{}", aggregate + 1), |target| target.name.clone())
}

/// The column of the rows view for this expression; equal expressions share one.
fn column(columns: &mut Vec<Column>, names: &mut Names, kind: &str, sql: &str) -> String {
    if let Some(column) = columns.iter().find(|column| column.sql == sql) {
        return column.name.clone();
    }
    let name = names.claim(&format!("{kind}_{}", columns.len() + 1));
    columns.push(Column { name: name.clone(), sql: sql.into() });
    name
}

/// Adds what is missing of an aggregate's partial columns and returns its answer over them.
fn add_partials(
    partials: &mut Vec<Partial>,
    names: &mut Names,
    algebra: &Algebra,
    arguments: &[String],
    filter: Option<&str>,
    wanted: &str,
) -> String {
    let mut finish = algebra.finish.to_string();
    for (position, form) in algebra.partials.iter().enumerate() {
        let mut arguments: Vec<String> = arguments.iter().map(|name| quote(name)).collect();
        if let Some(first) = arguments.first_mut() {
            *first = form.argument.replace("{x}", first);
        }
        let list = if form.with_arguments { arguments.join(", ") } else { "*".into() };
        let filter = filter.map_or_else(String::new, |filter| format!(" FILTER (WHERE {})", quote(filter)));
        let sql = format!("{}({list}){filter}", form.function);
        let name = match partials.iter().find(|partial| partial.sql == sql) {
            Some(partial) => partial.name.clone(),
            None => {
                let alone = algebra.partials.len() == 1 && algebra.finish == "{0}";
                let suffix = if form.suffix.is_empty() { "value" } else { form.suffix };
                let name = names.claim(&if alone { wanted.into() } else { ident::fit(wanted, &format!("_{suffix}")) });
                let (merge, is_sketch) = (form.merge.to_string(), form.is_sketch);
                partials.push(Partial { name: name.clone(), sql, merge, is_sketch });
                name
            }
        };
        finish = finish.replace(&format!("{{{position}}}"), &quote(&name));
    }
    finish
}

/// Hands out column names, each once.
struct Names(HashSet<String>);

impl Names {
    fn new<const N: usize>(taken: [&str; N]) -> Self {
        Self(taken.into_iter().map(String::from).collect())
    }

    fn claim(&mut self, wanted: &str) -> String {
        let mut name = ident::fit(wanted, "");
        let mut number = 1;
        while !self.0.insert(name.clone()) {
            number += 1;
            name = ident::fit(wanted, &format!("_{number}"));
        }
        name
    }
}

/// Why a query cannot define a rollup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    Unsupported(Unsupported),
    Source { name: String, reason: SourceRefusal },
    Unstable { function: UnstableFunction, place: String },
    NondeterministicKey { sql: String },
    KeyWithoutOrder { sql: String, type_name: String },
    UngroupedColumn { column: String },
    DuplicateColumn { name: String },
    Aggregate { sql: String, refusal: Refusal },
}

/// What is wrong with the table of FROM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceRefusal {
    Only,
    Partition,
    Inherited,
    Rollup,
    NotATable,
    Temporary,
    Unlogged,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsupported(part) => write!(f, "a rollup cannot be defined by {}", described(*part).0),
            Self::Source { name, reason } => {
                let what = match reason {
                    SourceRefusal::Only => "FROM ONLY",
                    SourceRefusal::Partition => "a single partition",
                    SourceRefusal::Inherited => "a table with inheritance children",
                    SourceRefusal::Rollup => "another rollup",
                    SourceRefusal::NotATable => "anything but a table",
                    SourceRefusal::Temporary => "a temporary table",
                    SourceRefusal::Unlogged => "an unlogged table",
                };
                write!(f, "a rollup cannot read {what}: {name}")
            }
            Self::Unstable { function, place } => {
                let kind = if function.volatile { "volatile" } else { "only stable" };
                write!(f, "function {} in {place} is {kind}", function.signature)
            }
            Self::NondeterministicKey { sql } => write!(f, "grouping by {sql} uses a nondeterministic collation"),
            Self::KeyWithoutOrder { sql, type_name } => {
                write!(f, "grouping by {sql} needs an order of type {type_name}")
            }
            Self::UngroupedColumn { column } => {
                write!(f, "column {} must appear in GROUP BY or in an aggregate", quote(column))
            }
            Self::DuplicateColumn { name } => write!(f, "column name {} is used twice", quote(name)),
            Self::Aggregate { sql, refusal } => match refusal {
                Refusal::Unknown => write!(f, "a rollup cannot keep the aggregate {sql}"),
                Refusal::CountDistinct => write!(f, "a rollup cannot keep an exact count of distinct values: {sql}"),
                Refusal::Distinct => write!(f, "a rollup cannot keep an aggregate with DISTINCT: {sql}"),
                Refusal::Ordered => write!(f, "a rollup cannot keep an aggregate with ORDER BY: {sql}"),
                Refusal::WithinGroup => write!(f, "a rollup cannot keep an ordered-set aggregate: {sql}"),
                Refusal::Variadic => write!(f, "a rollup cannot keep a call with VARIADIC: {sql}"),
                Refusal::Type { type_name } => write!(f, "a rollup cannot keep {sql} of type {type_name}"),
                Refusal::VaryingPrecision => write!(f, "the precision of a sketch must be a literal: {sql}"),
                Refusal::NondeterministicCollation => {
                    write!(f, "a sketch cannot count values of a nondeterministic collation: {sql}")
                }
            },
        }
    }
}

impl Explain for Error {
    fn sqlstate(&self) -> &'static str {
        match self {
            Self::DuplicateColumn { .. } => "42701",
            Self::UngroupedColumn { .. } => "42803",
            Self::Unstable { .. } | Self::NondeterministicKey { .. } => "42P17",
            _ => "0A000",
        }
    }

    fn detail(&self) -> Option<String> {
        match self {
            Self::Unstable { function, .. } if function.volatile => {
                Some("The same row would give another answer each time it is looked at.".into())
            }
            Self::Unstable { .. } => {
                Some("Its answer depends on settings of the session, such as TimeZone, so a stored answer would be wrong for others.".into())
            }
            Self::Aggregate { refusal: Refusal::Unknown, .. } => Some(
                "Kept are count, sum, avg, min, max, var_*, stddev_*, bool_and, bool_or, bit_and, bit_or, bit_xor, \
                 tally.hll_agg, tally.hll_union_agg and tally.distinct_count."
                    .into(),
            ),
            _ => None,
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Unsupported(part) => described(*part).1,
            Self::Source { reason, .. } => match reason {
                SourceRefusal::Only => "Leave out ONLY.",
                SourceRefusal::Partition => "Name the partitioned table; its rollup covers every partition.",
                SourceRefusal::Inherited => "Use declarative partitions: CREATE TABLE .. PARTITION BY RANGE.",
                SourceRefusal::Rollup => "Define the rollup on the source table for now.",
                SourceRefusal::NotATable => "Name an ordinary or partitioned table of this database.",
                SourceRefusal::Temporary => "Use a permanent table: workers cannot see the tables of a session.",
                SourceRefusal::Unlogged => {
                    "ALTER TABLE .. SET LOGGED: a crash would empty the table but not the rollup."
                }
            },
            Self::Unstable { function, .. } if function.volatile => {
                "Compute the value when the row is written and store it in a column."
            }
            Self::Unstable { .. } => {
                "Name the time zone in the expression, as in date_trunc('hour', event_time, 'UTC') or \
                 date_bin('1 hour', event_time, '2000-01-01Z'); otherwise store the value in a column."
            }
            Self::NondeterministicKey { .. } => "Add COLLATE with a deterministic collation to the expression.",
            Self::KeyWithoutOrder { .. } => {
                "Cast it to a type with a default btree and hash operator class, such as text or jsonb."
            }
            Self::UngroupedColumn { .. } => "Add it to GROUP BY.",
            Self::DuplicateColumn { .. } => "Give each column a name of its own with AS.",
            Self::Aggregate { refusal, .. } => match refusal {
                Refusal::CountDistinct => {
                    "Use tally.distinct_count(x) for the number, or tally.hll_agg(x) for a sketch that merges."
                }
                Refusal::Distinct => "Leave out DISTINCT; distinct values are counted by tally.distinct_count(x).",
                Refusal::Ordered => "Leave out ORDER BY inside the call.",
                Refusal::Variadic => "Write the arguments out.",
                Refusal::Type { .. } => "Cast the argument, for example to bigint, numeric or text.",
                Refusal::VaryingPrecision => "Write a number between 0 and 17, or leave it out.",
                Refusal::NondeterministicCollation => "Add COLLATE \"C\" to the argument.",
                Refusal::Unknown | Refusal::WithinGroup => {
                    "Leave this column out of the rollup and compute it from the source, or ask for counts and sums."
                }
            },
        };
        Some(hint.into())
    }
}

/// What a part is called, and what to do instead.
fn described(part: Unsupported) -> (&'static str, &'static str) {
    match part {
        Unsupported::NotSelect => ("anything but a SELECT", "Write SELECT keys, aggregates FROM table GROUP BY keys."),
        Unsupported::SeveralStatements => ("several statements", "Give one SELECT without a semicolon inside."),
        Unsupported::Parameter => ("a query with parameters", "Write the values as literals."),
        Unsupported::CommonTableExpression => ("WITH", "Write the table and its condition directly in FROM and WHERE."),
        Unsupported::SetOperation => ("UNION, INTERSECT or EXCEPT", "Create one rollup for each SELECT."),
        Unsupported::Join => ("a join", "Create the rollup on the event table and join when you read it."),
        Unsupported::SubqueryInFrom => ("a subquery in FROM", "Write the table directly in FROM."),
        Unsupported::FunctionInFrom => ("a function in FROM", "Name a table in FROM."),
        Unsupported::NoTable => ("a query without a table", "Name the event table in FROM."),
        Unsupported::Subquery => {
            ("a subquery", "Store the value in a column of the source, or join when you read the rollup.")
        }
        Unsupported::WindowFunction => ("a window function", "Use the window function when you read the rollup."),
        Unsupported::SetReturningFunction => ("a set-returning function", "Unnest when you read the rollup."),
        Unsupported::Distinct => ("SELECT DISTINCT", "GROUP BY gives each group once already; leave DISTINCT out."),
        Unsupported::Having => ("HAVING", "Filter the groups with WHERE when you read the rollup."),
        Unsupported::OrderBy => ("ORDER BY", "Order the rows when you read the rollup."),
        Unsupported::Limit => ("LIMIT or OFFSET", "Limit the rows when you read the rollup."),
        Unsupported::GroupingSets => ("GROUPING SETS, ROLLUP or CUBE", "Create one rollup for each grouping."),
        Unsupported::ForUpdate => ("FOR UPDATE", "Leave the locking clause out."),
        Unsupported::TableSample => ("TABLESAMPLE", "Leave the sample out."),
        Unsupported::NoGroupBy => ("a query without GROUP BY", "Group by at least one expression."),
        Unsupported::SystemColumn => ("a system column", "Use columns of your own."),
        Unsupported::RowSecurity => (
            "a table with row-level security",
            "ALTER TABLE .. DISABLE ROW LEVEL SECURITY, and restrict readers by views over the rollup.",
        ),
    }
}

#[cfg(test)]
mod tests;
