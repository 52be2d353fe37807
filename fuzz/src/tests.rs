use crate::{Corpus, Fenced, Target};
use clap::ValueEnum;

#[test]
fn inputs_lead_to_no_panic() {
    let seed = rand::random();
    for target in Target::value_variants() {
        println!("target {target:?}, seed {seed}");
        let mut corpus = Corpus::new(*target, seed);
        let mut pages = Fenced::new(1 << 17).unwrap();
        let (mut accepted, inputs) = (0, if cfg!(miri) { 100 } else { 20_000 });
        for _ in 0..inputs {
            let (input, other) = corpus.draw();
            let input = pages.put(input);
            accepted += u32::from(target.accepts(input));
            let outcome = target.run(input, other);
            corpus.note(outcome);
        }
        assert!(accepted > inputs / 20, "only {accepted} of {inputs} inputs for {target:?} were values");
    }
}

#[test]
fn an_input_ends_at_the_fence() {
    let mut pages = Fenced::new(10).unwrap();
    let place = pages.put(b"abc").as_ptr_range();
    assert_eq!(place.end.addr() % rustix::param::page_size(), 0);
    assert_eq!(pages.put(b"abcdef"), b"abcdef");
}
