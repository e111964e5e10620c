//! Where a gateway is: plain to this machine only, verified TLS to every other.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use portcullis_actors::exec::uid_of;
use portcullis_core::codes;
use portcullis_core::encoding::hex;
use rustls::pki_types::ServerName;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::http::Uri;

use super::server;
use crate::cli::Failure;
use crate::show::text::clean;
use crate::tls::{Pin, client_config};

/// For one of two addresses to answer.
const DIAL_WITHIN: Duration = Duration::from_secs(2);

/// A byte stream to a gateway.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// Who may listen at a plain address of this machine, beside root and who runs this: any user may bind a free port there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Listener {
    /// Nobody else.
    #[default]
    Own,
    /// This user.
    User(u32),
    /// Whoever it is; where the kernel cannot tell, too.
    Anybody,
}

impl Listener {
    /// Reads a user's name or number, or `any`.
    ///
    /// # Errors
    /// `INVALID_PARAMS`: there is no such user.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        if text == "any" {
            return Ok(Self::Anybody);
        }
        let uid = text.parse().ok().or_else(|| uid_of(text));
        uid.map(Self::User).ok_or_else(|| {
            Failure::of(
                codes::INVALID_PARAMS,
                format!("--gateway-user: there is no user {}", clean(text)),
            )
        })
    }
}

/// A gateway's address, read from `ws://` or `wss://`, and the key that it must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    secure: bool,
    host: String,
    port: u16,
    path: String,
    pin: Option<Pin>,
    listener: Listener,
}

impl Address {
    /// Reads an address. The text is not repeated in an error: it may hold what it must not.
    ///
    /// # Errors
    /// `INVALID_PARAMS`: it is none, plain to another machine, or has a name or password in it.
    pub fn parse(url: &str, pin: Option<&str>) -> Result<Self, Failure> {
        let bad = |why: &str| {
            Failure::of(codes::INVALID_PARAMS, format!("--url: {why}")).hint(
                "give wss://HOST[:PORT], or ws://127.0.0.1:PORT for a gateway on this machine",
            )
        };
        let uri: Uri = url.parse().map_err(|_| bad("it is no address"))?;
        let authority = uri.authority().ok_or_else(|| bad("it names no host"))?;
        let secure = match uri.scheme_str() {
            Some("wss") => true,
            Some("ws") => false,
            _ => return Err(bad("it begins with neither wss:// nor ws://")),
        };
        if authority.as_str().contains('@') {
            return Err(bad("it holds a user or a password: name a --token-file"));
        }
        if uri.query().is_some() || url.contains('#') {
            return Err(bad("it has a query or a fragment"));
        }
        let host = authority.host().to_ascii_lowercase();
        // A colon with nothing readable behind it is a mistake, not a default.
        let after = authority.as_str().get(authority.host().len()..);
        if authority.port_u16().is_none() && after.is_some_and(|rest| !rest.is_empty()) {
            return Err(bad("its port is no number up to 65535"));
        }
        let port = authority
            .port_u16()
            .unwrap_or(if secure { 443 } else { 80 });
        let pin = pin
            .map(str::parse::<Pin>)
            .transpose()
            .map_err(|e| Failure::of(codes::INVALID_PARAMS, format!("--pin: {e}")))?;
        let address = Self {
            secure,
            host,
            port,
            path: uri.path().to_owned(),
            pin,
            listener: Listener::default(),
        };
        if !secure && address.loopback().is_empty() {
            return Err(bad(
                "a gateway on another machine is spoken to by wss:// only",
            ));
        }
        if !secure && pin.is_some() {
            return Err(bad("a pin is a wss:// address'"));
        }
        if secure {
            address.name()?;
        }
        Ok(address)
    }

    /// The same, where this user may listen there too.
    ///
    /// # Errors
    /// `INVALID_PARAMS`: at a `wss://` address the key tells who is there.
    pub fn served_by(mut self, listener: Listener) -> Result<Self, Failure> {
        if self.secure && listener != Listener::default() {
            return Err(Failure::of(
                codes::INVALID_PARAMS,
                "--gateway-user: that is for a ws:// address",
            ));
        }
        self.listener = listener;
        Ok(self)
    }

