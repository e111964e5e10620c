//! Random orders of everything that can happen, against a ledger of what may be.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

#[derive(Debug, Clone)]
enum Step {
    Connect {
        device: u32,
        role: Role,
        asked: Vec<Scope>,
        local: bool,
        with: Credential,
        address: u8,
        platform: bool,
    },
    Approve {
        nth: usize,
        scopes: Vec<Scope>,
        narrow: bool,
    },
    Reject {
        nth: usize,
    },
    Rotate {
        device: u32,
        role: Role,
        scopes: Option<Vec<Scope>>,
        caller: Vec<Scope>,
        own: bool,
    },
    Revoke {
        device: u32,
        role: Role,
    },
    Remove {
        device: u32,
    },
    Wait(u64),
}

#[derive(Debug, Clone, Copy)]
enum Credential {
    Shared,
    Current,
    Old,
    None,
}

fn any_role() -> impl Strategy<Value = Role> {
    prop_oneof![4 => Just(Role::Operator), 1 => Just(Role::Node), 1 => Just(Role::Agent)]
}

fn any_scopes() -> impl Strategy<Value = Vec<Scope>> {
    let scope = proptest::sample::select(vec![
        Scope::Admin,
        Scope::Read,
        Scope::Write,
        Scope::Approvals,
        Scope::Pairing,
    ]);
    proptest::collection::vec(scope, 0..3)
}

fn any_step() -> impl Strategy<Value = Step> {
    let with = prop_oneof![4 => Just(Credential::Shared), 2 => Just(Credential::Current), 1 => Just(Credential::Old), 1 => Just(Credential::None)];
    prop_oneof![
        8 => (0..5_u32, any_role(), any_scopes(), proptest::bool::weighted(0.2), with, 0..3_u8, proptest::bool::weighted(0.9))
            .prop_map(|(device, role, asked, local, with, address, platform)| Step::Connect { device, role, asked, local, with, address, platform }),
        5 => (0..4_usize, any_scopes(), any::<bool>()).prop_map(|(nth, scopes, narrow)| Step::Approve { nth, scopes, narrow }),
        1 => (0..4_usize).prop_map(|nth| Step::Reject { nth }),
        2 => (0..5_u32, any_role(), proptest::option::of(any_scopes()), any_scopes(), any::<bool>())
            .prop_map(|(device, role, scopes, caller, own)| Step::Rotate { device, role, scopes, caller, own }),
        2 => (0..5_u32, any_role()).prop_map(|(device, role)| Step::Revoke { device, role }),
        1 => (0..5_u32).prop_map(|device| Step::Remove { device }),
        1 => (0..200_000_u64).prop_map(Step::Wait),
    ]
}

type Held = BTreeMap<(u32, Role), ScopeSet>;

/// What may be, kept apart from the machine.
#[derive(Default)]
struct Ledger {
    allowed: Held,
    revoked: BTreeSet<(u32, Role)>,
    token: BTreeMap<(u32, Role), String>,
    old: BTreeMap<(u32, Role), String>,
}

impl Ledger {
    fn allow(&mut self, key: (u32, Role), scopes: &ScopeSet) {
        let now = self.allowed.entry(key).or_default();
        *now = now.union(scopes);
    }

    fn void(&mut self, key: (u32, Role)) {
        if let Some(token) = self.token.remove(&key) {
            self.old.insert(key, token);
        }
    }
}

fn number(device: &DeviceId) -> u32 {
    u32::from_str_radix(&device.as_str()[56..], 16).expect("hex")
}

