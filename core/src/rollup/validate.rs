//! An analysed query becomes a [`Definition`], or an [`Error`] that names the part in the way and says what to do instead.

use super::aggregate::{self, Algebra, PartialForm, Refusal};
use super::analysis::{
    self, AggregateCall, Analysis, Expression, Source, SourceKind, Support, Target, UnstableFunction, Unsupported,
};
use super::definition::{
    self, BucketRange, Call, Column, DEPARTURE, Definition, GroupRange, Key, Partial, ROWS, SIGN, Subtract, TABLE, TAG,
    TIME, Value, WRITER, filter_clause,
};
use super::level::{self, Below};
use super::names::Names;
use super::sketch_settings::SketchSettings;
use super::state::{self, OwnAggregates};
use super::template::fill;
use crate::error::Explain;
use crate::ident::{self, QualifiedName, quote};
use std::collections::HashSet;
use std::fmt;

/// Names of hidden columns, which keys and arguments cannot have.
const RESERVED: [&str; 7] = [ROWS, DEPARTURE, TABLE, TIME, TAG, WRITER, SIGN];

/// Functions that are marked stable only because a time zone's rules can change: the zone is in the definition.
const ZONE_IS_NAMED: [&str; 1] = ["date_trunc(text,timestamp with time zone,text)"];

/// Checks a defining query and lays out the columns of the rollup. `below` is the rollup that it reads, if it reads one; `rollup`
/// is the name that it gets, `sketches` say what sketches leave open.
pub fn validate(
    analysis: &Analysis,
    below: Option<&Below>,
    rollup: &QualifiedName,
    sketches: SketchSettings,
) -> Result<Definition, Error> {
    if let Some(part) = analysis.unsupported.first() {
        return Err(Error::Unsupported(*part));
    }
    let source = analysis.source.as_ref().ok_or(Error::Unsupported(Unsupported::NoTable))?;
    check_source(source)?;
    if let Some(condition) = &analysis.condition {
        check_row_expression("WHERE", condition, below)?;
    }
    let subtracts = subtracts(analysis, below, &sketches);
    let mut layout = Layout { subtracts, ..Layout::new(below, source.partition_key.as_deref(), rollup) };
    layout.definition.sketches = sketches;
    for (position, key) in analysis.keys.iter().enumerate() {
        check_row_expression("GROUP BY", &key.expression, below)?;
        if !key.deterministic {
            return Err(Error::NondeterministicKey { sql: key.expression.sql.clone() });
        }
        if !key.groupable {
            return Err(Error::KeyWithoutOrder { sql: key.expression.sql.clone(), type_name: key.type_name.clone() });
        }
        let wanted = key.name.clone().unwrap_or_else(|| format!("key_{}", position + 1));
        layout.definition.keys.push(Key {
            name: layout.names.claim(&wanted),
            sql: key.expression.sql.clone(),
            never_null: key.never_null,
            is_time: key.is_time,
            type_name: key.type_name.clone(),
            bucket: None,
            groups: None,
        });
    }
    check_targets(analysis)?;
    let mut values = vec![];
    for (position, call) in analysis.aggregates.iter().enumerate() {
        let refused = |refusal| Error::Aggregate { sql: call.sql.clone(), refusal };
        let way = Way::of(call, &sketches).map_err(refused)?;
        if let Some(filter) = &call.filter {
            check_row_expression("FILTER", filter, below)?;
        }
        let wanted = wanted_name(analysis, position);
        values.push(match below.map(|below| (below, below.partial_of(call))) {
            Some((below, Some((partial, present)))) => match &way {
                Way::Algebra(algebra) if aggregate::gathers(&call.function, &partial.gather) => {
                    layout.gather(call, algebra, below, partial, present, &wanted)
                }
                _ => {
                    let function = aggregate::gatherer(&partial.gather).to_string();
                    let column = call.arguments[0].expression.sql.clone();
                    return Err(refused(Refusal::GatheredBy { column, function }));
                }
            },
            found => {
                if let Some((below, _)) = found {
                    check_over_keys(call, below).map_err(refused)?;
                }
                for argument in &call.arguments {
                    check_stable(&call.sql, &argument.expression)?;
                }
                match &way {
                    Way::Algebra(algebra) => layout.aggregate(call, algebra, &wanted),
                    Way::State(support) => layout.state(call, support, &wanted),
                }
            }
        });
    }
    for (position, key) in analysis.keys.iter().enumerate() {
        // A NULL has no range.
        if key.never_null {
            layout.definition.keys[position].bucket = layout.bucket(key);
            layout.definition.keys[position].groups = layout.groups(key);
        }
    }
    layout.definition.level = level(analysis, below);
    layout.definition.aggregates = layout.own.made().to_vec();
    for target in &analysis.targets {
        let value = match target.aggregates.as_slice() {
            [] => layout.keys_only(analysis, target),
            [aggregate] if target.is_aggregate => values[*aggregate].clone(),
            _ => Value::Finished,
        };
        layout.definition.targets.push(definition::Target { name: target.name.clone(), sql: String::new(), value });
    }
    Ok(layout.definition)
}

