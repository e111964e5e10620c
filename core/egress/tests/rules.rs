//! The list.

use super::*;

fn allows(list: &[&str], text: &str, port: u16) -> Option<String> {
    let rules = Rules::new(list).unwrap();
    match rules.decide(&host(text), port) {
        Decision::Allow(rule) => Some(rule.to_string()),
        _ => None,
    }
}

#[test]
fn a_rule_is_for_its_host_and_port_and_for_no_other() {
    let list = ["api.example.com", "Git.Example.com.:22", "192.0.2.7:8443"];
    assert_eq!(
        allows(&list, "API.example.com.", 443).unwrap(),
        "api.example.com:443"
    );
    assert_eq!(
        allows(&list, "git.example.com", 22).unwrap(),
        "git.example.com:22"
    );
    assert_eq!(allows(&list, "192.0.2.7", 8443).unwrap(), "192.0.2.7:8443");
    for (other, port) in [
        ("api.example.com", 80),
        ("xapi.example.com", 443),
        ("api.example.com.evil.net", 443),
        ("example.com", 443),
        ("a.api.example.com", 443),
        ("git.example.com", 443),
        ("192.0.2.70", 8443),
        ("[2001:db8::7]", 8443),
    ] {
        assert_eq!(allows(&list, other, port), None, "{other}:{port}");
    }
    let rules = Rules::new(list).unwrap();
    assert_eq!(rules.decide(&host("api.example.com"), 80), Decision::Port);
    assert_eq!(rules.decide(&host("evil.net"), 443), Decision::Deny);
    assert_eq!(
        Rules::default().decide(&host("api.example.com"), 443),
        Decision::Deny,
        "an empty list is nobody"
    );
}

#[test]
fn a_star_is_one_label_or_more_and_never_none() {
    let list = ["*.example.com:443", "www.example.com:443"];
    assert_eq!(
        allows(&list, "a.example.com", 443).unwrap(),
        "*.example.com:443"
    );
    assert_eq!(
        allows(&list, "a.b.example.com", 443).unwrap(),
        "*.example.com:443"
    );
    assert_eq!(
        allows(&list, "www.example.com", 443).unwrap(),
        "www.example.com:443",
        "the nearer rule is named"
    );
    for other in ["example.com", "evilexample.com", "a.example.com.evil.net"] {
        assert_eq!(allows(&list, other, 443), None, "{other}");
    }
}

#[test]
fn what_is_no_rule_is_refused_and_named() {
    for bad in [
        "",
        "*",
        "*.com",
        "*.*.example.com",
        "a*.example.com",
        "a.*.com",
        "*example.com",
        "*.192.0.2.1",
        "*.[2001:db8::1]",
        "https://example.com",
        "example.com/path",
        "user@example.com",
        "example.com:0",
        "example.com:080",
        "example.com:+80",
        "example.com:65536",
        "example.com:https",
        "example.com:",
        "::1",
        "0x7f.1:443",
        "[::ffff:10.0.0.1]:443",
        "bücher.example",
    ] {
        let error = Rules::new([bad]).unwrap_err();
        assert!(error.to_string().contains(bad), "{bad}: {error}");
    }
    let many: Vec<String> = (0..300).map(|n| format!("h{n}.example.com")).collect();
    assert_eq!(Rules::new(many), Err(RuleError::TooMany));
}

#[test]
fn a_list_has_one_form() {
    let one = Rules::new(["B.example.com", "a.example.com:443", "*.c.example"]).unwrap();
    let other = Rules::new(["*.C.example:443", "a.example.com.", "b.example.com:443"]).unwrap();
    assert_eq!(one, other);
    assert_eq!(
        one.texts(),
        ["a.example.com:443", "b.example.com:443", "*.c.example:443"]
    );
    assert_eq!(Rules::new(one.texts()).unwrap(), one);
}

proptest! {
    #[test]
    fn a_star_rule_takes_what_ends_so_at_a_dot(front in "[a-z.]{0,12}", base in "[a-z]{1,3}\\.[a-z]{1,3}") {
        let rules = Rules::new([format!("*.{base}")]).unwrap();
        let text = format!("{front}{base}");
        if let Ok(host) = Host::new(&text) {
            let below = matches!(rules.decide(&host, 443), Decision::Allow(_));
            let name = host.to_string();
            let expected = name.len() > base.len()
                && name.as_bytes()[name.len() - base.len() - 1] == b'.';
            prop_assert_eq!(below, expected);
        }
    }
}
