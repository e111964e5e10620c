//! HTTP on every door: probes, the page, and the upgrade to WebSocket, whose header rules (RFC 6455 4.2.1) no HTTP
//! library checks.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body as _, Incoming};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use portcullis_actors::auth::Bearer;
use portcullis_actors::clock::Clock;
use portcullis_actors::connection::{Io, Stream};
use portcullis_actors::supervision::{FlagReader, TreeWindow};
use portcullis_core::auth::proxy::{Named, NotNamed, ProxyRules, Unattributable, is_forwarding};
use portcullis_core::protocol::Encoding;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tracing::Instrument as _;

use super::lines::Strict;
use super::looks::Looks;
use super::peer::{self, Holders};
use super::proxy::{self, Name};
use super::rpc::{self, Rpc};
use crate::methods::Site;

/// A request's header, bytes.
pub const HEADER_MAX: usize = 16 * 1024;

/// A TCP socket.
#[derive(Debug, Clone, Copy)]
struct Tcp {
    peer: SocketAddr,
    own: SocketAddr,
    /// Whose the other end is.
    owner: peer::Owner,
}

/// Where a connection comes from.
struct Ends {
    /// The other end of a TCP socket, and whose it is; none of a Unix socket, which has no page.
    tcp: Option<Tcp>,
    runs: Arc<peer::Runs>,
    /// SHA-256 of the public key of its client certificate.
    certificate: Option<[u8; 32]>,
    /// Looked up once: who is outside could only lend its socket to a run by its own wish.
    of_a_run: OnceLock<bool>,
    tell: Tell,
}

impl std::fmt::Debug for Ends {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ends")
            .field("tcp", &self.tcp)
            .finish_non_exhaustive()
    }
}

impl Ends {
    const fn new(runs: Arc<peer::Runs>, tcp: Option<Tcp>, tell: Tell) -> Self {
        Self {
            tcp,
            runs,
            certificate: None,
            of_a_run: OnceLock::new(),
            tell,
        }
    }

    fn proxied(
        &self,
        rules: &ProxyRules,
        headers: &HeaderMap,
        now_s: u64,
    ) -> Result<Option<proxy::Proxied>, Unattributable> {
        let is_of_a_run = || self.is_of_a_run();
        let from = (self.tcp.map(|tcp| (tcp.peer, tcp.owner)), self.certificate);
        proxy::look(rules, from, is_of_a_run, headers, now_s)
    }

    /// Before [`Self::is_of_a_run`] is asked.
    async fn look(&self, looks: &Looks) {
        let Some(tcp) = self.tcp else { return };
        if self.of_a_run.get().is_some() || self.runs.told(tcp.peer.ip(), tcp.owner).is_some() {
            return;
        }
        if let Some((uid, inode)) = tcp.owner {
            let is_seen = matches!(looks.at(uid, inode).await, peer::Holder::Outside(_));
            let _ = self.of_a_run.set(!is_seen);
        }
    }

    /// The groups of the process that holds the other end, and is none of our runs.
    async fn groups(&self, looks: &Looks) -> Vec<u32> {
        let Some((uid, inode)) = self.tcp.and_then(|tcp| tcp.owner) else {
            return Vec::new();
        };
        match looks.at(uid, inode).await {
            peer::Holder::Outside(pid) => peer::groups(pid, uid),
            peer::Holder::Run | peer::Holder::Unseen => Vec::new(),
        }
    }

    /// Whether the other end is, or may be, one of our runs.
    fn is_of_a_run(&self) -> bool {
        // Where it was not looked for, it is told without.
        self.looked(&mut Holders::default())
    }

    fn looked(&self, holders: &mut Holders) -> bool {
        self.tcp.is_some_and(|tcp| {
            let look = || holders.is_of_a_run(&self.runs, tcp.peer.ip(), tcp.owner);
            *self.of_a_run.get_or_init(look)
        })
    }
}
type Answer = Response<Full<Bytes>>;

