//! Between the word of a person and the start everything is exchanged that a command stands on. A run that waits has opened
//! it, and runs what was approved or nothing; one that was asked for ahead opens it anew, and runs nothing else either.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};

use portcullis_core::approval::{Status, Word};
use portcullis_core::codes;
use portcullis_core::plan::Target;
use portcullis_core::policy::{ExecMode, Resolved, preview};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::harness::{Ended, Folders, House, agent, finish, house, house_with, operator};
use crate::approval::PolicyChange;
use crate::exec::run::Gate;
use crate::exec::{Accepted, ExecRefusal, OnlyAsk, RunRequest};

/// What is asked for, what is then done to it, and what the approved command writes: nothing where it may not run.
struct Race {
    argv: Vec<String>,
    cwd: Option<PathBuf>,
    change: Box<dyn FnOnce()>,
    approved: Option<&'static str>,
}

fn words(words: &[&dyn AsRef<Path>]) -> Vec<String> {
    let text = |word: &&dyn AsRef<Path>| word.as_ref().to_str().unwrap().to_owned();
    words.iter().map(text).collect()
}

/// A program of this machine under another name, which runs or, in place of it, ends at once.
fn copy(of: &str, to: &Path) {
    std::fs::copy(Path::new("/usr/bin").join(of), to).unwrap();
}

/// Other bytes in the very same file.
fn overwrite(path: &Path, bytes: &[u8]) {
    let is = |path: &Path| {
        path.metadata()
            .map(|data| (data.dev(), data.ino()))
            .unwrap()
    };
    let before = is(path);
    std::fs::write(path, bytes).unwrap();
    assert_eq!(is(path), before);
}

fn false_program() -> Vec<u8> {
    std::fs::read("/usr/bin/false").unwrap()
}

