//! A record as a message of syslog, RFC 5424, and its frame on a stream, RFC 6587 section 3.4.1.

use super::entry::OutcomeResult;
use super::export::Format;
use super::hash::Seq;
use super::record::{Body, Record};
use std::fmt::Write as _;

/// Facility "log audit" (13) times 8.
const FACILITY: u8 = 13 * 8;
/// Severities: notice, warning.
const NOTICE: u8 = 5;
const WARNING: u8 = 4;

/// One record as a message. `host` and `process` are of the gateway; what the header cannot hold is left out of them.
/// The structured data has the record's number and leaf hash, so that a receiver drops what comes twice.
pub fn message(record: &Record, line: &str, host: &str, process: u32) -> String {
    let severity = match &record.body {
        Body::Outcome { outcome, .. } if outcome.result != OutcomeResult::Ok => WARNING,
        Body::Gap { .. } | Body::Recovered { .. } => WARNING,
        _ => NOTICE,
    };
    let host: String = host
        .chars()
        .filter(|c| matches!(c, '!'..='~'))
        .take(255)
        .collect();
    let host = if host.is_empty() { "-" } else { &host };
    // 32473 is the number for examples (RFC 5612): we have none of our own.
    format!(
        "<{}>1 {} {host} portcullis {process} {} [audit@32473 seq=\"{}\" leafHash=\"{}\"] \u{feff}{line}",
        FACILITY + severity,
        timestamp(record.stamp.wall_ms),
        record.body.kind(),
        record.seq,
        record.hash,
    )
}

/// The same for a record that is too long for a datagram: which one it is, and where the rest is to be had.
pub fn too_long(record: &Record, host: &str, process: u32) -> String {
    let Seq(seq) = record.seq;
    let line = serde_json::json!({
        "seq": seq, "leafHash": record.hash, "tooLong": format!("portcullis audit show {seq}"),
    });
    message(record, &line.to_string(), host, process)
}

/// The record in the form that the sink has, as a message.
pub fn of(
    record: &Record,
    format: Format,
    size: u64,
    version: &str,
    host: &str,
    process: u32,
) -> String {
    message(record, &format.line(record, size, version), host, process)
}

/// Counts its bytes before it: on a stream nothing else tells where it ends.
pub fn framed(message: &str) -> String {
    format!("{} {message}", message.len())
}

/// RFC 3339 in UTC with milliseconds, up to the year 9999.
pub fn timestamp(wall_ms: u64) -> String {
    /// The last millisecond of the year 9999.
    const LAST: u64 = 253_402_300_799_999;
    let ms = wall_ms.min(LAST);
    let (days, of_day) = (ms / 86_400_000, ms % 86_400_000);
    // Howard Hinnant, chrono-compatible low-level date algorithms, civil_from_days; days are never negative here.
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + u64::from(month <= 2);
    let mut out = format!("{year:04}-{month:02}-{day:02}T");
    // Writing to a String cannot fail.
    let _ = write!(
        out,
        "{:02}:{:02}:{:02}.{:03}Z",
        of_day / 3_600_000,
        of_day / 60_000 % 60,
        of_day / 1_000 % 60,
        of_day % 1_000
    );
    out
}

#[cfg(test)]
mod tests {
    use super::super::{BootId, Entry, Hash32, Outcome, Stamp};
    use super::*;
    use proptest::prelude::*;

    fn record(body: Body) -> Record {
        Record {
            seq: Seq(7),
            prev: Hash32([1; 32]),
            hash: Hash32([2; 32]),
            stamp: Stamp {
                wall_ms: 1_709_210_096_789,
                mono_ms: 5,
            },
            boot: BootId([3; 16]),
            body,
        }
    }

    #[test]
    fn a_message_as_it_is() {
        let hash = Hash32([2; 32]);
        assert_eq!(
            message(&record(Body::Stop), "{}", "my host\u{e9}", 42),
            format!(
                "<109>1 2024-02-29T12:34:56.789Z myhost portcullis 42 stop [audit@32473 seq=\"7\" leafHash=\"{hash}\"] \u{feff}{{}}"
            )
        );
        let refused = Body::outcome(Seq(3), Outcome::refused("X")).unwrap();
        assert!(
            message(&record(refused), "", "", 1)
                .starts_with("<108>1 2024-02-29T12:34:56.789Z - portcullis 1 outcome ")
        );
        assert!(too_long(&record(Body::Stop), "h", 1).contains("portcullis audit show 7"));
    }

    #[test]
    fn times_of_every_kind_of_year() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (u64::MAX, "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(timestamp(ms), text);
        }
    }

    proptest! {
        #[test]
        fn what_was_recorded_forges_no_header_and_no_second_message(text in "\\PC{0,200}|[\n\r<>\\[\\] 0-9]{0,50}", host in "\\PC{0,40}") {
            let entry = Entry { object: Some(text), ..Entry::new("exec.run") };
            let record = record(Body::Intent(entry));
            for format in [Format::Jsonl, Format::Ocsf, Format::Cef] {
                let message = of(&record, format, 9, "0.1.0", &host, 1);
                prop_assert!(!message.contains(['\n', '\r']));
                // The header has six fields before the structured data, whatever the host is called.
                let fields: Vec<&str> = message.splitn(7, ' ').collect();
                prop_assert_eq!(fields[0], "<109>1");
                prop_assert_eq!(fields[3], "portcullis");
                prop_assert!(fields[6].starts_with("[audit@32473 seq=\"7\" "));
                // Read as a receiver does: the count, a blank, so many bytes, and nothing left.
                let framed = framed(&message);
                let (count, rest) = framed.split_once(' ').unwrap();
                prop_assert_eq!(count.parse::<usize>().unwrap(), rest.len());
                prop_assert_eq!(rest, message);
            }
        }
    }
}
