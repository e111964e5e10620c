//! Whole paths, as a person walks them.

mod cli;
mod kills;
mod npm_client;
mod page;
mod starts;
