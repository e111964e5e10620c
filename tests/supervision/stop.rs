//! The orderly end: every room's `stop`, from the top down, children before their owner, each in its time.

use std::time::Duration;

use portcullis_actors::supervision::{Crash, Policy, RoomState};
use tokio::time::Instant;

use super::support::*;

#[tokio::test(start_paused = true)]
async fn every_room_stops_in_reverse_order_and_nested_children_before_their_owner() {
    let (mut builder, _fatal) = builder();
    let log = Log::default();
    builder.room::<Probe<0>>(Policy::new(4), Plan::new(&log));
    let inner = log.clone();
    let plan = Plan::<1>::new(&log).start(move |_, ctx| {
        let log = inner.clone();
        async move {
            let deeper = log.clone();
            let child = Plan::<2>::new(&log).start(move |_, ctx| {
                let log = deeper.clone();
                async move {
                    let slow = Plan::<3>::new(&log).stop(|| tokio::time::sleep(SECOND));
                    ctx.child::<Probe<3>>(1, slow, 4).await?;
                    Ok(())
                }
            });
            ctx.child::<Probe<2>>(1, child, 4).await?;
            Ok(())
        }
    });
    builder.room::<Probe<1>>(Policy::new(4), plan);
    let top = builder.room::<Probe<4>>(Policy::new(4), Plan::new(&log));
    let tree = builder.start().await.unwrap();
    let window = tree.window();
    tree.stop().await;
    assert_eq!(
        log.all(),
        ["stop e", "stop d", "stop c", "stop b", "stop a"]
    );
    assert!(
        window
            .look()
            .rooms
            .iter()
            .all(|r| r.state == RoomState::Down)
    );
    assert_eq!(say(&top, 1).await, NOT_RUN);
    tree.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_message_sent_during_stop_is_refused_at_once_and_a_queued_one_never_runs() {
    let (mut builder, _fatal) = builder();
    let log = Log::default();
    let plan = Plan::<0>::new(&log).stop(|| tokio::time::sleep(3 * SECOND));
    let room = builder.room::<Probe<0>>(Policy::new(8), plan);
    let tree = builder.start().await.unwrap();
    let work = {
        let room = room.clone();
        tokio::spawn(async move {
            ask(&room, LONG, |_, reply| {
                Box::pin(async move {
                    tokio::time::sleep(SECOND).await;
                    reply.ok(1);
                    Ok(())
                })
            })
            .await
        })
    };
    settle().await;
    let queued = {
        let room = room.clone();
        tokio::spawn(async move {
            ask(&room, LONG, |_, reply| {
                reply.ok(2);
                Box::pin(async { Ok(()) })
            })
            .await
        })
    };
    settle().await;
    let stopping = tokio::spawn(async move { tree.stop().await });
    settle().await;
    let asked = Instant::now();
    assert_eq!(say(&room, 3).await, NOT_RUN);
    assert!(
        room.tell(job(|_| Box::pin(async { Ok(()) })))
            .await
            .is_err()
    );
    assert_eq!(asked.elapsed(), Duration::ZERO);
    assert_eq!(
        work.await.unwrap(),
        Ok(1),
        "the message in work is finished"
    );
    assert_eq!(queued.await.unwrap(), NOT_RUN);
    stopping.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_room_that_does_not_stop_in_time_is_killed_and_the_rest_still_stops() {
    let (mut builder, _fatal) = builder();
    let log = Log::default();
    builder.room::<Probe<0>>(Policy::new(4), Plan::new(&log));
    builder.room::<Probe<1>>(
        Policy::new(4).stop_within(2 * SECOND),
        Plan::new(&log).stop(std::future::pending),
    );
    let busy = builder.room::<Probe<2>>(Policy::new(4).stop_within(SECOND), Plan::new(&log));
    let tree = builder.start().await.unwrap();
    busy.tell(job(|_| Box::pin(std::future::pending())))
        .await
        .unwrap();
    let begun = Instant::now();
    tree.stop().await;
    assert_eq!(log.all(), ["stop a"]);
    assert_eq!(begun.elapsed().as_secs(), 3);
}

// Owner and child had the same five seconds: a child that hung cost its owner its own stop.
#[tokio::test(start_paused = true)]
async fn a_child_that_does_not_stop_leaves_its_owner_time_for_its_own_stop() {
    let (mut builder, _fatal) = builder();
    let log = Log::default();
    let inner = log.clone();
    let plan = Plan::<0>::new(&log).start(move |_, ctx| {
        let hung = Plan::<1>::new(&inner).stop(std::future::pending);
        async move {
            ctx.child::<Probe<1>>(1, hung, 4).await?;
            Ok(())
        }
    });
    builder.room::<Probe<0>>(Policy::new(4), plan);
    let tree = builder.start().await.unwrap();
    tree.stop().await;
    assert_eq!(log.all(), ["stop a"]);
}

// ractor's own wait answers at once for a child that is stopping already.
#[tokio::test(start_paused = true)]
async fn a_child_that_is_stopping_already_is_waited_for() {
    let (mut builder, _fatal) = builder();
    let log = Log::default();
    let inner = log.clone();
    let room = builder.room::<Probe<0>>(Policy::new(4), Plan::new(&log));
    let tree = builder.start().await.unwrap();
    ask(&room, SECOND, move |p, reply| {
        Box::pin(async move {
            let slow = Plan::<1>::new(&inner).stop(|| tokio::time::sleep(SECOND));
            let child = p.ctx.child::<Probe<1>>(1, slow, 4).await?;
            child
                .tell(job(|p| {
                    Box::pin(async move {
                        p.ctx.stop_myself();
                        Ok(())
                    })
                }))
                .await?;
            reply.ok(1);
            Ok(())
        })
    })
    .await
    .unwrap();
    settle().await;
    tree.stop().await;
    assert_eq!(log.all(), ["stop b", "stop a"]);
}

// The start under way went on, and its room was `Up` after everything was `Down`.
#[tokio::test(start_paused = true)]
async fn a_stop_during_a_restart_leaves_nothing_behind() {
    let (mut builder, _fatal) = builder();
    let log = Log::default();
    let seen = log.clone();
    let plan = Plan::<0>::new(&log).start(move |life, _| {
        let log = seen.clone();
        async move {
            if life == 2 {
                let _held = OnDrop(log.clone(), "start given up");
                tokio::time::sleep(2 * SECOND).await;
                log.add("started");
            }
            Ok(())
        }
    });
    let room = builder.room::<Probe<0>>(Policy::new(4), plan.clone());
    let tree = builder.start().await.unwrap();
    assert_eq!(panics(&room).await, MAY_HAVE_RUN);
    let waiting = {
        let room = room.clone();
        tokio::spawn(async move {
            ask(&room, LONG, |_, reply| {
                reply.ok(2);
                Box::pin(async { Ok(()) })
            })
            .await
        })
    };
    eventually("the second life begins", || plan.lives() == 2).await;
    tree.stop().await;
    assert_eq!(log.all(), ["start given up"]);
    assert_eq!(waiting.await.unwrap(), NOT_RUN);
    tokio::time::sleep(LONG).await;
    assert_eq!(say(&room, 1).await, NOT_RUN);
    assert_eq!(plan.lives(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_stop_while_a_restart_waits_its_turn_starts_nothing_more() {
    let (mut builder, _fatal) = builder();
    let plan = Plan::<0>::new(&Log::default()).start(|life, _| async move {
        if life == 1 {
            Ok(())
        } else {
            Err(Crash::new("planned"))
        }
    });
    let room = builder.room::<Probe<0>>(Policy::new(4), plan.clone());
    let tree = builder.start().await.unwrap();
    assert_eq!(panics(&room).await, MAY_HAVE_RUN);
    tokio::time::sleep(Duration::from_millis(60)).await;
    tree.stop().await;
    let lives = plan.lives();
    tokio::time::sleep(LONG).await;
    assert_eq!(plan.lives(), lives);
    assert_eq!(say(&room, 1).await, NOT_RUN);
}

// The state of a stopped actor travels to its supervisor, and its tasks lived on with it.
#[tokio::test(start_paused = true)]
async fn the_tasks_of_a_stopped_room_are_gone_before_the_room_below_stops() {
    let (mut builder, _fatal) = builder();
    let log = Log::default();
    builder.room::<Probe<0>>(Policy::new(4), Plan::new(&log));
    let seen = log.clone();
    let plan = Plan::<1>::new(&log).start(move |_, ctx| {
        let held = OnDrop(seen.clone(), "task gone");
        async move {
            ctx.task("t", 0, async move {
                let _held = held;
                std::future::pending::<()>().await;
            })
            .keep();
            Ok(())
        }
    });
    builder.room::<Probe<1>>(Policy::new(4), plan);
    let tree = builder.start().await.unwrap();
    settle().await;
    tree.stop().await;
    assert_eq!(log.all(), ["stop b", "task gone", "stop a"]);
}
