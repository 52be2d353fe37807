//! When jobs run: examples first, then properties. proptest prints the seed of a failure and keeps it in `proptest-regressions/`.

use super::*;
use proptest::prelude::*;

const SECOND: i64 = 1_000_000;
const RETRY: Retry = Retry { min: Duration::from_secs(5), max: Duration::from_secs(900) };

fn group(database: u32) -> Group {
    Group { database, owner: 10, is_patient: false }
}

fn waiting(database: u32, due: i64) -> Job {
    Job { group: group(database), due: Timestamp(due), state: State::Waiting }
}

fn running(database: u32) -> Job {
    Job { group: group(database), due: Timestamp(0), state: State::Running }
}

fn starts(jobs: &[Job], free_slots: usize, now: i64) -> Vec<usize> {
    due(jobs, free_slots, 1, Timestamp(now)).into_iter().map(|start| start.0).collect()
}

#[test]
fn a_job_starts_when_it_is_due_and_not_before() {
    assert!(starts(&[waiting(1, 10)], 4, 9).is_empty());
    assert_eq!(starts(&[waiting(1, 10)], 4, 10), [0]);
}

#[test]
fn one_worker_is_started_for_all_due_jobs_of_a_group() {
    assert_eq!(starts(&[waiting(1, 9), waiting(1, 8), waiting(2, 10)], 4, 10), [1, 2]);
}

#[test]
fn a_second_worker_comes_when_the_first_is_busy_for_too_long() {
    let jobs = [running(1), waiting(1, 0)];
    assert!(starts(&jobs, 4, 99_999).is_empty());
    assert_eq!(next_look(&jobs, 1, Timestamp(50_000)), Some(Timestamp(100_000)));
    assert_eq!(starts(&jobs, 4, 100_000), [1]);
}

#[test]
fn the_last_slot_is_kept_for_a_group_without_a_worker() {
    let jobs = [running(1), waiting(1, 0), waiting(2, 5 * SECOND)];
    assert!(starts(&jobs, 1, 4 * SECOND).is_empty());
    assert_eq!(starts(&jobs, 1, 5 * SECOND), [2]);
    assert_eq!(starts(&jobs, 3, 5 * SECOND), [2, 1]);
}

#[test]
fn held_jobs_do_not_run() {
    let held = Job { state: State::Held, ..waiting(1, 0) };
    assert!(starts(&[held], 4, SECOND).is_empty());
    assert_eq!(next_look(&[held], 1, Timestamp(0)), None);
}

#[test]
fn failures_wait_twice_as_long_each_time_up_to_the_maximum() {
    let delays: Vec<u64> = (1..=12).map(|failures| RETRY.delay(failures, 0.5).as_secs()).collect();
    assert_eq!(delays, [5, 10, 20, 40, 80, 160, 320, 640, 900, 900, 900, 900]);
    assert_eq!(RETRY.delay(u32::MAX, 1.0), RETRY.longest());
}

#[test]
fn a_success_clears_all_troubles() {
    let troubles = Troubles { failures: 7, waits: 3, crashes: 2 };
    let every = Duration::from_secs(5);
    let (after, next) = troubles.after(Outcome::Done, Timestamp(0), every, RETRY, Timestamp(SECOND), 0.5);
    assert_eq!((after, next), (Troubles::default(), Timestamp(5 * SECOND)));
}

#[test]
fn waits_for_locks_are_no_failures_until_there_are_too_many() {
    let mut troubles = Troubles::default();
    for _ in 1..WAITS_TO_FAIL {
        let outcome = Outcome::of_error("55P03");
        (troubles, _) = troubles.after(outcome, Timestamp(0), RETRY.min, RETRY, Timestamp(0), 0.0);
        assert_eq!(troubles.failures, 0);
    }
    (troubles, _) = troubles.after(Outcome::Waited, Timestamp(0), RETRY.min, RETRY, Timestamp(0), 0.0);
    assert_eq!(troubles, Troubles { failures: 1, waits: 0, crashes: 0 });
}

