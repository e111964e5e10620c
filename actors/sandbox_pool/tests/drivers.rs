//! Agents whose boxes are made by different drivers, in one pool.

use std::time::{Duration, Instant};

use portcullis_core::ids::AgentId;
use portcullis_core::sandbox::{DriverChoice, Overrides, Scope};

use super::docker::Engine;
use super::harness::{Live, State, finish};
use super::room::{Pool, gone};
use crate::sandbox_pool::PoolError;
use crate::sandbox_pool::driver::Driver;
use crate::sandbox_pool::hardening::{BOX_LABEL, OWNER_LABEL};
use crate::sandbox_pool::native::Native;
use crate::supervision::CallError;

fn by(driver: DriverChoice) -> Overrides {
    Overrides {
        driver: Some(driver),
        ..Overrides::default()
    }
}

async fn refused(pool: &mut Pool, agent: &str) -> String {
    match pool.begin(agent, "true").await {
        Err(CallError::Refused(error @ PoolError::NotThisDriver { .. })) => error.to_string(),
        other => panic!("{:?}", other.err()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_of_two_drivers_have_boxes_side_by_side() {
    let engine = Engine::shared();
    let state = State::new();
    let host = engine.host();
    let change = |config: &mut crate::sandbox_pool::SandboxPoolConfig| {
        config.says.driver = Some(DriverChoice::Auto);
        config.engine = Some(host);
    };
    let agents = [
        ("boxed", by(DriverChoice::Docker)),
        ("bare", by(DriverChoice::Native)),
        (
            "fresh",
            Overrides {
                scope: Some(Scope::Session),
                ..by(DriverChoice::Native)
            },
        ),
    ];
    let mut pool = Pool::with_agents(&state, change, &agents).await;
    for (agent, driver, has_image) in [
        ("bare", "native", false),
        ("boxed", "docker", true),
        ("any", "docker", true),
        ("fresh", "native", false),
    ] {
        let (ticket, ended) = pool.run(agent, "echo runs").await;
        let said = (ticket.driver, ticket.image_digest.is_some());
        assert_eq!((said, ended.out.as_str()), ((driver, has_image), "runs\n"));
        let explained = pool.handle.explain(AgentId::new(agent).ok()).await.unwrap();
        assert_eq!(explained.driver, Some(driver), "{agent}");
        assert_eq!(explained.profile_hash, Some(ticket.profile_hash));
    }
    let status = pool.handle.status().await.unwrap();
    assert_eq!(status.driver, Some("docker"));
    let others: Vec<_> = status
        .others
        .iter()
        .map(|o| (o.driver, o.is_proven))
        .collect();
    assert_eq!(others, [("native", true)]);
    // A box is kept ready by the driver of whom it is for.
    let until = Instant::now() + Duration::from_secs(20);
    while pool.handle.status().await.unwrap().warm.ready == 0 {
        assert!(Instant::now() < until, "no box is made ahead");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    pool.session("another");
    let (ticket, _) = pool.run("fresh", "true").await;
    assert_eq!(ticket.driver, "native");
    let warm = pool.handle.status().await.unwrap().warm;
    assert!(warm.hits.count > 0, "{warm:?}");
    pool.tree.stop().await;
    assert!(
        std::fs::read_dir(state.context.run_root.join("b"))
            .unwrap()
            .next()
            .is_none()
    );
}

/// Never by the other one in its place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_driver_that_is_not_there_refuses_its_own_agents_and_no_others() {
    let state = State::new();
    let change = |config: &mut crate::sandbox_pool::SandboxPoolConfig| {
        config.engine = Some("unix:///nonexistent/docker.sock".to_owned());
    };
    let agents = [
        ("boxed", by(DriverChoice::Docker)),
        ("either", by(DriverChoice::Auto)),
    ];
    let mut pool = Pool::with_agents(&state, change, &agents).await;
    let (ticket, ended) = pool.run("any", "echo runs").await;
    assert_eq!((ticket.driver, ended.out.as_str()), ("native", "runs\n"));
    let why = refused(&mut pool, "boxed").await;
    assert!(
        why.contains("there is no engine at /nonexistent/docker.sock"),
        "{why}"
    );
    let (ticket, _) = pool.run("either", "true").await;
    assert_eq!(ticket.driver, "native");
    let explained = pool
        .handle
        .explain(AgentId::new("either").ok())
        .await
        .unwrap();
    assert!(
        explained.driver_why.contains("not Docker: "),
        "{}",
        explained.driver_why
    );
    let explained = pool
        .handle
        .explain(AgentId::new("boxed").ok())
        .await
        .unwrap();
    assert_eq!(explained.refused.unwrap().code, "NO_DRIVER");
    let status = pool.handle.status().await.unwrap();
    let others: Vec<_> = status
        .others
        .iter()
        .map(|o| (o.driver, o.is_proven))
        .collect();
    assert_eq!(
        (status.driver, others),
        (Some("native"), vec![("docker", false)])
    );
    pool.tree.stop().await;
}

/// What an engine takes along is what it made and what waits for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_is_killed_takes_nothing_of_the_other_driver_along() {
    let engine = Engine::start();
    let state = State::new();
    let host = engine.host();
    let change = |config: &mut crate::sandbox_pool::SandboxPoolConfig| {
        config.says.driver = Some(DriverChoice::Native);
        config.engine = Some(host);
    };
    let agents = [("boxed", by(DriverChoice::Docker))];
    let mut pool = Pool::with_agents(&state, change, &agents).await;
    assert_eq!(pool.run("boxed", "echo runs").await.1.out, "runs\n");
    let (_, _, seen) = pool
        .begin("bare", "echo a > kept; sleep 3; cat kept; echo b")
        .await
        .unwrap();
    let (_, _, taken) = pool.begin("boxed", "sleep 60").await.unwrap();
    engine.kill_all();
    let why = refused_soon(&mut pool).await;
    assert!(why.contains("NO_DRIVER"), "{why}");
    assert_eq!(pool.run("bare", "echo beside").await.1.out, "beside\n");
    assert_eq!(finish(seen).await.out, "a\nb\n");
    drop(taken);
    engine.start_all_again();
    let until = Instant::now() + Duration::from_secs(40);
    loop {
        match pool.begin("boxed", "echo again").await {
            Ok((_, _, seen)) => break assert_eq!(finish(seen).await.out, "again\n"),
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    pool.tree.stop().await;
}

/// A box that still serves takes runs until it ends; a new one is refused.
async fn refused_soon(pool: &mut Pool) -> String {
    let until = Instant::now() + Duration::from_secs(40);
    loop {
        match pool.begin("boxed", "true").await {
            Err(CallError::Refused(error @ PoolError::NotThisDriver { .. })) => {
                return error.to_string();
            }
            Ok((_, _, seen)) => drop(seen),
            Err(_) => {}
        }
        assert!(
            Instant::now() < until,
            "an engine that is gone is not missed"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The bug: a gateway whose agents have another driver now left what the old one had made running, beside a new box on the same folder.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn boxes_of_an_earlier_start_are_ended_though_their_driver_is_nobodys_now() {
    let engine = Engine::shared();
    for (before, now) in [
        (DriverChoice::Native, DriverChoice::Docker),
        (DriverChoice::Docker, DriverChoice::Native),
        // What is asked while both are tried waits for the one that it is for.
        (DriverChoice::Native, DriverChoice::Auto),
    ] {
        let state = State::new();
        let old = match before {
            DriverChoice::Native => Driver::Native(Native::find(&state.context).await.unwrap()),
            _ => super::docker::driver(&engine, &state).await,
        };
        let mut orphan = Live::start(&old, state.spec("demo")).await;
        let (_, seen) = orphan.begin("sleep 93", |_| {}).await;
        // The daemon is gone without a word: its link, not its box.
        orphan.served.abort();
        drop(seen);
        assert!(!gone(orphan.started.init_pid));
        let change = |config: &mut crate::sandbox_pool::SandboxPoolConfig| {
            config.says.driver = Some(now);
            config.engine = Some(engine.host());
        };
        let mut pool = Pool::with_agents(&state, change, &[]).await;
        let (ticket, ended) = pool.run("demo", "echo new").await;
        let by = match now {
            DriverChoice::Native => "native",
            _ => "docker",
        };
        assert_eq!((ended.out.as_str(), ticket.driver), ("new\n", by));
        assert!(
            gone(orphan.started.init_pid),
            "{before:?}: the orphan is ended before anything runs"
        );
        assert_eq!(old.list(&state.context.owner).await.unwrap().len(), 0);
        let others = pool.handle.status().await.unwrap().others;
        assert_eq!(others.len(), 0, "{others:?}");
        pool.tree.stop().await;
        let left = std::fs::read_dir(state.context.run_root.join("b"));
        assert_eq!(left.unwrap().count(), 0);
    }
}

/// The bug: the runner was killed while the engine made a box, which came when nobody looked for it any more and stayed until the next start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_box_that_comes_when_nobody_wants_it_any_more_is_ended() {
    let engine = Engine::shared();
    let state = State::new();
    let host = engine.host();
    let change = |config: &mut crate::sandbox_pool::SandboxPoolConfig| config.engine = Some(host);
    let agents = [
        ("boxed", by(DriverChoice::Docker)),
        ("bare", by(DriverChoice::Native)),
    ];
    let mut pool = Pool::with_agents(&state, change, &agents).await;
    let raw = super::docker::raw(&engine);
    let (bare, _) = pool.run("bare", "true").await;
    let (boxed, _) = pool.run("boxed", "true").await;
    let image = boxed.image_digest;
    let boxed = format!("portcullis-{}", boxed.box_id);
    let late = || async {
        let labels = [
            (OWNER_LABEL, state.context.owner.as_str()),
            (BOX_LABEL, "0a0b0c0d0e0f"),
        ];
        let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let body = bollard::models::ContainerCreateBody {
            image: image.clone(),
            cmd: Some(vec!["true".to_owned()]),
            labels: Some(labels.into()),
            ..Default::default()
        };
        raw.create_container(None, body).await.unwrap().id
    };
    let is_there = async |id: &str| raw.inspect_container(id, None).await.is_ok();
    let created = late().await;
    let native = Driver::Native(Native::find(&state.context).await.unwrap());
    let running = Live::start(&native, state.spec("other")).await;
    assert!(is_there(&created).await && !gone(running.started.init_pid));
    pool.handle.sweep().await.unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    while is_there(&created).await || !gone(running.started.init_pid) {
        assert!(Instant::now() < until, "they are still there");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Its own go on.
    assert!(!gone(super::room::init_of(&state, &bare)) && is_there(&boxed).await);
    for (agent, _) in &agents {
        let (ticket, ended) = pool.run(agent, "echo on").await;
        assert_eq!(ended.out, "on\n");
        assert!(ticket.box_id == bare.box_id || boxed.ends_with(ticket.box_id.as_str()));
    }
    // One that comes at the very end.
    let created = late().await;
    pool.tree.stop().await;
    assert!(!is_there(&created).await);
}
