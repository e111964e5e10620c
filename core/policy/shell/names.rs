//! Words that a shell takes for its own: found before any file is looked for.

use super::Unclear;

/// What a reserved word begins, where a command may begin: of POSIX, and of what bash adds.
pub(super) fn reserved(word: &str) -> Option<Unclear> {
    Some(match word {
        "if" | "then" | "elif" | "else" | "fi" | "for" | "while" | "until" | "do" | "done"
        | "case" | "esac" | "in" | "select" => Unclear::Compound,
        "{" | "}" => Unclear::Group,
        "!" => Unclear::Negation,
        "function" => Unclear::Function,
        "time" => Unclear::TimeKeyword,
        "coproc" => Unclear::Coprocess,
        "[[" | "]]" => Unclear::ExtendedTest,
        _ => return None,
    })
}

/// Commands of dash, bash or both that run in the shell itself, without those of [`harmless`].
const BUILTINS: &[&str] = &[
    ":",
    "bg",
    "bind",
    "break",
    "builtin",
    "caller",
    "cd",
    "chdir",
    "command",
    "compgen",
    "complete",
    "compopt",
    "continue",
    "declare",
    "dirs",
    "disown",
    "enable",
    "exec",
    "exit",
    "export",
    "fc",
    "fg",
    "getopts",
    "hash",
    "help",
    "history",
    "jobs",
    "kill",
    "let",
    "local",
    "logout",
    "mapfile",
    "newgrp",
    "popd",
    "print",
    "pushd",
    "read",
    "readarray",
    "readonly",
    "return",
    "set",
    "setvar",
    "shift",
    "shopt",
    "suspend",
    "times",
    "trap",
    "type",
    "typeset",
    "ulimit",
    "umask",
    "unset",
    "wait",
];

/// What the command's own name makes of it, if the shell runs it itself.
pub(super) fn builtin(argv: &[String]) -> Option<Unclear> {
    let name = argv.first()?.as_str();
    Some(match name {
        "eval" => Unclear::Eval,
        "." | "source" => Unclear::Source,
        "alias" | "unalias" => Unclear::Alias,
        _ if BUILTINS.contains(&name) => Unclear::Builtin,
        // With these words bash sets variables, or reads one as an expression that may hold a command.
        "printf" if !is_plain_format(argv) => Unclear::Builtin,
        "test" | "[" if argv.iter().any(|word| word == "-v" || word == "-R") => Unclear::Builtin,
        _ => return None,
    })
}

/// Run by the shell itself, with the meaning that the program of the same name has: they start nothing and set nothing.
pub(in crate::policy) fn is_harmless(name: &str) -> bool {
    matches!(
        name,
        "true" | "false" | "echo" | "printf" | "pwd" | "test" | "["
    )
}

/// Is it a format of `printf` that stores nothing? `-v NAME` does in bash, and so does `%n`: a PATH set so would change what
/// every later name stands for.
fn is_plain_format(argv: &[String]) -> bool {
    let Some(format) = argv.get(1) else {
        return true;
    };
    if format.starts_with('-') {
        return false;
    }
    let mut rest = format.as_str();
    while let Some(at) = rest.find('%') {
        let spec =
            rest[at + 1..].trim_start_matches(|c: char| "-+ #0'123456789.*hlLqjzt".contains(c));
        let mut after = spec.chars();
        match after.next() {
            Some(
                '%' | 's' | 'd' | 'i' | 'o' | 'u' | 'x' | 'X' | 'e' | 'E' | 'f' | 'F' | 'g' | 'G'
                | 'c' | 'b',
            ) => {}
            // `%` at the end is text, and what is not known is not decided here.
            _ => return false,
        }
        rest = after.as_str();
    }
    true
}
