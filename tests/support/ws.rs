//! A plain client of the wire: a WebSocket, one JSON object a frame, and a device with a key of its own.

use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::Signer as _;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use super::gateway::{Gateway, TOKEN};

/// Longer than anything the gateway may take.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A byte stream of either kind.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// An open socket that has its challenge.
pub struct Client {
    /// The socket.
    pub ws: WebSocketStream<Box<dyn Stream>>,
    /// Of the challenge.
    pub nonce: String,
    /// Of the challenge, Unix ms.
    pub ts: u64,
    next: u64,
    /// Its messages are MessagePack.
    packed: bool,
}

/// What came.
#[derive(Debug, Clone, PartialEq)]
pub enum Came {
    /// A frame.
    Frame(Value),
    /// The other end closed with a close frame: code (1005: none) and reason.
    Closed(u16, String),
    /// The socket ended without one.
    Gone,
}

impl Client {
    /// Over TCP, up to the challenge.
    pub async fn dial(gateway: &Gateway) -> Self {
        Self::dial_with(gateway, &[]).await.unwrap()
    }

    /// Over TCP with more headers; an error is the upgrade's refusal.
    pub async fn dial_with(gateway: &Gateway, headers: &[(&str, &str)]) -> Result<Self, WsError> {
        let stream = TcpStream::connect(("127.0.0.1", gateway.port())).await?;
        stream.set_nodelay(true)?;
        Self::over(Box::new(stream), gateway.port(), headers).await
    }

