//! Whatever is tried at an unlocker or at an export's file: counted by who tries, and on record before it is looked at.

use super::actor::{Vault, answer};
use super::asked::typed;
use super::keys::{Machine, Person, Try, Worked, Wrapped};
use super::messages::{Opener, Rekeyed, VaultMsg, VaultRefusal};
use super::open::of_vault;
use super::rows;
use crate::act::ActError;
use crate::supervision::{Crash, Reply};
use portcullis_core::audit::{Entry, Outcome, Seq};
use portcullis_core::auth::limits::{Class, Source, Tried};
use portcullis_core::vault::{Header, VaultError};

/// A passphrase is looked at for something else than to open the vault.
pub(super) const TRY: &str = "vault.try";

impl Vault {
    /// A person opens it: counted and recorded before anything is looked at.
    pub(super) async fn unlock(
        &mut self,
        why: VaultError,
        by: Entry,
        source: Source,
        opener: Opener,
        reply: Reply<(), VaultRefusal>,
    ) -> Result<(), Crash> {
        let row = match rows::read_header(&self.wiring.store).await? {
            Ok(Some(row)) => row,
            Ok(None) => return answer(reply, Err(VaultError::Missing.into())),
            Err(error) => return answer(reply, Err(error.into())),
        };
        if self.is_busy {
            return answer(reply, Err(VaultRefusal::Overloaded));
        }
        let typed = match opener {
            Opener::Automatic => {
                if !row
                    .header
                    .unlockers()
                    .iter()
                    .any(|one| one.kind().is_automatic())
                {
                    return answer(reply, Err(VaultError::Locked.into()));
                }
                None
            }
            Opener::Typed { kind, id, secret } => {
                match typed(&row.header, kind, id.as_deref(), secret) {
                    Ok(typed) => Some(typed),
                    Err(error) => return answer(reply, Err(error.into())),
                }
            }
        };
        let counted = typed.as_ref().map(|typed| (typed.class, source));
        let named = typed.as_ref().map_or("automatic", |typed| &typed.id);
        let entry = of_vault(by, "vault.unlock").with("unlocker", named);
        let _waiting = self.ctx.waiting();
        let tried = match self.begin(counted, entry).await {
            Ok(tried) => tried,
            Err(refusal) => return answer(reply, Err(refusal)),
        };
        self.unsealing();
        let person = Person { tried, why, reply };
        self.work("unlock", move |machine| {
            let unlocked = match typed {
                None => machine.unlock(Some(row)),
                Some(typed) => Machine::unlock_by(row, &typed.id, &typed.secret),
            };
            Worked::Unlocked(unlocked, Some(person))
        })
    }

    /// Counts a try and makes it durable, before anything is looked at.
    pub(super) async fn begin(
        &mut self,
        counted: Option<(Class, Source)>,
        entry: Entry,
    ) -> Result<Try, VaultRefusal> {
        if let Some((class, source)) = &counted {
            let now = self.wiring.clock.now();
            let begun = self.tries.begin(*class, source, now);
            begun.map_err(VaultRefusal::Limited)?;
        }
        match self.intent(entry).await {
            Ok(intent) => Ok(Try { intent, counted }),
            Err(refusal) => {
                self.count(counted, Tried::Not);
                Err(refusal)
            }
        }
    }

    fn count(&mut self, counted: Option<(Class, Source)>, tried: Tried) {
        if let Some((class, source)) = counted {
            let now = self.wiring.clock.now();
            self.tries.end(class, &source, tried, now);
        }
    }

    /// Counts how a try ended and records it.
    pub(super) async fn tried(&mut self, tried: Try, said: Option<VaultError>) {
        let ended = match said {
            None => Tried::Right,
            Some(VaultError::Wrong) => Tried::Wrong,
            Some(_) => Tried::Not,
        };
        self.count(tried.counted, ended);
        let outcome = said.map_or_else(Outcome::ok, |error| Outcome::refused(error.code()));
        self.record(tried.intent, outcome).await;
    }

    /// Counts the try, records its end, answers.
    pub(super) async fn tell(&mut self, person: Person, said: Option<VaultError>) {
        self.tried(person.tried, said).await;
        match said {
            None => person.reply.ok(()),
            Some(error) => person.reply.refuse(error.into()),
        }
    }

    pub(super) async fn intent(&self, entry: Entry) -> Result<Seq, VaultRefusal> {
        let intent = self.wiring.audit.intent(entry).await;
        intent.map_err(|error| ActError::CannotRecord(error).into())
    }

    pub(super) async fn record(&self, intent: Seq, outcome: Outcome) {
        if let Err(error) = self.wiring.audit.outcome(intent, outcome).await {
            tracing::error!(target: "portcullis", intent = intent.0, %error, "an outcome could not be recorded");
        }
    }

    pub(super) async fn rekeyed(
        &mut self,
        made: Result<Wrapped, VaultError>,
        before: &Header,
        by: Entry,
        reply: Reply<Rekeyed, VaultRefusal>,
    ) -> Result<(), Crash> {
        let (wiring, _waiting) = (self.wiring.clone(), self.ctx.waiting());
        let wrapped = match made {
            Ok(wrapped) if reply.is_wanted() => wrapped,
            // Nobody would be told the new recovery codes.
            Ok(_) => return Ok(()),
            Err(error) => return answer(reply, Err(error.into())),
        };
        let result = match self.open() {
            Ok(open) => open.rekey(&wiring, by, before, wrapped).await,
            Err(refusal) => Err(refusal),
        };
        if result.is_ok() {
            self.ctx.notify(VaultMsg::SealAnew);
        }
        answer(reply, result)
    }
}
