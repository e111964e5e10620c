//! What a host makes of a secret that it was sent, and sends back: none of it reaches the box.

use portcullis_core::audit::Entry;
use portcullis_core::egress::Scrubber;
use portcullis_core::seal::Secret;

use super::terminated::{Place, SECRET, dechunked, entries};
use super::upstream::Authority;

/// What encoders that are in use make of a text on their standard input: a name and the hexadecimal of it, line by line.
const ENCODERS: &str = r#"
import sys, json, html, base64, binascii, quopri, urllib.parse, plistlib, email.mime.text, xml.sax.saxutils, xmlrpc.client, io, shlex
s = sys.stdin.read()
b = s.encode()
go = lambda t: json.dumps(t).replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
dotnet = lambda t: go(t).replace("+", "\\u002B").replace("\\\"", "\\u0022").replace("'", "\\u0027")
line = ("Authorization: Bearer " + s + "\r\nAccept: */*").encode()
forms = {
    "as it is": b, "upper": s.upper(), "repr": repr(s), "json": json.dumps({"was": s}), "json go": go(s), "json .net": dotnet(s),
    "json php": json.dumps(s).replace("/", "\\/"), "json twice": json.dumps(json.dumps({"was": s})), "json all": "".join("\\u%04X" % ord(c) for c in s),
    "json thrice": json.dumps(json.dumps(json.dumps(s))),
    "quote": urllib.parse.quote(s), "quote all": urllib.parse.quote(s, safe=""), "quote plus": urllib.parse.quote_plus(s),
    "quote lower": urllib.parse.quote(s, safe="").replace("%2F", "%2f").replace("%2B", "%2b"), "quote twice": urllib.parse.quote(urllib.parse.quote(s, safe="")),
    "urlencode": urllib.parse.urlencode({"was": s}), "every byte": "".join("%%%02x" % c for c in b),
    "html": html.escape(s), "html in json": go(html.escape(s)), "json in html": html.escape(json.dumps({"was": s})), "json in a query": urllib.parse.quote(json.dumps(s)),
    "numbers in html": "".join("&#%d;" % ord(c) for c in s), "hex in html": "".join("&#x%x;" % ord(c) for c in s), "html twice": html.escape(html.escape(s)),
    "attribute": xml.sax.saxutils.quoteattr(s), "plist": plistlib.dumps({"was": s}), "xmlrpc": xmlrpc.client.dumps((s,)),
    "base64": base64.b64encode(b), "base64 1": base64.b64encode(b"x" + b + b"y"), "base64 2": base64.b64encode(b"xy" + b), "base64 url": base64.urlsafe_b64encode(line),
    "base64 lines": base64.encodebytes(line * 3), "base64 lines in json": json.dumps(base64.encodebytes(b"ab" * 20 + b).decode()), "base64 in a query": urllib.parse.quote(base64.b64encode(b"?" + b).decode(), safe=""),
    "base64 of json": base64.b64encode(json.dumps({"was": s}).encode()), "base64 of utf-16": base64.b64encode(s.encode("utf-16-le")), "pickle": base64.b64encode(repr(s).encode()),
    "mail": email.mime.text.MIMEText(s, "plain", "utf-8").as_bytes(),
    "hex": b.hex(), "hex upper": b.hex().upper(), "hexlify": binascii.hexlify(b, ":"), "dump": b.hex(" "), "hex of json": json.dumps(s).encode().hex(),
    "list": json.dumps(list(b)), "pretty list": json.dumps(list(b), indent=2), "go bytes": str(list(b)).replace(",", ""),
    "utf-16": s.encode("utf-16-le"), "utf-16-be": s.encode("utf-16-be"), "utf-32": s.encode("utf-32-le"), "quoted-printable": quopri.encodestring(b * 3, quotetabs=True),
    "typed array": json.dumps({str(n): c for n, c in enumerate(b)}, separators=(",", ":")), "dictionary": repr(dict(enumerate(b))), "numbers in quotes": json.dumps([str(c) for c in b]),
    "yaml": "".join("- %d\n" % c for c in b), "csv": '"' + s.replace('"', '""') + '"', "sql": "'" + s.replace("'", "''") + "'", "shell": shlex.quote(s),
    "escapes": "".join("\\x%02x" % c for c in b), "octal": "".join("\\%03o" % c for c in b),
}
for name, form in forms.items():
    print(name + "\t" + (form if isinstance(form, bytes) else form.encode()).hex())
"#;

/// What those encoders make of this secret.
fn encoded(secret: &str) -> Vec<(String, Vec<u8>)> {
    use std::io::Write as _;
    let mut python = std::process::Command::new("python3")
        .args(["-c", ENCODERS])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("python3 is installed");
    python
        .stdin
        .take()
        .unwrap()
        .write_all(secret.as_bytes())
        .unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines()
        .map(|line| {
            let (name, hex) = line.split_once('\t').unwrap();
            let bytes = hex
                .as_bytes()
                .chunks(2)
                .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap());
            (name.to_owned(), bytes.collect())
        })
        .collect()
}

