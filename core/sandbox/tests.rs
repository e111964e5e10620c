use proptest::prelude::*;

use super::*;
use crate::egress::{Decision, Host, Rules, Terminations};
use crate::ids::{AgentId, Hash32};

fn agent(name: &str) -> AgentId {
    AgentId::new(name).unwrap()
}

fn says(text: &str) -> Overrides {
    toml::from_str(text).unwrap()
}

fn layer(name: &str, text: &str) -> Layer {
    Layer {
        name: name.to_owned(),
        says: says(text),
    }
}

fn line(effective: &Effective, key: &str) -> (Shown, String) {
    let found = effective.lines().into_iter().find(|line| line.key == key);
    let found = found.unwrap_or_else(|| panic!("no line {key}"));
    (found.value, found.from)
}

#[test]
fn each_named_profile_has_every_limit_and_the_next_is_above_it() {
    for named in Named::ALL {
        let read: Profile = toml::from_str(named.text()).unwrap();
        assert_eq!(read, named.profile());
        assert_ne!(read, Profile::least(), "{named}");
        let table: toml::Table = named.text().parse().unwrap();
        let keys: Vec<&str> = read.entries().iter().map(|(key, _)| *key).collect();
        assert_eq!(keys.len(), table.len());
        for key in &keys {
            // Every one must be there: without it the file says nothing at all.
            let mut less = table.clone();
            assert!(less.remove(*key).is_some(), "{named} has no {key}");
            assert!(toml::from_str::<Profile>(&less.to_string()).is_err());
        }
        let more = format!("{}\nprivileged = true\n", named.text());
        assert!(toml::from_str::<Profile>(&more).is_err());
        assert!(read.timeout_ms <= read.max_timeout_ms);
        assert_eq!(
            serde_json::to_value(named).unwrap(),
            serde_json::json!(named.to_string())
        );
    }
    let [restricted, baseline, privileged] = Named::ALL.map(Named::profile);
    assert!(restricted.is_within(&baseline) && baseline.is_within(&privileged));
    assert!(!privileged.is_within(&baseline) && !baseline.is_within(&restricted));
}

/// What a gateway had before there were profiles.
#[test]
fn restricted_is_the_default_and_what_boxes_always_were() {
    let effective = Profiles::default().of(None);
    assert_eq!(effective.named, Named::Restricted);
    assert_eq!(effective.profile, Named::Restricted.profile());
    let p = &effective.profile;
    assert_eq!(
        (p.memory_bytes, p.cpu_millis, p.pids),
        (512 << 20, 1000, 128)
    );
    assert_eq!(
        (p.timeout_ms, p.max_timeout_ms, p.output_cap_bytes),
        (60_000, 3_600_000, 1 << 20)
    );
    assert_eq!(
        (p.open_files, p.file_bytes, p.idle_secs),
        (1024, 1 << 30, 600)
    );
    assert_eq!((p.workspace, &p.image), (Access::Rw, &None));
    assert_eq!((p.scope, &p.share), (Scope::Agent, &ShareName::default()));
    assert!(p.env.allows("ANYTHING"));
    assert!(
        effective
            .lines()
            .iter()
            .all(|line| line.from == "profile restricted")
    );
}

