//! The shared secrets, and who comes in with nothing else.

use portcullis_core::auth::limits::{Class, Limited, Source};
use portcullis_core::auth::password::{self, PasswordHash};
use portcullis_core::auth::secret::SharedHash;
use portcullis_core::auth::{Door, Principal, Proof, Role, ScopeSet, SecretName, SecretStanding};
use portcullis_core::protocol::ConnectRefusal;
use portcullis_core::seal::Secret;
use portcullis_core::token::Token;
use serde_json::json;

use super::super::actor::Desk;
use super::super::config::Modes;
use super::super::credentials::Credentials;
use super::super::hashing::Guess;
use super::super::messages::{Admitted, Arrival};
use super::device;

/// Of a `connect` that names nobody.
const NAME: &str = "default";

/// Which secret was right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Shared {
    Token,
    /// Of this name.
    Password(String),
}

impl Shared {
    /// What a session that it opens rests on.
    pub(super) fn standing(&self, credentials: &Credentials) -> SecretStanding {
        let secret = match self {
            Self::Token => SecretName::Token,
            Self::Password(name) => SecretName::Password(name.clone()),
        };
        // It was found in these very credentials.
        let generation = credentials.generation(&secret).unwrap_or_default();
        SecretStanding { secret, generation }
    }
}

/// What the secrets of a `connect` came to.
#[derive(Debug, Clone)]
pub(super) struct Proven {
    /// One was right.
    pub shared: Option<Shared>,
    /// There was one to compare.
    pub given: bool,
}

/// Looks at all that was presented. What is random is compared at once, both fields always: which one was wrong is told
/// by nothing. A text that a person may have chosen is counted, and then looked at slowly.
pub(super) async fn shared(desk: &Desk, arrival: &Arrival) -> Result<Proven, ConnectRefusal> {
    let (token, password) = (arrival.token(), arrival.password());
    let given = token.is_some() || password.is_some();
    let found = |shared| Proven { shared, given };
    let modes = desk.wiring.modes;
    let held = desk.credentials.shared.as_ref().filter(|_| modes.token);
    if let Some(SharedHash::Random(hash)) = held {
        let is_it = |text: Option<&str>| text.is_some_and(|text| hash.matches(text));
        if is_it(token) | is_it(password) {
            return Ok(found(Some(Shared::Token)));
        }
    }
    // A token of ours is nobody's choice: it is a device's, or wrong.
    let chosen = |text: &&str| text.len() <= password::MAX && Token::parse(text).is_err();
    let (token, password) = (token.filter(chosen), password.filter(chosen));
    let held = match held {
        Some(SharedHash::Chosen(hash)) => token.or(password).map(|text| (text, hash)),
        _ => None,
    };
    let person = password.or(token).filter(|_| modes.password);
    if held.is_none() && person.is_none() {
        return Ok(found(None));
    }
    let from = source(desk, arrival).await?;
    let mut guesses = vec![];
    if let Some((text, hash)) = held {
        guesses.push(guess(Class::ChosenToken, text, hash.clone(), hash.cost()));
    }
    let auth = arrival.checked.params.auth.as_ref();
    let name = auth.and_then(|a| a.user.as_deref()).unwrap_or(NAME);
    let known = desk.credentials.passwords.get(name);
    if let Some(text) = person {
        // Who is not known takes as long as who is, and each name as long as the dearest.
        let costs = desk.credentials.passwords.values();
        let dearest = costs.map(|row| row.hash.cost()).max();
        let cost = dearest.unwrap_or(desk.wiring.bcrypt_cost);
        let hash = known.map_or_else(|| PasswordHash::nobodys(cost), |row| row.hash.clone());
        guesses.push(guess(Class::Password, text, hash, cost));
    }
    let limited = match desk.look(from, guesses).await {
        Ok(looked) => match looked.right {
            Some(Class::Password) if known.is_some() => {
                return Ok(found(Some(Shared::Password(name.to_owned()))));
            }
            Some(Class::ChosenToken) => return Ok(found(Some(Shared::Token))),
            _ => looked.limited,
        },
        Err(limited) => Some(limited),
    };
    // A device may have a token of its own beside it, which cannot be guessed.
    let has_token =
        |auth: &portcullis_core::protocol::connect::AuthClaim| auth.device_token.is_some();
    let other_way = arrival.checked.params.device.is_some()
        && arrival.checked.params.auth.as_ref().is_some_and(has_token);
    match limited {
        Some(limited) if !other_way => Err(too_many(limited)),
        _ => Ok(found(None)),
    }
}

fn guess(class: Class, text: &str, hash: PasswordHash, cost: u32) -> Guess {
    let presented = Secret::new(text.as_bytes().to_vec());
    Guess {
        class,
        presented,
        hash,
        cost,
    }
}

