//! What others were attacked with, tried on the real gateway over real sockets; and the list of all of it, each with its
//! test or the reason why it cannot be tried here.

pub mod advisories; // the list itself: complete, and naming tests that exist
mod beset; // every way in within a second, beside all that strangers can do
mod borrowed; // what a client says of itself, its headers, its neighbours: none of it gives anything
pub mod canary; // planted secrets, and the search for them in all that the gateway leaves
pub mod containment; // every attempt to get out of a box, on both drivers, each beside a control in which it succeeds
mod egress; // what leaves a box, and what others got past such a proxy with
mod erased; // what was taken from the vault is in no file of the store
mod floods; // pings, fragments, messages that never end
mod lifetimes; // credentials that end, are rotated, are asked for again
mod matrix; // door x role x scopes x method, against the one table
mod memory; // what stays in the live process of a secret that passed through it
mod page; // the same for the page: what it shows, each of its forms, and forged ones
mod planted; // what an agent writes into its folder configures nothing; no setting opens a box
mod policy; // command lines: what is said of each, and what real shells do with those that pass
mod replays; // what comes again is not done again
mod sizes; // what is too much
