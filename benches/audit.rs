//! The log: durable appends against the same bytes in a plain file, verifying against its hash alone, opening.
#![forbid(unsafe_code)]

mod support;

use std::fs;
use std::hint::black_box;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use portcullis_actors::audit::{
    AuditConfig, AuditHandle, AuditKeys, AuditWiring, Clock, verify_dir,
};
use portcullis_actors::supervision::{Feed, Intensity, OnFatal, Tree, TreeBuilder};
use portcullis_core::audit::{
    Body, BootId, Entry, EpochKey, Head, SegmentHeader, Stamp, encode_record, leaf_hash,
};
use portcullis_core::identity::Identity;
use support::{cpu_of, least, median};
use zeroize::Zeroizing;

/// Short turns, limit and subject one after the other: the disk's mood changes within seconds.
const SPAN: Duration = Duration::from_millis(200);
const TURNS: usize = 15;
const RECORDS: u32 = 1_000_000;
const STAMP: Stamp = Stamp {
    wall_ms: 1,
    mono_ms: 1,
};
const BOOT: BootId = BootId([1; 16]);

fn main() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    for callers in [1, 64] {
        let (mut ratios, mut ours, mut limits) = (vec![], vec![], vec![]);
        let mut bare = vec![];
        let (mut cpu, mut groups) = (vec![], vec![]);
        let dir = folder.path().join(format!("audit{callers}"));
        for _ in 0..TURNS {
            let limit = plain(folder.path(), callers)?;
            let (rate, cost, group) = runtime.block_on(room(&dir, callers))?;
            cpu.push(cost);
            groups.push(group);
            ratios.push(rate / limit);
            bare.push(rate / runtime.block_on(asked(folder.path(), callers))?);
            ours.push(rate);
            limits.push(limit);
        }
        let (rate, limit) = (median(ours), median(limits));
        println!("{callers} callers: {rate:.0} durable records/s, plain file {limit:.0}/s");
        println!(
            "{callers} callers: {:.1} records a sync, {:.1} us of CPU a record, its caller's work included",
            median(groups),
            median(cpu)
        );
        let what = format!("durable append, {callers} callers / plain file");
        least(&what, median(ratios), "x", 0.7);
        println!(
            "{callers} callers: {:.2} x of as many tasks that ask one thread for the same bytes",
            median(bare)
        );
    }
    let began = Instant::now();
    let reopened = folder.path().join("audit64");
    runtime.block_on(async {
        let (_, tree) = start(&reopened).await?;
        println!(
            "open beside this log: {:.0} ms",
            began.elapsed().as_secs_f64() * 1e3
        );
        tree.stop().await;
        anyhow::Ok(())
    })?;
    verifying(&folder.path().join("verify"))
}

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

fn body() -> Result<Body> {
    Body::intent(entry()).ok().context("the entry is no record")
}

fn one_record() -> Result<Vec<u8>> {
    let mut one = vec![];
    let key = EpochKey::from_random(&Zeroizing::new([1; 32]));
    let key = Some(key.records());
    encode_record(&mut one, Head::EMPTY, STAMP, BOOT, &body()?, key)
        .ok()
        .context("not encoded")?;
    Ok(one)
}

/// Records a second of the same bytes into one plain file, `group` for each fdatasync.
fn plain(folder: &Path, group: usize) -> Result<f64> {
    let bytes = one_record()?.repeat(group);
    let mut file = fs::File::create(folder.join(format!("plain{group}")))?;
    let (began, mut count) = (Instant::now(), 0_usize);
    while began.elapsed() < SPAN {
        file.write_all(&bytes)?;
        file.sync_data()?;
        count += group;
    }
    Ok(count as f64 / began.elapsed().as_secs_f64())
}

/// Records a second of the same bytes, asked of one bare thread by so many tasks: what the round trips alone leave of [`plain`].
async fn asked(folder: &Path, callers: usize) -> Result<f64> {
    type Asked = (Vec<u8>, tokio::sync::oneshot::Sender<()>);
    let bytes = one_record()?;
    let mut file = fs::File::create(folder.join(format!("asked{callers}")))?;
    let (tx, rx) = std::sync::mpsc::sync_channel::<Asked>(1_024);
    let writer = std::thread::spawn(move || -> std::io::Result<()> {
        let (mut buf, mut waits) = (vec![], vec![]);
        while let Ok((bytes, wait)) = rx.recv() {
            buf.extend_from_slice(&bytes);
            waits.push(wait);
            // As the room does: for as many as there are callers, and no longer than a sync takes.
            let until = Instant::now() + Duration::from_micros(200);
            while waits.len() < callers && Instant::now() < until {
                let Ok((bytes, wait)) = rx.try_recv() else {
                    std::thread::yield_now();
                    continue;
                };
                buf.extend_from_slice(&bytes);
                waits.push(wait);
            }
            file.write_all(&buf)?;
            file.sync_data()?;
            buf.clear();
            for wait in waits.drain(..) {
                // A caller whose time is over has gone.
                let _ = wait.send(());
            }
        }
        Ok(())
    });
    let began = Instant::now();
    let calls: Vec<_> = (0..callers)
        .map(|_| {
            let (tx, bytes) = (tx.clone(), bytes.clone());
            tokio::spawn(async move {
                let mut count = 0_u32;
                while began.elapsed() < SPAN {
                    let (wait, done) = tokio::sync::oneshot::channel();
                    tx.send((bytes.clone(), wait))?;
                    done.await?;
                    count += 1;
                }
                anyhow::Ok(count)
            })
        })
        .collect();
    drop(tx);
    let mut count = 0;
    for call in calls {
        count += call.await??;
    }
    let rate = f64::from(count) / began.elapsed().as_secs_f64();
    writer.join().ok().context("the bare writer panicked")??;
    Ok(rate)
}

