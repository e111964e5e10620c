//! A second reading of the line, by a parser that others keep: where the two differ, neither counts.

use shuck_ast::{BinaryOp, Command, SimpleCommand, Stmt, StmtSeq, StmtTerminator, Word, WordPart};
use shuck_parser::ShellDialect;
use shuck_parser::ShellProfile;
use shuck_parser::parser::Parser;

use super::Simple;

/// Nothing is nested in what comes here.
const DEPTH: usize = 32;
/// Steps of the parser for each byte.
const FUEL_PER_BYTE: usize = 64;
/// And for a line of any length.
const FUEL: usize = 4096;

/// Does the line mean these commands, and nothing else, by POSIX' grammar and by bash's?
pub(super) fn agrees(line: &str, commands: &[Simple]) -> bool {
    [ShellDialect::Posix, ShellDialect::Bash]
        .into_iter()
        .all(|dialect| read(line, dialect).is_some_and(|read| same(&read, commands)))
}

fn same(read: &[(Vec<String>, bool)], commands: &[Simple]) -> bool {
    read.len() == commands.len()
        && read
            .iter()
            .zip(commands)
            .all(|((argv, piped), simple)| *argv == simple.argv && *piped == simple.piped)
}

/// The words of each command, and whether it reads from the one before it.
fn read(line: &str, dialect: ShellDialect) -> Option<Vec<(Vec<String>, bool)>> {
    let fuel = FUEL + line.len() * FUEL_PER_BYTE;
    let profile = ShellProfile::native(dialect);
    let result = Parser::with_limits_and_profile(line, DEPTH, fuel, profile).parse();
    if !result.is_ok() {
        return None;
    }
    let mut commands = Vec::new();
    statements(line, &result.file.body, &mut commands)?;
    Some(commands)
}

fn statements(line: &str, body: &StmtSeq, to: &mut Vec<(Vec<String>, bool)>) -> Option<()> {
    for statement in &body.stmts {
        // A list leans to the left: its last command is on top. Walked without recursion, from the right.
        let mut found = Vec::new();
        let mut open = vec![(statement, false)];
        while let Some((statement, piped)) = open.pop() {
            if !is_plain(statement) {
                return None;
            }
            match &statement.command {
                Command::Simple(simple) => found.push((argv(line, simple)?, piped)),
                Command::Binary(pair) => {
                    let from_left = match pair.op {
                        BinaryOp::And | BinaryOp::Or => false,
                        BinaryOp::Pipe => true,
                        BinaryOp::PipeAll => return None,
                    };
                    // Its own input is the first command's.
                    open.push((&pair.left, piped));
                    open.push((&pair.right, from_left));
                }
                _ => return None,
            }
        }
        to.extend(found.into_iter().rev());
    }
    Some(())
}

fn is_plain(statement: &Stmt) -> bool {
    !statement.negated
        && statement.redirects.is_empty()
        && matches!(statement.terminator, None | Some(StmtTerminator::Semicolon))
}

fn argv(line: &str, simple: &SimpleCommand) -> Option<Vec<String>> {
    if !simple.assignments.is_empty() {
        return None;
    }
    std::iter::once(&simple.name)
        .chain(&simple.args)
        .map(|word| text(line, word))
        .collect()
}

/// The word's text, if it is one whatever the shell's variables and folders hold.
fn text(line: &str, word: &Word) -> Option<String> {
    if word.has_active_brace_expansion() {
        return None;
    }
    let mut text = String::new();
    for (part, span) in word.parts_with_spans() {
        match part {
            WordPart::Literal(literal) => unescape(literal.syntax_str(line, span), "", &mut text),
            WordPart::SingleQuoted {
                value,
                dollar: false,
            } => text.push_str(value.slice(line)),
            WordPart::DoubleQuoted {
                parts,
                dollar: false,
            } => {
                for part in parts {
                    let WordPart::Literal(literal) = &part.kind else {
                        return None;
                    };
                    unescape(literal.syntax_str(line, part.span), "$`\"\\", &mut text);
                }
            }
            _ => return None,
        }
    }
    Some(text)
}

/// As written: a backslash stands for what follows it, in double quotes only before one of `only`.
fn unescape(written: &str, only: &str, to: &mut String) {
    let mut chars = written.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            to.push(c);
            continue;
        }
        match chars.next() {
            Some(next) if only.is_empty() || only.contains(next) => to.push(next),
            Some(next) => to.extend(['\\', next]),
            None => to.push('\\'),
        }
    }
}
