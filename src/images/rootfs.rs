//! One plain tar of a root file system, from a folder or from another tar.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File, Metadata};
use std::io::{self, BufReader, BufWriter, Read, Seek as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use portcullis_actors::sandbox_pool::images::Hashed;
use tar::{Builder, EntryType, Header};

use super::NotMade;

/// Of a root file system, bytes.
const MOST_BYTES: u64 = 16 << 30;
/// Files, folders and links in it.
const MOST_ENTRIES: u64 = 2_000_000;
/// Permission bits that stay: no setuid, no setgid.
const MODE: u32 = 0o1777;

/// A tar that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// Its SHA-256, lower-case hex.
    pub digest: String,
    /// Its length.
    pub bytes: u64,
    /// Files, folders and links in it.
    pub entries: u64,
    /// Devices, pipes and sockets that were left out.
    pub dropped: u64,
    /// There is a `/bin/sh`.
    pub has_shell: bool,
}

struct Writer {
    tar: Builder<Hashed<BufWriter<File>>>,
    entries: u64,
    dropped: u64,
    bytes: u64,
    has_shell: bool,
    /// Of an archive of `docker save`.
    is_saved: bool,
    has_root: bool,
    /// What is in it so far; of a tar that somebody has.
    paths: BTreeSet<PathBuf>,
}

impl Writer {
    fn new(out: File) -> Self {
        Self {
            tar: Builder::new(Hashed::new(BufWriter::new(out))),
            entries: 0,
            dropped: 0,
            bytes: 0,
            has_shell: false,
            is_saved: false,
            has_root: false,
            paths: BTreeSet::new(),
        }
    }

    fn counted(&mut self, path: &Path, bytes: u64) -> Result<(), NotMade> {
        self.entries += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        if self.entries > MOST_ENTRIES || self.bytes > MOST_BYTES {
            return Err(NotMade::new(
                "it has more than 16 GiB or two million files: that is no root file system of a box",
            ));
        }
        let is = |names: &[&str]| names.iter().any(|name| path == Path::new(name));
        self.has_shell |= is(&["bin/sh", "usr/bin/sh"]);
        self.is_saved |= is(&["manifest.json", "oci-layout"]);
        self.has_root |= is(&["bin", "usr", "bin/sh"]);
        Ok(())
    }

    /// Each name once, and below folders that are there: else engines make of it what they like.
    fn placed(&mut self, path: &Path) -> Result<(), NotMade> {
        let parent = path.parent().filter(|parent| *parent != Path::new(""));
        if let Some(parent) = parent.filter(|parent| !self.paths.contains(*parent)) {
            self.placed(parent)?;
            self.counted(parent, 0)?;
            let mut header = Header::new_gnu();
            header.set_entry_type(EntryType::Directory);
            header.set_mode(0o755);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            header.set_size(0);
            self.tar.append_data(&mut header, parent, io::empty())?;
        }
        if !self.paths.insert(path.to_owned()) {
            return Err(NotMade::new(format!("{} is in it twice", path.display())));
        }
        Ok(())
    }

    fn done(mut self) -> Result<Made, NotMade> {
        if self.is_saved && !self.has_root {
            return Err(
                NotMade::new("this is an archive of images, not a root file system")
                    .next("`docker load -i FILE`, and name the image in [sandbox] image"),
            );
        }
        if self.entries == 0 {
            return Err(NotMade::new("there is nothing in it"));
        }
        self.tar.finish()?;
        let mut out = self.tar.into_inner()?;
        out.flush()?;
        let (bytes, digest) = out.done();
        Ok(Made {
            digest,
            bytes,
            entries: self.entries,
            dropped: self.dropped,
            has_shell: self.has_shell,
        })
    }
}

/// Of a folder that was just made here and that nobody else writes.
///
/// # Errors
/// It cannot be read, or the tar not written.
pub fn from_folder(root: &Path, out: File) -> Result<Made, NotMade> {
    let (mut writer, mut links) = (Writer::new(out), HashMap::new());
    folder(root, Path::new(""), &mut writer, &mut links)?;
    writer.done()
}

