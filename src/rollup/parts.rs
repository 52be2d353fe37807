//! What the relations of a rollup have besides their contents: comments, owner, names.

use crate::catalog::{self, rollups::Rollup};
use crate::error::{Error, Result, no_row_is_none, spi};
use crate::pg::Oid;
use pgrx::prelude::*;
use tally_core::ident::{self, QualifiedName, literal, quote};
use tally_core::rollup::definition::OwnAggregate;
use tally_core::rollup::sql::Relations;

/// The names of rows view, changes view, stored groups and retained groups.
pub(super) fn names(public: &QualifiedName) -> [QualifiedName; 4] {
    ["_rows", "_changes", "_stored", "_retained"]
        .map(|suffix| QualifiedName::new(public.schema.clone(), ident::fit(&public.name, suffix)))
}

/// Refuses a name that is taken, or that makes a name of a part of the rollup that is.
pub(super) fn require_free_names(public: &QualifiedName) -> Result<()> {
    let is_taken = |name: &QualifiedName| {
        let query = "SELECT pg_catalog.to_regclass($1) IS NOT NULL";
        catalog::look_up::<bool>(query, &[name.to_string().into()]).map(|taken| taken == Some(true))
    };
    let name = quote(&public.name);
    if is_taken(public)? {
        return Err(Error::new("42P07", format!("relation {name} already exists"))
            .hint("Choose another name, or drop what has it; tally.alter_rollup changes a rollup."));
    }
    for part in names(public) {
        if is_taken(&part)? {
            return Err(Error::new("42P07", format!("a rollup {name} needs the name {part}, which is taken"))
                .hint("Choose another name, or rename or drop that relation."));
        }
    }
    Ok(())
}

/// Comments for whoever meets the relations in psql or pgAdmin.
pub(super) fn describe(relations: &Relations) -> Result<()> {
    let comments = [
        (
            "VIEW",
            &relations.public,
            format!("rollup of {}, always exact; kept by the extension tally", relations.source),
        ),
        (
            "VIEW",
            &relations.rows,
            format!("rows of {} as the rollup {} counts them; part of it", relations.source, relations.public),
        ),
        (
            "VIEW",
            &relations.changes,
            format!(
                "which groups of the rollup {} the changes in {} concern; part of it",
                relations.public, relations.log
            ),
        ),
        (
            "TABLE",
            &relations.stored,
            format!(
                "groups of the rollup {} as of the last refresh; read it, but write to {} only",
                relations.public, relations.source
            ),
        ),
        (
            "TABLE",
            &relations.retained,
            format!(
                "what the rollup {} goes on counting of rows that have left {}",
                relations.public, relations.source
            ),
        ),
    ];
    for (kind, relation, comment) in comments {
        Spi::run(&format!("COMMENT ON {kind} {relation} IS {}", literal(&comment))).map_err(spi)?;
    }
    Ok(())
}

/// A tick runs as the owner of the source, so that role owns the rollup too.
pub(super) fn give_to_owner(source: Oid, relations: &Relations, aggregates: &[OwnAggregate]) -> Result<()> {
    let owner = no_row_is_none(Spi::get_one_with_args::<String>(
        "SELECT pg_catalog.quote_ident(a.rolname) FROM pg_catalog.pg_class AS c \
         JOIN pg_catalog.pg_roles AS a ON a.oid OPERATOR(pg_catalog.=) c.relowner \
         WHERE c.oid OPERATOR(pg_catalog.=) $1 AND a.rolname OPERATOR(pg_catalog.<>) CURRENT_USER",
        &[source.into()],
    ))?;
    let Some(owner) = owner else {
        return Ok(());
    };
    for (kind, relation) in [
        ("VIEW", &relations.rows),
        ("VIEW", &relations.changes),
        ("VIEW", &relations.public),
        ("TABLE", &relations.stored),
        ("TABLE", &relations.retained),
        ("TABLE", &relations.log),
    ] {
        Spi::run(&format!("ALTER {kind} {relation} OWNER TO {owner}")).map_err(spi)?;
    }
    for aggregate in aggregates {
        Spi::run(&format!("ALTER AGGREGATE {aggregate} OWNER TO {owner}")).map_err(spi)?;
    }
    Ok(())
}

/// Gives the relations of a rollup names that are in nobody's way, all but its view and, if they are to be kept, the retained
/// groups. Answers the statements that drop them once nothing uses them.
pub(super) fn move_aside(rollup: &Rollup, keeps_retained: bool) -> Result<Vec<String>> {
    let mut drops = vec![];
    let relations =
        [("VIEW", rollup.changes), ("VIEW", rollup.rows), ("TABLE", rollup.stored), ("TABLE", rollup.retained)];
    for (kind, relation) in relations.into_iter().filter(|(_, part)| !keeps_retained || *part != rollup.retained) {
        let name = catalog::name_of(relation)?;
        let aside = QualifiedName::new(name.schema.clone(), format!("tally_old_{}", relation.to_u32()));
        Spi::run(&format!("ALTER {kind} {name} RENAME TO {}", quote(&aside.name))).map_err(spi)?;
        drops.push(format!("DROP {kind} {aside}"));
    }
    for (number, own) in rollup.definition.aggregates.iter().enumerate() {
        let name = format!("tally_old_{}_{number}", rollup.stored.to_u32());
        let aside = OwnAggregate { name, ..own.clone() };
        Spi::run(&format!("ALTER AGGREGATE {own} RENAME TO {}", quote(&aside.name))).map_err(spi)?;
        drops.push(format!("DROP AGGREGATE {aside}"));
    }
    Ok(drops)
}
