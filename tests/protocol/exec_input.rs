//! What goes into a run over the wire: standard input with its credit, signals, a terminal; and who may.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::support::gateway::Gateway;
use crate::support::ws::{Client, admin, hex, random};

fn run(more: &Value, argv: &[&str]) -> Value {
    let mut run = json!({"agent": "demo", "argv": argv, "idempotencyKey": hex(&random::<8>())});
    for (key, value) in more.as_object().unwrap() {
        run[key] = value.clone();
    }
    run
}

/// Begins one, and waits until it takes input: its request's id, its name, the credit.
async fn begin(client: &mut Client, more: &Value, argv: &[&str]) -> (String, Value, Value) {
    let id = client.ask("exec.run", run(more, argv)).await;
    let first = client.answer(&id).await;
    assert_eq!(first["ok"], true, "{first}");
    loop {
        let frame = client.frame().await;
        if frame["event"] == "exec.begun" {
            assert_eq!(frame["payload"]["runId"], first["payload"]["runId"]);
            let credit = frame["payload"]["credit"].clone();
            return (id, first["payload"]["runId"].clone(), credit);
        }
    }
}

/// All that it writes until its end, and that.
async fn to_end(client: &mut Client, id: &str) -> (Vec<u8>, Value) {
    let mut out = vec![];
    loop {
        let frame = client.frame().await;
        if frame["event"] == "exec.output" {
            let data = frame["payload"]["data"].as_str().unwrap();
            out.extend(STANDARD.decode(data).unwrap());
        } else if frame["type"] == "res" && frame["id"] == id {
            return (out, frame["payload"].clone());
        }
    }
}

fn piece(of: &Value, offset: u64, data: &[u8], eof: bool) -> Value {
    json!({"runId": of, "offset": offset, "data": STANDARD.encode(data), "eof": eof})
}

