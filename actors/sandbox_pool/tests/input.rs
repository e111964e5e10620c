//! What goes into a run: part of the suite that every driver passes.

use std::time::{Duration, Instant};

use portcullis_cell::{Cause, INPUT_WINDOW, Input, SIGNALS, Size};
use tokio::sync::{mpsc, oneshot};

use crate::sandbox_pool::driver::Driver;
use crate::sandbox_pool::input::{NotTaken, Piece, RunInput, RunInputs, Taken};
use crate::sandbox_pool::runs::{Order, RunEvent};

use super::harness::{Ended, Live, State, commands, finish, in_time, slack};

/// How far it was taken; none: the run is over.
async fn put(
    inputs: &RunInputs,
    offset: u64,
    data: &[u8],
    eof: bool,
) -> Option<Result<Taken, NotTaken>> {
    put_within(inputs, offset, data, eof, Duration::from_secs(10)).await
}

async fn put_within(
    inputs: &RunInputs,
    offset: u64,
    data: &[u8],
    eof: bool,
    within: Duration,
) -> Option<Result<Taken, NotTaken>> {
    let (reply, answer) = oneshot::channel();
    let piece = Piece {
        offset,
        data: Input::new(data.to_vec()),
        eof,
        until: tokio::time::Instant::now() + within,
        reply,
    };
    inputs.put(RunInput::Stdin(piece)).await;
    answer.await.ok()
}

async fn signal(inputs: &RunInputs, name: &str) -> Option<Result<(), NotTaken>> {
    let number = SIGNALS.iter().find(|(known, _)| *known == name).unwrap().1;
    let (told, answer) = oneshot::channel();
    inputs.put(RunInput::Signal(number, told)).await;
    answer.await.ok()
}

async fn resize(inputs: &RunInputs, rows: u16, cols: u16) -> Option<Result<(), NotTaken>> {
    let (told, answer) = oneshot::channel();
    let size = Size { rows, cols };
    inputs.put(RunInput::Resize(size, told)).await;
    answer.await.ok()
}

/// Reads output until it has this.
async fn until(seen: &mut mpsc::Receiver<RunEvent>, wanted: &str) -> String {
    let mut text = String::new();
    let all = async {
        while !text.contains(wanted) {
            match seen.recv().await {
                Some(RunEvent::Output { data, .. }) => text += &String::from_utf8_lossy(&data),
                other => panic!("{other:?} before {wanted:?}: {text:?}"),
            }
        }
    };
    let all = tokio::time::timeout(Duration::from_secs(10) * slack(), all).await;
    assert!(all.is_ok(), "{wanted:?} never came: {text:?}");
    text
}

/// Is its process group the one that its terminal's keys are for?
fn has_the_foreground(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit_once(')').map(|(_, rest)| rest);
    let fields: Vec<&str> = fields.unwrap_or_default().split_whitespace().collect();
    fields.len() > 5 && fields[2] == fields[5]
}

/// What is still to come, without the check that it is all.
async fn rest(mut seen: mpsc::Receiver<RunEvent>) -> Ended {
    let mut out = Vec::new();
    let exit = loop {
        match seen.recv().await {
            Some(RunEvent::Output { data, .. }) => out.extend(data),
            Some(RunEvent::Exited(exit)) => break Some(exit),
            _ => break None,
        }
    };
    Ended {
        bytes: [out.len(), 0],
        out: String::from_utf8_lossy(&out).into_owned(),
        err: String::new(),
        exit,
    }
}

