//! Boxes without an engine: bubblewrap makes the namespaces, the cell is their pid 1, cgroups hold the ceilings.
//!
//! No box is host uid 0: a root daemon goes through `portcullis-cell launch`, which gives root up before bubblewrap; any other daemon's
//! boxes have its own uid, and go the same way in a user namespace where the kernel makes one, else to bubblewrap at once. The root of a box is the host's `/usr`, read-only, and an `/etc` with nothing of the host's but the loader's
//! cache, alternatives, time zone and certificates.
//!
//! What a crashed daemon must find again lies beside the control folder, `run/b/<id>.json`: out of the box's sight.

use std::fs;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use command_fds::{CommandFdExt as _, FdMapping};
use portcullis_core::ids::BoxId;
use portcullis_core::sandbox::Access;
use tokio::io::AsyncReadExt as _;
use tokio::time::timeout;

use super::bubblewrap::{
    BLOCK_FD, ETC_OF_BOX, ETC_OURS, INFO_FD, INFO_KEPT_FD, TERMINALS, arguments, in_memory,
    init_pid,
};
use super::cgroup::{Cgroups, Group};
use super::driver::{DriverError, ProbeContext};
use super::folders;
use super::kept::{Kept, kill_and_wait, machine, started_at, write_whole};
use super::spec::{BoxSpec, FoundBox, HOST_NAME, StartedBox, WORKSPACE_INSIDE};
use crate::plain;

/// Longest time from the start of bubblewrap to its word about the init process.
const START_WITHIN: Duration = Duration::from_secs(10);
/// For a program that is being written elsewhere to be ready.
const BUSY_WITHIN: Duration = Duration::from_secs(2);
/// No file about a box is longer, bytes.
const KEPT_MAX: usize = 64 * 1024;
/// Where bubblewrap may lie.
const BUBBLEWRAP: [&str; 3] = ["/usr/bin/bwrap", "/usr/local/bin/bwrap", "/bin/bwrap"];

/// The native driver.
#[derive(Debug, Clone)]
pub struct Native {
    bubblewrap: PathBuf,
    run_root: PathBuf,
    cgroups: Option<Cgroups>,
    way: Way,
}

/// How a box gets to bubblewrap.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Way {
    /// Through `portcullis-cell launch`: as root, which drops to the box's uid, or in a user namespace of the daemon's own user.
    Staged,
    /// At once: no terminals, no limit on the number of files in memory. Why the other way is closed.
    Bare(String),
}

/// bubblewrap before it was let go.
pub(super) struct Launched {
    pub child: tokio::process::Child,
    /// Its report.
    pub info: OwnedFd,
    /// A byte here starts the box, and so does its end.
    pub block: OwnedFd,
}

impl Native {
    /// Looks for what it needs. [`super::probe::prove`] proves that boxes contain.
    pub async fn find(context: &ProbeContext) -> Result<Self, DriverError> {
        let none = |reason: String, fix: &str| DriverError::NoDriver {
            driver: "native",
            reason,
            fix: fix.to_owned(),
        };
        let bubblewrap = BUBBLEWRAP
            .iter()
            .map(PathBuf::from)
            .find(|path| path.is_file());
        let bubblewrap = bubblewrap.ok_or_else(|| {
            none(
                "bubblewrap is not installed".to_owned(),
                "run: apt-get install bubblewrap",
            )
        })?;
        if context.uid == 0 || context.gid == 0 {
            return Err(none(
                "no box runs as uid or gid 0".to_owned(),
                "name users in [sandbox] uids that are nobody's",
            ));
        }
        let cgroups = match Cgroups::find() {
            Ok(cgroups) => Some(cgroups),
            Err(_) if !context.require_cgroup => None,
            Err(reason) => {
                let fix = "start the gateway in a control group of its own (systemd-run --user --scope -p Delegate=yes portcullis gateway; as a \
                           system service with Delegate=yes), or set [sandbox] require_cgroup = false (weaker: no memory, processor or \
                           process limit on a box)";
                return Err(none(reason, fix));
            }
        };
        let way = if rustix::process::geteuid().is_root() {
            Way::Staged
        } else {
            own_stage(context, &bubblewrap).await
        };
        let native = Self {
            bubblewrap,
            run_root: context.run_root.clone(),
            cgroups,
            way,
        };
        native.write_etc().map_err(|error| {
            none(
                format!("{}: {error}", context.run_root.display()),
                "check the state directory",
            )
        })?;
        Ok(native)
    }

    #[cfg(test)]
    #[must_use]
    pub fn without_cgroups(mut self) -> Self {
        self.cgroups = None;
        self
    }

