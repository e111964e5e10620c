//! The way to the log for every other room.

use super::actor::Audit;
use super::error::AuditError;
use super::log::Clock;
use super::messages::{AuditMsg, Refused};
use super::offline::VerifyReport;
use super::proofs::{Consistency, Inclusion, Signed};
use super::read::Found;
use super::unwritten::Unwritten;
use crate::supervision::{CallError, Feed, FeedReader, Handle, Policy, Reply, TreeBuilder};
use portcullis_core::audit::verify::Outside;
use portcullis_core::audit::{Body, Entry, Head, Once, OnceKey, Outcome, Query, Record, Seq};
use portcullis_core::time::Millis;
use std::sync::Arc;
use std::time::Duration;

/// For everything but `verify`.
const WITHIN: Duration = Duration::from_secs(5);
/// `verify` reads the whole log.
const VERIFY_WITHIN: Duration = Duration::from_mins(10);
/// The most records of one `tail`.
const MAX_TAIL: usize = 1_000;
/// Requests the room takes at once.
const CAPACITY: usize = 1_024;

/// Records acts. Clone it freely; it survives restarts of the room.
#[derive(Clone, Debug)]
pub struct AuditHandle {
    room: Handle<AuditMsg>,
    feed: Feed<Arc<Record>>,
    unwritten: Arc<Unwritten>,
    clock: Clock,
}

impl AuditHandle {
    /// Adds the room to a tree; without it nothing may act, so it is critical.
    pub fn add(tree: &mut TreeBuilder, wiring: super::AuditWiring) -> Self {
        let (feed, unwritten) = (wiring.feed.clone(), wiring.unwritten.clone());
        let clock = wiring.clock;
        let policy = Policy::new(CAPACITY)
            .critical()
            .start_within(Duration::from_mins(5));
        let room = tree.room::<Audit>(policy, wiring);
        Self {
            room,
            feed,
            unwritten,
            clock,
        }
    }

    /// A privileged act is about to happen. Durable when it returns; on an error the act must be refused.
    ///
    /// # Errors
    /// [`AuditError`]: with `Down` or `Deadline` the intent may be in the log without an outcome.
    pub async fn intent(&self, entry: Entry) -> Result<Seq, AuditError> {
        self.append(Body::intent(entry)?).await
    }

    /// As [`Self::intent`], unless the log has the entry's (principal, idempotency key) already: a retry after a crash
    /// gets what became of the first try. Without a key it is always new.
    ///
    /// # Errors
    /// As [`Self::intent`].
    pub async fn intent_once(&self, entry: Entry, refused: Refused) -> Result<Once, AuditError> {
        let body = Box::new(Body::intent(entry)?);
        self.ask(WITHIN, |reply| AuditMsg::Once(body, refused, reply))
            .await
    }

    /// What was recorded under the entry's idempotency key, if it has one: a look ahead, for what would have to be recorded before
    /// the intent. The intent itself is still asked by [`Self::intent_once`].
    ///
    /// # Errors
    /// The room does not answer.
    pub async fn seen(&self, entry: &Entry) -> Result<Option<Once>, AuditError> {
        let Some(key) = &entry.idempotency_key else {
            return Ok(None);
        };
        let key = OnceKey::of(entry.principal.as_deref(), key);
        self.ask(WITHIN, |reply| AuditMsg::Seen(key, reply)).await
    }

    /// The act of that intent ended so. Durable when it returns; what the log cannot take now is recorded as soon as it takes
    /// records again (a crash of the daemon before that leaves `unknown`).
    ///
    /// # Errors
    /// [`AuditError::NotOpen`] for an intent that is closed already; others as [`Self::intent`].
    pub async fn outcome(&self, intent: Seq, outcome: Outcome) -> Result<Seq, AuditError> {
        let body = Body::outcome(intent, outcome.clone())?;
        let recorded = self.append(body).await;
        if let Err(error) = &recorded {
            self.unwritten.owe(intent, &outcome, error);
        }
        recorded
    }

    /// As [`Self::outcome`], for an act that is not done unless its outcome is on record: one that failed is not recorded later.
    ///
    /// # Errors
    /// As [`Self::outcome`].
    pub async fn outcome_first(&self, intent: Seq, outcome: Outcome) -> Result<Seq, AuditError> {
        self.append(Body::outcome(intent, outcome)?).await
    }

    /// Something happened that needs no outcome. Durable when it returns.
    ///
    /// # Errors
    /// As [`Self::intent`].
    pub async fn event(&self, entry: Entry) -> Result<Seq, AuditError> {
        self.append(Body::event(entry)?).await
    }

    /// As [`Self::event`], for what nothing waits for: one that does not reach the log is counted, and a gap record says
    /// how many were lost as soon as the log takes records again.
    ///
    /// # Errors
    /// As [`Self::event`]; it is counted already.
    pub async fn note(&self, entry: Entry) -> Result<Seq, AuditError> {
        let noted = self.event(entry).await;
        if let Err(error) = &noted {
            self.lost(1, error);
        }
        noted
    }

    /// So many events were passed over by who would have noted them: a gap record says how many.
    pub fn passed_over(&self, count: u64) {
        self.lost(count, &AuditError::Overloaded);
    }

