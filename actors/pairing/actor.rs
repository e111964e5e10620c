//! The room around core's machine: decide, make durable, settle, tell.

use super::messages::{By, Manage, PairingMsg, PairingRefusal, PairingWiring};
use crate::act::{ActError, act, store_with};
use crate::clock::Clock;
use crate::store::{Object, Op};
use crate::supervision::{Crash, Ctx, Reply, Room, Snapshot, TaskHandle};
use portcullis_core::audit::Entry;
use portcullis_core::ids::DeviceId;
use portcullis_core::pairing::{
    Change, ConnectFacts, Declared, Device, Effective, Fresh, Pairing, Pending, Record, Refusal,
    SetupCodes, Verdict,
};
use portcullis_core::time::Millis;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

const DEVICE: &str = "pairing.device";
const PENDING: &str = "pairing.pending";
const EXPIRE_EVERY: Duration = Duration::from_secs(30);

/// Pairing's actor.
pub struct PairingRoom {
    pub(super) wiring: PairingWiring,
    ctx: Ctx<Self>,
    pub(super) machine: Pairing,
    /// Runs with the machine, whatever the wall clock is set to.
    steady: Clock,
    rows: Rows,
    pub(super) codes: SetupCodes,
    left_out: usize,
    _expire: TaskHandle,
}