#[test]
fn the_nearer_layer_decides_each_line_and_is_named() {
    let mut profiles = Profiles {
        every: vec![layer(
            "[sandbox]",
            "profile = 'baseline'\nmemory_bytes = 1000000000\nworkspace = 'ro'",
        )],
        ..Profiles::default()
    };
    profiles.agents.insert(
        agent("demo"),
        vec![layer(
            "[agents.demo.sandbox]",
            "pids = 99\nimage = 'tools:1'\nenv = ['A', 'CI_*']\nmemory_bytes = 0\nworkspace = ''",
        )],
    );
    profiles.agents.insert(
        agent("big"),
        vec![layer(
            "[agents.big.sandbox]",
            "profile = 'privileged'\ncpu_millis = 500",
        )],
    );
    let demo = profiles.of(Some(&agent("demo")));
    assert_eq!(demo.named, Named::Baseline);
    for (key, value, from) in [
        ("memory_bytes", Shown::Number(1_000_000_000), "[sandbox]"),
        ("pids", Shown::Number(99), "[agents.demo.sandbox]"),
        ("workspace", Shown::Word("ro".to_owned()), "[sandbox]"),
        ("cpu_millis", Shown::Number(2000), "profile baseline"),
        (
            "image",
            Shown::Word("tools:1".to_owned()),
            "[agents.demo.sandbox]",
        ),
        (
            "env",
            Shown::List(vec!["A".to_owned(), "CI_*".to_owned()]),
            "[agents.demo.sandbox]",
        ),
    ] {
        assert_eq!(line(&demo, key), (value, from.to_owned()), "{key}");
    }
    // A profile that an agent names sets everything anew.
    let big = profiles.of(Some(&agent("big")));
    assert_eq!(
        line(&big, "memory_bytes"),
        (Shown::Number(8 << 30), "profile privileged".to_owned())
    );
    assert_eq!(
        line(&big, "cpu_millis"),
        (Shown::Number(500), "[agents.big.sandbox]".to_owned())
    );
    // Others have what is said of all, and each line is told once.
    let other = profiles.of(Some(&agent("other")));
    assert_eq!(other, profiles.of(None));
    assert_eq!(other.profile.pids, 512);
    let mut keys: Vec<_> = other.lines().iter().map(|line| line.key).collect();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), other.profile.entries().len());
}

/// `a` and `b` share a box, `c` another; `d` has its own.
fn sharing() -> Profiles {
    let mut profiles = Profiles::default();
    for (name, text) in [
        (
            "a",
            "scope = 'shared'\nshare = 'team'\nmemory_bytes = 100000000\negress = ['one.example', 'two.example']\nenv = ['A', 'B']",
        ),
        (
            "b",
            "scope = 'shared'\nshare = 'team'\npids = 50\negress = ['two.example', 'three.example']\nworkspace = 'ro'",
        ),
        ("c", "scope = 'shared'\negress = ['one.example']"),
        ("d", "share = 'team'\nenv = ['Z']\npids = 20"),
    ] {
        let own = layer(&format!("[agents.{name}.sandbox]"), text);
        profiles.agents.insert(agent(name), vec![own]);
    }
    profiles
}

#[test]
fn who_shares_a_box_has_what_all_that_share_it_may_have_and_is_told_who_took_the_rest() {
    let profiles = sharing();
    let of = |name: &str| profiles.of(Some(&agent(name)));
    let (a, b) = (of("a"), of("b"));
    // One box, whoever asks.
    assert_eq!(a.profile, b.profile);
    assert_eq!(a.profile.canonical(), b.profile.canonical());
    assert_eq!(a.profile.egress.texts(), ["two.example:443"]);
    let p = &a.profile;
    assert_eq!(
        (p.memory_bytes, p.pids, p.workspace),
        (100_000_000, 50, Access::Ro)
    );
    assert!(p.env.allows("A") && !p.env.allows("C"));
    let sharers = a.sharers.clone().unwrap();
    assert_eq!(sharers.agents, [agent("a"), agent("b")]);
    assert_eq!((sharers.name.as_str(), sharers.others), ("team", false));
    assert_eq!(
        line(&a, "pids"),
        (
            Shown::Number(50),
            "[agents.b.sandbox] (shares team)".to_owned()
        )
    );
    assert_eq!(a.from("memory_bytes"), "[agents.a.sandbox]");
    assert_eq!(b.from("memory_bytes"), "[agents.a.sandbox] (shares team)");
    assert_eq!(of("c").profile.egress.texts(), ["one.example:443"]);
    assert_eq!(of("c").sharers.unwrap().agents, [agent("c")]);
    // A name alone shares nothing.
    assert_eq!(
        (of("d").sharers, of("d").profile.scope),
        (None, Scope::Agent)
    );
    assert_eq!(profiles.of(None).sharers, None);
}

