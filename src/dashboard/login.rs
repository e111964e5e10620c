//! The cookie of a session, and the token in its forms.

use portcullis_actors::dashboard::Secret;
use portcullis_core::ids::Hash32;

/// The cookie's name: with the port, since cookies do not know ports and two gateways may run.
pub fn cookie_name(port: u16, tls: bool) -> String {
    if tls {
        format!("__Host-portcullis-{port}")
    } else {
        format!("portcullis-{port}")
    }
}

/// `Set-Cookie` for a new session.
pub fn set_cookie(name: &str, session: &Secret, tls: bool, seconds: u64) -> String {
    let secure = if tls { "; Secure" } else { "" };
    format!(
        "{name}={}; Path=/; HttpOnly; SameSite=Strict; Max-Age={seconds}{secure}",
        session.reveal()
    )
}

/// `Set-Cookie` that takes it away.
pub fn clear_cookie(name: &str, tls: bool) -> String {
    let secure = if tls { "; Secure" } else { "" };
    format!("{name}=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0{secure}")
}

/// The token that every form of this session carries: who cannot read our page cannot know it. Derived from the
/// session's key, so nothing more is kept.
pub fn csrf(session: &Secret) -> String {
    Hash32::of(format!("portcullis-page-csrf-v1\0{}", session.reveal()).as_bytes()).to_string()
}

/// Is this the session's token? Digests are compared: how long it takes tells nothing of the token.
pub fn csrf_fits(session: &Secret, brought: &str) -> bool {
    Hash32::of(csrf(session).as_bytes()) == Hash32::of(brought.as_bytes())
}
