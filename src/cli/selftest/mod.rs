//! `portcullis sandbox selftest`: the attempts of [`portcullis_cell::ATTEMPTS`], made in a real sandbox of the gateway.
//!
//! They run as commands of an agent do, through the same gate and with the same record. The program that makes them is the cell, given to
//! each run on its standard input: nothing needs to be installed in an image.

mod host;
mod runs;

use portcullis_cell::{ATTEMPTS, Attempt, Way};
use portcullis_core::auth::Scope;
use portcullis_core::codes;
use serde_json::{Value, json};

use super::failure::Failure;
use super::out::{Out, note};
use crate::client::{Client, Door};
use crate::show::text::{clean, table};
use crate::show::value::{field, list};

pub use host::Host;
use runs::{Ended, Runs};

/// The program that makes the attempts.
pub const PROGRAM: &[u8] = crate::gateway::CELL;
/// Variables that the commands of a box have: what the gateway gives them, and what a shell adds.
const VARIABLES: &str = "PATH,HOME,LANG,TMPDIR,PWD,OLDPWD,SHLVL,_,HTTP_PROXY,HTTPS_PROXY,ALL_PROXY,NO_PROXY,http_proxy,https_proxy,all_proxy,\
                         no_proxy,NODE_USE_ENV_PROXY";
/// Beyond what a run may write.
const FLOOD: u64 = 8 << 20;
/// The time-out that the stubborn one has; before it, it must be there.
const STUBBORN_MS: u64 = 3000;
/// So many times that, where it was not.
const SLOW: u64 = 10;
const SURVIVES: &str = "process-list";

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Contained,
    NotContained,
    NotTried,
    /// Nobody said.
    Unknown,
}

impl Verdict {
    const fn name(self) -> &'static str {
        match self {
            Self::Contained => "contained",
            Self::NotContained => "not-contained",
            Self::NotTried => "not-tried",
            Self::Unknown => "unknown",
        }
    }

    fn of(word: &str) -> Self {
        match word {
            "refused" => Self::Contained,
            "reached" => Self::NotContained,
            "skipped" => Self::NotTried,
            _ => Self::Unknown,
        }
    }
}

type Row = (Attempt, Verdict, String);

/// Sixteen hexadecimal digits.
fn random() -> Result<String, Failure> {
    let bytes = crate::random::random::<8>()?;
    Ok(format!("{:016x}", u64::from_be_bytes(bytes)))
}

/// Makes all attempts and shows them; the exit code.
///
/// # Errors
/// [`Failure`]: the sandbox cannot be used, or the connection is lost.
pub async fn run(door: &Door, agent: &str, out: Out) -> Result<u8, Failure> {
    let mut client = Client::connect(door, &[Scope::Read, Scope::ActAs], &[]).await?;
    let explained = client
        .call("sandbox.explain", json!({ "agent": agent }))
        .await?;
    let refused = &explained["refused"];
    if refused.is_object() {
        let code = codes::find(field(refused, "code")).unwrap_or(codes::NO_DRIVER);
        return Err(Failure::of(code, clean(field(refused, "message"))));
    }
    let mut given = given(&explained)?;
    // What is out there is of this machine; a gateway elsewhere has it not.
    let host = match door {
        Door::Socket(_) => {
            let host = Host::lay_out()
                .map_err(|e| Failure::of(codes::INTERNAL, format!("what is to be reached: {e}")))?;
            given.extend(host.given.iter().map(|(k, v)| format!("{k}={v}")));
            Some(host)
        }
        Door::Remote(_) => None,
    };
    if !out.json {
        note("trying to get out of a sandbox; it takes some seconds");
    }
    let mut runs = Runs::new(client, agent, &random()?);
    let rows = all(&mut runs, &given, &explained).await;
    drop(host);
    runs.client.close().await;
    let rows = rows?;
    let document = document(agent, &explained, &rows);
    let failed = !document["ok"].as_bool().unwrap_or(false);
    out.both(&document, || shown(&document))?;
    if failed && !out.json {
        let failure = Failure::of(
            codes::NOT_CONTAINED,
            "an attempt to get out of the sandbox succeeded, or nobody knows whether it did",
        );
        note(failure.lines().trim_end());
    }
    Ok(if failed { codes::NOT_CONTAINED.exit } else { 0 })
}

fn number(explained: &Value, key: &str) -> Result<u64, Failure> {
    let lines = list(explained, "lines");
    let line = lines.iter().find(|line| field(line, "key") == key);
    line.and_then(|line| line["value"].as_u64()).ok_or_else(|| {
        Failure::of(
            codes::INTERNAL,
            format!("the gateway does not say {key} of this sandbox"),
        )
    })
}

