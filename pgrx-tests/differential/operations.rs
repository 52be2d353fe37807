//! Random operations on sketches. To add a kind, add a line to [`KINDS`] with its weight.
//!
//! What is not defined in the peer is not made, since its answer means nothing and the next one may end it: input of no bytes
//! or with a log2m of 31, hashes beyond its buffer, parameters of `hll_add_agg` that are NULL, `hll_hash_any` of a cstring, an
//! estimate from registers that no hash fills. Behind a value it reads up to 7 bytes, which does no harm. Nor are documented
//! differences in what is around an operation made: settings that are rolled back, and parallel plans.

use std::collections::BTreeSet;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt, SeedableRng};

use super::Side;
use super::exceptions::Exception;
use super::stored::{self, Stored};
use super::values::{self, Parameters, escapes, hex, integer, spoil};

/// How many sketches are kept to go on with, and how many of them may be large.
const KEPT: usize = 300;
const LARGE: [(usize, usize); 2] = [(16_384, 5), (2_048, 20)];
/// The parameters in use at a time: few enough for sketches to be united.
const FAMILIES: usize = 10;

/// A statement for each side that gives one text.
#[derive(Clone, Debug)]
pub struct Operation {
    pub sql: [String; 2],
    pub exceptions: Vec<Exception>,
    pub gives: Gives,
    /// Rows of the table `sketches` that it reads.
    pub slots: BTreeSet<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Gives {
    Text,
    /// The bytes of a sketch, as hex.
    Sketch,
    /// A change of this setting of the session.
    Setting(usize),
}

pub const SETTINGS: usize = 3;

impl Operation {
    fn new(gives: Gives, expression: impl Fn(Side) -> String) -> Operation {
        let sql = [Side::Peer, Side::Tally].map(|side| match gives {
            Gives::Sketch => format!("SELECT encode(hll_send({}), 'hex')", expression(side)),
            Gives::Text | Gives::Setting(_) => format!("SELECT ({})::text", expression(side)),
        });
        Operation { sql, exceptions: Vec::new(), gives, slots: BTreeSet::new() }
    }

    fn text(expression: impl Fn(Side) -> String) -> Operation {
        Operation::new(Gives::Text, expression)
    }

    fn sketch(expression: impl Fn(Side) -> String) -> Operation {
        Operation::new(Gives::Sketch, expression)
    }

    fn except(mut self, exception: Option<Exception>) -> Operation {
        self.exceptions.extend(exception);
        self
    }

    /// Of sketches whose registers count, not their bytes.
    fn reading<'a>(self, operands: impl IntoIterator<Item = &'a Operand, IntoIter: Clone>) -> Operation {
        let operands = operands.into_iter();
        let is_padded = operands.clone().any(|operand| operand.sketch.has_padding_like_a_word());
        self.showing(operands).except(is_padded.then_some(Exception::PaddingTakenForWord))
    }

    /// Of sketches whose bytes count.
    fn showing<'a>(mut self, operands: impl IntoIterator<Item = &'a Operand>) -> Operation {
        self.slots.extend(operands.into_iter().filter_map(|operand| operand.slot));
        self
    }

    /// Does it name more than what is in the extension?
    pub fn needs_schema(&self) -> bool {
        !self.slots.is_empty() || self.sql[0].contains("pg_temp.")
    }

    pub fn on(&self, side: Side) -> &str {
        &self.sql[side as usize]
    }
}

/// A sketch as part of an expression: as a literal, or as a row of a table, where its bytes lie in another way.
#[derive(Clone, Debug)]
struct Operand {
    sketch: Stored,
    slot: Option<usize>,
    is_bytea: bool,
}

impl Operand {
    fn shown(&self) -> String {
        match self.slot {
            Some(slot) => format!("(SELECT sketch FROM sketches WHERE slot = {slot})"),
            None if self.is_bytea => format!("'{}'::bytea::hll", hex(self.sketch.bytes())),
            None => literal(&self.sketch),
        }
    }

    fn read(&self, side: Side) -> String {
        if side == Side::Peer && self.sketch.has_padding_like_a_word() {
            return literal(&self.sketch.as_full());
        }
        self.shown()
    }
}

