//! The search of an answer for secrets: beside the runtime, in pieces, by the clock of its box.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use portcullis_core::egress::AnswerError;
use tokio::time::sleep_until;
use zeroize::Zeroizing;

use super::opened::Opened;
use crate::supervision::Paced;

/// What a place takes on the clock of its box (`Scrubber::looked`). The costliest text takes less than half of it in a build as it is released
/// (0.35 us, and 0.45 us where a secret is beyond ASCII; plain text takes 0.15 us), so that all searches of a box are hidden behind its one clock,
/// and what a box can make the gateway search is bounded.
pub const PACE: Duration = Duration::from_micros(1);
/// Searched at once. Another box's turn comes behind it.
const PIECE: usize = 4 * 1024;

/// What was made of bytes that came.
pub struct Searched {
    pub answer: Box<Opened>,
    /// What goes on.
    pub out: Zeroizing<Vec<u8>>,
    pub taken: Result<(), AnswerError>,
}

/// It ends when what it found may be shown; with none where it broke off.
pub type Search = Pin<Box<dyn Future<Output = Option<Searched>> + Send>>;

/// Searches what came, or, where nothing did, what is left at the end.
pub fn search_in(pace: Arc<Paced>, answer: Box<Opened>, came: &[u8]) -> Search {
    let pieces: Vec<Zeroizing<Vec<u8>>> = if came.is_empty() {
        vec![Zeroizing::default()]
    } else {
        let pieces = came.chunks(PIECE);
        pieces.map(|piece| Zeroizing::new(piece.to_vec())).collect()
    };
    Box::pin(async move {
        let mut searched = Searched {
            answer,
            out: Zeroizing::default(),
            taken: Ok(()),
        };
        let mut due = None;
        for piece in pieces {
            let (now, its) = pace.turn(move || one(searched, &piece)).await?;
            searched = now;
            due = Some(its);
            if searched.taken.is_err() || searched.answer.is_over() {
                break;
            }
        }
        // Also what is no answer: how long it took to see that is nobody's to know.
        if let Some(due) = due {
            sleep_until(due).await;
        }
        Some(searched)
    })
}

/// One piece, and what it takes on the clock: how long what was searched is sets that, and not what it says.
fn one(mut searched: Searched, piece: &[u8]) -> (Searched, Duration) {
    let Searched { answer, out, taken } = &mut searched;
    let before = answer.looked();
    *taken = if piece.is_empty() {
        answer.end(out)
    } else {
        answer.take(piece, out)
    };
    let looked = u32::try_from(answer.looked() - before).unwrap_or(u32::MAX);
    (searched, PACE * looked)
}
