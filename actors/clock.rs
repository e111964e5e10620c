//! The wall clock as a value, so that rooms run on a test's time.

use portcullis_core::time::Millis;
use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Reads the time. Cloning shares the clock.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Millis + Send + Sync>);

impl Clock {
    /// The system's clock.
    #[expect(
        clippy::disallowed_methods,
        reason = "the one module that reads the wall clock"
    )]
    pub fn system() -> Self {
        Self(Arc::new(|| {
            let since = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default();
            Millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
        }))
    }

    /// Whatever `read` says, a clock of one's own.
    pub fn of(read: impl Fn() -> Millis + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }

    /// A clock that starts at `start` and runs with the runtime's time, which a test may pause.
    pub fn of_runtime(start: Millis) -> Self {
        let began = tokio::time::Instant::now();
        Self(Arc::new(move || {
            start.plus(u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX))
        }))
    }

    /// Now.
    pub fn now(&self) -> Millis {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}
