//! What happens when the log cannot be written, or a run's own actor breaks.

use std::time::Duration;

use portcullis_core::approval::Word;
use portcullis_core::codes;
use portcullis_core::plan::Target;

use super::harness::{Folders, alive, finish, house, house_with, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_recorded_does_not_run() {
    let folders = Folders::new();
    let other = tempfile::tempdir().unwrap();
    let audit = super::harness::mute(other.path()).await;
    let mut house = house_with(&folders, 1, |wiring| wiring.audit = audit).await;
    let mark = folders.path("ran");
    let line = format!("touch {}", mark.display());
    let request = house.request(Target::Host, &["sh", "-c", &line]);
    let (accepted, seen) = house.begin(request).await.unwrap();
    house.answer(&accepted, Word::AllowOnce).await;
    let ended = finish(seen).await;
    assert_eq!(ended.result.status, "denied");
    assert_eq!(ended.result.error.unwrap().0, codes::CANNOT_RECORD);
    let request = house.request(Target::Sandbox, &["touch", "/workspace/ran"]);
    let (_, ended) = house.run(request).await.unwrap();
    assert_eq!(ended.result.error.unwrap().0, codes::CANNOT_RECORD);
    assert!(!mark.exists());
    let workspace = folders.state.path().join("workspaces/demo/ran");
    assert!(!workspace.exists());
    house.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_whose_actor_crashes_is_recorded_told_and_ended() {
    let folders = Folders::new();
    for target in [Target::Sandbox, Target::Host] {
        let boot = if target == Target::Host { 2 } else { 1 };
        let mut house = house(&folders, boot).await;
        let mark = format!("{}.25", 900 + u32::from(boot));
        let request = house.request(target.clone(), &["sleep", &mark]);
        let (accepted, seen) = house.begin(request).await.unwrap();
        if accepted.approval_id.is_some() {
            house.answer(&accepted, Word::AllowOnce).await;
        }
        let line = format!("sleep {mark}");
        until("it starts", Duration::from_secs(10), || alive(&line)).await;
        house.exec.break_run(accepted.run_id.clone()).await;
        let ended = finish(seen).await;
        assert_eq!(ended.result.status, "unknown");
        assert_eq!(ended.result.error.unwrap().0, codes::RUN_UNKNOWN);
        until("its process ends", Duration::from_secs(4), || !alive(&line)).await;
        let intent = format!("{:?}", house.intents().await.last().unwrap());
        assert!(intent.contains("RUN_UNKNOWN"), "{intent}");
        // The room itself, and its next run, are as before.
        let request = house.request(Target::Sandbox, &["true"]);
        assert_eq!(
            house.run(request).await.unwrap().1.result.exit_code,
            Some(0)
        );
        house.end().await;
    }
}
