//! Frames over a socket that never blocks.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use portcullis_cell::{Decoder, Frame, MAX_FRAME, wipe};

/// One end of a link.
pub struct Channel {
    stream: UnixStream,
    decoder: Decoder,
    out: Vec<u8>,
    sent: usize,
    scratch: Vec<u8>,
}

impl Channel {
    /// Takes a connected socket over.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            decoder: Decoder::new(),
            out: Vec::new(),
            sent: 0,
            scratch: vec![0; MAX_FRAME],
        })
    }

    /// Queues a frame; [`Self::flush`] sends it. A frame that is too long is a bug of the caller and is left out.
    pub fn queue(&mut self, frame: &Frame) {
        let _ = frame.encode(&mut self.out);
    }

    /// Bytes that wait for the peer to read.
    pub fn pending(&self) -> usize {
        self.out.len() - self.sent
    }

    /// Gives up what waits to be sent.
    pub fn forget(&mut self) {
        wipe(&mut self.out);
        self.out.clear();
        self.sent = 0;
    }

    /// Sends what the socket takes now.
    pub fn flush(&mut self) -> io::Result<()> {
        while self.pending() > 0 {
            match self.stream.write(&self.out[self.sent..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.forget();
        Ok(())
    }

    /// Reads once; false at the end of the stream.
    pub fn fill(&mut self) -> io::Result<bool> {
        match self.stream.read(&mut self.scratch) {
            Ok(0) => Ok(false),
            Ok(count) => {
                self.decoder.push(&self.scratch[..count]);
                wipe(&mut self.scratch[..count]);
                Ok(true)
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                Ok(true)
            }
            Err(error) => Err(error),
        }
    }

    /// The next whole frame, or none yet.
    pub fn next_frame(&mut self) -> io::Result<Option<Frame>> {
        self.decoder
            .next_frame()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
