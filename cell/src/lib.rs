//! The frames between a box's cell and the host, and the list of attempts to get out of a box. Std only: both ends use it, and it is fuzzed.
//!
//! Wire: `u32` big-endian length of what follows (5 bytes to 64 KiB), `u8` kind, `u32` run, body. Integers are big-endian;
//! strings are UTF-8 and carry a `u32` length. A decoder never panics, never holds more than one frame beyond what was pushed, and
//! refuses unknown kinds, trailing bytes and lengths beyond the limit before it stores them.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod attempts;
mod codec;
mod copied;
mod frames;

pub use attempts::{ATTEMPTS, Attempt, Control, Way};
pub use codec::{Decoder, FrameError};
pub use copied::{CELL_INSIDE, CopyFailure, FileHead, MOST_FILE, output_cap};
pub use frames::{Cause, Ended, Exit, Frame, Input, Size, Spawn, Stream, Value, wipe};

/// Version of the frames, said in HELLO; a peer of another version is refused.
pub const PROTO: u16 = 3;
/// Most bytes of a frame after its length field (contracts.md section 7).
pub const MAX_FRAME: usize = 64 * 1024;
/// Most bytes of output in one OUT or ERR frame.
pub const MAX_OUTPUT: usize = 32 * 1024;
/// Output bytes that a run may send before its first WINDOW, both streams together.
pub const INITIAL_WINDOW: u32 = 256 * 1024;
/// Most bytes of standard input in one STDIN frame.
pub const MAX_INPUT: usize = 32 * 1024;
/// Bytes of standard input that the host may send before the cell's first WINDOW; never more of them wait in the cell.
pub const INPUT_WINDOW: u32 = 64 * 1024;
/// The signals that a run may be sent, with their numbers (the same on both architectures). TSTP and the like are typed at a terminal.
pub const SIGNALS: [(&str, u8); 10] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("KILL", 9),
    ("USR1", 10),
    ("USR2", 12),
    ("TERM", 15),
    ("CONT", 18),
    ("STOP", 19),
    ("WINCH", 28),
];
/// Most arguments, and most variables, of a SPAWN.
pub const MAX_ITEMS: usize = 4096;
/// Longest name of a run, in bytes.
pub const MAX_NAME: usize = 128;
/// How long a cell keeps its runs for the next host when this one is gone, in seconds.
pub const KEPT_SECONDS: u64 = 30;
/// Longest nonce of a HELLO, in bytes.
pub const MAX_NONCE: usize = 128;
/// Where a box that may reach hosts has its proxy: on 127.0.0.1, passed on by its pid 1.
pub const RELAY_PORT: u16 = 3128;
