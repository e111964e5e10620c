//! Keeps a detached run for its reader: what it wrote last while nobody reads, and its end for a while after it.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use portcullis_cell::Stream;
use portcullis_core::ids::RunId;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::actor::unknown;
use super::messages::{ExecEvent, RunResult};

/// Bytes of output that are held for each run. With a reader the run waits beyond it; without one the oldest go.
const HELD: u64 = 256 * 1024;
/// How long the end is held, and the last output with it.
const END_HELD: Duration = Duration::from_mins(5);

/// Somebody reads from here on.
pub(super) struct Attach {
    /// Bytes of output, both streams together, that he has.
    pub offset: u64,
    /// Where it goes.
    pub events: mpsc::Sender<ExecEvent>,
}

struct Piece {
    /// Of its first byte.
    offset: u64,
    seq: u64,
    stream: Stream,
    data: Bytes,
}

struct Reader {
    events: mpsc::Sender<ExecEvent>,
    /// The next byte that he gets.
    offset: u64,
    /// That the run has begun is still to be told.
    begun: Option<Begun>,
}

/// As [`ExecEvent::Begun`].
struct Begun {
    credit: Option<u32>,
}

/// What stands between a detached run and its readers.
pub(super) struct Keeper {
    run: RunId,
    held: VecDeque<Piece>,
    /// Of the byte that comes next.
    end: u64,
    reader: Option<Reader>,
    /// One whose place another has taken: to be told.
    left: Option<mpsc::Sender<ExecEvent>>,
    result: Option<RunResult>,
}

/// What comes first.
enum Next {
    Attach(Option<Attach>),
    /// The reader has room.
    Room,
    Gone,
    LeftToldOrGone,
    Event(Option<ExecEvent>),
    Over,
}

impl Keeper {
    /// With who began it as its first reader.
    pub fn new(run: RunId, events: mpsc::Sender<ExecEvent>) -> Self {
        Self {
            run,
            held: VecDeque::new(),
            end: 0,
            reader: Some(Reader {
                events,
                offset: 0,
                begun: None,
            }),
            left: None,
            result: None,
        }
    }

    /// Until its end has been held for as long as it is, or nobody can ask for it any more.
    pub async fn keep(
        mut self,
        mut from: mpsc::Receiver<ExecEvent>,
        mut orders: mpsc::Receiver<Attach>,
    ) {
        let mut until: Option<Instant> = None;
        loop {
            match self.next(&mut from, &mut orders, until).await {
                Next::Attach(Some(attach)) => self.attach(attach),
                Next::Attach(None) | Next::Over => return,
                Next::Room => self.pass_on(),
                Next::Gone => self.reader = None,
                Next::LeftToldOrGone => {
                    if let Some(left) = self.left.take() {
                        let _ = left.try_send(ExecEvent::Detached);
                    }
                }
                Next::Event(event) => {
                    self.take(event);
                    if self.result.is_some() {
                        until = Some(Instant::now() + END_HELD);
                    }
                }
            }
        }
    }

    async fn next(
        &self,
        from: &mut mpsc::Receiver<ExecEvent>,
        orders: &mut mpsc::Receiver<Attach>,
        until: Option<Instant>,
    ) -> Next {
        let over = async {
            match until {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        let reader = async {
            match &self.reader {
                None => std::future::pending().await,
                Some(reader) if self.has_news(reader) => match reader.events.reserve().await {
                    Ok(_) => Next::Room,
                    Err(_) => Next::Gone,
                },
                Some(reader) => {
                    reader.events.closed().await;
                    Next::Gone
                }
            }
        };
        let left = async {
            match &self.left {
                None => std::future::pending().await,
                // One that is gone is told nothing.
                Some(left) => drop(left.reserve().await),
            }
        };
        let behind = self.reader.as_ref();
        let behind = behind.map_or(0, |reader| self.end.saturating_sub(reader.offset));
        let takes = self.result.is_none() && behind < HELD;
        tokio::select! {
            order = orders.recv() => Next::Attach(order),
            next = reader => next,
            () = left => Next::LeftToldOrGone,
            event = from.recv(), if takes => Next::Event(event),
            () = over => Next::Over,
        }
    }

    fn has_news(&self, reader: &Reader) -> bool {
        reader.begun.is_some() || reader.offset < self.end || self.result.is_some()
    }

    fn attach(&mut self, Attach { offset, events }: Attach) {
        let reader = Reader {
            events,
            // Nobody has what was never written.
            offset: offset.min(self.end),
            begun: None,
        };
        if let Some(before) = self.reader.replace(reader)
            && let Some(earlier) = self.left.replace(before.events)
        {
            let _ = earlier.try_send(ExecEvent::Detached);
        }
    }

    fn take(&mut self, event: Option<ExecEvent>) {
        match event {
            Some(ExecEvent::Output {
                seq, stream, data, ..
            }) => {
                let offset = self.end;
                self.end += data.len() as u64;
                self.held.push_back(Piece {
                    offset,
                    seq,
                    stream,
                    data,
                });
                // What a reader has not had stays: he is behind by no more than that and one piece.
                let unread = self
                    .reader
                    .as_ref()
                    .map_or(u64::MAX, |reader| reader.offset);
                while let Some(first) = self.held.front()
                    && self.end - first.offset > HELD
                    && first.offset + first.data.len() as u64 <= unread
                    && self.held.len() > 1
                {
                    self.held.pop_front();
                }
            }
            Some(ExecEvent::Begun { credit }) => {
                if let Some(reader) = &mut self.reader {
                    reader.begun = Some(Begun { credit });
                }
            }
            Some(ExecEvent::Detached) => {}
            Some(ExecEvent::Ended(result)) => self.result = Some(result),
            None => self.result = Some(unknown(self.run.clone(), None)),
        }
    }

    /// The next thing for the reader, who has room for it.
    fn pass_on(&mut self) {
        let Some(mut reader) = self.reader.take() else {
            return;
        };
        let event = if let Some(Begun { credit }) = reader.begun.take() {
            ExecEvent::Begun { credit }
        } else if reader.offset < self.end {
            let holds = |piece: &&Piece| piece.offset + piece.data.len() as u64 > reader.offset;
            let Some(piece) = self.held.iter().find(holds) else {
                return;
            };
            let skip = usize::try_from(reader.offset.saturating_sub(piece.offset));
            let data = piece
                .data
                .slice(skip.unwrap_or(usize::MAX).min(piece.data.len())..);
            let dropped = piece.offset.saturating_sub(reader.offset);
            reader.offset = piece.offset + piece.data.len() as u64;
            ExecEvent::Output {
                seq: piece.seq,
                stream: piece.stream,
                data,
                dropped,
            }
        } else if let Some(result) = &self.result {
            let _ = reader.events.try_send(ExecEvent::Ended(result.clone()));
            return;
        } else {
            self.reader = Some(reader);
            return;
        };
        // Only this sends, and a place was seen free.
        if reader.events.try_send(event).is_ok() {
            self.reader = Some(reader);
        }
    }
}

#[cfg(test)]
#[allow(
    clippy::disallowed_methods,
    reason = "a test supervises its own tasks, on a clock that stands still"
)]
mod tests {
    use super::*;

