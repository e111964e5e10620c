//! The machine against what it promises, in random order and at its edges.

mod floods;
mod random;
mod surface;

use super::*;
use crate::auth::{Door, Principal, Proof, Role, Scope, ScopeSet};
use crate::ids::DeviceId;
use crate::time::Millis;
use crate::token::{Token, TokenHash, TokenKind};
use std::collections::BTreeSet;
use std::net::IpAddr;

const T0: Millis = Millis(1_000_000_000);

fn id(n: u32) -> DeviceId {
    DeviceId::new(&format!("{n:064x}")).expect("id")
}

fn set(scopes: &[Scope]) -> ScopeSet {
    scopes.iter().copied().collect()
}

fn operator(scopes: &[Scope]) -> Caller {
    Caller {
        scopes: set(scopes),
        device: None,
        is_device: false,
        behind: BTreeSet::new(),
    }
}

fn admin() -> Caller {
    operator(&[Scope::Admin])
}

fn facts(n: u32, role: Role, asked: &[Scope]) -> ConnectFacts {
    ConnectFacts {
        device_id: id(n),
        public_key: format!("key-{n}"),
        client: Client {
            id: "gateway-client".into(),
            mode: "backend".into(),
            platform: Some("linux".into()),
            remote_ip: Some(IpAddr::from([10, 0, 0, 1])),
            ..Client::default()
        },
        role,
        asked: set(asked),
        authenticated: true,
        secret: None,
        device_token: None,
        local_operator: false,
        local_scopes: set(&[Scope::Read, Scope::Write]),
    }
}

/// The machine as its room drives it: every change durable under the next intent, then settled.
struct Bench {
    machine: Pairing,
    intent: u64,
    now: Millis,
    news: Vec<News>,
}

impl Bench {
    fn new(limits: Limits) -> Self {
        Self {
            machine: Pairing::restore(limits, Vec::new(), Vec::new()),
            intent: 0,
            now: T0,
            news: Vec::new(),
        }
    }

    fn fresh(&self) -> Fresh {
        let mut token = [0; 32];
        token[..8].copy_from_slice(&self.intent.to_be_bytes());
        Fresh {
            request_id: format!("r-{}", self.intent),
            token,
        }
    }

    fn settle(&mut self, mut change: Change) {
        self.intent += 1;
        change.stamp(self.intent);
        // Rows survive the store.
        for device in &mut change.put_devices {
            *device =
                serde_json::from_slice(&serde_json::to_vec(device).expect("json")).expect("json");
        }
        for pending in &mut change.put_pending {
            *pending =
                serde_json::from_slice(&serde_json::to_vec(pending).expect("json")).expect("json");
        }
        self.news = self.machine.settle(change);
    }

    fn connect(&mut self, facts: &ConnectFacts) -> Result<Verdict, Refusal> {
        self.intent += 1;
        let (verdict, change) = self.machine.decide(facts, self.now, self.fresh())?;
        if let Some(change) = change {
            self.settle(change);
        }
        Ok(verdict)
    }

    fn request(&mut self, facts: &ConnectFacts) -> (String, Reason) {
        match self.connect(facts) {
            Ok(Verdict::Pending(needed)) => (needed.request_id, needed.reason),
            _ => panic!("not pending"),
        }
    }

    fn paired(&mut self, facts: &ConnectFacts) -> (ScopeSet, Option<String>) {
        match self.connect(facts) {
            Ok(Verdict::Paired { scopes, token, .. }) => {
                (scopes, token.map(|issued| issued.token.expose().to_owned()))
            }
            Ok(Verdict::Pending(needed)) => panic!("pending: {:?}", needed.reason),
            Ok(Verdict::TokenRefused(refusal)) => panic!("refused: {refusal:?}"),
            Err(refusal) => panic!("{refusal}"),
        }
    }

    fn approve(&mut self, request: &str, caller: &Caller) -> Result<(), Refusal> {
        let change = self.machine.approve(request, caller, false, self.now)?;
        self.settle(change);
        Ok(())
    }
}

