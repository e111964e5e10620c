//! What verifying a log reads besides its records: checkpoints, tiles, the chain of keys.

use portcullis_core::audit::note::{origin, parse_first_key, verifier_key};
use portcullis_core::audit::verify::{Checker, Outside};
use portcullis_core::audit::{
    EpochSealer, Head, Notes, Scanner, SignedCheckpoint, Step, TILE_WIDTH, Tile, TileEdge,
    tile_bytes, tile_hashes,
};
use portcullis_core::identity::Identity;

use super::parsers::{Target, text};

/// Each of them.
pub const ALL: &[Target] = &[("history", history), ("notes", notes), ("tile", tile)];

/// A log and the checkpoints beside it: so many bytes of records (u32), these, and the file of checkpoints.
pub fn history(data: &[u8]) {
    let Some((len, rest)) = data.split_first_chunk::<4>() else {
        return;
    };
    let len = usize::try_from(u32::from_be_bytes(*len)).unwrap_or(usize::MAX);
    let (records, notes) = rest.split_at(len.min(rest.len()));
    let notes = Notes::read(notes);
    let outside = Outside {
        first_key: None,
        checkpoint: notes.all.last().cloned(),
    };
    let (mut checker, mut scan) = (Checker::new(outside), Scanner::new(Head::EMPTY, 0));
    let mut ahead = notes.all.iter().peekable();
    loop {
        let at = usize::try_from(scan.offset()).unwrap();
        let Step::Record { leaf, hash, .. } = scan.step(&records[at..], true) else {
            break;
        };
        let before = checker.edge().size();
        if let Err(finding) = checker.record(&leaf, hash, |_, _| {}) {
            assert!(!finding.to_string().is_empty());
            return;
        }
        assert_eq!(checker.edge().size(), before + 1);
        while let Some(note) = ahead.next_if(|note| note.checkpoint.size <= before + 1) {
            let epoch = checker.chain().last().map_or(0, |last| last.number);
            if checker.note(epoch, note).is_err() {
                return;
            }
            // What was taken is what its signer has signed of these very records.
            assert_eq!(note.checkpoint.root, checker.edge().root());
            let signer = checker.chain().signer(before + 1).unwrap();
            assert!(note.is_by(&signer.key));
        }
    }
    let _ = checker.end();
}

/// A file of checkpoints, one checkpoint, a first key, a sealed key.
pub fn notes(data: &[u8]) {
    let read = Notes::read(data);
    assert!(read.whole <= data.len());
    // One form each.
    let again: String = read.all.iter().map(SignedCheckpoint::to_text).collect();
    assert_eq!(again.as_bytes(), &data[..read.whole]);
    let rising = read.all.windows(2);
    assert!(
        rising
            .into_iter()
            .all(|pair| pair[0].checkpoint.size < pair[1].checkpoint.size)
    );
    let sealer = EpochSealer::new(&Identity::from_random([7; 32]));
    assert!(sealer.open(1, data).is_err());
    let Some(text) = text(data) else { return };
    if let Ok(note) = SignedCheckpoint::parse(text) {
        assert_eq!(note.to_text(), text);
    }
    if let Some(key) = parse_first_key(text) {
        let is_one = verifier_key(&origin(&key), &key) == text || key.to_string() == text;
        assert!(is_one);
    }
}

/// A tile's path and its file; an edge that is read back from anything.
pub fn tile(data: &[u8]) {
    if let Some(tile) = text(data).and_then(Tile::of_path) {
        assert_eq!(tile.path().as_bytes(), data);
        let _ = tile.first_leaf();
    }
    let Some(hashes) = tile_hashes(data) else {
        return;
    };
    assert!((1..=TILE_WIDTH).contains(&hashes.len()));
    assert_eq!(tile_bytes(&hashes), data);
    let size = hashes.len() as u64 * 257;
    let read = |tile: Tile| {
        let mut row = hashes.clone();
        row.resize(tile.width.into(), hashes[0]);
        Some(row)
    };
    if let Some(mut edge) = TileEdge::load(size, read) {
        for hash in hashes.iter().take(4) {
            edge.push(*hash, |_, _| {});
        }
        let _ = edge.root();
    }
}
