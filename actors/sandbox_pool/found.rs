//! What ran in a box when the gateway that had made it was killed: its cell has kept it, and says how it ended.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use portcullis_cell::{Cause, Ended, Exit, Frame};
use portcullis_core::audit::Entry;
use portcullis_core::ids::{BoxId, RunId};
use tokio::time::{Instant, timeout_at};

use super::link::{Link, LinkError, Listener};
use crate::audit::AuditHandle;

/// For the cell to dial, which it tries ten times a second.
const DIAL_WITHIN: Duration = Duration::from_secs(2);
/// For it to say what there is, and for what still runs to end.
const END_WITHIN: Duration = Duration::from_secs(3);
/// Most runs that are recorded of one box: more than a box takes at once.
const MOST: usize = 256;
/// How it ended is in the log under this action.
const FOUND: &str = "exec.found";

/// A run of an earlier start.
pub struct FoundRun {
    number: u32,
    run: RunId,
    /// It still ran, and was ended.
    was_ended: bool,
    exit: Option<Exit>,
}

#[cfg(test)]
impl FoundRun {
    pub fn shown(&self) -> String {
        let exit = self
            .exit
            .as_ref()
            .map(|exit| format!("{:?} {:?}", exit.ended, exit.cause));
        format!(
            "{} {} {}",
            self.run,
            self.was_ended,
            exit.unwrap_or_default()
        )
    }
}

/// Asks a box's cell what it has kept, and ends what still runs. Nothing where nobody answers.
pub async fn ask(run_dir: &Path, init: u32) -> Vec<FoundRun> {
    let mut found = Vec::new();
    let asked = async {
        // Its box's own group.
        let gid = std::fs::symlink_metadata(run_dir)?.gid();
        let listener = Listener::bind(run_dir, gid)?;
        // The start that knew its nonce is gone; that it is this process, the kernel says.
        let mut link = listener.accept(init, None, DIAL_WITHIN).await?;
        let until = Instant::now() + END_WITHIN;
        let whole = timeout_at(until, told(&mut link, &mut found));
        whole.await.unwrap_or(Ok(()))
    };
    if let Err(error) = asked.await {
        tracing::debug!(%error, "a box of an earlier start says nothing of its runs");
    }
    found
}

async fn told(link: &mut Link, found: &mut Vec<FoundRun>) -> Result<(), LinkError> {
    // Its answer comes after all reports.
    link.queue(&Frame::Ping { token: 0 })?;
    let mut all = false;
    while !all || found.iter().any(|run| run.exit.is_none()) {
        match link.next().await? {
            Frame::Report { run, name, ended } if found.len() < MOST => {
                // One without a name was being started when the gateway ended.
                let Ok(name) = RunId::new(&name) else {
                    continue;
                };
                if ended.is_none() {
                    link.queue(&Frame::End { run, now: false })?;
                }
                found.push(FoundRun {
                    number: run,
                    run: name,
                    was_ended: ended.is_none(),
                    exit: ended,
                });
            }
            Frame::Exit { run, exit } => {
                let mut open = found.iter_mut().filter(|one| one.exit.is_none());
                if let Some(one) = open.find(|one| one.number == run) {
                    one.exit = Some(exit);
                }
            }
            Frame::Ping { .. } => all = true,
            _ => {}
        }
    }
    Ok(())
}

/// Records how they ended. Their intents have got `unknown` at the start, and keep it: this is the word of the box's cell.
pub async fn record(audit: &AuditHandle, id: &BoxId, boot: &str, found: Vec<FoundRun>) {
    for one in found {
        let Some(exit) = one.exit else {
            continue;
        };
        let status = match (exit.cause, one.was_ended) {
            (Cause::TimedOut, _) => "timed-out",
            (Cause::NotStarted | Cause::NoTerminal, _) => "denied",
            // It ended by itself before it heard that it should.
            (Cause::Itself, _) => "exited",
            (Cause::Cancelled, true) => "ended",
            (Cause::Cancelled, false) => "cancelled",
        };
        let entry = Entry {
            object: Some(one.run.to_string()),
            door: Some("sandbox".to_owned()),
            ..Entry::new(FOUND)
        };
        let entry = entry
            .with("box", id.as_str())
            .with("of_start", boot)
            .with("status", status)
            .with("duration_ms", exit.duration_ms.to_string());
        let entry = match exit.ended {
            Ended::Code(code) => entry.with("exit_code", code.to_string()),
            Ended::Signal(signal) => entry.with("signal", signal.to_string()),
        };
        tracing::warn!(run = %one.run, %id, status, "a run of an earlier start was found");
        if let Err(error) = audit.event(entry).await {
            tracing::error!(run = %one.run, %error, "how a run of an earlier start ended could not be recorded");
        }
    }
}
