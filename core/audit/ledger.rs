//! What the writer must know of the log so far: its head, the open intents, the used keys.

use super::ended::{ENDS, Ended};
use super::entry::{Entry, OutcomeResult};
use super::epoch::{Epoch, EpochMark};
use super::hash::{BootId, Seq};
use super::once::{OnceIndex, OnceKey};
use super::record::{Body, BodyRef, LeafRef, ResultRef, Stamp};
use super::{Head, MAX_MARK_OPEN};
use std::collections::BTreeMap;

/// An intent without an outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenIntent {
    /// The boot that wrote it.
    pub boot: BootId,
    /// When, in that boot's monotonic time; unknown where only a mark names it.
    pub mono_ms: Option<u64>,
    /// Its end must not be undone: it takes something back, or may.
    pub is_weighty: bool,
}

/// The state that follows from reading records in order.
#[derive(Clone, Debug)]
pub struct Ledger {
    /// The newest record.
    pub head: Head,
    /// Intents without an outcome.
    pub open: BTreeMap<Seq, OpenIntent>,
    /// The idempotency keys.
    pub once: OnceIndex,
    /// The credentials that have ended.
    pub ended: Ended,
    /// The epoch that the records are in.
    pub epoch: Option<Epoch>,
    /// How often the state was changed, as far as the log says.
    pub state_rev: Option<u64>,
    /// The newest opening of the vault: what it must hold is read back from there on.
    pub opened: Option<Seq>,
}

impl Ledger {
    /// The state after `head` when nothing is open there.
    pub fn new(head: Head, once: OnceIndex) -> Self {
        Self {
            head,
            open: BTreeMap::new(),
            once,
            ended: Ended::default(),
            epoch: None,
            state_rev: None,
            opened: None,
        }
    }

    /// Takes in the record after the head, which has become `head`.
    pub fn observe(&mut self, leaf: &LeafRef<'_>, head: Head) {
        self.head = head;
        if matches!(leaf.body, BodyRef::Event(entry) if entry.action == OPENED) {
            self.opened = Some(leaf.seq);
        }
        if let BodyRef::Start {
            epoch, state_rev, ..
        }
        | BodyRef::Carry {
            epoch, state_rev, ..
        } = &leaf.body
        {
            self.enter(epoch.as_ref(), leaf.seq);
            self.state_rev = self.state_rev.max(*state_rev);
        }
        match leaf.body {
            BodyRef::Intent(entry) => {
                let mono_ms = Some(leaf.stamp.mono_ms);
                let boot = leaf.boot;
                let is_weighty = is_act_weighty(entry.action);
                let open = OpenIntent {
                    boot,
                    mono_ms,
                    is_weighty,
                };
                self.open.insert(leaf.seq, open);
                if may_end(entry.action)
                    && let Some((_, name)) = entry.detail().find(|(key, _)| *key == ENDS)
                {
                    self.ended.begin(name, leaf.seq);
                }
                if let Some(key) = entry.idempotency_key {
                    self.once.begin(
                        OnceKey::of(entry.principal, key),
                        leaf.seq,
                        leaf.stamp.wall_ms,
                    );
                }
            }
            BodyRef::Outcome { intent, outcome } => {
                self.open.remove(&intent);
                self.state_rev = self.state_rev.max(outcome.state_rev);
                if matches!(
                    outcome.result,
                    ResultRef::Refused { .. } | ResultRef::Failed { .. }
                ) {
                    self.ended.undone(intent);
                }
                self.once.end(intent, || outcome.result.to_result());
            }
            // A mark states the open intents in full: a reader may begin at it.
            BodyRef::Start {
                open: Some(open), ..
            }
            | BodyRef::Carry {
                open: Some(open), ..
            } => {
                let before = std::mem::take(&mut self.open);
                let named = |seq| {
                    let only = OpenIntent {
                        boot: leaf.boot,
                        mono_ms: None,
                        is_weighty: false,
                    };
                    // What was read itself says more.
                    let known = before.get(&seq).filter(|known| known.boot == leaf.boot);
                    (seq, known.copied().unwrap_or(only))
                };
                self.open = open.iter().map(named).collect();
            }
            _ => {}
        }
    }

    /// As [`Self::observe`], for a record just written from `body`.
    pub fn wrote(&mut self, body: &Body, stamp: Stamp, boot: BootId, head: Head) {
        self.head = head;
        match body {
            Body::Intent(entry) => {
                let mono_ms = Some(stamp.mono_ms);
                let open = OpenIntent {
                    boot,
                    mono_ms,
                    is_weighty: is_act_weighty(&entry.action),
                };
                self.open.insert(head.seq, open);
                if let Some(name) = entry.ends().filter(|_| may_end(&entry.action)) {
                    self.ended.begin(name, head.seq);
                }
                if let Some(key) = &entry.idempotency_key {
                    let key = OnceKey::of(entry.principal.as_deref(), key);
                    self.once.begin(key, head.seq, stamp.wall_ms);
                }
            }
            Body::Outcome { intent, outcome } => {
                self.open.remove(intent);
                self.state_rev = self.state_rev.max(outcome.state_rev);
                if matches!(
                    outcome.result,
                    OutcomeResult::Refused { .. } | OutcomeResult::Failed { .. }
                ) {
                    self.ended.undone(*intent);
                }
                self.once.end(*intent, || outcome.result.clone());
            }
            Body::Event(entry) if entry.action == OPENED => self.opened = Some(head.seq),
            // The writer's own marks state of the intents what is here already.
            Body::Start {
                epoch, state_rev, ..
            }
            | Body::Carry {
                epoch, state_rev, ..
            } => {
                self.enter(epoch.as_ref(), head.seq);
                self.state_rev = self.state_rev.max(*state_rev);
            }
            _ => {}
        }
    }

    fn enter(&mut self, mark: Option<&EpochMark>, seq: Seq) {
        if let Some(mark) = mark {
            self.epoch = Some(Epoch {
                number: mark.epoch,
                mark: seq,
                key: mark.key,
            });
        }
    }

    /// Whether this record states the open intents, so that nothing before it is needed to know them.
    pub const fn is_mark(body: &BodyRef<'_>) -> bool {
        matches!(
            body,
            BodyRef::Start { open: Some(_), .. } | BodyRef::Carry { open: Some(_), .. }
        )
    }

    /// The open intents for a mark, if they are few enough to list.
    pub fn open_list(&self) -> Option<Vec<Seq>> {
        (self.open.len() <= MAX_MARK_OPEN).then(|| self.open.keys().copied().collect())
    }
}

/// See [`Ledger::opened`].
const OPENED: &str = "vault.open";

/// Acts that may end a credential: the details of all others need not be looked through.
fn may_end(action: &str) -> bool {
    action.starts_with("pairing.") || action.starts_with("auth.")
}

/// Whether an older log must not be gone on from once this act is begun or has ended: it takes something back (a device, a
/// token, a grant, a rule, a secret), or uses an answer up.
pub fn is_weighty(entry: &Entry) -> bool {
    is_act_weighty(&entry.action) || (entry.action == "exec.run" && entry.approval_id.is_some())
}

fn is_act_weighty(action: &str) -> bool {
    let rooms = [
        "pairing.",
        "auth.",
        "signing.",
        "approval.resolve",
        "approval.grant.",
        "approval.policy.",
        "vault.",
    ];
    rooms.iter().any(|room| action.starts_with(room)) && action != "vault.use"
}
