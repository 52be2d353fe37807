//! The algebra of aggregates, in one table: partial columns, merge, finish.
//!
//! For every aggregate here and any split of the rows of a group into parts, finishing the merged partial values gives what
//! the aggregate gives over all rows. Whatever adds up `real` and `double precision` is the exception: its last bits depend on
//! the order of the rows, in PostgreSQL as well as here.

use super::analysis::AggregateCall;
use super::definition::{Call, Partial};
use super::sketch_settings::{Parameters, SketchSettings};
use crate::ident::QualifiedName;

/// How an aggregate is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Algebra {
    pub partials: Vec<PartialForm>,
    /// The answer; `{0}`, `{1}` stand for the partial columns.
    pub finish: &'static str,
}

/// One partial column of an aggregate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartialForm {
    /// The aggregate function that makes it over the arguments of the call.
    pub function: &'static str,
    /// Is it called with the arguments of the call? Otherwise it is called as `f(*)`.
    pub with_arguments: bool,
    /// What becomes of its first argument `{x}` before it is aggregated, so that the partial value is exact.
    pub argument: &'static str,
    /// Of a sketch. They stand in place of all further arguments of the call.
    pub parameters: Parameters,
    /// How two partial values become one: see [`Partial::merge`].
    pub merge: &'static str,
    /// The position of the form that `{beside}` in the merge stands for.
    pub beside: Option<usize>,
    /// The aggregate that makes one of many partial values: see [`Partial::gather`].
    pub gather: &'static str,
    /// What the column is called behind the name of the select-list entry, if the aggregate has several and this is not the
    /// one that they are about.
    pub suffix: &'static str,
    pub is_sketch: bool,
    pub kind: Kind,
}

/// What taking rows out of a partial column again needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It counts rows or values.
    Count,
    /// A sum of numbers that are added up exactly, whatever their order. It is NULL where there are none.
    Sum,
    /// What it has seen it does not forget.
    Other,
}

impl PartialForm {
    /// What stands for the first argument `{x}`: see [`Call::form`].
    pub fn form(&self) -> String {
        format!("{}{}", self.argument, self.parameters)
    }

    /// How many arguments of the call it takes, at most.
    pub fn taken(&self) -> usize {
        match (self.with_arguments, self.parameters) {
            (false, _) => 0,
            (true, Parameters::None) => usize::MAX,
            (true, _) => 1,
        }
    }

    /// Is its value the same in whatever order the rows came, to the last bit?
    fn is_exact(&self) -> bool {
        let (schema, name) = self.function.split_once('.').unwrap_or_default();
        self.kind != Kind::Other || is_idempotent(schema, name) || (schema, name) == ("pg_catalog", "bit_xor")
    }

    /// The column of this form for a call.
    pub fn partial(&self, call: Call, from_below: Option<String>, name: String) -> Partial {
        Partial {
            name,
            sql: call.sql(),
            call,
            merge: self.merge.into(),
            beside: None,
            unite: None,
            gather: self.gather.into(),
            from_below,
            is_sketch: self.is_sketch,
            is_exact: self.is_exact(),
            subtract: None,
        }
    }
}

/// Why an aggregate cannot be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    Unknown,
    /// An aggregate without a function that unites two states.
    NoCombine,
    /// Its answer is in the order of the rows, which nothing promises.
    OrderOfRows,
    /// Its state has type internal and cannot be written.
    InternalState,
    FinishTakesArguments,
    FinishChangesState,
    /// A function that the aggregate is made of.
    UnstableSupport {
        function: String,
        volatile: bool,
    },
    /// `count(DISTINCT x)`: a sketch is the answer.
    CountDistinct,
    Distinct,
    Ordered,
    WithinGroup,
    /// Arguments of any type in an array.
    Variadic,
    /// The argument's type has no sum or order that merges.
    Type {
        type_name: String,
    },
    /// The earliest or latest value of a type without a default order.
    NoOrder {
        type_name: String,
    },
    /// Values that are equal under this collation may have different bytes, and a sketch would count them twice.
    NondeterministicCollation,
    /// The precision of a sketch must be a literal: the first row of a group would decide for all.
    VaryingPrecision,
    /// A parameter of a sketch is out of its range.
    Parameters {
        sqlstate: &'static str,
        message: String,
        hint: Option<String>,
    },
    /// Of a column of the rollup below that another aggregate gathers.
    GatheredBy {
        column: String,
        function: String,
    },
    /// Of a column of the rollup below that is more than one aggregate.
    NotGathered {
        column: String,
    },
    /// It would count the groups of the rollup below.
    CountsGroups,
}

