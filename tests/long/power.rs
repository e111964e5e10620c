//! Power cuts: the daemon's writes are recorded under load, and a disk is made as a cut at some moment may leave it. A
//! start on it finds everything that had been acknowledged by then, and nothing that stands in no record.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::json;

use super::disk::{Chance, Disk};
use super::mixed::{Act, Mix, SETTINGS, What};
use super::record::{CALLS, Record};
use super::{figure, is_long, times};
use crate::support::gateway::Gateway;
use crate::support::ws;

/// When an answer began to go out, and when the end of its run did.
type Acks = HashMap<String, (usize, Option<usize>)>;

struct Traced {
    gateway: Gateway,
    record: Record,
    mix: Mix,
    acks: Acks,
}

/// Of a cut in the middle of the load, acknowledged acts.
const LEAST: usize = 20;

fn acked(mix: &Mix) -> usize {
    let acts = mix.acts.lock().unwrap();
    acts.iter().filter(|act| act.acked).count()
}

/// A first start, a load, and a stop in order, all recorded.
async fn traced(time: Duration) -> Traced {
    let mut gateway = Gateway::prepared(SETTINGS);
    let file = gateway.home().join("strace");
    let trace = format!("trace={CALLS}");
    let file_name = file.to_str().unwrap();
    let started = gateway.launch_under(&[
        "strace",
        "-f",
        "-y",
        "-xx",
        "-qq",
        "-s",
        "10000000",
        "-e",
        "signal=none",
        "-e",
        &trace,
        "-o",
        file_name,
    ]);
    assert_eq!(started, Ok(()));
    let mix = Mix::default();
    let work = mix.work(&gateway, 0);
    let watch = async {
        tokio::time::sleep(time).await;
        // A machine with other work gets less done in it.
        let end = tokio::time::Instant::now() + Duration::from_mins(1);
        while acked(&mix) < 2 * LEAST && tokio::time::Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        mix.over.store(true, std::sync::atomic::Ordering::Relaxed);
    };
    tokio::join!(work, watch);
    assert_eq!(gateway.stop_under(), 0, "{}", gateway.log());
    let record = Record::read(&std::fs::read_to_string(&file).unwrap());
    let acks = acks(&record);
    Traced {
        gateway,
        record,
        mix,
        acks,
    }
}

/// The good answers in what was sent to sockets.
fn acks(record: &Record) -> Acks {
    const RES: &str = "{\"type\":\"res\",\"id\":\"";
    let mut acks = Acks::new();
    for (moment, bytes) in record.sent() {
        let text = String::from_utf8_lossy(bytes);
        for frame in text.split(RES).skip(1) {
            let Some((id, rest)) = frame.split_once('"') else {
                continue;
            };
            if rest.starts_with(",\"ok\":true") {
                let ack = acks.entry(id.to_owned()).or_insert((moment, None));
                if rest.contains("\"status\":\"exited\"") {
                    ack.1 = ack.1.or(Some(moment));
                }
            }
        }
    }
    acks
}

impl Traced {
    fn acked(&self, act: &Act, moment: usize) -> bool {
        let ack = self.acks.get(&act.id);
        let at = ack.and_then(|(first, exited)| match act.what {
            What::Run(_) => *exited,
            _ => Some(*first),
        });
        at.is_some_and(|at| at < moment)
    }

    /// Starts on what a cut at this moment leaves; how much had been acknowledged.
    async fn start_after(&self, moment: usize, seed: u64) -> usize {
        let mut gateway = Gateway::prepared(SETTINGS);
        std::fs::remove_dir(gateway.state()).unwrap();
        let disk = Disk::at(&self.record, self.gateway.home(), moment);
        disk.cut(gateway.home(), &mut Chance::new(seed));
        gateway.launch();
        let found = self
            .mix
            .check(&gateway, |act| self.acked(act, moment))
            .await;
        let mut admin = ws::admin(&gateway).await;
        admin
            .get(
                "vault.set",
                json!({ "name": "AFTER", "valueBase64": "eA==" }),
            )
            .await;
        assert_eq!(gateway.stop(), 0, "{}", gateway.log());
        found.acknowledged
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_outlives_a_power_cut_and_nothing_stands_in_no_record() {
    if std::process::Command::new("strace")
        .arg("-V")
        .output()
        .is_err()
    {
        println!("NOT RUN: power cuts need strace (apt-get install strace)");
        return;
    }
    let (traces, cuts) = if is_long() {
        (5, times(20, 100))
    } else {
        (1, times(16, 0))
    };
    let mut seed = u64::from_le_bytes(ws::random());
    let (mut done, mut acknowledged, mut most) = (0, 0, 0);
    for _ in 0..traces {
        let traced = traced(Duration::from_secs(if is_long() { 8 } else { 2 })).await;
        let first = traced
            .acks
            .values()
            .map(|(first, _)| *first)
            .min()
            .expect("something was acknowledged");
        for cut in 0..cuts {
            seed = seed.wrapping_add(1);
            let mut chance = Chance::new(seed ^ 0xcafe);
            // One of eight falls into the first start, one of eight into the stop.
            let moment = match cut % 8 {
                0 => chance.below(first),
                1 => traced.record.moments() - chance.below(200.min(traced.record.moments())),
                _ => first + chance.below(traced.record.moments() - first),
            };
            println!(
                "cut at {moment} of {}, seed {seed}",
                traced.record.moments()
            );
            let before = traced.start_after(moment, seed).await;
            (done, acknowledged, most) = (done + 1, acknowledged + before, most.max(before));
        }
    }
    assert!(most > LEAST, "only {most} were acknowledged");
    figure(&format!(
        "power: {done} cuts over {traces} recorded loads; {acknowledged} acknowledged acts looked for, at most {most} at once, 0 lost, 0 without a record"
    ));
}
