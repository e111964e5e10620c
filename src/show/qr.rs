//! A QR code for a terminal: two rows of modules a line, light ones drawn, as it is right on a dark ground.

use qrcode::{Color, EcLevel, QrCode};

/// The white frame that the standard asks for, in modules.
const QUIET: usize = 4;

/// `None`: the text is too long for one.
pub fn drawn(text: &str) -> Option<String> {
    let code = QrCode::with_error_correction_level(text, EcLevel::L).ok()?;
    let side = code.width() + 2 * QUIET;
    let is_light = |x: usize, y: usize| {
        let inside = |n: usize| (QUIET..QUIET + code.width()).contains(&n);
        !(inside(x) && inside(y)) || code[(x - QUIET, y - QUIET)] == Color::Light
    };
    let mut out = String::new();
    for y in (0..side).step_by(2) {
        for x in 0..side {
            out.push(match (is_light(x, y), is_light(x, y + 1)) {
                (true, true) => '\u{2588}',
                (true, false) => '\u{2580}',
                (false, true) => '\u{2584}',
                (false, false) => ' ',
            });
        }
        out.push('\n');
    }
    Some(out)
}