#[test]
fn a_stranger_waits_for_a_person_and_gets_its_token_once() {
    let mut bench = Bench::new(Limits::default());
    let facts = facts(1, Role::Operator, &[Scope::Read]);
    let (request, reason) = bench.request(&facts);
    assert_eq!(reason, Reason::NotPaired);
    assert_eq!(
        bench.machine.list(&admin(), &BTreeSet::new(), bench.now)["pending"][0]["requestId"],
        request.as_str()
    );
    bench.approve(&request, &admin()).expect("approved");
    assert_eq!(
        bench.approve(&request, &admin()),
        Err(Refusal::UnknownRequest)
    );
    let (scopes, token) = bench.paired(&facts);
    assert_eq!(scopes, set(&[Scope::Read]));
    let token = token.expect("shown once");
    assert_eq!(bench.paired(&facts).1, None);

    // With the token alone, and not with another.
    let mut by_token = ConnectFacts {
        authenticated: false,
        device_token: Some(TokenHash::of(&token)),
        ..facts.clone()
    };
    assert_eq!(bench.paired(&by_token), (set(&[Scope::Read]), None));
    by_token.device_token = Some(TokenHash::of("pc_dev_other"));
    assert!(matches!(
        bench.connect(&by_token),
        Ok(Verdict::TokenRefused(TokenRefusal::TokenMismatch))
    ));
    by_token.device_token = None;
    assert!(matches!(
        bench.connect(&by_token),
        Ok(Verdict::TokenRefused(TokenRefusal::TokenMissing))
    ));
    // Nothing that a list shows has the token or its hash.
    let shown = bench
        .machine
        .list(&admin(), &BTreeSet::from([id(1)]), bench.now)
        .to_string();
    let hash = serde_json::to_string(&TokenHash::of(&token)).expect("json");
    assert!(!shown.contains(&token) && !shown.contains(hash.trim_matches('"')));
    assert!(shown.contains("\"connected\":true"));
}

#[test]
fn nothing_is_stored_for_who_proved_nothing() {
    let mut bench = Bench::new(Limits::default());
    let stranger = ConnectFacts {
        authenticated: false,
        ..facts(1, Role::Operator, &[Scope::Admin])
    };
    assert!(matches!(
        bench.connect(&stranger),
        Ok(Verdict::TokenRefused(TokenRefusal::TokenMissing))
    ));
    let bogus = ConnectFacts {
        device_token: Some(TokenHash::of("x")),
        ..stranger
    };
    assert!(matches!(
        bench.connect(&bogus),
        Ok(Verdict::TokenRefused(TokenRefusal::NotPaired))
    ));
    assert_eq!(bench.machine.counts(), (0, 0));
}

#[test]
fn upgrades_wait_and_name_what_they_are() {
    let mut bench = Bench::new(Limits::default());
    let read = facts(1, Role::Operator, &[Scope::Read]);
    let (request, _) = bench.request(&read);
    bench.approve(&request, &admin()).expect("approved");
    bench.paired(&read);
    assert_eq!(
        bench.request(&facts(1, Role::Operator, &[Scope::Write])).1,
        Reason::ScopeUpgrade
    );
    assert_eq!(
        bench.request(&facts(1, Role::Node, &[])).1,
        Reason::RoleUpgrade
    );
    let mut other = read.clone();
    other.client.platform = Some("darwin".into());
    assert_eq!(bench.request(&other).1, Reason::MetadataUpgrade);
    other.client.platform = Some(" LINUX ".into());
    bench.paired(&other);
    // What waits is all of it together; until it is approved the old grant serves.
    let pending = bench
        .machine
        .pending_of(&id(1), bench.now)
        .expect("pending")
        .clone();
    assert_eq!(pending.roles, BTreeSet::from([Role::Operator, Role::Node]));
    assert!(pending.is_repair && pending.scopes.covers(&set(&[Scope::Read, Scope::Write])));
    bench.paired(&read);
}

