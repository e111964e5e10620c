//! Runs of all kinds on both drivers, while boxes, their supervisors, the runner and the gateway are killed: whatever becomes of a run,
//! nothing of it is left.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bollard::query_parameters::ListContainersOptionsBuilder;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::{figure, times};
use crate::support::engine::Engine;
use crate::support::gateway::Gateway;
use crate::support::ws::{Client, Connect, random};

/// Agents, and whether each session of theirs has a box of its own.
const AGENTS: [(&str, &str, &str); 4] = [
    ("steady", "native", "agent"),
    ("fresh", "native", "session"),
    ("boxed", "docker", "agent"),
    ("boxfresh", "docker", "session"),
];
/// Clients at once.
const WORKERS: usize = 4;
/// A gateway is killed once in so many runs.
const PER_GATEWAY: usize = 100;
/// For what was killed to be gone.
const SETTLED: Duration = Duration::from_mins(1);

/// No secret and no matter of chance: each step is another.
struct Dice(AtomicU64);

impl Dice {
    fn roll(&self, sides: usize) -> usize {
        let step = 0x9e37_79b9_7f4a_7c15_u64;
        let mut x = self.0.fetch_add(step, Relaxed).wrapping_add(step);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((x ^ (x >> 31)) % sides as u64).unwrap()
    }
}

/// What is counted.
#[derive(Default)]
struct Seen {
    runs: AtomicUsize,
    well: AtomicUsize,
    kills: AtomicUsize,
}

/// Needs Docker.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_runs_under_random_kills_nothing_is_left() {
    let total = times(48, 1000);
    let seed = u64::from_le_bytes(random());
    println!("seed {seed:#x}");
    let dice = Dice(AtomicU64::new(seed));
    let engine = Engine::start();
    let mark = format!("47{:09}", dice.roll(1_000_000_000));
    let mut settings = vec![
        ("sandbox.engine".to_owned(), engine.host()),
        ("sandbox.warm_max".to_owned(), "2".to_owned()),
    ];
    for (agent, driver, scope) in AGENTS {
        settings.push((format!("agents.{agent}.sandbox.driver"), driver.to_owned()));
        settings.push((format!("agents.{agent}.sandbox.scope"), scope.to_owned()));
    }
    let settings: Vec<_> = settings
        .iter()
        .map(|(k, v)| (k.as_str(), v.as_str()))
        .collect();
    let mut gateway = Gateway::with(&settings);
    let seen = Seen::default();
    let folders = gateway.state().join("run/b");
    let (mut boxes, mut begun, mut crashes) = (BTreeSet::new(), 0, 0);
    while begun < total {
        let upto = total.min(begun + PER_GATEWAY.min(total / 2));
        let left = AtomicUsize::new(upto - begun);
        let works = (0..WORKERS).map(|_| work(&gateway, &dice, &mark, &left, &seen));
        let mut all = Box::pin(futures_util::future::join_all(works));
        let mut is_killed = false;
        loop {
            let pause = Duration::from_millis(60 + dice.roll(240) as u64);
            tokio::select! {
                _ = &mut all => break,
                () = tokio::time::sleep(pause) => {}
            }
            let ids = names(&folders).into_iter();
            boxes.extend(ids.map(|name| name.trim_end_matches(".json").to_owned()));
            if !is_killed && upto < total && left.load(Relaxed) == 0 {
                // Under the last runs.
                gateway.kill_now();
                is_killed = true;
            } else if kill_one(&gateway, &dice) {
                seen.kills.fetch_add(1, Relaxed);
            }
        }
        drop(all);
        begun = upto;
        if begun < total {
            gateway.crash_and_start();
            crashes += 1;
        }
    }
    let (runs, well) = (seen.runs.load(Relaxed), seen.well.load(Relaxed));
    // The gateway serves as before, and every act has its end on record.
    for (agent, ..) in AGENTS {
        let until = Instant::now() + SETTLED;
        loop {
            let done = gateway.cli(&["exec", "--agent", agent, "--", "echo", "serves"]);
            if done.stdout == b"serves\n" {
                break;
            }
            let said = String::from_utf8_lossy(&done.stderr).into_owned();
            assert!(Instant::now() < until, "{agent}: {said}\n{}", gateway.log());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    assert_eq!(gateway.cli(&["audit", "verify"]).status.code(), Some(0));
    let state = gateway.state();
    until_none("runs", || marked(&mark)).await;
    // What is looked for is found while it is there.
    let ids = names(&folders).into_iter();
    boxes.extend(ids.map(|name| name.trim_end_matches(".json").to_owned()));
    assert!(!with_mounts_of(&state).is_empty() && !groups(&boxes).is_empty());
    // With no output of ours: left behind by a failure, it would keep whoever reads that waiting.
    let mut sleeps = std::process::Command::new("sleep")
        .arg(&mark)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    // Who starts a program goes on before the kernel shows its words.
    let until = Instant::now() + SETTLED;
    while marked(&mark).len() != 1 {
        assert!(Instant::now() < until, "a running process is not found");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    sleeps.kill().unwrap();
    sleeps.wait().unwrap();
    assert_eq!(gateway.stop(), 0, "{}", gateway.log());
    let in_boxes = || with_mounts_of(&state).iter().map(u32::to_string).collect();
    until_none("processes in boxes", in_boxes).await;
    until_none("control folders", || names(&state.join("run/b"))).await;
    until_none("control groups", || groups(&boxes)).await;
    let client =
        bollard::Docker::connect_with_unix(&engine.host(), 60, bollard::API_DEFAULT_VERSION);
    let client = client.unwrap();
    let all = ListContainersOptionsBuilder::default().all(true).build();
    let containers = client.list_containers(Some(all)).await.unwrap();
    assert!(containers.is_empty(), "{containers:?}");
    let kills = seen.kills.load(Relaxed);
    figure(&format!(
        "{runs} runs in {} boxes of two drivers ({well} ended by themselves), {kills} kills besides {crashes} of the gateway: nothing left",
        boxes.len()
    ));
    // Else nothing was tried.
    assert!(
        well * 8 > runs && kills * 10 > total,
        "{runs} {well} {kills}"
    );
}

/// One run after the other, each in a connection of its own.
async fn work(gateway: &Gateway, dice: &Dice, mark: &str, left: &AtomicUsize, seen: &Seen) {
    while left
        .fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1))
        .is_ok()
    {
        seen.runs.fetch_add(1, Relaxed);
        let (agent, ..) = AGENTS[dice.roll(AGENTS.len())];
        let (script, timeout) = match dice.roll(6) {
            0 => ("true".to_owned(), 20_000),
            1 => ("echo x; sleep 0.05; echo y".to_owned(), 20_000),
            2 => (
                format!("(setsid sleep {mark} &) ; (sleep {mark} &); echo x"),
                20_000,
            ),
            3 => ("head -c 300000 /dev/zero".to_owned(), 20_000),
            4 => (format!("trap '' TERM; sleep {mark} & sleep {mark}"), 150),
            _ => (format!("sleep {mark} & sleep 0.2; sleep {mark}"), 20_000),
        };
        let leaves = script.ends_with(mark) && timeout > 1000;
        let connect = Connect::bare().scopes(&["operator.admin", "operator.act_as"]);
        let Ok(mut client) = Client::try_control(&gateway.state()).await else {
            continue;
        };
        if client.try_hello(&connect).await.is_none() {
            continue;
        }
        let key = format!("k{}-{}", dice.roll(1 << 40), dice.roll(1 << 40));
        let params = json!({
            "argv": ["sh", "-c", script], "agent": agent, "target": "sandbox",
            "timeoutMs": timeout, "idempotencyKey": key,
        });
        let id = client.ask("exec.run", params).await;
        if leaves {
            // Whoever is gone wants no answer: what he began is ended.
            let _ = tokio::time::timeout(Duration::from_millis(400), client.try_answer(&id)).await;
            continue;
        }
        let mut answer = client.try_answer(&id).await.unwrap_or(Value::Null);
        if answer["payload"]["status"] == "accepted" {
            answer = client.try_answer(&id).await.unwrap_or(Value::Null);
        }
        if answer["payload"]["status"] == "exited" {
            seen.well.fetch_add(1, Relaxed);
        }
    }
}

