//! Whole paths, as a person walks them.

mod page;
