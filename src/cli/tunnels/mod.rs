//! `portcullis remote`: how to reach this gateway from elsewhere without opening it to a network.

mod ssh;
mod tailscale;

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use portcullis_core::auth::Scope;
use portcullis_core::codes;
use serde_json::{Value, json};

use super::args::RemoteArgs;
use super::failure::Failure;
use super::out::Out;
use crate::client::{Client, Door};
use crate::show::text::clean;
use crate::show::value::{field, list};
use crate::tls::Pin;

/// Stands for what only the reader knows.
const LOGIN: &str = "USER@GATEWAY";
const TAILNET_NAME: &str = "NAME.TAILNET.ts.net";

/// Where the gateway is to be found on its own machine: what every command is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Way {
    /// Of loopback.
    at: SocketAddr,
    /// Of its key, where it speaks TLS.
    pin: Option<String>,
    /// It listens beyond this machine, too.
    open: Option<IpAddr>,
}

impl Way {
    /// From the gateway's own word.
    fn of(status: &Value) -> Result<Self, Failure> {
        let ours = &status["portcullis"];
        let listener = list(ours, "listeners").first().and_then(Value::as_str);
        let listener = listener.unwrap_or_default();
        let address = listener.split("://").nth(1).unwrap_or_default();
        let at: SocketAddr = address.parse().map_err(|_| {
            Failure::of(
                codes::INTERNAL,
                format!("the gateway does not say where it listens, but {listener:?}"),
            )
        })?;
        let pin = ours["tls"]["spkiSha256"].as_str().map(str::to_owned);
        // A gateway elsewhere may say anything, and what is printed is typed into a shell.
        let is_none = pin.as_ref().is_none_or(|pin| pin.parse::<Pin>().is_err());
        if is_none && (pin.is_some() || listener.starts_with("wss://")) {
            return Err(Failure::of(
                codes::INTERNAL,
                "the gateway speaks TLS and does not say with which key",
            ));
        }
        let (ip, open) = match at.ip() {
            ip if ip.to_canonical().is_loopback() => (ip, None),
            IpAddr::V4(ip) if ip.is_unspecified() => (Ipv4Addr::LOCALHOST.into(), Some(ip.into())),
            IpAddr::V6(ip) if ip.is_unspecified() => (Ipv6Addr::LOCALHOST.into(), Some(ip.into())),
            ip => {
                return Err(Failure::of(
                    codes::NOT_ON_LOOPBACK,
                    format!(
                        "this gateway listens on {ip} only, and not on this machine's own address"
                    ),
                ));
            }
        };
        let at = SocketAddr::new(ip, at.port());
        Ok(Self { at, pin, open })
    }

    const fn port(&self) -> u16 {
        self.at.port()
    }

    const fn scheme(&self) -> &'static str {
        if self.pin.is_some() { "wss" } else { "ws" }
    }

    /// What a client elsewhere runs, at the near end of the way.
    fn client(&self, scheme: &str, host: &str) -> String {
        let port = self.port();
        let pin = self.pin.as_ref();
        let pin = pin.map_or_else(String::new, |pin| format!(" --pin sha256:{pin}"));
        format!("portcullis status --url {scheme}://{host}:{port}{pin} --token-file FILE")
    }
}

