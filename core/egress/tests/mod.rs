//! What each part takes and refuses, and that it does not matter in which pieces it comes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

mod addresses;
mod answers;
mod bodies;
mod forms;
mod heads;
mod hellos;
mod hosts;
mod inner;
pub(crate) mod made;
mod refusals;
mod rules;

use proptest::prelude::*;

use super::head::{self, Form, HeadError};
use super::hello::{Hello, HelloError, asks_again};
use super::*;

fn host(text: &str) -> Host {
    Host::new(text).unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}
