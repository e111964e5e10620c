//! Who has a box: a session, an agent, or all that share it. On both drivers.

use std::time::{Duration, Instant};

use portcullis_core::egress::Rules;
use portcullis_core::ids::{AgentId, BoxId};
use portcullis_core::sandbox::{Access, DriverChoice, Overrides, Scope, ShareName};

use super::docker::Engine;
use super::harness::{State, finish};
use super::room::Pool;
use crate::sandbox_pool::{PoolError, SandboxPoolConfig};
use crate::supervision::{CallError, Flag};

pub fn sessions() -> Overrides {
    Overrides {
        scope: Some(Scope::Session),
        ..Overrides::default()
    }
}

fn shares(name: &str, says: Overrides) -> Overrides {
    Overrides {
        scope: Some(Scope::Shared),
        share: ShareName::new(name).ok(),
        ..says
    }
}

/// Docker, of this engine.
pub fn docker(engine: &Engine) -> impl Fn(&mut SandboxPoolConfig) {
    let host = engine.host();
    move |config| {
        config.says.driver = Some(DriverChoice::Docker);
        config.engine = Some(host.clone());
    }
}

pub type Change<'a> = &'a dyn Fn(&mut SandboxPoolConfig);

/// The driver of [`Pool::start`].
pub const NATIVE: Change<'static> = &|_| {};

pub async fn boxes(pool: &Pool) -> Vec<BoxId> {
    let status = pool.handle.status().await.unwrap();
    status.boxes.into_iter().map(|(id, _)| id).collect()
}