// Either side may be missing: a group that is only stored, or only pending.
const ADD_COUNT: &str = "COALESCE({a}, 0) OPERATOR(pg_catalog.+) COALESCE({b}, 0)";
const ADD: &str = "COALESCE({a} OPERATOR(pg_catalog.+) {b}, {a}, {b})";
const UNION: &str = "COALESCE(tally.hll_union({a}, {b}), {a}, {b})";

// The partial values are the states of PostgreSQL's own aggregates.
const COMBINE_MOMENTS: &str = "COALESCE(pg_catalog.float8_combine({a}, {b}), {a}, {b})";
const COMBINE_REGRESSION: &str = "COALESCE(pg_catalog.float8_regr_combine({a}, {b}), {a}, {b})";

// An aggregate of the same type as the partial column: sum(bigint) would be numeric.
const GATHER_COUNT: &str = "COALESCE(pg_catalog.sum({x}){filter}, 0)::bigint";
const GATHER_WHOLE_SUM: &str = "pg_catalog.sum({x}){filter}::bigint";
const GATHER_SUM: &str = "pg_catalog.sum({x}){filter}";

/// The sum of the squares of all differences, times the number of values: from number {0}, sum {1} and sum of squares {2}.
macro_rules! deviations {
    () => {
        "(({0}::numeric OPERATOR(pg_catalog.*) {2}) OPERATOR(pg_catalog.-) ({1}::numeric OPERATOR(pg_catalog.*) {1}::numeric))"
    };
}
macro_rules! samples {
    () => {
        "({0}::numeric OPERATOR(pg_catalog.*) ({0}::numeric OPERATOR(pg_catalog.-) 1::numeric))"
    };
}
macro_rules! population {
    () => {
        "({0}::numeric OPERATOR(pg_catalog.*) {0}::numeric)"
    };
}
/// `answer` for more than `least` values that are not all the same. The formulas are those of PostgreSQL's own final function
/// (numeric_stddev_internal in numeric.c), to the digit.
macro_rules! spread {
    ($least:literal, $($answer:expr),+) => {
        concat!(
            "CASE WHEN {0} OPERATOR(pg_catalog.>) ", $least, " THEN CASE WHEN ", deviations!(),
            " OPERATOR(pg_catalog.<=) 0::numeric THEN 0::numeric ELSE ", $($answer),+, " END END"
        )
    };
}
macro_rules! root {
    // sqrt() has fewer digits than the quotient for some sizes; rounded from a hundred more they are those of the final function.
    ($($variance:expr),+) => {
        concat!(
            "COALESCE(pg_catalog.round(pg_catalog.sqrt((", $($variance),+, ") OPERATOR(pg_catalog.+) '0e-100'::numeric), ",
            "pg_catalog.scale(", $($variance),+, ")), 'NaN'::numeric)"
        )
    };
}
const VAR_SAMP: &str = spread!("1", deviations!(), " OPERATOR(pg_catalog./) ", samples!());
const VAR_POP: &str = spread!("0", deviations!(), " OPERATOR(pg_catalog./) ", population!());
const STDDEV_SAMP: &str = spread!("1", root!(deviations!(), " OPERATOR(pg_catalog./) ", samples!()));
const STDDEV_POP: &str = spread!("0", root!(deviations!(), " OPERATOR(pg_catalog./) ", population!()));

