//! Programs that the gateway itself starts: `[plugins]` names each by its path and its digest, and no other is started.
//!
//! What is executed is what was checked: the file is opened once, copied to sealed memory, and the digest is that of the copy.
//! Everything here blocks.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use portcullis_core::codes::{self, Code};
use portcullis_core::display::visible;
use portcullis_core::encoding::unhex;
use portcullis_core::ids::Hash32;
use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, ResolveFlags, SealFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The longest program.
const MOST: u64 = 64 << 20;
/// The longest `#!` line, as the kernel's.
const SHEBANG: usize = 256;
/// What looks for another program and becomes it.
const ENV: &str = "env";
/// Programs of which a word of the `#!` line names a part.
const MULTI_CALL: [&str; 2] = ["busybox", "toybox"];
/// The bits by which a program gets more than who starts it.
const SET_ID: u32 = 0o6000;

/// `[plugins.NAME]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Plugin {
    /// The program, by its absolute path without symbolic links.
    pub path: PathBuf,
    /// SHA-256 of its bytes, 64 hexadecimal digits.
    pub sha256: String,
}

/// `[plugins]`: by name; `*` is what holds for each unless it says otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Plugins(BTreeMap<String, Plugin>);

impl Default for Plugins {
    fn default() -> Self {
        Self([("*".to_owned(), Plugin::default())].into())
    }
}

/// Why a plugin is not started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct PluginRefusal {
    /// `PLUGIN_NOT_FOUND`, `PLUGIN_UNSAFE` or `PLUGIN_CHANGED`.
    pub code: &'static Code,
    /// What is wrong, and where.
    pub message: String,
}

/// A program that was checked, ready to be executed.
#[derive(Debug)]
pub struct Checked {
    /// Its bytes, sealed: the program, or the interpreter of a script.
    pub program: OwnedFd,
    /// The script, sealed, where it is one.
    pub script: Option<OwnedFd>,
    /// The words before its own arguments. A script's stands last, and is replaced by its descriptor.
    pub words: Vec<String>,
}

impl Plugins {
    /// Those that there are.
    pub fn named(&self) -> impl Iterator<Item = (&str, &Plugin)> {
        let named = self.0.iter().filter(|(name, _)| *name != "*");
        named.map(|(name, plugin)| (name.as_str(), plugin))
    }

    /// One of them.
    pub fn get(&self, name: &str) -> Option<&Plugin> {
        self.named()
            .find_map(|(known, plugin)| (known == name).then_some(plugin))
    }

    /// What is wrong with what is written down: the key, and why.
    pub fn problems(&self) -> Vec<(String, &'static str)> {
        let mut problems = Vec::new();
        for (name, plugin) in self.named() {
            if !plugin.path.is_absolute() || plugin.path.components().count() < 2 {
                problems.push((
                    format!("plugins.{name}.path"),
                    "the absolute path of a program",
                ));
            }
            if unhex::<32>(&plugin.sha256.to_ascii_lowercase()).is_none() {
                problems.push((
                    format!("plugins.{name}.sha256"),
                    "SHA-256 of the program, 64 hexadecimal digits: `sha256sum FILE` says it",
                ));
            }
        }
        problems
    }

