//! What the log proves to somebody outside: checkpoints that he kept, proofs that he checks, lines for other systems.

use std::path::Path;
use std::process::Output;

use portcullis_core::audit::note::parse_first_key;
use portcullis_core::audit::tree::check_inclusion;
use portcullis_core::audit::{Hash32, SignedCheckpoint};
use serde_json::{Value, json};

use crate::support::gateway::Gateway;
use crate::support::ws::{Connect, Device, join};

fn run(gateway: &Gateway, args: &[&str]) -> Output {
    gateway.command(args).output().unwrap()
}

fn json_of(gateway: &Gateway, args: &[&str]) -> Value {
    let output = run(gateway, &[args, &["--json"]].concat());
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {told}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn copy(from: &Path, to: &Path) {
    let done = std::process::Command::new("cp")
        .arg("-a")
        .args([from, to])
        .status();
    assert!(done.unwrap().success());
}

#[test]
fn a_state_put_back_whole_is_told_by_what_its_user_has_seen() {
    let mut gateway = Gateway::start();
    json_of(&gateway, &["audit", "head"]);
    assert_eq!(gateway.stop(), 0);
    let backup = gateway.home().join("backup");
    copy(&gateway.state(), &backup);
    gateway.launch();
    // Its log grows, and goes on from what was seen.
    for _ in 0..2 {
        json_of(&gateway, &["audit", "tail"]);
        json_of(&gateway, &["status"]);
    }
    let head = json_of(&gateway, &["audit", "head"]);
    assert_eq!(gateway.stop(), 0);
    let late = gateway.home().join("late");
    std::fs::rename(gateway.state(), &late).unwrap();
    copy(&backup, &gateway.state());
    // Without a gateway it is told too, and with what was kept by hand.
    let note = gateway.home().join("kept");
    std::fs::write(&note, head["note"].as_str().unwrap()).unwrap();
    let against = [
        "audit",
        "verify",
        "--offline",
        "--against",
        note.to_str().unwrap(),
    ];
    for args in [&["audit", "verify", "--offline"][..], &against] {
        let output = run(&gateway, args);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(10), "{told}");
        assert!(told.contains("the log ends before it"), "{told}");
    }
    gateway.launch();
    for args in [&["status"][..], &["audit", "head"], &["audit", "verify"]] {
        let output = run(&gateway, args);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(10), "{args:?}: {told}");
        assert!(told.contains("error[AUDIT_FORKED]"), "{args:?}: {told}");
    }
    // Longer by now than what was seen, and still another.
    for _ in 0..20 {
        json_of(&gateway, &["audit", "tail"]);
    }
    let output = run(&gateway, &["status"]);
    assert_eq!(output.status.code(), Some(10));
    // With what was there before, all is well.
    assert_eq!(gateway.stop(), 0);
    std::fs::remove_dir_all(gateway.state()).unwrap();
    std::fs::rename(&late, gateway.state()).unwrap();
    gateway.launch();
    json_of(&gateway, &["status"]);
    let report = json_of(&gateway, &["audit", "verify"]);
    assert_eq!(
        (&report["intact"], &report["notice"]),
        (&true.into(), &Value::Null)
    );
}

#[test]
fn a_record_is_shown_proven_and_exported_and_who_reads_is_on_record() {
    let gateway = Gateway::start();
    let head = json_of(&gateway, &["audit", "head"]);
    let text = head["note"].as_str().unwrap();
    let note = SignedCheckpoint::parse(text).unwrap();
    let key = head["firstKey"].as_str().unwrap();
    assert!(
        note.is_by(&parse_first_key(key).unwrap()),
        "the first epoch's"
    );
    let file = gateway.home().join("kept");
    std::fs::write(&file, text).unwrap();
    let report = json_of(
        &gateway,
        &[
            "audit",
            "verify",
            "--key",
            key,
            "--against",
            file.to_str().unwrap(),
        ],
    );
    assert_eq!(report["first_key"], key);
    assert_eq!(
        (&report["intact"], &report["notice"]),
        (&true.into(), &Value::Null)
    );
    // The bug: what `audit head` prints, kept whole as it was printed, was no checkpoint.
    let printed = run(&gateway, &["audit", "head"]).stdout;
    std::fs::write(&file, printed).unwrap();
    for offline in [&[][..], &["--offline"]] {
        let against = ["audit", "verify", "--against", file.to_str().unwrap()];
        let report = json_of(&gateway, &[&against, offline].concat());
        assert_eq!(
            (&report["intact"], &report["notice"]),
            (&true.into(), &Value::Null)
        );
    }
    let zero = "0".repeat(64);
    let output = run(&gateway, &["audit", "verify", "--key", &zero]);
    assert_eq!(output.status.code(), Some(10));
    // A start is record 1.
    let shown = json_of(&gateway, &["audit", "show", "1"]);
    assert_eq!(shown["record"]["kind"], "start");
    let proof = json_of(&gateway, &["audit", "prove", "1"]);
    let hash = |value: &Value| value.as_str().unwrap().parse::<Hash32>().unwrap();
    let path: Vec<Hash32> = proof["path"].as_array().unwrap().iter().map(hash).collect();
    let checkpoint = SignedCheckpoint::parse(proof["checkpoint"]["note"].as_str().unwrap());
    let checkpoint = checkpoint.unwrap().checkpoint;
    let leaf = hash(&shown["record"]["hash"]);
    assert!(check_inclusion(
        &leaf,
        0,
        checkpoint.size,
        &path,
        &checkpoint.root
    ));
    assert!(
        proof["proof"]
            .as_str()
            .unwrap()
            .starts_with("c2sp.org/tlog-proof@v1\nindex 0\n")
    );
    json_of(&gateway, &["audit", "consistency", "1"]);
    let output = run(&gateway, &["audit", "prove", "999999"]);
    assert_eq!(output.status.code(), Some(3));
    for (format, start) in [("jsonl", "{"), ("ocsf", "{"), ("cef", "CEF:0|Portcullis|")] {
        let output = run(&gateway, &["audit", "export", "--format", format]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.lines().count() > 5, "{text}");
        assert!(text.lines().all(|line| line.starts_with(start)), "{text}");
        assert!(text.lines().next().unwrap().contains(&leaf.to_string()));
    }
    // Who read is on record, from opening to end; and does not see it in the tail.
    let reads = json_of(&gateway, &["audit", "query", "--action", "audit.read"]);
    let reads = reads["records"].as_array().unwrap();
    let of = |method: &str| {
        let mut of = reads
            .iter()
            .filter(|read| read["record"]["object"] == method);
        of.next_back().unwrap_or_else(|| panic!("{method}")).clone()
    };
    for method in ["audit.verify", "audit.show", "audit.prove", "audit.export"] {
        let result = if method == "audit.prove" {
            "failed"
        } else {
            "ok"
        };
        assert_eq!(
            of(method)["outcome"]["outcome"]["result"],
            result,
            "{method}"
        );
        assert!(
            of(method)["record"]["principal"]
                .as_str()
                .unwrap()
                .starts_with("uid:")
        );
    }
    let tail = json_of(&gateway, &["audit", "tail", "-n", "100"]);
    let tail = tail["records"].as_array().unwrap();
    assert!(!tail.is_empty());
    assert!(tail.iter().all(|record| record["action"] != "audit.read"));
}