const fn plain(function: &'static str, merge: &'static str, gather: &'static str) -> PartialForm {
    PartialForm {
        function,
        with_arguments: true,
        argument: "{x}",
        parameters: Parameters::None,
        merge,
        beside: None,
        gather,
        suffix: "",
        is_sketch: false,
        kind: Kind::Other,
    }
}

/// How many values there are.
pub const COUNT: PartialForm = PartialForm { kind: Kind::Count, ..plain("pg_catalog.count", ADD_COUNT, GATHER_COUNT) };
/// How many rows there are.
pub const COUNT_ROWS: PartialForm = PartialForm { with_arguments: false, ..COUNT };

const MOMENTS: PartialForm = PartialForm {
    argument: "{x}::double precision",
    suffix: "moments",
    ..plain("tally._float8_moments", COMBINE_MOMENTS, "tally._float8_moments_union({x}){filter}")
};
const REGRESSION: PartialForm = PartialForm {
    suffix: "regression",
    ..plain("tally._float8_regression", COMBINE_REGRESSION, "tally._float8_regression_union({x}){filter}")
};

/// The sum of values of this type.
fn sum(type_name: &str) -> PartialForm {
    let is_whole = ["smallint", "integer"].contains(&type_name);
    let is_exact = is_whole || ["bigint", "numeric", "interval"].contains(&type_name);
    let kind = if is_exact { Kind::Sum } else { Kind::Other };
    PartialForm { kind, ..plain("pg_catalog.sum", ADD, if is_whole { GATHER_WHOLE_SUM } else { GATHER_SUM }) }
}

/// The value of the earliest or latest row, behind the time that it belongs to.
fn of_an_end(name: &str) -> Vec<PartialForm> {
    let (at, value) = match name {
        "first" => (
            plain("tally._first_at", "LEAST({a}, {b})", "tally.first({x}, {x}){filter}"),
            plain(
                "tally.first",
                "tally._earlier({a}, {A}.{beside}, {b}, {B}.{beside})",
                "tally.first({x}, {X}.{beside}){filter}",
            ),
        ),
        _ => (
            plain("tally._last_at", "GREATEST({a}, {b})", "tally.last({x}, {x}){filter}"),
            plain(
                "tally.last",
                "tally._later({a}, {A}.{beside}, {b}, {B}.{beside})",
                "tally.last({x}, {X}.{beside}){filter}",
            ),
        ),
    };
    vec![PartialForm { suffix: "at", ..at }, PartialForm { beside: Some(0), ..value }]
}

/// Types whose text is the same in every session: dates, times and floats are written as settings say.
const WITH_ONE_TEXT: [&str; 9] =
    ["smallint", "integer", "bigint", "numeric", "boolean", "text", "character varying", "name", "uuid"];

const fn top_n(function: &'static str, parameters: Parameters) -> PartialForm {
    let merge = "COALESCE(tally.topn_union({a}, {b}), {a}, {b})";
    let gather = "tally.topn_union_agg({x}){filter}";
    PartialForm { is_sketch: true, parameters, suffix: "sketch", ..plain(function, merge, gather) }
}

const fn sketch(function: &'static str, parameters: Parameters) -> PartialForm {
    let gather = "tally.hll_union_agg({x}){filter}";
    PartialForm { is_sketch: true, parameters, suffix: "sketch", ..plain(function, UNION, gather) }
}

/// Does this aggregate over a partial column give what it gives over the rows: is it the one that gathers the column?
pub fn gathers(function: &QualifiedName, gather: &str) -> bool {
    let name = match (function.schema.as_str(), function.name.as_str()) {
        ("pg_catalog", "every") => "pg_catalog.bool_and".into(),
        ("tally", "sum" | "distinct_count") => "tally.hll_union_agg".into(),
        (schema, name) => format!("{schema}.{name}"),
    };
    gatherer(gather) == name
}

