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

/// A run of this agent that goes on until its workspace has a file `go`, and then ends with code 7.
fn waits_for_go(gateway: &Gateway, agent: &str, options: &[&str]) -> Child {
    let script = "echo tick; while [ ! -e go ]; do sleep 0.05; done; echo done; exit 7";
    let words = [
        &["exec", "--agent", agent],
        options,
        &["--", "sh", "-c", script],
    ]
    .concat();
    let mut child = gateway
        .command(&words)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 5];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut first)
        .unwrap();
    assert_eq!(&first, b"tick\n", "{}", gateway.log());
    child
}

fn go(gateway: &Gateway, agent: &str) {
    std::fs::write(
        gateway.state().join("workspaces").join(agent).join("go"),
        "",
    )
    .unwrap();
}

/// What it still wrote, and its code.
fn finished(mut child: Child) -> (Option<i32>, String) {
    let mut wrote = String::new();
    let mut out = child.stdout.take().unwrap();
    let (code, said) = end(child, SOON);
    out.read_to_string(&mut wrote).unwrap();
    (code, wrote + &said)
}

/// The engine is killed under three runs of three agents, and is back under the last of them.
fn is_killed_under_runs(engine: &Engine) -> (Gateway, Child) {
    let mut gateway = gateway(engine);
    gateway.launch();
    let pid = gateway.pid();
    let one = waits_for_go(&gateway, "one", &[]);
    let two = waits_for_go(&gateway, "two", &["--timeout", "3s"]);
    let three = waits_for_go(&gateway, "three", &[]);
    assert_eq!(boxes(engine).len(), 3);

    engine.kill_all();
    let end_of_wait = Instant::now() + SOON;
    loop {
        let refused = gateway.cli(&["exec", "--agent", "four", "--", "true"]);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(125), "{said}");
        if said.contains("error[NO_DRIVER]") {
            break;
        }
        assert!(Instant::now() < end_of_wait, "{said}");
    }
    // Nobody else's work is lost, and what has to end, ends.
    let (code, said) = finished(two);
    assert_eq!(code, Some(125), "{said}\n{}", gateway.log());
    assert!(said.contains("error[DEADLINE]"), "{said}");
    go(&gateway, "one");
    assert_eq!(
        finished(one),
        (Some(7), "done\n".to_owned()),
        "{}",
        gateway.log()
    );

    engine.start_all_again();
    runs_again(&gateway);
    assert_eq!(gateway.pid(), pid, "the gateway was started again");
    (gateway, three)
}

#[test]
fn an_engine_that_is_killed_mid_run_takes_no_run_along() {
    let engine = Engine::start();
    let (mut gateway, three) = is_killed_under_runs(&engine);
    // When it starts again, it ends the boxes that it finds: nothing goes on unseen, and who waits is told.
    let (code, said) = finished(three);
    assert_eq!(code, Some(125), "{said}");
    assert!(said.contains("error[BOX_LOST]"), "{said}");
    assert!(
        outcomes(&gateway)
            .iter()
            .any(|record| record.to_string().contains("BOX_LOST")),
    );
    assert_eq!(gateway.stop(), 0);
    assert_eq!(boxes(&engine), Vec::<String>::new(), "a container is left");
}

#[test]
fn a_run_lives_through_the_restart_of_an_engine_that_restores() {
    let engine = Engine::start_restoring();
    let (mut gateway, three) = is_killed_under_runs(&engine);
    go(&gateway, "three");
    assert_eq!(
        finished(three),
        (Some(7), "done\n".to_owned()),
        "{}",
        gateway.log()
    );
    assert_eq!(gateway.stop(), 0);
    assert_eq!(boxes(&engine), Vec::<String>::new(), "a container is left");
}

/// Nobody but the gateway can end a box whose engine is gone.
#[test]
fn a_gateway_that_stops_without_its_engine_leaves_no_process_of_a_box() {
    // A time that no other test sleeps.
    let sleepers = || {
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        all.filter(|entry| {
            std::fs::read(entry.path().join("cmdline"))
                .is_ok_and(|line| line == b"sleep\x0086311\0")
        })
        .count()
    };
    let engine = Engine::start_restoring();
    let mut gateway = gateway(&engine);
    gateway.launch();
    let script = "echo tick; exec sleep 86311";
    let mut run = gateway
        .command(&["exec", "--agent", "one", "--", "sh", "-c", script])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 5];
    run.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    while sleepers() == 0 {
        std::thread::sleep(Duration::from_millis(10));
    }
    engine.kill_all();
    assert_eq!(gateway.stop(), 0);
    drop(end(run, SOON));
    assert_eq!(sleepers(), 0, "{}", gateway.log());
    engine.start_all_again();
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
