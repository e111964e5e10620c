//! `portcullis approvals watch`: each request as a card when it comes, decided by a word and Enter. To allow, the word names
//! the card by its number: who asked can take a question back between two keys, and what is typed then must not meet the
//! next one.

use std::io::{BufRead as _, IsTerminal as _};

use portcullis_core::approval::Word;
use portcullis_core::auth::Scope;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::Interrupts;
use super::approvals::waits_for_others;
use super::failure::Failure;
use super::out::{self, Out, note};
use crate::client::{Client, Decider, Door, Incoming, Reach};
use crate::show::card::card;
use crate::show::text::{clean, document, now_ms};
use crate::show::value::{field, number};

/// What was asked on another connection; ids of this one are numbers.
const ELSEWHERE: &str = "elsewhere";

/// Watches until ctrl-C.
///
/// # Errors
/// [`Failure`]; a lost gateway too.
pub async fn run(door: &Door, out: Out) -> Result<u8, Failure> {
    let mut client = Client::connect(door, &[Scope::Approvals], &["exec-approvals"]).await?;
    let mut decider = Decider::new(door.clone());
    let mut interrupts = Interrupts::listen();
    let mut keys = keys(!out.json && std::io::stdin().is_terminal());
    let mut queue = Queue {
        waiting: Vec::new(),
        shown: None,
        number: 0,
        sent: None,
        out,
    };
    let mut listed = client.send("exec.approval.list", json!({})).await?;
    if !out.json {
        note("watching; ctrl-C ends it");
    }
    loop {
        tokio::select! {
            incoming = client.next() => match incoming? {
                Incoming::Event { event, payload, after_gap } => {
                    match event.as_str() {
                        "exec.approval.requested" => queue.add(payload)?,
                        "exec.approval.resolved" => queue.resolved(&payload)?,
                        _ => {}
                    }
                    if after_gap {
                        note("some events were lost: asking again for what waits");
                        listed = client.send("exec.approval.list", json!({})).await?;
                    }
                }
                Incoming::Answer { id, result } if id == listed => {
                    let Value::Array(pending) = result.map_err(|e| client.refusal(&e))? else { continue };
                    queue.is_now(pending)?;
                }
                Incoming::Answer { id, result } => {
                    queue.answered(&id, result.map_err(|e| client.refusal(&e)));
                }
            },
            Some(key) = keys.recv() => {
                if let Some((id, word)) = queue.key(&key) {
                    let shown = queue.waiting.iter().find(|a| field(a, "id") == id).cloned();
                    let result = tokio::select! {
                        result = decider.decide(&id, word, Reach::Usual, None, shown.as_ref()) => result,
                        () = interrupts.next() => return Ok(0),
                    };
                    queue.sent = Some((ELSEWHERE.to_owned(), id));
                    queue.answered(ELSEWHERE, result.map(|(_, answer)| answer));
                }
            }
            () = interrupts.next() => {
                client.close().await;
                return Ok(0);
            }
        }
        queue.show()?;
    }
}

/// What waits; the first is on the screen, and only it can be decided: nothing moves under the finger.
struct Queue {
    waiting: Vec<Value>,
    shown: Option<String>,
    /// Of the card that is shown; each has its own.
    number: u64,
    sent: Option<(String, String)>,
    out: Out,
}

impl Queue {
    /// What waits, as the gateway lists it: what is not on the list waits no more.
    fn is_now(&mut self, pending: Vec<Value>) -> Result<(), Failure> {
        let on_list = |id: &str| pending.iter().any(|a| field(a, "id") == id);
        let gone: Vec<String> = self
            .waiting
            .iter()
            .map(|a| field(a, "id").to_owned())
            .filter(|id| !on_list(id))
            .collect();
        for id in gone {
            if self.out.json {
                out::line(&document(&json!({ "type": "gone", "id": id })))?;
            }
            self.drop(&id);
        }
        for approval in pending {
            self.add(approval)?;
        }
        Ok(())
    }

    fn add(&mut self, approval: Value) -> Result<(), Failure> {
        if self
            .waiting
            .iter()
            .any(|a| field(a, "id") == field(&approval, "id"))
        {
            return Ok(());
        }
        if self.out.json {
            out::line(&document(
                &json!({ "type": "requested", "approval": approval }),
            ))?;
        }
        self.waiting.push(approval);
        Ok(())
    }

    fn resolved(&mut self, payload: &Value) -> Result<(), Failure> {
        let id = field(payload, "id");
        if self.out.json {
            out::line(&document(
                &json!({ "type": "resolved", "approval": payload }),
            ))?;
        } else if self.waiting.iter().any(|a| field(a, "id") == id) {
            let by = match field(payload, "resolvedBy") {
                "" => "the gateway",
                by => by,
            };
            out::line(&format!(
                "{}: {} by {}",
                clean(id),
                clean(decision(payload)),
                clean(by)
            ))?;
        }
        self.drop(id);
        Ok(())
    }

    fn drop(&mut self, id: &str) {
        self.waiting.retain(|a| field(a, "id") != id);
        if self.shown.as_deref() == Some(id) {
            self.shown = None;
        }
    }

    fn answered(&mut self, request: &str, result: Result<Value, Failure>) {
        let Some((_, id)) = self.sent.take_if(|(sent, _)| sent == request) else {
            return;
        };
        match result {
            // The `resolved` event takes the card away and says who decided.
            Ok(answer) => {
                if let Some(waits) = waits_for_others(&answer) {
                    note(&format!("{}: {waits}", clean(&id)));
                    self.drop(&id);
                }
            }
            Err(failure) => {
                note(failure.lines().trim_end());
                self.drop(&id);
            }
        }
    }

