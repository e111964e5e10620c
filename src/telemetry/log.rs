//! Lines of the log: one event, one line, and nothing in it that steers a terminal.

use std::io::{self, Write};

use tracing_subscriber::fmt::MakeWriter;

/// Stderr for the log.
#[derive(Debug, Clone, Copy)]
pub struct Stderr;

impl<'a> MakeWriter<'a> for Stderr {
    type Writer = Line<io::Stderr>;

    fn make_writer(&'a self) -> Self::Writer {
        Line(io::stderr())
    }
}

/// Makes control characters visible in what passes; the line end stays.
pub struct Line<W>(pub W);

impl<W: Write> Write for Line<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // The formatter hands over one whole event.
        let text = String::from_utf8_lossy(bytes);
        let line = text.strip_suffix('\n').unwrap_or(&text);
        let mut out = crate::show::text::clean(line);
        out.push('\n');
        self.0.write_all(out.as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
