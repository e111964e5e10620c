//! Bytes to frames and back.

use crate::frames::{Cause, Ended, Exit, Frame, Input, Size, Spawn, Stream, Value, wipe};
use crate::{MAX_FRAME, MAX_INPUT, MAX_ITEMS, MAX_NAME, MAX_NONCE, MAX_OUTPUT, SIGNALS};

const HELLO: u8 = 1;
const SPAWN: u8 = 2;
const STDIN: u8 = 3;
const RESIZE: u8 = 4;
const SIGNAL: u8 = 5;
const OUT: u8 = 6;
const ERR: u8 = 7;
const EXIT: u8 = 8;
const PING: u8 = 9;
const BYE: u8 = 10;
const WINDOW: u8 = 11;
const END: u8 = 12;
const NAMED: u8 = 13;
const REPORT: u8 = 14;

/// Kind and run number.
const HEAD: usize = 5;
/// Of a frame, all but texts and data.
const SMALL: usize = 4 + HEAD + 119;

/// Why bytes are no frame, or a frame has no bytes. A peer that sends one is not spoken to again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameError {
    /// Longer than [`MAX_FRAME`], or shorter than its own head.
    Length(u32),
    /// A kind nobody knows (or one that is reserved).
    Kind(u8),
    /// The body ends early, goes on too long, or holds a value out of range.
    Body(u8),
}

impl std::fmt::Display for FrameError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Length(length) => write!(f, "a frame of {length} bytes"),
            Self::Kind(kind) => write!(f, "a frame of unknown kind {kind}"),
            Self::Body(kind) => write!(f, "a malformed frame of kind {kind}"),
        }
    }
}

impl std::error::Error for FrameError {}

impl Frame {
    /// Appends the frame's bytes to `into`; on an error `into` is as it was.
    ///
    /// # Errors
    /// [`FrameError::Length`] where the frame would be longer than [`MAX_FRAME`].
    pub fn encode(&self, into: &mut Vec<u8>) -> Result<(), FrameError> {
        let start = into.len();
        // Room for all of it at once: a buffer that grows leaves copies of variables behind.
        match self {
            Self::Spawn { spawn, .. } => room(into, spawn.size()),
            Self::Stdin { data, .. } => room(into, 4 + HEAD + data.expose().len()),
            // Also behind such a frame.
            Self::Hello { nonce, .. } => room(into, SMALL + nonce.len()),
            Self::Named { name, .. } | Self::Report { name, .. } => room(into, SMALL + name.len()),
            Self::Output { data, .. } => room(into, SMALL + data.len()),
            _ => room(into, SMALL),
        }
        into.extend_from_slice(&[0; 4]);
        let (kind, run) = self.head();
        into.push(kind);
        put_u32(into, run);
        self.body(into);
        let length = into.len() - start - 4;
        if length > MAX_FRAME {
            wipe(&mut into[start..]);
            into.truncate(start);
            return Err(FrameError::Length(
                u32::try_from(length).unwrap_or(u32::MAX),
            ));
        }
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        into[start..start + 4].copy_from_slice(&length.to_be_bytes());
        Ok(())
    }

    const fn head(&self) -> (u8, u32) {
        match self {
            Self::Hello { .. } => (HELLO, 0),
            Self::Spawn { run, .. } => (SPAWN, *run),
            Self::Named { run, .. } => (NAMED, *run),
            Self::Report { run, .. } => (REPORT, *run),
            Self::Stdin { run, .. } => (STDIN, *run),
            Self::Resize { run, .. } => (RESIZE, *run),
            Self::Signal { run, .. } => (SIGNAL, *run),
            Self::End { run, .. } => (END, *run),
            Self::Output {
                run,
                stream: Stream::Out,
                ..
            } => (OUT, *run),
            Self::Output {
                run,
                stream: Stream::Err,
                ..
            } => (ERR, *run),
            Self::Exit { run, .. } => (EXIT, *run),
            Self::Ping { .. } => (PING, 0),
            Self::Bye => (BYE, 0),
            Self::Window { run, .. } => (WINDOW, *run),
        }
    }

