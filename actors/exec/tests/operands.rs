//! Files that a host command's words name: what was approved is what is read, or nothing runs.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use portcullis_core::approval::Word;
use portcullis_core::codes;
use portcullis_core::plan::{MAX_OPERANDS, Target};

use super::harness::{Ended, Folders, House, finish, house};

/// Asks, changes something, allows.
async fn after(house: &mut House, argv: &[&str], change: impl FnOnce()) -> Ended {
    let request = house.request(Target::Host, argv);
    let (accepted, seen) = house.begin(request).await.unwrap();
    change();
    house.answer(&accepted, Word::AllowOnce).await;
    finish(seen).await
}

fn code(ended: &Ended) -> &'static str {
    ended
        .result
        .error
        .as_ref()
        .map_or("", |(code, _)| code.name)
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_approved_text_of_a_named_script_runs_whatever_is_put_in_its_place() {
    let folders = Folders::new();
    let mut house = house(&folders, 1).await;
    let path = folders.path("x.sh");
    let name = path.to_str().unwrap().to_owned();
    // In place: the same inode.
    write(&path, "echo old $1");
    let ended = after(&mut house, &["sh", &name, "one"], || {
        write(&path, "echo new");
    })
    .await;
    assert_eq!(ended.out, "old one\n", "{ended:?}");
    // Another file under the name.
    write(&path, "echo old $1");
    let ended = after(&mut house, &["sh", "-eu", &name, "two"], || {
        write(&folders.path("y.sh"), "echo new");
        std::fs::rename(folders.path("y.sh"), &path).unwrap();
    })
    .await;
    assert_eq!(ended.out, "old two\n", "{ended:?}");
    // Through a link that is turned, and by a wrapper.
    let link = folders.path("link");
    write(&path, "echo old");
    write(&folders.path("y.sh"), "echo new");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let argv = ["env", "A=b", "nice", "sh", link.to_str().unwrap()];
    let ended = after(&mut house, &argv, || {
        std::fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(folders.path("y.sh"), &link).unwrap();
    })
    .await;
    assert_eq!(ended.out, "old\n", "{ended:?}");
    // By the working folder, and as an option's value.
    let mut request = house.request(Target::Host, &["sh", "x.sh"]);
    request.cwd = Some(folders.open.path().to_str().unwrap().to_owned());
    let (accepted, seen) = house.begin(request).await.unwrap();
    write(&path, "echo new");
    house.answer(&accepted, Word::AllowOnce).await;
    assert_eq!(finish(seen).await.out, "old\n");
    let program = folders.path("x.awk");
    write(&program, "BEGIN { print \"old\" }");
    let ended = after(
        &mut house,
        &["awk", "-f", program.to_str().unwrap()],
        || {
            write(&program, "BEGIN { print \"new\" }");
        },
    )
    .await;
    assert_eq!(ended.out, "old\n", "{ended:?}");
    write(&path, "s/.*/old/;q");
    let argv = ["sed", "-f", &name, "/etc/passwd"];
    let ended = after(&mut house, &argv, || write(&path, "s/.*/new/;q")).await;
    assert_eq!(ended.out, "old\n", "{ended:?}");
    house.end().await;
}

