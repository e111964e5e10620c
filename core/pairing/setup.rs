//! Setup codes: a person's word for one device that is not known yet, given ahead. In memory only: a restart ends them.
//!
//! A code opens once, within ten minutes, for one role and these scopes, and dies of its fifth wrong try. It is worth what
//! its maker is worth: once the maker's pairing or secret has ended, it opens nothing.

use super::decide::{ConnectFacts, Fresh, IssuedToken, grant, issue, new_device, words};
use super::machine::{Change, Decision, Pairing, Record, resolved};
use super::manage::{Caller, Refusal};
use super::records::ApprovedVia;
use crate::auth::limits::Strikes;
use crate::auth::{Principal, Role, Scope, ScopeSet, SecretStanding};
use crate::ids::DeviceId;
use crate::time::Millis;
use crate::token::TokenHash;
use serde_json::{Value, json};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// How long a code is good.
pub const CODE_LIFE_MS: u64 = 600_000;
/// Codes in memory, those that were used and are still told of among them.
const MOST: usize = 64;

/// Who made a code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Maker {
    /// [`Principal::name`].
    pub name: String,
    /// Its device, in this role, under this generation.
    pub device: Option<(DeviceId, Role, u64)>,
    /// The secret with which it had come in.
    pub secret: Option<SecretStanding>,
    /// [`Principal::behind`].
    pub behind: BTreeSet<String>,
}

impl Maker {
    /// From a connection.
    pub fn of(principal: &Principal) -> Self {
        Self {
            name: principal.name(),
            device: principal
                .device()
                .map(|device| (device.clone(), principal.role, principal.generation)),
            secret: principal.secret.clone(),
            behind: principal.behind(),
        }
    }
}

#[derive(Debug)]
struct Code {
    hash: TokenHash,
    role: Role,
    scopes: ScopeSet,
    maker: Maker,
    made: Millis,
    strikes: Strikes,
    used: Option<(DeviceId, Millis)>,
}

impl Code {
    fn is_good(&self, now: Millis) -> bool {
        self.used.is_none()
            && !self.strikes.is_dead()
            && now >= self.made
            && now.since(self.made) < CODE_LIFE_MS
    }
}

/// What a try came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Try {
    /// It is this code.
    Right,
    /// No such code is good: never made, used, over, or dead.
    Unknown,
    /// There is such a code, and this is not its secret.
    Wrong {
        /// Was it the last?
        dead: bool,
    },
}

/// All codes of this life of the room.
#[derive(Debug, Default)]
pub struct SetupCodes(BTreeMap<String, Code>);

impl SetupCodes {
    /// Keeps a new code. Never for more than its maker holds. Where all places are taken, what is used makes room, else
    /// the oldest code of whoever has most: nobody keeps others from theirs, and one whose makers have ended fades.
    ///
    /// # Errors
    /// [`Refusal::MissingScope`], [`Refusal::RoleInvalid`].
    pub fn make(
        &mut self,
        id: &str,
        hash: TokenHash,
        (role, scopes): (Role, ScopeSet),
        (caller, maker): (&Caller, Maker),
        now: Millis,
    ) -> Result<Millis, Refusal> {
        Self::may_make(role, &scopes, caller)?;
        self.forget(now);
        if self.0.len() >= MOST {
            self.make_room();
        }
        let code = Code {
            hash,
            role,
            scopes,
            maker,
            made: now,
            strikes: Strikes::default(),
            used: None,
        };
        self.0.insert(id.to_owned(), code);
        Ok(now.plus(CODE_LIFE_MS))
    }

    fn make_room(&mut self) {
        let mut held = BTreeMap::<&str, usize>::new();
        for code in self.0.values() {
            *held.entry(&code.maker.name).or_default() += 1;
        }
        let place = |code: &Code| {
            let most = held.get(code.maker.name.as_str()).copied();
            (code.used.is_some(), most, Reverse(code.made))
        };
        let first = self.0.iter().max_by_key(|(_, code)| place(code));
        if let Some(id) = first.map(|(id, _)| id.clone()) {
            self.0.remove(&id);
        }
    }

    /// Keeps the codes whose maker this is true of.
    pub fn retain(&mut self, mut holds: impl FnMut(&Maker) -> bool) {
        self.0.retain(|_, code| holds(&code.maker));
    }

    /// Looked at before anything is recorded.
    ///
    /// # Errors
    /// As [`Self::make`].
    pub fn may_make(role: Role, scopes: &ScopeSet, caller: &Caller) -> Result<(), Refusal> {
        // What gives a device away needs what approving it would need.
        if !caller.is_admin() {
            return Err(Refusal::MissingScope(Scope::Admin));
        }
        let fits = match role {
            Role::Operator => !scopes.is_empty(),
            Role::Node => scopes.is_empty(),
            Role::Agent => false,
        };
        if !fits {
            return Err(Refusal::RoleInvalid);
        }
        match scopes.iter().find(|scope| !caller.scopes.allows(*scope)) {
            Some(missing) => Err(Refusal::MissingScope(missing)),
            None => Ok(()),
        }
    }

