//! A gateway under everything that changes something: secrets, devices, runs, questions. What was acknowledged is
//! written down, to be held against what a later start finds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use portcullis_actors::audit::{tail_dir, verify_dir};
use portcullis_core::audit::Body;
use serde_json::{Value, json};

use super::load::processes_of;
use crate::support::gateway::Gateway;
use crate::support::ws::{Client, Connect, Device};

/// Settings of a gateway for this load.
pub const SETTINGS: &[(&str, &str)] = &[
    ("gateway.local.local_trust", "false"),
    ("pairing.pending_per_address", "256"),
    ("exec.runs_per_agent", "200"),
    ("exec.runs_per_connection", "200"),
    ("approval.pending_per_agent", "200"),
];

/// One request.
#[derive(Debug, Clone)]
pub struct Act {
    /// Of its frame: no two are the same.
    pub id: String,
    pub what: What,
    /// Answered well.
    pub acked: bool,
}

/// What it asked for.
#[derive(Debug, Clone)]
pub enum What {
    Set(String),
    Remove(String),
    Pair(String),
    Run(String),
    /// A command outside the sandbox: the question's id, once it is known.
    Ask(Option<String>),
    Deny(String),
}

/// See the module.
#[derive(Default)]
pub struct Mix {
    pub acts: Mutex<Vec<Act>>,
    pub over: AtomicBool,
    clients: AtomicU64,
    /// Runs that were asked for again. Once each: the log is searched for their ends, and 50 kills leave hundreds.
    asked_again: Mutex<BTreeSet<String>>,
    /// Who asked stays until the gateway ends: a question of somebody who left is withdrawn after two seconds.
    stays: Mutex<Vec<Client>>,
}

impl Mix {
    /// A client of its own numbers, with every right. `None`: the gateway is gone.
    async fn admin(&self, gateway: &Gateway) -> Option<Client> {
        let connect = Connect::bare().scopes(&[
            "operator.admin",
            "operator.approvals",
            "operator.pairing",
            "operator.act_as",
        ]);
        let mut client = Client::try_control(&gateway.state()).await.ok()?;
        client.try_hello(&connect).await?;
        let first = (self.clients.fetch_add(1, Relaxed) + 1) * 1_000_000;
        client.number_from(first);
        Some(client)
    }

    /// Works until all is over or the gateway is gone.
    pub async fn work(&self, gateway: &Gateway, round: usize) {
        tokio::join!(
            self.secrets(gateway, format!("A{round}")),
            self.secrets(gateway, format!("B{round}")),
            self.devices(gateway),
            self.runs(gateway, format!("r{round}")),
            self.questions(gateway),
        );
    }

    async fn begin(
        &self,
        client: &mut Client,
        what: What,
        method: &str,
        params: Value,
    ) -> (usize, String) {
        // Entered before it is sent: nothing that the gateway may have done is missing here.
        let id = client.next_id();
        let at = {
            let mut acts = self.acts.lock().unwrap();
            acts.push(Act {
                id: id.clone(),
                what,
                acked: false,
            });
            acts.len() - 1
        };
        assert_eq!(client.ask(method, params).await, id);
        (at, id)
    }

    /// One request and its answer. `None`: the gateway is gone.
    async fn act(
        &self,
        client: &mut Client,
        what: What,
        method: &str,
        params: Value,
    ) -> Option<Value> {
        let (at, id) = self.begin(client, what, method, params).await;
        let answer = client.try_answer(&id).await?;
        self.acts.lock().unwrap()[at].acked = answer["ok"] == true;
        Some(answer)
    }

    async fn secrets(&self, gateway: &Gateway, prefix: String) -> Option<()> {
        let mut client = self.admin(gateway).await?;
        for n in 0.. {
            if self.over.load(Relaxed) {
                return Some(());
            }
            let name = format!("{prefix}_{n}");
            let params = json!({ "name": name, "valueBase64": STANDARD.encode(&name) });
            self.act(&mut client, What::Set(name.clone()), "vault.set", params)
                .await?;
            if n % 4 == 3 {
                let params = json!({ "name": name });
                self.act(&mut client, What::Remove(name), "vault.remove", params)
                    .await?;
            }
        }
        None
    }

    async fn devices(&self, gateway: &Gateway) -> Option<()> {
        let mut admin = self.admin(gateway).await?;
        while !self.over.load(Relaxed) {
            let device = Device::new();
            let connect = Connect::token().scopes(&["operator.read"]).device(&device);
            let mut client = Client::dial_port(gateway.port()).await.ok()?;
            let params = connect.params(&client.nonce, client.ts);
            let answer = client.try_call("connect", params).await?;
            let Some(request) = answer["error"]["details"]["requestId"].as_str() else {
                continue;
            };
            let params = json!({ "requestId": request });
            self.act(
                &mut admin,
                What::Pair(device.id()),
                "device.pair.approve",
                params,
            )
            .await?;
        }
        Some(())
    }

