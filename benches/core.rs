//! The decisions that need no room: policy over a thousand rules, of commands and of a shell's lines, and sealing beside the bare cipher.
#![forbid(unsafe_code)]

mod support;

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Instant;

use aes_gcm::aead::{Aead as _, Payload};
use aes_gcm::{Aes256Gcm, KeyInit as _, Nonce};
use anyhow::{Context as _, Result, ensure};
use portcullis_core::ids::{AgentId, Hash32};
use portcullis_core::plan::{
    Egress, ExecPlan, Executable, Form, HostFile, Limits, Nonce as PlanNonce, Stdin, Target,
};
use portcullis_core::policy::{
    AgentPolicy, Document, Elevated, ExecMode, Resolved, Rules, Standing, Verdict, decide, preview,
};
use portcullis_core::seal::Key;
use serde_json::{Value, json};
use support::{least, median};

const TURNS: usize = 15;
const DECISIONS: u32 = 20_000;
const SEALS: u32 = 50_000;
const LINES: u32 = 5_000;
/// The most of one agent.
const RULES: usize = 512;
const LONGER: &str = "uname -a | uname 'a b' && uname \"c d\" || uname -r";
const ASKING: &str = "uname -a | uname 'a b' && uname \"c d\" || id -u";

fn main() -> Result<()> {
    policy()?;
    sealing()
}

fn rate(count: u32, mut work: impl FnMut()) -> f64 {
    let began = Instant::now();
    for _ in 0..count {
        work();
    }
    f64::from(count) / began.elapsed().as_secs_f64()
}

/// Two agents with a full list each; the rule that matches is the last of its agent's.
fn policy() -> Result<()> {
    let entries: Vec<Value> = (0..RULES)
        .map(|n| {
            let pattern = match n {
                n if n + 1 == RULES => "/usr/bin/uname".to_owned(),
                n if n % 4 == 0 => format!("/usr/lib/tools-{n}/*"),
                n => format!("/usr/bin/tool-{n}"),
            };
            json!({ "pattern": pattern })
        })
        .collect();
    let agent = json!({ "security": "allowlist", "ask": "on-miss", "allowlist": entries });
    let document = json!({ "version": 1, "agents": { "demo": agent, "other": agent } });
    let document = Document::parse(document).context("the document is refused")?;
    let rules = Rules {
        agent: AgentPolicy {
            exec: ExecMode::Full,
            elevated: Elevated::Allowlist,
            ..AgentPolicy::default()
        },
        document: Standing::Valid(&document),
        now: portcullis_core::time::Millis(0),
    };
    let (hit, miss) = (plan("/usr/bin/uname")?, plan("/usr/bin/id")?);
    ensure!(
        matches!(decide(&rules, &hit, None), Verdict::Allow { rule } if rule.starts_with("list:")),
        "the last rule does not match"
    );
    ensure!(
        !matches!(decide(&rules, &miss, None), Verdict::Allow { .. }),
        "what no rule names is allowed"
    );
    for (what, plan) in [("the last of them allows", &hit), ("none matches", &miss)] {
        let rates = (0..TURNS)
            .map(|_| {
                rate(DECISIONS, || {
                    black_box(decide(black_box(&rules), black_box(plan), None));
                })
            })
            .collect();
        least(
            &format!("policy, {} rules, {what}, thousand a second", 2 * RULES),
            median(rates) / 1e3,
            "k/s",
            200.0,
        );
    }
    lines(&rules)
}