/// What the number of values of a sum is called behind the name of the sum.
const VALUES: &str = "_values";

/// Can rows be taken out of the groups again? A value that cannot be computed must not be asked for a second time, so nothing may fail.
fn subtracts(analysis: &Analysis, below: Option<&Below>, sketches: &SketchSettings) -> bool {
    let is_safe = |expression: &Option<Expression>| expression.as_ref().is_none_or(|expression| expression.never_fails);
    let subtracts = |call: &AggregateCall| {
        let of_column = below.map(|below| below.partial_of(call));
        let is_number = match of_column {
            Some(found) => found.is_some_and(|(partial, _)| partial.subtract.is_some()),
            None => match Way::of(call, sketches) {
                Ok(Way::Algebra(algebra)) => algebra.partials.iter().all(|form| match form.kind {
                    aggregate::Kind::Count => true,
                    aggregate::Kind::Sum => call.arguments.iter().all(|argument| argument.has_fixed_scale),
                    aggregate::Kind::Other => false,
                }),
                _ => false,
            },
        };
        is_number && is_safe(&call.filter) && call.arguments.iter().all(|argument| argument.expression.never_fails)
    };
    below.is_none_or(Below::subtracts) && is_safe(&analysis.condition) && analysis.aggregates.iter().all(subtracts)
}

/// How the groups come from those of the rollup below.
fn level(analysis: &Analysis, below: Option<&Below>) -> Option<definition::Level> {
    let alias = analysis.source.as_ref()?.alias.clone();
    let keys = analysis.keys.iter().map(|key| &key.expression);
    let aggregates = analysis.aggregates.iter();
    let inputs =
        aggregates.flat_map(|call| call.arguments.iter().map(|argument| &argument.expression).chain(&call.filter));
    let below = below?;
    let is_lasting = below.is_lasting(keys.chain(inputs).chain(&analysis.condition));
    let condition = analysis.condition.as_ref().map(|condition| condition.sql.clone());
    Some(definition::Level { alias, columns: below.names().to_vec(), condition, is_lasting })
}

/// How an aggregate is kept.
enum Way<'a> {
    Algebra(Algebra),
    /// By its transition state.
    State(&'a Support),
}

impl<'a> Way<'a> {
    fn of(call: &'a AggregateCall, sketches: &SketchSettings) -> Result<Self, Refusal> {
        match aggregate::algebra(call, sketches) {
            Err(Refusal::Unknown) => state::kept(call).map(Self::State),
            known => known.map(Self::Algebra),
        }
    }
}

/// The columns of a rollup while they are laid out.
struct Layout<'a> {
    definition: Definition,
    own: OwnAggregates,
    names: Names,
    below: Option<&'a Below<'a>>,
    partition_key: Option<&'a str>,
    /// See [`Definition::subtracts`].
    subtracts: bool,
}

impl<'a> Layout<'a> {
    fn new(below: Option<&'a Below<'a>>, partition_key: Option<&'a str>, rollup: &QualifiedName) -> Self {
        let names = Names::new(RESERVED.map(String::from));
        Self {
            definition: Definition::default(),
            own: OwnAggregates::new(rollup),
            names,
            below,
            partition_key,
            subtracts: false,
        }
    }

