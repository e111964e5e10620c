//! A proven device connects: may it come in, and as what?

use super::machine::{Change, Decision, Pairing, Record, resolved, source};
use super::manage::Refusal;
use super::records::{ApprovedVia, Client, Device, FORMAT, Grant, KeptToken, Pending};
use crate::auth::limits::Source;
use crate::auth::{Role, Scope, ScopeSet, SecretStanding};
use crate::ids::DeviceId;
use crate::time::Millis;
use crate::token::{Token, TokenHash, TokenKind};
use std::collections::{BTreeMap, BTreeSet};

/// A refreshed request is written again only after this time: a client that asks every second costs no write each.
const REFRESH_WRITE_MS: u64 = 15_000;
/// Who has not asked again for so long makes room in its own source: clients that wait for an answer ask every few
/// seconds, and no more than one request in this time is displaced per place.
const SILENT_MS: u64 = 45_000;

/// What is known of a connection whose device signature has been verified.
#[derive(Debug, Clone)]
pub struct ConnectFacts {
    /// Proven.
    pub device_id: DeviceId,
    /// Proven; base64url.
    pub public_key: String,
    /// As it says of itself.
    pub client: Client,
    /// Asked for.
    pub role: Role,
    /// Asked for.
    pub asked: ScopeSet,
    /// Another credential than a device token was proven: the shared token, or an operator's uid.
    pub authenticated: bool,
    /// The shared secret that it was proven by. Nothing is recorded under it once it has been changed.
    pub secret: Option<SecretStanding>,
    /// The device token that was presented, as its hash. Looked at only when nothing else was proven.
    pub device_token: Option<TokenHash>,
    /// The kernel says that the peer is on this machine and its uid maps to an operator.
    pub local_operator: bool,
    /// What local trust gives at the most.
    pub local_scopes: ScopeSet,
}

/// Random material for what a decision may have to make. All from the operating system, never used twice.
pub struct Fresh {
    /// For a new request: a UUID.
    pub request_id: String,
    /// For a new token.
    pub token: [u8; 32],
}

/// A token on its only way out.
pub struct IssuedToken {
    /// To be given to the device.
    pub token: Token,
    /// When it was issued.
    pub issued_at_ms: Millis,
}

/// The answer.
pub enum Verdict {
    /// Come in.
    Paired {
        /// Asked ∩ granted.
        scopes: ScopeSet,
        /// Of these, what the device has for good: local trust may give this session more.
        own: ScopeSet,
        /// Shown this once.
        token: Option<IssuedToken>,
        /// The session lives as long as this is the device's generation.
        generation: u64,
        /// The device token was the credential.
        by_device_token: bool,
    },
    /// A person must decide.
    Pending(Box<PairingNeeded>),
    /// Nothing was proven: no state is made for it.
    TokenRefused(TokenRefusal),
}

/// Why a device may not come in yet (wire.md section 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is named by its word and its requirement")]
pub enum Reason {
    NotPaired,
    RoleUpgrade,
    ScopeUpgrade,
    MetadataUpgrade,
}

impl Reason {
    /// `details.reason`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotPaired => "not-paired",
            Self::RoleUpgrade => "role-upgrade",
            Self::ScopeUpgrade => "scope-upgrade",
            Self::MetadataUpgrade => "metadata-upgrade",
        }
    }

    /// What follows "pairing required: ".
    pub const fn requirement(self) -> &'static str {
        match self {
            Self::NotPaired => "device is not approved yet",
            Self::RoleUpgrade => "device is asking for a higher role than currently approved",
            Self::ScopeUpgrade => "device is asking for more scopes than currently approved",
            Self::MetadataUpgrade => "device identity changed and must be re-approved",
        }
    }
}

/// What the refusal says: code `NOT_PAIRED`, details `PAIRING_REQUIRED`, close 1008.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairingNeeded {
    /// To be approved by a person.
    pub request_id: String,
    /// Why.
    pub reason: Reason,
    /// Who asks.
    pub device_id: DeviceId,
    /// What it asks for.
    pub requested_role: Role,
    /// What it asks for.
    pub requested_scopes: ScopeSet,
    /// What it has.
    pub approved_roles: Vec<Role>,
    /// What it has.
    pub approved_scopes: ScopeSet,
}

/// Why a device token is not believed (wire.md section 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is named by its word")]
pub enum TokenRefusal {
    NotPaired,
    RoleMissing,
    TokenMissing,
    TokenRevoked,
    TokenMismatch,
}

