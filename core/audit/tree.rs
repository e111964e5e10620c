//! The Merkle tree over the leaves (RFC 6962 section 2.1, RFC 9162 section 2.1): roots, proofs, and their checking.
//!
//! The leaf with index `i` is the record with sequence `i + 1`, so a tree of size `n` is the log up to record `n`.

use super::hash::Hash32;
use sha2::{Digest, Sha256};

/// SHA-256(0x01 ‖ left ‖ right), RFC 6962 section 2.1.
pub fn node_hash(left: &Hash32, right: &Hash32) -> Hash32 {
    let mut hasher = Sha256::new();
    hasher.update([1]);
    hasher.update(left.0);
    hasher.update(right.0);
    Hash32(hasher.finalize().into())
}

/// The root of a tree without leaves: the hash of nothing.
pub fn empty_root() -> Hash32 {
    Hash32(Sha256::digest([]).into())
}

/// The right edge of a tree: the roots of the perfect subtrees that it is made of, the largest first. It is all that is
/// needed to add leaves and to know the root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edge {
    size: u64,
    roots: Vec<Hash32>,
}

impl Edge {
    /// The edge of a tree of this size, of these roots; `None`: their number does not fit.
    pub fn new(size: u64, roots: Vec<Hash32>) -> Option<Self> {
        (usize::try_from(size.count_ones()) == Ok(roots.len())).then_some(Self { size, roots })
    }

    /// The number of leaves.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Adds a leaf. `made` sees each perfect subtree that it completes, with its height: 0 for the leaf itself.
    pub fn push(&mut self, leaf: Hash32, mut made: impl FnMut(u32, &Hash32)) {
        let (mut node, mut height) = (leaf, 0);
        made(0, &node);
        while self.size >> height & 1 == 1 {
            let Some(left) = self.roots.pop() else { break };
            node = node_hash(&left, &node);
            height += 1;
            made(height, &node);
        }
        self.roots.push(node);
        self.size += 1;
    }

    /// The root of the tree.
    pub fn root(&self) -> Hash32 {
        let mut roots = self.roots.iter().rev();
        roots.next().map_or_else(empty_root, |last| {
            roots.fold(*last, |right, left| node_hash(left, &right))
        })
    }
}

/// The root of a perfect tree over so many hashes: a power of two.
pub fn perfect_root(hashes: &[Hash32]) -> Option<Hash32> {
    if !hashes.len().is_power_of_two() {
        return None;
    }
    let mut row = hashes.to_vec();
    while row.len() > 1 {
        row = row
            .chunks_exact(2)
            .map(|pair| node_hash(&pair[0], &pair[1]))
            .collect();
    }
    row.first().copied()
}

/// Where proofs get the roots of perfect subtrees from: height, and index among those of that height.
pub trait Nodes {
    /// `None`: it cannot be had, and no proof is made.
    fn node(&mut self, height: u32, index: u64) -> Option<Hash32>;
}

impl<F: FnMut(u32, u64) -> Option<Hash32>> Nodes for F {
    fn node(&mut self, height: u32, index: u64) -> Option<Hash32> {
        self(height, index)
    }
}

/// The largest power of two below `n`, which is 2 or more.
const fn split(n: u64) -> u64 {
    1 << (n - 1).ilog2()
}

/// The root over the leaves `from..to`, of which there is one at least.
fn range(nodes: &mut impl Nodes, from: u64, to: u64) -> Option<Hash32> {
    let n = to - from;
    if n.is_power_of_two() {
        // Ranges of a proof begin at a multiple of the power of two that they are filled up to.
        return nodes.node(n.trailing_zeros(), from >> n.trailing_zeros());
    }
    let middle = from + split(n);
    Some(node_hash(
        &range(nodes, from, middle)?,
        &range(nodes, middle, to)?,
    ))
}

/// The root of the tree of the first `size` leaves.
pub fn root_of(nodes: &mut impl Nodes, size: u64) -> Option<Hash32> {
    if size == 0 {
        return Some(empty_root());
    }
    range(nodes, 0, size)
}