#[test]
fn a_covered_request_keeps_its_id_and_a_wider_one_replaces_it() {
    let mut bench = Bench::new(Limits::default());
    let (first, _) = bench.request(&facts(1, Role::Operator, &[Scope::Write]));
    assert_eq!(
        bench.request(&facts(1, Role::Operator, &[Scope::Read])).0,
        first
    );
    bench.now = bench.now.plus(61_000);
    assert_eq!(
        bench.request(&facts(1, Role::Operator, &[Scope::Write])).0,
        first
    );
    let (second, _) = bench.request(&facts(1, Role::Operator, &[Scope::Admin]));
    assert_ne!(second, first);
    assert!(
        matches!(&bench.news[0], News::Resolved { request_id, decision: Decision::Rejected, .. } if *request_id == first)
    );
    assert_eq!(
        bench.approve(&first, &admin()),
        Err(Refusal::UnknownRequest)
    );
    assert_eq!(bench.machine.counts(), (0, 1));
    // It lives from the last time it was asked, and no longer.
    bench.now = bench.now.plus(299_999);
    assert!(bench.machine.expire(bench.now).is_none());
    bench.now = bench.now.plus(1);
    assert_eq!(
        bench.approve(&second, &admin()),
        Err(Refusal::UnknownRequest)
    );
    let expired = bench.machine.expire(bench.now).expect("over");
    bench.settle(expired);
    assert_eq!(bench.machine.counts(), (0, 0));
}

#[test]
fn an_approver_gives_what_it_has() {
    let mut bench = Bench::new(Limits::default());
    let (request, _) = bench.request(&facts(1, Role::Operator, &[Scope::Read, Scope::Admin]));
    let pairer = operator(&[Scope::Pairing, Scope::Read]);
    assert_eq!(
        bench.approve(&request, &pairer),
        Err(Refusal::MissingScope(Scope::Admin))
    );
    // A device token's holder has no say about others.
    let device = Caller {
        scopes: set(&[Scope::Pairing]),
        device: Some(id(9)),
        is_device: true,
        behind: BTreeSet::new(),
    };
    assert_eq!(
        bench.approve(&request, &device),
        Err(Refusal::UnknownRequest)
    );
    let change = bench
        .machine
        .approve(&request, &pairer, true, bench.now)
        .expect("narrowed");
    bench.settle(change);
    let grant = bench
        .machine
        .device(&id(1))
        .and_then(|device| device.held(Role::Operator))
        .expect("held")
        .clone();
    assert_eq!(grant.scopes, set(&[Scope::Read]));
    // A node, or an agent, is for an admin to let in.
    for role in [Role::Node, Role::Agent] {
        let (request, _) = bench.request(&facts(2, role, &[Scope::Admin]));
        assert_eq!(
            bench.approve(&request, &pairer),
            Err(Refusal::MissingScope(Scope::Admin))
        );
        bench.approve(&request, &admin()).expect("approved");
        assert!(
            bench
                .machine
                .device(&id(2))
                .and_then(|device| device.held(role))
                .expect("held")
                .scopes
                .is_empty()
        );
    }
}