fn literal(sketch: &Stored) -> String {
    format!("'{}'::hll", hex(sketch.bytes()))
}

pub struct Generator {
    rng: StdRng,
    families: Vec<Parameters>,
    kept: Vec<Stored>,
    /// What the table `sketches` has on both sides.
    table: Vec<Stored>,
}

type Kind = fn(&mut Generator) -> Operation;

const KINDS: &[(u32, Kind)] = &[
    (30, Generator::empty),
    (170, Generator::add),
    (170, Generator::union),
    (110, Generator::add_agg),
    (70, Generator::union_agg),
    (20, Generator::running_union),
    (20, Generator::estimate_of_aggregate),
    (60, Generator::input),
    (10, Generator::broken_text),
    (20, Generator::output),
    (30, Generator::modifier),
    (40, Generator::modifier_cast),
    (60, Generator::field),
    (40, Generator::print),
    (60, Generator::cardinality),
    (30, Generator::comparison),
    (70, Generator::hash),
    (20, Generator::hash_value),
    (15, Generator::null),
    (10, Generator::setting),
];

impl Generator {
    pub fn new(seed: u64) -> Generator {
        let mut rng = StdRng::seed_from_u64(seed);
        let families = (0..FAMILIES).map(|_| Parameters::random(&mut rng)).collect();
        let kept = [b"\x11\x8b\x7f", b"\x10\x8b\x7f"].map(|bytes| Stored::new(bytes.to_vec())).to_vec();
        Generator { rng, families, kept, table: Vec::new() }
    }

    pub fn next(&mut self) -> Operation {
        if self.rng.random_ratio(1, 300) {
            let family = self.rng.random_range(0..FAMILIES);
            self.families[family] = Parameters::random(&mut self.rng);
        }
        let kind = KINDS.choose_weighted(&mut self.rng, |kind| kind.0).expect("there are kinds").1;
        kind(self)
    }

    /// The sketches that the table is to have from now on.
    pub fn fill_table(&mut self) -> &[Stored] {
        self.table.clone_from(&self.kept);
        &self.table
    }

    pub fn row(&self, slot: usize) -> &Stored {
        &self.table[slot]
    }

    /// Binary input that is hardly a sketch.
    pub fn malformed(&mut self) -> Vec<u8> {
        let like = self.any();
        stored::malformed(&like, &mut self.rng)
    }

    /// A sketch that both sides have made, to go on with.
    pub fn keep(&mut self, sketch: Stored) {
        let size = sketch.bytes().len();
        if sketch.kind() == stored::EXPLICIT && size > 8 * 16_000 {
            // Some more hashes, and the peer would write beyond its buffer.
            return;
        }
        let alike: Vec<usize> = if sketch.kind() <= stored::EMPTY {
            // Nothing comes of an unknown set, and all too often nothing but an empty one.
            self.places(|kept| kept.kind() == sketch.kind(), if sketch.kind() == stored::EMPTY { 20 } else { 4 })
        } else {
            let limit = LARGE.iter().find(|(least, _)| size >= *least);
            limit.map_or_else(Vec::new, |(least, most)| self.places(|kept| kept.bytes().len() >= *least, *most))
        };
        if let Some(place) = alike.choose(&mut self.rng) {
            self.kept[*place] = sketch;
        } else if self.kept.len() < KEPT {
            self.kept.push(sketch);
        } else {
            let place = self.rng.random_range(0..KEPT);
            self.kept[place] = sketch;
        }
    }

    /// Where such sketches are, if there are as many as there may be.
    fn places(&self, is_such: impl Fn(&Stored) -> bool, most: usize) -> Vec<usize> {
        let places: Vec<usize> = (0..self.kept.len()).filter(|place| is_such(&self.kept[*place])).collect();
        if places.len() < most { Vec::new() } else { places }
    }

