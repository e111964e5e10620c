//! The room: hands work to the writer thread and reading to blocking threads; its loop never waits for the disk.

use super::AuditWiring;
use super::error::AuditError;
use super::log::LogSpec;
use super::messages::{AuditMsg, Looked, Want};
use super::offline::verify;
use super::read::{Followed, query_to, records_to, tail_to};
use super::writer::{Answer, Job, NotTaken, Writer};
use crate::supervision::{Crash, Ctx, Room, Snapshot, TaskEnd};
use portcullis_core::audit::Seq;
use portcullis_core::time::Millis;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::oneshot;

/// Who wants to read waits in a line of this length at most: more than one socket can have in flight, and few enough
/// that appending keeps its places in the gate.
const LINE: usize = 128;
/// The blocking jobs that read.
const READ: &str = "read";
/// The one that reads everything.
const VERIFY: &str = "verify";

/// The audit room's state.
pub struct Audit {
    ctx: Ctx<Self>,
    dir: PathBuf,
    writer: Writer,
    /// What is still to be read: no blocking thread was free.
    line: VecDeque<Box<Looked>>,
    /// Jobs of this life, and whether one of them verifies: a long reading leaves the other thread to the short ones.
    reading: usize,
    verifying: bool,
    /// Of the segments that were read to their ends.
    followed: Arc<Followed>,
    opened: String,
    before: Millis,
}

impl Room for Audit {
    const NAME: &'static str = "audit";
    type Msg = AuditMsg;
    type Wiring = AuditWiring;

    async fn start(wiring: &AuditWiring, ctx: Ctx<Self>) -> Result<Self, Crash> {
        let (tx, opened) = oneshot::channel();
        let spec = LogSpec {
            dir: wiring.dir.clone(),
            keys: wiring.keys.clone(),
            config: wiring.config.clone(),
            boot: wiring.boot,
            clock: wiring.clock,
            version: wiring.version.clone(),
            state: wiring.state.clone(),
        };
        let (feed, unwritten) = (wiring.feed.clone(), wiring.unwritten.clone());
        ctx.blocking("open", 0, move || {
            // Nobody waits any more: the writer goes, and its lock with it.
            drop(tx.send(Writer::open(spec, feed, unwritten)));
        })?;
        let (writer, report) = opened.await??;
        if report.torn_bytes > 0 || report.unknown > 0 {
            tracing::warn!(
                torn_bytes = report.torn_bytes,
                unknown = report.unknown,
                "the audit log was not closed in order"
            );
        }
        if let Some(key) = report.began {
            // Public, and of use only to who keeps it elsewhere.
            tracing::info!(target: "portcullis", %key, "the audit log begins: keep its first public key elsewhere");
        }
        let opened = format!(
            "at record {}, {} torn bytes cut, {} acts of unknown outcome",
            report.head.seq, report.torn_bytes, report.unknown
        );
        Ok(Self {
            ctx,
            dir: wiring.dir.clone(),
            writer,
            line: VecDeque::new(),
            reading: 0,
            verifying: false,
            followed: Arc::default(),
            opened,
            before: Millis(report.before_ms),
        })
    }

    async fn handle(&mut self, msg: AuditMsg) -> Result<(), Crash> {
        match msg {
            AuditMsg::Append(body, reply) => self.submit(Job::Append(body, Answer::Room(reply))),
            AuditMsg::Once(body, refused, reply) => {
                self.submit(Job::Once(body, refused, Answer::Room(reply)))
            }
            AuditMsg::Seen(key, reply) => self.submit(Job::Seen(key, Answer::Room(reply))),
            AuditMsg::Head(reply) => {
                reply.ok(self.writer.status().head);
                Ok(())
            }
            AuditMsg::Before(reply) => {
                reply.ok(self.before);
                Ok(())
            }
            AuditMsg::Broken(reply) => {
                reply.ok(self.writer.status().broken);
                Ok(())
            }
            AuditMsg::Tail(n, reply) => self.look(Want::Tail(n, reply)),
            AuditMsg::Query(query, reply) => self.look(Want::Query(query, reply)),
            AuditMsg::Verify(outside, reply) => self.look(Want::Verify(outside, reply)),
            AuditMsg::Records(from, limit, reply) => self.look(Want::Records(from, limit, reply)),
            AuditMsg::Sign(reply) => self.look(Want::Sign(reply)),
            AuditMsg::Prove(seq, reply) => self.look(Want::Prove(seq, reply)),
            AuditMsg::Consistency(old, new, reply) => self.look(Want::Consistency(old, new, reply)),
            AuditMsg::Looked(looked) => {
                self.looked(*looked);
                Ok(())
            }
            AuditMsg::Followed(followed) => {
                self.followed = Arc::new(followed);
                Ok(())
            }
        }
    }

