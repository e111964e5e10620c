//! The room of one sink: its task carries, and its end is the room's.

use super::carry::Carry;
use super::messages::SinkMsg;
use crate::audit::Cursor;
use crate::sinks::config::Settings;
use crate::sinks::messages::{SinkStatus, SinksWiring};
use crate::supervision::{Crash, Ctx, Flag, Room};
use std::sync::Arc;

/// What one sink is given.
#[derive(Clone)]
pub struct SinkWiring {
    /// Its name.
    pub name: String,
    /// What it is.
    pub settings: Settings,
    /// What all have.
    pub all: SinksWiring,
    /// Where it says how it stands.
    pub status: Arc<Flag<SinkStatus>>,
}

/// The actor of one sink.
pub struct SinkRoom;

impl Room for SinkRoom {
    const NAME: &'static str = "sink";
    type Msg = SinkMsg;
    type Wiring = SinkWiring;

    async fn start(wiring: &SinkWiring, ctx: Ctx<Self>) -> Result<Self, Crash> {
        let taken = Cursor::new(&wiring.all.dir, &wiring.name)
            .read()
            .map_err(|error| Crash::new(format!("STATE/sinks/{}: {error}", wiring.name)))?;
        let head = wiring.all.audit.head().await;
        let head = head.map_err(|error| Crash::new(error.to_string()))?.seq.0;
        if taken > head {
            // Of another log, or somebody's: with it the receiver would be told nothing for long.
            let name = &wiring.name;
            let why =
                format!("STATE/sinks/{name}: {taken} lies behind the log's end, which is {head}");
            return Err(Crash::new(why));
        }
        wiring.status.update(|status| status.taken = taken);
        let carry = Carry::new(wiring.clone(), ctx.clone(), taken);
        ctx.task("carry", 0, carry.run()).keep();
        Ok(Self)
    }

    async fn handle(&mut self, msg: SinkMsg) -> Result<(), Crash> {
        match msg {}
    }
}