/// The function that gathers, for messages.
pub fn gatherer(gather: &str) -> &str {
    gather.trim_start_matches("COALESCE(").split('(').next().unwrap_or_default()
}

/// Does it not matter to this aggregate how often a value comes?
pub fn ignores_repetition(function: &QualifiedName) -> bool {
    is_idempotent(&function.schema, &function.name)
}

/// Nor in which order values come: it has the least, the greatest or the union of what it has seen.
fn is_idempotent(schema: &str, name: &str) -> bool {
    match schema {
        "pg_catalog" => ["min", "max", "bool_and", "every", "bool_or", "bit_and", "bit_or"].contains(&name),
        "tally" => {
            let sketches = ["hll_agg", "hll_add_agg", "hll_union_agg", "distinct_count"];
            sketches.contains(&name) || ["first", "last", "_first_at", "_last_at"].contains(&name)
        }
        _ => false,
    }
}

/// Looks an aggregate call up; `settings` say what it leaves open.
pub fn algebra(call: &AggregateCall, settings: &SketchSettings) -> Result<Algebra, Refusal> {
    let types: Vec<&str> = call.arguments.iter().map(|argument| argument.type_name.as_str()).collect();
    let function = (call.function.schema.as_str(), call.function.name.as_str());
    if call.within_group {
        return Err(Refusal::WithinGroup);
    }
    if call.distinct {
        return Err(if function == ("pg_catalog", "count") { Refusal::CountDistinct } else { Refusal::Distinct });
    }
    if call.ordered {
        return Err(Refusal::Ordered);
    }
    let (partials, finish) = match (function, types.as_slice()) {
        (("pg_catalog", "count"), []) => (vec![COUNT_ROWS], "{0}"),
        (("pg_catalog", "count"), [_]) => (vec![COUNT], "{0}"),
        (("pg_catalog", "sum"), [kind]) => match *kind {
            "smallint" | "integer" | "bigint" | "numeric" | "interval" | "real" | "double precision" | "money" => {
                (vec![sum(kind)], "{0}")
            }
            other => return Err(Refusal::Type { type_name: other.into() }),
        },
        // The divisions are those of PostgreSQL's own final functions: numeric by numeric, interval and float by float.
        (("pg_catalog", "avg"), [kind]) => {
            let (argument, finish) = match *kind {
                "smallint" | "integer" | "bigint" | "numeric" => {
                    ("{x}", "{0}::numeric OPERATOR(pg_catalog./) NULLIF({1}, 0)::numeric")
                }
                // sum(real) adds up in single precision, avg(real) in double.
                "real" => ("{x}::double precision", "{0} OPERATOR(pg_catalog./) NULLIF({1}, 0)::double precision"),
                "interval" | "double precision" => {
                    ("{x}", "{0} OPERATOR(pg_catalog./) NULLIF({1}, 0)::double precision")
                }
                other => return Err(Refusal::Type { type_name: other.into() }),
            };
            let sum = PartialForm { argument, suffix: "sum", ..sum(kind) };
            (vec![sum, PartialForm { suffix: "count", ..COUNT }], finish)
        }
        (
            ("pg_catalog", name @ ("var_samp" | "variance" | "var_pop" | "stddev" | "stddev_samp" | "stddev_pop")),
            ["real" | "double precision"],
        ) => {
            let finish = match name {
                "var_samp" | "variance" => "pg_catalog.float8_var_samp({0})",
                "var_pop" => "pg_catalog.float8_var_pop({0})",
                "stddev_pop" => "pg_catalog.float8_stddev_pop({0})",
                _ => "pg_catalog.float8_stddev_samp({0})",
            };
            (vec![MOMENTS], finish)
        }
        (
            ("pg_catalog", name @ ("var_samp" | "variance" | "var_pop" | "stddev" | "stddev_samp" | "stddev_pop")),
            [kind],
        ) => {
            if !["smallint", "integer", "bigint", "numeric"].contains(kind) {
                return Err(Refusal::Type { type_name: (*kind).into() });
            }
            let count = PartialForm { suffix: "count", ..COUNT };
            let total = PartialForm { suffix: "sum", ..sum(kind) };
            let squares = PartialForm {
                suffix: "squares",
                argument: "{x}::numeric OPERATOR(pg_catalog.*) {x}::numeric",
                ..sum("numeric")
            };
            let finish = match name {
                "var_samp" | "variance" => VAR_SAMP,
                "var_pop" => VAR_POP,
                "stddev_pop" => STDDEV_POP,
                _ => STDDEV_SAMP,
            };
            (vec![count, total, squares], finish)
        }
        (("pg_catalog", "regr_count"), [_, _]) => {
            let count = PartialForm { kind: Kind::Count, ..plain("pg_catalog.regr_count", ADD_COUNT, GATHER_COUNT) };
            (vec![count], "{0}")
        }
        (("pg_catalog", name), ["double precision", "double precision"]) => {
            let finish = match name {
                "corr" => "pg_catalog.float8_corr({0})",
                "covar_pop" => "pg_catalog.float8_covar_pop({0})",
                "covar_samp" => "pg_catalog.float8_covar_samp({0})",
                "regr_avgx" => "pg_catalog.float8_regr_avgx({0})",
                "regr_avgy" => "pg_catalog.float8_regr_avgy({0})",
                "regr_intercept" => "pg_catalog.float8_regr_intercept({0})",
                "regr_r2" => "pg_catalog.float8_regr_r2({0})",
                "regr_slope" => "pg_catalog.float8_regr_slope({0})",
                "regr_sxx" => "pg_catalog.float8_regr_sxx({0})",
                "regr_sxy" => "pg_catalog.float8_regr_sxy({0})",
                "regr_syy" => "pg_catalog.float8_regr_syy({0})",
                _ => return Err(Refusal::Unknown),
            };
            (vec![REGRESSION], finish)
        }
        (("pg_catalog", "bool_and" | "every"), ["boolean"]) => (
            vec![plain("pg_catalog.bool_and", "COALESCE({a} AND {b}, {a}, {b})", "pg_catalog.bool_and({x}){filter}")],
            "{0}",
        ),
        (("pg_catalog", "bool_or"), ["boolean"]) => (
            vec![plain("pg_catalog.bool_or", "COALESCE({a} OR {b}, {a}, {b})", "pg_catalog.bool_or({x}){filter}")],
            "{0}",
        ),
        (("pg_catalog", name @ ("bit_and" | "bit_or" | "bit_xor")), ["smallint" | "integer" | "bigint"]) => {
            let form = match name {
                "bit_and" => plain(
                    "pg_catalog.bit_and",
                    "COALESCE({a} OPERATOR(pg_catalog.&) {b}, {a}, {b})",
                    "pg_catalog.bit_and({x}){filter}",
                ),
                "bit_or" => plain(
                    "pg_catalog.bit_or",
                    "COALESCE({a} OPERATOR(pg_catalog.|) {b}, {a}, {b})",
                    "pg_catalog.bit_or({x}){filter}",
                ),
                _ => plain(
                    "pg_catalog.bit_xor",
                    "COALESCE({a} OPERATOR(pg_catalog.#) {b}, {a}, {b})",
                    "pg_catalog.bit_xor({x}){filter}",
                ),
            };
            (vec![form], "{0}")
        }
        // Bit strings of different lengths would be an error of the query, and so of every refresh.
        (("pg_catalog", "bit_and" | "bit_or" | "bit_xor"), [kind]) => {
            return Err(Refusal::Type { type_name: (*kind).into() });
        }
        // LEAST and GREATEST follow the default order of the type, as min and max do, and ignore NULLs.
        (("pg_catalog", "min"), [_]) => {
            (vec![plain("pg_catalog.min", "LEAST({a}, {b})", "pg_catalog.min({x}){filter}")], "{0}")
        }
        (("pg_catalog", "max"), [_]) => {
            (vec![plain("pg_catalog.max", "GREATEST({a}, {b})", "pg_catalog.max({x}){filter}")], "{0}")
        }
        (("tally", name @ ("first" | "last")), [_, _]) => {
            if let Some(argument) = call.arguments.iter().find(|argument| !argument.has_order) {
                return Err(Refusal::NoOrder { type_name: argument.type_name.clone() });
            }
            (of_an_end(name), "{1}")
        }
        (("tally", "hll_agg" | "distinct_count"), [kind, ..])
            if *kind != "tally.hll" && !call.arguments[0].has_lasting_hash =>
        {
            return Err(Refusal::Type { type_name: (*kind).into() });
        }
        (("tally", "hll_agg" | "distinct_count"), [_, ..]) if !call.arguments[0].deterministic => {
            return Err(Refusal::NondeterministicCollation);
        }
        (("tally", "hll_agg"), [_, given @ ..]) if given.len() <= 4 => {
            (vec![sketch("tally.hll_agg", settings.distinct(&call.arguments[1..])?)], "{0}")
        }
        (("tally", "hll_add_agg"), ["tally.hll_hashval", given @ ..]) if given.len() <= 4 => {
            (vec![sketch("tally.hll_add_agg", settings.distinct(&call.arguments[1..])?)], "{0}")
        }
        (("tally", "hll_union_agg" | "sum"), ["tally.hll"]) => {
            (vec![sketch("tally.hll_union_agg", Parameters::None)], "{0}")
        }
        (("tally", "distinct_count"), ["tally.hll"]) => {
            // An UNDEFINED sketch has no count, and no sketch at all counts 0.
            let finish = "CASE WHEN {0} IS NULL THEN 0 ELSE tally.hll_count({0}) END";
            (vec![sketch("tally.hll_union_agg", Parameters::None)], finish)
        }
        (("tally", "distinct_count"), [_]) => {
            (vec![sketch("tally.hll_agg", settings.distinct(&[])?)], "COALESCE(tally.hll_count({0}), 0)")
        }
        (("tally", "topn_agg" | "topn_add_agg"), [kind, ..])
            if !WITH_ONE_TEXT.contains(kind) && *kind != "character" =>
        {
            return Err(Refusal::Type { type_name: (*kind).into() });
        }
        (("tally", "topn_agg" | "topn_add_agg"), [_] | [_, _]) => {
            (vec![top_n("tally.topn_agg", settings.frequent(call.arguments.get(1))?)], "{0}")
        }
        (("tally", "topn_union_agg"), ["tally.topn"]) => (vec![top_n("tally.topn_union_agg", Parameters::None)], "{0}"),
        _ => return Err(Refusal::Unknown),
    };
    Ok(Algebra { partials, finish })
}