    async fn task_ended(
        &mut self,
        name: &'static str,
        _key: u64,
        end: TaskEnd,
    ) -> Result<(), Crash> {
        if let TaskEnd::Panicked(why) = end {
            return Err(Crash::new(format!("its {name} task panicked: {why}")));
        }
        if name == READ || name == VERIFY {
            self.reading = self.reading.saturating_sub(1);
            self.verifying &= name != VERIFY;
            self.read_on();
        }
        Ok(())
    }

    fn snapshot(&self) -> Snapshot {
        let status = self.writer.status();
        let state = status
            .broken
            .map_or_else(|| "records".to_owned(), |error| error.to_string());
        Snapshot::default()
            .with("state", state)
            .with("head", status.head.seq)
            .with("open intents", status.open)
            .with("idempotency keys", status.keys)
            .with("syncs", status.groups)
            .with("epoch", status.epoch)
            .with("signed", status.signed)
            .with("waiting to read", self.line.len())
            .with("opened", &self.opened)
    }

    async fn stop(self) {
        let (tx, closed) = oneshot::channel::<Result<Seq, AuditError>>();
        if self.writer.submit(Job::Close(Answer::Own(tx))).is_ok() {
            match closed.await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::error!(%error, "no stop mark in the audit log"),
                Err(_) => tracing::error!("the audit writer ended before its stop mark"),
            }
        }
        // It has answered, so it is at its end: this does not block.
        self.writer.join();
    }
}

impl Audit {
    fn submit(&self, job: Job) -> Result<(), Crash> {
        match self.writer.submit(job) {
            Ok(()) => Ok(()),
            Err(NotTaken::Full(job)) => {
                job.refuse(AuditError::Overloaded);
                Ok(())
            }
            Err(NotTaken::Gone) => Err(match self.writer.status().broken {
                Some(error) => Crash::new(format!("the audit writer thread ended: {error}")),
                None => Crash::new("the audit writer thread ended"),
            }),
        }
    }

    /// Asks the writer what is durable, and comes back with it.
    fn look(&self, want: Want) -> Result<(), Crash> {
        let (tx, look) = oneshot::channel();
        let is_signed = want.is_signed();
        let ctx = self.ctx.clone();
        self.ctx
            .task("look", 0, async move {
                match look.await {
                    Ok(Ok(look)) => {
                        ctx.notify(AuditMsg::Looked(Box::new(Looked { look, want })));
                    }
                    Ok(Err(error)) => want.refuse(error),
                    // The writer is gone: the dropped replies say so.
                    Err(_) => {}
                }
            })
            .keep();
        self.submit(Job::Look(Answer::Own(tx), is_signed))
    }

    /// What memory holds is answered at once; the rest is read in its turn.
    fn looked(&mut self, looked: Looked) {
        match looked.want {
            Want::Tail(n, reply) if n <= looked.look.ring.len() => {
                reply.ok(looked.look.ring[looked.look.ring.len() - n..].to_vec());
            }
            want if self.line.len() >= LINE => want.refuse(AuditError::Overloaded),
            want => {
                self.line.push_back(Box::new(Looked { want, ..looked }));
                self.read_on();
            }
        }
    }