/// Who guesses: a device that has signed and is paired counts alone, and is not held up by strangers.
pub(super) async fn source(
    desk: &Desk,
    arrival: &Arrival,
) -> Result<(Source, bool), ConnectRefusal> {
    if arrival.checked.params.device.is_some() {
        let (id, _) = device::verify(&desk.wiring, &arrival.checked, &arrival.nonce)?;
        let held = desk
            .wiring
            .pairing
            .current_generation(&id, arrival.checked.role)
            .await;
        if matches!(held, Ok(Some(_))) {
            return Ok((Source::Device(id), true));
        }
    }
    Ok((Source::of(arrival.peer.ip, arrival.peer.account), false))
}

pub(super) fn too_many(limited: Limited) -> ConnectRefusal {
    let text = if limited.is_busy {
        "unauthorized: too many authentication attempts at once (retry later)"
    } else {
        "unauthorized: too many failed authentication attempts (retry later)"
    };
    let mut refusal = ConnectRefusal::detailed(
        "INVALID_REQUEST",
        text,
        json!({
            "code": "AUTH_RATE_LIMITED", "authReason": "rate_limited",
            "canRetryWithDeviceToken": false, "recommendedNextStep": "wait_then_retry",
            "retryAfterMs": limited.retry_after_ms,
        }),
    );
    refusal.error.retryable = Some(true);
    refusal.error.retry_after_ms = Some(limited.retry_after_ms);
    refusal
}

/// A wrong or missing secret is called what this gateway takes.
pub(super) fn in_words_of(
    modes: Modes,
    arrival: &Arrival,
    refusal: ConnectRefusal,
) -> ConnectRefusal {
    let is_password = modes.password && (!modes.token || arrival.password().is_some());
    match refusal.error.stable_code() {
        "AUTH_TOKEN_MISMATCH" if is_password => ConnectRefusal::unauthorized(
            "AUTH_PASSWORD_MISMATCH",
            "password_mismatch",
            "gateway password mismatch (a person sets it with: portcullis password set)",
            false,
        ),
        "AUTH_TOKEN_MISSING" if modes.password && !modes.token => ConnectRefusal::unauthorized(
            "AUTH_PASSWORD_MISSING",
            "password_missing",
            "gateway password missing (send it in auth.password)",
            false,
        ),
        "AUTH_TOKEN_MISSING" if modes.trusted_proxy => ConnectRefusal::unauthorized(
            "AUTH_TOKEN_MISSING",
            "token_missing",
            "device token missing (send it in auth.deviceToken; a new device comes in by a setup code: portcullis devices setup-code)",
            false,
        ),
        _ => refusal,
    }
}

/// The secret without a device.
pub(super) fn alone(
    desk: &Desk,
    arrival: &Arrival,
    proven: Proven,
) -> Result<Admitted, ConnectRefusal> {
    let Arrival { checked, peer, .. } = arrival;
    let wiring = &desk.wiring;
    let Some(shared) = proven.shared else {
        return Err(no_secret(proven.given, false));
    };
    if checked.role == Role::Node {
        return Err(ConnectRefusal::detailed(
            "NOT_PAIRED",
            "device identity required",
            json!({ "code": "DEVICE_IDENTITY_REQUIRED" }),
        ));
    }
    // The peer keeps scopes for certain client ids; what a client calls itself gives nothing here. Without local trust a
    // loopback socket is a stranger's: its far end may be a tunnel's.
    let scopes = if wiring.local_trust && peer.is_local && peer.is_operator {
        // A client that asks for admin where it needs less gets what the configuration gives.
        wiring.shared_token_scopes.meet(&checked.asked)
    } else {
        ScopeSet::empty()
    };
    let secret = Some(shared.standing(&desk.credentials));
    Ok(Admitted {
        principal: Principal {
            proof: match shared {
                Shared::Token => Proof::SharedToken,
                Shared::Password(name) => Proof::Password(name),
            },
            door: Door::Tcp,
            role: Role::Operator,
            scopes,
            agent: None,
            generation: 0,
            secret,
        },
        own_scopes: None,
        device_token: None,
    })
}

pub(super) fn no_secret(given: bool, has_device: bool) -> ConnectRefusal {
    if given {
        ConnectRefusal::unauthorized(
            "AUTH_TOKEN_MISMATCH",
            "token_mismatch",
            "gateway token mismatch (use the token that the gateway printed at its first start)",
            has_device,
        )
    } else {
        ConnectRefusal::unauthorized(
            "AUTH_TOKEN_MISSING",
            "token_missing",
            "gateway token missing (send it in auth.token)",
            false,
        )
    }
}
