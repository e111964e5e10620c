//! Logs to stderr, and spans to a collector of the operator's own if the configuration names one.
//!
//! Export never holds anything up: spans go into a bounded queue, and what does not fit is dropped and counted. Only
//! attributes on a list of ours leave the process.

mod fields;
mod log;
mod queue;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_otlp::{Protocol, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use serde::{Deserialize, Serialize};
use tracing::Subscriber;
use tracing_subscriber::filter::{EnvFilter, FilterFn, filter_fn};
use tracing_subscriber::layer::{Layer, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

use queue::{Counters, Queue, Sender};

/// `[telemetry]` in the configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetryConfig {
    /// What the log says at least: error, warn, info, debug or trace. `RUST_LOG`, where set, is stronger.
    pub level: Level,
    /// Export of spans.
    pub otlp: OtlpConfig,
}

/// See [`TelemetryConfig::level`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the words say it")]
pub enum Level {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

impl Level {
    const fn word(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self {
            level: Level::Info,
            otlp: OtlpConfig::default(),
        }
    }
}

/// `[telemetry.otlp]`: OTLP over HTTP with protobuf (opentelemetry.io/docs/specs/otlp).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OtlpConfig {
    /// Off: nothing is collected and nothing is sent.
    pub enabled: bool,
    /// Where to, whole: `https://collector.example:4318/v1/traces`, or plain to this machine: `http://127.0.0.1:4318/v1/traces`.
    pub endpoint: String,
    /// For one batch, in milliseconds.
    pub timeout_ms: u64,
    /// Spans that may wait; what comes on top is dropped and counted.
    pub queue: usize,
    /// The share of traces that are kept, 0 to 1.
    pub ratio: f64,
}

impl Default for OtlpConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            endpoint: "http://127.0.0.1:4318/v1/traces".to_owned(),
            timeout_ms: 5_000,
            queue: 2_048,
            ratio: 1.0,
        }
    }
}

/// Why telemetry cannot start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The endpoint is none.
    #[error(
        "CONFIG_INVALID: [telemetry.otlp] endpoint: it must be https://HOST:PORT/v1/traces without a user; plain http:// is for 127.0.0.1, [::1] and localhost only"
    )]
    Endpoint,
    /// Nobody could vouch for the collector.
    #[error("CONFIG_INVALID: [telemetry.otlp] endpoint: {0}")]
    Authorities(String),
    /// The ratio is none.
    #[error("CONFIG_INVALID: [telemetry.otlp] ratio must be from 0 to 1")]
    Ratio,
    /// The exporter refused its settings.
    #[error("CONFIG_INVALID: [telemetry.otlp] {0}")]
    Exporter(String),
    /// A subscriber is set already.
    #[error("INTERNAL: logging was started twice")]
    Twice,
}

/// Running telemetry.
#[derive(Debug)]
pub struct Telemetry {
    export: Option<Export>,
}

#[derive(Debug)]
struct Export {
    provider: SdkTracerProvider,
    queue: Queue,
    counters: Arc<Counters>,
}

/// What became of the spans.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct ExportView {
    /// Taken by the collector.
    pub exported: u64,
    /// Not taken by the queue: it was full.
    pub dropped: u64,
    /// Not taken by the collector.
    pub failed: u64,
}

impl Telemetry {
    /// Starts logging and, if configured, export. Once per process, inside the runtime.
    ///
    /// # Errors
    /// [`TelemetryError`].
    pub fn init(config: &TelemetryConfig, instance: &str) -> Result<Self, TelemetryError> {
        let (telemetry, layer) = Self::export(&config.otlp, instance)?;
        let asked = EnvFilter::try_from_default_env().ok();
        // A span costs a lookup at each message: without export or RUST_LOG none is made.
        let spans = asked.is_some();
        let filter = asked
            .unwrap_or_else(|| EnvFilter::new(format!("warn,portcullis={}", config.level.word())));
        let lines = tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .with_writer(log::Stderr)
            .with_filter(filter)
            .with_filter(filter_fn(move |meta| spans || meta.is_event()));
        tracing_subscriber::registry()
            .with(layer)
            .with(lines)
            .try_init()
            .map_err(|_| TelemetryError::Twice)?;
        Ok(telemetry)
    }

