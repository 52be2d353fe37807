//! PostgreSQL's own parser looks at the definition of a rollup; its trees become plain values for core, and back.

mod substitute;
mod visit;

use super::canonical::Canonical;
use pgrx::pg_sys::{self, Node, NodeTag, Oid};
use pgrx::{PgList, is_a};
use std::ffi::{CStr, CString, c_char};
use substitute::{Substitution, substitute};
use tally_core::ident::QualifiedName;
use tally_core::rollup::analysis::{
    AggregateCall, Analysis, Argument, Bucket, Expression, Key, Source, SourceKind, Target, UnstableFunction,
    Unsupported,
};
use visit::{TargetVisitor, columns_of, is_built_in, use_system_column, visit_functions, visit_target};

/// The analysed definition, with the trees that [`AnalysedQuery::finished_targets`] needs. The trees live in the memory
/// context of the caller, so this value must not outlive the SQL function that made it.
pub(crate) struct AnalysedQuery {
    pub analysis: Analysis,
    pub source: Oid,
    /// Grouping expressions, in the order of `analysis.keys`.
    keys: Vec<*mut Node>,
    /// Visible select-list entries, in the order of `analysis.targets`.
    targets: Vec<*mut pg_sys::TargetEntry>,
    /// Aggregate calls, in the order of `analysis.aggregates`.
    aggregates: Vec<*mut Node>,
}

/// Analyses a definition with the search path of the caller and describes it with an empty one, so that every name in the
/// texts is qualified. Errors of the parser reach the user as they are. `never_null` gives the columns, by number, of a view that
/// are never NULL: of a table PostgreSQL knows itself.
pub(crate) fn analyze(definition: &CStr, never_null: impl FnOnce(Oid) -> Vec<i16>) -> AnalysedQuery {
    // SAFETY: the parser gets a NUL-terminated text and returns trees in the current memory context, which outlives this
    // function call; every pointer followed below comes from those trees.
    unsafe {
        match parse(definition) {
            Ok(query) => {
                let _settings = super::pin_settings();
                describe(query, never_null)
            }
            Err(part) => AnalysedQuery {
                analysis: Analysis { unsupported: vec![part], ..Analysis::default() },
                source: Oid::INVALID,
                keys: vec![],
                targets: vec![],
                aggregates: vec![],
            },
        }
    }
}

unsafe fn parse(definition: &CStr) -> Result<*mut pg_sys::Query, Unsupported> {
    // SAFETY: see `analyze`.
    unsafe {
        let statements = PgList::<pg_sys::RawStmt>::from_pg(pg_sys::pg_parse_query(definition.as_ptr()));
        let statement = match statements.len() {
            0 => return Err(Unsupported::NotSelect),
            1 => statements.get_ptr(0).ok_or(Unsupported::NotSelect)?,
            _ => return Err(Unsupported::SeveralStatements),
        };
        if !is_a((*statement).stmt, NodeTag::T_SelectStmt) {
            return Err(Unsupported::NotSelect);
        }
        let query = pg_sys::parse_analyze_fixedparams(
            statement,
            definition.as_ptr(),
            std::ptr::null(),
            0,
            std::ptr::null_mut(),
        );
        // SELECT .. INTO is a SelectStmt too, but becomes a utility statement.
        if (*query).commandType == pg_sys::CmdType::CMD_SELECT { Ok(query) } else { Err(Unsupported::NotSelect) }
    }
}

