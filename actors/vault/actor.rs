//! The room: Unsealing, then Open or Sealed, and between the two by a person's word.

use super::asked::joined;
use super::keys::{Machine, Person, Try, Worked};
use super::messages::{
    Added, NewUnlocker, Phase, Status, VaultMsg, VaultRefusal, VaultWiring, Wanted,
};
use super::open::of_vault;
use super::opening::{self, Open};
use super::rows;
use super::tries::TRY;
use crate::act::ActError;
use crate::supervision::{Crash, Ctx, Reply, Room, Snapshot, TaskEnd, TaskHandle};
use portcullis_core::audit::{Entry, Outcome};
use portcullis_core::auth::limits::{Class, Limiter, Limits};
use portcullis_core::vault::VaultError;
use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;
use tokio::time::Instant;

/// How long a caller waits for the vault to open; below the handle's deadline.
const PATIENCE: Duration = Duration::from_secs(4);
const LOOK: Duration = Duration::from_millis(500);
/// How often it looks how far the log has grown since it last named the manifest.
const PIN: Duration = Duration::from_mins(1);
/// Records behind which it is named again, so that an opening finds it near the end of the log.
const PIN_AFTER: u64 = 20_000;
/// Wrong tries at a kind of unlocker, by a user of this machine, before he waits.
const TRIES: Limits = Limits {
    tries: 5,
    window_ms: 300_000,
    lock_ms: 300_000,
    at_once: 1,
    sources: 1_000,
};

/// The vault's actor.
pub struct Vault {
    pub(super) wiring: VaultWiring,
    pub(super) ctx: Ctx<Self>,
    pub(super) state: State,
    /// scrypt runs: one at a time.
    pub(super) is_busy: bool,
    pub(super) tries: Limiter,
    /// What was taken away may still stand in the store's write-ahead log.
    to_scrub: bool,
}

pub(super) enum State {
    /// scrypt runs on another thread; what comes meanwhile waits (each holds a permit of the room's gate).
    Unsealing {
        waiting: VecDeque<(Instant, Wanted)>,
        /// Looks for callers whose time is nearly over.
        _look: TaskHandle,
    },
    Open(Box<Open>),
    Sealed(VaultError),
}

impl Room for Vault {
    const NAME: &'static str = "vault";
    type Msg = VaultMsg;
    type Wiring = VaultWiring;

    async fn start(wiring: &VaultWiring, ctx: Ctx<Self>) -> Result<Self, Crash> {
        let mut room = Self {
            wiring: wiring.clone(),
            ctx,
            state: State::Sealed(VaultError::Locked),
            is_busy: false,
            tries: Limiter::new(TRIES),
            to_scrub: false,
        };
        match rows::read_header(&wiring.store).await? {
            Err(error) => room.seal_for(error),
            Ok(row) => {
                room.unsealing();
                room.work("unlock", move |machine| {
                    Worked::Unlocked(machine.unlock(row), None)
                })?;
            }
        }
        room.ctx.every("pin", PIN, || VaultMsg::Pin).keep();
        Ok(room)
    }

    async fn handle(&mut self, msg: VaultMsg) -> Result<(), Crash> {
        match msg {
            VaultMsg::Ask(wanted) => self.ask(wanted).await,
            VaultMsg::Worked(worked) => self.worked(*worked).await,
            VaultMsg::StillUnsealing => {
                self.still_unsealing();
                Ok(())
            }
            VaultMsg::Pin => self.pin().await,
            VaultMsg::SealAnew => self.seal_anew().await,
        }
    }

    async fn task_ended(
        &mut self,
        name: &'static str,
        _key: u64,
        end: TaskEnd,
    ) -> Result<(), Crash> {
        match end {
            TaskEnd::Done => Ok(()),
            TaskEnd::Panicked(why) => Err(Crash::new(format!("{name}: {why}"))),
        }
    }

    fn snapshot(&self) -> Snapshot {
        match &self.state {
            State::Unsealing { waiting, .. } => Snapshot::default()
                .with("state", "unsealing")
                .with("waiting", waiting.len()),
            State::Sealed(error) => Snapshot::default()
                .with("state", "sealed")
                .with("code", error.code()),
            State::Open(open) => {
                let status = open.status();
                Snapshot::default()
                    .with("state", "open")
                    .with("records", status.records)
                    .with("unreadable", status.unreadable)
                    .with("to_seal_anew", status.to_seal_anew)
                    .with("generation", status.generation)
                    .with("epoch", status.epoch)
                    .with("seals", status.seals)
                    .with("unlockers", status.unlockers)
            }
        }
    }
}

