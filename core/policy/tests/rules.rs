//! Entries as people write them: words, folders, digests, places and times.

use super::*;
use crate::ids::Hash32;

fn text(value: &serde_json::Value) -> String {
    let entries = json!([value]);
    let document = json!({"version": 1, "agents": {"demo": {"allowlist": entries}}});
    match Document::parse(document) {
        Ok(_) => String::new(),
        Err(error) => error.0,
    }
}

#[test]
fn the_words_of_an_entry_are_matched_each_by_itself() {
    let passes = |args: &[&str], argv: &[&str]| {
        let document = list(&json!([{ "pattern": "/opt/tool", "args": args }]));
        let argv: Vec<&str> = ["/opt/tool"].iter().chain(argv).copied().collect();
        allows(&document, &at("/opt/tool", &argv))
    };
    for (args, argv, is) in [
        (&["show", "*"][..], &["show", "one"][..], true),
        (&["show", "*"], &["show"], false),
        (&["show", "*"], &["show", "one", "two"], false),
        (&["show", "*"], &["hide", "one"], false),
        // What is left open is never an option, a file of options or nothing.
        (&["show", "*"], &["show", "--exec=id"], false),
        (&["show", "*"], &["show", "-c"], false),
        (&["show", "*"], &["show", "+cmd"], false),
        (&["show", "*"], &["show", "@file"], false),
        (&["show", "*"], &["show", ""], false),
        (&["show", "..."], &["show"], true),
        (&["show", "..."], &["show", "a", "b"], true),
        (&["show", "..."], &["show", "a", "--b"], false),
        (&["--format=*"], &["--format=json"], true),
        (&["--format=*"], &["--format="], false),
        (&["--format=*"], &["--formatter"], false),
        (&[], &[], true),
        (&[], &["a"], false),
        (&["a b"], &["a", "b"], false),
    ] {
        assert_eq!(passes(args, argv), is, "{args:?} {argv:?}");
    }
    for bad in [&["...", "a"][..], &["*a"], &["a*b"], &["**"]] {
        let why = text(&json!({ "pattern": "/opt/tool", "args": bad }));
        assert!(why.contains("args"), "{bad:?}: {why:?}");
    }
}

#[test]
fn interpreters_and_package_runners_leave_no_word_open() {
    for name in [
        "bash", "python3", "sudo", "env", "npx", "awk", "find", "ssh", "git", "tar", "xargs",
    ] {
        let path = format!("/usr/bin/{name}");
        let plan = at(&path, &[&path, "one"]);
        for entry in [
            json!({ "pattern": path, "args": ["*"], "cwd": plan.cwd }),
            json!({ "pattern": path, "args": ["one", "..."], "cwd": plan.cwd }),
            json!({ "pattern": path, "args": ["on*"], "cwd": plan.cwd }),
            json!({ "pattern": path, "args": ["..."], "cwd": plan.cwd }),
        ] {
            let document = list(&json!([entry]));
            assert!(!allows(&document, &plan), "{entry}");
            let found = lint(&document, Millis(0));
            assert!(
                found.iter().any(|one| one.id == "matches-nothing"),
                "{entry}: {found:?}"
            );
        }
        // All of its words and its folder said, it is one command.
        let exact = list(&json!([{ "pattern": path, "args": ["one"], "cwd": plan.cwd }]));
        assert!(allows(&exact, &plan), "{name}");
        let mut elsewhere = plan.clone();
        elsewhere.cwd = "/elsewhere".to_owned();
        if kind_of(&plan) == CommandKind::Runner {
            let nowhere = list(&json!([{ "pattern": path, "args": ["one"] }]));
            assert!(!allows(&nowhere, &plan), "{name}");
        }
        assert!(!allows(&exact, &elsewhere), "{name}");
    }
}

