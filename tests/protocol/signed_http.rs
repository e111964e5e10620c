//! `POST /rpc/METHOD`: signed requests over HTTP, spoken to the real program.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use portcullis_core::signing::SigningKey;
use portcullis_core::signing::http::content_digest;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crate::support::gateway::Gateway;
use crate::support::ws::{Client, Connect, Device, admin};

/// A device's key for signed requests.
pub struct Signer {
    key_id: String,
    key: SigningKey,
    device: Device,
}

/// What a client sends; a test changes it after it was signed.
pub struct Sent {
    line: String,
    headers: Vec<(&'static str, String)>,
    body: String,
}

type Change = fn(&mut Sent);

impl Sent {
    fn header(&mut self, name: &str) -> &mut String {
        let found = self.headers.iter_mut().find(|(known, _)| *known == name);
        &mut found.unwrap().1
    }

    pub fn go(&self, gateway: &Gateway) -> (u16, Value) {
        Self::read(&gateway.http(&self.text()))
    }

    fn go_over_tls(&self, gateway: &Gateway) -> (u16, Value) {
        use std::io::{Read as _, Write as _};
        let mut stream = super::tls::session(gateway, super::tls::pinned(gateway)).unwrap();
        stream.write_all(self.text().as_bytes()).unwrap();
        let mut answer = vec![];
        let _ = stream.read_to_end(&mut answer);
        Self::read(&String::from_utf8_lossy(&answer))
    }

    pub fn text(&self) -> String {
        let mut text = format!("{}\r\n", self.line);
        for (name, value) in &self.headers {
            write!(text, "{name}: {value}\r\n").unwrap();
        }
        write!(text, "Connection: close\r\n\r\n{}", self.body).unwrap();
        text
    }

    pub fn read(answer: &str) -> (u16, Value) {
        let status = answer.split(' ').nth(1).and_then(|word| word.parse().ok());
        let body = answer.split("\r\n\r\n").nth(1).unwrap_or_default();
        (
            status.unwrap_or(0),
            serde_json::from_str(body).unwrap_or_default(),
        )
    }
}

fn seconds() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap().as_secs()
}

impl Signer {
    /// Pairs, asks for a key until the vault is open, and waits for a second that began after the gateway did.
    pub async fn new(gateway: &Gateway, scopes: &[&str]) -> Self {
        gateway.vault_is_open();
        let client = Client::dial(gateway).await;
        Self::paired_by(client, scopes).await.expect("a key")
    }

    /// The same by a socket that has not connected yet, of a gateway whose vault is open.
    pub async fn paired_by(client: Client, scopes: &[&str]) -> Option<Self> {
        let connect = Connect::token().scopes(scopes);
        Some(Self::paired_with(client, connect).await?.0)
    }

    /// The same by another secret; and the device's own token.
    pub async fn paired_with(
        mut client: Client,
        connect: Connect<'_>,
    ) -> Option<(Self, Option<String>)> {
        let device = Device::new();
        let params = connect.device(&device).params(&client.nonce, client.ts);
        let mut params = params;
        params["caps"] = json!(["request-signing-v1"]);
        let answer = client.try_call("connect", params).await?;
        let auth = &answer["payload"]["auth"];
        let token = auth["deviceToken"].as_str().map(str::to_owned);
        let given = &auth["signingKey"];
        let signer = Self {
            key_id: given["keyId"].as_str()?.to_owned(),
            key: SigningKey::parse(given["key"].as_str()?).unwrap(),
            device,
        };
        tokio::time::sleep(std::time::Duration::from_millis(1_100)).await;
        Some((signer, token))
    }

    /// The key itself.
    pub fn secret(&self) -> &[u8] {
        self.key.expose()
    }

    fn at(&self, gateway: &Gateway, method: &str, body: &str, created: u64) -> Sent {
        self.on(gateway.port(), method, body, created)
    }

    fn on(&self, port: u16, method: &str, body: &str, created: u64) -> Sent {
        let nonce = uuid::Uuid::new_v4().simple().to_string();
        let host = format!("localhost:{port}");
        let params = format!(
            r#"("@method" "@authority" "@path" "@query" "content-digest");created={created};nonce="{nonce}";keyid="{}";alg="hmac-sha256";tag="portcullis""#,
            self.key_id
        );
        let digest = content_digest(body.as_bytes());
        let base = format!(
            "\"@method\": POST\n\"@authority\": {host}\n\"@path\": /rpc/{method}\n\"@query\": ?\n\"content-digest\": {digest}\n\"@signature-params\": {params}"
        );
        let mac = portcullis_core::signing::mac(self.key.expose(), &[base.as_bytes()]);
        Sent {
            line: format!("POST /rpc/{method} HTTP/1.1"),
            headers: vec![
                ("Host", host),
                ("Content-Type", "application/json".to_owned()),
                ("Content-Length", body.len().to_string()),
                ("Content-Digest", digest),
                ("Signature-Input", format!("sig={params}")),
                ("Signature", format!("sig=:{}:", STANDARD.encode(mac))),
            ],
            body: body.to_owned(),
        }
    }

