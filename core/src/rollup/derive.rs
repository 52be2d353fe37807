//! Which rollups of a source are sums over the groups of another one, so that a tick groups the new rows once for all of them.

use super::definition::{Definition, Partial};
use std::collections::HashMap;

/// What the columns of a rows view stand for, as numbers that are equal where the expressions are: texts may mean another column
/// or function by now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    pub columns: HashMap<String, usize>,
    /// Of WHERE, also where there is none.
    pub condition: usize,
}

/// How the groups of a rollup come from those of a finer one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Derived {
    /// Names of the finer one's columns, for each key.
    pub keys: Vec<String>,
    /// Positions of the finer one's partial columns, for each partial column.
    pub partials: Vec<usize>,
}

/// For each of these rollups the one of them that it can be derived from, if there is one; the coarsest, if there are several.
pub fn finer(rollups: &[(&Definition, &Identity)]) -> Vec<Option<(usize, Derived)>> {
    let rank = |position: usize| {
        let (definition, _) = rollups[position];
        (definition.keys.len(), definition.partials.len(), position)
    };
    let coarsest = |position: usize| {
        let finer = (0..rollups.len()).filter(|other| rank(*other) > rank(position));
        let found = finer.filter_map(|other| Some((other, derived(rollups[position], rollups[other])?)));
        found.min_by_key(|(other, _)| rank(*other))
    };
    (0..rollups.len()).map(coarsest).collect()
}

/// None unless each group of `coarse` is made of whole groups of `fine`, which have all its partial columns.
fn derived(coarse: (&Definition, &Identity), fine: (&Definition, &Identity)) -> Option<Derived> {
    if coarse.1.condition != fine.1.condition {
        return None;
    }
    let key_of = |name: &String| {
        let wanted = coarse.1.columns.get(name)?;
        let found = fine.0.keys.iter().find(|other| fine.1.columns.get(&other.name) == Some(wanted))?;
        Some(found.name.clone())
    };
    let partial_of = |partial: &Partial| {
        let wanted = inputs(coarse.1, partial)?;
        fine.0.partials.iter().position(|other| {
            (&other.call.function, &other.call.form) == (&partial.call.function, &partial.call.form)
                && inputs(fine.1, other).as_ref() == Some(&wanted)
        })
    };
    Some(Derived {
        keys: coarse.0.keys.iter().map(|key| key_of(&key.name)).collect::<Option<_>>()?,
        partials: coarse.0.partials.iter().map(partial_of).collect::<Option<_>>()?,
    })
}

/// What the arguments and the filter of a partial column stand for.
fn inputs(identity: &Identity, partial: &Partial) -> Option<(Vec<usize>, Option<usize>)> {
    let number = |name: &String| identity.columns.get(name).copied();
    let arguments = partial.call.arguments.iter().map(number).collect::<Option<_>>()?;
    let filter = match &partial.call.filter {
        Some(filter) => Some(number(filter)?),
        None => None,
    };
    Some((arguments, filter))
}

#[cfg(test)]
mod tests {
    use super::super::definition::{Call, Column, Key};
    use super::*;

    /// Sums of `sums` by `keys`.
    fn definition(keys: &[&str], sums: &[&str]) -> Definition {
        let column = |(number, sql): (usize, &&str)| Column { name: format!("argument_{number}"), sql: (*sql).into() };
        let key = |sql: &&str| Key {
            name: format!("by {sql}"),
            sql: (*sql).into(),
            never_null: true,
            is_time: false,
            type_name: "bigint".into(),
            bucket: None,
            groups: None,
        };
        let arguments: Vec<Column> = sums.iter().enumerate().map(column).collect();
        let partial = |argument: &Column| {
            let call = Call {
                function: "sum".into(),
                arguments: vec![argument.name.clone()],
                form: "{x}".into(),
                filter: None,
            };
            Partial {
                name: format!("sum of {}", argument.sql),
                sql: call.sql(),
                call,
                merge: "{a} + {b}".into(),
                beside: None,
                unite: None,
                gather: "sum({x}){filter}".into(),
                from_below: None,
                is_sketch: false,
                is_exact: false,
                subtract: None,
            }
        };
        let partials = arguments.iter().map(partial).collect();
        Definition { keys: keys.iter().map(key).collect(), arguments, partials, ..Definition::default() }
    }

    /// As if each text were an expression of its own.
    fn identity(definition: &Definition) -> Identity {
        let number = |sql: &str| sql.bytes().fold(7, |number: usize, byte| number * 31 + usize::from(byte));
        let keys = definition.keys.iter().map(|key| (key.name.clone(), number(&key.sql)));
        let arguments = definition.arguments.iter().map(|column| (column.name.clone(), number(&column.sql)));
        Identity { columns: keys.chain(arguments).collect(), condition: 0 }
    }

    fn finer_of(definitions: &[Definition]) -> Vec<Option<usize>> {
        let identities: Vec<Identity> = definitions.iter().map(identity).collect();
        let rollups: Vec<_> = definitions.iter().zip(&identities).collect();
        finer(&rollups).into_iter().map(|found| found.map(|(finer, _)| finer)).collect()
    }

    #[test]
    fn a_rollup_is_derived_from_the_coarsest_that_has_all_it_needs() {
        let finest = definition(&["bucket", "tenant", "page"], &["b", "a"]);
        let middle = definition(&["tenant", "bucket"], &["a"]);
        let coarse = definition(&["bucket"], &["a"]);
        let other = definition(&["bucket"], &["c"]);
        assert_eq!(finer_of(&[coarse, finest, other, middle]), [Some(3), None, None, Some(1)]);
    }

    #[test]
    fn equal_rollups_are_derived_from_each_other_in_one_direction() {
        let same = definition(&["bucket"], &["a"]);
        assert_eq!(finer_of(&[same.clone(), same]), [Some(1), None]);
    }

    #[test]
    fn another_condition_counts_other_rows() {
        let (fine, coarse) = (definition(&["bucket", "tenant"], &["a"]), definition(&["bucket"], &["a"]));
        let same = identity(&coarse);
        let found = derived((&coarse, &same), (&fine, &identity(&fine)));
        assert_eq!(found, Some(Derived { keys: vec!["by bucket".into()], partials: vec![0] }));
        let other = Identity { condition: 1, ..same };
        assert_eq!(derived((&coarse, &other), (&fine, &identity(&fine))), None);
    }
}