#[cfg(test)]
mod tests {
    use super::super::analysis::{Argument, Expression};
    use super::*;
    use crate::ident::QualifiedName;

    fn algebra(call: &AggregateCall) -> Result<Algebra, Refusal> {
        super::algebra(call, &SketchSettings::default())
    }

    fn call(schema: &str, name: &str, types: &[&str]) -> AggregateCall {
        AggregateCall {
            function: QualifiedName::new(schema, name),
            sql: format!("{name}(..)"),
            result_type: String::new(),
            arguments: types
                .iter()
                .map(|kind| Argument {
                    expression: Expression { sql: "x".into(), ..Expression::default() },
                    type_name: (*kind).into(),
                    deterministic: true,
                    has_order: *kind != "json",
                    has_lasting_hash: *kind != "json",
                    never_null: false,
                    has_fixed_scale: true,
                })
                .collect(),
            filter: None,
            support: None,
            distinct: false,
            ordered: false,
            within_group: false,
            variadic: false,
        }
    }

    #[test]
    fn an_average_is_kept_as_sum_and_count() {
        let average = algebra(&call("pg_catalog", "avg", &["bigint"])).unwrap();
        assert_eq!(
            average.partials.iter().map(|p| p.function).collect::<Vec<_>>(),
            ["pg_catalog.sum", "pg_catalog.count"]
        );
    }

