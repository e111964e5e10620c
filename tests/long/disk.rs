//! What a disk holds after a power cut: a process' writes are read from strace's record of them, and played up to a
//! moment. What was synced is there. What was not is there, is not, or is there in parts; so are names.
//!
//! A sector (512 bytes) is written whole or not at all. Of the names changed in a folder since its last sync, the first
//! few are kept, in order: file systems journal them so.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::record::{Call, Record, Step, What};

const SECTOR: usize = 512;

#[derive(Clone, Copy, PartialEq)]
enum Node {
    File(usize),
    Folder(usize),
}

enum Change {
    Write { at: usize, data: Vec<u8> },
    Truncate(usize),
}

#[derive(Default)]
struct File {
    mode: u32,
    durable: Vec<u8>,
    /// Not yet durable, each with whether the call has returned.
    pending: Vec<(usize, Change, bool)>,
    len: usize,
}

enum Naming {
    Add(String, Node),
    Drop(String),
    Move(String, String),
}

#[derive(Default)]
struct Folder {
    mode: u32,
    durable: BTreeMap<String, Node>,
    pending: Vec<Naming>,
}

/// The disk at a moment of the record.
pub struct Disk {
    root: PathBuf,
    files: Vec<File>,
    folders: Vec<Folder>,
    /// By path, as a process sees it.
    names: HashMap<PathBuf, Node>,
    /// Syncs under way: what was written before them.
    syncs: HashMap<usize, Sync>,
}

enum Sync {
    /// The calls that it makes durable.
    File(usize, Vec<usize>),
    /// So many names.
    Folder(usize, usize),
}

impl Disk {
    /// The empty folder `root`, with everything in it durable, and then what the record did until this moment.
    pub fn at(record: &Record, root: &Path, moment: usize) -> Self {
        let mut disk = Self {
            root: root.to_owned(),
            files: vec![],
            folders: vec![],
            names: HashMap::new(),
            syncs: HashMap::new(),
        };
        disk.folder(root.to_owned(), 0o700);
        let state = disk.folder(root.join("state"), 0o700);
        disk.folders[0].durable.insert("state".to_owned(), state);
        for step in &record.steps[..moment] {
            match step {
                Step::Began(call) => disk.began(*call, &record.calls[*call]),
                Step::Ended(call) => disk.ended(*call, &record.calls[*call]),
            }
        }
        disk
    }

    fn folder(&mut self, path: PathBuf, mode: u32) -> Node {
        self.folders.push(Folder {
            mode,
            ..Folder::default()
        });
        let node = Node::Folder(self.folders.len() - 1);
        self.names.insert(path, node);
        node
    }

    fn file(&mut self, path: &Path) -> Option<usize> {
        match self.names.get(path) {
            Some(Node::File(file)) => Some(*file),
            _ => None,
        }
    }

    /// The folder that holds the name.
    fn naming(&mut self, path: &Path) -> Option<(&mut Folder, String)> {
        let name = path.file_name()?.to_str()?.to_owned();
        match self.names.get(path.parent()?) {
            Some(Node::Folder(folder)) => Some((&mut self.folders[*folder], name)),
            _ => None,
        }
    }

    /// From here on a write may be on the disk.
    fn began(&mut self, call: usize, made: &Call) {
        let change = match &made.what {
            What::Write { path, at, data } => {
                let Some(file) = self.file(path) else { return };
                let data = data[..made.result.unwrap_or(data.len()).min(data.len())].to_vec();
                if made.result.is_none() {
                    return;
                }
                let file = &mut self.files[file];
                let at = at.unwrap_or(file.len);
                file.len = file.len.max(at + data.len());
                (path, Change::Write { at, data })
            }
            What::Truncate(path, len) if made.result.is_some() => {
                if let Some(file) = self.file(path) {
                    self.files[file].len = *len;
                }
                (path, Change::Truncate(*len))
            }
            What::Sync(path) => {
                let sync = match self.names.get(path) {
                    // What is under way still may be missed by it.
                    Some(Node::File(file)) => {
                        let pending = self.files[*file].pending.iter();
                        let returned = pending.filter(|(_, _, returned)| *returned);
                        Sync::File(*file, returned.map(|(call, ..)| *call).collect())
                    }
                    Some(Node::Folder(folder)) => {
                        Sync::Folder(*folder, self.folders[*folder].pending.len())
                    }
                    None => return,
                };
                self.syncs.insert(call, sync);
                return;
            }
            _ => return,
        };
        if let Some(file) = self.file(change.0) {
            self.files[file].pending.push((call, change.1, false));
        }
    }

