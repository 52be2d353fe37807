//! The stored bytes of a sketch, read in the plainest way: whoever makes operations has to know what is in hand.

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;

use super::values::Parameters;

pub const UNDEFINED: u8 = 0;
pub const EMPTY: u8 = 1;
pub const EXPLICIT: u8 = 2;
pub const SPARSE: u8 = 3;
pub const FULL: u8 = 4;
const HEADER: usize = 3;
const AUTO: u8 = 63;
/// The most hashes that fit into the peer's buffer.
pub const MOST_HASHES: usize = 16383;

/// A sketch that both sides have taken or made.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored(Vec<u8>);

impl Stored {
    pub fn new(bytes: Vec<u8>) -> Stored {
        assert!(bytes.len() >= HEADER, "no sketch has the bytes {bytes:?}");
        Stored(bytes)
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn kind(&self) -> u8 {
        self.0[0] & 0x0f
    }

    pub fn log2m(&self) -> u32 {
        u32::from(self.0[1] & 0x1f)
    }

    pub fn width(&self) -> u32 {
        u32::from(self.0[1] >> 5) + 1
    }

    /// As it was asked for: -1 by size, 0 for off.
    pub fn threshold(&self) -> i64 {
        threshold(self.0[2])
    }

    pub fn sparse(&self) -> i64 {
        i64::from((self.0[2] >> 6) & 1)
    }

    /// Can the two be united?
    pub fn is_like(&self, other: &Stored) -> bool {
        self.0[1] == other.0[1] && (self.0[2] ^ other.0[2]) & 0x7f == 0
    }

    /// EXPLICIT, with more hashes than are collected.
    pub fn has_more_hashes_than_its_threshold(&self) -> bool {
        let most = match self.threshold() {
            -1 => (self.full_size() / 8).min(MOST_HASHES),
            specified => specified as usize,
        };
        self.kind() == EXPLICIT && (self.0.len() - HEADER) / 8 > most
    }

    /// A register that no hash can give so much: `1 << value` is more than the peer's 64 bits.
    pub fn has_huge_register(&self) -> bool {
        self.kind() >= SPARSE && self.width() >= 6 && self.registers().iter().any(|value| *value > 62)
    }

    /// SPARSE, and zero bits behind the last word make a word for register 0, which is not 0. This takes words of less
    /// than 8 bits.
    pub fn has_padding_like_a_word(&self) -> bool {
        self.kind() == SPARSE
            && self.log2m() + self.width() < 8
            && self.padding_starts_at() < self.all_words().len()
            && self.registers().first().is_some_and(|value| *value > 0)
    }

    /// The same registers, all of them stored.
    pub fn as_full(&self) -> Stored {
        let mut bytes = vec![0; HEADER + self.full_size()];
        bytes[..HEADER].copy_from_slice(&[0x10 | FULL, self.0[1], self.0[2]]);
        let width = self.width() as usize;
        for (index, value) in self.registers().into_iter().enumerate() {
            for bit in 0..width {
                let place = index * width + bit;
                bytes[HEADER + place / 8] |= ((value >> (width - 1 - bit)) as u8 & 1) << (7 - place % 8);
            }
        }
        Stored(bytes)
    }

    fn full_size(&self) -> usize {
        ((1 << self.log2m()) * self.width() as usize).div_ceil(8)
    }

    fn registers(&self) -> Vec<u32> {
        if self.kind() == FULL {
            return words(&self.0[HEADER..], self.width()).take(1 << self.log2m()).collect();
        }
        let mut registers = vec![0; 1 << self.log2m()];
        for word in &self.all_words()[..self.padding_starts_at()] {
            registers[(word >> self.width()) as usize] = word & ((1 << self.width()) - 1);
        }
        registers
    }

    /// Every word that the bits of a SPARSE sketch have room for.
    fn all_words(&self) -> Vec<u32> {
        words(&self.0[HEADER..], self.log2m() + self.width()).collect()
    }

    /// The first of [`Self::all_words`] that begins inside of the last byte, if only zero bits follow from there on.
    fn padding_starts_at(&self) -> usize {
        let (words, width) = (self.all_words(), (self.log2m() + self.width()) as usize);
        let bits = (self.0.len() - HEADER) * 8;
        let leftover = (bits % width) as u32;
        if self.0.last().is_some_and(|last| leftover < 8 && last & ((1 << leftover) - 1) != 0) {
            return words.len();
        }
        let is_padding = |word: usize| words[word] == 0 && word * width > bits.saturating_sub(8);
        (0..words.len()).rev().take_while(|word| is_padding(*word)).last().unwrap_or(words.len())
    }
}

/// Out of byte 2 of a sketch.
pub fn threshold(byte: u8) -> i64 {
    match byte & 0x3f {
        AUTO => -1,
        0 => 0,
        code => 1 << (code - 1),
    }
}

fn words(data: &[u8], width: u32) -> impl Iterator<Item = u32> + '_ {
    let bit = |place: usize| u32::from(data[place / 8] >> (7 - place % 8)) & 1;
    let width = width as usize;
    (0..data.len() * 8 / width)
        .map(move |word| (word * width..(word + 1) * width).fold(0, |value, place| value << 1 | bit(place)))
}