impl TokenRefusal {
    /// The word in records. A client learns no more than "device token mismatch".
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotPaired => "device-not-paired",
            Self::RoleMissing => "role-missing",
            Self::TokenMissing => "token-missing",
            Self::TokenRevoked => "token-revoked",
            Self::TokenMismatch => "token-mismatch",
        }
    }
}

impl Pairing {
    /// Decides. The change, if there is one, must be durable and settled before the verdict is acted on; a verdict
    /// `Paired` then takes its generation from [`Pairing::generation`].
    ///
    /// # Errors
    /// [`Refusal::TooManyPending`], [`Refusal::AsksTooOften`], [`Refusal::TooManyDevices`].
    pub fn decide(
        &self,
        facts: &ConnectFacts,
        now: Millis,
        fresh: Fresh,
    ) -> Result<(Verdict, Option<Change>), Refusal> {
        if !facts.authenticated
            && let Err(refusal) = self.check_token(facts)
        {
            return Ok((Verdict::TokenRefused(refusal), None));
        }
        // Only operators have scopes to ask for.
        let asked = if facts.role == Role::Operator {
            facts.asked.clone()
        } else {
            ScopeSet::empty()
        };
        let device = self.devices.get(&facts.device_id);
        let held = device.and_then(|device| device.held(facts.role));
        // Whatever it has come in with: a rotation that gave its token less is a cut, which a shared secret does not undo.
        let ceiling = held.map(|grant| &grant.token_scopes);
        let is_local = facts.authenticated && is_trusted_locally(facts);
        let reason = match (device, ceiling) {
            (None, _) if is_local => return self.pair_locally(facts, &asked, now, &fresh),
            (None, _) => Reason::NotPaired,
            (Some(_), None) => Reason::RoleUpgrade,
            (Some(device), Some(_)) if !device.client.same_metadata(&facts.client) => {
                Reason::MetadataUpgrade
            }
            (Some(device), Some(ceiling)) if ceiling.covers(&asked) => {
                return Ok(let_in(device, facts, asked, now, &fresh));
            }
            // For this session, as the operator's process that it is: what the device itself may stays as it was.
            (Some(device), Some(ceiling)) if is_local => {
                let scopes = ceiling.union(&facts.local_scopes).narrow(&asked);
                return Ok(let_in(device, facts, scopes, now, &fresh));
            }
            _ => Reason::ScopeUpgrade,
        };
        self.ask_a_person(facts, asked, reason, now, fresh)
    }

    fn check_token(&self, facts: &ConnectFacts) -> Result<(), TokenRefusal> {
        let presented = facts
            .device_token
            .as_ref()
            .ok_or(TokenRefusal::TokenMissing)?;
        let device = self
            .devices
            .get(&facts.device_id)
            .ok_or(TokenRefusal::NotPaired)?;
        let grant = device
            .grants
            .get(&facts.role)
            .ok_or(TokenRefusal::RoleMissing)?;
        if grant.revoked_at_ms.is_some() {
            return Err(TokenRefusal::TokenRevoked);
        }
        let kept = grant.token.as_ref().ok_or(TokenRefusal::TokenMissing)?;
        if kept.hash.same(presented) {
            Ok(())
        } else {
            Err(TokenRefusal::TokenMismatch)
        }
    }

    /// A new device. One that is known is never widened by this: a person approves what it is to have for good.
    fn pair_locally(
        &self,
        facts: &ConnectFacts,
        asked: &ScopeSet,
        now: Millis,
        fresh: &Fresh,
    ) -> Result<(Verdict, Option<Change>), Refusal> {
        if self.devices.len() >= self.limits.devices_max {
            return Err(Refusal::TooManyDevices);
        }
        let scopes = facts.local_scopes.narrow(asked);
        let mut device = new_device(facts, ApprovedVia::Silent, now);
        grant(&mut device, facts.role, scopes.clone());
        let token = issue_if_missing(&mut device, facts.role, now, fresh);
        let generation = device.generation;
        let mut change = Change::new(Record::Intent, "pairing.auto_approve", &facts.device_id);
        change.detail.push(("role", facts.role.to_string()));
        change.detail.push(("scopes", words(&scopes)));
        change.new_generation = true;
        if let Some(pending) = self.pending_of(&facts.device_id, now)
            && pending.roles.iter().all(|role| *role == facts.role)
            && scopes.covers(&pending.scopes)
        {
            change.drop_pending.push(pending.request_id.clone());
            change.news.push(resolved(pending, Decision::Approved, now));
        }
        device.approved_at_ms = now;
        change.put_devices.push(device);
        let verdict = Verdict::Paired {
            own: scopes.clone(),
            scopes,
            token,
            generation,
            by_device_token: false,
        };
        Ok((verdict, Some(change)))
    }

