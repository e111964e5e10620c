//! An echo on the connection's own socket code, so that a conformance suite can be pointed at it. No part of the gateway.

use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};
use tokio_tungstenite::tungstenite::Message;

use super::io::Io;
use super::serve::{close, fault, feed, flush, open};

/// For the other end to read what it sent.
const WRITE_WITHIN: Duration = Duration::from_secs(20);

/// Sends back every message, up to a size, until the other end closes or breaks the protocol.
pub async fn echo(mut io: Io, frame_max: usize) {
    io.trust(frame_max, None);
    let mut ws = open(io, frame_max).await;
    loop {
        // Flushed as input runs dry, like the answers of a connection.
        let next = if let Some(next) = ws.next().now_or_never() {
            next
        } else {
            if flush(&mut ws, WRITE_WITHIN).await.is_err() {
                return;
            }
            ws.next().await
        };
        let sent = match next {
            Some(Ok(message @ (Message::Text(_) | Message::Binary(_)))) => {
                feed(&mut ws, WRITE_WITHIN, message).await
            }
            Some(Ok(_)) => Ok(()),
            Some(Err(error)) => {
                if let Some((code, reason)) = fault(&error) {
                    close(&mut ws, code, reason).await;
                }
                return;
            }
            None => return,
        };
        if sent.is_err() {
            return;
        }
    }
}
