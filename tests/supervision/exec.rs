//! Runs: what is under way goes on while a room below crashes, and a stop ends each with a recorded outcome.

use std::collections::BTreeMap;
use std::sync::Arc;

use portcullis_actors::approval::ApprovalHandle;
use portcullis_actors::exec::{
    Accepted, AgentLimits, ExecConfig, ExecEvent, ExecHandle, ExecRefusal, ExecWiring, RunRequest,
    RunResult,
};
use portcullis_actors::sandbox_pool::cell_file;
use portcullis_actors::supervision::Flag;
use portcullis_core::approval::Word;
use portcullis_core::audit::{Entry, OutcomeFilter, Query};
use portcullis_core::plan::{PlanKey, Stdin, Target};
use portcullis_core::seal::Key;
use tokio::sync::mpsc;

use super::real::{Ground, Standing, Trip, agent, in_time, operator};
use super::support::{SECOND, eventually};

struct Runs {
    exec: ExecHandle,
    approval: ApprovalHandle,
    trip: Trip,
    /// Breaks the room itself.
    own: Trip,
    session: Flag<Option<String>>,
    standing: Standing,
}

/// With at most so many runs at once.
async fn house(most: usize) -> Runs {
    let (mut ground, trip, own) = (Ground::new(), Trip::default(), Trip::default());
    let run = ground.state.path().join("run");
    std::fs::create_dir(&run).unwrap();
    let (cell, _) = cell_file::place(&run, include_bytes!(env!("PORTCULLIS_CELL"))).unwrap();
    let pool = ground.pool(256);
    let nodes = ground.nodes();
    let approval = ground.approval(&trip);
    let exec = ExecHandle::add(
        &mut ground.tree,
        ExecWiring {
            vault: None,
            config: ExecConfig {
                runs_per_agent: most,
                ..ExecConfig::default()
            },
            agents: BTreeMap::new(),
            every: AgentLimits::default(),
            operator_uids: vec![rustix::process::geteuid().as_raw()],
            operator_gids: vec![],
            state: ground.state.path().to_owned(),
            forbidden: vec![],
            cell,
            approval: approval.clone(),
            pool,
            nodes,
            audit: ground.audit.clone(),
            plans: PlanKey::new(Key::new([1; 32])),
            clock: own.clock(),
            since: Arc::new(Flag::new(None)),
        },
    );
    Runs {
        exec,
        approval,
        trip,
        own,
        session: Flag::new(None),
        standing: ground.start().await,
    }
}

async fn begin(
    house: &Runs,
    key: &str,
    script: &str,
) -> Result<(Accepted, mpsc::Receiver<ExecEvent>), ExecRefusal> {
    begin_at(house, key, Target::Sandbox, script).await
}

async fn begin_at(
    house: &Runs,
    key: &str,
    target: Target,
    script: &str,
) -> Result<(Accepted, mpsc::Receiver<ExecEvent>), ExecRefusal> {
    let request = RunRequest {
        session_key: None,
        secrets: std::collections::BTreeMap::new(),
        principal: operator(),
        connection: "c-1".to_owned(),
        agent: agent("demo"),
        argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
        cwd: None,
        env: BTreeMap::new(),
        timeout_ms: Some(30_000),
        target,
        stdin: Stdin::None,
        tty: None,
        detach: false,
        idempotency_key: key.to_owned(),
        session: house.session.reader(),
    };
    let (events, seen) = mpsc::channel(16);
    Ok((house.exec.run(request, events).await?, seen))
}

async fn ended(seen: &mut mpsc::Receiver<ExecEvent>) -> RunResult {
    loop {
        match tokio::time::timeout(60 * SECOND, seen.recv())
            .await
            .unwrap()
        {
            Some(ExecEvent::Begun { .. } | ExecEvent::Output { .. }) => {}
            Some(ExecEvent::Ended(result)) => return result,
            Some(ExecEvent::Detached) | None => panic!("the channel closed without an end"),
        }
    }
}

