//! Whose signature a node wants to see before it runs what its gateway sends. Pure.
//!
//! The node trusts no word of the gateway here: it makes the plan's hash of what it is asked to run and has opened itself
//! ([`super::plan_of`]), and checks over that hash the signatures of keys that its owner has written into its document.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

use crate::approval::{DecisionProof, Word, verify_proof};
use crate::device::DeviceKey;
use crate::ids::{AgentId, ApprovalId, DeviceId, Hash32};
use crate::plan::{Egress, EnvValue, ExecPlan, Executable, Form, Limits, Nonce, Stdin, Target};
use crate::time::Millis;

/// In the params of a run: under which question it was decided on, and what shows that. Ours; the peer's node hosts pass it
/// over.
pub const APPROVAL: &str = "approvalProof";
/// What a node gives back of each stream at the most (wire.md 11).
pub const OUTPUT_CAP: u64 = 200_000;
/// Keys in one document.
const MOST: usize = 32;
/// Votes of one question that are looked at.
const MOST_VOTES: usize = 64;
/// Used proofs that are remembered at once.
const MOST_SPENT: usize = 4_096;
/// The longest that a word may be good for: what was used is remembered as long as that.
const LONGEST_MS: u64 = 31 * 24 * 60 * 60 * 1_000;

/// What a gateway forwards of an approval, in the params of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Forwarded {
    /// Of the question.
    pub approval: ApprovalId,
    /// The plan's session, as the gateway calls it.
    pub session: String,
    /// Who asked, as the gateway calls it.
    pub principal: String,
    /// Which makes the plan good once.
    pub nonce: Nonce,
    /// What people said, and what shows it.
    pub votes: Vec<Shown>,
}

/// One person's word, with what shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Shown {
    /// What was said.
    pub decision: Word,
    /// What shows it.
    pub proof: DecisionProof,
}

/// What a run on a node is, as the node itself knows it.
#[derive(Debug, Clone, Copy)]
pub struct OnNode<'a> {
    /// Which node.
    pub node: &'a DeviceId,
    /// The node's own plan, word for word as it said it.
    pub said: &'a Value,
    /// For which agent.
    pub agent: &'a AgentId,
    /// The arguments.
    pub argv: &'a [String],
    /// The folder.
    pub cwd: &'a str,
    /// The digest of the program.
    pub sha256: Option<Hash32>,
    /// What is set beside the node's own variables.
    pub env: &'a BTreeMap<String, String>,
    /// The longest that it may run.
    pub timeout_ms: u64,
}

/// The digest of everything that a node said of what it would run, so that an approval is for no other.
pub fn said_digest(node: &DeviceId, said: &Value) -> Hash32 {
    Hash32::of(format!("portcullis-node-plan-v1\n{node}\n{said}").as_bytes())
}

/// The frozen plan of a run on a node: the gateway asks about it, a person signs its hash, and the node makes it again from
/// what it has opened.
pub fn plan_of(run: OnNode<'_>, session: &str, principal: &str, nonce: Nonce) -> ExecPlan {
    let plain = |(name, value): (&String, &String)| (name.clone(), EnvValue::Plain(value.clone()));
    ExecPlan {
        v: Form::V2,
        target: Target::Node(run.node.to_string()),
        agent: run.agent.clone(),
        session: session.to_owned(),
        principal: principal.to_owned(),
        argv: run.argv.to_vec(),
        executable: Executable::Node {
            claimed_sha256: run.sha256,
        },
        operands: Vec::new(),
        cwd: run.cwd.to_owned(),
        // Its user and its rules are the node's own.
        uid: 0,
        gid: 0,
        groups: Vec::new(),
        env: run.env.iter().map(plain).collect(),
        stdin: Stdin::None,
        tty: None,
        limits: Limits {
            timeout_ms: run.timeout_ms,
            output_bytes: OUTPUT_CAP,
            memory_bytes: None,
            cpu_millis: None,
            pids: None,
        },
        egress: Egress::Host,
        profile_digest: said_digest(run.node, run.said),
        nonce,
    }
}

/// Why a run has no approver's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NotShown {
    /// The gateway forwarded none.
    #[error("no decision with its proof came with the run")]
    Nothing,
    /// Somebody said no.
    #[error("one of the decisions is a no")]
    Refused,
    /// It is not over this plan here, or not by that key.
    #[error(
        "an approver's signature is not over this gateway, approval, plan, decision, scope and expiry"
    )]
    Invalid,
    /// For another time than now.
    #[error("an approver's word has expired, or is for too long")]
    Expired,
    /// Words for two gateways are no one decision.
    #[error("the decisions were made for two gateways")]
    Gateways,
    /// So many approvers signed, and so many must.
    #[error("{0} of the approvers that this node names signed this plan, {1} must")]
    Few(usize, usize),
    /// It ran by them before.
    #[error("this decision was used here already: each is good once")]
    Spent,
    /// Nothing more can be remembered.
    #[error("too many decisions were used here in a short time")]
    Full,
}

