//! Hellos.

use super::made::{hello, message, records, server_name, vector};
use super::*;

fn seen(bytes: &[u8], piece: usize, wanted: &str) -> Result<bool, HelloError> {
    let mut hello = Hello::first();
    let wanted = host(wanted);
    for piece in bytes.chunks(piece.max(1)) {
        if hello.push(piece, &wanted)? {
            return Ok(true);
        }
    }
    Ok(false)
}

#[test]
fn a_hello_to_the_same_name_passes_whole_in_pieces_and_in_records() {
    let plain = message(&[server_name("API.example.com"), (43, vec![2, 3, 4])]);
    for each in [1, 2, 3, 5, 40, 100, 16_384] {
        let bytes = records(&plain, each);
        // More than 256 records are no hello.
        let expected = if plain.len() / each > 256 {
            Err(HelloError::TooLong)
        } else {
            Ok(true)
        };
        for piece in [1, 2, 7, bytes.len()] {
            assert_eq!(
                seen(&bytes, piece, "api.example.com"),
                expected,
                "{each} {piece}"
            );
        }
        for cut in 0..bytes.len() {
            assert!(!matches!(
                seen(&bytes[..cut], cut, "api.example.com"),
                Ok(true)
            ));
        }
    }
}

#[test]
fn what_came_goes_on_and_what_came_behind_it_waits() {
    let first = hello("a.example");
    let mut gate = Hello::first();
    let came = [&first[..], b"behind"].concat();
    assert_eq!(gate.push(&came, &host("a.example")), Ok(true));
    assert_eq!(gate.into_parts(), (first, b"behind".to_vec()));
}

#[test]
fn what_is_not_that_hello_is_refused() {
    let name = server_name("a.example");
    let of = |extensions: made::Extensions<'_>| records(&message(extensions), 16_384);
    let entry = |name: &[u8]| [vec![0], vector(2, name)].concat();
    let two = vector(2, &[entry(b"a.example"), entry(b"b.example")].concat());
    for (bytes, word) in [
        (hello("b.example"), "sni-mismatch"),
        (hello("a.example.b.example"), "sni-mismatch"),
        (of(&[]), "sni-missing"),
        (of(&[(43, vec![2, 3, 4])]), "sni-missing"),
        (of(&[name.clone(), (0xfe0d, vec![0; 20])]), "ech"),
        (of(&[(0xfe0d, vec![]), name.clone()]), "ech"),
        (of(&[name.clone(), (0xffce, vec![1])]), "ech"),
        (of(&[name.clone(), (0xfe0a, vec![1])]), "ech"),
        (of(&[name.clone(), name.clone()]), "hello-malformed"),
        (of(&[(0, two)]), "hello-malformed"),
        (of(&[(0, vector(2, &[]))]), "hello-malformed"),
        (of(&[(0, vec![])]), "hello-malformed"),
        (
            of(&[(0, [vector(2, &entry(b"a.example")), vec![0]].concat())]),
            "hello-malformed",
        ),
        (of(&[server_name("a.example.")]), "hello-malformed"),
        (of(&[server_name("127.0.0.1")]), "hello-malformed"),
        (of(&[server_name("")]), "hello-malformed"),
        (of(&[server_name("a.example\0")]), "hello-malformed"),
        (b"GET / HTTP/1.1\r\n".to_vec(), "not-tls"),
        (b"SSH-2.0-OpenSSH\r\n".to_vec(), "not-tls"),
        (vec![0x80, 0x2e, 1, 3, 1], "not-tls"),
        (vec![22, 2, 0], "not-tls"),
        (vec![22, 3, 1, 0, 4, 2], "not-tls"),
        (vec![22, 3, 1, 0, 0], "hello-malformed"),
        (vec![22, 3, 1, 0x40, 1], "hello-malformed"),
        (vec![21, 3, 3, 0, 2, 1, 0], "not-tls"),
        (vec![20, 3, 3, 0, 1, 1], "not-tls"),
        (
            records(
                &[&message(std::slice::from_ref(&name))[..], &[1, 0, 0, 0]].concat(),
                16_384,
            ),
            "hello-malformed",
        ),
        (
            records(&[&[1, 1, 0, 0][..], &[0; 100]].concat(), 16_384),
            "hello-too-long",
        ),
    ] {
        for piece in [1, 5, bytes.len()] {
            let error = seen(&bytes, piece, "a.example").unwrap_err();
            assert_eq!(error.word(), word, "{bytes:?}");
            assert_eq!(error.alert()[0], 21);
        }
    }
    // Each byte less inside, with lengths that still say the old.
    let whole = message(&[name]);
    for cut in 5..whole.len() {
        let mut short = whole[..cut].to_vec();
        let length = u32::try_from(cut - 4).unwrap().to_be_bytes();
        short[1..4].copy_from_slice(&length[1..]);
        let error = seen(&records(&short, 16_384), 99, "a.example");
        assert!(error.is_err(), "{cut}: {error:?}");
    }
}

