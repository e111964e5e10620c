//! What comes out of a box: heads of requests to the egress proxy, and what a tunnel begins with.

use portcullis_core::egress::head::{self, Form};
use portcullis_core::egress::hello::{self, Hello, HelloError};
use portcullis_core::egress::{
    Addresses, Answer, Body, Framed, Host, Rules, Scrubber, Unframed, class_of,
};
use portcullis_core::seal::Secret;

use super::parsers::{Target, text};

/// Name and function of each.
pub const ALL: &[Target] = &[
    ("egress_head", egress_head),
    ("egress_hello", egress_hello),
    ("egress_answer", egress_answer),
];

/// What goes on to the server is one request, for the host that was decided on, whoever reads it; and a rule has one form.
pub fn egress_head(data: &[u8]) {
    if let Ok(Some((answer, used))) = Answer::read(data) {
        assert!(used <= data.len() && answer.forward.ends_with(b"\r\n\r\n"));
        let again = Answer::read(&answer.forward).unwrap().unwrap();
        assert_eq!(
            (again.0.status, again.1),
            (answer.status, answer.forward.len())
        );
    }
    if let Some(rules) = text(data).and_then(|text| Rules::new(text.lines()).ok()) {
        assert_eq!(Rules::new(rules.texts()).unwrap(), rules);
    }
    let Ok(Some((head, used))) = head::read(data) else {
        return;
    };
    assert!(used <= head::MOST);
    assert_eq!(Host::new(&head.host.to_string()).unwrap(), head.host);
    if let Host::Address(address) = head.host {
        assert_eq!(
            Addresses::default().check(address).is_ok(),
            class_of(address).as_str() == "public"
        );
    }
    // Fewer bytes are no head, and more are not its.
    assert!(matches!(head::read(&data[..used - 1]), Ok(None)));
    let Form::Plain { forward, mut body } = head.form else {
        return;
    };
    let lines = strictly(&forward);
    let of = |name: &str| {
        let named = lines.iter().filter(|(key, _)| key == name);
        named.map(|(_, value)| value.as_str()).collect::<Vec<_>>()
    };
    let shown = match head.port {
        80 => head.host.to_string(),
        port => format!("{}:{port}", head.host),
    };
    assert_eq!(of("host"), [shown]);
    assert_eq!(of("connection"), ["close"]);
    for hop in [
        "upgrade",
        "te",
        "proxy-authorization",
        "proxy-connection",
        "keep-alive",
    ] {
        assert!(of(hop).is_empty(), "{hop}");
    }
    match (&of("content-length")[..], &of("transfer-encoding")[..]) {
        ([], []) => assert!(body.is_over()),
        ([length], []) => assert_eq!(body.length(), length.parse().ok()),
        ([], ["chunked"]) => assert_eq!(body, Body::chunked()),
        other => panic!("{other:?}"),
    }
    // The same end of the body in whatever pieces it comes.
    let mut whole = body.clone();
    let at_once = whole.take(&data[used..]);
    let mut taken = 0;
    for byte in &data[used..] {
        match body.take(std::slice::from_ref(byte)) {
            Ok(0) => break,
            Ok(_) => taken += 1,
            Err(_) => {
                assert!(at_once.is_err());
                return;
            }
        }
    }
    assert_eq!(at_once, Ok(taken));
    assert_eq!(whole, body);
}

