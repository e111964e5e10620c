//! Setup codes in the room: made and used in the order of every privileged act.

use portcullis_core::audit::{Entry, Outcome};
use portcullis_core::pairing::{ConnectFacts, Maker, Pairing, Refusal, SetupCodes, Try};
use portcullis_core::token::{Token, TokenKind};

use super::actor::{PairingRoom, answer, fresh};
use super::messages::{By, CodeVerdict, MadeCode, NewCode, PairingRefusal, Presented};
use crate::act::ActError;
use crate::supervision::{Crash, Reply};

impl PairingRoom {
    pub(super) async fn make_code(
        &mut self,
        by: By,
        code: NewCode,
        reply: Reply<MadeCode, PairingRefusal>,
    ) -> Result<(), Crash> {
        if !reply.is_wanted() {
            return Ok(());
        }
        if let Err(refusal) = SetupCodes::may_make(code.role, &code.scopes, &by.caller) {
            reply.refuse(refusal.into());
            return Ok(());
        }
        let random = fresh()?;
        let token = Token::from_random(TokenKind::Setup, &random.token);
        let id = format!("set-{}", random.request_id);
        let scopes: Vec<_> = code
            .scopes
            .iter()
            .map(portcullis_core::auth::Scope::as_str)
            .collect();
        let entry = Entry {
            action: "pairing.setup_code".to_owned(),
            object: Some(id.clone()),
            ..by.entry
        }
        .with("role", code.role.as_str())
        .with("scopes", scopes.join(","));
        let audit = self.wiring.audit.clone();
        let intent = match audit.intent(entry).await {
            Ok(intent) => intent,
            Err(error) => {
                reply.refuse(ActError::CannotRecord(error).into());
                return Ok(());
            }
        };
        let now = self.now();
        let machine = &self.machine;
        self.codes.retain(|maker| !has_ended(machine, maker));
        let made = self.codes.make(
            &id,
            token.hash(),
            (code.role, code.scopes),
            (&by.caller, code.maker),
            now,
        );
        let outcome = match &made {
            Ok(_) => Outcome::ok(),
            Err(refusal) => Outcome::refused(refusal.code()),
        };
        if let Err(error) = audit.outcome(intent, outcome).await {
            tracing::error!(intent = intent.0, %error, "an outcome could not be recorded");
        }
        reply.send(match made {
            Ok(expires_at) => Ok(MadeCode {
                id,
                token,
                expires_at,
            }),
            Err(refusal) => Err(refusal.into()),
        });
        Ok(())
    }

    pub(super) async fn use_code(
        &mut self,
        facts: ConnectFacts,
        presented: &Presented,
        reply: Reply<CodeVerdict, PairingRefusal>,
    ) -> Result<(), Crash> {
        if !reply.is_wanted() {
            return Ok(());
        }
        let (id, now) = (presented.id.as_str(), self.now());
        match self.codes.attempt(id, &presented.hash, now) {
            Try::Right => {}
            Try::Unknown => {
                reply.ok(CodeVerdict::Refused);
                return Ok(());
            }
            // At most five of each code: they cannot fill the log.
            Try::Wrong { dead } => {
                self.tell_of(
                    id,
                    &facts,
                    if dead { "wrong, and dead now" } else { "wrong" },
                )
                .await;
                reply.ok(CodeVerdict::Refused);
                return Ok(());
            }
        }
        let maker = self.codes.maker(id, now).cloned();
        let gives = self.codes.gives(id);
        let gives = gives.map(|(role, scopes)| (role, scopes.clone()));
        let (Some(maker), Some((role, scopes))) = (maker, gives) else {
            reply.ok(CodeVerdict::Refused);
            return Ok(());
        };
        // Worth what its maker is worth now.
        if has_ended(&self.machine, &maker) {
            self.codes.drop_code(id);
            self.tell_of(id, &facts, "its maker has ended").await;
            reply.ok(CodeVerdict::Refused);
            return Ok(());
        }
        if facts.role != role {
            self.tell_of(id, &facts, "another role").await;
            reply.ok(CodeVerdict::Refused);
            return Ok(());
        }
        let paired =
            self.machine
                .pair_by_code(&facts, (id, &scopes, &maker.behind), now, &fresh()?);
        let (scopes, token, change) = match paired {
            Ok(paired) => paired,
            Err(Refusal::KnownDevice) => {
                self.tell_of(id, &facts, "a device that is known").await;
                reply.ok(CodeVerdict::Refused);
                return Ok(());
            }
            Err(refusal) => {
                reply.refuse(refusal.into());
                return Ok(());
            }
        };
        // Before the act: whatever becomes of that, the code is used up.
        self.codes.spend(id, &facts.device_id, now);
        let mut entry = Entry {
            principal: Some(format!("device:{}", facts.device_id)),
            ..Entry::default()
        }
        .with("maker", maker.name);
        // The log refuses it if one of them ends meanwhile.
        if let Some((device, _, generation)) = maker.device {
            entry = entry.given_by(format!("device:{device}"), generation);
        }
        if let Some(standing) = maker.secret {
            entry = entry.by_secret(standing.secret, standing.generation);
        }
        if let Err(error) = self.make(change, entry).await {
            return answer(reply, Err(error));
        }
        self.machine.seen(&facts.device_id, now);
        let generation = self.machine.generation(&facts.device_id, facts.role);
        let generation = generation.ok_or_else(|| Crash::new("let in, but not held"))?;
        reply.ok(CodeVerdict::Paired(scopes, token, generation));
        Ok(())
    }

    /// A use that came to nothing.
    async fn tell_of(&self, id: &str, facts: &ConnectFacts, why: &str) {
        let entry = Entry {
            action: "pairing.setup_refused".to_owned(),
            principal: Some(format!("device:{}", facts.device_id)),
            object: Some(id.to_owned()),
            ..Entry::default()
        };
        if let Err(error) = self.wiring.audit.note(entry.with("why", why)).await {
            tracing::warn!(%error, "a refused setup code could not be recorded");
        }
    }
}

/// Whether the device that made it holds no more what it made it under.
fn has_ended(machine: &Pairing, maker: &Maker) -> bool {
    let device = maker.device.as_ref();
    device.is_some_and(|(device, role, generation)| {
        machine.generation(device, *role) != Some(*generation)
    })
}
