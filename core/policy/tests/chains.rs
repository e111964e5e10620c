//! Plans that start other commands, and what is said of them before there is a run.

use super::*;
use crate::ids::AgentId;

/// A machine with these in the system's folder; `own` can be changed by others than root.
fn find(name: &str) -> Option<Resolved> {
    let path = match name.rsplit_once('/') {
        None | Some(("/usr/bin" | "/bin", _)) => format!("/usr/bin/{}", command::base(name)),
        Some(_) => name.to_owned(),
    };
    let base = command::base(&path).to_owned();
    let known = [
        "ls", "wc", "cat", "grep", "uname", "id", "rm", "sh", "dash", "bash", "env", "nice",
        "timeout", "echo", "git", "python3", "tool", "true", "own", "sudo", "xargs", "find",
        "busybox", "nohup", "printf", "sort",
    ];
    known.contains(&base.as_str()).then(|| Resolved {
        path: if base == "sh" {
            "/usr/bin/dash".to_owned()
        } else {
            path.clone()
        },
        fixed: base != "own",
    })
}

fn plan(argv: &[&str]) -> ExecPlan {
    let argv: Vec<String> = argv.iter().map(ToString::to_string).collect();
    let agent = AgentId::new("demo").unwrap();
    preview(&agent, &Target::Host, &argv, "/srv", &find).unwrap()
}

fn of(document: &Document, plan: &ExecPlan) -> Judgement {
    let rules = Rules {
        agent: asking(),
        document: Standing::Valid(document),
        now: Millis(0),
    };
    let judgement = judge(&rules, plan, None);
    // What is shown is what is enforced.
    let enforced = match decide(&rules, plan, None) {
        Verdict::Allow { rule } => {
            assert_eq!(rule, judgement.rule);
            Ruling::Allow
        }
        Verdict::Ask { reasons, .. } => {
            assert_eq!(reasons, judgement.reasons);
            Ruling::Ask
        }
        Verdict::Deny { .. } => Ruling::Deny,
    };
    assert_eq!(judgement.verdict, enforced);
    judgement
}

fn ids(judgement: &Judgement) -> Vec<&str> {
    judgement
        .reasons
        .iter()
        .map(|reason| reason.id.as_str())
        .collect()
}

fn simple() -> Document {
    document(json!({"version": 1, "agents": {"demo": {
        "allowlist": [
            {"id": "ls", "pattern": "/usr/bin/ls"}, {"id": "wc", "pattern": "/usr/bin/wc"}, {"id": "echo", "pattern": "/usr/bin/echo"},
            {"id": "log", "pattern": "/usr/bin/git", "argPattern": "[\"log\"]"}, {"id": "tool", "pattern": "/usr/bin/tool", "argPattern": "[\"x\"]"},
            {"id": "own", "pattern": "/usr/bin/own"}, {"id": "printf", "pattern": "/usr/bin/printf"},
            {"id": "sort", "pattern": "/usr/bin/sort", "argPattern": "[]"},
            {"id": "py", "pattern": "/usr/bin/python3", "argPattern": "{\"cwd\":\"/srv\",\"args\":[\"x.py\"]}"},
            {"id": "sh", "pattern": "/usr/bin/dash", "argPattern": "{\"cwd\":\"/srv\",\"args\":[\"-c\",\"ls $x\"]}"},
        ],
        "denylist": [{"id": "no-rm", "pattern": "/usr/bin/rm"}, {"id": "no-push", "pattern": "/usr/bin/git", "argPattern": "[\"push\"]"}],
    }}}))
}

