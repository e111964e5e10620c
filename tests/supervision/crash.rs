//! A crash is restarted; its callers are told in time; permits come back; others live on; state is re-read.

use std::sync::atomic::Ordering;
use std::time::Duration;

use portcullis_actors::supervision::{CallError, Crash, Policy, RoomState};
use tokio::time::Instant;

use super::support::*;

#[tokio::test(start_paused = true)]
async fn a_panic_and_an_err_are_restarted_and_the_caller_in_work_learns_that_it_may_have_run() {
    let (mut builder, mut fatal) = builder();
    let plan = Plan::<0>::new(&Log::default());
    let room = builder.room::<Probe<0>>(Policy::new(4), plan.clone());
    let tree = builder.start().await.unwrap();
    assert_eq!(panics(&room).await, MAY_HAVE_RUN);
    assert_eq!(say(&room, 1).await, Ok(1));
    assert_eq!(fails(&room).await, MAY_HAVE_RUN);
    assert_eq!(say(&room, 2).await, Ok(2));
    assert_eq!(plan.lives(), 3);
    let view = tree.window().look();
    assert_eq!(view.rooms[0].restarts, 2);
    assert_eq!(view.rooms[0].last_crash.as_deref(), Some("planned"));
    assert!(fatal.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn callers_queued_behind_a_crash_learn_that_they_did_not_run_and_all_permits_come_back() {
    let (mut builder, _fatal) = builder();
    let log = Log::default();
    let room = builder.room::<Probe<0>>(Policy::new(8), Plan::new(&log));
    let tree = builder.start().await.unwrap();
    let crashing = {
        let room = room.clone();
        tokio::spawn(async move {
            ask(&room, LONG, |_, reply| {
                Box::pin(async move {
                    let _reply = reply;
                    tokio::time::sleep(SECOND).await;
                    panic!("planned")
                })
            })
            .await
        })
    };
    settle().await;
    let mut queued = Vec::new();
    for _ in 0..7 {
        let (room, log) = (room.clone(), log.clone());
        queued.push(tokio::spawn(async move {
            ask(&room, LONG, move |_, reply| {
                log.add("ran");
                reply.ok(0);
                Box::pin(async { Ok(()) })
            })
            .await
        }));
    }
    settle().await;
    assert_eq!(depth(&tree, 0), 8);
    assert_eq!(say(&room, 1).await, Err(CallError::Overloaded));
    let begun = Instant::now();
    assert_eq!(crashing.await.unwrap(), MAY_HAVE_RUN);
    for call in queued {
        assert_eq!(call.await.unwrap(), NOT_RUN);
    }
    assert!(
        begun.elapsed() < 2 * SECOND,
        "told at the crash, not at the deadline"
    );
    assert_eq!(log.count("ran"), 0);
    assert_eq!(depth(&tree, 0), 0);
    assert_eq!(say(&room, 1).await, Ok(1));
}

#[tokio::test(start_paused = true)]
async fn permits_come_back_from_abandoned_and_task_held_replies() {
    let (mut builder, _fatal) = builder();
    let room = builder.room::<Probe<0>>(Policy::new(4), Plan::new(&Log::default()));
    let tree = builder.start().await.unwrap();
    let held = {
        let room = room.clone();
        tokio::spawn(async move {
            ask(&room, LONG, |probe, reply| {
                Box::pin(async move {
                    probe
                        .ctx
                        .task("hold", 0, async move {
                            tokio::time::sleep(LONG).await;
                            reply.ok(1);
                        })
                        .keep();
                    Ok(())
                })
            })
            .await
        })
    };
    settle().await;
    assert_eq!(depth(&tree, 0), 1, "the reply in the task still counts");
    let blocker = {
        let room = room.clone();
        tokio::spawn(async move { hangs(&room, LONG).await })
    };
    settle().await;
    let gone = {
        let room = room.clone();
        tokio::spawn(async move { say(&room, 1).await })
    };
    settle().await;
    gone.abort();
    settle().await;
    assert_eq!(depth(&tree, 0), 3);
    // The stuck loop is killed by its pings.
    assert_eq!(blocker.await.unwrap(), MAY_HAVE_RUN);
    assert_eq!(held.await.unwrap(), MAY_HAVE_RUN);
    settle().await;
    assert_eq!(depth(&tree, 0), 0);
}

#[tokio::test(start_paused = true)]
async fn siblings_keep_their_memory_and_the_crashed_room_re_reads_what_is_durable() {
    let (mut builder, _fatal) = builder();
    let log = Log::default();
    let plan = Plan::<0>::new(&log);
    let crashing = builder.room::<Probe<0>>(Policy::new(4), plan.clone());
    let sibling = builder.room::<Probe<1>>(Policy::new(4), Plan::new(&log));
    let _tree = builder.start().await.unwrap();
    ask(&sibling, SECOND, |p, reply| {
        Box::pin(async move {
            p.memory = 9;
            reply.ok(0);
            Ok(())
        })
    })
    .await
    .unwrap();
    ask(&crashing, SECOND, |p, reply| {
        Box::pin(async move {
            p.plan.durable.store(5, Ordering::SeqCst);
            p.memory = 6;
            reply.ok(0);
            Ok(())
        })
    })
    .await
    .unwrap();
    assert_eq!(panics(&crashing).await, MAY_HAVE_RUN);
    assert_eq!(
        ask(&crashing, SECOND, |p, reply| Box::pin(async move {
            reply.ok(p.memory);
            Ok(())
        }))
        .await,
        Ok(5)
    );
    assert_eq!(
        ask(&sibling, SECOND, |p, reply| Box::pin(async move {
            reply.ok(p.memory);
            Ok(())
        }))
        .await,
        Ok(9)
    );
}

#[tokio::test(start_paused = true)]
async fn a_room_that_stops_itself_is_started_again() {
    let (mut builder, _fatal) = builder();
    let log = Log::default();
    let plan = Plan::<0>::new(&log);
    let room = builder.room::<Probe<0>>(Policy::new(4), plan.clone());
    let _tree = builder.start().await.unwrap();
    room.tell(job(|p| {
        Box::pin(async move {
            p.ctx.stop_myself();
            Ok(())
        })
    }))
    .await
    .unwrap();
    log.wait("stop a").await;
    assert_eq!(say(&room, 1).await, Ok(1));
    assert_eq!(plan.lives(), 2);
}

// ractor tells the supervisor before it drops a crashed actor's state: the next life met the last one's locks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_life_starts_after_the_last_ones_state_and_tasks_are_gone() {
    struct Slow(Log);
    impl Drop for Slow {
        fn drop(&mut self) {
            std::thread::sleep(Duration::from_millis(20));
            self.0.add("state gone");
        }
    }
    let (mut builder, _fatal) = builder();
    let log = Log::default();
    let seen = log.clone();
    let plan = Plan::<0>::new(&log).start(move |life, ctx| {
        let log = seen.clone();
        async move {
            log.add(format!("start {life}"));
            let slow = Slow(log);
            ctx.task("holds", 0, async move {
                let _held = slow;
                std::future::pending::<()>().await;
            })
            .keep();
            Ok(())
        }
    });
    let room = builder.room::<Probe<0>>(Policy::new(4), plan);
    let _tree = builder.start().await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(fails(&room).await, MAY_HAVE_RUN);
    assert_eq!(say_again(&room, 1).await, Ok(1));
    assert_eq!(log.all(), ["start 1", "state gone", "start 2"]);
}

#[tokio::test(start_paused = true)]
async fn a_room_that_panics_in_its_own_drop_does_not_take_the_root_with_it() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            assert!(std::thread::panicking(), "planned, in a drop");
        }
    }
    struct Mined {
        _bomb: Bomb,
    }
    impl portcullis_actors::supervision::Room for Mined {
        const NAME: &'static str = "mined";
        type Msg = bool;
        type Wiring = ();
        async fn start(
            (): &(),
            _ctx: portcullis_actors::supervision::Ctx<Self>,
        ) -> Result<Self, Crash> {
            Ok(Self { _bomb: Bomb })
        }
        async fn handle(&mut self, hang: bool) -> Result<(), Crash> {
            if hang {
                std::future::pending::<()>().await;
            }
            Err(Crash::new("planned"))
        }
    }
    let (mut builder, _fatal) = builder();
    let mined = builder.room::<Mined>(Policy::new(4), ());
    let other = builder.room::<Probe<0>>(Policy::new(4), Plan::new(&Log::default()));
    let tree = builder.start().await.unwrap();
    mined.tell(false).await.unwrap();
    tokio::time::sleep(SECOND).await;
    mined.tell(true).await.unwrap();
    // Killed by its pings: the state, bomb and all, comes to the root with the event.
    tokio::time::sleep(Duration::from_secs(40)).await;
    assert_eq!(say(&other, 1).await, Ok(1));
    let view = tree.window().look();
    assert_eq!(
        (view.rooms[0].restarts, view.rooms[0].state),
        (2, RoomState::Up)
    );
}

