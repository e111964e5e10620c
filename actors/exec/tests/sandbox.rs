//! Runs in boxes.

use std::time::{Duration, Instant};

use portcullis_core::codes;
use portcullis_core::ids::AgentId;
use portcullis_core::plan::Target;

use super::harness::{Folders, alive, house, operator, until};
use crate::exec::ExecEvent;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_streams_exits_and_is_recorded() {
    let folders = Folders::new();
    let mut house = house(&folders, 1).await;
    let mut request = house.request(
        Target::Sandbox,
        &["sh", "-c", "echo $A; echo b >&2; exit 7"],
    );
    request.env.insert("A".to_owned(), "a".to_owned());
    let (accepted, ended) = house.run(request).await.unwrap();
    assert_eq!(accepted.status, "accepted");
    assert_eq!((ended.out.as_str(), ended.err.as_str()), ("a\n", "b\n"));
    let result = &ended.result;
    assert_eq!((result.status, result.exit_code), ("exited", Some(7)));
    assert_eq!(result.provenance["driver"], "native");
    assert_eq!(result.provenance["ruleId"], "config:agents.demo.exec=full");
    let intents = house.intents().await;
    assert_eq!(intents.len(), 1);
    let text = format!("{:?}", intents[0]);
    for part in ["exec.run", "exit_code", "sh -c"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert_eq!(house.exec.live().await, 0);
    house.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_good_for_one_run() {
    let folders = Folders::new();
    let mut house = house(&folders, 1).await;
    let request = house.request(
        Target::Sandbox,
        &["sh", "-c", "echo x >> /workspace/ran; cat /workspace/ran"],
    );
    let (_, first) = house.run(request.clone()).await.unwrap();
    assert_eq!(first.out, "x\n");
    let (_, again) = house.run(request).await.unwrap();
    assert_eq!((again.result.status, again.out.as_str()), ("denied", ""));
    let (code, message) = again.result.error.unwrap();
    assert_eq!(code, codes::KEY_USED);
    assert!(message.contains("which ended with exit code"), "{message}");
    let count = house.request(Target::Sandbox, &["cat", "/workspace/ran"]);
    assert_eq!(house.run(count).await.unwrap().1.out, "x\n");
    house.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_is_cancelled_only_by_its_own_and_times_out() {
    let folders = Folders::new();
    let mut house = house(&folders, 1).await;
    let request = house.request(Target::Sandbox, &["sleep", "71.5"]);
    let (accepted, mut seen) = house.begin(request).await.unwrap();
    let mut other = operator(12);
    other.scopes = portcullis_core::auth::ScopeSet::empty();
    let refused = house
        .exec
        .cancel(accepted.run_id.clone(), &other, "c9")
        .await;
    assert_eq!(refused.unwrap_err().code, codes::RUN_NOT_FOUND);
    until("it starts", Duration::from_secs(10), || alive("sleep 71.5")).await;
    house
        .exec
        .cancel(accepted.run_id, &operator(0), "c1")
        .await
        .unwrap();
    let Some(ExecEvent::Ended(result)) = seen.recv().await else {
        panic!("no end");
    };
    assert_eq!(result.status, "cancelled");
    assert!(!alive("sleep 71.5"));

    let mut request = house.request(Target::Sandbox, &["sleep", "72.5"]);
    request.timeout_ms = Some(200);
    let begun = Instant::now();
    let (_, ended) = house.run(request).await.unwrap();
    assert_eq!(ended.result.status, "timed-out");
    assert!(begun.elapsed() < Duration::from_secs(3));
    house.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_is_gone_or_a_credential_that_ended_ends_the_run() {
    let folders = Folders::new();
    let mut house = house(&folders, 1).await;
    let request = house.request(Target::Sandbox, &["sleep", "73.5"]);
    let (_, seen) = house.begin(request).await.unwrap();
    until("it starts", Duration::from_secs(10), || alive("sleep 73.5")).await;
    drop(seen);
    until("it ends", Duration::from_secs(4), || !alive("sleep 73.5")).await;

    let request = house.request(Target::Sandbox, &["sleep", "74.5"]);
    let (_, mut seen) = house.begin(request).await.unwrap();
    until("it starts", Duration::from_secs(10), || alive("sleep 74.5")).await;
    house.session.set(Some("revoked".to_owned()));
    let Some(ExecEvent::Ended(result)) = seen.recv().await else {
        panic!("no end");
    };
    assert_eq!(result.status, "cancelled");
    assert_eq!(result.error.unwrap().0, codes::SESSION_ENDED);
    // And none begins under it.
    let request = house.request(Target::Sandbox, &["true"]);
    let (_, ended) = house.run(request).await.unwrap();
    assert_eq!(ended.result.status, "denied");
    assert_eq!(ended.result.error.unwrap().0, codes::SESSION_ENDED);
    house.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_runs_and_bad_requests_are_refused() {
    let folders = Folders::new();
    let mut house = super::harness::house_with(&folders, 1, |wiring| {
        wiring.config.runs_per_agent = 1;
    })
    .await;
    let request = house.request(Target::Sandbox, &["sleep", "75.5"]);
    let (accepted, seen) = house.begin(request).await.unwrap();
    let request = house.request(Target::Sandbox, &["true"]);
    let refused = house.begin(request).await.unwrap_err();
    assert_eq!(refused.code, codes::TOO_MANY_RUNS);
    house
        .exec
        .cancel(accepted.run_id, &operator(0), "c1")
        .await
        .unwrap();
    super::harness::finish(seen).await;
    until("its place is free", Duration::from_secs(2), || true).await;
    while house.exec.live().await > 0 {}
    for (argv, env, cwd) in [
        (vec![""], None, None),
        (vec!["true"], Some("LD_PRELOAD"), None),
        (vec!["true"], None, Some("/workspace/../etc")),
        (vec!["a\0b"], None, None),
    ] {
        let mut request = house.request(Target::Sandbox, &argv);
        request
            .env
            .extend(env.map(|name| (name.to_owned(), "x".to_owned())));
        request.cwd = cwd.map(str::to_owned);
        let refused = house.begin(request).await.unwrap_err();
        assert_eq!(refused.code, codes::INVALID_PARAMS, "{argv:?} {refused}");
        while house.exec.live().await > 0 {}
    }
    house.end().await;
}

/// A request's variables and secrets are on the agent's list, or nothing runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_variable_that_is_not_on_the_agents_list_is_refused_before_anything_runs() {
    let folders = Folders::new();
    let mut house = house(&folders, 1).await;
    let argv = ["sh", "-c", "echo $ALLOWED $CI_JOB"];
    let mut request = house.request(Target::Sandbox, &argv);
    request.agent = AgentId::new("narrow").unwrap();
    for name in ["ALLOWED", "CI_JOB"] {
        request.env.insert(name.to_owned(), name.to_lowercase());
    }
    let (_, ended) = house.run(request.clone()).await.unwrap();
    assert_eq!(ended.out, "allowed ci_job\n", "{:?}", ended.result);
    let mut other = request.clone();
    "key-of-another".clone_into(&mut other.idempotency_key);
    other.env.insert("OTHER".to_owned(), "x".to_owned());
    let mut secret = request.clone();
    "key-of-a-third".clone_into(&mut secret.idempotency_key);
    secret.secrets.insert("TOKEN".to_owned(), "NAME".to_owned());
    for (refused, name) in [(other.clone(), "OTHER"), (secret, "TOKEN")] {
        let error = house.run(refused).await.unwrap_err();
        assert_eq!(error.code, codes::ENV_NOT_ALLOWED, "{error:?}");
        assert!(format!("{error:?}").contains(name), "{error:?}");
    }
    // Of another agent nobody has said so.
    other.agent = AgentId::new("demo").unwrap();
    let (_, ended) = house.run(other).await.unwrap();
    assert_eq!(ended.out, "allowed ci_job\n");
    house.end().await;
}