fn run(bench: &mut Bench, ledger: &mut Ledger, step: Step) -> Result<(), TestCaseError> {
    match step {
        Step::Wait(ms) => bench.now = bench.now.plus(ms),
        Step::Connect {
            device,
            role,
            asked,
            local,
            with,
            address,
            platform,
        } => {
            let key = (device, role);
            let mut facts = facts(device, role, &asked);
            facts.local_operator = local;
            facts.client.remote_ip = Some(IpAddr::from([10, 0, 0, address]));
            facts.client.platform = platform.then(|| "linux".to_owned());
            facts.authenticated = matches!(with, Credential::Shared);
            let presented = match with {
                Credential::Current => ledger.token.get(&key),
                Credential::Old => ledger.old.get(&key),
                Credential::Shared | Credential::None => None,
            };
            facts.device_token = presented.map(|token| TokenHash::of(token));
            let right =
                facts.authenticated || (matches!(with, Credential::Current) && presented.is_some());
            let before = bench.machine.counts();
            let was_known = bench.machine.device(&facts.device_id).is_some();
            match bench.connect(&facts) {
                Ok(Verdict::Paired { scopes, token, .. }) => {
                    prop_assert!(right, "let in with {with:?}");
                    let is_local = local && facts.authenticated && role == Role::Operator;
                    if is_local && !was_known {
                        ledger.allow(key, &facts.local_scopes.narrow(&facts.asked));
                    }
                    prop_assert!(!ledger.revoked.contains(&key), "revoked, and let in");
                    prop_assert!(facts.asked.covers(&scopes));
                    let mut allowed = ledger.allowed.get(&key).cloned().unwrap_or_default();
                    if is_local {
                        // Of this session alone.
                        allowed = allowed.union(&facts.local_scopes);
                    }
                    prop_assert!(allowed.covers(&scopes), "{scopes:?} of {allowed:?}");
                    if let Some(issued) = token {
                        prop_assert!(!ledger.token.contains_key(&key), "a second token");
                        prop_assert!(facts.authenticated);
                        ledger.token.insert(key, issued.token.expose().to_owned());
                    }
                }
                Ok(Verdict::Pending(_)) => prop_assert!(right, "a request by {with:?}"),
                Ok(Verdict::TokenRefused(_)) => {
                    prop_assert!(!facts.authenticated);
                    prop_assert_eq!(bench.machine.counts(), before);
                }
                Err(refusal) => prop_assert!(matches!(
                    refusal,
                    Refusal::TooManyPending | Refusal::AsksTooOften
                )),
            }
        }
        Step::Approve {
            nth,
            scopes,
            narrow,
        } => {
            let Some(pending) = bench.machine.pending.values().nth(nth).cloned() else {
                return Ok(());
            };
            let caller = operator(&scopes);
            let device = number(&pending.device_id);
            if let Ok(change) =
                bench
                    .machine
                    .approve(&pending.request_id, &caller, narrow, bench.now)
            {
                let generation = bench
                    .machine
                    .device(&pending.device_id)
                    .map(|device| device.generation);
                let moved = bench
                    .machine
                    .device(&pending.device_id)
                    .is_some_and(|known| known.client.platform != pending.client.platform);
                if moved {
                    // Approved for another machine: all that counts is what is said now.
                    for role in [Role::Operator, Role::Node, Role::Agent] {
                        ledger.void((device, role));
                        ledger.allowed.remove(&(device, role));
                    }
                }
                bench.settle(change);
                for role in &pending.roles {
                    prop_assert!(*role == Role::Operator || caller.scopes.allows(Scope::Admin));
                    if ledger.revoked.remove(&(device, *role)) {
                        ledger.allowed.remove(&(device, *role));
                    }
                    let given = if *role == Role::Operator {
                        caller.scopes.narrow(&pending.scopes)
                    } else {
                        ScopeSet::empty()
                    };
                    ledger.allow((device, *role), &given);
                }
                prop_assert_ne!(
                    bench
                        .machine
                        .device(&pending.device_id)
                        .map(|device| device.generation),
                    generation
                );
            }
        }
        Step::Reject { nth } => {
            let Some(pending) = bench.machine.pending.values().nth(nth).cloned() else {
                return Ok(());
            };
            if let Ok(change) = bench
                .machine
                .reject(&pending.request_id, &admin(), bench.now)
            {
                bench.settle(change);
            }
        }
        Step::Rotate {
            device,
            role,
            scopes,
            caller,
            own,
        } => {
            let caller = Caller {
                scopes: set(&caller),
                device: own.then(|| id(device)),
                is_device: own,
                behind: BTreeSet::new(),
            };
            let generation = bench.machine.generation(&id(device), role);
            let rotated = bench.machine.rotate(
                &id(device),
                role,
                scopes.map(|scopes| set(&scopes)),
                &caller,
                bench.now,
                &bench.fresh(),
            );
            if let Ok((rotated, change)) = rotated {
                bench.settle(change);
                prop_assert!(caller.scopes.covers(&rotated.scopes));
                prop_assert_ne!(bench.machine.generation(&id(device), role), generation);
                ledger.void((device, role));
                if let Some(issued) = rotated.token {
                    prop_assert!(own);
                    ledger
                        .token
                        .insert((device, role), issued.token.expose().to_owned());
                }
            }
        }
        Step::Revoke { device, role } => {
            if let Ok(change) = bench.machine.revoke(&id(device), role, &admin(), bench.now) {
                bench.settle(change);
                prop_assert_eq!(bench.machine.generation(&id(device), role), None);
                ledger.void((device, role));
                ledger.revoked.insert((device, role));
            }
        }
        Step::Remove { device } => {
            if let Ok(change) = bench.machine.remove(&id(device), &admin(), bench.now) {
                bench.settle(change);
                for role in [Role::Operator, Role::Node, Role::Agent] {
                    ledger.void((device, role));
                    ledger.revoked.remove(&(device, role));
                    ledger.allowed.remove(&(device, role));
                }
            }
        }
    }
    // A room expires what is over from time to time.
    if let Some(change) = bench.machine.expire(bench.now) {
        bench.settle(change);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1_500) })]

    #[test]
    fn no_order_of_events_gives_more_than_was_allowed(steps in proptest::collection::vec(any_step(), 1..60)) {
        let limits = Limits { pending_max: 4, pending_per_address: 2, ..Limits::default() };
        let mut bench = Bench::new(limits);
        let mut ledger = Ledger::default();
        for step in steps {
            run(&mut bench, &mut ledger, step)?;
            let mut devices = BTreeSet::new();
            let mut addresses = BTreeMap::<_, usize>::new();
            for pending in bench.machine.pending.values() {
                prop_assert!(devices.insert(pending.device_id.clone()), "two requests of one device");
                *addresses.entry(pending.client.remote_ip).or_default() += 1;
            }
            prop_assert!(bench.machine.pending.len() <= limits.pending_max);
            prop_assert!(addresses.values().all(|count| *count <= limits.pending_per_address), "{addresses:?}");
            for (device, role, grant) in bench.machine.devices.values().flat_map(|device| device.grants.iter().map(move |(role, grant)| (device, role, grant))) {
                if grant.revoked_at_ms.is_some() {
                    prop_assert!(grant.token.is_none());
                    continue;
                }
                let allowed = ledger.allowed.get(&(number(&device.device_id), *role)).cloned().unwrap_or_default();
                prop_assert!(allowed.covers(&grant.scopes), "{role}: {:?} of {allowed:?}", grant.scopes);
                prop_assert!(grant.scopes.covers(&grant.token_scopes));
            }
        }
    }
}
