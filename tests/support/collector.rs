//! A collector of spans that knows nothing of OpenTelemetry's crates: a socket, HTTP by hand, protobuf by hand.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use super::protobuf::{Span, spans};

/// See the module.
pub struct Collector {
    endpoint: String,
    bodies: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Collector {
    /// Listens, and answers every request with 200.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}/v1/traces", listener.local_addr().unwrap());
        let bodies = Arc::<Mutex<Vec<_>>>::default();
        let kept = bodies.clone();
        std::thread::spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                let kept = kept.clone();
                std::thread::spawn(move || take(socket, &kept));
            }
        });
        Self { endpoint, bodies }
    }

    /// The same over TLS, as `localhost`.
    pub fn start_tls(config: Arc<rustls::ServerConfig>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let endpoint = format!("https://localhost:{port}/v1/traces");
        let bodies = Arc::<Mutex<Vec<_>>>::default();
        let kept = bodies.clone();
        std::thread::spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                let (kept, config) = (kept.clone(), config.clone());
                std::thread::spawn(move || {
                    let tls = rustls::ServerConnection::new(config).unwrap();
                    take(rustls::StreamOwned::new(tls, socket), &kept);
                });
            }
        });
        Self { endpoint, bodies }
    }

    /// For the settings.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// How many requests came.
    pub fn requests(&self) -> usize {
        self.bodies.lock().unwrap().len()
    }

    /// Everything that came, decoded.
    pub fn spans(&self) -> Vec<Span> {
        let bodies = self.bodies.lock().unwrap();
        bodies.iter().flat_map(|body| spans(body)).collect()
    }

    /// Everything that came, as it came.
    pub fn everything(&self) -> Vec<u8> {
        self.bodies.lock().unwrap().concat()
    }

    /// Does this text stand anywhere in what came?
    pub fn has(&self, text: &str) -> bool {
        let bodies = self.bodies.lock().unwrap();
        let text = text.as_bytes();
        bodies
            .iter()
            .any(|body| body.windows(text.len()).any(|part| part == text))
    }
}

fn take(mut socket: impl Read + Write, kept: &Mutex<Vec<Vec<u8>>>) {
    let mut all = Vec::new();
    let mut piece = [0; 16 * 1024];
    loop {
        let head = loop {
            if let Some(at) = all.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            match socket.read(&mut piece) {
                Ok(len) if len > 0 => all.extend_from_slice(&piece[..len]),
                _ => return,
            }
        };
        let text = String::from_utf8_lossy(&all[..head]).to_lowercase();
        let length = text
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .map_or(0, |n| n.trim().parse().unwrap());
        while all.len() < head + length {
            let len = socket.read(&mut piece).unwrap();
            assert!(len > 0, "a request was cut");
            all.extend_from_slice(&piece[..len]);
        }
        kept.lock().unwrap().push(all[head..head + length].to_vec());
        all.drain(..head + length);
        let answer = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        if socket.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}
