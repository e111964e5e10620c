//! TLS 1.3 on the TCP door, spoken by a rustls client.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use portcullis::tls::{Pin, client_config};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, NamedGroup, ProtocolVersion, RootCertStore, StreamOwned,
};
use serde_json::json;

use crate::support::gateway::{Gateway, TOKEN};
use crate::support::ws::{Client, Connect};

pub(super) type Tls = StreamOwned<ClientConnection, std::net::TcpStream>;
const PROBE: &str = "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
const ON: (&str, &str) = ("gateway.tls.enabled", "true");

/// A TLS session, its handshake done.
pub(super) fn session(gateway: &Gateway, config: Arc<ClientConfig>) -> std::io::Result<Tls> {
    session_over(gateway.socket(), config)
}

/// The same over this socket.
pub(super) fn session_over(
    socket: std::net::TcpStream,
    config: Arc<ClientConfig>,
) -> std::io::Result<Tls> {
    let name = ServerName::try_from("localhost").unwrap();
    let client = ClientConnection::new(config, name).unwrap();
    let mut stream = StreamOwned::new(client, socket);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(stream)
}

fn ask(stream: &mut Tls) -> String {
    let mut answer = vec![];
    // A refused client certificate is told after the client's side of the handshake is done.
    if stream.write_all(PROBE.as_bytes()).is_ok() {
        let _ = stream.read_to_end(&mut answer);
    }
    String::from_utf8_lossy(&answer).into_owned()
}

fn shown(gateway: &Gateway) -> serde_json::Value {
    gateway.json(&["status"])["portcullis"]["tls"].clone()
}

fn pin(gateway: &Gateway) -> Pin {
    shown(gateway)["spkiSha256"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap()
}

pub(super) fn pinned(gateway: &Gateway) -> Arc<ClientConfig> {
    client_config(Some(pin(gateway))).unwrap()
}

/// With a client certificate.
pub(super) fn certified(
    gateway: &Gateway,
    certificate: CertificateDer<'static>,
    key: &KeyPair,
) -> Arc<ClientConfig> {
    let mut config = (*pinned(gateway)).clone();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let signing = provider.key_provider.load_private_key(key).unwrap();
    let certified = rustls::sign::CertifiedKey::new(vec![certificate], signing);
    config.client_auth_cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(certified));
    Arc::new(config)
}

/// A self-made certificate in two files of the gateway's home.
fn write(gateway: &Gateway, key: &KeyPair) -> (PathBuf, PathBuf) {
    let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let (cert_file, key_file) = (gateway.home().join("c.pem"), gateway.home().join("k.pem"));
    std::fs::write(&cert_file, params.self_signed(key).unwrap().pem()).unwrap();
    let mut file = std::fs::OpenOptions::new();
    let mut file = file
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&key_file)
        .unwrap();
    file.write_all(key.serialize_pem().as_bytes()).unwrap();
    (cert_file, key_file)
}