#[test]
fn local_trust_pairs_an_operator_within_its_scopes_and_brings_nothing_back() {
    let mut bench = Bench::new(Limits::default());
    let local = ConnectFacts {
        local_operator: true,
        ..facts(1, Role::Operator, &[Scope::Read, Scope::Admin])
    };
    let (scopes, token) = bench.paired(&local);
    assert_eq!(scopes, set(&[Scope::Read]));
    assert!(token.is_some());
    let generation = bench.machine.generation(&id(1), Role::Operator);
    // Again: nothing new, no new generation.
    bench.paired(&local);
    assert_eq!(bench.machine.generation(&id(1), Role::Operator), generation);
    let revoke = bench
        .machine
        .revoke(&id(1), Role::Operator, &admin(), bench.now)
        .expect("revoked");
    bench.settle(revoke);
    assert_eq!(bench.machine.generation(&id(1), Role::Operator), None);
    assert_eq!(bench.request(&local).1, Reason::RoleUpgrade);
    // Not an agent, and no second role for a known device.
    assert_eq!(
        bench
            .request(&ConnectFacts {
                local_operator: true,
                ..facts(2, Role::Agent, &[])
            })
            .1,
        Reason::NotPaired
    );
    bench.paired(&ConnectFacts {
        local_operator: true,
        ..facts(3, Role::Node, &[])
    });
    bench.paired(&ConnectFacts {
        local_operator: true,
        ..facts(4, Role::Operator, &[Scope::Read])
    });
    assert_eq!(
        bench
            .request(&ConnectFacts {
                local_operator: true,
                ..facts(4, Role::Node, &[])
            })
            .1,
        Reason::RoleUpgrade
    );
}

/// The bug: what a known device asked for over loopback became its own for good, a changed platform with it.
#[test]
fn local_trust_never_widens_a_device_that_is_known() {
    let mut bench = Bench::new(Limits::default());
    let local = |asked: &[Scope]| ConnectFacts {
        local_operator: true,
        ..facts(1, Role::Operator, asked)
    };
    bench.paired(&local(&[Scope::Read]));
    // The session has it; the device, from elsewhere or by its token alone, has not.
    let (scopes, _) = bench.paired(&local(&[Scope::Read, Scope::Write, Scope::Admin]));
    assert_eq!(scopes, set(&[Scope::Read, Scope::Write]));
    // Nor has a key that is made in such a session.
    let again = local(&[Scope::Read, Scope::Write]);
    let Ok(Verdict::Paired { scopes, own, .. }) = bench.connect(&again) else {
        panic!("not let in");
    };
    assert_eq!(scopes, set(&[Scope::Read, Scope::Write]));
    assert_eq!(own, set(&[Scope::Read]));
    let held = bench
        .machine
        .device(&id(1))
        .and_then(|d| d.held(Role::Operator));
    let held = held.map(|grant| (&grant.scopes, &grant.token_scopes));
    let read = set(&[Scope::Read]);
    assert_eq!(held, Some((&read, &read)));
    let elsewhere = facts(1, Role::Operator, &[Scope::Write]);
    assert_eq!(bench.request(&elsewhere).1, Reason::ScopeUpgrade);
    let mut moved = local(&[Scope::Read]);
    moved.client.platform = Some("darwin".into());
    assert_eq!(bench.request(&moved).1, Reason::MetadataUpgrade);
    let (request, _) = bench.request(&facts(2, Role::Node, &[]));
    bench.approve(&request, &admin()).unwrap();
    let other_role = ConnectFacts {
        local_operator: true,
        ..facts(2, Role::Operator, &[Scope::Read])
    };
    assert_eq!(bench.request(&other_role).1, Reason::RoleUpgrade);
}