    /// One try; a wrong one counts.
    pub fn attempt(&mut self, id: &str, presented: &TokenHash, now: Millis) -> Try {
        let Some(code) = self.0.get_mut(id).filter(|code| code.is_good(now)) else {
            return Try::Unknown;
        };
        if code.hash.same(presented) {
            return Try::Right;
        }
        Try::Wrong {
            dead: code.strikes.wrong(),
        }
    }

    /// Who made a code that is good.
    pub fn maker(&self, id: &str, now: Millis) -> Option<&Maker> {
        let code = self.0.get(id).filter(|code| code.is_good(now))?;
        Some(&code.maker)
    }

    /// What it gives.
    pub fn gives(&self, id: &str) -> Option<(Role, &ScopeSet)> {
        self.0.get(id).map(|code| (code.role, &code.scopes))
    }

    /// It is used up, before what it opens is opened: never twice.
    pub fn spend(&mut self, id: &str, device: &DeviceId, now: Millis) {
        if let Some(code) = self.0.get_mut(id) {
            code.used = Some((device.clone(), now));
        }
    }

    /// It opens nothing any more.
    pub fn drop_code(&mut self, id: &str) {
        self.0.remove(id);
    }

    /// `device.pair.setupStatus`; `None`: no such code is known.
    pub fn status(&self, id: &str, now: Millis) -> Option<Value> {
        let code = self.0.get(id)?;
        Some(match &code.used {
            Some((device, at)) => json!({ "completion": {
                "deviceId": device, "role": code.role, "scopes": code.scopes, "completedAtMs": at,
            } }),
            None if code.is_good(now) => json!({ "expiresAtMs": code.made.plus(CODE_LIFE_MS) }),
            None => return None,
        })
    }

    /// How many are good.
    pub fn len(&self, now: Millis) -> usize {
        self.0.values().filter(|code| code.is_good(now)).count()
    }

    /// What is over is told of for as long again.
    fn forget(&mut self, now: Millis) {
        self.0.retain(|_, code| {
            now >= code.made
                && !code.strikes.is_dead()
                && now.since(code.made)
                    < if code.used.is_some() {
                        2 * CODE_LIFE_MS
                    } else {
                        CODE_LIFE_MS
                    }
        });
    }
}

impl Pairing {
    /// Pairs a device by a code: one that is not known. Local words and codes never widen what a person has judged.
    ///
    /// # Errors
    /// [`Refusal::KnownDevice`], [`Refusal::TooManyDevices`], [`Refusal::ChainTooLong`].
    pub fn pair_by_code(
        &self,
        facts: &ConnectFacts,
        (id, scopes, behind): (&str, &ScopeSet, &BTreeSet<String>),
        now: Millis,
        fresh: &Fresh,
    ) -> Result<(ScopeSet, IssuedToken, Change), Refusal> {
        if self.devices.contains_key(&facts.device_id) {
            return Err(Refusal::KnownDevice);
        }
        if self.devices.len() >= self.limits.devices_max {
            return Err(Refusal::TooManyDevices);
        }
        let mut device = new_device(facts, ApprovedVia::Bootstrap, now);
        device.let_in_by = self.lineage(behind)?;
        grant(&mut device, facts.role, scopes.clone());
        let token = device
            .grants
            .get_mut(&facts.role)
            .map(|grant| issue(grant, now, &fresh.token))
            .ok_or(Refusal::RoleInvalid)?;
        let mut change = Change::new(Record::Intent, "pairing.setup", &facts.device_id);
        change.detail.push(("setup", id.to_owned()));
        change.detail.push(("role", facts.role.to_string()));
        change.detail.push(("scopes", words(scopes)));
        change.new_generation = true;
        if let Some(pending) = self.pending_of(&facts.device_id, now)
            && pending.roles.iter().all(|role| *role == facts.role)
            && scopes.covers(&pending.scopes)
        {
            change.drop_pending.push(pending.request_id.clone());
            change.news.push(resolved(pending, Decision::Approved, now));
        }
        change.put_devices.push(device);
        Ok((scopes.meet(&facts.asked), token, change))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn caller(scopes: &[Scope]) -> (Caller, Maker) {
        let maker = Maker {
            name: "uid:1000".to_owned(),
            device: None,
            secret: None,
            behind: BTreeSet::new(),
        };
        let caller = Caller {
            scopes: scopes.iter().copied().collect(),
            device: None,
            is_device: false,
            behind: BTreeSet::new(),
        };
        (caller, maker)
    }

    fn made(codes: &mut SetupCodes, id: &str, now: Millis) {
        let (caller, maker) = caller(&[Scope::Admin]);
        let gives = (Role::Node, ScopeSet::empty());
        codes
            .make(id, TokenHash::of(id), gives, (&caller, maker), now)
            .unwrap();
    }

    #[test]
    fn a_code_gives_no_more_than_its_maker_holds_and_only_an_administrator_makes_one() {
        type Case<'a> = (&'a [Scope], (Role, ScopeSet), Option<Refusal>);
        let operator = |scopes: &[Scope]| (Role::Operator, scopes.iter().copied().collect());
        let cases: [Case<'_>; 6] = [
            (&[Scope::Admin], operator(&[Scope::Read]), None),
            (&[Scope::Admin], (Role::Node, ScopeSet::empty()), None),
            (
                &[Scope::Pairing],
                operator(&[Scope::Pairing]),
                Some(Refusal::MissingScope(Scope::Admin)),
            ),
            (
                &[Scope::Admin],
                operator(&[Scope::Read, Scope::Exec]),
                Some(Refusal::MissingScope(Scope::Exec)),
            ),
            (
                &[Scope::Admin],
                (Role::Agent, ScopeSet::empty()),
                Some(Refusal::RoleInvalid),
            ),
            (
                &[Scope::Admin],
                (Role::Node, [Scope::Read].into_iter().collect()),
                Some(Refusal::RoleInvalid),
            ),
        ];
        for (held, (role, scopes), refused) in cases {
            let (caller, _) = caller(held);
            let said = SetupCodes::may_make(role, &scopes, &caller).err();
            assert_eq!(said, refused, "{role} {scopes:?}");
        }
    }