fn hang_up(gateway: &Gateway) {
    let pid = rustix::process::Pid::from_raw(gateway.pid().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
}

/// Waits until `status` says so of its TLS.
fn until(gateway: &Gateway, what: &str, is: impl Fn(&serde_json::Value) -> bool) {
    let end = Instant::now() + Duration::from_mins(1);
    while !is(&shown(gateway)) {
        assert!(
            Instant::now() < end,
            "{what}: {}\n{}",
            shown(gateway),
            gateway.log()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_made_certificate_is_pinned_tls_is_1_3_and_ml_kem_is_agreed_upon() {
    let mut gateway = Gateway::with(&[ON]);
    let mut stream = session(&gateway, pinned(&gateway)).unwrap();
    assert_eq!(
        stream.conn.protocol_version(),
        Some(ProtocolVersion::TLSv1_3)
    );
    let group = stream.conn.negotiated_key_exchange_group().unwrap();
    assert_eq!(group.name(), NamedGroup::X25519MLKEM768);
    assert_eq!(stream.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
    assert!(ask(&mut stream).ends_with(r#"{"ok":true,"status":"live"}"#));
    // Plain, for this machine, on the same port.
    assert!(gateway.http(PROBE).starts_with("HTTP/1.1 200"));
    // The key is sealed on disk, and the next start has it again.
    let sealed = std::fs::read(gateway.state().join("keys/tls.key")).unwrap();
    assert!(sealed.starts_with(b"PCBK"));
    let before = pin(&gateway);
    assert_eq!(gateway.stop(), 0);
    gateway.launch();
    assert_eq!(before, pin(&gateway));
}

#[test]
fn a_made_certificate_outlives_a_start_for_those_who_pin_it_whole_and_no_other_is_taken_for_it() {
    let mut gateway = Gateway::with(&[ON]);
    let leaf = |gateway: &Gateway| gateway.json(&["tls", "show"])["sha256"].clone();
    let again = |gateway: &mut Gateway| {
        assert_eq!(gateway.stop(), 0);
        gateway.launch();
        leaf(gateway)
    };
    let (first, key) = (leaf(&gateway), pin(&gateway));
    assert_eq!(again(&mut gateway), first);
    // A person's word makes it anew, and so do other names.
    let second = gateway.json(&["tls", "reload"])["sha256"].clone();
    assert_ne!(second, first);
    assert_eq!(again(&mut gateway), second);
    gateway.set("gateway.hosts", r#"["gate.example", "[0:0::7]"]"#);
    let third = again(&mut gateway);
    assert_ne!(third, second);
    assert_eq!(again(&mut gateway), third);
    // What lies in its place, of another key or none at all, is not served.
    let file = gateway.state().join("keys/tls.crt");
    let kept = std::fs::read(&file).unwrap();
    let names = ["localhost", "127.0.0.1", "::1", "gate.example", "::7"];
    let foreign = CertificateParams::new(names.map(str::to_owned)).unwrap();
    let foreign = foreign.self_signed(&KeyPair::generate().unwrap()).unwrap();
    for other in [&foreign.der()[..], &kept[..kept.len() / 2], b""] {
        std::fs::write(&file, other).unwrap();
        let made = again(&mut gateway);
        assert_ne!(made, third);
        assert_eq!((again(&mut gateway), pin(&gateway)), (made, key));
    }
}

#[test]
fn another_key_another_authority_and_an_older_version_are_refused() {
    let gateway = Gateway::with(&[ON]);
    let right = shown(&gateway)["spkiSha256"].as_str().unwrap().to_owned();
    let wrong = if right.starts_with('0') { "1" } else { "0" }.to_owned() + &right[1..];
    let wrong = client_config(Some(wrong.parse().unwrap())).unwrap();
    assert!(session(&gateway, wrong).is_err());
    let mut roots = RootCertStore::empty();
    let key = KeyPair::generate().unwrap();
    let other = CertificateParams::new(vec!["localhost".to_owned()])
        .unwrap()
        .self_signed(&key)
        .unwrap();
    roots.add(other.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    assert!(session(&gateway, Arc::new(config)).is_err());
    // A client hello that offers TLS 1.2 at most: a record, a hello, random, no session, one suite, no compression.
    let mut hello = vec![0x16, 3, 1, 0, 45, 1, 0, 0, 41, 3, 3];
    hello.extend([7; 32]);
    hello.extend([0, 0, 2, 0xc0, 0x2f, 1, 0]);
    let mut socket = gateway.socket();
    socket.write_all(&hello).unwrap();
    let mut answer = vec![];
    let _ = socket.read_to_end(&mut answer);
    assert_eq!(
        answer.first(),
        Some(&0x15),
        "an alert and the end: {answer:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wire_is_the_same_over_tls_and_the_kernel_still_names_the_peer() {
    let gateway = Gateway::with(&[ON]);
    let tcp = tokio::net::TcpStream::connect(("127.0.0.1", gateway.port()))
        .await
        .unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let connector = tokio_rustls::TlsConnector::from(pinned(&gateway));
    let tls = connector.connect(name, tcp).await.unwrap();
    let mut client = Client::over(Box::new(tls), gateway.port(), &[])
        .await
        .unwrap();
    // Scopes without a device: only for a process that the kernel knows for an operator's.
    let hello = client
        .hello(&Connect::token().scopes(&["operator.read"]))
        .await;
    assert_eq!(hello["auth"]["scopes"], json!(["operator.read"]));
    let status = client.get("status", json!({})).await;
    let listens = status["portcullis"]["listeners"][0].as_str().unwrap();
    assert!(listens.starts_with("wss://"), "{listens}");
    assert!(!gateway.log().contains(TOKEN));
}

#[test]
fn a_reload_keeps_open_sockets_and_a_broken_file_keeps_the_old_certificate() {
    let mut gateway = Gateway::prepared(&[ON]);
    let (cert, key) = write(&gateway, &KeyPair::generate().unwrap());
    gateway.set("gateway.tls.cert_file", cert.to_str().unwrap());
    gateway.set("gateway.tls.key_file", key.to_str().unwrap());
    gateway.launch();
    let first = pin(&gateway);
    let mut open = session(&gateway, pinned(&gateway)).unwrap();
    std::fs::write(&cert, "-----BEGIN CERTIFICATE-----\nbroken\n").unwrap();
    hang_up(&gateway);
    until(&gateway, "the failure is shown", |tls| {
        tls["reloadError"].is_string()
    });
    assert!(gateway.log().contains("the old one is kept"));
    assert_eq!(first, pin(&gateway));
    session(&gateway, client_config(Some(first)).unwrap()).unwrap();
    write(&gateway, &KeyPair::generate().unwrap());
    hang_up(&gateway);
    until(&gateway, "the new one is served", |tls| {
        tls["reloadError"].is_null()
    });
    let second = pin(&gateway);
    assert_ne!(first, second);
    session(&gateway, client_config(Some(second)).unwrap()).unwrap();
    assert!(session(&gateway, client_config(Some(first)).unwrap()).is_err());
    assert!(ask(&mut open).ends_with(r#"{"ok":true,"status":"live"}"#));
}

#[test]
fn a_client_certificate_is_demanded_where_an_authority_is_set() {
    let mut gateway = Gateway::prepared(&[ON]);
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_key = KeyPair::generate().unwrap();
    let ca = params.self_signed(&ca_key).unwrap();
    let file = gateway.home().join("ca.pem");
    std::fs::write(&file, ca.pem()).unwrap();
    gateway.set("gateway.tls.client_ca_file", file.to_str().unwrap());
    gateway.launch();
    let issuer = Issuer::new(params, ca_key);
    let key = KeyPair::generate().unwrap();
    let client = || CertificateParams::new(vec!["client".to_owned()]).unwrap();
    let good = client().signed_by(&key, &issuer).unwrap().der().clone();
    let bad = client().self_signed(&key).unwrap().der().clone();
    let with = |certificate: Option<CertificateDer<'static>>| {
        let config = match certificate {
            Some(certificate) => certified(&gateway, certificate, &key),
            None => pinned(&gateway),
        };
        session(&gateway, config)
            .map(|mut s| ask(&mut s))
            .unwrap_or_default()
    };
    assert!(with(Some(good)).starts_with("HTTP/1.1 200"));
    assert_eq!(with(Some(bad)), "");
    assert_eq!(with(None), "");
}

#[test]
fn a_handshake_that_does_not_go_on_is_ended_in_the_time_of_a_header() {
    let gateway = Gateway::with(&[ON, ("gateway.limits.header_ms", "700")]);
    for sent in [&[][..], &[0x16], &[0x16, 3, 1, 2, 0, 1]] {
        let mut socket = gateway.socket();
        socket.write_all(sent).unwrap();
        let mut rest = vec![];
        // The socket's own time-out is an error, the other end's close is not.
        assert_eq!(
            socket.read_to_end(&mut rest).unwrap_or(usize::MAX),
            0,
            "{sent:?}"
        );
    }
}

#[test]
fn a_start_with_tls_never_serves_without_it() {
    let mut gateway = Gateway::prepared(&[ON]);
    let (cert, key) = write(&gateway, &KeyPair::generate().unwrap());
    gateway.set("gateway.tls.cert_file", cert.to_str().unwrap());
    let (exit, said) = gateway.refused();
    assert!(
        exit == 2 && said.contains("gateway.tls.key_file"),
        "{exit} {said}"
    );
    gateway.set("gateway.tls.key_file", key.to_str().unwrap());
    std::fs::write(&cert, "nothing").unwrap();
    let (exit, said) = gateway.refused();
    assert!(
        exit == 2 && said.contains("gateway.tls.cert_file"),
        "{exit} {said}"
    );
    write(&gateway, &KeyPair::generate().unwrap());
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let (exit, said) = gateway.refused();
    assert!(exit == 4 && said.contains("chmod 600"), "{exit} {said}");
}

#[test]
fn beyond_loopback_without_tls_is_refused_at_the_start() {
    let gateway = Gateway::prepared(&[("gateway.bind", "0.0.0.0")]);
    let (exit, said) = gateway.refused();
    assert!(
        exit == 2 && said.contains("gateway.tls.enabled"),
        "{exit} {said}"
    );
}

#[test]
fn with_all_sockets_taken_a_newcomer_is_told_nothing_before_its_first_byte_is_known() {
    let gateway = Gateway::with(&[ON, ("gateway.limits.sockets", "1")]);
    let mut first = session(&gateway, pinned(&gateway)).unwrap();
    let mut rest = vec![];
    gateway.socket().read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
    assert!(ask(&mut first).starts_with("HTTP/1.1 200"));
}

#[test]
fn the_page_is_served_over_tls_and_plain_to_this_machine_each_with_its_own_origin() {
    let gateway = Gateway::with(&[ON, ("gateway.hosts", r#"["gate.example", "[fe80::1]"]"#)]);
    let port = gateway.port();
    let login = |scheme: &str| {
        format!(
            "POST /login HTTP/1.1\r\nHost: gate.example:{port}\r\nOrigin: {scheme}://gate.example:{port}\r\n\
             Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 6\r\nConnection: close\r\n\r\ncode=x"
        )
    };
    let tls = |scheme| {
        let mut answer = vec![];
        let mut stream = session(&gateway, pinned(&gateway)).unwrap();
        stream.write_all(login(scheme).as_bytes()).unwrap();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    };
    // A form of the page itself gets as far as its code; another's does not.
    let (own, foreign) = ("name=\"code\"", "was not sent by this page");
    assert!(tls("https").contains(own));
    assert!(tls("http").contains(foreign));
    assert!(gateway.http(&login("http")).contains(own));
    assert!(gateway.http(&login("https")).contains(foreign));
}

#[test]
fn without_tls_a_hang_up_ends_the_gateway_in_order() {
    let mut gateway = Gateway::with(&[]);
    hang_up(&gateway);
    assert_eq!(gateway.ends(Duration::from_mins(1)), Some(0));
}

#[test]
fn the_certificate_is_shown_and_read_again_by_command_and_each_reload_is_recorded() {
    let mut gateway = Gateway::prepared(&[ON]);
    let (cert, key) = write(&gateway, &KeyPair::generate().unwrap());
    gateway.set("gateway.tls.cert_file", cert.to_str().unwrap());
    gateway.set("gateway.tls.key_file", key.to_str().unwrap());
    gateway.launch();
    let show = || gateway.json(&["tls", "show"]);
    let first = show();
    assert_eq!(first["spkiSha256"], shown(&gateway)["spkiSha256"]);
    assert_eq!(first["names"], json!(["localhost"]));
    assert_eq!(first["certFile"], cert.to_str().unwrap());
    let now = std::time::SystemTime::now();
    let now = now
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_millis();
    let at = |name: &str| u128::from(first[name].as_u64().unwrap());
    assert!(at("notBeforeMs") < now && now < at("notAfterMs"), "{first}");
    let mut open = session(&gateway, pinned(&gateway)).unwrap();
    std::fs::write(&cert, "-----BEGIN CERTIFICATE-----\nbroken\n").unwrap();
    let output = gateway.cli(&["tls", "reload"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("CERTIFICATE_INVALID") && said.contains("gateway.tls.cert_file"),
        "{said}"
    );
    let kept = show();
    assert_eq!(kept["spkiSha256"], first["spkiSha256"]);
    assert!(kept["reloadError"].is_string());
    write(&gateway, &KeyPair::generate().unwrap());
    let second = gateway.json(&["tls", "reload"]);
    assert_ne!(second["spkiSha256"], first["spkiSha256"]);
    assert_eq!(second["reloadError"], json!(null));
    let wanted = second["spkiSha256"].as_str().unwrap().parse().unwrap();
    session(&gateway, client_config(Some(wanted)).unwrap()).unwrap();
    assert!(ask(&mut open).ends_with(r#"{"ok":true,"status":"live"}"#));
    hang_up(&gateway);
    let end = Instant::now() + Duration::from_mins(1);
    let records = loop {
        let records = gateway
            .json(&["audit", "query", "--action", "tls.reload"])
            .to_string();
        if records.contains("SIGHUP") || Instant::now() > end {
            break records;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    for word in [
        "command",
        "SIGHUP",
        "CERTIFICATE_INVALID",
        "gateway.tls.cert_file",
    ] {
        assert!(records.contains(word), "{word}: {records}");
    }
}

#[test]
fn without_tls_there_is_no_certificate_to_show() {
    let gateway = Gateway::start();
    let output = gateway.cli(&["tls", "show"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stderr).contains("TLS_OFF"));
}
