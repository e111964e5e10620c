//! A hundred panics in each of several actors under live callers: no foreign failure, and how long until it serves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use portcullis_actors::supervision::{Intensity, OnFatal, Policy, TreeBuilder};

use super::support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_panics_in_each_of_several_actors_fail_nobody_elses_call() {
    const PANICS: usize = 100;
    let fatal: OnFatal = Arc::new(|room, why| panic!("{room}: {why}"));
    // The storm is over any real intensity: here it is the crashes that are counted, not the waits.
    let intensity = Intensity {
        max_restarts: u32::MAX,
        healthy_after_secs: 0,
        ..Intensity::default()
    };
    let mut builder = TreeBuilder::new(intensity, fatal);
    let log = Log::default();
    let a = builder.room::<Probe<0>>(Policy::new(256), Plan::new(&log));
    let b = builder.room::<Probe<1>>(Policy::new(256), Plan::new(&log));
    let c = builder.room::<Probe<2>>(Policy::new(256), Plan::new(&log));
    let calm = builder.room::<Probe<3>>(Policy::new(256), Plan::new(&log));
    let tree = builder.start().await.unwrap();

    let over = Arc::new(AtomicBool::new(false));
    let served = Arc::new(AtomicU64::new(0));
    let mut bystanders = Vec::new();
    for _ in 0..32 {
        let (calm, over, served) = (calm.clone(), over.clone(), served.clone());
        bystanders.push(tokio::spawn(async move {
            while !over.load(Ordering::Relaxed) {
                assert_eq!(say(&calm, 5).await, Ok(5));
                served.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        }));
    }
    let (mut back, mut failures) = (Vec::new(), 0u32);
    let mut storm = tokio::task::JoinSet::new();
    macro_rules! crash {
        ($room:expr) => {{
            let room = $room.clone();
            storm.spawn(async move {
                let (mut back, mut failures) = (Vec::new(), 0u32);
                for _ in 0..PANICS {
                    let crashed = Instant::now();
                    while panics(&room).await != MAY_HAVE_RUN {}
                    if say_again(&room, 1).await != Ok(1) {
                        failures += 1;
                    }
                    back.push(crashed.elapsed());
                }
                (back, failures)
            });
        }};
    }
    crash!(a);
    crash!(b);
    crash!(c);
    while let Some(done) = storm.join_next().await {
        let (times, failed) = done.unwrap();
        back.extend(times);
        failures += failed;
    }
    over.store(true, Ordering::Relaxed);
    for bystander in bystanders {
        bystander.await.unwrap();
    }
    back.sort();
    let (p50, p99) = (back[back.len() / 2], back[back.len() * 99 / 100]);
    println!(
        "storm: {} panics, {} foreign calls served, 0 failed; crash to serving again p50 {p50:?} p99 {p99:?} max {:?}",
        back.len(),
        served.load(Ordering::Relaxed),
        back[back.len() - 1]
    );
    assert_eq!(failures, 0);
    assert!(p99 < Duration::from_millis(100), "{p99:?}");
    let view = tree.window().look();
    assert_eq!(
        view.rooms.iter().map(|r| r.restarts).collect::<Vec<_>>(),
        [100, 100, 100, 0]
    );
    assert!(
        view.rooms
            .iter()
            .all(|r| r.gate.as_ref().unwrap().depth == 0)
    );
}
