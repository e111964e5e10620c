use super::*;
use proptest::prelude::*;

pub(crate) fn host_plan(argv: &[&str]) -> ExecPlan {
    ExecPlan {
        v: Form::V2,
        target: Target::Host,
        agent: AgentId::new("demo").unwrap(),
        session: "c-1".to_owned(),
        principal: "uid:1000".to_owned(),
        argv: argv.iter().map(ToString::to_string).collect(),
        executable: Executable::Host(HostFile {
            path: "/usr/bin/uname".to_owned(),
            dev: 1,
            ino: 2,
            sha256: Hash32::of(b"uname"),
        }),
        operands: vec![],
        cwd: "/".to_owned(),
        uid: 65534,
        gid: 65534,
        groups: vec![],
        env: BTreeMap::from([("PATH".to_owned(), EnvValue::Plain(HOST_PATH.to_owned()))]),
        stdin: Stdin::None,
        tty: None,
        limits: Limits {
            timeout_ms: 30_000,
            output_bytes: 1 << 20,
            memory_bytes: None,
            cpu_millis: None,
            pids: None,
        },
        egress: Egress::None,
        profile_digest: Hash32::of(b"profile"),
        nonce: Nonce::new(&[7; 16]).unwrap(),
    }
}

fn held() -> impl Strategy<Value = Held> {
    prop_oneof![
        file().prop_map(Held::Copied),
        file().prop_map(Held::Checked),
        "/[ab]{1,2}".prop_map(|path| Held::Open {
            path,
            why: Unkept::Folder
        }),
        "/[ab]{1,2}".prop_map(|path| Held::Open {
            path,
            why: Unkept::TooLong
        }),
    ]
}

/// Operands for the words after the first that are not empty.
fn operands(argv: &[String], held: Vec<Held>) -> Vec<Operand> {
    let words = (1..)
        .zip(argv.iter().skip(1))
        .filter(|(_, w)| !w.is_empty());
    words
        .zip(held)
        .map(|((index, _), held)| Operand {
            index,
            from: 0,
            held,
        })
        .collect()
}

type Change = Box<dyn Fn(&mut ExecPlan)>;

fn set(plan: &mut ExecPlan, name: &str, value: EnvValue) {
    plan.env.insert(name.to_owned(), value);
}

fn text() -> impl Strategy<Value = String> {
    // Few letters, so that borders between neighbours are tried.
    "[ab/é ]{0,4}"
}

fn env_value() -> impl Strategy<Value = EnvValue> {
    prop_oneof![
        text().prop_map(EnvValue::Plain),
        ("[ab]{1,2}", 0..3u64).prop_map(|(name, version)| EnvValue::Secret { name, version }),
    ]
}

fn file() -> impl Strategy<Value = HostFile> {
    ("/[ab]{1,2}", 0..2u64, 0..2u64, 0..2u8).prop_map(|(path, dev, ino, d)| HostFile {
        path,
        dev,
        ino,
        sha256: Hash32::of(&[d]),
    })
}

fn place() -> impl Strategy<Value = (Target, Executable)> {
    let image =
        ("[ab]{1,2}", "[ab]{1,2}").prop_map(|(digest, path)| Executable::Image { digest, path });
    prop_oneof![
        file().prop_map(|f| (Target::Host, Executable::Host(f))),
        (file(), file(), proptest::option::of("[ab]{1,2}")).prop_map(
            |(script, interpreter, argument)| {
                (
                    Target::Host,
                    Executable::HostScript {
                        script,
                        interpreter,
                        argument,
                    },
                )
            }
        ),
        image.prop_map(|e| (Target::Sandbox, e)),
        "[ab]{1,2}".prop_map(|path| (Target::Sandbox, Executable::Workspace { path })),
        ("[ab]{1,2}", proptest::option::of(0..2u8)).prop_map(|(id, hash)| {
            (
                Target::Node(id),
                Executable::Node {
                    claimed_sha256: hash.map(|h| Hash32::of(&[h])),
                },
            )
        }),
    ]
}

