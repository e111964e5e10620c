//! The room in a tree: calls, reading, crash and restart, stop.

use super::super::{AuditHandle, AuditWiring};
use super::*;
use crate::supervision::{FeedItem, Intensity, OnFatal, Tree, TreeBuilder};
use portcullis_core::audit::{OutcomeFilter, Query};
use std::sync::Arc;

fn wiring(dir: &Path, boot: u8) -> AuditWiring {
    AuditWiring {
        state: None,
        dir: dir.to_owned(),
        keys: keys(dir),
        config: AuditConfig::default(),
        boot: BootId([boot; 16]),
        clock: Clock::new(),
        feed: Feed::new(),
        unwritten: std::sync::Arc::default(),
        version: "test".into(),
    }
}

async fn tree(dir: &Path, boot: u8) -> (Tree, AuditHandle) {
    let fatal: OnFatal = Arc::new(|room, why| panic!("{room}: {why}"));
    let mut builder = TreeBuilder::new(Intensity::default(), fatal);
    let handle = AuditHandle::add(&mut builder, wiring(dir, boot));
    (builder.start().await.unwrap(), handle)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_act_is_recorded_read_back_watched_and_verified() {
    let place = Place::new();
    let (tree, audit) = tree(&place.dir, 1).await;
    let mut news = audit.watch();
    let entry = Entry {
        principal: Some("device:1".into()),
        object: Some("a\nb".into()),
        ..Entry::new("exec.run")
    };
    let intent = audit.intent(entry).await.unwrap();
    let FeedItem::Event(seen) = news.next().await else {
        panic!()
    };
    assert_eq!(seen.event.seq, intent);
    audit.event(Entry::new("auth.failed")).await.unwrap();
    let open = audit.intent(Entry::new("exec.run")).await.unwrap();
    let outcome = Outcome::refused("PLAN_CHANGED");
    let ended = audit.outcome(intent, outcome.clone()).await.unwrap();
    let error = audit.intent(Entry::new("No Good")).await.unwrap_err();
    assert_eq!(error.code(), "AUDIT_ENTRY_INVALID");

    let tail = audit.tail(2).await.unwrap();
    assert_eq!(
        tail.iter().map(|r| r.seq).collect::<Vec<_>>(),
        [open, ended]
    );
    // More than the memory holds since the start: from the file.
    let all = audit.tail(1_000).await.unwrap();
    assert_eq!(all.len(), 5);
    assert_eq!(all[0].body.kind(), "start");

    let find = |query: Query| audit.query(query);
    let refused = Query {
        outcome: Some(OutcomeFilter::Refused),
        object: Some("a\nb".into()),
        ..Query::default()
    };
    let found = find(refused).await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].record.seq, intent);
    let end = found[0].outcome.as_ref().unwrap();
    assert_eq!((end.seq, &end.outcome.result), (ended, &outcome.result));
    let still = Query {
        outcome: Some(OutcomeFilter::Open),
        ..Query::default()
    };
    let found = find(still).await.unwrap();
    assert_eq!(
        found.iter().map(|f| f.record.seq).collect::<Vec<_>>(),
        [open]
    );
    let newest = Query {
        action: Some("exec.".into()),
        limit: 1,
        ..Query::default()
    };
    assert_eq!(find(newest).await.unwrap()[0].record.seq, open);

    let report = audit.verify().await.unwrap();
    assert!(report.intact);
    assert_eq!(report.head, audit.head().await.unwrap());
    tree.stop().await;
    assert_eq!(place.records().last().unwrap().body.kind(), "stop");
    intact(&place.dir);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_only_noted_and_did_not_reach_the_log_is_counted_in_a_gap_record() {
    let place = Place::new();
    let first = wiring(&place.dir, 1);
    let unwritten = first.unwritten.clone();
    let fatal: OnFatal = Arc::new(|room, why| panic!("{room}: {why}"));
    let mut builder = TreeBuilder::new(Intensity::default(), fatal.clone());
    let audit = AuditHandle::add(&mut builder, first);
    let tree = builder.start().await.unwrap();
    let seq = audit.note(Entry::new("auth.refused")).await.unwrap();
    // Nobody has lost anything: no gap.
    assert_eq!(audit.head().await.unwrap().seq, seq);
    audit.note(Entry::new("No Good")).await.unwrap_err();
    audit.passed_over(3);
    audit.event(Entry::new("a")).await.unwrap();
    let gap = |records: Vec<Arc<Record>>| {
        let found = records.iter().rev().find_map(|record| match &record.body {
            Body::Gap { count, reason, .. } => Some((*count, reason.clone())),
            _ => None,
        });
        found.unwrap()
    };
    assert_eq!(
        gap(audit.tail(2).await.unwrap()),
        (4, "OVERLOADED".to_owned())
    );
    tree.stop().await;
    for _ in 0..2 {
        let error = audit.note(Entry::new("auth.refused")).await.unwrap_err();
        assert_eq!(error.code(), "ROOM_DOWN");
    }
    let mut builder = TreeBuilder::new(Intensity::default(), fatal);
    let again = AuditWiring {
        state: None,
        unwritten,
        ..wiring(&place.dir, 2)
    };
    let audit = AuditHandle::add(&mut builder, again);
    let tree = builder.start().await.unwrap();
    audit.event(Entry::new("a")).await.unwrap();
    assert_eq!(
        gap(audit.tail(10).await.unwrap()),
        (2, "ROOM_DOWN".to_owned())
    );
    tree.stop().await;
    intact(&place.dir);
}

