//! New data keys, new root keys, unlockers that come and go: killed before its nth write or sync, for every n until it is
//! through, the vault opens again with every secret, and each change is there whole or not at all.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use portcullis_core::seal::Secret;
use portcullis_core::vault::Export;
use serde_json::{Value, json};

use crate::long::{figure, is_long};
use crate::support::gateway::Gateway;
use crate::support::ws::{Client, admin};

/// More than one batch of those that follow a new key (16).
const SECRETS: usize = 20;
const PATIENCE: Duration = Duration::from_mins(1);
/// What writes to the state and to the log.
const WRITES: &str = "fdatasync,fsync,pwrite64,ftruncate";

/// Ends the gateway before the nth such call of any of its threads.
struct Killer(Child);

impl Killer {
    fn at(gateway: &Gateway, n: usize) -> Self {
        let strace = Command::new("strace")
            .args(["-f", "-q", "-e", "signal=none", "-e"])
            .arg(format!("trace={WRITES}"))
            .arg("-e")
            .arg(format!("inject={WRITES}:signal=KILL:when={n}"))
            .args(["-o", "/dev/null", "-p", &gateway.pid().to_string()])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let end = Instant::now() + PATIENCE;
        let traced = || {
            let tasks = std::fs::read_dir(format!("/proc/{}/task", gateway.pid())).unwrap();
            tasks.flatten().all(|task| {
                let status = std::fs::read_to_string(task.path().join("status"));
                !status.unwrap_or_default().contains("TracerPid:\t0")
            })
        };
        while !traced() {
            assert!(Instant::now() < end, "strace does not attach");
            std::thread::sleep(Duration::from_millis(5));
        }
        Self(strace)
    }
}

