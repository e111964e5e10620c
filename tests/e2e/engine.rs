//! The Docker engine under a living gateway: it dies, it stops, it comes late, it is shared.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use bollard::query_parameters::ListContainersOptionsBuilder;
use serde_json::Value;

use crate::support::engine::Engine;
use crate::support::gateway::Gateway;

/// For what takes a moment, on a machine that builds something else.
const SOON: Duration = Duration::from_mins(1);

fn gateway(engine: &Engine) -> Gateway {
    Gateway::prepared(&[
        ("sandbox.driver", "docker"),
        ("sandbox.engine", &engine.host()),
    ])
}

fn exec(gateway: &Gateway, script: &str) -> Output {
    gateway.cli(&["exec", "--agent", "demo", "--", "sh", "-c", script])
}

/// Until a command runs: the gateway finds its engine again by itself.
fn runs_again(gateway: &Gateway) {
    let end = Instant::now() + SOON;
    loop {
        let output = exec(gateway, "echo again");
        if output.status.code() == Some(0) {
            assert_eq!(output.stdout, b"again\n");
            return;
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(Instant::now() < end, "{said}\n{}", gateway.log());
        assert!(said.contains("error[NO_DRIVER]"), "{said}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// A run that writes without end, once its first line has come.
fn streaming(gateway: &Gateway) -> Child {
    let script = "while :; do echo tick; sleep 0.1; done";
    let mut child = gateway
        .command(&["exec", "--agent", "demo", "--", "sh", "-c", script])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert_eq!(line, "tick\n", "{}", gateway.log());
    // Read on, so that it is never the reader that holds it up.
    std::thread::spawn(move || drop(lines.read_to_end(&mut vec![])));
    child
}

/// How a command ended, and what it said; within `bound`.
fn end(mut child: Child, bound: Duration) -> (Option<i32>, String) {
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if begun.elapsed() > bound {
            child.kill().unwrap();
            panic!("it hangs: {:?}", child.wait_with_output());
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let mut said = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    (status.code(), said)
}

/// Names of all boxes that the engine has, whoever's they are.
fn boxes(engine: &Engine) -> Vec<String> {
    let filters = HashMap::from([("label", vec!["portcullis.box"])]);
    let options = ListContainersOptionsBuilder::default()
        .all(true)
        .filters(&filters)
        .build();
    let asked = async {
        bollard::Docker::connect_with_unix(&engine.host(), 60, bollard::API_DEFAULT_VERSION)
            .unwrap()
            .list_containers(Some(options))
            .await
            .unwrap()
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let found = runtime.block_on(asked);
    found.into_iter().filter_map(|found| found.id).collect()
}

/// Outcomes of all runs in the log; each must have one.
fn outcomes(gateway: &Gateway) -> Vec<Value> {
    let found = gateway.json(&["audit", "query", "--action", "exec.run"]);
    let runs = found["records"].as_array().unwrap();
    assert!(
        runs.iter().all(|run| run["outcome"].is_object()),
        "{runs:#?}"
    );
    runs.iter().map(|run| run["outcome"].clone()).collect()
}

/// What every loss of an engine must come to.
fn loses_its_engine(kill: impl FnOnce(&Engine), back: impl FnOnce(&Engine), bound: Duration) {
    let engine = Engine::start();
    let mut gateway = gateway(&engine);
    gateway.launch();
    let pid = gateway.pid();
    let run = streaming(&gateway);
    assert_eq!(boxes(&engine).len(), 1);
    assert_eq!(gateway.feed(&["vault", "set", "BEFORE"], b"value"), 0);

    kill(&engine);
    let (code, said) = end(run, bound);
    assert_eq!(code, Some(125), "{said}");
    assert!(
        said.contains("error[BOX_LOST]") && said.contains("\nnext: "),
        "{said}"
    );

    // New runs are refused with the engine's words, at once; everything else works.
    let asked = Instant::now();
    let refused = exec(&gateway, "true");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(125));
    assert!(
        said.contains("error[NO_DRIVER]") && said.contains("docker"),
        "{said}"
    );
    assert!(asked.elapsed() < SOON);
    assert_eq!(gateway.feed(&["vault", "set", "DURING"], b"value"), 0);
    let lost = outcomes(&gateway);
    assert!(
        lost.iter()
            .any(|record| record.to_string().contains("BOX_LOST")),
        "{lost:#?}"
    );

    back(&engine);
    runs_again(&gateway);
    assert_eq!(gateway.pid(), pid, "the gateway was started again");
    // Only the box of the last run; the lost one was found by its label and removed.
    assert_eq!(boxes(&engine).len(), 1, "{}", gateway.log());
    assert_eq!(gateway.stop(), 0);
    assert_eq!(boxes(&engine), Vec::<String>::new(), "a container is left");
    gateway.launch();
    gateway.vault_is_open();
    let kept = gateway.json(&["vault", "list"]).to_string();
    assert!(kept.contains("BEFORE") && kept.contains("DURING"), "{kept}");
    assert_eq!(gateway.json(&["audit", "verify"])["intact"], true);
}

#[test]
fn an_engine_that_is_killed_mid_run_ends_the_run_and_serves_again_when_it_is_back() {
    loses_its_engine(Engine::kill_all, Engine::start_all_again, SOON);
}

#[test]
fn an_engine_that_is_stopped_mid_run_ends_the_run_and_serves_again_when_it_is_back() {
    loses_its_engine(|engine| engine.signal("TERM"), Engine::start_again, SOON);
}

#[test]
fn a_gateway_that_starts_before_its_engine_uses_it_when_it_comes() {
    let engine = Engine::start();
    engine.signal("KILL");
    let mut gateway = gateway(&engine);
    gateway.launch();
    let refused = exec(&gateway, "true");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(125));
    assert!(
        said.contains("error[NO_DRIVER]") && said.contains("systemctl start docker"),
        "{said}"
    );
    engine.start_again();
    runs_again(&gateway);
    // Without a run, too: what `status` says is not what was true at the start.
    assert_eq!(gateway.stop(), 0);
    engine.signal("KILL");
    gateway.launch();
    engine.start_again();
    let end = Instant::now() + SOON;
    while !gateway
        .json(&["status"])
        .to_string()
        .contains("proven by a box")
    {
        assert!(Instant::now() < end, "{}", gateway.json(&["status"]));
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Two gateways of one machine share an engine: the start of one must not end the other's boxes.
#[test]
fn a_gateway_leaves_the_boxes_of_another_state_alone() {
    let engine = Engine::start();
    let mut first = gateway(&engine);
    first.launch();
    let run = streaming(&first);
    let theirs = boxes(&engine);
    assert_eq!(theirs.len(), 1);
    let mut second = gateway(&engine);
    second.launch();
    runs_again(&second);
    second.kill();
    second.launch();
    runs_again(&second);
    assert!(
        boxes(&engine).contains(&theirs[0]),
        "another gateway's box was ended"
    );
    assert_eq!(second.stop(), 0);
    assert_eq!(boxes(&engine), theirs);
    first.kill();
    let (code, _) = end(run, SOON);
    assert_ne!(code, Some(0));
    first.launch();
    runs_again(&first);
    assert_eq!(first.stop(), 0);
    assert_eq!(boxes(&engine), Vec::<String>::new(), "a container is left");
}
