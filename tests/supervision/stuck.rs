//! Health: a loop that does not turn is killed, one that waits or is merely slow is not.

use std::time::Duration;

use portcullis_actors::supervision::{Policy, RoomState};
use tokio::time::Instant;

use super::support::*;

#[tokio::test(start_paused = true)]
async fn a_loop_that_hangs_at_an_await_is_killed_by_two_missed_pings() {
    let (mut builder, mut fatal) = builder();
    let plan = Plan::<0>::new(&Log::default());
    let room = builder.room::<Probe<0>>(Policy::new(4), plan.clone());
    let _tree = builder.start().await.unwrap();
    let begun = Instant::now();
    assert_eq!(hangs(&room, LONG).await, MAY_HAVE_RUN);
    let took = begun.elapsed().as_secs();
    assert!((20..=31).contains(&took), "{took} s");
    assert_eq!(say(&room, 1).await, Ok(1));
    assert_eq!(plan.lives(), 2);
    assert!(fatal.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_loop_that_says_what_it_waits_on_is_shown_as_waiting_and_never_killed() {
    let (mut builder, _fatal) = builder();
    let plan = Plan::<0>::new(&Log::default());
    let room = builder.room::<Probe<0>>(Policy::new(64), plan.clone());
    let tree = builder.start().await.unwrap();
    let waiting = {
        let room = room.clone();
        tokio::spawn(async move {
            ask(&room, LONG, |p, reply| {
                Box::pin(async move {
                    let _guard = p.ctx.waiting();
                    tokio::time::sleep(Duration::from_mins(5)).await;
                    reply.ok(1);
                    Ok(())
                })
            })
            .await
        })
    };
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(tree.window().look().rooms[0].state, RoomState::Waiting);
    assert_eq!(waiting.await.unwrap(), Ok(1));
    assert_eq!(
        (plan.lives(), tree.window().look().rooms[0].state),
        (1, RoomState::Up)
    );
}

#[tokio::test(start_paused = true)]
async fn a_slow_room_that_turns_is_not_killed() {
    let (mut builder, _fatal) = builder();
    let plan = Plan::<0>::new(&Log::default());
    let room = builder.room::<Probe<0>>(Policy::new(64), plan.clone());
    let _tree = builder.start().await.unwrap();
    for _ in 0..30 {
        room.tell(job(|_| {
            Box::pin(async {
                tokio::time::sleep(Duration::from_secs(8)).await;
                Ok(())
            })
        }))
        .await
        .unwrap();
    }
    assert_eq!(
        ask(&room, LONG, |_, reply| Box::pin(async move {
            reply.ok(1);
            Ok(())
        }))
        .await,
        Ok(1)
    );
    assert_eq!(plan.lives(), 1);
}

// The guards were counted per room: one left with a thread shielded every later life.
#[tokio::test(start_paused = true)]
async fn a_wait_guard_left_over_from_the_last_life_does_not_shield_this_one() {
    let (mut builder, _fatal) = builder();
    let room = builder.room::<Probe<0>>(Policy::new(4), Plan::new(&Log::default()));
    let _tree = builder.start().await.unwrap();
    let (tx, rx) = std::sync::mpsc::channel();
    room.tell(job(move |p| {
        tx.send(p.ctx.waiting()).unwrap();
        Box::pin(async { panic!("planned") })
    }))
    .await
    .unwrap();
    let _left = {
        settle().await;
        rx.recv().unwrap()
    };
    let begun = Instant::now();
    assert_eq!(hangs(&room, LONG).await, MAY_HAVE_RUN);
    assert!(begun.elapsed() < Duration::from_secs(40));
}
