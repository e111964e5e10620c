//! The caller's side: what was told "did not run" never runs, and nobody waits longer than it said.

use std::time::Duration;

use portcullis_actors::supervision::{CallError, Crash, Policy};
use tokio::time::Instant;

use super::support::*;

#[tokio::test(start_paused = true)]
async fn a_caller_dropped_mid_call_withdraws_a_message_not_yet_started() {
    let (mut builder, _fatal) = builder();
    let log = Log::default();
    let room = builder.room::<Probe<0>>(Policy::new(4), Plan::new(&log));
    let tree = builder.start().await.unwrap();
    room.tell(job(|_| {
        Box::pin(async {
            tokio::time::sleep(SECOND).await;
            Ok(())
        })
    }))
    .await
    .unwrap();
    let seen = log.clone();
    let gone = {
        let room = room.clone();
        tokio::spawn(async move {
            ask(&room, LONG, move |_, reply| {
                seen.add("ran");
                reply.ok(1);
                Box::pin(async { Ok(()) })
            })
            .await
        })
    };
    settle().await;
    gone.abort();
    tokio::time::sleep(2 * SECOND).await;
    assert_eq!(log.count("ran"), 0);
    assert_eq!(depth(&tree, 0), 0);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_gives_up_while_its_message_runs_is_told_that_it_may_have_run() {
    let (mut builder, _fatal) = builder();
    let room = builder.room::<Probe<0>>(Policy::new(4), Plan::new(&Log::default()));
    let _tree = builder.start().await.unwrap();
    let said = ask(&room, SECOND, |_, reply| {
        Box::pin(async move {
            tokio::time::sleep(2 * SECOND).await;
            assert!(!reply.is_wanted());
            reply.ok(1);
            Ok(())
        })
    })
    .await;
    assert_eq!(said, Err(CallError::Deadline { may_have_run: true }));
    assert_eq!(
        ask(&room, LONG, |_, reply| {
            reply.ok(2);
            Box::pin(async { Ok(()) })
        })
        .await,
        Ok(2)
    );
}

#[tokio::test(start_paused = true)]
async fn callers_of_a_room_that_is_being_restarted_wait_for_it_but_not_beyond_their_deadline() {
    let (mut builder, _fatal) = builder();
    let plan = Plan::<0>::new(&Log::default()).start(|life, _| async move {
        if life == 2 {
            tokio::time::sleep(3 * SECOND).await;
        }
        Ok(())
    });
    let room = builder.room::<Probe<0>>(Policy::new(64), plan);
    let tree = builder.start().await.unwrap();
    let _ = panics(&room).await;
    let begun = Instant::now();
    assert_eq!(
        say(&room, 1).await,
        Err(CallError::Deadline {
            may_have_run: false
        })
    );
    assert_eq!(begun.elapsed().as_secs(), 1);
    assert!(
        room.tell(job(|_| Box::pin(async { Ok(()) })))
            .await
            .is_err(),
        "a tell does not wait"
    );
    assert_eq!(
        ask(&room, LONG, |_, reply| {
            reply.ok(2);
            Box::pin(async { Ok(()) })
        })
        .await,
        Ok(2)
    );
    assert_eq!(begun.elapsed().as_secs(), 3);
    assert_eq!(depth(&tree, 0), 0);
}

#[tokio::test(start_paused = true)]
async fn a_reply_that_is_dropped_unanswered_is_an_error_at_once() {
    let (mut builder, _fatal) = builder();
    let room = builder.room::<Probe<0>>(Policy::new(4), Plan::new(&Log::default()));
    let _tree = builder.start().await.unwrap();
    assert_eq!(
        ask(&room, LONG, |_, _reply| Box::pin(async { Ok(()) })).await,
        MAY_HAVE_RUN
    );
}

// `now + within` beyond the clock's range was a panic in the caller.
#[tokio::test(start_paused = true)]
async fn the_longest_and_the_shortest_deadline_are_deadlines() {
    let (mut builder, _fatal) = builder();
    let room = builder.room::<Probe<0>>(Policy::new(4), Plan::new(&Log::default()));
    let _tree = builder.start().await.unwrap();
    assert_eq!(
        ask(&room, Duration::MAX, |_, reply| {
            reply.ok(1);
            Box::pin(async { Ok(()) })
        })
        .await,
        Ok(1)
    );
    let none = ask(&room, Duration::ZERO, |_, reply| {
        reply.ok(1);
        Box::pin(async { Ok(()) })
    })
    .await;
    assert_eq!(
        none,
        Err(CallError::Deadline {
            may_have_run: false
        })
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_caller_is_lost_between_a_crash_and_the_next_life() {
    let (mut builder, _fatal) = builder();
    let room = builder.room::<Probe<0>>(Policy::new(256), Plan::new(&Log::default()));
    let tree = builder.start().await.unwrap();
    let callers: Vec<_> = (0..16)
        .map(|_| {
            let room = room.clone();
            tokio::spawn(async move {
                for n in 0..500 {
                    let said = room
                        .call(Duration::from_secs(20), |reply| {
                            job(move |_| {
                                reply.ok(n);
                                Box::pin(async { Ok::<(), Crash>(()) })
                            })
                        })
                        .await;
                    let said: Answer = said;
                    assert!(said == Ok(n) || said == NOT_RUN, "{said:?}");
                }
            })
        })
        .collect();
    for _ in 0..5 {
        let _ = panics(&room).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for caller in callers {
        caller.await.unwrap();
    }
    assert_eq!(depth(&tree, 0), 0);
}

// The answer went out before the permit came back: a caller one after the other was `Overloaded` now and then.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_has_an_answer_finds_its_place_in_the_gate_free() {
    let (mut builder, _fatal) = builder();
    let room = builder.room::<Probe<0>>(Policy::new(1), Plan::new(&Log::default()));
    let _tree = builder.start().await.unwrap();
    for n in 0..20_000 {
        assert_eq!(say(&room, n).await, Ok(n));
        let dropped = ask(&room, SECOND, |_, _reply| Box::pin(async { Ok(()) })).await;
        assert_eq!(dropped, MAY_HAVE_RUN);
    }
}
