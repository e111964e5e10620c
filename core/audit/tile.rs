//! The tree cut into tiles (C2SP tlog-tiles): 256 hashes each, a file each.
//!
//! A tile of level `L` holds the roots of perfect subtrees of height `8 L`; level 0 holds leaf hashes. Tiles follow from
//! the segments and are never believed where the two differ.

use super::hash::Hash32;
use super::tree::{Edge, Nodes, perfect_root};

/// Hashes of a full tile.
pub const TILE_WIDTH: usize = FULL as usize;
const FULL: u16 = 256;
/// Bytes of a full tile.
pub const TILE_BYTES: usize = TILE_WIDTH * 32;
/// The height of the tree in a tile.
const HEIGHT: u32 = 8;
/// So many levels hold all leaves that a u64 can count.
const LEVELS: u8 = 8;

/// Which tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tile {
    /// Its level.
    pub level: u8,
    /// Its number in the level.
    pub index: u64,
    /// Hashes in it: 256, or fewer where it is a partial one.
    pub width: u16,
}

impl Tile {
    /// A full tile.
    pub const fn full(level: u8, index: u64) -> Self {
        Self {
            level,
            index,
            width: FULL,
        }
    }

    /// Whether it will not change any more.
    pub fn is_full(&self) -> bool {
        usize::from(self.width) == TILE_WIDTH
    }

    /// Its size in bytes.
    pub fn bytes(&self) -> usize {
        usize::from(self.width) * 32
    }

    /// The index of the first leaf under it.
    pub fn first_leaf(&self) -> u64 {
        let shift = HEIGHT * (u32::from(self.level) + 1);
        self.index.checked_shl(shift).unwrap_or(u64::MAX)
    }

    /// The path below the log's folder: `tile/0/x001/x234/067`, partial ones with `.p/W` behind it.
    pub fn path(&self) -> String {
        let mut groups = format!("{:03}", self.index % 1000);
        let mut rest = self.index / 1000;
        while rest > 0 {
            groups = format!("x{:03}/{groups}", rest % 1000);
            rest /= 1000;
        }
        let level = self.level;
        if self.is_full() {
            format!("tile/{level}/{groups}")
        } else {
            format!("tile/{level}/{groups}.p/{}", self.width)
        }
    }

    /// Reads such a path; each tile has one.
    pub fn of_path(path: &str) -> Option<Self> {
        let (level, rest) = path.strip_prefix("tile/")?.split_once('/')?;
        let level: u8 = level.parse().ok().filter(|level| *level < LEVELS)?;
        let (groups, width) = match rest.split_once(".p/") {
            Some((groups, width)) => (groups, width.parse().ok()?),
            None => (rest, FULL),
        };
        let mut index: u64 = 0;
        for group in groups.split('/') {
            let digits = group.trim_start_matches('x');
            let digit = |byte: u8| byte.is_ascii_digit();
            if digits.len() != 3 || !digits.bytes().all(digit) {
                return None;
            }
            let group: u64 = digits.parse().ok()?;
            index = index.checked_mul(1000)?.checked_add(group)?;
        }
        let tile = Self {
            level,
            index,
            width,
        };
        let fits = (1..=TILE_WIDTH).contains(&usize::from(width));
        (fits && tile.path() == path).then_some(tile)
    }
}

/// The hashes in a tile's file; `None`: not a number of hashes that a tile may have.
pub fn tile_hashes(bytes: &[u8]) -> Option<Vec<Hash32>> {
    let (hashes, rest) = bytes.as_chunks::<32>();
    (rest.is_empty() && (1..=TILE_WIDTH).contains(&hashes.len()))
        .then(|| hashes.iter().copied().map(Hash32).collect())
}

/// A tile's file.
pub fn tile_bytes(hashes: &[Hash32]) -> Vec<u8> {
    hashes.iter().flat_map(|hash| hash.0).collect()
}

/// The right edge of the tree with the hashes of each level's last tile, as long as that is not full.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TileEdge {
    edge: Edge,
    /// By level; rising, and none is full.
    levels: Vec<Vec<Hash32>>,
}

impl TileEdge {
    /// The number of leaves.
    pub const fn size(&self) -> u64 {
        self.edge.size()
    }

    /// The root.
    pub fn root(&self) -> Hash32 {
        self.edge.root()
    }

