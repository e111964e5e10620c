use super::*;
use crate::plan::TtySize;
use crate::plan::tests::host_plan;
use proptest::prelude::*;
use serde_json::json;

fn document(value: serde_json::Value) -> Document {
    Document::parse(value).unwrap()
}

fn asking() -> AgentPolicy {
    AgentPolicy {
        exec: ExecMode::Full,
        elevated: Elevated::Ask,
        ..AgentPolicy::default()
    }
}

fn list(entries: &serde_json::Value) -> Document {
    document(json!({"version": 1, "agents": {"demo": {"allowlist": entries}}}))
}

fn verdict(document: &Document, plan: &ExecPlan) -> Verdict {
    decide(
        &Rules {
            agent: asking(),
            document: Standing::Valid(document),
            now: Millis(0),
        },
        plan,
        None,
    )
}

fn at(path: &str, argv: &[&str]) -> ExecPlan {
    let mut plan = host_plan(argv);
    if let Executable::Host(file) = &mut plan.executable {
        file.path = path.to_owned();
    }
    plan
}

fn allows(document: &Document, plan: &ExecPlan) -> bool {
    matches!(verdict(document, plan), Verdict::Allow { .. })
}

#[test]
fn the_host_is_closed_until_the_configuration_says_otherwise() {
    let first = document(Document::first());
    let rules = |agent| Rules {
        agent,
        document: Standing::Valid(&first),
        now: Millis(0),
    };
    let plan = host_plan(&["uname"]);
    let Verdict::Deny { code, fix, .. } = decide(&rules(AgentPolicy::default()), &plan, None)
    else {
        panic!("allowed");
    };
    assert_eq!(code.name, "ELEVATED_DISABLED");
    assert_eq!(fix.as_deref(), Some("[agents.demo]\nelevated = \"ask\""));
    // A grant from better times opens nothing.
    assert!(matches!(
        decide(&rules(AgentPolicy::default()), &plan, Some("g")),
        Verdict::Deny { .. }
    ));
    assert!(matches!(
        decide(&rules(asking()), &plan, None),
        Verdict::Ask {
            may_always: true,
            ..
        }
    ));
    assert_eq!(
        decide(&rules(asking()), &plan, Some("g")),
        Verdict::Allow {
            rule: "grant:g".into()
        }
    );
    let deny = AgentPolicy {
        exec: ExecMode::Deny,
        elevated: Elevated::Ask,
        ..AgentPolicy::default()
    };
    assert!(matches!(
        decide(&rules(deny), &plan, Some("g")),
        Verdict::Deny {
            code: POLICY_DENIED,
            ..
        }
    ));
    let listed = AgentPolicy {
        exec: ExecMode::Full,
        elevated: Elevated::Allowlist,
        ..AgentPolicy::default()
    };
    assert!(matches!(
        decide(&rules(listed), &plan, None),
        Verdict::Deny {
            code: POLICY_DENIED,
            ..
        }
    ));
    let malformed = Rules {
        agent: asking(),
        document: Standing::Malformed,
        now: Millis(0),
    };
    assert!(matches!(
        decide(&malformed, &plan, Some("g")),
        Verdict::Deny { .. }
    ));
}

