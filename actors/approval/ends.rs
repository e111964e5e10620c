//! What ends by itself: by the clock, or with the device or secret on which it rests.

use super::actor::{Approval, COUNTED_EVERY, LOOK_EVERY};
use super::hosts;
use super::messages::{ApprovalEvent, ApprovalMsg, ApprovalRefusal, ApprovalWiring, Narrowed};
use super::rows::ops;
use crate::act::{ActError, store_with};
use crate::auth::AuthNews;
use crate::pairing::News as PairingNews;
use crate::supervision::{Crash, Ctx, FeedItem};
use portcullis_core::approval::{Basis, Put, Step};
use portcullis_core::audit::Entry;
use portcullis_core::auth::Holder;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::Instant;

impl Approval {
    /// Ends what is over by the clock. What cannot be recorded now stays, and is not answered or used meanwhile: the
    /// machine looks at the clock itself.
    pub(super) async fn expire(&mut self) -> Result<(), Crash> {
        let step = self.machine.expire(self.now());
        if step.puts.is_empty() {
            return Ok(());
        }
        match self.make(Entry::new("approval.expire"), step).await {
            Err(ApprovalRefusal::Act(error)) if !error.must_reread() => {
                tracing::warn!(%error, "what ran out could not be recorded");
                Ok(())
            }
            other => other.map_err(Crash::new),
        }
    }

    /// Which of these have ended.
    pub(super) async fn dead(
        &self,
        bases: BTreeSet<Basis>,
    ) -> Result<BTreeSet<Basis>, ApprovalRefusal> {
        let _waiting = self.ctx.waiting();
        let mut dead = BTreeSet::new();
        // Whether it still counts is not known: nothing is decided on it.
        let down = ApprovalRefusal::Down {
            may_have_run: false,
        };
        for basis in bases {
            let (now, then) = match &basis {
                Basis::Device(credential) => {
                    let pairing = &self.wiring.pairing;
                    let now = pairing.current_generation(&credential.device, credential.role);
                    (now.await.ok(), credential.generation)
                }
                Basis::Secret(standing) => {
                    let now = self.wiring.auth.current_generation(&standing.secret);
                    (now.await.ok(), standing.generation)
                }
            };
            if now.ok_or_else(|| down.clone())? != Some(then) {
                dead.insert(basis);
            }
        }
        Ok(dead)
    }

    /// Ends what rests on the word of this one, or of any, that has ended.
    pub(super) async fn void(&mut self, holder: Option<&Holder>) -> Result<usize, ApprovalRefusal> {
        let mut bases = self.machine.rests_on();
        bases.retain(|basis| holder.is_none_or(|holder| basis.holder() == *holder));
        let dead = self.dead(bases).await?;
        let step = self.machine.void(&dead, self.now());
        let count = step.puts.len();
        if count > 0 {
            let entry = Entry::new("approval.void").with("why", "revoked");
            let holders: BTreeSet<_> = dead.iter().map(|b| b.holder().to_string()).collect();
            let holders: Vec<_> = holders.into_iter().take(8).collect();
            let entry = entry.with("of", holders.join(" "));
            self.make(entry, step.clone()).await?;
            self.tell_revoked(&step);
        }
        Ok(count)
    }

    /// Told by pairing or authentication. What cannot be recorded now is not used meanwhile: each use asks them itself.
    pub(super) async fn look_again(&mut self, holder: Option<&Holder>) -> Result<(), Crash> {
        match self.void(holder).await {
            Ok(_) => Ok(()),
            Err(ApprovalRefusal::Act(error)) if error.must_reread() => Err(Crash::new(error)),
            Err(error) => {
                tracing::warn!(%error, "what ended with a credential could not be recorded");
                Ok(())
            }
        }
    }

    /// Writes how often rules were used, where that was not done for so long. It is no act: no record is made of it.
    pub(super) async fn save_counts(&mut self, every: Duration) -> Result<(), Crash> {
        if !self.machine.has_unsaved() || self.counted.elapsed() < every {
            return Ok(());
        }
        self.counted = Instant::now();
        let step = self.machine.unsaved();
        let saved = {
            let _waiting = self.ctx.waiting();
            let ApprovalWiring {
                audit,
                store,
                sealer,
                ..
            } = &self.wiring;
            match audit.head().await {
                Ok(head) => {
                    let revisions = &self.revisions;
                    let written = store_with(store, head.seq.0, |intent| {
                        ops(&step.puts, revisions, sealer, intent)
                    });
                    written.await.map(|revisions| (revisions, head.seq.0))
                }
                Err(error) => Err(ActError::CannotRecord(error)),
            }
        };
        match saved {
            Ok((revisions, intent)) => self.settle(step, revisions, intent).map_err(Crash::new),
            Err(error) if error.must_reread() => Err(Crash::new(error)),
            // They stay, and are written later.
            Err(error) => {
                tracing::debug!(%error, "how often rules were used could not be written");
                Ok(())
            }
        }
    }

    /// Tells runs of the grants that were taken back.
    pub(super) fn tell_revoked(&self, step: &Step) {
        for put in &step.puts {
            if let Put::DropGrant(id) = put {
                let narrowed = Narrowed::Grant(id.clone());
                self.wiring.feed.publish(ApprovalEvent::Narrowed(narrowed));
            }
        }
    }

    /// Wakes the room when the next thing is over.
    pub(super) fn arm(&mut self) {
        let now = self.now();
        let counts = self.machine.has_unsaved();
        let counts =
            counts.then(|| now.plus(u64::try_from(COUNTED_EVERY.as_millis()).unwrap_or(u64::MAX)));
        let due = self.machine.next_due(now).into_iter().chain(counts).min();
        self.timer = due.map(|due| {
            // At least a little: a change that cannot be recorded must not spin.
            let wait =
                Duration::from_millis(due.since(now)).clamp(Duration::from_millis(50), LOOK_EVERY);
            self.ctx.after("expire", 0, wait, ApprovalMsg::Expire)
        });
    }
}

/// Hears of what ends elsewhere.
pub(super) fn listen(wiring: &ApprovalWiring, ctx: &Ctx<Approval>) {
    hosts::listen(wiring, ctx);
    let mut news = wiring.pairing.news();
    let own = ctx.clone();
    ctx.task("pairing news", 0, async move {
        loop {
            match news.next().await {
                FeedItem::Event(told) => {
                    if let PairingNews::Invalidated { device_id, .. } = &told.event {
                        let holder = Holder::Device(device_id.clone());
                        own.notify(ApprovalMsg::LookAgain(Some(holder)));
                    }
                }
                FeedItem::Lagged => own.notify(ApprovalMsg::LookAgain(None)),
                FeedItem::Closed => return,
            }
        }
    })
    .keep();
    let mut news = wiring.auth.news();
    let own = ctx.clone();
    ctx.task("auth news", 0, async move {
        loop {
            match news.next().await {
                FeedItem::Event(told) => own.notify(ApprovalMsg::LookAgain(match &told.event {
                    AuthNews::Secret(secret, _) => Some(Holder::Secret(secret.clone())),
                    AuthNews::Any => None,
                })),
                FeedItem::Lagged => own.notify(ApprovalMsg::LookAgain(None)),
                FeedItem::Closed => return,
            }
        }
    })
    .keep();
}
