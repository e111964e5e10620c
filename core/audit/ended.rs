//! Which credentials have ended: the log takes no intent under an older generation of theirs. The log is the one place
//! where acts and the end of a credential have an order, so the rule holds for every room and every door.

use super::entry::Entry;
use super::hash::Seq;
use std::collections::{BTreeMap, VecDeque};

/// Most names kept. Sessions of one that was ended so many ends ago are long closed.
const KEPT: usize = 8_192;
/// Key in an entry's detail: the generation under which somebody acts.
pub(super) const GENERATION: &str = "generation";
/// Key in an entry's detail: the secret, `@`, and the generation of it under which somebody acts.
pub(super) const SECRET: &str = "secret";
/// Key in an entry's detail: who gave the word for it ahead, `@`, and under which generation.
pub(super) const GIVEN_BY: &str = "given_by";
/// Key in an entry's detail: the name whose generations end with this record.
pub(super) const ENDS: &str = "ends";

impl Entry {
    /// Done under this generation of its principal's credential. Once that has ended, the log refuses the entry.
    #[must_use]
    pub fn under(self, generation: u64) -> Self {
        self.with(GENERATION, generation.to_string())
    }

    /// Done by who came in with this generation of a secret. Once that has ended, the log refuses the entry.
    #[must_use]
    pub fn by_secret(self, name: impl std::fmt::Display, generation: u64) -> Self {
        self.with(SECRET, format!("{name}@{generation}"))
    }

    /// Done on the word that this one gave ahead, under this generation. Once that has ended, the log refuses the entry.
    #[must_use]
    pub fn given_by(self, name: impl std::fmt::Display, generation: u64) -> Self {
        self.with(GIVEN_BY, format!("{name}@{generation}"))
    }

    /// The act ends every generation of this principal that is older than its own sequence.
    #[must_use]
    pub fn ending(self, principal: impl Into<String>) -> Self {
        self.with(ENDS, principal)
    }

    /// See [`Self::ending`].
    pub fn ends(&self) -> Option<&str> {
        self.detail.get(ENDS).map(String::as_str)
    }

    /// What it rests on, each with its generation: its principal, where that has one, and a secret.
    pub fn standings(&self) -> impl Iterator<Item = (&str, u64)> {
        let principal = self
            .detail
            .get(GENERATION)
            .and_then(|generation| Some((self.principal.as_deref()?, generation.parse().ok()?)));
        let named = [SECRET, GIVEN_BY].into_iter().filter_map(|key| {
            let (name, generation) = self.detail.get(key)?.rsplit_once('@')?;
            Some((name, generation.parse().ok()?))
        });
        principal.into_iter().chain(named)
    }
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Ended {
    /// The generations below which nothing is taken; the newest counts, the one before it comes back where the act of
    /// the newest failed.
    below: BTreeMap<String, (Seq, Option<Seq>)>,
    order: VecDeque<(Seq, String)>,
}

impl Ended {
    /// The intent of an act that ends a credential is in the log.
    pub fn begin(&mut self, name: &str, seq: Seq) {
        let before = self.below.get(name).map(|(seq, _)| *seq);
        self.below.insert(name.to_owned(), (seq, before));
        self.order.push_back((seq, name.to_owned()));
        while self.order.len() > KEPT {
            let Some((seq, name)) = self.order.pop_front() else {
                return;
            };
            if self.below.get(&name).is_some_and(|(now, _)| *now == seq) {
                self.below.remove(&name);
            }
        }
    }

    /// An act was not done: what it would have ended lives on.
    pub fn undone(&mut self, intent: Seq) {
        let named = self.order.iter().rev().find(|(seq, _)| *seq == intent);
        let Some((_, name)) = named.cloned() else {
            return;
        };
        if let Some((now, before)) = self.below.get(&name).copied()
            && now == intent
        {
            match before {
                Some(before) => self.below.insert(name, (before, None)),
                None => self.below.remove(&name),
            };
        }
    }

    /// Has this generation of that principal ended?
    pub fn has(&self, name: &str, generation: u64) -> bool {
        self.below
            .get(name)
            .is_some_and(|(seq, _)| generation < seq.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_generation_has_ended_unless_the_act_failed() {
        let mut ended = Ended::default();
        ended.begin("device:a", Seq(10));
        assert!(ended.has("device:a", 9) && !ended.has("device:a", 10));
        assert!(!ended.has("device:b", 9));
        ended.begin("device:a", Seq(20));
        assert!(ended.has("device:a", 10));
        ended.undone(Seq(20));
        assert!(ended.has("device:a", 9) && !ended.has("device:a", 10));
        ended.undone(Seq(10));
        // Its own word before the last is not kept: what has ended stays ended.
        ended.begin("device:a", Seq(30));
        ended.undone(Seq(29));
        assert!(ended.has("device:a", 29));
    }

    #[test]
    fn an_entry_rests_on_its_device_and_on_its_secret() {
        let entry = Entry {
            principal: Some("device:a".to_owned()),
            ..Entry::new("vault.set")
        };
        let entry = entry.under(7).by_secret("password:ann@example.org", 9);
        let standings: Vec<_> = entry.standings().collect();
        assert_eq!(
            standings,
            [("device:a", 7), ("password:ann@example.org", 9)]
        );
        assert_eq!(Entry::new("vault.set").standings().count(), 0);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut ended = Ended::default();
        for n in 0..20_000 {
            ended.begin(&format!("device:{n}"), Seq(n + 1));
        }
        assert_eq!((ended.below.len(), ended.order.len()), (KEPT, KEPT));
        assert!(ended.has("device:19999", 19_999));
    }
}
