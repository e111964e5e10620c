//! The corpus of the issue, item by item and side by side: what was tried, what was answered, how many bytes came out at a host that must hear
//! nothing and how many names were looked up, and the same request for a host that is allowed.

use std::collections::BTreeMap;

use portcullis_actors::sandbox_pool::egress::EgressLimits;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::upstream::Upstream;
use super::{Answer, PATIENCE, Scene};

/// How a host is named in a request. `{}` stands for host and port.
#[derive(Clone, Copy)]
enum Form {
    Connect,
    Get,
    /// A request as it is, for the host, then for the other one.
    Other(&'static str, &'static str),
    /// A tunnel to the allowed host, and a hello in it.
    Hello(Made),
}

/// A hello for this name.
type Made = fn(&str) -> Vec<u8>;

struct Item {
    part: &'static str,
    form: Form,
    /// Host and port; what has none has the port of who must hear nothing.
    host: String,
    word: &'static str,
}

/// A ClientHello with these names, and what else is asked for.
fn hello(names: &[&str], more: &[(u16, &[u8])]) -> Vec<u8> {
    let vector = |width: usize, data: &[u8]| {
        let length = u32::try_from(data.len()).unwrap().to_be_bytes();
        [&length[4 - width..], data].concat()
    };
    let named = names.iter().map(|name| {
        let entry = [vec![0], vector(2, name.as_bytes())].concat();
        [0_u16.to_be_bytes().to_vec(), vector(2, &vector(2, &entry))].concat()
    });
    let more = more
        .iter()
        .map(|(kind, data)| [kind.to_be_bytes().to_vec(), vector(2, data)].concat());
    let extensions: Vec<u8> = named.chain(more).flatten().collect();
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend(vector(1, &[9; 32]));
    body.extend(vector(2, &[0x13, 1]));
    body.extend(vector(1, &[0]));
    body.extend(vector(2, &extensions));
    let message = [vec![1], vector(3, &body)].concat();
    [vec![22, 3, 1], vector(2, &message)].concat()
}

fn named(host: &str) -> Vec<u8> {
    hello(&[host], &[])
}

/// What the listed names stand for; each is this machine or somebody who cannot be reached.
const LISTED: [(&str, &str); 14] = [
    ("mapped.bad.test", "::ffff:169.254.169.254"),
    ("meta.bad.test", "169.254.169.254"),
    ("meta6.bad.test", "fd00:ec2::254"),
    ("alibaba.bad.test", "100.100.100.200"),
    ("azure.bad.test", "168.63.129.16"),
    ("ten.bad.test", "10.0.0.1"),
    ("home.bad.test", "192.168.0.1"),
    ("shared.bad.test", "100.64.0.1"),
    ("link.bad.test", "169.254.1.1"),
    ("link6.bad.test", "fe80::1"),
    ("zero.bad.test", "0.0.0.0"),
    ("loop6.bad.test", "::1"),
    ("nat64.bad.test", "64:ff9b::7f00:1"),
    ("sixtofour.bad.test", "2002:7f00:1::1"),
];

/// Names that are on no list; each stands for this machine, so that a leak is heard.
const UNLISTED: [(&str, &str); 23] = [
    ("DNS", "denied.test"),
    ("DNS", "c2VjcmV0LXdvcmRz.tunnel.denied.test"),
    ("DNS", "x.allowed.test"),
    ("DNS", "wild.test"),
    ("DNS", "xwild.test"),
    ("DNS", "allowed.test.denied.test"),
    ("DNS", "localhost"),
    ("DNS", "localhost.localdomain"),
    ("DNS", "ip6-localhost"),
    ("DNS", "127.0.0.1.nip.test"),
    ("DNS", "1.0.0.127.in-addr.arpa"),
    ("trailing dots", "denied.test."),
    ("trailing dots", "allowed.test.denied.test."),
    ("trailing dots", "localhost."),
    ("punycode", "xn--bcher-kvb.test"),
    ("punycode", "xn--llowed-6jf.test"),
    ("punycode", "XN--BCHER-KVB.TEST"),
    ("punycode", "bcher-kva.test"),
    ("metadata", "metadata.google.internal"),
    ("metadata", "metadata"),
    ("metadata", "instance-data.ec2.internal"),
    ("metadata", "host.docker.internal"),
    ("metadata", "kubernetes.default.svc"),
];