/// The inclusion proof of the leaf `index` in the tree of `size` (RFC 9162 section 2.1.3.1), lowest hash first. `None`:
/// there is no such leaf, or a node cannot be had.
pub fn prove_inclusion(nodes: &mut impl Nodes, index: u64, size: u64) -> Option<Vec<Hash32>> {
    if index >= size {
        return None;
    }
    let (mut from, mut to, mut path) = (0, size, Vec::new());
    while to - from > 1 {
        let middle = from + split(to - from);
        if index < middle {
            path.push(range(nodes, middle, to)?);
            to = middle;
        } else {
            path.push(range(nodes, from, middle)?);
            from = middle;
        }
    }
    path.reverse();
    Some(path)
}

/// The consistency proof between the trees of `old` and of `new` leaves (RFC 9162 section 2.1.4.1), lowest hash first;
/// empty where one of them is empty or both are the same. `None`: `old` is larger, or a node cannot be had.
pub fn prove_consistency(nodes: &mut impl Nodes, old: u64, new: u64) -> Option<Vec<Hash32>> {
    if old > new {
        return None;
    }
    let mut path = Vec::new();
    if old == 0 || old == new {
        return Some(path);
    }
    let (mut from, mut to, mut whole) = (0, new, true);
    while to > old {
        let middle = from + split(to - from);
        if old <= middle {
            path.push(range(nodes, middle, to)?);
            to = middle;
        } else {
            path.push(range(nodes, from, middle)?);
            (from, whole) = (middle, false);
        }
    }
    if !whole {
        path.push(range(nodes, from, to)?);
    }
    path.reverse();
    Some(path)
}

/// Checks an inclusion proof (RFC 9162 section 2.1.3.2).
pub fn check_inclusion(
    leaf: &Hash32,
    index: u64,
    size: u64,
    path: &[Hash32],
    root: &Hash32,
) -> bool {
    if index >= size {
        return false;
    }
    let (mut fnode, mut snode, mut hash) = (index, size - 1, *leaf);
    for sibling in path {
        if snode == 0 {
            return false;
        }
        if fnode & 1 == 1 || fnode == snode {
            hash = node_hash(sibling, &hash);
            while fnode & 1 == 0 && fnode != 0 {
                fnode >>= 1;
                snode >>= 1;
            }
        } else {
            hash = node_hash(&hash, sibling);
        }
        fnode >>= 1;
        snode >>= 1;
    }
    snode == 0 && hash == *root
}

/// Checks that the tree of `new` leaves goes on from the tree of `old` leaves (RFC 9162 section 2.1.4.2). The empty tree
/// is the beginning of every tree.
pub fn check_consistency(
    old: u64,
    old_root: &Hash32,
    new: u64,
    new_root: &Hash32,
    path: &[Hash32],
) -> bool {
    if old == 0 {
        return path.is_empty() && *old_root == empty_root();
    }
    if old >= new {
        return old == new && path.is_empty() && old_root == new_root;
    }
    let mut rest = path.iter();
    let first = if old.is_power_of_two() {
        Some(old_root)
    } else {
        rest.next()
    };
    let Some(first) = first else { return false };
    let (mut fnode, mut snode) = (old - 1, new - 1);
    while fnode & 1 == 1 {
        fnode >>= 1;
        snode >>= 1;
    }
    let (mut from_old, mut from_new) = (*first, *first);
    for hash in rest {
        if snode == 0 {
            return false;
        }
        if fnode & 1 == 1 || fnode == snode {
            from_old = node_hash(hash, &from_old);
            from_new = node_hash(hash, &from_new);
            while fnode & 1 == 0 && fnode != 0 {
                fnode >>= 1;
                snode >>= 1;
            }
        } else {
            from_new = node_hash(&from_new, hash);
        }
        fnode >>= 1;
        snode >>= 1;
    }
    snode == 0 && from_old == *old_root && from_new == *new_root
}