    #[test]
    fn a_deviation_is_kept_as_number_sum_and_squares() {
        let forms = algebra(&call("pg_catalog", "stddev_pop", &["numeric"])).unwrap();
        assert_eq!(forms.partials.len(), 3);
        assert!(
            forms.finish.contains("pg_catalog.sqrt")
                && forms.finish.starts_with("CASE WHEN {0} OPERATOR(pg_catalog.>) 0")
        );
        let variance = algebra(&call("pg_catalog", "variance", &["numeric"])).unwrap();
        assert_eq!(variance.partials, forms.partials);
        assert!(!variance.finish.contains("sqrt"));
    }

    #[test]
    fn a_deviation_of_floats_is_kept_as_the_state_of_postgresql() {
        for kind in ["real", "double precision"] {
            let forms = algebra(&call("pg_catalog", "stddev", &[kind])).unwrap();
            assert_eq!(forms.finish, "pg_catalog.float8_stddev_samp({0})");
            assert_eq!(forms.partials, algebra(&call("pg_catalog", "var_pop", &[kind])).unwrap().partials);
        }
        let pair = ["double precision"; 2];
        let [corr, slope] = ["corr", "regr_slope"].map(|name| algebra(&call("pg_catalog", name, &pair)).unwrap());
        assert_eq!(corr.partials, slope.partials);
        assert_eq!(corr.finish, "pg_catalog.float8_corr({0})");
        // Not of a function of that name elsewhere.
        assert_eq!(algebra(&call("public", "corr", &pair)), Err(Refusal::Unknown));
    }