    /// From here on a name may be on the disk, and what was synced is.
    fn ended(&mut self, call: usize, made: &Call) {
        let succeeded = made.result.is_some();
        match &made.what {
            What::Write { path, .. } | What::Truncate(path, _) => {
                if let Some(file) = self.file(path) {
                    for (number, _, returned) in &mut self.files[file].pending {
                        *returned |= *number == call;
                    }
                }
            }
            What::Sync(_) => match self.syncs.remove(&call) {
                Some(Sync::File(file, calls)) if succeeded => self.files[file].settle(&calls),
                Some(Sync::Folder(folder, upto)) if succeeded => self.folders[folder].settle(upto),
                _ => {}
            },
            _ if !succeeded => {}
            What::Open {
                path,
                empties,
                mode,
            } => {
                if let Some(file) = self.file(path) {
                    if *empties {
                        self.files[file].len = 0;
                        self.files[file]
                            .pending
                            .push((call, Change::Truncate(0), true));
                    }
                    return;
                }
                let node = Node::File(self.files.len());
                let Some((folder, name)) = self.naming(path) else {
                    return;
                };
                folder.pending.push(Naming::Add(name, node));
                self.files.push(File {
                    mode: *mode,
                    ..File::default()
                });
                self.names.insert(path.clone(), node);
            }
            What::Folder(path, mode) => {
                let mode = *mode;
                if self.naming(path).is_none() {
                    return;
                }
                let node = self.folder(path.clone(), mode);
                if let Some((folder, name)) = self.naming(path) {
                    folder.pending.push(Naming::Add(name, node));
                }
            }
            What::Link(from, to) => {
                let Some(node) = self.names.get(from).copied() else {
                    return;
                };
                let Some((folder, name)) = self.naming(to) else {
                    return;
                };
                folder.pending.push(Naming::Add(name, node));
                self.names.insert(to.clone(), node);
            }
            What::Rename(from, to) => {
                let Some(node) = self.names.remove(from) else {
                    return;
                };
                let Some((_, old)) = self.naming(from) else {
                    return;
                };
                assert_eq!(
                    from.parent(),
                    to.parent(),
                    "a rename over folders is not played"
                );
                let Some((folder, name)) = self.naming(to) else {
                    return;
                };
                folder.pending.push(Naming::Move(old, name));
                self.names.insert(to.clone(), node);
            }
            What::Unlink(path) => {
                if self.names.remove(path).is_some()
                    && let Some((folder, name)) = self.naming(path)
                {
                    folder.pending.push(Naming::Drop(name));
                }
            }
            What::Sent(_) | What::Other => {}
        }
    }

    /// The power goes: what is left is written to `into`, an empty folder.
    pub fn cut(&self, into: &Path, chance: &mut Chance) {
        assert!(matches!(self.names.get(&self.root), Some(Node::Folder(0))));
        self.write(0, into, chance);
    }