#[tokio::test(flavor = "multi_thread")]
async fn standard_input_is_taken_in_order_within_its_credit_and_by_its_own_connection_only() {
    let gateway = Gateway::start();
    let mut client = admin(&gateway).await;
    let open = json!({"stdin": "open"});
    let (id, of, credit) = begin(
        &mut client,
        &open,
        &["sh", "-c", "all=$(cat); echo \"$all\"; echo end"],
    )
    .await;
    assert_eq!(credit, 65_536);
    let taken = client
        .get("exec.stdin", piece(&of, 0, b"one\n", false))
        .await;
    assert_eq!((&taken["runId"], &taken["offset"]), (&of, &json!(4)));
    assert!(taken["credit"].as_u64().unwrap() <= 65_536, "{taken}");
    // A gap is named, a repeat is no second time.
    let error = client
        .refused("exec.stdin", piece(&of, 9, b"x", false))
        .await;
    assert_eq!(
        (
            &error["details"]["code"],
            &error["details"]["offset"],
            &error["retryable"]
        ),
        (&json!("STDIN_GAP"), &json!(4), &Value::Null),
        "{error}"
    );
    client
        .get("exec.stdin", piece(&of, 0, b"one\n", false))
        .await;
    // Another connection of the same person, an administrator as well, is not who began it.
    let mut other = admin(&gateway).await;
    for (method, params) in [
        ("exec.stdin", piece(&of, 4, b"theirs\n", false)),
        ("exec.signal", json!({"runId": of, "signal": "KILL"})),
        ("exec.resize", json!({"runId": of, "rows": 2, "cols": 2})),
    ] {
        let error = other.refused(method, params).await;
        assert_eq!(
            error["details"]["code"], "RUN_NOT_FOUND",
            "{method}: {error}"
        );
    }
    for (bad, why) in [
        (json!({"runId": of, "offset": 4, "data": "?"}), "base64"),
        (piece(&of, 4, &vec![0; 32 * 1024 + 1], false), "32 KiB"),
        (json!({"runId": of, "data": ""}), "offset"),
        (json!({"runId": of, "offset": -1, "data": ""}), "offset"),
    ] {
        let error = client.refused("exec.stdin", bad).await;
        assert_eq!(error["details"]["code"], "INVALID_PARAMS", "{error}");
        assert!(
            error["message"].as_str().unwrap().contains(why) || why == "offset",
            "{error}"
        );
    }
    client
        .get("exec.stdin", piece(&of, 4, b"two\n", true))
        .await;
    let (out, end) = to_end(&mut client, &id).await;
    assert_eq!(out, b"one\ntwo\nend\n");
    assert_eq!(
        (&end["status"], &end["exitCode"]),
        (&json!("exited"), &json!(0))
    );
    let error = client
        .refused("exec.stdin", piece(&of, 8, b"x", false))
        .await;
    assert_eq!(error["details"]["code"], "RUN_NOT_FOUND", "{error}");
    // The log says what was open.
    let log = gateway.cli(&["audit", "query", "--action", "exec.run", "--json"]);
    let log = String::from_utf8(log.stdout).unwrap();
    assert!(log.contains(r#""stdin":"open""#), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_does_not_read_is_told_of_and_holds_nobody_up() {
    let gateway = Gateway::start();
    let mut client = admin(&gateway).await;
    let open = json!({"stdin": "open"});
    let (id, of, _) = begin(&mut client, &open, &["sleep", "600"]).await;
    let data = vec![b'x'; 32 * 1024];
    let mut offset = 0;
    let full = loop {
        let answer = client
            .call("exec.stdin", piece(&of, offset, &data, false))
            .await;
        if answer["ok"] == false {
            break answer["error"].clone();
        }
        offset = answer["payload"]["offset"].as_u64().unwrap();
        assert!(offset < 1 << 20, "somebody holds all of it");
    };
    assert_eq!(
        (
            &full["details"]["code"],
            &full["retryable"],
            &full["details"]["offset"]
        ),
        (&json!("STDIN_FULL"), &json!(true), &json!(offset)),
        "{full}"
    );
    // A pipe and the credit, no more, however often it is tried; and the connection lives.
    assert!(offset <= 128 * 1024, "{offset}");
    for _ in 0..2 {
        let error = client
            .refused("exec.stdin", piece(&of, offset, &data, false))
            .await;
        assert_eq!(error["details"]["code"], "STDIN_FULL");
    }
    let beside = client
        .ask("exec.run", run(&json!({}), &["echo", "beside"]))
        .await;
    client.answer(&beside).await;
    assert_eq!(to_end(&mut client, &beside).await.0, b"beside\n");
    client.get("exec.cancel", json!({"runId": of})).await;
    assert_eq!(to_end(&mut client, &id).await.1["status"], "cancelled");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_open_input_none_is_taken_and_outside_the_sandbox_there_is_none() {
    let gateway = Gateway::start();
    let mut client = admin(&gateway).await;
    // Today's form, said and not said: at its end at once, and no event that older clients do not know.
    for more in [json!({}), json!({"stdin": "none"})] {
        let id = client
            .ask(
                "exec.run",
                run(&more, &["sh", "-c", "cat; echo up; sleep 1"]),
            )
            .await;
        let of = client.answer(&id).await["payload"]["runId"].clone();
        loop {
            let frame = client.frame().await;
            assert_ne!(frame["event"], "exec.begun");
            if frame["event"] == "exec.output" {
                break;
            }
        }
        let error = client
            .refused("exec.stdin", piece(&of, 0, b"x", false))
            .await;
        assert_eq!(error["details"]["code"], "STDIN_CLOSED", "{error}");
        to_end(&mut client, &id).await;
    }
    for more in [
        json!({"target": "host", "stdin": "open"}),
        json!({"target": "host", "tty": {"rows": 24, "cols": 80}}),
        json!({"target": format!("node:{}", "a".repeat(64)), "stdin": "open"}),
    ] {
        let error = client.refused("exec.run", run(&more, &["cat"])).await;
        assert_eq!(
            error["details"]["code"], "INPUT_UNAVAILABLE",
            "{more}: {error}"
        );
    }
    for more in [
        json!({"stdin": "sha256"}),
        json!({"stdin": true}),
        json!({"tty": true}),
        json!({"tty": {"rows": 0, "cols": 80}}),
        json!({"tty": {"rows": 24, "cols": 5000}}),
    ] {
        let error = client.refused("exec.run", run(&more, &["cat"])).await;
        assert_eq!(
            error["details"]["code"], "INVALID_PARAMS",
            "{more}: {error}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_is_no_cancel_and_a_terminal_is_resized() {
    let gateway = Gateway::start();
    let mut client = admin(&gateway).await;
    let script = "trap 'echo got; exit 5' USR1; echo up; while :; do sleep 0.05; done";
    let id = client
        .ask("exec.run", run(&json!({}), &["sh", "-c", script]))
        .await;
    let of = client.answer(&id).await["payload"]["runId"].clone();
    while client.frame().await["event"] != "exec.output" {}
    for bad in ["SEGV", "usr1", "9", ""] {
        let error = client
            .refused("exec.signal", json!({"runId": of, "signal": bad}))
            .await;
        assert_eq!(error["details"]["code"], "INVALID_PARAMS", "{bad}: {error}");
    }
    let error = client
        .refused("exec.resize", json!({"runId": of, "rows": 1, "cols": 1}))
        .await;
    assert_eq!(error["details"]["code"], "INVALID_PARAMS", "{error}");
    let signal = client
        .ask("exec.signal", json!({"runId": of, "signal": "SIGUSR1"}))
        .await;
    let (mut out, mut told) = (vec![], false);
    let end = loop {
        let frame = client.frame().await;
        if frame["event"] == "exec.output" {
            out.extend(
                STANDARD
                    .decode(frame["payload"]["data"].as_str().unwrap())
                    .unwrap(),
            );
        } else if frame["id"] == signal.as_str() {
            told = frame["ok"] == true;
        } else if frame["id"] == id.as_str() {
            break frame["payload"].clone();
        }
    };
    assert!(told);
    // The shell may tell of its sleep, which got it as well.
    assert!(String::from_utf8_lossy(&out).contains("got\n"), "{out:?}");
    assert_eq!(
        (&end["status"], &end["exitCode"]),
        (&json!("exited"), &json!(5)),
        "{end}"
    );

    let tty = json!({"stdin": "open", "tty": {"rows": 24, "cols": 80}});
    let script = "stty size; read line; stty size; echo \"$line\"";
    let (id, of, credit) = begin(&mut client, &tty, &["sh", "-c", script]).await;
    assert!(credit.is_u64());
    while client.frame().await["event"] != "exec.output" {}
    client
        .get("exec.resize", json!({"runId": of, "rows": 40, "cols": 132}))
        .await;
    client
        .get("exec.stdin", piece(&of, 0, b"typed\r", false))
        .await;
    let (out, end) = to_end(&mut client, &id).await;
    let out = String::from_utf8_lossy(&out);
    assert!(out.contains("40 132\r\ntyped\r\n"), "{out:?}");
    assert_eq!(end["exitCode"], 0, "{end}");
    let log = gateway.cli(&["audit", "query", "--action", "exec.run", "--json"]);
    let log = String::from_utf8(log.stdout).unwrap();
    assert!(log.contains(r#""tty":"24x80""#), "{log}");
}

/// A person sees that it is open, and that his word is for this run only; what an entry names is not this.
#[tokio::test(flavor = "multi_thread")]
async fn who_decides_sees_that_input_is_open_and_can_allow_it_once_only() {
    let gateway = Gateway::with(&[("agents.demo.exec", "ask")]);
    let mut client = admin(&gateway).await;
    let more = json!({"stdin": "open", "tty": {"rows": 24, "cols": 80}});
    let asked = run(&more, &["cat"]);
    let id = client.ask("exec.run", asked).await;
    let first = client.answer(&id).await["payload"].clone();
    assert_eq!(first["status"], "approval-pending", "{first}");
    // Before it has begun nothing is taken for it.
    let error = client
        .refused("exec.stdin", piece(&first["runId"], 0, b"x", false))
        .await;
    assert_eq!(
        (&error["details"]["code"], &error["retryable"]),
        (&json!("RUN_NOT_BEGUN"), &json!(true)),
        "{error}"
    );
    let question = first["approvalId"].as_str().unwrap();
    let card = gateway.cli(&["approvals", "show", question]);
    let card = String::from_utf8(card.stdout).unwrap();
    for part in [
        "on a terminal of 24 rows, 80 columns",
        "OPEN: what is piped or typed into it later is not known now",
        "nobody is asked about it",
    ] {
        assert!(card.contains(part), "{part}: {card}");
    }
    let always = gateway.cli(&["approvals", "allow", question, "--always"]);
    assert!(!always.status.success(), "{always:?}");
    assert!(
        gateway
            .cli(&["approvals", "allow", question])
            .status
            .success()
    );
    while client.frame().await["event"] != "exec.begun" {}
    client
        .get("exec.stdin", piece(&first["runId"], 0, b"x\n", true))
        .await;
    let (out, end) = to_end(&mut client, &id).await;
    assert!(
        String::from_utf8_lossy(&out).contains("x\r\nx\r\n"),
        "{out:?}"
    );
    assert_eq!(end["exitCode"], 0, "{end}");
}
