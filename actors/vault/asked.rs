//! What a person asks for, and by which unlocker.

use portcullis_core::audit::Entry;
use portcullis_core::auth::limits::Class;
use portcullis_core::seal::Secret;
use portcullis_core::vault::{Header, Kind, RecoveryCode, VaultError};

/// Who does it, and what.
pub(super) fn joined(by: Entry, what: Entry) -> Entry {
    Entry {
        action: what.action,
        object: what.object,
        // What says who it is stands: the log looks a credential's generation up by it.
        detail: what.detail.into_iter().chain(by.detail).collect(),
        ..by
    }
}

/// What a person typed, and at which unlocker.
pub(super) struct Typed {
    pub class: Class,
    pub id: String,
    pub secret: Secret,
}

/// Finds the one unlocker that it is for: never are several tried.
pub(super) fn typed(
    header: &Header,
    kind: Kind,
    id: Option<&str>,
    secret: Secret,
) -> Result<Typed, VaultError> {
    let (class, secret) = match kind {
        Kind::Passphrase => (Class::Passphrase, secret),
        Kind::Recovery => {
            let text =
                std::str::from_utf8(secret.expose()).map_err(|_| VaultError::RecoveryTypo)?;
            (Class::RecoveryCode, RecoveryCode::parse(text)?.secret())
        }
        Kind::Machine | Kind::File => return Err(VaultError::UnlockerNotFound),
    };
    let mut fit = header
        .unlockers()
        .iter()
        .filter(|one| one.kind() == kind && id.is_none_or(|id| id == one.id()));
    match (fit.next(), fit.next()) {
        (Some(one), None) => Ok(Typed {
            class,
            id: one.id().to_owned(),
            secret,
        }),
        _ => Err(VaultError::UnlockerNotFound),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bug: the manifest's generation took the place of the credential's, and a device could not seal the vault.
    #[test]
    fn what_a_record_says_of_who_acts_is_not_replaced_by_what_is_done() {
        let by = Entry::new("x").with("generation", "7");
        let what = Entry::new("vault.seal")
            .with("generation", "9")
            .with("other", "1");
        let all = joined(by, what);
        assert_eq!(
            (all.action.as_str(), all.detail["generation"].as_str()),
            ("vault.seal", "7")
        );
        assert_eq!(all.detail["other"], "1");
    }
}