#[test]
fn rotation_gives_no_more_than_was_approved_and_than_the_caller_holds() {
    let mut bench = Bench::new(Limits::default());
    let asks = facts(1, Role::Operator, &[Scope::Write]);
    let (request, _) = bench.request(&asks);
    bench.approve(&request, &admin()).expect("approved");
    let token = bench.paired(&asks).1.expect("token");
    let rotate = |bench: &Bench, role, scopes: Option<&[Scope]>, caller: &Caller| {
        bench
            .machine
            .rotate(
                &id(1),
                role,
                scopes.map(set),
                caller,
                bench.now,
                &bench.fresh(),
            )
            .map(|(rotated, change)| (rotated.token.is_some(), change))
    };
    let denied = |result: Result<(bool, Change), Refusal>| result.map(|_| ()).unwrap_err();
    let own = Caller {
        scopes: set(&[Scope::Write]),
        device: Some(id(1)),
        is_device: true,
        behind: BTreeSet::new(),
    };
    let other = Caller {
        device: Some(id(2)),
        ..own.clone()
    };
    assert_eq!(
        denied(rotate(
            &bench,
            Role::Operator,
            Some(&[Scope::Admin]),
            &admin()
        )),
        Refusal::RotationDenied
    );
    assert_eq!(
        denied(rotate(&bench, Role::Node, None, &admin())),
        Refusal::RotationDenied
    );
    assert_eq!(
        denied(rotate(&bench, Role::Operator, None, &other)),
        Refusal::RotationDenied
    );
    assert_eq!(
        denied(rotate(
            &bench,
            Role::Operator,
            None,
            &operator(&[Scope::Pairing])
        )),
        Refusal::RotationDenied
    );
    let (in_band, change) =
        rotate(&bench, Role::Operator, Some(&[Scope::Read]), &own).expect("own");
    assert!(in_band);
    bench.settle(change);
    let old = ConnectFacts {
        authenticated: false,
        device_token: Some(TokenHash::of(&token)),
        ..asks.clone()
    };
    assert!(matches!(
        bench.connect(&old),
        Ok(Verdict::TokenRefused(TokenRefusal::TokenMismatch))
    ));
    // Another's rotation withholds the new token; the device gets one when it next proves something else.
    let (in_band, change) = rotate(&bench, Role::Operator, None, &admin()).expect("admin");
    assert!(!in_band);
    bench.settle(change);
    assert!(matches!(
        &bench.news[0],
        News::Invalidated {
            why: Invalidation::TokenRotated,
            generation: Some(_),
            ..
        }
    ));
    assert!(bench.paired(&asks).1.is_some());
}

/// The bug: with the shared token a device went on with all that was approved before its own token was given less.
#[test]
fn a_rotation_that_gives_less_holds_with_the_shared_token_too() {
    let mut bench = Bench::new(Limits::default());
    let wide = facts(1, Role::Operator, &[Scope::Write, Scope::Approvals]);
    let (request, _) = bench.request(&wide);
    bench.approve(&request, &admin()).expect("approved");
    bench.paired(&wide);
    let less = Some(set(&[Scope::Read]));
    let (_, change) = bench
        .machine
        .rotate(
            &id(1),
            Role::Operator,
            less,
            &admin(),
            bench.now,
            &bench.fresh(),
        )
        .expect("rotated");
    bench.settle(change);
    assert_eq!(bench.request(&wide).1, Reason::ScopeUpgrade);
    let narrow = facts(1, Role::Operator, &[Scope::Read]);
    let Ok(Verdict::Paired { own, scopes, .. }) = bench.connect(&narrow) else {
        panic!("not let in");
    };
    assert_eq!((own, scopes), (set(&[Scope::Read]), set(&[Scope::Read])));
}

/// The bug: a name of many spaces made lines of its own before who decided on it.
#[test]
fn what_a_device_calls_itself_makes_no_lines_and_pushes_nothing_aside() {
    let mut bench = Bench::new(Limits::default());
    let mut facts = facts(1, Role::Operator, &[Scope::Read]);
    let name = format!("laptop{}roles  operator", " ".repeat(120));
    facts.client.display_name = Some(name);
    facts.client.device_family = Some("e\u{301}\u{301}\u{301}\u{301}\u{301}".to_owned());
    let (request, _) = bench.request(&facts);
    let shown = bench.machine.pending[&request].to_wire();
    let name = shown["displayName"].as_str().unwrap();
    assert!(!name.contains("  "), "{name}");
    assert!(name.starts_with("laptop \\u{20}"), "{name}");
    assert!(
        shown["deviceFamily"].as_str().unwrap().contains("\\u{301}"),
        "{shown}"
    );
    bench.approve(&request, &admin()).expect("approved");
    let device = bench.machine.device(&id(1)).unwrap().to_wire(None);
    assert_eq!(device["displayName"], shown["displayName"]);
}