    /// So many events are not in the log, and this is why.
    fn lost(&self, count: u64, error: &AuditError) {
        // The log counts what it had and could not write.
        let is_counted = matches!(error, AuditError::CannotRecord(_) | AuditError::DiskFull);
        if !is_counted {
            let now = self.clock.stamp().wall_ms;
            self.unwritten
                .dropped
                .update(|dropped| dropped.add(count, now, error.code()));
        }
    }

    /// The newest durable record.
    ///
    /// # Errors
    /// The room does not answer.
    pub async fn head(&self) -> Result<Head, AuditError> {
        self.ask(WITHIN, AuditMsg::Head).await
    }

    /// The wall clock of the newest record that was there before the log was opened: a start whose clock lies before it has
    /// a clock that was set back.
    ///
    /// # Errors
    /// The room does not answer.
    pub async fn newest_before(&self) -> Result<Millis, AuditError> {
        self.ask(WITHIN, AuditMsg::Before).await
    }

    /// Why nothing can be recorded now, where that is so.
    ///
    /// # Errors
    /// The room does not answer.
    pub async fn broken(&self) -> Result<Option<AuditError>, AuditError> {
        self.ask(WITHIN, AuditMsg::Broken).await
    }

    /// The last `n` records (1,000 at most) in rising order.
    ///
    /// # Errors
    /// A file cannot be read, or the room does not answer.
    pub async fn tail(&self, n: usize) -> Result<Vec<Arc<Record>>, AuditError> {
        let n = n.min(MAX_TAIL);
        self.ask(WITHIN, |reply| AuditMsg::Tail(n, reply)).await
    }

    /// The newest matches in rising order, each intent with its outcome. To page back, ask again with `until_seq` before
    /// the first.
    ///
    /// # Errors
    /// A file cannot be read or is altered, or the room does not answer.
    pub async fn query(&self, query: Query) -> Result<Vec<Found>, AuditError> {
        let query = Box::new(query);
        self.ask(WITHIN, |reply| AuditMsg::Query(query, reply))
            .await
    }

    /// Reads the whole log again and checks every byte. What is wrong with the bytes is in the report.
    ///
    /// # Errors
    /// A file cannot be read, or the room does not answer.
    pub async fn verify(&self) -> Result<VerifyReport, AuditError> {
        self.verify_against(Outside::default()).await
    }

    /// As [`Self::verify`], and compares it with what somebody holds outside of this machine.
    ///
    /// # Errors
    /// As [`Self::verify`].
    pub async fn verify_against(&self, outside: Outside) -> Result<VerifyReport, AuditError> {
        let outside = Box::new(outside);
        self.ask(VERIFY_WITHIN, |reply| AuditMsg::Verify(outside, reply))
            .await
    }

    /// The records from `from` on, 1,000 at most, in rising order.
    ///
    /// # Errors
    /// As [`Self::tail`].
    pub async fn records(&self, from: Seq, limit: usize) -> Result<Vec<Record>, AuditError> {
        let limit = limit.min(MAX_TAIL);
        self.ask(WITHIN, |reply| AuditMsg::Records(from, limit, reply))
            .await
    }

    /// The log as its writer signs for it now.
    ///
    /// # Errors
    /// The room does not answer.
    pub async fn sign(&self) -> Result<Signed, AuditError> {
        self.ask(WITHIN, AuditMsg::Sign).await
    }

    /// Proves that the record is in the log as it is now.
    ///
    /// # Errors
    /// There is no such record, a tile cannot be read, or the room does not answer.
    pub async fn prove(&self, seq: Seq) -> Result<Inclusion, AuditError> {
        self.ask(WITHIN, |reply| AuditMsg::Prove(seq, reply)).await
    }

    /// Proves that the log of `new` records (0: all) goes on from that of `old` records.
    ///
    /// # Errors
    /// As [`Self::prove`].
    pub async fn consistency(&self, old: u64, new: u64) -> Result<Consistency, AuditError> {
        self.ask(WITHIN, |reply| AuditMsg::Consistency(old, new, reply))
            .await
    }

    /// Hears each record once it is durable.
    pub fn watch(&self) -> FeedReader<Arc<Record>> {
        self.feed.subscribe()
    }

    /// Whether the room serves.
    pub fn is_up(&self) -> bool {
        self.room.is_up()
    }

    async fn append(&self, body: Body) -> Result<Seq, AuditError> {
        let body = Box::new(body);
        self.ask(WITHIN, |reply| AuditMsg::Append(body, reply))
            .await
    }

    async fn ask<T>(
        &self,
        within: Duration,
        make: impl FnOnce(Reply<T, AuditError>) -> AuditMsg,
    ) -> Result<T, AuditError> {
        self.room
            .call(within, make)
            .await
            .map_err(|error| match error {
                CallError::Refused(error) => error,
                CallError::Overloaded => AuditError::Overloaded,
                CallError::Unavailable { may_have_run } => AuditError::Down { may_have_run },
                CallError::Deadline { may_have_run } => AuditError::Deadline { may_have_run },
            })
    }
}
