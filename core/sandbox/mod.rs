//! What a box may be: profiles, the layers that decide them, and the one function that both the pool and `sandbox.explain` ask.
//!
//! A [`Profile`] has every limit; there is no "none said". The named ones ([`Named`]) are files in the program. [`Profiles::of`] lays a
//! gateway's settings over them and says for each line which layer decided it; the pool enforces that very value, and its hash
//! ([`Profile::canonical`]) is part of the name of what contains a run.

mod demand;
mod env;
mod layers;
mod mapping;
mod mounts;
mod profile;
#[cfg(test)]
mod tests;
mod users;

pub use demand::Demand;
pub use env::EnvNames;
pub use layers::{
    Effective, Layer, Line, Overrides, Profiles, Sharers, count, hosts, mounts, names, size, word,
};
pub use mapping::Mapping;
pub use mounts::{MOUNTS_INSIDE, MountSource, Mounts};
pub use profile::{
    Access, DriverChoice, ImageName, Isolation, Named, Network, Profile, RuntimeName, Scope,
    ShareName, Shown, SystemCalls, Unlisted,
};
pub use users::{Host, Owner, UserError, UserRange, UserRow, Users};