#[test]
fn who_asks_to_be_paired_cannot_answer() {
    let mut bench = Bench::new(Limits::default());
    let (request, _) = bench.request(&facts(1, Role::Operator, &[Scope::Pairing]));
    bench.approve(&request, &admin()).expect("approved");
    let (wider, reason) = bench.request(&facts(1, Role::Operator, &[Scope::Pairing, Scope::Write]));
    assert_eq!(reason, Reason::ScopeUpgrade);
    for scopes in [&[Scope::Pairing][..], &[Scope::Admin]] {
        for is_device in [false, true] {
            let own = Caller {
                scopes: set(scopes),
                device: Some(id(1)),
                is_device,
                behind: BTreeSet::new(),
            };
            for narrow in [false, true] {
                let answer = bench.machine.approve(&wider, &own, narrow, bench.now);
                assert_eq!(answer.err(), Some(Refusal::ApprovalDenied));
            }
        }
    }
    // To take it back is its own affair.
    let own = Caller {
        scopes: set(&[Scope::Pairing]),
        device: Some(id(1)),
        is_device: true,
        behind: BTreeSet::new(),
    };
    assert!(bench.machine.reject(&wider, &own, bench.now).is_ok());
}

#[test]
fn a_request_from_before_the_clock_was_set_back_is_over() {
    let mut bench = Bench::new(Limits::default());
    let (request, _) = bench.request(&facts(1, Role::Operator, &[Scope::Read]));
    bench.now = Millis(T0.0 - 1);
    assert_eq!(
        bench.approve(&request, &admin()),
        Err(Refusal::UnknownRequest)
    );
    let over = bench.machine.expire(bench.now).expect("expired");
    assert_eq!(over.drop_pending, std::slice::from_ref(&request));
    bench.settle(over);
    let (again, _) = bench.request(&facts(1, Role::Operator, &[Scope::Read]));
    assert_ne!(again, request);
    bench.approve(&again, &admin()).expect("approved");
}

#[test]
fn the_wire_sees_the_words_it_knows() {
    let mut bench = Bench::new(Limits::default());
    let Ok(Verdict::Pending(needed)) = bench.connect(&facts(1, Role::Operator, &[Scope::Read]))
    else {
        panic!("pending")
    };
    assert_eq!(
        needed.message(),
        "pairing required: device is not approved yet"
    );
    assert!(
        needed
            .close_reason()
            .ends_with(&format!("(requestId: {})", needed.request_id))
    );
    let details = needed.details();
    assert_eq!(
        (&details["code"], &details["reason"]),
        (&"PAIRING_REQUIRED".into(), &"not-paired".into())
    );
    assert_eq!(details["requestedScopes"][0], "operator.read");
    assert_eq!(
        bench.news[0].to_wire().expect("event").0,
        "device.pair.requested"
    );
    bench
        .approve(&needed.request_id, &admin())
        .expect("approved");
    let (name, payload) = bench.news[0].to_wire().expect("event");
    assert_eq!(
        (name, &payload["decision"]),
        ("device.pair.resolved", &"approved".into())
    );
    let list = bench.machine.list(&admin(), &BTreeSet::new(), bench.now);
    let device = &list["paired"][0];
    assert_eq!(
        (
            &device["role"],
            &device["approvedVia"],
            &device["connected"]
        ),
        (&"operator".into(), &"owner".into(), &false.into())
    );
    assert_eq!(device["tokens"][0]["role"], "operator");
    let removed = bench
        .machine
        .remove(&id(1), &admin(), bench.now)
        .expect("removed");
    bench.settle(removed);
    assert!(matches!(
        &bench.news[0],
        News::Invalidated {
            generation: None,
            why: Invalidation::Removed,
            ..
        }
    ));
    assert_eq!(
        bench.machine.list(&admin(), &BTreeSet::new(), bench.now),
        serde_json::json!({"pending": [], "paired": []})
    );
}