#[test]
fn the_sandbox_is_open_and_the_document_is_not_about_it() {
    let mut plan = host_plan(&["uname"]);
    plan.target = Target::Sandbox;
    plan.executable = Executable::Image {
        digest: "sha256:1".into(),
        path: "uname".into(),
    };
    let nothing = document(json!({"version": 1, "defaults": {"security": "deny"}}));
    let rules = Rules {
        agent: AgentPolicy::default(),
        document: Standing::Valid(&nothing),
        now: Millis(0),
    };
    assert_eq!(
        decide(&rules, &plan, None),
        Verdict::Allow {
            rule: "config:agents.demo.exec=full".into()
        }
    );
    // A node is outside the sandbox: its own word decides, and no list or grant ever lets a command run unasked.
    plan.target = Target::Node("n".into());
    plan.executable = Executable::Node {
        claimed_sha256: None,
    };
    assert!(matches!(
        decide(&rules, &plan, Some("g")),
        Verdict::Deny {
            code: NODES_DISABLED,
            ..
        }
    ));
    let everything = document(
        json!({"version": 1, "defaults": {"security": "full", "ask": "off"},
        "agents": {"demo": {"allowlist": [{"pattern": "/usr/bin/uname"}]}}}),
    );
    for nodes in [ExecMode::Ask, ExecMode::Allowlist] {
        let rules = Rules {
            agent: AgentPolicy {
                nodes,
                ..AgentPolicy::default()
            },
            document: Standing::Valid(&everything),
            now: Millis(0),
        };
        match decide(&rules, &plan, Some("g")) {
            Verdict::Ask { may_always, .. } => {
                assert!(!may_always && nodes == ExecMode::Ask);
            }
            Verdict::Deny { .. } => assert_eq!(nodes, ExecMode::Allowlist),
            Verdict::Allow { rule } => panic!("{rule}"),
        }
    }
}

#[test]
fn on_a_node_the_strictest_of_gateway_agent_and_node_holds_and_elevated_mode_is_not_about_it() {
    let mut plan = host_plan(&["uname"]);
    plan.target = Target::Node("n".into());
    plan.executable = Executable::Node {
        claimed_sha256: None,
    };
    let full = document(json!({"version": 1, "defaults": {"security": "full", "ask": "off"}}));
    let modes = [
        ExecMode::Deny,
        ExecMode::Allowlist,
        ExecMode::Ask,
        ExecMode::Full,
    ];
    let word = |mode| match mode {
        ExecMode::Deny | ExecMode::Allowlist => Answer::Deny,
        ExecMode::Ask => Answer::Ask,
        ExecMode::Full => Answer::Allow,
    };
    for elevated in [Elevated::Off, Elevated::Ask, Elevated::Allowlist] {
        let first = document(Document::first());
        for nodes in modes {
            for node in modes {
                for own in modes {
                    let agent = AgentPolicy {
                        elevated,
                        nodes,
                        node,
                        own,
                        ..AgentPolicy::default()
                    };
                    let rules = Rules {
                        agent,
                        document: Standing::Valid(&full),
                        now: Millis(0),
                    };
                    let said = decide(&rules, &plan, None);
                    let strictest = word(nodes).min(word(node)).min(word(own));
                    assert_eq!(freedom(&said), strictest, "{agent:?}");
                    let judged = judge(&rules, &plan, None);
                    assert_eq!(judged.verdict, strictest.into(), "{agent:?}");
                    // With the document's built-in word, nothing runs there unasked.
                    let asking = Rules {
                        agent,
                        document: Standing::Valid(&first),
                        now: Millis(0),
                    };
                    assert!(freedom(&decide(&asking, &plan, None)) <= Answer::Ask);
                }
            }
        }
    }
    // And the host's commands do not hang on what is said of nodes.
    let host = host_plan(&["uname"]);
    let of = |nodes| {
        let agent = AgentPolicy { nodes, ..asking() };
        decide(
            &Rules {
                agent,
                document: Standing::Valid(&full),
                now: Millis(0),
            },
            &host,
            None,
        )
    };
    assert_eq!(of(ExecMode::Deny), of(ExecMode::Full));
}