unsafe fn describe(query: *mut pg_sys::Query, never_null_of: impl FnOnce(Oid) -> Vec<i16>) -> AnalysedQuery {
    // SAFETY: see `analyze`.
    unsafe {
        let mut analysed = AnalysedQuery {
            analysis: Analysis { unsupported: unsupported_parts(query), ..Analysis::default() },
            source: Oid::INVALID,
            keys: vec![],
            targets: vec![],
            aggregates: vec![],
        };
        let Some(entry) = single_relation(query) else {
            if analysed.analysis.unsupported.is_empty() {
                analysed.analysis.unsupported.push(Unsupported::NoTable);
            }
            return analysed;
        };
        if is_row_secured((*entry).relid) {
            analysed.analysis.unsupported.push(Unsupported::RowSecurity);
        }
        analysed.source = (*entry).relid;
        let alias = (*(*entry).eref).aliasname;
        analysed.analysis.source = Some(source(entry, alias));
        if !analysed.analysis.unsupported.is_empty() {
            return analysed;
        }
        let mut not_null = not_null_columns((*entry).relid);
        not_null.extend(never_null_of((*entry).relid));
        let context = pg_sys::deparse_context_for(alias, (*entry).relid);
        let context = Deparser { context, relation: (*entry).relid, not_null };
        let condition = (*(*query).jointree).quals;
        if !condition.is_null() {
            analysed.analysis.condition = Some(context.expression(condition));
        }
        let all = PgList::<pg_sys::TargetEntry>::from_pg((*query).targetList);
        let groups = PgList::<pg_sys::SortGroupClause>::from_pg((*query).groupClause);
        for group in groups.iter_ptr() {
            let reference = (*group).tleSortGroupRef;
            let Some(target) = all.iter_ptr().find(|target| (**target).ressortgroupref == reference) else { continue };
            let name = all
                .iter_ptr()
                .find(|other| !(**other).resjunk && pg_sys::equal((**other).expr.cast(), (*target).expr.cast()))
                .map(|other| text((*other).resname));
            let expression: *mut Node = (*target).expr.cast();
            analysed.analysis.keys.push(key(&context, expression, name));
            analysed.keys.push(expression);
        }
        for target in all.iter_ptr().filter(|target| !(**target).resjunk) {
            analysed.add_target(&context, target, (*entry).relid);
        }
        if use_system_column(analysed.keys.iter().chain(&analysed.aggregates).copied().chain([condition])) {
            analysed.analysis.unsupported.push(Unsupported::SystemColumn);
        }
        analysed
    }
}

/// Is the table under row-level security?
unsafe fn is_row_secured(relation: Oid) -> bool {
    // SAFETY: the parser has opened and locked this relation, so it exists.
    unsafe {
        let relation = pg_sys::RelationIdGetRelation(relation);
        let secured = (*(*relation).rd_rel).relrowsecurity;
        pg_sys::RelationClose(relation);
        secured
    }
}

unsafe fn unsupported_parts(query: *mut pg_sys::Query) -> Vec<Unsupported> {
    // SAFETY: see `analyze`.
    let query = unsafe { &*query };
    let flags = [
        (!query.setOperations.is_null(), Unsupported::SetOperation),
        (!query.cteList.is_null(), Unsupported::CommonTableExpression),
        (query.hasWindowFuncs, Unsupported::WindowFunction),
        (query.hasTargetSRFs, Unsupported::SetReturningFunction),
        (query.hasSubLinks, Unsupported::Subquery),
        (!query.distinctClause.is_null(), Unsupported::Distinct),
        (!query.havingQual.is_null(), Unsupported::Having),
        (!query.sortClause.is_null(), Unsupported::OrderBy),
        (!query.limitOffset.is_null() || !query.limitCount.is_null(), Unsupported::Limit),
        (!query.groupingSets.is_null(), Unsupported::GroupingSets),
        (query.hasForUpdate, Unsupported::ForUpdate),
    ];
    let mut parts: Vec<Unsupported> = flags.iter().filter(|(found, _)| *found).map(|(_, part)| *part).collect();
    // SAFETY: lists of the analysed query.
    unsafe {
        let from = PgList::<Node>::from_pg((*query.jointree).fromlist);
        let entries = PgList::<pg_sys::RangeTblEntry>::from_pg(query.rtable);
        let joined = from.iter_ptr().any(|node| is_a(node, NodeTag::T_JoinExpr));
        if parts.is_empty() {
            if from.len() > 1 || joined {
                parts.push(Unsupported::Join);
            } else if let (Some(entry), true) = (entries.get_ptr(0), from.len() == 1) {
                match (*entry).rtekind {
                    pg_sys::RTEKind::RTE_RELATION if !(*entry).tablesample.is_null() => {
                        parts.push(Unsupported::TableSample);
                    }
                    pg_sys::RTEKind::RTE_RELATION => {}
                    pg_sys::RTEKind::RTE_SUBQUERY => parts.push(Unsupported::SubqueryInFrom),
                    pg_sys::RTEKind::RTE_FUNCTION | pg_sys::RTEKind::RTE_TABLEFUNC => {
                        parts.push(Unsupported::FunctionInFrom);
                    }
                    _ => parts.push(Unsupported::NoTable),
                }
            } else {
                parts.push(Unsupported::NoTable);
            }
        }
    }
    if parts.is_empty() && query.groupClause.is_null() {
        parts.push(Unsupported::NoGroupBy);
    }
    parts
}

