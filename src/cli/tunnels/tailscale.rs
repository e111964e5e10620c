//! The way over Tailscale: its command, and what its daemon on this machine says of it.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1::handshake;
use hyper::header::HOST;
use hyper_util::rt::TokioIo;
use portcullis_core::codes;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::Way;
use crate::cli::Failure;
use crate::client::{Address, Client};
use crate::show::value::field;

/// For one answer.
const WITHIN: Duration = Duration::from_secs(5);
/// Longest answer, bytes: the status names every machine of the network.
const LONGEST: usize = 8 * 1024 * 1024;

/// As it is typed. Raw TCP where the gateway speaks TLS itself, so that the pin is met from end to end; else Tailscale
/// ends TLS under the machine's name.
pub fn command(way: &Way) -> String {
    let (port, at) = (way.port(), way.at);
    let form = match way.pin {
        Some(_) => "--tcp",
        None => "--tls-terminated-tcp",
    };
    format!("tailscale serve --bg {form}={port} tcp://{at}")
}

/// What Tailscale says of itself on this machine.
pub struct Net {
    /// Under which name others of its network see this machine.
    pub name: String,
    serves: Value,
}

impl Net {
    /// Asks its local API.
    ///
    /// # Errors
    /// `TAILSCALE_UNREACHABLE`, `TAILSCALE_NOT_SERVING`.
    pub async fn ask(socket: &Path) -> Result<Self, Failure> {
        let status = get(socket, "/localapi/v0/status").await?;
        let name = status["Self"]["DNSName"].as_str().unwrap_or_default();
        let name = name.trim_end_matches('.').to_owned();
        let is_name = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.';
        if field(&status, "BackendState") != "Running"
            || name.is_empty()
            || !name.bytes().all(is_name)
        {
            let state = field(&status, "BackendState");
            return Err(Failure::of(
                codes::TAILSCALE_NOT_SERVING,
                format!("tailscale is not up on this machine: {state:?}, name {name:?}"),
            )
            .hint("`tailscale up`, with MagicDNS, then run this again"));
        }
        let serves = get(socket, "/localapi/v0/serve-config").await?;
        Ok(Self { name, serves })
    }

    /// Whether the command is in force, to nobody else than its network, and whether the gateway answers to that name.
    ///
    /// # Errors
    /// `TAILSCALE_FUNNEL`, `TAILSCALE_NOT_SERVING`, `NAME_NOT_OURS`, and what the gateway says.
    pub async fn check(self, way: &Way) -> Result<(), Failure> {
        self.serves(way)?;
        // As its daemon would ask: at the gateway's own address, under the machine's name.
        let here = format!("{}://{}", way.scheme(), way.at);
        let address = Address::parse(&here, way.pin.as_deref())?;
        let asked = format!("{}://{}:{}", way.scheme(), self.name, way.port());
        Client::greeted(&address, &asked)
            .await
            .map_err(|mut failure| {
                if failure.code == codes::NAME_NOT_OURS.name {
                    failure.fix = Some(format!("[gateway]\nhosts = [\"{}\"]", self.name).into());
                }
                failure
            })
    }

    /// The configuration alone.
    fn serves(&self, way: &Way) -> Result<(), Failure> {
        let of_sessions = self.serves["Foreground"].as_object();
        let of_sessions = of_sessions.into_iter().flat_map(|all| all.values());
        let all: Vec<&Value> = std::iter::once(&self.serves).chain(of_sessions).collect();
        if let Some(port) = all.iter().find_map(|one| funnel_to(one, way.port())) {
            return Err(Failure::of(
                codes::TAILSCALE_FUNNEL,
                format!("Funnel leads to this gateway, at port {port}"),
            ));
        }
        let not = |what: String| Err(Failure::of(codes::TAILSCALE_NOT_SERVING, what));
        let port = way.port();
        let mut here = all.iter().map(|one| &one["TCP"][port.to_string()]);
        let Some(ours) = here.find(|one| one.is_object()) else {
            return not(format!("tailscale serves no port {port}"));
        };
        let to = field(ours, "TCPForward");
        if to != way.at.to_string() && to != format!("localhost:{port}") {
            return not(format!("tailscale leads port {port} elsewhere: {to:?}"));
        }
        match (field(ours, "TerminateTLS"), &way.pin) {
            ("", None) => not(
                "tailscale serves it raw, and the gateway speaks no TLS: clients take plain from their own machine only"
                    .to_owned(),
            ),
            (name, Some(_)) if !name.is_empty() => {
                not("tailscale ends TLS before the gateway's own: no client meets the pinned key".to_owned())
            }
            (name, None) if name != self.name => {
                not(format!("tailscale ends TLS under another name: {name:?}"))
            }
            _ => Ok(()),
        }
    }
}

