//! Runs: what is under way goes on while a room below crashes, and a stop ends each with a recorded outcome.

use std::collections::BTreeMap;

use portcullis_actors::approval::ApprovalHandle;
use portcullis_actors::exec::{
    Accepted, ExecConfig, ExecEvent, ExecHandle, ExecRefusal, ExecWiring, RunRequest, RunResult,
};
use portcullis_actors::sandbox_pool::cell_file;
use portcullis_actors::supervision::Flag;
use portcullis_core::audit::{Entry, OutcomeFilter, Query};
use portcullis_core::plan::Target;
use tokio::sync::mpsc;

use super::real::{Ground, Standing, Trip, agent, in_time, operator};
use super::support::{SECOND, eventually};

struct Runs {
    exec: ExecHandle,
    approval: ApprovalHandle,
    trip: Trip,
    session: Flag<Option<String>>,
    standing: Standing,
}

async fn house() -> Runs {
    let (mut ground, trip) = (Ground::new(), Trip::default());
    let run = ground.state.path().join("run");
    std::fs::create_dir(&run).unwrap();
    let (cell, _) = cell_file::place(&run, include_bytes!(env!("PORTCULLIS_CELL"))).unwrap();
    let pool = ground.pool(256);
    let approval = ground.approval(&trip);
    let exec = ExecHandle::add(
        &mut ground.tree,
        ExecWiring {
            config: ExecConfig {
                runs_per_agent: 2,
                ..ExecConfig::default()
            },
            agents: BTreeMap::new(),
            operator_uids: vec![rustix::process::geteuid().as_raw()],
            operator_gids: vec![],
            state: ground.state.path().to_owned(),
            forbidden: vec![],
            cell,
            approval: approval.clone(),
            pool,
            audit: ground.audit.clone(),
        },
    );
    Runs {
        exec,
        approval,
        trip,
        session: Flag::new(None),
        standing: ground.start().await,
    }
}

async fn begin(
    house: &Runs,
    key: &str,
    script: &str,
) -> Result<(Accepted, mpsc::Receiver<ExecEvent>), ExecRefusal> {
    let request = RunRequest {
        principal: operator(),
        connection: "c-1".to_owned(),
        agent: agent("demo"),
        argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
        cwd: None,
        env: BTreeMap::new(),
        timeout_ms: Some(30_000),
        target: Target::Sandbox,
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
            Some(ExecEvent::Output { .. }) => {}
            Some(ExecEvent::Ended(result)) => return result,
            None => panic!("the channel closed without an end"),
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
    let house = house().await;
    let (_, mut first) = begin(&house, "k1", "sleep 2; exit 7").await.unwrap();
    let (_, mut second) = begin(&house, "k2", "sleep 2").await.unwrap();
    let third = begin(&house, "k3", "true").await.map(|_| ());
    assert_eq!(third.unwrap_err().code.name, "TOO_MANY_RUNS");

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
    let house = house().await;
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
