//! Sinks with receivers of our own over loopback: what they take, and what happens while they do not.

#![allow(
    clippy::disallowed_methods,
    reason = "tests may sleep and spawn; what they test may not"
)]

use super::*;
use crate::audit::{AuditConfig, AuditHandle, AuditKeys, AuditWiring, Clock, Cursor, SinkConfig};
use crate::supervision::{Feed, Intensity, OnFatal, Tree, TreeBuilder};
use portcullis_core::audit::{BootId, Entry, Query};
use portcullis_core::identity::Identity;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, UnixDatagram};

struct House {
    tree: Tree,
    audit: AuditHandle,
    sinks: SinksHandle,
}

fn sink(kind: &str, address: &str) -> SinkConfig {
    SinkConfig {
        kind: kind.into(),
        address: address.into(),
        ..SinkConfig::default()
    }
}

fn file(path: &Path, format: &str) -> SinkConfig {
    SinkConfig {
        path: path.to_owned(),
        format: format.into(),
        ..sink("file", "")
    }
}

async fn house(folder: &Path, boot: u8, sinks: &[(&str, SinkConfig)]) -> House {
    let state = folder.join("state");
    std::fs::create_dir_all(&state).unwrap();
    let fatal: OnFatal = Arc::new(|room, why| panic!("{room}: {why}"));
    let mut tree = TreeBuilder::new(Intensity::default(), fatal);
    let audit = AuditHandle::add(
        &mut tree,
        AuditWiring {
            state: None,
            dir: state.join("audit"),
            keys: AuditKeys::new(state.join("keys"), &Identity::from_random([1; 32])),
            config: AuditConfig::default(),
            boot: BootId([boot; 16]),
            clock: Clock::new(),
            feed: Feed::new(),
            unwritten: Arc::default(),
            version: "test".into(),
        },
    );
    let sinks = sinks
        .iter()
        .map(|(name, sink)| ((*name).to_owned(), settings(sink).unwrap()))
        .collect();
    let sinks = SinksHandle::add(
        &mut tree,
        SinksWiring {
            sinks,
            dir: state.join("sinks"),
            audit: audit.clone(),
            vault: None,
            tls: Arc::new(|_| Err(std::io::Error::other("no TLS here"))),
            host: "gate".into(),
            version: "0.1.0".into(),
        },
    );
    let tree = tree.start().await.unwrap();
    House { tree, audit, sinks }
}

impl House {
    /// Records so many events, and gives the last one's number.
    async fn events(&self, count: u64) -> u64 {
        let mut last = 0;
        for n in 0..count {
            let entry = Entry::new("test.event").with("n", n.to_string());
            last = self.audit.event(entry).await.unwrap().0;
        }
        last
    }

