//! From a topic in memory to events.

use super::*;
use crate::program::tests::{column, compile, table};
use crate::source::fake::FakeTopic;

fn feed(topic: &FakeTopic) -> Feed {
    feed_with(topic, None)
}

fn feed_with(topic: &FakeTopic, dedupe: Option<&config::Dedupe>) -> Feed {
    let program = Arc::new(compile(&table(vec![column("a", "int4")]), "").unwrap());
    Feed::start(Box::new(topic.source()), "t", program, 64 << 20, Default::default(), Arc::default(), dedupe)
}

/// Offsets of the messages up to the end of the part.
async fn offsets(feed: &mut Feed) -> Vec<i64> {
    let mut offsets = Vec::new();
    loop {
        match feed.next().await.unwrap() {
            Event::Chunk(chunk) => offsets.extend(chunk.arena.iter().map(|message| message.offset)),
            Event::EndOfPart { .. } => return offsets,
            other => panic!("{other:?}"),
        }
    }
}

fn topic(messages: i64) -> FakeTopic {
    let topic = FakeTopic::new(1);
    (0..messages).for_each(|n| _ = topic.produce(0, None, Some(format!("{{\"a\": {n}}}").as_bytes()), Some(n)));
    topic
}

#[tokio::test]
async fn a_part_is_read_from_its_position_to_its_end() {
    let topic = topic(10);
    let mut feed = feed(&topic);
    feed.assign(vec![Start { part: 0, next: 7, anchor: None }]).await.unwrap();
    assert_eq!(offsets(&mut feed).await, [7, 8, 9]);
    topic.produce(0, None, Some(b"{}"), None);
    assert_eq!(offsets(&mut feed).await, [10]);
}

#[tokio::test]
async fn events_of_an_older_assignment_are_dropped() {
    let topic = topic(20_000);
    let mut feed = feed(&topic);
    for next in [0, 5, 19_990] {
        feed.assign(vec![Start { part: 0, next, anchor: None }]).await.unwrap();
    }
    assert_eq!(offsets(&mut feed).await, (19_990..20_000).collect::<Vec<_>>());
}

#[tokio::test]
async fn the_end_of_a_part_lies_behind_markers() {
    let topic = topic(2);
    topic.skip(0, 3);
    let mut feed = feed(&topic);
    feed.assign(vec![Start { part: 0, next: 2, anchor: None }]).await.unwrap();
    assert!(matches!(feed.next().await, Some(Event::EndOfPart { part: 0, position: 5, .. })));
}

#[tokio::test]
async fn the_anchor_tells_a_topic_that_was_created_again() {
    let original = topic(3);
    let mut arena = Arena::default();
    let mut source = original.source();
    source.assign(&[(0, 0)]).unwrap();
    source.poll(&mut arena, 1 << 20, WAIT).unwrap();
    let last = arena.get(2);
    let anchor = Some(Anchor { offset: 2, time: last.time, hash: last.hash() });
    original.produce(0, None, Some(b"{}"), None);
    let mut same = feed(&original);
    same.assign(vec![Start { part: 0, next: 3, anchor }]).await.unwrap();
    assert_eq!(offsets(&mut same).await, [3]);

    let other = FakeTopic::new(1);
    (0..9).for_each(|n| _ = other.produce(0, None, Some(b"{\"a\": 77}"), Some(n)));
    let mut changed = feed(&other);
    changed.assign(vec![Start { part: 0, next: 3, anchor }]).await.unwrap();
    assert!(matches!(changed.next().await, Some(Event::Changed { part: 0, .. })));
}

#[tokio::test]
async fn a_window_is_filled_from_before_the_position_and_the_anchor_is_still_compared() {
    let dedupe =
        config::Dedupe { field: "a".into(), window: config::Span::milliseconds(5), memory: config::Size::mebibytes(1) };
    // Times are 0 to 9; then two that were sent before, after 6 and 5 milliseconds.
    let topic = topic(10);
    topic.produce(0, None, Some(b"{\"a\": 4}"), Some(10));
    topic.produce(0, None, Some(b"{\"a\": 5}"), Some(10));
    let mut feed = feed_with(&topic, Some(&dedupe));
    let mut arena = Arena::default();
    let mut source = topic.source();
    source.assign(&[(0, 9)]).unwrap();
    source.poll(&mut arena, 1 << 20, WAIT).unwrap();
    let hash = arena.get(0).hash();
    for (hash, is_same) in [(hash, true), (hash ^ 1, false)] {
        let anchor = Some(Anchor { offset: 9, time: Some(9), hash });
        feed.assign(vec![Start { part: 0, next: 10, anchor }]).await.unwrap();
        match feed.next().await.unwrap() {
            Event::Chunk(chunk) if is_same => {
                assert_eq!((chunk.arena.len(), chunk.starts.len(), chunk.duplicates), (2, 1, 1));
                assert_eq!((chunk.parts[0].next, chunk.parts[0].skipped), (12, 1));
                assert!(chunk.arena.is_duplicate(1) && !chunk.arena.is_duplicate(0));
                assert_eq!(chunk.decode_again(chunk.program.clone(), "t").duplicates, 1);
            }
            Event::Changed { part: 0, .. } if !is_same => {}
            other => panic!("{other:?}"),
        }
    }
}