/// Prints the commands, and with `--check` tries them.
///
/// # Errors
/// [`Failure`] where there is nothing to print. A check that fails is in the answer, and in the exit code.
pub async fn run(door: &Door, args: &RemoteArgs, out: Out) -> Result<u8, Failure> {
    // Elsewhere than on the gateway's machine, Tailscale's answer would be of another one.
    let here = matches!(door, Door::Socket(_));
    if args.check && !here && args.ssh.is_none() {
        return Err(Failure::of(
            codes::INVALID_PARAMS,
            "there is nothing to check: Tailscale is asked on the gateway's own machine only",
        )
        .hint("name where to log in: --ssh USER@HOST"));
    }
    let mut client = Client::connect(door, &[Scope::Read], &[]).await?;
    let status = client.call("status", json!({})).await?;
    client.close().await;
    let way = Way::of(&status)?;
    let net = if here {
        Some(tailscale::Net::ask(&args.tailscale_socket).await)
    } else {
        None
    };
    let name = net.as_ref().and_then(|net| net.as_ref().ok());
    let name = name.map_or_else(|| TAILNET_NAME.to_owned(), |net| net.name.clone());
    let (mut checks, mut exit) = (Value::Null, 0);
    if args.check {
        let tunnel = match &args.ssh {
            Some(to) => Some(ssh::check(&way, to, args.ssh_config.as_deref()).await),
            None => None,
        };
        let net = match net {
            Some(Ok(net)) => Some(net.check(&way).await),
            Some(Err(failure)) => Some(Err(failure)),
            None => None,
        };
        exit = exit_of(tunnel.as_ref(), net.as_ref());
        checks = json!({ "ssh": verdict(&way, tunnel), "tailscale": verdict(&way, net) });
    }
    let to = args.ssh.as_deref().unwrap_or(LOGIN);
    let answer = json!({
        "port": way.port(),
        "pin": way.pin,
        "open": way.open,
        "ssh": {
            "command": ssh::command(&way, to, args.ssh_config.as_deref()),
            "client": way.client(way.scheme(), "127.0.0.1"),
        },
        "tailscale": {
            "command": tailscale::command(&way),
            "client": way.client("wss", &name),
            "needs": format!("[gateway] hosts = [\"{name}\"]"),
        },
        "checks": checks,
    });
    out.both(&answer, || shown(&answer))?;
    Ok(exit)
}

/// What was asked for by name decides, else Tailscale; and the whole internet is never let pass.
fn exit_of(tunnel: Option<&Result<(), Failure>>, net: Option<&Result<(), Failure>>) -> u8 {
    let exit = |checked: Option<&Result<(), Failure>>| match checked {
        Some(Err(failure)) => failure.exit,
        _ => 0,
    };
    let is_funnel = |f: &Failure| f.code == codes::TAILSCALE_FUNNEL.name;
    let is_open = matches!(net, Some(Err(failure)) if is_funnel(failure));
    match tunnel {
        Some(Err(failure)) => failure.exit,
        Some(Ok(())) if !is_open => 0,
        _ => exit(net),
    }
}

/// Without TLS nothing tells this gateway from another one that answers there.
fn verdict(way: &Way, checked: Option<Result<(), Failure>>) -> Value {
    let said = match way.pin {
        Some(_) => "this gateway answers, with its pinned key",
        None => "a gateway answers",
    };
    match checked {
        None => Value::Null,
        Some(Ok(())) => json!({ "ok": true, "said": said }),
        Some(Err(failure)) => json!({ "ok": false, "error": failure.json()["error"] }),
    }
}

