//! Between a span's end and the collector: a bounded queue, one task, batches.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanExporter, SpanProcessor};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

use super::{ExportView, fields};

/// Most spans of one request.
const BATCH: usize = 512;
/// A span waits for others at most so long.
const GATHER: Duration = Duration::from_millis(500);

#[derive(Debug, Default)]
pub(super) struct Counters {
    exported: AtomicU64,
    dropped: AtomicU64,
    failed: AtomicU64,
}

impl Counters {
    pub(super) fn view(&self) -> ExportView {
        ExportView {
            exported: self.exported.load(Relaxed),
            dropped: self.dropped.load(Relaxed),
            failed: self.failed.load(Relaxed),
        }
    }
}

/// The end where spans go in: never waits.
#[derive(Debug)]
pub(super) struct Sender {
    spans: mpsc::Sender<SpanData>,
    counters: Arc<Counters>,
}

impl SpanProcessor for Sender {
    fn on_start(&self, _span: &mut Span, _context: &Context) {}

    fn on_end(&self, mut span: SpanData) {
        if !span.span_context.is_sampled() {
            return;
        }
        fields::clean(&mut span);
        if self.spans.try_send(span).is_err() {
            self.counters.dropped.fetch_add(1, Relaxed);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// The task that exports.
#[derive(Debug)]
pub(super) struct Queue {
    stop: oneshot::Sender<Instant>,
    task: JoinHandle<()>,
}

pub(super) fn start<E: SpanExporter + 'static>(
    exporter: E,
    capacity: usize,
    within: Duration,
    counters: Arc<Counters>,
) -> (Sender, Queue) {
    let (spans, incoming) = mpsc::channel(capacity.max(1));
    let (stop, stopping) = oneshot::channel();
    let sender = Sender {
        spans,
        counters: counters.clone(),
    };
    let worker = Worker {
        exporter,
        within,
        counters,
    };
    let task = tokio::spawn(worker.run(incoming, stopping));
    (sender, Queue { stop, task })
}

impl Queue {
    pub(super) async fn stop(self, within: Duration) {
        let deadline = Instant::now() + within;
        // The task ends by itself only after this message.
        let _ = self.stop.send(deadline);
        // It keeps the deadline itself; a little more for its last line.
        let _ = timeout(within + Duration::from_millis(100), self.task).await;
    }
}

struct Worker<E> {
    exporter: E,
    within: Duration,
    counters: Arc<Counters>,
}

impl<E: SpanExporter> Worker<E> {
    async fn run(
        self,
        mut incoming: mpsc::Receiver<SpanData>,
        mut stopping: oneshot::Receiver<Instant>,
    ) {
        let mut batch = Vec::new();
        let deadline = loop {
            tokio::select! {
                deadline = &mut stopping => break deadline.unwrap_or_else(|_| Instant::now()),
                () = gather(&mut incoming, &mut batch) => {
                    self.export(std::mem::take(&mut batch), Instant::now() + self.within).await;
                }
            }
        };
        incoming.close();
        loop {
            while batch.len() < BATCH {
                let Ok(span) = incoming.try_recv() else { break };
                batch.push(span);
            }
            if batch.is_empty() {
                return;
            }
            self.export(
                std::mem::take(&mut batch),
                deadline.min(Instant::now() + self.within),
            )
            .await;
        }
    }

    async fn export(&self, batch: Vec<SpanData>, deadline: Instant) {
        let len = batch.len() as u64;
        match timeout_at(deadline, self.exporter.export(batch)).await {
            Ok(Ok(())) => self.counters.exported.fetch_add(len, Relaxed),
            // Told in the log once, at the end, with the count: a collector that is away must not fill the log.
            Ok(Err(_)) | Err(_) => self.counters.failed.fetch_add(len, Relaxed),
        };
    }
}

/// A full batch, or what came within a moment of the first span. Dropped in between, it loses nothing.
async fn gather(incoming: &mut mpsc::Receiver<SpanData>, batch: &mut Vec<SpanData>) {
    if batch.is_empty() {
        match incoming.recv().await {
            Some(span) => batch.push(span),
            None => std::future::pending().await,
        }
    }
    let until = Instant::now() + GATHER;
    while batch.len() < BATCH {
        match timeout_at(until, incoming.recv()).await {
            Ok(Some(span)) => batch.push(span),
            Ok(None) | Err(_) => return,
        }
    }
}
