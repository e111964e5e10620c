//! The canary test: secrets come in by every way there is, everything is done with them, and then all that the gateway
//! wrote, said, sent or started is searched for them. A decoy that may be seen goes the same ways, so that each place is
//! known to be one where the search would have found a leak.

pub mod search;
mod trial;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bollard::query_parameters::{InspectContainerOptions, ListContainersOptionsBuilder};
use serde_json::{Value, json};

use crate::protocol::signed_http::Signer;
use crate::support::engine::Engine;
use crate::support::ws::{Came, Client, Connect, admin, hex, random};
use search::{Hit, Search};
use trial::{Trial, b64};

/// For anything at all.
const PATIENCE: Duration = Duration::from_mins(1);
/// Stands in the arguments of the one process that is given a secret, and of those that it starts.
const RELEASED: &str = "given-a-secret";

/// Everything that opens the gateway, right and wrong, in its own field and in those of others.
async fn credentials(trial: &mut Trial) {
    let token = String::from_utf8(trial.canaries[0].1.clone()).unwrap();
    assert!(
        trial
            .connect("token", &Connect::bare().auth(json!({ "token": token })))
            .await
    );
    let password = trial.plant_odd("a password");
    trial.fed(&["password", "set", "somebody"], &password);
    trial.fed(&["password", "set"], &password);
    assert!(
        trial
            .connect(
                "password",
                &Connect::bare().auth(json!({ "password": password }))
            )
            .await
    );
    for field in ["token", "password", "deviceToken", "bootstrapToken"] {
        let wrong = trial.plant(&format!("a wrong {field}"));
        assert!(
            !trial
                .connect(field, &Connect::bare().auth(json!({ field: wrong })))
                .await
        );
        // Of the right shape too.
        let wrong = format!("pc_dev_{}", URL_SAFE_NO_PAD.encode(random::<32>()));
        trial.know(&format!("a wrong {field} of our shape"), &wrong);
        assert!(
            !trial
                .connect(field, &Connect::bare().auth(json!({ field: wrong })))
                .await
        );
    }
    for (place, params) in [
        (
            "an unknown field",
            json!({ "auth": { "apiKey": trial.plant("in an unknown field") } }),
        ),
        ("auth itself", json!({ "auth": trial.plant("auth itself") })),
        (
            "the protocol",
            json!({ "minProtocol": trial.plant("the protocol") }),
        ),
        ("the role", json!({ "role": trial.plant("the role") })),
    ] {
        let mut client = Client::dial(&trial.gateway).await;
        let mut all = Connect::bare().params(&client.nonce, client.ts);
        for (key, value) in params.as_object().unwrap() {
            all[key] = value.clone();
        }
        let answer = client.call("connect", all).await;
        assert_eq!(answer["ok"], false, "{place}: {answer}");
        trial.keep(place, answer.to_string());
        trial.keep(place, client.closed().await.1);
    }
    // Not even a frame.
    for frame in [
        format!(
            "{{\"type\":\"req\",\"id\":\"1\",\"method\":\"{}\"",
            trial.plant("in half a frame")
        ),
        format!("[\"{}\"]", trial.plant("in no frame")),
        json!({"type": "req", "id": "1", "method": trial.plant("a method"), "params": {}})
            .to_string(),
    ] {
        let mut client = Client::dial(&trial.gateway).await;
        client.text(frame).await;
        while let Came::Frame(frame) = client.next().await {
            trial.keep("no frame", frame.to_string());
        }
    }
    let key = trial.plant("an agent's wrong token");
    let agent = Connect::bare().role("agent").auth(json!({ "token": key }));
    assert!(!trial.connect("agent", &agent).await);
    let mut operator = admin(&trial.gateway).await;
    let minted = json!({ "agentId": trial.decoy });
    let token = trial
        .given(&mut operator, "agent.token.mint", minted, "token")
        .await;
    trial.know("an agent's token", &token);
    let agent = Connect::bare()
        .role("agent")
        .auth(json!({ "token": token }));
    assert!(trial.connect("agent", &agent).await);

    let gives = json!({"role": "operator", "scopes": ["operator.read"]});
    let code = trial
        .given(&mut operator, "device.pair.setupCode", gives, "setupCode")
        .await;
    let held = URL_SAFE_NO_PAD.decode(&code).unwrap();
    let held: Value = serde_json::from_slice(&held).unwrap();
    let code = held["bootstrapToken"].as_str().unwrap().to_owned();
    trial.know("a setup code", code.rsplit('.').next().unwrap());
    let device = crate::support::ws::Device::new();
    let by_code = Connect::bare()
        .auth(json!({ "bootstrapToken": code }))
        .device(&device);
    assert!(
        trial
            .connect("setup code", &by_code.clone().scopes(&["operator.read"]))
            .await
    );
    let other = crate::support::ws::Device::new();
    let again = Connect::bare()
        .auth(json!({ "bootstrapToken": code }))
        .device(&other);
    assert!(!trial.connect("setup code again", &again).await);
}

