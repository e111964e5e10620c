//! Hosts whose TLS the gateway opens: the secret is in its header of its requests, in no answer, and in nothing that a box has.

use std::collections::BTreeSet;
use std::sync::Arc;

use portcullis_actors::sandbox_pool::egress::EgressLimits;
use portcullis_core::audit::Entry;
use portcullis_core::egress::{Terminations, terminations};
use portcullis_core::seal::Secret;
use portcullis_core::vault::{Binds, Use};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::upstream::{Authority, Upstream};
use super::{Opening, PATIENCE, Scene};

pub const SECRET: &str = "ghp_C4nary+Va1ue/of=the\"vault";
const NETWORK: &[&str] = &["127.0.0.0/8"];

pub fn entries(text: &str) -> Terminations {
    #[derive(serde::Deserialize)]
    struct File {
        #[serde(deserialize_with = "terminations")]
        terminate: Option<Terminations>,
    }
    let file: File = toml::from_str(&format!("terminate = [{text}]")).unwrap();
    file.terminate.unwrap_or_default()
}

/// As an operator writes it.
pub fn github(at: &str) -> Terminations {
    entries(&format!(
        "{{ host = {at:?}, secret = {{ vault = 'GH' }}, header = 'Authorization', format = 'Bearer {{}}', methods = ['GET'], paths = ['/repos/'] }}"
    ))
}

pub async fn bind(vault: &portcullis_actors::vault::VaultHandle, agents: &[&str], hosts: &[&str]) {
    let all = |texts: &[&str]| {
        texts
            .iter()
            .map(ToString::to_string)
            .collect::<BTreeSet<_>>()
    };
    let binds = Binds {
        agents: all(agents),
        hosts: Some(all(hosts)),
        uses: Some([Use::Egress].into()),
    };
    vault.bind(Entry::new("test"), "GH", binds).await.unwrap();
}

/// A vault takes as long as its KDF.
pub async fn filled(vault: &portcullis_actors::vault::VaultHandle) {
    let end = std::time::Instant::now() + PATIENCE;
    loop {
        match vault
            .set(Entry::new("test"), "GH", Secret::new(SECRET.into()))
            .await
        {
            Ok(_) => break,
            Err(error) => assert!(std::time::Instant::now() < end, "{error}"),
        }
    }
    bind(vault, &["demo"], &["api.test"]).await;
}

/// A host, and a box's way to it.
pub struct Place {
    pub host: Upstream,
    at: String,
    pub scene: Scene,
}

impl Place {
    pub async fn new() -> Self {
        let authority = Authority::of(&["api.test"], false);
        Self::of(&authority, Some(authority.client.clone()), Some(&["demo"])).await
    }

    async fn of(
        authority: &Authority,
        client: Option<Arc<ClientConfig>>,
        agents: Option<&[&str]>,
    ) -> Self {
        Self::opening(authority, client, agents, github).await
    }

    /// With the entries of this host.
    pub async fn opening(
        authority: &Authority,
        client: Option<Arc<ClientConfig>>,
        agents: Option<&[&str]>,
        terminate: fn(&str) -> Terminations,
    ) -> Self {
        let host = Upstream::echo(authority).await;
        let at = format!("api.test:{}", host.port);
        let opening = Opening {
            terminate: terminate(&at),
            agents: agents.map(|agents| agents.iter().map(ToString::to_string).collect()),
            client,
        };
        let rules = [at.clone(), format!("other.test:{}", host.port)];
        let scene = Scene::built(
            &rules,
            NETWORK,
            EgressLimits::default(),
            None,
            Some(opening),
            None,
        )
        .await;
        for name in ["api.test", "other.test"] {
            scene.names.set(name, &[&["127.0.0.1"]]);
        }
        filled(scene.vault.as_ref().unwrap()).await;
        Self { host, at, scene }
    }

    /// The authorities of the box, of which the gateway's is the first.
    async fn trusted(&self) -> CertificateDer<'static> {
        let file = self.scene.socket.with_file_name("ca.pem");
        let end = std::time::Instant::now() + PATIENCE;
        loop {
            let found = std::fs::read(&file)
                .ok()
                .and_then(|pem| CertificateDer::from_pem_slice(&pem).ok());
            if let Some(found) = found {
                return found;
            }
            assert!(std::time::Instant::now() < end, "no authority came");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }

