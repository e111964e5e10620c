//! The log: what cannot be recorded is refused, a log that was changed under it breaks it, and it goes on from the disk.

use portcullis_actors::audit::{AuditConfig, AuditError, AuditHandle, verify_dir};
use portcullis_core::audit::{Entry, Outcome, Seq};

use super::real::{Ground, Trip, in_time};
use super::support::eventually;

/// Past the least size of a segment, so that the next record begins another one.
async fn fill(audit: &AuditHandle, segment: &std::path::Path) {
    while std::fs::metadata(segment).unwrap().len() < 65_536 {
        let mut entry = Entry::new("test.fill");
        for n in 0..16 {
            entry = entry.with(format!("k{n}"), "x".repeat(500));
        }
        audit.event(entry).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_whose_folder_goes_refuses_every_act_and_mends_itself_or_breaks_on_a_changed_byte() {
    let mut ground = Ground::with(AuditConfig {
        segment_bytes: 65_536,
        ..AuditConfig::default()
    });
    let trip = Trip::default();
    let pairing = ground.pairing(&trip);
    let house = ground.start().await;
    let (audit, dir) = (&house.audit, house.state.path().join("audit"));
    let (away, segment) = (dir.with_extension("away"), dir.join("0000000000000001.log"));
    fill(audit, &segment).await;
    let closed = in_time(audit.outcome(Seq(1), Outcome::ok())).await;
    assert_eq!(closed.unwrap_err().code(), "AUDIT_NOT_OPEN");
    let head = audit.head().await.unwrap();

    std::fs::rename(&dir, &away).unwrap();
    let refused = in_time(audit.intent(Entry::new("test.act"))).await;
    assert_eq!(refused.unwrap_err().code(), "CANNOT_RECORD");
    // Nothing was acknowledged, and who needs no record is served.
    assert_eq!(in_time(audit.head()).await.unwrap(), head);
    let listed = pairing.list(&super::real::operator(), [].into()).await;
    assert!(listed.is_ok());

    assert_eq!(verify_dir(&dir).unwrap_err().code(), "AUDIT_UNREADABLE");

    // Back, but with another byte in it: it is no log to write on.
    let bytes = std::fs::read(away.join("0000000000000001.log")).unwrap();
    let mut changed = bytes.clone();
    changed[300] ^= 1;
    std::fs::write(away.join("0000000000000001.log"), &changed).unwrap();
    std::fs::rename(&away, &dir).unwrap();
    let altered = loop {
        match in_time(audit.event(Entry::new("test.act"))).await {
            Err(AuditError::CannotRecord(_)) => {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            other => break other.unwrap_err(),
        }
    };
    assert_eq!(altered.code(), "AUDIT_ALTERED");
    assert!(!verify_dir(&dir).unwrap().intact);

    // Mended by a person: the room, whose thread is gone, starts again from the disk.
    std::fs::write(&segment, &bytes).unwrap();
    let broken = in_time(audit.event(Entry::new("test.act"))).await;
    assert!(
        matches!(broken, Err(AuditError::Down { .. }) | Ok(_)),
        "{broken:?}"
    );
    // Once for the thread that ended; on a busy machine again and again, until the file is there.
    eventually("the log was opened again", || {
        let room = house.room("audit");
        room.restarts >= 1 && house.audit.is_up()
    })
    .await;
    let after = in_time(audit.event(Entry::new("test.act"))).await.unwrap();
    assert!(after > head.seq);
    match house.room("audit").restarts {
        0 | 1 => house.recovered("audit", 1).await,
        more => house.recovered("audit", more).await,
    }
    assert!(in_time(audit.verify()).await.unwrap().intact);
    house.end().await;
}
