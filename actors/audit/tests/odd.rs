//! Other things than files in the places of files, and starts that are refused: nobody waits, and nothing changes.

use super::super::read::query_dir;
use super::epochs::{files, fill, put_back};
use super::*;
use portcullis_core::audit::Query;
use rustix::fs::{CWD, FileType, Mode, mknodat};

/// A log of three epochs, closed.
fn closed() -> Place {
    let place = Place::new();
    let log = place.open(1);
    fill(&log, 300);
    log.close();
    for boot in 2..4 {
        place.open(boot).close();
    }
    place
}

fn pipe(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
}

/// The bug: a pipe in the place of a file kept a verifier, a query and a start waiting for ever, and a link was followed.
#[test]
fn a_pipe_or_a_link_in_the_place_of_a_file_is_told_and_keeps_nobody_waiting() {
    let place = closed();
    let kept = files(&place);
    let names = [
        "audit/lock",
        "audit/first.pub",
        "audit/retired",
        "audit/0000000000000001.log",
        "audit/checkpoints/0000000000000003",
        "audit/tile/0/000",
        "keys/audit-0000000000000003.key",
        "keys/audit-0000000000000003.at",
    ];
    // What a start makes anew, whatever lies there.
    let caches = ["audit/first.pub", "audit/tile/0/000"];
    // What nobody reads who has no key, and no lock.
    let own = ["audit/lock", "keys/"];
    for name in names {
        for what in ["pipe", "folder", "symbolic link"] {
            let path = place.dir.parent().unwrap().join(name);
            let _ = std::fs::remove_file(&path);
            match what {
                "pipe" => pipe(&path),
                "folder" => std::fs::create_dir(&path).unwrap(),
                _ => {
                    let aside = place.dir.with_file_name("aside");
                    std::fs::write(&aside, kept.get(Path::new(name)).map_or(&b""[..], |b| b))
                        .unwrap();
                    std::os::unix::fs::symlink(&aside, &path).unwrap();
                }
            }
            let told = |error: &AuditError| {
                let text = error.to_string();
                let names = text.contains(&path.display().to_string());
                assert!(names && text.contains(what), "{name}, {what}: {text}");
            };
            match verify_dir(&place.dir) {
                Err(error) => told(&error),
                Ok(report) => {
                    let is_own = own.iter().any(|own| name.starts_with(own));
                    // In a folder of that name there is no tile: it is missing.
                    let is_whole = is_own || report.missing_tiles > 0;
                    assert_eq!(report.intact, is_whole, "{name}, {what}: {report:?}");
                }
            }
            let read = [
                tail_dir(&place.dir, 400).err(),
                query_dir(&place.dir, &Query::default()).err(),
            ];
            for error in read {
                assert_eq!(error.is_some(), name.contains(".log"), "{name}, {what}");
                error.iter().for_each(told);
            }
            match place.try_open(9).map(Open::close) {
                Err(error) => told(&error),
                Ok(()) => assert!(caches.contains(&name), "{name}, {what}: it was opened"),
            }
            if path.symlink_metadata().is_ok_and(|found| found.is_dir()) {
                std::fs::remove_dir(&path).unwrap();
            } else {
                let _ = std::fs::remove_file(&path);
            }
            let _ = std::fs::remove_file(place.dir.with_file_name("aside"));
            put_back(&place, &kept, |_| true);
        }
    }
    place.open(9).close();
    assert!(verify_dir(&place.dir).unwrap().intact);
}

