//! Reads behind the last record that was taken, sends, notes that it was taken, and begins again. Catching up it reads the
//! log's files; from then on it hears records as they become durable, and reads again when it has missed one.

use super::actor::{SinkRoom, SinkWiring};
use crate::audit::Cursor;
use crate::sinks::outlet::{Batch, NotTaken, Outlet};
use crate::supervision::{Ctx, FeedItem, FeedReader};
use portcullis_core::audit::{Entry, Record, Seq};
use portcullis_core::seal::Secret;
use portcullis_core::vault::Asked;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// The most records of one batch.
const MOST: usize = 256;
/// After a record, so long for more of them to go along.
const GATHER: Duration = Duration::from_millis(20);
/// Without a record, so long until the sink looks about.
const IDLE: Duration = Duration::from_secs(2);
/// Between two tries: the first, and the most.
const WAIT: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));

/// What came of looking for records.
enum Next {
    Records(Vec<Arc<Record>>),
    /// There are none.
    None,
    /// Some were missed: they are in the files.
    Missed,
}

/// One sink's work.
pub(super) struct Carry {
    wiring: SinkWiring,
    ctx: Ctx<SinkRoom>,
    outlet: Outlet,
    /// The last record that was sent, and the last that counts as taken.
    sent: u64,
    taken: u64,
    /// The token, and its version.
    token: Option<(u64, Secret)>,
}

impl Carry {
    pub(super) fn new(wiring: SinkWiring, ctx: Ctx<SinkRoom>, taken: u64) -> Self {
        let outlet = Outlet::new(
            wiring.settings.clone(),
            ctx.clone(),
            wiring.all.tls.clone(),
            wiring.all.host.clone(),
            wiring.all.version.clone(),
            wiring
                .all
                .dir
                .parent()
                .unwrap_or(&wiring.all.dir)
                .to_owned(),
        );
        Self {
            wiring,
            ctx,
            outlet,
            sent: taken,
            taken,
            token: None,
        }
    }

    pub(super) async fn run(mut self) {
        let mut news = self.wiring.all.audit.watch();
        let (mut follows, mut wait) = (false, WAIT.0);
        loop {
            let next = if follows {
                Ok(self.hear(&mut news).await)
            } else {
                self.read().await
            };
            let done = match next {
                Ok(Next::Records(records)) => self.pass_on(records).await,
                Ok(Next::None) => {
                    follows = true;
                    self.settle().await
                }
                Ok(Next::Missed) => {
                    follows = false;
                    Ok(())
                }
                Err(why) => Err(why),
            };
            match done {
                Ok(()) => wait = WAIT.0,
                Err(why) => {
                    // What nobody has confirmed is sent again.
                    (follows, self.sent) = (false, self.taken);
                    self.tell(Some(why)).await;
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(WAIT.1);
                }
            }
        }
    }

    /// From the files.
    async fn read(&mut self) -> Result<Next, String> {
        let from = Seq(self.sent.saturating_add(1));
        let records = self.wiring.all.audit.records(from, MOST).await;
        let records = records.map_err(|error| error.to_string())?;
        let Some(first) = records.first().map(|record| record.seq.0) else {
            return Ok(Next::None);
        };
        // A new sink begins with what there is.
        if first > from.0 && self.sent > 0 {
            self.missing(from.0, first - 1).await;
        }
        self.sent = first - 1;
        Ok(Next::Records(records.into_iter().map(Arc::new).collect()))
    }

    /// Retention could not wait any longer. That it took what this sink had not is in the log, and so in the sink.
    async fn missing(&self, from: u64, until: u64) {
        let entry = Entry {
            principal: Some("system".to_owned()),
            object: Some(self.wiring.name.clone()),
            ..Entry::new("sinks.lost")
        };
        let entry = entry
            .with("from", from.to_string())
            .with("until", until.to_string());
        if let Err(error) = self.wiring.all.audit.note(entry).await {
            tracing::error!(sink = %self.wiring.name, from, until, %error, "records went before the sink took them");
        }
        let count = until.saturating_sub(from).saturating_add(1);
        self.wiring.status.update(|status| status.lost += count);
    }

    /// As they become durable.
    async fn hear(&self, news: &mut FeedReader<Arc<Record>>) -> Next {
        let mut batch: Vec<Arc<Record>> = Vec::new();
        let mut expected = self.sent.saturating_add(1);
        while batch.len() < MOST {
            let within = if batch.is_empty() { IDLE } else { GATHER };
            match tokio::time::timeout(within, news.next()).await {
                Err(_) if batch.is_empty() => return Next::None,
                Err(_) => break,
                Ok(FeedItem::Event(told)) if told.event.seq.0 < expected => {}
                Ok(FeedItem::Event(told)) if told.event.seq.0 == expected => {
                    batch.push(told.event.clone());
                    expected = expected.saturating_add(1);
                }
                Ok(FeedItem::Event(_) | FeedItem::Lagged | FeedItem::Closed) => {
                    return Next::Missed;
                }
            }
        }
        Next::Records(batch)
    }

