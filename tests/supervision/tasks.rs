//! Work beside the loop: it ends with its handle and with its actor, and its end is told.

use std::time::Duration;

use portcullis_actors::supervision::{Ctx, Handle, Policy, TaskHandle, Tree};

use super::support::*;

async fn one(log: &Log) -> (Tree, Handle<Msg<0>>, Plan<0>) {
    let (mut builder, _fatal) = builder();
    let plan = Plan::<0>::new(log);
    let room = builder.room::<Probe<0>>(Policy::new(64), plan.clone());
    (builder.start().await.unwrap(), room, plan)
}

/// Takes the room's context out: what a task or thread of it may hold.
async fn context(room: &Handle<Msg<0>>) -> Ctx<Probe<0>> {
    let (tx, rx) = tokio::sync::oneshot::channel();
    room.tell(job(move |p| {
        let _ = tx.send(p.ctx.clone());
        Box::pin(async { Ok(()) })
    }))
    .await
    .unwrap();
    rx.await.unwrap()
}

fn pending(ctx: &Ctx<Probe<0>>, log: &Log, name: &'static str) -> TaskHandle {
    let held = OnDrop(log.clone(), name);
    ctx.task(name, 7, async move {
        let _held = held;
        std::future::pending::<()>().await;
    })
}

#[tokio::test(start_paused = true)]
async fn a_dropped_handle_aborts_its_task_which_reports_no_end_and_keep_lets_it_run() {
    let log = Log::default();
    let (_tree, room, _) = one(&log).await;
    let ctx = context(&room).await;
    let handle = pending(&ctx, &log, "dropped");
    pending(&ctx, &log, "kept").keep();
    settle().await;
    drop(handle);
    drop(pending(&ctx, &log, "never polled"));
    settle().await;
    assert_eq!(log.all(), ["dropped", "never polled"]);
}

#[tokio::test(start_paused = true)]
async fn an_end_is_reported_once_with_name_and_key() {
    let log = Log::default();
    let (_tree, room, plan) = one(&log).await;
    let ctx = context(&room).await;
    ctx.task("count", 3, async {}).keep();
    ctx.blocking("hash", 4, || {}).unwrap();
    log.wait("task count 3 Done").await;
    log.wait("task hash 4 Done").await;
    settle().await;
    assert_eq!((log.all().len(), plan.lives()), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_task_or_a_blocking_job_is_the_rooms_crash() {
    let log = Log::default();
    let (tree, room, plan) = one(&log).await;
    context(&room)
        .await
        .task("io", 1, async { panic!("planned") })
        .keep();
    eventually("a second life", || plan.lives() == 2).await;
    context(&room)
        .await
        .blocking("hash", 1, || panic!("planned"))
        .unwrap();
    eventually("a third life", || plan.lives() == 3).await;
    assert_eq!(say(&room, 1).await, Ok(1));
    assert_eq!(
        tree.window().look().rooms[0].last_crash.as_deref(),
        Some("task hash panicked: planned")
    );
}

#[tokio::test(start_paused = true)]
async fn tasks_end_with_a_crash_a_kill_and_a_stop() {
    let log = Log::default();
    let (tree, room, _) = one(&log).await;
    pending(&context(&room).await, &log, "crash").keep();
    let _ = panics(&room).await;
    settle().await;
    assert_eq!(log.count("crash"), 1);
    pending(&context(&room).await, &log, "kill").keep();
    let _ = hangs(&room, LONG).await;
    log.wait("kill").await;
    assert_eq!(say(&room, 1).await, Ok(1));
    pending(&context(&room).await, &log, "stop").keep();
    tree.stop().await;
    assert_eq!(log.count("stop"), 1);
}

// A context that outlived its actor started tasks that nobody ended.
#[tokio::test(start_paused = true)]
async fn a_context_that_outlives_its_actor_starts_nothing() {
    let log = Log::default();
    let (_tree, room, _) = one(&log).await;
    let ctx = context(&room).await;
    let _ = panics(&room).await;
    settle().await;
    pending(&ctx, &log, "late").keep();
    settle().await;
    assert_eq!(log.all(), ["late"]);
    assert!(ctx.child::<Probe<1>>(1, Plan::new(&log), 4).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocking_jobs_are_limited_per_room_and_a_crash_does_not_lift_the_limit() {
    let log = Log::default();
    let (_tree, room, plan) = one(&log).await;
    let (tx, rx) = std::sync::mpsc::channel::<()>();
    let rx = std::sync::Arc::new(std::sync::Mutex::new(rx));
    let ctx = context(&room).await;
    for _ in 0..2 {
        let rx = rx.clone();
        ctx.blocking("hash", 0, move || {
            let _ = rx.lock().unwrap().recv();
        })
        .unwrap();
    }
    assert!(ctx.blocking("hash", 0, || {}).is_err());
    let _ = panics(&room).await;
    eventually("a second life", || plan.lives() == 2).await;
    let ctx = context(&room).await;
    assert!(
        ctx.blocking("hash", 0, || {}).is_err(),
        "the last life's jobs still hold threads"
    );
    drop(tx);
    eventually("threads are free again", || {
        ctx.blocking("hash", 0, || {}).is_ok()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn timers_fire_and_are_cancelled_by_their_handle() {
    let log = Log::default();
    let (_tree, room, _) = one(&log).await;
    let ctx = context(&room).await;
    let note = |line: &'static str| {
        job::<0>(move |p| {
            p.plan.log.add(line);
            Box::pin(async { Ok(()) })
        })
    };
    let cancelled = ctx.after("t", 1, 2 * SECOND, note("cancelled"));
    let fired = ctx.after("t", 2, 2 * SECOND, note("fired"));
    tokio::time::sleep(SECOND).await;
    drop(cancelled);
    tokio::time::sleep(2 * SECOND).await;
    fired.keep();
    assert_eq!(log.all(), ["fired", "task t 2 Done"]);
}

// `every` skipped late ticks on the timer's side only: behind a loop that waits they piled up in the mailbox.
#[tokio::test(start_paused = true)]
async fn ticks_do_not_pile_up_behind_a_loop_that_waits() {
    let log = Log::default();
    let (_tree, room, _) = one(&log).await;
    let ctx = context(&room).await;
    ctx.every("tick", Duration::from_millis(100), || {
        job(|p| {
            p.plan.log.add("tick");
            Box::pin(async { Ok(()) })
        })
    })
    .keep();
    tokio::time::sleep(Duration::from_millis(550)).await;
    let before = log.count("tick");
    assert_eq!(before, 5);
    ask(&room, LONG, |p, reply| {
        Box::pin(async move {
            let _guard = p.ctx.waiting();
            tokio::time::sleep(Duration::from_mins(1)).await;
            reply.ok(1);
            Ok(())
        })
    })
    .await
    .unwrap();
    settle().await;
    assert!(log.count("tick") - before <= 2, "{}", log.count("tick"));
    tokio::time::sleep(SECOND).await;
    assert!(log.count("tick") - before >= 10, "it goes on");
}
