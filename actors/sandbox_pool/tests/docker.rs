//! The same suite over a Docker engine of the tests' own.

#[path = "../../../tests/support/engine.rs"]
#[allow(dead_code)]
mod engine;

use std::path::Path;
use std::sync::Arc;

use bollard::query_parameters::{CreateImageOptionsBuilder, RemoveImageOptionsBuilder};
use futures_util::StreamExt as _;

use super::harness::State;
use crate::sandbox_pool::containers::Containers;
use crate::sandbox_pool::driver::Driver;
use crate::sandbox_pool::image;
use crate::sandbox_pool::probe;
use crate::sandbox_pool::{Docker, EngineConfig};
pub use engine::Engine;

pub fn raw(engine: &Engine) -> bollard::Docker {
    let version = bollard::API_DEFAULT_VERSION;
    bollard::Docker::connect_with_unix(&engine.host(), 60, version).unwrap()
}

/// An image of the operator's: the default one's files, and `/etc/marker`. Returns its id.
pub async fn import(engine: &Engine, name: &str, marker: &str, changes: &[&str]) -> String {
    let rootfs = image::root_fs(Path::new(image::BUSYBOX)).await.unwrap();
    let mut files = rootfs.tar().to_vec();
    while files.ends_with(&[0; 512]) {
        files.truncate(files.len() - 512);
    }
    let mut tar = tar::Builder::new(files);
    let mut header = tar::Header::new_gnu();
    let text = format!("{marker}\n");
    header.set_size(text.len() as u64);
    header.set_mode(0o444);
    tar.append_data(&mut header, "etc/marker", text.as_bytes())
        .unwrap();
    let (repository, tag) = name.split_once(':').unwrap();
    let options = CreateImageOptionsBuilder::default()
        .from_src("-")
        .repo(repository)
        .tag(tag)
        .changes(
            changes
                .iter()
                .map(|&change| change.to_owned())
                .collect::<Vec<_>>(),
        )
        .build();
    let raw = raw(engine);
    let body = bollard::body_full(tar.into_inner().unwrap().into());
    let mut said = raw.create_image(Some(options), Some(body), None);
    while let Some(said) = said.next().await {
        said.unwrap();
    }
    raw.inspect_image(name).await.unwrap().id.unwrap()
}

/// Takes an image away, whatever its names are.
pub async fn remove(engine: &Engine, id: &str) {
    let options = RemoveImageOptionsBuilder::default().force(true).build();
    raw(engine)
        .remove_image(id, Some(options), None)
        .await
        .unwrap();
}

pub async fn driver(engine: &Arc<Engine>, state: &State) -> Driver {
    let config = EngineConfig {
        engine: Some(format!("unix://{}", engine.socket().display())),
        ..EngineConfig::default()
    };
    Driver::Docker(Containers::Here(
        Docker::connect(&state.context, &config).await.unwrap(),
    ))
}

async fn held(state: &State) -> (Arc<Engine>, Driver) {
    let engine = Engine::shared();
    let driver = driver(&engine, state).await;
    (engine, driver)
}

promises!(held);

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