/// `kill -9` to one process of a box of this gateway, or to its runner.
fn kill_one(gateway: &Gateway, dice: &Dice) -> bool {
    let mut all: Vec<u32> = below(gateway.pid());
    all.extend(with_mounts_of(&gateway.state()));
    all.sort_unstable();
    all.dedup();
    if all.is_empty() {
        return false;
    }
    let pid = all[dice.roll(all.len())];
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    // It may have ended by itself.
    kill_process(pid, Signal::KILL).is_ok()
}

/// All processes below this one.
fn below(pid: u32) -> Vec<u32> {
    let mut found = vec![];
    let mut open = vec![pid];
    while let Some(parent) = open.pop() {
        let path = format!("/proc/{parent}/task");
        for task in std::fs::read_dir(path).into_iter().flatten().flatten() {
            let children = std::fs::read_to_string(task.path().join("children"));
            for child in children.unwrap_or_default().split_whitespace() {
                let child = child.parse().unwrap();
                found.push(child);
                open.push(child);
            }
        }
    }
    found
}

/// Those that see a folder of this state: boxes of either driver.
fn with_mounts_of(state: &Path) -> Vec<u32> {
    let state = state.to_str().unwrap();
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    pids.filter_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let mounts = std::fs::read_to_string(entry.path().join("mountinfo")).ok()?;
        mounts.contains(state).then_some(pid)
    })
    .collect()
}

/// Commands with this in their words.
fn marked(mark: &str) -> Vec<String> {
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    pids.filter_map(|entry| {
        let line = std::fs::read_to_string(entry.path().join("cmdline")).ok()?;
        line.contains(mark).then(|| line.replace('\0', " "))
    })
    .collect()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Control groups of these boxes.
fn groups(boxes: &BTreeSet<String>) -> Vec<String> {
    let mut found = vec![];
    let mut open = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let name = entry.file_name().to_string_lossy().into_owned();
                if name
                    .strip_prefix("portcullis-")
                    .is_some_and(|id| boxes.contains(id))
                {
                    found.push(entry.path().display().to_string());
                }
                open.push(entry.path());
            }
        }
    }
    found
}

async fn until_none(what: &str, look: impl Fn() -> Vec<String>) {
    let until = Instant::now() + SETTLED;
    loop {
        let left = look();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < until, "{what} are left: {left:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
