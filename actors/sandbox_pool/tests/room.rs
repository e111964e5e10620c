//! The pool in a tree: boxes per agent, what ends them, what it refuses.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use portcullis_cell::Cause;
use portcullis_core::ids::{AgentId, RunId};
use portcullis_core::sandbox::{DriverChoice, Layer, Overrides, Profiles};
use tokio::sync::mpsc;

use super::harness::{self, Ended, Live, State, below, finish};
use crate::sandbox_pool::cgroup::Cgroups;
use crate::sandbox_pool::{
    Driver, Native, PoolError, RunEvent, RunSpec, RunTicket, SandboxPool, SandboxPoolConfig,
    SandboxPoolHandle, SandboxPoolWiring, SessionKey,
};
use crate::supervision::{CallError, FlagReader, Intensity, Policy, Tree, TreeBuilder};

pub struct Pool {
    pub tree: Tree,
    pub handle: SandboxPoolHandle,
    /// Of the runs from here on.
    pub session: SessionKey,
    /// See [`RunSpec::session_over`].
    pub session_over: Option<FlagReader<Option<String>>>,
    runs: u32,
}

impl Pool {
    pub async fn start(state: &State, change: impl FnOnce(&mut SandboxPoolConfig)) -> Self {
        Self::with_agents(state, change, &[]).await
    }

    /// Some of the agents have what `[agents.NAME.sandbox]` says.
    pub async fn with_agents(
        state: &State,
        change: impl FnOnce(&mut SandboxPoolConfig),
        agents: &[(&str, Overrides)],
    ) -> Self {
        let mut config = SandboxPoolConfig::default();
        config.says.driver = Some(DriverChoice::Native);
        change(&mut config);
        let profiles = profiles(&config, agents);
        let mut builder = TreeBuilder::new(
            Intensity::default(),
            Arc::new(|room, why| panic!("{room}: {why}")),
        );
        let cell: &'static [u8] = std::fs::read(harness::cell()).unwrap().leak();
        let wiring = SandboxPoolWiring {
            profiles,
            config,
            state: state.folder.path().to_owned(),
            private: Vec::new(),
            cell,
            owner: state.context.owner.clone(),
            boot: "boot-2".to_owned(),
            users: state.users.clone(),
            ways: None,
            runner: None,
        };
        let handle = SandboxPoolHandle::new(builder.room::<SandboxPool>(Policy::new(256), wiring));
        let tree = builder.start().await.unwrap();
        Self {
            tree,
            handle,
            session: SessionKey {
                by: "test".to_owned(),
                name: "one".to_owned(),
            },
            session_over: None,
            runs: 0,
        }
    }

    /// Runs from here on are in this session.
    pub fn session(&mut self, name: &str) {
        name.clone_into(&mut self.session.name);
    }

    pub async fn begin(
        &mut self,
        agent: &str,
        script: &str,
    ) -> Result<(RunId, RunTicket, mpsc::Receiver<RunEvent>), CallError<PoolError>> {
        self.runs += 1;
        let run = RunId::new(&format!("run-{}", self.runs)).unwrap();
        let spec = RunSpec {
            session: self.session.clone(),
            session_over: self.session_over.clone(),
            run: run.clone(),
            argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
            cwd: None,
            env: vec![("GREETING".to_owned(), "hello".into())],
            timeout: None,
            stdin: false,
            tty: None,
        };
        let (events, seen) = mpsc::channel(16);
        let ticket = self
            .handle
            .start_run(AgentId::new(agent).unwrap(), spec, events)
            .await?;
        Ok((run, ticket, seen))
    }

    pub async fn run(&mut self, agent: &str, script: &str) -> (RunTicket, Ended) {
        let (_, ticket, seen) = self.begin(agent, script).await.unwrap();
        (ticket, finish(seen).await)
    }
}

/// The layers as the gateway makes them.
pub fn profiles(config: &SandboxPoolConfig, agents: &[(&str, Overrides)]) -> Profiles {
    let own = agents.iter().map(|(name, says)| {
        let layer = Layer {
            name: format!("[agents.{name}.sandbox]"),
            says: says.clone(),
        };
        (AgentId::new(name).unwrap(), vec![layer])
    });
    Profiles {
        every: vec![config.layer()],
        agents: own.collect(),
    }
}

pub fn init_of(state: &State, ticket: &RunTicket) -> u32 {
    let path = state
        .context
        .run_root
        .join("b")
        .join(format!("{}.json", ticket.box_id));
    let kept: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    kept["init"][0].as_u64().unwrap().try_into().unwrap()
}

