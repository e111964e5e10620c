//! Whole paths, as a person walks them.

mod cli;
mod inherited;
mod page;
