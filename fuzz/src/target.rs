//! What is done with an input, and what must hold whatever it is.

use clap::ValueEnum;
use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};
use tally_core::sketch::{self, Estimator, Kind, canon};
use tally_core::topn;

/// Who reads the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Target {
    /// Stored bytes of a distinct-count sketch.
    Hll,
    /// Stored bytes of a top-N list.
    Topn,
    /// A top-N list as JSON.
    TopnJson,
    /// Stored bytes of a value that is hashed: of a jsonb, numeric, inet, bit string, name or char(n).
    Value,
}

/// More registers than these are worked on only for one input in [`RARELY`]: they take a hundred times as long.
const FEW_REGISTERS: usize = if cfg!(miri) { 1 << 5 } else { 1 << 10 };
const RARELY: u8 = 32;

impl Target {
    /// Longer inputs find nothing that these do not.
    pub(crate) fn longest(self) -> usize {
        match self {
            Self::Hll => 1 << 17,
            Self::Topn | Self::TopnJson | Self::Value => 1 << 10,
        }
    }

    /// Would the extension take the input as a value?
    #[must_use]
    pub fn accepts(self, input: &[u8]) -> bool {
        match self {
            Self::Hll => sketch::Packed::validate(input).is_ok(),
            Self::Topn => topn::Packed::validate(input).is_ok(),
            Self::TopnJson => read_json(input).is_ok(),
            Self::Value => true,
        }
    }

    /// Does everything with an input, for the first time or united with another one, and answers what it has led to.
    ///
    /// # Panics
    /// Something does not hold that must.
    pub fn run(self, input: &[u8], other: &[u8]) -> u64 {
        match self {
            Self::Hll => hll(input, other),
            Self::Topn => topn(input, other),
            Self::TopnJson => json(input),
            Self::Value => value(input),
        }
    }
}

/// What an input has led to, as a number.
fn outcome(what: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

/// An error, but for the numbers in it: there is no end to them.
fn sort(error: impl Debug) -> String {
    format!("{error:?}").replace(|character: char| character.is_ascii_digit(), "")
}

fn hll(input: &[u8], other: &[u8]) -> u64 {
    let header = sketch::Packed::header(input);
    let (packed, validated) = match (sketch::Packed::read(input), sketch::Packed::validate(input)) {
        (Ok(packed), validated) => (packed, validated),
        (Err(error), Err(same)) => {
            assert_eq!(error, same, "what cannot be read is not valid");
            return outcome((header.is_ok(), sort(error)));
        }
        (Err(error), Ok(_)) => panic!("valid, but not readable: {error}"),
    };
    assert_eq!(header, Ok((packed.kind(), packed.params())), "the header is that of the value");
    let params = packed.params();
    let shape = (packed.kind() as u8, params.log2m(), params.width(), params.sparse());
    let byte = |at: usize| input.get(at).copied().unwrap_or_default();
    if params.registers() > FEW_REGISTERS && byte(input.len() / 2) % RARELY != 0 {
        return outcome((shape, validated.is_ok()));
    }

    let mut loaded = sketch::Owned::load(input).expect("it has been read");
    let stored = loaded.pack(sketch::Packing::BySize);
    let valid = sketch::Packed::validate(&stored).expect("what is stored is valid");
    assert_eq!(valid.params(), params, "no parameter changes");
    let mut again = sketch::Owned::load(&stored).expect("it is valid");
    assert_eq!(again.pack(sketch::Packing::BySize), stored, "what is stored stays as it is");
    for estimator in [Estimator::Ertl, Estimator::Classic] {
        let through_state = loaded.state().estimate(estimator);
        let by_itself = valid.estimate(estimator);
        // Classic is no number if all registers of a narrow sketch are full, as with postgresql-hll.
        let bits = |estimate: Option<f64>| estimate.map(f64::to_bits);
        // Miri gives logarithms and powers a random error.
        if !cfg!(miri) && !matches!(by_itself, Err(sketch::Stop::Load)) {
            let by_itself = by_itself.map(bits).map_err(error_of);
            assert_eq!(by_itself, through_state.clone().map(bits), "an estimate needs no state");
        }
        if let (Estimator::Ertl, Ok(Some(estimate))) = (estimator, through_state) {
            assert!(estimate >= 0.0, "no set has {estimate} elements");
        }
    }
    assert_eq!(valid.kind() == Kind::Undefined, packed.kind() == Kind::Undefined);

    let hash = u64::from_le_bytes([byte(3), byte(4), byte(5), byte(6), byte(7), byte(8), 0, byte(2)]);
    let added = written(valid.add(hash, sketch::Packing::BySize));
    if params.check_addable().is_ok() {
        loaded.add(hash);
        let expected = loaded.pack(sketch::Packing::BySize);
        assert!(added.is_none_or(|added| added == expected), "to add a hash needs no state");
    }

    let union = sketch::Packed::read(other).map_err(sketch::Stop::from).and_then(|other| {
        let expected = written(valid.union(&other, sketch::Packing::BySize));
        let mut state = sketch::Owned::load(&stored)?;
        state.unite(other.bytes())?;
        let bytes = state.pack(sketch::Packing::BySize);
        assert!(expected.is_none_or(|expected| expected == bytes), "a union needs no state");
        Ok(bytes)
    });
    if let Ok(union) = &union {
        let mut reverse = sketch::Owned::load(other).expect("it has been united");
        reverse.unite(&stored).expect("it can be united the other way round");
        let mut twice = sketch::Owned::load(union).expect("it has just been stored");
        twice.unite(&stored).expect("it can be united again");
        assert_eq!(&twice.pack(sketch::Packing::BySize), union, "united again, nothing changes");
        // Beyond the threshold no sketch of ours is EXPLICIT; postgresql-hll lets one be as it is, unless a new hash comes to it.
        let is_ours = |packed: &sketch::Packed<'_>| {
            packed.kind() != Kind::Explicit || packed.bytes().len() <= 3 + 8 * packed.params().threshold()
        };
        if is_ours(&valid) && sketch::Packed::read(other).is_ok_and(|other| is_ours(&other)) {
            assert_eq!(&reverse.pack(sketch::Packing::BySize), union, "a union has no order");
        }
    }
    let folded = sketch::Owned::folded(input, i64::from(params.log2m()) - i64::from(byte(2) % 4));
    let folded = folded.map(|mut folded| folded.pack(sketch::Packing::BySize)).map_err(|error| error.to_string());
    if let Ok(folded) = &folded {
        sketch::Packed::validate(folded).expect("what is folded is valid");
    }
    if params.registers() <= 256 {
        let _ = packed.print();
    }
    outcome((shape, valid.kind() as u8, validated.is_ok(), union.is_ok(), folded.is_ok()))
}

