//! The vault by the command line of a real gateway: unlockers, sealing, new keys, and who may not.

use serde_json::{Value, json};

use super::watch::Terminal;
use crate::protocol::signed_http::Signer;
use crate::support::gateway::Gateway;
use crate::support::ws::{Client, Connect};

const PASSPHRASE: &[u8] = b"correct horse battery staple\n";

fn status(gateway: &Gateway) -> Value {
    let output = gateway.cli(&["vault", "status", "--json"]);
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The command with a line on stdin: its exit code and its document.
fn fed(gateway: &Gateway, words: &[&str], input: &[u8]) -> (i32, Value) {
    use std::io::Write as _;
    use std::process::Stdio;
    let mut child = gateway
        .command(&[words, &["--json"]].concat())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    let document = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output.status.code().unwrap_or(-1), document)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vault_is_sealed_and_opened_by_the_command_line_while_the_gateway_lives() {
    let gateway = Gateway::start();
    gateway.vault_is_open();
    assert_eq!(gateway.feed(&["vault", "set", "KEY"], b"planted"), 0);
    let signer = Signer::new(&gateway, &["operator.read"]).await;
    let signed = |expected: u16| {
        let (code, answer) = signer.now(&gateway, "status", "{}").go(&gateway);
        assert_eq!(code, expected, "{answer}");
        answer
    };
    signed(200);

    let (code, _) = fed(
        &gateway,
        &["vault", "unlockers", "add", "passphrase"],
        PASSPHRASE,
    );
    assert_eq!(code, 0);
    let made = gateway.json(&["vault", "unlockers", "add", "recovery"]);
    let recovery = made["recoveryCode"].as_str().unwrap();
    let open = status(&gateway);
    assert_eq!(
        (
            &open["state"],
            &open["records"],
            &open["unlockers"],
            &open["hasRecovery"]
        ),
        (&json!("open"), &json!(1), &json!(3), &json!(true)),
        "{open}"
    );

    gateway.json(&["vault", "seal"]);
    let sealed = status(&gateway);
    assert_eq!(
        (&sealed["state"], &sealed["code"]),
        (&json!("sealed"), &json!("VAULT_LOCKED"))
    );
    assert_eq!(gateway.cli(&["vault", "status"]).status.code(), Some(8));
    assert_eq!(gateway.feed(&["vault", "set", "KEY"], b"x"), 4);
    // Everything else lives; what is sealed under the vault's key waits for it.
    gateway.json(&["status"]);
    let answer = loop {
        let (code, answer) = signer.now(&gateway, "status", "{}").go(&gateway);
        if code != 200 {
            break answer;
        }
    };
    assert_eq!(answer["error"]["details"]["code"], "SEALED", "{answer}");

    let unlock = ["vault", "unlock", "--passphrase"];
    let (code, wrong) = fed(&gateway, &unlock, b"a wrong horse battery\n");
    assert_eq!(
        (code, &wrong["error"]["code"]),
        (4, &json!("VAULT_UNLOCK_WRONG"))
    );
    assert_eq!(status(&gateway)["code"], "VAULT_LOCKED");
    let by_code = ["vault", "unlock", "--recovery"];
    assert_eq!(fed(&gateway, &by_code, b"0000-0000\n").0, 2);
    assert_eq!(fed(&gateway, &unlock, PASSPHRASE).0, 0);
    assert_eq!(status(&gateway)["state"], "open");
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while signer.now(&gateway, "status", "{}").go(&gateway).0 != 200 {
        assert!(
            std::time::Instant::now() < end,
            "signing does not come back"
        );
    }

    // A new data key and a new root key, while it serves; then the code and the passphrase of now open it.
    assert_eq!(gateway.json(&["vault", "rotate"])["epoch"], 2);
    let (code, rekeyed) = fed(&gateway, &["vault", "rekey"], PASSPHRASE);
    assert_eq!(code, 0, "{rekeyed}");
    let codes = rekeyed["recoveryCodes"].as_array().unwrap();
    let new = codes[0]["recoveryCode"].as_str().unwrap().to_owned() + "\n";
    signed(200);
    gateway.json(&["vault", "seal"]);
    assert_eq!(fed(&gateway, &by_code, recovery.as_bytes()).0, 4);
    assert_eq!(fed(&gateway, &by_code, new.as_bytes()).0, 0);
    // Without a word that it be by a person, what opens it at each start opens it now.
    gateway.json(&["vault", "seal"]);
    assert_eq!(gateway.json(&["vault", "unlock"])["state"], "open");
    let list = gateway.json(&["vault", "list"]);
    assert_eq!(
        (
            &list["entries"][0]["name"],
            list["entries"][0]["code"].is_null()
        ),
        (&json!("KEY"), true)
    );
    let tail = gateway
        .json(&["audit", "query", "--action", "vault."])
        .to_string();
    assert!(!tail.contains("horse") && !tail.contains(recovery) && !tail.contains("planted"));
    assert_eq!(gateway.cli(&["vault", "init"]).status.code(), Some(2));
    let init = gateway.cli(&["vault", "init", "--discard-all-secrets"]);
    assert_eq!(init.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&init.stderr).contains("VAULT_IS_OPEN"));
}

