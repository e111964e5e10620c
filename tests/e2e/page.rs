//! The page in a real browser, served by the real gateway: what waits was asked by a real device and by real commands,
//! and what the person decides is what becomes of them.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use fantoccini::key::Key;
use fantoccini::{Client, Locator};
use serde_json::{Value, json};

use crate::support::browser::Browser;
use crate::support::gateway::Gateway;
use crate::support::ws::{self, Connect, Device};

const PATIENCE: Duration = Duration::from_secs(40);
/// What others may write wherever they may write: markup, a turned reading direction, a steered terminal.
const HOSTILE: &str = "<img src=x onerror=alert(1)>\u{202e}<script>alert(2)</script>\u{1b}[2J";

/// Every device waits for a person.
fn gateway() -> Gateway {
    Gateway::with(&[("gateway.local.local_trust", "false")])
}

/// A command outside the sandbox that waits for a person.
struct Waiting(Option<Child>);

impl Waiting {
    /// Asks, and waits until the gateway lists it.
    fn ask(gateway: &Gateway, argv: &[&str]) -> Self {
        let before = Self::pending(gateway);
        let exec = [
            "exec",
            "--agent",
            "demo",
            "--host",
            "--env",
            "LANG=<b>C</b>",
            "--",
        ];
        let child = gateway
            .command(&[&exec, argv].concat())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let waiting = Self(Some(child));
        let until = Instant::now() + PATIENCE;
        while Self::pending(gateway) == before {
            assert!(
                Instant::now() < until,
                "it does not wait:\n{}",
                gateway.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        waiting
    }

    fn pending(gateway: &Gateway) -> usize {
        gateway
            .json(&["approvals", "list"])
            .as_array()
            .unwrap()
            .len()
    }

    /// Its exit code, stdout and stderr.
    fn end(mut self) -> (i32, String, String) {
        let output = self.0.take().unwrap().wait_with_output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (
            output.status.code().unwrap(),
            text(output.stdout),
            text(output.stderr),
        )
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A device that asks to be let in under this name, and must wait.
async fn knock(gateway: &Gateway, device: &Device, name: &str) -> Value {
    let connect = connect(device).named(name);
    let (error, _) = ws::Client::dial(gateway).await.denied(&connect).await;
    assert_eq!(error["code"], "NOT_PAIRED", "{error}");
    error["details"]["requestId"].clone()
}

fn connect(device: &Device) -> Connect<'_> {
    Connect::token().scopes(&["operator.read"]).device(device)
}

/// What `portcullis dashboard` prints: the link, and the code alone.
fn printed(gateway: &Gateway) -> (String, String) {
    let output = gateway.cli(&["dashboard"]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let link = text.lines().next().unwrap().to_owned();
    let code = text.lines().last().unwrap().to_owned();
    assert_eq!(
        link,
        format!("http://localhost:{}/login#{code}", gateway.port())
    );
    (link, code)
}

async fn shown(client: &Client, css: &str) {
    let wait = client
        .wait()
        .at_most(PATIENCE)
        .for_element(Locator::Css(css));
    wait.await.unwrap_or_else(|e| panic!("{css}: {e}"));
}

async fn main_text(client: &Client) -> String {
    client
        .find(Locator::Css("main"))
        .await
        .unwrap()
        .text()
        .await
        .unwrap()
}

/// Presses a button of the card that shows this text, and waits until the page says that the decision stands.
async fn press(client: &Client, card: &str, decision: &str, said: &str) {
    let button = format!("//article[contains(., '{card}')]//button[@value='{decision}']");
    let button = client.find(Locator::XPath(&button)).await.unwrap();
    button.click().await.unwrap();
    stands(client, said).await;
}

async fn stands(client: &Client, said: &str) {
    let until = Instant::now() + PATIENCE;
    while client.current_url().await.unwrap().query() != Some(&format!("said={said}")) {
        assert!(
            Instant::now() < until,
            "{said}: {}",
            main_text(client).await
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    shown(client, "p.notice[role=status]").await;
}

async fn script(client: &Client, script: &str) -> Value {
    client.execute(script, vec![]).await.unwrap()
}

/// Nothing that others wrote has become more than text.
async fn inert(client: &Client) {
    let more = "return [...document.querySelectorAll('main *')].filter(e => ['IMG', 'SCRIPT', 'B', 'IFRAME', 'STYLE'].includes(e.tagName)).map(e => e.outerHTML)";
    assert_eq!(script(client, more).await, json!([]));
    let hidden = "return /[\\u202e\\u001b]/.test(document.body.textContent)";
    assert_eq!(script(client, hidden).await, json!(false));
}

/// Rows of the last records, newest first: action, who, outcome.
async fn records(client: &Client) -> Vec<(String, String, String)> {
    let rows = "return [...document.querySelectorAll('section[aria-labelledby=audit] tbody tr')].map(r => [...r.cells].map(c => c.textContent))";
    let rows: Vec<Vec<String>> = serde_json::from_value(script(client, rows).await).unwrap();
    rows.into_iter()
        .map(|r| (r[3].clone(), r[4].clone(), r[6].clone()))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_logs_in_with_the_printed_link_and_decides() {
    let Some(browser) = Browser::open(false, true, 1280).await else {
        return;
    };
    let gateway = gateway();
    let client = &browser.client;
    let (welcome, unwelcome) = (Device::new(), Device::p256());
    knock(&gateway, &welcome, &format!("desk {HOSTILE}")).await;
    knock(&gateway, &unwelcome, "unwelcome").await;
    let run = |marker: &'static str| {
        let show = "id -un; printf '%s' \"$1\"";
        Waiting::ask(&gateway, &["sh", "-c", show, marker, HOSTILE])
    };
    let (good, bad) = (run("marker-good"), run("marker-bad"));

    let (link, _) = printed(&gateway);
    client.goto(&link).await.unwrap();
    shown(client, "#plans").await;
    // The code is not left in the address, the cookie is not for scripts, and the code is spent.
    let url = format!("http://localhost:{}/", gateway.port());
    assert_eq!(client.current_url().await.unwrap().as_str(), url);
    assert_eq!(script(client, "return document.cookie").await, json!(""));
    browser.keep("page-light").await;
    inert(client).await;
    let text = main_text(client).await;
    let fingerprint = format!("{} {}", &welcome.id()[..4], &welcome.id()[4..8]);
    for part in [
        "\"marker-good\"",
        "\"<img src=x onerror=alert(1)>\\u{202e}<script>alert(2)</script>\\u{1b}[2J\"",
        "LANG=\"<b>C</b>\"",
        "uid 65534 gid 65534",
        "uid:0 over control",
        "desk <img src=x onerror=alert(1)>\\u{202e}<script>alert(2)</script>\\u{1b}[2J",
        &fingerprint,
        "unwelcome",
        "operator.read",
        "all rooms serve",
        "native",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let title = client.title().await.unwrap();
    assert_eq!(title, "(4) Portcullis");
    // The tree is the gateway's own: each room with its state.
    let status = gateway.json(&["status"]);
    let rooms: Vec<_> = status["portcullis"]["rooms"]
        .as_array()
        .unwrap()
        .iter()
        .collect();
    assert!(rooms.len() >= 9);
    for room in rooms {
        let name = room["name"].as_str().unwrap();
        let row = format!("//section[@aria-labelledby='tree']//tr[th[text()='{name}']]/td[1]");
        let state = client.find(Locator::XPath(&row)).await.unwrap();
        assert_eq!(state.text().await.unwrap(), "up", "{name}");
    }

    // By keyboard alone: from the reason field on, Deny comes before Allow.
    let field = "//article[contains(., 'marker-bad')]//input[@name='reason']";
    let field = client.find(Locator::XPath(field)).await.unwrap();
    field.send_keys("not now <b>").await.unwrap();
    let key = async |key: Key| {
        let focused = client.active_element().await.unwrap();
        focused
            .send_keys(&char::from(key).to_string())
            .await
            .unwrap();
    };
    key(Key::Tab).await;
    let focus = "return document.activeElement.textContent";
    assert_eq!(script(client, focus).await, json!("Deny"));
    key(Key::Enter).await;
    stands(client, "denied").await;
    let (code, out, err) = bad.end();
    assert_eq!((code, out.as_str()), (125, ""), "{err}");
    assert!(
        err.contains("error[APPROVAL_DENIED]: ") && err.contains("not now <b>"),
        "{err}"
    );
    // By pointer. What was shown is what runs, as nobody.
    press(client, "marker-good", "allow-once", "allowed").await;
    let (code, out, err) = good.end();
    assert_eq!((code, out), (0, format!("nobody\n{HOSTILE}")), "{err}");
    press(client, "unwelcome", "reject", "rejected").await;
    press(client, "desk", "approve", "approved").await;
    let (mut socket, hello) = ws::join(&gateway, &connect(&welcome)).await;
    assert_eq!(hello["auth"]["scopes"], json!(["operator.read"]));
    socket.get("status", json!({})).await;
    knock(&gateway, &unwelcome, "unwelcome again").await;

    // A device keeps its name when its days are over.
    let id = welcome.id();
    gateway.json(&["devices", "rename", &id, "<b>mine</b>"]);
    gateway.json(&["devices", "revoke", &id]);
    assert_eq!(socket.closed().await.0, 4001);
    client.goto(&url).await.unwrap();
    inert(client).await;
    browser.keep("page-decided").await;
    let row = "//section[@aria-labelledby='devices']//tr[contains(., '<b>mine</b>')]";
    let row = client
        .find(Locator::XPath(row))
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    assert!(
        row.contains("revoked") && row.contains(&fingerprint),
        "{row}"
    );
    assert!(
        main_text(client)
            .await
            .contains("None. What leaves the sandbox asks here.")
    );
    let last = records(client).await;
    for action in [
        "pairing.token_revoke",
        "pairing.rename",
        "pairing.approve",
        "pairing.reject",
        "exec.run",
        "approval.resolve",
    ] {
        assert!(
            last.iter()
                .any(|(what, who, _)| what == action && who == "uid:0"),
            "{action}: {last:?}"
        );
    }
    let told = gateway.json(&["audit", "query", "--action", "approval.resolve"]);
    let told = told["records"].as_array().unwrap();
    let doors: Vec<_> = told.iter().map(|r| &r["record"]["door"]).collect();
    assert_eq!(doors, ["page", "page"], "{told:?}");

    // It reloads by itself without a form; and a session that was left is none.
    client.goto(&format!("{url}live")).await.unwrap();
    assert!(
        client
            .find_all(Locator::Css("form"))
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(browser.complaints().await, Vec::<String>::new());
    client.goto(&url).await.unwrap();
    let out = client
        .find(Locator::XPath("//button[text()='Log out']"))
        .await
        .unwrap();
    out.click().await.unwrap();
    shown(client, "#code").await;
    client.goto(&link).await.unwrap();
    shown(client, "p.bad[role=alert]").await;
    client.goto(&url).await.unwrap();
    shown(client, "#code").await;
    // Codes and logins are on record: who, and that one was refused.
    let told = gateway.json(&["audit", "query", "--action", "dashboard."]);
    let told: Vec<_> = told["records"].as_array().unwrap().iter().collect();
    let told: Vec<_> = told
        .iter()
        .map(|r| {
            [
                &r["record"]["action"],
                &r["record"]["principal"],
                &r["record"]["decision"],
            ]
        })
        .collect();
    let (none, by) = (Value::Null, json!("uid:0"));
    let (code, login) = (json!("dashboard.code"), json!("dashboard.login"));
    assert_eq!(
        told,
        [
            [&code, &by, &none],
            [&login, &by, &json!("ok")],
            [&login, &none, &json!("refused")]
        ]
    );
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_typed_code_does_the_same_without_script_on_a_narrow_dark_screen() {
    let Some(browser) = Browser::open(true, false, 500).await else {
        return;
    };
    let gateway = gateway();
    let client = &browser.client;
    let device = Device::new();
    knock(&gateway, &device, HOSTILE).await;
    let good = Waiting::ask(&gateway, &["echo", "marker-good", &"wide".repeat(60)]);
    // Script is off indeed: the one that reads the address does not run.
    let url = format!("http://localhost:{}/", gateway.port());
    client.goto(&format!("{url}login#no")).await.unwrap();
    assert_eq!(client.current_url().await.unwrap().fragment(), Some("no"));
    client.goto(&url).await.unwrap();
    let (_, code) = printed(&gateway);
    for (typed, then) in [("wrong", "p.bad[role=alert]"), (&code, "#plans")] {
        let field = client.find(Locator::Css("#code")).await.unwrap();
        field.send_keys(typed).await.unwrap();
        client
            .find(Locator::Css("button"))
            .await
            .unwrap()
            .click()
            .await
            .unwrap();
        shown(client, then).await;
        browser
            .keep(if typed == "wrong" {
                "login-dark"
            } else {
                "page-dark"
            })
            .await;
    }
    inert(client).await;
    // Nothing is wider than the screen, and every button is big enough for a finger.
    let wide = "const w = document.documentElement.clientWidth; return [...document.querySelectorAll('body *')].filter(e => !e.closest('.wide, .skip') && e.getBoundingClientRect().right > w).map(e => e.outerHTML.slice(0, 120))";
    assert_eq!(script(client, wide).await, json!([]));
    let small = "return [...document.querySelectorAll('button,input:not([type=hidden])')].filter(e => e.getBoundingClientRect().height < 44).length";
    assert_eq!(script(client, small).await, json!(0));
    // Every field has a label, every table head a scope. The refused code answered 403: all that the console may tell.
    let told = browser.complaints().await;
    assert!(told.iter().all(|line| line.contains("403")), "{told:?}");
    let bare = "return [...document.querySelectorAll('input:not([type=hidden])')].filter(e => !e.labels.length).length + document.querySelectorAll('th:not([scope])').length";
    assert_eq!(script(client, bare).await, json!(0));
    press(client, "marker-good", "allow-once", "allowed").await;
    let (code, out, err) = good.end();
    assert_eq!(
        (code, out),
        (0, format!("marker-good {}\n", "wide".repeat(60))),
        "{err}"
    );
    press(client, "<img", "approve", "approved").await;
    ws::join(&gateway, &connect(&device)).await;
    browser.close().await;
}

/// What our own names may not be is refused where it is given, so that it reaches no page.
#[test]
fn names_of_agents_and_secrets_are_not_free_text() {
    let gateway = gateway();
    gateway.vault_is_open();
    for name in ["<b>", "x\u{202e}", "a b"] {
        let output = gateway.cli(&["exec", "--agent", name, "--", "true"]);
        assert_eq!(output.status.code(), Some(125), "{output:?}");
        assert_ne!(gateway.feed(&["vault", "set", name], b"x"), 0, "{name}");
    }
    assert_eq!(gateway.json(&["vault", "list"])["entries"], json!([]));
}
