//! The tree's tiles: written beside the segments as they fill, read back at start, made anew where one is missing.
//!
//! Tiles follow from the segments, so they are not synced one by one: a start compares those of the last segment with its
//! records, and looks whether the older ones are there. What a start needs of the time before the last segment (the
//! partial tiles at its beginning) is synced when the segment begins.

use super::error::AuditError;
use super::files;
use super::retire;
use super::walk::{Buffer, Segment, SegmentEnd};
use crate::plain;
use portcullis_core::audit::tree::{Nodes as _, perfect_root};
use portcullis_core::audit::{
    Hash32, Head, TILE_BYTES, TILE_WIDTH, Tile, TileEdge, TileNodes, tile_bytes, tile_hashes,
};
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::ops::ControlFlow;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

/// Tiles that could not be written are kept in memory up to this number; the next start makes what is missing anew.
const WAITING: usize = 1_024;
/// A sector that did not reach the disk reads as zeros.
const SECTOR: usize = 512;

/// Roots by size.
pub(super) type Roots = BTreeMap<u64, Hash32>;

/// The tree in the writer's hand.
pub(super) struct Tree {
    dir: PathBuf,
    edge: TileEdge,
    /// Full tiles that are not in their files yet.
    waiting: Vec<(Tile, Vec<u8>)>,
    /// There were more than are kept, and nothing could be written yet.
    lost: bool,
}

impl Tree {
    /// The tree of the log whose `leaves` are those behind `base`, and its roots at the sizes that are wanted, where they
    /// passed. `None`: what is on the disk does not give it, so [`Self::rebuild`] must. Nothing is written before
    /// [`Self::flush`].
    pub(super) fn open(
        dir: &Path,
        base: Head,
        leaves: &[Hash32],
        wanted: &[u64],
    ) -> Option<(Self, Roots)> {
        let edge = TileEdge::load(base.seq.0, |tile| read_front(dir, tile))?;
        let mut tree = Self {
            dir: dir.to_owned(),
            edge,
            waiting: Vec::new(),
            lost: false,
        };
        let mut roots = Roots::new();
        for leaf in leaves {
            tree.push_compared(*leaf);
            tree.note(wanted, &mut roots);
        }
        Some((tree, roots))
    }

    fn note(&self, wanted: &[u64], roots: &mut Roots) {
        let size = self.edge.size();
        if wanted.contains(&size) {
            roots.insert(size, self.edge.root());
        }
    }

    /// The tree out of all segments, up to `head`. Each tile that is missing or not right is written, if `writes` says that
    /// the log is known to be ours; else none before [`Self::flush`], and what was too much for that by the next call.
    pub(super) fn rebuild(
        dir: &Path,
        head: Head,
        wanted: &[u64],
        writes: bool,
    ) -> Result<(Self, Roots), AuditError> {
        let until = retire::until(&retire::load(dir)?).seq;
        let mut segments = files::segments(dir)?;
        // What retention has removed is in the tiles alone.
        segments.retain(|first| *first > until);
        let gone = segments
            .first()
            .map_or(0, |first| first.0.saturating_sub(1));
        let edge = TileEdge::load(gone, |tile| read_front(dir, tile)).ok_or_else(|| {
            AuditError::Unreadable(format!(
                "the tiles over the {gone} records that retention has removed are not there"
            ))
        })?;
        let mut tree = Self {
            dir: dir.to_owned(),
            edge,
            waiting: Vec::new(),
            lost: false,
        };
        let (mut buf, mut roots) = (Buffer::new(), Roots::new());
        for first in segments {
            let end = Segment::open(dir, first, None)?.read(&mut buf, |passing| {
                if tree.edge.size() == head.seq.0 {
                    return ControlFlow::Break(());
                }
                tree.push_compared(passing.hash);
                tree.note(wanted, &mut roots);
                if tree.waiting.len() >= WAITING {
                    if writes {
                        tree.flush();
                    } else {
                        tree.waiting.clear();
                        tree.lost = true;
                    }
                }
                ControlFlow::Continue(())
            })?;
            // A torn end is cut off before this, and what is behind the head is not read.
            if let SegmentEnd::Altered(fault) | SegmentEnd::Torn(fault, _) = end
                && tree.edge.size() < head.seq.0
            {
                return Err(AuditError::Altered(fault));
            }
        }
        if writes {
            tree.flush();
        }
        if tree.edge.size() == head.seq.0 {
            Ok((tree, roots))
        } else {
            let size = tree.edge.size();
            Err(AuditError::Unreadable(format!(
                "the records for the tree end at {size}, not at {}",
                head.seq
            )))
        }
    }

