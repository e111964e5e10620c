//! The tree and its tiles, held against the RFC's reference data and two implementations of other hands.

use super::super::tree::{
    Edge, check_consistency, check_inclusion, empty_root, prove_consistency, prove_inclusion,
    root_of,
};
use super::*;
use ct_merkle::mem_backed_tree::MemoryBackedTree;
use ct_merkle::{ConsistencyProof, InclusionProof, RootHash};
use proptest::prelude::*;
use sha2::Sha256;
use std::collections::BTreeMap;

fn leaf(n: u64) -> Vec<u8> {
    n.to_be_bytes().to_vec()
}

/// A tree as the log keeps it: the edge in memory, full tiles in files.
#[derive(Default)]
struct Kept {
    edge: TileEdge,
    tiles: BTreeMap<Tile, Vec<Hash32>>,
}

impl Kept {
    fn of(size: u64) -> Self {
        let mut kept = Self::default();
        for n in 0..size {
            kept.push(leaf_hash(&leaf(n)));
        }
        kept
    }

    fn push(&mut self, hash: Hash32) {
        let tiles = &mut self.tiles;
        self.edge.push(hash, |tile, hashes| {
            assert!(tiles.insert(tile, hashes.to_vec()).is_none());
        });
    }

    fn nodes(&self) -> TileNodes<'_, impl FnMut(Tile) -> Option<Vec<Hash32>>> {
        TileNodes::new(&self.edge, |tile| self.tiles.get(&tile).cloned())
    }
}

fn theirs(size: u64) -> MemoryBackedTree<Sha256, Vec<u8>> {
    let mut tree = MemoryBackedTree::new();
    for n in 0..size {
        tree.push(leaf(n));
    }
    tree
}

fn flat(path: &[Hash32]) -> Vec<u8> {
    path.iter().flat_map(|hash| hash.0).collect()
}

#[test]
fn the_roots_are_those_of_the_rfcs_reference_tree() {
    let leaves: [&[u8]; 8] = [
        b"",
        &[0],
        &[0x10],
        &[0x20, 0x21],
        &[0x30, 0x31],
        &[0x40, 0x41, 0x42, 0x43],
        &[0x50, 0x51, 0x52, 0x53, 0x54, 0x55, 0x56, 0x57],
        &[
            0x60, 0x61, 0x62, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x6b, 0x6c, 0x6d,
            0x6e, 0x6f,
        ],
    ];
    let roots = [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ];
    assert_eq!(
        empty_root().to_string(),
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    );
    let mut edge = Edge::default();
    for (leaf, root) in leaves.iter().zip(roots) {
        edge.push(leaf_hash(leaf), |_, _| {});
        assert_eq!(edge.root().to_string(), root);
    }
}

#[test]
fn roots_and_proofs_of_every_small_tree_are_those_of_ct_merkle() {
    for size in 1..70 {
        let (ours, theirs) = (Kept::of(size), theirs(size));
        let root = theirs.root();
        assert_eq!(ours.edge.root().0[..], root.as_bytes()[..], "{size}");
        assert_eq!(root_of(&mut ours.nodes(), size), Some(ours.edge.root()));
        for index in 0..size {
            let path = prove_inclusion(&mut ours.nodes(), index, size).unwrap();
            let at = usize::try_from(index).unwrap();
            assert_eq!(flat(&path), theirs.prove_inclusion(at).as_bytes());
            let hash = leaf_hash(&leaf(index));
            assert!(check_inclusion(
                &hash,
                index,
                size,
                &path,
                &ours.edge.root()
            ));
            let proof = InclusionProof::<Sha256>::try_from_bytes(flat(&path)).unwrap();
            root.verify_inclusion(&leaf(index), index, &proof).unwrap();
        }
        for old in 1..size {
            let path = prove_consistency(&mut ours.nodes(), old, size).unwrap();
            let more = usize::try_from(size - old).unwrap();
            assert_eq!(flat(&path), theirs.prove_consistency(more).as_bytes());
            let before = Kept::of(old).edge.root();
            assert!(check_consistency(
                old,
                &before,
                size,
                &ours.edge.root(),
                &path
            ));
            let proof = ConsistencyProof::<Sha256>::try_from_bytes(flat(&path)).unwrap();
            let before = RootHash::<Sha256>::new(before.0.into(), old);
            root.verify_consistency(&before, &proof).unwrap();
        }
    }
}

