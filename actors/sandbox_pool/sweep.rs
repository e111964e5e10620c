//! Boxes that are nobody's: the engine went on making one after the runner that had asked for it was killed, so that it came when whoever
//! wanted it had been told that there is none, and nothing of it was found to be removed.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use super::actor::SandboxPool;
use super::driver::Driver;
use super::folders;
use super::messages::SandboxPoolMsg;
use super::spec::FoundBox;
use portcullis_core::ids::BoxId;

/// How often they are looked for.
const EVERY: Duration = Duration::from_mins(1);
/// The same after a box that could not be made: what the engine was asked for may come yet.
const SOON: Duration = Duration::from_secs(5);
/// At the end of the room, for each driver.
const LAST_WITHIN: Duration = Duration::from_secs(5);

impl SandboxPool {
    /// Sets the timer.
    pub(super) fn sweep_later(&mut self) {
        self.sweep_in(EVERY);
    }

    /// A box was not made. Boxes that go on failing do not put it off.
    pub(super) fn sweep_soon(&mut self) {
        let soon = Instant::now() + SOON;
        if self.sweeping.as_ref().is_none_or(|(at, _)| soon < *at) {
            self.sweep_in(SOON);
        }
    }

    fn sweep_in(&mut self, wait: Duration) {
        let timer = self.ctx.after("sweep", 0, wait, SandboxPoolMsg::Sweep);
        self.sweeping = Some((Instant::now() + wait, timer));
    }

    /// Asks the drivers what there is, beside the loop.
    pub(super) fn sweep(&mut self) {
        self.sweep_later();
        for driver in self.drivers.proven() {
            let (owner, ctx) = (self.context.owner.clone(), self.ctx.clone());
            let asking = async move {
                match driver.list(&owner).await {
                    Ok(found) => ctx.notify(SandboxPoolMsg::Swept(driver, found)),
                    Err(error) => {
                        tracing::debug!(%error, "the boxes that there are could not be listed");
                    }
                }
            };
            self.ctx.task("sweep_list", 0, asking).keep();
        }
    }

    /// Ends those that are none of this room's. The room knows a box before its driver is asked for it, and looks after the driver has
    /// answered: what was there and is not among the room's now has come to nobody, or goes already.
    pub(super) fn swept(&self, driver: Driver, mut found: Vec<FoundBox>) {
        // While a driver is tried, its trial's own box is there, and the trial ends what it finds.
        if !self.drivers.has(&driver) {
            return;
        }
        let ours: BTreeSet<&BoxId> = self.boxes.values().map(|live| &live.id).collect();
        found.retain(|found| !ours.contains(&found.id));
        if found.is_empty() {
            return;
        }
        let folders = self.context.run_root.join("b");
        let ending = async move {
            for found in found {
                tracing::warn!(id = %found.id, running = found.running, "a box that nobody has is ended");
                if let Err(error) = driver.stop(&found.id).await {
                    tracing::warn!(id = %found.id, %error, "it could not be ended, and is looked for again");
                }
                folders::remove_run_dir(&folders.join(found.id.as_str()));
            }
        };
        self.ctx.task("sweep_end", 0, ending).keep();
    }

    /// The room ends, and has ended its boxes: whatever carries its label is nobody's.
    pub(super) async fn sweep_last(&self) {
        for driver in self.drivers.proven() {
            let ending = async {
                for found in driver.list(&self.context.owner).await? {
                    driver.stop(&found.id).await?;
                    folders::remove_run_dir(
                        &self.context.run_root.join("b").join(found.id.as_str()),
                    );
                }
                Ok::<(), super::driver::DriverError>(())
            };
            match tokio::time::timeout(LAST_WITHIN, ending).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(%error, "what is left of boxes is ended by the next start");
                }
                Err(_) => tracing::warn!(
                    "the engine is slow: what is left of boxes is ended by the next start"
                ),
            }
        }
    }
}
