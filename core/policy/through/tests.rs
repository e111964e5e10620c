use super::*;

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

fn roles(argv: &[String], path: Option<&str>) -> (String, Vec<&'static str>) {
    let found = commands(argv, path);
    let one = |started: &Started| {
        let role = match started.role {
            Role::Wrapper => 'w',
            Role::Shell => 's',
            Role::Builtin => 'b',
            Role::Command => 'c',
            Role::Guess => '?',
        };
        let place = started
            .place
            .map_or_else(|| "-".to_owned(), |(index, from)| format!("{index}.{from}"));
        format!("{role}{place}:{}", started.argv[0])
    };
    let list: Vec<String> = found.list.iter().map(one).collect();
    (list.join(" "), found.why.iter().map(|why| why.id).collect())
}

#[test]
fn what_a_wrapper_starts_is_found_where_that_is_certain() {
    for (line, list) in [
        ("ls -l", "c0.0:ls"),
        ("env ls", "w0.0:env c1.0:ls"),
        ("nice ls", "w0.0:nice c1.0:ls"),
        ("nice -n 5 ls", "w0.0:nice c3.0:ls"),
        ("nice -n5 ls", "w0.0:nice c2.0:ls"),
        ("nice -5 ls", "w0.0:nice c2.0:ls"),
        ("nice -n -5 -- ls", "w0.0:nice c4.0:ls"),
        ("nice --adjustment=5 ls", "w0.0:nice c2.0:ls"),
        ("nohup ls", "w0.0:nohup c1.0:ls"),
        ("time -p ls", "w0.0:time c2.0:ls"),
        ("timeout 5 ls", "w0.0:timeout c2.0:ls"),
        ("timeout -k 1s -s KILL 5.5m ls -k x", "w0.0:timeout c6.0:ls"),
        (
            "timeout --signal=9 --kill-after=2 -v 5 ls",
            "w0.0:timeout c5.0:ls",
        ),
        ("stdbuf -oL -e 0 ls", "w0.0:stdbuf c4.0:ls"),
        (
            "nice timeout 5 env nohup ls",
            "w0.0:nice w1.0:timeout w3.0:env w4.0:nohup c5.0:ls",
        ),
    ] {
        assert_eq!(
            roles(&words(line), None),
            (list.to_owned(), vec![]),
            "{line}"
        );
    }
}

#[test]
fn what_a_shell_runs_is_found_where_its_line_is_certain() {
    let line = |options: &str, line: &str| {
        let mut argv = words(options);
        argv.push(line.to_owned());
        argv
    };
    for (argv, list) in [
        (
            line("sh -c", "ls; echo a | nice wc"),
            "s0.0:sh c2.0:ls b2.4:echo w2.13:nice c2.18:wc",
        ),
        (line("bash -ec", "ls"), "s0.0:bash c2.0:ls"),
        (line("sh -e -u -c", "'l's"), "s0.0:sh c4.0:ls"),
        (line("nice sh -c", "ls"), "w0.0:nice s1.0:sh c3.0:ls"),
        (
            line("timeout 5 dash -c", "nice\nid"),
            "w0.0:timeout s2.0:dash c4.0:nice c4.5:id",
        ),
    ] {
        let (found, why) = roles(&argv, None);
        let why: Vec<_> = why
            .into_iter()
            .filter(|id| *id != "wrapper-options")
            .collect();
        assert_eq!((found, why), (list.to_owned(), vec![]), "{argv:?}");
    }
    let (list, why) = roles(&line("sh -c", "sh -c ls"), None);
    assert_eq!(list, "s0.0:sh s2.0:sh c-:ls");
    assert_eq!(why, ["nested-shell"]);
}