/// Input arrives whole, in order and once, to its end; nobody waits for a command that does not read.
pub async fn stdin(driver: &Driver, state: &State) {
    let mut live = Live::start(driver, state.spec("stdin")).await;
    // None: at its end at once, and nothing can be given.
    let (_, inputs, seen) = live.open("cat; sleep 0.3; echo end", |_| {}).await;
    assert_eq!(
        put(&inputs, 0, b"x", false).await,
        Some(Err(NotTaken::Closed))
    );
    assert_eq!(resize(&inputs, 1, 1).await, Some(Err(NotTaken::NoTerminal)));
    assert_eq!(finish(seen).await.out, "end\n");
    assert_eq!(put(&inputs, 0, b"x", false).await, None, "it is over");

    let open = |spawn: &mut portcullis_cell::Spawn| spawn.stdin = true;
    let (_, inputs, seen) = live.open("cat; echo end", open).await;
    let taken = put(&inputs, 0, b"hello\n", false).await.unwrap().unwrap();
    assert_eq!(taken.offset, 6);
    assert_eq!(
        put(&inputs, 7, b"x", false).await,
        Some(Err(NotTaken::Gap(6)))
    );
    // Told again, it is not read twice.
    let taken = put(&inputs, 0, b"hello\nworld\n", false).await.unwrap();
    assert_eq!(taken.unwrap().offset, 12);
    put(&inputs, 12, b"", true).await.unwrap().unwrap();
    let ended = finish(seen).await;
    assert_eq!(
        (ended.out.as_str(), ended.exit().code),
        ("hello\nworld\nend\n", Some(0))
    );

    // All of it on the heels of the order to start. The bug: it lay unread until the run's time was over.
    for _ in 0..20 {
        let (_, inputs, seen) = live.open("cat", open).await;
        put(&inputs, 0, b"at once\n", true).await.unwrap().unwrap();
        let ended = finish(seen).await;
        assert_eq!(
            (ended.out.as_str(), ended.exit().code),
            ("at once\n", Some(0))
        );
    }

    // More than any buffer on the way.
    let (_, inputs, seen) = live.open("sha256sum", open).await;
    let big: Vec<u8> = (0..5_000_000_u32)
        .map(|n| (n.wrapping_mul(n) >> 7).to_le_bytes()[0])
        .collect();
    let mut offset = 0;
    for piece in big.chunks(portcullis_cell::MAX_INPUT) {
        offset = put(&inputs, offset, piece, false)
            .await
            .unwrap()
            .unwrap()
            .offset;
    }
    put(&inputs, offset, b"", true).await.unwrap().unwrap();
    let digest = portcullis_core::ids::Hash32::of(&big).to_string();
    let ended = finish(seen).await;
    assert!(ended.out.starts_with(&digest), "{ended:?} {digest}");

    // Output and input at once, more of both than is held anywhere.
    let (_, inputs, seen) = live
        .open("cat", |spawn| {
            spawn.stdin = true;
            spawn.output_cap = 10_000_000;
        })
        .await;
    let reading = tokio::spawn(finish(seen));
    let mut offset = 0;
    for piece in big.chunks(10_000) {
        offset = put(&inputs, offset, piece, false)
            .await
            .unwrap()
            .unwrap()
            .offset;
    }
    put(&inputs, offset, b"", true).await.unwrap().unwrap();
    assert_eq!(reading.await.unwrap().bytes[0], big.len());

    // Closed while it writes, and by the command itself: what nobody reads is asked for no more.
    let (_, inputs, seen) = live
        .open(
            "(head -c 300000 /dev/zero; echo; echo end) & cat > /dev/null; wait",
            open,
        )
        .await;
    put(&inputs, 0, b"x", true).await.unwrap().unwrap();
    assert_eq!(finish(seen).await.bytes[0], 300_005);
    let (_, inputs, seen) = live.open("exec < /dev/null; sleep 1; echo end", open).await;
    let (offset, _) = fill(&inputs).await;
    assert!(offset <= u64::from(INPUT_WINDOW) * 2, "{offset}");
    assert_eq!(finish(seen).await.out, "end\n");
    live.stop().await;
}