    /// The column of the rows view for this argument; equal expressions share one.
    fn argument(&mut self, sql: &str) -> String {
        column(&mut self.definition.arguments, &mut self.names, "argument", sql)
    }

    fn filter(&mut self, sql: &str) -> String {
        column(&mut self.definition.filters, &mut self.names, "filter", sql)
    }

    /// Adds what is missing of an aggregate over rows, and says what a column is that has it alone.
    fn aggregate(&mut self, call: &AggregateCall, algebra: &Algebra, wanted: &str) -> Value {
        let taken = algebra.partials.iter().map(PartialForm::taken).max().unwrap_or(0);
        let given: Vec<&str> =
            call.arguments.iter().take(taken).map(|argument| argument.expression.sql.as_str()).collect();
        let arguments: Vec<String> = given.iter().map(|sql| self.argument(sql)).collect();
        let filter = call.filter.as_ref().map(|filter| self.filter(&filter.sql));
        let alone = algebra.partials.len() == 1 && algebra.finish == "{0}";
        let mut names: Vec<(String, String)> = vec![];
        for (position, form) in algebra.partials.iter().enumerate() {
            let arguments = if form.with_arguments { arguments.clone() } else { vec![] };
            // Over keys of the level below: its groups have all the values that the rows have.
            let from_below = self.below.map(|_| {
                let filter = call.filter.as_ref().map_or_else(String::new, |filter| filter_clause(&filter.sql));
                format!("{}({}{}){filter}", form.function, given.join(", "), form.parameters)
            });
            let call = Call { function: form.function.into(), arguments, form: form.form(), filter: filter.clone() };
            let is_named = alone || form.suffix.is_empty();
            let wanted = if is_named { wanted.into() } else { ident::fit(wanted, &format!("_{}", form.suffix)) };
            let beside = form.beside.and_then(|position| names.get(position)).map(|(_, name)| name.clone());
            let subtract = self.subtracts.then(Subtract::default);
            let name = self.partial(Partial { beside, subtract, ..form.partial(call, from_below, wanted) });
            names.push((position.to_string(), name));
        }
        if call.arguments.iter().any(|argument| !argument.never_null) || filter.is_some() {
            self.count_values(&names, algebra, &arguments, call, filter.as_deref(), wanted);
        }
        let names: Vec<(&str, String)> = names.iter().map(|(place, name)| (place.as_str(), quote(name))).collect();
        let names: Vec<(&str, &str)> = names.iter().map(|(place, name)| (*place, name.as_str())).collect();
        self.definition.finishes.push(fill(algebra.finish, &names));
        match self
            .definition
            .partials
            .iter()
            .find(|partial| alone && Some(&quote(&partial.name)) == self.definition.finishes.last())
        {
            Some(partial) => Value::Partial { name: partial.name.clone(), present: None },
            None => Value::Finished,
        }
    }

    /// Adds the number of values to each sum among the partial columns of a call.
    fn count_values(
        &mut self,
        names: &[(String, String)],
        algebra: &Algebra,
        arguments: &[String],
        call: &AggregateCall,
        filter: Option<&str>,
        wanted: &str,
    ) {
        let sums = algebra.partials.iter().zip(names).filter(|(form, _)| form.kind == aggregate::Kind::Sum);
        let sums: Vec<String> = sums.map(|(_, (_, name))| name.clone()).collect();
        if !self.subtracts || sums.is_empty() {
            return;
        }
        let is_never_null = call.arguments.iter().all(|argument| argument.never_null);
        let form = if is_never_null { aggregate::COUNT_ROWS } else { aggregate::COUNT };
        let arguments = if form.with_arguments { arguments.to_vec() } else { vec![] };
        let function = form.function.into();
        let count = Call { function, arguments, form: form.argument.into(), filter: filter.map(String::from) };
        let count =
            Partial { subtract: Some(Subtract::default()), ..form.partial(count, None, ident::fit(wanted, VALUES)) };
        self.subtract_by(&sums, count);
    }

    /// Has a partial column say when these sums are NULL.
    fn subtract_by(&mut self, sums: &[String], count: Partial) {
        let values = self.partial(count);
        for partial in self.definition.partials.iter_mut().filter(|partial| sums.contains(&partial.name)) {
            partial.subtract = Some(Subtract { values: Some(values.clone()) });
        }
    }