/// Revision and intent of each row, by kind and id: for conditional writes.
type Rows = BTreeMap<(&'static str, String), (u64, u64)>;

impl Room for PairingRoom {
    const NAME: &'static str = "pairing";
    type Msg = PairingMsg;
    type Wiring = PairingWiring;

    async fn start(wiring: &PairingWiring, ctx: Ctx<Self>) -> Result<Self, Crash> {
        let head = wiring.audit.head().await?.seq.0;
        let (devices, pending) = (
            wiring.store.list_all(DEVICE).await?,
            wiring.store.list_all(PENDING).await?,
        );
        let mut rows = Rows::new();
        let total = devices.len() + pending.len();
        let devices: Vec<Device> = read(devices, DEVICE, head, &mut rows, |device: &Device, id| {
            device.is_sound() && device.device_id.as_str() == id
        });
        let pending: Vec<Pending> = read(
            pending,
            PENDING,
            head,
            &mut rows,
            |pending: &Pending, id| pending.is_sound() && pending.request_id == id,
        );
        let left_out = total - devices.len() - pending.len();
        if left_out > 0 {
            tracing::error!(
                left_out,
                "rows of pairing do not fit the audit log or are damaged: their devices must pair anew"
            );
        }
        let expire = ctx.every("expire", EXPIRE_EVERY, || PairingMsg::Expire);
        Ok(Self {
            machine: Pairing::restore(wiring.config.limits(), devices, pending),
            steady: Clock::of_runtime(wiring.clock.now()),
            wiring: wiring.clone(),
            ctx,
            rows,
            codes: SetupCodes::default(),
            left_out,
            _expire: expire,
        })
    }

    async fn handle(&mut self, msg: PairingMsg) -> Result<(), Crash> {
        match msg {
            PairingMsg::Decide(facts, reply) => self.decide(*facts, reply).await,
            PairingMsg::Generation(device, role, reply) => {
                reply.ok(self.machine.generation(&device, role));
                Ok(())
            }
            PairingMsg::Lives(device, reply) => {
                reply.ok(self.machine.lives(&device));
                Ok(())
            }
            PairingMsg::LetIn(device, reply) => {
                reply.ok(self.machine.let_in(&device));
                Ok(())
            }
            PairingMsg::OperatorKey(device, reply) => {
                reply.ok(self.machine.operator_key(&device));
                Ok(())
            }
            PairingMsg::List(caller, connected, reply) => {
                reply.ok(self.machine.list(&caller, &connected, self.now()));
                Ok(())
            }
            PairingMsg::Show(caller, id, reply) => {
                reply.ok(self.machine.show(&id, &caller, self.now()));
                Ok(())
            }
            PairingMsg::Surface(device, reply) => {
                reply.ok(self.machine.surface(&device));
                Ok(())
            }
            PairingMsg::Declare(device, generation, declared, reply) => {
                self.declare(&device, generation, &declared, reply).await
            }
            PairingMsg::Nodes(caller, reply) => {
                reply.ok(self.machine.list_nodes(&caller));
                Ok(())
            }
            PairingMsg::Manage(by, what, reply) => self.manage(*by, what, reply).await,
            PairingMsg::MakeCode(by, code, reply) => self.make_code(*by, *code, reply).await,
            PairingMsg::CodeMaker(id, reply) => {
                reply.ok(self.codes.maker(&id, self.now()).cloned());
                Ok(())
            }
            PairingMsg::UseCode(facts, presented, reply) => {
                self.use_code(*facts, &presented, reply).await
            }
            PairingMsg::CodeStatus(id, reply) => {
                let status = self.codes.status(&id, self.now());
                reply.send(status.ok_or(Refusal::UnknownSetup.into()));
                Ok(())
            }
            PairingMsg::Expire => self.expire().await,
        }
    }

    fn snapshot(&self) -> Snapshot {
        let (devices, pending) = self.machine.counts();
        Snapshot::default()
            .with("devices", devices)
            .with("pending", pending)
            .with("setup codes", self.codes.len(self.now()))
            .with("left_out", self.left_out)
    }
}

/// Rows that are sound and whose intent the log holds. The others keep their revision, so that a device which pairs
/// anew takes their place.
fn read<T: DeserializeOwned>(
    objects: Vec<Object>,
    kind: &'static str,
    head: u64,
    rows: &mut Rows,
    is_sound: impl Fn(&T, &str) -> bool,
) -> Vec<T> {
    let mut found = Vec::with_capacity(objects.len());
    for object in objects {
        let value = serde_json::from_slice(&object.payload).ok();
        found.extend(value.filter(|value| object.intent <= head && is_sound(value, &object.id)));
        rows.insert((kind, object.id), (object.rev, object.intent));
    }
    found
}

impl PairingRoom {
    /// The wall clock, but never behind what has passed since the start: a clock set back lets nothing wait longer.
    pub(super) fn now(&self) -> Millis {
        self.wiring.clock.now().max(self.steady.now())
    }

    async fn decide(
        &mut self,
        facts: ConnectFacts,
        reply: Reply<Verdict, PairingRefusal>,
    ) -> Result<(), Crash> {
        if !reply.is_wanted() {
            return Ok(());
        }
        let now = self.now();
        let (verdict, change) = match self.machine.decide(&facts, now, fresh()?) {
            Ok(decided) => decided,
            Err(refusal) => {
                reply.refuse(refusal.into());
                return Ok(());
            }
        };
        if let Some(change) = change {
            let mut entry = Entry {
                principal: Some(format!("device:{}", facts.device_id)),
                ..Entry::default()
            };
            // The log refuses it once that secret has been changed: nobody is paired under one that has ended.
            if let Some(standing) = facts.secret {
                entry = entry.by_secret(standing.secret, standing.generation);
            }
            if let Err(error) = self.make(change, entry).await {
                return answer(reply, Err(error));
            }
        }
        reply.ok(match verdict {
            Verdict::Paired {
                scopes,
                own,
                token,
                by_device_token,
                ..
            } => {
                self.machine.seen(&facts.device_id, now);
                let generation = self.machine.generation(&facts.device_id, facts.role);
                let generation = generation.ok_or_else(|| Crash::new("let in, but not held"))?;
                Verdict::Paired {
                    scopes,
                    own,
                    token,
                    generation,
                    by_device_token,
                }
            }
            other => other,
        });
        Ok(())
    }

    async fn declare(
        &mut self,
        device: &DeviceId,
        generation: u64,
        declared: &Declared,
        reply: Reply<Effective, PairingRefusal>,
    ) -> Result<(), Crash> {
        if !reply.is_wanted() {
            return Ok(());
        }
        let fresh = fresh()?;
        let decided = self
            .machine
            .declare(device, generation, declared, self.now(), &fresh);
        let result = match decided {
            Ok((effective, None)) => Ok(effective),
            Ok((effective, Some(change))) => {
                let entry = Entry {
                    principal: Some(format!("device:{device}")),
                    ..Entry::default()
                };
                self.make(change, entry).await.map(|()| effective)
            }
            Err(refusal) => Err(refusal.into()),
        };
        answer(reply, result)
    }

    async fn manage(
        &mut self,
        by: By,
        what: Manage,
        reply: Reply<Value, PairingRefusal>,
    ) -> Result<(), Crash> {
        if !reply.is_wanted() {
            return Ok(());
        }
        let result = match self.plan(&by, what) {
            Ok((change, result)) => self.make(change, by.entry).await.map(|()| result),
            Err(error) => Err(error),
        };
        answer(reply, result)
    }

    /// What the change will be, and what the caller is told once it is made.
    fn plan(
        &self,
        By { caller, .. }: &By,
        what: Manage,
    ) -> Result<(Change, Value), PairingRefusal> {
        let (machine, now) = (&self.machine, self.now());
        Ok(match what {
            Manage::Approve { request_id, narrow } => {
                let change = machine.approve(&request_id, caller, narrow, now)?;
                let device = change
                    .put_devices
                    .first()
                    .map(|device| device.to_wire(None));
                (change, json!({ "requestId": request_id, "device": device }))
            }
            Manage::Reject { request_id } => {
                let change = machine.reject(&request_id, caller, now)?;
                let device = change.device_id.clone();
                (
                    change,
                    json!({ "requestId": request_id, "deviceId": device }),
                )
            }
            Manage::Remove(device) => (
                machine.remove(&device, caller, now)?,
                json!({ "deviceId": device }),
            ),
            Manage::Rename(device, label) => {
                let change = machine.rename(&device, &label, caller)?;
                (change, json!({ "deviceId": device, "label": label }))
            }
            Manage::Rotate(device, role, scopes) => {
                let fresh =
                    fresh().map_err(|_| portcullis_core::pairing::Refusal::RotationDenied)?;
                let (rotated, change) =
                    machine.rotate(&device, role, scopes, caller, now, &fresh)?;
                (change, rotated.to_wire(&device))
            }
            Manage::ApproveSurface(request_id) => {
                let change = machine.approve_surface(&request_id, caller, now)?;
                let node = change.put_devices.first().and_then(Device::node_to_wire);
                (change, json!({ "requestId": request_id, "node": node }))
            }
            Manage::RejectSurface(request_id) => {
                let change = machine.reject_surface(&request_id, caller, now)?;
                let node = change.device_id.clone();
                (change, json!({ "requestId": request_id, "nodeId": node }))
            }
            Manage::RemoveNode(device) => (
                machine.remove_node(&device, caller, now)?,
                json!({ "nodeId": device }),
            ),
            Manage::RenameNode(device, name) => {
                let change = machine.rename_node(&device, &name, caller)?;
                (change, json!({ "nodeId": device, "displayName": name }))
            }
            Manage::Revoke(device, role) => {
                let change = machine.revoke(&device, role, caller, now)?;
                (
                    change,
                    json!({ "deviceId": device, "role": role, "revokedAtMs": now }),
                )
            }
        })
    }

    async fn expire(&mut self) -> Result<(), Crash> {
        let Some(change) = self.machine.expire(self.now()) else {
            return Ok(());
        };
        match self.make(change, Entry::default()).await {
            // The next tick tries again.
            Err(PairingRefusal::Act(error)) if !error.must_reread() => {
                tracing::warn!(%error, "expired requests could not be dropped");
                Ok(())
            }
            Err(error) => Err(Crash::new(error)),
            Ok(()) => Ok(()),
        }
    }

    /// Record, store, settle, tell: in this order.
    pub(super) async fn make(
        &mut self,
        mut change: Change,
        entry: Entry,
    ) -> Result<(), PairingRefusal> {
        let PairingWiring {
            audit, store, news, ..
        } = &self.wiring;
        let rows = &self.rows;
        let entry = Entry {
            action: change.action.to_owned(),
            object: Some(format!("device:{}", change.device_id)),
            ..entry
        };
        let mut entry = change
            .detail
            .iter()
            .fold(entry, |entry, (key, value)| entry.with(*key, value.clone()));
        if change.new_generation {
            entry = entry.ending(format!("device:{}", change.device_id));
        }
        let _waiting = self.ctx.waiting();
        let record = change.record;
        let plan = |intent: u64| {
            change.stamp(intent);
            ops(&change, rows, intent)
        };
        let (intent, revisions) = match record {
            Record::Intent => {
                let done = act(audit, store, entry, plan).await?;
                (done.intent, done.revisions)
            }
            Record::Event => {
                let event = audit.event(entry).await.map_err(ActError::CannotRecord)?;
                (event.0, store_with(store, event.0, plan).await?)
            }
            // Nothing new is known, so the rows go on carrying what they were made under.
            Record::Nothing => (0, store_with(store, 0, plan).await?),
        };
        let mut revisions = revisions.into_iter();
        for (kind, id, write) in writes(&change) {
            let rev = revisions.next().ok_or(ActError::Stale)?.0;
            let key = (kind, id);
            match write {
                Some(_) => {
                    let kept = self.rows.get(&key).map_or(intent, |row| row.1);
                    let intent = if record == Record::Nothing {
                        kept
                    } else {
                        intent
                    };
                    self.rows.insert(key, (rev, intent));
                }
                None => {
                    self.rows.remove(&key);
                }
            }
        }
        for item in self.machine.settle(change) {
            news.publish(item);
        }
        Ok(())
    }
}

/// Rows in one order: what to write (`None`: delete).
fn writes(change: &Change) -> Vec<(&'static str, String, Option<Row<'_>>)> {
    let devices = change.put_devices.iter().map(|device| {
        (
            DEVICE,
            device.device_id.to_string(),
            Some(Row::Device(device)),
        )
    });
    let pending = change.put_pending.iter().map(|pending| {
        (
            PENDING,
            pending.request_id.clone(),
            Some(Row::Pending(pending)),
        )
    });
    let gone = change
        .drop_devices
        .iter()
        .map(|id| (DEVICE, id.to_string(), None));
    let over = change
        .drop_pending
        .iter()
        .map(|id| (PENDING, id.clone(), None));
    devices.chain(pending).chain(gone).chain(over).collect()
}

#[derive(Serialize)]
#[serde(untagged)]
enum Row<'a> {
    Device(&'a Device),
    Pending(&'a Pending),
}

/// Each write on the revision that this room knows. `intent` 0: as the row has it.
fn ops(change: &Change, rows: &Rows, intent: u64) -> Result<Vec<Op>, &'static str> {
    writes(change)
        .into_iter()
        .map(|(kind, id, row)| {
            let known = rows.get(&(kind, id.clone())).copied();
            let intent = if intent == 0 {
                known.map_or(0, |row| row.1)
            } else {
                intent
            };
            let payload = row
                .map(|row| serde_json::to_vec(&row))
                .transpose()
                .map_err(|_| "a row that is no JSON")?;
            match (payload, known) {
                (Some(payload), Some((rev, _))) => {
                    Ok(Op::compare_and_set(kind, &id, intent, rev, payload))
                }
                (Some(payload), None) => Ok(Op::create(kind, &id, intent, payload)),
                (None, Some((rev, _))) => Ok(Op::delete_if(kind, &id, intent, rev)),
                (None, None) => Err("a row to delete that is not there"),
            }
        })
        .collect()
}

pub(super) fn fresh() -> Result<Fresh, Crash> {
    let mut token = [0; 32];
    getrandom::fill(&mut token).map_err(|error| Crash::new(format!("no random bytes: {error}")))?;
    Ok(Fresh {
        request_id: uuid::Uuid::new_v4().to_string(),
        token,
    })
}

/// Answers, and crashes the room where only re-reading helps.
pub(super) fn answer<T>(
    reply: Reply<T, PairingRefusal>,
    result: Result<T, PairingRefusal>,
) -> Result<(), Crash> {
    let broken = match &result {
        Err(PairingRefusal::Act(error)) if error.must_reread() => Some(Crash::new(error)),
        _ => None,
    };
    reply.send(result);
    broken.map_or(Ok(()), Err)
}
