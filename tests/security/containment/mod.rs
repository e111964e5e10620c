//! The escape suite: every attempt of `portcullis_cell::ATTEMPTS`, made in real boxes of both drivers under the default profile, by
//! `portcullis sandbox selftest` as a user makes it.
//!
//! An attempt counts only if the same program succeeds in its control on this machine: where what stops it in a box was taken away. The table
//! is printed with every column, also with what does not count.

mod controls;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use portcullis_cell::{ATTEMPTS, Control, Way};
use serde_json::Value;

use crate::support::engine::Engine;
use crate::support::gateway::Gateway;
use controls::{Controls, Said};

/// That many of the attempts must count.
const LEAST: usize = 60;
/// What whoever started the gateway had in its environment.
const TRACE: (&str, &str) = (
    "TRACEPARENT",
    "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
);

/// What was seen, once for all tests here.
struct Evidence {
    controls: BTreeMap<&'static str, Said>,
    native: Boxes,
    docker: Boxes,
    /// Layers of filters in a container without ours, and in one of ours.
    filters: [u32; 2],
}

/// One driver's column.
struct Boxes {
    code: Option<i32>,
    document: Value,
}

impl Boxes {
    fn result(&self, name: &str) -> (&str, &str) {
        let attempts = self.document["attempts"].as_array().unwrap();
        let found = attempts.iter().find(|one| one["name"] == name);
        let found = found.unwrap_or_else(|| panic!("{name} is not in {}", self.document));
        let word = |key: &str| found[key].as_str().unwrap();
        (word("result"), word("detail"))
    }
}

fn boxes(gateway: &Gateway, driver: &str) -> Boxes {
    // Each is an agent of its own, which is called so.
    let output = gateway.cli(&["sandbox", "selftest", "--agent", driver, "--json"]);
    let document: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {output:?}\n{}", gateway.log()));
    assert_eq!(document["driver"], driver, "{document}\n{}", gateway.log());
    assert_eq!(document["profile"], "restricted");
    Boxes {
        code: output.status.code(),
        document,
    }
}

/// Lines `Seccomp_filters:` of a status file: how many filters the kernel asks.
fn layers(status: &str) -> u32 {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("Seccomp_filters:"));
    line.unwrap_or_default().trim().parse().unwrap_or(0)
}

static EVIDENCE: LazyLock<Evidence> = LazyLock::new(|| {
    let engine = Engine::shared();
    // One gateway: the two do not lower each other's walls.
    let gateway = Gateway::with(&[
        TRACE,
        ("sandbox.engine", &engine.host()),
        ("agents.native.sandbox.driver", "native"),
        ("agents.docker.sandbox.driver", "docker"),
    ]);
    let (native, (docker, image, ours)) = std::thread::scope(|threads| {
        let native = threads.spawn(|| boxes(&gateway, "native"));
        let seen = boxes(&gateway, "docker");
        let explained = gateway.json(&["sandbox", "explain", "--agent", "docker"]);
        let image = explained["imageDigest"].as_str().unwrap().to_owned();
        let status = gateway.cli(&[
            "exec",
            "--agent",
            "docker",
            "--",
            "cat",
            "/proc/self/status",
        ]);
        let status = String::from_utf8(status.stdout).unwrap();
        assert!(status.contains("\nSeccomp:\t2\n"), "{status}");
        (native.join().unwrap(), (seen, image, layers(&status)))
    });
    let controls = Controls::new(&engine, image);
    let theirs = layers(&controls.status());
    Evidence {
        controls: controls.all(),
        native,
        docker,
        filters: [theirs, ours],
    }
});