#[test]
fn a_list_entry_is_narrow() {
    let doc = list(&json!([{"pattern": "/usr/bin/uname"}, {"pattern": "/opt/tools/rep*"}]));
    assert!(allows(&doc, &at("/usr/bin/uname", &["uname", "-a"])));
    assert!(allows(&doc, &at("/usr/bin/uname", &["/usr/bin/uname"])));
    assert!(allows(&doc, &at("/opt/tools/report", &["report"])));
    for (path, argv0) in [
        ("/tmp/uname", "uname"),
        ("/usr/bin/uname2", "uname2"),
        ("/opt/tools/sub/report", "report"),
        ("/opt/tools/.report", ".report"),
        ("/opt/toolsrep", "toolsrep"),
        // A multi-call program under another name.
        ("/usr/bin/uname", "rm"),
        ("/usr/bin/uname", "/tmp/uname"),
    ] {
        assert!(!allows(&doc, &at(path, &[argv0])), "{path} {argv0}");
    }
    let mut variable = at("/usr/bin/uname", &["uname"]);
    variable
        .env
        .insert("MY_APP".into(), EnvValue::Plain("x".into()));
    assert!(!allows(&doc, &variable));
    let mut secret = at("/usr/bin/uname", &["uname"]);
    secret.env.insert(
        "LANG".into(),
        EnvValue::Secret {
            name: "X".into(),
            version: 1,
        },
    );
    assert!(!allows(&doc, &secret));
    let mut other = at("/usr/bin/uname", &["uname"]);
    other.agent = crate::ids::AgentId::new("other").unwrap();
    assert!(!allows(&doc, &other));
}

#[test]
fn what_runs_other_code_needs_its_exact_arguments() {
    for (path, argv) in [
        ("/usr/bin/dash", ["dash", "-c", "id"]),
        ("/usr/bin/python3.12", ["python3.12", "-c", "1"]),
        ("/usr/bin/sudo", ["sudo", "id", "x"]),
        ("/usr/bin/env", ["env", "id", "x"]),
        ("/usr/bin/npx", ["npx", "x", "y"]),
        ("/usr/bin/busybox", ["busybox", "sh", "x"]),
        ("/usr/bin/git", ["git", "-c", "core.pager=x"]),
        ("/usr/bin/find", ["find", "-exec", "x"]),
    ] {
        let plan = at(path, &argv);
        assert!(!allows(&list(&json!([{"pattern": path}])), &plan), "{path}");
        assert!(
            !allows(&list(&json!([{"pattern": "/usr/bin/*"}])), &plan),
            "{path}"
        );
        let exact = json!({"cwd": "/", "args": &argv[1..]}).to_string();
        assert!(
            allows(
                &list(&json!([{"pattern": path, "argPattern": exact}])),
                &plan
            ),
            "{path}"
        );
        let elsewhere = json!({"cwd": "/tmp", "args": &argv[1..]}).to_string();
        assert!(!allows(
            &list(&json!([{"pattern": path, "argPattern": elsewhere}])),
            &plan
        ));
        let more = json!({"cwd": "/", "args": ["x"]}).to_string();
        assert!(!allows(
            &list(&json!([{"pattern": path, "argPattern": more}])),
            &plan
        ));
    }
    // A runner's answer is never kept, and a kept one would not count.
    let shell = at("/usr/bin/dash", &["sh", "-c", "id"]);
    let doc = Document::empty();
    assert!(matches!(
        verdict(&doc, &shell),
        Verdict::Ask {
            may_always: false,
            ..
        }
    ));
    let rules = Rules {
        agent: asking(),
        document: Standing::Valid(&doc),
        now: Millis(0),
    };
    assert!(matches!(
        decide(&rules, &shell, Some("g")),
        Verdict::Ask { .. }
    ));
}