    /// Adds what is missing of an aggregate that is kept by its state.
    fn state(&mut self, call: &AggregateCall, support: &Support, wanted: &str) -> Value {
        let (state, unite, answer) = self.own.of(support);
        let (state, unite) = (state.qualified(), unite.qualified());
        let answer = answer.cloned();
        let arguments = call.arguments.iter().map(|argument| self.argument(&argument.expression.sql)).collect();
        let filter = call.filter.as_ref().map(|filter| self.filter(&filter.sql));
        let call = Call { function: state, arguments, form: "{x}".into(), filter };
        let name = self.partial(Partial {
            name: ident::fit(wanted, "_state"),
            sql: call.sql(),
            call,
            merge: state::UNITE.into(),
            beside: None,
            unite: Some(unite),
            gather: state::GATHER.into(),
            from_below: None,
            is_sketch: false,
            is_exact: false,
            subtract: None,
        });
        self.definition.finishes.push(state::finish(support, answer.as_ref(), &quote(&name)));
        Value::Finished
    }

    /// Adds what is missing of an aggregate that gathers a partial column of the level below: the aggregate of that column, over
    /// the rows for which the group below is taken.
    fn gather(
        &mut self,
        call: &AggregateCall,
        algebra: &Algebra,
        below: &Below,
        partial: &Partial,
        present: Option<&str>,
        wanted: &str,
    ) -> Value {
        let arguments: Vec<String> =
            partial.call.arguments.iter().map(|name| self.argument(&below.hidden(name))).collect();
        let of_groups = call.filter.as_ref().map(|filter| filter.sql.clone());
        let both = |column: Option<&str>| -> Option<String> {
            let conditions: Vec<String> = column
                .map(|column| below.hidden(column))
                .into_iter()
                .chain(of_groups.iter().map(|sql| format!("({sql})")))
                .collect();
            (!conditions.is_empty()).then(|| conditions.join(" AND "))
        };
        let filter = both(partial.call.filter.as_deref()).map(|sql| self.filter(&sql));
        let gathered = |name: &str| {
            let filter = of_groups.as_deref().map_or_else(String::new, filter_clause);
            Some(partial_of_groups(&partial.gather, &below.hidden(name), &filter))
        };
        let values = partial.subtract.as_ref().and_then(|subtract| subtract.values.as_ref()).filter(|_| self.subtracts);
        let values = values.and_then(|values| below.partial(values)).map(|values| {
            let arguments = values.call.arguments.iter().map(|name| self.argument(&below.hidden(name))).collect();
            let filter = both(values.call.filter.as_deref()).map(|sql| self.filter(&sql));
            let call = Call { filter, arguments, ..values.call.clone() };
            let name = ident::fit(wanted, VALUES);
            Partial { name, sql: call.sql(), call, from_below: gathered(&values.name), ..values.clone() }
        });
        let new = Call { filter, arguments, ..partial.call.clone() };
        let alone = algebra.finish == "{0}";
        let wanted_here = if alone { wanted.into() } else { ident::fit(wanted, "_sketch") };
        let from_below = gathered(&partial.name);
        let subtract = self.subtracts.then(Subtract::default);
        let name = self.partial(Partial {
            name: wanted_here,
            sql: new.sql(),
            call: new,
            from_below,
            subtract,
            ..partial.clone()
        });
        if let Some(values) = values {
            self.subtract_by(std::slice::from_ref(&name), values);
        }
        let mut finish = fill(algebra.finish, &[("0", &quote(&name))]);
        let mut present_here = None;
        if partial.gather == aggregate::COUNT_ROWS.gather
            && let Some(condition) = both(present)
        {
            // The sum of no counts is NULL, and the count of no rows is 0.
            let form = aggregate::COUNT_ROWS;
            let filter = self.filter(&condition);
            let of_groups = of_groups.as_deref().map_or_else(String::new, filter_clause);
            let rows = match present {
                Some(present) => below.presence(present),
                None => below.hidden(ROWS),
            };
            let from_below = Some(partial_of_groups(form.gather, &rows, &of_groups));
            let count = Call {
                function: form.function.into(),
                arguments: vec![],
                form: form.argument.into(),
                filter: Some(filter.clone()),
            };
            let subtract = self.subtracts.then(Subtract::default);
            let wanted = ident::fit(wanted, "_present");
            let count = self.partial(Partial { subtract, ..form.partial(count, from_below, wanted) });
            finish = format!("CASE WHEN {} OPERATOR(pg_catalog.>) 0 THEN {finish} END", quote(&count));
            present_here = Some(filter);
        }
        if !partial.is_sketch {
            // sum(bigint) is numeric, and the column may hold a bigint.
            finish = format!("({finish})::{}", call.result_type);
        }
        self.definition.finishes.push(finish);
        if alone { Value::Partial { name, present: present_here } } else { Value::Finished }
    }

