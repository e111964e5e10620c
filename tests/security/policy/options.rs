//! Programs that are harmless but for an option: nobody lists the options, in long or in short, that are bad.

use portcullis_core::ids::AgentId;
use portcullis_core::plan::Target;
use portcullis_core::policy::{
    AgentPolicy, Document, Elevated, ExecMode, Resolved, Rules, Ruling, Standing, judge, preview,
};
use serde_json::{Value, json};

/// Some words.
type Words = &'static [&'static str];

/// A program, the words of its entry, and words that make it start another program or write where they say.
const PROGRAMS: &[(&str, Words, &[Words])] = &[
    (
        "sort",
        &["-u"],
        &[
            &["--compress-program=sh"],
            &["-u", "--compress-program", "sh"],
            &["-u", "--compress-prog", "sh"],
            &["--comp=sh", "-u"],
            &["--co", "sh", "-u"],
            &["-u", "-o", "names"],
            &["-uo", "names"],
            &["-u", "-S1", "--compress-p=sh", "names"],
        ],
    ),
    (
        "git",
        &["log"],
        &[
            &["-c", "core.pager=sh", "log"],
            &["--exec-path=/tmp", "log"],
            &["log", "--ext-diff"],
            &["log", "--output=names"],
            &["log", "--outp", "names"],
        ],
    ),
    (
        "tar",
        &["-tf", "a"],
        &[
            &["-tf", "a", "--to-command=sh"],
            &["-tf", "a", "--to-com=sh"],
            &["-tf", "a", "--use-compress-program=sh"],
            &["-tf", "a", "--use-compress-prog", "sh"],
            &["-tf", "a", "-I", "sh"],
            &["-tf", "a", "--checkpoint-action=exec=sh"],
        ],
    ),
    (
        "find",
        &[".", "-name", "x"],
        &[
            &[".", "-name", "x", "-exec", "sh", "{}", ";"],
            &[".", "-name", "x", "-fprint", "names"],
            &[".", "-name", "x", "-delete"],
        ],
    ),
    (
        "sed",
        &["-n", "p"],
        &[&["-n", "1e"], &["-n", "w names"], &["-ni", "p"]],
    ),
    (
        "rsync",
        &["a", "b"],
        &[
            &["-e", "sh", "a", "b"],
            &["--rsh=sh", "a", "b"],
            &["--rs=sh", "a", "b"],
        ],
    ),
];

fn said(entry: &Value, argv: &[String]) -> Ruling {
    let document = json!({ "version": 1, "agents": { "demo": { "allowlist": [entry] } } });
    let document = Document::parse(document).unwrap();
    let rules = Rules {
        agent: AgentPolicy {
            exec: ExecMode::Full,
            elevated: Elevated::Ask,
            ..AgentPolicy::default()
        },
        document: Standing::Valid(&document),
        now: portcullis_core::time::Millis(0),
    };
    let find = |name: &str| {
        let file = if name == "sh" { "dash" } else { name };
        Some(Resolved {
            path: format!("/usr/bin/{file}"),
            fixed: true,
        })
    };
    let agent = AgentId::new("demo").unwrap();
    let plan = preview(&agent, &Target::Host, argv, "/srv", &find).unwrap();
    judge(&rules, &plan, None).verdict
}

#[test]
fn a_tool_whose_options_start_others_passes_with_its_listed_words_alone() {
    for (program, listed, others) in PROGRAMS {
        let argv = |words: &[&str]| -> Vec<String> {
            let all = std::iter::once(program).chain(words);
            all.map(|word| (*word).to_owned()).collect()
        };
        let path = format!("/usr/bin/{program}");
        let words = json!(listed).to_string();
        let entry = json!({ "pattern": path, "argPattern": words });
        assert_eq!(said(&entry, &argv(listed)), Ruling::Allow, "{program}");
        for other in *others {
            let argv = argv(other);
            assert_eq!(said(&entry, &argv), Ruling::Ask, "{argv:?}");
            // Nor does an entry that says nothing of words, or one over the folder.
            for wide in [
                json!({ "pattern": path }),
                json!({ "pattern": "/usr/bin/*" }),
            ] {
                assert_eq!(said(&wide, &argv), Ruling::Ask, "{argv:?}");
            }
        }
        // Behind a shell it is the same.
        let line = |words: &[&str]| vec!["sh".to_owned(), "-c".to_owned(), argv(words).join(" ")];
        for other in *others {
            assert_eq!(said(&entry, &line(other)), Ruling::Ask, "{other:?}");
        }
    }
}
