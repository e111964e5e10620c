//! The notices: a crash of the room tells nothing twice and loses nothing that is open, and no question notices it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use portcullis_actors::clock::Clock;
use portcullis_actors::exec::{HostConfig, ProgramGround};
use portcullis_actors::notices::{
    NoticesConfig, NoticesHandle, NoticesWiring, ProgramConfig, settings,
};
use portcullis_actors::plugins::Plugins;
use portcullis_actors::supervision::PanicAt;
use portcullis_core::ids::Hash32;

use super::approval::{ask, plan};
use super::real::{Ground, Trip, in_time};

#[tokio::test(flavor = "multi_thread")]
async fn notices_that_crash_tell_what_is_open_once_and_no_question_waits_for_them() {
    let (mut ground, trip) = (Ground::new(), Trip::default());
    let approval = ground.approval(&trip);
    // It ends with 0 whatever it is told.
    let program = std::path::Path::new("/usr/bin/true")
        .canonicalize()
        .unwrap();
    let sha256 = Hash32::of(&std::fs::read(&program).unwrap()).to_string();
    let plugins: Plugins = serde_json::from_value(serde_json::json!({
        "bell": { "path": program, "sha256": sha256 },
    }))
    .unwrap();
    let config = NoticesConfig {
        retry_ms: 20,
        attempts: 1000,
        program: ProgramConfig {
            plugin: "bell".to_owned(),
            ..ProgramConfig::default()
        },
        ..NoticesConfig::default()
    };
    let cell = ground.state.path().join("cell");
    std::fs::write(&cell, include_bytes!(env!("PORTCULLIS_CELL"))).unwrap();
    std::fs::set_permissions(&cell, std::os::unix::fs::PermissionsExt::from_mode(0o555)).unwrap();
    let wiring = NoticesWiring {
        settings: settings(&config, &plugins).unwrap(),
        plugins: Arc::new(plugins),
        ground: ProgramGround {
            cell,
            config: HostConfig::default(),
            operator_uids: vec![0],
            operator_gids: vec![],
            masked: vec![ground.state.path().join("audit")],
        },
        dir: ground.state.path().join("notices"),
        page: "https://gate.example/".to_owned(),
        approval: approval.clone(),
        vault: None,
        audit: ground.audit.clone(),
        clock: Clock::system(),
        tls: Arc::new(|_| Err(std::io::Error::other("no TLS here"))),
        version: "test".into(),
    };
    let notices = NoticesHandle::add(&mut ground.tree, wiring);
    assert!(notices.forwards());
    let house = ground.start().await;
    let told = async |count: u64| {
        let deadline = Instant::now() + Duration::from_mins(1);
        loop {
            let status = notices.status().await.unwrap_or_default();
            let one = status.channels.get("program").cloned().unwrap_or_default();
            if one.told == count && one.waiting == 0 {
                assert_eq!(one.error, None);
                assert_eq!(status.plugins["bell"].state, "ok");
                return;
            }
            assert!(one.told <= count && Instant::now() < deadline, "{status:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let first = ask(&approval, plan("-a")).await.unwrap();
    told(1).await;
    assert!(house.tree.window().panic("notices", PanicAt::Now));
    house.recovered("notices", 1).await;
    let second = ask(&approval, plan("-b")).await.unwrap();
    in_time(approval.cancel(&first, "over")).await.unwrap();
    in_time(approval.cancel(&second, "over")).await.unwrap();
    // That the second is open, and that both are over; not once more that the first was open.
    told(3).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    told(3).await;
    house.end().await;
}
