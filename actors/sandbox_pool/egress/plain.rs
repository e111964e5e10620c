//! One request of plain HTTP, and its answer. A redirect is an answer like any other: the client asks anew, and is decided on anew.

use portcullis_core::egress::head::HeadError;
use portcullis_core::egress::{AnswerError, Body, Refusal};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpStream, UnixStream};

use super::connection::Place;
use super::pump::{Broken, Kind, Over, Sieve, Way, pump};
use super::record::End;

/// Sends the request on and its answer back. `came`: what followed the head.
pub async fn pass(
    client: &mut UnixStream,
    mut server: TcpStream,
    came: &[u8],
    (forward, body): (Vec<u8>, Body),
    place: &mut Place,
    end: &mut End,
) -> Result<(), Refusal> {
    let malformed = Refusal::Head(HeadError::Length);
    let Ok(mut up) = Way::new(Sieve::Body(body)).with(came) else {
        return Err(malformed);
    };
    if server.write_all(&forward).await.is_err() {
        end.result = "reset";
        return Ok(());
    }
    let mut down = Way::new(Sieve::Answer(Vec::new(), 0));
    let (limits, closing) = (place.wiring.ways.limits, &mut place.closing);
    let over = pump(
        client,
        &mut server,
        (&mut up, &mut down),
        Kind::Exchange,
        place.began,
        &limits,
        closing,
    )
    .await;
    end.sent = forward.len() as u64 + up.count;
    end.received = down.count;
    end.result = over.word();
    match over {
        // Nothing was answered yet, so this can be.
        Over::Broken(broken) if down.count == 0 => Err(match broken {
            Broken::Body => malformed,
            Broken::Answer(error) => Refusal::Answer(error),
            Broken::Search => Refusal::Answer(AnswerError::Search),
        }),
        _ => Ok(()),
    }
}
