//! Tunnels: TLS to the very host that was named, and nothing else.

use std::sync::Arc;

use portcullis_actors::sandbox_pool::egress::EgressLimits;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use super::upstream::{Authority, Upstream};
use super::{Answer, PATIENCE, Scene};

const OWN: &[&str] = &["127.0.0.0/8"];
const ESTABLISHED: &str = "HTTP/1.1 200 Connection established\r\n\r\n";

fn vector(width: usize, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap().to_be_bytes();
    [&length[4 - width..], data].concat()
}

fn name(name: &str) -> (u16, Vec<u8>) {
    (
        0,
        vector(2, &[vec![0], vector(2, name.as_bytes())].concat()),
    )
}

/// A ClientHello in records of so many bytes.
fn hello(extensions: &[(u16, Vec<u8>)], each: usize) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend_from_slice(&[7; 32]);
    body.extend(vector(1, &[9; 32]));
    body.extend(vector(2, &[0x13, 1]));
    body.extend(vector(1, &[0]));
    let extensions: Vec<u8> = extensions
        .iter()
        .flat_map(|(kind, data)| [kind.to_be_bytes().to_vec(), vector(2, data)].concat())
        .collect();
    body.extend(vector(2, &extensions));
    [vec![1], vector(3, &body)]
        .concat()
        .chunks(each)
        .flat_map(|part| [vec![22, 3, 1], vector(2, part)].concat())
        .collect()
}