/// The bug: a request for more outlived the revocation of its device, and an approval of it brought the device back.
#[test]
fn what_a_device_asked_for_ends_with_its_revocation() {
    let mut bench = Bench::new(Limits::default());
    bench.paired(&ConnectFacts {
        local_operator: true,
        ..facts(1, Role::Operator, &[Scope::Read])
    });
    let Ok(Verdict::Pending(more)) = bench.connect(&facts(1, Role::Operator, &[Scope::Admin]))
    else {
        panic!("pending")
    };
    let Ok(Verdict::Pending(other)) = bench.connect(&facts(2, Role::Operator, &[Scope::Read]))
    else {
        panic!("pending")
    };
    let revoked = bench
        .machine
        .revoke(&id(1), Role::Operator, &admin(), bench.now)
        .expect("revoked");
    bench.settle(revoked);
    let told = bench.news.iter().any(|news| {
        let told = news.to_wire();
        told.is_some_and(|(_, payload)| payload["requestId"] == more.request_id.as_str())
    });
    assert!(told, "{:?}", bench.news);
    assert!(bench.approve(&more.request_id, &admin()).is_err());
    bench
        .approve(&other.request_id, &admin())
        .expect("another device's");
}

#[test]
fn a_token_is_of_the_device_kind() {
    let mut bench = Bench::new(Limits::default());
    let token = bench
        .paired(&ConnectFacts {
            local_operator: true,
            ..facts(1, Role::Operator, &[])
        })
        .1
        .expect("token");
    assert!(matches!(Token::parse(&token), Ok((TokenKind::Device, _))));
}

#[test]
fn a_request_under_other_metadata_gets_what_it_shows_and_keeps_nothing() {
    for asked in [&[][..], &[Scope::Read]] {
        let mut bench = Bench::new(Limits::default());
        for (role, scopes) in [(Role::Operator, &[Scope::Admin][..]), (Role::Node, &[])] {
            let (request, _) = bench.request(&facts(1, role, scopes));
            let change = bench.machine.approve(&request, &admin(), false, bench.now);
            bench.settle(change.unwrap());
        }
        bench.paired(&facts(1, Role::Operator, &[Scope::Admin]));
        let mut moved = facts(1, Role::Operator, asked);
        moved.client.platform = Some("darwin".into());
        let (request, reason) = bench.request(&moved);
        assert_eq!(reason, Reason::MetadataUpgrade);
        let change = bench.machine.approve(&request, &admin(), false, bench.now);
        bench.settle(change.unwrap());
        let device = bench.machine.device(&id(1)).unwrap();
        let held = device.held(Role::Operator).unwrap();
        assert_eq!(
            (&held.scopes, &held.token_scopes),
            (&set(asked), &set(asked))
        );
        assert!(held.token.is_none() && device.held(Role::Node).is_none());
        moved.asked = set(&[Scope::Admin]);
        assert_eq!(bench.request(&moved).1, Reason::ScopeUpgrade);
    }
}

#[test]
fn a_device_acts_on_itself_alone_without_admin_whatever_else_it_brought() {
    let proofs = [
        Proof::DeviceToken(id(1)),
        Proof::SharedTokenAndDevice(id(1)),
        Proof::PasswordAndDevice("ann".into(), id(1)),
        Proof::SetupCode(id(1)),
        Proof::Signature(id(1), "key".into()),
    ];
    let principal = |proof: Proof, scopes: &[Scope]| Principal {
        proof,
        door: Door::Tcp,
        role: Role::Operator,
        scopes: set(scopes),
        agent: None,
        generation: 1,
        secret: None,
    };
    for proof in proofs {
        let lesser = Caller::of(&principal(proof.clone(), &[Scope::Pairing, Scope::Write]));
        assert!(lesser.may_touch(&id(1)) && !lesser.may_touch(&id(2)));
        let admin = Caller::of(&principal(proof, &[Scope::Admin]));
        assert!(admin.may_touch(&id(2)));
    }
    // A person without a device is no device.
    let person = Caller::of(&principal(Proof::PeerUid(0), &[Scope::Pairing]));
    assert!(person.may_touch(&id(2)));
}