    fn write(&self, folder: usize, into: &Path, chance: &mut Chance) {
        let folder = &self.folders[folder];
        let mut names = folder.durable.clone();
        let kept = chance.below(folder.pending.len() + 1);
        for naming in &folder.pending[..kept] {
            apply(&mut names, naming);
        }
        for (name, node) in names {
            let path = into.join(&name);
            match node {
                Node::Folder(folder) => {
                    let mode = self.folders[folder].mode;
                    std::fs::DirBuilder::new().mode(mode).create(&path).unwrap();
                    self.write(folder, &path, chance);
                }
                // The index of the write-ahead log is shared memory: it is made anew.
                Node::File(_) if name.ends_with("-shm") => {}
                Node::File(file) => {
                    let mut options = std::fs::OpenOptions::new();
                    let file = &self.files[file];
                    let mut made = options
                        .write(true)
                        .create_new(true)
                        .mode(file.mode)
                        .open(&path)
                        .unwrap();
                    std::io::Write::write_all(&mut made, &file.left(chance)).unwrap();
                }
            }
        }
    }
}

fn apply(names: &mut BTreeMap<String, Node>, naming: &Naming) {
    match naming {
        Naming::Add(name, node) => {
            names.insert(name.clone(), *node);
        }
        Naming::Drop(name) => {
            names.remove(name);
        }
        Naming::Move(from, to) => {
            if let Some(node) = names.remove(from) {
                names.insert(to.clone(), node);
            }
        }
    }
}

impl Folder {
    fn settle(&mut self, upto: usize) {
        let later = self.pending.split_off(upto.min(self.pending.len()));
        for naming in std::mem::replace(&mut self.pending, later) {
            apply(&mut self.durable, &naming);
        }
    }
}

impl File {
    /// These calls are durable: those that had returned when the sync began.
    fn settle(&mut self, calls: &[usize]) {
        for (call, change, returned) in std::mem::take(&mut self.pending) {
            if calls.contains(&call) {
                put(&mut self.durable, &change, |_| true);
            } else {
                self.pending.push((call, change, returned));
            }
        }
    }

    /// What a cut leaves of it.
    fn left(&self, chance: &mut Chance) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        for (_, change, _) in &self.pending {
            match chance.fate() {
                Fate::Kept => put(&mut bytes, change, |_| true),
                Fate::Lost => {}
                Fate::Torn => put(&mut bytes, change, |_| chance.below(2) == 0),
                Fate::Prefix => {
                    let upto = chance.below(64);
                    put(&mut bytes, change, |sector| sector < upto);
                }
                // The file has grown, what was written into it is not there.
                Fate::Hollow => {
                    if let Change::Write { at, data } = change
                        && bytes.len() < at + data.len()
                    {
                        bytes.resize(at + data.len(), 0);
                    }
                }
            }
        }
        bytes
    }
}

/// Makes the change in those sectors, counted from the change's first, that are kept.
fn put(bytes: &mut Vec<u8>, change: &Change, mut keeps: impl FnMut(usize) -> bool) {
    match change {
        Change::Truncate(len) => bytes.resize(*len, 0),
        Change::Write { at, data } => {
            let (mut from, mut sector) = (0, 0);
            while from < data.len() {
                let start = at + from;
                let upto = (from + SECTOR - start % SECTOR).min(data.len());
                if keeps(sector) {
                    if bytes.len() < at + upto {
                        bytes.resize(at + upto, 0);
                    }
                    bytes[start..at + upto].copy_from_slice(&data[from..upto]);
                }
                (from, sector) = (upto, sector + 1);
            }
        }
    }
}

enum Fate {
    Kept,
    Lost,
    Torn,
    Prefix,
    Hollow,
}

/// Numbers that look random and are the same for the same seed (splitmix64).
pub struct Chance {
    state: u64,
    /// All pending writes kept, all lost, or each by itself.
    mood: u64,
}