#[test]
fn one_binary_is_allowed_while_all_else_is_blocked() {
    let agent = AgentPolicy {
        exec: ExecMode::Full,
        elevated: Elevated::Allowlist,
        ..AgentPolicy::default()
    };
    let document =
        list(&json!([{ "pattern": "/usr/bin/docker" }, { "pattern": "/usr/local/bin/terraform" }]));
    let of = |path: &str, words: &[&str]| {
        let argv: Vec<&str> = [path].iter().chain(words).copied().collect();
        let rules = Rules {
            agent,
            document: Standing::Valid(&document),
            now: Millis(0),
        };
        decide(&rules, &at(path, &argv), None)
    };
    for (path, words) in [
        ("/usr/bin/docker", &["ps", "--all"][..]),
        ("/usr/local/bin/terraform", &["plan"]),
    ] {
        assert!(matches!(of(path, words), Verdict::Allow { .. }), "{path}");
    }
    for (path, words) in [
        ("/usr/bin/ls", &[][..]),
        ("/usr/bin/terraform", &["plan"]),
        ("/usr/local/bin/docker", &["ps"]),
        ("/usr/bin/docker-compose", &["up"]),
    ] {
        assert!(matches!(of(path, words), Verdict::Deny { .. }), "{path}");
    }
    // Whoever reads the list is told what that hands over.
    let found = lint(&document, Millis(0));
    let ids: Vec<&str> = found.iter().map(|one| one.id).collect();
    assert_eq!(ids, ["allows-anything", "allows-anything"]);
    // With its verb said it is less, and without one a pattern is none.
    let narrow = list(&json!([{ "pattern": "/usr/bin/docker", "args": ["ps", "..."] }]));
    let run = |words: &[&str]| {
        let argv: Vec<&str> = ["/usr/bin/docker"].iter().chain(words).copied().collect();
        allows(&narrow, &at("/usr/bin/docker", &argv))
    };
    assert!(run(&["ps"]) && run(&["ps", "a"]));
    assert!(!run(&["ps", "--format", "x"]) && !run(&["run", "a"]) && !run(&["-H", "x", "ps"]));
    let open = list(&json!([{ "pattern": "/usr/bin/docker", "args": ["*", "a"] }]));
    assert!(!allows(
        &open,
        &at("/usr/bin/docker", &["/usr/bin/docker", "ps", "a"])
    ));
}

#[test]
fn an_entry_over_a_tree_names_what_is_below_it_and_no_more() {
    let document = list(&json!([{ "pattern": "/opt/tools/**" }]));
    for (path, is) in [
        ("/opt/tools/a", true),
        ("/opt/tools/a/b/c", true),
        ("/opt/tools", false),
        ("/opt/toolsa/b", false),
        ("/opt/tools/.hidden", false),
        ("/opt/tools/a/.hidden/b", false),
        // What starts other programs is named by its own path.
        ("/opt/tools/python3", false),
        ("/opt/tools/docker", false),
        ("/opt/tools/git", false),
    ] {
        assert_eq!(allows(&document, &at(path, &[path])), is, "{path}");
    }
    let system = list(&json!([{ "pattern": "/usr/**" }]));
    assert!(allows(&system, &at("/usr/bin/cat", &["cat", "a"])));
    assert!(!allows(
        &system,
        &at("/usr/lib/x/unknown", &["/usr/lib/x/unknown"])
    ));
    for bad in ["/**", "/a/*/**", "/a/**/b", "/a**", "/a/**b"] {
        assert!(!text(&json!({ "pattern": bad })).is_empty(), "{bad}");
    }
}

