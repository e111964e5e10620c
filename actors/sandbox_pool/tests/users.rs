//! Which user of the host boxes have: each agent its own, on both drivers, for good.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt, chown};
use std::path::Path;
use std::time::{Duration, Instant};

use portcullis_core::ids::AgentId;
use portcullis_core::sandbox::{Access, Overrides, Scope, ShareName, Shown, UserRange};

use super::docker::Engine;
use super::harness::{Ended, State};
use super::room::Pool;
use super::scopes::{Change, NATIVE, docker, sessions};
use crate::sandbox_pool::driver::{Driver, DriverError};
use crate::sandbox_pool::folders;
use crate::sandbox_pool::{Explained, PoolError, SandboxPoolConfig};
use crate::supervision::CallError;

/// As boxes had it before each agent had its own.
const OLD: u32 = 65_533;

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn line(explained: &Explained) -> (Shown, String) {
    let mut lines = explained.lines.iter();
    let line = lines.find(|line| line.key == "uid").unwrap();
    (line.value.clone(), line.from.clone())
}

pub fn uid_of(explained: &Explained) -> u32 {
    match line(explained) {
        (Shown::Number(uid), _) => uid.try_into().unwrap(),
        other => panic!("{other:?}"),
    }
}

async fn explain(pool: &Pool, agent: &str) -> Explained {
    let agent = AgentId::new(agent).unwrap();
    pool.handle.explain(Some(agent)).await.unwrap()
}

fn range(text: &str) -> impl Fn(&mut SandboxPoolConfig) {
    let uids = UserRange::new(text).unwrap();
    move |config| config.uids = uids
}

async fn refused(pool: &mut Pool, agent: &str) -> PoolError {
    match pool.begin(agent, "true").await.map(|(_, ticket, _)| ticket) {
        Err(CallError::Refused(error)) => error,
        other => panic!("{other:?}"),
    }
}