async fn start(dir: &Path) -> Result<(AuditHandle, Tree)> {
    let fatal: OnFatal = Arc::new(|room, why| panic!("{room}: {why}"));
    let mut builder = TreeBuilder::new(Intensity::default(), fatal);
    let wiring = AuditWiring {
        state: None,
        dir: dir.to_owned(),
        keys: AuditKeys::new(dir.with_extension("keys"), &Identity::from_random([1; 32])),
        config: AuditConfig::default(),
        boot: BOOT,
        clock: Clock::new(),
        feed: Feed::new(),
        unwritten: std::sync::Arc::default(),
        version: "bench".into(),
    };
    let audit = AuditHandle::add(&mut builder, wiring);
    Ok((audit, builder.start().await?))
}

/// Records a second through the room, by so many callers at once; microseconds of CPU a record; records a sync.
async fn room(dir: &Path, callers: usize) -> Result<(f64, f64, f64)> {
    let (audit, tree) = start(dir).await?;
    let before = cpu_of(std::process::id())?;
    let began = Instant::now();
    let calls: Vec<_> = (0..callers)
        .map(|_| {
            let audit = audit.clone();
            tokio::spawn(async move {
                let mut count = 0_u32;
                while began.elapsed() < SPAN {
                    audit.intent(entry()).await?;
                    count += 1;
                }
                anyhow::Ok(count)
            })
        })
        .collect();
    let mut count = 0;
    for call in calls {
        count += call.await??;
    }
    let count = f64::from(count);
    let rate = count / began.elapsed().as_secs_f64();
    let cpu = cpu_of(std::process::id())?.saturating_sub(before);
    // The room counts its syncs where people see them, refreshed as it handles messages.
    tokio::time::sleep(Duration::from_millis(260)).await;
    audit.head().await?;
    audit.head().await?;
    let syncs = tree.window().look();
    let syncs = syncs.rooms.iter().flat_map(|room| &room.facts);
    let syncs = syncs
        .filter(|(name, _)| *name == "syncs")
        .find_map(|(_, value)| value.parse::<f64>().ok());
    tree.stop().await;
    let group = count / syncs.context("the room does not say how often it synced")?;
    Ok((rate, cpu.as_secs_f64() * 1e6 / count, group))
}

fn verifying(dir: &Path) -> Result<()> {
    fs::create_dir(dir)?;
    let (mut head, mut out) = (Head::EMPTY, vec![]);
    let header = SegmentHeader { after: head };
    out.extend_from_slice(&header.encode());
    let start = out.len();
    let body = body()?;
    let key = EpochKey::from_random(&Zeroizing::new([1; 32]));
    let key = Some(key.records());
    for _ in 0..RECORDS {
        head = encode_record(&mut out, head, STAMP, BOOT, &body, key)
            .ok()
            .context("not encoded")?;
    }
    fs::write(dir.join(header.file_name()), &out)?;
    let began = Instant::now();
    let report = verify_dir(dir)?;
    let rate = f64::from(RECORDS) / began.elapsed().as_secs_f64();
    ensure!(
        report.intact && report.records == u64::from(RECORDS),
        "the log is not intact"
    );

    // The limit: as many hashes over as many bytes, and nothing else.
    let leaf = &out[start..start + (out.len() - start) / RECORDS as usize];
    let began = Instant::now();
    for _ in 0..RECORDS {
        black_box(leaf_hash(black_box(leaf)));
    }
    let hashes = f64::from(RECORDS) / began.elapsed().as_secs_f64();
    println!(
        "verify {rate:.0} records/s, its hash alone {hashes:.0}/s, ratio {:.2}",
        rate / hashes
    );
    least(
        "verify, thousand records a second",
        rate / 1e3,
        "k/s",
        300.0,
    );
    Ok(())
}
