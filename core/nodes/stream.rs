//! What a run on a node writes, while it runs: told in pieces of text by the node, put together by the gateway. The answer at
//! the end has all of it once more, so that a piece which was lost on the way is only late. Pure.

use serde::{Deserialize, Serialize};

/// In the params of a run: its output is wanted while it comes, in pieces of this form. Ours; a node host that knows nothing of
/// it tells all at the end.
pub const PROGRESS: &str = "portcullisProgress";
/// Longest text of one piece as it stands in JSON, bytes: beside it there is its frame, and the wire takes 16 KiB.
const PIECE: usize = 12_000;
/// Bytes of one stream in all: a byte that is no text is told by a character of three, and 200,000 bytes are a run's most.
const MOST: usize = 600_000;

/// Which stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Way {
    const fn at(self) -> usize {
        match self {
            Self::Stdout => 0,
            Self::Stderr => 1,
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Piece {
    stream: Way,
    text: String,
}

/// On the node: bytes in, numbered pieces out.
#[derive(Debug, Default)]
pub struct Telling {
    next: u64,
    /// Of each stream, the beginning of a character whose end has not come.
    left: [Vec<u8>; 2],
}

impl Telling {
    /// It wrote this. What the pieces say is, put together, the beginning of what [`String::from_utf8_lossy`] makes of all.
    pub fn wrote(&mut self, way: Way, bytes: &[u8]) -> Vec<(u64, String)> {
        let left = &mut self.left[way.at()];
        left.extend_from_slice(bytes);
        let mut text = String::new();
        loop {
            match std::str::from_utf8(left) {
                Ok(all) => {
                    text.push_str(all);
                    left.clear();
                    break;
                }
                Err(error) => {
                    let good = error.valid_up_to();
                    text.push_str(&String::from_utf8_lossy(&left[..good]));
                    let Some(bad) = error.error_len() else {
                        left.drain(..good);
                        break;
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    left.drain(..good + bad);
                }
            }
        }
        let mut pieces = vec![];
        for text in cut(&text) {
            let piece = Piece {
                stream: way,
                text: text.to_owned(),
            };
            // Text is JSON.
            let chunk = serde_json::to_string(&piece).unwrap_or_default();
            pieces.push((self.next, chunk));
            self.next = self.next.saturating_add(1);
        }
        pieces
    }
}

/// In pieces none of which takes more than [`PIECE`] in JSON.
fn cut(text: &str) -> Vec<&str> {
    let (mut all, mut from, mut took) = (vec![], 0, 0);
    for (at, c) in text.char_indices() {
        let takes = match c {
            '"' | '\\' | '\n' | '\r' | '\t' => 2,
            c if c < ' ' => 6,
            c => c.len_utf8(),
        };
        if took + takes > PIECE {
            all.push(&text[from..at]);
            (from, took) = (at, 0);
        }
        took += takes;
    }
    if from < text.len() {
        all.push(&text[from..]);
    }
    all
}

/// At the gateway: what of a run's output was passed on already.
#[derive(Debug, Default)]
pub struct Told {
    next: u64,
    passed: [usize; 2],
    /// A piece is missing, or was none: the rest comes with the answer.
    is_over: bool,
}

impl Told {
    /// A piece. Nothing: it is not the next one, or more than a run may write.
    pub fn piece(&mut self, seq: u64, chunk: &str) -> Option<(Way, String)> {
        if self.is_over || seq != self.next {
            self.is_over = true;
            return None;
        }
        let piece = serde_json::from_str::<Piece>(chunk).ok();
        let piece = piece.filter(|p| self.passed[p.stream.at()] + p.text.len() <= MOST);
        let Some(Piece { stream, text }) = piece else {
            self.is_over = true;
            return None;
        };
        self.next += 1;
        self.passed[stream.at()] += text.len();
        Some((stream, text))
    }

    /// What of all that it wrote there was not passed on.
    pub fn rest(&self, way: Way, all: &str) -> usize {
        let passed = self.passed[way.at()];
        if all.is_char_boundary(passed) {
            passed
        } else {
            // The node's two words differ: nothing is told twice.
            all.len()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// However it is cut and whatever it is, in order and whole it is what the answer says, and no piece is too long.
        #[test]
        fn pieces_and_rest_are_the_whole_output(
            writes in proptest::collection::vec((any::<bool>(), proptest::collection::vec(any::<u8>(), 0..40)), 0..40),
            lost in proptest::option::of(0_usize..40),
        ) {
            let (mut telling, mut told) = (Telling::default(), Told::default());
            let (mut all, mut got) = ([vec![], vec![]], [String::new(), String::new()]);
            let mut count = 0;
            for (is_err, bytes) in writes {
                let way = if is_err { Way::Stderr } else { Way::Stdout };
                all[way.at()].extend_from_slice(&bytes);
                for (seq, chunk) in telling.wrote(way, &bytes) {
                    prop_assert!(chunk.len() <= 16_384);
                    count += 1;
                    if lost == Some(count) {
                        continue;
                    }
                    if let Some((way, text)) = told.piece(seq, &chunk) {
                        got[way.at()].push_str(&text);
                    }
                }
            }
            for way in [Way::Stdout, Way::Stderr] {
                let whole = String::from_utf8_lossy(&all[way.at()]);
                let rest = &whole[told.rest(way, &whole)..];
                prop_assert_eq!(format!("{}{}", got[way.at()], rest), whole.clone());
            }
        }
    }

    #[test]
    fn no_piece_of_a_run_is_too_long_for_the_wire_and_none_is_taken_out_of_order() {
        for text in [
            "\u{1}".repeat(30_000),
            "\"\n".repeat(20_000),
            "ä".repeat(20_000),
        ] {
            let mut telling = Telling::default();
            let pieces = telling.wrote(Way::Stdout, text.as_bytes());
            assert!(pieces.len() > 1);
            assert!(pieces.iter().all(|(_, chunk)| chunk.len() <= 16_384));
            let mut told = Told::default();
            let got: String = pieces
                .iter()
                .filter_map(|(seq, chunk)| Some(told.piece(*seq, chunk)?.1))
                .collect();
            assert_eq!(got, text);
            // Out of order, or none of ours: what was passed on stays, and nothing more comes before the end.
            let mut told = Told::default();
            assert!(told.piece(pieces[0].0, &pieces[0].1).is_some());
            assert!(told.piece(7, &pieces[1].1).is_none());
            assert!(told.piece(pieces[1].0, &pieces[1].1).is_none());
        }
        let mut told = Told::default();
        assert!(told.piece(0, "some text of another's").is_none());
        assert_eq!(told.rest(Way::Stdout, "all"), 0);
        // No end of it is taken.
        let mut told = Told::default();
        let chunk =
            serde_json::json!({ "stream": "stderr", "text": "x".repeat(16_000) }).to_string();
        let taken = (0..1_000).filter(|seq| told.piece(*seq, &chunk).is_some());
        assert_eq!(taken.count(), MOST / 16_000);
    }
}
