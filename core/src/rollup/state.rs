//! Aggregates that the algebra does not know, kept by their transition states: PostgreSQL itself can compute them in parts if they
//! have a combine function.
//!
//! Two aggregates are made for each beside the rollup. One computes the state of rows: it is the user's without its final
//! function. The other one unites states: its rows are states, and its transition function is the combine function. So PostgreSQL
//! calls the user's functions in an aggregate, with its own rules for NULL and strict functions, and the statements of a
//! refresh name none of them: they may be renamed.
//!
//! States of type `internal` live in memory alone. They are kept as the bytes that the aggregate writes for parallel processes, and a
//! third aggregate gives the answer, from the one state that is its row.

use super::aggregate::Refusal;
use super::analysis::{AggregateCall, Support, Volatility};
use super::definition::OwnAggregate;
use super::names::Names;
use crate::ident::{QualifiedName, fit, literal};

/// How two states become one, if both are there: a state may be NULL.
pub const UNITE: &str = "CASE WHEN {A}._rows IS NULL THEN {b} WHEN {B}._rows IS NULL THEN {a} \
    ELSE (SELECT {unite}(v.state) FROM (VALUES ({a}), ({b})) AS v (state)) END";

/// How many states become one.
pub const GATHER: &str = "{unite}({x}){filter}";

/// Of states of type `internal`, as they are kept.
const KEPT: &str = "tally.aggregate_state";

/// Aggregates of PostgreSQL that put values one after the other, as rows happen to come. Of some it can unite states since version 16.
const IN_ORDER: [&str; 9] = [
    "array_agg",
    "string_agg",
    "json_agg",
    "json_agg_strict",
    "jsonb_agg",
    "jsonb_agg_strict",
    "json_object_agg",
    "jsonb_object_agg",
    "xmlagg",
];

/// How the aggregate of a call is computed, if a rollup can keep its states.
pub fn kept(call: &AggregateCall) -> Result<&Support, Refusal> {
    let support = call.support.as_ref().ok_or(Refusal::Unknown)?;
    if call.variadic && support.is_variadic_any {
        return Err(Refusal::Variadic);
    }
    if call.function.schema == "pg_catalog" && IN_ORDER.contains(&call.function.name.as_str()) {
        return Err(Refusal::OrderOfRows);
    }
    if support.has_internal_state && (support.exchange.is_none() || support.finish.is_none()) {
        return Err(Refusal::InternalState);
    }
    let combine = support.combine.as_ref().ok_or(Refusal::NoCombine)?;
    if support.finish_takes_arguments {
        return Err(Refusal::FinishTakesArguments);
    }
    // Of a state that has been kept as bytes it gets a copy of its own.
    if support.finish_changes_state && !support.has_internal_state {
        return Err(Refusal::FinishChangesState);
    }
    // What is stored must be the same for every session; the final function runs in the session that reads.
    let exchange = support.exchange.iter().flatten().filter(|_| support.has_internal_state);
    let mut stored = [&support.transition, combine].into_iter().chain(exchange);
    let stored = stored.find(|function| function.volatility != Volatility::Immutable);
    let read = support.finish.iter().find(|function| function.volatility == Volatility::Volatile);
    match stored.or(read) {
        Some(function) => Err(Refusal::UnstableSupport {
            function: function.signature.clone(),
            volatile: function.volatility == Volatility::Volatile,
        }),
        None => Ok(support),
    }
}

/// The aggregates that are made for a rollup: each once, however many columns it is for.
#[derive(Clone, Debug)]
pub struct OwnAggregates {
    rollup: QualifiedName,
    names: Names,
    /// The aggregate of the user, and the positions of those made for it.
    known: Vec<(String, usize)>,
    made: Vec<OwnAggregate>,
}

impl OwnAggregates {
    pub fn new(rollup: &QualifiedName) -> Self {
        Self { rollup: rollup.clone(), names: Names::new([]), known: vec![], made: vec![] }
    }

    /// Those that compute and that unite the states of an aggregate, and if they are kept as bytes the one that gives the answer.
    pub fn of(&mut self, support: &Support) -> (&OwnAggregate, &OwnAggregate, Option<&OwnAggregate>) {
        let known = self.known.iter().find(|(aggregate, _)| *aggregate == support.signature);
        let position = known.map_or(self.made.len(), |(_, position)| *position);
        if known.is_none() {
            self.known.push((support.signature.clone(), position));
            self.make(support);
        }
        let answer = support.has_internal_state.then(|| &self.made[position + 2]);
        (&self.made[position], &self.made[position + 1], answer)
    }

