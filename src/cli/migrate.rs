//! `portcullis vault migrate FILE`: secrets that lie in the clear go into the vault, the file is overwritten and removed, and
//! every readable file below the state and the backup folders that still holds one is named.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use aho_corasick::AhoCorasick;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use portcullis_actors::plain;
use portcullis_core::auth::Scope;
use portcullis_core::codes;
use portcullis_core::encoding::hex;
use portcullis_core::seal::Secret;
use portcullis_core::vault::{MAX_VALUE, check_name};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::failure::Failure;
use super::out::Out;
use crate::client::{Client, Door};
use crate::show::text::clean;
use crate::show::value::{field, list};

/// No file of secrets is longer, bytes.
const LONGEST: u64 = 8 * 1024 * 1024;
/// A shorter value is found by chance everywhere: it is not searched for, and that is said.
const SEARCHED: usize = 8;
/// How compressed and encrypted files begin: gzip, zip, xz, zstd, bzip2, lz4, age.
const CLOSED: [&[u8]; 7] = [
    b"\x1f\x8b",
    b"PK\x03\x04",
    b"\xfd7zXZ\x00",
    b"\x28\xb5\x2f\xfd",
    b"BZh",
    b"\x04\x22\x4d\x18",
    b"age-encryption.org/",
];

/// What is asked for.
pub struct Wanted<'a> {
    /// The file with the secrets.
    pub file: &'a Path,
    /// It stays as it is.
    pub keep: bool,
    /// May it overwrite secrets of the same name?
    pub replace: bool,
    /// `STATE`.
    pub state: PathBuf,
}

/// Runs it: 0 where nothing is left, 8 where a file still holds one of them or could not be looked into.
///
/// # Errors
/// [`Failure`]; the file is then as it was.
pub async fn run(door: &Door, wanted: &Wanted<'_>, out: Out) -> Result<u8, Failure> {
    let mut file = opened(wanted.file)?;
    let found = read(&mut file, wanted.file)?;
    let mut client = Client::connect(door, &[Scope::Admin], &[]).await?;
    let known = client.call("vault.list", json!({})).await?;
    let known: Vec<&str> = list(&known, "entries")
        .iter()
        .map(|one| field(one, "name"))
        .collect();
    let clash = found
        .iter()
        .filter(|(name, _)| known.contains(&name.as_str()));
    if !wanted.replace && clash.count() > 0 {
        let why = "some of these names are in the vault already: --replace sets them anew";
        return Err(Failure::of(codes::VAULT_EXISTS, why));
    }
    let config = client.call("config.get", json!({})).await?;
    let backups = config["config"]["vault"]["backups"].as_array();
    let backups: Vec<PathBuf> = backups
        .into_iter()
        .flatten()
        .filter_map(|path| path.as_str().map(PathBuf::from))
        .collect();
    for (name, value) in &found {
        let params = json!({ "name": name, "valueBase64": STANDARD.encode(value.expose()) });
        client.call("vault.set", params).await?;
    }
    client.close().await;
    // Each is in the vault, durable: only now may it go here.
    if !wanted.keep {
        wiped(&mut file, wanted.file).map_err(|error| {
            let what = format!("{} could not be overwritten", wanted.file.display());
            Failure::io(codes::STATE_IO, what, &error)
        })?;
    }
    let mut left = Left::default();
    let search = Search::of(&found);
    let folders = std::iter::once(&wanted.state).chain(&backups);
    for folder in folders {
        search.below(folder, &mut left);
    }
    if wanted.keep {
        search.file(wanted.file, &mut left);
    }
    left.files.sort();
    left.files.dedup();
    let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
    let answer = json!({
        "migrated": names, "rotate": names, "removed": !wanted.keep,
        "stillIn": left.files.iter().map(|(file, names)| json!({ "file": file, "names": names })).collect::<Vec<_>>(),
        "notLookedInto": left.closed, "notSearchedFor": search.short,
    });
    out.both(&answer, || told(&answer))?;
    let is_clean = left.files.is_empty() && left.closed.is_empty();
    Ok(if is_clean { 0 } else { 8 })
}

