use std::fmt::Debug;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use portcullis_core::ids::AgentId;
use proptest::prelude::*;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::*;
use crate::telemetry::Level;

/// Visits the type of every section.
pub trait SectionVisitor {
    fn visit<T: DeserializeOwned + Default + Debug>(&mut self, name: &str);
}

fn file(text: &str) -> Result<Loaded, ConfigErrors> {
    merge(
        Some(("config.toml", text.as_bytes())),
        std::iter::empty(),
        &[],
    )
}

fn errors(text: &str) -> Vec<String> {
    file(text)
        .expect_err("it is wrong")
        .0
        .iter()
        .map(ToString::to_string)
        .collect()
}

fn env(name: &str, value: &str) -> Result<Loaded, ConfigErrors> {
    merge(None, [(name.to_owned(), value.to_owned())].into_iter(), &[])
}

#[test]
fn the_defaults_are_those_of_the_types_and_every_section_is_read() {
    struct Compare(Table);
    impl SectionVisitor for Compare {
        fn visit<T: DeserializeOwned + Default + Debug>(&mut self, name: &str) {
            let section = self
                .0
                .remove(name)
                .unwrap_or_else(|| panic!("default.toml has no [{name}]"));
            let read: T = section
                .try_into()
                .unwrap_or_else(|error| panic!("[{name}]: {error}"));
            if name != "agents" {
                assert_eq!(
                    format!("{read:?}"),
                    format!("{:?}", T::default()),
                    "[{name}] differs from the type's default"
                );
            }
        }
    }
    let mut compare = Compare(DEFAULTS.parse().unwrap());
    each_section(&mut compare);
    assert!(
        compare.0.is_empty(),
        "no type reads {:?}",
        compare.0.keys().collect::<Vec<_>>()
    );
    assert_eq!(file("").unwrap().config.agents.every(), Agent::default());
}

#[test]
fn default_toml_names_every_key_that_a_type_reads() {
    struct Missing(Table, Vec<String>);
    impl SectionVisitor for Missing {
        fn visit<T: DeserializeOwned + Default + Debug>(&mut self, name: &str) {
            let section = self
                .0
                .get(name)
                .cloned()
                .unwrap_or_else(|| Value::Table(Table::new()));
            let _ = T::deserialize(fields::Fields {
                value: &section,
                path: name.to_owned(),
                missing: &mut self.1,
            });
        }
    }
    let mut missing = Missing(DEFAULTS.parse().unwrap(), vec![]);
    each_section(&mut missing);
    assert!(
        missing.1.is_empty(),
        "default.toml does not name {:?}",
        missing.1
    );
    // The check itself can fail.
    let mut missing = Missing(Table::new(), vec![]);
    each_section(&mut missing);
    assert!(
        missing.1.contains(&"gateway.port".to_owned()),
        "{:?}",
        missing.1
    );
}

#[test]
fn every_key_of_default_toml_has_a_comment_above_it() {
    let mut above = "";
    for line in DEFAULTS.lines() {
        if line.contains(" = ") && !line.starts_with('#') {
            assert!(above.starts_with('#'), "{line} has no comment of its own");
        }
        above = line;
    }
}

