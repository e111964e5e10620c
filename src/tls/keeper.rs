//! Who keeps the certificate: reads it again on a word, makes it anew in time, and records each.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use portcullis_actors::audit::AuditHandle;
use portcullis_actors::connection::Certificate;
use portcullis_core::audit::{Entry, Outcome};
use portcullis_core::codes;
use portcullis_core::protocol::frame::ErrorBody;
use serde_json::Value;

use super::Tls;

/// See the module.
pub struct Keeper {
    tls: Arc<Tls>,
    audit: AuditHandle,
}

impl Keeper {
    /// Nothing is read yet.
    pub const fn new(tls: Arc<Tls>, audit: AuditHandle) -> Self {
        Self { tls, audit }
    }

    /// The certificate.
    pub fn tls(&self) -> &Tls {
        &self.tls
    }

    /// Reads or makes the certificate again: recorded, done, and its end recorded. What cannot be recorded is not done.
    ///
    /// # Errors
    /// Why the old one is still served.
    pub async fn read_again(&self, cause: &str, by: Entry) -> Result<(), ErrorBody> {
        let mut entry = Entry {
            action: "tls.reload".to_owned(),
            object: Some("certificate".to_owned()),
            ..by
        };
        entry.detail.insert("cause".to_owned(), cause.to_owned());
        let intent = self.audit.intent(entry).await.map_err(|error| {
            tracing::error!(target: "portcullis", %error, "the certificate is not read again: it cannot be recorded");
            let code = codes::find(error.code()).unwrap_or(codes::INTERNAL);
            ErrorBody::of(code, error.to_string())
        })?;
        let tls = self.tls.clone();
        // A few small files.
        let done = tokio::task::spawn_blocking(move || tls.reload().map_err(|e| e.to_string()));
        let done = done.await.unwrap_or_else(|e| Err(e.to_string()));
        let outcome = match &done {
            Ok(()) => {
                tracing::info!(target: "portcullis", cause, pin = self.tls.pin(), "certificate read again");
                Outcome::ok()
            }
            Err(error) => {
                tracing::error!(target: "portcullis", cause, error, "the new certificate cannot be used: the old one is kept");
                let short: String = error.chars().take(256).collect();
                Outcome::failed(codes::CERTIFICATE_INVALID.name).with("why", short)
            }
        };
        let outcome = outcome.with("served", self.tls.pin().unwrap_or_default());
        if let Err(error) = self.audit.outcome(intent, outcome).await {
            tracing::error!(target: "portcullis", %error, "the end of a reload could not be recorded");
        }
        done.map_err(|why| ErrorBody::of(codes::CERTIFICATE_INVALID, why))
    }

    /// Looks this often whether a made certificate is to be made anew, and does so. Files of your own are yours to renew.
    pub async fn renew(&self, every: Duration) -> Infallible {
        loop {
            tokio::time::sleep(every).await;
            if self.tls.is_due() {
                // Told in the log; the next look tries again.
                let _ = self.read_again("renewal", Entry::default()).await;
            }
        }
    }
}

impl Certificate for Keeper {
    fn facts(&self) -> Value {
        self.tls.facts()
    }

    fn reload(
        &self,
        by: Entry,
    ) -> Pin<Box<dyn Future<Output = Result<(), ErrorBody>> + Send + '_>> {
        Box::pin(self.read_again("command", by))
    }
}