    fn body(&self, into: &mut Vec<u8>) {
        match self {
            Self::Hello { proto, nonce } => {
                into.extend_from_slice(&proto.to_be_bytes());
                put_text(into, nonce);
            }
            Self::Spawn { spawn, .. } => put_spawn(into, spawn),
            Self::Named { name, .. } => put_text(into, name),
            Self::Report { name, ended, .. } => {
                put_text(into, name);
                into.push(u8::from(ended.is_some()));
                if let Some(exit) = ended {
                    put_exit(into, exit);
                }
            }
            Self::Stdin { data, .. } => into.extend_from_slice(data.expose()),
            Self::Resize { size, .. } => put_size(into, Some(*size)),
            Self::Signal { signal, .. } => into.push(*signal),
            Self::End { now, .. } => into.push(u8::from(*now)),
            Self::Output { data, .. } => into.extend_from_slice(data),
            Self::Exit { exit, .. } => put_exit(into, exit),
            Self::Ping { token } => put_u64(into, *token),
            Self::Bye => {}
            Self::Window { bytes, .. } => put_u32(into, *bytes),
        }
    }

    /// Decodes what follows a length field: kind, run, body, and nothing else.
    fn decode(bytes: &[u8]) -> Result<Self, FrameError> {
        let mut from = Reader { bytes, kind: 0 };
        let kind = from.u8()?;
        from.kind = kind;
        let run = from.u32()?;
        let frame = match kind {
            HELLO => Self::Hello {
                proto: from.u16()?,
                nonce: from.text(MAX_NONCE)?,
            },
            SPAWN => Self::Spawn {
                run,
                spawn: Box::new(from.spawn()?),
            },
            NAMED => Self::Named {
                run,
                name: from.text(MAX_NAME)?,
            },
            REPORT => Self::Report {
                run,
                name: from.text(MAX_NAME)?,
                ended: from.bool()?.then(|| from.exit()).transpose()?,
            },
            STDIN => Self::Stdin {
                run,
                data: from.input()?,
            },
            RESIZE => Self::Resize {
                run,
                size: from.size()?.ok_or(FrameError::Body(kind))?,
            },
            SIGNAL => match from.u8()? {
                signal if SIGNALS.iter().any(|(_, known)| *known == signal) => {
                    Self::Signal { run, signal }
                }
                _ => return Err(FrameError::Body(kind)),
            },
            END => Self::End {
                run,
                now: from.bool()?,
            },
            OUT => Self::Output {
                run,
                stream: Stream::Out,
                data: from.output()?,
            },
            ERR => Self::Output {
                run,
                stream: Stream::Err,
                data: from.output()?,
            },
            EXIT => Self::Exit {
                run,
                exit: from.exit()?,
            },
            PING => Self::Ping { token: from.u64()? },
            BYE => Self::Bye,
            WINDOW => Self::Window {
                run,
                bytes: from.u32()?,
            },
            _ => return Err(FrameError::Kind(kind)),
        };
        // One frame has one form: what runs over or numbers a run it does not have is refused.
        let of_the_box = matches!(kind, HELLO | PING | BYE);
        if from.bytes.is_empty() && !(of_the_box && run != 0) {
            Ok(frame)
        } else {
            Err(FrameError::Body(kind))
        }
    }
}

/// Cuts a stream of bytes into frames.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    start: usize,
    broken: Option<FrameError>,
}

impl Decoder {
    /// An empty one.
    pub const fn new() -> Self {
        Self {
            buffer: Vec::new(),
            start: 0,
            broken: None,
        }
    }

    /// Takes bytes as they come. Take every frame with [`Self::next_frame`] before pushing more: that is what bounds the memory.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.broken.is_some() {
            return;
        }
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, or none yet.
    ///
    /// # Errors
    /// Bytes that are no frame. It stays broken: the same error comes back for ever.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        if let Some(error) = self.broken {
            return Err(error);
        }
        match self.cut() {
            Ok(frame) => Ok(frame),
            Err(error) => {
                self.broken = Some(error);
                self.buffer = Vec::new();
                self.start = 0;
                Err(error)
            }
        }
    }

    /// Bytes that are held and not yet a frame.
    pub fn held(&self) -> usize {
        self.buffer.len() - self.start
    }

    fn cut(&mut self) -> Result<Option<Frame>, FrameError> {
        let bytes = &self.buffer[self.start..];
        let Some((head, rest)) = bytes.split_first_chunk::<4>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*head);
        let size = usize::try_from(length).unwrap_or(usize::MAX);
        if !(HEAD..=MAX_FRAME).contains(&size) {
            return Err(FrameError::Length(length));
        }
        let Some(body) = rest.get(..size) else {
            return Ok(None);
        };
        let frame = Frame::decode(body)?;
        let end = self.start + 4 + size;
        if matches!(frame, Frame::Spawn { .. } | Frame::Stdin { .. }) {
            wipe(&mut self.buffer[self.start..end]);
        }
        self.start = end;
        Ok(Some(frame))
    }
}

