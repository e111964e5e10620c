//! Names and addresses in their one form.

use super::*;

#[test]
fn a_name_has_one_form_whatever_its_letters_and_its_last_dot() {
    for text in [
        "api.example.com",
        "API.Example.COM",
        "api.example.com.",
        "ApI.eXaMpLe.CoM.",
    ] {
        assert_eq!(host(text).to_string(), "api.example.com", "{text}");
    }
    for text in [
        "xn--bcher-kva.example",
        "a_b.example",
        "localhost",
        "1.example",
        "0x.com",
    ] {
        assert_eq!(host(text).to_string(), text);
    }
}

#[test]
fn what_is_no_name_is_refused() {
    let long = format!("{}.com", "a".repeat(64));
    let longer = ["a".repeat(63).as_str(); 4].join(".") + ".b";
    for (text, why) in [
        ("", HostError::Empty),
        (".", HostError::NotAName),
        ("a..b", HostError::NotAName),
        ("a.b..", HostError::NotAName),
        (".a", HostError::NotAName),
        ("-a.com", HostError::NotAName),
        ("a-.com", HostError::NotAName),
        ("a b.com", HostError::NotAName),
        ("a%2eb", HostError::NotAName),
        ("a\\b", HostError::NotAName),
        ("user@a.com", HostError::NotAName),
        ("a.com\0", HostError::NotAName),
        ("bücher.example", HostError::NotAscii),
        // Looks like `example.com` with a Cyrillic letter; and the ideographic full stop.
        ("ex\u{430}mple.com", HostError::NotAscii),
        ("example\u{3002}com", HostError::NotAscii),
        ("\u{ff11}27.0.0.1", HostError::NotAscii),
        (long.as_str(), HostError::NotAName),
        (longer.as_str(), HostError::NotAName),
    ] {
        assert_eq!(Host::new(text), Err(why), "{text:?}");
    }
}

#[test]
fn an_address_has_one_spelling_and_the_others_are_no_names() {
    for text in ["127.0.0.1", "203.0.113.7", "[::1]", "[2001:db8::7]"] {
        assert_eq!(host(text).to_string(), text);
    }
    for text in [
        "127.1",
        "127.0.1",
        "127.0.0.1.",
        "0127.0.0.1",
        "0177.0.0.1",
        "0x7f.0.0.1",
        "0x7f.1",
        "0X7F.1",
        "127.0.0.0x1",
        "017700000001",
        "0x7f000001",
        "2130706433",
        "4294967297",
        "0",
        "0x",
        "1.2.3.4.5",
        "256.1.1.1",
        "169.254.169.254.",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[0:0:0:0:0:0:0:1]",
        "[0:0:0:0:0:ffff:7f00:1]",
        "[0000:0000:0000:0000:0000:ffff:127.0.0.1]",
        "[::0001]",
        "[2001:DB8::7]",
        "[fe80::1%eth0]",
        "[fe80::1%25eth0]",
        "[::1",
        "[127.0.0.1]",
        "[example.com]",
        "[]",
    ] {
        assert_eq!(Host::new(text), Err(HostError::Spelling), "{text:?}");
    }
    // Without brackets there are colons in no name.
    for text in ["::1", "::ffff:127.0.0.1", "fe80::1%eth0"] {
        assert!(Host::new(text).is_err(), "{text:?}");
    }
}

proptest! {
    #[test]
    fn whatever_is_taken_is_taken_again_in_its_own_form(text in "[-a-zA-Z0-9._\\[\\]:%]{0,40}") {
        if let Ok(host) = Host::new(&text) {
            prop_assert_eq!(Host::new(&host.to_string()), Ok(host.clone()));
            prop_assert!(!host.to_string().bytes().any(|b| b.is_ascii_uppercase()));
        }
    }

    #[test]
    fn no_spelling_of_a_number_is_a_name(number in any::<u32>(), form in 0..5) {
        let [a, b, c, d] = number.to_be_bytes();
        let text = match form {
            0 => format!("{number}"),
            1 => format!("0x{number:x}"),
            2 => format!("0{number:o}"),
            3 => format!("{a}.{}", number & 0xff_ffff),
            _ => format!("0x{a:x}.0{b:o}.{c}.0X{d:X}"),
        };
        prop_assert_eq!(Host::new(&text), Err(HostError::Spelling));
    }
}
