//! The room: hands work to the writer thread and reading to blocking threads; its loop never waits for the disk.

use super::AuditWiring;
use super::error::AuditError;
use super::log::LogSpec;
use super::messages::{AuditMsg, Looked, Want};
use super::offline::verify;
use super::read::{query_to, tail_to};
use super::writer::{Answer, Job, NotTaken, Writer};
use crate::supervision::{Crash, Ctx, Room, Snapshot};
use portcullis_core::audit::Seq;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::oneshot;

/// The audit room's state.
pub struct Audit {
    ctx: Ctx<Self>,
    dir: PathBuf,
    writer: Writer,
    opened: String,
}

impl Room for Audit {
    const NAME: &'static str = "audit";
    type Msg = AuditMsg;
    type Wiring = AuditWiring;

    async fn start(wiring: &AuditWiring, ctx: Ctx<Self>) -> Result<Self, Crash> {
        let (tx, opened) = oneshot::channel();
        let spec = LogSpec {
            dir: wiring.dir.clone(),
            config: wiring.config.clone(),
            boot: wiring.boot,
            clock: wiring.clock,
            version: wiring.version.clone(),
        };
        let feed = wiring.feed.clone();
        ctx.blocking("open", 0, move || {
            // Nobody waits any more: the writer goes, and its lock with it.
            drop(tx.send(Writer::open(spec, feed)));
        })?;
        let (writer, report) = opened.await??;
        if report.torn_bytes > 0 || report.unknown > 0 {
            tracing::warn!(
                torn_bytes = report.torn_bytes,
                unknown = report.unknown,
                "the audit log was not closed in order"
            );
        }
        let opened = format!(
            "at record {}, {} torn bytes cut, {} acts of unknown outcome",
            report.head.seq, report.torn_bytes, report.unknown
        );
        Ok(Self {
            ctx,
            dir: wiring.dir.clone(),
            writer,
            opened,
        })
    }

    async fn handle(&mut self, msg: AuditMsg) -> Result<(), Crash> {
        match msg {
            AuditMsg::Append(body, reply) => self.submit(Job::Append(body, Answer::Room(reply))),
            AuditMsg::Once(body, reply) => self.submit(Job::Once(body, Answer::Room(reply))),
            AuditMsg::Head(reply) => {
                reply.ok(self.writer.status().head);
                Ok(())
            }
            AuditMsg::Tail(n, reply) => self.look(Want::Tail(n, reply)),
            AuditMsg::Query(query, reply) => self.look(Want::Query(query, reply)),
            AuditMsg::Verify(reply) => self.look(Want::Verify(reply)),
            AuditMsg::Looked(looked) => {
                self.read(*looked);
                Ok(())
            }
        }
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
                match job {
                    Job::Append(_, answer) | Job::Close(answer) => {
                        answer.send(Err(AuditError::Overloaded));
                    }
                    Job::Once(_, answer) => answer.send(Err(AuditError::Overloaded)),
                    Job::Look(answer) => answer.send(Err(AuditError::Overloaded)),
                }
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
        self.submit(Job::Look(Answer::Own(tx)))
    }

    /// Reads on a blocking thread, as far as the writer vouches for the files.
    fn read(&self, Looked { look, want }: Looked) {
        let (dir, horizon) = (self.dir.clone(), look.horizon);
        let want = match want {
            Want::Tail(n, reply) if n <= look.ring.len() => {
                reply.ok(look.ring[look.ring.len() - n..].to_vec());
                return;
            }
            want => want,
        };
        // The closure owns the replies: with no thread free they are dropped, unless they are kept back here.
        let (tx, rx) = std::sync::mpsc::sync_channel::<Want>(1);
        let job = move || {
            let Ok(want) = rx.recv() else { return };
            match want {
                Want::Tail(n, reply) => {
                    let records = tail_to(&dir, n, Some(horizon));
                    reply.send(records.map(|records| records.into_iter().map(Arc::new).collect()));
                }
                Want::Query(query, reply) => reply.send(query_to(&dir, &query, Some(horizon))),
                Want::Verify(reply) => reply.send(verify(&dir, Some(horizon))),
            }
        };
        match self.ctx.blocking("read", 0, job) {
            // The channel holds one: this does not wait.
            Ok(()) => drop(tx.try_send(want)),
            Err(_full) => want.refuse(AuditError::Overloaded),
        }
    }
}

impl Want {
    fn refuse(self, error: AuditError) {
        match self {
            Self::Tail(_, reply) => reply.refuse(error),
            Self::Query(_, reply) => reply.refuse(error),
            Self::Verify(reply) => reply.refuse(error),
        }
    }
}