    /// Mostly a small one: the others take most of the time all the same.
    fn any(&mut self) -> Stored {
        loop {
            let sketch = self.kept.choose(&mut self.rng).expect("a sketch");
            let keeps_small = match sketch.bytes().len() {
                _ if sketch.kind() == stored::UNDEFINED => 0.3,
                0..2_048 => 1.0,
                2_048..16_384 => 0.4,
                _ => 0.1,
            };
            if self.rng.random_bool(keeps_small) {
                return sketch.clone();
            }
        }
    }

    fn operand(&mut self) -> Operand {
        if !self.table.is_empty() && self.rng.random_ratio(1, 4) {
            let slot = self.rng.random_range(0..self.table.len());
            if self.table[slot].bytes().len() < 16_384 || self.rng.random_ratio(1, 10) {
                return Operand { sketch: self.table[slot].clone(), slot: Some(slot), is_bytea: false };
            }
        }
        Operand { sketch: self.any(), slot: None, is_bytea: self.rng.random_ratio(1, 16) }
    }

    /// Another sketch, which mostly can be united with this one.
    fn companion(&mut self, operand: &Operand) -> Operand {
        if self.rng.random_ratio(1, 12) {
            return self.operand();
        }
        let is_rare = self.rng.random_ratio(9, 10);
        let is_wanted =
            |kept: &&Stored| kept.is_like(&operand.sketch) && !(is_rare && kept.kind() == stored::UNDEFINED);
        let alike: Vec<&Stored> = self.kept.iter().filter(is_wanted).collect();
        match alike.choose(&mut self.rng) {
            Some(sketch) => Operand { sketch: (*sketch).clone(), slot: None, is_bytea: false },
            None => operand.clone(),
        }
    }

    fn family(&mut self) -> Parameters {
        *self.families.choose(&mut self.rng).expect("a family")
    }

    fn empty(&mut self) -> Operation {
        let mut parameters = self.family().list().to_vec();
        if self.rng.random_ratio(1, 3) {
            parameters.truncate(self.rng.random_range(0..4));
        }
        spoil(&mut self.rng, &mut parameters);
        if parameters.len() > 1 && self.rng.random_ratio(1, 50) {
            parameters[1] = 0;
        }
        let is_zero = parameters.get(1) == Some(&0);
        let parameters: Vec<String> = parameters.into_iter().map(integer).collect();
        let call = format!("hll_empty({})", parameters.join(", "));
        // What the peer makes of a width of 0 is not to be kept: the two are not equal.
        Operation::sketch(|_| call.clone()).except(is_zero.then_some(Exception::RegisterWidthZero))
    }

    /// How many of the same kind in one expression. Where zero bits behind a word look like another one, the peer would read its
    /// own result wrongly in between.
    fn steps(&mut self, sketch: &Stored) -> usize {
        let is_single = sketch.log2m() + sketch.width() < 8 || self.rng.random_bool(0.75);
        if is_single { 1 } else { self.rng.random_range(2..6) }
    }

    fn add(&mut self) -> Operation {
        let sketch = self.operand();
        let steps = self.steps(&sketch.sketch);
        let hashes: Vec<(String, u32)> =
            (0..steps).map(|_| (values::hash_literal(&mut self.rng), self.rng.random_range(0..4))).collect();
        Operation::sketch(|side| {
            hashes.iter().fold(sketch.read(side), |sketch, (hash, way)| match way {
                0 => format!("hll_add({sketch}, {hash})"),
                1 => format!("hll_add_rev({hash}, {sketch})"),
                2 => format!("({sketch} || {hash})"),
                _ => format!("({hash} || {sketch})"),
            })
        })
        .reading([&sketch])
        .except(Exception::of_add(&sketch.sketch))
    }

    fn union(&mut self) -> Operation {
        let first = self.operand();
        let mut operands = vec![first.clone()];
        operands.extend((0..self.steps(&first.sketch)).map(|_| self.companion(&first)));
        let is_operator = self.rng.random_bool(0.5);
        Operation::sketch(|side| {
            let mut terms = operands.iter().map(|operand| operand.read(side));
            let first = terms.next().expect("an operand");
            terms.fold(first, |union, term| {
                if is_operator { format!("({union} || {term})") } else { format!("hll_union({union}, {term})") }
            })
        })
        .reading(&operands)
    }

