use super::*;
use proptest::prelude::*;

fn argvs(line: &Line) -> Vec<Vec<&str>> {
    let words = line.commands.iter().map(|simple| &simple.argv);
    words
        .map(|argv| argv.iter().map(String::as_str).collect())
        .collect()
}

#[test]
fn a_plain_line_is_its_commands() {
    for (line, commands) in [
        ("ls", &[&["ls"][..]][..]),
        ("  ls\t-l  ", &[&["ls", "-l"]]),
        ("ls;id", &[&["ls"], &["id"]]),
        ("ls ; id ;", &[&["ls"], &["id"]]),
        ("ls\nid\n", &[&["ls"], &["id"]]),
        ("ls && id || uname", &[&["ls"], &["id"], &["uname"]]),
        ("ls | wc -l", &[&["ls"], &["wc", "-l"]]),
        ("ls |\n\n wc", &[&["ls"], &["wc"]]),
        ("ls &&\nid", &[&["ls"], &["id"]]),
        (
            "echo 'a;b' \"c|d\" e\\;f",
            &[&["echo", "a;b", "c|d", "e;f"]],
        ),
        ("'l's", &[&["ls"]]),
        ("l\\s", &[&["ls"]]),
        ("\"ls\"", &[&["ls"]]),
        ("echo ''", &[&["echo", ""]]),
        ("echo 'a'\"b\"c", &[&["echo", "abc"]]),
        (
            "echo \"a\\\"b\\\\c\\$d\\`e\\f\"",
            &[&["echo", "a\"b\\c$d`e\\f"]],
        ),
        ("echo 'a\nb'", &[&["echo", "a\nb"]]),
        (
            "grep foo$ \"bar$\" \"a $ b\"",
            &[&["grep", "foo$", "bar$", "a $ b"]],
        ),
        ("ls # ; rm -rf /", &[&["ls"]]),
        ("ls # a\nid", &[&["ls"], &["id"]]),
        ("echo a#b", &[&["echo", "a#b"]]),
        ("[ -f x ]", &[&["[", "-f", "x", "]"]]),
        ("echo {} HEAD~1 x~", &[&["echo", "{}", "HEAD~1", "x~"]]),
        ("dd if=a of=b", &[&["dd", "if=a", "of=b"]]),
        ("'if' x", &[&["if", "x"]]),
        ("echo if then !", &[&["echo", "if", "then", "!"]]),
        ("'a=b' c", &[&["a=b", "c"]]),
        (
            "echo '$(id)' '`id`' '*' '~'",
            &[&["echo", "$(id)", "`id`", "*", "~"]],
        ),
        (
            "echo \\$x \\* \\~ \\{a,b\\}",
            &[&["echo", "$x", "*", "~", "{a,b}"]],
        ),
        ("echo 'é' \"ü\"", &[&["echo", "é", "ü"]]),
        ("printf '%s\\n' x", &[&["printf", "%s\\n", "x"]]),
        ("--x", &[&["--x"]]),
    ] {
        let read = read(line);
        assert!(read.is_certain(), "{line:?}: {:?}", read.unclear);
        assert_eq!(argvs(&read), commands, "{line:?}");
    }
}

#[test]
fn where_a_command_begins_and_what_it_reads_from_is_told() {
    let read = read("ls -l | 'w'c ; id");
    let told = |c: &Simple| (c.starts.clone(), c.piped);
    let told: Vec<_> = read.commands.iter().map(told).collect();
    assert_eq!(
        told,
        [(vec![0, 3], false), (vec![8], true), (vec![15], false)]
    );
}

