//! What passes a socket, looked at before the protocol library sees it: frame headers (RFC 6455 5.2), and the text of
//! frames that have not arrived whole.
//!
//! The library makes room for a payload at its header and looks at a frame's text at its end. A stranger's frame that is
//! too large is stopped here at its header, and wrong UTF-8 at its first wrong octet, whoever sends it. So are fragments
//! without end: the library counts their bytes, and empty ones have none.

use std::io;

use portcullis_core::protocol::limits::{EMPTY_FRAGMENTS, PREAUTH_FRAME, UNDER_WAY_FREE};

use crate::supervision::Taken;

/// The connection answers it with close code 1009.
pub const TOO_LARGE: &str = "preauth payload too large";
/// The connection answers it with close code 1007.
pub const NOT_UTF8: &str = "text is not UTF-8";
/// The connection answers it with close code 1008.
pub const EMPTY: &str = "too many empty fragments";
/// The connection answers it with close code 1009: a message beyond what this client may send.
pub const TOO_LONG: &str = "frame too large";
/// The connection answers it with close code 1013: others of the same holder, or all, have begun as much as there may be.
pub const CROWDED: &str = "too many large messages at once";

/// Text that is unmasked and looked at in one go, bytes.
const PIECE: usize = 1024;
/// Bytes of a character that is not whole yet.
const CARRY: usize = 3;

#[derive(Debug)]
pub(super) struct Scan {
    header: [u8; 14],
    have: usize,
    payload_left: u64,
    mask: [u8; 4],
    /// Of the payload so far, modulo four.
    mask_at: usize,
    /// This frame's text is looked at here.
    look: bool,
    /// The message whose frames pass is text, and it has begun.
    in_text: bool,
    carry: [u8; CARRY],
    carried: usize,
    /// A message whose last frame has not begun.
    open: bool,
    /// Of the message whose frames pass: announced bytes, and frames without any.
    message: u64,
    empty: u32,
    /// The most that a message may have; the library has its own, for all.
    most: u64,
    /// Messages begun, and all bytes: what stands still is seen by both.
    begun: u64,
    passed: u64,
    /// Bytes of all frames before authentication.
    stranger: Option<u64>,
    /// What the message that has begun holds of its sender's allowance.
    taken: Option<Taken>,
}

/// A message that has begun and is not there yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unfinished {
    /// Which one.
    pub message: u64,
    /// All bytes that have passed, of all messages.
    pub passed: u64,
}

impl Scan {
    /// Of a stranger's socket.
    pub fn new() -> Self {
        Self {
            header: [0; 14],
            have: 0,
            payload_left: 0,
            mask: [0; 4],
            mask_at: 0,
            look: false,
            in_text: false,
            carry: [0; CARRY],
            carried: 0,
            open: false,
            message: 0,
            empty: 0,
            most: PREAUTH_FRAME as u64,
            begun: 0,
            passed: 0,
            stranger: Some(0),
            taken: None,
        }
    }

    /// From here on messages may have so many bytes, and hold room of this.
    pub fn trust(&mut self, most: usize, taken: Option<Taken>) {
        self.stranger = None;
        self.most = most as u64;
        self.taken = taken;
    }

    /// The message is there: it holds nothing any more.
    fn is_done(&mut self) {
        if self.payload_left == 0
            && !self.open
            && let Some(taken) = &mut self.taken
        {
            taken.clear();
        }
    }

    /// No frame has begun that is not there yet.
    pub const fn is_between(&self) -> bool {
        self.payload_left == 0 && self.have == 0
    }

    /// What has begun and is not there yet.
    pub fn unfinished(&self) -> Option<Unfinished> {
        let is_under_way = self.open || self.payload_left > 0 || self.have > 0;
        is_under_way.then_some(Unfinished {
            message: self.begun,
            passed: self.passed,
        })
    }

