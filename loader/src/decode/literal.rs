//! The text of an array as PostgreSQL writes it: `{1,NULL,3}`, `{{a,"b c"},{"say \\"hi\\"",d}}` (PostgreSQL documentation, "Array Input
//! and Output Syntax"). Bounds other than from 1 on are not taken.

use super::array::Builder;
use super::scalar::Failure;
use super::{Reason, text};

pub(super) const NO_ARRAY: Failure = (Reason::WrongType, "expected an array such as {1,2} or [1, 2]");

/// Appends length and bytes of an array whose text goes on behind its first brace. `utc`: a time without a zone is one of UTC.
pub(super) fn array(mut builder: Builder<'_>, rest: &str, utc: bool) -> Result<(), Failure> {
    let mut literal = Literal { builder: &mut builder, rest, utc, unescaped: String::new() };
    literal.part(0)?;
    if !literal.rest.is_empty() {
        return Err(NO_ARRAY);
    }
    builder.finish()
}

struct Literal<'a, 'b, 'c> {
    builder: &'a mut Builder<'b>,
    /// What is still to be read.
    rest: &'c str,
    utc: bool,
    unescaped: String,
}

impl Literal<'_, '_, '_> {
    /// What stands behind an opening brace, up to its closing one. The builder takes no more than 6 depths.
    fn part(&mut self, depth: usize) -> Result<(), Failure> {
        self.builder.open(depth)?;
        let mut length = 0u32;
        if self.takes('}') {
            return self.builder.close(depth, length);
        }
        loop {
            if self.takes('{') {
                self.part(depth + 1)?
            } else {
                self.element(depth + 1)?
            }
            length += 1;
            if self.takes('}') {
                return self.builder.close(depth, length);
            }
            if !self.takes(',') {
                return Err(NO_ARRAY);
            }
        }
    }

    /// Passes blanks, and this character if it follows.
    fn takes(&mut self, character: char) -> bool {
        self.rest = self.rest.trim_ascii_start();
        match self.rest.strip_prefix(character) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn element(&mut self, depth: usize) -> Result<(), Failure> {
        self.builder.note_element(depth)?;
        self.unescaped.clear();
        if self.takes('"') {
            self.take_until(&['"'])?;
            self.rest = &self.rest[1..];
        } else {
            let is_escaped = self.take_until(&[',', '}'])?;
            // Blanks around an element do not count, unless they are escaped: who wants them writes quotes.
            let end = self.unescaped.trim_ascii_end().len();
            self.unescaped.truncate(end);
            if self.unescaped.is_empty() {
                return Err(NO_ARRAY);
            }
            if !is_escaped && self.unescaped.eq_ignore_ascii_case("null") {
                self.builder.push_null();
                return Ok(());
            }
        }
        let (element, utc) = (&self.unescaped, self.utc);
        self.builder.push(|out, kind| text::scalar(out, element, kind, utc))
    }

    /// Reads up to one of these characters, without it; whether anything was escaped.
    fn take_until(&mut self, ends: &[char]) -> Result<bool, Failure> {
        let is_quoted = ends == ['"'];
        let mut is_escaped = false;
        let mut characters = self.rest.char_indices();
        while let Some((at, character)) = characters.next() {
            match character {
                '\\' => {
                    self.unescaped.push(characters.next().ok_or(NO_ARRAY)?.1);
                    is_escaped = true;
                }
                end if ends.contains(&end) => {
                    self.rest = &self.rest[at..];
                    return Ok(is_escaped);
                }
                '{' | '"' if !is_quoted => return Err(NO_ARRAY),
                other => self.unescaped.push(other),
            }
        }
        Err(NO_ARRAY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::copy::{self, NULL};
    use crate::kind::Kind;

    fn parse(element: Kind, text: &str) -> Result<Vec<u8>, Reason> {
        let mut out = Vec::new();
        let rest = text.strip_prefix('{').unwrap();
        array(Builder::new(&element, 7, true, &mut out), rest, false).map(|()| out.split_off(4)).map_err(|why| why.0)
    }

    fn boxed(dimensions: &[u32], has_null: bool, elements: &[Option<&[u8]>]) -> Vec<u8> {
        let mut out = copy::array_header(7, dimensions, has_null);
        for element in elements {
            match element {
                Some(bytes) => copy::field(&mut out, bytes),
                None => out.extend_from_slice(NULL),
            }
        }
        out
    }

    const TEXT: Kind = Kind::Text { limit: None, blanks_are_cut: false };

    #[test]
    fn elements_are_read_with_their_quotes_and_escapes() {
        let words: &[Option<&[u8]>] =
            &[Some(b"a"), Some(b"b, }{"), Some(b"\"\\"), None, Some(b"NULL"), Some(b""), Some(b"c d")];
        let text = r#"{ a ,"b, }{","\"\\",null,"NULL","",c d }"#;
        assert_eq!(parse(TEXT, text).unwrap(), boxed(&[7], true, words));
        assert_eq!(parse(TEXT, r"{\null,a\,b}").unwrap(), boxed(&[2], false, &[Some(b"null"), Some(b"a,b")]));
        let numbers = [1i32, -2, 3, 4].map(i32::to_be_bytes);
        let numbers: Vec<Option<&[u8]>> = numbers.iter().map(|bytes| Some(&bytes[..])).collect();
        assert_eq!(parse(Kind::Int4, "{{1,-2}, {+3, 4 }}").unwrap(), boxed(&[2, 2], false, &numbers));
        assert_eq!(parse(Kind::Int4, "{ }").unwrap(), boxed(&[], false, &[]));
        assert_eq!(parse(Kind::Bool, "{t,no}").unwrap(), boxed(&[2], false, &[Some(&[1]), Some(&[0])]));
        assert_eq!(parse(Kind::Jsonb, r#"{"{\"a\": 1}"}"#).unwrap(), boxed(&[1], false, &[Some(b"\x01{\"a\": 1}")]));
    }

    #[test]
    fn what_is_no_array_is_refused() {
        for text in [
            "{",
            "{1",
            "{1,",
            "{1,}",
            "{,1}",
            "{1}}",
            "{1}x",
            "{\"1}",
            "{1\"2\"}",
            "{{1},2}",
            "{{1},{2,3}}",
            "{x}",
            "{1\\",
        ] {
            assert_eq!(parse(Kind::Int4, text), Err(Reason::WrongType), "{text}");
        }
        assert_eq!(parse(Kind::Int4, "{3000000000}"), Err(Reason::OutOfRange));
        assert_eq!(parse(Kind::Int4, &"{".repeat(100_000)), Err(Reason::OutOfRange));
        assert_eq!(parse(TEXT, "{a\0}"), Err(Reason::BadText));
    }
}