    /// The same, to be greeted only: nothing of ours is sent there.
    pub(super) fn unasked(&self) -> Self {
        Self {
            listener: Listener::Anybody,
            ..self.clone()
        }
    }

    /// Where the upgrade is asked for.
    pub fn url(&self) -> String {
        let scheme = if self.secure { "wss" } else { "ws" };
        let Self {
            host, port, path, ..
        } = self;
        format!("{scheme}://{host}:{port}{path}")
    }

    /// Which gateway a token is for: another address or another pin is another gateway.
    pub fn id(&self) -> String {
        let pin = self.pin.map_or_else(|| "-".to_owned(), |p| p.to_string());
        let text = format!("portcullis-client-gateway-v1\n{}\n{pin}", self.url());
        hex(&Sha256::digest(text.as_bytes()))[..32].to_ascii_uppercase()
    }

    /// Connects, and verifies who is there.
    ///
    /// # Errors
    /// `DAEMON_UNREACHABLE`, `SERVER_NOT_VERIFIED`.
    pub async fn dial(&self) -> Result<Box<dyn Stream>, Failure> {
        if !self.secure {
            return Ok(Box::new(self.plain().await?));
        }
        let host = self.host.trim_matches(['[', ']']);
        let stream = TcpStream::connect((host, self.port)).await;
        let stream = stream.map_err(|e| self.unreachable(&e))?;
        let config = client_config(self.pin)
            .map_err(|e| Failure::of(codes::SERVER_NOT_VERIFIED, e.to_string()))?;
        let connector = tokio_rustls::TlsConnector::from(config);
        let secured = connector.connect(self.name()?, stream).await;
        let secured = secured.map_err(|e| self.not_verified(&e))?;
        Ok(Box::new(secured))
    }

    /// The first of this machine's addresses where somebody listens who may. Who may not does not hide him who may, on the
    /// other address of `localhost`.
    async fn plain(&self) -> Result<TcpStream, Failure> {
        let mut refused = None;
        let mut unreached = std::io::ErrorKind::NotFound.into();
        let mut all = self.loopback().into_iter().peekable();
        while let Some(at) = all.next() {
            let is_last = all.peek().is_none();
            let dial = TcpStream::connect(at);
            let dialled = if is_last {
                dial.await
            } else {
                // Who lets nobody in does not hide who would.
                let late = |_| Err(std::io::ErrorKind::TimedOut.into());
                timeout(DIAL_WITHIN, dial).await.unwrap_or_else(late)
            };
            match dialled {
                Ok(stream) => match server::check_port(&stream, at, self.listener, is_last).await {
                    Ok(()) => return Ok(stream),
                    Err(failure) => {
                        refused.get_or_insert(failure);
                    }
                },
                Err(error) => unreached = error,
            }
        }
        Err(refused.unwrap_or_else(|| self.unreachable(&unreached)))
    }

    /// This machine's addresses that the host stands for; a name is looked up nowhere, so that nobody can answer for it.
    fn loopback(&self) -> Vec<SocketAddr> {
        let host = self.host.trim_matches(['[', ']']);
        if host == "localhost" {
            let both = [
                IpAddr::V4(Ipv4Addr::LOCALHOST),
                IpAddr::V6(Ipv6Addr::LOCALHOST),
            ];
            return both.map(|ip| SocketAddr::new(ip, self.port)).to_vec();
        }
        let ip = host.parse::<IpAddr>().ok();
        let ip = ip.filter(|ip| ip.to_canonical().is_loopback());
        ip.map(|ip| SocketAddr::new(ip, self.port))
            .into_iter()
            .collect()
    }