/// The keys that a node's owner trusts, and how many of them must sign.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Approvers {
    keys: BTreeSet<String>,
    quorum: usize,
}

impl Approvers {
    /// # Errors
    /// What is wrong, for a person.
    pub fn new(keys: &[String], quorum: u8) -> Result<Self, String> {
        if keys.len() > MOST {
            return Err(format!("more than {MOST} approvers"));
        }
        let mut read = BTreeSet::new();
        for (at, key) in keys.iter().enumerate() {
            let key =
                DeviceKey::parse(key).map_err(|_| format!("approvers[{at}] is no public key"))?;
            if !read.insert(key.to_text()) {
                return Err(format!("approvers[{at}] is named twice"));
            }
        }
        let quorum = usize::from(quorum);
        if quorum == 0 || quorum > read.len() {
            return Err("quorum is at least 1 and at most the number of approvers".to_owned());
        }
        Ok(Self { keys: read, quorum })
    }

    /// How many keys.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Never: nobody is no approver.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Have enough of them said yes to this very plan? Until when that is good.
    ///
    /// # Errors
    /// [`NotShown`].
    pub fn check(
        &self,
        approval: &ApprovalId,
        plan: Hash32,
        votes: &[Shown],
        now: Millis,
    ) -> Result<Millis, NotShown> {
        if votes.is_empty() || votes.len() > MOST_VOTES {
            return Err(NotShown::Nothing);
        }
        if votes.iter().any(|vote| vote.decision == Word::Deny) {
            return Err(NotShown::Refused);
        }
        let (mut signed, mut gateways) = (BTreeSet::new(), BTreeSet::new());
        let mut until = now.plus(LONGEST_MS);
        for Shown { decision, proof } in votes {
            // What a gateway signs, and what others sign, is nobody's word here.
            let DecisionProof::Device { key, .. } = proof else {
                continue;
            };
            let Ok(key) = DeviceKey::parse(key) else {
                continue;
            };
            let key = key.to_text();
            if !self.keys.contains(&key) {
                continue;
            }
            verify_proof(proof, approval.as_str(), plan, *decision)
                .map_err(|_| NotShown::Invalid)?;
            let (_, expires) = proof.reach();
            if expires <= now || expires > now.plus(LONGEST_MS) {
                return Err(NotShown::Expired);
            }
            until = until.min(expires);
            gateways.insert(proof.gateway());
            signed.insert(key);
        }
        if gateways.len() > 1 {
            return Err(NotShown::Gateways);
        }
        if signed.len() < self.quorum {
            return Err(NotShown::Few(signed.len(), self.quorum));
        }
        Ok(until)
    }
}

/// Which decisions were used, kept over restarts of the node: each is good for one run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spent {
    /// The latest moment at which one was used: a clock that is set back wins nothing.
    newest: Millis,
    /// By the plan's hash, which has its nonce in it; until when the word would be good.
    used: BTreeMap<String, Millis>,
}

impl Spent {
    /// The same, with this decision used.
    ///
    /// # Errors
    /// [`NotShown`].
    pub fn spend(&self, plan: Hash32, until: Millis, now: Millis) -> Result<Self, NotShown> {
        let now = now.max(self.newest);
        if until <= now {
            return Err(NotShown::Expired);
        }
        let name = plan.to_string();
        if self.used.contains_key(&name) {
            return Err(NotShown::Spent);
        }
        let mut next = Self {
            newest: now,
            used: self.used.clone(),
        };
        next.used.retain(|_, until| *until > now);
        if next.used.len() >= MOST_SPENT {
            return Err(NotShown::Full);
        }
        next.used.insert(name, until);
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::approval::{DecisionKey, Extent, Statement};
    use crate::encoding::base64url;
    use ed25519_dalek::{Signer as _, SigningKey};
    use serde_json::json;

    const NOW: Millis = Millis(1_000_000);
    const UNTIL: Millis = Millis(1_900_000);

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_bytes(&[seed; 32])
    }

    fn text(seed: u8) -> String {
        DeviceKey::Ed25519(key(seed).verifying_key()).to_text()
    }

    fn gateway() -> DecisionKey {
        DecisionKey::from_seed(&[9; 32])
    }

