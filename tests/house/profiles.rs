//! What must hold for the whole build: panics unwind, only tests can cause one, lints reach every member, no unsafe code, the bans are repeated.

use super::rust;
use super::{Source, file, found, none, tree};

/// The root file of each crate that is not the cell.
const ROOTS: &[&str] = &[
    "core/lib.rs",
    "actors/lib.rs",
    "src/lib.rs",
    "src/main.rs",
    "tests/main.rs",
    "xtask/src/main.rs",
];
/// The one file that may hold unsafe code.
const SYS: &str = "cell/src/sys.rs";

/// A panic that aborts would end the process instead of one actor.
fn panics(manifest: &str) -> Vec<String> {
    let manifest: toml::Table = match manifest.parse() {
        Ok(manifest) => manifest,
        Err(error) => return vec![format!("Cargo.toml: {error}")],
    };
    let mut findings = vec![];
    let none = toml::Table::new();
    let profiles = manifest
        .get("profile")
        .and_then(toml::Value::as_table)
        .unwrap_or(&none);
    for name in ["dev", "release"] {
        if !profiles.contains_key(name) {
            findings.push(format!(
                "Cargo.toml: no [profile.{name}] with panic = \"unwind\""
            ));
        }
    }
    for (name, profile) in profiles {
        let panic = profile.get("panic").and_then(toml::Value::as_str);
        let inherits =
            profile.get("inherits").is_some() || matches!(name.as_str(), "test" | "bench");
        if panic != Some("unwind") && !(panic.is_none() && inherits) {
            findings.push(format!(
                "Cargo.toml: [profile.{name}] has panic = {panic:?}"
            ));
        }
    }
    findings
}

/// Nor may anything else of the build say otherwise: another manifest, cargo's own settings, a flag of a build script.
fn aborts(tree: &[Source]) -> Vec<String> {
    let mut findings = vec![];
    for source in tree {
        let name = source.path.rsplit('/').next().unwrap_or_default();
        let is_manifest = name == "Cargo.toml";
        let is_settings =
            source.path.ends_with(".cargo/config.toml") || source.path.ends_with(".cargo/config");
        if is_manifest || is_settings {
            let Ok(table) = source.text.parse::<toml::Table>() else {
                findings.push(format!("{}: not toml", source.path));
                continue;
            };
            abort_within(&toml::Value::Table(table), &source.path, &mut findings);
        }
        let said = ["panic=", "panic-strategy", "PROFILE_DEV_PANIC", "_PANIC="];
        if (is_settings || name == "build.rs") && said.iter().any(|word| source.text.contains(word))
        {
            findings.push(format!("{}: tells how a panic ends", source.path));
        }
    }
    findings
}

fn abort_within(value: &toml::Value, path: &str, findings: &mut Vec<String>) {
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                if key.to_ascii_lowercase().ends_with("panic") && value.as_str().is_some() {
                    if value.as_str() != Some("unwind") {
                        findings.push(format!("{path}: {key} = {value}"));
                    }
                } else {
                    abort_within(value, path, findings);
                }
            }
        }
        toml::Value::Array(items) => {
            for item in items {
                abort_within(item, path, findings);
            }
        }
        _ => {}
    }
}

fn lints(tree: &[Source]) -> Vec<String> {
    let mut findings = vec![];
    for source in tree
        .iter()
        .filter(|source| source.path.ends_with("Cargo.toml") && !source.path.starts_with("fuzz/"))
    {
        let Ok(manifest) = source.text.parse::<toml::Table>() else {
            findings.push(format!("{}: no manifest", source.path));
            continue;
        };
        let inherits = manifest
            .get("lints")
            .and_then(|lints| lints.get("workspace"))
            .and_then(toml::Value::as_bool);
        if inherits != Some(true) {
            findings.push(format!("{}: no [lints] workspace = true", source.path));
        }
    }
    for source in tree.iter().filter(|source| source.is_rust()) {
        let code = rust::code(&source.text);
        if ROOTS.contains(&source.path.as_str()) && !code.contains("#![forbid(unsafe_code)]") {
            findings.push(format!("{}: no #![forbid(unsafe_code)]", source.path));
        }
        if source.path != SYS && rust::has_word(&code, "unsafe") {
            findings.push(format!("{}: unsafe code outside {SYS}", source.path));
        }
    }
    findings
}