/// What an independent reader of tiles sees: sizes around the ends of tiles, so that there are two levels and three.
#[test]
fn an_independent_reader_of_tiles_finds_the_same_tree_and_checks_our_proofs() {
    struct Files<'a>(&'a Kept);
    impl tlog_tiles::TileReader for Files<'_> {
        fn height(&self) -> u8 {
            8
        }
        fn read_tiles(
            &self,
            tiles: &[tlog_tiles::Tile],
        ) -> Result<Vec<Vec<u8>>, tlog_tiles::Error> {
            let read = |tile: &tlog_tiles::Tile| {
                let path = tile.path().replacen("tile/8/", "tile/", 1);
                let ours = Tile::of_path(&path).unwrap();
                let partial = self.0.edge.partial().find(|(tile, _)| *tile == ours);
                let hashes = self.0.tiles.get(&ours).map(Vec::as_slice);
                tile_bytes(hashes.or(partial.map(|(_, row)| row)).unwrap())
            };
            Ok(tiles.iter().map(read).collect())
        }
        fn save_tiles(&self, _: &[tlog_tiles::Tile], _: &[Vec<u8>]) {}
    }
    for size in [
        1,
        255,
        256,
        257,
        511,
        512,
        1000,
        65_535,
        65_536,
        65_793,
        131_072 + 300,
    ] {
        let kept = Kept::of(size);
        let root = tlog_tiles::Hash(kept.edge.root().0);
        let files = Files(&kept);
        let reader = tlog_tiles::TileHashReader::new(size, root, &files);
        assert_eq!(
            tlog_tiles::tree_hash(size, &reader).unwrap(),
            root,
            "{size}"
        );
        for index in [0, size / 2, size - 1] {
            let path = prove_inclusion(&mut kept.nodes(), index, size).unwrap();
            let theirs: tlog_tiles::RecordProof =
                path.iter().map(|hash| tlog_tiles::Hash(hash.0)).collect();
            let hash = tlog_tiles::record_hash(&leaf(index));
            tlog_tiles::check_record(&theirs, size, root, index, hash).unwrap();
        }
        for old in [1, size / 3 + 1, size] {
            let path = prove_consistency(&mut kept.nodes(), old, size).unwrap();
            let theirs: tlog_tiles::TreeProof =
                path.iter().map(|hash| tlog_tiles::Hash(hash.0)).collect();
            let before = tlog_tiles::Hash(root_of(&mut kept.nodes(), old).unwrap().0);
            tlog_tiles::check_tree(&theirs, size, root, old, before).unwrap();
        }
    }
}

#[test]
fn an_edge_read_back_goes_on_as_if_it_had_never_stopped() {
    for size in [0, 1, 255, 256, 257, 300, 65_535, 65_536, 65_537, 70_000] {
        let kept = Kept::of(size);
        let partial: BTreeMap<Tile, Vec<Hash32>> = kept
            .edge
            .partial()
            .map(|(tile, row)| (tile, row.to_vec()))
            .collect();
        let mut read = TileEdge::load(size, |tile| partial.get(&tile).cloned()).unwrap();
        assert_eq!(read.root(), kept.edge.root(), "{size}");
        // Also from what the full tile holds by now.
        let later = Kept::of(size + 600);
        let from_full = TileEdge::load(size, |tile| {
            let full = later.tiles.get(&Tile::full(tile.level, tile.index));
            let rows: Vec<_> = later.edge.partial().collect();
            let partial = rows
                .iter()
                .find(|(t, _)| (t.level, t.index) == (tile.level, tile.index));
            let row = full.map(Vec::as_slice).or(partial.map(|(_, row)| *row))?;
            Some(row[..usize::from(tile.width)].to_vec())
        });
        assert_eq!(from_full.unwrap().root(), kept.edge.root(), "{size}");
        let mut full = BTreeMap::new();
        for n in size..size + 600 {
            read.push(leaf_hash(&leaf(n)), |tile, row| {
                full.insert(tile, row.to_vec());
            });
        }
        assert_eq!(read, later.edge);
        assert!(full.iter().all(|(tile, row)| later.tiles[tile] == *row));
        if size > 0 {
            assert_eq!(TileEdge::load(size, |_| None).is_some(), partial.is_empty());
        }
    }
}

