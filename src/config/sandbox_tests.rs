//! Profiles of sandboxes in the configuration: the layers, and what is refused where.

use portcullis_core::ids::AgentId;
use portcullis_core::sandbox::{Access, Effective, Named, Overrides};

use super::*;

fn file(text: &str) -> Result<Loaded, ConfigErrors> {
    merge(
        Some(("config.toml", text.as_bytes())),
        std::iter::empty(),
        &[],
    )
}

fn effective(text: &str, agent: &str) -> Effective {
    let config = file(text).unwrap().config;
    let profiles = config.agents.profiles(config.sandbox.layer());
    profiles.of(Some(&AgentId::new(agent).unwrap()))
}

fn from(effective: &Effective, key: &str) -> String {
    let lines = effective.lines();
    let line = lines.iter().find(|line| line.key == key);
    line.unwrap().from.clone()
}

#[test]
fn without_a_word_every_agent_has_the_restricted_profile() {
    let found = effective("", "demo");
    assert_eq!(found.profile, Named::Restricted.profile());
    assert_eq!(found.named, Named::Restricted);
    let foreign: Vec<_> = found
        .lines()
        .into_iter()
        .filter(|line| line.from != "profile restricted")
        .map(|line| line.key)
        .collect();
    assert_eq!(foreign, [""; 0]);
    // Every key of a profile can be set for all, but for the network, and for one agent.
    let defaults: toml::Table = DEFAULTS.parse().unwrap();
    for (key, _) in found.profile.entries() {
        let agents = defaults["agents"]["*"]["sandbox"].get(key).is_some();
        let all = defaults["sandbox"].get(key).is_some();
        let is_fixed = key == "network";
        assert_eq!(all, !is_fixed, "{key}");
        assert_eq!(agents, !is_fixed, "{key}");
    }
}

#[test]
fn the_sections_are_layers_and_0_and_empty_say_nothing() {
    let text = "[sandbox]\nprofile = \"baseline\"\npids = 200\nmemory_bytes = 0\n[agents.demo.sandbox]\nworkspace = \"ro\"\npids = 0\nimage = \"\"\nenv = []\n\
        [agents.big.sandbox]\nprofile = \"privileged\"\n";
    let demo = effective(text, "demo");
    let p = &demo.profile;
    assert_eq!(
        (p.pids, p.workspace, p.memory_bytes),
        (200, Access::Ro, 2 << 30)
    );
    assert_eq!(from(&demo, "pids"), "[sandbox]");
    assert_eq!(from(&demo, "workspace"), "[agents.demo.sandbox]");
    assert_eq!(from(&demo, "memory_bytes"), "profile baseline");
    let big = effective(text, "big");
    assert_eq!(big.profile.pids, 2048);
    assert_eq!(from(&big, "pids"), "profile privileged");
    assert_eq!(effective(text, "other").profile.pids, 200);
    let variable = (
        "PORTCULLIS__AGENTS__DEMO__SANDBOX__PIDS".to_owned(),
        "77".to_owned(),
    );
    let config = merge(None, [variable].into_iter(), &[]).unwrap().config;
    let profiles = config.agents.profiles(config.sandbox.layer());
    let demo = profiles.of(Some(&AgentId::new("demo").unwrap()));
    assert_eq!(demo.profile.pids, 77);
}

/// What was said of times before there were profiles.
#[test]
fn an_agents_own_time_holds_in_its_sandbox_unless_its_sandbox_says_otherwise() {
    let text = "[sandbox]\ntimeout_ms = 1000\n[agents.\"*\"]\ntimeout_ms = 2000\n[agents.demo]\ntimeout_ms = 3000\n[agents.near]\ntimeout_ms = 3000\n[agents.near.sandbox]\ntimeout_ms = 4000\n\
        [agents.inherits]\nelevated = \"ask\"\n";
    for (agent, time, by) in [
        ("demo", 3000, "[agents.demo]"),
        ("near", 4000, "[agents.near.sandbox]"),
        ("inherits", 2000, "[agents.\"*\"]"),
        ("other", 2000, "[agents.\"*\"]"),
    ] {
        let found = effective(text, agent);
        assert_eq!(found.profile.timeout_ms, time, "{agent}");
        assert_eq!(from(&found, "timeout_ms"), by);
    }
    assert_eq!(
        effective("[sandbox]\ntimeout_ms = 1000", "other")
            .profile
            .timeout_ms,
        1000
    );
}

