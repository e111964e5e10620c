//! `cargo xtask long [part]`: the same tests at their full counts, on the release profile. A test asks `PORTCULLIS_LONG`
//! how often it shall do its work; its figures are shown.

use anyhow::Result;

use crate::options::Options;
use crate::steps::Steps;
use crate::{cgroup2, fuzz, guards, test};

/// Part, and what its tests have in their names.
const PARTS: &[(&str, &[&str])] = &[
    ("kills", &["kills::", "kill_9"]),
    ("power", &["long::power::"]),
    ("boxes", &["long::boxes::"]),
    ("panics", &["long::panics::", "storm::"]),
    (
        "faults",
        &["long::faults::", "nth_failing", "failure_while_mending"],
    ),
    ("race", &["revocation::no_act_", "changed::no_act_"]),
    ("fuzz", &["long::fuzz::"]),
    ("guards", &["security::advisories::"]),
    ("abuse", &["long::abuse::"]),
    ("sockets", &["long::soak::idle"]),
    ("nodes", &["long::nodes::"]),
    ("soak", &["long::soak::under"]),
    // Chosen by the virtual machine that they run in.
    ("cgroup2", &[]),
];

pub fn run(options: &Options) -> Result<u8> {
    let wanted: Vec<_> = PARTS
        .iter()
        .filter(|(part, _)| {
            options.names.is_empty() || options.names.iter().any(|name| name == part)
        })
        .collect();
    if let Some(unknown) = options
        .names
        .iter()
        .find(|name| !PARTS.iter().any(|(part, _)| part == name))
    {
        let names: Vec<&str> = PARTS.iter().map(|(part, _)| *part).collect();
        eprintln!("no part {unknown:?}; there are: {}", names.join(", "));
        return Ok(2);
    }
    let Some(seconds) = seconds(&options.rest) else {
        eprintln!("after -- only --seconds N is known: how long each fuzz target runs");
        return Ok(2);
    };
    let mut steps = Steps::new()?;
    test::prepare(&mut steps, options)?;
    for (part, words) in wanted {
        if *part == "cgroup2" {
            cgroup2::run(&mut steps, options)?;
            continue;
        }
        if test::long(&mut steps, part, words)? == 0 {
            steps.could_not(format!("{part}: no test has {words:?} in its name"));
        }
        if *part == "fuzz" {
            fuzz::run(&mut steps, seconds)?;
        }
        if *part == "guards" {
            guards::run(&mut steps)?;
        }
    }
    Ok(steps.finish())
}

/// How long each fuzz target runs; `None`: not understood.
fn seconds(rest: &[String]) -> Option<u64> {
    match rest {
        [] => Some(fuzz::SECONDS),
        [flag, number] if flag == "--seconds" => number.parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_seconds_are_taken() {
        let rest = |words: &[&str]| {
            words
                .iter()
                .map(|word| (*word).to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(seconds(&[]), Some(fuzz::SECONDS));
        assert_eq!(seconds(&rest(&["--seconds", "120"])), Some(120));
        for wrong in [&["--seconds"][..], &["--seconds", "x"], &["120"]] {
            assert_eq!(seconds(&rest(wrong)), None);
        }
    }
}
