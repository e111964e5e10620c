//! One function for each parser of core and cell but those of the wire ([`super::wire`]): no bytes make it panic, and what
//! it takes has one form only.

use std::fmt::Write as _;

use portcullis_cell::Decoder;
use portcullis_core::approval::PlanSealer;
use portcullis_core::audit::{
    Head, Scanner, SegmentHeader, Seq, Step, TAG, decode_leaf, encode_record, leaf_hash,
};
use portcullis_core::device::{self, Claim, DeviceKey, SignedVersion};
use portcullis_core::identity::{BootKey, Identity};
use portcullis_core::ids::{AgentId, DeviceId, RunId};
use portcullis_core::plan::{self, EnvPolicy, ExecPlan};
use portcullis_core::policy::{Document, kind_of, may_always, shell};
use portcullis_core::token::Token;
use portcullis_core::{display, encoding, vault};
use serde_json::Value;

/// A target's name and function.
pub type Target = (&'static str, fn(&[u8]));

/// Each of them.
pub const ALL: &[Target] = &[
    ("cell", cell),
    ("record", record),
    ("segment", segment),
    ("policy", policy),
    ("shell_line", shell_line),
    ("plan", plan),
    ("device", device),
    ("shown", shown),
    ("names", names),
];

pub(crate) fn text(data: &[u8]) -> Option<&str> {
    std::str::from_utf8(data).ok()
}

/// Nothing that hides, reorders or steers.
pub(crate) fn is_clean(text: &str) {
    assert!(!display::has_hidden(text), "{text:?}");
    assert!(!text.chars().any(char::is_control), "{text:?}");
}

/// The cell's frames, whole and in two pieces.
pub fn cell(data: &[u8]) {
    let cut = |pieces: &[&[u8]]| {
        let (mut decoder, mut frames, mut end) = (Decoder::new(), vec![], None);
        for piece in pieces {
            decoder.push(piece);
            loop {
                match decoder.next_frame() {
                    Ok(Some(frame)) => frames.push(frame),
                    Ok(None) => break,
                    Err(error) => {
                        end = Some(error);
                        break;
                    }
                }
            }
        }
        (frames, end)
    };
    let (frames, end) = cut(&[data]);
    let middle = data.len() / 2;
    let in_two = cut(&[&data[..middle], &data[middle..]]);
    assert_eq!((&frames, &end), (&in_two.0, &in_two.1));
    // One form each.
    let mut again = vec![];
    for frame in &frames {
        frame.encode(&mut again).unwrap();
    }
    assert!(data.starts_with(&again));
}

/// A leaf of the audit log.
pub fn record(data: &[u8]) {
    let Ok(leaf) = decode_leaf(data) else { return };
    let hash = leaf_hash(data);
    let record = leaf.to_record(hash);
    let Some(before) = record.seq.0.checked_sub(1) else {
        return;
    };
    let head = Head {
        seq: Seq(before),
        hash: record.prev,
    };
    let mut again = vec![];
    // One form each: what is read is written back byte for byte.
    let (stamp, boot) = (record.stamp, record.boot);
    encode_record(&mut again, head, stamp, boot, &record.body, None).unwrap();
    let mut again = again[4..again.len() - 32].to_vec();
    if leaf.is_tagged {
        // The version, the length and the tag are what differs.
        let at = b"portcullis-audit".len();
        again[at..at + 5].copy_from_slice(&data[at..at + 5]);
        again.extend_from_slice(&data[data.len() - TAG..]);
    }
    assert_eq!(again, data);
    serde_json::to_vec(&record).unwrap();
}

/// A segment of the audit log, from its header on.
pub fn segment(data: &[u8]) {
    let start = portcullis_core::audit::HEADER_BYTES.min(data.len());
    let (header, records) = data.split_at(start);
    let head = match SegmentHeader::decode(header) {
        Ok(decoded) => {
            assert_eq!(decoded.encode(), header);
            assert_eq!(
                SegmentHeader::first_of_name(&decoded.file_name()),
                Some(decoded.first())
            );
            decoded.after
        }
        Err(error) => {
            let _ = error.to_string();
            Head::EMPTY
        }
    };
    let mut scanner = Scanner::new(head, 0);
    let mut at = 0;
    loop {
        let before = scanner.offset();
        match scanner.step(&records[at..], true) {
            Step::Record { leaf, hash, bytes } => {
                assert!(bytes > 0 && scanner.offset() == before + bytes as u64);
                assert_eq!(leaf.to_record(hash).hash, hash);
                at += bytes;
            }
            Step::More(_) | Step::ZerosSoFar(_) => panic!("the file ends here"),
            Step::End | Step::Torn(_) | Step::Altered(_) => return,
        }
    }
}

/// The approvals document.
pub fn policy(data: &[u8]) {
    let Ok(value) = serde_json::from_slice::<Value>(data) else {
        return;
    };
    let Ok(document) = Document::parse(value) else {
        return;
    };
    let again = Document::parse(document.to_json()).unwrap();
    assert_eq!(document.hash(), again.hash());
    for agent in document.agents() {
        let _ = document.settings(agent);
        assert_eq!(
            document.entries(agent).count(),
            again.entries(agent).count()
        );
    }
    let _ = document.resolved_defaults();
}

/// A line for a shell: what is taken as certain is so however its words are quoted.
pub fn shell_line(data: &[u8]) {
    let read = shell::read_bytes(data);
    if !read.is_certain() {
        return;
    }
    let line = text(data).unwrap();
    assert!((1..=shell::MAX_COMMANDS).contains(&read.commands.len()));
    let mut again = String::new();
    for command in &read.commands {
        assert!(command.starts.iter().all(|at| line.is_char_boundary(*at)));
        if !again.is_empty() {
            again.push_str(if command.piped { " | " } else { "; " });
        }
        for word in &command.argv {
            let _ = write!(again, "'{}' ", word.replace('\'', "'\\''"));
        }
    }
    if again.len() > shell::MAX_LINE {
        return;
    }
    let again = shell::read(&again);
    assert!(again.is_certain(), "{:?}", again.unclear);
    let words = |line: &shell::Line| -> Vec<(Vec<String>, bool)> {
        let all = line.commands.iter();
        all.map(|c| (c.argv.clone(), c.piped)).collect()
    };
    assert_eq!(words(&read), words(&again));
}

/// A kept plan, and what policy and people see of it.
pub fn plan(data: &[u8]) {
    let identity = Identity::from_random([7; 32]);
    let place = portcullis_core::approval::Place {
        kind: "plan",
        id: "x",
        intent: 1,
    };
    assert!(PlanSealer::of(&identity).open(place, data).is_none());
    let Ok(plan) = ExecPlan::from_json(data) else {
        return;
    };
    let again = ExecPlan::from_json(&plan.to_json()).unwrap();
    assert_eq!(plan.plan_hash(), again.plan_hash());
    assert_eq!(plan.subject_hash(), again.subject_hash());
    assert_eq!(plan.canonical(), again.canonical());
    is_clean(&plan.command_line());
    is_clean(&plan.redacted_line());
    let _ = (kind_of(&plan), may_always(&plan));
}

/// A device's key, its signature, and what it says of itself: fields between zero bytes.
pub fn device(data: &[u8]) {
    let Some(text) = text(data) else { return };
    let fields: Vec<&str> = text.split('\0').collect();
    let field = |n: usize| fields.get(n).copied().unwrap_or_default();
    let mut id = field(1).to_owned();
    if let Ok(key) = DeviceKey::parse(field(0)) {
        assert_eq!(DeviceKey::parse(&key.to_text()).unwrap().id(), key.id());
        assert_eq!(
            DeviceKey::from_raw(&key.canonical_bytes()).unwrap().id(),
            key.id()
        );
        assert!(!key.verify(b"never signed", data));
        if id.is_empty() {
            id = key.id();
        }
    }
    let scopes: Vec<String> = field(4).split(',').map(str::to_owned).collect();
    let claim = Claim {
        device_id: &id,
        public_key: field(0),
        signature: field(2),
        signed_at_ms: 1_000,
        nonce: field(3),
        client_id: field(5),
        client_mode: field(6),
        role: field(7),
        scopes: &scopes,
        token: field(8),
        platform: field(9),
        device_family: field(10),
    };
    let _ = device::signed_text(&claim, SignedVersion::V3);
    if let Ok(verified) = device::verify(&claim, "nonce", 1_000) {
        assert_eq!((verified.id.as_str(), claim.nonce), (id.as_str(), "nonce"));
    }
}

/// Text of others, as a person is shown it.
pub fn shown(data: &[u8]) {
    let Some(text) = text(data) else { return };
    let shown = display::visible(text);
    is_clean(&shown);
    assert_eq!(unescaped(&shown), text, "different texts stay different");
    is_clean(&display::quoted(text));
    let argv: Vec<&str> = text.split('\n').collect();
    is_clean(&display::command_line(&argv));
    is_clean(&display::redacted_line(&argv));
}

/// The way back from what is shown.
fn unescaped(shown: &str) -> String {
    let mut text = String::new();
    let mut rest = shown;
    while let Some((plain, escape)) = rest.split_once('\\') {
        text.push_str(plain);
        let mut after = escape.chars();
        match after.next() {
            Some('n') => text.push('\n'),
            Some('r') => text.push('\r'),
            Some('t') => text.push('\t'),
            Some('0') => text.push('\0'),
            Some('\\') => text.push('\\'),
            Some('u') => {
                let (hex, behind) = after.as_str()[1..].split_once('}').unwrap();
                text.push(char::from_u32(u32::from_str_radix(hex, 16).unwrap()).unwrap());
                rest = behind;
                continue;
            }
            other => panic!("{other:?}"),
        }
        rest = after.as_str();
    }
    text.push_str(rest);
    text
}

/// Names, tokens, keys, paths: everything that is one word.
pub fn names(data: &[u8]) {
    let identity = Identity::from_random([7; 32]);
    assert!(identity.open(BootKey::Pepper, data).is_err());
    let Some(text) = text(data) else { return };
    if let Ok((_, token)) = Token::parse(text) {
        assert!(token.hash().matches(token.expose()));
    }
    if let Ok(identity) = Identity::parse(text) {
        let again = Identity::parse(&identity.to_text()).unwrap();
        assert_eq!(identity.check(), again.check());
    }
    for known in [
        AgentId::new(text).map(|id| id.as_str().to_owned()),
        DeviceId::new(text).map(|id| id.as_str().to_owned()),
        RunId::new(text).map(|id| id.as_str().to_owned()),
    ]
    .into_iter()
    .flatten()
    {
        is_clean(&known);
        assert_eq!(known, text);
    }
    if let Some(first) = SegmentHeader::first_of_name(text) {
        assert_eq!(format!("{:016}.log", first.0), text);
    }
    if let Some(bytes) = encoding::unhex::<32>(text) {
        assert_eq!(encoding::hex(&bytes), text);
    }
    if let Some(bytes) = encoding::from_base64url(text) {
        assert_eq!(encoding::base64url(&bytes), text);
    }
    if vault::check_name(text).is_ok() {
        is_clean(text);
    }
    if plan::is_canonical_path(text) {
        assert!(text.starts_with('/') && !text.contains("//") && !text.contains('\0'));
        assert!(!text.split('/').any(|part| part == ".." || part == "."));
    }
    if let Ok(policy) = EnvPolicy::new([text]) {
        assert!(!plan::steers(text));
        let _ = policy.check(&plan::Target::Host, text);
    }
}