    async fn runs(&self, gateway: &Gateway, prefix: String) -> Option<()> {
        let mut client = self.admin(gateway).await?;
        for n in 0.. {
            if self.over.load(Relaxed) {
                return Some(());
            }
            self.run(&mut client, format!("{prefix}-{n}")).await?;
        }
        None
    }

    /// A run counts as acknowledged when it is said to have exited.
    async fn run(&self, client: &mut Client, key: String) -> Option<()> {
        let script = format!("echo {key} >>/workspace/ran");
        let params = json!({
            "argv": ["sh", "-c", script], "agent": "demo", "target": "sandbox", "idempotencyKey": key,
        });
        let (at, id) = self.begin(client, What::Run(key), "exec.run", params).await;
        let mut answer = client.try_answer(&id).await?;
        if answer["payload"]["status"] == "accepted" {
            answer = client.try_answer(&id).await?;
        }
        self.acts.lock().unwrap()[at].acked = answer["payload"]["status"] == "exited";
        Some(())
    }

    async fn questions(&self, gateway: &Gateway) -> Option<()> {
        let mut client = self.admin(gateway).await?;
        let mut decider = self.admin(gateway).await?;
        for n in 0.. {
            if self.over.load(Relaxed) {
                self.stays.lock().unwrap().push(client);
                return Some(());
            }
            let key = format!("ask-{}", client.next_id());
            let params = json!({ "argv": ["true"], "agent": "demo", "target": "host", "idempotencyKey": key });
            let (at, id) = self
                .begin(&mut client, What::Ask(None), "exec.run", params)
                .await;
            let answer = client.try_answer(&id).await?;
            let Some(question) = answer["payload"]["approvalId"].as_str() else {
                continue;
            };
            self.acts.lock().unwrap()[at] = Act {
                what: What::Ask(Some(question.to_owned())),
                acked: true,
                id,
            };
            // Three of four are answered.
            if n % 4 != 0 {
                let params = json!({ "id": question, "decision": "deny" });
                self.act(
                    &mut decider,
                    What::Deny(question.to_owned()),
                    "exec.approval.resolve",
                    params,
                )
                .await?;
            }
        }
        None
    }

    /// Answers a question that is left from before.
    pub async fn deny(&self, client: &mut Client, question: String) {
        let params = json!({ "id": question, "decision": "deny" });
        let first = (self.clients.fetch_add(1, Relaxed) + 1) * 1_000_000;
        client.number_from(first);
        let what = What::Deny(question);
        self.act(client, what, "exec.approval.resolve", params)
            .await
            .expect("it serves");
    }

    /// Holds what a start has found against what was acknowledged, `acked` by its own word or that of a record.
    pub async fn check(&self, gateway: &Gateway, acked: impl Fn(&Act) -> bool) -> Found {
        let acts = self.acts.lock().unwrap().clone();
        let mut admin = self.admin(gateway).await.expect("it serves");
        let mut names = async |method: &str, list: &str, key: &str| -> BTreeSet<String> {
            // The vault's key is derived beside the start: it is asked again until it is there.
            let payload = loop {
                let mut answer = admin.call(method, json!({})).await;
                if answer["ok"] == true {
                    break answer["payload"].take();
                }
                assert_eq!(answer["error"]["retryable"], true, "{answer}");
            };
            let entries = if list.is_empty() {
                &payload
            } else {
                &payload[list]
            };
            let entries = entries.as_array().unwrap_or_else(|| panic!("{payload}"));
            entries
                .iter()
                .map(|entry| entry[key].as_str().unwrap().to_owned())
                .collect()
        };
        let secrets = names("vault.list", "entries", "name").await;
        let devices = names("device.pair.list", "paired", "deviceId").await;
        let questions = names("exec.approval.list", "", "id").await;
        let log = Log::read(gateway);

        let mut last: BTreeMap<&str, (bool, bool)> = BTreeMap::new();
        let mut found = Found::default();
        let answered = |question: &str| {
            acts.iter()
                .any(|act| matches!(&act.what, What::Deny(other) if other == question))
        };
        for act in &acts {
            let good = acked(act);
            found.acknowledged += usize::from(good);
            match &act.what {
                // The last acknowledged change holds, unless a later one may have been made.
                What::Set(name) if good => drop(last.insert(name, (true, true))),
                What::Remove(name) if good => drop(last.insert(name, (false, true))),
                What::Set(name) | What::Remove(name) => {
                    last.entry(name).or_insert((false, false)).1 = false;
                }
                What::Pair(device) => {
                    assert!(!good || devices.contains(device), "{device} was approved");
                }
                What::Run(key) => assert!(
                    !good || log.runs.get(key).is_some_and(|end| end == "exited"),
                    "run {key} has exited, the log says {:?}",
                    log.runs.get(key)
                ),
                What::Ask(Some(question)) if good && !answered(question) => {
                    assert!(
                        questions.contains(question),
                        "question {question} was asked"
                    );
                }
                What::Deny(question) if good => {
                    assert!(
                        !questions.contains(question),
                        "question {question} was answered"
                    );
                }
                What::Ask(_) | What::Deny(_) => {}
            }
        }
        for (name, (present, sure)) in last {
            assert!(
                !sure || secrets.contains(name) == present,
                "secret {name}: {present} was acknowledged"
            );
        }
        for secret in &secrets {
            assert!(
                log.acted("vault.set", &format!("secret:{secret}")),
                "{secret} is in no record"
            );
        }
        for device in &devices {
            assert!(
                log.acted("pairing.approve", &format!("device:{device}")),
                "{device} is in no record"
            );
        }
        found.questions = questions.into_iter().collect();
        found.runs = log.runs;
        found
    }