    fn name(&self) -> Result<ServerName<'static>, Failure> {
        let host = self.host.trim_matches(['[', ']']).to_owned();
        ServerName::try_from(host)
            .map_err(|_| Failure::of(codes::INVALID_PARAMS, "--url: its host is no name"))
    }

    fn unreachable(&self, error: &std::io::Error) -> Failure {
        let at = clean(&self.url());
        Failure::of(codes::DAEMON_UNREACHABLE, format!("{at}: {error}"))
            .hint("look at the address, and whether that gateway runs and lets this machine in")
    }

    /// rustls tells why it broke off inside an I/O error.
    fn not_verified(&self, error: &std::io::Error) -> Failure {
        let inner = error
            .get_ref()
            .and_then(|e| e.downcast_ref::<rustls::Error>());
        match inner {
            Some(rustls::Error::InvalidCertificate(why)) => {
                let why = match (why, self.pin) {
                    (rustls::CertificateError::ApplicationVerificationFailure, Some(_)) => {
                        "it has another key than the pinned one".to_owned()
                    }
                    (why, _) => format!("its certificate: {why}"),
                };
                let at = clean(&self.url());
                Failure::of(codes::SERVER_NOT_VERIFIED, format!("{at}: {why}"))
            }
            _ => self.unreachable(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIN: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn plain_is_for_this_machine_only_and_names_of_others_are_not_believed() {
        for good in [
            "ws://127.0.0.1:18789",
            "ws://127.8.9.1",
            "ws://[::1]:1/a",
            "ws://localhost:1",
            "ws://LOCALHOST:1/",
            "ws://[::ffff:127.0.0.1]:1",
            "wss://gate.example",
            "wss://192.0.2.1:443/x",
            "wss://[2001:db8::1]:8443",
        ] {
            assert!(Address::parse(good, None).is_ok(), "{good}");
        }
        for bad in [
            "",
            "127.0.0.1:1",
            "http://127.0.0.1",
            "https://gate.example",
            "ws://gate.example",
            "ws://192.0.2.1:1",
            "ws://0.0.0.0:1",
            "ws://localhost.gate.example:1",
            "ws://127.0.0.1.gate.example",
            "ws://localhost@gate.example",
            "ws://localhost.:1",
            "ws://127.0.0.1.:1",
            "ws://[::ffff:192.0.2.1]:1",
            "ws://2130706433:1",
            "ws://0x7f.1:1",
            "ws://0177.0.0.1:1",
            "wss://user:secret@gate.example",
            "wss://gate.example/?token=secret",
            "wss://gate.example/#x",
            "wss://gate.example:99999",
            "wss://gate.example:",
            "wss://",
            "wss:///x",
        ] {
            let error = Address::parse(bad, None).expect_err(bad);
            assert_eq!(error.code, "INVALID_PARAMS", "{bad}");
            assert!(!error.lines().contains("secret"), "{bad}");
        }
    }

    #[test]
    fn who_may_listen_is_named_for_plain_addresses_only() {
        assert_eq!(Listener::parse("any").unwrap(), Listener::Anybody);
        assert_eq!(Listener::parse("65528").unwrap(), Listener::User(65_528));
        assert_eq!(Listener::parse("root").unwrap(), Listener::User(0));
        assert!(Listener::parse("no such user").is_err());
        let secure = Address::parse("wss://a.example", None).unwrap();
        assert!(secure.clone().served_by(Listener::User(1)).is_err());
        assert!(secure.served_by(Listener::Own).is_ok());
    }

    /// The bug: a token was sent to whoever listened on a gateway's port.
    #[tokio::test]
    async fn nobody_is_dialled_whom_the_kernel_does_not_name() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let address = Address::parse(&format!("ws://{at}"), None).unwrap();
        // The kernel has taken the connection, and no process has: it is nobody's yet.
        let failure = address.dial().await.err().unwrap();
        assert_eq!(failure.code, "DAEMON_UNREACHABLE", "{failure:?}");
        let accepts = std::thread::spawn(move || [(); 2].map(|()| listener.accept().unwrap()));
        assert!(address.dial().await.is_ok(), "this process took it");
        accepts.join().unwrap();
    }

    #[test]
    fn a_token_is_one_addresss_and_one_keys() {
        let id = |url, pin| Address::parse(url, pin).unwrap().id();
        let all = [
            id("wss://a.example", None),
            id("wss://a.example", Some(PIN)),
            id("wss://a.example:444", None),
            id("wss://b.example", None),
            id("wss://a.example/x", None),
            id("ws://localhost:443", None),
        ];
        for (i, one) in all.iter().enumerate() {
            assert!(!all[i + 1..].contains(one));
        }
        assert_eq!(id("wss://A.example:443/", None), all[0]);
        assert!(Address::parse("ws://localhost:1", Some(PIN)).is_err());
        assert!(Address::parse("wss://a.example", Some("short")).is_err());
    }
}
