//! A receiver of webhooks over TLS, as `localhost`, under an authority of its own: it keeps what comes, and answers as it is told.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::PrivatePkcs8KeyDer;
use serde_json::Value;

/// What it does with who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// This status, and these lines of the head besides.
    Answer(u16, String),
    /// 200, and a body without end.
    Endless,
    /// It takes the request, and says nothing.
    Silent,
    /// It takes the connection, and speaks no TLS.
    Dumb,
    /// It takes the request, and hangs up.
    HangsUp,
}

/// One request.
#[derive(Debug, Clone)]
pub struct Came {
    /// The lines of its head.
    pub head: String,
    /// Its body.
    pub body: String,
}

impl Came {
    /// A header.
    pub fn header(&self, name: &str) -> String {
        let of = |line: &str| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then(|| value.to_owned())
        };
        self.head.lines().find_map(of).unwrap_or_default()
    }

    /// Its body, read.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    /// `approval.requested a1`.
    pub fn what(&self) -> String {
        let said = self.json();
        let text = |key: &str| said[key].as_str().unwrap().to_owned();
        format!("{} {}", text("event"), text("id"))
    }
}

/// See the module.
pub struct Hook {
    port: u16,
    authority: PathBuf,
    mode: Arc<Mutex<Mode>>,
    all: Arc<Mutex<Vec<Came>>>,
    taken: Arc<Mutex<Vec<Came>>>,
}

const PATIENCE: Duration = Duration::from_mins(1);

impl Hook {
    /// Listens; the authority's certificate lies in this folder.
    pub fn start(folder: &Path) -> Self {
        let ca_key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::new(vec![]).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let authority = folder.join(format!("ca-{port}.pem"));
        std::fs::write(&authority, ca.self_signed(&ca_key).unwrap().pem()).unwrap();
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let leaf = leaf.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key.into())
            .unwrap();
        let hook = Self {
            port,
            authority,
            mode: Arc::new(Mutex::new(Mode::Answer(204, String::new()))),
            all: Arc::default(),
            taken: Arc::default(),
        };
        let (mode, all, taken) = (hook.mode.clone(), hook.all.clone(), hook.taken.clone());
        let config = Arc::new(config);
        std::thread::spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                let (mode, all, taken) = (mode.clone(), all.clone(), taken.clone());
                let config = config.clone();
                std::thread::spawn(move || serve(socket, config, &mode, &all, &taken));
            }
        });
        hook
    }

    /// For the settings.
    pub fn address(&self) -> String {
        format!("https://localhost:{}/hook", self.port)
    }

    /// For the settings.
    pub fn authority(&self) -> &str {
        self.authority.to_str().unwrap()
    }

    /// From now on.
    pub fn does(&self, mode: Mode) {
        *self.mode.lock().unwrap() = mode;
    }

    /// From now on it answers with this status.
    pub fn answers(&self, status: u16) {
        self.does(Mode::Answer(status, String::new()));
    }

    /// Every request that came.
    pub fn all(&self) -> Vec<Came> {
        self.all.lock().unwrap().clone()
    }

    /// Those that it answered with 2xx, as `event number`: see [`numbered`].
    pub fn taken(&self) -> Vec<String> {
        let taken = self.taken.lock().unwrap();
        numbered(taken.iter().map(Came::what))
    }

    /// Waits until it has taken these, in this order, and nothing else.
    pub fn has_taken(&self, whats: &[&str]) {
        let end = Instant::now() + PATIENCE;
        while self.taken().len() < whats.len() {
            assert!(Instant::now() < end, "{whats:?}: {:?}", self.taken());
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(self.taken(), numbered(whats));
    }
}

/// Each question by its place among those that are spoken of: a notice has no name that who asked has chosen.
pub fn numbered<T: AsRef<str>>(whats: impl IntoIterator<Item = T>) -> Vec<String> {
    let mut known: Vec<String> = vec![];
    let one = |what: T| {
        let (event, id) = what.as_ref().split_once(' ').unwrap();
        let at = known.iter().position(|known| known == id);
        let at = at.unwrap_or_else(|| {
            known.push(id.to_owned());
            known.len() - 1
        });
        format!("{event} {at}")
    };
    whats.into_iter().map(one).collect()
}

fn serve(
    socket: TcpStream,
    config: Arc<rustls::ServerConfig>,
    mode: &Mutex<Mode>,
    all: &Mutex<Vec<Came>>,
    taken: &Mutex<Vec<Came>>,
) {
    let does = mode.lock().unwrap().clone();
    if does == Mode::Dumb {
        std::thread::sleep(PATIENCE);
        return;
    }
    let tls = rustls::ServerConnection::new(config).unwrap();
    let mut stream = rustls::StreamOwned::new(tls, socket);
    let (mut bytes, mut piece) = (Vec::new(), [0; 4096]);
    let head = loop {
        if let Some(at) = bytes.windows(4).position(|part| part == b"\r\n\r\n") {
            break at + 4;
        }
        match stream.read(&mut piece) {
            Ok(len) if len > 0 => bytes.extend_from_slice(&piece[..len]),
            // Who does not trust this one says nothing.
            _ => return,
        }
    };
    let text = String::from_utf8(bytes[..head].to_vec()).unwrap();
    let length = text
        .to_ascii_lowercase()
        .lines()
        .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok())
        .unwrap_or(0);
    while bytes.len() < head + length {
        let len = stream.read(&mut piece).unwrap();
        assert!(len > 0, "a request was cut");
        bytes.extend_from_slice(&piece[..len]);
    }
    let came = Came {
        head: text,
        body: String::from_utf8(bytes[head..head + length].to_vec()).unwrap(),
    };
    all.lock().unwrap().push(came.clone());
    match does {
        Mode::Answer(status, more) => {
            if (200..300).contains(&status) {
                taken.lock().unwrap().push(came);
            }
            let answer = format!(
                "HTTP/1.1 {status} x\r\n{more}content-length: 0\r\nconnection: close\r\n\r\n"
            );
            // Who has gone asks again.
            let _ = stream.write_all(answer.as_bytes());
        }
        Mode::Endless => {
            taken.lock().unwrap().push(came);
            let head = "HTTP/1.1 200 x\r\ntransfer-encoding: chunked\r\n\r\n";
            let mut sent = stream.write_all(head.as_bytes());
            let chunk = format!("4000\r\n{}\r\n", "x".repeat(0x4000));
            while sent.is_ok() {
                sent = stream.write_all(chunk.as_bytes());
            }
        }
        Mode::Silent => std::thread::sleep(PATIENCE),
        Mode::HangsUp | Mode::Dumb => {}
    }
}
