//! What ends by itself. Two clocks are asked, and the earlier end holds: the wall clock, which people set, and the machine's
//! own, which nobody sets and which goes on while the machine sleeps. So a wall clock that is set back prolongs nothing.

use super::egress::until;
use super::machine::{Machine, ended};
use super::{EXPIRED_CLOCK, Put, Record, Status, Step};
use crate::time::{BootMoment, Millis};

impl Record {
    /// When it, or what was said by it, ends of itself.
    fn own_end(&self) -> Option<Millis> {
        if self.status.is_final() {
            until(self)
        } else {
            Some(self.expires)
        }
    }
}

impl Machine {
    /// What the machine's own clock says now.
    pub fn tick(&mut self, boot: Option<BootMoment>) {
        self.boot = boot;
    }

    /// After a start: what another start of the machine, or none, has said ends by this one's clock from now on.
    pub fn adopt(&mut self, now: Millis) {
        let Some(boot) = self.boot.clone() else {
            return;
        };
        let is_own = |end: &Option<BootMoment>| end.as_ref().is_some_and(|e| e.boot == boot.boot);
        for record in self.records.values_mut() {
            if !is_own(&record.boot_end) {
                let end = record.own_end();
                record.boot_end = end.map(|end| boot.plus(end.since(now)));
            }
        }
        for grant in self.grants.values_mut() {
            if !is_own(&grant.boot_end) {
                grant.boot_end = Some(boot.plus(grant.expires.since(now)));
            }
        }
    }

    /// Before it is written: what ends at a new time ends by the machine's own clock too. What ends when it did before
    /// keeps that: who votes, or uses, prolongs nothing.
    pub fn stamp(&self, step: &mut Step, now: Millis) {
        let Some(boot) = &self.boot else {
            return;
        };
        let from_now = |end: Millis| boot.plus(end.since(now));
        let own = |end: &BootMoment| end.boot == boot.boot;
        for put in &mut step.puts {
            match put {
                Put::Record(record) => {
                    let end = record.own_end();
                    let known = self.records.get(record.id.as_str());
                    let known = known.filter(|known| known.own_end() == end);
                    let kept = known.and_then(|known| known.boot_end.clone()).filter(own);
                    record.boot_end = end.map(|end| kept.unwrap_or_else(|| from_now(end)));
                }
                Put::Grant(grant) => {
                    let known = self.grants.get(&grant.id);
                    let known = known.filter(|known| known.expires == grant.expires);
                    let kept = known.and_then(|known| known.boot_end.clone()).filter(own);
                    grant.boot_end = Some(kept.unwrap_or_else(|| from_now(grant.expires)));
                }
                Put::DropRecord(_) | Put::DropGrant(_) | Put::Document(_) | Put::Uses(_) => {}
            }
        }
    }

    /// Is that over by the machine's own clock?
    pub(super) fn is_over(&self, end: Option<&BootMoment>) -> bool {
        self.left(end) == Some(0)
    }

    fn left(&self, end: Option<&BootMoment>) -> Option<u64> {
        end?.left(self.boot.as_ref()?)
    }

    /// What is over by either clock.
    pub fn expire(&self, now: Millis) -> Step {
        let open = self.records.values().filter(|r| !r.status.is_final());
        let due = open.filter(|r| r.is_due(now) || self.is_over(r.boot_end.as_ref()));
        let records = due.map(|r| {
            let why = if now < r.created {
                EXPIRED_CLOCK
            } else {
                "timeout"
            };
            ended(r, Status::Expired, why, now)
        });
        let grants = self
            .grants
            .values()
            .filter(|g| now >= g.expires || now < g.created || self.is_over(g.boot_end.as_ref()))
            .map(|g| Put::DropGrant(g.id.clone()));
        Step {
            puts: records.chain(grants).collect(),
        }
    }

    /// When something next ends by itself.
    pub fn next_due(&self, now: Millis) -> Option<Millis> {
        let sooner = |end: Millis, boot_end: Option<&BootMoment>| {
            let left = self.left(boot_end).map(|left| now.plus(left));
            left.map_or(end, |left| left.min(end))
        };
        let records = self
            .records
            .values()
            .filter(|r| !r.status.is_final())
            .map(|r| sooner(r.expires, r.boot_end.as_ref()));
        let grants = self
            .grants
            .values()
            .map(|g| sooner(g.expires, g.boot_end.as_ref()));
        records.chain(grants).chain(self.next_word_end(now)).min()
    }
}