fn error_of(stop: sketch::Stop) -> sketch::Error {
    match stop {
        sketch::Stop::Error(error) => error,
        sketch::Stop::Room(_) | sketch::Stop::Load => panic!("a stored value wants {stop:?}"),
    }
}

/// What a stored value becomes by itself; none if that takes a state, or cannot be done.
fn written(draft: Result<sketch::Draft<'_>, sketch::Stop>) -> Option<Vec<u8>> {
    let draft = draft.ok()?;
    let mut out = vec![0xee; draft.size()];
    draft.write(&mut out);
    Some(out)
}

fn topn(input: &[u8], other: &[u8]) -> u64 {
    let packed = match topn::Packed::read(input) {
        Ok(packed) => packed,
        Err(error) => {
            assert!(topn::Packed::validate(input).is_err(), "what cannot be read is not valid");
            return outcome(sort(error));
        }
    };
    let header = packed.header();
    let is_valid = topn::Packed::validate(input).is_ok();
    assert_eq!(packed.entries().count(), header.entries, "there are as many entries as the header says");
    for bounds in packed.bounds(3) {
        assert!(bounds.lower <= bounds.upper, "bounds have an order");
    }
    if !is_valid {
        // A damaged page: no crash, whatever it holds.
        let mut state = topn::Owned::new(header.counters);
        let _ = state.unite(input).map(|()| state.pack(topn::Packing::Final));
        return outcome((header.entries.min(3), "doubled"));
    }

    let mut state = topn::Owned::new(header.counters);
    state.unite(input).expect("one value is within all limits");
    let stored = state.pack(topn::Packing::Final);
    let again = topn::Packed::validate(&stored).expect("what is stored is valid");
    assert_eq!((again.header().total, again.header().counters), (header.total, header.counters), "nothing is lost");
    let mut received = topn::Owned::received(&stored).expect("it is valid");
    assert_eq!(received.pack(topn::Packing::Final), stored, "what is stored stays as it is");
    let text = topn::json::write(&again, String::from_utf8_lossy);
    // The extension takes no item that is no text.
    if again.entries().all(|entry| !entry.item.contains(&0)) {
        read_json(text.as_bytes()).expect("its own JSON can be read");
    }

    let added = state.add_count(input.get(4..6).unwrap_or(b"x"), u64::from(input.len() as u32));
    if added.is_ok() {
        topn::Packed::validate(&state.pack(topn::Packing::Partial)).expect("what is stored is valid");
    }
    let union = unite(input, other);
    if let Ok(union) = &union {
        topn::Packed::validate(union).expect("a union is valid");
        assert_eq!(Ok(union), unite(other, input).as_ref(), "a union has no order");
    }
    outcome((header.entries.min(3), header.error.min(2), added.is_ok(), union.is_ok()))
}

fn unite(a: &[u8], b: &[u8]) -> Result<Vec<u8>, topn::Error> {
    topn::Packed::validate(b)?;
    let mut state = topn::Owned::new(topn::Packed::validate(a)?.header().counters);
    state.unite(a)?;
    state.unite(b)?;
    Ok(state.pack(topn::Packing::Final))
}

fn read_json(input: &[u8]) -> Result<Vec<u8>, topn::Error> {
    let mut state = topn::Owned::new(topn::Counters::new(8).expect("it is allowed"));
    topn::json::read(&String::from_utf8_lossy(input), |item, count| state.add_count(item.as_bytes(), count))?;
    Ok(state.pack(topn::Packing::Partial))
}

fn json(input: &[u8]) -> u64 {
    let read = read_json(input);
    if let Ok(bytes) = &read {
        topn::Packed::validate(bytes).expect("what is stored is valid");
    }
    outcome(read.map(|bytes| bytes.len().min(100)).map_err(sort))
}

fn value(input: &[u8]) -> u64 {
    let mut out = Vec::new();
    let jsonb = canon::jsonb(input, &mut out).is_ok();
    let length = out.len().min(100);
    canon::numeric(input, &mut out);
    canon::network(input, &mut out);
    canon::bits(input, &mut out);
    assert!(canon::name(input).len() <= input.len());
    assert!(canon::without_padding(input).len() <= input.len());
    outcome((jsonb, length))
}
