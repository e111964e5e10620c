//! What is told outside of a question to people: that there is one, and that it is over. Nothing of what it is about goes out: no
//! command, no host, no reason, no name of a person, and not what was said; nor a word that who asked has chosen.
//!
//! A notice is sent to a webhook as the Standard Webhooks specification has it (`webhook-id`, `webhook-timestamp`,
//! `webhook-signature`), so that libraries that exist can check it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::approval::{Record, Status};
use crate::encoding::hex;
use crate::ids::{AgentId, ApprovalId, Hash32};
use crate::seal::Secret;
use crate::signing::mac;
use crate::time::Millis;

/// Before a secret that is written in base64, as the specification's libraries take it.
const IN_BASE64: &[u8] = b"whsec_";
/// The least bytes of a key.
const LEAST_KEY: usize = 24;

/// What happened to a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Event {
    /// It was asked.
    #[serde(rename = "approval.requested")]
    Requested,
    /// It was answered or withdrawn.
    #[serde(rename = "approval.resolved")]
    Resolved,
    /// Nobody answered, or nobody used the answer, in time.
    #[serde(rename = "approval.expired")]
    Expired,
}

impl Event {
    /// As in the notice.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "approval.requested",
            Self::Resolved => "approval.resolved",
            Self::Expired => "approval.expired",
        }
    }
}

/// One notice, with all that it says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Notice {
    /// Version of the form.
    v: V1,
    /// What happened.
    pub event: Event,
    /// To which question, as it is told: [`Record::notice_id`].
    #[serde(rename = "id")]
    pub told: ApprovalId,
    /// To which question. Not told.
    #[serde(skip)]
    pub id: ApprovalId,
    /// Whose it is; none where it is about no agent.
    pub agent: Option<AgentId>,
    /// `exec`, `policy` or `egress`.
    pub kind: &'static str,
    /// When it ends by itself.
    pub expires_at_ms: Millis,
    /// The page on which it is answered.
    pub url: String,
    /// Tells questions apart whose id is the same. Not told.
    #[serde(skip)]
    created: Millis,
}

impl Notice {
    /// Of a question as it stands; `page` is the page's address.
    pub fn of(record: &Record, page: &str) -> Self {
        Self {
            v: V1,
            event: match record.status {
                Status::Pending => Event::Requested,
                Status::Expired => Event::Expired,
                Status::Allowed | Status::Denied | Status::Cancelled | Status::Used => {
                    Event::Resolved
                }
            },
            told: record.notice_id(),
            id: record.id.clone(),
            agent: record.agent().cloned(),
            kind: record.subject.kind(),
            expires_at_ms: record.expires,
            url: page.to_owned(),
            created: record.created,
        }
    }

    /// The whole text that goes out.
    pub fn body(&self) -> String {
        // It has no map and no foreign type, so it is written in any case.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The same for each try, also after a restart: who gets it twice knows it by this.
    pub fn message_id(&self) -> String {
        let (event, id, created) = (self.event.as_str(), &self.id, self.created.0);
        let text = format!("portcullis-notice-v1\0{event}\0{id}\0{created}");
        format!("msg_{}", hex(&Hash32::of(text.as_bytes()).0[..16]))
    }
}

/// The key of a secret: `whsec_` and base64, or the bytes themselves without the end of their line.
///
/// # Errors
/// It is too short, or no base64; nothing of it is repeated.
pub fn key(secret: &Secret) -> Result<Secret, &'static str> {
    let text = secret.expose().trim_ascii_end();
    let bytes = match text.strip_prefix(IN_BASE64) {
        Some(rest) => STANDARD
            .decode(rest)
            .map_err(|_| "what follows whsec_ in its key is no base64")?,
        None => text.to_vec(),
    };
    let key = Secret::new(bytes);
    if key.expose().len() < LEAST_KEY {
        return Err("its key has less than 24 bytes");
    }
    Ok(key)
}

