//! The store against a model, against a killed process, and against what can be wrong with its file.

mod tagged;

use super::engine::Engine;
use super::messages::{Change, Lease};
use super::*;
use portcullis_core::row::RowKey;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn rt() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime")
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("folder")
}

#[derive(Default, Clone)]
struct Model {
    rows: BTreeMap<(String, String), (u64, u64, Vec<u8>)>,
    lists: BTreeMap<(String, String), Vec<Vec<u8>>>,
    rev: u64,
}

impl Model {
    fn commit(&mut self, ops: &[Op]) -> Result<Vec<u64>, usize> {
        let mut after = self.clone();
        after.rev += 1;
        let mut revisions = Vec::new();
        for (index, op) in ops.iter().enumerate() {
            revisions.push(after.apply(op).ok_or(index)?);
        }
        *self = after;
        Ok(revisions)
    }

    fn apply(&mut self, op: &Op) -> Option<u64> {
        let key = (op.kind.clone(), op.id.clone());
        let present = self.rows.get(&key).cloned();
        let new = match &op.change {
            Change::Create { payload, .. } => present.is_none().then(|| Some(payload.clone())),
            Change::CompareAndSet { rev, payload, .. } => {
                (present.as_ref().map(|row| row.0) == Some(*rev)).then(|| Some(payload.clone()))
            }
            Change::DeleteIf { rev } => {
                (present.as_ref().map(|row| row.0) == Some(*rev)).then_some(None)
            }
            Change::Append { payload } => {
                let list = self.lists.entry(key).or_default();
                list.push(payload.clone());
                return Some(list.len() as u64);
            }
            Change::Claim {
                holder,
                now_ms,
                lease_ms,
            } => {
                let free = present.is_none_or(|row| {
                    serde_json::from_slice::<Lease>(&row.2)
                        .is_ok_and(|lease| lease.holder == *holder || lease.until_ms <= *now_ms)
                });
                let lease = Lease {
                    v: 1,
                    holder: holder.clone(),
                    until_ms: now_ms + lease_ms,
                };
                free.then(|| Some(serde_json::to_vec(&lease).expect("json")))
            }
        }?;
        match new {
            Some(payload) => self.rows.insert(key, (self.rev, op.intent, payload)),
            None => self.rows.remove(&key),
        };
        Some(self.rev)
    }
}

