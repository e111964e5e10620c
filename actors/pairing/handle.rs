//! The way to pairing for other rooms.

use super::actor::PairingRoom;
use super::messages::{
    By, CodeVerdict, MadeCode, Manage, NewCode, PairingMsg, PairingRefusal, PairingWiring,
    Presented,
};
use crate::act::entry_of;
use crate::supervision::{CallError, Feed, FeedReader, Handle, Policy, Reply, TreeBuilder};
use portcullis_core::auth::{Principal, Role, ScopeSet};
use portcullis_core::ids::DeviceId;
use portcullis_core::pairing::{
    Caller, ConnectFacts, Declared, Effective, LetIn, Maker, News, OperatorKey, SurfaceState,
    Verdict,
};
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Duration;

const WITHIN: Duration = Duration::from_secs(5);
/// Requests the room takes at once.
const CAPACITY: usize = 1_024;

/// Handle to pairing. Clone it freely; it survives restarts of the room.
///
/// The results of the `device.*` methods are the JSON of wire.md section 9. Every change is durable when it returns.
#[derive(Clone, Debug)]
pub struct PairingHandle {
    room: Handle<PairingMsg>,
    news: Feed<News>,
}

impl PairingHandle {
    /// Adds the room to a tree.
    pub fn add(tree: &mut TreeBuilder, wiring: PairingWiring) -> Self {
        let news = wiring.news.clone();
        let room = tree.room::<PairingRoom>(Policy::new(CAPACITY), wiring);
        Self { room, news }
    }

    /// Decides on a connection whose device signature has been verified. Writes nothing for a device that is paired
    /// and has its token.
    ///
    /// # Errors
    /// [`PairingRefusal`].
    pub async fn decide(&self, facts: ConnectFacts) -> Result<Verdict, PairingRefusal> {
        let facts = Box::new(facts);
        self.ask(|reply| PairingMsg::Decide(facts, reply)).await
    }

    /// The generation under which a session of this device and role may live; `None`: under none. For the check
    /// between intent and act.
    ///
    /// # Errors
    /// [`PairingRefusal`]: then do not act.
    pub async fn current_generation(
        &self,
        device: &DeviceId,
        role: Role,
    ) -> Result<Option<u64>, PairingRefusal> {
        let device = device.clone();
        self.ask(|reply| PairingMsg::Generation(device, role, reply))
            .await
    }

    /// Which generation of a device lives, in whatever role: sessions under any other are to end.
    ///
    /// # Errors
    /// [`PairingRefusal`].
    pub async fn lives(&self, device: &DeviceId) -> Result<Option<u64>, PairingRefusal> {
        let device = device.clone();
        self.ask(|reply| PairingMsg::Lives(device, reply)).await
    }

    /// How a device has come in; `None`: it is not paired.
    ///
    /// # Errors
    /// [`PairingRefusal`].
    pub async fn let_in(&self, device: &DeviceId) -> Result<Option<LetIn>, PairingRefusal> {
        let device = device.clone();
        self.ask(|reply| PairingMsg::LetIn(device, reply)).await
    }

    /// The key of a device that is paired as an operator.
    ///
    /// # Errors
    /// [`PairingRefusal`].
    pub async fn operator_key(
        &self,
        device: &DeviceId,
    ) -> Result<Option<OperatorKey>, PairingRefusal> {
        let device = device.clone();
        self.ask(|reply| PairingMsg::OperatorKey(device, reply))
            .await
    }

    /// `device.pair.list`. `connected`: the devices that have a live socket, as the edge knows them.
    ///
    /// # Errors
    /// [`PairingRefusal`].
    pub async fn list(
        &self,
        by: &Principal,
        connected: BTreeSet<DeviceId>,
    ) -> Result<Value, PairingRefusal> {
        let caller = Caller::of(by);
        self.ask(|reply| PairingMsg::List(caller, connected, reply))
            .await
    }