/// Room for so many bytes more; what moves for it is overwritten where it was.
fn room(into: &mut Vec<u8>, more: usize) {
    if into.capacity() - into.len() < more {
        let mut moved = Vec::with_capacity((into.len() + more).max(2 * into.capacity()));
        moved.extend_from_slice(into);
        wipe(into);
        *into = moved;
    }
}

impl Spawn {
    /// Bytes of its frame, at most.
    fn size(&self) -> usize {
        let texts = self.argv.iter().map(String::len);
        let env = self
            .env
            .iter()
            .map(|(name, value)| 4 + name.len() + value.expose().len());
        texts.chain(env).map(|len| 4 + len).sum::<usize>() + self.cwd.len() + 64
    }
}

fn put_u32(into: &mut Vec<u8>, value: u32) {
    into.extend_from_slice(&value.to_be_bytes());
}

fn put_u64(into: &mut Vec<u8>, value: u64) {
    into.extend_from_slice(&value.to_be_bytes());
}

fn put_count(into: &mut Vec<u8>, count: usize) {
    // A count that does not fit belongs to a frame that is too long and is refused as such.
    put_u32(into, u32::try_from(count).unwrap_or(u32::MAX));
}

fn put_text(into: &mut Vec<u8>, text: &str) {
    put_count(into, text.len());
    into.extend_from_slice(text.as_bytes());
}

fn put_spawn(into: &mut Vec<u8>, spawn: &Spawn) {
    put_count(into, spawn.argv.len());
    for argument in &spawn.argv {
        put_text(into, argument);
    }
    put_count(into, spawn.env.len());
    for (name, value) in &spawn.env {
        put_text(into, name);
        put_text(into, value.expose());
    }
    put_text(into, &spawn.cwd);
    put_u64(into, spawn.timeout_ms);
    put_u32(into, spawn.grace_ms);
    put_u64(into, spawn.output_cap);
    put_u32(into, spawn.open_files);
    put_u64(into, spawn.file_bytes);
    into.push(u8::from(spawn.stdin));
    put_size(into, spawn.tty);
}

/// None is 0 by 0.
fn put_size(into: &mut Vec<u8>, size: Option<Size>) {
    let Size { rows, cols } = size.unwrap_or(Size { rows: 0, cols: 0 });
    into.extend_from_slice(&rows.to_be_bytes());
    into.extend_from_slice(&cols.to_be_bytes());
}

fn put_exit(into: &mut Vec<u8>, exit: &Exit) {
    match exit.ended {
        Ended::Code(code) => into.extend_from_slice(&[0, code]),
        Ended::Signal(signal) => into.extend_from_slice(&[1, signal]),
    }
    into.push(match exit.cause {
        Cause::Itself => 0,
        Cause::TimedOut => 1,
        Cause::Cancelled => 2,
        Cause::NotStarted => 3,
        Cause::NoTerminal => 4,
    });
    for value in [
        exit.duration_ms,
        exit.user_ms,
        exit.system_ms,
        exit.dropped_out,
        exit.dropped_err,
    ] {
        put_u64(into, value);
    }
    put_u32(into, exit.swept);
}

struct Reader<'a> {
    bytes: &'a [u8],
    kind: u8,
}

