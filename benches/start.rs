//! Start to ready beside existing state, and resident memory two seconds later, vault unlock included.
//!
//! The state is that of a gateway in use: thousands of records, devices, secrets, and questions that nobody has answered.
#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    reason = "a bench waits for its child processes"
)]

mod support;

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures_util::{SinkExt as _, StreamExt as _};
use portcullis_actors::audit::{AuditConfig, AuditHandle, AuditKeys, AuditWiring, Clock};
use portcullis_actors::supervision::{Feed, Intensity, OnFatal, TreeBuilder};
use portcullis_core::audit::{BootId, Entry, Outcome};
use portcullis_core::identity::Identity;
use serde_json::{Value, json};
use support::device::Device;
use support::{Running, State, control, dial, line, median};
use tokio_tungstenite::tungstenite::Message;

const STARTS: usize = 21;
/// Intent and outcome each.
const ACTS: usize = 10_000;
const DEVICES: usize = 50;
const SECRETS: usize = 20;
const PLANS: usize = 5;
/// Bytes of a last segment that is about to be closed: as much of the log as a start has to read.
const FULL: u64 = 14 * 1024 * 1024;

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .worker_threads(2)
        .build()?;
    let state = State::new()?;
    // The first start makes the state; the figure is about the later ones.
    let (first, took) = state.start()?;
    println!("first start, state made: {:.1} ms", millis(took));
    runtime.block_on(fill(&state, &first))?;
    // In order it would withdraw the questions.
    first.kill()?;
    let log = state.path().join("audit");
    runtime.block_on(record(&log, ACTS))?;
    println!(
        "state: {} records, {DEVICES} devices, {SECRETS} secrets, {PLANS} open questions",
        2 * ACTS
    );
    starts(&state, "start to ready beside existing state, median")?;
    resident(&state)?;

    while last_segment(&log)? < FULL {
        runtime.block_on(record(&log, ACTS / 10))?;
    }
    println!(
        "the log's last segment now has {} MiB",
        last_segment(&log)? >> 20
    );
    starts(&state, "the same with a last segment about to close")
}

fn millis(span: Duration) -> f64 {
    span.as_secs_f64() * 1e3
}

fn starts(state: &State, what: &str) -> Result<()> {
    let (mut ready, mut cpu, mut bare) = (vec![], vec![], vec![]);
    for round in 1..=STARTS {
        let (running, took) = state.start()?;
        cpu.push(millis(running.cpu()?));
        if round < STARTS {
            running.kill()?;
        }
        ready.push(millis(took));
        let began = Instant::now();
        Command::new(env!("CARGO_BIN_EXE_portcullis"))
            .arg("version")
            .stdout(Stdio::null())
            .status()?;
        bare.push(millis(began.elapsed()));
    }
    println!(
        "the process alone (portcullis version): {:.1} ms; CPU until ready, which a busy machine does not change: {:.1} ms",
        median(bare),
        median(cpu)
    );
    line(what, median(ready), "ms", 150.0);
    Ok(())
}

fn resident(state: &State) -> Result<()> {
    let (running, _) = state.start()?;
    let began = Instant::now();
    unlocked(state)?;
    println!(
        "the vault was open {:.0} ms after ready",
        millis(began.elapsed())
    );
    std::thread::sleep(Duration::from_secs(2).saturating_sub(began.elapsed()));
    println!(
        "most ever resident, the vault's key derivation included: {:.1} MiB",
        running.mebibytes("VmHWM")?
    );
    line(
        "resident 2 s after start, unlock included",
        running.mebibytes("VmRSS")?,
        "MiB",
        20.0,
    );
    Ok(())
}

fn unlocked(state: &State) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(30);
    while !state
        .cli(&["vault", "status"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?
        .success()
    {
        ensure!(Instant::now() < end, "the vault stays closed");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Devices, secrets and open questions, as people make them.
async fn fill(state: &State, gateway: &Running) -> Result<()> {
    for _ in 0..DEVICES {
        // A process of the operator's own is paired without a question.
        Device::ed25519()?
            .join(dial(gateway.address).await?)
            .await?;
    }
    unlocked(state)?;
    for number in 0..SECRETS {
        let mut child = state
            .cli(&["vault", "set", &format!("SECRET_{number}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()?;
        let mut input = child.stdin.take().context("no pipe")?;
        input.write_all(b"a value that is not secret at all")?;
        drop(input);
        ensure!(child.wait()?.success(), "a secret was not kept");
    }
    let mut operator = control(state).await?;
    for number in 0..PLANS {
        let params = json!({
            "argv": ["uname", "-a"], "target": "host", "agent": "demo",
            "idempotencyKey": format!("question-{number}"),
        });
        let id = number.to_string();
        let request = json!({ "type": "req", "id": id, "method": "exec.run", "params": params });
        operator.send(Message::text(request.to_string())).await?;
        let answer = loop {
            let message = operator.next().await.context("closed")??;
            let frame: Value = serde_json::from_str(message.to_text()?).unwrap_or_default();
            if frame["id"] == id {
                break frame;
            }
        };
        ensure!(
            answer["payload"]["status"] == "approval-pending",
            "no question: {answer}"
        );
    }
    Ok(())
}

/// Acts through the room itself, sixty-four at once, as runs of commands leave them.
async fn record(log: &Path, acts: usize) -> Result<()> {
    let fatal: OnFatal = Arc::new(|room, why| panic!("{room}: {why}"));
    let mut builder = TreeBuilder::new(Intensity::default(), fatal);
    let file = log.ancestors().nth(2).context("no folder")?;
    let identity = std::fs::read_to_string(file.join("identity.key"))?;
    let identity = Identity::parse(&identity).ok().context("no identity")?;
    let wiring = AuditWiring {
        state: None,
        dir: log.to_owned(),
        keys: AuditKeys::new(log.with_file_name("keys"), &identity),
        config: AuditConfig::default(),
        boot: BootId(*uuid::Uuid::new_v4().as_bytes()),
        clock: Clock::new(),
        feed: Feed::new(),
        unwritten: std::sync::Arc::default(),
        version: "bench".into(),
    };
    let audit = AuditHandle::add(&mut builder, wiring);
    let tree = builder.start().await?;
    let callers = (0..64).map(|_| {
        let audit = audit.clone();
        async move {
            for _ in 0..=(acts / 64) {
                let intent = audit.intent(entry()).await?;
                audit.outcome(intent, Outcome::ok()).await?;
            }
            anyhow::Ok(())
        }
    });
    futures_util::future::try_join_all(callers).await?;
    tree.stop().await;
    Ok(())
}

fn entry() -> Entry {
    Entry {
        principal: Some("uid:0".into()),
        act_as: Some("demo".into()),
        door: Some("control".into()),
        object: Some("run-7f8e9d0c-1a2b-4c3d-8e9f-0a1b2c3d4e5f".into()),
        decision: Some("allow".into()),
        rule: Some("config:agents.demo.exec=full".into()),
        idempotency_key: Some(uuid::Uuid::new_v4().to_string()),
        ..Entry::new("exec.run").with("argv", "sh -c 'id; ls /'")
    }
}

fn last_segment(log: &Path) -> Result<u64> {
    let mut last = None;
    for entry in std::fs::read_dir(log)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            last = last.max(Some(path));
        }
    }
    let last = last.context("the log has no segment")?;
    Ok(std::fs::metadata(last)?.len())
}
