//! The parsers of the binary itself.

/// Name and function of each.
pub const ALL: &[super::parsers::Target] = &[("config", config), ("terminal", terminal)];

/// The configuration file: it is read, or every error has its place and a text that a terminal can show.
pub fn config(data: &[u8]) {
    match portcullis::config::merge(Some(("config.toml", data)), std::iter::empty(), &[]) {
        Ok(loaded) => {
            let _ = loaded.for_clients();
        }
        Err(errors) => {
            assert!(!errors.0.is_empty());
            for text in [errors.summary(), errors.details()] {
                let shown = portcullis::show::text::clean(&text);
                assert!(!shown.is_empty());
            }
        }
    }
}

/// What others wrote, on a terminal: nothing steers it.
pub fn terminal(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let shown = portcullis::show::text::clean(text);
    let steers = |c: char| c.is_control() && c != '\n';
    assert!(!shown.chars().any(steers), "{shown:?}");
}