#[test]
fn three_crashes_hold_a_job_and_failures_never_do() {
    let mut troubles = Troubles::default();
    for _ in 0..1_000 {
        (troubles, _) = troubles.after(Outcome::Failed, Timestamp(0), RETRY.min, RETRY, Timestamp(0), 0.0);
    }
    assert!(!troubles.hold());
    for crash in 1..=CRASHES_TO_HOLD {
        (troubles, _) = troubles.after(Outcome::Crashed, Timestamp(0), RETRY.min, RETRY, Timestamp(0), 0.0);
        assert_eq!(troubles.hold(), crash == CRASHES_TO_HOLD);
    }
}

#[test]
fn a_clock_set_back_by_a_day_does_not_stop_a_job() {
    let every = Duration::from_secs(5);
    let now = Timestamp(0);
    assert_eq!(replan(Timestamp(86_400 * SECOND), RETRY.longest(), every, now), later(now, every));
    let backing_off = later(now, RETRY.delay(99, 0.9));
    assert_eq!(replan(backing_off, RETRY.longest(), every, now), backing_off);
}

fn any_job() -> impl Strategy<Value = Job> {
    (0..4u32, 0..3u32, -400_000..400_000i64, 0..3u8).prop_map(|(database, owner, due, state)| Job {
        group: Group { database, owner, is_patient: false },
        due: Timestamp(due),
        state: [State::Waiting, State::Running, State::Held][state as usize],
    })
}

proptest! {
    #[test]
    fn only_due_waiting_jobs_start_each_once_and_never_more_than_the_free_slots(
        jobs in prop::collection::vec(any_job(), 0..40), free in 0..8usize,
    ) {
        let started = due(&jobs, free, 1, Timestamp(0));
        prop_assert!(started.len() <= free);
        for (position, Start(at)) in started.iter().enumerate() {
            prop_assert!(jobs[*at].state == State::Waiting && jobs[*at].due <= Timestamp(0));
            prop_assert!(!started[..position].contains(&Start(*at)));
        }
    }

    #[test]
    fn every_group_with_due_jobs_gets_a_worker_if_slots_last(jobs in prop::collection::vec(any_job(), 0..40)) {
        let started = due(&jobs, jobs.len() + 1, 1, Timestamp(0));
        for job in jobs.iter().filter(|job| job.state == State::Waiting && job.due <= Timestamp(0)) {
            let busy = jobs.iter().any(|other| other.group == job.group && other.state == State::Running);
            prop_assert!(busy || started.iter().any(|start| jobs[start.0].group == job.group));
        }
    }

    /// A launcher that sleeps until `next_look` and then starts what is due leaves nothing behind.
    #[test]
    fn nothing_is_due_before_the_next_look(jobs in prop::collection::vec(any_job(), 0..40), ahead in 0..400_000i64) {
        let quiet = due(&jobs, usize::MAX, 1, Timestamp(0)).is_empty();
        if let (true, Some(look)) = (quiet, next_look(&jobs, 1, Timestamp(0))) {
            let before = Timestamp(ahead.min(look.0 - 1));
            prop_assert!(due(&jobs, usize::MAX, 1, before).is_empty());
            prop_assert!(!due(&jobs, usize::MAX, 1, look).is_empty());
        }
    }

    #[test]
    fn the_next_run_is_the_first_point_of_the_grid_after_now(
        scheduled in -1_000_000..1_000_000i64, every in 1..100_000u64, now in -1_000_000..1_000_000i64,
    ) {
        let next = next_run(Timestamp(scheduled), Duration::from_micros(every), Timestamp(now));
        prop_assert_eq!((next.0 - scheduled) % every as i64, 0);
        prop_assert!(next.0 > now || next.0 == scheduled + every as i64);
        prop_assert!(next.0 - every as i64 <= now.max(scheduled));
    }

    #[test]
    fn no_time_overflows(scheduled: i64, every: u64, now: i64, failures: u32, random in 0.0..1.0f64) {
        next_run(Timestamp(scheduled), Duration::from_micros(every), Timestamp(now));
        replan(Timestamp(scheduled), RETRY.longest(), Duration::from_micros(every), Timestamp(now));
        prop_assert!(RETRY.delay(failures, random) <= RETRY.longest());
        prop_assert!(RETRY.delay(failures, random) >= RETRY.min.mul_f64(0.85));
    }
}

