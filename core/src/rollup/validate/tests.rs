use super::super::analysis::{AggregateCall, Argument, Bucket, Target};
use super::*;
use crate::ident::QualifiedName;

fn validate(analysis: &Analysis, below: Option<&Below>) -> Result<Definition, Error> {
    super::validate(analysis, below, &QualifiedName::new("public", "r"), SketchSettings::default())
}

fn expression(sql: &str) -> Expression {
    let column = sql.rsplit('.').next().unwrap_or(sql).trim_end_matches(')').to_string();
    Expression {
        sql: sql.into(),
        unstable: vec![],
        columns: vec![column],
        is_column: true,
        is_built_in: true,
        never_fails: true,
    }
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
        result_type: "numeric".into(),
        arguments: vec![Argument {
            expression: expression(argument),
            type_name: kind.into(),
            deterministic: true,
            has_order: true,
            has_lasting_hash: true,
            never_null: false,
            has_fixed_scale: true,
        }],
        filter: None,
        support: None,
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
        is_built_in: true,
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
            partition_key: None,
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
    validate(&analysis, None).unwrap_err()
}

#[test]
fn aggregates_share_arguments_and_partial_columns() {
    let definition = validate(&analysis(), None).unwrap();
    assert_eq!(definition.arguments.len(), 1);
    let partials: Vec<_> = definition.partials.iter().map(|p| (p.name.as_str(), p.sql.as_str())).collect();
    assert_eq!(
        partials,
        [("revenue", "pg_catalog.sum(\"argument_1\")"), ("revenue_values", "pg_catalog.count(\"argument_1\")"),]
    );
    assert_eq!(definition.finishes[0], "\"revenue\"");
    assert_eq!(
        definition.finishes[1],
        "\"revenue\"::numeric OPERATOR(pg_catalog./) NULLIF(\"revenue_values\", 0)::numeric"
    );
}

#[test]
fn a_filter_is_a_column_of_the_rows_and_part_of_the_partial() {
    let mut analysis = analysis();
    analysis.aggregates[0].filter = Some(expression("events.amount > 0"));
    let definition = validate(&analysis, None).unwrap();
    assert_eq!(definition.filters[0].sql, "events.amount > 0");
    assert_eq!(definition.partials[0].sql, "pg_catalog.sum(\"argument_1\") FILTER (WHERE \"filter_1\")");
    // The average has no filter, so it cannot share the sum, nor the number of its values.
    assert_eq!(definition.partials.len(), 4);
}

#[test]
fn a_sum_that_rows_are_taken_out_of_again_has_the_number_of_its_values() {
    let subtract = |change: &dyn Fn(&mut Analysis)| {
        let mut analysis = analysis();
        change(&mut analysis);
        let definition = validate(&analysis, None).unwrap();
        let of = |partial: &Partial| partial.subtract.as_ref().map(|subtract| subtract.values.clone());
        (definition.subtracts(), definition.partials.iter().map(of).collect::<Vec<_>>())
    };
    assert_eq!(subtract(&|_| ()), (true, vec![Some(Some("revenue_values".into())), Some(None)]));
    // Where there is a row there is a value.
    let never_null = |analysis: &mut Analysis| {
        analysis.aggregates.iter_mut().for_each(|call| call.arguments[0].never_null = true);
    };
    assert_eq!(subtract(&never_null), (true, vec![Some(None), Some(None)]));
    let cases: [&dyn Fn(&mut Analysis); 4] = [
        // The digits behind the point of a sum are those of the value that has most.
        &|analysis| analysis.aggregates[0].arguments[0].has_fixed_scale = false,
        // A value that fails must not be asked for again when its row is gone.
        &|analysis| analysis.aggregates[0].arguments[0].expression.never_fails = false,
        &|analysis| analysis.condition = Some(Expression { never_fails: false, ..expression("1 / events.amount > 0") }),
        &|analysis| analysis.aggregates[1].function.name = "max".into(),
    ];
    for case in cases {
        let (subtracts, columns) = subtract(case);
        assert!(!subtracts && columns.iter().all(Option::is_none), "{columns:?}");
    }
}

#[test]
fn column_names_never_meet() {
    let mut analysis = analysis();
    analysis.keys[0].name = Some("argument_1".into());
    analysis.keys.push(key(Some("_rows"), "events.other"));
    analysis.keys.push(key(None, "events.third"));
    let definition = validate(&analysis, None).unwrap();
    assert_eq!(definition.keys.iter().map(|k| k.name.as_str()).collect::<Vec<_>>(), ["argument_1", "_rows_2", "key_3"]);
    assert_eq!(definition.arguments[0].name, "argument_1_2");
}