    /// One request or device by its id, in the shape of the list.
    ///
    /// # Errors
    /// [`PairingRefusal`].
    pub async fn show(&self, by: &Principal, id: &str) -> Result<Option<Value>, PairingRefusal> {
        let (caller, id) = (Caller::of(by), id.to_owned());
        self.ask(|reply| PairingMsg::Show(caller, id, reply)).await
    }

    /// `device.pair.approve`. `narrow`: give what both ask and approver hold, instead of refusing with the scope that
    /// the approver lacks.
    ///
    /// # Errors
    /// [`PairingRefusal`].
    pub async fn approve(
        &self,
        by: &Principal,
        request_id: &str,
        narrow: bool,
    ) -> Result<Value, PairingRefusal> {
        let request_id = request_id.to_owned();
        self.manage(by, Manage::Approve { request_id, narrow })
            .await
    }

    /// `device.pair.reject`.
    ///
    /// # Errors
    /// [`PairingRefusal`].
    pub async fn reject(&self, by: &Principal, request_id: &str) -> Result<Value, PairingRefusal> {
        let request_id = request_id.to_owned();
        self.manage(by, Manage::Reject { request_id }).await
    }

    /// `device.pair.remove`.
    ///
    /// # Errors
    /// [`PairingRefusal`].
    pub async fn remove(&self, by: &Principal, device: &DeviceId) -> Result<Value, PairingRefusal> {
        self.manage(by, Manage::Remove(device.clone())).await
    }

    /// `device.pair.rename`.
    ///
    /// # Errors
    /// [`PairingRefusal`].
    pub async fn rename(
        &self,
        by: &Principal,
        device: &DeviceId,
        label: &str,
    ) -> Result<Value, PairingRefusal> {
        self.manage(by, Manage::Rename(device.clone(), label.to_owned()))
            .await
    }

    /// `device.token.rotate`. The result holds the token when `by` is the device itself.
    ///
    /// # Errors
    /// [`PairingRefusal`].
    pub async fn rotate(
        &self,
        by: &Principal,
        device: &DeviceId,
        role: Role,
        scopes: Option<ScopeSet>,
    ) -> Result<Value, PairingRefusal> {
        self.manage(by, Manage::Rotate(device.clone(), role, scopes))
            .await
    }

    /// `device.token.revoke`.
    ///
    /// # Errors
    /// [`PairingRefusal`].
    pub async fn revoke(
        &self,
        by: &Principal,
        device: &DeviceId,
        role: Role,
    ) -> Result<Value, PairingRefusal> {
        self.manage(by, Manage::Revoke(device.clone(), role)).await
    }

    /// What a node may be asked, and what of it waits for a person. To be looked up each time before a node is asked
    /// something: an approval changes no connection, and a revocation ends the generation.
    ///
    /// # Errors
    /// [`PairingRefusal`]: then ask it nothing.
    pub async fn surface(&self, device: &DeviceId) -> Result<SurfaceState, PairingRefusal> {
        let device = device.clone();
        self.ask(|reply| PairingMsg::Surface(device, reply)).await
    }

    /// A connected node says what it offers, less what configuration forbids. What a person has not approved waits,
    /// and is not in the answer.
    ///
    /// # Errors
    /// [`PairingRefusal`].
    pub async fn declare_surface(
        &self,
        node: &Principal,
        declared: Declared,
    ) -> Result<Effective, PairingRefusal> {
        let unknown = portcullis_core::pairing::Refusal::UnknownNode;
        let device = node.device().filter(|_| node.role == Role::Node);
        let device = device.cloned().ok_or(unknown)?;
        let (generation, declared) = (node.generation, Box::new(declared));
        self.ask(|reply| PairingMsg::Declare(device, generation, declared, reply))
            .await
    }

    /// Makes a setup code: once, ten minutes, for this role and these scopes. A restart of the room ends it.
    ///
    /// # Errors
    /// [`PairingRefusal`].
    pub async fn make_code(
        &self,
        by: &Principal,
        role: Role,
        scopes: ScopeSet,
    ) -> Result<MadeCode, PairingRefusal> {
        let who = Box::new(By {
            caller: Caller::of(by),
            entry: entry_of(by),
        });
        let code = Box::new(NewCode {
            maker: Maker::of(by),
            role,
            scopes,
        });
        self.ask(|reply| PairingMsg::MakeCode(who, code, reply))
            .await
    }

