//! What an agent reads.

use super::*;

#[test]
fn a_denial_says_what_is_allowed_and_how_to_ask() {
    let rules = Rules::new(["api.example.com", "*.pypi.org:443"]).unwrap();
    let denied = Refusal::NotListed(host("evil.example"), 443);
    let text = denied.text(&rules, "[sandbox]");
    for part in [
        "evil.example:443 is not on the list",
        "Allowed: api.example.com:443, *.pypi.org:443.",
        "add \"evil.example:443\" to `egress` in [sandbox]",
    ] {
        assert!(text.contains(part), "{text}");
    }
    assert!(denied.is_denial() && denied.status().starts_with("403"));
    let many: Vec<String> = (0..50).map(|n| format!("h{n}.example.com")).collect();
    let text = denied.text(&Rules::new(many).unwrap(), "[sandbox]");
    assert!(text.contains("and 18 more"), "{text}");
    let metadata = Refusal::Address(host("a.example"), ip("169.254.169.254"), Class::Metadata);
    assert!(metadata.text(&rules, "").contains("No setting allows it"));
}