#[test]
fn each_layer_overrides_the_one_before_and_the_origin_is_kept() {
    let flags = [Flag {
        name: "--port",
        key: "gateway.port",
        value: "3".to_owned(),
    }];
    let text = b"[gateway]\nport = 1\n[telemetry]\nlevel = \"warn\"\notlp.enabled = true\n";
    let variables = [
        ("PORTCULLIS__GATEWAY__PORT", "2"),
        ("PORTCULLIS__TELEMETRY__LEVEL", "debug"),
        ("PORTCULLIS_STATE_DIR", "x"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let loaded = merge(Some(("config.toml", text)), variables.into_iter(), &flags).unwrap();
    assert_eq!(loaded.config.gateway.port, 3);
    assert_eq!(loaded.config.telemetry.level, Level::Debug);
    let origin = |key: &str| {
        loaded
            .leaves
            .iter()
            .find(|leaf| leaf.key == key)
            .unwrap()
            .origin
            .clone()
    };
    assert_eq!(origin("gateway.port"), "flag --port");
    assert_eq!(
        origin("telemetry.level"),
        "env PORTCULLIS__TELEMETRY__LEVEL"
    );
    assert_eq!(origin("telemetry.otlp.enabled"), "config.toml:5");
    assert_eq!(origin("gateway.bind"), "default");
}

#[test]
fn all_errors_come_at_once_each_with_its_place_its_line_and_the_nearest_key() {
    let text = "[gateway]\nprot = 1\nport = \"x\"\nbind = \"nowhere\"\n[gatway]\n[agents.demo]\nelevated = \"aks\"\n[agents.\"Not An Agent\"]\nexec = \"full\"\n[telemetry]\nlevel = 5\n";
    let found = errors(text);
    assert_eq!(found.len(), 7, "{found:#?}");
    let has = |parts: &[&str]| {
        assert!(
            found
                .iter()
                .any(|line| parts.iter().all(|part| line.contains(part))),
            "{parts:?} in {found:#?}"
        );
    };
    has(&[
        "config.toml:2:1: gateway.prot: unknown key",
        "did you mean gateway.port?",
        "2 | prot = 1\n    | ^",
    ]);
    has(&[
        "config.toml:3:8: gateway.port: expected an integer like 18789, found a string",
        "3 | port = \"x\"\n    |        ^",
    ]);
    has(&["config.toml:4:1: gateway.bind: invalid IP address syntax"]);
    has(&[
        "config.toml:5:2: gatway: unknown section",
        "did you mean gateway?",
    ]);
    has(&[
        "config.toml:7:1: agents.demo.elevated: unknown variant `aks`",
        "did you mean \"ask\"?",
    ]);
    has(&["config.toml:8:9: agents.Not An Agent: an agent name must be"]);
    has(&["config.toml:11:9: telemetry.level: expected a string like \"info\", found an integer"]);
    let whole = file(text).unwrap_err().to_string();
    assert!(
        whole.starts_with("7 errors in the configuration"),
        "{whole}"
    );
}

#[test]
fn broken_lines_are_all_told_and_the_rest_is_still_checked() {
    let found = errors("[gateway\nport = = 1\n[telemetry]\nlevle = \"x\"\nlevel = \"unclosed\n");
    assert!(
        found.iter().any(|line| line.starts_with("config.toml:1:")),
        "{found:#?}"
    );
    assert!(
        found.iter().any(|line| line.starts_with("config.toml:2:")),
        "{found:#?}"
    );
    assert!(
        found
            .iter()
            .any(|line| line.contains("did you mean telemetry.level?")),
        "{found:#?}"
    );
    assert!(
        found.iter().any(|line| line.starts_with("config.toml:5:")),
        "{found:#?}"
    );
    assert!(
        errors("a = 1\na = 2")
            .iter()
            .any(|line| line.contains("duplicate key"))
    );
    assert!(
        merge(Some(("f", b"a = \"\xff\"")), std::iter::empty(), &[])
            .unwrap_err()
            .to_string()
            .contains("f:1:6: this byte is not UTF-8")
    );
}

#[test]
fn an_unset_number_or_a_huge_one_is_refused() {
    assert!(
        errors("[gateway]\nport = 65536")
            .iter()
            .any(|line| line.contains("gateway.port: invalid value"))
    );
    assert!(
        errors("[gateway]\nport = -1")
            .iter()
            .any(|line| line.contains("gateway.port: invalid value"))
    );
    assert!(
        errors("[gateway]\nport = 99999999999999999999")
            .iter()
            .any(|line| line.contains("out of range"))
    );
    assert!(
        errors("[gateway.limits]\nsockets = 0")
            .iter()
            .any(|line| line.starts_with("config.toml:2:1: gateway.limits.sockets"))
    );
    assert_eq!(
        file("[telemetry.otlp]\nratio = 1")
            .unwrap()
            .config
            .telemetry
            .otlp
            .ratio
            .to_bits(),
        1f64.to_bits()
    );
}

#[test]
fn variables_and_flags_are_checked_like_the_file() {
    assert_eq!(
        env("PORTCULLIS__GATEWAY__PORT", "0")
            .unwrap()
            .config
            .gateway
            .port,
        0
    );
    assert_eq!(
        env("PORTCULLIS__GATEWAY__LOCAL__OPERATORS", "[\"uid:7\"]")
            .unwrap()
            .config
            .gateway
            .local
            .operators,
        [Operator::Uid(7)]
    );
    let agents = env("PORTCULLIS__AGENTS__DEMO__ELEVATED", "ask")
        .unwrap()
        .config
        .agents;
    assert_eq!(
        agents.of(&AgentId::new("demo").unwrap()).elevated,
        Elevated::Ask
    );
    for (name, value, part) in [
        (
            "PORTCULLIS__GATEWAY__PROT",
            "1",
            "environment variable PORTCULLIS__GATEWAY__PROT: gateway.prot: unknown key; did you mean gateway.port?",
        ),
        (
            "PORTCULLIS__GATEWAY__PORT",
            "1\nbind = 2",
            "gateway.port: expected an integer",
        ),
        ("PORTCULLIS__GATEWAY", "1", "this is a section"),
        ("PORTCULLIS__GATEWAY__PORT__X", "1", "this is a key"),
        ("PORTCULLIS__", "1", "unknown section"),
    ] {
        let text = env(name, value).unwrap_err().to_string();
        assert!(text.contains(part), "{text}");
    }
    let flag = Flag {
        name: "--port",
        key: "gateway.port",
        value: "many".to_owned(),
    };
    let text = merge(None, std::iter::empty(), &[flag])
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("flag --port: gateway.port: expected an integer like 18789"),
        "{text}"
    );
}

#[test]
fn an_agent_takes_over_what_it_does_not_say_itself() {
    let loaded =
        file("[agents.demo]\nelevated = \"ask\"\n[agents.\"*\"]\ntimeout_ms = 7\n").unwrap();
    let agents = &loaded.config.agents;
    let demo = agents.of(&AgentId::new("demo").unwrap());
    assert_eq!((demo.elevated, demo.timeout_ms), (Elevated::Ask, 7));
    let other = agents.of(&AgentId::new("other").unwrap());
    assert_eq!((other.elevated, other.timeout_ms), (Elevated::Off, 7));
    let origin = |key: &str| {
        loaded
            .leaves
            .iter()
            .find(|leaf| leaf.key == key)
            .unwrap()
            .origin
            .clone()
    };
    assert_eq!(origin("agents.demo.timeout_ms"), "config.toml:4");
    assert_eq!(origin("agents.demo.exec"), "default");
}

#[test]
fn what_loosens_by_accident_is_refused() {
    assert!(errors("[agents.\"*\"]\nelevated = \"ask\"")[0].starts_with(
        "config.toml:2:1: agents.*.elevated: elevated mode is switched on for one agent at a time"
    ));
    assert!(
        errors("[agents.\"*\"]\nnodes = \"ask\"")[0].starts_with(
            "config.toml:2:1: agents.*.nodes: nodes are opened to one agent at a time"
        )
    );
    // A node by the beginning of its id would be none, and its word lost.
    assert!(errors("[nodes.exec]\n4f0c = \"deny\"")[0].contains("64 hexadecimal digits"));
    assert!(
        errors("[gateway]\nbind = \"0.0.0.0\"")[0]
            .starts_with("config.toml:2:1: gateway.bind: beyond loopback")
    );
    assert_eq!(
        errors("[gateway]\ndangerously_bind_without_tls = true")[0]
            .lines()
            .next()
            .unwrap(),
        "config.toml:2:1: gateway.dangerously_bind_without_tls: this key was removed: set gateway.tls.enabled = true, or stay on loopback and use a tunnel"
    );
    assert!(errors("[dashboard]\nhosts = []")[0].contains("this key is gateway.hosts now"));
    assert!(file("[gateway]\nbind = \"::1\"").is_ok());
    assert!(errors("[gateway.local]\noperators = [\"root\"]")[0].contains("is not \"self\""));
    assert!(
        errors("[gateway.local]\nlocal_scopes = [\"operator.everything\"]")[0]
            .contains("unknown scope")
    );
}

#[test]
fn an_empty_list_of_operators_is_nobody() {
    let local = file("[gateway.local]\noperators = []")
        .unwrap()
        .config
        .gateway
        .local;
    assert!(!local.is_operator(0, &[0], 0));
    let local = file("[gateway.local]\noperators = [\"self\", \"gid:27\"]")
        .unwrap()
        .config
        .gateway
        .local;
    assert!(
        local.is_operator(5, &[], 5)
            && local.is_operator(9, &[1, 27], 5)
            && !local.is_operator(9, &[1], 5)
    );
}

#[test]
fn a_secret_in_the_file_is_refused_and_not_repeated() {
    for text in [
        "[gateway.auth]\ntoken = \"hunter2\"",
        "[gateway.auth]\ntoken = \"hunter2",
        "[gateway]\nauth = { password = \"hunter2\" }",
        "[telemetry.otlp]\nendpoint = \"ftp://me:hunter2@host\"",
    ] {
        let shown = errors(text).join("\n");
        assert!(!shown.contains("hunter2"), "{shown}");
    }
    assert!(
        errors("[gateway.auth]\ntoken = \"hunter2\"")[0]
            .contains("a secret does not stand in the configuration")
    );
    // One that would otherwise do is refused too, and not repeated.
    let shown = errors("[telemetry.otlp]\nendpoint = \"https://me:hunter2@host\"").join("\n");
    assert!(
        shown.contains("without a user") && !shown.contains("hunter2"),
        "{shown}"
    );
}

#[test]
fn a_secret_is_named_where_one_is_expected_and_a_literal_is_an_error_with_the_fix() {
    let text = "[agents.demo.secrets]\nTOKEN = { vault = \"API_KEY\" }\nOTHER = { vault = \"B\" }\n[agents.\"*\".secrets]\nALL = { vault = \"C\" }";
    let loaded = file(text).unwrap();
    let of = |name: &str| {
        let agent = loaded.config.agents.of(&AgentId::new(name).unwrap());
        let secrets = agent.secrets.into_iter();
        let text =
            |(variable, of): (String, VaultRef)| format!("{variable}={}", String::from(of.vault));
        secrets.map(text).collect::<Vec<_>>()
    };
    assert_eq!(of("demo"), ["ALL=C", "OTHER=B", "TOKEN=API_KEY"]);
    assert_eq!(of("another"), ["ALL=C"]);
    let loaded = env("PORTCULLIS__AGENTS__DEMO__SECRETS__TOKEN__VAULT", "API_KEY").unwrap();
    let demo = loaded.config.agents.of(&AgentId::new("demo").unwrap());
    assert!(demo.secrets.contains_key("TOKEN"));

    for text in [
        "[agents.demo.secrets]\nCRED = \"hunter2\"",
        "[agents.demo.secrets]\nCRED = [\"hunter2\"]",
        "[agents.demo]\nsecrets = { CRED = \"hunter2\" }",
        "[agents.demo]\nsecrets.CRED = \"hunter2\"",
        "[agents.\"*\".secrets]\nCRED = \"hunter2\"",
        "[gateway.auth]\npassword = \"hunter2\"",
        "[agents.demo.secrets]\nCRED = \"hunter2",
    ] {
        let errors = file(text).unwrap_err();
        assert!(errors.has_secret(), "{text}");
        let shown = errors.to_string();
        assert!(shown.contains("{ vault = \"NAME\" }"), "{shown}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }
    let errors = env("PORTCULLIS__AGENTS__DEMO__SECRETS__CRED", "hunter2").unwrap_err();
    assert!(errors.has_secret() && !errors.to_string().contains("hunter2"));
    // Other errors are none of a secret, and repeat nothing that may be one.
    for text in [
        "[agents.demo.secrets]\nCRED = { vault = \"hunter2\" }",
        "[agents.demo.secrets]\nCRED = { vlt = \"hunter2\" }",
        "[agents.demo.secrets]\nCRED = { vault = 5, x = \"hunter2\" }",
        "[agents.demo.secrets]\n\"a b\" = { vault = \"hunter2\" }",
    ] {
        let errors = file(text).unwrap_err();
        assert!(!errors.has_secret(), "{text}");
        assert!(!errors.to_string().contains("hunter2"), "{errors}");
    }
}

#[test]
fn the_first_run_file_names_other_users_for_agents_where_the_default_ones_are_somebodys() {
    let range = portcullis_core::sandbox::UserRange::new("131072-196607").unwrap();
    let loaded = file(&first_run(Some(range))).unwrap();
    assert_eq!(loaded.config.sandbox.uids, range);
    let leaf = loaded.leaves.iter().find(|leaf| leaf.key == "sandbox.uids");
    assert_ne!(leaf.unwrap().origin, "default");
}

#[test]
fn the_first_run_file_loads_and_changes_only_what_it_says() {
    let text = first_run(None);
    let loaded = file(&text).unwrap();
    assert_eq!(
        loaded
            .config
            .agents
            .of(&AgentId::new("demo").unwrap())
            .elevated,
        Elevated::Ask
    );
    let changed: Vec<_> = loaded
        .leaves
        .iter()
        .filter(|leaf| leaf.origin != "default")
        .map(|leaf| leaf.key.as_str())
        .collect();
    assert_eq!(changed, ["agents.demo.elevated", "agents.demo.nodes"]);
    for line in DEFAULTS
        .lines()
        .filter(|line| line.contains(" = ") && !line.starts_with('#'))
    {
        assert!(text.contains(&format!("#: {line}")), "{line} is missing");
    }
}

#[test]
fn a_file_that_others_can_reach_is_refused_with_the_command_that_mends_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    let read = || load(&path, std::iter::empty(), &[]);
    assert_eq!(
        read().unwrap().config.gateway.port,
        18789,
        "no file: the defaults hold"
    );
    fs::write(&path, "[gateway]\nport = 7\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let error = read().unwrap_err();
    assert_eq!(error.code(), codes::STATE_MODE);
    let text = error.to_string();
    assert!(
        text.contains("its mode is 0640")
            && text.contains(&format!("run: chmod 600 {}", path.display())),
        "{text}"
    );
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(read().unwrap().config.gateway.port, 7);

    let link = folder.path().join("link.toml");
    symlink(&path, &link).unwrap();
    assert_eq!(
        load(&link, std::iter::empty(), &[]).unwrap_err().code(),
        codes::STATE_MODE
    );
    assert_eq!(
        load(folder.path(), std::iter::empty(), &[])
            .unwrap_err()
            .code(),
        codes::STATE_MODE
    );
    fs::write(&path, vec![b'#'; (1 << 20) + 1]).unwrap();
    assert_eq!(read().unwrap_err().code(), codes::CONFIG_INVALID);
}

#[test]
fn the_first_file_is_ours_alone_and_never_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    assert!(write_first(&path, "a").unwrap());
    assert!(!write_first(&path, "b").unwrap());
    assert_eq!(fs::read_to_string(&path).unwrap(), "a");
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o7777,
        0o600
    );
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        if let Err(errors) = merge(Some(("f", &bytes)), std::iter::empty(), &[]) {
            prop_assert!(errors.to_string().chars().all(|c| c == '\n' || !c.is_control()), "a control character is shown");
        }
    }

    #[test]
    fn no_toml_like_text_makes_the_reader_panic(parts in prop::collection::vec(prop_oneof![
        Just("[gateway]\n"), Just("port"), Just(" = "), Just("1"), Just("\""), Just("'''"), Just("\n"), Just("[agents.demo]\n"),
        Just("elevated"), Just("{"), Just("}"), Just("[["), Just("]]"), Just(","), Just("\\u{1b}"), Just("é"), Just("\r"),
        Just("1979-05-27"), Just("token"), Just("."), Just("-9e999"), Just("0xff"), Just("#"), Just("\u{0}"), Just("\"*\""),
    ], 0..60)) {
        let text = parts.concat();
        if let Err(errors) = merge(Some(("f", text.as_bytes())), std::iter::empty(), &[]) {
            prop_assert!(!errors.0.is_empty() && errors.to_string().len() > 10);
        }
    }

    #[test]
    fn no_variable_makes_the_reader_panic(name in "PORTCULLIS__[A-Z_]{0,20}", value in ".{0,40}") {
        let _ = env(&name, &value);
    }
}

