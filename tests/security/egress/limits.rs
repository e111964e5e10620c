//! Slow clients, silent hosts, many connections, a crash, an end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use portcullis_actors::sandbox_pool::egress::{Egress, EgressLimits, EgressWiring, Resolver, Ways};
use portcullis_actors::supervision::{Flag, PanicAt, Policy};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::upstream::Upstream;
use super::{Answer, PATIENCE, Scene};

const OWN: &[&str] = &["127.0.0.0/8"];

fn short() -> EgressLimits {
    EgressLimits {
        connections: 8,
        head: Duration::from_millis(300),
        idle: Duration::from_millis(400),
        total: Duration::from_millis(1500),
        lookup: Duration::from_millis(300),
        ..EgressLimits::default()
    }
}

async fn at(limits: EgressLimits) -> (Scene, Upstream, String) {
    let host = Upstream::raw(b"").await;
    let at = format!("allowed.test:{}", host.port);
    let scene = Scene::new(std::slice::from_ref(&at), OWN, limits).await;
    scene.names.set("allowed.test", &[&["127.0.0.1"]]);
    (scene, host, at)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_comes_slowly_is_not_waited_for_longer_than_its_time() {
    let (scene, host, at) = at(short()).await;
    let mut stream = scene.dial().await;
    let began = Instant::now();
    // A byte each 20 ms would take seconds.
    for byte in format!("GET http://{at}/ HTTP/1.1\r\nHost: {at}\r\n").bytes() {
        if stream.write_all(&[byte]).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let answer = Answer::read(&mut stream).await;
    assert_eq!((answer.status(), answer.word()), ("408", "too-slow"));
    assert!(began.elapsed() < Duration::from_secs(5));
    // A hello too.
    let mut stream = scene.dial().await;
    let connect = format!("CONNECT {at} HTTP/1.1\r\nHost: {at}\r\n\r\n\u{16}");
    stream.write_all(connect.as_bytes()).await.unwrap();
    let answer = Answer::read(&mut stream).await;
    assert!(
        answer.0.ends_with("\u{15}\u{3}\u{3}\0\u{2}\u{2}("),
        "an alert, and no HTTP: {answer:?}"
    );
    let denied = scene.records("egress.deny", 2).await;
    assert_eq!(denied[1]["detail"]["reason"], "hello-late");
    assert!(host.seen.requests().is_empty());
    scene.tree.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_and_length_end_a_connection_and_the_log_says_which() {
    let (scene, _host, at) = at(short()).await;
    let request =
        format!("POST http://{at}/ HTTP/1.1\r\nHost: {at}\r\nContent-Length: 100000\r\n\r\n");
    scene.ask(request.as_bytes()).await;
    let ends = scene.records("egress.end", 1).await;
    assert_eq!(ends[0]["detail"]["result"], "idle");
    // One that is never silent.
    let mut stream = scene.dial().await;
    stream.write_all(request.as_bytes()).await.unwrap();
    let began = Instant::now();
    while stream.write_all(b"x").await.is_ok() && began.elapsed() < PATIENCE {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(began.elapsed() < Duration::from_secs(8));
    let ends = scene.records("egress.end", 2).await;
    assert_eq!(ends[1]["detail"]["result"], "too-long");
    scene.tree.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_so_many_connections_each_is_turned_away_and_the_others_go_on() {
    let limits = EgressLimits {
        connections: 8,
        ..EgressLimits::default()
    };
    let (scene, host, at) = at(limits).await;
    let request = format!("POST http://{at}/ HTTP/1.1\r\nHost: {at}\r\nContent-Length: 2\r\n\r\n");
    let mut held = Vec::new();
    for _ in 0..8 {
        let mut stream = scene.dial().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        held.push(stream);
    }
    scene.records("egress.allow", 8).await;
    for _ in 0..50 {
        let answer = scene.ask(b"").await;
        assert_eq!(
            (answer.status(), answer.word()),
            ("503", "too-many-connections")
        );
    }
    let denied = scene.records("egress.deny", 50).await;
    assert!(denied.iter().all(|record| record["decision"] == "fail"));
    for stream in &mut held {
        stream.write_all(b"ok").await.unwrap();
    }
    let end = Instant::now() + PATIENCE;
    while host
        .seen
        .requests()
        .iter()
        .filter(|seen| seen.contains("ok"))
        .count()
        < 8
    {
        assert!(Instant::now() < end, "{:?}", host.seen.requests());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drop(held);
    scene.tree.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_too_often_is_told_so_and_fills_no_log() {
    let limits = EgressLimits {
        burst: 100,
        per_second: 1,
        recorded: 10,
        ..EgressLimits::default()
    };
    let (scene, _host, _) = at(limits).await;
    let mut words = std::collections::BTreeMap::new();
    for _ in 0..300 {
        let answer = scene
            .ask(b"GET http://denied.test/ HTTP/1.1\r\nHost: denied.test\r\n\r\n")
            .await;
        *words.entry(answer.word().to_owned()).or_insert(0) += 1;
    }
    let passed = words["not-listed"];
    assert!(
        (100..150).contains(&passed) && passed + words["too-often"] == 300,
        "{words:?}"
    );
    let denied = scene.records("egress.deny", 10).await;
    assert!(denied.len() < 60, "{}", denied.len());
    scene.tree.stop().await;
}

/// A resolver that never answers holds two lookups of a box, and no more are begun.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_are_not_found_in_time_take_no_more_places_than_there_are() {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    let state = tempfile::TempDir::with_prefix("pce").unwrap();
    let mut tree = super::builder();
    let audit = super::log(state.path(), &mut tree);
    std::fs::create_dir(state.path().join("b")).unwrap();
    let begun = Arc::new(AtomicUsize::new(0));
    let count = begun.clone();
    let resolver = Resolver::new(move |_| {
        count.fetch_add(1, SeqCst);
        Box::pin(std::future::pending())
    });
    let run_dir = state.path().join("b/0123456789ab");
    tree.room::<Egress>(
        Policy::new(4),
        EgressWiring {
            ways: Ways::with(audit, resolver, short()),
            rules: portcullis_core::egress::Rules::new(["*.wild.test"]).unwrap(),
            terminate: portcullis_core::egress::Terminations::default(),
            agents: None,
            addresses: portcullis_core::egress::Addresses::default(),
            asks_for: None,
            section: "[sandbox]".to_owned(),
            lookups: Ways::lookups(),
            whose: "demo".to_owned(),
            principal: "agent:demo".to_owned(),
            id: portcullis_core::ids::BoxId::new("0123456789ab").unwrap(),
            run_dir: run_dir.clone(),
            gid: rustix::process::getegid().as_raw(),
            runs: Flag::new(Arc::from([])).reader(),
        },
    );
    let tree = tree.start().await.unwrap();
    let asks = (0..6).map(|n| {
        let path = run_dir.join("e");
        async move {
            let mut stream = tokio::net::UnixStream::connect(path).await.unwrap();
            let request = format!("CONNECT a{n}.wild.test:443 HTTP/1.0\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            Answer::read(&mut stream).await.word().to_owned()
        }
    });
    let words = futures_util::future::join_all(asks).await;
    assert!(words.iter().all(|word| word == "unresolved"), "{words:?}");
    assert_eq!(begun.load(SeqCst), 2);
    tree.stop().await;
}

/// Two agents' ways out, of which one asks for names whose server does not answer: the other's are found at once. (The bug: all boxes together
/// had four lookups, and two boxes held all of them for ten seconds at a time.)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_nobody_answers_for_hold_up_their_own_agent_and_nobody_else() {
    let state = tempfile::TempDir::with_prefix("pce").unwrap();
    let mut tree = super::builder();
    let audit = super::log(state.path(), &mut tree);
    std::fs::create_dir(state.path().join("b")).unwrap();
    let resolver = Resolver::new(|name| {
        if name.ends_with(".dead.test") {
            Box::pin(std::future::pending())
        } else {
            Box::pin(async { Ok(vec!["192.0.2.7".parse().unwrap()]) })
        }
    });
    let limits = EgressLimits {
        lookup: Duration::from_secs(2),
        ..EgressLimits::default()
    };
    let ways = Ways::with(audit, resolver, limits);
    let (busy, other) = (Ways::lookups(), Ways::lookups());
    // Two boxes of one agent, and one of another.
    let boxes = [
        ("0123456789a0", &busy),
        ("0123456789a1", &busy),
        ("0123456789a2", &other),
    ];
    for (id, lookups) in boxes {
        tree.room::<Egress>(
            Policy::new(4),
            EgressWiring {
                ways: ways.clone(),
                rules: portcullis_core::egress::Rules::new(["*.dead.test", "good.test"]).unwrap(),
                terminate: portcullis_core::egress::Terminations::default(),
                agents: None,
                addresses: portcullis_core::egress::Addresses::default(),
                asks_for: None,
                section: "[sandbox]".to_owned(),
                lookups: lookups.clone(),
                whose: "demo".to_owned(),
                principal: "agent:demo".to_owned(),
                id: portcullis_core::ids::BoxId::new(id).unwrap(),
                run_dir: state.path().join("b").join(id),
                gid: rustix::process::getegid().as_raw(),
                runs: Flag::new(Arc::from([])).reader(),
            },
        );
    }
    let tree = tree.start().await.unwrap();
    let ask = |id: &str, name: &str| {
        let (path, name) = (state.path().join("b").join(id).join("e"), name.to_owned());
        async move {
            let mut stream = tokio::net::UnixStream::connect(path).await.unwrap();
            let request = format!("CONNECT {name}:443 HTTP/1.0\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            Answer::read(&mut stream).await.word().to_owned()
        }
    };
    let mut stuck = Vec::new();
    for n in 0..6 {
        stuck.push(tokio::spawn(ask(
            boxes[n % 2].0,
            &format!("a{n}.dead.test"),
        )));
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let began = Instant::now();
    // It is found, and is an address of books.
    assert_eq!(ask(boxes[2].0, "good.test").await, "documentation");
    let found = began.elapsed();
    // Of the same agent it waits for the others'.
    assert_eq!(ask(boxes[1].0, "good.test").await, "unresolved");
    assert!(began.elapsed() > found * 4, "{found:?}");
    for one in stuck {
        assert_eq!(one.await.unwrap(), "unresolved");
    }
    tree.stop().await;
}

/// A log that does not answer: its tree was never started.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_record_nothing_is_dialled() {
    let host = Upstream::plain().await;
    let at = format!("allowed.test:{}", host.port);
    let mut dead = super::builder();
    let nowhere = tempfile::TempDir::with_prefix("pce").unwrap();
    let audit = super::log(nowhere.path(), &mut dead);
    let scene = Scene::with_log(
        std::slice::from_ref(&at),
        OWN,
        EgressLimits::default(),
        Some(audit),
    )
    .await;
    scene.names.set("allowed.test", &[&["127.0.0.1"]]);
    let answer = scene
        .ask(format!("GET http://{at}/ HTTP/1.1\r\nHost: {at}\r\n\r\n").as_bytes())
        .await;
    assert_eq!((answer.status(), answer.word()), ("503", "not-recorded"));
    assert_eq!(host.seen.connections(), 0);
    scene.tree.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_crash_it_listens_at_the_same_place_and_an_end_closes_what_is_open() {
    let (scene, _host, at) = at(EgressLimits::default()).await;
    let request = format!("POST http://{at}/ HTTP/1.1\r\nHost: {at}\r\nContent-Length: 9\r\n\r\n");
    let mut open = scene.dial().await;
    open.write_all(request.as_bytes()).await.unwrap();
    scene.records("egress.allow", 1).await;
    assert!(scene.tree.window().panic("egress", PanicAt::Now));
    // What went through it is over.
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, open.read_to_end(&mut rest))
        .await
        .unwrap();
    let end = Instant::now() + PATIENCE;
    let mut again = loop {
        assert!(Instant::now() < end, "it does not come back");
        if let Ok(mut stream) = tokio::net::UnixStream::connect(&scene.socket).await
            && stream.write_all(request.as_bytes()).await.is_ok()
            // The old one may have taken it as its last; it lets go at once.
            && tokio::time::timeout(Duration::from_millis(500), stream.read_u8())
                .await
                .is_err()
        {
            break stream;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    scene.records("egress.allow", 2).await;
    let (ended, ()) = tokio::join!(
        tokio::time::timeout(PATIENCE, again.read_to_end(&mut rest)),
        scene.tree.stop()
    );
    let _ = ended.expect("it is closed");
}
