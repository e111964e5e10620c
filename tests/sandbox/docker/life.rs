//! Start, stop, list and wait; whose boxes; engines that die.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use bollard::models::ContainerCreateBody;
use bollard::query_parameters::CreateContainerOptionsBuilder;
use portcullis_actors::sandbox_pool::docker::BoxEnd;
use portcullis_actors::sandbox_pool::docker::Docker;

use super::STAYS;
use super::Scene;
use crate::support::engine::Engine;

#[tokio::test]
async fn boxes_of_another_owner_are_neither_listed_nor_removed() {
    let mut ours = Scene::new("owner-a", STAYS);
    let mut theirs = Scene::new("owner-b", STAYS);
    let (mine, other) = (ours.driver().await, theirs.driver().await);
    let (a, mut b) = (ours.spec(), theirs.spec());
    b.boot = "boot-9".to_owned();
    mine.start(&a).await.unwrap();
    other.start(&b).await.unwrap();

    let found = mine.list("owner-a").await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(
        (found[0].id.clone(), found[0].running),
        (a.id.clone(), true)
    );
    assert_eq!(
        (found[0].boot.as_str(), found[0].profile_hash.as_str()),
        ("boot-1", "profile-1")
    );

    mine.stop(&b.id).await.unwrap();
    let found = other.list("owner-b").await.unwrap();
    assert_eq!(found.len(), 1, "a box of another owner was removed");
    assert_eq!((found[0].boot.as_str(), found[0].running), ("boot-9", true));
    assert_eq!(
        mine.wait(&b.id).await,
        BoxEnd::Gone,
        "another owner's box is not there for us"
    );

    mine.stop(&a.id).await.unwrap();
    other.stop(&b.id).await.unwrap();
    assert_eq!(mine.list("owner-a").await.unwrap(), []);
}

#[tokio::test]
async fn a_container_that_only_has_our_name_is_left_alone() {
    let mut scene = Scene::new("names", STAYS);
    let driver = scene.driver().await;
    let spec = scene.spec();
    let raw = scene.raw();
    let name = format!("portcullis-{}", spec.id.as_str());
    let options = CreateContainerOptionsBuilder::default().name(&name).build();
    let body = ContainerCreateBody {
        image: Some(driver.image().id.clone()),
        entrypoint: Some(vec!["sleep".to_owned(), "600".to_owned()]),
        ..ContainerCreateBody::default()
    };
    raw.create_container(Some(options), body).await.unwrap();
    assert!(driver.start(&spec).await.is_err(), "the name is taken");
    driver.stop(&spec.id).await.unwrap();
    assert!(
        raw.inspect_container(&name, None).await.is_ok(),
        "a foreign container was removed"
    );
    raw.remove_container(&name, None).await.unwrap();
}

#[tokio::test]
async fn stopping_twice_or_what_never_was_is_no_error() {
    let mut scene = Scene::new("twice", STAYS);
    let driver = scene.driver().await;
    let spec = scene.spec();
    driver.stop(&spec.id).await.unwrap();
    let pid = driver.start(&spec).await.unwrap().init_pid;
    let (one, two) = tokio::join!(driver.stop(&spec.id), driver.stop(&spec.id));
    one.unwrap();
    two.unwrap();
    driver.stop(&spec.id).await.unwrap();
    assert!(
        !Path::new(&format!("/proc/{pid}")).exists(),
        "its first process is left"
    );
    assert_eq!(driver.list("twice").await.unwrap(), []);
    assert_eq!(driver.wait(&spec.id).await, BoxEnd::Gone);
}

