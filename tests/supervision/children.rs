//! Temporary children: their end is told once, they die with their owner, and a dead one refuses at once.

use std::time::Duration;

use portcullis_actors::supervision::{Handle, Policy, Tree};
use tokio::time::Instant;

use super::support::*;

async fn one(log: &Log) -> (Tree, Handle<Msg<0>>, Plan<0>) {
    let (mut builder, _fatal) = builder();
    let plan = Plan::<0>::new(log);
    let room = builder.room::<Probe<0>>(Policy::new(64), plan.clone());
    (builder.start().await.unwrap(), room, plan)
}

async fn child(room: &Handle<Msg<0>>, key: u64, plan: Plan<1>) -> Handle<Msg<1>> {
    let (tx, rx) = tokio::sync::oneshot::channel();
    room.tell(job(move |p| {
        Box::pin(async move {
            let _ = tx.send(p.ctx.child::<Probe<1>>(key, plan, 4).await?);
            Ok(())
        })
    }))
    .await
    .unwrap();
    rx.await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_childs_end_is_told_once_and_its_owner_lives_on() {
    let log = Log::default();
    let (_tree, room, plan) = one(&log).await;
    let first = child(&room, 1, Plan::new(&log)).await;
    let second = child(&room, 2, Plan::new(&log)).await;
    assert_eq!(panics(&first).await, MAY_HAVE_RUN);
    second
        .tell(job(|p| {
            Box::pin(async move {
                p.ctx.stop_myself();
                Ok(())
            })
        }))
        .await
        .unwrap();
    log.wait("child b 1 Crashed(\"planned\")").await;
    log.wait("child b 2 Stopped").await;
    settle().await;
    assert_eq!(
        log.all().iter().filter(|l| l.starts_with("child")).count(),
        2
    );
    assert_eq!(plan.lives(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_dead_childs_handle_refuses_at_once_even_while_its_owner_is_busy() {
    let log = Log::default();
    let (_tree, room, _) = one(&log).await;
    let child = child(&room, 1, Plan::new(&log)).await;
    room.tell(job(|p| {
        Box::pin(async move {
            let _guard = p.ctx.waiting();
            tokio::time::sleep(LONG).await;
            Ok(())
        })
    }))
    .await
    .unwrap();
    assert_eq!(panics(&child).await, MAY_HAVE_RUN);
    settle().await;
    let asked = Instant::now();
    assert_eq!(say(&child, 1).await, NOT_RUN);
    assert_eq!(asked.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn children_die_with_a_crashed_owner_and_before_its_next_life() {
    let log = Log::default();
    let (_tree, room, plan) = one(&log).await;
    let seen = log.clone();
    let idle = child(
        &room,
        1,
        Plan::new(&log).start(move |_, ctx| {
            let held = OnDrop(seen.clone(), "child's task gone");
            async move {
                ctx.task("t", 0, async move {
                    let _held = held;
                    std::future::pending::<()>().await;
                })
                .keep();
                Ok(())
            }
        }),
    )
    .await;
    let busy = child(&room, 2, Plan::new(&log)).await;
    let call = {
        let busy = busy.clone();
        tokio::spawn(async move { hangs(&busy, LONG).await })
    };
    settle().await;
    assert_eq!(panics(&room).await, MAY_HAVE_RUN);
    assert_eq!(call.await.unwrap(), MAY_HAVE_RUN);
    let asked = Instant::now();
    assert_eq!(say(&idle, 1).await, NOT_RUN);
    assert_eq!(say(&busy, 1).await, NOT_RUN);
    assert_eq!(asked.elapsed(), Duration::ZERO);
    assert_eq!(say(&room, 1).await, Ok(1));
    log.wait("child's task gone").await;
    assert_eq!(plan.lives(), 2);
    assert_eq!(
        log.all(),
        ["child's task gone"],
        "the next life hears nothing of the last one's children"
    );
}

#[tokio::test(start_paused = true)]
async fn a_child_that_does_not_start_is_an_error_for_who_starts_it() {
    let log = Log::default();
    let (_tree, room, plan) = one(&log).await;
    let bad = Plan::<1>::new(&log)
        .start(|_, _| async { Err(portcullis_actors::supervision::Crash::new("no engine")) });
    let said = ask(&room, SECOND, move |p, reply| {
        Box::pin(async move {
            match p.ctx.child::<Probe<1>>(1, bad, 4).await {
                Err(crash) => reply.refuse(crash.why().to_owned()),
                Ok(_) => reply.ok(1),
            }
            Ok(())
        })
    })
    .await;
    assert_eq!(
        said,
        Err(portcullis_actors::supervision::CallError::Refused(
            "no engine".to_owned()
        ))
    );
    assert_eq!((plan.lives(), log.all().len()), (1, 0));
}

/// Starts `count` children from tasks; each ends at once. Every end must be told, once.
async fn quick(room: &Handle<Msg<0>>, log: &Log, count: u64) {
    let inner = log.clone();
    ask(room, SECOND, move |p, reply| {
        Box::pin(async move {
            for key in 0..count {
                let (ctx, log) = (p.ctx.clone(), inner.clone());
                p.ctx
                    .task("starts", key, async move {
                        let plan = Plan::<1>::new(&log).start(|_, ctx| async move {
                            ctx.stop_myself();
                            Ok(())
                        });
                        let child = ctx.child::<Probe<1>>(key, plan, 4).await.unwrap();
                        eventually("it is gone", || !child.is_up()).await;
                        assert_eq!(say(&child, 1).await, NOT_RUN);
                    })
                    .keep();
            }
            reply.ok(0);
            Ok(())
        })
    })
    .await
    .unwrap();
    for key in 0..count {
        log.wait(&format!("child b {key} Stopped")).await;
        log.wait(&format!("task starts {key} Done")).await;
    }
    for key in 0..count {
        assert_eq!(log.count(&format!("child b {key} Stopped")), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_child_that_dies_at_once_is_told_once_when_started_from_a_task() {
    let log = Log::default();
    let (_tree, room, plan) = one(&log).await;
    quick(&room, &log, 20).await;
    assert_eq!(plan.lives(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_child_that_dies_at_once_is_told_once_on_many_threads() {
    let log = Log::default();
    let (_tree, room, plan) = one(&log).await;
    quick(&room, &log, 200).await;
    assert_eq!(plan.lives(), 1);
}

// Ends overtake messages; a storm of slow ones is work, not a stuck loop.
#[tokio::test(start_paused = true)]
async fn an_owner_at_work_on_many_ends_is_not_taken_for_stuck() {
    struct Owner;
    struct Leaf;
    impl portcullis_actors::supervision::Room for Leaf {
        const NAME: &'static str = "leaf";
        type Msg = ();
        type Wiring = ();
        async fn start(
            (): &(),
            ctx: portcullis_actors::supervision::Ctx<Self>,
        ) -> Result<Self, portcullis_actors::supervision::Crash> {
            ctx.stop_myself();
            Ok(Self)
        }
        async fn handle(&mut self, (): ()) -> Done {
            Ok(())
        }
    }
    impl portcullis_actors::supervision::Room for Owner {
        const NAME: &'static str = "owner";
        type Msg = ();
        type Wiring = ();
        async fn start(
            (): &(),
            ctx: portcullis_actors::supervision::Ctx<Self>,
        ) -> Result<Self, portcullis_actors::supervision::Crash> {
            for key in 0..20 {
                ctx.child::<Leaf>(key, (), 4).await?;
            }
            Ok(Self)
        }
        async fn handle(&mut self, (): ()) -> Done {
            Ok(())
        }
        async fn child_ended(
            &mut self,
            _: &'static str,
            _: u64,
            _: portcullis_actors::supervision::ChildEnd,
        ) -> Done {
            tokio::time::sleep(Duration::from_secs(8)).await;
            Ok(())
        }
    }
    let (mut builder, _fatal) = builder();
    builder.room::<Owner>(Policy::new(4), ());
    let tree = builder.start().await.unwrap();
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert_eq!(tree.window().look().rooms[0].restarts, 0);
}
