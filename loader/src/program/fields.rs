//! Which columns take which parts of a message, as a tree along the paths: each part is looked at once, where the parser meets
//! it.

use super::path::Step;

/// What is taken out of the members of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields(Vec<Member>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Member {
    name: Box<str>,
    /// The name as most messages have it: in quotes, without escapes and with the colon. `None` if JSON has to escape it.
    written: Option<Box<[u8]>>,
    /// The first 16 bytes of that, and which bits of them count: comparing them takes no call.
    head: u128,
    mask: u128,
    taken: Taken,
}

/// What becomes of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It goes into one column, and nobody looks into it.
    Whole(usize),
    Parts(Box<Parts>),
}

/// A value that several columns take, or that is looked into.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// Columns that take the value itself.
    pub columns: Vec<usize>,
    pub members: Fields,
    pub elements: Vec<(usize, Taken)>,
}

impl Fields {
    /// Adds a column that takes what is behind these steps. The first one is a member.
    pub fn add(&mut self, steps: &[Step], column: usize) {
        if let Some((Step::Member(name), rest)) = steps.split_first() {
            match self.0.iter_mut().find(|member| member.name == *name) {
                Some(member) => member.taken.add(rest, column),
                None => self.0.push(Member::new(name.clone(), Taken::new(rest, column))),
            }
        }
    }

    /// What is taken of a member. Producers write their fields in one order, so the search starts where the last one ended;
    /// `hint` is that place and moves on.
    pub fn find(&self, name: &str, hint: &mut usize) -> Option<&Taken> {
        let (at, taken) = self.find_from(name, *hint)?;
        *hint = if at + 1 == self.0.len() { 0 } else { at + 1 };
        Some(taken)
    }

    /// What is taken of a member, and which of the members it is. The search starts at one of them.
    pub fn find_from(&self, name: &str, start: usize) -> Option<(usize, &Taken)> {
        let start = start.min(self.0.len());
        let (before, after) = self.0.split_at(start);
        let mut all = (start..).zip(after).chain((0..).zip(before));
        let (at, member) = all.find(|(_, member)| *member.name == *name)?;
        Some((at, &member.taken))
    }

    /// What is taken of the member at a place, if the JSON begins with its name and colon; also what follows.
    #[inline(always)]
    pub fn strip<'m>(&self, json: &'m [u8], at: usize) -> Option<(&Taken, &'m [u8])> {
        let member = self.0.get(at)?;
        let written = member.written.as_deref()?;
        let rest = match json.first_chunk::<16>() {
            Some(head) if (u128::from_le_bytes(*head) ^ member.head) & member.mask != 0 => return None,
            Some(_) if written.len() <= 16 => json.get(written.len()..)?,
            _ => json.strip_prefix(written)?,
        };
        Some((&member.taken, rest))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no member is looked into or taken by several columns.
    pub fn are_whole(&self) -> bool {
        self.0.iter().all(|member| matches!(member.taken, Taken::Whole(_)))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Member {
    fn new(name: Box<str>, taken: Taken) -> Self {
        let is_escaped = name.bytes().any(|byte| matches!(byte, b'"' | b'\\' | 0..0x20));
        let written = format!("\"{name}\":").into_bytes();
        let (mut head, mut mask) = ([0; 16], [0; 16]);
        for ((byte, head), mask) in written.iter().zip(&mut head).zip(&mut mask) {
            (*head, *mask) = (*byte, 0xff);
        }
        let (head, mask) = (u128::from_le_bytes(head), u128::from_le_bytes(mask));
        Self { name, written: (!is_escaped).then(|| written.into()), head, mask, taken }
    }
}

impl Taken {
    fn new(steps: &[Step], column: usize) -> Self {
        if steps.is_empty() {
            return Self::Whole(column);
        }
        let mut parts = Parts::default();
        parts.add(steps, column);
        Self::Parts(Box::new(parts))
    }

    fn add(&mut self, steps: &[Step], column: usize) {
        match self {
            Self::Whole(first) => {
                let mut parts = Parts { columns: vec![*first], ..Parts::default() };
                parts.add(steps, column);
                *self = Self::Parts(Box::new(parts));
            }
            Self::Parts(parts) => parts.add(steps, column),
        }
    }

    /// Calls for each column that the value, or a part of it, goes into.
    pub fn each_column(&self, call: &mut impl FnMut(usize)) {
        match self {
            Self::Whole(column) => call(*column),
            Self::Parts(parts) => parts.each_column(call),
        }
    }
}

impl Parts {
    fn add(&mut self, steps: &[Step], column: usize) {
        match steps.split_first() {
            None => self.columns.push(column),
            Some((Step::Member(_), _)) => self.members.add(steps, column),
            Some((Step::Element(index), rest)) => match self.elements.iter_mut().find(|(other, _)| other == index) {
                Some((_, taken)) => taken.add(rest, column),
                None => self.elements.push((*index, Taken::new(rest, column))),
            },
        }
    }

    fn each_column(&self, call: &mut impl FnMut(usize)) {
        self.columns.iter().for_each(|column| call(*column));
        self.members.0.iter().for_each(|member| member.taken.each_column(call));
        self.elements.iter().for_each(|(_, taken)| taken.each_column(call));
    }

    /// One of the columns that take something inside of the value, to name it in an error.
    pub fn inner_column(&self) -> Option<usize> {
        let mut first = None;
        let members = self.members.0.iter().map(|member| &member.taken);
        let inner = members.chain(self.elements.iter().map(|(_, taken)| taken));
        inner.for_each(|taken| taken.each_column(&mut |column| first = first.or(Some(column))));
        first
    }

    /// Whether any column takes something inside of the value.
    pub fn is_looked_into(&self) -> bool {
        !self.members.is_empty() || !self.elements.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::Path;

    fn fields(paths: &[&str]) -> Fields {
        let mut fields = Fields::default();
        for (column, path) in paths.iter().enumerate() {
            fields.add(Path::parse(path).unwrap().steps(), column);
        }
        fields
    }

    #[test]
    fn members_are_found_in_any_order() {
        let fields = fields(&["a", "b", "c"]);
        let mut hint = 0;
        for (name, expected) in [("a", 0), ("b", 1), ("c", 2), ("a", 0), ("c", 2), ("b", 1)] {
            assert_eq!(fields.find(name, &mut hint), Some(&Taken::Whole(expected)));
        }
        assert_eq!(fields.find("x", &mut hint), None);
    }

    #[test]
    fn paths_with_one_beginning_share_it() {
        let fields = fields(&["a.b", "c", "a", "a.d[1]", "a", "a.d[0].e", "a.b"]);
        let Some(taken @ Taken::Parts(a)) = fields.find("a", &mut 0) else { panic!("{fields:?}") };
        assert_eq!(a.columns, [2, 4]);
        assert!(a.is_looked_into());
        let Some(Taken::Parts(b)) = a.members.find("b", &mut 0) else { panic!("{a:?}") };
        assert_eq!(b.columns, [0, 6]);
        assert!(!b.is_looked_into());
        let Some(Taken::Parts(d)) = a.members.find("d", &mut 0) else { panic!("{a:?}") };
        assert_eq!(d.elements[0], (1, Taken::Whole(3)));
        let mut columns = Vec::new();
        taken.each_column(&mut |column| columns.push(column));
        columns.sort_unstable();
        assert_eq!(columns, [0, 2, 3, 4, 5, 6]);
    }
}