    /// What a client is answered that trusts these authorities alone.
    async fn ask_as(&self, sni: &str, alpn: &[&[u8]], request: &str) -> std::io::Result<String> {
        let mut config = trusting(self.trusted().await);
        config.alpn_protocols = alpn.iter().map(|one| one.to_vec()).collect();
        let mut stream = self.scene.dial().await;
        let connect = format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\n", self.at);
        stream.write_all(connect.as_bytes()).await?;
        let mut answer = vec![0; 39];
        stream.read_exact(&mut answer).await?;
        assert_eq!(answer, b"HTTP/1.1 200 Connection established\r\n\r\n");
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let name = ServerName::try_from(sni.to_owned()).unwrap();
        let asking = async {
            let mut stream = connector.connect(name, stream).await?;
            stream.write_all(request.as_bytes()).await?;
            let mut answer = Vec::new();
            let read = stream.read_to_end(&mut answer).await;
            let text = String::from_utf8_lossy(&answer).into_owned();
            read.map(|_| text.clone()).or_else(|error| {
                if text.is_empty() {
                    Err(error)
                } else {
                    Ok(format!("{text}<CUT>"))
                }
            })
        };
        tokio::time::timeout(PATIENCE, asking)
            .await
            .expect("it ends")
    }

    async fn ask(&self, request: &str) -> String {
        self.ask_as("api.test", &[b"http/1.1"], request)
            .await
            .unwrap()
    }

    /// What the host was asked; a connection that was not even begun is none.
    fn heads(&self) -> Vec<String> {
        let mut seen = self.host.seen.requests();
        seen.retain(|seen| seen != "no handshake");
        seen
    }

    pub async fn get(&self, path: &str) -> String {
        self.ask(&self.request("GET", path, "")).await
    }

    fn request(&self, method: &str, path: &str, headers: &str) -> String {
        format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\n{headers}\r\n",
            self.at
        )
    }
}

