//! The way out to one destination. Whatever fails here is told and tried again: nothing waits for it but its own sink.

use super::config::{Destination, Peer, Settings};
use super::messages::TlsFor;
use super::sink::SinkRoom;
use crate::supervision::Ctx;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper_util::rt::TokioIo;
use portcullis_core::audit::{Record, Seq, syslog};
use portcullis_core::seal::Secret;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixDatagram};
use tokio::sync::oneshot;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

/// For one batch, connecting included.
const WITHIN: Duration = Duration::from_secs(30);
/// The most of an answer that is read; only its status counts.
const ANSWER: usize = 64 * 1024;

/// What goes out: records, and what they are called on the way.
pub(super) struct Batch {
    pub records: Vec<Arc<Record>>,
    /// Records of the log, as far as it is known.
    pub size: u64,
}

/// Why a batch was not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotTaken {
    /// It did not get there, or not in time.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The receiver says no.
    #[error("the receiver answers {0}")]
    Answer(u16),
    /// The receiver does not know us.
    #[error("the receiver refuses the token with {0}")]
    Token(u16),
}

/// Anything that a stream of syslog goes through.
trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for T {}

/// One destination, with what is open to it.
pub(super) struct Outlet {
    settings: Settings,
    ctx: Ctx<SinkRoom>,
    tls: TlsFor,
    host: String,
    version: String,
    state: PathBuf,
    stream: Option<Box<dyn Stream>>,
    datagram: Option<UnixDatagram>,
}

impl Outlet {
    pub(super) fn new(
        settings: Settings,
        ctx: Ctx<SinkRoom>,
        tls: TlsFor,
        host: String,
        version: String,
        state: PathBuf,
    ) -> Self {
        Self {
            settings,
            ctx,
            tls,
            host,
            version,
            state,
            stream: None,
            datagram: None,
        }
    }

    /// Whether a batch counts as taken only once the connection has outlived it: nothing answers on such a stream.
    pub(super) const fn is_unanswered(&self) -> bool {
        matches!(self.settings.to, Destination::Stream(_))
    }

    /// Whether what was sent on the stream may still count: nobody has closed it.
    pub(super) async fn is_open(&mut self) -> bool {
        let Some(stream) = &mut self.stream else {
            return false;
        };
        let mut byte = [0_u8];
        let read = tokio::io::AsyncReadExt::read(stream, &mut byte);
        // Nothing there: it is open. The end, or an error: it is not. A word: nobody asked for one.
        match tokio::time::timeout(Duration::from_millis(1), read).await {
            Err(_) | Ok(Ok(1)) => true,
            Ok(_) => {
                self.stream = None;
                false
            }
        }
    }

    /// Sends a batch whole.
    pub(super) async fn deliver(
        &mut self,
        batch: &Batch,
        token: Option<&Secret>,
    ) -> Result<(), NotTaken> {
        let sent = match tokio::time::timeout(WITHIN, self.send(batch, token)).await {
            Ok(sent) => sent,
            Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
        };
        if sent.is_err() {
            self.stream = None;
            self.datagram = None;
        }
        sent
    }

    async fn send(&mut self, batch: &Batch, token: Option<&Secret>) -> Result<(), NotTaken> {
        match self.settings.to.clone() {
            Destination::File(path) => self.add_to_file(path, batch).await,
            Destination::Datagram(path) => self.by_datagram(&path, batch).await,
            Destination::Stream(peer) => self.by_stream(&peer, batch).await,
            Destination::Http(peer, path) => self.post(&peer, &path, batch, token).await,
        }
    }

    fn lines(&self, batch: &Batch) -> String {
        let mut text = String::new();
        for record in &batch.records {
            let line = self.settings.format.line(record, batch.size, &self.version);
            text.push_str(&line);
            text.push('\n');
        }
        text
    }

    async fn add_to_file(&self, path: PathBuf, batch: &Batch) -> Result<(), NotTaken> {
        let text = self.lines(batch);
        let (tx, rx) = oneshot::channel();
        // Dropped unread where nobody waits any more.
        let state = self.state.clone();
        let job = move || drop(tx.send(append(&path, &state, text.as_bytes())));
        self.ctx
            .blocking("file", 0, job)
            .map_err(io::Error::other)?;
        rx.await.map_err(io::Error::other)??;
        Ok(())
    }