fn any_op() -> impl Strategy<Value = Op> {
    let payload = proptest::collection::vec(any::<u8>(), 0..8);
    let change = prop_oneof![
        3 => payload.clone().prop_map(|payload| Change::Create { payload, labels: BTreeMap::new() }),
        3 => (0..12_u64, payload.clone()).prop_map(|(rev, payload)| Change::CompareAndSet { rev, payload, labels: BTreeMap::new() }),
        2 => (0..12_u64).prop_map(|rev| Change::DeleteIf { rev }),
        1 => payload.prop_map(|payload| Change::Append { payload }),
        2 => ("[ab]", 0..20_u64, 0..10_u64).prop_map(|(holder, now_ms, lease_ms)| Change::Claim { holder, now_ms, lease_ms }),
    ];
    ("[ab]", "[xy]", 0..9_u64, change).prop_map(|(kind, id, intent, change)| Op {
        kind,
        id,
        intent,
        change,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn the_store_is_its_model(commits in proptest::collection::vec(proptest::collection::vec(any_op(), 1..4), 1..24)) {
        rt().block_on(async {
            let store = Store::in_memory().expect("store");
            let mut model = Model::default();
            for ops in commits {
                let expected = model.commit(&ops);
                match store.commit(ops).await {
                    Ok(revisions) => prop_assert_eq!(expected, Ok(revisions.iter().map(|revision| revision.0).collect())),
                    Err(CommitError::Conflict { index }) => prop_assert_eq!(expected, Err(index)),
                    Err(CommitError::Store(error)) => prop_assert!(false, "{}", error),
                }
            }
            for kind in ["a", "b"] {
                let rows = store.list_all(kind).await.expect("list");
                let found: Vec<_> = rows.into_iter().map(|row| (row.id, (row.rev, row.intent, row.payload))).collect();
                let expected: Vec<_> = model.rows.iter().filter(|(key, _)| key.0 == kind).map(|(key, row)| (key.1.clone(), row.clone())).collect();
                prop_assert_eq!(found, expected);
                for id in ["x", "y"] {
                    let entries = store.entries(kind, id, 0, 100).await.expect("entries");
                    let expected = model.lists.get(&(kind.into(), id.into())).cloned().unwrap_or_default();
                    prop_assert!(entries.iter().enumerate().all(|(at, entry)| entry.seq == at as u64 + 1));
                    prop_assert_eq!(entries.into_iter().map(|entry| entry.payload).collect::<Vec<_>>(), expected);
                }
            }
            Ok(())
        })?;
    }
}

#[tokio::test]
async fn a_revision_is_never_used_twice() {
    let store = Store::in_memory().expect("store");
    let first = store
        .commit(vec![Op::create("k", "a", 1, b"1".into())])
        .await
        .expect("create")[0];
    store
        .commit(vec![Op::delete_if("k", "a", 2, first.0)])
        .await
        .expect("delete");
    store
        .commit(vec![Op::create("k", "a", 3, b"2".into())])
        .await
        .expect("create");
    // The old revision must not match the row that came after it.
    let stale = store
        .commit(vec![Op::compare_and_set("k", "a", 4, first.0, b"3".into())])
        .await;
    assert_eq!(stale, Err(CommitError::Conflict { index: 0 }));
    assert_eq!(
        store
            .get("k", "a")
            .await
            .expect("get")
            .expect("row")
            .payload,
        b"2"
    );
    assert_eq!(store.highest_intent().await.expect("intent"), 3);
}

#[tokio::test(start_paused = true)]
async fn in_memory_a_paused_clock_stands_still() {
    let before = tokio::time::Instant::now();
    let store = Store::in_memory().expect("store");
    let waited = tokio::time::timeout(Duration::from_millis(1), async {
        for n in 0..200 {
            store
                .commit(vec![Op::create("k", &n.to_string(), 0, vec![0; 100])])
                .await
                .expect("create");
        }
    });
    waited.await.expect("no time passes");
    assert_eq!(before.elapsed(), Duration::ZERO);
}

#[tokio::test]
async fn labels_limits_and_claims() {
    let store = Store::in_memory().expect("store");
    let labels = BTreeMap::from([("agent".to_owned(), "demo".to_owned())]);
    store
        .commit(vec![
            Op::create("k", "a", 1, b"{}".into()).labelled(labels.clone()),
        ])
        .await
        .expect("create");
    assert_eq!(
        store.get("k", "a").await.expect("get").expect("row").labels,
        labels
    );
    for op in [
        Op::create("K", "a", 0, vec![]),
        Op::create("", "a", 0, vec![]),
        Op::create("k", "", 0, vec![]),
        Op::create("k", "a\0", 0, vec![]),
        Op::create("k", &"a".repeat(257), 0, vec![]),
        Op::create("k", "b", 0, vec![0; MAX_PAYLOAD + 1]),
        Op::create("k", "b", u64::MAX, vec![]),
    ] {
        assert!(matches!(
            store.commit(vec![op]).await,
            Err(CommitError::Store(StoreError::Invalid(_)))
        ));
    }
    assert!(store.commit(vec![]).await.is_err());

    store
        .commit(vec![Op::claim("lease", "task", 2, "one", 1_000, 100)])
        .await
        .expect("free");
    assert!(
        store
            .commit(vec![Op::claim("lease", "task", 3, "two", 1_099, 100)])
            .await
            .is_err()
    );
    store
        .commit(vec![Op::claim("lease", "task", 4, "one", 1_050, 100)])
        .await
        .expect("renewed");
    assert!(
        store
            .commit(vec![Op::claim("lease", "task", 5, "two", 1_149, 100)])
            .await
            .is_err()
    );
    store
        .commit(vec![Op::claim("lease", "task", 6, "two", 1_150, 100)])
        .await
        .expect("run out");
    // A row that is no lease cannot be claimed away.
    assert!(
        store
            .commit(vec![Op::claim("k", "a", 7, "two", 1, 1)])
            .await
            .is_err()
    );
}

#[tokio::test]
async fn it_is_all_there_after_opening_again_and_private() {
    let folder = folder();
    let path = folder.path().join("state.db");
    let store = Store::open(&path).expect("open");
    store
        .commit(vec![
            Op::create("k", "a", 5, b"x".into()),
            Op::append("log", "l", 6, b"y".into()),
        ])
        .await
        .expect("commit");
    for name in ["state.db", "state.db-wal", "state.db-shm"] {
        let mode = std::fs::metadata(folder.path().join(name))
            .expect(name)
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    store.close().await.expect("close");
    store.stopped().await;
    assert_eq!(
        store.commit(vec![Op::create("k", "b", 0, vec![])]).await,
        Err(CommitError::Store(StoreError::Down))
    );

    let store = Store::open(&path).expect("open");
    assert_eq!(
        store.get("k", "a").await.expect("get").expect("row").intent,
        5
    );
    assert_eq!(
        store.entries("log", "l", 0, 9).await.expect("entries")[0].payload,
        b"y"
    );
    assert_eq!(store.highest_intent().await.expect("intent"), 6);
}

#[test]
fn what_is_wrong_with_the_file_has_a_code() {
    let folder = folder();
    let path = folder.path().join("state.db");
    let code = |path: &Path| Store::open(path).err().map(|error| error.code());
    drop(Store::open(&path).expect("open"));

    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).expect("mode");
    assert_eq!(code(&path), Some("STATE_MODE"));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("mode");

    let link = folder.path().join("link.db");
    std::os::unix::fs::symlink(&path, &link).expect("link");
    assert_eq!(code(&link), Some("STATE_MODE"));

    let write_private = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).expect("write");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("mode");
        path
    };
    assert_eq!(
        code(&write_private("noise.db", &[0x5a; 9_000])),
        Some("STATE_CORRUPT")
    );

    let newer = write_private("newer.db", b"");
    rusqlite::Connection::open(&newer)
        .expect("db")
        .execute_batch("PRAGMA user_version = 99; CREATE TABLE t (x);")
        .expect("sql");
    assert_eq!(code(&newer), Some("STATE_FORMAT"));
}

