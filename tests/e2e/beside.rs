//! Agents on different drivers in one gateway, and the engine's plug that is pulled under one of them.

use std::io::Read as _;
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::engine::Engine;
use crate::support::gateway::Gateway;

/// For what takes a moment, on a machine that builds something else.
const SOON: Duration = Duration::from_mins(1);

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// `boxed` names Docker, `plain` the native driver; of others nothing is said.
fn gateway(engine: &str) -> Gateway {
    let mut gateway = Gateway::prepared(&[
        ("sandbox.engine", engine),
        ("agents.boxed.sandbox.driver", "docker"),
        ("agents.plain.sandbox.driver", "native"),
    ])
    .by_up();
    gateway.unset("sandbox.driver");
    gateway.launch();
    gateway
}

fn exec(gateway: &Gateway, agent: &str, script: &str) -> Output {
    gateway.cli(&["exec", "--agent", agent, "--", "sh", "-c", script])
}

/// What a run of this agent says of where it was.
fn provenance(gateway: &Gateway, agent: &str) -> Value {
    let output = gateway.cli(&["exec", "--json", "--agent", agent, "--", "true"]);
    let said = text(&output.stdout);
    let last = said.lines().last().unwrap_or_default();
    let document: Value =
        serde_json::from_str(last).unwrap_or_else(|_| panic!("{output:?}\n{}", gateway.log()));
    document["provenance"].clone()
}

/// A run that goes on until its workspace has a file `go`, and then ends with code 7.
fn waits_for_go(gateway: &Gateway, agent: &str) -> Child {
    let script = "echo tick; while [ ! -e go ]; do sleep 0.05; done; echo done; exit 7";
    let mut child = gateway
        .command(&["exec", "--agent", agent, "--", "sh", "-c", script])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 5];
    let out = child.stdout.as_mut().unwrap();
    out.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"tick\n", "{}", gateway.log());
    child
}

