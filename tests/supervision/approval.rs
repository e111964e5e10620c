//! Approvals: a question outlives the room that asked it; one answer counts, once.

use portcullis_actors::approval::{ApprovalHandle, Ask, Decision};
use portcullis_core::approval::{Status, Word};
use portcullis_core::audit::Entry;
use portcullis_core::ids::{ApprovalId, Hash32};
use portcullis_core::plan::{
    Egress, EnvValue, ExecPlan, Executable, Form, HOST_PATH, HostFile, Limits, Nonce, Stdin, Target,
};

use super::real::{Ground, Trip, agent, in_time, operator};

pub fn plan(argument: &str) -> ExecPlan {
    ExecPlan {
        v: Form::V2,
        target: Target::Host,
        agent: agent("demo"),
        session: "c-1".into(),
        principal: operator().name(),
        argv: vec!["uname".into(), argument.into()],
        executable: Executable::Host(HostFile {
            path: "/usr/bin/uname".into(),
            dev: 1,
            ino: 2,
            sha256: Hash32::of(b"x"),
        }),
        operands: vec![],
        cwd: "/".into(),
        uid: 65534,
        gid: 65534,
        groups: vec![],
        env: [("PATH".to_owned(), EnvValue::Plain(HOST_PATH.to_owned()))].into(),
        stdin: Stdin::None,
        tty: None,
        limits: Limits {
            timeout_ms: 1000,
            output_bytes: 1000,
            memory_bytes: None,
            cpu_millis: None,
            pids: None,
        },
        egress: Egress::None,
        profile_digest: Hash32::of(b"p"),
        nonce: Nonce::new(&[1; 16]).unwrap(),
    }
}

pub async fn ask(approval: &ApprovalHandle, plan: ExecPlan) -> Result<ApprovalId, &'static str> {
    let ask = Ask {
        own: portcullis_core::policy::ExecMode::Full,
        plan,
        requester: operator(),
        connection: "c-1".into(),
        idempotency_key: None,
        id: None,
        narrowing: portcullis_core::approval::Narrowing::default(),
    };
    match in_time(approval.decide(ask)).await {
        Ok(Decision::Pending { id, .. }) => Ok(id),
        Ok(other) => panic!("{other:?}"),
        Err(refusal) => Err(refusal.code()),
    }
}

async fn say(approval: &ApprovalHandle, id: &ApprovalId) -> Result<Status, &'static str> {
    let by = operator();
    let said = in_time(approval.resolve(id.as_str(), Word::AllowOnce, &by, "c-2")).await;
    said.map(|record| record.status).map_err(|e| e.code())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_outlives_an_approval_that_crashes_and_its_answer_is_used_once() {
    let (mut ground, trip) = (Ground::new(), Trip::default());
    let approval = ground.approval(&trip);
    let house = ground.start().await;
    let asked = ask(&approval, plan("-a"));
    let id = house.whole("approval", asked).await.unwrap();

    trip.arm();
    assert_eq!(ask(&approval, plan("-b")).await, Err("ROOM_DOWN"));
    house.recovered("approval", 1).await;
    let waiting = approval.list().await.unwrap();
    assert_eq!(
        (waiting.len(), &waiting[0].id),
        (1, &id),
        "the broken one left nothing"
    );

    // A row that is not as it left it is no ground for an answer.
    house.touch("approval", id.as_str()).await;
    assert_eq!(say(&approval, &id).await, Err("ROOM_DOWN"));
    house.recovered("approval", 2).await;
    let status = house.whole("approval", approval.status(&id)).await;
    assert_eq!(status.unwrap(), Status::Pending);
    let said = say(&approval, &id);
    assert_eq!(house.whole("approval", said).await, Ok(Status::Allowed));

    trip.arm();
    let hash = plan("-a").plan_hash();
    let intent = house.audit.intent(Entry::new("exec.run")).await.unwrap();
    let broken = in_time(approval.consume(&id, hash, intent)).await;
    assert_eq!(broken.unwrap_err().code(), "ROOM_DOWN");
    house.recovered("approval", 3).await;
    let intent = house.audit.intent(Entry::new("exec.run")).await.unwrap();
    let used = in_time(approval.consume(&id, hash, intent)).await.unwrap();
    assert_eq!(used.decision, Word::AllowOnce);
    let again = in_time(approval.consume(&id, hash, intent)).await;
    assert_eq!(again.unwrap_err().code(), "APPROVAL_ALREADY_RESOLVED");
    house.end().await;
}