/// Lines of a shell over the same rules: each is read by both readings, and each of its commands looked for.
fn lines(rules: &Rules<'_>) -> Result<()> {
    for (what, line, count, passes) in [
        ("one command", "uname -a", 1, true),
        ("four commands", LONGER, 4, true),
        ("four, of which the last asks", ASKING, 4, false),
    ] {
        let plan = line_plan(line)?;
        let allowed = matches!(decide(rules, &plan, None), Verdict::Allow { .. });
        ensure!(allowed == passes, "{line:?} is not decided as it must be");
        let rates = (0..TURNS)
            .map(|_| {
                rate(LINES, || {
                    black_box(decide(black_box(rules), black_box(&plan), None));
                })
            })
            .collect();
        let lines = median(rates);
        println!(
            "policy, {} rules, a shell's line of {what}: {:.1} thousand lines a second, {:.1} thousand commands",
            2 * RULES,
            lines / 1e3,
            lines * f64::from(count) / 1e3
        );
    }
    Ok(())
}

fn line_plan(line: &str) -> Result<ExecPlan> {
    let argv = ["sh", "-c", line].map(str::to_owned);
    let find = |name: &str| {
        let file = if name == "sh" { "dash" } else { name };
        Some(Resolved {
            path: format!("/usr/bin/{file}"),
            fixed: true,
        })
    };
    let agent = AgentId::new("demo")?;
    preview(&agent, &Target::Host, &argv, "/", &find).context("no plan of a line")
}

fn plan(path: &str) -> Result<ExecPlan> {
    Ok(ExecPlan {
        v: Form::V2,
        target: Target::Host,
        agent: AgentId::new("demo")?,
        session: "bench".into(),
        principal: "uid:0".into(),
        argv: vec![path.into(), "-a".into()],
        executable: Executable::Host(HostFile {
            path: path.into(),
            dev: 1,
            ino: 2,
            sha256: Hash32([3; 32]),
        }),
        operands: vec![],
        cwd: "/".into(),
        uid: 65_534,
        gid: 65_534,
        groups: vec![],
        env: BTreeMap::new(),
        stdin: Stdin::None,
        tty: None,
        limits: Limits {
            timeout_ms: 60_000,
            output_bytes: 1 << 20,
            memory_bytes: None,
            cpu_millis: None,
            pids: None,
        },
        egress: Egress::Host,
        profile_digest: Hash32([4; 32]),
        nonce: PlanNonce::new(&[5; 16])?,
    })
}

/// Seal and open of 256 bytes, beside the cipher alone with its key prepared and as much associated data.
fn sealing() -> Result<()> {
    let (bytes, nonce, plain, aad) = ([7; 32], [8; 12], [9; 256], [1; 64]);
    let key = Key::new(bytes);
    let cipher = Aes256Gcm::new(&bytes.into());
    // Behind its length it is as much as the cipher alone gets.
    let field = &aad[4..];
    let sealed = key.seal(&nonce, &[field], &plain);
    let opened = key
        .open(&nonce, &[field], &sealed)
        .context("it does not open")?;
    ensure!(opened.expose() == plain, "it opens to something else");
    let (mut ratios, mut ours, mut limits) = (vec![], vec![], vec![]);
    for _ in 0..TURNS {
        let limit = rate(SEALS, || {
            let sealed = cipher.encrypt(
                &Nonce::from(nonce),
                Payload {
                    msg: black_box(&plain),
                    aad: black_box(&aad),
                },
            );
            let opened = sealed.and_then(|sealed| {
                let sealed = Payload {
                    msg: &sealed,
                    aad: &aad,
                };
                cipher.decrypt(&Nonce::from(nonce), sealed)
            });
            drop(black_box(opened));
        });
        let rate = rate(SEALS, || {
            let sealed = key.seal(&nonce, &[black_box(field)], black_box(&plain));
            drop(black_box(key.open(&nonce, &[field], &sealed)));
        });
        ratios.push(rate / limit);
        ours.push(1e6 / rate);
        limits.push(1e6 / limit);
    }
    println!(
        "seal and open 256 B: {:.2} us, the cipher alone {:.2} us",
        median(ours),
        median(limits)
    );
    least(
        "seal and open 256 B / aes-gcm crate",
        median(ratios),
        "x",
        0.9,
    );
    Ok(())
}
