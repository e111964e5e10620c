//! The actor: each connect is decided in a task of its own, so that one that waits on disk holds up nobody.

use std::collections::BTreeMap;
use std::time::Duration;

use portcullis_core::audit::Entry;
use portcullis_core::auth::{Door, ScopeSet};
use portcullis_core::protocol::ConnectRefusal;
use portcullis_core::token::TokenHash;
use tokio::time::Instant;

use super::config::AuthConfig;
use super::flow;
use super::messages::{Admitted, Arrival, AuthMsg};
use crate::audit::AuditHandle;
use crate::clock::Clock;
use crate::pairing::PairingHandle;
use crate::supervision::{Crash, Ctx, Reply, Room, Snapshot};

/// Refusals are recorded no oftener than this: guessers must not fill the log.
const RECORD_EVERY: Duration = Duration::from_secs(1);

/// What the room is given at each start.
#[derive(Clone)]
pub struct AuthWiring {
    /// Limits.
    pub config: AuthConfig,
    /// Of the shared token.
    pub token: TokenHash,
    /// The ceiling of the shared token without a device.
    pub shared_token_scopes: ScopeSet,
    /// Loopback devices of operators are paired without a question.
    pub local_trust: bool,
    /// The most that local trust and `control.sock` give.
    pub local_scopes: ScopeSet,
    /// Devices.
    pub pairing: PairingHandle,
    /// Where refusals are recorded.
    pub audit: AuditHandle,
    /// The time.
    pub clock: Clock,
}

/// See the module.
pub struct Auth {
    wiring: AuthWiring,
    ctx: Ctx<Self>,
    next: u64,
    admitted: u64,
    refused: u64,
    unrecorded: BTreeMap<String, u64>,
    recorded_at: Option<Instant>,
}

impl Room for Auth {
    const NAME: &'static str = "auth";
    type Msg = AuthMsg;
    type Wiring = AuthWiring;

    async fn start(wiring: &AuthWiring, ctx: Ctx<Self>) -> Result<Self, Crash> {
        Ok(Self {
            wiring: wiring.clone(),
            ctx,
            next: 0,
            admitted: 0,
            refused: 0,
            unrecorded: BTreeMap::new(),
            recorded_at: None,
        })
    }

    async fn handle(&mut self, msg: AuthMsg) -> Result<(), Crash> {
        match msg {
            AuthMsg::Connect(arrival, reply) => self.connect(*arrival, reply),
            AuthMsg::Refused { reason, door } => self.refused(reason, door),
        }
        Ok(())
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot::default()
            .with("connects", self.admitted)
            .with("refused", self.refused)
    }
}

impl Auth {
    fn connect(&mut self, arrival: Arrival, reply: Reply<Admitted, ConnectRefusal>) {
        self.next += 1;
        self.admitted += 1;
        let (wiring, ctx) = (self.wiring.clone(), self.ctx.clone());
        let flow = async move {
            let door = arrival.door;
            let result = flow::connect(&wiring, arrival).await;
            if let Err(refusal) = &result {
                let reason = refusal.error.stable_code().to_owned();
                ctx.notify(AuthMsg::Refused { reason, door });
            }
            reply.send(result);
        };
        self.ctx.task("connect", self.next, flow).keep();
    }

    fn refused(&mut self, reason: String, door: Door) {
        self.refused += 1;
        self.admitted = self.admitted.saturating_sub(1);
        *self.unrecorded.entry(reason).or_default() += 1;
        if self
            .recorded_at
            .is_some_and(|at| at.elapsed() < RECORD_EVERY)
        {
            return;
        }
        self.recorded_at = Some(Instant::now());
        let counts = std::mem::take(&mut self.unrecorded);
        let entry = Entry {
            action: "auth.refused".to_owned(),
            door: Some(door.as_str().to_owned()),
            detail: counts
                .into_iter()
                .take(16)
                .map(|(reason, count)| (reason, count.to_string()))
                .collect(),
            ..Entry::default()
        };
        let audit = self.wiring.audit.clone();
        self.next += 1;
        self.ctx
            .task("record", self.next, async move {
                if let Err(error) = audit.event(entry).await {
                    tracing::warn!(target: "portcullis", %error, "refusals could not be recorded");
                }
            })
            .keep();
    }
}
