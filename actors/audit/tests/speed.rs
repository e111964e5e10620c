//! Figures, beside their limit in the same run: `cargo test --release -p portcullis-actors audit::tests::speed -- --ignored --nocapture --test-threads=1`.

use super::super::{AuditHandle, AuditWiring};
use super::*;
use crate::supervision::{Intensity, OnFatal, TreeBuilder};
use portcullis_core::audit::{Head, Stamp, encode_record};
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

const SPAN: Duration = Duration::from_millis(200);

fn entry() -> Entry {
    Entry {
        principal: Some("device:0123456789abcdef".into()),
        act_as: Some("agent:demo".into()),
        door: Some("ws".into()),
        object: Some("run:4f1c2d3e".into()),
        decision: Some("allow".into()),
        rule: Some("exec.sandbox.default".into()),
        request_id: Some("7f8e9d0c".into()),
        ..Entry::new("exec.run").with("argv", "sh -c 'id; ls /'")
    }
}

/// Records a second of the same bytes into one plain file, `group` for each fdatasync.
fn plain(dir: &Path, group: usize) -> f64 {
    let (mut one, stamp) = (
        Vec::new(),
        Stamp {
            wall_ms: 1,
            mono_ms: 1,
        },
    );
    let body = Body::intent(entry()).unwrap();
    encode_record(&mut one, Head::EMPTY, stamp, BootId([1; 16]), &body).unwrap();
    let bytes = one.repeat(group);
    let path = dir.join(format!("plain{group}"));
    let mut file = std::fs::File::options()
        .append(true)
        .create(true)
        .open(path)
        .unwrap();
    let (began, mut count) = (Instant::now(), 0);
    while began.elapsed() < SPAN {
        file.write_all(&bytes).unwrap();
        file.sync_data().unwrap();
        count += group;
    }
    count as f64 / began.elapsed().as_secs_f64()
}

/// Records a second through the room, by so many callers at once.
async fn through_room(audit: &AuditHandle, callers: usize) -> f64 {
    let began = Instant::now();
    let calls: Vec<_> = (0..callers)
        .map(|_| {
            let audit = audit.clone();
            tokio::spawn(async move {
                let mut count = 0_u64;
                while began.elapsed() < SPAN {
                    audit.event(entry()).await.unwrap();
                    count += 1;
                }
                count
            })
        })
        .collect();
    let mut count = 0;
    for call in calls {
        count += call.await.unwrap();
    }
    count as f64 / began.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[test]
#[ignore = "a figure, for release builds"]
fn durable_appends_against_a_plain_file() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    // In memory there is no disk to wait for: what is left is our own cost.
    for (place, parent) in [
        ("disk", std::env::temp_dir()),
        ("memory", "/dev/shm".into()),
    ] {
        let folder = tempfile::tempdir_in(parent).unwrap();
        let fatal: OnFatal = Arc::new(|room, why| panic!("{room}: {why}"));
        let mut builder = TreeBuilder::new(Intensity::default(), fatal);
        let wiring = AuditWiring {
            dir: folder.path().join("audit"),
            config: AuditConfig::default(),
            boot: BootId([1; 16]),
            clock: Clock::new(),
            feed: Feed::new(),
            version: "bench".into(),
        };
        let audit = AuditHandle::add(&mut builder, wiring);
        let tree = runtime.block_on(builder.start()).unwrap();
        for callers in [1, 64] {
            // By turns, so that the machine's mood is in both.
            let (mut limits, mut rates) = (Vec::new(), Vec::new());
            for _ in 0..21 {
                limits.push(plain(folder.path(), callers));
                rates.push(runtime.block_on(through_room(&audit, callers)));
            }
            let ratios = limits.iter().zip(&rates).map(|(limit, rate)| rate / limit);
            eprintln!(
                "append on {place}, {callers} callers: {:.0}/s, limit {:.0}/s, median ratio {:.2}",
                median(rates.clone()),
                median(limits.clone()),
                median(ratios.collect())
            );
        }
        runtime.block_on(tree.stop());
    }
}

#[test]
#[ignore = "a figure, for release builds"]
fn verifying() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("audit");
    std::fs::create_dir(&dir).unwrap();
    let (mut head, mut out) = (Head::EMPTY, Vec::new());
    let header = portcullis_core::audit::SegmentHeader { after: head };
    out.extend_from_slice(&header.encode());
    let stamp = Stamp {
        wall_ms: 1,
        mono_ms: 1,
    };
    let body = Body::intent(entry()).unwrap();
    while head.seq.0 < 1_000_000 {
        head = encode_record(&mut out, head, stamp, BootId([1; 16]), &body).unwrap();
    }
    std::fs::write(dir.join(header.file_name()), &out).unwrap();
    let size = out.len();
    for _ in 0..3 {
        let began = Instant::now();
        let report = verify_dir(&dir).unwrap();
        let took = began.elapsed().as_secs_f64();
        assert!(report.intact && report.records == 1_000_000);
        eprintln!(
            "verify: {:.0} records/s, {:.0} MB/s, {} bytes a record",
            1e6 / took,
            size as f64 / 1e6 / took,
            size / 1_000_000
        );
    }
    // The limit: the same hashes and nothing else.
    let leaf = &out[88..88 + size / 1_000_000 - 36];
    let began = Instant::now();
    let mut last = Head::EMPTY.hash;
    for _ in 0..1_000_000 {
        last = portcullis_core::audit::leaf_hash(std::hint::black_box(leaf));
    }
    eprintln!(
        "hash alone: {:.0}/s ({})",
        1e6 / began.elapsed().as_secs_f64(),
        &last.to_string()[..4]
    );
}

#[test]
#[ignore = "a figure, for release builds"]
fn opening_beside_existing_state() {
    let place = Place::new();
    let config = AuditConfig::default();
    let log = try_open(&place.dir, 1, config.clone()).unwrap();
    for _ in 0..3_000 {
        let waits: Vec<_> = (0..64)
            .map(|_| log.send(Body::intent(entry()).unwrap()))
            .collect();
        let seqs: Vec<Seq> = waits
            .into_iter()
            .map(|wait| wait.blocking_recv().unwrap().unwrap())
            .collect();
        let waits: Vec<_> = seqs
            .into_iter()
            .map(|seq| log.send(Body::outcome(seq, Outcome::ok()).unwrap()))
            .collect();
        for wait in waits {
            wait.blocking_recv().unwrap().unwrap();
        }
    }
    log.crash();
    let began = Instant::now();
    let log = try_open(&place.dir, 2, config).unwrap();
    eprintln!(
        "open: {:?} for {} records in {} segments",
        began.elapsed(),
        log.report.head.seq,
        log.report.segments_read
    );
    log.close();
}
