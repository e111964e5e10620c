//! What supervision promises, one file per promise, with rooms that panic, fail, hang, spin and flood.

mod approval;
mod audit;
mod auth;
mod boot;
mod calls;
mod children;
mod connection;
mod crash;
mod dashboard;
mod exec;
mod feed;
mod flood;
mod intensity;
mod nodes;
mod pairing;
mod real;
mod sandbox_pool;
mod signing;
mod spin;
mod stop;
mod store;
mod storm;
mod stuck;
mod support;
mod tasks;
mod vault;
