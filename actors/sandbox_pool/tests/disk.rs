//! What a workspace may hold: of every driver, of one gauge, of the pool.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use portcullis_cell::Cause;
use portcullis_core::ids::AgentId;
use portcullis_core::sandbox::{Overrides, Scope, Shown};

use super::harness::{Live, State, finish, slack};
use super::room::Pool;
use crate::sandbox_pool::PoolError;
use crate::sandbox_pool::disk::{self, Full, Gauge, Used, Why};
use crate::sandbox_pool::driver::Driver;
use crate::sandbox_pool::standing::Standing;
use crate::supervision::{CallError, Flag, FlagReader};

const MOST: Used = Used {
    bytes: 24 << 20,
    files: 300,
};

fn gauge(workspaces: PathBuf, folder: &str, most: Used) -> Gauge {
    let (mut gauge, watching) = Gauge::new(workspaces, folder.to_owned());
    tokio::spawn(watching);
    gauge.may_hold(most);
    gauge
}

fn standing(init: Option<u32>) -> FlagReader<Standing> {
    Flag::new(Standing {
        init,
        ..Standing::new()
    })
    .reader()
}

async fn state(gauge: &Gauge) -> disk::State {
    gauge.look().await.unwrap();
    gauge.shown().0
}

async fn full(gauge: &Gauge) -> Full {
    match state(gauge).await {
        disk::State::Full(full) => full,
        other => panic!("{other:?}"),
    }
}

/// What fills a workspace is ended, by bytes, by names, and by what has no name any more; who runs beside goes on. Then it can delete, and no
/// more, until there is room.
pub async fn disk_bomb(driver: &Driver, state: &State) {
    let mut live = Live::start(driver, state.spec("bomb")).await;
    let mut other = Live::start(driver, state.spec("calm")).await;
    let gauge = gauge(state.context.workspaces.clone(), "bomb", MOST);
    let standing = standing(Some(live.started.init_pid));
    let calm =
        "i=0; while [ $i -lt 60 ]; do echo $i > kept; sleep 0.05; i=$((i+1)); done; cat kept";
    let (_, calm) = other.begin(calm, |_| {}).await;
    let bombs = [
        "while :; do i=$((i+1)); head -c 1048576 /dev/zero > f$i; sleep 0.02; done",
        "while :; do i=$((i+1)); : > f$i; done",
        "while :; do i=$((i+1)); mkdir -p f/$i/d/d; done",
        // Of no length that `ls` would show.
        "exec 3> gone; rm gone; while :; do head -c 1048576 /dev/zero >&3; sleep 0.02; done",
    ];
    for bomb in bombs {
        let begun = Instant::now();
        live.pass = Some(gauge.enter(None, standing.clone()));
        let exit = live.run(bomb).await.exit();
        assert_eq!(exit.cause, Cause::Cancelled, "{bomb}: {exit:?}");
        let ended = exit.full.unwrap_or_else(|| panic!("{bomb}: {exit:?}"));
        assert_eq!(ended.most, MOST);
        assert!(
            ended.used.bytes > MOST.bytes || ended.used.files > MOST.files,
            "{bomb}: {ended}"
        );
        assert!(
            begun.elapsed() < Duration::from_secs(10) * slack(),
            "{bomb}"
        );
        if bomb.contains("gone") {
            // It went with who held it.
            assert!(matches!(
                super::disk::state(&gauge).await,
                disk::State::Within(_)
            ));
            continue;
        }
        let over = full(&gauge).await;
        live.pass = Some(gauge.enter(Some(over), standing.clone()));
        let script = "(echo x > more) && exit 1; for f in f*; do rm -rf $f more; done; ls | wc -l";
        let ended = live.run_with(script, |spawn| spawn.file_bytes = 0).await;
        assert_eq!(ended.out, "0\n", "{bomb}: {ended:?}");
        assert!(
            ended.err.starts_with("portcullis: the workspace holds ")
                && ended
                    .err
                    .contains("this run can delete, and write no file\n"),
            "{ended:?}"
        );
        assert_eq!(ended.exit().full, None);
        assert!(matches!(
            super::disk::state(&gauge).await,
            disk::State::Within(_)
        ));
    }
    // And there is room again.
    live.pass = Some(gauge.enter(None, standing));
    assert_eq!(live.run("echo x > kept; cat kept").await.out, "x\n");
    let calm = finish(calm).await;
    assert_eq!((calm.out.as_str(), calm.exit().code), ("59\n", Some(0)));
    live.stop().await;
    other.stop().await;
}

fn write(path: &Path, bytes: usize) {
    std::fs::write(path, vec![1; bytes]).unwrap();
    // Some file systems give a file its blocks when it is written out.
    std::fs::File::open(path).unwrap().sync_all().unwrap();
    assert!(path.metadata().unwrap().blocks() * 512 >= bytes as u64);
}