/// A deserialiser that notes which fields a type wants and default.toml does not have.
mod fields {
    use serde::de::value::StrDeserializer;
    use serde::de::{DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, Visitor};
    use serde::forward_to_deserialize_any;
    use toml::Value;

    pub struct Fields<'a> {
        pub value: &'a Value,
        pub path: String,
        pub missing: &'a mut Vec<String>,
    }

    struct Entries<'a> {
        left: toml::map::Iter<'a, String, Value>,
        value: Option<(&'a str, &'a Value)>,
        path: String,
        missing: &'a mut Vec<String>,
    }

    impl<'de> Deserializer<'de> for Fields<'_> {
        type Error = toml::de::Error;

        fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
            match self.value {
                Value::Table(table) => visitor.visit_map(Entries {
                    left: table.iter(),
                    value: None,
                    path: self.path,
                    missing: self.missing,
                }),
                other => other.clone().deserialize_any(visitor),
            }
        }

        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _name: &'static str,
            fields: &'static [&'static str],
            visitor: V,
        ) -> Result<V::Value, Self::Error> {
            for field in fields
                .iter()
                .filter(|field| self.value.get(**field).is_none())
            {
                self.missing.push(format!("{}.{field}", self.path));
            }
            self.deserialize_any(visitor)
        }

        fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
            visitor.visit_some(self)
        }

        fn deserialize_newtype_struct<V: Visitor<'de>>(
            self,
            _name: &'static str,
            visitor: V,
        ) -> Result<V::Value, Self::Error> {
            visitor.visit_newtype_struct(self)
        }

        fn deserialize_enum<V: Visitor<'de>>(
            self,
            name: &'static str,
            variants: &'static [&'static str],
            visitor: V,
        ) -> Result<V::Value, Self::Error> {
            self.value.clone().deserialize_enum(name, variants, visitor)
        }

        forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
            seq tuple tuple_struct map identifier ignored_any
        }
    }

    impl<'de> MapAccess<'de> for Entries<'_> {
        type Error = toml::de::Error;

        fn next_key_seed<K: DeserializeSeed<'de>>(
            &mut self,
            seed: K,
        ) -> Result<Option<K::Value>, Self::Error> {
            let Some((key, value)) = self.left.next() else {
                return Ok(None);
            };
            self.value = Some((key, value));
            let key: StrDeserializer<'_, Self::Error> = String::as_str(key).into_deserializer();
            seed.deserialize(key).map(Some)
        }

        fn next_value_seed<V: DeserializeSeed<'de>>(
            &mut self,
            seed: V,
        ) -> Result<V::Value, Self::Error> {
            let (key, value) = self.value.take().expect("a key comes before its value");
            seed.deserialize(Fields {
                value,
                path: format!("{}.{key}", self.path),
                missing: &mut *self.missing,
            })
        }
    }
}

