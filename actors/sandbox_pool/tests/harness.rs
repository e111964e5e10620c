//! What the sandbox tests share: the cell as a file, a state directory, a live box and what its runs say.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use portcullis_cell::{Spawn, Stream};
use portcullis_core::ids::{AgentId, BoxId, RunId};
use portcullis_core::sandbox::{Access, SystemCalls};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::sandbox_pool::disk::Pass;
use crate::sandbox_pool::driver::{Driver, ProbeContext};
use crate::sandbox_pool::folders;
use crate::sandbox_pool::holder::Whose;
use crate::sandbox_pool::input::RunInputs;
use crate::sandbox_pool::link::{LinkError, Listener};
use crate::sandbox_pool::probe::random_hex;
use crate::sandbox_pool::runs::{Exited, Order, Over, RunEvent, Runs};
use crate::sandbox_pool::spec::{BoxLimits, BoxSpec, StartedBox};
use crate::sandbox_pool::users::{Record, UserBook};
use crate::store::Store;

/// The uid of boxes in these tests; a daemon that is not root has its own.
pub fn box_uid() -> u32 {
    let own = rustix::process::geteuid();
    if own.is_root() { 65_600 } else { own.as_raw() }
}

/// Builds the cell as the root build script does, once for all tests of a run.
pub fn cell() -> PathBuf {
    static BUILT: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    // Set by a test that runs again as another user, who cannot build.
    let given = || std::env::var_os("PORTCULLIS_TEST_CELL").map(PathBuf::from);
    BUILT
        .get_or_init(|| given().unwrap_or_else(build_cell))
        .clone()
}

fn build_cell() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let test = std::env::current_exe().unwrap();
    let folder = test
        .parent()
        .unwrap()
        .parent()
        .unwrap()
        .parent()
        .unwrap()
        .join("cell-for-tests");
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let status = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()))
        .current_dir(root)
        .args([
            "build",
            "--release",
            "--locked",
            "--package",
            "portcullis-cell",
            "--features",
            "bin",
            "--bin",
            "portcullis-cell",
        ])
        .args(["--target", &target, "--target-dir"])
        .arg(&folder)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "s")
        .env("CARGO_PROFILE_RELEASE_LTO", "true")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
        .status()
        .unwrap();
    assert!(status.success(), "the cell must build");
    folder.join(target).join("release/portcullis-cell")
}

/// A state directory as the daemon makes it: 0700, so that a box's uid cannot walk to anything in it.
pub struct State {
    pub folder: tempfile::TempDir,
    pub context: ProbeContext,
    /// The same for every pool on it.
    pub users: UserBook,
}

impl State {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let run_root = folder.path().join("run");
        let workspaces = folder.path().join("workspaces");
        std::fs::create_dir(&run_root).unwrap();
        std::fs::create_dir(&workspaces).unwrap();
        let (cell, _) =
            crate::sandbox_pool::cell_file::place(&run_root, &std::fs::read(cell()).unwrap())
                .unwrap();
        let context = ProbeContext {
            run_root,
            workspaces,
            cell,
            uid: box_uid(),
            gid: box_uid(),
            owner: format!("test-{}", random_hex(4).unwrap()),
            boot: "boot-1".to_owned(),
            limits: BoxLimits {
                memory_bytes: 96 << 20,
                cpu_millis: 2000,
                pids: 40,
                open_files: 4096,
            },
            // Another user has none of its own, unless a test says that it was given one.
            require_cgroup: rustix::process::geteuid().is_root()
                || std::env::var_os("PORTCULLIS_TEST_CGROUP").is_some(),
        };
        let users = UserBook {
            store: Store::in_memory().unwrap(),
            record: Record::Nowhere,
        };
        Self {
            folder,
            context,
            users,
        }
    }

    pub fn spec(&self, agent: &str) -> BoxSpec {
        let context = &self.context;
        std::fs::create_dir_all(context.run_root.join("b")).unwrap();
        folders::workspace(&context.workspaces, agent, context.uid, context.gid).unwrap();
        let id = BoxId::new(&random_hex(6).unwrap()).unwrap();
        BoxSpec {
            run_dir: context.run_root.join("b").join(id.as_str()),
            id,
            whose: Whose::Agent(AgentId::new(agent).unwrap()),
            workspace: context.workspaces.join(agent),
            access: Access::Rw,
            mounts: Vec::new(),
            runtime: None,
            seccomp: SystemCalls::Strict,
            image: None,
            cell: context.cell.clone(),
            limits: context.limits,
            uid: context.uid,
            gid: context.gid,
            owner: context.owner.clone(),
            boot: context.boot.clone(),
            profile_hash: "profile".to_owned(),
            nonce: random_hex(16).unwrap(),
            dead_man: Duration::from_mins(1),
            egress: false,
        }
    }
}

/// A box with its link served, as the room has it.
pub struct Live {
    pub driver: Driver,
    pub spec: BoxSpec,
    pub started: StartedBox,
    pub orders: mpsc::Sender<Order>,
    pub served: JoinHandle<Result<Over, LinkError>>,
    /// Of the next run.
    pub pass: Option<Pass>,
    next: u32,
}

