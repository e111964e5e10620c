//! The room: Unsealing, then Open or Sealed.

use super::messages::{Listed, VaultMsg, VaultRefusal, VaultWiring, Wanted};
use super::opening::{self, Open, Unlocked};
use super::rows::{self, Edit, NAMESPACE, RECORD, Row, open_record, random};
use crate::act::ActError;
use crate::supervision::{Crash, Ctx, Reply, Room, Snapshot, TaskEnd, TaskHandle};
use portcullis_core::audit::Entry;
use portcullis_core::seal::Secret;
use portcullis_core::time::Millis;
use portcullis_core::vault::{Change, RecordMeta, SealedRecord, VaultError, check_name, id_of};
use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::Instant;

/// How long a caller waits for the vault to open; below the handle's deadline.
const PATIENCE: Duration = Duration::from_secs(4);
const LOOK: Duration = Duration::from_millis(500);
/// How often it looks how far the log has grown since it last named the manifest.
const PIN: Duration = Duration::from_mins(1);
/// Records behind which it is named again, so that an opening finds it near the end of the log.
const PIN_AFTER: u64 = 20_000;

/// The vault's actor.
pub struct Vault {
    wiring: VaultWiring,
    ctx: Ctx<Self>,
    state: State,
}

enum State {
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
        let state = match rows::read_header(&wiring.store).await? {
            Err(error) => State::Sealed(error),
            Ok(row) => {
                let (identity, news) = (wiring.identity.clone(), ctx.clone());
                ctx.blocking("unlock", 0, move || {
                    let unlocked = opening::unlock(&identity, row);
                    news.notify(VaultMsg::Unlocked(Box::new(unlocked)));
                })?;
                let look = ctx.every("unsealing", LOOK, || VaultMsg::StillUnsealing);
                State::Unsealing {
                    waiting: VecDeque::new(),
                    _look: look,
                }
            }
        };
        ctx.every("pin", PIN, || VaultMsg::Pin).keep();
        Ok(Self {
            wiring: wiring.clone(),
            ctx,
            state,
        })
    }

    async fn handle(&mut self, msg: VaultMsg) -> Result<(), Crash> {
        match msg {
            VaultMsg::Ask(wanted) => self.ask(wanted).await,
            VaultMsg::Unlocked(unlocked) => self.unlocked(*unlocked).await,
            VaultMsg::StillUnsealing => {
                self.still_unsealing();
                Ok(())
            }
            VaultMsg::Pin => self.pin().await,
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
            State::Open(open) => Snapshot::default()
                .with("state", "open")
                .with("records", open.rows.records.len())
                .with(
                    "unreadable",
                    open.rows
                        .records
                        .values()
                        .filter(|row| row.state.is_err())
                        .count(),
                )
                .with(
                    "to_seal_anew",
                    open.rows
                        .records
                        .values()
                        .filter(|row| row.is_stale)
                        .count(),
                )
                .with("generation", open.rows.manifest.generation())
                .with("epoch", open.rows.manifest.epoch().term)
                .with("seals", open.rows.manifest.epoch().seals),
        }
    }
}

impl Vault {
    async fn unlocked(&mut self, unlocked: Result<Unlocked, VaultError>) -> Result<(), Crash> {
        let next = match unlocked {
            Err(error) => State::Sealed(error),
            Ok(unlocked) => self.open(unlocked).await?,
        };
        if let State::Sealed(error) = &next {
            tracing::error!(code = error.code(), %error, "the vault stays sealed");
        }
        let State::Unsealing { waiting, .. } = std::mem::replace(&mut self.state, next) else {
            return Err(Crash::new("unlocked twice"));
        };
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
                refuse(wanted, VaultRefusal::Unsealing);
            }
        }
    }

    async fn open(&self, unlocked: Unlocked) -> Result<State, Crash> {
        let _waiting = self.ctx.waiting();
        Ok(match opening::open(&self.wiring, unlocked).await? {
            Ok(open) => State::Open(Box::new(open)),
            Err(error) => State::Sealed(error),
        })
    }

    /// Names the manifest again where the log has grown: so the next opening need not read far.
    async fn pin(&mut self) -> Result<(), Crash> {
        let State::Open(open) = &mut self.state else {
            return Ok(());
        };
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

    async fn ask(&mut self, wanted: Wanted) -> Result<(), Crash> {
        let open = match &mut self.state {
            State::Unsealing { waiting, .. } => {
                waiting.push_back((Instant::now(), wanted));
                return Ok(());
            }
            State::Sealed(error) => {
                refuse(wanted, VaultRefusal::Sealed(*error));
                return Ok(());
            }
            State::Open(open) => open,
        };
        let _waiting = self.ctx.waiting();
        match wanted {
            // A caller that gave up gets no effect.
            Wanted::Set { reply, .. } if !reply.is_wanted() => Ok(()),
            Wanted::Remove { reply, .. } if !reply.is_wanted() => Ok(()),
            Wanted::Reveal { reply, .. } if !reply.is_wanted() => Ok(()),
            Wanted::Set {
                by,
                name,
                value,
                reply,
            } => {
                let result = open.set(&self.wiring, *by, &name, &value).await;
                answer(reply, result)
            }
            Wanted::Remove { by, name, reply } => {
                let result = open.remove(&self.wiring, *by, &name).await;
                answer(reply, result)
            }
            Wanted::Derived(label, reply) => {
                reply.ok(open.keys.derived(label));
                Ok(())
            }
            Wanted::List(reply) => {
                reply.ok(open.list());
                Ok(())
            }
            Wanted::Reveal {
                name,
                version,
                reply,
            } => {
                reply.send(open.reveal(&self.wiring, &name, version).await);
                Ok(())
            }
        }
    }
}