/// The signature of a message: HMAC-SHA256 over its id, its time in seconds and its body.
pub fn signature(key: &Secret, id: &str, seconds: u64, body: &str) -> String {
    let seconds = seconds.to_string();
    let parts: [&[u8]; 5] = [
        id.as_bytes(),
        b".",
        seconds.as_bytes(),
        b".",
        body.as_bytes(),
    ];
    format!("v1,{}", STANDARD.encode(mac(key.expose(), &parts)))
}

/// What one receiver has been told and is to be told: bounded, in order.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    waiting: VecDeque<Notice>,
    most: usize,
    open: BTreeSet<ApprovalId>,
    /// Asked, and pushed out before it was told.
    missed: BTreeSet<ApprovalId>,
}

impl Ledger {
    /// With what an earlier life has told to be open.
    pub fn new(most: usize, open: BTreeSet<ApprovalId>) -> Self {
        Self {
            waiting: VecDeque::new(),
            most: most.max(1),
            open,
            missed: BTreeSet::new(),
        }
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Does none wait?
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// What was told to be open, and not yet to be over.
    pub const fn open(&self) -> &BTreeSet<ApprovalId> {
        &self.open
    }

    /// The next one; it waits until it is taken or lost.
    pub fn next(&self) -> Option<&Notice> {
        self.waiting.front()
    }

    /// One more, unless it waits already or was told; what is over before it was told is told in neither way. Where too many
    /// wait behind the next one, which may be under way, who has most of those loses his oldest, which is given back: nobody's
    /// questions push another's out.
    pub fn add(&mut self, notice: Notice) -> Option<Notice> {
        let is_asked = notice.event == Event::Requested;
        let was_missed = self.missed.remove(&notice.id);
        if is_asked && self.open.contains(&notice.id) || self.waiting.contains(&notice) {
            return None;
        }
        if !is_asked {
            let untold = |known: &Notice| known.event == Event::Requested && known.id == notice.id;
            let at = self.waiting.iter().skip(1).position(untold);
            if let Some(at) = at {
                self.waiting.remove(at + 1);
            }
            if was_missed || at.is_some() {
                return None;
            }
        }
        self.waiting.push_back(notice);
        if self.waiting.len() <= self.most + 1 {
            return None;
        }
        let lost = self.waiting.remove(self.longest()?)?;
        if lost.event == Event::Requested {
            self.missed.insert(lost.id.clone());
        }
        self.open.remove(&lost.id);
        Some(lost)
    }

    /// Behind the next one, the oldest of who has most there.
    fn longest(&self) -> Option<usize> {
        let mut held = BTreeMap::<_, usize>::new();
        for notice in self.waiting.iter().skip(1) {
            *held.entry(&notice.agent).or_default() += 1;
        }
        let most = held.values().max().copied()?;
        let mut behind = self.waiting.iter().skip(1);
        let at = behind.position(|notice| held.get(&notice.agent) == Some(&most))?;
        Some(at + 1)
    }

    /// Does nothing wait, though something was pushed out that was not told and may be open still?
    pub fn has_missed(&self) -> bool {
        self.waiting.is_empty() && !self.missed.is_empty()
    }

    /// Of what is open now, as much of what was pushed out as may wait: each is told once more, no oftener. What is over by now
    /// is forgotten.
    pub fn take_up(&mut self, open: Vec<Notice>) {
        let ids: BTreeSet<_> = open.iter().map(|notice| notice.id.clone()).collect();
        self.keep_missed(&ids);
        for notice in open {
            if self.waiting.len() < self.most && self.missed.contains(&notice.id) {
                self.add(notice);
            }
        }
    }

    /// What is not among these is over.
    pub fn keep_missed(&mut self, open: &BTreeSet<ApprovalId>) {
        self.missed.retain(|id| open.contains(id));
    }

    /// This one is told, or nobody tries any more. Answers whether what is open has changed.
    pub fn done(&mut self, notice: &Notice, is_told: bool) -> bool {
        self.waiting.retain(|waiting| waiting != notice);
        if notice.event == Event::Requested && is_told {
            self.open.insert(notice.id.clone())
        } else {
            self.open.remove(&notice.id)
        }
    }

    /// Of these questions, all that are open now, and of what was told to be open: what is over, and nobody has been told nor
    /// waits to be.
    pub fn over(&self, pending: &BTreeSet<ApprovalId>) -> Vec<ApprovalId> {
        let waits = |id: &ApprovalId| {
            let mut ends = self.waiting.iter().filter(|n| n.event != Event::Requested);
            ends.any(|notice| notice.id == *id)
        };
        let open = self.open.iter();
        open.filter(|id| !pending.contains(*id) && !waits(id))
            .cloned()
            .collect()
    }

    /// It is forgotten everywhere else.
    pub fn forget(&mut self, id: &ApprovalId) {
        self.open.remove(id);
    }
}

/// The version of the form in which notices are kept: 1, anything else is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
struct V1;

impl TryFrom<u8> for V1 {
    type Error = &'static str;
    fn try_from(v: u8) -> Result<Self, Self::Error> {
        if v == 1 {
            Ok(Self)
        } else {
            Err("not version 1")
        }
    }
}

impl From<V1> for u8 {
    fn from(_: V1) -> Self {
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice(event: Event, id: &str, created: u64) -> Notice {
        Notice {
            v: V1,
            event,
            told: ApprovalId::new(id).unwrap(),
            id: ApprovalId::new(id).unwrap(),
            agent: Some(AgentId::new("demo").unwrap()),
            kind: "exec",
            expires_at_ms: Millis(7),
            url: "https://gate.example/".to_owned(),
            created: Millis(created),
        }
    }

    #[test]
    fn a_notice_says_which_question_and_nothing_else() {
        let one = notice(Event::Requested, "a-1", 5);
        assert_eq!(
            one.body(),
            r#"{"v":1,"event":"approval.requested","id":"a-1","agent":"demo","kind":"exec","expiresAtMs":7,"url":"https://gate.example/"}"#
        );
        let ids = [
            one.message_id(),
            notice(Event::Resolved, "a-1", 5).message_id(),
            notice(Event::Requested, "a-1", 6).message_id(),
        ];
        assert!(ids.iter().all(|id| id.len() == 36 && !id.contains('.')));
        assert_eq!(BTreeSet::from(ids.clone()).len(), 3);
        assert_eq!(ids[0], notice(Event::Requested, "a-1", 5).message_id());
    }

    /// The example of the Standard Webhooks specification's own libraries.
    #[test]
    fn a_signature_is_what_the_libraries_of_receivers_expect() {
        let secret = Secret::new(b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_vec());
        let body = r#"{"test": 2432232314}"#;
        assert_eq!(
            signature(
                &key(&secret).unwrap(),
                "msg_p5jXN8AQM9LWM0D4loKWxJek",
                1_614_265_330,
                body
            ),
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
        );
    }

    #[test]
    fn a_key_is_base64_or_the_bytes_themselves_and_long_enough() {
        let of = |text: &[u8]| key(&Secret::new(text.to_vec())).map(|key| key.expose().to_vec());
        let plain = b"0123456789abcdef01234567";
        assert_eq!(of(plain).unwrap(), plain);
        assert_eq!(of(b"0123456789abcdef01234567\n").unwrap(), plain);
        assert!(of(b"0123456789abcdef0123456").unwrap_err().contains("24"));
        assert!(of(b"whsec_AAAA").unwrap_err().contains("24"));
        assert!(of(b"whsec_!").unwrap_err().contains("base64"));
        assert!(of(b"").is_err());
    }

    #[test]
    fn what_waits_is_bounded_and_in_order_and_nothing_is_told_twice() {
        let mut ledger = Ledger::new(2, BTreeSet::new());
        let asked = |id: &str| notice(Event::Requested, id, 1);
        assert_eq!(ledger.add(asked("a")), None);
        assert_eq!(ledger.add(asked("a")), None);
        assert_eq!(ledger.len(), 1);
        assert_eq!(ledger.add(asked("b")), None);
        assert_eq!(ledger.add(asked("c")), None);
        // Not the one that may be under way: it was counted as lost and then as told, or as lost twice.
        assert_eq!(ledger.add(asked("d")), Some(asked("b")));
        assert_eq!(ledger.next(), Some(&asked("a")));
        assert!(ledger.done(&asked("a"), true));
        assert_eq!(ledger.len(), 2);
        assert!(!ledger.done(&asked("c"), false));
        assert!(ledger.done(&asked("d"), true));
        assert_eq!(ledger.add(asked("d")), None);
        assert!(ledger.is_empty());
        let ids = |ids: &[&str]| -> BTreeSet<ApprovalId> {
            ids.iter().map(|id| ApprovalId::new(id).unwrap()).collect()
        };
        assert_eq!(*ledger.open(), ids(&["a", "d"]));
        assert_eq!(
            ledger.over(&ids(&["d"])),
            ids(&["a"]).into_iter().collect::<Vec<_>>()
        );
        ledger.add(notice(Event::Expired, "a", 1));
        assert!(ledger.over(&ids(&["d"])).is_empty());
        assert!(ledger.done(&notice(Event::Expired, "a", 1), true));
        ledger.forget(&ApprovalId::new("d").unwrap());
        assert!(ledger.open().is_empty());
    }

    fn of(agent: &str, id: &str) -> Notice {
        Notice {
            agent: Some(AgentId::new(agent).unwrap()),
            ..notice(Event::Requested, id, 1)
        }
    }

    fn waiting(ledger: &Ledger) -> Vec<&str> {
        ledger.waiting.iter().map(|n| n.id.as_str()).collect()
    }

    /// The bug: 338 questions of one agent pushed out the one of another, and nobody was told of that.
    #[test]
    fn one_agents_questions_push_no_other_agents_out_of_what_waits() {
        let mut ledger = Ledger::new(3, BTreeSet::new());
        for (agent, id) in [("flood", "f0"), ("two", "w"), ("flood", "f1")] {
            assert_eq!(ledger.add(of(agent, id)), None);
        }
        for n in 2..300 {
            ledger.add(of("flood", &format!("f{n}")));
        }
        assert_eq!(waiting(&ledger), ["f0", "w", "f298", "f299"]);
        // Nor does the gateway's own, which are of no agent.
        let own = Notice {
            agent: None,
            ..notice(Event::Requested, "own", 1)
        };
        assert_eq!(ledger.add(own.clone()), Some(of("flood", "f298")));
        assert_eq!(waiting(&ledger), ["f0", "w", "f299", "own"]);
    }

    #[test]
    fn what_is_over_before_it_was_told_is_told_in_neither_way() {
        let mut ledger = Ledger::new(2, BTreeSet::new());
        for id in ["a", "b", "c", "d"] {
            ledger.add(notice(Event::Requested, id, 1));
        }
        // The first may be under way; the second was pushed out; the third waits.
        assert_eq!(waiting(&ledger), ["a", "c", "d"]);
        for id in ["b", "c", "a"] {
            assert_eq!(ledger.add(notice(Event::Resolved, id, 1)), None);
        }
        let events: Vec<_> = ledger.waiting.iter().map(|n| n.event).collect();
        assert_eq!(waiting(&ledger), ["a", "d", "a"]);
        assert_eq!(
            events,
            [Event::Requested, Event::Requested, Event::Resolved]
        );
        assert!(!ledger.has_missed());
    }

    #[test]
    fn what_was_pushed_out_and_is_open_still_is_told_once_when_there_is_room() {
        let mut ledger = Ledger::new(2, BTreeSet::new());
        let ask = |id: &str| notice(Event::Requested, id, 1);
        for id in ["a", "b", "c", "d", "e", "f"] {
            ledger.add(ask(id));
        }
        assert_eq!(waiting(&ledger), ["a", "e", "f"]);
        assert!(!ledger.has_missed());
        for id in ["a", "e", "f"] {
            ledger.done(&ask(id), true);
        }
        assert!(ledger.has_missed());
        // One of them is over; of the others as many as may wait.
        let open = || ["a", "b", "d", "e", "f"].map(ask).to_vec();
        ledger.take_up(open());
        assert_eq!(waiting(&ledger), ["b", "d"]);
        // Told or given up: not again.
        ledger.done(&ask("b"), true);
        ledger.done(&ask("d"), false);
        assert!(!ledger.has_missed());
        ledger.take_up(open());
        assert!(ledger.is_empty());
    }
}