fn told(answer: &Value) -> String {
    use std::fmt::Write as _;
    let words = |key: &str| {
        let all = answer[key].as_array().into_iter().flatten();
        let all: Vec<&str> = all.filter_map(Value::as_str).collect();
        clean(&all.join(", "))
    };
    let mut text = format!("in the vault: {}\n", words("migrated"));
    if answer["removed"] == true {
        text.push_str("the file was overwritten and removed\n");
    }
    for one in list(answer, "stillIn") {
        let names = one["names"].as_array().into_iter().flatten();
        let names: Vec<&str> = names.filter_map(Value::as_str).collect();
        let file = clean(field(one, "file"));
        // A String takes everything.
        let _ = writeln!(
            text,
            "still in the clear in {file}: {}",
            clean(&names.join(", "))
        );
    }
    for (key, what) in [
        (
            "notLookedInto",
            "not looked into (compressed, encrypted or closed to you)",
        ),
        ("notSearchedFor", "too short to be searched for"),
    ] {
        if !list(answer, key).is_empty() {
            let _ = writeln!(text, "{what}: {}", words(key));
        }
    }
    let _ = writeln!(
        text,
        "change these at their source, for old blocks of the disk, snapshots and copies elsewhere may hold them: {}",
        words("rotate")
    );
    text
}

fn invalid(why: impl Into<String>) -> Failure {
    Failure::of(codes::VAULT_VALUE_INVALID, why)
}

/// A regular file, opened once: what is read is what is overwritten.
fn opened(path: &Path) -> Result<File, Failure> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path);
    let failed = |why: String| invalid(format!("{}: {why}", path.display()));
    let file = opened.map_err(|error| failed(error.to_string()))?;
    let meta = file.metadata().map_err(|error| failed(error.to_string()))?;
    if !meta.is_file() || meta.nlink() != 1 {
        return Err(failed(
            "it must be a regular file with one name: another name would keep it".to_owned(),
        ));
    }
    if meta.len() > LONGEST {
        return Err(failed("it is longer than 8 MiB".to_owned()));
    }
    Ok(file)
}

type Found = Vec<(String, Secret)>;

/// `NAME=VALUE` lines, or one JSON object of texts. No error repeats any of it.
fn read(file: &mut File, path: &Path) -> Result<Found, Failure> {
    let room = file.metadata().map_or(0, |meta| meta.len());
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(room).unwrap_or(0) + 2));
    let failed = |why: String| invalid(format!("{}: {why}", path.display()));
    let taken = file.take(LONGEST + 1).read_to_end(&mut bytes);
    taken.map_err(|error| failed(error.to_string()))?;
    let text = std::str::from_utf8(&bytes).map_err(|_| failed("it is no text".to_owned()))?;
    let found = if text.trim_start().starts_with('{') {
        let Ok(Value::Object(all)) = serde_json::from_str(text) else {
            return Err(failed("it is no JSON object".to_owned()));
        };
        let mut found = vec![];
        for (name, value) in all {
            let Value::String(value) = value else {
                return Err(failed("each value in it must be a text".to_owned()));
            };
            found.push((name, Secret::new(value.into_bytes())));
        }
        found
    } else {
        let mut found = vec![];
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            let line = line.strip_prefix("export ").unwrap_or(line);
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = || failed(format!("line {} is no NAME=VALUE", at + 1));
            let (name, value) = line.split_once('=').ok_or_else(wrong)?;
            let value = unquoted(value.trim()).ok_or_else(wrong)?;
            found.push((
                name.trim().to_owned(),
                Secret::new(value.as_bytes().to_vec()),
            ));
        }
        found
    };
    for (at, (name, value)) in found.iter().enumerate() {
        let nth = at + 1;
        // The name is not repeated either: who mixes them up has the secret there.
        check_name(name).map_err(|error| {
            Failure::of(codes::VAULT_NAME_INVALID, format!("entry {nth}: {error}"))
        })?;
        if value.is_empty() || value.len() > MAX_VALUE {
            return Err(failed(format!(
                "entry {nth} is empty or longer than 64 KiB"
            )));
        }
        if found[..at].iter().any(|(other, _)| other == name) {
            return Err(failed(format!(
                "entry {nth} has a name that was there before"
            )));
        }
    }
    if found.is_empty() {
        return Err(failed("there is nothing in it".to_owned()));
    }
    Ok(found)
}

