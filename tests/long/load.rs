//! Clients that go on through everything, and write down what became of each call.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::support::ws::Client;

/// What all clients together saw.
#[derive(Default)]
pub struct Tally {
    /// Set: everybody ends after the call under way.
    pub over: AtomicBool,
    /// Calls with a good answer.
    pub good: AtomicU64,
    /// Calls with an error that may be tried again.
    pub retryable: AtomicU64,
    slowest_us: AtomicU64,
    /// Sockets that ended, and answers that no client can do anything with.
    pub wrong: Mutex<Vec<String>>,
    /// Secrets whose `vault.set` was acknowledged.
    pub secrets: Mutex<Vec<String>>,
    /// How each run ended, by its key; `exited` once and for all.
    pub runs: Mutex<BTreeMap<String, String>>,
}

impl Tally {
    /// The slowest answer so far.
    pub fn slowest(&self) -> Duration {
        Duration::from_micros(self.slowest_us.load(Relaxed))
    }

    /// No socket was lost and every answer was good or worth another try.
    pub fn check(&self) {
        let wrong = self.wrong.lock().unwrap();
        let first: Vec<_> = wrong.iter().take(5).collect();
        assert!(wrong.is_empty(), "{}: {first:?}", wrong.len());
        assert!(self.good.load(Relaxed) > 0);
    }

    fn wrong(&self, what: String) {
        self.wrong.lock().unwrap().push(what);
    }

    /// One call. `None`: the socket is gone.
    pub async fn call(
        &self,
        client: &mut Client,
        method: &str,
        params: Value,
    ) -> Option<Result<Value, Value>> {
        let began = Instant::now();
        let answer = client.try_call(method, params).await;
        self.answered(method, began, answer)
    }

    fn answered(
        &self,
        method: &str,
        began: Instant,
        answer: Option<Value>,
    ) -> Option<Result<Value, Value>> {
        let took = u64::try_from(began.elapsed().as_micros()).unwrap();
        self.slowest_us.fetch_max(took, Relaxed);
        let Some(mut answer) = answer else {
            self.wrong(format!("the socket ended under {method}"));
            return None;
        };
        if answer["ok"] == true {
            self.good.fetch_add(1, Relaxed);
            return Some(Ok(answer["payload"].take()));
        }
        let error = answer["error"].take();
        if error["retryable"] == true {
            self.retryable.fetch_add(1, Relaxed);
        } else {
            self.wrong(format!("{method}: {error}"));
        }
        Some(Err(error))
    }

    /// Calls these in turn, from the `first` on, until all is over.
    pub async fn goes_on(
        &self,
        mut client: Client,
        calls: &[(&str, Value)],
        first: usize,
        pause: Duration,
    ) {
        for (method, params) in calls.iter().cycle().skip(first % calls.len()) {
            if self.over.load(Relaxed) {
                return;
            }
            if self
                .call(&mut client, method, params.clone())
                .await
                .is_none()
            {
                return;
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Sets secrets, each under a name of its own, until all is over.
    pub async fn keeps_secrets(&self, mut client: Client, prefix: &str, pause: Duration) {
        for n in 0.. {
            if self.over.load(Relaxed) {
                return;
            }
            let name = format!("{prefix}_{n}");
            match self.keep_secret(&mut client, &name).await {
                None => return,
                Some(true) => self.secrets.lock().unwrap().push(name),
                Some(false) => {}
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Sets one secret. `None`: the socket is gone.
    pub async fn keep_secret(&self, client: &mut Client, name: &str) -> Option<bool> {
        let params = json!({ "name": name, "valueBase64": STANDARD.encode(name) });
        Some(self.call(client, "vault.set", params).await?.is_ok())
    }

    /// Runs commands until all is over; each writes its key into the workspace's file `ran`.
    pub async fn runs(&self, mut client: Client, prefix: &str, pause: Duration) {
        for n in 0.. {
            if self.over.load(Relaxed) {
                return;
            }
            if self
                .run(&mut client, &format!("{prefix}-{n}"))
                .await
                .is_none()
            {
                return;
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Runs one command to its end, whatever that is. `None`: the socket is gone.
    pub async fn run(&self, client: &mut Client, key: &str) -> Option<String> {
        let params = json!({
            "argv": ["sh", "-c", format!("echo {key} >>/workspace/ran")], "agent": "demo",
            "target": "sandbox", "idempotencyKey": key, "timeoutMs": 30_000,
        });
        let began = Instant::now();
        let id = client.ask("exec.run", params).await;
        let first = client.try_answer(&id).await;
        let word = match self.answered("exec.run", began, first)? {
            Ok(_) => {
                let second = client.try_answer(&id).await;
                match self.answered("exec.run", began, second)? {
                    Ok(end) => end["status"].as_str().unwrap_or("?").to_owned(),
                    Err(error) => code_of(&error),
                }
            }
            Err(error) => code_of(&error),
        };
        let mut runs = self.runs.lock().unwrap();
        runs.insert(key.to_owned(), word.clone());
        Some(word)
    }

    /// Against what the commands wrote: none ran twice, each that is said to have exited ran. Returns how many ran.
    pub fn check_runs(&self, workspace: &Path) -> usize {
        let text = std::fs::read_to_string(workspace.join("ran")).unwrap_or_default();
        let mut ran: BTreeMap<&str, usize> = BTreeMap::new();
        for line in text.lines() {
            *ran.entry(line).or_default() += 1;
        }
        let twice: Vec<_> = ran.iter().filter(|(_, times)| **times > 1).collect();
        assert!(twice.is_empty(), "ran twice: {twice:?}");
        for (key, word) in self.runs.lock().unwrap().iter() {
            let did = ran.contains_key(key.as_str());
            assert!(did || word != "exited", "{key} is said to have run");
        }
        ran.len()
    }
}

fn code_of(error: &Value) -> String {
    let code = &error["details"]["code"];
    code.as_str().unwrap_or("?").to_owned()
}

/// The command lines of processes that name this folder.
pub fn processes_of(folder: &Path) -> Vec<String> {
    let folder = folder.to_str().unwrap();
    let own = std::process::id();
    let mut found = vec![];
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        if name.parse::<u32>().is_ok_and(|pid| pid != own) {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains(folder) {
                found.push(format!("{name}: {line}"));
            }
        }
    }
    found
}

/// The value below which lies this share, in percent, of sorted values.
pub fn percentile(sorted: &[Duration], share: usize) -> Duration {
    sorted[(sorted.len() * share / 100).min(sorted.len() - 1)]
}