/// Headers, addresses, cookies, forms, signed requests.
async fn over_http(trial: &mut Trial) {
    let token = String::from_utf8(trial.canaries[0].1.clone()).unwrap();
    let port = trial.gateway.port();
    let end = "Connection: close\r\n\r\n";
    for path in [
        "/",
        "/readyz",
        "/healthz",
        "/rpc/health",
        "/nowhere",
        "/login",
    ] {
        let mut lines = String::new();
        for header in [
            "Authorization: Bearer ",
            "Authorization: Basic ",
            "Cookie: session=",
            "X-Api-Key: ",
            "X-Forwarded-User: ",
        ] {
            let value = trial.plant(&format!("in a header of {path}"));
            let request = format!(
                "GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\n{header}{value}\r\n{end}"
            );
            trial.http(&request);
            lines = format!("{lines}{header}{value}\r\n");
        }
        let (query, part) = (trial.plant("in a query"), trial.plant("in a path"));
        trial.http(&format!(
            "GET {path}?token={query} HTTP/1.1\r\nHost: localhost:{port}\r\n{end}"
        ));
        trial.http(&format!("POST {path}/{part} HTTP/1.1\r\nHost: localhost:{port}\r\n{lines}Content-Length: 0\r\n{end}"));
        let host = trial.plant("a host's name");
        trial.http(&format!(
            "GET {path} HTTP/1.1\r\nHost: {host}.example\r\n{end}"
        ));
    }
    let upgrade = trial.plant("in the upgrade's query");
    trial.http(&format!(
        "GET /?token={upgrade} HTTP/1.1\r\nHost: localhost:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {upgrade}\r\nX-Forwarded-For: {upgrade}\r\n\r\n"
    ));
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", bearer.as_str())];
    let mut client = Client::dial_with(&trial.gateway, &headers).await.unwrap();
    client.hello(&Connect::bare()).await;

    // The page: a code, a session, forms of both.
    let form = |path: &str, cookie: &str, body: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: localhost:{port}\r\nOrigin: http://localhost:{port}\r\n{cookie}Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n{end}{body}",
            body.len()
        )
    };
    let wrong = trial.plant("a wrong code of the page");
    trial.http(&form("/login", "", &format!("code={wrong}")));
    let mut operator = admin(&trial.gateway).await;
    let mut made = operator.call("dashboard.code", json!({})).await;
    assert_eq!(made["ok"], true, "{made}");
    let code = made["payload"]["code"].take().as_str().unwrap().to_owned();
    trial.know("a code of the page", &code);
    let entered = loop {
        let answer = trial
            .gateway
            .http(&form("/login", "", &format!("code={code}")));
        if !answer.contains("the page is not for what the gateway runs") {
            break answer;
        }
    };
    let cookie = entered
        .split("set-cookie: ")
        .nth(1)
        .unwrap_or_else(|| panic!("{entered}"));
    let cookie = cookie.split(';').next().unwrap();
    trial.know("a session of the page", cookie.split_once('=').unwrap().1);
    let cookie = format!("Cookie: {cookie}\r\n");
    for path in ["/", "/live", "/?said=x"] {
        let page = trial.http(&format!(
            "GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\n{cookie}{end}"
        ));
        assert!(page.contains(" 200 "), "{page}");
    }
    let wrong = trial.plant("a wrong form token");
    trial.http(&form(
        "/approvals",
        &cookie,
        &format!("csrf={wrong}&id={wrong}&decision=deny"),
    ));

    // A key of signed requests, right and with another's signature.
    let client = Client::dial(&trial.gateway).await;
    let by = Connect::bare()
        .auth(json!({ "token": token }))
        .scopes(&["operator.read"]);
    let (signer, device_token) = Signer::paired_with(client, by).await.expect("a key");
    trial
        .canaries
        .push(("a signing key".to_owned(), signer.secret().to_vec()));
    trial.know("a device's token", &device_token.unwrap());
    let (good, _) = signer
        .now(&trial.gateway, "status", "{}")
        .go(&trial.gateway);
    assert_eq!(good, 200);
    let body = trial.plant("in a signed body");
    let request = signer
        .now(&trial.gateway, "status", &json!({ "x": body }).to_string())
        .text();
    trial.http(&request);
    let request = signer.now(&trial.gateway, "status", "{}").text();
    let forged = trial.plant("a forged signature");
    let at = request.find("Signature: ").unwrap();
    trial.http(&format!(
        "{}Signature: sig=:{}:\r\n{end}{{}}",
        &request[..at],
        b64(&forged)
    ));
}