/// What the interpreters of this machine make of a copy that stands for their script.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interpreters_read_the_copy() {
    let folders = Folders::new();
    let mut house = house(&folders, 1).await;
    for (program, text) in [
        ("sh", "echo \"old $1\""),
        ("bash", "echo \"old $1\""),
        ("python3", "import sys; print('old', sys.argv[1])"),
        ("perl", "print \"old $ARGV[0]\\n\";"),
        ("ruby", "puts \"old #{ARGV[0]}\""),
        ("lua", "print('old ' .. arg[1])"),
        ("php", "<?php echo \"old $argv[1]\\n\";"),
    ] {
        if !Path::new("/usr/bin").join(program).exists() {
            continue;
        }
        let path = folders.path(program);
        write(&path, text);
        let argv = [program, path.to_str().unwrap(), "one"];
        let ended = after(&mut house, &argv, || write(&path, "new")).await;
        assert_eq!(ended.out, "old one\n", "{program} {ended:?}");
    }
    house.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_other_words_name_must_be_as_it_was() {
    let folders = Folders::new();
    let mut house = house(&folders, 1).await;
    let (data, mark) = (folders.path("data"), folders.path("ran"));
    let (data_name, mark_name) = (data.to_str().unwrap(), mark.to_str().unwrap());
    let script = ". $1; touch $2; cat $1";
    let argv = ["sh", "-c", script, "sh", data_name, mark_name];
    write(&data, "echo old");
    let ended = after(&mut house, &argv, || {}).await;
    assert_eq!(ended.out, "old\necho old", "{ended:?}");
    std::fs::remove_file(&mark).unwrap();
    let ended = after(&mut house, &argv, || write(&data, "echo new")).await;
    assert_eq!(
        (ended.result.status, code(&ended)),
        ("denied", "PLAN_CHANGED")
    );
    let said = &ended.result.error.as_ref().unwrap().1;
    assert!(said.contains("argument 4"), "{said}");
    // What was not there, and now is.
    std::fs::remove_file(&data).unwrap();
    let ended = after(&mut house, &argv, || write(&data, "echo new")).await;
    assert_eq!(code(&ended), "PLAN_CHANGED");
    // And the other way round, by an option's value, for a program of which nothing is known.
    let own = folders.script("own", "#!/bin/sh\ntouch $2\n");
    let option = format!("--config={data_name}");
    let ended = after(&mut house, &[&own, &option, mark_name], || {
        std::fs::remove_file(&data).unwrap();
    })
    .await;
    assert_eq!(code(&ended), "PLAN_CHANGED");
    assert!(!mark.exists());
    // Another file under the word as a whole does not hide the one that its option names.
    write(&data, "old");
    let decoy = folders.path(&format!("--config={data_name}"));
    std::fs::create_dir_all(decoy.parent().unwrap()).unwrap();
    write(&decoy, "decoy");
    let mut request = house.request(Target::Host, &[&own, &option, mark_name]);
    request.cwd = Some(folders.open.path().to_str().unwrap().to_owned());
    let (accepted, seen) = house.begin(request).await.unwrap();
    write(&data, "new");
    house.answer(&accepted, Word::AllowOnce).await;
    let ended = finish(seen).await;
    assert_eq!(code(&ended), "PLAN_CHANGED", "{ended:?}");
    assert!(!mark.exists());
    // Nothing but data: it may change.
    write(&data, "old\n");
    let ended = after(&mut house, &["cat", data_name], || write(&data, "new\n")).await;
    assert_eq!(ended.out, "new\n", "{ended:?}");
    house.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_kept_is_refused_as_a_script_and_said_otherwise() {
    let folders = Folders::new();
    let mut house = house(&folders, 1).await;
    let pipe = folders.path("pipe");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o666),
        0,
    )
    .unwrap();
    let link = folders.path("magic");
    std::os::unix::fs::symlink("/proc/self/exe", &link).unwrap();
    let secret = folders.state.path().join("state.db");
    for script in [
        folders.path("missing").to_str().unwrap(),
        pipe.to_str().unwrap(),
        link.to_str().unwrap(),
        secret.to_str().unwrap(),
        "/proc/self/environ",
    ] {
        let request = house.request(Target::Host, &["sh", script]);
        let refused = house.begin(request).await.unwrap_err();
        assert_eq!(refused.code, codes::INVALID_PARAMS, "{script}: {refused}");
        assert!(refused.message.starts_with("argument 1, "), "{refused}");
    }
    let folder = folders.open.path().to_str().unwrap();
    let long = folders.path("long");
    std::fs::File::create(&long)
        .unwrap()
        .set_len((16 << 20) + 1)
        .unwrap();
    let long = long.to_str().unwrap().to_owned();
    let own = folders.script("own", "#!/bin/sh\n");
    for (argv, why) in [
        (vec!["python3", folder], "a folder"),
        (vec!["make", "-C", folder], "a folder"),
        (vec!["sh", &long], "too long"),
        (vec![own.as_str(), &long], "too long"),
    ] {
        let request = house.request(Target::Host, &argv);
        let (accepted, seen) = house.begin(request).await.unwrap();
        let record = house.answer(&accepted, Word::Deny).await;
        let reasons = format!("{:?}", record.reasons);
        assert!(
            reasons.contains("not-kept") && reasons.contains(why),
            "{argv:?} {reasons}"
        );
        assert!(!record.may_always, "{argv:?}");
        finish(seen).await;
    }
    house.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_card_shows_what_each_word_names_and_the_log_keeps_it() {
    let folders = Folders::new();
    let mut house = house(&folders, 1).await;
    let path = folders.path("x.sh");
    write(&path, "echo hi");
    let name = path.to_str().unwrap();
    let request = house.request(Target::Host, &["sh", name, "/etc/passwd"]);
    let (accepted, seen) = house.begin(request).await.unwrap();
    let record = house.answer(&accepted, Word::AllowOnce).await;
    let shown = portcullis_core::approval::record_json(&record);
    let digest = portcullis_core::ids::Hash32::of(b"echo hi").to_string();
    let operands = &shown["request"]["operands"];
    assert_eq!(operands[0]["path"], name);
    assert_eq!(operands[0]["held"], "copied");
    assert_eq!(operands[0]["sha256"], digest.as_str());
    assert_eq!(operands[1]["argvIndex"], 2);
    assert_eq!(operands[1]["held"], "checked");
    assert_eq!(finish(seen).await.out, "hi\n");
    let intent = format!("{:?}", house.intents().await.last().unwrap());
    assert!(
        intent.contains(&format!("1 copied {digest} {name}")),
        "{intent}"
    );
    house.end().await;
}