/// The limits that are to be passed, and who is attacked.
fn given(explained: &Value) -> Result<Vec<String>, Failure> {
    let mut given = vec![
        "victims=1,supervisor".to_owned(),
        format!("variables={VARIABLES}"),
    ];
    for (name, key) in [
        ("pids", "pids"),
        ("memory", "memory_bytes"),
        ("cpu", "cpu_millis"),
        ("files", "open_files"),
        ("file-bytes", "file_bytes"),
    ] {
        given.push(format!("{name}={}", number(explained, key)?));
    }
    Ok(given)
}

async fn all(runs: &mut Runs, given: &[String], explained: &Value) -> Result<Vec<Row>, Failure> {
    let of = |way| ATTEMPTS.iter().filter(move |attempt| attempt.way == way);
    let mut found: Vec<Row> = vec![];
    let inside: Vec<&Attempt> = of(Way::Inside).collect();
    found.extend(together(runs, &inside, given).await?);
    for attempt in of(Way::Alone) {
        found.extend(together(runs, &[attempt], given).await?);
    }
    for attempt in of(Way::Outside) {
        let (mut result, mut detail) = outside(runs, attempt.name, explained).await?;
        if result == Verdict::Unknown {
            // What used up the box before it may have taken the box along under this one.
            (result, detail) = outside(runs, attempt.name, explained).await?;
        }
        found.push((*attempt, result, detail));
    }
    Ok(found)
}

async fn outside(
    runs: &mut Runs,
    name: &str,
    explained: &Value,
) -> Result<(Verdict, String), Failure> {
    match name {
        "output-flood" => flood(runs, number(explained, "output_cap_bytes")?).await,
        name => remains(runs, name).await,
    }
}

/// In one run.
async fn together(
    runs: &mut Runs,
    attempts: &[&Attempt],
    given: &[String],
) -> Result<Vec<Row>, Failure> {
    let names: Vec<&str> = attempts.iter().map(|attempt| attempt.name).collect();
    let mut words = vec![names.join(",")];
    words.extend(given.iter().cloned());
    let ended = runs.attempt(&words, None).await?;
    let text = String::from_utf8_lossy(&ended.out).into_owned();
    let lines: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.splitn(3, '\t').collect())
        .collect();
    let row = |attempt: &&Attempt| {
        let said = lines
            .iter()
            .find(|line| line.first() == Some(&attempt.name));
        let (result, detail) = match said.map(Vec::as_slice) {
            Some([_, how, detail]) => (Verdict::of(how), (*detail).to_owned()),
            _ => unsaid(attempt, &ended),
        };
        (**attempt, result, detail)
    };
    Ok(attempts.iter().map(row).collect())
}

/// What became of one that said nothing: those that use up a box may take it along, and end so.
fn unsaid(attempt: &Attempt, ended: &Ended) -> (Verdict, String) {
    let gone = ended.status == "box-lost" || ended.signal == Some(9) || ended.code == Some(137);
    if attempt.way == Way::Alone && gone {
        return (
            Verdict::Contained,
            "the kernel ended it, for want of memory".to_owned(),
        );
    }
    (
        Verdict::Unknown,
        format!("no word of it: {}", ended.words()),
    )
}

/// More output than a run may have: what is over is dropped, and the box goes on.
async fn flood(runs: &mut Runs, cap: u64) -> Result<(Verdict, String), Failure> {
    let words = ["flood".to_owned(), format!("bytes={}", cap + FLOOD)];
    let ended = runs.attempt(&words, None).await?;
    let came = ended.out.len() as u64;
    let detail = format!("{came} bytes came, {} were dropped", ended.dropped);
    if came > cap {
        return Ok((Verdict::NotContained, detail));
    }
    if ended.status != "exited" || ended.code != Some(0) || ended.dropped == 0 {
        return Ok((Verdict::Unknown, format!("{detail}: {}", ended.words())));
    }
    Ok((Verdict::Contained, detail))
}

