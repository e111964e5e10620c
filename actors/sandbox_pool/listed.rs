//! The boxes that there are, for people who look at them and end them.

use portcullis_core::ids::BoxId;
use portcullis_core::plan::session_name;
use portcullis_core::sandbox::Scope;

use super::actor::SandboxPool;
use super::boxes::Live;
use super::holder::Holder;
use super::messages::BoxShown;
use super::runs::Order;
use super::standing::GivenUp;

impl SandboxPool {
    /// The oldest first.
    pub(super) fn list(&self) -> Vec<BoxShown> {
        let there = self.boxes.values().filter(|live| !live.standing.get().over);
        there.map(shown).collect()
    }

    /// Whether there is such a box. It takes nothing more, and what runs in it is ended.
    pub(super) async fn end(&mut self, id: &BoxId) -> bool {
        let mut boxes = self.boxes.values_mut();
        let found = boxes.find(|live| live.id == *id && !live.standing.get().over);
        let Some(live) = found else {
            return false;
        };
        live.leaving = true;
        // A box that is down has ended already.
        let _ = live.handle.order(Order::End(GivenUp::Operator)).await;
        true
    }
}

fn shown(live: &Live) -> BoxShown {
    let standing = live.standing.get();
    let mut shown = BoxShown {
        id: live.id.clone(),
        scope: None,
        agent: None,
        share: None,
        session: None,
        session_of: None,
        driver: live.driver.name(),
        state: match (live.leaving, standing.init) {
            (true, _) => "leaves",
            (false, None) => "starting",
            (false, Some(_)) => "serves",
        },
        runs: standing.running,
        profile_hash: live.hash.clone(),
    };
    match &live.holder {
        Holder::Agent(agent) => {
            (shown.scope, shown.agent) = (Some(Scope::Agent), Some(agent.clone()));
        }
        Holder::Session(agent, session) => {
            (shown.scope, shown.agent) = (Some(Scope::Session), Some(agent.clone()));
            shown.session = session_name(&session.name).map(str::to_owned);
            shown.session_of = Some(session.by.clone());
        }
        Holder::Shared(share) => {
            (shown.scope, shown.share) = (Some(Scope::Shared), Some(share.clone()));
        }
        Holder::Nobody(kind) => shown.agent.clone_from(&kind.agent),
    }
    shown
}