#[test]
fn an_entry_may_be_of_one_file_one_image_one_place_and_until_a_time() {
    let plan = host_plan(&["uname"]);
    let Executable::Host(file) = &plan.executable else {
        panic!("{plan:?}");
    };
    let (path, own) = (file.path.clone(), file.sha256.to_string());
    let other = Hash32::of(b"other").to_string();
    let image = format!("sha256:{own}");
    let mut boxed = plan.clone();
    boxed.target = Target::Sandbox;
    boxed.executable = Executable::Image {
        digest: image.clone(),
        path: path.clone(),
    };
    let asks = AgentPolicy {
        exec: ExecMode::Ask,
        elevated: Elevated::Ask,
        ..AgentPolicy::default()
    };
    let passes = |more: serde_json::Value, plan: &ExecPlan, now: u64| {
        let mut entry = json!({ "pattern": path });
        entry
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let document = list(&json!([entry]));
        let rules = Rules {
            agent: asks,
            document: Standing::Valid(&document),
            now: Millis(now),
        };
        matches!(decide(&rules, plan, None), Verdict::Allow { .. })
    };
    for (more, host, sandbox) in [
        (json!({}), true, true),
        (json!({ "sha256": own }), true, false),
        (json!({ "sha256": other }), false, false),
        (json!({ "image": image }), false, true),
        (json!({ "image": format!("sha256:{other}") }), false, false),
        (json!({ "onlyIn": "sandbox" }), false, true),
        (json!({ "onlyIn": "host" }), true, false),
        (json!({ "cwd": plan.cwd }), true, true),
        (json!({ "cwd": "/elsewhere" }), false, false),
    ] {
        assert_eq!(passes(more.clone(), &plan, 0), host, "{more} on the host");
        assert_eq!(
            passes(more.clone(), &boxed, 0),
            sandbox,
            "{more} in the sandbox"
        );
    }
    for (until, end) in [
        ("2027-01-31T18:00:00Z", 1_801_418_400_000),
        ("2027-01-31T19:00:00+01:00", 1_801_418_400_000),
        ("2028-02-29T00:00:00Z", 1_835_395_200_000),
        ("1970-01-01T00:00:01Z", 1_000),
    ] {
        let more = json!({ "until": until });
        assert!(passes(more.clone(), &plan, end - 1), "{until}");
        assert!(!passes(more, &plan, end), "{until}");
        let document = list(&json!([{ "pattern": path, "until": until }]));
        let ids = |now| {
            lint(&document, Millis(now))
                .iter()
                .map(|one| one.id)
                .collect::<Vec<_>>()
        };
        assert_eq!((ids(end - 1), ids(end)), (vec![], vec!["matches-nothing"]));
    }
    for bad in [
        json!({ "sha256": "x" }),
        json!({ "image": own }),
        json!({ "image": image, "sha256": own }),
        json!({ "image": image, "onlyIn": "host" }),
        json!({ "sha256": own, "onlyIn": "sandbox" }),
        json!({ "onlyIn": "node" }),
        json!({ "until": "2027-01-31" }),
        json!({ "until": "2027-01-31T18:00:00" }),
        json!({ "until": "1969-01-31T18:00:00Z" }),
        json!({ "cwd": "relative" }),
        json!({ "args": ["a"], "argPattern": "[\"a\"]" }),
    ] {
        let mut entry = json!({ "pattern": path });
        entry
            .as_object_mut()
            .unwrap()
            .extend(bad.as_object().unwrap().clone());
        assert!(!text(&entry).is_empty(), "{bad}");
    }
}

#[test]
fn a_wider_entry_loosens_and_a_narrower_one_tightens() {
    let wide = list(&json!([{ "pattern": "/opt/tool" }]));
    for narrow in [
        json!({ "pattern": "/opt/tool", "onlyIn": "sandbox" }),
        json!({ "pattern": "/opt/tool", "until": "2027-01-31T18:00:00Z" }),
        json!({ "pattern": "/opt/tool", "sha256": "0".repeat(64) }),
        json!({ "pattern": "/opt/tool", "cwd": "/srv" }),
    ] {
        let narrow = list(&json!([narrow]));
        assert_eq!(diff(&narrow, &wide), Diff::Loosens);
        assert_eq!(diff(&wide, &narrow), Diff::Tightens);
        assert_eq!(diff(&narrow, &narrow), Diff::Same);
    }
    let until = |year: u32| {
        list(&json!([{ "pattern": "/opt/tool", "until": format!("{year}-01-31T18:00:00Z") }]))
    };
    assert_eq!(diff(&until(2027), &until(2028)), Diff::Loosens);
    assert_eq!(diff(&until(2028), &until(2027)), Diff::Tightens);
}

#[test]
fn what_is_refused_by_name_has_no_conditions() {
    for more in [
        json!({ "onlyIn": "sandbox" }),
        json!({ "until": "2027-01-31T18:00:00Z" }),
        json!({ "sha256": "0".repeat(64) }),
        json!({ "args": ["*"] }),
        json!({ "cwd": "/srv" }),
    ] {
        let mut entry = json!({ "pattern": "/opt/tool" });
        entry
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let document = json!({"version": 1, "agents": {"demo": {"denylist": [entry]}}});
        let error = Document::parse(document).unwrap_err().0;
        assert!(error.contains("agents.demo.denylist[0]"), "{error}");
    }
}

