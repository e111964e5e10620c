//! A made certificate is made anew in time, while the gateway runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use portcullis::tls::{Keeper, Tls};
use portcullis_actors::clock::Clock;
use portcullis_core::audit::Query;
use portcullis_core::identity::Identity;
use portcullis_core::time::Millis;

use super::real::Ground;

const DAY: u64 = 86_400_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_made_certificate_is_made_anew_before_its_end_from_the_same_key_and_recorded() {
    let ground = Ground::new();
    let state = ground.state.path().to_owned();
    std::fs::create_dir_all(state.join("keys")).unwrap();
    let start = Clock::system().now().0;
    let now = Arc::new(AtomicU64::new(start));
    let read = now.clone();
    let clock = Clock::of(move || Millis(read.load(Ordering::SeqCst)));
    let config = portcullis::config::Tls {
        enabled: true,
        ..Default::default()
    };
    let names = vec!["localhost".to_owned()];
    let tls = Tls::open(config, names, Identity::from_random([1; 32]), &state, clock).unwrap();
    let audit = ground.audit.clone();
    let keeper = Arc::new(Keeper::new(Arc::new(tls), audit.clone()));
    let tree = ground.tree.start().await.unwrap();
    let renewing = keeper.clone();
    let task = tokio::spawn(async move { renewing.renew(Duration::from_millis(5)).await });
    let end_of = || keeper.tls().facts()["notAfterMs"].as_u64().unwrap();
    let (first, pin) = (end_of(), keeper.tls().pin());
    // Long before its end nothing is done.
    now.store(start + 300 * DAY, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(end_of(), first);
    now.store(start + 336 * DAY, Ordering::SeqCst);
    let until = tokio::time::Instant::now() + Duration::from_secs(30);
    while end_of() == first {
        assert!(tokio::time::Instant::now() < until, "it is not made anew");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(end_of() >= first + 300 * DAY);
    assert_eq!(keeper.tls().pin(), pin, "the key stays, and its pin");
    let query = || Query {
        action: Some("tls.reload".to_owned()),
        ..Query::default()
    };
    let until = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        let found = format!("{:?}", audit.query(query()).await.unwrap());
        if found.contains("renewal") && found.contains("Ok") {
            break;
        }
        assert!(tokio::time::Instant::now() < until, "{found}");
    }
    task.abort();
    tree.stop().await;
}
