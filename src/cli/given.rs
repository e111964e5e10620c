//! What `portcullis exec -i` and `-t` give to the command: our standard input, piece by piece, and a terminal's size.
//!
//! One piece is under way at a time. Its answer says that the gateway has read it, so that neither end waits for the other to read while
//! both write.

use std::io::{ErrorKind, IsTerminal as _, Read};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use portcullis_core::codes;
use portcullis_core::protocol::frame::ErrorBody;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use serde_json::{Map, Value, json};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::args::ExecArgs;
use super::failure::Failure;
use super::out::note;
use crate::client::Client;
use crate::show::text::clean;
use crate::show::value::number;

/// Most bytes of one piece, as the wire has it.
const PIECE: usize = 32 * 1024;
/// Smallest size that a terminal without one has.
const SIZE: (u16, u16) = (24, 80);

/// What comes next from our side.
pub enum Next {
    /// Bytes; none: that was all.
    Piece(Option<Vec<u8>>),
    /// Our terminal has another size.
    Resized,
    /// We are told to end, by this signal.
    End(u8),
}

struct Sending {
    request: String,
    /// Where it begins.
    offset: u64,
    data: Vec<u8>,
    eof: bool,
}

/// What is given to one run.
pub struct Given {
    pieces: Option<mpsc::Receiver<Vec<u8>>>,
    /// Bytes that the gateway took.
    offset: u64,
    sending: Option<Sending>,
    terminal: Option<Terminal>,
    /// In place of our standard input.
    source: Option<Box<dyn Read + Send>>,
}

/// Ours, for a run on one.
struct Terminal {
    size: (u16, u16),
    raw: Option<Raw>,
    resized: Signal,
    /// With the numbers that a shell adds to 128.
    ends: [(u8, Signal); 2],
}

impl Given {
    /// As the arguments say.
    ///
    /// # Errors
    /// `-t` without a terminal.
    pub fn of(args: &ExecArgs, json: bool) -> Result<Self, Failure> {
        let invalid = |text: &str| Failure::of(codes::INVALID_PARAMS, text);
        if args.tty && !std::io::stdin().is_terminal() {
            return Err(invalid("-t needs a terminal, and standard input is none")
                .hint("`-i` alone passes a pipe or a file to the command"));
        }
        if args.tty && json {
            return Err(invalid("-t shows a terminal, and --json shows none of it"));
        }
        let no_signals = |e: std::io::Error| Failure::of(codes::INTERNAL, e.to_string());
        let terminal = if args.tty {
            let end = |kind| signal(kind).map_err(no_signals);
            Some(Terminal {
                size: size(),
                raw: None,
                resized: signal(SignalKind::window_change()).map_err(no_signals)?,
                ends: [
                    (1, end(SignalKind::hangup())?),
                    (15, end(SignalKind::terminate())?),
                ],
            })
        } else {
            None
        };
        Ok(Self {
            pieces: None,
            offset: 0,
            sending: None,
            terminal,
            source: None,
        })
    }

    /// Nothing.
    pub const fn none() -> Self {
        Self {
            pieces: None,
            offset: 0,
            sending: None,
            terminal: None,
            source: None,
        }
    }

    /// This, and not our standard input.
    pub fn from(source: impl Read + Send + 'static) -> Self {
        Self {
            source: Some(Box::new(source)),
            ..Self::none()
        }
    }

    /// Into the request to run.
    pub fn ask(&self, args: &ExecArgs, params: &mut Value) {
        if args.stdin || args.tty {
            params["stdin"] = "open".into();
        }
        let Some(terminal) = &self.terminal else {
            return;
        };
        let (rows, cols) = terminal.size;
        params["tty"] = json!({ "rows": rows, "cols": cols });
        // What the command may show depends on it. Said with -e, that stands.
        let mut env: Map<String, Value> = match params["env"].take() {
            Value::Object(env) => env,
            _ => Map::new(),
        };
        if let Ok(kind) = std::env::var("TERM") {
            env.entry("TERM").or_insert(kind.into());
        }
        params["env"] = env.into();
    }

    /// The run has begun: from now on our input is its.
    ///
    /// # Errors
    /// Our terminal cannot be given over.
    pub async fn begin(&mut self, client: &mut Client, run: &str) -> Result<(), Failure> {
        if let Some(terminal) = &mut self.terminal {
            let raw = Raw::begin();
            let raw =
                raw.map_err(|e| Failure::of(codes::INTERNAL, format!("our terminal: {e}")))?;
            terminal.raw = Some(raw);
            // A person may have been asked in between.
            self.resize(client, run).await?;
        }
        let own = || Box::new(StandardInput) as Box<dyn Read + Send>;
        self.pieces = Some(read(self.source.take().unwrap_or_else(own)));
        Ok(())
    }

