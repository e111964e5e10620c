//! Whole paths, as a person walks them.

mod cli;
mod page;
