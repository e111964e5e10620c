//! Answers inside TLS that is opened: where they end, and that no secret is in what goes on, wherever it was cut.

use super::*;
use crate::seal::Secret;

const SECRET: &str = "gh\"p_S3cr/t+Va1ue&<>";

fn scrubber() -> Scrubber {
    Scrubber::new([&Secret::new(SECRET.as_bytes().to_vec())])
}

/// In pieces of this length.
fn scrubbed(text: &[u8], piece: usize) -> (String, u64) {
    let (mut scrubber, mut out) = (scrubber(), Vec::new());
    for piece in text.chunks(piece.max(1)) {
        scrubber.push(piece, &mut out);
    }
    scrubber.finish(&mut out);
    (String::from_utf8_lossy(&out).into_owned(), scrubber.count())
}

#[test]
fn a_secret_is_replaced_in_every_form_and_at_every_cut() {
    use base64::Engine as _;
    let base64 = |before: &str| {
        base64::engine::general_purpose::STANDARD.encode(format!("{before}{SECRET} and more"))
    };
    let hex: String = crate::encoding::hex(SECRET.as_bytes()).to_uppercase();
    let percent: String = SECRET
        .bytes()
        .map(|byte| {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect();
    let json = serde_json::to_string(SECRET).unwrap();
    for form in [
        SECRET.to_owned(),
        SECRET.to_uppercase(),
        hex.clone(),
        hex.to_lowercase(),
        percent.clone(),
        percent.to_lowercase(),
        json[1..json.len() - 1].to_owned(),
        json[1..json.len() - 1].replace('/', "\\/"),
        base64(""),
        base64("B"),
        base64("Be"),
        base64("Bearer "),
        "gh&#34;p_S3cr/t+Va1ue&amp;&lt;&gt;".to_owned(),
    ] {
        let text = format!("before {form} behind");
        for piece in 1..=text.len() {
            let (out, count) = scrubbed(text.as_bytes(), piece);
            assert!(
                count == 1
                    && out.starts_with("before ")
                    && out.ends_with(" behind")
                    && out.contains("[secret]"),
                "{form} by {piece}: {out}"
            );
            assert!(!out.to_lowercase().contains("s3cr"), "{out}");
        }
    }
    let twice = format!("{SECRET}{SECRET}gh\"p_S3cr");
    assert_eq!(
        scrubbed(twice.as_bytes(), 7),
        ("[secret][secret]gh\"p_S3cr".to_owned(), 2)
    );
}

/// The bug: only what began like the secret waited, so that the lengths of what went on told an agent how far its guess was right.
#[test]
fn how_much_waits_tells_nothing_of_the_secret() {
    let lengths = |text: &[u8]| {
        let (mut scrubber, mut all) = (scrubber(), Vec::new());
        let mut lengths = Vec::new();
        for piece in text.chunks(7) {
            scrubber.push(piece, &mut all);
            lengths.push(all.len());
        }
        scrubber.finish(&mut all);
        assert_eq!(all, text);
        lengths
    };
    let room = 4 * SECRET.len() * 6;
    let guess = |right: usize| {
        let mut text = vec![b'.'; room];
        text.extend(&SECRET.as_bytes()[..right]);
        text.resize(2 * room, b'.');
        text
    };
    let wrong = lengths(&guess(0));
    assert!(
        wrong.last().is_some_and(|last| *last > room),
        "most goes on"
    );
    for right in 1..SECRET.len() {
        assert_eq!(lengths(&guess(right)), wrong, "{right}");
        // At the very end of what has come, too.
        let cut = |text: Vec<u8>| lengths(&text[..room + right]);
        assert_eq!(cut(guess(right)), cut(guess(0)), "{right}");
    }
}

#[test]
fn both_of_a_name_and_a_password_are_found() {
    // Both of a name and a password, which a server shows one by one.
    let basic = Secret::new(b"x-access-token:abcdefgh12345".to_vec());
    assert_eq!(
        Scrubber::new([&basic]).whole(b"you are abcdefgh12345"),
        b"you are [secret]"
    );
    assert_eq!(Scrubber::new([]).whole(b"all"), b"all");
}

/// The bug: where a text began one secret with the first byte of another, that byte went with the first one, and the rest of the other came back.
#[test]
fn a_secret_that_begins_with_the_end_of_another_is_replaced_whole() {
    let (known, real) = ("robot@example.com", "d0ntTellAnyoneC4nary");
    let secrets = [known, real].map(|text| Secret::new(text.as_bytes().to_vec()));
    // %6d is the last letter of the first, and the d is the first of the second.
    let text = format!("q=robot@example.co%6{real}, and {known}{real}.");
    for piece in 1..text.len() {
        let mut scrubber = Scrubber::new(&secrets);
        let mut out = Vec::new();
        for part in text.as_bytes().chunks(piece) {
            scrubber.push(part, &mut out);
        }
        scrubber.finish(&mut out);
        let out = String::from_utf8(out).unwrap();
        assert_eq!(out, "q=[secret], and [secret][secret].", "{piece}");
        // As much is searched, whatever is found.
        let mut other = Scrubber::new(&secrets);
        for part in ".".repeat(text.len()).as_bytes().chunks(piece) {
            other.push(part, &mut Vec::new());
        }
        other.finish(&mut Vec::new());
        assert_eq!(scrubber.looked(), other.looked());
    }
}

/// The bug: the length of a body that does not come was that of one with the secret in it, compressed even.
#[test]
fn of_a_body_that_does_not_come_no_length_is_told() {
    for (method, status) in [("HEAD", "200 OK"), ("GET", "304 Not Modified")] {
        let plain = format!("HTTP/1.1 {status}\r\nContent-Length: 145\r\nX-A: b\r\n\r\n");
        let head = framed(&plain, method)
            .unwrap()
            .forward(&mut scrubber(), true);
        let head = String::from_utf8(head).unwrap();
        assert!(head.contains("X-A: b") && !head.contains("145"), "{head}");
        let coded =
            format!("HTTP/1.1 {status}\r\nContent-Encoding: gzip\r\nContent-Length: 145\r\n\r\n");
        assert_eq!(framed(&coded, method).unwrap_err(), AnswerError::Coded);
    }
}

/// What is not ASCII's child could not be searched.
#[test]
fn an_answer_in_characters_of_another_kind_is_refused() {
    let of = |kind: &str| {
        format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: 5\r\n\r\n")
    };
    for kind in [
        "application/json",
        "text/html; charset=UTF-8",
        "text/html;charset = \"utf-8\"",
        "text/plain; charset=ISO-8859-15; x=y",
        "text/plain; charset=windows-1252",
        "text/plain; charset=utf-16le",
    ] {
        assert!(framed(&of(kind), "GET").is_ok(), "{kind}");
    }
    for kind in [
        "text/plain; charset=IBM037",
        "text/plain;CHARSET=\"cp500\"",
        "text/plain; charset=utf-8; charset=IBM037",
        "text/html; charset=utf-7",
        "text/html; charset=",
    ] {
        assert_eq!(
            framed(&of(kind), "GET").unwrap_err(),
            AnswerError::Charset,
            "{kind}"
        );
    }
}

fn framed(text: &str, method: &str) -> Result<Framed, AnswerError> {
    Framed::read(text.as_bytes(), method).map(|read| read.expect("whole").0)
}

#[test]
fn where_an_answer_ends_is_said_once() {
    let ok = |headers: &str| format!("HTTP/1.1 200 OK\r\n{headers}\r\n");
    for (text, method, framing) in [
        (ok("Content-Length: 5\r\n"), "GET", Framing::Length(5)),
        (
            ok("Transfer-Encoding: Chunked\r\n"),
            "GET",
            Framing::Chunked,
        ),
        (ok(""), "GET", Framing::Close),
        (ok("Content-Length: 5\r\n"), "HEAD", Framing::None),
        (
            "HTTP/1.1 204 No Content\r\n\r\n".to_owned(),
            "GET",
            Framing::None,
        ),
        (
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n".to_owned(),
            "GET",
            Framing::None,
        ),
    ] {
        assert_eq!(framed(&text, method).unwrap().framing, framing, "{text}");
    }
    for (text, error) in [
        (
            ok("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
            AnswerError::Length,
        ),
        (
            ok("Content-Length: 5\r\nContent-Length: 6\r\n"),
            AnswerError::Length,
        ),
        (ok("Content-Length: -5\r\n"), AnswerError::Length),
        (
            ok("Transfer-Encoding: gzip, chunked\r\n"),
            AnswerError::Length,
        ),
        (
            ok("Content-Encoding: gzip\r\nContent-Length: 5\r\n"),
            AnswerError::Coded,
        ),
        (
            ok("Content-Encoding: identity\r\nContent-Encoding: br\r\n"),
            AnswerError::Coded,
        ),
        (
            "HTTP/1.1 206 Partial Content\r\nContent-Length: 5\r\n\r\n".to_owned(),
            AnswerError::Partial,
        ),
        (
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n".to_owned(),
            AnswerError::Switch,
        ),
        ("HTTP/2 200\r\n\r\n".to_owned(), AnswerError::Syntax),
        (ok("X: a\nContent-Length: 5\r\n"), AnswerError::Syntax),
    ] {
        assert_eq!(framed(&text, "GET").unwrap_err(), error, "{text}");
    }
    let answer = framed(
        &ok(&format!(
            "Content-Length: 5\r\nX-Echo: Bearer {SECRET}\r\nLocation: https://evil.example/?{SECRET}\r\nKeep-Alive: 5\r\n"
        )),
        "GET",
    );
    let head = answer.unwrap().forward(&mut scrubber(), true);
    assert_eq!(
        String::from_utf8(head).unwrap(),
        "HTTP/1.1 200 OK\r\nX-Echo: Bearer [secret]\r\nLocation: https://evil.example/?[secret]\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    );
    let named = framed(
        &format!("HTTP/1.1 200 {SECRET}\r\nContent-Length: 0\r\n\r\n"),
        "GET",
    )
    .unwrap();
    assert!(
        named
            .forward(&mut scrubber(), true)
            .starts_with(b"HTTP/1.1 200 [secret]\r\n")
    );
}

fn unframed(framing: Framing, text: &[u8], piece: usize) -> Result<(String, bool), AnswerError> {
    let (mut body, mut out) = (Unframed::new(framing), Vec::new());
    for piece in text.chunks(piece.max(1)) {
        body.take(piece, |part| out.extend_from_slice(part))?;
    }
    Ok((String::from_utf8(out).unwrap(), body.is_over()))
}

proptest! {
    #[test]
    fn a_body_comes_out_of_its_framing_in_any_pieces(piece in 1..40_usize) {
        let chunks = b"3\r\nabc\r\n00a ; x=\"y\"\r\n0123456789\r\n0\r\nTrailer: gone\r\n\r\nnobody's";
        prop_assert_eq!(unframed(Framing::Chunked, chunks, piece), Ok(("abc0123456789".to_owned(), true)));
        prop_assert_eq!(unframed(Framing::Length(4), b"abcdef", piece), Ok(("abcd".to_owned(), true)));
        prop_assert_eq!(unframed(Framing::Close, b"abcdef", piece), Ok(("abcdef".to_owned(), false)));
        for bad in [&b"g\r\n"[..], b"\r\n", b"3\nabc", b"3\r\nabcd", b"-3\r\n", b"fffffffffffff\r\n", b"0x3\r\nabc"] {
            prop_assert_eq!(unframed(Framing::Chunked, bad, piece), Err(AnswerError::Length), "{:?}", bad);
        }
    }
}

#[test]
fn the_authoritys_key_is_of_its_names_and_of_the_key_that_the_vault_gives() {
    let names = |texts: &[&str]| {
        texts
            .iter()
            .map(|text| Name::new(text).unwrap())
            .collect::<Vec<_>>()
    };
    let public = |seed: u8, texts: &[&str]| {
        AuthorityKey::derive(&crate::seal::Key::new([seed; 32]), &names(texts))
            .public()
            .to_vec()
    };
    let one = public(1, &["a.example"]);
    assert_eq!((one.len(), one[0]), (65, 4));
    assert_eq!(one, public(1, &["a.example"]));
    for other in [
        public(2, &["a.example"]),
        public(1, &["b.example"]),
        public(1, &["a.example", "b.example"]),
    ] {
        assert_ne!(one, other);
    }
    let key = AuthorityKey::derive(&crate::seal::Key::new([1; 32]), &names(&["a.example"]));
    assert_eq!(key.sign(b"x"), key.sign(b"x"));
    assert_ne!(key.sign(b"x"), key.sign(b"y"));
}

/// The bug: digits before a colon were taken for a key where no number followed, and the last byte of a list was lost.
#[test]
fn a_list_of_numbers_before_a_colon_is_found_whole() {
    let list: Vec<String> = SECRET.bytes().map(|byte| byte.to_string()).collect();
    for form in [
        format!("invalid token {}: expired", list.join(" ")),
        format!("{{\"{}\": true}}", list.join(",")),
        format!("[{}]:", list.join(", ")),
    ] {
        for piece in [1, 7, form.len()] {
            let (out, count) = scrubbed(form.as_bytes(), piece);
            assert_eq!(count, 1, "{form} in pieces of {piece}: {out}");
            assert!(
                !out.contains(&list.join(",")) && !out.contains(&list.join(" ")),
                "{out}"
            );
        }
    }
}

/// The bug: a head of thousands of headers took a tenth of a second, as each was looked for among all, and there could be any number
/// of heads.
#[test]
fn an_answer_has_a_bounded_number_of_headers() {
    let head = |count: usize| format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(count));
    for (count, is) in [
        (0, true),
        (MOST_HEADERS, true),
        (MOST_HEADERS + 1, false),
        (5_000, false),
    ] {
        let head = head(count);
        let plain = Answer::read(head.as_bytes()).map(|_| ());
        let framed = Framed::read(head.as_bytes(), "GET").map(|_| ());
        let wanted = if is {
            Ok(())
        } else {
            Err(AnswerError::TooMany)
        };
        assert_eq!((plain, framed), (wanted, wanted), "{count}");
    }
}

/// The bug: each colon of a secret made two more to look for, and what was searched for grew with the square of its length.
#[test]
fn a_secret_is_parted_at_its_first_colon_alone() {
    let secret = Secret::new(b"someuser00:pass:word:with:colons".to_vec());
    for (text, count) in [
        ("someuser00:pass:word:with:colons", 1),
        ("someuser00", 1),
        ("pass:word:with:colons", 1),
        ("with:colons", 0),
    ] {
        let (mut scrubber, mut out) = (Scrubber::new([&secret]), Vec::new());
        scrubber.push(text.as_bytes(), &mut out);
        scrubber.finish(&mut out);
        assert_eq!(scrubber.count(), count, "{text}");
    }
}