    /// Over TCP to this port.
    pub async fn dial_port(port: u16) -> Result<Self, WsError> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        Self::over(Box::new(stream), port, &[]).await
    }

    /// Over TCP, to speak MessagePack.
    pub async fn dial_packed(gateway: &Gateway) -> Self {
        let subprotocol = ("sec-websocket-protocol", "portcullis.msgpack.v1");
        Self::dial_with(gateway, &[subprotocol]).await.unwrap()
    }

    /// Over `control.sock`.
    pub async fn control(state: &Path) -> Self {
        Self::try_control(state).await.unwrap()
    }

    /// The same; the gateway may be in a bad way.
    pub async fn try_control(state: &Path) -> Result<Self, WsError> {
        let stream = UnixStream::connect(state.join("run/control.sock")).await?;
        Self::over(Box::new(stream), 80, &[]).await
    }

    /// Over a stream that leads there.
    pub async fn through(stream: impl Stream + 'static, port: u16) -> Self {
        Self::over(Box::new(stream), port, &[]).await.unwrap()
    }

    /// Over `agent.sock`.
    pub async fn agent(state: &Path) -> Self {
        let stream = UnixStream::connect(state.join("run/agent.sock"))
            .await
            .unwrap();
        Self::over(Box::new(stream), 80, &[]).await.unwrap()
    }

    /// Over this stream, up to the challenge.
    pub async fn over(
        stream: Box<dyn Stream>,
        port: u16,
        headers: &[(&str, &str)],
    ) -> Result<Self, WsError> {
        let mut request = format!("ws://localhost:{port}/").into_client_request()?;
        for (name, value) in headers {
            let name: tokio_tungstenite::tungstenite::http::HeaderName = name.parse().unwrap();
            request
                .headers_mut()
                .insert(name, HeaderValue::from_str(value).unwrap());
        }
        let mut config = WebSocketConfig::default();
        config.max_frame_size = None;
        // There may be ten thousand of us.
        config.read_buffer_size = 4096;
        config.max_message_size = None;
        let (ws, answer) =
            tokio_tungstenite::client_async_with_config(request, stream, Some(config)).await?;
        let mut client = Self {
            ws,
            nonce: String::new(),
            ts: 0,
            next: 0,
            packed: answer.headers().contains_key("sec-websocket-protocol"),
        };
        let Came::Frame(challenge) = client.next().await else {
            return Err(WsError::ConnectionClosed);
        };
        assert_eq!(challenge["event"], "connect.challenge", "{challenge}");
        assert!(challenge.get("seq").is_none(), "{challenge}");
        // Where there are some, the peer's clients send what needs them.
        assert!(
            challenge["payload"].get("capabilities").is_none(),
            "{challenge}"
        );
        client.nonce = challenge["payload"]["nonce"].as_str().unwrap().into();
        client.ts = challenge["payload"]["ts"].as_u64().unwrap();
        Ok(client)
    }

    /// Its requests are numbered from here.
    pub const fn number_from(&mut self, first: u64) {
        self.next = first;
    }

    /// The next thing that comes.
    pub async fn next(&mut self) -> Came {
        let next = async {
            loop {
                match self.ws.next().await {
                    Some(Ok(Message::Text(text))) => {
                        return Came::Frame(serde_json::from_str(&text).unwrap());
                    }
                    Some(Ok(Message::Binary(bytes))) if self.packed => {
                        return Came::Frame(rmp_serde::from_slice(&bytes).unwrap());
                    }
                    Some(Ok(Message::Close(Some(frame)))) => {
                        return Came::Closed(frame.code.into(), frame.reason.as_str().to_owned());
                    }
                    Some(Ok(Message::Close(None))) => return Came::Closed(1005, String::new()),
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return Came::Gone,
                }
            }
        };
        let came = tokio::time::timeout(PATIENCE, next)
            .await
            .expect("something comes");
        if let Came::Frame(frame) = &came {
            names_a_next_step(frame);
        }
        came
    }

    /// The next frame; a close fails the test.
    pub async fn frame(&mut self) -> Value {
        match self.next().await {
            Came::Frame(frame) => frame,
            other => panic!("{other:?} instead of a frame"),
        }
    }

    /// Reads on until the other end closes.
    pub async fn closed(&mut self) -> (u16, String) {
        loop {
            match self.next().await {
                Came::Frame(_) => {}
                Came::Closed(code, reason) => return (code, reason),
                Came::Gone => return (1006, String::new()),
            }
        }
    }

    /// Sends a text.
    pub async fn text(&mut self, text: impl Into<String>) {
        // The other end may have closed already: the next read tells.
        let _ = self.ws.send(Message::text(text.into())).await;
    }

    /// Sends a frame in its encoding.
    pub async fn send(&mut self, frame: &Value) {
        if self.packed {
            self.binary(rmp_serde::to_vec_named(frame).unwrap()).await;
        } else {
            self.text(frame.to_string()).await;
        }
    }

    /// Sends bytes.
    pub async fn binary(&mut self, bytes: impl Into<Vec<u8>>) {
        // The other end may have closed already: the next read tells.
        let _ = self.ws.send(Message::binary(bytes.into())).await;
    }

    /// Sends a request under a new id, and returns the id.
    pub async fn ask(&mut self, method: &str, params: Value) -> String {
        self.next += 1;
        let id = self.next.to_string();
        let frame = json!({"type": "req", "id": id, "method": method, "params": params});
        self.send(&frame).await;
        id
    }

    /// The answer with this id; events and other answers are passed over.
    pub async fn answer(&mut self, id: &str) -> Value {
        loop {
            let frame = self.frame().await;
            if frame["type"] == "res" && frame["id"] == id {
                return frame;
            }
        }
    }

    /// What the next request will be numbered.
    pub fn next_id(&self) -> String {
        (self.next + 1).to_string()
    }

    /// Asks and waits for the answer, or for the socket's end: then `None`.
    pub async fn try_call(&mut self, method: &str, params: Value) -> Option<Value> {
        let id = self.ask(method, params).await;
        self.try_answer(&id).await
    }

    /// The answer with this id, or the socket's end: then `None`.
    pub async fn try_answer(&mut self, id: &str) -> Option<Value> {
        let answer = async {
            loop {
                match self.next().await {
                    Came::Frame(frame) if frame["type"] == "res" && frame["id"] == id => {
                        return Some(frame);
                    }
                    Came::Frame(_) => {}
                    Came::Closed(..) | Came::Gone => return None,
                }
            }
        };
        // Ticks come all the time: they are no answer.
        tokio::time::timeout(PATIENCE, answer)
            .await
            .expect("an answer comes")
    }

    /// Connects as an operator with these scopes, by the kernel's word or the token; `None` if it is not let in.
    pub async fn try_hello(&mut self, connect: &Connect<'_>) -> Option<()> {
        let params = connect.params(&self.nonce, self.ts);
        let answer = self.try_call("connect", params).await?;
        (answer["ok"] == true).then_some(())
    }

    /// Asks and waits for the answer.
    pub async fn call(&mut self, method: &str, params: Value) -> Value {
        let id = self.ask(method, params).await;
        self.answer(&id).await
    }

    /// Asks; the answer must be good. Its payload.
    pub async fn get(&mut self, method: &str, params: Value) -> Value {
        let mut answer = self.call(method, params).await;
        assert_eq!(answer["ok"], true, "{method}: {answer}");
        answer["payload"].take()
    }

    /// Asks; the answer must be an error.
    pub async fn refused(&mut self, method: &str, params: Value) -> Value {
        let mut answer = self.call(method, params).await;
        assert_eq!(answer["ok"], false, "{method}: {answer}");
        answer["error"].take()
    }

    /// Connects; must come in. The payload of `hello-ok`.
    pub async fn hello(&mut self, connect: &Connect<'_>) -> Value {
        let params = connect.params(&self.nonce, self.ts);
        self.get("connect", params).await
    }

    /// Connects; must be refused. The error, and how the socket was closed.
    pub async fn denied(&mut self, connect: &Connect<'_>) -> (Value, (u16, String)) {
        let params = connect.params(&self.nonce, self.ts);
        let error = self.refused("connect", params).await;
        (error, self.closed().await)
    }
}

