//! `cargo xtask long [part]`: the same tests at their full counts. A test asks `PORTCULLIS_LONG` how often it shall do its work.

use anyhow::Result;

use crate::options::Options;
use crate::steps::Steps;
use crate::test;

/// Part and the word that its tests have in their names.
const PARTS: &[(&str, &str)] = &[
    ("kills", "kill"),
    ("power", "power"),
    ("panics", "panic"),
    ("faults", "fault"),
    ("fuzz", "fuzz"),
    ("soak", "soak"),
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
    let mut steps = Steps::new()?;
    test::prepare(&mut steps, options)?;
    for (part, word) in wanted {
        if test::tests(&mut steps, part, &[word], true)? == 0 {
            steps.could_not(format!("{part}: no test has {word:?} in its name"));
        }
    }
    Ok(steps.finish())
}
