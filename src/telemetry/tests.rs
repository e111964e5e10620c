//! Against a collector of ours that knows nothing of OpenTelemetry's crates: a socket, HTTP by hand, protobuf by hand.

use std::io::Write as _;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tracing::Instrument as _;
use tracing_subscriber::layer::SubscriberExt as _;

use super::*;

#[path = "../../tests/support/protobuf.rs"]
mod protobuf;
use protobuf::{Message, spans};

/// Takes requests and answers them with this status; hands over their bodies.
async fn collector(status: &'static str) -> (String, mpsc::UnboundedReceiver<(String, Vec<u8>)>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}/v1/traces", listener.local_addr().unwrap());
    let (tx, rx) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let tx = tx.clone();
            tokio::spawn(async move {
                let mut all = Vec::new();
                loop {
                    let head = loop {
                        if let Some(at) = all.windows(4).position(|w| w == b"\r\n\r\n") {
                            break at + 4;
                        }
                        if socket.read_buf(&mut all).await.unwrap_or(0) == 0 {
                            return;
                        }
                    };
                    let text = String::from_utf8_lossy(&all[..head]).to_lowercase();
                    let len: usize = text
                        .lines()
                        .find_map(|l| l.strip_prefix("content-length: "))
                        .map_or(0, |n| n.trim().parse().unwrap());
                    while all.len() < head + len {
                        assert!(socket.read_buf(&mut all).await.unwrap() > 0);
                    }
                    let body = all[head..head + len].to_vec();
                    all.drain(..head + len);
                    tx.send((text, body)).unwrap();
                    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                    socket.write_all(answer.as_bytes()).await.unwrap();
                }
            });
        }
    });
    (endpoint, rx)
}

fn config(endpoint: &str) -> OtlpConfig {
    OtlpConfig {
        enabled: true,
        endpoint: endpoint.to_owned(),
        timeout_ms: 1_000,
        ..OtlpConfig::default()
    }
}

#[tokio::test]
async fn a_trace_arrives_whole_with_right_parents_and_only_listed_fields() {
    let (endpoint, mut requests) = collector("200 OK").await;
    let (telemetry, layer) = Telemetry::export(&config(&endpoint), "boot-1").unwrap();
    let subscriber = tracing_subscriber::registry().with(layer);
    {
        let _guard = tracing::subscriber::set_default(subscriber);
        let request = tracing::info_span!(target: "portcullis", "exec.run", method = "exec.run", agent = "demo", argv = "--token=hunter2");
        async {
            let wait = tracing::info_span!(target: "portcullis", "approval.wait", approval = "a1", secret = "hunter2");
            async {
                tracing::error!(target: "portcullis", password = "hunter2", "hunter2");
            }
            .instrument(wait)
            .await;
            drop(tracing::info_span!(target: "portcullis", "sandbox.run", exit = 0_i64, r#box = "hunter2".repeat(100)));
            drop(tracing::info_span!(target: "hyper", "library"));
        }
        .instrument(request)
        .await;
    }
    let view = telemetry.shutdown(Duration::from_secs(5)).await;
    assert_eq!(
        view,
        ExportView {
            exported: 3,
            dropped: 0,
            failed: 0
        }
    );
    let (head, body) = requests.recv().await.unwrap();
    assert!(
        head.starts_with("post /v1/traces http/1.1\r\n")
            && head.contains("content-type: application/x-protobuf")
    );
    let resource = Message::parse(&body).unwrap();
    let mut resource: Vec<String> = resource
        .at(&[1, 1, 1, 1])
        .iter()
        .map(protobuf::Value::text)
        .collect();
    resource.sort();
    assert_eq!(
        resource,
        ["service.instance.id", "service.name", "service.version"]
    );

    let all = spans(&body);
    let names: Vec<&str> = all.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["approval.wait", "sandbox.run", "exec.run"]);
    let root = &all[2];
    assert!(root.parent.is_empty() && root.id.len() == 8 && root.trace.len() == 16);
    for child in &all[..2] {
        assert_eq!((&child.parent, &child.trace), (&root.id, &root.trace));
        assert!(child.start >= root.start && child.end <= root.end && child.start <= child.end);
        assert_eq!(child.events, 0);
    }
    assert_eq!(
        root.attributes,
        [
            ("rpc.method".into(), "exec.run".into()),
            ("gen_ai.agent.id".into(), "demo".into())
        ]
    );
    assert_eq!(
        all[0].attributes,
        [("portcullis.approval.id".into(), "a1".into())]
    );
    assert_eq!(
        all[1].attributes[0],
        ("process.exit.code".into(), "0".into())
    );
    assert_eq!(all[1].attributes[1].1.len(), 256);
    let leaked = String::from_utf8_lossy(&body).matches("hunter2").count();
    assert_eq!(leaked, 256 / 7, "only the attribute that is on the list");
}

#[tokio::test]
async fn a_full_queue_drops_counts_and_never_waits() {
    // Accepts, and never answers.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}/v1/traces", listener.local_addr().unwrap());
    let otlp = OtlpConfig {
        queue: 10,
        ..config(&endpoint)
    };
    let (telemetry, layer) = Telemetry::export(&otlp, "boot-1").unwrap();
    let started = std::time::Instant::now();
    {
        let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));
        for _ in 0..1_000 {
            drop(tracing::info_span!(target: "portcullis", "exec.run"));
        }
    }
    assert!(
        started.elapsed() < Duration::from_millis(500),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(telemetry.view().dropped, 990);
    let view = telemetry.shutdown(Duration::from_millis(200)).await;
    assert_eq!(
        view,
        ExportView {
            exported: 0,
            dropped: 990,
            failed: 10
        }
    );
    assert!(started.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn a_collector_that_refuses_is_counted() {
    let (endpoint, _requests) = collector("400 Bad Request").await;
    let (telemetry, layer) = Telemetry::export(&config(&endpoint), "boot-1").unwrap();
    {
        let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));
        drop(tracing::info_span!(target: "portcullis", "exec.run"));
    }
    let view = telemetry.shutdown(Duration::from_secs(3)).await;
    assert_eq!((view.exported, view.failed), (0, 1));
}

