//! SQL texts with places to fill.

/// Puts each value in the places `{name}`. Values are not looked at again: a column may be called `{b}`.
pub(super) fn fill(template: &str, values: &[(&str, &str)]) -> String {
    let mut filled = String::new();
    let mut rest = template;
    while let Some((before, from)) = rest.split_once('{') {
        filled.push_str(before);
        let found = values.iter().find_map(|(name, value)| Some((value, from.strip_prefix(name)?.strip_prefix('}')?)));
        rest = match found {
            Some((value, after)) => {
                filled.push_str(value);
                after
            }
            None => {
                filled.push('{');
                from
            }
        };
    }
    filled + rest
}

#[cfg(test)]
mod tests {
    use super::fill;

    #[test]
    fn a_value_is_not_filled_itself() {
        assert_eq!(fill("{a} + {b} + {a}", &[("a", "{b}"), ("b", "{a}")]), "{b} + {a} + {b}");
    }

    #[test]
    fn what_is_no_place_stays() {
        assert_eq!(fill("'{1,2}'::int[] {a {{a}} {b}", &[("a", "x")]), "'{1,2}'::int[] {a {x} {b}");
    }
}