/// The same for what runs scrypt for each unlocker, on a machine that builds something else.
async fn patiently(client: &mut Client, method: &str, params: Value) -> Value {
    let id = client.ask(method, params).await;
    let mut beat = client.ask("health", json!({})).await;
    loop {
        let frame = client.frame().await;
        if frame["id"] == id.as_str() {
            return frame;
        }
        if frame["id"] == beat.as_str() {
            tokio::time::sleep(Duration::from_millis(200)).await;
            beat = client.ask("health", json!({})).await;
        }
    }
}

/// Values, what opens the vault, what takes them out and in again.
async fn the_vault(trial: &mut Trial) -> String {
    let run = trial.plant("for a run");
    let odd = trial.plant_odd("a value");
    trial.fed(&["vault", "set", "RUN"], &run);
    trial.fed(&["vault", "set", "ODD"], &odd);
    let mut by = admin(&trial.gateway).await;
    let value = trial.plant("by the socket");
    let params = json!({ "name": "SOCKET", "valueBase64": b64(&value) });
    assert_eq!(trial.ask(&mut by, "vault.set", params).await["ok"], true);
    // In the wrong place, of the wrong form.
    for params in [
        json!({ "name": trial.plant("a name"), "valueBase64": "eA==" }),
        json!({ "name": "BAD", "valueBase64": trial.plant_odd("no base64") }),
        json!({ "name": "BAD", "value": trial.plant("a wrong key") }),
        json!({ "name": { "x": trial.plant("a wrong shape") }, "valueBase64": [trial.plant("a list")] }),
    ] {
        assert_eq!(trial.ask(&mut by, "vault.set", params).await["ok"], false);
    }
    let bound = json!({ "name": "RUN", "agents": [trial.decoy] });
    assert_eq!(trial.ask(&mut by, "vault.bind", bound).await["ok"], true);
    let (first, second) = (
        trial.plant_odd("a passphrase"),
        trial.plant_odd("another passphrase"),
    );
    let phrase = |text: &str| json!({ "kind": "passphrase", "secretBase64": b64(text) });
    let added = trial
        .ask(&mut by, "vault.unlockers.add", phrase(&first))
        .await;
    let id = added["payload"]["unlocker"]
        .as_str()
        .unwrap_or_else(|| panic!("{added}"))
        .to_owned();
    let recovery = json!({ "kind": "recovery" });
    let code = trial
        .given(&mut by, "vault.unlockers.add", recovery, "recoveryCode")
        .await;
    trial.know("a recovery code", &code);
    trial.know("a recovery code, bare", &code.replace('-', ""));
    let file = trial.plant_odd("a key file of some length");
    let path = trial.gateway.home().join("unlock.key");
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        let mut made = std::fs::OpenOptions::new();
        let mut made = made
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .unwrap();
        std::io::Write::write_all(&mut made, file.as_bytes()).unwrap();
    }
    let by_file = json!({ "kind": "file", "file": path });
    assert_eq!(
        trial.ask(&mut by, "vault.unlockers.add", by_file).await["ok"],
        true
    );
    let params = json!({ "passphraseBase64": b64(&second) });
    let exported = trial.ask(&mut by, "vault.export", params).await;
    let export = exported["payload"]["export"].clone();
    assert!(export.is_object(), "{exported}");
    std::fs::write(trial.gateway.home().join("export.json"), export.to_string()).unwrap();
    let wrong = trial.plant("a wrong passphrase of a file");
    for (phrase, is_right) in [(&wrong, false), (&second, true)] {
        let params = json!({ "export": export, "passphraseBase64": b64(phrase), "replace": true });
        assert_eq!(
            trial.ask(&mut by, "vault.import", params).await["ok"],
            is_right
        );
    }
    assert_eq!(
        trial.ask(&mut by, "vault.seal", json!({})).await["ok"],
        true
    );
    let wrong = trial.plant("a wrong passphrase");
    for (text, is_right) in [(&wrong, false), (&first, true)] {
        assert_eq!(
            trial.ask(&mut by, "vault.unlock", phrase(text)).await["ok"],
            is_right
        );
    }
    assert_eq!(
        trial.ask(&mut by, "vault.seal", json!({})).await["ok"],
        true
    );
    let typed = json!({ "kind": "recovery", "secretBase64": b64(&code) });
    assert_eq!(trial.ask(&mut by, "vault.unlock", typed).await["ok"], true);
    assert_eq!(
        trial.ask(&mut by, "vault.rotate", json!({})).await["ok"],
        true
    );
    let typed = json!({ "passphrases": [{ "unlocker": id, "secretBase64": b64(&first) }] });
    let mut rekeyed = patiently(&mut by, "vault.rekey", typed).await;
    assert_eq!(rekeyed["ok"], true, "{rekeyed}");
    let code = rekeyed["payload"]["recoveryCodes"][0]["recoveryCode"].take();
    trial.know("a new recovery code", code.as_str().unwrap());
    trial.keep("vault.rekey", rekeyed.to_string());
    // A value that is no more is not to be found either.
    let old = trial.plant_odd("a removed value");
    trial.fed(&["vault", "set", "OLD"], &old);
    trial.cli(&["vault", "rm", "OLD"]);
    run
}