/// Gives until nothing more is taken: how much was, and how often it was refused.
async fn fill(inputs: &RunInputs) -> (u64, Taken) {
    let piece = vec![b'x'; portcullis_cell::MAX_INPUT];
    // Less than what a test lets its command live.
    let within = Duration::from_millis(200) * slack().min(4);
    let mut offset = 0;
    loop {
        match put_within(inputs, offset, &piece, false, within)
            .await
            .unwrap()
        {
            Ok(taken) => offset = taken.offset,
            Err(NotTaken::Full(taken)) => return (offset, taken),
            Err(other) => panic!("{other}"),
        }
        assert!(offset < 10_000_000, "somebody holds all of it");
    }
}

/// A command that never reads holds what its pipe and its credit hold, neither its neighbours nor its own end.
pub async fn full(driver: &Driver, state: &State) {
    let mut live = Live::start(driver, state.spec("full")).await;
    let open = |spawn: &mut portcullis_cell::Spawn| spawn.stdin = true;
    let (name, inputs, seen) = live.open("sleep 97", open).await;
    let (offset, full) = fill(&inputs).await;
    // A pipe of 64 KiB, and the cell's window.
    assert_eq!((full.credit, full.offset), (0, offset));
    assert!(offset >= u64::from(INPUT_WINDOW), "{offset}");
    assert!(offset <= u64::from(INPUT_WINDOW) + 64 * 1024, "{offset}");
    for _ in 0..5 {
        let started = Instant::now();
        assert_eq!(live.run("echo neighbour").await.out, "neighbour\n");
        assert!(started.elapsed() < Duration::from_secs(1) * slack());
    }
    // One that waits is told when the run ends.
    let waits = {
        let inputs = inputs.clone();
        tokio::spawn(async move { put(&inputs, offset, b"more", false).await })
    };
    tokio::time::sleep(Duration::from_millis(50)).await;
    live.orders.send(Order::Cancel { name }).await.unwrap();
    assert_eq!(finish(seen).await.exit().cause, Cause::Cancelled);
    assert_eq!(waits.await.unwrap(), None);
    // Nor its time.
    let mut took = Vec::new();
    while !in_time(&took, Duration::from_millis(350)) {
        let started = Instant::now();
        let (_, inputs, seen) = live
            .open("sleep 97", |spawn| {
                spawn.stdin = true;
                spawn.timeout_ms = 300;
            })
            .await;
        let filling = tokio::spawn(async move {
            let piece = vec![b'x'; portcullis_cell::MAX_INPUT];
            let mut offset = 0;
            while let Some(Ok(taken)) = put(&inputs, offset, &piece, false).await {
                offset = taken.offset;
            }
        });
        assert_eq!(finish(seen).await.exit().cause, Cause::TimedOut);
        took.push(started.elapsed());
        filling.await.unwrap();
    }
    live.stop().await;
}

/// A signal goes to all of a run and ends it only if its command does; an order to end does, whatever it does.
pub async fn signals(driver: &Driver, state: &State) {
    let mut live = Live::start(driver, state.spec("signals")).await;
    let script = "trap 'echo one' USR1; trap 'echo two' USR2; (setsid sh -c \"trap 'echo far' USR1; echo ready; while :; do sleep 0.02; done\") & echo up; while :; do sleep 0.02; done";
    let (_, inputs, mut seen) = live.open(script, |_| {}).await;
    until(&mut seen, "ready").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(signal(&inputs, "USR2").await, Some(Ok(())));
    until(&mut seen, "two").await;
    drop((inputs, seen));

    let script = "trap 'echo one' USR1; echo up; while :; do sleep 0.02; done";
    let (_, inputs, mut seen) = live.open(script, |_| {}).await;
    until(&mut seen, "up").await;
    for _ in 0..3 {
        assert_eq!(signal(&inputs, "USR1").await, Some(Ok(())));
        until(&mut seen, "one").await;
    }
    assert_eq!(signal(&inputs, "TERM").await, Some(Ok(())));
    let ended = rest(seen).await;
    assert_eq!(
        (ended.exit().signal, ended.exit().cause),
        (Some(15), Cause::Itself)
    );
    assert_eq!(signal(&inputs, "TERM").await, None, "it is over");
    // Its child in a session of its own gets it too.
    let script = "setsid sh -c \"trap 'echo far; exit' TERM; echo ready; while :; do sleep 0.02; done\" & trap '' TERM; wait; wait; echo end";
    let (_, inputs, mut seen) = live.open(script, |_| {}).await;
    until(&mut seen, "ready").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    signal(&inputs, "TERM").await.unwrap().unwrap();
    until(&mut seen, "far").await;
    signal(&inputs, "KILL").await;
    let ended = rest(seen).await;
    assert_eq!(ended.exit().cause, Cause::Itself, "{ended:?}");
    // Stopped, it has its time all the same.
    let mut took = Vec::new();
    while !in_time(&took, Duration::from_millis(450)) {
        let started = Instant::now();
        let (_, inputs, seen) = live
            .open("while :; do :; done", |spawn| spawn.timeout_ms = 400)
            .await;
        signal(&inputs, "STOP").await.unwrap().unwrap();
        let ended = rest(seen).await;
        took.push(started.elapsed());
        assert_eq!(ended.exit().cause, Cause::TimedOut);
    }
    live.stop().await;
}