    fn ask_a_person(
        &self,
        facts: &ConnectFacts,
        asked: ScopeSet,
        reason: Reason,
        now: Millis,
        fresh: Fresh,
    ) -> Result<(Verdict, Option<Change>), Refusal> {
        let known = self.devices.get(&facts.device_id);
        let live = self.pending_of(&facts.device_id, now);
        let is_covered = live.is_some_and(|pending| {
            pending.roles.contains(&facts.role)
                && pending.scopes.covers(&asked)
                && pending.client.same_metadata(&facts.client)
        });
        let (request_id, change) = match live {
            Some(pending) if is_covered => {
                // A client that asks every second costs no write each time.
                let is_due = now.since(pending.refreshed_at_ms) >= REFRESH_WRITE_MS;
                let change = is_due.then(|| {
                    let mut change =
                        Change::new(Record::Nothing, "pairing.refresh", &facts.device_id);
                    change.put_pending.push(Pending {
                        refreshed_at_ms: now,
                        ..pending.clone()
                    });
                    change
                });
                (pending.request_id.clone(), change)
            }
            live => {
                if !self.may_turn(&facts.device_id, now) {
                    return Err(Refusal::AsksTooOften);
                }
                let displaced = self.make_room(facts, now)?;
                let mut change = Change::new(Record::Event, "pairing.request", &facts.device_id);
                change.turn = Some(now);
                let mut roles = BTreeSet::from([facts.role]);
                let mut scopes = asked.clone();
                if let Some(displaced) = displaced {
                    let id = displaced.request_id.clone();
                    change.detail.push(("displaced", id));
                }
                for old in live.into_iter().chain(displaced) {
                    change.drop_pending.push(old.request_id.clone());
                    change.news.push(resolved(old, Decision::Rejected, now));
                }
                if let Some(old) = live {
                    roles.extend(&old.roles);
                    scopes = scopes.union(&old.scopes);
                }
                let pending = Pending {
                    v: FORMAT,
                    request_id: fresh.request_id.clone(),
                    device_id: facts.device_id.clone(),
                    public_key: facts.public_key.clone(),
                    client: facts.client.clone(),
                    roles,
                    scopes,
                    is_repair: known.is_some(),
                    created_at_ms: now,
                    refreshed_at_ms: now,
                };
                change.detail.push(("request", pending.request_id.clone()));
                change.detail.push(("reason", reason.as_str().to_owned()));
                change.detail.push((
                    "roles",
                    pending
                        .roles
                        .iter()
                        .map(|role| role.as_str())
                        .collect::<Vec<_>>()
                        .join(","),
                ));
                change.detail.push(("scopes", words(&pending.scopes)));
                change
                    .news
                    .push(super::machine::News::Requested(Box::new(pending.clone())));
                change.put_pending.push(pending);
                (fresh.request_id, Some(change))
            }
        };
        let needed = PairingNeeded {
            request_id,
            reason,
            device_id: facts.device_id.clone(),
            requested_role: facts.role,
            requested_scopes: asked,
            approved_roles: known
                .map(|device| {
                    device
                        .grants
                        .keys()
                        .copied()
                        .filter(|role| device.held(*role).is_some())
                        .collect()
                })
                .unwrap_or_default(),
            approved_scopes: known
                .and_then(|device| device.held(Role::Operator))
                .map(|grant| grant.scopes.clone())
                .unwrap_or_default(),
        };
        Ok((Verdict::Pending(Box::new(needed)), change))
    }

