//! The fuzz targets on their committed seeds, without the fuzzer: any build runs them.

use std::path::{Path, PathBuf};

#[path = "../../fuzz/src/egress.rs"]
mod egress;
#[path = "../../fuzz/src/gateway.rs"]
mod gateway;
#[path = "../../fuzz/src/heads.rs"]
mod heads;
#[path = "../../fuzz/src/log.rs"]
mod log;
#[path = "../../fuzz/src/parsers.rs"]
mod parsers;
#[path = "../../fuzz/src/vault.rs"]
mod vault;
#[path = "../../fuzz/src/wire.rs"]
mod wire;

fn all() -> impl Iterator<Item = &'static parsers::Target> {
    let of_log = log::ALL.iter();
    parsers::ALL
        .iter()
        .chain(of_log)
        .chain(vault::ALL)
        .chain(wire::ALL)
        .chain(gateway::ALL)
        .chain(heads::ALL)
        .chain(egress::ALL)
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn every_fuzz_seed_passes_its_target() {
    let mut tried = 0;
    for (name, target) in all() {
        let seeds = folder().join("corpus").join(name);
        let files = names(&seeds);
        assert!(!files.is_empty(), "{name} has no seed");
        for file in files {
            let seed = std::fs::read(seeds.join(&file)).unwrap();
            println!("{name} {file}");
            target(&seed);
            // And what a fuzzer does first: cut, and changed in one place.
            for cut in [0, 1, seed.len() / 2, seed.len().saturating_sub(1)] {
                target(&seed[..cut.min(seed.len())]);
            }
            for at in (0..seed.len()).step_by((seed.len() / 64).max(1)) {
                let mut changed = seed.clone();
                changed[at] ^= 1 << (at % 8);
                target(&changed);
            }
            tried += 1;
        }
    }
    assert!(tried > 20);
}

#[test]
fn every_fuzz_target_has_its_program_and_its_seeds() {
    let mut known: Vec<String> = all().map(|(name, _)| (*name).to_owned()).collect();
    known.sort();
    assert_eq!(names(&folder().join("corpus")), known);
    let manifest = std::fs::read_to_string(folder().join("Cargo.toml")).unwrap();
    let manifest: toml::Table = manifest.parse().unwrap();
    let mut bins: Vec<&str> = manifest["bin"]
        .as_array()
        .unwrap()
        .iter()
        .map(|bin| bin["name"].as_str().unwrap())
        .collect();
    bins.sort_unstable();
    assert_eq!(bins, known);
    for name in &known {
        let text = std::fs::read_to_string(folder().join(format!("targets/{name}.rs"))).unwrap();
        assert!(text.contains(&format!("::{name}(data)")), "{name}");
    }
}

/// A seed that its parser refuses at once leads a fuzzer nowhere.
#[test]
fn the_seeds_of_plan_policy_and_connect_are_taken_by_their_parsers() {
    let read = |name: &str| std::fs::read(folder().join("corpus").join(name)).unwrap();
    for name in ["plan/sandbox", "plan/host"] {
        portcullis_core::plan::ExecPlan::from_json(&read(name)).unwrap();
    }
    for name in ["policy/empty", "policy/full"] {
        let value = serde_json::from_slice(&read(name)).unwrap();
        portcullis_core::policy::Document::parse(value).unwrap();
    }
    for name in ["connect/token", "connect/device"] {
        serde_json::from_slice::<portcullis_core::protocol::ConnectParams>(&read(name)).unwrap();
    }
}

/// Those that must be taken are, and no other: the target goes on from there.
#[test]
fn a_signed_seed_is_taken_where_its_name_says_so_and_nowhere_else() {
    let folder = folder().join("corpus/signed");
    let (taken, refused): (Vec<String>, Vec<String>) = names(&folder)
        .into_iter()
        .partition(|name| name.starts_with("taken"));
    assert!(taken.len() >= 4 && refused.len() >= 6);
    for name in taken.iter().chain(&refused) {
        let seed = std::fs::read(folder.join(name)).unwrap();
        assert_eq!(wire::is_taken(&seed), taken.contains(name), "{name}");
    }
}

/// What the target compares is there: a seed of two requests has two, and one that a bare LF would make into two headers none.
#[test]
fn heads_of_seeds_are_taken_as_they_were_sent() {
    let seed = |name: &str| {
        let seed = std::fs::read(folder().join("corpus/heads").join(name)).unwrap();
        heads::taken(&seed[1..], usize::from(seed[0])).len()
    };
    for (name, count) in [
        ("pipelined", 2),
        ("body-with-lf", 2),
        ("length-twice", 2),
        ("chunked", 1),
        ("upgrade", 1),
        ("bare-lf", 0),
        ("bare-cr", 0),
        ("fragment", 0),
        ("length-and-coding", 0),
    ] {
        assert_eq!(seed(name), count, "{name}");
    }
}
