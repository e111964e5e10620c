//! Finds planted secrets in any bytes, in the forms in which they get about.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};

use aho_corasick::AhoCorasick;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

use crate::support::ws::hex;

/// Most bytes that one compressed member is followed to.
const INFLATED: u64 = 64 << 20;
/// Compressed within compressed within compressed.
const DEPTH: u8 = 3;

/// What one search found: whose secret, in which form, where.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hit {
    pub canary: String,
    pub form: &'static str,
    pub place: String,
}

/// All planted secrets, as one automaton.
pub struct Search {
    automaton: AhoCorasick,
    /// Of each pattern.
    of: Vec<(String, &'static str)>,
    /// How what is compressed begins (RFC 1952).
    gzip: AhoCorasick,
}

/// Every form of these bytes. Letters count as equal in either case: hexadecimal digits have both.
pub fn forms(value: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let text = String::from_utf8_lossy(value).into_owned();
    let json = |text: &str| {
        let quoted = serde_json::to_string(text).unwrap();
        quoted[1..quoted.len() - 1].to_owned()
    };
    let each = |one: &dyn Fn(u8) -> String| value.iter().map(|byte| one(*byte)).collect::<String>();
    let some = |keep: &[u8]| {
        each(&|byte| {
            if byte.is_ascii_alphanumeric() || keep.contains(&byte) {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
    };
    let mut forms = vec![
        ("raw", value.to_vec()),
        ("hex", hex(value).into_bytes()),
        ("percent", some(b"-._~").into_bytes()),
        ("percent", each(&|byte| format!("%{byte:02X}")).into_bytes()),
        ("form", some(b"-._*").replace("%20", "+").into_bytes()),
        ("JSON", json(&text).into_bytes()),
        ("JSON in JSON", json(&json(&text)).into_bytes()),
        ("JSON", each(&|byte| format!("\\u{byte:04x}")).into_bytes()),
        (
            "Debug of bytes",
            each(&|byte| format!("{byte}, "))
                .trim_end_matches(", ")
                .into(),
        ),
        (
            "list of bytes",
            each(&|byte| format!("{byte},"))
                .trim_end_matches(',')
                .into(),
        ),
    ];
    // Wherever it begins in what was encoded: three alignments, each without the characters that it shares.
    for before in 0..3 {
        let bytes = [vec![0; before], value.to_vec()].concat();
        let from = before.div_ceil(3) + before;
        let shared = usize::from(bytes.len() % 3 != 0);
        let inner = |text: String| text.as_bytes()[from..text.len() - shared].to_vec();
        forms.push(("base64", inner(STANDARD_NO_PAD.encode(&bytes))));
        forms.push(("base64url", inner(URL_SAFE_NO_PAD.encode(&bytes))));
    }
    // Where an encoding changes nothing, it is found once.
    let mut known = BTreeSet::new();
    forms.retain(|(_, bytes)| known.insert(bytes.clone()));
    forms
}

impl Search {
    /// For these: each a name and its bytes, 8 or more, so that no chance finds them.
    pub fn of(canaries: &[(String, Vec<u8>)]) -> Self {
        let (mut patterns, mut of) = (vec![], vec![]);
        for (name, value) in canaries {
            assert!(value.len() >= 8, "{name} is too short to be searched for");
            for (form, bytes) in forms(value) {
                patterns.push(bytes);
                of.push((name.clone(), form));
            }
        }
        let automaton = AhoCorasick::builder()
            .ascii_case_insensitive(true)
            .build(patterns)
            .unwrap();
        let gzip = AhoCorasick::new([[0x1f, 0x8b, 8]]).unwrap();
        Self {
            automaton,
            of,
            gzip,
        }
    }

    /// In these bytes, and in what is compressed (gzip) in them.
    pub fn bytes(&self, place: &str, bytes: &[u8]) -> BTreeSet<Hit> {
        let mut hits = BTreeSet::new();
        self.look(place, bytes, DEPTH, &mut hits);
        hits
    }

    fn look(&self, place: &str, bytes: &[u8], depth: u8, hits: &mut BTreeSet<Hit>) {
        for found in self.automaton.find_overlapping_iter(bytes) {
            let (canary, form) = &self.of[found.pattern().as_usize()];
            hits.insert(Hit {
                canary: canary.clone(),
                form,
                place: place.to_owned(),
            });
        }
        if depth == 0 {
            return;
        }
        for magic in self.gzip.find_iter(bytes) {
            let mut inside = vec![];
            // What was read before it broke off counts too.
            let _ = flate2::read::MultiGzDecoder::new(&bytes[magic.start()..])
                .take(INFLATED)
                .read_to_end(&mut inside);
            self.look(&format!("{place}, in gzip"), &inside, depth - 1, hits);
        }
    }

    /// In all files below this folder, their names and the targets of links among them. Sockets and pipes are passed over.
    pub fn tree(&self, folder: &Path, but: &[PathBuf]) -> BTreeSet<Hit> {
        let mut hits = BTreeSet::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            // Files come and go while the gateway lives.
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                let path = entry.path();
                let shown = path.display().to_string();
                hits.extend(self.bytes(&format!("name of {shown}"), shown.as_bytes()));
                let Ok(meta) = path.symlink_metadata() else {
                    continue;
                };
                if but.contains(&path) {
                } else if meta.is_dir() {
                    folders.push(path);
                } else if meta.is_symlink() {
                    let target = fs::read_link(&path).unwrap_or_default();
                    let target = target.display().to_string();
                    hits.extend(self.bytes(&format!("target of {shown}"), target.as_bytes()));
                } else if meta.is_file() {
                    hits.extend(self.bytes(&shown, &fs::read(&path).unwrap_or_default()));
                }
            }
        }
        hits
    }

    /// In arguments and environments of every process of this machine but this one, and in the open files of `of` and of all
    /// that it started (memory files among them).
    pub fn processes(&self, of: u32) -> BTreeSet<Hit> {
        let mut hits = BTreeSet::new();
        let own = std::process::id();
        for pid in pids().filter(|pid| *pid != own) {
            let folder = PathBuf::from(format!("/proc/{pid}"));
            let read = |what: &str| fs::read(folder.join(what)).unwrap_or_default();
            let line = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
            for what in ["cmdline", "environ"] {
                hits.extend(self.bytes(&format!("{what} of {pid} ({line})"), &read(what)));
            }
            if !is_below(pid, of) {
                continue;
            }
            for fd in fs::read_dir(folder.join("fd"))
                .into_iter()
                .flatten()
                .flatten()
            {
                if !fs::metadata(fd.path()).is_ok_and(|meta| meta.is_file()) {
                    continue;
                }
                let target = fs::read_link(fd.path()).unwrap_or_default();
                let place = format!("{} open in {pid} ({line})", target.display());
                hits.extend(self.bytes(&place, &fs::read(fd.path()).unwrap_or_default()));
            }
        }
        hits
    }
}

fn pids() -> impl Iterator<Item = u32> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Is it this process, or did that one start it?
fn is_below(mut pid: u32, of: u32) -> bool {
    while pid > 1 {
        if pid == of {
            return true;
        }
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let after = stat.rsplit(')').next().unwrap_or_default();
        let parent = after.split_whitespace().nth(1);
        pid = parent.and_then(|parent| parent.parse().ok()).unwrap_or(0);
    }
    false
}

#[test]
fn the_search_finds_a_deliberate_leak_in_every_form_and_place() {
    let value = r#"Pl4nted "se/cret"+\ value&ü"#.as_bytes();
    let search = Search::of(&[("it".to_owned(), value.to_vec())]);
    let text = std::str::from_utf8(value).unwrap();
    let found = |bytes: &[u8]| -> BTreeSet<&'static str> {
        search
            .bytes("here", bytes)
            .iter()
            .map(|hit| hit.form)
            .collect()
    };
    let standard = base64::engine::general_purpose::STANDARD;
    let url = base64::engine::general_purpose::URL_SAFE;
    // Made by other hands than the patterns, at each alignment.
    for before in ["", "x", "xy", "xyz"] {
        let all = format!("{before}{text} and on");
        assert!(found(all.as_bytes()).contains("raw"));
        assert!(
            found(standard.encode(&all).as_bytes()).contains("base64"),
            "{before}"
        );
        // Of an alignment without the characters in which they differ, both are one form.
        let in_url = found(url.encode(&all).as_bytes());
        assert!(in_url.contains("base64url") || in_url.contains("base64"));
        assert!(found(hex(all.as_bytes()).to_uppercase().as_bytes()).contains("hex"));
        let json = serde_json::json!({ "said": all }).to_string();
        assert!(found(json.as_bytes()).contains("JSON"));
        let twice = serde_json::json!({ "line": json }).to_string();
        assert!(found(twice.as_bytes()).contains("JSON in JSON"));
        let percent = "Pl4nted%20%22se%2Fcret%22%2B%5C%20value%26%C3%BC";
        assert!(found(format!("?{before}={percent}").as_bytes()).contains("percent"));
        assert!(found(percent.to_lowercase().as_bytes()).contains("percent"));
        assert!(found(percent.replace("%20", "+").as_bytes()).contains("form"));
        assert!(found(format!("{:?}", all.as_bytes()).as_bytes()).contains("Debug of bytes"));
        assert!(
            found(format!("{:?}", all.as_bytes()).replace(' ', "").as_bytes())
                .contains("list of bytes")
        );
        let mut gzip = flate2::write::GzEncoder::new(vec![], flate2::Compression::best());
        std::io::Write::write_all(&mut gzip, all.repeat(9).as_bytes()).unwrap();
        let packed = gzip.finish().unwrap();
        assert!(
            search.automaton.find(&packed).is_none(),
            "the packing shows it"
        );
        assert!(found(&[b"noise".to_vec(), packed].concat()).contains("raw"));
    }
    assert!(found(b"Pl4nted \"se/cret\"+\\ value").is_empty());
    // And where it lies: a file's content, its name, a link, a process.
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("deep")).unwrap();
    fs::write(at("deep/file"), value).unwrap();
    let bare = Search::of(&[("it".to_owned(), b"Pl4nted-name".to_vec())]);
    fs::write(at("Pl4nted-name"), "").unwrap();
    std::os::unix::fs::symlink("/Pl4nted-name", at("link")).unwrap();
    assert_eq!(search.tree(folder.path(), &[]).len(), 1);
    assert_eq!(bare.tree(folder.path(), &[]).len(), 2);
    assert!(search.tree(folder.path(), &[at("deep/file")]).is_empty());
    let mut leak = std::process::Command::new("sleep")
        .env("LEAK", "Pl4nted-env")
        .arg0("Pl4nted-arg")
        .arg("60")
        .spawn()
        .unwrap();
    let both = Search::of(&[
        ("env".to_owned(), b"Pl4nted-env".to_vec()),
        ("arg".to_owned(), b"Pl4nted-arg".to_vec()),
    ]);
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let seen = loop {
        let hits = both.processes(leak.id());
        let seen: BTreeSet<String> = hits.into_iter().map(|hit| hit.canary).collect();
        if seen.len() == 2 || std::time::Instant::now() > end {
            break seen;
        }
    };
    leak.kill().unwrap();
    leak.wait().unwrap();
    assert_eq!(seen, BTreeSet::from(["arg".to_owned(), "env".to_owned()]));
}