/// Every refusal with a code of `details` says what to do about it.
fn names_a_next_step(frame: &Value) {
    let details = &frame["error"]["details"];
    if frame["type"] == "res" && details.get("code").is_some() {
        let next = details["next"].as_str().unwrap_or_default();
        assert!(!next.trim().is_empty(), "no next step: {frame}");
    }
}

/// Dials and connects.
pub async fn join(gateway: &Gateway, connect: &Connect<'_>) -> (Client, Value) {
    let mut client = Client::dial(gateway).await;
    let hello = client.hello(connect).await;
    (client, hello)
}

/// Dials and connects without a device, with the token and these scopes.
pub async fn by_token(gateway: &Gateway, scopes: &[&str]) -> Client {
    join(gateway, &Connect::token().scopes(scopes)).await.0
}

/// Dials and connects as an operator with every right, over `control.sock`.
pub async fn admin(gateway: &Gateway) -> Client {
    let mut client = Client::control(&gateway.state()).await;
    client
        .hello(&Connect::bare().scopes(&["operator.admin"]))
        .await;
    client
}

/// A `connect` to be.
#[derive(Clone)]
pub struct Connect<'a> {
    /// `auth`.
    pub auth: Value,
    /// `scopes`.
    pub scopes: Vec<String>,
    /// `role`.
    pub role: &'a str,
    /// Who signs, and which version of the text.
    pub device: Option<(&'a Device, u8)>,
    /// Laid over the params after the signature: what a liar changes.
    pub lies: Value,
    /// Milliseconds by which the signature is too old.
    pub late_ms: u64,
    /// What it calls itself.
    pub name: Option<&'a str>,
    /// What it says it runs on.
    pub platform: &'a str,
    /// Of which kind of machine it says to be.
    pub family: &'a str,
}

impl<'a> Connect<'a> {
    /// Nothing but a name.
    pub fn bare() -> Self {
        Self {
            auth: json!({}),
            scopes: vec![],
            role: "operator",
            device: None,
            lies: json!({}),
            late_ms: 0,
            name: None,
            platform: "Linux",
            family: "Test",
        }
    }

    /// With the shared token.
    pub fn token() -> Self {
        Self::bare().auth(json!({ "token": TOKEN }))
    }

    /// With these secrets.
    pub fn auth(mut self, auth: Value) -> Self {
        self.auth = auth;
        self
    }

    /// Asks for these.
    pub fn scopes(mut self, scopes: &[&str]) -> Self {
        self.scopes = scopes.iter().map(|s| (*s).to_owned()).collect();
        self
    }

    /// In this role.
    pub fn role(mut self, role: &'a str) -> Self {
        self.role = role;
        self
    }

    /// Signed by this device, version 3.
    pub fn device(mut self, device: &'a Device) -> Self {
        self.device = Some((device, 3));
        self
    }

    /// Signed by this device, version 2.
    pub fn device_v2(mut self, device: &'a Device) -> Self {
        self.device = Some((device, 2));
        self
    }

