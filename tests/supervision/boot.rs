//! Start: bottom-up; a critical room that fails ends the boot in order, another is tried again.

use std::time::Duration;

use portcullis_actors::supervision::{Crash, Policy, RoomState};

use super::support::*;

#[tokio::test(start_paused = true)]
async fn a_critical_room_that_does_not_start_is_a_boot_error_and_what_runs_below_is_stopped_in_order()
 {
    let (mut builder, _fatal) = builder();
    let log = Log::default();
    let below = builder.room::<Probe<0>>(Policy::new(4), Plan::new(&log));
    builder.room::<Probe<1>>(Policy::new(4), Plan::new(&log));
    let bad = Plan::<2>::new(&log).start(|_, _| async { Err(Crash::new("no key")) });
    builder.room::<Probe<2>>(Policy::new(4).critical(), bad);
    let never = Plan::<3>::new(&log);
    builder.room::<Probe<3>>(Policy::new(4), never.clone());
    let error = builder.start().await.err().unwrap();
    assert_eq!((error.room, error.why.as_str()), ("c", "no key"));
    assert_eq!(log.all(), ["stop b", "stop a"]);
    assert_eq!(never.lives(), 0);
    assert_eq!(say(&below, 1).await, NOT_RUN);
}

#[tokio::test(start_paused = true)]
async fn a_start_that_panics_is_a_boot_error_too() {
    let (mut builder, _fatal) = builder();
    let plan = Plan::<0>::new(&Log::default()).start(|_, _| async { panic!("planned") });
    builder.room::<Probe<0>>(Policy::new(4).critical(), plan);
    assert_eq!(builder.start().await.err().unwrap().why, "planned");
}

#[tokio::test(start_paused = true)]
async fn another_room_that_does_not_start_is_tried_again_while_the_rest_comes_up() {
    let (mut builder, mut fatal) = builder();
    let log = Log::default();
    let plan = Plan::<0>::new(&log).start(|life, _| async move {
        if life > 3 {
            Ok(())
        } else {
            Err(Crash::new("not yet"))
        }
    });
    let room = builder.room::<Probe<0>>(Policy::new(4), plan.clone());
    let upper = builder.room::<Probe<1>>(Policy::new(4), Plan::new(&log));
    let tree = builder.start().await.unwrap();
    assert_eq!(say(&upper, 1).await, Ok(1));
    // A caller waits for the room, no longer than its own deadline.
    assert_eq!(say(&room, 2).await, Ok(2));
    assert_eq!(plan.lives(), 4);
    assert!(tree.window().look().all_up());
    assert!(fatal.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_start_that_hangs_is_given_up_after_its_time() {
    let (mut builder, _fatal) = builder();
    let log = Log::default();
    let seen = log.clone();
    let plan = Plan::<0>::new(&log).start(move |life, ctx| {
        let held = OnDrop(seen.clone(), "given up");
        async move {
            if life == 1 {
                ctx.task("in start", 0, async move {
                    let _held = held;
                    std::future::pending::<()>().await;
                })
                .keep();
                std::future::pending::<()>().await;
            }
            Ok(())
        }
    });
    let room = builder.room::<Probe<0>>(Policy::new(4).start_within(3 * SECOND), plan.clone());
    let begun = tokio::time::Instant::now();
    let tree = builder.start().await.unwrap();
    assert_eq!(begun.elapsed().as_secs(), 3);
    assert_eq!(say(&room, 1).await, Ok(1));
    assert_eq!(
        log.count("given up"),
        2,
        "the first life's task ended, the second started none"
    );
    let why = tree.window().look().rooms[0].last_crash.clone().unwrap();
    assert_eq!(why, "did not start: did not start within 3s");
}

#[tokio::test(start_paused = true)]
async fn a_room_that_ends_right_after_its_start_is_seen_however_the_two_news_race() {
    for _ in 0..20 {
        let (mut builder, _fatal) = builder();
        let plan = Plan::<0>::new(&Log::default()).start(|life, ctx| async move {
            if life <= 3 {
                ctx.stop_myself();
            }
            Ok(())
        });
        let room = builder.room::<Probe<0>>(Policy::new(4), plan.clone());
        let tree = builder.start().await.unwrap();
        tokio::time::sleep(SECOND).await;
        assert_eq!(say(&room, 1).await, Ok(1));
        assert_eq!(
            (plan.lives(), tree.window().look().rooms[0].state),
            (4, RoomState::Up)
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_room_that_ends_right_after_its_start_is_seen_on_many_threads() {
    for _ in 0..300 {
        let (mut builder, _fatal) = builder();
        let plan = Plan::<0>::new(&Log::default()).start(|life, ctx| async move {
            if life == 1 {
                ctx.stop_myself();
            }
            Ok(())
        });
        let room = builder.room::<Probe<0>>(Policy::new(4), plan.clone());
        let tree = builder.start().await.unwrap();
        eventually("the second life", || plan.lives() == 2).await;
        assert_eq!(say_again(&room, 1).await, Ok(1));
        tokio::time::timeout(Duration::from_secs(5), tree.stop())
            .await
            .unwrap();
    }
}