fn folder(
    root: &Path,
    below: &Path,
    writer: &mut Writer,
    links: &mut HashMap<(u64, u64), PathBuf>,
) -> Result<(), NotMade> {
    let mut names = fs::read_dir(root.join(below))?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<io::Result<Vec<_>>>()?;
    names.sort();
    for name in names {
        let path = below.join(name);
        let from = root.join(&path);
        let meta = fs::symlink_metadata(&from)?;
        let kind = meta.file_type();
        let size = if kind.is_file() { meta.len() } else { 0 };
        if !(kind.is_dir() || kind.is_file() || kind.is_symlink()) {
            writer.dropped += 1;
            continue;
        }
        writer.counted(&path, size)?;
        let mut header = header(&meta);
        if kind.is_dir() {
            header.set_entry_type(EntryType::Directory);
            writer.tar.append_data(&mut header, &path, io::empty())?;
            folder(root, &path, writer, links)?;
        } else if kind.is_symlink() {
            header.set_entry_type(EntryType::Symlink);
            let target = fs::read_link(&from)?;
            writer.tar.append_link(&mut header, &path, target)?;
        } else if let Some(first) = links.get(&(meta.dev(), meta.ino())) {
            header.set_entry_type(EntryType::Link);
            writer.tar.append_link(&mut header, &path, first)?;
        } else {
            if meta.nlink() > 1 {
                links.insert((meta.dev(), meta.ino()), path.clone());
            }
            header.set_entry_type(EntryType::Regular);
            header.set_size(size);
            let file = File::open(&from)?.take(size);
            writer.tar.append_data(&mut header, &path, file)?;
        }
    }
    Ok(())
}

fn header(meta: &Metadata) -> Header {
    let mut header = Header::new_gnu();
    header.set_mode(meta.mode() & MODE);
    header.set_uid(u64::from(meta.uid()));
    header.set_gid(u64::from(meta.gid()));
    header.set_mtime(u64::try_from(meta.mtime()).unwrap_or_default());
    header.set_size(0);
    header
}

/// Of a tar that somebody has: what it may not have in it is left out or refused by name.
///
/// # Errors
/// It is none, or has something in it that leads out of its root.
pub fn from_tar(read: impl Read, out: File) -> Result<Made, NotMade> {
    let mut read = BufReader::new(read);
    if let Some(name) = packed(io::BufRead::fill_buf(&mut read)?) {
        let next = format!("`{name} -dc FILE | portcullis sandbox image import - --name NAME`");
        return Err(NotMade::new(format!("it is packed with {name}")).next(next));
    }
    let mut writer = Writer::new(out);
    for entry in tar::Archive::new(read).entries()? {
        let mut entry = entry.map_err(|error| NotMade::new(format!("it is no tar: {error}")))?;
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            continue;
        }
        let Some(path) = plain(&entry.path()?)? else {
            continue;
        };
        let from = entry.header();
        let mut header = Header::new_gnu();
        header.set_mode(from.mode()? & MODE);
        header.set_uid(from.uid()?);
        header.set_gid(from.gid()?);
        header.set_mtime(from.mtime()?);
        header.set_size(0);
        header.set_entry_type(kind);
        if !matches!(kind, EntryType::Char | EntryType::Block | EntryType::Fifo) {
            writer.placed(&path)?;
        }
        let named = |what: &str| NotMade::new(format!("{}: {what}", path.display()));
        match kind {
            EntryType::Directory => {
                writer.counted(&path, 0)?;
                writer.tar.append_data(&mut header, &path, io::empty())?;
            }
            EntryType::Regular | EntryType::Continuous => {
                let size = entry.size();
                writer.counted(&path, size)?;
                header.set_entry_type(EntryType::Regular);
                header.set_size(size);
                writer.tar.append_data(&mut header, &path, &mut entry)?;
            }
            EntryType::Symlink | EntryType::Link => {
                let target = entry.link_name()?.ok_or_else(|| named("leads nowhere"))?;
                let target = if kind == EntryType::Link {
                    plain(&target)?.ok_or_else(|| named("is a hard link to the root"))?
                } else {
                    target.into_owned()
                };
                writer.counted(&path, 0)?;
                writer.tar.append_link(&mut header, &path, target)?;
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => writer.dropped += 1,
            _ => return Err(named("is of a kind that no box needs")),
        }
    }
    writer.done()
}

