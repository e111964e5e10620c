//! Agents: each by a token of its own, which names it.

use portcullis_core::auth::{Principal, Proof, Role, Scope, ScopeSet, SecretName, SecretStanding};
use portcullis_core::protocol::ConnectRefusal;
use portcullis_core::token::{Token, TokenHash, TokenKind};

use super::super::credentials::Credentials;
use super::super::messages::{Admitted, Arrival};

/// The agent is the token's, whatever the client says; its scope is `exec`, whatever it asks for.
pub(super) fn by_token(
    credentials: &Credentials,
    arrival: &Arrival,
) -> Result<Admitted, ConnectRefusal> {
    let params = &arrival.checked.params;
    if params.device.is_some() {
        return Err(ConnectRefusal::invalid(
            "an agent's token stands alone: leave the device out",
        ));
    }
    let Some(token) = arrival.token() else {
        return Err(ConnectRefusal::unauthorized(
            "AUTH_TOKEN_MISSING",
            "token_missing",
            "agent token missing (send it in auth.token)",
            false,
        ));
    };
    let is_ours = matches!(Token::parse(token), Ok((TokenKind::Agent, _)));
    let presented = TokenHash::of(token);
    // Every one is compared: the time does not tell how far down the list a token stands.
    let rows = credentials.agents.values();
    let found = rows.fold(None, |found, row| {
        let is_it = row.sha256.same(&presented);
        if is_it { Some(row) } else { found }
    });
    let Some(row) = found.filter(|_| is_ours) else {
        return Err(ConnectRefusal::unauthorized(
            "AUTH_TOKEN_MISMATCH",
            "token_mismatch",
            "agent token mismatch (a person mints one with: portcullis agents token NAME)",
            false,
        ));
    };
    let exec: ScopeSet = [Scope::Exec].into_iter().collect();
    let scopes = if params.scopes.is_empty() {
        exec
    } else {
        exec.narrow(&arrival.checked.asked)
    };
    Ok(Admitted {
        principal: Principal {
            proof: Proof::AgentToken(row.agent.clone()),
            door: arrival.door,
            role: Role::Agent,
            scopes,
            agent: Some(row.agent.clone()),
            generation: row.generation,
            secret: Some(SecretStanding {
                secret: SecretName::Agent(row.agent.clone()),
                generation: row.generation,
            }),
        },
        own_scopes: None,
        device_token: None,
    })
}