/// Addresses in the one spelling that rules know; none is on the list.
const ADDRESSES: [(&str, &str); 9] = [
    ("v4", "127.0.0.1"),
    ("v4", "10.0.0.1"),
    ("v4", "8.8.8.8"),
    ("v4", "0.0.0.0"),
    ("v6", "[::1]"),
    ("v6", "[::]"),
    ("v6", "[2001:db8::1]"),
    ("metadata", "169.254.169.254"),
    ("metadata", "[fd00:ec2::254]"),
];

/// Other spellings, with what the refusal says.
const SPELLINGS: [(&str, &str, &str); 25] = [
    ("mapped", "[::ffff:127.0.0.1]", "address-spelling"),
    ("mapped", "[::ffff:7f00:1]", "address-spelling"),
    ("mapped", "[0:0:0:0:0:ffff:127.0.0.1]", "address-spelling"),
    ("mapped", "[::ffff:169.254.169.254]", "address-spelling"),
    ("v6", "[0:0:0:0:0:0:0:1]", "address-spelling"),
    ("v6", "[::1%25lo]", "address-spelling"),
    ("v6", "[::1%lo]", "address-spelling"),
    ("octal", "0177.0.0.1", "address-spelling"),
    ("octal", "0177.0.0.01", "address-spelling"),
    ("octal", "00000177.0.0.1", "address-spelling"),
    ("octal", "017700000001", "address-spelling"),
    ("octal", "0251.0376.0251.0376", "address-spelling"),
    ("hex", "0x7f.0.0.1", "address-spelling"),
    ("hex", "0x7f000001", "address-spelling"),
    ("hex", "0X7F.1", "address-spelling"),
    ("hex", "0xa9fea9fe", "address-spelling"),
    ("decimal", "2130706433", "address-spelling"),
    ("decimal", "2852039166", "address-spelling"),
    ("short", "127.1", "address-spelling"),
    ("short", "127.0.1", "address-spelling"),
    ("short", "0", "address-spelling"),
    ("trailing dots", "127.0.0.1.", "address-spelling"),
    ("trailing dots", "denied.test..", "host-malformed"),
    ("trailing dots", ".denied.test", "host-malformed"),
    ("punycode", "denied%2etest", "host-malformed"),
];

