//! What strangers send: frames in both encodings, the params of `connect`, headers of proxies and of signed requests. Each
//! target reads the fuzzer's bytes, and then spells what was taken anew: rightly, and wrongly in each way that must be
//! refused, so that the checks behind the first one are reached whatever the bytes are.

use portcullis_core::auth::proxy::{Headers, Network, ProxyRules, SocketFacts, Way};
use portcullis_core::auth::{Role, Scope};
use portcullis_core::protocol::frame::{FrameError, ID_MAX, read_params};
use portcullis_core::protocol::limits::JSON_DEPTH;
use portcullis_core::protocol::strict::Unsound;
use portcullis_core::protocol::{ConnectParams, Encoding, method, strict};
use portcullis_core::signing::http::{
    COMPONENTS, HttpRefusal, Signature, TAG, Target as Asked, check_body, content_digest,
};
use portcullis_core::signing::{AHEAD_MS, SKEW_MS, SigningKey, mac};
use portcullis_core::time::Millis;
use serde_json::{Value, json};

use super::parsers::{Target, is_clean, text};

/// Each of them.
pub const ALL: &[Target] = &[
    ("frame", frame),
    ("frame_packed", frame_packed),
    ("connect", connect),
    ("forwarded", forwarded),
    ("signed", signed),
];

const EXACT: u64 = 1 << 53;
/// Above that the limit of values in one tree may be met by what is added here.
const SMALL: usize = 50_000;

/// A frame of the wire.
pub fn frame(data: &[u8]) {
    read(Encoding::Json, data);
}

/// The same as MessagePack.
pub fn frame_packed(data: &[u8]) {
    read(Encoding::MsgPack, data);
}

/// What is taken comes back the same over either encoding, and is refused in both once it is spelled as it must not be.
fn read(encoding: Encoding, data: &[u8]) {
    let request = match encoding.read(data) {
        Ok(request) => request,
        Err(FrameError::NotJson) => {
            assert_eq!(encoding, Encoding::Json);
            return;
        }
        Err(FrameError::NotRequest { id, why }) => {
            assert!(!why.is_empty() && id.is_none_or(|id| (1..=ID_MAX).contains(&id.len())));
            return;
        }
    };
    let (id, name) = (&*request.id, &*request.method);
    assert!((1..=ID_MAX).contains(&id.len()) && (1..=128).contains(&name.len()));
    let _ = method::names().find(|known| *known == name);
    let Ok(params) = &request.params else { return };
    assert!(depth(params) <= JSON_DEPTH && is_exact(params));
    // None was merged with another of its name.
    assert_eq!(
        keys_below(encoding, data),
        keys(params),
        "a key stood twice"
    );
    if data.len() > SMALL {
        return;
    }
    let trace = json!(request.traceparent);
    let (kind, id_value, method) = (json!("req"), json!(id), json!(name));
    let parts: [(&str, &Value); 5] = [
        ("type", &kind),
        ("id", &id_value),
        ("method", &method),
        ("params", params),
        ("traceparent", &trace),
    ];
    let whole = json!({
        "type": kind, "id": id, "method": name, "params": params, "traceparent": trace,
    });
    for encoding in [Encoding::Json, Encoding::MsgPack] {
        let written = encoding.write(&whole).unwrap();
        let longest = spelled(
            encoding,
            &parts.map(|(key, value)| (key, plain(encoding, value))),
        );
        for bytes in [written.as_bytes(), &longest] {
            assert_eq!(encoding.read(bytes).as_ref(), Ok(&request));
            for cut in [bytes.len() / 2, bytes.len() - 1] {
                assert!(encoding.read(&bytes[..cut]).is_err());
            }
            // More follows, or a list or an object begins that has no end.
            for more in [&b"\x01"[..], b"\x91", b"\xde\x00\x02\x01", b"["] {
                assert!(encoding.read(&[bytes, more].concat()).is_err());
            }
        }
        encoding.ok(id, params).unwrap();
        misspelled(encoding, &parts, params);
    }
}