    #[cfg(test)]
    #[must_use]
    pub fn unstaged_for_a_test(mut self) -> Self {
        self.way = Way::Bare("a test says so".to_owned());
        self
    }

    /// Where boxes have no terminals here, and memory alone limits how many files they make in memory: why.
    pub fn unstaged(&self) -> Option<&str> {
        match &self.way {
            Way::Staged => None,
            Way::Bare(why) => Some(why),
        }
    }

    /// False where boxes have no ceilings but rlimits.
    pub const fn has_cgroups(&self) -> bool {
        self.cgroups.is_some()
    }

    fn group(&self, id: &BoxId) -> Option<Group> {
        self.cgroups
            .as_ref()
            .map(|cgroups| cgroups.group(id.as_str()))
    }

    fn write_etc(&self) -> io::Result<()> {
        let folder = self.run_root.join("etc");
        folders::make(folders::open(&self.run_root)?, "etc", None, 0o755)?;
        folders::make(folders::open(&self.run_root)?, "b", None, 0o711)?;
        let texts = [
            format!("127.0.0.1 localhost {HOST_NAME}\n::1 localhost {HOST_NAME}\n"),
            "passwd: files\ngroup: files\nhosts: files\n".to_owned(),
            format!("{HOST_NAME}\n"),
        ];
        for (name, text) in ETC_OURS.iter().zip(texts) {
            write_whole(&folder.join(name), text.as_bytes(), 0o444)?;
        }
        Ok(())
    }

    /// Starts a box and returns once its init process exists, inside its ceilings, and has been let go.
    pub async fn start(&self, spec: &BoxSpec) -> Result<StartedBox, DriverError> {
        let failed = |text: String| DriverError::Start(text);
        if spec.uid == 0 || spec.gid == 0 {
            return Err(failed("no box runs as uid or gid 0".to_owned()));
        }
        if spec.image.is_some() {
            return Err(failed("the native driver has no images".to_owned()));
        }
        write_users(spec)
            .map_err(|error| failed(format!("{}: {error}", spec.run_dir.display())))?;
        // Before anything exists, so that nothing can exist without being found again.
        self.keep(spec, None)
            .map_err(|error| failed(format!("state of the box: {error}")))?;
        if let Some(group) = self.group(&spec.id) {
            group
                .make(&spec.limits)
                .map_err(|error| failed(format!("control group: {error}")))?;
        }
        match self.start_process(spec).await {
            Ok(started) => Ok(started),
            Err(text) => {
                // What is half made goes; its own failure is the smaller news.
                let _ = self.stop(&spec.id).await;
                Err(failed(text))
            }
        }
    }

    /// bubblewrap, which reports its init process and then waits for a byte.
    pub(super) fn launch(&self, spec: &BoxSpec) -> io::Result<Launched> {
        let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
        let (info, info_in) = pipe()?;
        let (block_out, block) = pipe()?;
        let kept = info.try_clone()?;
        let mut command = self.command(spec);
        let mapping = |parent_fd, child_fd| FdMapping {
            parent_fd,
            child_fd,
        };
        command
            .fd_mappings(vec![
                mapping(info_in, INFO_FD),
                mapping(block_out, BLOCK_FD),
                mapping(kept, INFO_KEPT_FD),
            ])
            .map_err(io::Error::other)?;
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        // The command keeps our copies of the child's ends: it goes with this function.
        let child = tokio::process::Command::from(command).spawn()?;
        Ok(Launched { child, info, block })
    }