impl Drop for Killer {
    fn drop(&mut self) {
        // Told to end, it lets go of the gateway; of one that is dead it may wait for ever.
        let pid = rustix::process::Pid::from_child(&self.0);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        let end = Instant::now() + Duration::from_secs(2);
        while self.0.try_wait().is_ok_and(|ended| ended.is_none()) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What must be found after each start.
struct House {
    gateway: Gateway,
    values: BTreeMap<String, Vec<u8>>,
    /// Unlockers that were acknowledged, and those that may have come.
    codes: BTreeMap<String, String>,
}

impl House {
    async fn check(&mut self, what: &str) {
        let mut by = admin(&self.gateway).await;
        let end = Instant::now() + PATIENCE;
        let status = loop {
            let status = by.get("vault.status", json!({})).await;
            if status["state"] == "open" && status["toSealAnew"] == 0 {
                break status;
            }
            assert!(status["state"] != "sealed", "{what}: {status}");
            assert!(Instant::now() < end, "{what}: {status}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert_eq!(status["unreadable"], 0, "{what}: {status}");
        let phrase = "correct horse battery";
        let params = json!({ "passphraseBase64": STANDARD.encode(phrase) });
        let export = by.get("vault.export", params).await["export"].take();
        let export = Export::parse(export.to_string().as_bytes()).unwrap();
        let opened = export
            .open(&Secret::new(phrase.as_bytes().to_vec()))
            .unwrap();
        let found: BTreeMap<String, Vec<u8>> = opened
            .iter()
            .map(|(name, value)| (name.clone(), value.expose().to_vec()))
            .collect();
        assert_eq!(found, self.values, "{what}");
        let list = by.get("vault.unlockers.list", json!({})).await;
        let ids: Vec<&str> = list["unlockers"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|one| one["id"].as_str())
            .collect();
        for id in self.codes.keys() {
            assert!(ids.contains(&id.as_str()), "{what}: {id} is gone: {list}");
        }
        assert_eq!(
            self.gateway.json(&["audit", "verify"])["intact"],
            true,
            "{what}"
        );
    }

    /// A code of an acknowledged unlocker opens it.
    async fn opens(&self, what: &str) {
        let Some((id, code)) = self.codes.iter().next() else {
            return;
        };
        let mut by = admin(&self.gateway).await;
        by.get("vault.seal", json!({})).await;
        let typed = json!({
            "kind": "recovery", "unlocker": id, "secretBase64": STANDARD.encode(code),
        });
        let answer = by.call("vault.unlock", typed).await;
        assert_eq!(answer["ok"], true, "{what}: {answer}");
    }

    async fn ask(&mut self, op: &str, by: &mut Client) -> Option<Value> {
        match op {
            "vault.unlockers.add" => {
                let answer = by.try_call(op, json!({ "kind": "recovery" })).await?;
                let made = &answer["payload"];
                let text = |key: &str| made[key].as_str().unwrap().to_owned();
                self.codes.insert(text("unlocker"), text("recoveryCode"));
                Some(answer)
            }
            "vault.unlockers.remove" => {
                // Whether it is there any more is not known if nobody answers.
                let (id, _) = self.codes.pop_first().expect("one was added");
                by.try_call(op, json!({ "unlocker": id })).await
            }
            "vault.rekey" => {
                // Codes of before it open nothing after it.
                let known = std::mem::take(&mut self.codes);
                // Until the old root key of the one before is forgotten.
                let answer = loop {
                    let answer = by.try_call(op, json!({ "passphrases": [] })).await;
                    let code = answer.as_ref().map(|a| &a["error"]["details"]["code"]);
                    if code.is_none_or(|code| code != "OVERLOADED") {
                        break answer;
                    }
                };
                match &answer {
                    Some(answer) => {
                        for one in answer["payload"]["recoveryCodes"].as_array().unwrap() {
                            let text = |key: &str| one[key].as_str().unwrap().to_owned();
                            self.codes.insert(text("unlocker"), text("recoveryCode"));
                        }
                    }
                    // The ids may be the old ones or new ones.
                    None => drop(known),
                }
                answer
            }
            _ => by.try_call(op, json!({})).await,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn new_keys_and_unlockers_are_there_whole_or_not_at_all_after_a_kill_before_any_write() {
    let gateway = Gateway::start();
    gateway.vault_is_open();
    let mut house = House {
        gateway,
        values: BTreeMap::new(),
        codes: BTreeMap::new(),
    };
    let mut by = admin(&house.gateway).await;
    for n in 0..SECRETS {
        let (name, value) = (format!("S{n}"), format!("value-{n}"));
        let params = json!({ "name": name, "valueBase64": STANDARD.encode(&value) });
        by.get("vault.set", params).await;
        house.values.insert(name, value.into_bytes());
    }
    let (mut kills, mut through) = (0, 0);
    for op in [
        "vault.unlockers.add",
        "vault.rotate",
        "vault.rekey",
        "vault.unlockers.remove",
    ] {
        if op == "vault.unlockers.remove" && house.codes.is_empty() {
            let mut by = admin(&house.gateway).await;
            house.ask("vault.unlockers.add", &mut by).await.unwrap();
        }
        let mut n = 1;
        loop {
            let what = format!("{op}, killed before write {n}");
            if op == "vault.unlockers.remove" && house.codes.is_empty() {
                let mut by = admin(&house.gateway).await;
                house.ask("vault.unlockers.add", &mut by).await.unwrap();
            }
            let mut by = admin(&house.gateway).await;
            let killer = Killer::at(&house.gateway, n);
            let answer = house.ask(op, &mut by).await;
            if let Some(answer) = &answer {
                assert_eq!(answer["ok"], true, "{what}: {answer}");
            }
            // What follows by itself, after the answer.
            let end = Instant::now() + Duration::from_secs(3);
            let mut is_over = answer.is_none();
            while !is_over && Instant::now() < end {
                match by.try_call("vault.status", json!({})).await {
                    None => is_over = true,
                    Some(status) if status["payload"]["toSealAnew"] == 0 => break,
                    Some(_) => {}
                }
            }
            drop(killer);
            if !is_over {
                through += 1;
                house.check(&what).await;
                house.opens(&what).await;
                break;
            }
            kills += 1;
            house.gateway.crash_and_start();
            house.gateway.vault_is_open();
            house.check(&what).await;
            // Every one in a long run; a few of each otherwise.
            n = if is_long() { n + 1 } else { n * 4 };
        }
    }
    assert!(
        through == 4 && kills >= 8,
        "{kills} kills, {through} through"
    );
    figure(&format!(
        "kills before the nth write of a new data key, root key, an unlocker more and less: {kills}, nothing lost, nothing half"
    ));
}

/// The bug: killed in `vault init`, the gateway said that the vault had been taken away, though a person had thrown it away.
#[tokio::test(flavor = "multi_thread")]
async fn a_vault_that_is_thrown_away_is_there_whole_or_made_anew_after_a_kill_before_any_write() {
    let gateway = Gateway::start();
    gateway.vault_is_open();
    let mut house = House {
        gateway,
        values: BTreeMap::new(),
        codes: BTreeMap::new(),
    };
    let (mut n, mut kept, mut gone) = (1, 0, 0);
    loop {
        let what = format!("vault.init, killed before write {n}");
        let mut by = admin(&house.gateway).await;
        for k in 0..SECRETS {
            let (name, value) = (format!("S{k}"), format!("value-{n}-{k}"));
            let params = json!({ "name": name, "valueBase64": STANDARD.encode(&value) });
            by.get("vault.set", params).await;
            house.values.insert(name, value.into_bytes());
        }
        by.get("vault.seal", json!({})).await;
        let killer = Killer::at(&house.gateway, n);
        let answer = by.try_call("vault.init", json!({ "discard": true })).await;
        drop(killer);
        if answer.is_some_and(|answer| answer["ok"] == true) {
            house.values.clear();
            house.check(&what).await;
            break;
        }
        house.gateway.crash_and_start();
        house.gateway.vault_is_open();
        let mut by = admin(&house.gateway).await;
        let names = by.get("vault.list", json!({})).await;
        if names["entries"].as_array().unwrap().is_empty() {
            house.values.clear();
            gone += 1;
        } else {
            kept += 1;
        }
        house.check(&what).await;
        n += if is_long() { 1 } else { 3 };
    }
    assert!(kept > 0 && gone > 0, "{kept} whole, {gone} made anew");
    figure(&format!(
        "kills before the nth write of vault.init: {kept} left it whole, {gone} made anew"
    ));
}
