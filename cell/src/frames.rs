//! What the frames say.

/// One message on the link. `run` is a number the host chose, unique on its link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// First frame of the cell on each connection; the host answers with its own.
    Hello {
        /// Version of the frames: [`crate::PROTO`].
        proto: u16,
        /// What the host gave this box at its start.
        nonce: String,
    },
    /// Host to cell: start a run.
    Spawn {
        /// The new run.
        run: u32,
        /// What to start.
        spawn: Box<Spawn>,
    },
    /// Host to cell, after SPAWN: what the host calls the run, for one that comes after it.
    Named {
        /// The run.
        run: u32,
        /// At most [`crate::MAX_NAME`] bytes.
        name: String,
    },
    /// Cell to host, after the HELLO to one that has not started the run: it goes on, or has ended while nobody was there.
    Report {
        /// The run.
        run: u32,
        /// What the host before called it.
        name: String,
        /// How it ended.
        ended: Option<Exit>,
    },
    /// Host to cell: more standard input, within the run's credit; nothing in it: that was all.
    Stdin {
        /// The run.
        run: u32,
        /// At most [`crate::MAX_INPUT`].
        data: Input,
    },
    /// Host to cell: the run's terminal has another size.
    Resize {
        /// The run.
        run: u32,
        /// Its new one.
        size: Size,
    },
    /// Host to cell: this signal for everything of the run, or for what is in the foreground of its terminal. The run goes on, if what it
    /// started does.
    Signal {
        /// The run.
        run: u32,
        /// One of [`crate::SIGNALS`].
        signal: u8,
    },
    /// Host to cell: end the run, with all that it started.
    End {
        /// The run.
        run: u32,
        /// By KILL at once; else TERM, grace, KILL.
        now: bool,
    },
    /// Cell to host: bytes the run wrote, at most [`crate::MAX_OUTPUT`], within its credit.
    Output {
        /// The run.
        run: u32,
        /// Which stream.
        stream: Stream,
        /// The bytes, never empty.
        data: Vec<u8>,
    },
    /// Cell to host: the run is over; no frame of it follows.
    Exit {
        /// The run.
        run: u32,
        /// How it ended.
        exit: Exit,
    },
    /// Host to cell; the cell sends it back.
    Ping {
        /// Comes back unchanged.
        token: u64,
    },
    /// Either side ends on purpose. From the host: end the box.
    Bye,
    /// Host to cell: the run may send this many more bytes of output. Cell to host: so many more of standard input may be sent.
    Window {
        /// The run.
        run: u32,
        /// Bytes to add to the credit.
        bytes: u32,
    },
}

/// Rows and columns of a terminal, neither of them 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Size {
    /// Lines.
    pub rows: u16,
    /// Characters of a line.
    pub cols: u16,
}

/// Standard input, which may be a password: overwritten when dropped, and not printed.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Input(Vec<u8>);

impl Input {
    /// Takes it over; the vector is not to have grown, or copies of it lie about.
    pub const fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The bytes.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Input({} bytes)", self.0.len())
    }
}

/// An output stream of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// The value of a variable, which may be a secret: overwritten when dropped, and not printed. Without a crate that wipes (this
/// library is std-only) the compiler is asked not to leave the overwriting out ([`std::hint::black_box`]).
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Value(Vec<u8>);

impl Value {
    /// A copy of exactly this size; the caller wipes its own.
    pub fn new(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }

    /// The text, for the environment of the process that it is for.
    pub fn expose(&self) -> &str {
        // Made of a text: never anything else.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl Drop for Value {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

/// Overwrites what held a secret.
pub fn wipe(bytes: &mut [u8]) {
    bytes.fill(0);
    std::hint::black_box(bytes);
}

/// What to start, and its limits.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Spawn {
    /// Command and arguments; the first is looked for in PATH of `env` unless it holds a slash.
    pub argv: Vec<String>,
    /// The command's whole environment.
    pub env: Vec<(String, Value)>,
    /// Working folder inside the box.
    pub cwd: String,
    /// Milliseconds from the start of the command to its end by force; 0 is refused: there is always a limit.
    pub timeout_ms: u64,
    /// Milliseconds between TERM and KILL when the run is cancelled.
    pub grace_ms: u32,
    /// Bytes of each stream that are passed on; more is read and counted.
    pub output_cap: u64,
    /// RLIMIT_NOFILE.
    pub open_files: u32,
    /// RLIMIT_FSIZE in bytes.
    pub file_bytes: u64,
    /// STDIN follows; else its input is at its end at once.
    pub stdin: bool,
    /// On a terminal of this size, which has both output streams in one.
    pub tty: Option<Size>,
}

impl std::fmt::Debug for Spawn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&String> = self.env.iter().map(|(name, _)| name).collect();
        f.debug_struct("Spawn")
            .field("argv", &self.argv)
            .field("env", &names)
            .field("cwd", &self.cwd)
            .field("timeout_ms", &self.timeout_ms)
            .field("stdin", &self.stdin)
            .field("tty", &self.tty)
            .finish_non_exhaustive()
    }
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// By itself, with this exit code.
    Code(u8),
    /// By this signal.
    Signal(u8),
}

/// Why it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// By itself.
    Itself,
    /// Its time was over.
    TimedOut,
    /// The host asked.
    Cancelled,
    /// It was never started: not found (127), not executable or no such folder (126), no process to be had (125).
    NotStarted,
    /// It was never started (125): it was to have a terminal, and there is none to be had in this box.
    NoTerminal,
}

/// The end of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Exit code or signal of the leader.
    pub ended: Ended,
    /// Why.
    pub cause: Cause,
    /// From the start of the command to its end, in milliseconds.
    pub duration_ms: u64,
    /// User processor time of the whole tree, in milliseconds (kernel ticks, 10 ms).
    pub user_ms: u64,
    /// System processor time of the whole tree, in milliseconds.
    pub system_ms: u64,
    /// Bytes of standard output that were not passed on.
    pub dropped_out: u64,
    /// Bytes of standard error that were not passed on.
    pub dropped_err: u64,
    /// Processes that the leader left behind and that were killed.
    pub swept: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_is_not_printed_and_what_held_it_is_overwritten() {
        let spawn = Spawn {
            argv: vec!["env".into()],
            env: vec![("TOKEN".into(), "planted".into())],
            ..Spawn::default()
        };
        let shown = format!("{spawn:?}");
        assert!(
            shown.contains("TOKEN") && !shown.contains("planted"),
            "{shown}"
        );
        assert!(!shown.contains("112"), "not as bytes either: {shown}");
        let mut bytes = *b"planted";
        wipe(&mut bytes);
        assert_eq!(bytes, [0; 7]);
        assert_eq!(spawn.env[0].1.expose(), "planted");
        let input = Frame::Stdin {
            run: 1,
            data: Input::new(b"planted".to_vec()),
        };
        let shown = format!("{input:?}");
        assert!(
            shown.contains("Input(7 bytes)") && !shown.contains("112"),
            "{shown}"
        );
    }
}
