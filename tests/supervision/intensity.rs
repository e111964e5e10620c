//! Restarts: the first at once, then with back-off; too many and the room stays down, or the process ends.

use std::time::Duration;

use portcullis_actors::supervision::{Crash, Policy, RoomState};
use tokio::time::Instant;

use super::support::*;

async fn back_after(room: &portcullis_actors::supervision::Handle<Msg<0>>) -> Duration {
    let crashed = Instant::now();
    assert_eq!(panics(room).await, MAY_HAVE_RUN);
    assert_eq!(say(room, 1).await, Ok(1));
    crashed.elapsed()
}

fn about(wait: Duration, full_ms: u64) -> bool {
    let full = Duration::from_millis(full_ms);
    // Jitter takes off up to a quarter; the clock has milliseconds.
    wait >= full * 3 / 4 && wait <= full + Duration::from_millis(5)
}

#[tokio::test(start_paused = true)]
async fn the_first_restart_is_at_once_then_50_ms_doubling_and_a_healthy_minute_forgives() {
    let (mut builder, _fatal) = builder();
    let room = builder.room::<Probe<0>>(Policy::new(4), Plan::new(&Log::default()));
    let _tree = builder.start().await.unwrap();
    for _ in 0..2 {
        assert!(back_after(&room).await < Duration::from_millis(5));
        for full in [50, 100, 200, 400] {
            let wait = back_after(&room).await;
            assert!(about(wait, full), "{wait:?} for {full} ms");
        }
        tokio::time::sleep(Duration::from_secs(61)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn jitter_spreads_rooms_that_fell_together() {
    let mut waits = std::collections::BTreeSet::new();
    for _ in 0..10 {
        let (mut builder, _fatal) = builder();
        let room = builder.room::<Probe<0>>(Policy::new(4), Plan::new(&Log::default()));
        let _tree = builder.start().await.unwrap();
        for _ in 0..4 {
            back_after(&room).await;
        }
        waits.insert(back_after(&room).await.as_millis());
    }
    assert!(waits.len() > 3, "{waits:?}");
}

#[tokio::test(start_paused = true)]
async fn over_five_in_thirty_seconds_a_room_stays_down_while_the_rest_serves_and_comes_back() {
    let (mut builder, mut fatal) = builder();
    let log = Log::default();
    let room = builder.room::<Probe<0>>(Policy::new(4), Plan::new(&log));
    let other = builder.room::<Probe<1>>(Policy::new(4).critical(), Plan::new(&log));
    let tree = builder.start().await.unwrap();
    for _ in 0..5 {
        back_after(&room).await;
    }
    assert_eq!(panics(&room).await, MAY_HAVE_RUN);
    settle().await;
    let asked = Instant::now();
    assert_eq!(say(&room, 1).await, NOT_RUN);
    assert_eq!(asked.elapsed(), Duration::ZERO, "refused at once");
    assert_eq!(tree.window().look().rooms[0].state, RoomState::Down);
    assert_eq!(say(&other, 1).await, Ok(1));
    tokio::time::sleep(Duration::from_secs(29)).await;
    assert_eq!(say(&room, 1).await, NOT_RUN);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(say(&room, 1).await, Ok(1));
    assert_eq!(tree.window().look().rooms[0].state, RoomState::Up);
    assert!(fatal.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn six_crashes_spread_over_more_than_the_window_do_not_count_as_over() {
    let (mut builder, _fatal) = builder();
    let room = builder.room::<Probe<0>>(Policy::new(4), Plan::new(&Log::default()));
    let tree = builder.start().await.unwrap();
    for _ in 0..12 {
        assert_eq!(panics(&room).await, MAY_HAVE_RUN);
        tokio::time::sleep(Duration::from_secs(7)).await;
        if tree.window().look().rooms[0].state != RoomState::Up {
            // The back-off has grown to its most: ten seconds.
            tokio::time::sleep(Duration::from_secs(4)).await;
        }
        assert_eq!(say(&room, 1).await, Ok(1));
    }
    assert_eq!(
        tree.window().look().rooms[0].recent_restarts,
        12,
        "the window's own 30 s do not cut it"
    );
}

#[tokio::test(start_paused = true)]
async fn a_room_that_is_down_and_fails_its_retry_stays_down_for_the_next_thirty_seconds() {
    let (mut builder, _fatal) = builder();
    let plan = Plan::<0>::new(&Log::default()).start(|life, _| async move {
        if life > 8 {
            Ok(())
        } else {
            Err(Crash::new("not yet"))
        }
    });
    let room = builder.room::<Probe<0>>(Policy::new(4), plan.clone());
    let tree = builder.start().await.unwrap();
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(plan.lives(), 6);
    assert_eq!(say(&room, 1).await, NOT_RUN);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(
        (plan.lives(), tree.window().look().rooms[0].state),
        (7, RoomState::Down)
    );
    tokio::time::sleep(Duration::from_mins(1)).await;
    assert_eq!(say(&room, 1).await, Ok(1));
}

#[tokio::test(start_paused = true)]
async fn a_critical_room_over_its_intensity_is_fatal() {
    let (mut builder, mut fatal) = builder();
    let room = builder.room::<Probe<0>>(Policy::new(4).critical(), Plan::new(&Log::default()));
    let _tree = builder.start().await.unwrap();
    for _ in 0..5 {
        back_after(&room).await;
    }
    assert!(fatal.try_recv().is_err());
    assert_eq!(panics(&room).await, MAY_HAVE_RUN);
    assert_eq!(
        fatal.recv().await.unwrap(),
        "a: over its restart intensity: planned"
    );
}
