//! What a node's owner has written for it: the last gate, whatever its gateway says.

use std::collections::BTreeMap;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ed25519_dalek::{Signer as _, SigningKey};
use portcullis_core::approval::{DecisionKey, DecisionProof, Extent, Statement, Word};
use portcullis_core::device::DeviceKey;
use portcullis_core::encoding::base64url;
use portcullis_core::ids::{AgentId, ApprovalId, DeviceId, Hash32};
use portcullis_core::nodes::{APPROVAL, Forwarded, OnNode, Shown, plan_of};
use portcullis_core::plan::Nonce;
use portcullis_core::time::Millis;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::node_host::{Host, Rogue, let_in, node, run, url};
use super::remote_cli::token_file;
use crate::support::gateway::Gateway;
use crate::support::ws::{admin, random};

/// Where a node host of this gateway's user keeps what is its own.
fn folder(gateway: &Gateway) -> PathBuf {
    gateway.home().join(".local/state/portcullis-client")
}

/// Writes its owner's document. A node host that runs reads it before each run.
pub fn document(gateway: &Gateway, text: &str) {
    let folder = folder(gateway);
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folder)
        .unwrap();
    let mut file = std::fs::File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(folder.join("node-policy.toml"))
        .unwrap();
    std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(now.as_millis()).unwrap()
}

fn text(key: &SigningKey) -> String {
    DeviceKey::Ed25519(key.verifying_key()).to_text()
}

/// A taken gateway, with all that a gateway has: its own key, the node's plan, and words of people for other things.
struct Taken {
    rogue: Rogue,
    key: DecisionKey,
    asked: u32,
}

/// One command of the node, prepared there.
#[derive(Clone)]
struct Prepared {
    params: Value,
    node: DeviceId,
    plan: Value,
}

impl Prepared {
    fn hash(&self, nonce: &Nonce) -> Hash32 {
        let argv: Vec<String> = serde_json::from_value(self.plan["argv"].clone()).unwrap();
        let sha256 = self.plan["mutableFileOperand"]["sha256"].as_str().unwrap();
        let (agent, env) = (AgentId::new("demo").unwrap(), BTreeMap::new());
        let run = OnNode {
            node: &self.node,
            said: &self.plan,
            agent: &agent,
            argv: &argv,
            cwd: self.plan["cwd"].as_str().unwrap(),
            sha256: Some(Hash32::try_from(sha256.to_owned()).unwrap()),
            env: &env,
            timeout_ms: 20_000,
        };
        plan_of(run, "c-1", "uid:0", nonce.clone()).plan_hash()
    }
}

impl Taken {
    async fn prepare(&mut self, argv: &[&str]) -> Prepared {
        self.asked += 1;
        let mut params = json!({ "command": argv, "cwd": "/", "agentId": "demo" });
        let id = format!("p{}", self.asked);
        let said = self.rogue.ask(&id, "system.run.prepare", &params).await;
        let said: Value = serde_json::from_str(said["payloadJSON"].as_str().unwrap()).unwrap();
        params["systemRunPlan"] = said["plan"].clone();
        params["approved"] = true.into();
        params["approvalDecision"] = "allow-once".into();
        params["timeoutMs"] = 20_000.into();
        Prepared {
            params,
            node: DeviceId::new(&self.rogue.node).unwrap(),
            plan: said["plan"].clone(),
        }
    }

    fn said(&self, plan: Hash32) -> Statement<'static> {
        Statement {
            gateway: self.key.gateway(),
            approval: "pc-1",
            plan,
            word: Word::AllowOnce,
            scope: Extent::Once,
            expires: Millis(now() + 60_000),
        }
    }

    /// Asks for it under these words; what the node said.
    async fn run(&mut self, command: &Prepared, nonce: &Nonce, votes: Vec<Shown>) -> String {
        self.asked += 1;
        let mut params = command.params.clone();
        params["runId"] = format!("r{}", self.asked).into();
        params[APPROVAL] = json!(Forwarded {
            approval: ApprovalId::new("pc-1").unwrap(),
            session: "c-1".into(),
            principal: "uid:0".into(),
            nonce: nonce.clone(),
            votes,
        });
        self.ask(params).await
    }

    async fn ask(&mut self, params: Value) -> String {
        self.asked += 1;
        let id = format!("q{}", self.asked);
        let said = self.rogue.ask(&id, "system.run", &params).await;
        let Some(payload) = said["payloadJSON"].as_str() else {
            assert_eq!(said["error"]["code"], "SYSTEM_RUN_DENIED", "{said}");
            return said["error"]["message"].as_str().unwrap().to_owned();
        };
        let payload: Value = serde_json::from_str(payload).unwrap();
        payload["stdout"].as_str().unwrap().to_owned()
    }
}

