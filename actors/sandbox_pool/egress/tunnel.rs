//! A tunnel: nothing of the client's reaches the host before it is a hello to that very host.

use portcullis_core::egress::hello::{Hello, HelloError, asks_again};
use portcullis_core::egress::{Host, Refusal};
use rustix::net::{RecvFlags, recv};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{sleep_until, timeout};

use super::connection::{Place, say};
use super::pump::{Kind, Over, Sieve, Way, pump};
use super::record::End;

/// Most of the server's first bytes that are kept until it is known what they are.
const FIRST: usize = 16 * 1024;
const READ: usize = 4096;
pub const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";

/// Why the gate stays shut.
pub enum Shut {
    /// What came is no hello for this host.
    Hello(HelloError),
    /// One of the two went away.
    Gone,
}

impl From<std::io::Error> for Shut {
    fn from(_: std::io::Error) -> Self {
        Self::Gone
    }
}

/// From the answer to CONNECT to the end of the tunnel. `came`: what followed the request.
pub async fn pass(
    client: &mut UnixStream,
    mut server: TcpStream,
    came: &[u8],
    host: &Host,
    place: &mut Place,
    end: &mut End,
) -> Result<(), Refusal> {
    let mut closing = place.closing.clone();
    let over = place.began + place.wiring.ways.limits.total;
    let opened = tokio::select! {
        opened = open(client, &mut server, came, host, place, end) => opened,
        _ = closing.until(|closing| *closing) => Err(Shut::Gone),
        () = sleep_until(over) => Err(Shut::Gone),
    };
    let (behind, answered) = match opened {
        Ok(open) => open,
        Err(Shut::Gone) => {
            end.result = "reset";
            return Ok(());
        }
        Err(Shut::Hello(error)) => {
            say(client, &error.alert()).await;
            return Err(Refusal::Hello(error));
        }
    };
    // All that goes through here is TLS, of a host that may be reached; what it says nobody here reads.
    let ways = (
        Way::new(Sieve::All).with(&behind),
        Way::new(Sieve::All).with(&answered),
    );
    let (Ok(mut up), Ok(mut down)) = ways else {
        return Ok(());
    };
    let (limits, closing) = (place.wiring.ways.limits, &mut place.closing);
    let over: Over = pump(
        client,
        &mut server,
        (&mut up, &mut down),
        Kind::Tunnel,
        place.began,
        &limits,
        closing,
    )
    .await;
    end.sent += up.count;
    end.received += down.count;
    end.result = over.word();
    Ok(())
}

/// Lets one hello pass, and a second where the server asks for one: what is still to go to the server, and to the client.
async fn open(
    client: &mut UnixStream,
    server: &mut TcpStream,
    came: &[u8],
    host: &Host,
    place: &Place,
    end: &mut End,
) -> Result<(Vec<u8>, Vec<u8>), Shut> {
    let within = place.wiring.ways.limits.head;
    client.write_all(ESTABLISHED).await?;
    let gate = timeout(within, hello(client, Hello::first(), came, host));
    let (first, behind) = gate.await.unwrap_or(Err(Shut::Hello(HelloError::Late)))?;
    server.write_all(&first).await?;
    end.sent += first.len() as u64;
    // What came behind it (early data, or a second hello that nobody has asked for yet) waits for the server's word.
    let mut answer = Vec::new();
    let again = loop {
        if let Some(again) = asks_again(&answer) {
            break again;
        }
        let read = timeout(place.wiring.ways.limits.idle, server.read_buf(&mut answer));
        let read = tokio::select! {
            read = read => read,
            () = left(client) => return Err(Shut::Gone),
        };
        // A server that says nothing has ended it, and so has one that says much and no hello.
        let Ok(read) = read else {
            return Err(Shut::Gone);
        };
        if read? == 0 {
            break false;
        }
        if answer.len() > FIRST {
            return Err(Shut::Gone);
        }
    };
    if !again {
        return Ok((behind, answer));
    }
    client.write_all(&answer).await?;
    end.received += answer.len() as u64;
    // The rest of what the server asks may still be on its way.
    let gate = async {
        let (mut from_client, mut to_client) = client.split();
        let gate = hello(&mut from_client, Hello::second(), &behind, host);
        tokio::pin!(gate);
        let mut scratch = vec![0; READ];
        loop {
            let read = tokio::select! {
                passed = &mut gate => return passed,
                read = server.read(&mut scratch) => read?,
            };
            if read == 0 {
                return Err(Shut::Gone);
            }
            to_client.write_all(&scratch[..read]).await?;
            end.received += read as u64;
        }
    };
    let gate = timeout(within, gate);
    let (second, behind) = gate.await.unwrap_or(Err(Shut::Hello(HelloError::Late)))?;
    server.write_all(&second).await?;
    end.sent += second.len() as u64;
    Ok((behind, Vec::new()))
}

/// Until the client goes away, without taking anything of what it has sent; for ever where it has sent something.
async fn left(client: &UnixStream) {
    loop {
        if client.readable().await.is_err() {
            return;
        }
        let peeked = client.try_io(Interest::READABLE, || {
            let mut one = [0];
            let (count, _) = recv(client, &mut one, RecvFlags::PEEK | RecvFlags::DONTWAIT)?;
            Ok(count)
        });
        match peeked {
            Ok(0) => return,
            Ok(_) => std::future::pending().await,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

/// One whole hello, and what came behind it.
pub async fn hello(
    client: &mut (impl AsyncRead + Unpin),
    mut gate: Hello,
    came: &[u8],
    host: &Host,
) -> Result<(Vec<u8>, Vec<u8>), Shut> {
    if gate.push(came, host).map_err(Shut::Hello)? {
        return Ok(gate.into_parts());
    }
    let mut scratch = vec![0; READ];
    loop {
        let read = client.read(&mut scratch).await?;
        if read == 0 {
            return Err(Shut::Gone);
        }
        let is_whole = gate.push(&scratch[..read], host).map_err(Shut::Hello)?;
        if is_whole {
            return Ok(gate.into_parts());
        }
    }
}