#[test]
fn a_chain_passes_only_if_each_of_its_commands_does() {
    let document = simple();
    for (line, rule) in [
        ("ls", "list:ls"),
        ("ls -l; wc x && ls", "list:ls+wc"),
        ("ls | wc -l", "list:ls+wc"),
        ("ls | sort", "list:ls+sort"),
        ("nice -n 5 ls | nohup wc", "list:ls+wc"),
        ("echo a; printf '%s' b", "list:echo+printf"),
        ("git log", "list:log"),
        ("/usr/bin/ls 'a b'", "list:ls"),
        ("tool x", "list:tool"),
    ] {
        let judgement = of(&document, &plan(&["sh", "-c", line]));
        assert_eq!(
            judgement.verdict,
            Ruling::Allow,
            "{line}: {:?}",
            judgement.reasons
        );
        assert_eq!(judgement.rule, rule, "{line}");
    }
    for (line, reason) in [
        ("uname", "not-listed"),
        ("ls; uname", "not-listed"),
        ("ls | tool", "not-listed"),
        ("git status", "not-listed"),
        ("git log; git status", "not-listed"),
        ("python3 x.py", "starts-commands"),
        ("own", "not-pinned"),
        ("ls; own", "not-pinned"),
        ("ls; missing", "not-pinned"),
        ("ls $x", "parameter-expansion"),
        ("ls > f", "redirection"),
        ("ls; sh -c ls", "nested-shell"),
        ("cd /; ls", "shell-builtin"),
        ("ls; eval ls", "eval"),
    ] {
        let judgement = of(&document, &plan(&["sh", "-c", line]));
        assert_eq!(judgement.verdict, Ruling::Ask, "{line}");
        assert!(
            ids(&judgement).contains(&reason),
            "{line}: {:?}",
            ids(&judgement)
        );
    }
    for (argv, allowed) in [
        (&["nice", "ls"][..], true),
        (&["timeout", "5", "nice", "ls", "-l"], true),
        (&["env", "ls"], true),
        (&["nice", "sh", "-c", "ls; wc x"], true),
        (&["bash", "-c", "ls"], true),
        (&["nice", "nice", "nice", "nice", "nice", "ls"], false),
        (&["env", "A=b", "ls"], false),
        (&["sudo", "ls"], false),
        (&["xargs", "ls"], false),
        (&["busybox", "ls"], false),
        (&["find", ".", "-exec", "ls", ";"], false),
        (&["nice", "python3", "x.py"], false),
        (&["nice", "own"], false),
        (&["nice", "uname"], false),
        (&["nice", "missing"], false),
        (&["sh", "-lc", "ls"], false),
        (&["sh", "ls"], false),
    ] {
        let judgement = of(&document, &plan(argv));
        assert_eq!(
            judgement.verdict == Ruling::Allow,
            allowed,
            "{argv:?} {:?}",
            judgement.reasons
        );
    }
}

/// What is written out whole, with its folder, stands as it is written: as before there were chains.
#[test]
fn a_line_that_is_listed_word_by_word_needs_no_reading() {
    let listed = plan(&["dash", "-c", "ls $x"]);
    assert_eq!(of(&simple(), &listed).rule, "list:sh");
}

#[test]
fn what_is_refused_by_name_is_refused_behind_anything() {
    let document = simple();
    for argv in [
        &["rm", "x"][..],
        &["nice", "rm", "x"],
        &["sudo", "-u", "bob", "rm", "x"],
        &["env", "-i", "rm"],
        &["xargs", "rm"],
        &["find", ".", "-exec", "rm", "{}", ";"],
        &["busybox", "rm"],
        &["sh", "-c", "ls; rm x"],
        &["sh", "-c", "ls && /bin/rm x"],
        &["sh", "-c", "echo $(rm x)"],
        &["sh", "-c", "if ls; then rm x; fi"],
        &["sh", "-c", "sh -c 'rm x'"],
        &["bash", "-lc", "rm x"],
        &["git", "push"],
        &["nice", "git", "push"],
        &["sh", "-c", "git push"],
        &["sh", "-c", "A=1 rm x"],
        &["sh", "-c", "command rm x"],
        &["sh", "-c", "'r'm x"],
        &["sh", "-c", "r\\m x"],
    ] {
        let judgement = of(&document, &plan(argv));
        assert_eq!(judgement.verdict, Ruling::Deny, "{argv:?}");
        assert!(
            judgement.rule.starts_with("deny:no-"),
            "{argv:?} {}",
            judgement.rule
        );
        assert_eq!(ids(&judgement)[0], "denied-by-name");
        assert!(
            judgement.commands.iter().any(|c| c.verdict == Ruling::Deny),
            "{argv:?}"
        );
    }
    for argv in [
        &["ls", "rm"][..],
        &["sh", "-c", "echo rm; ls 'rm x'"],
        &["git", "log"],
    ] {
        assert_eq!(
            of(&document, &plan(argv)).verdict,
            Ruling::Allow,
            "{argv:?}"
        );
    }
    // A grant from before does not open it again, nor does everything that is free.
    let rules = Rules {
        agent: AgentPolicy::default(),
        document: Standing::Valid(&document),
        now: Millis(0),
    };
    let mut inside = plan(&["rm", "x"]);
    inside.target = Target::Sandbox;
    assert!(matches!(
        decide(&rules, &inside, Some("g")),
        Verdict::Deny {
            code: POLICY_DENIED,
            ..
        }
    ));
}

