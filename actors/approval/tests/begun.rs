//! The document with which a state begins.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_is_taken_away_closes_the_gate() {
    let folder = tempfile::tempdir().unwrap();
    let asked = plan(&["uname"]);
    let first = house(folder.path(), 1, Clock::system()).await;
    let begun = first.approval.policy_get().await.unwrap();
    assert!(begun.exists && begun.readable);
    assert!(matches!(
        first.ask(asked.clone(), None).await,
        Ok(Decision::Pending { .. })
    ));
    first.end().await;
    // It is written once: a start after it finds it.
    let second = house(folder.path(), 2, Clock::system()).await;
    assert_eq!(second.approval.policy_get().await.unwrap().hash, begun.hash);
    second.end().await;
    let store = Store::open(&folder.path().join("state.db")).unwrap();
    let row = store
        .get("approval.document", "only")
        .await
        .unwrap()
        .unwrap();
    let op = Op::delete_if("approval.document", "only", row.intent, row.rev);
    store.commit(vec![op]).await.unwrap();
    let third = house_with(folder.path(), 3, Clock::system(), store, 1).await;
    assert!(!third.approval.policy_get().await.unwrap().exists);
    assert!(matches!(
        third.ask(asked, None).await,
        Ok(Decision::Deny { code, .. }) if code.name == "POLICY_DENIED"
    ));
    third.end().await;
}
