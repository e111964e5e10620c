//! Where records go: `[audit.sinks.NAME]`, checked.

use crate::audit::SinkConfig;
use portcullis_core::audit::export::Format;
use std::net::IpAddr;
use std::path::PathBuf;

/// A sink as it is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// In which form.
    pub format: Format,
    /// Where to.
    pub to: Destination,
    /// The name of the secret that it is sent with.
    pub token: Option<String>,
}

/// Where to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// A file.
    File(PathBuf),
    /// A datagram socket of syslog.
    Datagram(PathBuf),
    /// A stream of syslog.
    Stream(Peer),
    /// A POST for each batch.
    Http(Peer, String),
}

/// The other end of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// A name or an address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Spoken through TLS; the pin of its key, or empty: its certificate is verified.
    pub tls: Option<String>,
}

impl Destination {
    /// The word of its kind.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::File(_) => "file",
            Self::Datagram(_) | Self::Stream(_) => "syslog",
            Self::Http(..) => "http",
        }
    }
}

/// What is wrong with a sink: the key, and why.
pub type Problem = (&'static str, String);

/// Reads one section.
///
/// # Errors
/// The key that is wrong, and why.
pub fn settings(config: &SinkConfig) -> Result<Settings, Problem> {
    let format = Format::parse(&config.format).ok_or((
        "format",
        "one of \"jsonl\", \"ocsf\" and \"cef\"".to_owned(),
    ))?;
    let token = Some(config.token.vault.clone()).filter(|name| !name.is_empty());
    let unused = |key, is_set: bool| {
        if is_set {
            return Err((key, format!("a sink of kind {:?} has none", config.kind)));
        }
        Ok(())
    };
    let to = match config.kind.as_str() {
        "file" => {
            if !config.path.is_absolute() {
                return Err(("path", "an absolute path of the file".to_owned()));
            }
            unused("address", !config.address.is_empty())?;
            unused("pin", !config.pin.is_empty())?;
            unused("token", token.is_some())?;
            Destination::File(config.path.clone())
        }
        "syslog" => {
            unused("path", !config.path.as_os_str().is_empty())?;
            unused("token", token.is_some())?;
            syslog(config)?
        }
        "http" => {
            unused("path", !config.path.as_os_str().is_empty())?;
            http(config)?
        }
        _ => {
            return Err((
                "kind",
                "one of \"file\", \"syslog\" and \"http\"".to_owned(),
            ));
        }
    };
    Ok(Settings { format, to, token })
}

fn syslog(config: &SinkConfig) -> Result<Destination, Problem> {
    let wrong = || {
        let why = "\"unix:/dev/log\", \"tcp://HOST:PORT\" or \"tls://HOST:PORT\"";
        ("address", why.to_owned())
    };
    if let Some(path) = config.address.strip_prefix("unix:") {
        no_pin(config)?;
        let path = PathBuf::from(path);
        return path
            .is_absolute()
            .then_some(Destination::Datagram(path))
            .ok_or_else(wrong);
    }
    let (scheme, rest) = config.address.split_once("://").ok_or_else(wrong)?;
    let (host, port) = host_port(rest).ok_or_else(wrong)?;
    let port = port.ok_or_else(wrong)?;
    let tls = match scheme {
        "tcp" => {
            no_pin(config)?;
            None
        }
        "tls" => Some(config.pin.clone()),
        _ => return Err(wrong()),
    };
    Ok(Destination::Stream(Peer { host, port, tls }))
}

fn http(config: &SinkConfig) -> Result<Destination, Problem> {
    let wrong = || ("address", "\"https://HOST/PATH\"".to_owned());
    let (scheme, rest) = config.address.split_once("://").ok_or_else(wrong)?;
    let (authority, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    let is_plain = |byte: u8| byte.is_ascii_graphic() && byte != b'#';
    if !path.bytes().all(is_plain) {
        return Err(wrong());
    }
    let (host, port) = host_port(authority).ok_or_else(wrong)?;
    let (port, tls) = match scheme {
        "https" => (port.unwrap_or(443), Some(config.pin.clone())),
        "http" if is_loopback(&host) => {
            no_pin(config)?;
            (port.unwrap_or(80), None)
        }
        "http" => {
            let why = "beyond this machine everything would be readable on the way: https";
            return Err(("address", why.to_owned()));
        }
        _ => return Err(wrong()),
    };
    Ok(Destination::Http(Peer { host, port, tls }, path.to_owned()))
}

fn no_pin(config: &SinkConfig) -> Result<(), Problem> {
    if config.pin.is_empty() {
        Ok(())
    } else {
        Err((
            "pin",
            "only what is spoken through TLS has a pin".to_owned(),
        ))
    }
}

/// A name does not do: who answers for it may change.
fn is_loopback(host: &str) -> bool {
    host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

/// `name`, `name:514`, `[::1]:514`, without a user.
fn host_port(text: &str) -> Option<(String, Option<u16>)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            let port = match rest {
                "" => None,
                rest => Some(rest.strip_prefix(':')?),
            };
            (host, port)
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let is_name =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':');
    if host.is_empty() || !host.bytes().all(is_name) {
        return None;
    }
    let port = match port {
        Some(port) => Some(port.parse().ok().filter(|port| *port != 0)?),
        None => None,
    };
    Some((host.to_owned(), port))
}