fn shown(answer: &Value) -> String {
    let (ssh, net) = (&answer["ssh"], &answer["tailscale"]);
    let text = |value: &Value, key: &str| clean(field(value, key));
    let mut out = format!(
        "over SSH, on the client's machine:\n  {}\n  {}\n\
         over Tailscale, on this machine, with {}:\n  {}\nand on the client's machine:\n  {}\n",
        text(ssh, "command"),
        text(ssh, "client"),
        text(net, "needs"),
        text(net, "command"),
        text(net, "client"),
    );
    // Writing to a String cannot fail.
    if let Some(open) = answer["open"].as_str() {
        let _ = writeln!(
            out,
            "\nopen: this gateway listens on {}, too: with [gateway] bind = \"127.0.0.1\" no network reaches it",
            clean(open)
        );
    }
    let checks = &answer["checks"];
    if !checks.is_object() {
        return out;
    }
    out.push('\n');
    for (name, without) in [
        ("ssh", "name where to log in: --ssh USER@HOST"),
        ("tailscale", "ask on the gateway's own machine"),
    ] {
        let check = &checks[name];
        let error = &check["error"];
        let _ = match check["ok"].as_bool() {
            Some(true) => writeln!(out, "check {name}: ok, {}", text(check, "said")),
            Some(false) => writeln!(
                out,
                "check {name}: error[{}]: {}\n  next: {}",
                text(error, "code"),
                text(error, "message"),
                text(error, "hint"),
            ),
            None => writeln!(out, "check {name}: not done: {without}"),
        };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(listener: &str, pin: Option<&str>) -> Value {
        json!({ "portcullis": { "listeners": [listener, "control.sock"], "tls": { "spkiSha256": pin } } })
    }

    #[test]
    fn the_ways_end_on_loopback_whatever_the_gateway_listens_on() {
        let of = |listener: &str| Way::of(&status(listener, None));
        let plain = of("ws://127.0.0.1:18789").unwrap();
        assert_eq!(
            (plain.at.to_string().as_str(), plain.open),
            ("127.0.0.1:18789", None)
        );
        let six = of("ws://[::1]:7").unwrap();
        assert_eq!((six.at.to_string().as_str(), six.open), ("[::1]:7", None));
        for (listener, at) in [
            ("ws://0.0.0.0:9", "127.0.0.1:9"),
            ("ws://[::]:9", "[::1]:9"),
        ] {
            let way = of(listener).unwrap();
            assert_eq!(way.at.to_string(), at);
            assert!(way.open.is_some());
        }
        assert_eq!(of("ws://192.0.2.7:9").unwrap_err().code, "NOT_ON_LOOPBACK");
        for none in ["", "control.sock", "ws://gate.example:1"] {
            assert_eq!(of(none).unwrap_err().code, "INTERNAL");
        }
        assert!(Way::of(&status("wss://127.0.0.1:9", None)).is_err());
        assert!(Way::of(&status("wss://127.0.0.1:9", Some("$(id)"))).is_err());
    }

    #[test]
    fn the_commands_are_those_of_this_gateways_port_and_key() {
        let plain = Way::of(&status("ws://127.0.0.1:18789", None)).unwrap();
        assert_eq!(
            ssh::command(&plain, "me@gate", None),
            "ssh -N -o ExitOnForwardFailure=yes -L 127.0.0.1:18789:127.0.0.1:18789 me@gate"
        );
        assert_eq!(
            plain.client(plain.scheme(), "127.0.0.1"),
            "portcullis status --url ws://127.0.0.1:18789 --token-file FILE"
        );
        assert_eq!(
            tailscale::command(&plain),
            "tailscale serve --bg --tls-terminated-tcp=18789 tcp://127.0.0.1:18789"
        );
        let pin = "0123456789abcdef".repeat(4);
        let tls = Way::of(&status("wss://[::1]:7", Some(&pin))).unwrap();
        assert_eq!(
            ssh::command(&tls, "me@gate", Some("a b's".as_ref())),
            r"ssh -F 'a b'\''s' -N -o ExitOnForwardFailure=yes -L 127.0.0.1:7:[::1]:7 me@gate"
        );
        assert_eq!(
            tls.client(tls.scheme(), "127.0.0.1"),
            format!(
                "portcullis status --url wss://127.0.0.1:7 --pin sha256:{pin} --token-file FILE"
            )
        );
        // Raw: the pinned key is met at the far end, and nobody between ends the TLS.
        assert_eq!(
            tailscale::command(&tls),
            "tailscale serve --bg --tcp=7 tcp://[::1]:7"
        );
    }

    #[test]
    fn what_was_named_decides_the_exit_and_the_open_internet_always_does() {
        let failed = |code| Err(Failure::of(code, "x"));
        let (down, funnel) = (
            failed(codes::TAILSCALE_UNREACHABLE),
            failed(codes::TAILSCALE_FUNNEL),
        );
        let refused = failed(codes::SSH_REFUSED);
        assert_eq!(exit_of(Some(&Ok(())), Some(&down)), 0);
        assert_eq!(exit_of(Some(&Ok(())), Some(&funnel)), 5);
        assert_eq!(exit_of(Some(&refused), Some(&Ok(()))), 4);
        assert_eq!(exit_of(None, Some(&down)), 3);
        assert_eq!(exit_of(None, Some(&Ok(()))), 0);
        assert_eq!(exit_of(Some(&Ok(())), None), 0);
    }
}
