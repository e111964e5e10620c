//! Reading segments through a buffer: what the start, `verify` and the queries have in common.

use super::error::{AuditError, Fault};
use super::files;
use portcullis_core::audit::{
    HEADER_BYTES, Hash32, Head, LeafRef, MAX_TORN, Scanner, SegmentHeader, Seq, Step,
};
use std::fs::File;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::path::Path;

/// Read at once; several records long, small beside the process.
const BUFFER: usize = 512 * 1024;

/// A checked record on its way past a visitor.
pub(super) struct Passing<'a> {
    pub(super) leaf: LeafRef<'a>,
    pub(super) hash: Hash32,
    /// Offset of the record in its segment.
    pub(super) offset: u64,
    /// Its size there.
    pub(super) bytes: usize,
}

/// How the reading of one segment ended.
#[derive(Debug)]
pub(super) enum SegmentEnd {
    /// Between two records.
    Clean,
    /// Inside a record; the bytes from there on.
    Torn(Fault, u64),
    Altered(Fault),
    /// The visitor had enough.
    Stopped,
}

/// One segment, read from its front.
pub(super) struct Segment {
    file: io::Take<File>,
    first: Seq,
    scan: Scanner,
    header: SegmentHeader,
}

impl Segment {
    /// Opens a segment and reads its header. `limit`: bytes behind it are not looked at (a writer may be busy there).
    pub(super) fn open(dir: &Path, first: Seq, limit: Option<u64>) -> Result<Self, AuditError> {
        let failed = |error: io::Error| AuditError::reading(&format!("segment {first}"), &error);
        let file = files::read_segment(dir, first).map_err(failed)?;
        let mut file = file.take(limit.unwrap_or(u64::MAX));
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        (&mut file)
            .take(HEADER_BYTES as u64)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        let altered = |why: String| {
            AuditError::Altered(Fault {
                seq: first,
                segment: first,
                offset: 0,
                why,
            })
        };
        let header = SegmentHeader::decode(&bytes).map_err(|error| altered(error.to_string()))?;
        if header.first() != first {
            return Err(altered(format!(
                "the file is named for record {first} and begins with {}",
                header.first()
            )));
        }
        Ok(Self {
            file,
            first,
            scan: Scanner::new(header.after, HEADER_BYTES as u64),
            header,
        })
    }

    /// The head that the segment claims to follow.
    pub(super) const fn after(&self) -> Head {
        self.header.after
    }

    /// The last good record so far, or what the segment follows.
    pub(super) const fn head(&self) -> Head {
        self.scan.head()
    }

    /// Where the last good record ends.
    pub(super) const fn offset(&self) -> u64 {
        self.scan.offset()
    }

    /// Reads on, each record past the visitor.
    pub(super) fn read(
        &mut self,
        buf: &mut Buffer,
        mut visit: impl FnMut(Passing<'_>) -> ControlFlow<()>,
    ) -> Result<SegmentEnd, AuditError> {
        let failed =
            |error: io::Error| AuditError::reading(&format!("segment {}", self.first), &error);
        buf.clear();
        loop {
            let offset = self.scan.offset();
            match self.scan.step(buf.view(), buf.eof) {
                Step::Record { leaf, hash, bytes } => {
                    let flow = visit(Passing {
                        leaf,
                        hash,
                        offset,
                        bytes,
                    });
                    buf.start += bytes;
                    if flow.is_break() {
                        return Ok(SegmentEnd::Stopped);
                    }
                }
                Step::More(_) => buf.fill(&mut self.file).map_err(failed)?,
                Step::End => return Ok(SegmentEnd::Clean),
                Step::Torn(at) => {
                    let bytes = buf.view().len() as u64;
                    return Ok(SegmentEnd::Torn(Fault::of(self.first, at), bytes));
                }
                Step::Altered(at) => return Ok(SegmentEnd::Altered(Fault::of(self.first, at))),
                Step::ZerosSoFar(at) => {
                    let fault = Fault::of(self.first, at);
                    let bytes = buf.view().len() as u64;
                    return match zeros_to_the_end(&mut self.file).map_err(failed)? {
                        Some(more) => Ok(SegmentEnd::Torn(fault, bytes + more)),
                        None => Ok(SegmentEnd::Altered(fault)),
                    };
                }
            }
        }
    }
}

/// How many bytes follow, if all are zero.
fn zeros_to_the_end(file: &mut impl Read) -> io::Result<Option<u64>> {
    let (mut block, mut count) = (vec![0; 64 * 1024], 0);
    loop {
        match file.read(&mut block)? {
            0 => return Ok(Some(count)),
            n if block[..n].iter().any(|byte| *byte != 0) => return Ok(None),
            n => count += n as u64,
        }
    }
}

/// The bytes from the scanner's offset on; one for a whole walk.
pub(super) struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    eof: bool,
}

impl Buffer {
    pub(super) fn new() -> Self {
        Self {
            bytes: vec![0; BUFFER.max(MAX_TORN)],
            start: 0,
            end: 0,
            eof: false,
        }
    }

    const fn clear(&mut self) {
        (self.start, self.end, self.eof) = (0, 0, false);
    }

    fn view(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Fills up to the brim, or to the end of the file.
    fn fill(&mut self, file: &mut impl Read) -> io::Result<()> {
        self.bytes.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        while self.end < self.bytes.len() {
            match file.read(&mut self.bytes[self.end..]) {
                Ok(0) => {
                    self.eof = true;
                    break;
                }
                Ok(n) => self.end += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