    /// A cell that was written a moment ago may still be open for writing in a child that was begun meanwhile, until that has become its
    /// program: the kernel executes it then.
    async fn launch_soon(&self, spec: &BoxSpec) -> Result<Launched, String> {
        let until = tokio::time::Instant::now() + BUSY_WITHIN;
        loop {
            match self.launch(spec) {
                Err(error)
                    if error.kind() == io::ErrorKind::ExecutableFileBusy
                        && tokio::time::Instant::now() < until =>
                {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err(error) => return Err(format!("bubblewrap: {error}")),
                Ok(launched) => return Ok(launched),
            }
        }
    }

    async fn start_process(&self, spec: &BoxSpec) -> Result<StartedBox, String> {
        let text = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
        let Launched {
            mut child,
            info,
            block,
        } = self.launch_soon(spec).await?;
        let told = timeout(START_WITHIN, init_pid(info))
            .await
            .unwrap_or_else(|_| Err("bubblewrap said nothing in time".to_owned()));
        // As it was at once: what is placed wrongly must be found again below.
        let init = told.as_ref().ok().copied();
        let init = init.and_then(|pid| Some((pid, started_at(pid)?)));
        let placed = told.and_then(|pid| self.place(spec, pid).map(|()| pid));
        match placed {
            Ok(pid) => {
                let mut block = fs::File::from(block);
                block.write_all(b"x").map_err(text("bubblewrap"))?;
                Ok(StartedBox {
                    init_pid: pid,
                    image_digest: None,
                    child: Some(child),
                })
            }
            Err(error) => {
                // KILL first: a closed block descriptor would let the box run. The init too: it waits for the launcher's
                // word and would wait for ever.
                let _ = child.start_kill();
                if let Some((pid, started)) = init {
                    let _ = kill_and_wait(pid, started).await;
                }
                let mut said = String::new();
                if let Some(stderr) = child.stderr.take() {
                    let _ = timeout(
                        Duration::from_millis(500),
                        stderr.take(2000).read_to_string(&mut said),
                    )
                    .await;
                }
                drop(block);
                Err(format!("{error} {}", said.trim()))
            }
        }
    }

    /// Puts the init process under its ceilings and writes down who it is, while it still waits.
    fn place(&self, spec: &BoxSpec, pid: u32) -> Result<(), String> {
        if let Some(group) = self.group(&spec.id) {
            group
                .add(pid)
                .map_err(|error| format!("control group: {error}"))?;
        }
        let started = started_at(pid).ok_or("the init process ended at once")?;
        self.keep(spec, Some((pid, started)))
            .map_err(|error| format!("state of the box: {error}"))
    }

    /// Every word to bubblewrap: this machine's `/usr` is what it is.
    pub fn shape(spec: &BoxSpec) -> Vec<u8> {
        let mut command = Command::new("bwrap");
        let etc = Path::new("/etc-of-boxes");
        arguments(
            &mut command,
            spec,
            &spec.workspace,
            &spec.run_dir,
            &spec.cell,
            etc,
            None,
        );
        let mut bytes = Vec::new();
        for word in command.get_args() {
            bytes.extend_from_slice(word.as_encoded_bytes());
            bytes.push(0);
        }
        bytes
    }

    fn command(&self, spec: &BoxSpec) -> Command {
        let etc = self.run_root.join("etc");
        let mut command;
        if self.way == Way::Staged {
            command = Command::new(&spec.cell);
            command.args([
                "launch",
                "--uid",
                &spec.uid.to_string(),
                "--gid",
                &spec.gid.to_string(),
            ]);
            let workspace = (spec.access != Access::None).then_some(("w", &spec.workspace));
            let others = [("r", &spec.run_dir), ("c", &spec.cell), ("e", &etc)];
            for (name, path) in workspace.into_iter().chain(others) {
                let mut stage = std::ffi::OsString::from(format!("{name}="));
                stage.push(path);
                command.arg("--stage").arg(stage);
            }
            for (number, mount) in spec.mounts.iter().enumerate() {
                let mut stage = std::ffi::OsString::from(format!("{}=", mount.staged(number)));
                stage.push(&mount.source);
                command.arg("--stage").arg(stage);
                let same = format!("{}={}", mount.staged(number), mount.node);
                command.args(["--same", &same]);
            }
            for memory in in_memory(spec) {
                let limits = format!("{}={}", memory.name, memory.limits());
                command.args(["--memory", &limits]);
            }
            command.args(["--terminals", TERMINALS]);
            command.arg("--").arg(&self.bubblewrap);
            let staged = |name: &str| Path::new("/tmp").join(name);
            arguments(
                &mut command,
                spec,
                &staged("w"),
                &staged("r"),
                &staged("c"),
                &staged("e"),
                Some(Path::new("/tmp")),
            );
        } else {
            command = Command::new(&self.bubblewrap);
            arguments(
                &mut command,
                spec,
                &spec.workspace,
                &spec.run_dir,
                &spec.cell,
                &etc,
                None,
            );
        }
        command.env_clear().current_dir("/");
        command
    }

    /// Ends a box. Nothing of it is left when this returns without an error.
    pub async fn stop(&self, id: &BoxId) -> Result<(), DriverError> {
        let unknown = |text: String| DriverError::Unknown(format!("box {id}: {text}"));
        if let Some((pid, started)) = self.kept(id).and_then(|kept| kept.living()) {
            kill_and_wait(pid, started)
                .await
                .map_err(|error| unknown(error.to_string()))?;
        }
        if let Some(group) = self.group(id)
            && !group.remove().await
        {
            return Err(unknown("its control group is not empty".to_owned()));
        }
        match fs::remove_file(self.kept_path(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(unknown(error.to_string()))
            }
            _ => Ok(()),
        }
    }

    /// The first process of a box, while it lives.
    pub fn init(&self, id: &BoxId) -> Option<u32> {
        let (pid, _) = self.kept(id)?.living()?;
        Some(pid)
    }

    /// Every box of this owner that has left a trace here.
    pub fn list(&self, owner: &str) -> Result<Vec<FoundBox>, DriverError> {
        let folder = self.run_root.join("b");
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => {
                return Err(DriverError::Unknown(format!(
                    "{}: {error}",
                    folder.display()
                )));
            }
            Ok(entries) => entries,
        };
        let mut found = Vec::new();
        for name in entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
        {
            let Some(id) = name
                .strip_suffix(".json")
                .and_then(|id| BoxId::new(id).ok())
            else {
                continue;
            };
            match self.kept(&id) {
                Some(kept) if kept.owner == owner => {
                    let running = kept.living().is_some();
                    found.push(FoundBox {
                        id,
                        boot: kept.boot,
                        profile_hash: kept.profile_hash,
                        running,
                    });
                }
                Some(_) => {}
                // Torn: it says nothing, so it is nobody's; what it stood for ends by its dead-man time.
                None => found.push(FoundBox {
                    id,
                    boot: String::new(),
                    profile_hash: String::new(),
                    running: false,
                }),
            }
        }
        Ok(found)
    }

