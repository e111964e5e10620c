//! The same suite behind Podman's socket.

#[path = "../../../tests/support/podman.rs"]
#[allow(dead_code)]
mod service;

use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::harness::State;
use crate::sandbox_pool::containers::Containers;
use crate::sandbox_pool::driver::Driver;
use crate::sandbox_pool::{Docker, EngineConfig, probe};
use service::Podman;

static SHARED: Mutex<Weak<Podman>> = Mutex::new(Weak::new());

/// One for all tests that run at the same time.
fn shared() -> Arc<Podman> {
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    shared.upgrade().unwrap_or_else(|| {
        let podman = Arc::new(Podman::start());
        *shared = Arc::downgrade(&podman);
        podman
    })
}

async fn driver(podman: &Podman, state: &State) -> Driver {
    let config = EngineConfig {
        engine: Some(podman.host()),
        ..EngineConfig::default()
    };
    Driver::Docker(Containers::Here(
        Docker::connect(&state.context, &config).await.unwrap(),
    ))
}

async fn held(state: &State) -> (Arc<Podman>, Driver) {
    let podman = shared();
    let driver = driver(&podman, state).await;
    (podman, driver)
}

promises!(held);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_probe_proves_walls() {
    let podman = shared();
    let state = State::new();
    let driver = driver(&podman, &state).await;
    assert!(driver_words(&driver).starts_with("Podman "));
    probe::prove(&driver, &state.context, true).await.unwrap();
}

fn driver_words(driver: &Driver) -> String {
    match driver {
        Driver::Docker(docker) => docker.describe(),
        Driver::Native(_) => String::new(),
    }
}