/// The same key after a restart stands for the same files.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_taken_up_after_a_restart_is_about_the_same_text() {
    let folders = Folders::new();
    let path = folders.path("x.sh");
    write(&path, "echo old");
    let mut first = house(&folders, 1).await;
    let request = first.request(Target::Host, &["sh", path.to_str().unwrap()]);
    let (_, seen) = first.begin(request.clone()).await.unwrap();
    first.end().await;
    finish(seen).await;
    write(&path, "echo new");
    let house = house(&folders, 2).await;
    let mut again = request;
    again.session = house.session.reader();
    let refused = house.begin(again).await.unwrap_err();
    assert_eq!(refused.code, codes::PLAN_CHANGED);
    house.end().await;
}

/// The bug: words other than scripts were looked at as root. A file that was there took the last place on the list, and the
/// refusal told an agent so, of any path.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_closed_to_the_commands_user_is_as_if_it_were_not_there() {
    if !rustix::process::geteuid().is_root() {
        println!("NOT RUN: only root gives its commands another user");
        return;
    }
    let folders = Folders::new();
    let mut house = house(&folders, 1).await;
    let script = folders.path("x.sh");
    write(&script, "true");
    let fill: Vec<String> = (0..MAX_OPERANDS - 2)
        .map(|n| {
            let path = folders.path(&format!("f{n}"));
            write(&path, "x");
            format!("A{n}={}", path.display())
        })
        .collect();
    let closed = tempfile::tempdir().unwrap();
    std::fs::set_permissions(closed.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    write(&closed.path().join("there"), "x");
    write(&folders.state.path().join("there"), "x");
    let own = std::process::id();
    let there = closed.path().join("there").display().to_string();
    let missing = closed.path().join("missing").display().to_string();
    let state = folders.state.path().display();
    let argv = |path: &str| -> Vec<String> {
        let name = format!("P={path}");
        let script = ["sh", script.to_str().unwrap()].map(str::to_owned);
        [
            vec!["env".to_owned()],
            fill.clone(),
            vec![name],
            script.to_vec(),
        ]
        .concat()
    };
    for path in [
        &there,
        &missing,
        &format!("{state}/there"),
        &format!("{state}/missing"),
    ] {
        let argv = argv(path);
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        let request = house.request(Target::Host, &argv);
        let begun = house.begin(request).await;
        let (accepted, seen) = begun.unwrap_or_else(|error| panic!("{path}: {error}"));
        let record = house.answer(&accepted, Word::Deny).await;
        let shown = portcullis_core::approval::record_json(&record);
        let operands = shown["request"]["operands"].to_string();
        assert!(
            !operands.contains("there") && !operands.contains("missing"),
            "{operands}"
        );
        finish(seen).await;
    }
    // What a link of the process file system leads to is not looked at: with or without a file it takes a place.
    for to in [format!("/proc/{own}/root"), "/dev/fd/../root".to_owned()] {
        let mut said = vec![];
        for path in [&there, &missing] {
            let argv = argv(&format!("{to}{path}"));
            let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
            let request = house.request(Target::Host, &argv);
            said.push(match house.begin(request).await {
                Ok((accepted, seen)) => {
                    house.answer(&accepted, Word::Deny).await;
                    finish(seen).await;
                    "a question".to_owned()
                }
                Err(refusal) => refusal.to_string(),
            });
        }
        assert_eq!(said[0], said[1], "{to}");
    }
    house.end().await;
}
