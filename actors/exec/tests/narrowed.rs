//! What is taken back, or forbidden, ends what runs by it, at once; what a person has let run goes on until it is forbidden.

use std::time::Duration;

use portcullis_core::approval::Word;
use portcullis_core::codes;
use portcullis_core::plan::Target;
use portcullis_core::policy::ExecMode;
use serde_json::{Value, json};

use super::harness::{Ended, Folders, House, alive, finish, house, operator, until};
use crate::approval::PolicyChange;
use crate::exec::run::{Gate, Said};

const SOON: Duration = Duration::from_secs(10);

async fn runs(mark: &str) {
    until(mark, SOON, || alive(mark)).await;
}

/// How many processes have exactly this command line.
fn count(line: &[u8]) -> usize {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    all.filter(|pid| std::fs::read(pid.path().join("cmdline")).is_ok_and(|read| read == line))
        .count()
}

fn is_ended(ended: &Ended, why: &str) {
    let (code, message) = ended.result.error.as_ref().unwrap();
    assert_eq!(
        (ended.result.status, *code),
        ("cancelled", codes::POLICY_DENIED),
        "{ended:?}"
    );
    assert!(message.contains(why), "{message}");
}

/// Sets the document, with an operator's word from elsewhere where it needs one.
async fn set(house: &House, document: Value) {
    let now = house.approval.policy_get().await.unwrap();
    let base = now.exists.then(|| now.hash.to_string());
    let (by, base) = (operator(0), base.as_deref());
    let set = house.approval.policy_set(document, base, &by, "c1").await;
    if let PolicyChange::Pending { id, .. } = set.unwrap() {
        let word = Word::AllowOnce;
        let said = house.approval.resolve(id.as_str(), word, &by, "c2").await;
        said.unwrap();
    }
}