    /// Parameters for `hll_add_agg`, each after a comma, and the hashes that they are given.
    fn collected(&mut self) -> (String, String) {
        let family = self.family();
        let count = family.hashes(&mut self.rng);
        let mut parameters = family.list().to_vec();
        if self.rng.random_ratio(1, 4) {
            parameters.truncate(self.rng.random_range(0..4));
        }
        spoil(&mut self.rng, &mut parameters);
        let parameters: String = parameters.into_iter().map(|number| format!(", {}", integer(number))).collect();
        (parameters, values::hashes(&mut self.rng, count))
    }

    fn add_agg(&mut self) -> Operation {
        let (parameters, hashes) = self.collected();
        let call = format!("(SELECT hll_add_agg(hash{parameters}) FROM ({hashes}) AS h)");
        Operation::sketch(|_| call.clone())
    }

    /// Sketches as rows `(n, sketch)`, most of which can be united.
    fn rows(&mut self) -> Vec<Option<Operand>> {
        let first = self.operand();
        let count = self.rng.random_range(0..8);
        let mut rows: Vec<Option<Operand>> = (0..count)
            .map(|_| (!self.rng.random_ratio(1, 12)).then(|| self.companion(&first)))
            .chain([Some(first.clone())])
            .collect();
        rows.rotate_right(self.rng.random_range(0..=count));
        rows
    }

    fn union_agg(&mut self) -> Operation {
        if !self.table.is_empty() && self.rng.random_ratio(1, 5) {
            return self.union_agg_of_table();
        }
        let rows = self.rows();
        let operands: Vec<Operand> = rows.iter().flatten().cloned().collect();
        Operation::sketch(|side| format!("(SELECT hll_union_agg(s ORDER BY n) FROM {})", rows_of(&rows, side)))
            .reading(&operands)
    }

    /// Rows of the table that can be united.
    fn union_agg_of_table(&mut self) -> Operation {
        let first = self.table.choose(&mut self.rng).expect("a row").clone();
        let is_wanted = |row: &Stored| row.is_like(&first) && row.kind() != stored::UNDEFINED;
        let slots: Vec<usize> = (0..self.table.len()).filter(|slot| is_wanted(&self.table[*slot])).take(20).collect();
        if slots.is_empty() {
            return self.union_agg();
        }
        let operands: Vec<Operand> = slots
            .iter()
            .map(|slot| Operand { sketch: self.table[*slot].clone(), slot: Some(*slot), is_bytea: false })
            .collect();
        if operands.iter().any(|operand| operand.sketch.has_padding_like_a_word()) {
            return self.union_agg();
        }
        let list: Vec<String> = slots.iter().map(usize::to_string).collect();
        let call =
            format!("(SELECT hll_union_agg(sketch ORDER BY slot) FROM sketches WHERE slot IN ({}))", list.join(", "));
        Operation::sketch(|_| call.clone()).reading(&operands)
    }

    /// The final function runs again and again on one state.
    fn running_union(&mut self) -> Operation {
        let frame = ["", " ROWS 1 PRECEDING", " ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING"];
        let frame = *frame.choose(&mut self.rng).expect("a frame");
        let printed = |call: &str| {
            format!("(SELECT string_agg(coalesce(encode(hll_send(u), 'hex'), '-'), ' ') FROM {call} AS w)")
        };
        if self.rng.random_bool(0.3) {
            let family = self.family();
            let count = self.rng.random_range(0..20);
            let hashes = values::hashes(&mut self.rng, count);
            let [log2m, width, threshold, sparse] = Parameters { log2m: family.log2m.min(8), ..family }.list();
            let call = format!(
                "(SELECT hll_add_agg(hash, {log2m}, {width}, {threshold}, {sparse}) OVER (ORDER BY n{frame}) AS u \
                 FROM (SELECT hash, row_number() OVER () AS n FROM ({hashes}) AS h) AS v)"
            );
            return Operation::text(|_| printed(&call));
        }
        let rows = self.rows();
        let operands: Vec<Operand> = rows.iter().flatten().cloned().collect();
        Operation::text(|side| {
            printed(&format!("(SELECT hll_union_agg(s) OVER (ORDER BY n{frame}) AS u FROM {})", rows_of(&rows, side)))
        })
        .reading(&operands)
    }

