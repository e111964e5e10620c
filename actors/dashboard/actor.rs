//! The room: the books of `core::dashboard`, a clock and randomness.

use std::time::Duration;

use portcullis_core::auth::ScopeSet;
use portcullis_core::dashboard::{Session, SessionRefusal, Sessions};
use portcullis_core::time::Millis;
use tokio::time::Instant;

use super::config::DashboardConfig;
use super::messages::{DashboardMsg, Minted, Secret};
use crate::supervision::{Crash, Ctx, Reply, Room, Snapshot, TaskHandle};

/// What the room needs.
pub type Wiring = DashboardConfig;

const SWEEP: Duration = Duration::from_secs(30);
/// Between two records of refused logins.
const TELL_REFUSED: Duration = Duration::from_mins(1);

/// See the room's [`super`].
pub struct Dashboard {
    books: Sessions,
    started: Instant,
    /// Logins refused since that was last told, and in all.
    refused: (u64, u64),
    told: Option<Instant>,
    _sweeps: TaskHandle,
}

impl Room for Dashboard {
    const NAME: &'static str = "dashboard";
    type Msg = DashboardMsg;
    type Wiring = Wiring;

    async fn start(wiring: &Wiring, ctx: Ctx<Self>) -> Result<Self, Crash> {
        Ok(Self {
            books: Sessions::new(wiring.limits()),
            started: Instant::now(),
            refused: (0, 0),
            told: None,
            _sweeps: ctx.every("sweep", SWEEP, || DashboardMsg::Sweep),
        })
    }

    async fn handle(&mut self, msg: DashboardMsg) -> Result<(), Crash> {
        match msg {
            DashboardMsg::Mint { scopes, by, reply } => self.mint(scopes, by, reply)?,
            DashboardMsg::Redeem { code, reply } => self.redeem(&code, reply)?,
            DashboardMsg::Check {
                session,
                touch,
                reply,
            } => {
                reply.send(self.books.check(session.hash(), touch, self.now()));
            }
            DashboardMsg::Read { session, reply } => {
                self.books.read(session.hash(), self.now());
                reply.ok(());
            }
            DashboardMsg::End { session, reply } => {
                self.books.end(session.hash());
                reply.ok(());
            }
            DashboardMsg::EndAll { reply } => reply.ok(self.books.end_all()),
            DashboardMsg::Refused { whole, reply } => reply.ok(self.tell_refused(whole)),
            DashboardMsg::Sweep => self.books.sweep(self.now()),
        }
        Ok(())
    }

    fn snapshot(&self) -> Snapshot {
        let (codes, sessions) = self.books.count();
        Snapshot::default()
            .with("codes", codes)
            .with("sessions", sessions)
            .with("refused logins", self.refused.1)
    }
}

impl Dashboard {
    /// Monotonic: neither a set clock nor a leap ends or prolongs a session.
    fn now(&self) -> Millis {
        Millis(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    fn mint(
        &mut self,
        scopes: ScopeSet,
        by: String,
        reply: Reply<Minted, SessionRefusal>,
    ) -> Result<(), Crash> {
        let (code, now) = (Secret::new()?, self.now());
        let until = self.books.mint(code.hash(), scopes, by, now);
        reply.ok(Minted {
            code,
            for_ms: until.since(now),
        });
        Ok(())
    }

    fn redeem(
        &mut self,
        code: &Secret,
        reply: Reply<(Secret, Session), SessionRefusal>,
    ) -> Result<(), Crash> {
        // A code is spent only for a caller who will hear of the session.
        if !reply.is_wanted() {
            return Ok(());
        }
        let session = Secret::new()?;
        let opened = self.books.redeem(code.hash(), session.hash(), self.now());
        if opened.is_err() {
            self.refused.0 += 1;
            self.refused.1 += 1;
        }
        reply.send(opened.map(|opened| (session, opened)));
        Ok(())
    }

    fn tell_refused(&mut self, whole: bool) -> Option<u64> {
        let due = whole || self.told.is_none_or(|told| told.elapsed() >= TELL_REFUSED);
        if !due || self.refused.0 == 0 {
            return None;
        }
        self.told = Some(Instant::now());
        Some(std::mem::take(&mut self.refused.0))
    }
}