#[test]
fn what_is_not_plain_is_named() {
    use Unclear::*;
    for (line, why) in [
        ("echo $(id)", CommandSubstitution),
        ("echo \"$(id)\"", CommandSubstitution),
        ("echo `id`", CommandSubstitution),
        ("echo \"`id`\"", CommandSubstitution),
        ("cat <(id)", ProcessSubstitution),
        ("tee >(id)", ProcessSubstitution),
        ("echo $((1+1))", Arithmetic),
        ("((1+1))", Arithmetic),
        ("echo $[1]", Arithmetic),
        ("echo $x", Parameter),
        ("echo ${x}", Parameter),
        ("echo \"$x\"", Parameter),
        ("echo $?", Parameter),
        ("$x", Parameter),
        ("ls > f", Redirection),
        ("ls 2>&1", Redirection),
        ("ls &> f", Redirection),
        ("ls |& wc", Redirection),
        ("< f cat", Redirection),
        ("cat << E\nE\n", HereDocument),
        ("cat <<-E\n\tE\n", HereDocument),
        ("cat <<< x", HereString),
        ("f() { ls; }", Function),
        ("f () { ls; }", Function),
        ("function f { ls; }", Function),
        ("if ls; then id; fi", Compound),
        ("for i in a; do ls; done", Compound),
        ("while ls; do id; done", Compound),
        ("until ls; do id; done", Compound),
        ("case a in a) ls;; esac", Compound),
        ("select x in a; do ls; done", Compound),
        ("{ ls; }", Group),
        ("(ls)", Subshell),
        ("ls &", Background),
        ("ls & id", Background),
        ("ls *", Glob),
        ("ls ?", Glob),
        ("ls [a]", Glob),
        ("ls @(a|b)", Glob),
        ("echo {a,b}", Brace),
        ("echo {1..3}", Brace),
        ("echo { }", Brace),
        ("ls ~", Tilde),
        ("ls ~root/x", Tilde),
        ("echo a=~/x", Tilde),
        ("A=1 ls", Assignment),
        ("A=1", Assignment),
        ("A+=1 ls", Assignment),
        ("A='x' ls", Assignment),
        ("a=(b) ls", Assignment),
        ("alias ls=id", Alias),
        ("eval ls", Eval),
        ("'ev'al ls", Eval),
        ("\\eval ls", Eval),
        (". ./f", Source),
        ("source f", Source),
        ("cd /tmp", Builtin),
        ("exec ls", Builtin),
        ("command ls", Builtin),
        ("builtin echo", Builtin),
        ("trap id EXIT", Builtin),
        ("export A=b", Builtin),
        ("set -x", Builtin),
        ("printf -v x y", Builtin),
        ("printf 'ab%n' PATH", Builtin),
        ("printf 'ab%-5n' PATH", Builtin),
        ("printf %(%F)T 1", Syntax),
        ("test -v 'a[$(id)]'", Builtin),
        ("[ -v 'a[$(id)]' ]", Builtin),
        ("ls \\\nid", LineContinuation),
        ("l\\\ns", LineContinuation),
        ("echo \"a\\\nb\"", LineContinuation),
        ("echo $'a'", AnsiQuoting),
        ("echo $\"a\"", LocaleQuoting),
        ("! ls", Negation),
        ("time ls", TimeKeyword),
        ("coproc ls", Coprocess),
        ("[[ -f x ]]", ExtendedTest),
        ("%1", JobControl),
        ("'%1'", JobControl),
        ("echo é", NonAscii),
        ("ls\u{a0}-l", NonAscii),
        ("ls\u{3000}-l", NonAscii),
        ("ls\r", Control),
        ("ls\0", Control),
        ("echo '\u{1b}[2J'", Control),
        ("echo '\u{202e}x'", Hidden),
        ("echo '\u{200b}x'", Hidden),
        ("echo 'a", Unbalanced),
        ("echo \"a", Unbalanced),
        ("echo a\\", Unbalanced),
        ("(ls", Unbalanced),
        ("echo $(ls", Unbalanced),
        ("ls )", Syntax),
        ("; ls", Syntax),
        ("ls ;; id", Compound),
        ("ls && && id", Syntax),
        ("ls &&", Syntax),
        ("ls ||", Syntax),
        ("ls |", Syntax),
        ("| ls", Syntax),
        ("ls; ; id", Syntax),
        ("", Empty),
        ("  \n", Empty),
        ("# ls", Empty),
    ] {
        let read = read(line);
        assert!(read.unclear.contains(&why), "{line:?}: {:?}", read.unclear);
    }
}

#[test]
fn of_an_unclear_line_the_commands_are_still_seen() {
    for (line, names) in [
        ("echo $(rm x)", &["rm", "echo"][..]),
        ("echo \"$(rm x)\" a; ls", &["rm", "echo", "ls"]),
        ("echo `rm x` b; ls", &["rm", "echo", "ls"]),
        ("if rm x; then ls; else id; fi", &["rm", "ls", "id"]),
        ("(rm x); ls", &["rm", "ls"]),
        ("{ rm x; }", &["rm"]),
        ("f() { rm x; }; f", &["rm", "f"]),
        ("function f { rm x; }; ls", &["rm", "ls"]),
        ("A=1 rm x", &["rm"]),
        ("> f rm x", &["rm"]),
        ("2> f rm x", &["rm"]),
        ("cat <<E\nrm x\nE\nls", &["cat", "ls"]),
        ("ls & rm x", &["ls", "rm"]),
        ("! rm x", &["rm"]),
        ("while rm x; do ls; done", &["rm", "ls"]),
        ("echo $(echo $(rm x) y) z", &["rm", "echo", "echo"]),
        ("cat <(rm x)", &["rm", "cat"]),
        ("$x a", &[""]),
    ] {
        let read = read(line);
        let found: Vec<&str> = read.commands.iter().map(|c| c.argv[0].as_str()).collect();
        assert!(!read.is_certain());
        assert_eq!(found, names, "{line:?}");
    }
}