#[test]
fn a_mode_is_one_word_for_two_settings() {
    for (word, mode) in [
        ("deny", Mode::DENY),
        ("allowlist", Mode::ALLOWLIST),
        ("ask", Mode::ASK),
        ("full", Mode::FULL),
    ] {
        let said = document(
            json!({"version": 1, "defaults": {"mode": word}, "agents": {"demo": {"mode": "ask"}}}),
        );
        assert_eq!(said.defaults().mode(), mode);
        assert_eq!(said.settings("demo").mode(), Mode::ASK);
        // Kept and sent as the peer writes it.
        assert!(said.to_json()["defaults"].get("mode").is_none());
        assert_eq!(Document::parse(said.to_json()).unwrap(), said);
    }
    let both = json!({"version": 1, "agents": {"demo": {"mode": "ask", "ask": "off"}}});
    let error = Document::parse(both).unwrap_err().0;
    assert!(error.contains("agents.demo.mode"), "{error}");
}

#[test]
fn without_a_document_nothing_runs() {
    let rules = Rules {
        agent: asking(),
        document: Standing::Absent,
        now: Millis(0),
    };
    let plan = host_plan(&["uname"]);
    for grant in [None, Some("g")] {
        let Verdict::Deny { code, message, .. } = decide(&rules, &plan, grant) else {
            panic!("not denied");
        };
        assert_eq!(code.name, "POLICY_DENIED");
        assert!(message.contains("portcullis policy set"), "{message}");
    }
}

/// The bug: a wrapper was known by the last part of its name, and loaded a library from the folder that the rest names; a shell
/// called `-/bash` was one for a login, which reads a profile first.
#[test]
fn a_wrapper_or_shell_is_called_by_its_own_name() {
    let document = list(&json!([{ "pattern": "/usr/bin/uname" }]));
    let find = |name: &str| {
        let path = format!("/usr/bin/{}", command::base(name));
        Some(Resolved { path, fixed: true })
    };
    let passes = |argv: &[&str]| {
        let argv: Vec<String> = argv.iter().map(ToString::to_string).collect();
        let agent = crate::ids::AgentId::new("demo").unwrap();
        let plan = preview(&agent, &Target::Host, &argv, "/", &find).unwrap();
        allows(&document, &plan)
    };
    for argv in [
        &["stdbuf", "-oL", "uname"][..],
        &["/usr/bin/stdbuf", "-oL", "uname"],
        &["bash", "-c", "uname"],
        &["/bin/bash", "-c", "uname"],
        &["timeout", "5", "uname"],
        &["nice", "--", "uname"],
    ] {
        assert!(passes(argv), "{argv:?}");
    }
    for argv in [
        &["x/stdbuf", "-oL", "uname"][..],
        &["/tmp/stdbuf", "-oL", "uname"],
        &["./stdbuf", "-oL", "uname"],
        &["-/bash", "-c", "uname"],
        &["-bash", "-c", "uname"],
        &["/tmp/-/bash", "-c", "uname"],
        &["nice", "x/stdbuf", "-oL", "uname"],
        &["sh", "-c", "x/stdbuf -oL uname"],
        // A `--` behind the time is the command's name.
        &["timeout", "5", "--", "uname"],
    ] {
        assert!(!passes(argv), "{argv:?}");
    }
}