/// The bug: a pattern over a folder of the system let through every program that no list named, and among hundreds of them are
/// those that start others.
#[test]
fn a_pattern_over_the_systems_folders_lets_through_what_is_known_to_start_nothing() {
    let all = list(&json!([{"pattern": "/usr/bin/*"}, {"pattern": "/opt/own/*"}]));
    for argv in [
        &["prlimit", "--nofile=100", "sh", "-c", "id"][..],
        &["choom", "-n", "0", "--", "sh", "-c", "id"],
        &["ssh-agent", "sh", "-c", "id"],
        &["x86_64-linux-gnu-gcc-12", "-wrapper", "sh,-c,id", "x.c"],
        &["dpkg-architecture", "-c", "id"],
        &["prove", "-e", "/usr/bin/id", "x"],
        &["nobody-knows-it", "x"],
    ] {
        let path = format!("/usr/bin/{}", argv[0]);
        assert!(!allows(&all, &at(&path, argv)), "{argv:?}");
    }
    for argv in [&["uname", "-a"][..], &["cat", "/etc/hosts"], &["id"]] {
        let path = format!("/usr/bin/{}", argv[0]);
        assert!(allows(&all, &at(&path, argv)), "{argv:?}");
    }
    // Named in full it is meant, with its words; and so is a folder of one's own.
    let named =
        |more: &str| list(&json!([{"pattern": "/usr/bin/nobody-knows-it", "args": [more]}]));
    let unknown = at("/usr/bin/nobody-knows-it", &["nobody-knows-it", "x"]);
    assert!(allows(&named("x"), &unknown) && !allows(&named("*"), &unknown));
    assert!(allows(&all, &at("/opt/own/tool", &["tool", "x"])));
    // By the name of another one it is another one.
    assert!(!allows(&all, &at("/usr/bin/nobody-knows-it", &["uname"])));
}