impl Chance {
    /// By its seed.
    pub fn new(seed: u64) -> Self {
        let mut chance = Self {
            state: seed,
            mood: 0,
        };
        chance.mood = chance.next() % 8;
        chance
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to `n` - 1.
    pub fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n.max(1) as u64).unwrap()
    }

    fn fate(&mut self) -> Fate {
        match (self.mood, self.below(6)) {
            (0, _) | (2.., 0 | 1) => Fate::Kept,
            (1, _) | (_, 2) => Fate::Lost,
            (_, 3) => Fate::Torn,
            (_, 4) => Fate::Prefix,
            _ => Fate::Hollow,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> String {
        let bytes: Vec<String> = text.bytes().map(|b| format!("\\x{b:02x}")).collect();
        bytes.concat()
    }

    /// What two files hold, over many cuts at the end of the record.
    fn outcomes(lines: &[String]) -> Vec<(Option<String>, Option<String>)> {
        let record = Record::read(&lines.join("\n"));
        let mut found = vec![];
        for seed in 0..200 {
            let into = tempfile::tempdir().unwrap();
            let disk = Disk::at(&record, Path::new("/r"), record.moments());
            disk.cut(into.path(), &mut Chance::new(seed));
            let read = |name: &str| std::fs::read_to_string(into.path().join(name)).ok();
            let both = (read("state/a"), read("state/b"));
            if !found.contains(&both) {
                found.push(both);
            }
        }
        found
    }

    fn line(call: &str, args: &str, result: &str) -> String {
        format!("7 {call}({args}) = {result}")
    }

    #[test]
    fn what_was_synced_is_kept_and_what_was_not_may_go() {
        let (a, b) = (hex("/r/state/a"), hex("/r/state/b"));
        let folder = hex("/r/state");
        let open = |path: &str| {
            line(
                "openat",
                &format!("AT_FDCWD</>, \"{path}\", O_WRONLY|O_CREAT, 0600"),
                "3",
            )
        };
        let write = |path: &str, text: &str| {
            let len = text.len().to_string();
            line(
                "write",
                &format!("3<{path}>, \"{}\", {len}", hex(text)),
                &len,
            )
        };
        let sync = |path: &str| line("fsync", &format!("3<{path}>"), "0");
        let synced = [
            open(&a),
            write(&a, "one"),
            sync(&a),
            sync(&folder),
            open(&b),
            write(&b, "two"),
        ];
        let found = outcomes(&synced);
        assert!(
            found.iter().all(|(a, _)| a.as_deref() == Some("one")),
            "{found:?}"
        );
        let of_b: Vec<_> = found.iter().map(|(_, b)| b.as_deref()).collect();
        for one in [None, Some(""), Some("two"), Some("\0\0\0")] {
            assert!(of_b.contains(&one), "{one:?} not in {of_b:?}");
        }

        // Without the folder's sync the name may go, with all that was synced under it.
        let found = outcomes(&[open(&a), write(&a, "one"), sync(&a)]);
        assert!(found.contains(&(None, None)) && found.contains(&(Some("one".into()), None)));

        // Half of a call is none: a sync that did not return promises nothing.
        let half = format!("7 fsync(3<{a}> <unfinished ...>");
        let found = outcomes(&[open(&a), sync(&folder), write(&a, "one"), half]);
        assert!(found.contains(&(Some(String::new()), None)), "{found:?}");

        // Renamed: the old name or the new one, never both, never none.
        let moved = line("rename", &format!("\"{a}\", \"{b}\""), "0");
        let found = outcomes(&[open(&a), write(&a, "one"), sync(&a), sync(&folder), moved]);
        let (old, new) = (
            (Some("one".to_owned()), None),
            (None, Some("one".to_owned())),
        );
        assert!(
            found.contains(&old) && found.contains(&new) && found.len() == 2,
            "{found:?}"
        );
    }

    #[test]
    fn a_torn_write_is_torn_between_sectors() {
        let mut bytes = vec![b'.'; 600];
        let change = Change::Write {
            at: 500,
            data: vec![b'x'; 1_100],
        };
        put(&mut bytes, &change, |sector| sector == 1);
        assert_eq!(&bytes[..512], &[b'.'; 512]);
        assert_eq!(&bytes[512..1024], &[b'x'; 512]);
        assert_eq!(bytes.len(), 1_024);
    }
}