unsafe fn single_relation(query: *mut pg_sys::Query) -> Option<*mut pg_sys::RangeTblEntry> {
    // SAFETY: see `analyze`.
    unsafe {
        let entry = PgList::<pg_sys::RangeTblEntry>::from_pg((*query).rtable).get_ptr(0)?;
        ((*entry).rtekind == pg_sys::RTEKind::RTE_RELATION).then_some(entry)
    }
}

unsafe fn source(entry: *mut pg_sys::RangeTblEntry, alias: *const c_char) -> Source {
    // SAFETY: see `analyze`; the relation is locked, so its cache entry stays valid until it is closed.
    unsafe {
        let relation = pg_sys::RelationIdGetRelation((*entry).relid);
        let form = &*(*relation).rd_rel;
        let kind = match (form.relpersistence as u8, form.relkind as u8) {
            (b't', _) => SourceKind::Temporary,
            (b'u', _) => SourceKind::Unlogged,
            (_, b'r' | b'p') if form.relispartition => SourceKind::Partition,
            (_, b'r') if form.relnamespace != Oid::from(pg_sys::PG_CATALOG_NAMESPACE) => SourceKind::Table,
            (_, b'p') => SourceKind::PartitionedTable,
            _ => SourceKind::Other,
        };
        let name =
            QualifiedName::new(text(pg_sys::get_namespace_name(form.relnamespace)), text(form.relname.data.as_ptr()));
        pg_sys::RelationClose(relation);
        Source { name, alias: text(alias), kind, only: !(*entry).inh, partition_key: None }
    }
}

unsafe fn key(context: &Deparser, expression: *mut Node, name: Option<String>) -> Key {
    // SAFETY: see `analyze`.
    unsafe {
        let type_oid = pg_sys::exprType(expression);
        let collation = pg_sys::exprCollation(expression);
        let cache = pg_sys::lookup_type_cache(
            type_oid,
            (pg_sys::TYPECACHE_EQ_OPR | pg_sys::TYPECACHE_LT_OPR | pg_sys::TYPECACHE_HASH_PROC) as i32,
        );
        // An equality of another schema (citext) could not be named by the plain `=` of the public view.
        let equality = (*cache).eq_opr;
        let built_in = equality != Oid::INVALID && equality.to_u32() < pg_sys::FirstGenbkiObjectId;
        Key {
            expression: context.expression(expression),
            name,
            never_null: never_null(expression, &context.not_null),
            bucket: bucket(context, expression),
            is_time: [pg_sys::TIMESTAMPTZOID, pg_sys::TIMESTAMPOID, pg_sys::DATEOID].contains(&type_oid),
            type_name: type_name(type_oid),
            deterministic: deterministic(collation),
            groupable: built_in && (*cache).lt_opr != Oid::INVALID && (*cache).hash_proc != Oid::INVALID,
        }
    }
}

/// What `date_bin(width, time, origin)` and `date_trunc(unit, time ..)` do.
unsafe fn bucket(context: &Deparser, expression: *mut Node) -> Option<Bucket> {
    // SAFETY: see `analyze`; each cast follows a check of the node's tag, and the text of a constant is made by the output
    // function of its type.
    unsafe {
        if !is_a(expression, NodeTag::T_FuncExpr) {
            return None;
        }
        let call = expression.cast::<pg_sys::FuncExpr>();
        let arguments = PgList::<Node>::from_pg((*call).args);
        let (width, time) = (arguments.get_ptr(0)?, arguments.get_ptr(1)?);
        if (*call).funcid.to_u32() >= pg_sys::FirstGenbkiObjectId || !is_a(width, NodeTag::T_Const) {
            return None;
        }
        let constant = width.cast::<pg_sys::Const>();
        if (*constant).constisnull {
            return None;
        }
        let (mut output, mut is_variable) = (Oid::INVALID, false);
        pg_sys::getTypeOutputInfo((*constant).consttype, &mut output, &mut is_variable);
        let width = text(pg_sys::OidOutputFunctionCall(output, (*constant).constvalue));
        let time = context.expression(time);
        match text(pg_sys::get_func_name((*call).funcid)).as_str() {
            "date_bin" => Some(Bucket { time, width }),
            "date_trunc" if (*call).funcresulttype != pg_sys::INTERVALOID => Bucket::of_unit(&width, time),
            _ => None,
        }
    }
}

unsafe fn deterministic(collation: Oid) -> bool {
    // SAFETY: a catalog look-up of a collation that the parser has found.
    collation == Oid::INVALID || unsafe { pg_sys::get_collation_isdeterministic(collation) }
}

