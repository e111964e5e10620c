//! What `get` and `put` of a box's cell say to who copies a file, and how they end.

/// Where a box has its cell: a plain file that nothing in the box can write.
pub const CELL_INSIDE: &str = "/run/portcullis-cell";
/// Most bytes of a file that `get` gives or `put` takes.
pub const MOST_FILE: u64 = 64 * 1024 * 1024;

/// Bytes of each output stream that a command may write where so many are configured: one that gives a file out of the box may write all of
/// it.
pub fn output_cap(configured: u64, argv: &[String]) -> u64 {
    if is_get(argv) {
        configured.max(MOST_FILE)
    } else {
        configured
    }
}

/// By the cell's own path, which no agent can put something else at.
fn is_get(argv: &[String]) -> bool {
    argv.len() == 3 && argv[0] == CELL_INSIDE && argv[1] == "get"
}

/// The first line that `get` writes to standard error, about the file whose bytes it writes to standard output: size in bytes, inode, time of
/// its last change (Unix seconds) and permissions (octal), separated by spaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileHead {
    /// Bytes.
    pub size: u64,
    /// Inode number.
    pub inode: u64,
    /// Unix seconds.
    pub mtime: i64,
    /// The nine permission bits.
    pub mode: u32,
}

impl FileHead {
    /// The line, with its end.
    pub fn line(&self) -> String {
        let Self {
            size,
            inode,
            mtime,
            mode,
        } = self;
        format!("{size} {inode} {mtime} {mode:03o}\n")
    }

    /// Reads the line; none where it is another.
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let mut next = || words.next();
        let (size, inode, mtime, mode) = (next()?, next()?, next()?, next()?);
        if next().is_some() {
            return None;
        }
        Some(Self {
            size: size.parse().ok()?,
            inode: inode.parse().ok()?,
            mtime: mtime.parse().ok()?,
            mode: u32::from_str_radix(mode, 8)
                .ok()
                .filter(|mode| *mode <= 0o777)?,
        })
    }
}

/// Why `get` or `put` did not do it. Nothing of a file that was not put whole is left in the box, where its file system has files without a
/// name (`O_TMPFILE`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyFailure {
    /// There is no such file, or no such folder to put it in.
    Missing,
    /// What is there is no plain file, or the path is none that is taken.
    Unfit,
    /// There is a file, and it was not to be replaced.
    Exists,
    /// Over [`MOST_FILE`], or over what the box takes of one file.
    TooLarge,
    /// It changed while it was read, or not all of it came.
    Changed,
    /// No room is left.
    NoRoom,
    /// The box's user may not, or it is read-only there.
    NotPermitted,
    /// Anything else; the text says what.
    Other,
}

impl CopyFailure {
    const ALL: [Self; 8] = [
        Self::Missing,
        Self::Unfit,
        Self::Exists,
        Self::TooLarge,
        Self::Changed,
        Self::NoRoom,
        Self::NotPermitted,
        Self::Other,
    ];

    /// The exit code that says it.
    pub const fn exit(self) -> u8 {
        match self {
            Self::Other => 1,
            Self::Missing => 3,
            Self::NotPermitted => 4,
            Self::Exists => 5,
            Self::TooLarge => 6,
            Self::Changed => 7,
            Self::NoRoom => 8,
            Self::Unfit => 9,
        }
    }

    /// By its exit code; what is none of these is [`Self::Other`].
    pub fn of_exit(code: u8) -> Self {
        let mut all = Self::ALL.into_iter();
        all.find(|failure| failure.exit() == code)
            .unwrap_or(Self::Other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_a_file_is_read_as_it_was_written_and_no_other_is() {
        let head = FileHead {
            size: MOST_FILE,
            inode: 7,
            mtime: -1,
            mode: 0o750,
        };
        assert_eq!(head.line(), "67108864 7 -1 750\n");
        assert_eq!(FileHead::parse(head.line().trim_end()), Some(head));
        for other in [
            "",
            "1 2 3",
            "1 2 3 644 5",
            "1 2 3 999",
            "-1 2 3 644",
            "1 2 3 4755",
            "1  2 3 644",
        ] {
            assert_eq!(FileHead::parse(other), None, "{other:?}");
        }
    }

    #[test]
    fn each_failure_has_an_exit_code_of_its_own_that_is_read_back() {
        for failure in CopyFailure::ALL {
            assert_eq!(CopyFailure::of_exit(failure.exit()), failure);
        }
        assert_eq!(CopyFailure::of_exit(137), CopyFailure::Other);
    }

    #[test]
    fn only_the_cells_own_get_has_the_output_of_a_file() {
        let argv = |words: &[&str]| {
            words
                .iter()
                .map(|word| (*word).to_owned())
                .collect::<Vec<_>>()
        };
        let get = argv(&[CELL_INSIDE, "get", "a"]);
        assert_eq!(output_cap(1000, &get), MOST_FILE);
        assert_eq!(output_cap(MOST_FILE + 1, &get), MOST_FILE + 1);
        for other in [
            &["portcullis-cell", "get", "a"][..],
            &["/workspace/portcullis-cell", "get", "a"],
            &[CELL_INSIDE, "put", "a"],
            &[CELL_INSIDE, "get", "a", "b"],
            &[CELL_INSIDE],
        ] {
            assert_eq!(output_cap(1000, &argv(other)), 1000, "{other:?}");
        }
    }
}
