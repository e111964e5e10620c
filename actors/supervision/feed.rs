//! Upward news and latest values: how a lower room is heard without calling up.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{broadcast, watch};

/// Events a slow receiver may be behind before it must re-read.
const FEED_DEPTH: usize = 1024;

/// A bounded broadcast of one room's events. Lossy by design: nothing that must arrive depends on it alone.
pub struct Feed<E> {
    tx: broadcast::Sender<Arc<Numbered<E>>>,
    seq: Arc<Mutex<u64>>,
}

impl<E> std::fmt::Debug for Feed<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Feed").finish_non_exhaustive()
    }
}

impl<E> Clone for Feed<E> {
    fn clone(&self) -> Self {
        Self {
            tx: self.tx.clone(),
            seq: self.seq.clone(),
        }
    }
}

/// An event and its number in this process, from 1.
#[derive(Debug)]
pub struct Numbered<E> {
    /// The number.
    pub seq: u64,
    /// The event.
    pub event: E,
}

impl<E: Send + Sync + 'static> Feed<E> {
    /// A feed nobody reads yet. Made once at wiring, so that subscribers survive the room's restarts.
    pub fn new() -> Self {
        Self {
            tx: broadcast::Sender::new(FEED_DEPTH),
            seq: Arc::default(),
        }
    }

    /// Tells all current subscribers.
    pub fn publish(&self, event: E) {
        // Held over the send: two publishers must not deliver their numbers out of order.
        let mut seq = self.seq.lock().unwrap_or_else(PoisonError::into_inner);
        *seq += 1;
        // An error says that nobody listens: fine.
        let _ = self.tx.send(Arc::new(Numbered { seq: *seq, event }));
    }

    /// Hears what comes from now on.
    pub fn subscribe(&self) -> FeedReader<E> {
        FeedReader {
            rx: self.tx.subscribe(),
        }
    }
}

impl<E: Send + Sync + 'static> Default for Feed<E> {
    fn default() -> Self {
        Self::new()
    }
}

/// One subscriber of a [`Feed`].
#[derive(Debug)]
pub struct FeedReader<E> {
    rx: broadcast::Receiver<Arc<Numbered<E>>>,
}

/// What a [`FeedReader`] brings.
#[derive(Debug)]
pub enum FeedItem<E> {
    /// The next event.
    Event(Arc<Numbered<E>>),
    /// The reader was too slow and missed events: it must re-read the truth.
    Lagged,
    /// No feed any more.
    Closed,
}

impl<E: Send + Sync + 'static> FeedReader<E> {
    /// The next item.
    pub async fn next(&mut self) -> FeedItem<E> {
        match self.rx.recv().await {
            Ok(event) => FeedItem::Event(event),
            Err(broadcast::error::RecvError::Lagged(_)) => FeedItem::Lagged,
            Err(broadcast::error::RecvError::Closed) => FeedItem::Closed,
        }
    }
}

/// A latest value that many may look at (a watch).
#[derive(Debug)]
pub struct Flag<T> {
    tx: watch::Sender<T>,
}

impl<T: Clone + Send + Sync + 'static> Flag<T> {
    /// With a first value.
    pub fn new(value: T) -> Self {
        Self {
            tx: watch::Sender::new(value),
        }
    }

    /// Replaces the value and wakes the readers.
    pub fn set(&self, value: T) {
        self.tx.send_replace(value);
    }

    /// Changes the value where it stands, and wakes the readers: no other change comes in between.
    pub fn update(&self, change: impl FnOnce(&mut T)) {
        self.tx.send_modify(change);
    }

    /// The value now.
    pub fn get(&self) -> T {
        self.tx.borrow().clone()
    }

    /// A reader.
    pub fn reader(&self) -> FlagReader<T> {
        FlagReader {
            rx: self.tx.subscribe(),
        }
    }
}

impl<T: Default + Clone + Send + Sync + 'static> Default for Flag<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

/// Looks at a [`Flag`].
#[derive(Debug, Clone)]
pub struct FlagReader<T> {
    rx: watch::Receiver<T>,
}

impl<T: Clone + Send + Sync + 'static> FlagReader<T> {
    /// The value now.
    pub fn get(&self) -> T {
        self.rx.borrow().clone()
    }

    /// Is there something to look at: a value not seen by [`Self::changed`] or [`Self::take`], or no flag any more?
    /// (The watch itself hides a last value behind its end: "revoked, then gone" would read as "nothing new".)
    /// One atomic load: cheap enough for every frame.
    pub fn has_changed(&self) -> bool {
        self.rx.has_changed().unwrap_or(true)
    }

    /// The value now, which counts as seen.
    pub fn take(&mut self) -> T {
        self.rx.borrow_and_update().clone()
    }

    /// Waits for a change and returns the new value; `None` when the flag is gone.
    pub async fn changed(&mut self) -> Option<T> {
        self.rx.changed().await.ok()?;
        Some(self.rx.borrow_and_update().clone())
    }

    /// Waits until the value satisfies `test`; `None` when the flag is gone before.
    pub async fn until(&mut self, test: impl FnMut(&T) -> bool) -> Option<T> {
        self.rx.wait_for(test).await.ok().map(|v| v.clone())
    }
}
