//! Questions about hosts: may an agent's boxes reach one that is not on their list? Asked once for each agent and host, whoever of its boxes
//! asks and how often; a no is remembered, and so is how many were asked.

use super::machine::Machine;
use super::{Narrowing, Record, Refusal, Requester, Row, Status, Step, Subject, Word};
use crate::auth::Role;
use crate::ids::{AgentId, ApprovalId, BoxId, Hash32};
use crate::policy::Reason;
use crate::time::Millis;

const DOMAIN: &[u8] = b"portcullis-egress-question-v1\0";
/// What stands where a grant for a command has its target.
pub const TARGET: &str = "egress";
/// How long a no holds.
const NO_MS: u64 = 15 * 60 * 1000;
/// How long "once" holds, if the box lives so long.
const ONCE_MS: u64 = 60 * 60 * 1000;
/// Most of one agent's questions about hosts that nobody has answered.
const OPEN: usize = 4;
/// Most of them in an hour.
const HOURLY: usize = 24;
const HOUR_MS: u64 = 60 * 60 * 1000;

/// A question about a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostAsked {
    /// Whose box.
    pub agent: AgentId,
    /// Which.
    pub id: BoxId,
    /// `api.example.com:443`, in its one form.
    pub host: String,
}

/// What a person has said of a host, as long as it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostWord {
    /// Of whose boxes.
    pub agent: AgentId,
    /// Of one box only.
    pub only: Option<BoxId>,
    /// Which host.
    pub host: String,
    /// Yes or no.
    pub is_allowed: bool,
    /// The question or the grant.
    pub id: String,
}

impl HostWord {
    /// Is it about this box and host?
    pub fn is_about(&self, agent: &str, id: &BoxId, host: &str) -> bool {
        self.agent.as_str() == agent
            && self.host == host
            && self.only.as_ref().is_none_or(|only| only == id)
    }
}

/// What it is about, without the question.
pub(super) fn subject_hash(agent: &AgentId, host: &str) -> Hash32 {
    Hash32::of(&[DOMAIN, agent.as_str().as_bytes(), b"\0", host.as_bytes()].concat())
}

impl Machine {
    /// A new question under this id; none where it was asked or answered already.
    ///
    /// # Errors
    /// [`Refusal::TooManyPending`].
    pub fn ask_host(
        &self,
        asked: &HostAsked,
        id: ApprovalId,
        now: Millis,
    ) -> Result<Option<Step>, Refusal> {
        let HostAsked {
            agent,
            id: boxed,
            host,
        } = asked;
        let about = subject_hash(agent, host);
        let is_open = |record: &&Record| !record.status.is_final();
        let is_said = self
            .host_words(now)
            .iter()
            .any(|word| word.is_about(agent.as_str(), boxed, host));
        let own = || {
            self.records.values().filter(|record| {
                matches!(&record.subject, Subject::Egress { agent: whose, .. } if whose == agent)
            })
        };
        if is_said
            || own()
                .filter(is_open)
                .any(|record| record.subject_hash == about)
        {
            return Ok(None);
        }
        let lately = own().filter(|record| now.since(record.created) < HOUR_MS);
        if own().filter(is_open).count() >= OPEN || lately.count() >= HOURLY {
            return Err(Refusal::TooManyPending("about hosts, of this agent"));
        }
        self.check_room(Some(agent))?;
        let own = [DOMAIN, about.0.as_slice(), b"\0", id.as_str().as_bytes()].concat();
        let reason = Reason {
            id: "host-not-listed".to_owned(),
            text: format!(
                "{host} is not on the list of hosts that the agent's sandbox may reach. Once: this sandbox, for an hour at most. Always: \
                 each of the agent's, until it is taken back."
            ),
        };
        let subject = Subject::Egress {
            agent: agent.clone(),
            sandbox: boxed.clone(),
            host: host.clone(),
        };
        let record = Record {
            v: Row,
            id,
            status: Status::Pending,
            requester: Requester {
                name: format!("agent:{agent}"),
                role: Role::Agent,
                device: None,
                agent: Some(agent.clone()),
                connection: format!("box:{boxed}"),
                door: TARGET.to_owned(),
                credential: None,
                secret: None,
            },
            idempotency_key: None,
            quorum: self.deciding.demands.quorum(&subject),
            narrowing: Narrowing::default(),
            votes: vec![],
            subject,
            plan_hash: Hash32::of(&own),
            subject_hash: about,
            reasons: vec![reason],
            may_always: true,
            created: now,
            expires: now.plus(self.limits.timeout_ms),
            boot_end: None,
            resolution: None,
            used_by: None,
        };
        Ok(Some(self.with_new(record)))
    }

