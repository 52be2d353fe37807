//! What PostgreSQL's catalog says about aggregates.

use crate::error::{Error, Result, no_row_is_none, spi};
use crate::pg::{self, Oid};
use pgrx::Spi;
use pgrx::spi::SpiHeapTupleData;
use tally_core::ident::QualifiedName;
use tally_core::rollup::analysis::{Support, SupportFunction, Volatility};
use tally_core::rollup::definition::OwnAggregate;

/// Schema, name, signature and volatility of a function that an aggregate is made of, as an array; NULL if it has none.
const FUNCTION: &str = "(SELECT ARRAY[n.nspname::text, f.proname::text, f.oid::pg_catalog.regprocedure::text, f.provolatile::text] \
    FROM pg_catalog.pg_proc AS f JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) f.pronamespace \
    WHERE f.oid OPERATOR(pg_catalog.=) a.";

/// The type of arguments that may be anything.
const ANY: &str = "'pg_catalog.\"any\"'::pg_catalog.regtype";

/// How an aggregate is computed.
pub(crate) fn support(aggregate: Oid) -> Result<Support> {
    let query = format!(
        "SELECT p.proname::text, p.oid::pg_catalog.regprocedure::text, \
                (SELECT pg_catalog.string_agg(pg_catalog.concat(CASE WHEN p.provariadic OPERATOR(pg_catalog.=) {ANY} \
                          AND t.position OPERATOR(pg_catalog.=) p.pronargs THEN 'VARIADIC ' END, pg_catalog.format_type(t.type, NULL)), \
                        ', ' ORDER BY t.position) \
                   FROM pg_catalog.unnest(p.proargtypes) WITH ORDINALITY AS t (type, position)), \
                pg_catalog.format_type(a.aggtranstype, NULL), a.agginitval, p.proparallel::text, a.aggtransspace, \
                a.aggtranstype OPERATOR(pg_catalog.=) 'pg_catalog.internal'::pg_catalog.regtype, a.aggfinalextra, \
                a.aggfinalmodify OPERATOR(pg_catalog.<>) 'r', \
                p.provariadic OPERATOR(pg_catalog.=) {ANY}, \
                {FUNCTION}aggtransfn), {FUNCTION}aggcombinefn), {FUNCTION}aggfinalfn), {FUNCTION}aggserialfn), {FUNCTION}aggdeserialfn) \
           FROM pg_catalog.pg_aggregate AS a JOIN pg_catalog.pg_proc AS p ON p.oid OPERATOR(pg_catalog.=) a.aggfnoid \
          WHERE p.oid OPERATOR(pg_catalog.=) $1"
    );
    // Types that are not PostgreSQL's own are written with their schema.
    let _settings = pg::pin_settings();
    Spi::connect(|client| {
        let mut rows = client.select(&query, Some(1), &[aggregate.into()])?;
        rows.next().map(|row| read(&row)).transpose()
    })
    .map_err(spi)?
    .flatten()
    .ok_or_else(|| Error::new("42883", format!("aggregate with OID {} does not exist", aggregate.to_u32())))
}

fn read(row: &SpiHeapTupleData) -> pgrx::spi::Result<Option<Support>> {
    let text = |column: usize| row.get::<String>(column).map(Option::unwrap_or_default);
    let is_so = |column: usize| row.get::<bool>(column).map(|so| so.unwrap_or(true));
    let function = |column: usize| row.get::<Vec<String>>(column).map(|parts| parts.and_then(support_function));
    let Some(transition) = function(12)? else { return Ok(None) };
    Ok(Some(Support {
        name: text(1)?,
        signature: text(2)?,
        arguments: text(3)?,
        is_variadic_any: is_so(11)?,
        state_type: text(4)?,
        initial: row.get(5)?,
        parallel: match text(6)?.as_str() {
            "s" => "SAFE",
            "r" => "RESTRICTED",
            _ => "UNSAFE",
        }
        .into(),
        state_size: row.get(7)?.unwrap_or(0),
        has_internal_state: is_so(8)?,
        finish_takes_arguments: is_so(9)?,
        finish_changes_state: is_so(10)?,
        transition,
        combine: function(13)?,
        finish: function(14)?,
        exchange: function(15)?.zip(function(16)?).map(<[SupportFunction; 2]>::from),
    }))
}

fn support_function(parts: Vec<String>) -> Option<SupportFunction> {
    let [schema, name, signature, volatility] = parts.try_into().ok()?;
    let volatility = match volatility.as_str() {
        "i" => Volatility::Immutable,
        "s" => Volatility::Stable,
        _ => Volatility::Volatile,
    };
    Some(SupportFunction { name: QualifiedName { schema, name }, signature, volatility })
}

/// The aggregates that a view uses, by their present names.
pub(crate) fn used_by(view: Oid) -> Result<Vec<QualifiedName>> {
    Spi::connect(|client| {
        let rows = client.select(
            "SELECT DISTINCT n.nspname::text, p.proname::text FROM pg_catalog.pg_rewrite AS w \
               JOIN pg_catalog.pg_depend AS d ON d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_rewrite'::pg_catalog.regclass \
                    AND d.objid OPERATOR(pg_catalog.=) w.oid \
                    AND d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass \
               JOIN pg_catalog.pg_proc AS p ON p.oid OPERATOR(pg_catalog.=) d.refobjid AND p.prokind OPERATOR(pg_catalog.=) 'a' \
               JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) p.pronamespace \
              WHERE w.ev_class OPERATOR(pg_catalog.=) $1",
            None,
            &[view.into()],
        )?;
        rows.map(|row| {
            let text = |column: usize| row.get::<String>(column).map(Option::unwrap_or_default);
            Ok(QualifiedName { schema: text(1)?, name: text(2)? })
        })
        .collect::<pgrx::spi::Result<Vec<_>>>()
    })
    .map_err(spi)
}

/// The owner of an aggregate that was made for a rollup, and its present name with argument types, if it is still there. Its name
/// is tally's like that of the stored table: a type that it takes may have been renamed.
pub(crate) fn find(aggregate: &OwnAggregate) -> Result<Option<(Oid, String)>> {
    let _settings = pg::pin_settings();
    let found = Spi::connect(|client| {
        let query = "SELECT p.proowner, p.oid::pg_catalog.regprocedure::text FROM pg_catalog.pg_proc AS p \
               JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) p.pronamespace \
              WHERE n.nspname OPERATOR(pg_catalog.=) $1::pg_catalog.name AND p.proname OPERATOR(pg_catalog.=) $2::pg_catalog.name \
                AND p.prokind OPERATOR(pg_catalog.=) 'a'";
        let values = [aggregate.schema.as_str().into(), aggregate.name.as_str().into()];
        client.select(query, Some(1), &values)?.first().get_two::<Oid, String>()
    });
    Ok(no_row_is_none(found.map(Some))?.and_then(|(owner, name)| owner.zip(name)))
}
