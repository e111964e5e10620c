use std::sync::Arc;
use std::time::Duration;

use portcullis_core::auth::{Scope, ScopeSet};
use portcullis_core::dashboard::SessionRefusal;

use super::*;
use crate::supervision::{Intensity, Policy, Tree, TreeBuilder};

async fn room() -> (DashboardHandle, Tree) {
    let mut builder = TreeBuilder::new(Intensity::default(), Arc::new(|_, _| {}));
    let handle = builder.room::<Dashboard>(Policy::new(16), DashboardConfig::default());
    (DashboardHandle::new(handle), builder.start().await.unwrap())
}

fn admin() -> ScopeSet {
    [Scope::Admin].into_iter().collect()
}

const BAD_CODE: DashboardError = DashboardError::Refused(SessionRefusal::BadCode);
const NO_SESSION: DashboardError = DashboardError::Refused(SessionRefusal::NoSession);

#[tokio::test(start_paused = true)]
async fn a_code_opens_one_session_that_ends_unused_or_at_logout() {
    let (page, tree) = room().await;
    let minted = page.mint(admin(), "uid:1000".into()).await.unwrap();
    assert_eq!((minted.code.reveal().len(), minted.for_ms), (43, 60_000));
    let guess = page.redeem(Secret::brought("guess")).await.err();
    assert_eq!(guess, Some(BAD_CODE));
    let (key, session) = page.redeem(minted.code.clone()).await.ok().unwrap();
    assert_eq!(session.by, "uid:1000");
    assert_eq!(page.redeem(minted.code).await.err(), Some(BAD_CODE));
    tokio::time::sleep(Duration::from_mins(29)).await;
    assert!(page.check(key.clone(), true).await.is_ok());
    tokio::time::sleep(Duration::from_mins(31)).await;
    assert_eq!(page.check(key, true).await.err(), Some(NO_SESSION));

    let minted = page.mint(admin(), "uid:0".into()).await.unwrap();
    let (key, _) = page.redeem(minted.code).await.ok().unwrap();
    page.end(key.clone()).await.unwrap();
    assert_eq!(page.check(key, true).await.err(), Some(NO_SESSION));
    tree.stop().await;
}

#[tokio::test(start_paused = true)]
async fn refused_logins_are_told_at_once_then_once_a_minute_and_beside_a_good_one() {
    let (page, tree) = room().await;
    let guess = async |times: u64| {
        for _ in 0..times {
            assert!(page.redeem(Secret::brought("guess")).await.is_err());
        }
    };
    assert_eq!(page.refused_logins(false).await, Ok(None));
    guess(1).await;
    assert_eq!(page.refused_logins(false).await, Ok(Some(1)));
    guess(1_000).await;
    assert_eq!(page.refused_logins(false).await, Ok(None));
    tokio::time::sleep(Duration::from_mins(1)).await;
    guess(1).await;
    assert_eq!(page.refused_logins(false).await, Ok(Some(1_001)));
    guess(3).await;
    assert_eq!(page.refused_logins(true).await, Ok(Some(3)));
    assert_eq!(page.refused_logins(true).await, Ok(None));
    tree.stop().await;
}

#[tokio::test(start_paused = true)]
async fn ending_all_voids_codes_too_and_a_late_code_is_none() {
    let (page, tree) = room().await;
    let (early, late) = (
        page.mint(admin(), String::new()).await.unwrap(),
        page.mint(admin(), String::new()).await.unwrap(),
    );
    let (key, _) = page.redeem(early.code).await.ok().unwrap();
    assert_eq!(page.end_all().await, Ok(1));
    assert!(page.check(key, true).await.is_err());
    assert_eq!(page.redeem(late.code).await.err(), Some(BAD_CODE));
    let slow = page.mint(admin(), String::new()).await.unwrap();
    tokio::time::sleep(Duration::from_mins(1)).await;
    assert_eq!(page.redeem(slow.code).await.err(), Some(BAD_CODE));
    tree.stop().await;
}