    fn output(seq: u64, size: usize) -> ExecEvent {
        ExecEvent::Output {
            seq,
            stream: Stream::Out,
            data: Bytes::from(vec![u8::try_from(seq % 251).unwrap(); size]),
            dropped: 0,
        }
    }

    struct Scene {
        run: mpsc::Sender<ExecEvent>,
        orders: mpsc::Sender<Attach>,
        first: mpsc::Receiver<ExecEvent>,
    }

    fn scene() -> Scene {
        let (run, from) = mpsc::channel(1);
        let (orders, taken) = mpsc::channel(4);
        let (events, first) = mpsc::channel(4);
        let keeper = Keeper::new(RunId::new("run-1").unwrap(), events);
        tokio::spawn(keeper.keep(from, taken));
        Scene { run, orders, first }
    }

    async fn attach(scene: &Scene, offset: u64) -> mpsc::Receiver<ExecEvent> {
        let (events, seen) = mpsc::channel(4);
        assert!(scene.orders.send(Attach { offset, events }).await.is_ok());
        seen
    }

    async fn bytes(seen: &mut mpsc::Receiver<ExecEvent>) -> (u64, usize) {
        match seen.recv().await {
            Some(ExecEvent::Output { data, dropped, .. }) => (dropped, data.len()),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_later_reader_goes_on_from_its_byte_and_is_told_what_is_gone() {
        let mut scene = scene();
        for seq in 0..3 {
            scene.run.send(output(seq, 10)).await.unwrap();
        }
        for _ in 0..3 {
            assert_eq!(bytes(&mut scene.first).await, (0, 10));
        }
        let mut second = attach(&scene, 15).await;
        assert_eq!(scene.first.recv().await, Some(ExecEvent::Detached));
        assert_eq!(bytes(&mut second).await, (0, 5));
        assert_eq!(bytes(&mut second).await, (0, 10));
        drop(second);
        // Nobody reads: the run is not held up, and the oldest go.
        for seq in 3..103 {
            scene.run.send(output(seq, 10_000)).await.unwrap();
        }
        scene
            .run
            .send(ExecEvent::Ended(unknown(
                RunId::new("run-1").unwrap(),
                None,
            )))
            .await
            .unwrap();
        let mut third = attach(&scene, 30).await;
        let (dropped, first) = bytes(&mut third).await;
        assert_eq!(first, 10_000);
        let mut rest = 0;
        loop {
            match third.recv().await {
                Some(ExecEvent::Output { data, dropped, .. }) => {
                    assert_eq!(dropped, 0);
                    rest += data.len() as u64;
                }
                Some(ExecEvent::Ended(_)) => break,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(dropped + 10_000 + rest, 1_000_000);
        assert!((200_000..=HELD).contains(&(10_000 + rest)), "{rest}");
        // As often as it is asked for, and not for ever.
        assert!(matches!(
            attach(&scene, 1_000_030).await.recv().await,
            Some(ExecEvent::Ended(_))
        ));
        tokio::time::sleep(END_HELD * 2).await;
        assert!(scene.orders.is_closed());
    }

    #[tokio::test(start_paused = true)]
    async fn with_a_reader_that_does_not_read_the_run_waits_and_loses_nothing() {
        let mut scene = scene();
        let sent = async {
            for seq in 0..100 {
                scene.run.send(output(seq, 10_000)).await.unwrap();
            }
        };
        assert!(
            tokio::time::timeout(Duration::from_mins(1), sent)
                .await
                .is_err()
        );
        let mut got = 0;
        while let Ok(Some(ExecEvent::Output { data, dropped, .. })) =
            tokio::time::timeout(Duration::from_secs(1), scene.first.recv()).await
        {
            assert_eq!(dropped, 0);
            got += data.len() as u64;
        }
        assert!((HELD..HELD + 100_000).contains(&got), "{got}");
    }
}