#[test]
fn patient_jobs_have_slots_of_their_own() {
    let patient = |due, state| Job { group: Group { is_patient: true, ..group(1) }, due: Timestamp(due), state };
    let quick = |due| Job { group: group(1), due: Timestamp(due), state: State::Waiting };
    // A worker of the quick jobs does not run patient ones, and one patient worker is enough.
    let jobs = [patient(0, State::Waiting), patient(1, State::Waiting), quick(2)];
    let start =
        |patient_slots| due(&jobs, 4, patient_slots, Timestamp(5)).into_iter().map(|start| start.0).collect::<Vec<_>>();
    assert_eq!(start(1), [0, 2]);
    assert_eq!(start(0), [2]);
    // While it runs, the other waits for its end and for no time.
    let jobs = [patient(0, State::Running), patient(1, State::Waiting)];
    assert!(due(&jobs, 4, 1, Timestamp(5)).is_empty());
    assert_eq!(next_look(&jobs, 1, Timestamp(5)), None);
    assert_eq!(next_look(&jobs, 2, Timestamp(5)), Some(Timestamp(1).plus(PATIENCE.as_micros() as i64)));
}

#[test]
fn a_patient_job_that_waits_for_somebody_keeps_no_other_from_running() {
    let patient =
        |database, due, state| Job { group: Group { is_patient: true, ..group(database) }, due: Timestamp(due), state };
    let overdue = -(PATIENCE.as_micros() as i64);
    let jobs = [patient(1, 0, State::Parked), patient(1, overdue, State::Waiting), patient(2, overdue, State::Waiting)];
    // Groups without a worker first; the parked one is one.
    assert_eq!(starts(&jobs, 3, 0), [2]);
    assert_eq!(starts(&jobs[..2], 3, 0), [1]);
    assert!(starts(&jobs[..2], 1, 0).is_empty(), "the last slot is kept for the others");
    assert_eq!(next_look(&jobs[..2], 1, Timestamp(-1)), Some(Timestamp(0)));
    let full = [patient(1, 0, State::Parked), patient(3, 0, State::Running), patient(2, overdue, State::Waiting)];
    assert!(starts(&full, 3, 0).is_empty());
    assert_eq!(next_look(&full, 1, Timestamp(0)), None);
}

#[test]
fn parked_workers_leave_a_slot_for_the_others() {
    assert_eq!(waiting_places(4, 1), 2);
    assert_eq!(waiting_places(2, 1), 0);
    assert_eq!(waiting_places(0, 1), 0);
}

#[test]
fn verdicts_follow_troubles() {
    let judge = |failures, waits, crashes| {
        let troubles = Troubles { failures, waits, crashes };
        (troubles.verdict().name(), troubles.reason())
    };
    assert_eq!(judge(0, 0, 0), ("ok", "scheduled"));
    assert_eq!(judge(0, 1, 0), ("warning", "locked_out"));
    assert_eq!(judge(1, 3, 1), ("warning", "failing"));
    assert_eq!(judge(10, 0, 0), ("critical", "failing"));
    assert_eq!(judge(3, 0, 3), ("critical", "crashed"));
}

#[test]
fn the_log_gets_six_lines_an_hour() {
    let minute = |number: i64| Timestamp(number * 60_000_000);
    let mut said = Vec::new();
    for now in (0..600).map(minute) {
        if may_say_again(said.last().copied(), now) {
            said.push(now);
        }
    }
    assert_eq!(said.len(), 60);
    assert!(may_say_again(Some(minute(60)), minute(0)), "the clock was set back");

    // With the shortest and the longest usual wait between failures: those of the first hour, and then of a day.
    let lines = |hours: u64| {
        let (mut now, mut failures, mut lines) = (Duration::ZERO, 0, 0);
        while now < Duration::from_secs(hours * 3600) {
            failures += 1;
            lines += usize::from(is_worth_a_line(failures));
            now += RETRY.delay(failures, 0.0);
        }
        lines
    };
    assert!((1..=6).contains(&lines(1)), "{}", lines(1));
    assert!((4..=12).contains(&lines(24)), "{}", lines(24));
    assert!(!is_worth_a_line(0));
}
