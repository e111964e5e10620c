//! The actor: each connect is decided in a task of its own, so that one that waits on disk or on a hash holds up nobody.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use portcullis_core::audit::Entry;
use portcullis_core::auth::limits::{Class, Limited, Source, Tried};
use portcullis_core::auth::password::PasswordHash;
use portcullis_core::auth::{Door, Holder, ScopeSet, Whose};
use portcullis_core::protocol::ConnectRefusal;
use portcullis_core::seal::Secret;
use portcullis_core::time::Millis;
use portcullis_core::token::TokenHash;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::config::{AuthConfig, Modes};
use super::credentials::{Credentials, SharedSecret};
use super::flow;
use super::hashing::{Found, Guess, Hashing, Look};
use super::messages::{Admitted, Arrival, AuthMsg, AuthNews, AuthRefusal, Change, Listed, Made};
use crate::act::act;
use crate::audit::AuditHandle;
use crate::clock::Clock;
use crate::pairing::PairingHandle;
use crate::store::Store;
use crate::supervision::{Crash, Ctx, Feed, Reply, Room, Snapshot, TaskEnd};

/// Refusals are recorded no oftener than this: guessers must not fill the log.
const RECORD_EVERY: Duration = Duration::from_secs(1);
/// Agents with a token, and names with a password.
const MOST: usize = 4096;
const LOOK: &str = "look";
const HASH: &str = "hash";

/// What the room is given at each start.
#[derive(Clone)]
pub struct AuthWiring {
    /// Limits.
    pub config: AuthConfig,
    /// Which shared secrets are taken.
    pub modes: Modes,
    /// Of new hashes.
    pub bcrypt_cost: u32,
    /// Of hashes: sealed apart from the state.
    pub pepper: Secret,
    /// The shared token that the gateway was started with.
    pub token: SharedSecret,
    /// Whom a trusted proxy may name; nobody in any other mode.
    pub proxy_users: Arc<[String]>,
    /// The ceiling of the shared token without a device.
    pub shared_token_scopes: ScopeSet,
    /// Loopback devices of operators are paired without a question.
    pub local_trust: bool,
    /// The most that local trust and `control.sock` give.
    pub local_scopes: ScopeSet,
    /// Devices.
    pub pairing: PairingHandle,
    /// Where tokens of agents and passwords are.
    pub store: Store,
    /// Secrets that open nothing any more.
    pub news: Feed<AuthNews>,
    /// Where refusals are recorded.
    pub audit: AuditHandle,
    /// The time.
    pub clock: Clock,
}

/// See the module.
pub struct Auth {
    wiring: AuthWiring,
    ctx: Ctx<Self>,
    credentials: Arc<Credentials>,
    hashing: Hashing,
    /// Limits run with the machine, whatever the wall clock is set to.
    began: Instant,
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
        let head = wiring.audit.head().await?.seq.0;
        let mut credentials =
            Credentials::read(&wiring.store, &wiring.token, &wiring.proxy_users, head).await?;
        if credentials.left_out > 0 {
            tracing::error!(
                left_out = credentials.left_out,
                "rows of secrets do not fit the audit log or are damaged: what they opened stays shut"
            );
        }
        if let Some(hash) = credentials.unkept.clone() {
            credentials = keep(wiring, &credentials, &hash).await?;
        }
        Ok(Self {
            wiring: wiring.clone(),
            ctx,
            credentials: Arc::new(credentials),
            hashing: Hashing::new(),
            began: Instant::now(),
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
            AuthMsg::Holds(principal, reply) => reply.ok(self.credentials.holds(&principal)),
            AuthMsg::Lives(secret, reply) => reply.ok(self.credentials.generation(&secret)),
            AuthMsg::Change(entry, change, reply) => {
                return self.change(*entry, change, reply).await;
            }
            AuthMsg::SetPassword(entry, name, password, reply) => {
                self.set_password(*entry, name, password, reply);
            }
            AuthMsg::Agents(reply) => reply.ok(self.agents()),
            AuthMsg::Passwords(reply) => reply.ok(self.passwords()),
            AuthMsg::Look(look) => {
                let now = self.now();
                self.hashing.ask(*look, now);
                self.look();
            }
            AuthMsg::Count(class, source, answer) => {
                let now = self.now();
                let counted = self.hashing.count(class, &source, now);
                let may = counted.is_ok();
                // Who is gone never looked.
                if answer.send(counted).is_err() && may {
                    self.hashing.counted(class, &source, Tried::Not, now);
                }
            }
            AuthMsg::Counted(class, source, tried) => {
                let now = self.now();
                self.hashing.counted(class, &source, tried, now);
            }
            AuthMsg::Looked(key, right) => {
                let now = self.now();
                self.hashing.ended(key, right, now);
            }
            AuthMsg::Refused { reason, door } => self.refused(reason, door),
        }
        Ok(())
    }