pub fn gone(pid: u32) -> bool {
    !Path::new(&format!("/proc/{pid}/exe")).exists()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_has_one_warm_box_and_nobody_elses() {
    let state = State::new();
    let mut pool = Pool::start(&state, |_| {}).await;
    let (first, ended) = pool
        .run("demo", "echo $GREETING > kept; cat kept; pwd")
        .await;
    assert_eq!(
        (ended.out.as_str(), ended.exit().code),
        ("hello\n/workspace\n", Some(0))
    );
    assert_eq!(
        (first.driver, first.image_digest.as_ref(), first.timeout_ms),
        ("native", None, 60_000)
    );
    let (again, ended) = pool.run("demo", "cat kept").await;
    assert_eq!(
        (again.box_id == first.box_id, ended.out.as_str()),
        (true, "hello\n")
    );
    let (other, ended) = pool.run("other", "ls -A").await;
    assert_ne!(other.box_id, first.box_id);
    assert_eq!(
        (other.profile_hash != first.profile_hash, ended.out.as_str()),
        // Each has a user of its own, where the gateway has some to give.
        (rustix::process::geteuid().is_root(), "")
    );
    let status = pool.handle.status().await.unwrap();
    assert_eq!((status.driver, status.boxes.len()), (Some("native"), 2));
    let inits = [init_of(&state, &first), init_of(&state, &other)];
    assert!(!inits.iter().any(|&init| gone(init)));
    pool.tree.stop().await;
    assert!(
        inits.into_iter().all(gone),
        "stopping the pool ends its boxes"
    );
    assert!(
        std::fs::read_dir(state.context.run_root.join("b"))
            .unwrap()
            .next()
            .is_none()
    );
    // The workspace stays.
    assert!(state.context.workspaces.join("demo/kept").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_runs_at_once_share_a_box_and_keep_apart() {
    let state = State::new();
    let mut pool = Pool::start(&state, |_| {}).await;
    let mut all = Vec::new();
    for n in 0..16 {
        all.push((
            n,
            pool.begin("demo", &format!("echo {n}; exit {n}"))
                .await
                .unwrap(),
        ));
    }
    for (n, (_, _, seen)) in all {
        let ended = finish(seen).await;
        assert_eq!(
            (ended.out, ended.exit.unwrap().code),
            (format!("{n}\n"), Some(n))
        );
    }
    assert_eq!(pool.handle.status().await.unwrap().boxes.len(), 1);
    pool.tree.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_is_cancelled_by_name_and_by_nobody_listening() {
    let state = State::new();
    let mut pool = Pool::start(&state, |_| {}).await;
    let (run, ticket, seen) = pool.begin("demo", "sleep 94").await.unwrap();
    let (_, _, unheard) = pool.begin("demo", "sleep 94").await.unwrap();
    let (_, _, neighbour) = pool.begin("demo", "sleep 1; echo untouched").await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    // Another agent cannot end it.
    pool.handle
        .cancel(AgentId::new("other").unwrap(), run.clone())
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    pool.handle
        .cancel(AgentId::new("demo").unwrap(), run)
        .await
        .unwrap();
    assert_eq!(finish(seen).await.exit().cause, Cause::Cancelled);
    drop(unheard);
    assert_eq!(finish(neighbour).await.out, "untouched\n");
    let sleeping = below(init_of(&state, &ticket)).into_iter().any(|pid| {
        std::fs::read_to_string(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| line.starts_with("sleep"))
    });
    assert!(!sleeping);
    pool.tree.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_box_is_said_and_the_next_run_has_another() {
    let state = State::new();
    let mut pool = Pool::start(&state, |_| {}).await;
    let (_, ticket, mut seen) = pool.begin("demo", "echo up; sleep 93").await.unwrap();
    assert!(matches!(seen.recv().await, Some(RunEvent::Output { .. })));
    let init = rustix::process::Pid::from_raw(init_of(&state, &ticket).cast_signed()).unwrap();
    rustix::process::kill_process(init, rustix::process::Signal::KILL).unwrap();
    assert_eq!(seen.recv().await, Some(RunEvent::BoxLost));
    let (other, ended) = pool.run("demo", "echo back").await;
    assert_eq!(
        (ended.out.as_str(), other.box_id == ticket.box_id),
        ("back\n", false)
    );
    pool.tree.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_box_ends_and_a_busy_one_does_not() {
    let state = State::new();
    let mut pool = Pool::start(&state, |config| config.says.idle_secs = Some(1)).await;
    let (first, _) = pool.run("demo", "true").await;
    let init = init_of(&state, &first);
    let (_, _, busy) = pool.begin("busy", "sleep 2; echo done").await.unwrap();
    let until = Instant::now() + Duration::from_secs(4);
    while !gone(init) {
        assert!(Instant::now() < until, "still there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(finish(busy).await.out, "done\n");
    let (next, ended) = pool.run("demo", "echo again").await;
    assert_eq!(
        (ended.out.as_str(), next.box_id == first.box_id),
        ("again\n", false)
    );
    pool.tree.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn boxes_of_a_crashed_daemon_are_ended_at_the_next_start() {
    let state = State::new();
    let driver = Driver::Native(Native::find(&state.context).await.unwrap());
    let mut orphan = Live::start(&driver, state.spec("demo")).await;
    let (_, seen) = orphan.begin("sleep 92", |_| {}).await;
    // The daemon is gone without a word: its link, not its box.
    orphan.served.abort();
    drop(seen);
    assert!(!gone(orphan.started.init_pid));
    let mut pool = Pool::start(&state, |_| {}).await;
    let (ticket, ended) = pool.run("demo", "echo new").await;
    assert_eq!(
        (ended.out.as_str(), ticket.box_id == orphan.spec.id),
        ("new\n", false)
    );
    assert!(
        gone(orphan.started.init_pid),
        "the orphan is ended before anything runs"
    );
    pool.tree.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_driver_it_refuses_and_says_what_to_do() {
    let state = State::new();
    let mut pool = Pool::start(&state, |config| {
        config.says.driver = Some(DriverChoice::Docker);
        config.engine = Some("unix:///nonexistent/docker.sock".to_owned());
    })
    .await;
    let refused = pool.begin("demo", "true").await.unwrap_err();
    assert!(
        matches!(&refused, CallError::Refused(error @ PoolError::NotThisDriver { .. }) if error.code().name == "NO_DRIVER"),
        "{refused}"
    );
    let fix = "run `apt-get install docker.io busybox-static` and `systemctl start docker`";
    assert!(refused.to_string().contains(fix), "{refused}");
    let status = pool.handle.status().await.unwrap();
    assert_eq!(status.driver, None);
    assert!(status.why.contains(fix), "{}", status.why);
    pool.tree.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_requests_are_refused_before_anything_runs() {
    let state = State::new();
    let mut pool = Pool::start(&state, |_| {}).await;
    let long = format!("echo {}", "x".repeat(70_000));
    let refused = pool.begin("demo", &long).await.unwrap_err();
    assert!(
        matches!(refused, CallError::Refused(PoolError::Invalid(_))),
        "{refused}"
    );
    let refused = pool.begin("demo", "echo \0").await.unwrap_err();
    assert!(
        matches!(refused, CallError::Refused(PoolError::Invalid(_))),
        "{refused}"
    );
    // An agent whose folder was replaced by a link gets no box.
    pool.tree.stop().await;
    let elsewhere = state.folder.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, state.context.workspaces.join("linked")).unwrap();
    let mut pool = Pool::start(&state, |_| {}).await;
    let refused = pool.begin("linked", "true").await.unwrap_err();
    assert!(
        matches!(
            refused,
            CallError::Refused(PoolError::NoBox(_) | PoolError::Workspace(_))
        ),
        "{refused}"
    );
    pool.tree.stop().await;
}

/// What the kernel holds, not what was asked of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_box_stands_in_a_group_that_has_every_ceiling() {
    let state = State::new();
    let Ok(cgroups) = Cgroups::find() else {
        assert!(
            !rustix::process::geteuid().is_root(),
            "root can make control groups"
        );
        return;
    };
    let mut pool = Pool::start(&state, |config| {
        config.says.memory_bytes = Some(96 << 20);
        config.says.cpu_millis = Some(700);
        config.says.pids = Some(40);
    })
    .await;
    let (ticket, _) = pool.run("demo", "true").await;
    let group = cgroups.group(ticket.box_id.as_str());
    assert_eq!(
        group.limit("memory.limit_in_bytes", "memory.max"),
        (96 << 20).to_string()
    );
    let share = group.limit("cpu.cfs_quota_us", "cpu.max");
    assert!(
        share == "70000" || share == "70000 100000",
        "700 thousandths of a core are {share}"
    );
    assert_eq!(group.limit("pids.max", "pids.max"), "40");
    let init = init_of(&state, &ticket).to_string();
    let inside = group.limit("cgroup.procs", "cgroup.procs");
    assert!(
        inside.lines().any(|pid| pid == init),
        "the box's first process {init} is not in {inside:?}"
    );
    pool.tree.stop().await;
}

#[test]
fn the_config_refuses_what_cannot_be_served() {
    assert!(SandboxPoolConfig::default().problems().is_empty());
    let mut bad = SandboxPoolConfig {
        max_boxes: 0,
        ..SandboxPoolConfig::default()
    };
    bad.says.pids = Some(3);
    assert_eq!(
        bad.problems(),
        [
            "[sandbox] pids must be at least 16: the box's own processes count",
            "[sandbox] max_boxes must be at least 1",
        ]
    );
}