    fn estimate_of_aggregate(&mut self) -> Operation {
        let (name, other) = *[
            ("union_cardinality", Exception::NotANumber),
            ("union_floor", Exception::NotANumberAsInteger),
            ("union_ceiling", Exception::NotANumberAsInteger),
        ]
        .choose(&mut self.rng)
        .expect("an aggregate");
        let rows = self.rows();
        let operands: Vec<Operand> = rows.iter().flatten().cloned().collect();
        if operands.iter().any(|operand| operand.sketch.has_huge_register()) {
            return self.print();
        }
        let sketches = operands.iter().map(|operand| &operand.sketch);
        let estimate = if other == Exception::NotANumber { Exception::of_estimate(sketches) } else { Some(other) };
        Operation::text(|side| format!("(SELECT pg_temp.{name}(s ORDER BY n) FROM {})", rows_of(&rows, side)))
            .reading(&operands)
            .except(estimate)
    }

    fn input(&mut self) -> Operation {
        let bytes = self.malformed();
        let text = match self.rng.random_range(0..6) {
            0 => hex(&bytes).to_uppercase().replacen('X', "x", 1),
            1 => bytes.iter().fold("\\x".to_owned(), |text, byte| format!("{text} {byte:02x}")),
            2 => escapes(&bytes),
            _ => hex(&bytes),
        };
        let exception = Exception::of_input(&bytes);
        if self.rng.random_ratio(1, 3) {
            let cast = |side| match side {
                Side::Peer => format!("'{text}'::hll"),
                Side::Tally => format!("'{text}'::bytea::hll"),
            };
            return Operation::sketch(cast).except(Some(Exception::UncheckedBytes)).except(exception);
        }
        Operation::sketch(|_| format!("'{text}'::hll")).except(exception)
    }

    fn broken_text(&mut self) -> Operation {
        let mut text =
            self.any().bytes().iter().take(40).fold("\\x".to_owned(), |text, byte| format!("{text}{byte:02x}"));
        let at = self.rng.random_range(0..=text.len());
        text.insert(at, *['g', ' ', '\\', '0', 'x', 'é'].choose(&mut self.rng).expect("a character"));
        Operation::sketch(|_| format!("'{text}'::hll"))
    }

    fn output(&mut self) -> Operation {
        let sketch = self.operand();
        Operation::text(|_| sketch.shown()).showing([&sketch])
    }

    /// Texts for a type modifier that often is the one of the sketch.
    fn modifiers(&mut self, sketch: &Stored) -> (Vec<String>, Option<Exception>) {
        let mut parameters = Parameters::of(sketch).list();
        if self.rng.random_ratio(1, 5) {
            let other = self.family().list();
            let place = self.rng.random_range(0..4);
            parameters[place] = other[place];
        }
        spoil(&mut self.rng, &mut parameters);
        let mut texts: Vec<String> = parameters
            .into_iter()
            .map(|number| match self.rng.random_range(0..12) {
                0 if number >= 0 => format!("0x{number:x}"),
                1 if number >= 0 => format!("0{number:o}"),
                2 if number >= 0 => format!(" +{number}"),
                _ => number.to_string(),
            })
            .collect();
        let mut exception = None;
        match self.rng.random_range(0..30) {
            0..8 => texts.truncate(self.rng.random_range(1..4)),
            8 => texts.push("1".to_owned()),
            9 | 10 => {
                let odd = [
                    "x",
                    "1.5",
                    "",
                    "--1",
                    "0x",
                    "08",
                    "5 ",
                    "4294967307",
                    "-9999999999999999999",
                    "99999999999999999999",
                ];
                let (place, odd) = (self.rng.random_range(0..4), *odd.choose(&mut self.rng).expect("a text"));
                texts[place] = odd.to_owned();
                exception = (odd.is_empty() || odd.len() > 9).then_some(Exception::OddModifier);
            }
            _ => {}
        }
        (texts, exception)
    }