    /// Adds a leaf whose tile may be on the disk already.
    fn push_compared(&mut self, leaf: Hash32) {
        let (dir, waiting) = (&self.dir, &mut self.waiting);
        self.edge.push(leaf, |tile, hashes| {
            let bytes = tile_bytes(hashes);
            let found = plain::read(&dir.join(tile.path()), bytes.len() + 1);
            if found.is_ok_and(|found| found == bytes) {
                return;
            }
            waiting.push((tile, bytes));
        });
    }

    /// Adds a leaf. [`Self::flush`] writes what it fills.
    pub(super) fn push(&mut self, leaf: Hash32) {
        let waiting = &mut self.waiting;
        self.edge.push(leaf, |tile, hashes| {
            if waiting.len() < WAITING {
                waiting.push((tile, tile_bytes(hashes)));
            }
        });
    }

    /// Writes the tiles that are full. What fails is tried again with the next one; no record waits for it.
    pub(super) fn flush(&mut self) {
        let dir = &self.dir;
        let mut failed = None;
        self.waiting.retain(|(tile, bytes)| {
            if failed.is_some() {
                return true;
            }
            failed = write(dir, *tile, bytes, false).err();
            failed.is_some()
        });
        if let Some(error) = failed {
            tracing::warn!(%error, "a tile of the audit log cannot be written yet");
        }
    }

    /// Makes the edge durable as partial tiles: what a start needs that reads no further back.
    pub(super) fn keep(&self) -> io::Result<()> {
        for (tile, hashes) in self.edge.partial() {
            write(&self.dir, tile, &tile_bytes(hashes), true)?;
        }
        Ok(())
    }

    /// The root.
    pub(super) fn root(&self) -> Hash32 {
        self.edge.root()
    }

    /// The edge.
    pub(super) const fn edge(&self) -> &TileEdge {
        &self.edge
    }

    /// Whether every full tile before the edge has a file of the right size.
    pub(super) fn is_whole(&self) -> bool {
        let mut rows = self.edge.size();
        let all = |level| {
            rows /= 256;
            (0..rows).all(|index| {
                let path = self.dir.join(Tile::full(level, index).path());
                let found = fs::symlink_metadata(path);
                found.is_ok_and(|meta| meta.is_file() && meta.len() == TILE_BYTES as u64)
            })
        };
        !self.lost && (0..8).all(all)
    }
}

/// A link in the place of a folder of tiles would have them written elsewhere. Those below are looked at when they are.
pub(super) fn check_folders(dir: &Path) -> Result<(), AuditError> {
    let above = dir.join("tile");
    files::has_folder(&above)?;
    (0..8).try_for_each(|level| files::has_folder(&above.join(level.to_string())).map(drop))
}

