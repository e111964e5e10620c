//! Who is connected, and which questions are open. One answer each: the first that comes from the very connection that
//! was asked; what comes later, or from elsewhere, changes nothing.

use std::collections::{BTreeMap, VecDeque};

use super::{Approved, Connected, Limits, Nodes, RUN, Refusal, Stats, allow_list, has_own_method};
use crate::display::visible;
use crate::ids::DeviceId;
use crate::time::Millis;

/// Longest text of a node's error that is passed on, characters.
const ERROR_MAX: usize = 2_000;
/// Longest code of a node's error.
const CODE_MAX: usize = 64;
/// Longest piece of progress, bytes.
const CHUNK_MAX: usize = 16_384;
/// Runs of which late news are still known as ours.
const RECENT: usize = 256;

/// A question to a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Whom.
    pub node: DeviceId,
    /// What.
    pub command: String,
    /// Its own limit, ms; none: the configured one.
    pub timeout_ms: Option<u64>,
    /// The run that it carries out, where it is one.
    pub run_id: Option<String>,
    /// Through a method of its own (`exec.approvals.node.*`), or a run that was decided on.
    pub by_gateway: bool,
}

/// A question that goes out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// To which connection.
    pub conn: String,
    /// What the node is told that is left of its time, ms.
    pub timeout_ms: u64,
}

/// What a node says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeResult {
    /// Of which question.
    pub id: String,
    /// Who the frame says it is.
    pub node_id: String,
    /// Its answer or its error: code and message, as sent.
    pub outcome: Result<Option<String>, (String, String)>,
}

/// What becomes of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// Of this open question, which is closed with it.
    Answer(Result<Option<String>, Refusal>),
    /// Of none that is open: late, or never asked.
    Ignored,
}

/// A question whose time is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// Which.
    pub id: String,
    /// Whom it went to.
    pub node: DeviceId,
    /// Over which connection.
    pub conn: String,
}