/// Below the root, whatever the archive calls it; the root itself is none.
fn plain(path: &Path) -> Result<Option<PathBuf>, NotMade> {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => plain.push(name),
            Component::CurDir | Component::RootDir => {}
            _ => {
                let why = format!("{} leads out of the root", path.display());
                return Err(NotMade::new(why));
            }
        }
    }
    let last = plain.file_name().map(std::ffi::OsStr::as_encoded_bytes);
    if last.is_some_and(|name| name.starts_with(b".wh.")) {
        // An engine takes such a name for a file that is to go.
        return Err(NotMade::new(format!(
            "{} is a mark of a layer, not a file",
            path.display()
        )));
    }
    Ok((plain != Path::new("")).then_some(plain))
}

/// The program that unpacks it, if it is packed.
fn packed(begin: &[u8]) -> Option<&'static str> {
    let known: [(&[u8], _); 4] = [
        (b"\x1f\x8b", "gzip"),
        (b"\xfd7zXZ", "xz"),
        (b"BZh", "bzip2"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
    ];
    let found = known
        .into_iter()
        .find(|(magic, _)| begin.starts_with(magic));
    found.map(|(_, name)| name)
}

/// A tar that is in memory, as it is.
///
/// # Errors
/// It cannot be written.
pub fn kept(tar: &[u8], digest: &str, mut out: File) -> io::Result<Made> {
    out.write_all(tar)?;
    out.rewind()?;
    let mut entries = 0;
    for entry in tar::Archive::new(tar).entries()? {
        entry?;
        entries += 1;
    }
    Ok(Made {
        digest: digest.to_owned(),
        bytes: tar.len() as u64,
        entries,
        dropped: 0,
        has_shell: true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tar_of(entries: &[(&str, EntryType, u32, &[u8], &str)]) -> Vec<u8> {
        let mut tar = Builder::new(vec![]);
        for (path, kind, mode, body, link) in entries {
            let mut header = Header::new_gnu();
            // As no library of ours would write it.
            header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
            header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
            header.set_entry_type(*kind);
            header.set_mode(*mode);
            header.set_uid(7);
            header.set_gid(8);
            header.set_mtime(9);
            header.set_size(body.len() as u64);
            header.set_cksum();
            tar.append(&header, *body).unwrap();
        }
        tar.into_inner().unwrap()
    }

    fn made(entries: &[(&str, EntryType, u32, &[u8], &str)]) -> Result<(Made, Vec<u8>), NotMade> {
        let mut out = tempfile::tempfile().unwrap();
        let made = from_tar(&tar_of(entries)[..], out.try_clone().unwrap())?;
        let mut bytes = vec![];
        out.rewind().unwrap();
        out.read_to_end(&mut bytes).unwrap();
        Ok((made, bytes))
    }

    const FILE: EntryType = EntryType::Regular;

    #[test]
    fn a_tar_becomes_a_plain_one_without_devices_and_setuid_bits() {
        let (made, bytes) = made(&[
            ("./", EntryType::Directory, 0o755, b"", ""),
            ("./bin/", EntryType::Directory, 0o755, b"", ""),
            ("/bin/sh", FILE, 0o4755, b"#!", ""),
            ("bin/su", EntryType::Link, 0o2755, b"", "./bin/sh"),
            ("etc", EntryType::Symlink, 0o777, b"", "../../../etc"),
            ("dev/sda", EntryType::Block, 0o666, b"", ""),
            ("dev/kmem", EntryType::Char, 0o666, b"", ""),
            ("run/p", EntryType::Fifo, 0o666, b"", ""),
        ])
        .unwrap();
        assert_eq!((made.entries, made.dropped, made.has_shell), (4, 3, true));
        assert_eq!(made.bytes, bytes.len() as u64);
        let mut hash = Hashed::new(io::sink());
        hash.write_all(&bytes).unwrap();
        assert_eq!(made.digest, hash.done().1);
        let mut found = vec![];
        for entry in tar::Archive::new(&bytes[..]).entries().unwrap() {
            let entry = entry.unwrap();
            let (header, path) = (entry.header(), entry.path().unwrap());
            let link = entry
                .link_name()
                .unwrap()
                .map(|link| link.display().to_string());
            found.push((path.display().to_string(), header.mode().unwrap(), link));
            assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (7, 8));
        }
        let link = |text: &str| Some(text.to_owned());
        assert_eq!(
            found,
            [
                ("bin".to_owned(), 0o755, None),
                ("bin/sh".to_owned(), 0o755, None),
                ("bin/su".to_owned(), 0o755, link("bin/sh")),
                // Where it leads is looked up in the box, whose root is all there is.
                ("etc".to_owned(), 0o777, link("../../../etc")),
            ]
        );
    }

    #[test]
    fn folders_that_are_missing_are_made() {
        let (made, bytes) = made(&[("usr/bin/sh", FILE, 0o755, b"#!", "")]).unwrap();
        assert_eq!(made.entries, 3);
        let mut tar = tar::Archive::new(&bytes[..]);
        let paths = tar.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            (
                entry.path().unwrap().display().to_string(),
                entry.header().mode().unwrap(),
            )
        });
        let wanted = [("usr", 0o755), ("usr/bin", 0o755), ("usr/bin/sh", 0o755)];
        assert!(paths.eq(wanted.map(|(path, mode)| (path.to_owned(), mode))));
    }

    #[test]
    fn a_name_that_comes_twice_is_refused() {
        for twice in [
            ("a", FILE, 0o644, &b"1"[..], ""),
            ("./a", FILE, 0o600, b"2", ""),
        ] {
            let error = made(&[("a", FILE, 0o644, b"0", ""), twice]).unwrap_err();
            assert!(error.why.contains("twice"), "{}", error.why);
        }
    }

    #[test]
    fn what_leads_out_of_the_root_is_refused_by_name() {
        for (entry, why) in [
            (("bin/../../x", FILE, 0o644, &b""[..], ""), "bin/../../x"),
            (("bin/.wh.sh", FILE, 0o644, b"", ""), "bin/.wh.sh"),
            (
                ("x", EntryType::Link, 0o644, b"", "../../etc/shadow"),
                "../../etc/shadow",
            ),
            (
                ("x", EntryType::new(b'Z'), 0o644, b"", ""),
                "x: is of a kind",
            ),
        ] {
            let error = made(&[entry]).unwrap_err();
            assert!(error.why.contains(why), "{}", error.why);
        }
    }

    #[test]
    fn what_is_no_root_file_system_is_told_with_the_next_step() {
        let saved = made(&[
            ("manifest.json", FILE, 0o644, b"[]", ""),
            ("ab/layer.tar", FILE, 0o644, b"", ""),
        ]);
        assert!(saved.unwrap_err().next.unwrap().contains("docker load"));
        assert!(made(&[]).is_err());
        let out = || tempfile::tempfile().unwrap();
        let packed = from_tar(&b"\x1f\x8b\x08\0"[..], out()).unwrap_err();
        assert!(packed.next.unwrap().starts_with("`gzip -dc FILE"));
        let cut = tar_of(&[("a", FILE, 0o644, &[1; 4000], "")]);
        for bytes in [&cut[..2000], &b"no tar at all, whatever it is"[..]] {
            assert!(from_tar(bytes, out()).is_err());
        }
    }

    #[test]
    fn a_folder_becomes_the_same_tar_each_time_with_its_links() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir_all(root.join("usr/bin")).unwrap();
        fs::write(root.join("usr/bin/sh"), "#!").unwrap();
        fs::hard_link(root.join("usr/bin/sh"), root.join("usr/bin/zz")).unwrap();
        std::os::unix::fs::symlink("usr/bin", root.join("bin")).unwrap();
        let long = "n".repeat(120);
        fs::write(root.join(&long), "long").unwrap();
        let socket = std::os::unix::net::UnixListener::bind(root.join("s")).unwrap();
        let mut outs = vec![];
        for _ in 0..2 {
            let mut out = tempfile::tempfile().unwrap();
            let made = from_folder(root, out.try_clone().unwrap()).unwrap();
            assert_eq!((made.entries, made.dropped, made.has_shell), (6, 1, true));
            let mut bytes = vec![];
            out.rewind().unwrap();
            out.read_to_end(&mut bytes).unwrap();
            outs.push((made, bytes));
        }
        drop(socket);
        assert_eq!(outs[0], outs[1]);
        let unpacked = tempfile::tempdir().unwrap();
        tar::Archive::new(&outs[0].1[..])
            .unpack(unpacked.path())
            .unwrap();
        let read = |path: &str| fs::read_to_string(unpacked.path().join(path)).unwrap();
        assert_eq!(
            (read("bin/zz"), read(&long)),
            ("#!".to_owned(), "long".to_owned())
        );
    }
}