    async fn until(&self, what: &str, mut is: impl FnMut(&SinkStatus) -> bool, name: &str) {
        let deadline = Instant::now() + Duration::from_mins(1);
        loop {
            let all = self.sinks.status().await.unwrap();
            if is(&all[name]) {
                return;
            }
            assert!(Instant::now() < deadline, "{what}: {all:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn has_taken(&self, name: &str, last: u64) {
        let what = format!("{name} has not taken {last}");
        self.until(&what, |status| status.taken >= last, name).await;
    }
}

fn seqs(text: &str) -> Vec<u64> {
    let lines = text.lines();
    let seq = |line: &str| serde_json::from_str::<Value>(line).unwrap()["seq"].as_u64();
    lines.map(|line| seq(line).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_gets_every_record_in_order_also_moved_away_and_over_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (path, cef) = (
        folder.path().join("out.jsonl"),
        folder.path().join("out.cef"),
    );
    let sinks = [("one", file(&path, "jsonl")), ("two", file(&cef, "cef"))];
    let first = house(folder.path(), 1, &sinks).await;
    let last = first.events(300).await;
    first.has_taken("one", last).await;
    first.has_taken("two", last).await;
    let moved = folder.path().join("out.1");
    std::fs::rename(&path, &moved).unwrap();
    let last = first.events(5).await;
    first.has_taken("one", last).await;
    first.tree.stop().await;
    let second = house(folder.path(), 2, &sinks).await;
    let last = second.events(10).await;
    second.has_taken("one", last).await;
    second.has_taken("two", last).await;
    second.tree.stop().await;
    let both = [&moved, &path].map(|path| std::fs::read_to_string(path).unwrap());
    let all = seqs(&both.concat());
    assert!(all.len() >= usize::try_from(last).unwrap());
    let distinct: BTreeSet<u64> = all.iter().copied().collect();
    assert_eq!(
        distinct.into_iter().take(all.len()).collect::<Vec<_>>()[..],
        (1..=last).collect::<Vec<_>>()[..]
    );
    assert!(all.is_sorted());
    let cef = std::fs::read_to_string(&cef).unwrap();
    assert!(
        cef.lines()
            .all(|line| line.starts_with("CEF:0|Portcullis|"))
    );
    assert!(cef.lines().count() >= usize::try_from(last).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_inside_the_state_or_that_is_none_takes_nothing_and_the_sink_says_so() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("dir")).unwrap();
    let fifo = folder.path().join("fifo");
    rustix::fs::mkfifoat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
    )
    .unwrap();
    let sinks = [
        ("state", file(&folder.path().join("state/audit/x"), "jsonl")),
        ("fifo", file(&fifo, "jsonl")),
        ("folder", file(&folder.path().join("dir"), "jsonl")),
        ("none", file(&folder.path().join("none/x"), "jsonl")),
    ];
    let house = house(folder.path(), 1, &sinks).await;
    house.events(1).await;
    for (name, _) in &sinks {
        house
            .until(
                name,
                |status| status.error.is_some() && status.lag > 0,
                name,
            )
            .await;
    }
    assert!(!folder.path().join("state/audit/x").exists());
    house.tree.stop().await;
}

/// A receiver of POSTs: answers with what it is told, and keeps the bodies that it said yes to.
#[derive(Clone, Default)]
struct Receiver {
    bodies: Arc<Mutex<Vec<String>>>,
    answer: Arc<AtomicU16>,
    asked: Arc<AtomicU64>,
    /// Where it sends whoever asks.
    location: Arc<Mutex<Option<String>>>,
}

/// Takes the request and says nothing.
const SILENT: u16 = 0;

impl Receiver {
    async fn start(answer: u16) -> (Self, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}/in?x=1", listener.local_addr().unwrap());
        let receiver = Self::default();
        receiver.answer.store(answer, Ordering::SeqCst);
        let own = receiver.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(own.clone().serve(stream));
            }
        });
        (receiver, address)
    }

    async fn serve(self, stream: tokio::net::TcpStream) {
        let mut stream = BufReader::new(stream);
        let (mut head, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await.unwrap();
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line == "\r\n" || line.is_empty() {
                break;
            }
            head.push_str(&line);
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.unwrap();
        self.asked.fetch_add(1, Ordering::SeqCst);
        assert!(head.starts_with("POST /in?x=1 HTTP/1.1\r\n"), "{head}");
        let answer = self.answer.load(Ordering::SeqCst);
        if answer == SILENT {
            std::future::pending::<()>().await;
        }
        if answer == 200 {
            let body = String::from_utf8(body).unwrap();
            self.bodies.lock().unwrap().push(body);
        }
        let location = self.location.lock().unwrap().clone();
        let location = location.map_or_else(String::new, |to| format!("location: {to}\r\n"));
        let text = format!(
            "HTTP/1.1 {answer} X\r\n{location}content-length: 2\r\nconnection: close\r\n\r\nok"
        );
        stream.write_all(text.as_bytes()).await.unwrap();
    }

    fn text(&self) -> String {
        self.bodies.lock().unwrap().concat()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_says_no_or_nothing_gets_all_of_it_later_and_the_log_never_waits() {
    let folder = tempfile::tempdir().unwrap();
    let (busy, at) = Receiver::start(503).await;
    let (silent, silent_at) = Receiver::start(SILENT).await;
    let sinks = [
        ("busy", sink("http", &at)),
        ("silent", sink("http", &silent_at)),
    ];
    let house = house(folder.path(), 1, &sinks).await;
    let began = Instant::now();
    let last = house.events(300).await;
    // 300 durable records; a sink that is waited for would take 30 s for one.
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "{:?}",
        began.elapsed()
    );
    house
        .until(
            "it says why",
            |s| s.error.as_deref() == Some("the receiver answers 503"),
            "busy",
        )
        .await;
    assert!(silent.asked.load(Ordering::SeqCst) > 0);
    let taken = house.sinks.status().await.unwrap();
    assert_eq!((taken["busy"].taken, taken["silent"].taken), (0, 0));
    assert_eq!(
        Cursor::new(&folder.path().join("state/sinks"), "busy")
            .read()
            .unwrap(),
        0
    );
    busy.answer.store(200, Ordering::SeqCst);
    house.has_taken("busy", last).await;
    house
        .until("no error", |s| s.error.is_none() && s.lag == 0, "busy")
        .await;
    assert_eq!(seqs(&busy.text()), (1..=last).collect::<Vec<_>>());
    house.tree.stop().await;
    assert!(silent.text().is_empty());
}

/// Elsewhere a body, and the credentials beside it, went where a redirect said.
#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_sends_elsewhere_is_not_followed() {
    let folder = tempfile::tempdir().unwrap();
    let (elsewhere, there) = Receiver::start(200).await;
    let (receiver, at) = Receiver::start(301).await;
    *receiver.location.lock().unwrap() = Some(there);
    let house = house(folder.path(), 1, &[("siem", sink("http", &at))]).await;
    let last = house.events(5).await;
    for answer in [301, 302, 307, 308] {
        receiver.answer.store(answer, Ordering::SeqCst);
        let told = format!("the receiver answers {answer}");
        let is = |status: &SinkStatus| status.error.as_deref() == Some(&told);
        house.until("it says so", is, "siem").await;
    }
    assert_eq!(elsewhere.asked.load(Ordering::SeqCst), 0);
    assert_eq!(house.sinks.status().await.unwrap()["siem"].taken, 0);
    receiver.answer.store(200, Ordering::SeqCst);
    house.has_taken("siem", last).await;
    house.tree.stop().await;
    assert_eq!(elsewhere.asked.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_receiver_has_taken_is_not_lost_when_nobody_could_note_it() {
    let folder = tempfile::tempdir().unwrap();
    let (receiver, at) = Receiver::start(200).await;
    let sinks = [("siem", sink("http", &at))];
    let first = house(folder.path(), 1, &sinks).await;
    let last = first.events(50).await;
    first.has_taken("siem", last).await;
    first.tree.stop().await;
    // As if the gateway had ended between the receiver's yes and the note of it.
    Cursor::new(&folder.path().join("state/sinks"), "siem")
        .write(20)
        .unwrap();
    let second = house(folder.path(), 2, &sinks).await;
    let last = second.events(5).await;
    second.has_taken("siem", last).await;
    let all = seqs(&receiver.text());
    assert!(all.iter().filter(|seq| **seq == 21).count() == 2, "{all:?}");
    let distinct: BTreeSet<u64> = all.into_iter().collect();
    assert_eq!(
        distinct.into_iter().collect::<Vec<_>>(),
        (1..=last).collect::<Vec<_>>()
    );
    // A cursor that is no number: what was taken is not known, and nothing is sent.
    second.tree.stop().await;
    std::fs::write(folder.path().join("state/sinks/siem"), "x\n").unwrap();
    let third = house(folder.path(), 3, &sinks).await;
    third
        .until(
            "it says so",
            |s| {
                s.error
                    .as_deref()
                    .is_some_and(|why| why.contains("no number"))
            },
            "siem",
        )
        .await;
    // Nor with one that no record of this log has: the receiver would be told nothing until then.
    std::fs::write(
        folder.path().join("state/sinks/siem"),
        "18446744073709551615\n",
    )
    .unwrap();
    third
        .until(
            "it says so too",
            |s| {
                s.error
                    .as_deref()
                    .is_some_and(|why| why.contains("behind the log's end"))
            },
            "siem",
        )
        .await;
    // Mended, it goes on without a restart of the gateway.
    Cursor::new(&folder.path().join("state/sinks"), "siem")
        .write(last)
        .unwrap();
    let last = third.events(1).await;
    third.has_taken("siem", last).await;
    third.tree.stop().await;
}

/// Messages as a receiver of octet counting reads them.
async fn framed(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> Option<String> {
    let mut count = 0_usize;
    loop {
        match stream.read_u8().await.ok()? {
            b' ' => break,
            digit => count = count * 10 + usize::from(digit - b'0'),
        }
    }
    let mut message = vec![0; count];
    stream.read_exact(&mut message).await.ok()?;
    Some(String::from_utf8(message).unwrap())
}

fn seq_of(message: &str) -> u64 {
    assert!(message.starts_with("<10"), "{message}");
    let rest = message.split_once("[audit@32473 seq=\"").unwrap().1;
    rest.split_once('"').unwrap().0.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn syslog_over_a_stream_that_breaks_again_and_again_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = format!("tcp://{}", listener.local_addr().unwrap());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let kept = seen.clone();
    tokio::spawn(async move {
        // Each connection is closed after some messages, without a word, and what is in flight on it is lost.
        for turn in 1_usize.. {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            let most = if turn < 5 { 7 * turn } else { usize::MAX };
            for _ in 0..most {
                let Some(message) = framed(&mut stream).await else {
                    break;
                };
                kept.lock().unwrap().push(seq_of(&message));
            }
        }
    });
    let house = house(folder.path(), 1, &[("log", sink("syslog", &at))]).await;
    let mut last = 0;
    for _ in 0..8 {
        last = house.events(30).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    house.has_taken("log", last).await;
    let distinct: BTreeSet<u64> = seen.lock().unwrap().iter().copied().collect();
    assert_eq!(
        distinct.into_iter().collect::<Vec<_>>(),
        (1..=last).collect::<Vec<_>>()
    );
    house.tree.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn syslog_by_datagrams_gets_every_record_and_a_word_of_what_is_too_long() {
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("log");
    let socket = UnixDatagram::bind(&path).unwrap();
    let at = format!("unix:{}", path.display());
    let house = house(folder.path(), 1, &[("log", sink("syslog", &at))]).await;
    let last = house.events(40).await;
    let mut seen = Vec::new();
    let mut buffer = vec![0; 256 * 1024];
    while seen.last() != Some(&last) {
        let within = Duration::from_secs(30);
        let length = tokio::time::timeout(within, socket.recv(&mut buffer)).await;
        let text = std::str::from_utf8(&buffer[..length.unwrap().unwrap()]).unwrap();
        seen.push(seq_of(text));
    }
    assert_eq!(seen, (1..=last).collect::<Vec<_>>());
    house.has_taken("log", last).await;
    house.tree.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hole_that_retention_left_is_counted_and_stands_in_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let (receiver, at) = Receiver::start(200).await;
    let sinks = [("siem", sink("http", &at))];
    let first = house(folder.path(), 1, &sinks).await;
    let last = first.events(10).await;
    first.has_taken("siem", last).await;
    first.tree.stop().await;
    // Small segments, of which the first go by hand, as retention does it.
    let small = AuditConfig {
        segment_bytes: 65_536,
        keep_mib: 1,
        once_hours: 0,
        sinks: [("siem".to_owned(), sinks[0].1.clone())].into(),
        ..AuditConfig::default()
    };
    let state = folder.path().join("state");
    let mut tree = TreeBuilder::new(
        Intensity::default(),
        Arc::new(|room, why| panic!("{room}: {why}")),
    );
    let audit = AuditHandle::add(
        &mut tree,
        AuditWiring {
            state: None,
            dir: state.join("audit"),
            keys: AuditKeys::new(state.join("keys"), &Identity::from_random([1; 32])),
            config: small,
            boot: BootId([2; 16]),
            clock: Clock::new(),
            feed: Feed::new(),
            unwritten: Arc::default(),
            version: "test".into(),
        },
    );
    let tree = tree.start().await.unwrap();
    let big = |n: u64| {
        let entry = Entry::new("test.event").with("n", n.to_string());
        let more = (0..8).fold(entry, |entry, k| {
            entry.with(format!("k{k}"), "x".repeat(1_000))
        });
        audit.event(more)
    };
    audit.event(Entry::new("vault.open")).await.unwrap();
    for n in 0..40 {
        futures_util::future::join_all((0..10).map(|k| big(n * 10 + k))).await;
    }
    audit.event(Entry::new("vault.open")).await.unwrap();
    for n in 0..10 {
        futures_util::future::join_all((0..10).map(|k| big(n * 10 + k))).await;
    }
    let retired = Query {
        action: Some("audit.retire".into()),
        ..Query::default()
    };
    let retired = audit.query(retired).await.unwrap();
    let told = serde_json::to_value(&retired.last().unwrap().record).unwrap();
    let behind = told["detail"]["not_taken"].as_str().unwrap();
    assert!(behind.starts_with("siem after "), "{told}");
    tree.stop().await;
    let second = house(folder.path(), 3, &sinks).await;
    let last = second.events(1).await;
    second.has_taken("siem", last).await;
    second
        .until("the hole is counted", |status| status.lost > 0, "siem")
        .await;
    let lost = Query {
        action: Some("sinks.lost".into()),
        ..Query::default()
    };
    assert_eq!(second.audit.query(lost).await.unwrap().len(), 1);
    assert!(
        receiver.text().contains("sinks.lost") || {
            let last = second.audit.head().await.unwrap().seq.0;
            second.has_taken("siem", last).await;
            receiver.text().contains("sinks.lost")
        }
    );
    second.tree.stop().await;
}

#[test]
fn what_a_sink_may_be_and_what_not() {
    let parse = |kind: &str, address: &str, pin: &str, token: &str| {
        let mut config = sink(kind, address);
        config.pin = pin.into();
        config.token.vault = token.into();
        settings(&config).map(|s| s.to).map_err(|(key, _)| key)
    };
    let peer = |host: &str, port, tls: Option<&str>| Peer {
        host: host.into(),
        port,
        tls: tls.map(str::to_owned),
    };
    let http = |peer, path: &str| Ok(Destination::Http(peer, path.into()));
    assert_eq!(
        parse("http", "https://siem.example/in", "", "T"),
        http(peer("siem.example", 443, Some("")), "/in")
    );
    assert_eq!(
        parse("http", "https://siem.example", "", ""),
        http(peer("siem.example", 443, Some("")), "/")
    );
    assert_eq!(
        parse("http", "http://[::1]:8080/x", "", ""),
        http(peer("::1", 8080, None), "/x")
    );
    assert_eq!(
        parse("syslog", "tls://h:6514", "ab", ""),
        Ok(Destination::Stream(peer("h", 6514, Some("ab"))))
    );
    assert_eq!(
        parse("syslog", "unix:/dev/log", "", ""),
        Ok(Destination::Datagram("/dev/log".into()))
    );
    for (kind, address, pin, token, key) in [
        ("", "", "", "", "kind"),
        ("kafka", "", "", "", "kind"),
        ("file", "", "", "", "path"),
        ("http", "", "", "", "address"),
        ("http", "http://siem.example/in", "", "", "address"),
        ("http", "http://localhost/in", "", "", "address"),
        ("http", "http://127.0.0.1/in", "ab", "", "pin"),
        (
            "http",
            "https://me:secret@siem.example/in",
            "",
            "",
            "address",
        ),
        ("http", "https://siem.example/a b", "", "", "address"),
        ("http", "https://siem.example:0/", "", "", "address"),
        ("syslog", "tcp://h", "", "", "address"),
        ("syslog", "udp://h:514", "", "", "address"),
        ("syslog", "unix:dev/log", "", "", "address"),
        ("syslog", "tcp://h:514", "ab", "", "pin"),
        ("syslog", "tls://h:514", "", "T", "token"),
    ] {
        assert_eq!(
            parse(kind, address, pin, token),
            Err(key),
            "{kind} {address}"
        );
    }
}