#[tokio::test]
async fn a_database_that_another_process_holds_is_locked_then_serves() {
    let folder = folder();
    let path = folder.path().join("state.db");
    let store = Store::open(&path).expect("open");
    let other = rusqlite::Connection::open(&path).expect("other");
    other.execute_batch("BEGIN IMMEDIATE").expect("lock");
    let refused = store.commit(vec![Op::create("k", "a", 0, vec![])]).await;
    assert_eq!(refused, Err(CommitError::Store(StoreError::Locked)));
    other.execute_batch("ROLLBACK").expect("unlock");
    store
        .commit(vec![Op::create("k", "a", 0, vec![])])
        .await
        .expect("serves again");
}

#[test]
fn a_full_disk_has_a_code_and_writes_nothing() {
    let engine = Engine::in_memory().expect("engine");
    engine.limit_pages(20);
    engine.begin().expect("begin");
    let full = engine.apply(&[
        Op::create("k", "small", 0, vec![1]),
        Op::create("k", "big", 0, vec![0; MAX_PAYLOAD]),
    ]);
    assert_eq!(full, Err(CommitError::Store(StoreError::DiskFull)));
    engine.rollback();
    assert_eq!(engine.get("k", "small"), Ok(None));
    engine.begin().expect("begin");
    engine
        .apply(&[Op::create("k", "small", 0, vec![1])])
        .expect("fits");
    engine.commit().expect("commit");
}

/// The bug: a state file that was moved away under the gateway took what was acknowledged from then on with it.
#[test]
fn what_would_go_into_a_file_that_was_replaced_is_refused() {
    for (name, gone) in [
        ("state.db", false),
        ("state.db", true),
        ("state.db-wal", true),
    ] {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("state.db");
        let engine = Engine::open_writer(&path, RowKey::none(), true).expect("engine");
        let commit = |id: &str| {
            engine.begin()?;
            let made = engine.apply(&[Op::create("k", id, 0, vec![1])]);
            let end = made
                .map_err(|error| panic!("{error:?}"))
                .and_then(|_| engine.commit());
            if end.is_err() {
                engine.rollback();
            }
            end
        };
        commit("before").expect("commit");
        let file = folder.path().join(name);
        let bytes = std::fs::read(&file).expect("it is there");
        std::fs::rename(&file, folder.path().join("away")).expect("moved");
        if !gone {
            std::fs::write(&file, bytes).expect("another");
        }
        let refused = commit("lost");
        assert!(
            matches!(refused, Err(StoreError::Moved(_))),
            "{name}: {refused:?}"
        );
        drop(std::fs::remove_file(&file));
        std::fs::rename(folder.path().join("away"), &file).expect("put back");
        commit("after").expect("it goes on in the file that it knows");
        assert_eq!(engine.get("k", "lost"), Ok(None), "{name}");
    }
}

const CHILD: &str = "PORTCULLIS_TEST_STORE_CHILD";

