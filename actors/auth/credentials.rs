//! What the room knows of secrets: rows of the store, read at each start and changed under an audit intent.

use std::collections::BTreeMap;
use std::sync::Arc;

use portcullis_core::auth::password::PasswordHash;
use portcullis_core::auth::proxy::lets_in;
use portcullis_core::auth::secret::SharedHash;
use portcullis_core::auth::{Principal, SecretName};
use portcullis_core::ids::AgentId;
use portcullis_core::time::Millis;
use portcullis_core::token::TokenHash;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::messages::Change;
use crate::store::{Object, Op, Store, StoreError};

const SHARED: &str = "auth.shared";
const AGENT: &str = "auth.agent";
const PASSWORD: &str = "auth.password";
/// The one row of its kind.
const ONLY: &str = "shared";
const FORMAT: u8 = 1;

/// The shared secret that the gateway is started with.
#[derive(Debug, Clone)]
pub enum SharedSecret {
    /// By environment or file: it is changed there, and not by us.
    Given(SharedHash),
    /// Made at this start, because the state has none: the room keeps it.
    Made(TokenHash),
    /// The state has it.
    Kept,
}

impl SharedSecret {
    /// Has the state one?
    ///
    /// # Errors
    /// The store's.
    pub async fn is_kept(store: &Store) -> Result<bool, StoreError> {
        store.get(SHARED, ONLY).await.map(|row| row.is_some())
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SharedRow {
    v: u8,
    sha256: TokenHash,
    created_at_ms: Millis,
}

/// The token of one agent.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct AgentRow {
    v: u8,
    pub agent: AgentId,
    pub sha256: TokenHash,
    pub created_at_ms: Millis,
    /// The sequence of the intent under which it was minted.
    #[serde(skip)]
    pub generation: u64,
}

/// The password of one name.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct PasswordRow {
    v: u8,
    pub name: String,
    pub hash: PasswordHash,
    pub created_at_ms: Millis,
    /// The sequence of the intent under which it was set.
    #[serde(skip)]
    pub generation: u64,
}

/// See the module. Cloned for each connect that is decided, so that it decides on one state.
#[derive(Debug, Clone, Default)]
pub(super) struct Credentials {
    /// None: nobody has it.
    pub shared: Option<SharedHash>,
    pub is_given: bool,
    /// Made at this start, and not in the state yet.
    pub unkept: Option<TokenHash>,
    pub agents: BTreeMap<AgentId, AgentRow>,
    pub passwords: BTreeMap<String, PasswordRow>,
    /// Whom a trusted proxy may name, as the configuration has it.
    proxy_users: Arc<[String]>,
    /// Of the shared token: the sequence of the intent of its last rotation.
    shared_generation: u64,
    /// Revision of each row, by kind and id: for conditional writes.
    rows: BTreeMap<(&'static str, String), u64>,
    pub left_out: usize,
}

impl Credentials {
    /// Rows whose intent the log does not hold, and damaged ones, open nothing.
    pub async fn read(
        store: &Store,
        started_with: &SharedSecret,
        proxy_users: &Arc<[String]>,
        head: u64,
    ) -> Result<Self, StoreError> {
        let mut all = Self {
            is_given: matches!(started_with, SharedSecret::Given(_)),
            proxy_users: proxy_users.clone(),
            ..Self::default()
        };
        let shared = store.list_all(SHARED).await?;
        let is_kept = !shared.is_empty();
        let shared = all.rows_of::<SharedRow>(SHARED, shared, head, |row, id| {
            row.v == FORMAT && id == ONLY
        });
        all.shared = match started_with {
            SharedSecret::Given(hash) => Some(hash.clone()),
            SharedSecret::Made(hash) if !is_kept => {
                all.unkept = Some(hash.clone());
                Some(SharedHash::Random(hash.clone()))
            }
            // One that cannot be read: nobody has it, until it is rotated.
            SharedSecret::Made(_) | SharedSecret::Kept => {
                shared.into_iter().next().map(|(row, generation)| {
                    all.shared_generation = generation;
                    SharedHash::Random(row.sha256)
                })
            }
        };
        let agents = store.list_all(AGENT).await?;
        let agents = all.rows_of::<AgentRow>(AGENT, agents, head, |row, id| {
            row.v == FORMAT && row.agent.as_str() == id
        });
        all.agents = agents
            .into_iter()
            .map(|(row, generation)| (row.agent.clone(), AgentRow { generation, ..row }))
            .collect();
        let passwords = store.list_all(PASSWORD).await?;
        let passwords = all.rows_of::<PasswordRow>(PASSWORD, passwords, head, |row, id| {
            row.v == FORMAT && row.name == id
        });
        all.passwords = passwords
            .into_iter()
            .map(|(row, generation)| (row.name.clone(), PasswordRow { generation, ..row }))
            .collect();
        Ok(all)
    }