    /// Who made a code that is good.
    ///
    /// # Errors
    /// [`PairingRefusal`].
    pub async fn code_maker(&self, id: &str) -> Result<Option<Maker>, PairingRefusal> {
        let id = id.to_owned();
        self.ask(|reply| PairingMsg::CodeMaker(id, reply)).await
    }

    /// A device whose signature has been verified brings a setup code. A wrong try counts against the code.
    ///
    /// # Errors
    /// [`PairingRefusal`].
    pub async fn use_code(
        &self,
        facts: ConnectFacts,
        presented: Presented,
    ) -> Result<CodeVerdict, PairingRefusal> {
        let facts = Box::new(facts);
        self.ask(|reply| PairingMsg::UseCode(facts, presented, reply))
            .await
    }

    /// `device.pair.setupStatus`.
    ///
    /// # Errors
    /// [`PairingRefusal`]: no such code is known.
    pub async fn code_status(&self, id: &str) -> Result<Value, PairingRefusal> {
        let id = id.to_owned();
        self.ask(|reply| PairingMsg::CodeStatus(id, reply)).await
    }

    /// `node.pair.list`.
    ///
    /// # Errors
    /// [`PairingRefusal`].
    pub async fn nodes(&self, by: &Principal) -> Result<Value, PairingRefusal> {
        let caller = Caller::of(by);
        self.ask(|reply| PairingMsg::Nodes(caller, reply)).await
    }

    /// `node.pair.approve`.
    ///
    /// # Errors
    /// [`PairingRefusal`].
    pub async fn approve_surface(
        &self,
        by: &Principal,
        request_id: &str,
    ) -> Result<Value, PairingRefusal> {
        self.manage(by, Manage::ApproveSurface(request_id.to_owned()))
            .await
    }

    /// `node.pair.reject`.
    ///
    /// # Errors
    /// [`PairingRefusal`].
    pub async fn reject_surface(
        &self,
        by: &Principal,
        request_id: &str,
    ) -> Result<Value, PairingRefusal> {
        self.manage(by, Manage::RejectSurface(request_id.to_owned()))
            .await
    }

    /// `node.pair.remove`: its role as a node, with its surface; nothing else of the device.
    ///
    /// # Errors
    /// [`PairingRefusal`].
    pub async fn remove_node(
        &self,
        by: &Principal,
        device: &DeviceId,
    ) -> Result<Value, PairingRefusal> {
        self.manage(by, Manage::RemoveNode(device.clone())).await
    }

    /// `node.rename`.
    ///
    /// # Errors
    /// [`PairingRefusal`].
    pub async fn rename_node(
        &self,
        by: &Principal,
        device: &DeviceId,
        name: &str,
    ) -> Result<Value, PairingRefusal> {
        self.manage(by, Manage::RenameNode(device.clone(), name.to_owned()))
            .await
    }

    /// Requests, decisions, and whose sessions must end. Subscribe before the first `decide`.
    pub fn news(&self) -> FeedReader<News> {
        self.news.subscribe()
    }

    async fn manage(&self, by: &Principal, what: Manage) -> Result<Value, PairingRefusal> {
        let by = Box::new(By {
            caller: Caller::of(by),
            entry: entry_of(by),
        });
        self.ask(|reply| PairingMsg::Manage(by, what, reply)).await
    }

    async fn ask<T>(
        &self,
        make: impl FnOnce(Reply<T, PairingRefusal>) -> PairingMsg,
    ) -> Result<T, PairingRefusal> {
        self.room
            .call(WITHIN, make)
            .await
            .map_err(|error| match error {
                CallError::Refused(refusal) => refusal,
                CallError::Overloaded => PairingRefusal::Overloaded,
                CallError::Unavailable { may_have_run } | CallError::Deadline { may_have_run } => {
                    PairingRefusal::Down { may_have_run }
                }
            })
    }
}