/// The port at which the whole internet is led to ours, by TCP or by HTTP.
fn funnel_to(serves: &Value, ours: u16) -> Option<String> {
    let ours = ours.to_string();
    let is_ours = |to: &str| {
        let authority = to.split("://").last().unwrap_or_default();
        let authority = authority.split('/').next().unwrap_or_default();
        authority.rsplit(':').next() == Some(ours.as_str())
    };
    let open = serves["AllowFunnel"].as_object()?.iter();
    let mut open = open.filter(|(_, on)| on.as_bool() == Some(true));
    open.find_map(|(at, _)| {
        let port = at.rsplit(':').next()?;
        let forward = serves["TCP"][port]["TCPForward"].as_str();
        let web = serves["Web"][at.as_str()]["Handlers"].as_object();
        let mut proxies = web.into_iter().flat_map(|all| all.values());
        let leads = forward.is_some_and(is_ours)
            || proxies.any(|one| one["Proxy"].as_str().is_some_and(is_ours));
        leads.then(|| port.to_owned())
    })
}

async fn get(socket: &Path, path: &str) -> Result<Value, Failure> {
    let at = socket.display();
    let no = |why: String| Failure::of(codes::TAILSCALE_UNREACHABLE, format!("{at}: {why}"));
    let asked = async {
        let stream = UnixStream::connect(socket)
            .await
            .map_err(|e| no(e.to_string()))?;
        let (mut sender, connection) = handshake(TokioIo::new(stream))
            .await
            .map_err(|e| no(e.to_string()))?;
        let driving = tokio::spawn(connection);
        let request = hyper::Request::get(path)
            .header(HOST, "local-tailscaled.sock")
            .body(Empty::<Bytes>::new())
            .map_err(|e| no(e.to_string()))?;
        let answer = sender
            .send_request(request)
            .await
            .map_err(|e| no(e.to_string()))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), LONGEST).collect().await;
        driving.abort();
        let body = body.map_err(|e| no(e.to_string()))?.to_bytes();
        if !status.is_success() {
            return Err(no(format!("it answers {path} with {status}")));
        }
        serde_json::from_slice(&body)
            .map_err(|e| no(format!("it answers {path} with no JSON: {e}")))
    };
    let late = || no(format!("no answer in {} s", WITHIN.as_secs()));
    timeout(WITHIN, asked).await.unwrap_or_else(|_| Err(late()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn way(pin: Option<&str>) -> Way {
        Way {
            at: ([127, 0, 0, 1], 18789).into(),
            pin: pin.map(str::to_owned),
            open: None,
        }
    }

    fn verdict(serves: Value, pin: Option<&str>) -> Result<(), String> {
        let net = Net {
            name: "gate.tail.ts.net".to_owned(),
            serves,
        };
        net.serves(&way(pin)).map_err(|failure| failure.code)
    }

    #[test]
    fn only_the_printed_command_is_in_force() {
        let ended = json!({"TCP": {"18789": {"TCPForward": "127.0.0.1:18789", "TerminateTLS": "gate.tail.ts.net"}}});
        let raw = json!({"TCP": {"18789": {"TCPForward": "127.0.0.1:18789"}}});
        assert_eq!(verdict(ended.clone(), None), Ok(()));
        assert_eq!(verdict(raw.clone(), Some("ab")), Ok(()));
        assert_eq!(
            verdict(json!({"Foreground": {"s": raw.clone()}}), Some("ab")),
            Ok(())
        );
        let not = Err("TAILSCALE_NOT_SERVING".to_owned());
        for (serves, pin) in [
            (raw, None),
            (ended, Some("ab")),
            (json!({}), None),
            (json!(null), None),
            (json!({"TCP": {"443": {"HTTPS": true}}}), None),
            (json!({"TCP": {"18789": {"HTTPS": true}}}), None),
            (
                json!({"TCP": {"18789": {"TCPForward": "192.0.2.1:18789"}}}),
                Some("ab"),
            ),
            (
                json!({"TCP": {"18789": {"TCPForward": "127.0.0.1:18789", "TerminateTLS": "x"}}}),
                None,
            ),
        ] {
            assert_eq!(verdict(serves.clone(), pin), not, "{serves}");
        }
    }

    #[test]
    fn a_funnel_to_our_port_is_found_wherever_it_begins() {
        let open = |tcp: Value, web: Value| json!({"TCP": {"443": tcp}, "Web": {"g:443": {"Handlers": {"/": web}}}, "AllowFunnel": {"g:443": true}});
        for serves in [
            open(json!({"TCPForward": "127.0.0.1:18789"}), json!(null)),
            open(
                json!({"HTTPS": true}),
                json!({"Proxy": "http://127.0.0.1:18789/"}),
            ),
            open(json!({"HTTPS": true}), json!({"Proxy": "localhost:18789"})),
        ] {
            let found = Err("TAILSCALE_FUNNEL".to_owned());
            assert_eq!(verdict(serves.clone(), Some("ab")), found);
            assert_eq!(
                verdict(json!({"Foreground": {"s": serves}}), Some("ab")),
                found
            );
        }
        let other = open(
            json!({"TCPForward": "127.0.0.1:80"}),
            json!({"Proxy": "http://127.0.0.1:8080/18789"}),
        );
        assert_eq!(funnel_to(&other, 18789), None);
        let mut off = open(json!({"TCPForward": "127.0.0.1:18789"}), json!(null));
        off["AllowFunnel"]["g:443"] = json!(false);
        assert_eq!(funnel_to(&off, 18789), None);
    }
}