    /// The write that keeps a token that was made, and what is held after it.
    pub fn keep(
        &self,
        hash: &TokenHash,
        intent: u64,
        now: Millis,
    ) -> Result<(Op, Self), &'static str> {
        let row = SharedRow {
            v: FORMAT,
            sha256: hash.clone(),
            created_at_ms: now,
        };
        let payload = serde_json::to_vec(&row).map_err(|_| "a row that is no JSON")?;
        let next = Self {
            unkept: None,
            shared_generation: intent,
            ..self.clone()
        };
        Ok((Op::create(SHARED, ONLY, intent, payload), next))
    }

    /// The store has it.
    pub fn kept(&mut self, rev: u64) {
        self.rows.insert((SHARED, ONLY.to_owned()), rev);
    }

    fn rows_of<T: DeserializeOwned>(
        &mut self,
        kind: &'static str,
        objects: Vec<Object>,
        head: u64,
        is_sound: impl Fn(&T, &str) -> bool,
    ) -> Vec<(T, u64)> {
        let mut found = Vec::with_capacity(objects.len());
        for object in objects {
            let value = serde_json::from_slice::<T>(&object.payload).ok();
            match value.filter(|value| object.intent <= head && is_sound(value, &object.id)) {
                Some(value) => found.push((value, object.intent)),
                None => self.left_out += 1,
            }
            self.rows.insert((kind, object.id), object.rev);
        }
        found
    }

    /// The write of a change, and what is held after it.
    pub fn after(
        &self,
        change: &Change,
        intent: u64,
        now: Millis,
    ) -> Result<(Op, Self), &'static str> {
        let mut next = self.clone();
        let bytes =
            |row: Result<Vec<u8>, serde_json::Error>| row.map_err(|_| "a row that is no JSON");
        let (kind, id, payload) = match change {
            Change::RotateShared(token) => {
                next.shared = Some(SharedHash::Random(token.hash()));
                next.shared_generation = intent;
                let row = SharedRow {
                    v: FORMAT,
                    sha256: token.hash(),
                    created_at_ms: now,
                };
                (
                    SHARED,
                    ONLY.to_owned(),
                    Some(bytes(serde_json::to_vec(&row))?),
                )
            }
            Change::MintAgent(agent, token) => {
                let row = AgentRow {
                    v: FORMAT,
                    agent: agent.clone(),
                    sha256: token.hash(),
                    created_at_ms: now,
                    generation: intent,
                };
                let payload = bytes(serde_json::to_vec(&row))?;
                next.agents.insert(agent.clone(), row);
                (AGENT, agent.to_string(), Some(payload))
            }
            Change::RevokeAgent(agent) => {
                next.agents.remove(agent);
                (AGENT, agent.to_string(), None)
            }
            Change::KeepPassword(name, hash) => {
                let row = PasswordRow {
                    v: FORMAT,
                    name: name.clone(),
                    hash: hash.clone(),
                    created_at_ms: now,
                    generation: intent,
                };
                let payload = bytes(serde_json::to_vec(&row))?;
                next.passwords.insert(name.clone(), row);
                (PASSWORD, name.clone(), Some(payload))
            }
            Change::RemovePassword(name) => {
                next.passwords.remove(name);
                (PASSWORD, name.clone(), None)
            }
        };
        let rev = self.rows.get(&(kind, id.clone())).copied();
        let op = match (payload, rev) {
            (Some(payload), Some(rev)) => Op::compare_and_set(kind, &id, intent, rev, payload),
            (Some(payload), None) => Op::create(kind, &id, intent, payload),
            (None, Some(rev)) => Op::delete_if(kind, &id, intent, rev),
            (None, None) => return Err("a row to delete that is not there"),
        };
        Ok((op, next))
    }

    /// The store has it: its row's new revision.
    pub fn settle(&mut self, change: &Change, rev: u64) {
        let (key, is_gone) = match change {
            Change::RotateShared(_) => ((SHARED, ONLY.to_owned()), false),
            Change::MintAgent(agent, _) => ((AGENT, agent.to_string()), false),
            Change::RevokeAgent(agent) => ((AGENT, agent.to_string()), true),
            Change::KeepPassword(name, _) => ((PASSWORD, name.clone()), false),
            Change::RemovePassword(name) => ((PASSWORD, name.clone()), true),
        };
        if is_gone {
            self.rows.remove(&key);
        } else {
            self.rows.insert(key, rev);
        }
    }

    /// The generation of a secret that opens a door; `None`: there is no such secret.
    pub fn generation(&self, secret: &SecretName) -> Option<u64> {
        match secret {
            SecretName::Token => self.shared.as_ref().map(|_| self.shared_generation),
            SecretName::Agent(agent) => self.agents.get(agent).map(|row| row.generation),
            SecretName::Password(name) => self.passwords.get(name).map(|row| row.generation),
            // The list is read at start: who leaves it has none from then on, and what rested on it is void.
            SecretName::ProxyUser(user) => lets_in(&self.proxy_users, user).then_some(0),
        }
    }

    /// Is the secret behind this session still the one that opens the door?
    pub fn holds(&self, principal: &Principal) -> bool {
        principal
            .secret
            .as_ref()
            .is_none_or(|standing| self.generation(&standing.secret) == Some(standing.generation))
    }
}
