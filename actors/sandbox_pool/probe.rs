//! The proof that a driver contains: a real box, and in it a command that tries to get out. A driver that is only installed, and boxes
//! that are only believed to hold, are how sandboxes fail open.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use portcullis_cell::Spawn;
use portcullis_core::ids::{BoxId, RunId};
use portcullis_core::sandbox::{Access, SystemCalls};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::driver::{Driver, DriverError, ProbeContext};
use super::folders;
use super::holder::Whose;
use super::link::Listener;
use super::runs::{Order, RunEvent, Runs};
use super::spec::{BoxLimits, BoxSpec, WORKSPACE_INSIDE};

/// Most processes of the probe's own box: few, so that the trial is short.
const PIDS: u32 = 16;
/// Longest time for the whole proof.
const WITHIN: Duration = Duration::from_secs(20);

/// What a trial's workspace and its file outside of the box are called, before the box's id. No agent's name begins so.
const WORKSPACE: &str = ".probe-";
const CANARY: &str = "canary-";
/// In place of a digest of its profile: it has none.
pub const PROFILE: &str = "probe";

/// Removes what trials left that were broken off by a kill. While none is under way.
pub fn sweep(context: &ProbeContext) {
    for (folder, begins) in [
        (&context.workspaces, WORKSPACE),
        (&context.run_root, CANARY),
    ] {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let id = name.to_str().and_then(|name| name.strip_prefix(begins));
            if id.is_none_or(|id| BoxId::new(id).is_err()) {
                continue;
            }
            // Through no link: not the last one, and not one in it.
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let gone = if is_folder {
                std::fs::remove_dir_all(entry.path())
            } else {
                std::fs::remove_file(entry.path())
            };
            if let Err(error) = gone {
                tracing::warn!(path = %entry.path().display(), %error, "what a trial of the sandbox left cannot be removed");
            }
        }
    }
}

/// What to do about it. A full disk says nothing of walls.
fn fix(reason: &str) -> &'static str {
    let full = [rustix::io::Errno::NOSPC, rustix::io::Errno::DQUOT];
    let is_full = |errno| reason.contains(&io::Error::from(errno).to_string());
    if full.into_iter().any(is_full) {
        return "free disk space under the state directory: the trial's files did not fit; it is tried again";
    }
    "the walls that did not hold are named; usual causes: user namespaces that are switched off (sysctl \
     kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns), no seccomp in the kernel, an \
     engine without its own limits"
}

/// The folder of a trial, below `workspaces/`.
pub fn folder(id: &BoxId) -> String {
    format!("{WORKSPACE}{id}")
}

/// The box of a trial.
pub fn spec(context: &ProbeContext, id: BoxId, nonce: String) -> BoxSpec {
    BoxSpec {
        run_dir: context.run_root.join("b").join(id.as_str()),
        whose: Whose::Probe,
        workspace: context.workspaces.join(folder(&id)),
        id,
        access: Access::Rw,
        mounts: Vec::new(),
        runtime: None,
        seccomp: SystemCalls::Strict,
        image: None,
        cell: context.cell.clone(),
        limits: BoxLimits {
            pids: PIDS,
            ..context.limits
        },
        uid: context.uid,
        gid: context.gid,
        owner: context.owner.clone(),
        boot: context.boot.clone(),
        profile_hash: PROFILE.to_owned(),
        nonce,
        egress: false,
        dead_man: WITHIN,
    }
}

/// Starts a box, lets the trial run in it, and compares what it says with what a box must be.
///
/// # Errors
/// [`DriverError::NoDriver`] that names every wall that did not hold.
pub async fn prove(
    driver: &Driver,
    context: &ProbeContext,
    ceilings: bool,
) -> Result<(), DriverError> {
    let none = |reason: String| DriverError::NoDriver {
        driver: driver.name(),
        fix: fix(&reason).to_owned(),
        reason,
    };
    let id = BoxId::new(&random_hex(6).map_err(|error| none(error.to_string()))?)
        .map_err(|error| none(error.to_string()))?;
    let run_dir = context.run_root.join("b").join(id.as_str());
    let folder = folder(&id);
    let workspace = context.workspaces.join(&folder);
    let canary = context.run_root.join(format!("{CANARY}{id}"));
    let trial = Trial {
        driver,
        context,
        id: &id,
        run_dir: &run_dir,
        workspace: &workspace,
        canary: &canary,
    };
    let mut begun = Begun {
        driver,
        id: &id,
        is_over: false,
    };
    let facts = timeout(WITHIN, trial.run(&folder))
        .await
        .unwrap_or_else(|_| Err("the trial did not end in time".to_owned()));
    let stopped = driver.stop(&id).await;
    begun.is_over = true;
    let _ = std::fs::remove_file(&canary);
    let _ = std::fs::remove_dir_all(&workspace);
    folders::remove_run_dir(&run_dir);
    let wrong = facts
        .map(|facts| judge(&facts, context.uid, ceilings))
        .map_err(none)?;
    stopped?;
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(none(format!(
            "a trial box did not hold: {}",
            wrong.join(", ")
        )))
    }
}

