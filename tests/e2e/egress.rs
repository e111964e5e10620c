//! Hosts by name, as a person sets them: the configuration, a run, the log, the plan.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use crate::security::canary::search::Search;
use crate::support::gateway::Gateway;

/// Answers each request with the same.
pub fn host() -> (u16, std::thread::JoinHandle<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = std::thread::spawn(move || {
        let mut count = 0;
        loop {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = vec![0; 4096];
            let read = stream.read(&mut head).unwrap_or(0);
            if head[..read].starts_with(b"STOP") {
                return count;
            }
            count += 1;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
        }
    });
    (port, serving)
}

#[test]
fn a_run_reaches_the_hosts_of_the_configuration_and_log_and_plan_say_so() {
    let (port, serving) = host();
    let mut gateway = Gateway::prepared(&[]);
    let rule = format!("localhost:{port}");
    let config = format!(
        "[sandbox]\negress = [{rule:?}]\negress_to_networks = [\"127.0.0.0/8\", \"::1\"]\n"
    );
    let path = gateway.state().join("config.toml");
    std::fs::write(&path, config).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    gateway.launch();
    let ask = |target: &str| {
        let script = format!(
            "printf 'GET http://{target}/ HTTP/1.0\\r\\n\\r\\n' | busybox nc 127.0.0.1 3128"
        );
        let done = gateway.cli(&["exec", "--agent", "demo", "--", "sh", "-c", &script]);
        String::from_utf8_lossy(&done.stdout).into_owned()
    };
    let answer = ask(&rule);
    assert!(answer.ends_with("hello"), "{answer}");
    let answer = ask("denied.example");
    assert!(
        answer.starts_with("HTTP/1.1 403 ")
            && answer.contains(&format!("Allowed: {rule}."))
            && answer.contains("`egress` in [sandbox] of config.toml"),
        "{answer}"
    );
    let query = |action: &str| gateway.json(&["audit", "query", "--action", action]);
    let allowed = query("egress.allow").to_string();
    assert!(
        allowed.contains(&format!("\"object\":\"{rule}\"")),
        "{allowed}"
    );
    let denied = query("egress.deny").to_string();
    assert!(
        denied.contains("\"object\":\"denied.example:80\"") && denied.contains("not-listed"),
        "{denied}"
    );
    // The plan of the run has the list.
    let runs = query("exec.run");
    let seq = runs["records"][0]["record"]["seq"].as_u64().unwrap();
    let shown = gateway.json(&["audit", "show", &seq.to_string()]);
    assert_eq!(
        shown["plan"]["egress"]["hosts"],
        serde_json::json!([rule]),
        "{shown:#}"
    );
    let _ = std::net::TcpStream::connect(("127.0.0.1", port))
        .unwrap()
        .write_all(b"STOP");
    assert_eq!(serving.join().unwrap(), 1);
}

/// The bug: one list held for the boxes of all agents.
#[test]
fn each_agent_reaches_the_hosts_of_its_own_list_and_one_without_has_no_way_out() {
    let (port, serving) = host();
    let mut gateway = Gateway::prepared(&[]);
    let rule = format!("localhost:{port}");
    let config = format!(
        "[sandbox]\negress = [\"all.example\"]\negress_to_networks = [\"127.0.0.0/8\", \"::1\"]\n\
         [agents.one.sandbox]\negress = [{rule:?}]\n[agents.shut.sandbox]\negress = [\"-\"]\n"
    );
    let path = gateway.state().join("config.toml");
    std::fs::write(&path, config).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    gateway.launch();
    let script = format!(
        "echo proxy=$http_proxy; printf 'GET http://{rule}/ HTTP/1.0\\r\\n\\r\\n' | busybox nc 127.0.0.1 3128"
    );
    let ask = |agent: &str| {
        let done = gateway.cli(&["exec", "--agent", agent, "--", "sh", "-c", &script]);
        String::from_utf8_lossy(&done.stdout).into_owned()
    };
    assert!(ask("one").ends_with("hello"));
    let other = ask("other");
    assert!(
        other.contains("403") && other.contains("Allowed: all.example:443."),
        "{other}"
    );
    assert_eq!(ask("shut"), "proxy=\n");
    let explained = gateway.json(&["sandbox", "explain", "--agent", "one"]);
    let line = explained["lines"]
        .as_array()
        .unwrap()
        .iter()
        .find(|line| line["key"] == "egress")
        .unwrap();
    assert_eq!(line["value"], serde_json::json!([rule]));
    assert_eq!(line["from"], "[agents.one.sandbox]");
    let _ = std::net::TcpStream::connect(("127.0.0.1", port))
        .unwrap()
        .write_all(b"STOP");
    assert_eq!(serving.join().unwrap(), 1);
}

