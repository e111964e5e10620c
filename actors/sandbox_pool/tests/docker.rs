//! The same suite over a Docker engine of the tests' own.

#[path = "../../../tests/support/engine.rs"]
#[allow(dead_code)]
mod engine;

use std::sync::Arc;

use super::harness::State;
use super::suite;
use crate::sandbox_pool::driver::Driver;
use crate::sandbox_pool::probe;
use crate::sandbox_pool::{Docker, EngineConfig};
use engine::Engine;

async fn driver(engine: &Arc<Engine>, state: &State) -> Driver {
    let config = EngineConfig {
        engine: Some(format!("unix://{}", engine.socket().display())),
        ..EngineConfig::default()
    };
    Driver::Docker(Docker::connect(&state.context, &config).await.unwrap())
}

macro_rules! promises {
    ($($name:ident),* $(,)?) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            let engine = Engine::shared();
            let state = State::new();
            suite::$name(&driver(&engine, &state).await, &state).await;
        }
    )*};
}

promises!(
    streams_and_codes,
    many_runs,
    supervisors,
    walls,
    fork_bomb,
    memory,
    tree,
    stubborn,
    background,
    output,
    unread,
    hostile_peer,
    found_again,
    dead_man,
    redials,
);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_probe_proves_walls() {
    let engine = Engine::shared();
    let state = State::new();
    probe::prove(&driver(&engine, &state).await, &state.context, true)
        .await
        .unwrap();
    assert!(
        std::fs::read_dir(&state.context.workspaces)
            .unwrap()
            .next()
            .is_none()
    );
    assert!(
        std::fs::read_dir(state.context.run_root.join("b"))
            .unwrap()
            .next()
            .is_none()
    );
}