impl Vault {
    /// Runs scrypt on a thread of its own. The caller has seen that none runs.
    pub(super) fn work(
        &mut self,
        name: &'static str,
        job: impl FnOnce(Machine) -> Worked + Send + 'static,
    ) -> Result<(), Crash> {
        let machine = Machine {
            identity: self.wiring.identity.clone(),
            around: self.wiring.around.clone(),
            now: self.wiring.clock.now(),
        };
        let news = self.ctx.clone();
        self.ctx.blocking(name, 0, move || {
            news.notify(VaultMsg::Worked(Box::new(job(machine))));
        })?;
        self.is_busy = true;
        Ok(())
    }

    pub(super) fn unsealing(&mut self) {
        let look = self
            .ctx
            .every("unsealing", LOOK, || VaultMsg::StillUnsealing);
        self.state = State::Unsealing {
            waiting: VecDeque::new(),
            _look: look,
        };
        self.wiring.around.phase.set(Phase::Unsealing);
    }

    fn seal_for(&mut self, why: VaultError) {
        self.state = State::Sealed(why);
        self.wiring.around.phase.set(Phase::Sealed);
    }

    async fn worked(&mut self, worked: Worked) -> Result<(), Crash> {
        self.is_busy = false;
        // The work took its time: who has gone meanwhile gets no effect, and loses no code that would never be shown again.
        // His try counts all the same.
        if !worked.is_wanted() {
            return Ok(());
        }
        match worked {
            Worked::Unlocked(result, person) => self.unlocked(result, person).await,
            Worked::Made {
                made,
                replaces,
                by,
                reply,
            } => {
                let (made, code) = match made {
                    Ok(made) => made,
                    Err(error) => return answer(reply, Err(error.into())),
                };
                let id = made.id().to_owned();
                let (wiring, _waiting) = (self.wiring.clone(), self.ctx.waiting());
                let open = match self.open() {
                    Ok(open) => open,
                    Err(refusal) => return answer(reply, Err(refusal)),
                };
                let added = open.add_unlocker(&wiring, *by, made, replaces.as_deref());
                let added = added.await;
                if added.is_ok() && replaces.is_some() {
                    self.scrub().await;
                }
                answer(reply, added.map(|()| Added { id, code }))
            }
            Worked::Exported {
                made,
                left_out,
                intent,
                reply,
            } => {
                let outcome = match &made {
                    Ok(_) => Outcome::ok(),
                    Err(error) => Outcome::failed(error.code()),
                };
                // What is not on record is not given out.
                let recorded = self.wiring.audit.outcome_first(intent, outcome).await;
                let made = recorded
                    .map_err(|error| ActError::CannotRecord(error).into())
                    .and_then(|_| made.map_err(VaultRefusal::from));
                answer(reply, made.map(|export| (export, left_out)))
            }
            Worked::Imported {
                found,
                tried,
                replace,
                by,
                reply,
            } => {
                self.tried(tried, found.as_ref().err().copied()).await;
                let found = match found {
                    Ok(found) if reply.is_wanted() => found,
                    Ok(_) => return Ok(()),
                    Err(error) => return answer(reply, Err(error.into())),
                };
                let (wiring, _waiting) = (self.wiring.clone(), self.ctx.waiting());
                let open = match self.open() {
                    Ok(open) => open,
                    Err(refusal) => return answer(reply, Err(refusal)),
                };
                let imported = open.import(&wiring, &by, &found, replace).await;
                answer(reply, imported)
            }
            Worked::Rekeyed {
                made,
                tried,
                before,
                by,
                reply,
            } => {
                self.tried(tried, made.as_ref().err().copied()).await;
                self.rekeyed(made, &before, *by, reply).await
            }
        }
    }