/// However often it is tried, a folder that is full grows once more at most: who was to delete and wrote is ended, and nobody begins there until it
/// is less again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_workspace_does_not_grow_a_little_with_each_run_that_is_to_delete() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join("demo").join(name);
    std::fs::create_dir(folder.path().join("demo")).unwrap();
    let most = Used {
        bytes: 4 << 20,
        files: 100,
    };
    let gauge = gauge(folder.path().to_owned(), "demo", most);
    assert!(matches!(state(&gauge).await, disk::State::Within(_)));
    let (held, over) = gauge.enter(None, standing(None)).split();
    write(&at("first"), 6 << 20);
    let ended = over.await;
    assert_eq!((ended.why, ended.most), (Why::Over, most));
    // As long as it has not ended, nothing is said of what is there.
    assert_eq!(gauge.shown().0, disk::State::Unknown);
    write(&at("last words"), 1 << 20);
    drop(held);
    let found = full(&gauge).await;
    assert!(found.used.bytes >= 7 << 20, "{found}");
    // Who comes late, with an older word, is ended at once.
    let late = gauge.enter(None, standing(None)).split();
    assert_eq!(late.1.await, found);
    drop(late.0);
    // One that deletes is let be, and one that writes a little, too; together they come to no more.
    for n in 0..3 {
        let (held, over) = gauge
            .enter(Some(full(&gauge).await), standing(None))
            .split();
        write(&at(&format!("little-{n}")), 400 << 10);
        let ended = tokio::time::timeout(Duration::from_millis(700), over).await;
        drop(held);
        match (n, ended) {
            (0 | 1, Err(_)) => {
                let now = full(&gauge).await;
                assert_eq!(
                    now.used.bytes, found.used.bytes,
                    "{n}: the first word stands"
                );
            }
            (2, Ok(ended)) => assert_eq!(ended.why, Why::Grew),
            (_, other) => panic!("{n}: {other:?}"),
        }
    }
    match state(&gauge).await {
        disk::State::Closed(full) => assert_eq!(full.why, Why::Grew, "{full}"),
        other => panic!("{other:?}"),
    }
    // A person makes room: some, then enough.
    std::fs::remove_file(at("little-0")).unwrap();
    full(&gauge).await;
    std::fs::remove_file(at("first")).unwrap();
    assert!(matches!(state(&gauge).await, disk::State::Within(_)));
}

fn limits(bytes: u64) -> Overrides {
    Overrides {
        workspace_bytes: Some(bytes),
        workspace_files: Some(200),
        file_bytes: Some(64 << 20),
        ..Overrides::default()
    }
}

/// The same by the pool: for whose folder it is, in every session of it, and no other's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_fills_its_workspace_can_delete_and_others_go_on() {
    let state = State::new();
    let sessions = Overrides {
        scope: Some(Scope::Session),
        ..limits(16 << 20)
    };
    let agents = [("bomb", sessions), ("calm", limits(16 << 20))];
    let mut pool = Pool::with_agents(&state, |_| {}, &agents).await;
    // No file alone can be longer than all may be.
    let (_, ended) = pool
        .run("calm", "ulimit -f; head -c 20971520 /dev/zero > long")
        .await;
    assert!(ended.out.starts_with("32768\n"), "{ended:?}");
    assert_ne!(ended.exit().code, Some(0));
    pool.run("calm", "rm long").await;
    pool.session("other");
    let (_, _, beside) = pool.begin("bomb", "sleep 30").await.unwrap();
    let (_, _, calm) = pool.begin("calm", "sleep 2; echo calm").await.unwrap();
    pool.session("one");
    let bomb = "while :; do i=$((i+1)); head -c 1048576 /dev/zero > f$i; sleep 0.02; done";
    let (_, ended) = pool.run("bomb", bomb).await;
    assert!(ended.exit().full.is_some(), "{ended:?}");
    // Nobody knows which of them it was.
    assert!(finish(beside).await.exit().full.is_some());
    let (_, ended) = pool
        .run(
            "bomb",
            "(echo x > more) && exit 1; rm more; ls | wc -l; ulimit -f",
        )
        .await;
    assert!(
        ended.out.ends_with("\n0\n") && ended.exit().code == Some(0),
        "{ended:?}"
    );
    assert!(ended.err.contains("16.0 MiB in 200"), "{ended:?}");
    let explained = pool.handle.explain(Some(AgentId::new("bomb").unwrap()));
    let explained = explained.await.unwrap();
    assert_eq!(explained.refused, None);
    let line = |key: &str| {
        let found = explained.lines.iter().find(|line| line.key == key);
        found.unwrap_or_else(|| panic!("{key}: {explained:?}"))
    };
    assert_eq!(
        line("workspace_held").value,
        Shown::Word("measured".to_owned())
    );
    assert!(
        matches!(line("workspace_holds_bytes").value, Shown::Number(bytes) if bytes > 16 << 20)
    );
    assert!(
        line("workspace_state").from.contains("16.0 MiB"),
        "{explained:?}"
    );
    // What it may not write it can have had: a person puts it there, and nobody begins until it is gone.
    let (_, _, deletes) = pool.begin("bomb", "sleep 20").await.unwrap();
    let workspace = state.context.workspaces.join("bomb");
    write(&workspace.join("grown"), 4 << 20);
    assert!(finish(deletes).await.exit().full.is_some());
    match pool.begin("bomb", "true").await {
        Err(CallError::Refused(error @ PoolError::WorkspaceFull(_))) => {
            assert_eq!(error.code().name, "WORKSPACE_FULL");
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it begins"),
    }
    let explained = pool.handle.explain(Some(AgentId::new("bomb").unwrap()));
    assert_eq!(
        explained.await.unwrap().refused.unwrap().code,
        "WORKSPACE_FULL"
    );
    std::fs::remove_file(workspace.join("grown")).unwrap();
    pool.run("bomb", "rm f*").await;
    let (_, ended) = pool.run("bomb", "echo x > again; cat again").await;
    assert_eq!((ended.out.as_str(), ended.err.as_str()), ("x\n", ""));
    assert_eq!(finish(calm).await.out, "calm\n");
    pool.tree.stop().await;
}