#[tokio::test]
async fn the_end_of_a_box_is_told_with_its_code() {
    let mut scene = Scene::new(
        "ends",
        "#!/bin/sh\nwhile [ ! -e /workspace/go ]; do sleep 0.05; done\nexit 3\n",
    );
    let driver = scene.driver().await;
    let spec = scene.spec();
    driver.start(&spec).await.unwrap();
    let waiting = driver.clone();
    let id = spec.id.clone();
    let end = tokio::spawn(async move { waiting.wait(&id).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!end.is_finished());
    fs::write(spec.workspace.join("go"), "").unwrap();
    let end = tokio::time::timeout(Duration::from_secs(10), end)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(end, BoxEnd::Exited { code: 3 });
    // What ended is still listed, as not running, until somebody stops it.
    let found = driver.list("ends").await.unwrap();
    assert_eq!((found.len(), found[0].running), (1, false));
    assert_eq!(
        driver.wait(&spec.id).await,
        BoxEnd::Exited { code: 3 },
        "asking late is the same"
    );
    driver.stop(&spec.id).await.unwrap();
}

#[tokio::test]
async fn a_killed_engine_is_told_within_two_seconds_and_its_boxes_are_found_again() {
    let engine = Arc::new(Engine::start());
    let mut scene = Scene::with(Arc::clone(&engine), "killed", STAYS);
    let driver = scene.driver().await;
    let spec = scene.spec();
    driver.start(&spec).await.unwrap();
    let waiting = driver.clone();
    let id = spec.id.clone();
    let end = tokio::spawn(async move { waiting.wait(&id).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!end.is_finished());

    let killed = Instant::now();
    engine.signal("KILL");
    let end = tokio::time::timeout(Duration::from_secs(2), end)
        .await
        .unwrap()
        .unwrap();
    assert!(matches!(end, BoxEnd::EngineLost { .. }), "{end:?}");
    assert!(killed.elapsed() < Duration::from_secs(2));

    // Without an engine each call ends with an error, at once.
    let asked = Instant::now();
    let other = scene.spec();
    assert_eq!(
        driver.start(&other).await.unwrap_err().code(),
        "BOX_START_FAILED"
    );
    assert_eq!(
        driver.stop(&spec.id).await.unwrap_err().code(),
        "BOX_STATE_UNKNOWN"
    );
    assert_eq!(
        driver.list("killed").await.unwrap_err().code(),
        "BOX_STATE_UNKNOWN"
    );
    assert!(matches!(
        driver.wait(&spec.id).await,
        BoxEnd::EngineLost { .. }
    ));
    let probed = Docker::connect(&scene.context, &scene.config())
        .await
        .unwrap_err();
    assert!(
        probed.to_string().contains("systemctl start docker"),
        "{probed}"
    );
    assert!(asked.elapsed() < Duration::from_secs(5));

    // The same driver serves again when the engine is back; what is left of the box is found and removed.
    engine.start_again();
    let found = driver.list("killed").await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].id, spec.id);
    driver.stop(&spec.id).await.unwrap();
    driver.start(&other).await.unwrap();
    driver.stop(&other.id).await.unwrap();
    assert_eq!(driver.list("killed").await.unwrap(), []);
}

#[tokio::test]
async fn a_hanging_engine_is_told_within_its_time_out() {
    let engine = Arc::new(Engine::start());
    let mut scene = Scene::with(Arc::clone(&engine), "hangs", STAYS);
    let driver = scene.driver().await;
    let spec = scene.spec();
    driver.start(&spec).await.unwrap();
    let waiting = driver.clone();
    let id = spec.id.clone();
    let end = tokio::spawn(async move { waiting.wait(&id).await });
    engine.signal("STOP");
    let end = tokio::time::timeout(Duration::from_secs(17), end).await;
    engine.signal("CONT");
    assert!(matches!(end.unwrap().unwrap(), BoxEnd::EngineLost { .. }));
    driver.stop(&spec.id).await.unwrap();
}

#[tokio::test]
async fn containers_that_were_made_and_never_started_are_found() {
    let scene = Scene::new("half", STAYS);
    let driver = scene.driver().await;
    let labels = HashMap::from(
        [
            ("portcullis.owner", "half"),
            ("portcullis.box", "0123456789ab"),
            ("portcullis.boot", "old"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned())),
    );
    let body = ContainerCreateBody {
        image: Some(driver.image().id.clone()),
        entrypoint: Some(vec!["sleep".to_owned()]),
        labels: Some(labels),
        ..ContainerCreateBody::default()
    };
    scene.raw().create_container(None, body).await.unwrap();
    let found = driver.list("half").await.unwrap();
    assert_eq!(
        (found.len(), found[0].running, found[0].boot.as_str()),
        (1, false, "old")
    );
    driver.stop(&found[0].id).await.unwrap();
    assert_eq!(driver.list("half").await.unwrap(), []);
}