#[test]
fn the_section_of_questions_has_two_names_and_only_one_at_a_time() {
    let text = "[approvals]\ntimeout_seconds = 7";
    assert_eq!(file(text).unwrap().config.approval.timeout_seconds, 7);
    let set = env("PORTCULLIS__APPROVALS__TIMEOUT_SECONDS", "8");
    assert_eq!(set.unwrap().config.approval.timeout_seconds, 8);
    let both = "[approval]\ngrant_days = 1\n[approvals]\ntimeout_seconds = 7";
    let said = errors(both);
    assert!(
        matches!(&said[..], [one] if one.contains("3:") && one.contains("keep one of them")),
        "{said:?}"
    );
    let said = errors("[approvalz]\ntimeout_seconds = 7");
    assert_eq!(said.len(), 1, "{said:?}");
}

/// The bug: nothing looked at `[exec]`, so that a run as root could be configured, and a ceiling of 0 made each run panic.
#[test]
fn values_of_exec_and_of_questions_that_cannot_be_served_are_refused() {
    for (text, key) in [
        ("[exec.host]\nuser = \"root\"", "exec.host.user"),
        ("[exec.host]\nmax_timeout_ms = 0", "exec.host.timeout_ms"),
        ("[exec.host]\nenv = [\"LD_PRELOAD\"]", "exec.host.env"),
        ("[exec]\nruns_per_agent = 0", "exec.runs_per_agent"),
        (
            "[approval]\ntimeout_seconds = 0",
            "approval.timeout_seconds",
        ),
        ("[approval]\npending_max = 0", "approval.pending_max"),
        (
            "[approvals.quorum]\nloosening = 0",
            "approval.quorum.loosening",
        ),
        (
            "[pairing]\npending_per_address = 0",
            "pairing.pending_per_address",
        ),
        ("[audit]\nonce_keys = 0", "audit.once_keys"),
        (
            "[telemetry.otlp]\nendpoint = \"http://\"",
            "telemetry.otlp.endpoint",
        ),
        (
            "[telemetry.otlp]\nendpoint = \"ftp://a\"",
            "telemetry.otlp.endpoint",
        ),
    ] {
        let errors = errors(text);
        assert!(
            errors
                .iter()
                .any(|error| error.contains(&format!(": {key}: "))),
            "{text}: {errors:?}"
        );
    }
    assert_eq!(
        portcullis_actors::exec::HostConfig {
            max_timeout_ms: 0,
            ..Default::default()
        }
        .timeout(None),
        1
    );
}

