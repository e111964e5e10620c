//! Whether two words are those of two people, as far as it is known who let whom in, and when.

use std::collections::BTreeSet;

use super::machine::Machine;
use super::{Credential, Refusal, Signer, Vote, Word};
use crate::auth::Principal;
use crate::ids::DeviceId;
use crate::pairing::LetIn;

/// A key, and how it came in; none where it is not paired any more.
pub type Key = (DeviceId, Option<LetIn>);

/// Who is about to say something, with the keys that he has for it.
#[derive(Debug, Clone, Copy)]
pub struct Speaker<'a> {
    /// Who comes.
    pub by: &'a Principal,
    /// Who signs, where that is another key.
    pub signer: Option<&'a Signer>,
    /// The device of either, and that which opened the page.
    pub keys: &'a [Key],
}

impl Speaker<'_> {
    fn names(&self) -> BTreeSet<String> {
        let own = Some(self.by.name()).filter(|name| name != "token");
        let signer = self.signer.map(|signer| &signer.credential);
        let credentials = [Credential::of(self.by).as_ref(), signer].map(|c| c.map(name_of));
        own.into_iter()
            .chain(self.by.behind())
            .chain(credentials.into_iter().flatten())
            .chain(self.signer.and_then(|s| s.user).map(user))
            .chain(names_of(self.keys))
            .collect()
    }
}

fn name_of(credential: &Credential) -> String {
    format!("device:{}", credential.device)
}

fn user(uid: u32) -> String {
    format!("uid:{uid}")
}

/// Of the keys, and of the users of this machine who made them.
fn names_of(keys: &[Key]) -> impl Iterator<Item = String> {
    keys.iter().flat_map(|(device, came)| {
        let user = came.as_ref().and_then(|came| came.user).map(user);
        [Some(format!("device:{device}")), user]
            .into_iter()
            .flatten()
    })
}

fn let_in_by(keys: &[Key], who: &BTreeSet<String>) -> bool {
    let mut came = keys.iter().filter_map(|(_, came)| came.as_ref());
    came.any(|came| !came.by.is_disjoint(who))
}

impl Machine {
    /// Does this word count beside those that were said, as another person's? To be asked before [`Self::decide`], with how
    /// each key came in: the speaker's, and those of the votes. A no frees nothing, and is anybody's.
    ///
    /// # Errors
    /// [`Refusal::CameAfter`], [`Refusal::SelfThroughAnother`], [`Refusal::SameVoter`].
    pub fn counts(
        &self,
        id: &str,
        word: Word,
        who: Speaker<'_>,
        voted: &[Key],
    ) -> Result<(), Refusal> {
        let record = self.get(id)?;
        if word == Word::Deny || self.deciding.demands.needed(record) < 2 {
            return Ok(());
        }
        // Who has said something can let in as many as he likes: what came since counts for nobody, but for a key that the
        // kernel says is a user's of this machine, who is himself.
        let came = who.keys.iter().filter_map(|(_, came)| came.as_ref());
        let mut late = came.filter(|came| came.at.max(came.approved) >= record.created);
        if late.any(|came| came.user.is_none()) {
            return Err(Refusal::CameAfter);
        }
        // The same key again is no second word, which it is told elsewhere.
        let is_own = |device: &str| who.keys.iter().any(|(own, _)| own.as_str() == device);
        let others = || {
            let votes = record.votes.iter();
            votes.filter(|vote| !vote.device().is_some_and(|device| is_own(&device)))
        };
        let (mut theirs, own) = (BTreeSet::new(), who.names());
        theirs.extend(others().flat_map(Vote::names));
        let of_votes: BTreeSet<String> = others().filter_map(Vote::device).collect();
        let voted = voted.iter();
        let voted: Vec<Key> = voted
            .filter(|(device, _)| of_votes.contains(device.as_str()))
            .cloned()
            .collect();
        theirs.extend(names_of(&voted));
        if !own.is_disjoint(&theirs) {
            return Err(Refusal::SameVoter);
        }
        if let_in_by(who.keys, &theirs) || let_in_by(&voted, &own) {
            return Err(Refusal::SelfThroughAnother);
        }
        Ok(())
    }
}