type Change = fn(&mut ExecPlan);

fn set(plan: &mut ExecPlan, name: &str, value: &str) {
    let value = EnvValue::Plain(value.to_owned());
    plan.env.insert(name.to_owned(), value);
}

/// Everything that a chain stands on, changed in the plan.
#[test]
fn a_chain_is_automatic_only_as_it_was_frozen() {
    let document = simple();
    let good = || plan(&["sh", "-c", "ls; wc x"]);
    let rules = Rules {
        agent: asking(),
        document: Standing::Valid(&document),
        now: Millis(0),
    };
    let allowed = |plan: &ExecPlan| matches!(decide(&rules, plan, None), Verdict::Allow { .. });
    assert!(allowed(&good()));
    let file = |path: &str| crate::plan::HostFile {
        path: path.to_owned(),
        dev: 0,
        ino: 0,
        sha256: crate::ids::Hash32([0; 32]),
    };
    let changes: &[(&str, Change)] = &[
        ("stdin", |p| p.stdin = Stdin::Open),
        ("tty", |p| p.tty = Some(TtySize { rows: 1, cols: 1 })),
        ("operand", |p| drop(p.operands.pop())),
        ("operands", |p| p.operands.clear()),
        ("open", |p| {
            p.operands[0].held = Held::Open {
                path: "/usr/bin/ls".into(),
                why: crate::plan::Unkept::Changeable,
            };
        }),
        ("place", |p| p.operands[1].from += 1),
        ("path", |p| drop(p.env.remove("PATH"))),
        ("other path", |p| set(p, "PATH", "/tmp")),
        ("variable", |p| set(p, "BASH_ENV", "/tmp/x")),
        ("locale", |p| set(p, "LC_ALL", "ja_JP.SJIS")),
        ("secret", |p| {
            let (name, version) = ("A".into(), 1);
            let secret = EnvValue::Secret { name, version };
            p.env.insert("LANG".into(), secret);
        }),
        ("line", |p| p.argv[2] = "ls; id x".into()),
        ("option", |p| p.argv[1] = "-lc".into()),
        ("agent", |p| p.agent = AgentId::new("other").unwrap()),
        ("target", |p| p.target = Target::Node("n".into())),
    ];
    for (what, change) in changes {
        let mut plan = good();
        change(&mut plan);
        assert!(!allowed(&plan), "{what}");
    }
    for path in ["/usr/bin/id", "/tmp/ls", "/usr/bin/busybox"] {
        let mut plan = good();
        plan.operands[0].held = Held::Checked(file(path));
        assert!(!allowed(&plan), "{path}");
    }
    for path in ["/tmp/dash", "/usr/bin/zsh", "/usr/bin/busybox"] {
        let mut plan = good();
        plan.executable = Executable::Host(file(path));
        assert!(!allowed(&plan), "{path}");
    }
}