/// clippy reads the nearest clippy.toml only, so the rooms' must hold the root's bans too.
fn bans(tree: &[Source]) -> Vec<String> {
    let list = |path: &str| -> Vec<String> {
        let table: toml::Table = file(tree, path)
            .and_then(|source| source.text.parse().ok())
            .unwrap_or_default();
        let entries = table
            .get("disallowed-methods")
            .and_then(toml::Value::as_array)
            .cloned()
            .unwrap_or_default();
        entries
            .iter()
            .filter_map(|entry| entry.get("path")?.as_str().map(str::to_owned))
            .collect()
    };
    let (root, rooms) = (list("clippy.toml"), list("actors/clippy.toml"));
    let mut findings: Vec<String> = root
        .iter()
        .filter(|ban| !rooms.contains(ban))
        .map(|ban| format!("actors/clippy.toml does not repeat the ban of {ban}"))
        .collect();
    for ban in [
        "std::process::exit",
        "std::thread::sleep",
        "std::time::SystemTime::now",
    ] {
        if !root.iter().any(|known| known == ban) {
            findings.push(format!("clippy.toml does not ban {ban}"));
        }
    }
    if !rooms.iter().any(|known| known == "tokio::spawn") {
        findings.push("actors/clippy.toml does not ban tokio::spawn".to_owned());
    }
    findings
}

/// With this feature a room can be told to panic.
const CRASHES: &str = "crash-for-tests";

/// Only tests switch it on, and without it the code is not there.
fn crashes(tree: &[Source]) -> Vec<String> {
    let mut findings = vec![];
    for source in tree
        .iter()
        .filter(|source| source.path.ends_with("Cargo.toml"))
    {
        let Ok(mut manifest) = source.text.parse::<toml::Table>() else {
            findings.push(format!("{}: no TOML", source.path));
            continue;
        };
        manifest.remove("dev-dependencies");
        if let Some(toml::Value::Table(features)) = manifest.get_mut("features") {
            features.remove(CRASHES);
        }
        if manifest.to_string().contains(CRASHES) {
            findings.push(format!(
                "{}: {CRASHES} outside [dev-dependencies]",
                source.path
            ));
        }
    }
    let gate = format!("#[cfg(feature = \"{CRASHES}\")]\nmod fault;");
    if !file(tree, "actors/supervision/mod.rs").is_some_and(|source| source.text.contains(&gate)) {
        findings.push(format!(
            "actors/supervision/mod.rs: fault.rs is built without {CRASHES}"
        ));
    }
    findings
}

#[test]
fn only_tests_can_make_a_room_panic() {
    none(&crashes(&tree()));
}

#[test]
fn a_build_in_which_a_room_can_be_made_to_panic_is_found() {
    let gate = "#[cfg(feature = \"crash-for-tests\")]\nmod fault;";
    let look = |manifest: &str, gate: &str| {
        crashes(&[
            Source::new("actors/supervision/mod.rs", gate),
            Source::new("Cargo.toml", manifest),
        ])
    };
    none(&look(
        "[features]\ncrash-for-tests = []\n[dev-dependencies]\na = { features = [\"crash-for-tests\"] }",
        gate,
    ));
    found(&look("", "mod fault;"), "built without");
    for manifest in [
        "[dependencies]\na = { features = [\"crash-for-tests\"] }",
        "[features]\ndefault = [\"crash-for-tests\"]",
        "[target.x86_64.dependencies]\na = { features = [\"crash-for-tests\"] }",
    ] {
        found(&look(manifest, gate), "outside [dev-dependencies]");
    }
}