#[test]
fn a_tiles_path_is_that_of_tlog_tiles_and_there_is_one_for_each() {
    for (level, index, width) in [
        (0, 0, 256),
        (0, 67, 1),
        (1, 999, 255),
        (0, 1_000, 256),
        (3, 1_234_067, 256),
        (7, 1_234_067, 8),
    ] {
        let tile = Tile {
            level,
            index,
            width,
        };
        let theirs = tlog_tiles::Tile::new(8, level, index, width.into(), false).path();
        assert_eq!(tile.path(), theirs.replacen("tile/8/", "tile/", 1));
        assert_eq!(Tile::of_path(&tile.path()), Some(tile));
        assert_eq!(tile.bytes(), usize::from(width) * 32);
    }
    for wrong in [
        "",
        "tile/0",
        "tile/0/0",
        "tile/0/0000",
        "tile/00/000",
        "tile/8/000",
        "tile/0/000.p/0",
        "tile/0/000.p/256",
        "tile/0/000.p/257",
        "tile/0/000.p/01",
        "tile/0/001/000",
        "tile/0/x000/001",
        "tile/0/x001/x000",
        "tile/0/xx01",
        "tile/0/x18446744073709551615/000",
        "tile/0/+01",
        "tile/entries/000",
    ] {
        assert_eq!(Tile::of_path(wrong), None, "{wrong}");
    }
    assert_eq!(tile_hashes(&[0; 31]), None);
    assert_eq!(tile_hashes(&[]), None);
    assert_eq!(tile_hashes(&[0; TILE_BYTES + 32]), None);
    assert_eq!(tile_hashes(&[7; 64]), Some(vec![Hash32([7; 32]); 2]));
}

proptest! {
    #[test]
    fn a_proof_of_anything_else_is_none(
        size in 1_u64..600, other in 1_u64..600, at in any::<prop::sample::Index>(), bit in 0_usize..256,
        part in any::<prop::sample::Index>(),
    ) {
        let kept = Kept::of(size);
        let root = kept.edge.root();
        let index = at.index(usize::try_from(size).unwrap()) as u64;
        let hash = leaf_hash(&leaf(index));
        let path = prove_inclusion(&mut kept.nodes(), index, size).unwrap();
        prop_assert!(check_inclusion(&hash, index, size, &path, &root));
        // Another leaf, another place, a flipped bit, a hash more or less.
        prop_assert!(!check_inclusion(&leaf_hash(&leaf(size)), index, size, &path, &root));
        prop_assert!(!check_inclusion(&hash, (index + 1) % size.max(2), size, &path, &root));
        prop_assert!(!check_inclusion(&hash, size, size, &path, &root));
        let mut longer = path.clone();
        longer.push(root);
        prop_assert!(!check_inclusion(&hash, index, size, &longer, &root));
        if !path.is_empty() {
            prop_assert!(!check_inclusion(&hash, index, size, &path[1..], &root));
            let mut bad = path.clone();
            let which = part.index(bad.len());
            bad[which].0[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!check_inclusion(&hash, index, size, &bad, &root));
        }
        let old = other.min(size);
        let before = root_of(&mut kept.nodes(), old).unwrap();
        let path = prove_consistency(&mut kept.nodes(), old, size).unwrap();
        prop_assert!(check_consistency(old, &before, size, &root, &path));
        let mut wrong = before;
        wrong.0[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(!check_consistency(old, &wrong, size, &root, &path));
        prop_assert!(!check_consistency(old, &before, size, &wrong, &path));
        let mut longer = path.clone();
        longer.push(root);
        prop_assert!(!check_consistency(old, &before, size, &root, &longer));
        prop_assert!(!check_consistency(size + 1, &before, size, &root, &path));
        if !path.is_empty() {
            let mut bad = path.clone();
            let which = part.index(bad.len());
            bad[which].0[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!check_consistency(old, &before, size, &root, &bad));
        }
        prop_assert_eq!(prove_consistency(&mut kept.nodes(), size + 1, size), None);
        prop_assert_eq!(prove_inclusion(&mut kept.nodes(), size, size), None);
    }
}