impl Live {
    pub async fn start(driver: &Driver, spec: BoxSpec) -> Self {
        let listener = Listener::bind(&spec.run_dir, spec.gid).unwrap();
        let started = driver.start(&spec).await.unwrap();
        let link = listener
            .accept(
                started.init_pid,
                Some(&spec.nonce),
                Duration::from_secs(10) * slack(),
            )
            .await
            .unwrap();
        let (orders, mut receiver) = mpsc::channel(16);
        let init_pid = started.init_pid;
        let served = tokio::spawn(async move {
            let _listener = listener;
            let end = Runs::new(link, None, Duration::from_mins(1))
                .watching(init_pid)
                .serve(&mut receiver)
                .await;
            // Where a run has no end, this says why.
            end.inspect_err(|error| eprintln!("the link: {error}"))
        });
        Self {
            driver: driver.clone(),
            spec,
            started,
            orders,
            served,
            pass: None,
            next: 0,
        }
    }

    pub async fn begin(
        &mut self,
        script: &str,
        change: impl FnOnce(&mut Spawn),
    ) -> (RunId, mpsc::Receiver<RunEvent>) {
        let (name, _, seen) = self.open(script, change).await;
        (name, seen)
    }

    /// With the way into it.
    pub async fn open(
        &mut self,
        script: &str,
        change: impl FnOnce(&mut Spawn),
    ) -> (RunId, RunInputs, mpsc::Receiver<RunEvent>) {
        let mut spawn = Spawn {
            argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
            env: vec![
                ("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".into()),
                ("HOME".to_owned(), "/workspace".into()),
            ],
            cwd: "/workspace".to_owned(),
            timeout_ms: 20_000 * u64::from(slack()),
            grace_ms: 200,
            output_cap: 1 << 20,
            open_files: 256,
            file_bytes: 1 << 30,
            stdin: false,
            tty: None,
        };
        change(&mut spawn);
        self.next += 1;
        let (events, seen) = mpsc::channel(64);
        let (accepted, answer) = oneshot::channel();
        let name = RunId::new(&format!("r{}", self.next)).unwrap();
        let order = Order::Start {
            name: name.clone(),
            spawn: Box::new(spawn),
            events,
            pass: self.pass.take(),
            accepted,
        };
        self.orders.send(order).await.unwrap();
        let accepted = answer.await.unwrap().unwrap();
        (name, accepted.inputs, seen)
    }

    pub async fn run_with(&mut self, script: &str, change: impl FnOnce(&mut Spawn)) -> Ended {
        let (_, seen) = self.begin(script, change).await;
        finish(seen).await
    }

    pub async fn run(&mut self, script: &str) -> Ended {
        self.run_with(script, |_| {}).await
    }

    pub async fn stop(self) {
        self.driver.stop(&self.spec.id).await.unwrap();
        // Idempotent.
        self.driver.stop(&self.spec.id).await.unwrap();
        let _ = tokio::time::timeout(Duration::from_secs(5) * slack(), self.served)
            .await
            .expect("the link ends with its box");
        assert!(
            !Path::new(&format!(
                "/proc/{}/root/run/portcullis-cell",
                self.started.init_pid
            ))
            .exists()
        );
        folders::remove_run_dir(&self.spec.run_dir);
    }
}

#[derive(Debug)]
pub struct Ended {
    pub out: String,
    pub err: String,
    pub bytes: [usize; 2],
    pub exit: Option<Exited>,
}

impl Ended {
    pub fn exit(&self) -> Exited {
        self.exit.unwrap_or_else(|| panic!("no exit: {self:?}"))
    }
}

pub async fn finish(mut seen: mpsc::Receiver<RunEvent>) -> Ended {
    let mut streams = [Vec::new(), Vec::new()];
    let mut next = 0;
    let exit = loop {
        match seen.recv().await {
            Some(RunEvent::Output { stream, seq, data }) => {
                assert_eq!(seq, next, "output in order");
                next += 1;
                streams[usize::from(stream == Stream::Err)].extend(data);
            }
            Some(RunEvent::Exited(exit)) => break Some(exit),
            Some(RunEvent::BoxLost | RunEvent::GivenUp(_)) | None => break None,
        }
    };
    let text =
        |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(100_000)]).into_owned();
    Ended {
        out: text(&streams[0]),
        err: text(&streams[1]),
        bytes: [streams[0].len(), streams[1].len()],
        exit,
    }
}

/// Host pids of every process whose parent chain ends at this init, itself not included.
pub fn below(init: u32) -> Vec<u32> {
    let mut found = vec![init];
    let mut next = 0;
    while let Some(&pid) = found.get(next) {
        next += 1;
        let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
            continue;
        };
        for task in tasks.flatten() {
            let list = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            found.extend(
                list.split_whitespace()
                    .map(|child| child.parse::<u32>().unwrap()),
            );
        }
    }
    found.remove(0);
    found
}

/// Those of them that are called so.
pub fn commands(init: u32, name: &str) -> Vec<u32> {
    let is = |pid: &u32| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name)
    };
    below(init).into_iter().filter(is).collect()
}

/// A bound on time holds if one of five tries keeps it: what else the machine does can only lengthen them.
pub fn in_time(took: &[Duration], limit: Duration) -> bool {
    let kept = took.iter().any(|took| *took <= limit * slack());
    assert!(kept || took.len() < 5, "none within {limit:?}: {took:?}");
    kept
}

/// Bounds are for a machine that does little else; `PORTCULLIS_TEST_SLACK=3` widens them on one that does not.
pub fn slack() -> u32 {
    std::env::var("PORTCULLIS_TEST_SLACK")
        .ok()
        .and_then(|slack| slack.parse().ok())
        .unwrap_or(1)
}
