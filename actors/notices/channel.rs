//! One receiver: hears of questions, keeps what is to be told, tells it in order, tries again. Whatever fails here is said in `status`
//! and in the log, and no question waits for it.

use super::actor::Notices;
use super::kept::Kept;
use super::messages::{ChannelStatus, NoticesWiring};
use super::program::Program;
use super::webhook::Sender;
use crate::approval::ApprovalEvent;
use crate::supervision::{Ctx, FeedItem, FeedReader, Flag};
use portcullis_core::approval::Record;
use portcullis_core::audit::Entry;
use portcullis_core::codes;
use portcullis_core::notices::{Ledger, Notice};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// The longest wait between two tries.
const LONGEST_WAIT: Duration = Duration::from_mins(1);
/// After the list of questions could not be had.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The way to a receiver.
pub(super) enum Way {
    /// Over HTTPS.
    Webhook(Box<Sender>),
    /// On this machine.
    Program(Box<Program>),
}

impl Way {
    async fn tell(&mut self, notice: &Notice) -> Result<(), String> {
        match self {
            Self::Webhook(sender) => sender.tell(notice).await,
            Self::Program(program) => program.tell(notice).await,
        }
    }
}

/// One receiver, with all that it has.
pub(super) struct Channel {
    pub name: &'static str,
    pub way: Way,
    pub wiring: NoticesWiring,
    pub ctx: Ctx<Notices>,
    pub status: Arc<Flag<ChannelStatus>>,
}

/// What is heard while a notice is under way.
enum Heard {
    /// The notice was told, or not.
    Told(Result<(), String>),
    News(FeedItem<ApprovalEvent>),
}

impl Channel {
    pub async fn run(self) {
        let Self {
            name,
            mut way,
            wiring,
            ctx,
            status,
        } = self;
        // Before the list: what is asked from now on is heard.
        let mut news = wiring.approval.feed();
        let kept = Kept {
            dir: wiring.dir.clone(),
            name,
        };
        let open = blocking(&ctx, {
            let kept = kept.clone();
            move || kept.read()
        });
        let open = open.await.unwrap_or_else(|why| {
            tracing::warn!(channel = name, %why, "what was told before is not known: what is open is told again");
            BTreeSet::new()
        });
        let mut book = Book {
            name,
            ledger: Ledger::new(wiring.settings.queue, open),
            wiring,
            ctx,
            status,
            kept,
            tries: 0,
            due: Instant::now(),
        };
        let mut is_behind = true;
        loop {
            if is_behind {
                is_behind = book.catch_up().await.is_err();
            }
            if book.ledger.has_missed() {
                is_behind |= book.take_up().await.is_err();
            }
            let looks = Instant::now() + LOOK_AGAIN;
            let Some(notice) = book.ledger.next().cloned() else {
                let item = if is_behind {
                    tokio::time::timeout_at(looks, news.next()).await.ok()
                } else {
                    Some(next(&mut news).await)
                };
                is_behind |= book.heard(item).await;
                continue;
            };
            let due = book.due;
            let telling = async {
                tokio::time::sleep_until(due).await;
                way.tell(&notice).await
            };
            tokio::pin!(telling);
            let told = loop {
                let heard = tokio::select! {
                    told = &mut telling => Heard::Told(told),
                    item = next(&mut news) => Heard::News(item),
                };
                match heard {
                    Heard::Told(told) => break told,
                    Heard::News(item) => is_behind |= book.heard(Some(item)).await,
                }
            };
            book.after(&notice, told).await;
        }
    }
}

/// A feed that has ended has no more news.
async fn next(news: &mut FeedReader<ApprovalEvent>) -> FeedItem<ApprovalEvent> {
    match news.next().await {
        FeedItem::Closed => std::future::pending().await,
        item => item,
    }
}

/// What is to be told, and how it went.
struct Book {
    name: &'static str,
    ledger: Ledger,
    wiring: NoticesWiring,
    ctx: Ctx<Notices>,
    status: Arc<Flag<ChannelStatus>>,
    kept: Kept,
    /// For the next notice.
    tries: u32,
    due: Instant,
}

impl Book {
    /// Answers whether something was missed.
    async fn heard(&mut self, item: Option<FeedItem<ApprovalEvent>>) -> bool {
        match item {
            Some(FeedItem::Event(told)) => {
                if let Some(record) = told.event.record() {
                    self.add(record).await;
                }
                false
            }
            Some(FeedItem::Lagged) => true,
            Some(FeedItem::Closed) | None => false,
        }
    }

