//! Agents on different drivers, in one pool: what each of the two does at its start, later and at its end is nothing to the other's.

use std::time::{Duration, Instant};

use portcullis_core::ids::AgentId;
use portcullis_core::sandbox::{DriverChoice, ImageName, Isolation, Mounts, Overrides};

use super::docker::{self, Engine};
use super::harness::{Live, State};
use super::room::{Pool, gone, profiles};
use super::scopes::sessions;
use crate::sandbox_pool::{
    Driver, Native, OtherDriver, PoolError, SandboxPoolConfig, SandboxPoolHandle,
};
use crate::supervision::CallError;

fn on(driver: DriverChoice) -> Overrides {
    Overrides {
        driver: Some(driver),
        ..Overrides::default()
    }
}

/// `d` on Docker, `n` on the native driver, `a` on what there is; of others nothing is said, and they have the native one.
fn agents() -> Vec<(&'static str, Overrides)> {
    vec![
        ("d", on(DriverChoice::Docker)),
        ("n", on(DriverChoice::Native)),
        ("a", on(DriverChoice::Auto)),
    ]
}

async fn others(pool: &SandboxPoolHandle) -> Vec<OtherDriver> {
    pool.status().await.unwrap().others
}

async fn refused(pool: &mut Pool, agent: &str) -> PoolError {
    match pool.begin(agent, "true").await {
        Err(CallError::Refused(error)) => error,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("{agent} runs"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_driver_has_not_is_refused_whatever_the_other_one_has() {
    let engine = Engine::shared();
    let state = State::new();
    let mut agents = agents();
    for (name, driver) in [
        ("strong", DriverChoice::Docker),
        ("weak", DriverChoice::Native),
    ] {
        let says = Overrides {
            min_isolation: Some(Isolation::Docker),
            ..on(driver)
        };
        agents.push((name, says));
    }
    let tools = Overrides {
        image: ImageName::new("tools:1").ok(),
        ..on(DriverChoice::Native)
    };
    agents.push(("tools", tools));
    // A folder that holds the socket is the engine itself, for a box of any driver.
    for (name, driver) in [
        ("bold", DriverChoice::Native),
        ("bolder", DriverChoice::Docker),
    ] {
        let says = Overrides {
            mounts: Mounts::new([format!("{}:x", engine.folder().display())]).ok(),
            ..on(driver)
        };
        agents.push((name, says));
    }
    let change = |config: &mut SandboxPoolConfig| config.engine = Some(engine.host());
    let mut pool = Pool::with_agents(&state, change, &agents).await;
    for (agent, code) in [
        ("weak", "ISOLATION_TOO_WEAK"),
        ("tools", "IMAGE_UNUSABLE"),
        ("bold", "MOUNT_REFUSED"),
        ("bolder", "MOUNT_REFUSED"),
    ] {
        let error = refused(&mut pool, agent).await;
        assert_eq!(error.code().name, code, "{agent}: {error}");
        if code == "MOUNT_REFUSED" {
            let socket = engine.socket().display().to_string();
            assert!(error.to_string().contains(&socket), "{error}");
        }
    }
    for agent in ["strong", "n", "other"] {
        let (_, ended) = pool.run(agent, "echo here").await;
        assert_eq!(ended.out, "here\n", "{agent}");
    }
    let listed = pool.handle.list().await.unwrap();
    let mut listed: Vec<_> = listed
        .iter()
        .map(|shown| (shown.agent.as_ref().unwrap().as_str(), shown.driver))
        .collect();
    listed.sort_unstable();
    let expected = [("n", "native"), ("other", "native"), ("strong", "docker")];
    assert_eq!(listed, expected);
    pool.tree.stop().await;
}

/// Nobody waits for a driver that is not his.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_answers_nothing_holds_nobody_up_but_its_own_agents() {
    let state = State::new();
    let path = state.folder.path().join("hangs.sock");
    // Connections are taken, and nothing is ever said.
    let _hangs = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let host = format!("unix://{}", path.display());
    let change = |config: &mut SandboxPoolConfig| config.engine = Some(host);
    let agents = [("d", on(DriverChoice::Docker))];
    let mut pool = Pool::with_agents(&state, change, &agents).await;
    let (ticket, ended) = pool.run("n", "echo here").await;
    assert_eq!((ticket.driver, ended.out.as_str()), ("native", "here\n"));
    let others = others(&pool.handle).await;
    let [docker] = &others[..] else {
        panic!("{others:?}");
    };
    assert!(docker.is_trying && !docker.is_proven, "{docker:?}");
    pool.tree.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_names_a_driver_that_is_not_there_is_told_which_and_where_it_is_named() {
    let state = State::new();
    let nowhere = "unix:///nonexistent/docker.sock".to_owned();
    let change = |config: &mut SandboxPoolConfig| config.engine = Some(nowhere);
    let mut pool = Pool::with_agents(&state, change, &agents()).await;
    let error = refused(&mut pool, "d").await;
    assert_eq!(error.code().name, "NO_DRIVER");
    let text = error.to_string();
    for part in [
        "driver \"docker\" of [agents.d.sandbox] cannot be used",
        "no other is taken for it",
        "run `apt-get install docker.io busybox-static`",
    ] {
        assert!(text.contains(part), "{text}");
    }
    let (ticket, _) = pool.run("a", "true").await;
    assert_eq!(ticket.driver, "native");
    // Why it is native is said to whom that was left, and to nobody who named it.
    let agent = |name: &str| AgentId::new(name).ok();
    let why = pool.handle.explain(agent("n")).await.unwrap().driver_why;
    assert!(!why.contains("Docker"), "{why}");
    pool.tree.stop().await;
}

/// The trial of a driver goes on while another makes boxes; it must not take their folders for an earlier life's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_box_that_is_made_while_another_driver_is_tried_keeps_its_folder() {
    let engine = Engine::shared();
    let state = State::new();
    let base = state.context.run_root.join("b");
    // As a kill leaves one between a folder and its box.
    std::fs::create_dir_all(base.join("00000000dead")).unwrap();
    let change = |config: &mut SandboxPoolConfig| config.engine = Some(engine.host());
    let mut pool = Pool::with_agents(&state, change, &agents()).await;
    let (native, _) = pool.run("n", "true").await;
    let (docker, _) = pool.run("d", "true").await;
    let until = Instant::now() + Duration::from_secs(20);
    while base.join("00000000dead").exists() {
        assert!(Instant::now() < until, "what was left is still there");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for ticket in [native, docker] {
        let folder = base.join(ticket.box_id.as_str());
        assert!(folder.join("s").exists(), "{} is gone", folder.display());
    }
    pool.tree.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_driver_that_a_later_word_names_is_proven_then() {
    let engine = Engine::shared();
    let state = State::new();
    let mut config = SandboxPoolConfig::default();
    config.says.driver = Some(DriverChoice::Native);
    let change = |config: &mut SandboxPoolConfig| config.engine = Some(engine.host());
    let mut pool = Pool::start(&state, change).await;
    let (first, _) = pool.run("n", "true").await;
    assert_eq!(others(&pool.handle).await, []);
    pool.handle
        .set_profiles(profiles(&config, &agents()))
        .await
        .unwrap();
    let (ticket, ended) = pool.run("d", "echo here").await;
    assert_eq!((ticket.driver, ended.out.as_str()), ("docker", "here\n"));
    let (again, _) = pool.run("n", "true").await;
    assert_eq!(again.box_id, first.box_id);
    // A word that changes under a box: the next run is in another one.
    let other = [("n", on(DriverChoice::Docker))];
    pool.handle
        .set_profiles(profiles(&config, &other))
        .await
        .unwrap();
    let (moved, _) = pool.run("n", "true").await;
    assert_eq!(moved.driver, "docker");
    assert_ne!(moved.box_id, first.box_id);
    assert_ne!(moved.profile_hash, first.profile_hash);
    pool.tree.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_earlier_life_left_is_ended_by_each_driver() {
    let engine = Engine::shared();
    let state = State::new();
    let native = Driver::Native(Native::find(&state.context).await.unwrap());
    let docker = docker::driver(&engine, &state).await;
    let mut orphans = Vec::new();
    for (driver, agent) in [(&native, "n"), (&docker, "d")] {
        let orphan = Live::start(driver, state.spec(agent)).await;
        // The daemon is gone without a word: its link, not its box.
        orphan.served.abort();
        assert!(!gone(orphan.started.init_pid));
        orphans.push(orphan.started.init_pid);
    }
    let change = |config: &mut SandboxPoolConfig| config.engine = Some(engine.host());
    let mut pool = Pool::with_agents(&state, change, &agents()).await;
    for (agent, init) in ["n", "d"].into_iter().zip(orphans) {
        pool.run(agent, "true").await;
        assert!(gone(init), "{agent}'s is there");
    }
    pool.tree.stop().await;
    let left = docker.list(&state.context.owner).await.unwrap();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn boxes_are_kept_ready_by_each_driver_and_by_none_that_is_away() {
    let engine = Engine::start();
    let state = State::new();
    let agents = [DriverChoice::Docker, DriverChoice::Native].map(|driver| {
        let says = Overrides {
            driver: Some(driver),
            ..sessions()
        };
        (driver.as_str(), says)
    });
    let change = |config: &mut SandboxPoolConfig| config.engine = Some(engine.host());
    let mut pool = Pool::with_agents(&state, change, &agents).await;
    let until = Instant::now() + Duration::from_mins(1);
    let ready = |pool: SandboxPoolHandle| async move {
        loop {
            let boxes = pool.list().await.unwrap();
            let serves = boxes.iter().filter(|one| one.state == "serves");
            let mut serves: Vec<_> = serves
                .filter(|one| one.scope.is_none())
                .map(|one| one.driver)
                .collect();
            serves.sort_unstable();
            serves.dedup();
            if serves == ["docker", "native"] {
                return;
            }
            assert!(Instant::now() < until, "{boxes:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    ready(pool.handle.clone()).await;
    engine.signal("KILL");
    // What is ready serves without its engine, and the other driver makes new ones.
    let until_lost = Instant::now() + Duration::from_mins(1);
    while others(&pool.handle).await.iter().all(|one| one.is_proven) {
        assert!(Instant::now() < until_lost, "its loss is not seen");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for session in ["one", "two"] {
        pool.session(session);
        let (ticket, _) = pool.run("native", "true").await;
        assert_eq!(ticket.driver, "native");
    }
    engine.start_again();
    ready(pool.handle.clone()).await;
    pool.tree.stop().await;
}
