//! The way to nodes for other rooms.

use std::time::Duration;

use portcullis_core::audit::Entry;
use portcullis_core::auth::Principal;
use portcullis_core::ids::DeviceId;
use portcullis_core::nodes::{Approved, Connected, NodeResult, Refusal, Standing, Stats};
use portcullis_core::pairing::{self, Surface};
use tokio::sync::mpsc;

use super::actor::Nodes;
use super::messages::{ActRefusal, Line, NodesError, NodesMsg, NodesWiring, Question, ToNode};
use crate::audit::AuditError;
use crate::pairing::{PairingHandle, PairingRefusal};
use crate::supervision::{CallError, Handle, Policy, Reply, TreeBuilder};

const WITHIN: Duration = Duration::from_secs(5);
/// After a question's own time, which the room keeps.
const GRACE: Duration = Duration::from_secs(5);
/// Messages the room takes at once, questions that wait for their answers among them.
const CAPACITY: usize = 1_024;
/// Events that wait for one node's socket.
const LINE: usize = 64;

/// Handle to nodes. Clone it freely; it survives restarts of the room.
#[derive(Clone, Debug)]
pub struct NodesHandle {
    room: Handle<NodesMsg>,
    pairing: PairingHandle,
    timeout: Duration,
}

impl NodesHandle {
    /// Adds the room to a tree.
    pub fn add(tree: &mut TreeBuilder, wiring: NodesWiring) -> Self {
        let pairing = wiring.pairing.clone();
        let timeout = Duration::from_millis(wiring.config.timeout_ms);
        Self {
            room: tree.room::<Nodes>(Policy::new(CAPACITY), wiring),
            pairing,
            timeout,
        }
    }

    /// A node host is in. What comes through the line goes to it; the line ends when the room does, and with the
    /// receiver the node is gone.
    ///
    /// # Errors
    /// [`NodesError`].
    pub async fn attach(&self, node: Connected) -> Result<Line, NodesError> {
        let (tx, line) = mpsc::channel::<ToNode>(LINE);
        let node = Box::new(node);
        self.call(WITHIN, |reply| NodesMsg::Attach(node, tx, reply))
            .await?;
        Ok(line)
    }

    /// A node host says what it offers: more than was approved waits for a person.
    ///
    /// # Errors
    /// [`NodesError`].
    pub async fn declare(&self, by: &Principal, node: &Connected) -> Result<(), NodesError> {
        let declared = &node.declared;
        let offered = pairing::Declared {
            surface: Surface {
                caps: declared.caps.clone(),
                commands: declared.commands.clone(),
                permissions: declared.permissions.clone(),
            },
            version: Some(declared.version.clone()),
        };
        let done = self.pairing.declare_surface(by, offered).await;
        done.map(drop).map_err(of_pairing)
    }

    /// What pairing knows of a node's surface, now.
    ///
    /// # Errors
    /// [`NodesError`].
    pub async fn standing(&self, node: &DeviceId) -> Result<Standing, NodesError> {
        let known = self.pairing.surface(node).await.map_err(of_pairing)?;
        let state = match (&known.approved, &known.pending) {
            (Some(_), None) => "approved",
            (Some(_), Some(_)) => "pending-reapproval",
            (None, Some(_)) => "pending-approval",
            (None, None) => "unapproved",
        };
        Ok(Standing {
            state,
            request_id: known.pending.map(|pending| pending.request_id),
            approved_at: known.approved.as_ref().map(|a| a.approved_at_ms),
            approved: known
                .approved
                .map(|a| a.surface.commands)
                .unwrap_or_default(),
        })
    }

    /// Asks a node and waits for its answer: JSON text, or nothing. What it may be asked is looked up now.
    ///
    /// # Errors
    /// [`NodesError`].
    pub async fn ask(&self, question: Question) -> Result<Option<String>, NodesError> {
        let approved = approved(&self.pairing, &question).await?;
        let within = self.within(&question);
        let question = Box::new(question);
        self.call(within, |reply| NodesMsg::Ask(question, approved, reply))
            .await
    }

    /// Asks a node for what changes something there: the intent is durable before, the outcome after. Both are the room's:
    /// whoever asked may have gone by then.
    ///
    /// # Errors
    /// [`AuditError`]: it could not be recorded, so the node was not asked. Within: what became of the question.
    pub async fn ask_recorded(
        &self,
        entry: Entry,
        question: Question,
    ) -> Result<Result<Option<String>, NodesError>, AuditError> {
        // The log's time comes before the question's own and after it.
        let within = self.within(&question).saturating_add(GRACE * 2);
        let (entry, question) = (Box::new(entry), Box::new(question));
        let done = self
            .room
            .call(within, |reply| NodesMsg::Act(entry, question, reply))
            .await;
        match done {
            Ok(answer) => Ok(Ok(answer)),
            Err(CallError::Refused(ActRefusal::Log(error))) => Err(error),
            Err(CallError::Refused(ActRefusal::Node(error))) => Ok(Err(error)),
            Err(CallError::Overloaded) => Ok(Err(NodesError::Overloaded)),
            Err(CallError::Unavailable { may_have_run } | CallError::Deadline { may_have_run }) => {
                Ok(Err(NodesError::Down { may_have_run }))
            }
        }
    }