prop_compose! {
    pub(crate) fn any_plan()(
        (target, executable) in place(),
        agent in "[ab]{1,2}",
        session in "[ab]{1,2}",
        principal in "[ab]{1,2}",
        (head, tail) in ("[ab]{1,2}", proptest::collection::vec(text(), 0..3)),
        cwd in prop_oneof![Just("/".to_owned()), "(/[ab]{1,2}){1,2}"],
        (uid, gid) in (1..3u32, 1..3u32),
        groups in proptest::collection::btree_set(1..4u32, 0..3),
        held in proptest::collection::vec(held(), 0..3),
        env in proptest::collection::btree_map("[AB]{1,2}", env_value(), 0..3),
        limits in (1..3u64, 1..3u64, proptest::option::of(0..2u64), proptest::option::of(0..2u32), proptest::option::of(0..2u32)),
        hosts in proptest::collection::btree_set("[ab]{1,2}:(1|443)", 0..3),
        is_host in any::<bool>(),
        (open, tty) in (any::<bool>(), proptest::option::of((1..3u16, 1..3u16))),
        profile in 0..2u8,
        nonce in proptest::collection::vec(0..2u8, 16..=18),
    ) -> ExecPlan {
        let argv: Vec<String> = std::iter::once(head).chain(tail).collect();
        let held = if target == Target::Host { held } else { vec![] };
        let egress = match (&target, hosts.is_empty()) {
            (Target::Sandbox, false) => Egress::Hosts(Rules::new(hosts).unwrap().texts()),
            _ if is_host => Egress::Host,
            _ => Egress::None,
        };
        let boxed = target == Target::Sandbox;
        ExecPlan {
            v: Form::V2,
            target,
            agent: AgentId::new(&agent).unwrap(),
            session,
            principal,
            operands: operands(&argv, held),
            argv,
            executable,
            cwd,
            uid,
            gid,
            groups: groups.into_iter().collect(),
            env,
            stdin: if open && boxed { Stdin::Open } else { Stdin::None },
            tty: tty.filter(|_| boxed).map(|(rows, cols)| TtySize { rows, cols }),
            limits: Limits {
                timeout_ms: limits.0,
                output_bytes: limits.1,
                memory_bytes: limits.2,
                cpu_millis: limits.3,
                pids: limits.4,
            },
            egress,
            profile_digest: Hash32::of(&[profile]),
            nonce: Nonce::new(&nonce).unwrap(),
        }
    }
}

/// Reads canonical bytes back into their tree of lengths: what can be read back is injective.
fn split(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut parts = Vec::new();
    while !bytes.is_empty() {
        let (len, rest) = bytes.split_at(4);
        let len = u32::from_be_bytes(len.try_into().unwrap()) as usize;
        parts.push(rest[..len].to_vec());
        bytes = &rest[len..];
    }
    parts
}

proptest! {
    #[test]
    fn different_plans_have_different_bytes(a in any_plan(), b in any_plan()) {
        prop_assert_eq!(a == b, a.canonical() == b.canonical());
        prop_assert_eq!(a == b, a.plan_hash() == b.plan_hash());
        let same_subject = {
            let mut b = b.clone();
            b.session.clone_from(&a.session);
            b.nonce = a.nonce.clone();
            a == b
        };
        prop_assert_eq!(same_subject, a.subject_hash() == b.subject_hash());
    }

    #[test]
    fn the_bytes_have_every_field_in_order(plan in any_plan()) {
        let bytes = plan.canonical();
        let fields = split(bytes.strip_prefix(b"portcullis-plan-v2\0").unwrap());
        prop_assert_eq!(fields.len(), 17);
        prop_assert_eq!(&fields[0], &[2]);
        prop_assert_eq!(&fields[1], &plan.target.word().into_bytes());
        let argv: Vec<String> = split(&fields[5]).into_iter().map(|a| String::from_utf8(a).unwrap()).collect();
        prop_assert_eq!(argv, plan.argv.clone());
        prop_assert_eq!(split(&fields[7]).len(), plan.operands.len());
        prop_assert_eq!(split(&fields[10]).len(), plan.env.len() * 3);
    }

    #[test]
    fn a_kept_plan_reads_back(plan in any_plan()) {
        prop_assert_eq!(plan.validate_shape(), Ok(()));
        let back = ExecPlan::from_json(&plan.to_json()).unwrap();
        prop_assert_eq!(back.plan_hash(), plan.plan_hash());
        prop_assert_eq!(back, plan);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = ExecPlan::from_json(&bytes);
    }
}

