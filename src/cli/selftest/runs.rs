//! One run after another of the program that makes the attempts.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use portcullis_core::codes;
use serde_json::{Value, json};

use super::PROGRAM;
use crate::cli::Failure;
use crate::cli::given::Given;
use crate::client::{Client, Incoming};
use crate::show::text::clean;
use crate::show::value::{field, number};

/// For each run but one; an ordinary limit that no profile forbids.
const TIMEOUT_MS: u64 = 55_000;
/// Its arguments: a folder, whether signals are ignored, and the words for the program, which comes on standard input. What an earlier one left
/// that was ended goes first: it may have filled the place.
const SCRIPT: &str = r#"d=$1; if [ "$2" = stubborn ]; then trap '' HUP INT QUIT TERM; fi
rm -rf "$d" /dev/shm/.escape-*
mkdir -p "$d/t" && chmod 700 "$d" && cat >"$d/probe" && chmod 500 "$d/probe" || exit 99
shift; "$d/probe" attempt "$@"; c=$?; rm -rf "$d"; exit $c"#;

/// How a run ended.
#[derive(Debug, Default)]
pub struct Ended {
    /// As the gateway names it.
    pub status: String,
    /// Of the run, where it ended by itself.
    pub code: Option<i64>,
    /// That ended it.
    pub signal: Option<u64>,
    /// Its standard output.
    pub out: Vec<u8>,
    /// The beginning of its standard error.
    pub said: String,
    /// Bytes of output that the gateway did not keep.
    pub dropped: u64,
}

impl Ended {
    /// For people.
    pub fn words(&self) -> String {
        let code = self
            .code
            .map_or_else(String::new, |code| format!(" with {code}"));
        format!("the run is {}{code} {}", self.status, self.said.trim())
    }
}

/// Runs of one agent.
pub struct Runs {
    /// The connection.
    pub client: Client,
    agent: String,
    folder: String,
}

impl Runs {
    /// On this connection; `nonce` makes a folder in the box its own.
    pub fn new(client: Client, agent: &str, nonce: &str) -> Self {
        Self {
            client,
            agent: agent.to_owned(),
            folder: format!("/tmp/.selftest-{nonce}"),
        }
    }

    /// One run of `portcullis-cell attempt` with these words.
    ///
    /// # Errors
    /// It is refused, or the connection is lost.
    pub async fn attempt(
        &mut self,
        words: &[String],
        timeout_ms: Option<u64>,
    ) -> Result<Ended, Failure> {
        let mut argv = vec!["/bin/sh".to_owned(), "-c".to_owned(), SCRIPT.to_owned()];
        argv.extend(["sh".to_owned(), self.folder.clone()]);
        argv.extend(words.iter().cloned());
        argv.push(format!("tmp={}/t", self.folder));
        let params = json!({
            "argv": argv, "target": "sandbox", "agent": self.agent, "stdin": "open",
            "timeoutMs": timeout_ms.unwrap_or(TIMEOUT_MS),
            "idempotencyKey": uuid::Uuid::new_v4().to_string(),
        });
        let client = &mut self.client;
        let request = client.send("exec.run", params).await?;
        let mut given = Given::from(PROGRAM);
        let mut ended = Ended::default();
        let mut run = String::new();
        loop {
            let incoming = tokio::select! {
                incoming = client.next() => incoming?,
                next = given.next() => {
                    if let crate::cli::given::Next::Piece(piece) = next {
                        given.send(client, &run, piece).await?;
                    }
                    continue;
                }
            };
            match incoming {
                Incoming::Answer { id, result } if given.awaits(&id) => {
                    given.answered(client, &run, result).await?;
                }
                Incoming::Answer { id, result } if id == request => {
                    let payload = result.map_err(|error| client.refusal(&error))?;
                    field(&payload, "runId").clone_into(&mut run);
                    match field(&payload, "status") {
                        "accepted" => {}
                        "approval-pending" => {
                            return Err(Failure::of(
                                codes::POLICY_DENIED,
                                "a person would be asked before each run of this agent",
                            )
                            .hint(
                                "name an agent whose runs in the sandbox are allowed: --agent NAME",
                            ));
                        }
                        status => {
                            status.clone_into(&mut ended.status);
                            ended.end(&payload);
                            return Ok(ended);
                        }
                    }
                }
                Incoming::Event { event, payload, .. } if field(&payload, "runId") == run => {
                    match event.as_str() {
                        "exec.begun" => given.begin(client, &run).await?,
                        "exec.output" => ended.take(&payload),
                        _ => {}
                    }
                }
                Incoming::Answer { .. } | Incoming::Event { .. } => {}
            }
        }
    }
}

impl Ended {
    fn take(&mut self, payload: &Value) {
        let data = STANDARD.decode(field(payload, "data")).unwrap_or_default();
        if field(payload, "stream") == "stderr" {
            if self.said.len() < 200 {
                self.said.push_str(&clean(&String::from_utf8_lossy(&data)));
            }
        } else {
            self.out.extend(data);
        }
    }

    fn end(&mut self, payload: &Value) {
        self.code = payload.get("exitCode").and_then(Value::as_i64);
        self.signal = number(payload, "signal");
        let dropped = payload.get("dropped").and_then(Value::as_object);
        let dropped = dropped.into_iter().flat_map(|by| by.values());
        self.dropped = dropped.filter_map(Value::as_u64).sum();
        if let Some(message) = payload.pointer("/error/message").and_then(Value::as_str) {
            self.said = clean(message);
        }
    }
}
