//! Real boxes: bubblewrap, the kernel's limits, the cell. What every driver must hold is [`suite`]; the Docker driver passes the same.

#![allow(
    clippy::disallowed_methods,
    reason = "tests may sleep and spawn; what they test may not"
)]

/// What every driver must hold, as tests of the module that names one: `driver` gives it, with what must live as long.
macro_rules! promises {
    ($driver:path) => {
        promises!($driver, suite: streams_and_codes, many_runs, supervisors, walls, workspaces, fork_bomb, memory, tree, stubborn,
            background, output, unread, hostile_peer, found_again, dead_man, redials, keeps_runs);
        promises!($driver, disk: disk_bomb);
        promises!($driver, input: stdin, full, signals, terminal);
    };
    ($driver:path, $suite:ident: $($name:ident),*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            let state = super::harness::State::new();
            let (_held, driver) = $driver(&state).await;
            super::$suite::$name(&driver, &state).await;
        }
    )*};
}

mod beside;
mod disk;
pub(crate) mod docker;
mod drivers;
pub(crate) mod harness;
mod input;
mod native;
mod places;
mod podman;
mod profiles;
pub mod room;
mod scopes;
pub mod suite;
mod users;
mod warm;