    /// The partial column of this call, under the name that is wanted if it is free; equal calls share one.
    fn partial(&mut self, wanted: Partial) -> String {
        if let Some(partial) = self.definition.partials.iter().find(|partial| partial.call == wanted.call) {
            return partial.name.clone();
        }
        let name = self.names.claim(&wanted.name);
        self.definition.partials.push(Partial { name: name.clone(), ..wanted });
        name
    }

    /// Where the rows of a bucket are.
    fn bucket(&mut self, key: &analysis::Key) -> Option<BucketRange> {
        let range_below = |expression: &Expression| match self.below?.column(expression.column()?)? {
            level::Column::Key { bucket } => bucket.map(|range| (self.below, range.clone())),
            _ => None,
        };
        let mut widths: Vec<String> = key.bucket.iter().map(|bucket| bucket.width.clone()).collect();
        let time = key.bucket.as_ref().map_or(&key.expression, |bucket| &bucket.time);
        let (sql, is_partition_key) = match range_below(time) {
            Some((Some(below), range)) => {
                widths.extend(range.widths);
                (below.hidden(&range.column), range.is_partition_key)
            }
            _ => {
                let is_partition_key = time.column().is_some_and(|column| Some(column) == self.partition_key);
                // That column itself is a bucket without width.
                if key.bucket.is_none() && !is_partition_key {
                    return None;
                }
                (time.sql.clone(), is_partition_key)
            }
        };
        Some(BucketRange { column: self.argument(&sql), widths, is_partition_key })
    }

    /// Where the groups of the level below are that make a bucket.
    fn groups(&self, key: &analysis::Key) -> Option<GroupRange> {
        let time = key.bucket.as_ref().map_or(&key.expression, |bucket| &bucket.time);
        let is_time_below = matches!(self.below?.column(time.column()?)?, level::Column::Key { bucket: Some(_) });
        let widths = key.bucket.iter().map(|bucket| bucket.width.clone()).collect();
        is_time_below.then(|| GroupRange { sql: time.sql.clone(), widths })
    }

    /// What a column is that has no aggregate.
    fn keys_only(&self, analysis: &Analysis, target: &Target) -> Value {
        let key = analysis.keys.iter().position(|key| key.expression.sql == target.sql);
        let key = key.and_then(|position| self.definition.keys.get(position));
        Value::Keys {
            never_null: key.is_some_and(|key| key.never_null),
            bucket: key.and_then(|key| key.bucket.clone()),
            is_built_in: target.is_built_in,
        }
    }
}

/// The value of a partial column, made of the groups of the level below.
fn partial_of_groups(gather: &str, value: &str, filter: &str) -> String {
    fill(gather, &[("x", value), ("filter", filter)])
}

fn check_source(source: &Source) -> Result<(), Error> {
    let reason = match source.kind {
        SourceKind::Table | SourceKind::PartitionedTable | SourceKind::Rollup if !source.only => return Ok(()),
        SourceKind::Table | SourceKind::PartitionedTable | SourceKind::Rollup => SourceRefusal::Only,
        SourceKind::Partition => SourceRefusal::Partition,
        SourceKind::Inherited => SourceRefusal::Inherited,
        SourceKind::Other => SourceRefusal::NotATable,
        SourceKind::Temporary => SourceRefusal::Temporary,
        SourceKind::Unlogged => SourceRefusal::Unlogged,
    };
    Err(Error::Source { name: source.name.to_string(), reason })
}