#[test]
fn an_address_is_not_named_in_a_hello() {
    let without = records(&message(&[]), 16_384);
    assert_eq!(seen(&without, 9, "203.0.113.7"), Ok(true));
    assert_eq!(
        seen(&hello("a.example"), 9, "203.0.113.7"),
        Err(HelloError::OtherName)
    );
}

#[test]
fn a_second_hello_passes_the_same_gate() {
    let spacer = [20, 3, 3, 0, 1, 1];
    let push = |bytes: &[u8]| Hello::second().push(bytes, &host("a.example"));
    assert_eq!(push(&hello("a.example")), Ok(true));
    assert_eq!(push(&[&spacer[..], &hello("a.example")].concat()), Ok(true));
    assert_eq!(
        push(&[&spacer[..], &hello("b.example")].concat()),
        Err(HelloError::OtherName)
    );
    assert_eq!(
        push(&[&spacer[..], &spacer[..], &hello("a.example")].concat()),
        Err(HelloError::NotTls)
    );
    assert_eq!(push(&[23, 3, 3, 0, 1, 0]), Err(HelloError::NotTls));
}

#[test]
fn a_server_that_asks_again_is_seen() {
    let hello = |random: [u8; 32]| {
        let body = [&[2, 0, 0, 40, 3, 3][..], &random, &[0; 6]].concat();
        [vec![22, 3, 3], vector(2, &body)].concat()
    };
    let retry = [
        0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8,
        0x91, 0xc2, 0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8,
        0x33, 0x9c,
    ];
    let again = hello(retry);
    assert_eq!(asks_again(&again), Some(true));
    assert_eq!(asks_again(&hello([1; 32])), Some(false));
    for cut in 0..43 {
        assert_eq!(asks_again(&again[..cut]), None, "{cut}");
    }
    // The bug: one that came in two records, or behind a warning, was taken for none, and a hello for another host passed.
    let body = &again[5..];
    for cut in 1..body.len() {
        let record = |part: &[u8]| [vec![22, 3, 3], vector(2, part)].concat();
        let split = [record(&body[..cut]), record(&body[cut..])].concat();
        assert_eq!(asks_again(&split), Some(true), "{cut}");
        let warned = [&[21, 3, 3, 0, 2, 1, 112][..], &[20, 3, 3, 0, 1, 1], &split].concat();
        assert_eq!(asks_again(&warned), Some(true), "{cut}");
        assert_eq!(asks_again(&warned[..18]), None);
    }
    assert_eq!(asks_again(&[22, 3, 3, 0, 1, 1]), Some(false));
    assert_eq!(asks_again(&[21, 3, 3, 0, 2, 2, 40]), Some(false));
    assert_eq!(asks_again(&[21, 3, 3, 0, 2]), None);
    assert_eq!(asks_again(b"HTTP/1.1"), Some(false));
}

proptest! {
    #[test]
    fn any_cut_into_records_and_pieces_says_the_same(
        each in 8_usize..300,
        piece in 1_usize..300,
        other in any::<bool>(),
        padding in 0_usize..600,
    ) {
        let name = if other { "b.example" } else { "a.example" };
        let bytes = records(&message(&[(21, vec![0; padding]), server_name(name)]), each);
        let expected = if other { Err(HelloError::OtherName) } else { Ok(true) };
        prop_assert_eq!(seen(&bytes, piece, "a.example"), expected);
    }

    #[test]
    fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), valid in any::<bool>()) {
        if valid && bytes.len() > 5 {
            bytes[..3].copy_from_slice(&[22, 3, 1]);
            bytes[5] = 1;
        }
        let _ = seen(&bytes, 7, "a.example");
        let _ = asks_again(&bytes);
    }
}
