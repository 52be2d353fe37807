use super::*;
use crate::bucket::{HOUR, SECOND};

const EVERY: Duration = Duration::from_secs(3600);

fn at(time: i64) -> Timestamp {
    Timestamp(1000 * DAY + time)
}

/// Nobody has written since then.
fn quiet_since(since: i64) -> Quiet {
    let mut quiet = Quiet::new(at(since));
    quiet.observe(7, false, at(since));
    quiet
}

fn rest(looked_at: i64, until: i64) -> Rest {
    Rest { looked_at: at(looked_at), until: at(until) }
}

#[test]
fn a_rest_holds_until_its_time() {
    let (quiet, rest) = (quiet_since(0), rest(HOUR, 10 * HOUR));
    assert!(rest.holds(&quiet, EVERY, at(HOUR)));
    assert!(rest.holds(&quiet, EVERY, at(10 * HOUR - 1)));
    assert!(!rest.holds(&quiet, EVERY, at(10 * HOUR)));
    assert!(!rest.holds(&quiet, EVERY, at(HOUR - 1)), "the clock was set back");
    assert!(!Rest::default().holds(&quiet, EVERY, at(HOUR)), "it had something to do");
}

#[test]
fn a_rest_holds_for_a_day_at_the_longest() {
    let rest = Rest { until: Timestamp::INFINITY, ..rest(HOUR, 0) };
    assert!(rest.holds(&quiet_since(0), EVERY, at(HOUR + DAY - 1)));
    assert!(!rest.holds(&quiet_since(0), EVERY, at(HOUR + DAY)));
}

#[test]
fn whoever_writes_ends_all_rests() {
    let rest = rest(HOUR, DAY);
    let writes: [fn(&mut Quiet); 4] = [
        |quiet| quiet.observe(8, false, at(2 * HOUR)),
        // It began before the look, and may end after it.
        |quiet| quiet.observe(7, true, at(2 * HOUR)),
        |quiet| quiet.end(at(2 * HOUR)),
        // A launcher that was restarted.
        |quiet| *quiet = Quiet::new(at(2 * HOUR)),
    ];
    for write in writes {
        let mut quiet = quiet_since(0);
        write(&mut quiet);
        assert!(!rest.holds(&quiet, EVERY, at(3 * HOUR)));
        quiet.observe(quiet.next_id, false, at(3 * HOUR));
        assert!(!rest.holds(&quiet, EVERY, at(3 * HOUR)), "also when it is quiet again");
    }
}

#[test]
fn a_look_may_have_missed_what_was_written_just_before() {
    let quiet = quiet_since(HOUR);
    assert!(!rest(HOUR + NEWS - 1, DAY).holds(&quiet, EVERY, at(2 * HOUR)));
    assert!(rest(HOUR + NEWS, DAY).holds(&quiet, EVERY, at(2 * HOUR)));
    let often = Duration::from_secs(1);
    assert!(
        rest(HOUR + SECOND, DAY).holds(&quiet, often, at(2 * HOUR)),
        "the next look is as good for a job that comes often"
    );
}

#[test]
fn a_clock_that_was_set_back_begins_anew() {
    let mut quiet = quiet_since(5 * HOUR);
    quiet.observe(7, false, at(HOUR));
    assert!(rest(2 * HOUR, DAY).holds(&quiet, EVERY, at(3 * HOUR)));
}

#[test]
fn a_run_that_is_left_out_is_due_at_its_next_time_or_when_the_rest_is_over() {
    let quiet = quiet_since(0);
    let due_again = |until, now| rest(HOUR, until).due_again(&quiet, at(2 * HOUR), EVERY, at(now));
    assert_eq!(due_again(DAY, 2 * HOUR), Some(at(3 * HOUR)));
    assert_eq!(due_again(DAY, 5 * HOUR + 1), Some(at(6 * HOUR)), "after an outage of the launcher");
    assert_eq!(due_again(2 * HOUR + SECOND, 2 * HOUR), Some(at(2 * HOUR + SECOND)));
    assert_eq!(due_again(2 * HOUR, 2 * HOUR), None);
}
