//! What PostgreSQL's parser found in the definition of a rollup, as plain values. Expressions are fully qualified SQL text.

use crate::ident::QualifiedName;

/// A defining query after parse analysis.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Analysis {
    /// Parts of the query that are outside what a rollup can be, in the order found.
    pub unsupported: Vec<Unsupported>,
    pub source: Option<Source>,
    /// The condition of WHERE.
    pub condition: Option<Expression>,
    /// The expressions of GROUP BY.
    pub keys: Vec<Key>,
    /// The select list.
    pub targets: Vec<Target>,
    /// Every distinct aggregate call of the select list; `Target::aggregates` are positions in here.
    pub aggregates: Vec<AggregateCall>,
}

impl Analysis {
    /// The columns of the source that it reads, each once.
    pub fn columns(&self) -> Vec<String> {
        let keys = self.keys.iter().map(|key| &key.expression);
        let calls = self.aggregates.iter();
        let inputs =
            calls.flat_map(|call| call.arguments.iter().map(|argument| &argument.expression).chain(&call.filter));
        let all = keys.chain(inputs).chain(&self.condition).flat_map(|expression| &expression.columns);
        let mut columns: Vec<String> = all.cloned().collect();
        columns.sort_unstable();
        columns.dedup();
        columns
    }
}

/// The one table of FROM.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    pub name: QualifiedName,
    /// The name that the query uses for it.
    pub alias: String,
    pub kind: SourceKind,
    /// `FROM ONLY`.
    pub only: bool,
    /// The column of time by which the table is partitioned, if it is NOT NULL.
    pub partition_key: Option<String>,
}

/// What sort of relation the source is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceKind {
    Table,
    PartitionedTable,
    /// A partition of another table: its parent should be the source.
    Partition,
    /// A table with children by inheritance that are no partitions: triggers do not reach them.
    Inherited,
    /// The public view of another rollup.
    Rollup,
    /// A view, foreign table, materialized view or catalog.
    Other,
    Temporary,
    Unlogged,
}

/// An expression and what keeps it from being the same in every session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expression {
    pub sql: String,
    /// Functions in it that are not immutable.
    pub unstable: Vec<UnstableFunction>,
    /// The columns that it reads, each once.
    pub columns: Vec<String>,
    /// Is it a column and nothing else?
    pub is_column: bool,
    /// Does it use functions, operators and types of PostgreSQL itself only, so that its text says the same for ever?
    pub is_built_in: bool,
    /// Is it leakproof, so that no value of its columns makes it fail?
    pub never_fails: bool,
}

impl Expression {
    /// The column that it is.
    pub fn column(&self) -> Option<&str> {
        self.columns.first().filter(|_| self.is_column).map(String::as_str)
    }
}

/// A function whose answer may differ from session to session or from call to call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnstableFunction {
    /// With its argument types: `date_trunc(text,timestamp with time zone)`.
    pub signature: String,
    pub volatile: bool,
}

/// A grouping expression.
#[derive(Clone, Debug, PartialEq)]
pub struct Key {
    pub expression: Expression,
    /// The name of the first select-list entry that is exactly this expression.
    pub name: Option<String>,
    /// Can no value of it be NULL?
    pub never_null: bool,
    /// Is it a time that cuts the source into buckets?
    pub is_time: bool,
    /// The times that fall into it, if it is one of the usual bucket functions.
    pub bucket: Option<Bucket>,
    /// The name of its type, as `format_type()` writes it.
    pub type_name: String,
    /// Are its values equal only if they are the same bytes to every reader (no nondeterministic collation)?
    pub deterministic: bool,
    /// Has its type an equality that can hash and sort?
    pub groupable: bool,
}

/// What a bucket function does: a time falls into the bucket that begins at most `width` before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    pub time: Expression,
    /// An interval, as SQL writes it; an upper bound.
    pub width: String,
}

impl Bucket {
    /// The buckets of `date_trunc(unit, time)`; `None` for a unit that is none. A day more than the unit covers changes of
    /// the clocks.
    pub fn of_unit(unit: &str, time: Expression) -> Option<Self> {
        let width = match unit.to_ascii_lowercase().trim_end_matches('s') {
            "microsecond" | "millisecond" | "second" | "minute" | "hour" => "1 day 1 hour",
            "day" => "2 days",
            "week" => "8 days",
            "month" => "1 month 1 day",
            "quarter" => "3 months 1 day",
            "year" => "1 year 1 day",
            "decade" => "10 years 1 day",
            _ => return None,
        };
        Some(Self { time, width: width.into() })
    }
}

