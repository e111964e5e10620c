//! Boxes that are ready for sessions: given out once, made anew, ended where they are not wanted. On both drivers.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use portcullis_core::ids::{AgentId, BoxId};
use portcullis_core::sandbox::{Access, Overrides, Scope};
use rustix::process::{Pid, Signal, kill_process};

use super::docker::Engine;
use super::harness::{State, finish};
use super::room::{Pool, profiles};
use super::scopes::{Change, NATIVE, boxes, docker, sessions, until_gone};
use crate::sandbox_pool::{Holder, SandboxPoolConfig, WarmStatus};

async fn warm(pool: &Pool) -> WarmStatus {
    pool.handle.status().await.unwrap().warm
}

/// Those that nobody has.
async fn ready(pool: &Pool) -> BTreeSet<BoxId> {
    let status = pool.handle.status().await.unwrap();
    let nobodys = status.boxes.into_iter();
    nobodys
        .filter(|(_, holder)| holder.is_nobody())
        .map(|(id, _)| id)
        .collect()
}

async fn until_ready(pool: &Pool, count: usize) -> BTreeSet<BoxId> {
    let until = Instant::now() + Duration::from_mins(1);
    loop {
        let now = warm(pool).await;
        assert!(now.starting <= at_once(), "{now:?}");
        if now.ready == count && now.starting == 0 {
            return ready(pool).await;
        }
        assert!(Instant::now() < until, "{now:?}, not {count}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// As the pool has it.
fn at_once() -> usize {
    (std::thread::available_parallelism().unwrap().get() / 4).max(1)
}

/// The first process of a box, by what the kernel says of its command line's nonce: both drivers have the folder's name in its mounts.
fn init_of(id: &BoxId) -> Pid {
    let wanted = format!("/b/{id} ");
    let found = std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .find_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let mounts = std::fs::read_to_string(entry.path().join("mountinfo")).ok()?;
            let line = std::fs::read(entry.path().join("cmdline")).ok()?;
            let is_cell = line.starts_with(b"/run/portcullis-cell\0box\0");
            (is_cell && mounts.contains(&wanted)).then_some(pid)
        });
    Pid::from_raw(found.unwrap_or_else(|| panic!("no process of {id}"))).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sessions_first_run_is_in_a_native_box_that_was_there_before() {
    hit(NATIVE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sessions_first_run_is_in_a_docker_box_that_was_there_before() {
    let engine = Engine::shared();
    hit(&docker(&engine)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_burst_of_eight_sessions_eight_native_boxes_are_ready() {
    burst(NATIVE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_burst_of_eight_sessions_eight_docker_boxes_are_ready() {
    let engine = Engine::shared();
    burst(&docker(&engine)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ready_native_box_that_is_killed_is_replaced_and_never_given_out() {
    killed(NATIVE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ready_docker_box_that_is_killed_is_replaced_and_never_given_out() {
    let engine = Engine::shared();
    killed(&docker(&engine)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_boxes_that_are_not_what_is_wanted_now_are_ended_unused() {
    changed(NATIVE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_boxes_that_are_not_what_is_wanted_now_are_ended_unused() {
    let engine = Engine::shared();
    changed(&docker(&engine)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_leaves_no_ready_native_box() {
    stopped(NATIVE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_leaves_no_ready_docker_box() {
    let engine = Engine::shared();
    stopped(&docker(&engine)).await;
}

fn is_there(pid: Pid) -> bool {
    let line = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero()));
    line.is_ok_and(|line| line.starts_with(b"/run/portcullis-cell\0box\0"))
}

/// One is kept, however many sessions begin.
fn one(change: Change<'_>) -> impl Fn(&mut SandboxPoolConfig) {
    move |config| {
        change(config);
        (config.warm_min, config.warm_max) = (1, 1);
    }
}

async fn hit(change: Change<'_>) {
    let state = State::new();
    let change = one(change);
    let agents = [("demo", sessions()), ("plain", Overrides::default())];
    let mut pool = Pool::with_agents(&state, change, &agents).await;
    let before = until_ready(&pool, 1).await;
    // Who has a box of its own takes none of them.
    let (plain, _) = pool.run("plain", "true").await;
    assert!(!before.contains(&plain.box_id));
    let mut seen = BTreeSet::from([plain.box_id]);
    for n in 1..4 {
        let before = until_ready(&pool, 1).await;
        pool.session(&format!("s{n}"));
        let (ticket, ended) = pool
            .run(
                "demo",
                "ls -A /tmp; echo x > /tmp/x; echo x >> kept; wc -l < kept",
            )
            .await;
        assert_eq!(before, BTreeSet::from([ticket.box_id.clone()]));
        assert_eq!(ended.out.trim(), n.to_string());
        assert!(seen.insert(ticket.box_id.clone()), "a used box came back");
        // It is counted beside the answer.
        let until = Instant::now() + Duration::from_secs(10);
        while warm(&pool).await.hits.count < n && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let now = warm(&pool).await;
        assert_eq!((now.hits.count, now.misses.count), (n, 0));
        assert!(now.hits.total_us > 0 && now.hits.worst_us <= now.hits.total_us);
        // What the session does next is in its own.
        let (again, ended) = pool.run("demo", "cat /tmp/x").await;
        assert_eq!((&again.box_id, ended.out.as_str()), (&ticket.box_id, "x\n"));
    }
    assert_eq!(warm(&pool).await.hits.count, 3);
    pool.tree.stop().await;
}

async fn burst(change: Change<'_>) {
    let state = State::new();
    let change = |config: &mut SandboxPoolConfig| {
        change(config);
        (config.warm_min, config.warm_max) = (0, 8);
    };
    let mut pool = Pool::with_agents(&state, change, &[("demo", sessions())]).await;
    assert_eq!(
        pool.handle
            .profile(AgentId::new("demo").unwrap(), None)
            .await
            .unwrap()
            .scope,
        Scope::Session
    );
    assert_eq!(warm(&pool).await, WarmStatus::default(), "nobody has asked");
    let mut used = BTreeSet::new();
    let mut running = Vec::new();
    for n in 0..8 {
        pool.session(&format!("s{n}"));
        let (_, ticket, seen) = pool.begin("demo", "sleep 1; echo done").await.unwrap();
        assert!(used.insert(ticket.box_id));
        running.push(seen);
    }
    for seen in running {
        assert_eq!(finish(seen).await.out, "done\n");
    }
    let now = warm(&pool).await;
    assert_eq!(now.hits.count + now.misses.count, 8);
    // Made one after another, beside all that are in use; and no used one is among them.
    let began = Instant::now();
    let ready = until_ready(&pool, 8).await;
    eprintln!("eight were ready {:?} after the burst", began.elapsed());
    assert!(ready.is_disjoint(&used));
    assert_eq!(boxes(&pool).await.len(), 16);
    pool.tree.stop().await;
}

async fn killed(change: Change<'_>) {
    let state = State::new();
    let mut pool = Pool::with_agents(&state, change, &[("demo", sessions())]).await;
    let before = until_ready(&pool, 1).await;
    kill_process(init_of(before.first().unwrap()), Signal::KILL).unwrap();
    until_gone(&pool, before.first().unwrap()).await;
    let after = until_ready(&pool, 1).await;
    assert!(after.is_disjoint(&before));
    // Just before it is wanted, when nobody has said so yet: the run is in another.
    let init = init_of(after.first().unwrap());
    kill_process(init, Signal::KILL).unwrap();
    while is_there(init) {}
    let (ticket, ended) = pool.run("demo", "echo runs").await;
    assert_eq!(ended.out, "runs\n");
    assert!(!before.contains(&ticket.box_id) && !after.contains(&ticket.box_id));
    pool.tree.stop().await;
}

async fn changed(change: Change<'_>) {
    let state = State::new();
    let change = one(change);
    let mut pool = Pool::with_agents(&state, change, &[("demo", sessions())]).await;
    let before = until_ready(&pool, 1).await;
    let mut config = SandboxPoolConfig::default();
    config.says.pids = Some(99);
    let now = profiles(&config, &[("demo", sessions())]);
    pool.handle.set_profiles(now).await.unwrap();
    let (ticket, ended) = pool.run("demo", "echo new").await;
    assert_eq!(ended.out, "new\n");
    assert!(!before.contains(&ticket.box_id));
    until_gone(&pool, before.first().unwrap()).await;
    let after = until_ready(&pool, 1).await;
    assert!(after.is_disjoint(&before));
    pool.session("two");
    let (next, _) = pool.run("demo", "true").await;
    assert_eq!(next.profile_hash, ticket.profile_hash);
    assert!(after.contains(&next.box_id));
    // Nobody has the scope any more.
    until_ready(&pool, 1).await;
    let now = profiles(&config, &[]);
    pool.handle.set_profiles(now).await.unwrap();
    until_ready(&pool, 0).await;
    pool.tree.stop().await;
}

async fn stopped(change: Change<'_>) {
    let state = State::new();
    let change = |config: &mut SandboxPoolConfig| {
        change(config);
        (config.warm_min, config.warm_max) = (2, 2);
    };
    let pool = Pool::with_agents(&state, change, &[("demo", sessions())]).await;
    let before = until_ready(&pool, 2).await;
    let inits: Vec<Pid> = before.iter().map(init_of).collect();
    assert!(inits.iter().copied().all(is_there));
    pool.tree.stop().await;
    assert!(
        !inits.iter().copied().any(is_there),
        "stopping the pool ends its boxes"
    );
    let left = std::fs::read_dir(state.context.run_root.join("b")).unwrap();
    assert_eq!(left.count(), 0);
}

/// A box that sees an agent's folder is that agent's before it has a session; one that sees none is anybody's with the same user.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ready_box_with_an_agents_folder_is_for_that_agent_and_one_without_for_any() {
    let state = State::new();
    let none = || Overrides {
        workspace: Some(Access::None),
        pids: Some(77),
        ..sessions()
    };
    let agents = [
        ("a", sessions()),
        ("b", sessions()),
        ("x", none()),
        ("y", none()),
    ];
    let mut pool = Pool::with_agents(&state, |_| {}, &agents).await;
    // One for each of a and b, and one for x and y together where they have one user.
    let is_root = rustix::process::geteuid().is_root();
    let before = until_ready(&pool, if is_root { 4 } else { 3 }).await;
    let status = pool.handle.status().await.unwrap();
    let of = |agent: Option<&str>| {
        let found = status.boxes.iter().find(|(_, holder)| {
            let Holder::Nobody(key) = holder else {
                return false;
            };
            key.agent.as_ref().map(AgentId::as_str) == agent
        });
        found.unwrap().0.clone()
    };
    let (a, _) = pool.run("a", "echo a > f").await;
    assert_eq!(a.box_id, of(Some("a")));
    pool.session("two");
    let (b, ended) = pool.run("b", "ls").await;
    assert_eq!((b.box_id, ended.out.as_str()), (of(Some("b")), ""));
    let (y, _) = pool.run("y", "true").await;
    assert!(is_root || y.box_id == of(None));
    assert!(before.contains(&y.box_id));
    pool.tree.stop().await;
}

/// What is kept for nobody takes nobody's place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ready_boxes_make_room_and_are_never_more_than_half() {
    let state = State::new();
    let few = |config: &mut SandboxPoolConfig| {
        config.max_boxes = 4;
        (config.warm_min, config.warm_max) = (8, 8);
    };
    let mut pool = Pool::with_agents(&state, few, &[("demo", sessions())]).await;
    let before = until_ready(&pool, 2).await;
    let mut running = Vec::new();
    for agent in ["a", "b", "c", "d"] {
        let (_, ticket, seen) = pool.begin(agent, "sleep 3; echo on").await.unwrap();
        assert!(!before.contains(&ticket.box_id));
        running.push(seen);
    }
    assert!(ready(&pool).await.is_empty());
    for seen in running {
        assert_eq!(finish(seen).await.out, "on\n");
    }
    pool.tree.stop().await;
}

/// However short the time is for which a used box may be idle.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ready_box_is_not_idle_until_it_was_used() {
    let state = State::new();
    let short = |config: &mut SandboxPoolConfig| config.says.idle_secs = Some(1);
    let mut pool = Pool::with_agents(&state, short, &[("demo", sessions())]).await;
    let before = until_ready(&pool, 1).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(until_ready(&pool, 1).await, before);
    let (ticket, _) = pool.run("demo", "true").await;
    assert!(before.contains(&ticket.box_id));
    until_gone(&pool, &ticket.box_id).await;
    pool.tree.stop().await;
}