#[test]
fn a_name_that_no_browser_can_bring_is_an_error_of_its_key() {
    let hosts = |name: &str| format!("[gateway]\nhosts = [{name:?}]\n");
    for good in [
        "gate.example",
        "box-1",
        "192.168.1.5",
        "[fe80::1]",
        "xn--bcher-kva.example",
    ] {
        file(&hosts(good)).unwrap();
    }
    for bad in [
        "",
        "b\u{fc}cher.example",
        "gate.example:18789",
        "fe80::1",
        "a b",
        "https://gate.example",
        "[x]",
    ] {
        let said = errors(&hosts(bad));
        assert!(
            said.len() == 1 && said[0].contains("gateway.hosts"),
            "{bad}: {said:?}"
        );
    }
}

#[test]
fn a_host_that_boxes_may_reach_is_a_rule_or_an_error_of_its_key() {
    let list = |key: &str, text: &str| format!("[sandbox]\n{key} = [{text:?}]\n");
    for good in ["api.example.com", "*.example.com:8443", "192.0.2.7:80"] {
        file(&list("egress", good)).unwrap();
    }
    file(&list("egress_to_networks", "10.1.0.0/16")).unwrap();
    for (key, bad) in [
        ("egress", "*"),
        ("egress", "https://api.example.com"),
        ("egress", "api.example.com:0"),
        ("egress", "0x7f.1:80"),
        ("egress", "b\u{fc}cher.example"),
        ("egress_to_networks", "10.1.2.3/8"),
        ("egress_to_networks", "0.0.0.0/0"),
        ("egress_to_networks", "169.254.0.0/16"),
        ("egress_to_networks", "169.254.169.254"),
    ] {
        let said = errors(&list(key, bad));
        assert!(
            said.len() == 1 && said[0].contains(&format!("sandbox.{key}")),
            "{bad}: {said:?}"
        );
    }
}
