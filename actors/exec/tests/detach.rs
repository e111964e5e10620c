//! Runs that outlive their connection.

use std::time::Duration;

use portcullis_core::auth::{Holder, Principal, Proof, Whose};
use portcullis_core::codes;
use portcullis_core::ids::RunId;
use portcullis_core::plan::{Stdin, Target};
use tokio::sync::mpsc;

use super::harness::{Ended, Folders, House, alive, house_with, operator, until};
use crate::exec::{Attached, ExecEvent, ExecRefusal};

const SOON: Duration = Duration::from_secs(20);

async fn house(folders: &Folders) -> House {
    house_with(folders, 1, |wiring| wiring.config.lost_after_ms = 50).await
}

async fn attach(
    house: &House,
    run: &RunId,
    (by, connection): (&Principal, &str),
    offset: u64,
) -> Result<(Attached, mpsc::Receiver<ExecEvent>), ExecRefusal> {
    let (events, seen) = mpsc::channel(16);
    let exec = &house.exec;
    let attached = exec
        .attach(run.clone(), (by, connection), offset, events)
        .await?;
    Ok((attached, seen))
}

/// Of one who began to read in between.
async fn rest(mut seen: mpsc::Receiver<ExecEvent>) -> Ended {
    let mut out = Vec::new();
    loop {
        match tokio::time::timeout(SOON, seen.recv()).await.unwrap() {
            Some(ExecEvent::Output { data, dropped, .. }) => {
                assert_eq!(dropped, 0);
                out.extend(data);
            }
            Some(ExecEvent::Ended(result)) => {
                let out = String::from_utf8(out).unwrap();
                let err = String::new();
                return Ended { out, err, result };
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Begins one that waits for a file, and reads its first line.
async fn waiting(house: &mut House, mark: &str) -> (RunId, mpsc::Receiver<ExecEvent>) {
    let script =
        format!("echo first; until [ -e {mark} ]; do sleep 0.05; done; echo second; exit 7");
    let mut request = house.request(Target::Sandbox, &["sh", "-c", &script]);
    request.detach = true;
    let (accepted, mut seen) = house.begin(request).await.unwrap();
    match tokio::time::timeout(SOON, seen.recv()).await.unwrap() {
        Some(ExecEvent::Output { data, .. }) => assert_eq!(&data[..], b"first\n"),
        other => panic!("{other:?}"),
    }
    (accepted.run_id, seen)
}

async fn touch(house: &mut House, mark: &str) {
    let request = house.request(Target::Sandbox, &["touch", mark]);
    assert_eq!(
        house.run(request).await.unwrap().1.result.exit_code,
        Some(0)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_detached_run_goes_on_without_its_reader_and_tells_a_later_one_the_rest_and_its_end() {
    let folders = Folders::new();
    let mut house = house(&folders).await;
    let (run, seen) = waiting(&mut house, "go").await;
    drop(seen);
    // Longer than a lost connection lets others run, by far.
    let other = house.request(Target::Sandbox, &["sleep", "72.5"]);
    let (_, lost) = house.begin(other).await.unwrap();
    until("it starts", SOON, || alive("sleep 72.5")).await;
    drop(lost);
    until("the other ends", SOON, || !alive("sleep 72.5")).await;
    let by = operator(0);
    let (attached, seen) = attach(&house, &run, (&by, "c2"), 6).await.unwrap();
    assert!(!attached.over);
    touch(&mut house, "go").await;
    let ended = rest(seen).await;
    assert_eq!(ended.out, "second\n");
    assert_eq!(
        (ended.result.status, ended.result.exit_code),
        ("exited", Some(7))
    );
    // And after its end, whole or in part, as often as it is asked for.
    for (offset, wanted) in [(0, "first\nsecond\n"), (9, "ond\n"), (13, ""), (99, "")] {
        let (attached, seen) = attach(&house, &run, (&by, "c3"), offset).await.unwrap();
        let again = rest(seen).await;
        assert_eq!(again.out, wanted, "{attached:?}");
        assert_eq!(again.result, ended.result);
    }
    let intents = house.intents().await;
    let text = format!("{intents:?}");
    assert!(text.contains("detach"), "{text}");
    house.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_detached_run_is_nobody_elses_and_has_one_reader() {
    let folders = Folders::new();
    let mut house = house(&folders).await;
    let (run, mut first) = waiting(&mut house, "go").await;
    let unknown = RunId::new("run-00000000-0000-4000-8000-000000000000").unwrap();
    let by = operator(0);
    let shared = Principal {
        proof: Proof::SharedToken,
        ..operator(0)
    };
    let agent = Principal {
        agent: Some(super::harness::agent()),
        ..operator(0)
    };
    let refusal = async |run: &RunId, by: &Principal| {
        let refused = attach(&house, run, (by, "c1"), 0).await;
        refused.map(|_| ()).unwrap_err()
    };
    let none = refusal(&unknown, &by).await;
    assert_eq!(none.code, codes::RUN_NOT_FOUND);
    for other in [&operator(12), &shared, &agent] {
        assert_eq!(refusal(&run, other).await, none);
    }
    // What was not detached is not to be had either.
    let plain = house.request(Target::Sandbox, &["sleep", "73.5"]);
    let (plain, kept) = house.begin(plain).await.unwrap();
    let refused = attach(&house, &plain.run_id, (&by, "c1"), 0).await;
    assert_eq!(refused.map(|_| ()).unwrap_err(), none);
    drop(kept);
    // Who could not be told from another later cannot detach.
    let mut request = house.request(Target::Sandbox, &["true"]);
    request.detach = true;
    request.principal = shared;
    let refused = house.begin(request).await.map(|_| ()).unwrap_err();
    assert_eq!(refused.code, codes::INVALID_PARAMS);

    let (_, second) = attach(&house, &run, (&by, "c2"), 6).await.unwrap();
    let told = tokio::time::timeout(SOON, first.recv()).await.unwrap();
    assert_eq!(told, Some(ExecEvent::Detached));
    assert_eq!(
        tokio::time::timeout(SOON, first.recv()).await.unwrap(),
        None
    );
    // Who reads it may end it, on the connection that reads.
    let cancelled = house.exec.cancel(run.clone(), &operator(0), "c2").await;
    cancelled.unwrap();
    assert_eq!(rest(second).await.result.status, "cancelled");
    house.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_detached_run_takes_input_from_who_reads_it_last() {
    let folders = Folders::new();
    let mut house = house(&folders).await;
    let mut request = house.request(Target::Sandbox, &["cat"]);
    request.detach = true;
    request.stdin = Stdin::Open;
    let (accepted, mut seen) = house.begin(request).await.unwrap();
    let begun = tokio::time::timeout(SOON, seen.recv()).await.unwrap();
    assert!(
        matches!(begun, Some(ExecEvent::Begun { credit: Some(_) })),
        "{begun:?}"
    );
    drop(seen);
    let (run, by) = (accepted.run_id, operator(0));
    let piece = |offset, text: &str, eof| {
        (
            offset,
            crate::sandbox_pool::Input::new(text.as_bytes().to_vec()),
            eof,
        )
    };
    // Not yet: it is another connection.
    let early = house
        .exec
        .stdin(run.clone(), (&by, "c2"), piece(0, "no", false))
        .await;
    assert_eq!(early.unwrap_err().code, codes::RUN_NOT_FOUND);
    let (_, seen) = attach(&house, &run, (&by, "c2"), 0).await.unwrap();
    house
        .exec
        .stdin(run.clone(), (&by, "c2"), piece(0, "hi\n", true))
        .await
        .unwrap();
    assert_eq!(rest(seen).await.out, "hi\n");
    house.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_its_credential_ends_a_detached_run_and_what_is_kept_of_others() {
    let folders = Folders::new();
    let mut house = house(&folders).await;
    let mut request = house.request(Target::Sandbox, &["sleep", "74.5"]);
    let device = portcullis_core::ids::DeviceId::new(&"a".repeat(64)).unwrap();
    let by = Principal {
        proof: Proof::DeviceToken(device.clone()),
        ..operator(0)
    };
    request.principal = by.clone();
    request.detach = true;
    let mut short = house.request(Target::Sandbox, &["true"]);
    short.principal = by.clone();
    short.detach = true;
    let (over, ended) = house.run(short).await.unwrap();
    assert_eq!(ended.result.exit_code, Some(0));
    let (accepted, seen) = house.begin(request).await.unwrap();
    until("it starts", SOON, || alive("sleep 74.5")).await;
    drop(seen);
    let whose = Whose {
        holder: Holder::Device(device),
        lives: None,
    };
    assert_eq!(house.exec.end_of(&whose, None).await.unwrap(), 1);
    assert!(!alive("sleep 74.5"));
    // Not even to who comes under that name again.
    let refused = attach(&house, &over.run_id, (&by, "c2"), 0).await;
    assert_eq!(refused.map(|_| ()).unwrap_err().code, codes::RUN_NOT_FOUND);
    // The bug: what that end itself had ended was kept for him.
    let refused = attach(&house, &accepted.run_id, (&by, "c3"), 0).await;
    assert_eq!(refused.map(|_| ()).unwrap_err().code, codes::RUN_NOT_FOUND);
    house.end().await;
}
