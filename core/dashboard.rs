//! Who may see the page: one-time codes that open sessions, and how long each lasts.
//!
//! Codes and sessions are known by their SHA-256 only; what the person holds is never kept. Time is monotonic
//! milliseconds of the caller's, so that a changed wall clock neither ends nor prolongs a session.

use std::collections::BTreeMap;

use crate::auth::ScopeSet;
use crate::ids::Hash32;
use crate::time::Millis;

/// A view that reloads itself is one reading of the log for so long; then it is on record anew.
const READING_MS: u64 = 15 * 60_000;

/// How long things last, and how many there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// A code, ms.
    pub code_ms: u64,
    /// A session without a request, ms.
    pub idle_ms: u64,
    /// A session at all, ms.
    pub session_ms: u64,
    /// Codes at once; the oldest makes room.
    pub codes: usize,
    /// Sessions at once; the one longest unused makes room.
    pub sessions: usize,
}

/// Why a code or a session is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SessionRefusal {
    /// Never minted, used, or too old: which one is not told.
    #[error(
        "this code is not valid: codes work once and for a minute; `portcullis dashboard` makes a new one"
    )]
    BadCode,
    /// No such session, or it has ended.
    #[error("this session has ended; `portcullis dashboard` makes a new code")]
    NoSession,
}

#[derive(Debug, Clone)]
struct Code {
    scopes: ScopeSet,
    by: String,
    until: Millis,
}

/// A live session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Of the operator who asked for the code: a session never has more.
    pub scopes: ScopeSet,
    /// That operator's name in records.
    pub by: String,
    /// When it was opened.
    pub since: Millis,
    /// Its reading of the audit log is on record, and not for long.
    pub reads: bool,
    used: Millis,
    read: Option<Millis>,
}

/// All codes and sessions.
#[derive(Debug)]
pub struct Sessions {
    limits: Limits,
    codes: BTreeMap<Hash32, Code>,
    live: BTreeMap<Hash32, Session>,
}

impl Sessions {
    /// None.
    pub const fn new(limits: Limits) -> Self {
        Self {
            limits,
            codes: BTreeMap::new(),
            live: BTreeMap::new(),
        }
    }

    /// Takes a new code into the books; returns when it ends.
    pub fn mint(&mut self, code: Hash32, scopes: ScopeSet, by: String, now: Millis) -> Millis {
        self.sweep(now);
        while self.codes.len() >= self.limits.codes.max(1) {
            let Some(oldest) = self
                .codes
                .iter()
                .min_by_key(|(_, c)| c.until)
                .map(|(k, _)| *k)
            else {
                break;
            };
            self.codes.remove(&oldest);
        }
        let until = now.plus(self.limits.code_ms);
        self.codes.insert(code, Code { scopes, by, until });
        until
    }

    /// Turns a code into a session, once.
    ///
    /// # Errors
    /// [`SessionRefusal::BadCode`].
    pub fn redeem(
        &mut self,
        code: Hash32,
        session: Hash32,
        now: Millis,
    ) -> Result<Session, SessionRefusal> {
        self.sweep(now);
        let Code { scopes, by, .. } = self.codes.remove(&code).ok_or(SessionRefusal::BadCode)?;
        while self.live.len() >= self.limits.sessions.max(1) {
            let Some(idlest) = self
                .live
                .iter()
                .min_by_key(|(_, s)| s.used)
                .map(|(k, _)| *k)
            else {
                break;
            };
            self.live.remove(&idlest);
        }
        let opened = Session {
            scopes,
            by,
            since: now,
            reads: false,
            used: now,
            read: None,
        };
        self.live.insert(session, opened.clone());
        Ok(opened)
    }

    /// The session, if it lives. `touch`: a person did something; a view that reloads by itself does not keep a
    /// session alive.
    ///
    /// # Errors
    /// [`SessionRefusal::NoSession`].
    pub fn check(
        &mut self,
        session: Hash32,
        touch: bool,
        now: Millis,
    ) -> Result<Session, SessionRefusal> {
        self.sweep(now);
        let live = self
            .live
            .get_mut(&session)
            .ok_or(SessionRefusal::NoSession)?;
        if touch {
            live.used = now;
        }
        live.reads = live.read.is_some_and(|at| now.since(at) < READING_MS);
        Ok(live.clone())
    }

    /// The log has been opened for it, on record: what its view reloads now is the same reading.
    pub fn read(&mut self, session: Hash32, now: Millis) {
        if let Some(live) = self.live.get_mut(&session) {
            live.read = Some(now);
        }
    }

    /// Ends one; no matter whether it lived.
    pub fn end(&mut self, session: Hash32) {
        self.live.remove(&session);
    }