/// A trial whose gateway stops meanwhile: its native box is killed at once. What an engine made ends by its dead man's time, and its remains with the
/// next start.
struct Begun<'a> {
    driver: &'a Driver,
    id: &'a BoxId,
    is_over: bool,
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        if !self.is_over
            && let Driver::Native(native) = self.driver
            && let Some(init) = native.init(self.id)
            && let Some(init) = i32::try_from(init)
                .ok()
                .and_then(rustix::process::Pid::from_raw)
        {
            // It may have ended by itself.
            let _ = rustix::process::kill_process(init, rustix::process::Signal::KILL);
        }
    }
}

struct Trial<'a> {
    driver: &'a Driver,
    context: &'a ProbeContext,
    id: &'a BoxId,
    run_dir: &'a Path,
    workspace: &'a Path,
    canary: &'a Path,
}

impl Trial<'_> {
    async fn run(&self, folder: &str) -> Result<BTreeMap<String, String>, String> {
        let text = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
        let context = self.context;
        let base = self.run_dir.parent().ok_or("no folder for boxes")?;
        std::fs::create_dir_all(base).map_err(text("folder for boxes"))?;
        folders::workspace(&context.workspaces, folder, context.uid, context.gid)
            .map_err(text("trial workspace"))?;
        // The trial is the cell's own binary, in the workspace because that is where a command may be executed from.
        copy(&context.cell, &self.workspace.join("probe")).map_err(text("trial"))?;
        std::fs::write(self.canary, "canary").map_err(text("canary"))?;
        let host = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .map_err(text("host port"))?;
        let port = host.local_addr().map_err(text("host port"))?.port();
        let spec = spec(
            context,
            self.id.clone(),
            random_hex(16).map_err(text("nonce"))?,
        );
        let listener = Listener::bind(self.run_dir, context.gid).map_err(text("control socket"))?;
        let started = self
            .driver
            .start(&spec)
            .await
            .map_err(|error| error.to_string())?;
        // Not by its own word: nothing of a box may be root out here.
        let status = std::fs::read_to_string(format!("/proc/{}/status", started.init_pid))
            .map_err(text("init process"))?;
        let uid = context.uid.to_string();
        let uids = status
            .lines()
            .find_map(|line| line.strip_prefix("Uid:"))
            .unwrap_or_default();
        if uids.split_whitespace().count() != 4 || uids.split_whitespace().any(|found| found != uid)
        {
            return Err(format!(
                "its init process runs as host uid{uids}, not {uid}"
            ));
        }
        let link = listener
            .accept(started.init_pid, Some(&spec.nonce), WITHIN)
            .await
            .map_err(|error| error.to_string())?;
        let (orders, mut receiver) = mpsc::channel(1);
        let (events, mut seen) = mpsc::channel(64);
        let (accepted, _answer) = oneshot::channel();
        let argv = [
            "/workspace/probe",
            "probe",
            &self.canary.to_string_lossy(),
            &port.to_string(),
            &(PIDS * 2).to_string(),
        ];
        let spawn = Box::new(Spawn {
            argv: argv.iter().map(|&word| word.to_owned()).collect(),
            env: Vec::new(),
            cwd: WORKSPACE_INSIDE.to_owned(),
            timeout_ms: 10_000,
            grace_ms: 0,
            output_cap: 64 * 1024,
            open_files: 256,
            file_bytes: 1 << 20,
            stdin: false,
            tty: None,
        });
        let name = RunId::new("probe").map_err(|error| error.to_string())?;
        let order = Order::Start {
            name,
            spawn,
            events,
            pass: None,
            accepted,
        };
        orders.send(order).await.map_err(|_| "no link".to_owned())?;
        tokio::select! {
            facts = collect(&mut seen) => facts,
            end = Runs::new(link, None, WITHIN).serve(&mut receiver) => Err(end.err().map_or_else(String::new, |error| error.to_string())),
        }
    }
}