    async fn by_datagram(&mut self, path: &Path, batch: &Batch) -> Result<(), NotTaken> {
        let socket = if let Some(socket) = self.datagram.take() {
            socket
        } else {
            let socket = UnixDatagram::unbound()?;
            socket.connect(path)?;
            socket
        };
        for record in &batch.records {
            let message = self.message(record, batch.size);
            match socket.send(message.as_bytes()).await {
                Err(error)
                    if error.raw_os_error() == Some(rustix::io::Errno::MSGSIZE.raw_os_error()) =>
                {
                    let short = syslog::too_long(record, &self.host, std::process::id());
                    socket.send(short.as_bytes()).await?;
                }
                sent => {
                    sent?;
                }
            }
        }
        self.datagram = Some(socket);
        Ok(())
    }

    fn message(&self, record: &Record, size: u64) -> String {
        let (format, version) = (self.settings.format, self.version.as_str());
        syslog::of(
            record,
            format,
            size,
            version,
            &self.host,
            std::process::id(),
        )
    }

    async fn by_stream(&mut self, peer: &Peer, batch: &Batch) -> Result<(), NotTaken> {
        let mut text = String::new();
        for record in &batch.records {
            text.push_str(&syslog::framed(&self.message(record, batch.size)));
        }
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => self.connect(peer).await?,
        };
        stream.write_all(text.as_bytes()).await?;
        stream.flush().await?;
        self.stream = Some(stream);
        Ok(())
    }

    async fn connect(&self, peer: &Peer) -> io::Result<Box<dyn Stream>> {
        let stream = TcpStream::connect((peer.host.as_str(), peer.port)).await?;
        let Some(pin) = &peer.tls else {
            return Ok(Box::new(stream));
        };
        let config = (self.tls)(pin)?;
        let name = ServerName::try_from(peer.host.clone()).map_err(io::Error::other)?;
        let stream = TlsConnector::from(config).connect(name, stream).await?;
        Ok(Box::new(stream))
    }

    async fn post(
        &self,
        peer: &Peer,
        path: &str,
        batch: &Batch,
        token: Option<&Secret>,
    ) -> Result<(), NotTaken> {
        let (first, last) = (batch.records.first(), batch.records.last());
        let number = |record: Option<&Arc<Record>>| record.map_or(Seq(0), |record| record.seq);
        let mut request = hyper::Request::post(path)
            .header(HOST, authority(peer))
            .header(CONTENT_TYPE, "application/x-ndjson")
            .header("x-portcullis-first", number(first).0)
            .header("x-portcullis-last", number(last).0);
        if let Some(token) = token {
            let value = [b"Bearer ", token.expose()].concat();
            let value = HeaderValue::from_maybe_shared(Bytes::from(value));
            let mut value =
                value.map_err(|_| io::Error::other("the token is no text for a header"))?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        let body = Full::new(Bytes::from(self.lines(batch)));
        let request = request.body(body).map_err(io::Error::other)?;
        let stream = self.connect(peer).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        let answer = async move {
            let answer = sender.send_request(request).await?;
            let status = answer.status();
            let body = http_body_util::Limited::new(answer.into_body(), ANSWER);
            // Read, so that a receiver is not cut off in its word.
            drop(body.collect().await);
            Ok::<_, hyper::Error>(status)
        };
        let carried = async {
            // It ends with the answer; an error of it is the answer's too.
            let _ = connection.await;
            std::future::pending::<()>().await;
        };
        let status = tokio::select! {
            status = answer => status.map_err(io::Error::other)?,
            () = carried => return Err(io::Error::from(io::ErrorKind::ConnectionAborted).into()),
        };
        match status.as_u16() {
            200..=299 => Ok(()),
            code @ (401 | 403) => Err(NotTaken::Token(code)),
            code => Err(NotTaken::Answer(code)),
        }
    }
}

fn authority(peer: &Peer) -> String {
    let host = if peer.host.contains(':') {
        format!("[{}]", peer.host)
    } else {
        peer.host.clone()
    };
    format!("{host}:{}", peer.port)
}

/// Whole lines at the end of the file, durable. Opened by name each time: who reads it may have moved it away.
fn append(path: &Path, state: &Path, text: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/")).canonicalize()?;
    if folder.starts_with(state.canonicalize()?) {
        return Err(io::Error::other("it lies inside the state directory"));
    }
    let mut file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(
            (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK)
                .bits()
                .cast_signed(),
        )
        .open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::other("it is no plain file"));
    }
    let is_new = meta.len() == 0;
    let written = file.write_all(text).and_then(|()| file.sync_data());
    if let Err(error) = written {
        // Half a line would be read as a record; the batch comes again as a whole.
        drop(file.set_len(meta.len()));
        return Err(error);
    }
    if is_new {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}