#[test]
fn every_attempt_to_get_out_of_a_box_is_contained_by_both_drivers_and_succeeds_without_one() {
    let evidence = &*EVIDENCE;
    let mut rows = vec![
        [
            "ATTEMPT",
            "CONTROL",
            "SUCCEEDS THERE",
            "BOX native",
            "BOX docker",
            "",
        ]
        .map(str::to_owned),
    ];
    let (mut counted, mut wrong) = (0, vec![]);
    for attempt in ATTEMPTS {
        let control = &evidence.controls[attempt.name];
        let drivers = [&evidence.native, &evidence.docker].map(|of| of.result(attempt.name));
        let contained = drivers.iter().all(|(result, _)| *result == "contained");
        // What has no limit here cannot be tried: all processors are allowed.
        let untried = attempt.name == "processor" && drivers[0].0 == "not-tried";
        if !contained && !untried {
            wrong.push(format!("{}: {drivers:?}", attempt.name));
        }
        let counts = contained && control.reached;
        counted += usize::from(counts);
        let note = if counts {
            "counts".to_owned()
        } else if contained {
            format!("not counted: control failed: {}", control.why)
        } else {
            "not counted".to_owned()
        };
        let yes = if control.reached { "yes" } else { "no" };
        rows.push([
            attempt.name.to_owned(),
            attempt.control.name().to_owned(),
            yes.to_owned(),
            drivers[0].0.to_owned(),
            drivers[1].0.to_owned(),
            note,
        ]);
    }
    print(&rows);
    println!("{counted} of {} attempts count", ATTEMPTS.len());
    assert!(wrong.is_empty(), "not contained:\n{}", wrong.join("\n"));
    for of in [&evidence.native, &evidence.docker] {
        assert_eq!(of.code, Some(0), "{}", of.document);
    }
    assert!(counted >= LEAST, "only {counted} attempts count");
}

fn print<const N: usize>(rows: &[[String; N]]) {
    let width = |at: usize| rows.iter().map(|row| row[at].len()).max().unwrap_or(0);
    for row in rows {
        let cells = row.iter().enumerate();
        let line: Vec<String> = cells
            .map(|(at, cell)| format!("{cell:<0$}", width(at)))
            .collect();
        println!("{}", line.join("  ").trim_end());
    }
}

/// A gateway of an ordinary user owns no control group, so its boxes have no ceilings: the walls are the same, and what a ceiling stops gets
/// through. So the selftest can fail, and says at what.
#[test]
fn where_an_attempt_succeeds_the_selftest_names_it_and_ends_with_its_own_code() {
    let weak = [
        ("sandbox.require_cgroup", "false"),
        ("sandbox.min_isolation", "unbounded"),
    ];
    let mut gateway = Gateway::prepared(&weak).run_by(65_532);
    gateway.launch();
    let output = gateway.cli(&["sandbox", "selftest", "--json"]);
    let document: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {output:?}\n{}", gateway.log()));
    assert_eq!(output.status.code(), Some(9), "{document}");
    assert_eq!(document["code"], "NOT_CONTAINED");
    assert_eq!(document["ok"], false);
    assert_eq!(document["isolation"], "unbounded");
    let seen = Boxes {
        code: None,
        document,
    };
    for attempt in ATTEMPTS {
        let (result, detail) = seen.result(attempt.name);
        let is_ceiling = attempt.way == Way::Alone;
        assert!(
            result == "contained" || is_ceiling,
            "{}: {result}: {detail}",
            attempt.name
        );
    }
    for name in ["fork-bomb", "memory"] {
        assert_eq!(seen.result(name).0, "not-contained", "{name}");
    }
}

/// Docker's own filter lets these pass; they are refused by the one that the cell sets.
#[test]
fn a_box_of_docker_has_our_filter_of_system_calls_beside_dockers() {
    let evidence = &*EVIDENCE;
    let [theirs, ours] = evidence.filters;
    assert!(theirs >= 1 && ours > theirs, "{theirs} and {ours} filters");
    let of = ATTEMPTS.iter().filter(|one| one.control == Control::Filter);
    let passing: Vec<_> = of
        .filter(|one| evidence.controls[one.name].reached)
        .map(|one| one.name)
        .collect();
    for name in ["ptrace-child", "netlink-socket", "preallocate"] {
        assert!(passing.contains(&name), "{name} is not among {passing:?}");
        let (result, detail) = evidence.docker.result(name);
        assert_eq!(result, "contained", "{name}: {detail}");
    }
}