    async fn unlocked(
        &mut self,
        unlocked: Result<super::keys::Unlocked, VaultError>,
        person: Option<Person>,
    ) -> Result<(), Crash> {
        let waiting_now = self.ctx.waiting();
        let result = match (unlocked, &person) {
            (Err(error), _) => Err(error),
            // Who has gone meanwhile opens nothing.
            (Ok(_), Some(person)) if !person.reply.is_wanted() => Err(person.why),
            (Ok(unlocked), _) => opening::open(&self.wiring, unlocked).await?,
        };
        // What it says who asked: its own reason is what keeps it sealed, where a person's slip of the hand is none.
        let said = result.as_ref().err().copied();
        let next = match result {
            Ok(open) => State::Open(Box::new(open)),
            Err(VaultError::Wrong) => {
                State::Sealed(person.as_ref().map_or(VaultError::Wrong, |one| one.why))
            }
            Err(error) => State::Sealed(error),
        };
        if let State::Sealed(error) = &next {
            tracing::error!(code = error.code(), %error, "the vault stays sealed");
        }
        let State::Unsealing { waiting, .. } = std::mem::replace(&mut self.state, next) else {
            return Err(Crash::new("unlocked twice"));
        };
        let phase = match &self.state {
            State::Open(_) => Phase::Open,
            _ => Phase::Sealed,
        };
        self.wiring.around.phase.set(phase);
        if phase == Phase::Open {
            // A crash may have left what had just been removed.
            self.scrub().await;
        }
        if let Some(person) = person {
            self.tell(person, said).await;
        }
        drop(waiting_now);
        if self
            .open()
            .is_ok_and(|open| open.stale() > 0 || open.rows.header.has_previous())
        {
            self.ctx.notify(VaultMsg::SealAnew);
        }
        for (_, wanted) in waiting {
            self.ask(wanted).await?;
        }
        Ok(())
    }

    /// A caller hears "not yet, and nothing was done" before its own deadline leaves it guessing.
    fn still_unsealing(&mut self) {
        let State::Unsealing { waiting, .. } = &mut self.state else {
            return;
        };
        while waiting
            .front()
            .is_some_and(|(since, _)| since.elapsed() >= PATIENCE)
        {
            if let Some((_, wanted)) = waiting.pop_front() {
                wanted.refuse(VaultRefusal::Unsealing);
            }
        }
    }

    /// Names the manifest again where the log has grown: so the next opening need not read far.
    async fn pin(&mut self) -> Result<(), Crash> {
        if self.to_scrub {
            self.scrub().await;
        }
        let State::Open(open) = &mut self.state else {
            return Ok(());
        };
        if open.stale() > 0 {
            // What could not be sealed anew the last time (a full disk) is tried again.
            self.ctx.notify(VaultMsg::SealAnew);
        }
        // Its answer is for the next look where there is none now.
        let Ok(head) = self.wiring.audit.head().await else {
            return Ok(());
        };
        if head.seq.0.saturating_sub(open.marked) < PIN_AFTER {
            return Ok(());
        }
        let entry = Entry {
            principal: Some("system".to_owned()),
            ..opening::note("vault.manifest", &open.rows, &open.keys)
        };
        if let Ok(seq) = self.wiring.audit.event(entry).await {
            open.marked = seq.0;
        }
        Ok(())
    }

    async fn seal_anew(&mut self) -> Result<(), Crash> {
        let (wiring, _waiting) = (self.wiring.clone(), self.ctx.waiting());
        let Ok(open) = self.open() else { return Ok(()) };
        match open.seal_anew(&wiring).await {
            Ok(true) => self.ctx.notify(VaultMsg::SealAnew),
            Ok(false) => self.scrub().await,
            Err(VaultRefusal::Act(error)) if error.must_reread() => return Err(Crash::new(error)),
            Err(refusal) => {
                tracing::warn!(target: "portcullis", %refusal, "records are still under an older key");
            }
        }
        Ok(())
    }

    /// A header or a record that was replaced opens by what was taken away, and the store keeps it until its write-ahead log is
    /// folded into the file.
    async fn scrub(&mut self) {
        let scrubbed = self.wiring.store.scrub().await;
        if let Err(error) = &scrubbed {
            tracing::warn!(target: "portcullis", %error, "what was removed may still stand in state.db-wal: it is tried again");
        }
        self.to_scrub = scrubbed.is_err();
    }

    pub(super) fn open(&mut self) -> Result<&mut Open, VaultRefusal> {
        match &mut self.state {
            State::Open(open) => Ok(open),
            State::Sealed(error) => Err(VaultRefusal::Sealed(*error)),
            State::Unsealing { .. } => Err(VaultRefusal::Unsealing),
        }
    }

