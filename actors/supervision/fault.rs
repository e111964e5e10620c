//! Panics on demand, for the tests that count what a crash costs everybody else. Built with the feature
//! `crash-for-tests` only, which no build of the gateway has (tests/house/profiles.rs).

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use super::tree::TreeWindow;

/// Where a room panics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PanicAt {
    /// Between two messages.
    Now,
    /// In the next message, when its handler has waited so often; after the message, if it waits less.
    Await(u32),
    /// Not the room: its youngest child of this noun, between two messages.
    YoungestChild(&'static str),
}

impl TreeWindow {
    /// Lets a room panic. `false`: no room of this name serves now.
    pub fn panic(&self, room: &str, at: PanicAt) -> bool {
        self.children
            .iter()
            .any(|child| child.name() == room && child.panic(at))
    }
}

/// The handler's future, broken at the n-th time that it waits, or at its end.
pub(super) async fn broken<F: Future>(work: F, at: Option<u32>) -> F::Output {
    let Some(at) = at else { return work.await };
    let mut waited = 0;
    let mut work = pin!(work);
    std::future::poll_fn(move |cx: &mut Context<'_>| {
        let polled = Pin::as_mut(&mut work).poll(cx);
        assert!(polled.is_pending() && waited < at, "planned");
        waited += 1;
        Poll::<F::Output>::Pending
    })
    .await
}