/// Makes the folders between the log's own and this one, but not the log's own: without it nothing may be recorded.
fn make_folders(dir: &Path, folder: &Path) -> io::Result<()> {
    if folder == dir || plain::is_folder(folder)? {
        return Ok(());
    }
    make_folders(dir, folder.parent().unwrap_or(dir))?;
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Writes a tile beside its name, then under it; older partial ones of the same tile go.
fn write(dir: &Path, tile: Tile, bytes: &[u8], sync: bool) -> io::Result<()> {
    let path = dir.join(tile.path());
    let folder = path.parent().unwrap_or(dir);
    make_folders(dir, folder)?;
    let new = path.with_extension("new");
    let mut file = files::create_new(&new)?;
    file.write_all(bytes)?;
    if sync {
        file.sync_all()?;
    }
    fs::rename(&new, &path)?;
    if sync {
        let folders = folder
            .ancestors()
            .take_while(|above| above.starts_with(dir));
        for above in folders {
            File::open(above)?.sync_all()?;
        }
    }
    // What goes is of no more use; it is no harm if it stays.
    if tile.is_full() {
        let _ = fs::remove_dir_all(path.with_extension("p"));
    } else {
        for old in fs::read_dir(folder)?.flatten() {
            if old.path() != path {
                let _ = fs::remove_file(old.path());
            }
        }
    }
    Ok(())
}

/// The hashes of a tile's file as they are.
fn read(dir: &Path, tile: Tile) -> io::Result<Vec<u8>> {
    plain::read(&dir.join(tile.path()), TILE_BYTES + 1)
}

/// The hashes of a full tile.
pub(super) fn read_full(dir: &Path, tile: Tile) -> Option<Vec<Hash32>> {
    let bytes = read(dir, tile).ok()?;
    (bytes.len() == tile.bytes()).then(|| tile_hashes(&bytes))?
}

/// The first hashes of a tile, from whatever file has them: the full one, or a partial one that is wide enough.
pub(super) fn read_front(dir: &Path, tile: Tile) -> Option<Vec<Hash32>> {
    let full = Tile::full(tile.level, tile.index);
    let mut hashes = read_full(dir, full).or_else(|| {
        let widths = fs::read_dir(dir.join(full.path()).with_extension("p")).ok()?;
        let widths = widths.flatten().filter_map(|entry| {
            let width: u16 = entry.file_name().to_str()?.parse().ok()?;
            (width >= tile.width).then_some(width)
        });
        let wide = Tile {
            width: widths.max()?,
            ..tile
        };
        read_full(dir, wide)
    })?;
    hashes.truncate(usize::from(tile.width));
    Some(hashes)
}

/// Compares the tiles on the disk with the records as they pass.
pub(super) struct Compare {
    dir: PathBuf,
    /// The tiles that lie there and were not looked at yet: full ones and partial ones, by place.
    found: BTreeMap<(u8, u64), Vec<u16>>,
    /// Leaves from here on may be in tiles that a crash has not let become whole: the next start makes them anew.
    settled: u64,
    /// A writer is busy: it may be further than what is read here.
    live: bool,
    missing: u64,
    fault: Option<(u64, String)>,
}

impl Compare {
    /// `settled`: the leaves before the last segment.
    pub(super) fn new(dir: &Path, settled: u64, live: bool) -> Result<Self, AuditError> {
        let mut found: BTreeMap<(u8, u64), Vec<u16>> = BTreeMap::new();
        let mut fault = None;
        let mut folders = vec![dir.join("tile")];
        check_folders(dir)?;
        while let Some(folder) = folders.pop() {
            let entries = match fs::read_dir(&folder) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(AuditError::reading("the tiles", &error)),
            };
            for entry in entries {
                let entry = entry.map_err(|error| AuditError::reading("the tiles", &error))?;
                let path = entry.path();
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    folders.push(path);
                    continue;
                }
                // What a crash left beside its name.
                if path.extension().is_some_and(|extension| extension == "new") {
                    continue;
                }
                let name = path.strip_prefix(dir).ok().and_then(Path::to_str);
                match name.and_then(Tile::of_path) {
                    Some(tile) => found
                        .entry((tile.level, tile.index))
                        .or_default()
                        .push(tile.width),
                    None => fault = Some((0, format!("{} is no tile", path.display()))),
                }
            }
        }
        Ok(Self {
            dir: dir.to_owned(),
            found,
            settled,
            live,
            missing: 0,
            fault,
        })
    }

    /// Tiles that the next start will make anew.
    pub(super) const fn missing(&self) -> u64 {
        self.missing
    }

    /// The first leaf under the first tile that is not right, and what is wrong.
    pub(super) fn fault(&mut self) -> Option<(u64, String)> {
        self.fault.take()
    }

    /// The tiles over the first `gone` records, which are not there any more: each must be what the tile above it says, up
    /// to `edge`, which the checkpoints say.
    pub(super) fn gone(&mut self, gone: u64, edge: &TileEdge) {
        let dir = self.dir.clone();
        let mut nodes = TileNodes::new(edge, |tile| read_full(&dir, tile));
        let mut settled = BTreeMap::new();
        for index in 0..gone / TILE_WIDTH as u64 {
            if !self.found.contains_key(&(0, index)) && !self.live {
                let tile = Tile::full(0, index);
                self.note(
                    tile,
                    tile.first_leaf(),
                    "is missing, and its records are gone",
                    false,
                );
            }
        }
        self.found.retain(|(level, index), widths| {
            let end = Tile::full(*level, index.saturating_add(1)).first_leaf();
            if end > gone {
                return true;
            }
            settled.insert((*level, *index), std::mem::take(widths));
            false
        });
        for ((level, index), widths) in settled {
            let tile = Tile::full(level, index);
            let above = nodes.node(8 * (u32::from(level) + 1), index);
            let hashes = read_full(&dir, tile);
            let is_right = above.is_some() && hashes.as_deref().and_then(perfect_root) == above;
            if is_right {
                self.compare(tile, &widths, hashes.as_deref().unwrap_or_default());
            } else {
                self.note(
                    tile,
                    tile.first_leaf(),
                    "is not what the tile above it says",
                    false,
                );
            }
        }
    }

    /// A tile that the records fill.
    pub(super) fn full(&mut self, tile: Tile, hashes: &[Hash32]) {
        let widths = self.found.remove(&(tile.level, tile.index));
        let widths = widths.unwrap_or_default();
        self.missing += u64::from(!widths.contains(&tile.width));
        self.compare(tile, &widths, hashes);
    }

    /// After the last record: the partial tiles, and those that the log does not reach.
    pub(super) fn finish(&mut self, edge: &TileEdge) {
        if self.live {
            return;
        }
        for (tile, hashes) in edge.partial() {
            let widths = self.found.remove(&(tile.level, tile.index));
            let (within, beyond) = widths
                .unwrap_or_default()
                .into_iter()
                .partition::<Vec<u16>, _>(|width| *width <= tile.width);
            self.compare(tile, &within, hashes);
            if !beyond.is_empty() {
                self.found.insert((tile.level, tile.index), beyond);
            }
        }
        if !self.found.is_empty() && self.fault.is_none() {
            let why = "the log ends before what its tiles hold";
            self.fault = Some((edge.size(), why.to_owned()));
        }
    }

    fn compare(&mut self, tile: Tile, widths: &[u16], hashes: &[Hash32]) {
        for width in widths {
            let tile = Tile {
                width: *width,
                ..tile
            };
            let wanted = tile_bytes(&hashes[..usize::from(*width)]);
            match read(&self.dir, tile) {
                Ok(bytes) if bytes == wanted => {}
                Ok(bytes) => {
                    let first = bytes
                        .iter()
                        .zip(&wanted)
                        .position(|(found, wanted)| found != wanted)
                        .unwrap_or(bytes.len().min(wanted.len()));
                    let under = (first as u64 / 32) << (8 * u32::from(tile.level));
                    let at = tile.first_leaf().saturating_add(under);
                    self.note(
                        tile,
                        at,
                        "is not what the records give",
                        is_torn(&bytes, &wanted),
                    );
                }
                // The full one has taken its place while this was read.
                Err(error) if error.kind() == io::ErrorKind::NotFound && !tile.is_full() => {}
                Err(error) => self.note(tile, tile.first_leaf(), &error.to_string(), false),
            }
        }
    }

    fn note(&mut self, tile: Tile, leaf: u64, why: &str, may_be_torn: bool) {
        let end = Tile::full(tile.level, tile.index.saturating_add(1)).first_leaf();
        if may_be_torn && end > self.settled {
            self.missing += 1;
        } else if self.fault.is_none() {
            self.fault = Some((leaf, format!("{} {why}", tile.path())));
        }
    }
}

/// What a power cut leaves of a file that was not synced.
fn is_torn(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.len() <= wanted.len()
        && bytes
            .chunks(SECTOR)
            .zip(wanted.chunks(SECTOR))
            .all(|(found, wanted)| wanted.starts_with(found) || found.iter().all(|byte| *byte == 0))
}