    fn within(&self, question: &Question) -> Duration {
        let own = question.call.timeout_ms.map(Duration::from_millis);
        own.unwrap_or(self.timeout).saturating_add(GRACE)
    }

    /// A node's answer. `false`: of no open question.
    ///
    /// # Errors
    /// [`NodesError`].
    pub async fn result(
        &self,
        node: &DeviceId,
        conn: &str,
        result: NodeResult,
    ) -> Result<bool, NodesError> {
        let (node, conn) = (node.clone(), conn.to_owned());
        self.call(WITHIN, |reply| NodesMsg::Result(node, conn, result, reply))
            .await
    }

    /// A piece of a node's progress: who it says it is, of which question, its number, its text. `false`: not taken.
    ///
    /// # Errors
    /// [`NodesError`].
    pub async fn progress(
        &self,
        node: &DeviceId,
        conn: &str,
        (named, id, seq, chunk): (String, String, u64, String),
    ) -> Result<bool, NodesError> {
        let (node, conn) = (node.clone(), conn.to_owned());
        self.call(WITHIN, |reply| NodesMsg::Progress {
            node,
            conn,
            named,
            id,
            seq,
            chunk,
            reply,
        })
        .await
    }

    /// Tells a node to end a run; the question's own answer comes when it has, or soon after without its word. `false`: it
    /// was not asked for it yet.
    ///
    /// # Errors
    /// [`NodesError`].
    pub async fn stop(&self, node: &DeviceId, run: &str) -> Result<bool, NodesError> {
        let (node, run) = (node.clone(), run.to_owned());
        self.call(WITHIN, |reply| NodesMsg::Stop(node, run, reply))
            .await
    }

    /// Did this run go to this node over this connection?
    ///
    /// # Errors
    /// [`NodesError`].
    pub async fn knows_run(
        &self,
        node: &DeviceId,
        conn: &str,
        run: &str,
    ) -> Result<bool, NodesError> {
        let (node, conn, run) = (node.clone(), conn.to_owned(), run.to_owned());
        self.call(WITHIN, |reply| NodesMsg::KnowsRun(node, conn, run, reply))
            .await
    }

    /// A node's report on its machine.
    ///
    /// # Errors
    /// [`NodesError`].
    pub async fn stats(&self, node: &DeviceId, conn: &str, stats: Stats) -> Result<(), NodesError> {
        let (node, conn) = (node.clone(), conn.to_owned());
        self.call(WITHIN, |reply| NodesMsg::Stats(node, conn, stats, reply))
            .await
    }

    /// A node's word on the workers it hosts.
    ///
    /// # Errors
    /// [`NodesError`].
    pub async fn worker_host(
        &self,
        node: &DeviceId,
        conn: &str,
        enabled: bool,
    ) -> Result<(), NodesError> {
        let (node, conn) = (node.clone(), conn.to_owned());
        self.call(WITHIN, |reply| {
            NodesMsg::WorkerHost(node, conn, enabled, reply)
        })
        .await
    }

    /// The connected ones.
    ///
    /// # Errors
    /// [`NodesError`].
    pub async fn list(&self) -> Result<Vec<Connected>, NodesError> {
        self.call(WITHIN, NodesMsg::List).await
    }

    /// Whether the room serves.
    pub fn is_up(&self) -> bool {
        self.room.is_up()
    }

    async fn call<T>(
        &self,
        within: Duration,
        make: impl FnOnce(Reply<T, Refusal>) -> NodesMsg,
    ) -> Result<T, NodesError> {
        self.room
            .call(within, make)
            .await
            .map_err(|error| match error {
                CallError::Refused(refusal) => NodesError::Refused(refusal),
                CallError::Overloaded => NodesError::Overloaded,
                CallError::Unavailable { may_have_run } | CallError::Deadline { may_have_run } => {
                    NodesError::Down { may_have_run }
                }
            })
    }
}

/// Nothing was sent to the node yet.
#[expect(clippy::needless_pass_by_value, reason = "as map_err gives it")]
fn of_pairing(refusal: PairingRefusal) -> NodesError {
    match refusal {
        PairingRefusal::Overloaded => NodesError::Overloaded,
        PairingRefusal::Rule(_) => NodesError::Refused(Refusal::NotFound),
        PairingRefusal::Act(_) | PairingRefusal::Down { .. } => NodesError::Down {
            may_have_run: false,
        },
    }
}

/// What a node may be asked, by pairing's word of now.
pub(super) async fn approved(
    pairing: &PairingHandle,
    question: &Question,
) -> Result<Approved, NodesError> {
    let known = pairing.surface(&question.call.node).await;
    let known = known.map_err(of_pairing)?;
    Ok(Approved {
        commands: known
            .approved
            .map(|a| a.surface.commands)
            .unwrap_or_default(),
        generation: known.generation,
    })
}
