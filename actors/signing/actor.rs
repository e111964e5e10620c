//! The room: keys, nonces, and the order in which a request is believed.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use portcullis_core::audit::Entry;
use portcullis_core::auth::{Door, Principal, Proof, Role, Scope, ScopeSet, SecretStanding};
use portcullis_core::encoding::base64url;
use portcullis_core::ids::DeviceId;
use portcullis_core::pairing::News;
use portcullis_core::seal::{Key, NONCE};
use portcullis_core::signing::http::{HttpRefusal, Signature, Target};
use portcullis_core::signing::replay::Replay;
use portcullis_core::signing::{KeyPlace, SigningKey, open_key, seal_key};
use portcullis_core::time::Millis;
use portcullis_core::vault::KeyLabel;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::messages::{Claim, Minted, SigningMsg, SigningRefusal, SigningWiring};
use crate::act::act;
use crate::store::{Object, Op};
use crate::supervision::{Crash, Ctx, FeedItem, Reply, Room, Snapshot, TaskEnd};
use crate::vault::VaultRefusal;

const KIND: &str = "signing.key";
const FORMAT: u8 = 1;
const SWEEP: Duration = Duration::from_secs(30);
/// Until the vault is asked again, while it opens.
const AGAIN: Duration = Duration::from_millis(200);

/// A row of the store: whose key it is. The key itself is sealed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Kept {
    v: u8,
    key_id: String,
    device: DeviceId,
    role: Role,
    scopes: ScopeSet,
    generation: u64,
    created_at_ms: Millis,
    sealed: String,
}

impl Kept {
    fn row_id(&self) -> String {
        row_id(&self.device, self.role)
    }

    fn scope_words(&self) -> String {
        let words: Vec<_> = self.scopes.iter().map(Scope::as_str).collect();
        words.join(",")
    }

    fn place<'a>(&'a self, scopes: &'a str, intent: u64) -> KeyPlace<'a> {
        KeyPlace {
            key_id: &self.key_id,
            device: self.device.as_str(),
            role: self.role.as_str(),
            generation: self.generation,
            scopes,
            intent,
        }
    }
}

fn row_id(device: &DeviceId, role: Role) -> String {
    format!("{device}.{role}")
}

/// What is held of a row.
struct Held {
    rev: u64,
    intent: u64,
    /// `None`: no row that this build can read, or written under an intent that the log does not hold.
    kept: Option<Kept>,
}

enum Vault {
    /// Not open yet.
    Waiting,
    /// The key that seals ours.
    Open(Key),
    /// Stays closed.
    Closed(VaultRefusal),
}

/// See the module.
pub struct Signing {
    wiring: SigningWiring,
    ctx: Ctx<Self>,
    next: u64,
    vault: Vault,
    rows: BTreeMap<String, Held>,
    /// By the key's id: opened, and which row it is of.
    keys: HashMap<String, (SigningKey, String)>,
    replay: Replay,
    taken: u64,
    refused: u64,
}

impl Room for Signing {
    const NAME: &'static str = "signing";
    type Msg = SigningMsg;
    type Wiring = SigningWiring;

    async fn start(wiring: &SigningWiring, ctx: Ctx<Self>) -> Result<Self, Crash> {
        let head = wiring.audit.head().await?.seq.0;
        let rows = wiring.store.list_all(KIND).await?.into_iter();
        let rows: BTreeMap<_, _> = rows.map(|row| read(row, head)).collect();
        ask_vault(wiring, &ctx);
        listen(
            wiring,
            &ctx,
            rows.values().filter_map(|row| row.kept.clone()),
        );
        ctx.every("sweep", SWEEP, || SigningMsg::Sweep).keep();
        Ok(Self {
            replay: Replay::new(
                wiring.clock.now(),
                wiring.config.nonces_per_key,
                wiring.config.nonces_max,
            ),
            wiring: wiring.clone(),
            ctx,
            next: 0,
            vault: Vault::Waiting,
            rows,
            keys: HashMap::new(),
            taken: 0,
            refused: 0,
        })
    }