    /// What a line typed decides, if it decides.
    fn key(&self, key: &str) -> Option<(String, Word)> {
        let id = self.shown.clone()?;
        if self.sent.is_some() {
            return None;
        }
        let number = self.number;
        match key.trim() {
            "d" | "deny" => Some((id, Word::Deny)),
            "" => None,
            typed
                if typed
                    .strip_prefix('a')
                    .is_some_and(|n| n == number.to_string()) =>
            {
                Some((id, Word::AllowOnce))
            }
            typed if typed.starts_with('a') && typed[1..].parse::<u64>().is_ok() => {
                note(&format!(
                    "that is not the card that is shown: nothing is decided; a{number} and Enter allows this one once"
                ));
                None
            }
            _ => {
                note(&format!(
                    "d and Enter denies, a{number} and Enter allows once"
                ));
                None
            }
        }
    }

    fn show(&mut self) -> Result<(), Failure> {
        let now = now_ms();
        self.waiting
            .retain(|a| number(a, "expiresAtMs").is_none_or(|at| at > now));
        if self.out.json
            || self
                .shown
                .as_ref()
                .is_some_and(|id| self.waiting.iter().any(|a| field(a, "id") == id))
        {
            return Ok(());
        }
        self.shown = None;
        let Some(first) = self.waiting.first() else {
            return Ok(());
        };
        let more = match self.waiting.len() - 1 {
            0 => String::new(),
            n => format!("  ({n} more behind it)"),
        };
        self.number += 1;
        out::write(&format!(
            "\n{}  [d] deny   [a{}] allow once, then Enter{more}\n",
            card(first),
            self.number
        ))?;
        self.shown = Some(field(first, "id").to_owned());
        Ok(())
    }
}

fn decision(payload: &Value) -> &str {
    match field(payload, "decision") {
        "" => "expired",
        decision => decision,
    }
}

/// Lines typed. Without a terminal none come: cards are shown, decisions are made elsewhere.
fn keys(terminal: bool) -> mpsc::Receiver<String> {
    let (tx, rx) = mpsc::channel(1);
    if terminal {
        std::thread::spawn(move || {
            for line in std::io::stdin().lock().lines() {
                let Ok(line) = line else { return };
                if tx.blocking_send(line).is_err() {
                    return;
                }
            }
        });
    }
    rx
}

#[cfg(test)]
mod tests {
    use super::*;

    fn approval(id: &str) -> Value {
        json!({"id": id, "expiresAtMs": now_ms() + 60_000, "request": {"argv": ["x"]}})
    }

    #[test]
    fn a_key_decides_on_the_card_that_is_shown_and_once() {
        let mut queue = Queue {
            waiting: vec![],
            shown: None,
            number: 0,
            sent: None,
            out: Out { json: false },
        };
        assert_eq!(queue.key("a"), None);
        queue.add(approval("one")).unwrap();
        queue.show().unwrap();
        queue.add(approval("two")).unwrap();
        queue.add(approval("two")).unwrap();
        queue.show().unwrap();
        assert_eq!(queue.key("a1"), Some(("one".into(), Word::AllowOnce)));
        assert_eq!(queue.key("a"), None);
        assert_eq!(queue.key("yes"), None);
        queue.sent = Some(("9".into(), "one".into()));
        assert_eq!(queue.key("d"), None);
        queue.answered("9", Ok(json!({"ok": true})));
        queue
            .resolved(&json!({"id": "one", "decision": "allow-once", "resolvedBy": "uid:0"}))
            .unwrap();
        queue.show().unwrap();
        assert_eq!(queue.key(" d "), Some(("two".into(), Word::Deny)));
    }

    /// The bug: who asked took his question back between the letter and Enter, and the next card was allowed.
    #[test]
    fn what_was_typed_for_a_card_that_is_gone_allows_no_other() {
        let mut queue = Queue {
            waiting: vec![approval("one"), approval("two")],
            shown: None,
            number: 0,
            sent: None,
            out: Out { json: false },
        };
        queue.show().unwrap();
        queue
            .resolved(&json!({"id": "one", "resolvedBy": "uid:0"}))
            .unwrap();
        queue.show().unwrap();
        for typed in ["a1", "a", "allow", "a01", "a 1", "a0", "a12", "A2"] {
            assert_eq!(queue.key(typed), None, "{typed}");
        }
        assert_eq!(queue.key("a2"), Some(("two".into(), Word::AllowOnce)));
    }

    #[test]
    fn after_a_gap_the_list_says_what_waits() {
        let mut queue = Queue {
            waiting: vec![],
            shown: None,
            number: 0,
            sent: None,
            out: Out { json: false },
        };
        queue
            .is_now(vec![approval("one"), approval("two")])
            .unwrap();
        queue.show().unwrap();
        assert_eq!(queue.key("a1"), Some(("one".into(), Word::AllowOnce)));
        queue
            .is_now(vec![approval("two"), approval("three")])
            .unwrap();
        assert_eq!(queue.key("a1"), None, "the card is gone");
        queue.show().unwrap();
        assert_eq!(queue.key("d"), Some(("two".into(), Word::Deny)));
        assert_eq!(queue.waiting.len(), 2);
    }
}