    /// Room for one more request. In a source that is full, the one that has been silent longest makes room, if it has
    /// been for [`SILENT_MS`]: a flood that does not go on asking locks nobody out, and one that does gets no more than
    /// its share. When all is full, the network with the most requests loses the newest one of its fullest source, but
    /// only to one that would still have fewer: who asks alone in his network is never displaced.
    fn make_room(&self, facts: &ConnectFacts, now: Millis) -> Result<Option<&Pending>, Refusal> {
        let bucket = source(&facts.client);
        let mut live: BTreeMap<Source, Vec<&Pending>> = BTreeMap::new();
        let mut networks: BTreeMap<Source, usize> = BTreeMap::new();
        let mut total = 0;
        let others = self
            .pending
            .values()
            .filter(|pending| self.is_live(pending, now) && pending.device_id != facts.device_id);
        for pending in others {
            let source = source(&pending.client);
            *networks.entry(source.network()).or_default() += 1;
            live.entry(source).or_default().push(pending);
            total += 1;
        }
        let own = live.get(&bucket).map_or(0, Vec::len);
        if own >= self.limits.pending_per_address {
            let quietest = live[&bucket]
                .iter()
                .min_by_key(|pending| (pending.refreshed_at_ms, &pending.request_id))
                .copied()
                .filter(|pending| now.since(pending.refreshed_at_ms) >= SILENT_MS);
            return quietest.map(Some).ok_or(Refusal::TooManyPending);
        }
        if total < self.limits.pending_max {
            return Ok(None);
        }
        let home = bucket.network();
        let at_home = networks.get(&home).copied().unwrap_or(0);
        let fullest = networks
            .into_iter()
            .max_by_key(|(_, requests)| *requests)
            .filter(|(_, requests)| *requests > at_home + 1)
            .map_or(home.clone(), |(network, _)| network);
        live.into_iter()
            .filter(|(source, _)| source.network() == fullest)
            .map(|(_, requests)| requests)
            .max_by_key(Vec::len)
            .filter(|requests| fullest != home || requests.len() > own + 1)
            .and_then(|requests| {
                requests
                    .into_iter()
                    .max_by_key(|pending| (pending.created_at_ms, &pending.request_id))
            })
            .map(Some)
            .ok_or(Refusal::TooManyPending)
    }
}

fn let_in(
    device: &Device,
    facts: &ConnectFacts,
    asked: ScopeSet,
    now: Millis,
    fresh: &Fresh,
) -> (Verdict, Option<Change>) {
    let mut device = device.clone();
    let token = if facts.authenticated {
        issue_if_missing(&mut device, facts.role, now, fresh)
    } else {
        None
    };
    let change = token.is_some().then(|| {
        let mut change = Change::new(Record::Intent, "pairing.token_issue", &facts.device_id);
        change.detail.push(("role", facts.role.to_string()));
        change.put_devices.push(device.clone());
        change
    });
    let own = device
        .held(facts.role)
        .map(|grant| grant.token_scopes.narrow(&asked));
    let verdict = Verdict::Paired {
        own: own.unwrap_or_default(),
        scopes: asked,
        token,
        generation: device.generation,
        by_device_token: !facts.authenticated,
    };
    (verdict, change)
}

/// Local trust is for an operator's own process, and for the node host that it starts.
fn is_trusted_locally(facts: &ConnectFacts) -> bool {
    facts.local_operator
        && match facts.role {
            Role::Operator | Role::Node => true,
            Role::Agent => false,
        }
}

pub(super) fn new_device(facts: &ConnectFacts, approved_via: ApprovedVia, now: Millis) -> Device {
    Device {
        v: FORMAT,
        device_id: facts.device_id.clone(),
        public_key: facts.public_key.clone(),
        client: facts.client.clone(),
        label: None,
        node_surface: None,
        pending_surface: None,
        grants: BTreeMap::new(),
        generation: 0,
        approved_via,
        let_in_by: BTreeSet::new(),
        created_at_ms: now,
        approved_at_ms: now,
        last_seen_at_ms: None,
    }
}

/// Gives a role these scopes. A token that lives goes on living with them; one that was revoked does not come back.
pub(super) fn grant(device: &mut Device, role: Role, scopes: ScopeSet) {
    let old = device
        .grants
        .remove(&role)
        .filter(|grant| grant.revoked_at_ms.is_none());
    let (token, rotated_at_ms) =
        old.map_or((None, None), |grant| (grant.token, grant.rotated_at_ms));
    let token_scopes = scopes.clone();
    device.grants.insert(
        role,
        Grant {
            scopes,
            token_scopes,
            token,
            rotated_at_ms,
            revoked_at_ms: None,
        },
    );
}

fn issue_if_missing(
    device: &mut Device,
    role: Role,
    now: Millis,
    fresh: &Fresh,
) -> Option<IssuedToken> {
    let grant = device
        .grants
        .get_mut(&role)
        .filter(|grant| grant.revoked_at_ms.is_none() && grant.token.is_none())?;
    Some(issue(grant, now, &fresh.token))
}

pub(super) fn issue(grant: &mut Grant, now: Millis, random: &[u8; 32]) -> IssuedToken {
    let token = Token::from_random(TokenKind::Device, random);
    grant.token = Some(KeptToken {
        hash: token.hash(),
        created_at_ms: now,
    });
    IssuedToken {
        token,
        issued_at_ms: now,
    }
}

pub(super) fn words(scopes: &ScopeSet) -> String {
    scopes
        .iter()
        .map(Scope::as_str)
        .collect::<Vec<_>>()
        .join(",")
}