    async fn ask(&mut self, wanted: Wanted) -> Result<(), Crash> {
        // A caller that gave up gets no effect.
        if !wanted.is_wanted() {
            return Ok(());
        }
        match wanted {
            Wanted::Status(reply) => {
                reply.ok(self.status());
                Ok(())
            }
            Wanted::Unlockers(reply) => {
                let header = match &self.state {
                    State::Open(open) => Ok(open.rows.header.clone()),
                    _ => match rows::read_header(&self.wiring.store).await? {
                        Ok(Some(row)) => Ok(row.header),
                        Ok(None) => Err(VaultError::Missing.into()),
                        Err(error) => Err(error.into()),
                    },
                };
                reply.send(header.map(|header| Open::shown_unlockers(&header)));
                Ok(())
            }
            wanted => match &mut self.state {
                State::Unsealing { waiting, .. } => {
                    waiting.push_back((Instant::now(), wanted));
                    Ok(())
                }
                State::Sealed(why) => {
                    let why = *why;
                    self.ask_sealed(why, wanted).await
                }
                State::Open(_) => self.ask_open(wanted).await,
            },
        }
    }

    fn status(&self) -> Status {
        let (state, why, open) = match &self.state {
            State::Unsealing { .. } => (Phase::Unsealing, None, None),
            State::Sealed(error) => (Phase::Sealed, Some(*error), None),
            State::Open(open) => (Phase::Open, None, Some(open.status())),
        };
        Status {
            state,
            code: why.map(VaultError::code),
            reason: why.map(|error| error.to_string()),
            open,
        }
    }

    async fn ask_sealed(&mut self, why: VaultError, wanted: Wanted) -> Result<(), Crash> {
        match wanted {
            Wanted::Unlock {
                by,
                source,
                opener,
                reply,
            } => self.unlock(why, *by, source, opener, reply).await,
            Wanted::Init { by, reply } => {
                if self.is_busy {
                    return answer(reply, Err(VaultRefusal::Overloaded));
                }
                let _waiting = self.ctx.waiting();
                let intent = match self.intent(of_vault(*by.clone(), "vault.unlock")).await {
                    Ok(intent) => intent,
                    Err(refusal) => return answer(reply, Err(refusal)),
                };
                if let Err(refusal) = opening::clear(&self.wiring, *by).await {
                    self.record(intent, Outcome::failed(refusal.code())).await;
                    return answer(reply, Err(refusal));
                }
                self.unsealing();
                let tried = Try {
                    intent,
                    counted: None,
                };
                let person = Person { tried, why, reply };
                self.work("init", move |machine| {
                    Worked::Unlocked(machine.new_vault(), Some(person))
                })
            }
            // It is.
            Wanted::Seal { reply, .. } => {
                reply.ok(());
                Ok(())
            }
            other => {
                other.refuse(VaultRefusal::Sealed(why));
                Ok(())
            }
        }
    }

