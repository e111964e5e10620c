//! What must hold however often it happens. Few times in an ordinary run, at full count with `cargo xtask long`.

mod abuse;
mod boxes;
mod disk;
mod faults;
mod fuzz;
pub mod house;
mod load;
pub mod mixed;
mod nodes;
mod panics;
mod power;
mod record;
mod soak;

/// How often: `full` in a long run, else `few`; or as `PORTCULLIS_ROUNDS` says.
pub fn times(few: usize, full: usize) -> usize {
    let said = std::env::var("PORTCULLIS_ROUNDS").ok();
    said.and_then(|text| text.parse().ok())
        .unwrap_or(if is_long() { full } else { few })
}

/// Is this a long run?
pub fn is_long() -> bool {
    std::env::var_os("PORTCULLIS_LONG").is_some()
}

/// A line that `cargo xtask long` shows, though the test passes.
pub fn figure(line: &str) {
    println!("FIGURE: {line}");
}