pub fn trusting(authority: CertificateDer<'static>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(authority).unwrap();
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

/// The body of an answer in chunks.
pub fn dechunked(answer: &str) -> String {
    let (head, mut rest) = answer
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("{answer}"));
    assert!(head.contains("Transfer-Encoding: chunked"), "{answer}");
    let mut body = String::new();
    loop {
        let (size, behind) = rest
            .split_once("\r\n")
            .unwrap_or_else(|| panic!("{answer}"));
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            assert_eq!(behind, "\r\n", "{answer}");
            return body;
        }
        body.push_str(&behind[..size]);
        rest = &behind[size + 2..];
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_goes_into_its_requests_alone_and_comes_back_in_no_answer() {
    let place = Place::new().await;
    // What the box writes in that header itself goes nowhere, in any spelling.
    let own = "Authorization: Bearer mine\r\nAUTHORIZATION: mine\r\nConnection: Authorization\r\nAccept-Encoding: gzip\r\nRange: bytes=0-3\r\n";
    let answer = place.ask(&place.request("GET", "/repos/x?q=1", own)).await;
    assert_eq!(
        dechunked(&answer),
        "key=Bearer [secret] path=/repos/x?q=1",
        "{answer}"
    );
    let seen = place.host.seen.requests();
    let expected = format!(
        "GET /repos/x?q=1 HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {SECRET}\r\nAccept-Encoding: identity\r\nVia: 1.1 portcullis\r\nConnection: close\r\n\r\n",
        place.at
    );
    assert_eq!(seen, [expected]);

    // Another method, another path: without it, and without the box's own.
    for (method, path) in [
        ("POST", "/repos/x"),
        ("GET", "/repos"),
        ("GET", "/user"),
        ("HEAD", "/repos/x"),
        ("DELETE", "/repos/x"),
    ] {
        let length = if method == "POST" {
            "Content-Length: 0\r\n"
        } else {
            ""
        };
        let answer = place
            .ask(&place.request(method, path, &format!("{length}authorization: mine\r\n")))
            .await;
        assert!(
            answer.starts_with("HTTP/1.1 200 "),
            "{method} {path}: {answer}"
        );
        let last = place.host.seen.requests().pop().unwrap();
        assert!(
            !last.to_lowercase().contains("authorization") && !last.contains("mine"),
            "{method} {path}: {last}"
        );
    }

    // Whatever the server does with it.
    for (path, status, end) in [
        ("/repos/chunks", "200", ""),
        ("/repos/close", "200", ""),
        ("/repos/continue", "103", ""),
        (
            "/repos/redirect",
            "302 Bearer [secret]",
            "Location: https://evil.test/?Bearer [secret]\r\n",
        ),
    ] {
        let answer = place.get(path).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}"))
                && answer.contains(end)
                && answer.contains("[secret]"),
            "{path}: {answer}"
        );
        assert!(
            !answer.contains("C4nary") && !answer.contains("<CUT>"),
            "{path}: {answer}"
        );
        assert!(
            place.host.seen.requests().pop().unwrap().contains(SECRET),
            "{path}"
        );
    }
    assert!(
        dechunked(&place.get("/repos/chunks").await).contains("Authorization: Bearer [secret]\r\n")
    );
    for (path, word) in [
        ("/repos/gzip", "bad-answer"),
        ("/repos/part", "bad-answer"),
        ("/repos/two", "bad-answer"),
        ("/repos/switch", "bad-answer"),
    ] {
        let answer = place.get(path).await;
        assert!(
            answer.starts_with("HTTP/1.1 502 ")
                && answer.contains(&format!("X-Portcullis-Egress: {word}\r\n")),
            "{path}: {answer}"
        );
    }
    // An answer that was cut does not look whole; its end is not passed on: it could be the beginning of the secret.
    let cut = place.get("/repos/cut").await;
    assert!(
        cut.starts_with("HTTP/1.1 200 ") && !cut.contains("\r\n0\r\n"),
        "{cut}"
    );
    // A client of before chunks.
    let old = place
        .ask(&format!(
            "GET /repos/x HTTP/1.0\r\nHost: {}\r\n\r\n",
            place.at
        ))
        .await;
    assert!(
        old.ends_with("\r\n\r\nkey=Bearer [secret] path=/repos/x"),
        "{old}"
    );

    // The log: what was decided, before it went; and never a value.
    let records = place.scene.records("egress.request", 14).await;
    let first = &records[0];
    assert_eq!(
        (&first["object"], &first["decision"], &first["principal"]),
        (
            &place.at.clone().into(),
            &"allow".into(),
            &"agent:demo".into()
        )
    );
    let detail = &first["detail"];
    assert_eq!(
        (
            &detail["method"],
            &detail["path"],
            &detail["secrets"],
            &detail["runs"]
        ),
        (
            &"GET".into(),
            &"/repos/x".into(),
            &"[\"GH@1\"]".into(),
            &"[\"run-7\"]".into()
        ),
        "{first}"
    );
    assert!(
        records
            .iter()
            .all(|record| !record.to_string().contains("C4nary"))
    );
    for record in records
        .iter()
        .filter(|record| record["detail"]["method"] == "POST")
    {
        assert!(!record.to_string().contains("GH@"), "{record}");
    }
    let allowed = place.scene.records("egress.allow", 14).await;
    assert_eq!(allowed[0]["detail"]["way"], "terminate");
    assert!(allowed[0]["seq"].as_u64() < first["seq"].as_u64());
    let ends = place.scene.records("egress.end", 14).await;
    assert!(
        ends.iter().any(|end| end["detail"]["replaced"] == "1"),
        "{ends:#?}"
    );
    let listed = place.scene.vault.as_ref().unwrap().list().await.unwrap();
    let used = listed[0].last_use.as_ref().unwrap();
    assert_eq!(
        (used.by.as_str(), used.agent.as_deref(), used.run.as_deref()),
        ("agent:demo", Some("demo"), Some("run-7"))
    );
}