/// The bug: a run's end that one failed write refused was never tried again, and its key said `under way` until a restart.
#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_that_one_failed_write_refused_is_recorded_when_the_log_takes_records_again() {
    let place = Place::new();
    let (tree, audit) = tree(&place.dir, 1).await;
    let intent = audit.intent(Entry::new("exec.run")).await.unwrap();
    let given_up = audit.intent(Entry::new("vault.export")).await.unwrap();
    // Another file of the same bytes: the next write is refused, and the one after it finds what was written.
    let path = place.segment(1);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, bytes).unwrap();
    let refused = audit.outcome_first(given_up, Outcome::ok()).await;
    assert_eq!(refused.unwrap_err().code(), "CANNOT_RECORD");
    let late = Outcome::failed("CANCELLED").with("status", "cancelled");
    let refused = audit.outcome(intent, late.clone()).await;
    assert_eq!(refused.unwrap_err().code(), "CANNOT_RECORD");
    let one = || Query {
        since_seq: Some(intent),
        until_seq: Some(given_up),
        ..Query::default()
    };
    let began = std::time::Instant::now();
    // Nothing else is recorded meanwhile.
    let found = loop {
        let found = audit.query(one()).await.unwrap();
        if found[0].outcome.is_some() {
            break found;
        }
        assert!(began.elapsed() < std::time::Duration::from_mins(1));
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    let end = found[0].outcome.as_ref().unwrap();
    assert_eq!(end.outcome.result, late.result);
    assert_eq!(end.outcome.detail.get("status"), late.detail.get("status"));
    assert!(found[1].outcome.is_none(), "what was not done stays open");
    assert!(audit.broken().await.unwrap().is_none());
    // Once, and the refusal is counted once.
    let records = audit.tail(100).await.unwrap();
    let ends = |record: &&Arc<Record>| matches!(record.body, Body::Outcome { .. });
    assert_eq!(records.iter().filter(ends).count(), 1);
    let gaps: Vec<u64> = records
        .iter()
        .filter_map(|record| match record.body {
            Body::Gap { count, .. } => Some(count),
            _ => None,
        })
        .collect();
    assert_eq!(gaps, [2]);
    tree.stop().await;
    intact(&place.dir);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_cut_under_a_running_daemon_is_found_and_the_room_does_not_start_on_it() {
    let place = Place::new();
    let (tree, audit) = tree(&place.dir, 1).await;
    for n in 0..5 {
        audit
            .event(Entry::new("a").with("n", n.to_string()))
            .await
            .unwrap();
    }
    // A record less at the end, cut cleanly: only the writer knows that it was there.
    let last = tail_dir(&place.dir, 1).unwrap();
    let bytes = std::fs::read(place.segment(1)).unwrap();
    let size = {
        let mut out = Vec::new();
        let record = &last[0];
        let head = portcullis_core::audit::Head {
            seq: Seq(record.seq.0 - 1),
            hash: record.prev,
        };
        portcullis_core::audit::encode_record(
            &mut out,
            head,
            record.stamp,
            record.boot,
            &record.body,
            None,
        )
        .unwrap();
        out.len() + portcullis_core::audit::TAG
    };
    std::fs::write(place.segment(1), &bytes[..bytes.len() - size]).unwrap();
    let report = audit.verify().await.unwrap();
    assert_eq!(report.first_break.unwrap().seq, last[0].seq);
    tree.stop().await;

    let mut bytes = std::fs::read(place.segment(1)).unwrap();
    bytes[200] ^= 1;
    std::fs::write(place.segment(1), &bytes).unwrap();
    let fatal: OnFatal = Arc::new(|_, _| {});
    let mut builder = TreeBuilder::new(Intensity::default(), fatal);
    let _audit = AuditHandle::add(&mut builder, wiring(&place.dir, 2));
    let Err(error) = builder.start().await else {
        panic!("started on an altered log")
    };
    assert_eq!(error.room, "audit");
    assert!(
        error.why.contains("AUDIT_ALTERED: record 1 "),
        "{}",
        error.why
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_end_of_a_daemon_the_next_one_closes_what_was_open() {
    let place = Place::new();
    let (first, audit) = tree(&place.dir, 1).await;
    let keyed = Entry {
        principal: Some("p".into()),
        idempotency_key: Some("k".into()),
        ..Entry::new("exec.run")
    };
    let Once::New { seq } = audit
        .intent_once(keyed.clone(), Refused::Stands)
        .await
        .unwrap()
    else {
        panic!()
    };
    first.stop().await;
    let (second, audit) = tree(&place.dir, 2).await;
    let boot = BootId([1; 16]);
    let outcome = Some(portcullis_core::audit::OutcomeResult::Unknown { boot });
    assert_eq!(
        audit.intent_once(keyed, Refused::Stands).await.unwrap(),
        Once::Seen { seq, outcome }
    );
    let closed = Query {
        outcome: Some(OutcomeFilter::Unknown),
        ..Query::default()
    };
    assert_eq!(audit.query(closed).await.unwrap()[0].record.seq, seq);
    second.stop().await;
    assert_eq!(
        audit.event(Entry::new("a")).await,
        Err(AuditError::Down {
            may_have_run: false
        })
    );
    intact(&place.dir);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_callers_share_syncs() {
    let place = Place::new();
    let (tree, audit) = tree(&place.dir, 1).await;
    let calls: Vec<_> = (0..64)
        .map(|n| {
            let audit = audit.clone();
            tokio::spawn(async move {
                for i in 0..20 {
                    let entry = Entry::new("a").with("n", format!("{n}.{i}"));
                    let intent = audit.intent(entry).await.unwrap();
                    audit.outcome(intent, Outcome::ok()).await.unwrap();
                }
            })
        })
        .collect();
    for call in calls {
        call.await.unwrap();
    }
    let view = tree.window().look();
    let fact = |name| {
        let facts = &view.rooms[0].facts;
        facts
            .iter()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value.clone())
    };
    let head = audit.head().await.unwrap();
    assert_eq!(head.seq, Seq(1 + 64 * 20 * 2));
    eprintln!(
        "{} records in {:?} syncs (snapshot may be a ping old)",
        head.seq,
        fact("syncs")
    );
    tree.stop().await;
    intact(&place.dir);
}

/// The bug: the third who wanted to read was refused, so that one client's requests were another's error.
#[tokio::test(flavor = "multi_thread")]
async fn many_who_read_at_once_wait_for_their_turn_and_are_all_answered() {
    let place = Place::new();
    let (tree, audit) = tree(&place.dir, 1).await;
    let all = audit.tail(1_000).await.unwrap();
    let ask = |n: usize| {
        let audit = audit.clone();
        tokio::spawn(async move {
            match n % 3 {
                // More than the memory holds since the start.
                0 => audit.tail(1_000).await.map(|records| records.len()),
                1 => audit.query(Query::default()).await.map(|found| found.len()),
                _ => audit.verify().await.map(|report| {
                    assert!(report.intact);
                    1
                }),
            }
        })
    };
    let calls: Vec<_> = (0..90).map(ask).collect();
    for (n, call) in calls.into_iter().enumerate() {
        let found = call.await.unwrap().unwrap();
        assert_eq!(found, all.len(), "{n}");
    }
    tree.stop().await;
}