/// A host over TLS that answers with what it was sent.
fn tls_host(names: &[&str]) -> (u16, String, std::sync::Arc<std::sync::Mutex<Vec<String>>>) {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(names).unwrap();
    let certificate = certificate.self_signed(&key).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(std::sync::Arc::new(
        rustls::crypto::aws_lc_rs::default_provider(),
    ))
    .with_safe_default_protocol_versions()
    .unwrap()
    .with_no_client_auth()
    .with_single_cert(
        vec![certificate.der().clone()],
        rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
    )
    .unwrap();
    let config = std::sync::Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let own = seen.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut tls = rustls::ServerConnection::new(config.clone()).unwrap();
            let mut tls = rustls::Stream::new(&mut tls, &mut stream);
            let mut head = vec![0; 4096];
            let read = tls.read(&mut head).unwrap_or(0);
            let text = String::from_utf8_lossy(&head[..read]).into_owned();
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}",
                text.len()
            );
            let _ = tls.write_all(answer.as_bytes());
            tls.conn.send_close_notify();
            let _ = tls.flush();
            own.lock().unwrap().push(text);
        }
    });
    (port, certificate.pem(), seen)
}

#[test]
fn a_secret_of_the_configuration_reaches_its_host_over_a_restart_and_no_run() {
    const SECRET: &str = "ghp_C4naryOfTheConfiguration";
    let (port, pem, seen) = tls_host(&["localhost"]);
    let mut gateway = Gateway::prepared(&[]);
    let rule = format!("localhost:{port}");
    let config = format!(
        "[sandbox]\negress = [{rule:?}]\negress_to_networks = [\"127.0.0.0/8\", \"::1\"]\n\
         [agents.demo]\nelevated = \"ask\"\n\
         [[agents.demo.sandbox.terminate]]\nhost = {rule:?}\nsecret = {{ vault = \"GH\" }}\nheader = \"Authorization\"\nformat = \"token {{}}\"\n\
         methods = [\"GET\"]\npaths = [\"/repos/\"]\n\
         [[agents.second.sandbox.terminate]]\nhost = \"second.example\"\nsecret = {{ vault = \"GH\" }}\nheader = \"Authorization\"\n\
         methods = [\"GET\"]\npaths = [\"/\"]\n"
    );
    let path = gateway.state().join("config.toml");
    std::fs::write(&path, config).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    // What this machine trusts, for a test's host to be among it.
    let roots = gateway.home().join("roots.pem");
    std::fs::write(&roots, pem).unwrap();
    gateway.set("SSL_CERT_FILE", roots.to_str().unwrap());
    // Everything that any library of ours says.
    gateway.set("RUST_LOG", "trace");
    gateway.launch();
    gateway.vault_is_open();
    assert_eq!(gateway.feed(&["vault", "set", "GH"], SECRET.as_bytes()), 0);
    let bound = gateway.cli(&[
        "vault",
        "bind",
        "GH",
        "--agent",
        "demo",
        "--host",
        "localhost",
        "--use",
        "egress",
    ]);
    assert!(bound.status.success(), "{bound:?}");
    let run = |gateway: &Gateway, agent: &str, script: &str| {
        let done = gateway.cli(&["exec", "--agent", agent, "--", "sh", "-c", script]);
        String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr)
    };
    let authority = "sed '/END/q' /run/portcullis/ca.pem";
    let before = run(&gateway, "demo", authority);
    assert!(
        before.starts_with("-----BEGIN CERTIFICATE-----"),
        "{before}"
    );
    // An authority holds for its box's hosts, and tells nobody of another box's.
    let holds_for = |pem: &str| {
        use rustls::pki_types::pem::PemObject as _;
        let der = rustls::pki_types::CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let text = String::from_utf8_lossy(&der).into_owned();
        (text.contains("localhost"), text.contains("second.example"))
    };
    assert_eq!(holds_for(&before), (true, false));
    assert_eq!(
        holds_for(&run(&gateway, "second", authority)),
        (false, true)
    );
    // By whichever program this machine's /usr has.
    let python = format!(
        "import urllib.request as u; print(u.urlopen(\"https://{rule}/repos/one\").read().decode())"
    );
    let get = format!(
        "export NO_PROXY= no_proxy=; curl -sS https://{rule}/repos/one || /usr/bin/python3 -c '{python}'; env; cat /proc/*/environ 2>/dev/null"
    );
    let said = run(&gateway, "demo", &get);
    assert!(
        said.contains("[secret]") && !said.contains("C4nary"),
        "{said}"
    );
    let last = seen.lock().unwrap().pop().unwrap();
    assert!(
        last.contains(&format!("Authorization: token {SECRET}\r\n")),
        "{last}"
    );
    let records = gateway.json(&["audit", "query", "--action", "egress.request"]);
    let record = records.to_string();
    assert!(
        record.contains("GH@1") && record.contains("/repos/one") && !record.contains("C4nary"),
        "{record}"
    );
    // The vault says who had it last.
    let shown = gateway.json(&["vault", "show", "GH"]).to_string();
    assert!(shown.contains("agent:demo"), "{shown}");
    let explained = gateway.json(&["sandbox", "explain", "--agent", "demo"]);
    let lines = explained["lines"].as_array().unwrap();
    let line = lines
        .iter()
        .find(|line| line["key"] == "terminate")
        .unwrap();
    let expected = format!("{rule} GET /repos/ Authorization: \"token {{}}\" of GH");
    assert_eq!(
        (&line["value"], &line["from"]),
        (
            &serde_json::json!([expected]),
            &"[agents.demo.sandbox]".into()
        )
    );
    // Another agent has no such host: it is told nothing of an authority.
    assert_eq!(
        run(
            &gateway,
            "other",
            "ls /run/portcullis/ca.pem 2>/dev/null; env | grep CERT"
        ),
        ""
    );
    // The same authority after a restart, and none of its key on disk.
    assert_eq!(gateway.stop(), 0);
    gateway.launch();
    gateway.vault_is_open();
    assert_eq!(run(&gateway, "demo", authority), before);
    // Sealed: a clear word, and no secret.
    let sealed = gateway.cli(&["vault", "seal"]);
    assert!(sealed.status.success(), "{sealed:?}");
    let ask = format!("printf 'CONNECT {rule} HTTP/1.0\\r\\n\\r\\n' | busybox nc 127.0.0.1 3128");
    let said = run(&gateway, "demo", &ask);
    assert!(
        said.starts_with("HTTP/1.1 503 ") && said.contains("SEALED"),
        "{said}"
    );
    // In no form in anything that it wrote or said.
    assert_eq!(gateway.stop(), 0);
    let search = Search::of(&[("the secret".to_owned(), SECRET.into())]);
    let log = gateway.log();
    assert!(log.contains("TRACE"), "{log}");
    assert_eq!(search.bytes("the log", log.as_bytes()), [].into());
    assert_eq!(search.tree(gateway.home(), &[]), [].into());
    let control = format!("x {SECRET} y");
    assert!(!search.bytes("a control", control.as_bytes()).is_empty());
}

