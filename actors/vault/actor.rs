//! The room: Unsealing, then Open or Sealed.

use super::messages::{Listed, VaultMsg, VaultRefusal, VaultWiring, Wanted};
use super::rows::{self, EPOCH, NAMESPACE, ONLY, RECORD, Row, Rows, Unlocked, open_record};
use crate::act::{ActError, act};
use crate::store::Op;
use crate::supervision::{Crash, Ctx, Reply, Room, Snapshot, TaskEnd, TaskHandle};
use portcullis_core::audit::Entry;
use portcullis_core::seal::Secret;
use portcullis_core::time::Millis;
use portcullis_core::vault::{RecordMeta, SealedRecord, VaultError, VaultKeys, check_name};
use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::Instant;

/// How long a caller waits for the vault to open; below the handle's deadline.
const PATIENCE: Duration = Duration::from_secs(4);
const LOOK: Duration = Duration::from_millis(500);

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

struct Open {
    keys: VaultKeys,
    rows: Rows,
}

impl Room for Vault {
    const NAME: &'static str = "vault";
    type Msg = VaultMsg;
    type Wiring = VaultWiring;

    async fn start(wiring: &VaultWiring, ctx: Ctx<Self>) -> Result<Self, Crash> {
        let state = match rows::read_header(&wiring.store).await? {
            Err(error) => State::Sealed(error),
            Ok(header) => {
                let (identity, news) = (wiring.identity.clone(), ctx.clone());
                ctx.blocking("unlock", 0, move || {
                    let unlocked = rows::unlock(&identity, header.as_ref());
                    news.notify(VaultMsg::Unlocked(Box::new(unlocked)));
                })?;
                let look = ctx.every("unsealing", LOOK, || VaultMsg::StillUnsealing);
                State::Unsealing {
                    waiting: VecDeque::new(),
                    _look: look,
                }
            }
        };
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
                        .filter(|row| row.meta.is_none())
                        .count(),
                )
                .with("epoch", open.rows.epoch.1.term)
                .with("seals", open.rows.epoch.1.seals),
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

    async fn open(&self, Unlocked { keys, made }: Unlocked) -> Result<State, Crash> {
        let VaultWiring { audit, store, .. } = &self.wiring;
        let _waiting = self.ctx.waiting();
        if let Some(header) = made {
            rows::store_header(audit, store, &header).await?;
        }
        let head = audit.head().await?.seq.0;
        Ok(match rows::read_rows(store, &keys, head).await? {
            Ok(rows) => State::Open(Box::new(Open { keys, rows })),
            Err(error) => State::Sealed(error),
        })
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
        let before = present.and_then(|row| row.meta);
        let meta = RecordMeta {
            version: before.map_or(0, |meta| meta.version) + 1,
            created_at_ms: before.map_or(now, |meta| meta.created_at_ms),
            updated_at_ms: now,
        };
        let expected = present.map(|row| row.rev);
        let (epoch_rev, epoch) = self.rows.epoch;
        let epoch = epoch.next();
        let mut nonce = [0; 12];
        getrandom::fill(&mut nonce).map_err(|_| VaultError::HeaderCorrupt)?;
        // Also tells a value outside its limits before anything is recorded.
        let seal = |intent| {
            SealedRecord::seal(
                &self.keys,
                epoch.term,
                (NAMESPACE, name),
                intent,
                meta,
                &nonce,
                value,
            )
        };
        if value.is_empty() || value.len() > portcullis_core::vault::MAX_VALUE {
            return Err(VaultError::ValueInvalid.into());
        }
        let ops = |intent| {
            let record = seal(intent).map_err(|_| "a record that cannot be sealed")?;
            let payload = serde_json::to_vec(&record).map_err(|_| "the record is no JSON")?;
            let count = serde_json::to_vec(&epoch).map_err(|_| "the epoch is no JSON")?;
            Ok(vec![
                match expected {
                    None => Op::create(RECORD, name, intent, payload),
                    Some(rev) => Op::compare_and_set(RECORD, name, intent, rev, payload),
                },
                Op::compare_and_set(EPOCH, ONLY, intent, epoch_rev, count),
            ])
        };
        let entry = described(by, "vault.set", name).with("version", meta.version.to_string());
        let done = act(&wiring.audit, &wiring.store, entry, ops).await?;
        let [record_rev, epoch_rev] = done.revisions[..] else {
            return Err(ActError::Stale.into());
        };
        self.rows.epoch = (epoch_rev.0, epoch);
        let row = Row {
            rev: record_rev.0,
            meta: Some(meta),
        };
        self.rows.records.insert(name.to_owned(), row);
        Ok(meta)
    }

    async fn remove(
        &mut self,
        wiring: &VaultWiring,
        by: Entry,
        name: &str,
    ) -> Result<(), VaultRefusal> {
        check_name(name)?;
        let rev = self.rows.records.get(name).ok_or(VaultError::NotFound)?.rev;
        let ops = |intent| Ok(vec![Op::delete_if(RECORD, name, intent, rev)]);
        act(
            &wiring.audit,
            &wiring.store,
            described(by, "vault.remove", name),
            ops,
        )
        .await?;
        self.rows.records.remove(name);
        Ok(())
    }

    /// Records that cannot be read stand in it with version 0, so that a person can set or remove them.
    fn list(&self) -> Vec<Listed> {
        let unreadable = RecordMeta {
            version: 0,
            created_at_ms: Millis::default(),
            updated_at_ms: Millis::default(),
        };
        let listed = |(name, row): (&String, &Row)| Listed {
            name: name.clone(),
            meta: row.meta.unwrap_or(unreadable),
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
        let row = wiring
            .store
            .get(RECORD, name)
            .await
            .map_err(ActError::Refused)?;
        // Only this room writes these rows: another revision is somebody else's hand.
        let row = row
            .filter(|row| row.rev == known.rev)
            .ok_or(VaultError::RecordCorrupt)?;
        let (meta, secret) = open_record(&self.keys, &row)?;
        if known.meta != Some(meta) {
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
