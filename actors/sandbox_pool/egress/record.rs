//! What the log says of a box's way out, and how often.

use std::fmt::Display;
use std::net::IpAddr;

use portcullis_core::audit::{Entry, Seq};
use portcullis_core::egress::Refusal;
use portcullis_core::ids::RunId;
use tokio::time::Instant;

use super::connection::Refused;
use super::wiring::EgressWiring;
use crate::audit::AuditError;

/// Longest text of a request that a record quotes.
const SHOWN: usize = 256;
/// Runs that a record names.
const RUNS: usize = 8;

/// So many at once, and so many more each second.
#[derive(Debug)]
pub struct Bucket {
    most: f64,
    per_second: f64,
    left: f64,
    at: Instant,
}

impl Bucket {
    pub fn new(most: u32, per_second: u32) -> Self {
        Self {
            most: most.into(),
            per_second: per_second.into(),
            left: most.into(),
            at: Instant::now(),
        }
    }

    /// One more?
    pub fn take(&mut self) -> bool {
        let now = Instant::now();
        let since = now.duration_since(self.at).as_secs_f64();
        self.at = now;
        self.left = (self.left + since * self.per_second).min(self.most);
        let is_there = self.left >= 1.0;
        if is_there {
            self.left -= 1.0;
        }
        is_there
    }
}

/// The start of each record: which box, whose, and what ran in it when it asked.
fn entry(wiring: &EgressWiring, runs: &[RunId], action: &str, target: impl Display) -> Entry {
    let mut entry = Entry::new(action)
        .with("box", wiring.id.as_str())
        .with("agent", wiring.whose.as_str())
        .with_list("runs", runs.iter().take(RUNS).map(RunName::name));
    let mut target = target.to_string();
    // Names are 253 bytes at most; what was refused as none may be a whole line.
    if let Some((cut, _)) = target.char_indices().nth(SHOWN) {
        target.truncate(cut);
    }
    entry.object = Some(target);
    entry.principal = Some(wiring.principal.clone());
    entry.door = Some("egress".to_owned());
    entry
}

/// Allowed: durable when this returns, and before anything is dialled.
pub async fn allow(
    wiring: &EgressWiring,
    runs: &[RunId],
    target: impl Display,
    way: &str,
    rule: &str,
    addresses: &[IpAddr],
) -> Result<Seq, AuditError> {
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let entry = entry(wiring, runs, "egress.allow", target)
        .with("way", way)
        .with_list("addresses", addresses.iter().map(String::as_str));
    let entry = Entry {
        decision: Some("allow".to_owned()),
        rule: Some(format!("egress {rule}")),
        ..entry
    };
    wiring.ways.audit.event(entry).await
}

/// One request inside TLS that is opened: durable when this returns, and before any secret leaves the vault. `put`: secrets that go in.
pub async fn request(
    wiring: &EgressWiring,
    runs: &[RunId],
    target: impl Display,
    (method, path): (&str, &str),
    put: &[String],
) -> Result<Seq, AuditError> {
    let path: String = path.chars().take(SHOWN).collect();
    let entry = entry(wiring, runs, "egress.request", target)
        .with("method", method)
        .with("path", path)
        .with_list("secrets", put.iter().map(String::as_str));
    let entry = Entry {
        decision: Some("allow".to_owned()),
        ..entry
    };
    wiring.ways.audit.event(entry).await
}

/// Refused. Nothing waits for it: what does not reach the log is counted there.
pub async fn deny(wiring: &EgressWiring, refused: &Refused, more: u64) {
    let Refused {
        target, why, runs, ..
    } = refused;
    let mut entry = entry(wiring, runs, "egress.deny", target).with("reason", why.word());
    if let Refusal::Address(_, address, _) | Refusal::Own(_, address) = why {
        entry = entry.with("address", address.to_string());
    }
    if more > 0 {
        entry = entry.with("more", more.to_string());
    }
    let decision = if why.is_denial() { "deny" } else { "fail" };
    entry.decision = Some(decision.to_owned());
    if let Err(error) = wiring.ways.audit.note(entry).await {
        tracing::warn!(id = %wiring.id, %error, "a refused connection could not be recorded");
    }
}

/// Over.
pub async fn end(
    wiring: &EgressWiring,
    runs: &[RunId],
    target: impl Display,
    allowed: Seq,
    end: &End,
) {
    let entry = entry(wiring, runs, "egress.end", target)
        .with("record", allowed.0.to_string())
        .with("result", end.result)
        .with("sent", end.sent.to_string())
        .with("received", end.received.to_string())
        .with("ms", end.ms.to_string());
    let entry = match end.address {
        Some(address) => entry.with("address", address.to_string()),
        None => entry,
    };
    let entry = match end.replaced {
        0 => entry,
        count => entry.with("replaced", count.to_string()),
    };
    if let Err(error) = wiring.ways.audit.note(entry).await {
        tracing::warn!(id = %wiring.id, %error, "the end of a connection could not be recorded");
    }
}

/// How a connection ended.
#[derive(Debug, Clone, Copy)]
pub struct End {
    /// In a word.
    pub result: &'static str,
    /// The address that was reached.
    pub address: Option<IpAddr>,
    /// Bytes to the host.
    pub sent: u64,
    /// Bytes from it.
    pub received: u64,
    /// Secrets that were taken out of the answer.
    pub replaced: u64,
    /// Milliseconds.
    pub ms: u64,
}

trait RunName {
    fn name(&self) -> &str;
}

impl RunName for portcullis_core::ids::RunId {
    fn name(&self) -> &str {
        self.as_str()
    }
}
