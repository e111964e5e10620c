//! How a person sees things, at a terminal and on the page alike: one sanitiser, one card.

pub mod card;
pub mod qr;
pub mod record;
pub mod text;
pub mod value;
