//! From the text of a definition to the relations of a rollup.

use super::run;
use crate::build;
use crate::catalog::rollups::{self, Rollup};
use crate::catalog::{self, aggregates};
use crate::error::{Error, Result};
use crate::pg::{self, AnalysedQuery, Oid};
use crate::tags::{self, TimeColumn};
use std::ffi::CString;
use tally_core::ident::{QualifiedName, quote};
use tally_core::rollup::analysis::{Analysis, SourceKind};
use tally_core::rollup::definition::{Column, Definition, Target, Text, Value};
use tally_core::rollup::level::Below;
use tally_core::rollup::sketch_settings::SketchSettings;
use tally_core::rollup::sql::{self, Origin, Relations};
use tally_core::rollup::state;
use tally_core::rollup::validate::validate;

/// A definition that is valid, on its way to relations.
pub(super) struct Plan {
    analysed: AnalysedQuery,
    pub base: Option<Base>,
    pub below_relations: Option<Relations>,
    pub source: Oid,
    pub columns: Definition,
    time: Option<TimeColumn>,
    origin: Option<Origin>,
}

impl Plan {
    /// Reads a definition, for a rollup of this name that makes such sketches.
    pub fn of(definition: &str, public: &QualifiedName, sketches: SketchSettings) -> Result<Self> {
        let text = CString::new(definition).map_err(|_| Error::new("22021", "the definition contains a zero byte"))?;
        let mut base = None;
        let mut analysed = pg::analyze(&text, |relation| {
            base = find_base(relation).transpose();
            match &base {
                Some(Ok(base)) => base.never_null_columns(),
                _ => vec![],
            }
        });
        let base = base.transpose()?;
        let source = base.as_ref().map_or(analysed.source, |base| base.rollup.source);
        if let Some(found) = &mut analysed.analysis.source {
            if base.is_some() {
                found.kind = SourceKind::Rollup;
            } else {
                if found.kind == SourceKind::Table && tags::has_inheritance_children(source)? {
                    found.kind = SourceKind::Inherited;
                }
                let time = tags::time_column(source, None)?;
                found.partition_key = time.filter(TimeColumn::is_bound).map(|time| time.name);
            }
        }
        for (position, function) in analysed.aggregate_functions().into_iter().enumerate() {
            analysed.analysis.aggregates[position].support = Some(aggregates::support(function)?);
        }
        let below = below(base.as_ref(), &analysed.analysis);
        let columns = validate(&analysed.analysis, below.as_ref(), public, sketches)?;
        let below_relations = base.as_ref().map(|base| base.rollup.relations()).transpose()?;
        Ok(Self { analysed, base, below_relations, source, columns, time: None, origin: None })
    }

    /// The name of the table or rollup that the definition reads.
    pub fn table(&self) -> Result<QualifiedName> {
        let found = self.analysed.analysis.source.as_ref();
        let found = found.ok_or_else(|| Error::new("XX000", "the definition was accepted without a table"))?;
        Ok(found.name.clone())
    }

    /// Finds what the views are to read, and keeps the text of the definition.
    pub fn lay_out(&mut self, relations: &Relations) -> Result<()> {
        let analysis = &self.analysed.analysis;
        let alias = analysis.source.as_ref().map_or_else(String::new, |source| source.alias.clone());
        let bucket = if self.base.is_none() { bucket_column(analysis) } else { None };
        self.time = tags::time_column(self.source, bucket.as_deref())?;
        let below = below(self.base.as_ref(), analysis);
        let (origin, time_type) = match (&below, &self.below_relations) {
            (Some(below), Some(relations)) => (Origin::below(below, relations), below.time_type().map(String::from)),
            _ => {
                let time = self.time.as_ref().map(|time| time.name.as_str());
                let time_type = self.time.as_ref().map(|time| time.type_name.clone());
                (Origin::source(relations, &alias, time), time_type)
            }
        };
        let is_partitioned = match &self.base {
            Some(base) => base.rollup.definition.is_partitioned,
            None => self.time.as_ref().is_some_and(TimeColumn::is_bound),
        };
        let targets = analysis.targets.iter();
        self.columns.text = Text {
            alias,
            targets: targets.map(|target| Column { name: target.name.clone(), sql: target.sql.clone() }).collect(),
            condition: analysis.condition.as_ref().map(|condition| condition.sql.clone()),
            keys: self.columns.keys.iter().map(|key| key.sql.clone()).collect(),
        };
        self.columns.time_type = time_type;
        self.columns.is_partitioned = is_partitioned;
        self.origin = Some(origin);
        Ok(())
    }

    fn origin(&self) -> Result<(&Origin, Option<&str>)> {
        let origin = self.origin.as_ref().ok_or_else(|| Error::new("XX000", "a rollup has no origin"))?;
        Ok((origin, self.columns.text.condition.as_deref()))
    }

