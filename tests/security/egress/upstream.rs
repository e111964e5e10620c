//! Hosts on loopback that write down what reached them.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// What reached it.
#[derive(Clone, Default)]
pub struct Seen {
    connections: Arc<AtomicUsize>,
    bytes: Arc<Mutex<Vec<String>>>,
}

impl Seen {
    pub fn connections(&self) -> usize {
        self.connections.load(SeqCst)
    }

    pub fn requests(&self) -> Vec<String> {
        self.bytes.lock().unwrap().clone()
    }

    fn saw(&self, text: String) {
        self.bytes.lock().unwrap().push(text);
    }
}

/// A host.
pub struct Upstream {
    pub port: u16,
    pub seen: Seen,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Upstream {
    async fn start<F>(serve: impl Fn(TcpStream, Seen) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Seen::default();
        let own = seen.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                own.connections.fetch_add(1, SeqCst);
                tokio::spawn(serve(stream, own.clone()));
            }
        });
        Self { port, seen, task }
    }

    /// Plain HTTP. `/redirect` sends elsewhere, `/stays` keeps the connection open.
    pub async fn plain() -> Self {
        Self::start(|mut stream, seen| async move { http(&mut stream, &seen).await }).await
    }

    /// The same over TLS, for these names.
    pub async fn tls(authority: &Authority) -> Self {
        let acceptor = tokio_rustls::TlsAcceptor::from(authority.server.clone());
        Self::start(move |stream, seen| {
            let acceptor = acceptor.clone();
            async move {
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    seen.saw("no handshake".to_owned());
                    return;
                };
                let name = stream.get_ref().1.server_name().map(str::to_owned);
                seen.saw(format!("sni {}", name.unwrap_or_default()));
                http(&mut stream, &seen).await;
            }
        })
        .await
    }

    /// Answers over TLS with what it was sent, in each of the ways that its path names.
    pub async fn echo(authority: &Authority) -> Self {
        let acceptor = tokio_rustls::TlsAcceptor::from(authority.server.clone());
        Self::start(move |stream, seen| {
            let acceptor = acceptor.clone();
            async move {
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    seen.saw("no handshake".to_owned());
                    return;
                };
                echo(&mut stream, &seen).await;
            }
        })
        .await
    }

    /// Answers the first bytes with these, and writes down all that comes.
    pub async fn raw(answer: &'static [u8]) -> Self {
        Self::start(move |mut stream, seen| async move {
            let mut scratch = vec![0; 65_536];
            let mut first = true;
            while let Ok(read @ 1..) = stream.read(&mut scratch).await {
                seen.saw(format!("{:?}", String::from_utf8_lossy(&scratch[..read])));
                if std::mem::take(&mut first) {
                    let _ = stream.write_all(answer).await;
                }
            }
        })
        .await
    }
}

async fn http<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, seen: &Seen) {
    let mut bytes = Vec::new();
    while !bytes.windows(4).any(|w| w == b"\r\n\r\n") {
        match stream.read_buf(&mut bytes).await {
            Ok(1..) => {}
            _ => return,
        }
    }
    // What came with it, and soon behind it.
    let _ = tokio::time::timeout(Duration::from_millis(100), async {
        while let Ok(1..) = stream.read_buf(&mut bytes).await {}
    })
    .await;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let path = text.split(' ').nth(1).unwrap_or_default().to_owned();
    seen.saw(text);
    let answer = match path.as_str() {
        "/redirect" => {
            "HTTP/1.1 302 Found\r\nLocation: http://denied.test/\r\nContent-Length: 0\r\n\r\n"
        }
        "/nonsense" => "SSH-2.0-nonsense\r\n\r\n",
        _ => {
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\nKeep-Alive: timeout=9\r\n\r\nhello"
        }
    };
    let _ = stream.write_all(answer.as_bytes()).await;
    if path == "/stays" {
        let mut more = Vec::new();
        let _ = stream.read_to_end(&mut more).await;
        seen.saw(format!("more: {}", String::from_utf8_lossy(&more)));
    }
    let _ = stream.shutdown().await;
}