unsafe fn has_order(type_oid: Oid) -> bool {
    // SAFETY: a catalog look-up of a type that the parser has found; the entry stays.
    unsafe { (*pg_sys::lookup_type_cache(type_oid, pg_sys::TYPECACHE_CMP_PROC as i32)).cmp_proc != Oid::INVALID }
}

/// Of the types that are added up exactly, only numeric without a modifier has values with any number of digits.
unsafe fn has_fixed_scale(expression: *mut Node) -> bool {
    // SAFETY: an analysed expression.
    unsafe {
        pg_sys::getBaseType(pg_sys::exprType(expression)) != pg_sys::NUMERICOID || pg_sys::exprTypmod(expression) >= 0
    }
}

/// Columns that are declared NOT NULL, by number.
unsafe fn not_null_columns(relation: Oid) -> Vec<i16> {
    // SAFETY: the parser has opened and locked this relation, so it exists.
    unsafe {
        let relation = pg_sys::RelationIdGetRelation(relation);
        let descriptor = pgrx::PgTupleDesc::from_pg_copy((*relation).rd_att);
        pg_sys::RelationClose(relation);
        descriptor.iter().filter(|column| column.attnotnull).map(|column| column.attnum).collect()
    }
}

/// Known never to be NULL: a NOT NULL column, a constant, or one of the usual bucket functions over them.
unsafe fn never_null(expression: *mut Node, not_null: &[i16]) -> bool {
    // SAFETY: see `analyze`; each cast follows a check of the node's tag.
    unsafe {
        if is_a(expression, NodeTag::T_Var) {
            not_null.contains(&(*expression.cast::<pg_sys::Var>()).varattno)
        } else if is_a(expression, NodeTag::T_Const) {
            !(*expression.cast::<pg_sys::Const>()).constisnull
        } else if is_a(expression, NodeTag::T_FuncExpr) {
            let call = expression.cast::<pg_sys::FuncExpr>();
            let name = text(pg_sys::get_func_name((*call).funcid));
            let built_in = (*call).funcid.to_u32() < pg_sys::FirstGenbkiObjectId;
            built_in
                && ["date_bin", "date_trunc", "timezone"].contains(&name.as_str())
                && PgList::<Node>::from_pg((*call).args).iter_ptr().all(|argument| never_null(argument, not_null))
        } else {
            false
        }
    }
}

impl AnalysedQuery {
    unsafe fn add_target(&mut self, context: &Deparser, target: *mut pg_sys::TargetEntry, source: Oid) {
        // SAFETY: see `analyze`.
        unsafe {
            let expression: *mut Node = (*target).expr.cast();
            let mut visitor = TargetVisitor { keys: &self.keys, found: vec![], ungrouped: None, unstable: vec![] };
            visit_target(expression, (&raw mut visitor).cast());
            let TargetVisitor { found, ungrouped, unstable, .. } = visitor;
            let aggregates = found.into_iter().map(|call| self.add_aggregate(context, call)).collect();
            self.analysis.targets.push(Target {
                name: text((*target).resname),
                sql: context.deparse(expression),
                aggregates,
                is_aggregate: is_a(expression, NodeTag::T_Aggref),
                is_built_in: is_built_in(expression),
                unstable,
                ungrouped_column: ungrouped.map(|column| text(pg_sys::get_attname(source, column, true))),
            });
            self.targets.push(target);
        }
    }

    /// The position of the call among the distinct calls.
    unsafe fn add_aggregate(&mut self, context: &Deparser, call: *mut Node) -> usize {
        // SAFETY: see `analyze`; the visitor collects Aggref nodes only.
        unsafe {
            if let Some(known) = self.aggregates.iter().position(|other| pg_sys::equal((*other).cast(), call.cast())) {
                return known;
            }
            let aggregate = &*call.cast::<pg_sys::Aggref>();
            let arguments = PgList::<pg_sys::TargetEntry>::from_pg(aggregate.args);
            let argument = |entry: *mut pg_sys::TargetEntry| {
                let expression: *mut Node = (*entry).expr.cast();
                Argument {
                    expression: context.expression(expression),
                    type_name: type_name(pg_sys::exprType(expression)),
                    deterministic: deterministic(pg_sys::exprCollation(expression)),
                    has_order: has_order(pg_sys::exprType(expression)),
                    has_lasting_hash: Canonical::of(pg_sys::exprType(expression)).is_ok_and(Canonical::is_lasting),
                    never_null: never_null(expression, &context.not_null),
                    has_fixed_scale: has_fixed_scale(expression),
                }
            };
            let namespace = pg_sys::get_func_namespace(aggregate.aggfnoid);
            self.analysis.aggregates.push(AggregateCall {
                function: QualifiedName::new(
                    text(pg_sys::get_namespace_name(namespace)),
                    text(pg_sys::get_func_name(aggregate.aggfnoid)),
                ),
                sql: context.deparse(call),
                result_type: type_name(aggregate.aggtype),
                arguments: arguments.iter_ptr().filter(|entry| !(**entry).resjunk).map(argument).collect(),
                filter: (!aggregate.aggfilter.is_null()).then(|| context.expression(aggregate.aggfilter.cast())),
                distinct: !aggregate.aggdistinct.is_null(),
                ordered: !aggregate.aggorder.is_null(),
                within_group: aggregate.aggkind as u8 != b'n',
                variadic: aggregate.aggvariadic,
                support: None,
            });
            self.aggregates.push(call);
            self.aggregates.len() - 1
        }
    }