    /// Opens and checks one of them.
    ///
    /// # Errors
    /// [`PluginRefusal`]: it must not be started.
    pub fn check(&self, name: &str) -> Result<Checked, PluginRefusal> {
        let plugin = self.get(name).ok_or_else(|| PluginRefusal {
            code: codes::PLUGIN_NOT_FOUND,
            message: format!("there is no [plugins.{}]", visible(name)),
        })?;
        let own = plugin.path.to_string_lossy().into_owned();
        let program = plugin.open()?;
        let Some(line) = shebang(&program)
            .map_err(|why| plugin.refused(codes::PLUGIN_UNSAFE, format_args!("{why}")))?
        else {
            return Ok(Checked {
                program,
                script: None,
                words: vec![own],
            });
        };
        // What reads a script is what runs: it is named too, or nobody has vouched for it.
        let (interpreter, argument) = line;
        // Its line may name it by a link, such as /bin/sh: what is executed is what is named here.
        let meant = Path::new(&interpreter).canonicalize().ok();
        let names = [Some(Path::new(&interpreter)), meant.as_deref()];
        let is_one_of = |known: &[&str]| {
            let names = names.into_iter().flatten().filter_map(Path::file_name);
            names
                .into_iter()
                .any(|name| known.iter().any(|k| *name == **k))
        };
        // An interpreter takes options there. A word is another program that would read the script: nobody has pinned that.
        let is_word = argument.as_deref().is_some_and(|a| !a.starts_with('-'));
        if is_one_of(&[ENV]) || is_word && !is_one_of(&MULTI_CALL) {
            return Err(plugin.refused(
                codes::PLUGIN_UNSAFE,
                format_args!(
                    "is read by what {} {} finds, which no digest is known of: name the interpreter itself in its #! line, by its path",
                    visible(&interpreter),
                    visible(argument.as_deref().unwrap_or_default()),
                ),
            ));
        }
        let named = self
            .named()
            .find(|(_, other)| meant.as_deref() == Some(&other.path));
        let (_, reader) = named.ok_or_else(|| {
            plugin.refused(
                codes::PLUGIN_UNSAFE,
                format_args!(
                    "is read by {}, which no entry of [plugins] names: add one with its path and digest",
                    visible(&interpreter)
                ),
            )
        })?;
        let reader_program = reader.open()?;
        if !matches!(shebang(&reader_program), Ok(None)) {
            return Err(reader.refused(codes::PLUGIN_UNSAFE, "is a script that reads a script"));
        }
        let words = [Some(interpreter), argument, Some(own)];
        Ok(Checked {
            program: reader_program,
            script: Some(program),
            words: words.into_iter().flatten().collect(),
        })
    }
}

impl Plugin {
    fn refused(&self, code: &'static Code, why: impl std::fmt::Display) -> PluginRefusal {
        let path = self.path.to_string_lossy();
        PluginRefusal {
            code,
            message: format!("{} {why}", visible(&path)),
        }
    }

    /// Its bytes in sealed memory, after all checks.
    fn open(&self) -> Result<OwnedFd, PluginRefusal> {
        let unsafe_ = |why: &dyn std::fmt::Display| self.refused(codes::PLUGIN_UNSAFE, why);
        // By O_PATH first: opening a pipe or device has effects of its own.
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let looked = rustix::fs::openat2(CWD, &self.path, flags, Mode::empty(), resolve);
        let looked = looked.map(File::from).map_err(|error| match error {
            Errno::LOOP => unsafe_(&"is, or lies behind, a symbolic link: name what it leads to"),
            error => self.refused(
                codes::PLUGIN_NOT_FOUND,
                format_args!("cannot be opened: {}", io::Error::from(error)),
            ),
        })?;
        let data = looked.metadata().map_err(|error| unsafe_(&error))?;
        if let Some(why) = unfit(&data) {
            return Err(unsafe_(&why));
        }
        if let Some(why) = open_above(&self.path) {
            return Err(unsafe_(&why));
        }
        // This very file: by its descriptor, not by its name again.
        let file = File::open(format!("/proc/self/fd/{}", looked.as_raw_fd()))
            .map_err(|error| unsafe_(&format_args!("cannot be read: {error}")))?;
        let (found, sealed) =
            sealed(file).map_err(|error| unsafe_(&format_args!("cannot be copied: {error}")))?;
        if unhex::<32>(&self.sha256.to_ascii_lowercase()) != Some(found.0) {
            return Err(self.refused(
                codes::PLUGIN_CHANGED,
                format_args!("has the digest {found}, which is not the one in [plugins]"),
            ));
        }
        Ok(sealed)
    }
}

