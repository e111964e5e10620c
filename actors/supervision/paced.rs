//! Dear work of many parties, off the runtime: each does one piece at a time, all together so many, and what is done is shown by a clock.
//!
//! A party's next piece begins no earlier than the clock of its last one allows, so that what it costs in all is bounded too, by how much less
//! than its time on the clock a piece takes. Who wait get their turns in the order in which they came.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until};

/// One party's, or that of all.
#[derive(Debug)]
pub struct Paced {
    all: Arc<Semaphore>,
    /// When what was done last is shown.
    own: Arc<Mutex<Instant>>,
}

impl Paced {
    /// For all parties together: at most half of the machine, so that its other work goes on.
    pub fn of_all() -> Arc<Self> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Arc::new(Self::of(Arc::new(Semaphore::new((processors / 2).max(1)))))
    }

    /// One party's.
    pub fn of_one(all: &Self) -> Arc<Self> {
        Arc::new(Self::of(all.all.clone()))
    }

    fn of(all: Arc<Semaphore>) -> Self {
        Self {
            all,
            own: Arc::new(Mutex::new(Instant::now())),
        }
    }

    /// Does a piece of work on a thread where it may take its time: what came of it, and when that may be shown. The job says with what it
    /// gives how long it takes on the clock. It cannot be called back: who does not wait for it any more leaves it its turn until it ends.
    /// `None`: it panicked, or the runtime ends.
    pub async fn turn<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> (T, Duration) + Send + 'static,
    ) -> Option<(T, Instant)> {
        let mut turn = self.wait().await?;
        let began = Instant::now();
        let done = tokio::task::spawn_blocking(move || {
            let (done, cost) = job();
            let due = began + cost;
            *turn.own = due;
            drop(turn);
            (done, due)
        });
        done.await.ok()
    }

    async fn wait(&self) -> Option<Turn> {
        let own = self.own.clone().lock_owned().await;
        sleep_until(*own).await;
        // Behind its own clock: who has used its time up is in nobody's way.
        let all = self.all.clone().acquire_owned().await.ok()?;
        Some(Turn { own, _all: all })
    }
}

/// A piece of work may be done.
struct Turn {
    own: OwnedMutexGuard<Instant>,
    _all: OwnedSemaphorePermit,
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: Duration = Duration::from_millis(10);

    /// What one party does begins by its clock, and another's does not wait for that.
    #[tokio::test(start_paused = true)]
    async fn one_party_waits_for_its_clock_and_another_does_not() {
        let all = Paced::of_all();
        let (one, other) = (Paced::of_one(&all), Paced::of_one(&all));
        let began = Instant::now();
        let mut dues = Vec::new();
        for n in 1..=5_u32 {
            let (done, due) = one.turn(move || (n, PIECE)).await.unwrap();
            assert_eq!(done, n);
            dues.push(due - began);
        }
        let clock: Vec<_> = (1..=5).map(|n| PIECE * n).collect();
        assert_eq!(dues, clock);
        // The first's last piece is not shown yet.
        let now = Instant::now();
        assert_eq!(now - began, PIECE * 4);
        let ((), due) = other.turn(|| ((), PIECE)).await.unwrap();
        assert_eq!(due, now + PIECE);
        // A piece that panics is nobody's end.
        let broken = other.turn(|| -> ((), Duration) { panic!("for the test") });
        assert!(broken.await.is_none());
        assert!(other.turn(|| ((), PIECE)).await.is_some());
    }

    /// Work that nobody waits for any more is still the one piece that its party may do at a time.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_goes_away_leaves_no_second_piece_beside_its_first() {
        let all = Paced::of_all();
        let one = Paced::of_one(&all);
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let (begun, has_begun) = tokio::sync::oneshot::channel();
        let first = one.turn(move || {
            let _ = begun.send(());
            let _ = wait.recv();
            ((), Duration::ZERO)
        });
        tokio::select! {
            _ = first => panic!("it waits"),
            begun = has_begun => begun.unwrap(),
        }
        let next = one.turn(|| ((), Duration::ZERO));
        tokio::pin!(next);
        let early = tokio::time::timeout(Duration::from_millis(100), &mut next).await;
        assert!(early.is_err(), "the first one has not ended");
        go.send(()).unwrap();
        assert!(next.await.is_some());
    }
}
