//! Which commands does a shell line run? Told only where dash and bash agree on it whatever their variables, files and
//! users are; anything else is `unclear`, and what is unclear is never automatic.
//!
//! Two readings that know nothing of one another must come to the same words: [`scan`], which is ours and takes little, and
//! [`second`], which is a whole shell's grammar. Of an unclear line the commands are a guess, good for refusing and for
//! showing, never for allowing.

use std::collections::BTreeSet;

mod names;
mod scan;
mod second;

pub(super) use names::is_harmless as is_harmless_builtin;

/// Longest line that is read, bytes.
pub const MAX_LINE: usize = 16 << 10;
/// Most commands of a line that may be automatic: each is kept in the plan as a file of its own.
pub const MAX_COMMANDS: usize = crate::plan::MAX_OPERANDS - 1;
/// Most words of a line.
pub const MAX_WORDS: usize = 1024;
/// Deepest nesting of what is only guessed at.
pub const MAX_NESTING: usize = 32;

macro_rules! unclear {
    ($($name:ident $id:literal $text:literal,)*) => {
        /// Why a line is never automatic.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Unclear {
            $(#[doc = $text] $name,)*
        }

        impl Unclear {
            /// Each of them.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Stable: it stands in questions and answers.
            pub const fn id(self) -> &'static str {
                match self { $(Self::$name => $id,)* }
            }

            /// For a person.
            pub const fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

unclear! {
    CommandSubstitution "command-substitution" "The line runs a command to make a word of another.",
    ProcessSubstitution "process-substitution" "The line runs a command behind a file name.",
    Arithmetic "arithmetic" "The line has an expression that the shell evaluates.",
    Parameter "parameter-expansion" "A word holds a variable, or another `$` of which only the shell knows the value.",
    Redirection "redirection" "The line opens files by redirection.",
    HereDocument "here-document" "The line holds the input of a command.",
    HereString "here-string" "A word of the line is the input of a command.",
    Function "function" "The line defines a function.",
    Compound "compound-command" "The line has if, for, while, case or the like.",
    Group "group" "The line has a group in braces.",
    Subshell "subshell" "The line has a group in parentheses.",
    Background "background" "The line leaves a command running behind itself.",
    Glob "glob" "A word stands for whatever files match it.",
    Brace "brace-expansion" "Braces are several words to bash, and one to other shells.",
    Tilde "tilde" "A word begins with somebody's home folder.",
    Assignment "assignment" "A variable is set before a command.",
    Alias "alias" "The line changes what names mean.",
    Eval "eval" "Words become a command of their own (eval).",
    Source "source" "The shell reads commands from a file.",
    Builtin "shell-builtin" "It is a command of the shell itself, which may change what the others mean.",
    LineContinuation "line-continuation" "A line goes on behind a backslash.",
    AnsiQuoting "ansi-quoting" "`$'…'` is a quotation to bash, and not to other shells.",
    LocaleQuoting "locale-quoting" "`$\"…\"` is translated by bash, and not by other shells.",
    Negation "negation" "`!` turns a result round.",
    TimeKeyword "time-keyword" "`time` is a word of bash's grammar, and a program to other shells.",
    Coprocess "coprocess" "`coproc` is a word of bash's grammar, and a program to other shells.",
    ExtendedTest "extended-test" "`[[` is a word of bash's grammar, and a program to other shells.",
    JobControl "job-control" "A command that begins with `%` is a job to bash, and a program to other shells.",
    NonAscii "non-ascii" "Letters beyond ASCII stand outside quotes.",
    Control "control-character" "The line holds a control character.",
    Hidden "hidden-character" "The line holds a character that is not seen, or turns the others round.",
    NotUtf8 "not-utf-8" "The line is no UTF-8 text.",
    TooLong "too-long" "The line is longer than what is read.",
    TooManyCommands "too-many-commands" "The line has more commands than what is looked at.",
    TooManyWords "too-many-words" "The line has more words than what is looked at.",
    TooDeep "too-deep" "The line is nested more deeply than what is looked at.",
    Unbalanced "unbalanced" "A quotation or a group does not end.",
    Syntax "syntax" "The line breaks the grammar of the shell.",
    Empty "no-command" "There is no command in it.",
    Disagreement "read-two-ways" "Two readings of the line differ.",
}

/// One simple command of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Simple {
    /// Its words, without their quotes.
    pub argv: Vec<String>,
    /// Byte of the line at which each of them begins.
    pub starts: Vec<usize>,
    /// Its input is the output of the command before it.
    pub piped: bool,
}

/// What was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Line {
    /// In order. Where something is unclear: what can be seen of them; a name that nobody knows is empty.
    pub commands: Vec<Simple>,
    /// Empty: the shell runs these commands and no other.
    pub unclear: BTreeSet<Unclear>,
}

impl Line {
    /// Does the line mean its commands, whatever the shell?
    pub fn is_certain(&self) -> bool {
        self.unclear.is_empty()
    }

    fn of(unclear: Unclear) -> Self {
        Self {
            commands: Vec::new(),
            unclear: BTreeSet::from([unclear]),
        }
    }
}

/// Reads a line as `sh -c` gets it.
pub fn read(line: &str) -> Line {
    if line.len() > MAX_LINE {
        return Line::of(Unclear::TooLong);
    }
    let mut read = scan::scan(line);
    if read.commands.len() > MAX_COMMANDS {
        read.unclear.insert(Unclear::TooManyCommands);
    }
    if read.unclear.is_empty() && read.commands.is_empty() {
        read.unclear.insert(Unclear::Empty);
    }
    let own: Vec<Unclear> = read
        .commands
        .iter()
        .filter_map(|simple| names::builtin(&simple.argv))
        .collect();
    read.unclear.extend(own);
    // However it is quoted.
    if read
        .commands
        .iter()
        .any(|simple| simple.argv[0].starts_with('%'))
    {
        read.unclear.insert(Unclear::JobControl);
    }
    // Last: only what is flat and short comes before the larger grammar.
    if read.unclear.is_empty() && !second::agrees(line, &read.commands) {
        read.unclear.insert(Unclear::Disagreement);
    }
    read
}

/// As [`read`], of bytes that may be no text.
pub fn read_bytes(line: &[u8]) -> Line {
    std::str::from_utf8(line).map_or_else(|_| Line::of(Unclear::NotUtf8), read)
}

#[cfg(test)]
mod tests;
