//! Quoting of identifiers and literals, and qualified names. A server test compares with `quote_ident()`.

use std::fmt;

/// An identifier in double quotes. It is always quoted, so that no list of key words is needed here.
///
/// ```
/// assert_eq!(tally_core::ident::quote("Wei\"rd"), "\"Wei\"\"rd\"");
/// ```
pub fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A string literal that reads the same whatever `standard_conforming_strings` says.
///
/// ```
/// assert_eq!(tally_core::ident::literal("it's"), "'it''s'");
/// assert_eq!(tally_core::ident::literal(r"a\b"), r"E'a\\b'");
/// ```
pub fn literal(text: &str) -> String {
    let doubled = text.replace('\'', "''");
    if doubled.contains('\\') { format!("E'{}'", doubled.replace('\\', "\\\\")) } else { format!("'{doubled}'") }
}

/// The name of a relation or type with its schema.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct QualifiedName {
    pub schema: String,
    pub name: String,
}

impl QualifiedName {
    pub fn new(schema: impl Into<String>, name: impl Into<String>) -> Self {
        Self { schema: schema.into(), name: name.into() }
    }
}

/// Quoted and ready for SQL text: `"public"."events"`.
impl fmt::Display for QualifiedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", quote(&self.schema), quote(&self.name))
    }
}

/// Cuts a name at a character boundary so that with `suffix` it fits PostgreSQL's 63 bytes.
///
/// ```
/// assert_eq!(tally_core::ident::fit("events", "_stored"), "events_stored");
/// assert_eq!(tally_core::ident::fit(&"ä".repeat(40), "_stored").len(), 28 * 2 + 7);
/// ```
pub fn fit(name: &str, suffix: &str) -> String {
    let mut end = name.len().min(63 - suffix.len());
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{suffix}", &name[..end])
}
