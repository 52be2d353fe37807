use proptest::prelude::*;

use super::*;
use crate::config::{Size, Span};

const PLENTY: usize = 10_000;

fn window(span: i64, messages: &[(i64, u128)]) -> (Window, Vec<bool>) {
    let mut window = Window::new(span, PLENTY);
    let seen = messages.iter().map(|(time, hash)| window.see(*hash, Some(*time))).collect();
    (window, seen)
}

#[test]
fn a_duplicate_lies_within_the_window_its_end_included() {
    let (_, seen) = window(10, &[(0, 1), (10, 1), (21, 1), (21, 2), (21, 1), (32, 2)]);
    assert_eq!(seen, [false, true, false, false, true, false]);
}

#[test]
fn a_duplicate_is_remembered_as_the_first_one_is() {
    let (_, seen) = window(10, &[(0, 1), (8, 1), (16, 1), (27, 1)]);
    assert_eq!(seen, [false, true, true, false]);
}

#[test]
fn times_that_fall_or_are_absent_do_not_turn_the_clock_back() {
    let (mut window, seen) = window(10, &[(100, 1), (50, 2), (110, 2)]);
    assert_eq!(seen, [false, false, true]);
    assert!(window.see(2, None));
    let mut timeless = Window::new(10, PLENTY);
    assert_eq!([timeless.see(1, None), timeless.see(1, None)], [false, true]);
}

#[test]
fn a_full_window_forgets_the_oldest_and_says_so() {
    let mut window = Window::new(1_000, 3);
    (1..=3).for_each(|hash| assert!(!window.see(hash, Some(0))));
    assert_eq!(window.forgotten, 0);
    assert!(!window.see(4, Some(0)));
    assert_eq!(window.forgotten, 1);
    assert_eq!([window.see(1, Some(0)), window.see(4, Some(0))], [false, true]);
    assert_eq!(window.queue.len(), 3);
}

#[test]
fn the_text_of_a_field_is_found_as_it_is_written() {
    let text = |json: &str| field_text(json.as_bytes(), "id").map(str::to_owned);
    assert_eq!(text(r#"{"a": {"id": 1}, "id": "x\n" }"#).as_deref(), Some(r#""x\n""#));
    assert_eq!(text(r#"{"\u0069d": 1.0}"#).as_deref(), Some("1.0"));
    assert_eq!(text(r#"{"id": 1, "id": 2}"#).as_deref(), Some("2"));
    for nothing in [r#"{"id": null}"#, r#"{"a": 1}"#, r#"["id"]"#, r#"{"id": 1} x"#, r#"{"id": 1, "#, "", "\u{1}"] {
        assert_eq!(text(nothing), None, "{nothing}");
    }
}

#[test]
fn parts_share_the_memory_and_nothing_else() {
    let settings = config::Dedupe { field: "id".into(), window: Span::milliseconds(10), memory: Size(4 * ENTRY_BYTES) };
    let mut dedupe = Deduplicator::new(&settings);
    dedupe.assign([0, 1].into_iter());
    let value = |id: i32| format!("{{\"id\": {id}}}").into_bytes();
    let mut see = |part, id| dedupe.see(part, Some(&value(id)), Some(0));
    assert_eq!([see(0, 1), see(1, 1), see(0, 1), see(2, 1), see(2, 1)], [false, false, true, false, false]);
    // Two messages each: the first one of part 0 has to go.
    assert_eq!([see(0, 2), see(0, 3), see(0, 1), see(1, 1)], [false, false, false, true]);
    assert_eq!((dedupe.take_forgotten(), dedupe.take_forgotten()), (3, 0));
    assert!(!dedupe.see(0, None, Some(0)) && !dedupe.see(0, Some(b"{}"), Some(0)));
    dedupe.assign([0].into_iter());
    assert!(!dedupe.see(0, Some(&value(1)), Some(0)), "an assignment begins with empty windows");
    let refill = Refill::new(&settings);
    assert_eq!((refill.since(100), refill.floor(100, 2), refill.floor(1, 1)), (90, 98, 0));
}

proptest! {
    /// The definition, in so many words.
    #[test]
    fn answers_are_those_of_the_definition(
        span in 0_i64..30,
        messages in proptest::collection::vec((0_i64..100, 0_u128..8), 0..60),
    ) {
        let (_, seen) = window(span, &messages);
        let clock = |at: usize| messages[..=at].iter().map(|(time, _)| *time).max().unwrap();
        for at in 0..messages.len() {
            let expected = (0..at).any(|before| {
                messages[before].1 == messages[at].1 && clock(before) >= clock(at) - span
            });
            prop_assert_eq!(seen[at], expected, "message {}", at);
        }
    }

    /// Whoever goes on at any message, after reading only what the window needs, answers as if it had read all.
    #[test]
    fn a_window_that_is_filled_again_gives_the_same_answers(
        span in 0_i64..30,
        steps in proptest::collection::vec((0_i64..5, 0_u128..8), 1..60),
        cut in 0_usize..60,
    ) {
        let mut clock = 0;
        let messages: Vec<_> = steps.iter().map(|(step, hash)| { clock += step; (clock, *hash) }).collect();
        let cut = 1 + cut % messages.len();
        let (_, all) = window(span, &messages);
        let refill = Refill { span, capacity: PLENTY };
        let since = refill.since(messages[cut - 1].0);
        let first = messages.iter().position(|(time, _)| *time >= since).unwrap();
        let (_, again) = window(span, &messages[first..]);
        prop_assert_eq!(&again[cut - first..], &all[cut..]);
    }

    /// Whatever is forgotten: what never came is no duplicate, and the memory is kept.
    #[test]
    fn a_bounded_window_never_invents_a_duplicate(
        capacity in 1_usize..6,
        messages in proptest::collection::vec((0_i64..100, 0_u128..8), 0..60),
    ) {
        let (mut bounded, mut plenty) = (Window::new(20, capacity), Window::new(20, PLENTY));
        for (time, hash) in messages {
            let seen = bounded.see(hash, Some(time));
            prop_assert!(plenty.see(hash, Some(time)) || !seen);
            prop_assert!(bounded.queue.len() <= capacity && bounded.last.len() <= capacity);
        }
    }
}
