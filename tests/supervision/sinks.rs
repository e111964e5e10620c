//! The sinks: a crash of one, or of their room, loses no record at the receiver.

use std::sync::Arc;
use std::time::{Duration, Instant};

use portcullis_actors::audit::{AuditConfig, SinkConfig};
use portcullis_actors::sinks::{SinksHandle, SinksWiring, settings};
use portcullis_actors::supervision::PanicAt;
use portcullis_core::audit::Entry;

use super::real::{Ground, in_time};

#[tokio::test(flavor = "multi_thread")]
async fn sinks_that_crash_go_on_behind_what_was_taken_and_nobody_waits_for_them() {
    let mut ground = Ground::with(AuditConfig::default());
    let out = ground.state.path().with_extension("sink");
    let config = SinkConfig {
        kind: "file".into(),
        path: out.clone(),
        ..SinkConfig::default()
    };
    let wiring = SinksWiring {
        sinks: [("out".to_owned(), settings(&config).unwrap())].into(),
        dir: ground.state.path().join("sinks"),
        audit: ground.audit.clone(),
        vault: None,
        tls: Arc::new(|_| Err(std::io::Error::other("no TLS here"))),
        host: "gate".into(),
        version: "test".into(),
    };
    let sinks = SinksHandle::add(&mut ground.tree, wiring);
    let house = ground.start().await;
    let audit = house.audit.clone();
    let record = async |count: u64| {
        let mut last = 0;
        for _ in 0..count {
            last = in_time(audit.event(Entry::new("test.event")))
                .await
                .unwrap()
                .0;
        }
        last
    };
    let taken = async |last: u64| {
        let deadline = Instant::now() + Duration::from_mins(1);
        while sinks
            .status()
            .await
            .is_none_or(|all| all["out"].taken < last)
        {
            assert!(Instant::now() < deadline, "the sink does not go on");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let last = record(20).await;
    taken(last).await;
    // The sink alone: its room starts it again.
    assert!(
        house
            .tree
            .window()
            .panic("sinks", PanicAt::YoungestChild("sink"))
    );
    let last = record(20).await;
    taken(last).await;
    house.recovered("sinks", 0).await;
    // The room, with the sink.
    assert!(house.tree.window().panic("sinks", PanicAt::Now));
    house.recovered("sinks", 1).await;
    let last = record(20).await;
    taken(last).await;
    house.end().await;
    let text = std::fs::read_to_string(&out).unwrap();
    std::fs::remove_file(&out).unwrap();
    for seq in 1..=last {
        assert!(text.contains(&format!("\"seq\":{seq}}}")), "{seq}");
    }
}
