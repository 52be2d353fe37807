use std::io::Write as _;

use super::*;
use proptest::prelude::*;

fn settings(text: &str) -> FileSettings {
    toml::from_str(text).unwrap()
}

fn open(path: &Path, text: &str) -> FileSource {
    FileSource::new(path, &settings(text), 4 << 20).unwrap()
}

fn file(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

/// Offsets and values from a position to the end, how it ended, and where the file stands then.
type Read = (Vec<(i64, String)>, Polled, Option<End>);

fn read_from(source: &mut FileSource, next: i64, anchor: Option<Anchor>, limit: usize) -> Read {
    assert_eq!(source.resume(0, next, anchor), Ok(Resume::Proven));
    source.assign(&[(0, next)]).unwrap();
    let (mut records, mut end) = (Vec::new(), None);
    loop {
        let mut arena = Arena::default();
        let polled = source.poll(&mut arena, limit, Duration::ZERO).unwrap();
        let text = |value: Option<&[u8]>| String::from_utf8(value.unwrap().to_vec()).unwrap();
        records.extend(arena.iter().map(|message| (message.offset, text(message.value))));
        end = arena.end().or(end);
        if polled != Polled::Messages {
            return (records, polled, end);
        }
    }
}

fn read(source: &mut FileSource) -> Vec<(i64, String)> {
    read_from(source, 0, None, 1 << 20).0
}

fn refusal(source: &mut FileSource, next: i64, anchor: Option<Anchor>) -> String {
    match source.resume(0, next, anchor) {
        Ok(Resume::Refused(reason)) => reason,
        other => panic!("{other:?}"),
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn lines_have_the_offset_of_their_first_byte() {
    let (_folder, path) = file("a.ndjson", b"\xef\xbb\xbf{}\n\n[1]\r\nlast");
    let (records, polled, end) = read_from(&mut open(&path, ""), 0, None, 1 << 20);
    assert_eq!(records, [(3, "{}".into()), (7, "[1]".into()), (12, "last".into())]);
    assert_eq!(polled, Polled::EndOfPart { part: 0, position: 16 });
    assert_eq!(end.unwrap().next, 16);
}

#[test]
fn compressed_files_have_the_offsets_of_their_content() {
    let content = b"a,b\n1,\"x\ny\"\n2,z\n".repeat(5_000);
    let (_folder, plain) = file("a.csv", &content);
    let expected = read(&mut open(&plain, ""));
    assert_eq!(expected[0], (4, "1,\"x\ny\"".into()));
    // Two streams one after the other, as `cat a.gz b.gz` gives.
    let (first, second) = content.split_at(10_000);
    let (_folder, gz) = file("a.csv.gz", &[gzip(first), gzip(second)].concat());
    assert_eq!(read(&mut open(&gz, "")), expected);
    let frames = [zstd::encode_all(first, 1).unwrap(), zstd::encode_all(second, 1).unwrap()].concat();
    let (_folder, zst) = file("a.csv.zst", &frames);
    assert_eq!(read(&mut open(&zst, "")), expected);
    // From the middle, too.
    let (_, _, end) = read_from(&mut open(&gz, ""), 0, None, 1 << 20);
    let end = end.unwrap();
    assert_eq!(end.next, content.len() as i64);
    assert_eq!(read_from(&mut open(&zst, ""), end.next, Some(end.anchor), 1 << 20).0, []);
}

#[test]
fn a_header_names_the_fields_unless_others_are_given() {
    let (_folder, path) = file("a.csv", b"\xef\xbb\xbf\"a b\",c\n1,2\n");
    let names = |text: &str| open(&path, text).fields().unwrap();
    assert_eq!(names(""), ["a b", "c"]);
    assert_eq!(read(&mut open(&path, "")), [(11, "1,2".into())]);
    assert_eq!(names("columns = [\"x\", \"y\"]"), ["x", "y"]);
    assert_eq!(read(&mut open(&path, "columns = [\"x\", \"y\"]")), [(11, "1,2".into())]);
    let given = "header = false\ncolumns = [\"x\", \"y\"]";
    assert_eq!(read(&mut open(&path, given)), [(3, "\"a b\",c".into()), (11, "1,2".into())]);
    let error = FileSource::new(&path, &settings("header = false"), 4 << 20).unwrap_err();
    assert_eq!(error.code(), 3, "{error}");
}

#[test]
fn what_cannot_be_a_source_is_refused() {
    let (folder, empty) = file("a.csv", b"");
    let (_other, odd) = file("a.txt", b"");
    for path in [folder.path(), &empty, &odd, &folder.path().join("none.csv")] {
        let error = FileSource::new(path, &settings(""), 4 << 20).unwrap_err();
        assert_eq!(error.code(), 3, "{error}");
    }
}

#[test]
fn names_are_absolute_and_without_links() {
    let (folder, path) = file("a.ndjson", b"");
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(folder.path(), &link).unwrap();
    let roundabout = link.join("..").join(folder.path().file_name().unwrap()).join(".").join("a.ndjson");
    assert_eq!(open(&roundabout, "").name(), path.canonicalize().unwrap().to_str().unwrap());
}

#[test]
fn a_file_that_is_not_the_same_any_more_is_refused() {
    let (_folder, path) = file("a.ndjson", b"{\"a\": 1}\n{\"a\": 2}\n");
    let (_, _, end) = read_from(&mut open(&path, ""), 0, None, 1 << 20);
    let End { next, anchor, .. } = end.unwrap();
    let change = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        open(&path, "")
    };
    let mut grown = change(b"{\"a\": 1}\n{\"a\": 2}\n{\"a\": 3}\n");
    assert_eq!(read_from(&mut grown, next, Some(anchor), 1 << 20).0, [(18, "{\"a\": 3}".into())]);
    let reason = refusal(&mut change(b"{\"a\": 1}\n{\"a\": 3}\n{\"a\": 3}\n"), next, Some(anchor));
    assert_eq!(reason, "the first 18 bytes are not those that were loaded: the file was changed or replaced");
    let reason = refusal(&mut change(b"{\"a\": 1}\n"), next, Some(anchor));
    assert_eq!(reason, "the file has 9 bytes, and 18 were loaded: it was cut off or replaced");
    std::fs::remove_file(&path).unwrap();
    assert!(refusal(&mut grown, next, Some(anchor)).contains("cannot be read"));
}

/// The last line was loaded without its end. What follows may end it, but not change it.
#[test]
fn a_last_line_without_an_end_may_get_it_and_no_more() {
    for (name, first) in [("a.ndjson", &b"{}\n12"[..]), ("a.csv", b"a\n12")] {
        let (_folder, path) = file(name, first);
        let (records, _, end) = read_from(&mut open(&path, ""), 0, None, 1 << 20);
        assert_eq!(records.last().unwrap().1, "12");
        let End { next, anchor, .. } = end.unwrap();
        for (rest, offset) in [("\n34\n", 1), ("\r\n34\n", 2)] {
            std::fs::write(&path, [first, rest.as_bytes()].concat()).unwrap();
            let (records, _, _) = read_from(&mut open(&path, ""), next, Some(anchor), 1 << 20);
            assert_eq!(records, [(next + offset, "34".into())], "{name}");
        }
        std::fs::write(&path, [first, b"34\n"].concat()).unwrap();
        let reason = refusal(&mut open(&path, ""), next, Some(anchor));
        assert!(reason.contains("the file goes on with it"), "{reason}");
        // While it is known to grow, its last line waits.
        let (records, polled, _) = read_from(&mut open(&path, "growing = true"), 0, None, 1 << 20);
        assert_eq!(records.last().unwrap().1, "1234");
        std::fs::write(&path, first).unwrap();
        let (records, _, _) = read_from(&mut open(&path, "growing = true"), 0, None, 1 << 20);
        assert!(records.iter().all(|(_, line)| line != "12"), "{name} {polled:?}");
    }
}

/// What is polled between a claim and the assignment after it is dropped, so it must not come from where the claim begins.
#[test]
fn a_resumed_file_is_read_from_its_assignment_on() {
    let (_folder, path) = file("a.ndjson", b"1\n2\n3\n");
    let mut source = open(&path, "");
    let poll = |source: &mut FileSource| {
        let mut arena = Arena::default();
        source.poll(&mut arena, 1, Duration::ZERO).unwrap();
        arena.iter().map(|message| message.offset).collect::<Vec<_>>()
    };
    source.resume(0, 0, None).unwrap();
    assert_eq!(poll(&mut source), [0; 0]);
    source.assign(&[(0, 0)]).unwrap();
    assert_eq!(poll(&mut source), [0]);
    source.resume(0, 0, None).unwrap();
    assert_eq!(poll(&mut source), [2]);
    source.assign(&[(0, 0)]).unwrap();
    assert_eq!(poll(&mut source), [0]);
    assert!(source.assign(&[(0, 2)]).is_err(), "nothing has proven that position");
}

/// Nothing vouches for what held no record, so it is not passed for good.
#[test]
fn a_file_without_records_stays_at_its_start() {
    let (_folder, path) = file("a.csv", b"a,b\n\n");
    let (records, polled, _) = read_from(&mut open(&path, ""), 0, None, 1 << 20);
    assert_eq!((records, polled), (vec![], Polled::EndOfPart { part: 0, position: 0 }));
}

#[test]
fn a_damaged_file_gives_what_is_before_the_damage() {
    let content = (0..40_000).map(|number| format!("{{\"a\": {number}}}\n")).collect::<String>();
    let whole = gzip(content.as_bytes());
    let (_folder, path) = file("a.ndjson.gz", &whole[..whole.len() / 2]);
    let (records, polled, end) = read_from(&mut open(&path, ""), 0, None, 1 << 20);
    let Polled::Broken { reason, .. } = polled else { panic!("{polled:?}") };
    assert!(reason.starts_with("the file cannot be read behind byte"), "{reason}");
    assert!(records.len() > 1_000);
    let End { next, anchor, .. } = end.unwrap();
    // Repaired, it goes on.
    std::fs::write(&path, &whole).unwrap();
    let (rest, _, _) = read_from(&mut open(&path, ""), next, Some(anchor), 1 << 20);
    assert_eq!(records.len() + rest.len(), 40_000);
    assert_eq!(rest[0].0, next);
}

#[test]
fn a_record_without_an_end_in_sight_stops_the_file() {
    let (_folder, path) = file("a.csv", format!("a,b\n1,2\n3,\"{}", "x\n".repeat(1 << 20)).as_bytes());
    let (records, polled, _) = read_from(&mut open(&path, ""), 0, None, 1 << 20);
    assert_eq!(records, [(4, "1,2".into())]);
    let Polled::Broken { reason, .. } = polled else { panic!("{polled:?}") };
    assert!(reason.contains("byte 8 is longer than 1048576 bytes"), "{reason}");
    let (_folder, path) = file("a.csv", b"a,b\n1,2\n3,\"4\n5,6\n");
    let (_, polled, _) = read_from(&mut open(&path, ""), 0, None, 1 << 20);
    assert!(matches!(&polled, Polled::Broken { reason, .. } if reason.contains("never closed")), "{polled:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// A file is read to some arena's end, then by another reader from there: every record comes once.
    #[test]
    fn any_position_is_one_to_go_on_from(lengths in prop::collection::vec(0usize..40_000, 1..40), limit in 100_000usize..1_000_000) {
        let records: Vec<String> = lengths.iter().map(|length| format!("{length},\"{}\"", "x\n".repeat(*length))).collect();
        let (_folder, path) = file("a.csv", format!("a,b\n{}\n", records.join("\n")).as_bytes());
        let mut source = open(&path, "");
        let (mut found, mut next, mut anchor) = (Vec::new(), 0, None);
        loop {
            prop_assert_eq!(source.resume(0, next, anchor), Ok(Resume::Proven));
            source.assign(&[(0, next)]).unwrap();
            let mut arena = Arena::default();
            let polled = source.poll(&mut arena, limit, Duration::ZERO).unwrap();
            found.extend(arena.iter().map(|message| String::from_utf8(message.value.unwrap().to_vec()).unwrap()));
            let Some(end) = arena.end() else { break };
            (next, anchor) = (end.next, Some(end.anchor));
            if polled != Polled::Messages {
                break;
            }
        }
        prop_assert_eq!(found, records);
    }
}
