//! What stays in the gateway's memory of a secret that was set or given to a run: searched for in the live process.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::support::gateway::Gateway;
use crate::support::ws::{Client, Connect, Device, admin, hex, join, random};

/// For what is under way to be over.
const SETTLED: Duration = Duration::from_millis(500);
const CHUNK: usize = 1 << 20;

/// Each place of these bytes in what the process has mapped and written, with what stands around it.
fn places(pid: u32, wanted: &[u8]) -> Vec<String> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut found = vec![];
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (range, rights) = (words.next().unwrap(), words.next().unwrap());
        let name = words.nth(3).unwrap_or("");
        if !rights.starts_with("rw") || name.starts_with("[v") {
            continue;
        }
        let (from, to) = range.split_once('-').unwrap();
        let number = |text| u64::from_str_radix(text, 16).unwrap();
        let (mut at, end) = (number(from), number(to));
        let mut buffer = vec![0; CHUNK + wanted.len()];
        while at < end {
            let most = usize::try_from(end - at).unwrap().min(buffer.len());
            // A page that went away meanwhile has nothing.
            let read = memory.read_at(&mut buffer[..most], at).unwrap_or(0);
            for place in memchr(&buffer[..read], wanted) {
                let around = &buffer[place.saturating_sub(60)..(place + 90).min(read)];
                let around = String::from_utf8_lossy(around).replace(|c: char| c.is_control(), ".");
                found.push(format!("{:x} in {name:?}: {around}", at + place as u64));
            }
            at += if most > CHUNK {
                CHUNK as u64
            } else {
                most as u64
            };
        }
    }
    found
}

fn memchr(all: &[u8], wanted: &[u8]) -> Vec<usize> {
    let first = wanted[0];
    let mut found = vec![];
    let mut from = 0;
    while let Some(next) = all[from..].iter().position(|byte| *byte == first) {
        let at = from + next;
        if all[at..].starts_with(wanted) {
            found.push(at);
        }
        from = at + 1;
    }
    found
}

fn secret(name: &str) -> String {
    format!("{name}-{}", hex(&random::<24>()))
}

/// The middle of it: a copy that lost its ends is one all the same.
fn middle(text: &str) -> &[u8] {
    let from = text.len() / 3;
    &text.as_bytes()[from..(from + 40).min(text.len() - 4)]
}

/// The bug: buffers of sockets, frames and decoders kept what had passed through them until something else did.
#[tokio::test(flavor = "multi_thread")]
async fn no_copy_of_a_secret_stays_in_the_gateways_memory_when_it_was_set_or_given() {
    let gateway = Gateway::start();
    gateway.vault_is_open();
    let set =
        |name: &str, value: &str| json!({ "name": name, "valueBase64": STANDARD.encode(value) });
    let text = secret("by-text");
    let device = Device::new();
    let connect = Connect::token().device(&device).scopes(&["operator.admin"]);
    let (mut by, _) = join(&gateway, &connect).await;
    by.get("vault.set", set("BY_TEXT", &text)).await;
    let packed = secret("by-msgpack");
    let mut other = Client::dial_packed(&gateway).await;
    other.hello(&connect).await;
    other.get("vault.set", set("BY_MSGPACK", &packed)).await;
    let long = format!("{}-{}", secret("long"), hex(&random::<10_000>()));
    by.get("vault.set", set("LONG", &long)).await;
    let typed = secret("by-cli");
    assert_eq!(
        gateway.feed(&["vault", "set", "BY_CLI"], typed.as_bytes()),
        0
    );
    // What is refused has been read all the same.
    let refused = secret("refused");
    let answer = by.call("vault.set", set("not a name", &refused)).await;
    assert_eq!(answer["ok"], false);
    let phrase = secret("a passphrase");
    let params = json!({ "passphraseBase64": STANDARD.encode(&phrase) });
    let mut control = admin(&gateway).await;
    control.get("vault.export", params).await;
    // Given to a run.
    gateway.json(&["vault", "bind", "BY_CLI", "--agent", "demo"]);
    let words = [
        "exec", "--agent", "demo", "--secret", "S=BY_CLI", "--", "true",
    ];
    assert_eq!(gateway.cli(&words).status.code(), Some(0));
    tokio::time::sleep(SETTLED).await;
    // The search sees what is there: a name is no secret.
    assert!(!places(gateway.pid(), b"BY_MSGPACK").is_empty());
    let mut all = vec![];
    for (what, value) in [
        ("text", text),
        ("msgpack", packed),
        ("long", long),
        ("cli and run", typed),
        ("refused", refused),
        ("passphrase", phrase),
    ] {
        let encoded = STANDARD.encode(&value);
        for (how, text) in [("plain", &value), ("base64", &encoded)] {
            for place in places(gateway.pid(), middle(text)) {
                all.push(format!("{what}, {how}: {place}"));
            }
        }
    }
    assert!(all.is_empty(), "{} copies:\n{}", all.len(), all.join("\n"));
}