    pub fn pass(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        self.passed = self.passed.wrapping_add(bytes.len() as u64);
        while !bytes.is_empty() {
            if self.payload_left > 0 {
                let part = usize::try_from(self.payload_left)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
                let (payload, rest) = bytes.split_at(part);
                if self.look {
                    self.text(payload)?;
                }
                self.payload_left -= part as u64;
                self.is_done();
                bytes = rest;
                continue;
            }
            self.header[self.have] = bytes[0];
            self.have += 1;
            bytes = &bytes[1..];
            let Some((length, size)) = self.announced() else {
                continue;
            };
            if self.have == size {
                self.begin(length, size, bytes.len())?;
            }
        }
        Ok(())
    }

    /// A header is whole; so many bytes behind it are there.
    fn begin(&mut self, length: u64, size: usize, there: usize) -> io::Result<()> {
        self.have = 0;
        self.payload_left = length;
        let (is_final, kind) = (self.header[0] & 0x80 != 0, self.header[0] & 0x0f);
        if kind < 8 {
            if kind != 0 {
                self.in_text = kind == 1;
                self.carried = 0;
                self.begun = self.begun.wrapping_add(1);
                (self.message, self.empty) = (0, 0);
            }
            self.open = !is_final;
            self.message = self.message.saturating_add(length);
            self.empty += u32::from(length == 0);
            // What is whole is looked at by the library, at once.
            let is_whole = kind == 1 && is_final && length <= there as u64;
            self.look = self.in_text && !is_whole;
        } else {
            self.look = false;
        }
        if self.look {
            self.mask = [0; 4];
            if self.header[1] & 0x80 != 0 {
                self.mask.copy_from_slice(&self.header[size - 4..size]);
            }
            self.mask_at = 0;
        }
        let is_data = kind < 8;
        let Some(seen) = &mut self.stranger else {
            if is_data && self.message > self.most {
                return Err(io::Error::other(TOO_LONG));
            }
            if self.empty > EMPTY_FRAGMENTS {
                return Err(io::Error::other(EMPTY));
            }
            if is_data
                && self.message > UNDER_WAY_FREE
                && let Some(taken) = &mut self.taken
                && !taken.grow(self.message)
            {
                return Err(io::Error::other(CROWDED));
            }
            self.is_done();
            return Ok(());
        };
        // Empty frames count too: endless ones are no way to stay.
        *seen = seen.saturating_add(length).saturating_add(8);
        if (is_data && self.message > self.most) || *seen > PREAUTH_FRAME as u64 + 1024 {
            return Err(io::Error::other(TOO_LARGE));
        }
        Ok(())
    }

    fn text(&mut self, payload: &[u8]) -> io::Result<()> {
        let mut buffer = [0; CARRY + PIECE];
        for piece in payload.chunks(PIECE) {
            buffer[..self.carried].copy_from_slice(&self.carry[..self.carried]);
            let size = self.carried + piece.len();
            for (to, from) in buffer[self.carried..].iter_mut().zip(piece) {
                *to = from ^ self.mask[self.mask_at];
                self.mask_at = (self.mask_at + 1) % 4;
            }
            self.carried = 0;
            if let Err(error) = std::str::from_utf8(&buffer[..size]) {
                let rest = &buffer[error.valid_up_to()..size];
                if error.error_len().is_some() || rest.len() > CARRY {
                    return Err(io::Error::other(NOT_UTF8));
                }
                self.carried = rest.len();
                self.carry[..rest.len()].copy_from_slice(rest);
            }
        }
        Ok(())
    }