async fn collect(seen: &mut mpsc::Receiver<RunEvent>) -> Result<BTreeMap<String, String>, String> {
    let mut said = Vec::new();
    loop {
        match seen.recv().await {
            Some(RunEvent::Output { data, .. }) => said.extend(data),
            Some(RunEvent::Exited(exit)) if exit.code == Some(0) => break,
            Some(RunEvent::Exited(exit)) => {
                return Err(format!(
                    "the trial ended with {exit:?}: {}",
                    String::from_utf8_lossy(&said).trim()
                ));
            }
            Some(RunEvent::BoxLost | RunEvent::GivenUp(_)) | None => {
                return Err("the trial box was lost".to_owned());
            }
        }
    }
    let text = String::from_utf8_lossy(&said);
    let facts = text.lines().filter_map(|line| line.split_once(' '));
    Ok(facts
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect())
}

/// Every fact that is not what a box must be.
fn judge(facts: &BTreeMap<String, String>, uid: u32, ceilings: bool) -> Vec<String> {
    let uid = uid.to_string();
    let zero = "0000000000000000";
    let expected = [
        ("CapEff", zero),
        ("CapPrm", zero),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
        ("uid", &uid),
        ("shadow", "refused"),
        ("canary", "refused"),
        ("root", "refused"),
        ("control", "refused"),
        ("workspace", "reached"),
        ("host_port", "refused"),
        ("interfaces", "lo"),
    ];
    let say = |name: &str| {
        format!(
            "{name} {}",
            facts.get(name).map_or("unknown", String::as_str)
        )
    };
    let mut wrong: Vec<_> = expected
        .iter()
        .filter(|(name, value)| facts.get(*name).is_none_or(|found| found != value))
        .map(|(name, _)| say(name))
        .collect();
    let forks = facts
        .get("forks")
        .and_then(|count| count.parse::<u32>().ok());
    if forks.is_none_or(|forks| forks == 0 || (ceilings && forks >= PIDS)) {
        wrong.push(say("forks"));
    }
    wrong
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let mut source = std::fs::File::open(from)?;
    let mut target = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o700)
        .open(to)?;
    io::copy(&mut source, &mut target)?;
    target.set_permissions(std::fs::Permissions::from_mode(0o555))
}

/// `bytes` random bytes in lower-case hexadecimal.
pub fn random_hex(bytes: usize) -> io::Result<String> {
    let mut random = vec![0; bytes];
    getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
    let mut text = String::with_capacity(bytes * 2);
    for byte in random {
        text.extend(
            [byte >> 4, byte & 15].map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)])),
        );
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bug: on a full disk one was told to look at user namespaces.
    #[test]
    fn a_trial_that_did_not_fit_on_the_disk_says_so_and_blames_no_wall() {
        for errno in [rustix::io::Errno::NOSPC, rustix::io::Errno::DQUOT] {
            let reason = format!("trial: {}", io::Error::from(errno));
            assert!(fix(&reason).starts_with("free disk space"), "{reason}");
        }
        assert!(fix("a trial box did not hold: CapEff").starts_with("the walls"));
    }

    fn good() -> (BTreeMap<String, String>, u32) {
        let uid = 65_533;
        let facts = [
            ("CapEff", "0000000000000000"),
            ("CapPrm", "0000000000000000"),
            ("NoNewPrivs", "1"),
            ("Seccomp", "2"),
            ("uid", "65533"),
            ("shadow", "refused"),
            ("canary", "refused"),
            ("root", "refused"),
            ("control", "refused"),
            ("workspace", "reached"),
            ("host_port", "refused"),
            ("interfaces", "lo"),
            ("forks", "10"),
        ];
        let facts = facts.map(|(name, value)| (name.to_owned(), value.to_owned()));
        (facts.into(), uid)
    }

    #[test]
    fn every_single_wall_that_does_not_hold_or_is_not_told_is_named() {
        let (facts, uid) = good();
        assert_eq!(judge(&facts, uid, true), Vec::<String>::new());
        for name in facts.keys() {
            let mut worse = facts.clone();
            worse.insert(name.clone(), "something else".to_owned());
            assert_eq!(judge(&worse, uid, true), [format!("{name} something else")]);
            worse.remove(name);
            assert_eq!(judge(&worse, uid, true), [format!("{name} unknown")]);
        }
        assert_eq!(judge(&facts, 0, true), ["uid 65533"]);
    }

    #[test]
    fn without_a_ceiling_of_processes_a_box_is_refused_where_one_is_due() {
        let (mut facts, uid) = good();
        for (forks, due, refused) in [
            (PIDS - 1, true, false),
            (PIDS, true, true),
            (PIDS, false, false),
            (0, false, true),
        ] {
            facts.insert("forks".to_owned(), forks.to_string());
            assert_eq!(
                !judge(&facts, uid, due).is_empty(),
                refused,
                "{forks} {due}"
            );
        }
    }
}