    #[test]
    fn a_function_of_the_same_name_elsewhere_is_unknown() {
        assert_eq!(algebra(&call("public", "sum", &["bigint"])), Err(Refusal::Unknown));
        assert_eq!(algebra(&call("pg_catalog", "array_agg", &["bigint"])), Err(Refusal::Unknown));
    }

    #[test]
    fn count_distinct_has_its_own_refusal() {
        let distinct = |name| AggregateCall { distinct: true, ..call("pg_catalog", name, &["bigint"]) };
        assert_eq!(algebra(&distinct("count")), Err(Refusal::CountDistinct));
        assert_eq!(algebra(&distinct("sum")), Err(Refusal::Distinct));
    }

    #[test]
    fn a_last_value_is_kept_beside_its_time() {
        let forms = algebra(&call("tally", "last", &["text", "date"])).unwrap();
        assert_eq!(forms.finish, "{1}");
        let [at, value] = forms.partials.as_slice() else { panic!("{forms:?}") };
        assert_eq!((at.function, value.function, value.beside), ("tally._last_at", "tally.last", Some(0)));
        for types in [["json", "date"], ["text", "json"]] {
            assert_eq!(algebra(&call("tally", "first", &types)), Err(Refusal::NoOrder { type_name: "json".into() }));
        }
    }

    #[test]
    fn the_precision_of_a_sketch_is_a_literal() {
        let mut varying = call("tally", "hll_agg", &["bigint", "integer"]);
        assert_eq!(algebra(&varying), Err(Refusal::VaryingPrecision));
        varying.arguments[1].expression.sql = "14".into();
        let form = &algebra(&varying).unwrap().partials[0];
        assert_eq!((form.form().as_str(), form.taken()), ("{x}, 14, 5, -1, 1", 1));
    }