/// A key twice, too deep, too great a number: refused wherever it stands.
fn misspelled(encoding: Encoding, parts: &[(&str, &Value)], params: &Value) {
    let spell = |params: Vec<u8>| {
        let mut all: Vec<_> = parts[..3]
            .iter()
            .map(|(k, v)| (*k, plain(encoding, v)))
            .collect();
        all.push(("params", params));
        spelled(encoding, &all)
    };
    let refusal = |params: Vec<u8>| {
        let bytes = spell(params);
        let request = encoding.read(&bytes).unwrap();
        request.params.clone().unwrap_err()
    };
    for (key, value) in parts {
        let mut twice: Vec<_> = parts
            .iter()
            .map(|(k, v)| (*k, plain(encoding, v)))
            .collect();
        twice.push((key, plain(encoding, value)));
        assert!(encoding.read(&spelled(encoding, &twice)).is_err(), "{key}");
    }
    let one = plain(encoding, &json!(1));
    let twice = spelled(encoding, &[("a", one.clone()), ("a", one)]);
    assert_eq!(refusal(twice), Unsound::Twice("a".to_owned()));
    let mut deepest = params.clone();
    while depth(&deepest) < JSON_DEPTH {
        deepest = json!([deepest]);
    }
    let bytes = spell(plain(encoding, &deepest));
    assert_eq!(encoding.read(&bytes).unwrap().params, Ok(deepest.clone()));
    assert_eq!(refusal(plain(encoding, &json!([deepest]))), Unsound::Deep);
    for number in [json!(EXACT + 1), json!(-1 - (1_i64 << 53)), json!(1e17)] {
        let beside = json!([params, number]);
        if depth(&beside) <= JSON_DEPTH {
            assert_eq!(refusal(plain(encoding, &beside)), Unsound::Number);
        }
    }
}

/// Lists and objects in one another.
fn depth(value: &Value) -> usize {
    match value {
        Value::Array(list) => 1 + list.iter().map(depth).max().unwrap_or(0),
        Value::Object(object) => 1 + object.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// Keys in all of its objects.
fn keys(value: &Value) -> usize {
    match value {
        Value::Array(list) => list.iter().map(keys).sum(),
        Value::Object(object) => object.len() + object.values().map(keys).sum::<usize>(),
        _ => 0,
    }
}

fn is_exact(value: &Value) -> bool {
    match value {
        Value::Array(list) => list.iter().all(is_exact),
        Value::Object(object) => object.values().all(is_exact),
        Value::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
            (Some(n), _, _) => n <= EXACT,
            (_, Some(n), _) => n.unsigned_abs() <= EXACT,
            (_, _, Some(n)) => n.abs() <= 9_007_199_254_740_992.0,
            _ => false,
        },
        _ => true,
    }
}

/// Keys in the bytes of an object, its own left out.
fn keys_below(encoding: Encoding, data: &[u8]) -> usize {
    match encoding {
        Encoding::Json => {
            let merged: Value = serde_json::from_slice(data).unwrap();
            colons(data) - merged.as_object().unwrap().len()
        }
        Encoding::MsgPack => {
            let mut rest = data;
            let all = packed_keys(&mut rest);
            assert!(rest.is_empty());
            let own = match data[0] {
                0xde => usize::from(u16::from_be_bytes([data[1], data[2]])),
                0xdf => data[1..5].iter().fold(0, |n, b| n << 8 | usize::from(*b)),
                first => usize::from(first & 15),
            };
            all - own
        }
    }
}

/// Those of JSON outside of texts: one for each key.
fn colons(json: &[u8]) -> usize {
    let (mut count, mut quoted, mut escaped) = (0, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b':' if !quoted => count += 1,
            _ => {}
        }
    }
    count
}