/// A visible column of the rollup.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    pub name: String,
    /// The expression as written.
    pub sql: String,
    /// Positions in `Analysis::aggregates` of the aggregates in it.
    pub aggregates: Vec<usize>,
    /// Is the expression nothing but one aggregate call?
    pub is_aggregate: bool,
    /// Functions around the aggregates that are not immutable.
    pub unstable: Vec<UnstableFunction>,
    /// See [`Expression::is_built_in`].
    pub is_built_in: bool,
    /// A source column that is used outside of aggregates and grouping expressions.
    pub ungrouped_column: Option<String>,
}

/// A call of an aggregate.
#[derive(Clone, Debug, PartialEq)]
pub struct AggregateCall {
    pub function: QualifiedName,
    /// The call as written, for messages.
    pub sql: String,
    /// The name of the type of its answer, as `format_type()` writes it.
    pub result_type: String,
    pub arguments: Vec<Argument>,
    pub filter: Option<Expression>,
    pub distinct: bool,
    pub ordered: bool,
    pub within_group: bool,
    /// Is the last argument an array of what the call lists?
    pub variadic: bool,
    /// How PostgreSQL computes it.
    pub support: Option<Support>,
}

/// What an aggregate is made of: its entry in pg_aggregate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Support {
    /// Its name alone.
    pub name: String,
    /// With schema and argument types, as `regprocedure` writes it.
    pub signature: String,
    /// The types of its arguments, as CREATE AGGREGATE takes them; an array instead of VARIADIC, but for VARIADIC "any".
    pub arguments: String,
    /// Is it declared with VARIADIC "any"?
    pub is_variadic_any: bool,
    pub state_type: String,
    pub has_internal_state: bool,
    /// About how many bytes a state has; 0 if nobody has said.
    pub state_size: i32,
    pub initial: Option<String>,
    pub transition: SupportFunction,
    pub combine: Option<SupportFunction>,
    /// How its states become bytes and are read again, if it has the functions.
    pub exchange: Option<[SupportFunction; 2]>,
    pub finish: Option<SupportFunction>,
    /// Does the final function get the arguments of the aggregate behind the state?
    pub finish_takes_arguments: bool,
    pub finish_changes_state: bool,
    /// `SAFE`, `RESTRICTED` or `UNSAFE`.
    pub parallel: String,
}

/// A function that an aggregate is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SupportFunction {
    pub name: QualifiedName,
    /// With its argument types, for messages.
    pub signature: String,
    pub volatility: Volatility,
}

/// When a function may give another answer for the same arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Volatility {
    Immutable,
    /// From session to session.
    Stable,
    /// From call to call.
    Volatile,
}

/// An argument of an aggregate.
#[derive(Clone, Debug, PartialEq)]
pub struct Argument {
    pub expression: Expression,
    /// The name of its type without modifier, as `format_type()` writes it.
    pub type_name: String,
    /// Are equal values the same bytes? False for text under a nondeterministic collation.
    pub deterministic: bool,
    /// Has its type a default order?
    pub has_order: bool,
    /// Has every value of its type one hash for ever? Not if that depends on a label that may be renamed, or on the server.
    pub has_lasting_hash: bool,
    /// Can no value of it be NULL?
    pub never_null: bool,
    /// Are its values numbers with the same number of digits behind the point, so that sums of them have no others?
    pub has_fixed_scale: bool,
}

/// A part of a query that a rollup cannot have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsupported {
    NotSelect,
    SeveralStatements,
    Parameter,
    CommonTableExpression,
    SetOperation,
    Join,
    SubqueryInFrom,
    FunctionInFrom,
    NoTable,
    Subquery,
    WindowFunction,
    SetReturningFunction,
    Distinct,
    Having,
    OrderBy,
    Limit,
    GroupingSets,
    ForUpdate,
    TableSample,
    NoGroupBy,
    SystemColumn,
    RowSecurity,
}
