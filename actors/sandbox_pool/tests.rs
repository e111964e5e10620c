//! Real boxes: bubblewrap, the kernel's limits, the cell. What every driver must hold is [`suite`]; the Docker driver passes the same.

#![allow(
    clippy::disallowed_methods,
    reason = "tests may sleep and spawn; what they test may not"
)]

/// What every driver must hold, as tests of the module that names one: `driver` gives it, with what must live as long.
macro_rules! promises {
    ($driver:path) => {
        promises!($driver, $crate::sandbox_pool::tests::always);
    };
    ($driver:path, $where:path) => {
        promises!($driver, $where, suite: streams_and_codes, many_runs, supervisors, walls, workspaces, fork_bomb, memory, tree, stubborn,
            background, output, unread, hostile_peer, found_again, dead_man, redials, keeps_runs);
        promises!($driver, $where, disk: disk_bomb);
        promises!($driver, $where, input: stdin, full, signals, terminal);
    };
    ($driver:path, $where:path, $suite:ident: $($name:ident),*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            if !$where() {
                return;
            }
            let state = $crate::sandbox_pool::tests::harness::State::new();
            let (_held, driver) = $driver(&state).await;
            $crate::sandbox_pool::tests::$suite::$name(&driver, &state).await;
        }
    )*};
}

/// Where every machine has what the driver needs.
const fn always() -> bool {
    true
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
mod rootless;
mod scopes;
pub mod suite;
mod users;
mod warm;