/// This machine's curl and busybox, as an image.
fn curl_tar(folder: &std::path::Path) -> std::path::PathBuf {
    let tar = folder.join("curl.tar");
    let script = "set -e; mkdir -p \"$1/root/bin\"; cd \"$1/root\"; cp -L /usr/bin/curl /bin/busybox bin/; \
        for name in sh env cat grep ls sed; do ln -s busybox bin/$name; done; \
        for file in $(ldd /usr/bin/curl | grep -o '/[^ ]*'); do mkdir -p \".${file%/*}\"; cp -L \"$file\" \".$file\"; done; \
        tar -cf ../curl.tar .";
    let made = std::process::Command::new("sh")
        .args(["-c", script, "make"])
        .arg(folder)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    tar
}

/// The whole way of a user: an image, a profile, the vault, the runner, a box without a network, and an ordinary client that is told nothing.
#[test]
fn a_docker_boxs_curl_trusts_the_authority_through_the_runner_and_never_sees_the_secret() {
    const SECRET: &str = "ghp_C4nary+OfThe/Docker&Box";
    let engine = crate::support::engine::Engine::shared();
    let (port, pem, seen) = tls_host(&["localhost"]);
    let mut gateway = Gateway::prepared(&[("sandbox.driver", "docker")]);
    let rule = format!("localhost:{port}");
    let path = gateway.state().join("config.toml");
    let write = |text: &str| {
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .unwrap();
    };
    let host = engine.host();
    write(&format!("[sandbox]\nengine = {host:?}\n"));
    let folder = tempfile::tempdir().unwrap();
    let tar = curl_tar(folder.path());
    let tar = tar.to_str().unwrap();
    let imported = gateway.json(&["sandbox", "image", "import", tar, "--name", "curl"]);
    let id = imported["id"].as_str().unwrap();
    write(&format!(
        "[sandbox]\nengine = {host:?}\nimage = {id:?}\negress = [{rule:?}]\negress_to_networks = [\"127.0.0.0/8\", \"::1\"]\n\
         [[agents.demo.sandbox.terminate]]\nhost = {rule:?}\nsecret = {{ vault = \"GH\" }}\nheader = \"Authorization\"\nformat = \"token {{}}\"\n\
         methods = [\"GET\"]\npaths = [\"/repos/\"]\n"
    ));
    // What this machine trusts, for a test's host to be among it.
    let roots = gateway.home().join("roots.pem");
    std::fs::write(&roots, pem).unwrap();
    gateway.set("SSL_CERT_FILE", roots.to_str().unwrap());
    gateway.launch();
    gateway.vault_is_open();
    assert_eq!(gateway.feed(&["vault", "set", "GH"], SECRET.as_bytes()), 0);
    let words = [
        "vault",
        "bind",
        "GH",
        "--agent",
        "demo",
        "--host",
        "localhost",
    ];
    let bound = gateway.cli(&[&words[..], &["--use", "egress"]].concat());
    assert!(bound.status.success(), "{bound:?}");
    let driver = gateway.proven_driver();
    assert!(
        driver["name"] == "docker" && driver["runner"].is_object(),
        "{driver:#}"
    );
    let run = |agent: &str, script: &str| {
        let done = gateway.cli(&["exec", "--agent", agent, "--", "sh", "-c", script]);
        String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr)
    };
    // Nothing but the box's own variables: where the proxy is, and whom to trust.
    let get = |rest: &str| {
        format!(
            "export NO_PROXY= no_proxy=; curl -sS {rest} https://{rule}/repos/one 2>&1; echo \"code $?\""
        )
    };
    let said = run("demo", &get(""));
    assert!(
        said.contains("Authorization: token [secret]\r\n") && said.contains("code 0"),
        "{said}"
    );
    assert!(!said.contains("C4nary"), "{said}");
    let last = seen.lock().unwrap().pop().unwrap();
    assert!(
        last.starts_with("GET /repos/one ")
            && last.contains(&format!("Authorization: token {SECRET}\r\n")),
        "{last}"
    );
    // Another path goes without it.
    let other = get("").replace("/repos/one", "/user");
    assert!(run("demo", &other).contains("code 0"));
    let last = seen.lock().unwrap().pop().unwrap();
    assert!(
        last.starts_with("GET /user ") && !last.contains("C4nary"),
        "{last}"
    );
    // In nothing that the box has.
    let look = "env; cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline /run/portcullis/ca.pem 2>/dev/null; grep -r C4nar[y] /workspace /tmp /run; echo looked";
    let said = run("demo", look);
    assert!(
        said.contains("looked") && said.contains("CURL_CA_BUNDLE=") && !said.contains("C4nary"),
        "{said}"
    );
    // The control: who trusts nobody is shown a certificate that he does not believe, and an agent without such a host has no authority.
    let said = run("demo", &get("--cacert /dev/null"));
    assert!(
        said.contains("code 60") || said.contains("code 77"),
        "{said}"
    );
    let said = run("other", &get(""));
    assert!(
        !said.contains("code 0") && !said.contains("[secret]"),
        "{said}"
    );
    assert!(
        seen.lock()
            .unwrap()
            .iter()
            .all(|seen| !seen.contains("GET "))
    );
    let records = gateway.json(&["audit", "query", "--action", "egress.request"]);
    let records = records.to_string();
    assert!(
        records.contains("GH@1") && !records.contains("C4nary"),
        "{records}"
    );
    assert_eq!(gateway.stop(), 0);
}
