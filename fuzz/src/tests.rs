use crate::{Target, fuzz};
use clap::ValueEnum;

#[test]
fn inputs_lead_to_no_panic() {
    let seed = rand::random();
    for target in Target::value_variants() {
        println!("target {target:?}, seed {seed}");
        let inputs = if cfg!(miri) { 100 } else { 20_000 };
        let done = fuzz(*target, seed, inputs, |_| {});
        let summary = done.unwrap_or_else(|finding| {
            panic!("{target:?}: input {}, other {}", hex::encode(finding.input), hex::encode(finding.other))
        });
        assert!(
            summary.accepted > inputs / 50,
            "only {} of {inputs} inputs for {target:?} were values",
            summary.accepted
        );
    }
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no pages")]
fn an_input_ends_at_the_fence() {
    let mut pages = crate::Fenced::new(10).unwrap();
    let place = pages.put(b"abc").as_ptr_range();
    assert_eq!(place.end.addr() % rustix::param::page_size(), 0);
    assert_eq!(pages.put(b"abcdef"), b"abcdef");
}
