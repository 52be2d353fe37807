//! Which rollups of a source are sums over the groups of another one, so that a tick groups the new rows once for all of them.

use super::definition::{Column, Definition, Partial};

/// For each of these rollups the one of them that it can be derived from, if there is one; the coarsest, if there are several.
pub fn finer(definitions: &[&Definition]) -> Vec<Option<usize>> {
    let rank = |position: usize| {
        let definition = definitions[position];
        (definition.keys.len(), definition.partials.len(), position)
    };
    let all = 0..definitions.len();
    let finest_of = |position: usize| {
        let finer = all.clone().filter(|other| rank(*other) > rank(position));
        finer.filter(|other| is_sum_over(definitions[position], definitions[*other])).min_by_key(|other| rank(*other))
    };
    all.clone().map(finest_of).collect()
}

/// Is each group of `coarse` made of whole groups of `fine`, which have all its partial columns?
fn is_sum_over(coarse: &Definition, fine: &Definition) -> bool {
    coarse.text.condition == fine.text.condition
        && coarse.keys.iter().all(|key| fine.keys.iter().any(|other| other.sql == key.sql))
        && coarse.partials.iter().all(|partial| same_partial(coarse, partial, fine).is_some())
}

/// The partial column of `fine` that is the same aggregate of the same values.
pub(super) fn same_partial<'a>(coarse: &Definition, partial: &Partial, fine: &'a Definition) -> Option<&'a Partial> {
    let wanted = inputs(coarse, partial);
    fine.partials.iter().find(|other| {
        (&other.call.function, &other.call.form) == (&partial.call.function, &partial.call.form)
            && inputs(fine, other) == wanted
    })
}

/// What the columns of a call stand for.
fn inputs<'a>(definition: &'a Definition, partial: &Partial) -> (Vec<Option<&'a str>>, Option<&'a str>) {
    let find = |list: &'a [Column], name: &str| {
        list.iter().find(|column| column.name == name).map(|column| column.sql.as_str())
    };
    let arguments = partial.call.arguments.iter().map(|name| find(&definition.arguments, name)).collect();
    (arguments, partial.call.filter.as_ref().and_then(|name| find(&definition.filters, name)))
}

#[cfg(test)]
mod tests {
    use super::super::definition::{Call, Key, Text};
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
                subtract: None,
            }
        };
        let partials = arguments.iter().map(partial).collect();
        Definition { keys: keys.iter().map(key).collect(), arguments, partials, ..Definition::default() }
    }

    fn finer_of(definitions: &[Definition]) -> Vec<Option<usize>> {
        finer(&definitions.iter().collect::<Vec<_>>())
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
        let fine = definition(&["bucket", "tenant"], &["a"]);
        let text = Text { condition: Some("tenant > 1".into()), ..Text::default() };
        let coarse = Definition { text, ..definition(&["bucket"], &["a"]) };
        assert_eq!(finer_of(&[fine, coarse]), [None, None]);
    }
}