fn items() -> Vec<Item> {
    let mut items = Vec::new();
    let mut add = |part, forms: &[Form], host: &str, word| {
        for form in forms {
            items.push(Item {
                part,
                form: *form,
                host: host.to_owned(),
                word,
            });
        }
    };
    let both = &[Form::Connect, Form::Get];
    for (part, host) in UNLISTED {
        add(part, both, host, "not-listed");
    }
    for (part, host) in ADDRESSES {
        add(part, both, host, "address-not-listed");
    }
    for (part, host, word) in SPELLINGS {
        add(part, both, host, word);
    }
    for (name, _) in LISTED {
        let part = match name.split('.').next() {
            Some("meta" | "meta6" | "alibaba" | "azure" | "mapped") => "metadata",
            _ => "what names stand for",
        };
        let word = match name.split('.').next().unwrap() {
            "ten" | "home" => "private",
            "shared" => "shared",
            "link" | "link6" => "link-local",
            "zero" => "unspecified",
            "loop6" => "loopback",
            "nat64" | "sixtofour" => "embedded-ipv4",
            _ => "metadata",
        };
        add(part, both, name, word);
    }
    add("rebinding", both, "mixed.bad.test", "private");
    add("DNS", both, "nowhere.bad.test", "unresolved");
    let one = |first, second| [Form::Other(first, second)];
    // Two names in one request: `{}` is the one, `[]` the other.
    for (first, second, word) in [
        (
            "CONNECT {} HTTP/1.1\r\nHost: []\r\n\r\n",
            "CONNECT {} HTTP/1.1\r\nHost: {}\r\n\r\n",
            "host-mismatch",
        ),
        (
            "GET http://{}/ HTTP/1.1\r\nHost: []\r\n\r\n",
            "GET http://{}/ HTTP/1.1\r\nHost: {}\r\n\r\n",
            "host-mismatch",
        ),
        (
            "GET http://[]/ HTTP/1.1\r\nHost: {}\r\n\r\n",
            "GET http://{}/ HTTP/1.1\r\nHost: {}\r\n\r\n",
            "host-mismatch",
        ),
        (
            "GET http://{}/ HTTP/1.1\r\nHost: {}\r\nHost: []\r\n\r\n",
            "GET http://{}/ HTTP/1.1\r\nHost: {}\r\nX: []\r\n\r\n",
            "head-malformed",
        ),
        (
            "GET http://{}@[]/ HTTP/1.1\r\nHost: []\r\n\r\n",
            "GET http://{}/@[]/ HTTP/1.1\r\nHost: {}\r\n\r\n",
            "host-malformed",
        ),
        (
            "GET http://[]\\@{}/ HTTP/1.1\r\nHost: {}\r\n\r\n",
            "GET http://{}/[]\\@ HTTP/1.1\r\nHost: {}\r\n\r\n",
            "host-malformed",
        ),
        (
            "GET http://{}#@[]/ HTTP/1.1\r\nHost: {}\r\n\r\n",
            "GET http://{}/?@[]/ HTTP/1.1\r\nHost: {}\r\n\r\n",
            "head-malformed",
        ),
        (
            "GET / HTTP/1.1\r\nHost: []\r\n\r\n",
            "GET http://{}/ HTTP/1.1\r\nHost: {}\r\n\r\n",
            "no-host",
        ),
        (
            "GET https://[]/ HTTP/1.1\r\nHost: []\r\n\r\n",
            "GET http://{}/ HTTP/1.1\r\nHost: {}\r\n\r\n",
            "scheme",
        ),
        (
            "CONNECT []\u{3002} HTTP/1.1\r\nHost: {}\r\n\r\n",
            "CONNECT {} HTTP/1.1\r\nHost: {}\r\n\r\n",
            "head-malformed",
        ),
        (
            "GET http://{}/ HTTP/1.1\r\nX: y\r\n Host: []\r\nHost: {}\r\n\r\n",
            "GET http://{}/ HTTP/1.1\r\nX: y\r\nHost: {}\r\n\r\n",
            "head-malformed",
        ),
        (
            "POST http://{}/ HTTP/1.1\r\nHost: {}\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET http://[]/ HTTP/1.1\r\nHost: []\r\n\r\n",
            "POST http://{}/ HTTP/1.1\r\nHost: {}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "body-length",
        ),
    ] {
        add("SNI, Host, CONNECT", &one(first, second), "", word);
    }
    add(
        "coalescing",
        &one(
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "GET http://{}/ HTTP/1.1\r\nHost: {}\r\n\r\n",
        ),
        "",
        "head-malformed",
    );
    let hellos: [(Made, &str, &'static str); 8] = [
        (named, "denied.test", "sni-mismatch"),
        (named, "x.allowed.test", "sni-mismatch"),
        (named, "allowed.test.denied.test", "sni-mismatch"),
        (named, "127.0.0.1", "hello-malformed"),
        (named, "denied.test.", "hello-malformed"),
        (
            |host| {
                if host == "allowed.test" {
                    named(host)
                } else {
                    hello(&[], &[(43, &[2, 3, 4])])
                }
            },
            "none",
            "sni-missing",
        ),
        (
            |host| {
                if host == "allowed.test" {
                    named(host)
                } else {
                    hello(&["allowed.test", host], &[])
                }
            },
            "denied.test",
            "hello-malformed",
        ),
        (
            |host| {
                if host == "allowed.test" {
                    named(host)
                } else {
                    hello(&["allowed.test"], &[(0xfe0d, &[0; 60])])
                }
            },
            "ech",
            "ech",
        ),
    ];
    for (make, host, word) in hellos {
        add("SNI, Host, CONNECT", &[Form::Hello(make)], host, word);
    }
    items
}

/// A tunnel whose first bytes are these: what the gateway said of them, if it ended it.
async fn tunnel(scene: &Scene, at: &str, first: &[u8]) -> Vec<u8> {
    let mut stream = scene.dial().await;
    let request = format!("CONNECT {at} HTTP/1.1\r\nHost: {at}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = vec![0; 39];
    stream.read_exact(&mut head).await.unwrap();
    assert!(head.starts_with(b"HTTP/1.1 200 "));
    let _ = stream.write_all(first).await;
    let mut said = vec![0; 7];
    let read = tokio::time::timeout(PATIENCE, stream.read_exact(&mut said)).await;
    read.expect("an answer").unwrap();
    said
}

fn bytes(host: &Upstream) -> usize {
    host.seen.requests().iter().map(String::len).sum()
}

fn shown_hello(host: &str) -> String {
    format!("CONNECT allowed.test, hello {host}")
}

/// An item, and what came of it.
struct Tried {
    answer: String,
    leaked: usize,
    heard: usize,
}

async fn attempt(scene: &Scene, form: Form, host: &str, other: &str, at: &str) -> String {
    let request = match form {
        Form::Hello(make) => {
            let said = tunnel(scene, at, &make(host)).await;
            // The gateway's alerts (RFC 8446, section 6), each for one reason; 40 is the host's own.
            let word = match said[..] {
                [21, 3, 3, 0, 2, 2, 40] => "passed",
                [21, 3, 3, 0, 2, 2, 10] => "not-tls",
                [21, 3, 3, 0, 2, 2, 49] => "ech",
                [21, 3, 3, 0, 2, 2, 50] => "hello-malformed",
                [21, 3, 3, 0, 2, 2, 109] => "sni-missing",
                [21, 3, 3, 0, 2, 2, 112] => "sni-mismatch",
                _ => "nonsense",
            };
            return word.to_owned();
        }
        Form::Connect => format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n"),
        Form::Get => format!("GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n"),
        Form::Other(text, _) => text.replace("{}", at).replace("[]", other),
    };
    if request.starts_with("CONNECT") {
        return connect(scene, &request).await;
    }
    let answer = scene.ask(request.as_bytes()).await;
    if answer.word().is_empty() {
        answer.status().to_owned()
    } else {
        answer.word().to_owned()
    }
}

/// A tunnel that stands is used, so that it can be heard.
async fn connect(scene: &Scene, request: &str) -> String {
    let mut stream = scene.dial().await;
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = vec![0; 12];
    stream.read_exact(&mut head).await.unwrap();
    if head == b"HTTP/1.1 200" {
        stream.read_exact(&mut [0; 27]).await.unwrap();
        stream.write_all(&named("allowed.test")).await.unwrap();
        stream.read_exact(&mut [0; 7]).await.unwrap();
        return "passed".to_owned();
    }
    let rest = Answer::read(&mut stream).await;
    rest.word().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_corpus_leaks_nothing_and_each_of_its_requests_passes_for_a_host_that_is_allowed() {
    // Refuses the handshake, so that every exchange ends; answers a plain request as no HTTP, which is told.
    let allowed = Upstream::raw(&[21, 3, 3, 0, 2, 2, 40]).await;
    let plain = Upstream::plain().await;
    let forbidden = Upstream::raw(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nleaked").await;
    let (secure, open, shut) = (allowed.port, plain.port, forbidden.port);
    let rules = [
        format!("allowed.test:{secure}"),
        format!("allowed.test:{open}"),
        format!("*.wild.test:{shut}"),
        format!("*.bad.test:{shut}"),
    ];
    // This machine is a named network for the allowed host's sake: what leaks to it is heard.
    let scene = Scene::new(&rules, &["127.0.0.0/8"], EgressLimits::default()).await;
    scene.names.set("allowed.test", &[&["127.0.0.1"]]);
    for (_, name) in UNLISTED {
        let name = name.to_lowercase();
        scene
            .names
            .set(name.trim_end_matches('.'), &[&["127.0.0.1"]]);
    }
    for (name, address) in LISTED {
        scene.names.set(name, &[&[address]]);
    }
    scene
        .names
        .set("mixed.bad.test", &[&["127.0.0.1", "10.0.0.1"]]);
    let items = items();
    let count = items.len();
    let mut wrong = Vec::new();
    let mut controls: BTreeMap<String, (String, usize)> = BTreeMap::new();
    println!(
        "{:<21} {:<60} {:<19} {:>6} {:>7} {:>7}",
        "part", "tried", "answer", "leaked", "lookups", "control"
    );
    let other = format!("denied.test:{shut}");
    for item in items {
        let Item {
            part,
            form,
            host,
            word,
        } = item;
        let is_tunnel = matches!(form, Form::Connect | Form::Hello(_))
            || matches!(form, Form::Other(first, _) if first.starts_with("CONNECT"));
        let at = format!("allowed.test:{}", if is_tunnel { secure } else { open });
        let (target, same) = match form {
            Form::Hello(_) => (host.clone(), "allowed.test".to_owned()),
            _ => (format!("{host}:{shut}"), at.clone()),
        };
        let looked = |scene: &Scene| {
            let asked = scene.names.asked();
            let is_unlisted = |name: &&String| {
                *name != "allowed.test"
                    && !name.ends_with(".bad.test")
                    && !name.ends_with(".wild.test")
            };
            asked.iter().filter(is_unlisted).count()
        };
        let (before, lookups) = (bytes(&allowed) + bytes(&plain), looked(&scene));
        let answer = attempt(&scene, form, &target, &other, &at).await;
        let tried = Tried {
            answer,
            leaked: bytes(&forbidden),
            heard: bytes(&allowed) + bytes(&plain) - before,
        };
        let lookups = looked(&scene) - lookups;
        let control = match form {
            Form::Other(_, control) => Form::Other(control, control),
            form => form,
        };
        // The same control is made once.
        let key = match control {
            Form::Other(text, _) => text.replace("[]", &other),
            Form::Connect => "CONNECT".to_owned(),
            Form::Get => "GET".to_owned(),
            Form::Hello(_) => shown_hello(&host),
        };
        if !controls.contains_key(&key) {
            let before = bytes(&allowed) + bytes(&plain);
            let passed = attempt(&scene, control, &same, &other, &at).await;
            let heard = bytes(&allowed) + bytes(&plain) - before;
            controls.insert(key.clone(), (passed, heard));
        }
        let (passed, through) = &controls[&key];
        let shown = match form {
            Form::Connect => format!("CONNECT {host}"),
            Form::Get => format!("GET http://{host}/"),
            Form::Hello(_) => shown_hello(&host),
            Form::Other(text, _) => text
                .replace("{}", "allowed.test")
                .replace("[]", "denied.test")
                .replace("\r\n", " ")
                .chars()
                .take(60)
                .collect(),
        };
        let line = format!(
            "{part:<21} {shown:<60} {:<19} {:>6} {lookups:>7} {through:>7}",
            tried.answer,
            tried.leaked + tried.heard
        );
        println!("{line}");
        let is_right = tried.answer == word
            && tried.leaked + tried.heard + lookups == 0
            && matches!(passed.as_str(), "passed" | "200")
            && *through > 0;
        if !is_right {
            wrong.push(format!("{line} expected {word}, control {passed}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(forbidden.seen.connections(), 0);

    // Redirects and a name that changes: in more than one step.
    let at = format!("allowed.test:{open}");
    let answer = scene
        .ask(format!("GET http://{at}/redirect HTTP/1.1\r\nHost: {at}\r\n\r\n").as_bytes())
        .await;
    assert!(
        answer.status() == "302" && answer.0.contains("Location: http://denied.test/"),
        "{answer:?}"
    );
    println!(
        "{:<21} {:<60} {:<19} {:>6}",
        "redirects",
        "GET http://allowed.test/redirect to denied.test",
        "302, not followed",
        bytes(&forbidden)
    );
    scene.names.set(
        "allowed.test",
        &[&["127.0.0.1"], &["169.254.169.254"], &["127.0.0.1"]],
    );
    let get = format!("GET http://{at}/ HTTP/1.1\r\nHost: {at}\r\n\r\n");
    let mut words = Vec::new();
    for _ in 0..3 {
        let answer = scene.ask(get.as_bytes()).await;
        words.push(format!("{}{}", answer.status(), answer.word()));
    }
    assert_eq!(words, ["200", "403metadata", "200"]);
    println!(
        "{:<21} {:<60} {:<19} {:>6}",
        "rebinding",
        "GET http://allowed.test/, then 169.254.169.254, then again",
        words[1],
        bytes(&forbidden)
    );
    // Coalescing: a request behind another, and one within the tunnel of another.
    let second = format!("GET http://{other}/ HTTP/1.1\r\nHost: {other}\r\n\r\n");
    let heard = plain.seen.requests().len();
    let answer = scene.ask(format!("{get}{second}").as_bytes()).await;
    let seen = plain.seen.requests();
    assert_eq!(
        (answer.status(), answer.0.matches("HTTP/1.1 ").count()),
        ("200", 1)
    );
    assert!(
        seen.len() == heard + 1 && !seen[heard].contains("denied"),
        "{seen:?}"
    );
    println!(
        "{:<21} {:<60} {:<19} {:>6}",
        "coalescing",
        "GET http://allowed.test/, then GET http://denied.test/",
        "one answer",
        bytes(&forbidden)
    );
    assert_eq!((forbidden.seen.connections(), bytes(&forbidden)), (0, 0));
    println!("egress corpus: {} items, 0 leaks", count + 3);
    scene.tree.stop().await;
}