/// What every door's HTTP needs.
#[derive(Clone)]
pub struct Http {
    /// Milliseconds for a request's header.
    pub header_ms: u64,
    /// Names besides loopback ones and the address dialled under which we may be reached.
    pub hosts: Arc<Vec<String>>,
    /// Which users the runs have.
    pub runs: Arc<peer::Runs>,
    /// Operators are told by groups too: then who holds a socket is looked for.
    pub by_groups: bool,
    /// To ask who holds a socket; each life of the edge has its own.
    pub looks: Looks,
    /// Whose word on a client counts.
    pub proxies: FlagReader<Arc<ProxyRules>>,
    /// Who reads that proxy's key set again.
    pub again: proxy::Again,
    /// The time, for what a proxy signed.
    pub clock: Clock,
    /// What TLS is spoken with, if it is.
    pub tls: FlagReader<crate::tls::Serving>,
    /// The tree, once it stands.
    pub tree: FlagReader<Option<TreeWindow>>,
    /// The page, once the tree stands.
    pub site: FlagReader<Option<Site>>,
    /// Signed requests, on TCP; none where there is only a WebSocket to be had.
    pub rpc: Option<Rpc>,
}

/// What a socket's HTTP tells of it before it is upgraded.
#[derive(Debug)]
pub enum Told {
    /// A trusted proxy names this client for what it asks now. Told when that is counted.
    Behind(IpAddr, oneshot::Sender<()>),
    /// The signature of what it asks holds: nobody makes room with it before [`Self::Answered`]. Told when that is so;
    /// dropped where it has made room already.
    Proven(oneshot::Sender<()>),
    /// What was proven is answered, or was no request after all.
    Answered,
}

/// Where that is heard.
pub type Tell = Arc<dyn Fn(Told) + Send + Sync>;

/// What the upgrade request said that matters later.
#[derive(Debug, Clone)]
pub struct Said {
    /// An `Origin` header: a browser.
    pub has_origin: bool,
    /// It asked under a loopback name.
    pub has_local_host: bool,
    /// It is, or may be, one of our runs.
    pub is_of_a_run: bool,
    /// Of the process that holds it, where operators are told by groups.
    pub groups: Vec<u32>,
    /// The client behind a trusted proxy.
    pub client: Option<IpAddr>,
    /// The user whom that proxy names.
    pub named: Option<Result<Named, NotNamed>>,
    /// The token of an `Authorization: Bearer` header.
    pub bearer: Option<Bearer>,
    /// Agreed upon.
    pub encoding: Encoding,
}

/// Serves one socket until it ends or is upgraded, or its time is over: then a browser dials again.
pub async fn serve(
    http: Http,
    stream: Stream,
    owner: peer::Owner,
    until: Instant,
    tell: Tell,
) -> Option<(Io, Said)> {
    let runs = Arc::clone(&http.runs);
    match stream {
        Stream::Tcp(tcp) => {
            // One that has been reset is nobody's, and must not pass for a Unix socket.
            let (peer, own) = tcp.peer_addr().ok().zip(tcp.local_addr().ok())?;
            let ends = Ends::new(runs, Some(Tcp { peer, own, owner }), tell);
            let by = Instant::now() + Duration::from_millis(http.header_ms.max(1));
            match timeout_at(by.min(until), opened(&http, tcp)).await.ok()?? {
                Stream::Tcp(tcp) => over(http, tcp, ends, Stream::Tcp, until).await,
                Stream::Tls(tls) => over(http, tls, ends, Stream::Tls, until).await,
                Stream::Unix(_) => None,
            }
        }
        // Sockets come as the kernel gives them.
        Stream::Tls(_) => None,
        Stream::Unix(unix) => {
            let ends = Ends::new(runs, None, tell);
            over(http, unix, ends, Stream::Unix, until).await
        }
    }
}

/// The first byte of a handshake record (RFC 8446 5.1); no HTTP request begins with it.
const HANDSHAKE: u8 = 0x16;

/// Tells TLS from plain by the first byte. With TLS on, plain is for this machine only; a stranger's plain request is
/// not even read. `None`: closed.
async fn opened(http: &Http, tcp: TcpStream) -> Option<Stream> {
    let Some(config) = http.tls.get() else {
        return Some(Stream::Tcp(tcp));
    };
    let mut first = [0];
    if tcp.peek(&mut first).await.ok()? == 0 {
        return None;
    }
    if first[0] != HANDSHAKE {
        let peer = tcp.peer_addr().ok()?.ip().to_canonical();
        return peer.is_loopback().then_some(Stream::Tcp(tcp));
    }
    match tokio_rustls::TlsAcceptor::from(config).accept(tcp).await {
        Ok(tls) => Some(Stream::Tls(Box::new(tls))),
        Err(error) => {
            tracing::debug!(target: "portcullis", %error, "no TLS session was made");
            None
        }
    }
}

trait Socket: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static {
    const TLS: bool = false;