async fn echo<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, seen: &Seen) {
    let mut bytes = Vec::new();
    while !bytes.windows(4).any(|w| w == b"\r\n\r\n") {
        match stream.read_buf(&mut bytes).await {
            Ok(1..) => {}
            _ => return,
        }
    }
    let _ = tokio::time::timeout(Duration::from_millis(100), async {
        while let Ok(1..) = stream.read_buf(&mut bytes).await {}
    })
    .await;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    seen.saw(text.clone());
    let path = text.split(' ').nth(1).unwrap_or_default().to_owned();
    let said = |name: &str| {
        let line = text
            .lines()
            .find(|line| line.to_lowercase().starts_with(name));
        line.and_then(|line| line.split_once(": "))
            .map(|(_, value)| value.to_owned())
            .unwrap_or_default()
    };
    let key = said("authorization");
    let mut parts: Vec<Vec<u8>> = Vec::new();
    match path.split('?').next().unwrap_or_default().rsplit('/').next().unwrap_or_default() {
        // Each chunk a byte, so that every value lies over many.
        "chunks" => {
            parts.push(format!("HTTP/1.1 200 OK\r\nX-Echo: {key}\r\nTransfer-Encoding: chunked\r\n\r\n").into_bytes());
            parts.extend(text.bytes().map(|byte| [b"1\r\n".as_slice(), &[byte], b"\r\n"].concat()));
            parts.push(b"0\r\nX-Trailer: yes\r\n\r\n".to_vec());
        }
        // What its query is the hexadecimal of, each byte in a chunk and a record of its own.
        "mirror" => {
            let query = path.split_once('?').map_or("", |(_, query)| query);
            let digits: Vec<u32> = query.chars().map(|digit| digit.to_digit(16).unwrap()).collect();
            parts.push(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec());
            parts.extend(digits.chunks(2).map(|pair| {
                let byte = u8::try_from(pair[0] << 4 | pair[1]).unwrap();
                [b"1\r\n".as_slice(), &[byte], b"\r\n"].concat()
            }));
            parts.push(b"0\r\n\r\n".to_vec());
        }
        "close" => parts.extend([b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), text.clone().into_bytes()]),
        "redirect" => parts.push(format!("HTTP/1.1 302 {key}\r\nLocation: https://evil.test/?{key}\r\nContent-Length: 0\r\n\r\n").into_bytes()),
        "continue" => parts.push(format!("HTTP/1.1 103 Early\r\nLink: {key}\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").into_bytes()),
        "cut" => parts.push(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello".to_vec()),
        "two" => parts.push(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_vec()),
        "gzip" => parts.push(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello".to_vec()),
        "part" => parts.push(b"HTTP/1.1 206 Partial Content\r\nContent-Length: 5\r\n\r\nhello".to_vec()),
        "switch" => parts.push(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n".to_vec()),
        _ => {
            let body = format!("key={key} path={path}");
            parts.push(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nKeep-Alive: timeout=9\r\n\r\n{body}", body.len()).into_bytes());
        }
    }
    for part in parts {
        let _ = stream.write_all(&part).await;
        let _ = stream.flush().await;
    }
    let _ = stream.shutdown().await;
}

/// A certificate for some names, and who trusts it.
pub struct Authority {
    pub server: Arc<ServerConfig>,
    pub client: Arc<ClientConfig>,
    pub pem: String,
}

impl Authority {
    /// `few`: the server takes one group of keys only, which clients do not try first.
    pub fn of(names: &[&str], few: bool) -> Self {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(names)
            .unwrap()
            .self_signed(&key)
            .unwrap();
        let chain = vec![CertificateDer::from(certificate.der().to_vec())];
        let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let mut narrow = provider.clone();
        if few {
            narrow.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::SECP384R1];
        }
        let server = ServerConfig::builder_with_provider(Arc::new(narrow))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain.clone(), private)
            .unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(chain[0].clone()).unwrap();
        let client = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self {
            server: Arc::new(server),
            client: Arc::new(client),
            pem: certificate.pem(),
        }
    }
}