    async fn task_ended(
        &mut self,
        name: &'static str,
        key: u64,
        end: TaskEnd,
    ) -> Result<(), Crash> {
        match (name, end) {
            (LOOK, _) => {
                // One that panicked has said nothing.
                let now = self.now();
                self.hashing.ended(key, None, now);
                self.look();
                Ok(())
            }
            (HASH, _) => {
                self.look();
                Ok(())
            }
            (name, TaskEnd::Panicked(why)) => {
                Err(Crash::new(format!("its {name} task panicked: {why}")))
            }
            (_, TaskEnd::Done) => Ok(()),
        }
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot::default()
            .with("connects", self.admitted)
            .with("refused", self.refused)
            .with("slow looks", self.hashing.made)
            .with("guessers", self.hashing.sources())
            .with("agents", self.credentials.agents.len())
            .with("passwords", self.credentials.passwords.len())
            .with("left_out", self.credentials.left_out)
    }
}

/// What a connect's flow works with: one state of the secrets, and the way to a slow look.
pub(super) struct Desk {
    pub wiring: AuthWiring,
    pub credentials: Arc<Credentials>,
    ctx: Ctx<Auth>,
}

impl Desk {
    /// Is one of these right? Counted first.
    pub async fn look(
        &self,
        (source, is_known): (Source, bool),
        guesses: Vec<Guess>,
    ) -> Result<Found, Limited> {
        let (answer, answered) = oneshot::channel();
        self.ctx.notify(AuthMsg::Look(Box::new(Look {
            source,
            is_known,
            guesses,
            answer,
        })));
        // The room went down: try again.
        answered.await.unwrap_or(Err(Limited::busy(500)))
    }
}

impl Desk {
    /// Counts a guess that is looked at elsewhere, before it is; [`Self::counted`] must follow.
    pub async fn count(&self, class: Class, source: &Source) -> Result<(), Limited> {
        let (answer, answered) = oneshot::channel();
        self.ctx
            .notify(AuthMsg::Count(class, source.clone(), answer));
        answered.await.unwrap_or(Err(Limited::busy(500)))
    }

    /// What it came to.
    pub fn counted(&self, class: Class, source: Source, tried: Tried) {
        self.ctx.notify(AuthMsg::Counted(class, source, tried));
    }
}

/// The first start's token goes into the state: there no other can take its place unseen.
async fn keep(
    wiring: &AuthWiring,
    before: &Credentials,
    hash: &TokenHash,
) -> Result<Credentials, Crash> {
    let entry = Entry {
        principal: Some("system".to_owned()),
        object: Some("token".to_owned()),
        ..Entry::new("auth.token.make")
    };
    let (now, mut next) = (wiring.clock.now(), None);
    let plan = |intent: u64| {
        let (op, after) = before.keep(hash, intent, now)?;
        next = Some(after);
        Ok(vec![op])
    };
    let done = act(&wiring.audit, &wiring.store, entry, plan).await;
    let done = done.map_err(|error| Crash::new(format!("{}: {error}", error.code())))?;
    let mut next = next.unwrap_or_else(|| before.clone());
    if let Some(rev) = done.revisions.first() {
        next.kept(rev.0);
    }
    Ok(next)
}

