//! Hosts that are not on a box's list: a person may be asked about them. Questions go up as news, what was said comes down as the latest value,
//! and only what is durable is in it; the room above that asks people owns both.

use std::sync::Arc;

use portcullis_core::approval::{HostAsked, HostWord};
use portcullis_core::egress::{Host, Refusal};
use tokio::time::timeout;

use super::wiring::EgressWiring;
use crate::supervision::{Feed, Flag, FlagReader};

/// Between boxes' ways out and who asks people. Made once, so that both survive each other's restarts.
#[derive(Debug, Clone)]
pub struct HostQuestions {
    /// What boxes ask. Lossy: a box that gets no answer asks again.
    pub asks: Feed<HostAsked>,
    /// What has been said and holds.
    pub words: Arc<Flag<Arc<[HostWord]>>>,
}

impl HostQuestions {
    /// Nothing was asked and nothing said.
    pub fn new() -> Self {
        Self {
            asks: Feed::new(),
            words: Arc::new(Flag::new(Arc::from([]))),
        }
    }
}

impl Default for HostQuestions {
    fn default() -> Self {
        Self::new()
    }
}

/// The word that lets a box out to a host: its id, and whether it still holds.
pub struct Said {
    /// The question or grant.
    pub id: String,
    words: FlagReader<Arc<[HostWord]>>,
}

impl Said {
    /// Until it does not hold any more.
    pub async fn ended(&mut self) {
        let id = self.id.clone();
        let holds = |words: &Arc<[HostWord]>| words.iter().any(|word| word.id == id);
        // Also where nobody says anything any more.
        let _ = self.words.until(|words| !holds(words)).await;
    }
}

/// Asks about a host that is not on the list, and waits a little for the answer.
///
/// # Errors
/// `otherwise`, where nobody is to be asked; else that somebody was, or what he said.
pub async fn ask(
    wiring: &EgressWiring,
    host: &Host,
    port: u16,
    otherwise: Refusal,
) -> Result<Said, Refusal> {
    let (Some(agent), Some(questions), Host::Name(_)) =
        (&wiring.asks_for, &wiring.ways.questions, host)
    else {
        return Err(otherwise);
    };
    let target = format!("{host}:{port}");
    let mut words = questions.words.reader();
    let find = |words: &Arc<[HostWord]>| {
        let about = |word: &&HostWord| word.is_about(agent.as_str(), &wiring.id, &target);
        // Of two the no.
        words
            .iter()
            .filter(about)
            .min_by_key(|word| word.is_allowed)
            .cloned()
    };
    let mut found = find(&words.get());
    if found.is_none() {
        questions.asks.publish(HostAsked {
            agent: agent.clone(),
            id: wiring.id.clone(),
            host: target.clone(),
        });
        let within = wiring.ways.limits.ask;
        let said = timeout(within, words.until(|words| find(words).is_some())).await;
        found = said.ok().flatten().and_then(|words| find(&words));
    }
    match found {
        Some(word) if word.is_allowed => Ok(Said { id: word.id, words }),
        Some(_) => Err(Refusal::SaidNo(host.clone(), port)),
        None => Err(Refusal::Waits(host.clone(), port)),
    }
}