fn script(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// Folders, each with a file that says which it is.
fn marked(folders: &[(&Path, &str)]) {
    for (folder, text) in folders {
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(folder.join("mark"), text).unwrap();
    }
}

fn turn(link: &Path, to: &Path) {
    std::fs::remove_file(link).unwrap();
    symlink(to, link).unwrap();
}

fn of_program(at: &Path, change: impl FnOnce() + 'static) -> Race {
    Race {
        argv: words(&[&at, &"old"]),
        cwd: None,
        change: Box::new(change),
        approved: Some("old\n"),
    }
}

fn of_folder(
    cwd: PathBuf,
    approved: Option<&'static str>,
    change: impl FnOnce() + 'static,
) -> Race {
    Race {
        argv: words(&[&"cat", &"mark"]),
        cwd: Some(cwd),
        change: Box::new(change),
        approved,
    }
}

fn program_in_place(at: &Path) -> Race {
    let tool = at.join("tool");
    copy("echo", &tool);
    of_program(&tool.clone(), move || overwrite(&tool, &false_program()))
}

fn program_renamed_over(at: &Path) -> Race {
    let (tool, other) = (at.join("tool"), at.join("other"));
    copy("echo", &tool);
    of_program(&tool.clone(), move || {
        copy("false", &other);
        std::fs::rename(&other, &tool).unwrap();
    })
}

fn program_link_turned(at: &Path) -> Race {
    let (tool, other, link) = (at.join("tool"), at.join("other"), at.join("link"));
    copy("echo", &tool);
    copy("false", &other);
    symlink(&tool, &link).unwrap();
    of_program(&link.clone(), move || turn(&link, &other))
}

fn program_parent_link_turned(at: &Path) -> Race {
    let (one, two, link) = (at.join("one"), at.join("two"), at.join("link"));
    for folder in [&one, &two] {
        std::fs::create_dir(folder).unwrap();
    }
    copy("echo", &one.join("tool"));
    copy("false", &two.join("tool"));
    symlink(&one, &link).unwrap();
    of_program(&link.join("tool"), move || turn(&link, &two))
}

fn script_in_place(at: &Path) -> Race {
    let file = at.join("tool.sh");
    script(&file, "#!/bin/sh\necho $1\n");
    of_program(&file.clone(), move || {
        overwrite(&file, b"#!/bin/sh\necho new\n");
    })
}

fn script_renamed_over(at: &Path) -> Race {
    let (file, other) = (at.join("tool.sh"), at.join("other"));
    script(&file, "#!/bin/sh\necho $1\n");
    of_program(&file.clone(), move || {
        script(&other, "#!/bin/sh\necho new\n");
        std::fs::rename(&other, &file).unwrap();
    })
}

fn interpreter_in_place(at: &Path) -> Race {
    let (file, shell) = (at.join("tool.sh"), at.join("shell"));
    copy("sh", &shell);
    script(&file, &format!("#!{}\necho $1\n", shell.display()));
    of_program(&file, move || overwrite(&shell, &false_program()))
}

fn named_script_in_place(at: &Path) -> Race {
    let file = at.join("x.sh");
    std::fs::write(&file, "echo $1").unwrap();
    Race {
        argv: words(&[&"sh", &file, &"old"]),
        ..of_program(&file.clone(), move || overwrite(&file, b"echo new"))
    }
}

fn read_script_in_place(at: &Path) -> Race {
    let file = at.join("part");
    std::fs::write(&file, "echo old").unwrap();
    Race {
        argv: words(&[&"sh", &"-c", &". $1", &"sh", &file]),
        approved: None,
        ..of_program(&file.clone(), move || overwrite(&file, b"echo new"))
    }
}

fn folder_renamed(at: &Path) -> Race {
    let (work, gone) = (at.join("work"), at.join("gone"));
    marked(&[(&work, "old")]);
    of_folder(work.clone(), None, move || {
        std::fs::rename(&work, gone).unwrap();
        marked(&[(&work, "new")]);
    })
}

fn folder_becomes_a_link(at: &Path) -> Race {
    let (work, gone, other) = (at.join("work"), at.join("gone"), at.join("other"));
    marked(&[(&work, "old"), (&other, "new")]);
    of_folder(work.clone(), None, move || {
        std::fs::rename(&work, gone).unwrap();
        symlink(other, &work).unwrap();
    })
}

fn parent_renamed(at: &Path) -> Race {
    let (parent, gone) = (at.join("parent"), at.join("gone"));
    let work = parent.join("work");
    marked(&[(&work, "old")]);
    of_folder(work.clone(), None, move || {
        std::fs::rename(&parent, gone).unwrap();
        marked(&[(&work, "new")]);
    })
}

fn parent_becomes_a_link(at: &Path) -> Race {
    let (parent, gone, other) = (at.join("parent"), at.join("gone"), at.join("other"));
    let work = parent.join("work");
    marked(&[(&work, "old"), (&other.join("work"), "new")]);
    of_folder(work, None, move || {
        std::fs::rename(&parent, gone).unwrap();
        symlink(other, &parent).unwrap();
    })
}

/// The folder was never meant by its link: what was found there stays what it is.
fn parent_link_turned(at: &Path) -> Race {
    let (one, two, link) = (at.join("one"), at.join("two"), at.join("link"));
    marked(&[(&one.join("work"), "old"), (&two.join("work"), "new")]);
    symlink(&one, &link).unwrap();
    of_folder(link.join("work"), Some("old"), move || turn(&link, &two))
}

/// The bug: a file by its name in the working folder was compared under the folder's path, and then read in the folder that
/// was opened: the approved file could lie at the one and another one in the other.
fn approved_file_moved_to_another_folder(at: &Path) -> Race {
    let (work, gone) = (at.join("work"), at.join("gone"));
    marked(&[(&work, "echo old")]);
    Race {
        argv: words(&[&"sh", &"-c", &". ./$1", &"sh", &"mark"]),
        ..of_folder(work.clone(), None, move || {
            std::fs::rename(&work, &gone).unwrap();
            std::fs::create_dir(&work).unwrap();
            std::fs::rename(gone.join("mark"), work.join("mark")).unwrap();
            std::fs::write(gone.join("mark"), "echo new").unwrap();
        })
    }
}

/// Makes what a race needs, in a folder of its own.
type Prepare = fn(&Path) -> Race;

const RACES: &[(&str, Prepare)] = &[
    ("program-in-place", program_in_place),
    ("program-renamed-over", program_renamed_over),
    ("program-link-turned", program_link_turned),
    ("program-parent-link-turned", program_parent_link_turned),
    ("script-in-place", script_in_place),
    ("script-renamed-over", script_renamed_over),
    ("interpreter-in-place", interpreter_in_place),
    ("named-script-in-place", named_script_in_place),
    ("read-script-in-place", read_script_in_place),
    ("folder-renamed", folder_renamed),
    ("folder-becomes-a-link", folder_becomes_a_link),
    ("parent-renamed", parent_renamed),
    ("parent-becomes-a-link", parent_becomes_a_link),
    ("parent-link-turned", parent_link_turned),
    ("approved-file-moved", approved_file_moved_to_another_folder),
];

fn prepared(
    folders: &Folders,
    house: &mut House,
    way: &str,
    name: &str,
    race: Prepare,
) -> (RunRequest, Race) {
    let at = folders
        .open
        .path()
        .canonicalize()
        .unwrap()
        .join(way)
        .join(name);
    std::fs::create_dir_all(&at).unwrap();
    let race = race(&at);
    let argv: Vec<&str> = race.argv.iter().map(String::as_str).collect();
    let mut request = house.request(Target::Host, &argv);
    request.cwd = race
        .cwd
        .as_ref()
        .map(|path| path.to_str().unwrap().to_owned());
    // The question's id: none begins as another does.
    let at = RACES.iter().position(|(known, _)| *known == name).unwrap();
    request.idempotency_key = format!("{at:02}-{way}");
    (request, race)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_exchanged_while_a_run_waits_the_approved_runs_or_nothing_does() {
    let folders = Folders::new();
    let mut house = house(&folders, 1).await;
    for (name, race) in RACES {
        let (request, race) = prepared(&folders, &mut house, "waits", name, *race);
        let (accepted, seen) = house.begin(request).await.unwrap();
        (race.change)();
        house.answer(&accepted, Word::AllowOnce).await;
        let ended = finish(seen).await;
        match race.approved {
            Some(approved) => assert_eq!(
                (ended.out.as_str(), ended.result.exit_code),
                (approved, Some(0)),
                "{name} {ended:?}"
            ),
            None => refused(name, &ended),
        }
    }
    house.end().await;
}

fn refused(name: &str, ended: &Ended) {
    let code = ended.result.error.as_ref().map(|(code, _)| *code);
    assert_eq!(
        (ended.result.status, ended.out.as_str()),
        ("denied", ""),
        "{name} {ended:?}"
    );
    assert_eq!(code, Some(codes::PLAN_CHANGED), "{name} {ended:?}");
}

/// Asks ahead, and is allowed.
async fn allowed(house: &House, request: &RunRequest) -> Accepted {
    let (events, seen) = mpsc::channel(16);
    let accepted = house
        .exec
        .ask(request.clone(), OnlyAsk::default(), events)
        .await
        .unwrap();
    house.answer(&accepted, Word::AllowOnce).await;
    assert_eq!(finish(seen).await.result.status, "allowed");
    while house.exec.live().await > 0 {}
    accepted
}

async fn refused_later(house: &House, request: RunRequest) -> ExecRefusal {
    match house.begin(request).await {
        Ok((_, seen)) => panic!("{:?}", finish(seen).await),
        Err(refusal) => {
            while house.exec.live().await > 0 {}
            refusal
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_exchanged_after_a_question_asked_ahead_its_run_is_refused() {
    let folders = Folders::new();
    let mut house = house(&folders, 1).await;
    for (name, race) in RACES {
        let (mut request, race) = prepared(&folders, &mut house, "ahead", name, *race);
        // A folder is named as it was shown: by a link it would be refused whatever is done.
        if let Some(cwd) = &race.cwd {
            request.cwd = cwd.canonicalize().unwrap().to_str().map(str::to_owned);
        }
        let turned = *name == "parent-link-turned";
        let accepted = allowed(&house, &request).await;
        (race.change)();
        if turned {
            let (_, ended) = house.run(request).await.unwrap();
            assert_eq!(ended.out, "old", "{name} {ended:?}");
            continue;
        }
        let refusal = refused_later(&house, request.clone()).await;
        assert_eq!(refusal.code, codes::PLAN_CHANGED, "{name} {refusal}");
        // Nor does it come back with what was there.
        let status = house
            .approval
            .status(accepted.approval_id.as_ref().unwrap())
            .await;
        assert_eq!(status.unwrap(), Status::Cancelled, "{name}");
        let refusal = refused_later(&house, request).await;
        assert_eq!(refusal.code, codes::APPROVAL_DENIED, "{name} {refusal}");
    }
    house.end().await;
}

/// What only root can change is not copied: its descriptor is the approved file, whatever lies under its name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_of_root_that_is_renamed_over_runs_as_it_was_approved() {
    if !rustix::process::geteuid().is_root() {
        println!("NOT RUN: nobody but root makes a program of root");
        return;
    }
    let folders = Folders::new();
    let mut house = house(&folders, 1).await;
    let roots = tempfile::tempdir_in("/var/lib").unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(roots.path(), open).unwrap();
    let race = program_renamed_over(roots.path());
    let argv: Vec<&str> = race.argv.iter().map(String::as_str).collect();
    let request = house.request(Target::Host, &argv);
    let (accepted, seen) = house.begin(request).await.unwrap();
    (race.change)();
    house.answer(&accepted, Word::AllowOnce).await;
    let ended = finish(seen).await;
    assert_eq!(ended.out, "old\n", "{ended:?}");
    house.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_other_environment_goes_under_an_answer() {
    let folders = Folders::new();
    let mut house = house_with(&folders, 1, |wiring| {
        wiring.config.host.env = ["MODE", "DEPLOY"].map(str::to_owned).into();
    })
    .await;
    let env = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        pairs.iter().map(owned).collect()
    };
    let mut request = house.request(Target::Host, &["sh", "-c", "echo $MODE$DEPLOY"]);
    request.env = env(&[("MODE", "dry")]);
    request.idempotency_key = "first-it".to_owned();
    allowed(&house, &request).await;
    for other in [
        env(&[("MODE", "real")]),
        env(&[("MODE", "dry"), ("DEPLOY", "yes")]),
        env(&[("DEPLOY", "yes")]),
        env(&[("MODE", "dry"), ("LANG", "C")]),
    ] {
        let other = RunRequest {
            env: other,
            ..request.clone()
        };
        let refusal = refused_later(&house, other).await;
        assert_eq!(refusal.code, codes::INVALID_PARAMS, "{refusal}");
    }
    // What steers is in nobody's.
    let steering = RunRequest {
        env: env(&[("MODE", "dry"), ("LD_PRELOAD", "/x")]),
        ..request.clone()
    };
    assert_eq!(
        refused_later(&house, steering).await.code,
        codes::INVALID_PARAMS
    );
    // The answer is still there for what was asked.
    let (_, ended) = house.run(request.clone()).await.unwrap();
    assert_eq!(ended.out, "dry\n", "{ended:?}");
    // One that lacks a variable is another plan.
    request.idempotency_key = "second-it".to_owned();
    allowed(&house, &request).await;
    let bare = RunRequest {
        env: BTreeMap::new(),
        ..request
    };
    assert_eq!(refused_later(&house, bare).await.code, codes::PLAN_CHANGED);
    house.end().await;
}

async fn set(house: &House, document: Value) {
    let base = house.approval.policy_get().await.unwrap().hash.to_string();
    let by = operator(0);
    let changed = house
        .approval
        .policy_set(document, Some(&base), &by, "c1")
        .await;
    if let PolicyChange::Pending { id, .. } = changed.unwrap() {
        let answered = house
            .approval
            .resolve(id.as_str(), Word::AllowOnce, &by, "c2");
        answered.await.unwrap();
    }
}

fn demo(settings: &Value) -> Value {
    json!({ "version": 1, "agents": { "demo": settings } })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_that_changed_between_the_word_and_the_start_is_the_one_that_holds() {
    let folders = Folders::new();
    let mark = folders.path("ran");
    let argv = ["touch", mark.to_str().unwrap()];
    for (n, (stricter, runs)) in [
        (json!({ "security": "deny" }), false),
        (
            json!({ "denylist": [{ "id": "no", "pattern": "/usr/bin/touch" }] }),
            false,
        ),
        // It asks for all: this one was asked about.
        (json!({ "ask": "always" }), true),
    ]
    .into_iter()
    .enumerate()
    {
        let mut house = house(&folders, u8::try_from(n).unwrap() + 1).await;
        // Answered, and not begun.
        let mut request = house.request(Target::Host, &argv);
        request.idempotency_key = format!("ahead-{n}-it");
        allowed(&house, &request).await;
        // And one that waits.
        let waits = house.request(Target::Host, &argv);
        let (accepted, seen) = house.begin(waits).await.unwrap();
        set(&house, demo(&stricter)).await;
        if runs {
            let (_, ended) = house.run(request).await.unwrap();
            assert_eq!(ended.result.exit_code, Some(0), "{stricter} {ended:?}");
            house.answer(&accepted, Word::AllowOnce).await;
            assert_eq!(finish(seen).await.result.exit_code, Some(0));
            std::fs::remove_file(&mark).unwrap();
        } else {
            let refusal = refused_later(&house, request).await;
            assert_eq!(refusal.code, codes::APPROVAL_DENIED, "{stricter} {refusal}");
            let ended = finish(seen).await;
            assert_eq!(ended.result.status, "denied", "{stricter} {ended:?}");
            assert_eq!(ended.result.error.unwrap().0, codes::APPROVAL_DENIED);
            assert!(!mark.exists(), "{stricter}");
        }
        set(&house, demo(&json!({}))).await;
        house.end().await;
    }
}

/// Without a question it is policy itself that is asked again, after the record that it is about to run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_policy_let_run_by_itself_does_not_start_when_it_asks_or_refuses_by_then() {
    let folders = Folders::new();
    let mut house = house(&folders, 1).await;
    let list = json!({ "allowlist": [{ "id": "own", "pattern": "/usr/bin/uname" }] });
    set(&house, demo(&list)).await;
    let request = house.request(Target::Host, &["uname"]);
    let (accepted, ended) = house.run(request.clone()).await.unwrap();
    assert_eq!(
        (accepted.status, ended.result.exit_code),
        ("accepted", Some(0))
    );
    let found = |name: &str| {
        Some(Resolved {
            path: format!("/usr/bin/{name}"),
            fixed: true,
        })
    };
    let mut plan = preview(&agent(), &Target::Host, &request.argv, "/", &found).unwrap();
    plan.principal = request.principal.name();
    let gate = Gate(house.approval.clone());
    gate.still((&plan, ExecMode::Full), &request).await.unwrap();
    set(
        &house,
        demo(&json!({ "denylist": [{ "id": "no", "pattern": "/usr/bin/uname" }] })),
    )
    .await;
    let refusal = gate
        .still((&plan, ExecMode::Full), &request)
        .await
        .unwrap_err();
    assert_eq!(refusal.code, codes::POLICY_DENIED, "{refusal}");
    set(&house, demo(&json!({}))).await;
    let refusal = gate
        .still((&plan, ExecMode::Full), &request)
        .await
        .unwrap_err();
    assert!(refusal.message.contains("asks a person now"), "{refusal}");
    // Nobody is asked for what is not begun.
    assert!(house.approval.list().await.unwrap().is_empty());
    house.end().await;
}