pub async fn until_gone(pool: &Pool, id: &BoxId) {
    let until = Instant::now() + Duration::from_secs(20);
    while boxes(pool).await.contains(id) {
        assert!(Instant::now() < until, "{id} is still there");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_session_has_a_fresh_native_box_that_goes_with_it() {
    fresh(NATIVE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_session_has_a_fresh_docker_box_that_goes_with_it() {
    let engine = Engine::shared();
    fresh(&docker(&engine)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_native_session_past_the_bound_waits_and_takes_nobodys_place_but_its_agents() {
    bounded(NATIVE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_docker_session_past_the_bound_waits_and_takes_nobodys_place_but_its_agents() {
    let engine = Engine::shared();
    bounded(&docker(&engine)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_that_share_a_native_box_have_what_all_of_them_may_have() {
    shared(NATIVE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_that_share_a_docker_box_have_what_all_of_them_may_have() {
    let engine = Engine::shared();
    shared(&docker(&engine)).await;
}

/// Nothing of a session but what it wrote to its agent's folder is seen by another, and its box never comes back.
async fn fresh(change: Change<'_>) {
    let state = State::new();
    let mut pool = Pool::with_agents(&state, change, &[("demo", sessions())]).await;
    let over = Flag::new(None);
    pool.session_over = Some(over.reader());
    let (one, _) = pool.run("demo", "echo kept > /tmp/f; echo x > kept").await;
    assert_eq!(one.scope, Scope::Session);
    let (_, _, left) = pool.begin("demo", "exec sleep 71").await.unwrap();
    let processes =
        "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done | grep -c '^sleep 71'";
    let script = format!("ls -A /tmp; cat kept; {processes}; true");
    // Where it is, it is seen: the test looks at the right places.
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let (again, ended) = pool.run("demo", &script).await;
        assert_eq!(again.box_id, one.box_id);
        if ended.out == "f\nx\n1\n" {
            break;
        }
        // Its shell has not become it yet.
        assert_eq!(ended.out, "f\nx\n0\n", "{ended:?}");
        assert!(Instant::now() < until, "it is not seen");
    }
    // Another session; and the same name, of somebody else.
    let mut others = Vec::new();
    pool.session_over = None;
    for (by, name) in [("test", "two"), ("other", "one")] {
        by.clone_into(&mut pool.session.by);
        pool.session(name);
        let (ticket, ended) = pool.run("demo", &script).await;
        assert_eq!(ended.out, "x\n0\n", "{ended:?}");
        others.push(ticket.box_id);
    }
    assert!(!others.contains(&one.box_id) && others[0] != others[1]);
    // It is over: nothing more is started in its box, and what runs there runs on.
    over.set(Some("gone".to_owned()));
    let until = Instant::now() + Duration::from_secs(10);
    "test".clone_into(&mut pool.session.by);
    pool.session("one");
    loop {
        let (ticket, ended) = pool.run("demo", "cat /tmp/f; true").await;
        if ticket.box_id != one.box_id {
            assert_eq!(ended.out, "", "a used box came back");
            others.push(ticket.box_id);
            break;
        }
        assert!(Instant::now() < until, "its session is over");
    }
    assert!(boxes(&pool).await.contains(&one.box_id));
    drop(left);
    until_gone(&pool, &one.box_id).await;
    // The end of who would say so is the end, too.
    let over = Flag::new(None);
    pool.session_over = Some(over.reader());
    pool.session("three");
    let (three, _) = pool.run("demo", "true").await;
    drop(over);
    until_gone(&pool, &three.box_id).await;
    assert!(others.iter().all(|id| *id != one.box_id));
    pool.tree.stop().await;
}

async fn bounded(change: Change<'_>) {
    let state = State::new();
    let change = |config: &mut SandboxPoolConfig| {
        change(config);
        config.sessions_per_agent = 2;
        config.warm_max = 0;
    };
    let agents = [("demo", sessions()), ("other", sessions())];
    let mut pool = Pool::with_agents(&state, change, &agents).await;
    pool.session("one");
    let (one, _) = pool.run("demo", "true").await;
    pool.session("two");
    let (_, two, busy) = pool.begin("demo", "sleep 4; echo two").await.unwrap();
    // The idle one makes room, at once, and not that in which something runs.
    pool.session("three");
    let (_, three, third) = pool.begin("demo", "sleep 8; echo three").await.unwrap();
    let now = boxes(&pool).await;
    assert!(now.contains(&two.box_id) && !now.contains(&one.box_id));
    // Both run: the next one waits for the first of them, and others do not wait with it.
    let handle = pool.handle.clone();
    let began = Instant::now();
    pool.session("four");
    let (waited, other) = tokio::join!(pool.run("demo", "echo four"), async {
        let profile = handle.profile(AgentId::new("other").unwrap(), None).await;
        profile.map(|_| began.elapsed())
    });
    assert_eq!(waited.1.out, "four\n");
    assert!(
        other.unwrap() < Duration::from_secs(2),
        "another agent waits, too"
    );
    assert!(began.elapsed() > Duration::from_secs(1), "it did not wait");
    assert_eq!(finish(busy).await.out, "two\n");
    let now = boxes(&pool).await;
    assert!(!now.contains(&two.box_id), "three boxes at once");
    let (other, _) = pool.run("other", "true").await;
    let now = boxes(&pool).await;
    assert!(now.contains(&three.box_id) && now.contains(&other.box_id));
    assert_eq!(finish(third).await.out, "three\n");
    pool.tree.stop().await;
}

async fn shared(change: Change<'_>) {
    let state = State::new();
    let says = |pids, egress: &[&str]| Overrides {
        pids: Some(pids),
        egress: Rules::new(egress.iter().copied()).ok(),
        ..Overrides::default()
    };
    let agents = [
        ("a", shares("team", says(60, &["one.example"]))),
        ("b", shares("team", says(70, &["two.example"]))),
        ("c", shares("rest", Overrides::default())),
        ("d", Overrides::default()),
    ];
    let mut pool = Pool::with_agents(&state, change, &agents).await;
    let (one, _) = pool.run("a", "echo from a > /tmp/f; echo from a > f").await;
    // Whatever session it is.
    pool.session("two");
    let (two, ended) = pool.run("b", "cat /tmp/f f").await;
    assert_eq!(ended.out, "from a\nfrom a\n");
    assert_eq!(one.box_id, two.box_id);
    assert_eq!(one.profile_hash, two.profile_hash);
    assert_eq!(two.scope, Scope::Shared);
    // A folder of its own, and no agent's; who shares nothing sees nothing of it.
    let folder = state.context.workspaces.join("shared.team");
    assert_eq!(
        std::fs::read_to_string(folder.join("f")).unwrap(),
        "from a\n"
    );
    assert!(!state.context.workspaces.join("a").exists());
    for agent in ["c", "d"] {
        let (ticket, ended) = pool.run(agent, "ls -A /tmp /workspace").await;
        assert_ne!(ticket.box_id, one.box_id, "{agent}");
        assert_eq!(ended.out.replace(['/', ':', '\n'], ""), "tmpworkspace");
    }
    // What one of them may not have, none has; and it is said.
    for agent in ["a", "b"] {
        let agent = AgentId::new(agent).unwrap();
        let profile = pool.handle.profile(agent.clone(), None).await.unwrap();
        assert_eq!((profile.limits.pids, &profile.egress), (60, &Vec::new()));
        let explained = pool.handle.explain(Some(agent)).await.unwrap();
        assert_eq!(explained.profile_hash.as_ref(), Some(&one.profile_hash));
        let shared = explained.shared.unwrap();
        assert_eq!(
            (shared.name.as_str(), shared.agents.len(), shared.others),
            ("team", 2, false)
        );
    }
    let explained = pool.handle.explain(AgentId::new("d").ok()).await.unwrap();
    assert_eq!(explained.shared, None);
    pool.tree.stop().await;
}

/// No folder is made for a session that has none, and nothing outlives it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_sees_no_folder_leaves_nothing() {
    let state = State::new();
    let says = Overrides {
        workspace: Some(Access::None),
        ..sessions()
    };
    let mut pool = Pool::with_agents(&state, |_| {}, &[("demo", says)]).await;
    let (_, ended) = pool.run("demo", "echo x > x; ls").await;
    assert_eq!(ended.out, "x\n");
    pool.session("two");
    let (_, ended) = pool.run("demo", "ls").await;
    assert_eq!(ended.out, "");
    assert!(!state.context.workspaces.join("demo").exists());
    pool.tree.stop().await;
}

/// Who waits for a place longer than a request may is told so, and no session is ended for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_finds_no_place_in_time_is_told_so() {
    let state = State::new();
    let one = |config: &mut SandboxPoolConfig| {
        config.sessions_per_agent = 1;
        config.warm_max = 0;
    };
    let mut pool = Pool::with_agents(&state, one, &[("demo", sessions())]).await;
    let (_, _, busy) = pool.begin("demo", "sleep 44; echo on").await.unwrap();
    pool.session("two");
    let refused = pool.begin("demo", "true").await.unwrap_err();
    assert_eq!(refused, CallError::Refused(PoolError::Sessions(1)));
    assert_eq!(finish(busy).await.out, "on\n", "it was ended for another");
    pool.tree.stop().await;
}
