//! One pass over the line, from left to right, without recursion.

use std::collections::{BTreeSet, VecDeque};

use super::{Line, MAX_NESTING, MAX_WORDS, Simple, Unclear, names};
use crate::display;

/// A word as it grows.
struct Word {
    text: String,
    at: usize,
    /// A quote or a backslash stands in it: it is no reserved word.
    quoted: bool,
    /// An unquoted `=` stands in it.
    equals: bool,
    /// A part of it is known to the shell only.
    dynamic: bool,
}

/// A command as it grows.
#[derive(Default)]
struct Open {
    argv: Vec<String>,
    starts: Vec<usize>,
    piped: bool,
    /// Something stands here, be it only what is left out of the words.
    begun: bool,
    /// The next word is a file that is opened, or the end of a here-document.
    owed: Option<Owed>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Owed {
    File,
    Document { tabs: bool },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Parenthesis,
    Backtick,
}

/// What goes on behind a substitution or a group.
struct Frame {
    kind: Kind,
    open: Open,
    word: Option<Word>,
    in_quotes: bool,
    /// Nothing of it was a word of the outer command.
    is_group: bool,
}

struct Scan<'a> {
    line: &'a str,
    at: usize,
    found: Line,
    words: usize,
    open: Open,
    word: Option<Word>,
    in_quotes: bool,
    stack: Vec<Frame>,
    /// A command must follow: `&&`, `||` or `|` was the last.
    wanted: bool,
    documents: VecDeque<(String, bool)>,
}

pub(super) fn scan(line: &str) -> Line {
    let mut scan = Scan {
        line,
        at: 0,
        found: Line {
            commands: Vec::new(),
            unclear: BTreeSet::new(),
        },
        words: 0,
        open: Open::default(),
        word: None,
        in_quotes: false,
        stack: Vec::new(),
        wanted: false,
        documents: VecDeque::new(),
    };
    while scan.at < line.len() {
        scan.step();
    }
    scan.end()
}

fn is_blank(c: Option<char>) -> bool {
    matches!(c, None | Some(' ' | '\t' | '\n'))
}

