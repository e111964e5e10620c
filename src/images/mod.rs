//! Root file systems for boxes, made on this machine: from Debian's packages, from the host's busybox, or from a tar that somebody has.
//! Each becomes one plain tar (no devices, no setuid bits, nothing outside its root), whose SHA-256 names it.

pub mod debian;
pub mod rootfs;

/// Why a root file system could not be made.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub struct NotMade {
    /// What was seen.
    pub why: String,
    /// What to do next, where that is known.
    pub next: Option<String>,
}

impl NotMade {
    /// Without a next step of its own.
    pub fn new(why: impl Into<String>) -> Self {
        Self {
            why: why.into(),
            next: None,
        }
    }

    /// With one.
    #[must_use]
    pub fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }
}

impl From<std::io::Error> for NotMade {
    fn from(error: std::io::Error) -> Self {
        Self::new(error.to_string())
    }
}