    fn id() -> ApprovalId {
        ApprovalId::new("pc-1").unwrap()
    }

    fn node(n: u8) -> DeviceId {
        DeviceId::new(&format!("{n:02x}").repeat(32)).unwrap()
    }

    fn plan(node: &DeviceId, argv: &[&str]) -> ExecPlan {
        let argv: Vec<String> = argv.iter().map(|a| (*a).to_owned()).collect();
        let (said, env) = (json!({ "argv": argv }), BTreeMap::new());
        let agent = AgentId::new("demo").unwrap();
        let run = OnNode {
            node,
            said: &said,
            agent: &agent,
            argv: &argv,
            cwd: "/",
            sha256: Some(Hash32::of(b"program")),
            env: &env,
            timeout_ms: 30_000,
        };
        plan_of(run, "c-1", "uid:0", Nonce::new(&[7; 16]).unwrap())
    }

    fn statement(plan: Hash32, word: Word) -> Statement<'static> {
        Statement {
            gateway: gateway().gateway(),
            approval: "pc-1",
            plan,
            word,
            scope: Extent::of(word),
            expires: UNTIL,
        }
    }

    fn signed(seed: u8, said: &Statement<'_>) -> Shown {
        let key = key(seed);
        Shown {
            decision: said.word,
            proof: DecisionProof::Device {
                gateway: said.gateway,
                scope: said.scope,
                expires_at_ms: said.expires,
                key: text(seed),
                signature: base64url(&key.sign(&said.to_sign()).to_bytes()),
            },
        }
    }

    #[test]
    fn only_an_approvers_signature_over_this_very_plan_on_this_node_lets_it_run() {
        let approvers = Approvers::new(&[text(1)], 1).unwrap();
        let plan_hash = plan(&node(1), &["ls"]).plan_hash();
        let said = statement(plan_hash, Word::AllowOnce);
        let good = signed(1, &said);
        let check = |votes: &[Shown], plan| approvers.check(&id(), plan, votes, NOW);
        assert_eq!(check(std::slice::from_ref(&good), plan_hash), Ok(UNTIL));
        assert_eq!(check(&[], plan_hash), Err(NotShown::Nothing));
        // Another plan, another node, another question.
        for other in [plan(&node(1), &["rm"]), plan(&node(2), &["ls"])] {
            assert_eq!(
                check(std::slice::from_ref(&good), other.plan_hash()),
                Err(NotShown::Invalid)
            );
        }
        let other = ApprovalId::new("pc-2").unwrap();
        assert_eq!(
            approvers.check(&other, plan_hash, std::slice::from_ref(&good), NOW),
            Err(NotShown::Invalid)
        );
        // A stranger's key, the gateway's own word, and a gateway that says that its key is a device's.
        let session = Shown {
            decision: Word::AllowOnce,
            proof: gateway().session(&said, "uid:0", "c-1"),
        };
        assert_eq!(
            check(&[session.clone(), signed(2, &said)], plan_hash),
            Err(NotShown::Few(0, 1))
        );
        let DecisionProof::Session { signature, .. } = session.proof else {
            panic!()
        };
        let mut forged = good.clone();
        if let DecisionProof::Device { signature: own, .. } = &mut forged.proof {
            *own = signature;
        }
        assert_eq!(check(&[forged], plan_hash), Err(NotShown::Invalid));
        // A no beside it, whoever says it; and what was a no turned into a yes.
        let no = signed(2, &statement(plan_hash, Word::Deny));
        assert_eq!(
            check(&[good.clone(), no.clone()], plan_hash),
            Err(NotShown::Refused)
        );
        let turned = Shown {
            decision: Word::AllowOnce,
            ..signed(1, &statement(plan_hash, Word::Deny))
        };
        assert_eq!(check(&[turned], plan_hash), Err(NotShown::Invalid));
        // Expired, or good for longer than is remembered.
        let at = |now| approvers.check(&id(), plan_hash, std::slice::from_ref(&good), now);
        assert_eq!(at(UNTIL), Err(NotShown::Expired));
        assert_eq!(at(Millis(UNTIL.0 - 1)), Ok(UNTIL));
        let long = Statement {
            expires: Millis(u64::MAX),
            ..said
        };
        assert_eq!(
            check(&[signed(1, &long)], plan_hash),
            Err(NotShown::Expired)
        );
    }

    #[test]
    fn a_nodes_quorum_counts_keys_that_it_names_each_once_and_for_one_gateway() {
        let keys: Vec<String> = [1, 2, 3].map(text).to_vec();
        let approvers = Approvers::new(&keys, 2).unwrap();
        let plan_hash = plan(&node(1), &["ls"]).plan_hash();
        let said = statement(plan_hash, Word::AllowOnce);
        let check = |votes: &[Shown]| approvers.check(&id(), plan_hash, votes, NOW);
        let (one, two) = (signed(1, &said), signed(2, &said));
        assert_eq!(check(std::slice::from_ref(&one)), Err(NotShown::Few(1, 2)));
        assert_eq!(check(&[one.clone(), one.clone()]), Err(NotShown::Few(1, 2)));
        assert_eq!(
            check(&[one.clone(), signed(7, &said)]),
            Err(NotShown::Few(1, 2))
        );
        let shorter = Statement {
            expires: Millis(UNTIL.0 - 5),
            ..said
        };
        assert_eq!(
            check(&[one.clone(), signed(3, &shorter)]),
            Ok(Millis(UNTIL.0 - 5))
        );
        assert_eq!(check(&[one.clone(), two]), Ok(UNTIL));
        let elsewhere = Statement {
            gateway: Hash32([1; 32]),
            ..said
        };
        assert_eq!(
            check(&[one, signed(2, &elsewhere)]),
            Err(NotShown::Gateways)
        );
        for (keys, quorum) in [
            (&keys[..1], 2),
            (&keys[..], 0),
            (&[keys[0].clone(), keys[0].clone()][..], 1),
        ] {
            assert!(Approvers::new(keys, quorum).is_err());
        }
    }

    #[test]
    fn a_decision_is_used_once_on_its_node_over_restarts_and_under_a_clock_that_is_set_back() {
        let (one, two) = (Hash32::of(b"1"), Hash32::of(b"2"));
        let spent = Spent::default().spend(one, UNTIL, NOW).unwrap();
        // As it is read again.
        let text = serde_json::to_string(&spent).unwrap();
        let spent: Spent = serde_json::from_str(&text).unwrap();
        assert_eq!(spent.spend(one, UNTIL, NOW), Err(NotShown::Spent));
        let later = spent.spend(two, Millis(UNTIL.0 + 9), UNTIL).unwrap();
        // The first is forgotten with its time, which does not come back.
        assert_eq!(later.used.len(), 1);
        assert_eq!(later.spend(one, UNTIL, NOW), Err(NotShown::Expired));
        assert_eq!(
            later.spend(two, Millis(UNTIL.0 + 9), NOW),
            Err(NotShown::Spent)
        );
    }

    #[test]
    fn whatever_of_a_run_changes_its_plan_on_the_node_is_another() {
        let base = plan(&node(1), &["ls", "-l"]);
        let agent = AgentId::new("demo").unwrap();
        let argv = ["ls".to_owned(), "-l".to_owned()];
        let (said, env) = (json!({ "argv": argv }), BTreeMap::new());
        let (other_said, other_env) = (
            json!({ "argv": argv, "portcullisDigest": "0" }),
            BTreeMap::from([("LANG".to_owned(), "C".to_owned())]),
        );
        let other_agent = AgentId::new("other").unwrap();
        let one = node(1);
        let run = OnNode {
            node: &one,
            said: &said,
            agent: &agent,
            argv: &argv,
            cwd: "/",
            sha256: Some(Hash32::of(b"program")),
            env: &env,
            timeout_ms: 30_000,
        };
        let nonce = || Nonce::new(&[7; 16]).unwrap();
        let hash = |run: OnNode<'_>| plan_of(run, "c-1", "uid:0", nonce()).plan_hash();
        assert_eq!(hash(run), base.plan_hash());
        base.validate_shape().unwrap();
        for changed in [
            OnNode {
                said: &other_said,
                ..run
            },
            OnNode {
                agent: &other_agent,
                ..run
            },
            OnNode {
                argv: &argv[..1],
                ..run
            },
            OnNode { cwd: "/tmp", ..run },
            OnNode {
                sha256: None,
                ..run
            },
            OnNode {
                env: &other_env,
                ..run
            },
            OnNode {
                timeout_ms: 30_001,
                ..run
            },
        ] {
            assert_ne!(hash(changed), base.plan_hash(), "{changed:?}");
        }
        for (session, principal, nonce) in [
            ("c-2", "uid:0", nonce()),
            ("c-1", "uid:1", nonce()),
            ("c-1", "uid:0", Nonce::new(&[8; 16]).unwrap()),
        ] {
            assert_ne!(
                plan_of(run, session, principal, nonce).plan_hash(),
                base.plan_hash()
            );
        }
    }
}
