//! Retention: whole segments go, oldest first, when they are old enough or too much; what they proved stays provable.
//!
//! The order, each step durable before the next: the tiles over the segments; a record in the log that says so, and a
//! checkpoint over it; what stays of them, in `retired`; then the files go. A start that finds a segment which `retired` names removes it.

use super::config::AuditConfig;
use super::cursor::Cursor;
use super::error::{AuditError, Fault};
use super::files;
use super::tiles::read_full;
use super::walk::{Buffer, Segment, SegmentEnd};
use crate::plain;
use portcullis_core::audit::retired::{self, Gone, RETIRE, UNTIL};
use portcullis_core::audit::{Body, BodyRef, Entry, Hash32, Head, Seq, TILE_WIDTH, Tile};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::ops::ControlFlow;
use std::path::Path;

/// No more segments at once: the writer reads each of them.
const AT_ONCE: usize = 4;
/// Segments that stay in any case.
const STAY: usize = 2;
const MAX_FILE: usize = 64 * 1024 * 1024;
const DAY_MS: u64 = 86_400_000;

/// What has been removed.
pub(super) fn load(dir: &Path) -> Result<Vec<Gone>, AuditError> {
    let bytes = match plain::read(&dir.join("retired"), MAX_FILE) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(AuditError::reading("what retention left", &error)),
    };
    retired::read(&bytes).map_err(|(seq, why)| {
        AuditError::Altered(Fault {
            seq,
            segment: seq,
            offset: 0,
            why: why.to_owned(),
        })
    })
}

/// The last record that is gone.
pub(super) fn until(gone: &[Gone]) -> Head {
    gone.last().map_or(Head::EMPTY, |gone| gone.last)
}

/// The first of them that have had their time. `needed`: the oldest record that rooms read back.
pub(super) fn candidates(
    dir: &Path,
    config: &AuditConfig,
    needed: Seq,
    taken: &[(String, Seq)],
    now_ms: u64,
) -> Result<Vec<Gone>, AuditError> {
    if config.keep_days == 0 && config.keep_mib == 0 {
        return Ok(Vec::new());
    }
    let segments = files::segments(dir)?;
    let size = |first: Seq| {
        let meta = fs::symlink_metadata(files::segment_path(dir, first));
        meta.map_or(0, |meta| meta.len())
    };
    let mut total: u64 = segments.iter().map(|first| size(*first)).sum();
    let mut found = Vec::new();
    for pair in segments
        .windows(2)
        .take(segments.len().saturating_sub(STAY))
    {
        let [first, next] = pair else { break };
        let last = Seq(next.0.saturating_sub(1));
        let begun = began(dir, *next)?;
        let is_old = config.keep_days > 0
            && begun.saturating_add(config.keep_days.saturating_mul(DAY_MS)) < now_ms;
        let is_much = config.keep_mib > 0 && total > config.keep_mib.saturating_mul(1 << 20);
        // Keys against running twice are read back from the segments.
        let is_needed = begun.saturating_add(config.once_ms()) >= now_ms || needed <= last;
        // Age waits for the sinks; a disk that fills does not.
        let is_old = is_old && taken.iter().all(|(_, taken)| *taken >= last);
        if !(is_old || is_much) || is_needed || found.len() == AT_ONCE {
            break;
        }
        let Some(gone) = look(dir, *first, last)? else {
            break;
        };
        total -= size(*first);
        found.push(gone);
    }
    Ok(found)
}

/// How far each sink has come. One that cannot be read has come nowhere.
pub(super) fn taken(dir: &Path, config: &AuditConfig) -> Vec<(String, Seq)> {
    let cursors = dir.with_file_name("sinks");
    let read = |name: &str| Seq(Cursor::new(&cursors, name).read().unwrap_or(0));
    let named = config.named_sinks();
    named
        .map(|(name, _)| (name.to_owned(), read(name)))
        .collect()
}

/// When a segment was begun.
fn began(dir: &Path, first: Seq) -> Result<u64, AuditError> {
    let mut at = u64::MAX;
    Segment::open(dir, first, None)?.read(&mut Buffer::new(), |passing| {
        at = passing.leaf.stamp.wall_ms;
        ControlFlow::Break(())
    })?;
    Ok(at)
}