    fn kept_path(&self, id: &BoxId) -> PathBuf {
        self.run_root.join("b").join(format!("{id}.json"))
    }

    fn kept(&self, id: &BoxId) -> Option<Kept> {
        serde_json::from_slice(&plain::read(&self.kept_path(id), KEPT_MAX).ok()?).ok()
    }

    fn keep(&self, spec: &BoxSpec, init: Option<(u32, u64)>) -> io::Result<()> {
        let kept = Kept {
            v: 1,
            owner: spec.owner.clone(),
            boot: spec.boot.clone(),
            profile_hash: spec.profile_hash.clone(),
            machine: machine(),
            init,
        };
        write_whole(
            &self.kept_path(&spec.id),
            &serde_json::to_vec(&kept)?,
            0o600,
        )
    }
}

/// Whether the kernel lets a daemon that is not root stage a box in a user namespace of its own: it is tried, for settings that forbid it
/// have many names (`kernel.unprivileged_userns_clone`, `AppArmor`'s restriction, a setuid bubblewrap in its place).
async fn own_stage(context: &ProbeContext, bubblewrap: &Path) -> Way {
    let mut command = tokio::process::Command::new(&context.cell);
    command
        .args(["launch", "--uid", &context.uid.to_string()])
        .args(["--gid", &context.gid.to_string()])
        .args(["--memory", "t=mode=1777,size=65536,nr_inodes=16"])
        .args(["--terminals", TERMINALS, "--"])
        .arg(bubblewrap)
        .args(["--unshare-user", "--ro-bind", "/", "/", "--dev-bind"])
        .args([&format!("/tmp/{TERMINALS}"), "/tmp", "--"])
        .args(["/usr/bin/test", "-c", "/tmp/ptmx"])
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    // As of a box: the cell was written a moment ago.
    let until = tokio::time::Instant::now() + BUSY_WITHIN;
    let tried = loop {
        match timeout(START_WITHIN, command.output()).await {
            Ok(Err(error))
                if error.kind() == io::ErrorKind::ExecutableFileBusy
                    && tokio::time::Instant::now() < until =>
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            tried => break tried,
        }
    };
    match tried {
        Ok(Ok(done)) if done.status.success() => Way::Staged,
        Ok(Ok(done)) => {
            let said = String::from_utf8_lossy(&done.stderr);
            let said = said.lines().next().unwrap_or("no terminal came of it");
            Way::Bare(said.trim_start_matches("portcullis-cell: ").to_owned())
        }
        Ok(Err(error)) => Way::Bare(error.to_string()),
        Err(_) => Way::Bare("it did not end in time".to_owned()),
    }
}

/// The box's own `passwd` and `group`: its user has a name, and no other of the host has one. Beside its socket, and gone with it.
fn write_users(spec: &BoxSpec) -> io::Result<()> {
    let (uid, gid) = (spec.uid, spec.gid);
    let passwd = format!(
        "box:x:{uid}:{gid}:box:{WORKSPACE_INSIDE}:/bin/sh\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n"
    );
    let group = format!("box:x:{gid}:\nnogroup:x:65534:\n");
    for (name, text) in ETC_OF_BOX.iter().zip([passwd, group]) {
        write_whole(&spec.run_dir.join(name), text.as_bytes(), 0o444)?;
    }
    Ok(())
}