#[test]
fn patterns_that_could_mean_more_are_refused() {
    for bad in [
        "uname",
        "*",
        "/",
        "/*",
        "/usr/*/uname",
        "/**",
        "/usr/*/**",
        "/usr/bin/../x",
        "/usr//bin/x",
        "/usr/bin/a*b*",
        "/usr/bin/?",
        "/usr/bin/[a]",
        "~/x",
        "./x",
        "/usr/bin/",
        "",
        "=command:abc",
    ] {
        assert!(PathPattern::parse(bad).is_err(), "{bad}");
    }
    for bad in [
        "^-a$",
        ".*",
        "sha256:00",
        "[1]",
        "{\"args\":[]}",
        "{\"cwd\":\"x\",\"args\":[]}",
        "",
    ] {
        assert!(ArgPattern::parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn what_is_unknown_is_an_error() {
    for bad in [
        json!({}),
        json!({"version": 2}),
        json!({"version": 1, "extra": 1}),
        json!({"version": 1, "defaults": {"security": "yolo"}}),
        json!({"version": 1, "defaults": {"ask": "never"}}),
        json!({"version": 1, "defaults": {"askFallback": "full"}}),
        json!({"version": 1, "defaults": {"autoAllowSkills": true}}),
        json!({"version": 1, "agents": {"*": {}}}),
        json!({"version": 1, "agents": {"demo": {"mcpTools": [{}]}}}),
        json!({"version": 1, "agents": {"demo": {"allowlist": [{"pattern": "ls"}]}}}),
        json!({"version": 1, "agents": {"demo": {"allowlist": [{}]}}}),
        json!([]),
        json!(null),
    ] {
        assert!(Document::parse(bad.clone()).is_err(), "{bad}");
    }
}

#[test]
fn the_recorded_documents_are_read_and_keep_their_hash() {
    let seen = document(
        json!({"version": 1, "socket": {"path": "/home/user/exec-approvals.sock"}, "defaults": {}, "agents": {}}),
    );
    assert_eq!(Document::parse(seen.to_json()).unwrap().hash(), seen.hash());
    let sent = document(
        json!({"version": 1, "defaults": {"security": "allowlist", "ask": "on-miss", "askFallback": "deny"}}),
    );
    let kept = sent.keeping(&seen);
    assert_eq!(
        kept.to_json()["socket"]["path"],
        "/home/user/exec-approvals.sock"
    );
    assert_eq!(kept.to_json()["agents"], json!({}));
    assert_eq!(diff(&seen, &kept), Diff::Same);
    assert_eq!(
        Document::empty().resolved_defaults(),
        json!({"security": "allowlist", "ask": "on-miss", "askFallback": "deny", "autoAllowSkills": false})
    );
}

#[test]
fn a_change_that_frees_anything_loosens() {
    let empty = Document::empty();
    let deny = document(json!({"version": 1, "defaults": {"security": "deny"}}));
    let full = document(json!({"version": 1, "defaults": {"security": "full", "ask": "off"}}));
    let always = document(json!({"version": 1, "defaults": {"ask": "always"}}));
    let only_list = document(json!({"version": 1, "defaults": {"ask": "off"}}));
    let entry = list(&json!([{"pattern": "/usr/bin/uname"}]));
    let named = list(&json!([{"pattern": "/usr/bin/uname", "id": "mine"}]));
    let closed_demo = document(json!({"version": 1, "agents": {"demo": {"security": "deny"}}}));
    for (old, new, expected) in [
        (&empty, &deny, Diff::Tightens),
        (&deny, &empty, Diff::Loosens),
        (&empty, &full, Diff::Loosens),
        (&full, &empty, Diff::Tightens),
        (&empty, &always, Diff::Tightens),
        (&empty, &only_list, Diff::Tightens),
        (&only_list, &empty, Diff::Loosens),
        // Stricter for the listed, freer for the rest.
        (&only_list, &always, Diff::Loosens),
        (&empty, &entry, Diff::Loosens),
        (&entry, &empty, Diff::Tightens),
        (&entry, &named, Diff::Same),
        (&closed_demo, &empty, Diff::Loosens),
        (&empty, &closed_demo, Diff::Tightens),
        (&closed_demo, &deny, Diff::Tightens),
    ] {
        assert_eq!(
            diff(old, new),
            expected,
            "{} -> {}",
            old.to_json(),
            new.to_json()
        );
    }
}

fn any_mode() -> impl Strategy<Value = Mode> {
    prop_oneof![
        Just(Mode::DENY),
        Just(Mode::ALLOWLIST),
        Just(Mode::ASK),
        Just(Mode::ALWAYS_ASK),
        Just(Mode::FULL)
    ]
}

fn any_agent() -> impl Strategy<Value = AgentPolicy> {
    (
        prop_oneof![
            Just(ExecMode::Full),
            Just(ExecMode::Ask),
            Just(ExecMode::Allowlist),
            Just(ExecMode::Deny)
        ],
        prop_oneof![
            Just(Elevated::Off),
            Just(Elevated::Ask),
            Just(Elevated::Allowlist)
        ],
        prop_oneof![
            Just(ExecMode::Full),
            Just(ExecMode::Ask),
            Just(ExecMode::Deny)
        ],
    )
        .prop_map(|(exec, elevated, nodes)| AgentPolicy {
            exec,
            elevated,
            nodes,
            ..AgentPolicy::default()
        })
}

fn any_settings() -> impl Strategy<Value = serde_json::Value> {
    let security = proptest::option::of(prop_oneof![Just("deny"), Just("allowlist"), Just("full")]);
    let ask = proptest::option::of(prop_oneof![Just("off"), Just("on-miss"), Just("always")]);
    (security, ask).prop_map(|(security, ask)| {
        let mut value = json!({});
        if let Some(security) = security {
            value["security"] = json!(security);
        }
        if let Some(ask) = ask {
            value["ask"] = json!(ask);
        }
        value
    })
}

fn any_document() -> impl Strategy<Value = Document> {
    let entry = prop_oneof![
        Just(json!({"pattern": "/usr/bin/uname"})),
        Just(json!({"pattern": "/usr/bin/*"})),
        Just(json!({"pattern": "/usr/bin/uname", "argPattern": "[\"-a\"]"})),
        Just(json!({"pattern": "/usr/bin/id"})),
    ];
    (
        any_settings(),
        any_settings(),
        proptest::collection::vec(entry, 0..3),
        any::<bool>(),
    )
        .prop_map(|(defaults, mut own, entries, named)| {
            own["allowlist"] = json!(entries);
            let agents = if named {
                json!({"demo": own})
            } else {
                json!({})
            };
            document(json!({"version": 1, "defaults": defaults, "agents": agents}))
        })
}

fn freedom(verdict: &Verdict) -> Answer {
    match verdict {
        Verdict::Allow { .. } => Answer::Allow,
        Verdict::Ask { .. } => Answer::Ask,
        Verdict::Deny { .. } => Answer::Deny,
    }
}

fn plans() -> Vec<ExecPlan> {
    vec![
        at("/usr/bin/uname", &["uname", "-a"]),
        at("/usr/bin/uname", &["uname"]),
        at("/usr/bin/id", &["id"]),
        at("/usr/bin/dash", &["sh", "-c", "id"]),
        at("/tmp/x", &["x"]),
    ]
}

proptest! {
    #[test]
    fn strictest_of_is_monotone(a in any_mode(), b in any_mode(), c in any_mode()) {
        let ab = a.strictest(b);
        prop_assert!(ab.within(a) && ab.within(b));
        prop_assert_eq!(ab, b.strictest(a));
        prop_assert_eq!(a.strictest(a), a);
        prop_assert_eq!(ab.strictest(c), a.strictest(b.strictest(c)));
        if a.within(b) {
            prop_assert!(a.strictest(c).within(b.strictest(c)));
        }
        prop_assert_eq!(a.strictest(Mode::DENY), Mode::DENY);
        prop_assert!(ab.other <= ab.listed);
    }

    #[test]
    fn no_source_frees_what_another_refuses(agent in any_agent(), doc in any_document(), grant in any::<bool>()) {
        let grant = grant.then_some("g");
        let open = AgentPolicy { exec: ExecMode::Full, elevated: Elevated::Ask, ..AgentPolicy::default() };
        for plan in plans() {
            let all = freedom(&decide(&Rules { agent, document: Standing::Valid(&doc), now: Millis(0) }, &plan, grant));
            let by_document = freedom(&decide(&Rules { agent: open, document: Standing::Valid(&doc), now: Millis(0) }, &plan, grant));
            prop_assert!(all <= by_document);
            for closed in [
                AgentPolicy { exec: ExecMode::Deny, ..agent },
                AgentPolicy { elevated: Elevated::Off, ..agent },
            ] {
                let verdict = decide(&Rules { agent: closed, document: Standing::Valid(&doc), now: Millis(0) }, &plan, grant);
                prop_assert_eq!(freedom(&verdict), Answer::Deny);
            }
        }
    }

    #[test]
    fn the_index_of_a_list_finds_what_a_walk_finds(doc in any_document()) {
        for plan in plans() {
            let found = doc.listing("demo", &plan, Millis(0)).map(super::document::Entry::name);
            let walked = doc.entries("demo").find(|entry| entry.matches(&plan, Millis(0)));
            prop_assert_eq!(found, walked.map(super::document::Entry::name));
        }
    }

    #[test]
    fn a_change_that_does_not_loosen_frees_nothing(old in any_document(), new in any_document(), agent in any_agent()) {
        let verdict = |doc: &Document, plan: &ExecPlan| freedom(&decide(&Rules { agent, document: Standing::Valid(doc), now: Millis(0) }, plan, None));
        if diff(&old, &new) != Diff::Loosens {
            for plan in plans() {
                prop_assert!(verdict(&new, &plan) <= verdict(&old, &plan));
            }
        }
        prop_assert_eq!(diff(&old, &old), Diff::Same);
        prop_assert_eq!(Document::parse(old.to_json()).unwrap(), old);
    }

    #[test]
    fn a_star_stays_in_its_folder(tail in "[a-z./]{0,6}") {
        let pattern = PathPattern::parse("/opt/t/*").unwrap();
        let path = format!("/opt/t/{tail}");
        if pattern.matches(&path) {
            prop_assert!(!tail.contains('/') && !tail.starts_with('.') && !tail.is_empty());
        }
    }
}

/// A shell that is given a file does what the file says; one with open input does what anybody types.
#[test]
fn neither_an_entry_nor_a_grant_covers_input_that_comes_later_unless_the_entry_says_so() {
    let agent = AgentPolicy {
        exec: ExecMode::Ask,
        elevated: Elevated::Off,
        ..AgentPolicy::default()
    };
    let mut plan = host_plan(&["sh", "-s"]);
    plan.target = Target::Sandbox;
    plan.executable = Executable::Image {
        digest: "d".to_owned(),
        path: "/bin/sh".to_owned(),
    };
    plan.argv = vec!["/bin/sh".to_owned(), "-s".to_owned()];
    plan.env.clear();
    let size = TtySize { rows: 24, cols: 80 };
    let at = |stdin, tty| ExecPlan {
        stdin,
        tty,
        ..plan.clone()
    };
    let plain = at(Stdin::None, None);
    let open = at(Stdin::Open, None);
    let shown = at(Stdin::None, Some(size));
    let both = at(Stdin::Open, Some(size));
    let entry = |more: serde_json::Value| {
        let mut entry = json!({"pattern": "/bin/sh", "argPattern": r#"{"cwd":"/","args":["-s"]}"#});
        for (key, value) in more.as_object().unwrap() {
            entry[key] = value.clone();
        }
        list(&json!([entry]))
    };
    let passes = |document: &Document, plan: &ExecPlan| {
        let document = Standing::Valid(document);
        let verdict = decide(
            &Rules {
                agent,
                document,
                now: Millis(0),
            },
            plan,
            None,
        );
        matches!(verdict, Verdict::Allow { .. })
    };
    for (more, wanted) in [
        (json!({}), [true, false, false, false]),
        (
            json!({"stdin": false, "tty": false}),
            [true, false, false, false],
        ),
        (json!({"stdin": true}), [true, true, false, false]),
        (json!({"tty": true}), [true, false, true, false]),
        (
            json!({"stdin": true, "tty": true}),
            [true, true, true, true],
        ),
    ] {
        let document = entry(more.clone());
        let got = [&plain, &open, &shown, &both].map(|plan| passes(&document, plan));
        assert_eq!(got, wanted, "{more}");
    }
    // Not of interpreters alone: what a plain program is fed is not known either.
    let mut cat = open.clone();
    cat.argv = vec!["/bin/cat".to_owned()];
    cat.executable = Executable::Image {
        digest: "d".to_owned(),
        path: "/bin/cat".to_owned(),
    };
    let named = list(&json!([{"pattern": "/bin/cat"}]));
    assert!(!passes(&named, &cat));
    cat.stdin = Stdin::None;
    assert!(passes(&named, &cat));
    // A person's lasting word is for what the plan says, and it does not say this.
    let first = document(Document::first());
    let rules = Rules {
        agent,
        document: Standing::Valid(&first),
        now: Millis(0),
    };
    assert!(may_always(&cat));
    for plan in [&open, &shown, &both] {
        let mut plan = plan.clone();
        plan.argv.clone_from(&cat.argv);
        plan.executable = cat.executable.clone();
        assert!(!may_always(&plan));
        let Verdict::Ask {
            reasons,
            may_always,
        } = decide(&rules, &plan, Some("g"))
        else {
            panic!("a grant covers it");
        };
        let id = if plan.stdin == Stdin::Open {
            "open-input"
        } else {
            "on-terminal"
        };
        assert!(
            !may_always && reasons.iter().any(|reason| reason.id == id),
            "{reasons:?}"
        );
    }
    // To let more pass is a change that a person decides on; to let less pass is none.
    let (narrow, wide) = (entry(json!({})), entry(json!({"stdin": true})));
    assert_eq!(diff(&narrow, &wide), Diff::Loosens);
    assert_ne!(narrow.hash(), wide.hash());
    let back = diff(&wide, &narrow);
    assert_eq!(back, Diff::Tightens);
    assert!(Document::parse(json!({"version": 1, "agents": {"demo": {"allowlist": [{"pattern": "/bin/cat", "stdin": "yes"}]}}})).is_err());
}

mod chains;
mod rules;