/// What is said of all agents is said of those that nobody has named, too: they come into the box.
#[test]
fn agents_that_nobody_named_share_a_box_where_all_do() {
    let mut profiles = sharing();
    profiles.every = vec![layer("[sandbox]", "scope = 'shared'\nshare = 'team'")];
    let a = profiles.of(Some(&agent("a")));
    let sharers = a.sharers.unwrap();
    assert!(sharers.others);
    assert_eq!(
        sharers.agents,
        ["a", "b", "c", "d"].map(agent),
        "c names no other share now"
    );
    // They may reach nobody, so nobody in the box may.
    assert_eq!(a.profile.egress, Rules::default());
    assert_eq!(profiles.of(None).profile, a.profile);
    assert_eq!(profiles.of(Some(&agent("new"))).profile, a.profile);
    assert_eq!(a.profile.pids, 20);
}

#[test]
fn a_share_has_one_image_and_one_driver() {
    let mut profiles = sharing();
    assert_eq!(profiles.problems(), []);
    let other = layer("[agents.e.sandbox]", "scope = 'shared'\nimage = 'x:1'");
    profiles.agents.insert(agent("e"), vec![other.clone()]);
    let problems = profiles.problems();
    let [("image", problem)] = &problems[..] else {
        panic!("{problems:?}");
    };
    assert!(problem.contains("\"default\" must name the same image"));
    let driven = layer("[agents.e.sandbox]", "scope = 'shared'\ndriver = 'native'");
    profiles.agents.insert(agent("e"), vec![driven]);
    let problems = profiles.problems();
    let [("driver", problem)] = &problems[..] else {
        panic!("{problems:?}");
    };
    for part in [
        "\"default\" must name the same driver",
        "\"auto\" (profile restricted)",
        "\"native\" ([agents.e.sandbox])",
    ] {
        assert!(problem.contains(part), "{problem}");
    }
    profiles.agents.insert(agent("e"), vec![other.clone()]);
    profiles.agents.insert(agent("c"), vec![other]);
    assert_eq!(profiles.problems(), []);
}

#[test]
fn each_agent_has_its_own_driver_and_a_profile_leaves_the_one_that_was_named() {
    let mut profiles = Profiles::default();
    assert_eq!(profiles.drivers(), [DriverChoice::Auto].into());
    for (name, text) in [
        ("a", "driver = 'native'"),
        ("b", "profile = 'baseline'"),
        ("c", "profile = 'baseline'\ndriver = 'auto'"),
        ("d", "driver = ''"),
    ] {
        let own = layer(&format!("[agents.{name}.sandbox]"), text);
        profiles.agents.insert(agent(name), vec![own]);
    }
    profiles.every = vec![layer("[sandbox]", "driver = 'docker'")];
    for (name, driver, from) in [
        ("a", "native", "[agents.a.sandbox]"),
        // What it takes away of the layers below are limits.
        ("b", "docker", "[sandbox]"),
        ("c", "auto", "[agents.c.sandbox]"),
        ("d", "docker", "[sandbox]"),
        ("nobody", "docker", "[sandbox]"),
    ] {
        let found = profiles.of(Some(&agent(name)));
        let expected = (Shown::Word(driver.to_owned()), from.to_owned());
        assert_eq!(line(&found, "driver"), expected, "{name}");
    }
    let all = [
        DriverChoice::Native,
        DriverChoice::Auto,
        DriverChoice::Docker,
    ];
    assert_eq!(profiles.drivers(), all.into());
    let b = profiles.of(Some(&agent("b")));
    assert_eq!(b.profile.memory_bytes, 2 << 30);
    // Where nobody named one, the profile's is the profile's word.
    profiles.every.clear();
    let b = profiles.of(Some(&agent("b")));
    let expected = (
        Shown::Word("auto".to_owned()),
        "profile baseline".to_owned(),
    );
    assert_eq!(line(&b, "driver"), expected);
}

#[test]
fn a_time_above_the_ceiling_is_cut_and_says_by_what() {
    let profiles = Profiles {
        every: vec![layer("[sandbox]", "max_timeout_ms = 500")],
        ..Profiles::default()
    };
    let effective = profiles.of(None);
    assert_eq!(
        line(&effective, "timeout_ms"),
        (Shown::Number(500), "[sandbox] max_timeout_ms".to_owned())
    );
    let profile = &effective.profile;
    assert_eq!(
        [None, Some(0), Some(7), Some(u64::MAX)].map(|asked| profile.timeout(asked)),
        [500, 1, 7, 500]
    );
}