    async fn handle(&mut self, msg: SigningMsg) -> Result<(), Crash> {
        match msg {
            SigningMsg::Mint {
                device,
                role,
                scopes,
                generation,
                secret,
                reply,
            } => {
                let kept = Kept {
                    v: FORMAT,
                    key_id: String::new(),
                    device,
                    role,
                    scopes,
                    generation,
                    created_at_ms: self.wiring.clock.now(),
                    sealed: String::new(),
                };
                self.mint(kept, secret, reply).await
            }
            SigningMsg::Check(claim, reply) => {
                reply.send(self.check(&claim).map(drop));
                Ok(())
            }
            SigningMsg::Spend(claim, reply) => {
                self.spend(&claim, reply);
                Ok(())
            }
            SigningMsg::Vault(opened) => {
                self.opened(opened);
                Ok(())
            }
            SigningMsg::Forget(device, generation) => self.forget(&device, generation).await,
            SigningMsg::Sweep => {
                self.replay.sweep(self.wiring.clock.now());
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
            TaskEnd::Panicked(why) => Err(Crash::new(format!("its {name} task panicked: {why}"))),
            TaskEnd::Done => Ok(()),
        }
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot::default()
            .with("keys", self.keys.len())
            .with("unreadable", self.rows.len() - self.keys.len())
            .with("nonces", self.replay.len())
            .with("taken", self.taken)
            .with("refused", self.refused)
    }
}

fn read(object: Object, head: u64) -> (String, Held) {
    let kept = serde_json::from_slice::<Kept>(&object.payload).ok();
    let kept =
        kept.filter(|kept| kept.v == FORMAT && kept.row_id() == object.id && object.intent <= head);
    let held = Held {
        rev: object.rev,
        intent: object.intent,
        kept,
    };
    (object.id, held)
}

/// Each time the vault opens or is sealed.
fn ask_vault(wiring: &SigningWiring, ctx: &Ctx<Signing>) {
    let (vault, own) = (wiring.vault.clone(), ctx.clone());
    let mut phase = vault.phase();
    ctx.task("vault", 0, async move {
        loop {
            // Seen before it is asked: what changes meanwhile is looked at once more.
            phase.take();
            match vault.derived_key(KeyLabel::SigningKeys).await {
                Err(
                    VaultRefusal::Unsealing | VaultRefusal::Overloaded | VaultRefusal::Down { .. },
                ) => {
                    tokio::time::sleep(AGAIN).await;
                    continue;
                }
                result => own.notify(SigningMsg::Vault(result)),
            }
            if phase.changed().await.is_none() {
                return;
            }
        }
    })
    .keep();
}

/// A key does not outlive the credential that it was minted under. What was missed before the start is asked for.
fn listen(wiring: &SigningWiring, ctx: &Ctx<Signing>, held: impl Iterator<Item = Kept>) {
    let mut news = wiring.pairing.news();
    let (pairing, own) = (wiring.pairing.clone(), ctx.clone());
    let held: Vec<_> = held.map(|kept| (kept.device, kept.role)).collect();
    ctx.task("news", 0, async move {
        for (device, role) in held {
            // Pairing is down: each request asks it again.
            if let Ok(now) = pairing.current_generation(&device, role).await {
                own.notify(SigningMsg::Forget(device, now));
            }
        }
        loop {
            match news.next().await {
                FeedItem::Event(told) => {
                    if let News::Invalidated {
                        device_id,
                        generation,
                        ..
                    } = &told.event
                    {
                        own.notify(SigningMsg::Forget(device_id.clone(), *generation));
                    }
                }
                // What was missed is found by the request that uses it.
                FeedItem::Lagged => {}
                FeedItem::Closed => return,
            }
        }
    })
    .keep();
}

impl Signing {
    /// Sealed, it holds no key any more.
    fn opened(&mut self, opened: Result<Key, VaultRefusal>) {
        self.keys.clear();
        let vault = match opened {
            Ok(key) => key,
            Err(refusal) => {
                self.vault = Vault::Closed(refusal);
                return;
            }
        };
        for (id, row) in &self.rows {
            let Some(kept) = &row.kept else { continue };
            let scopes = kept.scope_words();
            match open_key(&vault, &kept.place(&scopes, row.intent), &kept.sealed) {
                Some(key) => {
                    self.keys.insert(kept.key_id.clone(), (key, id.clone()));
                }
                None => {
                    tracing::error!(target: "portcullis", row = %id, "a signing key was altered on disk");
                }
            }
        }
        self.vault = Vault::Open(vault);
    }