    /// The functions that the aggregate calls name, in the order of `analysis.aggregates`.
    pub(crate) fn aggregate_functions(&self) -> Vec<Oid> {
        // SAFETY: see `analyze`; the visitor collects Aggref nodes only.
        self.aggregates.iter().map(|call| unsafe { (*call.cast::<pg_sys::Aggref>()).aggfnoid }).collect()
    }

    /// The select list as expressions over the stored table under the name `merged`: grouping expressions become its key
    /// columns, aggregates become `finishes`. `key_columns` are attribute numbers of `stored`, in the order of the keys.
    /// Returns (name, expression).
    pub(crate) fn finished_targets(
        &self,
        stored: Oid,
        stored_name: &QualifiedName,
        key_columns: &[i16],
        finishes: &[String],
    ) -> Vec<(String, String)> {
        let text_of_finishes = CString::new(format!("SELECT {} FROM {stored_name}", finishes.join(", ")));
        // SAFETY: see `analyze`; the stored table exists, and its columns are those that the finishes name.
        unsafe {
            let finished: Vec<*mut Node> = match text_of_finishes {
                Ok(text) if !finishes.is_empty() => match parse(&text) {
                    Ok(query) => PgList::<pg_sys::TargetEntry>::from_pg((*query).targetList)
                        .iter_ptr()
                        .map(|target| (*target).expr.cast())
                        .collect(),
                    Err(_) => vec![],
                },
                _ => vec![],
            };
            let mut substitution = Substitution { query: self, key_columns, finished: &finished };
            let context = pg_sys::deparse_context_for(c"merged".as_ptr(), stored);
            let targets = self.targets.iter().map(|target| {
                let replaced = substitute((**target).expr.cast(), (&raw mut substitution).cast());
                (text((**target).resname), text(pg_sys::deparse_expression(replaced, context, true, false)))
            });
            targets.collect()
        }
    }
}

/// The context in which expressions over one relation are written as text.
struct Deparser {
    context: *mut pg_sys::List,
    relation: Oid,
    /// Columns of the relation that cannot be NULL, by number.
    not_null: Vec<i16>,
}

impl Deparser {
    unsafe fn deparse(&self, expression: *mut Node) -> String {
        // SAFETY: the context was made for the relation that the expression's columns belong to.
        unsafe { text(pg_sys::deparse_expression(expression, self.context, true, false)) }
    }

    unsafe fn expression(&self, expression: *mut Node) -> Expression {
        let mut unstable: Vec<UnstableFunction> = vec![];
        // SAFETY: the callback gets the list as its context; the columns are those of the relation.
        unsafe {
            visit_functions(expression, (&raw mut unstable).cast());
            let columns = columns_of(expression).into_iter();
            let columns = columns.map(|number| text(pg_sys::get_attname(self.relation, number, true))).collect();
            Expression {
                sql: self.deparse(expression),
                unstable,
                columns,
                is_column: is_a(expression, NodeTag::T_Var),
                is_built_in: is_built_in(expression),
                never_fails: !pg_sys::contain_leaked_vars(expression),
            }
        }
    }
}

unsafe fn type_name(type_oid: Oid) -> String {
    // SAFETY: a domain counts as its base type here; both functions look into the catalog.
    unsafe { text(pg_sys::format_type_be(pg_sys::getBaseType(type_oid))) }
}

unsafe fn text(chars: *const c_char) -> String {
    if chars.is_null() {
        return String::new();
    }
    // SAFETY: NUL-terminated texts of PostgreSQL, in the database's encoding.
    unsafe { CStr::from_ptr(chars).to_string_lossy().into_owned() }
}