#[test]
fn what_is_wrong_is_told_with_file_line_key_and_what_to_write() {
    for (text, place, key, words) in [
        (
            "[agents.demo.sandbox]\npids = 3\n",
            "config.toml:2:1",
            "agents.demo.sandbox.pids",
            "at least 16",
        ),
        (
            "[sandbox]\nmemory_bytes = 5\n",
            "config.toml:2:1",
            "sandbox.memory_bytes",
            "at least 16777216",
        ),
        (
            "[sandbox]\nuid = 65533\n",
            "config.toml:2:1",
            "sandbox.uid",
            "each has one of its own, from sandbox.uids",
        ),
        (
            "[sandbox]\nuids = \"60000-70000\"\n",
            "config.toml:2:1",
            "sandbox.uids",
            "people who log in",
        ),
        (
            "[sandbox]\nprofile = \"restrictd\"\n",
            "config.toml:2:1",
            "sandbox.profile",
            "did you mean \"restricted\"?",
        ),
        (
            "[agents.demo.sandbox]\nworkspace = \"rx\"\n",
            "config.toml:2:1",
            "agents.demo.sandbox.workspace",
            "expected one of `none`, `ro`, `rw`",
        ),
        (
            "[agents.demo.sandbox]\nimage = \"a b\"\n",
            "config.toml:2:1",
            "agents.demo.sandbox.image",
            "an image is named like",
        ),
        (
            "[sandbox]\nenv = [\"LD_PRELOAD\"]\n",
            "config.toml:2:1",
            "sandbox.env",
            "steers a loader",
        ),
        (
            "[agents.demo.sandbox]\npid = 3\n",
            "config.toml:2:1",
            "agents.demo.sandbox.pid",
            "did you mean agents.demo.sandbox.pids?",
        ),
        (
            "[agents.demo.sandbox]\nuid = 7\n",
            "config.toml:2:1",
            "agents.demo.sandbox.uid",
            "unknown key",
        ),
        (
            "[agents.demo.sandbox]\nnetwork = \"host\"\n",
            "config.toml:2:1",
            "agents.demo.sandbox.network",
            "unknown key",
        ),
        (
            "[agents.\"*\".sandbox]\npids = 99\n",
            "config.toml:2:1",
            "agents.*.sandbox.pids",
            "write it there",
        ),
        (
            "[agents.demo.sandbox]\ntimeout_ms = 9\nmax_timeout_ms = 8\n",
            "config.toml:2:1",
            "agents.demo.sandbox.timeout_ms",
            "1 to max_timeout_ms",
        ),
        (
            "[agents.demo.sandbox]\ndriver = \"podman\"\n",
            "config.toml:2:1",
            "agents.demo.sandbox.driver",
            "expected one of `auto`, `docker`, `native`",
        ),
        (
            "[sandbox]\nidle_secs = 31536001\n",
            "config.toml:2:1",
            "sandbox.idle_secs",
            "a year",
        ),
    ] {
        let errors = file(text).expect_err(text).to_string();
        for wanted in [place, key, words] {
            assert!(errors.contains(wanted), "{wanted} in {errors}");
        }
    }
    assert_eq!(
        file("").unwrap().config.agents.every().sandbox,
        Overrides::default()
    );
}

#[test]
fn agents_that_share_a_box_and_name_different_drivers_are_refused() {
    let text = |driver: &str| {
        format!(
            "[sandbox]\ndriver = \"docker\"\n[agents.a.sandbox]\nscope = \"shared\"\n\
             [agents.b.sandbox]\nscope = \"shared\"\ndriver = {driver:?}\n"
        )
    };
    let errors = file(&text("native")).expect_err("two drivers").to_string();
    for wanted in [
        "config.toml:2:1",
        "sandbox.driver",
        "must name the same driver",
        "\"docker\" ([sandbox])",
        "\"native\" ([agents.b.sandbox])",
    ] {
        assert!(errors.contains(wanted), "{wanted} in {errors}");
    }
    file(&text("docker")).unwrap();
}
