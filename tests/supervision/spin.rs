//! What only the end of the process cures ends it, with 70. Each in a process of its own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use portcullis_actors::supervision::{EXIT_TREE, Intensity, OnFatal, Policy, TreeBuilder};

use super::support::*;

fn exiting() -> TreeBuilder {
    let fatal: OnFatal = Arc::new(|room, why| {
        eprintln!("fatal {room}: {why}");
        std::process::exit(EXIT_TREE);
    });
    let intensity = Intensity {
        ping_secs: 1,
        ..Intensity::default()
    };
    TreeBuilder::new(intensity, fatal)
}

fn runtime(workers: usize) -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build()
        .unwrap()
}

fn spin() -> ! {
    loop {
        std::hint::black_box(Instant::now());
    }
}

fn ends_with_70(test: &str, says: &str) {
    let begun = Instant::now();
    let output = own_process(test);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(70), "{text}");
    assert!(text.contains(says), "{text}");
    assert!(begun.elapsed() < Duration::from_secs(30));
}

fn spinning_handler(workers: usize) {
    runtime(workers).block_on(async {
        let mut builder = exiting();
        let room = builder.room::<Probe<0>>(Policy::new(4), Plan::new(&Log::default()));
        let _tree = builder.start().await.unwrap();
        room.tell(job(|_| Box::pin(async { spin() })))
            .await
            .unwrap();
        tokio::time::sleep(LONG).await;
    });
}

#[test]
fn a_handler_that_never_awaits_ends_the_process_with_70() {
    const ME: &str = "supervision::spin::a_handler_that_never_awaits_ends_the_process_with_70";
    if inner(ME) {
        return spinning_handler(4);
    }
    ends_with_70(ME, "fatal");
}

// On one worker no timer and no root runs beside it: only the watchdog's thread sees it.
#[test]
fn a_handler_that_never_awaits_ends_the_process_on_one_worker_too() {
    const ME: &str =
        "supervision::spin::a_handler_that_never_awaits_ends_the_process_on_one_worker_too";
    if inner(ME) {
        return spinning_handler(1);
    }
    ends_with_70(ME, "the supervisor does not turn");
}

#[test]
fn a_start_that_never_awaits_ends_the_process_with_70() {
    const ME: &str = "supervision::spin::a_start_that_never_awaits_ends_the_process_with_70";
    if inner(ME) {
        return runtime(4).block_on(async {
            let mut builder = exiting();
            let plan = Plan::<0>::new(&Log::default()).start(|_, _| async { spin() });
            builder.room::<Probe<0>>(Policy::new(4).start_within(SECOND), plan);
            let _ = builder.start().await;
        });
    }
    ends_with_70(ME, "fatal");
}

#[test]
fn a_critical_room_over_its_intensity_ends_the_process_with_70() {
    const ME: &str =
        "supervision::spin::a_critical_room_over_its_intensity_ends_the_process_with_70";
    if inner(ME) {
        return runtime(2).block_on(async {
            let mut builder = exiting();
            let room =
                builder.room::<Probe<0>>(Policy::new(4).critical(), Plan::new(&Log::default()));
            let _tree = builder.start().await.unwrap();
            loop {
                let _ = panics(&room).await;
            }
        });
    }
    ends_with_70(ME, "over its restart intensity");
}