/// A run that has a secret in its environment and what looks like one among its arguments; it goes on until it is ended.
async fn begin_run(trial: &mut Trial, by: &mut Client) -> String {
    let password = trial.plant("in arguments");
    let variable = trial.plant("in a variable");
    trial
        .in_plans
        .extend(trial.canaries.split_off(trial.canaries.len() - 2));
    let script = "echo ready; while :; do sleep 0.917; done";
    let run = json!({
        "agent": trial.decoy, "idempotencyKey": hex(&random::<8>()), "timeoutMs": 120_000,
        "argv": ["sh", "-c", script, RELEASED, format!("--password={password}"), trial.decoy],
        "env": { "API_TOKEN": variable }, "secrets": { "TOKEN": "RUN" },
    });
    let id = by.ask("exec.run", run).await;
    let mut run_id = String::new();
    loop {
        let frame = by.frame().await;
        trial.keep("exec.run", frame.to_string());
        if frame["id"] == id.as_str() {
            assert_eq!(frame["ok"], true, "{frame}");
            frame["payload"]["runId"]
                .as_str()
                .unwrap()
                .clone_into(&mut run_id);
        }
        if frame["event"] == "exec.output" {
            return run_id;
        }
    }
}

/// On the host a person is asked: the card shows the arguments, everything else the masked line.
async fn ask_for_host(trial: &mut Trial, by: &mut Client) {
    let password = trial.plant("in a host's arguments");
    trial.in_plans.extend(trial.canaries.pop());
    let asks = json!({
        "agent": trial.decoy, "idempotencyKey": hex(&random::<8>()), "target": "host",
        "argv": ["true", "--token", password],
    });
    let id = by.ask("exec.run", asks).await;
    let accepted = by.answer(&id).await;
    assert_eq!(
        accepted["payload"]["status"], "approval-pending",
        "{accepted}"
    );
    trial.keep("exec.run", accepted.to_string());
    let question = accepted["payload"]["approvalId"].clone();
    let mut other = admin(&trial.gateway).await;
    let card = other
        .call("exec.approval.get", json!({ "id": question }))
        .await;
    assert!(
        card.to_string().contains(&password),
        "who decides does not see it: {card}"
    );
    let denies = json!({ "id": question, "decision": "allow-once" });
    assert_eq!(
        trial.ask(&mut other, "exec.approval.resolve", denies).await["ok"],
        true
    );
    let end = by.answer(&id).await;
    trial.keep("exec.run", end.to_string());
    assert_eq!(end["payload"]["status"], "exited", "{end}");
}