/// The host's word on who runs a command.
fn users_of(command: &str) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let mut found: Vec<u32> = processes
        .filter_map(|process| {
            let line = std::fs::read(process.path().join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            let status = std::fs::read_to_string(process.path().join("status")).ok()?;
            let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
            let mut uids = uids.split_whitespace().map(|uid| uid.parse().unwrap());
            let uid = uids.next()?;
            assert!(uids.all(|other: u32| other == uid), "{status}");
            line.starts_with(command).then_some(uid)
        })
        .collect();
    found.sort_unstable();
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_agents_native_boxes_have_a_user_of_their_own() {
    each(NATIVE, "sleep 8123").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_agents_docker_boxes_have_a_user_of_their_own() {
    let engine = Engine::shared();
    each(&docker(&engine), "sleep 8124").await;
}

async fn each(change: Change<'_>, command: &str) {
    if !is_root() {
        return;
    }
    let state = State::new();
    let of_team = || Overrides {
        scope: Some(Scope::Shared),
        share: ShareName::new("a").ok(),
        ..Overrides::default()
    };
    let agents = [
        ("session", sessions()),
        ("one", of_team()),
        ("two", of_team()),
    ];
    let mut pool = Pool::with_agents(&state, change, &agents).await;
    let mut users = Vec::new();
    let mut left = Vec::new();
    for agent in ["a", "b", "session", "one"] {
        let script =
            format!("echo {agent} > kept; chmod 666 kept; echo $(id -u) $(id -g); exec {command}");
        let (_, _, mut seen) = pool.begin(agent, &script).await.unwrap();
        let Some(crate::sandbox_pool::RunEvent::Output { data, .. }) = seen.recv().await else {
            panic!("nothing was said");
        };
        let said = String::from_utf8(data).unwrap();
        let uid: u32 = said.split(' ').next().unwrap().parse().unwrap();
        assert_eq!(said, format!("{uid} {uid}\n"));
        let explained = explain(&pool, agent).await;
        assert_eq!(uid_of(&explained), uid);
        users.push(uid);
        left.push(seen);
    }
    // The share has one, whoever asks; a session has its agent's.
    assert_eq!(uid_of(&explain(&pool, "two").await), users[3]);
    pool.session("another");
    let (_, ended) = pool.run("session", "id -u; cat kept").await;
    assert_eq!(ended.out, format!("{}\nsession\n", users[2]));
    let own = UserRange::default();
    assert!(users.iter().all(|uid| own.has(*uid)), "{users:?}");
    let mut apart = users.clone();
    apart.sort_unstable();
    apart.dedup();
    assert_eq!(apart.len(), users.len(), "{users:?}");
    let until = Instant::now() + Duration::from_secs(10);
    while users_of(command) != apart {
        assert!(Instant::now() < until, "{:?} {apart:?}", users_of(command));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for (folder, uid) in ["a", "b", "session", "shared.a"].into_iter().zip(&users) {
        let found = state.context.workspaces.join(folder).metadata().unwrap();
        assert_eq!((found.uid(), found.gid()), (*uid, *uid), "{folder}");
        assert_eq!(found.mode() & 0o7777, 0o700);
    }
    drop(left);
    pool.tree.stop().await;

    // The same after a restart, in whatever order they come; and what they wrote is theirs.
    let mut pool = Pool::with_agents(&state, change, &agents).await;
    for (agent, uid) in [
        ("two", users[3]),
        ("b", users[1]),
        ("new", 0),
        ("a", users[0]),
    ] {
        let (_, ended) = pool.run(agent, "id -u; cat kept; true").await;
        let mut lines = ended.out.lines();
        let found: u32 = lines.next().unwrap().parse().unwrap();
        match agent {
            "new" => assert!(!users.contains(&found), "{found} was another's"),
            _ => assert_eq!(found, uid, "{agent}"),
        }
        let kept = match agent {
            "new" => None,
            "two" => Some("one"),
            agent => Some(agent),
        };
        assert_eq!(lines.next(), kept, "{ended:?}");
    }
    pool.tree.stop().await;
}

/// Should a mount ever go wrong: the kernel lets one agent's user into no other's folder, and no driver makes such a box of Docker's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_box_that_was_given_anothers_folder_could_not_look_into_it() {
    if !is_root() {
        return;
    }
    let state = State::new();
    let mut pool = Pool::start(&state, |_| {}).await;
    pool.run("a", "echo mine > kept; chmod 666 kept").await;
    let (_, ended) = pool.run("b", "id -u").await;
    let other: u32 = ended.out.trim().parse().unwrap();
    pool.tree.stop().await;
    let mut spec = state.spec("b2");
    (spec.uid, spec.gid) = (other, other);
    spec.workspace = state.context.workspaces.join("a");
    let engine = Engine::shared();
    let Driver::Docker(of_docker) = super::docker::driver(&engine, &state).await else {
        panic!("another driver");
    };
    drop(folders::run_dir(&spec.run_dir, spec.gid).unwrap());
    let error = of_docker.start(&spec).await.unwrap_err();
    assert!(
        matches!(&error, DriverError::Start(why) if why.contains("is not a folder of uid")),
        "{error}"
    );
    // As if every wall around the folder were gone.
    for open in [state.folder.path(), &state.context.workspaces] {
        std::fs::set_permissions(open, PermissionsExt::from_mode(0o755)).unwrap();
    }
    let read = |uid: u32| {
        let of = uid.to_string();
        let output = std::process::Command::new("setpriv")
            .args(["--reuid", &of, "--regid", &of, "--clear-groups"])
            .args(["cat", "a/kept"])
            .current_dir(&state.context.workspaces)
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let own = state.context.workspaces.join("a").metadata().unwrap().uid();
    assert_eq!((read(own).as_str(), read(other).as_str()), ("mine\n", ""));
}

/// The bug: all boxes had one user of the host, so one agent that used up its inotify instances left other agents' programs without.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_uses_up_what_the_kernel_counts_for_a_user_takes_it_from_no_other() {
    if !is_root() {
        return;
    }
    let state = State::new();
    let most: u32 = std::fs::read_to_string("/proc/sys/user/max_inotify_instances")
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let mut pool = Pool::start(&state, |config| {
        config.says.pids = Some(most + 80);
        config.says.memory_bytes = Some(2 << 30);
    })
    .await;
    // Each takes one, and says so where there is none; some more than there are, as one may fail for another reason.
    let tails = most + 20;
    let take = format!(
        "touch f; i=0; while [ $i -lt {tails} ]; do tail -f f 2> err.$i & i=$((i+1)); done; echo all; exec sleep 60"
    );
    let (_, _, mut seen) = pool.begin("a", &take).await.unwrap();
    assert!(seen.recv().await.is_some());
    let one = "touch f; timeout 1 tail -f f 2>&1";
    let without = |ended: &Ended| ended.out.contains("inotify");
    // It has used them up: its own next has none.
    let until = Instant::now() + Duration::from_secs(45);
    while !without(&pool.run("a", one).await.1) {
        assert!(Instant::now() < until, "they are not used up");
    }
    let (_, ended) = pool.run("b", one).await;
    assert!(!without(&ended), "{ended:?}");
    // While the other still has them.
    assert!(without(&pool.run("a", one).await.1));
    drop(seen);
    pool.tree.stop().await;
}

/// The same of a limit that a process has of its own, and that the kernel counts by user: of processes (setrlimit(2)).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_with_many_processes_makes_no_others_limit_full_in_docker() {
    if !is_root() {
        return;
    }
    let state = State::new();
    let engine = Engine::shared();
    let mut pool = Pool::start(&state, docker(&engine)).await;
    let many = "i=0; while [ $i -lt 40 ]; do sleep 60 & i=$((i+1)); done; echo all; exec sleep 60";
    let (_, _, mut seen) = pool.begin("a", many).await.unwrap();
    assert!(seen.recv().await.is_some());
    let few = "ulimit -u 30 && sleep 0 && echo ran";
    let (_, own) = pool.run("a", few).await;
    assert!(own.err.contains("fork"), "{own:?}");
    let (_, other) = pool.run("b", few).await;
    assert_eq!(other.out, "ran\n", "{other:?}");
    drop(seen);
    pool.tree.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_native_workspace_of_the_old_user_becomes_its_agents() {
    migrated(NATIVE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_docker_workspace_of_the_old_user_becomes_its_agents() {
    let engine = Engine::shared();
    migrated(&docker(&engine)).await;
}

fn owned(path: &Path, uid: u32) {
    chown(path, Some(uid), Some(uid)).unwrap();
}

async fn migrated(change: Change<'_>) {
    if !is_root() {
        return;
    }
    let state = State::new();
    let folder = |name: &str| state.context.workspaces.join(name);
    for agent in ["a", "b"] {
        std::fs::create_dir_all(folder(agent).join("deep")).unwrap();
        std::fs::set_permissions(folder(agent), PermissionsExt::from_mode(0o700)).unwrap();
        std::fs::write(folder(agent).join("deep/kept"), agent).unwrap();
        for name in ["deep/kept", "deep", ""] {
            owned(&folder(agent).join(name), OLD);
        }
    }
    let mut pool = Pool::start(&state, change).await;
    let mut users = Vec::new();
    for agent in ["a", "b"] {
        let (_, ended) = pool
            .run(
                agent,
                "id -u; cat deep/kept; echo more >> deep/kept; rm deep/kept && echo",
            )
            .await;
        let uid: u32 = ended.out.lines().next().unwrap().parse().unwrap();
        assert_eq!(ended.out, format!("{uid}\n{agent}\n"), "{ended:?}");
        assert_eq!(folder(agent).join("deep").metadata().unwrap().uid(), uid);
        users.push(uid);
    }
    assert!(users[0] != users[1] && !users.contains(&OLD));

    // What is another agent's is taken over from nobody, and said; mended, it needs no restart.
    std::fs::create_dir(folder("c")).unwrap();
    owned(&folder("c"), users[0]);
    let error = refused(&mut pool, "c").await;
    assert_eq!(error.code().name, "WORKSPACE_FOREIGN");
    assert!(error.to_string().contains("agent:a"), "{error}");
    assert_eq!(folder("c").metadata().unwrap().uid(), users[0]);
    owned(&folder("c"), 0);
    pool.run("c", "echo x > x").await;
    let explained = explain(&pool, "c").await;
    assert_eq!(
        folder("c").join("x").metadata().unwrap().uid(),
        uid_of(&explained)
    );
    pool.tree.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_no_user_is_left_an_agent_without_one_is_refused_and_others_go_on() {
    if !is_root() {
        return;
    }
    let state = State::new();
    let mut pool = Pool::start(&state, range("65600-65602")).await;
    for agent in ["a", "b", "a"] {
        pool.run(agent, "true").await;
    }
    let error = refused(&mut pool, "c").await;
    assert_eq!(error.code().name, "UIDS_EXHAUSTED");
    assert!(error.to_string().contains("65600-65602"), "{error}");
    assert!(error.code().next.contains("[sandbox] uids"));
    let (_, ended) = pool.run("b", "id -u").await;
    assert_eq!(ended.out, "65601\n");
    pool.tree.stop().await;
    // More of them, and those that agents have stay theirs.
    let mut pool = Pool::start(&state, range("65600-65610")).await;
    let mut users = Vec::new();
    for agent in ["c", "b", "a"] {
        users.push(pool.run(agent, "id -u").await.1.out);
    }
    assert_eq!(users, ["65602\n", "65601\n", "65600\n"]);
    pool.tree.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_another_range_agents_and_their_folders_move_there_and_nobody_gets_what_they_had() {
    if !is_root() {
        return;
    }
    let state = State::new();
    let mut pool = Pool::start(&state, range("65600-65610")).await;
    pool.run("a", "echo old > kept; chmod 600 kept").await;
    pool.run("b", "true").await;
    pool.tree.stop().await;
    let mut pool = Pool::start(&state, range("65601-65700")).await;
    let (_, ended) = pool.run("a", "id -u; cat kept").await;
    // 65601 is b's.
    assert_eq!(ended.out, "65602\nold\n", "{ended:?}");
    let (_, ended) = pool.run("b", "id -u").await;
    assert_eq!(ended.out, "65601\n");
    pool.tree.stop().await;
    let mut pool = Pool::start(&state, range("65600-65700")).await;
    for (agent, uid) in [("new", "65603\n"), ("a", "65602\n")] {
        assert_eq!(pool.run(agent, "id -u").await.1.out, uid, "{agent}");
    }
    pool.tree.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_explanation_names_the_user_and_who_decided_it_and_gives_none_away() {
    let state = State::new();
    let mut pool = Pool::start(&state, |_| {}).await;
    if !is_root() {
        let explained = explain(&pool, "a").await;
        assert_eq!(uid_of(&explained), rustix::process::geteuid().as_raw());
        assert!(line(&explained).1.contains("not root"));
        pool.tree.stop().await;
        return;
    }
    let before = explain(&pool, "a").await;
    let (value, from) = line(&before);
    assert_eq!(value, Shown::Word("one of its own".to_owned()));
    assert!(from.contains("[sandbox] uids 65536-99999"), "{from}");
    assert_eq!((before.profile_hash, before.refused), (None, None));
    assert_eq!(line(&pool.handle.explain(None).await.unwrap()).0, value);
    // Asked of, an agent got none.
    let (other, ended) = pool.run("b", "id -u").await;
    assert_eq!(ended.out, "65536\n");
    let (ticket, _) = pool.run("a", "true").await;
    let after = explain(&pool, "a").await;
    assert_eq!(uid_of(&after), 65_537);
    assert!(line(&after).1.contains("agent:a"), "{:?}", line(&after));
    assert_eq!(after.profile_hash.as_ref(), Some(&ticket.profile_hash));
    assert_ne!(ticket.profile_hash, other.profile_hash);
    pool.tree.stop().await;
}

/// A box that is ready is no other agent's, also where none sees a folder and nothing else tells them apart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ready_box_is_for_agents_of_its_own_user_only() {
    if !is_root() {
        return;
    }
    let state = State::new();
    let none = || Overrides {
        workspace: Some(Access::None),
        ..sessions()
    };
    let agents = [("a", none()), ("b", none())];
    let mut pool = Pool::with_agents(&state, |_| {}, &agents).await;
    let until = Instant::now() + Duration::from_secs(20);
    while pool.handle.status().await.unwrap().warm.ready < 2 {
        assert!(Instant::now() < until, "each has one that is ready");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut users = Vec::new();
    for round in ["one", "two", "three"] {
        pool.session(round);
        for agent in ["a", "b"] {
            let (_, ended) = pool.run(agent, "id -u").await;
            users.push((agent, ended.out));
        }
    }
    for (agent, uid) in &users {
        let same = users.iter().filter(|(_, other)| other == uid);
        assert!(same.clone().all(|(other, _)| other == agent), "{users:?}");
        assert_eq!(same.count(), 3, "{users:?}");
    }
    let status = pool.handle.status().await.unwrap();
    assert!(status.warm.hits.count >= 2, "{:?}", status.warm);
    pool.tree.stop().await;
}