    /// Makes the rows view, the aggregates and the stored table, empty, and what the change log lacks.
    pub fn create_inputs(&mut self, relations: &Relations, log: Oid) -> Result<()> {
        let (origin, condition) = self.origin()?;
        run(&sql::create_rows_view(&self.columns, relations, origin, condition))?;
        if self.base.is_none() {
            let mut columns = self.analysed.analysis.columns();
            columns.extend(self.time.iter().map(|time| time.name.clone()));
            let read = rollups::column_declarations(self.source, &columns)?;
            tags::widen_log(log, &relations.source, &read)?;
        }
        for aggregate in &self.columns.aggregates {
            let statements = state::create(aggregate);
            let make = || statements.iter().try_for_each(|statement| run(statement));
            if aggregate.needs_superuser {
                let creator = catalog::look_up::<String>("SELECT pg_catalog.quote_ident(CURRENT_USER)", &[])?;
                pg::as_extension_owner(|| -> Result<()> {
                    make()?;
                    run(&format!("ALTER AGGREGATE {aggregate} OWNER TO {}", creator.unwrap_or_default()))
                })?;
            } else {
                make()?;
            }
        }
        run(&sql::create_stored_table(&self.columns, relations))?;
        run(&sql::constrain_stored_table(&self.columns, relations))?;
        let stored = catalog::oid_of(&relations.stored)?;
        let keys: Vec<i16> = (1..).take(self.columns.keys.len()).collect();
        let targets = self.analysed.finished_targets(stored, &relations.stored, &keys, &self.columns.finishes);
        for (target, (_, sql)) in self.columns.targets.iter_mut().zip(targets) {
            target.sql = sql;
        }
        Ok(())
    }

    pub fn create_retained(&self, relations: &Relations) -> Result<()> {
        sql::create_retained_table(&self.columns, relations).iter().try_for_each(|statement| run(statement))
    }

    /// Gives the retained groups of an older definition the columns that they lack for this one.
    pub fn widen_retained(&self, old: &Definition, relations: &Relations) -> Result<()> {
        let stored = catalog::oid_of(&relations.stored)?;
        let added = rollups::column_declarations(stored, &partials_besides(&self.columns, old))?;
        alter_retained(relations, added.iter().map(|(_, declaration)| format!("ADD COLUMN {declaration}")).collect())
    }

    pub fn create_changes(&self, relations: &Relations) -> Result<()> {
        let (origin, condition) = self.origin()?;
        run(&sql::create_changes_view(&self.columns, relations, origin, condition))
    }

    pub fn create_indexes(&self, relations: &Relations) -> Result<()> {
        sql::create_stored_indexes(&self.columns, relations).iter().try_for_each(|index| run(index))
    }

    /// The slices in which the rollup is to be built, if it is.
    pub fn slices(&self) -> Result<Option<build::Slices>> {
        match (&self.base, &self.time) {
            // The stored groups below are few, unless they are not all there.
            (Some(base), _) => build::slices_of(&base.rollup),
            (None, Some(time)) if time.is_never_null => build::slices_of_table(self.source, &time.name),
            _ => Ok(None),
        }
    }

    /// The definition as it is kept.
    pub fn query(&self, relations: &Relations) -> String {
        let from = self.table().unwrap_or_else(|_| relations.source.clone());
        sql::definition_query(&from, &self.columns.text)
    }

    /// The rollup, once its relations are there.
    pub fn into_rollup(self, relations: &Relations, log: Oid) -> Result<Rollup> {
        Ok(Rollup {
            rollup: catalog::oid_of(&relations.public)?,
            source: self.source,
            rows: catalog::oid_of(&relations.rows)?,
            changes: catalog::oid_of(&relations.changes)?,
            stored: catalog::oid_of(&relations.stored)?,
            retained: catalog::oid_of(&relations.retained)?,
            log,
            below: self.base.as_ref().map(|base| base.rollup.rollup),
            level: self.base.as_ref().map_or(0, |base| base.rollup.level + 1),
            unbuilt_before: None,
            definition: self.columns,
        })
    }
}

/// Takes the columns from the retained groups of an older definition that this one does not have.
pub(super) fn narrow_retained(old: &Definition, rollup: &Rollup, relations: &Relations) -> Result<()> {
    let gone = partials_besides(old, &rollup.definition);
    alter_retained(relations, gone.iter().map(|name| format!("DROP COLUMN {}", quote(name))).collect())
}

/// Names of partial columns that the other definition does not have.
fn partials_besides(definition: &Definition, other: &Definition) -> Vec<String> {
    let is_there = |name: &str| other.partials.iter().any(|known| known.name == name);
    definition.partials.iter().map(|partial| partial.name.clone()).filter(|name| !is_there(name)).collect()
}

fn alter_retained(relations: &Relations, actions: Vec<String>) -> Result<()> {
    if actions.is_empty() {
        return Ok(());
    }
    run(&format!("ALTER TABLE {} {}", relations.retained, actions.join(", ")))
}

fn below<'a>(base: Option<&'a Base>, analysis: &Analysis) -> Option<Below<'a>> {
    let (base, found) = (base?, analysis.source.as_ref()?);
    Some(Below::new(&base.rollup.definition, &found.alias, base.columns.clone()))
}

/// The column that the first bucket of time is over.
fn bucket_column(analysis: &Analysis) -> Option<String> {
    let times = analysis.keys.iter().filter(|key| key.never_null).filter_map(|key| key.bucket.as_ref());
    times.filter_map(|bucket| bucket.time.column()).next().map(String::from)
}

/// The rollup that a new one is defined on.
pub(super) struct Base {
    pub rollup: Rollup,
    /// The present names of its visible columns.
    columns: Vec<String>,
}

impl Base {
    fn never_null_columns(&self) -> Vec<i16> {
        let is_never_null = |target: &Target| matches!(target.value, Value::Keys { never_null: true, .. });
        let numbered = (1..).zip(&self.rollup.definition.targets);
        numbered.filter(|(_, target)| is_never_null(target)).map(|(number, _)| number).collect()
    }
}

fn find_base(relation: Oid) -> Result<Option<Base>> {
    if !rollups::is_rollup(relation) {
        return Ok(None);
    }
    let rollup = rollups::find(rollups::source_of(relation)?, relation)?;
    rollup.map(|rollup| Ok(Base { columns: rollups::visible_columns(relation)?, rollup })).transpose()
}