impl Auth {
    fn now(&self) -> Millis {
        Millis(u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    fn connect(&mut self, arrival: Arrival, reply: Reply<Admitted, ConnectRefusal>) {
        self.next += 1;
        self.admitted += 1;
        let ctx = self.ctx.clone();
        let desk = Desk {
            wiring: self.wiring.clone(),
            credentials: self.credentials.clone(),
            ctx: ctx.clone(),
        };
        let flow = async move {
            let door = arrival.door;
            let result = flow::connect(&desk, arrival).await;
            if let Err(refusal) = &result {
                let reason = refusal.error.stable_code().to_owned();
                ctx.notify(AuthMsg::Refused { reason, door });
            }
            reply.send(result);
        };
        self.ctx.task("connect", self.next, flow).keep();
    }

    /// Starts looks while there is room.
    fn look(&mut self) {
        loop {
            self.next += 1;
            let (key, now) = (self.next, self.now());
            let Some(guesses) = self.hashing.next(key, now) else {
                return;
            };
            let (ctx, pepper) = (self.ctx.clone(), self.wiring.pepper.clone());
            let job = move || {
                let right = guesses.iter().position(|guess| {
                    let text = guess.presented.expose();
                    guess.hash.is_of_in_time(text, &pepper, guess.cost)
                });
                ctx.notify(AuthMsg::Looked(key, right));
            };
            if self.ctx.blocking(LOOK, key, job).is_err() {
                // A thread is taken by a password that is being set: its end comes back here.
                self.hashing.put_off(key, now);
                return;
            }
        }
    }

    async fn change(
        &mut self,
        entry: Entry,
        change: Change,
        reply: Reply<Made, AuthRefusal>,
    ) -> Result<(), Crash> {
        if !reply.is_wanted() {
            return Ok(());
        }
        let result = match self.may(&change) {
            Ok(()) => self.make(entry, change).await,
            Err(refusal) => Err(refusal),
        };
        let broken = match &result {
            Err(AuthRefusal::Act(error)) if error.must_reread() => Some(Crash::new(error)),
            _ => None,
        };
        reply.send(result);
        broken.map_or(Ok(()), Err)
    }

    fn may(&self, change: &Change) -> Result<(), AuthRefusal> {
        let held = &self.credentials;
        match change {
            Change::RotateShared(_) if held.is_given => Err(AuthRefusal::Given),
            Change::MintAgent(agent, _)
                if held.agents.len() >= MOST && !held.agents.contains_key(agent) =>
            {
                Err(AuthRefusal::TooMany)
            }
            Change::KeepPassword(name, _)
                if held.passwords.len() >= MOST && !held.passwords.contains_key(name) =>
            {
                Err(AuthRefusal::TooMany)
            }
            Change::RevokeAgent(agent) if !held.agents.contains_key(agent) => {
                Err(AuthRefusal::NotFound(agent.to_string()))
            }
            Change::RemovePassword(name) if !held.passwords.contains_key(name) => {
                Err(AuthRefusal::NotFound(name.clone()))
            }
            _ => Ok(()),
        }
    }

    /// Record, store, settle: in this order.
    async fn make(&mut self, entry: Entry, change: Change) -> Result<Made, AuthRefusal> {
        let (action, object) = match &change {
            Change::RotateShared(_) => ("auth.token.rotate", "token".to_owned()),
            Change::MintAgent(agent, _) => ("auth.agent.mint", format!("agent:{agent}")),
            Change::RevokeAgent(agent) => ("auth.agent.revoke", format!("agent:{agent}")),
            Change::KeepPassword(name, _) => ("auth.password.set", format!("password:{name}")),
            Change::RemovePassword(name) => ("auth.password.remove", format!("password:{name}")),
        };
        let entry = Entry {
            action: action.to_owned(),
            object: Some(object),
            ..entry
        };
        // From the intent on, nothing that rests on the secret as it was is recorded, and so nothing is done.
        let secret = change.secret();
        let entry = entry.ending(secret.to_string());
        let now = self.wiring.clock.now();
        let mut next = None;
        let _waiting = self.ctx.waiting();
        let plan = |intent: u64| {
            let (op, after) = self.credentials.after(&change, intent, now)?;
            next = Some(after);
            Ok(vec![op])
        };
        let done = act(&self.wiring.audit, &self.wiring.store, entry, plan).await;
        let done = match done {
            Ok(done) => done,
            Err(error) => {
                // It may be in force: its sessions end, and clients connect again by what is.
                if error.must_reread() {
                    self.wiring.news.publish(AuthNews::Secret(secret, None));
                }
                return Err(AuthRefusal::Act(error));
            }
        };
        let lives = (!change.removes()).then_some(done.intent);
        if let (Some(mut next), Some(rev)) = (next, done.revisions.first()) {
            next.settle(&change, rev.0);
            self.credentials = Arc::new(next);
        }
        self.wiring
            .news
            .publish(AuthNews::Secret(secret.clone(), lives));
        Ok(Made {
            ended: Whose {
                holder: Holder::Secret(secret),
                lives,
            },
            token: match change {
                Change::RotateShared(token) | Change::MintAgent(_, token) => Some(token),
                _ => None,
            },
        })
    }

    /// Hashes off the loop, then comes back as a change.
    fn set_password(
        &mut self,
        entry: Entry,
        name: String,
        password: Secret,
        reply: Reply<Made, AuthRefusal>,
    ) {
        self.next += 1;
        let mut salt = [0; 16];
        if getrandom::fill(&mut salt).is_err() {
            reply.refuse(AuthRefusal::Broken);
            return;
        }
        let (ctx, pepper, cost) = (
            self.ctx.clone(),
            self.wiring.pepper.clone(),
            self.wiring.bcrypt_cost,
        );
        // The closure may never run: then the reply is dropped, and its caller hears that the room does not answer.
        let job = move || match PasswordHash::make(password.expose(), &pepper, cost, salt) {
            Ok(hash) => {
                let change = Change::KeepPassword(name, hash);
                ctx.notify(AuthMsg::Change(Box::new(entry), change, reply));
            }
            Err(error) => reply.refuse(AuthRefusal::Unfit(error)),
        };
        if self.ctx.blocking(HASH, self.next, job).is_err() {
            tracing::warn!(target: "portcullis", "a password was not set: all hashing threads are in use");
        }
    }

    fn agents(&self) -> Vec<Listed> {
        let rows = self.credentials.agents.values();
        rows.map(|row| Listed {
            name: row.agent.to_string(),
            created_at: row.created_at_ms,
        })
        .collect()
    }

    fn passwords(&self) -> Vec<Listed> {
        let rows = self.credentials.passwords.values();
        rows.map(|row| Listed {
            name: row.name.clone(),
            created_at: row.created_at_ms,
        })
        .collect()
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
                if let Err(error) = audit.note(entry).await {
                    tracing::warn!(target: "portcullis", %error, "refusals could not be recorded");
                }
            })
            .keep();
    }
}
