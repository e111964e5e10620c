//! The tiles beside the segments: right after every kind of end, found when they are not, made anew when they are gone.

use super::*;
use portcullis_core::audit::TILE_BYTES;
use std::collections::BTreeMap;

fn small() -> AuditConfig {
    AuditConfig {
        segment_bytes: 64 * 1024,
        ..AuditConfig::default()
    }
}

fn fill(log: &Open, count: u64) {
    let all: Vec<u64> = (0..count).collect();
    for some in all.chunks(500) {
        let waits: Vec<_> = some.iter().map(|n| log.send(event(*n))).collect();
        for wait in waits {
            wait.blocking_recv().unwrap().unwrap();
        }
    }
}

/// Every file under `tile/`, by its path there.
fn tiles(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let (mut found, mut folders) = (BTreeMap::new(), vec![dir.join("tile")]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(dir).unwrap().display().to_string();
                found.insert(name, std::fs::read(path).unwrap());
            }
        }
    }
    found
}

/// The full tiles of the log's records, as verifying makes them.
fn whole(dir: &Path) {
    let report = verify_dir(dir).unwrap();
    assert!(report.intact, "{:?}", report.first_break);
    assert_eq!(report.missing_tiles, 0);
    let full = tiles(dir)
        .values()
        .filter(|t| t.len() == TILE_BYTES)
        .count();
    assert_eq!(full as u64, report.records / 256);
}

#[test]
fn tiles_grow_with_the_log_over_segments_restarts_and_crashes() {
    let place = Place::new();
    let open = |boot| try_open(&place.dir, boot, small()).unwrap();
    for boot in 1..5 {
        let log = open(boot);
        fill(&log, 700);
        if boot % 2 == 0 {
            log.crash();
        } else {
            log.close();
        }
        whole(&place.dir);
    }
    assert!(super::super::files::segments(&place.dir).unwrap().len() > 5);
    let kept = tiles(&place.dir);
    assert!(kept.keys().any(|name| name.starts_with("tile/1/000.p/")));
    let other = Place::new();
    let log = try_open(&other.dir, 1, small()).unwrap();
    log.append(event(1)).unwrap();
    log.close();
    assert_ne!(
        verify_dir(&place.dir).unwrap().root,
        verify_dir(&other.dir).unwrap().root
    );
}

#[test]
fn a_tile_that_is_gone_or_torn_is_made_anew_by_a_start() {
    let place = Place::new();
    let open = |boot| try_open(&place.dir, boot, small()).unwrap();
    let log = open(1);
    fill(&log, 1_500);
    log.close();
    let good = tiles(&place.dir);
    // Gone all together: nothing is left to go on from.
    std::fs::remove_dir_all(place.dir.join("tile")).unwrap();
    assert_eq!(verify_dir(&place.dir).unwrap().missing_tiles, 5);
    let log = open(2);
    fill(&log, 1);
    log.close();
    whole(&place.dir);
    let full = |all: &BTreeMap<String, Vec<u8>>| {
        let full = all.iter().filter(|(_, bytes)| bytes.len() == TILE_BYTES);
        full.map(|(name, bytes)| (name.clone(), bytes.clone()))
            .collect::<Vec<_>>()
    };
    assert_eq!(full(&tiles(&place.dir)), full(&good));
    // An old one is gone: the start goes on from the partial ones, and it is made anew behind.
    std::fs::remove_file(place.dir.join("tile/0/001")).unwrap();
    let log = open(3);
    fill(&log, 1);
    log.close();
    whole(&place.dir);
    // Of the last segment one is empty and one has lost a sector, as after a power cut.
    let log = open(4);
    fill(&log, 520);
    let of_last = || {
        let last = super::super::files::segments(&place.dir).unwrap().pop();
        let full = place.head().seq.0 / 256;
        last.unwrap().0 <= (full - 1) * 256 + 1
    };
    while !of_last() {
        fill(&log, 64);
    }
    log.crash();
    let records = verify_dir(&place.dir).unwrap().records;
    let newest = place.dir.join(format!("tile/0/{:03}", records / 256 - 1));
    let bytes = std::fs::read(&newest).unwrap();
    for torn in [
        Vec::new(),
        [&bytes[..512], &[0; 512][..], &bytes[1024..]].concat(),
    ] {
        std::fs::write(&newest, torn).unwrap();
        let report = verify_dir(&place.dir).unwrap();
        assert!(report.intact, "{:?}", report.first_break);
        assert_eq!(report.missing_tiles, 1);
        open(5).crash();
        assert_eq!(std::fs::read(&newest).unwrap(), bytes);
        whole(&place.dir);
    }
}

#[test]
fn every_byte_of_every_tile_counts_and_the_record_under_it_is_named() {
    let place = Place::new();
    let log = try_open(&place.dir, 1, small()).unwrap();
    fill(&log, 1_500);
    log.close();
    for (name, good) in tiles(&place.dir) {
        let tile = portcullis_core::audit::Tile::of_path(&name).unwrap();
        // Every hash, a byte of each.
        for at in (0..good.len()).step_by(31) {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            std::fs::write(place.dir.join(&name), &bad).unwrap();
            let fault = verify_dir(&place.dir).unwrap().first_break.unwrap();
            let under = (at as u64 / 32) << (8 * u32::from(tile.level));
            assert_eq!(fault.seq, Seq(tile.first_leaf() + under + 1), "{name} {at}");
        }
        if tile.is_full() && tile.index == 0 {
            for cut in [0, 1, 31, 32, good.len() - 1] {
                std::fs::write(place.dir.join(&name), &good[..cut]).unwrap();
                assert!(
                    !verify_dir(&place.dir).unwrap().intact,
                    "{name} cut at {cut}"
                );
            }
        }
        std::fs::write(place.dir.join(&name), &good).unwrap();
    }
    // Two exchanged, one of another place, one too many, and what is no tile at all.
    let good = tiles(&place.dir);
    let swap = |a: &str, b: &str| {
        std::fs::write(place.dir.join(a), &good[b]).unwrap();
        std::fs::write(place.dir.join(b), &good[a]).unwrap();
    };
    swap("tile/0/000", "tile/0/001");
    let fault = verify_dir(&place.dir).unwrap().first_break.unwrap();
    assert_eq!(fault.seq, Seq(1));
    std::fs::write(place.dir.join("tile/0/000"), &good["tile/0/000"]).unwrap();
    std::fs::write(place.dir.join("tile/0/001"), &good["tile/0/001"]).unwrap();
    intact(&place.dir);
    for name in ["tile/0/100", "tile/0/stray"] {
        std::fs::write(place.dir.join(name), &good["tile/0/000"]).unwrap();
        assert!(!verify_dir(&place.dir).unwrap().intact, "{name}");
        std::fs::remove_file(place.dir.join(name)).unwrap();
    }
    intact(&place.dir);
}