/// A tunnel that stands.
async fn tunnel(scene: &Scene, at: &str) -> UnixStream {
    let mut stream = scene.dial().await;
    let request = format!("CONNECT {at} HTTP/1.1\r\nHost: {at}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let answer = some(&mut stream, ESTABLISHED.len()).await;
    assert_eq!(String::from_utf8_lossy(&answer), ESTABLISHED);
    stream
}

/// The answer to a request over TLS, as a client that verifies.
async fn secure(
    scene: &Scene,
    at: &str,
    sni: &str,
    client: &Arc<ClientConfig>,
) -> std::io::Result<String> {
    let stream = tunnel(scene, at).await;
    let sni = ServerName::try_from(sni.to_owned()).unwrap();
    let connector = tokio_rustls::TlsConnector::from(client.clone());
    let asking = async {
        let mut stream = connector.connect(sni, stream).await?;
        let request = format!("GET /tls HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let asked = tokio::time::timeout(PATIENCE, asking).await;
    asked.expect("it ends")
}

/// So many bytes of an answer.
async fn some(stream: &mut UnixStream, bytes: usize) -> Vec<u8> {
    let mut said = vec![0; bytes];
    let read = tokio::time::timeout(PATIENCE, stream.read_exact(&mut said)).await;
    read.expect("an answer").unwrap();
    said
}

async fn scene(rules: &[String]) -> Scene {
    let scene = Scene::new(rules, OWN, EgressLimits::default()).await;
    for name in ["allowed.test", "a.wild.test", "denied.test"] {
        scene.names.set(name, &[&["127.0.0.1"]]);
    }
    scene
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_to_the_named_host_passes_unopened_with_one_hello_or_two() {
    for few in [false, true] {
        let authority = Authority::of(&["allowed.test", "*.wild.test"], few);
        let host = Upstream::tls(&authority).await;
        let at = format!("allowed.test:{}", host.port);
        let scene = scene(&[at.clone(), format!("*.wild.test:{}", host.port)]).await;
        let answer = secure(&scene, &at, "allowed.test", &authority.client).await;
        assert!(answer.unwrap().ends_with("hello"), "second hello: {few}");
        let wild = format!("a.wild.test:{}", host.port);
        let answer = secure(&scene, &wild, "a.wild.test", &authority.client).await;
        assert!(answer.unwrap().ends_with("hello"));
        let seen = host.seen.requests();
        assert_eq!(
            (seen[0].as_str(), seen[2].as_str()),
            ("sni allowed.test", "sni a.wild.test")
        );
        let allowed = scene.records("egress.allow", 2).await;
        assert_eq!(allowed[0]["detail"]["way"], "connect");
        assert_eq!(
            allowed[1]["rule"],
            format!("egress *.wild.test:{}", host.port)
        );
        let ends = scene.records("egress.end", 2).await;
        for end in &ends {
            assert_eq!(end["detail"]["result"], "done", "{end:#}");
            assert!(
                end["detail"]["sent"]
                    .as_str()
                    .unwrap()
                    .parse::<u32>()
                    .unwrap()
                    > 200
            );
        }
        scene.tree.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_name_in_the_hello_ends_the_tunnel_before_the_host_hears_a_byte() {
    let authority = Authority::of(&["allowed.test", "denied.test"], false);
    let host = Upstream::tls(&authority).await;
    let at = format!("allowed.test:{}", host.port);
    let scene = scene(std::slice::from_ref(&at)).await;
    let refused = secure(&scene, &at, "denied.test", &authority.client).await;
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("UnrecognisedName"), "{refused}");
    let denied = &scene.records("egress.deny", 1).await[0];
    assert_eq!(denied["detail"]["reason"], "sni-mismatch");
    assert_eq!(denied["object"], at);
    assert_eq!(denied["decision"], "deny");
    let end = &scene.records("egress.end", 1).await[0];
    assert_eq!(
        (&end["detail"]["result"], &end["detail"]["sent"]),
        (&"sni-mismatch".into(), &"0".into())
    );
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    assert_eq!(host.seen.requests(), ["no handshake"]);
    scene.tree.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_does_not_begin_as_tls_to_that_host_is_closed_with_its_reason() {
    let host = Upstream::raw(b"HTTP/1.1 200 OK\r\n\r\n").await;
    let at = format!("allowed.test:{}", host.port);
    let scene = scene(std::slice::from_ref(&at)).await;
    let allowed = name("allowed.test");
    let versions = (43, vec![2, 3, 4]);
    let ech = |kind| (kind, vec![0; 60]);
    let whole = |extensions: &[_]| hello(extensions, 16_384);
    let cases: Vec<(Vec<u8>, &str, u8)> = vec![
        (
            b"GET / HTTP/1.1\r\nHost: denied.test\r\n\r\n".to_vec(),
            "not-tls",
            10,
        ),
        (b"SSH-2.0-OpenSSH_9\r\n".to_vec(), "not-tls", 10),
        (b"\x05\x01\x00".to_vec(), "not-tls", 10),
        (whole(std::slice::from_ref(&versions)), "sni-missing", 109),
        (
            whole(&[versions.clone(), name("denied.test")]),
            "sni-mismatch",
            112,
        ),
        (
            whole(&[name("allowed.test.denied.test")]),
            "sni-mismatch",
            112,
        ),
        (whole(&[name("xallowed.test")]), "sni-mismatch", 112),
        (
            whole(&[allowed.clone(), name("denied.test")]),
            "hello-malformed",
            50,
        ),
        (whole(&[name("allowed.test.")]), "hello-malformed", 50),
        (whole(&[name("127.0.0.1")]), "hello-malformed", 50),
        (
            whole(&[name("allowed.test\0denied.test")]),
            "hello-malformed",
            50,
        ),
        (whole(&[allowed.clone(), ech(0xfe0d)]), "ech", 49),
        (whole(&[ech(0xfe0d), allowed.clone()]), "ech", 49),
        (whole(&[allowed.clone(), ech(0xffce)]), "ech", 49),
        // In pieces: the name lies across two records, and is another's all the same.
        (
            hello(&[versions.clone(), name("denied.test")], 70),
            "sni-mismatch",
            112,
        ),
        (
            hello(&[versions.clone(), name("denied.test")], 3),
            "sni-mismatch",
            112,
        ),
        (
            [
                &[23, 3, 3, 0, 1, 0][..],
                &whole(std::slice::from_ref(&allowed)),
            ]
            .concat(),
            "not-tls",
            10,
        ),
        (
            [
                &[22, 3, 1, 0, 0][..],
                &whole(std::slice::from_ref(&allowed)),
            ]
            .concat(),
            "hello-malformed",
            50,
        ),
    ];
    let count = cases.len();
    for (at_case, (bytes, word, alert)) in cases.into_iter().enumerate() {
        for piece in [1, bytes.len()] {
            let mut stream = tunnel(&scene, &at).await;
            for piece in bytes.chunks(piece) {
                if stream.write_all(piece).await.is_err() {
                    break;
                }
            }
            let mut said = Vec::new();
            let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut said))
                .await
                .unwrap();
            assert_eq!(said, [21, 3, 3, 0, 2, 2, alert], "{word}");
        }
        let denied = scene.records("egress.deny", 2 * at_case + 2).await;
        assert_eq!(denied.last().unwrap()["detail"]["reason"], word);
    }
    assert!(
        host.seen.requests().is_empty(),
        "{:?}",
        host.seen.requests()
    );
    println!("egress hellos: {count} kinds, 0 bytes passed");
    scene.tree.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hello_in_pieces_passes_whole() {
    let host = Upstream::raw(&[21, 3, 3, 0, 2, 2, 40]).await;
    let at = format!("allowed.test:{}", host.port);
    let scene = scene(std::slice::from_ref(&at)).await;
    for each in [3, 20, 70, 16_384] {
        let bytes = hello(&[(43, vec![2, 3, 4]), name("Allowed.Test")], each);
        let mut stream = tunnel(&scene, &at).await;
        for piece in bytes.chunks(5) {
            stream.write_all(piece).await.unwrap();
        }
        let said = some(&mut stream, 7).await;
        assert_eq!(said, [21, 3, 3, 0, 2, 2, 40]);
    }
    assert_eq!(host.seen.connections(), 4);
    scene.tree.stop().await;
}

/// A server that asks for a second hello, whoever the second names.
const RETRY: &[u8] = &[
    22, 3, 3, 0, 44, 2, 0, 0, 40, 3, 3, 0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d,
    0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91, 0xc2, 0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e,
    0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c, 0, 0x13, 1, 0, 0, 0,
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_hello_that_names_another_host_goes_nowhere_asked_for_or_not() {
    let spacer = [20, 3, 3, 0, 1, 1];
    for ahead in [false, true] {
        let host = Upstream::raw(RETRY).await;
        let at = format!("allowed.test:{}", host.port);
        let scene = scene(std::slice::from_ref(&at)).await;
        let first = hello(&[name("allowed.test")], 16_384);
        let second = [&spacer[..], &hello(&[name("denied.test")], 16_384)].concat();
        let mut stream = tunnel(&scene, &at).await;
        if ahead {
            // Before the server has asked: it waits, and is looked at then.
            stream
                .write_all(&[&first[..], &second].concat())
                .await
                .unwrap();
        } else {
            stream.write_all(&first).await.unwrap();
        }
        let said = some(&mut stream, RETRY.len()).await;
        assert_eq!(said, RETRY);
        if !ahead {
            stream.write_all(&second).await.unwrap();
        }
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "the tunnel stays: {rest:?}");
        assert_eq!(rest, [21, 3, 3, 0, 2, 2, 112]);
        let denied = scene.records("egress.deny", 1).await;
        assert_eq!(denied[0]["detail"]["reason"], "sni-mismatch");
        let seen = host.seen.requests();
        assert!(
            seen.len() == 1 && seen[0].contains("allowed.test") && !seen[0].contains("denied"),
            "{seen:?}"
        );
        scene.tree.stop().await;
    }
}

/// The bug: a tunnel whose host says nothing was held for as long as that, whoever had left: 64 of them closed a box's way out, and
/// no record said how they ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_whose_client_has_left_gives_its_place_back_and_says_how_it_ended() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = format!("allowed.test:{}", silent.local_addr().unwrap().port());
    let scene = scene(std::slice::from_ref(&at)).await;
    for _ in 0..3 {
        let mut stream = tunnel(&scene, &at).await;
        let hello = hello(&[name("allowed.test")], 16_384);
        stream.write_all(&hello).await.unwrap();
    }
    for record in scene.records("egress.end", 3).await {
        assert_eq!(record["detail"]["result"], "reset");
    }
    // One that stays is closed in order.
    let mut stream = tunnel(&scene, &at).await;
    let hello = hello(&[name("allowed.test")], 16_384);
    stream.write_all(&hello).await.unwrap();
    scene.records("egress.allow", 4).await;
    scene.tree.stop().await;
    let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await;
    assert!(ended.is_ok(), "the tunnel stays");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_tunnel_begins_with_may_come_with_its_request() {
    let authority = Authority::of(&["allowed.test"], false);
    let host = Upstream::tls(&authority).await;
    let at = format!("allowed.test:{}", host.port);
    let scene = scene(std::slice::from_ref(&at)).await;
    let request = format!("CONNECT {at} HTTP/1.1\r\nHost: {at}\r\n\r\n");
    let other = hello(&[name("denied.test")], 16_384);
    let answer: Answer = scene.ask(&[request.as_bytes(), &other].concat()).await;
    assert!(answer.0.starts_with(ESTABLISHED), "{answer:?}");
    let denied = scene.records("egress.deny", 1).await;
    assert_eq!(denied[0]["detail"]["reason"], "sni-mismatch");
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    assert_eq!(host.seen.requests(), ["no handshake"]);
    scene.tree.stop().await;
}