    fn vault(&self) -> Result<&Key, SigningRefusal> {
        match &self.vault {
            Vault::Open(key) => Ok(key),
            Vault::Waiting => Err(VaultRefusal::Unsealing.into()),
            Vault::Closed(refusal) => Err(refusal.clone().into()),
        }
    }

    async fn mint(
        &mut self,
        mut kept: Kept,
        secret: Option<SecretStanding>,
        reply: Reply<Option<Minted>, SigningRefusal>,
    ) -> Result<(), Crash> {
        if !reply.is_wanted() {
            return Ok(());
        }
        let vault = match self.vault() {
            Ok(vault) => vault.clone(),
            Err(refusal) => {
                reply.refuse(refusal);
                return Ok(());
            }
        };
        let id = kept.row_id();
        let row = self.rows.get(&id);
        let known = row.and_then(|row| row.kept.as_ref());
        if known.is_some_and(|known| {
            known.generation == kept.generation && self.keys.contains_key(&known.key_id)
        }) {
            reply.ok(None);
            return Ok(());
        }
        let old = known.map(|known| known.key_id.clone());
        let rev = row.map(|row| row.rev);
        let (mut name, mut nonce) = ([0; 16], [0; NONCE]);
        let mut random = Zeroizing::new([0; 32]);
        for bytes in [&mut name[..], &mut nonce, &mut *random] {
            getrandom::fill(bytes)?;
        }
        let key = SigningKey::from_random(random);
        kept.key_id = base64url(&name);
        let mut entry = Entry {
            action: "signing.mint".to_owned(),
            principal: Some(format!("device:{}", kept.device)),
            object: Some(kept.key_id.clone()),
            detail: [("role".to_owned(), kept.role.to_string())].into(),
            ..Entry::default()
        }
        // Not after that device's revocation.
        .under(kept.generation);
        if let Some(standing) = secret {
            entry = entry.by_secret(standing.secret, standing.generation);
        }
        let (sealing, mut to_store) = (key.clone(), kept.clone());
        let ops = |intent| {
            let scopes = to_store.scope_words();
            to_store.sealed = seal_key(&vault, &to_store.place(&scopes, intent), nonce, &sealing);
            kept.sealed.clone_from(&to_store.sealed);
            let payload = serde_json::to_vec(&to_store).map_err(|_| "the row is no JSON")?;
            Ok(vec![match rev {
                None => Op::create(KIND, &id, intent, payload),
                Some(rev) => Op::compare_and_set(KIND, &id, intent, rev, payload),
            }])
        };
        let _waiting = self.ctx.waiting();
        let done = match act(&self.wiring.audit, &self.wiring.store, entry, ops).await {
            Ok(done) => done,
            Err(error) => {
                let must_reread = error.must_reread();
                let why = error.to_string();
                reply.refuse(error.into());
                return if must_reread {
                    Err(Crash::new(why))
                } else {
                    Ok(())
                };
            }
        };
        if let Some(old) = old {
            self.keys.remove(&old);
        }
        self.keys
            .insert(kept.key_id.clone(), (key.clone(), id.clone()));
        let key_id = kept.key_id.clone();
        let held = Held {
            rev: done.revisions.first().map_or(0, |revision| revision.0),
            intent: done.intent,
            kept: Some(kept),
        };
        self.rows.insert(id, held);
        reply.ok(Some(Minted { key_id, key }));
        Ok(())
    }

