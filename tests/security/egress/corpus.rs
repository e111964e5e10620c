//! Requests: those that pass, and one of each kind that does not.

use portcullis_actors::sandbox_pool::egress::EgressLimits;

use super::Scene;
use super::upstream::Upstream;

const OWN: &[&str] = &["127.0.0.0/8"];

fn get(url: &str, host: &str) -> String {
    format!("GET {url} HTTP/1.1\r\nHost: {host}\r\n\r\n")
}

fn connect(target: &str) -> String {
    format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_on_the_list_is_reached_by_plain_http_and_the_log_says_so_before_and_after() {
    let host = Upstream::plain().await;
    let scene = Scene::new(
        &[format!("allowed.test:{}", host.port)],
        OWN,
        EgressLimits::default(),
    )
    .await;
    scene.names.set("allowed.test", &[&["127.0.0.1"]]);
    let at = format!("Allowed.TEST.:{}", host.port);
    let request = format!(
        "POST http://{at}/a?b HTTP/1.1\r\nHost: allowed.test:{}\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nX-End: 2\r\n\
         Proxy-Authorization: Basic c2VjcmV0\r\nContent-Length: 4\r\n\r\nbody",
        host.port
    );
    let answer = scene.ask(request.as_bytes()).await;
    assert_eq!(answer.status(), "200", "{answer:?}");
    assert!(
        answer.0.ends_with("\r\nConnection: close\r\n\r\nhello"),
        "{answer:?}"
    );
    assert!(!answer.0.contains("Keep-Alive"), "{answer:?}");
    let seen = host.seen.requests();
    let expected = format!(
        "POST /a?b HTTP/1.1\r\nHost: allowed.test:{}\r\nX-End: 2\r\nContent-Length: 4\r\nVia: 1.1 portcullis\r\nConnection: close\r\n\r\nbody",
        host.port
    );
    assert_eq!(seen, [expected]);
    let allow = &scene.records("egress.allow", 1).await[0];
    for (at, value) in [
        ("/object", format!("allowed.test:{}", host.port)),
        ("/decision", "allow".to_owned()),
        ("/rule", format!("egress allowed.test:{}", host.port)),
        ("/principal", "agent:demo".to_owned()),
        ("/detail/agent", "demo".to_owned()),
        ("/detail/box", "0123456789ab".to_owned()),
        ("/detail/runs", "[\"run-7\"]".to_owned()),
        ("/detail/addresses", "[\"127.0.0.1\"]".to_owned()),
        ("/detail/way", "http".to_owned()),
    ] {
        assert_eq!(allow.pointer(at).unwrap(), &value, "{allow:#}");
    }
    let end = &scene.records("egress.end", 1).await[0];
    assert_eq!(end["detail"]["record"], allow["seq"].to_string());
    assert_eq!(end["detail"]["address"], "127.0.0.1");
    assert_eq!(end["detail"]["result"], "done");
    let number = |key: &str| {
        end["detail"][key]
            .as_str()
            .unwrap()
            .parse::<usize>()
            .unwrap()
    };
    assert_eq!(number("sent"), seen[0].len());
    assert_eq!(number("received"), answer.0.len());
    assert!(scene.records("egress.deny", 0).await.is_empty());
    scene.tree.stop().await;
}

/// Everything that one request may try. None of it reaches anybody, each is answered with its reason and recorded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_not_on_the_list_or_not_said_plainly_reaches_nobody_and_is_recorded() {
    let host = Upstream::plain().await;
    let port = host.port;
    let list = [
        format!("allowed.test:{port}"),
        format!("*.wild.test:{port}"),
        format!("xn--bcher-kva.test:{port}"),
        // Whose addresses are another's.
        format!("*.bad.test:{port}"),
        format!("10.9.9.9:{port}"),
    ];
    let scene = Scene::new(&list, OWN, EgressLimits::default()).await;
    for name in [
        "allowed.test",
        "denied.test",
        "localhost",
        "xn--bcher-kva.test",
    ] {
        scene.names.set(name, &[&["127.0.0.1"]]);
    }
    let bad = [
        ("private", "10.0.0.1", "private"),
        ("private-172", "172.16.0.1", "private"),
        ("private-192", "192.168.0.1", "private"),
        ("linklocal", "169.254.1.1", "link-local"),
        ("metadata", "169.254.169.254", "metadata"),
        ("metadata-alibaba", "100.100.100.200", "metadata"),
        ("metadata-azure", "168.63.129.16", "metadata"),
        ("metadata-v6", "fd00:ec2::254", "metadata"),
        ("shared", "100.64.0.1", "shared"),
        ("unspecified", "0.0.0.0", "unspecified"),
        ("unspecified-v6", "::", "unspecified"),
        ("loopback-v6", "::1", "loopback"),
        ("broadcast", "255.255.255.255", "broadcast"),
        ("multicast", "224.0.0.1", "multicast"),
        ("documentation", "192.0.2.1", "documentation"),
        ("benchmark", "198.18.0.1", "benchmark"),
        ("reserved", "240.0.0.1", "reserved"),
        ("ula", "fd12:3456::1", "private"),
        ("linklocal-v6", "fe80::1", "link-local"),
        ("mapped", "::ffff:10.0.0.1", "private"),
        ("mapped-metadata", "::ffff:169.254.169.254", "metadata"),
        ("nat64", "64:ff9b::10.0.0.1", "embedded-ipv4"),
        ("nat64-metadata", "64:ff9b::169.254.169.254", "metadata"),
        ("6to4", "2002:a00:1::1", "embedded-ipv4"),
        ("teredo", "2001:0:808:808::f5ff:fffe", "embedded-ipv4"),
        ("compatible", "::10.0.0.1", "embedded-ipv4"),
    ];
    let mut cases: Vec<(String, &str)> = vec![];
    for (name, address, word) in bad {
        let name = format!("{name}.bad.test");
        scene.names.set(&name, &[&[address]]);
        cases.push((connect(&format!("{name}:{port}")), word));
        let at = format!("{name}:{port}");
        cases.push((get(&format!("http://{at}/"), &at), word));
    }
    // One bad address among good ones spoils the name.
    scene
        .names
        .set("mixed.bad.test", &[&["127.0.0.1", "10.0.0.1"]]);
    cases.push((connect(&format!("mixed.bad.test:{port}")), "private"));
    cases.push((connect(&format!("10.9.9.9:{port}")), "private"));
    // Not on the list.
    for other in [
        format!("denied.test:{port}"),
        format!("allowed.test.denied.test:{port}"),
        format!("xallowed.test:{port}"),
        format!("wild.test:{port}"),
        format!("xwild.test:{port}"),
        format!("localhost:{port}"),
        format!("bcher-kva.test:{port}"),
        format!("xn--bcher-kvb.test:{port}"),
    ] {
        cases.push((connect(&other), "not-listed"));
        cases.push((get(&format!("http://{other}/"), &other), "not-listed"));
    }
    for other in [1, 443, port.wrapping_add(1)] {
        cases.push((connect(&format!("allowed.test:{other}")), "port-not-listed"));
    }
    cases.push((
        get("http://allowed.test/", "allowed.test"),
        "port-not-listed",
    ));
    // Addresses.
    for address in ["127.0.0.1", "[::1]", "169.254.169.254", "[2001:db8::1]"] {
        cases.push((connect(&format!("{address}:{port}")), "address-not-listed"));
    }
    for odd in [
        "127.1",
        "127.0.1",
        "0177.0.0.1",
        "0x7f.0.0.1",
        "0x7f.1",
        "0X7f000001",
        "2130706433",
        "017700000001",
        "127.0.0.1.",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[0:0:0:0:0:0:0:1]",
        "[::1%25lo]",
        "[::1%lo]",
    ] {
        let at = format!("{odd}:{port}");
        cases.push((connect(&at), "address-spelling"));
        cases.push((get(&format!("http://{at}/"), &at), "address-spelling"));
    }
    // Two hosts in one request.
    let allowed = format!("allowed.test:{port}");
    for (request, word) in [
        (
            get(&format!("http://{allowed}/"), "denied.test"),
            "host-mismatch",
        ),
        (
            get(&format!("http://denied.test:{port}/"), &allowed),
            "host-mismatch",
        ),
        (
            format!("CONNECT {allowed} HTTP/1.1\r\nHost: denied.test:{port}\r\n\r\n"),
            "host-mismatch",
        ),
        (
            format!(
                "GET http://{allowed}/ HTTP/1.1\r\nHost: {allowed}\r\nHost: denied.test\r\n\r\n"
            ),
            "head-malformed",
        ),
        (
            get(&format!("http://{allowed}@denied.test/"), "denied.test"),
            "host-malformed",
        ),
        (
            get(&format!("http://denied.test\\@{allowed}/"), &allowed),
            "host-malformed",
        ),
        (
            get(&format!("http://{allowed}#@denied.test/"), &allowed),
            "head-malformed",
        ),
        (
            get(&format!("http://all%6fwed.test:{port}/"), &allowed),
            "host-malformed",
        ),
        (
            get(&format!("http://allowed.test..:{port}/"), &allowed),
            "host-malformed",
        ),
        (
            format!("GET http://b\u{fc}cher.test:{port}/ HTTP/1.1\r\nHost: {allowed}\r\n\r\n"),
            "head-malformed",
        ),
        (
            format!("CONNECT allowed.test\u{3002}:{port} HTTP/1.1\r\nHost: {allowed}\r\n\r\n"),
            "head-malformed",
        ),
        (get("/", &allowed), "no-host"),
        (get(&format!("https://{allowed}/"), &allowed), "scheme"),
        (get(&format!("ftp://{allowed}/"), &allowed), "scheme"),
        (
            format!("GET http://{allowed}/ HTTP/1.1\nHost: {allowed}\n\n"),
            "head-malformed",
        ),
        (
            format!("GET http://{allowed}/ HTTP/1.1\r\nHost: {allowed}\r\n X: y\r\n\r\n"),
            "head-malformed",
        ),
        (
            format!(
                "POST http://{allowed}/ HTTP/1.1\r\nHost: {allowed}\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            ),
            "body-length",
        ),
        (
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
            "head-malformed",
        ),
        ("\u{5}\u{1}\0".to_owned(), "head-malformed"),
        (
            format!(
                "GET http://{allowed}/ HTTP/1.1\r\nHost: {allowed}\r\nX: {}\r\n\r\n",
                "x".repeat(9000)
            ),
            "head-too-long",
        ),
    ] {
        cases.push((request, word));
    }
    cases.push((connect(&format!("nowhere.wild.test:{port}")), "unresolved"));
    let count = cases.len();
    for (at, (request, word)) in cases.into_iter().enumerate() {
        let answer = scene.ask(request.as_bytes()).await;
        assert_eq!(answer.word(), word, "{request:?}: {answer:?}");
        assert!(!answer.status().starts_with('2'), "{request:?}: {answer:?}");
        if word == "not-listed" {
            assert_eq!(answer.status(), "403");
            for part in [
                "is not on the list",
                &format!("Allowed: allowed.test:{port}"),
                "`egress` in [sandbox]",
            ] {
                assert!(answer.0.contains(part), "{part}: {answer:?}");
            }
        }
        if at < 50 {
            // Later ones are too many at once for the log, which has their number.
            let denied = scene.records("egress.deny", at + 1).await;
            assert_eq!(denied.len(), at + 1);
            let last = denied.last().unwrap();
            assert_eq!(last["detail"]["reason"], word, "{request:?}: {last:#}");
            assert_eq!(last["detail"]["box"], "0123456789ab");
        }
    }
    assert_eq!(host.seen.connections(), 0, "{:?}", host.seen.requests());
    assert!(scene.records("egress.allow", 0).await.is_empty());
    // Each is recorded, or is in the count of the next that is.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    scene.ask(connect("last.test:1").as_bytes()).await;
    let end = std::time::Instant::now() + super::PATIENCE;
    let counted = loop {
        let denied = scene.records("egress.deny", 0).await;
        let is_last = |record: &&serde_json::Value| record["object"] == "last.test:1";
        if denied.iter().any(|record| is_last(&record)) {
            break denied
                .iter()
                .map(|record| {
                    1 + record["detail"]["more"]
                        .as_str()
                        .map_or(0, |more| more.parse::<usize>().unwrap())
                })
                .sum::<usize>();
        }
        assert!(std::time::Instant::now() < end);
    };
    assert_eq!(counted, count + 1);
    println!("egress corpus: {count} requests, 0 leaks");
    scene.tree.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_changes_is_looked_at_each_time_and_what_was_looked_at_is_dialled() {
    let host = Upstream::plain().await;
    let port = host.port;
    let scene = Scene::new(
        &[format!("rebind.test:{port}")],
        OWN,
        EgressLimits::default(),
    )
    .await;
    // Good, then the same name is a private one, then the machine that tells secrets, then good again.
    scene.names.set(
        "rebind.test",
        &[
            &["127.0.0.1"],
            &["10.0.0.1"],
            &["169.254.169.254"],
            &["127.0.0.1"],
        ],
    );
    let at = format!("rebind.test:{port}");
    let mut words = vec![];
    for _ in 0..4 {
        let answer = scene
            .ask(get(&format!("http://{at}/"), &at).as_bytes())
            .await;
        words.push(format!("{} {}", answer.status(), answer.word()));
    }
    assert_eq!(words, ["200 ", "403 private", "403 metadata", "200 "]);
    assert_eq!(scene.names.asked().len(), 4, "once for each connection");
    assert_eq!(host.seen.connections(), 2);
    scene.tree.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_named_network_this_machine_is_out_of_reach_by_any_of_its_addresses() {
    let host = Upstream::plain().await;
    let port = host.port;
    let scene = Scene::new(
        &[format!("*.own.test:{port}")],
        &[],
        EgressLimits::default(),
    )
    .await;
    scene.names.set("loopback.own.test", &[&["127.0.0.1"]]);
    let mut cases = vec![("loopback.own.test", "loopback")];
    // Its addresses in other networks, whatever they are: private ones by their class, public ones because they are its own.
    let own: Option<std::net::IpAddr> = std::net::UdpSocket::bind("0.0.0.0:0")
        .and_then(|socket| {
            socket.connect("192.0.2.1:9")?;
            Ok(socket.local_addr()?.ip())
        })
        .ok()
        .filter(|own| !own.is_unspecified());
    if let Some(own) = own {
        let class = portcullis_core::egress::class_of(own);
        scene.names.set("other.own.test", &[&[&own.to_string()]]);
        let word = match class {
            portcullis_core::egress::Class::Public => "own-machine",
            class => class.as_str(),
        };
        cases.push(("other.own.test", word));
    }
    for (name, word) in cases {
        let answer = scene
            .ask(connect(&format!("{name}:{port}")).as_bytes())
            .await;
        assert_eq!(answer.word(), word, "{answer:?}");
    }
    assert_eq!(host.seen.connections(), 0);
    scene.tree.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redirect_is_handed_back_and_not_followed() {
    let host = Upstream::plain().await;
    let at = format!("allowed.test:{}", host.port);
    let scene = Scene::new(std::slice::from_ref(&at), OWN, EgressLimits::default()).await;
    scene.names.set("allowed.test", &[&["127.0.0.1"]]);
    scene.names.set("denied.test", &[&["127.0.0.1"]]);
    let answer = scene
        .ask(get(&format!("http://{at}/redirect"), &at).as_bytes())
        .await;
    assert_eq!(answer.status(), "302");
    assert!(
        answer.0.contains("Location: http://denied.test/"),
        "{answer:?}"
    );
    let answer = scene
        .ask(get("http://denied.test/", "denied.test").as_bytes())
        .await;
    assert_eq!(answer.word(), "not-listed");
    assert_eq!(host.seen.connections(), 1);
    assert_eq!(scene.names.asked(), ["allowed.test"]);
    scene.tree.stop().await;
}

/// Coalescing: what comes behind a request on its connection is nobody's, whatever host it names.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_request_on_a_connection_goes_nowhere() {
    let host = Upstream::plain().await;
    let at = format!("allowed.test:{}", host.port);
    let scene = Scene::new(std::slice::from_ref(&at), OWN, EgressLimits::default()).await;
    scene.names.set("allowed.test", &[&["127.0.0.1"]]);
    let second = "GET / HTTP/1.1\r\nHost: denied.test\r\nX-Marker: leaked\r\n\r\n";
    for first in [
        get(&format!("http://{at}/"), &at),
        format!("POST http://{at}/ HTTP/1.1\r\nHost: {at}\r\nContent-Length: 3\r\n\r\nabc"),
        format!("POST http://{at}/ HTTP/1.1\r\nHost: {at}\r\nContent-Length: 0\r\n\r\n"),
        format!(
            "POST http://{at}/ HTTP/1.1\r\nHost: {at}\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
        ),
    ] {
        let answer = scene.ask(format!("{first}{second}").as_bytes()).await;
        assert_eq!(answer.status(), "200", "{first:?}: {answer:?}");
        assert_eq!(answer.0.matches("HTTP/1.1 ").count(), 1, "{answer:?}");
        let seen = host.seen.requests();
        assert!(!seen.last().unwrap().contains("leaked"), "{seen:?}");
    }
    // Chunks that two servers may read differently do not go on.
    let odd = format!(
        "POST http://{at}/ HTTP/1.1\r\nHost: {at}\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\n\r\n{second}"
    );
    let before = host.seen.requests().len();
    let answer = scene.ask(odd.as_bytes()).await;
    assert_eq!(answer.word(), "body-length");
    assert_eq!(host.seen.requests().len(), before);
    scene.tree.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_answer_is_not_passed_on() {
    let host = Upstream::plain().await;
    let at = format!("allowed.test:{}", host.port);
    let scene = Scene::new(std::slice::from_ref(&at), OWN, EgressLimits::default()).await;
    scene.names.set("allowed.test", &[&["127.0.0.1"]]);
    let answer = scene
        .ask(get(&format!("http://{at}/nonsense"), &at).as_bytes())
        .await;
    assert_eq!((answer.status(), answer.word()), ("502", "bad-answer"));
    // Nobody there.
    drop(host);
    let answer = scene
        .ask(get(&format!("http://{at}/"), &at).as_bytes())
        .await;
    assert_eq!((answer.status(), answer.word()), ("502", "unreachable"));
    let ends = scene.records("egress.end", 2).await;
    assert_eq!(ends[1]["detail"]["result"], "unreachable");
    scene.tree.stop().await;
}
