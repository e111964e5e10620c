//! What a command may start of which nobody can say for certain what it starts: for lists of what is refused.

use super::command::{CommandKind, base, kind_of_name};
use super::through::is_seen_through;

/// Most words of one command, and of one line, that are looked at.
const MOST: usize = 256;

/// Words of a shell behind which a command stands.
const BEFORE: &[&str] = &[
    "!", "builtin", "command", "coproc", "do", "elif", "else", "eval", "exec", "if", "in", "nohup",
    "then", "time", "trap", "until", "while",
];

/// Everything that may be a command among the words of one that starts others.
pub(super) fn perhaps(argv: &[String]) -> Vec<Vec<String>> {
    let name = argv.first().map_or("", |name| base(name));
    let starts = matches!(
        name,
        "eval" | "trap" | "exec" | "command" | "builtin" | "." | "source"
    ) || kind_of_name(name) == CommandKind::Runner;
    let mut found = Vec::new();
    if !starts || is_seen_through(argv) {
        return found;
    }
    for (at, word) in argv.iter().enumerate().take(MOST).skip(1) {
        if !word.starts_with('-') {
            found.push(argv[at..].iter().take(MOST).cloned().collect());
        }
        // `--exec=COMMAND`, `-SCOMMAND` and lines.
        let value = word.split_once('=').map(|(_, value)| value);
        let attached = word.strip_prefix('-').and_then(|rest| rest.get(1..));
        for text in [Some(word.as_str()), value, attached].into_iter().flatten() {
            found.extend(in_line(text));
        }
    }
    found
}

/// What stands where a command may begin, in a text that may be a line of a shell. Quotes are left out, and brackets begin
/// another line: too much is found here, never too little of what can be seen.
fn in_line(text: &str) -> Vec<Vec<String>> {
    let mut found: Vec<Vec<String>> = Vec::new();
    let (mut word, mut command) = (String::new(), Vec::<String>::new());
    let mut words = 0;
    for c in text.chars().chain(['\n']) {
        let ends_command = matches!(
            c,
            '\n' | ';' | '|' | '&' | '(' | ')' | '{' | '}' | '`' | ',' | '$'
        );
        if !ends_command && !c.is_whitespace() {
            if !matches!(c, '\\' | '\'' | '"') {
                word.push(c);
            }
            continue;
        }
        if !word.is_empty() {
            words += 1;
            let is_before = BEFORE.contains(&word.as_str())
                || word.starts_with('-')
                || word.contains('=')
                || word.contains(['<', '>']);
            let word = std::mem::take(&mut word);
            if !command.is_empty() || !is_before {
                command.push(word);
            }
        }
        if (ends_command || words >= MOST) && !command.is_empty() {
            found.push(std::mem::take(&mut command));
        }
        if words >= MOST {
            break;
        }
    }
    found
}
