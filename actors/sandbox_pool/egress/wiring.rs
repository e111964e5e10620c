//! What a box's way out is started with.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use portcullis_core::egress::{Addresses, Rules, Terminations};
use portcullis_core::ids::{AgentId, BoxId, RunId};

use super::asks::HostQuestions;
use super::authority::Opener;
use super::resolve::Resolver;
use crate::audit::AuditHandle;
use crate::supervision::{Allowance, FlagReader, Paced};

/// Names that are looked up at once for all boxes of one agent, or of those that share one: each takes a thread until the system has answered.
/// Of boxes there are as many as the pool has, so of threads there are twice as many, and nobody waits for another agent's.
const LOOKUPS: u64 = 2;

/// Ceilings of one box's way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EgressLimits {
    /// Connections at once; more are refused.
    pub connections: usize,
    /// Connections in a row, and how many more of them each second allows.
    pub burst: u32,
    /// See `burst`.
    pub per_second: u32,
    /// Refusals that are recorded in a row; then one a second, and the others are counted.
    pub recorded: u32,
    /// For a whole head of a request, and for a whole hello.
    pub head: Duration,
    /// To find a name.
    pub lookup: Duration,
    /// To reach a host, over all its addresses.
    pub dial: Duration,
    /// Without a byte in either direction.
    pub idle: Duration,
    /// From the first byte to the last.
    pub total: Duration,
    /// For a person's word about a host; then the client is told to try again.
    pub ask: Duration,
}

impl Default for EgressLimits {
    fn default() -> Self {
        Self {
            connections: 64,
            burst: 256,
            per_second: 32,
            recorded: 60,
            head: Duration::from_secs(10),
            lookup: Duration::from_secs(10),
            dial: Duration::from_secs(10),
            idle: Duration::from_mins(5),
            total: Duration::from_hours(2),
            ask: Duration::from_secs(20),
        }
    }
}

/// What all boxes' ways out share.
#[derive(Debug, Clone)]
pub struct Ways {
    pub(in crate::sandbox_pool) audit: AuditHandle,
    pub(super) resolver: Resolver,
    pub(super) limits: EgressLimits,
    /// The searches of answers of all boxes.
    pub(super) searches: Arc<Paced>,
    pub(super) opener: Option<Opener>,
    pub(super) questions: Option<HostQuestions>,
}

impl Ways {
    /// With the system's resolver.
    pub fn new(audit: AuditHandle) -> Self {
        Self::with(audit, Resolver::system(), EgressLimits::default())
    }

    /// With a resolver and limits of the caller's own.
    pub fn with(audit: AuditHandle, resolver: Resolver, limits: EgressLimits) -> Self {
        Self {
            audit,
            resolver,
            limits,
            searches: Paced::of_all(),
            opener: None,
            questions: None,
        }
    }

    /// Besides, TLS of hosts can be opened.
    #[must_use]
    pub fn opening(mut self, opener: Opener) -> Self {
        self.opener = Some(opener);
        self
    }

    /// Besides, people can be asked about hosts.
    #[must_use]
    pub fn asking(mut self, questions: HostQuestions) -> Self {
        self.questions = Some(questions);
        self
    }

    /// The lookups of one agent's boxes together.
    pub fn lookups() -> Arc<Allowance> {
        Allowance::of_all(LOOKUPS)
    }
}

/// What one box's way out is started with.
#[derive(Clone)]
pub struct EgressWiring {
    /// What all share.
    pub ways: Ways,
    /// Which hosts.
    pub rules: Rules,
    /// Which of their addresses.
    pub addresses: Addresses,
    /// Hosts whose TLS is opened, and the secrets for them.
    pub terminate: Terminations,
    /// The agents whose runs may be in the box, each of which must be allowed a secret; none: others may be, too.
    pub agents: Option<Arc<[String]>>,
    /// For whom a person is asked about a host that no rule names; none: nobody is.
    pub asks_for: Option<AgentId>,
    /// The section of the configuration where the rules stand, for who asks how to change them.
    pub section: String,
    /// Lookups of all boxes of whose it is.
    pub lookups: Arc<Allowance>,
    /// Whose box, for people.
    pub whose: String,
    /// Whose, in the log.
    pub principal: String,
    /// Which.
    pub id: BoxId,
    /// Its control folder; the socket is `e` in it.
    pub run_dir: PathBuf,
    /// Gid of everything in the box.
    pub gid: u32,
    /// Runs under way in the box, for the record: which of them asked nobody can tell.
    pub runs: FlagReader<Arc<[RunId]>>,
}