    /// Waits for the next. May be dropped and called again.
    pub async fn next(&mut self) -> Next {
        let pieces = self.pieces.as_mut().filter(|_| self.sending.is_none());
        let piece = async {
            match pieces {
                Some(pieces) => Next::Piece(pieces.recv().await),
                None => std::future::pending().await,
            }
        };
        let Some(Terminal {
            resized,
            ends: [(hangup, on_hangup), (term, on_term)],
            ..
        }) = &mut self.terminal
        else {
            return piece.await;
        };
        tokio::select! {
            piece = piece => piece,
            _ = resized.recv() => Next::Resized,
            _ = on_hangup.recv() => Next::End(*hangup),
            _ = on_term.recv() => Next::End(*term),
        }
    }

    /// Tells the run our terminal's size, where it has changed.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn resize(&mut self, client: &mut Client, run: &str) -> Result<(), Failure> {
        let Some(terminal) = &mut self.terminal else {
            return Ok(());
        };
        let now = size();
        if terminal.raw.is_none() || now == std::mem::replace(&mut terminal.size, now) {
            return Ok(());
        }
        let (rows, cols) = now;
        let params = json!({ "runId": run, "rows": rows, "cols": cols });
        // Refused, the run is over, or its end comes.
        client.send("exec.resize", params).await.map(drop)
    }

    /// Sends a piece; nothing: that was all.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn send(
        &mut self,
        client: &mut Client,
        run: &str,
        piece: Option<Vec<u8>>,
    ) -> Result<(), Failure> {
        let eof = piece.is_none();
        if eof {
            self.pieces = None;
        }
        self.put(client, run, piece.unwrap_or_default(), eof).await
    }

    async fn put(
        &mut self,
        client: &mut Client,
        run: &str,
        data: Vec<u8>,
        eof: bool,
    ) -> Result<(), Failure> {
        let offset = self.offset;
        let params = json!({
            "runId": run, "offset": offset, "data": STANDARD.encode(&data), "eof": eof,
        });
        let request = client.send("exec.stdin", params).await?;
        self.sending = Some(Sending {
            request,
            offset,
            data,
            eof,
        });
        Ok(())
    }

    /// Is it the answer to a piece?
    pub fn awaits(&self, request: &str) -> bool {
        self.sending.as_ref().is_some_and(|s| s.request == request)
    }

    /// How far the piece was taken; the rest of it goes again.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn answered(
        &mut self,
        client: &mut Client,
        run: &str,
        result: Result<Value, ErrorBody>,
    ) -> Result<(), Failure> {
        let Some(sent) = self.sending.take() else {
            return Ok(());
        };
        let end = sent.offset + sent.data.len() as u64;
        let at = match &result {
            Ok(payload) => number(payload, "offset"),
            Err(error) if code(error) == codes::STDIN_FULL.name => Some(self.offset),
            Err(error) => {
                // The run's own end tells what became of it.
                if code(error) != codes::RUN_NOT_FOUND.name {
                    note(&format!(
                        "the command's input ends here: {}",
                        clean(&error.message)
                    ));
                }
                self.pieces = None;
                return Ok(());
            }
        };
        // What no gateway says that keeps to the protocol counts as all of it: nothing is sent for ever.
        let at = at
            .filter(|at| (sent.offset..=end).contains(at))
            .unwrap_or(end);
        self.offset = at;
        let begun = usize::try_from(at - sent.offset).unwrap_or(usize::MAX);
        let rest = sent.data.get(begun..).unwrap_or_default();
        if rest.is_empty() && !(sent.eof && result.is_err()) {
            return Ok(());
        }
        let rest = rest.to_vec();
        self.put(client, run, rest, sent.eof).await
    }
}

fn code(error: &ErrorBody) -> &str {
    let code = error.details.as_ref().and_then(|d| d.get("code"));
    code.and_then(Value::as_str).unwrap_or_default()
}

fn size() -> (u16, u16) {
    tcgetwinsize(std::io::stdin()).map_or(SIZE, |size| {
        let known = |of: u16, other: u16| if of == 0 { other } else { of.min(4096) };
        (known(size.ws_row, SIZE.0), known(size.ws_col, SIZE.1))
    })
}

/// Ours, without a buffer that others would share.
struct StandardInput;

impl Read for StandardInput {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        Ok(rustix::io::read(std::io::stdin(), into)?)
    }
}

/// A thread that reads, no further ahead than one piece.
fn read(mut from: Box<dyn Read + Send>) -> mpsc::Receiver<Vec<u8>> {
    let (pieces, todo) = mpsc::channel(1);
    std::thread::spawn(move || {
        let mut buffer = vec![0; PIECE];
        loop {
            match from.read(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // What cannot be read has ended.
                Ok(0) | Err(_) => return,
                Ok(count) => {
                    if pieces.blocking_send(buffer[..count].to_vec()).is_err() {
                        return;
                    }
                }
            }
        }
    });
    todo
}

/// Our terminal passes each key on while this lives: ctrl-C is the command's.
struct Raw(Termios);

impl Raw {
    fn begin() -> std::io::Result<Self> {
        let before = tcgetattr(std::io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(std::io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone shows nothing.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}