/// Keys of one MessagePack value, which is taken off the front.
fn packed_keys(rest: &mut &[u8]) -> usize {
    fn take<'a>(rest: &mut &'a [u8], count: usize) -> &'a [u8] {
        let (taken, after) = rest.split_at(count);
        *rest = after;
        taken
    }
    let number = |rest: &mut &[u8], width| {
        take(rest, width)
            .iter()
            .fold(0, |n, b| n << 8 | usize::from(*b))
    };
    let first = take(rest, 1)[0];
    let (keys, values, bytes) = match first {
        0x80..=0x8f => (usize::from(first & 15), 0, 0),
        0xde => (number(rest, 2), 0, 0),
        0xdf => (number(rest, 4), 0, 0),
        0x90..=0x9f => (0, usize::from(first & 15), 0),
        0xdc => (0, number(rest, 2), 0),
        0xdd => (0, number(rest, 4), 0),
        0xa0..=0xbf => (0, 0, usize::from(first & 31)),
        0xd9 => (0, 0, number(rest, 1)),
        0xda => (0, 0, number(rest, 2)),
        0xdb => (0, 0, number(rest, 4)),
        0xcc | 0xd0 => (0, 0, 1),
        0xcd | 0xd1 => (0, 0, 2),
        0xca | 0xce | 0xd2 => (0, 0, 4),
        0xcb | 0xcf | 0xd3 => (0, 0, 8),
        0x00..=0x7f | 0xc0 | 0xc2 | 0xc3 | 0xe0..=0xff => (0, 0, 0),
        other => panic!("{other:#x} was taken"),
    };
    take(rest, bytes);
    let below: usize = (0..2 * keys + values).map(|_| packed_keys(rest)).sum();
    keys + below
}

/// A value's bytes, not by the code under test: in MessagePack each in its longest form.
fn plain(encoding: Encoding, value: &Value) -> Vec<u8> {
    if encoding == Encoding::Json {
        return serde_json::to_vec(value).unwrap();
    }
    let headed = |kind: u8, count: usize| {
        let count = u32::try_from(count).unwrap();
        [&[kind][..], &count.to_be_bytes()].concat()
    };
    match value {
        Value::Null => vec![0xc0],
        Value::Bool(is) => vec![0xc2 + u8::from(*is)],
        Value::Number(number) => {
            let (kind, bytes) = if let Some(n) = number.as_u64() {
                (0xcf, n.to_be_bytes())
            } else if let Some(n) = number.as_i64() {
                (0xd3, n.to_be_bytes())
            } else {
                (0xcb, number.as_f64().unwrap().to_be_bytes())
            };
            [&[kind][..], &bytes].concat()
        }
        Value::String(text) => [headed(0xdb, text.len()), text.clone().into_bytes()].concat(),
        Value::Array(list) => {
            let mut out = headed(0xdd, list.len());
            out.extend(list.iter().flat_map(|value| plain(encoding, value)));
            out
        }
        Value::Object(object) => {
            let pairs: Vec<_> = object
                .iter()
                .map(|(key, value)| (key.as_str(), plain(encoding, value)))
                .collect();
            spelled(encoding, &pairs)
        }
    }
}

/// An object of exactly these keys, in this order, also one that stands twice.
fn spelled(encoding: Encoding, pairs: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let key = |name: &str| plain(encoding, &json!(name));
    if encoding == Encoding::MsgPack {
        let count = u32::try_from(pairs.len()).unwrap().to_be_bytes();
        let mut out = [&[0xdf][..], &count].concat();
        for (name, value) in pairs {
            out.extend(key(name));
            out.extend(value);
        }
        return out;
    }
    let pairs: Vec<_> = pairs
        .iter()
        .map(|(name, value)| [&key(name), &b":"[..], value].concat())
        .collect();
    [&b"{"[..], &pairs.join(&b","[..]), b"}"].concat()
}