    fn make(&mut self, support: &Support) {
        let Support { signature, state_type, transition, .. } = support;
        let combine = support.combine.as_ref().unwrap_or(transition);
        let mut options =
            format!("STYPE = {state_type}, COMBINEFUNC = {}, PARALLEL = {}", combine.name, support.parallel);
        if let Some(initial) = &support.initial {
            options += &format!(", INITCOND = {}", literal(initial));
        }
        if support.state_size > 0 {
            options += &format!(", SSPACE = {}", support.state_size);
        }
        let exchange = support.exchange.as_ref().filter(|_| support.has_internal_state);
        if let Some([write, read]) = exchange {
            options += &format!(", SERIALFUNC = {}, DESERIALFUNC = {}", write.name, read.name);
        }
        let rollup = self.rollup.to_string();
        let arguments = if support.arguments.is_empty() { "*".into() } else { support.arguments.clone() };
        let mut make = |suffix: &str, arguments: String, functions: String, comment: &str| {
            let wanted = fit(&format!("{}_{}", self.rollup.name, support.name), suffix);
            self.made.push(OwnAggregate {
                schema: self.rollup.schema.clone(),
                name: self.names.claim(&wanted),
                arguments,
                options: format!("{functions}, {options}"),
                needs_superuser: exchange.is_some(),
                comment: format!("{comment} of {signature}, for the rollup {rollup}; part of it"),
            });
        };
        if exchange.is_none() {
            make("_state", arguments, format!("SFUNC = {}", transition.name), "state over rows");
            make("_union", state_type.clone(), format!("SFUNC = {}", combine.name), "union of states");
            return;
        }
        let pack = "FINALFUNC = tally._pack_state";
        make("_state", arguments, format!("SFUNC = {}, {pack}", transition.name), "state over rows");
        make("_union", KEPT.into(), format!("SFUNC = tally._unite_states, {pack}"), "union of states");
        if let Some(finish) = &support.finish {
            let changes = if support.finish_changes_state { ", FINALFUNC_MODIFY = READ_WRITE" } else { "" };
            let functions = format!("SFUNC = tally._unite_states, FINALFUNC = {}{changes}", finish.name);
            make("_answer", KEPT.into(), functions, "answer from states");
        }
    }

    /// All of them, in the order in which they are to be made.
    pub fn made(&self) -> &[OwnAggregate] {
        &self.made
    }
}

/// Makes one, and says what it is.
pub fn create(aggregate: &OwnAggregate) -> [String; 2] {
    let OwnAggregate { options, comment, .. } = aggregate;
    [
        format!("CREATE AGGREGATE {aggregate} ({options})"),
        format!("COMMENT ON AGGREGATE {aggregate} IS {}", literal(comment)),
    ]
}

/// The answer, from the state in a column; `answer` is the aggregate that gives it, if there is one. The user's aggregate stands there for PostgreSQL to see that the rollup needs it, so that
/// it is not dropped alone; the condition is gone before a query runs.
pub fn finish(support: &Support, answer: Option<&OwnAggregate>, column: &str) -> String {
    let answer = match (answer, &support.finish) {
        (Some(answer), _) => format!("(SELECT {}(v.state) FROM (VALUES ({column})) AS v (state))", answer.qualified()),
        (None, Some(function)) => format!("{}({column})", function.name),
        (None, None) => column.into(),
    };
    format!("CASE WHEN {}::pg_catalog.regprocedure IS NOT NULL THEN {answer} END", literal(&support.signature))
}

#[cfg(test)]
mod tests {
    use super::super::analysis::SupportFunction;
    use super::super::definition::{Call, Definition, Partial};
    use super::*;

    fn function(name: &str) -> SupportFunction {
        SupportFunction {
            name: QualifiedName::new("public", name),
            signature: format!("public.{name}(numeric,numeric)"),
            volatility: Volatility::Immutable,
        }
    }

    /// `public.product(numeric)`
    fn product() -> Support {
        Support {
            name: "product".into(),
            signature: "public.product(numeric)".into(),
            arguments: "numeric".into(),
            is_variadic_any: false,
            state_type: "numeric".into(),
            has_internal_state: false,
            state_size: 0,
            initial: None,
            transition: function("multiply"),
            combine: Some(function("unite")),
            exchange: None,
            finish: None,
            finish_takes_arguments: false,
            finish_changes_state: false,
            parallel: "SAFE".into(),
        }
    }