fn sleeps(more: &Value) -> Value {
    let mut demo = json!({ "allowlist": [{ "id": "sleeps", "pattern": "/usr/bin/sleep" }] });
    for (key, value) in more.as_object().unwrap() {
        demo[key] = value.clone();
    }
    json!({ "version": 1, "agents": { "demo": demo } })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_that_is_taken_back_ends_what_runs_by_it() {
    let folders = Folders::new();
    let mut house = house(&folders, 1).await;
    let request = house.request(Target::Host, &["sleep", "97.125"]);
    let (accepted, first) = house.begin(request).await.unwrap();
    house.answer(&accepted, Word::AllowAlways).await;
    runs("sleep 97.125").await;
    let request = house.request(Target::Host, &["sleep", "97.125"]);
    let (again, second) = house.begin(request).await.unwrap();
    assert_eq!(again.status, "accepted");
    let request = house.request(Target::Host, &["sleep", "97.25"]);
    let (other, third) = house.begin(request).await.unwrap();
    house.answer(&other, Word::AllowOnce).await;
    runs("sleep 97.25").await;
    until("both", SOON, || count(b"sleep\x0097.125\0") == 2).await;
    let grants = house.approval.grants().await.unwrap();
    assert_eq!((grants.len(), grants[0].uses), (1, 1));
    let by = operator(0);
    let revoked = house.approval.revoke_grant(&grants[0].id, &by);
    revoked.await.unwrap();
    is_ended(&finish(first).await, "the grant that it ran by");
    is_ended(&finish(second).await, "the grant that it ran by");
    until("gone", SOON, || !alive("sleep 97.125")).await;
    // What nobody took back goes on.
    assert!(alive("sleep 97.25"));
    let run = other.run_id.clone();
    let cancelled = house.exec.cancel(run, &operator(0), "c1").await;
    cancelled.unwrap();
    assert_eq!(finish(third).await.result.error, None);
    house.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stricter_policy_ends_what_it_forbids_while_it_runs() {
    let folders = Folders::new();
    let mut house = house(&folders, 1).await;
    set(&house, sleeps(&json!({}))).await;
    let request = house.request(Target::Host, &["sleep", "96.125"]);
    let (listed, by_list) = house.begin(request).await.unwrap();
    assert_eq!(listed.status, "accepted");
    let request = house.request(Target::Host, &["sh", "-c", "sleep 96.25; true"]);
    let (asked, by_answer) = house.begin(request).await.unwrap();
    house.answer(&asked, Word::AllowOnce).await;
    runs("sleep 96.125").await;
    runs("sleep 96.25").await;
    // The ledger counts it, and takes the entry back by its name there.
    let ledger = house.approval.ledger().await.unwrap();
    assert_eq!(
        (&ledger.entries[0]["id"], &ledger.entries[0]["useCount"]),
        (&json!("list:demo:sleeps"), &json!(1))
    );
    let by = operator(0);
    let taken = house.approval.revoke_grant("list:demo:sleeps", &by);
    taken.await.unwrap();
    is_ended(&finish(by_list).await, "policy changed");
    until("gone", SOON, || !alive("sleep 96.125")).await;
    assert!(house.approval.ledger().await.unwrap().entries.is_empty());
    // A person's word is not undone by an entry that is gone, but by a no.
    assert!(alive("sleep 96.25"));
    set(
        &house,
        json!({ "version": 1, "agents": { "demo": { "security": "deny" } } }),
    )
    .await;
    is_ended(&finish(by_answer).await, "policy changed");
    until("gone", SOON, || !alive("sleep 96.25")).await;
    house.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policy_that_changed_between_the_decision_and_the_start_is_asked_again() {
    let folders = Folders::new();
    let mut house = house(&folders, 1).await;
    // A plan as a run of it has: asked for, and withdrawn.
    let request = house.request(Target::Host, &["sleep", "0"]);
    let (accepted, seen) = house.begin(request).await.unwrap();
    let id = accepted.approval_id.clone().unwrap();
    let plan = house.approval.get(id.as_str()).await.unwrap();
    let plan = plan.plan().unwrap().clone();
    house.answer(&accepted, Word::Deny).await;
    finish(seen).await;
    set(&house, sleeps(&json!({}))).await;
    let gate = Gate(house.approval.clone());
    let request = house.request(Target::Host, &["sleep", "0"]);
    let decided = gate.decide((&plan, ExecMode::Full), &request, None).await;
    assert!(matches!(decided, Ok(Said::Allowed(rule)) if rule == "list:sleeps"));
    gate.still((&plan, ExecMode::Full), &request).await.unwrap();
    // Now it would ask: nobody is asked behind the back of who decided, and no question stays.
    set(&house, sleeps(&json!({ "ask": "always" }))).await;
    let refused = gate
        .still((&plan, ExecMode::Full), &request)
        .await
        .unwrap_err();
    assert_eq!(refused.code, codes::POLICY_DENIED);
    assert!(refused.message.contains("changed meanwhile"), "{refused:?}");
    assert!(house.approval.list().await.unwrap().is_empty());
    set(&house, sleeps(&json!({ "security": "deny" }))).await;
    let refused = gate
        .still((&plan, ExecMode::Full), &request)
        .await
        .unwrap_err();
    assert_eq!(refused.code, codes::POLICY_DENIED);
    house.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_is_worth_nothing_once_policy_forbids_what_it_let_run() {
    let folders = Folders::new();
    let mut house = house(&folders, 1).await;
    let mark = folders.path("ran");
    let mut request = house.request(Target::Host, &["touch", mark.to_str().unwrap()]);
    request.idempotency_key = "asked-ahead-of-its-run".to_owned();
    let (events, mut seen) = tokio::sync::mpsc::channel(4);
    let how = crate::exec::OnlyAsk::default();
    let asked = house.exec.ask(request.clone(), how, events).await.unwrap();
    house.answer(&asked, Word::AllowOnce).await;
    // Its word has been told, nothing has run.
    assert!(seen.recv().await.is_some());
    while house.exec.live().await > 0 {}
    set(
        &house,
        json!({ "version": 1, "agents": { "demo": { "security": "deny" } } }),
    )
    .await;
    let refused = house.begin(request).await.unwrap_err();
    assert_eq!(refused.code, codes::APPROVAL_DENIED);
    assert!(refused.message.contains("policy"), "{refused:?}");
    assert!(!mark.exists() && house.intents().await.is_empty());
    house.end().await;
}