#[test]
fn a_value_of_an_end_is_kept_under_its_own_name() {
    let mut analysis = analysis();
    let mut last = call("last", "events.amount", "numeric");
    last.function.schema = "tally".into();
    last.arguments.push(Argument { expression: expression("events.event_time"), ..last.arguments[0].clone() });
    analysis.aggregates = vec![last.clone(), AggregateCall { filter: Some(expression("events.paid")), ..last }];
    let definition = validate(&analysis, None).unwrap();
    let names: Vec<_> = definition.partials.iter().map(|p| (p.name.as_str(), p.beside.as_deref())).collect();
    assert_eq!(
        names,
        [("revenue_at", None), ("revenue", Some("revenue_at")), ("mean_at", None), ("mean", Some("mean_at"))]
    );
    assert_eq!(definition.finishes, ["\"revenue\"", "\"mean\""]);
    // Two of them do not become one without their times.
    assert_eq!(definition.targets[1].value, Value::Finished);

    analysis.aggregates[0].arguments[0].has_order = false;
    let error = validate(&analysis, None).unwrap_err();
    assert_eq!(
        (error.sqlstate(), error.to_string().as_str()),
        ("42883", "type numeric in last(events.amount) has no order")
    );
    assert!(error.hint().unwrap().contains("Cast"));
}