/// The params of `connect`.
pub fn connect(data: &[u8]) {
    const SECRET: &str = "a secret that nobody else has";
    let Ok(value) = strict::json(data) else {
        return;
    };
    assert_eq!(colons(data), keys(&value), "a key stood twice");
    if data.len() < SMALL {
        let packed = plain(Encoding::MsgPack, &value);
        assert_eq!(strict::msgpack(&packed).as_ref(), Ok(&value));
    }
    let read = |value: &Value| read_params::<ConnectParams>(value, "connect");
    let params = match read(&value) {
        Ok(params) => params,
        Err(why) => {
            assert!(why.starts_with("invalid connect params: "), "{why}");
            return;
        }
    };
    if let (Some(auth), Some(claim)) = (value["auth"].as_object(), &params.auth) {
        let tokens = ["token", "deviceToken", "bootstrapToken"];
        let given: Vec<&str> = tokens
            .iter()
            .filter_map(|name| auth.get(*name)?.as_str())
            .collect();
        assert_eq!(params.signed_token(), given.first().copied().unwrap_or(""));
        // What keys signed frames is the one secret that was given.
        let key = params.frame_key();
        assert!(key.is_none_or(|key| given.iter().all(|other| *other == key)));
        assert!(key.is_none() || claim.password.is_none());
    }
    // No secret is told, whatever is wrong.
    if let Some(object) = value.as_object() {
        let mut secret = object.clone();
        let names = ["token", "deviceToken", "bootstrapToken", "password", "user"];
        let auth = names.map(|name| (name.to_owned(), json!(SECRET)));
        secret.insert("auth".into(), Value::Object(auth.into_iter().collect()));
        let told = format!("{:?}", read(&secret.into()).map(ConnectParams::check));
        assert!(!told.contains(SECRET), "{told}");
    }
    let sent = params.clone();
    match params.check() {
        Ok(checked) => {
            assert_eq!(
                checked.role.as_str(),
                sent.role.as_deref().unwrap_or("operator")
            );
            assert!(sent.client.mode != "worker" && sent.client.id != "openclaw-worker");
            assert!((sent.min_protocol..=sent.max_protocol).contains(&4) || sent.max_protocol >= 3);
            assert!(sent.min_protocol <= 4);
            let texts = sent.scopes.iter().chain(&sent.caps).chain(&sent.commands);
            assert!(texts.chain([&sent.client.version]).all(|t| t.len() <= 256));
            // Nothing that was not named.
            let named: Vec<Scope> = sent.scopes.iter().filter_map(|s| Scope::parse(s)).collect();
            for scope in Scope::ALL {
                let is_named = named.iter().any(|held| held.implies(scope));
                assert_eq!(checked.asked.allows(scope), is_named, "{scope}");
            }
        }
        Err(refusal) => {
            assert!([1002, 1008].contains(&refusal.close) && !refusal.reason.is_empty());
            is_clean(&refusal.reason);
            let role = sent.role.as_deref().unwrap_or("operator");
            assert!(refusal.reason != "invalid role" || Role::parse(role).is_none());
        }
    }
}