/// Who could change it, or gain by it.
fn unfit(data: &Metadata) -> Option<String> {
    if !data.is_file() {
        return Some("is no plain file".to_owned());
    }
    if let Some(why) = of_others(data) {
        return Some(why);
    }
    if data.mode() & SET_ID != 0 {
        return Some("has the set-user-ID or set-group-ID bit".to_owned());
    }
    if data.mode() & 0o111 == 0 {
        return Some("is not executable".to_owned());
    }
    (data.len() > MOST).then(|| "is longer than 64 MiB".to_owned())
}

/// Somebody beside root and this gateway's user may write it. An access list shows in the bits of the group (acl(5)).
fn of_others(data: &Metadata) -> Option<String> {
    let own = rustix::process::geteuid().as_raw();
    if data.uid() != 0 && data.uid() != own {
        return Some(format!(
            "belongs to uid {}, neither to root nor to the gateway's user",
            data.uid()
        ));
    }
    (data.mode() & 0o022 != 0).then(|| {
        format!(
            "may be written by others (mode {:03o}): chmod go-w",
            data.mode() & 0o777
        )
    })
}

/// A folder above it in which somebody else could put another file in its place. The sticky bit keeps others from what is not
/// theirs (inode(7)).
fn open_above(path: &Path) -> Option<String> {
    path.ancestors().skip(1).find_map(|folder| {
        let shown = folder.to_string_lossy();
        let shown = visible(&shown);
        match folder.symlink_metadata() {
            Err(error) => Some(format!("lies under {shown}: {error}")),
            Ok(data) if data.uid() == 0 && data.mode() & 0o1000 != 0 => None,
            Ok(data) => of_others(&data).map(|why| format!("lies under {shown}, which {why}")),
        }
    })
}

/// A copy that nobody can change any more, opened for reading only: what is open for writing is not executed.
fn sealed(file: File) -> io::Result<(Hash32, OwnedFd)> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let name = "portcullis-plugin";
    // Kernels before 6.3 do not know EXEC, and need not be told.
    let memory = rustix::fs::memfd_create(name, flags | MemfdFlags::EXEC)
        .or_else(|_| rustix::fs::memfd_create(name, flags))?;
    let mut memory = File::from(memory);
    let mut limited = file.take(MOST + 1);
    let copied = io::copy(&mut limited, &mut memory)?;
    if copied > MOST {
        return Err(io::Error::other("it grows while it is read"));
    }
    memory.flush()?;
    rustix::fs::fchmod(&memory, Mode::from_raw_mode(0o555))?;
    let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&memory, seals)?;
    // Of the copy, once nobody can change it.
    memory.rewind()?;
    let mut digest = Sha256::new();
    io::copy(&mut memory, &mut HashWriter(&mut digest))?;
    let reading = File::open(format!("/proc/self/fd/{}", memory.as_raw_fd()))?;
    Ok((Hash32(digest.finalize().into()), reading.into()))
}

struct HashWriter<'a>(&'a mut Sha256);