    fn modifier(&mut self) -> Operation {
        let sketch = self.any();
        let (texts, exception) = self.modifiers(&sketch);
        let quoted: Vec<String> = texts.iter().map(|text| format!("\"{text}\"")).collect();
        let read = format!("hll_typmod_in('{{{}}}'::cstring[])", quoted.join(","));
        let call = if self.rng.random_bool(0.5) { format!("hll_typmod_out({read})") } else { read };
        Operation::text(|_| call.clone()).except(exception)
    }

    fn modifier_cast(&mut self) -> Operation {
        let sketch = self.operand();
        let (texts, exception) = self.modifiers(&sketch.sketch);
        let operation = if self.rng.random_ratio(1, 3) {
            let quoted: Vec<String> = texts.iter().map(|text| format!("\"{text}\"")).collect();
            Operation::sketch(|_| {
                format!(
                    "hll_in('{}'::cstring, 0::oid, hll_typmod_in('{{{}}}'::cstring[]))",
                    hex(sketch.sketch.bytes()),
                    quoted.join(",")
                )
            })
        } else {
            let quoted: Vec<String> = texts.iter().map(|text| format!("'{text}'")).collect();
            Operation::sketch(|_| format!("{}::hll({})", sketch.shown(), quoted.join(", "))).showing([&sketch])
        };
        operation.except(exception)
    }

    fn field(&mut self) -> Operation {
        const FIELDS: &[&str] = &["schema_version", "type", "log2m", "regwidth", "expthresh", "sparseon"];
        let (sketch, field) = (self.operand(), *FIELDS.choose(&mut self.rng).expect("a field"));
        Operation::text(|_| format!("hll_{field}({})", sketch.shown())).showing([&sketch])
    }

    fn print(&mut self) -> Operation {
        let sketch = self.operand();
        Operation::text(|side| format!("hll_print({})", sketch.read(side))).reading([&sketch])
    }

    fn cardinality(&mut self) -> Operation {
        let sketch = self.operand();
        if sketch.sketch.has_huge_register() {
            return self.print();
        }
        let is_operator = self.rng.random_bool(0.5);
        Operation::text(|side| {
            let sketch = sketch.read(side);
            if is_operator { format!("# {sketch}") } else { format!("hll_cardinality({sketch})") }
        })
        .reading([&sketch])
        .except(Exception::of_estimate([&sketch.sketch]))
    }

    fn comparison(&mut self) -> Operation {
        let first = self.operand();
        let second = if self.rng.random_bool(0.5) {
            Operand { slot: None, is_bytea: false, ..first.clone() }
        } else {
            self.companion(&first)
        };
        let way = self.rng.random_range(0..4);
        Operation::text(|_| {
            let (first, second) = (first.shown(), second.shown());
            match way {
                0 => format!("{first} = {second}"),
                1 => format!("{first} <> {second}"),
                2 => format!("hll_eq({first}, {second})"),
                _ => format!("hll_ne({first}, {second})"),
            }
        })
        .showing([&first, &second])
    }

    fn hash(&mut self) -> Operation {
        let seed = values::seed(&mut self.rng);
        let number: i64 = if self.rng.random_bool(0.5) { self.rng.random_range(-5..300) } else { self.rng.random() };
        let call = match self.rng.random_range(0..8) {
            0 => format!("hll_hash_boolean({}{seed})", number % 2 == 0),
            1 => format!("hll_hash_smallint('{}'::smallint{seed})", number as i16),
            2 => format!("hll_hash_integer('{}'::integer{seed})", number as i32),
            3 => format!("hll_hash_bigint('{number}'::bigint{seed})"),
            4 => format!("hll_hash_bytea({}{seed})", values::bytes_literal(&mut self.rng)),
            5 => format!("hll_hash_text({}{seed})", values::text_literal(&mut self.rng)),
            _ if self.rng.random_ratio(1, 40) => {
                let digits = format!("{number:016x}");
                let call = |side| match side {
                    Side::Peer => format!("hll_hash_bytea('\\x{digits}'::bytea{seed})"),
                    Side::Tally => format!("hll_hash_any('{digits}'::macaddr8{seed})"),
                };
                return Operation::text(call).except(Some(Exception::HashedPointer));
            }
            _ => format!("hll_hash_any({}{seed})", values::any_value(&mut self.rng)),
        };
        Operation::text(|_| call.clone())
    }