/// Runs only as a child of the test below: commits for ever and says what was acknowledged.
#[test]
fn child_that_commits_until_killed() {
    let Ok(path) = std::env::var(CHILD) else {
        return;
    };
    rt().block_on(async {
        let store = Store::open(Path::new(&path)).expect("open");
        let tasks = (0..8).map(|lane| {
            let store = store.clone();
            async move {
                let start = store
                    .entries("lane", &lane.to_string(), 0, 1_000)
                    .await
                    .expect("entries")
                    .len();
                for n in start.. {
                    let id = format!("{lane}-{n}");
                    let ops = vec![
                        Op::create("row", &id, n as u64, id.clone().into()),
                        Op::append("lane", &lane.to_string(), n as u64, id.clone().into()),
                    ];
                    store.commit(ops).await.expect("commit");
                    // One write call, so that a kill never halves a line.
                    std::io::stdout()
                        .write_all(format!("ack {id}\n").as_bytes())
                        .expect("stdout");
                }
            }
        });
        futures_util::future::join_all(tasks).await;
    });
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "no runtime here: the child is left to work for a while"
)]
fn a_killed_writer_loses_nothing_acknowledged() {
    let folder = folder();
    let path = folder.path().join("state.db");
    let mut acknowledged = Vec::new();
    for round in 0..6_u64 {
        let mut child = Command::new(std::env::current_exe().expect("self"))
            .args([
                "--exact",
                "store::tests::child_that_commits_until_killed",
                "--nocapture",
            ])
            .env(CHILD, &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("child");
        let stdout = child.stdout.take().expect("stdout");
        let reader = std::thread::spawn(move || {
            BufReader::new(stdout)
                .lines()
                .map_while(Result::ok)
                .filter_map(|line| line.split_once("ack ").map(|(_, id)| id.to_owned()))
                .collect::<Vec<_>>()
        });
        std::thread::sleep(Duration::from_millis(150 + round * 37));
        child.kill().expect("kill -9");
        child.wait().expect("wait");
        acknowledged.extend(reader.join().expect("reader"));

        rt().block_on(async {
            let store = Store::open(&path).expect("opens after a kill");
            let rows: std::collections::BTreeSet<_> = store
                .list_all("row")
                .await
                .expect("rows")
                .into_iter()
                .map(|row| row.id)
                .collect();
            let lost: Vec<_> = acknowledged
                .iter()
                .filter(|id| !rows.contains(*id))
                .collect();
            assert!(lost.is_empty(), "round {round}: lost {lost:?}");
            // Both halves of a commit or none.
            let mut listed = 0;
            for lane in 0..8 {
                let mut after = 0;
                loop {
                    let page = store
                        .entries("lane", &lane.to_string(), after, 1_000)
                        .await
                        .expect("entries");
                    let Some(last) = page.last() else { break };
                    after = last.seq;
                    listed += page.len();
                }
            }
            assert_eq!(listed, rows.len(), "round {round}");
            store.close().await.expect("close");
        });
    }
    assert!(
        acknowledged.len() > 50,
        "only {} acknowledged",
        acknowledged.len()
    );
}

/// Figure, not a limit of its own: 64 commits that share one sync against 64 that do not.
#[test]
fn a_group_of_64_costs_about_what_one_does() {
    let folder = folder();
    rt().block_on(async {
        let store = Store::open(&folder.path().join("state.db")).expect("open");
        let op = |id: String| vec![Op::create("k", &id, 1, vec![1; 256])];
        for n in 0..20 {
            store.commit(op(format!("warm-{n}"))).await.expect("commit");
        }
        let mut alone = Duration::MAX;
        let mut together = Duration::MAX;
        for round in 0..5 {
            let start = Instant::now();
            for n in 0..64 {
                store
                    .commit(op(format!("a-{round}-{n}")))
                    .await
                    .expect("commit");
            }
            alone = alone.min(start.elapsed() / 64);
            let start = Instant::now();
            let all = futures_util::future::join_all(
                (0..64).map(|n| store.commit(op(format!("t-{round}-{n}")))),
            )
            .await;
            together = together.min(start.elapsed());
            assert!(all.iter().all(Result::is_ok));
        }
        let ratio = together.as_secs_f64() / alone.as_secs_f64();
        eprintln!(
            "one commit {alone:?}; 64 at once {together:?}: {ratio:.1} of one, {:.0}/s",
            64.0 / together.as_secs_f64()
        );
        // Apart they would cost 64; a busy machine takes its part of the processor, not of the disk.
        assert!(ratio < 32.0, "group commit does not group: {ratio:.1}");
    });
}