/// Headers of proxies, one a line, `name:value`.
pub fn forwarded(data: &[u8]) {
    let listed: Network = "10.0.0.0/8".parse().unwrap();
    let rules = ProxyRules {
        addresses: vec![listed, "127.0.0.0/8".parse().unwrap()],
        names_users: true,
        user_header: "x-user".to_owned(),
        allow_users: vec!["ada".to_owned()],
        scopes_header: "x-scopes".to_owned(),
        scopes: [Scope::Write].into_iter().collect(),
        ..ProxyRules::default()
    };
    let lines: Vec<(&str, &[u8])> = data
        .split(|byte| *byte == b'\n')
        .filter_map(|line| {
            let colon = line.iter().position(|byte| *byte == b':')?;
            Some((text(&line[..colon])?, &line[colon + 1..]))
        })
        .collect();
    let headers = Headers(&lines);
    let from = |ip: [u8; 4]| SocketFacts {
        source: Some(ip.into()),
        is_this_machine: ip[0] == 127,
        uid: None,
        certificate: None,
    };
    // A stranger is direct or refused, also on this machine; a client behind a proxy is somebody else.
    for stranger in [[192, 0, 2, 1], [127, 0, 0, 1]] {
        let stranger = rules.attribute(&from(stranger), headers);
        assert_eq!(stranger.is_err(), headers.is_forwarded());
        assert!(!matches!(stranger, Ok(Way::Proxied(_))));
    }
    let proxy = from([10, 0, 0, 1]);
    let way = rules.attribute(&proxy, headers);
    assert!(headers.is_forwarded() || way == Ok(Way::Direct));
    if let Ok(Way::Proxied(client)) = way {
        assert!(headers.is_forwarded() && !client.is_loopback() && !client.is_unspecified());
        // What stands before it the client may have written: it changes nothing, or refuses.
        let written: Vec<Vec<u8>> = lines
            .iter()
            .map(|(_, value)| [&b"203.0.113.9, "[..], value].concat())
            .collect();
        let at = (lines.iter()).position(|(name, _)| name.eq_ignore_ascii_case("x-forwarded-for"));
        if let Some(at) = at.filter(|_| !rules.lists(client)) {
            let mut more = lines.clone();
            more[at].1 = &written[at];
            let forged = rules.attribute(&proxy, Headers(&more));
            assert!(forged.is_err() || forged == way, "{forged:?} {way:?}");
        }
    }
    // A header's name has no case.
    let loud: Vec<String> = lines
        .iter()
        .map(|(name, _)| name.to_ascii_uppercase())
        .collect();
    let upper: Vec<(&str, &[u8])> = loud
        .iter()
        .zip(&lines)
        .map(|(name, (_, value))| (name.as_str(), *value))
        .collect();
    let named = rules.name(headers, 0);
    assert_eq!(rules.attribute(&proxy, Headers(&upper)), way);
    assert_eq!(rules.name(Headers(&upper), 0), named);
    if let Ok(named) = named {
        assert_eq!(named.user, "ada");
        let narrows = |s: &Scope| !named.scopes.allows(*s) || rules.scopes.allows(*s);
        assert!(Scope::ALL.iter().all(narrows));
        // A second word on the same user is none.
        let twice = [&lines[..], &[("X-User", &b"ada"[..])]].concat();
        assert!(rules.name(Headers(&twice), 0).is_err());
        let asked: Vec<_> = lines
            .iter()
            .filter(|(name, _)| name.eq_ignore_ascii_case("x-scopes"))
            .collect();
        assert!(asked.len() < 2 || named.scopes.iter().next().is_none());
    }
    if let Some(Ok(network)) = text(data).map(str::parse::<Network>) {
        assert_eq!(network.to_string().parse(), Ok(network));
    }
}

/// The key of all seeds, bytes 0 to 31; another; and the time at which they are read.
const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";
const OTHER: &str = "AQECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";
const NOW: Millis = Millis(1_795_900_000_000);

/// A signed request as it stands in its socket, read as the gateway's door reads it.
struct Sent<'a> {
    asked: Asked<'a>,
    input: &'a str,
    signature: &'a str,
    body: &'a [u8],
}

impl<'a> Sent<'a> {
    fn read(data: &'a [u8]) -> Option<Self> {
        let end = data.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
        let mut lines = text(&data[..end])?.split("\r\n");
        let (method, rest) = lines.next()?.split_once(' ')?;
        let (whole, _) = rest.split_once(' ')?;
        let headers: Vec<(&str, &str)> = lines.filter_map(|line| line.split_once(':')).collect();
        let one = |name: &str| {
            let mut all = headers
                .iter()
                .filter(|(known, _)| known.eq_ignore_ascii_case(name));
            let value = all.next()?.1.trim_matches(' ');
            let is_text = value.bytes().all(|b| (b' '..=b'~').contains(&b));
            (is_text && all.next().is_none()).then_some(value)
        };
        let is_word = |text: &str| text.bytes().all(|b| (b'!'..=b'~').contains(&b));
        if ![method, whole].into_iter().all(is_word) || whole.contains('#') {
            return None;
        }
        let (path, query) = whole.split_once('?').unwrap_or((whole, ""));
        Some(Self {
            asked: Asked {
                method,
                authority: one("host")?,
                tls: one("x-test-tls").is_some(),
                path,
                query,
                content_digest: one("content-digest")?,
            },
            input: one("signature-input")?,
            signature: one("signature")?,
            body: &data[end + 4..],
        })
    }

    fn check(&self, key: Option<&SigningKey>) -> Result<(), HttpRefusal> {
        Signature::parse(self.input, self.signature)?.check(key, &self.asked, NOW)
    }
}

