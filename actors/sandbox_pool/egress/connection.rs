//! One connection of a box: its head, the decision, the addresses, the record, the dial; then a tunnel or one plain request.

use std::net::IpAddr;
use std::sync::Arc;

use portcullis_core::egress::head::{self, Form, Head};
use portcullis_core::egress::{Decision, Host, Refusal};
use portcullis_core::ids::RunId;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Duration, Instant, timeout, timeout_at};

use super::actor::Egress;
use super::asks::{self, Said};
use super::record::{self, End};
use super::resolve::{find, is_own};
use super::terminate::{self, Terminated, Told};
use super::wiring::EgressWiring;
use super::{plain, tunnel};
use crate::supervision::{Ctx, FlagReader, Paced};

/// Read at once.
const READ: usize = 4096;
/// How long what a refused client still sends is thrown away, so that it reads the answer and not a broken connection.
const LINGER: Duration = Duration::from_millis(300);
/// And how much of it.
const LINGER_BYTES: usize = 256 * 1024;

/// What a connection has of its box's way out.
pub struct Place {
    pub wiring: Arc<EgressWiring>,
    pub ctx: Ctx<Egress>,
    pub closing: FlagReader<bool>,
    /// By which answers of its box are searched, and go on.
    pub pace: Arc<Paced>,
    /// Its number.
    pub key: u64,
    pub began: Instant,
    /// Runs under way in the box when it came: when it is recorded they may have ended.
    pub runs: Arc<[RunId]>,
}

/// A connection that was refused: what is to be recorded.
pub struct Refused {
    /// For whom it was, or what was read of that.
    pub target: String,
    /// Why.
    pub why: Refusal,
    /// As [`Place::runs`].
    pub runs: Arc<[RunId]>,
    /// Who asked has been told already.
    pub is_told: bool,
}

/// The whole of it. An allowed one has recorded itself.
pub async fn serve(mut client: UnixStream, mut place: Place) -> Option<Refused> {
    let refused = match go(&mut client, &mut place).await {
        Ok(()) => return None,
        Err(refused) => refused,
    };
    if !refused.is_told
        && let Some(answer) = answer(&place.wiring, &refused.why)
    {
        say(&mut client, &answer).await;
    }
    Some(refused)
}

/// The answer to a refused request; a tunnel that stands has been told in its own words.
pub fn answer(wiring: &EgressWiring, why: &Refusal) -> Option<Vec<u8>> {
    if matches!(why, Refusal::Hello(_)) {
        return None;
    }
    let text = why.text(&wiring.rules, &wiring.section);
    let head = format!(
        "HTTP/1.1 {}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nX-Portcullis-Egress: {}\r\nConnection: close\r\n\r\n",
        why.status(),
        text.len(),
        why.word()
    );
    Some((head + &text).into_bytes())
}

/// Last words.
pub async fn say(client: &mut (impl AsyncRead + AsyncWrite + Unpin), words: &[u8]) {
    let saying = async {
        client.write_all(words).await?;
        client.shutdown().await?;
        let (mut scratch, mut left) = (vec![0; READ], LINGER_BYTES);
        while left > 0 {
            match client.read(&mut scratch).await? {
                0 => break,
                read => left = left.saturating_sub(read),
            }
        }
        std::io::Result::Ok(())
    };
    // Who does not listen is not waited for.
    let _ = timeout(LINGER, saying).await;
}

async fn go(client: &mut UnixStream, place: &mut Place) -> Result<(), Refused> {
    let mut came = Vec::new();
    let head = timeout(place.wiring.ways.limits.head, read_head(client, &mut came)).await;
    let runs = Arc::clone(&place.runs);
    let refuse = |target: &str, why| Refused {
        target: target.to_owned(),
        why,
        runs: Arc::clone(&runs),
        is_told: false,
    };
    let head = match head {
        Ok(Ok(Some(head))) => head,
        // It came and went.
        Ok(Ok(None)) if came.is_empty() => return Ok(()),
        Ok(Ok(None)) | Err(_) => return Err(refuse(&first_line(&came), Refusal::Slow)),
        Ok(Err(error)) => return Err(refuse(&first_line(&came), Refusal::Head(error))),
    };
    let Head { host, port, form } = head;
    let target = format!("{host}:{port}");
    let allowed = allow(place, &host, port, matches!(form, Form::Connect), &target).await;
    let Allowed {
        addresses,
        seq,
        terminated,
        said,
    } = allowed.map_err(|why| refuse(&target, why))?;
    let dialled = timeout(
        place.wiring.ways.limits.dial,
        dial(&addresses, port, place.wiring.ways.limits.dial),
    );
    let mut end = End {
        result: "unreachable",
        address: None,
        sent: 0,
        received: 0,
        replaced: 0,
        ms: 0,
    };
    let result = match dialled.await {
        Ok(Some((address, stream))) => {
            end.address = Some(address);
            let passing = pass(
                client,
                stream,
                &came,
                (&host, port),
                (form, terminated),
                place,
                &mut end,
            );
            tokio::select! {
                passed = passing => passed,
                // What a person allowed ends with his word.
                () = ended(said) => Err(Told::Already(Refusal::SaidNo(host.clone(), port))),
            }
        }
        _ => Err(Told::Not(Refusal::Unreachable(host, port))),
    };
    end.ms = u64::try_from(place.began.elapsed().as_millis()).unwrap_or(u64::MAX);
    if let Err(Told::Not(why) | Told::Already(why)) = &result {
        end.result = why.word();
    }
    record::end(&place.wiring, &runs, &target, seq, &end).await;
    result.map_err(|told| match told {
        Told::Not(why) => refuse(&target, why),
        Told::Already(why) => Refused {
            is_told: true,
            ..refuse(&target, why)
        },
    })
}