/// Whether a part of a secret could be read out of an answer: longer than chance has it, in the encodings that can be undone at once.
fn is_seen(secret: &str, answer: &[u8]) -> bool {
    let lower = answer.to_ascii_lowercase();
    let is_there = |bytes: Vec<u8>| {
        let bytes = bytes.to_ascii_lowercase();
        bytes
            .windows(7)
            .any(|part| lower.windows(7).any(|there| there == part))
    };
    let hex = portcullis_core::encoding::hex(secret.as_bytes());
    let utf_16: Vec<u8> = secret.encode_utf16().flat_map(u16::to_le_bytes).collect();
    is_there(secret.into()) || is_there(hex.into()) || is_there(utf_16)
}

/// The bug: a server that escaped other characters than ours guessed, or wrapped them once more, told the secret.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_comes_back_in_no_form_that_encoders_in_use_give_it() {
    let place = Place::new().await;
    let forms = encoded(SECRET);
    assert!(forms.len() > 50);
    let mut answers = Vec::new();
    for some in forms.chunks(8) {
        let asked = some.iter().map(|(_, form)| {
            let hex = portcullis_core::encoding::hex(form);
            let place = &place;
            async move { place.get(&format!("/repos/mirror?{hex}")).await }
        });
        answers.extend(futures_util::future::join_all(asked).await);
    }
    for ((name, form), answer) in forms.iter().zip(&answers) {
        assert!(answer.starts_with("HTTP/1.1 200 "), "{name}: {answer}");
        let body = dechunked(answer);
        assert!(
            body.contains("[secret]") && !is_seen(SECRET, body.as_bytes()),
            "{name}: {body}"
        );
        assert!(body.len() <= form.len(), "{name}: {body}");
    }
    // What is of its kind and not it comes through as it is.
    let other = SECRET.replace("C4nary", "An0ther");
    for (name, form) in encoded(&other) {
        let secrets = [Secret::new(SECRET.into())];
        let mut scrubber = Scrubber::new(&secrets);
        assert_eq!(scrubber.whole(&form), form, "{name}");
    }
    place.scene.tree.stop().await;
}

/// The bug: what a server sees of a name and a password is their base64, and in that wrapped once more neither was found.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_basic_value_that_is_wrapped_once_more_does_not_come_back() {
    use base64::Engine as _;
    const BASIC: &str = "x-access-token:pa55:W0rd&+/x";
    let encode = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
    let authority = Authority::of(&["api.test"], false);
    let client = Some(authority.client.clone());
    let basic = |at: &str| {
        entries(&format!(
            "{{ host = {at:?}, secret = {{ vault = 'GH' }}, header = 'Authorization', format = 'Basic {{base64}}', methods = ['GET'], paths = ['/repos/'] }}"
        ))
    };
    let place = Place::opening(&authority, client, Some(&["demo"]), basic).await;
    let vault = place.scene.vault.as_ref().unwrap();
    let set = vault.set(Entry::new("test"), "GH", Secret::new(BASIC.into()));
    set.await.unwrap();
    let value = encode(BASIC.as_bytes());
    let line = format!("Authorization: Basic {value}\r\n");
    let twice = encode(line.as_bytes());
    for form in [
        line.clone(),
        twice.clone(),
        encode(format!("a{line}").as_bytes()),
        encode(format!("ab{line}").as_bytes()),
        portcullis_core::encoding::hex(line.as_bytes()),
        format!("{{\"password\": \"{}\"}}", "pa55:W0rd\\u0026+\\/x"),
        "password=pa55%3aW0rd%26%2B%2Fx".to_owned(),
        "user is X-ACCESS-TOKEN".to_owned(),
    ] {
        let hex = portcullis_core::encoding::hex(form.as_bytes());
        let answer = place.get(&format!("/repos/mirror?{hex}")).await;
        let body = dechunked(&answer);
        assert!(body.contains("[secret]"), "{form}: {body}");
        for seen in [value.as_str(), BASIC, &twice[40..60]] {
            assert!(
                !is_seen(seen, body.as_bytes()) || form.starts_with("user"),
                "{form}: {body}"
            );
        }
    }
    assert!(place.host.seen.requests()[0].contains(&line));
    // The control: to look for the secret alone leaves it.
    let secrets = [Secret::new(BASIC.into())];
    let mut scrubber = Scrubber::new(&secrets);
    assert_eq!(scrubber.whole(twice.as_bytes()), twice.as_bytes());
    place.scene.tree.stop().await;
}