    /// The exporting half: the layer to put into a subscriber, and its handle.
    fn export<S>(
        config: &OtlpConfig,
        instance: &str,
    ) -> Result<(Self, Option<impl Layer<S> + use<S>>), TelemetryError>
    where
        S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        if !config.enabled {
            return Ok((Self { export: None }, None));
        }
        let secure = endpoint_is_secure(&config.endpoint).ok_or(TelemetryError::Endpoint)?;
        if !(0.0..=1.0).contains(&config.ratio) {
            return Err(TelemetryError::Ratio);
        }
        let within = Duration::from_millis(config.timeout_ms.max(1));
        let mut exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_http_client(HyperClient::new(connector(secure)?, within, None))
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(&config.endpoint)
            .with_timeout(within)
            .build()
            .map_err(|e| TelemetryError::Exporter(e.to_string()))?;
        let resource = Resource::builder_empty()
            .with_service_name("portcullis")
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .with_attribute(KeyValue::new("service.instance.id", instance.to_owned()))
            .build();
        opentelemetry_sdk::trace::SpanExporter::set_resource(&mut exporter, &resource);
        let counters = Arc::new(Counters::default());
        let (sender, queue) = queue::start(exporter, config.queue, within, counters.clone());
        let provider = provider(sender, resource, config.ratio);
        let layer = tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("portcullis"))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_filter(our_spans());
        Ok((
            Self {
                export: Some(Export {
                    provider,
                    queue,
                    counters,
                }),
            },
            Some(layer),
        ))
    }

    /// Counts since the start; zeros when export is off.
    pub fn view(&self) -> ExportView {
        self.export
            .as_ref()
            .map(|e| e.counters.view())
            .unwrap_or_default()
    }

    /// Sends what still waits, `within` at most. What was not sent is counted and told in the log.
    pub async fn shutdown(self, within: Duration) -> ExportView {
        let Some(Export {
            provider,
            queue,
            counters,
        }) = self.export
        else {
            return ExportView::default();
        };
        queue.stop(within).await;
        // Its processor is ours and has nothing left to do.
        let _ = provider.shutdown_with_timeout(Duration::from_millis(1));
        let view = counters.view();
        if view.dropped + view.failed > 0 {
            tracing::warn!(target: "portcullis", dropped = view.dropped, failed = view.failed, "spans were not exported");
        }
        view
    }
}

/// TLS 1.3 to who is verified, or plain to this machine; `None`: neither.
pub(crate) fn endpoint_is_secure(endpoint: &str) -> Option<bool> {
    let uri: hyper::Uri = endpoint.parse().ok()?;
    let authority = uri.authority()?.as_str();
    let host = uri.host().filter(|host| !host.is_empty())?;
    if authority.contains('@') {
        return None;
    }
    let literal = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    let is_here = host.eq_ignore_ascii_case("localhost")
        || literal.is_ok_and(|ip| ip.to_canonical().is_loopback());
    match uri.scheme_str()? {
        "https" => Some(true),
        "http" if is_here => Some(false),
        _ => None,
    }
}

/// The system's authorities are read only where they are needed.
fn connector(secure: bool) -> Result<hyper_rustls::HttpsConnector<HttpConnector>, TelemetryError> {
    let tls = if secure {
        crate::tls::verified(None)
            .map_err(|error| TelemetryError::Authorities(error.to_string()))?
    } else {
        crate::tls::trusting_nobody()
            .map_err(|error| TelemetryError::Authorities(error.to_string()))?
    };
    let builder = hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(tls);
    // The endpoint's scheme was judged; nothing else is dialled, and no redirect is followed.
    let builder = if secure {
        builder.https_only()
    } else {
        builder.https_or_http()
    };
    Ok(builder.enable_http1().build())
}

fn provider(sender: Sender, resource: Resource, ratio: f64) -> SdkTracerProvider {
    SdkTracerProvider::builder()
        .with_span_processor(sender)
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(
            ratio,
        ))))
        .with_resource(resource)
        .build()
}

/// Spans of our own code: never a library's, and no events, whose texts are free.
fn our_spans() -> FilterFn {
    filter_fn(|meta| {
        meta.is_span()
            && meta.target().starts_with("portcullis")
            && *meta.level() <= tracing::Level::INFO
    })
}