    /// Gives the free threads to who is first in the line.
    fn read_on(&mut self) {
        loop {
            let verifies = |looked: &Looked| matches!(looked.want, Want::Verify(..));
            let mut line = self.line.iter();
            let Some(first) = line.position(|looked| !(self.verifying && verifies(looked))) else {
                return;
            };
            let Some(looked) = self.line.remove(first) else {
                return;
            };
            if !looked.want.is_wanted() {
                continue;
            }
            if let Err(looked) = self.read(looked) {
                if self.reading == 0 {
                    // The threads are busy for a life before this one: nobody would call us again.
                    looked.want.refuse(AuditError::Overloaded);
                    continue;
                }
                self.line.insert(first, looked);
                return;
            }
        }
    }

    /// Reads on a blocking thread, as far as the writer vouches for the files. Gives it back where none is free.
    fn read(&mut self, looked: Box<Looked>) -> Result<(), Box<Looked>> {
        let (dir, ctx) = (self.dir.clone(), self.ctx.clone());
        let followed = self.followed.clone();
        let verifies = matches!(looked.want, Want::Verify(..));
        // The closure owns the replies: with no thread free they are dropped, unless they are kept back here.
        let (tx, rx) = std::sync::mpsc::sync_channel::<Box<Looked>>(1);
        let job = move || {
            let Ok(looked) = rx.recv() else {
                return;
            };
            let Looked { look, want } = *looked;
            let horizon = look.horizon;
            let signed = || {
                let missing = || AuditError::Unreadable("no key has signed yet".to_owned());
                look.signed.as_ref().ok_or_else(missing)
            };
            match want {
                Want::Tail(n, reply) => {
                    let records = tail_to(&dir, n, Some(horizon));
                    reply.send(records.map(|records| records.into_iter().map(Arc::new).collect()));
                }
                Want::Query(query, reply) => reply.send(query_to(&dir, &query, Some(horizon))),
                Want::Verify(outside, reply) => {
                    reply.send(verify(&dir, Some(horizon), *outside));
                }
                Want::Records(from, limit, reply) => {
                    let mut now = (*followed).clone();
                    reply.send(records_to(&dir, from, limit, horizon, &mut now));
                    // Also of a reading that took too long, or came to what was altered: it is not read again.
                    if now != *followed {
                        ctx.notify(AuditMsg::Followed(now));
                    }
                }
                Want::Sign(reply) => reply.send(signed().map(|signed| (**signed).clone())),
                Want::Prove(seq, reply) => {
                    reply.send(signed().and_then(|signed| signed.prove(&dir, seq)));
                }
                Want::Consistency(old, new, reply) => {
                    reply.send(signed().and_then(|signed| signed.consistency(&dir, old, new)));
                }
            }
        };
        let name = if verifies { VERIFY } else { READ };
        if self.ctx.blocking(name, 0, job).is_err() {
            return Err(looked);
        }
        self.reading += 1;
        self.verifying |= verifies;
        // The channel holds one: this does not wait.
        drop(tx.try_send(looked));
        Ok(())
    }
}

impl Want {
    /// Nobody reads a whole log for who has gone.
    fn is_wanted(&self) -> bool {
        match self {
            Self::Tail(_, reply) => reply.is_wanted(),
            Self::Query(_, reply) => reply.is_wanted(),
            Self::Verify(_, reply) => reply.is_wanted(),
            Self::Records(_, _, reply) => reply.is_wanted(),
            Self::Sign(reply) => reply.is_wanted(),
            Self::Prove(_, reply) => reply.is_wanted(),
            Self::Consistency(_, _, reply) => reply.is_wanted(),
        }
    }

    fn refuse(self, error: AuditError) {
        match self {
            Self::Tail(_, reply) => reply.refuse(error),
            Self::Query(_, reply) => reply.refuse(error),
            Self::Verify(_, reply) => reply.refuse(error),
            Self::Records(_, _, reply) => reply.refuse(error),
            Self::Sign(reply) => reply.refuse(error),
            Self::Prove(_, reply) => reply.refuse(error),
            Self::Consistency(_, _, reply) => reply.refuse(error),
        }
    }
}
