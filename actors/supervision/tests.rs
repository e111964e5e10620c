//! Unit tests of the parts; the promises have one file each in `tests/supervision/`.
use super::spec::backoff;
use std::time::Duration;

#[test]
fn backoff_doubles_from_50_ms_to_10_s_and_jitter_only_shortens() {
    assert_eq!(backoff(1, 255), Duration::ZERO);
    assert_eq!(backoff(2, 0), Duration::from_millis(50));
    assert_eq!(backoff(3, 0), Duration::from_millis(100));
    assert_eq!(backoff(40, 0), Duration::from_secs(10));
    assert_eq!(backoff(1000, 0), Duration::from_secs(10));
    for nth in 2..40 {
        assert!(backoff(nth, 255) <= backoff(nth, 0));
        assert!(backoff(nth, 255) >= backoff(nth, 0) * 3 / 4);
    }
}

use super::*;

#[derive(Clone)]
struct Wiring {
    starts: Feed<()>,
}
struct Echo;
enum EchoMsg {
    Say(u32, Reply<u32, String>),
    Panic(Reply<(), String>),
    Hang(Reply<(), String>),
}
impl Room for Echo {
    const NAME: &'static str = "echo";
    type Msg = EchoMsg;
    type Wiring = Wiring;
    async fn start(wiring: &Wiring, _ctx: Ctx<Self>) -> Result<Self, Crash> {
        wiring.starts.publish(());
        Ok(Self)
    }
    async fn handle(&mut self, msg: EchoMsg) -> Result<(), Crash> {
        match msg {
            EchoMsg::Say(n, reply) => reply.ok(n),
            EchoMsg::Panic(_reply) => panic!("planned"),
            EchoMsg::Hang(_reply) => std::future::pending().await,
        }
        Ok(())
    }
}

fn tree() -> (TreeBuilder, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let (tx, rx) = tokio::sync::mpsc::unbounded_channel();
    let fatal: OnFatal = std::sync::Arc::new(move |room, why| {
        let _ = tx.send(format!("{room}: {why}"));
    });
    (TreeBuilder::new(Intensity::default(), fatal), rx)
}

#[tokio::test(start_paused = true)]
async fn a_crashed_room_answers_its_next_caller_and_the_one_in_work_is_told() {
    let (mut builder, _fatal) = tree();
    let wiring = Wiring {
        starts: Feed::new(),
    };
    let handle = builder.room::<Echo>(Policy::new(4), wiring);
    let tree = builder.start().await.unwrap();
    let within = Duration::from_secs(1);
    assert_eq!(handle.call(within, |r| EchoMsg::Say(7, r)).await, Ok(7));
    assert_eq!(
        handle.call(within, EchoMsg::Panic).await,
        Err(CallError::Unavailable { may_have_run: true })
    );
    assert_eq!(handle.call(within, |r| EchoMsg::Say(8, r)).await, Ok(8));
    assert_eq!(tree.window().look().rooms[0].restarts, 1);
    tree.stop().await;
    assert_eq!(
        handle.call(within, |r| EchoMsg::Say(9, r)).await,
        Err(CallError::Unavailable {
            may_have_run: false
        })
    );
}

#[tokio::test(start_paused = true)]
async fn a_stuck_room_is_killed_after_two_missed_pings_and_serves_again() {
    let (mut builder, _fatal) = tree();
    let wiring = Wiring {
        starts: Feed::new(),
    };
    let handle = builder.room::<Echo>(Policy::new(4), wiring);
    let _tree = builder.start().await.unwrap();
    let hung = handle.call(Duration::from_mins(2), EchoMsg::Hang).await;
    assert_eq!(hung, Err(CallError::Unavailable { may_have_run: true }));
    let within = Duration::from_secs(1);
    assert_eq!(handle.call(within, |r| EchoMsg::Say(1, r)).await, Ok(1));
}

#[tokio::test(start_paused = true)]
async fn a_message_whose_caller_gave_up_never_runs() {
    let (mut builder, _fatal) = tree();
    let wiring = Wiring {
        starts: Feed::new(),
    };
    let handle = builder.room::<Echo>(Policy::new(4), wiring);
    let _tree = builder.start().await.unwrap();
    let blocker = handle.clone();
    let blocked =
        tokio::spawn(async move { blocker.call(Duration::from_secs(5), EchoMsg::Hang).await });
    tokio::task::yield_now().await;
    let late = handle
        .call(Duration::from_secs(1), |r| EchoMsg::Say(1, r))
        .await;
    assert_eq!(
        late,
        Err(CallError::Deadline {
            may_have_run: false
        })
    );
    assert_eq!(
        blocked.await.unwrap(),
        Err(CallError::Deadline { may_have_run: true })
    );
}