/// `Signature` for what is asked, by RFC 9421 and not by the code under test.
fn sign(key: &SigningKey, asked: &Asked<'_>, input: &str) -> String {
    let (label, params) = input.split_once('=').unwrap_or(("sig", ""));
    let authority = asked.authority.to_ascii_lowercase();
    let port = if asked.tls { ":443" } else { ":80" };
    let base = format!(
        "\"@method\": {}\n\"@authority\": {}\n\"@path\": {}\n\"@query\": ?{}\n\"content-digest\": {}\n\"@signature-params\": {params}",
        asked.method,
        authority.strip_suffix(port).unwrap_or(&authority),
        asked.path,
        asked.query,
        asked.content_digest,
    );
    format!(
        "{label}=:{}:",
        base64(&mac(key.expose(), &[base.as_bytes()]))
    )
}

/// RFC 4648 section 4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let bits = three.iter().fold(0, |n, b| n << 8 | usize::from(*b)) << (8 * (3 - three.len()));
        for place in 0..4 {
            let digit = char::from(DIGITS[bits >> (18 - 6 * place) & 63]);
            text.push(if place <= three.len() { digit } else { '=' });
        }
    }
    text
}

fn is_timely(created: u64) -> bool {
    let ms = created * 1000;
    NOW.0.saturating_sub(ms) <= SKEW_MS && ms.saturating_sub(NOW.0) <= AHEAD_MS
}

/// Would the request be taken, as it stands?
pub fn is_taken(data: &[u8]) -> bool {
    let key = SigningKey::parse(KEY).unwrap();
    Sent::read(data).is_some_and(|sent| {
        sent.check(Some(&key)).is_ok() && check_body(sent.asked.content_digest, sent.body).is_ok()
    })
}

/// A signed request. As sent; and, where its `Signature-Input` is in the profile, signed anew with the right key, so that
/// what lies behind the MAC is reached whatever the bytes were.
pub fn signed(data: &[u8]) {
    let Some(sent) = Sent::read(data) else { return };
    let (key, other) = (
        SigningKey::parse(KEY).unwrap(),
        SigningKey::parse(OTHER).unwrap(),
    );
    let right = content_digest(sent.body);
    let is_right = check_body(sent.asked.content_digest, sent.body).is_ok();
    assert_eq!(is_right, sent.asked.content_digest == right);
    assert_eq!(check_body(&right, sent.body), Ok(()));
    let longer = [sent.body, b"x"].concat();
    assert_eq!(check_body(&right, &longer), Err(HttpRefusal::Body));

    let signature = sign(&key, &sent.asked, sent.input);
    let own = Sent {
        signature: &signature,
        ..sent
    };
    let taken = own.check(Some(&key));
    // What is taken is what this key signed over this request, in its one spelling.
    let as_sent = sent.check(Some(&key));
    if sent.signature == signature {
        assert_eq!(as_sent, taken);
    } else {
        assert!(as_sent.is_err_and(|why| why != HttpRefusal::Stale));
    }
    let parsed = match Signature::parse(own.input, own.signature) {
        Ok(parsed) => parsed,
        Err(why) => {
            assert!(matches!(why, HttpRefusal::Shape(_)) && taken == Err(why));
            return;
        }
    };
    let is_timely = is_timely(parsed.created);
    let due = if is_timely {
        Ok(())
    } else {
        Err(HttpRefusal::Stale)
    };
    assert_eq!(taken, due);
    assert_eq!(own.check(None), Err(HttpRefusal::Wrong));
    assert_eq!(own.check(Some(&other)), Err(HttpRefusal::Wrong));
    in_profile(own.input, &parsed);
    nothing_else(&own, &key, due);
    printed(&own.asked, &key, &parsed);
}

/// What the profile says, found again in the text.
fn in_profile(input: &str, parsed: &Signature<'_>) {
    let is_word = |text: &str| {
        text.bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
    };
    assert!(input.len() <= 1024 && !input.bytes().any(|b| b.is_ascii_control()));
    assert!((22..=64).contains(&parsed.nonce.len()) && is_word(parsed.nonce));
    assert!((1..=64).contains(&parsed.key_id.len()) && is_word(parsed.key_id));
    assert!(parsed.created < 1_000_000_000_000_000);
    let once = |text: String| assert_eq!(input.matches(&text).count(), 1, "{text}");
    once(format!(";created={}", parsed.created));
    once(format!(";nonce=\"{}\"", parsed.nonce));
    once(format!(";keyid=\"{}\"", parsed.key_id));
    once(format!(";tag=\"{TAG}\""));
    let params = input.matches(';').count();
    let has_alg = input.contains(";alg=\"hmac-sha256\"");
    assert_eq!(params, 4 + usize::from(has_alg), "{input}");
    for name in COMPONENTS {
        assert_eq!(input.matches(&format!("\"{name}\"")).count(), 1);
    }
}