    /// The same with a state in memory.
    fn internal() -> Support {
        Support {
            state_type: "internal".into(),
            has_internal_state: true,
            exchange: Some([function("write"), function("read")]),
            finish: Some(function("answer")),
            ..product()
        }
    }

    fn call(support: Support) -> AggregateCall {
        AggregateCall {
            function: QualifiedName::new("public", "product"),
            sql: "product(x)".into(),
            result_type: "numeric".into(),
            arguments: vec![],
            filter: None,
            distinct: false,
            ordered: false,
            within_group: false,
            variadic: false,
            support: Some(support),
        }
    }

    #[track_caller]
    fn assert_refused(expected: &Refusal, change: impl FnOnce(&mut AggregateCall, &mut Support)) {
        let (mut support, mut call) = (product(), call(product()));
        change(&mut call, &mut support);
        call.support = call.support.and(Some(support));
        assert_eq!(kept(&call).as_ref(), Err(expected));
    }

    #[test]
    fn each_reason_against_an_aggregate_is_named() {
        assert!(kept(&call(product())).is_ok());
        assert_refused(&Refusal::Unknown, |call, _| call.support = None);
        assert_refused(&Refusal::NoCombine, |_, support| support.combine = None);
        assert_refused(&Refusal::InternalState, |_, support| support.has_internal_state = true);
        assert_refused(&Refusal::InternalState, |_, support| *support = Support { exchange: None, ..internal() });
        assert_refused(&Refusal::OrderOfRows, |call, _| call.function = QualifiedName::new("pg_catalog", "string_agg"));
        assert!(kept(&call(internal())).is_ok());
        assert!(kept(&call(Support { finish_changes_state: true, ..internal() })).is_ok());
        assert_refused(&Refusal::FinishTakesArguments, |_, support| support.finish_takes_arguments = true);
        assert_refused(&Refusal::FinishChangesState, |_, support| support.finish_changes_state = true);
        assert_refused(&Refusal::Variadic, |call, support| (call.variadic, support.is_variadic_any) = (true, true));
        let spread = AggregateCall { variadic: true, ..call(product()) };
        assert!(kept(&spread).is_ok());
    }

    #[test]
    fn what_is_stored_is_immutable_and_what_is_read_not_volatile() {
        let of = |name: &str, volatility| SupportFunction { volatility, ..function(name) };
        for (volatility, volatile) in [(Volatility::Stable, false), (Volatility::Volatile, true)] {
            let refusal =
                |name: &str| Refusal::UnstableSupport { function: format!("public.{name}(numeric,numeric)"), volatile };
            assert_refused(&refusal("s"), |_, support| support.transition = of("s", volatility));
            assert_refused(&refusal("c"), |_, support| support.combine = Some(of("c", volatility)));
            let read = Some([function("w"), of("r", volatility)]);
            assert_refused(&refusal("r"), |_, support| *support = Support { exchange: read, ..internal() });
        }
        let finish = |volatility| Support { finish: Some(of("f", volatility)), ..product() };
        assert!(kept(&call(finish(Volatility::Stable))).is_ok());
        assert!(kept(&call(finish(Volatility::Volatile))).is_err());
    }

    #[test]
    fn each_aggregate_is_made_once() {
        let mut own = OwnAggregates::new(&QualifiedName::new("public", "r"));
        let names = |(state, union, answer): (&OwnAggregate, &OwnAggregate, Option<&OwnAggregate>)| {
            (state.name.clone(), union.name.clone(), answer.map(|answer| answer.name.clone()))
        };
        let expected = ("r_product_state".into(), "r_product_union".into(), None);
        assert_eq!(names(own.of(&product())), expected);
        assert_eq!(names(own.of(&product())), expected);
        // One of the same name elsewhere.
        let other = Support { signature: "shop.product(numeric)".into(), ..internal() };
        let expected = ("r_product_state_2".into(), "r_product_union_2".into(), Some("r_product_answer".into()));
        assert_eq!(names(own.of(&other)), expected);
        assert_eq!(own.made().len(), 5);
    }