#[test]
fn a_line_has_its_limits() {
    let too = |line: &str, why| assert!(read(line).unclear.contains(&why), "{why:?}");
    too(&"a".repeat(MAX_LINE + 1), Unclear::TooLong);
    too(
        &vec!["ls"; MAX_COMMANDS + 1].join(";"),
        Unclear::TooManyCommands,
    );
    too(
        &vec!["ls"; MAX_COMMANDS + 1].join("|"),
        Unclear::TooManyCommands,
    );
    too(&vec!["ls"; MAX_WORDS + 1].join(" "), Unclear::TooManyWords);
    too(&"(".repeat(MAX_LINE), Unclear::TooDeep);
    too(&"$(".repeat(MAX_LINE / 2), Unclear::TooDeep);
    too(&"`".repeat(MAX_LINE), Unclear::CommandSubstitution);
    too(&"{ ".repeat(MAX_LINE / 2), Unclear::Group);
    assert!(read(&vec!["ls"; MAX_COMMANDS].join(" && ")).is_certain());
    assert!(read(&vec!["ls"; MAX_WORDS].join(" ")).is_certain());
    assert_eq!(
        read_bytes(b"ls \xff").unclear,
        BTreeSet::from([Unclear::NotUtf8])
    );
    assert!(read_bytes(b"ls").is_certain());
}

/// The second reading is one of its own: other words, another order and another input are not the line's.
#[test]
fn two_readings_that_differ_are_seen() {
    let read = read("ls -l | wc; id");
    assert!(second::agrees("ls -l | wc; id", &read.commands));
    for other in [
        "ls -l; wc; id",
        "ls -l | wc",
        "ls -l | wc | id",
        "ls | wc; id",
        "ls -l | wc; id &",
        "ls -l | wc; ! id",
        "ls -l | wc; id > f",
        "A=b ls -l | wc; id",
        "(ls -l | wc; id)",
        "ls -l | wc; id; 'x",
        "ls $'-l' | wc; id",
        "ls -{l,l} | wc; id",
    ] {
        assert!(!second::agrees(other, &read.commands), "{other}");
    }
}

#[test]
fn each_reason_has_one_id() {
    let ids: BTreeSet<&str> = Unclear::ALL.iter().map(|why| why.id()).collect();
    assert_eq!(ids.len(), Unclear::ALL.len());
    assert!(ids.iter().all(|id| {
        id.bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    }));
}

/// Parts of lines, so that what is made of them is often one.
fn pieces() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("ls"),
        Just("echo"),
        Just(" "),
        Just("\n"),
        Just("\t"),
        Just("'"),
        Just("\""),
        Just("\\"),
        Just("$"),
        Just("("),
        Just(")"),
        Just("{"),
        Just("}"),
        Just("`"),
        Just(";"),
        Just("&"),
        Just("|"),
        Just("<"),
        Just(">"),
        Just("#"),
        Just("*"),
        Just("["),
        Just("]"),
        Just("~"),
        Just("="),
        Just("!"),
        Just("if"),
        Just("fi"),
        Just("done"),
        Just("a"),
        Just("é"),
        Just("\r"),
        Just("<<E"),
        Just("E"),
        Just("-"),
        Just("%"),
        Just("[["),
        Just("time"),
    ];
    proptest::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

/// A word so that no shell finds more than itself in it.
fn in_quotes(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

proptest! {
    #[test]
    fn no_line_makes_it_panic(line in ".{0,200}", pieces in pieces(), bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        read(&line);
        read(&pieces);
        read_bytes(&bytes);
    }

    #[test]
    fn commands_begin_where_they_are_said_to(line in pieces()) {
        let read = read(&line);
        if read.is_certain() {
            let mut before = None;
            for at in read.commands.iter().flat_map(|simple| &simple.starts) {
                prop_assert!(Some(at) > before && line.is_char_boundary(*at));
                before = Some(at);
            }
            for simple in &read.commands {
                prop_assert_eq!(simple.starts.len(), simple.argv.len());
            }
        }
    }

    /// What is quoted as a whole is that word and no other, and no line of such words is anything but its one command.
    #[test]
    fn quoting_makes_nothing_of_a_word_but_the_word(words in proptest::collection::vec("[ -~é]{0,8}", 1..5)) {
        prop_assume!(!words[0].starts_with('%'));
        let line: Vec<String> = words.iter().map(|word| in_quotes(word)).collect();
        let read = read(&line.join(" "));
        let builtin = names::builtin(&words);
        prop_assert_eq!(read.unclear, builtin.into_iter().collect::<BTreeSet<_>>());
        prop_assert_eq!(&read.commands[0].argv, &words);
    }
}