#[test]
fn a_panic_unwinds_in_every_profile() {
    let tree = tree();
    none(&panics(
        &file(&tree, "Cargo.toml")
            .expect("the workspace has a manifest")
            .text,
    ));
    for path in ["fuzz/Cargo.toml", ".cargo/config.toml", "build.rs"] {
        assert!(file(&tree, path).is_some(), "{path} is read too");
    }
    none(&aborts(&tree));
}

#[test]
fn an_abort_elsewhere_than_in_the_root_manifest_is_found() {
    let look = |path: &str, text: &str| aborts(&[Source::new(path, text)]);
    let profile = "[profile.release]\npanic = \"abort\"";
    for path in ["fuzz/Cargo.toml", "core/Cargo.toml", ".cargo/config.toml"] {
        found(&look(path, profile), path);
        none(&look(path, &profile.replace("abort", "unwind")));
    }
    let flags = "[build]\nrustflags = [\"-Cpanic=abort\"]";
    found(&look(".cargo/config.toml", flags), "how a panic ends");
    let variable = "[env]\nCARGO_PROFILE_DEV_PANIC = \"abort\"";
    found(&look(".cargo/config.toml", variable), "PANIC");
    let script = "println!(\"cargo::rustc-flags=-C panic=abort\")";
    found(&look("cell/build.rs", script), "how a panic ends");
}

#[test]
fn lints_reach_every_member_and_no_code_is_unsafe() {
    none(&lints(&tree()));
}

#[test]
fn the_rooms_repeat_the_bans_of_the_root() {
    none(&bans(&tree()));
}

#[test]
fn a_profile_that_aborts_is_found() {
    let good = "[profile.dev]\npanic = \"unwind\"\n[profile.release]\npanic = \"unwind\"\n";
    none(&panics(good));
    none(&panics(&format!(
        "{good}[profile.bench]\nopt-level = 3\n[profile.fast]\ninherits = \"release\""
    )));
    found(&panics(&good.replacen("unwind", "abort", 1)), "abort");
    found(
        &panics(&format!(
            "{good}[profile.fast]\ninherits = \"release\"\npanic = \"abort\""
        )),
        "profile.fast",
    );
    found(
        &panics("[profile.release]\npanic = \"unwind\""),
        "profile.dev",
    );
    found(
        &panics("[profile.dev]\n[profile.release]\npanic = \"unwind\""),
        "None",
    );
    found(&panics("not toml"), "Cargo.toml");
}

#[test]
fn a_member_without_lints_or_with_unsafe_code_is_found() {
    let look = |path: &str, text: &str| lints(&[Source::new(path, text)]);
    found(
        &look("core/Cargo.toml", "[package]\nname = \"x\""),
        "no [lints]",
    );
    found(
        &look("core/lib.rs", "// #![forbid(unsafe_code)]\n"),
        "no #![forbid",
    );
    found(
        &look("cell/src/main.rs", "fn f() { unsafe { g() } }"),
        "unsafe code outside",
    );
    none(&look("cell/src/sys.rs", "fn f() { unsafe { g() } }"));
    none(&look("core/lib.rs", "#![forbid(unsafe_code)]"));
}

#[test]
fn a_ban_that_is_not_repeated_is_found() {
    let root = "disallowed-methods = [{ path = \"std::process::exit\" }, { path = \"std::thread::sleep\" }, { path = \"std::time::SystemTime::now\" }]";
    let rooms = root.replace(']', ", { path = \"tokio::spawn\" }]");
    let look = |root: &str, rooms: &str| {
        bans(&[
            Source::new("clippy.toml", root),
            Source::new("actors/clippy.toml", rooms),
        ])
    };
    none(&look(root, &rooms));
    found(&look(root, root), "tokio::spawn");
    found(
        &look(root, &rooms.replace("thread::sleep", "thread::nap")),
        "does not repeat",
    );
    found(&look("", &rooms), "does not ban");
}
