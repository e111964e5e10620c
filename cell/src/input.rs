//! What the host sent for a run and the command has not read: at most the credit, whether the command reads or not.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use portcullis_cell::{INPUT_WINDOW, wipe};
use rustix::termios::{LocalModes, SpecialCodeIndex, tcgetattr};

/// Credit is given back in pieces of at least this many bytes, or when nothing waits.
const GIVE_BACK: usize = 16 * 1024;
/// The credit.
const MOST: usize = INPUT_WINDOW as usize;

/// How far its end has come.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum End {
    #[default]
    Open,
    /// That was all.
    Asked,
    /// What a terminal takes for it waits to be written.
    Typed,
}

/// Standard input of one run.
#[derive(Default)]
pub struct Input {
    /// None: it has none, it was closed, or nobody reads it any more.
    to: Option<File>,
    /// Never grows beyond the credit.
    waiting: Vec<u8>,
    sent: usize,
    /// Written and not given back.
    taken: usize,
    end: End,
    terminal: bool,
    /// Was the last byte the end of a line?
    line: bool,
}

impl Input {
    /// Into a pipe, or a terminal's other end.
    pub fn new(to: OwnedFd, terminal: bool) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&to, true)?;
        Ok(Self {
            to: Some(to.into()),
            // All at once: a buffer that grows leaves copies behind.
            waiting: Vec::with_capacity(MOST),
            terminal,
            line: true,
            ..Self::default()
        })
    }

    /// What the host sent; nothing: that was all.
    ///
    /// # Errors
    /// More than its credit, or more after the end: no host of ours.
    pub fn push(&mut self, data: &[u8]) -> io::Result<()> {
        if self.to.is_none() {
            // Sent before the host could know.
            return Ok(());
        }
        let held = self.waiting.len() - self.sent + self.taken;
        if self.end != End::Open || held + data.len() > MOST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if data.is_empty() {
            self.end = End::Asked;
        }
        let left = self.waiting.len() - self.sent;
        self.waiting.copy_within(self.sent.., 0);
        wipe(&mut self.waiting[left..]);
        self.waiting.truncate(left);
        self.sent = 0;
        self.waiting.extend_from_slice(data);
        Ok(())
    }

    /// Writes what is taken now.
    pub fn write(&mut self) {
        while let Some(to) = &mut self.to {
            if self.sent == self.waiting.len() {
                wipe(&mut self.waiting);
                self.waiting.clear();
                self.sent = 0;
                match (self.end, self.terminal) {
                    (End::Open, _) => return,
                    (End::Asked, true) => {
                        // As typed: in a line that has begun the first of two only hands that over.
                        let many = if self.line { 1 } else { 2 };
                        let end = end_of_file(to).into_iter().cycle().take(many);
                        self.waiting.extend(end);
                        self.end = End::Typed;
                    }
                    (End::Asked, false) | (End::Typed, _) => self.close(),
                }
                continue;
            }
            match to.write(&self.waiting[self.sent..]) {
                Ok(count) if count > 0 => {
                    self.sent += count;
                    self.taken += count;
                    self.line = matches!(self.waiting[self.sent - 1], b'\n' | b'\r');
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // Nobody reads any more. No credit is given for it: what cannot be read is not asked for.
                Ok(_) | Err(_) => self.close(),
            }
        }
    }

    /// To be waited for, where something waits to be written.
    pub fn writable(&self) -> Option<BorrowedFd<'_>> {
        let to = self.to.as_ref()?;
        (self.sent < self.waiting.len()).then(|| to.as_fd())
    }

    /// What the host may send more.
    pub fn credit(&mut self) -> Option<u32> {
        let due = self.taken >= GIVE_BACK || (self.taken > 0 && self.waiting.is_empty());
        if !due || self.to.is_none() || self.end != End::Open {
            return None;
        }
        u32::try_from(std::mem::take(&mut self.taken)).ok()
    }

    /// Nothing more is written.
    pub fn close(&mut self) {
        self.to = None;
        wipe(&mut self.waiting);
        self.waiting.clear();
        self.sent = 0;
    }
}

/// What a terminal takes for the end of its input, unless its program reads each key.
fn end_of_file(terminal: impl AsFd) -> Option<u8> {
    let modes = tcgetattr(terminal).ok()?;
    let lines = modes.local_modes.contains(LocalModes::ICANON);
    lines.then(|| modes.special_codes[SpecialCodeIndex::VEOF])
}
