//! Where in a message a value is: `city`, `address.city`, `items[0].price`, `"odd.name"[1]`.

use std::fmt;

/// One step from a value into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A member of an object.
    Member(Box<str>),
    /// An element of an array, counted from 0.
    Element(usize),
}

/// At least one step, the first one into the outermost object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path(Vec<Step>);

impl Path {
    /// A field of the outermost object, whatever characters its name has.
    pub fn field(name: &str) -> Self {
        Self(vec![Step::Member(name.into())])
    }

    /// Reads a path. Names with `.`, `[`, `]` or `"` stand in double quotes, and a quote within is doubled, as in SQL.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let mut steps = Vec::new();
        let mut rest = text;
        loop {
            let (name, behind) = match rest.strip_prefix('"') {
                Some(quoted) => quoted_name(quoted)?,
                None => {
                    let (name, behind) = rest.split_at(rest.find(['.', '[', ']', '"']).unwrap_or(rest.len()));
                    if name.is_empty() {
                        return Err("a name is missing; write \"\" in quotes for an empty one");
                    }
                    (name.to_owned(), behind)
                }
            };
            steps.push(Step::Member(name.into()));
            rest = behind;
            while let Some(index) = rest.strip_prefix('[') {
                let (index, behind) = index.split_once(']').ok_or("a ] is missing")?;
                // Rust's parser also knows "+1".
                let index = Some(index).filter(|index| index.bytes().all(|byte| byte.is_ascii_digit()));
                let index = index.and_then(|index| index.parse().ok()).ok_or("an index is a number from 0 on")?;
                steps.push(Step::Element(index));
                rest = behind;
            }
            match rest.strip_prefix('.') {
                Some(behind) => rest = behind,
                None if rest.is_empty() => return Ok(Self(steps)),
                None => return Err("a . or [ has to follow a name"),
            }
        }
    }

    pub fn steps(&self) -> &[Step] {
        &self.0
    }
}

fn quoted_name(text: &str) -> Result<(String, &str), &'static str> {
    let mut name = String::new();
    let mut rest = text;
    loop {
        let (part, behind) = rest.split_once('"').ok_or("a closing quote is missing")?;
        name.push_str(part);
        match behind.strip_prefix('"') {
            Some(behind) => {
                name.push('"');
                rest = behind;
            }
            None => return Ok((name, behind)),
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, step) in self.0.iter().enumerate() {
            match step {
                Step::Element(index) => write!(formatter, "[{index}]")?,
                Step::Member(name) => {
                    if index > 0 {
                        formatter.write_str(".")?;
                    }
                    if name.is_empty() || name.contains(['.', '[', ']', '"']) {
                        write!(formatter, "\"{}\"", name.replace('"', "\"\""))?;
                    } else {
                        formatter.write_str(name)?;
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_and_printed() {
        let member = |name: &str| Step::Member(name.into());
        for (text, steps) in [
            ("a", vec![member("a")]),
            ("a.b[0]", vec![member("a"), member("b"), Step::Element(0)]),
            ("a[1][20].b c", vec![member("a"), Step::Element(1), Step::Element(20), member("b c")]),
            ("\"a.b\".\"x\"\"[y]\"[3]", vec![member("a.b"), member("x\"[y]"), Step::Element(3)]),
            ("\"\"", vec![member("")]),
        ] {
            let path = Path::parse(text).unwrap();
            assert_eq!(path.steps(), steps, "{text}");
            assert_eq!(path.to_string(), text);
        }
        assert_eq!(Path::field("a.b").to_string(), "\"a.b\"");
    }

    #[test]
    fn broken_paths_are_refused() {
        for text in [
            "", ".", "a.", ".a", "a..b", "[0]", "a[", "a[x]", "a[-1]", "a[+1]", "a[]", "a[0]b", "a]", "\"a", "\"a\"b",
            "a\"b\"",
        ] {
            assert!(Path::parse(text).is_err(), "{text}");
        }
    }
}
