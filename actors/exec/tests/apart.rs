//! What a run gets of its surroundings, and what of it reaches them.

use std::collections::BTreeSet;
use std::path::Path;

use portcullis_core::codes;
use portcullis_core::plan::{HOST_PATH, Target};

use super::harness::{Folders, house};

/// A shell would make files of it.
const SHELL: &str =
    "$(touch /workspace/a)`touch /workspace/b`; touch /workspace/c\ntouch /workspace/d";

/// Others wrote a variable of the request into a command line, which a shell then read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_shell_reads_what_a_request_says() {
    let folders = Folders::new();
    let mut house = house(&folders, 1).await;
    let mut request = house.request(Target::Sandbox, &["printenv", "A"]);
    request.env.insert("A".to_owned(), SHELL.to_owned());
    let (_, ended) = house.run(request).await.unwrap();
    assert_eq!(ended.out, format!("{SHELL}\n"), "{ended:?}");
    let request = house.request(Target::Sandbox, &["echo", SHELL]);
    let (_, ended) = house.run(request).await.unwrap();
    assert_eq!(ended.out, format!("{SHELL}\n"), "{ended:?}");
    let list = ["ls", "-A", "/workspace"];
    let request = house.request(Target::Sandbox, &list);
    assert_eq!(house.run(request).await.unwrap().1.out, "");
    // That it would: the same text, given to one.
    let request = house.request(Target::Sandbox, &["sh", "-c", SHELL]);
    house.run(request).await.unwrap();
    let request = house.request(Target::Sandbox, &list);
    assert_eq!(house.run(request).await.unwrap().1.out, "a\nb\nc\nd\n");
    // And where a program is looked for is not the request's to say.
    for target in [Target::Sandbox, Target::Host] {
        let mut request = house.request(target, &["true"]);
        request
            .env
            .insert("PATH".to_owned(), "/workspace".to_owned());
        let refused = house.run(request).await.unwrap_err();
        assert_eq!(refused.code, codes::INVALID_PARAMS, "{refused}");
    }
    house.end().await;
}

/// The gateway's own variables, here those of whoever started these tests, are no command's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_has_the_variables_of_its_plan_and_no_other() {
    let folders = Folders::new();
    let mut house = house(&folders, 1).await;
    let names = |text: &str| -> BTreeSet<String> {
        let lines = text.lines();
        lines
            .map(|line| line.split_once('=').unwrap().0.to_owned())
            .collect()
    };
    let set = |names: &[&str]| -> BTreeSet<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    };
    let host = set(&["HOME", "LANG", "LOGNAME", "PATH", "TZ", "USER"]);
    let boxed = set(&["HOME", "LANG", "PATH", "TMPDIR", "TZ"]);
    let own = std::env::vars_os();
    let own: Vec<_> = own
        .filter(|(name, _)| {
            name.to_str()
                .is_some_and(|name| !host.contains(name) && !boxed.contains(name))
        })
        .collect();
    assert!(!own.is_empty(), "there is nothing that could be inherited");

    let mut request = house.request(Target::Host, &["env"]);
    request.env.insert("TZ".to_owned(), "UTC".to_owned());
    let ended = house.run_allowed(request).await;
    assert_eq!(names(&ended.out), host, "{ended:?}");
    assert!(ended.out.contains(&format!("PATH={HOST_PATH}\n")));
    let mut request = house.request(Target::Sandbox, &["env"]);
    request.env.insert("TZ".to_owned(), "UTC".to_owned());
    let (_, ended) = house.run(request).await.unwrap();
    assert_eq!(names(&ended.out), boxed, "{ended:?}");
    house.end().await;
}

/// Elsewhere files that were written in a sandbox became programs and settings of the host.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_agent_wrote_in_its_box_is_nothing_to_a_host_command() {
    let folders = Folders::new();
    let mut house = house(&folders, 1).await;
    let write = "mkdir -p .git/hooks; for f in x .git/hooks/pre-commit; do \
        printf '#!/bin/sh\\necho ran\\n' > $f; chmod 755 $f; done; chmod 777 . .git .git/hooks";
    let request = house.request(Target::Sandbox, &["sh", "-c", write]);
    let (_, ended) = house.run(request).await.unwrap();
    assert_eq!(ended.result.exit_code, Some(0), "{ended:?}");
    let workspace = folders.state.path().join("workspaces/demo");
    let there = workspace.join(".git/hooks/pre-commit");
    assert!(there.exists());
    // By a way of its own choice too: a link that everybody may follow.
    let link = folders.path("link");
    std::os::unix::fs::symlink(&workspace, &link).unwrap();
    for folder in [&workspace, &link] {
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let (program, hook) = (text(&folder.join("x")), text(&folder.join(".git/hooks")));
        for (argv, cwd) in [
            (vec![program.as_str()], None),
            (vec!["sh", &program], None),
            (vec!["true"], Some(text(folder))),
            (vec!["true"], Some(hook.clone())),
        ] {
            let mut request = house.request(Target::Host, &argv);
            request.cwd = cwd;
            let refused = house.begin(request).await.unwrap_err();
            let expected = [codes::COMMAND_NOT_FOUND, codes::INVALID_PARAMS];
            assert!(expected.contains(&refused.code), "{argv:?} {refused}");
            while house.exec.live().await > 0 {}
        }
        // Nor is it read: what names it runs, and finds nothing.
        let request = house.request(Target::Host, &["cat", &program]);
        let ended = house.run_allowed(request).await;
        assert_eq!(ended.out, "", "{ended:?}");
        assert_ne!(ended.result.exit_code, Some(0), "{ended:?}");
    }
    house.end().await;
}

/// Elsewhere a sandbox was told where its folder lies on the host. The kernel's own list of a process' mounts (`mountinfo`) does
/// tell that here, which SECURITY.md says; nothing of ours does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_box_hears_nothing_from_us_of_where_it_lies() {
    let folders = Folders::new();
    let mut house = house(&folders, 1).await;
    let looks = "env; pwd; hostname; cat /proc/self/cmdline /proc/1/cmdline /proc/mounts /etc/passwd /etc/hosts; \
        ls -l / /run /run/portcullis /proc/self/ /proc/self/fd; cat /proc/net/unix; echo looked";
    let request = house.request(Target::Sandbox, &["sh", "-c", looks]);
    let (_, ended) = house.run(request).await.unwrap();
    assert!(ended.out.ends_with("looked\n"), "{ended:?}");
    assert!(ended.out.contains("/run/portcullis/s"), "{ended:?}");
    let state = folders.state.path().to_str().unwrap();
    for word in [state, "workspaces", "demo"] {
        assert!(!ended.out.contains(word), "{word}: {}", ended.out);
        assert!(!ended.err.contains(word), "{word}: {}", ended.err);
    }
    // What is not there is refused in the box's own words.
    let request = house.request(Target::Sandbox, &["no-such-command"]);
    let (_, ended) = house.run(request).await.unwrap();
    let said = format!("{ended:?}");
    assert!(!said.contains(state), "{said}");
    let mut request = house.request(Target::Sandbox, &["true"]);
    request.cwd = Some("/nowhere".to_owned());
    let (_, ended) = house.run(request).await.unwrap();
    let said = format!("{ended:?}");
    assert!(!said.contains(state), "{said}");
    house.end().await;
}
