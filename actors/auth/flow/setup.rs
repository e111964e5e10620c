//! A setup code: a device that nobody knows yet, with a person's word given ahead.

use portcullis_core::auth::limits::{Class, Tried};
use portcullis_core::auth::{Principal, Proof, SecretStanding};
use portcullis_core::codes;
use portcullis_core::protocol::ConnectRefusal;
use portcullis_core::token::{Token, TokenHash, TokenKind};

use super::super::actor::Desk;
use super::super::messages::{Admitted, Arrival};
use super::{device, secret};
use crate::pairing::{CodeVerdict, PairingRefusal, Presented};

/// The signature first, then the count, then the code: a try costs its maker a key and a place among ten.
pub(super) async fn by_code(
    desk: &Desk,
    arrival: &Arrival,
    text: &str,
) -> Result<Admitted, ConnectRefusal> {
    let (device_id, public_key) = device::verify(&desk.wiring, &arrival.checked, &arrival.nonce)?;
    let (from, _) = secret::source(desk, arrival).await?;
    let counted = desk.count(Class::SetupCode, &from).await;
    counted.map_err(secret::too_many)?;
    let facts = device::facts(&desk.wiring, arrival, device_id.clone(), public_key);
    let verdict = look(desk, facts, text).await;
    let tried = match &verdict {
        Ok(CodeVerdict::Paired(..)) => Tried::Right,
        Ok(CodeVerdict::Refused) => Tried::Wrong,
        Err(_) => Tried::Not,
    };
    desk.counted(Class::SetupCode, from, tried);
    match verdict {
        Ok(CodeVerdict::Paired(scopes, token, generation)) => Ok(Admitted {
            principal: Principal {
                proof: Proof::SetupCode(device_id),
                door: arrival.door,
                role: arrival.checked.role,
                scopes,
                agent: None,
                generation,
                secret: None,
            },
            own_scopes: None,
            device_token: Some((token.token, token.issued_at_ms.0)),
        }),
        // One answer, whatever was wrong with it.
        Ok(CodeVerdict::Refused) => Err(ConnectRefusal::unauthorized(
            "AUTH_BOOTSTRAP_TOKEN_INVALID",
            "bootstrap_token_invalid",
            "setup code invalid, used or expired (a person makes another: portcullis devices setup-code)",
            false,
        )),
        Err(refusal) => {
            let code = codes::find(refusal.code()).unwrap_or(codes::INTERNAL);
            let mut answer = ConnectRefusal::unavailable(code, &refusal.to_string());
            answer.error.retryable = code.retryable.then_some(true);
            Err(answer)
        }
    }
}

async fn look(
    desk: &Desk,
    facts: portcullis_core::pairing::ConnectFacts,
    text: &str,
) -> Result<CodeVerdict, PairingRefusal> {
    let Some((id, secret)) = text.split_once('.') else {
        return Ok(CodeVerdict::Refused);
    };
    // What is no code at all is not looked for.
    if id.len() > 64 || !matches!(Token::parse(secret), Ok((TokenKind::Setup, _))) {
        return Ok(CodeVerdict::Refused);
    }
    let pairing = &desk.wiring.pairing;
    // Pairing knows its devices; whether its maker's secret still holds is known here.
    let maker = pairing.code_maker(id).await?;
    let holds = |standing: SecretStanding| {
        desk.credentials.generation(&standing.secret) == Some(standing.generation)
    };
    let stands = maker.is_none_or(|maker| maker.secret.is_none_or(holds));
    let presented = Presented {
        id: id.to_owned(),
        hash: TokenHash::of(if stands { secret } else { "" }),
    };
    pairing.use_code(facts, presented).await
}