/// Every change to what was signed is found; the case of the authority and its scheme's own port are no change.
fn nothing_else(own: &Sent<'_>, key: &SigningKey, due: Result<(), HttpRefusal>) {
    let asked = own.asked;
    let longer = [
        asked.method,
        asked.authority,
        asked.path,
        asked.query,
        asked.content_digest,
    ]
    .map(|text| format!("x{text}"));
    let [method, authority, path, query, content_digest] = &longer;
    for asked in [
        Asked { method, ..asked },
        Asked { authority, ..asked },
        Asked { path, ..asked },
        Asked { query, ..asked },
        Asked {
            content_digest,
            ..asked
        },
    ] {
        assert_eq!(
            Sent { asked, ..*own }.check(Some(key)),
            Err(HttpRefusal::Wrong)
        );
    }
    let upper = asked.authority.to_ascii_uppercase();
    assert_eq!(
        Sent {
            asked: Asked {
                authority: &upper,
                ..asked
            },
            ..*own
        }
        .check(Some(key)),
        due
    );
    let port = if asked.tls { ":443" } else { ":80" };
    if !asked.authority.ends_with(port) {
        let full = format!("{}{port}", asked.authority);
        let full = Asked {
            authority: &full,
            ..asked
        };
        assert_eq!(
            Sent {
                asked: full,
                ..*own
            }
            .check(Some(key)),
            due
        );
    }
    // A parameter's value, one bit of the MAC, a second spelling of it.
    let changed = |from: &str, to: &str| {
        let input = own.input.replacen(from, to, 1);
        let now = Sent {
            input: &input,
            ..*own
        }
        .check(Some(key));
        assert!(
            matches!(now, Err(HttpRefusal::Wrong | HttpRefusal::Shape(_))),
            "{input}: {now:?}"
        );
    };
    changed(";created=", ";created=1");
    changed(";nonce=\"", ";nonce=\"A");
    changed(";keyid=\"", ";keyid=\"A");
    if own.input.contains(";alg=") {
        changed(";alg=\"hmac-sha256\"", "");
    }
    let at = own.signature.find(':').unwrap() + 1;
    for (from, to) in [("A", "B"), ("/", "_"), ("+", "-"), ("=:", ":")] {
        let mac = own.signature[at..].replacen(from, to, 1);
        let signature = format!("{}{mac}", &own.signature[..at]);
        if signature != own.signature {
            assert!(
                Sent {
                    signature: &signature,
                    ..*own
                }
                .check(Some(key))
                .is_err()
            );
        }
    }
}

/// Written anew from what was read, under another label and for now: the same fields, and taken.
fn printed(asked: &Asked<'_>, key: &SigningKey, parsed: &Signature<'_>) {
    let list = COMPONENTS.map(|name| format!("\"{name}\"")).join(" ");
    for created in [parsed.created, NOW.0 / 1000] {
        let input = format!(
            "again=({list});created={created};nonce=\"{}\";keyid=\"{}\";tag=\"{TAG}\";alg=\"hmac-sha256\"",
            parsed.nonce, parsed.key_id
        );
        let signature = sign(key, asked, &input);
        let again = Signature::parse(&input, &signature).unwrap();
        assert_eq!(
            (again.created, again.nonce, again.key_id),
            (created, parsed.nonce, parsed.key_id)
        );
        assert_eq!(
            again.check(Some(key), asked, NOW).is_ok(),
            is_timely(created)
        );
        // The label is a name for this message alone.
        let other = |text: &str| text.replacen("again", "a-9_", 1);
        let (input, signature) = (other(&input), other(&signature));
        assert_eq!(Signature::parse(&input, &signature).as_ref(), Ok(&again));
    }
}
