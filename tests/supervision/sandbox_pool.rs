//! The pool: a box that ends takes its own runs with it and nobody else's; what waits is bounded.

use std::path::Path;
use std::time::Instant;

use portcullis_actors::sandbox_pool::{
    PoolError, RunEvent, RunSpec, RunTicket, SandboxPoolHandle, SessionKey, Stream,
};
use portcullis_actors::supervision::{CallError, PanicAt};
use portcullis_core::ids::{BoxId, RunId};
use portcullis_core::sandbox::{Layer, Overrides, Profiles, Scope};
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
        session: SessionKey {
            by: "test".to_owned(),
            name: "one".to_owned(),
        },
        session_over: None,
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
    init_of(house, &ticket.box_id)
}

fn init_of(house: &Standing, id: &BoxId) -> Pid {
    let kept = format!("run/b/{id}.json");
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

/// One agent whose sessions have a box each, and what is kept ready for it.
fn sessions() -> Profiles {
    let own = Layer {
        name: "[agents.demo.sandbox]".to_owned(),
        says: Overrides {
            scope: Some(Scope::Session),
            ..Overrides::default()
        },
    };
    Profiles {
        agents: [(agent("demo"), vec![own])].into(),
        ..Profiles::default()
    }
}

async fn ready(pool: &SandboxPoolHandle) -> BoxId {
    let until = Instant::now() + 60 * SECOND;
    loop {
        let status = in_time(pool.status()).await.unwrap();
        let nobodys = status.boxes.iter().find(|(_, holder)| holder.is_nobody());
        if let (Some((id, _)), 1) = (nobodys, status.warm.ready) {
            return id.clone();
        }
        assert!(Instant::now() < until, "none is ready: {status:?}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_crashes_leaves_no_ready_box_and_makes_it_anew() {
    let mut ground = Ground::new();
    let pool = ground.pool_of(256, sessions());
    let house = ground.start().await;
    let lost = ready(&pool).await;
    let old = init_of(&house, &lost);
    assert!(house.tree.window().panic("sandbox_pool", PanicAt::Now));
    house.recovered("sandbox_pool", 1).await;
    let again = ready(&pool).await;
    assert_ne!(again, lost);
    let exe = format!("/proc/{}/exe", old.as_raw_nonzero());
    assert!(!Path::new(&exe).exists(), "a box outlived its pool");
    let (ticket, mut seen) = begin(&pool, "demo", "r1", "echo back").await.unwrap();
    assert_eq!(output(&mut seen).await, "back\n");
    assert_eq!(ticket.box_id, again);
    // What the room shows of it is written a moment later.
    let until = Instant::now() + 30 * SECOND;
    loop {
        let view = house.tree.window().look();
        let room = view.rooms.iter().find(|room| room.name == "sandbox_pool");
        let fact = |key: &str| {
            let facts = room.unwrap().facts.iter();
            let found = facts.filter(|(name, _)| *name == key);
            found.map(|(_, value)| value.clone()).collect::<String>()
        };
        if fact("sessions with a warm box").starts_with("1, ") {
            assert_eq!(fact("sessions that waited"), "0");
            break;
        }
        assert!(Instant::now() < until, "{room:?}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
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
