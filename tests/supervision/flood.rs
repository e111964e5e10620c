//! 200,000 messages at a stuck actor cost what its gate holds, and no more.

use portcullis_actors::supervision::{Policy, TellError};

use super::support::*;

const CAPACITY: usize = 1_024;
const BYTES: usize = 4_096;

fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|l| l.strip_prefix("VmRSS:"))
        .unwrap();
    line.trim()
        .trim_end_matches(" kB")
        .parse::<usize>()
        .unwrap()
        * 1024
}

#[test]
fn two_hundred_thousand_messages_at_a_stuck_actor_stay_within_its_gate() {
    const ME: &str =
        "supervision::flood::two_hundred_thousand_messages_at_a_stuck_actor_stay_within_its_gate";
    if inner(ME) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        return runtime.block_on(flood());
    }
    let output = own_process(ME);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let figure = text.lines().find(|l| l.contains("flood:")).unwrap();
    println!("{figure}");
}

async fn flood() {
    let (mut builder, _fatal) = builder();
    let room = builder.room::<Probe<0>>(Policy::new(CAPACITY), Plan::new(&Log::default()));
    let tree = builder.start().await.unwrap();
    room.tell(job(|_| Box::pin(std::future::pending())))
        .await
        .unwrap();
    settle().await;
    let before = resident();
    let (mut taken, mut refused) = (0usize, 0usize);
    for n in 0..200_000u32 {
        let load = vec![n.to_le_bytes()[0] | 1; BYTES];
        match room
            .tell(job(move |_| {
                std::hint::black_box(&load);
                Box::pin(async { Ok(()) })
            }))
            .await
        {
            Ok(()) => taken += 1,
            Err(TellError::Overloaded) => refused += 1,
            Err(TellError::Unavailable) => panic!("down"),
        }
    }
    let grown = resident().saturating_sub(before);
    let limit = CAPACITY * (BYTES + 1_024) + 4 * 1_024 * 1_024;
    println!(
        "flood: {taken} taken, {refused} refused, resident +{} KiB (gate {} KiB)",
        grown / 1024,
        CAPACITY * BYTES / 1024
    );
    assert_eq!((taken, taken + refused), (CAPACITY - 1, 200_000));
    assert!(grown < limit, "{grown} of {limit}");
    let gate = tree.window().look().rooms[0].gate.clone().unwrap();
    assert_eq!(
        (gate.depth, gate.high_water, gate.refused),
        (CAPACITY, CAPACITY, refused as u64)
    );
}