#[tokio::test(start_paused = true)]
async fn a_panicking_clone_of_the_wiring_is_a_failed_start_of_that_room_alone() {
    struct Wire(std::sync::Arc<std::sync::atomic::AtomicU32>);
    impl Clone for Wire {
        fn clone(&self) -> Self {
            assert!(self.0.fetch_add(1, Ordering::SeqCst) != 1, "planned");
            Self(self.0.clone())
        }
    }
    struct Wired;
    impl portcullis_actors::supervision::Room for Wired {
        const NAME: &'static str = "wired";
        type Msg = ();
        type Wiring = Wire;
        async fn start(
            _: &Wire,
            _ctx: portcullis_actors::supervision::Ctx<Self>,
        ) -> Result<Self, Crash> {
            Ok(Self)
        }
        async fn handle(&mut self, (): ()) -> Result<(), Crash> {
            Err(Crash::new("planned"))
        }
    }
    let (mut builder, _fatal) = builder();
    let wired = builder.room::<Wired>(Policy::new(4), Wire(std::sync::Arc::default()));
    let tree = builder.start().await.unwrap();
    wired.tell(()).await.unwrap();
    tokio::time::sleep(SECOND).await;
    let view = tree.window().look();
    assert_eq!(
        (view.rooms[0].restarts, view.rooms[0].state),
        (2, RoomState::Up)
    );
}