#[test]
fn a_column_name_that_looks_like_a_placeholder_is_a_name() {
    let mut analysis = analysis();
    analysis.targets[1].name = "{1}".into();
    let definition = validate(&analysis, None).unwrap();
    assert_eq!(definition.finishes[1], "\"{1}\"::numeric OPERATOR(pg_catalog./) NULLIF(\"{1}_values\", 0)::numeric");
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
        validate(&analysis, None)
    };
    assert!(around(false).is_ok());
    assert_eq!(around(true).unwrap_err().sqlstate(), "42P17");

    let mut named_zone = analysis();
    named_zone.keys[0].expression.unstable = unstable("date_trunc(text,timestamp with time zone,text)", false);
    assert!(validate(&named_zone, None).is_ok());
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
        Refusal::NoCombine,
        Refusal::InternalState,
        Refusal::OrderOfRows,
        Refusal::FinishTakesArguments,
        Refusal::FinishChangesState,
        Refusal::CountDistinct,
        Refusal::Distinct,
        Refusal::Ordered,
        Refusal::WithinGroup,
        Refusal::Variadic,
        Refusal::Type { type_name: "money".into() },
        Refusal::NondeterministicCollation,
        Refusal::VaryingPrecision,
        Refusal::GatheredBy { column: "r.n".into(), function: "pg_catalog.sum".into() },
        Refusal::NotGathered { column: "mean".into() },
        Refusal::CountsGroups,
    ];
    let reasons = [
        SourceRefusal::Only,
        SourceRefusal::Partition,
        SourceRefusal::Inherited,
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

/// `SELECT bucket, customer_id, count(*) AS n, count(*) FILTER (WHERE paid) AS paid, avg(amount) AS mean, sum(quantity) AS total
/// FROM events GROUP BY 1, 2`, and the query above calls `customer_id` `customer`.
fn below() -> Definition {
    let mut analysis = analysis();
    analysis.keys.insert(0, key(Some("bucket"), "date_bin(events.event_time)"));
    analysis.keys[0].never_null = true;
    analysis.keys[0].bucket = Some(Bucket { time: expression("events.event_time"), width: "00:05:00".into() });
    let count = AggregateCall { arguments: vec![], ..call("count", "*", "") };
    analysis.aggregates = vec![
        count.clone(),
        AggregateCall { filter: Some(expression("events.paid")), ..count },
        call("avg", "events.amount", "numeric"),
        call("sum", "events.quantity", "integer"),
    ];
    analysis.targets = vec![
        Target { sql: "date_bin(events.event_time)".into(), ..target("bucket", &[], false) },
        Target { sql: "events.customer_id".into(), ..target("customer_id", &[], false) },
        target("n", &[0], true),
        target("paid", &[1], true),
        target("mean", &[2], true),
        target("total", &[3], true),
    ];
    let mut definition = validate(&analysis, None).unwrap();
    for target in &mut definition.targets {
        target.sql = format!("merged.{}", target.name);
    }
    definition
}

/// `SELECT bucket, <call> AS x FROM b GROUP BY 1`
fn above(call: AggregateCall) -> Analysis {
    Analysis {
        source: Some(Source {
            name: QualifiedName::new("public", "b"),
            alias: "b".into(),
            kind: SourceKind::Rollup,
            only: false,
            partition_key: None,
        }),
        keys: vec![super::super::analysis::Key { never_null: true, ..key(Some("bucket"), "b.bucket") }],
        targets: vec![target("bucket", &[], false), target("x", &[0], true)],
        aggregates: vec![call],
        ..Analysis::default()
    }
}

fn validate_above(call: AggregateCall) -> Result<Definition, Error> {
    let below = below();
    let names = ["bucket", "customer", "n", "paid", "mean", "total"].map(String::from).to_vec();
    validate(&above(call), Some(&Below::new(&below, "b", names)))
}

#[test]
fn a_sum_of_counts_is_a_count_of_the_rows() {
    let definition = validate_above(call("sum", "b.n", "bigint")).unwrap();
    let [partial] = definition.partials.as_slice() else { panic!("{definition:?}") };
    assert_eq!(partial.sql, "pg_catalog.count(*)");
    assert_eq!(partial.from_below.as_deref(), Some("COALESCE(pg_catalog.sum(\"b\".\"n_2\"), 0)::bigint"));
    assert_eq!(definition.finishes, ["(\"x\")::numeric"]);
    assert_eq!(definition.targets[1].value, Value::Partial { name: "x".into(), present: None });
}

#[test]
fn a_sum_of_counts_with_a_filter_knows_where_there_is_nothing_to_sum() {
    let sum = AggregateCall { filter: Some(expression("b.customer")), ..call("sum", "b.paid", "bigint") };
    let definition = validate_above(sum).unwrap();
    let filters: Vec<&str> = definition.filters.iter().map(|filter| filter.sql.as_str()).collect();
    assert_eq!(filters, ["\"b\".\"filter_1\" AND (b.customer)", "(b.customer)"]);
    assert_eq!(definition.finishes, ["(CASE WHEN \"x_present\" OPERATOR(pg_catalog.>) 0 THEN \"x\" END)::numeric"]);
    assert_eq!(
        definition.partials[1].from_below.as_deref(),
        Some("COALESCE(pg_catalog.sum(\"b\".\"_rows\") FILTER (WHERE b.customer), 0)::bigint")
    );
}

#[test]
fn a_bucket_of_a_bucket_is_as_wide_as_both() {
    let below = below();
    let names = below.targets.iter().map(|target| target.name.clone()).collect();
    let mut analysis = above(call("sum", "b.total", "bigint"));
    analysis.keys[0].expression = expression("date_trunc(b.bucket)");
    analysis.keys[0].bucket = Some(Bucket { time: expression("b.bucket"), width: "2 days".into() });
    let definition = validate(&analysis, Some(&Below::new(&below, "b", names))).unwrap();
    let range = definition.keys[0].bucket.as_ref().unwrap();
    assert_eq!(range.widths, ["2 days", "00:05:00"]);
    let time = definition.arguments.iter().find(|argument| argument.name == range.column).unwrap();
    // The column of the rows below that holds events.event_time.
    let of_time = below.arguments.iter().find(|argument| argument.sql == "events.event_time").unwrap();
    assert_eq!(time.sql, format!("\"b\".\"{}\"", of_time.name));
    let groups = definition.keys[0].groups.as_ref().unwrap();
    assert_eq!((groups.sql.as_str(), groups.widths.as_slice()), ("b.bucket", ["2 days".to_string()].as_slice()));
}

#[test]
fn what_does_not_gather_a_column_is_refused() {
    let refusal = |call| match validate_above(call) {
        Err(Error::Aggregate { refusal, .. }) => refusal,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        refusal(call("avg", "b.n", "bigint")),
        Refusal::GatheredBy { column: "b.n".into(), function: "pg_catalog.sum".into() }
    );
    assert_eq!(refusal(call("sum", "b.mean", "numeric")), Refusal::NotGathered { column: "mean".into() });
    assert_eq!(refusal(call("sum", "b.customer", "bigint")), Refusal::CountsGroups);
    assert!(validate_above(call("min", "b.customer", "bigint")).is_ok());
    let filtered = AggregateCall { filter: Some(expression("b.n")), ..call("sum", "b.n", "bigint") };
    assert_eq!(validate_above(filtered).unwrap_err(), Error::AggregatedColumn { column: "n".into(), place: "FILTER" });
}

/// A user's function in the text could be renamed; the rows are read through a view, which follows.
#[test]
fn only_lasting_text_gathers_groups() {
    assert!(validate_above(call("sum", "b.n", "bigint")).unwrap().level.unwrap().is_lasting);
    let mut own = call("sum", "b.n", "bigint");
    own.filter = Some(Expression { is_built_in: false, ..expression("b.customer") });
    assert!(!validate_above(own).unwrap().level.unwrap().is_lasting);
}