    async fn pass_on(&mut self, records: Vec<Arc<Record>>) -> Result<(), String> {
        let Some(last) = records.last().map(|record| record.seq.0) else {
            return Ok(());
        };
        // What went before on this stream has arrived, if nobody has closed it since.
        if self.outlet.is_unanswered() && self.sent > self.taken {
            if !self.outlet.is_open().await {
                return Err("the receiver closed the connection".to_owned());
            }
            self.take(self.sent).await?;
        }
        let batch = Batch {
            records,
            size: last,
        };
        let token = self.token().await?;
        let sent = self.outlet.deliver(&batch, token.as_ref()).await;
        if let Err(NotTaken::Token(_)) = sent {
            self.token = None;
        }
        sent.map_err(|error| error.to_string())?;
        self.sent = last;
        if !self.outlet.is_unanswered() {
            self.take(last).await?;
        }
        self.tell(None).await;
        Ok(())
    }

    /// Nothing is to be sent now.
    async fn settle(&mut self) -> Result<(), String> {
        if self.sent > self.taken {
            if !self.outlet.is_open().await {
                return Err("the receiver closed the connection".to_owned());
            }
            self.take(self.sent).await?;
        }
        self.tell(None).await;
        Ok(())
    }

    /// Durable, before it is believed.
    async fn take(&mut self, taken: u64) -> Result<(), String> {
        let cursor = Cursor::new(&self.wiring.all.dir, &self.wiring.name);
        let (tx, rx) = oneshot::channel();
        let job = move || drop(tx.send(cursor.write(taken)));
        let begun = self.ctx.blocking("cursor", 0, job);
        begun.map_err(|error| error.to_string())?;
        let written = rx.await.map_err(|error| error.to_string())?;
        written.map_err(|error| format!("how far it has come cannot be kept: {error}"))?;
        self.taken = taken;
        Ok(())
    }

    /// The token as the vault has it now. That it was taken out, and in which version, is recorded.
    async fn token(&mut self) -> Result<Option<Secret>, String> {
        let Some(name) = self.wiring.settings.token.clone() else {
            return Ok(None);
        };
        let vault = self.wiring.all.vault.as_ref();
        let vault = vault.ok_or("there is no vault for its token")?;
        let asked = || {
            let host = match &self.wiring.settings.to {
                crate::sinks::config::Destination::Http(peer, _) => Some(peer.host.clone()),
                _ => None,
            };
            let by = format!("audit sink {}", self.wiring.name);
            Asked {
                host,
                ..Asked::by_gateway(&by)
            }
        };
        let usable = vault.usable(&name, asked()).await;
        let now = usable.map_err(|error| format!("its token {name}: {error}"))?;
        if let Some((version, token)) = &self.token
            && *version == now.version
        {
            return Ok(Some(token.clone()));
        }
        let entry = Entry {
            principal: Some("system".to_owned()),
            object: Some(format!("secret:{name}")),
            ..Entry::new("sinks.secret")
        };
        let entry = entry
            .with("sink", self.wiring.name.clone())
            .with("version", now.version.to_string());
        let recorded = self.wiring.all.audit.event(entry).await;
        let recorded = recorded.map_err(|error| error.to_string())?;
        // That record is the use's: the vault need not make another.
        let asked = Asked {
            record: Some(recorded.0),
            ..asked()
        };
        let revealed = vault.reveal(&name, Some(now.version), asked).await;
        let (meta, token) = revealed.map_err(|error| format!("its token {name}: {error}"))?;
        self.token = Some((meta.version, token.clone()));
        Ok(Some(token))
    }

    /// Says how it stands; a new trouble, and its end, are told once.
    async fn tell(&self, error: Option<String>) {
        let head = self.wiring.all.audit.head().await.map(|head| head.seq.0);
        let before = self.wiring.status.get();
        let name = &self.wiring.name;
        match (&before.error, &error) {
            (None, Some(why)) => {
                tracing::warn!(sink = %name, %why, "a sink of the audit log does not go on");
            }
            (Some(_), None) => tracing::info!(sink = %name, "a sink of the audit log goes on"),
            _ => {}
        }
        self.wiring.status.update(|status| {
            status.taken = self.taken;
            status.lag = head.map_or(status.lag, |head| head.saturating_sub(self.taken));
            status.error = error;
        });
    }
}