#[test]
fn the_rule_that_decides_is_named() {
    let document = simple();
    let rule = |agent: AgentPolicy, standing, argv: &[&str]| {
        let rules = Rules {
            agent,
            document: standing,
            now: Millis(0),
        };
        let judgement = judge(&rules, &plan(argv), None);
        (judgement.verdict.word(), judgement.rule)
    };
    let valid = Standing::Valid(&document);
    let of = |exec, elevated| AgentPolicy {
        exec,
        elevated,
        ..AgentPolicy::default()
    };
    for (agent, standing, argv, verdict, named) in [
        (asking(), valid, &["ls"][..], "allow", "list:ls"),
        (
            asking(),
            valid,
            &["id"],
            "ask",
            "config:agents.demo.elevated=ask",
        ),
        (
            asking(),
            Standing::Malformed,
            &["ls"],
            "deny",
            "document:malformed",
        ),
        (
            AgentPolicy::default(),
            valid,
            &["ls"],
            "deny",
            "config:agents.demo.elevated=off",
        ),
        (
            of(ExecMode::Deny, Elevated::Ask),
            valid,
            &["ls"],
            "deny",
            "config:agents.demo.exec=deny",
        ),
        (
            of(ExecMode::Allowlist, Elevated::Ask),
            valid,
            &["id"],
            "deny",
            "config:agents.demo.exec=allowlist",
        ),
        (
            of(ExecMode::Full, Elevated::Allowlist),
            valid,
            &["id"],
            "deny",
            "config:agents.demo.elevated=allowlist",
        ),
        (
            of(ExecMode::Ask, Elevated::Ask),
            Standing::Absent,
            &["id"],
            "deny",
            "document:absent",
        ),
        (
            asking(),
            valid,
            &["sh", "-c", "ls; id"],
            "ask",
            "config:agents.demo.elevated=ask",
        ),
    ] {
        assert_eq!(
            rule(agent, standing, argv),
            (verdict, named.to_owned()),
            "{argv:?}"
        );
    }
    let judgement = super::chains::of(&document, &plan(&["nice", "sh", "-c", "ls; id"]));
    let told: Vec<_> = judgement
        .commands
        .iter()
        .map(|c| {
            (
                c.argv[0].as_str(),
                c.verdict,
                c.rule.as_deref(),
                c.path.as_deref(),
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            ("ls", Ruling::Allow, Some("list:ls"), Some("/usr/bin/ls")),
            ("id", Ruling::Ask, None, Some("/usr/bin/id")),
        ]
    );
    assert_eq!(judgement.commands[0].through, ["nice", "sh"]);
}

#[test]
fn taking_a_refusal_away_loosens_and_adding_one_does_not() {
    let with = |denied: serde_json::Value| {
        document(json!({"version": 1, "agents": {"demo": {"denylist": denied}}}))
    };
    let (none, one) = (with(json!([])), with(json!([{"pattern": "/usr/bin/rm"}])));
    let narrow = with(json!([{"pattern": "/usr/bin/rm", "argPattern": "[\"x\"]"}]));
    assert_eq!(diff(&none, &one), Diff::Tightens);
    assert_eq!(diff(&one, &none), Diff::Loosens);
    assert_eq!(diff(&one, &narrow), Diff::Loosens);
    assert_eq!(diff(&one, &one), Diff::Same);
    assert_eq!(Document::parse(one.to_json()).unwrap(), one);
}

#[test]
fn entries_that_do_not_do_what_they_look_like_are_found() {
    let document = document(json!({"version": 1, "agents": {"demo": {
        "allowlist": [
            {"id": "a", "pattern": "/usr/bin/git"},
            {"id": "b", "pattern": "/usr/bin/python3", "argPattern": "[\"x\"]"},
            {"id": "c", "pattern": "/usr/bin/bash", "argPattern": "{\"cwd\":\"/\",\"args\":[\"-c\",\"x\"]}"},
            {"id": "d", "pattern": "/usr/bin/*"},
            {"id": "e", "pattern": "/opt/tools/*"},
            {"id": "f", "pattern": "/opt/tools/one"},
            {"id": "g", "pattern": "/usr/bin/uname"},
            {"id": "h", "pattern": "/usr/bin/uname"},
            {"id": "i", "pattern": "/usr/bin/rm"},
            {"id": "j", "pattern": "/usr/bin/python*"},
            {"id": "k", "pattern": "/usr/bin/id", "argPattern": "[\"-u\"]"},
            {"id": "l", "pattern": "/usr/bin/terraformer"},
            {"id": "m", "pattern": "/usr/bin/terraform"},
        ],
        "denylist": [{"id": "z", "pattern": "/usr/bin/rm"}],
    }, "off": {"security": "full", "ask": "off", "allowlist": [{"pattern": "/usr/bin/uname"}]}}}));
    let found = lint(&document, Millis(0));
    let found: Vec<(&str, &str)> = found
        .iter()
        .map(|f| (f.entry.as_deref().unwrap_or("-"), f.id))
        .collect();
    assert_eq!(
        found,
        [
            ("a", "matches-nothing"),
            ("b", "matches-nothing"),
            ("c", "allows-shell"),
            ("d", "few-of-a-folder"),
            ("f", "covered"),
            ("g", "covered"),
            ("h", "covered"),
            ("i", "refused"),
            ("i", "covered"),
            ("j", "matches-nothing"),
            ("j", "few-of-a-folder"),
            ("k", "covered"),
            ("l", "matches-nothing"),
            ("m", "allows-anything"),
            ("-", "no-effect"),
        ]
    );
}

/// One of the ways in which a plain word is written so that a shell reads the same word.
fn written(word: &str, how: u8) -> String {
    let middle = word.len() / 2;
    match how % 5 {
        0 => word.to_owned(),
        1 => format!("'{word}'"),
        2 => format!("\"{word}\""),
        3 => word.chars().flat_map(|c| ['\\', c]).collect(),
        _ => format!("{}''\"{}\"", &word[..middle], &word[middle..]),
    }
}

/// Words, and lines of them, that the lists know and do not know.
fn pieces() -> impl Strategy<Value = Vec<(Vec<(&'static str, u8)>, &'static str)>> {
    let word = prop_oneof![
        Just("ls"),
        Just("wc"),
        Just("rm"),
        Just("uname"),
        Just("git"),
        Just("log"),
        Just("push"),
        Just("nice"),
        Just("-n"),
        Just("5"),
        Just("sudo"),
        Just("env"),
        Just("sh"),
        Just("-c"),
        Just("own"),
        Just("missing"),
        Just("/usr/bin/ls"),
        Just("./x"),
        Just("tool"),
        Just("echo"),
        Just("cd"),
        Just("eval"),
        Just("xargs"),
        Just("-l"),
    ];
    let command = proptest::collection::vec((word, any::<u8>()), 1..5);
    let joint = prop_oneof![
        Just("; "),
        Just(" && "),
        Just(" || "),
        Just(" | "),
        Just("\n")
    ];
    proptest::collection::vec((command, joint), 1..4)
}

fn line(pieces: &[(Vec<(&str, u8)>, &str)], quoted: bool) -> String {
    // A line that begins with a dash is an option.
    let mut line = "ls; ".to_owned();
    for (at, (words, joint)) in pieces.iter().enumerate() {
        if at > 0 {
            line.push_str(joint);
        }
        let words: Vec<String> = words
            .iter()
            .map(|(word, how)| written(word, if quoted { *how } else { 0 }))
            .collect();
        line.push_str(&words.join(" "));
    }
    line
}

proptest! {
    /// However a plain word is written, the same is said of the line: no quote makes it freer.
    #[test]
    fn quoting_never_widens(pieces in pieces()) {
        let document = simple();
        let [bare, quoted] = [false, true].map(|quoted| of(&document, &plan(&["sh", "-c", &line(&pieces, quoted)])));
        prop_assert!(quoted.verdict <= bare.verdict);
        prop_assert_eq!((quoted.verdict, &quoted.rule, ids(&quoted)), (bare.verdict, &bare.rule, ids(&bare)));
    }

    /// What is shown, what is said of the plan as it is kept, and what is said at its start are one.
    #[test]
    fn what_is_shown_is_what_is_kept_and_what_is_enforced(pieces in pieces(), as_line in any::<bool>(), granted in any::<bool>()) {
        let document = simple();
        let text = line(&pieces, true);
        let words: Vec<&str> = pieces[0].0.iter().map(|(word, _)| *word).collect();
        let argv = if as_line { vec!["sh", "-c", text.as_str()] } else { words };
        prop_assume!(find(argv[0]).is_some());
        let plan = plan(&argv);
        prop_assert_eq!(plan.validate_shape(), Ok(()));
        let rules = Rules { agent: asking(), document: Standing::Valid(&document), now: Millis(0) };
        let grant = granted.then_some("g");
        let shown = judge(&rules, &plan, grant);
        let kept = ExecPlan::from_json(&plan.to_json()).unwrap();
        prop_assert_eq!(&judge(&rules, &kept, grant), &shown);
        let enforced = match decide(&rules, &kept, grant) {
            Verdict::Allow { .. } => Ruling::Allow,
            Verdict::Ask { .. } => Ruling::Ask,
            Verdict::Deny { .. } => Ruling::Deny,
        };
        prop_assert_eq!(enforced, shown.verdict);
        // Whatever is allowed is each command's own, and one that is refused refuses the whole.
        let all = &shown.commands;
        prop_assert!(shown.verdict != Ruling::Allow || all.iter().all(|c| c.verdict == Ruling::Allow));
        prop_assert!(all.iter().all(|c| c.verdict != Ruling::Deny) || shown.verdict == Ruling::Deny);
    }
}
