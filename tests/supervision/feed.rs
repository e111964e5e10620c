//! News upward: lossy but never silently so, and deaf to restarts.

use portcullis_actors::supervision::{Feed, FeedItem, Flag, Policy};

use super::support::*;

async fn next(reader: &mut portcullis_actors::supervision::FeedReader<u64>) -> Option<(u64, u64)> {
    match reader.next().await {
        FeedItem::Event(event) => Some((event.seq, event.event)),
        FeedItem::Lagged => None,
        FeedItem::Closed => panic!("closed"),
    }
}

#[tokio::test]
async fn a_lagging_reader_is_told_once_and_then_reads_on() {
    let feed = Feed::new();
    let mut slow = feed.subscribe();
    for n in 0..1_500u64 {
        feed.publish(n);
    }
    assert_eq!(next(&mut slow).await, None);
    for n in 476..1_500u64 {
        assert_eq!(next(&mut slow).await, Some((n + 1, n)));
    }
    feed.publish(7);
    assert_eq!(next(&mut slow).await, Some((1_501, 7)));
    drop(feed);
    assert!(matches!(slow.next().await, FeedItem::Closed));
}

#[tokio::test(start_paused = true)]
async fn subscribers_survive_a_restart_of_the_room_and_the_numbers_go_on() {
    let (mut builder, _fatal) = builder();
    let feed = Feed::<u64>::new();
    let mut reader = feed.subscribe();
    let plan = Plan::<0>::new(&Log::default()).start(move |life, _| {
        feed.publish(u64::from(life));
        async { Ok(()) }
    });
    let room = builder.room::<Probe<0>>(Policy::new(4), plan);
    let _tree = builder.start().await.unwrap();
    let _ = panics(&room).await;
    assert_eq!(say(&room, 1).await, Ok(1));
    assert_eq!(next(&mut reader).await, Some((1, 1)));
    assert_eq!(next(&mut reader).await, Some((2, 2)));
}

// Number and send were two steps: two publishers delivered their numbers out of order.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn numbers_arrive_in_order_from_several_publishers() {
    let feed = Feed::new();
    let mut reader = feed.subscribe();
    let publishers: Vec<_> = (0..4)
        .map(|_| {
            let feed = feed.clone();
            std::thread::spawn(move || {
                for n in 0..250u64 {
                    feed.publish(n);
                }
            })
        })
        .collect();
    for publisher in publishers {
        publisher.join().unwrap();
    }
    for seq in 1..=1_000 {
        assert_eq!(next(&mut reader).await.unwrap().0, seq);
    }
}

#[tokio::test(start_paused = true)]
async fn a_flag_shows_its_latest_value_and_wakes_who_waits() {
    let flag = Flag::new(0);
    let mut reader = flag.reader();
    assert!(!reader.has_changed());
    flag.set(1);
    flag.set(2);
    assert!(reader.has_changed());
    assert_eq!(
        (reader.get(), reader.take(), reader.has_changed()),
        (2, 2, false)
    );
    let waiting = tokio::spawn(async move { reader.until(|v| *v > 4).await });
    settle().await;
    flag.set(3);
    flag.set(5);
    assert_eq!((waiting.await.unwrap(), flag.get()), (Some(5), 5));
}

// The watch hides the last value behind its end: "revoked", then gone, read as "nothing new".
#[tokio::test(start_paused = true)]
async fn a_last_value_is_not_lost_when_its_flag_goes() {
    let flag = Flag::new("open");
    let mut reader = flag.reader();
    flag.set("revoked");
    drop(flag);
    assert!(reader.has_changed());
    assert_eq!(reader.changed().await, Some("revoked"));
    assert!(
        reader.has_changed(),
        "a flag that is gone always asks to be looked at"
    );
    assert_eq!((reader.changed().await, reader.get()), (None, "revoked"));
}