/// What was got past such proxies by two readers of one request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_two_readers_could_read_differently_reaches_nobody() {
    let place = Place::new().await;
    let post = |headers: &str| place.request("POST", "/repos/x", headers);
    let host = &place.at;
    let hidden = format!("GET /user HTTP/1.1\r\nHost: {host}\r\n\r\n");
    for (request, word) in [
        (
            format!(
                "{}0\r\n\r\n{hidden}",
                post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n")
            ),
            "body-length",
        ),
        (
            format!(
                "{}{hidden}",
                post("Content-Length: 0\r\nContent-Length: 40\r\n")
            ),
            "body-length",
        ),
        (
            format!(
                "{}0\r\n\r\n{hidden}",
                post("Transfer-Encoding: xchunked\r\n")
            ),
            "body-length",
        ),
        (
            format!(
                "{}0\r\n\r\n{hidden}",
                post("Transfer-Encoding : chunked\r\n")
            ),
            "head-malformed",
        ),
        (
            format!(
                "{}0\r\n\r\n{hidden}",
                post("X: 1\r\n Transfer-Encoding: chunked\r\n")
            ),
            "head-malformed",
        ),
        (
            format!(
                "{}0\r\n\r\n{hidden}",
                post("X: 1\nTransfer-Encoding: chunked\r\n")
            ),
            "head-malformed",
        ),
        (
            format!(
                "{}0\r\n\r\n{hidden}",
                post("X: 1\rTransfer-Encoding: chunked\r\n")
            ),
            "head-malformed",
        ),
        (
            place.request("GET", "/repos/x", &format!("Host: {host}\r\n")),
            "head-malformed",
        ),
        (
            "GET /repos/x HTTP/1.1\r\nHost: other.test\r\n\r\n".to_owned(),
            "host-mismatch",
        ),
        (
            "GET /repos/x HTTP/1.1\r\nHost: api.test\r\n\r\n".to_owned(),
            "host-mismatch",
        ),
        (
            place.request("GET", &format!("https://{host}/repos/x"), ""),
            "target-form",
        ),
        (
            place.request("GET", &format!("http://{host}/repos/x"), ""),
            "target-form",
        ),
        (place.request("CONNECT", "other.test:443", ""), "method"),
        (place.request("TRACE", "/repos/x", ""), "method"),
        (
            place.request(
                "GET",
                "/repos/x",
                "Upgrade: websocket\r\nConnection: upgrade\r\n",
            ),
            "upgrade",
        ),
        (
            place.request("GET", "/repos/x", "X-HTTP-Method-Override: DELETE\r\n"),
            "override",
        ),
        (
            place.request("GET", "/repos/x", "X_Original_URL: /user\r\n"),
            "override",
        ),
        (
            place.request("GET", "/repos/x?a=b&%5fmethod=DELETE", ""),
            "override",
        ),
        (place.request("GET", "/repos/%c0%ae%c0%ae/user", ""), "path"),
        (place.request("GET", "/repos/..%20/user", ""), "path"),
        (place.request("GET", "/repos/.../user", ""), "path"),
        (place.request("GET", "/repos/%252e%252e/user", ""), "path"),
        (place.request("GET", "/repos/%00", ""), "path"),
        (place.request("GET", "/repos/..%5cuser", ""), "path"),
        (place.request("GET", "/repos\\..\\user", ""), "path"),
        (place.request("GET", "/repos/../user", ""), "path"),
        (place.request("GET", "/repos/%2e%2e/user", ""), "path"),
        (place.request("GET", "/repos/..%2fuser", ""), "path"),
        (place.request("GET", "/repos//x", ""), "path"),
        (place.request("GET", "/repos/..;/user", ""), "path"),
        (
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
            "head-malformed",
        ),
        (
            format!(
                "GET /repos/{} HTTP/1.1\r\nHost: {host}\r\n\r\n",
                "a".repeat(9_000)
            ),
            "head-too-long",
        ),
    ] {
        let answer = place.ask(&request).await;
        assert!(
            answer.contains(&format!("X-Portcullis-Egress: {word}\r\n")),
            "{request:?}: {answer}"
        );
    }
    assert_eq!(place.heads(), [""; 0]);
    // Without a secret in it a query may name what it likes, and nothing of what proxies say goes on.
    let answer = place
        .ask(&place.request("GET", "/user?_method=x", "X-Forwarded-Path: /repos/x\r\n"))
        .await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let last = place.host.seen.requests().pop().unwrap();
    assert!(
        last.starts_with("GET /user?_method=x ") && !last.contains("Forwarded"),
        "{last}"
    );
    // What follows a request goes nowhere: neither behind none, nor behind a length, nor behind the last chunk.
    for request in [
        format!("{}{hidden}", place.request("GET", "/repos/x", "")),
        format!(
            "{}abc{hidden}",
            place.request("POST", "/repos/x", "Content-Length: 3\r\n")
        ),
        format!(
            "{}3\r\nabc\r\n0\r\n\r\n{hidden}",
            place.request("POST", "/repos/x", "Transfer-Encoding: chunked\r\n")
        ),
    ] {
        let answer = place.ask(&request).await;
        assert!(
            answer.starts_with("HTTP/1.1 200 ") && answer.matches("HTTP/1.1 ").count() == 1,
            "{answer}"
        );
        assert!(
            !place.host.seen.requests().pop().unwrap().contains("/user"),
            "{request:?}"
        );
    }
    // The hello is the same gate as for any tunnel, and only HTTP/1.1 is spoken behind it.
    assert!(
        place
            .ask_as("other.test", &[b"http/1.1"], "")
            .await
            .is_err()
    );
    assert!(place.ask_as("api.test", &[b"h2"], "").await.is_err());
    let denied = place.scene.records("egress.deny", 33).await;
    assert!(
        denied
            .iter()
            .any(|record| record["detail"]["reason"] == "sni-mismatch")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_is_not_who_it_must_be_is_sent_nothing() {
    let right = Authority::of(&["api.test"], false);
    let other = Authority::of(&["other.test"], false);
    let same_name = Authority::of(&["api.test"], false);
    for (why, server, client) in [
        ("another name", &other, Some(other.client.clone())),
        ("another authority", &same_name, Some(right.client.clone())),
        ("nobody is trusted", &right, None),
    ] {
        let place = Place::of(server, client, Some(&["demo"])).await;
        let answer = place.get("/repos/x").await;
        let is_told = answer.contains("X-Portcullis-Egress: host-unverified\r\n");
        assert!(
            answer.starts_with("HTTP/1.1 502 ") && is_told,
            "{why}: {answer}"
        );
        assert!(
            place
                .host
                .seen
                .requests()
                .iter()
                .all(|seen| seen == "no handshake"),
            "{why}"
        );
    }
    let place = Place::of(&right, Some(right.client.clone()), Some(&["demo"])).await;
    assert!(place.get("/repos/x").await.contains("[secret]"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_vault_or_a_bind_no_secret_is_put_in_and_other_hosts_go_on() {
    let authority = Authority::of(&["api.test", "other.test"], false);
    let place = Place::of(&authority, Some(authority.client.clone()), Some(&["demo"])).await;
    let vault = place.scene.vault.clone().unwrap();
    for (agents, hosts) in [
        (&["other"][..], &["api.test"][..]),
        (&["demo"], &["other.test"]),
        (&["demo"], &["x.api.test"]),
        (&[], &["api.test"]),
    ] {
        bind(&vault, agents, hosts).await;
        let answer = place.get("/repos/x").await;
        assert!(
            answer.starts_with("HTTP/1.1 503 ")
                && answer.contains("VAULT_NOT_BOUND")
                && answer.contains("secret-refused"),
            "{answer}"
        );
        // The bug: a request that it does not belong into went on, and the answer was not searched for what the host was sent before.
        let answer = place.get("/user").await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    }
    assert!(place.heads().is_empty());
    bind(&vault, &["demo"], &["api.test"]).await;
    assert!(place.get("/repos/x").await.contains("[secret]"));
    vault
        .set(
            Entry::new("test"),
            "GH",
            Secret::new(b"line\nbreak and more".to_vec()),
        )
        .await
        .unwrap();
    let answer = place.get("/repos/x").await;
    assert!(answer.contains("VAULT_VALUE_INVALID"), "{answer}");

    vault.seal(Entry::new("test")).await.unwrap();
    let connect = |name: &str| {
        format!(
            "CONNECT {name}:{0} HTTP/1.1\r\nHost: {name}:{0}\r\n\r\n",
            place.host.port
        )
    };
    let answer = place.scene.ask(connect("api.test").as_bytes()).await;
    assert!(
        answer.status() == "503"
            && answer.word() == "authority-closed"
            && answer.0.contains("SEALED"),
        "{answer:?}"
    );
    let mut tunnel = place.scene.dial().await;
    tunnel
        .write_all(connect("other.test").as_bytes())
        .await
        .unwrap();
    let mut head = vec![0; 12];
    tunnel.read_exact(&mut head).await.unwrap();
    assert_eq!(head, b"HTTP/1.1 200");
}

/// A box that agents share has a secret where each of them may have it, and none where one of them is not known.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shared_box_has_the_secrets_that_all_its_agents_may_have() {
    let authority = Authority::of(&["api.test"], false);
    for (agents, bound, is_put) in [
        (Some(&["demo", "other"][..]), &["demo", "other"][..], true),
        (Some(&["demo", "other"]), &["demo"], false),
        (Some(&["demo", "other"]), &["other"], false),
        (None, &["demo", "other"], false),
        (Some(&[]), &["demo"], false),
    ] {
        let place = Place::of(&authority, Some(authority.client.clone()), agents).await;
        bind(place.scene.vault.as_ref().unwrap(), bound, &["api.test"]).await;
        let answer = place.get("/repos/x").await;
        assert_eq!(
            answer.contains("[secret]"),
            is_put,
            "{agents:?} {bound:?}: {answer}"
        );
        assert_eq!(answer.contains("VAULT_NOT_BOUND"), !is_put, "{answer}");
    }
}