    #[test]
    fn there_are_only_so_many_codes_and_used_ones_are_told_of_for_a_while() {
        let mut codes = SetupCodes::default();
        let (by, greedy) = caller(&[Scope::Admin]);
        let other = Maker {
            name: "uid:7".to_owned(),
            ..greedy.clone()
        };
        let make = |codes: &mut SetupCodes, id: &str, maker: &Maker, at: u64| {
            let gives = (Role::Node, ScopeSet::empty());
            let made = codes.make(
                id,
                TokenHash::of(id),
                gives,
                (&by, maker.clone()),
                Millis(at),
            );
            assert_eq!(made, Ok(Millis(at).plus(CODE_LIFE_MS)));
        };
        make(&mut codes, "other", &other, 1);
        for n in 0..200 {
            make(&mut codes, &format!("g{n}"), &greedy, 2 + n);
        }
        assert_eq!(codes.0.len(), MOST);
        // Who makes most has the newest of his, and takes no other's.
        let now = Millis(300);
        for (id, is_good) in [
            ("other", true),
            ("g136", false),
            ("g137", true),
            ("g199", true),
        ] {
            assert_eq!(codes.maker(id, now).is_some(), is_good, "{id}");
        }
        // With those of a maker that has ended gone, the others stay.
        codes.retain(|maker| *maker.name != *greedy.name);
        assert_eq!(codes.len(now), 1);

        let mut codes = SetupCodes::default();
        for n in 0..MOST {
            made(&mut codes, &format!("c{n}"), Millis(1));
        }
        let device = DeviceId::new(&"a".repeat(64)).unwrap();
        codes.spend("c1", &device, Millis(3));
        // A used one makes room first.
        make(&mut codes, "more", &other, 4);
        assert!(codes.status("c1", Millis(4)).is_none() && codes.status("c0", Millis(4)).is_some());
        codes.spend("c0", &device, Millis(5));
        let later = Millis(CODE_LIFE_MS + 10);
        made(&mut codes, "new", later);
        assert_eq!(codes.len(later), 1);
        assert!(codes.status("c0", later).unwrap()["completion"]["deviceId"].is_string());
        assert_eq!(codes.status("c1", later), None);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Right,
        Wrong,
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            2 => Just(Step::Right),
            2 => Just(Step::Wrong),
            1 => (0..300_000_u64).prop_map(Step::Wait),
        ]
    }

    proptest! {
        /// In any order of tries and of time: it opens at most once, within ten minutes, and after fewer than five wrong
        /// tries.
        #[test]
        fn no_order_of_tries_opens_a_code_twice_or_late_or_after_five_wrong_ones(steps in proptest::collection::vec(step(), 0..60)) {
            let mut codes = SetupCodes::default();
            let device = DeviceId::new(&"b".repeat(64)).unwrap();
            let (mut now, mut wrong, mut opened) = (Millis(1_000), 0, 0);
            made(&mut codes, "c", now);
            for step in steps {
                match step {
                    Step::Wait(ms) => now = now.plus(ms),
                    Step::Wrong => {
                        if codes.attempt("c", &TokenHash::of("guess"), now) != Try::Unknown {
                            wrong += 1;
                        }
                    }
                    Step::Right => {
                        let good = opened == 0 && wrong < 5 && now.0 < 1_000 + CODE_LIFE_MS;
                        let right = codes.attempt("c", &TokenHash::of("c"), now) == Try::Right;
                        prop_assert_eq!(right, good);
                        if right {
                            opened += 1;
                            codes.spend("c", &device, now);
                        }
                    }
                }
            }
            prop_assert!(opened <= 1 && wrong <= 5);
        }
    }
}
