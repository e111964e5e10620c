//! The machine's clocks as a value, so that rooms run on a test's time: the wall clock, and the one that nobody sets.

use nix::time::{ClockId, clock_gettime};
use portcullis_core::time::{BootMoment, Millis};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Names this start of the kernel.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Reads the time. Cloning shares the clock.
#[derive(Clone)]
pub struct Clock {
    wall: Arc<dyn Fn() -> Millis + Send + Sync>,
    boot: Arc<dyn Fn() -> Option<BootMoment> + Send + Sync>,
}

impl Clock {
    /// The system's clocks.
    #[expect(
        clippy::disallowed_methods,
        reason = "the one module that reads the wall clock"
    )]
    pub fn system() -> Self {
        // Where it cannot be read, what was timed before this start of the gateway is timed by the wall clock alone.
        let boot = std::fs::read_to_string(BOOT_ID).map_or_else(
            |_| uuid::Uuid::new_v4().to_string(),
            |id| id.trim().to_owned(),
        );
        Self::of(|| {
            let since = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default();
            Millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
        })
        .with_boot(move || {
            let since: Duration = clock_gettime(ClockId::CLOCK_BOOTTIME).ok()?.into();
            Some(BootMoment {
                boot: boot.clone(),
                ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            })
        })
    }

    /// Whatever `read` says, a wall clock of one's own, with no other beside it.
    pub fn of(read: impl Fn() -> Millis + Send + Sync + 'static) -> Self {
        Self {
            wall: Arc::new(read),
            boot: Arc::new(|| None),
        }
    }

    /// With this beside it for the clock that nobody sets.
    #[must_use]
    pub fn with_boot(self, read: impl Fn() -> Option<BootMoment> + Send + Sync + 'static) -> Self {
        Self {
            boot: Arc::new(read),
            ..self
        }
    }

    /// A clock that starts at `start` and runs with the runtime's time, which a test may pause.
    pub fn of_runtime(start: Millis) -> Self {
        let began = tokio::time::Instant::now();
        Self::of(move || start.plus(u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX)))
    }

    /// Now.
    pub fn now(&self) -> Millis {
        (self.wall)()
    }

    /// Now, by the machine's own clock, where there is one.
    pub fn boot(&self) -> Option<BootMoment> {
        (self.boot)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}