/// The bug: a link in the place of a folder of the log was followed, and what was written went wherever it led.
#[test]
fn a_link_in_the_place_of_a_folder_of_the_log_is_refused_by_its_name() {
    let place = closed();
    for name in ["checkpoints", "tile", "tile/0"] {
        let (folder, aside) = (place.dir.join(name), place.dir.with_file_name("aside"));
        std::fs::rename(&folder, &aside).unwrap();
        std::os::unix::fs::symlink(&aside, &folder).unwrap();
        for error in [
            verify_dir(&place.dir).err().map(|error| error.to_string()),
            place.try_open(9).err().map(|error| error.to_string()),
        ] {
            let text = error.unwrap_or_else(|| panic!("{name} was followed"));
            assert!(text.contains("AUDIT_UNREADABLE"), "{text}");
            assert!(text.contains(&folder.display().to_string()), "{text}");
        }
        std::fs::remove_file(&folder).unwrap();
        std::fs::rename(&aside, &folder).unwrap();
    }
    let aside = place.dir.with_file_name("aside");
    std::fs::rename(&place.dir, &aside).unwrap();
    std::os::unix::fs::symlink(&aside, &place.dir).unwrap();
    assert!(place.try_open(9).is_err() && verify_dir(&place.dir).is_err());
    std::fs::remove_file(&place.dir).unwrap();
    std::fs::rename(&aside, &place.dir).unwrap();
    place.open(9).close();
}

/// The bug: a start that was refused had already destroyed a key, cut checkpoints and written tiles: what was to be restored, or
/// to be evidence, was another log.
#[test]
fn a_start_that_is_refused_leaves_every_byte_as_it_was() {
    let place = Place::new();
    let log = place.open(1);
    fill(&log, 300);
    log.close();
    let first = files(&place);
    for boot in 2..4 {
        place.open(boot).close();
    }
    let root = place.dir.parent().unwrap();
    let whole = files(&place);
    // What an earlier stop may leave, and a start mends.
    let stray = Path::new("keys/audit-0000000000000001.key");
    let tile = Path::new("audit/tile/0/000");
    let notes = Path::new("audit/checkpoints/0000000000000003");
    let segment = Path::new("audit/0000000000000001.log");
    let mut left = whole.clone();
    left.insert(stray.to_owned(), first[stray].clone());
    left.insert("keys/audit-0000000000000007.key".into(), vec![0; 60]);
    left.insert("audit/0000000000000309.new".into(), b"half".to_vec());
    left.get_mut(notes).unwrap().extend_from_slice(b"half a no");
    left.remove(tile).unwrap();
    left.remove(Path::new("audit/first.pub")).unwrap();
    let refused = |what: &str, change: &dyn Fn(&mut super::epochs::Files)| {
        let mut changed = left.clone();
        change(&mut changed);
        put_back(&place, &changed, |_| true);
        let error = place.try_open(9).err();
        let error = error.unwrap_or_else(|| panic!("{what}: it was opened"));
        for (name, bytes) in &changed {
            let now = files(&place).remove(name);
            assert!(now.as_ref() == Some(bytes), "{what}: {name:?} ({error})");
        }
        assert_eq!(files(&place).len(), changed.len(), "{what}: {error}");
    };
    refused("the last record altered", &|files| {
        let log = files.get_mut(segment).unwrap();
        let at = log.len() - 40;
        log[at] ^= 1;
    });
    refused("the log of an earlier epoch", &|files| {
        files.insert(segment.to_owned(), first[segment].clone());
    });
    refused("the end cut off", &|files| {
        let len = first[segment].len();
        files.get_mut(segment).unwrap().truncate(len);
    });
    refused("no segment", &|files| drop(files.remove(segment)));
    refused("no word of the log's size", &|files| {
        files.remove(Path::new("keys/audit-0000000000000003.at"));
    });
    refused("no key", &|files| {
        files.remove(Path::new("keys/audit-0000000000000003.key"));
    });
    refused("a checkpoint that somebody else signed", &|files| {
        let notes = files.get_mut(notes).unwrap();
        let at = notes.len() - "half a no".len() - 20;
        notes[at] = if notes[at] == b'A' { b'B' } else { b'A' };
    });
    // And what nothing is wrong with is mended.
    put_back(&place, &left, |_| true);
    place.open(9).close();
    for gone in [stray, Path::new("keys/audit-0000000000000007.key")] {
        assert!(!root.join(gone).exists(), "{gone:?}");
    }
    assert_eq!(files(&place).get(tile), whole.get(tile));
    assert!(verify_dir(&place.dir).unwrap().intact);
}
