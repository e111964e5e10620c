//! The default image: imported once, believed by content, used by id.

use std::path::Path;
use std::sync::Arc;

use bollard::query_parameters::CreateImageOptionsBuilder;
use bollard::query_parameters::ListImagesOptionsBuilder;
use bollard::query_parameters::RemoveImageOptionsBuilder;
use futures_util::TryStreamExt;
use portcullis_actors::sandbox_pool::image;

use super::STAYS;
use super::Scene;
use crate::support::engine::Engine;

#[tokio::test]
async fn the_image_is_imported_once_and_boxes_are_made_from_its_id() {
    // Its own engine: others' images would come and go.
    let mut scene = Scene::with(Arc::new(Engine::start()), "image", STAYS);
    let raw = scene.raw();
    let first = scene.driver().await;
    let second = scene.driver().await;
    assert_eq!(first.image(), second.image());
    let all = ListImagesOptionsBuilder::default().all(true).build();
    assert_eq!(raw.list_images(Some(all.clone())).await.unwrap().len(), 1);

    // Somebody puts another image under our tag and our label: content decides, neither of them.
    let rootfs = image::root_fs(Path::new(image::BUSYBOX)).await.unwrap();
    assert_eq!(rootfs.digest(), first.image().rootfs);
    let mut evil = rootfs.tar().to_vec();
    let root_entry = evil
        .windows(10)
        .position(|bytes| bytes == b"/bin/false")
        .unwrap();
    evil[root_entry..root_entry + 10].copy_from_slice(b"/bin/sh   ");
    let options = CreateImageOptionsBuilder::default()
        .from_src("-")
        .repo("portcullis/base")
        .tag(rootfs.digest())
        .changes(vec![format!(
            "LABEL {}={}",
            image::ROOTFS_LABEL,
            rootfs.digest()
        )])
        .build();
    let body = bollard::body_full(evil.into());
    let imported: Vec<_> = raw
        .create_image(Some(options), Some(body), None)
        .try_collect()
        .await
        .unwrap();
    let evil_id = imported.last().unwrap().status.clone().unwrap();
    let third = scene.driver().await;
    assert_eq!(third.image(), first.image());
    assert_ne!(third.image().id, evil_id);

    // An image with our very layer but a config of its own is not ours either.
    let options = CreateImageOptionsBuilder::default()
        .from_src("-")
        .repo("portcullis/base")
        .tag("other")
        .changes(vec![format!(
            "LABEL {}={}\nENV LD_PRELOAD=/workspace/x.so",
            image::ROOTFS_LABEL,
            rootfs.digest()
        )])
        .build();
    let body = bollard::body_full(rootfs.tar().to_vec().into());
    raw.create_image(Some(options), Some(body), None)
        .try_collect::<Vec<_>>()
        .await
        .unwrap();
    assert_eq!(scene.driver().await.image(), first.image());

    // The box is made from the id, and says so.
    let spec = scene.spec();
    let started = first.start(&spec).await.unwrap();
    let name = format!("portcullis-{}", spec.id.as_str());
    let made = raw.inspect_container(&name, None).await.unwrap();
    assert_eq!(made.image.as_deref(), Some(first.image().id.as_str()));
    assert_eq!(
        made.config.unwrap().image.as_deref(),
        Some(first.image().id.as_str())
    );
    assert_eq!(
        started.image_digest.as_deref(),
        Some(first.image().id.as_str())
    );
    first.stop(&spec.id).await.unwrap();

    // Somebody prunes images while the gateway runs: the next box imports it again.
    let force = RemoveImageOptionsBuilder::default().force(true).build();
    for image in raw.list_images(Some(all)).await.unwrap() {
        raw.remove_image(&image.id, Some(force.clone()), None)
            .await
            .unwrap();
    }
    let spec = scene.spec();
    let again = first.start(&spec).await.unwrap();
    assert_ne!(again.image_digest, None);
    first.stop(&spec.id).await.unwrap();
}