    fn hash_value(&mut self) -> Operation {
        let (first, number) = (values::hash_literal(&mut self.rng), values::hash_number(&mut self.rng));
        let call = match self.rng.random_range(0..7) {
            0 => first,
            1 => format!("{first} = {}", values::hash_literal(&mut self.rng)),
            2 => format!("{first} <> {}", values::hash_literal(&mut self.rng)),
            3 => format!("hll_hashval_eq('{number}'::hll_hashval, hll_hashval('{number}'::bigint))"),
            4 => format!("hll_hashval_ne({first}, hll_hashval_int4('{}'::integer))", number as i32),
            5 => format!("hll_hashval('{number}'::bigint)"),
            _ => {
                let texts = ["x", "", "1.5", " 7 ", "9223372036854775808", "-9223372036854775809", "0x10", "1e3"];
                format!("'{}'::hll_hashval", texts.choose(&mut self.rng).expect("a text"))
            }
        };
        Operation::text(|_| call.clone())
    }

    fn null(&mut self) -> Operation {
        let (sketch, hash) = (self.operand(), values::hash_literal(&mut self.rng));
        let (parameters, _) = self.collected();
        let way = self.rng.random_range(0..12);
        Operation::text(|side| {
            let sketch = sketch.read(side);
            match way {
                0 => format!("hll_union({sketch}, NULL)"),
                1 => format!("NULL::hll || {sketch}"),
                2 => format!("hll_add(NULL, {hash})"),
                3 => format!("{sketch} || NULL::hll_hashval"),
                4 => "hll_cardinality(NULL)".to_owned(),
                5 => "hll_print(NULL)".to_owned(),
                6 => "hll_hash_text(NULL)".to_owned(),
                7 => "hll_hash_any(7, NULL)".to_owned(),
                8 => "(SELECT hll_union_agg(s) FROM (VALUES (NULL::hll), (NULL)) AS v(s))".to_owned(),
                9 => format!("(SELECT hll_union_agg(s) FROM (SELECT {sketch} AS s LIMIT 0) AS v)"),
                10 => format!("(SELECT hll_add_agg(NULL::hll_hashval{parameters}))"),
                _ => format!("(SELECT hll_add_agg({hash}{parameters}) FROM generate_series(1, 0))"),
            }
        })
        .reading([&sketch])
    }

    fn setting(&mut self) -> Operation {
        let (setting, call) = match self.rng.random_range(0..12) {
            0..3 => (0, "hll_set_max_sparse(-1)".to_owned()),
            3..6 => {
                let most = *[0, 1, 2, 5, 20, 100, 1_000, i32::MAX, -2].choose(&mut self.rng).expect("a number");
                (0, format!("hll_set_max_sparse({most})"))
            }
            6..9 => {
                let mut parameters = self.family().list();
                spoil(&mut self.rng, &mut parameters);
                let [log2m, width, threshold, sparse] = parameters.map(integer);
                (1, format!("hll_set_defaults({log2m}, {width}, {threshold}, {sparse})"))
            }
            9 => (1, "hll_set_defaults(11, 5, -1, 1)".to_owned()),
            10 => {
                (2, format!("set_config('bytea_output', '{}', false)", ["hex", "escape"][self.rng.random_range(0..2)]))
            }
            _ => {
                let version = self.rng.random_range(0..3);
                return Operation::text(|_| format!("hll_set_output_version({version})"));
            }
        };
        Operation::new(Gives::Setting(setting), |_| call.clone())
    }
}

/// A FROM item with the columns n and s.
fn rows_of(rows: &[Option<Operand>], side: Side) -> String {
    let rows: Vec<String> = rows
        .iter()
        .enumerate()
        .map(|(n, row)| format!("({n}, {})", row.as_ref().map_or_else(|| "NULL::hll".to_owned(), |row| row.read(side))))
        .collect();
    format!("(VALUES {}) AS v(n, s)", rows.join(", "))
}
