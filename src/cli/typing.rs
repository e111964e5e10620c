//! Secrets that a person types: the terminal does not show them.

use std::io::{IsTerminal as _, Write as _};

use zeroize::Zeroizing;

/// Typed once, or the next line of what is no terminal. The error says why there is none.
pub fn line(prompt: &str, max: usize) -> Result<Zeroizing<String>, String> {
    let hidden = hide()?;
    let line = read(prompt, hidden.is_some(), max);
    drop(hidden);
    line
}

/// Typed twice at a terminal; the next line of anything else.
pub fn twice(prompt: &str, max: usize) -> Result<Zeroizing<String>, String> {
    let Some(hidden) = hide()? else {
        return read(prompt, false, max);
    };
    let first = read(prompt, true, max)?;
    let second = read("again: ", true, max)?;
    drop(hidden);
    if *first != *second {
        return Err("the two are not the same: nothing was set".to_owned());
    }
    Ok(first)
}

fn hide() -> Result<Option<Hidden>, String> {
    if !std::io::stdin().is_terminal() {
        return Ok(None);
    }
    Hidden::hide()
        .map(Some)
        .map_err(|e| format!("the terminal cannot be kept from showing it: {e}"))
}

fn read(prompt: &str, asks: bool, max: usize) -> Result<Zeroizing<String>, String> {
    let mut err = std::io::stderr();
    if asks {
        // A prompt that is not seen keeps nobody from typing.
        let _ = write!(err, "{prompt}");
        let _ = err.flush();
    }
    let mut line = Zeroizing::new(String::with_capacity(max + 4));
    let read = std::io::stdin().read_line(&mut line);
    if asks {
        let _ = writeln!(err);
    }
    read.map_err(|e| format!("cannot read it: {e}"))?;
    Ok(Zeroizing::new(
        line.trim_end_matches(['\r', '\n']).to_owned(),
    ))
}

/// While it lives the terminal shows nothing of what is typed.
struct Hidden(rustix::termios::Termios);

impl Hidden {
    fn hide() -> std::io::Result<Self> {
        use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
        let before = tcgetattr(std::io::stdin())?;
        let mut hidden = before.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        tcsetattr(std::io::stdin(), OptionalActions::Flush, &hidden)?;
        Ok(Self(before))
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        // A terminal that is gone needs no echo.
        let _ = rustix::termios::tcsetattr(
            std::io::stdin(),
            rustix::termios::OptionalActions::Now,
            &self.0,
        );
    }
}
