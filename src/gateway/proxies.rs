//! The rules on proxies, with the key set that the configuration names: read at start, and again when its file changed.

use std::convert::Infallible;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::Duration;

use portcullis_actors::audit::AuditHandle;
use portcullis_actors::plain;
use portcullis_actors::supervision::{Flag, FlagReader};
use portcullis_core::audit::Entry;
use portcullis_core::auth::assertion::{Assertion, KeySetError};
use portcullis_core::auth::proxy::ProxyRules;
use portcullis_core::codes;
use portcullis_core::encoding;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};

use crate::cli::Failure;
use crate::config::{GatewayAuth, TrustedProxy};
use crate::edge::Again;

/// Longest key set, bytes.
const LONGEST: u64 = 256 * 1024;
/// Looks at the file are no closer to each other, whoever names keys that nobody knows.
const LOOK_APART: Duration = Duration::from_secs(2);
/// Without anybody's word: a key that was taken out verifies no longer than this.
const LOOK_EVERY: Duration = Duration::from_mins(1);
/// Who wait for a look at once; more are answered by what is known.
const WAITING: usize = 16;

/// Which file it was: another one, or another state of it, differs here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    size: u64,
    /// Of its content, and of the file itself: who sets the first back cannot set the second.
    changed: [(i64, i64); 2],
}

/// Who keeps the rules.
pub struct Proxies {
    set: TrustedProxy,
    rules: Flag<Arc<ProxyRules>>,
    /// Of the file that was looked at last, whether it was taken or not; none where there is no key set.
    seen: Option<Stamp>,
    again: Again,
    wanted: mpsc::Receiver<oneshot::Sender<()>>,
}

impl Proxies {
    /// Reads the key set where there is one.
    ///
    /// # Errors
    /// `CONFIG_INVALID`: a start with an assertion never serves without.
    pub fn open(auth: &GatewayAuth) -> Result<Self, Failure> {
        let set = &auth.trusted_proxy;
        let (mut assertion, mut seen) = (None, None);
        if !set.jwks_file.as_os_str().is_empty() {
            let bad = |why: String| {
                let key = "[gateway.auth.trusted_proxy] jwks_file";
                let text = format!("{key}: {} {why}", set.jwks_file.display());
                Failure::of(codes::CONFIG_INVALID, text)
            };
            let (stamp, keys) = read(set, None).map_err(bad)?;
            let keys = keys.transpose().map_err(|why| bad(why.to_string()))?;
            assertion = keys.map(|keys| (set.assertion_header.clone(), keys));
            seen = Some(stamp);
        }
        let rules = ProxyRules {
            addresses: set.addresses.clone(),
            local_uids: set.loopback_uids.clone(),
            // Anything but 64 digits was an error of the configuration.
            certificates: set
                .certificates
                .iter()
                .filter_map(|text| encoding::unhex::<32>(text))
                .collect(),
            names_users: auth.mode.trusted_proxy,
            user_header: set.user_header.clone(),
            required_headers: set.required_headers.clone(),
            allow_users: set.allow_users.clone(),
            scopes_header: set.scopes_header.clone(),
            scopes: set.scopes.clone(),
            assertion,
        };
        let (ask, wanted) = mpsc::channel(WAITING);
        Ok(Self {
            set: set.clone(),
            rules: Flag::new(Arc::new(rules)),
            seen,
            again: Again(ask),
            wanted,
        })
    }

    /// What newcomers are judged by.
    pub fn rules(&self) -> FlagReader<Arc<ProxyRules>> {
        self.rules.reader()
    }

    /// The way to have the key set looked at.
    pub fn again(&self) -> Again {
        self.again.clone()
    }

