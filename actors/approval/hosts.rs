//! Boxes' questions about hosts: heard as news, asked as any other question, and answered by a value that holds what is durable.

use portcullis_core::approval::HostAsked;
use portcullis_core::audit::Entry;

use super::actor::{Approval, about};
use super::messages::{ApprovalMsg, ApprovalRefusal, ApprovalWiring};
use crate::supervision::{Crash, Ctx, FeedItem};

/// Hears what boxes ask.
pub(super) fn listen(wiring: &ApprovalWiring, ctx: &Ctx<Approval>) {
    let (mut asks, own) = (wiring.hosts.asks.subscribe(), ctx.clone());
    ctx.task("hosts asked", 0, async move {
        loop {
            match asks.next().await {
                FeedItem::Event(asked) => own.notify(ApprovalMsg::Host(asked.event.clone())),
                // Who asked asks again.
                FeedItem::Lagged => {}
                FeedItem::Closed => return,
            }
        }
    })
    .keep();
}

impl Approval {
    /// A box asks for a host. What cannot be asked now is asked again when the box tries again.
    pub(super) async fn host_asked(&mut self, asked: &HostAsked) -> Result<(), Crash> {
        let step = match self.machine.ask_host(asked, self.free_id()?, self.now()) {
            Ok(Some(step)) => step,
            Ok(None) => return Ok(()),
            Err(refusal) => {
                tracing::warn!(agent = %asked.agent, host = %asked.host, %refusal, "nobody is asked about a host");
                return Ok(());
            }
        };
        let entry = Entry {
            action: "approval.requested".to_owned(),
            principal: Some(format!("agent:{}", asked.agent)),
            door: Some("egress".to_owned()),
            policy_hash: Some(self.policy_hash(&asked.agent)),
            ..Entry::new("approval.requested")
        };
        match self.make_event(about(entry, &step), step).await {
            Err(ApprovalRefusal::Act(error)) if error.must_reread() => Err(Crash::new(error)),
            Err(error) => {
                tracing::warn!(%error, "a question about a host could not be recorded");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// What holds for hosts, to those who let boxes out: only what is durable is in the machine.
    pub(super) fn tell_hosts(&self) {
        let words = self.machine.host_words(self.now());
        if *self.wiring.hosts.words.get() != words[..] {
            self.wiring.hosts.words.set(words.into());
        }
    }
}
