//! Commands of the host: asked for, frozen, run by descriptor.

use std::time::Duration;

use portcullis_core::approval::Word;
use portcullis_core::audit::{Body, Query};
use portcullis_core::codes;
use portcullis_core::plan::Target;

use super::harness::{Folders, alive, finish, house, house_of, house_with, operator, until};
use crate::approval::ApprovalConfig;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_command_waits_and_runs_as_somebody_else() {
    let folders = Folders::new();
    let mut house = house(&folders, 1).await;
    let request = house.request(Target::Host, &["sh", "-c", "id -u; echo $PATH $0; umask; ls -l /proc/self/fd | tail -n +2 | wc -l; ls -l /proc/self/fd >&2"]);
    let (accepted, seen) = house.begin(request).await.unwrap();
    assert_eq!(accepted.status, "approval-pending");
    assert!(house.intents().await.is_empty(), "nothing before the word");
    house.answer(&accepted, Word::AllowOnce).await;
    let ended = finish(seen).await;
    assert_eq!(ended.result.status, "exited", "{ended:?}");
    let lines: Vec<&str> = ended.out.lines().collect();
    let own = rustix::process::geteuid();
    let uid = if own.is_root() {
        "65534".to_owned()
    } else {
        own.as_raw().to_string()
    };
    assert_eq!(lines[0], uid);
    assert!(
        lines[1].starts_with("/usr/local/sbin:") && lines[1].ends_with(" sh"),
        "{lines:?}"
    );
    assert_eq!(lines[2], "0077");
    // 0, 1, 2, and the folder that ls reads.
    assert_eq!(lines[3].trim(), "4", "no descriptor of ours: {}", ended.err);
    assert_eq!(ended.result.provenance["driver"], "host");
    assert_eq!(house.intents().await.len(), 1);
    house.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_says_no() {
    let folders = Folders::new();
    let mut house = house(&folders, 1).await;
    let mark = folders.path("ran");
    let request = house.request(Target::Host, &["touch", mark.to_str().unwrap()]);
    let (accepted, seen) = house.begin(request.clone()).await.unwrap();
    house.answer(&accepted, Word::Deny).await;
    let ended = finish(seen).await;
    assert_eq!(ended.result.status, "denied");
    let (code, message) = ended.result.error.unwrap();
    assert_eq!(code, codes::APPROVAL_DENIED);
    assert_eq!(message, "uid:0 refused this command");
    assert!(!mark.exists() && house.intents().await.is_empty());
    // The same key again is the same no.
    while house.exec.live().await > 0 {}
    let refused = house.begin(request).await.unwrap_err();
    assert_eq!(refused.code, codes::APPROVAL_DENIED);
    house.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_frozen_runs_and_not_what_replaced_it() {
    let folders = Folders::new();
    let mut house = house(&folders, 1).await;
    let script = folders.script("tool.sh", "#!/bin/sh\necho old $1 $0\n");
    let request = house.request(Target::Host, &[&script, "one"]);
    let (accepted, seen) = house.begin(request).await.unwrap();
    folders.script("tool.sh", "#!/bin/sh\necho new\n");
    std::fs::remove_file(&script).unwrap();
    folders.script("tool.sh", "#!/bin/sh\necho newer\n");
    house.answer(&accepted, Word::AllowOnce).await;
    let ended = finish(seen).await;
    assert!(ended.out.starts_with("old one /proc/self/fd/"), "{ended:?}");
    // A program that others can change is copied too.
    let copy = folders.path("true-copy");
    std::fs::copy("/usr/bin/echo", &copy).unwrap();
    let request = house.request(Target::Host, &[copy.to_str().unwrap(), "frozen"]);
    let (accepted, seen) = house.begin(request).await.unwrap();
    std::fs::remove_file(&copy).unwrap();
    std::fs::copy("/usr/bin/false", &copy).unwrap();
    house.answer(&accepted, Word::AllowOnce).await;
    assert_eq!(finish(seen).await.out, "frozen\n");
    // The record of the act says under which policy, by whose word, and how long each took.
    let one = |action: &str| Query {
        action: Some(action.to_owned()),
        ..Query::default()
    };
    let ran = house.audit.query(one("exec.run")).await.unwrap();
    let Body::Intent(entry) = &ran[0].record.body else {
        panic!()
    };
    let said = house.audit.query(one("approval.resolve")).await.unwrap();
    let proof = entry.proof.as_ref().unwrap();
    assert_eq!(proof.recorded, said[0].record.seq);
    assert_eq!(proof.decision, "allow-once");
    assert!(proof.how.contains("uid by the kernel"), "{proof:?}");
    assert!(entry.detail.contains_key("waited_ms"));
    let policy = entry.policy_hash.unwrap();
    let asked = house.audit.query(one("approval.requested")).await.unwrap();
    let Body::Event(question) = &asked[0].record.body else {
        panic!()
    };
    assert_eq!(question.policy_hash, Some(policy));
    let ended = &ran[0].outcome.as_ref().unwrap().outcome.detail;
    assert!(ended.contains_key("took_ms") && ended.contains_key("duration_ms"));
    house.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_outlives_the_gateway_and_is_taken_up_by_its_key() {
    let folders = Folders::new();
    let mark = folders.path("ran");
    let line = format!("echo x >> {}", mark.display());
    let mut first = house(&folders, 1).await;
    let request = first.request(Target::Host, &["sh", "-c", &line]);
    let (accepted, seen) = first.begin(request.clone()).await.unwrap();
    first.end().await;
    assert_eq!(finish(seen).await.result.status, "cancelled");

    let house = house(&folders, 2).await;
    let mut again = request.clone();
    again.session = house.session.reader();
    let mut other = again.clone();
    other.argv = vec!["id".to_owned()];
    let refused = house.begin(other).await.unwrap_err();
    assert_eq!(refused.code, codes::INVALID_PARAMS);
    while house.exec.live().await > 0 {}
    let (taken, seen) = house.begin(again.clone()).await.unwrap();
    assert_eq!(taken.approval_id, accepted.approval_id);
    assert_eq!(taken.plan_hash, accepted.plan_hash);
    house.answer(&taken, Word::AllowOnce).await;
    assert_eq!(finish(seen).await.result.exit_code, Some(0));
    while house.exec.live().await > 0 {}
    let refused = house.begin(again).await.unwrap_err();
    assert_eq!(refused.code, codes::KEY_USED);
    assert!(
        refused.message.contains("ended with exit code 0"),
        "{refused}"
    );
    assert_eq!(std::fs::read_to_string(&mark).unwrap(), "x\n");
    house.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_is_gone_takes_question_and_process_along() {
    let folders = Folders::new();
    let mut house = house(&folders, 1).await;
    let request = house.request(Target::Host, &["sleep", "81.5"]);
    let (accepted, seen) = house.begin(request).await.unwrap();
    let id = accepted.approval_id.unwrap();
    drop(seen);
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    let status = house.approval.status(&id).await.unwrap();
    assert_eq!(status.as_str(), "cancelled");

    let request = house.request(
        Target::Host,
        &[
            "sh",
            "-c",
            "setsid sleep 82.5 & setsid sh -c 'sleep 83.5 & wait' & wait",
        ],
    );
    let (accepted, seen) = house.begin(request).await.unwrap();
    house.answer(&accepted, Word::AllowOnce).await;
    until("both start", Duration::from_secs(10), || {
        alive("sleep 82.5") && alive("sleep 83.5")
    })
    .await;
    drop(seen);
    until("both end", Duration::from_secs(4), || {
        !alive("sleep 82.5") && !alive("sleep 83.5")
    })
    .await;
    house.end().await;
}

/// A lost caller has two seconds while something runs; what has not begun is not begun for nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_after_the_caller_or_its_credential_went_starts_nothing() {
    let folders = Folders::new();
    let mut house = house(&folders, 1).await;
    let mark = folders.path("ran");
    let argv = ["touch", mark.to_str().unwrap()];
    let request = house.request(Target::Host, &argv);
    let (accepted, seen) = house.begin(request).await.unwrap();
    drop(seen);
    house.answer(&accepted, Word::AllowOnce).await;
    while house.exec.live().await > 0 {}
    assert!(!mark.exists() && house.intents().await.is_empty());
    let id = accepted.approval_id.unwrap();
    let status = house.approval.status(&id).await.unwrap();
    assert_eq!(status, portcullis_core::approval::Status::Cancelled);

    let request = house.request(Target::Host, &argv);
    let (accepted, seen) = house.begin(request).await.unwrap();
    house.session.set(Some("revoked".to_owned()));
    // The question may be withdrawn already.
    let (id, by) = (accepted.approval_id.unwrap(), operator(0));
    let _ = house
        .approval
        .resolve(id.as_str(), Word::AllowOnce, &by, "c2")
        .await;
    let ended = finish(seen).await;
    assert_eq!(ended.result.error.unwrap().0, codes::SESSION_ENDED);
    assert!(!mark.exists() && house.intents().await.is_empty());
    house.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_time_out_and_a_shutdown_end_everything() {
    let folders = Folders::new();
    let mut house = house(&folders, 1).await;
    let mut request = house.request(
        Target::Host,
        &["sh", "-c", "setsid sleep 84.5 & sleep 85.5"],
    );
    request.timeout_ms = Some(300);
    let ended = house.run_allowed(request).await;
    assert_eq!(ended.result.status, "timed-out", "{ended:?}");
    assert!(!alive("sleep 84.5") && !alive("sleep 85.5"));

    let request = house.request(Target::Host, &["sleep", "86.5"]);
    let (accepted, seen) = house.begin(request).await.unwrap();
    house.answer(&accepted, Word::AllowOnce).await;
    until("it starts", Duration::from_secs(10), || alive("sleep 86.5")).await;
    house.tree.stop().await;
    assert!(!alive("sleep 86.5"));
    assert_eq!(finish(seen).await.result.status, "cancelled");
    house.store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_policy_or_the_machine_does_not_have_is_refused() {
    let folders = Folders::new();
    let mut house = house(&folders, 1).await;
    let mut request = house.request(Target::Host, &["uname"]);
    request.agent = portcullis_core::ids::AgentId::new("other").unwrap();
    let refused = house.begin(request).await.unwrap_err();
    assert_eq!(refused.code, codes::ELEVATED_DISABLED);
    assert_eq!(refused.details["fix"], "[agents.other]\nelevated = \"ask\"");
    let state = folders.state.path().join("state.db");
    for (argv, code) in [
        (vec!["no-such-command-at-all"], codes::COMMAND_NOT_FOUND),
        (vec!["/etc/passwd"], codes::INVALID_PARAMS),
        (vec!["/dev/null"], codes::INVALID_PARAMS),
        (vec![state.to_str().unwrap()], codes::COMMAND_NOT_FOUND),
    ] {
        let request = house.request(Target::Host, &argv);
        let refused = house.begin(request).await.unwrap_err();
        assert_eq!(refused.code, code, "{argv:?} {refused}");
    }
    let mut request = house.request(Target::Host, &["uname"]);
    request.env.insert("LD_PRELOAD".to_owned(), "/x".to_owned());
    assert_eq!(
        house.begin(request).await.unwrap_err().code,
        codes::INVALID_PARAMS
    );
    house.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_host_command_runs_as_root_or_an_operator() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    for (user, operators) in [
        ("root", vec![]),
        ("nobody", vec![65534]),
        ("no-such-user", vec![]),
    ] {
        let folders = Folders::new();
        let mut house = house_with(&folders, 1, |wiring| {
            wiring.config.host.user = user.to_owned();
            wiring.operator_uids = operators;
        })
        .await;
        let request = house.request(Target::Host, &["uname"]);
        let refused = house.begin(request).await.unwrap_err();
        assert_eq!(refused.code, codes::HOST_USER_INVALID, "{user}");
        house.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_is_no() {
    let folders = Folders::new();
    let config = ApprovalConfig {
        timeout_seconds: 1,
        ..ApprovalConfig::default()
    };
    let mut house = house_of(&folders, 1, config, |_| {}).await;
    let mark = folders.path("ran");
    let request = house.request(Target::Host, &["touch", mark.to_str().unwrap()]);
    let (_, ended) = house.run(request).await.unwrap();
    assert_eq!(ended.result.status, "denied");
    assert_eq!(ended.result.error.unwrap().0, codes::APPROVAL_EXPIRED);
    assert!(!mark.exists() && house.intents().await.is_empty());
    house.end().await;
}

/// A program that only root can change is not copied: it is looked at again before it runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_root_changed_meanwhile_does_not_run() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let folders = Folders::new();
    let mut house = house(&folders, 1).await;
    let roots = tempfile::tempdir_in("/var/lib").unwrap();
    let mode = |path: &std::path::Path| {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(path, mode).unwrap();
    };
    mode(roots.path());
    let script = roots.path().join("tool.sh");
    let mark = folders.path("ran");
    std::fs::write(&script, "#!/bin/sh\necho old\n").unwrap();
    mode(&script);
    let argv = [script.to_str().unwrap()];
    for (text, status) in [
        ("#!/bin/sh\necho old\n", "exited"),
        ("#!/bin/sh\ntouch X\n", "denied"),
    ] {
        let request = house.request(Target::Host, &argv);
        let (accepted, seen) = house.begin(request).await.unwrap();
        // In place: the same inode, as the descriptor sees it.
        std::fs::write(&script, text.replace('X', mark.to_str().unwrap())).unwrap();
        house.answer(&accepted, Word::AllowOnce).await;
        let ended = finish(seen).await;
        assert_eq!(ended.result.status, status, "{ended:?}");
    }
    assert!(!mark.exists());
    let intent = format!("{:?}", house.intents().await.last().unwrap());
    assert!(intent.contains("PLAN_CHANGED"), "{intent}");
    house.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn much_output_waits_for_its_reader_and_beyond_the_cap_is_counted() {
    let folders = Folders::new();
    let mut house = house_with(&folders, 1, |wiring| {
        wiring.config.host.output_cap_bytes = 700_000;
    })
    .await;
    let request = house.request(Target::Host, &["head", "-c", "1000000", "/dev/zero"]);
    let (accepted, seen) = house.begin(request).await.unwrap();
    house.answer(&accepted, Word::AllowOnce).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let ended = finish(seen).await;
    assert_eq!(ended.out.len(), 700_000);
    assert_eq!(ended.result.dropped_stdout, 300_000);
    assert_eq!(ended.result.exit_code, Some(0));
    house.end().await;
}