#[derive(Debug, Clone)]
struct Open {
    node: DeviceId,
    conn: String,
    due: Millis,
    run_id: Option<String>,
    /// The next number of progress that is taken.
    progress: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Machine {
    limits: Limits,
    nodes: Nodes,
    open: BTreeMap<String, Open>,
    /// Node, connection, run: newest last.
    recent: VecDeque<(DeviceId, String, String)>,
}

impl Machine {
    /// Nobody is connected.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            ..Self::default()
        }
    }

    /// A node host has come in. The connection that it replaces, if there is one: of one device the newest counts.
    ///
    /// # Errors
    /// [`Refusal::Full`].
    pub fn attach(&mut self, mut node: Connected) -> Result<Option<String>, Refusal> {
        if self.nodes.len() >= self.limits.nodes && !self.nodes.contains_key(&node.node) {
            return Err(Refusal::Full);
        }
        node.declared.cut();
        let old = self.nodes.insert(node.node.clone(), node);
        Ok(old.map(|old| old.conn))
    }

    /// This connection is gone. The questions that it leaves open. A newer connection of the same device stays.
    pub fn detach(&mut self, node: &DeviceId, conn: &str) -> Vec<String> {
        if self.nodes.get(node).is_some_and(|n| n.conn == conn) {
            self.nodes.remove(node);
        }
        let left: Vec<String> = self
            .open
            .iter()
            .filter(|(_, open)| open.node == *node && open.conn == conn)
            .map(|(id, _)| id.clone())
            .collect();
        for id in &left {
            self.open.remove(id);
        }
        left
    }

    /// One node.
    pub fn node(&self, node: &DeviceId) -> Option<&Connected> {
        self.nodes.get(node)
    }

    /// All of them.
    pub fn nodes(&self) -> impl Iterator<Item = &Connected> {
        self.nodes.values()
    }

    /// Questions without an answer.
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// May this be asked now? The commands that a person approved of this node, this gateway's allow list, and who asks.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn may(&self, call: &Call, approved: &Approved) -> Result<&Connected, Refusal> {
        let node = self.nodes.get(&call.node).ok_or(Refusal::NotConnected)?;
        // Its credential was changed since it came in: its socket is being closed.
        if approved.generation != Some(node.generation) {
            return Err(Refusal::NotConnected);
        }
        let command = call.command.as_str();
        let refuse = |reason, text: String| {
            Err(Refusal::NotAllowed {
                reason,
                command: visible(command).into_owned(),
                text,
            })
        };
        let shown = visible(command);
        let platform = node.declared.platform.as_deref().unwrap_or("unknown");
        let allowed = allow_list(node.declared.platform.as_deref());
        if !allowed.contains(&command) || (has_own_method(command) && !call.by_gateway) {
            return refuse(
                "command not allowlisted",
                format!(
                    "\"{shown}\" is not in the allowlist for platform \"{}\"",
                    visible(platform)
                ),
            );
        }
        // What runs code goes through the gate of approvals, whoever asks.
        if command == RUN && !call.by_gateway {
            return refuse(
                "command not allowlisted",
                format!("\"{shown}\" runs through the gate of approvals only"),
            );
        }
        if !node.declared.commands.contains(command) {
            return refuse(
                "command not declared by node",
                format!(
                    "the node (platform: {}) does not support \"{shown}\"",
                    visible(platform)
                ),
            );
        }
        if !approved.commands.contains(command) {
            return refuse(
                "node did not declare commands",
                "the node's declared command surface is pending approval; run `portcullis nodes pending`, then `portcullis nodes approve <requestId>`".to_owned(),
            );
        }
        Ok(node)
    }

    /// Opens a question under this id.
    ///
    /// # Errors
    /// [`Refusal`]: it is not asked.
    pub fn ask(
        &mut self,
        id: &str,
        call: &Call,
        approved: &Approved,
        now: Millis,
    ) -> Result<Sent, Refusal> {
        let conn = self.may(call, approved)?.conn.clone();
        let waiting = self.open.values().filter(|o| o.node == call.node).count();
        if waiting >= self.limits.per_node || self.open.len() >= self.limits.open {
            return Err(Refusal::TooMany);
        }
        let timeout_ms = call
            .timeout_ms
            .unwrap_or(self.limits.timeout_ms)
            .clamp(1, self.limits.timeout_max_ms);
        let open = Open {
            node: call.node.clone(),
            conn: conn.clone(),
            due: now.plus(timeout_ms),
            run_id: call.run_id.clone(),
            progress: 0,
        };
        self.open.insert(id.to_owned(), open);
        if let Some(run) = &call.run_id {
            if self.recent.len() >= RECENT {
                self.recent.pop_front();
            }
            self.recent
                .push_back((call.node.clone(), conn.clone(), run.clone()));
        }
        Ok(Sent { conn, timeout_ms })
    }

    /// An answer, from this device on this connection.
    ///
    /// # Errors
    /// [`Refusal::NodeMismatch`]: the frame names another node than the one that sends it.
    pub fn result(
        &mut self,
        node: &DeviceId,
        conn: &str,
        result: NodeResult,
    ) -> Result<Taken, Refusal> {
        if result.node_id != node.as_str() {
            return Err(Refusal::NodeMismatch);
        }
        let ours = self
            .open
            .get(&result.id)
            .is_some_and(|open| open.node == *node && open.conn == conn);
        if !ours {
            return Ok(Taken::Ignored);
        }
        self.open.remove(&result.id);
        Ok(Taken::Answer(result.outcome.map_err(|(code, message)| {
            let cut =
                |text: &str, most: usize| -> String { visible(text).chars().take(most).collect() };
            Refusal::Node {
                code: cut(&code, CODE_MAX),
                message: cut(&message, ERROR_MAX),
            }
        })))
    }

    /// A piece of progress. `true`: of an open question of this connection, the next in order.
    ///
    /// # Errors
    /// [`Refusal::NodeMismatch`], [`Refusal::ChunkTooLarge`].
    pub fn progress(
        &mut self,
        node: &DeviceId,
        conn: &str,
        named: &str,
        id: &str,
        seq: u64,
        chunk: &str,
    ) -> Result<bool, Refusal> {
        if named != node.as_str() {
            return Err(Refusal::NodeMismatch);
        }
        if chunk.len() > CHUNK_MAX {
            return Err(Refusal::ChunkTooLarge);
        }
        match self.open.get_mut(id) {
            Some(open) if open.node == *node && open.conn == conn && seq >= open.progress => {
                open.progress = seq.saturating_add(1);
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Is this news of a run that went to this node over this connection? A node cannot speak of runs it never had.
    pub fn knows_run(&self, node: &DeviceId, conn: &str, run: &str) -> bool {
        self.recent
            .iter()
            .any(|(n, c, r)| n == node && c == conn && r == run)
            || self.open.values().any(|open| {
                open.node == *node && open.conn == conn && open.run_id.as_deref() == Some(run)
            })
    }

    /// Its report on its machine.
    pub fn stats(&mut self, node: &DeviceId, conn: &str, stats: Stats) {
        if let Some(node) = self.nodes.get_mut(node).filter(|n| n.conn == conn) {
            node.stats = Some(stats);
        }
    }

    /// Its word on the workers it hosts.
    pub fn worker_host(&mut self, node: &DeviceId, conn: &str, enabled: bool) {
        if let Some(node) = self.nodes.get_mut(node).filter(|n| n.conn == conn) {
            node.worker_host = Some(enabled);
        }
    }

    /// Closes a question without an answer: where it went, if it was open.
    pub fn close(&mut self, id: &str) -> Option<Due> {
        let open = self.open.remove(id)?;
        Some(Due {
            id: id.to_owned(),
            node: open.node,
            conn: open.conn,
        })
    }

    /// Nobody wants this run any more: where it went, if it is open. Its answer is still waited for, but no longer than
    /// `until`.
    pub fn stop(&mut self, node: &DeviceId, run: &str, until: Millis) -> Option<Due> {
        let (id, open) = self
            .open
            .iter_mut()
            .find(|(_, open)| open.node == *node && open.run_id.as_deref() == Some(run))?;
        open.due = open.due.min(until);
        Some(Due {
            id: id.clone(),
            node: open.node.clone(),
            conn: open.conn.clone(),
        })
    }

    /// Closes what is over by the clock.
    pub fn due(&mut self, now: Millis) -> Vec<Due> {
        let over: Vec<String> = self
            .open
            .iter()
            .filter(|(_, open)| now >= open.due)
            .map(|(id, _)| id.clone())
            .collect();
        over.iter().filter_map(|id| self.close(id)).collect()
    }
}