async fn open_intents(standing: &Standing) -> usize {
    let open = Query {
        outcome: Some(OutcomeFilter::Open),
        ..Query::default()
    };
    standing.audit.query(open).await.unwrap().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_goes_on_while_approval_crashes_and_one_too_many_is_refused() {
    let house = house(2).await;
    let (_, mut first) = begin(&house, "k1", "echo up; sleep 2; exit 7")
        .await
        .unwrap();
    let (_, mut second) = begin(&house, "k2", "echo up; sleep 2").await.unwrap();
    let third = begin(&house, "k3", "true").await.map(|_| ());
    assert_eq!(third.unwrap_err().code.name, "TOO_MANY_RUNS");

    // Their commands run: what approval is asked for is over.
    for seen in [&mut first, &mut second] {
        assert!(matches!(seen.recv().await, Some(ExecEvent::Output { .. })));
    }
    house.trip.arm();
    // Whichever request meets it: this one, or the end of one of the runs' own.
    let _ = in_time(house.approval.list()).await;
    house.standing.recovered("approval", 1).await;

    let result = ended(&mut first).await;
    assert_eq!((result.status, result.exit_code), ("exited", Some(7)));
    assert_eq!(ended(&mut second).await.exit_code, Some(0));
    eventually("both places are free", || {
        house.standing.room("exec").gate.unwrap().depth == 0
    })
    .await;
    let (_, mut again) = begin(&house, "k3", "exit 3").await.unwrap();
    assert_eq!(ended(&mut again).await.exit_code, Some(3));
    assert_eq!(open_intents(&house.standing).await, 0);
    house
        .standing
        .audit
        .event(Entry::new("test.alive"))
        .await
        .unwrap();
    house.standing.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_what_runs_says_so_and_records_it() {
    let house = house(2).await;
    let (accepted, mut seen) = begin(&house, "k1", "echo up; sleep 67").await.unwrap();
    assert!(matches!(seen.recv().await, Some(ExecEvent::Output { .. })));
    let mut news = house.standing.audit.watch();
    house.standing.tree.stop().await;
    let result = ended(&mut seen).await;
    assert_eq!(result.run_id, accepted.run_id);
    assert_ne!(result.status, "exited");
    let mut kinds = vec![];
    while let portcullis_actors::supervision::FeedItem::Event(record) = news.next().await {
        kinds.push(record.event.body.kind());
        if kinds.last() == Some(&"stop") {
            break;
        }
    }
    assert_eq!(kinds, ["outcome", "stop"]);
    house.standing.end().await;
}

/// Is a process alive whose command line holds this?
fn alive(mark: &str) -> bool {
    std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        std::fs::read(entry.path().join("cmdline"))
            .is_ok_and(|line| String::from_utf8_lossy(&line).replace('\0', " ").trim_end() == mark)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_of_a_room_that_crashed_are_ended_recorded_as_unknown_and_not_run_again() {
    let house = house(4).await;
    let (_, mut in_box) = begin(&house, "k1", "echo up; exec sleep 68.5")
        .await
        .unwrap();
    assert!(matches!(
        in_box.recv().await,
        Some(ExecEvent::Output { .. })
    ));
    let (asked, mut on_host) = begin_at(&house, "k2", Target::Host, "echo up; exec sleep 69.5")
        .await
        .unwrap();
    let id = asked.approval_id.unwrap();
    let (by, id) = (operator(), id.as_str());
    let allowed = house.approval.resolve(id, Word::AllowOnce, &by, "c-2");
    allowed.await.unwrap();
    assert!(matches!(
        on_host.recv().await,
        Some(ExecEvent::Output { .. })
    ));
    // One that waits for a person has done nothing, and left no intent.
    let (_, mut waits) = begin_at(&house, "k3", Target::Host, "echo late")
        .await
        .unwrap_or_else(|refused| panic!("{refused}"));
    eventually("both run", || alive("sleep 68.5") && alive("sleep 69.5")).await;
    assert_eq!(open_intents(&house.standing).await, 2);

    house.own.arm();
    let broke = in_time(begin(&house, "k4", "true")).await.map(|_| ());
    assert_eq!(broke.unwrap_err().code.name, "ROOM_DOWN");
    // Whoever listens hears that there will be no more.
    for seen in [&mut in_box, &mut on_host, &mut waits] {
        let closed = tokio::time::timeout(10 * SECOND, seen.recv()).await;
        assert!(closed.unwrap().is_none());
    }
    house.standing.recovered("exec", 1).await;
    eventually("their processes are ended", || {
        !alive("sleep 68.5") && !alive("sleep 69.5")
    })
    .await;
    assert_eq!(open_intents(&house.standing).await, 0);
    let unknown = Query {
        action: Some("exec.run".to_owned()),
        outcome: Some(OutcomeFilter::Unknown),
        ..Query::default()
    };
    assert_eq!(house.standing.audit.query(unknown).await.unwrap().len(), 2);

    // The keys are used; the room serves.
    let (_, mut again) = begin(&house, "k1", "echo up; exec sleep 68.5")
        .await
        .unwrap();
    let result = ended(&mut again).await;
    assert_eq!(result.status, "unknown");
    assert_eq!(result.error.unwrap().0.name, "RUN_UNKNOWN");
    let (_, mut fresh) = begin(&house, "k5", "exit 4").await.unwrap();
    assert_eq!(ended(&mut fresh).await.exit_code, Some(4));
    // What waited can be taken up.
    let (taken, _seen) = begin_at(&house, "k3", Target::Host, "echo late")
        .await
        .unwrap();
    assert_eq!(taken.status, "approval-pending");
    house.standing.end().await;
}
