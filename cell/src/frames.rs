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
    /// Host to cell: 15 ends the run (TERM, grace, KILL), 9 ends it at once, any other goes to the leader's process group.
    Signal {
        /// The run.
        run: u32,
        /// Signal number, 1 to 64.
        signal: u8,
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
    /// Host to cell: the run may send this many more bytes of output.
    Window {
        /// The run.
        run: u32,
        /// Bytes to add to its credit.
        bytes: u32,
    },
}

/// An output stream of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// What to start, and its limits.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Spawn {
    /// Command and arguments; the first is looked for in PATH of `env` unless it holds a slash.
    pub argv: Vec<String>,
    /// The command's whole environment.
    pub env: Vec<(String, String)>,
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
