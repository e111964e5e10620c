//! Verifying a log without a daemon, and inside one.

use super::error::{AuditError, Fault};
use super::files;
use super::walk::{Buffer, Segment, SegmentEnd};
use portcullis_core::audit::{BodyRef, Head, Seq};
use serde::Serialize;
use std::ops::ControlFlow;
use std::path::Path;

/// What a full reading of the log found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// No break was found. (A cut exactly between two records at the very end needs an outside head to be found.)
    pub intact: bool,
    /// Records that were checked, up to the first break.
    pub records: u64,
    /// Intents among them.
    pub intents: u64,
    /// Segments that were opened.
    pub segments: u64,
    /// Bytes that were checked.
    pub bytes: u64,
    /// The last good record.
    pub head: Head,
    /// The first break: everything from there on proves nothing.
    pub first_break: Option<Fault>,
    /// The log ends inside a record: what a crash leaves, never acknowledged. The next start cuts it off and says so.
    pub torn: Option<Fault>,
}

/// How far a running writer vouches for the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Horizon {
    /// The newest durable record.
    pub head: Head,
    /// The segment that has it.
    pub segment: Seq,
    /// The durable bytes of that segment.
    pub len: u64,
}

/// Reads the whole log and checks every byte of it. Needs no daemon and takes no lock: beside a running daemon the end
/// may look torn.
///
/// # Errors
/// The directory or a file cannot be read; what is wrong with their bytes is in the report.
pub fn verify_dir(dir: &Path) -> Result<VerifyReport, AuditError> {
    verify(dir, None)
}

/// As [`verify_dir`]; with a horizon the log must reach it, and what is behind it is not looked at.
pub(super) fn verify(dir: &Path, horizon: Option<Horizon>) -> Result<VerifyReport, AuditError> {
    let mut report = VerifyReport {
        intact: false,
        records: 0,
        intents: 0,
        segments: 0,
        bytes: 0,
        head: Head::EMPTY,
        first_break: None,
        torn: None,
    };
    let mut segments = files::segments(dir)?;
    segments.retain(|first| horizon.is_none_or(|horizon| *first <= horizon.segment));
    let mut buf = Buffer::new();
    for (index, first) in segments.iter().enumerate() {
        let last = index + 1 == segments.len();
        let fault = |seq, offset, why: String| Fault {
            seq,
            segment: *first,
            offset,
            why,
        };
        let expected = report.head.next();
        if *first != expected {
            let why = format!("the segment that begins with record {expected} is missing");
            report.first_break = Some(fault(expected, 0, why));
            break;
        }
        let limit = horizon
            .filter(|horizon| horizon.segment == *first)
            .map(|horizon| horizon.len);
        let mut segment = match Segment::open(dir, *first, limit) {
            Ok(segment) => segment,
            Err(AuditError::Altered(fault)) => {
                report.first_break = Some(fault);
                break;
            }
            Err(error) => return Err(error),
        };
        report.segments += 1;
        if segment.after() != report.head {
            let why = "the segment does not follow the one before it".to_owned();
            report.first_break = Some(fault(*first, 0, why));
            break;
        }
        let end = segment.read(&mut buf, |passing| {
            report.records += 1;
            report.intents += u64::from(matches!(passing.leaf.body, BodyRef::Intent(_)));
            ControlFlow::Continue(())
        })?;
        report.head = segment.head();
        report.bytes += segment.offset();
        match end {
            SegmentEnd::Clean | SegmentEnd::Stopped => {}
            SegmentEnd::Torn(fault, _) if last && horizon.is_none() => report.torn = Some(fault),
            SegmentEnd::Torn(fault, _) | SegmentEnd::Altered(fault) => {
                report.first_break = Some(fault);
                break;
            }
        }
    }
    if let Some(horizon) = horizon
        && report.first_break.is_none()
        && report.head != horizon.head
    {
        report.first_break = Some(Fault {
            seq: report.head.next(),
            segment: horizon.segment,
            offset: horizon.len,
            why: format!(
                "the log ends before record {}, which was written",
                horizon.head.seq
            ),
        });
    }
    report.intact = report.first_break.is_none();
    Ok(report)
}