fn signed(key: &SigningKey, said: &Statement<'_>) -> Shown {
    Shown {
        decision: said.word,
        proof: DecisionProof::Device {
            gateway: said.gateway,
            scope: said.scope,
            expires_at_ms: said.expires,
            key: text(key),
            signature: base64url(&key.sign(&said.to_sign()).to_bytes()),
        },
    }
}

fn nonce() -> Nonce {
    Nonce::new(&random::<32>()).unwrap()
}

const UNSIGNED: &str = "no approver of this node has signed this";

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_gateway_runs_nothing_on_a_node_whose_owner_names_approvers() {
    let gateway = Gateway::prepared(&[]);
    let token = token_file(&gateway);
    let (approver, other) = (
        SigningKey::from_bytes(&random::<32>()),
        SigningKey::from_bytes(&random::<32>()),
    );
    let names = |keys: &[&SigningKey], quorum: u8| {
        let keys: Vec<String> = keys.iter().map(|key| text(key)).collect();
        document(
            &gateway,
            &format!(
                "version = 1\nquorum = {quorum}\napprovers = {keys:?}\n[defaults]\nmode = \"full\"\n"
            ),
        );
    };
    names(&[&approver], 1);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = format!("ws://{}", listener.local_addr().unwrap());
    let host = Host::start(&gateway, &at, &token);
    let mut taken = Taken {
        rogue: Rogue::accept(&listener).await,
        key: DecisionKey::from_seed(&random::<32>()),
        asked: 0,
    };
    let command = taken.prepare(&["echo", "ran"]).await;
    let wanted = nonce();
    let said = taken.said(command.hash(&wanted));
    let good = signed(&approver, &said);

    // The gateway's own word, as it was enough before.
    let refused = taken.ask({
        let mut params = command.params.clone();
        params["runId"] = "bare".into();
        params
    });
    let refused = refused.await;
    assert!(refused.contains(UNSIGNED), "{refused}");
    // What it can make itself: its own signature over its session, another key's, a signature for anything else.
    let session = Shown {
        decision: Word::AllowOnce,
        proof: taken.key.session(&said, "uid:0", "c-1"),
    };
    let another = taken.prepare(&["echo", "other"]).await;
    let mut elsewhere = command.clone();
    elsewhere.node = DeviceId::new(&"ab".repeat(32)).unwrap();
    let expired = Statement {
        expires: Millis(now() - 1),
        ..said
    };
    let denied = Shown {
        decision: Word::Deny,
        ..signed(
            &approver,
            &Statement {
                word: Word::Deny,
                ..said
            },
        )
    };
    let over = |hash| signed(&approver, &taken.said(hash));
    for (what, votes) in [
        ("nothing", vec![]),
        ("session", vec![session]),
        ("stranger", vec![signed(&other, &said)]),
        ("another plan", vec![over(another.hash(&wanted))]),
        ("another node", vec![over(elsewhere.hash(&wanted))]),
        ("another nonce", vec![over(command.hash(&nonce()))]),
        (
            "another question",
            vec![signed(
                &approver,
                &Statement {
                    approval: "pc-2",
                    ..said
                },
            )],
        ),
        ("expired", vec![signed(&approver, &expired)]),
        ("a no", vec![denied.clone()]),
        ("a no beside a yes", vec![good.clone(), denied]),
    ] {
        let refused = taken.run(&command, &wanted, votes).await;
        assert!(refused.contains(UNSIGNED), "{what}: {refused}");
    }
    // A word for one command is none for another, whatever the gateway calls that one's plan.
    let mut swapped = another.clone();
    swapped.params["systemRunPlan"] = command.params["systemRunPlan"].clone();
    let refused = taken.run(&swapped, &wanted, vec![good.clone()]).await;
    assert!(
        refused.contains("not the plan that was approved"),
        "{refused}"
    );
    // What its person signed runs, once.
    assert_eq!(
        taken.run(&command, &wanted, vec![good.clone()]).await,
        "ran\n"
    );
    let again = taken.run(&command, &wanted, vec![good.clone()]).await;
    assert!(again.contains("was used here already"), "{again}");
    // Over a restart of the node, too.
    drop(host);
    let _host = Host::start(&gateway, &at, &token);
    taken.rogue = Rogue::accept(&listener).await;
    let again = taken.run(&command, &wanted, vec![good]).await;
    assert!(again.contains("was used here already"), "{again}");

    // Two must sign: two keys, not one twice.
    names(&[&approver, &other], 2);
    let command = taken.prepare(&["echo", "both"]).await;
    let wanted = nonce();
    let said = taken.said(command.hash(&wanted));
    let (one, two) = (signed(&approver, &said), signed(&other, &said));
    for votes in [vec![one.clone()], vec![one.clone(), one.clone()]] {
        let refused = taken.run(&command, &wanted, votes).await;
        assert!(
            refused.contains("1 of the approvers that this node names"),
            "{refused}"
        );
    }
    assert_eq!(taken.run(&command, &wanted, vec![one, two]).await, "both\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nodes_own_document_is_the_last_gate_and_its_approvers_sign_at_the_gateway() {
    // What asks where it should be refused ends by itself.
    let gateway = Gateway::with(&[("approval.timeout_seconds", "60")]);
    let _host = Host::start(&gateway, &url(&gateway), &token_file(&gateway));
    let id = let_in(&gateway);
    let (mut asks, mut decides) = (admin(&gateway).await, admin(&gateway).await);
    let echo = json!({ "argv": ["echo", "here"] });
    // Without one, a person's word at the gateway is enough.
    let (last, out) = run(&mut asks, &mut decides, &id, echo.clone()).await;
    assert_eq!(
        (&last["payload"]["status"], out.as_str()),
        (&json!("exited"), "here\n")
    );

    // It refuses before anybody is asked, by name and behind a shell's line; and all, where it cannot be read.
    let exec = |words: &[&str]| {
        let all = [
            &["exec", "--agent", "demo", "--node", &id[..12], "--"],
            words,
        ]
        .concat();
        let refused = gateway.cli(&all);
        assert_eq!(refused.status.code(), Some(125), "{refused:?}");
        String::from_utf8_lossy(&refused.stderr).into_owned()
    };
    let refuses = "this node's own document refuses it";
    document(
        &gateway,
        "version = 1\n[defaults]\nmode = \"full\"\n[[defaults.denylist]]\npattern = \"/usr/bin/id\"\n",
    );
    for words in [&["id"][..], &["sh", "-c", "true && id -u"], &["env", "id"]] {
        let said = exec(words);
        assert!(said.contains(refuses) && said.contains("deny:"), "{said}");
    }
    document(&gateway, "version = 1\n[agents.demo]\nmode = \"deny\"\n");
    assert!(exec(&["echo", "x"]).contains(refuses));
    document(&gateway, "version = 1\nmode = \"full\"\n");
    assert!(exec(&["echo", "x"]).contains("cannot be read"));
    assert!(
        gateway
            .json(&["approvals", "list"])
            .as_array()
            .unwrap()
            .is_empty()
    );
    let shown = gateway.json(&["node", "policy", "show"]);
    assert_eq!(
        (&shown["document"], &shown["remoteEdit"]),
        (&json!("malformed"), &json!("deny")),
        "{shown}"
    );
    // Closed between the answer and the run: the answer is of no use.
    document(&gateway, "version = 1\n");
    let frame = asks.ask("exec.run", json!({
        "agent": "demo", "target": format!("node:{id}"), "idempotencyKey": "closed-meanwhile", "argv": ["echo", "x"],
    })).await;
    let first = asks.answer(&frame).await;
    document(&gateway, "version = 1\n[defaults]\nmode = \"deny\"\n");
    let allow = json!({ "id": first["payload"]["approvalId"], "decision": "allow-once" });
    decides.get("exec.approval.resolve", allow).await;
    let last = asks.answer(&frame).await;
    assert_ne!(last["payload"]["status"], "exited", "{last}");

    // Approvers: the command line's key, which it made and paired when it first decided.
    document(&gateway, "version = 1\n");
    signed_run(&gateway, &id, &["echo", "first"]);
    let devices = gateway.json(&["devices", "list"]);
    let key = devices["paired"]
        .as_array()
        .unwrap()
        .iter()
        .find(|d| d["role"] == "operator");
    let key = key.unwrap_or_else(|| panic!("{devices}"))["publicKey"]
        .as_str()
        .unwrap();
    document(&gateway, &format!("version = 1\napprovers = [{key:?}]\n"));
    assert_eq!(signed_run(&gateway, &id, &["echo", "second"]), "second\n");
    // Somebody who signs nothing decides there, and the gateway takes it; the node does not.
    let (last, out) = run(&mut asks, &mut decides, &id, echo).await;
    assert_eq!(
        (&last["payload"]["status"], out.as_str()),
        (&json!("denied"), ""),
        "{last}"
    );
    assert!(last.to_string().contains(UNSIGNED), "{last}");
}

/// A run on the node that the command line asks for and allows: its output.
pub fn signed_run(gateway: &Gateway, node: &str, words: &[&str]) -> String {
    let run = ["exec", "--agent", "demo", "--node", &node[..12], "--"];
    let mut command = gateway.command(&[&run, words].concat());
    command.stdout(std::process::Stdio::piped());
    let child = command.spawn().unwrap();
    let question = loop {
        let list = gateway.json(&["approvals", "list"]);
        if let Some(id) = list[0]["id"].as_str() {
            break id.to_owned();
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    gateway.json(&["approvals", "allow", &question]);
    let ran = child.wait_with_output().unwrap();
    String::from_utf8(ran.stdout).unwrap()
}

/// Of the gateway's word, the agent's and the node's the strictest holds, and `policy test` says it before there is a run.
#[tokio::test(flavor = "multi_thread")]
async fn what_holds_on_a_node_is_the_strictest_word_and_policy_test_says_it() {
    let gateway = Gateway::with(&[
        ("agents.free.nodes", "full"),
        ("approval.timeout_seconds", "60"),
    ]);
    let _host = Host::start(&gateway, &url(&gateway), &token_file(&gateway));
    let id = let_in(&gateway);
    let said = |agent: &str, words: &[&str]| {
        let test = [
            "policy",
            "test",
            "--json",
            "--agent",
            agent,
            "--node",
            &id[..12],
            "--",
        ];
        let output = gateway.cli(&[&test, words].concat());
        assert!(output.status.success(), "{output:?}");
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        let word = said["verdict"].as_str().unwrap().to_owned();
        (
            word,
            said["rule"].as_str().unwrap().to_owned(),
            said.to_string(),
        )
    };
    let (word, rule, _) = said("other", &["echo", "x"]);
    assert_eq!(
        (word.as_str(), rule.as_str()),
        ("deny", "config:agents.other.nodes=deny")
    );
    let (word, rule, _) = said("demo", &["echo", "x"]);
    assert_eq!(
        (word.as_str(), rule.as_str()),
        ("ask", "config:agents.demo.nodes=ask")
    );
    // The gateway's own document, made free for one agent by a person.
    let free = json!({ "version": 1, "agents": { "free": { "security": "full", "ask": "off" } } });
    let file = gateway.home().join("free.json");
    std::fs::write(&file, free.to_string()).unwrap();
    gateway.cli(&["policy", "set", file.to_str().unwrap()]);
    let waits = gateway.json(&["approvals", "list"])[0]["id"].clone();
    gateway.json(&["approvals", "allow", waits.as_str().unwrap()]);
    // Now the node's own word is the strictest: it has none, and asks.
    let (word, rule, all) = said("free", &["echo", "x"]);
    assert_eq!(word, "ask", "{all}");
    assert!(rule.starts_with("node:document"), "{all}");
    document(
        &gateway,
        "version = 1\n[defaults]\nmode = \"full\"\n[[defaults.denylist]]\npattern = \"/usr/bin/id\"\n",
    );
    let (word, rule, _) = said("free", &["echo", "x"]);
    assert_eq!(
        (word.as_str(), rule.as_str()),
        ("allow", "config:agents.free.nodes=full")
    );
    let (word, rule, all) = said("free", &["id"]);
    assert_eq!((word.as_str(), rule.as_str()), ("deny", "node"));
    assert!(all.contains("this node's own document refuses it"), "{all}");
    let exec = [
        "exec",
        "--agent",
        "free",
        "--node",
        &id[..12],
        "--",
        "echo",
        "unasked",
    ];
    let ran = gateway.cli(&exec);
    assert_eq!(String::from_utf8_lossy(&ran.stdout), "unasked\n", "{ran:?}");
    // And with an approver nothing runs there unasked again: a person is asked for what would have run.
    let key = text(&SigningKey::from_bytes(&random::<32>()));
    document(
        &gateway,
        &format!("version = 1\napprovers = [{key:?}]\n[defaults]\nmode = \"full\"\n"),
    );
    let (word, rule, _) = said("free", &["echo", "x"]);
    assert_eq!(
        (word.as_str(), rule.as_str()),
        ("ask", "node:document:approvers")
    );
    let mut asks = admin(&gateway).await;
    let params = json!({
        "agent": "free", "argv": ["echo", "x"], "target": format!("node:{id}"), "idempotencyKey": "asked-again",
    });
    let frame = asks.ask("exec.run", params).await;
    let first = asks.answer(&frame).await;
    assert_eq!(first["payload"]["status"], "approval-pending", "{first}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_command_on_our_node_writes_comes_while_it_runs_in_order_and_whole() {
    let gateway = Gateway::start();
    let _host = Host::start(&gateway, &url(&gateway), &token_file(&gateway));
    let id = let_in(&gateway);
    let (mut asks, mut decides) = (admin(&gateway).await, admin(&gateway).await);
    // It waits for a file that is made when its first words were seen: told at the end, they would never be.
    let seen = std::env::temp_dir().join(format!("node-seen-{}", std::process::id()));
    let script = format!(
        "echo one; echo two >&2; n=0; while [ ! -e {} ]; do n=$((n+1)); [ $n -lt 1200 ] || exit 9; sleep 0.05; done; i=0; while [ $i -lt 4000 ]; do echo line $i; i=$((i+1)); done; printf 'end \\377\\303'",
        seen.display()
    );
    let params = json!({
        "agent": "demo", "target": format!("node:{id}"), "idempotencyKey": "streamed", "argv": ["sh", "-c", script],
    });
    let frame = asks.ask("exec.run", params).await;
    let first = asks.answer(&frame).await;
    let allow = json!({ "id": first["payload"]["approvalId"], "decision": "allow-once" });
    decides.get("exec.approval.resolve", allow).await;
    let (mut out, mut err, mut next) = (Vec::new(), Vec::new(), 0);
    let last = loop {
        let came = asks.frame().await;
        if came["event"] == "exec.output" {
            use base64::Engine as _;
            let payload = &came["payload"];
            assert_eq!(payload["seq"], next, "{payload}");
            next += 1;
            let data = payload["data"].as_str().unwrap();
            let data = base64::engine::general_purpose::STANDARD
                .decode(data)
                .unwrap();
            let is_out = payload["stream"] == "stdout";
            if is_out { &mut out } else { &mut err }.extend(data);
            if out.starts_with(b"one\n") && err == b"two\n" {
                std::fs::write(&seen, "").unwrap();
            }
        } else if came["id"] == frame {
            break came;
        }
    };
    std::fs::remove_file(&seen).unwrap();
    assert_eq!(last["payload"]["exitCode"], 0, "{last}");
    let lines: Vec<String> = (0..4000).map(|i| format!("line {i}\n")).collect();
    let wanted = format!("one\n{}end \u{fffd}\u{fffd}", lines.concat());
    assert_eq!(String::from_utf8(out).unwrap(), wanted);
    assert_eq!(err, b"two\n");
}

/// However long it was away. Before, a node asked each thirty seconds in the end.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_back_within_five_seconds_of_its_gateways_return() {
    let mut gateway = Gateway::start();
    let _host = Host::start(&gateway, &url(&gateway), &token_file(&gateway));
    let id = let_in(&gateway);
    assert_eq!(gateway.stop(), 0);
    gateway.keep_port();
    // So long that waits that double up to thirty seconds come a quarter of a minute later.
    tokio::time::sleep(Duration::from_secs(32)).await;
    gateway.launch();
    let ready = std::time::Instant::now();
    node(&gateway, |n| {
        n["nodeId"] == id.as_str() && n["connected"] == true
    });
    let took = ready.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
}