    pub fn now(&self, gateway: &Gateway, method: &str, body: &str) -> Sent {
        self.now_on(gateway.port(), method, body)
    }

    pub fn now_on(&self, port: u16, method: &str, body: &str) -> Sent {
        self.on(port, method, body, seconds())
    }
}

fn code(answer: &(u16, Value)) -> (u16, &str) {
    (
        answer.0,
        answer.1["error"]["details"]["code"]
            .as_str()
            .unwrap_or("ok"),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_request_is_answered_as_on_a_socket_and_with_its_scopes_only() {
    let gateway = Gateway::start();
    let signer = Signer::new(&gateway, &["operator.read", "operator.pairing"]).await;
    let (status, answer) = signer.now(&gateway, "device.pair.list", "{}").go(&gateway);
    assert_eq!((status, &answer["ok"]), (200, &json!(true)), "{answer}");
    let mut socket = admin(&gateway).await;
    let mut listed = socket.get("device.pair.list", json!({})).await;
    let mut seen = answer["payload"].clone();
    for list in [&mut listed, &mut seen] {
        assert_eq!(list["paired"].as_array().unwrap().len(), 1, "{list}");
        list["paired"][0]["connected"].take();
        list["paired"][0]["lastSeenAtMs"].take();
    }
    assert_eq!(seen, listed);
    assert_eq!(signer.now(&gateway, "health", "").go(&gateway).0, 200);

    for (method, body, expected) in [
        // Role and scope before params, and existence is not told.
        ("exec.approvals.get", "{}", (403, "MISSING_SCOPE")),
        ("no.such.method", "{}", (404, "UNKNOWN_METHOD")),
        (
            "device.pair.list",
            r#"{"a":1,"a":2}"#,
            (400, "INVALID_PARAMS"),
        ),
        (
            "device.pair.list",
            r#"{"n":9007199254740993}"#,
            (400, "INVALID_PARAMS"),
        ),
        ("device.pair.list", "{}{}", (400, "INVALID_PARAMS")),
        ("device.pair.list", r#"{"x":1}"#, (400, "INVALID_PARAMS")),
        (
            "device.pair.approve",
            r#"{"requestId":"none"}"#,
            (400, "REQUEST_NOT_FOUND"),
        ),
    ] {
        let answer = signer.now(&gateway, method, body).go(&gateway);
        assert_eq!(code(&answer), expected, "{method} {body}: {}", answer.1);
    }
    // Another key may ask for what streams, and hears that it needs a socket.
    let acts = Signer::new(&gateway, &["operator.admin", "operator.act_as"]).await;
    for method in [
        "exec.run",
        "exec.attach",
        "exec.cancel",
        "exec.stdin",
        "exec.resize",
        "exec.signal",
        "exec.approval.request",
    ] {
        let answer = acts.now(&gateway, method, "{}").go(&gateway);
        assert_eq!(code(&answer), (400, "NEEDS_SOCKET"), "{}", answer.1);
    }
    let answer = acts.now(&gateway, "no.such.method", "{}").go(&gateway);
    assert_eq!(code(&answer), (404, "UNKNOWN_METHOD"));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_signed_request_is_done_in_time_and_once() {
    let gateway = Gateway::start();
    let signer = Signer::new(&gateway, &["operator.pairing"]).await;
    let good = || signer.now(&gateway, "device.pair.list", "{}");
    let sent = good();
    assert_eq!(sent.go(&gateway).0, 200);
    assert_eq!(code(&sent.go(&gateway)), (401, "SIGNATURE_REPLAYED"));

    // A hundred times at once: one is done.
    let raced = good();
    let done = std::thread::scope(|scope| {
        let asks: Vec<_> = (0..32)
            .map(|_| scope.spawn(|| raced.go(&gateway).0))
            .collect();
        asks.into_iter()
            .map(|ask| ask.join().unwrap())
            .filter(|status| *status == 200)
            .count()
    });
    assert_eq!(done, 1);

    let changes: [(&str, Change); 9] = [
        ("SIGNATURE_INVALID", |s| {
            s.line = s.line.replace("device.pair.list", "health");
        }),
        ("SIGNATURE_INVALID", |s| {
            s.line = s.line.replace("device.pair.list", "device.pair.list?a=1");
        }),
        ("SIGNATURE_INVALID", |s| {
            *s.header("Host") = "localhost".into();
        }),
        ("SIGNATURE_INVALID", |s| s.body = "[]".into()),
        ("SIGNATURE_INVALID", |s| {
            s.body = "[]".into();
            *s.header("Content-Digest") = content_digest(b"[]");
        }),
        ("SIGNATURE_INVALID", |s| {
            let input = s.header("Signature-Input");
            *input = input.replace("keyid=\"", "keyid=\"x");
        }),
        ("SIGNATURE_REQUIRED", |s| {
            s.headers.retain(|(name, _)| *name != "Signature");
        }),
        ("SIGNATURE_REQUIRED", |s| {
            let doubled = s.header("Signature").clone();
            s.headers.push(("Signature", doubled));
        }),
        ("SIGNATURE_REQUIRED", |s| {
            let input = s.header("Signature-Input");
            *input = input.replace(" \"content-digest\"", "");
        }),
    ];
    for (at, (expected, change)) in changes.into_iter().enumerate() {
        let mut sent = good();
        change(&mut sent);
        let answer = sent.go(&gateway);
        assert_eq!(code(&answer), (401, expected), "change {at}: {}", answer.1);
    }
    for created in [seconds() - 70, seconds() + 70] {
        let answer = signer
            .at(&gateway, "device.pair.list", "{}", created)
            .go(&gateway);
        assert_eq!(code(&answer), (401, "SIGNATURE_STALE"));
    }
    // A token alone opens nothing here.
    let mut bearer = good();
    bearer
        .headers
        .retain(|(name, _)| !name.starts_with("Signature"));
    bearer.headers.push((
        "Authorization",
        format!("Bearer {}", crate::support::gateway::TOKEN),
    ));
    assert_eq!(code(&bearer.go(&gateway)), (401, "SIGNATURE_REQUIRED"));
}

/// The bug: a request of a clock that is fast was done, and done once more by the next life of the gateway.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_signed_ahead_of_its_time_is_not_done_again_after_a_restart() {
    let mut gateway = Gateway::start();
    let signer = Signer::new(&gateway, &["operator.pairing"]).await;
    let far = signer.at(&gateway, "device.pair.list", "{}", seconds() + 9);
    assert_eq!(code(&far.go(&gateway)), (401, "SIGNATURE_STALE"));
    let ahead = seconds() + 2;
    let sent = signer.at(&gateway, "device.pair.list", "{}", ahead);
    let (status, answer) = sent.go(&gateway);
    assert_eq!(status, 200, "{answer}");
    assert!(seconds() >= ahead, "it was done before its second came");
    gateway.crash_and_start();
    gateway.vault_is_open();
    let again = sent.go(&gateway);
    assert_eq!(code(&again), (401, "SIGNATURE_STALE"));
}

#[tokio::test(flavor = "multi_thread")]
async fn browsers_other_methods_and_large_bodies_are_refused_before_any_key_is_looked_at() {
    let gateway = Gateway::start();
    let signer = Signer::new(&gateway, &["operator.pairing"]).await;
    let good = || signer.now(&gateway, "device.pair.list", "{}");
    let changes: [(u16, Change); 9] = [
        (403, |s| {
            s.headers.push(("Origin", "http://localhost".into()));
        }),
        (403, |s| s.headers.push(("Origin", "null".into()))),
        (403, |s| {
            s.headers.push(("Sec-Fetch-Site", "same-origin".into()));
        }),
        (403, |s| s.headers.push(("Cookie", "a=b".into()))),
        (405, |s| s.line = s.line.replace("POST", "GET")),
        (421, |s| *s.header("Host") = "evil.example".into()),
        (413, |s| *s.header("Content-Length") = "1048577".into()),
        (411, |s| {
            s.headers.retain(|(name, _)| *name != "Content-Length");
        }),
        (415, |s| *s.header("Content-Type") = "text/plain".into()),
    ];
    for (status, change) in changes {
        let mut sent = good();
        change(&mut sent);
        let answer = sent.go(&gateway);
        assert_eq!(answer.0, status, "{}", answer.1);
    }
    assert_eq!(good().go(&gateway).0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_device_signs_no_more_and_a_key_is_given_once() {
    let mut gateway = Gateway::start();
    let signer = Signer::new(&gateway, &["operator.pairing"]).await;
    let connect = Connect::token()
        .scopes(&["operator.pairing"])
        .device(&signer.device);
    let mut client = Client::dial(&gateway).await;
    let mut params = connect.params(&client.nonce, client.ts);
    params["caps"] = json!(["request-signing-v1"]);
    let hello = client.get("connect", params).await;
    assert!(hello["auth"].get("signingKey").is_none(), "{hello}");

    let before = signer.now(&gateway, "device.pair.list", "{}");
    assert_eq!(before.go(&gateway).0, 200);
    gateway.crash_and_start();
    gateway.vault_is_open();
    // Its second began before this gateway did.
    let mut last = (0, String::new());
    for _ in 0..100 {
        let answer = before.go(&gateway);
        let (status, word) = code(&answer);
        last = (status, word.to_owned());
        if status != 503 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert_eq!(last, (401, "SIGNATURE_STALE".to_owned()));
    std::thread::sleep(std::time::Duration::from_millis(1_100));
    let answer = signer.now(&gateway, "device.pair.list", "{}").go(&gateway);
    assert_eq!(answer.0, 200, "{}", answer.1);

    gateway.json(&["devices", "revoke", &signer.device.id()]);
    let answer = signer.now(&gateway, "device.pair.list", "{}").go(&gateway);
    assert_eq!(code(&answer), (401, "SIGNATURE_INVALID"), "{}", answer.1);
}

#[tokio::test(flavor = "multi_thread")]
async fn over_the_nonces_of_all_keys_nobodys_request_is_done_and_the_refusal_says_so() {
    let gateway = Gateway::with(&[("signing.nonces_max", "4")]);
    let one = Signer::new(&gateway, &["operator.pairing"]).await;
    let other = Signer::new(&gateway, &["operator.pairing"]).await;
    let ask = |signer: &Signer| signer.now(&gateway, "device.pair.list", "{}");
    let first = ask(&one);
    assert_eq!(first.go(&gateway).0, 200);
    for signer in [&one, &other, &other] {
        assert_eq!(ask(signer).go(&gateway).0, 200);
    }
    for signer in [&one, &other] {
        let answer = ask(signer).go(&gateway);
        assert_eq!(code(&answer), (429, "OVERLOADED"), "{}", answer.1);
        assert!(
            answer.1.to_string().contains("are remembered"),
            "{}",
            answer.1
        );
    }
    // Nothing was forgotten to make room.
    assert_eq!(code(&first.go(&gateway)), (401, "SIGNATURE_REPLAYED"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_request_is_taken_over_tls_and_counts_there_once_as_everywhere() {
    let gateway = Gateway::with(&[("gateway.tls.enabled", "true")]);
    let signer = Signer::new(&gateway, &["operator.read"]).await;
    let sent = signer.now(&gateway, "health", "{}");
    assert_eq!(sent.go_over_tls(&gateway).0, 200);
    assert_eq!(
        code(&sent.go_over_tls(&gateway)),
        (401, "SIGNATURE_REPLAYED")
    );
    assert_eq!(code(&sent.go(&gateway)), (401, "SIGNATURE_REPLAYED"));
    let mut altered = signer.now(&gateway, "health", "{}");
    altered.line = "POST /rpc/status HTTP/1.1".to_owned();
    assert_eq!(altered.go_over_tls(&gateway).0, 401);
}

/// The bug: each refused request told the edge something without waiting, and two sockets of a stranger filled its
/// mailbox: newcomers, `status` and revocations waited for 5 to 14 s.
#[test]
fn a_stranger_who_pipelines_refused_requests_stops_no_other_door() {
    let gateway = Gateway::start();
    let over = AtomicBool::new(false);
    let tries: Vec<_> = std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !over.load(Relaxed) {
                    pipeline(gateway.port(), &over);
                }
            });
        }
        std::thread::sleep(Duration::from_secs(2));
        let ask = |_| {
            let began = Instant::now();
            let status = gateway.cli(&["status", "--json"]);
            (status.status.success(), began.elapsed())
        };
        let tries = (0..3).map(ask).collect();
        over.store(true, Relaxed);
        tries
    });
    let most = Duration::from_secs(4);
    assert!(
        tries.iter().all(|(is_good, took)| *is_good && *took < most),
        "{tries:?}"
    );
}

/// One socket, full of requests that are refused, until the gateway closes it.
fn pipeline(port: u16, over: &AtomicBool) {
    let burst = b"GET /rpc/x HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(200);
    let Ok(mut socket) = TcpStream::connect(("127.0.0.1", port)) else {
        return;
    };
    let mut answers = socket.try_clone().unwrap();
    let reader = std::thread::spawn(move || {
        // An error is the end of it too.
        let _ = std::io::copy(&mut answers, &mut std::io::sink());
    });
    while !over.load(Relaxed) {
        if socket.write_all(&burst).is_err() {
            break;
        }
    }
    // Closed already is as good.
    let _ = socket.shutdown(Shutdown::Both);
    reader.join().unwrap();
}