/// Reads a segment through, and compares it with its tiles. `None`: it cannot go.
fn look(dir: &Path, first: Seq, last: Seq) -> Result<Option<Gone>, AuditError> {
    let mut segment = Segment::open(dir, first, None)?;
    let (mut head, mut marks, mut agrees) = (segment.after(), Vec::new(), true);
    let mut tile: Option<(u64, Vec<Hash32>)> = None;
    let end = segment.read(&mut Buffer::new(), |passing| {
        let index = passing.leaf.seq.0 - 1;
        let (number, at) = (index / TILE_WIDTH as u64, index % TILE_WIDTH as u64);
        if tile.as_ref().is_none_or(|(last, _)| *last != number) {
            tile = read_full(dir, Tile::full(0, number)).map(|hashes| (number, hashes));
        }
        let hash = tile.as_ref().and_then(|(_, hashes)| {
            let at = usize::try_from(at).ok()?;
            hashes.get(at)
        });
        agrees &= hash == Some(&passing.hash);
        head = Head {
            seq: passing.leaf.seq,
            hash: passing.hash,
        };
        if let BodyRef::Start { epoch, .. } | BodyRef::Carry { epoch, .. } = passing.leaf.body
            && epoch.is_some()
        {
            marks.push(passing.leaf.raw.to_vec());
        }
        if agrees {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    })?;
    let is_whole = matches!(end, SegmentEnd::Clean) && head.seq == last;
    Ok((agrees && is_whole).then_some(Gone {
        first,
        last: head,
        marks,
    }))
}

/// What the log says before they go.
pub(super) fn record(gone: &[Gone], taken: &[(String, Seq)]) -> Option<Body> {
    let (first, last) = (gone.first()?, gone.last()?);
    let mut entry = Entry::new(RETIRE)
        .with("from", first.first.to_string())
        .with(UNTIL, last.last.seq.to_string());
    let behind = taken.iter().filter(|(_, taken)| *taken < last.last.seq);
    let behind: Vec<String> = behind
        .map(|(name, taken)| format!("{name} after {taken}"))
        .collect();
    if !behind.is_empty() {
        entry = entry.with("not_taken", behind.join(", "));
    }
    Body::event(entry).ok()
}

/// Makes the tiles over these records durable: nothing else gives them any more.
pub(super) fn sync_tiles(dir: &Path, gone: &[Gone]) -> io::Result<()> {
    let (Some(first), Some(last)) = (gone.first(), gone.last()) else {
        return Ok(());
    };
    let (mut from, mut to) = (first.first.0 - 1, last.last.seq.0 - 1);
    for level in 0..8 {
        (from, to) = (from / TILE_WIDTH as u64, to / TILE_WIDTH as u64);
        let mut folders = Vec::new();
        for index in from..=to {
            let path = dir.join(Tile::full(level, index).path());
            match plain::open(File::options().read(true), &path) {
                Ok(file) => file.sync_all()?,
                // Not full yet: its hashes come from a partial tile, which was synced.
                Err(error) if error.kind() == io::ErrorKind::NotFound && level > 0 => continue,
                Err(error) => return Err(error),
            }
            let above = path.ancestors().skip(1);
            folders.extend(above.take_while(|above| *above != dir).map(Path::to_owned));
        }
        folders.sort_unstable();
        folders.dedup();
        for folder in folders {
            File::open(folder)?.sync_all()?;
        }
    }
    File::open(dir)?.sync_all()
}

/// Writes down what stays of them, and removes them.
pub(super) fn remove(dir: &Path, gone: &[Gone]) -> io::Result<()> {
    let mut bytes = Vec::new();
    for gone in gone {
        bytes.extend(gone.encode().map_err(io::Error::other)?);
    }
    let path = dir.join("retired");
    let before = match fs::symlink_metadata(&path) {
        Ok(meta) => meta.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error),
    };
    // Written anew beside it: half of an entry never stands there.
    let mut whole = plain::read(&path, MAX_FILE).unwrap_or_default();
    if whole.len() as u64 != before {
        return Err(io::Error::other("what retention left is too long"));
    }
    whole.extend_from_slice(&bytes);
    let new = dir.join("retired.new");
    let mut file = files::create_new(&new)?;
    file.write_all(&whole)?;
    file.sync_all()?;
    fs::rename(&new, &path)?;
    File::open(dir)?.sync_all()?;
    sweep(dir, until_seq(gone))
}

fn until_seq(gone: &[Gone]) -> Seq {
    until(gone).seq
}

/// Removes segments that are written down as gone.
pub(super) fn sweep(dir: &Path, until: Seq) -> io::Result<()> {
    let segments = files::segments(dir).map_err(|error| io::Error::other(error.to_string()))?;
    let mut any = false;
    for first in segments.into_iter().filter(|first| *first <= until) {
        let path = files::segment_path(dir, first);
        // What lies there in its place is nobody's to remove.
        plain::open(File::options().read(true), &path)?;
        fs::remove_file(path)?;
        any = true;
    }
    if any {
        File::open(dir)?.sync_all()?;
    }
    Ok(())
}
