//! The one look from outside the runtime: a handler that never awaits can hold every worker thread (on one core the
//! first does), or the very worker whose queue the root waits in; then no ping, timer or kill ever runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The root's sign of life.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    beats: AtomicU64,
    /// Seconds the root may be silent on top of the limit: it waits for rooms to stop.
    allowance: AtomicU64,
}

impl Pulse {
    pub(super) fn beat(&self) {
        self.beats.fetch_add(1, Relaxed);
    }

    pub(super) fn allow(&self, time: Duration) {
        self.allowance.store(time.as_secs(), Relaxed);
    }
}

/// Asks for a beat (`ask` is `false` when nobody is left to answer) and calls `fatal` once, after `limit` seconds
/// without one. Seconds are counted in looks, not by the clock: a suspended machine has no stuck root.
pub(super) fn watch(
    pulse: Arc<Pulse>,
    limit: u64,
    ask: impl Fn() -> bool + Send + 'static,
    fatal: impl FnOnce(&str) + Send + 'static,
) {
    let body = move || {
        let (mut seen, mut silent) = (None, 0u64);
        loop {
            let beats = pulse.beats.load(Relaxed);
            if seen == Some(beats) {
                silent += 1;
            } else {
                (seen, silent) = (Some(beats), 0);
                if !ask() {
                    return;
                }
            }
            if silent > limit.saturating_add(pulse.allowance.load(Relaxed)) {
                fatal("the supervisor does not turn: a handler never awaits");
                return;
            }
            std::thread::park_timeout(LOOK_EVERY);
        }
    };
    let thread = std::thread::Builder::new()
        .name("watchdog".to_owned())
        .spawn(body);
    if let Err(error) = thread {
        tracing::warn!(target: "portcullis", %error, "no watchdog thread: a spinning handler may go unseen");
    }
}