/// Bytes that are a sketch by chance at most.
pub fn malformed(like: &Stored, rng: &mut StdRng) -> Vec<u8> {
    let mut bytes = if rng.random_ratio(3, 5) { like.bytes().to_vec() } else { made_up(rng) };
    for _ in 0..rng.random_range(0..=3) {
        let at = rng.random_range(0..=bytes.len());
        match rng.random_range(0..7) {
            0 => bytes.truncate(at),
            1 => bytes.extend((0..rng.random_range(1..10)).map(|_| rng.random::<u8>())),
            2 => bytes.extend(vec![0; rng.random_range(1..10)]),
            3 if at < bytes.len() => bytes[at] = rng.random(),
            4 if at < bytes.len() => bytes[at] ^= 1 << rng.random_range(0..8),
            // The header, with more weight than by chance.
            5 if at < bytes.len() => bytes[at % HEADER] ^= 1 << rng.random_range(0..8),
            6 if bytes.len() >= HEADER + 16 => {
                let (first, second) = bytes[HEADER..].split_at_mut(8);
                first.swap_with_slice(&mut second[..8]);
            }
            _ => {}
        }
    }
    tamed(bytes)
}

/// The peer reads the first byte of a value that has none, and shifts an int by 31 bits for this number of registers. Neither
/// is defined.
fn tamed(mut bytes: Vec<u8>) -> Vec<u8> {
    if bytes.is_empty() {
        bytes.push(0x11);
    }
    if bytes.get(1).is_some_and(|byte| byte & 0x1f == 0x1f) {
        bytes[1] &= !1;
    }
    bytes
}

fn made_up(rng: &mut StdRng) -> Vec<u8> {
    let parameters = Parameters::small(rng);
    let word = (parameters.log2m + parameters.width) as usize;
    let kind = rng.random_range(0..=5);
    let size = match kind {
        EXPLICIT => 8 * rng.random_range(0..6),
        SPARSE => (rng.random_range(0..12) * word).div_ceil(8),
        FULL => ((1 << parameters.log2m) * parameters.width as usize).div_ceil(8),
        _ => 0,
    };
    let code = *[0, 1, 2, 4, 14, 15, 16, 62, AUTO].choose(rng).expect("one of them");
    let mut bytes = vec![
        0x10 | kind,
        ((parameters.width - 1) << 5 | parameters.log2m) as u8,
        code | if rng.random_bool(0.5) { 0x40 } else { 0 },
    ];
    let mut data: Vec<u8> = (0..size).map(|_| if rng.random_ratio(1, 3) { 0 } else { rng.random() }).collect();
    if kind == EXPLICIT && rng.random_ratio(4, 5) {
        let mut hashes: Vec<[u8; 8]> = data.as_chunks().0.to_vec();
        hashes.sort_by_key(|hash| i64::from_be_bytes(*hash));
        data = hashes.concat();
    }
    bytes.extend(data);
    bytes
}

#[test]
fn registers_are_those_of_the_stored_bytes() {
    let stored = |bytes: &[u8]| Stored::new(bytes.to_vec());
    // 2^4 registers of 5 bits: number 8 is 5, number 10 is 1.
    let (sparse, full) = (stored(b"\x13\x84\x40\x82\xd0\x40"), stored(b"\x14\x84\x40\0\0\0\0\0\x28\x02\0\0\0"));
    assert_eq!(sparse.registers(), [0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 1, 0, 0, 0, 0, 0]);
    assert_eq!(full.registers(), sparse.registers());
    assert_eq!(sparse.as_full(), full);
    assert_eq!((sparse.log2m(), sparse.width(), sparse.threshold(), sparse.sparse()), (4, 5, 0, 1));

    // 2^2 registers of 1 bit, the first one of which is set: 001, and five bits of padding.
    let (padded, full) = (stored(b"\x13\x02\x40\x20"), stored(b"\x14\x02\x40\x80"));
    assert!(padded.has_padding_like_a_word());
    assert_eq!(padded.as_full(), full);
    // Register 1 is set, and nothing is lost; or what follows is no padding.
    assert!(!stored(b"\x13\x02\x40\x60").has_padding_like_a_word());
    assert!(!stored(b"\x13\x02\x40\x21").has_padding_like_a_word());
    assert!(!sparse.has_padding_like_a_word());
}
