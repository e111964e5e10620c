//! `kill -9` at any moment: what was acknowledged is there after the next start, and the log is whole.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::long::{figure, mixed, times};
use crate::support::gateway::Gateway;
use crate::support::ws::{Client, Connect, Device, admin, join, random};

/// A moment between now and then.
fn moment(longest_ms: u64) -> Duration {
    Duration::from_millis(u64::from_le_bytes(random()) % longest_ms)
}

fn names(answer: &Value, list: &str, key: &str) -> BTreeSet<String> {
    answer[list]
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v[key].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn every_acknowledged_secret_outlives_kill_9() {
    let mut gateway = Gateway::start();
    gateway.vault_is_open();
    let mut acknowledged = BTreeSet::new();
    let mut n = 0;
    let rounds = times(5, 200);
    for round in 0..rounds {
        let stopped = Arc::new(AtomicBool::new(false));
        let commands: Vec<_> = (0..2)
            .map(|writer| {
                let stopped = stopped.clone();
                let mut next = n + writer * 10_000;
                let command = move |gateway: &Gateway| {
                    next += 1;
                    let name = format!("S{next}");
                    let mut command = gateway.command(&["vault", "set", &name]);
                    command
                        .stdin(Stdio::piped())
                        .stdout(Stdio::null())
                        .stderr(Stdio::null());
                    (name, command)
                };
                (stopped, command)
            })
            .collect();
        let acknowledged_now = std::thread::scope(|scope| {
            let shared = &gateway;
            let writers: Vec<_> = commands
                .into_iter()
                .map(|(stopped, mut command)| {
                    scope.spawn(move || {
                        let mut good = vec![];
                        while !stopped.load(Ordering::Relaxed) {
                            let (name, mut command) = command(shared);
                            let mut child = command.spawn().unwrap();
                            drop(std::io::Write::write_all(
                                &mut child.stdin.take().unwrap(),
                                name.as_bytes(),
                            ));
                            if child.wait().unwrap().success() {
                                good.push(name);
                            }
                        }
                        good
                    })
                })
                .collect();
            std::thread::sleep(Duration::from_millis(30) + moment(600));
            shared.kill_now();
            stopped.store(true, Ordering::Relaxed);
            writers
                .into_iter()
                .flat_map(|writer| writer.join().unwrap())
                .collect::<Vec<_>>()
        });
        n += 100_000;
        acknowledged.extend(acknowledged_now);
        gateway.crash_and_start();
        gateway.vault_is_open();
        let kept = names(&gateway.json(&["vault", "list"]), "entries", "name");
        let lost: Vec<_> = acknowledged.difference(&kept).collect();
        assert!(lost.is_empty(), "round {round}: lost {lost:?}");
        assert_eq!(
            gateway.json(&["audit", "verify"])["intact"],
            true,
            "round {round}"
        );
    }
    assert!(
        acknowledged.len() >= rounds,
        "only {} were acknowledged",
        acknowledged.len()
    );
    figure(&format!(
        "kills: {rounds} while secrets are set by commands; {} acknowledged, 0 lost",
        acknowledged.len()
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acknowledged_approval_of_a_device_outlives_kill_9() {
    let mut gateway = Gateway::with(&[
        ("gateway.local.local_trust", "false"),
        ("pairing.pending_per_address", "64"),
    ]);
    let mut approved = BTreeSet::new();
    let mut answered = 0;
    let rounds = times(5, 100);
    for round in 0..rounds {
        let mut waiting = vec![];
        for _ in 0..6 {
            let device = Device::new();
            let connect = Connect::token().scopes(&["operator.read"]).device(&device);
            let (error, _) = Client::dial(&gateway).await.denied(&connect).await;
            let id = error["details"]["requestId"].as_str().unwrap().to_owned();
            waiting.push((device, id));
        }
        let kept_waiting = waiting.pop().unwrap();
        let now = std::thread::scope(|scope| {
            let shared = &gateway;
            let waiting = &waiting;
            let approver = scope.spawn(move || {
                let good = waiting
                    .iter()
                    .filter(|(_, id)| shared.cli(&["devices", "approve", id]).status.success());
                good.map(|(device, _)| device.id()).collect::<Vec<_>>()
            });
            std::thread::sleep(moment(250));
            shared.kill_now();
            approver.join().unwrap()
        });
        answered += now.len();
        approved.extend(now);
        gateway.crash_and_start();
        let list = gateway.json(&["devices", "list"]);
        let paired = names(&list, "paired", "deviceId");
        let lost: Vec<_> = approved.difference(&paired).collect();
        assert!(lost.is_empty(), "round {round}: lost {lost:?}");
        let pending = names(&list, "pending", "deviceId");
        assert!(
            pending.contains(&kept_waiting.0.id()),
            "round {round}: a pending request is lost"
        );
        assert!(
            pending.is_disjoint(&paired),
            "round {round}: a device waits and is paired"
        );
        for (device, id) in &waiting {
            let (here, waits) = (
                paired.contains(&device.id()),
                pending.contains(&device.id()),
            );
            assert!(
                here || waits,
                "round {round}: a request is neither decided nor pending"
            );
            if waits {
                gateway.json(&["devices", "approve", id]);
                approved.insert(device.id());
            }
        }
        gateway.json(&["devices", "reject", &kept_waiting.1]);
        let connect = Connect::token()
            .scopes(&["operator.read"])
            .device(&waiting[0].0);
        join(&gateway, &connect).await;
        assert_eq!(
            gateway.json(&["audit", "verify"])["intact"],
            true,
            "round {round}"
        );
    }
    figure(&format!(
        "kills: {rounds} while devices are approved; {answered} approvals acknowledged before one, 0 lost"
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_acknowledged_outlives_kill_9_under_a_mixed_load_and_nothing_runs_twice() {
    let kills = times(6, 700);
    let mut gateway = Gateway::with(mixed::SETTINGS);
    let (mut acknowledged, mut runs, mut slowest) = (0, 0, Duration::ZERO);
    let mut mix = mixed::Mix::default();
    for round in 0..kills {
        // A state that grows for ever would measure its size and not the kills.
        if round % 50 == 49 {
            gateway = Gateway::with(mixed::SETTINGS);
            mix = mixed::Mix::default();
        }
        let shared = &gateway;
        let kill = async {
            tokio::time::sleep(Duration::from_millis(20) + moment(900)).await;
            shared.kill_now();
        };
        tokio::join!(mix.work(shared, round), kill);
        let began = Instant::now();
        gateway.crash_and_start();
        slowest = slowest.max(began.elapsed());
        let found = mix.check(&gateway, |act| act.acked).await;
        mix.again(&gateway).await;
        (acknowledged, runs) = (
            acknowledged.max(found.acknowledged),
            mix.check_runs(&gateway),
        );
        let end = Instant::now() + Duration::from_mins(1);
        while !mixed::orphans(&gateway).is_empty() {
            assert!(Instant::now() < end, "{:?}", mixed::orphans(&gateway));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let mut admin = admin(&gateway).await;
        assert_eq!(admin.get("audit.verify", json!({})).await["intact"], true);
        for question in found.questions {
            mix.deny(&mut admin, question).await;
        }
    }
    assert!(
        acknowledged >= kills,
        "only {acknowledged} were acknowledged"
    );
    figure(&format!(
        "kills: {kills} under a mixed load; up to {acknowledged} acknowledged acts looked for at once, 0 lost; {runs} runs of the last state, none twice; no process left; slowest start {slowest:?}"
    ));
}