/// Where it goes through.
async fn pass(
    client: &mut UnixStream,
    stream: TcpStream,
    came: &[u8],
    to: (&Host, u16),
    (form, terminated): (Form, Option<Terminated>),
    place: &mut Place,
    end: &mut End,
) -> Result<(), Told> {
    match (form, terminated) {
        (Form::Connect, Some(terminated)) => {
            terminate::pass(client, stream, came, to, terminated, place, end).await
        }
        (Form::Connect, None) => {
            let passed = tunnel::pass(client, stream, came, to.0, place, end).await;
            passed.map_err(Told::Not)
        }
        (Form::Plain { forward, body }, _) => {
            let passed = plain::pass(client, stream, came, (forward, body), place, end).await;
            passed.map_err(Told::Not)
        }
    }
}

/// Where no word was needed, for ever.
async fn ended(said: Option<Said>) {
    match said {
        Some(mut said) => said.ended().await,
        None => std::future::pending().await,
    }
}

/// The head, and in `came` what followed it; `None` where the client went away before.
async fn read_head(
    client: &mut UnixStream,
    came: &mut Vec<u8>,
) -> Result<Option<Head>, head::HeadError> {
    loop {
        if let Some((head, used)) = head::read(came)? {
            came.drain(..used);
            return Ok(Some(head));
        }
        came.reserve(READ);
        match client.read_buf(came).await {
            Ok(0) | Err(_) => return Ok(None),
            Ok(_) => {}
        }
    }
}

/// What was asked, for the record: nobody could read more of it.
fn first_line(came: &[u8]) -> String {
    let line = came.split(|byte| matches!(byte, b'\r' | b'\n')).next();
    String::from_utf8_lossy(line.unwrap_or_default()).into_owned()
}

/// What may be dialled, and what is done there.
struct Allowed {
    addresses: Vec<IpAddr>,
    seq: portcullis_core::audit::Seq,
    terminated: Option<Terminated>,
    /// By whose word, where no rule allows it.
    said: Option<Said>,
}

/// The decision, in the one order: rule, addresses, record. The addresses are those that may be dialled, and no other ever is.
async fn allow(
    place: &Place,
    host: &Host,
    port: u16,
    is_tunnel: bool,
    target: &str,
) -> Result<Allowed, Refusal> {
    let wiring = &place.wiring;
    let (rule, said) = match wiring.rules.decide(host, port) {
        Decision::Allow(rule) => (rule.to_string(), None),
        other => {
            let otherwise = match (other, host) {
                (Decision::Port, _) => Refusal::Port(host.clone(), port),
                (_, Host::Name(_)) => Refusal::NotListed(host.clone(), port),
                (_, Host::Address(_)) => Refusal::Literal(host.clone(), port),
            };
            let said = asks::ask(wiring, host, port, otherwise).await?;
            (format!("approval {}", said.id), Some(said))
        }
    };
    let found = match host {
        Host::Address(address) => vec![*address],
        Host::Name(name) => {
            let (ways, name) = (&wiring.ways, name.to_string());
            find(
                &place.ctx,
                place.key,
                &ways.resolver,
                &wiring.lookups,
                &ways.limits,
                name,
            )
            .await
        }
    };
    if found.is_empty() {
        return Err(Refusal::Unresolved(host.clone()));
    }
    // One bad address spoils the name: who mixes them means the bad one.
    let mut addresses = Vec::with_capacity(found.len());
    for address in found {
        let address = wiring
            .addresses
            .check(address)
            .map_err(|class| Refusal::Address(host.clone(), address, class))?;
        if !wiring.addresses.is_named(address) && is_own(address) {
            return Err(Refusal::Own(host.clone(), address));
        }
        addresses.push(address);
    }
    let terminated = if is_tunnel {
        Terminated::of(wiring, host, port).await?
    } else {
        None
    };
    let way = match (is_tunnel, &terminated) {
        (true, Some(_)) => "terminate",
        (true, None) => "connect",
        (false, _) => "http",
    };
    let seq = record::allow(wiring, &place.runs, target, way, &rule, &addresses).await;
    let seq = seq.map_err(|error| {
        tracing::warn!(id = %wiring.id, %error, "an allowed connection could not be recorded, so it is refused");
        Refusal::Unrecorded
    });
    Ok(Allowed {
        addresses,
        seq: seq?,
        terminated,
        said,
    })
}

/// The first of the addresses where somebody answers.
async fn dial(addresses: &[IpAddr], port: u16, within: Duration) -> Option<(IpAddr, TcpStream)> {
    let until = Instant::now() + within;
    let each = within / u32::try_from(addresses.len().clamp(1, 4)).unwrap_or(1);
    for &address in addresses {
        let one = until.min(Instant::now() + each);
        if let Ok(Ok(stream)) = timeout_at(one, TcpStream::connect((address, port))).await {
            let _ = stream.set_nodelay(true);
            return Some((address, stream));
        }
    }
    None
}