#[test]
fn an_export_needs_a_person_at_a_terminal_and_opens_elsewhere_by_its_passphrase() {
    use std::os::unix::fs::PermissionsExt as _;
    let gateway = Gateway::start();
    gateway.vault_is_open();
    assert_eq!(gateway.feed(&["vault", "set", "ONE"], b"planted-1"), 0);
    assert_eq!(gateway.feed(&["vault", "set", "TWO"], b"planted-2"), 0);
    let file = gateway.home().join("export.json");
    let path = file.to_str().unwrap();
    let export = ["vault", "export", "--i-understand", path];
    // Nobody is there; or somebody who has not said so.
    let (code, answer) = fed(&gateway, &export, b"export\n");
    assert_eq!(
        (code, &answer["error"]["code"]),
        (5, &json!("VAULT_NEEDS_PERSON"))
    );
    let mut terminal = Terminal::open(gateway.command(&["vault", "export", path]));
    terminal.until("error[VAULT_NEEDS_PERSON]");
    assert!(!file.exists());
    let mut terminal = Terminal::open(gateway.command(&export));
    terminal.until("Type export to go on: ");
    terminal.types("export\n");
    for prompt in ["passphrase of the file: ", "again: "] {
        terminal.until(prompt);
        terminal.types("correct horse battery\n");
    }
    let shown = terminal.until("every secret is in ");
    assert!(!shown.contains("horse"), "the terminal shows it: {shown}");
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(!text.contains("planted") && !text.contains("ONE"));
    let records = gateway.json(&["audit", "query", "--action", "vault.export"]);
    assert_eq!(records["records"].as_array().unwrap().len(), 1, "{records}");

    // Another gateway, which has one of the names already.
    let other = Gateway::start();
    other.vault_is_open();
    let import = ["vault", "import", path];
    let (code, answer) = fed(&other, &import, b"a wrong horse battery\n");
    assert_eq!(
        (code, &answer["error"]["code"]),
        (4, &json!("VAULT_UNLOCK_WRONG"))
    );
    assert_eq!(other.feed(&["vault", "set", "TWO"], b"other"), 0);
    let (code, answer) = fed(&other, &import, b"correct horse battery\n");
    assert_eq!(
        (code, &answer["error"]["code"]),
        (5, &json!("VAULT_EXISTS"))
    );
    let (code, answer) = fed(
        &other,
        &["vault", "import", "--replace", path],
        b"correct horse battery\n",
    );
    assert_eq!((code, &answer["imported"]), (0, &json!(2)), "{answer}");
    let list = other.json(&["vault", "list"]);
    let versions: Vec<_> = list["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["version"].as_u64())
        .collect();
    assert_eq!(versions, [Some(1), Some(2)]);
    std::fs::write(&file, "{}").unwrap();
    assert_eq!(
        fed(&other, &import, b"x\n").1["error"]["code"],
        "VAULT_EXPORT_INVALID"
    );
}

#[test]
fn a_secret_reaches_the_runs_of_agents_that_it_is_bound_to_and_no_others() {
    let gateway = Gateway::start();
    gateway.vault_is_open();
    assert_eq!(gateway.feed(&["vault", "set", "KEY"], b"planted-1"), 0);
    let run = |agent: &str, secret: &str| {
        let words = [
            "exec",
            "--agent",
            agent,
            "--secret",
            secret,
            "--",
            "sh",
            "-c",
            "echo \"$TOKEN\"",
        ];
        let output = gateway.cli(&words);
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (
            output.status.code(),
            text(output.stdout),
            text(output.stderr),
        )
    };
    let refused = |agent: &str, secret: &str, code: &str| {
        let (exit, out, err) = run(agent, secret);
        assert_eq!((exit, out.as_str()), (Some(125), ""), "{err}");
        assert!(err.contains(code), "{err}");
    };
    // A new secret is nobody's; and who may not have it does not learn whether there is one.
    refused("demo", "TOKEN=KEY", "VAULT_NOT_BOUND");
    refused("demo", "TOKEN=NONE", "VAULT_NOT_BOUND");
    gateway.json(&["vault", "bind", "KEY", "--agent", "demo"]);
    let (exit, out, err) = run("demo", "TOKEN=KEY");
    assert_eq!((exit, out.as_str()), (Some(0), "planted-1\n"), "{err}");
    refused("other", "TOKEN=KEY", "VAULT_NOT_BOUND");
    refused("demo", "LD_PRELOAD=KEY", "INVALID_PARAMS");
    // The next run gets the next value, and bindings stay with the name.
    assert_eq!(gateway.feed(&["vault", "set", "KEY"], b"planted-2"), 0);
    assert_eq!(run("demo", "TOKEN=KEY").1, "planted-2\n");
    let shown = gateway.json(&["vault", "show", "KEY"]);
    assert_eq!(shown["binds"], json!({ "agents": ["demo"] }));
    let last = shown["lastUse"].clone();
    assert_eq!(last["agent"], "demo", "{shown}");
    let text = gateway.cli(&["vault", "show", "KEY"]).stdout;
    let text = String::from_utf8(text).unwrap();
    let line = format!(
        " by {} for demo, run {} (portcullis audit show {})",
        last["by"].as_str().unwrap(),
        last["run"].as_str().unwrap(),
        last["record"]
    );
    assert!(text.contains(&line), "{text}");
    assert_eq!(
        gateway.cli(&["vault", "show", "NONE"]).status.code(),
        Some(3)
    );

    // Who used what is on record, by name and version; no value is.
    let runs = gateway.json(&["audit", "query", "--action", "exec.run", "--outcome", "ok"]);
    let used: Vec<_> = runs["records"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["record"]["detail"]["secrets"].clone())
        .collect();
    assert_eq!(used, [json!("TOKEN=KEY@1"), json!("TOKEN=KEY@2")], "{runs}");
    // The last use is that record's.
    let record = &runs["records"].as_array().unwrap()[1]["record"];
    assert_eq!(record["object"], last["run"]);
    assert_eq!(record["principal"], last["by"]);
    let seq = last["record"].to_string();
    assert_eq!(
        gateway.json(&["audit", "show", &seq])["record"]["object"],
        record["object"]
    );
    let all = gateway.json(&["audit", "tail", "-n", "1000"]).to_string();
    assert!(!all.contains("planted") && !gateway.log().contains("planted"));

    // Bound to hosts or to another use, no run has it: a variable goes nowhere that is known.
    gateway.json(&[
        "vault",
        "bind",
        "KEY",
        "--agent",
        "demo",
        "--host",
        "api.example",
    ]);
    refused("demo", "TOKEN=KEY", "VAULT_NOT_BOUND");
    gateway.json(&[
        "vault", "bind", "KEY", "--agent", "demo", "--use", "gateway",
    ]);
    refused("demo", "TOKEN=KEY", "VAULT_NOT_BOUND");
    gateway.json(&["vault", "bind", "KEY", "--agent", "demo", "--use", "run"]);
    assert_eq!(run("demo", "TOKEN=KEY").1, "planted-2\n");
    gateway.json(&["vault", "seal"]);
    refused("demo", "TOKEN=KEY", "SEALED");
    gateway.json(&["vault", "unlock"]);
    assert_eq!(gateway.feed(&["vault", "set", "KEY"], b"\xff\xfe"), 0);
    refused("demo", "TOKEN=KEY", "VAULT_VALUE_INVALID");
    // Bindings and the last use outlive a start, and go with the name.
    let (bound, last) = {
        let shown = gateway.json(&["vault", "show", "KEY"]);
        (shown["binds"].clone(), shown["lastUse"].clone())
    };
    assert!(last["atMs"].is_u64(), "{last}");
    let mut gateway = gateway;
    gateway.crash_and_start();
    gateway.vault_is_open();
    let shown = gateway.json(&["vault", "show", "KEY"]);
    assert_eq!((&shown["binds"], &shown["lastUse"]), (&bound, &last));
    gateway.json(&["vault", "rm", "KEY"]);
    assert_eq!(gateway.feed(&["vault", "set", "KEY"], b"planted-3"), 0);
    let shown = gateway.json(&["vault", "show", "KEY"]);
    assert!(shown["lastUse"].is_null(), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_opens_the_vault_is_given_on_control_sock_only() {
    let all = r#"["operator.admin"]"#;
    let gateway = Gateway::with(&[("gateway.auth.shared_token_scopes", all)]);
    gateway.vault_is_open();
    let mut client = Client::dial(&gateway).await;
    client
        .hello(&Connect::token().scopes(&["operator.admin"]))
        .await;
    for (method, params) in [
        ("vault.unlock", json!({})),
        ("vault.rekey", json!({})),
        ("vault.init", json!({ "discard": true })),
        ("vault.export", json!({ "passphraseBase64": "eA==" })),
        (
            "vault.import",
            json!({ "export": {}, "passphraseBase64": "eA==" }),
        ),
        ("vault.unlockers.add", json!({ "kind": "recovery" })),
        ("vault.unlockers.remove", json!({ "unlocker": "00000000" })),
    ] {
        let error = client.refused(method, params).await;
        assert_eq!(
            error["details"]["code"], "MISSING_SCOPE",
            "{method}: {error}"
        );
    }
    client.get("vault.unlockers.list", json!({})).await;
    let sealed = client.get("vault.seal", json!({})).await;
    assert_eq!(sealed["state"], "sealed");
}
