//! The store under the rooms: what it refuses it refuses by name, and a closed one answers at once.

use portcullis_actors::sandbox_pool::DriverError;
use portcullis_actors::store::{CommitError, Op, Store, StoreError};
use portcullis_core::codes;

use super::real::in_time;

#[tokio::test]
async fn a_store_says_by_name_what_it_cannot_read_or_write_and_that_it_has_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.db");
    let store = Store::open(&path).unwrap();
    let code = |error: CommitError| match error {
        CommitError::Store(error) => error.code(),
        CommitError::Conflict { .. } => "conflict",
    };
    let refused = in_time(store.commit(vec![])).await;
    assert_eq!(refused.map_err(code), Err("STORE_INVALID"));
    store.close().await.unwrap();
    let gone = in_time(store.commit(vec![Op::create("a", "b", 1, b"{}".to_vec())])).await;
    assert_eq!(gone.map_err(code), Err("STORE_DOWN"));

    let raw = rusqlite::Connection::open(&path).unwrap();
    raw.pragma_update(None, "user_version", 4_000).unwrap();
    drop(raw);
    let newer = Store::open(&path).map(|_| ());
    assert_eq!(newer.map_err(|e| e.code()), Err("STATE_FORMAT"));
    let nowhere = Store::open(&folder.path().join("none/state.db")).map(|_| ());
    assert_eq!(nowhere.map_err(|e| e.code()), Err("STATE_IO"));
    assert!(matches!(
        codes::find(StoreError::Down.code()),
        Some(code) if code.exit == 8
    ));
}

#[test]
fn a_driver_that_fails_says_by_name_whether_a_box_may_be_left() {
    let start = DriverError::Start("no such file".to_owned());
    let unknown = DriverError::Unknown("no answer".to_owned());
    for (error, code) in [(start, "BOX_START_FAILED"), (unknown, "BOX_STATE_UNKNOWN")] {
        assert_eq!(error.code(), code);
        assert!(error.to_string().starts_with(code), "{error}");
        assert!(codes::find(code).is_some());
    }
}
