//! The room: keeps a child for each sink, and starts it again when it has ended.

use super::messages::{SinkStatus, SinksMsg, SinksWiring};
use super::sink::{SinkRoom, SinkWiring};
use crate::audit::Cursor;
use crate::supervision::{ChildEnd, Crash, Ctx, Flag, Room, Snapshot, TaskHandle};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a child takes at once: it is asked nothing.
const GATE: usize = 4;
/// Between two starts of a sink that ended: the first, and the most.
const WAIT: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));

struct Kept {
    name: String,
    status: Arc<Flag<SinkStatus>>,
    started: Instant,
    wait: Duration,
    timer: Option<TaskHandle>,
}

/// The sinks' actor.
pub struct Sinks {
    ctx: Ctx<Self>,
    wiring: SinksWiring,
    /// By the child's key.
    kept: BTreeMap<u64, Kept>,
}

impl Room for Sinks {
    const NAME: &'static str = "sinks";
    type Msg = SinksMsg;
    type Wiring = SinksWiring;

    async fn start(wiring: &SinksWiring, ctx: Ctx<Self>) -> Result<Self, Crash> {
        let mut room = Self {
            ctx,
            wiring: wiring.clone(),
            kept: BTreeMap::new(),
        };
        if !wiring.sinks.is_empty() {
            let folder = Cursor::folder(&wiring.dir);
            folder.map_err(|error| Crash::new(format!("STATE_MODE: {error}")))?;
        }
        for (key, (name, settings)) in (0..).zip(&wiring.sinks) {
            let status = SinkStatus {
                kind: settings.to.kind(),
                ..SinkStatus::default()
            };
            let kept = Kept {
                name: name.clone(),
                status: Arc::new(Flag::new(status)),
                started: Instant::now(),
                wait: WAIT.0,
                timer: None,
            };
            room.kept.insert(key, kept);
            room.begin(key).await;
        }
        Ok(room)
    }

    async fn handle(&mut self, msg: SinksMsg) -> Result<(), Crash> {
        match msg {
            SinksMsg::Status(reply) => {
                let all = self.kept.values();
                reply.ok(all
                    .map(|kept| (kept.name.clone(), kept.status.get()))
                    .collect());
            }
            SinksMsg::Again(key) => self.begin(key).await,
        }
        Ok(())
    }

    async fn child_ended(
        &mut self,
        _name: &'static str,
        key: u64,
        end: ChildEnd,
    ) -> Result<(), Crash> {
        if let ChildEnd::Crashed(why) = end {
            self.ended(key, &why);
        }
        Ok(())
    }

    fn snapshot(&self) -> Snapshot {
        self.kept.values().fold(Snapshot::default(), |shown, kept| {
            let status = kept.status.get();
            let mut text = format!(
                "{} ({}): record {}, {} behind",
                kept.name, status.kind, status.taken, status.lag
            );
            if status.lost > 0 {
                // Writing to a String cannot fail.
                let _ = write!(text, ", {} lost to retention", status.lost);
            }
            if let Some(error) = status.error {
                let _ = write!(text, "; {error}");
            }
            shown.with("sink", text)
        })
    }
}

impl Sinks {
    async fn begin(&mut self, key: u64) {
        let Some(kept) = self.kept.get_mut(&key) else {
            return;
        };
        let Some(settings) = self.wiring.sinks.get(&kept.name) else {
            return;
        };
        (kept.timer, kept.started) = (None, Instant::now());
        let wiring = SinkWiring {
            name: kept.name.clone(),
            settings: settings.clone(),
            all: self.wiring.clone(),
            status: kept.status.clone(),
        };
        if let Err(crash) = self.ctx.child::<SinkRoom>(key, wiring, GATE).await {
            self.ended(key, crash.why());
        }
    }

    fn ended(&mut self, key: u64, why: &str) {
        let Some(kept) = self.kept.get_mut(&key) else {
            return;
        };
        tracing::error!(sink = %kept.name, %why, "a sink of the audit log ended; it is started again");
        kept.status
            .update(|status| status.error = Some(why.to_owned()));
        if kept.started.elapsed() > WAIT.1 {
            kept.wait = WAIT.0;
        }
        let again = SinksMsg::Again(key);
        kept.timer = Some(self.ctx.after("again", key, kept.wait, again));
        kept.wait = (kept.wait * 2).min(WAIT.1);
    }
}