impl io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Interpreter and argument of a script.
fn shebang(program: &OwnedFd) -> Result<Option<(String, Option<String>)>, &'static str> {
    let mut head = [0; SHEBANG];
    let count = rustix::io::pread(program, &mut head, 0).map_err(|_| "cannot be read")?;
    let Some(line) = head[..count].strip_prefix(b"#!") else {
        return Ok(None);
    };
    let end = line.iter().position(|byte| *byte == b'\n');
    let end = end.ok_or("has a #! line longer than 254 bytes, or no other line")?;
    let text = std::str::from_utf8(&line[..end]).map_err(|_| "has a #! line that is not UTF-8")?;
    let text = text.trim_matches([' ', '\t']);
    if text.chars().any(|c| c.is_control() && c != '\t') {
        return Err("has a control character in its #! line");
    }
    let (interpreter, argument) = match text.split_once([' ', '\t']) {
        Some((interpreter, rest)) => (interpreter, rest.trim_matches([' ', '\t'])),
        None => (text, ""),
    };
    if !interpreter.starts_with('/') {
        return Err("has no absolute path in its #! line");
    }
    let argument = (!argument.is_empty()).then(|| argument.to_owned());
    Ok(Some((interpreter.to_owned(), argument)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    fn sha(bytes: &[u8]) -> String {
        Hash32::of(bytes).to_string()
    }

    fn plugins(entries: &[(&str, &Path, &str)]) -> Plugins {
        let mut plugins = Plugins::default();
        for (name, path, sha256) in entries {
            let plugin = Plugin {
                path: (*path).to_owned(),
                sha256: (*sha256).to_owned(),
            };
            plugins.0.insert((*name).to_owned(), plugin);
        }
        plugins
    }

    fn mode(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    /// The real place of a temporary folder: no link on the way to it.
    fn folder() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap();
        (folder, path)
    }

    #[test]
    fn only_the_named_bytes_that_nobody_else_can_write_are_given_out() {
        let (_folder, at) = folder();
        let path = at.join("notify");
        let bytes = b"\x7fELF not really";
        std::fs::write(&path, bytes).unwrap();
        mode(&path, 0o755);
        let right = sha(bytes);
        let all = plugins(&[("notify", &path, &right)]);
        let code = |plugins: &Plugins| plugins.check("notify").unwrap_err().code;
        let given = all.check("notify").unwrap();
        assert_eq!(given.words, [path.to_str().unwrap()]);
        assert!(given.script.is_none());
        // By large letters too; by another digest not.
        plugins(&[("notify", &path, &right.to_uppercase())])
            .check("notify")
            .unwrap();
        assert_eq!(
            code(&plugins(&[("notify", &path, &sha(b"x"))])),
            codes::PLUGIN_CHANGED
        );
        // What others could have changed is not even read.
        for bad in [0o775, 0o757, 0o4755, 0o2755, 0o644] {
            mode(&path, bad);
            let refused = all.check("notify").unwrap_err();
            assert_eq!(refused.code, codes::PLUGIN_UNSAFE, "{bad:o}: {refused}");
        }
        mode(&path, 0o755);
        all.check("notify").unwrap();
        // A folder above it.
        mode(&at, 0o777);
        let refused = all.check("notify").unwrap_err();
        assert!(
            refused.message.contains("which may be written by others"),
            "{refused}"
        );
        assert_eq!(refused.code, codes::PLUGIN_UNSAFE);
        mode(&at, 0o755);
        // A link, to it and above it.
        let link = at.join("link");
        symlink(&path, &link).unwrap();
        assert_eq!(
            code(&plugins(&[("notify", &link, &right)])),
            codes::PLUGIN_UNSAFE
        );
        let above = at.join("above");
        symlink(&at, &above).unwrap();
        assert_eq!(
            code(&plugins(&[("notify", &above.join("notify"), &right)])),
            codes::PLUGIN_UNSAFE
        );
        // Replaced by other bytes, by a folder, by nothing.
        std::fs::write(&path, b"other bytes").unwrap();
        assert_eq!(code(&all), codes::PLUGIN_CHANGED);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(code(&all), codes::PLUGIN_NOT_FOUND);
        std::fs::create_dir(&path).unwrap();
        assert_eq!(code(&all), codes::PLUGIN_UNSAFE);
        assert_eq!(
            all.check("other").unwrap_err().code,
            codes::PLUGIN_NOT_FOUND
        );
        // The template is no program.
        assert_eq!(all.check("*").unwrap_err().code, codes::PLUGIN_NOT_FOUND);
    }

    #[test]
    fn what_was_checked_does_not_change_with_the_file() {
        let (_folder, at) = folder();
        let path = at.join("notify");
        std::fs::write(&path, b"first").unwrap();
        mode(&path, 0o700);
        let given = plugins(&[("notify", &path, &sha(b"first"))])
            .check("notify")
            .unwrap();
        std::fs::write(&path, b"second").unwrap();
        let mut text = String::new();
        let mut program = File::from(given.program);
        program.read_to_string(&mut text).unwrap();
        assert_eq!(text, "first");
        let written = File::options()
            .write(true)
            .open(format!("/proc/self/fd/{}", program.as_raw_fd()))
            .and_then(|mut file| file.write_all(b"x"));
        assert!(written.is_err());
    }

    #[test]
    fn a_script_needs_its_interpreter_named_too() {
        let (_folder, at) = folder();
        let (script, reader) = (at.join("notify"), at.join("reader"));
        let text = format!("#! {} -u\nsay\n", reader.display());
        std::fs::write(&script, &text).unwrap();
        std::fs::write(&reader, b"reads").unwrap();
        mode(&script, 0o755);
        mode(&reader, 0o755);
        let own = sha(text.as_bytes());
        let refused = plugins(&[("notify", &script, &own)])
            .check("notify")
            .unwrap_err();
        assert_eq!(refused.code, codes::PLUGIN_UNSAFE);
        assert!(refused.message.contains("add one"), "{refused}");
        let both = |digest: &str| {
            plugins(&[("notify", &script, &own), ("reader", &reader, digest)]).check("notify")
        };
        assert_eq!(both(&sha(b"x")).unwrap_err().code, codes::PLUGIN_CHANGED);
        let given = both(&sha(b"reads")).unwrap();
        let [reader, script] = [&reader, &script].map(|path| path.to_str().unwrap().to_owned());
        assert_eq!(given.words, [reader, "-u".to_owned(), script]);
        assert!(given.script.is_some());
    }

    /// The bug: `env` was pinned, and the interpreter that it found was not.
    #[test]
    fn a_script_whose_reader_finds_another_program_is_not_started() {
        let (_folder, at) = folder();
        let env = at.join("env");
        let link = at.join("link");
        symlink(&env, &link).unwrap();
        for name in ["env", "nice", "python", "busybox"] {
            std::fs::write(at.join(name), b"reads").unwrap();
            mode(&at.join(name), 0o755);
        }
        for (reader, rest, runs) in [
            ("env", " python3", false),
            ("env", " -S python3 -u", false),
            ("env", "", false),
            // By another name for it.
            ("link", " -Spython3", false),
            ("nice", " python3", false),
            ("python", " -u", true),
            ("python", "", true),
            ("busybox", " sh", true),
        ] {
            let script = at.join("notify");
            let text = format!("#!{}{rest}\nsay\n", at.join(reader).display());
            std::fs::write(&script, &text).unwrap();
            mode(&script, 0o755);
            let named = at.join(if reader == "link" { "env" } else { reader });
            let digests = (sha(text.as_bytes()), sha(b"reads"));
            let checked = plugins(&[("notify", &script, &digests.0), ("r", &named, &digests.1)])
                .check("notify");
            assert_eq!(checked.is_ok(), runs, "{reader}{rest}: {checked:?}");
            if let Err(refused) = checked {
                assert_eq!(refused.code, codes::PLUGIN_UNSAFE);
                assert!(refused.message.contains("by its path"), "{refused}");
            }
        }
    }

    #[test]
    fn what_is_written_down_is_checked_before_anything_starts() {
        let good = sha(b"x");
        let problems = |path: &str, sha256: &str| {
            plugins(&[("a", Path::new(path), sha256)])
                .problems()
                .into_iter()
                .map(|(key, _)| key)
                .collect::<Vec<_>>()
        };
        assert!(problems("/usr/bin/notify", &good).is_empty());
        assert_eq!(problems("notify", &good), ["plugins.a.path"]);
        assert_eq!(problems("/", &good), ["plugins.a.path"]);
        assert_eq!(problems("/x", &good[1..]), ["plugins.a.sha256"]);
        assert_eq!(problems("", ""), ["plugins.a.path", "plugins.a.sha256"]);
        assert!(Plugins::default().problems().is_empty());
    }
}