/// The bug: of a locale only what stands behind its last dot was looked at, and behind `@` or in one part of a list stood another
/// set of characters, in which a backslash is half a letter.
#[test]
fn only_a_locale_whose_characters_are_known_leaves_a_line_what_it_was() {
    let document = list(&json!([{ "pattern": "/usr/bin/uname" }]));
    let find = |name: &str| {
        let path = format!("/usr/bin/{}", command::base(name));
        Some(Resolved { path, fixed: true })
    };
    let agent = crate::ids::AgentId::new("demo").unwrap();
    let argv = ["bash", "-c", "uname"].map(str::to_owned);
    let plan = preview(&agent, &Target::Host, &argv, "/", &find).unwrap();
    for (value, is) in [
        ("", true),
        ("C", true),
        ("POSIX", true),
        ("C.UTF-8", true),
        ("C.utf8", true),
        ("de_DE.UTF-8", true),
        ("zh_CN.utf8", true),
        ("zh_CN", false),
        ("zh_CN.gbk", false),
        ("zh_CN.gbk@x.utf-8", false),
        ("zh_HK.big5hkscs@x.utf-8", false),
        ("zh_CN.utf-8@gbk", false),
        ("LC_CTYPE=zh_CN.gbk;LC_IDENTIFICATION=C.utf8", false),
        ("/tmp/x.utf8", false),
        ("../x.utf8", false),
        ("ja_JP.SJIS.utf8", false),
    ] {
        for name in ["LC_ALL", "LC_CTYPE", "LANG"] {
            let mut plan = plan.clone();
            plan.env
                .insert(name.to_owned(), EnvValue::Plain(value.to_owned()));
            assert_eq!(allows(&document, &plan), is, "{name}={value}");
        }
    }
}

/// The bug: a program of the system that is on none of our lists was taken for one that starts nothing, whatever its words.
#[test]
fn of_a_program_of_the_system_that_nobody_knows_all_words_are_said() {
    for (path, argv, is) in [
        (
            "/usr/bin/msgfilter",
            &["msgfilter", "-i", "a", "./x"][..],
            false,
        ),
        (
            "/usr/bin/x86_64-linux-gnu-nm",
            &["/usr/bin/x86_64-linux-gnu-nm", "--plugin", "x"],
            false,
        ),
        ("/usr/bin/apt-cache", &["apt-cache", "-o", "x"], false),
        ("/usr/bin/groff", &["groff", "-U", "x"], false),
        ("/usr/sbin/rpcgen", &["rpcgen", "-Y", "x"], false),
        ("/usr/bin/uptime", &["uptime", "-p"], true),
        ("/usr/bin/nproc", &["nproc", "--all"], true),
        ("/usr/bin/diff", &["diff", "-u", "a", "b"], true),
        ("/usr/bin/diff", &["diff", "-ul", "a", "b"], false),
        ("/usr/bin/diff", &["diff", "--paginate", "a", "b"], false),
        ("/usr/bin/file", &["file", "a"], true),
        ("/usr/bin/file", &["file", "-bz", "a"], false),
        ("/usr/local/bin/deploy", &["deploy", "now"], true),
        ("/opt/own/tool", &["tool", "now"], true),
    ] {
        let document = list(&json!([{ "pattern": path }]));
        assert_eq!(allows(&document, &at(path, argv)), is, "{argv:?}");
        let words: Vec<&str> = argv[1..].to_vec();
        let exact = list(&json!([{ "pattern": path, "args": words }]));
        assert!(allows(&exact, &at(path, argv)), "{argv:?}");
    }
    let document = list(&json!([{ "pattern": "/usr/bin/msgfilter" }]));
    assert_eq!(lint(&document, Millis(0))[0].id, "matches-nothing");
}