    /// Payload length and header size, once the length's bytes are there.
    fn announced(&self) -> Option<(u64, usize)> {
        let [_, second, rest @ ..] = &self.header;
        if self.have < 2 {
            return None;
        }
        let mask = if second & 0x80 == 0 { 0 } else { 4 };
        let wide = match second & 0x7f {
            126 => 2,
            127 => 8,
            short => return Some((u64::from(short), 2 + mask)),
        };
        if self.have < 2 + wide {
            return None;
        }
        let length = rest[..wide]
            .iter()
            .fold(0u64, |sum, byte| (sum << 8) | u64::from(*byte));
        Some((length, 2 + wide + mask))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::supervision::Allowance;

    fn frame(len: u64) -> Vec<u8> {
        header(0x82, len)
    }

    fn header(first: u8, len: u64) -> Vec<u8> {
        let mut bytes = vec![first];
        match len {
            0..126 => bytes.push(0x80 | u8::try_from(len).unwrap()),
            126..65_536 => {
                bytes.push(0x80 | 0x7e);
                bytes.extend(u16::try_from(len).unwrap().to_be_bytes());
            }
            _ => {
                bytes.push(0x80 | 0x7f);
                bytes.extend(len.to_be_bytes());
            }
        }
        bytes.extend([1, 2, 3, 4]);
        bytes
    }

    /// A masked frame.
    fn whole(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = header(first, payload.len() as u64);
        bytes.extend(
            payload
                .iter()
                .enumerate()
                .map(|(at, b)| b ^ [1, 2, 3, 4][at % 4]),
        );
        bytes
    }

    fn trusted() -> Scan {
        let mut scan = Scan::new();
        scan.trust(1 << 20, None);
        scan
    }

    #[test]
    fn a_message_holds_room_until_it_is_there_and_a_short_one_none() {
        const LONG: u64 = 600 << 10;
        let one = Allowance::of_one(&Allowance::of_all(1 << 30), 1 << 20);
        let scan = || {
            let mut scan = Scan::new();
            scan.trust(1 << 20, Some(Taken::none(one.clone())));
            scan
        };
        let (mut first, mut second) = (scan(), scan());
        first.pass(&frame(LONG)).unwrap();
        let crowded = second.pass(&frame(LONG)).unwrap_err();
        assert_eq!(crowded.to_string(), CROWDED);
        let mut second = scan();
        second.pass(&whole(0x82, &[0; 1024])).unwrap();
        first.pass(&vec![0; 600 << 10]).unwrap();
        second.pass(&frame(LONG)).unwrap();
        // Its parts are one message, also where a ping stands between them; and who is gone holds nothing.
        drop(second);
        let (mut first, mut second) = (scan(), scan());
        for _ in 0..3 {
            first.pass(&whole(0x02, &vec![0; 300 << 10])).unwrap();
            first.pass(&whole(0x89, b"")).unwrap();
            let crowded = second.pass(&frame(800 << 10)).unwrap_err();
            assert_eq!(crowded.to_string(), CROWDED);
            second = scan();
            first.pass(&whole(0x80, b"")).unwrap();
        }
        second.pass(&frame(1 << 20)).unwrap();
    }

    #[test]
    fn a_frame_that_is_too_large_is_stopped_at_its_header_however_it_is_cut() {
        for len in [65_537, 1 << 20, u64::MAX / 2] {
            let bytes = frame(len);
            for cut in 0..bytes.len() {
                let mut scan = Scan::new();
                let result = scan
                    .pass(&bytes[..cut])
                    .and_then(|()| scan.pass(&bytes[cut..]));
                assert!(result.is_err(), "{len} cut at {cut}");
            }
        }
    }

    #[test]
    fn what_fits_passes_and_many_small_ones_do_not() {
        Scan::new().pass(&frame(65_536)).unwrap();
        let mut scan = Scan::new();
        let mut bytes = frame(60_000);
        bytes.resize(bytes.len() + 60_000, b'x');
        for chunk in bytes.chunks(7) {
            scan.pass(chunk).unwrap();
        }
        assert!(scan.pass(&frame(7_000)).is_err());
        let mut scan = Scan::new();
        let empty = frame(0);
        let passed = (0..100_000)
            .take_while(|_| scan.pass(&empty).is_ok())
            .count();
        assert!(passed < 10_000);
        let mut scan = trusted();
        (0..100_000).for_each(|_| scan.pass(&empty).unwrap());
    }

    #[test]
    fn empty_fragments_without_end_are_stopped_and_a_few_are_not() {
        let mut scan = trusted();
        for _ in 0..3 {
            scan.pass(&whole(0x01, b"")).unwrap();
            for _ in 1..EMPTY_FRAGMENTS {
                scan.pass(&whole(0x00, b"")).unwrap();
                // What stands between them is no fragment.
                scan.pass(&whole(0x89, b"")).unwrap();
            }
            scan.pass(&whole(0x80, b"x")).unwrap();
        }
        scan.pass(&whole(0x02, b"")).unwrap();
        let passed = (0..1_000)
            .take_while(|_| scan.pass(&whole(0x00, b"")).is_ok())
            .count();
        assert_eq!(passed, EMPTY_FRAGMENTS as usize - 1);
    }

    #[test]
    fn a_message_of_many_frames_is_as_long_as_all_of_them() {
        let mut scan = trusted();
        scan.pass(&frame(1 << 20)).unwrap();
        let mut scan = trusted();
        assert!(scan.pass(&frame((1 << 20) + 1)).is_err());
        let mut scan = trusted();
        scan.pass(&whole(0x02, &vec![0; 60_000])).unwrap();
        let passed = (0..100)
            .take_while(|_| scan.pass(&whole(0x00, &vec![0; 60_000])).is_ok())
            .count();
        assert_eq!(passed + 1, (1 << 20) / 60_000);
    }

    #[test]
    fn what_has_begun_is_unfinished_until_its_last_byte() {
        let mut scan = trusted();
        assert_eq!(scan.unfinished(), None);
        let bytes = [whole(0x01, b"ab"), whole(0x00, b""), whole(0x80, b"c")].concat();
        let (last, rest) = bytes.split_last().unwrap();
        for byte in rest {
            scan.pass(&[*byte]).unwrap();
            assert!(scan.unfinished().is_some());
        }
        scan.pass(&[*last]).unwrap();
        assert_eq!(scan.unfinished(), None);
    }

    #[test]
    fn wrong_text_stops_at_its_first_wrong_octet_and_no_later() {
        for (good, wrong) in [
            (
                "\u{3ba}\u{1f79}\u{3c3}\u{3bc}\u{3b5}".as_bytes(),
                &[0xf4, 0x90][..],
            ),
            (b"abc", &[0xed, 0xa0]),
            (b"", &[0xc0]),
            (b"x", &[0xe0, 0x80]),
            (b"x", &[0x80]),
            (b"x", &[0xff]),
            ("\u{1f980}".as_bytes(), &[0xf0, 0x9f, 0x41]),
        ] {
            // A frame that is not over yet: the payload goes on for long.
            let mut bytes = whole(0x81, &[good, wrong, &[b'a'; 500]].concat());
            let until = bytes.len() - 500;
            bytes.truncate(until);
            let mut scan = trusted();
            for byte in &bytes[..until - 1] {
                scan.pass(&[*byte]).unwrap();
            }
            assert!(
                scan.pass(&bytes[until - 1..]).is_err(),
                "{good:x?} {wrong:x?}"
            );
        }
    }

    #[test]
    fn text_goes_on_over_frames_and_pings_between_them_and_bytes_are_not_text() {
        let crab = "\u{1f980}".as_bytes();
        let mut scan = trusted();
        scan.pass(&whole(0x01, &crab[..1])).unwrap();
        scan.pass(&whole(0x89, &[0xff])).unwrap();
        scan.pass(&whole(0x00, &crab[1..3])).unwrap();
        scan.pass(&whole(0x80, &crab[3..])).unwrap();
        scan.pass(&whole(0x02, &[0xff])).unwrap();
        scan.pass(&whole(0x80, &[0xff])).unwrap();
        scan.pass(&whole(0x01, &crab[..1])).unwrap();
        assert!(scan.pass(&whole(0x80, b"a")).is_err());
    }

    proptest! {
        #[test]
        fn every_text_passes_however_it_is_framed_and_cut(
            text in "\\PC{0,400}", frames in proptest::collection::vec(1_usize..60, 1..8), cut in 1_usize..50,
        ) {
            let (mut bytes, mut rest, mut first) = (vec![], text.as_bytes(), 0x01);
            for size in frames {
                let (part, after) = rest.split_at(size.min(rest.len()));
                bytes.extend(whole(first, part));
                (rest, first) = (after, 0x00);
            }
            bytes.extend(whole(first | 0x80, rest));
            let mut scan = trusted();
            for part in bytes.chunks(cut) {
                prop_assert!(scan.pass(part).is_ok());
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(0_u8.., 0..400), cut in 1_usize..50) {
            let mut scan = trusted();
            for part in bytes.chunks(cut) {
                if scan.pass(part).is_err() {
                    break;
                }
            }
        }
    }
}
