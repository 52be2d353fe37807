use super::super::analysis::{AggregateCall, Argument, Target};
use super::*;
use crate::ident::QualifiedName;

fn expression(sql: &str) -> Expression {
    Expression { sql: sql.into(), unstable: vec![] }
}

fn key(name: Option<&str>, sql: &str) -> super::super::analysis::Key {
    super::super::analysis::Key {
        expression: expression(sql),
        name: name.map(Into::into),
        never_null: false,
        is_time: false,
        bucket: None,
        type_name: "bigint".into(),
        deterministic: true,
        groupable: true,
    }
}

fn call(name: &str, argument: &str, kind: &str) -> AggregateCall {
    AggregateCall {
        function: QualifiedName::new("pg_catalog", name),
        sql: format!("{name}({argument})"),
        arguments: vec![Argument { expression: expression(argument), type_name: kind.into(), deterministic: true }],
        filter: None,
        distinct: false,
        ordered: false,
        within_group: false,
        variadic: false,
    }
}

fn target(name: &str, aggregates: &[usize], is_aggregate: bool) -> Target {
    Target {
        name: name.into(),
        sql: String::new(),
        aggregates: aggregates.into(),
        is_aggregate,
        unstable: vec![],
        ungrouped_column: None,
    }
}

/// `SELECT customer_id, sum(amount) AS revenue, avg(amount) AS mean FROM public.events GROUP BY 1`
fn analysis() -> Analysis {
    Analysis {
        unsupported: vec![],
        source: Some(Source {
            name: QualifiedName::new("public", "events"),
            alias: "events".into(),
            kind: SourceKind::PartitionedTable,
            only: false,
        }),
        condition: None,
        keys: vec![key(Some("customer_id"), "events.customer_id")],
        targets: vec![target("customer_id", &[], false), target("revenue", &[0], true), target("mean", &[1], true)],
        aggregates: vec![call("sum", "events.amount", "numeric"), call("avg", "events.amount", "numeric")],
    }
}

fn refused(change: impl FnOnce(&mut Analysis)) -> Error {
    let mut analysis = analysis();
    change(&mut analysis);
    validate(&analysis).unwrap_err()
}

#[test]
fn aggregates_share_arguments_and_partial_columns() {
    let definition = validate(&analysis()).unwrap();
    assert_eq!(definition.arguments.len(), 1);
    let partials: Vec<_> = definition.partials.iter().map(|p| (p.name.as_str(), p.sql.as_str())).collect();
    assert_eq!(
        partials,
        [("revenue", "pg_catalog.sum(\"argument_1\")"), ("mean_count", "pg_catalog.count(\"argument_1\")"),]
    );
    assert_eq!(definition.finishes[0], "\"revenue\"");
    assert_eq!(
        definition.finishes[1],
        "\"revenue\"::numeric OPERATOR(pg_catalog./) NULLIF(\"mean_count\", 0)::numeric"
    );
}

#[test]
fn a_filter_is_a_column_of_the_rows_and_part_of_the_partial() {
    let mut analysis = analysis();
    analysis.aggregates[0].filter = Some(expression("events.amount > 0"));
    let definition = validate(&analysis).unwrap();
    assert_eq!(definition.filters[0].sql, "events.amount > 0");
    assert_eq!(definition.partials[0].sql, "pg_catalog.sum(\"argument_1\") FILTER (WHERE \"filter_1\")");
    // The average has no filter, so it cannot share the sum.
    assert_eq!(definition.partials.len(), 3);
}

#[test]
fn column_names_never_meet() {
    let mut analysis = analysis();
    analysis.keys[0].name = Some("argument_1".into());
    analysis.keys.push(key(Some("_rows"), "events.other"));
    analysis.keys.push(key(None, "events.third"));
    let definition = validate(&analysis).unwrap();
    assert_eq!(definition.keys.iter().map(|k| k.name.as_str()).collect::<Vec<_>>(), ["argument_1", "_rows_2", "key_3"]);
    assert_eq!(definition.arguments[0].name, "argument_1_2");
}

#[test]
fn a_bucket_that_depends_on_the_session_is_refused_with_the_way_out() {
    let unstable = |signature: &str, volatile| vec![UnstableFunction { signature: signature.into(), volatile }];
    let stable = refused(|a| {
        a.keys[0].expression.unstable = unstable("date_trunc(text,timestamp with time zone)", false);
    });
    assert_eq!(stable.to_string(), "function date_trunc(text,timestamp with time zone) in GROUP BY is only stable");
    assert_eq!(stable.sqlstate(), "42P17");
    assert!(stable.hint().unwrap().contains("date_bin"));
    let volatile = refused(|a| a.aggregates[0].arguments[0].expression.unstable = unstable("random()", true));
    assert_eq!(volatile.to_string(), "function random() in sum(events.amount) is volatile");

    let around = |volatile| {
        let mut analysis = analysis();
        analysis.targets[1].unstable = unstable("tally.hll_count(tally.hll)", volatile);
        validate(&analysis)
    };
    assert!(around(false).is_ok());
    assert_eq!(around(true).unwrap_err().sqlstate(), "42P17");

    let mut named_zone = analysis();
    named_zone.keys[0].expression.unstable = unstable("date_trunc(text,timestamp with time zone,text)", false);
    assert!(validate(&named_zone).is_ok());
}

#[test]
fn every_refusal_has_a_hint_and_a_message_of_one_line() {
    use Unsupported::*;
    let parts = [
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
    ];
    let refusals = [
        Refusal::Unknown,
        Refusal::CountDistinct,
        Refusal::Distinct,
        Refusal::Ordered,
        Refusal::WithinGroup,
        Refusal::Variadic,
        Refusal::Type { type_name: "money".into() },
        Refusal::NondeterministicCollation,
        Refusal::VaryingPrecision,
    ];
    let reasons = [
        SourceRefusal::Only,
        SourceRefusal::Partition,
        SourceRefusal::Inherited,
        SourceRefusal::Rollup,
        SourceRefusal::NotATable,
        SourceRefusal::Temporary,
        SourceRefusal::Unlogged,
    ];
    let errors = parts
        .map(Error::Unsupported)
        .into_iter()
        .chain(refusals.map(|refusal| Error::Aggregate { sql: "f(x)".into(), refusal }))
        .chain(reasons.map(|reason| Error::Source { name: "t".into(), reason }));
    for error in errors {
        let message = error.to_string();
        assert!(!message.ends_with('.') && !message.contains('\n'), "{message}");
        assert!(message.starts_with(|c: char| c.is_lowercase()), "{message}");
        assert_eq!(error.sqlstate(), "0A000", "{message}");
        assert!(error.hint().unwrap().ends_with('.'), "{message}");
    }
}

#[test]
fn other_mistakes_have_codes_of_their_own() {
    assert_eq!(refused(|a| a.targets[1].name = "mean".into()).sqlstate(), "42701");
    assert_eq!(refused(|a| a.targets[0].ungrouped_column = Some("x".into())).sqlstate(), "42803");
    assert_eq!(refused(|a| a.keys[0].deterministic = false).sqlstate(), "42P17");
    assert_eq!(
        refused(|a| a.source.as_mut().unwrap().only = true).to_string(),
        "a rollup cannot read FROM ONLY: \"public\".\"events\""
    );
}