/// What the engine says of its containers.
async fn inspected(engine: &Engine) -> Vec<u8> {
    let docker =
        bollard::Docker::connect_with_unix(&engine.host(), 60, bollard::API_DEFAULT_VERSION)
            .unwrap();
    let all = ListContainersOptionsBuilder::default().all(true).build();
    let mut said = vec![];
    for found in docker.list_containers(Some(all)).await.unwrap() {
        let id = found.id.clone().unwrap();
        let one = docker
            .inspect_container(&id, None::<InspectContainerOptions>)
            .await;
        // One that has ended meanwhile was another test's.
        let Ok(one) = one else { continue };
        let top = docker
            .top_processes(&id, None::<bollard::query_parameters::TopOptions>)
            .await
            .map(|top| serde_json::to_value(top).unwrap())
            .unwrap_or_default();
        // The arguments of the run itself are seen there, as in /proc.
        let top = top["Processes"].as_array().cloned().unwrap_or_default();
        let top: Vec<_> = top
            .into_iter()
            .filter(|line| !line.to_string().contains(RELEASED))
            .collect();
        for part in [json!(found), json!(one), json!(top)] {
            said.extend(part.to_string().into_bytes());
        }
    }
    said
}

async fn everything(settings: &[(&str, &str)], engine: Option<&Engine>) {
    let mut trial = Trial::start(settings);
    credentials(&mut trial).await;
    over_http(&mut trial).await;
    let run = the_vault(&mut trial).await;
    let mut by = admin(&trial.gateway).await;
    let run_id = begin_run(&mut trial, &mut by).await;

    // While it runs: the one process has it, and what it starts; nobody else.
    let mut hits = BTreeSet::new();
    let search = Search::of(&[("it".to_owned(), run.into_bytes())]);
    let is_given = |hit: &Hit| hit.place.contains(RELEASED) || hit.place.contains("(sleep 0.917 )");
    let own = trial.gateway.pid();
    let found = search.processes(own);
    let of = |what: &str| {
        found
            .iter()
            .any(|hit| hit.place.starts_with(what) && is_given(hit))
    };
    assert!(
        of("environ of"),
        "its own process does not have it: {found:#?}"
    );
    trial.look("processes", |search| search.processes(own), &mut hits);
    let released = hits.iter().filter(|hit| is_given(hit));
    let released: BTreeSet<&str> = released.map(|hit| hit.canary.as_str()).collect();
    let given = ["for a run", "in a variable", "in arguments"];
    assert_eq!(released, BTreeSet::from(given), "{hits:#?}");
    hits.retain(|hit| !is_given(hit));
    if let Some(engine) = engine {
        let inspected = inspected(engine).await;
        trial.look(
            "docker inspect",
            |search| search.bytes("docker inspect", &inspected),
            &mut hits,
        );
    }
    let state = trial.gateway.state();
    // The machine's key lies outside of the state, in its own file; the unlocker's too.
    let but: Vec<PathBuf> = vec![
        trial.gateway.identity(),
        trial.gateway.home().join("unlock.key"),
    ];
    trial.look(
        "state, while it serves",
        |search| search.tree(&state, &[]),
        &mut hits,
    );
    by.get("exec.cancel", json!({ "runId": run_id })).await;
    ask_for_host(&mut trial, &mut by).await;

    for words in [
        &["status"][..],
        &["config", "show"],
        &["vault", "list"],
        &["vault", "show", "RUN"],
        &["vault", "status"],
        &["vault", "unlockers", "list"],
        &["agents", "list"],
        &["password", "list"],
        &["devices", "list"],
        &["nodes", "list"],
        &["approvals", "list"],
        &["approvals", "grants"],
        &["audit", "verify"],
    ] {
        trial.cli(words);
        trial.cli(&[words, &["--json"]].concat());
    }
    for words in [
        &["audit", "tail", "-n", "1000", "--json"][..],
        &["audit", "query", "--limit", "1000", "--json"],
        &["audit", "export", "--format", "jsonl"],
        &["audit", "export", "--format", "ocsf"],
        &["audit", "export", "--format", "cef"],
    ] {
        let output = trial.gateway.cli(words);
        assert!(output.status.success(), "{words:?}: {output:?}");
        let look = |search: &Search| search.bytes(&words.join(" "), &output.stdout);
        trial.look(&words.join(" "), look, &mut hits);
    }
    let said = std::mem::take(&mut trial.said);
    let look = |search: &Search| {
        said.iter()
            .flat_map(|(what, said)| search.bytes(what, said))
            .collect()
    };
    trial.look("what was answered", look, &mut hits);

    // A crash in the middle of things, and what it leaves; then a start, and an orderly stop.
    let (log, stdout) = (trial.gateway.log(), trial.gateway.said());
    let look = |search: &Search| search.bytes("the log", log.as_bytes());
    trial.look_beside("gateway serves", "the log", look, &mut hits);
    hits.extend(trial.search().bytes("stdout", stdout.as_bytes()));
    let pid = rustix::process::Pid::from_raw(trial.gateway.pid().try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::ABORT).unwrap();
    trial.gateway.ends(PATIENCE).expect("it ends");
    trial.look(
        "what a crash leaves",
        |search| search.tree(&state, &[]),
        &mut hits,
    );
    for folder in [std::env::current_dir().unwrap(), state.clone()] {
        let all = std::fs::read_dir(folder).unwrap().flatten();
        let cores = all.filter(|file| file.file_name().to_string_lossy().starts_with("core."));
        assert_eq!(cores.count(), 0, "a core file");
    }
    trial.gateway.launch();
    trial.gateway.vault_is_open();
    assert_eq!(trial.gateway.stop(), 0, "{}", trial.gateway.log());
    let log = trial.gateway.log();
    hits.extend(
        trial
            .search()
            .bytes("the log of the second start", log.as_bytes()),
    );
    let home = trial.gateway.home().to_owned();
    trial.look("all files", |search| search.tree(&home, &but), &mut hits);
    let end = Instant::now() + PATIENCE;
    while !trial.collector.has(&trial.decoy) {
        assert!(Instant::now() < end, "no spans");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let spans = trial.collector.everything();
    trial.look("spans", |search| search.bytes("spans", &spans), &mut hits);

    // One that stands in a file of settings: nothing starts, and it is not repeated.
    let literal = trial.plant("in config.toml");
    let text = format!(
        "[gateway.auth]\ntoken = \"{literal}\"\n[agents.demo.secrets]\nCRED = \"{literal}\"\n"
    );
    let file = state.join("config.toml");
    std::fs::write(&file, text).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let (code, refusal) = trial.gateway.refused();
    assert_ne!(code, 0);
    let check = trial.gateway.cli(&["config", "check"]);
    let said = [refusal.into_bytes(), check.stdout, check.stderr].concat();
    hits.extend(trial.search().bytes("a refused start", &said));
    assert!(hits.is_empty(), "{} leaks: {hits:#?}", hits.len());
    println!(
        "FIGURE: canaries planted, with the {} driver: {}",
        engine.map_or("native", |_| "Docker"),
        trial.canaries.len() + trial.in_plans.len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn no_planted_secret_is_found_anywhere_but_in_the_process_that_it_was_released_to() {
    everything(&[], None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_planted_secret_is_found_where_the_engine_is_docker_nor_by_its_inspection() {
    let engine = Engine::shared();
    let host = engine.host();
    let settings = [
        ("sandbox.driver", "docker"),
        ("sandbox.engine", host.as_str()),
    ];
    everything(&settings, Some(&engine)).await;
}