    /// Ends all, and voids every code; says how many sessions that were.
    pub fn end_all(&mut self) -> usize {
        self.codes.clear();
        std::mem::take(&mut self.live).len()
    }

    /// Codes and sessions that live.
    pub fn count(&self) -> (usize, usize) {
        (self.codes.len(), self.live.len())
    }

    /// Forgets what has run out: also on a timer, so that the counts are true.
    pub fn sweep(&mut self, now: Millis) {
        let Limits {
            idle_ms,
            session_ms,
            ..
        } = self.limits;
        self.codes.retain(|_, code| now < code.until);
        self.live
            .retain(|_, s| now.since(s.used) < idle_ms && now.since(s.since) < session_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Scope;

    const MINUTE: u64 = 60_000;

    fn books() -> Sessions {
        Sessions::new(Limits {
            code_ms: MINUTE,
            idle_ms: 30 * MINUTE,
            session_ms: 720 * MINUTE,
            codes: 2,
            sessions: 2,
        })
    }

    fn hash(n: u8) -> Hash32 {
        Hash32([n; 32])
    }

    fn admin() -> ScopeSet {
        [Scope::Admin].into_iter().collect()
    }

    #[test]
    fn a_code_works_once_within_its_minute_and_gives_its_minters_scopes() {
        let mut books = books();
        let until = books.mint(hash(1), admin(), "uid:0".into(), Millis(0));
        assert_eq!(until, Millis(MINUTE));
        assert_eq!(
            books.redeem(hash(2), hash(9), Millis(1)),
            Err(SessionRefusal::BadCode)
        );
        let session = books.redeem(hash(1), hash(9), Millis(MINUTE - 1)).unwrap();
        assert_eq!((session.scopes, session.by.as_str()), (admin(), "uid:0"));
        assert_eq!(
            books.redeem(hash(1), hash(8), Millis(MINUTE - 1)),
            Err(SessionRefusal::BadCode)
        );
        books.mint(hash(3), admin(), "uid:0".into(), Millis(0));
        assert_eq!(
            books.redeem(hash(3), hash(7), Millis(MINUTE)),
            Err(SessionRefusal::BadCode)
        );
    }

    #[test]
    fn a_reading_of_the_log_is_one_for_a_quarter_of_an_hour_and_of_its_session_only() {
        let mut books = books();
        for n in [1, 2] {
            books.mint(hash(n), admin(), String::new(), Millis(0));
            let opened = books.redeem(hash(n), hash(8 + n), Millis(0)).unwrap();
            assert!(!opened.reads);
        }
        assert!(!books.check(hash(9), false, Millis(1)).unwrap().reads);
        books.read(hash(9), Millis(1));
        let mut reads = |session, at| books.check(hash(session), false, Millis(at)).unwrap().reads;
        assert!(reads(9, READING_MS) && !reads(10, 2));
        assert!(!reads(9, READING_MS + 1));
    }

    #[test]
    fn a_session_ends_when_unused_and_in_any_case_in_the_end() {
        let mut books = books();
        books.mint(hash(1), admin(), String::new(), Millis(0));
        books.redeem(hash(1), hash(9), Millis(0)).unwrap();
        // Looked at, but not used: it still ends after 30 minutes without use.
        assert!(books.check(hash(9), false, Millis(29 * MINUTE)).is_ok());
        assert!(books.check(hash(9), false, Millis(30 * MINUTE)).is_err());
        books.mint(hash(2), admin(), String::new(), Millis(0));
        books.redeem(hash(2), hash(8), Millis(0)).unwrap();
        for at in (0..720).step_by(20) {
            assert!(
                books.check(hash(8), true, Millis(at * MINUTE)).is_ok(),
                "{at}"
            );
        }
        assert_eq!(
            books.check(hash(8), true, Millis(720 * MINUTE)),
            Err(SessionRefusal::NoSession)
        );
    }

    #[test]
    fn the_books_stay_small_and_all_can_be_ended() {
        let mut books = books();
        for n in 0..100 {
            books.mint(hash(n), admin(), String::new(), Millis(u64::from(n)));
        }
        assert_eq!(books.count(), (2, 0));
        assert!(books.redeem(hash(98), hash(200), Millis(100)).is_ok());
        assert!(books.redeem(hash(99), hash(201), Millis(101)).is_ok());
        books.mint(hash(1), admin(), String::new(), Millis(102));
        assert!(books.redeem(hash(1), hash(202), Millis(102)).is_ok());
        assert!(books.check(hash(200), true, Millis(103)).is_err());
        books.mint(hash(1), admin(), String::new(), Millis(103));
        assert_eq!(books.end_all(), 2);
        assert_eq!(books.count(), (0, 0));
        assert!(books.redeem(hash(1), hash(5), Millis(104)).is_err());
    }
}