    #[test]
    fn what_a_sketch_leaves_open_is_frozen() {
        let settings = SketchSettings { log2m: 12, counters: 500, ..SketchSettings::default() };
        let form = |name: &str, kind: &str| {
            super::algebra(&call("tally", name, &[kind]), &settings).unwrap().partials[0].form()
        };
        for (name, kind) in [("hll_agg", "bigint"), ("distinct_count", "bigint"), ("hll_add_agg", "tally.hll_hashval")]
        {
            assert_eq!(form(name, kind), "{x}, 12, 5, -1, 1", "{name}");
        }
        assert_eq!(form("topn_agg", "bigint"), "{x}, 500");
        for (name, kind) in
            [("hll_union_agg", "tally.hll"), ("distinct_count", "tally.hll"), ("topn_union_agg", "tally.topn")]
        {
            assert_eq!(form(name, kind), "{x}", "{name}");
        }
    }

    #[test]
    fn what_depends_on_the_order_of_rows_is_not_exact() {
        let is_exact = |schema: &str, name: &str, types: &[&str]| -> Vec<bool> {
            algebra(&call(schema, name, types)).unwrap().partials.iter().map(PartialForm::is_exact).collect()
        };
        for (name, kind) in [
            ("count", "text"),
            ("sum", "bigint"),
            ("min", "text"),
            ("bool_or", "boolean"),
            ("bit_and", "bigint"),
            ("bit_xor", "bigint"),
        ] {
            assert_eq!(is_exact("pg_catalog", name, &[kind]), [true], "{name}");
        }
        assert_eq!(is_exact("pg_catalog", "stddev", &["numeric"]), [true; 3]);
        assert_eq!(is_exact("pg_catalog", "avg", &["double precision"]), [false, true]);
        assert_eq!(is_exact("pg_catalog", "stddev", &["real"]), [false]);
        assert_eq!(is_exact("pg_catalog", "corr", &["double precision", "double precision"]), [false]);
        assert_eq!(is_exact("tally", "distinct_count", &["text"]), [true]);
        assert_eq!(is_exact("tally", "hll_union_agg", &["tally.hll"]), [true]);
        assert_eq!(is_exact("tally", "first", &["text", "date"]), [true; 2]);
        // Beyond its counters it depends on the order.
        assert_eq!(is_exact("tally", "topn_agg", &["text"]), [false]);
    }

    #[test]
    fn a_list_of_the_most_frequent_takes_what_has_one_text() {
        for kind in ["bigint", "text", "character", "numeric"] {
            assert_eq!(
                algebra(&call("tally", "topn_add_agg", &[kind])).unwrap().partials[0].function,
                "tally.topn_agg"
            );
        }
        for kind in ["date", "double precision", "timestamp with time zone", "mood"] {
            let refused = Err(Refusal::Type { type_name: kind.into() });
            assert_eq!(algebra(&call("tally", "topn_agg", &[kind])), refused);
        }
        assert_eq!(algebra(&call("tally", "topn_agg", &["text", "integer"])), Err(Refusal::VaryingPrecision));
    }

    #[test]
    fn a_sketch_of_values_without_one_byte_form_is_refused() {
        assert!(algebra(&call("tally", "hll_agg", &["bigint"])).is_ok());
        assert_eq!(
            algebra(&call("tally", "distinct_count", &["json"])),
            Err(Refusal::Type { type_name: "json".into() })
        );
        assert_eq!(
            algebra(&call("tally", "distinct_count", &["tally.hll"])).unwrap().partials[0].function,
            "tally.hll_union_agg"
        );
    }

    #[test]
    fn a_sum_without_merge_names_its_type() {
        assert_eq!(algebra(&call("pg_catalog", "avg", &["money"])), Err(Refusal::Type { type_name: "money".into() }));
    }
}