    /// What has been said of hosts and holds now.
    pub fn host_words(&self, now: Millis) -> Vec<HostWord> {
        let grants = self
            .grants
            .values()
            .filter(|grant| grant.target == TARGET && grant.created <= now && now < grant.expires)
            .filter(|grant| !self.is_over(grant.boot_end.as_ref()))
            .filter(|grant| self.deciding.demands.still_make(grant, None));
        let always = grants.map(|grant| HostWord {
            agent: grant.agent.clone(),
            only: None,
            host: grant.cwd.clone(),
            is_allowed: true,
            id: grant.id.clone(),
        });
        let said = self.records.values().filter_map(|record| {
            let Subject::Egress {
                agent,
                sandbox,
                host,
            } = &record.subject
            else {
                return None;
            };
            let word = record.resolution.as_ref()?.word?;
            let is_over = now >= until(record)? || self.is_over(record.boot_end.as_ref());
            let holds = !is_over && record.created <= now;
            let is_allowed = word == Word::AllowOnce;
            // What was said with less than is demanded by now lets nobody out.
            let holds = holds && (!is_allowed || self.is_shown(record).is_ok());
            holds.then(|| HostWord {
                agent: agent.clone(),
                only: is_allowed.then(|| sandbox.clone()),
                host: host.clone(),
                is_allowed,
                id: record.id.to_string(),
            })
        });
        always.chain(said).collect()
    }

    /// When one of them ends by itself next.
    pub(super) fn next_word_end(&self, now: Millis) -> Option<Millis> {
        self.records
            .values()
            .filter_map(until)
            .filter(|end| *end > now)
            .min()
    }
}