/// An expression that is evaluated row by row: in a rollup over a rollup, over its keys.
fn check_row_expression(place: &'static str, expression: &Expression, below: Option<&Below>) -> Result<(), Error> {
    match below.and_then(|below| below.aggregated_column(expression)) {
        Some(column) => Err(Error::AggregatedColumn { column: column.into(), place }),
        None => check_stable(place, expression),
    }
}

/// An aggregate over keys of a rollup sees each value once for each group.
fn check_over_keys(call: &AggregateCall, below: &Below) -> Result<(), Refusal> {
    for argument in &call.arguments {
        if let Some(column) = below.aggregated_column(&argument.expression) {
            return Err(Refusal::NotGathered { column: column.into() });
        }
    }
    if aggregate::ignores_repetition(&call.function) { Ok(()) } else { Err(Refusal::CountsGroups) }
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

/// Why a query cannot define a rollup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    Unsupported(Unsupported),
    Source {
        name: String,
        reason: SourceRefusal,
    },
    Unstable {
        function: UnstableFunction,
        place: String,
    },
    NondeterministicKey {
        sql: String,
    },
    KeyWithoutOrder {
        sql: String,
        type_name: String,
    },
    UngroupedColumn {
        column: String,
    },
    /// A rollup over a rollup uses it where its own rows are looked at one by one.
    AggregatedColumn {
        column: String,
        place: &'static str,
    },
    DuplicateColumn {
        name: String,
    },
    Aggregate {
        sql: String,
        refusal: Refusal,
    },
}

