//! A notice over HTTPS, signed: one connection for each try, to an address that was looked at.

use super::config::Webhook;
use super::messages::NoticesWiring;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::header::{CONTENT_TYPE, HOST, USER_AGENT};
use hyper_util::rt::TokioIo;
use portcullis_core::audit::Entry;
use portcullis_core::notices::{self, Notice};
use portcullis_core::seal::Secret;
use portcullis_core::vault::Asked;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

/// The most of an answer's head, and of its body, that is read: only its status counts.
const HEAD: usize = 16 * 1024;
const BODY: usize = 64 * 1024;
/// How long the body is read, so that a receiver is not cut off in its word.
const BODY_WITHIN: Duration = Duration::from_secs(1);

/// The way to the receiver of `[notices.webhook]`.
pub(super) struct Sender {
    pub to: Webhook,
    pub wiring: NoticesWiring,
    /// The key, and its version in the vault.
    pub key: Option<(u64, Secret)>,
}

impl Sender {
    /// Delivers it once.
    pub async fn tell(&mut self, notice: &Notice) -> Result<(), String> {
        let within = self.to.within;
        let told = tokio::time::timeout(within, self.send(notice));
        let no_time = |_| format!("no answer within {} ms", within.as_millis());
        told.await.map_err(no_time)?
    }

    async fn send(&mut self, notice: &Notice) -> Result<(), String> {
        let key = self.key().await?;
        let (id, body) = (notice.message_id(), notice.body());
        let seconds = self.wiring.clock.now().0 / 1000;
        let signature = notices::signature(&key, &id, seconds, &body);
        let request = hyper::Request::post(&self.to.path)
            .header(HOST, self.authority())
            .header(USER_AGENT, format!("portcullis/{}", self.wiring.version))
            .header(CONTENT_TYPE, "application/json")
            .header("webhook-id", id)
            .header("webhook-timestamp", seconds)
            .header("webhook-signature", signature)
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| error.to_string())?;
        let config = (self.wiring.tls)(&self.to).map_err(|error| error.to_string())?;
        let stream = self.connect().await?;
        let name = ServerName::try_from(self.to.host.clone()).map_err(|error| error.to_string())?;
        let stream = TlsConnector::from(config).connect(name, stream).await;
        let stream = stream.map_err(|error| format!("TLS: {error}"))?;
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(HEAD)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        let answer = async move {
            let answer = sender.send_request(request).await?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), BODY).collect();
            // Whatever it says: the status has said it.
            drop(tokio::time::timeout(BODY_WITHIN, body).await);
            Ok::<_, hyper::Error>(status)
        };
        let carried = async {
            // It ends with the answer; an error of it is the answer's too.
            let _ = connection.await;
            std::future::pending::<()>().await;
        };
        let status = tokio::select! {
            status = answer => status.map_err(|error| error.to_string())?,
            () = carried => return Err("the receiver closed the connection".to_owned()),
        };
        match status.as_u16() {
            200..=299 => Ok(()),
            // Where it leads was not written into the configuration.
            code @ 300..=399 => Err(format!(
                "the receiver answers {code}, and no redirect is followed"
            )),
            code => Err(format!("the receiver answers {code}")),
        }
    }

    /// To the first address that may be dialled and answers. A name is looked up once, and what was looked at is dialled.
    async fn connect(&self) -> Result<TcpStream, String> {
        let to = (self.to.host.as_str(), self.to.port);
        let found = tokio::net::lookup_host(to).await;
        let found = found.map_err(|error| format!("{}: {error}", self.to.host))?;
        let mut last = format!("{} has no address", self.to.host);
        for address in found {
            match self.to.addresses.check(address.ip()) {
                Err(class) => {
                    last = format!(
                        "{} is a {class} address, and [notices.webhook] networks does not name it",
                        address.ip()
                    );
                }
                Ok(ip) => match TcpStream::connect(SocketAddr::new(ip, address.port())).await {
                    Ok(stream) => return Ok(stream),
                    Err(error) => last = format!("{ip}: {error}"),
                },
            }
        }
        Err(last)
    }

    fn authority(&self) -> String {
        let Webhook { host, port, .. } = &self.to;
        let host = if host.contains(':') {
            format!("[{host}]")
        } else {
            host.clone()
        };
        if *port == 443 {
            host
        } else {
            format!("{host}:{port}")
        }
    }

    /// The key as the vault has it now. That it was taken out, and in which version, is recorded.
    async fn key(&mut self) -> Result<Secret, String> {
        let name = self.to.key.clone();
        let vault = self.wiring.vault.as_ref();
        let vault = vault.ok_or("there is no vault for its key")?;
        // Only for this host: whoever writes the configuration could name any secret, and a receiver of his own.
        let asked = || Asked {
            host: Some(self.to.host.clone()),
            ..Asked::by_gateway("notices webhook")
        };
        let usable = vault.usable(&name, asked()).await;
        let now = usable.map_err(|error| format!("its key {name}: {error}"))?;
        if let Some((version, key)) = &self.key
            && *version == now.version
        {
            return Ok(key.clone());
        }
        let entry = Entry {
            principal: Some("system".to_owned()),
            object: Some(format!("secret:{name}")),
            ..Entry::new("notices.secret")
        };
        let entry = entry.with("version", now.version.to_string());
        let recorded = self.wiring.audit.event(entry).await;
        let recorded = recorded.map_err(|error| error.to_string())?;
        // That record is the use's: the vault need not make another.
        let asked = Asked {
            record: Some(recorded.0),
            ..asked()
        };
        let revealed = vault.reveal(&name, Some(now.version), asked).await;
        let (meta, secret) = revealed.map_err(|error| format!("its key {name}: {error}"))?;
        let key = notices::key(&secret)?;
        self.key = Some((meta.version, key.clone()));
        Ok(key)
    }
}