#[test]
fn what_cannot_be_served_is_named_by_its_key() {
    assert_eq!(Overrides::default().problems(), []);
    for (text, key) in [
        ("memory_bytes = 16777215", "memory_bytes"),
        ("cpu_millis = 9", "cpu_millis"),
        ("pids = 15", "pids"),
        ("open_files = 31", "open_files"),
        ("timeout_ms = 2\nmax_timeout_ms = 1", "timeout_ms"),
        ("timeout_ms = 604800001", "timeout_ms"),
        ("max_timeout_ms = 604800001", "max_timeout_ms"),
        ("idle_secs = 31536001", "idle_secs"),
        ("max_age_secs = 31536001", "max_age_secs"),
    ] {
        let found = says(text).problems();
        let [(named, words)] = &found[..] else {
            panic!("{text}: {found:?}");
        };
        assert_eq!(*named, key);
        assert!(words.starts_with(key), "{words}");
    }
    for bad in [
        "profile = 'restrictd'",
        "workspace = 'wr'",
        "min_isolation = 'vm'",
        "image = '-x'",
        "image = 'a b'",
        "image = 'a/../b'",
        "scope = 'agents'",
        "share = 'a b'",
        "share = '../x'",
        "env = ['A B']",
        "env = ['']",
        "env = ['-', 'A']",
        "env = ['A*B']",
        "env = ['LD_PRELOAD']",
        "pids = -1",
        "uid = 7",
        "driver = 'podman'",
        "runtime = 'a/b'",
        "seccomp = 'none'",
        "mounts = ['/a']",
        "mounts = ['a:b']",
        "mounts = ['/:b']",
        "mounts = ['/a/../c:b']",
        "mounts = ['/a//c:b']",
        "mounts = ['/a/:b']",
        "mounts = ['/a:.b']",
        "mounts = ['/a:b/c']",
        "mounts = ['/a:..']",
        "mounts = ['/a:b:rwx']",
        "mounts = ['/a:b:rw:x']",
        "mounts = ['/a:b', '/c:b']",
        "mounts = ['-', '/c:b']",
        "memory = 1",
    ] {
        assert!(toml::from_str::<Overrides>(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_list_of_names_allows_what_it_says() {
    let names = |entries: &[&str]| {
        let entries: Vec<String> = entries.iter().map(|&entry| entry.to_owned()).collect();
        EnvNames::new(&entries).unwrap()
    };
    let some = names(&["A", "CI_*"]);
    for (name, allowed) in [
        ("A", true),
        ("AB", false),
        ("a", false),
        ("CI_", true),
        ("CI_JOB", true),
        ("CI", false),
        ("", false),
    ] {
        assert_eq!(some.allows(name), allowed, "{name}");
    }
    assert!(names(&["*"]).allows("A") && !names(&["-"]).allows("A"));
    // One set, one value.
    assert_eq!(names(&["CI_JOB", "CI_*", "CI_*"]), names(&["CI_*"]));
    assert_eq!(names(&["A", "*"]), names(&["*"]));
    assert!(EnvNames::new(&vec!["A".to_owned(); 257]).is_err());
}

/// Two profiles that differ in one value have different bytes, whichever it is.
#[test]
fn the_canonical_bytes_tell_every_value_apart() {
    let base = Named::Baseline.profile();
    let changes: [fn(&mut Profile); 25] = [
        |p| p.driver = DriverChoice::Native,
        |p| p.min_isolation = Isolation::Docker,
        |p| p.image = Some(ImageName::new("a").unwrap()),
        |p| p.runtime = Some(RuntimeName::new("a").unwrap()),
        |p| p.seccomp = SystemCalls::Debug,
        |p| p.mounts = Mounts::new(["/a:b"]).unwrap(),
        |p| p.scope = Scope::Shared,
        |p| p.share = ShareName::new("a").unwrap(),
        |p| p.workspace = Access::Ro,
        |p| p.workspace_bytes += 1,
        |p| p.workspace_files += 1,
        |p| p.env = EnvNames::default(),
        |p| p.memory_bytes += 1,
        |p| p.egress = Rules::new(["a.example"]).unwrap(),
        |p| p.egress_unlisted = Unlisted::Ask,
        |p| p.terminate = put("a.example:443", "A", &["GET"], &["/"]),
        |p| p.cpu_millis += 1,
        |p| p.pids += 1,
        |p| p.open_files += 1,
        |p| p.file_bytes += 1,
        |p| p.output_cap_bytes += 1,
        |p| p.timeout_ms += 1,
        |p| p.max_timeout_ms += 1,
        |p| p.idle_secs += 1,
        |p| p.max_age_secs += 1,
    ];
    // All but the network, of which there is one.
    assert_eq!(changes.len() + 1, base.entries().len());
    let mut seen = vec![base.canonical()];
    for change in changes {
        let mut other = base.clone();
        change(&mut other);
        seen.push(other.canonical());
    }
    let many = |entries: &[&str]| {
        let entries: Vec<String> = entries.iter().map(|&entry| entry.to_owned()).collect();
        let mut other = base.clone();
        other.env = EnvNames::new(&entries).unwrap();
        other.canonical()
    };
    seen.extend([many(&["A", "B"]), many(&["AB"]), many(&["A"])]);
    let count = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), count);
}

/// The form is fixed: another one would make every known hash another.
#[test]
fn the_form_of_the_canonical_bytes_is_pinned() {
    let least = Profile::least().canonical();
    let mut expected = b"portcullis-profile-v7\0".to_vec();
    for (key, value) in [
        ("driver", &b"auto"[..]),
        ("min_isolation", b"docker"),
        ("image", b""),
        ("runtime", b""),
        ("seccomp", b"strict"),
        ("scope", b"session"),
        ("share", b"default"),
        ("workspace", b"none"),
        ("workspace_bytes", &(1_u64 << 20).to_be_bytes()),
        ("workspace_files", &64_u64.to_be_bytes()),
        ("mounts", &[0; 8]),
        ("network", b"none"),
        ("egress", &[0; 8]),
        ("egress_unlisted", b"refuse"),
        ("terminate", &[0; 8]),
        ("env", &[0; 8]),
        ("memory_bytes", &(16_u64 << 20).to_be_bytes()),
        ("cpu_millis", &10_u64.to_be_bytes()),
        ("pids", &16_u64.to_be_bytes()),
        ("open_files", &32_u64.to_be_bytes()),
        ("file_bytes", &1_u64.to_be_bytes()),
        ("output_cap_bytes", &1_u64.to_be_bytes()),
        ("timeout_ms", &1_u64.to_be_bytes()),
        ("max_timeout_ms", &1_u64.to_be_bytes()),
        ("idle_secs", &1_u64.to_be_bytes()),
        ("max_age_secs", &1_u64.to_be_bytes()),
    ] {
        for field in [key.as_bytes(), value] {
            expected.extend(u32::try_from(field.len()).unwrap().to_be_bytes());
            expected.extend(field);
        }
    }
    assert_eq!(least, expected);
    assert_eq!(Hash32::of(&least), Hash32::of(&expected));
}

fn any_env() -> impl Strategy<Value = EnvNames> {
    let entry = prop_oneof![
        Just("*".to_owned()),
        "[AB_]{1,3}\\*?".prop_map(String::from),
    ];
    proptest::collection::vec(entry, 0..4)
        .prop_map(|entries| EnvNames::new(&entries).unwrap_or_default())
}

fn any_egress() -> impl Strategy<Value = Rules> {
    let one = prop_oneof![
        Just(None),
        Just(Some("*.c.example")),
        Just(Some("x.c.example"))
    ];
    let others =
        proptest::sample::subsequence(vec!["a.example:80", "a.example", "b.example"], 0..=3);
    (one, others).prop_map(|(one, others)| Rules::new(one.into_iter().chain(others)).unwrap())
}

fn any_mounts() -> impl Strategy<Value = Mounts> {
    let all = vec!["/a:a", "/b:b:rw", "/c:c:rw"];
    let first = prop_oneof![
        Just(None),
        Just(Some("/d:d")),
        Just(Some("/d:d:rw")),
        Just(Some("/e:d"))
    ];
    (first, proptest::sample::subsequence(all, 0..=3))
        .prop_map(|(one, others)| Mounts::new(one.into_iter().chain(others)).unwrap())
}

/// One entry, as a file has it.
fn put(host: &str, secret: &str, methods: &[&str], paths: &[&str]) -> Terminations {
    let text = format!(
        "terminate = [{{ host = {host:?}, secret = {{ vault = {secret:?} }}, header = \"Authorization\", format = \"Bearer {{}}\", methods = {methods:?}, paths = {paths:?} }}]"
    );
    says(&text).terminate.unwrap()
}

fn any_terminate() -> impl Strategy<Value = Terminations> {
    let of =
        |all: &'static [&'static str]| proptest::sample::subsequence(all.to_vec(), 1..=all.len());
    let hosts = prop_oneof![Just("a.example"), Just("b.example")];
    let secrets = prop_oneof![Just("ONE"), Just("TWO")];
    let one = (
        hosts,
        secrets,
        of(&["GET", "POST"]),
        of(&["/", "/a/", "/a/b", "/a/b/", "/c"]),
    );
    one.prop_map(|(host, secret, methods, paths)| put(host, secret, &methods, &paths))
}

fn any_profile() -> impl Strategy<Value = Profile> {
    let isolation = prop_oneof![
        Just(Isolation::Unbounded),
        Just(Isolation::Native),
        Just(Isolation::Docker)
    ];
    let access = prop_oneof![Just(Access::None), Just(Access::Ro), Just(Access::Rw)];
    let image = prop_oneof![Just(""), Just("a:1"), Just("b")];
    let small = || 1..4_u32;
    let scope = prop_oneof![
        Just(Scope::Session),
        Just(Scope::Agent),
        Just(Scope::Shared)
    ];
    let scope = (scope, prop_oneof![Just("one"), Just("two")]);
    let calls = prop_oneof![Just(SystemCalls::Strict), Just(SystemCalls::Debug)];
    let driver = prop_oneof![
        Just(DriverChoice::Auto),
        Just(DriverChoice::Docker),
        Just(DriverChoice::Native)
    ];
    let runtime = prop_oneof![Just(""), Just("runc"), Just("crun")];
    let words = (
        (isolation, any_mounts(), calls, runtime, driver),
        access,
        image,
        any_env(),
        (
            any_egress(),
            any_terminate(),
            prop_oneof![Just(Unlisted::Refuse), Just(Unlisted::Ask)],
        ),
        scope,
    );
    let counts = (small(), small(), small());
    let sizes = proptest::collection::vec(1..4_u64, 9);
    (words, counts, sizes).prop_map(|(words, counts, sizes)| {
        let (walls, workspace, image, env, (egress, terminate, egress_unlisted), (scope, share)) =
            words;
        let (min_isolation, mounts, seccomp, runtime, driver) = walls;
        Profile {
            driver,
            min_isolation,
            image: ImageName::new(image).ok(),
            runtime: RuntimeName::new(runtime).ok(),
            seccomp,
            mounts,
            scope,
            share: ShareName::new(share).unwrap(),
            workspace,
            workspace_bytes: sizes[7],
            workspace_files: sizes[8],
            network: Network::None,
            egress,
            egress_unlisted,
            terminate,
            env,
            memory_bytes: sizes[0],
            cpu_millis: counts.0,
            pids: counts.1,
            open_files: counts.2,
            file_bytes: sizes[1],
            output_cap_bytes: sizes[2],
            timeout_ms: sizes[3],
            max_timeout_ms: sizes[4],
            idle_secs: sizes[5],
            max_age_secs: sizes[6],
        }
    })
}

proptest! {
    #[test]
    fn a_child_gets_no_more_than_its_parent_and_no_more_than_it_asks(parent in any_profile(), child in any_profile()) {
        let both = parent.meet(&child);
        prop_assert!(both.is_within(&parent) && both.is_within(&child));
        prop_assert_eq!((&both.image, &both.share), (&parent.image, &parent.share));
        prop_assert_eq!((&both.runtime, both.driver), (&parent.runtime, parent.driver));
        // Nothing lies between: each limit is one of the two.
        for ((key, value), (one, two)) in both.entries().into_iter().zip(parent.entries().into_iter().zip(child.entries())) {
            if !["env", "egress", "mounts", "terminate"].contains(&key) {
                prop_assert!(value == one.1 || value == two.1, "{key}");
            }
        }
    }

    #[test]
    fn to_meet_is_commutative_on_limits_associative_and_idempotent(a in any_profile(), b in any_profile(), c in any_profile()) {
        let mut other = b.meet(&a);
        other.image.clone_from(&a.image);
        other.runtime.clone_from(&a.runtime);
        other.driver = a.driver;
        other.share.clone_from(&a.share);
        prop_assert_eq!(a.meet(&b), other);
        prop_assert_eq!(a.meet(&b).meet(&c), a.meet(&b.meet(&c)));
        prop_assert_eq!(a.meet(&a), a.clone());
        prop_assert_eq!(a.meet(&b).meet(&b), a.meet(&b));
        // Who is within another loses nothing by meeting it.
        if a.is_within(&b) {
            prop_assert_eq!(a.meet(&b), a.clone());
        }
        prop_assert!(Profile::least().meet(&a).is_within(&a));
    }

    #[test]
    fn a_host_that_both_lists_allow_is_what_their_meeting_allows(a in any_egress(), b in any_egress(), n in 0..6_usize) {
        let (name, port) = [
            ("a.example", 80), ("a.example", 443), ("b.example", 443), ("x.c.example", 443), ("y.c.example", 443), ("c.example", 443),
        ][n];
        let host = Host::new(name).unwrap();
        let allows = |rules: &Rules| matches!(rules.decide(&host, port), Decision::Allow(_));
        prop_assert_eq!(allows(&a.meet(&b)), allows(&a) && allows(&b));
        prop_assert_eq!(a.meet(&b), b.meet(&a));
        if a.is_within(&b) && allows(&a) {
            prop_assert!(allows(&b));
        }
    }

    #[test]
    fn a_mount_that_both_have_is_no_more_writable_than_either_has_it(a in any_mounts(), b in any_mounts()) {
        let both = a.meet(&b);
        for (name, source) in both.iter() {
            let of = |mounts: &Mounts| mounts.iter().find(|(n, _)| *n == name).map(|(_, s)| s.clone()).unwrap();
            prop_assert_eq!(&of(&a).path, &source.path);
            prop_assert_eq!(&of(&b).path, &source.path);
            prop_assert_eq!(of(&a).access.min(of(&b).access), source.access);
        }
        prop_assert_eq!(&both, &b.meet(&a));
        prop_assert_eq!(Mounts::new(both.texts()).unwrap(), both);
    }

    #[test]
    fn a_secret_that_both_put_in_is_what_their_meeting_puts_in(a in any_terminate(), b in any_terminate(), at in 0..6_usize, get in any::<bool>()) {
        let path = ["/", "/a/", "/a/b", "/a/b/c", "/c", "/d"][at];
        let method = if get { "GET" } else { "POST" };
        let puts = |all: &Terminations, host: &str| {
            let found = all.of(&Host::new(host).unwrap(), 443);
            found.iter().find(|one| one.is_for(method, path)).map(|one| one.secret().to_owned())
        };
        for host in ["a.example", "b.example"] {
            let both = puts(&a, host).filter(|secret| puts(&b, host).as_ref() == Some(secret));
            prop_assert_eq!(puts(&a.meet(&b), host), both);
            if a.is_within(&b) && let Some(secret) = puts(&a, host) {
                prop_assert_eq!(puts(&b, host), Some(secret));
            }
        }
        prop_assert_eq!(a.meet(&b), b.meet(&a));
    }

    #[test]
    fn what_both_lists_allow_is_what_their_meeting_allows(a in any_env(), b in any_env(), name in "[AB_C]{0,4}") {
        prop_assert_eq!(a.meet(&b).allows(&name), a.allows(&name) && b.allows(&name));
        prop_assert_eq!(a.meet(&b), b.meet(&a));
        if a.is_within(&b) && a.allows(&name) {
            prop_assert!(b.allows(&name));
        }
    }
}
