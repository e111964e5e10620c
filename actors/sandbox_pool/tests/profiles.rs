//! Each agent has the boxes that its profile says, and what is explained is what is enforced.

use std::time::{Duration, Instant};

use portcullis_core::ids::AgentId;
use portcullis_core::sandbox::{
    Access, DriverChoice, ImageName, Isolation, Named, Overrides, Shown,
};

use super::docker::{Engine, import};
use super::harness::{State, finish};
use super::room::{Pool, gone, init_of, profiles};
use crate::sandbox_pool::cgroup::Cgroups;
use crate::sandbox_pool::{Explained, PoolError, SandboxPoolConfig};
use crate::supervision::CallError;

fn agent(name: &str) -> AgentId {
    AgentId::new(name).unwrap()
}

fn line(explained: &Explained, key: &str) -> (Shown, String) {
    let found = explained.lines.iter().find(|line| line.key == key).unwrap();
    (found.value.clone(), found.from.clone())
}

async fn refused(pool: &mut Pool, agent: &str) -> PoolError {
    match pool.begin(agent, "true").await {
        Err(CallError::Refused(error)) => error,
        Err(other) => panic!("{other}"),
        Ok((_, ticket, _)) => panic!("it runs: {ticket:?}"),
    }
}

async fn wait_until_gone(pid: u32) {
    let until = Instant::now() + Duration::from_secs(10);
    while !gone(pid) {
        assert!(Instant::now() < until, "{pid} is still there");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whatever the kernel can be asked is asked of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_agents_have_each_its_own_limits_and_explain_says_what_holds() {
    let state = State::new();
    let small = Overrides {
        memory_bytes: Some(64 << 20),
        cpu_millis: Some(300),
        pids: Some(30),
        open_files: Some(99),
        file_bytes: Some(1 << 20),
        output_cap_bytes: Some(1000),
        timeout_ms: Some(700),
        workspace: Some(Access::Ro),
        ..Overrides::default()
    };
    let large = Overrides {
        profile: Some(Named::Baseline),
        cpu_millis: Some(1500),
        ..Overrides::default()
    };
    let mut pool = Pool::with_agents(&state, |_| {}, &[("small", small), ("large", large)]).await;
    let script = "ulimit -n; head -c 5000 /dev/zero | tr '\\0' x; head -c 3000000 /dev/zero > /tmp/f; wc -c < /tmp/f >&2; echo x > /workspace/x";
    let mut tickets = Vec::new();
    for (name, files, out, file, code) in [
        ("small", "99\n", 1000, 1 << 20, 1),
        ("large", "4096\n", 5005, 3_000_000, 0),
        ("other", "1024\n", 5005, 3_000_000, 0),
    ] {
        let (ticket, ended) = pool.run(name, script).await;
        assert!(ended.out.starts_with(files), "{name}: {ended:?}");
        assert_eq!(ended.bytes[0], out, "{name}");
        assert!(
            ended.err.contains(&format!("{file}\n")),
            "{name}: {ended:?}"
        );
        assert_eq!(ended.exit().code == Some(0), code == 0, "{name}: {ended:?}");
        // The same by all ways.
        let explained = pool.handle.explain(Some(agent(name))).await.unwrap();
        assert_eq!(explained.profile_hash.as_ref(), Some(&ticket.profile_hash));
        let profile = pool.handle.profile(agent(name), None).await.unwrap();
        assert_eq!(profile.profile_hash, ticket.profile_hash);
        assert_eq!(profile.timeout_ms, ticket.timeout_ms);
        assert_eq!(
            line(&explained, "timeout_ms").0,
            Shown::Number(ticket.timeout_ms)
        );
        assert_eq!(
            (explained.driver, explained.weaker),
            (Some("native"), false)
        );
        assert_eq!(explained.refused, None);
        if let Ok(cgroups) = Cgroups::find() {
            let group = cgroups.group(ticket.box_id.as_str());
            let number = |key: &str| match line(&explained, key).0 {
                Shown::Number(number) => number,
                other => panic!("{other:?}"),
            };
            assert_eq!(
                group.limit("memory.limit_in_bytes", "memory.max"),
                number("memory_bytes").to_string()
            );
            assert_eq!(
                group.limit("pids.max", "pids.max"),
                number("pids").to_string()
            );
            let share = group.limit("cpu.cfs_quota_us", "cpu.max");
            let share: u64 = share.split(' ').next().unwrap().parse().unwrap();
            assert_eq!(share, number("cpu_millis") * 100);
        }
        tickets.push(ticket);
    }
    assert_ne!(tickets[0].profile_hash, tickets[1].profile_hash);
    assert_ne!(tickets[1].profile_hash, tickets[2].profile_hash);
    let (ticket, ended) = pool.run("small", "sleep 20").await;
    assert_eq!(ticket.timeout_ms, 700);
    assert!(ended.exit().timed_out());
    let explained = pool.handle.explain(Some(agent("large"))).await.unwrap();
    assert_eq!(explained.profile, Named::Baseline);
    assert_eq!(
        line(&explained, "cpu_millis"),
        (Shown::Number(1500), "[agents.large.sandbox]".to_owned())
    );
    assert_eq!(line(&explained, "pids").1, "profile baseline");
    // Of agents that nothing is said of.
    let every = pool.handle.explain(None).await.unwrap();
    // Which user one of them will have is not known.
    let hash = Some(tickets[2].profile_hash.clone());
    let is_root = rustix::process::geteuid().is_root();
    assert_eq!(every.profile_hash, hash.filter(|_| !is_root));
    pool.tree.stop().await;
}

/// The old one ends when what runs in it has, and what runs in it is not touched.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_box_that_is_not_what_is_wanted_now_is_never_used_again() {
    let state = State::new();
    let mut pool = Pool::start(&state, |_| {}).await;
    let (first, _) = pool.run("demo", "true").await;
    let (_, busy, seen) = pool.begin("demo", "sleep 2; echo untouched").await.unwrap();
    assert_eq!(first.box_id, busy.box_id);
    let (idle, _) = pool.run("idle", "true").await;
    let inits = [init_of(&state, &busy), init_of(&state, &idle)];
    let mut config = SandboxPoolConfig::default();
    config.says.pids = Some(99);
    pool.handle
        .set_profiles(profiles(&config, &[]))
        .await
        .unwrap();
    let (next, ended) = pool.run("demo", "echo new").await;
    assert_eq!(ended.out, "new\n");
    assert_ne!(next.box_id, first.box_id);
    assert_ne!(next.profile_hash, first.profile_hash);
    let (other, _) = pool.run("idle", "true").await;
    assert_ne!(other.box_id, idle.box_id);
    assert!(
        gone(inits[1]),
        "an idle one ends before the new one is made"
    );
    assert!(!gone(inits[0]));
    // Its runs can still be cancelled and end as they would.
    assert_eq!(finish(seen).await.out, "untouched\n");
    wait_until_gone(inits[0]).await;
    let (again, _) = pool.run("demo", "true").await;
    assert_eq!(again.box_id, next.box_id, "the new one is kept");
    // What it was made from is its label.
    let kept = std::fs::read_to_string(
        state
            .context
            .run_root
            .join("b")
            .join(format!("{}.json", next.box_id)),
    );
    assert!(kept.unwrap().contains(&next.profile_hash));
    pool.tree.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_in_a_box_that_takes_no_more_can_be_cancelled() {
    let state = State::new();
    let mut pool = Pool::start(&state, |_| {}).await;
    let (run, old, seen) = pool.begin("demo", "sleep 90").await.unwrap();
    let mut config = SandboxPoolConfig::default();
    config.says.pids = Some(99);
    pool.handle
        .set_profiles(profiles(&config, &[]))
        .await
        .unwrap();
    let (new, _, kept) = pool.begin("demo", "sleep 1; echo kept").await.unwrap();
    assert_ne!(new, run);
    pool.handle.cancel(agent("demo"), run).await.unwrap();
    let ended = finish(seen).await;
    assert_eq!(ended.exit().cause, portcullis_cell::Cause::Cancelled);
    assert_eq!(finish(kept).await.out, "kept\n");
    wait_until_gone_by_id(&state, &old.box_id).await;
    pool.tree.stop().await;
}

async fn wait_until_gone_by_id(state: &State, id: &portcullis_core::ids::BoxId) {
    let path = state.context.run_root.join("b").join(format!("{id}.json"));
    let until = Instant::now() + Duration::from_secs(10);
    while path.exists() {
        assert!(Instant::now() < until, "{id} is still there");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_box_past_its_age_ends_when_nothing_runs_in_it_and_takes_no_new_run() {
    let state = State::new();
    let mut pool = Pool::start(&state, |config| config.says.max_age_secs = Some(2)).await;
    let (idle, _) = pool.run("idle", "true").await;
    let began = Instant::now();
    let (_, busy, seen) = pool.begin("busy", "sleep 4; echo untouched").await.unwrap();
    let inits = [init_of(&state, &idle), init_of(&state, &busy)];
    assert!(!gone(inits[0]));
    wait_until_gone(inits[0]).await;
    // Long before it would have been idle for too long.
    assert!(began.elapsed() < Duration::from_secs(4));
    tokio::time::sleep(Duration::from_millis(300)).await;
    let (new, ended) = pool.run("busy", "echo new").await;
    assert_eq!(ended.out, "new\n");
    assert_ne!(new.box_id, busy.box_id);
    assert!(!gone(inits[1]), "what runs in the old one runs on");
    assert_eq!(finish(seen).await.out, "untouched\n");
    wait_until_gone(inits[1]).await;
    pool.tree.stop().await;
}

/// The bug: each box past its age got a sibling, so that one agent had many times its limits, and all places of the pool.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_a_box_that_drains_an_agent_has_one_more_and_no_third() {
    let state = State::new();
    let mut pool = Pool::start(&state, |config| config.says.max_age_secs = Some(1)).await;
    let old = Duration::from_millis(1100);
    let (_, first, one) = pool.begin("busy", "sleep 4; echo one").await.unwrap();
    let init = init_of(&state, &first);
    tokio::time::sleep(old).await;
    let (_, second, two) = pool.begin("busy", "sleep 8; echo two").await.unwrap();
    tokio::time::sleep(old).await;
    // Both drain: the next waits for the end of one.
    let (third, ended) = pool.run("busy", "echo three").await;
    assert_eq!(ended.out, "three\n");
    assert!(gone(init), "three boxes at once");
    let boxes = [&first, &second, &third].map(|ticket| &ticket.box_id);
    assert!(boxes[0] != boxes[1] && boxes[1] != boxes[2] && boxes[0] != boxes[2]);
    assert_eq!(finish(one).await.out, "one\n");
    assert_eq!(finish(two).await.out, "two\n");
    pool.tree.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_weaker_driver_and_an_image_without_an_engine_are_refused_not_degraded() {
    let state = State::new();
    let careful = Overrides {
        min_isolation: Some(Isolation::Docker),
        ..Overrides::default()
    };
    let tools = Overrides {
        image: ImageName::new("tools:1").ok(),
        ..Overrides::default()
    };
    let agents = [("careful", careful), ("tools", tools)];
    let mut pool = Pool::with_agents(&state, |_| {}, &agents).await;
    let error = refused(&mut pool, "careful").await;
    assert_eq!(error.code().name, "ISOLATION_TOO_WEAK");
    assert!(error.to_string().contains("nothing was run"), "{error}");
    let profile = pool.handle.profile(agent("careful"), None).await;
    assert_eq!(profile.unwrap_err(), CallError::Refused(error));
    let explained = pool.handle.explain(Some(agent("careful"))).await.unwrap();
    assert!(explained.weaker);
    assert_eq!(explained.isolation, Some(Isolation::Native));
    assert_eq!(explained.refused.unwrap().code, "ISOLATION_TOO_WEAK");
    assert_eq!(explained.profile_hash, None);
    let error = refused(&mut pool, "tools").await;
    assert_eq!(error.code().name, "IMAGE_UNUSABLE");
    assert!(error.to_string().contains("native driver"), "{error}");
    // Nobody else is touched by it.
    assert_eq!(pool.run("demo", "echo runs").await.1.out, "runs\n");
    assert_eq!(pool.handle.status().await.unwrap().boxes.len(), 1);
    pool.tree.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn explain_answers_where_there_is_no_driver() {
    let state = State::new();
    let pool = Pool::start(&state, |config| {
        config.says.driver = Some(DriverChoice::Docker);
        config.engine = Some("unix:///nonexistent/docker.sock".to_owned());
    })
    .await;
    let explained = pool.handle.explain(Some(agent("demo"))).await.unwrap();
    assert_eq!((explained.driver, explained.isolation), (None, None));
    assert_eq!(explained.refused.unwrap().code, "NO_DRIVER");
    // All of the profile, the user, the networks that names may stand for, and what holds the workspace.
    let all = Named::Restricted.profile().entries().len() + 3;
    assert_eq!(explained.lines.len(), all);
    pool.tree.stop().await;
}

/// Without ceilings a driver is weaker than every named profile takes, and does where the operator has said so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_requires_no_control_group_has_said_that_weaker_will_do() {
    let mut config = SandboxPoolConfig::default();
    let min = |config: &SandboxPoolConfig| {
        let effective = profiles(config, &[]).of(None);
        effective.profile.min_isolation
    };
    assert_eq!(min(&config), Isolation::Native);
    config.require_cgroup = false;
    assert_eq!(min(&config), Isolation::Unbounded);
    config.says.min_isolation = Some(Isolation::Native);
    assert_eq!(min(&config), Isolation::Native);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_by_name_is_pinned_and_what_no_box_may_have_is_refused() {
    let engine = Engine::shared();
    let state = State::new();
    let tag = state.context.owner.clone();
    let name = |part: &str| format!("tools-{part}:{tag}");
    let named = |part: &str| Overrides {
        image: ImageName::new(&name(part)).ok(),
        ..Overrides::default()
    };
    let agents = ["one", "volume", "check"].map(|part| (part, named(part)));
    let use_engine = |config: &mut SandboxPoolConfig| {
        config.says.driver = Some(DriverChoice::Docker);
        config.engine = Some(engine.host());
    };
    let mut pool = Pool::with_agents(&state, use_engine, &agents).await;
    // None is fetched.
    let error = refused(&mut pool, "one").await;
    assert_eq!(error.code().name, "IMAGE_UNUSABLE");
    assert!(error.to_string().contains("no such image"), "{error}");
    let (plain, _) = pool.run("plain", "true").await;

    // It is there now; no restart.
    let changes = [
        "ENV TOOL=1",
        "ENV PATH=/elsewhere",
        "LABEL a=b",
        "EXPOSE 80",
        "CMD [\"/bin/false\"]",
        "USER 0",
        "WORKDIR /tmp",
    ];
    let first = import(&engine, &name("one"), "first", &changes).await;
    let script = "cat /etc/marker; echo ${TOOL-unset} $PATH; id -u; pwd";
    let (ticket, ended) = pool.run("one", script).await;
    let explained = pool.handle.explain(Some(agent("one"))).await.unwrap();
    let uid = super::users::uid_of(&explained);
    let expected = format!("first\nunset /usr/local/bin:/usr/bin:/bin\n{uid}\n/workspace\n");
    assert_eq!(ended.out, expected, "{ended:?}");
    assert_eq!(ticket.image_digest.as_deref(), Some(first.as_str()));
    assert_ne!(ticket.image_digest, plain.image_digest);
    assert_ne!(ticket.profile_hash, plain.profile_hash);
    let explained = pool.handle.explain(Some(agent("one"))).await.unwrap();
    assert_eq!(explained.image_digest.as_deref(), Some(first.as_str()));
    assert_eq!(explained.profile_hash.as_ref(), Some(&ticket.profile_hash));
    assert_eq!(explained.isolation, Some(Isolation::Docker));

    // The name stands for another one: what was decided on does not change under the agent.
    let second = import(&engine, &name("one"), "second", &[]).await;
    assert_ne!(first, second);
    let (again, ended) = pool.run("one", "cat /etc/marker").await;
    assert_eq!(ended.out, "first\n");
    assert_eq!(
        (&again.box_id, &again.image_digest, &again.profile_hash),
        (&ticket.box_id, &ticket.image_digest, &ticket.profile_hash)
    );

    for (part, change, why) in [
        ("volume", "VOLUME /data", "volume"),
        ("check", "HEALTHCHECK CMD true", "health check"),
    ] {
        import(&engine, &name(part), part, &[change]).await;
        let error = refused(&mut pool, part).await;
        assert_eq!(error.code().name, "IMAGE_UNUSABLE");
        assert!(error.to_string().contains(why), "{error}");
    }
    pool.tree.stop().await;

    // A start looks anew; and an image that is gone is no reason to take another unasked.
    let mut pool = Pool::with_agents(&state, use_engine, &agents).await;
    let pinned = pool.handle.explain(Some(agent("one"))).await.unwrap();
    assert_eq!(pinned.image_digest.as_deref(), Some(second.as_str()));
    super::docker::remove(&engine, &second).await;
    import(&engine, &name("one"), "third", &[]).await;
    match pool.begin("one", "true").await {
        Err(CallError::Refused(error)) => assert_eq!(error.code().name, "BOX_LOST", "{error}"),
        Err(other) => panic!("{other}"),
        // A box that was being made ready had met before that it is gone.
        Ok((_, ticket, _)) => assert_ne!(ticket.image_digest.as_deref(), Some(second.as_str())),
    }
    let (third, ended) = pool.run("one", "cat /etc/marker").await;
    assert_eq!(ended.out, "third\n");
    assert_ne!(Some(third.profile_hash), pinned.profile_hash);
    pool.tree.stop().await;
}