/// A process that is to outlive its run: it was there, and is looked for after the run's end.
async fn remains(runs: &mut Runs, name: &str) -> Result<(Verdict, String), Failure> {
    let token = format!("bait-{}", random()?);
    let words = [name.to_owned(), token.clone()];
    let limit = (name == "stubborn").then_some(STUBBORN_MS);
    let is_held = |ended: &Ended| String::from_utf8_lossy(&ended.out).contains("held");
    let mut ended = runs.attempt(&words, limit).await?;
    if let Some(limit) = limit
        && !is_held(&ended)
    {
        // On a machine with much to do, or an emulated one, it was not there by then.
        ended = runs.attempt(&words, Some(limit * SLOW)).await?;
    }
    let held = is_held(&ended);
    let expected = if limit.is_some() {
        "timed-out"
    } else {
        "exited"
    };
    if !held || ended.status != expected {
        return Ok((
            Verdict::Unknown,
            format!("it did not begin: {}", ended.words()),
        ));
    }
    let words = [SURVIVES.to_owned(), format!("token={token}")];
    let after = runs.attempt(&words, None).await?;
    let text = String::from_utf8_lossy(&after.out).into_owned();
    Ok(match text.split('\t').nth(1) {
        Some("refused") => (
            Verdict::Contained,
            "it was there, and is gone with its run".to_owned(),
        ),
        Some("reached") => (Verdict::NotContained, "it outlived its run".to_owned()),
        _ => (
            Verdict::Unknown,
            format!("no word of it: {}", after.words()),
        ),
    })
}

fn document(agent: &str, explained: &Value, rows: &[Row]) -> Value {
    let count = |wanted| {
        rows.iter()
            .filter(|(_, result, _)| *result == wanted)
            .count()
    };
    let [contained, not, not_tried, unknown] = [
        Verdict::Contained,
        Verdict::NotContained,
        Verdict::NotTried,
        Verdict::Unknown,
    ]
    .map(count);
    let ok = not == 0 && unknown == 0 && contained > 0;
    let attempts: Vec<Value> = rows
        .iter()
        .map(|(attempt, result, detail)| {
            json!({
                "name": attempt.name, "tries": attempt.tries, "result": result.name(), "detail": detail,
            })
        })
        .collect();
    let mut document = json!({
        "agent": agent, "driver": field(explained, "driver"), "isolation": field(explained, "isolation"),
        "profile": field(explained, "profile"), "ok": ok, "contained": contained, "notContained": not, "notTried": not_tried,
        "unknown": unknown, "attempts": attempts,
    });
    if !ok {
        document["code"] = codes::NOT_CONTAINED.name.into();
    }
    document
}

fn shown(document: &Value) -> String {
    let rows: Vec<Vec<String>> = list(document, "attempts")
        .iter()
        .map(|attempt| {
            let result = match field(attempt, "result") {
                "contained" => "contained".to_owned(),
                // What is not as it should be is seen at once.
                other => other.to_uppercase(),
            };
            let [name, tries, detail] =
                ["name", "tries", "detail"].map(|key| field(attempt, key).to_owned());
            vec![name, tries, result, detail]
        })
        .collect();
    let word = |key: &str| clean(field(document, key));
    format!(
        "{}\nagent {}, driver {} (isolation {}), profile {}: {} contained, {} not contained, {} unknown, {} not tried\n",
        table(&["ATTEMPT", "TO", "RESULT", "WHY"], &rows).trim_end(),
        word("agent"),
        word("driver"),
        word("isolation"),
        word("profile"),
        document["contained"],
        document["notContained"],
        document["unknown"],
        document["notTried"],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(result: Verdict) -> Row {
        (ATTEMPTS[0], result, "why".to_owned())
    }

    #[test]
    fn one_attempt_that_succeeded_or_that_nobody_knows_of_fails_the_whole() {
        let explained =
            json!({ "driver": "native", "isolation": "native", "profile": "restricted" });
        let of = |rows: &[Row]| document("demo", &explained, rows);
        let good = [row(Verdict::Contained), row(Verdict::NotTried)];
        assert_eq!(of(&good)["ok"], true);
        assert!(of(&good)["code"].is_null());
        for bad in [Verdict::NotContained, Verdict::Unknown] {
            let document = of(&[row(Verdict::Contained), row(bad)]);
            assert_eq!(document["ok"], false);
            assert_eq!(document["code"], "NOT_CONTAINED");
            let text = shown(&document);
            assert!(text.contains(&bad.name().to_uppercase()), "{text}");
        }
        // Nothing tried is nothing shown.
        assert_eq!(of(&[row(Verdict::NotTried)])["ok"], false);
    }

    #[test]
    fn only_what_uses_up_a_box_may_end_without_a_word() {
        let ended = Ended {
            status: "box-lost".to_owned(),
            ..Ended::default()
        };
        for attempt in ATTEMPTS {
            let (result, _) = unsaid(attempt, &ended);
            let expected = if attempt.way == Way::Alone {
                Verdict::Contained
            } else {
                Verdict::Unknown
            };
            assert_eq!(result, expected, "{}", attempt.name);
            let (result, _) = unsaid(attempt, &Ended::default());
            assert_eq!(result, Verdict::Unknown, "{}", attempt.name);
        }
    }
}