    async fn ask_open(&mut self, wanted: Wanted) -> Result<(), Crash> {
        let (wiring, _waiting) = (self.wiring.clone(), self.ctx.waiting());
        let is_busy = self.is_busy;
        let open = match self.open() {
            Ok(open) => open,
            Err(refusal) => {
                wanted.refuse(refusal);
                return Ok(());
            }
        };
        match wanted {
            Wanted::Set {
                by,
                name,
                value,
                reply,
            } => answer(reply, open.set(&wiring, *by, &name, &value).await),
            Wanted::Remove { by, name, reply } => {
                let removed = open.remove(&wiring, *by, &name).await;
                if removed.is_ok() {
                    self.scrub().await;
                }
                answer(reply, removed)
            }
            Wanted::Derived(label, reply) => {
                reply.send(open.derived(&wiring, label).await);
                Ok(())
            }
            Wanted::List(reply) => {
                reply.ok(open.list());
                Ok(())
            }
            Wanted::Reveal {
                name,
                version,
                asked,
                reply,
            } => {
                reply.send(open.reveal(&wiring, &name, version, asked).await);
                Ok(())
            }
            Wanted::Usable { name, asked, reply } => {
                reply.send(open.usable(&name, &asked));
                Ok(())
            }
            Wanted::Bind {
                by,
                name,
                binds,
                reply,
            } => answer(reply, open.bind(&wiring, *by, &name, binds).await),
            Wanted::Rotate { by, reply } => {
                let rotated = open.rotate(&wiring, *by).await;
                if rotated.is_ok() {
                    self.ctx.notify(VaultMsg::SealAnew);
                }
                answer(reply, rotated)
            }
            Wanted::RemoveUnlocker { by, id, reply } => {
                let removed = open.remove_unlocker(&wiring, *by, &id).await;
                if removed.is_ok() {
                    self.scrub().await;
                }
                answer(reply, removed)
            }
            Wanted::Seal { by, reply } => {
                let held = opening::note("vault.seal", &open.rows, &open.keys);
                let entry = joined(*by, held);
                let intent = match self.intent(entry).await {
                    Ok(intent) => intent,
                    Err(refusal) => return answer(reply, Err(refusal)),
                };
                // The keys go with the state.
                self.seal_for(VaultError::Locked);
                self.record(intent, Outcome::ok()).await;
                reply.ok(());
                Ok(())
            }
            Wanted::Unlock { reply, .. } | Wanted::Init { reply, .. } => {
                answer(reply, Err(VaultRefusal::IsOpen))
            }
            Wanted::AddUnlocker { reply, .. } if is_busy => {
                answer(reply, Err(VaultRefusal::Overloaded))
            }
            Wanted::Rekey { reply, .. } if is_busy => answer(reply, Err(VaultRefusal::Overloaded)),
            Wanted::Export { reply, .. } if is_busy => answer(reply, Err(VaultRefusal::Overloaded)),
            Wanted::Import { reply, .. } if is_busy => answer(reply, Err(VaultRefusal::Overloaded)),
            Wanted::Export {
                by,
                passphrase,
                reply,
            } => {
                let held = opening::note("vault.export", &open.rows, &open.keys);
                let (records, left_out) = match open.all(&wiring).await {
                    Ok(all) => all,
                    Err(refusal) => return answer(reply, Err(refusal)),
                };
                let entry = joined(*by, held).with("records", records.len().to_string());
                let intent = match self.intent(entry).await {
                    Ok(intent) => intent,
                    Err(refusal) => return answer(reply, Err(refusal)),
                };
                self.work("export", move |machine| Worked::Exported {
                    made: machine.export(&records, &passphrase),
                    left_out,
                    intent,
                    reply,
                })
            }
            Wanted::Import {
                by,
                source,
                export,
                passphrase,
                replace,
                reply,
            } => {
                let counted = Some((Class::ExportPassphrase, source));
                let entry = of_vault(*by.clone(), TRY).with("for", "import");
                let tried = match self.begin(counted, entry).await {
                    Ok(tried) => tried,
                    Err(refusal) => return answer(reply, Err(refusal)),
                };
                self.work("import", move |_| Worked::Imported {
                    found: export.open(&passphrase),
                    tried,
                    replace,
                    by,
                    reply,
                })
            }
            Wanted::AddUnlocker { by, new, reply } => self.add(*by, *new, reply),
            Wanted::Rekey {
                by,
                source,
                passphrases,
                drop,
                reply,
            } => {
                let before = Box::new(open.rows.header.clone());
                // What names no unlocker is not looked at, and not recorded.
                let named = passphrases.iter().map(|(id, _)| id.as_str());
                let looked_at: BTreeSet<&str> =
                    named.filter(|id| before.unlocker(id).is_ok()).collect();
                let listed: Vec<&str> = looked_at.iter().copied().collect();
                let counted = (!looked_at.is_empty()).then_some((Class::Passphrase, source));
                let entry = of_vault(*by.clone(), TRY)
                    .with("for", "rekey")
                    .with("unlockers", listed.join(","));
                let tried = match self.begin(counted, entry).await {
                    Ok(tried) => tried,
                    Err(refusal) => return answer(reply, Err(refusal)),
                };
                self.work("rekey", move |machine| Worked::Rekeyed {
                    made: machine.rekey(&before, &passphrases, &drop),
                    tried,
                    before,
                    by,
                    reply,
                })
            }
            // Answered in every state.
            Wanted::Status(_) | Wanted::Unlockers(_) => Ok(()),
        }
    }

    fn add(
        &mut self,
        by: Entry,
        new: NewUnlocker,
        reply: Reply<Added, VaultRefusal>,
    ) -> Result<(), Crash> {
        let open = match self.open() {
            Ok(open) => open,
            Err(refusal) => return answer(reply, Err(refusal)),
        };
        let replaced = new
            .replaces
            .as_deref()
            .map(|id| open.rows.header.unlocker(id));
        if let Some(Err(error)) = replaced {
            return answer(reply, Err(error.into()));
        }
        let keys = open.keys.clone();
        self.work("unlocker", move |machine| Worked::Made {
            made: machine.make(&keys, &new),
            replaces: new.replaces,
            by: Box::new(by),
            reply,
        })
    }
}

/// Answers, and crashes the room where only re-reading helps.
pub(super) fn answer<T>(
    reply: Reply<T, VaultRefusal>,
    result: Result<T, VaultRefusal>,
) -> Result<(), Crash> {
    let broken = match &result {
        Err(VaultRefusal::Act(error)) if error.must_reread() => Some(Crash::new(error)),
        _ => None,
    };
    reply.send(result);
    broken.map_or(Ok(()), Err)
}