#[test]
fn what_is_not_certain_is_named_and_what_may_be_behind_it_seen() {
    for (line, list, why) in [
        ("env A=b rm x", "c0.0:env ?2.0:rm", "sets-environment"),
        ("env -i rm", "c0.0:env ?2.0:rm", "wrapper-options"),
        ("env -S rm", "c0.0:env ?2.0:rm", "wrapper-options"),
        ("env", "c0.0:env", "wrapper-options"),
        (
            "nice -n x rm",
            "c0.0:nice ?2.0:x ?3.0:rm",
            "wrapper-options",
        ),
        (
            "timeout --new 5 rm",
            "c0.0:timeout ?3.0:rm",
            "wrapper-options",
        ),
        ("timeout rm", "c0.0:timeout ?1.0:rm", "wrapper-options"),
        ("stdbuf rm", "c0.0:stdbuf ?1.0:rm", "wrapper-options"),
        (
            "sudo -u bob rm x",
            "c0.0:sudo ?2.0:bob ?3.0:rm",
            "privilege",
        ),
        ("sudo rm x", "c0.0:sudo ?1.0:rm", "privilege"),
        ("doas rm", "c0.0:doas ?1.0:rm", "privilege"),
        ("xargs -n1 rm", "c0.0:xargs ?2.0:rm", "dynamic-arguments"),
        (
            "find . -exec rm {} ;",
            "c0.0:find ?3.0:rm",
            "dynamic-arguments",
        ),
        ("find . -name x", "c0.0:find", ""),
        (
            "find . -ok rm ; -execdir id +",
            "c0.0:find ?3.0:rm ?6.0:id",
            "dynamic-arguments",
        ),
        ("busybox rm x", "c0.0:busybox ?1.0:rm", "multi-call"),
        ("toybox sh", "c0.0:toybox ?1.0:sh", "multi-call"),
        ("ssh host rm x", "c0.0:ssh", "remote-command"),
        ("setsid rm", "c0.0:setsid ?1.0:rm", "starts-commands"),
        ("strace -f rm", "c0.0:strace ?2.0:rm", "starts-commands"),
        ("python3 -c x", "c0.0:python3", "inline-code"),
        ("python3 -Bc x", "c0.0:python3", "inline-code"),
        ("perl -ne x", "c0.0:perl", "inline-code"),
        ("node --eval x", "c0.0:node", "inline-code"),
        ("awk x", "c0.0:awk", "inline-code"),
        ("python3 x.py", "c0.0:python3", "starts-commands"),
        ("make x", "c0.0:make", "starts-commands"),
        ("sh x.sh", "c0.0:sh", "shell"),
        ("sh", "c0.0:sh", "shell"),
        ("sh -c", "c0.0:sh", "shell"),
        ("sh -c -x", "c0.0:sh", "shell"),
        ("sh -c +x", "c0.0:sh ?2.0:+x", "shell"),
        ("sh -lc rm", "c0.0:sh ?2.0:rm", "shell"),
        ("bash -ic rm", "c0.0:bash ?2.0:rm", "shell"),
        ("bash --rcfile f -c rm", "c0.0:bash ?2.0:f ?4.0:rm", "shell"),
        ("zsh -c rm", "c0.0:zsh ?2.0:rm", "shell"),
        ("nice ./x", "w0.0:nice c1.0:./x", "command-name"),
    ] {
        let (found, ids) = roles(&words(line), None);
        let first = ids.first().copied().unwrap_or_default();
        assert_eq!((found.as_str(), first), (list, why), "{line}");
    }
}

#[test]
fn the_file_decides_what_the_plans_own_name_is() {
    let why = |line: &str, path: &str| roles(&words(line), Some(path)).1;
    assert!(why("nice ls", "/usr/bin/nice").is_empty());
    assert_eq!(why("nice ls", "/tmp/nice"), ["wrapper-options"]);
    assert_eq!(why("nice ls", "/usr/bin/busybox"), ["wrapper-options"]);
    assert!(why("sh -c ls", "/usr/bin/dash").is_empty());
    assert_eq!(why("sh -c ls", "/usr/bin/zsh"), ["shell"]);
    assert_eq!(why("sh -c ls", "/home/x/dash"), ["shell"]);
    assert_eq!(why("foo ls", "/usr/bin/env"), ["wrapper-options"]);
    assert_eq!(why("foo -c ls", "/usr/bin/dash"), ["shell"]);
    assert!(why("foo ls", "/usr/bin/foo").is_empty());
}

#[test]
fn four_are_looked_through_and_no_more() {
    let four = words("nice nice nice nice ls");
    assert!(roles(&four, None).1.is_empty());
    let five = words("nice nice nice nice nice ls");
    assert_eq!(roles(&five, None).1, ["wrapped-too-deep"]);
    // However many words there are.
    let many = vec!["nice".to_owned(); 900];
    assert!(roles(&many, None).1.contains(&"wrapped-too-deep"));
    assert!(commands(&many, None).list.len() <= MAX_STARTED);
    // What is behind them is still seen.
    assert!(
        roles(&words("nice nice nice nice nice nice rm"), None)
            .0
            .ends_with(":rm")
    );
    let line = |line: &str| ["nice", "sh", "-c", line].map(str::to_owned).to_vec();
    assert!(roles(&line("nice nice nice ls"), None).1.is_empty());
    assert_eq!(
        roles(&line("nice nice nice nice ls"), None).1,
        ["wrapped-too-deep"]
    );
    let wide = ["find".to_owned()]
        .into_iter()
        .chain((0..400).flat_map(|_| words("-exec a ;")));
    let wide: Vec<String> = wide.collect();
    assert!(commands(&wide, None).list.len() <= MAX_STARTED);
}