    /// What is open and was not told, and what was told to be open and is over.
    async fn catch_up(&mut self) -> Result<(), ()> {
        let pending = self.wiring.approval.list().await.map_err(drop)?;
        let open: BTreeSet<_> = pending.iter().map(|record| record.id.clone()).collect();
        self.ledger.keep_missed(&open);
        for record in &pending {
            self.add(record).await;
        }
        for id in self.ledger.over(&open) {
            match self.wiring.approval.get(id.as_str()).await {
                Ok(record) if record.id == id => self.add(&record).await,
                Err(refused) if refused.code() != codes::APPROVAL_NOT_FOUND.name => {
                    return Err(());
                }
                // Nobody knows of it any more.
                Ok(_) | Err(_) => self.ledger.forget(&id),
            }
        }
        Ok(())
    }

    /// What was pushed out and is open still, once there is room for it.
    async fn take_up(&mut self) -> Result<(), ()> {
        let pending = self.wiring.approval.list().await.map_err(drop)?;
        let page = &self.wiring.page;
        let notices = pending.iter().map(|record| Notice::of(record, page));
        self.ledger.take_up(notices.collect());
        self.show();
        Ok(())
    }

    async fn add(&mut self, record: &Record) {
        let lost = self.ledger.add(Notice::of(record, &self.wiring.page));
        self.show();
        if let Some(lost) = lost {
            self.lose(&lost, "pushed out by newer ones").await;
        }
    }

    async fn after(&mut self, notice: &Notice, told: Result<(), String>) {
        let error = match told {
            Ok(()) => None,
            Err(why) => {
                self.tries += 1;
                self.trouble(notice, &why).await;
                Some(why)
            }
        };
        let is_told = error.is_none();
        if let Some(why) = error {
            self.status
                .update(|status| status.error = Some(why.clone()));
            if self.tries < self.wiring.settings.attempts {
                let doubled = 2_u32.saturating_pow(self.tries.saturating_sub(1));
                let wait = self.wiring.settings.retry.saturating_mul(doubled);
                self.due = Instant::now() + wait.min(LONGEST_WAIT);
                return;
            }
            self.lose(notice, &why).await;
        }
        (self.tries, self.due) = (0, Instant::now());
        if self.ledger.done(notice, is_told) {
            self.keep().await;
        }
        // Only now: what is shown as told is told again by no crash.
        if is_told {
            self.status.update(|status| {
                status.told += 1;
                status.error = None;
            });
        }
        self.show();
    }

    /// A new trouble is told once.
    async fn trouble(&self, notice: &Notice, why: &str) {
        if self.status.get().error.is_some() {
            return;
        }
        tracing::warn!(channel = self.name, %why, "a notice was not taken: it is tried again");
        self.note("notices.failed", notice, why).await;
    }

    async fn lose(&self, notice: &Notice, why: &str) {
        self.status.update(|status| status.lost += 1);
        tracing::error!(channel = self.name, approval = %notice.id, event = notice.event.as_str(), %why, "a notice is given up");
        self.note("notices.lost", notice, why).await;
    }

    async fn note(&self, action: &str, notice: &Notice, why: &str) {
        let entry = Entry {
            principal: Some("system".to_owned()),
            object: Some(self.name.to_owned()),
            approval_id: Some(notice.id.to_string()),
            ..Entry::new(action)
        };
        let entry = entry.with("event", notice.event.as_str()).with("why", why);
        if let Err(error) = self.wiring.audit.note(entry).await {
            tracing::warn!(channel = self.name, %error, "a notice's trouble is not in the log");
        }
    }

    async fn keep(&self) {
        let (kept, open) = (self.kept.clone(), self.ledger.open().clone());
        if let Err(why) = blocking(&self.ctx, move || kept.write(&open)).await {
            tracing::warn!(channel = self.name, %why, "what was told cannot be kept: after a restart it may be told again");
        }
    }

    fn show(&self) {
        let waiting = self.ledger.len();
        self.status.update(|status| status.waiting = waiting);
    }
}

/// On a thread that may wait for the disk.
pub(super) async fn blocking<T: Send + 'static>(
    ctx: &Ctx<Notices>,
    job: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, String> {
    let (reply, done) = oneshot::channel();
    let begun = ctx.blocking("file", 0, move || drop(reply.send(job())));
    begun.map_err(|error| error.to_string())?;
    let done = done.await.map_err(|error| error.to_string())?;
    done.map_err(|error| error.to_string())
}
