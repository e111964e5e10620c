//! The pool: a box that ends takes its own runs with it and nobody else's; what waits is bounded.

use std::path::Path;

use portcullis_actors::sandbox_pool::{
    PoolError, RunEvent, RunSpec, RunTicket, SandboxPoolHandle, Stream,
};
use portcullis_actors::supervision::{CallError, PanicAt};
use portcullis_core::ids::RunId;
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::mpsc;

use super::real::{Ground, Standing, agent, in_time};
use super::support::{LONG, SECOND};

type Begun = (RunTicket, mpsc::Receiver<RunEvent>);

async fn begin(
    pool: &SandboxPoolHandle,
    who: &str,
    run: &str,
    script: &str,
) -> Result<Begun, CallError<PoolError>> {
    let spec = RunSpec {
        run: RunId::new(run).unwrap(),
        argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
        cwd: None,
        env: vec![],
        timeout: None,
        stdin: false,
        tty: None,
    };
    let (events, seen) = mpsc::channel(16);
    let ticket = pool.start_run(agent(who), spec, events).await?;
    Ok((ticket, seen))
}

async fn output(seen: &mut mpsc::Receiver<RunEvent>) -> String {
    let mut text = vec![];
    loop {
        match tokio::time::timeout(60 * SECOND, seen.recv())
            .await
            .unwrap()
        {
            Some(RunEvent::Output { stream, data, .. }) => {
                assert_eq!(stream, Stream::Out);
                text.extend(data);
            }
            Some(RunEvent::Exited(_)) => return String::from_utf8(text).unwrap(),
            Some(RunEvent::BoxLost | RunEvent::GivenUp(_)) | None => return "box lost".to_owned(),
        }
    }
}

fn init(house: &Standing, ticket: &RunTicket) -> Pid {
    let kept = format!("run/b/{}.json", ticket.box_id);
    let kept = std::fs::read(house.state.path().join(kept)).unwrap();
    let kept: serde_json::Value = serde_json::from_slice(&kept).unwrap();
    Pid::from_raw(kept["init"][0].as_i64().unwrap().try_into().unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_box_that_is_killed_loses_its_own_runs_only_and_a_stop_leaves_no_box() {
    let mut ground = Ground::new();
    let pool = ground.pool(256);
    let house = ground.start().await;
    let (lost, mut seen) = begin(&pool, "demo", "r1", "echo up; sleep 61")
        .await
        .unwrap();
    let (kept, mut other) = begin(&pool, "other", "r1", "sleep 1; echo on")
        .await
        .unwrap();
    assert!(matches!(seen.recv().await, Some(RunEvent::Output { .. })));
    kill_process(init(&house, &lost), Signal::KILL).unwrap();
    assert_eq!(output(&mut seen).await, "box lost");
    assert!(output(&mut other).await.ends_with("on\n"));
    let (again, mut seen) = begin(&pool, "demo", "r2", "echo back").await.unwrap();
    assert_eq!(output(&mut seen).await, "back\n");
    assert_ne!(again.box_id, lost.box_id);
    house.recovered("sandbox_pool", 0).await;
    let inits = [init(&house, &again), init(&house, &kept)];
    house.tree.stop().await;
    for init in inits {
        let exe = format!("/proc/{}/exe", init.as_raw_nonzero());
        assert!(!Path::new(&exe).exists(), "a box outlived its pool");
    }
    house.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_crashes_ends_its_boxes_and_the_next_life_runs_again() {
    let mut ground = Ground::new();
    let pool = ground.pool(256);
    let house = ground.start().await;
    let (lost, mut seen) = begin(&pool, "demo", "r1", "echo up; sleep 61")
        .await
        .unwrap();
    assert!(matches!(seen.recv().await, Some(RunEvent::Output { .. })));
    let old = format!("/proc/{}/exe", init(&house, &lost).as_raw_nonzero());
    assert!(house.tree.window().panic("sandbox_pool", PanicAt::Now));
    assert_eq!(output(&mut seen).await, "box lost");
    house.recovered("sandbox_pool", 1).await;
    let (again, mut seen) = begin(&pool, "demo", "r2", "echo back").await.unwrap();
    assert_eq!(output(&mut seen).await, "back\n");
    assert_ne!(again.box_id, lost.box_id);
    assert!(!Path::new(&old).exists(), "a box outlived its pool");
    house.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_requests_than_the_pool_holds_are_refused_while_it_tries_its_drivers() {
    let mut ground = Ground::new();
    let pool = ground.pool(8);
    let house = ground.start().await;
    let asking: Vec<_> = (0..100)
        .map(|_| {
            let pool = pool.clone();
            let demo = portcullis_core::ids::AgentId::new("demo").unwrap();
            tokio::spawn(async move { pool.profile(demo, Some(LONG)).await })
        })
        .collect();
    let (mut served, mut refused) = (0, 0);
    for ask in asking {
        match tokio::time::timeout(60 * SECOND, ask)
            .await
            .unwrap()
            .unwrap()
        {
            Ok(_) => served += 1,
            Err(CallError::Overloaded) => refused += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(served >= 8 && served + refused == 100, "{served} {refused}");
    house.recovered("sandbox_pool", 0).await;
    in_time(pool.status()).await.unwrap();
    house.end().await;
}