impl Scan<'_> {
    fn mark(&mut self, why: Unclear) {
        self.found.unclear.insert(why);
    }

    /// The character at this distance in bytes: what is looked for ahead is ASCII.
    fn peek(&self, ahead: usize) -> Option<char> {
        self.line.get(self.at + ahead..)?.chars().next()
    }

    fn word(&mut self) -> &mut Word {
        let at = self.at;
        self.word.get_or_insert_with(|| Word {
            text: String::new(),
            at,
            quoted: false,
            equals: false,
            dynamic: false,
        })
    }

    fn push(&mut self, c: char) {
        self.word().text.push(c);
        self.at += c.len_utf8();
    }

    /// A part of the word that the shell makes.
    fn dynamic(&mut self, why: Unclear) {
        self.mark(why);
        self.word().dynamic = true;
    }

    fn check(&mut self, c: char) {
        if c.is_control() && c != '\t' && c != '\n' {
            self.mark(Unclear::Control);
        } else if !c.is_ascii() {
            let mut text = [0; 4];
            if display::has_hidden(c.encode_utf8(&mut text)) {
                self.mark(Unclear::Hidden);
            }
        }
    }

    fn step(&mut self) {
        let Some(c) = self.peek(0) else {
            self.at = self.line.len();
            return;
        };
        self.check(c);
        if self.in_quotes {
            self.quoted(c);
        } else {
            self.bare(c);
        }
    }

    /// Between double quotes.
    fn quoted(&mut self, c: char) {
        match c {
            '"' => {
                self.in_quotes = false;
                self.at += 1;
            }
            '\\' => match self.peek(1) {
                Some('\n') => {
                    self.mark(Unclear::LineContinuation);
                    self.at += 2;
                }
                Some(next @ ('$' | '`' | '"' | '\\')) => {
                    self.word().text.push(next);
                    self.at += 2;
                }
                _ => self.push(c),
            },
            '$' => self.dollar(),
            '`' => self.backtick(),
            _ => self.push(c),
        }
    }

    fn dollar(&mut self) {
        match self.peek(1) {
            Some('(') => {
                if self.peek(2) == Some('(') {
                    self.dynamic(Unclear::Arithmetic);
                    self.enter(Kind::Parenthesis, 2, false);
                    self.enter(Kind::Parenthesis, 1, false);
                } else {
                    self.dynamic(Unclear::CommandSubstitution);
                    self.enter(Kind::Parenthesis, 2, false);
                }
            }
            Some('[') => {
                self.dynamic(Unclear::Arithmetic);
                self.at += 2;
            }
            Some('\'') if !self.in_quotes => {
                self.dynamic(Unclear::AnsiQuoting);
                self.at += 1;
                self.ansi();
            }
            Some('"') if !self.in_quotes => {
                self.dynamic(Unclear::LocaleQuoting);
                self.at += 1;
            }
            // Before a blank or the closing quote it is itself, to dash and bash.
            Some('"') => self.push('$'),
            next if is_blank(next) && (next.is_some() || !self.in_quotes) => self.push('$'),
            _ => {
                self.dynamic(Unclear::Parameter);
                self.at += 1;
                // The name's own sign is not the word's: `$#`, `$?`, `$*` are no comment and no pattern.
                if let Some(next @ ('#' | '?' | '*' | '@' | '!' | '$' | '-')) = self.peek(0) {
                    self.at += next.len_utf8();
                } else if self.peek(0) == Some('{') {
                    self.at += 1;
                    if let Some(next @ ('#' | '!')) = self.peek(0) {
                        self.at += next.len_utf8();
                    }
                }
            }
        }
    }

    /// `$'…'`, from its quote on: where it ends is what counts.
    fn ansi(&mut self) {
        self.at += 1;
        loop {
            match self.peek(0) {
                None => {
                    self.mark(Unclear::Unbalanced);
                    return;
                }
                Some('\\') => {
                    self.at += 1;
                    self.at += self.peek(0).map_or(0, char::len_utf8);
                }
                Some('\'') => {
                    self.at += 1;
                    return;
                }
                Some(c) => {
                    self.check(c);
                    self.at += c.len_utf8();
                }
            }
        }
    }

    fn backtick(&mut self) {
        self.mark(Unclear::CommandSubstitution);
        if self.stack.iter().any(|frame| frame.kind == Kind::Backtick) {
            self.at += 1;
            while let Some(kind) = self.stack.last().map(|frame| frame.kind) {
                self.leave();
                if kind == Kind::Backtick {
                    break;
                }
            }
        } else {
            self.dynamic(Unclear::CommandSubstitution);
            self.enter(Kind::Backtick, 1, false);
        }
    }

    /// Into a substitution or a group that begins with so many bytes.
    fn enter(&mut self, kind: Kind, bytes: usize, is_group: bool) {
        self.at += bytes;
        if self.stack.len() == MAX_NESTING {
            self.mark(Unclear::TooDeep);
            self.finish();
            return;
        }
        self.stack.push(Frame {
            kind,
            open: std::mem::take(&mut self.open),
            word: self.word.take(),
            in_quotes: std::mem::take(&mut self.in_quotes),
            is_group,
        });
    }

    /// Out of it again.
    fn leave(&mut self) {
        self.finish();
        let Some(frame) = self.stack.pop() else {
            return;
        };
        self.open = frame.open;
        self.word = frame.word;
        self.in_quotes = frame.in_quotes;
        self.open.begun |= frame.is_group;
        self.wanted &= !frame.is_group;
    }

    /// Outside quotes.
    fn bare(&mut self, c: char) {
        match c {
            ' ' | '\t' => {
                self.end_word();
                self.at += 1;
            }
            '\n' => {
                self.finish();
                self.at += 1;
                self.skip_documents();
            }
            '\'' => self.single(),
            '"' => {
                self.word().quoted = true;
                self.in_quotes = true;
                self.at += 1;
            }
            '\\' => match self.peek(1) {
                None => {
                    self.mark(Unclear::Unbalanced);
                    self.push(c);
                }
                Some('\n') => {
                    self.mark(Unclear::LineContinuation);
                    self.at += 2;
                }
                Some(next) => {
                    self.check(next);
                    if !next.is_ascii() {
                        self.mark(Unclear::NonAscii);
                    }
                    self.word().quoted = true;
                    self.at += 1;
                    self.push(next);
                }
            },
            '$' => self.dollar(),
            '`' => self.backtick(),
            '#' if self.word.is_none() => {
                while let Some(c) = self.peek(0).filter(|c| *c != '\n') {
                    self.check(c);
                    self.at += c.len_utf8();
                }
            }
            ';' | '&' | '|' => self.operator(c),
            '<' | '>' => self.redirection(c),
            '(' => self.parenthesis(),
            ')' => {
                let is_mine = self
                    .stack
                    .last()
                    .is_some_and(|frame| frame.kind == Kind::Parenthesis);
                self.at += 1;
                if is_mine {
                    self.leave();
                } else {
                    self.mark(Unclear::Syntax);
                    self.finish();
                }
            }
            _ => self.plain(c),
        }
    }

    fn single(&mut self) {
        self.word().quoted = true;
        self.at += 1;
        loop {
            match self.peek(0) {
                None => {
                    self.mark(Unclear::Unbalanced);
                    return;
                }
                Some('\'') => {
                    self.at += 1;
                    return;
                }
                Some(c) => {
                    self.check(c);
                    self.push(c);
                }
            }
        }
    }

    /// A character that is text, or makes the word a pattern.
    fn plain(&mut self, c: char) {
        let begins = self.word.is_none();
        match c {
            // The command of that name, or a word of its own.
            '[' if begins && is_blank(self.peek(1)) => {}
            '*' | '?' | '[' => self.mark(Unclear::Glob),
            '{' if begins && self.peek(1) == Some('}') && is_delimiter(self.peek(2)) => {
                self.push('{');
                self.push('}');
                return;
            }
            // A group's, where a command begins.
            '{' | '}' if begins && is_delimiter(self.peek(1)) && self.open.argv.is_empty() => {}
            '{' | '}' => self.mark(Unclear::Brace),
            '~' => {
                let before = self.word.as_ref().and_then(|word| word.text.chars().last());
                if matches!(before, None | Some('=' | ':')) {
                    self.mark(Unclear::Tilde);
                }
            }
            '=' => self.word().equals = true,
            _ if !c.is_ascii() => self.mark(Unclear::NonAscii),
            _ => {}
        }
        self.push(c);
    }

    fn end_word(&mut self) {
        let Some(word) = self.word.take() else { return };
        self.open.begun = true;
        self.words += 1;
        if self.words > MAX_WORDS {
            self.mark(Unclear::TooManyWords);
            return;
        }
        match self.open.owed.take() {
            Some(Owed::File) => return,
            Some(Owed::Document { tabs }) => {
                self.documents.push_back((word.text, tabs));
                return;
            }
            None => {}
        }
        if self.open.argv.is_empty() {
            if !word.quoted
                && let Some(why) = names::reserved(&word.text)
            {
                // What it begins with may be a command.
                self.mark(why);
                self.wanted = false;
                if word.text == "function" {
                    // Its name is none of a command.
                    self.open.owed = Some(Owed::File);
                }
                return;
            }
            if word.equals {
                self.mark(Unclear::Assignment);
                return;
            }
        }
        self.open.starts.push(word.at);
        if word.dynamic && self.open.argv.is_empty() {
            // A name that nobody knows: what follows are its words, not a command.
            self.open.argv.push(String::new());
            return;
        }
        self.open.argv.push(word.text);
    }

    /// The command ends here, if there is one.
    fn finish(&mut self) -> bool {
        self.end_word();
        if self.open.owed.take().is_some() {
            self.mark(Unclear::Syntax);
        }
        let open = std::mem::take(&mut self.open);
        if open.begun {
            self.wanted = false;
        } else {
            // `a |`, a new line, `b`.
            self.open.piped = open.piped;
        }
        if !open.argv.is_empty() {
            self.found.commands.push(Simple {
                argv: open.argv,
                starts: open.starts,
                piped: open.piped,
            });
        }
        open.begun
    }

    fn operator(&mut self, c: char) {
        let twice = self.peek(1) == Some(c);
        let (bytes, goes_on) = match (c, self.peek(1)) {
            ('&', Some('>')) => {
                self.redirection(c);
                return;
            }
            ('&', Some('&')) | ('|', Some('|')) => (2, true),
            ('|', Some('&')) => {
                self.mark(Unclear::Redirection);
                (2, true)
            }
            ('|', _) => (1, true),
            ('&', _) => {
                self.mark(Unclear::Background);
                (1, false)
            }
            (_, Some(';' | '&')) => {
                self.mark(Unclear::Compound);
                (2, false)
            }
            _ => (1, false),
        };
        if !self.finish() {
            self.mark(Unclear::Syntax);
        }
        self.at += bytes;
        self.wanted = goes_on;
        self.open.piped = c == '|' && !twice;
    }

    fn redirection(&mut self, c: char) {
        let rest = &self.line[self.at..];
        let (bytes, owed, why) = if rest.starts_with("<<<") {
            (3, Owed::File, Unclear::HereString)
        } else if rest.starts_with("<<-") {
            (3, Owed::Document { tabs: true }, Unclear::HereDocument)
        } else if rest.starts_with("<<") {
            (2, Owed::Document { tabs: false }, Unclear::HereDocument)
        } else if rest.starts_with("<(") || rest.starts_with(">(") {
            self.dynamic(Unclear::ProcessSubstitution);
            self.enter(Kind::Parenthesis, 2, false);
            return;
        } else {
            let more = rest.len() - rest.trim_start_matches(['<', '>', '&', '|']).len();
            (more.min(3), Owed::File, Unclear::Redirection)
        };
        self.mark(why);
        // `2>`: the number is no word.
        let is_number = self
            .word
            .as_ref()
            .is_some_and(|word| word.text.bytes().all(|b| b.is_ascii_digit()));
        if is_number && c != '&' {
            self.word = None;
        }
        self.end_word();
        self.open.begun = true;
        self.open.owed = Some(owed);
        self.at += bytes;
    }

    fn parenthesis(&mut self) {
        let rest = self.line[self.at + 1..].trim_start_matches([' ', '\t']);
        let is_name = self.open.argv.len() + usize::from(self.word.is_some()) == 1;
        if is_name && rest.starts_with(')') {
            self.mark(Unclear::Function);
            self.word = None;
            self.open = Open::default();
            self.at = self.line.len() - rest.len() + 1;
            return;
        }
        if let Some(word) = &mut self.word {
            let why = match word.text.chars().last() {
                Some('?' | '*' | '+' | '@' | '!') => Unclear::Glob,
                Some('=') if word.equals => Unclear::Assignment,
                _ => Unclear::Syntax,
            };
            word.dynamic = true;
            self.mark(why);
            self.enter(Kind::Parenthesis, 1, false);
            return;
        }
        let why = if self.open.begun && !self.open.argv.is_empty() {
            Unclear::Syntax
        } else if self.peek(1) == Some('(') {
            Unclear::Arithmetic
        } else {
            Unclear::Subshell
        };
        self.mark(why);
        self.enter(Kind::Parenthesis, 1, true);
    }

    /// From the line behind a here-document's beginning to its end.
    fn skip_documents(&mut self) {
        while let Some((end, tabs)) = self.documents.pop_front() {
            loop {
                let rest = &self.line[self.at..];
                if rest.is_empty() {
                    self.mark(Unclear::Unbalanced);
                    return;
                }
                let text = rest.split('\n').next().unwrap_or_default();
                let next = (self.at + text.len() + 1).min(self.line.len());
                let bare = if tabs {
                    text.trim_start_matches('\t')
                } else {
                    text
                };
                for c in text.chars() {
                    self.check(c);
                }
                self.at = next;
                if bare == end {
                    break;
                }
            }
        }
    }

    fn end(mut self) -> Line {
        if self.in_quotes {
            self.mark(Unclear::Unbalanced);
        }
        while !self.stack.is_empty() {
            self.mark(Unclear::Unbalanced);
            self.leave();
        }
        self.finish();
        if self.wanted {
            self.mark(Unclear::Syntax);
        }
        if !self.documents.is_empty() {
            self.mark(Unclear::Unbalanced);
        }
        self.found
    }
}

/// What ends a word.
fn is_delimiter(c: Option<char>) -> bool {
    is_blank(c) || matches!(c, Some(';' | '&' | '|' | '<' | '>' | '(' | ')'))
}