    /// Calls itself so.
    pub fn named(mut self, name: &'a str) -> Self {
        self.name = Some(name);
        self
    }

    /// What it says it runs on.
    pub const fn on(mut self, platform: &'a str) -> Self {
        self.platform = platform;
        self
    }

    /// Of which kind of machine it says to be.
    pub const fn of(mut self, family: &'a str) -> Self {
        self.family = family;
        self
    }

    /// Changes `device` after it was signed.
    pub fn lie(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.lies[key] = value.into();
        self
    }

    /// The params over this challenge.
    pub fn params(&self, nonce: &str, ts: u64) -> Value {
        let is_node = self.role == "node";
        let mut client = json!({
            "id": if is_node { "node-host" } else { "gateway-client" },
            "version": "1.0.0", "platform": self.platform, "deviceFamily": self.family,
            "mode": if is_node { "node" } else { "backend" },
        });
        if let Some(name) = self.name {
            client["displayName"] = name.into();
        }
        let mut params = json!({
            "minProtocol": 4, "maxProtocol": 4, "client": client,
            "role": self.role, "scopes": self.scopes, "auth": self.auth,
        });
        if let Some((device, version)) = self.device {
            let signed_at = ts - self.late_ms;
            let secret = |key: &str| self.auth.get(key).and_then(Value::as_str);
            let token = secret("token")
                .or_else(|| secret("deviceToken"))
                .or_else(|| secret("bootstrapToken"))
                .unwrap_or_default();
            let mut text = format!(
                "v{version}|{}|{}|{}|{}|{}|{signed_at}|{token}|{nonce}",
                device.id(),
                params["client"]["id"].as_str().unwrap(),
                params["client"]["mode"].as_str().unwrap(),
                self.role,
                self.scopes.join(","),
            );
            if version == 3 {
                let platform = self.platform.to_ascii_lowercase();
                let family = self.family.to_ascii_lowercase();
                text.extend(["|", &platform, "|", &family]);
            }
            params["device"] = json!({
                "id": device.id(), "publicKey": device.public_key(), "signature": device.sign(&text),
                "signedAt": signed_at, "nonce": nonce,
            });
            for (key, value) in self.lies.as_object().unwrap() {
                params["device"][key] = value.clone();
            }
        }
        params
    }
}

/// A key of either kind.
pub enum Device {
    /// RFC 8032.
    Ed25519(Box<ed25519_dalek::SigningKey>),
    /// FIPS 186-5.
    P256(Box<p256::ecdsa::SigningKey>),
}

impl Device {
    /// A new Ed25519 key.
    pub fn new() -> Self {
        Self::Ed25519(Box::new(ed25519_dalek::SigningKey::from_bytes(&random())))
    }

    /// A new P-256 key.
    pub fn p256() -> Self {
        // All but 2^-32 of random numbers are keys.
        Self::P256(Box::new(
            p256::ecdsa::SigningKey::from_slice(&random::<32>()).unwrap(),
        ))
    }

    fn raw(&self) -> Vec<u8> {
        match self {
            Self::Ed25519(key) => key.verifying_key().as_bytes().to_vec(),
            Self::P256(key) => key.verifying_key().to_sec1_point(false).as_bytes().to_vec(),
        }
    }

    /// SHA-256 of the key, hex.
    pub fn id(&self) -> String {
        hex(&Sha256::digest(self.raw()))
    }

    /// As sent.
    pub fn public_key(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.raw())
    }

    /// As sent.
    pub fn sign(&self, text: &str) -> String {
        self.sign_bytes(text.as_bytes())
    }

    /// As sent.
    pub fn sign_bytes(&self, bytes: &[u8]) -> String {
        let bytes = match self {
            Self::Ed25519(key) => key.sign(bytes).to_bytes().to_vec(),
            Self::P256(key) => {
                use p256::ecdsa::signature::Signer as _;
                let signature: p256::ecdsa::Signature = key.sign(bytes);
                signature.normalize_s().to_bytes().to_vec()
            }
        };
        URL_SAFE_NO_PAD.encode(bytes)
    }
}

/// From the operating system.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).unwrap();
    bytes
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    let digits: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    digits.concat()
}