/// Elsewhere a body went where a redirect said.
#[tokio::test]
async fn a_collector_that_sends_elsewhere_is_not_followed() {
    let (there, mut elsewhere) = collector("200 OK").await;
    for status in ["302 Found", "307 Temporary Redirect"] {
        let status = format!("{status}\r\nlocation: {there}");
        let (endpoint, mut requests) = collector(status.leak()).await;
        let (telemetry, layer) = Telemetry::export(&config(&endpoint), "boot-1").unwrap();
        {
            let subscriber = tracing_subscriber::registry().with(layer);
            let _guard = tracing::subscriber::set_default(subscriber);
            drop(tracing::info_span!(target: "portcullis", "exec.run"));
        }
        let view = telemetry.shutdown(Duration::from_secs(3)).await;
        assert_eq!((view.exported, view.failed), (0, 1));
        assert!(requests.recv().await.is_some(), "it was asked");
    }
    assert!(elsewhere.try_recv().is_err());
}

#[tokio::test]
async fn off_is_off_and_a_wrong_endpoint_is_named() {
    let refused = |otlp: OtlpConfig| {
        Telemetry::export::<tracing_subscriber::Registry>(&otlp, "x")
            .map(|_| ())
            .unwrap_err()
            .to_string()
    };
    for endpoint in [
        "http://192.0.2.1:4318/v1/traces",
        "http://collector.example/v1/traces",
        "http://127.0.0.1.collector.example/v1/traces",
        "https://user:secret@collector.example/v1/traces",
        "https:///v1/traces",
        "127.0.0.1:4318",
        "file:///etc/passwd",
        "http://",
        "",
    ] {
        assert!(
            refused(config(endpoint)).starts_with("CONFIG_INVALID: [telemetry.otlp] endpoint"),
            "{endpoint}"
        );
    }
    assert!(
        refused(OtlpConfig {
            ratio: 1.5,
            ..config("http://127.0.0.1:1/")
        })
        .contains("ratio")
    );
    let (telemetry, layer) =
        Telemetry::export::<tracing_subscriber::Registry>(&OtlpConfig::default(), "x").unwrap();
    assert!(layer.is_none());
    assert_eq!(
        telemetry.shutdown(Duration::from_secs(1)).await,
        ExportView::default()
    );
}

#[test]
fn a_line_of_the_log_stays_one_line() {
    let mut out = Vec::new();
    log::Line(&mut out)
        .write_all(b"who=\"x\x1b[2J\n2026 INFO forged\"\n")
        .unwrap();
    assert_eq!(out, b"who=\"x\\u{1b}[2J\\n2026 INFO forged\"\n");
}