/// A terminal: its size, its foreground, its end; and a run on one ends as surely as any.
pub async fn terminal(driver: &Driver, state: &State) {
    let mut live = Live::start(driver, state.spec("terminal")).await;
    let on = |spawn: &mut portcullis_cell::Spawn| {
        spawn.stdin = true;
        spawn.tty = Some(Size { rows: 24, cols: 80 });
    };
    let script = "stty size; [ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo all; echo err >&2; echo direct > /dev/tty; ls /dev/pts";
    let ended = live.run_with(script, on).await;
    assert_eq!(
        ended.out,
        "24 80\r\nall\r\nerr\r\ndirect\r\n0     ptmx\r\n"
            .replace("0     ptmx", ended.out.lines().last().unwrap())
    );
    let names: Vec<&str> = ended
        .out
        .lines()
        .last()
        .unwrap()
        .split_whitespace()
        .collect();
    assert_eq!(
        names,
        ["0", "ptmx"],
        "its own, and nobody else's: {ended:?}"
    );
    assert_eq!((ended.err.as_str(), ended.exit().code), ("", Some(0)));
    // Walls stand as without one.
    let walls = live
        .run_with(
            "grep -E 'NoNewPrivs|Seccomp:|CapEff' /proc/self/status; cat /proc/1/environ",
            on,
        )
        .await;
    let words = walls.out.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        words.contains("CapEff: 0000000000000000 NoNewPrivs: 1 Seccomp: 2")
            && walls.exit().code != Some(0),
        "{words}"
    );
    let found = live
        .run_with("", |spawn| {
            on(spawn);
            spawn.argv = vec!["no-such-command".to_owned()];
        })
        .await;
    assert_eq!(
        (found.exit().code, found.exit().cause),
        (Some(127), Cause::NotStarted)
    );

    // Resized, it is told.
    let script = "trap 'stty size' WINCH; echo up; while :; do sleep 0.02; done";
    let (name, inputs, mut seen) = live.open(script, on).await;
    until(&mut seen, "up").await;
    assert_eq!(resize(&inputs, 30, 101).await, Some(Ok(())));
    until(&mut seen, "30 101").await;
    live.orders.send(Order::Cancel { name }).await.unwrap();
    assert_eq!(rest(seen).await.exit().cause, Cause::Cancelled);

    // Ctrl-C is for the foreground: typed, and as a signal.
    for typed in [true, false] {
        let script = "set -m; trap 'echo caught' INT; sleep 77 & echo up; sleep 55; echo \"after $?\"; read line; echo \"read $line\"";
        let (_, inputs, mut seen) = live.open(script, on).await;
        until(&mut seen, "up").await;
        // The shell gives the foreground to its job a moment after that has begun: before, the key is the shell's own.
        wait_for(|| {
            let sleeps = commands(live.started.init_pid, "sleep");
            sleeps.len() == 2 && sleeps.into_iter().any(has_the_foreground)
        })
        .await;
        if typed {
            put(&inputs, 0, &[3], false).await.unwrap().unwrap();
        } else {
            signal(&inputs, "INT").await.unwrap().unwrap();
        }
        until(&mut seen, "after 130").await;
        assert_eq!(
            commands(live.started.init_pid, "sleep").len(),
            1,
            "the one in the background"
        );
        put(&inputs, u64::from(typed), b"words\r", false)
            .await
            .unwrap()
            .unwrap();
        let ended = rest(seen).await;
        assert!(ended.out.contains("read words"), "{ended:?}");
        assert_eq!((ended.exit().code, ended.exit().swept), (Some(0), 1));
        assert!(commands(live.started.init_pid, "sleep").is_empty());
    }

    // The end of the input, also in a line that has begun.
    for (data, wanted) in [(&b"line\n"[..], "line\r\nline\r\n"), (b"half", "halfhalf")] {
        let (_, inputs, seen) = live.open("cat", on).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        put(&inputs, 0, data, true).await.unwrap().unwrap();
        let ended = finish(seen).await;
        assert_eq!((ended.out.as_str(), ended.exit().code), (wanted, Some(0)));
    }

    // What leaves the terminal's session is swept, what sits at it is hung up, and time and orders hold.
    let ended = live
        .run_with(
            "setsid sleep 96 > /dev/null 2>&1 & sleep 95 & sleep 0.2; echo done",
            on,
        )
        .await;
    assert_eq!(
        (ended.out.as_str(), ended.exit().swept >= 1),
        ("done\r\n", true),
        "{ended:?}"
    );
    assert!(commands(live.started.init_pid, "sleep").is_empty());
    let mut took = Vec::new();
    while !in_time(&took, Duration::from_millis(350)) {
        let started = Instant::now();
        let script = "trap '' HUP TERM INT; setsid sleep 97 & while :; do sleep 1; done";
        let ended = live
            .run_with(script, |spawn| {
                on(spawn);
                spawn.timeout_ms = 300;
            })
            .await;
        took.push(started.elapsed());
        assert_eq!(ended.exit().cause, Cause::TimedOut);
        assert!(commands(live.started.init_pid, "sleep").is_empty());
    }
    let (name, inputs, mut seen) = live.open("exec sh -i", on).await;
    until(&mut seen, "$").await;
    put(&inputs, 0, b"echo $((40 + 2))\r", false)
        .await
        .unwrap()
        .unwrap();
    until(&mut seen, "42\r\n").await;
    live.orders.send(Order::Cancel { name }).await.unwrap();
    assert_eq!(rest(seen).await.exit().cause, Cause::Cancelled);
    // A run without one after that has none, whatever its supervisor had before.
    let after = live.run("[ -t 0 ] || echo none; echo x > /dev/tty").await;
    assert_eq!(
        (after.out.as_str(), after.exit().code != Some(0)),
        ("none\n", true),
        "{after:?}"
    );
    // Typed at a program that does not read, neither it nor its neighbours wait.
    let script = "stty -icanon -echo; echo up; sleep 98";
    let (name, inputs, mut seen) = live.open(script, on).await;
    until(&mut seen, "up").await;
    let (offset, _) = fill(&inputs).await;
    // The kernel holds some 70 KiB for it, and the cell its window.
    assert!(offset <= u64::from(INPUT_WINDOW) * 3, "{offset}");
    assert_eq!(live.run("echo neighbour").await.out, "neighbour\n");
    live.orders.send(Order::Cancel { name }).await.unwrap();
    assert_eq!(rest(seen).await.exit().cause, Cause::Cancelled);
    live.stop().await;
}

async fn wait_for(mut test: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(10) * slack();
    while !test() {
        assert!(Instant::now() < until, "it never came to that");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
