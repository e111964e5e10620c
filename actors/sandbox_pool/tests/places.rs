//! Who gets a box when there are too few, and who asks while one ends.

use std::process::Command;
use std::time::{Duration, Instant};

use super::harness::{State, finish};
use super::room::{Pool, gone, init_of};
use crate::sandbox_pool::{PoolError, RunEvent};
use crate::supervision::CallError;

async fn wait_until_gone(pid: u32) {
    let until = Instant::now() + Duration::from_secs(10);
    while !gone(pid) {
        assert!(Instant::now() < until, "{pid} is still there");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_pool_sends_the_longest_idle_box_away_and_refuses_only_when_all_are_busy() {
    let state = State::new();
    let mut pool = Pool::start(&state, |config| config.max_boxes = 2).await;
    let (old, _) = pool.run("old", "echo mine > kept").await;
    let (young, _) = pool.run("young", "true").await;
    // Used again: now the other one is idle longer.
    let (young_again, _) = pool.run("young", "true").await;
    assert_eq!(young.box_id, young_again.box_id);
    let inits = [init_of(&state, &old), init_of(&state, &young)];

    let (_, third, running) = pool.begin("third", "sleep 90").await.unwrap();
    assert!(
        gone(inits[0]),
        "the box that was idle longest is still there"
    );
    assert!(!gone(inits[1]), "a box that was used since was taken");
    let status = pool.handle.status().await.unwrap();
    assert_eq!(status.boxes.len(), 2, "more boxes than allowed");

    // Both busy: refused, and nobody's run is touched for it.
    let (_, _, also) = pool.begin("young", "sleep 90").await.unwrap();
    assert_eq!(
        pool.begin("fourth", "true").await.unwrap_err(),
        CallError::Refused(PoolError::Full(2))
    );
    assert!(!gone(inits[1]) && !gone(init_of(&state, &third)));
    drop(also);
    drop(running);

    // What the sent-away one had kept is there in its next box, which several may wait for at once.
    let deadline = Instant::now() + Duration::from_secs(20);
    let (ticket, ended) = loop {
        match pool.begin("old", "cat kept").await {
            Ok((_, ticket, seen)) => break (ticket, finish(seen).await),
            // The two runs are still being ended.
            Err(CallError::Refused(PoolError::Full(2))) => {
                assert!(Instant::now() < deadline, "no box became free");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(other) => panic!("{other}"),
        }
    };
    assert_eq!(ended.out, "mine\n");
    assert_ne!(ticket.box_id, old.box_id);
    pool.tree.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_beyond_the_boxes_take_turns() {
    let state = State::new();
    let mut pool = Pool::start(&state, |config| config.max_boxes = 2).await;
    for round in 0..3 {
        for agent in ["a", "b", "c", "d", "e"] {
            let (_, ended) = pool.run(agent, &format!("echo {agent}{round}")).await;
            assert_eq!(ended.out, format!("{agent}{round}\n"));
            assert!(pool.handle.status().await.unwrap().boxes.len() <= 2);
        }
    }
    pool.tree.stop().await;
}

/// The bug: a run that came while its box was being ended waited for that end in a queue nobody read, and was then sent to the same box.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_comes_while_its_box_is_being_ended_gets_another() {
    let state = State::new();
    let mut pool = Pool::start(&state, |_| {}).await;
    for _ in 0..5 {
        let (_, ticket, mut seen) = pool.begin("demo", "echo up; sleep 93").await.unwrap();
        assert!(matches!(seen.recv().await, Some(RunEvent::Output { .. })));
        // Something that is not the box's keeps its control group, so that its end takes as long as it may.
        let mut other = Command::new("sleep").arg("60").spawn().unwrap();
        let joined = join_group(ticket.box_id.as_str(), other.id());
        let init = rustix::process::Pid::from_raw(init_of(&state, &ticket).cast_signed()).unwrap();
        rustix::process::kill_process(init, rustix::process::Signal::KILL).unwrap();
        assert_eq!(seen.recv().await, Some(RunEvent::BoxLost));
        let (next, ended) = pool.run("demo", "echo back").await;
        assert_eq!(
            (ended.out.as_str(), next.box_id == ticket.box_id),
            ("back\n", false)
        );
        other.kill().unwrap();
        other.wait().unwrap();
        remove_groups(&joined);
    }
    pool.tree.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_that_race_the_end_of_their_box_have_an_end_and_none_hangs() {
    let state = State::new();
    let mut pool = Pool::start(&state, |_| {}).await;
    let (mut served, mut lost, mut refused) = (0, 0, 0);
    for round in 0..12_u64 {
        let (_, ticket, mut seen) = pool.begin("demo", "echo up; sleep 93").await.unwrap();
        assert!(matches!(seen.recv().await, Some(RunEvent::Output { .. })));
        let init = init_of(&state, &ticket);
        let killer = tokio::task::spawn_blocking(move || {
            std::thread::sleep(Duration::from_micros(300 * round));
            let init = rustix::process::Pid::from_raw(init.cast_signed()).unwrap();
            rustix::process::kill_process(init, rustix::process::Signal::KILL).unwrap();
        });
        for n in 0..12 {
            let script = format!("echo {n}");
            let begun = tokio::time::timeout(Duration::from_secs(30), pool.begin("demo", &script));
            match begun.await.expect("an answer") {
                Ok((_, _, seen)) => {
                    let ended = tokio::time::timeout(Duration::from_secs(30), finish(seen)).await;
                    match ended.expect("an end").exit {
                        Some(exit) if exit.code == Some(0) => served += 1,
                        Some(exit) => panic!("{exit:?}"),
                        None => lost += 1,
                    }
                }
                Err(CallError::Refused(error @ PoolError::NoBox(_))) => {
                    assert_eq!(error.code().name, "BOX_LOST");
                    assert!(error.to_string().contains("nothing was run"), "{error}");
                    refused += 1;
                }
                Err(other) => panic!("{other}"),
            }
        }
        killer.await.unwrap();
    }
    assert!(
        served > 12,
        "served {served}, lost {lost}, refused {refused}"
    );
    pool.tree.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_meets_the_idle_end_of_its_box_runs() {
    let state = State::new();
    let mut pool = Pool::start(&state, |config| config.says.idle_secs = Some(1)).await;
    for offset in [0, 2, 4, 8] {
        let (_, ended) = pool.run("demo", "echo first").await;
        assert_eq!(ended.out, "first\n");
        tokio::time::sleep(Duration::from_millis(998 + offset)).await;
        let (_, ended) = pool.run("demo", "echo second").await;
        assert_eq!(ended.out, "second\n", "{offset} ms");
    }
    pool.tree.stop().await;
}

/// Its callers have deadlines, and the pool sees to it that they are told that nothing ran, and that the agent is served again.
#[tokio::test]
async fn a_box_whose_actor_hangs_holds_no_caller_and_is_ended() {
    let state = State::new();
    let mut pool = Pool::start(&state, |_| {}).await;
    let (first, _) = pool.run("demo", "true").await;
    let init = init_of(&state, &first);
    pool.handle.hang_boxes().await.unwrap();
    // From here on time is simulated: it passes when nobody has anything to do.
    tokio::time::pause();
    let asked = tokio::time::Instant::now();
    let refused = pool.begin("demo", "echo never").await.unwrap_err();
    assert!(
        matches!(&refused, CallError::Refused(error @ PoolError::NoBox(_)) if error.code().name == "BOX_LOST"),
        "{refused}"
    );
    assert!(asked.elapsed() < Duration::from_secs(45));
    tokio::time::resume();
    wait_until_gone(init).await;
    let (second, ended) = pool.run("demo", "echo again").await;
    assert_eq!(
        (ended.out.as_str(), second.box_id == first.box_id),
        ("again\n", false)
    );
    pool.tree.stop().await;
}

/// Puts a process into the box's control groups, wherever they are; returns their folders.
fn join_group(id: &str, pid: u32) -> Vec<std::path::PathBuf> {
    let found = Command::new("find")
        .args(["/sys/fs/cgroup", "-type", "d", "-name"])
        .arg(format!("portcullis-{id}"))
        .output()
        .unwrap();
    let found: Vec<std::path::PathBuf> = String::from_utf8(found.stdout)
        .unwrap()
        .lines()
        .map(Into::into)
        .collect();
    for folder in &found {
        std::fs::write(folder.join("cgroup.procs"), pid.to_string()).unwrap();
    }
    found
}

fn remove_groups(folders: &[std::path::PathBuf]) {
    for folder in folders {
        let until = Instant::now() + Duration::from_secs(5);
        while folder.exists() && std::fs::remove_dir(folder).is_err() {
            assert!(Instant::now() < until, "{}", folder.display());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
