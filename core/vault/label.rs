//! Keys for other rooms' rows.

/// One label, one use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeyLabel {
    /// Seals the keys of signed HTTP requests.
    SigningKeys,
    /// The key of the authority that opens TLS of hosts for boxes is derived from it.
    EgressAuthority,
}

impl KeyLabel {
    /// Every one of them. A new root key takes these along, as records of the vault: rows of other rooms stay readable.
    pub const ALL: [Self; 2] = [Self::SigningKeys, Self::EgressAuthority];

    /// HKDF's label.
    pub const fn text(self) -> &'static str {
        match self {
            Self::SigningKeys => crate::signing::SIGNING_KEYS,
            Self::EgressAuthority => crate::egress::AUTHORITY,
        }
    }

    /// The name of its record, where it has one.
    pub const fn record(self) -> &'static str {
        match self {
            Self::SigningKeys => "SIGNING_KEYS",
            Self::EgressAuthority => "EGRESS_AUTHORITY",
        }
    }
}