/// Until when an answer about a host holds of itself; a grant has its own end.
pub(super) fn until(record: &Record) -> Option<Millis> {
    if !matches!(record.subject, Subject::Egress { .. }) {
        return None;
    }
    let said = record.resolution.as_ref()?;
    match (said.word?, record.status) {
        (Word::AllowOnce, Status::Used) => Some(said.at.plus(ONCE_MS)),
        (Word::Deny, Status::Denied) => Some(said.at.plus(NO_MS)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{NOW, id, machine, operator};
    use super::*;
    use crate::approval::Basis;
    use crate::auth::{Principal, SecretName, SecretStanding};

    fn asked(agent: &str, boxed: &str, host: &str) -> HostAsked {
        HostAsked {
            agent: AgentId::new(agent).unwrap(),
            id: BoxId::new(boxed).unwrap(),
            host: host.to_owned(),
        }
    }

    const ONE: &str = "0123456789ab";
    const TWO: &str = "0123456789ac";

    fn ask(
        machine: &mut Machine,
        n: usize,
        asked: &HostAsked,
        now: Millis,
    ) -> Result<bool, Refusal> {
        let step = machine.ask_host(asked, id(n), now)?;
        let is_new = step.is_some();
        machine.settle(step.unwrap_or_default());
        Ok(is_new)
    }

    fn say(machine: &mut Machine, n: usize, word: Word, now: Millis) {
        let step = machine.resolve(id(n).as_str(), word, &operator(), "c-9", now);
        machine.settle(step.unwrap().unwrap());
    }

    fn said(machine: &Machine, asked: &HostAsked, now: Millis) -> Option<bool> {
        let words = machine.host_words(now);
        let word = words
            .iter()
            .find(|word| word.is_about(asked.agent.as_str(), &asked.id, &asked.host));
        word.map(|word| word.is_allowed)
    }

    #[test]
    fn one_question_for_each_agent_and_host_and_nothing_holds_before_the_answer() {
        let mut m = machine();
        let one = asked("demo", ONE, "a.example:443");
        assert_eq!(ask(&mut m, 1, &one, NOW), Ok(true));
        assert_eq!(said(&m, &one, NOW), None);
        for again in [&one, &asked("demo", TWO, "a.example:443")] {
            assert_eq!(ask(&mut m, 2, again, NOW), Ok(false));
        }
        assert_eq!(
            ask(&mut m, 3, &asked("b", ONE, "a.example:443"), NOW),
            Ok(true)
        );
        // An answer that is not durable says nothing.
        let step = m
            .resolve(id(1).as_str(), Word::AllowOnce, &operator(), "c-9", NOW)
            .unwrap()
            .unwrap();
        assert_eq!(said(&m, &one, NOW), None);
        m.settle(step);
        assert_eq!(said(&m, &one, NOW), Some(true));
        // Of that box, host and agent only, and for an hour.
        for other in [
            asked("demo", TWO, "a.example:443"),
            asked("demo", ONE, "a.example:80"),
            asked("demo", ONE, "b.example:443"),
            asked("b", ONE, "a.example:443"),
        ] {
            assert_eq!(said(&m, &other, NOW), None, "{other:?}");
        }
        assert_eq!(said(&m, &one, NOW.plus(ONCE_MS - 1)), Some(true));
        assert_eq!(said(&m, &one, NOW.plus(ONCE_MS)), None);
        assert_eq!(m.next_due(NOW), Some(NOW.plus(30 * 60 * 1000)));
        // No command is run by it.
        assert_eq!(
            m.consume(&id(1), Hash32([0; 32]), 1, NOW),
            Err(Refusal::Used)
        );
    }

    /// Where two must say yes by now, what one has said lets nobody out any more.
    #[test]
    fn a_host_that_fewer_have_allowed_than_must_by_now_is_asked_about_again() {
        for (n, word) in [
            (1, Word::AllowAlways),
            (2, Word::AllowOnce),
            (3, Word::Deny),
        ] {
            let mut m = machine();
            let one = asked("demo", ONE, "a.example:443");
            ask(&mut m, n, &one, NOW).unwrap();
            say(&mut m, n, word, NOW);
            assert_eq!(said(&m, &one, NOW), Some(word != Word::Deny));
            m.deciding.demands.quorum.egress = 2;
            let holds = (word == Word::Deny).then_some(false);
            assert_eq!(said(&m, &one, NOW), holds, "{word:?}");
            assert_eq!(ask(&mut m, 9, &one, NOW), Ok(word != Word::Deny));
        }
    }

    #[test]
    fn always_is_a_grant_of_the_agents_that_is_taken_back_and_a_no_is_remembered() {
        let mut m = machine();
        let one = asked("demo", ONE, "a.example:443");
        let two = asked("demo", TWO, "a.example:443");
        ask(&mut m, 1, &one, NOW).unwrap();
        say(&mut m, 1, Word::AllowAlways, NOW);
        assert_eq!(
            (said(&m, &one, NOW), said(&m, &two, NOW)),
            (Some(true), Some(true))
        );
        let [grant] = m.grants()[..] else { panic!() };
        assert_eq!(
            (grant.target.as_str(), grant.command.as_str()),
            ("egress", "reach a.example:443")
        );
        let step = m.revoke_grant(&grant.id.clone(), &operator(), NOW).unwrap();
        m.settle(step);
        assert_eq!((said(&m, &one, NOW), said(&m, &two, NOW)), (None, None));

        assert_eq!(ask(&mut m, 2, &one, NOW), Ok(true));
        say(&mut m, 2, Word::Deny, NOW);
        assert_eq!(
            (said(&m, &one, NOW), said(&m, &two, NOW)),
            (Some(false), Some(false))
        );
        assert_eq!(ask(&mut m, 3, &two, NOW.plus(NO_MS - 1)), Ok(false));
        assert_eq!(ask(&mut m, 3, &two, NOW.plus(NO_MS)), Ok(true));
    }

    #[test]
    fn a_loop_of_an_agent_asks_a_person_no_more_than_so_often() {
        let mut m = machine();
        let host = |n: usize| asked("demo", ONE, &format!("h{n}.example:443"));
        for n in 0..OPEN {
            assert_eq!(ask(&mut m, n, &host(n), NOW), Ok(true));
        }
        assert!(matches!(
            ask(&mut m, 50, &host(50), NOW),
            Err(Refusal::TooManyPending(_))
        ));
        // Nor where each is answered at once.
        for n in OPEN..HOURLY {
            say(&mut m, n - OPEN, Word::Deny, NOW);
            assert_eq!(ask(&mut m, n, &host(n), NOW), Ok(true), "{n}");
        }
        say(&mut m, HOURLY - 1, Word::Deny, NOW);
        assert!(matches!(
            ask(&mut m, 50, &host(50), NOW),
            Err(Refusal::TooManyPending(_))
        ));
        assert_eq!(
            ask(&mut m, 51, &asked("b", ONE, "h.example:443"), NOW),
            Ok(true)
        );
        assert_eq!(ask(&mut m, 52, &host(52), NOW.plus(HOUR_MS)), Ok(true));
    }

    /// What a person allowed ends with what he came in with.
    #[test]
    fn a_host_is_allowed_no_longer_than_who_allowed_it_is_who_he_was() {
        let standing = SecretStanding {
            secret: SecretName::Password("ann".to_owned()),
            generation: 1,
        };
        let by = Principal {
            secret: Some(standing.clone()),
            ..operator()
        };
        for word in [Word::AllowOnce, Word::AllowAlways] {
            let mut m = machine();
            let one = asked("demo", ONE, "a.example:443");
            ask(&mut m, 1, &one, NOW).unwrap();
            let step = m.resolve(id(1).as_str(), word, &by, "c-9", NOW);
            m.settle(step.unwrap().unwrap());
            let basis = Basis::Secret(standing.clone());
            assert!(m.rests_on().contains(&basis), "{word:?}");
            let step = m.void(&[basis].into(), NOW);
            m.settle(step);
            assert_eq!(said(&m, &one, NOW), None, "{word:?}");
        }
    }
}