    /// Adds a leaf; `full` gets each tile that it fills.
    pub fn push(&mut self, leaf: Hash32, mut full: impl FnMut(Tile, &[Hash32])) {
        let size = self.edge.size() + 1;
        let levels = &mut self.levels;
        self.edge.push(leaf, |height, node| {
            if height % HEIGHT != 0 {
                return;
            }
            let level = (height / HEIGHT) as usize;
            if levels.len() == level {
                levels.push(Vec::with_capacity(TILE_WIDTH));
            }
            let row = &mut levels[level];
            row.push(*node);
            if row.len() == TILE_WIDTH {
                let index = (size >> (height + HEIGHT)) - 1;
                #[expect(
                    clippy::cast_possible_truncation,
                    reason = "a tree of u64 leaves has 8 levels"
                )]
                full(Tile::full(level as u8, index), row);
                row.clear();
            }
        });
    }

    /// The partial tiles of this size.
    pub fn partial(&self) -> impl Iterator<Item = (Tile, &[Hash32])> {
        let rows = (0_u8..).zip(&self.levels);
        rows.filter(|(_, row)| !row.is_empty())
            .map(|(level, row)| (partial_of(self.size(), level, row.len()), row.as_slice()))
    }

    /// The edge of a tree of this size, read back. `read` gives the first so many hashes of a tile.
    pub fn load(size: u64, mut read: impl FnMut(Tile) -> Option<Vec<Hash32>>) -> Option<Self> {
        let (mut levels, mut roots) = (Vec::new(), Vec::new());
        for level in (0..LEVELS).rev() {
            let rows = size >> (HEIGHT * u32::from(level));
            if rows == 0 {
                continue;
            }
            let count = usize::try_from(rows % TILE_WIDTH as u64).ok()?;
            let mut row = Vec::new();
            if count > 0 {
                row = read(partial_of(size, level, count))?;
                if row.len() != count {
                    return None;
                }
            }
            let mut rest = row.as_slice();
            for bit in (0..HEIGHT).rev().filter(|bit| count >> bit & 1 == 1) {
                let (front, behind) = rest.split_at_checked(1 << bit)?;
                roots.push(perfect_root(front)?);
                rest = behind;
            }
            row.reserve_exact(TILE_WIDTH - row.len());
            levels.insert(0, row);
        }
        let edge = Edge::new(size, roots)?;
        Some(Self { edge, levels })
    }

    /// The hashes of this edge's own tile, if that is the one.
    fn row(&self, level: u8, index: u64) -> Option<&[Hash32]> {
        let row = self.levels.get(usize::from(level))?;
        let own = self.size() >> (HEIGHT * (u32::from(level) + 1));
        (index == own).then_some(row.as_slice())
    }
}

/// The last tile of a level in a tree of this size, with so many hashes.
fn partial_of(size: u64, level: u8, width: usize) -> Tile {
    let shift = HEIGHT * (u32::from(level) + 1);
    Tile {
        level,
        index: size.checked_shr(shift).unwrap_or(0),
        width: u16::try_from(width).unwrap_or(u16::MAX),
    }
}

/// Nodes out of tiles: the full ones are read, the others are the edge's.
pub struct TileNodes<'a, R> {
    edge: &'a TileEdge,
    read: R,
    last: Option<(Tile, Vec<Hash32>)>,
}

impl<'a, R: FnMut(Tile) -> Option<Vec<Hash32>>> TileNodes<'a, R> {
    /// `read` gives a full tile's hashes.
    pub const fn new(edge: &'a TileEdge, read: R) -> Self {
        Self {
            edge,
            read,
            last: None,
        }
    }
}

impl<R: FnMut(Tile) -> Option<Vec<Hash32>>> Nodes for TileNodes<'_, R> {
    fn node(&mut self, height: u32, index: u64) -> Option<Hash32> {
        let (level, above) = (u8::try_from(height / HEIGHT).ok()?, height % HEIGHT);
        let first = index.checked_shl(above)?;
        let (number, at) = (
            first / TILE_WIDTH as u64,
            usize::try_from(first % TILE_WIDTH as u64).ok()?,
        );
        if let Some(row) = self.edge.row(level, number) {
            return perfect_root(row.get(at..at + (1 << above))?);
        }
        let tile = Tile::full(level, number);
        if self.last.as_ref().is_none_or(|(last, _)| *last != tile) {
            let hashes = (self.read)(tile)?;
            self.last = Some((tile, hashes));
        }
        let row = &self.last.as_ref()?.1;
        perfect_root(row.get(at..at + (1 << above))?)
    }
}