/// The bug: of a run that nobody was asked about the log had a hash of the plan and no plan.
#[tokio::test(flavor = "multi_thread")]
async fn the_plan_of_each_run_lies_sealed_in_its_record_and_opens_for_who_may_see_it() {
    let mut gateway = Gateway::prepared(&[]).by_up();
    gateway.launch();
    let secret = "--token=hunter2-in-an-argument";
    let long = "x".repeat(60_000);
    for args in [["echo", secret], ["true", long.as_str()]] {
        let exec = [&["exec", "--agent", "demo", "--"][..], &args].concat();
        assert_eq!(run(&gateway, &exec).status.code(), Some(0));
    }
    let runs = json_of(&gateway, &["audit", "query", "--action", "exec.run"]);
    let runs = runs["records"].as_array().unwrap();
    let seqs: Vec<u64> = runs
        .iter()
        .map(|run| run["record"]["seq"].as_u64().unwrap())
        .collect();
    assert_eq!(seqs.len(), 2);
    for (seq, argument) in seqs.iter().zip([secret, &long]) {
        let shown = json_of(&gateway, &["audit", "show", &seq.to_string()]);
        assert_eq!(shown["plan"]["argv"][1], argument, "{seq}");
        assert_eq!(shown["record"]["sealed"], Value::Null);
        assert_eq!(shown["approval"], Value::Null);
    }
    // Whoever reads the log alone gets the hash.
    let (mut auditor, _) = join(
        &gateway,
        &Connect::token()
            .scopes(&["operator.auditor"])
            .device(&Device::new()),
    )
    .await;
    let shown = auditor.get("audit.show", json!({ "seq": seqs[0] })).await;
    let why = shown["plan"]["withheld"].as_str().unwrap();
    assert!(why.contains("operator.approvals"), "{why}");
    assert!(!shown.to_string().contains("hunter2"), "{shown}");
    // Another record's sealed bytes are no plan, and one that has none says nothing of it.
    let shown = json_of(&gateway, &["audit", "show", "1"]);
    assert_eq!(shown.get("plan"), None);
    assert_eq!(gateway.stop(), 0);
    let files = std::fs::read_dir(gateway.state().join("audit")).unwrap();
    for file in files
        .map(|file| file.unwrap().path())
        .filter(|path| path.is_file())
    {
        let bytes = std::fs::read(&file).unwrap();
        // The beginning of a line is there, what looks like a secret masked.
        let has = |text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
        let open = has(b"hunter2") || has(&long.as_bytes()[..2_000]);
        assert!(!open, "{}", file.display());
    }
    assert_eq!(
        json_of(&gateway, &["audit", "verify", "--offline"])["intact"],
        true
    );
}

/// The bug: each refused repeat of a run with a long command wrote the first parts of its plan again, 50 KB at a time.
#[test]
fn a_refused_repeat_of_a_long_run_leaves_nothing_in_the_log() {
    let mut gateway = Gateway::prepared(&[]).by_up();
    gateway.launch();
    let long = "x".repeat(55_000);
    let exec = [
        "exec",
        "--agent",
        "demo",
        "--idempotency-key",
        "K",
        "--",
        "true",
        &long,
    ];
    assert_eq!(run(&gateway, &exec).status.code(), Some(0));
    let parts = || {
        let found = json_of(&gateway, &["audit", "query", "--action", "exec.plan"]);
        found["records"].as_array().unwrap().len()
    };
    assert_eq!(parts(), 3);
    for _ in 0..3 {
        let repeat = run(&gateway, &exec);
        assert_eq!(repeat.status.code(), Some(125));
        let said = String::from_utf8_lossy(&repeat.stderr).into_owned();
        assert!(said.contains("error[KEY_USED]"), "{said}");
    }
    assert_eq!(parts(), 3);
    assert_eq!(gateway.stop(), 0);
}