    /// Looks at the file when it is asked for, and now and then by itself. What cannot be used changes nothing.
    pub async fn keep(mut self, audit: AuditHandle) -> Infallible {
        let mut looked = Instant::now();
        loop {
            let asked = timeout(LOOK_EVERY, self.wanted.recv()).await;
            if self.seen.is_some() && looked.elapsed() >= LOOK_APART {
                looked = Instant::now();
                self.look(&audit).await;
            }
            if let Ok(Some(asker)) = asked {
                // Gone already is as good.
                let _ = asker.send(());
            }
        }
    }

    async fn look(&mut self, audit: &AuditHandle) {
        let (set, seen) = (self.set.clone(), self.seen);
        let looked = tokio::task::spawn_blocking(move || read(&set, seen)).await;
        let file = self.set.jwks_file.display();
        let keys = match looked.map_err(|e| e.to_string()).flatten() {
            // As it was.
            Ok((_, None)) => return,
            Ok((stamp, Some(keys))) => {
                // A broken one is told once, not at each look.
                self.seen = Some(stamp);
                keys
            }
            Err(why) => Err(Unusable::Broken(why)),
        };
        let keys = match keys {
            Ok(keys) => keys,
            // A set like another, whose keys were all taken out: they verify nothing any more.
            Err(Unusable::NoKey) => {
                tracing::error!(target: "portcullis", %file, "the new key set of the trusted proxy has no usable key: no assertion verifies");
                let Some((_, old)) = self.rules.get().assertion.clone() else {
                    return;
                };
                old.without_keys()
            }
            Err(Unusable::Broken(why)) => {
                tracing::error!(target: "portcullis", %file, why, "the new key set of the trusted proxy cannot be used: the old keys stay");
                return;
            }
        };
        let count = keys.len().to_string();
        let rules = ProxyRules {
            assertion: Some((self.set.assertion_header.clone(), keys)),
            ..ProxyRules::clone(&self.rules.get())
        };
        self.rules.set(Arc::new(rules));
        tracing::info!(target: "portcullis", %file, keys = %count, "the key set of the trusted proxy was read again");
        let entry = Entry::new("auth.proxy_keys").with("keys", count);
        if let Err(error) = audit.note(entry).await {
            tracing::error!(target: "portcullis", %error, "a new key set could not be recorded");
        }
    }
}

/// Why there are no keys.
enum Unusable {
    /// It has none.
    NoKey,
    /// It is no key set, or cannot be read.
    Broken(String),
}

impl std::fmt::Display for Unusable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoKey => KeySetError::NoKey.fmt(f),
            Self::Broken(why) => f.write_str(why),
        }
    }
}

type Keys = Result<Assertion, Unusable>;

/// The file's stamp, and its keys where it is another than the one seen. Blocks.
///
/// # Errors
/// It cannot be read.
fn read(set: &TrustedProxy, seen: Option<Stamp>) -> Result<(Stamp, Option<Keys>), String> {
    let file = plain::open_linked(&set.jwks_file).map_err(|e| e.to_string())?;
    let data = file.metadata().map_err(|e| e.to_string())?;
    let stamp = Stamp {
        file: (data.dev(), data.ino()),
        size: data.len(),
        changed: [
            (data.mtime(), data.mtime_nsec()),
            (data.ctime(), data.ctime_nsec()),
        ],
    };
    if seen == Some(stamp) {
        return Ok((stamp, None));
    }
    let mut bytes = vec![];
    let keys = match file.take(LONGEST + 1).read_to_end(&mut bytes) {
        Err(error) => Err(Unusable::Broken(error.to_string())),
        Ok(_) if bytes.len() as u64 > LONGEST => {
            Err(Unusable::Broken("is longer than 256 KiB".to_owned()))
        }
        Ok(_) => Assertion::new(
            &bytes,
            &set.algorithms,
            &set.issuer,
            &set.audience,
            &set.user_claim,
        )
        .map_err(|error| match error {
            KeySetError::NoKey => Unusable::NoKey,
            error => Unusable::Broken(error.to_string()),
        }),
    };
    Ok((stamp, Some(keys)))
}