/// The bug: an entry let pass whatever its owner, the run's own user, had put under its path meanwhile; and `git status` ran what
/// the configuration of the folder names.
#[test]
fn what_others_than_root_can_change_passes_only_by_its_digest_or_folder() {
    let plan = |program: bool, folder: bool| {
        let argv = if folder {
            &["git", "status"][..]
        } else {
            &["tool"]
        };
        let path = format!("/opt/own/{}", argv[0]);
        let mut plan = at(&path, argv);
        let Executable::Host(file) = &plan.executable else {
            panic!("{plan:?}");
        };
        let (copy, path) = (Held::Copied(file.clone()), plan.cwd.clone());
        let own = Operand {
            index: 0,
            from: 0,
            held: copy,
        };
        let why = crate::plan::Unkept::Changeable;
        let place = Operand {
            index: 0,
            from: 1,
            held: Held::Open { path, why },
        };
        plan.operands.extend(program.then_some(own));
        plan.operands.extend(folder.then_some(place));
        plan.validate_shape().unwrap();
        plan
    };
    let digest = Hash32([7; 32]);
    let mut tool = plan(true, false);
    if let (Executable::Host(file), Held::Copied(copy)) =
        (&mut tool.executable, &mut tool.operands[0].held)
    {
        (file.sha256, copy.sha256) = (digest, digest);
    }
    assert!(!allows(
        &list(&json!([{ "pattern": "/opt/own/tool" }])),
        &tool
    ));
    let named = json!([{ "pattern": "/opt/own/tool", "sha256": digest.to_string() }]);
    assert!(allows(&list(&named), &tool));
    let git = plan(false, true);
    let exact = |more: serde_json::Value| {
        let mut entry = json!({ "pattern": "/opt/own/git", "args": ["status"] });
        entry
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        list(&json!([entry]))
    };
    assert!(!allows(&exact(json!({})), &git) && !may_always(&git));
    assert!(allows(&exact(json!({ "cwd": git.cwd })), &git));
    let mut fixed = git.clone();
    fixed.operands.clear();
    assert!(allows(&exact(json!({})), &fixed));
    let Verdict::Ask { reasons, .. } = verdict(&exact(json!({})), &git) else {
        panic!("not asked");
    };
    assert!(reasons.iter().any(|reason| reason.id == "reads-its-folder"));
}

/// The bug: another spelling of the same path, words that a shell runs, and wrappers with more than one word before the command hid
/// what is refused by name.
#[test]
fn what_is_refused_by_name_is_seen_wherever_it_may_stand() {
    let refused = document(json!({"version": 1, "agents": {"demo": {
        "denylist": [{ "pattern": "/usr/bin/rm" }] }}}));
    let rules = Rules {
        agent: AgentPolicy::default(),
        document: Standing::Valid(&refused),
        now: Millis(0),
    };
    let verdict = |argv: &[&str]| {
        let mut plan = host_plan(argv);
        plan.target = Target::Sandbox;
        plan.operands.clear();
        plan.executable = Executable::Workspace {
            path: argv[0].to_owned(),
        };
        decide(&rules, &plan, None)
    };
    for argv in [
        &["rm", "f"][..],
        &["//usr/bin/rm", "f"],
        &["/usr/bin/../bin/rm", "f"],
        &["/bin/rm", "f"],
        &["/usr/local/../sbin/./rm", "f"],
        &["sh", "-c", "//bin/rm f"],
        &["flock", "f", "rm", "f"],
        &["env", "-u", "A", "-u", "B", "rm", "x"],
        &["/lib64/ld-linux-x86-64.so.2", "/usr/bin/rm", "f"],
        &["sh", "-c", "time -p rm f"],
        &["sh", "-c", "eval rm f"],
        &["sh", "-c", "trap 'rm g' EXIT"],
        &["chroot", "/", "rm", "x"],
        &["setpriv", "--reuid", "a", "--regid", "b", "rm", "x"],
        &["sudo", "-u", "bob", "-g", "grp", "rm", "x"],
        &["xargs", "-a", "f", "-I", "X", "rm", "X"],
        &["env", "-S", "rm x"],
        &["env", "-Srm x"],
        &["sh", "-c", "cat <<E\n$(rm x)\nE"],
        &["sh", "-c", "case a in (a) rm x;; esac"],
        &["sh", "-c", "$'rm' x"],
        &["sh", "-c", "{rm,x}"],
        &["systemd-inhibit", "--what=idle", "rm", "x"],
    ] {
        assert!(matches!(verdict(argv), Verdict::Deny { .. }), "{argv:?}");
    }
    for argv in [
        &["ls", "rm"][..],
        &["sh", "-c", "echo rm"],
        &["grep", "rm", "f"],
        &["timeout", "5", "ls", "rm"],
    ] {
        assert!(matches!(verdict(argv), Verdict::Allow { .. }), "{argv:?}");
    }
    // A document that is not to be read may have refused anything.
    for standing in [Standing::Absent, Standing::Malformed] {
        let rules = Rules {
            agent: AgentPolicy::default(),
            document: standing,
            now: Millis(0),
        };
        let mut plan = host_plan(&["ls"]);
        plan.target = Target::Sandbox;
        assert!(matches!(decide(&rules, &plan, None), Verdict::Deny { .. }));
    }
}
