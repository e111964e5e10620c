//! Does a new document allow anything that the old one did not?

use std::collections::BTreeSet;

use super::Mode;
use super::document::Document;

/// What a change does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Diff {
    /// Somewhere something is freer, whatever else is stricter: a person decides.
    Loosens,
    /// Nothing is freer, something is stricter: holds at once.
    Tightens,
    /// Means the same.
    Same,
}

/// Compares what two documents mean, for every agent that either names and for all others.
pub fn diff(old: &Document, new: &Document) -> Diff {
    let named: BTreeSet<&str> = old.agents().chain(new.agents()).collect();
    let (mut loosens, mut differs) = compare(old.defaults().mode(), new.defaults().mode());
    for agent in named {
        let (looser, different) = compare(old.settings(agent).mode(), new.settings(agent).mode());
        let added = new
            .entries(agent)
            .any(|e| !old.entries(agent).any(|o| o.covers(e)));
        let removed = old
            .entries(agent)
            .any(|o| !new.entries(agent).any(|e| e.covers(o)));
        // What is refused by name counts the other way round.
        let refused = new
            .denied(agent)
            .any(|e| !old.denied(agent).any(|o| o.covers(e)));
        let freed = old
            .denied(agent)
            .any(|o| !new.denied(agent).any(|e| e.covers(o)));
        loosens |= looser || added || freed;
        differs |= different || added || removed || refused || freed;
    }
    match (loosens, differs) {
        (true, _) => Diff::Loosens,
        (false, true) => Diff::Tightens,
        (false, false) => Diff::Same,
    }
}

fn compare(old: Mode, new: Mode) -> (bool, bool) {
    (!new.within(old), new != old)
}