#[test]
fn borders_cannot_be_moved() {
    let hash = |argv: &[&str]| host_plan(argv).plan_hash();
    assert_ne!(hash(&["a", "b c"]), hash(&["a", "b", "c"]));
    assert_ne!(hash(&["a", ""]), hash(&["a"]));
    let mut env = host_plan(&["a"]);
    env.env = BTreeMap::from([("A".into(), EnvValue::Plain("secret".into()))]);
    let mut secret = env.clone();
    secret.env = BTreeMap::from([(
        "A".into(),
        EnvValue::Secret {
            name: "secret".into(),
            version: 0,
        },
    )]);
    assert_ne!(env.plan_hash(), secret.plan_hash());
}

#[test]
fn the_hash_is_the_one_of_the_contract() {
    // A known answer: a change of the encoding must be a new version, or kept approvals mean something else.
    let mut plan = host_plan(&["uname", "-a"]);
    let file = |kind: &[u8]| {
        let mut bytes = kind.to_vec();
        bytes.extend(b"\0\0\0\x0e/usr/bin/uname\0\0\0\x08\0\0\0\0\0\0\0\x01\0\0\0\x08\0\0\0\0\0\0\0\x02\0\0\0\x20");
        bytes.extend(Hash32::of(b"uname").0);
        bytes
    };
    let written = |prefix: &[u8], form: u8, operands: Option<Vec<u8>>| {
        let mut w = prefix.to_vec();
        let mut put = |bytes: &[u8]| {
            w.extend(u32::try_from(bytes.len()).unwrap().to_be_bytes());
            w.extend(bytes);
        };
        put(&[form]);
        put(b"host");
        put(b"demo");
        put(b"c-1");
        put(b"uid:1000");
        put(b"\0\0\0\x05uname\0\0\0\x02-a");
        put(&file(b"\0\0\0\x04host"));
        if let Some(operands) = operands {
            put(&operands);
        }
        put(b"/");
        put(b"\0\0\0\x04\0\0\xff\xfe\0\0\0\x04\0\0\xff\xfe\0\0\0\0");
        let env = b"\0\0\0\x04PATH\0\0\0\x05plain\0\0\0\x3c";
        put(&[env, HOST_PATH.as_bytes()].concat());
        put(b"\0\0\0\x04none");
        put(&[0]);
        put(b"\0\0\0\x08\0\0\0\0\0\0\x75\x30\0\0\0\x08\0\0\0\0\0\x10\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        put(b"none");
        put(&Hash32::of(b"profile").0);
        put(&[7; 16]);
        w
    };
    let second = b"portcullis-plan-v2\0";
    assert_eq!(plan.canonical(), written(second, 2, Some(vec![])));
    plan.v = Form::V1;
    // What was kept by the first form has the hash that it had.
    assert_eq!(plan.canonical(), written(b"portcullis-plan-v1\0", 1, None));
    plan.v = Form::V2;
    plan.operands = vec![Operand {
        index: 1,
        from: 0,
        held: Held::Checked(HostFile {
            path: "/usr/bin/uname".to_owned(),
            dev: 1,
            ino: 2,
            sha256: Hash32::of(b"uname"),
        }),
    }];
    let held = file(b"");
    let mut one = b"\0\0\0\x04\0\0\0\x01\0\0\0\x04\0\0\0\0\0\0\0\x07checked".to_vec();
    one.extend(u32::try_from(held.len()).unwrap().to_be_bytes());
    one.extend(held);
    let mut all = u32::try_from(one.len()).unwrap().to_be_bytes().to_vec();
    all.extend(one);
    assert_eq!(plan.canonical(), written(second, 2, Some(all)));
}

fn operand(index: u32, from: u32, path: &str) -> Vec<Operand> {
    let path = path.to_owned();
    let why = Unkept::Folder;
    vec![Operand {
        index,
        from,
        held: Held::Open { path, why },
    }]
}

#[test]
fn what_breaks_a_rule_is_refused() {
    let env = EnvPolicy::default();
    let mut good = host_plan(&["uname", "-a"]);
    good.operands = operand(1, 0, "/a");
    assert_eq!(good.validate(&env), Ok(()));
    let bad: Vec<(&str, Change)> = vec![
        ("no argv", Box::new(|p| p.argv.clear())),
        ("empty name", Box::new(|p| p.argv = vec![String::new()])),
        ("1025 items", Box::new(|p| p.argv = vec!["a".into(); 1025])),
        ("NUL", Box::new(|p| p.argv.push("a\0b".into()))),
        (
            "over 128 KiB",
            Box::new(|p| p.argv.push("a".repeat(128 << 10))),
        ),
        ("relative cwd", Box::new(|p| p.cwd = "tmp".into())),
        ("cwd with ..", Box::new(|p| p.cwd = "/a/../b".into())),
        ("cwd with //", Box::new(|p| p.cwd = "/a//b".into())),
        ("root", Box::new(|p| p.uid = 0)),
        ("group root", Box::new(|p| p.groups = vec![0])),
        ("groups twice", Box::new(|p| p.groups = vec![5, 5])),
        ("groups unsorted", Box::new(|p| p.groups = vec![6, 5])),
        (
            "tty on the host",
            Box::new(|p| p.tty = Some(TtySize { rows: 24, cols: 80 })),
        ),
        ("stdin on the host", Box::new(|p| p.stdin = Stdin::Open)),
        ("no time", Box::new(|p| p.limits.timeout_ms = 0)),
        ("no output", Box::new(|p| p.limits.output_bytes = 0)),
        (
            "the program as operand",
            Box::new(|p| p.operands = operand(0, 0, "/a")),
        ),
        (
            "no such word",
            Box::new(|p| p.operands = operand(2, 0, "/a")),
        ),
        (
            "beyond its word",
            Box::new(|p| p.operands = operand(1, 2, "/a")),
        ),
        (
            "an operand's path",
            Box::new(|p| p.operands = operand(1, 0, "a")),
        ),
        (
            "one word twice",
            Box::new(|p| p.operands = [operand(1, 0, "/a"), operand(1, 0, "/a")].concat()),
        ),
        (
            "operands in the first form",
            Box::new(|p| {
                p.v = Form::V1;
                p.operands = operand(1, 0, "/a");
            }),
        ),
        ("other target", Box::new(|p| p.target = Target::Sandbox)),
        ("empty session", Box::new(|p| p.session.clear())),
        (
            "own PATH",
            Box::new(|p| set(p, "PATH", EnvValue::Plain("/tmp".into()))),
        ),
        (
            "secret PATH",
            Box::new(|p| {
                let value = EnvValue::Secret {
                    name: "X".into(),
                    version: 1,
                };
                set(p, "PATH", value);
            }),
        ),
        (
            "LD_PRELOAD",
            Box::new(|p| {
                set(p, "LD_PRELOAD", EnvValue::Plain("x".into()));
            }),
        ),
        (
            "free variable",
            Box::new(|p| set(p, "FOO", EnvValue::Plain("x".into()))),
        ),
        (
            "odd name",
            Box::new(|p| set(p, "A=B", EnvValue::Plain("x".into()))),
        ),
        (
            "function name",
            Box::new(|p| {
                set(p, "BASH_FUNC_x%%", EnvValue::Plain("x".into()));
            }),
        ),
    ];
    for (what, change) in bad {
        let mut plan = good.clone();
        change(&mut plan);
        assert!(plan.validate(&env).is_err(), "{what}");
    }
}

#[test]
fn a_plan_says_its_input_and_its_terminal_and_older_ones_say_none() {
    let mut plan = host_plan(&["cat"]);
    (plan.target, plan.executable) = (
        Target::Sandbox,
        Executable::Image {
            digest: "d".to_owned(),
            path: "cat".to_owned(),
        },
    );
    let plain = plan.clone();
    assert!(!plain.takes_input());
    let mut hashes = vec![(plain.plan_hash(), plain.subject_hash())];
    let sizes = [None, Some((24, 80)), Some((80, 24)), Some((1, 4096))];
    for (stdin, tty) in [Stdin::None, Stdin::Open]
        .into_iter()
        .flat_map(|s| sizes.map(|t| (s, t)))
        .skip(1)
    {
        plan.stdin = stdin;
        plan.tty = tty.map(|(rows, cols)| TtySize { rows, cols });
        assert!(plan.takes_input());
        assert_eq!(plan.validate_shape(), Ok(()));
        assert_eq!(ExecPlan::from_json(&plan.to_json()), Ok(plan.clone()));
        hashes.push((plan.plan_hash(), plan.subject_hash()));
    }
    let plans: std::collections::BTreeSet<_> = hashes.iter().map(|h| h.0.to_string()).collect();
    let subjects: std::collections::BTreeSet<_> = hashes.iter().map(|h| h.1.to_string()).collect();
    assert_eq!((plans.len(), subjects.len()), (8, 8));
    for (rows, cols) in [(0, 80), (24, 0), (4097, 80), (24, 4097)] {
        plan.tty = Some(TtySize { rows, cols });
        assert!(plan.validate_shape().is_err(), "{rows} {cols}");
    }
    (plan.tty, plan.stdin) = (None, Stdin::Sha256(Hash32::of(b"x")));
    assert!(plan.validate_shape().is_err(), "nothing carries that out");
    let json = String::from_utf8(plain.to_json()).unwrap();
    assert!(
        json.contains("\"tty\":false"),
        "as it was kept before: {json}"
    );
    let on = json.replacen("\"tty\":false", "\"tty\":true", 1);
    assert!(ExecPlan::from_json(on.as_bytes()).is_err());
}

#[test]
fn steering_names_pass_for_no_target() {
    let env = EnvPolicy::new(["MY_APP"]).unwrap();
    for name in [
        "LD_PRELOAD",
        "ld_preload",
        "DYLD_X",
        "PYTHONPATH",
        "NODE_OPTIONS",
        "BASH_ENV",
        "ENV",
        "IFS",
        "GIT_DIR",
        "PATH",
    ] {
        for target in [Target::Host, Target::Sandbox, Target::Node("n".into())] {
            assert!(env.check(&target, name).is_err(), "{name}");
        }
        assert!(EnvPolicy::new([name]).is_err());
    }
    for name in ["LANG", "LC_ALL", "TZ", "TERM", "COLUMNS", "LINES", "MY_APP"] {
        assert_eq!(env.check(&Target::Host, name), Ok(()));
    }
    assert!(env.check(&Target::Host, "FOO").is_err());
    assert_eq!(env.check(&Target::Sandbox, "FOO"), Ok(()));
}

/// Names that deny lists of others had missed, one advisory after another.
const MISSED: &[&str] = &[
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_COMMON_DIR",
    "GIT_TEMPLATE_DIR",
    "GIT_EXEC_PATH",
    "GIT_ALLOW_PROTOCOL",
    "GIT_SSH_COMMAND",
    "GIT_CONFIG_GLOBAL",
    "HGRCPATH",
    "RUSTC_WRAPPER",
    "RUSTUP_TOOLCHAIN",
    "RUSTUP_HOME",
    "CARGO_HOME",
    "MAKEFLAGS",
    "AWS_CONFIG_FILE",
    "VIMINIT",
    "EXINIT",
    "LUA_INIT",
    "HOSTALIASES",
    "NODE_OPTIONS",
    "NODE_EXTRA_CA_CERTS",
    "NODE_TLS_REJECT_UNAUTHORIZED",
    "SSL_CERT_FILE",
    "CC",
    "CXX",
    "DOCKER_HOST",
    "DOCKER_CONFIG",
    "npm_config_registry",
    "npm_execpath",
    "PIP_INDEX_URL",
    "CLOUDSDK_PYTHON",
    "HOMEBREW_PREFIX",
    "STATE_DIRECTORY",
    "JAVA_TOOL_OPTIONS",
    "SHELLOPTS",
    "PS4",
];

#[test]
fn what_deny_lists_of_others_missed_is_on_no_list_of_the_hosts() {
    let env = EnvPolicy::default();
    let plan = host_plan(&["uname"]);
    assert_eq!(plan.validate(&env), Ok(()));
    for name in MISSED {
        assert!(env.check(&Target::Host, name).is_err(), "{name}");
        let mut plan = plan.clone();
        set(&mut plan, name, EnvValue::Plain("x".into()));
        assert!(plan.validate(&env).is_err(), "{name}");
    }
}

proptest! {
    /// An allow list: what nobody has thought of is refused too.
    #[test]
    fn a_variable_that_is_not_named_is_none_of_a_host_command(name in "[A-Za-z_][A-Za-z0-9_]{0,16}") {
        let named = ["LANG", "TZ", "TERM", "COLUMNS", "LINES"].contains(&&*name) || name.starts_with("LC_");
        let passes = EnvPolicy::default().check(&Target::Host, &name).is_ok();
        prop_assert_eq!(passes, named);
    }
}

#[test]
fn another_version_or_an_unknown_field_is_not_read() {
    let json = String::from_utf8(host_plan(&["uname"]).to_json()).unwrap();
    assert!(ExecPlan::from_json(json.as_bytes()).is_ok());
    for bad in [
        json.replacen("\"v\":2", "\"v\":3", 1),
        json.replacen("\"v\":2,", "", 1),
        json.replacen("\"v\":2", "\"v\":2,\"approved\":true", 1),
        json.replacen("\"cwd\":\"/\"", "\"cwd\":\"/a/..\"", 1),
        format!("{json} {json}"),
    ] {
        assert!(ExecPlan::from_json(bad.as_bytes()).is_err(), "{bad}");
    }
}

#[test]
fn a_list_of_hosts_is_for_the_sandbox_and_has_one_form() {
    let mut plan = host_plan(&["x"]);
    plan.target = Target::Sandbox;
    plan.executable = Executable::Workspace { path: "x".into() };
    plan.operands.clear();
    let mut none = plan.clone();
    none.egress = Egress::None;
    let hosts = |texts: &[&str]| Egress::Hosts(texts.iter().map(|t| (*t).to_owned()).collect());
    plan.egress = hosts(&["api.example.com:443", "*.example.com:443"]);
    plan.validate_shape().unwrap();
    assert_ne!(plan.plan_hash(), none.plan_hash());
    let again = ExecPlan::from_json(&plan.to_json()).unwrap();
    assert_eq!(again, plan);
    for bad in [
        &[][..],
        &["api.example.com"],
        &["API.example.com:443"],
        &["*.example.com:443", "api.example.com:443"],
        &["a.example:443", "a.example:443"],
        &["http://a.example:443"],
    ] {
        plan.egress = hosts(bad);
        assert!(plan.validate_shape().is_err(), "{bad:?}");
    }
    plan.egress = hosts(&["a.example:443"]);
    plan.target = Target::Node("n".into());
    plan.executable = Executable::Node {
        claimed_sha256: None,
    };
    assert!(plan.validate_shape().is_err());
}