/// The first byte is the length of the pieces that the rest comes in. An answer of a host whose TLS is opened ends at the same place, and what
/// goes on is the same and without the secret, in whatever pieces it comes.
pub fn egress_answer(data: &[u8]) {
    const SECRET: &[u8] = b"gh+p/S3cr&t";
    let Some((piece, bytes)) = data.split_first() else {
        return;
    };
    let piece = usize::from(*piece).max(1);
    let secret = Secret::new(SECRET.to_vec());
    let scrubbed = |body: &[u8], piece: usize| {
        let (mut scrubber, mut out) = (Scrubber::new([&secret]), Vec::new());
        for piece in body.chunks(piece) {
            scrubber.push(piece, &mut out);
        }
        scrubber.finish(&mut out);
        (out, scrubber.count())
    };
    let whole = scrubbed(bytes, bytes.len().max(1));
    assert_eq!(scrubbed(bytes, piece), whole);
    let has = |text: &[u8]| {
        let mut windows = text.windows(SECRET.len());
        windows.any(|part| part.eq_ignore_ascii_case(SECRET))
    };
    assert!(!has(&whole.0));
    assert!(whole.1 > 0 || whole.0 == bytes);
    let Ok(Some((head, used))) = Framed::read(bytes, "GET") else {
        return;
    };
    let forward = head.forward(&mut Scrubber::new([&secret]), true);
    assert!(!has(&forward) && forward.ends_with(b"\r\n\r\n"));
    let unframed = |piece: usize| {
        let (mut body, mut out) = (Unframed::new(head.framing), Vec::new());
        for piece in bytes[used..].chunks(piece) {
            body.take(piece, |part| out.extend_from_slice(part)).ok()?;
        }
        Some((out, body.is_over()))
    };
    assert_eq!(unframed(piece), unframed(bytes.len()));
}

/// Headers of a head, by lines that end with CR LF and nothing less.
fn strictly(head: &[u8]) -> Vec<(String, String)> {
    let text = String::from_utf8_lossy(head);
    let (lines, rest) = text.split_once("\r\n\r\n").unwrap();
    assert!(rest.is_empty());
    let mut lines = lines.split("\r\n");
    let first = lines.next().unwrap();
    assert_eq!(first.split(' ').count(), 3, "{first:?}");
    assert!(
        first.ends_with(" HTTP/1.1") && first.contains(" /"),
        "{first:?}"
    );
    lines
        .map(|line| {
            assert!(!line.contains(['\r', '\n', '\0']), "{line:?}");
            let (name, value) = line.split_once(':').unwrap();
            assert_eq!(name.trim(), name);
            (name.to_ascii_lowercase(), value.trim().to_owned())
        })
        .collect()
}

/// The first byte is the length of the pieces that the rest comes in. Whatever passes names this host, whole or in pieces.
pub fn egress_hello(data: &[u8]) {
    let Some((piece, bytes)) = data.split_first() else {
        return;
    };
    let host = Host::new("api.example.com").unwrap();
    let whole = pushed(bytes, bytes.len(), &host);
    if *piece != 0 {
        assert_eq!(pushed(bytes, usize::from(*piece), &host), whole);
    }
    if let Ok(Some((first, behind))) = &whole {
        assert_eq!([&first[..], behind].concat(), bytes);
        assert_eq!(first[0], 22);
        let name = |bytes: &[u8]| bytes.to_ascii_lowercase();
        let message: Vec<u8> = messages(first);
        let is_named = name(&message)
            .windows(15)
            .any(|part| part == b"api.example.com");
        assert!(is_named);
        let other = Host::new("other.example.com").unwrap();
        assert_eq!(
            pushed(bytes, bytes.len(), &other),
            Err(HelloError::OtherName)
        );
    }
    if let Some(again) = hello::asks_again(bytes) {
        assert!(!again || bytes[0] == 22);
        assert_eq!(hello::asks_again(&[bytes, b"more"].concat()), Some(again));
    }
}

type Parts = (Vec<u8>, Vec<u8>);

fn pushed(bytes: &[u8], piece: usize, host: &Host) -> Result<Option<Parts>, HelloError> {
    let mut gate = Hello::first();
    let mut pieces = bytes.chunks(piece.max(1));
    while let Some(piece) = pieces.next() {
        if gate.push(piece, host)? {
            let (first, mut behind) = gate.into_parts();
            behind.extend(pieces.flatten());
            return Ok(Some((first, behind)));
        }
    }
    Ok(None)
}

/// What is in the records.
fn messages(mut records: &[u8]) -> Vec<u8> {
    let mut all = vec![];
    while let [_, _, _, high, low, rest @ ..] = records {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        all.extend_from_slice(&rest[..length]);
        records = &rest[length..];
    }
    all
}
