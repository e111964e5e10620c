//! What supervision promises, one file per promise, with rooms that panic, fail, hang, spin and flood.

mod boot;
mod calls;
mod children;
mod crash;
mod dashboard;
mod feed;
mod flood;
mod intensity;
mod spin;
mod stop;
mod storm;
mod stuck;
mod support;
mod tasks;
