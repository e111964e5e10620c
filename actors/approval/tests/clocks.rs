//! Questions end by the earlier of two clocks: the one that people set, and the machine's own.

use super::*;
use portcullis_core::time::BootMoment;
use std::sync::atomic::{AtomicU64, Ordering};

/// Two clocks that a test sets: a machine that sleeps, or whose wall clock somebody sets, looks so to the room.
#[derive(Clone)]
struct Two {
    wall: Arc<AtomicU64>,
    boot: Arc<AtomicU64>,
}

impl Two {
    fn new() -> Self {
        Self {
            wall: Arc::new(AtomicU64::new(START.0)),
            boot: Arc::new(AtomicU64::new(50)),
        }
    }

    fn clock(&self, boot: &'static str) -> Clock {
        let (wall, since) = (self.wall.clone(), self.boot.clone());
        Clock::of(move || Millis(wall.load(Ordering::SeqCst))).with_boot(move || {
            Some(BootMoment {
                boot: boot.to_owned(),
                ms: since.load(Ordering::SeqCst),
            })
        })
    }

    fn set(&self, wall: u64, boot: u64) {
        self.wall.store(START.0 + wall, Ordering::SeqCst);
        self.boot.store(50 + boot, Ordering::SeqCst);
    }
}

const MINUTE: u64 = 60_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_wall_clock_set_back_prolongs_nothing_and_a_sleep_counts() {
    let folder = tempfile::tempdir().unwrap();
    let two = Two::new();
    let first = house(folder.path(), 1, two.clock("one")).await;
    let asked = plan(&["uname"]);
    let id = first.pending(asked.clone()).await;
    let answered = first.pending(asked.clone()).await;
    let kept = first.pending(asked.clone()).await;
    two.set(20 * MINUTE, 20 * MINUTE);
    first.say(&answered, Word::AllowOnce).await.unwrap();
    // Set back by a quarter of an hour; then the machine sleeps: no timer of the runtime goes on meanwhile.
    two.set(15 * MINUTE, 30 * MINUTE);
    assert_eq!(
        first.say(&id, Word::AllowOnce).await,
        Err("APPROVAL_EXPIRED")
    );
    let over = first.approval.get(id.as_str()).await.unwrap();
    assert_eq!(
        (over.status, over.resolution.unwrap().why.as_str()),
        (Status::Expired, "timeout")
    );
    // The answer has its own half hour, from when it was given.
    assert_eq!(first.status(&answered).await, Status::Allowed);
    first.end().await;
    // Also over a restart of the gateway alone, whose wall clock says ten minutes less than it is.
    two.set(40 * MINUTE, 50 * MINUTE);
    let second = house(folder.path(), 2, two.clock("one")).await;
    assert_eq!(
        second.consume(&answered, &asked).await,
        Err("APPROVAL_EXPIRED")
    );
    assert_eq!(second.status(&kept).await, Status::Expired);
    second.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_ends_by_the_machines_own_clock_and_after_its_restart_by_the_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let (two, month) = (Two::new(), 30 * 24 * 60 * MINUTE);
    let first = house(folder.path(), 1, two.clock("one")).await;
    let asked = plan(&["uname"]);
    let id = first.pending(asked.clone()).await;
    first.say(&id, Word::AllowAlways).await.unwrap();
    two.set(MINUTE, month - 1);
    assert_eq!(first.approval.grants().await.unwrap().len(), 1);
    first.end().await;
    // Another start of the machine counts from nothing: what is left by the wall clock is what is left.
    two.set(2 * MINUTE, 10);
    let second = house(folder.path(), 2, two.clock("two")).await;
    assert_eq!(second.approval.grants().await.unwrap().len(), 1);
    two.set(2 * MINUTE, month);
    assert!(second.approval.grants().await.unwrap().is_empty());
    assert!(matches!(
        second.ask(asked, None).await,
        Ok(Decision::Pending { .. })
    ));
    second.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_whose_clock_lies_before_the_log_ends_what_is_pending() {
    let folder = tempfile::tempdir().unwrap();
    // The log's records have the real clock; the rows have one of long ago, and say nothing against the second start.
    let long_ago = |ms: u64| Clock::of(move || Millis(1_000_000 + ms));
    let first = house(folder.path(), 1, long_ago(0)).await;
    let id = first.pending(plan(&["uname"])).await;
    first.end().await;
    let second = house(folder.path(), 2, long_ago(1)).await;
    let record = second.approval.get(id.as_str()).await.unwrap();
    let shown = record_json(&record);
    assert_eq!(
        (shown["status"].as_str(), shown["terminalReason"].as_str()),
        (Some("expired"), Some("expired_clock"))
    );
    assert_eq!(record.resolved_json()["reason"], "expired_clock");
    let told = portcullis_core::approval::snapshot_json(&record);
    assert_eq!(
        (
            told["reason"].as_str(),
            told["terminalReason"].as_str(),
            told["status"].as_str()
        ),
        (Some("timeout"), Some("expired_clock"), Some("expired"))
    );
    second.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_is_no_over_a_restart_and_under_a_clock_set_back() {
    for (later, why) in [
        (Millis(START.0 + 1_800_000), "timeout"),
        (Millis(START.0 - 600_000), "expired_clock"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let first = house(folder.path(), 1, Clock::of_runtime(START)).await;
        let asked = plan(&["uname"]);
        let pending = first.pending(asked.clone()).await;
        let allowed = first.pending(asked.clone()).await;
        first.say(&allowed, Word::AllowOnce).await.unwrap();
        first.end().await;
        // A little more than the time-out, as the answer came a little after the question.
        let later = if why == "timeout" {
            later.plus(60_000)
        } else {
            later
        };
        let second = house(folder.path(), 2, Clock::of_runtime(later)).await;
        for id in [&pending, &allowed] {
            let record = second.approval.get(id.as_str()).await.unwrap();
            assert_eq!(
                (record.status, record.resolution.unwrap().why.as_str()),
                (Status::Expired, why)
            );
        }
        assert_eq!(
            second.consume(&allowed, &asked).await,
            Err("APPROVAL_EXPIRED")
        );
        assert_eq!(
            second.say(&pending, Word::AllowOnce).await,
            Err("APPROVAL_EXPIRED")
        );
        assert!(second.approval.list().await.unwrap().is_empty());
        second.end().await;
    }
}