    #[test]
    fn the_two_aggregates_have_the_functions_of_the_users() {
        let mut own = OwnAggregates::new(&QualifiedName::new("public", "r"));
        own.of(&Support { initial: Some("{0,'x'}".into()), state_size: 40, ..product() });
        let options =
            "STYPE = numeric, COMBINEFUNC = \"public\".\"unite\", PARALLEL = SAFE, INITCOND = '{0,''x''}', SSPACE = 40";
        assert_eq!(
            own.made().iter().map(|made| create(made)[0].clone()).collect::<Vec<_>>(),
            [
                format!(
                    "CREATE AGGREGATE \"public\".\"r_product_state\"(numeric) (SFUNC = \"public\".\"multiply\", {options})"
                ),
                format!(
                    "CREATE AGGREGATE \"public\".\"r_product_union\"(numeric) (SFUNC = \"public\".\"unite\", {options})"
                ),
            ]
        );
        let rows =
            own.of(&Support { name: "rows".into(), signature: "rows()".into(), arguments: String::new(), ..product() });
        assert_eq!(rows.0.to_string(), "\"public\".\"r_rows_state\"(*)");
    }

    #[test]
    fn states_in_memory_are_kept_as_bytes() {
        let mut own = OwnAggregates::new(&QualifiedName::new("public", "r"));
        own.of(&Support { finish_changes_state: true, ..internal() });
        let rest = "STYPE = internal, COMBINEFUNC = \"public\".\"unite\", PARALLEL = SAFE, \
            SERIALFUNC = \"public\".\"write\", DESERIALFUNC = \"public\".\"read\"";
        let pack = "FINALFUNC = tally._pack_state";
        let options: Vec<_> = own.made().iter().map(|made| (made.arguments.as_str(), made.options.clone())).collect();
        assert_eq!(
            options,
            [
                ("numeric", format!("SFUNC = \"public\".\"multiply\", {pack}, {rest}")),
                (KEPT, format!("SFUNC = tally._unite_states, {pack}, {rest}")),
                (
                    KEPT,
                    format!(
                        "SFUNC = tally._unite_states, FINALFUNC = \"public\".\"answer\", FINALFUNC_MODIFY = READ_WRITE, {rest}"
                    )
                ),
            ]
        );
        assert!(own.made().iter().all(|made| made.needs_superuser));
    }

    #[test]
    fn the_answer_is_that_of_the_final_function() {
        let is_needed = "'public.product(numeric)'::pg_catalog.regprocedure IS NOT NULL";
        assert_eq!(finish(&product(), None, "\"x\""), format!("CASE WHEN {is_needed} THEN \"x\" END"));
        let support = Support { finish: Some(function("f")), ..product() };
        assert_eq!(finish(&support, None, "\"x\""), format!("CASE WHEN {is_needed} THEN \"public\".\"f\"(\"x\") END"));
        let mut own = OwnAggregates::new(&QualifiedName::new("public", "r"));
        let (.., answer) = own.of(&internal());
        let from_state = "(SELECT \"public\".\"r_product_answer\"(v.state) FROM (VALUES (\"x\")) AS v (state))";
        assert_eq!(finish(&internal(), answer, "\"x\""), format!("CASE WHEN {is_needed} THEN {from_state} END"));
    }

    #[test]
    fn aggregates_in_a_renamed_schema_are_found_by_what_the_view_uses() {
        let mut own = OwnAggregates::new(&QualifiedName::new("public", "r"));
        let (state, unite, _) = own.of(&product());
        let (state, unite) = (state.qualified(), unite.qualified());
        let call = Call { function: state, arguments: vec!["x".into()], form: "{x}".into(), filter: None };
        let partial = Partial {
            name: "p".into(),
            sql: call.sql(),
            call,
            merge: UNITE.into(),
            beside: None,
            unite: Some(unite),
            gather: String::new(),
            from_below: None,
            is_sketch: false,
            is_exact: false,
            subtract: None,
        };
        let mut definition =
            Definition { partials: vec![partial], aggregates: own.made().to_vec(), ..Definition::default() };
        let before = definition.clone();
        let moved = |schema: &str| ["r_product_state", "r_product_union"].map(|name| QualifiedName::new(schema, name));
        definition.follow_aggregates(&moved("public"));
        definition.follow_aggregates(&[]);
        definition.follow_aggregates(&[moved("a"), moved("b")].concat());
        assert_eq!(definition, before);
        definition.follow_aggregates(&moved("shop"));
        assert_eq!(definition.partials[0].sql, "\"shop\".\"r_product_state\"(\"x\")");
        assert_eq!(definition.partials[0].unite.as_deref(), Some("\"shop\".\"r_product_union\""));
        assert_eq!(definition.aggregates[1].to_string(), "\"shop\".\"r_product_union\"(numeric)");
    }
}