    /// Size and shape, key, MAC, time: in this order.
    fn check<'a>(&mut self, claim: &'a Claim) -> Result<Signature<'a>, SigningRefusal> {
        let checked = self.checked(claim);
        if checked.is_err() {
            self.refused += 1;
        }
        checked
    }

    fn checked<'a>(&self, claim: &'a Claim) -> Result<Signature<'a>, SigningRefusal> {
        let signature = Signature::parse(&claim.input, &claim.signature)?;
        self.vault()?;
        let target = Target {
            method: &claim.method,
            authority: &claim.authority,
            tls: claim.tls,
            path: &claim.path,
            query: &claim.query,
            content_digest: &claim.content_digest,
        };
        let key = self.keys.get(signature.key_id).map(|(key, _)| key);
        signature.check(key, &target, self.wiring.clock.now())?;
        Ok(signature)
    }

    /// Then the nonce; then, off the loop, whether the credential still holds.
    fn spend(&mut self, claim: &Claim, reply: Reply<Principal, SigningRefusal>) {
        if !reply.is_wanted() {
            return;
        }
        let (key_id, kept) = match self.check(claim).and_then(|signature| {
            let row = self.keys.get(signature.key_id);
            let kept = row
                .and_then(|(_, id)| self.rows.get(id))
                .and_then(|row| row.kept.clone())
                .ok_or(HttpRefusal::Wrong)?;
            self.replay.spend(
                self.wiring.clock.now(),
                signature.key_id,
                signature.nonce,
                signature.created_ms(),
            )?;
            Ok((signature.key_id.to_owned(), kept))
        }) {
            Ok(found) => found,
            Err(refusal) => {
                reply.refuse(refusal);
                return;
            }
        };
        self.taken += 1;
        self.next += 1;
        let pairing = self.wiring.pairing.clone();
        let flow = async move {
            let result = match pairing.current_generation(&kept.device, kept.role).await {
                Err(_) => Err(SigningRefusal::Down),
                Ok(now) if now != Some(kept.generation) => Err(SigningRefusal::Ended),
                Ok(_) => Ok(Principal {
                    proof: Proof::Signature(kept.device, key_id),
                    door: Door::Http,
                    role: kept.role,
                    scopes: kept.scopes,
                    agent: None,
                    generation: kept.generation,
                    secret: None,
                }),
            };
            reply.send(result);
        };
        self.ctx.task("generation", self.next, flow).keep();
    }

    async fn forget(&mut self, device: &DeviceId, generation: Option<u64>) -> Result<(), Crash> {
        let ended: Vec<_> = self
            .rows
            .iter()
            .filter_map(|(id, row)| {
                let kept = row.kept.as_ref()?;
                let ended = kept.device == *device && Some(kept.generation) != generation;
                ended.then(|| (id.clone(), row.rev, kept.key_id.clone()))
            })
            .collect();
        for (id, rev, key_id) in ended {
            // From here on it signs nothing, also where its row cannot be removed.
            self.keys.remove(&key_id);
            let entry = Entry {
                action: "signing.forget".to_owned(),
                principal: Some("system".to_owned()),
                object: Some(key_id),
                ..Entry::default()
            };
            let _waiting = self.ctx.waiting();
            let ops = |intent| Ok(vec![Op::delete_if(KIND, &id, intent, rev)]);
            match act(&self.wiring.audit, &self.wiring.store, entry, ops).await {
                Ok(_) => {
                    self.rows.remove(&id);
                }
                Err(error) if error.must_reread() => return Err(Crash::new(error.to_string())),
                Err(error) => {
                    tracing::warn!(target: "portcullis", %error, "a signing key that ended could not be removed");
                }
            }
        }
        Ok(())
    }
}