/// A value as shells and dotenv files write it.
fn unquoted(value: &str) -> Option<Zeroizing<String>> {
    if let Some(rest) = value.strip_prefix('\'') {
        return Some(Zeroizing::new(rest.strip_suffix('\'')?.to_owned()));
    }
    let Some(rest) = value.strip_prefix('"') else {
        return Some(Zeroizing::new(value.to_owned()));
    };
    let mut plain = Zeroizing::new(String::with_capacity(rest.len()));
    let mut rest = rest.strip_suffix('"')?.chars();
    while let Some(c) = rest.next() {
        plain.push(match c {
            '\\' => match rest.next()? {
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                other => other,
            },
            '"' => return None,
            other => other,
        });
    }
    Some(plain)
}

/// Overwrites it, and removes its name.
fn wiped(file: &mut File, path: &Path) -> std::io::Result<()> {
    let meta = file.metadata()?;
    file.seek(SeekFrom::Start(0))?;
    let mut left = meta.len();
    let zeros = [0; 8 * 1024];
    while left > 0 {
        let now = left.min(zeros.len() as u64);
        file.write_all(&zeros[..usize::try_from(now).unwrap_or(0)])?;
        left -= now;
    }
    file.sync_all()?;
    file.set_len(0)?;
    // The name may lead elsewhere by now: then it is another's file.
    let named = fs::symlink_metadata(path)?;
    if (named.dev(), named.ino()) != (meta.dev(), meta.ino()) {
        return Err(std::io::Error::other("another file has its name now"));
    }
    fs::remove_file(path)?;
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or_else(|| Path::new(".")))?.sync_all()
}

/// What is left.
#[derive(Default)]
struct Left {
    /// Files, and whose secrets are in them.
    files: Vec<(String, Vec<String>)>,
    /// Files that could not be looked into.
    closed: Vec<String>,
}

struct Search {
    automaton: Option<AhoCorasick>,
    of: Vec<String>,
    short: Vec<String>,
}