    /// After a restart: every unanswered run is asked for again under its key, once, and none runs twice.
    pub async fn again(&self, gateway: &Gateway) {
        let mut client = self.admin(gateway).await.expect("it serves");
        let open: Vec<String> = self
            .acts
            .lock()
            .unwrap()
            .iter()
            .filter_map(|act| match &act.what {
                What::Run(key) if !act.acked => Some(key.clone()),
                _ => None,
            })
            .collect();
        for key in open {
            if self.asked_again.lock().unwrap().insert(key.clone()) {
                self.run(&mut client, key).await.expect("it serves");
            }
        }
        self.check_runs(gateway);
    }

    /// What the commands wrote: each key at most once, and once for what is said to have exited.
    pub fn check_runs(&self, gateway: &Gateway) -> usize {
        let ran = gateway.state().join("workspaces/demo/ran");
        let ran = std::fs::read_to_string(ran).unwrap_or_default();
        let mut times: BTreeMap<&str, usize> = BTreeMap::new();
        for key in ran.lines() {
            *times.entry(key).or_default() += 1;
        }
        let twice: Vec<_> = times.iter().filter(|(_, times)| **times > 1).collect();
        assert!(twice.is_empty(), "ran twice: {twice:?}");
        for act in self.acts.lock().unwrap().iter() {
            if let What::Run(key) = &act.what {
                assert!(
                    !act.acked || times.contains_key(key.as_str()),
                    "{key} is said to have run"
                );
            }
        }
        times.len()
    }
}

/// What a start has found.
#[derive(Debug, Default)]
pub struct Found {
    pub acknowledged: usize,
    /// Those that wait.
    pub questions: Vec<String>,
    /// Each run of the log and its end.
    pub runs: BTreeMap<String, String>,
}

/// The log, read beside the gateway.
struct Log {
    acts: BTreeSet<(String, String)>,
    runs: BTreeMap<String, String>,
    /// Intents open at the last start.
    before: Vec<u64>,
}

impl Log {
    fn read(gateway: &Gateway) -> Self {
        let folder = gateway.state().join("audit");
        let report = verify_dir(&folder).unwrap();
        assert!(report.intact, "{report:?}");
        let mut log = Self {
            acts: BTreeSet::new(),
            runs: BTreeMap::new(),
            before: vec![],
        };
        let mut open: BTreeMap<u64, Option<String>> = BTreeMap::new();
        for record in tail_dir(&folder, usize::MAX).unwrap() {
            match record.body {
                Body::Intent(entry) => {
                    if let Some(object) = entry.object {
                        log.acts.insert((entry.action.clone(), object));
                    }
                    let key = entry.idempotency_key.filter(|_| entry.action == "exec.run");
                    if let Some(key) = &key {
                        log.runs.insert(key.clone(), String::new());
                    }
                    open.insert(record.seq.0, key);
                }
                Body::Outcome { intent, outcome } => {
                    let key = open.remove(&intent.0).expect("an outcome has its intent");
                    if let Some(key) = key {
                        let status = outcome.detail.get("status").cloned();
                        let end = status.unwrap_or_else(|| format!("{:?}", outcome.result));
                        log.runs.insert(key, end);
                    }
                }
                // A start closes what an earlier one left open, before anything is served.
                Body::Start { .. } => log.before = open.keys().copied().collect(),
                _ => {}
            }
        }
        let left: Vec<_> = log
            .before
            .iter()
            .filter(|seq| open.contains_key(seq))
            .collect();
        assert!(left.is_empty(), "intents without an end: {left:?}");
        log
    }

    fn acted(&self, action: &str, object: &str) -> bool {
        self.acts.contains(&(action.to_owned(), object.to_owned()))
    }
}

/// Processes that name this gateway's folder and do not descend from it.
pub fn orphans(gateway: &Gateway) -> Vec<String> {
    let parent = |pid: u32| -> Option<u32> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(')')?
            .1
            .split_whitespace()
            .nth(1)?
            .parse()
            .ok()
    };
    let mut found = processes_of(gateway.home());
    found.retain(|line| {
        let mut next = line.split(':').next().and_then(|pid| pid.parse().ok());
        while let Some(pid) = next {
            if pid == gateway.pid() {
                return false;
            }
            next = parent(pid);
        }
        true
    });
    found
}