impl Open {
    async fn set(
        &mut self,
        wiring: &VaultWiring,
        by: Entry,
        name: &str,
        value: &Secret,
    ) -> Result<RecordMeta, VaultRefusal> {
        check_name(name)?;
        let present = self.rows.records.get(name);
        if present.is_none() && self.rows.records.len() >= wiring.config.max_records {
            return Err(VaultRefusal::Full(wiring.config.max_records));
        }
        let now = wiring.clock.now();
        let before = present.and_then(|row| row.state.ok());
        let id = id_of(NAMESPACE, name);
        // Also of a record that is damaged: no version comes twice.
        let known = self.rows.manifest.get(&id).map_or(0, |entry| entry.version);
        let meta = RecordMeta {
            version: known + 1,
            created_at_ms: before.map_or(now, |meta| meta.created_at_ms),
            updated_at_ms: now,
        };
        let mut change = self.rows.manifest.next(1);
        let nonce = random().map_err(|_| VaultError::HeaderCorrupt)?;
        let term = change.epoch().term;
        let record = SealedRecord::seal(&self.keys, term, (NAMESPACE, name), meta, &nonce, value)?;
        let stored = serde_json::to_vec(&record).map_err(|_| VaultError::ValueInvalid)?;
        change.put(&id, meta.version, &stored);
        let edit = Edit::Put {
            name: name.to_owned(),
            meta,
            stored,
        };
        let entry = described(by, "vault.set", name).with("version", meta.version.to_string());
        self.change(wiring, entry, change, edit).await?;
        Ok(meta)
    }

    async fn remove(
        &mut self,
        wiring: &VaultWiring,
        by: Entry,
        name: &str,
    ) -> Result<(), VaultRefusal> {
        check_name(name)?;
        if !self.rows.records.contains_key(name) {
            return Err(VaultError::NotFound.into());
        }
        let mut change = self.rows.manifest.next(0);
        change.remove(&id_of(NAMESPACE, name));
        let edit = Edit::Remove {
            name: name.to_owned(),
        };
        let entry = described(by, "vault.remove", name);
        self.change(wiring, entry, change, edit).await
    }

    async fn change(
        &mut self,
        wiring: &VaultWiring,
        entry: Entry,
        change: Change,
        edit: Edit,
    ) -> Result<(), VaultRefusal> {
        let Self { keys, rows, marked } = self;
        let done = rows
            .change(wiring, keys, entry, change, vec![edit], None, vec![])
            .await?;
        *marked = done.intent;
        Ok(())
    }

    /// Records that cannot be used stand in it with their code, so that a person can set or remove them.
    fn list(&self) -> Vec<Listed> {
        let unreadable = RecordMeta {
            version: 0,
            created_at_ms: Millis::default(),
            updated_at_ms: Millis::default(),
        };
        let listed = |(name, row): (&String, &Row)| Listed {
            name: name.clone(),
            meta: row.state.unwrap_or(unreadable),
            code: row.state.err().map(VaultError::code),
        };
        self.rows.records.iter().map(listed).collect()
    }

    async fn reveal(
        &self,
        wiring: &VaultWiring,
        name: &str,
        version: Option<u64>,
    ) -> Result<(RecordMeta, Secret), VaultRefusal> {
        check_name(name)?;
        let known = self.rows.records.get(name).ok_or(VaultError::NotFound)?;
        let expected = known.state?;
        let row = wiring
            .store
            .get(RECORD, name)
            .await
            .map_err(ActError::Refused)?;
        // Only this room writes these rows: other bytes are somebody else's hand.
        let row = row.ok_or(VaultError::RecordMissing)?;
        rows::read_record(&self.keys, &self.rows.manifest, &row)?;
        let (meta, secret) = open_record(&self.keys, &row)?;
        if expected != meta {
            return Err(VaultError::RecordCorrupt.into());
        }
        if version.is_some_and(|wanted| wanted != meta.version) {
            return Err(VaultError::NotFound.into());
        }
        Ok((meta, secret))
    }
}

fn described(by: Entry, action: &str, name: &str) -> Entry {
    Entry {
        action: action.to_owned(),
        object: Some(format!("secret:{name}")),
        ..by
    }
}

/// Answers, and crashes the room where only re-reading helps.
fn answer<T>(reply: Reply<T, VaultRefusal>, result: Result<T, VaultRefusal>) -> Result<(), Crash> {
    let broken = match &result {
        Err(VaultRefusal::Act(error)) if error.must_reread() => Some(Crash::new(error)),
        _ => None,
    };
    reply.send(result);
    broken.map_or(Ok(()), Err)
}

fn refuse(wanted: Wanted, why: VaultRefusal) {
    match wanted {
        Wanted::Set { reply, .. } => reply.refuse(why),
        Wanted::List(reply) => reply.refuse(why),
        Wanted::Remove { reply, .. } => reply.refuse(why),
        Wanted::Reveal { reply, .. } => reply.refuse(why),
        Wanted::Derived(_, reply) => reply.refuse(why),
    }
}
