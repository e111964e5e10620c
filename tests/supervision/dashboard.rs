//! The page's sessions: a new life knows nothing of the last one, and a flood is refused at the gate.

use portcullis_actors::dashboard::{
    Dashboard, DashboardConfig, DashboardError, DashboardHandle, Secret,
};
use portcullis_actors::supervision::{PanicAt, Policy, RoomState, Tree};
use portcullis_core::auth::{Scope, ScopeSet};
use portcullis_core::codes;
use portcullis_core::dashboard::SessionRefusal;

use super::support::*;

async fn life(capacity: usize) -> (DashboardHandle, Tree) {
    let (mut builder, _fatal) = builder();
    let room = builder.room::<Dashboard>(Policy::new(capacity), DashboardConfig::default());
    (DashboardHandle::new(room), builder.start().await.unwrap())
}

fn admin() -> ScopeSet {
    [Scope::Admin].into_iter().collect()
}

#[tokio::test(start_paused = true)]
async fn a_new_life_knows_no_code_and_no_session_of_the_last_one() {
    let (page, tree) = life(8).await;
    let used = page.mint(admin(), "uid:0".into()).await.ok().unwrap().code;
    let unused = page.mint(admin(), "uid:0".into()).await.ok().unwrap().code;
    let (session, _) = page.redeem(used).await.ok().unwrap();
    tree.stop().await;
    assert_eq!(
        page.check(session.clone(), true).await.err(),
        Some(DashboardError::Room(codes::ROOM_DOWN))
    );
    let (page, _tree) = life(8).await;
    assert_eq!(
        page.check(session, true).await.err(),
        Some(DashboardError::Refused(SessionRefusal::NoSession))
    );
    assert_eq!(
        page.redeem(unused).await.err(),
        Some(DashboardError::Refused(SessionRefusal::BadCode))
    );
}

#[tokio::test(start_paused = true)]
async fn a_crash_forgets_every_code_and_session_and_the_next_life_serves() {
    let (page, tree) = life(8).await;
    let unused = page.mint(admin(), "uid:0".into()).await.ok().unwrap().code;
    assert!(tree.window().panic("dashboard", PanicAt::Now));
    eventually("it serves again", || {
        let room = &tree.window().look().rooms[0];
        room.restarts == 1 && room.state == RoomState::Up
    })
    .await;
    assert_eq!(
        page.redeem(unused).await.err(),
        Some(DashboardError::Refused(SessionRefusal::BadCode))
    );
    let code = page.mint(admin(), "uid:0".into()).await.ok().unwrap().code;
    assert!(page.redeem(code).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn more_visitors_than_the_gate_holds_are_refused_at_once_and_the_rest_served() {
    let (page, tree) = life(4).await;
    let asking: Vec<_> = (0..100)
        .map(|n| {
            let page = page.clone();
            tokio::spawn(async move { page.check(Secret::brought(&n.to_string()), true).await })
        })
        .collect();
    let (mut refused, mut unknown) = (0, 0);
    for ask in asking {
        match ask.await.unwrap().unwrap_err() {
            DashboardError::Room(code) if code == codes::OVERLOADED => refused += 1,
            DashboardError::Refused(SessionRefusal::NoSession) => unknown += 1,
            other => panic!("{other}"),
        }
    }
    assert!(
        unknown >= 4 && refused + unknown == 100,
        "{refused} {unknown}"
    );
    assert_eq!(
        tree.window().look().rooms[0].gate.as_ref().unwrap().refused,
        refused
    );
    assert!(page.mint(admin(), "uid:0".into()).await.is_ok());
}