impl Reader<'_> {
    const fn bad(&self) -> FrameError {
        FrameError::Body(self.kind)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let (head, rest) = self.bytes.split_first_chunk::<N>().ok_or(self.bad())?;
        self.bytes = rest;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, FrameError> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, FrameError> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, FrameError> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, FrameError> {
        self.array().map(u64::from_be_bytes)
    }

    fn bool(&mut self) -> Result<bool, FrameError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.bad()),
        }
    }

    fn size(&mut self) -> Result<Option<Size>, FrameError> {
        match (self.u16()?, self.u16()?) {
            (0, 0) => Ok(None),
            (0, _) | (_, 0) => Err(self.bad()),
            (rows, cols) => Ok(Some(Size { rows, cols })),
        }
    }

    fn input(&mut self) -> Result<Input, FrameError> {
        let data = std::mem::take(&mut self.bytes);
        if data.len() <= MAX_INPUT {
            Ok(Input::new(data.to_vec()))
        } else {
            Err(self.bad())
        }
    }

    /// A length that the frame's own remaining bytes must be able to hold, so that nothing is reserved on a peer's word.
    fn count(&mut self, most: usize) -> Result<usize, FrameError> {
        let count = usize::try_from(self.u32()?).map_err(|_| self.bad())?;
        if count <= most && count <= self.bytes.len() {
            Ok(count)
        } else {
            Err(self.bad())
        }
    }

    fn text(&mut self, most: usize) -> Result<String, FrameError> {
        self.str(most).map(str::to_owned)
    }

    fn str(&mut self, most: usize) -> Result<&'_ str, FrameError> {
        let size = self.count(most)?;
        let (text, rest) = self.bytes.split_at(size);
        self.bytes = rest;
        // NUL cannot reach execve, and a name that ends early there is not the name that was approved.
        match std::str::from_utf8(text) {
            Ok(text) if !text.contains('\0') => Ok(text),
            _ => Err(self.bad()),
        }
    }

    fn output(&mut self) -> Result<Vec<u8>, FrameError> {
        let data = std::mem::take(&mut self.bytes);
        if (1..=MAX_OUTPUT).contains(&data.len()) {
            Ok(data.to_vec())
        } else {
            Err(self.bad())
        }
    }

    fn spawn(&mut self) -> Result<Spawn, FrameError> {
        let mut argv = Vec::new();
        for _ in 0..self.count(MAX_ITEMS)? {
            argv.push(self.text(MAX_FRAME)?);
        }
        let mut env = Vec::new();
        for _ in 0..self.count(MAX_ITEMS)? {
            let name = self.text(MAX_FRAME)?;
            if name.is_empty() || name.contains('=') {
                return Err(self.bad());
            }
            env.push((name, Value::new(self.str(MAX_FRAME)?)));
        }
        let spawn = Spawn {
            argv,
            env,
            cwd: self.text(MAX_FRAME)?,
            timeout_ms: self.u64()?,
            grace_ms: self.u32()?,
            output_cap: self.u64()?,
            open_files: self.u32()?,
            file_bytes: self.u64()?,
            stdin: self.bool()?,
            tty: self.size()?,
        };
        if spawn.argv.is_empty() || spawn.timeout_ms == 0 {
            Err(self.bad())
        } else {
            Ok(spawn)
        }
    }

    fn exit(&mut self) -> Result<Exit, FrameError> {
        let ended = match (self.u8()?, self.u8()?) {
            (0, code) => Ended::Code(code),
            (1, signal @ 1..=64) => Ended::Signal(signal),
            _ => return Err(self.bad()),
        };
        let cause = match self.u8()? {
            0 => Cause::Itself,
            1 => Cause::TimedOut,
            2 => Cause::Cancelled,
            3 => Cause::NotStarted,
            4 => Cause::NoTerminal,
            _ => return Err(self.bad()),
        };
        Ok(Exit {
            ended,
            cause,
            duration_ms: self.u64()?,
            user_ms: self.u64()?,
            system_ms: self.u64()?,
            dropped_out: self.u64()?,
            dropped_err: self.u64()?,
            swept: self.u32()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text() -> impl Strategy<Value = String> {
        "[^\0]{0,40}"
    }

    fn size() -> impl Strategy<Value = Size> {
        (1..=u16::MAX, 1..=u16::MAX).prop_map(|(rows, cols)| Size { rows, cols })
    }

    fn spawn() -> impl Strategy<Value = Spawn> {
        (
            prop::collection::vec(text(), 1..8),
            prop::collection::vec(("[A-Za-z_]{1,12}", text()), 0..8),
            text(),
            (
                1..=u64::MAX,
                any::<u32>(),
                any::<u64>(),
                any::<u32>(),
                any::<u64>(),
                any::<bool>(),
                prop::option::of(size()),
            ),
        )
            .prop_map(
                |(
                    argv,
                    env,
                    cwd,
                    (timeout_ms, grace_ms, output_cap, open_files, file_bytes, stdin, tty),
                )| {
                    let env = env.into_iter();
                    let env: Vec<(String, String)> = env.collect();
                    let env = env
                        .iter()
                        .map(|(name, value)| (name.clone(), Value::new(value)));
                    let env = env.collect();
                    Spawn {
                        argv,
                        env,
                        cwd,
                        timeout_ms,
                        grace_ms,
                        output_cap,
                        open_files,
                        file_bytes,
                        stdin,
                        tty,
                    }
                },
            )
    }

    fn exit() -> impl Strategy<Value = Exit> {
        let ended = prop_oneof![
            any::<u8>().prop_map(Ended::Code),
            (1..=64_u8).prop_map(Ended::Signal)
        ];
        let cause = prop::sample::select(vec![
            Cause::Itself,
            Cause::TimedOut,
            Cause::Cancelled,
            Cause::NotStarted,
            Cause::NoTerminal,
        ]);
        (ended, cause, any::<[u64; 5]>(), any::<u32>()).prop_map(|(ended, cause, n, swept)| Exit {
            ended,
            cause,
            duration_ms: n[0],
            user_ms: n[1],
            system_ms: n[2],
            dropped_out: n[3],
            dropped_err: n[4],
            swept,
        })
    }

    fn frame() -> impl Strategy<Value = Frame> {
        let stream = prop::sample::select(vec![Stream::Out, Stream::Err]);
        prop_oneof![
            (any::<u16>(), "[0-9a-f]{0,64}")
                .prop_map(|(proto, nonce)| Frame::Hello { proto, nonce }),
            (any::<u32>(), spawn()).prop_map(|(run, spawn)| Frame::Spawn {
                run,
                spawn: Box::new(spawn)
            }),
            (any::<u32>(), prop::collection::vec(any::<u8>(), 0..2000)).prop_map(|(run, data)| {
                Frame::Stdin {
                    run,
                    data: Input::new(data),
                }
            }),
            (any::<u32>(), size()).prop_map(|(run, size)| Frame::Resize { run, size }),
            (any::<u32>(), prop::sample::select(&SIGNALS[..]))
                .prop_map(|(run, (_, signal))| Frame::Signal { run, signal }),
            (any::<u32>(), any::<bool>()).prop_map(|(run, now)| Frame::End { run, now }),
            (
                any::<u32>(),
                stream,
                prop::collection::vec(any::<u8>(), 1..2000)
            )
                .prop_map(|(run, stream, data)| Frame::Output { run, stream, data }),
            (any::<u32>(), exit()).prop_map(|(run, exit)| Frame::Exit { run, exit }),
            (any::<u32>(), text()).prop_map(|(run, name)| Frame::Named { run, name }),
            (any::<u32>(), text(), prop::option::of(exit()))
                .prop_map(|(run, name, ended)| Frame::Report { run, name, ended }),
            any::<u64>().prop_map(|token| Frame::Ping { token }),
            Just(Frame::Bye),
            (any::<u32>(), any::<u32>()).prop_map(|(run, bytes)| Frame::Window { run, bytes }),
        ]
    }

    proptest! {
        #[test]
        fn frames_survive_any_cutting(frames in prop::collection::vec(frame(), 0..8), cut in 1_usize..700) {
            let mut bytes = Vec::new();
            for frame in &frames {
                frame.encode(&mut bytes).unwrap();
            }
            let mut decoder = Decoder::new();
            let mut seen = Vec::new();
            for piece in bytes.chunks(cut) {
                decoder.push(piece);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    seen.push(frame);
                }
            }
            prop_assert_eq!(seen, frames);
            prop_assert_eq!(decoder.held(), 0);
        }

        #[test]
        fn garbage_never_panics_and_stays_refused(bytes in prop::collection::vec(any::<u8>(), 0..4000)) {
            let mut decoder = Decoder::new();
            decoder.push(&bytes);
            let error = loop {
                match decoder.next_frame() {
                    Ok(Some(_)) => {}
                    Ok(None) => break None,
                    Err(error) => break Some(error),
                }
            };
            if let Some(error) = error {
                decoder.push(&bytes);
                prop_assert_eq!(decoder.held(), 0);
                prop_assert_eq!(decoder.next_frame(), Err(error));
            }
        }

        #[test]
        fn one_frame_has_one_form(kind in 0_u8..16, run in 0_u32..3, body in prop::collection::vec(any::<u8>(), 0..120)) {
            let mut bytes = u32::try_from(body.len() + HEAD).unwrap().to_be_bytes().to_vec();
            bytes.push(kind);
            bytes.extend_from_slice(&run.to_be_bytes());
            bytes.extend_from_slice(&body);
            let mut decoder = Decoder::new();
            decoder.push(&bytes);
            if let Ok(Some(frame)) = decoder.next_frame() {
                let mut again = Vec::new();
                frame.encode(&mut again).unwrap();
                prop_assert_eq!(again, bytes);
            }
        }

        #[test]
        fn every_flipped_byte_is_a_frame_or_an_error(frame in frame(), at in any::<prop::sample::Index>(), bit in 0_u8..8) {
            let mut bytes = Vec::new();
            frame.encode(&mut bytes).unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            let mut decoder = Decoder::new();
            decoder.push(&bytes);
            let _ = decoder.next_frame();
        }
    }

    #[test]
    fn too_long_is_refused_by_both_ends() {
        let frame = Frame::Output {
            run: 1,
            stream: Stream::Out,
            data: vec![0; MAX_FRAME],
        };
        let mut bytes = vec![7];
        assert!(matches!(
            frame.encode(&mut bytes),
            Err(FrameError::Length(_))
        ));
        assert_eq!(bytes, [7]);
        let mut decoder = Decoder::new();
        // Refused on the length alone: four bytes are enough.
        decoder.push(&u32::MAX.to_be_bytes());
        assert_eq!(decoder.next_frame(), Err(FrameError::Length(u32::MAX)));
        let mut decoder = Decoder::new();
        decoder.push(&4_u32.to_be_bytes());
        assert_eq!(decoder.next_frame(), Err(FrameError::Length(4)));
    }

    #[test]
    fn unknown_kinds_are_refused() {
        for kind in [0, 15, 255] {
            let mut decoder = Decoder::new();
            decoder.push(&[0, 0, 0, 5, kind, 0, 0, 0, 0]);
            assert_eq!(decoder.next_frame(), Err(FrameError::Kind(kind)));
        }
    }

    #[test]
    fn only_listed_signals_and_whole_sizes_are_taken() {
        let taken = |kind: u8, body: &[u8]| {
            let mut bytes = u32::try_from(body.len() + HEAD)
                .unwrap()
                .to_be_bytes()
                .to_vec();
            bytes.extend([kind, 0, 0, 0, 1]);
            bytes.extend(body);
            let mut decoder = Decoder::new();
            decoder.push(&bytes);
            decoder.next_frame().is_ok()
        };
        let signals: Vec<u8> = (0..=255)
            .filter(|signal| taken(SIGNAL, &[*signal]))
            .collect();
        assert_eq!(signals, SIGNALS.map(|(_, number)| number));
        assert!(taken(RESIZE, &[0, 1, 0, 1]));
        for size in [[0, 0, 0, 0], [0, 0, 0, 1], [0, 1, 0, 0]] {
            assert!(!taken(RESIZE, &size));
        }
        assert!(taken(END, &[1]) && !taken(END, &[2]));
        assert!(taken(STDIN, &[]) && taken(STDIN, &vec![7; MAX_INPUT]));
        assert!(!taken(STDIN, &vec![7; MAX_INPUT + 1]));
    }

    #[test]
    fn a_count_reserves_nothing() {
        // SPAWN that says it has 4096 arguments and ends there.
        let mut decoder = Decoder::new();
        decoder.push(&[0, 0, 0, 9, SPAWN, 0, 0, 0, 1, 0, 0, 16, 0]);
        assert_eq!(decoder.next_frame(), Err(FrameError::Body(SPAWN)));
    }
}
