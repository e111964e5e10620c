//! Headers of proxies, and users whom a trusted proxy names. The proxy here is this test: the kernel says whose it is.

use std::io::{Read as _, Write as _};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::{Signer as _, SigningKey};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PublicKeyData as _};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio_tungstenite::tungstenite::Error as WsError;

use super::tls::{certified, session};
use crate::support::gateway::{Gateway, TOKEN};
use crate::support::ws::{Client, Connect, Device, admin, hex};

const FORWARDED: (&str, &str) = ("x-forwarded-for", "203.0.113.9");
const ADA: (&str, &str) = ("x-user", "ada");
const READ: &[&str] = &["operator.read"];
const ALL: &[&str] = &[
    "operator.admin",
    "operator.read",
    "operator.write",
    "operator.approvals",
    "operator.pairing",
];

fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn prepared(uid: u32, more: &[(&str, &str)]) -> Gateway {
    let section = "gateway.auth.trusted_proxy";
    let mut gateway = Gateway::prepared(&[("gateway.auth.mode", "trusted-proxy")]);
    gateway.unset("PORTCULLIS_GATEWAY_TOKEN");
    for (key, value) in [
        ("addresses", r#"["127.0.0.0/8"]"#),
        ("loopback_uids", &format!("[{uid}]")),
        ("user_header", "x-user"),
        ("allow_users", r#"["ada"]"#),
    ]
    .iter()
    .chain(more)
    {
        gateway.set(&format!("{section}.{key}"), value);
    }
    gateway
}

fn trusting(more: &[(&str, &str)]) -> Gateway {
    let mut gateway = prepared(own_uid(), more);
    gateway.launch();
    gateway
}

fn get(gateway: &Gateway, path: &str, more: &str) -> String {
    gateway.http(&format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\n{more}Connection: close\r\n\r\n"
    ))
}

async fn denied(gateway: &Gateway, headers: &[(&str, &str)]) -> String {
    let mut client = Client::dial_with(gateway, headers).await.unwrap();
    let (error, (close, _)) = client.denied(&Connect::bare().scopes(READ)).await;
    assert_eq!(close, 1008, "{error}");
    error["details"]["code"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_that_a_proxy_adds_refuses_every_request_but_the_live_probe() {
    let gateway = Gateway::start();
    for header in [
        "Forwarded: for=203.0.113.9",
        "X-Forwarded-For: 127.0.0.1",
        "X-Forwarded-Proto: https",
        "x-forwarded-anything: 1",
        "X-Real-IP: 127.0.0.1",
    ] {
        let line = format!("{header}\r\n");
        for path in [
            "/",
            "/login",
            "/approvals",
            "/style.css",
            "/readyz",
            "/ready",
            "/rpc/health",
            "/nothing",
        ] {
            let answer = get(&gateway, path, &line);
            assert!(
                answer.starts_with("HTTP/1.1 403"),
                "{header} {path}: {answer}"
            );
            let body: Value =
                serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap();
            assert_eq!(
                body["error"]["type"], "proxy_attribution_required",
                "{path}"
            );
            assert_eq!(
                body["error"]["code"], "PROXY_ATTRIBUTION_REQUIRED",
                "{path}"
            );
            assert!(
                body["error"]["next"]
                    .as_str()
                    .unwrap()
                    .contains("trusted_proxy"),
                "{path}"
            );
        }
        // Before the gate, as with the peer: a load balancer asks for it.
        assert!(
            get(&gateway, "/healthz", &line).starts_with("HTTP/1.1 200"),
            "{header}"
        );
        let post = format!(
            "POST /rpc/health HTTP/1.1\r\nHost: localhost\r\n{line}Content-Length: 2\r\nConnection: close\r\n\r\n{{}}"
        );
        assert!(gateway.http(&post).starts_with("HTTP/1.1 403"), "{header}");
        let (name, value) = header.split_once(": ").unwrap();
        match Client::dial_with(&gateway, &[(name, value)])
            .await
            .map(|_| ())
        {
            Err(WsError::Http(answer)) => assert_eq!(answer.status(), 403, "{header}"),
            other => panic!("{header}: {other:?}"),
        }
    }
    // Nor over the Unix sockets: no proxy of ours is there.
    let mut socket =
        std::os::unix::net::UnixStream::connect(gateway.state().join("run/agent.sock")).unwrap();
    let request = "GET / HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 203.0.113.9\r\nConnection: close\r\n\r\n";
    socket.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    assert!(get(&gateway, "/readyz", "").starts_with("HTTP/1.1 200"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_of_a_trusted_proxy_is_one_principal_with_no_more_than_configured() {
    let gateway = trusting(&[("required_headers", r#"["x-authenticated"]"#)]);
    let ok = [FORWARDED, ADA, ("x-authenticated", "1")];
    let mut client = Client::dial_with(&gateway, &ok).await.unwrap();
    let hello = client.hello(&Connect::bare().scopes(ALL)).await;
    assert_eq!(hello["auth"]["method"], "trusted-proxy");
    assert!(hello["auth"].get("deviceToken").is_none());
    let got = hello["auth"]["scopes"].to_string();
    for scope in ALL {
        let given = !["operator.admin", "operator.pairing"].contains(scope);
        assert_eq!(got.contains(&format!("\"{scope}\"")), given, "{got}");
    }
    client.get("status", json!({})).await;
    client.refused("device.pair.list", json!({})).await;
    // What the header names takes away, and gives nothing.
    for (said, read) in [
        ("operator.read", true),
        ("operator.admin", true),
        ("", false),
        ("x", false),
    ] {
        let headers = [ok[0], ok[1], ok[2], ("x-openclaw-scopes", said)];
        let mut client = Client::dial_with(&gateway, &headers).await.unwrap();
        let hello = client.hello(&Connect::bare().scopes(ALL)).await;
        let got = hello["auth"]["scopes"].to_string();
        assert_eq!(got.contains("operator.read"), read, "{said}: {got}");
        assert_eq!(
            got.contains("operator.write"),
            said == "operator.admin",
            "{said}: {got}"
        );
        assert!(
            !got.contains("admin") && !got.contains("pairing"),
            "{said}: {got}"
        );
    }
    // A device that comes along must have signed, and gets no token.
    let device = Device::new();
    let mut client = Client::dial_with(&gateway, &ok).await.unwrap();
    let hello = client
        .hello(&Connect::bare().scopes(READ).device(&device))
        .await;
    assert_eq!(hello["auth"]["method"], "trusted-proxy");
    let mut client = Client::dial_with(&gateway, &ok).await.unwrap();
    let lies = Connect::bare()
        .scopes(READ)
        .device(&device)
        .lie("signature", "AAAA");
    assert!(
        client.denied(&lies).await.0["details"]["code"]
            .as_str()
            .unwrap()
            .starts_with("DEVICE_AUTH_")
    );
    assert_eq!(gateway.json(&["devices", "list"])["paired"], json!([]));
    for (headers, code) in [
        (&ok[..2], "AUTH_IDENTITY_HEADER_REQUIRED"),
        (&[ok[0], ok[2]], "AUTH_IDENTITY_HEADER_REQUIRED"),
        (
            &[ok[0], ("x-user", ""), ok[2]],
            "AUTH_IDENTITY_HEADER_REQUIRED",
        ),
        (&[ok[0], ("x-user", "eve"), ok[2]], "AUTH_UNAUTHORIZED"),
        (&[ok[0], ("x-user", "Ada"), ok[2]], "AUTH_UNAUTHORIZED"),
        // Without a client in it no proxy has passed the request on.
        (&ok[1..], "AUTH_IDENTITY_HEADER_REQUIRED"),
    ] {
        assert_eq!(denied(&gateway, headers).await, code, "{headers:?}");
    }
    // In this mode the token of the first start opens nothing.
    let mut client = Client::dial(&gateway).await;
    let (error, _) = client.denied(&Connect::token().scopes(READ)).await;
    assert_eq!(error["details"]["code"], "AUTH_IDENTITY_HEADER_REQUIRED");
    // A client that the proxy cannot tell, or that claims to be this machine.
    for value in ["127.0.0.1", "unknown", "203.0.113.9, ", "10.0.0.1, ::1"] {
        let headers = [("x-forwarded-for", value), ok[1], ok[2]];
        let refused = Client::dial_with(&gateway, &headers).await.map(|_| ());
        assert!(
            matches!(refused, Err(WsError::Http(a)) if a.status() == 403),
            "{value}"
        );
    }
    // A browser has the page, through a proxy too.
    let headers = [ok[0], ok[1], ok[2], ("origin", "http://localhost")];
    assert_eq!(
        denied(&gateway, &headers).await,
        "CONTROL_UI_ORIGIN_NOT_ALLOWED"
    );
    assert!(!gateway.log().contains(TOKEN));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_configured_user_of_this_machine_is_a_proxy() {
    for uids in [vec![], vec![own_uid() + 1]] {
        let mut gateway = prepared(0, &[]);
        let listed = format!("{uids:?}");
        gateway.set("gateway.auth.trusted_proxy.loopback_uids", &listed);
        gateway.launch();
        let refused = Client::dial_with(&gateway, &[FORWARDED, ADA])
            .await
            .map(|_| ());
        assert!(
            matches!(refused, Err(WsError::Http(a)) if a.status() == 403),
            "{listed}"
        );
        // And the name alone is nobody's.
        assert_eq!(
            denied(&gateway, &[ADA]).await,
            "AUTH_IDENTITY_HEADER_REQUIRED"
        );
    }
}

/// The bug: it was told of a gateway password, which nobody has here.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_device_beside_a_trusted_proxy_is_told_what_it_needs() {
    let gateway = trusting(&[]);
    let (error, _) = Client::dial(&gateway)
        .await
        .denied(
            &Connect::bare()
                .device(&Device::new())
                .role("node")
                .auth(json!({})),
        )
        .await;
    assert_eq!(error["details"]["code"], "AUTH_TOKEN_MISSING", "{error}");
    let said = error["message"].as_str().unwrap();
    assert!(said.contains("setup code"), "{said}");
}

#[test]
fn trusted_proxy_settings_that_trust_nobody_or_nothing_do_not_start() {
    for (key, value, said) in [
        ("addresses", "[]", "no other is believed"),
        ("addresses", r#"["0.0.0.0/0"]"#, "is no address"),
        ("user_header", "", "name the header with the user"),
        ("user_header", "x user", "is no header's name"),
        ("allow_users", "[]", "name who is let in"),
        ("assertion_header", "x-jwt", "nobody checks"),
        ("certificates", r#"["00"]"#, "64 hexadecimal digits"),
        ("jwks_file", "/nonexistent", "needs assertion_header"),
    ] {
        let (exit, text) = prepared(own_uid(), &[(key, value)]).refused();
        assert!(exit == 2 && text.contains(said), "{key}: {exit} {text}");
    }
    let mut both = prepared(own_uid(), &[]);
    both.set("gateway.auth.mode", "token+trusted-proxy");
    assert_eq!(both.refused().0, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_assertion_must_verify_and_name_the_same_user() {
    let key = SigningKey::from_bytes(&[5; 32]);
    let x = URL_SAFE_NO_PAD.encode(key.verifying_key().as_bytes());
    let set = json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "kid": "k1", "x": x }] });
    let mut gateway = prepared(own_uid(), &[]);
    let file = gateway.home().join("jwks.json");
    for (key, value) in [
        ("jwks_file", file.to_str().unwrap()),
        ("assertion_header", "x-jwt"),
        ("issuer", "https://idp.example"),
        ("audience", "gate"),
    ] {
        gateway.set(&format!("gateway.auth.trusted_proxy.{key}"), value);
    }
    std::fs::write(&file, "{}").unwrap();
    let (exit, said) = gateway.refused();
    assert!(
        exit == 2 && said.contains("is no JSON Web Key Set"),
        "{said}"
    );
    std::fs::write(&file, set.to_string()).unwrap();
    gateway.launch();
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let token = |alg: &str, sub: &str, exp: u64, by: &SigningKey| {
        let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let claims = json!({ "iss": "https://idp.example", "aud": "gate", "sub": sub, "exp": exp });
        let text = format!(
            "{}.{}",
            part(json!({ "alg": alg, "kid": "k1" })),
            part(claims)
        );
        let signature = by.sign(text.as_bytes());
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature.to_bytes()))
    };
    let good = token("EdDSA", "ada", now + 600, &key);
    let mut client = Client::dial_with(&gateway, &[FORWARDED, ADA, ("x-jwt", &good)])
        .await
        .unwrap();
    let hello = client.hello(&Connect::bare().scopes(READ)).await;
    assert_eq!(hello["auth"]["scopes"], json!(READ));
    let other = SigningKey::from_bytes(&[6; 32]);
    for bad in [
        token("EdDSA", "ada", now + 600, &other),
        token("EdDSA", "ada", now - 600, &key),
        token("EdDSA", "eve", now + 600, &key),
        token("none", "ada", now + 600, &key),
        token("HS256", "ada", now + 600, &key),
        "x".to_owned(),
    ] {
        let headers = [FORWARDED, ADA, ("x-jwt", bad.as_str())];
        assert_eq!(
            denied(&gateway, &headers).await,
            "AUTH_VERIFIED_USER_REQUIRED",
            "{bad}"
        );
    }
    assert_eq!(
        denied(&gateway, &[FORWARDED, ADA]).await,
        "AUTH_IDENTITY_HEADER_REQUIRED"
    );
}

#[test]
fn a_proxys_client_certificate_is_asked_for_where_configured() {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_key = KeyPair::generate().unwrap();
    let ca = params.self_signed(&ca_key).unwrap();
    let (proxy, client) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let pin = hex(&Sha256::digest(proxy.subject_public_key_info()));
    let mut gateway = prepared(own_uid(), &[("certificates", &format!(r#"["{pin}"]"#))]);
    let (exit, said) = gateway.refused();
    assert!(exit == 2 && said.contains("client_ca_file"), "{said}");
    let file = gateway.home().join("ca.pem");
    std::fs::write(&file, ca.pem()).unwrap();
    gateway.set("gateway.tls.enabled", "true");
    gateway.set("gateway.tls.client_ca_file", file.to_str().unwrap());
    gateway.launch();
    let issuer = Issuer::new(params, ca_key);
    let ask = |key: &KeyPair| {
        let leaf = CertificateParams::new(vec!["x".to_owned()]).unwrap();
        let leaf = leaf.signed_by(key, &issuer).unwrap().der().clone();
        let config: Arc<_> = certified(&gateway, leaf, key);
        let mut stream = session(&gateway, config).unwrap();
        let request = "GET /readyz HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 203.0.113.9\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = vec![];
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    };
    assert!(ask(&proxy).starts_with("HTTP/1.1 200"));
    assert!(
        ask(&client).starts_with("HTTP/1.1 403"),
        "a certificate of another client"
    );
    // Plain from this machine there is no certificate.
    assert!(
        get(&gateway, "/readyz", "X-Forwarded-For: 203.0.113.9\r\n").starts_with("HTTP/1.1 403")
    );
}

async fn question(client: &mut Client, argv: &[&str]) -> String {
    let params = json!({
        "host": "gateway", "command": argv.join(" "), "commandArgv": argv, "agentId": "demo", "twoPhase": true,
    });
    let asked = client.get("exec.approval.request", params).await;
    asked["id"].as_str().unwrap().to_owned()
}

/// The bug: `allow_users` is read at start, and what a user had asked, answered and granted held on after leaving it.
#[tokio::test(flavor = "multi_thread")]
async fn what_rests_on_a_proxys_user_is_void_once_the_user_may_not_come_in_any_more() {
    let scopes = ["operator.approvals", "operator.act_as"];
    let both = ("allow_users", r#"["ada", "bo"]"#);
    let mut gateway = trusting(&[both, ("scopes", &json!(scopes).to_string())]);
    let mut local = admin(&gateway).await;
    let joined = async |user| {
        let headers = [FORWARDED, ("x-user", user)];
        let mut client = Client::dial_with(&gateway, &headers).await.unwrap();
        client.hello(&Connect::bare().scopes(&scopes)).await;
        client
    };
    let (mut ada, mut bo) = (joined("ada").await, joined("bo").await);
    let asked = question(&mut ada, &["uname", "-a"]).await;
    let [allowed, granted, by_bo, of_bo] = [
        question(&mut local, &["uname", "-r"]).await,
        question(&mut local, &["uname", "-s"]).await,
        question(&mut local, &["uname", "-m"]).await,
        question(&mut bo, &["uname", "-n"]).await,
    ];
    let word = |id: &str, decision| json!({"id": id, "decision": decision});
    for (id, decision) in [(&allowed, "allow-once"), (&granted, "allow-always")] {
        ada.get("exec.approval.resolve", word(id, decision)).await;
    }
    bo.get("exec.approval.resolve", word(&by_bo, "allow-always"))
        .await;
    let grants = async |client: &mut Client| {
        let listed = client.get("exec.approval.grants.list", json!({})).await;
        listed["grants"].as_array().unwrap().len()
    };
    // The same list: nothing ends with a start.
    gateway.crash_and_start();
    let mut operator = admin(&gateway).await;
    assert_eq!(grants(&mut operator).await, 2);
    gateway.set("gateway.auth.trusted_proxy.allow_users", r#"["bo"]"#);
    gateway.crash_and_start();
    let mut operator = admin(&gateway).await;
    for id in [&asked, &allowed, &granted] {
        let shown = operator.call("exec.approval.get", json!({"id": id})).await;
        assert!(
            shown["ok"] == false || shown["payload"]["status"] == "cancelled",
            "{shown}"
        );
    }
    assert_eq!(grants(&mut operator).await, 1);
    let shown = operator
        .get("exec.approval.get", json!({"id": of_bo}))
        .await;
    assert_eq!(shown["status"], "pending", "{shown}");
    // Nor does it come back with the user.
    gateway.set("gateway.auth.trusted_proxy.allow_users", both.1);
    gateway.crash_and_start();
    let mut operator = admin(&gateway).await;
    assert_eq!(grants(&mut operator).await, 1);
}

/// The bug: all clients of a proxy had one address' budget before they say who they are, and one guesser shut out the rest.
#[tokio::test(flavor = "multi_thread")]
async fn a_guesser_behind_a_proxy_shuts_out_nobody_else_there() {
    let mut gateway = prepared(own_uid(), &[]);
    gateway.set("gateway.limits.unauthenticated_per_address", "4");
    gateway.launch();
    let headers = |client| [("x-forwarded-for", client), ADA];
    let honest = headers("198.51.100.7");
    let mut honest = Client::dial_with(&gateway, &honest).await.unwrap();
    let guesser = headers("203.0.113.9");
    let mut guessers = vec![];
    for _ in 0..40 {
        guessers.push(Client::dial_with(&gateway, &guesser).await.unwrap());
    }
    // It pays for itself.
    let (code, why) = guessers[0].closed().await;
    assert_eq!((code, why.as_str()), (1008, "made room for a newcomer"));
    honest.hello(&Connect::bare().scopes(READ)).await;
    honest.get("status", json!({})).await;
}

/// Assertions of this issuer, for the user and by the key.
fn signed(kid: &str, by: &SigningKey) -> String {
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let claims =
        json!({ "iss": "https://idp.example", "aud": "gate", "sub": "ada", "exp": now + 600 });
    let header = part(json!({ "alg": "EdDSA", "kid": kid }));
    let text = format!("{header}.{}", part(claims));
    let signature = by.sign(text.as_bytes());
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature.to_bytes()))
}

/// The bug: the key set was read at start only, and an issuer that changed its key shut everybody out until the next.
#[tokio::test(flavor = "multi_thread")]
async fn a_changed_key_set_is_read_again_when_a_key_is_named_that_nobody_knows_and_a_broken_one_is_not_taken()
 {
    let keys = [5, 6, 7].map(|seed| SigningKey::from_bytes(&[seed; 32]));
    let set = |of: &[usize]| {
        let all = of.iter().map(|n| {
            let x = URL_SAFE_NO_PAD.encode(keys[*n].verifying_key().as_bytes());
            json!({ "kty": "OKP", "crv": "Ed25519", "kid": format!("k{n}"), "x": x })
        });
        json!({ "keys": all.collect::<Vec<_>>() }).to_string()
    };
    let mut gateway = prepared(own_uid(), &[]);
    let file = gateway.home().join("jwks.json");
    for (key, value) in [
        ("jwks_file", file.to_str().unwrap()),
        ("assertion_header", "x-jwt"),
        ("issuer", "https://idp.example"),
        ("audience", "gate"),
    ] {
        gateway.set(&format!("gateway.auth.trusted_proxy.{key}"), value);
    }
    std::fs::write(&file, set(&[0])).unwrap();
    gateway.launch();
    let comes_in = async |n: usize| {
        let token = signed(&format!("k{n}"), &keys[n]);
        let headers = [FORWARDED, ADA, ("x-jwt", token.as_str())];
        let mut client = Client::dial_with(&gateway, &headers).await.unwrap();
        let connect = Connect::bare().scopes(READ);
        let answer = client
            .call("connect", connect.params(&client.nonce, client.ts))
            .await;
        answer["ok"] == true
    };
    // Looks at the file are two seconds apart.
    let later = || tokio::time::sleep(std::time::Duration::from_millis(2_200));
    later().await;
    assert!(comes_in(0).await && !comes_in(1).await);
    // As issuers do it: a new file in the place of the old one.
    let replace = |text: String| {
        let new = file.with_extension("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, &file).unwrap();
    };
    replace(set(&[0, 1]));
    later().await;
    assert!(comes_in(1).await && comes_in(0).await);
    for broken in [r#"{"keys": [{"kty": "OKP"}]}"#, "", "{}"] {
        replace(broken.to_owned());
        later().await;
        assert!(!comes_in(2).await && comes_in(1).await && comes_in(0).await);
    }
    assert!(gateway.log().contains("the old keys stay"));
    // What was taken out is not there any more.
    replace(set(&[2]));
    later().await;
    assert!(comes_in(2).await && !comes_in(0).await && !comes_in(1).await);
    // The bug: a pipe in its place was waited for without end.
    std::fs::remove_file(&file).unwrap();
    let fifo = std::process::Command::new("mkfifo").arg(&file).status();
    assert!(fifo.unwrap().success());
    later().await;
    assert!(!comes_in(0).await && comes_in(2).await);
    // The bug: the last key went on verifying once it was withdrawn, by whatever set without a usable key.
    for withdrawn in [
        r#"{"keys": []}"#.to_owned(),
        set(&[2]).replace("\"kty\"", "\"use\":\"enc\",\"kty\""),
    ] {
        replace(set(&[2]));
        later().await;
        assert!(!comes_in(0).await && comes_in(2).await);
        replace(withdrawn);
        later().await;
        // Somebody names an unknown key, and the set is looked at.
        assert!(!comes_in(0).await && !comes_in(2).await);
    }
    replace(set(&[2]));
    later().await;
    assert!(comes_in(2).await);
    let log = gateway.json(&["audit", "query", "--action", "auth.proxy_keys"]);
    assert!(log.to_string().contains("auth.proxy_keys"), "{log}");
}