impl Search {
    /// As they are, and as base64, hexadecimal and JSON write them.
    fn of(found: &Found) -> Self {
        let (mut patterns, mut of, mut short) = (vec![], vec![], vec![]);
        for (name, value) in found {
            let value = value.expose();
            if value.len() < SEARCHED {
                short.push(name.clone());
                continue;
            }
            let mut forms = vec![value.to_vec(), hex(value).into_bytes()];
            if let Ok(text) = std::str::from_utf8(value) {
                let quoted = serde_json::to_string(text).unwrap_or_default();
                forms.push(quoted.trim_matches('"').as_bytes().to_vec());
            }
            // Wherever it begins in what was encoded, without the characters that it shares.
            for before in 0..3 {
                let bytes = [vec![0; before], value.to_vec()].concat();
                let from = before.div_ceil(3) + before;
                let shared = usize::from(bytes.len() % 3 != 0);
                for engine in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
                    let text = engine.encode(&bytes);
                    forms.push(text.as_bytes()[from..text.len() - shared].to_vec());
                }
            }
            of.extend(std::iter::repeat_n(name.clone(), forms.len()));
            patterns.extend(forms);
        }
        let automaton = AhoCorasick::builder()
            .ascii_case_insensitive(true)
            .build(patterns);
        Self {
            automaton: automaton.ok(),
            of,
            short,
        }
    }

    fn below(&self, folder: &Path, left: &mut Left) {
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            let Ok(entries) = fs::read_dir(&folder) else {
                left.closed.push(folder.display().to_string());
                continue;
            };
            for entry in entries.flatten() {
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                    Ok(kind) if kind.is_file() => self.file(&entry.path(), left),
                    // A link leads to a file that has a place of its own; sockets and pipes hold nothing.
                    _ => {}
                }
            }
        }
    }

    fn file(&self, path: &Path, left: &mut Left) {
        let shown = path.display().to_string();
        // An agent writes below here meanwhile: a link or a pipe may lie there by now.
        let Ok(mut file) = plain::open(File::options().read(true), path) else {
            left.closed.push(shown);
            return;
        };
        let mut head = [0; 32];
        let read = file.read(&mut head).unwrap_or(0);
        if CLOSED.iter().any(|magic| head[..read].starts_with(magic)) {
            left.closed.push(shown);
            return;
        }
        let (Some(automaton), Ok(_)) = (&self.automaton, file.seek(SeekFrom::Start(0))) else {
            left.closed.push(shown);
            return;
        };
        let mut names = vec![];
        for found in automaton.stream_find_iter(std::io::BufReader::new(file)) {
            let Ok(found) = found else {
                left.closed.push(shown);
                return;
            };
            names.push(self.of[found.pattern().as_usize()].clone());
        }
        names.sort();
        names.dedup();
        if !names.is_empty() {
            left.files.push((shown, names));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Vec<(String, String)>, Failure> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("env");
        fs::write(&path, text).unwrap();
        let found = read(&mut opened(&path)?, &path)?;
        let plain = |(name, value): (String, Secret)| {
            (name, String::from_utf8(value.expose().to_vec()).unwrap())
        };
        Ok(found.into_iter().map(plain).collect())
    }

    #[test]
    fn a_file_of_secrets_is_read_as_shells_and_json_write_it_and_no_error_repeats_it() {
        let text = "# keys\nA=one two\n\nexport B='t\\wo'\nC=\"th\\\"r\\nee\"\nD==x=\n";
        let all = of(text).unwrap();
        let pairs: Vec<_> = all.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let expected = [
            ("A", "one two"),
            ("B", "t\\wo"),
            ("C", "th\"r\nee"),
            ("D", "=x="),
        ];
        assert_eq!(pairs, expected);
        assert_eq!(of("{\"A\": \"x\"}").unwrap(), [("A".into(), "x".into())]);
        for bad in [
            "hunter2",
            "A='hunter2",
            "A=\"hunter2",
            "A=\"hun\"ter2\"",
            "hunter2=x",
            "A=",
            "",
            "{\"A\": [\"hunter2\"]}",
            "{\"A\": \"hunter2\"",
            "A=x\nA=hunter2",
            "A=\"x\\\"",
        ] {
            let failure = of(bad).unwrap_err();
            assert!(
                !failure.message.contains("hunter2"),
                "{bad}: {}",
                failure.message
            );
        }
    }

    #[test]
    fn a_file_with_another_name_or_that_is_none_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("env"), "A=x").unwrap();
        fs::hard_link(at("env"), at("other")).unwrap();
        std::os::unix::fs::symlink(at("env"), at("link")).unwrap();
        for name in ["env", "link", "none", "."] {
            assert!(opened(&at(name)).is_err(), "{name}");
        }
        fs::remove_file(at("other")).unwrap();
        assert!(opened(&at("env")).is_ok());
    }

    /// As where an agent, whose folder is looked through too, put another thing there between the look at a name and its opening.
    #[test]
    fn a_link_or_a_pipe_under_a_name_is_not_searched_and_keeps_nobody_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("file"), "x hunter2hunter2 x").unwrap();
        std::os::unix::fs::symlink(at("file"), at("link")).unwrap();
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mkfifoat(rustix::fs::CWD, at("pipe"), mode).unwrap();
        let secret = Secret::new(b"hunter2hunter2".to_vec());
        let search = Search::of(&vec![("KEY".to_owned(), secret)]);
        let looked = |name: &str| {
            let mut left = Left::default();
            search.file(&at(name), &mut left);
            (left.files.len(), left.closed.len())
        };
        assert_eq!(looked("file"), (1, 0));
        assert_eq!(looked("link"), (0, 1));
        assert_eq!(looked("pipe"), (0, 1));
    }
}