/// What is wrong with the table of FROM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceRefusal {
    Only,
    Partition,
    Inherited,
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
            Self::AggregatedColumn { column, place } => {
                write!(f, "column {} is an aggregate of the rollup below and cannot be used in {place}", quote(column))
            }
            Self::DuplicateColumn { name } => write!(f, "column name {} is used twice", quote(name)),
            Self::Aggregate { sql, refusal } => match refusal {
                Refusal::Unknown => write!(f, "a rollup cannot keep the aggregate {sql}"),
                Refusal::NoCombine => write!(f, "a rollup cannot keep the aggregate {sql}: it has no combine function"),
                Refusal::OrderOfRows => {
                    write!(f, "a rollup cannot keep the aggregate {sql}: its answer depends on the order of the rows")
                }
                Refusal::InternalState => {
                    write!(
                        f,
                        "a rollup cannot keep the aggregate {sql}: its state has type internal, and no SERIALFUNC writes it"
                    )
                }
                Refusal::FinishTakesArguments => {
                    write!(f, "a rollup cannot keep the aggregate {sql}: its final function takes its arguments")
                }
                Refusal::FinishChangesState => {
                    write!(f, "a rollup cannot keep the aggregate {sql}: its final function changes the state")
                }
                Refusal::UnstableSupport { function, volatile } => {
                    let kind = if *volatile { "volatile" } else { "only stable" };
                    write!(f, "function {function} of the aggregate {sql} is {kind}")
                }
                Refusal::CountDistinct => write!(f, "a rollup cannot keep an exact count of distinct values: {sql}"),
                Refusal::Distinct => write!(f, "a rollup cannot keep an aggregate with DISTINCT: {sql}"),
                Refusal::Ordered => write!(f, "a rollup cannot keep an aggregate with ORDER BY: {sql}"),
                Refusal::WithinGroup => write!(f, "a rollup cannot keep an ordered-set aggregate: {sql}"),
                Refusal::Variadic => write!(f, "a rollup cannot keep a call with VARIADIC: {sql}"),
                Refusal::Type { type_name } => write!(f, "a rollup cannot keep {sql} of type {type_name}"),
                Refusal::NoOrder { type_name } => write!(f, "type {type_name} in {sql} has no order"),
                Refusal::VaryingPrecision => write!(f, "the size of a sketch must be a literal: {sql}"),
                Refusal::Parameters { message, .. } => write!(f, "{message}: {sql}"),
                Refusal::GatheredBy { column, function } => {
                    let function = function.trim_start_matches("pg_catalog.");
                    write!(f, "a rollup over a rollup cannot keep {sql}: {column} is gathered by {function}")
                }
                Refusal::NotGathered { column } => {
                    write!(f, "a rollup over a rollup cannot keep {sql}: {} is not one aggregate alone", quote(column))
                }
                Refusal::CountsGroups => write!(f, "a rollup over a rollup cannot keep {sql}: it would count groups"),
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
            Self::Aggregate { refusal: Refusal::NoOrder { .. }, .. } => "42883",
            Self::Aggregate { refusal: Refusal::UnstableSupport { .. }, .. } => "42P17",
            Self::Aggregate { refusal: Refusal::Parameters { sqlstate, .. }, .. } => sqlstate,
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
            Self::Aggregate { refusal: Refusal::Unknown | Refusal::NoCombine | Refusal::InternalState, .. } => Some(
                "Kept are count, sum, avg, min, max, var_*, stddev_*, corr, covar_*, regr_*, bool_and, bool_or, bit_and, bit_or, bit_xor, \
                 tally.first, tally.last, tally.hll_agg, tally.hll_add_agg, tally.hll_union_agg, tally.topn_agg, tally.topn_union_agg, \
                 tally.distinct_count, and aggregates with a combine function whose states can be stored."
                    .into(),
            ),
            _ => None,
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Aggregate { refusal: Refusal::GatheredBy { column, function }, .. } => {
                let function = function.trim_start_matches("pg_catalog.");
                return Some(format!("Use {function}({column}), or define the rollup on the table."));
            }
            Self::Aggregate { refusal: Refusal::UnstableSupport { function, .. }, .. } => {
                return Some(format!(
                    "If it always gives the same answer for the same arguments, say so: ALTER FUNCTION {function} IMMUTABLE."
                ));
            }
            Self::Unsupported(part) => described(*part).1,
            Self::Source { reason, .. } => match reason {
                SourceRefusal::Only => "Leave out ONLY.",
                SourceRefusal::Partition => "Name the partitioned table; its rollup covers every partition.",
                SourceRefusal::Inherited => "Use declarative partitions: CREATE TABLE .. PARTITION BY RANGE.",
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
            Self::AggregatedColumn { .. } => {
                "Group and filter by keys of the rollup below, or define the rollup on the table."
            }
            Self::DuplicateColumn { .. } => "Give each column a name of its own with AS.",
            Self::Aggregate { refusal, .. } => match refusal {
                Refusal::CountDistinct => {
                    "Use tally.distinct_count(x) for the number, or tally.hll_agg(x) for a sketch that merges."
                }
                Refusal::Distinct => "Leave out DISTINCT; distinct values are counted by tally.distinct_count(x).",
                Refusal::Ordered => "Leave out ORDER BY inside the call.",
                Refusal::Variadic => "Write the arguments out.",
                Refusal::Type { .. } => "Cast the argument, for example to bigint, numeric or text.",
                Refusal::NoOrder { .. } => {
                    "Cast it to a type with a default btree operator class, such as text or jsonb."
                }
                Refusal::VaryingPrecision => "Write a number, or leave it out.",
                Refusal::Parameters { hint, .. } => return hint.clone(),
                Refusal::NondeterministicCollation => "Add COLLATE \"C\" to the argument.",
                Refusal::NotGathered { .. } => {
                    "Keep its parts as columns of the rollup below, such as sum(x) and count(x) of an average, and use \
                     sum(sum_x) / sum(count_x)."
                }
                Refusal::CountsGroups => {
                    "Keep count(*) or sum(x) as a column of the rollup below and use its sum, or define the rollup on the table."
                }
                Refusal::NoCombine => {
                    "Give the aggregate a COMBINEFUNC that makes one state of two, or leave this column out of the rollup."
                }
                Refusal::FinishTakesArguments => "Create the aggregate without FINALFUNC_EXTRA.",
                Refusal::FinishChangesState => {
                    "Create the aggregate with FINALFUNC_MODIFY = READ_ONLY, if that is true."
                }
                Refusal::Unknown
                | Refusal::InternalState
                | Refusal::OrderOfRows
                | Refusal::UnstableSupport { .. }
                | Refusal::WithinGroup
                | Refusal::GatheredBy { .. } => {
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