/// Its code, and what it still wrote.
fn finished(mut child: Child, gateway: &Gateway) -> (Option<i32>, String) {
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed() > SOON {
            child.kill().unwrap();
            panic!("it hangs\n{}", gateway.log());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let output = child.wait_with_output().unwrap();
    let said = text(&output.stdout) + &text(&output.stderr);
    (output.status.code(), said)
}

/// The driver of each agent's box, by `sandbox list`.
fn boxes(gateway: &Gateway) -> Vec<(String, String, String)> {
    let listed = gateway.json(&["sandbox", "list"]);
    let word = |one: &Value, key: &str| one[key].as_str().unwrap_or_default().to_owned();
    let boxes = listed["boxes"].as_array().unwrap().iter();
    let mut boxes: Vec<_> = boxes
        .map(|one| (word(one, "agent"), word(one, "driver"), word(one, "id")))
        .collect();
    boxes.sort();
    boxes
}

/// Kills the engine, its containerd, and then each container: nothing of them is left to end anything in order.
fn pull_the_plug(engine: &Engine) {
    let containers = engine.folder().join("exec/runtime-runc/moby");
    let inits: Vec<i32> = std::fs::read_dir(&containers)
        .unwrap()
        .flatten()
        .filter_map(|one| std::fs::read(one.path().join("state.json")).ok())
        .map(|state| serde_json::from_slice::<Value>(&state).unwrap())
        .map(|state| i32::try_from(state["init_process_pid"].as_i64().unwrap()).unwrap())
        .collect();
    assert!(
        !inits.is_empty(),
        "no container in {}",
        containers.display()
    );
    engine.kill_all();
    for init in inits {
        kill_process(Pid::from_raw(init).unwrap(), Signal::KILL).unwrap();
    }
}

/// What is said of the drivers: that of agents of which nothing is said, and of the other whether it is there.
fn drivers(gateway: &Gateway) -> (String, Vec<(String, bool)>) {
    let status = gateway.json(&["status"]);
    let driver = &status["portcullis"]["driver"];
    let word = |value: &Value| value.as_str().unwrap_or("none").to_owned();
    let others = driver["others"].as_array().unwrap().iter();
    let others = others.map(|one| (word(&one["driver"]), one["isProven"] == true));
    (word(&driver["name"]), others.collect())
}

#[test]
fn pulling_the_engines_plug_mid_run_loses_no_work_of_an_agent_on_another_driver() {
    let engine = Engine::start();
    let mut gateway = gateway(&engine.host());
    let pid = gateway.pid();
    for (agent, driver) in [
        ("boxed", "docker"),
        ("plain", "native"),
        ("other", "docker"),
    ] {
        let said = provenance(&gateway, agent);
        assert_eq!(said["driver"], driver, "{said}");
        assert_eq!(
            said["imageDigest"].is_string(),
            driver == "docker",
            "{said}"
        );
        let explained = gateway.json(&["sandbox", "explain", "--agent", agent]);
        assert_eq!(explained["driver"], driver);
        assert_eq!(explained["profileHash"], said["profileHash"]);
    }
    let beside = vec![("native".to_owned(), true)];
    let both = ("docker".to_owned(), beside.clone());
    assert_eq!(drivers(&gateway), both);
    let status = text(&gateway.cli(&["status"]).stdout);
    assert!(
        status.contains("native (some agents)  bubblewrap"),
        "{status}"
    );
    // The first lines say it as it is, and not before it is known.
    let end = Instant::now() + SOON;
    while !gateway.said().contains("\nsandbox ") && !gateway.said().starts_with("sandbox ") {
        assert!(Instant::now() < end, "{}", gateway.said());
        std::thread::sleep(Duration::from_millis(20));
    }
    let said = gateway.said();
    let line = said.lines().find(|line| line.starts_with("sandbox "));
    let line = line.unwrap();
    assert!(line.starts_with("sandbox   docker (Docker "), "{line}");
    assert!(line.ends_with("; native, for some agents"), "{line}");
    let before = boxes(&gateway);
    let made_by: Vec<_> = before.iter().map(|(a, d, _)| (&a[..], &d[..])).collect();
    let expected = [
        ("boxed", "docker"),
        ("other", "docker"),
        ("plain", "native"),
    ];
    assert_eq!(made_by, expected);
    let boxed = waits_for_go(&gateway, "boxed");
    let plain = waits_for_go(&gateway, "plain");

    pull_the_plug(&engine);
    let (code, said) = finished(boxed, &gateway);
    assert_eq!(code, Some(125), "{said}");
    let has = |said: &str, part: &str| assert!(said.contains(part), "{part} in {said}");
    has(&said, "error[BOX_LOST]");
    has(&said, "\nnext: ");
    // New runs: one agent's go on as before, and the other's are told why not. Who named no driver got Docker and keeps it.
    for (agent, words) in [
        ("boxed", "of [agents.boxed.sandbox]"),
        ("other", "no sandbox driver"),
    ] {
        let end = Instant::now() + SOON;
        loop {
            let refused = exec(&gateway, agent, "true");
            let said = text(&refused.stderr);
            assert_eq!(refused.status.code(), Some(125), "{said}");
            if said.contains("error[NO_DRIVER]") {
                has(&said, words);
                has(&said, "systemctl restart docker");
                break;
            }
            // Its loss is seen a moment after that of its boxes.
            has(&said, "error[BOX_LOST]");
            assert!(Instant::now() < end, "{said}");
        }
    }
    let other = exec(&gateway, "plain", "echo beside");
    assert_eq!(text(&other.stdout), "beside\n", "{other:?}");
    assert_eq!(drivers(&gateway), ("none".to_owned(), beside));
    // The work itself: to its own end.
    std::fs::write(gateway.state().join("workspaces/plain/go"), "").unwrap();
    let (code, said) = finished(plain, &gateway);
    assert_eq!(
        (code, said.as_str()),
        (Some(7), "done\n"),
        "{}",
        gateway.log()
    );

    engine.start_all_again();
    let end = Instant::now() + SOON;
    while exec(&gateway, "boxed", "true").status.code() != Some(0) {
        assert!(Instant::now() < end, "{}", gateway.log());
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(drivers(&gateway), both);
    assert_eq!(gateway.pid(), pid, "the gateway was started again");
    // The engine's return is nothing to the other driver's box.
    let after = boxes(&gateway);
    let of = |all: &[(String, String, String)]| {
        let found = all.iter().find(|(agent, ..)| agent == "plain");
        found.unwrap().2.clone()
    };
    assert_eq!(of(&after), of(&before));
    let runs = gateway.json(&["audit", "query", "--action", "exec.run"]);
    let runs = runs["records"].as_array().unwrap();
    assert!(
        runs.iter().all(|run| run["outcome"].is_object()),
        "{runs:#?}"
    );
    assert!(
        runs.iter()
            .any(|run| run["outcome"].to_string().contains("BOX_LOST"))
    );
    assert_eq!(gateway.stop(), 0);
}

/// Nothing is taken for a driver that is named and not there.
#[test]
fn without_an_engine_only_agents_that_name_docker_are_refused() {
    let mut gateway = gateway("unix:///nonexistent/docker.sock");
    for agent in ["plain", "other"] {
        assert_eq!(provenance(&gateway, agent)["driver"], "native");
    }
    let refused = exec(&gateway, "boxed", "true");
    let said = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(125), "{said}");
    for part in [
        "error[NO_DRIVER]",
        "of [agents.boxed.sandbox]",
        "apt-get install docker.io",
        "\nnext: ",
    ] {
        assert!(said.contains(part), "{part} in {said}");
    }
    let explained = gateway.json(&["sandbox", "explain", "--agent", "boxed"]);
    assert_eq!(explained["refused"]["code"], "NO_DRIVER", "{explained}");
    assert_eq!(gateway.stop(), 0);
}