    /// SHA-256 of the public key of a client certificate that was verified.
    fn certificate(&self) -> Option<[u8; 32]> {
        None
    }
}
impl Socket for TcpStream {}
impl Socket for Box<tokio_rustls::server::TlsStream<TcpStream>> {
    const TLS: bool = true;

    fn certificate(&self) -> Option<[u8; 32]> {
        let (_, session) = self.get_ref();
        crate::tls::spki_sha256(session.peer_certificates()?.first()?).ok()
    }
}
impl Socket for UnixStream {}

async fn over<S: Socket>(
    http: Http,
    socket: S,
    mut ends: Ends,
    wrap: fn(S) -> Stream,
    until: Instant,
) -> Option<(Io, Said)> {
    let (tx, mut upgraded) = tokio::sync::mpsc::channel(1);
    ends.certificate = socket.certificate();
    let (tls, ends) = (S::TLS, Arc::new(ends));
    let within = Duration::from_millis(http.header_ms.max(1));
    let service = service_fn(move |request: Request<Incoming>| {
        let (http, tx, ends) = (http.clone(), tx.clone(), Arc::clone(&ends));
        let span = span_of(&request);
        async move {
            let is_last = is_last(request.headers());
            let answer = answer(&http, request, &ends, tls, &tx).instrument(span.clone());
            let mut answer = answer.await;
            if is_last && answer.status() != StatusCode::SWITCHING_PROTOCOLS {
                let close = HeaderValue::from_static("close");
                answer.headers_mut().insert(header::CONNECTION, close);
            }
            span.record("http.response.status_code", answer.status().as_u16());
            Ok::<_, std::convert::Infallible>(answer)
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(within)
        .max_buf_size(HEADER_MAX)
        .serve_connection(TokioIo::new(Strict::new(socket)), service)
        .with_upgrades();
    // One that asks now and then, or does not read what it is answered, does not stay for ever: browsers dial again.
    let mut connection = std::pin::pin!(connection);
    let ended = if let Ok(ended) = timeout_at(until, connection.as_mut()).await {
        ended
    } else {
        // What it has asked is still answered.
        connection.as_mut().graceful_shutdown();
        timeout(within, connection).await.ok()?
    };
    if let Err(error) = ended {
        tracing::debug!(target: "portcullis", %error, "http connection ended");
    }
    let (on_upgrade, said): (hyper::upgrade::OnUpgrade, Said) = upgraded.try_recv().ok()?;
    let parts = on_upgrade.await.ok()?.downcast::<TokioIo<Strict<S>>>();
    let parts = parts.ok()?;
    let socket = parts.io.into_inner().into_inner();
    Some((Io::new(wrap(socket), &parts.read_buf), said))
}

/// Answered to everybody who may ask at all.
const PROBES: [&str; 4] = ["/healthz", "/health", "/readyz", "/ready"];

/// Paths that are ours, so that no stranger's words become a span's name.
const ROUTES: [&str; 14] = [
    "/",
    "/live",
    "/login",
    "/logout",
    "/approvals",
    "/devices",
    "/style.css",
    "/login.js",
    "/icon.svg",
    "/favicon.ico",
    "/healthz",
    "/health",
    "/readyz",
    "/ready",
];

fn span_of(request: &Request<Incoming>) -> tracing::Span {
    let route = ROUTES.into_iter().find(|r| *r == request.uri().path());
    let method = match *request.method() {
        Method::GET => "GET",
        Method::POST => "POST",
        _ => "_OTHER",
    };
    tracing::info_span!(
        target: "portcullis", parent: None, "http", otel.kind = "server", room = "edge",
        http.request.method = method, http.route = route.unwrap_or("_other"),
        http.response.status_code = tracing::field::Empty,
    )
}

async fn answer(
    http: &Http,
    mut request: Request<Incoming>,
    ends: &Ends,
    tls: bool,
    upgraded: &tokio::sync::mpsc::Sender<(hyper::upgrade::OnUpgrade, Said)>,
) -> Answer {
    if let Some(answer) = coded(&request) {
        return answer;
    }
    if request.headers().get_all(header::HOST).iter().count() > 1 {
        return plain(StatusCode::BAD_REQUEST, "one Host header, please\n");
    }
    // The absolute form (RFC 9112 3.2.2): the two names are one, or it is not told for whom it is.
    let host = request.headers().get(header::HOST);
    if let Some(authority) = request.uri().authority()
        && host.is_none_or(|host| {
            !host
                .as_bytes()
                .eq_ignore_ascii_case(authority.as_str().as_bytes())
        })
    {
        return plain(
            StatusCode::BAD_REQUEST,
            "the request line and the Host header name different hosts\n",
        );
    }
    // No browser dials a Unix socket, and no DNS leads there.
    let name = ends.tcp.map_or(Name::Local, |ends| {
        proxy::name_of(request.headers(), (ends.peer, ends.own), &http.hosts)
    });
    if name == Name::Foreign {
        return plain(
            StatusCode::MISDIRECTED_REQUEST,
            "this name is not ours: use the address, or on this machine localhost, or add the name to [gateway] hosts\n",
        );
    }
    match request.uri().path() {
        "/healthz" | "/health" => {
            return probe(&request, StatusCode::OK, r#"{"ok":true,"status":"live"}"#);
        }
        _ => {}
    }
    let now_s = http.clock.now().0 / 1000;
    let is_plain_probe = PROBES.contains(&request.uri().path())
        && !request
            .headers()
            .keys()
            .any(|name| is_forwarding(name.as_str()));
    if !is_plain_probe {
        ends.look(&http.looks).await;
    }
    let mut looked = ends.proxied(&http.proxies.get(), request.headers(), now_s);
    if matches!(&looked, Ok(Some(by)) if by.names_no_key()) {
        http.again.look().await;
        looked = ends.proxied(&http.proxies.get(), request.headers(), now_s);
    }
    let proxied = match looked {
        Ok(proxied) => proxied,
        Err(why) => return proxy::refused(why),
    };
    if let Some(by) = &proxied {
        // Heard before the next is read: a socket has one such message on its way, however many requests it holds.
        let (heard, told) = oneshot::channel();
        (ends.tell)(Told::Behind(by.client, heard));
        // Gone already: its task ends with it.
        let _ = told.await;
    }
    match request.uri().path() {
        "/readyz" | "/ready" => {
            let ready = http.tree.get().is_some_and(|tree| tree.look().all_up());
            return if ready {
                probe(&request, StatusCode::OK, r#"{"ready":true}"#)
            } else {
                probe(
                    &request,
                    StatusCode::SERVICE_UNAVAILABLE,
                    r#"{"ready":false}"#,
                )
            };
        }
        _ => {}
    }
    if let Some(rpc) = &http.rpc
        && ends.tcp.is_some()
        && request.uri().path().starts_with(rpc::PATH)
    {
        // As with the page: whatever key it may have come by.
        if ends.is_of_a_run() {
            return plain(
                StatusCode::FORBIDDEN,
                "this door is not for what the gateway runs\n",
            );
        }
        return rpc::serve(rpc, request, tls, &ends.tell).await;
    }
    if request.headers().contains_key(header::UPGRADE) {
        return match upgrade(&mut request) {
            Ok((answer, on_upgrade, said)) => {
                let (client, named) =
                    proxied.map_or((None, None), |by| (Some(by.client), by.named));
                let has_local_host = name == Name::Local;
                let groups = if http.by_groups && !ends.is_of_a_run() {
                    ends.groups(&http.looks).await
                } else {
                    Vec::new()
                };
                let said = Said {
                    is_of_a_run: ends.is_of_a_run(),
                    groups,
                    has_local_host,
                    client,
                    named,
                    ..said
                };
                // One upgrade a connection, and the channel holds one.
                let _ = upgraded.try_send((on_upgrade, said));
                answer
            }
            Err(answer) => *answer,
        };
    }
    if ends.tcp.is_some()
        && let Some(site) = http.site.get()
    {
        // Whatever code or cookie it may have come by: what we let run decides nothing.
        if ends.is_of_a_run() {
            return plain(
                StatusCode::FORBIDDEN,
                "the page is not for what the gateway runs\n",
            );
        }
        if let Some(answer) = site.serve(request, tls).await {
            return answer;
        }
    }
    plain(StatusCode::NOT_FOUND, "nothing here\n")
}

/// No request is answered after one whose end [`Strict`] does not follow.
pub fn is_last(headers: &HeaderMap) -> bool {
    headers.contains_key(header::TRANSFER_ENCODING) || headers.contains_key(header::UPGRADE)
}

/// Refuses a body in any other coding than one `chunked` (RFC 9112 6.1): the HTTP library looks at the last coding alone, and
/// whoever stands before us may look at another.
fn coded(request: &Request<Incoming>) -> Option<Answer> {
    let mut codings = request.headers().get_all(header::TRANSFER_ENCODING).iter();
    let first = codings.next()?;
    let is_chunked = first.as_bytes().eq_ignore_ascii_case(b"chunked");
    if is_chunked && codings.next().is_none() && request.version() == Version::HTTP_11 {
        return None;
    }
    Some(plain(
        StatusCode::NOT_IMPLEMENTED,
        "Transfer-Encoding: chunked and no other, once\n",
    ))
}

fn upgrade(
    request: &mut Request<Incoming>,
) -> Result<(Answer, hyper::upgrade::OnUpgrade, Said), Box<Answer>> {
    let headers = request.headers();
    let bad = |text| Box::new(plain(StatusCode::BAD_REQUEST, text));
    if request.method() != Method::GET || request.version() != Version::HTTP_11 {
        return Err(bad("an upgrade is a GET of HTTP/1.1\n"));
    }
    // What follows the head is the WebSocket's. A body there would be read as frames by us and as a body by a proxy.
    if !request.body().is_end_stream() || headers.contains_key(header::TRANSFER_ENCODING) {
        return Err(bad("an upgrade has no body\n"));
    }
    if !has_token(headers, header::UPGRADE, "websocket")
        || !has_token(headers, header::CONNECTION, "upgrade")
    {
        return Err(bad(
            "Upgrade: websocket and Connection: Upgrade are needed\n",
        ));
    }
    let one = |name: header::HeaderName| {
        let mut all = headers.get_all(name).iter();
        all.next().filter(|_| all.next().is_none())
    };
    if one(header::SEC_WEBSOCKET_VERSION).is_none_or(|v| v.as_bytes() != b"13") {
        let mut answer = plain(
            StatusCode::UPGRADE_REQUIRED,
            "WebSocket version 13 is needed\n",
        );
        answer.headers_mut().insert(
            header::SEC_WEBSOCKET_VERSION,
            HeaderValue::from_static("13"),
        );
        return Err(Box::new(answer));
    }
    let key = one(header::SEC_WEBSOCKET_KEY)
        .map(HeaderValue::as_bytes)
        .filter(|key| {
            let decoded = base64::engine::general_purpose::STANDARD.decode(key);
            decoded.is_ok_and(|nonce| nonce.len() == 16)
        })
        .ok_or_else(|| bad("one Sec-WebSocket-Key of 16 bytes is needed\n"))?;
    let accept = derive_accept_key(key);
    let offers = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    let offers = offers.filter_map(|value| value.to_str().ok());
    let encoding = Encoding::offered(offers.flat_map(|offers| offers.split(',')));
    let said = Said {
        bearer: None,
        encoding,
        has_origin: headers.contains_key(header::ORIGIN),
        has_local_host: false,
        is_of_a_run: false,
        groups: Vec::new(),
        client: None,
        named: None,
    };
    // Never out of the URL, which ends in logs and histories.
    let mut credentials = headers.get_all(header::AUTHORIZATION).iter();
    let bearer = match (credentials.next(), credentials.next()) {
        (None, _) => None,
        (Some(one), None) => bearer_of(one),
        _ => return Err(bad("one Authorization header, please\n")),
    };
    let said = Said { bearer, ..said };
    let on_upgrade = hyper::upgrade::on(request);
    let mut answer = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::UPGRADE, "websocket")
        .header(header::CONNECTION, "Upgrade")
        .header(header::SEC_WEBSOCKET_ACCEPT, accept)
        .body(Full::default())
        .map_err(|_| bad("the key cannot be answered\n"))?;
    if encoding == Encoding::MsgPack {
        answer.headers_mut().insert(
            header::SEC_WEBSOCKET_PROTOCOL,
            HeaderValue::from_static(Encoding::SUBPROTOCOL),
        );
    }
    Ok((answer, on_upgrade, said))
}

/// The token of `Bearer TOKEN` (RFC 6750 2.1); another scheme is nobody's business here.
fn bearer_of(value: &HeaderValue) -> Option<Bearer> {
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty())
        .then(|| Bearer::new(token.to_owned()))
}

fn has_token(headers: &HeaderMap, name: header::HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .any(|t| t.trim().eq_ignore_ascii_case(token))
}

fn probe(request: &Request<Incoming>, status: StatusCode, body: &'static str) -> Answer {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut answer = plain(StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD\n");
        answer
            .headers_mut()
            .insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return answer;
    }
    let mut answer = plain(status, body);
    let headers = answer.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    answer
}

fn plain(status: StatusCode, body: &'static str) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from_static(body.as_bytes())));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    headers.insert(
        "x-content-type-options",
        HeaderValue::from_static("nosniff"),
    );
    answer
}
